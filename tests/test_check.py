"""`gptloom ladder check` names planted mistakes, accepts correct solutions, and reports broken files in a sentence."""

from pathlib import Path

import pytest
import torch

from gptloom.errors import InputError
from gptloom.reference import lecture, modern, steps
from gptloom.studies.check import check, report_lines
from gptloom.studies.check.exercises import EXERCISES, run
from gptloom.studies.check.formulas import MESSAGES
from gptloom.studies.check.judge import _Judge
from gptloom.studies.check.mutants import attention, block

HEADER = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"

HEAD = '''
class Head(nn.Module):
    """As most people write it."""
    def __init__(self, n_embd, head_size, block_size, dropout=0.0):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        wei = self.dropout(wei)
        return wei @ self.value(x)
'''

HEADS = '''
class MultiHeadAttention(nn.Module):
    """All heads at once."""
    def __init__(self, n_embd, n_head, block_size, dropout=0.0):
        super().__init__()
        self.q = nn.Linear(n_embd, n_embd, bias=False)
        self.k = nn.Linear(n_embd, n_embd, bias=False)
        self.v = nn.Linear(n_embd, n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd)
        self.n_head = n_head
        self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.register_buffer("mask", torch.tril(torch.ones(block_size, block_size, dtype=torch.bool)))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for f in (self.q, self.k, self.v))
        att = q @ k.transpose(-2, -1) * (C // self.n_head) ** -0.5
        att = att.masked_fill(~self.mask[:T, :T], float("-inf"))
        att = self.drop1(F.softmax(att, dim=-1))
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.drop2(self.proj(y))
'''

FEED_FORWARD = """
class FeedForward(nn.Module):
    def __init__(self, n_embd, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x):
        return self.net(x)
"""

NORM = """
class LayerNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.zeros(dim))
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.gamma * (x - mean) / torch.sqrt(var + self.eps) + self.beta
"""

BLOCK = """
class Block(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.sa = MultiHeadAttention(n_embd, n_head, block_size)
        self.ffwd = FeedForward(n_embd)
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        x = x + self.ffwd(self.ln2(x))
        return x
"""

AVERAGE = """
def average(x):
    T = x.shape[1]
    mask = torch.tril(torch.ones(T, T))
    return (mask / mask.sum(1, keepdim=True)) @ x
"""

RMS = """
class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps, self.g = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.g
"""

SWIGLU = """
class SwiGLU(nn.Module):
    def __init__(self, n_embd, hidden_dim):
        super().__init__()
        self.w1 = nn.Linear(n_embd, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, n_embd, bias=False)
        self.w3 = nn.Linear(n_embd, hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
"""

ROTATE = """
def rotate(x):
    T, d = x.shape[1:]
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
"""

GROUPED = """
class GroupedAttention(nn.Module):
    def __init__(self, n_embd, n_heads, n_kv_heads, block_size):
        super().__init__()
        self.hd, self.rep = n_embd // n_heads, n_heads // n_kv_heads
        self.wq = nn.Linear(n_embd, n_heads * self.hd, bias=False)
        self.wk = nn.Linear(n_embd, n_kv_heads * self.hd, bias=False)
        self.wv = nn.Linear(n_embd, n_kv_heads * self.hd, bias=False)
        self.wo = nn.Linear(n_embd, n_embd)
        self.q_norm, self.k_norm = RMSNorm(self.hd), RMSNorm(self.hd)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (w(x).view(B, T, -1, self.hd).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = self.turn(self.q_norm(q)), self.turn(self.k_norm(k))
        k, v = k.repeat_interleave(self.rep, 1), v.repeat_interleave(self.rep, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(B, T, C))

    def turn(self, x):
        return rotate(x.flatten(0, 1)).view_as(x)
"""

MODERN = RMS + ROTATE + GROUPED

SDPA = """
class MultiHeadAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.p = config.n_head, config.dropout

    def forward(self, x):
        B, T, C = x.size()
        parts = self.c_attn(x).split(C, dim=2)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0, is_causal=True)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.p, self.training)
"""

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

ANONYMOUS = """
n_embd, block_size, dropout = 384, 256, 0.2  # the file's own constants, as in the lecture

class Head(nn.Module):
    def __init__(self, head_size):
        super().__init__()
        self.a = nn.Linear(n_embd, head_size, bias=False)  # values
        self.b = nn.Linear(n_embd, head_size, bias=False)  # keys
        self.c = nn.Linear(n_embd, head_size, bias=False)  # queries
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        T = x.shape[1]
        w = self.c(x) @ self.b(x).mT / self.a.out_features ** 0.5
        w = w.masked_fill(self.tril[:T, :T] == 0, -torch.inf).softmax(-1)
        return self.drop(w) @ self.a(x)

class MultiHeadAttention(nn.Module):
    def __init__(self, num_heads, head_size):
        super().__init__()
        self.heads = nn.ModuleList([Head(head_size) for _ in range(num_heads)])
        self.mix = nn.Linear(n_embd, n_embd)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.drop(self.mix(torch.cat([h(x) for h in self.heads], dim=-1)))

class FeedFoward(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x):
        return self.net(x)

class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.sa = MultiHeadAttention(n_head, n_embd // n_head)
        self.ffwd = FeedFoward(n_embd)
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))
"""

POSITIONED = """
class Positioned(nn.Module):
    def __init__(self, vocab_size, block_size, n_embd):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets=None):
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1]))
        return self.lm_head(x), None
"""


@pytest.fixture
def judged(tmp_path):
    """Write a file and check it; return the report."""

    def judge(step, source, *changes):
        source = HEADER + source
        for old, new in changes:
            assert source.count(old) >= 1, old
            source = source.replace(old, new)
        path = tmp_path / "mine.py"
        path.write_text(source, encoding="utf-8")
        return check(step, path)

    return judge


def line_of(text):
    return (HEADER + HEAD).split(text)[0].count("\n") + 1


def names(report):
    return [finding.name for finding in report.findings if not finding.passed]


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
POST = (
    ("x + self.sa(self.ln1(x))", "self.ln1(x + self.sa(x))"),
    ("x + self.ffwd(self.ln2(x))", "self.ln2(x + self.ffwd(x))"),
)
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


SCALE = " * k.shape[-1] ** -0.5"
MASK = 'self.tril[:T, :T] == 0, float("-inf")'
JOIN = "(att @ v).transpose(1, 2).contiguous().view(B, T, C)"
SPLIT = "view(B, T, self.n_head, C // self.n_head).transpose(1, 2)"

MISTAKES = {
    "missing-scale": ("one-head", HEAD, (SCALE, "")),
    "scale-wrong-width": ("score-scale", HEAD + HEADS, (SCALE, " * C ** -0.5")),
    "scale-wrong-width (all heads)": ("score-scale", HEAD + HEADS, ("(C // self.n_head) ** -0.5", "C ** -0.5")),
    "scale-multiplied": ("one-head", HEAD, (SCALE, " * k.shape[-1] ** 0.5")),
    "scale-without-root": ("one-head", HEAD, (SCALE, " / k.shape[-1]")),
    "mask-sees-future": ("one-head", HEAD, (f"wei.masked_fill({MASK})", "wei")),
    "mask-upside-down": ("one-head", HEAD, ("torch.tril(", "torch.triu(")),
    "mask-upside-down (strict)": ("one-head", HEAD, ("== 0", "== 1")),
    "mask-off-by-one": (
        "one-head",
        HEAD,
        ("torch.ones(block_size, block_size)", "torch.ones(block_size, block_size), diagonal=1"),
    ),
    "mask-hides-self": (
        "one-head",
        HEAD,
        ("torch.ones(block_size, block_size)", "torch.ones(block_size, block_size), diagonal=-1"),
    ),
    "mask-hides-self (finite)": (
        "one-head",
        HEAD,
        ("torch.ones(block_size, block_size)", "torch.ones(block_size, block_size), diagonal=-1"),
        ('float("-inf")', "-1e9"),
    ),
    "mask-fill": ("one-head", HEAD, ('float("-inf")', "0")),
    "mask-after-softmax": (
        "one-head",
        HEAD,
        (f"wei = wei.masked_fill({MASK})", ""),
        ("F.softmax(wei, dim=-1)", "F.softmax(wei, dim=-1) * self.tril[:T, :T]"),
    ),
    "softmax-axis": ("one-head", HEAD, ("dim=-1", "dim=1")),
    "softmax-axis (batch)": ("one-head", HEAD, ("dim=-1", "dim=0")),
    "missing-softmax": (
        "one-head",
        HEAD,
        (f"wei = wei.masked_fill({MASK})", ""),
        ("F.softmax(wei, dim=-1)", "wei * self.tril[:T, :T]"),
    ),
    "query-key-swapped": ("one-head", HEAD, ("q @ k.transpose(-2, -1)", "k @ q.transpose(-2, -1)")),
    "batch-mixed": ("one-head", HEAD, ("return wei @ self.value(x)", "return wei @ self.value(x).flip(0)")),
    "heads-mixed (join)": ("score-scale", HEAD + HEADS, (JOIN, "(att @ v).reshape(B, T, C)")),
    "heads-mixed (split)": ("score-scale", HEAD + HEADS, (SPLIT, "view(B, self.n_head, T, C // self.n_head)")),
    "heads-mixed (both)": (
        "score-scale",
        HEAD + HEADS,
        (SPLIT, "view(B, self.n_head, T, C // self.n_head)"),
        (JOIN, "(att @ v).view(B, T, C)"),
    ),
    "heads-mixed (order)": ("dropout", ANONYMOUS, ("h(x) for h in self.heads", "h(x) for h in reversed(self.heads)")),
    "heads-mixed (interleaved)": (
        "dropout",
        ANONYMOUS,
        ("torch.cat([h(x) for h in self.heads], dim=-1)", "torch.stack([h(x) for h in self.heads], dim=-1).flatten(2)"),
    ),
    "heads-mixed (between heads)": (
        "score-scale",
        HEAD + SDPA,
        ("C // self.n_head).transpose(1, 2)", "C // self.n_head)"),
        ("y.transpose(1, 2).reshape", "y.reshape"),
    ),
    "missing-projection": ("score-scale", HEAD + HEADS, ("self.proj(y)", "y")),
    "missing-projection (nowhere)": (
        "score-scale",
        HEAD + HEADS,
        ("self.proj(y)", "y"),
        ("self.proj = nn.Linear(n_embd, n_embd)\n", "pass\n"),
    ),
    "dropout-in-evaluation": (
        "dropout",
        HEAD + HEADS + FEED_FORWARD,
        ("wei = self.dropout(wei)", "wei = F.dropout(wei, 0.5)"),
    ),
    "dropout-missing": ("dropout", HEAD + HEADS + FEED_FORWARD, ("wei = self.dropout(wei)", "")),
    "dropout-place": (
        "dropout",
        HEAD + HEADS + FEED_FORWARD,
        ("wei = self.dropout(wei)", ""),
        ("return wei @ self.value(x)", "return self.dropout(wei @ self.value(x))"),
    ),
    "dropout-place (before)": (
        "dropout",
        HEAD + HEADS + FEED_FORWARD,
        ("self.drop2(self.proj(y))", "self.proj(self.drop2(y))"),
    ),
    "missing-residual": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, ("x + self.ffwd(", "self.ffwd(")),
    "norm-post": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, *POST),
    "norm-pre": ("post-norm", HEADS + FEED_FORWARD + BLOCK),
    "norm-on-stream": (
        "layernorm",
        HEADS + FEED_FORWARD + BLOCK + NORM,
        ("x = x + self.sa(self.ln1(x))", "x = self.ln1(x); x = x + self.sa(x)"),
        ("x = x + self.ffwd(self.ln2(x))", "x = self.ln2(x); x = x + self.ffwd(x)"),
    ),
    "missing-norm": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, ("self.ffwd(self.ln2(x))", "self.ffwd(x)")),
    "halves-parallel": (
        "layernorm",
        HEADS + FEED_FORWARD + BLOCK + NORM,
        ("x = x + self.sa(self.ln1(x))", "y = self.sa(self.ln1(x))"),
        ("x + self.ffwd", "x + y + self.ffwd"),
    ),
    "missing-scale (in a block)": (
        "layernorm",
        HEADS + FEED_FORWARD + BLOCK + NORM,
        (" * (C // self.n_head) ** -0.5", ""),
    ),
    "norm-axis": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, ("mean(-1,", "mean(1,"), ("var(-1,", "var(1,")),
    "norm-unbiased": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, (", unbiased=False", "")),
    "missing-eps": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, ("var + self.eps", "var")),
    "eps-outside-root": (
        "layernorm",
        HEADS + FEED_FORWARD + BLOCK + NORM,
        ("torch.sqrt(var + self.eps)", "(torch.sqrt(var) + self.eps)"),
    ),
    "norm-without-root": (
        "layernorm",
        HEADS + FEED_FORWARD + BLOCK + NORM,
        ("torch.sqrt(var + self.eps)", "(var + self.eps)"),
    ),
    "gain-unused": ("layernorm", HEADS + FEED_FORWARD + BLOCK + NORM, ("self.gamma * (x", "(x")),
    "missing-bias": (
        "layernorm",
        HEADS + FEED_FORWARD + BLOCK + NORM,
        ("self.beta = nn.Parameter(torch.zeros(dim))", ""),
        (" + self.beta", ""),
    ),
    "norm-centre": ("rmsnorm", RMS, ("return x *", "x = x - x.mean(-1, keepdim=True); return x *")),
    "extra-bias": (
        "one-head",
        HEAD,
        ("self.query = nn.Linear(n_embd, head_size, bias=False)", "self.query = nn.Linear(n_embd, head_size)"),
    ),
    "parameter-shape": ("mlp", FEED_FORWARD, ("4 * n_embd", "2 * n_embd")),
    "activation-missing": ("mlp", FEED_FORWARD, ("nn.ReLU(), ", "")),
    "activation-other": ("mlp", FEED_FORWARD, ("nn.ReLU()", "nn.GELU()")),
    "activation-other (gelu)": ("gelu", "def gelu(x): return F.gelu(x)\n"),
    "gate-swapped": (
        "swiglu",
        SWIGLU.replace("w1", "gate").replace("w3", "up"),
        ("F.silu(self.gate(x)) * self.up(x)", "self.gate(x) * F.silu(self.up(x))"),
    ),
    "rotation-interleaved": (
        "rope",
        ROTATE,
        ("a, b = x.chunk(2, dim=-1)", "a, b = x[..., ::2], x[..., 1::2]"),
        ("torch.cat([", "torch.stack(["),
        ("dim=-1)\n", "dim=-1).flatten(2)\n"),
    ),
    "rotation-backwards": (
        "rope",
        ROTATE,
        ("a * angle.cos() - b", "a * angle.cos() + b"),
        ("b * angle.cos() + a", "b * angle.cos() - a"),
    ),
    "groups-mixed": ("gqa", MODERN, (".repeat_interleave(self.rep, 1)", ".repeat(1, self.rep, 1, 1)")),
    "qk-norm-after-rotation": (
        "gqa",
        MODERN,
        (
            "self.turn(self.q_norm(q)), self.turn(self.k_norm(k))",
            "self.q_norm(self.turn(q)), self.k_norm(self.turn(k))",
        ),
    ),
    "missing-division": ("averaging", AVERAGE, ("(mask / mask.sum(1, keepdim=True))", "mask")),
    "mask-sees-future (average)": ("averaging", AVERAGE, ("torch.tril(torch.ones(T, T))", "torch.ones(T, T)")),
    "mask-upside-down (average)": ("averaging", AVERAGE, ("torch.tril", "torch.triu")),
    "mean-axis": ("averaging", AVERAGE, ("mask.sum(1, keepdim=True)", "mask.sum(0, keepdim=True)")),
    "positions-missing": (
        "positions",
        POSITIONED,
        (" + self.position_embedding_table(torch.arange(idx.shape[1]))", ""),
    ),
    "shape": ("one-head", HEAD, ("return wei @ self.value(x)", "return (wei @ self.value(x)).flatten(0, 1)")),
    "short-context": ("one-head", HEAD, ("self.tril[:T, :T]", "self.tril")),
    "exception": ("one-head", HEAD, ("k.transpose(-2, -1)", "k")),
    "wrong-signature": ("one-head", HEAD, ("head_size, block_size, dropout=0.0", "head_size, block_size, flavour")),
    "not-a-module": ("one-head", HEAD, ("class Head(nn.Module)", "class Head"), ("super().__init__()", "pass")),
    "missing-class": ("one-head", HEAD, ("class Head(", "class Heads(")),
    "import-error": ("one-head", HEAD, ("return wei @", "return wei @@")),
    "import-error (exit)": ("one-head", HEAD + "exit(3)\n"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes_are_found_and_named(judged, name):
    report = judged(*MISTAKES[name])
    assert not report.passed
    assert set(names(report)) == {name.split(" ")[0]}, "\n".join(report_lines(report))
    for finding in report.findings:
        assert finding.passed or (finding.what and finding.hint)


def test_the_lecture_s_scale_passes_with_a_remark_until_the_step_that_corrects_it(judged):
    report = judged("one-head", HEAD, (SCALE, " * C ** -0.5"))
    assert report.passed
    assert [finding.name for finding in report.findings] == ["scale-wrong-width"]
    assert any("step score-scale" in line for line in report_lines(report))


def test_several_mistakes_in_one_file_are_each_named(judged):
    report = judged(
        "dropout", HEAD + HEADS + FEED_FORWARD, (SCALE, ""), (JOIN, "(att @ v).reshape(B, T, C)"), ("nn.ReLU(), ", "")
    )
    assert names(report) == ["missing-scale", "heads-mixed", "activation-missing"]


def test_a_second_mistake_shows_behind_the_scale(judged):
    report = judged("one-head", HEAD, (SCALE, " * C ** -0.5"), ("dim=-1", "dim=1"))
    assert [(finding.name, finding.passed) for finding in report.findings] == [
        ("scale-wrong-width", True),
        ("softmax-axis", False),
    ]
    report = judged(
        "score-scale", HEAD + HEADS, ("(C // self.n_head) ** -0.5", "1"), (JOIN, "(att @ v).reshape(B, T, C)")
    )
    assert names(report) == ["missing-scale", "heads-mixed"]


def test_what_nobody_foresaw_is_still_told(judged):
    report = judged("one-head", HEAD, ("return wei @ self.value(x)", "return 3 * (wei @ self.value(x))"))
    assert names(report) == ["differs"]


def test_messages_name_the_line_and_the_cure(judged):
    text = "\n".join(report_lines(judged("one-head", HEAD, ("return wei @", "return wei @@"))))
    assert "SyntaxError" in text
    assert f"(line {line_of('return wei @')})" in text
    text = "\n".join(report_lines(judged("one-head", HEAD, ("k.transpose(-2, -1)", "k"))))
    assert "RuntimeError" in text
    assert f"(line {line_of('k.transpose')})" in text
    assert "Heads" in judged("one-head", HEAD, ("class Head(", "class Heads(")).findings[0].hint
    assert "flavour" in judged(*MISTAKES["wrong-signature"]).findings[0].what


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
