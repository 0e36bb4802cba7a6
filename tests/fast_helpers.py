"""Models, batches and references for the tests of gptloom.fast."""

import torch

from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX
from gptloom.fast.decode import Reference
from gptloom.model.loss import Objective
from model_helpers import CONFIGS, SMALL, random_ids

MORE = {
    "tanh": {"mlp": "gelu-tanh", "head": "tied", "score_scale": "embedding"},
    "rms with biases": {"norm": "rmsnorm", "mlp": "relu2", "qk_norm": True, "positions": "none"},
    "swiglu with biases": {"mlp": "swiglu", "positions": "rotary", "head_size": 6, "n_head": 2},
    "tied, LayerNorm without biases": {"head": "tied", "bias": "none"},
    "biases everywhere": {"bias": "all", "head_bias": True, "mlp": "gelu"},
    "n-grams that are left out": {
        "norm": "rmsnorm",
        "bias": "none",
        "ngrams": 3,
        "ngram_rows": 50,
        "ngram_dropout": 0.4,
    },
    "sinusoids": {"positions": "sinusoidal", "ngrams": 3, "ngram_rows": 50},
}

SHAPES = CONFIGS | {name: ModelConfig(**SMALL | fields) for name, fields in MORE.items()}

SHARE = 0.03

T = SMALL["block_size"]


def batch(rows, time, seed=0):
    """Inputs and targets, some of which do not count."""
    targets = random_ids(rows, time, seed=seed + 50)
    return random_ids(rows, time, seed=seed), targets.masked_fill(targets % 3 == 0, IGNORE_INDEX)


def gradients(model):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
        for name, p in model.named_parameters()
    }


def by_autograd(model, *batches):
    total = 0.0
    torch.manual_seed(5)
    for one in batches:
        nats, _ = Objective(model)(*one)
        (nats * SHARE).backward()
        total += nats.detach()
    return gradients(model) | {"loss": total}


def assert_alike(found, wanted):
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(
            found[name], one, atol=1e-11, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def read(model, texts: list[list[int]], stepper=None):
    """A state that holds these texts."""
    state = model.init_cache(len(texts), T)
    (stepper or Reference(model)).read(texts, state)
    return state


def expected(model, texts: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model(torch.tensor([text]))[0, -1] for text in texts])


PLAIN = {"vocab_size": 11, "block_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 8, "ngram_rows": 50}
