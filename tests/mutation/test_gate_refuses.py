"""Four changes, made where a newcomer would make them: each takes effect in training, evaluation and sampling.

Each test edits a copy of the sources and runs it in a separate process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "gptloom"

SOFTCAP = [
    (
        "    qk_norm: bool = Field(",
        '    softcap: float = Field(0.0, description="Soft cap of the scores")\n    qk_norm: bool = Field(',
    ),
    ("        self.drop_weights = config", "        self.softcap = config.softcap\n        self.drop_weights = config"),
    (
        "        if traced is None:\n            causal",
        "        if self.softcap:\n"
        "            scores = self.softcap * torch.tanh(query @ key.transpose(-2, -1) * self.scale / self.softcap)\n"
        "            hidden = torch.tensor(False) if mask is None else ~mask\n"
        "            if mask is None and causal:\n"
        "                hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)\n"
        "            scores = scores.masked_fill(hidden, -1e9)\n"
        "            weights = scores.softmax(-1)\n"
        "            if traced is not None:\n"
        "                traced.append(weights.detach())\n"
        "            return (weights @ value).transpose(1, 2).flatten(2)\n"
        "        if traced is None:\n            causal",
    ),
]
Z_LOSS = [
    (
        "        return nats, (targets != IGNORE_INDEX).sum()",
        "        return nats + 0.1 * scores.logsumexp(-1).square().sum(), (targets != IGNORE_INDEX).sum()",
    )
]
WEAK_Z_LOSS = [(old, new.replace("0.1", "1e-5")) for old, new in Z_LOSS]
WIDE_CAP = [
    (
        "        if traced is None:\n            causal",
        "        if traced is None and mask is None and causal:\n"
        "            scores = 30 * torch.tanh(query @ key.transpose(-2, -1) * self.scale / 30)\n"
        "            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)\n"
        "            weights = scores.masked_fill(hidden, -1e9).softmax(-1)\n"
        "            return (weights @ value).transpose(1, 2).flatten(2)\n"
        "        if traced is None:\n            causal",
    )
]
"""Both change nothing that rounding does not explain while the weights are small, as in a new model."""
SCALED = [
    (
        "        x: Tensor = self.token_table(ids)\n",
        "        x: Tensor = self.token_table(ids) * self.config.n_embd**0.5\n",
    )
]

PROGRAM = """
import json, sys, torch
from pathlib import Path
import gptloom
folder, hook = Path(sys.argv[1]), sys.argv[2]
extra = json.loads(sys.argv[3])
if hook != "none":
    make = torch.nn.Module.__init__
    def listen(module, *args, **kwargs):
        make(module, *args, **kwargs)
        if hook == "all" or type(module).__name__ == "MLP":
            module.register_forward_hook(lambda *_: None)
    torch.nn.Module.__init__ = listen
torch.set_num_threads(1)
text = folder / "text.txt"
text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "ngram_rows": 64} | extra
train = {"batch_size": 4, "log_every": 1, "eval_every": 4, "threads": 1, "sample_tokens": 0}
result = gptloom.train(text, recipe="tiny", run=folder / f"run-{hook}", steps=8, device="cpu", model=model, train=train)
lines = [json.loads(line) for line in (Path(result.run) / "metrics.jsonl").read_text().splitlines()]
about = json.loads((Path(result.run) / "run.json").read_text())
bundle = gptloom.load(result.run, device="cpu", which="latest")
ids = bundle.prompt_ids("the quick")
from gptloom.config.run import SampleConfig
written = bundle.write("the quick", SampleConfig(tokens=4, temperature=0.0), details=3)[0].tokens
with torch.no_grad():
    bundle.model.eval()
    own = bundle.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
print(json.dumps({
    "losses": [line["loss"] for line in lines if line["event"] == "train"],
    "evaluated": result.last_val_loss,
    "sampled": written[0].logprob,
    "own": float(own[written[0].id]),
    "path": about.get("path"),
    "why": about.get("why"),
}))
"""


def edited(folder, changes):
    """A copy of the sources; each piece of text is replaced in the one file that contains it."""
    shutil.copytree(SOURCE, folder / "src" / "gptloom", ignore=shutil.ignore_patterns("__pycache__"))
    for old, new in changes:
        files = [
            path
            for path in (folder / "src").rglob("*.py")
            if old in path.read_text(encoding="utf-8") and "fast" not in path.parts
        ]
        assert len(files) == 1, f"{old!r} is in {files}"
        files[0].write_text(files[0].read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return folder


def run(folder, hook="none", **model):
    environment = os.environ | {
        "PYTHONPATH": str(folder / "src"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, str(folder), hook, json.dumps(model)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("changes", "model", "reason"),
    [
        (SOFTCAP, {"softcap": 0.5}, "softcap is not known to fast/"),
        (Z_LOSS, {}, "its loss or gradients differ from the model's"),
        (SCALED, {}, "its loss or gradients differ from the model's"),
    ],
    ids=["soft cap", "z-loss", "scaled embedding"],
)
def test_change_takes_effect_in_training_evaluation_and_sampling(tmp_path, changes, model, reason):
    folder = edited(tmp_path, changes)
    found, said = run(folder, **model)
    assert found["path"] == "reference" and reason in found["why"]
    assert f"passes   reference: {found['why']}" in said
    wanted, _ = run(folder, "all", **model)  # with hooks on all modules, the layers compute everything
    assert found["losses"] == wanted["losses"]
    assert found["evaluated"] == wanted["evaluated"]
    assert found["sampled"] == pytest.approx(found["own"], abs=1e-4)


@pytest.mark.parametrize("changes", [WEAK_Z_LOSS, WIDE_CAP], ids=["weak z-loss", "wide soft cap"])
def test_change_that_small_weights_hide_is_refused(tmp_path, changes):
    found, _ = run(edited(tmp_path, changes))
    assert found["path"] == "reference" and "its loss or gradients differ from the model's" in found["why"]


def test_hook_is_refused_with_a_line_and_changes_no_result(tmp_path):
    """One hook without effect: the layers compute everything, as with hooks on all modules."""
    folder = edited(tmp_path, [])
    plain, _ = run(folder)
    found, said = run(folder, "mlp")
    assert plain["path"] == "fast" and plain["why"] is None
    assert found["path"] == "reference" and "a hook is registered on" in found["why"]
    assert f"passes   reference: {found['why']}" in said
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
