"""Every tokenizer family: streams, long texts, unknown text and bytes, each against the library's own functions."""

import random

import numpy as np
import pytest

from data_helpers import corpus_of
from gptloom.errors import InputError
from gptloom.generate.stream import TextStream
from tokenizer_families import FAMILIES, family

WORDS = [
    "the",
    "fox",
    "jumps",
    "over",
    "it's",
    "13",
    "lazy",
    "dogs;",
    "And",
    "then?",
    "ing",
    "ing.",
    "über",
    "naïve",
    "ÄÖ",
]
OTHERS = ["東京の天気", "京", "。", "😀", "é", "e\u0301", "ﬁ", "नम", "\t", "\n", "\n\n", "  ", " ", "   ", "▁", "\x01"]
PLAIN = " ".join(WORDS[n % len(WORDS)] for n in range(900)) + "\n" + "\n".join(WORDS * 9)


def random_text(draw: random.Random, most: int = 5) -> str:
    """Words and spaces, and characters that few tokenizers know."""
    words = [draw.choice(WORDS if draw.random() < 0.6 else OTHERS) for _ in range(draw.randint(1, most))]
    return draw.choice([" ", "", "  "]).join(words)


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """The tokenizers by name; gptloom's own are trained on all characters, so that `char` knows them."""
    corpus = corpus_of(tmp_path_factory.mktemp("families"), PLAIN + " ".join(OTHERS), PLAIN)
    return {name: family(name, PLAIN, corpus) for name in FAMILIES}


def streamed(tokenizer, before: list[int], ids: list[int], stops: tuple[str, ...] = ()) -> str:
    stream = TextStream(tokenizer.decode, before, stops, tokenizer.open_ended)
    return "".join([stream.push(one) for one in ids]) + stream.finish()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_joined_is_the_decoding_of_the_whole(every, name):
    """For 2,000 random texts, each cut into a prompt and what follows; and for 300 sequences of any ids."""
    tokenizer, decode = every[name].tokenizer, every[name].decode
    draw = random.Random(1)
    sequences = [tokenizer.encode(random_text(draw), "skip").tolist() for _ in range(2000)]
    sequences += [draw.choices(range(tokenizer.vocab_size), k=draw.randint(1, 30)) for _ in range(300)]
    for ids in sequences:
        whole = tokenizer.decode(ids)
        cut = next(
            cut for cut in range(draw.randint(0, len(ids)), -1, -1) if whole.startswith(tokenizer.decode(ids[:cut]))
        )
        assert streamed(tokenizer, ids[:cut], ids[cut:]) == whole[len(tokenizer.decode(ids[:cut])) :], (cut, ids)
        if tokenizer.end_of_text not in ids:  # it is never streamed; tiktoken spells it
            assert whole == decode(ids), ids


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stop_string_is_found_in_every_text(every, name):
    tokenizer = every[name].tokenizer
    draw = random.Random(2)
    for _ in range(100):
        ids = tokenizer.encode(random_text(draw), "skip").tolist()
        whole = tokenizer.decode(ids)
        if whole.strip():
            stop = draw.choice(whole.strip())
            assert streamed(tokenizer, [], ids, (stop,)) == whole[: whole.index(stop)]


@pytest.mark.parametrize("script", ["words", "no spaces", "one letter"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_text_has_the_ids_of_the_whole(every, name, script):
    """300,000 characters, also without a space, and with a run of one letter, in which no two windows agree."""
    tokenizer, encode = every[name].tokenizer, every[name].encode
    draw = random.Random(3)
    if script == "words":
        text = " ".join(random_text(draw) for _ in range(30_000))[:300_000]
    elif script == "no spaces":
        text = "".join(draw.choices("東京の天気fox。\n", k=300_000))
    else:
        text = "the fox " * 10_000 + "o" * 150_000 + " the fox" * 9_000
    assert len(text) >= 250_000
    if name == "own sentencepiece":
        text = text.replace("▁", "_")  # it keeps U+2581, which the library reads as a space
    known = "skip" if name in ("metaspace", "byte level without all bytes") else "replace"
    if name == "wordlevel without unk":  # the library raises an error at an unknown word
        text = " ".join(word for word in text.split() if word in WORDS[:4])
    assert np.array_equal(tokenizer.encode(text, known), encode(text))


KNOWS_ALL = ["byte", "bpe", "own sentencepiece", "tiktoken", "cl100k", "llama", "sentencepiece bpe"]
KNOWS_ALL += ["byte level with a prefix", "byte level after a split"]
KNOWS_ALL += ["sentencepiece with a prefix", "sentencepiece with a suffix"]


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_text_is_an_error_unless_it_is_skipped_or_replaced(every, name):
    """Characters, and words of a tokenizer of words, never vanish silently."""
    tokenizer = every[name].tokenizer
    if name in KNOWS_ALL:
        assert tokenizer.decode(tokenizer.encode("the Ω fox")).strip() == "the Ω fox"
        return
    with pytest.raises(InputError, match=r"Ω.*on_unknown skip") as caught:
        tokenizer.encode("theΩ fox")
    assert "\n" not in str(caught.value)
    skipped = tokenizer.encode("the Ω fox", "skip").tolist()
    assert tokenizer.decode(skipped).split() == ["the", "fox"]
    if name == "wordlevel without unk":  # no token can stand for a word
        with pytest.raises(InputError, match=r"use on_unknown skip,"):
            tokenizer.encode("the Ω fox", "replace")
    else:
        assert len(tokenizer.encode("the Ω fox", "replace")) > len(skipped)
    known = "the fox jumps over naïve lazy it's " * 6000
    if "word" not in name and name != "ctc":
        assert tokenizer.decode(tokenizer.encode(known)).strip() == known.strip()
    assert len(tokenizer.encode(known)) >= 42_000  # a window that begins or ends inside a word is no error
    with pytest.raises(InputError, match="Ω"):
        tokenizer.encode(f"{known} Ω {known}")


@pytest.mark.parametrize("name", [name for name in FAMILIES if "wordlevel" not in name and "suffix" not in name])
def test_the_parts_around_a_mask_begin_no_text(every, name):
    tokenizer = every[name].tokenizer
    first, second, third = tokenizer.encode_parts(["the j", "umps over", " the"])
    assert first.tolist() == tokenizer.encode("the j").tolist()
    before = tokenizer.encode("the").tolist()
    for part, text in ((second, "umps over"), (third, " the")):
        whole = tokenizer.decode([*before, *part.tolist()]).strip()
        loose = name in ("wordpiece", "ctc")  # these lose spaces
        assert whole == "the" + text or (loose and whole.replace(" ", "") == "the" + text.replace(" ", ""))


def test_text_without_spaces_makes_a_lossless_sentencepiece(tmp_path):
    """Also a space that comes once in 40,000 characters, which the trainer would drop from its alphabet."""
    chinese = "東京の天気は晴れ、京都の天気は雨。\n" * 60
    for text in (chinese, chinese * 40 + "a b"):
        tokenizer = family("own sentencepiece", text, corpus_of(tmp_path, text)).tokenizer
        for other in ("東京 の 天気", " a  b\t▁ c\u3000d\n e ", "▁ ▁▁"):
            assert tokenizer.decode(tokenizer.encode(other)) == other
