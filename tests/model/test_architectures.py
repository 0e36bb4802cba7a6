"""The other architectures: the encoder, the encoder-decoder, and the recurrent models."""

import math

import pytest
import torch
import torch.nn.functional as F

from axes import every_recurrent
from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX, SampleConfig
from gptloom.errors import ConfigError
from gptloom.generate.batch import DecodeBatch
from gptloom.generate.seq2seq import beam_search, condition, translate
from gptloom.model.build import build_model
from gptloom.model.cache import Context, EncoderOutput, Trace
from gptloom.model.loss import Objective
from gptloom.model.ngram import HashedNgrams
from gptloom.model.recurrent import Recurrent
from gptloom.model.transformer import Decoder, EncoderDecoder
from gptloom.reference.build import copy_weights, plain_model, to_decoder

V, T = 13, 10
SMALL = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 16, "init": "pytorch"}
ORIGINAL = {"architecture": "encoder-decoder", "norm_position": "post", "positions": "sinusoidal", "mlp": "relu"}
PAIRS = {
    "original": ORIGINAL,
    "shared": ORIGINAL | {"tables": "shared", "head": "tied"},
    "modern": {
        "architecture": "encoder-decoder",
        "positions": "rotary",
        "norm": "rmsnorm",
        "qk_norm": True,
        "n_kv_head": 2,
        "bias": "none",
        "mlp": "swiglu",
    },
    "n-grams": {"architecture": "encoder-decoder", "ngrams": 3, "ngram_rows": 50},
}

every_translator = pytest.mark.parametrize("name", PAIRS)


def make(**fields):
    torch.manual_seed(0)
    model = build_model(ModelConfig(**(SMALL | fields))).eval()
    for module in model.modules():
        if isinstance(module, HashedNgrams):
            torch.nn.init.normal_(module.weight)  # it is initialized to zero, which would hide its effect
    return model


def ids(batch, length, seed=0):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


# --- the encoder ----------------------------------------------------------------------------------


def test_an_encoder_is_a_decoder_without_the_mask_and_with_one_row_more():
    encoder, decoder = make(architecture="encoder"), make()
    tensors = encoder.state_dict()
    assert tensors["token_table.weight"].shape == (V + 1, 16)
    decoder.load_state_dict(tensors | {"token_table.weight": tensors["token_table.weight"][:V]})
    x = ids(2, T)
    free = Context()
    free.open(torch.ones(2, T, dtype=torch.bool))
    unmasked = decoder.token_table(x) + decoder.position_table(torch.arange(T))
    for block in decoder.blocks:
        unmasked = block(unmasked, free)
    torch.testing.assert_close(encoder(x), decoder.unembed(decoder.final_norm(unmasked)))
    assert not torch.allclose(encoder(x)[:, 0], decoder(x)[:, 0])  # the first position sees the others now


def test_an_encoder_sees_both_sides_and_no_padding():
    encoder = make(architecture="encoder")
    x = ids(1, 6)
    changed = x.clone()
    changed[0, 5] = (x[0, 5] + 1) % V
    assert not torch.allclose(encoder(x)[:, 0], encoder(changed)[:, 0])
    padded = torch.cat((x, torch.full((1, 4), -1)), dim=1)
    torch.testing.assert_close(encoder(padded)[:, :6], encoder(x))


# --- the encoder-decoder --------------------------------------------------------------------------


def textbook_translate(model, source, inputs):
    """The first Transformer's forward pass for one pair, by the paper's formulas; only the weights are the model's."""
    w = dict(model.named_parameters())
    if "encoder.token_table.weight" not in w:
        w["encoder.token_table.weight"] = w["token_table.weight"]
    heads, width = 4, 4

    def sinusoid(n):
        return torch.tensor(
            [
                [
                    math.sin(p / 10_000 ** (c / 16)) if c % 2 == 0 else math.cos(p / 10_000 ** ((c - 1) / 16))
                    for c in range(16)
                ]
                for p in range(n)
            ]
        )

    def norm(x, name):
        return F.layer_norm(x, (16,), w[name + ".weight"], w[name + ".bias"])

    def attention(q, k, v, allowed):
        rows = []
        for h in range(heads):
            s = slice(h * width, (h + 1) * width)
            scores = (q[:, s] @ k[:, s].T / math.sqrt(width)).masked_fill(~allowed, float("-inf"))
            rows.append(scores.softmax(-1) @ v[:, s])
        return torch.cat(rows, dim=-1)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def block(x, name, allowed, memory=None):
        q, k, v = linear(x, name + ".mixer.qkv").split(16, dim=-1)
        x = norm(x + linear(attention(q, k, v, allowed), name + ".mixer.out"), name + ".norm1")
        if memory is not None:
            k, v = linear(memory, name + ".cross.kv").split(16, dim=-1)
            everything = torch.ones(len(x), len(memory), dtype=torch.bool)
            x = norm(
                x + linear(attention(linear(x, name + ".cross.query"), k, v, everything), name + ".cross.out"),
                name + ".norm_cross",
            )
        return norm(x + linear(linear(x, name + ".mlp.up").relu(), name + ".mlp.down"), name + ".norm2")

    s, t = len(source), len(inputs)
    memory = w["encoder.token_table.weight"][source] + sinusoid(s)
    for i in range(2):
        memory = block(memory, f"encoder.blocks.{i}", torch.ones(s, s, dtype=torch.bool))
    x = w["token_table.weight"][inputs] + sinusoid(t)
    for i in range(2):
        x = block(x, f"blocks.{i}", torch.ones(t, t, dtype=torch.bool).tril(), memory)
    head = w.get("head.weight", w["token_table.weight"])
    return x @ head.T


@pytest.mark.parametrize("name", ["original", "shared"])
def test_the_first_transformer_is_the_papers(name):
    model = make(**PAIRS[name])
    source, inputs = ids(1, 7, seed=1), ids(1, 5, seed=2)
    torch.testing.assert_close(
        model(source, inputs)[0], textbook_translate(model, source[0], inputs[0]), atol=1e-5, rtol=1e-5
    )


def test_shared_tables_are_one():
    separate, shared = make(**PAIRS["original"]), make(**PAIRS["shared"])
    assert separate.parameter_count() - shared.parameter_count() == 2 * V * 16
    assert shared.encoder.token_table.weight is shared.token_table.weight is shared.head.weight


@every_translator
def test_a_source_counts_whole_and_its_padding_not_at_all(name):
    model, source, inputs = make(**PAIRS[name]), ids(2, 6, seed=1), ids(2, 5, seed=2)
    logits = model(source, inputs)
    padded = F.pad(source, (0, 4), value=-1)
    torch.testing.assert_close(model(padded, inputs), logits)
    changed = source.clone()
    changed[:, -1] = (source[:, -1] + 1) % V
    assert not torch.allclose(model(changed, inputs)[:, 0], logits[:, 0])
    later = inputs.clone()
    later[:, 3:] = (inputs[:, 3:] + 1) % V
    torch.testing.assert_close(model(source, later)[:, :3], logits[:, :3])  # and no position sees the target's future


@every_translator
def test_writing_step_by_step_equals_reading_at_once(name):
    model = make(**PAIRS[name])
    sources = [ids(1, n, seed=n)[0].tolist() for n in (3, 7, 5)]
    conditioned = condition(model, sources)
    inputs = ids(3, 6, seed=9)
    state = conditioned.init_cache(3, T)
    steps = [
        conditioned.unembed(conditioned.forward_hidden(inputs[:, t : t + 1], Context(cache=state))) for t in range(6)
    ]
    for row, source in enumerate(sources):
        whole = model(torch.tensor([source]), inputs[row : row + 1])[0]
        torch.testing.assert_close(torch.cat(steps, dim=1)[row], whole, atol=1e-5, rtol=1e-5)


@every_translator
def test_asking_for_a_trace_changes_nothing_and_its_rows_sum_to_one(name):
    model, sources, inputs = make(**PAIRS[name]), F.pad(ids(2, 4, seed=1), (0, 2), value=-1), ids(2, 5, seed=2)
    memory, trace = model.encode(sources), Trace()
    traced = model.unembed(model.forward_hidden(inputs, Context(memory=memory, trace=trace)))
    torch.testing.assert_close(traced, model(sources, inputs), atol=1e-5, rtol=1e-5)
    assert [tuple(weights.shape) for weights in trace.cross] == [(2, 4, 5, 6)] * 2
    for weights in trace.cross:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
        assert not weights[..., 4:].any()  # padding


def test_batched_translation_equals_one_by_one_and_beam_one_equals_greedy():
    model = make(**PAIRS["original"])
    sources = [ids(1, n, seed=n)[0].tolist() for n in (3, 8, 5, 3)]
    together = translate(model, sources, end=0, batch_size=3)
    for source, found in zip(sources, together, strict=True):
        assert translate(model, [source], end=0) == [found]
        beam = beam_search(
            condition(model, [source]), [0], SampleConfig(tokens=T - 1, beams=2, length_penalty=0.6), end=0
        )
        assert all(len(one) <= T - 1 for one, _ in beam)
        greedy_score = _score(model, source, found, 0.6)
        assert beam[0][1] >= greedy_score - 1e-4  # the wider search never has a lower score on these
        assert beam[0][1] == pytest.approx(
            _score(model, source, [one for one in beam[0][0] if one != 0], 0.6), abs=1e-4
        )


def _score(model, source, found, penalty):
    """log p(translation, end | source) / length ** penalty, in one pass."""
    ends = len(found) < T - 1
    targets = [*found, 0] if ends else found
    with torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([[0, *found][: len(targets)]]))[0].log_softmax(-1)
    return float(logits[torch.arange(len(targets)), torch.tensor(targets)].sum()) / len(targets) ** penalty


def test_cross_attention_without_a_memory_is_refused():
    model = make(**PAIRS["original"])
    with pytest.raises(ValueError, match=r"encoder.s output"):
        model.forward_hidden(ids(1, 3))
    with pytest.raises(ValueError, match="sources"):
        condition(model, [[1], [2]]).init_cache(3, T)


def test_label_smoothing_is_the_papers_mixture_and_only_in_training():
    model = make(**PAIRS["original"])
    sources, inputs, targets = ids(2, 4), ids(2, 5, seed=1), ids(2, 5, seed=2)
    targets[0, 3:] = IGNORE_INDEX
    objective = Objective(model, 0.1)
    logp = model(sources, inputs).log_softmax(-1)
    mixed = 0.0
    plain = 0.0
    for b in range(2):
        for t in range(5):
            if targets[b, t] != IGNORE_INDEX:
                wanted = torch.full((V,), 0.1 / V)
                wanted[targets[b, t]] += 0.9
                mixed -= (wanted * logp[b, t]).sum()
                plain -= logp[b, t, targets[b, t]]
    objective.train()
    model.eval()
    nats, count = objective(sources, inputs, targets)
    torch.testing.assert_close(nats, mixed)
    assert count == 8
    objective.eval()
    torch.testing.assert_close(objective(sources, inputs, targets)[0], plain)


# --- the recurrent models -------------------------------------------------------------------------


def textbook_recurrent(model, text):
    """Logits (t, v) of one text (t,), gate by gate, with the gates in PyTorch's order.

    See Elman (1990), Hochreiter and Schmidhuber (1997), and Cho et al. (2014).
    """
    w, kind, n = dict(model.named_parameters()), model.config.architecture, model.config.n_embd
    xs = list(w["token_table.weight"][text])
    for layer in range(model.config.n_layer):
        h, c, outs = torch.zeros(n), torch.zeros(n), []
        for x in xs:
            a = w[f"layers.weight_ih_l{layer}"] @ x + w[f"layers.bias_ih_l{layer}"]
            b = w[f"layers.weight_hh_l{layer}"] @ h + w[f"layers.bias_hh_l{layer}"]
            if kind == "rnn":
                h = torch.tanh(a + b)
            elif kind == "lstm":
                i, f, g, o = (a + b).split(n)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (r, z, new_a), (r2, z2, new_b) = a.split(n), b.split(n)
                r, z = torch.sigmoid(r + r2), torch.sigmoid(z + z2)
                h = (1 - z) * torch.tanh(new_a + r * new_b) + z * h
            outs.append(h)
        xs = outs
    return torch.stack(xs) @ w["head.weight"].T


@every_recurrent
def test_a_recurrent_model_is_the_textbooks(architecture):
    model, text = make(architecture=architecture, n_layer=3), ids(1, 12)
    torch.testing.assert_close(model(text)[0], textbook_recurrent(model, text[0]), atol=1e-5, rtol=1e-5)


@every_recurrent
def test_the_plain_recurrent_code_is_the_same_model_forward_and_backward(architecture):
    model = make(architecture=architecture, head_bias=True)
    plain = plain_model(architecture, model.config)
    copy_weights(plain, model)
    text, targets = ids(2, 7), ids(2, 7, seed=1).flatten()
    torch.testing.assert_close(model(text), plain(text), atol=1e-5, rtol=1e-5)
    F.cross_entropy(model(text).flatten(0, 1), targets).backward()
    F.cross_entropy(plain(text).flatten(0, 1), targets).backward()
    wanted = to_decoder(plain, {name: p.grad for name, p in plain.named_parameters()})
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], atol=1e-5, rtol=1e-4)


@every_recurrent
def test_rows_of_different_lengths_go_on_each_from_its_own_state(architecture):
    model = make(architecture=architecture)
    texts = [ids(1, n, seed=n)[0].tolist() for n in (3, 25, 1)]  # longer than block_size: there is no window
    rows = DecodeBatch(model)
    rows.extend(texts, SampleConfig(tokens=4))
    for new in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        logits = rows.logits()
        for row, text in enumerate(rows.texts):
            torch.testing.assert_close(logits[row], model(torch.tensor([text]))[0, -1], atol=1e-5, rtol=1e-5)
        rows.append(new)
    rows.take([2, 0])
    torch.testing.assert_close(rows.logits()[1], model(torch.tensor([rows.texts[1]]))[0, -1], atol=1e-5, rtol=1e-5)


@every_recurrent
def test_a_row_without_tokens_keeps_its_state(architecture):
    model = make(architecture=architecture)
    state = model.init_cache(2, 20)
    model.forward_hidden(ids(2, 4), Context(cache=state))
    before = {name: tensor.clone() for name, tensor in state.layers[0].items()}
    model.forward_hidden(ids(2, 1), Context(cache=state, counts=[0, 1]))
    for name, tensor in state.layers[0].items():
        assert torch.equal(tensor[0], before[name][0]) and not torch.equal(tensor[1], before[name][1])
    assert state.lengths == [4, 5]


def test_cached_and_uncached_writing_agree_beyond_the_training_length():
    model = make(architecture="gru")
    config = SampleConfig(tokens=40, seed=3)
    runs = []
    for cached in (True, False):
        generation, text = DecodeBatch(model, cached=cached), []
        generation.add([1, 2], config)
        while tokens := generation.step():
            text.append(tokens[0].id)
        runs.append(text)
    assert runs[0] == runs[1] and len(runs[0]) == 40


# --- what does not fit together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architecture": "lstm", "n_layer": 0}, "layers"),
        ({"architecture": "encoder", "mixer": "mean"}, "attention"),
        ({"architecture": "gru", "head": "none"}, "head"),
    ],
)
def test_impossible_shapes_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        ModelConfig(**(SMALL | fields))


def test_each_architecture_builds_its_class():
    kinds = {
        "decoder": Decoder,
        "encoder": Decoder,
        "encoder-decoder": EncoderDecoder,
        "rnn": Recurrent,
        "lstm": Recurrent,
        "gru": Recurrent,
    }
    for architecture, kind in kinds.items():
        assert type(make(architecture=architecture)) is kind
    assert isinstance(make(architecture="encoder-decoder").encode(ids(1, 3)), EncoderOutput)
