"""The decoder: its formulas, causality, and the equality of its three paths (fused, traced, cached)."""

import math
from typing import Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from axes import every_caching_config, every_config, every_recipe
from gptloom.config.load import parse, read_recipe
from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX
from gptloom.fast import decode, decode_numpy, decode_torch
from gptloom.fast.decode import Stepper
from gptloom.fast.decode_torch import MANY
from gptloom.model.build import build_model
from gptloom.model.cache import Cache, Context, Trace
from gptloom.model.layers import MLP, CausalMean, make_norm, rotary_table, rotate, rotation_at, sinusoids
from gptloom.model.loss import Objective
from gptloom.model.transformer import Decoder, EncoderDecoder, cut_rows
from model_helpers import CONFIGS, SMALL, build, call, random_ids, rows_of

T = SMALL["block_size"]


def test_the_list_of_models_takes_every_choice():
    for field, info in ModelConfig.model_fields.items():
        if field in ("architecture", "tables"):  # the other architectures are in test_architectures.py
            continue
        if get_origin(info.annotation) is Literal:
            assert {getattr(c, field) for c in CONFIGS.values()} == set(get_args(info.annotation)), field
        if info.annotation is bool:
            assert {getattr(c, field) for c in CONFIGS.values()} == {True, False}, field


# --- what it computes: the textbook, spelled out in float64 ---------------------------------------


def textbook(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Logits (t, v) of one text (t,) by the formulas of the papers; only the weights are the model's."""
    c, w = model.config, {name: p.detach().double() for name, p in model.named_parameters(remove_duplicate=False)}
    t = len(ids)
    past = torch.ones(t, t, dtype=torch.float64).tril()

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(name, x, kind=c.norm):
        if kind == "none":
            return x
        if kind == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + (1e-5 if kind == "layernorm" else 1e-6)).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)

    def turn(x):
        """Su et al. 2021, as a product of complex numbers: features i and i + d/2 are the real and imaginary parts."""
        half = x.shape[-1] // 2
        angle = torch.tensor(
            [[p * c.rope_theta ** (-2 * i / x.shape[-1]) for i in range(half)] for p in range(t)], dtype=torch.float64
        )
        z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), -1)

    def attention(name, x):
        d, g = c.width_per_head, c.kv_heads
        columns = linear(f"{name}.qkv", x).split(d, dim=-1)
        queries, keys, values = columns[: c.n_head], columns[c.n_head : c.n_head + g], columns[c.n_head + g :]
        heads = []
        for h, q in enumerate(queries):
            k, v = keys[h * g // c.n_head], values[h * g // c.n_head]
            if c.qk_norm:
                q, k = norm(f"{name}.query_norm", q, "rmsnorm"), norm(f"{name}.key_norm", k, "rmsnorm")
            if c.positions == "rotary":
                q, k = turn(q), turn(k)
            likeness = (q @ k.T / math.sqrt(d if c.score_scale == "head" else c.n_embd)).exp() * past
            heads.append(likeness / likeness.sum(-1, keepdim=True) @ v)
        return torch.cat(heads, -1)

    def mlp(name, x):
        x = linear(f"{name}.up", x)
        if c.mlp == "swiglu":
            gate, x = x[:, : c.hidden_width], x[:, c.hidden_width :]
            x = gate / (1 + (-gate).exp()) * x
        elif c.mlp == "gelu":
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        elif c.mlp == "gelu-tanh":
            x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        else:
            x = x.clamp(min=0) ** (2 if c.mlp == "relu2" else 1)
        return linear(f"{name}.down", x)

    x = w["token_table.weight"][ids]
    if c.positions == "learned":
        x = x + w["position_table.weight"][:t]
    if c.positions == "sinusoidal":
        waves = [
            [(math.cos if i % 2 else math.sin)(p / 10_000 ** ((i - i % 2) / c.n_embd)) for i in range(c.n_embd)]
            for p in range(t)
        ]
        x = x + torch.tensor(waves, dtype=torch.float64)
    if c.ngrams > 1:
        x = x + torch.stack(
            [w["ngrams.weight"][found].sum(0) for found in rows_of(ids.tolist(), c.ngrams, c.ngram_rows)]
        )
    for n in range(c.n_layer):
        mixer = f"blocks.{n}.mixer"
        mix = (lambda name, y: past / past.sum(-1, keepdim=True) @ y) if c.mixer == "mean" else attention
        steps = (
            []
            if c.mixer == "none"
            else [("norm1", lambda y, m=mixer, f=mix: linear(f"{m}.out", f(m, y)) if c.output_projection else f(m, y))]
        )
        steps += [] if c.mlp == "none" else [("norm2", lambda y, n=n: mlp(f"blocks.{n}.mlp", y))]
        for name, branch in steps:
            name = f"blocks.{n}.{name}"
            out = branch(norm(name, x) if c.norm_position == "pre" else x) + (x if c.residual == "add" else 0.0)
            x = norm(name, out) if c.norm_position == "post" else out
    if c.head == "none":
        return x
    return linear("head", norm("final_norm", x) if c.norm_position == "pre" else x)


@every_config
def test_logits_are_those_of_the_textbook_formulas(name):
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    with torch.no_grad():
        logits = model(ids)
    assert logits.shape == (2, T, SMALL["vocab_size"])
    assert logits.std() > 0.3  # the comparison is meaningful
    expected = torch.stack([textbook(model, row) for row in ids])
    torch.testing.assert_close(logits.double(), expected, atol=2e-5, rtol=1e-5)


# --- no position sees the future ------------------------------------------------------------------


@every_config
def test_no_position_sees_the_future(name):
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    before = call(model, ids)
    for j in range(T):
        changed = ids.clone()
        changed[:, j] = (ids[:, j] + 1) % SMALL["vocab_size"]
        for trace in (None, Trace()):
            after = call(model, changed, trace=trace)
            torch.testing.assert_close(after[:, :j], before[:, :j], atol=1e-5, rtol=1e-5)
            assert ((after - before)[:, j].abs().amax(-1) > 1e-3).all()  # the token itself counts
        flows = CONFIGS[name].mixer != "none" and CONFIGS[name].n_layer > 0
        assert ((after - before)[:, -1].abs().max() > 1e-5) == (
            flows or j == T - 1
        )  # and, with a mixer, later positions, too


@every_config
def test_no_position_of_a_cached_call_sees_what_follows(name):
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % SMALL["vocab_size"]
    logits = []
    for text in (ids, changed):
        state = model.init_cache(2, T)
        logits.append(
            torch.cat([call(model, text[:, a:b], cache=state) for a, b in ((0, 3), (3, 5), (5, 9), (9, 10))], dim=1)
        )
        torch.testing.assert_close(logits[-1], call(model, text), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[0][:, :4], logits[1][:, :4], atol=1e-5, rtol=1e-5)
    assert (logits[0] - logits[1])[:, 4].abs().max() > 1e-3


# --- the traced path ------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("cached", [False, True])
def test_a_trace_is_complete_and_changes_nothing(name, cached):
    config, ids = CONFIGS[name], random_ids(3, T)
    model = build(config)
    plain, traced = (model.init_cache(3, T), model.init_cache(3, T)) if cached else (None, None)
    for start, stop in ((0, 6), (6, 7), (7, T)) if cached else ((0, T),):
        trace = Trace()
        logits = call(model, ids[:, start:stop], cache=traced, trace=trace)
        torch.testing.assert_close(logits, call(model, ids[:, start:stop], cache=plain), atol=1e-5, rtol=1e-5)
        assert len(trace.stream) == config.n_layer + 1
        assert all(x.shape == (3, stop - start, config.stream_width) for x in trace.stream)
        torch.testing.assert_close(call_tail(model, trace.stream[-1]), logits, atol=1e-6, rtol=0)
        assert len(trace.attention) == (config.n_layer if config.mixer != "none" else 0)
        for weights in trace.attention:
            assert weights.shape == (3, config.n_head if config.mixer == "attention" else 1, stop - start, stop)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0)
            assert weights.min() >= 0
            assert (weights.triu(start + 1) == 0).all()


def call_tail(model: Decoder, stream: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.unembed(model.final_norm(stream))


def test_a_ragged_trace_looks_at_each_row_s_own_past():
    for name in ("modern", "mean"):
        model, state = build(CONFIGS[name]), build(CONFIGS[name]).init_cache(2, T)
        call(model, random_ids(2, 5), cache=state, counts=[2, 5])
        trace = Trace()
        call(model, random_ids(2, 2, seed=1), cache=state, trace=trace)
        for weights in trace.attention:
            assert weights.shape[-1] == 7
            for row, length in enumerate((2, 5)):
                for step in range(2):
                    seen = weights[row, :, step]
                    assert (seen[:, length + step + 1 :] == 0).all()
                    assert (seen[:, : length + step + 1] > 0).all()
                    torch.testing.assert_close(seen.sum(-1), torch.ones(len(seen)), atol=1e-5, rtol=0)


# --- the cached path ------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("seed", range(3))
def test_ragged_pieces_read_with_a_state_give_the_logits_of_the_whole(name, seed):
    """Rows advance by 0 to 4 tokens per call; padding tokens on the right must have no effect."""
    model, ids = build(CONFIGS[name]), random_ids(3, T, seed=seed)
    whole, state = call(model, ids), model.init_cache(3, T)
    random = torch.Generator().manual_seed(seed)
    have = [0, 0, 0]
    while min(have) < T:
        counts = [min(T - h, int(torch.randint(5, (1,), generator=random))) for h in have]
        widest = max(counts)
        if not widest or max(have) + widest > T:  # equal rows with padding beyond the room have a separate test below
            counts = [int(h < T) for h in have]
            widest = 1
        piece = torch.full((3, widest), 7)
        for row, (h, n) in enumerate(zip(have, counts, strict=True)):
            piece[row, :n] = ids[row, h : h + n]
        uniform = min(counts) == widest
        logits = call(model, piece, cache=state, counts=None if uniform else counts)
        for row, (h, n) in enumerate(zip(have, counts, strict=True)):
            torch.testing.assert_close(logits[row, :n], whole[row, h : h + n], atol=1e-5, rtol=1e-5)
        have = [h + n for h, n in zip(have, counts, strict=True)]
        assert state.lengths == have


@pytest.mark.parametrize("name", ["gpt2", "modern", "mean"])
@pytest.mark.parametrize(
    ("room", "lengths", "counts"),
    [
        (T, (7, 7), (1, 3)),
        (T, (6, 8), (2, 2)),
        (T, (0, 0), (9, 10)),
        (T, (9, 9), (1, 1)),
        (T, (9, 10), (1, 0)),
        (8, (5, 5), (1, 2)),
        (8, (0, 0), (3, 8)),
    ],
)
def test_padding_may_reach_beyond_the_room_of_a_state(name, room, lengths, counts):
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    whole, state = call(model, ids), model.init_cache(2, room)
    if max(lengths):
        call(model, ids[:, : max(lengths)], cache=state, counts=lengths)
    piece = torch.zeros(2, max(counts) + 2, dtype=torch.int64)
    for row, (h, n) in enumerate(zip(lengths, counts, strict=True)):
        piece[row, :n] = ids[row, h : h + n]
    logits = call(model, piece, cache=state, counts=counts)
    for row, (h, n) in enumerate(zip(lengths, counts, strict=True)):
        torch.testing.assert_close(logits[row, :n], whole[row, h : h + n], atol=1e-5, rtol=1e-5)


@every_caching_config
def test_rows_of_a_state_can_be_taken_and_put(name):
    """Rows 2, 0, 2 of three continue; then the middle one is replaced by another text."""
    model, ids = build(CONFIGS[name]), random_ids(3, T)
    state = model.init_cache(3, T)
    call(model, ids[:, :6], cache=state, counts=[2, 4, 6])
    state.select([2, 0, 2])
    assert state.lengths == [6, 2, 6]
    other = model.init_cache(1, T)
    new = random_ids(1, 5, seed=9)
    call(model, new[:, :4], cache=other)
    state.write([1], other)
    assert state.lengths == [6, 4, 6]
    logits = call(model, torch.stack((ids[2, 6], new[0, 4], ids[0, 0]))[:, None], cache=state)
    texts = [ids[2, :7], new[0], torch.cat((ids[2, :6], ids[0, :1]))]
    for row, text in enumerate(texts):
        torch.testing.assert_close(logits[row, 0], call(model, text[None])[0, -1], atol=1e-5, rtol=1e-5)


@every_config
@pytest.mark.parametrize(("rows", "large"), [(1, False), (1, True), (3, False), (MANY, True)])
def test_the_straight_lines_are_the_decoder_s(name, rows, large, monkeypatch):
    """For one row, a few and many, as if the model were large, alternating with the decoder, and from a prompt."""
    if large:
        for place, limit in ((decode_torch, "LARGE"), (decode_numpy, "LARGE"), (decode, "CACHED")):
            monkeypatch.setattr(place, limit, 1)
    model, ids = build(CONFIGS[name]), random_ids(rows, T)
    step, state, whole = Stepper(model), model.init_cache(rows, T), call(model, ids)
    assert isinstance(step.single, decode.Line)  # one row has separate code
    for begin, length in ((0, 1), (1, 1), (2, 1), (3, None), (4, 1), (5, 1)):
        if length is None:
            torch.testing.assert_close(
                call(model, ids[:, begin : begin + 1], cache=state), whole[:, begin : begin + 1], atol=1e-5, rtol=1e-5
            )
        else:
            torch.testing.assert_close(
                step(ids[:, begin : begin + 1].tolist(), state), whole[:, begin], atol=1e-5, rtol=1e-5
            )
    assert state.lengths == [6] * rows
    state.clear()
    torch.testing.assert_close(step(ids[:, :8].tolist(), state), whole[:, 7], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step(ids[:, 8:9].tolist(), state), whole[:, 8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(call(model, ids[:, 9:], cache=state), whole[:, 9:], atol=1e-5, rtol=1e-5)
    state.clear()  # the oldest token is forgotten, by the decoder, too
    torch.testing.assert_close(step(ids[:, :1].tolist(), state), whole[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(call(model, ids[:, 1:], cache=state), whole[:, 1:], atol=1e-5, rtol=1e-5)
    state.clear()
    torch.testing.assert_close(call(model, ids[:, :9], cache=state), whole[:, :9], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step(ids[:, 9:].tolist(), state), whole[:, 9], atol=1e-5, rtol=1e-5)


def test_a_repeated_row_does_not_share_its_memory():
    model, ids = build(CONFIGS["gpt2"]), random_ids(1, T)
    state = model.init_cache(1, T)
    call(model, ids[:, :3], cache=state)
    state.select([0, 0])
    call(model, torch.tensor([[1], [2]]), cache=state)
    logits = call(model, torch.tensor([[5], [5]]), cache=state)
    for row, one in enumerate((1, 2)):
        text = torch.cat((ids[0, :3], torch.tensor([one, 5])))[None]
        torch.testing.assert_close(logits[row, 0], call(model, text)[0, -1], atol=1e-5, rtol=1e-5)


def test_too_many_tokens_are_refused():
    model = build(CONFIGS["gpt2"])
    with pytest.raises(ValueError, match=f"{T + 1} tokens do not fit block_size={T}"):
        model(random_ids(1, T + 1))
    with pytest.raises(ValueError, match=f"block_size={T}"):
        model.init_cache(1, T + 1)
    state = model.init_cache(2, 6)
    call(model, random_ids(2, 4), cache=state, counts=[4, 1])
    with pytest.raises(ValueError, match="7 tokens do not fit a cache of 6"):
        call(model, random_ids(2, 3), cache=state)
    assert state.lengths == [4, 1]


def test_cut_rows_takes_each_row_s_last_real_token():
    hidden = torch.arange(24.0).view(2, 4, 3)
    assert cut_rows(hidden, [1, 4]).tolist() == [[0.0, 1.0, 2.0], [21.0, 22.0, 23.0]]


# --- the parts ------------------------------------------------------------------------------------


def test_grouped_queries_are_heads_that_share_their_keys_and_values():
    """The same model with every key and value head repeated n_head / n_kv_head times."""
    grouped = build(CONFIGS["modern"])
    full = build(CONFIGS["modern"].model_copy(update={"n_kv_head": None}))
    tensors = grouped.state_dict()
    heads, shared, d = 4, 2, CONFIGS["modern"].width_per_head
    for name in [n for n in tensors if n.endswith("qkv.weight")]:
        q, k, v = tensors[name].split([heads * d, shared * d, shared * d])
        k, v = (m.view(shared, d, -1).repeat_interleave(heads // shared, dim=0).flatten(0, 1) for m in (k, v))
        tensors[name] = torch.cat((q, k, v))
    full.load_state_dict(tensors)
    ids = random_ids(2, T)
    torch.testing.assert_close(call(grouped, ids), call(full, ids), atol=1e-5, rtol=1e-5)
    assert grouped.init_cache(1, T).layers[0]["keys"].shape[1] == shared  # and the cache is smaller by the same factor


def test_the_causal_mean_in_three_ways():
    """The lecture's derivation: a loop, a product with a triangular matrix, and the softmax of masked zeros."""
    config = ModelConfig(**SMALL, mixer="mean", output_projection=False)
    x = torch.randn(3, T, 16, generator=torch.Generator().manual_seed(0))
    context = Context()
    context.place(T, x.device)
    out = CausalMean(config)(x, context, None)
    loop = torch.stack([torch.stack([x[b, : t + 1].mean(0) for t in range(T)]) for b in range(3)])
    tril = torch.tril(torch.ones(T, T))
    product = tril / tril.sum(1, keepdim=True) @ x
    softmax = torch.zeros(T, T).masked_fill(tril == 0, float("-inf")).softmax(-1) @ x
    for other in (loop, product, softmax):
        torch.testing.assert_close(out, other, atol=1e-6, rtol=0)


@given(shift=st.integers(0, 40), query=st.integers(0, 20), key=st.integers(0, 20))
def test_rotary_scores_depend_on_the_distance_alone(shift, query, key):
    table = rotary_table(64, 8, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(m, n):
        turned = [rotate(x, rotation_at(table, torch.tensor([p]))) for x, p in ((q, m), (k, n))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(query + shift, key + shift), score(query, key), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(q, rotation_at(table, torch.tensor([query]))).norm(), q.norm())


def test_rotary_angles_keep_their_precision_far_out():
    cos, sin = rotary_table(4096, 4, 1e6)
    expected = [math.cos(4095), math.cos(4095 * 1e6**-0.5)] * 2
    assert cos[-1].tolist() == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(4096, 4), atol=1e-6, rtol=0)
    assert not torch.allclose(cos[1], cos[2])


def test_norms_by_hand():
    x = torch.tensor([[3.0, -1.0, 2.0, 0.0]])
    layer = make_norm(ModelConfig(n_embd=4, n_head=1))(x)
    rms = make_norm(ModelConfig(n_embd=4, n_head=1, norm="rmsnorm"))(x)
    # mean 1, variance 10 / 4; mean square 14 / 4
    torch.testing.assert_close(layer, torch.tensor([[2.0, -2.0, 1.0, -1.0]]) / math.sqrt(2.5 + 1e-5))
    torch.testing.assert_close(rms, x / math.sqrt(3.5 + 1e-6))
    assert make_norm(ModelConfig(n_embd=4, n_head=1, norm="none"))(x) is x


@pytest.mark.parametrize(("mlp", "width"), [("relu", 64), ("gelu", 64), ("relu2", 64), ("swiglu", 48)])
def test_the_mlp_s_default_width(mlp, width):
    """4 n_embd; for SwiGLU 8/3 n_embd rounded up to a multiple of 8, for as many weights (Shazeer 2020)."""
    config = ModelConfig(n_embd=16, n_head=2, mlp=mlp)
    assert config.hidden_width == MLP(config).down.in_features == width


def test_sinusoids_start_with_zeros_and_ones():
    table = sinusoids(5, 6)
    assert table[0].tolist() == [0.0, 1.0] * 3
    assert table[3, 0].item() == pytest.approx(math.sin(3))
    assert table[3, 3].item() == pytest.approx(math.cos(3 / 10_000 ** (2 / 6)))


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", ["dropout", "attn_dropout", "embd_dropout"])
def test_each_dropout_acts_in_training_and_only_there(only):
    off = {"dropout": 0.0, "attn_dropout": 0.0, "embd_dropout": 0.0}
    model, ids = build(ModelConfig(**SMALL, **off | {only: 0.5})), random_ids(2, T)
    clean = call(build(ModelConfig(**SMALL, **off)), ids)
    torch.testing.assert_close(
        call(model, ids), clean, atol=1e-5, rtol=1e-5
    )  # without dropout, the order of addition differs
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second, traced = call(model, ids), call(model, ids), call(model, ids, trace=Trace())
    for a, b in ((first, clean), (first, second), (traced, clean)):
        assert (a - b).abs().max() > 0.01
    model.eval()
    torch.testing.assert_close(call(model, ids), clean, atol=1e-5, rtol=1e-5)


def test_dropout_stands_in_for_the_two_that_are_not_given():
    model = Decoder(ModelConfig(**SMALL, dropout=0.4))
    assert model.dropout.p == 0.4
    assert model.blocks[0].mixer.drop_weights == 0.4
    model = Decoder(ModelConfig(**SMALL, dropout=0.4, attn_dropout=0.0, embd_dropout=0.1))
    assert (model.dropout.p, model.blocks[0].mixer.drop_weights) == (0.1, 0.0)


# --- the objective --------------------------------------------------------------------------------


def test_the_objective_sums_nats_over_the_targets_that_count():
    model, ids, targets = build(CONFIGS["gpt2"]), random_ids(2, T), random_ids(2, T, seed=1)
    targets[0, 3:6] = IGNORE_INDEX
    with torch.no_grad():
        nats, count = Objective(model)(ids, targets)
    logprobs = call(model, ids).double().log_softmax(-1)
    expected = -sum(logprobs[b, t, targets[b, t]] for b in range(2) for t in range(T) if targets[b, t] != IGNORE_INDEX)
    assert int(count) == 2 * T - 3
    assert float(nats) == pytest.approx(float(expected), rel=1e-6)


@every_config
def test_every_parameter_gets_a_gradient(name):
    model = build(CONFIGS[name])
    nats, _ = Objective(model)(random_ids(3, T), random_ids(3, T, seed=1))
    nats.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# --- recipes and counts ---------------------------------------------------------------------------

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of "
    "darkness, it was the spring of hope, it was the winter of despair."
)


@every_recipe
def test_the_first_loss_is_that_of_guessing(recipe):
    """Within 0.1 nats of ln(vocab_size) for every seed; on text, for repeated tokens show errors of a tied head."""
    losses = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(6 if "vocab_size" not in read_recipe(recipe)["model"] else 1):
            torch.manual_seed(seed)
            model = build_model(parse(ModelConfig, read_recipe(recipe)["model"], where=recipe)).eval()
            vocab = model.config.vocab_size
            words = list(PROSE) if vocab < 1000 else PROSE.split()
            numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
            ids = torch.tensor([(7919 * numbers[word]) % vocab for word in words])
            pieces = list(zip(ids[:-1].split(64), ids[1:].split(64), strict=True))
            with torch.no_grad():
                logits = [
                    model(x[None], x[None]) if isinstance(model, EncoderDecoder) else model(x[None]) for x, _ in pieces
                ]
            losses.append(
                sum(
                    F.cross_entropy(row[0], y, reduction="sum").item()
                    for row, (_, y) in zip(logits, pieces, strict=True)
                )
                / (len(ids) - 1)
            )
    assert losses == pytest.approx([math.log(vocab)] * len(losses), abs=0.1)


def count(recipe: str, **changes) -> int:
    with torch.device("meta"):
        return Decoder.from_recipe(recipe, **changes).parameter_count()


def test_parameter_counts_of_known_models():
    assert count("gpt2") == 124_439_808  # Radford et al. 2019, as counted in the released weights
    assert count("modern") == pytest.approx(124e6, rel=0.02)
    # nanoGPT prints 10.65M for its baby GPT: without the position table, with vocabulary 65
    assert count("baby", vocab_size=65) - 256 * 384 == 10_646_784


@every_config
def test_a_tied_head_counts_once_and_is_the_token_table(name):
    model = build(CONFIGS[name])
    assert model.parameter_count() == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    tied = CONFIGS[name].head == "tied"
    assert (model.head is not None and model.head.weight is model.token_table.weight) == tied
    saved = model.state_dict()
    assert not any("rotary" in key or "sinusoids" in key for key in saved)


def test_gpt2_initial_weights_have_the_published_spread():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder(ModelConfig(vocab_size=97, block_size=64, n_layer=4, n_head=4, n_embd=128))
    spread = {
        "qkv": 0.02,
        "up": 0.02,
        "out": 0.02 / 8**0.5,
        "down": 0.02 / 8**0.5,
        "token_table": 0.02,
        "position_table": 0.02,
        "head": 0.02,
    }
    for name, p in model.named_parameters():
        owner, kind = name.split(".")[-2:]
        if owner == "final_norm" and kind == "weight":
            assert p.tolist() == pytest.approx(
                [0.1 / (0.02 * 128**0.5)] * 128
            )  # so that the first logits have a standard deviation of 0.1
        elif "norm" in owner:
            assert (p == (1.0 if kind == "weight" else 0.0)).all()
        elif kind == "bias":
            assert (p == 0).all(), name
        else:
            assert float(p.detach().std()) == pytest.approx(spread[owner], rel=0.05), name
            assert abs(float(p.detach().mean())) < 0.002, name


def test_zero_projection_starts_every_block_as_the_identity():
    model, trace = Decoder(CONFIGS["tiny"]), Trace()
    logits = call(model, random_ids(1, T), trace=trace)
    assert all(torch.equal(x, trace.stream[0]) for x in trace.stream)
    assert (logits == 0).all()


def test_the_weights_depend_on_torch_s_seed_alone():
    def weights(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.cat([p.detach().flatten() for p in Decoder(CONFIGS["modern"]).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_state_is_empty_at_first():
    state = build(CONFIGS["modern"]).init_cache(3, 4)
    assert isinstance(state, Cache)
    assert (state.lengths, state.capacity, len(state.layers)) == ([0, 0, 0], 4, 2)
