"""`gptloom bench`."""

from pathlib import Path

from gptloom.cli.flags import add_flags, given
from gptloom.config.load import check_early, nest, recipe_names
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError
from gptloom.words import loading, make_parser

GROUPS = ("step", "sampling", "data", "start")
MEASURED = """\
step      a training step against batch, context, width, depth and vocabulary, one at a time around the recipe; beside it the time that
          the step's own matrix products take alone, as quick as they can be made here
sampling  tokens a second against the context, for 1 and 32 texts at once; beside it how fast their bytes are read from memory
data      making a text ready against its size (1, 4, 16 MB; with --largest up to 1 GB), its memory, and reading and hashing alone
start     launching the command line; beside it Python alone

An operation is a multiplication or an addition in a matrix product: 6 N + 12 L T C a token. share is the limit's time as a part of the
time taken. Ctrl-C ends early and keeps what has been measured. docs/bench.md explains every figure."""


def bench_command(words: list[str]) -> int:
    """Measure what a model costs on this machine as it grows, and where the machine's limit lies."""
    parser = make_parser("bench", "", bench_command, epilog=f"recipes: {', '.join(recipe_names())}\n\n{MEASURED}")
    parser.add_argument(
        "--recipe", metavar="NAME", help="the middle of all sweeps (default: tiny on a CPU, baby on an accelerator)"
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--minutes", metavar="N", type=float, default=2.0, help="about how long all of it may take [2]")
    parser.add_argument(
        "--largest",
        action="store_true",
        help="also prepare texts of up to 1 GB, however long that takes (3 GB of disk)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("bench"), help="where picture and JSON go [./bench]"
    )
    unused = (
        "train.steps",
        "train.minutes",
        "train.epochs",
        "train.ranks",
    )  # one process takes the steps that the time allows
    add_flags(parser, RunConfig, short={"data.tokenizer": "tokenizer"}, skip=("recipe", *unused))
    args = parser.parse(words)
    groups = tuple(GROUPS if args.only is None else dict.fromkeys(name.strip() for name in args.only.split(",")))
    if unknown := [name for name in groups if name not in GROUPS]:
        raise ConfigError(
            f"there is nothing called {unknown[0]!r} to measure",
            where="--only",
            cure=f"choose from {', '.join(GROUPS)}",
        )
    if not 0 < args.minutes <= 10_000:
        raise ConfigError(f"{args.minutes:g} is no time to measure in", where="--minutes", cure="try --minutes 2")
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(
            "is a file, and a folder is needed", where=f"--out {args.out}", cure="name a folder, or leave the flag out"
        )
    changes = nest(given(args, RunConfig, skip=("recipe",)))
    check_early(args.recipe, {}, changes, where="the command line")
    with loading():
        from gptloom.commands.benching import run_bench

    return run_bench(args, changes, groups)
