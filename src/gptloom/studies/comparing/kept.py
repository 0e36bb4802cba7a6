"""A comparison on disk: what it is, and every training as soon as it has ended, so that an interrupted comparison goes on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptloom.errors import ConfigError, InputError
from gptloom.studies.comparing.factors import show
from gptloom.studies.records import read_as, read_record, write_record


@dataclass(frozen=True)
class Outcome:
    """One training, as it is kept on disk.

    Attributes:
        val_loss: nats per token on the whole validation split after the last step; None where the training diverged.
        val_bpb: the same in bits per byte.
        parameters: of the model; 0 where the training diverged.
        steps: optimizer steps.
        tokens: targets trained on.
        seconds: of training.
        wall: seconds in all, with evaluation.
        trouble: why it diverged.
    """

    val_loss: float | None
    val_bpb: float | None
    parameters: int
    steps: int
    tokens: int
    seconds: float
    wall: float
    trouble: str = ""


class Folder:
    """Where a comparison is kept: comparison.json says what it is, trials/ARM-PAIR.json what each training came to."""

    def __init__(self, path: Path) -> None:
        """Nothing is read or written yet."""
        self.path = path

    def begin(self, about: Mapping[str, Any]) -> None:
        """Start a comparison here, or make sure that the one that is here is the same.

        Args:
            about: what `compare.identity` says of it: own_seeds, seed, and arms by name.

        Raises:
            InputError: the folder holds something else.
            ConfigError: the settings or the text are not those that it was begun with.
        """
        path = self.path / "comparison.json"
        if path.exists():
            before = read_record(path)
            arms = before.get("arms")
            if not {"own_seeds", "seed"} <= before.keys() or not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
                raise InputError("is not a comparison's record", where=str(path), cure="choose another --run")
            if difference := _differs(before, about):
                raise ConfigError(f"this comparison was begun otherwise: {difference}", where=str(self.path), cure="give the same settings, or a new --run")
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError("is not empty, and no comparison", where=str(self.path), cure="choose another --run")
        else:
            self.write("comparison.json", about)

    def load(self, arm: int, pair: int) -> Outcome | None:
        """What is known of a training."""
        path = self.path / self._trial(arm, pair)
        return read_as(path, Outcome) if path.exists() else None

    def save(self, arm: int, pair: int, outcome: Outcome) -> None:
        """Keep a training."""
        self.write(self._trial(arm, pair), asdict(outcome))

    def looks(self) -> list[int]:
        """The numbers of seeds at which verdicts were given so far."""
        path = self.path / "looks.json"
        seeds = read_record(path).get("seeds") if path.exists() else []
        if not isinstance(seeds, list) or not all(isinstance(one, int) for one in seeds):
            raise InputError("does not say on how many seeds verdicts were given", where=str(path), cure="choose another --run")
        return seeds

    def look(self, seeds: int) -> int:
        """Note a verdict on so many seeds; returns how many were given on fewer."""
        seen = sorted({*self.looks(), seeds})
        self.write("looks.json", {"seeds": seen})
        return seen.index(seeds)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file, whole or not at all."""
        write_record(self.path / name, value)

    def _trial(self, arm: int, pair: int) -> str:
        return f"trials/{arm:02}-{pair:03}.json"


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing in which two comparisons differ, or an empty string."""
    for key in ("own_seeds", "seed"):
        if before[key] != now[key]:
            return f"{key} was {before[key]}, not {now[key]}"
    if list(before["arms"]) != list(now["arms"]):
        return f"its arms were {', '.join(before['arms'])}"
    for name, settings in now["arms"].items():
        old = before["arms"][name]
        for key in {**old, **settings}:
            if old.get(key) != settings.get(key):
                what = "the text has changed" if key == "text_sha256" else f"{key} was {show(old.get(key))}, not {show(settings.get(key))}"
                return f"{what} ({name})"
    return ""
