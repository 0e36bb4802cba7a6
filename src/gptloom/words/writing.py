"""`gptloom sample` and `gptloom eval`."""

from typing import get_args

from gptloom.cli.flags import Parser, add_flags, given
from gptloom.config.load import parse
from gptloom.config.run import SampleConfig, Weights
from gptloom.errors import ConfigError
from gptloom.words import NUMBERS, RUN, TEXTS, add_model_flags, loading, make_parser

SAMPLING = """\
A token is chosen in this order: repetition penalty, temperature, top-k, top-p, min-p; then one draw. A text depends on the seed
and its number, not on the others. p and rank are the model's own, before all of that; rank 0 is the token it held likeliest."""


def sample_command(words: list[str]) -> int:
    """Write with a trained model."""
    parser = make_parser("sample", "RUN", sample_command, epilog=SAMPLING)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "--prompt", default="", help="the text to continue; - reads it from standard input (default: a fresh start)"
    )
    parser.add_argument(
        "--show-probabilities",
        metavar="N",
        nargs="?",
        type=int,
        const=3,
        help="each token with its probability, its rank and the N likeliest [3]",
    )
    add_model_flags(parser)
    _add_weights_flag(
        parser, "int8 is quicker for one text at a time on a CPU, and costs a little loss, which `gptloom eval` tells"
    )
    add_flags(parser, SampleConfig)
    args = parser.parse(words)
    config = parse(SampleConfig, given(args, SampleConfig), where="the command line")
    if args.show_probabilities is not None and (args.show_probabilities < 1 or config.beams > 1):
        raise ConfigError(
            "needs at least 1 alternative, and no beam search",
            where="--show-probabilities",
            cure="try --show-probabilities 3",
        )
    with loading():
        from gptloom.commands.writing import sample

    return sample(args, config)


def eval_command(words: list[str]) -> int:
    """Measure a model's loss on a text."""
    parser = make_parser("eval", "RUN", eval_command, epilog=NUMBERS)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "--text",
        metavar="TEXT",
        action="append",
        help=f"what to read: {TEXTS} (default: the run's own validation split)",
    )
    parser.add_argument("--encoding", help="text encoding (default: UTF-8, else detected)")
    add_model_flags(parser)
    _add_weights_flag(parser, "int8 measures both, and tells what int8 costs")
    args = parser.parse(words)
    with loading():
        from gptloom.commands.writing import evaluate

    return evaluate(args)


def _add_weights_flag(parser: Parser, about: str) -> None:
    """How the matrices are held."""
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="float32",
        help=f"numbers that the matrices are held in; {about} [float32]",
    )
