"""A trained model as a folder (config.json, model.safetensors, tokenizer) and as an object that reads and writes text."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gptloom.config import ModelConfig, OnUnknown, SampleConfig
from gptloom.data.batches import evaluation_windows
from gptloom.data.tokenizers import Tokenizer, load_tokenizer
from gptloom.data.tokens import Tokens
from gptloom.errors import InputError
from gptloom.inference.evaluation import Score, evaluate
from gptloom.inference.generation import Generation, Token, beam_search
from gptloom.model.decoder import Decoder
from gptloom.model.objective import Objective
from gptloom.runtime import SMALL_MODEL, pick_device, threads
from gptloom.settings import parse
from gptloom.textstream import TextStream

Show = Callable[[int, str], None]


@dataclass
class Written:
    """A text that a model wrote.

    Attributes:
        prompt: what it continues.
        text: what was written, without the prompt.
        tokens: the new tokens, with details where they were asked for.
        score: a beam search's score, in nats; None for drawn texts.
    """

    prompt: str
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    score: float | None = None


@dataclass
class Bundle:
    """A model together with the tokenizer that it was trained with."""

    model: Decoder
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", which: str = "best") -> "Bundle":
        """Load a run folder, a checkpoint folder or a bundle.

        Args:
            path: the folder.
            device: see `runtime.pick_device`.
            which: for a run folder: best, latest, or a checkpoint's name.

        Raises:
            InputError: it is no such folder, or a file in it is missing, damaged, or at odds with the others.
        """
        folder = find_bundle(Path(path), which)
        model = Decoder(read_model_config(folder / "config.json"))
        load_weights(model, folder / "model.safetensors")
        tokenizer = load_tokenizer(folder)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}",
                where=str(folder),
                cure="use the tokenizer saved with it",
            )
        return cls(model.to(pick_device(device)).eval(), tokenizer)

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer into an existing folder."""
        text = json.dumps({"format": "gptloom", "version": 1, "model": self.model.config.model_dump(mode="json")}, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(weights(self.model), folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save(folder)

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """The prompt continued; `settings` are fields of `SampleConfig`, such as tokens=500 or temperature=0.7.

        Raises:
            ConfigError: a setting is unknown or out of range.
            InputError: the prompt has a character that the tokenizer does not know.
        """
        config = parse(SampleConfig, settings, where="generate")
        return prompt + self.write(prompt, config)[0].text

    def write(
        self,
        prompt: str,
        config: SampleConfig,
        *,
        on_unknown: OnUnknown = "error",
        details: int | None = None,
        show: Show | None = None,
    ) -> list[Written]:
        """Continue the prompt `config.samples` times, side by side; or, with beams, return the best continuations.

        Args:
            prompt: may be empty: then the model starts after an end of text, or a new line, or its first token.
            config: how tokens are chosen. A stop string ends a text and is not part of it.
            on_unknown: what to do with characters of the prompt that the tokenizer does not have.
            details: alternatives to list with each token; None leaves out probabilities altogether.
            show: is called with (row, new text) as the texts grow.
        """
        ids = self.prompt_ids(prompt, on_unknown)
        end = self.tokenizer.end_of_text
        if config.beams > 1:
            found = beam_search(self.model, ids, config, end=end)[: config.samples]
            return [Written(prompt, self._text(ids, new), [Token(one) for one in new], score) for new, score in found]
        generation = Generation(self.model, [ids] * config.samples, config, end=end, details=details)
        written = [Written(prompt) for _ in range(config.samples)]
        with threads(1 if self.model.parameter_count() < SMALL_MODEL else None):
            self._continue(generation, written, ids, config, show)
        return written

    def _continue(self, generation: Generation, written: list[Written], ids: list[int], config: SampleConfig, show: Show | None) -> None:
        """Write until every row has ended."""
        end = self.tokenizer.end_of_text
        streams = [TextStream(self.tokenizer.decode, ids, config.stop) for _ in written]
        while tokens := generation.step():
            for row, token in tokens.items():
                written[row].tokens.append(token)
                piece = "" if token.id == end else streams[row].push(token.id)
                self._grow(written, row, piece, show)
                if streams[row].stopped:
                    generation.finish(row)
        for row, stream in enumerate(streams):
            self._grow(written, row, stream.finish(), show)

    def prompt_ids(self, prompt: str, on_unknown: OnUnknown = "error") -> list[int]:
        """The ids to go on from; never empty."""
        ids: list[int] = self.tokenizer.encode(prompt, on_unknown).tolist()
        if ids:
            return ids
        if self.tokenizer.end_of_text is not None:
            return [self.tokenizer.end_of_text]
        return self.tokenizer.encode("\n", "skip").tolist()[:1] or [0]

    def score(self, text: str, on_unknown: OnUnknown = "error") -> Score:
        """The loss on a text, read in fixed windows of block_size; its first token is given, not predicted."""
        return self.score_tokens(Tokens(self.tokenizer.encode(text, on_unknown), np.zeros(1, dtype=np.int64)))

    def score_tokens(self, tokens: Tokens, batch_size: int = 64) -> Score:
        """The loss on token ids, with bits per byte from the bytes that the predicted tokens stand for."""
        if len(tokens.ids) < 2:
            raise InputError("at least two tokens are needed to measure a loss", cure="give a longer text")
        batches = evaluation_windows(tokens, self.model.config.block_size, batch_size)
        device = self.model.token_table.weight.device
        return evaluate(Objective(self.model), batches, device=device, byte_count=self.tokenizer.count_bytes(tokens.ids[1:]))

    def _text(self, before: list[int], ids: list[int]) -> str:
        stream = TextStream(self.tokenizer.decode, before, ())
        return "".join(stream.push(one) for one in ids if one != self.tokenizer.end_of_text) + stream.finish()

    @staticmethod
    def _grow(written: list[Written], row: int, piece: str, show: Show | None) -> None:
        written[row].text += piece
        if piece and show:
            show(row, piece)


def weights(model: Decoder) -> dict[str, torch.Tensor]:
    """Copies of the model's tensors by name; a tied head is left out, for it is the token table."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.head == "tied":
        del tensors["head.weight"]
    return tensors


def load_weights(model: Decoder, path: Path) -> None:
    """Fill a model from a safetensors file, whose names, shapes and types must be the model's own."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights cannot be read: {error}", where=str(path), cure="use another checkpoint") from None
    expected = weights(model)
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()] + [f"{name} is not expected" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(t.shape)} instead of {tuple(expected[name].shape)}"
        for name, t in tensors.items()
        if name in expected and t.shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"the weights do not fit config.json: {', '.join(sorted(problems)[:3])}{more}", where=str(path), cure="keep the files of a bundle together"
        )
    model.load_state_dict(tensors, strict=False)


def read_model_config(path: Path) -> ModelConfig:
    """The model's shape from a bundle's config.json."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != "gptloom":
            raise KeyError("format")
        values = saved["model"]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), cure="give a run folder, a checkpoint folder or a bundle") from None
    except (ValueError, KeyError, TypeError):
        raise InputError("is not a gptloom configuration", where=str(path), cure="give a run folder, a checkpoint folder or a bundle") from None
    return parse(ModelConfig, values, where=str(path))


def checkpoint_names(run: Path) -> Iterator[str]:
    """The names of a run's checkpoints, oldest first."""
    return (path.name for path in sorted((run / "checkpoints").glob("step-*")) if path.is_dir())


def find_bundle(path: Path, which: str = "best") -> Path:
    """The folder with the weights: `path` itself, or the named checkpoint of the run folder that `path` is."""
    cure = "give a run folder, a checkpoint folder or a bundle"
    if not path.is_dir():
        raise InputError("there is no such folder" if not path.exists() else "is not a folder", where=str(path), cure=cure)
    if (path / "model.safetensors").exists():
        return path
    names = list(checkpoint_names(path))
    if not (path / "checkpoints").is_dir() or not names:
        raise InputError("holds no model and no checkpoints yet", where=str(path), cure=cure)
    name = which
    if which in ("best", "latest"):
        pointer = path / which if (path / which).exists() else path / "latest"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.exists() else names[-1]
    if not re.fullmatch(r"step-\d+", name) or name not in names:
        raise InputError(f"there is no checkpoint {name!r}", where=str(path), cure=f"choose best, latest or one of {', '.join(names)}")
    return path / "checkpoints" / name
