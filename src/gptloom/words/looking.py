"""`gptloom inspect`."""

from pathlib import Path

from gptloom.errors import ConfigError, nearest
from gptloom.words import RUN, TEXTS, add_model_flags, loading, make_parser

VIEWS = ("attention", "lens", "tokens", "embedding", "statistics", "distance")
HELP = """\
attention   attention.png, every head of every layer; head-L-H.png, one of them large
lens        lens.png, what the model would say after each layer (the logit lens)
tokens      tokens.html, the text coloured by each token's loss, with its probability, its rank and what was likelier
embedding   embedding.png, the token table in the plane of its largest variance
statistics  statistics.png, sizes of activations, weights and gradients, entropy of the heads, units that are off
distance    distance.png, how strongly the loss depends on tokens further back
An encoder-decoder translates the prompt, and shows alignment.png (which tokens of the source each written token looked at: the
mean over the heads of the layer that points most; --layer and --head draw single ones), reading.png (the encoder's heads) and
tokens.html.
inspect.json holds the numbers of all of them. Layers and heads count from 0. rank 0 is the token the model held likeliest.
Losses are read in windows of the model's context, as `gptloom eval` reads them; maps show the text's last window."""


def inspect_command(words: list[str]) -> int:
    """Look inside a trained model as it reads a text."""
    parser = make_parser("inspect", "RUN", inspect_command, epilog=HELP)
    parser.add_argument("run", metavar="RUN", help=RUN)
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompt", metavar="TEXT", help="the text to read; - takes it from standard input")
    texts.add_argument("--text", metavar="TEXT", help=f"what to read: {TEXTS}")
    parser.add_argument("--encoding", help="text encoding of --text (default: UTF-8, else detected)")
    parser.add_argument(
        "--show", metavar="VIEW,...", default=",".join(VIEWS), help=f"which views to make, of {', '.join(VIEWS)} [all]"
    )
    parser.add_argument(
        "--layer",
        metavar="L",
        type=int,
        help="layer of the large map (default: that of the head that points at other tokens most)",
    )
    parser.add_argument("--head", metavar="H", type=int, help="head of the large map (default: the layer's that does)")
    parser.add_argument("--top", metavar="N", type=int, default=5, help="alternatives to list [5]")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write (default: RUN/inspect for a run folder, else ./inspect)"
    )
    add_model_flags(parser)
    args = parser.parse(words)
    args.show = [view.strip() for view in args.show.split(",") if view.strip()]
    for view in args.show:
        if view not in VIEWS:
            raise ConfigError(
                f"there is no view {view!r}",
                where="--show",
                cure=nearest(view, VIEWS, count=1) or f"choose from {', '.join(VIEWS)}",
            )
    if not args.show:
        raise ConfigError("names no view", where="--show", cure=f"choose from {', '.join(VIEWS)}")
    if args.top < 1:
        raise ConfigError(f"{args.top} alternatives cannot be listed", where="--top", cure="try --top 5")
    with loading():
        from gptloom.commands.looking import inspect

    return inspect(args)
