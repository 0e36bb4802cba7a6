"""Fast computation of next-token logits for a decoder with a cache.

The constructor resolves everything that does not change from token to token. Python overhead dominates a step of a
small model; reading the weights dominates a step of a large one. `Line` therefore defines the order of a decoder's
operations once, and a `Kit` implements the operations: `TensorKit` for many rows, for prompts and for accelerators,
`ArrayKit` for one row on a CPU. The tests compare both with `Decoder`, the reference. If a model has a part that
`ArrayKit` does not support, `TensorKit` is used; if `TensorKit` does not support it either, `Reference` is used.

`ArrayKit` computes steps of a float32 model with less than `BIG_MODEL` parameters on a CPU, for one row or for a few
rows of unequal length (`SINGLES`, `SMALL_ROWS`). A row's logits are then bitwise independent of the other rows.
`TensorKit` computes everything else; there the number of rows in a matrix product changes the last bits.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

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
"""Next token ids of each row; the same number of ids for all rows."""
Layer = Callable[[Any, LayerCache, Any], Any]

SINGLES = 4
"""Up to this number of rows of unequal length, computing them one by one is faster than computing them together."""
SMALL_ROWS = 24_000_000
"""Upper limit of rows times parameters for one-by-one computation: large weights should be read only once."""
BIG_MODEL = 50_000_000
"""Number of parameters from which several threads speed up a single row."""
COMPARED_TOKENS = 5
"""Number of tokens in the comparison with the reference before the first step."""
TOLERANCE = 2000.0
"""Allowed relative difference from the reference, in units of rounding (`torch.finfo.eps`)."""
CACHED = 1_000_000
"""Number of activations that fit into the processor's cache (a few megabytes)."""


class _Comparison(NamedTuple):
    """A successful comparison with the reference.

    Attributes:
        weights: `_versions` of the model that was compared.
        trusted: for a few and for many rows of unequal length, whether their steps agree with the reference.
    """

    weights: list[tuple[int, int]]
    trusted: dict[bool, bool]


_compared: WeakKeyDictionary[Decoder, _Comparison] = WeakKeyDictionary()


def make_stepper(model: LanguageModel, *, compare: bool = True) -> "Stepper | Reference":
    """Return the fastest function that computes a model's next-token logits.

    Args:
        model: the model with its current weights. Make a new stepper after further training.
        compare: compare a few tokens with the reference first, and fall back to the reference if they differ. This
            is done once for a model and its weights. Code that measures such differences sets it to False.

    Returns:
        A function of the next ids, (b, t), and a cache. All rows of the cache have the same length, which is 0 if
        t > 1. The function returns the logits (b, v) after the last ids and adds the ids to the cache.
    """
    keep_memory()
    try:
        return Stepper(model, compare=compare)
    except Unknown:
        return Reference(model)


class Reference:
    """The model's own forward pass, with the interface of `Stepper`."""

    def __init__(self, model: LanguageModel) -> None:
        """Store the model."""
        self.model, self.size = model, model.parameter_count()

    @torch.inference_mode()
    def __call__(self, rows: Ids, state: Cache) -> Float[Tensor, "b v"]:
        """See `make_stepper`."""
        ids = torch.tensor(rows, device=self.model.device)
        with threads(1 if ids.numel() * self.size < SMALL_STEP else None):
            return self.model.unembed(self.model.forward_hidden(ids, Context(cache=state))[:, -1])

    @torch.inference_mode()
    def uneven(self, ids: Sequence[int], state: Cache, going: Sequence[int] | None = None) -> Float[Tensor, "b v"]:
        """See `Stepper.uneven`."""
        chosen = set(range(len(ids)) if going is None else going)
        context = Context(cache=state, counts=[int(row in chosen) for row in range(len(ids))])
        with threads(1 if len(ids) * self.size < SMALL_STEP else None):
            hidden = self.model.forward_hidden(torch.tensor(ids, device=self.model.device)[:, None], context)
            return self.model.unembed(hidden[:, -1])

    def read(self, views: Ids, state: Cache | None) -> Float[Tensor, "b v"]:
        """See `Stepper.read`; if `state` is None, nothing is cached."""
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
    """The fast path, in evaluation mode (no dropout). Arguments as in `make_stepper`.

    Raises:
        Unknown: the model has an unsupported part, or its logits differ from the reference.
    """

    def __init__(self, model: LanguageModel, *, compare: bool = True) -> None:
        """Resolve the layers and compare with the reference."""
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
        if compare:
            self._compare_once()

    def _compare_once(self) -> None:
        """Compare with the reference, unless this model with these weights has been compared."""
        weights = _versions(self.model)
        known = _compared.get(self.model)
        if known is not None and weights is not None and known.weights == weights:
            self.trusted = known.trusted
            return
        apart = self.compare()
        if not apart <= self.limit:
            raise Unknown(f"its logits differ from the model's by {apart:.1e} (rounding explains {self.limit:.1e})")
        if weights is not None:
            _compared[self.model] = _Comparison(weights, self.trusted)

    @torch.inference_mode()
    def compare(self) -> float:
        """Compare the fast path with the model's forward pass: a short arbitrary prompt, then one more token.

        Returns:
            The maximum absolute difference of the logits, relative to the largest logit.
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
        """Do the same comparison for one step of this number of rows, with different tokens and unequal lengths."""
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
        """Process one token of each row; the rows may have different lengths.

        A few rows (`SINGLES`, `SMALL_ROWS`) are computed one by one, with the same operations as a single row.

        Args:
            ids: one token per row.
            state: the cache; the tokens of the selected rows are added to it.
            going: indices of the selected rows (default: all). The cache and the logits of all other rows become
                invalid, so the caller must read these rows again.

        Returns:
            The logits (b, v) after each row's token.
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
        """Process complete texts of any lengths into an empty cache; return the logits (b, v) after each text.

        Adjacent rows of equal length are processed together. A row between rows of other lengths is processed alone,
        so its logits and its cache are bitwise equal to those of a batch of one.
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
        """True if steps of rows of unequal length agree with the reference; compared once, before the first use."""
        many = rows >= MANY
        if many not in self.trusted:
            self.trusted[many] = self.compare_uneven(MANY if many else min(3, MANY - 1)) <= self.limit
        return self.trusted[many]

    def _line(self, rows: int) -> "Line":
        """Return the line for one token in each of `rows` rows."""
        if rows < MANY:
            return self.tensors
        if self.many is None:
            self.many = Line(self.model, TensorKit(self.model, turned=True), self.parameters)
        return self.many

    @torch.inference_mode()
    def _several(self, rows: Ids, position: int, slots: list[LayerCache]) -> Tensor:
        """Process one token of each row, or prompts.

        On a CPU, prompts are split into chunks of rows, so that the activations stay in the processor's cache.
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


def _versions(model: Decoder) -> list[tuple[int, int]] | None:
    """The address and PyTorch's version of each weight, which changes with every update; None if they have none."""
    weights = [*model.parameters(), *model.buffers()]
    return None if any(w.is_inference() for w in weights) else [(w.data_ptr(), w._version) for w in weights]


class Line:
    """A decoder's operations in order, implemented by a kit."""

    def __init__(self, model: Decoder, kit: Kit[Any, Any], parameters: set[int]) -> None:
        """Resolve the layers.

        Raises:
            Unknown: the kit does not support a layer, or one of the model's `parameters` (their `id`) is not used.
        """
        self.kit = kit
        last = len(model.blocks) - 1
        self.layers = [_layer(kit, block, ends=index == last) for index, block in enumerate(model.blocks)]
        self.final_norm, self.head = kit.norm(model.final_norm), kit.linear(model.head)
        if not parameters <= kit.taken:
            raise Unknown("a parameter that no layer uses")

    def __call__(self, rows: Ids, position: int | Sequence[int], slots: list[LayerCache]) -> Tensor:
        """Return the logits (b, v) after the last id of each row.

        `position` is the position of each row's first id: one for all rows, or a list with one per row.
        """
        x, place = self.kit.begin(rows, position, slots[-1] if slots else {})
        for layer, slot in zip(self.layers, slots, strict=False):
            x = layer(x, slot, place)
        return self.kit.end(self.head(self.final_norm(self.kit.last(x, place))))


def _layer(kit: Kit[Any, Any], block: object, *, ends: bool) -> Layer:
    """Return a block's operations, as in `Block.forward`. `ends`: it is the last block; keep only the last token."""
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
