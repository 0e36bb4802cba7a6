import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axes import every_world
from data_helpers import texts_of
from gptloom.config.run import IGNORE_INDEX, DataConfig
from gptloom.data import number_words
from gptloom.data.number_words import HELD_OUT, VAL_FRACTION, held_out_numbers, is_numbers, languages, training_numbers
from gptloom.data.pair_batches import (
    PairBatches,
    check_lengths,
    longest,
    pair_texts,
    pair_windows,
    split_pairs,
    too_long,
)
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import make_tokenizer
from gptloom.data.tokens import Tokens, prepare, split
from gptloom.errors import ConfigError, GptloomError, InputError

END = 999
QUICK = "numbers:it-es"  # the fastest languages of num2words


@pytest.fixture
def few(monkeypatch):
    """So few numbers that slow languages are fast, too."""
    monkeypatch.setattr(number_words, "_DRAWN", {4: 5, 5: 5})
    monkeypatch.setattr(number_words, "HELD_OUT", (range(42_000, 42_004),))


def words(number: int, language: str) -> str:
    import num2words

    return num2words.num2words(number, lang=language)


def lines_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


def number_file(text: str, cache: Path) -> tuple[Path, list[str]]:
    corpus = open_corpus([text], DataConfig(cache=str(cache)))
    return cache / "datasets" / f"{corpus.name}.tsv", corpus.notes


def opened(path: Path, content: bytes, **settings):
    path.write_bytes(content)
    return open_corpus([str(path)], DataConfig(**settings), pairs=True)


def tokens_of(pairs: list[tuple[list[int], list[int]]]) -> Tokens:
    """Pairs as in a token store: `END` follows each side."""
    sides = [[*side, END] for pair in pairs for side in pair]
    starts = np.cumsum([0, *map(len, sides)])[:-1]
    return Tokens(np.array([token for side in sides for token in side], np.uint16), starts.astype(np.int64))


def made_up(n: int, most: int = 12) -> list[tuple[list[int], list[int]]]:
    """Pairs of random lengths, in which every token of pair i is i, or i + 500 in the target."""
    drawn = np.random.default_rng(0).integers(1, most + 1, (n, 2)).tolist()
    return [([i] * source, [i + 500] * target) for i, (source, target) in enumerate(drawn)]


def batches(pairs, **changes) -> PairBatches:
    return PairBatches(tokens_of(pairs), **{"batch_size": 6, "seed": 7, "end_of_text": END} | changes)


def pairs_in(*made) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The pairs of batches; each row is checked."""
    found = []
    for sources, inputs, targets in made:
        assert sources.dtype == inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape and len(sources) == len(inputs)
        for source, given_, wanted in zip(sources.tolist(), inputs.tolist(), targets.tolist(), strict=True):
            source_length = len(source) - source.count(IGNORE_INDEX)
            length = len(wanted) - wanted.count(IGNORE_INDEX)
            assert source[source_length:] == [IGNORE_INDEX] * (len(source) - source_length)
            assert wanted[length - 1] == END and wanted[length:] == [IGNORE_INDEX] * (len(wanted) - length)
            assert given_ == [END, *wanted[: length - 1], *[0] * (len(wanted) - length)]
            found.append((tuple(source[:source_length]), tuple(wanted[: length - 1])))
    return found


# Number words


def test_held_out_numbers_are_in_no_training_pair(tmp_path):
    pairs = lines_of(number_file(QUICK, tmp_path)[0])
    held_out = [[words(number, "it"), words(number, "es")] for block in HELD_OUT for number in block]
    count = round(VAL_FRACTION * len(pairs))
    train, val = pairs[:-count], pairs[-count:]
    assert val == held_out and len(val) == 2000
    for language in (0, 1):
        assert not {pair[language] for pair in train} & {pair[language] for pair in held_out}
    assert [words(number, "it") for number in range(1000)] == [pair[0] for pair in train[:1000]]
    assert all(side == " ".join(side.split()) for pair in pairs for side in pair)


def test_validation_reads_what_was_held_out_with_settings_as_they_are(few, monkeypatch, tmp_path):
    monkeypatch.setattr(number_words, "_DRAWN", {4: 4, 5: 4})
    monkeypatch.setattr(number_words, "HELD_OUT", (range(42_000, 42_112),))  # a tenth, as in the real data
    config = DataConfig(cache=str(tmp_path))
    corpus = open_corpus([QUICK], config)
    tokenizer = make_tokenizer("char", corpus)
    parts = split_pairs(prepare(corpus, tokenizer, config), config)
    val = [tuple(map(tokenizer.decode, pair)) for pair in pair_texts(parts.val)]
    assert val == [(words(number, "it"), words(number, "es")) for number in range(42_000, 42_112)]
    assert corpus.name == "numbers-it-es" and corpus.sources == [QUICK] and not corpus.notes
    assert config.val_fraction == VAL_FRACTION


def test_training_numbers_are_small_ones_and_as_many_of_four_digits_as_of_five():
    chosen = training_numbers()
    assert chosen == sorted(set(chosen)) and chosen[:1000] == list(range(1000)) and chosen[-1] < 100_000
    assert Counter(len(str(number)) for number in chosen) == {1: 10, 2: 90, 3: 900, 4: 8500, 5: 8500}
    assert not set(chosen) & set(held_out_numbers())
    thousands = Counter(number // 1000 for number in chosen if number >= 10_000)
    assert set(thousands) == set(range(10, 100)) - {42, 97} and min(thousands.values()) > 60
    assert len(held_out_numbers()) == VAL_FRACTION * (len(chosen) + len(held_out_numbers()))
    assert chosen[1000:1005] == [1000, 1001, 1002, 1003, 1004] and chosen[-3:] == [
        99979,
        99987,
        99999,
    ]  # golden: the data must not change


def test_a_language_pair_of_the_readme(few, tmp_path):
    pairs = lines_of(number_file("numbers:en-fr", tmp_path)[0])
    assert ["ninety-seven", "quatre-vingt-dix-sept"] in pairs and len(pairs) == 1014
    assert pairs[-4:] == [[words(number, "en"), words(number, "fr")] for number in range(42_000, 42_004)]


@pytest.mark.parametrize(
    "text", ["numbers:de-ja", "numbers:en_IN-pt_BR", "numbers:fr-en", "numbers:ar-ko", "numbers:it-az", "numbers:en-te"]
)
def test_languages(few, tmp_path, text):
    source, target = text.removeprefix("numbers:").split("-")
    assert is_numbers(text) and {source, target} <= set(languages())
    pairs = lines_of(number_file(text, tmp_path)[0])
    spelled = [*number_words.training_numbers(), *range(42_000, 42_004)]
    assert pairs == [[" ".join(words(number, language).split()) for language in (source, target)] for number in spelled]


def test_the_file_is_the_same_each_time_and_made_again_when_damaged(few, tmp_path):
    path, notes = number_file(QUICK, tmp_path)
    whole, record = path.read_bytes(), path.with_suffix(".json")
    facts = json.loads(record.read_text())
    assert not notes and facts["num2words"].count(".") >= 1
    for harm in (
        lambda: path.write_bytes(whole[:-9]),
        lambda: record.unlink(),
        lambda: record.write_text("{"),
        lambda: record.write_text("[]"),
        lambda: record.write_text(json.dumps(facts | {"version": 0})),
    ):
        harm()
        _, notes = number_file(QUICK, tmp_path)
        assert len(notes) == 1 and "created again" in notes[0] and str(path) in notes[0]
        assert path.read_bytes() == whole and json.loads(record.read_text()) == facts
        assert not number_file(QUICK, tmp_path)[1]
    other, _ = number_file(QUICK, tmp_path / "elsewhere")
    assert other.read_bytes() == whole
    assert sorted(file.name for file in path.parent.iterdir()) == ["numbers-it-es.json", "numbers-it-es.tsv"]


def test_a_broken_generation_leaves_no_file(few, tmp_path):
    with pytest.raises(InputError):
        number_file("numbers:it-am", tmp_path)
    assert not list(tmp_path.rglob("*.tsv"))


def test_without_num2words_the_cure_is_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(InputError, match=r'num2words; pip install "gptloom\[translate\]"'):
        number_file("numbers:en-fr", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numbers:", r"numbers:: is not of the form numbers:SOURCE-TARGET; .*numbers:en-fr"),
        ("numbers:en", "form numbers:SOURCE-TARGET"),
        ("numbers:en-", "form numbers:SOURCE-TARGET"),
        ("numbers:en-fr-de", "form numbers:SOURCE-TARGET"),
        ("numbers:en-xx", r"no language 'xx'; choose from am, ar, .*fr"),
        ("numbers:en_in-fr", r"no language 'en_in'; did you mean .*en_IN"),
        ("numbers:../x-fr", r"no language '../x'"),
        ("numbers:am-it", r"numbers:am: num2words has no words for 1,100 in 'am'"),
        ("numbers:it-am", r"numbers:am: num2words has no words for 1,100 in 'am'"),
        ("numbers:az-it", r"numbers:az: num2words spells 10,\d\d\d and 11,\d\d\d identically in 'az'"),
        ("number:en-fr", r"did you mean numbers:en-fr\?"),
    ],
)
def test_words_that_cannot_be_understood(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        number_file(text, tmp_path)
    assert "\n" not in caught.value.line() and caught.value.cure


# Pairs from files


def test_sources_and_targets_take_turns_as_documents(tmp_path):
    for name in ("a.tsv", "a.txt"):
        corpus = opened(tmp_path / name, 'the cat\tle chat\n"a, b"\t "«a»"\n\n  \nlast\tdernier'.encode())
        assert texts_of(corpus) == ["the cat", "le chat", '"a, b"', ' "«a»"', "last", "dernier"]
        assert corpus.several and not corpus.notes
    corpus = open_corpus(["-"], DataConfig(), stdin=io.BytesIO(b"one\tun\n"), pairs=True)
    assert texts_of(corpus) == ["one", "un"]
    assert (
        texts_of(open_corpus([str(tmp_path)], DataConfig(), pairs=True))
        == ["the cat", "le chat", '"a, b"', ' "«a»"', "last", "dernier"] * 2
    )


def test_encodings_and_line_ends_are_as_elsewhere(tmp_path):
    content = "naïve\tété\r\nzwölf\tdouze\r\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        corpus = opened(tmp_path / "a.tsv", content.encode(encoding))
        assert texts_of(corpus) == ["naïve", "été", "zwölf", "douze"]
        assert corpus.scan and ["CRLF" in note for note in corpus.notes] == [True]
    assert texts_of(opened(tmp_path / "a.tsv", content.encode("cp1250", "replace"), encoding="cp1250"))[2] == "zwölf"


def test_without_pairs_a_tsv_is_read_by_its_field(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\nhello\t1\nworld\t2\n")
    assert texts_of(open_corpus([str(path)], DataConfig())) == ["hello", "world"]
    assert texts_of(open_corpus([str(path)], DataConfig(), pairs=True)) == ["text", "label", "hello", "1", "world", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nno tab here\n", r"a.tsv:2: has no tab, so it is not a pair; write each line as SOURCE<tab>TARGET"),
        (b"a\tb\n\nc\td\te\n", r"a.tsv:3: has 2 tabs, and a pair has one"),
        (b"a\tb\n\tb\n", r"a.tsv:2: has an empty source; add the text"),
        (b"a\t \n", r"a.tsv:1: has an empty target"),
        (b"\n \n", r"a.tsv: has no pair, only blank lines"),
        (b"", r"a.tsv: is empty"),
        (b"a\tb\0\n" * 9, r"a.tsv: is a binary file"),
        ("é\tè\n".encode() * 99 + b"\xff\tx\n", r"a.tsv: is UTF-8 except for the byte 0xff"),
    ],
)
def test_lines_that_are_no_pairs(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        texts_of(opened(tmp_path / "a.tsv", content))
    assert "\n" not in caught.value.line() and caught.value.cure


def test_a_wrong_encoding_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a.tsv: is not ascii text: .*data.encoding"):
        texts_of(opened(tmp_path / "a.tsv", "é\tè\n".encode(), encoding="ascii"))
    with pytest.raises(ConfigError):
        opened(tmp_path / "a.tsv", b"a\tb\n", encoding="utf-9")


side = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9).filter(str.strip)


@settings(max_examples=30)
@given(st.lists(st.tuples(side, side), min_size=1, max_size=8), st.sampled_from(["char", "byte"]))
def test_pairs_come_out_of_the_token_store_as_they_went_in(tmp_path_factory, pairs, kind):
    folder = tmp_path_factory.mktemp("store")
    config = DataConfig(cache=str(folder))
    corpus = opened(folder / "pairs.tsv", "".join(f"{left}\t{right}\n" for left, right in pairs).encode())
    tokenizer = make_tokenizer(kind, corpus)
    store = prepare(corpus, tokenizer, config)
    parts = split_pairs(store, config, store)
    assert tokenizer.end_of_text is not None and parts.train.ids[-1] == tokenizer.end_of_text
    assert [tuple(map(tokenizer.decode, pair)) for pair in pair_texts(parts.train)] == pairs


def test_a_side_of_unknown_characters_alone_is_an_error(tmp_path):
    config = DataConfig(cache=str(tmp_path), on_unknown="skip")
    tokenizer = make_tokenizer("char", opened(tmp_path / "a.tsv", b"a\tb\n"))
    store = prepare(opened(tmp_path / "b.tsv", b"a\tb\nb\txyz\n"), tokenizer, config)
    with pytest.raises(InputError, match="pair 2 has a side without a token that the tokenizer knows"):
        pair_texts(split_pairs(store, config, store).train)


# Validation


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    content = "".join(f"{'s' * (1 + 7 * i % 5)}\t{'t' * (1 + 3 * i % 7)}\n" for i in range(41))
    corpus = opened(folder / "a.tsv", content.encode())
    return prepare(corpus, make_tokenizer("char", corpus), DataConfig(cache=str(folder)))


@settings(max_examples=60)
@given(st.floats(0.01, 0.99), st.integers(2, 400))
def test_the_cut_lies_between_pairs(store, val_fraction, val_tokens):
    whole = split_pairs(store, DataConfig(), store).train
    pairs = pair_texts(whole)
    sizes = [len(source) + len(target) + 2 for source, target in pairs]
    cut = next(n for n in range(int((1 - val_fraction) * 41), 42) if sum(sizes[n:]) <= val_tokens)
    config = DataConfig(val_fraction=val_fraction, val_tokens=val_tokens)
    if cut in (0, 41):
        with pytest.raises(InputError, match=r"41 pairs: the (training|validation) part has no pair"):
            split_pairs(store, config)
        return
    parts = split_pairs(store, config)
    assert pair_texts(parts.train) == pairs[:cut] and pair_texts(parts.val) == pairs[cut:]
    assert parts.val.document_starts[0] == 0 and len(parts.train) + len(parts.val) == len(store.ids)


def test_a_fraction_is_taken_of_the_pairs_exactly(tmp_path):
    corpus = opened(tmp_path / "a.tsv", b"one\tun\n" * 10)
    store = prepare(corpus, make_tokenizer("char", corpus), DataConfig(cache=str(tmp_path)))
    for val_fraction, count in ((0.1, 1), (0.5, 5), (0.9, 9)):  # 1 - 0.9 is less than 0.1 in binary
        parts = split_pairs(store, DataConfig(val_fraction=val_fraction))
        assert (len(pair_texts(parts.train)), len(pair_texts(parts.val))) == (10 - count, count)


def test_documents_that_are_no_pairs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    corpus = open_corpus([str(tmp_path / "a.jsonl")], DataConfig())
    store = prepare(corpus, make_tokenizer("char", corpus), DataConfig(cache=str(tmp_path)))
    with pytest.raises(InputError, match="3 documents are not pairs"):
        split_pairs(store, DataConfig())
    with pytest.raises(InputError, match="3 documents are not pairs"):
        pair_texts(split(store, DataConfig(), store).train)


# Batches


def test_batches_hold_pairs_padded_on_the_right():
    pairs = made_up(50)
    known = {(tuple(source), tuple(target)) for source, target in pairs}
    maker = batches(pairs)
    for step in range(40):
        batch = maker.batch(step)
        assert set(pairs_in(batch)) <= known
        assert (batch.sources != IGNORE_INDEX).any(0).all() and (batch.targets != IGNORE_INDEX).any(0).all()
    assert maker.tokens_per_epoch == sum(len(target) + 1 for _, target in pairs)
    assert maker.longest == (max(len(source) for source, _ in pairs), max(len(target) + 1 for _, target in pairs))


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (5, 6), (41, 6), (48, 6), (400, 6), (7, 1)])
def test_each_pair_is_seen_once_an_epoch(n, batch_size):
    pairs = made_up(n)
    maker = batches(pairs, batch_size=batch_size)
    seen = [source[0] for step in range(-(-3 * n // batch_size)) for source, _ in pairs_in(maker.batch(step))]
    if batch_size == 1 or n % batch_size == 0:
        for epoch in range(3):
            assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    whole = len(seen) // n
    assert all(whole <= count <= whole + 1 for count in Counter(seen).values())
    # If an epoch ends within a batch, that batch completes it.
    for epoch in (1, 2, 3):
        counts = Counter(seen[: -(-epoch * n // batch_size) * batch_size])
        assert set(counts) == set(range(n)) and min(counts.values()) >= epoch
        assert sum(counts.values()) - epoch * n < batch_size


def test_a_step_depends_on_the_seed_and_its_number_alone():
    pairs = made_up(50)
    forward, backward = batches(pairs), batches(pairs)
    ahead = [pairs_in(forward.batch(step)) for step in range(40)]
    torch.manual_seed(1)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    back = [pairs_in(backward.batch(step)) for step in reversed(range(40))]
    assert ahead == back[::-1]
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(state, np.random.get_state()[1])
    assert ahead != [pairs_in(batches(pairs, seed=8).batch(step)) for step in range(40)]
    assert ahead[:8] != ahead[8:16] != ahead[16:24]
    assert [source[0] for source, _ in ahead[0]] == [
        3,
        2,
        20,
        13,
        11,
        48,
    ]  # golden: later versions reproduce a run only if this does not change


@every_world
def test_ranks_share_out_the_same_batch(world):
    pairs = made_up(50)
    whole = batches(pairs)
    ranks = [batches(pairs, rank=rank, world=world) for rank in range(world)]
    for step in (0, 8, 17):
        for wanted, *parts in zip(whole.batch(step), *(rank.batch(step) for rank in ranks), strict=True):
            assert torch.equal(torch.cat(parts), wanted)


def test_little_is_padding_and_lengths_come_in_no_order():
    pairs = made_up(3000, most=40)
    maker = batches(pairs, batch_size=16)
    made = [maker.batch(step) for step in range(3 * 3000 // 16)]
    assert sum((batch.targets == IGNORE_INDEX).sum().item() for batch in made) < 0.05 * sum(
        batch.targets.numel() for batch in made
    )
    widths = np.array([batch.targets.shape[1] for batch in made])
    assert abs(np.corrcoef(widths[1:], widths[:-1])[0, 1]) < 0.2


def test_evaluation_reads_every_pair_once_with_little_padding():
    pairs = made_up(103)
    state = torch.get_rng_state()
    made = list(pair_windows(tokens_of(pairs), 10, END))
    assert [len(batch.sources) for batch in made] == [10] * 10 + [3]
    assert sorted(pairs_in(*made)) == sorted((tuple(source), tuple(target)) for source, target in pairs)
    widths = [batch.targets.shape[1] for batch in made]
    assert widths == sorted(widths) and torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(a.sources, b.sources) for a, b in zip(made, pair_windows(tokens_of(pairs), 10, END), strict=True)
    )


def test_lengths_are_checked_before_training():
    tokens = tokens_of([([1] * 5, [2] * 5), ([1] * 6, [2]), ([1], [2] * 6), ([1] * 7, [2] * 6), ([1], [2])])
    assert longest(tokens) == (7, 7)
    assert [too_long(tokens, size) for size in (1, 2, 5, 6, 7)] == [5, 4, 4, 2, 0]
    check_lengths(tokens, 7)
    with pytest.raises(
        GptloomError, match=r"2 of 5 pairs do not fit block_size=6; the longest needs 7; use model.block_size=7"
    ):
        check_lengths(tokens, 6)
