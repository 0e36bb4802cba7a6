"""A plan: a model's parameters, operations, memory and training time, and the compute-optimal alternative."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from gptloom.config.load import recipe_names, resolve
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError
from gptloom.generate.task import task_of
from gptloom.model.build import cache_bytes, count_parts, operations_per_token
from gptloom.studies.plan.compute_optimal import CAVEAT, FITS, Rate, compute_optimal, within_the_fit
from gptloom.training.memory import activation_bytes, held_bytes

FREE = 0.1
"""Share of a device's memory that is reserved for the driver and for fragmentation."""

REPEATED = 4
"""Largest number of epochs at which repeated text is about as good as new text (Muennighoff et al. 2023, section 5)."""


@dataclass(frozen=True)
class Goal:
    """The extent of a training; at most one of tokens, flops, hours and money is set.

    Attributes:
        tokens: the number of targets to train on.
        flops: the number of operations.
        hours: the hours, with all devices at once.
        money: the budget; see `price`.
        price: the price of one device per hour.
        devices: the number of devices.
        text_tokens: the number of tokens in the text.
    """

    tokens: float | None = None
    flops: float | None = None
    hours: float | None = None
    money: float | None = None
    price: float | None = None
    devices: int = 1
    text_tokens: float | None = None


def make_plan(config: RunConfig, rate: Rate, goal: Goal) -> dict[str, Any]:
    """Make a plan for JSON.

    Args:
        config: the model and its training.
        rate: the rate of one device.
        goal: the extent of the training; the default is the configuration's steps, minutes or epochs.

    Raises:
        ConfigError: the batch size is not a multiple of the number of devices.
    """
    if config.train.batch_size % goal.devices:
        why = f"{goal.devices} devices cannot share a batch of {config.train.batch_size}"
        raise ConfigError(why, where="--devices", cure="choose another --train.batch-size")
    parts = count_parts(config.model)
    parameters = sum(parts.values())
    computing = parameters - parts.get("ngrams", 0)
    training = _training(config, rate, goal, computing)
    plan: dict[str, Any] = {
        "recipe": config.recipe,
        "parameters": parameters,
        "parts": parts,
        "non_embedding": parameters - sum(parts.get(part, 0) for part in ("tables", "ngrams", "head")),
        "operations": _operations(config),
        "memory": _memory(config, rate, goal),
        "device": {
            "name": rate.name,
            "devices": goal.devices,
            "operations_per_second": rate.peak,
            "source": rate.source,
            "mfu": rate.mfu,
        }
        | {"mfu_source": rate.mfu_source, "dtype": str(rate.dtype).removeprefix("torch."), "memory": rate.memory},
        "training": training,
        "optimal": None if training is None else _optimal(training, computing),
    }
    return plan | {"warnings": _warnings(plan, goal)}


def _operations(config: RunConfig) -> dict[str, float | int]:
    """The operations of training per token and per step, their parts, and those of a forward pass per token."""
    whole, weights = operations_per_token(config.model), operations_per_token(config.model, 0)
    step = whole * config.train.batch_size * config.model.block_size
    return {
        "per_token": whole,
        "weights": weights,
        "attention": whole - weights,
        "per_step": step,
        "forward_per_token": whole / 3,
    }


def _memory(config: RunConfig, rate: Rate, goal: Goal) -> dict[str, Any]:
    """The bytes on each device, and the largest number of sequences per pass that fits."""
    rows = min(config.train.rows, config.train.batch_size // goal.devices)
    one, two, here = (
        activation_bytes(config.model, count, dtype=rate.dtype, on_cpu=rate.on_cpu) for count in (1, 2, rows)
    )
    held = held_bytes(config, on_cpu=rate.on_cpu)
    room = None if rate.memory is None else (1 - FREE) * rate.memory - held.total
    return {
        **asdict(held),
        "rows": rows,
        "activations": here,
        "in_all": held.total + here,
        "largest_rows": None if room is None else max(0, 1 + int((room - one) // (two - one))) if room >= one else 0,
        "cache_per_sequence": None
        if not task_of(config.model).causal
        else cache_bytes(config.model, config.model.block_size),
    }


def _training(config: RunConfig, rate: Rate, goal: Goal, parameters: int) -> dict[str, Any] | None:
    """The tokens, time and price of the training; None if the extent is unknown, or if the model has no products.

    `parameters` excludes the n-gram embedding: it costs almost no operations, and the published laws do not cover it.
    """
    per_token, per_step = operations_per_token(config.model), config.train.batch_size * config.model.block_size
    if not per_token:
        return None
    together = rate.reached * goal.devices
    hours = goal.hours if goal.money is None or goal.price is None else goal.money / goal.price / goal.devices
    train, tokens = config.train, goal.tokens
    if goal.flops is not None:
        tokens = goal.flops / per_token
    elif hours is not None:
        tokens = 3600 * hours * together / per_token
    elif tokens is None and train.steps is not None:
        tokens = float(train.steps * per_step)
    elif tokens is None and train.minutes is not None:
        tokens = 60 * train.minutes * together / per_token
    elif tokens is None and train.epochs is not None and goal.text_tokens is not None:
        tokens = train.epochs * goal.text_tokens
    if tokens is None:
        return None
    seconds = tokens * per_token / together
    device_hours = seconds / 3600 * goal.devices
    return {
        "tokens": tokens,
        "steps": tokens / per_step,
        "tokens_per_step": per_step,
        "tokens_per_parameter": tokens / parameters,
        "operations": tokens * per_token,
        "seconds": seconds,
        "tokens_per_second": together / per_token,
        "device_hours": device_hours,
        "price": None if goal.price is None else goal.price * device_hours,
        "readings_of_the_text": None if goal.text_tokens is None else tokens / goal.text_tokens,
    }


def _optimal(training: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """The compute-optimal choices for the same operations, and the predicted loss of this model."""
    found = [
        asdict(best) | {"recipe": nearest_recipe(best.parameters)} for best in compute_optimal(training["operations"])
    ]
    fits = FITS if within_the_fit(parameters) else ()
    return {
        "choices": found,
        "predicted_loss": [{"fit": fit.source, "loss": fit.loss(parameters, training["tokens"])} for fit in fits],
        "caveat": CAVEAT,
    }


def nearest_recipe(parameters: float | int) -> dict[str, Any]:
    """The decoder recipe whose number of parameters is nearest by ratio."""
    sizes = _recipe_sizes()
    name = min(sizes, key=lambda one: max(sizes[one] / parameters, parameters / sizes[one]))
    return {"name": name, "parameters": sizes[name]}


@lru_cache(maxsize=1)
def _recipe_sizes() -> dict[str, int]:
    """The parameters of each decoder recipe, without n-gram embeddings."""
    models = {name: resolve(name).model for name in recipe_names()}
    return {
        name: sum(count_parts(model).values()) - count_parts(model).get("ngrams", 0)
        for name, model in models.items()
        if model.architecture == "decoder"
    }


def _warnings(plan: Mapping[str, Any], goal: Goal) -> list[str]:
    """Warnings for settings that are probably mistakes, with cures."""
    memory, device, training = plan["memory"], plan["device"], plan["training"]
    found = []
    if memory["largest_rows"] == 0:
        found.append(
            f"not even one sequence fits into the {device['memory'] / 1e9:,.0f} GB of {device['name']}: "
            "choose a smaller model, or a larger device"
        )
    elif memory["largest_rows"] is not None and memory["largest_rows"] < memory["rows"]:
        cure = f"--train.micro-batch-size {memory['largest_rows']} or less fits"
        found.append(f"{memory['rows']} sequences at once do not fit into the memory of {device['name']}: {cure}")
    if not plan["operations"]["per_token"]:
        return [
            *found,
            "this model multiplies no matrices, and nothing else is counted here: gptloom bench measures it",
        ]
    if training is None:
        return [*found, "the extent of the training is not given: give --tokens, --flops, --hours or --budget"]
    readings = training["readings_of_the_text"]
    if readings is not None and readings > 1:
        many = f"the text has {goal.text_tokens:,.0f} tokens and would be read {readings:,.1f} times"
        good = f"up to {REPEATED} times that is about as good as new text (Muennighoff et al. 2023)"
        found.append(
            f"{many}; {good}" if readings <= REPEATED else f"{many}; only {good}: find more text, or train for less"
        )
    if training["steps"] < 1:
        found.append("that is less than one step: lower --train.batch-size")
    return found
