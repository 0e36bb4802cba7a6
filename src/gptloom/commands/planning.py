"""`gptloom plan`: lines for people, or one JSON object."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from gptloom.api import configure
from gptloom.config.load import resolve
from gptloom.config.run import RunConfig
from gptloom.errors import ExitCode
from gptloom.studies.plan.amounts import show_amount, show_bytes
from gptloom.studies.plan.compute_optimal import HERE, RULE, find_rate
from gptloom.studies.plan.plan import Goal, make_plan
from gptloom.training.progress import duration


def plan(args: argparse.Namespace, changes: Mapping[str, Any], amounts: Mapping[str, float]) -> int:
    """Reckon, and print."""
    here = args.device.partition(":")[0] in HERE
    if here:
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
    print(json.dumps(found) if args.json else "\n".join(lines(config, found)))
    return ExitCode.DONE


def lines(config: RunConfig, found: Mapping[str, Any]) -> list[str]:
    """The plan, a line a fact."""
    m, operations, device = config.model, found["operations"], found["device"]
    shape = (
        f"{m.n_layer} layers, {m.n_head} heads, {m.n_embd} wide, context {m.block_size}, vocabulary {m.vocab_size:,}"
    )
    grown = f"{show_amount(operations['weights'])} for the weights, {show_amount(operations['attention'])} for attention at {m.block_size}"
    rate = f"{show_amount(device['operations_per_second'])} FLOP/s in {device['dtype']} ({device['source']})"
    return [
        f"model      {found['recipe']}: {found['parameters']:,} parameters: {shape}",
        f"parts      {', '.join(f'{name} {count:,}' for name, count in found['parts'].items())}; {found['non_embedding']:,} without tables and head",
        f"operations {show_amount(operations['per_token'])} a token of training ({grown}), {show_amount(operations['per_step'])} a step",
        *_memory(found["memory"], device),
        f"device     {device['devices']} x {device['name']}: {rate}, of which {device['mfu']:.0%} ({device['mfu_source']})",
        *(_training(found) if found["training"] else []),
        *(_optimal(found) if found["training"] else []),
    ]


def _memory(memory: Mapping[str, Any], device: Mapping[str, Any]) -> list[str]:
    state = memory["weights"] + memory["gradients"] + memory["optimizer"]
    passed = f"{show_bytes(memory['activations'])} for the activations of a pass of {memory['rows']} sequences"
    cache = memory["cache_per_sequence"]
    have = (
        ""
        if device["memory"] is None
        else f"; the device has {show_bytes(device['memory'])}, for up to {memory['largest_rows']:,} sequences at once"
    )
    written = (
        []
        if cache is None
        else [f"           {show_bytes(cache)} for what is remembered of a text while writing (float32)"]
    )
    return [f"memory     {show_bytes(state)} for weights, gradients and optimizer, {passed}{have}", *written]


def _training(found: Mapping[str, Any]) -> list[str]:
    training, device = found["training"], found["device"]
    aside = " (n-grams aside)" if "ngrams" in found["parts"] else ""
    per_parameter = f"{_few(training['tokens_per_parameter'])} a parameter{aside}"
    readings = training["readings_of_the_text"]
    read = "" if readings is None else f", {readings:,.2f} readings of the text"
    hours = (
        f"{training['device_hours']:,.2f} device-hours"
        if device["devices"] > 1
        else f"{training['device_hours']:,.2f} hours"
    )
    price = "" if training["price"] is None else f", {training['price']:,.2f} at the given price"
    time = f"{duration(training['seconds'])} at {training['tokens_per_second']:,.0f} tokens/s"
    return [
        f"tokens     {show_amount(training['tokens'])}: {training['steps']:,.0f} steps of {training['tokens_per_step']:,}, {per_parameter}{read}",
        f"cost       {training['operations']:.3g} FLOP: {time}; {hours}{price}",
    ]


def _optimal(found: Mapping[str, Any]) -> list[str]:
    optimal, training = found["optimal"], found["training"]
    rows = [f"optimal    for {training['operations']:.3g} FLOP:"]
    for one in optimal["choices"]:
        nearest = f"nearest recipe: {one['recipe']['name']}, {show_amount(one['recipe']['parameters'])}"
        size = f"{show_amount(one['parameters'])} parameters on {show_amount(one['tokens'])} tokens"
        rows.append(
            f"           {one['name']} ({one['source']}): {size}, {_few(one['tokens'] / one['parameters'])} a parameter; {nearest}"
        )
    ratio = training["tokens_per_parameter"] / RULE
    words = (
        "about the rule's"
        if 0.5 <= ratio <= 2
        else f"{_few(ratio)} times the rule's"
        if ratio > 2
        else f"1/{_few(1 / ratio)} of the rule's"
    )
    judged = (
        "a smaller model would be better for this"
        if ratio < 0.5
        else "a larger one would be better for this, and dearer to use"
        if ratio > 2
        else "well spent"
    )
    rows.append(
        f"           this model has {_few(training['tokens_per_parameter'])} tokens a parameter, {words}: {judged}"
    )
    for one in optimal["predicted_loss"]:
        rows.append(f"           its loss would be {one['loss']:.2f} by {one['fit']}")
    return [*rows, f"           (all of this is {optimal['caveat']})"]


def _few(value: float | int) -> str:
    """Three digits at least, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
