"""`gptloom verify`: correct code passes; mutation/test_verify_catches.py plants bugs."""

import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from gptloom.cli.main import main
from gptloom.reference import formulas
from gptloom.reference.formulas import Reference
from gptloom.studies.verify import chosen, passed, verify
from gptloom.studies.verify.open import open_recipe, open_run
from gptloom.studies.verify.subject import drawn_model, logits
from model_helpers import CONFIGS, build, random_ids
from mutation_helpers import RECIPES, SMALL, after_loading, subject, transpose
from training_helpers import small_run, write_text

SLOW = {"compiled", "ranks", "resume"}


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


def test_the_path_is_that_of_the_run_s_own_loss_and_precision(tmp_path, capsys):
    text = write_text(tmp_path)
    for name, more, why in (
        ("smooth", {"label_smoothing": 0.1}, "label smoothing"),
        ("half", {"precision": "bfloat16"}, "autocast"),  # with an RMSNorm, torch warns
    ):
        run = small_run(text, tmp_path / name, model={"norm": "layernorm", "qk_norm": False}, train=more).run
        assert main(["verify", run, "--checks", "tokens", "--json", "--device", "cpu"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["path"] == "reference" and why in found["why"]


def test_what_the_formulas_do_not_know_is_not_called_a_fault(monkeypatch):
    """As if `qk_norm` were a new field."""
    monkeypatch.setattr(formulas, "KNOWN", formulas.KNOWN - {"qk_norm"})
    findings = {}
    for qk_norm in (True, False):
        subject = open_recipe("tiny", {"device": "cpu", "model": {"qk_norm": qk_norm}}, seed=1)
        for one in verify(subject, chosen(["formula", "loss", "targets"])):
            findings[one.name, qk_norm] = one
    assert findings["formula", True].passed is findings["loss", True].passed is None
    assert "qk_norm is not known to the formulas" in findings["formula", True].note
    assert all(findings[one].passed for one in findings if one[0] == "targets" or not one[1])


def test_an_optimizer_of_one_s_own_is_not_called_a_fault(tmp_path, capsys):
    make = partial(torch.optim.SGD, lr=0.1)
    run = small_run(write_text(tmp_path), tmp_path / "own", optimizer=make).run
    assert main(["verify", run, "--checks", "update,clipping,groups,targets", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert found["targets"]["passed"] and found["update"]["passed"] is None
    assert "optimizer of a Python program" in found["update"]["note"]


def test_words_that_verify_does_not_know(capsys):
    assert main(["verify", "--checks", "formula,cachd"]) == 2
    assert "did you mean cached?" in capsys.readouterr().err
    assert main(["verify", "RUN", "--recipe", "tiny"]) == 2
    assert main(["verify", "--recipe", "tinny"]) == 2
    assert main(["verify", "--seed", "-1"]) == 2
    assert main(["verify", "nowhere"]) == 2


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
