"""`gptloom verify` catches each planted bug, by the check that is named beside it."""

import pytest

from gptloom.data import batches
from gptloom.data.pair_batches import _Pairs
from gptloom.data.tokenizers import Tokenizer
from gptloom.data.tokenizers.char import CharTokenizer
from gptloom.distributed import TorchProcessGroup
from gptloom.fast import decode, decode_torch, flat, train
from gptloom.fast import layers as handwritten
from gptloom.fast.decode_numpy import ArrayKit
from gptloom.fast.decode_torch import TensorKit
from gptloom.generate import task
from gptloom.model import attention, layers, loss, ngram, transformer
from gptloom.model import init as initialise
from gptloom.model.cache import Context
from gptloom.model.transformer import EncoderDecoder
from gptloom.studies.verify import chosen, verify
from gptloom.training import gradients, trainer
from gptloom.training.optim import adagrad, adamw, muon
from mutation_helpers import after_loading, at_resume, edit, replace, subject, transpose, untie


def one_later(progress):
    progress.step += 1


def one_earlier(progress):
    progress.step -= 1


def with_mask(tril):
    return ("causal = mask is None and causal", f"mask, causal = ({tril} if mask is None and causal else mask), False")


def clip_each(_real):
    def clip(gradients, length, _norm):
        for gradient in gradients:
            gradient.mul_(min(1.0, length / (float(gradient.norm()) + 1e-6)))

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
    # a description of the bug: the check that finds it, a recipe, the planter
    "scores are scaled by the width of all heads": (
        "formula",
        "modern-tiny",
        edit(*ATTEND, ("self.scale", "(self.n_head * self.width) ** -0.5")),
    ),
    "only the fused path forgets the scale": ("fused", "modern-tiny", edit(*ATTEND, ("scale=self.scale", "scale=1.0"))),
    "a token sees the next one": ("future", "modern-tiny", edit(*ATTEND, with_mask(f"{ONES}.tril(1)[None, None]"))),
    "a token does not see itself": (
        "formula",
        "modern-tiny",
        edit(*ATTEND, with_mask(f"({ONES}.tril(-1) | ({ONES}.cumsum(0) + {ONES}.cumsum(1) == 2))[None, None]")),
    ),
    "dropout goes on in evaluation": (
        "evaluation",
        "tiny",
        edit(*ATTEND, ("self.drop_weights if self.training else 0.0", "self.drop_weights")),
    ),
    "evaluation forgets its mode": (
        "evaluation",
        "tiny",
        edit(task, "evaluate", ("evaluating(objective)", "torch.no_grad()")),
    ),
    "a reported loss is smoothed": (
        "evaluation",
        "tiny",
        edit(loss.Objective, "forward", ("if self.training else 0.0", "")),
    ),
    "query heads take the keys of the wrong group": (
        "formula",
        "modern-tiny",
        edit(
            *ATTEND,
            (
                "query, key, value, attn_mask=mask",
                "query, *(x.repeat(1, query.shape[1] // x.shape[1], 1, 1) for x in (key, value)), attn_mask=mask",
            ),
        ),
    ),
    "by hand, a norm's gradient forgets its length": (
        "by-hand",
        "tiny",
        edit(handwritten, "rms_backward", (".addcmul_(unit, along)", "")),
    ),
    "by hand, scores are scaled by the width of all heads": (
        "by-hand",
        "tiny",
        edit(train, "make_plan", ("config.width_per_head if", "config.n_embd if")),
    ),
    "by hand, keys learn as if they were queries": (
        "by-hand",
        "tiny",
        edit(handwritten.Attention, "backward", ("self.scores_t, self.query", "self.scores, self.query")),
    ),
    "by hand, positions turn the other way": (
        "by-hand",
        "tiny",
        edit(
            handwritten.Rotation,
            "run",
            ("first, self.sin, value=self.sign", "first, self.sin, value=-self.sign"),
            ("second, self.sin, value=-self.sign", "second, self.sin, value=self.sign"),
        ),
    ),
    "by hand, the second norm is the first": (
        "by-hand",
        "tiny",
        edit(train, "_weights", ("norm2=norm2.weight", "norm2=norm1.weight")),
    ),
    "n-grams know the next token": (
        "future",
        "tiny",
        edit(ngram.HashedNgrams, "rows", ("ngram_rows(known,", "ngram_rows(known.roll(-1, 1),")),
    ),
    "n-grams are hashed backwards": (
        "formula",
        "tiny",
        edit(
            ngram,
            "ngram_rows",
            ("codes[:, longest - 1 - back : end - back]", "codes[:, back - 1 : end - longest + back]"),
        ),
    ),
    "values get no gradient": (
        "gradients",
        "modern-tiny",
        edit(*ATTEND, ("query, key, value, attn_mask=mask", "query, key, value.detach(), attn_mask=mask")),
    ),
    "rotary pairs are neighbours": (
        "formula",
        "modern-tiny",
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
        "modern-tiny",
        edit(
            attention.Attention,
            "forward",
            ("query, key = self.query_norm(query), self.key_norm(key)\n", "pass\n"),
            ("rotate(query, context.rotation), rotate(key, context.rotation)", "TURNED"),
            (
                "TURNED",
                "self.query_norm(rotate(query, context.rotation)), self.key_norm(rotate(key, context.rotation))",
            ),
        ),
    ),
    "LayerNorm has another epsilon": (
        "formula",
        "mingpt",
        edit(layers, "make_norm", ("n_embd, bias", "n_embd, eps=1e-3, bias")),
    ),
    "GELU is the exact one": (
        "formula",
        "mingpt",
        edit(layers, "activate", ('approximate="tanh"', 'approximate="none"')),
    ),
    "SwiGLU takes the gate for the value": (
        "formula",
        "modern-tiny",
        edit(layers, "activate", ("gate, value =", "value, gate =")),
    ),
    "one layer loses the stream": (
        "formula",
        "mingpt",
        edit(
            transformer.Stack,
            "forward_hidden",
            ("if context.cache else None)", "if context.cache else None) - (x if index == 1 else 0.0)"),
        ),
    ),
    "the padding of sources is looked at": (
        "formula",
        "translate",
        edit(EncoderDecoder, "encode", ("(sources >= 0)", "(sources >= -1)")),
    ),
    "an encoder looks to the left only": (
        "both-sides",
        "encoder",
        edit(Context, "open", ("self.causal = False", "self.causal = True")),
    ),
    "the cache is one position late": (
        "cached",
        "mingpt",
        edit(TensorKit, "begin", ("self.positions[here]", "self.positions[here.start and here.start - 1]")),
    ),
    "the cache of one row is one position late": (
        "cached",
        "mingpt",
        edit(ArrayKit, "begin", ("self.positions[position]", "self.positions[position - 1]")),
    ),
    "the cache forgets the n-grams before": (
        "cached",
        "tiny",
        edit(decode_torch, "_ngrams", ("recent.copy_(known[:, 1 - layer.longest :])", "pass")),
    ),
    "the cache of one row forgets the n-grams before": (
        "cached",
        "tiny",
        edit(ArrayKit, "begin", ("recent[:] = [*before[1:], one]", "pass")),
    ),
    "a prompt is read without its last token": ("cached", "tiny", edit(TensorKit, "last", ("[:, -1]", "[:, -2]"))),
    "ragged rows are one position late": (
        "cached",
        "mingpt",
        edit(decode.Stepper, "uneven", ("state.lengths[row], state", "state.lengths[row] - 1, state")),
    ),
    "the gradient is averaged in each micro-batch": (
        "micro-batches",
        "tiny",
        edit(
            gradients.Gradients,
            "_passes",
            (
                "1.0 / targets,",
                "1.0 / int((parts[-1][start : start + rows] != IGNORE_INDEX).sum()) "
                "/ len(range(0, len(batch[0]), rows)),",
            ),
        ),
    ),
    "ranks take the mean of their gradients": (
        "ranks",
        "tiny",
        edit(
            TorchProcessGroup,
            "all_reduce",
            ("dist.all_reduce(moved", "dist.all_reduce(moved.div_(self.world)"),
        ),
    ),
    "a later pass replaces the gradients of the first": (
        "micro-batches",
        "tiny",
        edit(gradients.Gradients, "_passes", ("fresh=not start", "fresh=True")),
    ),
    "a straight pass adds to the gradients of the last step": (
        "fresh-gradients",
        "tiny",
        edit(train._Line, "run", ("targets.flatten(), share, fresh", "targets.flatten(), share, False")),
    ),
    "a straight pass counts padding": (
        "micro-batches",
        "tiny",
        edit(train._Line, "run", ("targets.flatten()", "targets.flatten().clamp(min=0)")),
    ),
    "a straight pass learns the table of another order": (
        "by-hand",
        "tiny",
        edit(train._Line, "_accumulate_tables", ("inputs.flatten(), len", "inputs.t().flatten(), len")),
    ),
    "gradients are not zeroed": ("fresh-gradients", "mingpt", edit(flat.Flat, "zero", ("self.grad.zero_()", "pass"))),
    "each tensor is clipped by itself": ("clipping", "mingpt", replace(trainer, "clip_grads_with_norm_", clip_each)),
    "the update comes before the clipping": (
        "clipping",
        "mingpt",
        replace(trainer, "clip_grads_with_norm_", lambda _real: lambda *_: None),
    ),
    "the learning rate is a step late": (
        "learning-rate",
        "tiny",
        edit(trainer.Trainer, "step", ("self.config, progress.step,", "self.config, max(0, progress.step - 1),")),
    ),
    "AdamW's betas are swapped": ("update", "tiny", replace(adamw.FlatAdamW, "__init__", swap_betas)),
    "Muon forgets to look ahead": (
        "update",
        "tiny",
        edit(muon.Muon, "step", ("flat.grad.lerp(momentum, share)", "momentum.clone()")),
    ),
    "Muon's last iteration is left out of wide matrices": (
        "update",
        "tiny",
        edit(muon, "_by_products", ("if iteration else factor", "if 0 < iteration < 4 else collected")),
    ),
    "rows forget how often they were met": (
        "update",
        "tiny",
        edit(adagrad.RowAdagrad, "step", ("squares + values", "values")),
    ),
    "norms and biases decay": ("groups", "mingpt", edit(adamw, "parameter_groups", ("p.ndim > 1", "p.ndim > 0"))),
    "a tied head decays": ("groups", "mingpt", edit(adamw, "parameter_groups", (" - tables", ""))),
    "biases are forgotten": (
        "groups",
        "mingpt",
        edit(adamw, "parameter_groups", ("if p.requires_grad and", "if p.ndim > 1 and")),
    ),
    "the first logits are wide": (
        "initial-loss",
        "mingpt",
        edit(initialise, "initialise", ("min(1.0, LARGEST_LOGIT_STD", "10 * max(1.0, LARGEST_LOGIT_STD")),
    ),
    "targets are the inputs": (
        "targets",
        "tiny",
        edit(batches, "_read", ("block[:, 1:].astype", "block[:, :-1].astype")),
    ),
    "hidden tokens are not hidden": (
        "targets",
        "encoder",
        edit(batches, "_hide", ("torch.where(hidden, mask, batch.inputs)", "batch.inputs")),
    ),
    "a translation is given its own next token": (
        "targets",
        "translate",
        edit(_Pairs, "read", ("np.maximum(targets[:, :-1], 0)", "np.maximum(targets[:, 1:], 0)")),
    ),
    "padding counts in the loss": (
        "loss",
        "tiny",
        edit(
            loss.Objective,
            "forward",
            ("targets.flatten()", "targets.flatten().clamp(min=0)"),
            ("(targets != IGNORE_INDEX)", "(targets >= IGNORE_INDEX)"),
        ),
    ),
    "evaluation windows overlap": (
        "windows",
        "tiny",
        edit(batches, "evaluation_windows", ("batch_size), time)", "batch_size), time // 2)")),
    ),
    "bytes are counted as characters": (
        "bits-per-byte",
        "tiny",
        replace(Tokenizer, "count_bytes", lambda _real: lambda self, ids: len(self.decode(ids))),
    ),
    "the tokenizer swallows line ends": (
        "tokens",
        "tiny",
        replace(CharTokenizer, "decode", lambda real: lambda self, ids: real(self, ids).replace("\n", " ")),
    ),
    "a tied head is untied when it is loaded": ("saved", "mingpt", after_loading(untie)),
    "square matrices are transposed when they are loaded": ("saved", "tiny", after_loading(transpose)),
    "a batch is repeated after a resume": ("resume", "tiny", at_resume(one_earlier)),
    "a batch is skipped after a resume": ("resume", "tiny", at_resume(one_later)),
    "the optimizer is lost at a resume": (
        "resume",
        "tiny",
        replace(adamw.FlatAdamW, "load_state_dict", lambda _real: lambda self, state_dict: None),
    ),
    "dropout depends on what was drawn before": (
        "resume",
        "lstm",
        edit(gradients.Gradients, "local", ("reseed(derive(", "(lambda *_: None)(derive(")),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    name, recipe, plant = BUGS[bug]
    plant(monkeypatch)
    (finding,) = verify(subject(recipe), chosen([name]))
    assert finding.passed is False
    # The check finds it by its deviation, not by an exception.
    assert finding.deviation is not None and finding.deviation > finding.tolerance, finding


def test_an_error_inside_a_check_is_a_failure_of_that_check(monkeypatch):
    edit(*ATTEND, ("found.transpose(1, 2)", "found.transpose(1, 3)"))(monkeypatch)
    (finding,) = verify(subject("mingpt"), chosen(["formula"]))
    assert finding.passed is False and finding.deviation is None and "Error" in finding.note
