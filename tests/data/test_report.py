import json
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import MIXED, PROSE, corpus_of
from gptloom.config.run import DataConfig
from gptloom.data import report as repeats_module
from gptloom.data.readers import Piece
from gptloom.data.report import WINDOW, describe, leakage, repeats
from gptloom.data.tokenizers import make_tokenizer

UNIQUE = "".join(f"line {n} says {n * n * 7919 % 100_003} and then {n * 31337 % 99_991} things\n" for n in range(400))


def test_a_report_counts_and_is_json(tmp_path):
    text = MIXED + UNIQUE
    corpus = corpus_of(tmp_path, text)
    found = describe(corpus, DataConfig())
    assert (found.documents, found.characters, found.bytes, found.sha256) == (
        1,
        len(text),
        len(text.encode()),
        corpus.sha256,
    )
    assert found.alphabet.size == len(set(text))
    assert dict(found.alphabet.characters) == dict(Counter(text)) and found.alphabet.characters[0][1] == max(
        Counter(text).values()
    )
    assert (found.tokens["char"].tokens, found.tokens["byte"].tokens) == (len(text), len(text.encode()))
    bpe = make_tokenizer("bpe:1024", corpus)
    assert (found.tokens["bpe:1024"].tokens, found.tokens["bpe:1024"].vocab_size) == (
        len(bpe.encode(text)),
        bpe.vocab_size,
    )
    assert found.tokens["bpe:1024"].characters_per_token == pytest.approx(len(text) / len(bpe.encode(text)))
    assert all(count.exact for count in found.tokens.values())
    assert json.loads(json.dumps(asdict(found)))["characters"] == len(text)


@settings(max_examples=60)
@given(lines=st.lists(st.sampled_from(["", "  ", "one", " one", "two ", "three"]), max_size=40), cut=st.integers(1, 9))
def test_repeated_lines_by_counting(lines, cut):
    text = "\n".join(lines)
    cuts = range(0, len(text), cut)
    found = repeats(Piece(text[start : start + cut], start == cuts[-1]) for start in cuts)
    visible = Counter(line.strip() for line in lines if line.strip())
    assert found.lines == visible.total() and found.repeated_lines == visible.total() - len(visible)
    again = sum(len(line) * (count - 1) for line, count in visible.items())
    assert found.character_share == pytest.approx(
        again / max(1, sum(len(line) * count for line, count in visible.items()))
    )


def test_repeated_documents(tmp_path):
    found = describe(corpus_of(tmp_path, "one\ntwo", "two", "one\ntwo", "one\ntwo"), DataConfig())
    assert (found.repeats.documents, found.repeats.repeated_documents) == (4, 2)
    assert any("2 of 4 documents" in warning for warning in found.warnings)


def test_lines_beyond_the_limit_are_not_compared_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(repeats_module, "LINES", 100)
    monkeypatch.setattr(repeats_module, "PIECE", 1 << 12)
    found = describe(corpus_of(tmp_path, *(["same\n"] * 300)), DataConfig())
    assert not found.repeats.complete and found.repeats.lines == 101
    assert any("repetitions were counted" in note for note in found.notes)


def naive_leakage(train: str, val: str, stride: int) -> float:
    seen = {train[i : i + WINDOW] for i in range(len(train) - WINDOW + 1)}
    stretches = [val[i : i + WINDOW] for i in range(0, len(val) - WINDOW + 1, stride)]
    return sum(stretch in seen for stretch in stretches) / max(1, len(stretches))


@settings(max_examples=40)
@given(
    start=st.integers(0, 5000),
    length=st.integers(0, 3000),
    piece=st.integers(20, 900),
    samples=st.sampled_from([50, 700, 20_000]),
)
def test_leakage_by_brute_force(start, length, piece, samples):
    train, val = UNIQUE[:6000], "fresh text, বাংলা 😀 too: " + UNIQUE[start : start + length] + UNIQUE[9000:9500]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats_module, "SAMPLES", samples)
        found = leakage(
            [train[i : i + piece] for i in range(0, len(train), piece)],
            [val[i : i + piece] for i in range(0, len(val), piece)],
            len(val),
        )
    assert found == pytest.approx(naive_leakage(train, val, max(1, len(val) // samples)))


def test_leakage_warns_of_a_copied_validation_part(tmp_path):
    assert describe(corpus_of(tmp_path, UNIQUE), DataConfig()).leakage == 0
    copied = describe(corpus_of(tmp_path, UNIQUE + UNIQUE[:2500]), DataConfig())
    assert copied.leakage > 0.9
    assert any("validation text also occurs in the training text" in warning for warning in copied.warnings)


def test_leakage_into_a_validation_file(tmp_path):
    val = tmp_path / "val.txt"
    val.write_text(UNIQUE[1000:3000], encoding="utf-8")
    assert describe(corpus_of(tmp_path, UNIQUE), DataConfig(val_text=str(val))).leakage == 1


def test_warnings_name_what_is_wrong(tmp_path):
    assert describe(corpus_of(tmp_path, UNIQUE), DataConfig()).warnings == []
    found = describe(corpus_of(tmp_path, "a" * 300), DataConfig())
    assert any("300 characters are few" in warning for warning in found.warnings)
    assert any("100% of the characters are 'a'" in warning for warning in found.warnings)
    assert any(
        "lines that repeat" in warning for warning in describe(corpus_of(tmp_path, PROSE), DataConfig()).warnings
    )
    wide = "".join(map(chr, range(0x4E00, 0x4E00 + 6000))) * 2
    assert any(
        "6,000 distinct characters" in warning for warning in describe(corpus_of(tmp_path, wide), DataConfig()).warnings
    )


def test_notes_of_reading_are_passed_on(tmp_path):
    path = tmp_path / "document00.txt"
    corpus = corpus_of(tmp_path, "x")
    path.write_bytes(("“déjà vu”\r\n" * 50).encode("cp1252"))
    corpus = repeats_module.open_corpus([str(path)], DataConfig())
    notes = "".join(describe(corpus, DataConfig()).notes)
    assert "cp1252" in notes and "CRLF" in notes and "bpe" not in notes


def test_long_texts_are_sampled_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(repeats_module, "SAMPLE", 5000)
    found = describe(corpus_of(tmp_path, UNIQUE), DataConfig())
    assert not found.tokens["bpe:1024"].exact and found.tokens["char"].exact
    assert found.tokens["bpe:1024"].tokens == pytest.approx(
        found.characters / found.tokens["bpe:1024"].characters_per_token, abs=1
    )
    assert any("first 5,000 characters" in note for note in found.notes)


def test_the_tokenizer_of_the_settings_is_counted_too(tmp_path):
    assert set(describe(corpus_of(tmp_path, UNIQUE), DataConfig(tokenizer="bpe:300")).tokens) == {
        "char",
        "byte",
        "bpe:1024",
        "bpe:4096",
        "bpe:300",
    }
