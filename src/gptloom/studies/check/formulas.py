"""Messages of `gptloom ladder check`.

Mutants of the position-wise parts (norms, feed-forward layers), and of single functions and embeddings.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.reference.lecture import FeedForward, LayerNorm
from gptloom.reference.modern import RMSNorm, SwiGLU
from gptloom.reference.steps import Embedded, Positioned, average_by_matrix
from gptloom.studies.check.mutants import Mutant, mutants

MESSAGES: dict[str, tuple[str, str]] = {
    "missing-scale": (
        "the scores are not scaled",
        "multiply query @ key by head_size ** -0.5, before the mask and the softmax",
    ),
    "scale-wrong-width": (
        "the scores are scaled by n_embd ** -0.5, the width of the whole stream",
        "the products have head_size terms: scale by head_size ** -0.5 "
        "(the lecture's code has this mistake, too; see the step score-scale)",
    ),
    "scale-multiplied": ("the scores are multiplied by the root of head_size", "divide by it: head_size ** -0.5"),
    "scale-without-root": ("the scores are divided by head_size, not by its root", "use head_size ** -0.5"),
    "mask-sees-future": (
        "every position sees the future: nothing is masked",
        "fill the scores above the diagonal with minus infinity before the softmax",
    ),
    "mask-upside-down": (
        "the mask is on the wrong side of the diagonal: a position sees the future and not the past",
        "keep torch.tril (below and on the diagonal), fill the rest with minus infinity",
    ),
    "mask-off-by-one": (
        "the mask is off by one: a position sees the next token, which it must predict",
        "use torch.tril(...) without a diagonal of 1",
    ),
    "mask-hides-self": (
        "a position cannot see itself, and the first sees nothing at all (NaN where all scores are minus infinity)",
        "the diagonal belongs to the past: torch.tril(...) without a diagonal of -1",
    ),
    "mask-fill": (
        "masked positions still get weight: their score is 0, and exp(0) is 1",
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
        "view as (b, t, n_head, head_size), then transpose(1, 2); on the way back transpose(1, 2), then reshape; "
        "join head 0 first",
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
        "normalise the input of the branch: x = x + branch(norm(x))",
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
        "the norm is applied to the output of the branch",
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
        "the MLP must read the result of attention: x = x + attention(...), then x = x + mlp(...)",
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
        "eps is missing: tiny vectors become large, and a constant one gives NaN",
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
        "see `gptloom ladder show` for this step's activation",
    ),
    "activation-place": (
        "an activation follows the last matrix",
        "activate between the two matrices only: the branch's result may be negative",
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
        "the step averaging does that; this step treats each token separately",
    ),
    "batch-mixed": (
        "the texts of a batch influence one another",
        "some operation runs over the first axis or reshapes across it",
    ),
    "positions-mixed": (
        "a position's result depends on other positions",
        "this part works on each vector by itself: operate on dim=-1 only",
    ),
    "mask-hides-past": ("a position does not see all earlier positions", "row t of the mask has t + 1 ones"),
    "dropout-in-evaluation": (
        "the result is random in evaluation: dropout is active after .eval()",
        "use nn.Dropout, or F.dropout(x, p, training=self.training)",
    ),
    "dropout-missing": ("dropout has no effect in training", "apply nn.Dropout(dropout) where the step says so"),
    "dropout-place": (
        "dropout is at another place than in the reference",
        "in a head on the weights after the softmax; elsewhere on the result",
    ),
    "missing-parameters": ("parameters are missing", "see `gptloom ladder show` for the parameters of this part"),
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
"""(mistake, correction) by the name of a finding, which is also the name of its mutant."""


def normalise(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """LayerNorm or RMSNorm of x (..., c) with one mistake; see `mutants.py`."""
    assert isinstance(module, LayerNorm | RMSNorm)
    axes = {"norm-axis:time": [1], "norm-axis:batch": [0], "norm-axis:both": [1, 2], "norm-axis:all": [0, 1, 2]}
    axis = axes.get(slip, [-1])
    centred = isinstance(module, LayerNorm) ^ (slip == "norm-centre")
    shifted = x - x.mean(dim=axis, keepdim=True) if centred else x
    variance = (shifted**2).mean(dim=axis, keepdim=True)
    if slip == "norm-unbiased":
        variance = variance * x.shape[-1] / (x.shape[-1] - 1)
    eps = {"missing-eps": 0.0, "eps-different:6": 1e-6, "eps-different:8": 1e-8, "eps-different:5": 1e-5}.get(
        slip, module.eps
    )
    size = variance.sqrt() + eps if slip == "eps-outside-root" else torch.sqrt(variance + eps)
    if slip == "norm-without-root":
        size = variance + eps
    if slip == "norm-without-division":
        size = torch.ones_like(size)
    out = shifted / size
    bias = module.bias if isinstance(module, LayerNorm) else torch.zeros_like(module.gain)
    if slip == "gain-unused":
        return out + bias
    if slip == "bias-unused":
        return out * module.gain
    return (out + bias) * module.gain if slip == "gain-after-bias" else out * module.gain + bias


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation-missing": lambda x: x,
    "activation-other:relu": F.relu,
    "activation-other:gelu": F.gelu,
    "activation-other:gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "activation-other:silu": F.silu,
    "activation-other:tanh": torch.tanh,
    "activation-other:sigmoid": torch.sigmoid,
    "activation-other:quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "activation-other:leaky": F.leaky_relu,
    "activation-other:relu2": lambda x: F.relu(x) ** 2,
}


def think(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """The feed-forward layer of x (..., c) with one mistake."""
    assert isinstance(module, FeedForward)
    if slip == "activation-place:end":
        return F.relu(module.down(module.up(x)))
    out: Tensor = module.down(ACTIVATIONS.get(slip, F.relu)(module.up(x)))
    return F.relu(out) if slip == "activation-place:twice" else x + out if slip == "residual-inside" else out


def gated(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """SwiGLU of x (..., c) with one mistake."""
    assert isinstance(module, SwiGLU)
    gate, up = module.gate(x), module.up(x)
    if slip == "gate-swapped":
        gate, up = up, gate
    opened = ACTIVATIONS.get(slip, F.silu)(gate)
    out: Tensor = module.down(opened + up if slip == "gate-added" else opened * up)
    return out


def average(_reference: object, x: Tensor, slip: str = "") -> Tensor:
    """The causal mean of x (b, t, c) with one mistake."""
    t = x.shape[1]
    past = torch.tril(torch.ones(t, t))
    if slip == "missing-division":
        return past @ x
    if slip == "mask-sees-future":
        past = torch.ones(t, t)
    if slip == "mask-upside-down":
        past = past.T
    if slip == "mask-off-by-one":
        past = torch.ones(t, t).tril(1)
    if slip.startswith("mask-hides-self"):
        past = past.tril(-1)
    if slip == "mean-fixed-length":
        return past @ x / t
    if slip == "mean-axis:rows":
        return past / past.sum(dim=0, keepdim=True) @ x
    if slip == "mean-axis:batch":
        return x.cumsum(dim=0) / torch.arange(1, len(x) + 1)[:, None, None]
    if slip == "mask-fill":
        return past.softmax(dim=-1) @ x
    total = past.sum(dim=1, keepdim=True)
    return past / (total.clamp(min=1) if slip == "mask-hides-self" else total) @ x


def embed(module: nn.Module, ids: Tensor, slip: str = "") -> Tensor:
    """The model of token and position embeddings with one mistake; ids (b, t) to logits (b, t, vocab)."""
    assert isinstance(module, Positioned)
    tokens, t = module.token_table(ids), ids.shape[1]
    table = module.position_table.weight[:t]
    if slip == "positions-missing":
        vectors = tokens
    elif slip == "positions-multiplied":
        vectors = tokens * table
    elif slip == "positions-backwards":
        vectors = tokens + table.flip(0)
    elif slip == "positions-shifted":
        vectors = tokens + module.position_table.weight.roll(-1, 0)[:t]
    elif slip == "positions-by-token":
        vectors = tokens + module.position_table(ids % module.position_table.num_embeddings)
    else:
        vectors = tokens + table
    logits: Tensor = module.head(vectors)
    return logits


_EVERY_NORM = (
    "norm-axis:time", "norm-axis:batch", "norm-axis:both", "norm-axis:all", "norm-centre", "missing-eps",
    "eps-outside-root", "norm-without-root", "norm-without-division", "gain-unused", "norm-unbiased",
)  # fmt: skip
LAYER_NORM = mutants(normalise, *_EVERY_NORM, "eps-different:6", "eps-different:8", "bias-unused", "gain-after-bias")
RMS_NORM = mutants(normalise, *_EVERY_NORM, "eps-different:5", "eps-different:8")
FEED_FORWARD = mutants(
    think,
    *(set(ACTIVATIONS) - {"activation-other:relu"}),
    "activation-place:end",
    "activation-place:twice",
    "residual-inside",
)
SWIGLU = mutants(gated, *(set(ACTIVATIONS) - {"activation-other:silu"}), "gate-swapped", "gate-added")
GELU: dict[str, Mutant] = {
    slip: lambda _m, x, act=act: act(x)  # type: ignore[misc]
    for slip, act in ACTIVATIONS.items()
    if slip != "activation-other:gelu-tanh"
}
AVERAGE = mutants(
    average, "missing-division", "mask-sees-future", "mask-upside-down", "mask-off-by-one", "mask-hides-self",
    "mask-hides-self:nan", "mean-fixed-length", "mean-axis:rows", "mean-axis:batch", "mask-fill",
)  # fmt: skip
POSITIONS = mutants(
    embed, "positions-missing", "positions-multiplied", "positions-backwards", "positions-shifted", "positions-by-token"
)


def _averaged_embedding(module: nn.Module, ids: Tensor) -> Tensor:
    assert isinstance(module, Embedded)
    logits: Tensor = module.head(average_by_matrix(module.token_table(ids)))
    return logits


EMBEDDING: dict[str, Mutant] = {"averaging-too-early": _averaged_embedding}
