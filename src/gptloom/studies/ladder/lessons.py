"""The steps of the ladder, and the files of their results.

A step has a base step, a few changed settings, and their explanation (lessons/*.toml). `RungStore` reads and writes the
results of finished steps, so that a ladder can continue.

The progress display of a study with many trainings: a bar for all of them, or a line after each.
"""

import hashlib
import json
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from gptloom.config.load import merge, parse
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, InputError, nearest
from gptloom.studies.trial import Pace, read_as, write_record
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.progress import duration

PLAN = "ladder.json"
CURE = "start a new ladder in another folder (--run)"


@dataclass(frozen=True)
class Rung:
    """The result of training or counting one step once.

    Attributes:
        name: the step's name.
        seed: the seed of the training; None for a step that only counts.
        parameters: the number of parameters, or of stored counts.
        steps: optimizer steps.
        tokens: the tokens trained on, or counted.
        seconds: the seconds of training or counting, without evaluation.
        spent: the seconds in total.
        val_loss: nats per token on the whole validation split after the last step.
        val_bpb: the same in bits per byte.
        sample: a short text that is sampled from the model.
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
    """The plan of a ladder; it must not change when the ladder continues.

    Attributes:
        texts: the texts, as on the command line.
        settings: the ladder's settings.
        tokens: the training tokens of each step.
        identity: a hash of the text, the tokenizer and the steps.
        paces: the measured cost of each step, by name.
    """

    texts: list[str]
    settings: dict[str, Any]
    tokens: int
    identity: str
    paces: dict[str, Pace]


class RungStore:
    """A ladder's folder: ladder.json, trials/STEP/seed-N.json, and models/STEP for the first seed."""

    def __init__(self, folder: Path) -> None:
        """Store the path; nothing is read or written yet."""
        self.folder = folder

    def read_plan(self) -> Plan | None:
        """The plan of the ladder; None for a new folder.

        Raises:
            InputError: the folder holds something else, or the plan is damaged.
        """
        path = self.folder / PLAN
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(
                    "already exists and does not hold a ladder", where=str(self.folder), cure="choose another --run"
                )
            return None
        return read_as(path, Plan, cure=CURE)

    def write_plan(self, plan: Plan) -> None:
        """Write the plan of the ladder."""
        write_record(self.folder / PLAN, asdict(plan))

    def load(self, name: str, seed: int | None) -> Rung | None:
        """The result of a step with a seed; None if it has not finished."""
        path = self._path(name, seed)
        return read_as(path, Rung) if path.exists() else None

    def keep(self, rung: Rung) -> None:
        """Write a result atomically."""
        write_record(self._path(rung.name, rung.seed), asdict(rung))

    def model_folder(self, name: str) -> Path:
        """The folder for a step's model; it is created if necessary."""
        folder = self.folder / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def spent(self) -> float:
        """Seconds that all finished steps took."""
        return sum((read_as(path, Rung).spent for path in self.folder.glob("trials/*/*.json")), 0.0)

    def _path(self, name: str, seed: int | None) -> Path:
        return self.folder / "trials" / name / ("counts.json" if seed is None else f"seed-{seed}.json")


def fingerprint(values: Any) -> str:
    """The hexadecimal SHA-256 of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


WINDOW = 256
"""Training tokens in one step of the lecture: 32 sequences of 8."""

LECTURE_STEPS = 5000
"""Training steps of the lecture."""

EVALUATED = 2048
"""Tokens per evaluation batch; short windows are faster in larger batches."""


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        what: a description of the measurement.
        value: the number, in nats per token unless `what` names another unit.
        source: the publication.
        tokens: the training tokens; set only if the number is a validation loss of this step, and so comparable.
    """

    what: str
    value: float
    source: str
    tokens: int | None = None


@dataclass(frozen=True)
class Exercise:
    """The exercise of a step; `gptloom ladder check STEP FILE` checks a learner's solution.

    Attributes:
        task: the instructions.
        classes: the names that the learner's file must define.
    """

    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Lesson:
    """One step of the ladder.

    Attributes:
        name: the name on the command line.
        title: a short description.
        base: the step that this one starts from and is compared with; None for the first.
        counts: tokens in each counted sequence, 0 for the uniform distribution; None for a model that is trained.
        changes: the settings that differ from the base's, nested as in a recipe.
        idea: the idea of the step, in plain sentences.
        why: the purpose of the step.
        outcomes: sentences about the result, by the verdict that they belong to: "better", "level" or "worse" than the
            base (see `report.Verdict`). A sentence that depends on a figure is written here and nowhere else.
        published: published numbers to compare with.
        exercise: the exercise, or None.
    """

    name: str
    title: str
    base: str | None
    counts: int | None
    changes: Mapping[str, Any]
    idea: str
    why: str
    outcomes: Mapping[str, str] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    exercise: Exercise | None = None

    @property
    def trains(self) -> bool:
        """Whether the step trains a model and does not only count."""
        return self.counts is None


@cache
def read_lessons() -> dict[str, Lesson]:
    """All steps by name, in the order of their files' numbers."""
    files = sorted(resources.files("gptloom.studies.ladder").joinpath("lessons").iterdir(), key=lambda file: file.name)
    lessons = [
        _lesson(tomllib.loads(file.read_text(encoding="utf-8"))) for file in files if file.name.endswith(".toml")
    ]
    return {lesson.name: lesson for lesson in lessons}


def find_lesson(name: str) -> Lesson:
    """Find a step by its name.

    Raises:
        ConfigError: there is no such step; the message names the nearest one.
    """
    lessons = read_lessons()
    if name not in lessons:
        raise ConfigError(
            f"there is no step {name!r}",
            where="ladder",
            cure=nearest(name, lessons) or "see `gptloom ladder show` for the steps",
        )
    return lessons[name]


def choose_lessons(names: Iterable[str]) -> list[Lesson]:
    """The named steps and their bases, in the order of the ladder; all steps if no name is given."""
    wanted = [find_lesson(name) for name in names]
    kept = {lesson.name for lesson in wanted} | {lesson.base for lesson in wanted}
    return [lesson for name, lesson in read_lessons().items() if not wanted or name in kept]


def changes_of(lesson: Lesson) -> dict[str, Any]:
    """The settings of a step: its base's settings with its own changes."""
    below = changes_of(find_lesson(lesson.base)) if lesson.base is not None else {}
    return merge(below, lesson.changes)


def configure_lesson(
    lesson: Lesson, *, tokens: int, seed: int = 1337, device: str = "auto", vocab_size: int = 65
) -> RunConfig:
    """The settings for the training of a step.

    Args:
        lesson: a step that trains.
        tokens: the training tokens; the optimizer steps follow from the batch size and the context length.
        seed: the seed of weights, batches and dropout.
        device: see `devices.pick_device`.
        vocab_size: the vocabulary size of the tokenizer.
    """
    values = merge(changes_of(lesson), {"seed": seed, "device": device, "model": {"vocab_size": vocab_size}})
    config = parse(RunConfig, values, where=f"step {lesson.name}")
    steps = max(1, round(tokens / (config.train.batch_size * config.model.block_size)))
    rows = max(1, EVALUATED // config.model.block_size)
    # The loss is evaluated before the first step and after the last one only.
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
        outcomes={name: " ".join(text.split()) for name, text in values.get("outcomes", {}).items()},
        published=tuple(Published(**one) for one in values.get("published", ())),
        exercise=None if exercise is None else Exercise(exercise["task"], tuple(exercise["classes"])),
    )


PRIOR = 0.05
"""Weight of the expected pace against the measured pace, as a share of all work."""


class Watch(Callback):
    """A display of plain lines, and the base class of the bar. Work is measured in expected seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Set up the display; `say` prints a line."""
        self.say = say
        self.total = self.done = self.weight = 0.0
        self.label = ""
        self.spent, self._began = 0.0, time.monotonic()

    def expect(self, seconds: float) -> None:
        """Add this many expected seconds to the work."""
        self.total += seconds

    def begin(self, label: str, weight: float) -> None:
        """Start a training whose expected time is `weight` seconds."""
        self.label, self.weight = label, weight
        self._began = time.monotonic()
        self.show(0.0)

    def after_step(self, view: View) -> Request:
        """Show the progress of the current training."""
        self.show(view.step / view.total)
        return Request.NOTHING

    def finish(self, line: str) -> None:
        """End the current training, and print a line about it."""
        if self.weight:
            self.spent += time.monotonic() - self._began
        self.done, self.weight = self.done + self.weight, 0.0
        self.say(f"{line}  {self.left(0.0)}")
        self.show(0.0)

    def left(self, share: float) -> str:
        """The remaining time, when `share` of the current training is done.

        The estimate combines the expected pace and the measured pace, whose weight grows.
        """
        done = self.done + share * self.weight
        spent = self.spent + (time.monotonic() - self._began if self.weight else 0.0)
        believed = PRIOR * self.total
        remaining = self.total - done
        return (
            f"{duration(max(0.0, remaining * (spent + believed) / (done + believed)))} left"
            if remaining > 1e-9
            else "done"
        )

    def show(self, share: float) -> None:
        """Draw the progress; plain lines have no drawing."""

    def close(self) -> None:
        """End the display."""


class LiveWatch(Watch):
    """A progress bar of the whole study, below the lines."""

    def __init__(self, console: Console) -> None:
        """Set up the bar on a console."""
        super().__init__(lambda line: console.print(line, markup=False, highlight=False))
        self.bar = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.description}"),
            console=console,
        )
        self.task = self.bar.add_task("starting", total=1.0)
        self._drawn = 0.0
        self.bar.start()

    def show(self, share: float) -> None:
        """Move the bar, at most a few times a second."""
        now = time.monotonic()
        if 0.0 < share < 1.0 and now - self._drawn < 0.3:
            return
        self._drawn = now
        done = (self.done + share * self.weight) / max(self.total, 1e-9)
        self.bar.update(self.task, completed=done, description=escape(f"{self.label}  {self.left(share)}"))

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()


def make_watch() -> Watch:
    """A bar if standard error is a terminal, else plain lines."""
    console = Console(stderr=True)
    if console.is_terminal:
        return LiveWatch(console)
    return Watch(lambda line: print(line, file=console.file, flush=True))
