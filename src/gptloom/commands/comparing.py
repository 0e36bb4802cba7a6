"""`gptloom compare`: plan, run, judge, draw, say."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.api import configure
from gptloom.config.load import nest
from gptloom.errors import ConfigError, ExitCode
from gptloom.plots.studies import draw_comparison
from gptloom.studies.compare import Folder, Materials, Plan, estimate_times, identity, open_materials, run_all
from gptloom.studies.compare.assignment import STEPS, needs, needs_lines, published_lines, read_example
from gptloom.studies.compare.factors import is_factor, plan_arms, read_factor
from gptloom.studies.compare.summary import pair_notes, summarise
from gptloom.training.progress import duration
from gptloom.training.run_dir import next_folder


def compare(args: argparse.Namespace, file: Mapping[str, Any], changes: Mapping[str, Any]) -> int:
    """Compare the factors given as words."""
    factors = [read_factor(word) for word in args.words if is_factor(word)]
    recipe = configure(
        args.recipe, {key: file[key] for key in ("recipe", "device") if key in file}, _device_of(changes)
    ).recipe
    layers = ({key: value for key, value in file.items() if key != "recipe"}, changes)
    arms = plan_arms(
        factors,
        recipe,
        *layers,
        together=args.together,
        where="the command line" if args.config is None else f"{args.config} and the command line",
    )
    result = _go(args, Plan(arms, args.seeds, args.own_seeds))
    if result is not None:
        _print(args, result, [])
    return ExitCode.DONE


def compare_example(args: argparse.Namespace, changes: Mapping[str, Any]) -> int:
    """The published runs, then their settings one at a time, then what the conclusions would have needed."""
    example = read_example(args.example)
    train = dict(changes.get("train", {}))
    if train.get("minutes") or train.get("epochs"):
        raise ConfigError("compares numbers of steps", where="--example", cure="give --steps")
    steps = str(train.pop("steps", STEPS))
    if not steps.isdigit() or int(steps) < 1:
        raise ConfigError(f"{steps!r} is not a number of steps", where="--steps", cure=f"try --steps {STEPS}")
    print("\n".join(published_lines(example)), file=sys.stderr)
    print(
        f"\nNow each setting by itself, from the first run, with {steps} steps for its {example.runs[0]['settings']['train.steps']:,}:",
        file=sys.stderr,
    )
    first = nest({key: value for key, value in example.runs[0]["settings"].items() if key != "train.steps"})
    arms = plan_arms(
        example.factors(int(steps)),
        "tiny",
        {"train": {"steps": int(steps)}},
        example.base,
        first,
        {**changes, "train": train},
        where="--example",
    )
    result = _go(args, Plan(arms, args.seeds, args.own_seeds))
    if result is not None:
        found = needs(example, result)
        published = [
            {"name": run["name"], "settings": run["settings"], "val_loss": run["val_loss"]} for run in example.runs
        ]
        findings = [
            {
                "from": step.before,
                "to": step.after,
                "changed": list(step.changes),
                "said": step.said,
                "wrong": step.wrong,
            }
            for step in example.steps
        ]
        result |= {"example": {"name": args.example, "runs": published, "findings": findings, "needs": found}}
        _print(args, result, ["", "what the published conclusions would have needed:", *needs_lines(found, result)])
    return ExitCode.DONE


def _go(args: argparse.Namespace, plan: Plan) -> dict[str, Any] | None:
    """Open the text, say the cost, run, judge and draw; None where only the plan was asked for."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for number, arm in enumerate(plan.arms[1:], start=1):
        for note in pair_notes(plan, number):
            say(f"note: {arm.name}: {note}")
    materials = open_materials([word for word in args.words if not is_factor(word)] or ["shakespeare"], plan.arms)
    for note in dict.fromkeys(note for material in materials.values() for note in material.notes):
        say(f"note: {note}")
    folder = None if args.plan and args.run is None else Folder(args.run or next_folder("compare"))
    if folder is not None and not args.plan:
        folder.begin(identity(plan, materials))
        say(f"kept in {folder.path}; the same command with --run {folder.path} goes on where it stopped, or adds seeds")
    times = estimate_times(plan, materials, folder, say)
    total = f"{len(plan.order())} trainings ({len(plan.arms)} arms, {plan.seeds} seeds), about {duration(sum(times) * plan.seeds)}"
    if args.plan or folder is None:
        arms = [
            {"name": arm.name, "settings": {key: own for key, (_, own) in arm.changes.items()}, "seconds": t}
            for arm, t in zip(plan.arms, times, strict=True)
        ]
        print(
            json.dumps({"arms": arms, "trainings": len(plan.order()), "seconds": sum(times) * plan.seeds})
            if args.json
            else total
        )
        return None
    say(total)
    outcomes = run_all(plan, materials, folder, times, say)
    result = summarise(plan, outcomes, earlier_looks=folder.look(plan.seeds), claim=args.claim)
    result |= {"run": str(folder.path), "texts": _texts(materials)}
    _draw(folder.path / "compare.png", result)
    folder.write("result.json", result)
    return result


def _draw(path: Path, result: Mapping[str, Any]) -> None:
    comparisons = result["comparisons"]
    draw_comparison(
        path,
        [arm["name"] for arm in result["arms"]],
        [arm["losses"] for arm in result["arms"]],
        [one["differences"] for one in comparisons],
        [
            None if one["interval"] is None else (one["interval"][0], one["difference"], one["interval"][1])
            for one in comparisons
        ],
        title=comparisons[0]["verdict"]
        if len(comparisons) == 1
        else f"{len(comparisons)} comparisons with {result['arms'][0]['name']}, {result['seeds']} seeds",
        unit=result["unit"],
    )


def _print(args: argparse.Namespace, result: Mapping[str, Any], more: Sequence[str]) -> None:
    """The table on standard error, the verdicts on standard output."""
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
        return
    width = max(len(arm["name"]) for arm in result["arms"])
    print(f"\n{'arm':<{width}} {'parameters':>12} {'mean loss':>10} {'sd':>8} {'seconds':>9}", file=sys.stderr)
    for arm in result["arms"]:
        mean, sd = (f"{arm[key]:.4f}" if arm[key] is not None else "-" for key in ("mean", "sd"))
        print(
            f"{arm['name']:<{width}} {arm['parameters']:>12,} {mean:>10} {sd:>8} {arm['seconds']:>9.1f}",
            file=sys.stderr,
        )
    print(f"losses in {result['unit']}. {result['rule']['text']}\n", file=sys.stderr)
    for one in result["comparisons"]:
        print(f"{one['arm']} against {one['against']}: {one['verdict']}")
        for line in (*one["notes"], *one["claims"]):
            print(f"  {line}")
    print("\n".join([*more, f"{Path(result['run']) / 'compare.png'}"]))


def _texts(materials: Materials) -> list[str]:
    return sorted({material.name for material in materials.values()})


def _device_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: changes[key] for key in ("device",) if key in changes}
