"""One step climbed once, as a file: what a ladder has done so far, and what it goes on from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptloom.errors import InputError
from gptloom.studies.pace import Pace
from gptloom.studies.records import read_as, write_record

PLAN = "ladder.json"
CURE = "start a new ladder in another folder (--run)"


@dataclass(frozen=True)
class Rung:
    """What one training, or one counting, of a step came to.

    Attributes:
        name: the step.
        seed: of this training; None where nothing is drawn.
        parameters: trained numbers, or kept counts.
        steps: optimizer steps.
        tokens: tokens trained on; for counts, tokens counted.
        seconds: of training or counting, without evaluation.
        spent: seconds in all.
        val_loss: nats per token on the whole validation split after the last step.
        val_bpb: the same in bits per byte.
        sample: a little text drawn from the model's own probabilities.
    """

    name: str
    seed: int | None
    parameters: int
    steps: int
    tokens: int
    seconds: float
    spent: float
    val_loss: float
    val_bpb: float | None
    sample: str


@dataclass(frozen=True)
class Plan:
    """What a ladder begins with, and must be the same when it goes on.

    Attributes:
        texts: as on the command line.
        settings: of the ladder.
        tokens: that each step is trained on.
        identity: hash of the text, the tokenizer and the steps.
        paces: what each step was measured to cost, by name.
    """

    texts: list[str]
    settings: dict[str, Any]
    tokens: int
    identity: str
    paces: dict[str, Pace]


class RungStore:
    """A ladder's folder: ladder.json, trials/STEP/seed-N.json, and models/STEP for the first seed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        self.folder = folder

    def read_plan(self) -> Plan | None:
        """What the ladder began with; None for a new folder.

        Raises:
            InputError: the folder holds something else, or the plan is damaged.
        """
        path = self.folder / PLAN
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError("already exists and holds no ladder", where=str(self.folder), cure="choose another --run")
            return None
        return read_as(path, Plan, cure=CURE)

    def write_plan(self, plan: Plan) -> None:
        """Keep what the ladder begins with."""
        write_record(self.folder / PLAN, asdict(plan))

    def load(self, name: str, seed: int | None) -> Rung | None:
        """A finished rung; None where it has not been climbed."""
        path = self._path(name, seed)
        return read_as(path, Rung) if path.exists() else None

    def keep(self, rung: Rung) -> None:
        """Write a finished rung, whole or not at all."""
        write_record(self._path(rung.name, rung.seed), asdict(rung))

    def model_folder(self, name: str) -> Path:
        """An existing folder for a step's model."""
        folder = self.folder / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def spent(self) -> float:
        """Seconds that all finished rungs took."""
        return sum((read_as(path, Rung).spent for path in self.folder.glob("trials/*/*.json")), 0.0)

    def _path(self, name: str, seed: int | None) -> Path:
        return self.folder / "trials" / name / ("counts.json" if seed is None else f"seed-{seed}.json")


def fingerprint(values: Any) -> str:
    """Hex SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
