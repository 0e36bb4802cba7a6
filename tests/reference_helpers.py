"""The lecture's plain model beside a decoder with the same weights."""

import torch

from gptloom.config.model import ModelConfig
from gptloom.model.transformer import Decoder
from gptloom.reference.lecture import PlainGPT

SHAPE = {"vocab_size": 17, "block_size": 12, "n_embd": 24, "n_head": 4, "n_layer": 3}

LECTURE = {"bias": "not-qkv", "mlp": "relu", "head_bias": True, "init": "pytorch"}


def as_decoder(tensors: dict[str, torch.Tensor], n_layer: int, n_head: int) -> dict[str, torch.Tensor]:
    """The plain model's tensors (weights or gradients) under the decoder's names."""
    names = {
        "head.weight": "head.weight",
        "head.bias": "head.bias",
        "final_norm.weight": "final_norm.gain",
        "final_norm.bias": "final_norm.bias",
    }
    names |= {f"{table}.weight": f"{table}.weight" for table in ("token_table", "position_table")}
    out = {}
    for n in range(n_layer):
        block = f"blocks.{n}"
        for norm in ("norm1", "norm2"):
            names |= {f"{block}.{norm}.weight": f"{block}.{norm}.gain", f"{block}.{norm}.bias": f"{block}.{norm}.bias"}
        for kind in ("weight", "bias"):
            names[f"{block}.mixer.out.{kind}"] = f"{block}.attention.projection.{kind}"
            names |= {f"{block}.mlp.{half}.{kind}": f"{block}.feed_forward.{half}.{kind}" for half in ("up", "down")}
        heads = [
            f"{block}.attention.heads.{h}.{part}.weight" for part in ("query", "key", "value") for h in range(n_head)
        ]
        out[f"{block}.mixer.qkv.weight"] = torch.cat([tensors.pop(name) for name in heads])
    out |= {ours: tensors.pop(theirs) for ours, theirs in names.items()}
    assert not tensors, "every tensor has found its place"
    return out


def twins(**fields) -> tuple[PlainGPT, Decoder]:
    """A plain model with random weights, and a decoder with the same weights."""
    fields = SHAPE | fields
    scale = fields["n_embd"] ** -0.5 if fields.get("score_scale") == "embedding" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = PlainGPT(**{name: fields[name] for name in SHAPE}, scale=scale)
        with torch.no_grad():
            for p in plain.parameters():
                p.add_(0.3 * torch.randn_like(p))
            plain.token_table.weight.mul_(5)  # so that different contexts have different continuations
    decoder = Decoder(ModelConfig(**fields, **LECTURE))
    decoder.load_state_dict(as_decoder(dict(plain.state_dict()), fields["n_layer"], fields["n_head"]))
    return plain, decoder
