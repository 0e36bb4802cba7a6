"""`gptloom train` and `gptloom resume`."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gptloom.cli.flags import NUMBERS, TEXTS, add_flags, add_run_flags, given, loading, make_parser
from gptloom.config.load import SHORT, check_early, nest, read_toml
from gptloom.config.run import RunConfig
from gptloom.errors import ExitCode
from gptloom.files import logged, to_json

if TYPE_CHECKING:
    from gptloom.training.session import Result

ENDS = {
    "finished": "finished",
    "patience": "stopped: the validation loss no longer fell",
    "stopped": "stopped by a signal, state saved",
}


def train_command(words: list[str]) -> int:
    """Train a GPT on your text."""
    _ignore_save_signal()
    parser = make_parser("train", "TEXT...", train_command, epilog=NUMBERS)
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=TEXTS)
    about = "a new folder for the run (default: the next free one under runs/)"
    parser.add_argument("--run", metavar="DIR", type=Path, help=about)
    about = "a TOML file of settings, such as another run's config.toml; flags override it"
    parser.add_argument("--config", metavar="FILE", type=Path, help=about)
    about = "the settings to start from (default: tiny on a CPU, baby on an accelerator, translate for numbers:)"
    default = "translate" if any(word.startswith("numbers:") for word in words) else "tiny"
    add_run_flags(parser, words, about, default=default, short=SHORT, skip=("model.vocab_size",))
    args = parser.parse(words)
    file = {} if args.config is None else read_toml(args.config)
    changes = nest(given(args, RunConfig, skip=("recipe",)))
    where = "the command line" if args.config is None else f"{args.config} and the command line"
    check_early(args.recipe, file, changes, where=where)
    with loading():
        from gptloom.api import configure
        from gptloom.training.run import train

    config = configure(args.recipe, file, changes, texts=args.texts, where=where)
    return _finish(train(args.texts, config, run=args.run), as_json=args.json)


def resume_command(words: list[str]) -> int:
    """Continue a run that was stopped."""
    _ignore_save_signal()
    epilog = f"--steps, --minutes and --epochs are of the whole run; +500 adds to what was trained.\n\n{NUMBERS}"
    parser = make_parser("resume", "RUN", resume_command, epilog=epilog)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--checkpoint", metavar="NAME", default="latest", help="latest, best or step-N [latest]")
    about = "delete the checkpoints after --checkpoint; the best is kept until the run saves a better one"
    parser.add_argument("--discard-later", action="store_true", help=about)
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "seed", "model"), values={})
    args = parser.parse(words)
    with loading():
        from gptloom.training.run import resume

    changes = nest(given(args, RunConfig))
    result = resume(args.run, changes, checkpoint=args.checkpoint, discard_later=args.discard_later)
    return _finish(result, as_json=args.json)


def _ignore_save_signal() -> None:
    """Ignore SIGUSR1 until training starts. It requests a save then; by default it would end the process."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _finish(result: Result, *, as_json: bool) -> int:
    """Print the result of a training run and return its exit code."""
    report_run(result, as_json=as_json)
    return 128 + result.signal if result.signal else ExitCode.DONE


def report_run(result: Result, *, as_json: bool) -> None:
    """Print the losses of a run, its last sample, and the next command."""
    if as_json:
        print(to_json(asdict(result)))
        return

    length = f"{result.steps:,} steps, {result.tokens:,} tokens, {result.seconds:.1f} s of training"
    print(f"{ENDS[result.end]} after {length}", file=sys.stderr)
    if result.val_loss is not None:
        bits = "" if result.val_bpb is None else f", {result.val_bpb:.4f} bits per byte"
        at = "kept from before the run was resumed" if result.best_step is None else f"at step {result.best_step:,}"
        print(f"validation loss {result.val_loss:.4f} nats per token{bits} (the best, {at})")
    if result.exact_match is not None:
        print(f"{result.exact_match:.2%} of the validation targets written to the letter")
    samples = Path(result.run) / "samples.jsonl"
    texts = [str(line["text"]) for line in logged(samples) if "text" in line] if samples.exists() else []
    if texts:
        print("\n" + texts[-1].strip("\n") + "\n")
    follow = f"gptloom resume {result.run}" if result.end == "stopped" else f"gptloom sample {result.run} --prompt ..."
    print(f"{result.run}\nnext: {follow}")
