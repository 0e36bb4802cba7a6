"""What every recipe, scaled down, and every kept run come to: `python tests/golden/golden.py [NAMES] [--json FILE]`.

Nothing is imported or read but what users have: `import gptloom`, the command line, and the files of a run. So the same
file measures any commit, and `compare.py` holds two of them together, bit for bit. Every value is computed twice:

    fast       as the program is;
    reference  with a hook on each layer that does nothing: what passes over layers must not pass over hooks, and
               leaves the work to the layers and to autograd.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import re
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.numpy import load_file

import gptloom

HERE = Path(__file__).parent
TEXT = HERE / "text.txt"  # the beginning of tiny Shakespeare, which is in the public domain
PAIRS = HERE / "pairs.tsv"  # 160 numbers, in num2words' English and French
RUNS = HERE / "run-ff6eb0a"
PATHS = ("fast", "reference")
STEPS = 20
PROMPT = "First Citizen:\n"

# Sizes alone are changed, and warm-ups that are longer than these runs; and tokenizers that would need a network.
SMALL = {"model.block-size": 32, "model.n-layer": 2, "model.n-head": 4, "model.n-embd": 64, "train.batch-size": 8}
SHORT = {"train.warmup-steps": 5}
LARGE = {"train.micro-batch-size": 4, "train.eval-batch-size": 3}
RECIPES: dict[str, dict[str, Any]] = {
    "baby": SMALL | SHORT,
    "encoder": SMALL | SHORT,
    "gpt2": SMALL | SHORT | LARGE | {"tokenizer": "byte"},
    "lstm": {"model.block-size": 32, "model.n-embd": 64, "train.batch-size": 8} | SHORT,
    "mingpt": SMALL,
    "modern": SMALL | SHORT | LARGE | {"tokenizer": "bpe:300", "model.n-kv-head": 2, "model.mlp-width": 192},
    "modern-tiny": SMALL | SHORT,
    "tiny": SMALL | {"model.ngram-rows": 2048},
    "translate": SMALL | SHORT | {"model.block-size": 48},
}
PROMPTS = {"translate": "twenty-one", "encoder": "We ar[MASK] accou[MASK]ted poor"}
KEPT = ("run adamw", "run muon")  # see run-ff6eb0a/README.md
NAMES = (*RECIPES, *KEPT)
CHANGED = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGUSR1")}  # by a command, for good


def compute(name: str, path: str, threads: int = 1) -> dict[str, Any]:
    """The values of a recipe, or of a kept run ("run muon"), by one of the two paths."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, XDG_CACHE_HOME=folder))
        if path == "reference":
            stack.enter_context(listening())
        run = Path(folder) / "run"
        if name in RECIPES:
            train(name, run, threads)
            return _reached(run, name)
        found = {"before": _written(copy(name, run), name)}
        command("resume", run, "--json")
        return found | _reached(run, name)


def train(recipe: str, run: Path, threads: int = 1) -> None:
    """Train a recipe, scaled down."""
    settings = {"train.threads": threads, "train.log-every": 1, "train.eval-every": STEPS, "train.sample-tokens": 8}
    flags = [f"--{key}={value}" for key, value in (RECIPES[recipe] | settings).items()]
    text = PAIRS if recipe == "translate" else TEXT
    command("train", text, "--recipe", recipe, "--run", run, "--device=cpu", f"--steps={STEPS}", *flags, "--json")


def copy(name: str, run: Path) -> Path:
    """A kept run, which was stopped half-way, as a folder that can be written to and finds its text."""
    shutil.copytree(RUNS / name.removeprefix("run "), run)
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    about |= {"texts": [str(TEXT)], "tokens": str(run / "gone")}
    (run / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return run


def command(*words: Any) -> str:
    """What `python -m gptloom WORDS` prints. It runs in this process, so that `listening` sees its layers."""
    out, errors = io.StringIO(), io.StringIO()
    before = {one: signal.getsignal(one) for one in signal.valid_signals() & CHANGED}
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(sys, "argv", ["gptloom", *map(str, words)]))
            stack.enter_context(mock.patch.object(os, "_exit", sys.exit))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(errors))
            runpy.run_module("gptloom", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"gptloom {words}: {errors.getvalue()}") from None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    return out.getvalue()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Every layer that is made meanwhile has a forward hook, which does nothing."""
    make = torch.nn.Module.__init__

    def make_and_listen(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        make(module, *args, **kwargs)
        module.register_forward_hook(lambda *_: None)

    with mock.patch.object(torch.nn.Module, "__init__", make_and_listen):
        yield


def _reached(run: Path, name: str) -> dict[str, Any]:
    """What a finished run holds, and what its last checkpoint does."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert len(losses) == STEPS, f"{len(losses)} training losses in {run}"
    return {"losses": losses, "weights": weights_hash(run)} | _written(run, name)


def _written(run: Path, name: str) -> dict[str, Any]:
    """The validation loss of a run's last checkpoint, and what it writes greedily, beside what came second."""
    prompt = PROMPTS.get(name, PROMPT)
    flags = "--checkpoint=latest", "--device=cpu", "--json"
    loss = json.loads(command("eval", run, *flags))["loss"]
    greedy = () if "[MASK]" in prompt else ("--temperature=0", "--tokens=40")  # masks are filled in, not drawn
    (sample,) = json.loads(command("sample", run, "--prompt", prompt, *greedy, *flags))["samples"]
    found = {"evaluation": loss, "text": sample["text"], "tokens": [token["text"] for token in sample["tokens"]]}
    found["logprobs"] = [token["logprob"] for token in sample["tokens"]]
    found["runners_up"] = [token["alternatives"][1]["logprob"] for token in sample["tokens"]]
    if "[MASK]" not in prompt:  # the same without looking at probabilities, which has a quicker way of its own
        found["generated"] = gptloom.load(run, which="latest").generate(prompt, temperature=0.0, tokens=40)
    return found


def weights_hash(run: Path) -> str:
    """SHA-256 over names, shapes and bytes of the last checkpoint's weights."""
    last = max((run / "checkpoints").glob("step-*"))
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(last / "model.safetensors").items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return digest.hexdigest()


def machine(threads: int) -> dict[str, Any]:
    """What the last digits depend on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        cpu = f"{about.get('model name', cpu)}, family {about.get('cpu family')}, model {about.get('model')}"
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": cpu, "capability": capability, "torch": torch.__version__, "threads": threads}


def main() -> None:
    """Compute the values and print or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write them (default: standard output)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    values = {}
    for name in args.names or NAMES:
        values[name] = {path: compute(name, path, args.threads) for path in PATHS}
        print(name, file=sys.stderr)
    source = str(Path(gptloom.__file__ or "").parent)
    text = json.dumps({"source": source, "machine": machine(args.threads), "values": values}, indent=1) + "\n"
    text = re.sub(r"\[[^][]*\]", lambda found: re.sub(r"\n *", " ", found[0]), text)  # a list a line
    if args.json:
        args.json.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
