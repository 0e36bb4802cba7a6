"""Token ids of sources in, token ids of translations out.

What an encoder thinks of hidden tokens.
"""

from collections.abc import Sequence

import torch

from gptloom.config.run import SampleConfig
from gptloom.generate.batch import DecodeBatch, Token, describe
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.transformer import Conditioned, EncoderDecoder, pad_sources


def condition(model: EncoderDecoder, sources: Sequence[Sequence[int]]) -> Conditioned:
    """The decoder after the encoder has read these sources, one a row."""
    with torch.no_grad(), evaluating(model):
        return Conditioned(model, model.encode(pad_sources([list(source) for source in sources], model.device)))


def translate(
    model: EncoderDecoder, sources: Sequence[Sequence[int]], end: int, *, batch_size: int = 256
) -> list[list[int]]:
    """The likeliest token at each step, for many sources side by side; sources of like length share a batch."""
    found: list[list[int]] = [[] for _ in sources]
    config = SampleConfig(tokens=model.config.block_size - 1, temperature=0.0)
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = DecodeBatch(condition(model, [sources[row] for row in rows]), end=end)
        batch.extend([[end]] * len(rows), config)
        while tokens := batch.step():
            for place, token in tokens.items():
                if token.id != end:
                    found[rows[place]].append(token.id)
    return found


def exact_matches(model: EncoderDecoder, pairs: Sequence[tuple[list[int], list[int]]], end: int) -> int:
    """How many targets are written to the letter."""
    found = translate(model, [source for source, _ in pairs], end)
    return sum(one == target for one, (_, target) in zip(found, pairs, strict=True))


def fill_masks(model: LanguageModel, ids: Sequence[int], alternatives: int = 5) -> list[Token]:
    """The likeliest token for each hidden one (vocab_size), each guessed by itself, with its alternatives."""
    with torch.inference_mode(), evaluating(model):
        logits = model(torch.tensor([list(ids)], device=model.device))[0].float().cpu()
    hidden = logits[torch.tensor(ids) == model.config.vocab_size]
    return describe(hidden, hidden.argmax(dim=-1).tolist(), alternatives)
