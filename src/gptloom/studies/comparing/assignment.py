"""A student's four published runs as a ready-made example: what they changed, what can be concluded, and what it would have needed."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import Any

from gptloom.errors import ConfigError, nearest
from gptloom.studies.comparing.claims import Claim, check_directions, read_claim
from gptloom.studies.comparing.factors import Factor, show
from gptloom.studies.comparing.statistics import LEVEL, MOST_SEEDS, seeds_needed, t_quantile

STEPS = 200
"""Steps of the first run's stand-in, unless others are asked for; the longer run takes as many times more as the published one."""


@dataclass(frozen=True)
class Step:
    """From one published run to the next.

    Attributes:
        before: name of the earlier run.
        after: name of the later one.
        changes: {dotted key: (before, after)}.
        claim: what was said about it, read; None where nothing was.
        said: the same in words.
        difference: of the published validation losses at the shared step, after minus before.
        wrong: what the words get wrong.
    """

    before: str
    after: str
    changes: dict[str, tuple[Any, Any]]
    claim: Claim
    said: str
    difference: float
    wrong: list[str]


@dataclass(frozen=True)
class Example:
    """The published runs.

    Attributes:
        base: nested settings that all runs share, and the seed.
        runs: as published, in order.
        shared_step: the step at which their losses are compared.
        steps: from each run to the next.
    """

    base: dict[str, Any]
    runs: list[dict[str, Any]]
    shared_step: int
    steps: list[Step]

    def factors(self, steps: int) -> list[Factor]:
        """Every setting that was ever changed, from the first run's value to the first value it was changed to, one factor each.

        Args:
            steps: how many the first run's stand-in takes.
        """
        found: dict[str, Factor] = {}
        for step in self.steps:
            for key, (before, after) in step.changes.items():
                values = (steps, round(steps * after / before)) if key == "train.steps" else (before, after)
                found.setdefault(key, Factor(key, values))
        return list(found.values())


def example_names() -> list[str]:
    """The examples that come with gptloom."""
    return sorted(p.name.removesuffix(".toml") for p in resources.files("gptloom.studies.comparing").joinpath("examples").iterdir() if p.name.endswith(".toml"))


def read_example(name: str) -> Example:
    """An example by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in example_names():
        cure = nearest(name, example_names()) or f"choose from {', '.join(example_names())}"
        raise ConfigError(f"there is no example {name!r}", where="--example", cure=cure)
    data = tomllib.loads(resources.files("gptloom.studies.comparing").joinpath(f"examples/{name}.toml").read_text(encoding="utf-8"))
    runs = data["runs"]
    steps = [_step(before, after) for before, after in pairwise(runs)]
    return Example({"seed": data["seed"], **data["base"]}, runs, data["shared_step"], steps)


def _step(before: Mapping[str, Any], after: Mapping[str, Any]) -> Step:
    changes = {key: (old, after["settings"][key]) for key, old in before["settings"].items() if old != after["settings"][key]}
    claim = read_claim(after["mentioned"], changes)
    wrong = check_directions(claim, changes)
    return Step(before["name"], after["name"], changes, claim, after["mentioned"], after["val_loss"] - before["val_loss"], wrong)


def published_lines(example: Example) -> list[str]:
    """The runs as a table, and what each step changed and said."""
    keys = list(example.runs[0]["settings"])
    lines = [f"{'run':<22}" + "".join(f"{key.rpartition('.')[2]:>15}" for key in keys) + f"{'parameters':>12}{f'loss at {example.shared_step}':>14}"]
    for run in example.runs:
        lines.append(f"{run['name']:<22}" + "".join(f"{show(run['settings'][key]):>15}" for key in keys) + f"{run['parameters']:>12,}{run['val_loss']:>14.4f}")
    lines.append("One seed each (1337), losses on random batches of the validation split. A difference of two such runs has no interval.")
    for step in example.steps:
        names = ", ".join(key.rpartition(".")[2] for key in step.changes)
        lines.append(
            f"run {step.before[0]} to {step.after[0]}: {len(step.changes)} settings change at once ({names}); {abs(step.difference):.4f} lower at that step"
        )
        lines += [f"  {wrong}" for wrong in step.wrong]
        if "train.steps" in step.changes:
            lines.append(
                f"  the longer run cannot show by step {example.shared_step}: at a constant learning rate the steps that are still to come change nothing"
            )
    return lines


def needs(example: Example, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each published conclusion would have needed, by the noise that a comparison of its factors measured.

    Args:
        example: the published runs.
        result: of the comparison of `example.factors`, as `summarise` gives it.

    Returns:
        For each step: the effect in question, the largest spread (standard deviation) of the paired differences of its settings, the
        seeds that effect needs at that spread (None: over 100, or no spread was measured), and the trainings, one factor at a time.
    """
    spread: dict[str, float] = {}
    for comparison in result["comparisons"]:
        for key in comparison["changed"]:
            if comparison["sd"] is not None:
                spread[key] = max(spread.get(key, 0.0), comparison["sd"])
    found = []
    for step in example.steps:
        effect = step.claim.amount or abs(step.difference)
        known = [spread[key] for key in step.changes if key in spread]
        sd = max(known) if known else None
        seeds = None if sd is None else seeds_needed(effect, sd, LEVEL / len(step.changes))
        trainings = None if seeds is None else seeds * (len(step.changes) + 1)
        found.append({"run": step.after, "settings": list(step.changes), "effect": effect, "sd": sd, "seeds": seeds, "trainings": trainings})
    return found


def needs_lines(found: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    """The same in words, and how far two single runs of one setting lie apart by chance."""
    lines = []
    base = result["arms"][0]
    if base["sd"]:
        apart = t_quantile(0.975, result["seeds"] - 1) * math.sqrt(2) * base["sd"]
        lines.append(f"two single runs of the first setting lie up to {apart:.3f} apart by chance (95 %, from {result['seeds']} seeds)")
    for one in found:
        names = ", ".join(key.rpartition(".")[2] for key in one["settings"])
        if one["sd"] is None:
            need = "no spread was measured"
        elif one["seeds"] is None:
            need = f"over {MOST_SEEDS} seeds of each setting"
        else:
            need = f"{one['seeds']} seeds of each setting, {one['trainings']} trainings instead of 1 ({names}, one at a time)"
        lines.append(f"run {one['run']}: to show an effect of {one['effect']:.2f}: {need}")
    return lines
