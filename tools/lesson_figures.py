"""The measured figures of the lessons: the output of `gptloom ladder --json` as rows, words and a picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptloom.plots.studies import draw_staircase
from gptloom.studies.ladder.lessons import LECTURE_STEPS, WINDOW, read_lessons
from gptloom.studies.ladder.report import Row, describe_verdict, monotone, stairs_of


class Measured:
    """A ladder's JSON, with a row and a verdict for each step."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        """Split the JSON into rows and verdicts."""
        self.command, self.seeds = found["command"], found["seeds"]
        self.machine = machine_words(found["machine"])
        self.rows = {step["name"]: _row(step) for step in found["steps"]}
        self.verdicts = {one.step: one for one in monotone(list(self.rows.values()))}
        self.tokens = next(row.tokens for row in self.rows.values() if row.lesson.trains)
        self.counted = next(row.tokens for row in self.rows.values() if not row.lesson.trains)

    def how(self) -> str:
        """Sentences about the source of the figures."""
        times = {1: "one seed", 2: "two seeds, with their range in brackets"}.get(
            self.seeds, f"{self.seeds} seeds, with their standard deviation"
        )
        return (
            f"Measured by `{self.command}` on {self.machine}: {self.tokens:,} training tokens for each trained step, "
            f"{times}. The counted steps read the whole training split, {self.counted:,} tokens. Losses are nats per "
            "token on the whole validation split after the last step."
        )

    def limits(self) -> list[str]:
        """What so many tokens can show and what they cannot; nothing if they are the lecture's."""
        lecture = WINDOW * LECTURE_STEPS
        if self.tokens >= lecture:
            return []
        share = f"{self.tokens:,} training tokens are {self.tokens / lecture:.0%} of the lecture's {lecture:,}"
        return [
            f"**What these figures can show.** {share}. They show how fast "
            "the steps learn at first. They cannot show which step is better in the end: a larger model, for one, is "
            "behind a smaller one until it has had its training.",
            *self._published(),
            "",
        ]

    def _published(self) -> list[str]:
        """An example: a published loss after more training."""
        row, later = next(
            (row, one)
            for row in reversed(self.rows.values())
            for one in row.lesson.published
            if one.tokens is not None and one.tokens > self.tokens
        )
        return [
            f"The documents' {row.lesson.name} reaches {later.value:.4f} after {later.tokens:,} tokens, and "
            f"{row.val_loss:.4f} here. `gptloom ladder shakespeare` trains every step on the lecture's tokens."
        ]

    def verdict(self, name: str) -> str:
        """The verdict on a step in words."""
        return describe_verdict(self.rows[name], self.verdicts.get(name))


def machine_words(machine: Mapping[str, Any]) -> str:
    """The machine, for the middle of a sentence."""
    gpu = f", {', '.join(machine['cuda'])}" if machine["cuda"] else ""
    versions = f"Python {machine['python']}, torch {machine['versions']['torch']}"
    count = f"{machine['threads']} CPU thread{'s' * (machine['threads'] != 1)}"
    return f"{machine['system']} ({machine['cpu']}, {count}{gpu}; {versions})"


def read_measured(path: Path) -> Measured:
    """Read a ladder's JSON."""
    return Measured(json.loads(path.read_text(encoding="utf-8")))


def draw(measured: Measured, folder: Path) -> None:
    """Draw the staircase for light and dark pages."""
    stairs = stairs_of(list(measured.rows.values()))
    for name, dark in (("staircase.png", False), ("staircase-dark.png", True)):
        draw_staircase(folder / name, stairs, title=f"The ladder: {measured.tokens:,} tokens a trained step", dark=dark)


def bought_of(row: Row) -> str:
    """The base's loss minus the step's."""
    return "" if row.bought is None else f"{row.bought:+.4f}"


def _row(step: Mapping[str, Any]) -> Row:
    fields = {key: step[key] for key in ("parameters", "seconds", "bought", "sample", "tokens")}
    lesson = read_lessons()[step["name"]]
    return Row(lesson=lesson, losses=tuple(step["losses"]), source_text=True, **fields)
