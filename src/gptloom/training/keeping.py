"""The keeper of a run: snapshots of what trains, handed to the saver, and brought back from the disk."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from gptloom.bundle import Bundle
from gptloom.config import RunConfig
from gptloom.durable import remove
from gptloom.errors import InputError, MachineError
from gptloom.locate import checkpoint_names, find_bundle
from gptloom.storage import load_weights, weights
from gptloom.training.checkpoint import Snapshot, read_checkpoint, write_checkpoint
from gptloom.training.job import Divergence, Keeper, Optimizer, Progress
from gptloom.training.saving import Saver
from gptloom.training.schedule import Horizon


class RunKeeper(Keeper):
    """Keeps a run's state in its folder."""

    def __init__(self, saver: Saver, config: RunConfig, bundle: Bundle, optimizer: Optimizer, progress: Progress, horizon: Horizon) -> None:
        """All of these are looked at again whenever something is to be saved."""
        self.saver, self.config, self.bundle, self.optimizer, self.progress, self.horizon = saver, config, bundle, optimizer, progress, horizon

    def save(self, improved: bool) -> None:
        """Copy the state and have it written."""
        self.saver.save(self._snapshot, best_so_far=improved)

    def saved(self, *, wait: bool = False) -> Sequence[tuple[int, Path]]:
        """See `Saver.saved`."""
        return self.saver.saved(wait=wait)

    def settle(self) -> Sequence[tuple[int, Path]]:
        """See `Saver.settle`."""
        return self.saver.settle()

    def rollback(self) -> Progress | None:
        """Bring weights and optimizer back to the latest whole checkpoint."""
        try:
            folder = find_bundle(self.saver.run, "latest")
        except InputError:
            return None
        state = read_checkpoint(folder)
        load_weights(self.bundle.model, folder / "model.safetensors")
        self.optimizer.restore(state.optimizer)
        return state.progress

    def keep_evidence(self, divergence: Divergence, batch: tuple[Tensor, ...]) -> Path | None:
        """Write diverged/checkpoints/step-N: a checkpoint from which the step can be taken again, its batch, and its numbers."""
        run = self.saver.run / "diverged"
        numbers = {key: str(value) if isinstance(value, float) else value for key, value in asdict(divergence).items()}
        *inputs, targets = batch
        tensors = {f"input-{number}": part.contiguous() for number, part in enumerate(inputs)} | {"targets": targets.contiguous()}
        try:
            path = write_checkpoint(run, self._snapshot(), files={"divergence.json": json.dumps(numbers) + "\n"}, tensors={"batch.safetensors": tensors})
        except MachineError as error:
            self.saver.say(f"warning: {error.where}: {error.what}")
            return None
        for name in checkpoint_names(run):
            if name != path.name:  # the latest is enough: they are as large as checkpoints
                remove(path.parent / name)
        return path

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            config=self.config,
            tokenizer=self.bundle.tokenizer,
            weights=weights(self.bundle.model),
            optimizer=self.optimizer.tensors(),
            progress=replace(self.progress),
            horizon=replace(self.horizon, plans=list(self.horizon.plans)),
        )
