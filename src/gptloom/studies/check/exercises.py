"""Run a learner's file: import it, construct its classes with our sizes, and describe exceptions in one line.

The exercises of `gptloom ladder check`: what a learner writes at each step, its reference, and its mutants.
"""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptloom.reference import lecture, modern, steps
from gptloom.studies.check import formulas
from gptloom.studies.check import mutants as attention
from gptloom.studies.check.mutants import Mutant

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
"""Sizes of all modules. They all differ, so that swapped axes are found."""

OTHER_NAMES = {
    "vocab_size": {"vocab", "vocabulary_size", "n_vocab", "num_tokens"},
    "block_size": {
        "context", "context_length", "context_size", "max_len", "max_length", "max_seq_len", "seq_len",
        "sequence_length", "t",
    },
    "n_embd": {
        "n_embed", "embed_dim", "embd_dim", "emb_dim", "embedding_dim", "embed_size", "emb_size", "embedding_size",
        "d_model", "dim", "ndim", "hidden_size", "features", "channels", "normalized_shape", "size", "width", "c", "d",
    },
    "n_head": {"n_heads", "num_heads", "num_head", "heads", "nhead", "h"},
    "n_kv_head": {"n_kv_heads", "num_kv_heads", "kv_heads", "n_groups", "num_groups", "groups"},
    "n_layer": {"n_layers", "num_layers", "layers", "depth"},
    "head_size": {"head_dim", "head_width", "d_head", "d_k", "hs"},
    "width": {
        "hidden", "hidden_dim", "hidden_width", "inner", "inner_dim", "d_ff", "mlp_width", "ff_dim",
        "intermediate_size",
    },
    "dropout": {"p", "p_drop", "drop", "dropout_rate", "dropout_p", "attn_dropout", "resid_dropout"},
}  # fmt: skip
"""Other common names of our arguments."""


class UnknownArgumentError(TypeError):
    """A constructor has a required argument that the check does not know."""


@dataclass(frozen=True)
class Failure:
    """An exception in the learner's code: a message with the line number in their file, and the exception's type."""

    line: str
    error: type[BaseException]


def attempt(action: Callable[[], Any], path: Path) -> Any:
    """Call a function; return its result, or a `Failure` if it raises any exception."""
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
    """Import a file under a separate module name.

    This runs the file as `python FILE` does, except for code under `if __name__ == "__main__"`.

    Raises:
        ImportError: the file's name does not end in .py.
    """
    name = f"gptloom_learner_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses need their module there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def set_globals(module: ModuleType, values: Mapping[str, Any]) -> None:
    """Set the file's global constants to our sizes, for lecture code often reads n_embd or dropout from globals."""
    for name, value in values.items():
        for alias in {name} | {other for other in OTHER_NAMES.get(name, set()) if len(other) > 4}:  # not dim = -1
            old = getattr(module, alias, None)
            if isinstance(old, int | float | str | torch.device) and not isinstance(old, bool):
                setattr(module, alias, value)


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """Construct a class with those of our values that its constructor takes.

    Args:
        cls: the learner's class.
        values: values by our names. The class may use `OTHER_NAMES`. An argument named `config` receives all values.

    Raises:
        UnknownArgumentError: the constructor has another required argument.
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
    """Call a module without gradients, with a fixed seed; return a tensor, or the first one of a tuple.

    Raises:
        TypeError: the result is not a tensor.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # faster than torch.manual_seed, which seeds every device
        out = module(x.clone())
    out = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(out, Tensor):
        raise TypeError(f"it returns {type(out).__name__}, not a tensor")
    return out.detach()


V, T, C, H, D = (SIZES[name] for name in ("vocab_size", "block_size", "n_embd", "n_head", "head_size"))


@dataclass(frozen=True)
class Exercise:
    """One class or function that the learner writes.

    Attributes:
        name: the required name.
        reference: returns the reference module or function.
        mutants: the known mistakes by name.
        takes: the constructor's arguments, by our names; empty for a function.
        sees: the positions that a result may depend on: past (attention) or self (position-wise).
        dropout: the place of dropout: the attention weights, the output, or none ("").
        source: returns the input.
        accepted: mistakes that this step allows with a remark.
        aliases: other accepted names.
        sizes: sizes that differ from `SIZES`.
    """

    name: str
    reference: Callable[[], Any]
    mutants: Mapping[str, Mutant]
    takes: tuple[str, ...] = ()
    sees: Literal["past", "self"] = "past"
    dropout: Literal["weights", "output", ""] = ""
    source: Callable[[], Tensor] = field(default=lambda: normal())
    accepted: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_function(self) -> bool:
        """Whether the exercise is a function of one tensor."""
        return not self.takes

    @property
    def usage(self) -> str:
        """The call of the function or constructor, for messages."""
        return f"{self.name}({', '.join(self.takes or ('x',))})"

    def values(self) -> dict[str, Any]:
        """Values for the constructor by our names: the expected arguments first, then all other sizes."""
        sizes = {**SIZES, "dropout": 0.5 if self.dropout else 0.0, **self.sizes}
        if "width" not in (*self.takes, *self.sizes):
            del sizes["width"]  # the width of a norm is n_embd
        return {name: sizes[name] for name in self.takes} | sizes


def normal() -> Tensor:
    """Vectors of unit variance, (3, block_size, n_embd)."""
    return torch.randn(3, T, C, generator=torch.Generator().manual_seed(0))


def mixed_scales() -> Tensor:
    """Vectors of many sizes with a nonzero mean, so that eps and the mean matter; (3, block_size, n_embd)."""
    sizes = 10 ** torch.linspace(-3.5, 1.0, 3 * T)[
        torch.randperm(3 * T, generator=torch.Generator().manual_seed(1))
    ].view(3, T, 1)
    return (normal() + 0.7) * sizes


def ids() -> Tensor:
    """Token ids (3, block_size)."""
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))


_EITHER_SCALE = frozenset({"scale-wrong-width"})
_ATTENTION = ("MultiHeadAttention", "CausalSelfAttention", "Attention")
_MODEL = ("BigramLanguageModel", "LanguageModel", "Model")
_HEAD = ("n_embd", "head_size", "block_size", "dropout")
_JOINED = ("n_embd", "n_head", "block_size", "dropout")

_head = Exercise("Head", lambda: lecture.Head(C, D, T), attention.ONE_HEAD, _HEAD, accepted=_EITHER_SCALE)
_joined = Exercise(
    "MultiHeadAttention",
    lambda: steps.JoinedHeads(C, H, T),
    attention.MULTI_HEAD,
    _JOINED,
    accepted=_EITHER_SCALE,
    aliases=_ATTENTION,
)
_projected = Exercise(
    "MultiHeadAttention",
    lambda: lecture.MultiHeadAttention(C, H, T),
    attention.WITH_PROJECTION,
    _JOINED,
    accepted=_EITHER_SCALE,
    aliases=_ATTENTION,
)
_feed_forward = Exercise(
    "FeedForward",
    lambda: lecture.FeedForward(C),
    formulas.FEED_FORWARD,
    ("n_embd", "dropout"),
    sees="self",
    aliases=("FeedFoward", "MLP"),
    sizes={"width": 4 * C},
)
_layer_norm = Exercise(
    "LayerNorm", lambda: lecture.LayerNorm(C), formulas.LAYER_NORM, ("n_embd",), sees="self", source=mixed_scales
)


def _block(reference: Callable[[], nn.Module], mutants: Mapping[str, Mutant]) -> Exercise:
    return Exercise("Block", reference, mutants, _JOINED, accepted=_EITHER_SCALE)


def _with_dropout(exercise: Exercise, place: Literal["weights", "output"]) -> Exercise:
    return replace(exercise, dropout=place)


def _strict(exercise: Exercise) -> Exercise:
    return replace(exercise, accepted=frozenset())


EXERCISES: dict[str, tuple[Exercise, ...]] = {
    "bigram": (Exercise("Bigram", lambda: steps.Bigram(V), {}, ("vocab_size",), "self", source=ids, aliases=_MODEL),),
    "embedding": (
        Exercise(
            "Embedded",
            lambda: steps.Embedded(V, C),
            formulas.EMBEDDING,
            ("vocab_size", "n_embd"),
            "self",
            source=ids,
            aliases=_MODEL,
        ),
    ),
    "positions": (
        Exercise(
            "Positioned",
            lambda: steps.Positioned(V, T, C),
            formulas.POSITIONS,
            ("vocab_size", "block_size", "n_embd"),
            "self",
            source=ids,
            aliases=_MODEL,
        ),
    ),
    "averaging": (
        Exercise(
            "average",
            lambda: steps.average_by_matrix,
            formulas.AVERAGE,
            aliases=("causal_mean", "average_by_loop", "average_by_matrix"),
        ),
    ),
    "one-head": (_head,),
    "multi-head": (_joined,),
    "mlp": (_feed_forward,),
    "residual": (_projected, _block(lambda: steps.ResidualBlock(C, H, T), attention.RESIDUAL_BLOCK)),
    "layernorm": (_layer_norm, _block(lambda: lecture.Block(C, H, T), attention.PRE_NORM_BLOCK)),
    "post-norm": (_block(lambda: steps.PostNormBlock(C, H, T), attention.POST_NORM_BLOCK),),
    "dropout": (
        _with_dropout(_head, "weights"),
        _with_dropout(_projected, "output"),
        _with_dropout(_feed_forward, "output"),
    ),
    "score-scale": (_strict(_head), _strict(_projected)),
    "gelu": (Exercise("gelu", lambda: modern.gelu, formulas.GELU, sees="self"),),
    "rope": (Exercise("rotate", lambda: modern.rotate, attention.ROTATION, sees="self"),),
    "rmsnorm": (
        Exercise("RMSNorm", lambda: modern.RMSNorm(C), formulas.RMS_NORM, ("n_embd",), "self", source=mixed_scales),
    ),
    "qk-norm": (
        Exercise(
            "MultiHeadAttention",
            lambda: modern.GroupedAttention(C, H, H, T),
            attention.QK_NORMED,
            _JOINED,
            aliases=_ATTENTION,
        ),
    ),
    "swiglu": (
        Exercise(
            "SwiGLU",
            lambda: modern.SwiGLU(C, SIZES["width"]),
            formulas.SWIGLU,
            ("n_embd", "width"),
            "self",
            aliases=("FeedForward", "MLP"),
        ),
    ),
    "gqa": (
        Exercise(
            "GroupedAttention",
            lambda: modern.GroupedAttention(C, H, SIZES["n_kv_head"], T),
            attention.GROUPED,
            ("n_embd", "n_head", "n_kv_head", "block_size"),
            aliases=("GroupedQueryAttention", *_ATTENTION),
        ),
    ),
}
"""Exercises by step. The counting steps, `scale`, `gpt2-init` and `modern` have no exercise."""
