"""`gptloom ladder --reproduce`."""

import json
import sys
from dataclasses import asdict

from gptloom.errors import ExitCode
from gptloom.studies.reproduce import mark, reproduce


def reproduce_command(names: list[str], steps: int | None, as_json: bool) -> int:
    """Print published and measured side by side; with `as_json` one object whose `runs` hold them, and the tables as progress.

    Raises:
        GptloomError: an unknown name, or a text that cannot be had.
    """
    out = sys.stderr if as_json else sys.stdout
    found = reproduce(names, steps=steps, say=lambda line: print(line, file=out, flush=True))
    if as_json:
        print(json.dumps({"runs": [asdict(one) for one in found]}, ensure_ascii=False))
    else:
        print("\n" + "\n".join(f"{one.name:<28} {mark(one.agrees)}" for one in found))
    return ExitCode.DONE
