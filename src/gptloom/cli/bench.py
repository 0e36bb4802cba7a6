"""`gptloom bench`: measure, print tables, draw, and save everything as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptloom.cli.flags import Parser, add_run_flags, given, loading, make_parser
from gptloom.config.load import check_early, nest
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from rich.table import Table

Row = Sequence[str]

GROUPS = ("step", "sampling", "data", "start")
MEASURED = """\
step      a training step against batch, context, width, depth and vocabulary, one at a time around the recipe.
          The limit is the time of the step's matrix products alone, as fast as this machine can compute them
sampling  tokens a second against the context, for 1 and 32 texts at once. The limit is the speed at which their
          bytes are read from memory
data      preparing a text against its size (1, 4, 16 MB; with --largest up to 1 GB), and its memory. The limit is
          reading and hashing alone
start     launching the command line, and Python alone

An operation is a multiplication or an addition in a matrix product: 6 N + 12 L T C a token.
share is the limit's time as a part of the time taken. Ctrl-C ends early and keeps all finished measurements.
docs/bench.md explains every figure."""


def bench_command(words: list[str]) -> int:
    """Benchmark this machine."""
    parser = make_parser("bench", "", bench_command, epilog=MEASURED)
    _add_bench_flags(parser, words)
    args = parser.parse(words)
    groups = _read_groups(args.only)
    if not 0 < args.minutes <= 10_000:
        what = f"{args.minutes:g} is not between 0 and 10,000"
        raise ConfigError(what, where="--minutes", cure="try --minutes 2")
    if args.out.exists() and not args.out.is_dir():
        cure = "name a folder, or leave the flag out"
        raise ConfigError("is a file, and a folder is needed", where=f"--out {args.out}", cure=cure)
    changes = nest(given(args, RunConfig, skip=("recipe",)))
    check_early(args.recipe, {}, changes, where="the command line")
    with loading():
        from rich.console import Console

        from gptloom.api import configure
        from gptloom.devices import pick_device
        from gptloom.studies.bench.bench import bench

    config = configure(args.recipe, {}, changes, where="the command line")
    device = pick_device(config.device)
    args.out.mkdir(parents=True, exist_ok=True)  # fail here, before the minutes of measuring
    found = bench(config, device, groups=groups, seconds=60 * args.minutes, largest=args.largest, say=_say)
    found |= {"command": shlex.join(["gptloom", *sys.argv[1:]]), **_draw(args.out, found)}
    text = json.dumps(found, ensure_ascii=False)
    (args.out / "bench.json").write_text(text + "\n", encoding="utf-8")
    console = Console(stderr=True, width=max(110, Console(stderr=True).width))
    for table in _tables(found):
        console.print(table, highlight=False)
    for line in _left_out(found):
        _say(line)
    print(text if args.json else "\n".join([*_sentences(found), found["picture"]]))
    return ExitCode.INTERRUPTED if found["interrupted"] else ExitCode.DONE


def _add_bench_flags(parser: Parser, words: list[str]) -> None:
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(GROUPS)} (default: all)")
    about = "about how long all measurements may take together [2]"
    parser.add_argument("--minutes", metavar="N", type=float, default=2.0, help=about)
    about = "also prepare texts of up to 1 GB, without a time limit (needs 3 GB of disk)"
    parser.add_argument("--largest", action="store_true", help=about)
    about = "folder of the picture and the JSON file [./bench]"
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("bench"), help=about)
    # The time budget sets the number of steps, and there is one process.
    unused = ("train.steps", "train.minutes", "train.epochs", "train.ranks")
    about = "the middle of all sweeps (default: tiny on a CPU, baby on an accelerator)"
    add_run_flags(parser, words, about, short={"data.tokenizer": "tokenizer"}, skip=unused)


def _read_groups(only: str | None) -> tuple[str, ...]:
    """Return the groups named by --only; without it, all groups."""
    groups = tuple(GROUPS if only is None else dict.fromkeys(name.strip() for name in only.split(",")))
    if unknown := [name for name in groups if name not in GROUPS]:
        what, cure = f"there is no group {unknown[0]!r}", f"choose from {', '.join(GROUPS)}"
        raise ConfigError(what, where="--only", cure=cure)
    return groups


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _draw(out: Path, found: Mapping[str, Any]) -> dict[str, str]:
    """Draw both pictures; return the paths of all files."""
    from gptloom.plots.bench import draw_bench

    title = f"{found['recipe']}: {found['model']['parameters']:,} parameters on {found['device']}, {found['dtype']}"
    draw_bench(out / "bench.png", found, title=title)
    draw_bench(out / "bench-dark.png", found, title=title, dark=True)
    return {
        "picture": str(out / "bench.png"),
        "picture_dark": str(out / "bench-dark.png"),
        "json": str(out / "bench.json"),
    }


def _sentences(found: Mapping[str, Any]) -> list[str]:
    """Return the main results as sentences."""
    lines = []
    for one in found.get("sweeps", []):
        if one["exponent"] is not None:
            values = [point["value"] for point in one["points"]]
            last = f"{one['exponent_at_the_end']:.2f} between the last two"
            growth = f"{one['exponent']:.2f} (from {values[0]:,} to {values[-1]:,}; {last})"
            lines.append(f"a step's time grows as {one['name']} to the power {growth}")
    best = max(
        (point for one in found.get("sweeps", []) for point in one["points"]),
        key=lambda point: point["operations_per_second"],
        default=None,
    )
    if best is not None:
        reached = f"{best['operations_per_second'] / 1e9:,.0f} GFLOP/s"
        share = f"{best['share_of_limit']:.0%} of what its matrix products allow alone"
        lines.append(f"the most that a step reached is {reached}, {share}")
    return lines if not found["interrupted"] else [*lines, "interrupted: the rest was not measured"]


def _left_out(found: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that was not measured, with the reason."""
    groups = [(one["name"], one["left_out"]) for one in found.get("sweeps", [])]
    groups += [(name, found[name]["left_out"]) for name in ("sampling", "preparing") if name in found]
    return [f"left out: {name} {one['value']:,}{_streams(one)}: {one['why']}" for name, ones in groups for one in ones]


def _streams(one: Mapping[str, Any]) -> str:
    return f", {one['streams']} at once" if "streams" in one else ""


def _tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a table for each measured sweep."""
    steps = ("ms a step", "quartiles", "n", "tokens/s", "FLOP a token", "GFLOP/s", "limit ms", "limit GFLOP/s", "share")
    drawn = [
        _table(f"step against {one['name']} ({one['setting']})", (one["name"], *steps), map(_step, one["points"]))
        for one in found.get("sweeps", [])
    ]
    if points := found.get("sampling", {}).get("points"):
        heads = ("context", "streams", "ms", "quartiles", "tokens/s", "MB a token", "GB/s", "limit GB/s", "share")
        drawn.append(_table("sampling against context", heads, map(_sampling, points)))
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
    from rich.table import Table

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


def _sampling(one: Mapping[str, Any]) -> Row:
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
