"""The result of a comparison for JSON: arms, differences, intervals, verdicts, and notes about them."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from gptloom.config.run import RunConfig
from gptloom.studies.compare import Outcome, Plan
from gptloom.studies.compare.assignment import check_directions, check_effect, read_claim
from gptloom.studies.compare.factors import Arm, show
from gptloom.studies.compare.statistics import FEWEST_SEEDS, LEVEL, RULE, Judged, judge, level_of_look

OTHER_BATCHES = ("data.tokenizer", "data.on_unknown", "data.sampling", "train.batch_size", "model.block_size")
"""Settings that change the batches of a seed."""


def unit_of(arms: Sequence[Arm]) -> str:
    """The unit of the losses: nats per token, or bits per byte if the arms have different tokens."""
    return (
        "nats per token"
        if len({(arm.config.data.tokenizer, arm.config.data.on_unknown) for arm in arms}) == 1
        else "bits per byte"
    )


def summarise(
    plan: Plan, outcomes: Sequence[Sequence[Outcome]], *, earlier_looks: int = 0, claim: str | None = None
) -> dict[str, Any]:
    """Summarise a comparison for JSON; `difference` and `interval` are arm minus baseline, so negative is better.

    Args:
        plan: the arms and seeds.
        outcomes: the results by arm and pair.
        earlier_looks: the number of earlier verdicts on fewer seeds.
        claim: a description of the change; it is compared with the settings and the result.
    """
    unit = unit_of(plan.arms)
    losses = [[one.val_loss if unit == "nats per token" else one.val_bpb for one in row] for row in outcomes]
    level = level_of_look(earlier_looks)
    judged = judge(losses[1:], losses[0], level)
    comparisons = [
        _comparison(plan, arm, one, level)
        | {"notes": pair_notes(plan, number, outcomes), "claims": _check(claim, plan.arms[number], one)}
        for number, (arm, one) in enumerate(zip(plan.arms[1:], judged, strict=True), start=1)
    ]
    first = {key: comparisons[0][key] for key in ("difference", "interval", "verdict")}
    arms = [_arm(arm, row, loss) for arm, row, loss in zip(plan.arms, outcomes, losses, strict=True)]
    rule = {"text": RULE, "level": level, "first_level": LEVEL, "earlier_looks": earlier_looks}
    return {
        "arms": arms,
        **first,
        "comparisons": comparisons,
        "unit": unit,
        "seeds": plan.seeds,
        "own_seeds": plan.own_seeds,
        "rule": rule,
        "claim": claim,
    }


def _arm(arm: Arm, row: Sequence[Outcome], losses: Sequence[float | None]) -> dict[str, Any]:
    there = [loss for loss in losses if loss is not None]
    return {
        "name": arm.name,
        "settings": {key: own for key, (_, own) in arm.changes.items()},
        "parameters": max(one.parameters for one in row),
        "steps": [one.steps for one in row],
        "losses": list(losses),
        "mean": fmean(there) if there else None,
        "sd": stdev(there) if len(there) >= FEWEST_SEEDS else None,
        "seconds": sum(one.seconds for one in row),
    }


def _comparison(plan: Plan, arm: Arm, found: Judged, level: float) -> dict[str, Any]:
    one = found.estimate
    return {
        "arm": arm.name,
        "against": plan.arms[0].name,
        "changed": {key: list(values) for key, values in arm.changes.items()},
        "differences": found.differences,
        "difference": None if one is None else one.mean,
        "interval": None if one is None else [one.low, one.high],
        "sd": None if one is None or one.n < FEWEST_SEEDS else one.sd,
        "p": found.p,
        "level": level,
        "decision": found.decision,
        "more_seeds": found.more_seeds,
        "verdict": found.verdict,
    }


def pair_notes(plan: Plan, number: int, outcomes: Sequence[Sequence[Outcome]] | None = None) -> list[str]:
    """Notes on other differences between an arm and the baseline, from the settings and, if given, the outcomes."""
    base, arm = plan.arms[0], plan.arms[number]
    notes = []
    if len(arm.changes) > 1:
        listed = ", ".join(f"{key.rpartition('.')[2]} {show(a)} to {show(b)}" for key, (a, b) in arm.changes.items())
        notes.append(
            f"{len(arm.changes)} settings change at once ({listed}): "
            "the difference belongs to all of them together, not to any one"
        )
    if not arm.changes and not plan.own_seeds:
        notes.append("the settings are the same: the losses must be equal (--own-seeds makes this an A/A comparison)")
    if others := [key.rpartition(".")[2] for key in OTHER_BATCHES if key in arm.changes]:
        notes.append(
            f"another {' and '.join(others)} makes other batches: the pairs share the seed, but not the data order"
        )
    if any(key in arm.changes for key in ("data.tokenizer", "data.on_unknown")):
        notes.append(
            "other tokens: compared in bits per byte, and the validation text begins at the nearest token, "
            "so not at quite the same character"
        )
    sizes = [_tokens(one.config) for one in (base, arm)]
    if sizes[0] and sizes[1] and sizes[0] != sizes[1]:
        notes.append(f"not the same number of training tokens: {sizes[1]:,} against {sizes[0]:,}")
    if base.config.train.minutes or arm.config.train.minutes:
        notes.append(
            "trained by the clock, so the number of steps, and with it the loss, depends on how busy the machine is"
        )
    return notes + (
        []
        if outcomes is None
        else _measured_notes(outcomes[0], outcomes[number], base.config.train.minutes is not None)
    )


def _measured_notes(base: Sequence[Outcome], arm: Sequence[Outcome], by_clock: bool) -> list[str]:
    notes = []
    counts = [{one.parameters for one in row if one.parameters} for row in (base, arm)]
    if all(counts) and counts[0] != counts[1]:
        notes.append(
            f"not the same number of parameters: {max(counts[1]):,} against {max(counts[0]):,}; "
            "the initial weights differ"
        )
    if by_clock:
        steps = [[one.steps for one in row] for row in (base, arm)]
        notes.append(
            f"steps taken: {min(steps[1]):,} to {max(steps[1]):,} against {min(steps[0]):,} to {max(steps[0]):,}"
        )
    return notes + [
        f"seed {number + 1} of {len(row)}: {one.trouble}"
        for row in (base, arm)
        for number, one in enumerate(row)
        if one.trouble
    ]


def _tokens(config: RunConfig) -> int | None:
    """The number of training tokens; None if the number of steps is not set."""
    return (
        None if config.train.steps is None else config.train.steps * config.train.batch_size * config.model.block_size
    )


def _check(text: str | None, arm: Arm, found: Judged) -> list[str]:
    """List the errors of a description about an arm; none if it names other settings only."""
    if text is None:
        return []
    claim = read_claim(text, arm.changes)
    if arm.changes and not claim.mentioned:
        return []
    low, high = (0.0, 0.0) if found.estimate is None else (found.estimate.low, found.estimate.high)
    return check_directions(claim, arm.changes) + check_effect(claim, found.decision, low, high)
