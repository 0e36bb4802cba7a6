"""Words, pages and pictures: everything that is drawn says what it shows."""

import math
import re

import numpy as np

from gptloom.cli import terminal as colours
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
from plot_helpers import is_png, texts


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
