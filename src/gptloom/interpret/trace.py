"""Functions from token ids to numbers: attention maps, the logit lens, token losses, and principal axes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.run import IGNORE_INDEX
from gptloom.generate.batch import Token
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Context, Trace


@dataclass(frozen=True)
class Guess:
    """A prediction at one position.

    Attributes:
        alternatives: the most likely next tokens with their log-probabilities in nats, highest first.
        entropy: entropy of the complete distribution, in nats.
    """

    alternatives: tuple[tuple[int, float], ...]
    entropy: float


@torch.no_grad()
def look(model: LanguageModel, ids: Int[Tensor, "b t"]) -> Trace:
    """Run the model without dropout; return the attention weights and the residual stream as a `Trace`.

    Raises:
        ValueError: more tokens than the model's block_size.
    """
    trace = Trace()
    with evaluating(model):
        model.forward_hidden(ids, Context(trace=trace))
    return trace


@torch.no_grad()
def lens_logits(model: LanguageModel, stream: Float[Tensor, "b t c"]) -> Float[Tensor, "b t v"]:
    """Apply the final norm and the output layer to the residual stream after any block: the logit lens.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens". After the last block, these are the model's logits.
    """
    # Some models have no final norm, such as those that normalise after each sum.
    norm: nn.Module = getattr(model, "final_norm", nn.Identity())
    with evaluating(model):
        hidden: Tensor = norm(stream)
        return model.unembed(hidden)


def logit_lens(model: LanguageModel, trace: Trace, *, top: int) -> list[list[Guess]]:
    """Return the `top` most likely tokens at each position of the first row: for the embeddings, then each layer."""
    return [_guesses(lens_logits(model, stream[:1])[0], top) for stream in trace.stream]


def _guesses(logits: Float[Tensor, "t v"], top: int) -> list[Guess]:
    logprobs = logits.float().log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1).tolist()
    return [
        Guess(alternatives, spread) for alternatives, spread in zip(_most_likely(logprobs, top), entropy, strict=True)
    ]


@torch.no_grad()
def token_losses(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], *, top: int, device: torch.device
) -> Iterator[Token]:
    """Yield every target in order, with its log-probability, its rank and the most likely alternatives.

    Args:
        model: the model; it runs without dropout.
        batches: inputs and targets (b, t). With those of `evaluation_windows`, the mean loss equals that of `evaluate`.
        top: number of alternatives per token.
        device: device of the model.
    """
    for inputs, targets in batches:
        with evaluating(model):
            logits = model.unembed(model.forward_hidden(inputs.to(device))).float()
        wanted = targets.to(device)
        counted = wanted != IGNORE_INDEX
        scores, ids = logits[counted], wanted[counted]
        own = scores.gather(-1, ids[:, None])
        ranks = (scores > own).sum(-1).tolist()
        logprobs = scores.log_softmax(-1)
        chosen = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
        yield from map(Token, ids.tolist(), chosen, ranks, _most_likely(logprobs, top))


def hidden_tokens(ids: Int[Tensor, " t"], mask: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Mask one token of a text at a time; yield (inputs, targets), (1, t) each, with that token as the only target."""
    for position in range(len(ids)):
        inputs, targets = ids.clone(), torch.full_like(ids, IGNORE_INDEX)
        inputs[position], targets[position] = mask, ids[position]
        yield inputs[None], targets[None]


def _most_likely(logprobs: Float[Tensor, "n v"], top: int) -> list[tuple[tuple[int, float], ...]]:
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def attention_entropy(weights: Float[Tensor, "b h t s"]) -> Float[Tensor, " h"]:
    """Return each head's entropy in nats, averaged over the rows: 0 for a head that always attends to one token."""
    spread: Tensor = torch.special.entr(weights.float())
    return spread.sum(-1).mean((0, 2))


def pointedness(weights: Float[Tensor, "b h t s"]) -> Float[Tensor, " h"]:
    """Return the largest weight off the diagonal, averaged over the rows, for each head."""
    t, s = weights.shape[-2:]
    own = (
        torch.eye(t, s, dtype=torch.bool, device=weights.device)
        if t == s
        else torch.zeros(t, s, dtype=torch.bool, device=weights.device)
    )
    return weights.float().masked_fill(own, 0.0).amax(-1).mean((0, 2))


def uniform_entropy(tokens: int) -> float:
    """Return the mean entropy of a causal head with equal weights: the mean of ln(1), ln(2), ..., ln(tokens)."""
    return float(torch.arange(1, tokens + 1, dtype=torch.float64).log().mean())


@dataclass(frozen=True)
class Plane:
    """The rows of a table, projected onto the plane of their largest variance.

    Attributes:
        points: coordinates of the rows.
        axes: two orthonormal directions; the entry of largest magnitude is positive, so that the signs are fixed.
        shares: share of the variance along each direction, largest first; they sum to 1.
    """

    points: Float[Tensor, "v 2"]
    axes: Float[Tensor, "2 c"]
    shares: Float[Tensor, " r"]


@torch.no_grad()
def principal_axes(table: Float[Tensor, "v c"]) -> Plane:
    """Compute the principal components of a table's rows by a singular value decomposition (Pearson 1901)."""
    rows = table.detach().cpu().double()
    centred = rows - rows.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    found = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    found[: len(axes)] = axes[:2]
    largest = found.abs().argmax(dim=1, keepdim=True)
    found *= torch.where(found.gather(1, largest) < 0, -1.0, 1.0)
    variance = values.square()
    return Plane(centred @ found.T, found, variance / variance.sum().clamp(min=torch.finfo(torch.float64).tiny))
