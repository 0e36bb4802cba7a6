"""Resuming: what may be lost, how long a run is, and where its text is."""

from pathlib import Path

import pytest

import gptloom
from gptloom.checkpoint.format import checkpoint_names
from gptloom.config.load import nest, read_toml
from gptloom.errors import InputError, MachineError
from gptloom.generate.task import Score
from gptloom.training.run import resume
from gptloom.training.session import Session
from training_helpers import Quiet, checkpoint_bytes, metrics, small_run, write_text

BEST = "step 6: validation loss 3.5000 (5.049 bits per byte); the best is 1.0000, kept from before the run was resumed"


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def test_an_older_checkpoint_is_resumed_only_if_the_later_ones_may_go(text, tmp_path):
    small_run(text, tmp_path / "run", train={"eval_every": 4, "keep": 3})
    before = folder_bytes(tmp_path / "run")
    with pytest.raises(InputError, match=r"step-000004 is followed by step-000008, step-000012.*discard_later"):
        resume(tmp_path / "run", {"train": {"learning_rate": 1e-7}}, checkpoint="step-4", display=Quiet())
    assert folder_bytes(tmp_path / "run") == before
    assert gptloom.load(tmp_path / "run", which="step-8").model.config.n_embd == 16
    assert gptloom.load(tmp_path / "run" / "checkpoints" / "step-8").model.config.n_embd == 16


def folder_bytes(run):
    """The contents of a run folder, apart from its lock."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_resuming_from_an_older_checkpoint_keeps_the_best_until_there_is_a_better_one(text, tmp_path, monkeypatch):
    scores = iter([4.0, 3.0, 2.0, 1.0, 3.5, 2.4, 2.3, 0.5])
    monkeypatch.setattr(Session, "_evaluate", lambda self: Score(next(scores), 1, 1))
    run, said = tmp_path / "run", Quiet(stop_at=7)
    small_run(text, run, train={"eval_every": 4, "keep": 3})  # 12 steps: 3.0 at 4, 2.0 at 8, 1.0 at 12
    best = checkpoint_bytes(run, "best")
    settings = nest({"train.eval_every": 2, "train.keep": 1, "train.learning_rate": 1e-4})
    result = resume(run, settings, checkpoint="step-000004", discard_later=True, display=said)
    assert {
        "note: the next save deletes step-000008, step-000012",
        "note: the best checkpoint, step-000012, is kept as kept-000012 until a better one is saved",
        BEST,
    } <= set(said.lines)
    assert (run / "latest").read_text().strip() == "step-000007"
    assert checkpoint_names(run) == ["step-000007"]  # the later ones belong to the part that was given up
    assert (result.steps, result.best_step, result.val_loss) == (7, None, 1.0)
    assert Path(result.checkpoint).name == "kept-000012" and checkpoint_bytes(run, "best") == best
    assert resume(run, {}, display=Quiet(stop_at=9)).best_step is None and checkpoint_bytes(run, "best") == best
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, 10))  # what the part that was given up had logged is gone
    result = resume(run, {}, display=Quiet())  # 2.3 at 10, 0.5 at 12
    assert (result.best_step, result.val_loss) == (12, 0.5) and checkpoint_bytes(run, "best") != best
    assert not list((run / "checkpoints").glob("kept-*"))


def test_a_resume_that_is_killed_before_its_first_save_loses_neither_the_later_nor_the_best(text, tmp_path):
    class Killed(Quiet):
        def after_step(self, view):
            raise KeyboardInterrupt

    run = tmp_path / "run"
    small_run(text, run, train={"eval_every": 4, "keep": 3})
    before, best = checkpoint_names(run), checkpoint_bytes(run, "best")
    with pytest.raises(KeyboardInterrupt):
        resume(run, {}, checkpoint="step-4", discard_later=True, display=Killed())
    with pytest.raises(InputError, match="has finished its 12 steps"):
        resume(run, {}, display=Quiet())
    assert checkpoint_names(run) == before and checkpoint_bytes(run, "best") == best
    assert resume(run, nest({"train.steps": 14}), display=Quiet()).steps == 14


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"steps": 10}, r"has been trained for 12 steps, and its length cannot be 10; .* steps \+10"),
        ({"steps": 12}, r"has finished its 12 steps; train it for longer with steps \+12"),
        ({"epochs": 0.01}, r"has been trained for 12 steps, and its length cannot be 1; .* epochs \+0\.01"),
        ({"minutes": 1e-9}, r"has been trained for 0\.0. minutes, and its length cannot be less; .* minutes \+1e-09"),
    ],
)
def test_a_length_below_what_was_trained_is_refused_and_changes_nothing(length, message, text, tmp_path):
    small_run(text, tmp_path / "run")
    before = folder_bytes(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        resume(tmp_path / "run", {"train": length | {"keep": 7}}, display=Quiet())
    assert folder_bytes(tmp_path / "run") == before


def test_a_length_with_a_plus_is_added_to_what_was_trained(text, tmp_path):
    run = tmp_path / "run"
    small_run(text, run)
    said = Quiet()
    assert resume(run, nest({"train.steps": "+3"}), display=said).steps == 15
    assert "note: train.steps was 12 and is now 15" in said.lines
    said = Quiet(stop_at=20)
    resume(run, nest({"train.epochs": "+1"}), display=said)
    assert "note: train.steps was 15 and is now unset" in said.lines
    per_epoch = len(gptloom.load(run).tokenizer.encode(text.read_text())) * 0.9 / (4 * 16)
    (epochs,) = [float(line.split()[-1]) for line in said.lines if "train.epochs was unset and is now" in line]
    assert epochs == pytest.approx(1 + 15 / per_epoch, rel=0.02)
    seconds = resume(run, nest({"train.steps": "+1"}), display=Quiet()).seconds
    said = Quiet()
    result = resume(run, nest({"train.minutes": "+0.005"}), display=said)
    assert result.steps > 21 and result.seconds > seconds
    minutes = read_toml(run / "config.toml")["train"]["minutes"]
    assert minutes == pytest.approx(seconds / 60 + 0.005, abs=1e-4)


def test_a_run_that_failed_at_its_start_says_how_to_start_it(text, tmp_path, monkeypatch):
    def failing(*_arguments, **_settings):
        raise MachineError("the memory is used up", cure="make the batch smaller")

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(MachineError):
        patch.setattr(Session, "fit", failing)
        small_run(text, run)
    with pytest.raises(InputError, match=f"has no checkpoint yet; train it with `gptloom resume {run}`"):
        gptloom.load(run)
    assert resume(run, {}, display=Quiet()).steps == 12
    for name in ("empty", "bundle"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"is empty; give .*, or train into this one with `gptloom train TEXT --run"):
        gptloom.load(tmp_path / "empty")
    with pytest.raises(InputError, match="is empty"):
        resume(tmp_path / "empty", {}, display=Quiet())
    assert not list((tmp_path / "empty").iterdir())  # no lock
    gptloom.load(run).save(tmp_path / "bundle")
    with pytest.raises(InputError, match="is a bundle, which has no optimizer's state; give a run folder"):
        resume(tmp_path / "bundle", {}, display=Quiet())
    with pytest.raises(InputError, match=f"use `gptloom resume {run} --checkpoint step-000012`"):
        resume(run / "checkpoints" / "step-000012", {}, display=Quiet())
