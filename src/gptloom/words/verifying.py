"""`gptloom verify`."""

from pathlib import Path

from gptloom.config.load import recipe_names
from gptloom.errors import ConfigError
from gptloom.words import RUN, loading, make_parser

CHECKING = """\
Each line says whether a claim holds, how far its two sides lie apart, how far they may, and what a failure means. Tolerances are not
guessed: they are how far this very model's numbers move when its weights are moved by 32 roundings of float32 (2**-24 each). Most
checks use weights that are drawn so that every part counts; a run's own are looked at besides. Without RUN, a fresh model of --recipe
is checked, on tiny Shakespeare if it has been downloaded, else on a made-up text. Nothing is written into the run. The exit code is 0
if no check failed and 1 if one did."""


def verify_command(words: list[str]) -> int:
    """Check the claims that every number rests on, on this machine, for your model and your text."""
    parser = make_parser(
        "verify", "[RUN]", verify_command, epilog=f"recipes: {', '.join(recipe_names())}\n\n{CHECKING}"
    )
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help=f"{RUN} (default: a fresh model of --recipe)")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="without RUN: whose model to check (default: tiny on a CPU, baby on an accelerator)",
    )
    parser.add_argument("--checks", metavar="NAME,...", help="only these checks (default: all that apply)")
    parser.add_argument(
        "--checkpoint", metavar="NAME", default="best", help="of a run folder: best, latest or step-N [best]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    parser.add_argument("--seed", metavar="N", type=int, default=1337, help="of drawn weights and batches [1337]")
    args = parser.parse(words)
    if args.run is not None and args.recipe is not None:
        raise ConfigError("a run has its own recipe", where="--recipe", cure="leave out RUN or --recipe")
    if not 0 <= args.seed < 2**63:
        raise ConfigError(f"{args.seed} is not between 0 and 2**63 - 1", where="--seed", cure="try --seed 1337")
    with loading():
        from gptloom.commands.verifying import verify_model

    return verify_model(args)
