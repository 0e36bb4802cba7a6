"""The entry point: the table of commands, and the exit codes of errors and signals."""

import contextlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from gptloom.cli.bench import bench_command
from gptloom.cli.compare import compare_command
from gptloom.cli.completion import print_completion
from gptloom.cli.convert import import_command
from gptloom.cli.data import data_command
from gptloom.cli.doctor import doctor_command
from gptloom.cli.inspect import inspect_command
from gptloom.cli.ladder import ladder_command
from gptloom.cli.plan import plan_command
from gptloom.cli.recipes import recipes_command
from gptloom.cli.sample import eval_command, sample_command
from gptloom.cli.train import resume_command, train_command
from gptloom.cli.verify import verify_command
from gptloom.errors import ConfigError, ExitCode, GptloomError, GptloomWarning, MachineError, cure_for, nearest
from gptloom.files import lasting


def completion_command(words: list[str]) -> int:
    """Print a script that completes commands and flags."""
    return print_completion(words, COMMANDS)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "resume": resume_command,
    "sample": sample_command,
    "eval": eval_command,
    "inspect": inspect_command,
    "compare": compare_command,
    "ladder": ladder_command,
    "verify": verify_command,
    "bench": bench_command,
    "plan": plan_command,
    "recipes": recipes_command,
    "import": import_command,
    "data": data_command,
    "doctor": doctor_command,
    "completion": completion_command,
}

_LASTING = ("train", "resume", "compare", "ladder", "verify")
"""Commands whose work is worth more than their output."""


def run() -> NoReturn:
    """Run one command, then end the process at once with `os._exit`.

    All files are written by then. Python's normal exit would let a late signal interrupt the libraries' cleanup, and
    would stop a thread that is still inside native code, which aborts the process.
    """
    try:
        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except SystemExit as ended:  # --help
        code = int(ended.code or 0)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # the reader closed the pipe, or a full disk was reported
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `ExitCode`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams(lasts=bool(words) and words[0] in _LASTING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("once", GptloomWarning)
            warnings.showwarning = _warn
            code = _dispatch(words)
            sys.stdout.flush()  # a result that cannot be written is an error here
            return code
    except GptloomError as error:
        return _fail(error, words)
    except BrokenPipeError:
        # The reader (head, less) closed the pipe. Without this, Python would report it again when it closes stdout.
        sys.stdout = _nowhere()
        return ExitCode.DONE
    except OSError as error:
        return _fail(
            MachineError(
                error.strerror or str(error),
                where=str(error.filename or ""),
                cure=cure_for(error, "check the disk and the path"),
            ),
            words,
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        return _fail(MachineError("the memory is used up", cure="make the model, the batch or the text smaller"), words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _open_streams(*, lasts: bool) -> None:
    """Prepare standard output and standard error.

    Args:
        lasts: the command continues when its output has no reader (head, a dead tee). Standard error never ends a
            command: it has only messages.
    """
    # A missing stream is replaced first: a file of ours must not get its descriptor, where libraries print.
    sys.stdout, sys.stderr = (stream or _nowhere() for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not under a test's or a notebook's own stream
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stderr = lasting(sys.stderr, OSError)
    if lasts:
        sys.stdout = lasting(sys.stdout, BrokenPipeError)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return ExitCode.DONE
    if words[0] == "--version":
        from gptloom import __version__

        print(f"gptloom {__version__}")
        return ExitCode.DONE
    if words[0] not in COMMANDS:
        raise ConfigError(
            f"there is no command {words[0]!r}",
            where="gptloom",
            cure=nearest(words[0], COMMANDS, count=1) or f"choose from {', '.join(COMMANDS)}",
        )
    return COMMANDS[words[0]](words[1:])


def _is_out_of_memory(error: RuntimeError) -> bool:
    """`devices.is_out_of_memory` without importing PyTorch: check the text of the error."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our warnings in one line; print those of libraries as Python does."""
    ours = issubclass(category, GptloomWarning)
    print(
        f"warning: {' '.join(str(message.args[0] if isinstance(message, Warning) else message).split())}"
        if ours
        else warnings.formatwarning(message, category, filename, lineno, line),
        file=sys.stderr,
    )


def _fail(error: GptloomError, words: list[str]) -> int:
    if "--json" in words:
        print(json.dumps({"error": {"what": error.what, "where": error.where, "cure": error.cure}}, ensure_ascii=False))
    print(f"error: {error.line()}", file=sys.stderr)
    if "--debug" in words:
        import traceback

        traceback.print_exc()
    return error.code


def _overview() -> str:
    lines = [
        "usage: gptloom COMMAND ...",
        "",
        "Train GPTs from scratch on any text, generate text with them, and trust the numbers.",
        "",
    ]
    lines += [f"  {name:<10} {(command.__doc__ or '').rstrip('.')}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`gptloom COMMAND --help` explains each. Try:  gptloom train shakespeare"])
