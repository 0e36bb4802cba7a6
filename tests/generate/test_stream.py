"""Streamed text: the pieces joined equal the decoded whole, and no part of a stop string is shown."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptloom.generate.stream import TextStream


def from_bytes(ids: list[int]) -> str:
    """A byte-level tokenizer: one id for each byte of UTF-8."""
    return bytes(ids).decode("utf-8", errors="replace")


def letters(pieces: list[str]):
    """A tokenizer whose ids stand for these pieces, and the ids in order."""
    return (lambda ids: "".join(pieces[i] for i in ids)), range(len(pieces))


def run(decode, ids, before=(), stops=()) -> tuple[list[str], str, TextStream]:
    """The pieces shown on each push until the text stops, then what `finish` adds."""
    stream, shown = TextStream(decode, before, stops), []
    for one in ids:
        shown.append(stream.push(one))
        if stream.stopped:
            break
    return shown, stream.finish(), stream


def whole(pieces, stops=()) -> str:
    decode, ids = letters(pieces)
    shown, rest, _ = run(decode, ids, stops=stops)
    return "".join(shown) + rest


# --- whole characters -----------------------------------------------------------------------------


@given(st.text(), st.text())
@example("", "é")
@example("prompt €", "🙂🙃")
@example("🙂🙂🙂", "👩‍👩‍👧")
def test_the_pieces_joined_are_the_text(before, text):
    shown, rest, _ = run(from_bytes, text.encode(), before=list(before.encode()))
    assert "".join(shown) + rest == text
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text


def test_a_character_is_shown_when_its_last_byte_has_come():
    shown, rest, _ = run(from_bytes, "a€b🙂".encode())
    assert shown == ["a", "", "", "€", "b", "", "", "", "🙂"]
    assert rest == ""


@given(st.binary(max_size=40))
@example(b"\xff" * 7 + "€".encode())
@example("🙂".encode()[:3])
def test_bytes_that_are_no_text_do_not_disturb_what_is(data):
    """The joined pieces equal the decoded whole, for any broken UTF-8."""
    shown, rest, _ = run(from_bytes, data)
    assert "".join(shown) + rest == from_bytes(list(data))


def test_a_cut_off_character_is_shown_at_the_end():
    shown, rest, _ = run(from_bytes, b"ok" + "🙂".encode()[:2])
    assert ("".join(shown), rest) == ("ok", "\ufffd")


def test_a_replacement_character_that_is_meant_is_kept():
    pieces = ["a", "\ufffd", "\ufffd", "b", "\ufffd"]
    assert whole(pieces) == "a\ufffd\ufffdb\ufffd"


def test_a_token_may_decode_differently_after_another():
    """SentencePiece drops the space before the first word: 'Hello' + ' world'."""

    def decode(ids):
        return "".join(" " + ["Hello", "world", "again"][i] for i in ids)[1:]

    shown, rest, _ = run(decode, [1, 2], before=[0])
    assert shown == [" world", " again"]
    assert run(decode, [0, 1])[0] == ["Hello", " world"]
    assert rest == ""


def test_only_a_few_tokens_are_decoded_at_a_time():
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return from_bytes(ids)

    run(decode, [120] * 500, before=[120] * 500)
    assert longest <= 32


# --- stop strings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one ", "two ", "END", " three"], ["END"], "one two "),
        (["a", "b", "E", "N", "D", "c"], ["END"], "ab"),
        (["abE", "NDc"], ["END"], "ab"),
        (["E", "N", "x", "EN"], ["END"], "ENxEN"),  # held back, then released; the last at the end
        (["a", "a", "a", "b"], ["aab"], "a"),  # a prefix inside a prefix
        (["xabab", "ac"], ["ababac"], "x"),
        (["xyz"], ["z", "y"], "x"),  # the earliest in the text wins, not the first in the list
        (["STOP"], ["STOP"], ""),
        (["a\n", "\nb"], ["\n\n"], "a"),
        (["ab"], [""], "ab"),  # an empty stop string stops nothing
        (["a", "ß", "b"], ["ß"], "a"),
    ],
)
def test_a_text_ends_before_its_stop_string(pieces, stops, expected):
    assert whole(pieces, stops) == expected


def test_nothing_of_a_stop_string_is_shown_early_and_nothing_is_held_longer_than_needed():
    decode, ids = letters(["a", "E", "N", "b", "E", "N", "D"])
    shown, rest, stream = run(decode, ids, stops=["END"])
    assert shown == ["a", "", "", "ENb", "", "", ""]
    assert stream.stopped
    assert rest == ""


def test_nothing_comes_after_a_stop():
    decode, ids = letters(["a", "END", "b", "c"])
    stream = TextStream(decode, [], ["END"])
    assert "".join(stream.push(one) for one in ids) + stream.finish() == "a"
    assert stream.finish() == ""


def test_a_stop_string_of_several_bytes_a_character():
    shown, rest, stream = run(from_bytes, "naïve🛑yes".encode(), stops=["🛑"])
    assert "".join(shown) + rest == "naïve"
    assert stream.stopped


def first_completed(text: str, stops: list[str]) -> str:
    """The text up to a stop string, letter by letter; if two end at the same place, the longer is removed."""
    for end in range(len(text) + 1):
        cut = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if cut:
            return text[: min(cut)]
    return text


@given(st.lists(st.text("ab", max_size=4), max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@example(["abb"], ["abb", "b"])
def test_how_the_text_is_cut_into_tokens_makes_no_difference(pieces, stops):
    assert whole(pieces, stops) == whole(list("".join(pieces)), stops) == first_completed("".join(pieces), stops)


@given(st.lists(st.text("abc", max_size=3), max_size=8), st.text("ab", min_size=1, max_size=3))
def test_one_stop_string_cuts_the_text_where_it_first_occurs(pieces, stop):
    text = "".join(pieces)
    assert whole(pieces, [stop]) == text.split(stop)[0]
    decode, ids = letters(pieces)
    assert run(decode, ids, stops=[stop])[2].stopped == (stop in text)
