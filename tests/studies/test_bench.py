"""`gptloom bench`: counts are right, fits find known exponents, and an error leaves the other measurements intact."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from gptloom.cli.main import main
from gptloom.config.load import resolve
from gptloom.config.model import ModelConfig
from gptloom.fast.train import TrainingPass
from gptloom.model.build import build_model, operations_per_token
from gptloom.model.loss import Objective
from gptloom.studies.bench import bench as benching
from gptloom.studies.bench import data, speed, sweeps
from gptloom.studies.bench.limits import (
    Budget,
    Memory,
    Multiplier,
    Product,
    Products,
    Spread,
    ending_exponent,
    exponent,
    repeat,
)
from gptloom.training import setup
from gptloom.training.memory import activation_bytes
from gptloom.training.optim import make_optimizer
from model_helpers import CONFIGS, SMALL, build

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 13, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "ngram_rows": 50}
WORDS = [
    "--model.n-layer",
    "1",
    "--model.n-head",
    "2",
    "--model.n-embd",
    "16",
    "--model.block-size",
    "32",
    "--train.batch-size",
    "2",
    "--device",
    "cpu",
]
NEIGHBOURS = {
    "encoder": {"architecture": "encoder"},
    "encoder-decoder": {"architecture": "encoder-decoder", "positions": "sinusoidal"},
    "lstm": {"architecture": "lstm"},
}


class Clock:
    """A clock that advances by a microsecond when it is read, and by `work` for each number that a model reads."""

    def __init__(self, monkeypatch=None, per_row=0.01):
        self.now = 0.0
        if monkeypatch is not None:
            real = TrainingPass.__call__

            def slower(training_pass, batch, *given, **named):
                self.now += (per_row(self.now) if callable(per_row) else per_row) * len(batch[0])
                return real(training_pass, batch, *given, **named)

            monkeypatch.setattr(TrainingPass, "__call__", slower)

    def __call__(self):
        self.now += 1e-6
        return self.now


def small(**changes):
    return resolve("tiny", {"device": "cpu", "model": SHAPE, "train": {"batch_size": 4}}, changes)


class Known(Multiplier):
    """A machine that multiplies at 1 GFLOP/s."""

    def seconds(self, products, dtype, budget):
        return sum(product.operations * times for product, times in products.items()) / 1e9


def run_sweeps(config, budget, *names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sweeps,
            "FACTORS",
            [replace(one, powers=(one.powers[0], -2, 3)) for one in sweeps.FACTORS if one.name in names],
        )
        for found in sweeps.Sweeper(CPU, budget, Known(CPU), [].append).around(config):
            result = found
    return {one.factor.name: one.as_dict(1e12) for one in result}


# --- counting -------------------------------------------------------------------------------------


def configs():
    return CONFIGS | {name: ModelConfig(**SMALL, **fields) for name, fields in NEIGHBOURS.items()}


@pytest.mark.parametrize("name", configs())
def test_the_products_that_happen_are_those_of_the_formula(name):
    """6 N + 12 L T C, counted on the meta device, against all products that PyTorch dispatches in both passes."""
    config = configs()[name]
    objective = Objective(build_model(config))
    ids = torch.randint(config.vocab_size, (3, 8))
    with Products() as seen:
        nats, _ = objective(*[ids] * (3 if name == "encoder-decoder" else 2))
        nats.backward()
    assert seen.operations == operations_per_token(config, 8) * ids.numel()


def test_causal_attention_is_seen_as_tiles_of_which_half_are_needed():
    config = ModelConfig(**SHAPE | {"block_size": 1024, "n_layer": 1, "n_embd": 64})
    ids = torch.zeros((1, 1024), dtype=torch.int64)
    with Products() as seen:
        Objective(build_model(config))(ids, ids)[0].backward()
    tiles = {product: times for product, times in seen.found.items() if product.causal}
    assert tiles == {Product(16, *shape, True): 2 for shape in [(256, 32, 512), (256, 512, 32), (512, 256, 32)]}


def test_the_limit_adds_up_the_products_and_halves_causal_ones(monkeypatch):
    multiplier = Multiplier(CPU)
    monkeypatch.setattr(multiplier, "_best", lambda product, dtype, budget: float(product.m))
    products = {Product(1, 2, 5, 5): 3, Product(4, 7, 5, 5, True): 2}
    assert multiplier.seconds(products, torch.float32, Budget(1.0, Clock())) == 3 * 2 + 2 * 7 / 2
    assert len(multiplier.known) == 2


def test_measured_limits_are_numbers_of_this_world():
    seconds = Multiplier(CPU).seconds(
        {Product(1, 64, 64, 64): 1, Product(300, 16, 16, 16): 1}, torch.float32, Budget(0.1)
    )
    assert 0 < seconds < 1
    memory = Memory(CPU)
    large, less = memory.rate(4_000_000, 1, Budget(0.05)), memory.rate(400_000, 1, Budget(0.05))
    assert less >= large > 1e6  # a smaller buffer never counts as slower


MEMORY = {
    "tiny": ("tiny", {"n_embd": 64, "vocab_size": 300}),
    "gpt2": ("gpt2", {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 64, "vocab_size": 300}),
    "modern": (
        "modern",
        {
            "n_layer": 2,
            "n_head": 4,
            "n_kv_head": 2,
            "n_embd": 64,
            "block_size": 64,
            "vocab_size": 300,
            "mlp_width": 192,
        },
    ),
    "dropout": ("baby", {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 64}),
    "post-norm": ("tiny", {"norm_position": "post", "positions": "learned", "n_embd": 64}),
    "few tokens": ("gpt2", {"n_layer": 6, "n_head": 4, "n_embd": 64, "block_size": 4, "vocab_size": 300}),
    "mean": ("tiny", {"mixer": "mean", "n_embd": 64}),
    "encoder": ("encoder", {"n_embd": 64}),
    "encoder-decoder": ("translate", {"n_embd": 64}),
}


@pytest.mark.parametrize("name", MEMORY)
def test_the_memory_of_a_pass_is_what_the_allocator_saw(name):
    recipe, changes = MEMORY[name]
    run = resolve(recipe, {"model": changes})
    config = run.model
    objective = Objective(build_model(config).train())
    ids = torch.randint(config.vocab_size, (8, config.block_size))
    optimizer = make_optimizer(objective.model, run.train)  # has memory for every gradient
    batch = [ids] * (3 if name == "encoder-decoder" else 2)
    both = TrainingPass(objective, optimizer.zero_grad)
    both.check(batch)  # the comparison before the first step has its own memory
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        both(batch, 1.0 / ids.numel())
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert activation_bytes(config, 8) == pytest.approx(alive.max(), rel=0.05)


def test_memory_grows_with_the_rows_and_halves_in_bfloat16_on_a_gpu():
    config = resolve("gpt2", {"model": {"n_layer": 2, "vocab_size": 1000}}).model
    one, two, five = (activation_bytes(config, rows) for rows in (1, 2, 5))
    assert five == pytest.approx(one + 4 * (two - one), rel=5e-3)
    assert 0.4 * one < activation_bytes(config, 1, dtype=torch.bfloat16, on_cpu=False) < one


# --- fitting --------------------------------------------------------------------------------------


@given(
    st.floats(-3.0, 3.0), st.floats(1e-6, 1e3), st.lists(st.integers(1, 10_000), min_size=2, max_size=8, unique=True)
)
def test_a_planted_power_is_found(power, factor, values):
    assert exponent(values, [factor * value**power for value in values]) == pytest.approx(power, abs=1e-6)


def test_the_power_at_the_end_is_that_of_the_two_largest():
    assert ending_exponent([4, 1, 2], [16.0, 1.0, 1.0]) == pytest.approx(4.0)
    assert exponent([3], [1.0]) is None and ending_exponent([3], [1.0]) is None


def test_a_spread_is_in_order_and_repeats_stop_where_the_time_does():
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(2.5, 1.75, 3.25, 1.0, 4)
    clock = Clock()

    def second():
        clock.now += 1.0

    assert len(repeat(second, CPU, Budget(5.5, clock), least=3)) == 5
    assert len(repeat(second, CPU, Budget(0.5, clock), least=3)) == 1
    assert len(repeat(second, CPU, Budget(100.0, clock), most=7)) == 7


# --- sweeping -------------------------------------------------------------------------------------


def test_a_step_whose_time_is_that_of_its_rows_grows_with_the_batch_and_nothing_else(monkeypatch):
    clock = Clock(monkeypatch)
    found = run_sweeps(small(), Budget(6.0, clock), "batch", "width")
    assert found["batch"]["exponent"] == pytest.approx(1.0, abs=0.01) and found["batch"][
        "exponent_at_the_end"
    ] == pytest.approx(1.0, abs=0.01)
    assert found["width"]["exponent"] == pytest.approx(0.0, abs=0.01) and len(found["width"]["points"]) == 6
    by_rows = {point["value"]: point for point in found["batch"]["points"]}
    assert by_rows[8]["ms"] == pytest.approx(80.0, rel=0.01) and by_rows[8]["tokens"] == 8 * 16
    assert by_rows[8]["tokens_per_second"] == pytest.approx(1600, rel=0.01)
    assert by_rows[8]["mfu"] == pytest.approx(by_rows[8]["operations_per_token"] * 1600 / 1e12, rel=0.01)


@pytest.mark.parametrize("later", [1.0, 3.0])
def test_a_machine_that_others_use_meanwhile_is_noticed(monkeypatch, later):
    clock = Clock(monkeypatch, per_row=lambda now: 0.01 * (later if now > 1.0 else 1.0))
    monkeypatch.setattr(sweeps, "FACTORS", [one for one in sweeps.FACTORS if one.name == "depth"])
    found = benching.bench(
        small(), CPU, groups=("step",), seconds=4.0, largest=False, say=lambda line: None, clock=clock
    )
    assert found["drift"] == pytest.approx(later, rel=0.01)
    assert [f"took {later:.2f} times as long" in note for note in found["notes"]] == ([True] if later > 1 else [])


def test_what_does_not_fit_into_the_time_is_left_out_and_named(monkeypatch):
    clock = Clock(monkeypatch, per_row=0.1)
    found = run_sweeps(small(), Budget(30.0, clock), "batch")
    assert clock.now < 2 * 30.0
    left = {one["value"]: one["why"] for one in found["batch"]["left_out"]}
    assert left[32].startswith("a step would take about 3.2 s") and 4 in {
        point["value"] for point in found["batch"]["points"]
    }
    values = [point["value"] for point in found["batch"]["points"]]
    assert sorted([*left, *values]) == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), None])
def test_memory_that_runs_out_at_a_point_is_reported_and_the_sweep_goes_on(monkeypatch, error):
    real = speed.time_steps

    def fragile(config, *rest):
        if config.model.block_size > 16 and error is not None:
            raise error
        return real(config, *rest)

    monkeypatch.setattr(sweeps, "time_steps", fragile)
    if error is None:
        monkeypatch.setattr(sweeps, "memory_size", lambda device: 2 * activation_bytes(small().model, 4))
    found = run_sweeps(small(), Budget(8.0, Clock(monkeypatch)), "context", "depth")
    assert {one["value"]: one["why"] for one in found["context"]["left_out"]}[64].startswith(
        "out of memory" if error else "a pass takes about"
    )
    assert [point["value"] for point in found["context"]["points"]][:3] == [4, 8, 16]
    assert len(found["depth"]["points"]) > 2


def test_any_other_error_is_not_hidden(monkeypatch):
    def broken(*rest):
        raise RuntimeError("a mistake in here")

    monkeypatch.setattr(sweeps, "time_steps", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        run_sweeps(small(), Budget(60.0, Clock()), "batch")


def test_settings_that_hang_together_grow_together():
    config = small(model={"head_size": 8, "mlp_width": 24}, train={"batch_size": 4, "micro_batch_size": 2})
    factors = {one.name: one for one in sweeps.FACTORS}
    wide = factors["width"].at(config, 2.0).model
    assert (wide.n_embd, wide.head_size, wide.mlp_width) == (32, 16, 48)
    assert (
        factors["batch"].at(config, 2.0).train.micro_batch_size == 2
        and factors["batch"].at(config, 0.25).train.micro_batch_size is None
    )


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_every_kind_of_model_takes_a_real_step(name):
    config = small(model=NEIGHBOURS[name], train={"optimizer": "adamw"})
    steps = speed.time_steps(config, CPU, Budget(0.001), lambda line: None)
    assert steps.tokens == 4 * 16 and steps.passes == 1 and steps.seconds.median > 0
    assert operations(steps) == operations_per_token(config.model) * steps.tokens


def test_muons_products_are_seen_and_those_of_a_table_of_ngrams_are_not():
    """By hand, for 2 layers of width 16: 5 iterations, with small products for wide matrices only."""
    square, wide = 5 * 3 * 16**3, {c: 2 * 16 * 16 * c + (5 + 4 + 2 * 4) * 16**3 for c in (48, 64)}
    update = 2 * 2 * (square + wide[48] + 2 * wide[64])
    for ngrams in (1, 4):
        config = small(model={"ngrams": ngrams})
        steps = speed.time_steps(config, CPU, Budget(0.001), lambda line: None)
        assert operations(steps) == operations_per_token(config.model) * steps.tokens + update


def operations(steps):
    return sum(product.operations * times for product, times in steps.products.items())


def test_a_model_without_products_has_no_limit_but_a_time(monkeypatch):
    config = small(model={"n_layer": 0, "head": "none", "positions": "none"})
    (point, *_) = run_sweeps(config, Budget(10.0, Clock(monkeypatch)), "batch")["batch"]["points"]
    assert point["operations_per_token"] == point["limit_ms"] == point["share_of_limit"] == 0 and point["ms"] > 0
    assert point["limit_operations_per_second"] is None


def test_passes_are_counted():
    steps = speed.time_steps(
        small(train={"micro_batch_size": 1, "optimizer": "adamw"}), CPU, Budget(0.001), lambda line: None
    )
    assert steps.passes == 4
    assert operations(steps) == operations_per_token(small().model) * steps.tokens


def test_the_trainer_trains_while_it_is_timed():
    """The timed steps change the weights, as the steps of a run do."""
    seen = []
    real = setup.Trainer

    class Watched(real):
        def fit(self):
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            before = [parameter.clone() for parameter in parameters]
            end = super().fit()
            seen.append(any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)))
            return end

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "Trainer", Watched)
        speed.time_steps(small(), CPU, Budget(0.01), lambda line: None)
    assert seen == [True]


# --- the other groups -----------------------------------------------------------------------------


def test_a_made_up_text_has_its_size_and_is_the_same_again(tmp_path):
    for name in ("a", "b"):
        data.write_text(tmp_path / name, 50_000, seed=3)
    text = (tmp_path / "a").read_bytes()
    assert len(text) == 50_000 and text == (tmp_path / "b").read_bytes()
    words = text.decode().replace(",\n", " ").split()
    assert len(set(words)) > 500 and text.count(b"\n") > 500


def test_preparing_and_starting_are_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(data, "SIZES", (30_000, 60_000))
    monkeypatch.setattr(data, "LAUNCHES", {"python": ["-c", "pass"], "again": ["-c", "pass"]})
    result = benching.bench(small(), CPU, groups=("data", "start"), seconds=30.0, largest=False, say=lambda line: None)
    found = result["preparing"]
    assert [one["value"] for one in found["points"]] == [30_000, 60_000] and [
        one["tokens"] for one in found["points"]
    ] == [30_000, 60_000]
    for one in found["points"]:
        assert 0 < one["share_of_limit"] < 1.2 and one["peak_memory"] > 10e6
        assert one["seconds"] == pytest.approx(one["scan"] + one["learn"] + one["encode"])
    assert [one["name"] for one in result["start"]] == ["python", "again"] and "sweeps" not in result
    assert result["start"][0]["share_of_limit"] == 1.0


def test_a_text_that_cannot_be_prepared_is_named(monkeypatch):
    monkeypatch.setattr(data, "SIZES", (3_000,))
    config = small(data={"tokenizer": "nowhere/tokenizer.json"}).data
    (found,) = data.time_preparing(config, 1, Budget(10.0), False, lambda line: None)
    assert found["value"] == 3_000 and "nowhere" in found["why"]


# --- the command line -----------------------------------------------------------------------------


def test_bench_prints_tables_draws_both_pictures_and_keeps_everything(tmp_path, capsys):
    assert main(["bench", "--minutes", "0.03", "--only", "step", "--out", str(tmp_path / "out"), *WORDS]) == 0
    printed = capsys.readouterr()
    assert "a step's time grows as batch to the power" in printed.out and printed.out.strip().endswith("bench.png")
    assert "step against vocabulary" in printed.err and "left out: " in printed.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.png", "bench-dark.png", "bench.json"}
    kept = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [one["name"] for one in kept["sweeps"]] == ["batch", "context", "width", "depth", "vocabulary"] and not kept[
        "interrupted"
    ]
    for point in (point for one in kept["sweeps"] for point in one["points"]):
        assert (
            point["share_of_limit"] > 0
            and point["ms_best"] <= point["ms_quartiles"][0] <= point["ms"] <= point["ms_quartiles"][1]
        )
        assert point["operations_per_second"] == pytest.approx(
            point["operations_per_token"] * point["tokens"] / point["ms"] * 1000
        )
    assert {"machine", "limits", "seconds", "model", "command"} <= kept.keys()


def test_sampling_is_measured_as_a_user_samples(tmp_path, capsys):
    assert main(["bench", "--minutes", "0.05", "--only", "sampling", "--out", str(tmp_path), *WORDS]) == 0
    assert "sampling against context" in capsys.readouterr().err
    points = json.loads((tmp_path / "bench.json").read_text())["sampling"]["points"]
    assert {(point["value"], point["streams"]) for point in points} >= {(16, 1), (32, 1)}
    for point in points:
        assert 0 < point["share_of_limit"] < 1.5 and point["tokens_per_second"] * point["ms"] == pytest.approx(
            1000 * point["streams"]
        )


def test_json_is_one_object_and_a_model_that_does_not_write_is_named(tmp_path, capsys):
    words = [
        "bench",
        "--recipe",
        "encoder",
        "--minutes",
        "0.01",
        "--only",
        "sampling",
        "--json",
        "--out",
        str(tmp_path),
        *WORDS,
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == ["sampling: an encoder does not continue a text"] and found["sampling"]["points"] == []


def test_an_interrupt_keeps_what_has_been_measured(tmp_path, capsys, monkeypatch):
    real, times = speed.time_steps, []

    def interrupted(*words):
        times.append(1)
        if len(times) == 3:
            raise KeyboardInterrupt
        return real(*words)

    monkeypatch.setattr(sweeps, "time_steps", interrupted)
    assert main(["bench", "--minutes", "0.05", "--json", "--out", str(tmp_path), *WORDS]) == 130
    found = json.loads(capsys.readouterr().out)
    assert found["interrupted"] and len(found["sweeps"][0]["points"]) == 2 and "sampling" not in found
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_a_batch_that_would_take_too_long_is_made_smaller_and_said_to_be(tmp_path):
    config = small(train={"batch_size": 4096, "micro_batch_size": 64})
    said = []
    found = benching.bench(config, CPU, groups=("step",), seconds=0.5, largest=False, say=said.append)
    middle = found["sweeps"][0]["points"]
    assert "4,096 would take too long" in found["notes"][0] and max(point["value"] for point in middle) < 4096


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--only", "step,memory"], "'memory'"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "soon"], "soon"),
        (["--recipe", "tyni"], "tiny"),
        (["--model.n-embdd", "3"], "--model.n-embd"),
        (["--model.n-head", "5"], "does not divide"),
        (["--train.steps", "3"], "unknown"),
        (["--train.ranks", "2"], "unknown"),
        (["--out", __file__], "a folder is needed"),
    ],
)
def test_bad_input_ends_in_one_line(words, part, capsys):
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and part in printed.err


def test_a_model_beyond_all_memory_is_refused_in_one_line(capsys):
    assert main(["bench", "--only", "step", "--device", "cpu", "--model.n-embd", "1048576", "--model.n-head", "4"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_writing_reads_the_weights_once_and_the_cache_of_every_text():
    """Bytes by hand for the smallest GPT: matrices, norms, head, 16 keys and values, and the n-grams' first tokens."""
    from gptloom.studies.bench.speed import Writing, time_writing

    config = small(model={"block_size": 16, "vocab_size": 65})
    model = build(ModelConfig(**SMALL))  # does not change the global generator
    assert model is not None
    found = [one for one in time_writing(config, CPU, Budget(0.5), 1e12, lambda line: None) if isinstance(one, Writing)]
    by_streams = {one.streams: one.read for one in found if one.context == 16}
    weights = sum(
        parameter.numel()
        for name, parameter in build_model(config.model).named_parameters()
        if "token_table" not in name and "ngrams" not in name
    )
    cache = 2 * 2 * 17 * 16 + 2 * (
        config.model.ngrams - 1
    )  # layers, keys and values, positions with a spare one, width; ids of 8 bytes
    assert by_streams == {1: 4 * (weights + cache), 32: 4 * (weights + 32 * cache)}
