"""Run a comparison: every arm with every seed, pair by pair."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptloom.config import DataConfig, RunConfig
from gptloom.errors import ConfigError, DivergedError
from gptloom.runtime import derive
from gptloom.studies.comparing.factors import Arm, flatten
from gptloom.studies.comparing.kept import Folder, Outcome
from gptloom.studies.pace import rehearse
from gptloom.studies.trial import Material, open_material, run_trial
from gptloom.training.display import duration
from gptloom.training.schedule import make_horizon

NEVER = 10**9
"""Steps between evaluations where only the first and the last are wanted: evaluating takes time, and the last alone counts."""


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        arms: the baseline first.
        seeds: trainings of each arm.
        own_seeds: every arm has seeds of its own, so that nothing is shared in a pair (for A/A comparisons).
    """

    arms: list[Arm]
    seeds: int
    own_seeds: bool = False

    def seed(self, arm: int, pair: int) -> int:
        """The seed of a training: consecutive numbers, the same in all arms; or unrelated ones."""
        first = self.arms[0].config.seed
        return derive(first, "own seeds", arm, pair) if self.own_seeds else (first + pair) % 2**63

    def order(self) -> list[tuple[int, int]]:
        """(arm, pair) in the order of running: pair by pair, so that a machine that grows slower does so for all arms alike."""
        return [(arm, pair) for pair in range(self.seeds) for arm in range(len(self.arms))]


Materials = Mapping[DataConfig, Material]


def open_materials(texts: Sequence[str], arms: Sequence[Arm]) -> Materials:
    """The text, made ready once for each way of reading it that an arm asks for.

    Raises:
        ConfigError: the arms are not about the same thing: what is hidden, what comes next, and a translation have losses of their own.
        GptloomError: as `gptloom train` would.
    """
    kinds = {arm.config.model.architecture for arm in arms}
    if "encoder-decoder" in kinds or ("encoder" in kinds and len(kinds) > 1):
        what = f"losses of {' and '.join(sorted(kinds))} do not compare: they are about different tokens, or need pairs"
        raise ConfigError(what, where="architecture", cure="compare models that guess the next token, or encoders with encoders")
    return {config: open_material(texts, config) for config in dict.fromkeys(arm.config.data for arm in arms)}


def identity(plan: Plan, materials: Materials) -> dict[str, Any]:
    """What must be the same for a comparison to go on: everything but the number of seeds."""
    return {
        "own_seeds": plan.own_seeds,
        "seed": plan.arms[0].config.seed,
        "arms": {arm.name: flatten(arm.config) | {"text_sha256": materials[arm.config.data].text_sha256} for arm in plan.arms},
    }


def expected_seconds(arm: Arm, material: Material) -> float:
    """Seconds that one training of this arm will take, by a rehearsal; of one that diverges in it, nothing, for it will not last long."""
    train = arm.config.train
    per_step = train.batch_size * arm.config.model.block_size
    horizon = make_horizon(train, len(material.parts.train), per_step)
    try:
        pace = rehearse(arm.config, material)
    except DivergedError:  # a finding, which belongs to the trainings themselves
        return 0.0
    return pace.seconds(horizon.total * per_step) if horizon.seconds is None else pace.fixed + horizon.seconds


def estimate_times(plan: Plan, materials: Materials, folder: Folder | None, say: Callable[[str], None]) -> list[float]:
    """Seconds a training for each arm: measured where there are trainings, else rehearsed."""
    times = []
    for number, arm in enumerate(plan.arms):
        known = [found.wall for pair in range(plan.seeds) if folder and (found := folder.load(number, pair))]
        times.append(sum(known) / len(known) if known else expected_seconds(arm, materials[arm.config.data]))
        say(f"{arm.name}: about {duration(times[-1])} a training")
    return times


def run_all(plan: Plan, materials: Materials, folder: Folder, times: Sequence[float], say: Callable[[str], None]) -> list[list[Outcome]]:
    """Run what has not been run yet; returns the outcomes by arm and pair. A training that diverges is an outcome too.

    Args:
        plan: the arms and seeds.
        materials: the text.
        folder: where every outcome is kept at once.
        times: expected seconds of a training, for each arm.
        say: prints a line.
    """
    order = plan.order()
    found = {place: outcome for place in order if (outcome := folder.load(*place))}
    if found:
        say(f"{len(found)} of {len(order)} trainings are there already")
    for arm, pair in order:
        if (arm, pair) in found:
            continue
        config = _for_trial(plan.arms[arm].config, plan.seed(arm, pair))
        found[arm, pair] = outcome = _run(config, materials[config.data])
        folder.save(arm, pair, outcome)
        left = sum((_expected(other, found, times) for other, another in order if (other, another) not in found), 0.0)
        loss = outcome.trouble or f"validation loss {outcome.val_loss:.4f}"
        say(f"{len(found)} of {len(order)}  {plan.arms[arm].name}  seed {config.seed}  {loss}  {outcome.wall:.1f} s; {duration(left)} left")
    return [[found[arm, pair] for pair in range(plan.seeds)] for arm in range(len(plan.arms))]


def _expected(arm: int, found: Mapping[tuple[int, int], Outcome], times: Sequence[float]) -> float:
    """Seconds for a training of this arm: the mean of those that are done, else what was estimated."""
    known = [outcome.wall for (other, _), outcome in found.items() if other == arm]
    return sum(known) / len(known) if known else times[arm]


def _for_trial(config: RunConfig, seed: int) -> RunConfig:
    quiet = {} if config.train.eval_every or config.train.patience else {"eval_every": NEVER}
    return config.model_copy(update={"seed": seed, "train": config.train.model_copy(update=quiet)})


def _run(config: RunConfig, material: Material) -> Outcome:
    start = time.perf_counter()
    try:
        trial, _ = run_trial(config, material)
    except DivergedError as error:
        return Outcome(None, None, 0, 0, 0, 0.0, time.perf_counter() - start, trouble=error.line())
    if not trial.val_loss < float("inf"):
        return Outcome(
            None, None, trial.parameters, trial.steps, trial.tokens, trial.seconds, time.perf_counter() - start, trouble="the validation loss is no number"
        )
    return Outcome(trial.val_loss, trial.val_bpb, trial.parameters, trial.steps, trial.tokens, trial.seconds, time.perf_counter() - start)
