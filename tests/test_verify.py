"""`gptloom verify`: clean code passes, and each bug that is planted here is caught by the check that it concerns.

A bug is planted by rewriting a line of a function's source, as a careless edit would.
"""

import inspect
import json
import math
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import gptloom.bundle
import gptloom.model.attention
import gptloom.model.stepping
import gptloom.training.run
from gptloom.cli import main
from gptloom.data import batches, masking
from gptloom.data.pair_batches import _Pairs
from gptloom.data.tokenizers import Tokenizer
from gptloom.inference import evaluation, generation
from gptloom.model import attention, initialise, layers, objective, stack, stepping
from gptloom.model.encoder_decoder import EncoderDecoder
from gptloom.model.state import Context
from gptloom.studies.verifying.opening import open_recipe, open_run
from gptloom.studies.verifying.reference import Reference
from gptloom.studies.verifying.subject import drawn_model, logits
from gptloom.studies.verifying.verify import chosen, passed, verify
from gptloom.training import optim, trainer
from conftest import CONFIGS, build, random_ids
from training_helpers import losses, small_run, write_text

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 16}
RECIPES = {
    "tiny": {"model": SMALL},
    "mingpt": {"model": SMALL | {"head": "tied", "dropout": 0.1}, "train": {"batch_size": 4}},
    "modern-tiny": {"model": SMALL | {"n_kv_head": 2}},
    "encoder": {"model": SMALL},
    "translate": {"model": SMALL | {"n_layer": 1}},
    "lstm": {"model": {"n_layer": 2, "n_embd": 16, "block_size": 16, "dropout": 0.1}},
}
SLOW = {"compiled", "resume"}


def subject(recipe, seed=1):
    return open_recipe(recipe, {"device": "cpu"} | RECIPES[recipe], seed=seed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_clean_tree_passes(recipe):
    names = [check.name for check in chosen(None) if check.name not in SLOW]
    findings = list(verify(subject(recipe), chosen(names)))
    assert passed(findings), [one for one in findings if one.passed is False]
    assert [one.name for one in findings if one.passed is None] == ["accelerator"]
    assert len(findings) >= 17


def edit(owner, name, *changes):
    """A planter: replaces pieces of a function's source, wherever the function is known."""

    def plant(patch):
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            assert old in source, f"{name} no longer says {old!r}: plant this bug anew"
            source = source.replace(old, new)
        module = sys.modules[function.__module__]
        made = dict(vars(module))
        exec(compile(source, f"<planted in {name}>", "exec"), made)
        importers = [place for key, place in list(sys.modules.items()) if key.startswith("gptloom") and vars(place).get(name) is function]
        for place in {owner, *importers}:
            patch.setattr(place, name, made[name])

    return plant


def replace(owner, name, wrap):
    """A planter: replaces a function by what `wrap` makes of it."""
    return lambda patch: patch.setattr(owner, name, wrap(getattr(owner, name)))


def after_loading(change):
    """A planter: something happens to a model when it is loaded."""

    def wrap(load):
        def loading(model, *args, **kwargs):
            load(model, *args, **kwargs)
            with torch.no_grad():
                change(model)

        return loading

    return replace(gptloom.bundle, "load_weights", wrap)


def at_resume(change):
    """A planter: the state that a run is resumed with is another."""

    def wrap(read):
        def reading(path):
            progress, *rest = read(path)
            change(progress)
            return (progress, *rest)

        return reading

    return replace(gptloom.training.run, "read_checkpoint", wrap)


def untie(model):
    model.head.weight = nn.Parameter(model.head.weight.clone())


def transpose(model):
    for p in model.parameters():
        if p.ndim == 2 and p.shape[0] == p.shape[1]:
            p.copy_(p.T.clone())


def one_later(progress):
    progress.step += 1


def one_earlier(progress):
    progress.step -= 1


def with_mask(tril):
    return ("causal = mask is None and causal", f"mask, causal = ({tril} if mask is None and causal else mask), False")


def clip_each(_real):
    def clip(parameters, length):
        for p in parameters:
            p.grad.mul_(min(1.0, length / (float(p.grad.norm()) + 1e-6)))

    return clip


def swap_betas(make):
    def init(self, model, config, **more):
        make(self, model, config, **more)
        for group in self.param_groups:
            group["betas"] = group["betas"][::-1]

    return init


ONES = "torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)"
ATTEND = (attention.Heads, "attend")
BUGS = {
    # what is wrong: the check that says so, a recipe, how it is planted
    "scores are scaled by the width of all heads": ("formula", "tiny", edit(*ATTEND, ("self.scale", "(self.n_head * self.width) ** -0.5"))),
    "only the fused path forgets the scale": ("fused", "tiny", edit(*ATTEND, ("scale=self.scale", "scale=1.0"))),
    "a token sees the next one": ("future", "tiny", edit(*ATTEND, with_mask(f"{ONES}.tril(1)[None, None]"))),
    "a token does not see itself": (
        "formula",
        "tiny",
        edit(*ATTEND, with_mask(f"({ONES}.tril(-1) | ({ONES}.cumsum(0) + {ONES}.cumsum(1) == 2))[None, None]")),
    ),
    "dropout goes on in evaluation": ("evaluation", "tiny", edit(*ATTEND, ("self.drop_weights if self.training else 0.0", "self.drop_weights"))),
    "evaluation forgets its mode": ("evaluation", "tiny", edit(evaluation, "evaluate", ("evaluating(objective)", "torch.no_grad()"))),
    "a reported loss is smoothed": ("evaluation", "tiny", edit(objective.Objective, "forward", ("if self.training else 0.0", ""))),
    "query heads take the keys of the wrong group": (
        "formula",
        "modern-tiny",
        edit(*ATTEND, ("query, key, value, attn_mask", "query, *(x.repeat(1, query.shape[1] // x.shape[1], 1, 1) for x in (key, value)), attn_mask")),
    ),
    "values get no gradient": ("gradients", "tiny", edit(*ATTEND, ("query, key, value, attn_mask", "query, key, value.detach(), attn_mask"))),
    "rotary pairs are neighbours": (
        "formula",
        "tiny",
        edit(
            layers,
            "rotate",
            ("x.chunk(2, dim=-1)", "x[..., 0::2], x[..., 1::2]"),
            ("x * cos + torch.cat((-second, first), dim=-1) * sin", "TURNED"),
            ("TURNED", "torch.stack((first * C - second * S, first * S + second * C), -1).flatten(-2)"),
            ("* C", "* cos.chunk(2, -1)[0]"),
            ("* S", "* sin.chunk(2, -1)[0]"),
        ),
    ),
    "the rotary base is another": ("formula", "tiny", edit(layers, "_angles", ("theta **", "(2 * theta) **"))),
    "queries are normalised after they are turned": (
        "formula",
        "tiny",
        edit(
            attention.Attention,
            "forward",
            ("query, key = self.query_norm(query), self.key_norm(key)\n", "pass\n"),
            ("rotate(query, context.rotation), rotate(key, context.rotation)", "TURNED"),
            ("TURNED", "self.query_norm(rotate(query, context.rotation)), self.key_norm(rotate(key, context.rotation))"),
        ),
    ),
    "LayerNorm has another epsilon": ("formula", "mingpt", edit(layers, "make_norm", ("n_embd, bias", "n_embd, eps=1e-3, bias"))),
    "GELU is the exact one": ("formula", "mingpt", edit(layers, "activate", ('approximate="tanh"', 'approximate="none"'))),
    "SwiGLU takes the gate for the value": ("formula", "modern-tiny", edit(layers, "activate", ("gate, value =", "value, gate ="))),
    "one layer loses the stream": (
        "formula",
        "mingpt",
        edit(stack.Stack, "run", ("if context.state else None)", "if context.state else None) - (x if index == 1 else 0.0)")),
    ),
    "the padding of sources is looked at": ("formula", "translate", edit(EncoderDecoder, "encode", ("(sources >= 0)", "(sources >= -1)"))),
    "an encoder looks to the left only": ("both-sides", "encoder", edit(Context, "open", ("self.causal = False", "self.causal = True"))),
    "the cache is one position late": ("cached", "mingpt", edit(stepping.Stepper, "__call__", ("weight[position]", "weight[position - 1]"))),
    "ragged rows are one position late": ("cached", "mingpt", edit(Context, "place", ("[:, None] + steps", "[:, None] + steps - 1"))),
    "the gradient is averaged in each micro-batch": (
        "micro-batches",
        "tiny",
        edit(
            trainer.Trainer, "_passes", ("(nats / count)", "(nats / (parts[-1][start : start + rows] != IGNORED).sum() / len(range(0, len(batch[0]), rows)))")
        ),
    ),
    "gradients are not zeroed": ("fresh-gradients", "tiny", edit(optim.FlatAdamW, "zero_grad", ("flat.grad.zero_()", "pass"))),
    "each tensor is clipped by itself": ("clipping", "tiny", replace(nn.utils, "clip_grad_norm_", clip_each)),
    "the update comes before the clipping": ("clipping", "tiny", replace(nn.utils, "clip_grad_norm_", lambda _real: lambda _parameters, _length: None)),
    "the learning rate is a step late": ("learning-rate", "tiny", edit(trainer.Trainer, "_step", ("self.config, step,", "self.config, max(0, step - 1),"))),
    "AdamW's betas are swapped": ("update", "tiny", replace(optim.FlatAdamW, "__init__", swap_betas)),
    "norms and biases decay": ("groups", "mingpt", edit(optim, "parameter_groups", ("p.ndim > 1", "p.ndim > 0"))),
    "a tied head decays": ("groups", "mingpt", edit(optim, "parameter_groups", (" - tables", ""))),
    "biases are forgotten": ("groups", "mingpt", edit(optim, "parameter_groups", ("if p.requires_grad]", "if p.ndim > 1]"))),
    "the first logits are wide": ("initial-loss", "mingpt", edit(initialise, "initialise", ("min(1.0, LARGEST_LOGIT_STD", "10 * max(1.0, LARGEST_LOGIT_STD"))),
    "targets are the inputs": ("targets", "tiny", edit(batches, "_read", ("block[:, 1:].copy()", "block[:, :-1].copy()"))),
    "hidden tokens are not hidden": ("targets", "encoder", edit(masking, "_hide", ("torch.where(hidden, mask, batch.inputs)", "batch.inputs"))),
    "a translation is given its own next token": (
        "targets",
        "translate",
        edit(_Pairs, "read", ("np.maximum(targets[:, :-1], 0)", "np.maximum(targets[:, 1:], 0)")),
    ),
    "padding counts in the loss": (
        "loss",
        "tiny",
        edit(objective.Objective, "forward", ("targets.flatten()", "targets.flatten().clamp(min=0)"), ("(targets != IGNORED)", "(targets >= IGNORED)")),
    ),
    "evaluation windows overlap": ("windows", "tiny", edit(batches, "evaluation_windows", ("batch_size), time)", "batch_size), time // 2)"))),
    "bytes are counted as characters": ("bits-per-byte", "tiny", replace(Tokenizer, "count_bytes", lambda _real: lambda self, ids: len(self.decode(ids)))),
    "the tokenizer swallows line ends": (
        "tokens",
        "tiny",
        replace(Tokenizer, "decode", lambda real: lambda self, ids: real(self, ids).replace("\n", " ")),
    ),
    "a tied head is untied when it is loaded": ("saved", "mingpt", after_loading(untie)),
    "square matrices are transposed when they are loaded": ("saved", "tiny", after_loading(transpose)),
    "a batch is repeated after a resume": ("resume", "tiny", at_resume(one_earlier)),
    "a batch is skipped after a resume": ("resume", "tiny", at_resume(one_later)),
    "the optimizer is lost at a resume": ("resume", "tiny", replace(optim.FlatAdamW, "restore", lambda _real: lambda self, tensors: None)),
    "dropout depends on what was drawn before": ("resume", "lstm", edit(trainer.Trainer, "_accumulate", ("torch.manual_seed(derive(", "str(derive("))),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    name, recipe, plant = BUGS[bug]
    plant(monkeypatch)
    (finding,) = verify(subject(recipe), chosen([name]))
    assert finding.passed is False
    assert finding.deviation is not None and finding.deviation > finding.tolerance, finding  # found by its number, not by an error
