"""What is varied around a recipe: one setting at a time, in powers of two or four."""

from dataclasses import dataclass
from typing import Any

from gptloom.config import RunConfig
from gptloom.fields import MOST
from gptloom.settings import merge, nest, parse


@dataclass(frozen=True)
class Factor:
    """A setting that is varied.

    Attributes:
        name: in a word.
        key: of the setting.
        powers: of which number, and from which to which, its value is multiplied with.
        most: a larger value is not tried.
        follows: settings of the model that grow with it where they are set.
    """

    name: str
    key: str
    powers: tuple[int, int, int]
    most: int = MOST
    follows: tuple[str, ...] = ()

    def value(self, config: RunConfig) -> int:
        """What a configuration says."""
        group, name = self.key.split(".")
        return int(getattr(getattr(config, group), name))

    def at(self, config: RunConfig, factor: float) -> RunConfig:
        """The same with this setting multiplied.

        Raises:
            ConfigError: it does not go with the others.
        """
        changes: dict[str, Any] = {self.key: max(1, round(self.value(config) * factor))}
        for name in self.follows:
            if (now := getattr(config.model, name)) is not None:
                changes[f"model.{name}"] = max(1, round(now * factor))
        micro = config.train.micro_batch_size
        if self.key == "train.batch_size" and micro is not None and changes[self.key] % micro:
            changes["train.micro_batch_size"] = None
        return parse(RunConfig, merge(config.model_dump(), nest(changes)), where=f"{self.name} {changes[self.key]:,}")


FACTORS = (
    Factor("batch", "train.batch_size", (2, -3, 3)),
    Factor("context", "model.block_size", (2, -2, 4)),
    Factor("width", "model.n_embd", (2, -2, 2), follows=("head_size", "mlp_width")),
    Factor("depth", "model.n_layer", (2, -2, 2)),
    Factor("vocabulary", "model.vocab_size", (4, -1, 5), most=1 << 18),
)
