"""The training loss.

`torch.compile` and data parallelism wrap `Objective`; the model inside it stays unwrapped.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.run import IGNORE_INDEX, TrainConfig
from gptloom.model.base import LanguageModel


class Objective(nn.Module):
    """Cross-entropy, summed over the targets.

    Sum and count are returned separately. The caller divides once, by the count over all micro-batches and ranks.

    Args:
        model: a language model. An encoder-decoder takes sources as well as inputs.
        label_smoothing: share of a target's probability that is spread over all tokens (Szegedy et al. 2016, section
            7). It applies in training mode only, so reported losses are never smoothed.
    """

    def __init__(self, model: LanguageModel, label_smoothing: float = 0.0) -> None:
        """Wrap a model."""
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    @classmethod
    def from_config(cls, model: LanguageModel, config: TrainConfig) -> "Objective":
        """Return the objective that a configuration trains with."""
        return cls(model, config.label_smoothing)

    def forward(self, *batch: Int[Tensor, "b _"]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Return the summed loss in nats, and the number of targets that are not `IGNORE_INDEX`.

        Args:
            batch: (inputs, targets), or (sources, inputs, targets) for an encoder-decoder.
        """
        *inputs, targets = batch
        logits = self.model(*inputs)
        smoothing = self.label_smoothing if self.training else 0.0
        scores = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # never in bfloat16
        nats = F.cross_entropy(
            scores, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing
        )
        return nats, (targets != IGNORE_INDEX).sum()
