"""One tokenizer of every family: gptloom's own, and files of the libraries with all kinds of normalisers."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gptloom.data.tokenizers import END_OF_TEXT, base, make_tokenizer
from gptloom.data.tokenizers.bpe import HuggingFaceTokenizer
from gptloom.data.tokenizers.external import SentencePieceTokenizer, TiktokenTokenizer

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
OWN = ("char", "byte", "bpe", "own sentencepiece", "tiktoken", "cl100k")
LIBRARY = (
    "llama",
    "metaspace",
    "unigram",
    "byte level with a prefix",
    "byte level after a split",
    "byte level without all bytes",
    "wordpiece",
    "wordlevel",
    "wordlevel without unk",
    "suffix",
    "ctc",
    "sentencepiece with a prefix",
    "sentencepiece without bytes",
    "sentencepiece bpe",
    "sentencepiece with a suffix",
)
FAMILIES = OWN + LIBRARY


@dataclass
class Family:
    """A tokenizer, and the library's own functions with the same vocabulary."""

    tokenizer: base.Tokenizer
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def family(name: str, text: str, corpus) -> Family:
    """Make the tokenizer of a name, trained on a text."""
    if name in LIBRARY:
        return _from_sentencepiece(name, text) if "sentencepiece" in name else _from_tokenizers(name, text)
    if name in ("tiktoken", "cl100k"):
        ranks = {bytes([value]): value for value in range(256)}
        for word in ("th", " t", " th", " the", "an", "and", "..", "\n\n", ".\n", "  ", "in", "ing", "ä", "京"):
            for end in range(2, len(word.encode()) + 1):
                ranks.setdefault(word.encode()[:end], len(ranks))
        ours = TiktokenTokenizer("ours", GPT2 if name == "tiktoken" else CL100K, ranks, {END_OF_TEXT: len(ranks)})
        return Family(ours, ours._encoding.encode_ordinary, ours._encoding.decode)
    spec = {"bpe": "bpe:400", "own sentencepiece": "sentencepiece:420"}.get(name, name)
    own = make_tokenizer(spec, corpus)
    if name == "bpe":
        plain = Tokenizer.from_str(own.files()["tokenizer.json"].decode())
        return Family(own, lambda text: plain.encode(text, add_special_tokens=False).ids, plain.decode)
    if name == "own sentencepiece":
        return Family(own, own._processor.encode, own._processor.decode)
    return Family(own, lambda text: own.encode(text).tolist(), own.decode)


def _from_tokenizers(name: str, text: str) -> Family:
    size, lines = 420, text.split("\n")
    special = ["<unk>", "[UNK]", "</s>", "<pad>", "|"]
    if name == "llama":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        lines, special = [word for line in lines for word in line.split()][:400], ["<unk>", "</s>", "<s>"]
    elif name == "metaspace":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder, special = pre_tokenizers.Metaspace(), decoders.Metaspace(), ["</s>"]
    elif name == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif name.startswith("byte level"):
        made = Tokenizer(models.BPE())
        made.decoder, special = decoders.ByteLevel(), ["</s>"]
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=name.endswith("prefix"))
        if name.endswith("split"):
            made.normalizer = normalizers.NFC()
            plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT2), "isolated"), plain])
    elif name == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
    elif name.startswith("wordlevel"):
        made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        special = ["[UNK]"] if name == "wordlevel" else []
    elif name == "suffix":
        made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.decoder = decoders.CTC(pad_token="<pad>", word_delimiter_token="|", cleanup=False)
    trainer = {
        "unigram": trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
        "wordpiece": trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False),
        "wordlevel": trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False),
        "wordlevel without unk": trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        ),
        "suffix": trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        ),
    }
    alphabet = pre_tokenizers.ByteLevel.alphabet() if name.startswith("byte level") and "without" not in name else []
    common = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer.get(name, common))
    content = json.loads(made.to_str())
    if name == "llama":  # the bytes are tokens of the model, which are not special
        vocab = content["model"]["vocab"]
        vocab |= {f"<0x{value:02X}>": len(vocab) + value for value in range(256)}
    made = Tokenizer.from_str(json.dumps(content))
    made.encode_special_tokens = True
    ours = HuggingFaceTokenizer(made.to_str())
    return Family(ours, lambda text: made.encode(text, add_special_tokens=False).ids, made.decode)


def _from_sentencepiece(name: str, text: str) -> Family:
    model = io.BytesIO()
    options = {
        "sentencepiece with a prefix": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "sentencepiece without bytes": {"byte_fallback": False},
        "sentencepiece bpe": {"model_type": "bpe"},
        "sentencepiece with a suffix": {"treat_whitespace_as_suffix": True},
    }[name]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": 420, "byte_fallback": True, "hard_vocab_limit": False} | options,
    )
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return Family(SentencePieceTokenizer(model.getvalue()), plain.encode, plain.decode)
