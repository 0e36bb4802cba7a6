"""Match a learner's parameters with the reference's, regardless of their names and packing.

A unit is a group of parameters: a linear layer with its bias, an embedding, or a norm's gain and bias. Units of the
same shape are distinguished by names such as query, w_k or v_proj. Without such names, every plausible order is tried.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

Signature = tuple[str, tuple[int, ...]]

_LARGEST_PERMUTATION = 4
_SPOKEN = {
    "query": {"q", "wq", "qs", "query", "queries", "toq"},
    "key": {"k", "wk", "ks", "key", "keys", "tok"},
    "value": {"v", "wv", "vs", "value", "values", "tov"},
    "projection": {"proj", "projection", "out", "o", "wo", "output"},
    "gate": {"gate", "wg"},
    "up": {"up", "wu"},
    "down": {"down", "wd"},
    "norm1": {"norm1", "ln1", "ln_1"},
    "norm2": {"norm2", "ln2", "ln_2"},
    "token_table": {"token", "tok", "wte"},
    "position_table": {"position", "positions", "pos", "wpe"},
}


@dataclass
class Unit:
    """A learner's parameters that belong together.

    Attributes:
        name: the module's name, as in `named_modules`; for a raw parameter, its own name.
        kind: linear, table (an embedding), norm, or heads (a raw parameter for all heads).
        shape: the shape of the weight (out, in); a raw matrix for x @ weight is transposed first.
        weight: the name of the weight or gain.
        bias: the name of the bias, or "".
        turned: whether the weight is stored transposed (in, out), for x @ weight.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight: str
    bias: str = ""
    turned: bool = False

    @property
    def signature(self) -> Signature:
        """The kind and shape; a unit and a piece that match have the same signature."""
        return self.kind, self.shape


def units(module: nn.Module) -> list[Unit]:
    """All units of a module, in the order of registration."""
    found = []
    for name, owner in module.named_modules():
        own = dict(owner.named_parameters(recurse=False))
        at = f"{name}." if name else ""
        flat = [key for key, p in own.items() if p.ndim == 1]
        wide = [key for key, p in own.items() if p.ndim > 1]
        if isinstance(owner, nn.Embedding):
            found.append(Unit(name, "table", tuple(owner.weight.shape), f"{at}weight"))
        elif len(wide) == 1 and len(flat) <= 1:
            weight, bias = own[wide[0]], own[flat[0]] if flat else None
            # A bias is as long as the output. A raw matrix without a bias is taken for the weight of x @ weight.
            turned = (
                weight.ndim == 2 and not isinstance(owner, nn.Linear) and (bias is None or len(bias) == weight.shape[1])
            )
            found.append(_matrix(name, at + wide[0], weight, at + flat[0] if flat else "", turned=turned))
        else:
            found += [_matrix(at + key, at + key, own[key], turned=own[key].ndim == 2) for key in wide]
            if flat:
                # A gain is initialized to 1, a bias to 0.
                ordered = sorted(flat, key=lambda key: not bool((own[key] == 1).all()))
                names = [at + key for key in ordered]
                found.append(
                    Unit(name, "norm", tuple(own[ordered[0]].shape), names[0], names[1] if len(names) > 1 else "")
                )
    return found


def _matrix(name: str, weight: str, tensor: Tensor, bias: str = "", *, turned: bool) -> Unit:
    shape = tuple(tensor.shape)
    return Unit(name, "linear" if tensor.ndim == 2 else "heads", shape[::-1] if turned else shape, weight, bias, turned)


@dataclass
class Piece:
    """One unit of the reference: its role, kind, weight and bias."""

    role: str
    kind: str
    weight: Tensor
    bias: Tensor | None = None

    @property
    def signature(self) -> Signature:
        """The kind and shape; a unit and a piece that match have the same signature."""
        return self.kind, tuple(self.weight.shape)


def layouts(reference: nn.Module) -> list[list[Piece]]:
    """The reference's weights in every packing that a correct solution may use; the unpacked layout is first."""
    tensors = {name: p.detach() for name, p in reference.named_parameters()}
    plain = [Piece(_role(u.name), u.kind, tensors[u.weight], tensors.get(u.bias)) for u in units(reference)]
    heads = [p for p in plain if p.kind == "linear" and p.role in ("query", "key", "value")]
    rest = [p for p in plain if all(p is not other for other in heads)]
    packed = [plain]
    parts = {role: [p.weight for p in heads if p.role == role] for role in ("query", "key", "value")}
    if parts["query"]:
        joined = {role: torch.cat(weights) for role, weights in parts.items()}
        packed.append([*(Piece(role, "linear", weight) for role, weight in joined.items()), *rest])
        for order in itertools.permutations(parts):
            packed.append([Piece("qkv", "linear", torch.cat([joined[role] for role in order])), *rest])
            if len(set(map(len, parts.values()))) == 1:  # one fused matrix per head
                fused = [
                    Piece("qkv", "linear", torch.cat([parts[role][h] for role in order]))
                    for h in range(len(parts["query"]))
                ]
                packed.append([*fused, *rest])
        for axes in ((0, 2, 1), (0, 1, 2), (2, 0, 1), (1, 0, 2)):  # one raw parameter for all heads, for einsum
            packed.append(
                [*(Piece(role, "heads", torch.stack(weights).permute(axes)) for role, weights in parts.items()), *rest]
            )
    wide = {p.role: p for p in plain if p.role in ("gate", "up")}
    if len(wide) == 2:
        others = [p for p in plain if p.role not in wide]
        packed += [
            [Piece("wide", "linear", torch.cat([wide[role].weight for role in order])), *others]
            for order in (("gate", "up"), ("up", "gate"))
        ]
    return packed


@dataclass
class Match:
    """One layout, its missing pieces and extra units, and the ways to copy it into a learner's module."""

    pieces: list[Piece]
    missing: list[Piece] = field(default_factory=list)
    extra: list[Unit] = field(default_factory=list)
    assignments: list[list[tuple[Unit, Piece]]] = field(default_factory=list)


def match(learner: nn.Module, reference: nn.Module) -> list[Match]:
    """The layouts with the fewest missing and extra units, each with its possible assignments."""
    theirs = units(learner)
    matches = [_fit(theirs, pieces) for pieces in layouts(reference)]
    best = min(len(m.missing) + len(m.extra) for m in matches)
    fitting = [m for m in matches if len(m.missing) + len(m.extra) == best]
    return fitting if best == 0 else fitting[:1]


def _fit(theirs: list[Unit], pieces: list[Piece]) -> Match:
    result = Match(pieces)
    known = {p.signature for p in pieces}
    theirs = [_turned(u) if u.signature not in known and _turned(u).signature in known else u for u in theirs]
    choices: list[list[list[tuple[Unit, Piece]]]] = []
    for signature in dict.fromkeys([p.signature for p in pieces] + [u.signature for u in theirs]):
        mine = [p for p in pieces if p.signature == signature]
        yours = [u for u in theirs if u.signature == signature]
        spoken = [u for u in yours if _spoken(u.name) in {p.role for p in mine}]
        if len(mine) != len(yours):
            # Units with known names are assigned; the others cannot be distinguished.
            left, placed = list(mine), []
            for unit in spoken if len(yours) > len(mine) or len(spoken) == len(yours) else yours:
                piece = next((p for p in left if p.role == _spoken(unit.name)), left[0] if left else None)
                if piece is not None:
                    left = [p for p in left if p is not piece]
                    placed.append((unit, piece))
            result.missing += left
            result.extra += [u for u in yours if all(u is not unit for unit, _ in placed)]
            choices.append([placed])
        else:
            choices.append([list(zip(yours, order, strict=True)) for order in _orders(yours, mine)])
    combined = itertools.islice(itertools.product(*choices), 200)
    result.assignments = sorted(
        ([pair for group in groups for pair in group] for groups in combined), key=_bias_conflicts
    )
    return result


def _turned(unit: Unit) -> Unit:
    """The unit with its raw matrix read as (out, in), as nn.Linear stores it."""
    return replace(unit, shape=unit.shape[::-1], turned=False) if unit.turned else unit


def _orders(yours: list[Unit], mine: list[Piece]) -> Iterator[list[Piece]]:
    """Yield the orders of the reference's pieces that may correspond to the learner's units."""
    roles = sorted(p.role for p in mine)
    named = [_spoken(u.name) for u in yours]
    if len(mine) > 1 and sorted(named) == roles:
        queues = {role: iter([p for p in mine if p.role == role]) for role in roles}
        yield [next(queues[role]) for role in named]
    elif len(mine) <= _LARGEST_PERMUTATION:
        yield from (list(order) for order in itertools.permutations(mine))
    else:
        yield mine
        kinds = list(dict.fromkeys(p.role for p in mine))
        groups = {kind: [p for p in mine if p.role == kind] for kind in kinds}
        for order in itertools.permutations(kinds):
            yield [p for kind in order for p in groups[kind]]  # all queries, then all keys ...
            if len(set(map(len, groups.values()))) == 1:
                yield [p for row in zip(*(groups[kind] for kind in order), strict=True) for p in row]  # head by head


def _bias_conflicts(pairs: list[tuple[Unit, Piece]]) -> int:
    return sum(bool(unit.bias) != (piece.bias is not None) for unit, piece in pairs)


def _role(name: str) -> str:
    return _spoken(name) or name.split(".")[-1]


def _spoken(name: str) -> str:
    """The role that a name such as q_proj or heads.0.value stands for, or "".

    The last part of the name decides, or else the part before it.
    """
    parts = [part for part in re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split(".") if not part.isdigit()]
    for part in reversed(parts[-2:]):
        words = {part, *part.split("_")}
        for role, known in _SPOKEN.items():
            if words & known:
                return role
    return ""


@torch.no_grad()
def fill(learner: nn.Module, pairs: list[tuple[Unit, Piece]]) -> None:
    """Copy the reference's weights into the learner's parameters; set a bias that the reference lacks to zero."""
    parameters = dict(learner.named_parameters())
    for unit, piece in pairs:
        parameters[unit.weight].copy_(piece.weight.T if unit.turned else piece.weight)
        if unit.bias:
            parameters[unit.bias].copy_(torch.zeros_like(parameters[unit.bias]) if piece.bias is None else piece.bias)
