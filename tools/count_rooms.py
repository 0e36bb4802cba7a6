"""Count the files of gptloom that one call enters.

Run `python tools/count_rooms.py train` or `python tools/count_rooms.py sample`. The script runs a real command in this
process: two training steps of a very small model on a short text, or one text of two tokens by such a model.
`sys.setprofile` reports every Python function that is called, in all threads.

A file counts once, when one of its functions is called for the first time. Three kinds of code do not count: module
code, class bodies, and functions that are called while a module is imported.

Counting starts at the command function: the first function that the entry's file calls in another file of cli/ (or
words/, the folder's earlier name). Counting ends

- for `train`, at the loss of the first training step: the last call of a PyTorch loss function before the first call
  of an optimizer's `step`. The run's earlier work (evaluation, checkpoint, a check of the fast pass) counts.
- for `sample`, at the first PyTorch function that chooses a token from the logits.

The second count is of the files that settings pass through: one of their functions receives the list of words, the
parsed arguments or a settings object. An earlier count followed the command function's `words`: 41 files for `train`
and 25 for `sample` at commit ff6eb0a. This script counts 69 and 37 files there, and settings pass through 33 and 18.

A climb is a pair of files (caller, called) where the called file imports the caller, directly or through others: the
call runs against the direction of the imports.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pydantic import BaseModel

SOURCE = Path(__file__).resolve().parent.parent / "src" / "gptloom"
COMMAND_FOLDERS = {"cli", "commands", "words"}
LOSSES = {"cross_entropy_loss", "log_softmax", "_log_softmax", "nll_loss", "nll_loss_nd", "nll_loss_forward"}
CHOICES = {"topk", "multinomial", "argmax", "sort", "argsort", "searchsorted", "cumsum", "rand", "exponential_"}
OPTIMIZERS = ("optim", "adam", "muon", "adagrad", "sgd")
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 400
SMALL = ["--recipe", "tiny", "--device", "cpu", "--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2"]
SHORT = ["--model.block-size", "16", "--train.batch-size", "4", "--train.steps", "2", "--train.sample-tokens", "0"]


class Walk:
    """Records the files that a call enters.

    Attributes:
        call: train or sample.
        entry: the file whose `main` finds the command function.
        command: the command function, once it is called.
        files: the files in order of their first call.
        settings: those of them that settings pass through.
        calls: pairs of files, caller and called.
        end: where counting ended: a function of PyTorch and the line that called it.
    """

    def __init__(self, call: str, entry: str) -> None:
        """Start without records; recording begins when the command function is called."""
        self.call, self.entry, self.command, self.end = call, entry, "", ""
        self.words: list[str] = []
        self.files: list[str] = []
        self.settings: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.loss: tuple[int, int, int, str] | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """The function for `sys.setprofile`; it is called at each call of a function."""
        if self.end:
            return
        if event == "c_call" and self.command:
            self._library_call(frame, getattr(argument, "__name__", ""))
        elif event == "call":
            self._python_call(frame, frame.f_code)

    def _library_call(self, frame: FrameType, name: str) -> None:
        ours = _nearest(frame)
        where = f"{name} called by {_file(ours.f_code)}:{ours.f_lineno}" if ours else name
        if self.call == "train" and name in LOSSES:
            self.loss = len(self.files), len(self.settings), len(self.calls), where
        elif self.call == "sample" and name in CHOICES and ours is frame:
            self.end = where

    def _python_call(self, frame: FrameType, code: CodeType) -> None:
        if self.loss and _is_optimizer_step(code):
            files, settings, calls, self.end = self.loss
            del self.files[files:], self.settings[settings:], self.calls[calls:]
            return
        if not _is_ours(code) or not code.co_flags & inspect.CO_OPTIMIZED or _is_importing(frame):
            return
        name, caller = _file(code), _nearest(frame.f_back)
        if not self.command:
            if (
                caller is None
                or _file(caller.f_code) != self.entry
                or name == self.entry
                or Path(name).parts[0] not in COMMAND_FOLDERS
            ):
                return
            self.command = f"{name}: {code.co_qualname}"
        if name not in self.files:
            self.files.append(name)
        if name not in self.settings and _receives_settings(frame, self.words):
            self.settings.append(name)
        if caller is not None and (pair := (_file(caller.f_code), name)) not in self.calls:
            self.calls.append(pair)

    def climbs(self) -> list[tuple[str, str]]:
        """The pairs (caller, called) where the called file imports the caller."""
        above = {name: _imports(name) for name in self.files}
        return [
            (caller, called) for caller, called in self.calls if caller != called and caller in above.get(called, ())
        ]


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(f"{SOURCE}/")


def _file(code: CodeType) -> str:
    return Path(code.co_filename).relative_to(SOURCE).as_posix()


def _nearest(frame: FrameType | None) -> FrameType | None:
    """The frame, or the nearest one below it that runs gptloom's code."""
    while frame is not None and not _is_ours(frame.f_code):
        frame = frame.f_back
    return frame


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not (_is_ours(frame.f_code) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    return frame is not None


def _receives_settings(frame: FrameType, words: list[str]) -> bool:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    values = [frame.f_locals[name] for name in names if name in frame.f_locals]
    return any(
        isinstance(value, argparse.Namespace | BaseModel) or (type(value) is list and value == words)
        for value in values
    )


def _is_optimizer_step(code: CodeType) -> bool:
    place = f"{Path(code.co_filename).parent.name}/{Path(code.co_filename).stem}.{code.co_qualname}".lower()
    return code.co_name == "step" and any(word in place for word in OPTIMIZERS)


def _imports(name: str) -> set[str]:
    """All files of gptloom that a file imports, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for node in ast.walk(ast.parse((SOURCE / waiting.pop()).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptloom"):
                modules = [node.module or "", *(f"{node.module}.{one.name}" for one in node.names)]
                new = {f"{'/'.join(module.split('.')[1:])}.py" for module in modules} - found
                new = {file for file in new if (SOURCE / file).is_file()}
                found |= new
                waiting += new
    return found


def walk(call: str) -> Walk:
    """Run `gptloom train` or `gptloom sample` in this process and record the files that it enters."""
    try:
        module = importlib.import_module("gptloom.cli.main")
    except ModuleNotFoundError:
        module = importlib.import_module("gptloom.cli")
    record = Walk(call, _file(module.main.__code__))
    with tempfile.TemporaryDirectory() as folder:
        text, run = Path(folder) / "text.txt", str(Path(folder) / "run")
        text.write_text(TEXT, encoding="utf-8")
        words = ["train", str(text), "--run", run, "--data.cache", folder, *SMALL, *SHORT]
        if call == "sample":  # another process trains, so that nothing is remembered in this one
            subprocess.run([sys.executable, "-m", "gptloom", *words], check=True, capture_output=True)
            words = ["sample", run, "--device", "cpu", "--prompt", "The", "--tokens", "2"]
        record.words = words[1:]
        threading.setprofile(record)
        sys.setprofile(record)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                code = module.main(words)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    if code or not record.end:
        sys.exit(f"gptloom {call} ended with code {int(code)}; the end of counting: {record.end or 'not found'}")
    return record


def main() -> None:
    """Print the files, the climbs and the counts."""
    if sys.argv[1:] not in (["train"], ["sample"]):
        sys.exit("usage: python tools/count_rooms.py {train,sample}")
    record = walk(sys.argv[1])
    print(f"from {record.command}\nto {record.end}\n")
    for number, name in enumerate(record.files, 1):
        print(f"{number:3} {name}{' (settings)' if name in record.settings else ''}")
    climbs = record.climbs()
    print("\nclimbs (caller -> called):")
    for caller, called in climbs:
        print(f"    {caller} -> {called}")
    counts = f"{len(record.files)} files, {len(climbs)} climbs; settings pass through {len(record.settings)} files"
    print(f"\n{record.call}: {counts}")


if __name__ == "__main__":
    main()
