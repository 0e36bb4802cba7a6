"""Token ids in, token ids out: one batch in which texts come and go, a cache for it, and contexts that slide."""

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
    """Where the model's view of a text of `length` tokens begins; without a window, at its beginning.

    A view that is full moves on by half of the window, so that a cache is rebuilt once in that many tokens and the view
    never shrinks below one half. A function of the length alone, so cached and uncached writing agree.
    """
    if window is None:
        return 0
    stride = max(1, window // 2)
    return max(0, -(-(length - window) // stride) * stride)


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


@dataclass(eq=False, slots=True)
class _Row:
    """What a batch knows of a row besides its text.

    Attributes:
        name: its number, in order of admission.
        config: how its tokens are chosen.
        details: None for the ids alone, else how many alternatives each `Token` lists.
        draw: the next of its uniform numbers.
        left: tokens that it may still grow by.
        most: tokens of its longest view.
        placed: the batch's memory has a place for it.
    """

    name: int
    config: SampleConfig
    details: int | None
    draw: Callable[[], float]
    left: int
    most: int
    placed: bool = False


class DecodeBatch:
    """Writes on from many texts side by side; a text may come or go between any two steps.

        batch = DecodeBatch(model)
        row = batch.add([1, 2, 3], SampleConfig(tokens=20))
        while tokens := batch.step():
            print(tokens[row])

    Each row has its own length, its own settings and its own draws, which are a function of (seed, sample) alone. Its
    text is therefore the same whatever stands beside it, as far as the model's scores are. These are the same bits
    where the same operations compute them (`fast.decode` says which those are): so for up to four rows of unequal
    length of a small model on a CPU. Elsewhere products of more rows round otherwise, by about 1e-6 of the largest
    score; a text then parts from the one written alone where a draw falls that close to the border of two tokens.

    `logits`, `append` and `take` are for searches and comparisons that choose the tokens themselves.

    Args:
        model: a causal language model; its dropout is off while a token is computed. Of one that has read sources
            (`Conditioned`), the n-th row that is added has the n-th source.
        end: an id that ends a row when it is drawn.
        cached: keep the model's state between steps; without it every step reads each whole view again.
        compare: see `fast.decode.make_stepper`.

    Attributes:
        texts: the ids of the rows that go on, prompts included, in the order of `logits`.
        ended: the rows that the last step ended.
    """

    def __init__(
        self, model: LanguageModel, *, end: int | None = None, cached: bool = True, compare: bool = True
    ) -> None:
        """Begin without rows."""
        self.model, self.end, self.cached = model, end, cached
        self.window, self.stepper = model.window, make_stepper(model, compare=compare)
        self.texts, self.ended = list[list[int]](), list[int]()
        self._rows, self._added, self._names = list[_Row](), 0, list[int]()
        self._groups: list[tuple[SampleConfig, bool, list[int]]] | None = None
        self._pool: Cache | None = None
        """Memory of at least as many rows as have been placed; these stand at the front."""
        self._state: Cache | None = None
        """The front of the pool, with the rows' lengths; a row of length 0 is to be read."""
        self._unread, self._ahead, self._even = 0, 0, False

    def add(
        self, ids: Sequence[int], config: SampleConfig, *, details: int | None = None, sample: int | None = None
    ) -> int:
        """Admit a text; the next step reads it.

        Args:
            ids: the text so far, at least one id; it is copied.
            config: how tokens are chosen, and how many.
            details: None for the ids alone, else how many alternatives each `Token` lists.
            sample: which of the seed's streams of draws is the row's (default: its own number).

        Returns:
            The row's number: 0, 1, 2, ... in order of admission.
        """
        if not ids:
            raise ValueError("every row needs at least one token to go on from")
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
        """Admit several texts with the same settings; see `add`."""
        return [self.add(ids, config, details=details) for ids in texts]

    def step(self) -> dict[int, Token]:
        """The next token of every row, by its number; {} means that there are no rows.

        A row that draws `end`, or has as many tokens as it may have, ends: it is dropped and stands in `ended`.
        """
        if not self._rows:
            return {}
        with evaluating(self.model):
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
        """End a row; the others are not disturbed, and nothing happens where it has ended already."""
        if row not in self._names:
            return
        place, last, state = self._names.index(row), len(self._rows) - 1, self._state
        self._rows[place], self.texts[place], self._names[place] = self._rows[last], self.texts[last], self._names[last]
        del self._rows[last], self.texts[last], self._names[last]
        if state is not None and place < len(state.lengths):
            if last >= len(state.lengths):  # a row that has no memory yet takes over
                state.lengths[place] = 0
            else:
                if place != last:
                    state.move(last, place)
                self._look(state.lengths[:last])
        self._ahead, self._groups = 0, None

    def logits(self) -> Float[Tensor, "b v"]:
        """Scores of the token that follows each text, in the order of `texts`."""
        if self.cached:
            state = self._state
            if state is not None and self._unread == 1 and self._ahead:  # the usual case
                self._unread, self._ahead = 0, self._ahead - 1
                if self._even:
                    return self.stepper([text[-1:] for text in self.texts], state)
                return self.stepper.uneven([text[-1] for text in self.texts], state)
            state = self._place()
            logits = self._catch_up(state)
            # So many steps follow in which no row slides.
            most = max(state.lengths)
            self._even = most == min(state.lengths)
            self._unread, self._ahead = 0, state.capacity - most
            return logits
        views = [text[window_start(len(text), self.window) :] for text in self.texts]
        return Reference(self.model.for_rows(self._names)).read(views, None)

    def append(self, ids: Sequence[int]) -> None:
        """Give each text its next token."""
        for text, one in zip(self.texts, ids, strict=True):
            text.append(one)
        self._unread += 1

    @torch.inference_mode()
    def take(self, places: Sequence[int]) -> None:
        """Keep the texts at these places, in this order; one may be left out or repeated."""
        if self.cached:
            self._pool = self._state = self._place()
            self._pool.select(places)
        self.texts = [list(self.texts[place]) for place in places]
        self._rows = [self._rows[place] for place in places]
        self._names, self._groups = [row.name for row in self._rows], None
        if not self._even:  # the rows that are left may be
            self._ahead = 0

    @torch.inference_mode()
    def _place(self) -> Cache:
        """Find a place in memory for every row; what is there already stays."""
        held = [] if self._state is None else self._state.lengths
        new = [place for place, row in enumerate(self._rows) if not row.placed]
        if self._state is not None and not new:
            return self._state
        count, most = len(self._rows), max(row.most for row in self._rows)
        pool = self._pool
        if pool is None or len(pool.lengths) < count or pool.capacity < most:
            size, capacity = count, most
            if pool is not None:  # rows come one by one: the more there are, the more rarely all are copied
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
        """Make the front of the pool the state of rows of these lengths."""
        assert self._pool is not None
        self._state = self._pool if len(lengths) == len(self._pool.lengths) else self._pool.part(0, len(lengths))
        self._state.lengths = lengths
        return self._state

    @torch.inference_mode()
    def _catch_up(self, state: Cache) -> Tensor:
        """Read what is new: a token of each row that goes on, and the whole view of one that begins or slides."""
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
        """The settings that rows have, whether they are plain, and the places of the rows that share them."""
        groups: list[tuple[SampleConfig, bool, list[int]]] = []
        for place, row in enumerate(self._rows):
            same = next((group for group in groups if group[0] is row.config or group[0] == row.config), None)
            if same is None:
                groups.append((row.config, is_plain(row.config), [place]))
            else:
                same[2].append(place)
        return groups

    def _choose(self, logits: Tensor) -> list[int]:
        """One token a row."""
        if self._groups is None:
            self._groups = self._grouped()
        if len(self._groups) == 1:
            config, plain, places = self._groups[0]
            return self._draw(logits, config, plain, places)
        ids = [0] * len(self._rows)
        for config, plain, places in self._groups:
            for place, one in zip(places, self._draw(logits[places], config, plain, places), strict=True):
                ids[place] = one
        return ids

    def _draw(self, logits: Tensor, config: SampleConfig, plain: bool, places: list[int]) -> list[int]:
        """One token for each of the rows at these places, which share their settings; the logits are theirs."""
        numbers = [self._rows[place].draw() for place in places]
        if plain and logits.is_cpu:
            return draw_plainly(logits.float().numpy(), config.temperature, numbers)
        # Apple's GPU has no float64, which the draw is made in.
        scores = logits.float().cpu() if logits.is_mps else logits.float()
        seen = None
        if config.repetition_penalty != 1.0:
            seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, text in zip(seen, (self.texts[place] for place in places), strict=True):
                row[torch.tensor(text[window_start(len(text), self.window) :], device=row.device)] = True
        chosen: list[int] = choose(scores, seen, config, torch.tensor(numbers, dtype=torch.float64)).tolist()
        return chosen

    def _tokens(self, logits: Tensor, ids: list[int]) -> list[Token]:
        """The chosen ids, with details where a row asks for them."""
        asked = [place for place, row in enumerate(self._rows) if row.details is not None]
        tokens = [Token(one) for one in ids]
        if asked:
            most = max(self._rows[place].details or 0 for place in asked)
            for place, token in zip(
                asked, describe(logits[asked].float().cpu(), [ids[place] for place in asked], most), strict=True
            ):
                tokens[place] = token._replace(alternatives=token.alternatives[: self._rows[place].details])
        return tokens


def describe(logits: Float[Tensor, "b v"], ids: Sequence[int], alternatives: int) -> list[Token]:
    """Each chosen id with its log-probability, its rank and the likeliest alternatives, by the model's own scores."""
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(alternatives, logits.shape[-1]), dim=-1)
    tokens = []
    for row, one in enumerate(ids):
        rank = int((logits[row] > logits[row, one]).sum())
        others = tuple(zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True))
        tokens.append(Token(one, float(logprobs[row, one]), rank, others))
    return tokens
