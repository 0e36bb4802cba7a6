"""`gptloom plan`: the cost of a model and its training, from formulas."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

from gptloom.cli.flags import Parser, add_run_flags, given, loading, make_parser
from gptloom.config.load import check_early, nest, resolve
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, ExitCode, shortened
from gptloom.hardware import PEAKS

FORMULAS = """\
Amounts may be written as 300B, 1.5M or 1e21. Give at most one of --tokens, --flops, --hours and --budget;
without them, the recipe's own length is used. Nothing is trained, and no text is needed.

operations  6 N + 12 L T C a token, as in docs/bench.md
time        operations / (rate x mfu x devices). The rate of a device is its maker's (dense matrix products),
            and mfu the usual share of it. The rate of this machine (cpu, cuda, mps) is measured, and so is
            the share if a step is short
memory      of one device: weights, gradients and optimizer in float32, and the activations of one pass
optimal     the best model for the same operations: 20 tokens a parameter, and two fits (Hoffmann et al. 2022,
            Besiroglu et al. 2024)"""

GOALS = ("tokens", "flops", "hours", "budget")
AMOUNTS = (*GOALS, "price_per_hour", "text_tokens", "mfu", "devices")


def plan_command(words: list[str]) -> int:
    """Estimate parameters, memory, time and cost."""
    devices = ", ".join(peak.name for peak in PEAKS)
    epilog = f"devices: {devices}\n\n{FORMULAS}"
    parser = make_parser("plan", "", plan_command, epilog=epilog)
    _add_amount_flags(parser)
    about = "the model and its batch (default: tiny on a CPU, baby on an accelerator)"
    add_run_flags(parser, words, about, short={"model.vocab_size": "vocab"}, skip=("device",))
    args = parser.parse(words)
    amounts = _read_amounts(args)
    changes = nest(given(args, RunConfig, skip=("recipe", "device")))
    check_early(args.recipe, {}, changes, where="the command line")
    with loading():
        from gptloom.api import configure
        from gptloom.studies.plan import Goal, make_plan
        from gptloom.studies.plan.compute_optimal import HERE, find_rate

    if args.device.partition(":")[0] in HERE:
        config = configure(args.recipe, {}, {**changes, "device": args.device}, where="the command line")
    else:
        config = resolve(args.recipe or "baby", changes, where="the command line")
    rate = find_rate(args.device, config, amounts.get("mfu"))
    goal = Goal(
        tokens=amounts.get("tokens"),
        flops=amounts.get("flops"),
        hours=amounts.get("hours"),
        money=amounts.get("budget"),
        price=amounts.get("price_per_hour"),
        devices=int(amounts["devices"]),
        text_tokens=amounts.get("text_tokens"),
    )
    found = make_plan(config, rate, goal)
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(found) if args.json else "\n".join(_lines(config, found)))
    return ExitCode.DONE


def _add_amount_flags(parser: Parser) -> None:
    parser.add_argument("--tokens", metavar="N", help="tokens to train on")
    parser.add_argument("--flops", metavar="N", help="operations to spend")
    parser.add_argument("--hours", metavar="N", help="time to spend")
    parser.add_argument("--budget", metavar="N", help="money to spend, with --price-per-hour")
    about = "auto, cpu, cuda or mps for this machine's device, or a device from the list below [auto]"
    parser.add_argument("--device", metavar="NAME", default="auto", help=about)
    about = "number of devices that share the work, without loss [1]"
    parser.add_argument("--devices", metavar="N", default="1", help=about)
    about = "share of the rate that training reaches, such as 0.4 (default: see below)"
    parser.add_argument("--mfu", metavar="SHARE", help=about)
    about = "price of one device, in any currency; without it only device-hours are printed"
    parser.add_argument("--price-per-hour", metavar="N", help=about)
    about = "tokens of the text; a warning says if the text is too short"
    parser.add_argument("--text-tokens", metavar="N", help=about)


def _read_amounts(args: argparse.Namespace) -> dict[str, float]:
    """Return the given amounts as numbers; raise ConfigError if they contradict each other."""
    texts = {name: getattr(args, name) for name in AMOUNTS}
    amounts = {
        name: read_amount(text, f"--{name.replace('_', '-')}") for name, text in texts.items() if text is not None
    }
    asked = [f"--{name}" for name in GOALS if name in amounts]
    if len(asked) > 1:
        what = f"{' and '.join(asked)} exclude one another"
        raise ConfigError(what, where="the command line", cure="give one of them")
    if "budget" in amounts and "price_per_hour" not in amounts:
        cure = "add --price-per-hour, in the same currency"
        raise ConfigError("needs the price of a device", where="--budget", cure=cure)
    if amounts.get("mfu", 0.0) > 1:
        raise ConfigError(f"{amounts['mfu']:g} is more than all of the rate", where="--mfu", cure="try --mfu 0.4")
    if amounts["devices"] != int(amounts["devices"]):
        what = f"{amounts['devices']:g} is not a number of devices"
        raise ConfigError(what, where="--devices", cure="give a whole number")
    return amounts


def _lines(config: RunConfig, found: Mapping[str, Any]) -> list[str]:
    """Format the plan as text, one fact per line."""
    m, operations, device = config.model, found["operations"], found["device"]
    width = f"{m.n_layer} layers, {m.n_head} heads, {m.n_embd} wide"
    shape = f"{width}, context {m.block_size}, vocabulary {m.vocab_size:,}"
    parts = ", ".join(f"{name} {count:,}" for name, count in found["parts"].items())
    attention = f"{show_amount(operations['attention'])} for attention at {m.block_size}"
    grown = f"{show_amount(operations['weights'])} for the weights, {attention}"
    per_token = f"{show_amount(operations['per_token'])} a token of training ({grown})"
    rate = f"{show_amount(device['operations_per_second'])} FLOP/s in {device['dtype']} ({device['source']})"
    share = f"{device['mfu']:.0%} ({device['mfu_source']})"
    return [
        f"model      {found['recipe']}: {found['parameters']:,} parameters: {shape}",
        f"parts      {parts}; {found['non_embedding']:,} without tables and head",
        f"operations {per_token}, {show_amount(operations['per_step'])} a step",
        *_memory(found["memory"], device),
        f"device     {device['devices']} x {device['name']}: {rate}, of which {share}",
        *(_training(found) if found["training"] else []),
        *(_optimal(found) if found["training"] else []),
    ]


def _memory(memory: Mapping[str, Any], device: Mapping[str, Any]) -> list[str]:
    state = memory["weights"] + memory["gradients"] + memory["optimizer"]
    passed = f"{show_bytes(memory['activations'])} for the activations of a pass of {memory['rows']} sequences"
    have = ""
    if device["memory"] is not None:
        most = f"for up to {memory['largest_rows']:,} sequences at once"
        have = f"; the device has {show_bytes(device['memory'])}, {most}"
    lines = [f"memory     {show_bytes(state)} for weights, gradients and optimizer, {passed}{have}"]
    cache = memory["cache_per_sequence"]
    if cache is not None:
        lines.append(f"           {show_bytes(cache)} for the cache of one sequence while sampling (float32)")
    return lines


def _training(found: Mapping[str, Any]) -> list[str]:
    training, device = found["training"], found["device"]
    aside = " (without n-grams)" if "ngrams" in found["parts"] else ""
    per_parameter = f"{_few(training['tokens_per_parameter'])} a parameter{aside}"
    readings = training["readings_of_the_text"]
    read = "" if readings is None else f", {readings:,.2f} readings of the text"
    unit = "device-hours" if device["devices"] > 1 else "hours"
    hours = f"{training['device_hours']:,.2f} {unit}"
    price = "" if training["price"] is None else f", {training['price']:,.2f} at the given price"
    from gptloom.training.progress import duration

    time = f"{duration(training['seconds'])} at {training['tokens_per_second']:,.0f} tokens/s"
    steps = f"{training['steps']:,.0f} steps of {training['tokens_per_step']:,}"
    return [
        f"tokens     {show_amount(training['tokens'])}: {steps}, {per_parameter}{read}",
        f"cost       {training['operations']:.3g} FLOP: {time}; {hours}{price}",
    ]


def _optimal(found: Mapping[str, Any]) -> list[str]:
    optimal, training = found["optimal"], found["training"]
    rows = [f"optimal    for {training['operations']:.3g} FLOP:"]
    for one in optimal["choices"]:
        nearest = f"nearest recipe: {one['recipe']['name']}, {show_amount(one['recipe']['parameters'])}"
        size = f"{show_amount(one['parameters'])} parameters on {show_amount(one['tokens'])} tokens"
        per_parameter = f"{_few(one['tokens'] / one['parameters'])} a parameter"
        rows.append(f"           {one['name']} ({one['source']}): {size}, {per_parameter}; {nearest}")
    rows.append(f"           {_judgement(training['tokens_per_parameter'])}")
    for one in optimal["predicted_loss"]:
        rows.append(f"           its loss would be {one['loss']:.2f} by {one['fit']}")
    return [*rows, f"           (all of this is {optimal['caveat']})"]


def _judgement(tokens_per_parameter: float) -> str:
    """Say whether the model has too few or too many tokens for its size."""
    from gptloom.studies.plan.compute_optimal import RULE

    ratio = tokens_per_parameter / RULE
    words, judged = "about as many as the rule", "a good use of the operations"
    if ratio > 2:
        words = f"{_few(ratio)} times as many as the rule"
        judged = "a larger model would reach a lower loss, but would be more expensive to use"
    elif ratio < 0.5:
        words, judged = f"1/{_few(1 / ratio)} of the rule", "a smaller model would reach a lower loss"
    return f"this model has {_few(tokens_per_parameter)} tokens a parameter, {words}: {judged}"


def _few(value: float | int) -> str:
    """Format with at least three digits and without powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SHOWN = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))


def read_amount(text: str, where: str, *, least: float = 0.0) -> float:
    """Parse a number with an optional letter: k (1e3), M (1e6), B or G (1e9), T (1e12).

    Args:
        text: the number.
        where: the flag, for error messages.
        least: the number must be larger than this.

    Raises:
        ConfigError: the text is not such a number, or the number is not above `least`.
    """
    found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[+-]?[0-9]{1,3})?|\.[0-9]+)\s*([kmbgt]?)", text.strip().lower())
    value = float(found[1].replace("_", "").replace(",", "")) * _SIZES[found[2]] if found else math.nan
    if not (math.isfinite(value) and value > least):
        more = f" above {least:g}" if least else " above 0"
        raise ConfigError(
            f"{shortened(text, 40)!r} is not an amount{more}", where=where, cure="write it as 300B, 1.5M or 1e21"
        )
    return value


def show_amount(value: float | int) -> str:
    """Format a number with three digits and a letter, or as a power of ten from 1e15 on."""
    if value >= 1e15:
        return f"{value:.3g}"
    for letter, size in _SHOWN:
        if value >= 0.9995 * size:
            digits = f"{value / size:.3g}"
            return f"{digits}{letter}"
    return f"{value:.3g}"


def show_bytes(count: float | int) -> str:
    """Format bytes as kB, MB, GB or TB (powers of ten)."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
