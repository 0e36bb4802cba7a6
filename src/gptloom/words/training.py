"""`gptloom train` and `gptloom resume`."""

import signal
from pathlib import Path
from typing import Any

from gptloom.cli.flags import add_flags, given
from gptloom.config.load import SHORT, check_early, nest, read_toml, recipe_names
from gptloom.config.run import RunConfig
from gptloom.errors import ExitCode
from gptloom.words import NUMBERS, TEXTS, loading, make_parser


def train_command(words: list[str]) -> int:
    """Train a GPT on your text."""
    _nothing_to_save_yet()
    parser = make_parser(
        "train",
        "TEXT...",
        train_command,
        epilog=f"[in brackets: the value where the recipe sets none]\nrecipes: {', '.join(recipe_names())}\n\n{NUMBERS}",
    )
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=TEXTS)
    parser.add_argument(
        "--run", metavar="DIR", type=Path, help="a new folder for the run (default: the next free one under runs/)"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="a TOML file of settings, such as another run's config.toml; flags go over it",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="the settings to start from (default: tiny on a CPU, baby on an accelerator, translate for numbers:)",
    )
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "model.vocab_size"))
    args = parser.parse(words)
    file = {} if args.config is None else read_toml(args.config)
    changes = nest(given(args, RunConfig, skip=("recipe",)))
    where = "the command line" if args.config is None else f"{args.config} and the command line"
    check_early(args.recipe, file, changes, where=where)
    with loading():
        from gptloom.api import configure
        from gptloom.training.run import train

    config = configure(args.recipe, file, changes, texts=args.texts, where=where)
    return _finish(train(args.texts, config, run=args.run), args.json)


def resume_command(words: list[str]) -> int:
    """Continue a run that was stopped."""
    _nothing_to_save_yet()
    parser = make_parser("resume", "RUN", resume_command, epilog=NUMBERS)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--checkpoint", metavar="NAME", default="latest", help="latest, best or step-N [latest]")
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "seed", "model"))
    args = parser.parse(words)
    with loading():
        from gptloom.training.run import resume

    return _finish(resume(args.run, nest(given(args, RunConfig)), checkpoint=args.checkpoint), args.json)


def _nothing_to_save_yet() -> None:
    """Before the first step and after the last, a wish for a save (SIGUSR1) is no reason to end, as it would be by default."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _finish(result: Any, as_json: bool) -> int:
    """Report a training run and turn its end into an exit code."""
    from gptloom.commands.reporting import report_run

    report_run(result, as_json)
    return 128 + result.signal if result.signal else ExitCode.DONE
