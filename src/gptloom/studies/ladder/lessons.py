"""One step climbed once, as a file: what a ladder has done so far, and what it goes on from.

The lecture's steps as data: each a base, a few changed settings, and what there is to say about them (lessons/*.toml).
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from gptloom.config.load import merge, parse
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, InputError, nearest
from gptloom.studies.trial import Pace, read_as, write_record

PLAN = "ladder.json"
CURE = "start a new ladder in another folder (--run)"


@dataclass(frozen=True)
class Rung:
    """What one training, or one counting, of a step came to.

    Attributes:
        name: the step.
        seed: of this training; None where nothing is drawn.
        parameters: trained numbers, or kept counts.
        steps: optimizer steps.
        tokens: tokens trained on; for counts, tokens counted.
        seconds: of training or counting, without evaluation.
        spent: seconds in all.
        val_loss: nats per token on the whole validation split after the last step.
        val_bpb: the same in bits per byte.
        sample: a little text drawn from the model's own probabilities.
    """

    name: str
    seed: int | None
    parameters: int
    steps: int
    tokens: int
    seconds: float
    spent: float
    val_loss: float
    val_bpb: float | None
    sample: str


@dataclass(frozen=True)
class Plan:
    """What a ladder begins with, and must be the same when it goes on.

    Attributes:
        texts: as on the command line.
        settings: of the ladder.
        tokens: that each step is trained on.
        identity: hash of the text, the tokenizer and the steps.
        paces: what each step was measured to cost, by name.
    """

    texts: list[str]
    settings: dict[str, Any]
    tokens: int
    identity: str
    paces: dict[str, Pace]


class RungStore:
    """A ladder's folder: ladder.json, trials/STEP/seed-N.json, and models/STEP for the first seed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        self.folder = folder

    def read_plan(self) -> Plan | None:
        """What the ladder began with; None for a new folder.

        Raises:
            InputError: the folder holds something else, or the plan is damaged.
        """
        path = self.folder / PLAN
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(
                    "already exists and holds no ladder", where=str(self.folder), cure="choose another --run"
                )
            return None
        return read_as(path, Plan, cure=CURE)

    def write_plan(self, plan: Plan) -> None:
        """Keep what the ladder begins with."""
        write_record(self.folder / PLAN, asdict(plan))

    def load(self, name: str, seed: int | None) -> Rung | None:
        """A finished rung; None where it has not been climbed."""
        path = self._path(name, seed)
        return read_as(path, Rung) if path.exists() else None

    def keep(self, rung: Rung) -> None:
        """Write a finished rung, whole or not at all."""
        write_record(self._path(rung.name, rung.seed), asdict(rung))

    def model_folder(self, name: str) -> Path:
        """An existing folder for a step's model."""
        folder = self.folder / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def spent(self) -> float:
        """Seconds that all finished rungs took."""
        return sum((read_as(path, Rung).spent for path in self.folder.glob("trials/*/*.json")), 0.0)

    def _path(self, name: str, seed: int | None) -> Path:
        return self.folder / "trials" / name / ("counts.json" if seed is None else f"seed-{seed}.json")


def fingerprint(values: Any) -> str:
    """Hex SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


WINDOW = 256
"""Training tokens in one step of the lecture: 32 sequences of 8."""

LECTURE_STEPS = 5000
"""How many of them the lecture takes."""

EVALUATED = 2048
"""Tokens that are evaluated at once: short windows are quicker in larger batches."""


@dataclass(frozen=True)
class Published:
    """A number that a source prints.

    Attributes:
        what: what was measured, in words.
        value: nats per token, unless `what` says otherwise.
        source: where it is printed.
        tokens: training tokens at that point; given where the number is a validation loss of this very step, and so
            comparable.
    """

    what: str
    value: float
    source: str
    tokens: int | None = None


@dataclass(frozen=True)
class Exercise:
    """What a learner can write for a step; `gptloom ladder check STEP FILE` runs it.

    Attributes:
        task: what to do.
        classes: names that the learner's file defines.
    """

    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Lesson:
    """One step of the ladder.

    Attributes:
        name: as on the command line.
        title: what the step is, in a few words.
        base: the step that this one starts from and is compared with; None for the first.
        counts: tokens in each counted sequence, 0 for the uniform guess; None for a model that is trained.
        changes: settings that differ from the base's, nested as in a recipe.
        idea: what is done, in plain sentences.
        why: what it is good for.
        worse_is_expected: why the loss may be higher than the base's, or nothing.
        published: numbers to compare with.
        exercise: what to write oneself.
    """

    name: str
    title: str
    base: str | None
    counts: int | None
    changes: Mapping[str, Any]
    idea: str
    why: str
    worse_is_expected: str = ""
    published: tuple[Published, ...] = ()
    exercise: Exercise | None = None

    @property
    def trains(self) -> bool:
        """Whether there is a model to train, not only counts."""
        return self.counts is None


@cache
def read_lessons() -> dict[str, Lesson]:
    """All steps by name, in the order in which they are climbed (that of their files' numbers)."""
    files = sorted(resources.files("gptloom.studies.ladder").joinpath("lessons").iterdir(), key=lambda file: file.name)
    lessons = [
        _lesson(tomllib.loads(file.read_text(encoding="utf-8"))) for file in files if file.name.endswith(".toml")
    ]
    return {lesson.name: lesson for lesson in lessons}


def find_lesson(name: str) -> Lesson:
    """A step by its name; ConfigError names the nearest one."""
    lessons = read_lessons()
    if name not in lessons:
        raise ConfigError(
            f"there is no step {name!r}",
            where="ladder",
            cure=nearest(name, lessons) or "see `gptloom ladder show` for the steps",
        )
    return lessons[name]


def choose_lessons(names: Iterable[str]) -> list[Lesson]:
    """These steps and what each is compared with, in climbing order; all steps when no name is given."""
    wanted = [find_lesson(name) for name in names]
    kept = {lesson.name for lesson in wanted} | {lesson.base for lesson in wanted}
    return [lesson for name, lesson in read_lessons().items() if not wanted or name in kept]


def changes_of(lesson: Lesson) -> dict[str, Any]:
    """The settings that a step comes to: its base's, with its own changes over them."""
    below = changes_of(find_lesson(lesson.base)) if lesson.base is not None else {}
    return merge(below, lesson.changes)


def configure_lesson(
    lesson: Lesson, *, tokens: int, seed: int = 1337, device: str = "auto", vocab_size: int = 65
) -> RunConfig:
    """The settings that a step is trained with.

    Args:
        lesson: a step that trains.
        tokens: training tokens that every step gets; each takes as many steps as that makes at its size, at least one.
        seed: of weights, batches and dropout.
        device: see `devices.pick_device`.
        vocab_size: the tokenizer's.
    """
    values = merge(changes_of(lesson), {"seed": seed, "device": device, "model": {"vocab_size": vocab_size}})
    config = parse(RunConfig, values, where=f"step {lesson.name}")
    steps = max(1, round(tokens / (config.train.batch_size * config.model.block_size)))
    rows = max(1, EVALUATED // config.model.block_size)
    # The untrained model and the trained one are measured, and nothing between.
    known = {"train": {"steps": steps, "eval_every": steps, "eval_batch_size": rows, "sample_tokens": 0}}
    return parse(RunConfig, merge(values, known), where=f"step {lesson.name}")


def _lesson(values: dict[str, Any]) -> Lesson:
    exercise = values.pop("exercise", None)
    return Lesson(
        name=values["name"],
        title=values["title"],
        base=values.get("base"),
        counts=values.get("counts"),
        changes=values.get("changes", {}),
        idea=values["idea"],
        why=values["why"],
        worse_is_expected=values.get("worse_is_expected", ""),
        published=tuple(Published(**one) for one in values.get("published", ())),
        exercise=None if exercise is None else Exercise(exercise["task"], tuple(exercise["classes"])),
    )
