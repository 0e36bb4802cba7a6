"""Facts that the documents print, measured with gptloom's text, tokenizer, sampler, attention and objective."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.config.model import ModelConfig
from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers import Tokenizer
from gptloom.data.tokens import Split
from gptloom.devices import thread_count, threads
from gptloom.model.attention import Attention, attention_weights
from gptloom.model.cache import Context, Trace
from gptloom.model.layers import CausalMean
from gptloom.model.loss import Objective
from gptloom.model.transformer import Decoder
from gptloom.studies.reproduce.lecture_run import LectureRun, LectureSampler, draw_heads, draw_lecture_weights
from gptloom.studies.reproduce.published import PublishedRun, lecture_config, published

PRINTED = 0.5e-4
"""Half a unit of the fourth decimal, which is the last one in the documents."""


@dataclass(frozen=True)
class Text:
    """Tiny Shakespeare, prepared by the production code."""

    corpus: Corpus
    tokenizer: Tokenizer
    parts: Split


@dataclass(frozen=True)
class Fact:
    """A published value and the measured one.

    Attributes:
        published: a number, a text, a list or a dict.
        measured: the measured value in the same form.
        tolerance: the largest difference of any number; texts must be equal.
        why: the origin of the tolerance.
    """

    published: Any
    measured: Any
    tolerance: float = PRINTED
    why: str = "the documents print four decimals"


def corpus(text: Text) -> Fact:
    """The size, hash, alphabet and split of the text."""
    scan, known = text.corpus.scan, published()["corpus"]
    alphabet = "".join(map(chr, scan.alphabet.tolist()))
    measured = {
        "bytes": scan.bytes,
        "characters": scan.characters,
        "vocabulary": text.tokenizer.vocab_size,
        "train_characters": len(text.parts.train),
        "val_characters": len(text.parts.val),
        "sha256": scan.sha256,
        "alphabet_starts_with": alphabet[: len(known["alphabet_starts_with"])],
    }
    return Fact({key: known[key] for key in measured}, measured, 0.0, "counts and texts are exact")


def encode(text: Text) -> Fact:
    """The token ids of a few words."""
    known = {entry["text"]: entry["ids"] for entry in published()["encode"]}
    return Fact(known, {words: text.tokenizer.encode(words).tolist() for words in known}, 0.0, "ids are exact")


def first_batch(text: Text) -> Fact:
    """The first training batch after seeding."""
    known = published()["first_batch"]
    batch = _first_batch(text)
    measured = {"inputs": batch[0].tolist(), "targets": batch[1].tolist()}
    return Fact({key: known[key] for key in measured}, measured, 0.0, "ids are exact")


def bigram_untrained(text: Text) -> Fact:
    """The first batch's loss with a normally distributed embedding, and the loss of a uniform distribution."""
    known, size = published()["bigram_untrained"], text.tokenizer.vocab_size
    batch = _first_batch(text)
    model = Decoder(ModelConfig(vocab_size=size, n_layer=0, positions="none", head="none", init="pytorch"))
    torch.manual_seed(1337)
    draw_lecture_weights(model)
    with torch.no_grad():
        nats, count = Objective(model)(*batch)
    measured = {"loss": float(nats / count), "uniform_guess": math.log(size)}
    return Fact({key: known[key] for key in measured}, measured)


def bigram_trained(text: Text) -> Fact:
    """The bigram's loss after training: the mean of the last 100 batches; the documents print the last batch's."""
    known = published()["bigram_trained"]
    given = known["config"]
    model = {
        "vocab_size": text.tokenizer.vocab_size,
        "block_size": given["block_size"],
        "n_layer": 0,
        "positions": "none",
        "head": "none",
    }
    config = lecture_config(model, {key: given[key] for key in ("batch_size", "learning_rate", "steps")})
    with threads(thread_count(config)):
        training = LectureRun(
            PublishedRun("bigram-trained", config, True, 1, 1, [], known["source"]), text.parts, torch.device("cpu")
        )
        training.advance(given["steps"] - 100)
        measured = float(torch.tensor([training.step() for _ in range(100)]).mean())
    why = "single batches of 256 characters, drawn from a generator in an unknown state: a ballpark (published.json)"
    return Fact(known["last_batch_loss"], [measured] * len(known["last_batch_loss"]), 0.1, why)


def averaging_weights(_text: Text) -> Fact:
    """The weights of the causal mean, and those of attention with equal scores."""
    rows = published()["averaging_weights"]["rows"]
    count = len(rows)
    mixer = CausalMean(ModelConfig(n_embd=1, n_head=1, output_projection=False))
    mean = _trace(mixer, torch.zeros(1, count, 1))
    nothing = torch.zeros(1, 1, count, 1)
    softmax = attention_weights(nothing, nothing, None, True, 1.0)
    return Fact(
        {"mean": rows, "masked softmax": rows},
        {name: _triangle(weights[0, 0]) for name, weights in (("mean", mean), ("masked softmax", softmax))},
    )


def attention_rows(_text: Text) -> Fact:
    """The weights of one head of width 16 on a random sequence, with unscaled scores."""
    mixer, x = _lecture_head()
    # The documents do not scale these scores. The head's scale is a power of two, so the queries can undo it exactly.
    mixer.qkv.weight.detach()[: mixer.width].mul_(1 / mixer.scale)
    return Fact(published()["attention_weights"]["rows"], _trace(mixer, x)[0, 0].tolist())


def softmax(_text: Text) -> Fact:
    """Softmax of logits and of 8 times the logits, computed by attention with the logits as scores of one query."""
    known = published()["softmax_sharpening"]
    scores = torch.tensor(known["logits"])[None, None, :, None]  # keys of width 1; the query is 1
    one = torch.ones(1, 1, 1, 1)
    scales = {"softmax": 1.0, "softmax_of_8x": 8.0}
    measured = {
        name: attention_weights(one, scores, None, False, scale).flatten().tolist() for name, scale in scales.items()
    }
    return Fact({key: known[key] for key in measured}, measured)


def variance(_text: Text) -> Fact:
    """The variance of queries, keys and scores; scores divided by sqrt(head size) keep the variance.

    The document does not give the state of its generator. It is the state after the attention rows were drawn.
    """
    known = published()["scaled_variance"]
    mixer, _ = _lecture_head()
    key, query = torch.randn(4, 8, mixer.width), torch.randn(4, 8, mixer.width)
    scores = query @ key.transpose(1, 2) * mixer.scale
    measured = {"k_var": float(key.var()), "q_var": float(query.var()), "wei_var": float(scores.var())}
    return Fact({key: known[key] for key in measured}, measured)


FACTS: dict[str, Callable[[Text], Fact]] = {
    "corpus": corpus,
    "encode": encode,
    "first-batch": first_batch,
    "averaging-weights": averaging_weights,
    "attention-rows": attention_rows,
    "softmax": softmax,
    "variance": variance,
    "bigram-untrained": bigram_untrained,
    "bigram-trained": bigram_trained,
}


def deviation(published: Any, measured: Any) -> float:
    """The largest difference between two values of the same form; infinite if the forms or texts differ."""
    if isinstance(published, dict) and isinstance(measured, dict) and published.keys() == measured.keys():
        return max((deviation(published[key], measured[key]) for key in published), default=0.0)
    if isinstance(published, list) and isinstance(measured, list) and len(published) == len(measured):
        return max((deviation(one, other) for one, other in zip(published, measured, strict=True)), default=0.0)
    if isinstance(published, int | float) and isinstance(measured, int | float):
        return math.inf if math.isnan(measured) else abs(float(published) - float(measured))
    return 0.0 if published == measured else math.inf


def _first_batch(text: Text) -> tuple[Tensor, Tensor]:
    known = published()["first_batch"]
    torch.manual_seed(known["seed"])
    return LectureSampler(text.parts, known["block_size"], known["batch_size"]).draw("train")


def _lecture_head() -> tuple[Attention, Float[Tensor, "4 8 32"]]:
    """Draw a head of width 16 and a sequence (4, 8, 32) in the documents' order, with their random state afterwards."""
    mixer = Attention(ModelConfig(n_embd=32, n_head=1, head_size=16, bias="not-qkv"))
    torch.manual_seed(1337)
    x = torch.randn(4, 8, 32)
    draw_heads(mixer)
    return mixer, x


def _trace(mixer: Attention | CausalMean, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t s"]:
    """The weights (b, h, t, s) of a mixer."""
    context = Context(trace=(trace := Trace()))
    context.place(x.shape[1], x.device)
    with torch.no_grad():
        mixer(x, context, None)
    return trace.attention[0]


def _triangle(weights: Float[Tensor, "t t"]) -> list[list[float]]:
    """The rows of a causal matrix without the zeros above the diagonal, as in the documents."""
    return [row[: place + 1].tolist() for place, row in enumerate(weights)]
