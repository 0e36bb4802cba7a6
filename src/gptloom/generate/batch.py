"""Token ids in, token ids out: prefill, decoding with a cache, and contexts that slide."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.config.run import SampleConfig
from gptloom.devices import SMALL_STEP, threads
from gptloom.fast.decode import make_stepper
from gptloom.generate.sampling import Uniforms, choose, draw_plainly, is_plain
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Cache, Context
from gptloom.model.transformer import cut_rows


def window_start(length: int, window: int | None) -> int:
    """Where the model's view of a text of `length` tokens begins; without a window, at its beginning.

    A view that is full moves on by half of the window, so that a cache is rebuilt once in that many tokens and the view
    never shrinks below one half. A function of the length alone, so cached and uncached writing agree.
    """
    if window is None:
        return 0
    stride = max(1, window // 2)
    return max(0, -(-(length - window) // stride) * stride)


class Rows:
    """Texts (as ids) of different lengths that one model reads side by side.

    Args:
        model: a causal language model.
        rows: the texts so far, each with at least one id.
        room: most tokens that any of them will grow by.
        cached: keep the model's state between calls; without it every call reads each whole view again.
        compare: see `fast.decode.make_stepper`.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Sequence[Sequence[int]],
        *,
        room: int,
        cached: bool = True,
        compare: bool = True,
    ) -> None:
        """Take copies of the texts; nothing is computed yet."""
        if not rows or not all(rows):
            raise ValueError("every row needs at least one token to go on from")
        self.model, self.cached = model, cached
        self.rows = [list(row) for row in rows]
        self.window = model.window
        longest = max(map(len, rows)) + room
        self.capacity = min(self.window or longest, longest)
        self.state = model.init_cache(len(self.rows), self.capacity) if cached else None
        self.stepper = make_stepper(model, compare=compare)
        self.device, self.size = model.device, self.stepper.size
        self.unread, self.ahead = 0, 0

    def logits(self) -> Float[Tensor, "b v"]:
        """Scores of the token that follows each row."""
        if self.state is None:
            return self._read([row[window_start(len(row), self.window) :] for row in self.rows], Context())
        if self.unread == 1 and self.ahead:  # the usual case
            self.unread, self.ahead = 0, self.ahead - 1
            return self.stepper([row[-1:] for row in self.rows], self.state)
        logits = self._catch_up(self.state)
        have = self.state.lengths
        # So many steps follow in which no row slides, if all are equally long.
        self.unread, self.ahead = 0, self.capacity - have[0] if min(have) == max(have) else 0
        return logits

    @torch.inference_mode()
    def _catch_up(self, state: Cache) -> Tensor:
        """Read what is new: a token of each row that goes on, and the whole view of one that begins or slides."""
        have, rows = state.lengths, range(len(self.rows))
        views = [row[window_start(len(row), self.window) :] for row in self.rows]
        stale = [r for r in rows if have[r] == 0 or have[r] + 1 != len(views[r])]
        if len(stale) == len(rows):
            return self._read_whole(views, state)
        if not stale and min(have) == max(have):
            return self.stepper([view[-1:] for view in views], state)
        ids = torch.tensor([view[-1:] for view in views], device=self.device)
        counts = [0 if r in stale else 1 for r in rows]
        with threads(1 if len(rows) * self.size < SMALL_STEP else None):
            logits = self.model.unembed(self.model.forward_hidden(ids, Context(cache=state, counts=counts))[:, -1])
        if stale:
            fresh = self.model.init_cache(len(stale), self.capacity)
            logits[stale] = self._read_whole([views[r] for r in stale], fresh)
            state.write(stale, fresh)
        return logits

    def _read_whole(self, views: list[list[int]], state: Cache) -> Tensor:
        """Begin the state again with these views."""
        state.clear()
        if len({len(view) for view in views}) == 1:
            return self.stepper(views, state)
        return self._read(views, Context(cache=state))

    def append(self, ids: Sequence[int]) -> None:
        """Give each row its next token."""
        for row, one in zip(self.rows, ids, strict=True):
            row.append(one)
        self.unread += 1

    def take(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be dropped or repeated."""
        self.rows = [list(self.rows[row]) for row in rows]
        if self.state is not None:
            self.state.select(rows)

    @torch.inference_mode()
    def _read(self, views: list[list[int]], context: Context) -> Tensor:
        """Read views of different lengths."""
        context.counts = [len(view) for view in views]
        longest = max(context.counts)
        ids = torch.tensor([view + [0] * (longest - len(view)) for view in views], device=self.device)
        with threads(1 if ids.numel() * self.size < SMALL_STEP else None):
            return self.model.unembed(cut_rows(self.model.forward_hidden(ids, context), context.counts))


class Token(NamedTuple):
    """A written token. The rest is filled in only when details are asked for.

    Attributes:
        id: its number in the vocabulary.
        logprob: the model's own log-probability (nats), before any penalty, temperature or filter.
        rank: how many tokens the model held likelier.
        alternatives: the likeliest tokens with their log-probabilities, likeliest first.
    """

    id: int
    logprob: float = 0.0
    rank: int = 0
    alternatives: tuple[tuple[int, float], ...] = ()


class Generation:
    """Writes on from several prompts at once; the caller asks for one token a row at a time and may end any row.

    Args:
        model: a causal language model; its dropout is off while a token is computed.
        prompts: at least one id each.
        config: how tokens are chosen, and how many.
        end: an id that ends a row when it is drawn.
        details: None for the ids alone, else how many alternatives each `Token` lists.
        cached: see `Rows`.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: SampleConfig,
        *,
        end: int | None = None,
        details: int | None = None,
        cached: bool = True,
    ) -> None:
        """Prepare; nothing is computed yet."""
        self.model, self.config, self.end, self.details = model, config, end, details
        self.texts = Rows(model, prompts, room=config.tokens, cached=cached)
        self.alive = list(range(len(prompts)))
        self.uniforms, self.plain = Uniforms(config.seed, len(prompts)), is_plain(config)
        self.written = 0

    @property
    def slides(self) -> bool:
        """Some row is already longer than the model can see."""
        return self.texts.window is not None and any(len(row) > self.texts.window for row in self.texts.rows)

    def step(self) -> dict[int, Token]:
        """The next token of every row that goes on; rows that have ended are absent, and {} means that all have."""
        if not self.alive or self.written == self.config.tokens:
            return {}
        with evaluating(self.model):
            logits = self.texts.logits()
        ids = self._choose(logits)
        self.texts.append(ids)
        self.written += 1
        tokens = [Token(i) for i in ids] if self.details is None else describe(logits.float().cpu(), ids, self.details)
        result = dict(zip(self.alive, tokens, strict=True))
        if self.end in ids:
            for row, token in result.items():
                if token.id == self.end:
                    self.finish(row)
        return result

    def _choose(self, logits: Tensor) -> list[int]:
        """One token a row."""
        uniforms = self.uniforms.next(self.alive)
        if self.plain and logits.is_cpu:
            return draw_plainly(logits.float().numpy(), self.config.temperature, uniforms)
        # Apple's GPU has no float64, which the draw is made in.
        scores = logits.float().cpu() if logits.is_mps else logits.float()
        chosen = choose(scores, self._seen(scores), self.config, torch.tensor(uniforms, dtype=torch.float64))
        return chosen.tolist()

    def finish(self, row: int) -> None:
        """End a row; the others are not disturbed."""
        if row in self.alive:
            kept = [place for place, one in enumerate(self.alive) if one != row]
            self.alive = [self.alive[place] for place in kept]
            if kept:
                self.texts.take(kept)

    def _seen(self, logits: Tensor) -> Tensor | None:
        if self.config.repetition_penalty == 1.0:
            return None
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for place, row in enumerate(self.texts.rows):
            seen[place, torch.tensor(row[window_start(len(row), self.texts.window) :], device=logits.device)] = True
        return seen


def describe(logits: Float[Tensor, "b v"], ids: Sequence[int], alternatives: int) -> list[Token]:
    """Each chosen id with its log-probability, its rank and the likeliest alternatives, by the model's own distribution."""
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(alternatives, logits.shape[-1]), dim=-1)
    tokens = []
    for row, one in enumerate(ids):
        rank = int((logits[row] > logits[row, one]).sum())
        others = tuple(zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True))
        tokens.append(Token(one, float(logprobs[row, one]), rank, others))
    return tokens
