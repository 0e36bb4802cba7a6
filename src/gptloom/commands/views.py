"""What `gptloom inspect` shows: each view computes its numbers, writes its files, and adds to the result."""

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from gptloom.bundle import Bundle
from gptloom.commands.output import Output
from gptloom.data.batches import evaluation_windows
from gptloom.data.splits import Tokens
from gptloom.errors import ConfigError
from gptloom.generate.batch import Token
from gptloom.generate.evaluate import Score
from gptloom.interpret.statistics import gradient_by_distance, vitals
from gptloom.interpret.trace import (
    Guess,
    hidden_tokens,
    logit_lens,
    look,
    pointedness,
    principal_axes,
    token_losses,
    uniform_entropy,
)
from gptloom.plots.html import tokens_page
from gptloom.plots.inspect import draw_attention, draw_embedding, draw_gradient_by_distance, draw_head, draw_lens
from gptloom.plots.labels import TokenView
from gptloom.plots.statistics import draw_statistics

MOST_WEIGHTS = 4_000_000
"""Attention weights that inspect.json holds."""

_BATCH = 8  # windows at once: the logits of all their tokens are kept


class Views(Output):
    """What there is to see in one model with one text.

    Attributes:
        tokens_seen: the text's tokens with their losses, once `show_tokens` has been called.
    """

    def __init__(self, bundle: Bundle, tokens: Tokens, args: argparse.Namespace, notes: list[str]) -> None:
        """Read the text once.

        Args:
            bundle: the model.
            tokens: the text, at least 2 tokens.
            args: top, layer, head, run and out.
            notes: what is known about the text; more may be added.
        """
        super().__init__(args, notes)
        self.bundle, self.model, self.tokens = bundle, bundle.model, tokens
        self.device, self.kind = self.model.device, self.model.config.architecture
        self.tokens_seen: list[TokenView] = []
        size = self.model.config.block_size
        self.last = torch.from_numpy(tokens.ids[-size - 1 :].astype(np.int64))[None].to(self.device)
        self.window = self.last[:, -size:]
        self.texts = [bundle.tokenizer.token_text(one) for one in self.window[0].tolist()]
        if len(tokens) > size:
            self.notes.append(
                f"the model sees {size} tokens at a time: losses are read in windows of that size, and maps show the last {size} tokens"
            )
        self.trace = look(self.model, self.window)

    def all(self) -> dict[str, Callable[[], None]]:
        """The views that this kind of model has, by the names that --show takes."""
        views = {
            "attention": self.show_attention,
            "lens": self.show_lens,
            "tokens": self.show_tokens,
            "embedding": self.show_embedding,
            "statistics": self.show_statistics,
            "distance": self.show_distance,
        }
        reasons = {
            "encoder": ("an encoder guesses hidden tokens, not the next one", ("lens", "statistics", "distance")),
            **dict.fromkeys(("rnn", "lstm", "gru"), ("a recurrent model's layers are computed as one", ("lens",))),
        }
        reason, absent = reasons.get(self.kind, ("", ()))
        self.missing |= {name: reason for name in absent if name in self.args.show}
        return {name: view for name, view in views.items() if name not in absent}

    def show_tokens(self) -> None:
        """Each token's loss, rank and alternatives, and the page."""
        name = self.bundle.tokenizer.token_text
        losses, given, size = self._losses()
        score = Score(-sum(token.logprob for token in losses), len(losses), size)
        self.tokens_seen = [*(TokenView(name(one)) for one in given), *(self._view(token) for token in losses)]
        unscored: list[dict[str, Any]] = [
            {"id": one, "text": name(one), "loss": None, "logprob": None, "rank": None, "alternatives": []}
            for one in given
        ]
        self.values |= {
            "loss": score.loss,
            "perplexity": score.perplexity,
            "bpb": score.bpb,
            "tokens": [*unscored, *map(self._token, losses)],
        }
        page = tokens_page(
            self.tokens_seen, title=f"{self.name}: the loss of each token", summary=self.summary(), notes=self.notes
        )
        self.path("tokens.html").write_text(page, encoding="utf-8")

    def _losses(self) -> tuple[list[Token], list[int], int]:
        """The tokens that are predicted, those that are given, and the bytes that the predicted ones stand for.

        An encoder predicts each token of the last window with that one hidden (Salazar et al. 2020,
        pseudo-log-likelihood).
        """
        if self.kind == "encoder":
            self.notes.append(
                "each token is guessed with it alone hidden and both sides seen; such losses do not compare with those of a decoder"
            )
            hidden = hidden_tokens(self.window[0], self.model.config.vocab_size)
            return list(token_losses(self.model, hidden, top=self.args.top, device=self.device)), [], 0
        windows = evaluation_windows(self.tokens, self.model.config.block_size, _BATCH)
        losses = list(token_losses(self.model, windows, top=self.args.top, device=self.device))
        return losses, [int(self.tokens.ids[0])], self.bundle.tokenizer.count_bytes(self.tokens.ids[1:])

    def summary(self) -> str:
        """The mean loss in words."""
        bits = "" if self.values["bpb"] is None else f", {self.values['bpb']:.4f} bits per byte"
        count = sum(token["loss"] is not None for token in self.values["tokens"])
        return f"loss {self.values['loss']:.4f} nats per token, perplexity {self.values['perplexity']:.3f}{bits} ({count:,} tokens)"

    def show_attention(self) -> None:
        """All maps, and one large."""
        if not self.trace.attention:
            given = next((f"--{flag}" for flag in ("layer", "head") if getattr(self.args, flag) is not None), None)
            if given:
                raise ConfigError("this model has no attention", where=given, cure=f"leave {given} out")
            self.missing["attention"] = "this model has no attention"
            return
        if self.model.config.mixer == "mean":
            self.notes.append("this model averages: its attention weights are equal by construction, not learned")
        weights = [layer[0].float().cpu().numpy() for layer in self.trace.attention]
        layer, head = self._choose()
        if sum(layer.size for layer in weights) <= MOST_WEIGHTS:
            self.values["attention"] = [np.round(layer.astype(np.float64), 4).tolist() for layer in weights]
        else:
            self.notes.append(
                f"inspect.json leaves out the attention weights, for they are more than {MOST_WEIGHTS:,} numbers; give a shorter text"
            )
        draw_attention(self.path("attention.png"), weights, self.texts, title=f"{self.name}: where each head looks")
        draw_head(
            self.path(f"head-{layer}-{head}.png"),
            weights[layer][head],
            self.texts,
            title=f"{self.name}: layer {layer}, head {head}",
        )

    def show_lens(self) -> None:
        """What each layer would predict."""
        if len(self.trace.stream) < 2:
            self.missing["lens"] = "this model has no blocks to look between"
            return
        lens = logit_lens(self.model, self.trace, top=self.args.top)
        names = ["embedding", *(f"after layer {layer}" for layer in range(len(lens) - 1))]
        self.values["lens"] = [
            {"after": name, "positions": [self._guess(guess) for guess in row]}
            for name, row in zip(names, lens, strict=True)
        ]
        name = self.bundle.tokenizer.token_text
        best = [[(name(guess.alternatives[0][0]), math.exp(guess.alternatives[0][1])) for guess in row] for row in lens]
        following = [*self.texts[1:], None]
        draw_lens(
            self.path("lens.png"),
            best,
            self.texts,
            following,
            names,
            title=f"{self.name}: what each layer would say comes next",
        )

    def show_embedding(self) -> None:
        """The token table in the plane."""
        table = self.model.token_table.weight[: self.model.config.vocab_size]  # an encoder's mask stands for no token
        plane = principal_axes(table)
        texts = [self.bundle.tokenizer.token_text(one) for one in range(len(table))]
        shares = (float(plane.shares[0]), float(plane.shares[1:2].sum()))
        points = [
            {"id": one, "text": text, "x": round(x, 4), "y": round(y, 4)}
            for one, (text, (x, y)) in enumerate(zip(texts, plane.points.tolist(), strict=True))
        ]
        self.values["embedding"] = {
            "shares": [round(share, 6) for share in plane.shares[:10].tolist()],
            "points": points,
        }
        marked = sorted(set(self.window[0].tolist()))
        draw_embedding(
            self.path("embedding.png"),
            plane.points.numpy(),
            texts,
            shares,
            marked=marked,
            title=f"{self.name}: the token table",
        )

    def show_statistics(self) -> None:
        """Sizes of activations and gradients."""
        found = vitals(self.model, self.last)
        self.values["statistics"] = asdict(found)
        draw_statistics(
            self.path("statistics.png"),
            stream=found.stream,
            branches=found.branches,
            hidden=[(one.name, one.off, one.dead) for one in found.hidden],
            entropy=found.attention_entropy,
            uniform=uniform_entropy(self.last.shape[1] - 1),
            parameters=[(one.name, one.weight_rms, one.gradient_rms) for one in found.parameters if len(one.shape) > 1],
            title=f"{self.name} on this text, loss {found.loss:.3f}",
        )

    def show_distance(self) -> None:
        """How far back the loss depends on the text."""
        distance, size = gradient_by_distance(self.model, self.last)
        self.values["distance"] = {"distance": distance, "gradient": size}
        if not any(size[1:]):
            self.missing["distance"] = (
                "this model's loss depends on no token but the last" if size[1:] else "the text is too short"
            )
            return
        draw_gradient_by_distance(
            self.path("distance.png"),
            {self.name: (distance, size)},
            title=f"{self.name}: how far back the loss depends on the text",
        )

    def _choose(self) -> tuple[int, int]:
        """The layer and the head to draw large: those asked for, and else the one that points at other tokens most."""
        points = [pointedness(weights).tolist() for weights in self.trace.attention]
        layers = [_within(self.args.layer, len(points), "layer")] if self.args.layer is not None else range(len(points))
        heads = {
            layer: [_within(self.args.head, len(points[layer]), "head")]
            if self.args.head is not None
            else range(len(points[layer]))
            for layer in layers
        }
        return max(
            ((layer, head) for layer in layers for head in heads[layer]), key=lambda pair: points[pair[0]][pair[1]]
        )

    def _view(self, token: Token) -> TokenView:
        name = self.bundle.tokenizer.token_text
        return TokenView(
            name(token.id),
            -token.logprob,
            token.rank,
            tuple((name(one), math.exp(logprob)) for one, logprob in token.alternatives),
        )

    def _token(self, token: Token) -> dict[str, Any]:
        found = {
            "id": token.id,
            "text": self.bundle.tokenizer.token_text(token.id),
            "loss": round(-token.logprob, 6),
            "logprob": round(token.logprob, 6),
        }
        return found | {"rank": token.rank, "alternatives": self._alternatives(token.alternatives)}

    def _guess(self, guess: Guess) -> dict[str, Any]:
        return {"entropy": round(guess.entropy, 4), "alternatives": self._alternatives(guess.alternatives)}

    def _alternatives(self, alternatives: tuple[tuple[int, float], ...]) -> list[dict[str, Any]]:
        name = self.bundle.tokenizer.token_text
        return [{"id": one, "text": name(one), "logprob": round(logprob, 6)} for one, logprob in alternatives]


def _within(number: int, count: int, what: str) -> int:
    """A layer's or a head's number, if there is one with it."""
    if not 0 <= number < count:
        cure = f"choose 0 to {count - 1}" if count > 1 else f"the only {what} is 0"
        raise ConfigError(f"there is no {what} {number}", where=f"--{what}", cure=cure)
    return number
