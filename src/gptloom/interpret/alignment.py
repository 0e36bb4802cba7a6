"""A translation of an encoder-decoder, as data: its tokens, and the source tokens that each of them looked at."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from gptloom.bundle import Bundle
from gptloom.generate.batch import describe
from gptloom.generate.seq2seq import translate
from gptloom.generate.task import end_of_text
from gptloom.interpret.views import ScoredToken, name_token
from gptloom.model.base import evaluating
from gptloom.model.cache import Context, Trace
from gptloom.model.transformer import EncoderDecoder


@dataclass(frozen=True)
class Alignment:
    """A greedy translation and its attention weights.

    Attributes:
        translation: the text.
        sources: texts of the source's s tokens.
        tokens: the t tokens of the translation and its end.
        cross: cross-attention, (layers, heads, t, s).
        encoder: for each layer of the encoder, (heads, s, s).
        layer: the layer whose heads point most, on average: one layer often aligns while the others do not.
    """

    translation: str
    sources: list[str]
    tokens: list[ScoredToken]
    cross: Float[np.ndarray, "l h t s"]
    encoder: list[Float[np.ndarray, "h s s"]]
    layer: int

    @property
    def source(self) -> str:
        """The text that was translated."""
        return "".join(self.sources)

    @property
    def targets(self) -> list[str]:
        """Texts of the translation's tokens."""
        return [token.text for token in self.tokens]

    @property
    def mean(self) -> Float[np.ndarray, "t s"]:
        """The mean over the heads of `layer`."""
        found: Float[np.ndarray, "t s"] = self.cross[self.layer].mean(axis=0)
        return found


def align(bundle: Bundle, source: list[int], *, top: int) -> Alignment:
    """Translate the source greedily, and read both sides once more with a trace.

    Args:
        bundle: an encoder-decoder and its tokenizer.
        source: ids of the text to translate.
        top: alternatives of each token.

    Raises:
        ValueError: no token, or more than the model's block_size.
    """
    model, limit = bundle.model, bundle.model.config.block_size
    assert isinstance(model, EncoderDecoder)
    if not 0 < len(source) <= limit:
        raise ValueError(f"a source has 1 to {limit} tokens, not {len(source)}")
    end = end_of_text(bundle.tokenizer)
    written = translate(model, [source], end)[0]
    targets = [*written, end][: limit - 1]
    reading, writing = Trace(), Trace()
    with torch.no_grad(), evaluating(model):
        memory = model.encode(torch.tensor([source], device=model.device), Context(trace=reading))
        inputs = torch.tensor([[end, *targets[:-1]]], device=model.device)
        logits = model.unembed(model.forward_hidden(inputs, Context(memory=memory, trace=writing)))[0].float().cpu()
    cross = np.stack([layer[0].float().cpu().numpy() for layer in writing.cross])
    return Alignment(
        translation=bundle.tokenizer.decode(written),
        sources=[bundle.tokenizer.token_text(one) for one in source],
        tokens=[name_token(token, bundle) for token in describe(logits, targets, top)],
        cross=cross,
        encoder=[layer[0].float().cpu().numpy() for layer in reading.attention],
        layer=int(cross.mean(axis=1).max(axis=-1).mean(axis=-1).argmax()),
    )
