"""The results of a ladder: a row and a verdict for each step, and a report as one HTML file (light and dark)."""

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptloom.config.base import field_names
from gptloom.config.run import RunConfig
from gptloom.studies.ladder.lessons import Lesson, Published, Rung, changes_of, find_lesson

if TYPE_CHECKING:
    from gptloom.plots.studies import Stair
    from gptloom.studies.ladder import Climbed

FEWEST_FOR_SD = 3
"""Fewest seeds of a standard deviation; for two, the range is shown."""


@dataclass(frozen=True)
class Row:
    """A step's results over all seeds.

    Attributes:
        lesson: the step.
        parameters: the number of parameters, or of stored counts.
        losses: the validation losses in nats per token, one per seed; a step that only counts has one.
        seconds: the seconds of training, mean over seeds.
        bought: the base's mean loss minus this step's; None if the base was not trained.
        sample: a text that was sampled from the first seed's model.
        tokens: the training tokens, or the counted ones.
        source_text: whether text and tokenizer are those of the published numbers.
    """

    lesson: Lesson
    parameters: int
    losses: tuple[float, ...]
    seconds: float
    bought: float | None
    sample: str
    tokens: int
    source_text: bool

    @property
    def val_loss(self) -> float:
        """The mean of the losses."""
        return statistics.fmean(self.losses)

    @property
    def val_loss_sd(self) -> float | None:
        """The standard deviation of the losses; None for fewer than `FEWEST_FOR_SD` seeds."""
        return statistics.stdev(self.losses) if len(self.losses) >= FEWEST_FOR_SD else None

    @property
    def published(self) -> Published | None:
        """The published validation loss of this step for the same text and the same training tokens, or None."""
        tokens = self.tokens if self.lesson.trains else 0
        return next((one for one in self.lesson.published if self.source_text and one.tokens == tokens), None)

    def loss_words(self) -> str:
        """The mean loss with its standard deviation, or with the range of two seeds."""
        if self.val_loss_sd is not None:
            return f"{self.val_loss:.4f} ± {self.val_loss_sd:.4f}"
        if len(self.losses) > 1:
            return f"{self.val_loss:.4f} ({min(self.losses):.4f} to {max(self.losses):.4f})"
        return f"{self.val_loss:.4f}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on whether a step increased the loss.

    Attributes:
        step: the step's name.
        difference: its loss minus its base's loss.
        spread: how far the differences of the seeds are apart (see `monotone`); 0 for one seed.
        outcome: better or worse than the base by more than the spread, or level; unknown for a training with one seed.
        explanation: the lesson's sentence about this outcome, or "".
    """

    step: str
    difference: float
    spread: float
    outcome: Literal["better", "level", "worse", "unknown"]
    explanation: str


def summarise(
    lessons: Sequence[Lesson], rungs: Mapping[str, Sequence[Rung]], *, source_text: bool = False
) -> list[Row]:
    """Make a row for each step from its results, in the order of their seeds.

    Args:
        lessons: the steps.
        rungs: the results by step.
        source_text: whether text and tokenizer are those of the published numbers.
    """
    rows = []
    for lesson in lessons:
        climbed = rungs[lesson.name]
        losses = tuple(rung.val_loss for rung in climbed)
        below = [rung.val_loss for rung in rungs.get(lesson.base or "", ())]
        rows.append(
            Row(
                lesson=lesson,
                parameters=climbed[0].parameters,
                losses=losses,
                seconds=statistics.fmean(rung.seconds for rung in climbed),
                bought=statistics.fmean(below) - statistics.fmean(losses) if below else None,
                sample=climbed[0].sample,
                tokens=climbed[0].tokens,
                source_text=source_text,
            )
        )
    return rows


def monotone(rows: Sequence[Row]) -> list[Verdict]:
    """Judge each step with a base: whether its loss differs by more than the spread over seeds.

    A seed determines the batches, so losses of the same seed are paired, and the spread is that of their differences:
    the range of two, the standard deviation of three and more. Few seeds are too few to estimate one step's spread. So
    the larger one of this spread and the root mean square over all steps is used.
    """
    by_name = {row.lesson.name: row for row in rows}
    differences = {
        row.lesson.name: _differences(row, by_name[row.lesson.base]) for row in rows if row.lesson.base in by_name
    }
    spreads = {name: _spread(some) for name, some in differences.items()}
    known = [spreads[name] ** 2 for name, some in differences.items() if len(some) > 1]
    pooled = statistics.fmean(known) ** 0.5 if known else 0.0
    verdicts = []
    for name, some in differences.items():
        lesson, difference = by_name[name].lesson, statistics.fmean(some)
        spread = max(spreads[name], pooled) if lesson.trains else 0.0
        outcome: Literal["better", "level", "worse", "unknown"] = "worse" if difference > 0 else "better"
        if lesson.trains and len(some) == 1:
            outcome = "unknown"
        elif abs(difference) <= spread:
            outcome = "level"
        verdicts.append(Verdict(name, difference, spread, outcome, lesson.outcomes.get(outcome, "")))
    return verdicts


def _spread(values: Sequence[float]) -> float:
    """The standard deviation; the range of two values; 0 for one."""
    return statistics.stdev(values) if len(values) >= FEWEST_FOR_SD else max(values) - min(values)


def stairs_of(rows: Sequence[Row]) -> list["Stair"]:
    """The rows as steps of the picture."""
    from gptloom.plots.studies import Stair

    stairs = []
    for row in rows:
        mean, sd = row.val_loss, row.val_loss_sd
        around = (mean - min(row.losses), max(row.losses) - mean) if sd is None else (sd, sd)
        published = None if row.published is None else row.published.value
        spread = around if len(row.losses) > 1 else None
        stairs.append(Stair(row.lesson.name, mean, spread, row.lesson.base, not row.lesson.trains, published))
    return stairs


def table(rows: Sequence[Row], width: int) -> list[str]:
    """The rows as lines of about `width` characters at most; the sample is cut to the remaining width."""
    kind = "sd" if any(row.val_loss_sd is not None for row in rows) else "range"
    lines = [f"{'step':<14} {'parameters':>10} {'val loss':>8} {kind:>7} {'bought':>8} {'seconds':>8}  sample"]
    for row in rows:
        spread = f"{_spread(row.losses):.4f}" if len(row.losses) > 1 else ""
        bought = "" if row.bought is None else f"{row.bought:+.4f}"
        line = f"{row.lesson.name:<14} {row.parameters:>10,} {row.val_loss:>8.4f} {spread:>7} {bought:>8} "
        line += f"{row.seconds:>8.1f}  "
        lines.append(line + one_line(row.sample)[: max(20, width - len(line))])
    return lines


def one_line(text: str) -> str:
    """A text on one line, with visible symbols for line ends and control characters."""
    return "".join(character if character.isprintable() else "·" for character in text.strip("\n").replace("\n", "↵"))


def _differences(row: Row, base: Row) -> list[float]:
    """The losses minus the base's losses by seed; the single loss of a counted step is used for all seeds."""
    count = max(len(row.losses), len(base.losses))
    above, below = (losses * count if len(losses) == 1 else losses for losses in (row.losses, base.losses))
    return [one - other for one, other in zip(above, below, strict=True)]


STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --ink: #1a1a1a; --soft: #5c5c5c; --line: #d9d9d9; --card: #f6f7f9; --good: #00588a; --bad: #a34700;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #16181c; --ink: #ececec; --soft: #a8a8a8; --line: #3a3d44; --card: #1e2127; --good: #7cc4ee; --bad: #f0a35e;
  }
}
body {
  background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.7rem; } h2 { font-size: 1.15rem; margin: 0 0 .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td {
  text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
}
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { font-family: ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; margin: 1rem 0;
}
section p { margin: .35rem 0; }
.soft { color: var(--soft); } .better { color: var(--good); } .worse { color: var(--bad); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; margin: .5rem 0 0; }
code { font-family: ui-monospace, monospace; }
a { color: var(--good); }
"""


def write_report(
    path: Path, climbed: "Climbed", rows: Sequence[Row], story: Sequence[Verdict], pictures: Mapping[str, Path]
) -> None:
    """Write the report.

    Args:
        path: the path of the HTML file.
        climbed: the ladder.
        rows: the rows of all steps.
        story: the verdicts.
        pictures: the PNG files for light and dark pages; they are embedded in the page.
    """
    verdicts = {verdict.step: verdict for verdict in story}
    name = escape(climbed.text)
    times = "once" if climbed.seeds == 1 else f"{climbed.seeds} times, each with another seed"
    spread = {1: "", 2: ", with the range of both seeds"}.get(climbed.seeds, ", with the standard deviation over seeds")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>The ladder on {name}</title><style>{STYLE}</style></head><body>",
        f"<h1>The ladder on {name}</h1>",
        *(f'<p class="worse"><strong>Warning:</strong> {escape(caveat)}.</p>' for caveat in climbed.caveats),
        f"<p>Every trained step was trained {times}, on {climbed.tokens:,} tokens. Losses are nats per token on the "
        f"whole validation split after the last step{spread}; <em>bought</em> is the base's loss minus the step's. "
        f"Counted steps read the whole training text, {climbed.counted:,} tokens, and their contexts are not limited "
        "by the windows that the trained models are evaluated on.</p>",
        _picture(pictures),
        f'<div class="wide">{_table(rows)}</div>',
        *(_section(row, verdicts.get(row.lesson.name)) for row in rows),
        "</body></html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def describe_changes(lesson: Lesson) -> list[str]:
    """The settings that a step changes, with the old and new values, such as `model.n_head: 1 -> 4`."""
    below = {} if lesson.base is None else changes_of(find_lesson(lesson.base))
    defaults = {name: field.get_default(call_default_factory=True) for name, field in field_names(RunConfig).items()}
    lines = []
    for group, fields in lesson.changes.items():
        for name, new in fields.items():
            old = below.get(group, {}).get(name, defaults.get(f"{group}.{name}"))
            lines.append(f"{group}.{name}: {new}" if not below else f"{group}.{name}: {old} -> {new}")
    return lines


def describe_verdict(row: Row, verdict: Verdict | None) -> str:
    """Sentences about the change of the loss: whether it is larger than the noise, and the lesson's explanation."""
    if verdict is None:
        return ""
    base = row.lesson.base
    change = f"{abs(verdict.difference):.4f} {'worse' if verdict.difference > 0 else 'better'}"
    if verdict.outcome == "unknown":
        return f"{change} than {base}; with one seed there is no telling this from noise."
    if verdict.outcome == "level":
        found = f"Within noise of {base}: {change}, where seeds differ by {verdict.spread:.4f}."
    else:
        found = f"{change} than {base}."
    return f"{found} {verdict.explanation}".rstrip()


def _picture(pictures: Mapping[str, Path]) -> str:
    data = {
        name: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()
    }
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{data["dark"]}">' if "dark" in data else ""
    alt = "Validation loss of each step; the figures are in the table below."
    return f'<picture>{dark}<img src="{data["light"]}" alt="{alt}"></picture>'


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "<table><thead><tr><th>step</th><th>parameters</th><th>validation loss</th><th>bought</th><th>published</th>"
        '<th>seconds</th><th class="text">a line of its text</th></tr></thead><tbody>'
    ]
    for row in rows:
        name = row.lesson.name
        bought = (
            ""
            if row.bought is None
            else f'<span class="{"better" if row.bought >= 0 else "worse"}">{row.bought:+.4f}</span>'
        )
        published = "" if row.published is None else f"{row.published.value:.4f}"
        lines.append(
            f'<tr><td><a href="#{name}">{name}</a></td><td>{row.parameters:,}</td><td>{row.loss_words()}</td>'
            f"<td>{bought}</td><td>{published}</td><td>{row.seconds:.1f}</td>"
            f'<td class="text">{escape(one_line(row.sample)[:60])}</td></tr>'
        )
    return "".join([*lines, "</tbody></table>"])


def _section(row: Row, verdict: Verdict | None) -> str:
    lesson = row.lesson
    came = f' <span class="soft">from {lesson.base}</span>' if lesson.base else ""
    lines = [f'<section id="{lesson.name}"><h2>{lesson.name}: {escape(lesson.title)}{came}</h2>']
    lines += [f"<p>{escape(' '.join(part.split()))}</p>" for part in (lesson.idea, lesson.why)]
    if changes := describe_changes(lesson):
        lines.append(
            f'<p class="soft">Changes: {", ".join(f"<code>{escape(change)}</code>" for change in changes)}</p>'
        )
    if verdict is not None:
        colour = verdict.outcome if verdict.outcome in ("better", "worse") else "soft"
        lines.append(f'<p class="{colour}">{escape(describe_verdict(row, verdict))}</p>')
    if row.published is not None:
        one = row.published
        lines.append(f'<p class="soft">Published: {one.value} ({escape(one.what)}; {escape(one.source)})</p>')
    return "".join([*lines, f"<pre>{escape(row.sample.strip(chr(10)))}</pre></section>"])
