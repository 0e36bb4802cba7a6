"""`gptloom ladder`: the lecture's steps, trained, shown, checked, and compared with other architectures."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptloom.cli.flags import NUMBERS, TEXTS, add_flags, add_run_flags, given, loading, make_parser
from gptloom.config.load import SHORT, nest, parse, resolve
from gptloom.config.run import LadderConfig, RunConfig
from gptloom.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from gptloom.studies.ladder import Climbed
    from gptloom.studies.ladder.neighbours import Neighbour
    from gptloom.studies.ladder.report import Row, Verdict

LADDER = f"""\
gptloom ladder [TEXT...]                 train every step on a text, with the same number of tokens, and compare;
                                         the counted steps read the whole training text
gptloom ladder show [STEP]               show the changes of a step, its tensors and its plain code; without STEP,
                                         list all titles
gptloom ladder check STEP FILE           run your own code for a step against the reference
gptloom ladder neighbours [TEXT...]      GPT, RNN, LSTM and GRU at equal parameters: loss against time, gradient
                                         against distance
gptloom ladder --reproduce [NAME...]     run the documents' own runs and print their published numbers with ours
(write ./show for a text that is called show; likewise for check and neighbours)

Each step starts from another one. bought is the difference of their validation losses: the loss before minus the
loss after. sd is the standard deviation over seeds; for two seeds, their range is shown. An interrupted ladder
continues with --run DIR.

{NUMBERS}"""

NEIGHBOURS = """\
The width of each model brings its parameters nearest to the GPT's. All have the same settings, batches and number
of steps (1,000 unless you give --steps or --minutes). loss.png shows the validation loss against seconds.
distance.png shows how strongly a loss depends on tokens further back, after training: the mean norm of its gradient
with respect to their embeddings. reach is the distance at which that norm is still a hundredth of the norm at
distance 0."""

ALIKE = {
    "model": {"ngrams": 1},
    "train": {"optimizer": "adamw", "weight_decay": 0.1, "grad_clip": 1.0, "warmup_steps": 50},
}
"""Settings shared by all architectures; they replace the recipe's. There is no n-gram embedding, and AdamW trains."""

# ladder


def ladder_command(words: list[str]) -> int:
    """Train every step of the lecture and compare them."""
    inner = {"show": _show_command, "check": _check_command, "neighbours": _neighbours_command}
    if words and words[0] in inner:
        return inner[words[0]](words[1:])
    parser = make_parser("ladder", "[TEXT...]", ladder_command, epilog=LADDER)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help=f"{TEXTS} [shakespeare]")
    about = "the ladder's folder; an existing one is continued (default: the next free one under runs/)"
    parser.add_argument("--run", metavar="DIR", type=Path, help=about)
    parser.add_argument("--reproduce", metavar="NAME", nargs="*", help="run the documents' own runs, all or these")
    add_flags(parser, LadderConfig)
    args = parser.parse(words)
    asked = given(args, LadderConfig)
    if args.reproduce is not None:
        steps = parse(LadderConfig, asked, where="the command line").steps
        _check_reproduce(args, others=asked.keys() - {"steps"})
        with loading():
            import gptloom.studies.reproduce  # noqa: F401
        return reproduce_and_print(args.reproduce, steps, as_json=args.json)
    with loading():
        from gptloom.studies.ladder import climb
        from gptloom.studies.ladder.lessons import make_watch
        from gptloom.studies.ladder.report import monotone, summarise, table

    climbed = climb(args.texts, asked, args.run, make_watch())
    rows = summarise(climbed.lessons, climbed.rungs, source_text=climbed.source_text)
    story = monotone(rows)
    picture, report = climbed.folder / "staircase.png", climbed.folder / "report.html"
    _draw(climbed, rows, story, picture, report)
    if args.json:
        print(json.dumps(_as_dict(climbed, rows, story, picture, report), ensure_ascii=False))
        return ExitCode.DONE
    print("\n".join(table(rows, shutil.get_terminal_size((140, 24)).columns)))
    print("\n".join([*_moral(story), *(f"WARNING: {caveat}" for caveat in climbed.caveats)]), file=sys.stderr)
    last = next((row.lesson.name for row in reversed(rows) if row.lesson.trains), "STEP")
    print(f"{report}\nnext: gptloom sample {climbed.folder / 'models' / last}, gptloom ladder show STEP")
    return ExitCode.DONE


def _draw(climbed: Climbed, rows: Sequence[Row], story: Sequence[Verdict], picture: Path, report: Path) -> None:
    from gptloom.plots.studies import draw_staircase
    from gptloom.studies.ladder.report import stairs_of, write_report

    stairs = stairs_of(rows)
    seeds = f"{climbed.seeds} seed{'s' * (climbed.seeds != 1)}"
    title = f"The ladder on {climbed.text}: {climbed.tokens:,} tokens a trained step, {seeds}"
    dark = picture.with_name("staircase-dark.png")
    draw_staircase(picture, stairs, title=title)
    draw_staircase(dark, stairs, title=title, dark=True)
    write_report(report, climbed, rows, story, {"light": picture, "dark": dark})


def _as_dict(
    climbed: Climbed, rows: Sequence[Row], story: Sequence[Verdict], picture: Path, report: Path
) -> dict[str, Any]:
    from gptloom.devices import describe_machine

    return {
        "command": _command(climbed),
        "machine": describe_machine(),
        "run": str(climbed.folder),
        "steps": [_row_as_dict(row) for row in rows],
        "seeds": climbed.seeds,
        "tokens_per_step": climbed.tokens,
        "counted_tokens": climbed.counted,
        "source_text": climbed.source_text,
        "caveats": climbed.caveats,
        "story": [asdict(verdict) for verdict in story],
        "report": str(report),
        "picture": str(picture),
    }


def _row_as_dict(row: Row) -> dict[str, Any]:
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
        "published": [] if row.published is None else [asdict(row.published)],
    }


def _command(climbed: Climbed) -> str:
    """Return the command that repeats this ladder from the start."""
    flags = [
        word
        for name, value in climbed.settings.items()
        for word in (f"--{name}", f"{value:g}" if isinstance(value, float) else str(value))
    ]
    return shlex.join(["gptloom", "ladder", *climbed.texts, *flags, "--json"])


def _moral(story: Sequence[Verdict]) -> list[str]:
    """Name the steps that increased the loss by more than the spread, and whether their lessons expect it."""
    worse = [verdict for verdict in story if verdict.outcome == "worse"]
    if any(verdict.outcome == "unknown" for verdict in story):
        return ["one seed: the differences between trained steps cannot be told from noise; --seeds 3 shows them"]
    if not worse:
        return ["no step is worse than its base by more than the spread over seeds"]
    known = [f"{verdict.step} ({verdict.difference:+.4f})" for verdict in worse if verdict.explanation]
    other = [f"{verdict.step} ({verdict.difference:+.4f})" for verdict in worse if not verdict.explanation]
    lines = [f"worse, as its text says it may be: {', '.join(known)}"] if known else []
    return lines + ([f"worse, against the lecture's story: {', '.join(other)}"] if other else [])


# ladder --reproduce


def _check_reproduce(args: argparse.Namespace, *, others: set[str]) -> None:
    """Raise ConfigError if anything but --steps is given with --reproduce."""
    if args.texts or args.run or others:
        extra = [*args.texts, *(f"--{name}" for name in sorted(others)), *(["--run"] if args.run else [])]
        what = f"has its own settings and can be combined only with --steps, not {' '.join(extra)}"
        raise ConfigError(what, where="--reproduce", cure="leave them out")


def reproduce_and_print(names: Sequence[str], steps: int | None, *, as_json: bool) -> int:
    """Print published and measured numbers; with `as_json`, print JSON, and the tables to standard error.

    Raises:
        GptloomError: an unknown name, or a text that is not available.
    """
    from gptloom.studies.reproduce import mark, reproduce

    out = sys.stderr if as_json else sys.stdout
    found = reproduce(list(names), steps=steps, say=lambda line: print(line, file=out, flush=True))
    if as_json:
        print(json.dumps({"runs": [asdict(one) for one in found]}, ensure_ascii=False))
    else:
        print("\n" + "\n".join(f"{one.name:<28} {mark(one.agrees)}" for one in found))
    return ExitCode.DONE


# ladder show


def _show_command(words: list[str]) -> int:
    """Show the changes of a step, its tensors and its plain code."""
    parser = make_parser("ladder show", "[STEP]", _show_command)
    parser.add_argument("step", metavar="STEP", nargs="?", help="the name of a step (default: list all)")
    args = parser.parse(words)
    with loading():
        from gptloom.studies.ladder.lessons import find_lesson, read_lessons
        from gptloom.studies.ladder.show import ABOUT, lines_of, show_architecture, show_lesson

    if args.step is None:
        found = [{"name": one.name, "title": one.title, "base": one.base} for one in read_lessons().values()]
        found += [{"name": name, "title": about["title"], "base": None} for name, about in ABOUT.items()]
        lines = [f"{one['name']:<14} {one['title']}" for one in found]
        print(json.dumps({"steps": found}) if args.json else "\n".join(lines))
        return ExitCode.DONE
    shown = show_architecture(args.step) if args.step in ABOUT else show_lesson(find_lesson(args.step))
    print(json.dumps(shown, ensure_ascii=False) if args.json else "\n".join(lines_of(shown)))
    return ExitCode.DONE


# ladder check


def _check_command(words: list[str]) -> int:
    """Run your own code for a step against the reference."""
    epilog = "FILE is run as Python: check only code that you trust."
    parser = make_parser("ladder check", "STEP FILE", _check_command, epilog=epilog)
    parser.add_argument("step", metavar="STEP", help="the name of a step")
    parser.add_argument("file", metavar="FILE", type=Path, help="a Python file that defines the step's classes")
    args = parser.parse(words)
    with loading():
        from gptloom.studies.check import check, report_lines
        from gptloom.studies.ladder.lessons import find_lesson

    find_lesson(args.step)
    report = check(args.step, args.file)
    print(json.dumps(asdict(report), ensure_ascii=False) if args.json else "\n".join(report_lines(report)))
    return ExitCode.DONE if report.passed else ExitCode.INPUT


# ladder neighbours


def _neighbours_command(words: list[str]) -> int:
    """Train a GPT and recurrent networks with equal parameters on your text, and compare them."""
    parser = make_parser("ladder neighbours", "[TEXT...]", _neighbours_command, epilog=NEIGHBOURS)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help=f"{TEXTS} [shakespeare]")
    about = "folder of the pictures [./neighbours]"
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("neighbours"), help=about)
    about = "the GPT's settings, without n-grams; all models are trained with AdamW [tiny]"
    add_run_flags(parser, words, about, below=ALIKE, short=SHORT, skip=("model.vocab_size", "model.architecture"))
    args = parser.parse(words)
    has_length = {"train.steps", "train.minutes", "train.epochs"} & given(args, RunConfig).keys()
    changes = nest(({} if has_length else {"train.steps": 1000}) | given(args, RunConfig, skip=("recipe",)))
    with loading():
        from gptloom.studies.ladder.neighbours import compare_neighbours
        from gptloom.studies.trial import open_material

    config = resolve(args.recipe or "tiny", ALIKE, changes, where="the command line")
    material = open_material(args.texts or ["shakespeare"], config.data)
    for note in material.notes:
        print(f"note: {note}", file=sys.stderr)
    found = compare_neighbours(config, material, say=lambda line: print(line, file=sys.stderr, flush=True))
    files = _draw_neighbours(found, args.out, material.name)
    rows = [_neighbour_as_dict(one) for one in found]
    if args.json:
        print(json.dumps({"neighbours": rows, "files": files}))
        return ExitCode.DONE
    print(f"{'model':<8} {'width':>5} {'parameters':>10} {'val loss':>8} {'seconds':>7} {'tokens/s':>9} {'reach':>5}")
    for row in rows:
        rate = row["tokens"] / max(row["seconds"], 1e-9)
        measured = f"{row['val_loss']:>8.4f} {row['seconds']:>7.1f} {rate:>9,.0f} {row['reach']:>5}"
        print(f"{row['name']:<8} {row['width']:>5} {row['parameters']:>10,} {measured}")
    print("\n".join(files.values()))
    return ExitCode.DONE


def _draw_neighbours(found: Sequence[Neighbour], out: Path, text: str) -> dict[str, str]:
    """Draw both pictures; return their paths by name."""
    from gptloom.plots.inspect import draw_gradient_by_distance
    from gptloom.plots.studies import draw_races

    out.mkdir(parents=True, exist_ok=True)
    races = {one.name: [(seconds, loss) for _, seconds, loss in one.trial.evaluations] for one in found}
    draw_races(out / "loss.png", races, title=f"{text}: the same number of parameters and of tokens")
    curves = {one.name: (one.distances, one.gradients) for one in found}
    draw_gradient_by_distance(out / "distance.png", curves, title=f"{text}: how far back a loss depends on the text")
    return {name: str(out / f"{name}.png") for name in ("loss", "distance")}


def _neighbour_as_dict(one: Neighbour) -> dict[str, Any]:
    trial, keys = one.trial, ("parameters", "steps", "tokens", "seconds", "val_loss")
    measured = {key: getattr(trial, key) for key in keys}
    more = {"reach": one.reach, "evaluations": trial.evaluations, "gradients": one.gradients}
    return {"name": one.name, "width": one.width, **measured, **more}
