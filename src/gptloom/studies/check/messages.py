"""Messages of `gptloom ladder check`."""

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
