"""`gptloom ladder neighbours`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.config.load import resolve
from gptloom.errors import ExitCode
from gptloom.plots.inspect import draw_gradient_by_distance
from gptloom.plots.studies import draw_races
from gptloom.studies.ladder.neighbours import ALIKE, Neighbour, compare_neighbours
from gptloom.studies.trial import open_material


def neighbours(texts: Sequence[str], recipe: str, changes: Mapping[str, Any], out: Path, as_json: bool) -> int:
    """Train each, draw, and print a table; `changes` are settings over the recipe, and over what all have alike."""
    config = resolve(recipe, ALIKE, changes, where="the command line")
    material = open_material(texts, config.data)
    for note in material.notes:
        print(f"note: {note}", file=sys.stderr)
    found = compare_neighbours(config, material, say=lambda line: print(line, file=sys.stderr, flush=True))
    out.mkdir(parents=True, exist_ok=True)
    races = {one.name: [(seconds, loss) for _, seconds, loss in one.trial.evaluations] for one in found}
    curves = {one.name: (one.distances, one.gradients) for one in found}
    draw_races(out / "loss.png", races, title=f"{material.name}: the same number of parameters and of tokens")
    draw_gradient_by_distance(
        out / "distance.png", curves, title=f"{material.name}: how far back a loss depends on the text"
    )
    rows = [_row(one) for one in found]
    files = {name: str(out / f"{name}.png") for name in ("loss", "distance")}
    if as_json:
        print(json.dumps({"neighbours": rows, "files": files}))
        return ExitCode.DONE
    print(f"{'model':<8} {'width':>5} {'parameters':>10} {'val loss':>8} {'seconds':>7} {'tokens/s':>9} {'reach':>5}")
    for row in rows:
        rate = row["tokens"] / max(row["seconds"], 1e-9)
        print(
            f"{row['name']:<8} {row['width']:>5} {row['parameters']:>10,} {row['val_loss']:>8.4f} {row['seconds']:>7.1f} {rate:>9,.0f} {row['reach']:>5}"
        )
    print("\n".join(files.values()))
    return ExitCode.DONE


def _row(one: Neighbour) -> dict[str, Any]:
    trial = one.trial
    measured = {
        "parameters": trial.parameters,
        "steps": trial.steps,
        "tokens": trial.tokens,
        "seconds": trial.seconds,
        "val_loss": trial.val_loss,
    }
    return {
        "name": one.name,
        "width": one.width,
        **measured,
        "reach": one.reach,
        "evaluations": trial.evaluations,
        "gradients": one.gradients,
    }
