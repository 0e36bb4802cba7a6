"""`gptloom plan`: parameters, operations and memory against models and publications; consistent time and cost."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axes import every_config_and_recipe, model_config
from gptloom.checkpoint.state import state_tensors
from gptloom.cli.main import main
from gptloom.cli.plan import read_amount, show_amount
from gptloom.config.load import resolve
from gptloom.config.model import ModelConfig
from gptloom.devices import published_peak
from gptloom.errors import ConfigError
from gptloom.hardware import PEAKS, find_peak, peak_of
from gptloom.model.build import PARTS, build_model, cache_bytes, count_parts, operations_per_token, read_weights
from gptloom.model.loss import Objective
from gptloom.studies.plan.compute_optimal import FITS, compute_optimal
from gptloom.training import session
from gptloom.training.memory import activation_bytes, held_bytes
from gptloom.training.optim import make_optimizer
from gptloom.training.progress import Display
from gptloom.training.run import train
from model_helpers import CONFIGS, SMALL

GPT2 = ["plan", "--recipe", "gpt2", "--device", "a100", "--json"]


@pytest.fixture
def plan(capsys):
    """The JSON of a plan with these arguments."""

    def typed(*words, code=0):
        assert main([*GPT2, *map(str, words)]) == code
        printed = capsys.readouterr()
        return json.loads(printed.out) | {"said": printed.err}

    return typed


# --- the model ------------------------------------------------------------------------------------


@every_config_and_recipe
def test_the_parts_are_the_whole(name):
    config = model_config(name)
    parts = count_parts(config)
    assert parts.keys() <= set(PARTS) and "other" not in parts and min(parts.values(), default=1) > 0
    if name in CONFIGS:
        model = build_model(config)
        assert sum(parts.values()) == model.parameter_count()
        tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
        assert parts["tables"] == tables
    assert parts.get("ngrams", 0) == (config.ngram_rows * config.n_embd if config.ngrams > 1 else 0)


def test_gpt2_is_the_published_one(plan):
    found = plan("--tokens", "300B")
    assert found["parameters"] == 124_439_808 and found["non_embedding"] == 85_056_000
    assert found["parts"] == {
        "tables": 38_597_376 + 786_432,
        "attention": 28_348_416,
        "mlp": 56_669_184,
        "norms": 38_400,
    }
    # Brown et al. 2020, table D.1: 125M parameters, 300B tokens, 2.25E+20 operations, without attention's.
    assert 6 * found["parameters"] * 300e9 == pytest.approx(2.25e20, rel=0.01)
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert found["operations"]["weights"] == 6 * weights and found["operations"]["attention"] == 12 * 12 * 1024 * 768
    assert found["training"]["operations"] == 300e9 * operations_per_token(resolve("gpt2").model)
    assert found["training"]["operations"] == pytest.approx(2.25e20, rel=0.15)  # with attention at 1,024 positions


@pytest.mark.parametrize(
    ("optimizer", "ngrams", "rows"),
    [("adamw", 1, 1), ("muon", 1, 1), ("adamw", 3, 5), ("muon", 3, 5), ("muon", 3, 50_000)],
)
def test_training_holds_as_many_bytes_as_is_said(optimizer, ngrams, rows):
    """Weights, gradients and optimizer state after a step, without AdamW's step counter."""
    model = {**SMALL, "vocab_size": 1000, "block_size": 100, "ngrams": ngrams, "ngram_rows": rows}
    config = resolve("tiny", {"model": model, "train": {"batch_size": 4, "optimizer": optimizer}})
    objective = Objective(build_model(config.model))
    training = make_optimizer(objective.model, config.train)
    ids = torch.randint(1000, (4, 100))
    objective(ids, ids)[0].backward()
    training.step()
    held = held_bytes(config, on_cpu=True)
    assert held.weights == 4 * objective.model.parameter_count()
    assert held.optimizer == sum(size(t) for name, t in state_tensors(training).items() if not name.startswith("step/"))
    gradients = sum(map(size, (p.grad for p in objective.parameters())))
    assert gradients <= held.gradients == pytest.approx(gradients, rel=0.05 if rows > 5 else 0)


def size(tensor):
    parts = (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)
    return sum(part.numel() * part.element_size() for part in parts)


def test_what_is_remembered_of_a_text_is_what_the_model_allocates():
    config = ModelConfig(**SMALL, n_kv_head=2)
    state = build_model(config).init_cache(1, 10)
    assert cache_bytes(config, 10) == sum(t.numel() * t.element_size() for slot in state.layers for t in slot.values())
    assert (
        cache_bytes(config, 10) == 2 * 2 * (2 * 4) * 11 * 4
    )  # layers, keys and values, width, positions with a spare one, bytes


def test_a_tied_head_is_read_and_a_table_is_not():
    plain, tied = ModelConfig(**SMALL), ModelConfig(**SMALL, head="tied")
    assert (
        read_weights(plain)
        == read_weights(tied)
        == count_parts(plain)["head"] + sum(count_parts(plain)[p] for p in ("attention", "mlp", "norms"))
    )


def test_the_largest_pass_fits_and_no_larger_one(plan):
    memory = plan("--device", "rtx-3090", "--model.n-layer", "2", "--model.vocab-size", "5000")["memory"]
    config = resolve("gpt2", {"model": {"n_layer": 2, "vocab_size": 5000}}).model
    state = memory["weights"] + memory["gradients"] + memory["optimizer"]
    room = 0.9 * 24e9 - state
    fits, more = (
        activation_bytes(config, memory["largest_rows"] + step, dtype=torch.bfloat16, on_cpu=False) for step in (0, 3)
    )
    assert fits <= 1.01 * room < more and state == 16 * sum(count_parts(config).values())
    assert memory["in_all"] == state + memory["activations"]


# --- time and money -------------------------------------------------------------------------------


def test_time_is_operations_over_what_the_devices_reach(plan):
    one, eight = (
        plan("--tokens", "1B", "--mfu", "0.5"),
        plan("--tokens", "1B", "--mfu", "0.5", "--devices", "8", "--price-per-hour", "2"),
    )
    training = one["training"]
    assert training["seconds"] == pytest.approx(training["operations"] / (312e12 * 0.5))
    assert eight["training"]["seconds"] == pytest.approx(training["seconds"] / 8)
    assert (
        eight["training"]["device_hours"]
        == pytest.approx(training["device_hours"])
        == pytest.approx(training["seconds"] / 3600)
    )
    assert training["price"] is None and eight["training"]["price"] == pytest.approx(
        2 * eight["training"]["device_hours"]
    )
    assert training["tokens"] == 1e9 and training["steps"] == pytest.approx(1e9 / (512 * 1024))
    assert one["device"]["mfu_source"] == "given" and "Llama 3" in plan("--tokens", "1B")["device"]["mfu_source"]


def test_tokens_operations_hours_and_money_say_the_same(plan):
    price = ("--devices", "4", "--price-per-hour", "3")
    training = plan("--tokens", "10B", *price)["training"]
    hours, money = training["seconds"] / 3600, training["price"]
    for words in (("--flops", training["operations"]), ("--hours", hours), ("--budget", money)):
        again = plan(*words, *price)["training"]
        assert again == pytest.approx(training)


def test_without_a_goal_the_recipes_own_length_counts(plan):
    assert plan()["training"]["tokens"] == 20_000 * 512 * 1024
    assert plan("--train.minutes", "60")["training"]["seconds"] == pytest.approx(3600)
    epochs = plan("--train.epochs", "3")
    assert epochs["training"] is None and epochs["optimal"] is None and "give --tokens" in epochs["said"]
    assert plan("--train.epochs", "3", "--text-tokens", "2M")["training"]["tokens"] == 6e6


def test_a_text_that_is_too_short_is_warned_of(plan):
    assert plan("--tokens", "1B", "--text-tokens", "1B")["warnings"] == []
    twice = plan("--tokens", "1B", "--text-tokens", "500M")
    assert "read 2.0 times" in twice["warnings"][0] and "about as good as new" in twice["said"]
    assert "find more text" in plan("--tokens", "1B", "--text-tokens", "1M")["warnings"][0]


def test_what_does_not_fit_is_warned_of(plan):
    assert (
        "--train.micro-batch-size"
        in plan("--tokens", "1B", "--device", "rtx-4090", "--train.micro-batch-size", "512")["warnings"][0]
    )
    huge = plan("--device", "t4", "--model.n-embd", "12288", "--model.n-layer", "1")
    assert huge["memory"]["largest_rows"] == 0 and "not even one sequence" in huge["said"]


# --- what would be best ---------------------------------------------------------------------------


@given(st.floats(1e15, 1e26))
def test_the_optimum_spends_all_and_no_neighbour_is_better(operations):
    for best in compute_optimal(operations):
        assert 6 * best.parameters * best.tokens == pytest.approx(operations)
    for fit in FITS:
        parameters, tokens = fit.best(operations)
        assert fit.loss(parameters, tokens) < min(fit.loss(parameters * by, tokens / by) for by in (0.9, 1.1))


def test_the_published_optima_are_met():
    """Gopher's 5.76E+23 operations: 67B parameters by approach 1, 40B by 3 (Hoffmann et al. 2022, table A3)."""
    rule, third, refitted = compute_optimal(5.76e23)
    assert rule.parameters == pytest.approx(67e9, rel=0.05) and rule.tokens == pytest.approx(20 * rule.parameters)
    assert third.parameters == pytest.approx(40e9, rel=0.2)
    assert 15 < refitted.tokens / refitted.parameters < 30  # close to the rule's, unlike the first fit


def test_the_plan_tells_what_this_model_makes_of_the_operations(plan, capsys):
    found = plan("--tokens", "300B")["optimal"]
    assert [one["recipe"]["name"] for one in found["choices"]] in (["gpt2"] * 3, ["modern"] * 3)
    assert (
        len(found["predicted_loss"]) == 2
        and all(2 < one["loss"] < 4 for one in found["predicted_loss"])
        and "web text" in found["caveat"]
    )
    assert plan("--tokens", "1B", "--model.n-layer", "1", "--model.vocab-size", "65")["optimal"]["predicted_loss"] == []
    for words, part in (
        (["--tokens", "300B"], "a larger model would reach a lower loss"),
        (["--tokens", "10M"], "a smaller model would reach a lower loss"),
        (["--tokens", "2.5B"], "a good use of the operations"),
    ):
        assert main([*GPT2[:-1], *words]) == 0
        assert part in capsys.readouterr().out


# --- devices and amounts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Apple M1", "m1"),
        ("Apple M1 Pro", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("Quadro P1000", None),
    ],
)
def test_a_device_is_known_by_its_drivers_name(driver, name):
    found = peak_of(driver)
    assert (found and found.name) == name


def test_training_shows_its_share_of_a_published_rate(monkeypatch, tmp_path):
    """On a GPU of the table; the test pretends to have one."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    cuda = torch.device("cuda")
    assert published_peak(cuda, torch.bfloat16) is find_peak("h200")
    assert published_peak(cuda, torch.float32) is None is published_peak(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(session, "published_peak", lambda device, dtype: find_peak("h200"))
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 100)
    config = resolve(
        "tiny",
        {
            "device": "cpu",
            "model": {**SMALL, "ngram_rows": 50},
            "train": {"steps": 1, "minutes": None, "batch_size": 2},
        },
    )
    display = Display(lambda line: None)
    vocabulary = len(set("to be or not to be\n"))
    train([str(text)], config, run=tmp_path / "run", display=display)
    model = config.model.model_copy(update={"vocab_size": vocabulary})
    assert display.peak == pytest.approx(989e12 / operations_per_token(model))


def test_every_peak_has_a_source_and_one_name():
    assert len({peak.name for peak in PEAKS}) == len(PEAKS)
    for peak in PEAKS:
        assert peak.source and 1e12 < peak.rate < 1e16 and find_peak(peak.name.upper()) is peak
        assert peak.dtype in ("bfloat16", "float32") and (peak.memory is None or 1e10 <= peak.memory < 1e12)
    assert (
        find_peak("v100").dtype == find_peak("t4").dtype == "float32"
    )  # they have no bfloat16 units, so gptloom trains in float32 there


@pytest.mark.parametrize(
    ("text", "value"),
    [("300B", 300e9), ("1.5M", 1.5e6), ("1e21", 1e21), ("20k", 20e3), ("1_000,000", 1e6), ("2T", 2e12), (".5", 0.5)],
)
def test_amounts_are_read_as_people_write_them(text, value):
    assert read_amount(text, "--tokens") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "1e999", "nan", "inf", "3X", "1.2.3", "0x10", "1" * 400])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ConfigError, match="is not an amount"):
        read_amount(text, "--tokens")


@given(st.floats(1.0, 9e14))
def test_an_amount_that_is_shown_reads_as_nearly_the_same(value):
    assert read_amount(show_amount(value), "--tokens") == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--tokens", "many"], "300B"),
        (["--tokens", "1B", "--hours", "3"], "exclude one another"),
        (["--budget", "100"], "--price-per-hour"),
        (["--mfu", "40"], "--mfu 0.4"),
        (["--device", "h2000"], "did you mean h200"),
        (["--devices", "1.5"], "whole number"),
        (["--devices", "7", "--recipe", "gpt2", "--device", "h100"], "cannot share a batch of 512"),
        (["--recipe", "gpt3"], "gpt2"),
        (["--model.n-head", "5"], "does not divide"),
        (["--tokns", "1B"], "--tokens"),
    ],
)
def test_bad_input_ends_in_one_line(words, part, capsys):
    assert main(["plan", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and part in printed.err


def test_this_machine_is_measured(capsys):
    words = [
        "plan",
        "--device",
        "cpu",
        "--model.n-layer",
        "1",
        "--model.n-embd",
        "32",
        "--tokens",
        "1M",
        "--vocab",
        "300",
    ]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["device"]["name"] == "cpu"
        and "measured" in found["device"]["source"]
        and "measured on steps" in found["device"]["mfu_source"]
    )
    assert 0 < found["device"]["mfu"] < 1.5 and found["device"]["memory"] > 1e8
    assert found["training"]["seconds"] > 0 and found["parts"]["tables"] == 300 * 32
    assert main([*words, "--mfu", "0.3"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "model",
        "parts",
        "operations",
        "memory",
        "device     1 x cpu",
        "30% (given)",
        "tokens",
        "cost",
        "optimal",
    ):
        assert word in printed


@pytest.mark.parametrize("recipe", ["translate", "encoder", "lstm", "modern"])
def test_every_kind_of_model_has_a_plan(recipe, capsys):
    assert main(["plan", "--recipe", recipe, "--device", "h100", "--tokens", "1M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["activations"] > 0 and found["training"]["seconds"] > 0
    assert (found["memory"]["cache_per_sequence"] is None) == (recipe == "encoder")


def test_a_table_of_ngrams_multiplies_nothing_and_does_not_count_against_the_tokens(capsys):
    assert main(["plan", "--recipe", "tiny", "--device", "h100", "--tokens", "1M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    computing = found["parameters"] - found["parts"]["ngrams"]
    assert found["parts"]["ngrams"] == 32_768 * 128 and found["training"]["tokens_per_parameter"] == pytest.approx(
        1e6 / computing
    )
    assert found["operations"]["weights"] == 6 * (
        found["parts"]["attention"] + found["parts"]["mlp"] + found["parts"]["head"]
    )


def test_a_bigram_is_counted_too(capsys):
    words = ["--model.n-layer", "0", "--model.head", "none", "--model.positions", "none"]
    assert main(["plan", "--recipe", "tiny", *words, "--device", "h100", "--tokens", "1M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == {"tables": 65 * 65, "ngrams": 32_768 * 65} and found["operations"]["per_token"] == 0
    assert found["training"] is None and "gptloom bench measures it" in found["warnings"][0]
