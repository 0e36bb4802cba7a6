"""Small models that cover every choice of `ModelConfig`, and functions that build them."""

import torch

from gptloom.config.model import ModelConfig
from gptloom.model.cache import Context
from gptloom.model.transformer import Decoder

SMALL = {"vocab_size": 13, "block_size": 10, "n_layer": 2, "n_head": 4, "n_embd": 16}

LECTURE = {"bias": "not-qkv", "mlp": "relu", "head_bias": True, "init": "pytorch"}

BARE = {"mlp": "none", "residual": "none", "norm": "none", "output_projection": False}

QWEN = {"positions": "rotary", "norm": "rmsnorm", "qk_norm": True, "mlp": "swiglu", "bias": "none"}

CONFIGS = {
    name: ModelConfig(**{**SMALL, **fields})
    for name, fields in {
        "bigram": {"n_layer": 0, "positions": "none", "head": "none"},
        "no-blocks": {"n_layer": 0, "head_bias": True},
        "bare-mean": BARE | {"mixer": "mean", "positions": "none", "bias": "none"},
        "mean": {"mixer": "mean", "mlp": "relu2"},
        "mean-post": {
            "mixer": "mean",
            "norm_position": "post",
            "norm": "rmsnorm",
            "positions": "sinusoidal",
            "bias": "not-qkv",
        },
        "position-wise": {"mixer": "none", "mlp": "gelu"},
        "single-head": LECTURE | BARE | {"n_head": 1, "n_layer": 1, "score_scale": "embedding"},
        "lecture": LECTURE,
        "lecture-scale": LECTURE | {"score_scale": "embedding", "dropout": 0.3},
        "no-mlp": {"mlp": "none", "head": "tied"},
        "original": {"norm_position": "post", "positions": "sinusoidal", "mlp": "relu"},
        "gpt2": {"head": "tied", "dropout": 0.2, "attn_dropout": 0.1, "embd_dropout": 0.0},
        "multi-query": {"n_kv_head": 1, "mlp": "gelu", "bias": "none", "positions": "none"},
        "no-residual": {"residual": "none", "norm_position": "post", "positions": "rotary"},
        "narrow-heads": {
            "head_size": 6,
            "n_head": 2,
            "positions": "rotary",
            "bias": "not-qkv",
            "mlp": "swiglu",
            "mlp_width": 24,
        },
        "tiny": QWEN | {"mlp": "relu2", "init": "zero-projection"},
        "modern": QWEN | {"n_kv_head": 2, "head": "tied", "rope_theta": 500.0},
        "ngrams": QWEN | {"mlp": "relu", "ngrams": 4, "ngram_rows": 64},
    }.items()
}

CACHING = {name: config for name, config in CONFIGS.items() if config.n_layer}


def build(config: ModelConfig, seed: int = 0) -> Decoder:
    """A model in evaluation mode with weights far from their initial values 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(config)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(
                    torch.randn_like(p) * (1.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.3)
                    + (p if p.ndim == 1 else 0.0)
                )
            # Embeddings of unit variance, so that tokens differ clearly.
            model.token_table.weight.copy_(torch.randn_like(model.token_table.weight))
    return model.eval()


def random_ids(batch: int, length: int, vocab_size: int = SMALL["vocab_size"], seed: int = 0) -> torch.Tensor:
    """Random ids from a separate generator."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def signed(number: int) -> int:
    """A number as a 64-bit integer in two's complement."""
    return number - 2**64 if number >= 2**63 else number


def rows_of(ids: list[int], longest: int, rows: int) -> list[list[int]]:
    """Rows of the n-grams that end at each position, with Python's integers modulo 2**64.

    The hash is Horner's rule with 2**64 divided by the golden ratio; the newest token is first.
    """
    found = []
    for end in range(len(ids)):
        codes = [ids[end - back] + 1 if end >= back else 0 for back in range(longest)]
        key, here = codes[0], []
        for code in codes[1:]:
            key = (key * 11400714819323198485 + code) % 2**64
            mixed = (key ^ signed(key) >> 32) * 11400714819323198485 % 2**64
            here.append((signed(mixed) >> 33) % rows)
        found.append(here)
    return found


def call(model: Decoder, ids: torch.Tensor, **context) -> torch.Tensor:
    with torch.no_grad():
        return model.unembed(model.forward_hidden(ids, Context(**context)))
