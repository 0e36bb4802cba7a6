"""`gptloom ladder check` accepts correct solutions; mutation/test_check_catches.py plants mistakes."""

from functools import partial
from pathlib import Path

import pytest
import torch

from check_helpers import (
    ANONYMOUS,
    AVERAGE,
    BLOCK,
    FEED_FORWARD,
    HEAD,
    HEADS,
    MODERN,
    NORM,
    POSITIONED,
    POST,
    RMS,
    ROTATE,
    SDPA,
    SWIGLU,
    judge,
)
from gptloom.errors import InputError
from gptloom.reference import lecture, modern, steps
from gptloom.studies.check import check, report_lines
from gptloom.studies.check.exercises import EXERCISES, run
from gptloom.studies.check.formulas import MESSAGES
from gptloom.studies.check.judge import _Judge
from gptloom.studies.check.mutants import attention, block

EINSUM = """
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads, context_length, dropout=0.0):
        super().__init__()
        d_k = d_model // num_heads
        make = lambda *shape: nn.Parameter(torch.randn(*shape))
        self.wq, self.wk, self.wv = (make(num_heads, d_model, d_k) for _ in range(3))
        self.wo = nn.Linear(d_model, d_model)
        self.drop = dropout

    def forward(self, x):
        T = x.shape[1]
        q, k, v = (torch.einsum("btc,hcd->bhtd", x, w) for w in (self.wq, self.wk, self.wv))
        score = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
        score = score + torch.full((T, T), float("-inf")).triu(1)
        weight = F.dropout(score.softmax(-1), self.drop, self.training)
        out = self.wo(torch.einsum("bhts,bhsd->bthd", weight, v).flatten(2))
        return F.dropout(out, self.drop, self.training), weight
"""


@pytest.fixture
def judged(tmp_path):
    """Write a file and check it; return the report."""
    return partial(judge, tmp_path / "mine.py")


OWN_LINEAR = """
class Linear(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(n_out, n_in)), nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.w, self.b)
"""
RAW = """
class Head(nn.Module):
    def __init__(self, n_embd, head_size, block_size):
        super().__init__()
        self.x1, self.x2, self.x3 = (nn.Parameter(torch.randn(n_embd, head_size)) for _ in range(3))

    def forward(self, x):
        return F.scaled_dot_product_attention(x @ self.x3, x @ self.x1, x @ self.x2, is_causal=True)
"""
EVERY_HEAD_HAS_KEYS = (
    ("GroupedAttention", "MultiHeadAttention"),
    ("n_kv_heads, block_size", "block_size"),
    ("n_kv_heads", "n_heads"),
)
BIGRAM = """
class BigramLanguageModel(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids):
        return self.table(ids)
"""

CORRECT = {
    "the-usual-head": ("one-head", HEAD),
    "the-usual-heads": ("residual", HEADS + FEED_FORWARD + BLOCK.replace("nn.LayerNorm(n_embd)", "nn.Identity()")),
    "fused-sdpa": ("score-scale", HEAD + SDPA),
    "fused-sdpa-dropout": ("dropout", HEAD + SDPA + FEED_FORWARD),
    "einsum": ("score-scale", HEAD + EINSUM),
    "einsum-dropout": ("dropout", HEAD + EINSUM + FEED_FORWARD),
    "anonymous": ("dropout", ANONYMOUS),
    "anonymous-strict": ("score-scale", ANONYMOUS),
    "anonymous-block": ("layernorm", ANONYMOUS + NORM),
    "block": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM),
    "torch-norm": ("layernorm", HEADS + FEED_FORWARD + BLOCK + "class LayerNorm(nn.LayerNorm): pass\n"),
    "post-norm": ("post-norm", HEADS + FEED_FORWARD + BLOCK, *POST),
    "mlp": ("mlp", FEED_FORWARD),
    "average": ("averaging", AVERAGE),
    "average-cumsum": (
        "averaging", "def average(x):\n    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]\n",
    ),
    "bigram": ("bigram", BIGRAM),
    "positions": ("positions", POSITIONED),
    "gelu": ("gelu", "def gelu(x): return F.gelu(x, approximate='tanh')\n"),
    "rope": ("rope", ROTATE),
    "rmsnorm": ("rmsnorm", RMS),
    "swiglu": ("swiglu", SWIGLU),
    "gqa": ("gqa", MODERN),
    "qk-norm": ("qk-norm", MODERN, *EVERY_HEAD_HAS_KEYS),
    "width-of-its-own": (
        "mlp", FEED_FORWARD, ("n_embd, dropout=0.0", "d_model, d_ff, dropout=0.0"), ("4 * n_embd", "d_ff"),
        ("n_embd", "d_model"),
    ),
    "own-linear": ("mlp", OWN_LINEAR + FEED_FORWARD, ("nn.Linear", "Linear")),
    "raw-matrices": ("score-scale", HEAD + HEADS + RAW),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_right_solutions_pass_whatever_they_look_like(judged, name):
    report = judged(*CORRECT[name])
    assert report.passed, "\n".join(report_lines(report))
    assert sum(finding.name == "equal" for finding in report.findings) == len(EXERCISES[report.step])
    if report.step == "dropout":
        assert sum(finding.name == "dropout" for finding in report.findings) == 3


@pytest.mark.parametrize(
    ("step", "module"),
    [(step, lecture) for step in ("one-head", "mlp", "layernorm", "dropout", "score-scale")]
    + [(step, steps) for step in ("bigram", "embedding", "positions", "averaging")]
    + [(step, modern) for step in ("gelu", "rope", "rmsnorm", "swiglu", "gqa")],
)
def test_the_code_that_ladder_show_prints_passes_its_own_check(step, module):
    report = check(step, Path(module.__file__))
    assert report.passed, "\n".join(report_lines(report))


def test_the_learner_s_prints_stay_out_of_standard_output(judged, capsys):
    assert judged("one-head", HEAD + "print('hello')\n").passed
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


def test_torch_s_generator_is_left_as_it_was(judged):
    state = torch.get_rng_state()
    judged("dropout", HEAD + HEADS + FEED_FORWARD)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_such_file_and_no_such_exercise(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        check("one-head", tmp_path / "none.py")
    with pytest.raises(InputError, match="did you mean one-head"):
        check("one-heat", tmp_path / "none.py")
    with pytest.raises(InputError, match="nothing new is written there; one of: bigram"):
        check("modern", tmp_path / "none.py")


EVERY = [(step, exercise) for step, exercises in EXERCISES.items() for exercise in exercises]


@pytest.mark.parametrize(("step", "exercise"), EVERY, ids=[f"{step}-{exercise.name}" for step, exercise in EVERY])
def test_each_mutant_differs_from_the_reference_and_from_mutants_of_other_names(step, exercise, tmp_path):
    judge = _Judge(exercise, tmp_path)
    expected = run(judge.reference, judge.x)
    outputs = {slip: mutant(judge.reference, judge.x) for slip, mutant in exercise.mutants.items()}
    for slip, out in outputs.items():
        assert out.shape == expected.shape
        assert slip.split(":")[0] in MESSAGES
        assert not torch.allclose(out, expected, atol=1e-4, equal_nan=True), slip
        for other, theirs in outputs.items():
            if other.split(":")[0] != slip.split(":")[0]:
                assert not torch.allclose(out, theirs, atol=1e-4, equal_nan=True), (slip, other)


def test_without_a_slip_the_mutants_are_the_reference(tmp_path):
    for step, exercise in EVERY:
        if exercise.name in ("Head", "MultiHeadAttention", "GroupedAttention", "Block"):
            judge = _Judge(exercise, tmp_path)
            form = (
                attention if exercise.name != "Block" else lambda m, x, post=step == "post-norm": block(m, x, post=post)
            )
            assert torch.allclose(form(judge.reference, judge.x), run(judge.reference, judge.x), atol=1e-5, rtol=1e-5)


def test_every_name_comes_with_words_and_a_cure():
    assert all(what and hint for what, hint in MESSAGES.values())
