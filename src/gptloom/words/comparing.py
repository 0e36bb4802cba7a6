"""`gptloom compare`."""

import argparse
from pathlib import Path
from typing import Any

from gptloom.cli.flags import add_flags, given
from gptloom.config.load import SHORT, nest, read_toml, recipe_names
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError
from gptloom.words import TEXTS, loading, make_parser

MOST = 1000

RULE = """\
The loss is that of the last step on the whole validation split, in nats per token, or in bits per byte where the tokens differ.
Both trainings of a pair have the same seed: the same data order and, where the shapes allow it, the same first weights. "better" and
"worse" are said where a paired t-test gives p <= 0.02 after Holm's correction for several arms, which the 95 % interval alone would not
ask for; each later look with more seeds has half that level. So fewer than 5 comparisons of equals in 100 end in a false alarm.
With another --seeds and the same --run a comparison grows; interrupted, it goes on where it was."""


def compare_command(words: list[str]) -> int:
    """Compare settings over several seeds, with intervals."""
    subject = "[TEXT...] SETTING=A,B[,C] [SETTING=...]"
    parser = make_parser("compare", subject, compare_command, epilog=f"recipes: {', '.join(recipe_names())}\n\n{RULE}")
    parser.add_argument(
        "words",
        metavar="SETTING=A,B",
        nargs="*",
        help=f"a setting and its values, the baseline first: lr=1e-3,4e-3; or a text: {TEXTS} [shakespeare]",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="trainings of each arm; a verdict needs 3 [5]"
    )
    parser.add_argument("--together", action="store_true", help="change all settings at once, instead of one at a time")
    parser.add_argument(
        "--own-seeds",
        action="store_true",
        help="no seed is shared by two arms: an A/A comparison of lr=1e-3,1e-3 then measures the noise",
    )
    parser.add_argument(
        "--claim",
        metavar="TEXT",
        help="a description of the change, to be checked: 'reduced the learning rate, 0.1 better'",
    )
    parser.add_argument(
        "--plan", action="store_true", help="say what would be run and how long it would take, and stop"
    )
    parser.add_argument(
        "--example", metavar="NAME", help="a ready-made comparison: assignment (a student's four published runs)"
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=Path,
        help="where the trainings are kept; one that is there goes on (default: a new one under runs/)",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="a TOML file of settings for all arms; flags go over it"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="the settings to start from (default: tiny on a CPU, baby on an accelerator)"
    )
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "model.vocab_size"))
    args = parser.parse(words, intermixed=True)
    file, changes = _check(args)
    with loading():
        from gptloom.commands.comparing import compare, compare_example

    return compare(args, file, changes) if args.example is None else compare_example(args, changes)


def _check(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the file and of the flags, nested; errors in what needs no text and no torch."""
    if not 1 <= args.seeds <= MOST:
        raise ConfigError(f"{args.seeds} is not between 1 and {MOST}", where="--seeds", cure="try --seeds 5")
    if args.example is not None and (
        args.recipe or args.config or args.together or args.claim or any("=" in word for word in args.words)
    ):
        raise ConfigError(
            "brings its own settings and factors",
            where="--example",
            cure="give it a text, --steps, --seeds and flags only",
        )
    return ({} if args.config is None else read_toml(args.config)), nest(given(args, RunConfig, skip=("recipe",)))
