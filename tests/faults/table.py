"""The results of the faults as a table and as JSON."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One kind of fault: the number of tries, the number of tries without loss, and a note."""

    fault: str
    tries: int
    survived: int
    note: str


class Tally:
    """Counts the tries of one fault and collects the problems."""

    def __init__(self, fault: str) -> None:
        self.fault, self.tries, self.problems = fault, 0, Counter()

    def add(self, problem: str) -> None:
        """Add a try; an empty problem means no loss."""
        self.tries += 1
        if problem:
            self.problems[problem] += 1
            print(f"  {self.fault}: {problem}", file=sys.stderr, flush=True)

    def row(self, note: str = "") -> Row:
        """The row, with the three most common problems in its note."""
        failed = [f"{count} x {problem}" for problem, count in self.problems.most_common(3)]
        return Row(self.fault, self.tries, self.tries - self.problems.total(), "; ".join(filter(None, [note, *failed])))


def lines(rows: Iterable[Row], peer: Mapping[str, Row]) -> Iterable[str]:
    """The table as Markdown, with the other program's score next to ours if it had the same fault."""
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
