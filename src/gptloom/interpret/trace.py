"""What a model makes of a text: attention maps, the logit lens, and each token's loss. Ids in, numbers out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.run import IGNORED
from gptloom.generate.batch import Token
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Context, Trace


@dataclass(frozen=True)
class Guess:
    """A prediction at one position.

    Attributes:
        alternatives: the most likely next tokens with their log-probabilities in nats, highest first.
        entropy: of the whole distribution, in nats: how undecided the model is.
    """

    alternatives: tuple[tuple[int, float], ...]
    entropy: float


@torch.no_grad()
def look(model: LanguageModel, ids: Int[Tensor, "b t"]) -> Trace:
    """Read the ids once, with dropout off, and keep what happened: attention weights and the residual stream.

    Raises:
        ValueError: more tokens than the model's block_size.
    """
    trace = Trace()
    with evaluating(model):
        model.hidden(ids, Context(trace=trace))
    return trace


@torch.no_grad()
def lens_logits(model: LanguageModel, stream: Float[Tensor, "b t c"]) -> Float[Tensor, "b t v"]:
    """The logits if the model ended here: its last norm and its output layer on the stream after any block.

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"). After the last block these are the model's
    own logits.
    """
    # A model without a last norm (one that normalises after each sum, say) has nothing between its stream and its
    # output layer.
    norm: nn.Module = getattr(model, "final_norm", nn.Identity())
    with evaluating(model):
        hidden: Tensor = norm(stream)
        return model.unembed(hidden)


def logit_lens(model: LanguageModel, trace: Trace, *, top: int) -> list[list[Guess]]:
    """The `top` most likely tokens after each layer, the embeddings first, at each position of the first row."""
    return [_guesses(lens_logits(model, stream[:1])[0], top) for stream in trace.stream]


def _guesses(logits: Float[Tensor, "t v"], top: int) -> list[Guess]:
    logprobs = logits.float().log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1).tolist()
    return [
        Guess(alternatives, spread) for alternatives, spread in zip(_likeliest(logprobs, top), entropy, strict=True)
    ]


@torch.no_grad()
def token_losses(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], *, top: int, device: torch.device
) -> Iterator[Token]:
    """Every target of some windows, in order, with its log-probability, its rank and the most likely alternatives.

    Args:
        model: the model; dropout is off.
        batches: inputs and targets (b, t), as `evaluation_windows` gives them, so that the mean loss is that of
            `evaluate`.
        top: alternatives of each token.
        device: where the model is.
    """
    for inputs, targets in batches:
        with evaluating(model):
            logits = model.unembed(model.hidden(inputs.to(device))).float()
        wanted = targets.to(device)
        counted = wanted != IGNORED
        scores, ids = logits[counted], wanted[counted]
        own = scores.gather(-1, ids[:, None])
        ranks = (scores > own).sum(-1).tolist()
        logprobs = scores.log_softmax(-1)
        chosen = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
        yield from map(Token, ids.tolist(), chosen, ranks, _likeliest(logprobs, top))


def hidden_tokens(ids: Int[Tensor, " t"], mask: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Hide the tokens of a text one by one: (inputs, targets) of one row, whose only target is the hidden token."""
    for place in range(len(ids)):
        inputs, targets = ids.clone(), torch.full_like(ids, IGNORED)
        inputs[place], targets[place] = mask, ids[place]
        yield inputs[None], targets[None]


def _likeliest(logprobs: Float[Tensor, "n v"], top: int) -> list[tuple[tuple[int, float], ...]]:
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def attention_entropy(weights: Float[Tensor, "b h t s"]) -> Float[Tensor, " h"]:
    """The mean over rows of each head's entropy, in nats: 0 for a head that always looks at one token."""
    spread: Tensor = torch.special.entr(weights.float())
    return spread.sum(-1).mean((0, 2))


def pointedness(weights: Float[Tensor, "b h t s"]) -> Float[Tensor, " h"]:
    """How much each head looks at one other token: the mean over rows of the largest weight off the diagonal."""
    t, s = weights.shape[-2:]
    own = (
        torch.eye(t, s, dtype=torch.bool, device=weights.device)
        if t == s
        else torch.zeros(t, s, dtype=torch.bool, device=weights.device)
    )
    return weights.float().masked_fill(own, 0.0).amax(-1).mean((0, 2))


def uniform_entropy(tokens: int) -> float:
    """The entropy of a causal head that looks at all it may see alike: the mean of ln(1), ln(2) ... ln(tokens)."""
    return float(torch.arange(1, tokens + 1, dtype=torch.float64).log().mean())


@dataclass(frozen=True)
class Plane:
    """A table's rows in the plane of their largest variance.

    Attributes:
        points: the rows' coordinates.
        axes: two orthonormal directions; the largest entry of each is positive, so that the picture does not flip.
        shares: of the variance, along all directions, largest first; they sum to 1.
    """

    points: Float[Tensor, "v 2"]
    axes: Float[Tensor, "2 c"]
    shares: Float[Tensor, " r"]


@torch.no_grad()
def principal_axes(table: Float[Tensor, "v c"]) -> Plane:
    """Principal components of a table's rows by a singular value decomposition (Pearson 1901)."""
    rows = table.detach().cpu().double()
    centred = rows - rows.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    found = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    found[: len(axes)] = axes[:2]
    largest = found.abs().argmax(dim=1, keepdim=True)
    found *= torch.where(found.gather(1, largest) < 0, -1.0, 1.0)
    variance = values.square()
    return Plane(centred @ found.T, found, variance / variance.sum().clamp(min=torch.finfo(torch.float64).tiny))
