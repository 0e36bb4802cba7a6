"""The next token's scores as one straight line of operations, with everything resolved beforehand that stays the same from token to token.

A step of a small model costs what its Python costs, and one of a larger model what reading its weights costs. So the
order of a decoder's operations stands here once, and a kit says how each is done: `tensor_kit` for many rows, for a
prompt and for accelerators, `array_kit` for one row on a CPU. `Decoder` is the reference, and the tests hold the three
together. What a kit does not know, the next one does; what none knows, the reference does.
"""

from collections.abc import Callable, Sequence
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
from gptloom.model.transformer import Block, Decoder

Ids = Sequence[Sequence[int]]
"""What each row reads next; all rows equally much."""
Layer = Callable[[Any, LayerCache, Any], Any]

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
        if not compare:
            return
        apart, limit = self.compare(), TOLERANCE * torch.finfo(model.token_table.weight.dtype).eps
        if not apart <= limit:
            raise Unknown(f"its scores differ from the model's own by {apart:.1e} (rounding explains {limit:.1e})")

    @torch.inference_mode()
    def compare(self) -> float:
        """How far the steps are from the model's own forward pass: a few made-up tokens are read at once, and one more by itself.

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
    def _several(self, rows: Ids, position: int, slots: list[LayerCache]) -> Tensor:
        """One token of each of many rows; or prompts, few enough at a time for what lies between two operations to stay in the processor's cache."""
        if len(rows[0]) == 1:
            if len(rows) < MANY:
                return self.tensors(rows, position, slots)
            if self.many is None:
                self.many = Line(self.model, TensorKit(self.model, turned=True), self.parameters)
            return self.many(rows, position, slots)
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
        """Resolve the layers; Unknown: one of them is not the kit's, or one of the model's `parameters` (their `id`) is not used."""
        self.kit = kit
        last = len(model.blocks) - 1
        self.layers = [_layer(kit, block, ends=index == last) for index, block in enumerate(model.blocks)]
        self.final_norm, self.head = kit.norm(model.final_norm), kit.linear(model.head)
        if not parameters <= kit.taken:
            raise Unknown("a parameter that no layer has")

    def __call__(self, rows: Ids, position: int, slots: list[LayerCache]) -> Tensor:
        """Logits (b, v) after the last id of each row, which stands at `position` or behind it."""
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
