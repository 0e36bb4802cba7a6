"""Looking inside: every number against another way to get it."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from axes import every_config
from gptloom.data.batches import evaluation_windows
from gptloom.data.tokens import Tokens
from gptloom.interpret import statistics
from gptloom.interpret import trace as probe
from gptloom.reference.lecture import Head
from model_helpers import CONFIGS, build, random_ids
from reference_helpers import twins

CPU = torch.device("cpu")


# Numbers


def test_attention_is_that_of_the_plain_model_and_causal():
    plain, decoder = twins()
    ids, seen = random_ids(2, 12, 17), []

    def weights(head: Head, inputs, _output):
        """The textbook formula, one row after the other."""
        query, key = head.query(inputs[0]), head.key(inputs[0])
        table = torch.zeros(*inputs[0].shape[:2], inputs[0].shape[1])
        for t in range(inputs[0].shape[1]):
            exponentials = (key[:, : t + 1] @ query[:, t, :, None])[..., 0].mul(head.scale).exp()
            table[:, t, : t + 1] = exponentials / exponentials.sum(-1, keepdim=True)
        seen.append(table)

    for block in plain.blocks:
        for head in block.attention.heads:
            head.register_forward_hook(weights)
    with torch.no_grad():
        plain(ids)
    trace = probe.look(decoder, ids)
    found = torch.stack(trace.attention)
    assert found.shape == (3, 2, 4, 12, 12)
    torch.testing.assert_close(found, torch.stack(seen).view(3, 4, 2, 12, 12).transpose(1, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 2, 4, 12))
    assert not found.triu(1).any()


@every_config
def test_the_lens_ends_in_the_model_s_own_logits(name):
    model = build(CONFIGS[name])
    ids = random_ids(2, 9)
    trace = probe.look(model, ids)
    logits = model(ids).detach()
    assert len(trace.stream) == model.config.n_layer + 1
    torch.testing.assert_close(probe.lens_logits(model, trace.stream[-1]), logits, atol=1e-5, rtol=1e-5)
    lens = probe.logit_lens(model, trace, top=3)
    assert [len(row) for row in lens] == [9] * len(trace.stream)
    last = lens[-1][4]
    logprobs = logits[0, 4].log_softmax(-1)
    assert [one for one, _ in last.alternatives] == logprobs.argsort(descending=True)[:3].tolist()
    assert last.entropy == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=1e-4)
    if model.config.n_layer:
        assert (probe.lens_logits(model, trace.stream[0]) - logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ["bigram", "tiny", "mean-post"])
def test_losses_and_ranks_are_those_of_a_count_by_hand(name):
    model = build(CONFIGS[name])
    ids = random_ids(1, 34)[0]
    tokens = Tokens(ids.numpy().astype(np.uint8), np.zeros(1, np.int64))
    found = list(probe.token_losses(model, evaluation_windows(tokens, 10, 2), top=4, device=CPU))
    assert [token.id for token in found] == ids[1:].tolist()
    for place, token in enumerate(found):
        window = ids[place // 10 * 10 : place + 1]
        chances = model(window[None])[0, -1].detach().softmax(-1)
        assert token.logprob == pytest.approx(math.log(float(chances[token.id])), abs=1e-4)
        assert token.rank == sum(float(chance) > float(chances[token.id]) for chance in chances)
        assert len(token.alternatives) == 4
        assert token.alternatives[0][1] == pytest.approx(math.log(float(chances.max())), abs=1e-4)


def test_looking_leaves_the_model_as_it_was():
    model = build(CONFIGS["lecture-scale"]).train()
    ids = random_ids(1, 9)
    before = {name: p.clone() for name, p in model.named_parameters()}
    first, second = probe.look(model, ids), probe.look(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(first.stream, second.stream, strict=True))  # dropout is off
    statistics.vitals(model, ids)
    statistics.gradient_by_distance(model, ids)
    assert model.training and all(module.training for module in model.modules())
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_entropy_and_pointedness():
    alike = torch.ones(6, 6).tril() / torch.arange(1.0, 7.0)[:, None]
    previous = torch.cat([torch.eye(6)[:1], torch.eye(6)[:5]])  # the first token can only look at itself
    weights = torch.stack([alike, torch.eye(6), previous])[None]
    entropy = probe.attention_entropy(weights)
    assert entropy[0] == pytest.approx(probe.uniform_entropy(6)) == pytest.approx(sum(map(math.log, range(1, 7))) / 6)
    assert entropy[1:].tolist() == [0.0, 0.0]
    points = probe.pointedness(weights)
    assert points[1] == 0.0 and points[2] == pytest.approx(5 / 6) and 0 < points[0] < points[2]


def test_principal_axes_are_orthonormal_and_explain_the_variance():
    table = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 13.0) + 3
    plane = probe.principal_axes(table)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    values, vectors = np.linalg.eigh(np.cov(table.numpy().astype(np.float64).T))
    assert plane.shares.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(plane.shares, values[::-1] / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs((plane.axes.numpy() * vectors[:, :-3:-1].T).sum(1)), 1.0)
    np.testing.assert_allclose(plane.points.var(0, correction=1), values[:-3:-1])
    assert (plane.axes.gather(1, plane.axes.abs().argmax(1, keepdim=True)) > 0).all()  # the sign is settled
    assert probe.principal_axes(torch.ones(5, 1)).points.abs().max() == 0  # one dimension, and no variance at all


def test_the_gradient_of_a_model_without_exchange_stops_at_distance_0():
    for name in ("bigram", "position-wise", "no-blocks"):
        distance, size = statistics.gradient_by_distance(build(CONFIGS[name]), random_ids(2, 10))
        assert distance == list(range(9)) and size[0] > 0.01 and size[1:] == [0.0] * 8


def test_the_gradient_of_a_causal_mean_is_as_derived():
    """logits(t) = W mean(e(0) ... e(t)), so d loss(t) / d e(t - k) = W^T (p(t) - y(t)) / (t + 1), whatever k."""
    model = build(CONFIGS["bare-mean"].model_copy(update={"n_layer": 1}))
    ids = random_ids(3, 10)
    matrix = model.head.weight.detach()
    chances = model(ids[:, :-1]).softmax(-1).detach()
    slopes = (chances - F.one_hot(ids[:, 1:], 13)) @ matrix
    norms = (slopes.norm(dim=-1) / torch.arange(1, 10)).mean(0)
    expected = [float(norms[k:].mean()) for k in range(9)]
    assert statistics.gradient_by_distance(model, ids)[1] == pytest.approx(expected, rel=1e-4)


def test_the_gradient_by_distance_is_a_difference_quotient():
    model = build(CONFIGS["tiny"]).double()
    ids = random_ids(1, 5)
    captured = []
    model.token_table.register_forward_hook(lambda _m, _i, out: captured[0] if captured else None)
    base = F.embedding(ids[:, :-1], model.token_table.weight).detach()
    slopes = torch.zeros(4, 4, base.shape[-1], dtype=torch.float64)
    for place in range(4):
        for feature in range(base.shape[-1]):
            ends = []
            for step in (1e-6, -1e-6):
                captured[:] = [base.clone()]
                captured[0][0, place, feature] += step
                logits = model(ids[:, :-1]).detach()
                ends.append(F.cross_entropy(logits[0], ids[0, 1:], reduction="none"))
            slopes[:, place, feature] = (ends[0] - ends[1]) / 2e-6
    captured.clear()
    norms = slopes.norm(dim=-1)
    expected = [float(np.mean([norms[t, t - k] for t in range(k, 4)])) for k in range(4)]
    assert statistics.gradient_by_distance(model, ids)[1] == pytest.approx(expected, rel=1e-3)


def test_vitals_are_the_sizes_of_what_flows():
    model = build(CONFIGS["lecture"])
    ids = random_ids(1, 10)
    found = statistics.vitals(model, ids)
    loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    expected = {
        name: (float(p.detach().square().mean().sqrt()), float(p.grad.square().mean().sqrt()))
        for name, p in model.named_parameters()
    }
    assert {
        one.name: (pytest.approx(one.weight_rms), pytest.approx(one.gradient_rms, rel=1e-4)) for one in found.parameters
    } == expected
    assert all(one.ratio == pytest.approx(one.gradient_rms / one.weight_rms) for one in found.parameters)
    trace = probe.look(model, ids[:, :-1])
    assert found.stream == pytest.approx([float(stream.square().mean().sqrt()) for stream in trace.stream])
    block = model.blocks[0]
    with torch.no_grad():
        middle = trace.stream[1] - block.mlp(block.norm2(mid := _after_mixer(model, trace.stream[0])))
        off = block.mlp.up(block.norm2(mid)) <= 0
    torch.testing.assert_close(middle, mid, atol=1e-5, rtol=1e-5)
    assert found.branches.keys() == {f"blocks.{n}.{half}" for n in range(2) for half in ("mixer", "mlp")}
    assert found.branches["blocks.0.mixer"] == pytest.approx(
        float((mid - trace.stream[0]).square().mean().sqrt()), rel=1e-4
    )
    assert found.hidden[0].off == pytest.approx(
        float(off.float().mean()), abs=0.03
    )  # a hundredth of the size is off too
    assert found.hidden[0].dead <= found.hidden[0].off


def _after_mixer(model, stream):
    from gptloom.model.cache import Context

    context = Context()
    context.place(stream.shape[1], stream.device)
    block = model.blocks[0]
    return stream + block.mixer(block.norm1(stream), context, None)


def test_units_that_never_fire_are_dead():
    model = build(CONFIGS["lecture"])
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[:16] = 0.0
        model.blocks[1].mlp.up.bias[:16] = -1.0
    first, second = statistics.vitals(model, random_ids(4, 10)).hidden
    assert second.dead >= 0.25 and second.off >= 0.25 and second.dead > first.dead


@every_config
def test_every_model_can_be_looked_into(name):
    model = build(CONFIGS[name])
    found = statistics.vitals(model, random_ids(1, 8))
    assert len(found.stream) == model.config.n_layer + 1 and len(found.parameters) == len(list(model.parameters()))
    has_attention = model.config.mixer != "none" and model.config.n_layer > 0
    assert bool(found.attention_entropy) == has_attention
    assert bool(found.hidden) == (model.config.mlp != "none" and model.config.n_layer > 0)
    assert json.dumps(statistics.gradient_by_distance(model, random_ids(1, 4)))
