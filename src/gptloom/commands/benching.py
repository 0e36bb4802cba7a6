"""`gptloom bench`: measure, show tables, draw, and keep all of it as JSON."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gptloom.api import configure
from gptloom.devices import pick_device
from gptloom.errors import ExitCode
from gptloom.plots.studies import draw_bench
from gptloom.studies.bench.bench import bench

Row = Sequence[str]


def run_bench(args: argparse.Namespace, changes: Mapping[str, Any], groups: Sequence[str]) -> int:
    """Measure the groups; tables go to standard error, the sentences to standard output."""
    config = configure(args.recipe, {}, changes, where="the command line")
    device = pick_device(config.device)
    args.out.mkdir(
        parents=True, exist_ok=True
    )  # what cannot be written should be known before two minutes have gone by

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = bench(config, device, groups=groups, seconds=60 * args.minutes, largest=args.largest, say=say)
    found |= {"command": shlex.join(["gptloom", *sys.argv[1:]]), **_draw(args.out, found)}
    text = json.dumps(found, ensure_ascii=False)
    (args.out / "bench.json").write_text(text + "\n", encoding="utf-8")
    console = Console(stderr=True, width=max(110, Console(stderr=True).width))
    for table in tables(found):
        console.print(table, highlight=False)
    for line in left_out(found):
        say(line)
    print(text if args.json else "\n".join([*sentences(found), found["picture"]]))
    return ExitCode.INTERRUPTED if found["interrupted"] else ExitCode.DONE


def _draw(out: Path, found: Mapping[str, Any]) -> dict[str, str]:
    """Both pictures; where they are."""
    title = f"{found['recipe']}: {found['model']['parameters']:,} parameters on {found['device']}, {found['dtype']}"
    draw_bench(out / "bench.png", found, title=title)
    draw_bench(out / "bench-dark.png", found, title=title, dark=True)
    return {
        "picture": str(out / "bench.png"),
        "picture_dark": str(out / "bench-dark.png"),
        "json": str(out / "bench.json"),
    }


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What it comes to."""
    lines = []
    for one in found.get("sweeps", []):
        if one["exponent"] is not None:
            values = [point["value"] for point in one["points"]]
            growth = f"{one['exponent']:.2f} (from {values[0]:,} to {values[-1]:,}; {one['exponent_at_the_end']:.2f} between the last two)"
            lines.append(f"a step's time grows as {one['name']} to the power {growth}")
    best = max(
        (point for one in found.get("sweeps", []) for point in one["points"]),
        key=lambda point: point["operations_per_second"],
        default=None,
    )
    if best is not None:
        reached = f"{best['operations_per_second'] / 1e9:,.0f} GFLOP/s"
        lines.append(
            f"the most that a step reached is {reached}, {best['share_of_limit']:.0%} of what its matrix products allow alone"
        )
    return lines if not found["interrupted"] else [*lines, "interrupted: the rest was not measured"]


def left_out(found: Mapping[str, Any]) -> list[str]:
    """What was not measured, and why."""
    groups = [(one["name"], one["left_out"]) for one in found.get("sweeps", [])]
    groups += [(name, found[name]["left_out"]) for name in ("sampling", "preparing") if name in found]
    return [f"left out: {name} {one['value']:,}{_streams(one)}: {one['why']}" for name, ones in groups for one in ones]


def _streams(one: Mapping[str, Any]) -> str:
    return f", {one['streams']} at once" if "streams" in one else ""


def tables(found: Mapping[str, Any]) -> list[Table]:
    """A table a sweep, as far as it was measured."""
    steps = ("ms a step", "quartiles", "n", "tokens/s", "FLOP a token", "GFLOP/s", "limit ms", "limit GFLOP/s", "share")
    drawn = [
        _table(f"step against {one['name']} ({one['setting']})", (one["name"], *steps), map(_step, one["points"]))
        for one in found.get("sweeps", [])
    ]
    if points := found.get("sampling", {}).get("points"):
        heads = ("context", "streams", "ms", "quartiles", "tokens/s", "MB a token", "GB/s", "limit GB/s", "share")
        drawn.append(_table("sampling against context", heads, map(_writing, points)))
    if points := found.get("preparing", {}).get("points"):
        columns = ("MB", "seconds", "MB/s", "encoding MB/s", "peak memory MB", "limit MB/s", "share")
        drawn.append(
            _table(
                f"preparing against size, tokens: {found['preparing']['tokenizer']}", columns, map(_preparing, points)
            )
        )
    if found.get("start"):
        drawn.append(_table("start", ("what", "seconds", "quartiles", "n"), map(_start, found["start"])))
    return drawn


def _table(title: str, heads: Row, rows: Any) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _step(one: Mapping[str, Any]) -> Row:
    low, high = one["ms_quartiles"]
    limit = "-" if one["limit_operations_per_second"] is None else f"{one['limit_operations_per_second'] / 1e9:,.0f}"
    reached = f"{one['operations_per_second'] / 1e9:,.1f}"
    measured = (
        f"{one['value']:,}",
        f"{one['ms']:,.2f}",
        f"{low:,.2f} to {high:,.2f}",
        str(one["repeats"]),
        f"{one['tokens_per_second']:,.0f}",
    )
    return (
        *measured,
        f"{one['operations_per_token']:.3g}",
        reached,
        f"{one['limit_ms']:,.2f}",
        limit,
        f"{one['share_of_limit']:.0%}",
    )


def _writing(one: Mapping[str, Any]) -> Row:
    low, high = one["ms_quartiles"]
    measured = (
        f"{one['value']:,}",
        str(one["streams"]),
        f"{one['ms']:,.2f}",
        f"{low:,.2f} to {high:,.2f}",
        f"{one['tokens_per_second']:,.0f}",
    )
    rates = (
        f"{one[key] / scale:,.2f}"
        for key, scale in (("bytes_per_token", 1e6), ("bytes_per_second", 1e9), ("limit_bytes_per_second", 1e9))
    )
    return (*measured, *rates, f"{one['share_of_limit']:.0%}")


def _preparing(one: Mapping[str, Any]) -> Row:
    memory = "-" if one["peak_memory"] is None else f"{one['peak_memory'] / 1e6:,.0f}"
    rates = [
        f"{one[key] / 1e6:,.1f}" for key in ("bytes_per_second", "encode_bytes_per_second", "limit_bytes_per_second")
    ]
    return (
        f"{one['value'] / 1e6:,.0f}",
        f"{one['seconds']:.3f}",
        *rates[:2],
        memory,
        rates[2],
        f"{one['share_of_limit']:.0%}",
    )


def _start(one: Mapping[str, Any]) -> Row:
    low, high = one["quartiles"]
    return (one["name"], f"{one['seconds']:.3f}", f"{low:.3f} to {high:.3f}", str(one["repeats"]))
