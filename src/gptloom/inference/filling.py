"""What an encoder thinks of hidden tokens."""

from collections.abc import Sequence

import torch

from gptloom.inference.generation import Token, describe, evaluating
from gptloom.model.base import LanguageModel


def fill_masks(model: LanguageModel, ids: Sequence[int], alternatives: int = 5) -> list[Token]:
    """The likeliest token for each hidden one (vocab_size), each guessed by itself, with its alternatives."""
    with torch.inference_mode(), evaluating(model):
        logits = model(torch.tensor([list(ids)], device=model.device))[0].float().cpu()
    hidden = logits[torch.tensor(ids) == model.config.vocab_size]
    return describe(hidden, hidden.argmax(dim=-1).tolist(), alternatives)
