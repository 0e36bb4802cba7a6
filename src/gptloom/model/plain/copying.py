"""Which tensor of a plain model is which of the production decoder's: the same weights can be put in both, and gradients compared.

The decoder keeps in one tensor what the plain code keeps in several: all heads' queries, keys and values, and SwiGLU's two
wide matrices. Each of its tensors is therefore a row of plain ones, laid one below the other.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gptloom.model.decoder import Decoder

_PLACES = [
    (r"^(attention|feed_forward)\.", r"blocks.0.\1."),  # a model with one layer has no list of blocks
    (r"attention\.(?:heads\.\d+\.)?(?:query|key|value)\.weight$", "mixer.qkv.weight"),
    (r"attention\.(?:queries|keys|values)\.\d+\.weight$", "mixer.qkv.weight"),
    (r"attention\.projection\.", "mixer.out."),
    (r"attention\.", "mixer."),
    (r"feed_forward\.(?:gate|up)\.", "mlp.up."),
    (r"feed_forward\.", "mlp."),
    (r"\.gain$", ".weight"),
]
_ORDER = {"query": 0, "queries": 0, "key": 1, "keys": 1, "value": 2, "values": 2, "gate": 0, "up": 1}


def correspondence(plain: nn.Module) -> dict[str, list[str]]:
    """The decoder's name of each tensor, and the plain model's names of what it consists of, from the first row down."""
    found: dict[str, list[str]] = {}
    for name, _ in plain.named_parameters():
        place = name
        for pattern, replacement in _PLACES:
            place = re.sub(pattern, replacement, place)
        found.setdefault(place, []).append(name)
    # sorted() keeps the heads in their order.
    return {place: sorted(names, key=_rank) for place, names in found.items()}


def _rank(name: str) -> int:
    return next((_ORDER[part] for part in reversed(name.split(".")) if part in _ORDER), 0)


def to_decoder(plain: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain model's tensors (weights or gradients, by its parameters' names) under the decoder's names."""
    return {place: torch.cat([tensors[name] for name in names]) for place, names in correspondence(plain).items()}


def from_decoder(plain: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: a decoder's tensors under the plain model's names."""
    rows = {name: len(p) for name, p in plain.named_parameters()}
    out: dict[str, Tensor] = {}
    for place, names in correspondence(plain).items():
        out |= dict(zip(names, torch.split(tensors[place], [rows[name] for name in names]), strict=True))
    return out


@torch.no_grad()
def copy_weights(plain: nn.Module, decoder: "Decoder") -> None:
    """Put a plain model's weights into a decoder of the same step.

    Raises:
        ValueError: the two are not the same model: a tensor is missing, left over, or of another shape.
    """
    ours = dict(decoder.named_parameters())
    theirs = to_decoder(plain, {name: p.detach() for name, p in plain.named_parameters()})
    shapes = [{name: tuple(p.shape) for name, p in tensors.items()} for tensors in (ours, theirs)]
    differing = sorted(name for name in ours.keys() | theirs.keys() if shapes[0].get(name) != shapes[1].get(name))
    if differing:
        raise ValueError("; ".join(f"{name}: decoder {shapes[0].get(name)}, plain {shapes[1].get(name)}" for name in differing))
    for name, p in ours.items():
        p.copy_(theirs[name])
