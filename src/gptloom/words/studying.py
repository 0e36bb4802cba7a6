"""`gptloom ladder`: the lecture's steps, trained, shown and checked."""

from argparse import Namespace
from pathlib import Path

from gptloom.cli.flags import add_flags, given
from gptloom.config.load import SHORT, nest, parse
from gptloom.config.run import LadderConfig, RunConfig
from gptloom.errors import ConfigError
from gptloom.words import NUMBERS, TEXTS, loading, make_parser

LADDER = f"""\
gptloom ladder [TEXT...]                 train every step on a text, with the same number of tokens, and compare
gptloom ladder show [STEP]               what a step changes, its tensors and its plain code; without STEP, all titles
gptloom ladder check STEP FILE           run your own code for a step against the reference
gptloom ladder neighbours [TEXT...]      GPT, RNN, LSTM and GRU at equal parameters: loss against time, gradient against distance
gptloom ladder --reproduce [NAME...]     the documents' own runs beside their published numbers
(a text that is called show, check or neighbours is written ./show)

bought is how much lower the validation loss is than that of the step that a step starts from; sd is the standard deviation
over seeds. An interrupted ladder goes on with --run DIR.

{NUMBERS}"""

NEIGHBOURS = """\
Each has the width that brings its parameters nearest to the GPT's, and the same settings, batches and number of steps (1,000 unless
you say --steps or --minutes). loss.png shows the validation loss against seconds; distance.png how strongly a loss depends on
tokens further back, after training: the mean norm of its gradient by their embeddings. reach is the distance at which that is
still a hundredth of what it is at distance 0."""


def ladder_command(words: list[str]) -> int:
    """Climb the lecture's steps on your text, and see what each buys."""
    inner = {"show": _show, "check": _check, "neighbours": _neighbours}
    if words and words[0] in inner:
        return inner[words[0]](words[1:])
    parser = make_parser("ladder", "[TEXT...]", ladder_command, epilog=LADDER)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help=f"{TEXTS} [shakespeare]")
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=Path,
        help="the ladder's folder, new or to go on with (default: the next free one under runs/)",
    )
    parser.add_argument("--reproduce", metavar="NAME", nargs="*", help="run the documents' own runs, all or these")
    add_flags(parser, LadderConfig)
    args = parser.parse(words)
    asked = given(args, LadderConfig)
    if args.reproduce is not None:
        return _reproduce(args, parse(LadderConfig, asked, where="the command line").steps, asked.keys() - {"steps"})
    with loading():
        from gptloom.commands.climbing import climb_command

    return climb_command(args.texts, asked, args.run, args.json)


def _reproduce(args: Namespace, steps: int | None, others: set[str]) -> int:
    if args.texts or args.run or others:
        extra = [*args.texts, *(f"--{name}" for name in sorted(others)), *(["--run"] if args.run else [])]
        raise ConfigError(
            f"has its own settings and takes only --steps besides, not {' '.join(extra)}",
            where="--reproduce",
            cure="leave them out",
        )
    with loading():
        from gptloom.commands.climbing import reproduce

    return reproduce(args.reproduce, steps, args.json)


def _show(words: list[str]) -> int:
    """Say what a step changes, and show its tensors and its plain code."""
    parser = make_parser("ladder show", "[STEP]", _show)
    parser.add_argument("step", metavar="STEP", nargs="?", help="a step's name (default: list all)")
    args = parser.parse(words)
    with loading():
        from gptloom.commands.climbing import show_command

    return show_command(args.step, args.json)


def _check(words: list[str]) -> int:
    """Run your own code for a step against the reference."""
    parser = make_parser(
        "ladder check", "STEP FILE", _check, epilog="FILE is run as Python: check only code that you trust."
    )
    parser.add_argument("step", metavar="STEP", help="a step's name")
    parser.add_argument("file", metavar="FILE", type=Path, help="a Python file that defines the step's classes")
    args = parser.parse(words)
    with loading():
        from gptloom.commands.climbing import check_command

    return check_command(args.step, args.file, args.json)


def _neighbours(words: list[str]) -> int:
    """Train a GPT and recurrent networks of as many parameters on your text, and see what each is slow at."""
    parser = make_parser("ladder neighbours", "[TEXT...]", _neighbours, epilog=NEIGHBOURS)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help=f"{TEXTS} [shakespeare]")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("neighbours"), help="where the pictures go [./neighbours]"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        default="tiny",
        help="the GPT's settings but n-grams; all are trained with AdamW [tiny]",
    )
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "model.vocab_size", "model.architecture"))
    args = parser.parse(words)
    length = (
        {"train.steps": 1000}
        if not {"train.steps", "train.minutes", "train.epochs"} & given(args, RunConfig).keys()
        else {}
    )
    changes = nest(length | given(args, RunConfig, skip=("recipe",)))
    with loading():
        from gptloom.commands.neighbouring import neighbours

    return neighbours(args.texts or ["shakespeare"], args.recipe, changes, args.out, args.json)
