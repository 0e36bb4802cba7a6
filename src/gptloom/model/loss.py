"""What training minimises.

This is the module that is wrapped (compiled, distributed); the bare model inside stays clean.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.run import IGNORE_INDEX
from gptloom.model.base import LanguageModel
from gptloom.model.transformer import EncoderDecoder


class Objective(nn.Module):
    """Cross-entropy of the targets, summed.

    The sum and the count come back apart, so that micro-batches and ranks are divided once, by the global count.

    Args:
        model: a language model; an encoder-decoder is given sources as well as inputs.
        label_smoothing: share of a target's probability that is spread over all tokens (Szegedy et al. 2016, section
            7), in training only: a loss that is reported is never a smoothed one.
    """

    def __init__(self, model: LanguageModel, label_smoothing: float = 0.0) -> None:
        """Wrap a model."""
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, *batch: Int[Tensor, "b _"]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Summed loss in nats, and the number of targets that are not `IGNORE_INDEX`; `batch` is (inputs, targets) or (sources, inputs, targets)."""
        *inputs, targets = batch
        logits = self.model.translate(*inputs) if isinstance(self.model, EncoderDecoder) else self.model(*inputs)
        smoothing = self.label_smoothing if self.training else 0.0
        scores = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # never in half precision
        nats = F.cross_entropy(
            scores, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing
        )
        return nats, (targets != IGNORE_INDEX).sum()
