"""`python tests/faults [NAMES] [--quick] [--nanogpt PATH] [--json FILE]`: try all or named faults; print a table."""

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.table import Row, lines, save

MODULES = {
    "kills": "kill -9 at random moments",
    "saving": "a fault at each operation of a save",
    "damage": "bit flips and truncations",
    "disk": "a full disk, a read-only one",
    "storms": "signals",
    "writers": "two writers",
    "resuming": "runs interrupted and resumed",
    "ranks": "two processes",
    "bad_configs": "bad configurations",
    "fuzz_loaders": "hostile files",
}


def main() -> int:
    """Return 1 if anything was lost, else 0."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all, or some of {', '.join(MODULES)}; nanogpt for the peer alone"
    )
    parser.add_argument("--quick", action="store_true", help="the short versions, as in make test")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT, to try the same faults on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table as JSON too")
    args = parser.parse_args()
    if unknown := set(args.names) - {*MODULES, "nanogpt"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(MODULES)}")
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # background jobs of a shell ignore it, and all runs that start here would inherit that
    rows: list[Row] = []
    for name in [name for name in args.names or MODULES if name != "nanogpt"]:
        print(f"{time.strftime('%H:%M:%S')}  {name}: {MODULES[name]}", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"faults.{name}").rows(args.quick)
    peer: dict[str, Row] = {}
    if args.nanogpt:
        peer = {row.fault: row for row in importlib.import_module("faults.nanogpt").rows(args.quick, args.nanogpt)}
    print("\n".join(lines(rows, peer)))
    if args.json:
        save(args.json, rows, peer)
    return int(any(row.survived < row.tries for row in rows))


if __name__ == "__main__":
    sys.exit(main())
