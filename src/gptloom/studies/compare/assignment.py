"""Whether a change goes the way it is described: the words of a claim beside the numbers of the settings.

Only what can be told exactly is judged: a direction word (reduced, larger ...) beside the name of a setting with a
number, and
better or worse, with an amount if one is given. A clause with a negation is left alone.

A student's four published runs as a ready-made example: what they changed, what can be concluded, and what it would
have needed.
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

UP = r"increas\w*|rais(?:e|es|ed|ing)|larger|bigger|higher|more|longer|wider|deeper|grow(?:s|n|ing)?|grew|doubl(?:e|es|ed|ing)|add(?:s|ed|ing)?"
DOWN = r"reduc\w*|lower(?:s|ed|ing)?|decreas\w*|smaller|fewer|less|shorter|narrower|shallower|halv(?:e|es|ed|ing)|cut(?:s|ting)?|shrink(?:s|ing)?|remov\w*"
BETTER, WORSE = r"better|improv\w*|gain(?:s|ed)?", r"worse\w*|hurt(?:s|ing)?|degrad\w*"
NEGATION = re.compile(r"\b(?:not|no|never|without|instead|rather|neither)\b|n't\b", re.I)
NUMBER = r"\d*\.?\d+(?:e[+-]?\d+)?"
AMOUNT = re.compile(
    rf"(?:\b(?:by|about|around|roughly)\s+)({NUMBER})(?!\s*[%x\d])|({NUMBER})\s+(?:nats\s+)?(?:better|worse|lower|higher)\b",
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
    """What a description says.

    Attributes:
        directions: {key: +1 for up, -1 for down}.
        mentioned: the settings it names.
        effect: +1 better, -1 worse, 0 where nothing is said.
        amount: how much, in the unit of the loss, or None.
    """

    directions: dict[str, int] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    effect: int = 0
    amount: float | None = None


def read_claim(text: str, keys: Iterable[str]) -> Claim:
    """Find in a description the directions of these settings and the effect on the loss."""
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
    """What a setting is called in prose: its field's name, with spaces too, and customary words."""
    name = key.rpartition(".")[2].replace("_", "[_ -]")
    return re.compile(rf"\b(?:{name}|{OTHER_WORDS[key]})\b" if key in OTHER_WORDS else rf"\b(?:{name})\b", re.I)


def _attach(claim: Claim, where: Mapping[str, int], words: list[tuple[int, int, str]], inherited: int) -> int:
    """Give each name in a clause its direction word: the one before it, else one after it that is free, else that of the clause before.

    No other name may stand between a name and its word.
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
    """What the description gets wrong about the changes: a direction, or a change that it does not name."""
    wrong, silent = [], []
    for key, (before, after) in changes.items():
        name, said = key.rpartition(".")[2], claim.directions.get(key, 0)
        way = _way(before, after)
        if said * way < 0:
            noun = "an increase" if way > 0 else "a decrease"
            wrong.append(
                f"{name} goes from {show(before)} to {show(after)}: that is {noun}, and the description says the opposite"
            )
        if key not in claim.mentioned:
            silent.append(f"{name} ({show(before)} to {show(after)})")
    if silent:
        wrong.append(f"changed, but not mentioned: {', '.join(silent)}")
    return wrong


def check_effect(claim: Claim, decision: str, low: float, high: float) -> list[str]:
    """What the description gets wrong about the measured difference, arm minus baseline; [low, high] is its 95 % interval."""
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
    """+1 for an increase, -1 for a decrease, 0 where the values are no numbers."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (before, after)):
        return 0
    return int(after > before) - int(after < before)


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
    return sorted(
        p.name.removesuffix(".toml")
        for p in resources.files("gptloom.studies.compare").joinpath("examples").iterdir()
        if p.name.endswith(".toml")
    )


def read_example(name: str) -> Example:
    """An example by name.

    Raises:
        ConfigError: there is none of that name.
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
    """The runs as a table, and what each step changed and said."""
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
        "One seed each (1337), losses on random batches of the validation split. A difference of two such runs has no interval."
    )
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
        For each step: the effect in question, the largest spread (standard deviation) of the paired differences of its
            settings, the
        seeds that effect needs at that spread (None: over 100, or no spread was measured), and the trainings, one
        factor at a time.
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
    """The same in words, and how far two single runs of one setting lie apart by chance."""
    lines = []
    base = result["arms"][0]
    if base["sd"]:
        apart = t_quantile(0.975, result["seeds"] - 1) * math.sqrt(2) * base["sd"]
        lines.append(
            f"two single runs of the first setting lie up to {apart:.3f} apart by chance (95 %, from {result['seeds']} seeds)"
        )
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
