"""`gptloom doctor`: the devices, versions and defaults of this machine."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gptloom.cli.flags import loading, make_parser
from gptloom.config.load import recipe_names, resolve
from gptloom.errors import ExitCode

if TYPE_CHECKING:
    import torch

    from gptloom.fast.train import TrainingPass

EXTRAS = ("sentencepiece", "tiktoken", "tensorboard", "transformers")
WHY = {"cuda": "the first CUDA device", "mps": "no CUDA device, but Apple's GPU", "cpu": "no CUDA or MPS device"}


def doctor_command(words: list[str]) -> int:
    """Show this machine's devices and versions, and the defaults that will be used."""
    args = make_parser("doctor", "", doctor_command).parse(words)
    with loading():
        import torch
        from platformdirs import user_cache_dir

        from gptloom.devices import describe_machine, pick_device, pick_precision

    device = pick_device("auto")
    machine = describe_machine()
    used: dict[str, Any] = {
        "device": str(device),
        "why": WHY[device.type],
        "precision": str(pick_precision("auto", device)).removeprefix("torch."),
        "recipe": "tiny" if device.type == "cpu" else "baby",
    }
    passes = _training_pass(used["recipe"], device)
    used |= {"path": passes.path, "why_not_fast": passes.why, "deviation": passes.deviation}
    found = {
        "used": used,
        **machine,
        "extras": {name: find_spec(name) is not None for name in EXTRAS},
        "compiler": next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None),
        "recipes": recipe_names(),
        "cache": user_cache_dir("gptloom"),
    }
    print(json.dumps(found) if args.json else "\n".join(_lines(found, passes.describe(), torch.get_num_threads())))
    return ExitCode.DONE


def _training_pass(recipe: str, device: torch.device) -> TrainingPass:
    """Return the training pass of a recipe's model, checked against the reference on made-up tokens."""
    import torch

    from gptloom.fast.train import TrainingPass
    from gptloom.model.build import build_model
    from gptloom.model.loss import Objective

    config = resolve(recipe).model
    model = build_model(config).to(device)
    passes = TrainingPass(Objective(model), model.zero_grad)
    ids = torch.arange(config.block_size, device=device)[None] % config.vocab_size
    passes.check([ids, ids])
    return passes


def _lines(found: dict[str, Any], passes: str, threads: int) -> list[str]:
    used, versions = found["used"], found["versions"].items()
    extras = (f"{name} {'installed' if there else 'not installed'}" for name, there in found["extras"].items())
    device = f"{used['device']} ({used['why']}) in {used['precision']}"
    return [
        f"will use   {device}, recipe {used['recipe']}, {threads} CPU threads",
        f"passes     {passes}",
        f"python     {found['python']} on {found['system']}, CPU kernels for {found['cpu']}",
        "versions   " + ", ".join(f"{name} {version}" for name, version in versions),
        "extras     " + ", ".join(extras),
        f"compiler   {found['compiler'] or 'none found: torch.compile on a CPU needs one'}",
        f"recipes    {', '.join(found['recipes'])}",
        f"cache      {found['cache']}",
    ]
