"""`gptloom ladder show encoder` and its siblings: the one line in which decoder, encoder and encoder-decoder differ."""

import inspect
from typing import Any

from gptloom.model.plain import architectures

ABOUT: dict[str, dict[str, str]] = {
    "decoder": {
        "title": "who may look at whom: a decoder",
        "idea": "Every position sees itself and what came before it, so every position can be trained to guess what comes next, "
        "and a trained model can go on writing. All steps of the ladder are decoders.",
        "why": "The mask is one line; leave it out and the same code is an encoder. Try it: gptloom train shakespeare",
    },
    "encoder": {
        "title": "who may look at whom: an encoder",
        "idea": "Every position sees all others. Guessing the next token would be copying, so some tokens are hidden and the model is "
        "trained to fill them in (Devlin et al. 2019).",
        "why": "It knows both sides of a gap, which a decoder never does, but it cannot write on. Try it: "
        'gptloom train shakespeare --recipe encoder, then gptloom sample RUN --prompt "To be, or n[MASK]t to be"',
    },
    "encoder-decoder": {
        "title": "who may look at whom: an encoder-decoder",
        "idea": "An encoder reads a source whole; a decoder writes the target and, between looking at itself and thinking, asks the "
        "source: queries come from what is written, keys and values from what was read (Vaswani et al. 2017).",
        "why": "It is the first Transformer, made for translation. Try it: gptloom train numbers:en-fr, then "
        'gptloom inspect RUN --prompt "ninety-seven" to see which letters of the source each letter of the translation looked at',
    },
}
_CODE = {
    "decoder": (architectures.Attention, architectures.decoder_step),
    "encoder": (architectures.Attention, architectures.encoder_step),
    "encoder-decoder": (architectures.Attention, architectures.decoder_step, architectures.encoder_decoder_step),
}


def show_architecture(name: str) -> dict[str, Any]:
    """What there is to say about an architecture, in the form of `showing.show_lesson`."""
    code = "\n\n".join(inspect.getsource(part) for part in _CODE[name])
    empty: dict[str, Any] = {"base": None, "worse_is_expected": None, "changes": [], "published": [], "exercise": None, "parameters": None, "shapes": []}
    return {"name": name, **ABOUT[name], **empty, "code": code}
