"""Checks of what is kept: a saved model is loaded as it was, and a run that is stopped and resumed ends as if it had not been."""

import tempfile
from pathlib import Path

import torch

from gptloom.bundle import Bundle
from gptloom.model.base import LanguageModel
from gptloom.studies.verifying.rounding import Outcome, worst
from gptloom.studies.verifying.short import STEPS, Record, resume_short, run_short, settings, workshop
from gptloom.studies.verifying.subject import Subject, logits

DROPOUT = 0.1


def saved(subject: Subject) -> Outcome:
    """Numbers that differ between a model and what is loaded after saving it; weights that are shared, and logits, to the last bit."""
    *inputs, _ = subject.batch()
    found = []
    for model in subject.models:
        with tempfile.TemporaryDirectory() as name:
            Bundle(model, subject.bundle.tokenizer).save(Path(name))
            loaded = Bundle.load(name, device="cpu")
        weights, others = dict(model.named_parameters()), dict(loaded.model.named_parameters())
        wrong = sum(int((p != others[key]).sum()) if key in others and others[key].shape == p.shape else p.numel() for key, p in weights.items())
        wrong += sum(p.numel() for key, p in others.items() if key not in weights)
        found += [
            Outcome(float(wrong), 0.0, "numbers of the weights"),
            Outcome(float(len(_shared(model) ^ _shared(loaded.model))), 0.0, "shared weights"),
            Outcome(float((logits(loaded.model, *inputs) != logits(model.eval(), *inputs)).sum()), 0.0, "logits"),
            Outcome(float(loaded.tokenizer.fingerprint != subject.bundle.tokenizer.fingerprint), 0.0, "the tokenizer"),
        ]
    return worst(found)


def _shared(model: LanguageModel) -> set[tuple[str, ...]]:
    """The groups of names that stand for one and the same tensor."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def resumed(subject: Subject) -> Outcome:
    """Losses, and numbers of weights and optimizer, that differ between a run of four steps and one that was stopped after two and resumed."""
    with workshop(subject) as (folder, text):
        config = settings(subject, folder, dropout=max(DROPOUT, subject.model.dropout))
        run_short(text, config, folder / "whole")
        run_short(text, config, folder / "parts", stop_at=STEPS // 2)
        resume_short(folder / "parts")
        whole, parts = Record(folder / "whole"), Record(folder / "parts")
    # Each step's loss is in the log once, so equal logs mean that each batch was seen once, in turn.
    unlike = sum(a != b for a, b in zip(whole.losses, parts.losses, strict=False)) + abs(len(whole.losses) - len(parts.losses))
    missed = {("train", step) for step in range(1, STEPS + 1)} - {place for place, _ in whole.losses}
    return worst(
        [
            Outcome(float(unlike + len(missed)), 0.0, "losses by step"),
            Outcome(float(_differences(whole.tensors, parts.tensors)), 0.0, "weights and optimizer"),
        ]
    )


def _differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    both = one.keys() & other.keys()
    return len(one.keys() ^ other.keys()) + sum(int((one[key] != other[key]).sum()) for key in both)
