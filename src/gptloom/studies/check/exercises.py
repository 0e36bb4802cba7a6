"""What a finding means and what to do about it, in words; by its name, which is also that of the mutant that shows it.

What a learner writes at each step, and what it is held against.
"""

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

WORDS: dict[str, tuple[str, str]] = {
    "missing-scale": (
        "the scores are not scaled",
        "multiply query @ key by head_size ** -0.5, before the mask and the softmax",
    ),
    "scale-wrong-width": (
        "the scores are scaled by n_embd ** -0.5, the width of the whole stream",
        "the products have head_size terms: scale by head_size ** -0.5 (the lecture's code has this slip, too; step score-scale)",
    ),
    "scale-multiplied": ("the scores are multiplied by the root of head_size", "divide by it: head_size ** -0.5"),
    "scale-without-root": ("the scores are divided by head_size, not by its root", "use head_size ** -0.5"),
    "mask-sees-future": (
        "every position sees the future: nothing is masked",
        "fill the scores above the diagonal with minus infinity before the softmax",
    ),
    "mask-upside-down": (
        "the mask lies on the wrong side of the diagonal: a position sees the future and not the past",
        "keep torch.tril (below and on the diagonal), fill the rest with minus infinity",
    ),
    "mask-off-by-one": (
        "the mask is off by one: a position sees the token after it, which it is to predict",
        "use torch.tril(...) without a diagonal of 1",
    ),
    "mask-hides-self": (
        "a position cannot see itself, and the first sees nothing at all (NaN where all scores are minus infinity)",
        "the diagonal belongs to the past: torch.tril(...) without a diagonal of -1",
    ),
    "mask-fill": (
        "what is masked still gets weight: its score is 0, and exp(0) is 1",
        'fill with float("-inf"), not with 0',
    ),
    "mask-after-softmax": (
        "the mask comes after the softmax, so the rows no longer sum to 1",
        "mask the scores with minus infinity, then apply the softmax",
    ),
    "softmax-axis": (
        "the softmax runs over the wrong axis",
        "each query's weights over the keys must sum to 1: dim=-1",
    ),
    "missing-softmax": (
        "there is no softmax: the scores themselves are used as weights",
        "F.softmax(scores, dim=-1) after the mask",
    ),
    "query-key-swapped": (
        "queries and keys have changed places",
        "scores[t, s] is the query of position t times the key of position s",
    ),
    "heads-mixed": (
        "the heads are mixed up: their features are split or joined in the wrong order",
        "view as (b, t, n_head, head_size), then transpose(1, 2); on the way back transpose(1, 2), then reshape; join head 0 first",
    ),
    "missing-projection": (
        "the heads' results are not projected",
        "apply a linear layer n_embd to n_embd to the joined heads",
    ),
    "groups-mixed": (
        "query heads use the keys and values of another group",
        "neighbouring heads share: head h uses h // (n_head // n_kv_head)",
    ),
    "missing-qk-norm": (
        "queries and keys are not normalised",
        "apply an RMSNorm of width head_size to each, before the rotation",
    ),
    "qk-norm-after-rotation": ("the norm of queries and keys comes after the rotation", "normalise first, then rotate"),
    "missing-rotation": ("nothing is rotated", "turn queries and keys by their position"),
    "rotation-interleaved": (
        "neighbouring features are paired (2i, 2i + 1)",
        "pair feature i with feature i + d/2, as Llama and Qwen do",
    ),
    "rotation-backwards": ("the rotation goes the other way round", "(a, b) becomes (a cos - b sin, b cos + a sin)"),
    "rotation-starts-at-one": ("the first position is turned, too", "positions count from 0"),
    "rotation-speeds": ("the wavelengths are wrong", "the angles are t * theta ** (-2i / d), i from 0 to d/2 - 1"),
    "values-rotated": ("the values are rotated, too", "turn queries and keys only"),
    "missing-residual": (
        "a branch replaces its input and is not added to it",
        "x = x + branch(x), for attention and for the MLP",
    ),
    "norm-post": (
        "the norm comes after the sum (post-norm)",
        "normalise what goes into the branch: x = x + branch(norm(x))",
    ),
    "norm-pre": (
        "the norm comes before the branch (pre-norm)",
        "this step normalises the sum: x = norm(x + branch(x))",
    ),
    "norm-on-stream": (
        "the residual starts from the normalised stream",
        "add the branch to x itself: x = x + branch(norm(x)), not x = norm(x) first",
    ),
    "norm-outside": (
        "the norm is applied to what comes out of the branch",
        "this step has it elsewhere: see `gptloom ladder show`",
    ),
    "missing-norm": (
        "a norm is missing or not used",
        "one before attention, one before the MLP (post-norm: one after each sum)",
    ),
    "norms-swapped": ("the two norms have changed places", "the first belongs to attention, the second to the MLP"),
    "halves-swapped": ("the MLP comes before attention", "communicate first, then compute"),
    "halves-parallel": (
        "both halves read the same input",
        "the MLP must read what attention has added: x = x + attention(...), then x = x + mlp(...)",
    ),
    "norm-axis": (
        "the mean and variance run over the wrong axis",
        "each vector is normalised by itself: dim=-1, keepdim=True",
    ),
    "norm-centre": (
        "the mean is subtracted where it should not be, or not where it should be",
        "LayerNorm subtracts the mean, RMSNorm does not",
    ),
    "norm-unbiased": ("the variance divides by n - 1", "x.var(dim=-1, keepdim=True, unbiased=False): divide by n"),
    "norm-without-root": ("x is divided by the variance, not by its root", "divide by torch.sqrt(variance + eps)"),
    "norm-without-division": ("x is not divided by its size", "divide by torch.sqrt(variance + eps)"),
    "missing-eps": (
        "eps is missing: tiny vectors are blown up, and a constant one gives NaN",
        "torch.sqrt(variance + eps)",
    ),
    "eps-outside-root": ("eps is added outside the root", "torch.sqrt(variance + eps)"),
    "eps-different": (
        "another eps than the reference's",
        "LayerNorm 1e-5, RMSNorm 1e-6; it matters for tiny vectors only",
    ),
    "gain-unused": ("the gain is not applied", "multiply the normalised vector by it"),
    "bias-unused": ("the bias is not applied", "add it after the gain"),
    "gain-after-bias": ("the bias is added before the gain is applied", "gain * x + bias"),
    "activation-missing": (
        "there is no activation between the two matrices, so they are one",
        "down(activation(up(x)))",
    ),
    "activation-other": (
        "another activation than this step's",
        "see `gptloom ladder show` for the one that this step has",
    ),
    "activation-place": (
        "an activation follows the last matrix",
        "activate between the two matrices only: what goes into the stream may be negative",
    ),
    "residual-inside": (
        "the residual is added inside the layer, too",
        "the block adds it; the layer returns its branch alone",
    ),
    "gate-swapped": ("gate and value have changed places", "down(silu(gate(x)) * up(x))"),
    "gate-added": ("the gate is added", "multiply: silu(gate(x)) * up(x)"),
    "missing-division": ("the vectors are summed, not averaged", "divide row t by the t + 1 vectors in it"),
    "mean-fixed-length": (
        "the sum is divided by the whole length everywhere",
        "divide row t by the t + 1 vectors in it",
    ),
    "mean-axis": (
        "the mean runs over the wrong axis",
        "the weights of each row (dim=1) must sum to 1; average over time, not over the batch",
    ),
    "positions-missing": (
        "the positions are not used",
        "add the position table's rows 0 to t - 1 to the tokens' vectors",
    ),
    "positions-multiplied": ("tokens and positions are multiplied", "add them"),
    "positions-backwards": ("the positions run backwards", "torch.arange(t)"),
    "positions-shifted": ("the positions are off by one", "torch.arange(t), from 0"),
    "positions-by-token": ("the position table is asked for tokens", "ask it for torch.arange(t)"),
    "averaging-too-early": (
        "positions are averaged already",
        "that is the step averaging; here each token stands alone",
    ),
    "batch-mixed": (
        "the texts of a batch influence one another",
        "some operation runs over the first axis or reshapes across it",
    ),
    "positions-mixed": (
        "a position's result depends on other positions",
        "this part works on each vector by itself: operate on dim=-1 only",
    ),
    "mask-hides-past": ("a position does not see all that came before it", "row t of the mask has t + 1 ones"),
    "dropout-in-evaluation": (
        "the result is random in evaluation: dropout is active after .eval()",
        "use nn.Dropout, or F.dropout(x, p, training=self.training)",
    ),
    "dropout-missing": ("dropout has no effect in training", "apply nn.Dropout(dropout) where the step says so"),
    "dropout-place": (
        "dropout is at another place than in the reference",
        "in a head on the weights after the softmax; elsewhere on what is returned",
    ),
    "missing-parameters": ("parameters are missing", "see `gptloom ladder show` for what this part learns"),
    "extra-parameters": ("there are parameters that the reference does not have", "leave them out"),
    "parameter-shape": (
        "a parameter has the wrong shape",
        "the check builds it with sizes that all differ; n_embd is 24 and head_size 6",
    ),
    "missing-bias": ("a bias is missing", "bias=True, which is nn.Linear's default; a LayerNorm has a gain and a bias"),
    "extra-bias": ("there is a bias too many", "bias=False"),
    "shape": (
        "the result has the wrong shape",
        "are heads joined along dim=-1? Compare the shape after each line with `gptloom ladder show`",
    ),
    "short-context": (
        "it works for texts of block_size tokens only",
        "take t from the input's shape, and cut the mask to [:t, :t]",
    ),
    "differs": (
        "the result differs from the reference",
        "none of the known mistakes fits; print intermediate shapes and compare with `gptloom ladder show`",
    ),
}


V, T, C, H, D = (SIZES[name] for name in ("vocab_size", "block_size", "n_embd", "n_head", "head_size"))


@dataclass(frozen=True)
class Exercise:
    """One class or function for the learner to write.

    Attributes:
        name: what it must be called.
        reference: makes the plain module, or a function.
        mutants: known mistakes by name.
        takes: the constructor's arguments, by our names; empty for a function.
        sees: past (attention), self (each position alone) or nothing to check.
        dropout: where the step has it: on the attention weights, on what is returned, or nowhere.
        source: the input.
        accepted: mistakes that this step lets pass with a remark.
        aliases: other names that are accepted.
        sizes: those that differ from `SIZES`.
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
        """A function of one tensor, with nothing to construct."""
        return not self.takes

    @property
    def usage(self) -> str:
        """How it is called, for messages."""
        return f"{self.name}({', '.join(self.takes or ('x',))})"

    def values(self) -> dict[str, Any]:
        """What its constructor is given: the arguments that it is to take, then all other sizes, should it ask for them."""
        sizes = {**SIZES, "dropout": 0.5 if self.dropout else 0.0, **self.sizes}
        if "width" not in (*self.takes, *self.sizes):
            del sizes["width"]  # what a norm calls its width is n_embd
        return {name: sizes[name] for name in self.takes} | sizes


def normal() -> Tensor:
    """Vectors of unit variance, (3, block_size, n_embd)."""
    return torch.randn(3, T, C, generator=torch.Generator().manual_seed(0))


def uneven() -> Tensor:
    """Vectors from tiny to large and off centre, so that eps and the mean matter; (3, block_size, n_embd)."""
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
    "LayerNorm", lambda: lecture.LayerNorm(C), formulas.LAYER_NORM, ("n_embd",), sees="self", source=uneven
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
    "rmsnorm": (Exercise("RMSNorm", lambda: modern.RMSNorm(C), formulas.RMS_NORM, ("n_embd",), "self", source=uneven),),
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
"""By step. The counting steps, and `scale`, `gpt2-init` and `modern`, have nothing new to write."""
