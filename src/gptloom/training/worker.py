"""A rank other than the first. `launch.launch` starts it as `python -m gptloom.training.worker`."""

import os
import signal
import sys
import threading
from pathlib import Path

from gptloom.bundle import Bundle
from gptloom.checkpoint.state import Progress, State, read_checkpoint
from gptloom.config.load import parse, read_toml
from gptloom.config.run import RunConfig
from gptloom.data.tokenizers import load_tokenizer
from gptloom.devices import thread_count, threads
from gptloom.distributed import TorchProcessGroup
from gptloom.distributed.launch import own_device, ready
from gptloom.errors import DivergedError, GptloomError
from gptloom.training.progress import Display
from gptloom.training.run import begin
from gptloom.training.run_dir import find_parts
from gptloom.training.session import Session


def main(words: list[str]) -> int:
    """Train as one rank of a run.

    Args:
        words: rank, run folder, number of ranks, meeting file, kind of device, and a checkpoint folder or "".
    """
    rank, run, world, meeting, kind, checkpoint = (
        int(words[0]),
        Path(words[1]),
        int(words[2]),
        Path(words[3]),
        words[4],
        words[5],
    )
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # the first rank decides when to stop
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = own_device(kind, rank)
    config = parse(RunConfig, read_toml(run / "config.toml"), where=str(run / "config.toml"))
    if checkpoint:
        bundle, state = Bundle.read(Path(checkpoint), device=str(device)), read_checkpoint(Path(checkpoint))
    else:
        bundle, state = begin(config, load_tokenizer(run), device), State(config, Progress(), None, {})
    parts = find_parts(run, config, bundle.tokenizer)
    ready(meeting, rank).touch()
    group = TorchProcessGroup(rank, world, meeting, device)
    with threads(thread_count(config)):
        Session(run, config, bundle, parts, display=Display(lambda _line: None), group=group).fit(state)
    group.destroy()
    return 0


def _end_with_parent() -> None:
    """Standard input closes when the first rank ends; whatever this process waits for then will not come."""
    while os.read(0, 1):  # not through sys.stdin, whose lock would be held when this process ends first
        pass
    os._exit(1)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DivergedError:
        sys.exit(0)  # the first rank has seen the same numbers, and says so
    except GptloomError as error:
        print(f"error: a process of the run: {error.line()}", file=sys.stderr)
        sys.exit(error.code)
