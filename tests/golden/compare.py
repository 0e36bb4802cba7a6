"""Hold this checkout's golden values to another commit's: `make golden BASE=REV`, or `compare.py A.json B.json`.

Bit for bit. Both are measured by this checkout's golden.py, one after the other, each in a process of its own. The
exit code is 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def difference(one: Any, other: Any) -> float:
    """The largest relative difference between two values; infinite where they are not numbers, or not equally many."""
    if one == other:
        return 0.0
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max(difference(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(difference, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(abs(one), abs(other))
    return float("inf")


def table(base: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], bool]:
    """A line for each name and path, and whether all are identical."""
    lines, same = [], True
    for name in dict.fromkeys([*base, *now]):
        for path in base.get(name) or now[name]:
            if name not in base or name not in now:
                verdict = "only in one of the two"
            elif base[name][path] == now[name][path]:
                verdict = "identical"
            else:
                pairs = [(key, difference(value, now[name][path].get(key))) for key, value in base[name][path].items()]
                verdict = "DIFFERS: " + ", ".join(f"{key} {_told(size)}" for key, size in pairs if size)
            same &= verdict == "identical"
            lines.append(f"{name:<12} {path:<10} {verdict}")
    return lines, same


def _told(size: float) -> str:
    return "changed" if size == float("inf") else f"by {size:.1e}"


def measure(tree: Path, names: list[str]) -> dict[str, Any]:
    """The golden values of the code in a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "values.json"
        environment = os.environ | {"PYTHONPATH": str(tree / "src")}
        command = [sys.executable, ROOT / "tests/golden/golden.py", *names, "--json", found]
        subprocess.run(command, check=True, env=environment, cwd=folder)
        values = json.loads(found.read_text(encoding="utf-8"))
    if not Path(values["source"]).is_relative_to(tree):
        raise SystemExit(f"{values['source']} was measured, and not {tree}")
    return values["values"]


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A temporary worktree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def main() -> int:
    """Print the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="two files that golden.py has written")
    parser.add_argument("--base", metavar="REV", help="the commit that is checked out and measured")
    parser.add_argument("--names", metavar="NAME", nargs="+", default=[], help="only these recipes or runs")
    args = parser.parse_args()
    if args.base and not args.files:
        with checked_out(args.base) as tree:
            base = measure(tree, args.names)
        now = measure(ROOT, args.names)
    elif len(args.files) == 2:
        base, now = (json.loads(file.read_text(encoding="utf-8"))["values"] for file in args.files)
    else:
        parser.error("give --base REV, or two files")
    lines, same = table(base, now)
    print("\n".join(lines))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
