"""The measured figures of the lessons: the output of `gptloom ladder --json` as rows, words and a picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptloom.plots.studies import Stair, draw_staircase
from gptloom.studies.ladder.lessons import read_lessons
from gptloom.studies.ladder.report import Row, Verdict, describe_verdict


class Measured:
    """A ladder's JSON, with a row and a verdict for each step."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        """Split the JSON into rows and verdicts."""
        self.command, self.tokens, self.seeds = found["command"], found["tokens_per_step"], found["seeds"]
        self.machine = machine_words(found["machine"])
        self.rows = {step["name"]: _row(step) for step in found["steps"]}
        self.verdicts = {one["step"]: Verdict(**one) for one in found["story"]}

    def how(self) -> str:
        """A sentence about the source of the figures."""
        times = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return (
            f"Measured by `{self.command}` on {self.machine}: {self.tokens:,} training tokens a step, {times}. "
            "Losses are nats per token on the whole validation split after the last step."
        )

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
    stairs = [
        Stair(
            name,
            row.val_loss,
            row.val_loss_sd,
            row.lesson.base,
            not row.lesson.trains,
            None if row.published is None else row.published.value,
        )
        for name, row in measured.rows.items()
    ]
    for name, dark in (("staircase.png", False), ("staircase-dark.png", True)):
        draw_staircase(folder / name, stairs, title=f"The ladder: {measured.tokens:,} tokens a step", dark=dark)


def loss_of(row: Row) -> str:
    """The mean loss and its standard deviation."""
    return f"{row.val_loss:.4f}" + ("" if row.val_loss_sd is None else f" ± {row.val_loss_sd:.4f}")


def bought_of(row: Row) -> str:
    """The base's loss minus the step's."""
    return "" if row.bought is None else f"{row.bought:+.4f}"


def _row(step: Mapping[str, Any]) -> Row:
    fields = {
        key: step[key] for key in ("parameters", "val_loss", "val_loss_sd", "seconds", "bought", "sample", "tokens")
    }
    return Row(lesson=read_lessons()[step["name"]], losses=tuple(step["losses"]), **fields)
