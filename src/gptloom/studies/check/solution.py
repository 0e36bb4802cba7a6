"""Running a learner's file: loading it, building its classes with sizes of ours, and turning whatever goes wrong into a sentence."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "block_size": 8,
    "n_embd": 24,
    "n_head": 4,
    "n_kv_head": 2,
    "n_layer": 2,
    "head_size": 6,
    "width": 64,
    "dropout": 0.0,
    "device": "cpu",
}
"""What everything is built with: all sizes differ, so that axes cannot be confused unnoticed."""

OTHER_NAMES = {
    "vocab_size": {"vocab", "vocabulary_size", "n_vocab", "num_tokens"},
    "block_size": {"context", "context_length", "context_size", "max_len", "max_length", "max_seq_len", "seq_len", "sequence_length", "t"},
    "n_embd": {
        "n_embed", "embed_dim", "embd_dim", "emb_dim", "embedding_dim", "embed_size", "emb_size", "embedding_size", "d_model", "dim", "ndim",
        "hidden_size", "features", "channels", "normalized_shape", "size", "width", "c", "d",
    },
    "n_head": {"n_heads", "num_heads", "num_head", "heads", "nhead", "h"},
    "n_kv_head": {"n_kv_heads", "num_kv_heads", "kv_heads", "n_groups", "num_groups", "groups"},
    "n_layer": {"n_layers", "num_layers", "layers", "depth"},
    "head_size": {"head_dim", "head_width", "d_head", "d_k", "hs"},
    "width": {"hidden", "hidden_dim", "hidden_width", "inner", "inner_dim", "d_ff", "mlp_width", "ff_dim", "intermediate_size"},
    "dropout": {"p", "p_drop", "drop", "dropout_rate", "dropout_p", "attn_dropout", "resid_dropout"},
}  # fmt: skip
"""What the same thing is called elsewhere."""


class UnknownArgumentError(TypeError):
    """A constructor asks for something that the check cannot give."""


@dataclass(frozen=True)
class Failure:
    """An exception in the learner's code, as one line: what, and in which line of their file."""

    line: str
    error: type[BaseException]


def attempt(action: Callable[[], Any], path: Path) -> Any:
    """The action's result, or a `Failure`: the learner's code may raise anything, and each kind is an answer for them."""
    try:
        return action()
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return Failure(_describe(error, path), type(error))


def _describe(error: BaseException, path: Path) -> str:
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {text}{place}"


def load(path: Path) -> ModuleType:
    """Import a file under a name of its own.

    This runs it, as `python FILE` would, except for what is under `if __name__ == "__main__"`.
    """
    name = f"gptloom_learner_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def set_globals(module: ModuleType, values: Mapping[str, Any]) -> None:
    """Give the file's own constants our sizes: lecture code often reads n_embd or dropout from the top of its file."""
    for name, value in values.items():
        for alias in {name} | {other for other in OTHER_NAMES.get(name, set()) if len(other) > 4}:  # not dim = -1
            old = getattr(module, alias, None)
            if isinstance(old, int | float | str | torch.device) and not isinstance(old, bool):
                setattr(module, alias, value)


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """Call a class with those of our values that its constructor names.

    Args:
        cls: the learner's class.
        values: by our names, which may be called otherwise there (`OTHER_NAMES`); one named `config` receives them all.

    Raises:
        UnknownArgumentError: it asks for something else.
    """
    chosen: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name.lower() in ("config", "cfg", "args", "conf"):
            chosen[name] = SimpleNamespace(
                **{alias: value for known, value in values.items() for alias in {known, *OTHER_NAMES.get(known, ())}}
            )
            continue
        known = _canonical(name.lower(), values)
        if known is not None:
            chosen[name] = values[known]
        elif parameter.default is parameter.empty:
            raise UnknownArgumentError(f"{cls.__name__} asks for {name!r}, which is none of {', '.join(values)}")
    by_place = {name for name, p in inspect.signature(cls).parameters.items() if p.kind == p.POSITIONAL_ONLY}
    return cls(
        *(value for name, value in chosen.items() if name in by_place),
        **{name: value for name, value in chosen.items() if name not in by_place},
    )


def _canonical(name: str, values: Mapping[str, Any]) -> str | None:
    if name in values:
        return name
    return next((known for known in values if name in OTHER_NAMES.get(known, ())), None)


def run(module: Callable[[Tensor], Any], x: Tensor, *, seed: int = 0) -> Tensor:
    """One call without gradients, from a seed; of a tuple (output and weights, logits and loss) the first."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # the CPU's alone: cheaper than torch.manual_seed
        out = module(x.clone())
    out = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(out, Tensor):
        raise TypeError(f"it returns {type(out).__name__}, not a tensor")
    return out.detach()
