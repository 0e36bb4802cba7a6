"""The law of numbers, through whole runs: what may change the losses and what must not."""

import itertools
import json
import math
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import gptloom
from axes import every_sampling_of_one_text
from gptloom.api import configure
from gptloom.config.load import nest
from gptloom.errors import ConfigError, DivergedError, GptloomWarning, InputError, MachineError
from gptloom.fast.train import TrainingPass
from gptloom.generate.task import Score
from gptloom.training.progress import Plan
from gptloom.training.run import resume, train
from gptloom.training.session import Session
from gptloom.training.setup import compile_mode
from training_helpers import SMALL, Quiet, checkpoint_bytes, losses, metrics, small_run, write_text


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def test_a_run_folder_holds_what_the_design_says(text, tmp_path):
    result = small_run(text, tmp_path / "run")
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.toml",
        "run.json",
        "tokenizer.json",
        "metrics.jsonl",
        "samples.jsonl",
        "loss.png",
        "checkpoints",
        "latest",
        "best",
        ".lock",
    }
    checkpoint = run / "checkpoints" / (run / "latest").read_text().strip()
    files = {path.name for path in checkpoint.iterdir()}
    assert files == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "optimizer.safetensors",
        "state.json",
        "SHA256SUMS",
    }
    assert (
        tomllib.loads((run / "config.toml").read_text())["model"]["vocab_size"]
        == gptloom.load(run).tokenizer.vocab_size
    )
    about = json.loads((run / "run.json").read_text())
    assert about["seed"] == 1337 and len(about["text_sha256"]) == 64 and about["versions"]["torch"] == version("torch")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (
        result.steps == 12
        and result.end == "finished"
        and result.val_loss == min(line["loss"] for line in metrics(run, "evaluation"))
    )
    evaluation = metrics(run, "evaluation")[0]
    assert evaluation["step"] == 0 and evaluation["loss"] == pytest.approx(
        math.log(gptloom.load(run).model.config.vocab_size), abs=0.1
    )
    assert evaluation["bpb"] == pytest.approx(evaluation["loss"] / math.log(2))  # one byte a character here


def test_the_same_seed_gives_the_same_bits_and_another_does_not(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        small_run(text, tmp_path / name, seed=seed, model={"dropout": 0.2})
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    assert checkpoint_bytes(tmp_path / "a") == checkpoint_bytes(tmp_path / "b")


def test_how_often_a_run_looks_at_itself_changes_no_training_loss(text, tmp_path):
    small_run(text, tmp_path / "rarely", model={"dropout": 0.2}, train={"sample_tokens": 0})
    often = {"eval_every": 1, "save_every": 3, "sample_tokens": 20, "eval_batch_size": 3}
    small_run(text, tmp_path / "often", model={"dropout": 0.2}, train=often)
    assert losses(tmp_path / "rarely") == losses(tmp_path / "often")
    assert checkpoint_bytes(tmp_path / "rarely") == checkpoint_bytes(tmp_path / "often")


@every_sampling_of_one_text
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(text, tmp_path, sampling):
    settings = {
        "model": {"dropout": 0.2},
        "train": {"steps": 20, "micro_batch_size": 2},
        "data": {"sampling": sampling},
    }
    small_run(text, tmp_path / "straight", **settings)
    data = {"sampling": sampling, "cache": str(tmp_path / "cache")}
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "dropout": 0.2}
    training = {"steps": 20, "micro_batch_size": 2, "batch_size": 4, "log_every": 1, "sample_tokens": 5}
    config = configure("tiny", {}, {"device": "cpu", "model": shape, "train": training, "data": data})
    stopped = train([str(text)], config, run=tmp_path / "parts", display=Quiet(stop_at=9))
    assert stopped.end == "stopped" and stopped.steps == 9
    resumed = resume(tmp_path / "parts", {}, display=Quiet())
    assert resumed.end == "finished" and resumed.steps == 20
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    assert checkpoint_bytes(tmp_path / "parts") == checkpoint_bytes(tmp_path / "straight")


def test_a_resume_may_be_made_longer_but_not_different(text, tmp_path):
    small_run(text, tmp_path / "run")
    with pytest.raises(InputError, match="has finished its 12 steps"):
        resume(tmp_path / "run", {}, display=Quiet())
    with pytest.raises(ConfigError, match="n_embd was 16"):  # before the length: nothing else would help
        resume(tmp_path / "run", nest({"model.n_embd": 32}), display=Quiet())
    said = Quiet()
    assert resume(tmp_path / "run", nest({"train.steps": 15}), display=said).steps == 15
    assert "note: train.steps was 12 and is now 15" in said.lines


def test_a_resume_refuses_a_text_that_has_changed(text, tmp_path):
    small_run(text, tmp_path / "run")
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    text.write_text(text.read_text().replace("fox", "cow"))
    with pytest.raises(InputError, match="text has changed"):
        resume(tmp_path / "run", nest({"train.steps": 15}), display=Quiet())


def test_a_validation_text_of_its_own_is_used_whole_and_watched(text, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("the fox sleeps until the dog is up\n" * 5)
    small_run(text, tmp_path / "run", data={"val_text": str(own)})
    bundle = gptloom.load(tmp_path / "run")
    assert bundle.score(own.read_text()).loss == pytest.approx(
        min(line["loss"] for line in metrics(tmp_path / "run", "evaluation")), abs=1e-6
    )
    own.write_text("the dog sleeps until the fox is up\n" * 5)
    with pytest.raises(InputError, match=r"own\.txt: the text has changed"):
        resume(tmp_path / "run", nest({"train.steps": 15}), display=Quiet())


def test_a_damaged_token_file_is_made_again(text, tmp_path):
    small_run(text, tmp_path / "run")
    (tokens,) = (tmp_path / "cache").rglob("*.safetensors")
    tokens.write_bytes(tokens.read_bytes()[:-5])
    assert resume(tmp_path / "run", nest({"train.steps": 14}), display=Quiet()).steps == 14


def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_is_used(text, tmp_path):
    small_run(text, tmp_path / "run", train={"eval_every": 4})
    newest = tmp_path / "run" / "checkpoints" / (tmp_path / "run" / "latest").read_text().strip()
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"optimizer\.safetensors is damaged.*intact checkpoint: .*step-000008"):
        resume(tmp_path / "run", {}, checkpoint="step-000012", display=Quiet())
    with pytest.warns(GptloomWarning, match=r"optimizer\.safetensors is damaged.*step-000008, the newest intact"):
        gptloom.load(tmp_path / "run", which="latest")
    before = checkpoint_bytes(tmp_path / "run")["model.safetensors"]
    with pytest.warns(GptloomWarning, match="step-000008"):
        assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12
    assert checkpoint_bytes(tmp_path / "run")["model.safetensors"] == before  # and whole again


def test_micro_batches_equal_one_batch(text, tmp_path):
    small_run(text, tmp_path / "whole", train={"batch_size": 6})
    small_run(text, tmp_path / "parts", train={"batch_size": 6, "micro_batch_size": 2})
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert parts == pytest.approx(whole, abs=2e-5)


def test_running_out_of_memory_halves_the_micro_batch_and_nothing_else(text, tmp_path, monkeypatch):
    small_run(text, tmp_path / "roomy", train={"batch_size": 8})
    seen = []

    def limited(rows):
        real = TrainingPass.__call__

        def check(self, batch, *given, **named):
            seen.append(len(batch[0]))
            if len(batch[0]) > rows:
                raise torch.OutOfMemoryError("no memory left")
            return real(self, batch, *given, **named)

        return check

    with monkeypatch.context() as patch:
        patch.setattr(TrainingPass, "__call__", limited(2))
        small_run(text, tmp_path / "tight", train={"batch_size": 8})
    assert {8, 4, 2} <= set(seen)
    assert losses(tmp_path / "tight") == pytest.approx(losses(tmp_path / "roomy"), abs=2e-5)
    with monkeypatch.context() as patch, pytest.raises(MachineError, match="even one sequence"):
        patch.setattr(TrainingPass, "__call__", limited(0))
        small_run(text, tmp_path / "none", train={"batch_size": 8})


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(text, tmp_path, monkeypatch):
    real, calls = TrainingPass.__call__, []

    def poisoned(self, *given, **named):
        nats = real(self, *given, **named)
        calls.append(1)
        return nats * math.nan if len(calls) > 8 else nats

    monkeypatch.setattr(TrainingPass, "__call__", poisoned)
    with pytest.raises(DivergedError, match="learning rate") as caught:
        small_run(text, tmp_path / "run")
    assert caught.value.code == 4
    assert all(torch.isfinite(p).all() for p in gptloom.load(tmp_path / "run", which="latest").model.parameters())


def test_a_time_budget_is_planned_and_followed_to_the_schedules_end(text, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) * 0.02)  # whatever else this machine does
    result = small_run(text, tmp_path / "run", train={"steps": None, "minutes": 0.03})
    state = json.loads(
        (Path(result.checkpoint).parent / (tmp_path / "run" / "latest").read_text().strip() / "state.json").read_text()
    )
    assert state["horizon"]["seconds"] == pytest.approx(1.8) and len(state["horizon"]["plans"]) > 5
    assert state["horizon"]["total"] == result.steps == state["progress"]["step"]
    rates = [line["lr"] for line in metrics(tmp_path / "run")]
    falling = result.steps - min(50, result.steps // 2)  # after the warm-up, in a straight line
    assert rates[-1] <= 1.5 * max(rates) / falling  # tiny's schedule falls to 0, and has come to its last step


def test_patience_ends_a_run_that_no_longer_gets_better(text, tmp_path, monkeypatch):
    scores = iter([1.0, 2.0, 2.5, 2.6, 2.7])  # the untrained model's is no candidate for the best
    monkeypatch.setattr(Session, "_evaluate", lambda self: Score(next(scores), 1, 1))
    result = small_run(text, tmp_path / "run", train={"steps": 100, "eval_every": 2, "patience": 2})
    assert (result.end, result.steps, result.best_step, result.val_loss) == ("patience", 6, 2, 2.0)
    assert Path(result.checkpoint).name == "step-000002"


def test_the_newest_checkpoints_and_the_best_are_kept(text, tmp_path, monkeypatch):
    scores = iter([3.0, 2.9, 1.0, 2.8, 2.7, 2.6])
    monkeypatch.setattr(Session, "_evaluate", lambda self: Score(next(scores), 1, 1))
    small_run(text, tmp_path / "run", train={"steps": 10, "eval_every": 2, "keep": 2})
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-000004",
        "step-000008",
        "step-000010",
    ]
    assert (tmp_path / "run" / "best").read_text().strip() == "step-000004"


@every_sampling_of_one_text
def test_epochs_are_counted_in_training_tokens(text, tmp_path, sampling):
    result = small_run(text, tmp_path / "run", train={"steps": None, "epochs": 2}, data={"sampling": sampling})
    n = len(text.read_text()) * 9 // 10 - 1
    in_an_epoch = n if sampling == "random" else (n + 1) // 16 * 16 - 16  # a grid of windows, wherever it starts
    assert result.steps == math.ceil(2 * in_an_epoch / (4 * 16))


@pytest.mark.parametrize("kind", ["documents", "documents of an encoder", "pairs", "a short text"])
def test_two_epochs_read_each_target_twice_and_the_plan_says_so(tmp_path, kind):
    """Documents, pairs and texts shorter than a window fill a batch with fewer targets than it has places."""
    lines = [f"{number % 7}a{'bc' * (number % 3)}" for number in range(200)]
    name, model, data, length = "text.jsonl", {}, {"sampling": "documents"}, {"epochs": 2}
    content = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    if kind == "pairs":
        model = {"architecture": "encoder-decoder", "ngrams": 1, "positions": "learned", "qk_norm": False}
        name, data, content = "text.tsv", {}, "".join(f"{line}\t{line[::-1]}\n" for line in lines)
    elif kind == "a short text":
        name, data, content, length = "text.txt", {}, "to be or not ", {"epochs": 2, "batch_size": 1}
    elif kind == "documents of an encoder":
        model = {"architecture": "encoder", "ngrams": 1}
    (tmp_path / name).write_text(content)
    said = Quiet()
    small = {"batch_size": 4, "sample_tokens": 0, "micro_batch_size": 1}
    settings = {"model": SMALL | model, "data": data | {"cache": str(tmp_path / "cache")}, "train": small | length}
    config = configure("tiny", {}, {"device": "cpu"} | settings)
    result = train([str(tmp_path / name)], config, run=tmp_path / "run", display=said)
    rows = 1 if kind == "a short text" else 180
    assert result.steps == math.ceil(2 * rows / (4 if rows > 1 else 1))
    (plan,) = [line for line in said.lines if line.startswith("training ")]
    assert ", 2.0 passes over the text" in plan
    if not kind.endswith("encoder"):  # whose targets are the masked tokens only
        told = int(plan.partition(": ")[2].partition(" ")[0].replace(",", ""))
        assert told == pytest.approx(result.tokens, rel=0.05)


def test_tokens_are_counted_once_each(text, tmp_path):
    assert small_run(text, tmp_path / "run").tokens == 12 * 4 * 16


def test_tensorboard_events_are_written_when_asked_for(text, tmp_path):
    small_run(text, tmp_path / "run", train={"tensorboard": True})
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_a_compiler_that_fails_costs_one_line(text, tmp_path, monkeypatch):
    def broken(_objective, **_options):
        raise RuntimeError("no compiler here")

    small_run(text, tmp_path / "eager")
    monkeypatch.setattr(torch, "compile", broken)
    config = configure(
        "tiny", {}, tomllib.loads((tmp_path / "eager" / "config.toml").read_text()) | nest({"train.compile": "on"})
    )
    values = config.model_copy(update={"train": config.train.model_copy(update={"steps": 12, "minutes": None})})
    said = Quiet()
    train([str(text)], values, run=tmp_path / "fallback", display=said)
    assert [line for line in said.lines if "torch.compile failed (no compiler here)" in line]


def test_an_occupied_run_folder_is_left_alone(text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        small_run(text, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_warnings_name_settings_that_cannot_be_meant(tmp_path):
    (tmp_path / "short.txt").write_text("To be, or not to be, that is the question.\n" * 7)
    said = Quiet()
    config = configure("tiny", {}, {"device": "cpu", "train": {"steps": 2}, "data": {"cache": str(tmp_path / "cache")}})
    train([str(tmp_path / "short.txt")], config, run=tmp_path / "run", display=said)
    warnings = " ".join(line for line in said.lines if line.startswith("warning"))
    assert "not longer than one context" in warnings and "very few" in warnings


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300", "sentencepiece:300"])
def test_every_tokenizer_trains_writes_and_resumes(text, tmp_path, tokenizer):
    result = small_run(text, tmp_path / "run", tokenizer=tokenizer)
    bundle = gptloom.load(result.run)
    assert bundle.generate("the quick", tokens=8).startswith("the quick")
    resume(tmp_path / "run", nest({"train.steps": 14}), display=Quiet())


def test_a_seventeen_hour_run_is_called_out():
    config = configure("tiny", {}, {"device": "cpu"})
    plan = Plan(
        config,
        10**6,
        10**6,
        10**5,
        steps=61_200,
        batch="8 x 128 tokens",
        tokens=10**7,
        epochs=10.0,
        per_step=1.0,
        device=torch.device("cpu"),
        dtype=torch.float32,
        memory=10**9,
    )
    assert any("17 h 00 min" in warning and "--minutes" in warning for warning in plan.warnings())
    assert not Plan(
        config,
        10**6,
        10**6,
        10**5,
        steps=100,
        batch="8 x 128 tokens",
        tokens=10**5,
        epochs=0.1,
        per_step=0.1,
        device=torch.device("cpu"),
        dtype=torch.float32,
        memory=None,
    ).warnings()


def test_bfloat16_follows_float32(text, tmp_path):
    shape = {"norm": "layernorm", "qk_norm": False}
    small_run(text, tmp_path / "single", model=shape)
    small_run(text, tmp_path / "half", model=shape, train={"precision": "bfloat16"})
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "single"), abs=0.02)
    assert losses(tmp_path / "half") != losses(tmp_path / "single")


def test_a_small_text_is_evaluated_after_its_first_epochs(text, tmp_path):
    """The best model of many epochs is an early one, and regular evaluations would come too late for it."""
    small_run(text, tmp_path / "many", train={"steps": 400, "eval_every": None}, data={"sampling": "shuffled"})
    small_run(text, tmp_path / "few", train={"steps": 300, "eval_every": None}, data={"sampling": "shuffled"})
    epoch = math.ceil(((len(text.read_text()) * 9 // 10) // 16 - 1) * 16 / (4 * 16))
    steps = {name: [line["step"] for line in metrics(tmp_path / name, "evaluation")] for name in ("many", "few")}
    assert 300 < 8 * epoch <= 400
    assert {epoch, 2 * epoch, 4 * epoch, 8 * epoch} <= set(steps["many"])
    assert steps["few"] == list(range(0, 301, 30))


def test_a_small_model_s_passes_become_one_graph_on_a_gpu():
    assert compile_mode(10_000_000, torch.device("cuda")) == "reduce-overhead"
    assert compile_mode(124_000_000, torch.device("cuda")) is None
    assert compile_mode(10_000_000, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("shape", "steps", "warned"),
    [({}, 2_000, True), ({}, 400, False), ({"ngrams": 1}, 2_000, False), ({"ngram_dropout": 0.5}, 2_000, False)],
)
def test_a_text_that_is_read_often_is_learned_by_heart_through_its_n_grams(shape, steps, warned):
    config = configure("tiny", {}, {"device": "cpu", "model": shape})
    plan = Plan(
        config,
        10**6,
        200_000,
        10**5,
        steps=steps,
        batch="8 x 128 tokens",
        tokens=steps * 1024,
        epochs=steps * 1024 / 200_000,
        per_step=0.01,
        device=torch.device("cpu"),
        dtype=torch.float32,
        memory=None,
    )
    assert any("--model.ngram-dropout" in warning for warning in plan.warnings()) == warned


def test_a_setting_is_found_by_its_own_name(tmp_path):
    words = {"steps": 2, "lr": 2e-3, "n_layer": 1, "heads": 1, "width": 8, "block_size": 8, "batch": 2}
    data = {"cache": str(tmp_path / "cache")}
    result = gptloom.train(write_text(tmp_path), run=tmp_path / "run", device="cpu", recipe="tiny", data=data, **words)
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert result.steps == 2 and config["train"]["learning_rate"] == 2e-3 and config["model"]["n_embd"] == 8
    with pytest.raises(ConfigError, match=r"train.learning_rate: is given twice"):
        gptloom.train("shakespeare", lr=1e-3, train={"learning_rate": 1e-3})
    with pytest.raises(ConfigError, match="lrr: unknown setting"):
        gptloom.train("shakespeare", lrr=1e-3)


def test_a_validation_loss_that_is_not_finite_is_never_the_best(text, tmp_path, monkeypatch):
    scores = iter([3.0, math.nan, math.inf, 2.0, math.nan])
    monkeypatch.setattr(Session, "_evaluate", lambda self: Score(next(scores), 1, 1))
    said = Quiet()
    config = configure("tiny", {}, {"device": "cpu", "model": SMALL, "data": {"cache": str(tmp_path / "cache")}})
    settings = {"steps": 8, "minutes": None, "eval_every": 2, "sample_tokens": 0, "keep": 1}
    config = config.model_copy(update={"train": config.train.model_copy(update=settings)})
    result = train([str(text)], config, run=tmp_path / "run", display=said)
    assert (result.best_step, result.val_loss, result.last_val_loss) == (6, 2.0, None)
    assert Path(result.checkpoint).name == "step-000006"
    assert "step 2: validation loss nan; none was finite so far" in said.lines
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert [line["loss"] for line in strict if line["event"] == "evaluation"] == [3.0, None, None, 2.0, None]
    # Weights without a finite loss replace no checkpoint but the last.
    assert [line["step"] for line in strict if line["event"] == "save"] == [0, 6, 8]


def test_a_run_whose_evaluations_are_all_infinite_has_no_best_loss(text, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "_evaluate", lambda self: Score(math.nan, 1, 1))
    result = small_run(text, tmp_path / "run", train={"steps": 4, "eval_every": 2})
    assert (result.best_step, result.val_loss, result.val_bpb) == (None, None, None)
    assert not (tmp_path / "run" / "best").exists()


def test_texts_come_in_lists_an_optimizer_by_name_and_quiet_is_quiet(tmp_path, capsys):
    (tmp_path / "b.txt").write_text("and one more line about foxes and dogs\n" * 20)
    texts = [str(write_text(tmp_path)), tmp_path / "b.txt"]
    small = {"recipe": "tiny", "device": "cpu", "steps": 3, "cache": str(tmp_path / "cache"), "batch_size": 4}
    result = gptloom.train(texts, run=tmp_path / "list", optimizer="torch:SGD", quiet=True, **small)
    assert capsys.readouterr() == ("", "") and len(repr(result)) < 300 and str(tmp_path / "list") in repr(result)
    assert tomllib.loads((tmp_path / "list" / "config.toml").read_text())["train"]["optimizer"] == "torch:SGD"
    gptloom.train(*texts, run=tmp_path / "words", optimizer="torch:SGD", **small)
    assert "3 steps" in capsys.readouterr().err
    assert checkpoint_bytes(tmp_path / "list") == checkpoint_bytes(tmp_path / "words")
