"""Every ladder step's plain code against the decoder: the same weights give the same logits, loss and gradients."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

from gptloom.config.model import ModelConfig
from gptloom.errors import ConfigError
from gptloom.model.transformer import Decoder
from gptloom.reference.build import PLAIN, copy_weights, from_decoder, plain_model, to_decoder
from gptloom.reference.modern import gelu, rotate
from gptloom.reference.steps import average_by_loop, average_by_matrix, average_by_softmax
from model_helpers import random_ids

LINEAR = {"n_layer": 0, "positions": "none", "norm": "none", "bias": "not-qkv", "head_bias": True, "init": "pytorch"}
POSITIONS = LINEAR | {"positions": "learned"}
AVERAGING = POSITIONS | {"n_layer": 1, "mixer": "mean", "mlp": "none", "residual": "none", "output_projection": False}
ONE_HEAD = AVERAGING | {"mixer": "attention", "n_head": 1, "score_scale": "embedding"}
MULTI_HEAD = {name: value for name, value in ONE_HEAD.items() if name != "n_head"}
MLP = MULTI_HEAD | {"mlp": "relu"}
RESIDUAL = {name: value for name, value in MLP.items() if name != "n_layer"} | {
    "residual": "add",
    "output_projection": True,
}
LAYERNORM = RESIDUAL | {"norm": "layernorm"}
DROPOUT = LAYERNORM | {"dropout": 0.2, "embd_dropout": 0.0}
SCORES = DROPOUT | {"score_scale": "head"}
GPT2 = SCORES | {"init": "gpt2"}
GELU = GPT2 | {"mlp": "gelu-tanh"}
ROPE = GELU | {"positions": "rotary"}
RMSNORM = ROPE | {"norm": "rmsnorm"}
QK_NORM = RMSNORM | {"qk_norm": True}
SWIGLU = QK_NORM | {"mlp": "swiglu"}
GQA = SWIGLU | {"n_kv_head": 2}

STEPS = {
    "bigram": LINEAR | {"head": "none"},
    "embedding": LINEAR,
    "positions": POSITIONS,
    "averaging": AVERAGING,
    "one-head": ONE_HEAD,
    "multi-head": MULTI_HEAD,
    "mlp": MLP,
    "residual": RESIDUAL,
    "layernorm": LAYERNORM,
    "post-norm": LAYERNORM | {"norm_position": "post"},
    "dropout": DROPOUT,
    "scale": DROPOUT,
    "score-scale": SCORES,
    "gpt2-init": GPT2,
    "gelu": GELU,
    "rope": ROPE,
    "rmsnorm": RMSNORM,
    "qk-norm": QK_NORM,
    "swiglu": SWIGLU,
    "gqa": GQA,
    "modern": GQA | {"bias": "none", "head_bias": False, "rope_theta": 500.0},
}
SHAPES = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(2, 19),
        "block_size": st.integers(1, 11),
        "n_embd": st.sampled_from([8, 16, 24]),
        "n_head": st.sampled_from([2, 4]),
        "n_layer": st.integers(1, 3),
    }
)

every_step = pytest.mark.parametrize("name", STEPS)


def shaken(model, seed=0):
    """Set all weights far from their initial values, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.double().eval()


def twins(name, shape, seed=0):
    """The step's plain model with random weights, and a decoder with the same weights."""
    config = ModelConfig(**{**shape, **STEPS[name]})
    plain = shaken(plain_model(name, config), seed)
    decoder = Decoder(config).double().eval()
    copy_weights(plain, decoder)
    return plain, decoder


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_every_step_is_here():
    assert STEPS.keys() | {"rnn", "lstm", "gru"} == PLAIN.keys()  # the other architectures are in test_architectures.py


@every_step
@runs(max_examples=4)
@given(shape=SHAPES, batch=st.integers(1, 3), data=st.data())
def test_logits_loss_and_every_gradient_agree(name, shape, batch, data):
    plain, decoder = twins(name, shape, seed=batch)
    length = data.draw(st.integers(1, shape["block_size"]))
    ids, targets = (
        random_ids(batch, length, shape["vocab_size"]),
        random_ids(batch, length, shape["vocab_size"], seed=1),
    )
    ours, theirs = decoder(ids), plain(ids)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    losses = [F.cross_entropy(logits.flatten(0, 1), targets.flatten()) for logits in (ours, theirs)]
    torch.testing.assert_close(*losses, atol=1e-10, rtol=1e-10)
    expected, found = to_decoder(plain, gradients(plain, losses[1])), gradients(decoder, losses[0])
    assert expected.keys() == found.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[key], atol=1e-9, rtol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
        )


@every_step
def test_every_weight_matters_so_agreement_says_something(name):
    plain, decoder = twins(name, {"vocab_size": 13, "block_size": 8, "n_embd": 16, "n_head": 4, "n_layer": 2})
    ids, targets = random_ids(3, 8, 13), random_ids(3, 8, 13, seed=1)
    loss = F.cross_entropy(plain(ids).flatten(0, 1), targets.flatten())
    for key, gradient in gradients(plain, loss).items():
        assert gradient.abs().max() > 1e-6, key
    assert sum(p.numel() for p in plain.parameters()) == decoder.parameter_count()


@every_step
def test_the_way_back_from_the_decoder_is_exact(name):
    plain, decoder = twins(name, {"vocab_size": 13, "block_size": 8, "n_embd": 16, "n_head": 4, "n_layer": 2})
    back = from_decoder(plain, dict(decoder.named_parameters()))
    assert back.keys() == dict(plain.named_parameters()).keys()
    for key, p in plain.named_parameters():
        assert torch.equal(back[key], p)


def test_weights_go_only_where_they_fit():
    shape = {"vocab_size": 13, "block_size": 8, "n_embd": 16, "n_head": 4, "n_layer": 2}
    plain, _ = twins("layernorm", shape)
    with pytest.raises(ValueError, match="position_table"):
        copy_weights(plain, Decoder(ModelConfig(**shape, **ROPE)))
    with pytest.raises(ValueError, match=r"token_table.*\(12, 16\), plain \(13, 16\)"):
        copy_weights(plain, Decoder(ModelConfig(**{**shape, "vocab_size": 12}, **LAYERNORM)))


@runs(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 9), st.integers(0, 99))
def test_three_averagings_are_one(b, t, c, seed):
    x = torch.randn(b, t, c, generator=torch.Generator().manual_seed(seed))
    expected = x.cumsum(dim=1) / torch.arange(1, t + 1)[:, None]
    for average in (average_by_loop, average_by_matrix, average_by_softmax):
        torch.testing.assert_close(average(x), expected, atol=1e-6, rtol=1e-6)


def test_averaging_has_the_published_weights():
    rows = average_by_softmax(torch.eye(3)[None])[0]
    torch.testing.assert_close(
        rows, torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.3333, 0.3333, 0.3333]]), atol=5e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["gpt2-init", "modern"])
def test_gpt2_s_first_weights_are_the_decoder_s(name):
    config = ModelConfig(vocab_size=200, block_size=64, n_embd=64, n_head=4, n_layer=8, **STEPS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain, decoder = plain_model(name, config), Decoder(config)
    drawn = to_decoder(plain, dict(plain.named_parameters()))
    for key, p in decoder.named_parameters():
        if p.ndim == 1:  # gains and biases are not random
            torch.testing.assert_close(drawn[key], p)
        else:  # 10 % is more than four standard errors of the smallest of these matrices' spread
            assert drawn[key].std().item() == pytest.approx(p.std().item(), rel=0.1)
            assert abs(drawn[key].mean().item()) < 0.1 * p.std().item()


def test_gelu_and_rotation_keep_what_their_docstrings_say():
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"))
    query, key = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0)).unbind()
    turned = rotate(query.expand(1, 9, 8)) @ rotate(key.expand(1, 9, 8)).transpose(1, 2)
    for distance in range(-8, 9):
        diagonal = turned[0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dropout", "gelu", "rope", "modern"])
def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    config = ModelConfig(vocab_size=13, block_size=8, n_embd=16, n_head=4, n_layer=1, **STEPS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain, ids = plain_model(name, config), random_ids(2, 8, 13)
        assert not torch.equal(plain(ids), plain(ids))
        plain.eval()
        assert torch.equal(plain(ids), plain(ids))


@pytest.mark.parametrize("name", ["layernom", "unigram", "uniform"])
def test_an_unknown_step_is_an_error(name):
    with pytest.raises(ConfigError, match=name):
        plain_model(name, ModelConfig())
    with pytest.raises(ConfigError, match="did you mean layernorm"):
        plain_model("layernom", ModelConfig())


def test_the_code_that_is_shown_can_be_read_by_itself():
    for name, pieces in PLAIN.items():
        for piece in pieces:
            source = inspect.getsource(piece)
            assert 3 <= len(source.splitlines()) < 45, (name, piece)
            assert '"""' in source
