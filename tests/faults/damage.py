"""Damaged files in a checkpoint and in its run folder: flipped bits; truncated, extended, zeroed or missing files."""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gptloom
from faults.table import Row, Tally
from faults.trials import Outcome, call, difference, reference_run, write_text
from gptloom.errors import GptloomError

SETTINGS = {"train.steps": 6, "train.save-every": 2, "train.eval-every": 2, "train.keep": 3}


def rows(quick: bool) -> Iterator[Row]:
    """Each try damages one file of a fresh copy."""
    with tempfile.TemporaryDirectory() as folder:
        trials = _Trials(Path(folder))
        yield trials.checkpoints(12 if quick else 1000)
        yield trials.run_folders(6 if quick else 300)
        yield trials.token_files(2 if quick else 100)


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file at random; return a description of the damage."""
    content = bytearray(path.read_bytes())
    kind = chance.choices(["flip", "cut", "empty", "append", "blank", "remove"], [55, 20, 5, 8, 7, 5])[0]
    if kind == "remove":
        path.unlink()
        return kind
    if kind == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[chance.randrange(max(1, len(content))) :]
    elif kind == "empty":
        content.clear()
    elif kind == "blank" and any(content):  # as a file system may leave a block after a power failure
        first = chance.choice([place for place, byte in enumerate(content) if byte])
        content[first : first + 512] = bytes(len(content[first : first + 512]))
    else:
        content += chance.randbytes(chance.randint(1, 64))
    path.write_bytes(content)
    return kind


class _Trials:
    """Copies of one finished run with three checkpoints, whose final bits are known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chance = folder, random.Random(5)
        self.text = write_text(folder)
        self.whole = folder / "whole"
        self.reference = reference_run(self.text, self.whole, SETTINGS)
        self.run = folder / "copy"

    def _copy(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.whole, self.run)

    def checkpoints(self, tries: int) -> Row:
        """Damage the newest checkpoint: load each, and resume a third; one run in eight has no other checkpoint."""
        tally, kinds, resumed = Tally("damaged checkpoint"), Counter(), 0
        files = sorted(path.name for path in (self.whole / "checkpoints" / "step-000006").iterdir())
        for number in range(tries):
            self._copy()
            checkpoint = self.run / "checkpoints" / "step-000006"
            if alone := number % 8 == 7:
                for other in set(checkpoint.parent.iterdir()) - {checkpoint}:
                    shutil.rmtree(other)
                (self.run / "best").unlink()
            name = files[number % len(files)]
            kind = damage(checkpoint / name, self.chance)
            kinds[kind] += 1
            problem = self._unnoticed(checkpoint)
            if not problem and self.chance.random() < 1 / 3:
                resumed += 1
                problem = self._unnoticed_by_resume(alone)
            tally.add(problem and f"{problem} ({kind}, {name})")
        return tally.row(
            ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            + f"; over {len(files)} files; {resumed} of the runs resumed"
        )

    def _unnoticed(self, checkpoint: Path) -> str:
        try:
            gptloom.load(checkpoint, device="cpu")
        except GptloomError:
            return ""
        except Exception as error:  # noqa: BLE001  # a traceback, to a user
            return f"load falls over with {type(error).__name__}"
        return "load notices nothing"

    def _unnoticed_by_resume(self, alone: bool) -> str:
        outcome = call(["resume", str(self.run)])
        if outcome.code == -1:
            return f"resume falls over: {outcome.ending}"
        if "has finished" in outcome.said:
            return "resume notices nothing"
        if alone or outcome.code:
            return "" if alone and outcome.is_one_line else f"resume did not do what it should: {outcome.ending}"
        named = [line for line in outcome.said.splitlines() if line.startswith("warning") and "step-000006" in line]
        return difference(self.run, self.reference) if len(named) == 1 else "resume names no damaged checkpoint"

    def run_folders(self, tries: int) -> Row:
        """Damage a file next to the checkpoints."""
        names = ["config.toml", "run.json", "latest", "best", "metrics.jsonl", "tokenizer.json"]
        return self._harmless_or_noticed(
            "damaged run folder", [self.run / names[number % len(names)] for number in range(tries)]
        )

    def token_files(self, tries: int) -> Row:
        """The run's text, as token ids in the cache."""
        (tokens,) = (self.folder / "cache" / "tokens").iterdir()
        return self._harmless_or_noticed("damaged token file", [tokens] * tries)

    def _harmless_or_noticed(self, title: str, paths: list[Path]) -> Row:
        """In a run with two steps left, damage must be harmless or reported, without a traceback."""
        tally, ends = Tally(title), Counter()
        tokens = {path: path.read_bytes() for path in paths if path.exists() and not path.is_relative_to(self.run)}
        for path in paths:
            self._copy()
            shutil.rmtree(self.run / "checkpoints" / "step-000006")
            for pointer in ("latest", "best"):
                (self.run / pointer).write_text("step-000004\n", encoding="utf-8")
            for other, content in tokens.items():
                other.write_bytes(content)
            kind, name = damage(path, self.chance), path.name if path.is_relative_to(self.run) else "tokens"
            end, problem = self._judge(call(["resume", str(self.run)]))
            ends[end] += 1
            tally.add(problem and f"{problem} ({kind}, {name})")
        return tally.row(", ".join(f"{count} {end}" for end, count in ends.most_common()))

    def _judge(self, outcome: Outcome) -> tuple[str, str]:
        if outcome.code == 0:
            weights = {name: self.reference[name] for name in ("model.safetensors", "optimizer.safetensors")}
            if not difference(self.run, weights):
                return "harmless", ""
            told = any(
                line.startswith("note") or (line.startswith("warning") and "training tokens" not in line)
                for line in outcome.said.splitlines()
            )
            return ("told", "") if told else ("missed", "the run goes on to other weights, and says nothing")
        return ("refused", "") if outcome.is_one_line else ("fell over", outcome.ending)
