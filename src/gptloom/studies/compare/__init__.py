"""Run a comparison: train every arm with every seed, pair by pair.

The folder of a comparison holds its settings and the result of every finished training, so that an interrupted
comparison can continue.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptloom.config.run import DataConfig, RunConfig
from gptloom.devices import derive
from gptloom.errors import ConfigError, DivergedError, InputError
from gptloom.generate.task import task_of
from gptloom.studies.compare.factors import Arm, settings_of, show
from gptloom.studies.trial import Material, open_material, read_as, read_record, rehearse, run_trial, write_record
from gptloom.training.progress import duration
from gptloom.training.schedule import make_horizon


@dataclass(frozen=True)
class Outcome:
    """The result of one training, as it is stored on disk.

    Attributes:
        val_loss: nats per token on the whole validation split after the last step; None if the training diverged.
        val_bpb: the same in bits per byte.
        parameters: the model's parameters; 0 if the training diverged.
        steps: optimizer steps.
        tokens: targets trained on.
        seconds: the seconds of training.
        wall: the seconds in total, with evaluation.
        trouble: the reason if the training diverged.
    """

    val_loss: float | None
    val_bpb: float | None
    parameters: int
    steps: int
    tokens: int
    seconds: float
    wall: float
    trouble: str = ""


class Folder:
    """The folder of a comparison: comparison.json has its settings, trials/ARM-PAIR.json the result of a training."""

    def __init__(self, path: Path) -> None:
        """Store the path; nothing is read or written yet."""
        self.path = path

    def begin(self, about: Mapping[str, Any]) -> None:
        """Start a comparison in this folder, or check that the folder holds the same comparison.

        Args:
            about: the result of `compare.identity`: own_seeds, seed, and the arms by name.

        Raises:
            InputError: the folder holds something else.
            ConfigError: the settings or the text differ from those of the comparison in the folder.
        """
        path = self.path / "comparison.json"
        if path.exists():
            before = read_record(path)
            arms = before.get("arms")
            if (
                not {"own_seeds", "seed"} <= before.keys()
                or not isinstance(arms, dict)
                or not all(isinstance(arm, dict) for arm in arms.values())
            ):
                raise InputError("is not a comparison's record", where=str(path), cure="choose another --run")
            if difference := _differs(before, about):
                raise ConfigError(
                    f"this comparison began with other settings: {difference}",
                    where=str(self.path),
                    cure="give the same settings, or a new --run",
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError("is not empty, and not a comparison", where=str(self.path), cure="choose another --run")
        else:
            self.write("comparison.json", about)

    def load(self, arm: int, pair: int) -> Outcome | None:
        """The result of a training; None if it has not finished."""
        path = self.path / self._trial(arm, pair)
        return read_as(path, Outcome) if path.exists() else None

    def save(self, arm: int, pair: int, outcome: Outcome) -> None:
        """Store the result of a training."""
        self.write(self._trial(arm, pair), asdict(outcome))

    def looks(self) -> list[int]:
        """The numbers of seeds at which verdicts were given so far.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / "looks.json"
        seeds = read_record(path).get("seeds") if path.exists() else []
        if not isinstance(seeds, list) or not all(isinstance(one, int) for one in seeds):
            raise InputError(
                "does not list the numbers of seeds of earlier verdicts", where=str(path), cure="choose another --run"
            )
        return seeds

    def look(self, seeds: int) -> int:
        """Record a verdict on this number of seeds; return the number of verdicts on fewer seeds."""
        seen = sorted({*self.looks(), seeds})
        self.write("looks.json", {"seeds": seen})
        return seen.index(seeds)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file atomically."""
        write_record(self.path / name, value)

    def _trial(self, arm: int, pair: int) -> str:
        return f"trials/{arm:02}-{pair:03}.json"


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the first difference between two comparisons; "" if there is none."""
    for key in ("own_seeds", "seed"):
        if before[key] != now[key]:
            return f"{key} was {before[key]}, not {now[key]}"
    if list(before["arms"]) != list(now["arms"]):
        return f"its arms were {', '.join(before['arms'])}"
    for name, settings in now["arms"].items():
        old = before["arms"][name]
        for key in {**old, **settings}:
            if old.get(key) != settings.get(key):
                what = (
                    "the text has changed"
                    if key == "text_sha256"
                    else f"{key} was {show(old.get(key))}, not {show(settings.get(key))}"
                )
                return f"{what} ({name})"
    return ""


NEVER = 10**9
"""Steps between evaluations if only the first and last evaluation are needed; the last one alone counts."""


@dataclass(frozen=True)
class Plan:
    """The trainings of a comparison.

    Attributes:
        arms: the arms; the baseline is the first.
        seeds: the number of trainings of each arm.
        own_seeds: whether every arm has separate seeds, so that a pair shares no randomness (for A/A comparisons).
    """

    arms: list[Arm]
    seeds: int
    own_seeds: bool = False

    def seed(self, arm: int, pair: int) -> int:
        """The seed of a training: consecutive numbers that all arms share, or with `own_seeds` unrelated ones."""
        first = self.arms[0].config.seed
        return derive(first, "own seeds", arm, pair) if self.own_seeds else (first + pair) % 2**63

    def order(self) -> list[tuple[int, int]]:
        """(arm, pair) in the order of running: pair by pair, so that a slower machine affects all arms equally."""
        return [(arm, pair) for pair in range(self.seeds) for arm in range(len(self.arms))]


Materials = Mapping[DataConfig, Material]


def open_materials(texts: Sequence[str], arms: Sequence[Arm]) -> Materials:
    """Prepare the text once for each data configuration of the arms.

    Raises:
        ConfigError: the losses of the arms are not comparable: masked tokens, next tokens, or translations.
        GptloomError: see `gptloom train`.
    """
    kinds = {arm.config.model.architecture for arm in arms}
    if "encoder-decoder" in kinds or ("encoder" in kinds and len(kinds) > 1):
        what = f"losses of {' and '.join(sorted(kinds))} are not comparable: they predict other tokens, or need pairs"
        raise ConfigError(
            what, where="architecture", cure="compare models that predict the next token, or encoders with encoders"
        )
    return {config: open_material(texts, config) for config in dict.fromkeys(arm.config.data for arm in arms)}


def identity(plan: Plan, materials: Materials) -> dict[str, Any]:
    """The values that must not change when a comparison continues: everything except the number of seeds."""
    return {
        "own_seeds": plan.own_seeds,
        "seed": plan.arms[0].config.seed,
        "arms": {
            arm.name: settings_of(arm.config) | {"text_sha256": materials[arm.config.data].text_sha256}
            for arm in plan.arms
        },
    }


def expected_seconds(arm: Arm, material: Material) -> float:
    """Expected seconds of one training of this arm, by a rehearsal; 0 if the rehearsal diverges."""
    train = arm.config.train
    per_step = train.batch_size * arm.config.model.block_size
    batches = task_of(arm.config.model).training_batches(arm.config, material.parts.train, material.tokenizer)
    horizon = make_horizon(train, batches.steps_per_epoch)
    try:
        pace = rehearse(arm.config, material)
    except DivergedError:  # the training itself will report it
        return 0.0
    return pace.seconds(horizon.total * per_step) if horizon.seconds is None else pace.fixed + horizon.seconds


def estimate_times(plan: Plan, materials: Materials, folder: Folder | None, say: Callable[[str], None]) -> list[float]:
    """Seconds per training for each arm: the mean of finished trainings, or else a rehearsal's."""
    times = []
    for number, arm in enumerate(plan.arms):
        known = [found.wall for pair in range(plan.seeds) if folder and (found := folder.load(number, pair))]
        times.append(sum(known) / len(known) if known else expected_seconds(arm, materials[arm.config.data]))
        say(f"{arm.name}: about {duration(times[-1])} a training")
    return times


def run_all(
    plan: Plan, materials: Materials, folder: Folder, times: Sequence[float], say: Callable[[str], None]
) -> list[list[Outcome]]:
    """Run the trainings that have not finished yet; return the outcomes by arm and pair.

    A diverged training also has an outcome.

    Args:
        plan: the arms and seeds.
        materials: the texts by data configuration.
        folder: the folder that stores every outcome as soon as it is known.
        times: the expected seconds of a training, for each arm.
        say: a function that prints a line.
    """
    order = plan.order()
    found = {place: outcome for place in order if (outcome := folder.load(*place))}
    if found:
        say(f"{len(found)} of {len(order)} trainings have finished already")
    for arm, pair in order:
        if (arm, pair) in found:
            continue
        config = _for_trial(plan.arms[arm].config, plan.seed(arm, pair))
        found[arm, pair] = outcome = _run(config, materials[config.data])
        folder.save(arm, pair, outcome)
        left = sum((_expected(other, found, times) for other, another in order if (other, another) not in found), 0.0)
        loss = outcome.trouble or f"validation loss {outcome.val_loss:.4f}"
        say(
            f"{len(found)} of {len(order)}  {plan.arms[arm].name}  seed {config.seed}  {loss}  "
            f"{outcome.wall:.1f} s; {duration(left)} left"
        )
    return [[found[arm, pair] for pair in range(plan.seeds)] for arm in range(len(plan.arms))]


def _expected(arm: int, found: Mapping[tuple[int, int], Outcome], times: Sequence[float]) -> float:
    """Seconds per training of this arm: the mean of the finished trainings, or else the estimate."""
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
            None,
            None,
            trial.parameters,
            trial.steps,
            trial.tokens,
            trial.seconds,
            time.perf_counter() - start,
            trouble="the validation loss is not a number",
        )
    return Outcome(
        trial.val_loss,
        trial.val_bpb,
        trial.parameters,
        trial.steps,
        trial.tokens,
        trial.seconds,
        time.perf_counter() - start,
    )
