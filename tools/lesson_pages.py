"""Write docs/lessons from the steps' TOML, the plain code and measured.json: `python tools/lesson_pages.py`.

A test compares the pages with the result of this script. measured.json is the unchanged output of `gptloom ladder
shakespeare --minutes 15 --json`; no figure is typed by hand.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lesson_figures import Measured, bought_of, draw, read_measured

from gptloom.studies.check.exercises import EXERCISES
from gptloom.studies.check.formulas import MESSAGES
from gptloom.studies.ladder.lessons import Lesson, read_lessons
from gptloom.studies.ladder.report import Row, describe_changes
from gptloom.studies.ladder.show import ABOUT, show_architecture, show_lesson

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "lessons"
MEASURED = TARGET / "measured.json"
ERRORS = ROOT / "tools" / "known_errors.toml"
MADE = "Made by `python tools/lesson_pages.py`; to be changed there, not here."
NOTEBOOKS = {
    "01-counting": ("uniform", "unigram", "bigram-counts", "trigram-counts", "4gram-counts", "5gram-counts"),
    "02-tables": ("bigram", "embedding", "positions"),
    "03-attention": ("averaging", "one-head", "multi-head", "score-scale"),
    "04-blocks": ("mlp", "residual", "layernorm", "post-norm", "dropout", "scale"),
    "05-modern": ("gpt2-init", "gelu", "rope", "rmsnorm", "qk-norm", "swiglu", "gqa", "modern"),
    "06-neighbours": ("rnn", "lstm", "gru", *ABOUT),
}
"""The steps of each notebook."""

PICTURE = (
    '<picture><source media="(prefers-color-scheme: dark)" srcset="staircase-dark.png">'
    '<img src="staircase.png" alt="Validation loss of each step; the figures are in the table below."></picture>'
)

ERROR_PAGE, ARCHITECTURE_PAGE = "known-errors.md", "who-may-look.md"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    measured = read_measured(MEASURED)
    lessons = read_lessons()
    files = file_names()
    found = {files[name]: step_page(lesson, files, measured) for name, lesson in lessons.items()}
    found[ARCHITECTURE_PAGE] = architecture_page()
    found[ERROR_PAGE] = errors_page(read_errors(), files, measured)
    found["README.md"] = index_page(lessons, files, measured)
    return {name: "\n".join(lines).rstrip("\n") + "\n" for name, lines in found.items()}


def file_names() -> dict[str, str]:
    """The file name of each step's page, numbered in the order of the ladder."""
    return {name: f"{number:02}-{name}.md" for number, name in enumerate(read_lessons(), 1)}


def read_errors() -> list[dict[str, str]]:
    """The documents' known errors, explained."""
    errors: list[dict[str, str]] = tomllib.loads(ERRORS.read_text(encoding="utf-8"))["errors"]
    return errors


def index_page(lessons: Mapping[str, Lesson], files: Mapping[str, str], measured: Measured) -> list[str]:
    """The table of all steps."""
    lines = [
        "# Lessons",
        "",
        MADE,
        "",
        "A GPT built step by step. Each step has a page with its idea, its code, its measurements and an exercise.",
        *measured.limits(),
    ]
    lines += [
        f"Then there is [who may look at whom]({ARCHITECTURE_PAGE}): decoder, encoder and encoder-decoder; and the"
    ]
    lines += [
        f"[known errors]({ERROR_PAGE}) of the documents that the lecture comes from, with what each costs.",
        "",
        measured.how(),
        "",
    ]
    lines += [
        PICTURE,
        "",
        "*Bought* is the loss of the step that a step starts from, minus its own loss. A published loss is shown if a",
        "document prints one after the same number of training tokens.",
        "",
    ]
    lines += [
        "| step | starts from | parameters | validation loss | published | bought |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, lesson in lessons.items():
        row = measured.rows.get(name)
        base = f"[{lesson.base}]({files[lesson.base]})" if lesson.base else ""
        figures = (
            [
                f"{row.parameters:,}",
                row.loss_words(),
                "" if row.published is None else f"{row.published.value:.4f}",
                bought_of(row),
            ]
            if row
            else [""] * 4
        )
        lines.append(f"| [{name}]({files[name]}): {lesson.title} | {base} | {' | '.join(figures)} |")
    lines += ["", "## Notebooks", "", "One for each group of steps, to run and to write in:", ""]
    for notebook, names in NOTEBOOKS.items():
        lines.append(f"- [{notebook}](../../notebooks/{notebook}.ipynb): {', '.join(names)}")
    return lines


def step_page(lesson: Lesson, files: Mapping[str, str], measured: Measured) -> list[str]:
    """The page of one step."""
    shown = show_lesson(lesson)
    lines = [f"# {lesson.name}: {lesson.title}", "", MADE, "", navigation(lesson, files), "", *measured.limits()]
    lines += ["## The idea", "", shown["idea"], "", "## What it is good for", "", shown["why"], ""]
    lines += (
        changes_part(lesson, shown["parameters"])
        + figures_part(lesson, measured)
        + published_part(lesson, measured.rows.get(lesson.name))
    )
    lines += shapes_part(shown["shapes"]) + exercise_part(lesson) + code_part(lesson, shown["code"])
    return lines


def navigation(lesson: Lesson, files: Mapping[str, str]) -> str:
    """Links to the base step and to the following steps."""
    names = list(files)
    place = names.index(lesson.name)
    notebook = next(notebook for notebook, steps in NOTEBOOKS.items() if lesson.name in steps)
    links = [f"starts from [{lesson.base}]({files[lesson.base]})"] if lesson.base else []
    links += [f"before: [{names[place - 1]}]({files[names[place - 1]]})"] if place else []
    links += [f"next: [{names[place + 1]}]({files[names[place + 1]]})"] if place + 1 < len(names) else []
    return " · ".join([*links, "[all steps](README.md)", f"[notebook](../../notebooks/{notebook}.ipynb)"])


def changes_part(lesson: Lesson, parameters: int | None) -> list[str]:
    """The settings that differ from the base's."""
    lines = ["## What it changes", ""]
    if not lesson.trains:
        return [
            *lines,
            f"Nothing is trained. Counted are sequences of {lesson.counts} tokens and shorter."
            if lesson.counts
            else "Nothing is trained.",
            "",
        ]
    lines += [f"- `{change}`" for change in describe_changes(lesson)]
    return [*lines, "", f"With an alphabet of 65 characters the model has {parameters:,} parameters.", ""]


def figures_part(lesson: Lesson, measured: Measured) -> list[str]:
    """The section about the ladder's measurements."""
    row = measured.rows.get(lesson.name)
    if row is None:
        return []
    base = measured.rows.get(lesson.base or "")
    lines = [
        "## What was measured",
        "",
        measured.how(),
        "",
        "| step | parameters | validation loss | each seed | seconds |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for one in [row, *([base] if base else [])]:
        each = ", ".join(f"{loss:.4f}" for loss in one.losses) if one.lesson.trains else "nothing is drawn"
        lines.append(f"| {one.lesson.name} | {one.parameters:,} | {one.loss_words()} | {each} | {one.seconds:.1f} |")
    verdict = measured.verdict(lesson.name)
    lines += ["", verdict, ""] if verdict else [""]
    return [
        *lines,
        "A text that it wrote:",
        "",
        "```text",
        *row.sample.strip("\n").replace("```", "'''").splitlines(),
        "```",
        "",
    ]


def published_part(lesson: Lesson, row: Row | None) -> list[str]:
    """The section that compares published and measured numbers."""
    if not lesson.published:
        return []
    lines = ["## What is published", "", "| what | published | here | source |", "| --- | ---: | ---: | --- |"]
    for one in lesson.published:
        here = row.loss_words() if row is not None and one is row.published else ""
        lines.append(f"| {one.what} | {one.value:.4f} | {here} | {one.source} |")
    lines += [
        "",
        "A measured loss stands beside a published validation loss only where both had as many training tokens.",
    ]
    return [*lines, "`gptloom ladder --reproduce` repeats the documents' own runs by their own protocol.", ""]


def shapes_part(shapes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section about the intermediate tensors."""
    if not shapes:
        return []
    lines = [
        "## The tensors on the way",
        "",
        "B sequences, T tokens, C width, V vocabulary, H heads, G key-value heads, D head width, F MLP width.",
        "",
    ]
    lines += ["| tensor | axes | size |", "| --- | --- | --- |"]
    lines += [
        f"| {one['tensor']} | {', '.join(one['axes'].split())} | {' × '.join(map(str, one['shape']))} |"
        for one in shapes
    ]
    return [*lines, ""]


def exercise_part(lesson: Lesson) -> list[str]:
    """The section about the exercise: the task, the check, and the known mistakes."""
    if lesson.exercise is None:
        again = f"gptloom ladder shakespeare --only {lesson.name} --steps 200"
        return [
            "## Try it",
            "",
            "Nothing new is written in this step. Measure it yourself, beside what it starts from:",
            "",
            "```sh",
            again,
            "```",
            "",
        ]
    exercises = EXERCISES[lesson.name]
    lines = [
        "## Exercise",
        "",
        " ".join(lesson.exercise.task.split()),
        "",
        "Write this in `my_file.py`, before you read the code below:",
        "",
    ]
    lines += [f"- `{exercise.usage}`" for exercise in exercises]
    lines += ["", "```sh", f"gptloom ladder check {lesson.name} my_file.py", "```", ""]
    lines += [
        "The check copies the reference's weights into your parameters, compares the results, and names "
        "the difference: shape, mask, scale, order."
    ]
    mistakes = dict.fromkeys(
        name
        for exercise in exercises
        for name in exercise.mutants
        if name in MESSAGES and name not in exercise.accepted
    )
    if mistakes:
        lines += ["", f"<details><summary>The {len(mistakes)} mistakes that it knows by name</summary>", ""]
        lines += [f"- `{name}`: {MESSAGES[name][0]}" for name in mistakes]
        lines += ["", "</details>"]
    return [*lines, ""]


def code_part(lesson: Lesson, code: str | None) -> list[str]:
    """The plain code."""
    if code is None:
        return [
            "## The code",
            "",
            "The counting and the smoothing are in `src/gptloom/studies/ladder/neighbours.py`.",
            "",
        ]
    return [
        "## The code",
        "",
        f"As `gptloom ladder show {lesson.name}` prints it, from `gptloom.reference`:",
        "",
        "```python",
        code.rstrip("\n"),
        "```",
        "",
    ]


def architecture_page() -> list[str]:
    """Decoder, encoder and encoder-decoder."""
    lines = [
        "# Who may look at whom",
        "",
        MADE,
        "",
        "Decoder, encoder and encoder-decoder are made of the same block. They differ in one line: the mask.",
    ]
    lines += ["", f"[all steps](README.md) · [notebook](../../notebooks/{next(reversed(NOTEBOOKS))}.ipynb)", ""]
    for name in ABOUT:
        shown = show_architecture(name)
        lines += [f"## {name}", "", shown["idea"], "", shown["why"], ""]
        lines += [f"As `gptloom ladder show {name}` prints it:", "", "```python", shown["code"].rstrip("\n"), "```", ""]
    return lines


def errors_page(errors: Sequence[Mapping[str, str]], files: Mapping[str, str], measured: Measured) -> list[str]:
    """The page about the documents' errors and their cost."""
    lines = [
        "# Known errors in the documents",
        "",
        MADE,
        "",
        "Copies of copies carry their errors along. Here is each one of those that are known, and its cost.",
        "",
    ]
    lines += [*measured.limits(), measured.how(), "", "[all steps](README.md)", ""]
    for error in errors:
        lines += [f"## {error['title']}", "", f"> {error['text']}", "", " ".join(error["explanation"].split()), ""]
        lines += ["**What it costs.** " + " ".join(error["cost"].split()), ""]
        row = measured.rows.get(error.get("step", ""))
        if row is not None and measured.verdict(row.lesson.name):
            name, base = row.lesson.name, str(row.lesson.base)
            before = measured.rows[base]
            figures = f"[{base}]({files[base]}) {before.loss_words()}, [{name}]({files[name]}) {row.loss_words()}"
            lines += [f"Measured: {figures}. {measured.verdict(name)}", ""]
        if "command" in error:
            lines += ["Measure it yourself:", "", "```sh", error["command"], "```", ""]
    return lines


if __name__ == "__main__":
    made = pages()
    for old in set(TARGET.glob("*.md")) - {TARGET / name for name in made}:
        old.unlink()
    for name, text in made.items():
        (TARGET / name).write_text(text, encoding="utf-8")
    draw(read_measured(MEASURED), TARGET)
