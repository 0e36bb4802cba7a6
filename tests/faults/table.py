"""What came of the faults, as a table and as JSON."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One kind of fault: how often it was tried, how often nothing was lost, and what else was seen."""

    fault: str
    tries: int
    survived: int
    note: str


class Tally:
    """Counts the tries of one fault, and keeps what went wrong."""

    def __init__(self, fault: str) -> None:
        self.fault, self.tries, self.problems = fault, 0, Counter()

    def add(self, problem: str) -> None:
        """One more try; no problem, no loss."""
        self.tries += 1
        if problem:
            self.problems[problem] += 1
            print(f"  {self.fault}: {problem}", file=sys.stderr, flush=True)

    def row(self, note: str = "") -> Row:
        """The row, with the three commonest problems in its note."""
        failed = [f"{count} x {problem}" for problem, count in self.problems.most_common(3)]
        return Row(self.fault, self.tries, self.tries - self.problems.total(), "; ".join(filter(None, [note, *failed])))


def lines(rows: Iterable[Row], peer: Mapping[str, Row]) -> Iterable[str]:
    """The table as Markdown; a peer's score stands beside ours where the same fault was tried on it."""
    head = ["fault", "tries", "survived", *(["nanoGPT"] if peer else []), "note"]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        other = peer.get(row.fault)
        score = [f"{other.survived} of {other.tries}" if other else ""] if peer else []
        yield f"| {' | '.join([row.fault, str(row.tries), str(row.survived), *score, row.note])} |"
    for row in peer.values():
        yield f"\nnanoGPT, {row.fault}: {row.note}" if row.note else ""


def save(path: Path, rows: Iterable[Row], peer: Mapping[str, Row]) -> None:
    """The same as JSON."""
    content = {"gptloom": [row._asdict() for row in rows], "nanogpt": [row._asdict() for row in peer.values()]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
