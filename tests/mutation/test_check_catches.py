"""`gptloom ladder check` names each mistake that is planted in a correct solution."""

from functools import partial

import pytest

from check_helpers import (
    ANONYMOUS,
    AVERAGE,
    BLOCK,
    FEED_FORWARD,
    HEAD,
    HEADER,
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
    names,
)
from gptloom.studies.check import report_lines


@pytest.fixture
def judged(tmp_path):
    """Write a file and check it; return the report."""
    return partial(judge, tmp_path / "mine.py")


def line_of(text):
    return (HEADER + HEAD).split(text)[0].count("\n") + 1


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
