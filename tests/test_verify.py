"""`gptloom verify`: correct code passes, and the matching check finds each planted bug.

A bug is planted by a change in a function's source code, like a careless edit.
"""

import inspect
import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import gptloom.bundle
import gptloom.training.run
from conftest import CONFIGS, build, random_ids
from gptloom.cli.main import main
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
from gptloom.reference.formulas import Reference
from gptloom.studies.verify import chosen, passed, verify
from gptloom.studies.verify.open import open_recipe, open_run
from gptloom.studies.verify.subject import drawn_model, logits
from gptloom.training import gradients, trainer
from gptloom.training.optim import adagrad, adamw, muon
from training_helpers import small_run, write_text

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 16}
RECIPES = {
    "tiny": {"model": SMALL},
    "mingpt": {"model": SMALL | {"head": "tied", "dropout": 0.1}, "train": {"batch_size": 4, "ranks": 2}},
    "modern-tiny": {"model": SMALL | {"n_kv_head": 2}},
    "encoder": {"model": SMALL},
    "translate": {"model": SMALL | {"n_layer": 1}},
    "lstm": {"model": {"n_layer": 2, "n_embd": 16, "block_size": 16, "dropout": 0.1}},
}
SLOW = {"compiled", "ranks", "resume"}


def subject(recipe, seed=1):
    return open_recipe(recipe, {"device": "cpu"} | RECIPES[recipe], seed=seed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_clean_tree_passes(recipe):
    names = [check.name for check in chosen(None) if check.name not in SLOW]
    findings = list(verify(subject(recipe), chosen(names)))
    assert passed(findings), [one for one in findings if one.passed is False]
    assert [one.name for one in findings if one.passed is None] == ["accelerator"]
    assert len(findings) >= 17


def test_where_everything_decays_the_rows_of_ngrams_do_not():
    model = open_recipe(
        "tiny", {"device": "cpu", "model": SMALL, "train": {"decay": "all", "weight_decay": 0.1}}, seed=1
    )
    findings = list(verify(model, chosen(["update", "groups"])))
    assert len(findings) == 2 and passed(findings), findings


def edit(owner, name, *changes):
    """A planter: replaces pieces of a function's source, in all modules that import the function."""

    def plant(patch):
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            assert old in source, f"{name} no longer contains {old!r}: plant this bug again"
            source = source.replace(old, new)
        module = sys.modules[function.__module__]
        made = dict(vars(module))
        exec(compile(source, f"<planted in {name}>", "exec"), made)  # noqa: S102  # gptloom's own source, edited above
        importers = [
            place
            for key, place in list(sys.modules.items())
            if key.startswith("gptloom") and vars(place).get(name) is function
        ]
        for place in {owner, *importers}:
            patch.setattr(place, name, made[name])

    return plant


def replace(owner, name, wrap):
    """A planter: replaces a function by `wrap(function)`."""
    return lambda patch: patch.setattr(owner, name, wrap(getattr(owner, name)))


def after_loading(change):
    """A planter: changes a model when it is loaded."""

    def wrap(load):
        def loading(folder):
            model = load(folder)
            with torch.no_grad():
                change(model)
            return model

        return loading

    return replace(gptloom.bundle, "load_model", wrap)


def at_resume(change):
    """A planter: changes the state of a run when it is resumed."""

    def wrap(read):
        def reading(path):
            state = read(path)
            change(state.progress)
            return state

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
                "1.0 / int((parts[-1][start : start + rows] != IGNORE_INDEX).sum()) / len(range(0, len(batch[0]), rows)),",
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


OTHERS = {
    "rnn": {"architecture": "rnn"},
    "gru": {"architecture": "gru", "head": "tied"},
    "lstm": {"architecture": "lstm", "head_bias": True},
    "encoder": {"architecture": "encoder", "positions": "rotary"},
}


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_the_reference_is_the_model_in_formulas(name):
    """Two independent programs agree in float64 on all shapes, except for the float32 tables of angles."""
    config = CONFIGS.get(name) or CONFIGS["gpt2"].model_copy(
        update={"dropout": 0.0, "attn_dropout": None, "head": "linear", **OTHERS[name]}
    )
    model = build(config).double() if name in CONFIGS else drawn_model(config, 0).double()
    ids = random_ids(2, config.block_size)
    assert (Reference(config, model).logits(ids) - logits(model, ids)).abs().max() < 1e-5


def test_a_run_is_verified_with_its_own_weights_and_text(tmp_path, capsys, monkeypatch):
    run = small_run(write_text(tmp_path), tmp_path / "run").run
    names = "formula,cached,saved,tokens,windows,bits-per-byte,groups"
    assert main(["verify", run, "--checks", names, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True and found["notes"] == [] and found["subject"] == "run"
    assert (
        ",".join(check["name"] for check in found["checks"])
        == "formula,cached,groups,windows,bits-per-byte,tokens,saved"
    )
    assert all({"name", "passed", "deviation", "tolerance", "meaning"} <= check.keys() for check in found["checks"])
    assert len(open_run(tmp_path / "run", device="cpu", checkpoint="best", seed=1).models) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    # The text is lost, so a note says that a synthetic one replaces it. A bug causes exit code 1.
    (tmp_path / "text.txt").write_text("changed", encoding="utf-8")
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    after_loading(transpose)(monkeypatch)
    assert main(["verify", run, "--checks", "saved, groups", "--device", "cpu"]) == 1
    printed, said = capsys.readouterr()
    assert (
        "FAIL  saved" in printed
        and "a checkpoint is not the model" in printed
        and "ok    groups" in printed
        and "1 passed, 1 failed" in printed
    )
    assert "a synthetic one replaces it" in said
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_words_that_verify_does_not_know(capsys):
    assert main(["verify", "--checks", "formula,cachd"]) == 2
    assert "did you mean cached?" in capsys.readouterr().err
    assert main(["verify", "RUN", "--recipe", "tiny"]) == 2
    assert main(["verify", "--recipe", "tinny"]) == 2
    assert main(["verify", "--seed", "-1"]) == 2
    assert main(["verify", "nowhere"]) == 2


def test_an_error_inside_a_check_is_a_failure_of_that_check(monkeypatch):
    edit(*ATTEND, ("found.transpose(1, 2)", "found.transpose(1, 3)"))(monkeypatch)
    (finding,) = verify(subject("mingpt"), chosen(["formula"]))
    assert finding.passed is False and finding.deviation is None and "Error" in finding.note


def test_a_compiler_that_is_not_there_is_said(monkeypatch):
    def broken(_module):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    (finding,) = verify(subject("tiny"), chosen(["compiled"]))
    assert finding.passed is None and "no compiler here" in finding.note and passed([finding])


def test_the_compiler_is_verified(tmp_path):
    """In a separate process, for the tests' shape checks do not work with the compiler, which may also be missing."""
    run = small_run(write_text(tmp_path), tmp_path / "run").run
    done = subprocess.run(
        [sys.executable, "-m", "gptloom", "verify", run, "--checks", "compiled", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    (finding,) = json.loads(done.stdout)["checks"]
    there = shutil.which("g++") or shutil.which("clang++")
    assert done.returncode == 0 and finding["passed"] is (True if there else None), done
