"""Shared by the faults: a small text, runs in separate processes and in this one, and checks for losses."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gptloom
from gptloom.cli.main import main
from gptloom.errors import GptloomError
from gptloom.training.callbacks import Request, View
from gptloom.training.progress import Display

WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps until the sun is up again\n"
SMALL = {"model.n-layer": 2, "model.n-head": 2, "model.n-embd": 16, "model.block-size": 16, "model.dropout": 0.2}
SHORT = {
    "train.steps": 12,
    "train.batch-size": 4,
    "train.log-every": 1,
    "train.sample-tokens": 0,
    "train.threads": 1,
    "device": "cpu",
}


class Outcome(NamedTuple):
    """The end of a command: its exit code (-1 for a traceback) and its standard error."""

    code: int
    said: str

    @property
    def is_one_line(self) -> bool:
        """Whether it failed properly: exit code 2 or 3, and one line with the cause and the cure."""
        return self.code in (2, 3) and [line.startswith("error: ") for line in self.said.splitlines()].count(True) == 1

    @property
    def ending(self) -> str:
        """The last line, for a note."""
        last = (self.said.strip().splitlines() or ["nothing said"])[-1]
        return f"exit {self.code}: {re.sub(r'[^ ]*/', '', last)[:160]}"


def write_text(folder: Path, repeats: int = 40) -> Path:
    """A text of different lines of about 85 characters."""
    path = folder / "text.txt"
    path.write_text("".join(f"{number}: {WORDS[number % 20 :]}" for number in range(repeats)), encoding="utf-8")
    return path


def write_wide_text(folder: Path, characters: int) -> Path:
    """A text with so many different characters that the model is mostly embeddings: slow to save, fast to train."""
    alphabet = [chr(0x4E00 + number) for number in range(characters)]
    path = folder / "wide.txt"
    path.write_text("".join(alphabet + random.Random(1).choices(alphabet, k=2000)), encoding="utf-8")
    return path


def flags(*settings: dict[str, Any]) -> list[str]:
    """Settings as command-line arguments; later settings replace earlier ones, and None removes a setting."""
    merged: dict[str, Any] = {}
    for group in settings:
        merged |= group
    return [word for key, value in merged.items() if value is not None for word in (f"--{key}", str(value))]


def train_words(text: Path | str, run: Path, *settings: dict[str, Any]) -> list[str]:
    """The arguments of `gptloom train` for a very small model; its token files are next to the run."""
    return [
        "train",
        str(text),
        "--run",
        str(run),
        *flags(SMALL, SHORT, {"data.cache": run.parent / "cache"}, *settings),
    ]


class _Hooked(Display):
    """A display of plain lines that calls functions after a step."""

    def __init__(self, hooks: Mapping[int, Callable[[], None]]) -> None:
        super().__init__(lambda line: print(line, file=sys.stderr))
        self.hooks = hooks

    def after_step(self, view: View) -> Request:
        super().after_step(view)
        self.hooks.get(view.step, lambda: None)()
        return Request.NOTHING


def call(words: Iterable[str], hooks: Mapping[int, Callable[[], None]] | None = None) -> Outcome:
    """Run a command in this process, which saves three seconds of start-up; call `hooks` after their steps."""
    said = io.StringIO()
    shown = mock.patch("gptloom.training.run.make_display", lambda: _Hooked(hooks or {}))
    with shown, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = main([str(word) for word in words])
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:  # noqa: BLE001  # whatever a user would have seen as a traceback; injected crashes too
            traceback.print_exc()
            code = -1
    for thread in threading.enumerate():
        # The thread would have ended with its process. Here it could still change the folder during the checks.
        if thread.name == "saving":
            thread.join()
    return Outcome(code, said.getvalue())


def start(words: Iterable[str], log: Path, *, wrapper: Iterable[str] = ()) -> subprocess.Popen[bytes]:
    """Start a command in a separate process; its output goes to a file."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [*wrapper, sys.executable, "-m", "gptloom", *map(str, words)],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 60.0) -> bool:
    """Wait for a condition; return whether it became true before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return condition()
        time.sleep(0.002)
    return False


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send kill -9, and wait until the process has ended."""
    process.kill()
    process.wait()


def log_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without an incomplete last line."""
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict) and isinstance(content.get("step"), int):
                found.append(content)
    return found


def last_step(run: Path) -> int:
    """The last step in the run's log."""
    return max((line["step"] for line in log_lines(run)), default=0)


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints with a final name, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def being_written(run: Path) -> bool:
    """Whether there is a temporary file or folder of a checkpoint or pointer."""
    return any(
        path.name.startswith((".writing", ".replaced")) or path.name.endswith(".writing")
        for folder in (run, run / "checkpoints")
        for path in folder.glob(".*")
    )


def problem_of(checkpoint: Path) -> str:
    """The reason why a checkpoint is not complete, or "".

    The checksums are compared without the library's code, and then the checkpoint is loaded.
    """
    try:
        lines = (checkpoint / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "a checkpoint has no SHA256SUMS"
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in checkpoint.iterdir()
        if path.name != "SHA256SUMS"
    }
    if expected != found:
        return "a checkpoint does not match its SHA256SUMS"
    try:
        gptloom.load(checkpoint, device="cpu")
    except GptloomError as error:
        return f"a checkpoint does not load: {error.what}"
    return ""


def problem_of_run(run: Path, *, at_least: int = -1) -> str:
    """Describe the damage in a run folder: an incomplete checkpoint, a bad pointer, a false message, or lost steps."""
    found = checkpoints(run)
    for problem in filter(None, map(problem_of, found)):
        return problem
    names = [path.name for path in found]
    for pointer in ("latest", "best"):
        if (run / pointer).exists() and (run / pointer).read_text(encoding="utf-8").strip() not in names:
            return f"{pointer} names no checkpoint"
    newest = max(map(step_of, found), default=-1)
    claims = [line["step"] for line in log_lines(run) if line.get("event") == "save"]
    if claims and max(claims) > newest:
        return "a save is claimed that is not there"
    return f"step {newest} is the newest of a run that must hold step {at_least}" if newest < at_least else ""


def final(run: Path) -> dict[str, Any]:
    """The values that must agree bit for bit: weights, optimizer, progress, best checkpoint, losses without times."""
    checkpoint = run / "checkpoints" / (run / "latest").read_text(encoding="utf-8").strip()
    found: dict[str, Any] = {
        name: (checkpoint / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")
    }
    progress = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["progress"]
    found["progress"] = {key: value for key, value in progress.items() if key != "seconds"}
    found["best"] = (run / "best").read_text(encoding="utf-8") if (run / "best").exists() else ""
    found["metrics.jsonl"] = [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in log_lines(run)
        if line.get("event") != "save"
    ]
    return found


def difference(run: Path, reference: dict[str, Any]) -> str:
    """Describe the differences of a run's end from the reference; "" if all bits agree."""
    try:
        found = final(run)
    except OSError as error:
        return f"the run has no end: {error.strerror}"
    unequal = [name for name in reference if found[name] != reference[name]]
    return f"{' and '.join(unequal)} differ from the uninterrupted run's" if unequal else ""


def reference_run(text: Path | str, run: Path, *settings: dict[str, Any]) -> dict[str, Any]:
    """The end of an uninterrupted run.

    Raises:
        RuntimeError: the run failed, so there is no reference.
    """
    outcome = call(train_words(text, run, *settings))
    if outcome.code:
        raise RuntimeError(outcome.said)
    return final(run)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The ids of its child processes."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], check=False, capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def is_alive(number: int) -> bool:
    """Whether a process with this id runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False


def is_root() -> bool:
    """Whether this user can mount file systems."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
