"""Beam search: the likeliest continuation as a whole, not token by token.

Token ids of sources in, token ids of translations out.

What an encoder thinks of hidden tokens.
"""

from collections.abc import Sequence

import torch

from gptloom.config.run import SampleConfig
from gptloom.generate.batch import DecodeBatch, Token, describe
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.transformer import Conditioned, EncoderDecoder, pad_sources


def beam_search(
    model: LanguageModel, prompt: Sequence[int], config: SampleConfig, *, end: int | None = None, cached: bool = True
) -> list[tuple[list[int], float]]:
    """The likeliest continuations that a beam of `config.beams` finds.

    Args:
        model: a causal language model.
        prompt: at least one id.
        config: beams, tokens and length_penalty are used: a score is the summed log-probability / length **
            length_penalty.
        end: an id that ends a continuation.
        cached: see `DecodeBatch`.

    Returns:
        Up to `config.beams` (new ids, score), best first.
    """
    batch = DecodeBatch(model, cached=cached)
    batch.add(prompt, config)
    sums, done = torch.zeros(1, dtype=torch.float64), list[tuple[list[int], float]]()
    with torch.inference_mode(), evaluating(model):
        for _ in range(config.tokens):
            totals = sums[:, None] + batch.logits().cpu().double().log_softmax(dim=-1)
            best = totals.flatten().topk(min(2 * config.beams, totals.numel()))
            parents, ids = (best.indices // totals.shape[1]).tolist(), (best.indices % totals.shape[1]).tolist()
            going: list[int] = []
            for place, (parent, one) in enumerate(zip(parents, ids, strict=True)):
                if one == end and place < config.beams:
                    done.append(_scored([*batch.texts[parent][len(prompt) :], one], float(best.values[place]), config))
                elif one != end and len(going) < config.beams:
                    going.append(place)
            if not going:
                break
            # Sums only fall, so what goes on can at best keep its sum and be divided by the full length.
            hope = float(best.values[going[0]]) / config.tokens**config.length_penalty
            if (
                len(done) >= config.beams
                and sorted((score for _, score in done), reverse=True)[config.beams - 1] >= hope
            ):
                break
            sums = best.values[going]
            batch.take([parents[place] for place in going])
            batch.append([ids[place] for place in going])
        else:
            done += [
                _scored(row[len(prompt) :], float(total), config) for row, total in zip(batch.texts, sums, strict=True)
            ]
    return sorted(done, key=lambda one: -one[1])[: config.beams]


def _scored(ids: list[int], total: float, config: SampleConfig) -> tuple[list[int], float]:
    return ids, total / len(ids) ** config.length_penalty


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
