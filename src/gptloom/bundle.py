"""A trained model and its tokenizer: loaded from and saved to a folder, and used to generate and score text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args, overload

import numpy as np

from gptloom.checkpoint.format import find_bundle, load_model, weights, write_model, write_sums
from gptloom.config.base import shown
from gptloom.config.load import parse
from gptloom.config.run import OnUnknown, SampleConfig, Weights
from gptloom.data.tokenizers import Tokenizer, load_tokenizer
from gptloom.data.tokenizers.base import AnyIds
from gptloom.data.tokens import Tokens
from gptloom.devices import pick_device, threads
from gptloom.errors import ConfigError, InputError
from gptloom.fast.int8 import quantise
from gptloom.generate.batch import DecodeBatch, Token
from gptloom.generate.seq2seq import beam_search, describe_text, fill_masks
from gptloom.generate.stream import TextStream
from gptloom.generate.task import MASK, Score, Task, evaluate, prompt_ids, task_of, text_ids
from gptloom.model.base import LanguageModel
from gptloom.model.loss import Objective


class Piece(NamedTuple):
    """One step of `Bundle.stream`.

    Attributes:
        row: index of the text, 0 to `samples` - 1.
        token: the new token; None for the rest of the text at its end.
        text: the new complete characters, without any part of a stop string; often empty.
    """

    row: int
    token: Token | None
    text: str


@dataclass
class Written:
    """A generated text.

    Attributes:
        prompt: the prompt.
        text: the text without the prompt.
        tokens: the new tokens, with details if they were requested.
        score: the score of a beam search in nats; None for sampled texts.
    """

    prompt: str
    text: str = ""
    tokens: list[Token] = field(default_factory=list, repr=False)
    score: float | None = None


@dataclass(repr=False)
class Bundle:
    """A model and the tokenizer that it was trained with."""

    model: LanguageModel
    tokenizer: Tokenizer

    @property
    def task(self) -> Task:
        """The task of this kind of model."""
        return task_of(self.model.config)

    def __repr__(self) -> str:
        """The kind and the sizes; printing `model` shows its layers."""
        sizes = f"{sum(p.numel() for p in self.model.parameters()):,} parameters, {self.tokenizer.vocab_size:,} tokens"
        return f"Bundle({self.model.config.architecture}, {sizes}, {self.model.device})"

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", which: str = "best", weights: Weights = "float32"
    ) -> "Bundle":
        """Load a run folder, a checkpoint folder or a bundle.

        Args:
            path: the folder.
            device: see `devices.pick_device`.
            which: for a run folder: best, latest, or a checkpoint's name.
            weights: as `with_weights`.

        Raises:
            ConfigError: int8 weights are not made for this model or this device.
            InputError: it is not such a folder, or a file in it is missing, damaged, or at odds with the others.

        Warns:
            GptloomWarning: the best or latest checkpoint is damaged, and another is used.
        """
        if not isinstance(path, str | Path):
            raise InputError(f"{shown(path)} is not a path", where="load", cure="give a run folder, such as result.run")
        return cls.read(find_bundle(Path(path), which), device=device).with_weights(weights)

    @classmethod
    def read(cls, folder: Path, *, device: str = "auto") -> "Bundle":
        """Load exactly this folder, which `find_bundle` has checked."""
        tokenizer, model = load_tokenizer(folder), load_model(folder)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}",
                where=str(folder),
                cure="use the tokenizer saved with it",
            )
        return cls(model.to(pick_device(device)).eval(), tokenizer)

    def with_weights(self, weights: Weights) -> "Bundle":
        """Return the bundle with weight matrices in float32, as trained, or in int8, which samples faster on a CPU.

        See `fast.int8`.

        Raises:
            ConfigError: the name is unknown, or this model or device has no int8 weights.
        """
        if weights not in get_args(Weights):
            raise ConfigError(
                f"{weights!r} is none of {', '.join(get_args(Weights))}", where="weights", cure='try weights="int8"'
            )
        return self if weights == "float32" else Bundle(quantise(self.model), self.tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, the tokenizer and their SHA256SUMS into a folder, made if needed.

        Raises:
            ConfigError: the weights are int8.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, self.model.config, weights(self.model))
        self.tokenizer.save(folder)
        write_sums(folder)

    @overload
    def generate(self, prompt: str | AnyIds = "", *, samples: None = None, **settings: Any) -> str: ...
    @overload
    def generate(self, prompt: str | AnyIds = "", *, samples: int, **settings: Any) -> list[str]: ...
    def generate(self, prompt: str | AnyIds = "", *, samples: int | None = None, **settings: Any) -> str | list[str]:
        """Continue the prompt, or translate it with an encoder-decoder, greedily unless a setting asks for draws.

        Args:
            prompt: the text to continue, or to translate; or its ids, as a list or an array.
            samples: the number of texts; the result is then a list. By default it is one text.
            settings: fields of `SampleConfig`, such as tokens=500 or temperature=0.7.

        Raises:
            ConfigError: a setting is unknown or out of range.
            InputError: the prompt has a character that the tokenizer does not know.
        """
        settings |= {} if samples is None else {"samples": samples}
        written = self.write(prompt, parse(SampleConfig, settings, where="generate"))
        texts = [one.prompt + one.text if self.task.continues else one.text for one in written]
        return texts[0] if samples is None else texts

    def write(
        self,
        prompt: str | AnyIds,
        config: SampleConfig,
        *,
        on_unknown: OnUnknown = "error",
        details: int | None = None,
    ) -> list[Written]:
        """Continue the prompt `config.samples` times in one batch; or, with beams, return the best continuations.

        Args:
            prompt: a text or ids. After an empty one, the model starts with an end of text, a new line, or its first
                token.
            config: how tokens are chosen. A stop string ends a text and is not part of it.
            on_unknown: what happens to characters of the prompt that the tokenizer does not know.
            details: number of alternatives per token; None: no probabilities at all.

        Raises:
            InputError: the prompt cannot be read, or the model is an encoder.
        """
        if config.beams > 1:
            return self._search(prompt, config, on_unknown, details)
        written = [Written(self._spelled(prompt)) for _ in range(config.samples)]
        for piece in self.stream(prompt, config, on_unknown=on_unknown, details=details):
            written[piece.row].text += piece.text
            if piece.token is not None:
                written[piece.row].tokens.append(piece.token)
        return written

    def _search(
        self, prompt: str | AnyIds, config: SampleConfig, on_unknown: OnUnknown, details: int | None
    ) -> list[Written]:
        """Write with a beam search; see `write`."""
        model, ids, config = self.task.start(self.model, self.tokenizer, prompt, 1, config, on_unknown)
        end, stops = self.tokenizer.end_of_text, tuple(filter(None, config.stop))

        def stopped(new: list[int]) -> bool:
            return any(stop in self._text(ids, new) for stop in stops)

        written = []
        for new, score in beam_search(model, ids, config, end=end, stopped=stopped if stops else None)[
            : config.samples
        ]:
            tokens = [Token(one) for one in new] if details is None else describe_text(model, ids, new, details)
            written.append(Written(self._spelled(prompt), self._text(ids, new, stops), tokens, score))
        return written

    def stream(
        self, prompt: str | AnyIds, config: SampleConfig, *, on_unknown: OnUnknown = "error", details: int | None = None
    ) -> Iterator[Piece]:
        """Continue the prompt as `write` does, and yield each token as soon as it is chosen.

        The arguments are those of `write`. Closing the generator ends the sampling.

        Returns:
            A generator of pieces. The pieces of a row, joined, are its text.

        Raises:
            ConfigError: the settings ask for a beam search, whose texts are known only at its end.
            InputError: as `write`.
        """
        if config.beams > 1:
            raise ConfigError(
                "a beam search knows its texts only when it is done", where="beams", cure="use Bundle.write, or beams=1"
            )
        model, ids, config = self.task.start(self.model, self.tokenizer, prompt, config.samples, config, on_unknown)
        batch = DecodeBatch(model, end=self.tokenizer.end_of_text)
        batch.extend([ids] * config.samples, config, details=details)
        return self._pieces(batch, [self._text_stream(ids, config.stop) for _ in range(config.samples)])

    @staticmethod
    def _pieces(batch: DecodeBatch, streams: list[TextStream]) -> Iterator[Piece]:
        """Sample until every row has ended."""
        while tokens := batch.step():
            for row, token in tokens.items():
                stream = streams[row]
                yield Piece(row, token, "" if token.id == batch.end else stream.push(token.id))
                if stream.stopped:
                    batch.drop(row)
            for row in batch.ended:
                if rest := streams[row].finish():
                    yield Piece(row, None, rest)

    def prompt_ids(self, prompt: str | AnyIds, on_unknown: OnUnknown = "error") -> list[int]:
        """The ids of a prompt; see `task.prompt_ids`."""
        return prompt_ids(self.tokenizer, prompt, on_unknown)

    def score(self, text: str | AnyIds, on_unknown: OnUnknown = "error") -> Score:
        """Measure the loss on a text or ids, in fixed windows of block_size. The first token is only given."""
        return self.score_tokens(Tokens(text_ids(self.tokenizer, text, on_unknown), np.zeros(1, dtype=np.int64)))

    def score_tokens(self, tokens: Tokens, batch_size: int = 64) -> Score:
        """Measure the loss on token ids; bits per byte refer to the bytes of the predicted tokens."""
        if len(tokens.ids) < 2:
            raise InputError("at least two tokens are needed to measure a loss", cure="give a longer text")
        batches = self.task.evaluation_batches(tokens, self.tokenizer, batch_size)
        count = self.task.predicted_bytes(tokens, self.tokenizer)
        with threads(None):  # as many threads as an evaluation in a run has
            return evaluate(Objective(self.model), batches, device=self.model.device, byte_count=count)

    def fill(self, text: str, on_unknown: OnUnknown = "error") -> list[Token]:
        """Predict each `[MASK]` in a text with an encoder; returns the tokens with the most likely alternatives.

        Raises:
            InputError: the model is not an encoder, the text has no mask, or it is longer than block_size.
        """
        if not isinstance(text, str):
            raise InputError(
                f"{shown(text)} is not a text", where="fill", cure=f'give a text such as "the qu{MASK}ck fox"'
            )
        if self.task.causal:
            raise InputError(
                "is not an encoder, so it does not fill in masks",
                where=self.model.config.architecture,
                cure="continue a prompt instead",
            )
        pieces = text.split(MASK)
        first, *rest = self.tokenizer.encode_parts(pieces, on_unknown)
        ids: list[int] = first.tolist()
        for part in rest:
            ids += [self.model.config.vocab_size, *part.tolist()]
        room = self.model.config.block_size
        if len(pieces) == 1 or len(ids) > room:
            raise InputError(
                f"an encoder fills in {MASK} and reads up to {room} tokens; "
                f"this text has {len(pieces) - 1} masks and {len(ids)} tokens",
                where="the prompt",
                cure=f'write {MASK} where a token is missing, such as "the qu{MASK}ck fox"',
            )
        return fill_masks(self.model, ids)

    def _spelled(self, prompt: str | AnyIds) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(text_ids(self.tokenizer, prompt))

    def _text(self, before: list[int], ids: list[int], stops: Sequence[str] = ()) -> str:
        stream = self._text_stream(before, stops)
        return "".join(stream.push(one) for one in ids if one != self.tokenizer.end_of_text) + stream.finish()

    def _text_stream(self, before: list[int], stops: Sequence[str]) -> TextStream:
        return TextStream(self.tokenizer.decode, before, stops, self.tokenizer.open_ended)
