import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from data_helpers import MIXED, PROSE, corpus_of, store_of
from gptloom.config.run import DataConfig
from gptloom.data.tokenizers import make_tokenizer
from gptloom.data.tokenizers.char import ByteTokenizer, CharTokenizer
from gptloom.data.tokens import open_store, prepare, split, store_path
from gptloom.errors import InputError, MachineError


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(("spec", "dtype"), [("char", "uint8"), ("byte", "uint8"), ("bpe:300", "uint16")])
def test_a_store_is_a_safetensors_file_of_the_ids(tmp_path, config, spec, dtype):
    text = MIXED + PROSE
    corpus = corpus_of(tmp_path, text)
    tokenizer = make_tokenizer(spec, corpus)
    store = prepare(corpus, tokenizer, config)
    reference = load_file(store.path)
    assert reference["ids"].dtype == store.ids.dtype == np.dtype(dtype)
    assert np.array_equal(reference["ids"], store.ids) and np.array_equal(store.ids, tokenizer.encode(text))
    assert reference["document_starts"].tolist() == store.document_starts.tolist() == [0]
    assert (store.text_sha256, store.tokenizer_fingerprint) == (corpus.sha256, tokenizer.fingerprint)
    assert (store.characters, store.bytes) == (len(text), len(text.encode()))
    assert store.path == store_path(config, corpus.sha256, tokenizer.fingerprint)
    assert not store.ids.flags.writeable


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:300"])
def test_the_end_of_text_follows_each_of_several_documents(tmp_path, config, spec):
    texts = ["one fish", "নমস্কার", "red fish, blue fish"]
    corpus = corpus_of(tmp_path, *texts)
    tokenizer = make_tokenizer(spec, corpus)
    store = prepare(corpus, tokenizer, config)
    parts = np.split(store.ids, store.document_starts[1:].astype(int))
    assert [tokenizer.decode(part) for part in parts] == texts
    assert [part[-1] for part in parts] == [tokenizer.end_of_text] * 3
    assert [list(part).count(tokenizer.end_of_text) for part in parts] == [1, 1, 1]
    assert tokenizer.count_bytes(store.ids) == corpus.bytes == store.bytes


def test_a_store_is_used_again_and_opened_without_the_text(tmp_path, config):
    corpus = corpus_of(tmp_path, PROSE)
    tokenizer = make_tokenizer("char", corpus)
    first = prepare(corpus, tokenizer, config)
    stamp = first.path.stat()
    again = prepare(corpus, tokenizer, config)
    assert again.path.stat().st_ino == stamp.st_ino and again.path.stat().st_mtime_ns == stamp.st_mtime_ns
    assert np.array_equal(open_store(first.path).ids, first.ids)
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_another_text_tokenizer_or_rule_is_another_store(tmp_path, config):
    char, other = CharTokenizer("abc", ends=False), CharTokenizer("abcd", ends=False)
    replace = config.model_copy(update={"on_unknown": "replace"})
    one, two = corpus_of(tmp_path, "abc"), None
    paths = [
        prepare(one, tokenizer, settings).path
        for tokenizer, settings in ((char, config), (other, config), (char, replace))
    ]
    two = corpus_of(tmp_path, "cba")
    paths.append(prepare(two, char, config).path)
    assert len(set(paths)) == 4
    assert open_store(paths[0]).ids.tolist() == [0, 1, 2] and open_store(paths[3]).ids.tolist() == [2, 1, 0]


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "foreign":
        save_file({"ids": np.arange(5)}, path)
        return
    changed = {
        "truncated": whole[:-1],
        "longer": whole + b"\0",
        "header only": whole[:4096],
        "half a header": whole[:100],
        "empty": b"",
        "text": b"hello, world" * 999,
        "another shape": whole.replace(b'"dtype": "U8"', b'"dtype": "U9"'),
        "another text": whole.replace(b'"text_sha256": "', b'"text_sha256": "0')[: len(whole)].replace(
            b" " * 64, b" " * 63, 1
        ),
    }[how]
    path.write_bytes(changed)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "longer",
        "header only",
        "half a header",
        "empty",
        "text",
        "another shape",
        "foreign",
        "another text",
    ],
)
def test_a_damaged_store_is_made_again_with_a_note(tmp_path, config, how):
    corpus = corpus_of(tmp_path, PROSE)
    tokenizer = make_tokenizer("char", corpus)
    path = prepare(corpus, tokenizer, config).path
    whole = path.read_bytes()
    assert corpus.notes == []
    damage(path, how)
    store = prepare(corpus, tokenizer, config)
    assert path.read_bytes() == whole and tokenizer.decode(store.ids) == PROSE
    assert len(corpus.notes) == 1 and "created again" in corpus.notes[0]


def test_opening_what_is_not_a_store(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        open_store(tmp_path / "none")
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"[" * 9000)
    with pytest.raises(InputError, match="not a valid token file"):
        open_store(path)


def test_a_failure_leaves_nothing_behind(tmp_path, config):
    corpus = corpus_of(tmp_path, "abz")
    with pytest.raises(InputError, match="U\\+007A"):
        prepare(corpus, CharTokenizer("ab", ends=False), config)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    with pytest.raises(InputError, match="no token"):
        prepare(
            corpus_of(tmp_path, "zz"), CharTokenizer("ab", ends=False), config.model_copy(update={"on_unknown": "skip"})
        )


def test_skipped_characters_may_leave_documents_empty(tmp_path, config):
    corpus = corpus_of(tmp_path, "zz", "ab", "zz")
    store = prepare(corpus, CharTokenizer("ab", ends=False), config.model_copy(update={"on_unknown": "skip"}))
    assert store.ids.tolist() == [0, 1] and store.document_starts.tolist() == [0, 0, 2]


def test_a_text_that_changes_meanwhile_is_noticed(tmp_path, config):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    from gptloom.data.sources import open_corpus

    corpus = open_corpus([str(path)], DataConfig())
    assert corpus.documents == 2
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="changed while it was read"):
        prepare(corpus, ByteTokenizer(ends=True), config)


def test_a_cache_that_cannot_be_written_is_the_machines_fault(tmp_path):
    corpus = corpus_of(tmp_path, "abc")
    with pytest.raises(MachineError, match=r"data\.cache"):
        prepare(corpus, ByteTokenizer(ends=False), DataConfig(cache=os.fspath(tmp_path / "document00.txt")))


def test_shakespeare_is_split_like_everyone_elses():
    parts = split(store_of(1_115_394), DataConfig())
    assert (len(parts.train), len(parts.val)) == (1_003_854, 111_540)
    assert parts.train.ids[-1] == 1_003_853 and parts.val.ids[0] == 1_003_854


@given(n=st.integers(40, 10**6), hundredths=st.integers(5, 95))
def test_position_split_is_exact(n, hundredths):
    parts = split(store_of(n), DataConfig(val_fraction=hundredths / 100, val_tokens=n))
    assert len(parts.train) == int(n * Fraction(100 - hundredths, 100)) and len(parts.train) + len(parts.val) == n
    if hundredths == 10:
        assert len(parts.train) == int(0.9 * n)
    assert Decimal(str(hundredths / 100)) == Decimal(hundredths) / 100


def test_a_long_text_does_not_validate_on_more_than_val_tokens():
    parts = split(store_of(10_000), DataConfig(val_tokens=300))
    assert (len(parts.train), len(parts.val)) == (9_700, 300) and parts.val.ids[0] == 9_700
    assert len(split(store_of(10_000), DataConfig()).val) == 1_000


def test_documents_of_the_parts_count_from_their_own_beginning():
    parts = split(store_of(100, (0, 30, 60, 95)), DataConfig(val_fraction=0.2))
    assert parts.train.document_starts.tolist() == [0, 30, 60]
    assert parts.val.document_starts.tolist() == [0, 15]


@pytest.mark.parametrize(("fraction", "cut"), [(0.1, 95), (0.2, 95), (0.3, 60), (0.6, 30), (0.99, 30)])
def test_document_split_moves_to_the_nearest_boundary(fraction, cut):
    parts = split(store_of(100, (0, 30, 60, 95)), DataConfig(val_fraction=fraction, split="document"))
    assert len(parts.train) == cut and parts.val.ids[0] == cut and parts.val.document_starts[0] == 0
    with pytest.raises(InputError, match="only one document"):
        split(store_of(100), DataConfig(split="document"))


def test_a_validation_text_of_its_own():
    parts = split(store_of(50), DataConfig(), store_of(7))
    assert (len(parts.train), len(parts.val)) == (50, 7)


def test_only_an_impossible_split_is_refused():
    assert len(split(store_of(20), DataConfig()).val) == 2
    with pytest.raises(InputError, match="validation part has 1 token,"):
        split(store_of(10), DataConfig())
    with pytest.raises(InputError, match="training part"):
        split(store_of(10), DataConfig(val_fraction=0.9))
