"""Beam search, translation with an encoder-decoder, and prediction of masked tokens with an encoder; on token ids."""

from collections.abc import Callable, Sequence

import torch

from gptloom.config.run import SampleConfig
from gptloom.generate.batch import DecodeBatch, Token, describe
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.transformer import Conditioned, EncoderDecoder, pad_sources


def beam_search(
    model: LanguageModel,
    prompt: Sequence[int],
    config: SampleConfig,
    *,
    end: int | None = None,
    stopped: Callable[[list[int]], bool] | None = None,
    cached: bool = True,
) -> list[tuple[list[int], float]]:
    """Find continuations of high total probability with `config.beams` beams.

    A continuation's score is its summed log-probability (nats) / length ** length_penalty.

    Args:
        model: a causal language model.
        prompt: token ids, at least one.
        config: only `beams`, `tokens` and `length_penalty` are used.
        end: token id that ends a continuation.
        stopped: whether a continuation ends with these new ids, because they spell a stop string.
        cached: see `DecodeBatch`.

    Returns:
        Up to `config.beams` pairs (new ids, score), best first.
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
                new = [*batch.texts[parent][len(prompt) :], one]
                ended = one == end or (stopped is not None and stopped(new))
                if ended and place < config.beams:
                    done.append(_scored(new, float(best.values[place]), config))
                elif not ended and len(going) < config.beams:
                    going.append(place)
            if not going:
                break
            # Sums only decrease, so an open beam can at best keep its sum and be divided by the full length.
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


def describe_text(model: LanguageModel, prompt: Sequence[int], ids: Sequence[int], alternatives: int) -> list[Token]:
    """Return the tokens of a text that follows a prompt, with their probabilities; see `describe`.

    Args:
        model: a causal language model.
        prompt: token ids, at least one.
        ids: the token ids of the text.
        alternatives: number of alternatives per token.
    """
    batch, tokens = DecodeBatch(model), list[Token]()
    batch.add(prompt, SampleConfig(tokens=len(ids)))
    with torch.inference_mode(), evaluating(model):
        for one in ids:
            tokens += describe(batch.logits().float().cpu(), [one], alternatives)
            batch.append([one])
    return tokens


def _scored(ids: list[int], total: float, config: SampleConfig) -> tuple[list[int], float]:
    return ids, total / len(ids) ** config.length_penalty


def condition(model: EncoderDecoder, sources: Sequence[Sequence[int]]) -> Conditioned:
    """Run the encoder on the sources; return the decoder conditioned on them, one source per row."""
    with torch.no_grad(), evaluating(model):
        return Conditioned(model, model.encode(pad_sources([list(source) for source in sources], model.device)))


def translate(
    model: EncoderDecoder, sources: Sequence[Sequence[int]], end: int, *, batch_size: int = 256
) -> list[list[int]]:
    """Translate sources by greedy decoding, in batches of sources of similar length.

    Args:
        model: the encoder-decoder.
        sources: token ids of each source.
        end: token id that starts and ends a target.
        batch_size: maximum number of sources in a batch.

    Returns:
        The token ids of each translation, without `end`.
    """
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
    """Return the number of sources whose translation equals the target."""
    found = translate(model, [source for source, _ in pairs], end)
    return sum(one == target for one, (_, target) in zip(found, pairs, strict=True))


def fill_masks(model: LanguageModel, ids: Sequence[int], alternatives: int = 5) -> list[Token]:
    """Predict each masked token (id `vocab_size`) independently: the most probable token and its alternatives."""
    with torch.inference_mode(), evaluating(model):
        logits = model(torch.tensor([list(ids)], device=model.device))[0].float().cpu()
    hidden = logits[torch.tensor(ids) == model.config.vocab_size]
    return describe(hidden, hidden.argmax(dim=-1).tolist(), alternatives)
