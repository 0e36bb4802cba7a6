import base64
import hashlib
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from axes import TOKENIZERS, every_tokenizer
from data_helpers import MIXED, PROSE, corpus_of
from gptloom.data.readers import Piece
from gptloom.data.tokenizers import END_OF_TEXT, bpe, load_tokenizer, make_tokenizer, subword
from gptloom.data.tokenizers.bpe import HuggingFaceTokenizer
from gptloom.data.tokenizers.char import ByteTokenizer, CharTokenizer
from gptloom.data.tokenizers.external import SentencePieceTokenizer, TiktokenTokenizer
from gptloom.errors import ConfigError, ExitCode, InputError, MachineError

LECTURE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
PARTS = ["the", " the", "  and", "thing.", "\n\n", ".\n", "\n", "নম", "😀", " ", "13"]
ANY = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\0▁a<|endoftext|>e")), max_size=60
)


def tiktoken_of(pattern: str) -> TiktokenTokenizer:
    """A test encoding: all bytes, and merges in an order in which every prefix is a token."""
    words = [
        "th",
        "the",
        " t",
        " th",
        " the",
        "an",
        "and",
        "..",
        "...",
        "\n\n",
        ".\n",
        "  ",
        "   ",
        "ing",
        "in",
        "😀".encode()[:2].decode("latin-1"),
    ]
    ranks = {bytes([value]): value for value in range(256)}
    for word in words:
        ranks.setdefault(word.encode("latin-1"), len(ranks))
    return TiktokenTokenizer("ours", pattern, ranks, {END_OF_TEXT: len(ranks) + 7})


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """One tokenizer of each kind, trained on several documents, so that each has an end-of-text token."""
    corpus = corpus_of(tmp_path_factory.mktemp("text"), PROSE, MIXED)
    some = {
        kind: make_tokenizer(spec, corpus)
        for kind, spec in (
            ("char", "char"),
            ("byte", "byte"),
            ("bpe", "bpe:400"),
            ("sentencepiece", "sentencepiece:400"),
        )
    }
    return some | {"tiktoken": tiktoken_of(GPT2), "cl100k": tiktoken_of(CL100K)}


def pieces_of(text: str, cuts: list[int]) -> list[Piece]:
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    return [Piece(text[a:b], b == len(text)) for a, b in itertools.pairwise(edges)]


def joined(tokenizer, pieces) -> list[int]:
    encoded = list(tokenizer.encode_pieces(pieces))
    assert [part.ends_document for part in encoded].count(True) == [piece.ends_document for piece in pieces].count(True)
    return [token for part in encoded for token in part.ids.tolist()]


def test_the_lectures_numbers():
    tokenizer = CharTokenizer(LECTURE[::-1], ends=False)
    assert tokenizer.vocab_size == 65 and tokenizer.end_of_text is None
    assert tokenizer.encode("hi there!").tolist() == [46, 47, 1, 58, 46, 43, 56, 43, 2]
    assert tokenizer.decode([46, 47, 1, 58, 46, 43, 56, 43, 2]) == "hi there!"
    assert tokenizer.encode("hi").dtype == np.uint8


@every_tokenizer
@given(data=st.data())
def test_round_trip(made, kind, data):
    tokenizer = made[kind]
    text = data.draw(st.text(st.sampled_from(sorted(set(PROSE + MIXED))), max_size=80) if kind == "char" else ANY)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == tokenizer.decode(ids.tolist())
    assert (
        tokenizer.count_bytes(ids)
        == len(text.encode())
        == sum(tokenizer.count_bytes([token]) for token in ids.tolist())
    )
    assert tokenizer.end_of_text not in ids.tolist()
    assert ids.dtype == tokenizer.dtype and (not len(ids) or ids.max() < tokenizer.vocab_size)


@every_tokenizer
@settings(max_examples=40)
@given(
    words=st.lists(
        st.sampled_from(["the", " the", "  and", "thing.", "\n\n", ".\n", "\n", "নম", "😀", " ", "13"]), max_size=60
    ),
    cuts=st.lists(st.integers(1, 150), max_size=5),
)
def test_where_pieces_are_cut_changes_nothing(made, kind, words, cuts):
    text = "".join(words)
    if kind == "char":
        text = "".join(char for char in text if char in made[kind].alphabet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subword, "CHUNK", 8)
        patch.setattr(subword, "OVERLAP", 8)
        whole = made[kind].encode(text).tolist()
        assert joined(made[kind], pieces_of(text, cuts)) == whole
    assert made[kind].decode(whole) == text


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "tiktoken", "cl100k"])
@settings(max_examples=60)
@given(
    words=st.lists(
        st.sampled_from([" the", "  and", "   thing.", " an end.\n", " the\n\n", " It's", " ...", " 13"]),
        min_size=1,
        max_size=40,
    )
)
def test_chunks_end_where_no_token_would_cross(made, kind, words):
    text = "".join(words)
    whole = made[kind].encode(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subword, "CHUNK", 20)
        chunks = [chunk.text for chunk in subword.rechunk([Piece(text, True)])]
        assert "".join(chunks) == text and max(map(len, chunks)) <= 40
        assert [token for chunk in chunks for token in made[kind].encode(chunk)] == whole


SPACES = [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
    "\u180e",
    "\u2003",
    "\u2028",
    "\u3000",
    "\u200b",
]
WORDS = ["the", "it's", "ing.", "13", "নম", "😀", "é", "<|endoftext|>", "_"]


@pytest.fixture(scope="session")
def spaced(tmp_path_factory):
    """A BPE with merges of all kinds of white space that GPT-2's pattern allows."""
    text = "".join(random.Random(1).choices(SPACES + WORDS, k=20_000))
    return (
        make_tokenizer("bpe:1500", corpus_of(tmp_path_factory.mktemp("spaced"), text, "x"))
        .files()["tokenizer.json"]
        .decode()
    )


@settings(max_examples=150)
@given(
    texts=st.lists(st.lists(st.sampled_from(SPACES * 2 + WORDS * 3), max_size=40).map("".join), min_size=1, max_size=5),
    times=st.integers(1, 4),
)
def test_remembered_words_are_the_librarys_ids(spaced, texts, times):
    plain = tokenizers.Tokenizer.from_str(spaced)
    plain.encode_special_tokens = True
    expected = [encoding.ids for encoding in plain.encode_batch(texts * times, add_special_tokens=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "KEPT", 30)
        patch.setattr(bpe, "_TOGETHER", 3)
        fresh = HuggingFaceTokenizer(spaced)
        for _ in range(2):
            assert [ids.tolist() for ids in fresh._words.encode(texts * times)] == expected


@pytest.mark.parametrize(
    "change",
    [
        "a token of several words",
        "a space before every text",
        "lower case",
        "bytes are missing",
        "another decoder",
        "suffix",
    ],
)
def test_words_are_remembered_only_where_they_stand_alone(made, change):
    content = json.loads(made["bpe"].files()["tokenizer.json"])
    assert HuggingFaceTokenizer(json.dumps(content))._words
    match change:
        case "a token of several words":
            content["added_tokens"].append(
                content["added_tokens"][0] | {"id": 400, "content": "and the", "special": False}
            )
        case "a space before every text":
            content["pre_tokenizer"]["add_prefix_space"] = True
        case "lower case":
            content["normalizer"] = {"type": "Lowercase"}
        case "bytes are missing":
            content["model"]["vocab"].pop("ÿ")
        case "another decoder":
            content["decoder"] = {"type": "Fuse"}
        case "suffix":
            content["model"]["end_of_word_suffix"] = "</w>"
    text = "and the and the and the And thé and the"
    changed, plain = HuggingFaceTokenizer(json.dumps(content)), tokenizers.Tokenizer.from_str(json.dumps(content))
    assert changed.encode(text).tolist() == plain.encode(text, add_special_tokens=False).ids
    assert not changed._words


def test_a_text_without_a_safe_place_is_cut_at_a_bounded_size(made, monkeypatch):
    monkeypatch.setattr(subword, "CHUNK", 100)
    text = "x" * 1001
    assert [len(chunk.text) for chunk in subword.rechunk([Piece(text, True)])] == [200] * 5 + [1]


@every_tokenizer
def test_saved_and_loaded_it_is_the_same(made, kind, tmp_path):
    tokenizer = made[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.vocab_size, loaded.end_of_text, loaded.fingerprint) == (
        tokenizer.kind,
        tokenizer.vocab_size,
        tokenizer.end_of_text,
        tokenizer.fingerprint,
    )
    text = "the quick fox doesn't\n\n"
    assert np.array_equal(loaded.encode(text), tokenizer.encode(text))
    assert loaded.files() == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert ("kind" in json.loads((tmp_path / "tokenizer.json").read_bytes())) == (kind != "bpe")


def test_fingerprints_are_stable_across_processes_and_differ(made, tmp_path):
    for kind in TOKENIZERS:
        (tmp_path / kind).mkdir()
        made[kind].save(tmp_path / kind)
    program = (
        "import sys; from pathlib import Path; from gptloom.data.tokenizers import load_tokenizer as l; "
        "print(*(l(Path(p)).fingerprint for p in sys.argv[1:]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *(str(tmp_path / kind) for kind in TOKENIZERS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [made[kind].fingerprint for kind in TOKENIZERS]
    others = [
        CharTokenizer("ab", ends=True),
        CharTokenizer("ab", ends=False),
        CharTokenizer("abc", ends=False),
        ByteTokenizer(ends=False),
        ByteTokenizer(ends=True),
    ]
    assert (
        len({tokenizer.fingerprint for tokenizer in others} | {tokenizer.fingerprint for tokenizer in made.values()})
        == 5 + len(TOKENIZERS) - 1
    )


def test_the_same_text_learns_the_same_tokens(tmp_path):
    corpus = corpus_of(tmp_path, PROSE)
    for spec in ("bpe:300", "sentencepiece:400"):
        assert make_tokenizer(spec, corpus).fingerprint == make_tokenizer(spec, corpus).fingerprint


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:300", "sentencepiece:350"])
def test_the_end_of_text_is_there_only_for_several_documents(tmp_path, spec):
    assert make_tokenizer(spec, corpus_of(tmp_path, PROSE)).end_of_text is None
    several = make_tokenizer(spec, corpus_of(tmp_path, PROSE, PROSE))
    assert several.end_of_text is not None
    assert several.end_of_text == several.vocab_size - 1 or spec not in ("char", "byte")
    assert several.count_bytes([several.end_of_text]) == 0 and several.decode([several.end_of_text]) == ""
    assert several.token_text(several.end_of_text) == END_OF_TEXT


def test_tokens_are_printable_even_in_parts(made):
    first, *_ = made["byte"].encode("😀").tolist()
    assert made["byte"].token_text(first) == r"\xf0" and made["byte"].decode([first]) == "\ufffd"
    for tokenizer in made.values():
        assert all(tokenizer.token_text(token).encode() is not None for token in range(tokenizer.vocab_size))
    assert made["sentencepiece"].token_text(made["sentencepiece"].encode(" fox").tolist()[0]).startswith(" ")


@pytest.mark.parametrize(
    ("char", "named", "near"),
    [
        ("É", "U\\+00C9, LATIN CAPITAL LETTER E WITH ACUTE", "E"),
        ("’", "U\\+2019, RIGHT SINGLE", "'"),
        ("\u00a0", "U\\+00A0", " "),
        ("4", "U\\+0034", "3"),
    ],
)
def test_an_unknown_character_is_named_with_the_nearest(char, named, near):
    tokenizer = CharTokenizer(LECTURE, ends=True)
    with pytest.raises(InputError, match=f"{named}.*nearest are .{near}.*on_unknown skip.replace") as caught:
        tokenizer.encode(f"ab{char}c")
    assert "\n" not in str(caught.value)
    assert tokenizer.decode(tokenizer.encode(f"ab{char}c{char}", "skip")) == "abc"
    assert tokenizer.decode(tokenizer.encode(f"ab{char}c{char}", "replace")) == f"ab{near}c{near}"


def test_the_other_case_stands_in():
    assert CharTokenizer("abcE", ends=False).decode(CharTokenizer("abcE", ends=False).encode("AeQ", "replace")) == "aEE"


@every_tokenizer
def test_half_a_surrogate_pair_is_an_input_error(made, kind):
    with pytest.raises(InputError, match="on_unknown") as caught:
        made[kind].encode("the \ud800 fox")
    str(caught.value).encode()
    assert made[kind].decode(made[kind].encode("the \ud800fox", "skip")) == "the fox"
    assert "fox" in made[kind].decode(made[kind].encode("the \ud800fox", "replace"))


@pytest.mark.parametrize("kind", TOKENIZERS[1:])
def test_what_looks_like_a_special_token_is_text(made, kind):
    text = f"the {END_OF_TEXT} and </s> and <0x41>{END_OF_TEXT}"
    ids = made[kind].encode(text)
    assert made[kind].decode(ids) == text and made[kind].end_of_text not in ids.tolist()


@every_tokenizer
def test_nothing_becomes_nothing(made, kind):
    assert made[kind].encode("").tolist() == [] and made[kind].decode([]) == "" and made[kind].count_bytes([]) == 0


def test_a_small_text_makes_a_small_vocabulary_with_a_note(tmp_path):
    corpus = corpus_of(tmp_path, "to be or not to be")
    assert make_tokenizer("bpe", corpus).vocab_size < 300
    assert len(corpus.notes) == 1 and "too short for bpe:4096" in corpus.notes[0]


def test_a_saved_bpe_is_a_plain_hugging_face_file(made, tmp_path):
    made["bpe"].save(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode(PROSE).ids == made["bpe"].encode(PROSE).tolist()
    assert plain.decode(made["bpe"].encode(MIXED).tolist()) == MIXED
    assert plain.encode(END_OF_TEXT).ids == [made["bpe"].end_of_text]
    again = make_tokenizer(str(tmp_path / "tokenizer.json"), corpus_of(tmp_path, "x"))
    assert again.fingerprint == made["bpe"].fingerprint


def test_a_foreign_tokenizer_json(tmp_path):
    words = {"[UNK]": 0, "</s>": 1, "hello": 2, "world": 5}
    foreign = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    foreign.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    foreign.enable_truncation(1)
    foreign.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text) == ("huggingface", 6, 1)
    assert tokenizer.encode("hello world").tolist() == [2, 5] and tokenizer.decode([2, 5]) == "hello world"
    assert tokenizer.count_bytes([2, 5]) == len("hello world")


def test_training_sentencepiece_is_quiet_and_a_model_file_can_be_given(tmp_path, capfd):
    corpus = corpus_of(tmp_path, PROSE)
    trained = make_tokenizer("sentencepiece:350", corpus)
    assert capfd.readouterr() == ("", "")
    (tmp_path / "my.model").write_bytes(trained.files()["tokenizer.model"])
    assert make_tokenizer(str(tmp_path / "my.model"), corpus).fingerprint == trained.fingerprint
    with pytest.raises(ConfigError, match="sentencepiece:257 cannot be trained: Vocabulary size"):
        make_tokenizer("sentencepiece:257", corpus)


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_model_that_puts_a_space_before_every_text(monkeypatch, collapsed):
    import io

    import sentencepiece

    model = io.BytesIO()
    options = {
        "vocab_size": 330,
        "byte_fallback": True,
        "hard_vocab_limit": False,
        "remove_extra_whitespaces": collapsed,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(PROSE.split("\n")), model_writer=model, **options)
    tokenizer = SentencePieceTokenizer(model.getvalue())
    assert tokenizer.end_of_text == 2
    text = "The quick brown fox jump over lazy dogs it sleeps"
    whole = tokenizer.encode(text).tolist()
    assert tokenizer.decode(whole) == text
    monkeypatch.setattr(subword, "CHUNK", 10)
    assert tokenizer.encode(text).tolist() == whole


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chat", "did you mean char"),
        ("bpe:x", "whole number"),
        ("bpe:100", "at least 257"),
        ("char:5", "is not a tokenizer"),
        ("tiktoken", "is not a tokenizer"),
        ("tiktoken:gpt3", "did you mean"),
    ],
)
def test_wrong_specs(tmp_path, spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_tokenizer(spec, corpus_of(tmp_path, "abc"))
    assert "data.tokenizer" in str(caught.value)


def test_tiktoken_without_a_network_is_the_machines_fault(tmp_path, monkeypatch):
    import requests
    import tiktoken

    def offline(_):
        raise requests.exceptions.ConnectionError("no network\nat all")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(MachineError, match=r"tiktoken:gpt2: .*bpe:4096.*tokenizer.json") as caught:
        make_tokenizer("tiktoken:gpt2", corpus_of(tmp_path, "abc"))
    assert caught.value.code == ExitCode.MACHINE


def test_a_named_tiktoken_encoding_is_kept_complete(tmp_path, monkeypatch):
    import tiktoken

    ours = tiktoken_of(GPT2)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: ours._encoding)
    tokenizer = make_tokenizer("tiktoken:gpt2", corpus_of(tmp_path, "abc"))
    tokenizer.save(tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", None)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(PROSE).tolist() == ours._encoding.encode_ordinary(PROSE)
    assert loaded.end_of_text == ours.end_of_text == loaded.vocab_size - 1


@pytest.mark.parametrize(("package", "kind"), [("sentencepiece", "sentencepiece"), ("tiktoken", "tiktoken")])
def test_a_missing_package_is_named_with_its_extra(made, tmp_path, monkeypatch, package, kind):
    made[kind].save(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r'pip install "gptloom\[tokenizers\]"'):
        load_tokenizer(tmp_path)


BAD = {
    "no file": None,
    "no JSON": "{",
    "no object": "[]",
    "unknown kind": '{"kind": "morse"}',
    "a kind that is no word": '{"kind": ["char"]}',
    "no alphabet": '{"kind": "char", "end_of_text": true}',
    "alphabet of another type": '{"kind": "char", "alphabet": 5, "end_of_text": true}',
    "empty alphabet": '{"kind": "char", "alphabet": "", "end_of_text": true}',
    "repeated character": '{"kind": "char", "alphabet": "aba", "end_of_text": true}',
    "half a character": '{"kind": "char", "alphabet": "a\\ud800", "end_of_text": true}',
    "end of another type": '{"kind": "byte", "end_of_text": 256}',
    "no model": '{"kind": "sentencepiece", "model_sha256": "00"}',
    "no hash": '{"kind": "sentencepiece"}',
    "no ranks": '{"kind": "tiktoken", "ranks_sha256": "00"}',
    "no model in it": '{"version": "1.0"}',
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_damaged_tokenizer_is_an_input_error(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer" in str(caught.value) and caught.value.cure


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_a_damaged_side_file_is_noticed(made, tmp_path, kind):
    made[kind].save(tmp_path)
    (side,) = (path for path in tmp_path.iterdir() if path.name != "tokenizer.json")
    side.write_bytes(side.read_bytes()[:-3])
    with pytest.raises(InputError, match="is damaged"):
        load_tokenizer(tmp_path)
    garbage = b"garbage"
    side.write_bytes(garbage)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    key = next(key for key in content if key.endswith("sha256"))
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(content | {key: hashlib.sha256(garbage).hexdigest()}), encoding="utf-8"
    )
    with pytest.raises(InputError):
        load_tokenizer(tmp_path)


def test_tiktoken_ranks_are_checked(made, tmp_path):
    ranks = {bytes([value]): value for value in range(256)}
    for wrong in ({b"a": 0}, ranks | {b"ab": 255}):
        with pytest.raises(InputError, match="every byte"):
            TiktokenTokenizer("ours", GPT2, wrong, {})
    with pytest.raises(InputError, match="pattern"):
        TiktokenTokenizer("ours", "(", ranks, {})
    made["tiktoken"].save(tmp_path)
    lines = (tmp_path / "tokenizer.tiktoken").read_bytes().splitlines()
    assert [base64.b64decode(line.split()[0]) for line in lines[:256]] == [bytes([value]) for value in range(256)]


def test_characters_are_encoded_at_the_speed_of_arrays():
    text, tokenizer = PROSE * 300, CharTokenizer("".join(set(PROSE)), ends=False)
    start = time.perf_counter()
    tokenizer.encode(text)
    assert len(text) / (time.perf_counter() - start) > 20e6  # 600 MB/s where measured; a loop in Python does 10


def test_importing_the_package_is_cheap():
    program = (
        "import sys, gptloom.data; "
        "print([n for n in ('torch', 'numpy', 'tokenizers', 'sentencepiece', 'tiktoken') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )
    program = (
        "import sys, gptloom.data.tokenizers, gptloom.data.tokens; "
        "print([n for n in ('torch', 'tokenizers', 'sentencepiece', 'tiktoken') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def test_a_json_file_of_ours_can_be_given_by_path(tmp_path):
    CharTokenizer("xyz", ends=False).save(tmp_path)
    tokenizer = make_tokenizer(str(tmp_path / "tokenizer.json"), corpus_of(tmp_path, "x"))
    assert isinstance(tokenizer, CharTokenizer) and tokenizer.alphabet == "xyz"
    with pytest.raises(InputError, match="cannot be read"):
        make_tokenizer(str(Path("nowhere") / "tokenizer.json"), corpus_of(tmp_path, "x"))
    with pytest.raises(InputError, match=r"is not a tokenizer\.json"):
        HuggingFaceTokenizer("{}")
