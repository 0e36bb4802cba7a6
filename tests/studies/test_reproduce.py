"""`gptloom reproduce`: exact published numbers, random draws against plain loops, and verdicts that can fail."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_helpers import store_of
from gptloom.cli.ladder import reproduce_and_print
from gptloom.config.run import DataConfig
from gptloom.data.sources import fetch
from gptloom.data.tokens import cache_folder
from gptloom.errors import ConfigError, InputError, MachineError
from gptloom.model.transformer import Decoder
from gptloom.reference.lecture import PlainGPT
from gptloom.studies import reproduce
from gptloom.studies.reproduce import facts as unit_facts
from gptloom.studies.reproduce import lecture_run as lecture_draws
from gptloom.studies.reproduce.lecture_run import (
    LectureRun,
    LectureSampler,
    draw_heads,
    draw_lecture_weights,
    expected_seconds,
)
from gptloom.studies.reproduce.published import (
    PublishedRun,
    Tolerance,
    lecture_config,
    published,
    published_runs,
    tolerances,
)
from reference_helpers import as_decoder

CPU = torch.device("cpu")
USERS_COPY = (
    Path(platformdirs.user_cache_dir("gptloom", appauthor=False)) / "datasets" / "shakespeare.txt"
)  # before the tests set their own cache


@pytest.fixture(scope="module")
def text(_no_cache_of_the_users) -> unit_facts.Text:
    """Tiny Shakespeare from the user's cache or the network; skip the test if neither has it."""
    cache = cache_folder(DataConfig())
    if USERS_COPY.is_file():
        (cache / "datasets").mkdir(parents=True, exist_ok=True)
        shutil.copy(USERS_COPY, cache / "datasets" / "shakespeare.txt")
    try:
        fetch("shakespeare", cache)
    except MachineError as error:
        pytest.skip(error.line())
    return reproduce._open_text()


@pytest.fixture
def small(text, monkeypatch) -> PublishedRun:
    """A run of two layers with two heads each, registered under a new name without published numbers."""
    sizes = {"vocab_size": 65, "block_size": 12, "n_embd": 16, "n_head": 2, "n_layer": 2}
    config = lecture_config(sizes, {"batch_size": 5, "learning_rate": 0.01, "steps": 5}, seed=11)
    run = PublishedRun("small", config, lecture_weights=True, eval_interval=2, eval_iters=7, table=[], source="here")
    register(monkeypatch, run)
    return run


def register(monkeypatch, run: PublishedRun) -> None:
    runs = published_runs() | {run.name: run}
    monkeypatch.setattr(reproduce, "published_runs", lambda: runs)


# --- an independent reference: the lecture's draws in plain loops ---------------------------------


def plain_state(vocab: int, context: int, width: int, heads: int, layers: int) -> dict[str, torch.Tensor]:
    """PlainGPT's state dict, drawn layer by layer in the documents' order."""
    state: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        state.update({f"{name}.{kind}": tensor for kind, tensor in module.state_dict().items()})

    keep("token_table", nn.Embedding(vocab, width))
    keep("position_table", nn.Embedding(context, width))
    for n in range(layers):
        for h in range(heads):
            for kind in ("key", "query", "value"):
                keep(f"blocks.{n}.attention.heads.{h}.{kind}", nn.Linear(width, width // heads, bias=False))
        keep(f"blocks.{n}.attention.projection", nn.Linear(width, width))
        keep(f"blocks.{n}.feed_forward.up", nn.Linear(width, 4 * width))
        keep(f"blocks.{n}.feed_forward.down", nn.Linear(4 * width, width))
    keep("head", nn.Linear(width, vocab))
    return state


def plain_batch(ids: torch.Tensor, context: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(ids) - context, (rows,))
    return torch.stack([ids[i : i + context] for i in starts]), torch.stack(
        [ids[i + 1 : i + context + 1] for i in starts]
    )


def plain_history(parts, seed: int, steps: int, every: int, iters: int) -> list[list[float]]:
    """[step, train loss, validation loss] of the run in `small`, one batch at a time."""
    model = PlainGPT(65, 12, 16, 2, 2, scale=16**-0.5)
    torch.manual_seed(seed)  # again, for building the model has also drawn numbers
    model.load_state_dict(plain_state(65, 12, 16, 2, 2), strict=False)
    splits = [torch.tensor(part.ids.astype("int64")) for part in (parts.train, parts.val)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    history = []
    for step in range(steps):
        if step % every == 0 or step == steps - 1:
            with torch.no_grad():
                history.append(
                    [
                        step,
                        *(
                            sum(float(model.loss(*plain_batch(ids, 12, 5))) for _ in range(iters)) / iters
                            for ids in splits
                        ),
                    ]
                )
        loss = model.loss(*plain_batch(splits[0], 12, 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return history


def test_a_run_is_the_plain_loop_draw_for_draw(text, small):
    (found,) = reproduce.reproduce(["small"])
    expected = plain_history(text.parts, seed=11, steps=5, every=2, iters=7)
    assert [row[0] for row in found.rows] == [0, 2, 4] == [row[0] for row in expected]
    for row, other in zip(found.rows, expected, strict=True):
        assert row[1] is row[2] is None
        assert row[3:] == pytest.approx(other[1:], abs=2e-6)
    assert (found.agrees, found.tolerance, found.tolerances) == (None, None, [])


def test_weights_are_drawn_in_the_order_of_the_protocol_and_land_in_the_fused_matrix(small):
    model = Decoder(small.config.model)
    torch.manual_seed(5)
    draw_lecture_weights(model)
    after = torch.rand(3)
    torch.manual_seed(5)
    plain = PlainGPT(65, 12, 16, 2, 2, scale=16**-0.5)
    torch.manual_seed(5)
    plain.load_state_dict(plain_state(65, 12, 16, 2, 2), strict=False)
    assert torch.equal(after, torch.rand(3)), "not one draw more or fewer"
    expected = as_decoder(dict(plain.state_dict()), 2, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.randint(65, (3, 12))
    torch.testing.assert_close(model(ids), plain(ids), atol=1e-5, rtol=1e-5)


def test_heads_that_the_lecture_does_not_have_are_refused():
    for fields in ({"n_kv_head": 1}, {"bias": "all"}):
        model = Decoder(lecture_config({"n_layer": 1, "n_embd": 16} | fields, {}).model)
        with pytest.raises(ValueError, match="no biases"):
            draw_heads(model.blocks[0].mixer)


def test_an_evaluation_draws_all_of_train_before_all_of_val():
    store = store_of(1_000)
    parts = reproduce.split(store, DataConfig(val_fraction=0.4))
    sampler = LectureSampler(parts, 10, 3)
    torch.manual_seed(2)
    drawn = sampler.evaluation(4, rows=5)
    after = sampler.draw("train")
    torch.manual_seed(2)
    for part, (low, high) in (("train", (0, 600)), ("val", (600, 1_000))):
        expected = [torch.randint(high - low - 10, (3,)) + low for _ in range(4)]
        batches = list(drawn[part])
        assert [len(batch.inputs) for batch in batches] == [5, 5, 2]
        assert torch.equal(torch.cat([batch.inputs for batch in batches])[:, 0], torch.cat(expected))
        assert all(torch.equal(batch.targets, batch.inputs + 1) for batch in batches)
    assert torch.equal(after.inputs[:, 0], torch.randint(590, (3,)))


def test_the_loss_of_an_evaluation_is_the_mean_over_its_batches(text, small):
    run = LectureRun(small, text.parts, CPU)
    torch.manual_seed(3)
    measured = run.evaluate()
    torch.manual_seed(3)
    for part, loss in zip(("train", "val"), measured, strict=True):
        batches = [run.sampler.draw(part) for _ in range(7)]
        losses = [
            F.cross_entropy(run.model(inputs).flatten(0, 1), targets.flatten()).item() for inputs, targets in batches
        ]
        assert loss == pytest.approx(sum(losses) / 7, abs=1e-6)


# --- the published numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in unit_facts.FACTS if name != "bigram-trained"])
def test_a_fact_is_met_to_the_printed_digit(text, name):
    lines: list[str] = []
    (found,) = reproduce.reproduce([name], say=lines.append)
    assert found.agrees is True and found.tolerance <= 5e-5
    assert lines[0].startswith(f"{name}: agrees")


def test_some_of_the_facts_in_so_many_words(text):
    facts = {
        one.name: one.measured
        for one in reproduce.reproduce(["bigram-untrained", "variance", "attention-rows", "corpus"])
    }
    assert facts["bigram-untrained"]["loss"] == pytest.approx(4.8786, abs=5e-5)
    assert [round(value, 4) for value in facts["variance"].values()] == [1.0449, 1.07, 1.0918]
    assert [round(value, 4) for value in facts["attention-rows"][1]] == [0.1574, 0.8426, 0, 0, 0, 0, 0, 0]
    assert facts["corpus"]["vocabulary"] == 65


def test_the_single_head_s_first_rows_are_met(text):
    (found,) = reproduce.reproduce(["single-head"], steps=300)
    assert found.agrees is True and found.tolerance == 0.0002
    assert [row[:3] for row in found.rows] == [(0, 4.2, 4.2047), (300, 2.9418, 2.9574)]
    assert all(abs(row[1] - row[3]) < 2.5e-4 and abs(row[2] - row[4]) < 2.5e-4 for row in found.rows)


def test_the_gpt_s_first_row_is_met(text):
    (found,) = reproduce.reproduce(["gpt-0.21M"], steps=99)
    ((step, train, val, own_train, own_val),) = found.rows
    assert found.agrees is True and (step, train, val) == (0, 4.4116, 4.4022)
    assert abs(train - own_train) < 2.5e-4 and abs(val - own_val) < 2.5e-4


def test_every_run_has_the_size_that_was_published():
    for entry in published()["runs"]:
        run = published_runs()[entry["name"]]
        with torch.device("meta"):
            count = Decoder(run.config.model).parameter_count()
        assert count == entry.get("params", count)
        assert (run.config.train.decay == "all") == run.lecture_weights
        assert (run.config.model.score_scale == "embedding") == run.lecture_weights
        assert bool(run.table) == (run.name in tolerances())
    mingpt = published_runs()["mingpt"].config
    assert (mingpt.seed, mingpt.train.weight_decay, mingpt.train.beta2, mingpt.train.grad_clip) == (
        3407,
        0.1,
        0.95,
        1.0,
    )
    assert (mingpt.model.dropout, mingpt.model.head_bias, mingpt.model.mlp, mingpt.model.init) == (
        0.1,
        False,
        "gelu-tanh",
        "gpt2",
    )


def test_the_issue_s_tolerances_are_kept():
    assert [tolerances()["single-head"].at(step) for step in (0, 900, 1200, 4800)] == [0.0002, 0.0002, 0.02, 0.02]
    assert [tolerances()["gpt-0.21M"].at(step) for step in (0, 100, 300, 4999)] == [0.0002, 0.002, 0.002, 0.02]
    assert all(one.why and one.bands[0][0] == 0 for one in tolerances().values())


# --- the mark can say no --------------------------------------------------------------------------


def test_another_order_of_draws_differs(text, monkeypatch):
    def queries_first(attention):
        for part in range(3):
            attention.qkv.weight.detach().view(3, -1, 32)[part] = nn.Linear(32, 32, bias=False).weight.detach()

    monkeypatch.setattr(lecture_draws, "draw_heads", queries_first)
    lines: list[str] = []
    (found,) = reproduce.reproduce(["single-head"], steps=0, say=lines.append)
    assert found.agrees is False and "DIFFERS" in "\n".join(lines)


@pytest.mark.parametrize(("scale", "agrees"), [("embedding", True), ("head", False)])
def test_another_scale_differs(text, small, monkeypatch, scale, agrees):
    table = [
        (step, round(train, 4), round(val, 4))
        for step, train, val in plain_history(text.parts, seed=11, steps=5, every=2, iters=7)
    ]
    config = small.config.model_copy(update={"model": small.config.model.model_copy(update={"score_scale": scale})})
    register(monkeypatch, replace(small, config=config, table=table))
    monkeypatch.setattr(reproduce, "tolerances", lambda: {"small": Tolerance([(0, 0.0001)], "rounding")})
    (found,) = reproduce.reproduce(["small"])
    assert found.agrees is agrees


def test_a_bigram_that_has_hardly_been_trained_differs(text, monkeypatch):
    known = published() | {
        "bigram_trained": published()["bigram_trained"]
        | {"config": published()["bigram_trained"]["config"] | {"steps": 200}}
    }
    monkeypatch.setattr(unit_facts, "published", lambda: known)
    (found,) = reproduce.reproduce(["bigram-trained"])
    assert found.agrees is False and 3.0 < found.measured[0] < 5.0


@pytest.mark.parametrize(
    ("own", "agrees"),
    [(2.0019, True), (1.9981, True), (2.0022, False), (1.9978, False), (math.nan, False), (math.inf, False)],
)
def test_a_row_agrees_within_the_tolerance_of_its_step(own, agrees):
    tolerance = Tolerance([(0, 0.0002), (10, 0.002)], "")
    assert reproduce.row_agrees((10, 2.0, 3.0, own, 3.0), tolerance) is agrees
    assert reproduce.row_agrees((10, 3.0, 2.0, 3.0, own), tolerance) is agrees
    assert reproduce.row_agrees((9, 2.0, 3.0, own, 3.0), tolerance) is False


@pytest.mark.parametrize(
    ("known", "own", "expected"),
    [
        ([1.0, [2.0]], [1.5, [2.25]], 0.5),
        ({"a": 1}, {"a": 1}, 0.0),
        ({"a": 1}, {"b": 1}, math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ("a", "b", math.inf),
        (1.0, math.nan, math.inf),
        ([], [], 0.0),
    ],
)
def test_deviation(known, own, expected):
    assert unit_facts.deviation(known, own) == expected


# --- the surface ----------------------------------------------------------------------------------


def test_names():
    wanted = {
        "single-head",
        "gpt-0.21M",
        "bigram-untrained",
        "attention-rows",
        "averaging-weights",
        "first-batch",
        "encode",
        "corpus",
        "softmax",
    }
    wanted |= {
        "variance",
        "bigram-trained",
        "assignment-2-longer",
        "assignment-3-wider-context",
        "assignment-4-deeper",
        "mingpt",
        "scaled-up",
    }
    assert set(reproduce.reproduction_names()) == wanted


def test_words_that_cannot_be_used():
    with pytest.raises(ConfigError, match=r"'single-hed'; did you mean single-head"):
        reproduce.reproduce(["single-hed"])
    with pytest.raises(ConfigError, match="steps: -1"):
        reproduce.reproduce(["single-head"], steps=-1)


def test_another_text_of_that_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "shakespeare").write_text("To be or not to be, that is the question.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not the text of the published runs"):
        reproduce.reproduce(["encode"])


def test_without_names_the_quick_ones_run_and_the_others_are_named_with_their_time(text, small, monkeypatch):
    monkeypatch.setattr(reproduce, "_default_names", lambda: ["encode", "small"])
    runs = {
        name: run
        for name, run in reproduce.published_runs().items()
        if name in ("small", "single-head", "assignment-2-longer")
    }
    monkeypatch.setattr(reproduce, "published_runs", lambda: runs)
    lines: list[str] = []
    found = reproduce.reproduce([], say=lines.append)
    assert [one.name for one in found] == ["encode", "small"]
    left = [line.split()[0] for line in lines[[line.startswith("not run") for line in lines].index(True) + 1 :]]
    assert left == ["single-head", "assignment-2-longer"]
    assert 0 < expected_seconds(small, text.parts, CPU) < 3600


def test_a_reproduction_leaves_the_generator_and_the_settings_alone(text, small):
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    reproduce.reproduce(["small", "variance"])
    assert torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == threads


def test_the_command_prints_one_json_object_or_tables(text, capsys):
    assert reproduce_and_print(["encode", "single-head"], 0, as_json=True) == 0
    printed = capsys.readouterr()
    encode, head = json.loads(printed.out)["runs"]
    assert encode["agrees"] is True and encode["published"] == encode["measured"] == {
        "hi there!": [46, 47, 1, 58, 46, 43, 56, 43, 2]
    }
    assert (head["name"], head["agrees"], head["tolerance"], head["rows"][0][:3]) == (
        "single-head",
        True,
        0.0002,
        [0, 4.2, 4.2047],
    )
    assert "4.2047" in printed.err
    assert reproduce_and_print(["encode"], None, as_json=False) == 0
    printed = capsys.readouterr()
    assert "agrees" in printed.out and printed.err == ""
