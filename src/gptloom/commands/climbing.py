"""`gptloom ladder`, in all its forms."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptloom.devices import describe_machine
from gptloom.errors import ExitCode
from gptloom.plots.studies import Stair, draw_staircase
from gptloom.studies.ladder import Climbed, climb
from gptloom.studies.ladder.lessons import find_lesson, read_lessons
from gptloom.studies.ladder.progress import make_watch
from gptloom.studies.ladder.report import Row, Verdict, monotone, summarise, table, write_report
from gptloom.studies.ladder.show import ABOUT, lines_of, show_architecture, show_lesson


def climb_command(texts: Sequence[str], asked: Mapping[str, Any], run: Path | None, as_json: bool) -> int:
    """Climb, then draw, report and print."""
    climbed = climb(texts, asked, run, make_watch())
    rows = summarise(climbed.lessons, climbed.rungs)
    story = monotone(rows)
    picture, report = climbed.folder / "staircase.png", climbed.folder / "report.html"
    _draw(climbed, rows, story, picture, report)
    found = {
        "command": _command(climbed),
        "machine": describe_machine(),
        "run": str(climbed.folder),
        "steps": [_as_dict(row) for row in rows],
        "seeds": climbed.seeds,
        "tokens_per_step": climbed.tokens,
        "story": [asdict(verdict) for verdict in story],
        "report": str(report),
        "picture": str(picture),
    }
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return ExitCode.DONE
    print("\n".join(table(rows, shutil.get_terminal_size((140, 24)).columns)))
    print("\n".join(_moral(story)), file=sys.stderr)
    print(f"{report}\nnext: gptloom sample {climbed.folder / 'models' / _last(rows)}, gptloom ladder show STEP")
    return ExitCode.DONE


def show_command(step: str | None, as_json: bool) -> int:
    """Print one step, or the list of all."""
    if step is None:
        found = [
            {"name": lesson.name, "title": lesson.title, "base": lesson.base} for lesson in read_lessons().values()
        ]
        found += [{"name": name, "title": about["title"], "base": None} for name, about in ABOUT.items()]
        print(
            json.dumps({"steps": found}) if as_json else "\n".join(f"{one['name']:<14} {one['title']}" for one in found)
        )
        return ExitCode.DONE
    shown = show_architecture(step) if step in ABOUT else show_lesson(find_lesson(step))
    print(json.dumps(shown, ensure_ascii=False) if as_json else "\n".join(lines_of(shown)))
    return ExitCode.DONE


def check_command(step: str, file: Path, as_json: bool) -> int:
    """Run a learner's file against the reference, and print what differs."""
    find_lesson(step)
    from gptloom.studies.check import check, report_lines

    report = check(step, file)
    print(json.dumps(asdict(report), ensure_ascii=False) if as_json else "\n".join(report_lines(report)))
    return ExitCode.DONE if report.passed else ExitCode.INPUT


def reproduce(names: Sequence[str], steps: int | None, as_json: bool) -> int:
    """Run the documents' own runs."""
    from gptloom.commands.reproducing import reproduce_command

    return reproduce_command(list(names), steps, as_json)


def _draw(climbed: Climbed, rows: Sequence[Row], story: Sequence[Verdict], picture: Path, report: Path) -> None:
    stairs = [
        Stair(
            row.lesson.name,
            row.val_loss,
            row.val_loss_sd,
            row.lesson.base,
            not row.lesson.trains,
            None if row.published is None else row.published.value,
        )
        for row in rows
    ]
    title = f"The ladder on {climbed.text}: {climbed.tokens:,} tokens a step, {climbed.seeds} seed{'s' * (climbed.seeds != 1)}"
    dark = picture.with_name("staircase-dark.png")
    draw_staircase(picture, stairs, title=title)
    draw_staircase(dark, stairs, title=title, dark=True)
    write_report(
        report,
        rows,
        story,
        {"light": picture, "dark": dark},
        text=climbed.text,
        seeds=climbed.seeds,
        tokens=climbed.tokens,
    )


def _command(climbed: Climbed) -> str:
    """What makes the same ladder again, whether or not this one was interrupted."""
    flags = [
        word
        for name, value in climbed.settings.items()
        for word in (f"--{name}", f"{value:g}" if isinstance(value, float) else str(value))
    ]
    return shlex.join(["gptloom", "ladder", *climbed.texts, *flags, "--json"])


def _as_dict(row: Row) -> dict[str, Any]:
    return {
        "name": row.lesson.name,
        "title": row.lesson.title,
        "base": row.lesson.base,
        "parameters": row.parameters,
        "tokens": row.tokens,
        "val_loss": row.val_loss,
        "val_loss_sd": row.val_loss_sd,
        "losses": list(row.losses),
        "seconds": round(row.seconds, 3),
        "bought": row.bought,
        "sample": row.sample,
        "published": [asdict(one) for one in row.lesson.published],
    }


def _moral(story: Sequence[Verdict]) -> list[str]:
    """Which steps made it worse beyond the spread, and whether their text says why."""
    worse = [verdict for verdict in story if verdict.worse]
    if not worse:
        return ["no step is worse than what it started from, beyond the spread over seeds"]
    known = [f"{verdict.step} ({verdict.difference:+.4f})" for verdict in worse if verdict.explained]
    other = [f"{verdict.step} ({verdict.difference:+.4f})" for verdict in worse if not verdict.explained]
    lines = [f"worse, as its text says it may be: {', '.join(known)}"] if known else []
    return lines + ([f"worse, against the lecture's story: {', '.join(other)}"] if other else [])


def _last(rows: Sequence[Row]) -> str:
    """The last step that has a model."""
    return next((row.lesson.name for row in reversed(rows) if row.lesson.trains), "STEP")
