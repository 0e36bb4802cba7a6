"""`gptloom compare`: train several settings over several seeds, and test the differences."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptloom.cli.flags import TEXTS, Parser, add_run_flags, given, loading, make_parser
from gptloom.config.load import SHORT, nest, read_toml
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from gptloom.studies.compare import Plan
    from gptloom.studies.compare.assignment import Example
    from gptloom.studies.compare.factors import Arm

MOST_SEEDS = 1000

RULE = """\
The loss is that of the last step on the whole validation split, in nats per token, or in bits per byte if the
tokenizers differ. Both trainings of a pair have the same seed: the same data order and, if the shapes allow it,
the same initial weights. The verdict is "better" or "worse" if a paired t-test gives p <= 0.02 after Holm's
correction for several arms; this is stricter than the 95 % interval alone. Each later look with more seeds has
half that level. So fewer than 5 of 100 comparisons of equal settings end in a false alarm. With another --seeds
and the same --run, a comparison grows. An interrupted comparison continues where it stopped."""


def compare_command(words: list[str]) -> int:
    """Compare settings over several seeds, with intervals."""
    subject = "[TEXT...] SETTING=A,B[,C] [SETTING=...]"
    parser = make_parser("compare", subject, compare_command, epilog=RULE)
    _add_compare_flags(parser, words)
    args = parser.parse(words, intermixed=True)
    _check(args)
    file = {} if args.config is None else read_toml(args.config)
    changes = nest(given(args, RunConfig, skip=("recipe",)))
    with loading():
        from gptloom.studies.compare import Plan

    if args.example is not None:
        return _compare_example(args, changes)
    result = _run(args, Plan(_arms(args, file, changes), args.seeds, args.own_seeds))
    if result is not None:
        _print(result, [], as_json=args.json)
    return ExitCode.DONE


def _add_compare_flags(parser: Parser, words: list[str]) -> None:
    about = f"a setting and its values, the baseline first: lr=1e-3,4e-3; or a text: {TEXTS} [shakespeare]"
    parser.add_argument("words", metavar="SETTING=A,B", nargs="*", help=about)
    about = "trainings of each arm; a verdict needs 3 [5]"
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help=about)
    about = "change all settings at once, instead of one at a time"
    parser.add_argument("--together", action="store_true", help=about)
    about = "give every arm other seeds: an A/A comparison of lr=1e-3,1e-3 then measures the noise"
    parser.add_argument("--own-seeds", action="store_true", help=about)
    about = "a description of the change, to be checked: 'reduced the learning rate, 0.1 better'"
    parser.add_argument("--claim", metavar="TEXT", help=about)
    parser.add_argument("--plan", action="store_true", help="print the trainings and their time, and stop")
    about = "a ready-made comparison: assignment (a student's four published runs)"
    parser.add_argument("--example", metavar="NAME", help=about)
    about = "folder of the trainings; an existing one is continued (default: a new one under runs/)"
    parser.add_argument("--run", metavar="DIR", type=Path, help=about)
    about = "a TOML file of settings for all arms; flags override it"
    parser.add_argument("--config", metavar="FILE", type=Path, help=about)
    about = "the settings to start from (default: tiny on a CPU, baby on an accelerator)"
    add_run_flags(parser, words, about, short=SHORT, skip=("model.vocab_size",))


def _check(args: argparse.Namespace) -> None:
    """Raise errors that can be found without the text and without torch."""
    if not 1 <= args.seeds <= MOST_SEEDS:
        raise ConfigError(f"{args.seeds} is not between 1 and {MOST_SEEDS}", where="--seeds", cure="try --seeds 5")
    settings = args.recipe or args.config or args.together or args.claim or any("=" in word for word in args.words)
    if args.example is not None and settings:
        cure = "give it a text, --steps, --seeds and flags only"
        raise ConfigError("brings its own settings and factors", where="--example", cure=cure)


def _arms(args: argparse.Namespace, file: Mapping[str, Any], changes: Mapping[str, Any]) -> list[Arm]:
    """Return the arms, planned from the factors among the words."""
    from gptloom.api import configure
    from gptloom.studies.compare.factors import is_factor, plan_arms, read_factor

    factors = [read_factor(word) for word in args.words if is_factor(word)]
    device = {"device": changes["device"]} if "device" in changes else {}
    recipe = configure(args.recipe, {key: file[key] for key in ("recipe", "device") if key in file}, device).recipe
    where = "the command line" if args.config is None else f"{args.config} and the command line"
    settings = {key: value for key, value in file.items() if key != "recipe"}
    return plan_arms(factors, recipe, settings, changes, together=args.together, where=where)


def _compare_example(args: argparse.Namespace, changes: Mapping[str, Any]) -> int:
    """Print the published runs, compare their settings one at a time, then print what the conclusions would need."""
    from gptloom.studies.compare import Plan
    from gptloom.studies.compare.assignment import STEPS, needs, needs_lines, published_lines, read_example
    from gptloom.studies.compare.factors import plan_arms

    example = read_example(args.example)
    train = dict(changes.get("train", {}))
    if train.get("minutes") or train.get("epochs"):
        raise ConfigError("compares numbers of steps", where="--example", cure="give --steps")
    steps = str(train.pop("steps", STEPS))
    if not steps.isdigit() or int(steps) < 1:
        raise ConfigError(f"{steps!r} is not a number of steps", where="--steps", cure=f"try --steps {STEPS}")
    print("\n".join(published_lines(example)), file=sys.stderr)
    settings = example.runs[0]["settings"]
    length = f"with {steps} steps instead of {settings['train.steps']:,}"
    print(f"\nEach setting changed separately from the first run, {length}:", file=sys.stderr)
    first = nest({key: value for key, value in settings.items() if key != "train.steps"})
    layers = ({"train": {"steps": int(steps)}}, example.base, first, {**changes, "train": train})
    arms = plan_arms(example.factors(int(steps)), "tiny", *layers, where="--example")
    result = _run(args, Plan(arms, args.seeds, args.own_seeds))
    if result is not None:
        found = needs(example, result)
        result |= {"example": {"name": args.example, **_published(example), "needs": found}}
        lines = ["", "what the published conclusions would have needed:", *needs_lines(found, result)]
        _print(result, lines, as_json=args.json)
    return ExitCode.DONE


def _published(example: Example) -> dict[str, Any]:
    """Return the published runs and the published conclusions as JSON values."""
    findings = [
        {"from": step.before, "to": step.after, "changed": list(step.changes), "said": step.said, "wrong": step.wrong}
        for step in example.steps
    ]
    keys = ("name", "settings", "val_loss")
    return {"runs": [{key: run[key] for key in keys} for run in example.runs], "findings": findings}


def _run(args: argparse.Namespace, plan: Plan) -> dict[str, Any] | None:
    """Open the text, print the cost, train, summarise and draw. Returns None if only the plan is printed."""
    from gptloom.studies.compare import Folder, estimate_times, identity, open_materials, run_all
    from gptloom.studies.compare.factors import is_factor
    from gptloom.studies.compare.summary import pair_notes, summarise
    from gptloom.training.progress import duration
    from gptloom.training.run_dir import next_folder

    for number, arm in enumerate(plan.arms[1:], start=1):
        for note in pair_notes(plan, number):
            _say(f"note: {arm.name}: {note}")
    materials = open_materials([word for word in args.words if not is_factor(word)] or ["shakespeare"], plan.arms)
    for note in dict.fromkeys(note for material in materials.values() for note in material.notes):
        _say(f"note: {note}")
    folder = None if args.plan and args.run is None else Folder(args.run or next_folder("compare"))
    if folder is not None and not args.plan:
        folder.begin(identity(plan, materials))
        more = f"the same command with --run {folder.path} continues where it stopped, or adds seeds"
        _say(f"kept in {folder.path}; {more}")
    times = estimate_times(plan, materials, folder, _say)
    seconds = sum(times) * plan.seeds
    total = f"{len(plan.order())} trainings ({len(plan.arms)} arms, {plan.seeds} seeds), about {duration(seconds)}"
    if args.plan or folder is None:
        print(json.dumps(_plan_as_dict(plan, times)) if args.json else total)
        return None
    _say(total)
    outcomes = run_all(plan, materials, folder, times, _say)
    result = summarise(plan, outcomes, earlier_looks=folder.look(plan.seeds), claim=args.claim)
    result |= {"run": str(folder.path), "texts": sorted({material.name for material in materials.values()})}
    _draw(folder.path / "compare.png", result)
    folder.write("result.json", result)
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plan_as_dict(plan: Plan, times: Sequence[float]) -> dict[str, Any]:
    arms = [
        {"name": arm.name, "settings": {key: own for key, (_, own) in arm.changes.items()}, "seconds": seconds}
        for arm, seconds in zip(plan.arms, times, strict=True)
    ]
    return {"arms": arms, "trainings": len(plan.order()), "seconds": sum(times) * plan.seeds}


def _draw(path: Path, result: Mapping[str, Any]) -> None:
    from gptloom.plots.studies import draw_comparison

    arms, comparisons = result["arms"], result["comparisons"]
    intervals = [
        None if one["interval"] is None else (one["interval"][0], one["difference"], one["interval"][1])
        for one in comparisons
    ]
    title = f"{len(comparisons)} comparisons with {arms[0]['name']}, {result['seeds']} seeds"
    draw_comparison(
        path,
        [arm["name"] for arm in arms],
        [arm["losses"] for arm in arms],
        [one["differences"] for one in comparisons],
        intervals,
        title=comparisons[0]["verdict"] if len(comparisons) == 1 else title,
        unit=result["unit"],
    )


def _print(result: Mapping[str, Any], more: Sequence[str], *, as_json: bool) -> None:
    """Print the table to standard error and the verdicts to standard output."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    width = max(len(arm["name"]) for arm in result["arms"])
    head = f"{'arm':<{width}} {'parameters':>12} {'mean loss':>10} {'sd':>8} {'seconds':>9}"
    print(f"\n{head}", file=sys.stderr)
    for arm in result["arms"]:
        mean, sd = (f"{arm[key]:.4f}" if arm[key] is not None else "-" for key in ("mean", "sd"))
        row = f"{arm['name']:<{width}} {arm['parameters']:>12,} {mean:>10} {sd:>8} {arm['seconds']:>9.1f}"
        print(row, file=sys.stderr)
    print(f"losses in {result['unit']}. {result['rule']['text']}\n", file=sys.stderr)
    for one in result["comparisons"]:
        print(f"{one['arm']} against {one['against']}: {one['verdict']}")
        for line in (*one["notes"], *one["claims"]):
            print(f"  {line}")
    print("\n".join([*more, f"{Path(result['run']) / 'compare.png'}"]))
