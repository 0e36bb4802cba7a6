"""The fast model against the lecture's plain model: the same weights give the same logits, loss and gradients."""

import pytest
import torch

from gptloom.config.model import ModelConfig
from gptloom.config.run import SampleConfig
from gptloom.generate.batch import DecodeBatch
from gptloom.model.loss import Objective
from gptloom.model.transformer import Decoder
from gptloom.reference.lecture import LayerNorm, PlainGPT
from model_helpers import random_ids
from reference_helpers import LECTURE, SHAPE, as_decoder, twins


@pytest.mark.parametrize("score_scale", ["head", "embedding"])
def test_logits_loss_and_every_gradient_agree(score_scale):
    plain, decoder = twins(score_scale=score_scale)
    ids, targets = random_ids(3, 12, 17), random_ids(3, 12, 17, seed=1)
    torch.testing.assert_close(decoder(ids), plain(ids), atol=1e-5, rtol=1e-5)
    nats, count = Objective(decoder)(ids, targets)
    loss = plain.loss(ids, targets)
    torch.testing.assert_close(nats / count, loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    (nats / count).backward()
    expected = as_decoder({name: p.grad for name, p in plain.named_parameters()}, 3, 4)
    assert expected.keys() == dict(decoder.named_parameters()).keys()
    for name, p in decoder.named_parameters():
        assert expected[name].abs().max() > 1e-4
        torch.testing.assert_close(
            p.grad, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_two_scales_are_two_models():
    ids = random_ids(1, 12, 17)
    head, embedding = (twins(score_scale=scale)[0](ids).detach() for scale in ("head", "embedding"))
    assert (head - embedding).abs().max() > 1e-2


def test_the_lecture_s_model_has_its_209729_parameters():
    shape = {"vocab_size": 65, "block_size": 32, "n_embd": 64, "n_head": 4, "n_layer": 4}
    assert sum(p.numel() for p in PlainGPT(**shape).parameters()) == 209_729
    assert Decoder(ModelConfig(**shape, **LECTURE)).parameter_count() == 209_729


def test_layer_norm_agrees_with_torch():
    ours, theirs = LayerNorm(6), torch.nn.LayerNorm(6)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        for mine, other in ((ours.gain, theirs.weight), (ours.bias, theirs.bias)):
            mine.copy_(torch.linspace(-2, 2, 6))
            other.copy_(mine)
    torch.testing.assert_close(ours(x), theirs(x))
    tiny = x * 1e-4  # where eps matters
    torch.testing.assert_close(ours(tiny), theirs(tiny))


def test_plain_dropout_is_off_in_evaluation_and_on_in_training():
    plain = PlainGPT(**SHAPE, dropout=0.5)
    ids = random_ids(2, 12, 17)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(plain(ids), plain(ids))
        plain.eval()
        assert torch.equal(plain(ids), plain(ids))


def test_both_write_the_same_text_where_the_draw_leaves_no_choice():
    """With logits a million times larger, sampling takes the most likely token, as temperature 0 does."""
    plain, decoder = twins()
    prompt = random_ids(2, 3, 17)
    batch, texts = DecodeBatch(decoder), prompt.tolist()
    batch.extend(texts, SampleConfig(tokens=9, temperature=0.0))
    while tokens := batch.step():
        for row, token in tokens.items():
            texts[row].append(token.id)
    with torch.no_grad():
        plain.head.weight.mul_(1e6)
        plain.head.bias.mul_(1e6)
    with torch.random.fork_rng(devices=[]):
        assert plain.generate(prompt, 9).tolist() == texts


def test_plain_generation_draws_from_the_last_position():
    plain, _ = twins()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = plain.generate(torch.zeros(400, 1, dtype=torch.int64), 1)
        expected = plain(torch.zeros(1, 1, dtype=torch.int64))[0, 0].softmax(-1)
        shares = torch.bincount(ids[:, 1], minlength=17) / 400
        assert (shares - expected).abs().max() < 0.1


def test_plain_generation_crops_its_context_to_the_last_block():
    plain, _ = twins()
    with torch.no_grad():
        plain.head.weight.mul_(1e6)
    ids = random_ids(9, 15, 17)
    with torch.random.fork_rng(devices=[]):
        expected = plain(ids[:, -12:])[:, -1].argmax(-1).tolist()
        assert expected != plain(ids[:, :12])[:, -1].argmax(-1).tolist()
        assert plain.generate(ids, 1)[:, -1].tolist() == expected
        assert plain.generate(ids, 20).shape == (9, 35)
