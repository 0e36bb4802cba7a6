"""Looking inside: every number against another way to get it, and every picture and page for what it says."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gptloom
from conftest import CONFIGS, build, random_ids
from gptloom.bundle import Bundle
from gptloom.cli import terminal as colours
from gptloom.cli.main import main
from gptloom.data.batches import evaluation_windows
from gptloom.data.tokenizers.char import CharTokenizer
from gptloom.data.tokens import Tokens
from gptloom.interpret import statistics
from gptloom.interpret import trace as probe
from gptloom.plots import core as pages
from gptloom.plots import inspect as maps
from gptloom.plots.canvas import drawable
from gptloom.plots.core import STEP_NAMES, STEPS, TokenView, kind, visible
from gptloom.plots.inspect import (
    draw_alignment,
    draw_attention,
    draw_embedding,
    draw_gradient_by_distance,
    draw_head,
    draw_lens,
)
from gptloom.plots.statistics import draw_statistics
from gptloom.reference.lecture import Head
from test_plain import twins
from training_helpers import small_run, write_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    small_run(write_text(folder), folder / "run", train={"steps": 20, "learning_rate": 1e-2, "sample_tokens": 0})
    return folder / "run"


def texts(figure):
    """Everything that is written in a picture that is not empty."""
    return {
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    } - {""}


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000


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


@pytest.mark.parametrize("name", CONFIGS)
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


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_can_be_looked_into(name):
    model = build(CONFIGS[name])
    found = statistics.vitals(model, random_ids(1, 8))
    assert len(found.stream) == model.config.n_layer + 1 and len(found.parameters) == len(list(model.parameters()))
    has_attention = model.config.mixer != "none" and model.config.n_layer > 0
    assert bool(found.attention_entropy) == has_attention
    assert bool(found.hidden) == (model.config.mlp != "none" and model.config.n_layer > 0)
    assert json.dumps(statistics.gradient_by_distance(model, random_ids(1, 4)))


# Words


def test_spaces_line_ends_and_what_controls_can_be_seen():
    assert visible(" a\n\tb ") == "␣a⏎⇥b␣"
    assert visible("\x1b[31m\r\u200b\u202e") == r"\x1b[31m\r\u200b\u202e"
    assert drawable("$x") == r"\$x" and drawable("a" * 40).endswith("…") and drawable("\U00013000") == "U+13000"
    assert [kind(text) for text in (" ", "3", "?", "a", "b", "B", " the", "ing", "é")] == [
        "space, line end",
        "digit",
        "sign",
        "vowel",
        "small letter",
        "capital",
        "start of a word",
        "part of a word",
        "vowel",
    ]


def test_steps_of_surprise_meet_their_names():
    for step, chance in enumerate(STEPS):
        assert TokenView("a", -math.log(chance)).step == step  # the bound itself belongs to the step that it names
        assert TokenView("a", -math.log(chance * 0.99)).step == step + 1
    assert TokenView("a").step is None and len(STEP_NAMES) == len(STEPS) + 1 == len(pages.LIGHT) == len(
        pages.DARK
    ) == len(colours.RAMP)


def test_every_step_can_be_read_and_the_steps_run_in_lightness():
    """Contrast of at least 4.5, as WCAG 2.1 asks of text."""
    cube = [0, 95, 135, 175, 215, 255]

    def terminal(code):
        return [cube[(code - 16) // 36], cube[(code - 16) // 6 % 6], cube[(code - 16) % 6]]

    def lightness(rgb):
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    html = [
        [[list(bytes.fromhex(color[1:])) for color in pair] for pair in scale] for scale in (pages.LIGHT, pages.DARK)
    ]
    for scale, direction in ((html[0], -1), (html[1], 1), ([list(map(terminal, pair)) for pair in colours.RAMP], -1)):
        grounds = [lightness(ground) for ground, _ in scale]
        assert grounds == sorted(grounds, reverse=direction < 0) and len(set(grounds)) == len(grounds)
        for ground, letters in scale:
            dark, light = sorted((lightness(ground), lightness(letters)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, letters)


VIEWS = [
    TokenView("<script>alert(1)</script>"),
    TokenView("\n", 0.2, 0, (("\n", 0.8), ('"&', 0.1))),
    TokenView(" the", 8.0, 41, (("<b>", 0.9),)),
]


def test_the_page_escapes_text_and_fetches_nothing():
    page = pages.tokens_page(VIEWS, title="a < b & <i>c</i>", summary="loss <1>", notes=["<u>"])
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for raw in ("<i>c</i>", "<u>", "<b>", '"&"'):
        assert raw not in page.replace('<i class="blank">', "")
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<img|src=", page)
    assert "prefers-color-scheme: dark" in page and page.startswith("<!doctype html>")
    assert re.search(r'class="given" title="[^"]*given', page) and re.search(
        r'class="s0" title="⏎  p 81.87%, 0.200 nats, rank 0', page
    )
    assert 'class="s6"' in page and "rank 41" in page and "&quot;&amp;" in page
    assert all(name.replace("≥", "≥") in page for name in STEP_NAMES)


def test_the_table_and_the_colours():
    lines = list(colours.table(VIEWS))
    assert lines[1].endswith("given") and lines[1].startswith("<script>alert…")
    assert lines[2].split() == ["⏎", "0.200", "0.8187", "0", "⏎", "0.800", '"&', "0.100"]
    assert "\x1b" not in "\n".join(lines)
    painted = colours.colored(VIEWS)
    assert "\x1b[48;5;230;38;5;16m⏎\x1b[0m\n" in painted and "\x1b[48;5;52;38;5;231m␣the\x1b[0m" in painted
    plain = re.sub(r"\x1b\[[\d;]*m", "", painted)
    assert plain.startswith("<script>alert(1)</script>⏎\n␣the\n") and all(name in plain for name in STEP_NAMES)
    assert len(list(colours.table([TokenView("a", 1.0, 1)] * 1000))) == colours.MOST_ROWS + 2


# Pictures


def causal(heads, tokens):
    weights = np.tril(np.random.default_rng(0).random((heads, tokens, tokens)) + 0.01)
    return weights / weights.sum(-1, keepdims=True)


def test_one_head_large_names_both_axes_and_writes_its_numbers(tmp_path):
    words = ["To", " be", ",", "\n"]
    weights = np.array([[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0.001, 0.009, 0.99, 0], [0.1, 0.2, 0.3, 0.4]])
    figure = draw_head(tmp_path / "head.png", weights, words, title="layer 1, head 2")
    assert is_png(tmp_path / "head.png")
    assert {"To", "␣be", ",", "⏎", "layer 1, head 2", ".25", ".75", ".01", ".99", ".40", "1"} <= texts(
        figure
    ) and ".00" not in texts(figure)
    axes = figure.axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["To", "␣be", ",", "⏎"]
    image = axes.images[0].get_array()
    assert image.mask.tolist() == np.triu(np.ones((4, 4), bool), 1).tolist() and image[1, 0] == 0.25
    assert {(text.get_position(), text.get_text()) for text in axes.texts} >= {((0, 1), ".25"), ((3, 3), ".40")}


def test_a_long_text_s_large_map_shows_its_end_and_says_so(tmp_path):
    words = [f"w{n}" for n in range(50)]
    figure = draw_head(tmp_path / "head.png", causal(1, 50)[0], words, title="head")
    labels = [label.get_text() for label in figure.axes[0].yaxis.get_ticklabels()]
    assert labels == words[-maps.LARGE :] and any(
        f"the last {maps.LARGE} of 50 tokens" in text for text in texts(figure)
    )


def test_the_grid_has_a_map_a_head_and_thins_labels(tmp_path):
    words = [f"{n}" for n in range(70)]
    figure = draw_attention(tmp_path / "grid.png", [causal(2, 70), causal(1, 70)], words, title="all")
    assert is_png(tmp_path / "grid.png")
    titles = {f"layer {layer} · head {head}" for layer, heads in ((0, 2), (1, 1)) for head in range(heads)}
    assert titles == {text for text in texts(figure) if text.startswith("layer")}
    labels = [label.get_text() for label in figure.axes[0].yaxis.get_ticklabels()]
    assert labels == words[::2] or (labels == words[:: 70 // len(labels) + 1] and len(labels) <= 40)
    assert (
        len({image.norm.vmax for axes in figure.axes for image in axes.images if image.get_array().shape == (70, 70)})
        == 1
    )


def test_an_alignment_is_not_taken_for_causal(tmp_path):
    weights = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    figure = draw_alignment(tmp_path / "a.png", weights, ["ninety", "-", "seven"], ["quatre", "-vingt"], title="fr")
    axes = figure.axes[0]
    assert not np.ma.getmaskarray(axes.images[0].get_array()).any() and axes.images[0].get_array().shape == (2, 3)
    assert [label.get_text() for label in axes.xaxis.get_ticklabels()] == ["ninety", "-", "seven"]
    assert [label.get_text() for label in axes.yaxis.get_ticklabels()] == ["quatre", "-vingt"]
    square = np.array([[1.0, 0.0], [0.5, 0.5]])
    encoder = draw_head(tmp_path / "b.png", square[:, ::-1].copy(), ["a", "b"], title="looks ahead")
    assert not np.ma.getmaskarray(encoder.axes[0].images[0].get_array()).any()
    assert is_png(tmp_path / "a.png") and is_png(tmp_path / "b.png")


def test_the_lens_frames_right_guesses_and_writes_each(tmp_path):
    guesses = [[("a", 0.5), ("b", 0.25)], [("\n", 0.999), ("c", 0.07)]]
    figure = draw_lens(
        tmp_path / "lens.png", guesses, ["x", "y"], ["\n", None], ["embedding", "after layer 0"], title="lens"
    )
    axes = figure.axes[0]
    written = {(round(x), round(y), text.get_text()) for text in axes.texts for x, y in [text.get_position()]}
    assert {
        (0, 0, "a"),
        (0, 0, ".50"),
        (1, 0, "b"),
        (1, 0, ".25"),
        (0, 1, "⏎"),
        (0, 1, "1"),
        (1, 1, "c"),
        (1, 1, ".07"),
    } == written
    frames = [(round(patch.get_x() + 0.46), round(patch.get_y() + 0.46)) for patch in axes.patches]
    assert (
        frames == [(0, 1)]
        and {"x", "y", "?", "embedding", "after layer 0"} <= texts(figure)
        and is_png(tmp_path / "lens.png")
    )
    long = draw_lens(
        tmp_path / "lens.png", [[("word", 0.5)] * 60] * 2, ["w"] * 60, ["w"] * 60, ["0", "1"], title="long"
    )
    assert any(re.search(r"the last \d+ of 60 tokens", text) for text in texts(long)) and long.get_figwidth() < 20


def test_the_map_of_tokens_names_all_or_those_of_the_text(tmp_path):
    points = np.random.default_rng(0).normal(size=(65, 2))
    tokens = [chr(n) for n in range(32, 97)]
    figure = draw_embedding(tmp_path / "map.png", points, tokens, (0.4, 0.1), marked=[1], title="map")
    assert (
        {drawable(token) for token in tokens} <= texts(figure)
        and any("40%" in text for text in texts(figure))
        and is_png(tmp_path / "map.png")
    )
    assert figure.axes[0].collections and figure.axes[0].get_aspect() == 1
    many = draw_embedding(
        tmp_path / "map.png",
        np.tile(points, (4, 1)),
        [f" w{n}" for n in range(260)],
        (0.4, 0.1),
        marked=[7, 9],
        title="map",
    )
    assert {text for text in texts(many) if text.startswith("␣")} == {"␣w7", "␣w9"}


def test_curves_of_several_models_start_at_1_and_differ_in_more_than_colour(tmp_path):
    curves = {"rnn": ([0, 1, 2], [4.0, 0.4, 0.0]), "gpt": ([0, 1, 2], [0.5, 0.25, 0.1])}
    figure = draw_gradient_by_distance(tmp_path / "d.png", curves, title="how far")
    axes = figure.axes[0]
    assert {"rnn", "gpt"} <= texts(figure) and axes.get_yscale() == "log" and is_png(tmp_path / "d.png")
    assert [line.get_ydata()[0] for line in axes.lines] == [1.0, 1.0] and axes.lines[1].get_ydata()[1] == 0.5
    assert np.isnan(axes.lines[0].get_ydata()[2])
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 2


def test_the_statistics_have_a_panel_for_what_there_is(tmp_path):
    everything = {
        "stream": [1.0, 2.0],
        "branches": {"blocks.0.mixer": 0.5, "blocks.0.mlp": 0.7},
        "hidden": [("blocks.0.mlp", 0.5, 0.25)],
        "entropy": [[0.5, 1.25]],
        "uniform": 2.0,
        "parameters": [("blocks.0.mlp.up.weight", 0.1, 0.002), ("idle.weight", 0.0, 0.0)],
    }
    figure = draw_statistics(tmp_path / "s.png", **everything, title="vitals")
    assert {"1.25", "50%", "25%", "blocks.0.mlp.up.weight", "0.02", "layer 0", "head 1"} <= texts(figure) and len(
        figure.axes
    ) == 4
    bare = draw_statistics(
        tmp_path / "s.png", **(everything | {"stream": [], "branches": {}, "hidden": [], "entropy": []}), title="table"
    )
    assert len(bare.axes) == 1 and is_png(tmp_path / "s.png")


# The command


def inspect(capsys, *words):
    code = main(["inspect", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_inspect_writes_every_view_and_one_json_object(run, capsys, tmp_path):
    prompt = "the lazy\ndog"
    code, out, err = inspect(capsys, run, "--prompt", prompt, "--layer", 1, "--head", 0, "--json", "--device", "cpu")
    assert code == 0 and err == ""
    found = json.loads(out)
    folder = run / "inspect"
    names = {
        "attention.png",
        "head-1-0.png",
        "lens.png",
        "tokens.html",
        "embedding.png",
        "statistics.png",
        "distance.png",
        "inspect.json",
    }
    assert {path.name for path in folder.iterdir()} == names and set(found["files"].values()) == {
        str(folder / name) for name in names
    }
    assert all(is_png(path) for path in folder.glob("*.png"))
    assert json.loads((folder / "inspect.json").read_text(encoding="utf-8")) == found
    bundle = gptloom.load(run, device="cpu")
    ids = torch.tensor([bundle.prompt_ids(prompt)])
    torch.testing.assert_close(
        torch.tensor(found["attention"]), torch.cat(probe.look(bundle.model, ids).attention), atol=6e-5, rtol=0
    )
    assert "".join(token["text"] for token in found["tokens"]) == prompt and found["tokens"][0]["loss"] is None
    assert found["tokens"][3].keys() == {"id", "text", "loss", "logprob", "rank", "alternatives"}
    assert [layer["after"] for layer in found["lens"]] == ["embedding", "after layer 0", "after layer 1"]
    likeliest = found["lens"][-1]["positions"][3]["alternatives"]
    assert [one["id"] for one in likeliest] == [one["id"] for one in found["tokens"][4]["alternatives"]]
    assert {"stream", "branches", "hidden", "attention_entropy", "parameters"} <= found["statistics"].keys() and found[
        "missing"
    ] == {}


def test_the_mean_loss_of_a_long_text_is_that_of_eval(run, capsys, tmp_path):
    text = write_text(tmp_path, repeats=3)
    code, out, err = inspect(capsys, run, "--text", text, "--show", "tokens", "--out", tmp_path / "out", "--json")
    assert code == 0 and "windows" in err
    found = json.loads(out)
    assert main(["eval", str(run), "--text", str(text), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    losses = [token["loss"] for token in found["tokens"][1:]]
    assert len(losses) == score["tokens"] > 100 and None not in losses
    assert found["loss"] == pytest.approx(score["loss"], abs=1e-6) and found["bpb"] == pytest.approx(
        score["bpb"], abs=1e-6
    )
    assert sum(losses) / len(losses) == pytest.approx(
        gptloom.load(run).score(text.read_text(encoding="utf-8")).loss, abs=1e-5
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tokens.html", "inspect.json"}


def test_maps_of_a_long_prompt_show_its_last_window(run, capsys, tmp_path):
    code, out, err = inspect(
        capsys, run, "--prompt", "the quick brown fox jumps", "--show", "lens", "--out", tmp_path, "--json"
    )
    assert code == 0 and "the last 16 tokens" in err
    bundle = gptloom.load(run)
    best = bundle.model(torch.tensor([bundle.prompt_ids("the quick brown fox jumps")[-16:]]))[0].argmax(-1).tolist()
    assert [guess["alternatives"][0]["id"] for guess in json.loads(out)["lens"][-1]["positions"]] == best


def test_piped_output_is_plain_and_a_terminal_s_is_coloured_unless_no_color(run, capsys, tmp_path, monkeypatch):
    words = (run, "--prompt", "the dog", "--show", "tokens", "--out", tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    code, out, _ = inspect(capsys, *words)
    assert (
        code == 0
        and "\x1b" not in out
        and "most likely" in out
        and str(tmp_path / "tokens.html") in out
        and "nats per token" in out
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[48;5;" in inspect(capsys, *words)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert inspect(capsys, *words)[1] == out


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        ({"n_layer": 0, "positions": "none", "head": "none"}, {"attention", "lens", "distance"}),
        ({"mixer": "none", "n_layer": 1}, {"attention", "distance"}),
        ({"mixer": "mean", "n_layer": 1}, set()),
    ],
    ids=["bigram", "no-exchange", "mean"],
)
def test_models_without_a_view_say_so_and_draw_nothing_empty(model, missing, tmp_path, capsys, monkeypatch):
    config = CONFIGS["lecture"].model_copy(update={"vocab_size": 9, **model})
    (tmp_path / "bundle").mkdir()
    Bundle(build(config), CharTokenizer(" adeghot\n", ends=False)).save(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    code, out, err = inspect(capsys, "bundle", "--prompt", "the dog", "--json", "--show", "attention, lens, distance")
    assert code == 0
    found = json.loads(out)
    assert found["missing"].keys() == missing and all(f"no {view} view: " in err for view in missing)
    assert ("averages" in err) == (model.get("mixer") == "mean")
    drawn = {path.name.split(".")[0].split("-")[0] for path in (tmp_path / "inspect").iterdir()}
    assert drawn == ({"attention", "lens", "distance"} - missing) | {"inspect"} | (
        {"head"} if "attention" not in missing else set()
    )
    if "attention" in missing:
        code, _, err = inspect(capsys, "bundle", "--prompt", "the dog", "--layer", 0)
        assert code == 2 and "this model has no attention" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "the", "--layer", "2"], "--layer: there is no layer 2; choose 0 to 1"),
        (["--prompt", "the", "--head", "-1"], "--head: there is no head -1; choose 0 to 1"),
        (["--prompt", "t"], "--prompt: has 1 token, and a loss needs 2"),
        (["--prompt", "the ~"], "is not among the"),
        (["--prompt", "the", "--show", "lense"], "there is no view 'lense'; did you mean lens"),
        (["--prompt", "the", "--show", ","], "names no view"),
        (["--prompt", "the", "--top", "0"], "--top"),
        ([], "one of the arguments --prompt --text is required"),
        (["--prompt", "a", "--text", "b"], "not allowed with"),
        (["--text", "no-such-file"], "no-such-file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_write_nothing(run, capsys, tmp_path, words, message):
    code, out, err = inspect(capsys, run, *words, "--out", tmp_path / "none")
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err and not (tmp_path / "none").exists()
