"""`gptloom data`, `gptloom doctor`, and the last lines of a training run."""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gptloom.config.load import recipe_names, resolve
from gptloom.config.run import DataConfig
from gptloom.data.report import Report, describe
from gptloom.data.sources import open_corpus
from gptloom.devices import describe_machine, pick_device, pick_precision
from gptloom.errors import ExitCode
from gptloom.fast.train import TrainingPass
from gptloom.io.atomic import logged
from gptloom.model.build import build_model
from gptloom.model.loss import Objective
from gptloom.training.setup import Result


def report_run(result: Result, as_json: bool) -> None:
    """What a run came to."""
    if as_json:
        print(json.dumps(asdict(result)))
        return
    end = {
        "finished": "finished",
        "patience": "stopped: the validation loss no longer fell",
        "stopped": "stopped by a signal, state saved",
    }[result.end]
    print(
        f"{end} after {result.steps:,} steps, {result.tokens:,} tokens, {result.seconds:.1f} s of training",
        file=sys.stderr,
    )
    if result.val_loss is not None:
        bits = "" if result.val_bpb is None else f", {result.val_bpb:.4f} bits per byte"
        print(f"validation loss {result.val_loss:.4f} nats per token{bits} (the best, at step {result.best_step:,})")
    if result.exact_match is not None:
        print(f"{result.exact_match:.2%} of the validation targets written to the letter")
    samples = Path(result.run) / "samples.jsonl"
    texts = [str(line["text"]) for line in logged(samples) if "text" in line] if samples.exists() else []
    if texts:
        print("\n" + texts[-1].strip("\n") + "\n")
    follow = f"gptloom resume {result.run}" if result.end == "stopped" else f"gptloom sample {result.run} --prompt ..."
    print(f"{result.run}\nnext: {follow}")


def data(args: argparse.Namespace) -> int:
    """Print the report on a text."""
    config = DataConfig(text_field=args.text_field, encoding=args.encoding)
    report = describe(open_corpus(args.texts, config), config)
    print(json.dumps(asdict(report), ensure_ascii=False) if args.json else "\n".join(_lines(report)))
    return ExitCode.DONE


def _lines(report: Report) -> list[str]:
    """The report as a person reads it."""
    frequent = " ".join(
        repr(character)[1:-1] if character != " " else "space" for character, _ in report.alphabet.characters[:20]
    )
    lines = [
        f"text       {report.name}: {report.documents:,} documents, {report.characters:,} characters, {report.bytes:,} bytes",
        f"alphabet   {report.alphabet.size:,} characters; most frequent first: {frequent}",
        f"{'tokens':<17} {'vocabulary':>10} {'tokens':>13}  characters per token",
    ]
    for name, count in report.tokens.items():
        about = " " if count.exact else "~"
        lines.append(
            f"  {name:<15} {count.vocab_size:>10,} {about}{count.tokens:>12,}  {count.characters_per_token:.2f}"
        )
    found = report.repeats
    return [
        *lines,
        f"repeats    {found.line_share:.1%} of {found.lines:,} lines repeat an earlier one; {found.repeated_documents:,} of {found.documents:,} documents do",
        f"overlap    {report.leakage:.1%} of the validation text's 50-character passages also occur in the training text",
        *(f"warning    {warning}" for warning in report.warnings),
        *(f"note       {note}" for note in report.notes),
    ]


def doctor(args: argparse.Namespace) -> int:
    """Print what there is and what will be used."""
    from platformdirs import user_cache_dir

    device = pick_device("auto")
    machine = describe_machine()
    extras = {
        name: find_spec(name) is not None for name in ("sentencepiece", "tiktoken", "tensorboard", "transformers")
    }
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None)
    used: dict[str, Any] = {
        "device": str(device),
        "why": {
            "cuda": "the first CUDA device",
            "mps": "no CUDA device, but Apple's GPU",
            "cpu": "no CUDA or MPS device",
        }[device.type],
        "precision": str(pick_precision("auto", device)).removeprefix("torch."),
        "recipe": "tiny" if device.type == "cpu" else "baby",
    }
    passes = _passes(used["recipe"], device)
    used |= {"path": passes.path, "why_not_fast": passes.why, "deviation": passes.deviation}
    found = {
        "used": used,
        **machine,
        "extras": extras,
        "compiler": compiler,
        "recipes": recipe_names(),
        "cache": user_cache_dir("gptloom"),
    }
    if args.json:
        print(json.dumps(found))
        return ExitCode.DONE
    print(
        f"will use   {used['device']} ({used['why']}) in {used['precision']}, recipe {used['recipe']}, {torch.get_num_threads()} CPU threads"
    )
    print(f"passes     {passes.describe()}")
    print(f"python     {machine['python']} on {machine['system']}, CPU kernels for {machine['cpu']}")
    print("versions   " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(
        "extras     "
        + ", ".join(f"{name} {'installed' if there else 'not installed'}" for name, there in extras.items())
    )
    print(f"compiler   {compiler or 'none found: torch.compile on a CPU needs one'}")
    print(f"recipes    {', '.join(recipe_names())}")
    print(f"cache      {found['cache']}")
    return ExitCode.DONE


def _passes(recipe: str, device: torch.device) -> TrainingPass:
    """Which passes would train a recipe's model on this machine, compared on made-up tokens."""
    config = resolve(recipe).model
    model = build_model(config).to(device)
    passes = TrainingPass(Objective(model), model.zero_grad)
    ids = torch.arange(config.block_size, device=device)[None] % config.vocab_size
    passes.check([ids, ids])
    return passes
