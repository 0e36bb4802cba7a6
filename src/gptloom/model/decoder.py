"""The decoder: one class from the bigram's table to a modern GPT, every difference a field of its configuration."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config import ModelConfig
from gptloom.model.base import LanguageModel
from gptloom.model.initialise import initialise
from gptloom.model.stack import Stack
from gptloom.model.state import Context
from gptloom.settings import parse, read_recipe


class Decoder(Stack, LanguageModel):
    """A causal language model: ids in, logits of the next id out.

    With architecture="encoder" it is the same without the causal mask: every position sees all others, so what it can learn is
    to fill in what has been masked (Devlin et al. 2019), and it cannot write on.

    Args:
        config: the shape. Weights are drawn from torch's global generator, as in any `nn.Module`.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        """Build the layers and draw their weights; `cross` as in `Stack`. ValueError: the configuration is another class's."""
        if config.architecture not in (("encoder-decoder",) if cross else ("decoder", "encoder")):
            raise ValueError(f"architecture={config.architecture!r} is not built by this class; use model.build.build_model")
        super().__init__(config, causal=config.architecture != "encoder", cross=cross)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias) if config.head != "none" else None
        if self.head is not None and config.head == "tied":
            self.head.weight = self.token_table.weight
        self._build_more()
        initialise(self, config)

    @classmethod
    def from_recipe(cls, name: str, **changes: object) -> "Decoder":
        """A freshly initialised model with a recipe's shape.

        Args:
            name: tiny, baby, mingpt, gpt2, modern, modern-tiny or encoder; those of other models (translate, lstm) are built by
                `model.build.build_model`.
            changes: fields of `ModelConfig` to set differently, such as vocab_size=65.

        Raises:
            ConfigError: no such recipe or field, or the fields do not fit together.
            ValueError: the recipe is of another kind of model.
        """
        return cls(parse(ModelConfig, {**read_recipe(name).get("model", {}), **changes}, where=f"recipe {name}"))

    def hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """The normalised residual stream after the last block; see `LanguageModel.hidden`."""
        return self.run(ids, context or Context())

    def _build_more(self) -> None:
        """Parts that a kind of decoder has besides; built before the weights are drawn."""

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Logits; where the table holds them already, they are passed on."""
        return hidden if self.head is None else self.head(hidden)


def cut_rows(hidden: Float[Tensor, "b t c"], counts: Sequence[int]) -> Float[Tensor, "b c"]:
    """The vector of each row's last real token."""
    return torch.stack([row[count - 1] for row, count in zip(hidden, counts, strict=True)])
