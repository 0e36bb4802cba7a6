"""`gptloom ladder`: the lecture's steps, trained, shown and checked."""

from argparse import Namespace
from pathlib import Path

from gptloom.config import LadderConfig
from gptloom.errors import ConfigError
from gptloom.flags import add_flags, given
from gptloom.settings import parse
from gptloom.words import NUMBERS, TEXTS, make_parser

LADDER = f"""\
gptloom ladder [TEXT...]                 train every step on a text, with the same number of tokens, and compare
gptloom ladder show [STEP]               what a step changes, its tensors and its plain code; without STEP, all titles
gptloom ladder check STEP FILE           run your own code for a step against the reference
gptloom ladder --reproduce [NAME...]     the documents' own runs beside their published numbers
(a text that is called show or check is written ./show)

bought is how much lower the validation loss is than that of the step that a step starts from; sd is the standard deviation
over seeds. An interrupted ladder goes on with --run DIR.

{NUMBERS}"""


def ladder_command(words: list[str]) -> int:
    """Climb the lecture's steps on your text, and see what each buys."""
    if words and words[0] in ("show", "check"):
        return _show(words[1:]) if words[0] == "show" else _check(words[1:])
    parser = make_parser("ladder", "[TEXT...]", ladder_command, epilog=LADDER)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help=f"{TEXTS} [shakespeare]")
    parser.add_argument("--run", metavar="DIR", type=Path, help="the ladder's folder, new or to go on with (default: the next free one under runs/)")
    parser.add_argument("--reproduce", metavar="NAME", nargs="*", help="run the documents' own runs, all or these")
    add_flags(parser, LadderConfig)
    args = parser.parse(words)
    asked = given(args, LadderConfig)
    if args.reproduce is not None:
        return _reproduce(args, parse(LadderConfig, asked, where="the command line").steps, asked.keys() - {"steps"})
    from gptloom.commands.climbing import climb_command

    return climb_command(args.texts, asked, args.run, args.json)


def _reproduce(args: Namespace, steps: int | None, others: set[str]) -> int:
    if args.texts or args.run or others:
        extra = [*args.texts, *(f"--{name}" for name in sorted(others)), *(["--run"] if args.run else [])]
        raise ConfigError(f"has its own settings and takes only --steps besides, not {' '.join(extra)}", where="--reproduce", cure="leave them out")
    from gptloom.commands.climbing import reproduce

    return reproduce(args.reproduce, steps, args.json)


def _show(words: list[str]) -> int:
    """Say what a step changes, and show its tensors and its plain code."""
    parser = make_parser("ladder show", "[STEP]", _show)
    parser.add_argument("step", metavar="STEP", nargs="?", help="a step's name (default: list all)")
    args = parser.parse(words)
    from gptloom.commands.climbing import show_command

    return show_command(args.step, args.json)


def _check(words: list[str]) -> int:
    """Run your own code for a step against the reference."""
    parser = make_parser("ladder check", "STEP FILE", _check, epilog="FILE is run as Python: check only code that you trust.")
    parser.add_argument("step", metavar="STEP", help="a step's name")
    parser.add_argument("file", metavar="FILE", type=Path, help="a Python file that defines the step's classes")
    args = parser.parse(words)
    from gptloom.commands.climbing import check_command

    return check_command(args.step, args.file, args.json)
