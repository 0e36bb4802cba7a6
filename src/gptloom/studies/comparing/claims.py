"""Whether a change goes the way it is described: the words of a claim beside the numbers of the settings.

Only what can be told exactly is judged: a direction word (reduced, larger ...) beside the name of a setting with a number, and
better or worse, with an amount if one is given. A clause with a negation is left alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptloom.studies.comparing.factors import show

UP = r"increas\w*|rais(?:e|es|ed|ing)|larger|bigger|higher|more|longer|wider|deeper|grow(?:s|n|ing)?|grew|doubl(?:e|es|ed|ing)|add(?:s|ed|ing)?"
DOWN = r"reduc\w*|lower(?:s|ed|ing)?|decreas\w*|smaller|fewer|less|shorter|narrower|shallower|halv(?:e|es|ed|ing)|cut(?:s|ting)?|shrink(?:s|ing)?|remov\w*"
BETTER, WORSE = r"better|improv\w*|gain(?:s|ed)?", r"worse\w*|hurt(?:s|ing)?|degrad\w*"
NEGATION = re.compile(r"\b(?:not|no|never|without|instead|rather|neither)\b|n't\b", re.I)
NUMBER = r"\d*\.?\d+(?:e[+-]?\d+)?"
AMOUNT = re.compile(rf"(?:\b(?:by|about|around|roughly)\s+)({NUMBER})(?!\s*[%x\d])|({NUMBER})\s+(?:nats\s+)?(?:better|worse|lower|higher)\b", re.I)
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
            (found.start(), 1 if re.fullmatch(UP, found[0], re.I) else -1, found[0].lower()) for found in re.finditer(rf"\b(?:{UP}|{DOWN})\b", clause, re.I)
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
            if key not in taken and near and not any(min(near[0], place) < other < max(near[0], place) for other in where.values()):
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
            wrong.append(f"{name} goes from {show(before)} to {show(after)}: that is {noun}, and the description says the opposite")
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
