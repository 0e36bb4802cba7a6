"""The prompt that a word of the command line stands for."""

import sys

from gptloom.errors import InputError

LONGEST = 1 << 24
"""Bytes of standard input that are taken as a prompt. The model sees the end of it, a window at a time."""


def read_prompt(word: str) -> str:
    """The word itself; or, for `-`, what standard input holds.

    Bytes that are not UTF-8 become halves of surrogate pairs, as they do in the words of a command line: no tokenizer
    knows them, so that `--on-unknown` says what becomes of them.

    Raises:
        InputError: standard input is closed, or longer than `LONGEST`.
    """
    if word != "-":
        return word
    if sys.stdin is None:
        raise InputError("is closed", where="standard input", cure="give the prompt with --prompt TEXT")
    content = sys.stdin.buffer.read(LONGEST + 1)
    if len(content) > LONGEST:
        what = f"is longer than the {LONGEST:,} bytes that a prompt may have"
        raise InputError(what, where="standard input", cure="give the end of it, such as with tail -c")
    return content.decode("utf-8", errors="surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
