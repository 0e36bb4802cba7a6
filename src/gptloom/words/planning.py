"""`gptloom plan`."""

from gptloom.cli.flags import add_flags, given
from gptloom.config.load import check_early, nest, recipe_names
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError
from gptloom.hardware import PEAKS
from gptloom.studies.plan.amounts import read_amount
from gptloom.words import loading, make_parser

RECKONED = """\
Amounts may be written as 300B, 1.5M or 1e21. Give at most one of --tokens, --flops, --hours and --budget; without any, the recipe's own length
counts. Nothing is trained, and no text is needed.

operations  6 N + 12 L T C a token, as in docs/bench.md
time        operations / (rate x mfu x devices). The rate of a device is its maker's (dense matrix products), and mfu the usual share of it;
            this machine's own (cpu, cuda, mps) is measured, and the share too where a step is short
memory      of one device: weights, gradients and optimizer in float32, and the activations of one pass
optimal     what the same operations are best spent on: 20 tokens a parameter, and two fits (Hoffmann et al. 2022, Besiroglu et al. 2024)"""


def plan_command(words: list[str]) -> int:
    """Say what a model and its training will cost, before there is either."""
    devices = ", ".join(peak.name for peak in PEAKS)
    parser = make_parser(
        "plan", "", plan_command, epilog=f"recipes: {', '.join(recipe_names())}\ndevices: {devices}\n\n{RECKONED}"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="the model and its batch (default: tiny on a CPU, baby on an accelerator)"
    )
    parser.add_argument("--tokens", metavar="N", help="tokens to train on")
    parser.add_argument("--flops", metavar="N", help="operations to spend")
    parser.add_argument("--hours", metavar="N", help="time to spend")
    parser.add_argument("--budget", metavar="N", help="money to spend, with --price-per-hour")
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="auto",
        help="auto, cpu, cuda or mps for this machine's, or a device from the list below [auto]",
    )
    parser.add_argument("--devices", metavar="N", default="1", help="how many share the work, at no loss [1]")
    parser.add_argument(
        "--mfu", metavar="SHARE", help="share of the rate that training reaches, such as 0.4 (default: see below)"
    )
    parser.add_argument(
        "--price-per-hour", metavar="N", help="of one device, in any currency; without it there are device-hours only"
    )
    parser.add_argument(
        "--text-tokens", metavar="N", help="tokens of the text that there is, to be warned where it is too short"
    )
    add_flags(parser, RunConfig, short={"model.vocab_size": "vocab"}, skip=("recipe", "device"))
    args = parser.parse(words)
    names = ("tokens", "flops", "hours", "budget", "price_per_hour", "text_tokens", "mfu", "devices")
    amounts = {
        name: read_amount(text, f"--{name.replace('_', '-')}")
        for name in names
        if (text := getattr(args, name)) is not None
    }
    asked = [f"--{name}" for name in names[:4] if name in amounts]
    if len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(asked)} exclude one another", where="the command line", cure="give one of them"
        )
    if "budget" in amounts and "price_per_hour" not in amounts:
        raise ConfigError(
            "needs the price of a device", where="--budget", cure="add --price-per-hour, in the same currency"
        )
    if amounts.get("mfu", 0.0) > 1:
        raise ConfigError(f"{amounts['mfu']:g} is more than all of the rate", where="--mfu", cure="try --mfu 0.4")
    if amounts["devices"] != int(amounts["devices"]):
        raise ConfigError(
            f"{amounts['devices']:g} is no number of devices", where="--devices", cure="give a whole number"
        )
    changes = nest(given(args, RunConfig, skip=("recipe", "device")))
    check_early(args.recipe, {}, changes, where="the command line")
    with loading():
        from gptloom.commands.planning import plan

    return plan(args, changes, amounts)
