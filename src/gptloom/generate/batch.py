"""Batched generation of token ids: `DecodeBatch` adds and removes rows between steps, with a cache and a window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.config.run import SampleConfig
from gptloom.fast.decode import Reference, make_stepper
from gptloom.generate.sampling import choose, draw_plainly, is_plain, uniforms
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Cache


def window_start(length: int, window: int | None) -> int:
    """Return the index of the first token that the model reads in a text of `length` tokens.

    Without a window it is 0. A full window slides by half of its size. So the cache is rebuilt once per half window,
    and the model always reads at least half a window. The result depends only on the length, so generation with and
    without a cache agrees.
    """
    if window is None:
        return 0
    stride = max(1, window // 2)
    return max(0, -(-(length - window) // stride) * stride)


class Token(NamedTuple):
    """A generated token. The fields after `id` are set only if details are requested.

    Attributes:
        id: token id.
        logprob: log-probability (nats) of the model's logits, before penalty, temperature and filters.
        rank: number of tokens with larger logits.
        alternatives: the most probable tokens and their log-probabilities, in descending order.
    """

    id: int
    logprob: float = 0.0
    rank: int = 0
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, slots=True)
class _Row:
    """State of a row besides its text.

    Attributes:
        name: row number, in order of addition.
        config: sampling settings.
        details: number of alternatives in each `Token`; None returns only ids.
        draw: returns the row's next uniform number.
        left: number of tokens still to generate.
        most: maximum number of tokens that the model reads at once.
        placed: True if the row has a place in the cache.
    """

    name: int
    config: SampleConfig
    details: int | None
    draw: Callable[[], float]
    left: int
    most: int
    placed: bool = False


class DecodeBatch:
    """Continues many texts in one batch. Rows can be added and removed between steps.

        batch = DecodeBatch(model)
        row = batch.add([1, 2, 3], SampleConfig(tokens=20))
        while tokens := batch.step():
            print(tokens[row])

    Each row has its own length, settings and random stream, which depends only on (seed, sample). A row's text is
    therefore independent of the other rows as long as its logits are. The logits are bitwise independent of the other
    rows where `fast.decode` uses `ArrayKit`: for up to four rows of unequal length of a small model on a CPU.
    Elsewhere, the batch size changes the rounding of matrix products, by about 1e-6 of the largest logit. A text then
    differs from the text of a batch of one if a draw is that close to the boundary between two tokens.

    Search and comparison algorithms that choose the tokens themselves use `logits`, `append` and `take`.

    Args:
        model: a causal language model; dropout is off during a step. If it is `Conditioned` on sources, the n-th added
            row has the n-th source.
        end: token id that ends a row when it is drawn.
        cached: keep the cache between steps; otherwise every step reads each row's window again.
        compare: see `fast.decode.make_stepper`.

    Attributes:
        texts: token ids of the active rows, including the prompts, in the order of `logits`.
        ended: numbers of the rows that ended in the last step.
    """

    def __init__(
        self, model: LanguageModel, *, end: int | None = None, cached: bool = True, compare: bool = True
    ) -> None:
        """Start without rows."""
        self.model, self.end, self.cached = model, end, cached
        self.window, self.stepper = model.window, make_stepper(model, compare=compare)
        self.texts, self.ended = list[list[int]](), list[int]()
        self._rows, self._added, self._names = list[_Row](), 0, list[int]()
        self._groups: list[tuple[SampleConfig, bool, list[int]]] | None = None
        self._asked = list[int]()
        self._pool: Cache | None = None
        """Cache with room for at least all placed rows, which come first."""
        self._state: Cache | None = None
        """The placed rows of the pool and their lengths; a row of length 0 has not been read yet."""
        self._unread, self._ahead, self._even = 0, 0, False

    def add(
        self, ids: Sequence[int], config: SampleConfig, *, details: int | None = None, sample: int | None = None
    ) -> int:
        """Add a row; the next step reads its prompt.

        Args:
            ids: token ids of the prompt, at least one; they are copied.
            config: sampling settings and the number of tokens.
            details: number of alternatives in each `Token`; None returns only ids.
            sample: index of the row's random stream for this seed (default: the row's number).

        Returns:
            The row's number: 0, 1, 2, ... in order of addition.

        Raises:
            ValueError: the prompt is empty.
        """
        if not ids:
            raise ValueError("every row needs a prompt of at least one token")
        name, longest = self._added, len(ids) + config.tokens
        self._added += 1
        draw = uniforms(config.seed, name if sample is None else sample)
        most = min(self.window or longest, longest)
        self._rows.append(_Row(name, config, details, draw, config.tokens, most))
        self.texts.append(list(ids))
        self._names.append(name)
        self._ahead, self._groups = 0, None
        return name

    def extend(self, texts: Sequence[Sequence[int]], config: SampleConfig, *, details: int | None = None) -> list[int]:
        """Add several rows with the same settings; return their numbers. See `add`."""
        return [self.add(ids, config, details=details) for ids in texts]

    def step(self) -> dict[int, Token]:
        """Generate one token for every row; return the tokens by row number ({} if there are no rows).

        A row ends when it draws `end` or reaches its number of tokens. Then it is dropped and listed in `ended`.
        """
        if not self._rows:
            return {}
        if self.model.training:
            with evaluating(self.model):
                logits = self.logits()
        else:
            logits = self.logits()
        ids = self._choose(logits)
        self.append(ids)
        found = dict(zip(self._names, self._tokens(logits, ids), strict=True))
        ended = []
        for row, one in zip(self._rows, ids, strict=True):
            row.left -= 1
            if not row.left or one == self.end:
                ended.append(row.name)
        self.ended = ended
        if len(ended) == len(self._rows):
            self._rows, self.texts, self._names, self._state, self._groups = [], [], [], None, None
        for name in ended:
            self.drop(name)
        return found

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Remove a row. The other rows do not change. If the row has already ended, do nothing."""
        if row not in self._names:
            return
        place, last, state = self._names.index(row), len(self._rows) - 1, self._state
        self._rows[place], self.texts[place], self._names[place] = self._rows[last], self.texts[last], self._names[last]
        del self._rows[last], self.texts[last], self._names[last]
        if state is not None and place < len(state.lengths):
            if last >= len(state.lengths):  # the row that moves here has no cache yet
                state.lengths[place] = 0
            else:
                if place != last:
                    state.move(last, place)
                self._look(state.lengths[:last])
        self._ahead, self._groups = 0, None

    def logits(self) -> Float[Tensor, "b v"]:
        """Return the logits of the next token of each text, in the order of `texts`."""
        if self.cached:
            state = self._state
            if state is not None and self._unread == 1 and self._ahead:  # the usual case
                self._unread, self._ahead = 0, self._ahead - 1
                if self._even:
                    return self.stepper([text[-1:] for text in self.texts], state)
                return self.stepper.uneven([text[-1] for text in self.texts], state)
            state = self._place()
            logits = self._catch_up(state)
            # Number of following steps in which no row's window slides.
            most = max(state.lengths)
            self._even = most == min(state.lengths)
            self._unread, self._ahead = 0, state.capacity - most
            return logits
        views = [text[window_start(len(text), self.window) :] for text in self.texts]
        return Reference(self.model.for_rows(self._names)).read(views, None)

    def append(self, ids: Sequence[int]) -> None:
        """Append one token to each text."""
        for text, one in zip(self.texts, ids, strict=True):
            text.append(one)
        self._unread += 1

    @torch.inference_mode()
    def take(self, places: Sequence[int]) -> None:
        """Keep the texts at these indices, in this order; a text may be left out or repeated."""
        if self.cached:
            self._pool = self._state = self._place()
            self._pool.select(places)
        self.texts = [list(self.texts[place]) for place in places]
        self._rows = [self._rows[place] for place in places]
        self._names, self._groups = [row.name for row in self._rows], None
        if not self._even:  # the remaining rows may have equal lengths
            self._ahead = 0

    @torch.inference_mode()
    def _place(self) -> Cache:
        """Give every row a place in the cache and return the cache; placed rows keep their contents."""
        held = [] if self._state is None else self._state.lengths
        new = [place for place, row in enumerate(self._rows) if not row.placed]
        if self._state is not None and not new:
            return self._state
        count, most = len(self._rows), max(row.most for row in self._rows)
        pool = self._pool
        if pool is None or len(pool.lengths) < count or pool.capacity < most:
            size, capacity = count, most
            if pool is not None:  # at least double the size, so that adding rows one by one rarely copies the pool
                size = len(pool.lengths) if len(pool.lengths) >= count else max(count, 2 * len(pool.lengths))
                capacity = max(most, pool.capacity)
            spare = self._names[:1] * (size - count)
            self._pool = self.model.for_rows(self._names + spare).init_cache(size, capacity)
            if self._state is not None and held:
                self._pool.write(range(len(held)), self._state)
        elif (reader := self.model.for_rows([self._names[place] for place in new])) is not self.model:
            pool.write(new, reader.init_cache(len(new), pool.capacity))
        for place in new:
            self._rows[place].placed = True
        return self._look([*held, *[0] * (count - len(held))])

    def _look(self, lengths: list[int]) -> Cache:
        """Set the state to the first rows of the pool, with these lengths."""
        assert self._pool is not None
        self._state = self._pool if len(lengths) == len(self._pool.lengths) else self._pool.part(0, len(lengths))
        self._state.lengths = lengths
        return self._state

    @torch.inference_mode()
    def _catch_up(self, state: Cache) -> Tensor:
        """Process the new tokens: one per continued row, and the complete window of a new row or after a slide."""
        have, starts = state.lengths, [window_start(len(text), self.window) for text in self.texts]
        stale = [
            not held or held + 1 != len(text) - start
            for held, text, start in zip(have, self.texts, starts, strict=True)
        ]
        views = [text[start:] if old else [] for text, start, old in zip(self.texts, starts, stale, strict=True)]
        if all(stale):
            state.clear()
            return self.stepper.read(views, state)
        if not any(stale) and min(have) == max(have):
            return self.stepper([text[-1:] for text in self.texts], state)
        going = [place for place, old in enumerate(stale) if not old]
        logits = self.stepper.uneven([text[-1] for text in self.texts], state, going)
        start = 0
        for old, group in groupby(stale):
            stop = start + len(list(group))
            if old:
                part = state.part(start, stop)
                part.clear()
                logits[start:stop] = self.stepper.read(views[start:stop], part)
                state.lengths[start:stop] = part.lengths
            start = stop
        return logits

    def _grouped(self) -> list[tuple[SampleConfig, bool, list[int]]]:
        """Group the rows by settings: (settings, whether they are plain, indices of the rows)."""
        groups: list[tuple[SampleConfig, bool, list[int]]] = []
        for place, row in enumerate(self._rows):
            same = next((group for group in groups if group[0] is row.config or group[0] == row.config), None)
            if same is None:
                groups.append((row.config, is_plain(row.config), [place]))
            else:
                same[2].append(place)
        return groups

    def _choose(self, logits: Tensor) -> list[int]:
        """Choose one token per row."""
        if self._groups is None:
            self._groups = self._grouped()
            self._asked = [place for place, row in enumerate(self._rows) if row.details is not None]
        if len(self._groups) == 1:
            config, plain, places = self._groups[0]
            return self._draw(logits, config, plain, places)
        ids = [0] * len(self._rows)
        for config, plain, places in self._groups:
            for place, one in zip(places, self._draw(logits[places], config, plain, places), strict=True):
                ids[place] = one
        return ids

    def _draw(self, logits: Tensor, config: SampleConfig, plain: bool, places: list[int]) -> list[int]:
        """Draw one token for each row in `places`; the rows share their settings, and `logits` has only these rows."""
        numbers = [self._rows[place].draw() for place in places]
        if plain and logits.is_cpu:
            return draw_plainly(logits.float().numpy(), config.temperature, numbers)
        # Draws use float64, which Apple's GPU does not support.
        scores = logits.float().cpu() if logits.is_mps else logits.float()
        seen = None
        if config.repetition_penalty != 1.0:
            seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, text in zip(seen, (self.texts[place] for place in places), strict=True):
                row[torch.tensor(text[window_start(len(text), self.window) :], device=row.device)] = True
        chosen: list[int] = choose(scores, seen, config, torch.tensor(numbers, dtype=torch.float64)).tolist()
        return chosen

    def _tokens(self, logits: Tensor, ids: list[int]) -> list[Token]:
        """Return the chosen ids as tokens, with details for the rows that request them."""
        asked, tokens = self._asked, [Token(one) for one in ids]
        if asked:
            most = max(self._rows[place].details or 0 for place in asked)
            for place, token in zip(
                asked, describe(logits[asked].float().cpu(), [ids[place] for place in asked], most), strict=True
            ):
                tokens[place] = token._replace(alternatives=token.alternatives[: self._rows[place].details])
        return tokens


def describe(logits: Float[Tensor, "b v"], ids: Sequence[int], alternatives: int) -> list[Token]:
    """Return each chosen id with its log-probability, its rank and the most probable alternatives.

    Args:
        logits: logits of the model, before penalty, temperature and filters.
        ids: the chosen id of each row.
        alternatives: number of alternatives per token.
    """
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(alternatives, logits.shape[-1]), dim=-1)
    tokens = []
    for row, one in enumerate(ids):
        rank = int((logits[row] > logits[row, one]).sum())
        others = tuple(zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True))
        tokens.append(Token(one, float(logprobs[row, one]), rank, others))
    return tokens
