"""Independent implementation of every model, optimizer and schedule from the papers' formulas, in float64.

Models are computed one row and one head at a time, optimizers one parameter at a time. The code shares nothing with the
production models except the names of the weights, so equal results are hardly wrong in both.

Attention: Vaswani et al. 2017, section 3.2; rotary embeddings: Su et al. 2021, with the half-split pairing of Llama and
Qwen; grouped heads: Ainslie et al. 2023; SwiGLU: Shazeer 2020; RMSNorm: Zhang and Sennrich 2019; LSTM: Hochreiter and
Schmidhuber 1997; GRU: Cho et al. 2014.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.config.run import TrainConfig
from gptloom.model.base import LanguageModel
from gptloom.model.ngram import HashedNgrams

Perturb = Callable[[Tensor], Tensor]

KNOWN = frozenset(
    [
        "architecture",
        "vocab_size",
        "block_size",
        "n_layer",
        "n_head",
        "n_kv_head",
        "n_embd",
        "head_size",
        "mixer",
        "output_projection",
        "score_scale",
        "qk_norm",
        "positions",
        "ngrams",
        "ngram_rows",
        "ngram_dropout",
        "rope_theta",
        "mlp",
        "mlp_width",
        "residual",
        "norm",
        "norm_position",
        "bias",
        "head",
        "head_bias",
        "tables",
        "dropout",
        "attn_dropout",
        "embd_dropout",
        "init",
    ]
)
"""Fields of `ModelConfig` that the formulas take into account."""


def unknown_field(config: ModelConfig) -> str | None:
    """Return the first field with a value other than its default that the formulas do not know; None if there is none.

    The default of a new field must be the value that leaves the model as it was.
    """
    fields = type(config).model_fields
    return next((name for name in fields if name not in KNOWN and getattr(config, name) != fields[name].default), None)


class Reference:
    """Computes a model's logits by the formulas.

    Args:
        config: the model's configuration.
        model: the source of the weights, by name.
        perturb: function applied to every weight and angle, to measure the effect of rounding.
    """

    def __init__(self, config: ModelConfig, model: nn.Module, perturb: Perturb = lambda x: x) -> None:
        """Copy the weights to float64 on the CPU."""
        self.config, self.perturb = config, perturb
        self.weights = {name: perturb(p.detach().to("cpu", torch.float64)) for name, p in model.named_parameters()}

    @torch.no_grad()
    def logits(self, *inputs: Int[Tensor, "b _"]) -> Float[Tensor, "b t v"]:
        """Return the logits for (ids) or (sources, ids); ids below 0 are padding, which is masked."""
        return torch.stack([self._row(*(ids.cpu() for ids in row)) for row in zip(*inputs, strict=True)])

    def _row(self, *inputs: Tensor) -> Tensor:
        c = self.config
        if c.is_recurrent:
            return self._head(self._recurrent(inputs[0]))
        if c.architecture == "encoder-decoder":
            source, ids = inputs
            memory = self._stack("encoder.", source, None, None)
            return self._head(self._stack("", ids, memory, source >= 0))
        return self._head(self._stack("", inputs[0], None, None))

    def _stack(self, prefix: str, ids: Tensor, memory: Tensor | None, memory_seen: Tensor | None) -> Tensor:
        """Return the residual stream after the last block and norm, (t, c).

        `prefix` is "encoder." for the encoder of an encoder-decoder, otherwise empty. Only decoders use a causal mask.
        """
        c, t = self.config, len(ids)
        encodes = c.architecture == "encoder" or prefix == "encoder."
        seen = (ids >= 0).expand(t, t) if encodes else torch.ones(t, t, dtype=torch.bool).tril()
        table = prefix + "token_table.weight"
        x = self.weights.get(table, self.weights["token_table.weight"])[ids.clamp(min=0)]
        if c.positions == "learned":
            x = x + self.weights[prefix + "position_table.weight"][:t]
        if c.positions == "sinusoidal":
            angles = self._angles(t, c.n_embd, 10_000.0)
            x = x + torch.stack((angles.sin(), angles.cos()), -1).reshape(t, c.n_embd)
        if c.ngrams > 1:
            x = x + self._ngrams(prefix + "ngrams.weight", ids.tolist())
        for layer in range(c.n_layer):
            name = f"{prefix}blocks.{layer}."
            if c.mixer == "attention":
                x = self._join(x, name + "norm1", partial(self._self_attention, name + "mixer", seen))
            if c.mixer == "mean":
                x = self._join(x, name + "norm1", partial(self._mean, name + "mixer.out"))
            if memory is not None and memory_seen is not None:
                x = self._join(
                    x, name + "norm_cross", partial(self._cross_attention, name + "cross", memory, memory_seen)
                )
            if c.mlp != "none":
                x = self._join(x, name + "norm2", partial(self._mlp, name + "mlp"))
        return self._norm(prefix + "final_norm", x) if c.norm_position == "pre" and c.head != "none" else x

    def _ngrams(self, name: str, ids: list[int]) -> Tensor:
        """Sum the table rows of all n-grams of 2 and more tokens that end at each position.

        The hash uses Horner's rule and Knuth's multiplication, in integers modulo 2 ** 64.
        """
        table, golden = self.weights[name], 0x9E3779B97F4A7C15
        out = torch.zeros(len(ids), table.shape[1], dtype=torch.float64)
        for place in range(len(ids)):
            key = max(ids[place], 0) + 1
            for back in range(1, self.config.ngrams):
                before = max(ids[place - back], 0) + 1 if place >= back else 0
                key = (key * golden + before) % 2**64
                mixed = (key ^ _signed(key) >> 32) * golden % 2**64
                out[place] += table[(_signed(mixed) >> 33) % len(table)]
        return out

    def _join(self, x: Tensor, norm: str, branch: Callable[[Tensor], Tensor]) -> Tensor:
        post, adds = self.config.norm_position == "post", self.config.residual == "add"
        found = branch(x if post else self._norm(norm, x))
        joined = x + found if adds else found
        return self._norm(norm, joined) if post else joined

    def _self_attention(self, name: str, seen: Tensor, x: Tensor) -> Tensor:
        return self._attention(name, x, x, seen, rotary=self.config.positions == "rotary")

    def _cross_attention(self, name: str, memory: Tensor, seen: Tensor, x: Tensor) -> Tensor:
        return self._attention(name, x, memory, seen.expand(len(x), len(memory)), rotary=False)

    def _mean(self, name: str, x: Tensor) -> Tensor:
        """Return the mean of each position and all earlier ones."""
        return self._linear(name, x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None])

    def _attention(self, name: str, x: Tensor, source: Tensor, seen: Tensor, *, rotary: bool) -> Tensor:
        """Compute softmax(q k^T / sqrt(width)) v, head by head; the query heads of a group share keys and values."""
        c, d = self.config, self.config.width_per_head
        if name + ".qkv.weight" in self.weights:
            query, key, value = torch.split(
                self._linear(name + ".qkv", x), [c.n_head * d, c.kv_heads * d, c.kv_heads * d], -1
            )
        else:
            query = self._linear(name + ".query", x)
            key, value = torch.split(self._linear(name + ".kv", source), c.kv_heads * d, -1)
        scale = 1.0 / math.sqrt(d if c.score_scale == "head" else c.n_embd)
        heads = []
        for head in range(c.n_head):
            group = head // (c.n_head // c.kv_heads)
            q, k, v = (
                query[:, head * d : (head + 1) * d],
                key[:, group * d : (group + 1) * d],
                value[:, group * d : (group + 1) * d],
            )
            if c.qk_norm:
                q, k = self._rms(name + ".query_norm", q), self._rms(name + ".key_norm", k)
            if rotary:
                q, k = self._rotate(q), self._rotate(k)
            weights = (scale * (q @ k.T)).masked_fill(~seen, -math.inf).softmax(-1)
            heads.append(weights @ v)
        return self._linear(name + ".out", torch.cat(heads, -1))

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotate each pair of features i and i + d/2 by the angle position * theta ** (-2 i / d)."""
        half = x.shape[-1] // 2
        angles = self._angles(len(x), x.shape[-1], self.config.rope_theta)
        a, b = x[:, :half], x[:, half:]
        return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)

    def _angles(self, t: int, width: int, base: float) -> Tensor:
        rates = torch.tensor([base ** (-2.0 * i / width) for i in range(width // 2)], dtype=torch.float64)
        return self.perturb(torch.arange(t, dtype=torch.float64)[:, None] * rates)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        h = self._linear(name + ".up", x)
        match self.config.mlp:
            case "swiglu":
                gate, value = h.chunk(2, -1)
                h = gate * torch.sigmoid(gate) * value
            case "relu":
                h = h.clamp(min=0.0)
            case "relu2":
                h = h.clamp(min=0.0) ** 2
            case "gelu":
                h = 0.5 * h * (1.0 + torch.erf(h / math.sqrt(2.0)))
            case "gelu-tanh":
                h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * h**3)))
        return self._linear(name + ".down", h)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if self.config.norm == "none":
            return x
        if self.config.norm == "rmsnorm":
            return self._rms(name, x)
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * self.weights[name + ".weight"] + self.weights.get(name + ".bias", torch.zeros(()))

    def _rms(self, name: str, x: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * self.weights[name + ".weight"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        """Return x W^T + b; or x, if the model does not have this layer."""
        weight = self.weights.get(name + ".weight")
        return x if weight is None else x @ weight.T + self.weights.get(name + ".bias", torch.zeros(()))

    def _head(self, x: Tensor) -> Tensor:
        if self.config.head == "none":
            return x
        weight = self.weights["token_table.weight" if self.config.head == "tied" else "head.weight"]
        return x @ weight.T + self.weights.get("head.bias", torch.zeros(()))

    def _recurrent(self, ids: Tensor) -> Tensor:
        x = self.weights["token_table.weight"][ids]
        for layer in range(self.config.n_layer):
            hidden, cell = x.new_zeros(self.config.n_embd), x.new_zeros(self.config.n_embd)
            outputs = []
            for one in x:
                hidden, cell = self._cell(layer, one, hidden, cell)
                outputs.append(hidden)
            x = torch.stack(outputs)
        return x

    def _cell(self, layer: int, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one step of one recurrent layer; gates are in PyTorch's order: i f g o, or r z n."""
        w = {kind: self.weights[f"layers.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        read, kept = w["weight_ih"] @ x + w["bias_ih"], w["weight_hh"] @ hidden + w["bias_hh"]
        match self.config.architecture:
            case "lstm":
                i, f, g, o = (read + kept).chunk(4)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                return torch.sigmoid(o) * torch.tanh(cell), cell
            case "gru":
                (a, b, c), (d, e, f) = read.chunk(3), kept.chunk(3)
                update = torch.sigmoid(b + e)
                return (1.0 - update) * torch.tanh(c + torch.sigmoid(a + d) * f) + update * hidden, cell
            case _:
                return torch.tanh(read + kept), cell


def _signed(number: int) -> int:
    """Interpret an unsigned 64-bit integer as two's complement."""
    return number - 2**64 if number >= 2**63 else number


EPSILON = 1e-8
"""AdamW's epsilon, in every recipe."""


def reference_update(
    model: LanguageModel, train: TrainConfig, steps: int, gradients: Callable[[LanguageModel, int], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Train a copy of the model with the run's optimizer, clipping and schedule; return its weights by name.

    AdamW: Loshchilov and Hutter 2019, algorithm 2. Muon: Jordan et al. 2024, for the matrices of linear and recurrent
    layers except the head. AdaGrad: Duchi et al. 2011, with one sum per row, for tables of hashed n-grams.

    Args:
        model: the initial model; it is not changed.
        train: training settings.
        steps: number of steps.
        gradients: function of a model and a step that returns the gradients of the loss by parameter name.
    """
    model = copy.deepcopy(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams)}
    hashed = {id(m.weight) for m in model.modules() if isinstance(m, HashedNgrams)}
    memory = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    for step in range(steps):
        slopes = gradients(model, step)
        shrink = shrinking(length(slopes), train.grad_clip) if train.grad_clip else 1.0
        share = rate_at(train, step, steps) / train.learning_rate
        with torch.no_grad():
            for name, p in model.named_parameters():
                g, (m, v) = slopes[name] * shrink, memory[name]
                is_matrix = p.ndim > 1 and id(p) not in tables
                decays = train.weight_decay * (train.decay == "all" or is_matrix)
                if id(p) in hashed:
                    _adagrad(p, g, v, train.table_learning_rate * share)
                elif train.optimizer == "muon" and is_matrix and name != "head.weight":
                    _muon(p, g, m, train, train.matrix_learning_rate * share)
                else:
                    _adamw(p, g, m, v, train, step, train.learning_rate * share, decays)
    return {name: p.detach() for name, p in model.named_parameters()}


def _adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, train: TrainConfig, step: int, rate: float, decay: float
) -> None:
    m.copy_(train.beta1 * m + (1 - train.beta1) * g)
    v.copy_(train.beta2 * v + (1 - train.beta2) * g * g)
    ahead = m / (1 - train.beta1 ** (step + 1)) / ((v / (1 - train.beta2 ** (step + 1))).sqrt() + EPSILON)
    p.copy_(p - rate * decay * p - rate * ahead)


def _muon(p: Tensor, g: Tensor, m: Tensor, train: TrainConfig, rate: float) -> None:
    m.copy_(train.momentum * m + (1 - train.momentum) * g)
    x = train.momentum * m + (1 - train.momentum) * g
    x = x / (x.pow(2).sum().sqrt() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    p.copy_(p - rate * train.weight_decay * p - rate * math.sqrt(max(1.0, p.shape[0] / p.shape[1])) * x)


def _adagrad(p: Tensor, g: Tensor, v: Tensor, rate: float) -> None:
    for row in g.abs().sum(1).nonzero()[:, 0].tolist():
        v[row] += g[row].pow(2).mean()
        p[row] -= rate * g[row] / v[row].sqrt()


def rate_at(train: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of a step by the schedules' formulas."""
    warm = min(train.warmup_steps, total // 2)
    if step < warm:
        return train.learning_rate / warm * (step + 1)
    done = (step - warm) / max(1, total - warm)
    shape = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "wsd": min(1.0, (1 - done) / train.decay_fraction),
        "inverse-root": math.sqrt(max(1, warm) / (step + 1)),
    }[train.schedule]
    lowest = train.learning_rate * train.final_lr_fraction
    return lowest + (train.learning_rate - lowest) * shape


def length(slopes: dict[str, Tensor]) -> float:
    """Return the norm of all gradients together."""
    return float(torch.stack([torch.linalg.vector_norm(g) for g in slopes.values()]).norm())


def shrinking(size: float, most: float) -> float:
    """Return the factor that clips a gradient of norm `size` to `most`; 1e-6 prevents division by 0, as in PyTorch."""
    return min(1.0, most / (size + 1e-6))
