"""Views of a model on one text, as data: `read_text` runs the model once, and each view is computed from the `Reading`.

`align` translates with an encoder-decoder and returns its attention. Nothing here draws or writes files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.bundle import Bundle
from gptloom.config.model import ModelConfig
from gptloom.data.batches import evaluation_windows
from gptloom.data.tokens import Tokens
from gptloom.generate.batch import Token, describe
from gptloom.generate.seq2seq import translate
from gptloom.generate.task import Score, end_of_text, task_of
from gptloom.interpret.statistics import Vitals, gradient_by_distance, vitals
from gptloom.interpret.trace import (
    hidden_tokens,
    logit_lens,
    look,
    pointedness,
    principal_axes,
    token_losses,
    uniform_entropy,
)
from gptloom.model.base import evaluating
from gptloom.model.cache import Context, Trace
from gptloom.model.transformer import EncoderDecoder

_BATCH = 8  # windows per batch: the logits of all their tokens are in memory


class Alternative(NamedTuple):
    """One of the most likely tokens at a position: its id, its text, and its log-probability in nats."""

    id: int
    text: str
    logprob: float

    @property
    def probability(self) -> float:
        """exp(logprob)."""
        return math.exp(self.logprob)


@dataclass(frozen=True)
class ScoredToken:
    """A token of a text with its log-probability.

    Attributes:
        id: id of the token.
        text: text of the token.
        logprob: in nats; None for a token that was given and not predicted.
        rank: number of tokens with a higher probability; None if there is no logprob.
        alternatives: the most likely tokens, highest probability first.
    """

    id: int
    text: str
    logprob: float | None = None
    rank: int | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def loss(self) -> float | None:
        """-logprob."""
        return None if self.logprob is None else -self.logprob


@dataclass(frozen=True)
class Reading:
    """A forward pass of a model over the last window of a text.

    Attributes:
        bundle: the model and its tokenizer.
        tokens: the complete text.
        last: ids of the last window and the token before it, (1, t + 1), for losses at every position.
        window: ids of the last window, (1, t).
        texts: texts of the tokens of the window.
        trace: attention weights and residual stream of the window.
    """

    bundle: Bundle
    tokens: Tokens
    last: Tensor
    window: Tensor
    texts: list[str]
    trace: Trace

    @property
    def is_cut(self) -> bool:
        """Whether the text is longer than the model's context."""
        return len(self.tokens) > self.bundle.model.config.block_size


def read_text(bundle: Bundle, tokens: Tokens) -> Reading:
    """Run the model with a trace over the last window of a text of at least 2 tokens."""
    size = bundle.model.config.block_size
    last = torch.from_numpy(tokens.ids[-size - 1 :].astype(np.int64))[None].to(bundle.model.device)
    window = last[:, -size:]
    texts = [bundle.tokenizer.token_text(one) for one in window[0].tolist()]
    return Reading(bundle, tokens, last, window, texts, look(bundle.model, window))


def absent_views(config: ModelConfig) -> dict[str, str]:
    """Return the views that a kind of model does not have, each with the reason."""
    if not task_of(config).causal:
        reason = "an encoder guesses hidden tokens, not the next one"
        return dict.fromkeys(("lens", "statistics", "distance"), reason)
    if config.is_recurrent:
        return {"lens": "a recurrent model's layers are computed as one"}
    return {}


def missing_view(reading: Reading, name: str) -> str | None:
    """Return the reason why a model does not have a view; None if it has the view."""
    reason = absent_views(reading.bundle.model.config).get(name)
    if reason is None and name == "attention" and not reading.trace.attention:
        return "this model has no attention"
    if reason is None and name == "lens" and len(reading.trace.stream) < 2:
        return "this model has no blocks to look between"
    return reason


@dataclass(frozen=True)
class TokensView:
    """The loss of each token.

    Attributes:
        tokens: the tokens of the complete text; for an encoder, those of the last window.
        loss: mean, in nats per token.
        perplexity: exp(loss).
        bpb: bits per byte; None if the tokens have no bytes or the model is an encoder.
    """

    tokens: list[ScoredToken]
    loss: float
    perplexity: float
    bpb: float | None

    @property
    def predicted(self) -> int:
        """Number of tokens that have a loss."""
        return sum(token.logprob is not None for token in self.tokens)


def view_tokens(reading: Reading, *, top: int) -> TokensView:
    """Compute the loss, the rank and the `top` most likely alternatives of each token.

    A decoder reads the text in windows, as `evaluate` does. An encoder predicts each token of the last window with only
    that token hidden (Salazar et al. 2020, pseudo-log-likelihood).
    """
    model, tokenizer, ids = reading.bundle.model, reading.bundle.tokenizer, reading.tokens.ids
    given, count = list[int](), 0
    if not reading.bundle.task.causal:
        batches = hidden_tokens(reading.window[0], model.config.vocab_size)
    else:
        batches = evaluation_windows(reading.tokens, model.config.block_size, _BATCH)
        given, count = [int(ids[0])], tokenizer.count_bytes(ids[1:])
    losses = list(token_losses(model, batches, top=top, device=model.device))
    score = Score(-sum(token.logprob for token in losses), len(losses), count)
    unscored = [ScoredToken(one, tokenizer.token_text(one)) for one in given]
    tokens = [*unscored, *(name_token(token, reading.bundle) for token in losses)]
    return TokensView(tokens, score.loss, score.perplexity, score.bpb)


@dataclass(frozen=True)
class AttentionView:
    """The attention weights of the last window.

    Attributes:
        texts: texts of the tokens.
        weights: for each layer, (heads, t, t); rows are queries, columns are keys.
        points: `pointedness` of each layer and head.
        is_mean: the weights are equal by construction, because the model averages.
    """

    texts: list[str]
    weights: list[Float[np.ndarray, "h t t"]]
    points: list[list[float]]
    is_mean: bool

    @property
    def size(self) -> int:
        """Number of weights of all layers."""
        return sum(layer.size for layer in self.weights)

    def most_pointed(self, layer: int | None = None, head: int | None = None) -> tuple[int, int]:
        """Return (layer, head) of the highest pointedness; `layer` and `head` restrict the choice."""
        pairs = [
            (one, other)
            for one, heads in enumerate(self.points)
            for other in range(len(heads))
            if layer in (None, one) and head in (None, other)
        ]
        return max(pairs, key=lambda pair: self.points[pair[0]][pair[1]])


def view_attention(reading: Reading) -> AttentionView:
    """Return the attention weights of all heads."""
    layers = reading.trace.attention
    weights = [layer[0].float().cpu().numpy() for layer in layers]
    points = [pointedness(layer).tolist() for layer in layers]
    return AttentionView(reading.texts, weights, points, reading.bundle.model.config.mixer == "mean")


@dataclass(frozen=True)
class LensGuess:
    """A layer's prediction at a position: the most likely next tokens, and the entropy in nats."""

    alternatives: tuple[Alternative, ...]
    entropy: float


@dataclass(frozen=True)
class LensView:
    """The predictions of each layer (the logit lens).

    Attributes:
        names: names of the layers: the embedding, then each block.
        texts: texts of the tokens that were read.
        guesses: predictions, by layer and token.
    """

    names: list[str]
    texts: list[str]
    guesses: list[list[LensGuess]]


def view_lens(reading: Reading, *, top: int) -> LensView:
    """Compute the `top` most likely next tokens after each layer."""
    lens = logit_lens(reading.bundle.model, reading.trace, top=top)
    names = ["embedding", *(f"after layer {layer}" for layer in range(len(lens) - 1))]
    guesses = [
        [LensGuess(_name_all(guess.alternatives, reading.bundle), guess.entropy) for guess in row] for row in lens
    ]
    return LensView(names, reading.texts, guesses)


@dataclass(frozen=True)
class EmbeddingView:
    """The token table, projected onto the plane of its largest variance.

    Attributes:
        texts: texts of all tokens.
        points: coordinates of the tokens, (v, 2).
        shares: share of the variance along each direction, largest first.
        marked: ids that occur in the window.
    """

    texts: list[str]
    points: Float[np.ndarray, "v 2"]
    shares: list[float]
    marked: list[int]


def view_embedding(reading: Reading) -> EmbeddingView:
    """Project the token table onto its first two principal axes."""
    model = reading.bundle.model
    table = model.token_table.weight[: model.config.vocab_size]  # without the mask token of an encoder
    plane = principal_axes(table)
    texts = [reading.bundle.tokenizer.token_text(one) for one in range(len(table))]
    return EmbeddingView(texts, plane.points.numpy(), plane.shares.tolist(), sorted(set(reading.window[0].tolist())))


@dataclass(frozen=True)
class StatisticsView:
    """Sizes of activations and gradients.

    Attributes:
        vitals: the measurements.
        uniform: entropy of a head with equal weights, in nats.
    """

    vitals: Vitals
    uniform: float


def view_statistics(reading: Reading) -> StatisticsView:
    """Measure one forward and backward pass over the last window."""
    return StatisticsView(vitals(reading.bundle.model, reading.last), uniform_entropy(reading.last.shape[1] - 1))


@dataclass(frozen=True)
class DistanceView:
    """The dependence of a loss on earlier tokens.

    Attributes:
        distances: in tokens, starting at 0.
        gradients: mean norm of the gradient at each distance.
    """

    distances: list[int]
    gradients: list[float]

    @property
    def nothing(self) -> str | None:
        """The reason why there is no curve to draw; None if there is a curve."""
        if any(self.gradients[1:]):
            return None
        return "this model's loss depends on no token but the last" if self.gradients[1:] else "the text is too short"


def view_distance(reading: Reading) -> DistanceView:
    """Measure the gradient by distance on the last window."""
    return DistanceView(*gradient_by_distance(reading.bundle.model, reading.last))


def name_token(token: Token, bundle: Bundle) -> ScoredToken:
    """Add the texts of a token and of its alternatives."""
    text = bundle.tokenizer.token_text(token.id)
    return ScoredToken(token.id, text, token.logprob, token.rank, _name_all(token.alternatives, bundle))


def _name_all(alternatives: Sequence[tuple[int, float]], bundle: Bundle) -> tuple[Alternative, ...]:
    return tuple(Alternative(one, bundle.tokenizer.token_text(one), logprob) for one, logprob in alternatives)


@dataclass(frozen=True)
class Alignment:
    """A greedy translation and its attention weights.

    Attributes:
        translation: text of the translation.
        sources: texts of the s source tokens.
        tokens: the t tokens of the translation, with the end token.
        cross: cross-attention weights, (layers, heads, t, s).
        encoder: self-attention weights of each encoder layer, (heads, s, s).
        layer: the cross-attention layer with the largest mean peak weight; often only one layer aligns.
    """

    translation: str
    sources: list[str]
    tokens: list[ScoredToken]
    cross: Float[np.ndarray, "l h t s"]
    encoder: list[Float[np.ndarray, "h s s"]]
    layer: int

    @property
    def source(self) -> str:
        """Text of the source."""
        return "".join(self.sources)

    @property
    def targets(self) -> list[str]:
        """Texts of the tokens of the translation."""
        return [token.text for token in self.tokens]

    @property
    def mean(self) -> Float[np.ndarray, "t s"]:
        """Cross-attention weights of `layer`, averaged over its heads."""
        found: Float[np.ndarray, "t s"] = self.cross[self.layer].mean(axis=0)
        return found


def align(bundle: Bundle, source: list[int], *, top: int) -> Alignment:
    """Translate the source greedily, then run encoder and decoder again with a trace.

    Args:
        bundle: an encoder-decoder and its tokenizer.
        source: ids of the text to translate.
        top: number of alternatives per token.

    Raises:
        ValueError: no token, or more tokens than the model's block_size.
    """
    model, limit = bundle.model, bundle.model.config.block_size
    assert isinstance(model, EncoderDecoder)
    if not 0 < len(source) <= limit:
        raise ValueError(f"a source has 1 to {limit} tokens, not {len(source)}")
    end = end_of_text(bundle.tokenizer)
    written = translate(model, [source], end)[0]
    targets = [*written, end][: limit - 1]
    reading, writing = Trace(), Trace()
    with torch.no_grad(), evaluating(model):
        memory = model.encode(torch.tensor([source], device=model.device), Context(trace=reading))
        inputs = torch.tensor([[end, *targets[:-1]]], device=model.device)
        logits = model.unembed(model.forward_hidden(inputs, Context(memory=memory, trace=writing)))[0].float().cpu()
    cross = np.stack([layer[0].float().cpu().numpy() for layer in writing.cross])
    return Alignment(
        translation=bundle.tokenizer.decode(written),
        sources=[bundle.tokenizer.token_text(one) for one in source],
        tokens=[name_token(token, bundle) for token in describe(logits, targets, top)],
        cross=cross,
        encoder=[layer[0].float().cpu().numpy() for layer in reading.attention],
        layer=int(cross.mean(axis=1).max(axis=-1).mean(axis=-1).argmax()),
    )
