"""Checks of data and metrics: targets, windows, loss, bits per byte, evaluation, the initial loss and decoding."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from gptloom.bundle import Bundle
from gptloom.config.run import IGNORE_INDEX
from gptloom.data.tokenizers import CharTokenizer
from gptloom.data.tokens import Tokens
from gptloom.devices import derive
from gptloom.generate.task import evaluate
from gptloom.model.build import build_model
from gptloom.model.loss import Objective
from gptloom.reference.formulas import Reference
from gptloom.studies.verify.subject import Batch, Subject, logits, mean_loss
from gptloom.studies.verify.tolerance import SAFETY, SINGLE, Outcome, perturb, worst

FIRST_SPREAD, DRAWN_SPREAD = 0.1, 0.02
"""Standard deviations that gptloom's initialization guarantees.

`FIRST_SPREAD` bounds the logits of a model with a final norm. `DRAWN_SPREAD` is that of the weight matrices."""

DROPOUT = 0.2


def targets(subject: Subject) -> Outcome:
    """Count the targets of three training batches that differ from the text.

    A target is the next token, a masked token, or the next token of a translation.
    """
    wrong = 0
    for step in range(3):
        batch = subject.batch(step)
        if subject.task.pairs:
            known = _documents(subject.parts.train)
            wrong += sum(pair not in known for pair in _pairs(batch, subject))
            continue
        known_rows = subject.parts.train.ids.astype(np.int64)
        for inputs, wanted in zip(*(part.numpy() for part in batch), strict=True):
            if subject.causal:
                counted = wanted != IGNORE_INDEX
                text = np.append(inputs[:1], wanted[counted])
                wrong += int((inputs[: counted.sum()] != text[:-1]).sum()) if len(text) > 1 else 0
            else:
                hidden = wanted != IGNORE_INDEX
                wrong += int((inputs[hidden] != subject.model.vocab_size).sum()) + int(
                    (inputs[~hidden] == subject.model.vocab_size).sum()
                )
                text = np.where(hidden, wanted, inputs)[inputs >= 0]
            wrong += not _occurs(text, known_rows)
    return Outcome(float(wrong), 0.0)


def windows(subject: Subject) -> Outcome:
    """Count the targets that an evaluation misses or reads more than once."""
    tokens, found = subject.eval_tokens, list[Any]()
    for batch in subject.task.evaluation_batches(tokens, subject.bundle.tokenizer, 3):
        if subject.task.pairs:
            found += _pairs(batch, subject)
        elif subject.causal:
            found += batch[1][batch[1] != IGNORE_INDEX].tolist()
        else:
            inputs, wanted = batch
            found += torch.where(wanted != IGNORE_INDEX, wanted, inputs)[inputs >= 0].tolist()
    if subject.task.pairs:
        gap = Counter(found)
        gap.subtract(_documents(tokens))
        return Outcome(float(sum(map(abs, gap.values()))), 0.0)
    expected = tokens.ids.astype(np.int64)[1:] if subject.causal else tokens.ids.astype(np.int64)[:-1]
    return Outcome(
        float(abs(len(found) - len(expected)) + sum(a != b for a, b in zip(found, expected.tolist(), strict=False))),
        0.0,
    )


def loss(subject: Subject) -> Outcome:
    """Compare the objective on a padded batch with the mean of -ln p from the reference formulas; skip padding."""
    *inputs, wanted = subject.ragged_batch()
    scores = Reference(subject.model, subject.drawn).logits(*inputs)
    logprobs = scores - torch.logsumexp(scores, -1, keepdim=True)
    places = [(row, place) for row, place in (wanted != IGNORE_INDEX).nonzero().tolist()]
    expected = -sum(float(logprobs[row, place, wanted[row, place]]) for row, place in places) / len(places)
    model = subject.placed(subject.drawn)
    with torch.no_grad():
        nats, count = Objective(model)(*(part.to(model.device) for part in (*inputs, wanted)))
    # A loss changes at most twice as much as the logits do: once through the target's logit, once through logsumexp.
    moved = Reference(subject.model, subject.drawn, perturb(SAFETY * SINGLE, 0)).logits(*inputs)
    tolerance = 2 * float((moved - scores).abs().max()) + SAFETY * SINGLE * abs(expected)
    gaps = Outcome(abs(float(nats) / len(places) - expected), tolerance)
    return worst(
        [gaps, Outcome(float(abs(int(count) - len(places))), 0.0, f"{int(count)} targets counted, {len(places)} there")]
    )


def bits_per_byte(subject: Subject) -> Outcome:
    """Compare the reported bits per byte with the sum of -log2 p over the tokens, divided by the text's bytes."""
    tokenizer, ids = subject.bundle.tokenizer, _whole(subject)
    text = tokenizer.decode(ids[1:])
    bundle = Bundle(subject.placed(subject.drawn), tokenizer)
    score = bundle.score_tokens(Tokens(ids, np.zeros(1, dtype=np.int64)))
    nats, largest, block = 0.0, 0.0, subject.model.block_size
    for start in range(0, len(ids) - 1, block):
        window = torch.from_numpy(ids[start : start + block + 1].astype(np.int64))
        scores = logits(bundle.model, window[None, :-1])[0].cpu().double()
        nats -= float(scores.log_softmax(-1).gather(-1, window[1:, None]).sum())
        largest = max(largest, float(scores.abs().max()))
    expected = nats / math.log(2) / len(text.encode())
    per_byte = (len(ids) - 1) / math.log(2) / len(text.encode())
    # The sum of thousands of float32 losses has its own rounding error, relative to the sum.
    tolerance = 4 * subject.logit_tolerance * largest * per_byte + SAFETY * SINGLE * expected
    # In an ASCII text, a count of characters would pass. This text has characters of two, three and four bytes.
    wide = CharTokenizer("aé世🙂", ends=False)
    miscounted = abs(wide.count_bytes(wide.encode("aé世🙂")) - len("aé世🙂".encode()))
    return Outcome(
        abs((score.bpb or math.nan) - expected) + miscounted,
        tolerance,
        f"{score.bytes} bytes counted, {len(text.encode())} there",
    )


def evaluation(subject: Subject) -> Outcome:
    """Evaluate a model with dropout in training mode: dropout must be off, and two evaluations must agree bit for bit.

    The modules must be in training mode again afterwards.
    """
    update = {"dropout": max(DROPOUT, subject.model.dropout), "attn_dropout": None, "embd_dropout": None}
    model = build_model(subject.model.model_copy(update=update))
    model.load_state_dict(subject.drawn.state_dict())
    objective = Objective(subject.placed(model), label_smoothing=0.1).train()
    tokens = subject.task.first_tokens(subject.eval_tokens, max(256, subject.time))
    batches = list(subject.task.evaluation_batches(tokens, subject.bundle.tokenizer, subject.rows))
    first, second = (evaluate(objective, batches, device=subject.device) for _ in range(2))
    plain, count, peak = 0.0, 0, 0.0
    for batch in batches:
        here = int((batch[-1] != IGNORE_INDEX).sum())
        with torch.no_grad():
            plain += float(mean_loss(subject.placed(subject.drawn), batch)) * here if here else 0.0
        count += here
        peak = max(peak, float(logits(subject.placed(subject.drawn), *batch[:-1]).abs().max()))
    left = sum(not module.training for module in objective.modules())
    return worst(
        [
            Outcome(abs(first.nats - second.nats), 0.0, "two evaluations differ"),
            Outcome(
                abs(first.nats / max(1, first.tokens) - plain / max(1, count)),
                4 * subject.logit_tolerance * peak,
                "a loss without dropout",
            ),
            Outcome(float(left), 0.0, "parts that are not in training mode afterwards"),
        ]
    )


def first_loss(subject: Subject) -> Outcome:
    """Compare the loss of a new model on uniformly drawn targets with ln(vocabulary size)."""
    c = subject.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(subject.seed, "verify", "fresh"))
        model = build_model(c).eval()
    *inputs, _ = subject.batch(rows=max(subject.rows, 1_000 // subject.time))
    scores = logits(model, *inputs).double()
    drawn = torch.randint(c.vocab_size, scores.shape[:2], generator=torch.Generator().manual_seed(subject.seed))
    found = float(-scores.log_softmax(-1).gather(-1, drawn[..., None]).mean())
    normed = (
        c.norm != "none"
        and c.head != "none"
        and not c.is_recurrent
        and (c.norm_position == "pre" or c.head == "linear")
    )
    # Without a norm, the head reads numbers of about unit variance, or of variance 2 where positions are added.
    spread = (
        FIRST_SPREAD if normed else max(FIRST_SPREAD, DRAWN_SPREAD * math.sqrt(c.n_embd * (1 if c.is_recurrent else 2)))
    )
    # For normal logits of this spread, ln(mean of exp) is spread ** 2 / 2 above the mean. The mean logit of the drawn
    # targets varies by spread / sqrt(number). Five standard deviations occur once in two million seeds.
    return Outcome(abs(found - math.log(c.vocab_size)), spread**2 + 5 * spread / math.sqrt(drawn.numel()))


def tokens(subject: Subject) -> Outcome:
    """Count the characters that differ between the text and its decoded tokens, and after a second round trip."""
    tokenizer = subject.bundle.tokenizer
    text = tokenizer.decode(
        subject.parts.train.ids[: len(subject.raw) + 1] if subject.raw else subject.parts.train.ids[:20_000]
    )
    found = []
    if subject.raw:
        shorter = min(len(text), len(subject.raw)) - 4  # the last token may end within a character
        found.append(Outcome(_unlike(text[:shorter], subject.raw[:shorter]), 0.0, "the tokens against the text"))
    again = tokenizer.decode(tokenizer.encode(text, "skip"))
    found.append(
        Outcome(_unlike(again, text) if "\ufffd" not in text else 0.0, 0.0, "the decoded text, encoded and decoded")
    )
    return worst(found)


def _unlike(one: str, other: str) -> float:
    return float(sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other)))


def _whole(subject: Subject) -> np.ndarray:
    """The evaluation tokens, trimmed so that they begin and end with whole characters; ids (t,)."""
    tokenizer, ids = subject.bundle.tokenizer, np.array(subject.eval_tokens.ids)

    def broken(one: int) -> bool:
        return "\ufffd" in tokenizer.decode([one]) or not tokenizer.decode([one])

    first, last = 0, len(ids)
    while first < last - 3 and broken(int(ids[first])):
        first += 1
    while last > first + 3 and broken(int(ids[last - 1])):
        last -= 1
    return ids[first:last]


def _occurs(row: np.ndarray, text: np.ndarray) -> bool:
    """Whether a row of ids (t,) occurs in the text's ids."""
    starts = np.flatnonzero(text[: len(text) - len(row) + 1] == row[0])
    for place in range(1, len(row)):
        starts = starts[text[starts + place] == row[place]]
    return bool(len(starts))


def _documents(tokens: Tokens) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Count every pair of a text: the source's ids, and the target's ids with the end token."""
    bounds = [*tokens.document_starts.tolist(), len(tokens)]
    sides = [tuple(tokens.ids[start:end].tolist()) for start, end in pairwise(bounds)]
    return Counter((source[:-1], target) for source, target in zip(sides[0::2], sides[1::2], strict=True))


def _pairs(batch: Batch, subject: Subject) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The pairs of a batch, as `_documents` gives them; the target is () where inputs are not the shifted targets."""
    for source, inputs, wanted in zip(*(part.tolist() for part in batch), strict=True):
        target = [one for one in wanted if one != IGNORE_INDEX]
        moved = [subject.bundle.tokenizer.end_of_text, *target[:-1]] == inputs[: len(target)]
        yield tuple(one for one in source if one >= 0), tuple(target) if moved else ()
