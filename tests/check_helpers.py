"""Solutions as learners write them, and a function that has one checked."""

from gptloom.studies.check import check

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


def names(report):
    return [finding.name for finding in report.findings if not finding.passed]


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


POST = (
    ("x + self.sa(self.ln1(x))", "self.ln1(x + self.sa(x))"),
    ("x + self.ffwd(self.ln2(x))", "self.ln2(x + self.ffwd(x))"),
)


def judge(path, step, source, *changes):
    """Write a solution with these changes to a file and check it; return the report."""
    source = HEADER + source
    for old, new in changes:
        assert source.count(old) >= 1, old
        source = source.replace(old, new)
    path.write_text(source, encoding="utf-8")
    return check(step, path)
