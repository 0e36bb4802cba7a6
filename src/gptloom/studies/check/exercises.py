"""The exercises of `gptloom ladder check`: what a learner writes at each step, its reference, and its mutants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptloom.reference import lecture, modern, steps
from gptloom.studies.check import formulas
from gptloom.studies.check import mutants as attention
from gptloom.studies.check.mutants import Mutant
from gptloom.studies.check.solution import SIZES

V, T, C, H, D = (SIZES[name] for name in ("vocab_size", "block_size", "n_embd", "n_head", "head_size"))


@dataclass(frozen=True)
class Exercise:
    """One class or function that the learner writes.

    Attributes:
        name: the required name.
        reference: returns the reference module or function.
        mutants: the known mistakes by name.
        takes: the constructor's arguments, by our names; empty for a function.
        sees: the positions that a result may depend on: past (attention) or self (position-wise).
        dropout: the place of dropout: the attention weights, the output, or none ("").
        source: returns the input.
        accepted: mistakes that this step allows with a remark.
        aliases: other accepted names.
        sizes: sizes that differ from `SIZES`.
    """

    name: str
    reference: Callable[[], Any]
    mutants: Mapping[str, Mutant]
    takes: tuple[str, ...] = ()
    sees: Literal["past", "self"] = "past"
    dropout: Literal["weights", "output", ""] = ""
    source: Callable[[], Tensor] = field(default=lambda: normal())
    accepted: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_function(self) -> bool:
        """Whether the exercise is a function of one tensor."""
        return not self.takes

    @property
    def usage(self) -> str:
        """The call of the function or constructor, for messages."""
        return f"{self.name}({', '.join(self.takes or ('x',))})"

    def values(self) -> dict[str, Any]:
        """Values for the constructor by our names: the expected arguments first, then all other sizes."""
        sizes = {**SIZES, "dropout": 0.5 if self.dropout else 0.0, **self.sizes}
        if "width" not in (*self.takes, *self.sizes):
            del sizes["width"]  # the width of a norm is n_embd
        return {name: sizes[name] for name in self.takes} | sizes


def normal() -> Tensor:
    """Vectors of unit variance, (3, block_size, n_embd)."""
    return torch.randn(3, T, C, generator=torch.Generator().manual_seed(0))


def mixed_scales() -> Tensor:
    """Vectors of many sizes with a nonzero mean, so that eps and the mean matter; (3, block_size, n_embd)."""
    sizes = 10 ** torch.linspace(-3.5, 1.0, 3 * T)[
        torch.randperm(3 * T, generator=torch.Generator().manual_seed(1))
    ].view(3, T, 1)
    return (normal() + 0.7) * sizes


def ids() -> Tensor:
    """Token ids (3, block_size)."""
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))


_EITHER_SCALE = frozenset({"scale-wrong-width"})
_ATTENTION = ("MultiHeadAttention", "CausalSelfAttention", "Attention")
_MODEL = ("BigramLanguageModel", "LanguageModel", "Model")
_HEAD = ("n_embd", "head_size", "block_size", "dropout")
_JOINED = ("n_embd", "n_head", "block_size", "dropout")

_head = Exercise("Head", lambda: lecture.Head(C, D, T), attention.ONE_HEAD, _HEAD, accepted=_EITHER_SCALE)
_joined = Exercise(
    "MultiHeadAttention",
    lambda: steps.JoinedHeads(C, H, T),
    attention.MULTI_HEAD,
    _JOINED,
    accepted=_EITHER_SCALE,
    aliases=_ATTENTION,
)
_projected = Exercise(
    "MultiHeadAttention",
    lambda: lecture.MultiHeadAttention(C, H, T),
    attention.WITH_PROJECTION,
    _JOINED,
    accepted=_EITHER_SCALE,
    aliases=_ATTENTION,
)
_feed_forward = Exercise(
    "FeedForward",
    lambda: lecture.FeedForward(C),
    formulas.FEED_FORWARD,
    ("n_embd", "dropout"),
    sees="self",
    aliases=("FeedFoward", "MLP"),
    sizes={"width": 4 * C},
)
_layer_norm = Exercise(
    "LayerNorm", lambda: lecture.LayerNorm(C), formulas.LAYER_NORM, ("n_embd",), sees="self", source=mixed_scales
)


def _block(reference: Callable[[], nn.Module], mutants: Mapping[str, Mutant]) -> Exercise:
    return Exercise("Block", reference, mutants, _JOINED, accepted=_EITHER_SCALE)


def _with_dropout(exercise: Exercise, place: Literal["weights", "output"]) -> Exercise:
    return replace(exercise, dropout=place)


def _strict(exercise: Exercise) -> Exercise:
    return replace(exercise, accepted=frozenset())


EXERCISES: dict[str, tuple[Exercise, ...]] = {
    "bigram": (Exercise("Bigram", lambda: steps.Bigram(V), {}, ("vocab_size",), "self", source=ids, aliases=_MODEL),),
    "embedding": (
        Exercise(
            "Embedded",
            lambda: steps.Embedded(V, C),
            formulas.EMBEDDING,
            ("vocab_size", "n_embd"),
            "self",
            source=ids,
            aliases=_MODEL,
        ),
    ),
    "positions": (
        Exercise(
            "Positioned",
            lambda: steps.Positioned(V, T, C),
            formulas.POSITIONS,
            ("vocab_size", "block_size", "n_embd"),
            "self",
            source=ids,
            aliases=_MODEL,
        ),
    ),
    "averaging": (
        Exercise(
            "average",
            lambda: steps.average_by_matrix,
            formulas.AVERAGE,
            aliases=("causal_mean", "average_by_loop", "average_by_matrix"),
        ),
    ),
    "one-head": (_head,),
    "multi-head": (_joined,),
    "mlp": (_feed_forward,),
    "residual": (_projected, _block(lambda: steps.ResidualBlock(C, H, T), attention.RESIDUAL_BLOCK)),
    "layernorm": (_layer_norm, _block(lambda: lecture.Block(C, H, T), attention.PRE_NORM_BLOCK)),
    "post-norm": (_block(lambda: steps.PostNormBlock(C, H, T), attention.POST_NORM_BLOCK),),
    "dropout": (
        _with_dropout(_head, "weights"),
        _with_dropout(_projected, "output"),
        _with_dropout(_feed_forward, "output"),
    ),
    "score-scale": (_strict(_head), _strict(_projected)),
    "gelu": (Exercise("gelu", lambda: modern.gelu, formulas.GELU, sees="self"),),
    "rope": (Exercise("rotate", lambda: modern.rotate, attention.ROTATION, sees="self"),),
    "rmsnorm": (
        Exercise("RMSNorm", lambda: modern.RMSNorm(C), formulas.RMS_NORM, ("n_embd",), "self", source=mixed_scales),
    ),
    "qk-norm": (
        Exercise(
            "MultiHeadAttention",
            lambda: modern.GroupedAttention(C, H, H, T),
            attention.QK_NORMED,
            _JOINED,
            aliases=_ATTENTION,
        ),
    ),
    "swiglu": (
        Exercise(
            "SwiGLU",
            lambda: modern.SwiGLU(C, SIZES["width"]),
            formulas.SWIGLU,
            ("n_embd", "width"),
            "self",
            aliases=("FeedForward", "MLP"),
        ),
    ),
    "gqa": (
        Exercise(
            "GroupedAttention",
            lambda: modern.GroupedAttention(C, H, SIZES["n_kv_head"], T),
            attention.GROUPED,
            ("n_embd", "n_head", "n_kv_head", "block_size"),
            aliases=("GroupedQueryAttention", *_ATTENTION),
        ),
    ),
}
"""Exercises by step. The counting steps, `scale`, `gpt2-init` and `modern` have no exercise."""
