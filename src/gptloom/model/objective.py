"""What training minimises. This is the module that is wrapped (compiled, distributed); the bare model inside stays clean."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config import IGNORED
from gptloom.model.state import LanguageModel


class Objective(nn.Module):
    """Next-token cross-entropy, summed.

    The sum and the count come back apart, so that micro-batches and ranks are divided once, by the global count.
    """

    def __init__(self, model: LanguageModel) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, inputs: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Summed loss in nats, and the number of targets that are not `IGNORED`."""
        logits = self.model.unembed(self.model.hidden(inputs))
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return nats, (targets != IGNORED).sum()
