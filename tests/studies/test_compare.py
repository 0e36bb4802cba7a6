"""`gptloom compare`: its statistics, its verdicts, and whole comparisons."""

import json
import math
import random
from itertools import product

import pytest
import torch

from gptloom.cli.main import main
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, InputError
from gptloom.studies.compare import Folder, Outcome, Plan
from gptloom.studies.compare.assignment import check_directions, check_effect, needs, read_claim, read_example
from gptloom.studies.compare.factors import Factor, find_key, is_factor, plan_arms, read_factor
from gptloom.studies.compare.statistics import (
    LEVEL,
    estimate,
    holm,
    judge,
    level_of_look,
    seeds_needed,
    t_quantile,
    t_two_sided,
)
from gptloom.studies.compare.summary import pair_notes, summarise
from gptloom.studies.trial import open_material, run_trial
from training_helpers import write_text

SHAPE = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "4", "--model.block-size", "8"]
TINY = [
    *SHAPE,
    "--train.batch-size",
    "2",
    "--train.threads",
    "1",
    "--device",
    "cpu",
    "--steps",
    "6",
    "--train.warmup-steps",
    "0",
]


@pytest.fixture
def typed(tmp_path, capsys, monkeypatch):
    """Run `gptloom compare` on a small text in an empty folder; return (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    text = str(write_text(tmp_path))

    def run(*words):
        code = main(["compare", text, *TINY, "--data.cache", "cache", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# Statistics


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [  # the usual table of Student's distribution, with its digits
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 4, 2.776), (0.975, 9, 2.262), (0.95, 30, 1.697),
        (0.99, 4, 3.747), (0.99, 9, 2.821), (0.995, 9, 3.250), (0.975, 120, 1.980),
    ],
)  # fmt: skip
def test_t_quantiles_are_those_of_the_table(p, df, t):
    assert t_quantile(p, df) == pytest.approx(t, abs=5.01e-4)


@pytest.mark.parametrize("t", [1e-6, 0.3, 1.0, 2.5, 40.0])
def test_t_agrees_with_its_closed_forms(t):
    """With 1 degree of freedom it is Cauchy's distribution, with 2 and 4 algebraic, and with very many the normal."""
    assert t_two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
    assert t_two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    u = t / math.sqrt(4 + t * t)
    assert t_two_sided(t, 4) == pytest.approx(1 - u * (3 - u * u) / 2, rel=1e-7, abs=1e-12)
    if t < 3:
        assert t_two_sided(t, 10**7) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-5)


def test_the_quantile_is_the_inverse_of_the_tail():
    for p, df in product((0.5, 0.6, 0.9, 0.999, 0.99999), (1, 3, 7, 50)):
        assert t_two_sided(t_quantile(p, df), df) == pytest.approx(2 * (1 - p), rel=1e-9)


def test_estimate_is_the_textbook_interval():
    found = estimate([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (found.n, found.mean, found.sd) == (4, 2.5, pytest.approx(math.sqrt(5 / 3)))
    assert (found.low, found.high) == (pytest.approx(2.5 - half, abs=1e-5), pytest.approx(2.5 + half, abs=1e-5))
    assert estimate([-1.0, -2.0, -3.0, -4.0]).p == found.p == pytest.approx(0.030466, abs=1e-5)


def test_no_spread_is_no_division_by_zero():
    nothing, constant = estimate([0.0] * 4), estimate([0.25] * 4)
    assert (nothing.low, nothing.high, nothing.p) == (0.0, 0.0, 1.0)
    assert (constant.low, constant.high, constant.p) == (0.25, 0.25, 0.0)


def test_holm_steps_down_and_stays_monotone():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_seeds_needed_is_the_smallest_number_that_does():
    for mean, sd, level in [(0.1, 0.1, 0.02), (-0.03, 0.05, 0.02), (1.0, 0.01, 0.01)]:
        n = seeds_needed(mean, sd, level)

        def half(n, sd=sd, level=level):
            return t_quantile(1 - level / 2, n - 1) * sd / math.sqrt(n)

        assert half(n) < abs(mean) and (n == 3 or half(n - 1) >= abs(mean))
    assert seeds_needed(0.001, 1.0, 0.02) is None and seeds_needed(0.0, 1.0, 0.02) is None


def test_all_looks_together_stay_below_five_in_a_hundred():
    assert level_of_look(0) == LEVEL and sum(level_of_look(k) for k in range(50)) < 0.05


def test_false_alarms_of_the_rule_stay_below_five_in_a_hundred():
    """200 comparisons of noise: with one arm, and with several arms and looks at 4 and 6 seeds."""
    draw = random.Random(1)
    for arms, looks in [(1, [5]), (2, [4, 6])]:
        alarms = 0
        for _ in range(200):
            losses = [[draw.gauss(2.0, 0.05) for _ in range(max(looks))] for _ in range(arms + 1)]
            decisions = [
                one.decision
                for number, seeds in enumerate(looks)
                for one in judge([row[:seeds] for row in losses[1:]], losses[0][:seeds], level_of_look(number))
            ]
            alarms += bool({"better", "worse"} & set(decisions))
        assert 0 < alarms <= 10


# Verdicts


def test_noise_that_a_pair_shares_cancels():
    draw = random.Random(2)
    shared = [draw.gauss(0.0, 0.3) for _ in range(6)]
    base = [2.0 + noise for noise in shared]
    arm = [1.92 + noise + draw.gauss(0.0, 0.01) for noise in shared]
    paired, mixed = judge([arm], base)[0], judge([arm[1:] + arm[:1]], base)[0]
    assert paired.decision == "better" and paired.verdict == "0.086 better, 95 % interval 0.083 to 0.090"
    assert mixed.decision == "noise" and mixed.estimate.mean == pytest.approx(paired.estimate.mean)


@pytest.mark.parametrize(
    ("differences", "decision", "words"),
    [
        ([-0.07, -0.09, -0.08, -0.06, -0.10], "better", "0.08 better, 95 % interval 0.06 to 0.10"),
        ([0.07, 0.09, 0.08, 0.06, 0.10], "worse", "0.08 worse, 95 % interval 0.06 to 0.10"),
        (
            [0.01, 0.05, -0.02, 0.04, 0.0],
            "noise",
            "within seed noise: about 16 more seeds needed (0.02 worse, 95 % interval 0.02 better to 0.05 worse)",
        ),
        ([0.01, -0.01, 0.0101, -0.01], "noise", "within seed noise: over 100 seeds needed, so it hardly matters"),
        ([0.0] * 5, "same", "no difference at all: the losses are equal, bit for bit"),
        ([1e-6, 2e-6, 3e-6, 1.5e-6], "same", "no difference: no pair differs in its first four decimals"),
        ([0.5, 0.5], "too few", "too few seeds for a verdict: at least 3 are needed, and there are 2"),
        ([0.5], "too few", "too few seeds for a verdict: at least 3 are needed, and there is 1"),
    ],
)
def test_verdicts_in_words(differences, decision, words):
    found = judge(
        [[2.0 + one for one in differences]] if decision != "same" else [differences],
        [2.0 if decision != "same" else 0.0] * len(differences),
    )[0]
    assert found.decision == decision and found.verdict.startswith(words)


def test_a_difference_that_only_the_95_percent_interval_sees_is_not_called_one():
    differences = [0.01, 0.03, 0.02, 0.06, 0.03]
    found = judge([[2.0 + one for one in differences]], [2.0] * 5)[0]
    assert found.estimate.low > 0 and 0.02 < found.p < 0.05
    assert found.decision == "noise" and found.more_seeds == 1
    assert found.verdict == "not yet certain: about 1 more seed needed (0.030 worse, 95 % interval 0.007 to 0.053)"


def test_a_training_that_diverged_is_a_finding_and_not_a_number():
    bad, good = judge([[2.0, None, None], [1.0, 1.01, 0.99]], [2.0, 2.0, 2.0])
    assert bad.decision == "diverged" and "diverged with 2 of 3 seeds" in bad.verdict and bad.estimate is None
    assert good.decision == "better"


# Factors and arms


def test_settings_by_their_names():
    keys = {
        "lr": "train.learning_rate",
        "train.learning-rate": "train.learning_rate",
        "learning_rate": "train.learning_rate",
        "layers": "model.n_layer",
        "n-head": "model.n_head",
        "dropout": "model.dropout",
        "recipe": "recipe",
        "tokenizer": "data.tokenizer",
    }
    assert {name: find_key(name) for name in keys} == keys
    assert is_factor("lr=1,2") and not is_factor("./a=b.txt") and not is_factor("text.txt")
    assert read_factor("n_kv_head=none,2").values == (None, "2")


def test_one_factor_at_a_time_unless_together():
    factors = [Factor("train.learning_rate", ("1e-3", "2e-3", "3e-3")), Factor("model.n_layer", ("1", "2", "3"))]
    alone = plan_arms(factors, "tiny")
    assert [arm.name for arm in alone] == [
        "baseline",
        "learning_rate=0.002",
        "learning_rate=0.003",
        "n_layer=2",
        "n_layer=3",
    ]
    assert all(len(arm.changes) == 1 for arm in alone[1:]) and alone[3].changes == {"model.n_layer": (1, 2)}
    both = plan_arms(factors, "tiny", together=True)
    assert [(arm.config.train.learning_rate, arm.config.model.n_layer) for arm in both] == [
        (1e-3, 1),
        (2e-3, 2),
        (3e-3, 3),
    ]
    assert "2 settings change at once (n_layer 1 to 2, learning_rate 0.001 to 0.002)" in pair_notes(Plan(both, 5), 1)[0]
    assert not any("at once" in note for note in pair_notes(Plan(alone, 5), 1))


def test_a_recipe_is_a_factor_that_changes_several_settings():
    arms = plan_arms([Factor("recipe", ("tiny", "modern-tiny"))], "tiny", {"train": {"steps": 5}})
    assert (
        arms[1].config.model.mlp == "swiglu"
        and arms[1].config.train.steps == 5
        and arms[1].config.train.minutes is None
    )
    assert any("settings change at once" in note for note in pair_notes(Plan(arms, 3), 1))


def test_notes_say_when_pairs_do_not_share_their_batches():
    arms = plan_arms(
        [
            Factor("train.batch_size", (8, 16)),
            Factor("train.steps", (5, 10)),
            Factor("data.tokenizer", ("char", "byte")),
        ],
        "tiny",
    )
    notes = [" ".join(pair_notes(Plan(arms, 3), number)) for number in (1, 2, 3)]
    assert "not the data order" in notes[0] and "10,240 against 5,120" in notes[0]
    assert "data order" not in notes[1] and "10,240 against 5,120" in notes[1]
    assert "bits per byte" in notes[2]


def test_pairs_share_a_seed_and_own_seeds_share_none():
    arms = plan_arms([Factor("train.learning_rate", (1e-3, 1e-3))], "tiny")
    assert [arm.name for arm in arms] == ["learning_rate=0.001", "learning_rate=0.001 (again)"]
    shared, own = Plan(arms, 4), Plan(arms, 4, own_seeds=True)
    assert (
        [shared.seed(0, pair) for pair in range(4)]
        == [shared.seed(1, pair) for pair in range(4)]
        == [1337, 1338, 1339, 1340]
    )
    assert len({own.seed(arm, pair) for arm, pair in own.order()}) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layrs=1,2"], "did you mean layers"),
        (["lr=1e-3"], "lr=A,B"),
        (["lr=1e-3,"], "lr=A,B"),
        ([], "nothing is to be compared"),
        (["lr=1,2", "learning_rate=3,4"], "given twice"),
        (["lr=1,2", "layers=1,2,3", "--together"], "same number of values"),
        (["seed=1,2"], "--seeds"),
        (["val_fraction=0.1,0.2"], "same text"),
        (["heads=1,3"], "n_head=3 does not divide n_embd=4"),
        (["recipe=tiny,tinny"], "did you mean tiny"),
        (["lr=1,2", "--seeds", "0"], "--seeds"),
        (["lr=1,2", "--example", "assignment"], "--example"),
        (["--example", "asignment"], "did you mean assignment"),
    ],
)
def test_what_is_wrong_is_one_line(typed, words, said):
    code, out, err = typed(*words)
    assert code == 2 and out == "" and err.count("\n") == 1 and said in err


def test_all_wrong_values_are_named_at_once_and_before_any_text_is_read(capsys):
    assert main(["compare", "no-such-file.txt", "lr=-1,1e-3", "layers=1,many", "dropout=0,2"]) == 2
    said = capsys.readouterr().err
    assert (
        all(key in said for key in ("train.learning_rate", "model.n_layer", "model.dropout"))
        and "no-such-file" not in said
    )
    assert said.count("train.learning_rate") == 1


# Claims

KEYS = (
    "train.learning_rate",
    "train.steps",
    "train.batch_size",
    "model.block_size",
    "model.n_layer",
    "model.n_embd",
    "model.dropout",
)


@pytest.mark.parametrize(
    ("text", "directions", "effect", "amount"),
    [
        ("we reduced the learning rate from 1e-3 to 4e-3", {"train.learning_rate": -1}, 0, None),
        ("the learning rate was raised", {"train.learning_rate": 1}, 0, None),
        (
            "more steps and a lower learning rate, about 0.1 better",
            {"train.steps": 1, "train.learning_rate": -1},
            1,
            0.1,
        ),
        ("increased the batch size and block_size", {"train.batch_size": 1, "model.block_size": 1}, 0, None),
        (
            "the layers were increased and the learning rate reduced",
            {"model.n_layer": 1, "train.learning_rate": -1},
            0,
            None,
        ),
        ("reducing the loss by around 0.1 with the learning rate", {}, 1, 0.1),
        ("a higher learning rate, reducing the loss by 0.05", {"train.learning_rate": 1}, 1, 0.05),
        ("the loss is 0.2 higher with less dropout", {"model.dropout": -1}, -1, 0.2),
        ("deeper", {"model.n_layer": 1}, 0, None),
        ("a wider context", {"model.block_size": 1}, 0, None),
        ("did not reduce the learning rate", {}, 0, None),
        ("improves by 5 %", {}, 1, None),
        ("a learning rate of 4e-3", {}, 0, None),
    ],
)  # fmt: skip
def test_claims_are_read(text, directions, effect, amount):
    claim = read_claim(text, KEYS)
    assert (claim.directions, claim.effect, claim.amount) == (directions, effect, amount)


def test_a_change_that_goes_the_other_way_is_said():
    change = {"train.learning_rate": (1e-3, 4e-3)}
    wrong = check_directions(read_claim("reduced the learning rate", change), change)
    assert len(wrong) == 1 and "0.001 to 0.004" in wrong[0] and "an increase" in wrong[0] and "opposite" in wrong[0]
    assert check_directions(read_claim("raised the learning rate", change), change) == []
    assert "not mentioned: learning_rate" in check_directions(read_claim("more layers", change), change)[0]
    words = {"model.norm": ("layernorm", "rmsnorm")}
    assert check_directions(read_claim("lower norm", words), words) == []


def test_a_claimed_effect_is_held_against_the_measured_one():
    claim = read_claim("0.1 better", [])
    assert check_effect(claim, "better", -0.12, -0.05) == []
    assert "outside" in check_effect(claim, "better", -0.08, -0.05)[0]
    assert "opposite" in check_effect(claim, "worse", 0.05, 0.08)[0]
    assert "do not show" in check_effect(claim, "noise", -0.1, 0.1)[0]


# Whole comparisons


def test_a_comparison_as_typed(typed, tmp_path):
    code, out, err = typed(
        "lr=1e-5,3e-2",
        "--seeds",
        4,
        "--train.schedule",
        "constant",
        "--train.batch-size",
        8,
        "--claim",
        "reduced the learning rate; 9 better",
        "--json",
    )
    found = json.loads(out)
    assert (
        code == 0
        and found["run"] == "runs/compare-1"
        and found["unit"] == "nats per token"
        and found["texts"] == ["text"]
    )
    base, arm = found["arms"]
    assert (
        len(base["losses"]) == 4
        and len(set(base["losses"])) == 4
        and base["parameters"] == arm["parameters"]
        and arm["settings"] == {"train.learning_rate": 0.03}
    )
    one = found["comparisons"][0]
    assert one["differences"] == pytest.approx([b - a for a, b in zip(base["losses"], arm["losses"], strict=True)])
    assert (
        found["difference"] == one["difference"] == pytest.approx(sum(one["differences"]) / 4) and one["difference"] < 0
    )
    assert found["interval"] == one["interval"] and found["verdict"] == one["verdict"] and "better" in found["verdict"]
    assert "opposite" in one["claims"][0] and "outside" in one["claims"][1]
    assert "8 trainings (2 arms, 4 seeds), about" in err and "8 of 8" in err and "left" in err
    picture = (tmp_path / "runs" / "compare-1" / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert json.loads((tmp_path / "runs" / "compare-1" / "result.json").read_text()) == found


def test_in_words_the_verdicts_go_to_standard_output(typed):
    _, out, err = typed("lr=1e-5,1e-1", "layers=1,2", "--seeds", 3)
    assert [line.partition(":")[0] for line in out.splitlines() if line[:1] != " " and " against " in line] == [
        "learning_rate=0.1 against baseline",
        "n_layer=2 against baseline",
    ]
    assert (
        "not the same number of parameters" in out
        and "compare.png" in out
        and "mean loss" in err
        and "p <= 0.02" in err
    )


def test_a_loss_is_that_of_an_ordinary_training(typed, tmp_path, capsys):
    _, out, _ = typed("lr=1e-3,1e-1", "--seeds", 1, "--json")
    assert (
        main(
            [
                "train",
                "text.txt",
                "--run",
                "single",
                *TINY,
                "--data.cache",
                "cache",
                "--train.learning-rate",
                "0.1",
                "--train.sample-tokens",
                "0",
                "--json",
            ]
        )
        == 0
    )
    single = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "single" / "metrics.jsonl").read_text().splitlines()]
    last = [line["loss"] for line in lines if line["event"] == "evaluation" and line["step"] == 6]
    assert json.loads(out)["arms"][1]["losses"] == last and single["steps"] == 6


def test_the_same_setting_with_the_same_seeds_is_no_difference_at_all(typed):
    _, out, err = typed("lr=1e-2,1e-2", "--seeds", 3)
    assert "no difference at all" in out and "--own-seeds" in err
    _, out, _ = typed("lr=1e-2,1e-2", "--seeds", 3, "--own-seeds", "--json")
    found = json.loads(out)
    assert (
        len({loss for arm in found["arms"] for loss in arm["losses"]}) == 6
        and found["comparisons"][0]["decision"] == "noise"
    )


def test_an_interrupted_comparison_goes_on_and_comes_to_the_same(typed, monkeypatch):
    from gptloom.studies import compare

    whole = json.loads(typed("lr=1e-3,1e-2", "--seeds", 3, "--run", "whole", "--json")[1])
    real, calls = compare.run_trial, []

    def stops(config, material, **more):
        calls.append(config)
        if len(calls) == 4:  # three trainings later
            raise KeyboardInterrupt
        return real(config, material, **more)

    monkeypatch.setattr(compare, "run_trial", stops)
    assert typed("lr=1e-3,1e-2", "--seeds", 3, "--run", "parts")[0] == 130
    monkeypatch.setattr(compare, "run_trial", lambda *words, **more: calls.append(0) or real(*words, **more))
    calls.clear()
    _, out, err = typed("lr=1e-3,1e-2", "--seeds", 3, "--run", "parts", "--json")
    found = json.loads(out)
    assert "3 of 6 trainings have finished already" in err and len(calls) == 3
    assert [arm["losses"] for arm in found["arms"]] == [arm["losses"] for arm in whole["arms"]] and found[
        "interval"
    ] == whole["interval"]


def test_a_comparison_grows_by_seeds_at_half_the_level_and_refuses_other_settings(typed):
    first = json.loads(typed("lr=1e-3,1e-2", "--seeds", 3, "--run", "kept", "--json")[1])
    grown = json.loads(typed("lr=1e-3,1e-2", "--seeds", 4, "--run", "kept", "--json")[1])
    assert grown["arms"][0]["losses"][:3] == first["arms"][0]["losses"]
    assert (first["rule"]["level"], grown["rule"]["level"], grown["rule"]["earlier_looks"]) == (0.02, 0.01, 1)
    again = json.loads(typed("lr=1e-3,1e-2", "--seeds", 4, "--run", "kept", "--json")[1])
    assert again["rule"]["level"] == 0.01
    code, _, err = typed("lr=1e-3,1e-2", "--seeds", 4, "--run", "kept", "--train.weight-decay", "0.5")
    assert code == 2 and "train.weight_decay was 0, not 0.5" in err and err.count("\n") == 1


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="not a comparison"):
        Folder(tmp_path).begin({"own_seeds": False, "seed": 1, "arms": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_text_is_another_comparison(typed, tmp_path):
    typed("lr=1e-3,1e-2", "--seeds", 1, "--run", "kept")
    write_text(tmp_path, repeats=41)
    code, _, err = typed("lr=1e-3,1e-2", "--seeds", 1, "--run", "kept")
    assert code == 2 and "the text has changed" in err


def test_a_diverging_arm_does_not_end_the_comparison(typed):
    code, out, _ = typed("lr=1e-3,1e30", "--seeds", 3, "--train.grad-clip", "0")
    assert code == 0 and "diverged with 3 of 3 seeds" in out and "seed 1 of 3" in out


def test_other_tokens_are_compared_in_bits_per_byte(typed):
    found = json.loads(typed("tokenizer=char,byte", "--seeds", 1, "--json")[1])
    assert found["unit"] == "bits per byte" and found["arms"][0]["losses"][0] < 8.5


def test_a_plan_trains_nothing_and_leaves_nothing(typed, tmp_path):
    code, out, _ = typed("lr=1e-3,1e-2,1e-1", "--seeds", 7, "--plan", "--json")
    found = json.loads(out)
    assert code == 0 and found["trainings"] == 21 and found["arms"][0]["name"] == "learning_rate=0.001"
    assert (
        found["seconds"] == pytest.approx(7 * sum(arm["seconds"] for arm in found["arms"]))
        and not (tmp_path / "runs").exists()
    )


def test_the_clock_is_noted(typed):
    arms = plan_arms([Factor("train.learning_rate", (1e-3, 1e-2))], "tiny", {"train": {"minutes": 0.01}})
    outcomes = [[Outcome(2.0 + arm, 1.0, 10, 5 + arm, 100, 1.0, 1.0)] * 3 for arm in (0, 1)]
    notes = summarise(Plan(arms, 3), outcomes)["comparisons"][0]["notes"]
    assert any("by the clock" in note for note in notes) and "steps taken: 6 to 6 against 5 to 5" in notes


@pytest.mark.parametrize(("seeds", "there"), [(2, False), (3, True)])
def test_two_seeds_have_no_standard_deviation(seeds, there):
    arms = plan_arms([Factor("train.learning_rate", (1e-3, 1e-2))], "tiny", {"train": {"steps": 10}})
    outcomes = [[Outcome(2.0 + arm + 0.1 * seed, 1.0, 10, 5, 100, 1.0, 1.0) for seed in range(seeds)] for arm in (0, 1)]
    found = summarise(Plan(arms, seeds), outcomes)
    assert [one["sd"] is not None for one in [*found["arms"], *found["comparisons"]]] == [there] * 3


# The example


def test_the_published_runs_are_told_as_they_are():
    example = read_example("assignment")
    assert [len(step.changes) for step in example.steps] == [2, 5, 5]
    wrong = example.steps[0].wrong
    assert len(wrong) == 1 and "learning_rate goes from 0.001 to 0.004: that is an increase" in wrong[0]
    assert [step.wrong[0].partition(":")[0] for step in example.steps[1:]] == ["changed, but not mentioned"] * 2
    assert [factor.key.rpartition(".")[2] for factor in example.factors(100)] == [
        "steps", "learning_rate", "batch_size", "block_size", "n_head", "dropout", "n_layer",
    ]  # fmt: skip
    assert example.factors(100)[0].values == (100, 200)


def test_the_example_has_the_parameters_that_were_published():
    from gptloom.config.load import nest, resolve
    from gptloom.model.transformer import Decoder

    example = read_example("assignment")
    for run in example.runs:
        config = resolve("tiny", example.base, nest(run["settings"]))
        with torch.device("meta"):
            assert Decoder(config.model).parameter_count() == run["parameters"]


def test_the_example_as_typed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    words = [
        "--example",
        "assignment",
        "--seeds",
        "2",
        "--steps",
        "1",
        "--model.n-embd",
        "16",
        "--device",
        "cpu",
        "--train.threads",
        "1",
        "--data.cache",
        "cache",
    ]
    code = main(["compare", "text.txt", *words, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert code == 0 and "that is an increase" in err and "16 trainings (8 arms, 2 seeds)" in err
    assert all(len(one["changed"]) == 1 for one in found["comparisons"]) and len(found["example"]["needs"]) == 3
    assert found["example"]["needs"][0]["effect"] == 0.1 and found["example"]["findings"][0]["wrong"]


def test_what_a_conclusion_needs_follows_from_the_noise():
    example = read_example("assignment")
    comparisons = [
        {"changed": {factor.key: [0, 1]}, "sd": sd}
        for factor, sd in zip(example.factors(10), [0.05, 0.2, 0.01, 0.01, 0.01, 0.01, 0.01], strict=True)
    ]
    found = needs(example, {"comparisons": comparisons})
    assert (
        found[0]["sd"] == 0.2
        and found[0]["seeds"] == seeds_needed(0.1, 0.2, LEVEL / 2)
        and found[0]["trainings"] == found[0]["seeds"] * 3
    )
    assert found[2]["sd"] == 0.05 and found[2]["effect"] == pytest.approx(0.1367)


def test_an_unknown_setting_is_an_error_with_the_nearest_one():
    with pytest.raises(ConfigError, match="n_layer"):
        find_key("n_layr")


def test_losses_that_are_about_different_tokens_are_not_compared(capsys, tmp_path):
    for kinds in ("decoder,encoder", "decoder,encoder-decoder"):
        assert (
            main(
                [
                    "compare",
                    f"model.architecture={kinds}",
                    "--steps",
                    "2",
                    "--seeds",
                    "3",
                    "--run",
                    str(tmp_path / "run"),
                ]
            )
            == 2
        )
        assert "are not comparable" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_encoders_trial_claims_no_bits_per_byte(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefgh" * 100, encoding="utf-8")
    config = RunConfig(
        device="cpu",
        model={"architecture": "encoder", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8},
        train={"steps": 2},
    )
    assert run_trial(config, open_material([str(path)], config.data))[0].val_bpb is None


def test_a_trial_s_epochs_are_counted_in_documents_where_windows_are(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "abcd"}\n' * 200, encoding="utf-8")
    config = RunConfig(
        device="cpu",
        data={"sampling": "documents", "cache": str(tmp_path)},
        model={"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 64},
        train={"epochs": 2, "batch_size": 4},
    )
    assert run_trial(config, open_material([str(path)], config.data))[0].steps == 90
