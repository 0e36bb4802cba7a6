"""Import of nanoGPT's checkpoints and minGPT's state dictionaries as a `Decoder`, and the table of weight names.

A separate process (`pt_reader`) opens the file.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from gptloom.checkpoint.format import load_weights, read_header
from gptloom.config.load import parse
from gptloom.config.model import ModelConfig
from gptloom.errors import InputError, MachineError
from gptloom.files import read_json, regular_size
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model

# nanoGPT and minGPT use the same names. Both store matrices as nn.Linear does, (out, in), and so does gptloom.
NANOGPT = {
    "transformer.wte.weight": "token_table.weight",
    "transformer.wpe.weight": "position_table.weight",
    "transformer.h.{n}.ln_1.weight": "blocks.{n}.norm1.weight",
    "transformer.h.{n}.ln_1.bias": "blocks.{n}.norm1.bias",
    "transformer.h.{n}.attn.c_attn.weight": "blocks.{n}.mixer.qkv.weight",
    "transformer.h.{n}.attn.c_attn.bias": "blocks.{n}.mixer.qkv.bias",
    "transformer.h.{n}.attn.c_proj.weight": "blocks.{n}.mixer.out.weight",
    "transformer.h.{n}.attn.c_proj.bias": "blocks.{n}.mixer.out.bias",
    "transformer.h.{n}.ln_2.weight": "blocks.{n}.norm2.weight",
    "transformer.h.{n}.ln_2.bias": "blocks.{n}.norm2.bias",
    "transformer.h.{n}.mlp.c_fc.weight": "blocks.{n}.mlp.up.weight",
    "transformer.h.{n}.mlp.c_fc.bias": "blocks.{n}.mlp.up.bias",
    "transformer.h.{n}.mlp.c_proj.weight": "blocks.{n}.mlp.down.weight",
    "transformer.h.{n}.mlp.c_proj.bias": "blocks.{n}.mlp.down.bias",
    "transformer.ln_f.weight": "final_norm.weight",
    "transformer.ln_f.bias": "final_norm.bias",
    "lm_head.weight": "head.weight",
}
"""{name in nanoGPT: name in gptloom}; {n} stands for the index of the layer."""

NANOGPT_TABLES = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
"""Causal masks, which older versions of nanoGPT save with the weights."""


def rename(names: Iterable[str], table: Mapping[str, str]) -> dict[str, str | None]:
    """Translate names with a table such as `NANOGPT`; None for names that are not in the table."""
    found: dict[str, str | None] = {}
    for name in names:
        layer = re.search(r"\.(\d{1,4})\.", name)
        other = table.get(name.replace(layer[0], ".{n}.", 1) if layer else name)
        found[name] = other.replace("{n}", layer[1]) if other is not None and layer else other
    return found


def reverse(table: Mapping[str, str]) -> dict[str, str]:
    """Return the inverse table."""
    return {there: here for here, there in table.items()}


_CURE = "pass a checkpoint of nanoGPT or a state dictionary of minGPT, saved with torch.save"
_PREFIX = re.compile(r"(_orig_mod\.|module\.)+")


def import_nanogpt(path: Path, *, n_head: int | None = None, activation: str | None = None) -> LanguageModel:
    """Load a model from a .pt file.

    Args:
        path: nanoGPT's ckpt.pt, or the state dictionary of a nanoGPT or minGPT model, saved with torch.save.
        n_head: number of heads, if the file does not contain it (minGPT's does not).
        activation: gelu or gelu-tanh. The default is gelu for a file with nanoGPT's model_args and gelu-tanh for any
            other: nanoGPT has used exact GELU since 17 May 2023, minGPT uses GPT-2's approximation. The weights do not
            show which.

    Raises:
        InputError: the file has another format, or contains more than tensors and plain values; or weights are missing,
            have another shape or are not finite.
        ConfigError: the shapes do not form a valid model.
        MachineError: the model does not fit into memory, or reading the file takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="gptloom-") as name:
        folder = Path(name)
        arguments = _read_apart(path, folder)
        try:
            header = read_header(folder / "tensors.safetensors")
            shapes = {
                there: shape
                for there, (_, shape) in header.items()
                if not NANOGPT_TABLES.fullmatch(_PREFIX.sub("", there, count=1))
            }
            names = _names(shapes)
            config = _shape(
                {here: shapes[there] for here, there in names.items()}, arguments, n_head, activation, str(path)
            )
            if config.head == "linear" and _same(
                folder / "tensors.safetensors", names["head.weight"], names["token_table.weight"]
            ):
                config = config.model_copy(update={"head": "tied"})
                del names["head.weight"]
            model = build_model(config)
            load_weights(model, folder / "tensors.safetensors", names=names)
        except InputError as error:
            raise InputError(
                error.what,
                where=str(path),
                cure=error.cure if error.where != str(folder / "tensors.safetensors") else _CURE,
            ) from None
    return model


def _read_apart(path: Path, folder: Path) -> dict[str, Any] | None:
    """Extract the tensors to `folder` in a separate process; return nanoGPT's model_args, or None without them."""
    seconds = 60 + regular_size(path, cure=_CURE) / 2e7
    command = [sys.executable, "-P", "-m", "gptloom.interop.pt_reader", str(path.absolute()), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, cwd=folder, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"could not be read in {seconds:.0f} seconds",
            where=str(path),
            cure="try again when the machine is less busy",
        ) from None
    if done.returncode:
        said = (
            done.stdout[:500].decode(errors="replace").strip()
            or "cannot be read within the limits of memory and time for its size"
        )
        raise InputError(said, where=str(path), cure=_CURE)
    arguments = read_json(folder / "about.json")["model_args"]
    return arguments if isinstance(arguments, dict) else None


def _names(shapes: Mapping[str, Any]) -> dict[str, str]:
    """Return {name in gptloom: name in the file}.

    Raises:
        InputError: a name is unknown, duplicate or missing.
    """
    plain = {there: _PREFIX.sub("", there, count=1) if _PREFIX.match(there) else there for there in shapes}
    table = rename(plain.values(), NANOGPT)
    names = {here: there for there, one in plain.items() if (here := table[one]) is not None}
    strange = [there for there, one in plain.items() if table[one] is None or names[table[one] or ""] != there]
    if strange:
        raise InputError(f"has weights with unknown names: {', '.join(sorted(strange)[:3])}", cure=_CURE)
    missing = [
        there
        for there, here in NANOGPT.items()
        if "{n}" not in here and here not in names and not here.endswith(("bias", "head.weight"))
    ]
    if missing:
        raise InputError(f"has no {' and no '.join(missing)}", cure=_CURE)
    return names


def _shape(
    shapes: Mapping[str, tuple[int, ...]],
    arguments: dict[str, Any] | None,
    n_head: int | None,
    activation: str | None,
    where: str,
) -> ModelConfig:
    """Derive the configuration from the tensors' shapes; only heads and dropout are read from `arguments`."""
    told = arguments or {}
    table, positions = shapes["token_table.weight"], shapes["position_table.weight"]
    if len(table) != 2 or len(positions) != 2:
        raise InputError("its embeddings are not matrices", cure=_CURE)
    layers = [int(layer[1]) for name in shapes if (layer := re.match(r"blocks\.(\d+)\.", name))]
    found = {
        "vocab_size": table[0],
        "n_embd": table[1],
        "block_size": positions[0],
        "n_layer": max(layers, default=-1) + 1,
        "bias": "final_norm.bias" in shapes,
    }
    for name, value in found.items():
        if name in told and told[name] != value:
            raise InputError(f"says {name}={told[name]}, but its tensors say {value}", cure=_CURE)
    heads = told.get("n_head", n_head)
    if heads is None:
        raise InputError(
            "does not contain the number of heads",
            cure="set it with --n-head (minGPT's gpt-nano has 3, gpt-mini 6, gpt2 12)",
        )
    if n_head not in (None, heads):
        raise InputError(f"has {heads} heads according to its model_args, not {n_head}", cure="omit --n-head")
    fields = found | {
        "n_head": heads,
        "bias": "all" if found["bias"] else "none",
        "mlp": activation or ("gelu" if arguments is not None else "gelu-tanh"),
        "head": "linear" if "head.weight" in shapes else "tied",
        "dropout": told.get("dropout", 0.0),
    }
    return parse(ModelConfig, fields, where=where)


def _same(path: Path, first: str, second: str) -> bool:
    """Return True if two tensors of a file are equal: a tied head is saved twice."""
    with safe_open(path, framework="pt") as file:
        one, other = file.get_tensor(first), file.get_tensor(second)
    return one.shape == other.shape and bool((one == other).all())
