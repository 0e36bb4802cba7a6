"""`gptloom ladder show`: describe a step of the ladder or an architecture.

For a step, it shows the idea, the changed settings, the shapes of all intermediate tensors, and the plain code. For a
decoder, an encoder and an encoder-decoder, it shows the code in which they differ.
"""

import inspect
import math
import re
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gptloom.config.model import ModelConfig
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model
from gptloom.model.cache import Context, Trace
from gptloom.reference import lecture
from gptloom.reference.build import PLAIN
from gptloom.studies.ladder.lessons import LECTURE_STEPS, WINDOW, Lesson, configure_lesson
from gptloom.studies.ladder.report import describe_changes

ABOUT: dict[str, dict[str, str]] = {
    "decoder": {
        "title": "who may look at whom: a decoder",
        "idea": "Every position sees itself and all earlier positions. So every position can be trained to predict "
        "the next token, and a trained model can continue a text. All steps of the ladder are decoders.",
        "why": "The mask is one line; leave it out and the same code is an encoder. Try it: gptloom train shakespeare",
    },
    "encoder": {
        "title": "who may look at whom: an encoder",
        "idea": "Every position sees all others. Predicting the next token would be copying, so some tokens are hidden "
        "and the model is trained to fill them in (Devlin et al. 2019).",
        "why": "It knows both sides of a gap, which a decoder never does, but it cannot continue a text. Try it: "
        'gptloom train shakespeare --recipe encoder, then gptloom sample RUN --prompt "To be, or n[MASK]t to be"',
    },
    "encoder-decoder": {
        "title": "who may look at whom: an encoder-decoder",
        "idea": "An encoder reads the whole source, and a decoder writes the target. Each block of the decoder also "
        "attends to the source, between its self-attention and its MLP: queries come from the target, keys and values "
        "from the source (Vaswani et al. 2017).",
        "why": "It is the first Transformer, made for translation. Try it: gptloom train numbers:en-fr, then "
        'gptloom inspect RUN --prompt "ninety-seven" to see which letters of the source each letter of the translation '
        "attended to",
    },
}
_CODE = {
    "decoder": (lecture.Attention, lecture.decoder_step),
    "encoder": (lecture.Attention, lecture.encoder_step),
    "encoder-decoder": (lecture.Attention, lecture.decoder_step, lecture.encoder_decoder_step),
}


def show_architecture(name: str) -> dict[str, Any]:
    """Describe an architecture, in the format of `show_lesson`."""
    code = "\n\n".join(inspect.getsource(part) for part in _CODE[name])
    empty: dict[str, Any] = {
        "base": None,
        "outcomes": {},
        "changes": [],
        "published": [],
        "exercise": None,
        "parameters": None,
        "shapes": [],
    }
    return {"name": name, **ABOUT[name], **empty, "code": code}


Shape = tuple[str, str, tuple[int, ...]]
"""(description of a tensor, its axes as letters such as B T C, their sizes)."""

OUTPUTS = {
    r"token_table": ("token vectors", "B T C"),
    r"position_table": ("position vectors", "T C"),
    r"dropout": ("the stream before the first block", "B T C"),
    r".*\.norm1": ("normalised (attention)", "B T C"),
    r".*\.qkv": ("queries, keys and values in one", "B T (H+2G)D"),
    r".*\.query_norm": ("queries", "B H T D"),
    r".*\.key_norm": ("keys", "B G T D"),
    r".*\.mixer\.out": ("gathered, projected", "B T C"),
    r".*\.norm2": ("normalised (MLP)", "B T C"),
    r".*\.mlp\.up": ("widened", "B T F"),
    r".*\.mlp\.down": ("narrowed again", "B T C"),
    r"blocks\.\d+": ("the stream after the block", "B T C"),
    r"layers": ("the last layer's memory after each token", "B T C"),
    r"final_norm": ("normalised for the head", "B T C"),
    r"head": ("logits", "B T V"),
}
"""(description, axes) of the outputs of a decoder's modules, by patterns of the modules' names."""


def show_lesson(lesson: Lesson) -> dict[str, Any]:
    """Describe a step for JSON, without training it. The vocabulary is that of tiny Shakespeare, 65 characters."""
    found: dict[str, Any] = {
        "name": lesson.name,
        "title": lesson.title,
        "base": lesson.base,
        "idea": " ".join(lesson.idea.split()),
        "why": " ".join(lesson.why.split()),
        "outcomes": dict(lesson.outcomes),
        "changes": describe_changes(lesson),
        "published": [f"{one.value} ({one.what}; {one.source})" for one in lesson.published],
        "exercise": None
        if lesson.exercise is None
        else " ".join(lesson.exercise.task.split()) + f" [{', '.join(lesson.exercise.classes)}]",
        "parameters": None,
        "shapes": [],
        "code": plain_code(lesson),
    }
    if lesson.trains:
        config = configure_lesson(lesson, tokens=WINDOW * LECTURE_STEPS)
        model = build_model(config.model)
        found["parameters"] = model.parameter_count()
        found["shapes"] = [
            {"tensor": what, "axes": axes, "shape": list(sizes)}
            for what, axes, sizes in shapes(model, config.train.batch_size)
        ]
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """The result of `show_lesson` or `show_architecture` as lines of text."""
    lines = [f"{found['name']}: {found['title']}" + (f" (from {found['base']})" if found["base"] else ""), ""]
    for part in ("idea", "why"):
        lines += [*textwrap.wrap(found[part], 110), ""]
    for outcome, text in found["outcomes"].items():
        lines += [*textwrap.wrap(f"If it is {outcome}: {text}", 110), ""]
    lines += [f"changes     {change}" for change in found["changes"]]
    if found["parameters"] is not None:
        lines.append(f"parameters  {found['parameters']:,} with an alphabet of 65 characters")
    lines += [f"published   {one}" for one in found["published"]]
    if found["shapes"]:
        width = max(len(row["tensor"]) for row in found["shapes"])
        lines += [
            "",
            "intermediate tensors (B sequences, T tokens, C width, V vocabulary, H heads, G key-value heads, "
            "D head width, F MLP width)",
        ]
        lines += [
            f"  {row['tensor']:<{width}}  ({', '.join(row['axes'].split())})  {' x '.join(map(str, row['shape']))}"
            for row in found["shapes"]
        ]
    if found["exercise"]:
        lines += ["", *textwrap.wrap("exercise: " + found["exercise"], 110)]
    return [*lines, "", *(found["code"] or "").rstrip("\n").splitlines()]


@torch.no_grad()
def shapes(model: LanguageModel, batch: int) -> list[Shape]:
    """The shapes of all intermediate tensors from ids to logits, in order; only the first block is listed."""
    rows: list[Shape] = [("token ids", "B T", (batch, model.config.block_size))]
    context = Context(trace=Trace())
    handles = [
        module.register_forward_hook(_note(rows, name, model.config)) for name, module in model.named_modules() if name
    ]
    handles += [
        module.register_forward_pre_hook(_before(rows, name, model.config, context))
        for name, module in model.named_modules()
        if name
    ]
    try:
        ids = torch.zeros(batch, model.config.block_size, dtype=torch.int64)
        model.eval().unembed(model.forward_hidden(ids, context))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def plain_code(lesson: Lesson) -> str | None:
    """The step's plain code from `gptloom.reference`; None if there is none."""
    return "\n\n".join(inspect.getsource(part) for part in PLAIN.get(lesson.name, ())) or None


def sizes_of(config: ModelConfig, batch: int) -> dict[str, int]:
    """The sizes of the axes by their letters."""
    joined = (config.n_head + 2 * config.kv_heads) * config.width_per_head
    return {
        "B": batch,
        "T": config.block_size,
        "C": config.stream_width,
        "V": config.vocab_size,
        "H": config.n_head,
        "G": config.kv_heads,
        "D": config.width_per_head,
        "F": config.hidden_width,
        "2F": 2 * config.hidden_width,
        "HD": config.n_head * config.width_per_head,
        "(H+2G)D": joined,
        "1": 1,
    }


def _note(rows: list[Shape], name: str, config: ModelConfig) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that records the shape of a module's output."""

    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        described = next((about for pattern, about in OUTPUTS.items() if re.fullmatch(pattern, name)), None)
        absent = isinstance(module, nn.Identity) and not name.endswith(("query_norm", "key_norm"))
        output = output[0] if isinstance(output, tuple) else output  # recurrent layers return their state, too
        if described is None or absent or _repeats(name):
            return
        what, axes = described
        if name == "token_table" and config.head == "none":
            what, axes = "logits: rows of the table", "B T V"
        if name.endswith("mlp.up") and config.mlp == "swiglu":
            what, axes = "widened: gate and value", "B T 2F"
        if name == "dropout" and (config.head == "none" or not config.n_layer or config.is_recurrent):
            return
        if re.fullmatch(r"blocks\.\d+", name) and config.n_layer > 1:
            what += f" (and after each of the {config.n_layer})"
        rows.append((what, axes, tuple(output.shape)))

    return hook


def _before(rows: list[Shape], name: str, config: ModelConfig, context: Context) -> Callable[[nn.Module, Any], None]:
    """A forward pre-hook that records the shape of an input that is not the output of a module."""

    def hook(_module: nn.Module, inputs: Any) -> None:
        if _repeats(name):
            return
        if name.endswith("mixer.out") and context.trace is not None:
            mean = config.mixer == "mean"
            rows.append(
                (
                    "equal weights of the mean" if mean else "attention weights",
                    "B 1 T T" if mean else "B H T T",
                    tuple(context.trace.attention[-1].shape),
                )
            )
            rows.append(
                (
                    "the means" if mean else "gathered by the heads, side by side",
                    "B T C" if mean else "B T HD",
                    tuple(inputs[0].shape),
                )
            )
        elif name.endswith("mlp.down"):
            rows.append(("activated", "B T F", tuple(inputs[0].shape)))

    return hook


def _repeats(name: str) -> bool:
    """Whether a module belongs to a block after the first; all blocks have the same shapes."""
    found = re.match(r"blocks\.(\d+)", name)
    return found is not None and int(found[1]) > 0


def product(axes: str, sizes: dict[str, int]) -> int:
    """The number of elements of a tensor with these axes."""
    return math.prod(sizes[axis] for axis in axes.split())
