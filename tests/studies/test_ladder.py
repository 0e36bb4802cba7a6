"""`gptloom ladder`: the steps as data, and their training."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptloom.bundle import Bundle
from gptloom.cli.main import main
from gptloom.config.run import DataConfig
from gptloom.errors import ConfigError
from gptloom.model.build import build_model
from gptloom.reference.build import PLAIN
from gptloom.studies import ladder as ladder_module
from gptloom.studies.check.exercises import EXERCISES
from gptloom.studies.ladder.lessons import Rung, Watch, choose_lessons, configure_lesson, find_lesson, read_lessons
from gptloom.studies.ladder.report import (
    describe_changes,
    describe_verdict,
    monotone,
    one_line,
    stairs_of,
    summarise,
    table,
)
from gptloom.studies.ladder.show import product, shapes, show_lesson, sizes_of
from gptloom.studies.trial import Pace, affordable_tokens, open_material
from gptloom.training.callbacks import View
from training_helpers import write_text

COUNTED = ["uniform", "unigram", "bigram-counts", "trigram-counts", "4gram-counts", "5gram-counts"]
LECTURE = [
    "bigram",
    "embedding",
    "positions",
    "averaging",
    "one-head",
    "multi-head",
    "mlp",
    "residual",
    "layernorm",
    "post-norm",
    "dropout",
    "scale",
]
LATER = ["score-scale", "gpt2-init", "gelu", "rope", "rmsnorm", "qk-norm", "swiglu", "gqa", "modern"]
NEIGHBOURS = ["rnn", "lstm", "gru"]
TRAINED = LECTURE + LATER + NEIGHBOURS
BUDGET = 1_280_000


def settings(name):
    return configure_lesson(find_lesson(name), tokens=BUDGET)


# The steps as data


def test_the_steps_are_these_in_this_order():
    assert list(read_lessons()) == COUNTED + TRAINED
    for number, lesson in enumerate(read_lessons().values()):
        assert lesson.counts == (number if number < 6 else None)
        assert lesson.title and len(lesson.idea) > 60 and len(lesson.why) > 60
        assert ((lesson.exercise and lesson.exercise.classes) or ()) == tuple(
            one.name for one in EXERCISES.get(lesson.name, ())
        )


def test_every_step_starts_from_an_earlier_one_and_the_trained_ones_from_the_bigram():
    lessons, seen = read_lessons(), []
    for name, lesson in lessons.items():
        assert (lesson.base is None) == (name == "uniform") and lesson.base in [None, *seen]
        seen.append(name)
        chain = [name]
        while lessons[chain[-1]].base:
            chain.append(lessons[chain[-1]].base)
        assert not lesson.trains or chain[-2] == "bigram"
    followed = ["scale", "score-scale", *LATER[1:]]
    assert [(lessons[b].base, b) for _, b in pairwise(followed)] == list(pairwise(followed))


def untrue_changes(name):
    """What a step says that it changes, and does not."""
    lesson, config = find_lesson(name), settings(name)
    before = settings(lesson.base)
    for group, fields in lesson.changes.items():
        for field, value in fields.items():
            if not getattr(getattr(config, group), field) == value != getattr(getattr(before, group), field):
                yield f"{name}: {group}.{field} = {value}"


def test_every_step_builds_and_changes_what_it_says():
    configs = {name: settings(name) for name in TRAINED}
    tokens = {name: one.train.steps * one.train.batch_size * one.model.block_size for name, one in configs.items()}
    assert {name: count for name, count in tokens.items() if count != BUDGET} == {}
    assert [change for name in TRAINED if name != "bigram" for change in untrue_changes(name)] == []
    assert [name for name, one in configs.items() if build_model(one.model).parameter_count() == 0] == []


def expected_parameters(v=65, c=64, t=32, layers=4):
    """The 0.21M GPT, counted by hand: embeddings; two norms, attention and MLP per block; final norm and head."""
    block = 2 * 2 * c + 3 * c * c + (c * c + c) + (4 * c * c + 4 * c) + (4 * c * c + c)
    return v * c + t * c + layers * block + 2 * c + (c * v + v)


def test_parameter_counts_by_hand():
    counted = {name: build_model(settings(name).model).parameter_count() for name in TRAINED}
    head, tables = 32 * 65 + 65, 65 * 32 + 8 * 32
    assert counted["bigram"] == 65 * 65 and counted["embedding"] == 65 * 32 + head
    assert counted["positions"] == counted["averaging"] == tables + head
    assert counted["one-head"] == counted["multi-head"] == tables + head + 3 * 32 * 32
    assert counted["mlp"] == counted["multi-head"] + 8 * 32 * 32 + 5 * 32
    assert counted["layernorm"] == counted["dropout"] == expected_parameters(c=32, t=8, layers=3)
    assert counted["post-norm"] == counted["layernorm"] - 2 * 32
    assert counted["scale"] == counted["score-scale"] == counted["gelu"] == expected_parameters() == 209_729
    assert counted["rope"] == 209_729 - 32 * 64 and counted["rmsnorm"] == counted["rope"] - 9 * 64
    assert counted["qk-norm"] == counted["rmsnorm"] + 4 * 2 * 16
    assert (
        counted["rnn"] == 2 * 2 * 212 * 213 + 212 * 130 + 65 and counted["lstm"] == 2 * 8 * 110 * 111 + 110 * 130 + 65
    )
    assert counted["gru"] == 2 * 6 * 126 * 127 + 126 * 130 + 65
    assert all(abs(counted[name] - 209_729) < 1_500 for name in NEIGHBOURS)
    assert counted["gqa"] == counted["swiglu"] - 4 * 2 * 2 * 16 * 64


def test_the_lecture_has_its_own_sizes_and_the_published_gpt_its_settings():
    for name in LECTURE[:-1]:
        model, train = settings(name).model, settings(name).train
        assert (train.batch_size, model.block_size, model.n_embd, train.learning_rate, train.steps) == (
            32,
            8,
            32,
            1e-3,
            5000,
        )
        assert (train.schedule, train.warmup_steps, train.weight_decay, train.beta2, train.grad_clip) == (
            "constant",
            0,
            0.01,
            0.999,
            0.0,
        )
        assert model.score_scale == "embedding" and model.init == "pytorch"
    config = settings("scale")
    published = {"batch_size": 16, "learning_rate": 1e-3} | {
        "block_size": 32,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 4,
        "dropout": 0.0,
    }
    assert {
        key: getattr(config.train, key, None) or getattr(config.model, key, None) or 0.0 for key in published
    } == published
    assert {model.n_layer for model in (settings(name).model for name in ("residual", "layernorm", "post-norm"))} == {3}


def test_published_numbers_stand_beside_what_is_comparable():
    values = {(one.value, one.tokens) for one in find_lesson("scale").published}
    assert {(1.9439, BUDGET), (1.8221, 2 * BUDGET), (1.815, None)} <= values
    assert (2.4043, 4800 * 256) in {(one.value, one.tokens) for one in find_lesson("one-head").published}


@pytest.mark.parametrize(
    ("name", "tokens", "source_text", "published"),
    [
        ("scale", BUDGET, True, 1.9439),
        ("scale", BUDGET // 10, True, None),
        ("scale", BUDGET + 512, True, None),
        ("scale", BUDGET, False, None),
        ("uniform", 1_003_854, True, 4.1744),
        ("uniform", 1_003_854, False, None),
    ],
)
def test_a_published_number_needs_the_text_and_the_length_of_its_source(name, tokens, source_text, published):
    (row,) = summarise([find_lesson(name)], {name: [rung(name, 1.95, tokens=tokens)]}, source_text=source_text)
    assert (None if row.published is None else row.published.value) == published


def test_a_choice_of_steps_brings_what_they_are_compared_with():
    assert [lesson.name for lesson in choose_lessons(["one-head", "unigram"])] == [
        "uniform",
        "unigram",
        "averaging",
        "one-head",
    ]
    with pytest.raises(ConfigError, match="did you mean multi-head"):
        choose_lessons(["mutli-head"])


# Shapes and code


def wrong_shapes(name):
    """What a step shows that is not so."""
    config = settings(name)
    rows = shapes(build_model(config.model), config.train.batch_size)
    sizes = sizes_of(config.model, config.train.batch_size)
    for what, axes, shape in rows:
        if [sizes[axis] for axis in axes.split()] != list(shape) or product(axes, sizes) != torch.Size(shape).numel():
            yield f"{name}: {what}: {axes} is not {shape}"
    if (rows[0][1], rows[-1][1]) != ("B T", "B T V"):
        yield f"{name}: from {rows[0][1]} to {rows[-1][1]}"
    is_decoder = config.model.n_layer > 0 and not config.model.is_recurrent
    told = {what for what, _, _ in rows}
    wanted = {"attention weights": config.model.mixer == "attention", "activated": config.model.mlp != "none"}
    for what, there in wanted.items():
        if (what in told) != (is_decoder and there):
            yield f"{name}: {what} shown: {what in told}"


def test_every_shape_that_is_shown_is_the_product_of_its_letters():
    assert [wrong for name in TRAINED for wrong in wrong_shapes(name)] == []


def test_show_tells_idea_changes_parameters_shapes_and_code(capsys):
    assert main(["ladder", "show", "multi-head"]) == 0
    text = capsys.readouterr().out
    for word in (
        "from one-head",
        "model.n_head: 1 -> 4",
        "7,553",
        "(B, H, T, T)",
        "32 x 4 x 8 x 8",
        "class JoinedHeads",
        "exercise",
    ):
        assert word in text
    assert main(["ladder", "show", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["steps"]] == [
        *read_lessons(),
        "decoder",
        "encoder",
        "encoder-decoder",
    ]
    assert {*LECTURE, *LATER, "rnn", "lstm", "gru"} == PLAIN.keys()
    assert main(["ladder", "show", "encoder"]) == 0 and "the one line" in capsys.readouterr().out
    assert show_lesson(find_lesson("unigram"))["shapes"] == [] and describe_changes(find_lesson("rope")) == [
        "model.positions: learned -> rotary"
    ]
    assert main(["ladder", "show", "one-haed"]) == 2 and "did you mean one-head" in capsys.readouterr().err


# The story


def rung(name, loss, seed=1, tokens=1280):
    return Rung(name, seed, 10, 5, tokens, 0.5, 0.6, loss, None, "a\nb")


def rows_of(losses):
    """The rows of a ladder with these losses by step, one for each seed."""
    lessons = [find_lesson(name) for name in losses]
    rungs = {name: [rung(name, loss, seed) for seed, loss in enumerate(some)] for name, some in losses.items()}
    return summarise(lessons, rungs, source_text=False)


def test_a_step_is_better_or_worse_only_beyond_the_spread_and_its_text_says_why():
    rows = rows_of(
        {
            "uniform": (4.17,),
            "bigram": (2.5, 2.52, 2.54),
            "embedding": (2.48, 2.51, 2.53),
            "positions": (2.485, 2.505, 2.530),
            "averaging": (2.6, 2.65, 2.63),
            "one-head": (2.7, 2.74, 2.73),
        }
    )
    assert rows[2].bought == pytest.approx(2.52 - 7.52 / 3) and rows[1].val_loss_sd == pytest.approx(0.02)
    assert rows[0].bought is None and rows[1].bought == pytest.approx(4.17 - 2.52)
    verdicts = {one.step: one for one in monotone(rows)}
    assert "uniform" not in verdicts and verdicts["bigram"].outcome == "better"
    assert {name: verdicts[name].outcome for name in ("embedding", "positions", "averaging", "one-head")} == {
        "embedding": "level",
        "positions": "level",
        "averaging": "worse",
        "one-head": "worse",
    }
    for name, verdict in verdicts.items():
        assert verdict.explanation == find_lesson(name).outcomes.get(verdict.outcome, "")
        assert verdict.explanation in describe_verdict(next(row for row in rows if row.lesson.name == name), verdict)
    assert verdicts["averaging"].explanation and not verdicts["one-head"].explanation


def test_two_seeds_have_a_range_and_no_standard_deviation():
    rows = rows_of({"bigram": (2.5, 2.52), "embedding": (2.48, 2.51)})
    assert rows[0].val_loss_sd is None and rows[0].loss_words() == "2.5100 (2.5000 to 2.5200)"
    # (-0.02, -0.01): the difference of 0.01 between the seeds counts, not the 0.03 that both steps share
    (verdict,) = monotone(rows)
    assert verdict.spread == pytest.approx(0.01) and verdict.outcome == "better"
    assert table(rows, 100)[0].split()[4] == "range" and table(rows, 100)[1].split()[3] == "0.0200"
    assert next(stair.spread for stair in stairs_of(rows)) == pytest.approx((0.01, 0.01))
    three = rows_of({"bigram": (2.5, 2.52, 2.54)})
    assert three[0].loss_words() == "2.5200 ± 0.0200" and table(three, 100)[0].split()[4] == "sd"


def test_one_seed_has_no_spread_and_no_verdict():
    rows = rows_of({"averaging": (2.6,), "one-head": (2.6001,)})
    (verdict,) = monotone(rows)
    assert (verdict.outcome, verdict.spread, verdict.explanation) == ("unknown", 0.0, "")
    assert "no telling this from noise" in describe_verdict(rows[1], verdict) and rows[0].loss_words() == "2.6000"
    assert "a↵b" in table(rows, 100)[1] and one_line("\n\x00a\tb\n") == "·a·b"


def test_the_budget_shrinks_for_all_alike_when_time_is_short():
    paces = {"a": Pace(1e-4, 1.0), "b": Pace(3e-4, 1.0)}
    assert affordable_tokens(paces, 10_000.0, BUDGET, 5120) == BUDGET
    tokens = affordable_tokens(paces, 100.0, BUDGET, 5120)
    assert 5120 < tokens < BUDGET and sum(pace.seconds(tokens) for pace in paces.values()) == pytest.approx(
        90.0, abs=0.01
    )
    assert affordable_tokens(paces, 1.0, BUDGET, 5120) == 5120 and affordable_tokens(paces, 1.0, 512, 5120) == 512


def test_the_time_left_follows_the_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gptloom.studies.ladder.lessons.time.monotonic", lambda: now[0])
    lines = []
    watch = Watch(lines.append)
    watch.expect(100.0)
    watch.begin("a", 50.0)
    now[0] = 100.0  # twice as slow as expected
    watch.after_step(View(1, 1, 0.0, 1, 1.0, None, False, None, None))
    watch.finish("a")
    assert lines == ["a  1 min 35 s left"]  # 50 expected seconds are left, at (100 + 5) / (50 + 5) seconds each
    watch.begin("b", 50.0)
    watch.finish("b")
    assert lines[1].endswith("done")


# Climbing, through the command line

FEW = ["--only", "unigram,bigram-counts,embedding,one-head", "--steps", "5", "--device", "cpu"]
NAMES = ["uniform", "unigram", "bigram-counts", "bigram", "embedding", "averaging", "one-head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture(scope="module")
def text(folder):
    return str(write_text(folder))


def climb(capsys, *words):
    code = main(["ladder", *map(str, words), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out or "{}"), printed.err


@pytest.fixture(scope="module")
def whole(folder, text):
    """An uninterrupted ladder; its losses by step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["ladder", text, *FEW, "--seeds", "2"]) == 0
    return folder / "runs" / "ladder-1"


def results(run):
    found = {
        path.relative_to(run).as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in (run / "trials").rglob("*.json")
    }
    return {
        name: {key: value for key, value in one.items() if key not in ("seconds", "spent")}
        for name, one in found.items()
    }


def test_a_ladder_ends_with_json_picture_report_and_models(whole, capsys):
    code, found, said = climb(capsys, "--run", whole)  # all results exist and are only read
    assert code == 0 and [step["name"] for step in found["steps"]] == NAMES
    assert found["seeds"] == 2 and found["tokens_per_step"] == 5 * 256 and "validation loss" not in said
    assert found["command"].split()[3:] == [
        "--steps",
        "5",
        "--seeds",
        "2",
        "--only",
        "unigram,bigram-counts,embedding,one-head",
        "--device",
        "cpu",
        "--json",
    ]  # without --run
    assert found["machine"].keys() >= {"python", "versions", "threads"}
    for step in found["steps"]:
        assert step.keys() >= {
            "base",
            "parameters",
            "val_loss",
            "val_loss_sd",
            "seconds",
            "bought",
            "sample",
            "published",
        }
        assert len(step["losses"]) == (2 if find_lesson(step["name"]).trains else 1) and step["val_loss"] > 0
    assert {one["step"] for one in found["story"]} == set(NAMES) - {
        "uniform",
        "averaging",
    }  # whose base was not requested
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 and page.count("prefers-color-scheme: dark") == 2
    assert not re.search(r"<script|<link|@import|url\(|https?:", page)
    assert not re.search(r'(src|href|srcset)="(?!#|data:)', page) and all(f'id="{name}"' in page for name in NAMES)
    assert {path.name for path in (whole / "models").iterdir()} == {"bigram", "embedding", "averaging", "one-head"}
    bundle = Bundle.load(whole / "models" / "one-head", device="cpu")
    stored = json.loads((whole / "trials" / "one-head" / "seed-1337.json").read_text(encoding="utf-8"))
    assert bundle.model.parameter_count() == stored["parameters"] and stored["tokens"] == 5 * 256
    assert main(["sample", str(whole / "models" / "one-head"), "--tokens", "5"]) == 0


def test_own_text_gets_no_published_numbers_and_a_short_ladder_warns_everywhere(whole, capsys):
    _, found, said = climb(capsys, "--run", whole)
    assert found["source_text"] is False and [step["published"] for step in found["steps"]] == [[]] * len(NAMES)
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "Published" not in page and "document 00" not in page
    assert len(found["caveats"]) == 2 and "0.1% of the lecture's 1,280,000" in found["caveats"][0]
    for caveat in found["caveats"]:
        assert caveat.split(":")[0] in page.replace("&#x27;", "'") and f"WARNING: {caveat}" in said
    assert main(["ladder", "--run", str(whole)]) == 0
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == f"WARNING: {found['caveats'][-1]}"
    counted = {step["tokens"] for step in found["steps"] if not find_lesson(step["name"]).trains}
    assert counted == {found["counted_tokens"]} and f"{found['counted_tokens']:,} tokens" in page


def test_a_long_ladder_on_a_long_text_has_no_caveats(monkeypatch, text):
    material = open_material([text], DataConfig())
    assert len(ladder_module.caveats_of(material, BUDGET)) == 1
    monkeypatch.setattr(ladder_module, "TELLING_VAL_TOKENS", 10)
    assert ladder_module.caveats_of(material, BUDGET) == []


def test_a_table_is_printed_for_people(whole, capsys):
    assert main(["ladder", "--run", str(whole)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].split()[:2] == ["step", "parameters"] and "report.html" in printed.out
    assert "worse" in printed.err


def test_an_interrupted_ladder_goes_on_and_ends_as_if_it_had_not_been(whole, text, folder, capsys, monkeypatch):
    run, done = folder / "interrupted", []
    original = ladder_module.run_trial

    def trial(config, material, **rest):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append((config.model, config.seed))
        return original(config, material, **rest)

    monkeypatch.setattr(ladder_module, "run_trial", trial)
    assert main(["ladder", text, *FEW, "--seeds", "2", "--run", str(run)]) == 130
    assert "continues" in capsys.readouterr().err and len(results(run)) == 3 + 5
    done.clear()
    monkeypatch.setattr(
        ladder_module,
        "run_trial",
        lambda config, material, **rest: done.append(config.seed) or original(config, material, **rest),
    )
    code, found, _ = climb(capsys, "--run", run)
    assert code == 0 and done == [1338, 1338, 1338] and found["seeds"] == 2
    assert results(run) == results(whole)
    for name in ("bigram", "one-head"):
        mine, other = (load_file(place / "models" / name / "model.safetensors") for place in (run, whole))
        assert all(torch.equal(mine[key], other[key]) for key in other)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "6"], "steps was 5"),
        (["--seeds", "3"], "seeds was 2"),
        (["--only", "mlp"], "only was"),
        (["--minutes", "1"], "exclude"),
    ],
)
def test_other_settings_are_refused(whole, capsys, words, named):
    code, found, said = climb(capsys, "--run", whole, *words)
    assert code == 2 and named in said and found["error"]["cure"] is not None


def test_another_text_and_another_folder_are_refused(whole, folder, text, capsys, tmp_path):
    code, _, said = climb(capsys, write_text(tmp_path, repeats=30), "--run", whole)
    assert code == 2 and "the ladder began with" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    code, _, said = climb(capsys, text, "--run", tmp_path / "full")
    assert code == 2 and "does not hold a ladder" in said
    before = Path(text).read_text(encoding="utf-8")
    try:
        Path(text).write_text(before + "one more line\n", encoding="utf-8")
        code, _, said = climb(capsys, "--run", whole)
        assert code == 2 and "not those that the ladder began with" in said
    finally:
        Path(text).write_text(before, encoding="utf-8")


def test_left_over_time_buys_seeds_and_no_time_still_gives_a_whole_table(text, tmp_path, capsys):
    only = ["--only", "embedding", "--device", "cpu", "--run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptloom.studies.ladder.LECTURE_STEPS", 2)
        code, found, _ = climb(capsys, text, *only, tmp_path / "plenty", "--minutes", "60")
    assert code == 0 and found["seeds"] == 5 and found["tokens_per_step"] == 2 * 256
    code, found, said = climb(capsys, text, *only, tmp_path / "none", "--minutes", "0.0001")
    assert (
        code == 0
        and found["seeds"] == 1
        and found["tokens_per_step"] == ladder_module.LEAST_TOKENS
        and "do not fit" in said
    )


def test_any_tokenizer_will_do(text, tmp_path, capsys):
    words = [
        "--tokenizer",
        "byte",
        "--only",
        "trigram-counts,embedding",
        "--steps",
        "2",
        "--seeds",
        "1",
        "--run",
        tmp_path / "bytes",
    ]
    code, found, _ = climb(capsys, text, *words)
    losses = {step["name"]: step["val_loss"] for step in found["steps"]}
    assert (
        code == 0 and losses["trigram-counts"] < losses["bigram-counts"] and found["steps"][-1]["parameters"] > 256 * 32
    )


def test_reproduce_and_check_are_words_of_their_own(capsys, tmp_path):
    assert (
        main(["ladder", "shakespeare", "--reproduce"]) == 2
        and "can be combined only with --steps" in capsys.readouterr().err
    )
    assert main(["ladder", "--reproduce", "single-head", "--seeds", "2"]) == 2 and "--seeds" in capsys.readouterr().err
    assert (
        main(["ladder", "check", "one-haed", str(tmp_path / "file.py")]) == 2
        and "did you mean one-head" in capsys.readouterr().err
    )
