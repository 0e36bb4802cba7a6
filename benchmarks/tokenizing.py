"""Benchmark tokenization and preparation: MB/s of each tokenizer and stage, and peak memory by text size.

    python benchmarks/tokenizing.py [MB ...]

The sizes (default: 1 10 100; 1000 takes two minutes and 4 GB of disk) are those of generated texts. `stages` runs one
process per text: `find` (file and encoding), `scan` (counts and hash), `learn` (the tokenizer), `prepare` (encode,
write, sync, check), and `peak_mb`, the process's largest resident memory. `report` is the command `gptloom data`.
`rates` are of strings in memory. `bpe` compares our encoding of tiny Shakespeare, without cached words, with the
encode_batch of `tokenizers` on the same pieces. Figures are medians, with quartiles in brackets if there are several.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tokenizers

from gptloom.config.run import DataConfig
from gptloom.data.readers import PIECE, Piece
from gptloom.data.sources import fetch, open_corpus
from gptloom.data.tokenizers import make_tokenizer
from gptloom.data.tokenizers.bpe import HuggingFaceTokenizer
from gptloom.data.tokens import cache_folder, prepare

TOKENIZERS = ("char", "byte", "bpe:4096")
BENGALI = "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। 🙂\n"


def main() -> None:
    if sys.argv[1:2] == ["--stages"]:
        print(json.dumps(stages(*sys.argv[2:])))
        return
    if sys.argv[1:2] == ["--generate"]:
        generate(Path(sys.argv[2]), int(sys.argv[3]))
        return
    sizes = [int(word) for word in sys.argv[1:]] or [1, 10, 100]
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # first, and in other processes, for a process's peak includes its parent's memory at the start
        for size in sizes:
            path = Path(folder, f"{size}.txt")
            subprocess.run([sys.executable, __file__, "--generate", str(path), str(size)], check=True)
            for spec in TOKENIZERS:
                print(
                    json.dumps(
                        {"stages": spec, "mb": size, **in_a_process([__file__, "--stages", str(path), spec, folder])}
                    ),
                    flush=True,
                )
            print(
                json.dumps(
                    {
                        "report": "gptloom data",
                        "mb": size,
                        **in_a_process(["-m", "gptloom", "data", str(path), "--json"], whole=True),
                    }
                ),
                flush=True,
            )
            path.unlink()
    shakespeare = fetch("shakespeare", cache_folder(DataConfig()))[0].read_text()
    texts = {
        "ascii": shakespeare * 8,
        "crlf": shakespeare.replace("\n", "\r\n") * 8,
        "bengali and emoji": BENGALI * 100_000,
    }
    print(json.dumps({"rates": {name: rates(text) for name, text in texts.items()}}))
    print(json.dumps({"bpe": against_library(shakespeare)}))


def rates(text: str) -> dict[str, str]:
    """MB of UTF-8 per second."""
    pieces = [Piece(text[start : start + PIECE], start + PIECE >= len(text)) for start in range(0, len(text), PIECE)]
    megabytes, found = len(text.encode()) / 1e6, {}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        corpus = open_corpus([file.name], DataConfig())
        found["decode the file"] = rate(megabytes, lambda: consume(corpus.pieces()))
        for spec in ("char", "byte"):
            tokenizer = make_tokenizer(spec, corpus)
            ids = tokenizer.encode(
                text, "skip"
            )  # reading replaces carriage returns by line ends, so they are not in the alphabet
            found[f"{spec} encode"] = rate(megabytes, lambda t=tokenizer: t.encode(text, "skip"))
            found[f"{spec} encode_pieces"] = rate(
                megabytes, lambda t=tokenizer: consume(t.encode_pieces(pieces, "skip"))
            )
            found[f"{spec} decode"] = rate(megabytes, lambda t=tokenizer, i=ids: t.decode(i))
    return found


def against_library(text: str) -> dict[str, str]:
    """Encode the same pieces with our code and with the library's batch mode, in turn, both to NumPy ids."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        saved = (
            HuggingFaceTokenizer.train(open_corpus([file.name], DataConfig()), 4096).files()["tokenizer.json"].decode()
        )
    pieces = [
        Piece(text[start : start + PIECE // 16], start + PIECE // 16 >= len(text))
        for start in range(0, len(text), PIECE // 16)
    ]
    library, ours, theirs = tokenizers.Tokenizer.from_str(saved), [], []
    for _ in range(9):
        fresh = HuggingFaceTokenizer(saved)
        ours.append(seconds(lambda fresh=fresh: [piece.ids for piece in fresh.encode_pieces(pieces)]))
        theirs.append(
            seconds(
                lambda: [
                    np.array(one.ids, np.uint16)
                    for one in library.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
                ]
            )
        )
    megabytes = len(text.encode()) / 1e6
    return {
        "ours MB/s": summary([megabytes / one for one in ours]),
        "tokenizers MB/s": summary([megabytes / one for one in theirs]),
        "times as fast": summary([b / a for a, b in zip(ours, theirs, strict=True)]),
    }


def stages(text: str, spec: str, folder: str) -> dict[str, float]:
    """Seconds of each stage from a file to its tokens, as in `gptloom train`."""
    config = DataConfig(tokenizer=spec, cache=folder)
    marks = [time.perf_counter()]
    corpus = open_corpus([text], config)
    marks.append(time.perf_counter())
    megabytes = corpus.bytes / 1e6
    marks.append(time.perf_counter())
    tokenizer = make_tokenizer(spec, corpus)
    marks.append(time.perf_counter())
    store = prepare(corpus, tokenizer, config)
    marks.append(time.perf_counter())
    store.path.unlink()
    took = np.diff(marks).tolist()
    named = dict(zip(("find", "scan", "learn", "prepare"), (round(one, 3) for one in took), strict=True))
    return {
        "seconds": named,
        "ms_per_mb": round(1000 * sum(took) / megabytes, 2),
        "mb_per_s": round(megabytes / sum(took), 1),
    }


def in_a_process(words: list[str], *, whole: bool = False) -> dict[str, float]:
    """The output of a process or its time, and its peak memory (Unix)."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    found = {"seconds": round(time.perf_counter() - start, 2)} if whole else json.loads(printed)
    return found | {"peak_mb": round(usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3))}


def generate(path: Path, megabytes: int) -> None:
    """A text whose word frequencies follow Zipf's law over half a million words, as in a language."""
    chance = np.random.default_rng(1)
    syllables = np.array([a + b + c for a in "bcdfghjklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "st")])
    endings = chance.choice(["", "", "", "", ",", ".\n"], 500_000).tolist()
    words = ["".join(syllables[chance.integers(0, len(syllables), chance.integers(1, 5))]) + end for end in endings]
    weights = np.cumsum(1.0 / (np.arange(len(words)) + 2.7))
    written = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        while written < megabytes * 1_000_000:
            ranks = np.searchsorted(weights, chance.random(100_000) * weights[-1])
            written += file.write(" ".join([words[rank] for rank in ranks.tolist()])[: megabytes * 1_000_000 - written])


def consume(items: Iterator[object]) -> None:
    for _ in items:
        pass


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rate(megabytes: float, call: Callable[[], object]) -> str:
    return summary([megabytes / seconds(call) for _ in range(7)])


def summary(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"


if __name__ == "__main__":
    main()
