"""Checkpoints: after any interruption, `resume` gives the same bits as an uninterrupted run."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gptloom
from gptloom.api import configure
from gptloom.checkpoint import manager
from gptloom.checkpoint import state as checkpoint
from gptloom.checkpoint.format import checkpoint_names, find_bundle
from gptloom.checkpoint.state import Horizon
from gptloom.config.load import nest
from gptloom.distributed import launch
from gptloom.errors import ConfigError, DivergedError, GptloomWarning, InputError, MachineError
from gptloom.files import Log
from gptloom.model.loss import Objective
from gptloom.training import session
from gptloom.training.callbacks import Spikes, View
from gptloom.training.run import resume, train
from gptloom.training.run_dir import only_writer
from gptloom.training.session import Session
from gptloom.training.trainer import Trainer
from training_helpers import SMALL, Quiet, checkpoint_bytes, losses, metrics, write_text

TRAIN = {"steps": 12, "batch_size": 4, "log_every": 1, "sample_tokens": 5, "eval_every": 3}


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(session, "draw_history", lambda *_: None)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    begin(write_text(folder), folder / "run")
    return folder / "run"


def begin(text, run, display=None, *, model=None, train_settings=None, **settings):
    """Train as `small_run` does, with the test's display."""
    changes = {
        "device": "cpu",
        "model": SMALL | {"dropout": 0.2} | (model or {}),
        "train": TRAIN | (train_settings or {}),
    }
    changes |= {"data": {"cache": str(run.parent / "cache")}} | settings
    return train([str(text)], configure("tiny", {}, changes), run=run, display=display or Quiet())


class At(Quiet):
    """Calls a function after a step, as if another process did it."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act = step, act

    def after_step(self, view):
        if view.step == self.step:
            self.act()
        return super().after_step(view)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 5), (signal.SIGINT, 6), (signal.SIGTERM, 12)]
)
def test_a_signal_stops_after_the_step_and_resume_gives_the_same_bits(text, tmp_path, straight, number, step):
    """An evaluation is due at step 6, and step 12 is the last."""
    stopped = begin(text, tmp_path / "run", At(step, lambda: send(number)))
    assert (stopped.end, stopped.steps, stopped.signal) == ("stopped", step, number)
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    done = resume(tmp_path / "run", {}, display=Quiet())
    assert (done.end, done.steps, done.signal) == ("finished", 12, None)
    for event in ("train", "evaluation"):
        lines = [
            [{k: v for k, v in line.items() if k != "seconds"} for line in metrics(run, event)]
            for run in (tmp_path / "run", straight)
        ]
        assert lines[0] == lines[1]
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(straight)
    assert checkpoint_bytes(tmp_path / "run", "best") == checkpoint_bytes(straight, "best")


@pytest.mark.parametrize("place", ["evaluation", "passes", "sample"])
def test_a_signal_gives_up_what_can_be_done_again(text, tmp_path, monkeypatch, place):
    settings = {"batch_size": 8, "micro_batch_size": 2, "eval_batch_size": 2}
    begin(text, tmp_path / "straight", train_settings=settings)
    forward, calls = Objective.forward, []
    windows = math.ceil(0.1 * len(text.read_text()) / 16)
    before = 4 + math.ceil(windows / 2)  # rehearsals, and the evaluation of the untrained model
    fatal = {"evaluation": before + 3 * 4 + 2, "passes": before + 4 + 2}.get(place)

    def counted(self, *batch):
        calls.append(self.training)
        if len(calls) == fatal:
            assert self.training == (place == "passes")
            send(signal.SIGTERM)
        return forward(self, *batch)

    monkeypatch.setattr(Objective, "forward", counted)
    if place == "sample":
        original = Session._sample
        monkeypatch.setattr(Session, "_sample", lambda self: (send(signal.SIGTERM), original(self))[1])
    stopped = begin(text, tmp_path / "run", train_settings=settings)
    assert stopped.end == "stopped" and stopped.steps == {"evaluation": 3, "passes": 1, "sample": 0}[place]
    monkeypatch.undo()
    assert resume(tmp_path / "run", {}, display=Quiet()).end == "finished"
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert [line["loss"] for line in metrics(tmp_path / "run", "evaluation")] == [
        line["loss"] for line in metrics(tmp_path / "straight", "evaluation")
    ]
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(tmp_path / "straight")


def test_a_second_interrupt_ends_at_once_and_harms_nothing(text, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        begin(text, tmp_path / "run", At(5, lambda: (send(signal.SIGINT), send(signal.SIGINT))))
    assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12


def test_a_run_that_was_interrupted_at_once_leaves_no_thread_that_writes(text, tmp_path, monkeypatch):
    slow_save(monkeypatch, lambda step: step == 3)
    with pytest.raises(KeyboardInterrupt):
        begin(text, tmp_path / "run", At(5, lambda: (send(signal.SIGINT), send(signal.SIGINT))))
    assert not [thread for thread in threading.enumerate() if thread.name == "saving"]
    assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12


def test_many_terminations_are_one(text, tmp_path):
    stopped = begin(text, tmp_path / "run", At(5, lambda: [send(signal.SIGTERM) for _ in range(20)]))
    assert (stopped.end, stopped.steps) == ("stopped", 5)


def test_a_user_signal_saves_and_training_goes_on(text, tmp_path, straight):
    result = begin(text, tmp_path / "run", At(4, lambda: send(signal.SIGUSR1)), train_settings={"keep": 10})
    assert result.end == "finished" and "step-000005" in checkpoint_names(tmp_path / "run")
    assert losses(tmp_path / "run") == losses(straight)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(text, tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Session, "fit", lambda self, *_: 1 / 0)
        begin(text, tmp_path / "run")
    assert not checkpoint_names(tmp_path / "run")
    assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(straight)


def test_time_budgets_resume_exactly_given_their_plans(text, tmp_path, monkeypatch):
    """Decisions by the clock are in the plans; a run with the same plans has the same bits."""
    begin(
        text,
        tmp_path / "run",
        At(40, lambda: send(signal.SIGTERM)),
        train_settings={"steps": None, "minutes": 0.05, "eval_every": 10_000},
    )
    resume(tmp_path / "run", {}, display=Quiet())
    state = json.loads((find_bundle(tmp_path / "run", "latest") / "state.json").read_text())
    totals = dict(state["horizon"]["plans"])
    monkeypatch.setattr(Horizon, "due", lambda _self, step: step in totals)
    monkeypatch.setattr(Horizon, "plan", lambda self, step, *_: setattr(self, "total", totals[step]))
    begin(text, tmp_path / "straight", train_settings={"steps": None, "minutes": 0.05, "eval_every": 10_000})
    ours, straight = losses(tmp_path / "run"), losses(tmp_path / "straight")
    assert ours == straight and len(ours) == state["progress"]["step"] > 40


def test_an_edited_configuration_is_reported_or_refused(text, tmp_path):
    begin(text, tmp_path / "run", At(5, lambda: send(signal.SIGTERM)))
    path = tmp_path / "run" / "config.toml"
    written = path.read_text()
    path.write_text(written.replace("n_embd = 16", "n_embd = 32"))
    with pytest.raises(ConfigError, match="n_embd was 16 when the run began and cannot become 32"):
        resume(tmp_path / "run", {}, display=Quiet())
    path.write_text(written)
    with pytest.raises(ConfigError, match=r"train\.optimizer was muon when the run began and cannot become adamw"):
        resume(tmp_path / "run", {"train": {"optimizer": "adamw"}}, display=Quiet())
    path.write_text(written.replace("beta1 = 0.9", "beta1 = 0.8"))
    said = Quiet(stop_at=7)
    resume(tmp_path / "run", {}, display=said)
    assert "note: train.beta1 was 0.9 and is now 0.8" in said.lines
    path.write_text(written[: written.index("n_embd") + 8])
    with pytest.warns(GptloomWarning, match=r"config\.toml"):
        assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12


def test_a_damaged_pointer_is_passed_over(text, tmp_path):
    begin(text, tmp_path / "run")
    newest = checkpoint_names(tmp_path / "run")[-1]
    for content in ("", "../../etc", "step-9", "\xff\xfe"):
        for pointer in ("best", "latest"):
            (tmp_path / "run" / pointer).write_bytes(content.encode("latin-1"))
        with pytest.warns(GptloomWarning, match="does not name a checkpoint"):
            assert find_bundle(tmp_path / "run", "best").name == newest
        assert find_bundle(tmp_path / "run", "latest").name == newest


def test_pointers_that_a_crash_kept_back_are_made_up_for(text, tmp_path):
    """Also if no steps are left, for other programs read them."""
    begin(text, tmp_path / "run")
    newest, best = ((tmp_path / "run" / name).read_text() for name in ("latest", "best"))
    (tmp_path / "run" / "latest").write_text("step-000009\n")
    (tmp_path / "run" / "best").unlink()
    with pytest.raises(InputError, match="has finished"):
        resume(tmp_path / "run", {}, display=Quiet())
    assert ((tmp_path / "run" / "latest").read_text(), (tmp_path / "run" / "best").read_text()) == (newest, best)


def test_what_an_older_checkpoint_gives_up_comes_back_if_nothing_new_is_saved(text, tmp_path, monkeypatch):
    begin(text, tmp_path / "run", train_settings={"keep": 9})
    names = checkpoint_names(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Session, "fit", lambda self, *_: 1 / 0)
        resume(tmp_path / "run", {}, checkpoint="step-000006", discard_later=True, display=Quiet())
    assert checkpoint_names(tmp_path / "run")[-1] == "step-000006"
    with pytest.raises(InputError, match="has finished"):
        resume(tmp_path / "run", {}, display=Quiet())
    assert checkpoint_names(tmp_path / "run") == names


def test_what_an_older_checkpoint_gave_up_stays_away_once_something_new_is_saved(text, tmp_path, monkeypatch):
    """Killed after the new checkpoint and before the old ones were removed."""
    begin(text, tmp_path / "run", train_settings={"keep": 9})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "forget", lambda _folder: None)
        resume(
            tmp_path / "run",
            {},
            checkpoint="step-000003",
            discard_later=True,
            display=At(4, lambda: send(signal.SIGTERM)),
        )
    said = Quiet()
    resume(tmp_path / "run", {}, display=said)
    assert f"continuing {tmp_path / 'run'} from step 4" in said.lines
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_an_evaluation_that_is_made_up_for_is_logged_once(text, tmp_path, straight, monkeypatch):
    """Killed after the line of a due evaluation and before the checkpoint that records it."""
    begin(text, tmp_path / "run", At(6, lambda: send(signal.SIGTERM)))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(manager.CheckpointManager, "save", lambda self, improved: 1 / 0)
        resume(tmp_path / "run", {}, display=Quiet())
    resume(tmp_path / "run", {}, display=Quiet())
    for name in ("metrics.jsonl", "samples.jsonl"):
        steps = [
            [json.loads(line)["step"] for line in (run / name).read_text().splitlines() if '"save"' not in line]
            for run in (tmp_path / "run", straight)
        ]
        assert steps[0] == steps[1]


def test_a_rank_that_dies_at_its_start_ends_the_run(text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        launch,
        "_start",
        lambda rank, words: subprocess.Popen([sys.executable, "-c", "raise SystemExit(9)"], stdin=subprocess.PIPE),
    )
    with pytest.raises(MachineError, match="exit code 9"):
        begin(text, tmp_path / "run", train_settings={"ranks": 2})


def test_one_run_has_one_writer_and_a_dead_one_holds_nothing(text, tmp_path):
    begin(text, tmp_path / "run", At(5, lambda: send(signal.SIGTERM)))
    code = """
import sys, time
from pathlib import Path
from gptloom.training.callbacks import View
from gptloom.training.run_dir import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another process is training this run"):
        resume(tmp_path / "run", {}, display=Quiet())
    holder.kill()
    holder.communicate()
    with (
        only_writer(tmp_path / "run"),
        pytest.raises(InputError, match="another process"),
        only_writer(tmp_path / "run"),
    ):
        pass
    assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12


def full_disk(monkeypatch, is_full):
    """Let the saves of some steps fail as on a full disk; by step, for saves are announced after they are written."""
    save = checkpoint.write_tensors

    def failing(content, path):
        if is_full(int(path.parent.name.removeprefix(".writing-"))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(content, path)

    monkeypatch.setattr(checkpoint, "write_tensors", failing)


def slow_save(monkeypatch, is_slow):
    """Let the saves of some steps take a while, but never longer than the trainer is willing to go on without them."""
    save = checkpoint.write_tensors

    def slow(content, path):
        if is_slow(int(path.parent.name.removeprefix(".writing-"))):
            time.sleep(0.5)
        return save(content, path)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    monkeypatch.setattr(manager.CheckpointManager, "_is_slow", lambda self: False)


def test_a_slow_save_is_logged_though_the_next_one_fails(text, tmp_path, monkeypatch):
    slow_save(monkeypatch, lambda step: step == 3)
    full_disk(monkeypatch, lambda step: step > 3)
    with pytest.raises(MachineError, match="No space left"):
        begin(text, tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run", "save")] == [0, 3]


def test_a_save_that_fails_ends_the_run_with_the_last_good_checkpoint(text, tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(MachineError, match="No space left") as caught:
        full_disk(patch, lambda step: step > 3)
        begin(text, tmp_path / "run")
    assert caught.value.code == 3
    assert [line["step"] for line in metrics(tmp_path / "run", "save")] == [0, 3]  # no other checkpoint is announced
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing-*"))  # the space is freed
    assert resume(tmp_path / "run", {}, display=Quiet()).steps == 12
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(straight)


def test_a_run_may_go_on_without_a_save_but_not_end_without_one(text, tmp_path, monkeypatch):
    patience = {"on_save_failure": "continue"}
    with monkeypatch.context() as patch:
        full_disk(patch, lambda step: step == 6)
        said = Quiet()
        assert begin(text, tmp_path / "run", said, train_settings=patience).end == "finished"
    assert [
        line for line in said.lines if "No space left" in line and "the last good checkpoint is step-000003" in line
    ]
    assert [line["step"] for line in metrics(tmp_path / "run", "save")] == [0, 3, 9, 12]
    with monkeypatch.context() as patch, pytest.raises(MachineError, match="No space left"):
        full_disk(patch, lambda step: step == 12)
        begin(text, tmp_path / "other", train_settings=patience)


def test_saving_does_not_hold_training_up(text, tmp_path, straight, monkeypatch):
    """A slow save ends only when the run waits for it; steps continue meanwhile, and the old step is saved."""
    entered, release, steps_meanwhile = threading.Event(), threading.Event(), []
    write = checkpoint.write_tensors

    def slow(*arguments, **named):
        entered.set()
        assert release.wait(60)
        return write(*arguments, **named)

    class Watch(Quiet):
        def after_step(self, view):
            if entered.is_set() and not release.is_set():
                steps_meanwhile.append(view.step)
                if len(steps_meanwhile) == 2:
                    release.set()
            return super().after_step(view)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    monkeypatch.setattr(manager.CheckpointManager, "_is_slow", lambda self: False)
    begin(text, tmp_path / "run", Watch())
    assert steps_meanwhile == [1, 2]
    monkeypatch.undo()
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(straight)


def test_training_waits_where_saves_come_faster_than_they_are_written(text, tmp_path, monkeypatch):
    """Then a kill costs one interval, as with synchronous saves."""
    write, behind, clock = checkpoint.write_tensors, [], [0.0]

    def slow(*arguments, **named):
        time.sleep(0.1)
        clock[0] += 1.0  # only writing takes time, however busy the machine is
        return write(*arguments, **named)

    class Watch(Quiet):
        def after_step(self, view):
            behind.append(view.step - int(checkpoint_names(tmp_path / "run")[-1].removeprefix("step-")))
            return super().after_step(view)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    monkeypatch.setattr(manager, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    begin(text, tmp_path / "run", Watch(), train_settings={"save_every": 1, "eval_every": 100})
    assert max(behind) == 1


def test_pruning_waits_for_a_whole_checkpoint(text, tmp_path, monkeypatch):
    begin(text, tmp_path / "run", At(5, lambda: send(signal.SIGTERM)), train_settings={"keep": 1})
    kept = checkpoint_names(tmp_path / "run")
    monkeypatch.setattr(
        checkpoint, "publish", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    with pytest.raises(MachineError, match="Input/output error"):
        resume(tmp_path / "run", {}, display=Quiet())
    assert checkpoint_names(tmp_path / "run") == kept


def test_a_log_keeps_the_lines_that_the_disk_did_not_take(tmp_path, monkeypatch):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space"):
            log.append({"step": 2})
    log.append({"step": 3})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 3]
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.keep(lambda line: line["step"] <= 2)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def poison(monkeypatch, is_bad, value=math.nan):
    """Make the training loss of some steps infinite; `is_bad` is called once per step with the finished steps."""
    forward, seen = Objective.forward, {"step": -4}  # rehearsals come first

    def poisoned(self, *batch):
        nats, count = forward(self, *batch)
        if self.training:
            seen["step"] += 1
            if is_bad(seen["step"] - 1):
                return nats * value, count
        return nats, count

    monkeypatch.setattr(Objective, "forward", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_caught_before_the_update_and_can_be_replayed(
    text, tmp_path, straight, monkeypatch, value
):
    with monkeypatch.context() as patch:
        poison(patch, lambda step: step == 7, value)
        with pytest.raises(
            DivergedError, match=r"step 8: .*learning rate .*diverged/checkpoints/step-000007"
        ) as caught:
            begin(text, tmp_path / "run")
    assert caught.value.code == 4
    kept = find_bundle(tmp_path / "run", "diverged")
    assert {path.name for path in kept.iterdir()} >= {
        "batch.safetensors",
        "divergence.json",
        "model.safetensors",
        "state.json",
    }
    assert json.loads((kept / "divergence.json").read_text())["action"] == "stop"
    assert all(torch.isfinite(p).all() for p in gptloom.load(kept).model.parameters())
    (line,) = metrics(tmp_path / "run", "divergence")
    assert line["at"] == 8 and line["loss"] == str(value)
    # The replay repeats the step, here without the fault, so that it equals the uninterrupted run's.
    assert resume(tmp_path / "run", {}, checkpoint="diverged", display=Quiet()).steps == 12
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(straight)


def test_a_gradient_that_is_not_finite_is_caught_though_the_loss_is(text, tmp_path, monkeypatch):
    forward, calls = Objective.forward, []

    def exploding(self, *batch):
        nats, count = forward(self, *batch)
        calls.append(self.training)
        if sum(calls) > 8 and self.training:
            nats.register_hook(lambda gradient: gradient * math.inf)
        return nats, count

    monkeypatch.setattr(Objective, "forward", exploding)
    with pytest.raises(DivergedError, match="gradient's norm"):
        begin(text, tmp_path / "run", train_settings={"grad_clip": 0.0})
    (line,) = metrics(tmp_path / "run", "divergence")
    assert math.isfinite(float(line["loss"])) and not math.isfinite(float(line["gradient_norm"]))


def test_skipping_passes_over_the_batch_and_ends_if_that_does_not_help(text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, lambda step: step in (4, 5))
        result = begin(text, tmp_path / "run", train_settings={"on_divergence": "skip"})
    assert result.end == "finished" and result.tokens == 10 * 4 * 16
    assert [line["at"] for line in metrics(tmp_path / "run", "divergence")] == [5, 6]
    poison(monkeypatch, lambda step: step >= 1)
    with pytest.raises(DivergedError, match="step 12"):
        begin(text, tmp_path / "hopeless", train_settings={"on_divergence": "skip", "steps": 50})


def test_rolling_back_goes_on_from_the_last_checkpoint_at_half_the_rate(text, tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, lambda call: call == 7)  # the eighth step, once
        result = begin(text, tmp_path / "run", train_settings={"on_divergence": "rollback"})
    assert result.end == "finished" and result.steps == 12
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 13))
    usual = {line["step"]: line["lr"] for line in metrics(straight)}
    assert [line["lr"] / usual[line["step"]] for line in lines] == [1.0] * 6 + [0.5] * 6
    assert losses(tmp_path / "run")[7] == losses(straight)[7]  # the same batch and weights again
    poison(monkeypatch, lambda call: call >= 7)
    with pytest.raises(DivergedError):
        begin(text, tmp_path / "hopeless", train_settings={"on_divergence": "rollback"})
    assert [line["action"] for line in metrics(tmp_path / "hopeless", "divergence")] == [
        "rollback",
        "rollback",
        "rollback",
        "stop",
    ]


EXPLODING = {"learning_rate": 1e22, "optimizer": "adamw", "eval_every": 1, "on_divergence": "rollback"}


def test_a_rollback_leaves_the_checkpoint_that_diverges_and_offers_another_cure(text, tmp_path):
    """The first update makes the weights so large that no gradient is finite: its checkpoint is of no use."""
    with pytest.raises(DivergedError) as caught:
        begin(text, tmp_path / "run", train_settings=EXPLODING | {"steps": 6}, model={"norm": "none"})
    assert "try a tenth of --train.learning-rate" in caught.value.cure and "on-divergence" not in caught.value.cure
    lines = metrics(tmp_path / "run", "divergence")
    assert [line["action"] for line in lines] == ["rollback"] * 3 + ["stop"]
    assert [line["step"] for line in lines] == [0, 0, 0, 1]  # the step that each returned to


def test_a_rollback_passes_over_weights_that_are_not_finite(text, tmp_path, monkeypatch):
    real, done = Trainer.step, []

    def ruined(self):
        forward = real(self)
        if self.progress.step == 5 and not done:
            done.append(1)
            with torch.no_grad():
                next(iter(self.gradients.passes.objective.parameters())).fill_(math.nan)
        return forward

    monkeypatch.setattr(Trainer, "step", ruined)
    settings = {"on_divergence": "rollback", "eval_every": 4, "save_every": 1, "steps": 9}
    result = begin(text, tmp_path / "run", train_settings=settings)
    assert result.end == "finished" and result.steps == 9
    assert [line["step"] for line in metrics(tmp_path / "run", "divergence")] == [4]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 10))
    names = checkpoint_names(tmp_path / "run")
    assert (tmp_path / "run" / "latest").read_text().strip() == names[-1] == "step-000009"


def test_a_loss_that_jumps_is_noticed_once():
    said = []
    spikes = Spikes(said.append)
    for step in range(1, 300):
        loss = 9.0 if step in (150, 151) else 3.0 + 0.05 * math.sin(step)
        spikes.after_step(View(step, 300, 0.1, step, 0.0, loss, False, None, None))
    assert len(said) == 1 and "jumped to 9.000 at step 150" in said[0]


def test_two_ranks_train_as_one_and_resume_exactly(text, tmp_path):
    """No dropout, for every rank draws its own."""
    settings = {"model": {"dropout": 0.0}}
    begin(text, tmp_path / "one", **settings)
    begin(text, tmp_path / "two", train_settings={"ranks": 2}, **settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    begin(text, tmp_path / "parts", At(5, lambda: send(signal.SIGTERM)), train_settings={"ranks": 2}, **settings)
    said = Quiet()
    resume(tmp_path / "parts", nest({"train.ranks": 1}), display=said)
    assert "note: train.ranks was 2 and is now 1" in said.lines
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)


def test_an_error_that_no_disk_made_ends_the_run_too(text, tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "write_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        begin(text, tmp_path / "run", train_settings={"on_save_failure": "continue"})
