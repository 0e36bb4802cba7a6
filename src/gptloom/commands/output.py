"""Where `gptloom inspect` puts what it finds: pictures and pages in a folder, and numbers in one JSON object."""

import argparse
from pathlib import Path
from typing import Any


class Output:
    """Files and values as they come.

    Attributes:
        values: the result, as JSON.
        notes: what the user should know.
        missing: the views that this model does not have, and why.
        files: what was written, by the name of the view.
    """

    def __init__(self, args: argparse.Namespace, notes: list[str]) -> None:
        """`args` has run and out; notes may be added to."""
        self.args, self.notes = args, notes
        self.name, self.out = Path(args.run).resolve().name, args.out
        self.files: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.values: dict[str, Any] = {"notes": self.notes, "missing": self.missing, "files": self.files}

    def path(self, name: str) -> Path:
        """Where a file goes; it is listed in the result."""
        self.out.mkdir(parents=True, exist_ok=True)
        path: Path = self.out / name
        self.files[name.rpartition(".")[0]] = str(path)
        return path
