"""Tokenizers: characters, bytes, byte-level BPE, sentencepiece and tiktoken behind one interface."""

from pathlib import Path

from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers.base import CURE, END_OF_TEXT, FILE, EncodedPiece, Ids, Tokenizer, id_dtype, read_side_file
from gptloom.data.tokenizers.char import ByteTokenizer, CharTokenizer
from gptloom.errors import ConfigError, InputError, nearest
from gptloom.files import json_object

__all__ = [
    "END_OF_TEXT",
    "CharTokenizer",
    "EncodedPiece",
    "Ids",
    "Tokenizer",
    "id_dtype",
    "load_tokenizer",
    "make_tokenizer",
    "ready_tokenizer",
]

_KINDS = ("char", "byte", "bpe", "sentencepiece", "tiktoken")
_SIZE = 4096
_SMALLEST = 257


def make_tokenizer(spec: str, corpus: Corpus) -> Tokenizer:
    """Return the tokenizer of a spec, trained on the text if its kind needs training.

    Args:
        spec: char, byte, bpe:SIZE, sentencepiece:SIZE (default SIZE 4096), tiktoken:NAME, or the path of a
            tokenizer.json or .model file.
        corpus: the text; notes for the user are added to it.

    Raises:
        ConfigError: there is no such kind, or its size or name is invalid.
        InputError: the file is not a tokenizer, or an optional package is missing.
        MachineError: tiktoken's vocabulary could not be downloaded.
    """
    kind, _, detail = spec.partition(":")
    if kind in ("char", "byte") and not detail:
        alphabet = "".join(map(chr, corpus.scan.alphabet))
        return CharTokenizer(alphabet, ends=corpus.several) if kind == "char" else ByteTokenizer(ends=corpus.several)
    if kind == "bpe":
        from gptloom.data.tokenizers.bpe import HuggingFaceTokenizer

        return HuggingFaceTokenizer.train(corpus, _size(spec, detail))
    if kind == "sentencepiece":
        from gptloom.data.tokenizers.external import SentencePieceTokenizer

        return SentencePieceTokenizer.train(corpus, _size(spec, detail))
    return ready_tokenizer(spec)


def ready_tokenizer(spec: str) -> Tokenizer:
    """Load a tokenizer that needs no training.

    Args:
        spec: tiktoken:NAME, or the path of a tokenizer.json or .model file.

    Raises:
        GptloomError: the errors of `make_tokenizer`.
    """
    kind, _, detail = spec.partition(":")
    if kind == "tiktoken" and detail:
        from gptloom.data.tokenizers.external import TiktokenTokenizer

        return TiktokenTokenizer.named(detail)
    return _from_path(spec)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that was saved in a folder.

    Raises:
        InputError: there is no tokenizer, it is damaged, or an optional package is missing.
    """
    return _from_json(folder / FILE)


def _size(spec: str, detail: str) -> int:
    if not detail:
        return _SIZE
    if not detail.isdecimal() or int(detail) < _SMALLEST:
        raise ConfigError(
            f"{spec!r} needs a whole number of at least {_SMALLEST} after the colon",
            where="--data.tokenizer",
            cure="for example bpe:4096",
        )
    return int(detail)


def _from_path(spec: str) -> Tokenizer:
    path = Path(spec)
    if path.suffix == ".json":
        return _from_json(path)
    if path.suffix == ".model":
        from gptloom.data.tokenizers.external import SentencePieceTokenizer

        return SentencePieceTokenizer(read_side_file(path, None), str(path))
    cure = (
        nearest(spec.partition(":")[0], _KINDS)
        or "choose char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, or a tokenizer.json or .model file"
    )
    raise ConfigError(f"{spec!r} is not a tokenizer", where="--data.tokenizer", cure=cure)


def _from_json(path: Path) -> Tokenizer:
    """Load gptloom's JSON, which has a "kind", or a Hugging Face tokenizer.json, which has none."""
    try:
        text = read_side_file(path, None).decode()
        content = json_object(text)
    except ValueError as error:
        raise InputError(f"is not a valid JSON object: {error}", where=str(path), cure=CURE) from None
    match content.get("kind"):
        case "char":
            return CharTokenizer.load(path, content)
        case "byte":
            return ByteTokenizer.load(path, content)
        case "sentencepiece":
            from gptloom.data.tokenizers.external import SentencePieceTokenizer

            return SentencePieceTokenizer.load(path, content)
        case "tiktoken":
            from gptloom.data.tokenizers.external import TiktokenTokenizer

            return TiktokenTokenizer.load(path, content)
        case None:
            from gptloom.data.tokenizers.bpe import HuggingFaceTokenizer

            return HuggingFaceTokenizer(text, str(path))
        case kind:
            raise InputError(
                f"is of the unknown kind {kind!r}", where=str(path), cure=f"known kinds: {', '.join(_KINDS)}"
            )
