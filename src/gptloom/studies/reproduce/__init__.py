"""Repeat the documents' runs with the production model, and compare the measured numbers with the published ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gptloom.config.run import DataConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import make_tokenizer
from gptloom.data.tokens import Split, prepare, split
from gptloom.devices import pick_device, thread_count, threads
from gptloom.errors import ConfigError, InputError, nearest
from gptloom.studies.reproduce.facts import FACTS, Text, deviation
from gptloom.studies.reproduce.lecture_run import LectureRun, expected_seconds
from gptloom.studies.reproduce.published import PublishedRun, Tolerance, published, published_runs, tolerances

Say = Callable[[str], None]
Measured = tuple[int, float | None, float | None, float, float]
"""(step, published train, published validation, train, validation), in nats per character."""

_QUICK = ("single-head", "gpt-0.21M")
_LONG_WITHOUT_TABLE = ("mingpt", "scaled-up")
_ROUNDING = 1e-6
"""Allowance for float32 rounding and decimal conversion."""


@dataclass(frozen=True)
class Reproduction:
    """The comparison of one published run or fact with its repetition.

    Attributes:
        name: the name of the run or fact.
        agrees: whether all numbers are within their tolerances; None if no numbers were published.
        tolerance: the largest tolerance; None if nothing was compared.
        why: the origin of the tolerance.
        rows: for a run, the published and measured losses by step.
        tolerances: for a run, (step, tolerance from that step on).
        published: for a fact, the published value.
        measured: for a fact, the measured value in the same form.
    """

    name: str
    agrees: bool | None
    tolerance: float | None
    why: str
    rows: list[Measured] = field(default_factory=list)
    tolerances: list[tuple[int, float]] = field(default_factory=list)
    published: Any = None
    measured: Any = None


def reproduction_names() -> list[str]:
    """The names of all facts and runs that can be reproduced; the facts are first."""
    return [*FACTS, *published_runs()]


def reproduce(names: Sequence[str], *, steps: int | None = None, say: Say = lambda _line: None) -> list[Reproduction]:
    """Repeat the documents' measurements on tiny Shakespeare.

    Args:
        names: names from `reproduction_names()`. None means the facts, the single head and the 0.21M GPT; with a CUDA
            device, also the two runs without a published table. The expected times of the other runs are then printed.
        steps: skip the rows of a run's table after this step.
        say: a function that is called with each line of the report.

    Raises:
        ConfigError: a name is unknown, or the number of steps is negative.
        GptloomError: the text is not available.
    """
    for name in names:
        if name not in reproduction_names():
            cure = nearest(name, reproduction_names()) or f"choose from {', '.join(reproduction_names())}"
            raise ConfigError(f"the documents have nothing called {name!r}", where="--reproduce", cure=cure)
    if steps is not None and steps < 0:
        raise ConfigError(
            f"{steps} steps cannot be run", where="--steps", cure="give 0 (the first row of each table) or more"
        )
    text = _open_text()
    found = []
    for name in dict.fromkeys(names or _default_names()):
        found.append(
            _reproduce_fact(name, text, say)
            if name in FACTS
            else _reproduce_run(published_runs()[name], text.parts, steps, say)
        )
    if not names:
        _say_what_is_left([one.name for one in found], text.parts, say)
    return found


def device_for(run: PublishedRun) -> torch.device:
    """The device for a run: the CPU, for exact digits; or the fastest device for a run with dropout."""
    return pick_device("auto" if run.has_dropout else "cpu")


def _default_names() -> list[str]:
    return [*FACTS, *_QUICK, *(_LONG_WITHOUT_TABLE if torch.cuda.is_available() else ())]


def _open_text() -> Text:
    """Open tiny Shakespeare.

    Raises:
        InputError: the text called shakespeare is another one.
    """
    config = DataConfig()
    corpus = open_corpus(["shakespeare"], config)
    if corpus.sha256 != published()["corpus"]["sha256"]:
        what = "is not the text of the published runs"
        raise InputError(what, where=", ".join(corpus.sources), cure="run this where no file is called shakespeare")
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    return Text(corpus, tokenizer, split(prepare(corpus, tokenizer, config), config))


def _reproduce_fact(name: str, text: Text, say: Say) -> Reproduction:
    with torch.random.fork_rng(devices=[]):
        fact = FACTS[name](text)
    difference = deviation(fact.published, fact.measured)
    agrees = difference <= fact.tolerance + _ROUNDING
    say(f"{name}: {mark(agrees)} (largest difference {difference:.5f}, tolerance {fact.tolerance:g}: {fact.why})")
    for line in side_by_side(fact.published, fact.measured):
        say(f"  {line}")
    return Reproduction(name, agrees, fact.tolerance, fact.why, published=fact.published, measured=fact.measured)


def _reproduce_run(run: PublishedRun, parts: Split, steps: int | None, say: Say) -> Reproduction:
    """Train and evaluate a run at the steps of the published table."""
    device, tolerance = device_for(run), tolerances().get(run.name)
    table = {step: (train, val) for step, train, val in run.table}
    rows: list[Measured] = []
    with threads(thread_count(run.config)), torch.random.fork_rng(devices=[]):
        about = _duration(expected_seconds(run, parts, device, steps))
        training = LectureRun(run, parts, device)
        say(
            f"{run.name}: {training.model.parameter_count():,} parameters, seed {run.config.seed}, on {device.type}, "
            f"about {about}; published in {run.source}"
        )
        say(f"  {'step':>6}   {'published':^15}   {'measured':^15}   {'difference':^17}   within")
        done = 0
        for step in run.due(steps):
            training.advance(step - done)
            done = step
            train, val = training.evaluate()
            rows.append((step, *table.get(step, (None, None)), train, val))
            say(f"  {row_line(rows[-1], tolerance)}")
    agrees = all(row_agrees(row, tolerance) for row in rows) if tolerance and rows else None
    widest = max(tolerance.at(row[0]) for row in rows) if tolerance and rows else None
    why = tolerance.why if tolerance else "only the settings were published"
    say(f"  {mark(agrees)}: {why}")
    return Reproduction(run.name, agrees, widest, why, rows=rows, tolerances=tolerance.bands if tolerance else [])


def _say_what_is_left(done: list[str], parts: Split, say: Say) -> None:
    """Name the runs that were skipped, with their expected times on this machine."""
    left = [run for name, run in published_runs().items() if name not in done]
    if not left:
        return
    say(
        "not run, because they take longer (name one to run it; --steps N runs the beginning of its table); "
        "about, on this machine:"
    )
    for run in left:
        with threads(thread_count(run.config)), torch.random.fork_rng(devices=[]):
            seconds = expected_seconds(run, parts, device_for(run))
        say(f"  {run.name:<28} {_duration(seconds)}")


def row_agrees(row: Measured, tolerance: Tolerance) -> bool:
    """Whether both losses, rounded to four decimals as in the documents, are within the tolerance of their step."""
    step, *_ = row
    return all(abs(difference) <= tolerance.at(step) + _ROUNDING for difference in _differences(row))


def _differences(row: Measured) -> list[float]:
    _, train, val, own_train, own_val = row
    if train is None or val is None:
        return []
    # The difference to NaN is infinite.
    return [
        math.inf if math.isnan(own) else round(own, 4) - known for known, own in ((train, own_train), (val, own_val))
    ]


def mark(agrees: bool | None) -> str:
    """The verdict in words."""
    return {True: "agrees", False: "DIFFERS", None: "nothing to compare with"}[agrees]


def row_line(row: Measured, tolerance: Tolerance | None) -> str:
    """A row of the table: published and measured training and validation losses, and their differences."""
    step, train, val, own_train, own_val = row
    own = f"{own_train:7.4f} {own_val:7.4f}"
    if train is None or tolerance is None:
        return f"{step:6d}   {'-':^15}   {own}"
    first, second = _differences(row)
    within = f"{tolerance.at(step):g} {mark(row_agrees(row, tolerance))}"
    return f"{step:6d}   {train:7.4f} {val:7.4f}   {own}   {first:+8.4f} {second:+8.4f}   {within}"


def side_by_side(known: Any, own: Any, label: str = "") -> list[str]:
    """The published and measured values as lines of text, one for each number or row of numbers."""
    if isinstance(known, dict):
        return [line for key in known for line in side_by_side(known[key], own[key], repr(key)[1:-1])]
    if isinstance(known, list) and known and isinstance(known[0], list):
        return [line for one, other in zip(known, own, strict=True) for line in side_by_side(one, other, label)]
    return [f"{label}{': ' if label else ''}{_compact(known)} | {_compact(own)}"]


def _compact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{one:.4f}" if any(isinstance(other, float) for other in value) else str(one) for one in value)
    return f"{value:.4f}" if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.0f} h"
    )
