"""The next token's scores as one straight line of operations.

Everything is resolved beforehand that stays the same from token to token. A step of a small model costs what its
Python costs, and one of a larger model what reading its weights costs. So the order of a decoder's operations stands
here once, and a kit says how each is done: `TensorKit` for many rows, for a prompt and for accelerators, `ArrayKit` for
one row on a CPU. `Decoder` is the reference, and the tests hold the three together. What a kit does not know, the next
one does; what none knows, the reference does.

Which operations compute a row's scores: those of `ArrayKit` where a float32 model of less than `BIG_MODEL` parameters
on a CPU steps one row, or a few of unequal length (`SINGLES`, `SMALL_ROWS`), and there a row's scores are the same bits
whatever stands beside it. `TensorKit` computes everything else; how many rows share a product then moves the last bits.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.devices import SMALL_STEP, cores, keep_memory, threads
from gptloom.fast import why_not_decode
from gptloom.fast.decode_numpy import ArrayKit
from gptloom.fast.decode_torch import MANY, TensorKit
from gptloom.fast.ops import Kit, Unknown
from gptloom.model.attention import Attention
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Cache, Context, LayerCache
from gptloom.model.layers import CausalMean
from gptloom.model.transformer import Block, Decoder, cut_rows

Ids = Sequence[Sequence[int]]
"""What each row reads next; all rows equally much."""
Layer = Callable[[Any, LayerCache, Any], Any]

SINGLES = 4
"""Rows of unequal length up to which it is quicker to go from row to row than to compute them side by side."""
SMALL_ROWS = 24_000_000
"""Parameters, counted once for each such row, up to which that is true: larger weights are better read only once."""
BIG_MODEL = 50_000_000
"""Parameters from which one row, too, is work enough for several threads."""
COMPARED_TOKENS = 5
"""Tokens that are read both ways before the first step."""
TOLERANCE = 2000.0
"""Units of rounding (`torch.finfo.eps`) that the two ways may be apart."""
CACHED = 1_000_000
"""Numbers that are soon needed again, a few megabytes."""


def make_stepper(model: LanguageModel, *, compare: bool = True) -> "Stepper | Reference":
    """The quickest way to a model's next-token scores.

    Args:
        model: its weights are taken as they are now; after training it further, make another stepper.
        compare: compute a few tokens both ways first, and leave the steps alone if they differ; False is for whoever
            looks for such differences.

    Returns:
        A function of what each row reads, (b lists of t ids), and a state whose rows are equally long, and empty where
        t is not 1. It gives the logits (b, v) after the last ids; the state then holds the ids too.
    """
    keep_memory()
    try:
        return Stepper(model, compare=compare)
    except Unknown:
        return Reference(model)


class Reference:
    """The model's own way."""

    def __init__(self, model: LanguageModel) -> None:
        """Keep the model."""
        self.model, self.size = model, model.parameter_count()

    @torch.inference_mode()
    def __call__(self, rows: Ids, state: Cache) -> Float[Tensor, "b v"]:
        """See `make_stepper`."""
        ids = torch.tensor(rows, device=self.model.device)
        with threads(1 if ids.numel() * self.size < SMALL_STEP else None):
            return self.model.unembed(self.model.forward_hidden(ids, Context(cache=state))[:, -1])

    @torch.inference_mode()
    def uneven(self, ids: Sequence[int], state: Cache, going: Sequence[int] | None = None) -> Float[Tensor, "b v"]:
        """As `Stepper.uneven`."""
        chosen = set(range(len(ids)) if going is None else going)
        context = Context(cache=state, counts=[int(row in chosen) for row in range(len(ids))])
        with threads(1 if len(ids) * self.size < SMALL_STEP else None):
            hidden = self.model.forward_hidden(torch.tensor(ids, device=self.model.device)[:, None], context)
            return self.model.unembed(hidden[:, -1])

    def read(self, views: Ids, state: Cache | None) -> Float[Tensor, "b v"]:
        """As `Stepper.read`; without a state nothing is kept."""
        counts = [len(view) for view in views]
        if state is not None and min(counts) == max(counts):
            return self(views, state)
        return self._read_padded(views, Context(cache=state, counts=counts), counts)

    @torch.inference_mode()
    def _read_padded(self, views: Ids, context: Context, counts: Sequence[int]) -> Tensor:
        longest = max(counts)
        ids = torch.tensor([[*view, *[0] * (longest - len(view))] for view in views], device=self.model.device)
        with threads(1 if ids.numel() * self.size < SMALL_STEP else None):
            return self.model.unembed(cut_rows(self.model.forward_hidden(ids, context), counts))


class Stepper:
    """The straight line, in evaluation mode (no dropout).

    Raises:
        Unknown: the model has something that the lines do not follow.
    """

    def __init__(self, model: LanguageModel, *, compare: bool = True) -> None:
        """Resolve the layers."""
        reason = why_not_decode(model)
        if reason is not None or not isinstance(model, Decoder):
            raise Unknown(reason)
        parameters = list(model.parameters())
        self.model, self.size, self.parameters = model, sum(map(torch.numel, parameters)), set(map(id, parameters))
        self.tensors = Line(model, TensorKit(model), self.parameters)
        self.many: Line | None = None
        self.single: Callable[[Ids, int, list[LayerCache]], Tensor]
        try:
            self.single = Line(model, ArrayKit(model), self.parameters) if self.size < BIG_MODEL else self._several
        except Unknown:
            self.single = self._several
        self.alone = isinstance(self.single, Line)
        self.limit = TOLERANCE * torch.finfo(model.token_table.weight.dtype).eps
        self.trusted: dict[bool, bool] = {} if compare else {False: True, True: True}
        if not compare:
            return
        apart = self.compare()
        if not apart <= self.limit:
            raise Unknown(f"its scores differ from the model's own by {apart:.1e} (rounding explains {self.limit:.1e})")

    @torch.inference_mode()
    def compare(self) -> float:
        """How far the steps are from the model's own forward pass.

        A few made-up tokens are read at once, and one more by itself.

        Returns:
            The largest difference of scores, relative to the largest score.
        """
        tokens = max(1, min(COMPARED_TOKENS, self.model.config.block_size))
        ids = [one % self.model.config.vocab_size for one in range(tokens)]
        with evaluating(self.model):
            wanted = self.model(torch.tensor([ids], device=self.model.device))[0]
            state = self.model.init_cache(1, tokens)
            found = [self([ids[:-1]], state)] if tokens > 1 else []
            found.append(self([ids[-1:]], state))
        gaps = [(one[0] - want).abs().max() for one, want in zip(found, wanted[-len(found) :], strict=True)]
        return float(torch.stack(gaps).max() / wanted.abs().max().clamp(min=1e-6))

    @torch.inference_mode()
    def compare_uneven(self, rows: int) -> float:
        """As `compare`, for a step of so many rows of unequal length; each row has tokens of its own."""
        tokens = min(COMPARED_TOKENS, self.model.config.block_size)
        if tokens < 2:
            return 0.0
        ids = [[(row + place) % self.model.config.vocab_size for place in range(tokens)] for row in range(rows)]
        lengths = [1 + row % (tokens - 1) for row in range(rows)]
        with evaluating(self.model):
            whole = self.model(torch.tensor(ids, device=self.model.device))
            state = self.model.init_cache(rows, tokens)
            self.read([text[:length] for text, length in zip(ids, lengths, strict=True)], state)
            line = self._line(rows)
            found = line([[text[n]] for text, n in zip(ids, lengths, strict=True)], lengths, state.layers)
        wanted = torch.stack([row[length] for row, length in zip(whole, lengths, strict=True)])
        return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))

    def __call__(self, rows: Ids, state: Cache) -> Float[Tensor, "b v"]:
        """See `make_stepper`."""
        tokens, position = len(rows[0]), state.lengths[0]
        if tokens > 1 and position:
            raise ValueError("several tokens at once need an empty state")
        with cores(1 if len(rows) * tokens * self.size < SMALL_STEP else None):
            logits = (self.single if tokens == 1 == len(rows) else self._several)(rows, position, state.layers)
        state.lengths = [position + tokens] * len(rows)
        return logits

    @torch.inference_mode()
    def uneven(self, ids: Sequence[int], state: Cache, going: Sequence[int] | None = None) -> Float[Tensor, "b v"]:
        """One token of each row, wherever it stands.

        A few rows (`SINGLES`, `SMALL_ROWS`) are computed one by one, by the operations of a row that is alone.

        Args:
            ids: a token for each row.
            state: what the rows hold; those that go on then hold their token, too.
            going: the rows that go on (default: all). What the state holds of the others is lost, and their scores
                mean nothing: whoever leaves a row out is about to read it anew.

        Returns:
            The logits after each row's token.
        """
        going = range(len(ids)) if going is None else going
        if self.alone and (len(going) == 1 or (len(going) <= SINGLES and len(going) * self.size <= SMALL_ROWS)):
            with cores(1 if self.size < SMALL_STEP else None):
                rows = {
                    row: self.single([ids[row : row + 1]], state.lengths[row], state.layers_of(row)) for row in going
                }
            logits = rows[going[0]].new_empty(len(ids), rows[going[0]].shape[1])
            for row, found in rows.items():
                logits[row] = found[0]
        elif self._trusts_uneven(len(ids)):
            last = state.capacity - 1
            with cores(1 if len(ids) * self.size < SMALL_STEP else None):
                positions = [min(length, last) for length in state.lengths]
                logits = self._line(len(ids))([[one] for one in ids], positions, state.layers)
        else:
            return Reference(self.model).uneven(ids, state, going)
        for row in going:
            state.lengths[row] += 1
        return logits

    @torch.inference_mode()
    def read(self, views: Ids, state: Cache) -> Float[Tensor, "b v"]:
        """The logits after whole texts, whatever the lengths; the state is empty, and then holds them.

        Neighbours of one length are read together. A row whose neighbours have other lengths is read by itself, so its
        scores and its memory are the same bits as if it were alone.
        """
        found, start = [], 0
        for _, group in groupby(views, len):
            same = list(group)
            part = state.part(start, start + len(same)) if len(same) < len(views) else state
            found.append(self(same, part))
            state.lengths[start : start + len(same)] = part.lengths
            start += len(same)
        return torch.cat(found) if len(found) > 1 else found[0]

    def _trusts_uneven(self, rows: int) -> bool:
        """Whether the steps of uneven rows are the model's own; they are compared before the first one is used."""
        many = rows >= MANY
        if many not in self.trusted:
            self.trusted[many] = self.compare_uneven(MANY if many else min(3, MANY - 1)) <= self.limit
        return self.trusted[many]

    def _line(self, rows: int) -> "Line":
        """The line for one token of each of so many rows."""
        if rows < MANY:
            return self.tensors
        if self.many is None:
            self.many = Line(self.model, TensorKit(self.model, turned=True), self.parameters)
        return self.many

    @torch.inference_mode()
    def _several(self, rows: Ids, position: int, slots: list[LayerCache]) -> Tensor:
        """One token of each of many rows; or prompts.

        Prompts are read few enough at a time for what lies between two operations to stay in the processor's cache.
        """
        if len(rows[0]) == 1:
            return self._line(len(rows))(rows, position, slots)
        few = (
            max(1, CACHED // (len(rows[0]) * self.model.config.hidden_width))
            if self.model.device.type == "cpu"
            else len(rows)
        )
        if few >= len(rows):
            return self.tensors(rows, position, slots)
        cuts = [slice(start, start + few) for start in range(0, len(rows), few)]
        return torch.cat(
            [
                self.tensors(rows[cut], position, [{name: room[cut] for name, room in slot.items()} for slot in slots])
                for cut in cuts
            ]
        )


class Line:
    """A decoder's operations in their order, each done by a kit."""

    def __init__(self, model: Decoder, kit: Kit[Any, Any], parameters: set[int]) -> None:
        """Resolve the layers.

        Raises:
            Unknown: a layer is not the kit's, or one of the model's `parameters` (their `id`) is not used.
        """
        self.kit = kit
        last = len(model.blocks) - 1
        self.layers = [_layer(kit, block, ends=index == last) for index, block in enumerate(model.blocks)]
        self.final_norm, self.head = kit.norm(model.final_norm), kit.linear(model.head)
        if not parameters <= kit.taken:
            raise Unknown("a parameter that no layer has")

    def __call__(self, rows: Ids, position: int | Sequence[int], slots: list[LayerCache]) -> Tensor:
        """Logits (b, v) after the last id of each row; the first stands at `position`, or at each row's own."""
        x, place = self.kit.begin(rows, position, slots[-1] if slots else {})
        for layer, slot in zip(self.layers, slots, strict=False):
            x = layer(x, slot, place)
        return self.kit.end(self.head(self.final_norm(self.kit.last(x, place))))


def _layer(kit: Kit[Any, Any], block: object, *, ends: bool) -> Layer:
    """A block's operations, as in `Block.forward`; of the last one each row's last token is all that is wanted."""
    if type(block) is not Block or block.cross is not None:
        raise Unknown(type(block).__name__)
    mixer = block.mixer
    mix = (
        kit.attention(mixer, ends)
        if isinstance(mixer, Attention)
        else kit.mean(mixer)
        if isinstance(mixer, CausalMean)
        else None
    )
    think = kit.mlp(block.mlp) if block.mlp is not None else None
    norm1, norm2 = kit.norm(block.norm1), kit.norm(block.norm2)
    post, adds, add, last = block.post, block.adds, kit.add, kit.last

    def step(x: Any, slot: LayerCache, place: Any) -> Any:
        if mix is not None:
            found = mix(x if post else norm1(x), slot, place)
            if ends:
                x, found = last(x, place), last(found, place)
            x = add(x, found) if adds else found
            x = norm1(x) if post else x
        if think is not None:
            found = think(x if post else norm2(x))
            x = add(x, found) if adds else found
            x = norm2(x) if post else x
        return x

    return step
