"""`gptloom inspect` of an encoder-decoder: what each letter of a translation looked at in its source."""

import argparse
import math
from typing import Any

import numpy as np
import torch

from gptloom.bundle import Bundle
from gptloom.commands.output import Output
from gptloom.errors import InputError
from gptloom.generate.batch import describe
from gptloom.generate.seq2seq import translate
from gptloom.generate.task import end_of_text
from gptloom.model.base import evaluating
from gptloom.model.cache import Context, Trace
from gptloom.model.transformer import EncoderDecoder
from gptloom.plots.html import tokens_page
from gptloom.plots.inspect import draw_alignment, draw_attention
from gptloom.plots.labels import TokenView


class Alignment(Output):
    """What there is to see in one translation.

    Attributes:
        text: the translation.
        tokens_seen: its tokens with their losses.
    """

    def __init__(self, bundle: Bundle, source: list[int], args: argparse.Namespace) -> None:
        """Translate the source greedily, and read both sides once more with a trace."""
        super().__init__(args, [])
        model, limit = bundle.model, bundle.model.config.block_size
        assert isinstance(model, EncoderDecoder)
        if not 0 < len(source) <= limit:
            raise InputError(
                f"a source has 1 to {limit} tokens, not {len(source)}",
                where="--prompt",
                cure="give the text to translate",
            )
        name, self.end = bundle.tokenizer.token_text, end_of_text(bundle.tokenizer)
        written = translate(model, [source], self.end)[0]
        self.text = bundle.tokenizer.decode(written)
        targets = [*written, self.end][: limit - 1]
        self.reading, self.writing = Trace(), Trace()
        with torch.no_grad(), evaluating(model):
            memory = model.encode(torch.tensor([source], device=model.device), Context(trace=self.reading))
            inputs = torch.tensor([[self.end, *targets[:-1]]], device=model.device)
            logits = (
                model.unembed(model.forward_hidden(inputs, Context(memory=memory, trace=self.writing)))[0].float().cpu()
            )
        self.tokens = describe(logits, targets, args.top)
        self.sources, self.targets = [name(one) for one in source], [name(one) for one in targets]
        self.tokens_seen = [
            TokenView(
                name(one.id),
                -one.logprob,
                one.rank,
                tuple((name(other), math.exp(logprob)) for other, logprob in one.alternatives),
            )
            for one in self.tokens
        ]

    def show(self) -> None:
        """Every view there is."""
        cross = np.stack([layer[0].float().cpu().numpy() for layer in self.writing.cross])
        read = [layer[0].float().cpu().numpy() for layer in self.reading.attention]
        # One layer often aligns while the other thinks of something else: the one that points most, its heads averaged,
        # is shown large.
        layer = int(cross.mean(axis=1).max(axis=-1).mean(axis=-1).argmax())
        mean = cross[layer].mean(axis=0)
        self.values |= {
            "translation": self.text,
            "source": self.sources,
            "tokens": [self._token(place) for place in range(len(self.targets))],
            "alignment_layer": layer,
            "alignment": np.round(mean.astype(np.float64), 4).tolist(),
            "cross": np.round(cross.astype(np.float64), 4).tolist(),
        }
        draw_alignment(
            self.path("alignment.png"),
            mean,
            self.sources,
            self.targets,
            title=f"{''.join(self.sources)}: what each written token looked at (layer {layer})",
        )
        asked = (self.args.layer, self.args.head)
        for at, weights in enumerate(cross):
            for head, one in enumerate(weights):
                if asked in ((at, head), (at, None), (None, head)):
                    title = f"{''.join(self.sources)}: layer {at}, head {head} of the cross-attention"
                    draw_alignment(
                        self.path(f"alignment-{at}-{head}.png"), one, self.sources, self.targets, title=title
                    )
        draw_attention(
            self.path("reading.png"), read, self.sources, title=f"{self.name}: where the encoder's heads look"
        )
        page = tokens_page(
            self.tokens_seen,
            title=f"{self.name}: the loss of each written token",
            summary=self.summary(),
            notes=self.notes,
        )
        self.path("tokens.html").write_text(page, encoding="utf-8")

    def summary(self) -> str:
        """The translation in words."""
        return f"{''.join(self.sources)} -> {self.text}"

    def _token(self, place: int) -> dict[str, Any]:
        token = self.tokens[place]
        others = [{"id": one, "logprob": round(logprob, 6)} for one, logprob in token.alternatives]
        return {
            "id": token.id,
            "text": self.targets[place],
            "logprob": round(token.logprob, 6),
            "rank": token.rank,
            "alternatives": others,
        }
