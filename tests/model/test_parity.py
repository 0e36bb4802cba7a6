"""GPT-2 and Qwen3 against Hugging Face transformers: the same weights give the same logits."""

import pytest
import torch

from gptloom.config.model import ModelConfig
from gptloom.model.transformer import Decoder
from model_helpers import build, random_ids

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

VOCAB, LENGTH = 101, 32


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def fill(foreign: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Load under the foreign names; only buffers that those models compute may be missing."""
    result = foreign.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    assert {name for name in result.missing_keys if not name.endswith((".attn.bias", ".attn.masked_bias"))} <= {
        "lm_head.weight"
    }
    foreign.tie_weights()
    return foreign.eval()


def assert_same_logits(model: Decoder, foreign: torch.nn.Module):
    ids = random_ids(3, LENGTH, VOCAB)
    with torch.no_grad():
        ours, theirs = model(ids), foreign(input_ids=ids).logits
    assert ours.std() > 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gpt2(transformers):
    model = build(ModelConfig(vocab_size=VOCAB, block_size=LENGTH, n_layer=3, n_head=4, n_embd=48, head="tied"))
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_layer=3,
        n_head=4,
        n_embd=48,
        activation_function="gelu_new",
        bos_token_id=0,
        eos_token_id=0,
    )
    parts = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "mixer.qkv": "attn.c_attn",
        "mixer.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks."):
            _, n, *part, kind = name.split(".")
            part = ".".join(part)
            # Conv1D stores its matrix transposed.
            tensors[f"transformer.h.{n}.{parts[part]}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
        else:
            new = {
                "token_table": "transformer.wte",
                "position_table": "transformer.wpe",
                "final_norm": "transformer.ln_f",
                "head": "lm_head",
            }
            owner, kind = name.split(".")
            tensors[f"{new[owner]}.{kind}"] = tensor
    assert_same_logits(model, fill(transformers.GPT2LMHeadModel(config), tensors))


@pytest.mark.parametrize("head", ["tied", "linear"])
def test_qwen3(transformers, head):
    fields = {
        "positions": "rotary",
        "rope_theta": 5_000.0,
        "norm": "rmsnorm",
        "qk_norm": True,
        "mlp": "swiglu",
        "bias": "none",
        "head": head,
    }
    model = build(
        ModelConfig(vocab_size=VOCAB, block_size=LENGTH, n_layer=3, n_head=4, n_kv_head=2, n_embd=48, **fields)
    )
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=48,
        head_dim=12,
        intermediate_size=model.config.hidden_width,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
        tie_word_embeddings=head == "tied",
        attn_implementation="eager",
    )
    w = model.state_dict()
    tensors = {
        "model.embed_tokens.weight": w["token_table.weight"],
        "model.norm.weight": w["final_norm.weight"],
        "lm_head.weight": w["head.weight"],
    }
    for n in range(3):
        ours, theirs = f"blocks.{n}", f"model.layers.{n}"
        query, key, value = w[f"{ours}.mixer.qkv.weight"].split([4 * 12, 2 * 12, 2 * 12])
        gate, up = w[f"{ours}.mlp.up.weight"].chunk(2)
        tensors |= {
            f"{theirs}.self_attn.{one}_proj.weight": matrix for one, matrix in (("q", query), ("k", key), ("v", value))
        }
        tensors |= {
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": w[f"{ours}.mlp.down.weight"],
        }
        tensors[f"{theirs}.self_attn.o_proj.weight"] = w[f"{ours}.mixer.out.weight"]
        tensors[f"{theirs}.self_attn.q_norm.weight"] = w[f"{ours}.mixer.query_norm.weight"]
        tensors[f"{theirs}.self_attn.k_norm.weight"] = w[f"{ours}.mixer.key_norm.weight"]
        tensors[f"{theirs}.input_layernorm.weight"] = w[f"{ours}.norm1.weight"]
        tensors[f"{theirs}.post_attention_layernorm.weight"] = w[f"{ours}.norm2.weight"]
    foreign = transformers.Qwen3ForCausalLM(config)
    assert foreign.config.rope_parameters["rope_theta"] == 5_000.0
    assert_same_logits(model, fill(foreign, tensors))
