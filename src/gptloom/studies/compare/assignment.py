"""Compare the description of a change with the settings and the measured difference.

Two statements are checked: a direction word (reduced, larger ...) with the name of a numeric setting, and better or
worse, with an amount if there is one. A clause with a negation is ignored.

An example is included: a student's four published runs, their changes, and the seeds that their conclusions would need.
"""

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from typing import Any

from gptloom.errors import ConfigError, nearest
from gptloom.studies.compare.factors import Factor, show
from gptloom.studies.compare.statistics import LEVEL, MOST_SEEDS, seeds_needed, t_quantile

UP = (
    r"increas\w*|rais(?:e|es|ed|ing)|larger|bigger|higher|more|longer|wider|deeper|grow(?:s|n|ing)?|grew"
    r"|doubl(?:e|es|ed|ing)|add(?:s|ed|ing)?"
)
DOWN = (
    r"reduc\w*|lower(?:s|ed|ing)?|decreas\w*|smaller|fewer|less|shorter|narrower|shallower|halv(?:e|es|ed|ing)"
    r"|cut(?:s|ting)?|shrink(?:s|ing)?|remov\w*"
)
BETTER, WORSE = r"better|improv\w*|gain(?:s|ed)?", r"worse\w*|hurt(?:s|ing)?|degrad\w*"
NEGATION = re.compile(r"\b(?:not|no|never|without|instead|rather|neither)\b|n't\b", re.I)
NUMBER = r"\d*\.?\d+(?:e[+-]?\d+)?"
AMOUNT = re.compile(
    rf"(?:\b(?:by|about|around|roughly)\s+)({NUMBER})(?!\s*[%x\d])"
    rf"|({NUMBER})\s+(?:nats\s+)?(?:better|worse|lower|higher)\b",
    re.I,
)
IMPLIED = {"deeper": "model.n_layer", "shallower": "model.n_layer", "wider": "model.n_embd", "narrower": "model.n_embd"}
OTHER_WORDS = {
    "train.learning_rate": r"lr",
    "train.batch_size": r"batch(?:es)?",
    "train.steps": r"iterations|iters|max_iters",
    "model.n_layer": r"layers|depth",
    "model.n_head": r"(?:attention |multi-?)?heads?",
    "model.n_embd": r"width|embedding size",
    "model.block_size": r"context(?: length)?",
}
LOSS = "loss"


@dataclass
class Claim:
    """The statements of a description.

    Attributes:
        directions: the direction of each setting by its key; +1 is up, -1 is down.
        mentioned: the keys of the settings that the description names.
        effect: +1 for better, -1 for worse, 0 for no statement.
        amount: the amount of the effect, in the unit of the loss, or None.
    """

    directions: dict[str, int] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    effect: int = 0
    amount: float | None = None


def read_claim(text: str, keys: Iterable[str]) -> Claim:
    """Find the directions of these settings, and the effect on the loss, in a description."""
    names = {key: _names(key) for key in keys}
    claim, direction = Claim(), 0
    for clause in re.split(r"[,;:!?()]|\.(?!\d)|\b(?:and|but|while|which|then)\b", text):
        where = {key: found.start() for key, name in names.items() if (found := name.search(clause))}
        claim.mentioned |= where.keys()
        if NEGATION.search(clause):
            continue
        words = [
            (found.start(), 1 if re.fullmatch(UP, found[0], re.I) else -1, found[0].lower())
            for found in re.finditer(rf"\b(?:{UP}|{DOWN})\b", clause, re.I)
        ]
        if loss := re.search(r"\b(?:loss(?:es)?|perplexity)\b", clause, re.I):
            where[LOSS] = loss.start()
        direction = _attach(claim, where, words, direction)
        _read_effect(claim, clause)
    return claim


def _names(key: str) -> re.Pattern[str]:
    """A pattern for a setting in prose: the field's name, also with spaces, and common synonyms."""
    name = key.rpartition(".")[2].replace("_", "[_ -]")
    return re.compile(rf"\b(?:{name}|{OTHER_WORDS[key]})\b" if key in OTHER_WORDS else rf"\b(?:{name})\b", re.I)


def _attach(claim: Claim, where: Mapping[str, int], words: list[tuple[int, int, str]], inherited: int) -> int:
    """Assign a direction word to each setting in a clause; return the direction that the next clause inherits.

    The word is the nearest one before the name, or else a free one after it, or else that of the clause before. No
    other name may be between a name and its word.
    """
    taken: dict[str, tuple[int, int, str]] = {}
    for after in (False, True):
        for key, place in sorted(where.items(), key=lambda item: item[1]):
            free = [word for word in words if (word[0] > place) == after and (not after or word not in taken.values())]
            near = min(free, key=lambda word: abs(word[0] - place), default=None)
            if (
                key not in taken
                and near
                and not any(min(near[0], place) < other < max(near[0], place) for other in where.values())
            ):
                taken[key] = near
    for key in where:
        sign = taken[key][1] if key in taken else 0 if words else inherited
        if key == LOSS:
            claim.effect = -sign or claim.effect
        elif sign:
            claim.directions[key] = sign
    if not where:
        for _, sign, word in words:
            if word in IMPLIED:
                claim.directions[IMPLIED[word]] = sign
                claim.mentioned.add(IMPLIED[word])
    return words[-1][1] if words else inherited


def _read_effect(claim: Claim, clause: str) -> None:
    says = [sign for pattern, sign in ((BETTER, 1), (WORSE, -1)) if re.search(rf"\b(?:{pattern})\b", clause, re.I)]
    if len(says) == 1:
        claim.effect = says[0]
    speaks_of_effect = bool(says) or bool(re.search(r"\bloss\b", clause, re.I))
    if speaks_of_effect and (found := AMOUNT.search(clause)):
        claim.amount = float(found[1] or found[2])


def check_directions(claim: Claim, changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """List the errors of a description about the changes: wrong directions, and changes that it does not name."""
    wrong, silent = [], []
    for key, (before, after) in changes.items():
        name, said = key.rpartition(".")[2], claim.directions.get(key, 0)
        way = _way(before, after)
        if said * way < 0:
            noun = "an increase" if way > 0 else "a decrease"
            wrong.append(
                f"{name} goes from {show(before)} to {show(after)}: that is {noun}, "
                "and the description says the opposite"
            )
        if key not in claim.mentioned:
            silent.append(f"{name} ({show(before)} to {show(after)})")
    if silent:
        wrong.append(f"changed, but not mentioned: {', '.join(silent)}")
    return wrong


def check_effect(claim: Claim, decision: str, low: float, high: float) -> list[str]:
    """List the errors of a description about the measured difference, arm minus baseline.

    Args:
        claim: the description's statements.
        decision: the verdict of the comparison.
        low: the lower end of the difference's 95 % interval.
        high: the upper end.
    """
    if not claim.effect:
        return []
    word = "better" if claim.effect > 0 else "worse"
    if decision not in ("better", "worse"):
        return [f"the description says {word}: these trainings do not show it"]
    if decision != word:
        return [f"the description says {word}: these trainings show the opposite"]
    least, most = sorted((abs(low), abs(high)))
    if claim.amount is not None and not least <= claim.amount <= most:
        return [f"the description says {claim.amount:g} {word}: that is outside the 95 % interval of these trainings"]
    return []


def _way(before: Any, after: Any) -> int:
    """+1 for an increase, -1 for a decrease, 0 if the values are equal or not numbers."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (before, after)):
        return 0
    return int(after > before) - int(after < before)


STEPS = 200
"""Default steps of the shortened first run. The ratio of the longer run's steps to it is that of the published runs."""


@dataclass(frozen=True)
class Step:
    """The change from one published run to the next.

    Attributes:
        before: the name of the earlier run.
        after: the name of the later run.
        changes: (value before, value after) by dotted key.
        claim: the statements of the description.
        said: the description.
        difference: the difference of the published validation losses at the shared step, after minus before.
        wrong: the errors of the description.
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
    """Published runs that were compared with each other.

    Attributes:
        base: the nested settings that all runs share, and the seed.
        runs: the published runs, in order.
        shared_step: the step at which their losses are compared.
        steps: the changes from each run to the next.
    """

    base: dict[str, Any]
    runs: list[dict[str, Any]]
    shared_step: int
    steps: list[Step]

    def factors(self, steps: int) -> list[Factor]:
        """One factor for every changed setting, with the first run's value and the first changed value.

        Args:
            steps: the steps of the shortened first run.
        """
        found: dict[str, Factor] = {}
        for step in self.steps:
            for key, (before, after) in step.changes.items():
                values = (steps, round(steps * after / before)) if key == "train.steps" else (before, after)
                found.setdefault(key, Factor(key, values))
        return list(found.values())


def example_names() -> list[str]:
    """The names of the examples that come with gptloom."""
    return sorted(
        p.name.removesuffix(".toml")
        for p in resources.files("gptloom.studies.compare").joinpath("examples").iterdir()
        if p.name.endswith(".toml")
    )


def read_example(name: str) -> Example:
    """Read an example by its name.

    Raises:
        ConfigError: there is no example of this name.
    """
    if name not in example_names():
        cure = nearest(name, example_names()) or f"choose from {', '.join(example_names())}"
        raise ConfigError(f"there is no example {name!r}", where="--example", cure=cure)
    data = tomllib.loads(
        resources.files("gptloom.studies.compare").joinpath(f"examples/{name}.toml").read_text(encoding="utf-8")
    )
    runs = data["runs"]
    steps = [_step(before, after) for before, after in pairwise(runs)]
    return Example({"seed": data["seed"], **data["base"]}, runs, data["shared_step"], steps)


def _step(before: Mapping[str, Any], after: Mapping[str, Any]) -> Step:
    changes = {
        key: (old, after["settings"][key]) for key, old in before["settings"].items() if old != after["settings"][key]
    }
    claim = read_claim(after["mentioned"], changes)
    wrong = check_directions(claim, changes)
    return Step(
        before["name"], after["name"], changes, claim, after["mentioned"], after["val_loss"] - before["val_loss"], wrong
    )


def published_lines(example: Example) -> list[str]:
    """The runs as a table, with the changes and the description errors of each step."""
    keys = list(example.runs[0]["settings"])
    lines = [
        f"{'run':<22}"
        + "".join(f"{key.rpartition('.')[2]:>15}" for key in keys)
        + f"{'parameters':>12}{f'loss at {example.shared_step}':>14}"
    ]
    for run in example.runs:
        lines.append(
            f"{run['name']:<22}"
            + "".join(f"{show(run['settings'][key]):>15}" for key in keys)
            + f"{run['parameters']:>12,}{run['val_loss']:>14.4f}"
        )
    lines.append(
        "One seed each (1337), losses on random batches of the validation split. "
        "A difference of two such runs has no interval."
    )
    for step in example.steps:
        names = ", ".join(key.rpartition(".")[2] for key in step.changes)
        lines.append(
            f"run {step.before[0]} to {step.after[0]}: {len(step.changes)} settings change at once ({names}); "
            f"{abs(step.difference):.4f} lower at that step"
        )
        lines += [f"  {wrong}" for wrong in step.wrong]
        if "train.steps" in step.changes:
            lines.append(
                f"  the longer run cannot show by step {example.shared_step}: "
                "at a constant learning rate, later steps have no effect on earlier ones"
            )
    return lines


def needs(example: Example, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compute the seeds that each published conclusion would need, from the measured noise of its settings.

    Args:
        example: the published runs.
        result: the result of comparing `example.factors`, as `summarise` returns it.

    Returns:
        For each step: the effect; the largest standard deviation of the paired differences of its settings; the number
        of seeds for that effect (None if it is over 100 or no spread was measured); and the number of trainings, if one
        factor is varied at a time.
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
        found.append(
            {
                "run": step.after,
                "settings": list(step.changes),
                "effect": effect,
                "sd": sd,
                "seeds": seeds,
                "trainings": trainings,
            }
        )
    return found


def needs_lines(found: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    """The result of `needs` in words, and the difference that two runs of one setting may have by chance."""
    lines = []
    base = result["arms"][0]
    if base["sd"]:
        apart = t_quantile(0.975, result["seeds"] - 1) * math.sqrt(2) * base["sd"]
        lines.append(
            f"two single runs of the first setting differ by up to {apart:.3f} by chance "
            f"(95 %, from {result['seeds']} seeds)"
        )
    for one in found:
        names = ", ".join(key.rpartition(".")[2] for key in one["settings"])
        if one["sd"] is None:
            need = "no spread was measured"
        elif one["seeds"] is None:
            need = f"over {MOST_SEEDS} seeds of each setting"
        else:
            need = f"{one['seeds']} seeds of each setting, {one['trainings']} trainings instead of 1 "
            need += f"({names}, one at a time)"
        lines.append(f"run {one['run']}: to show an effect of {one['effect']:.2f}: {need}")
    return lines
