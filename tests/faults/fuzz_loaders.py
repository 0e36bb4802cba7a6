"""A fuzzer of all file loaders: valid files with flipped bits, truncated, spliced or extended, loaded as users do."""

import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from faults.table import Row, Tally
from gptloom.bundle import Bundle
from gptloom.config.load import parse, read_toml, to_toml
from gptloom.config.model import ModelConfig
from gptloom.config.run import DataConfig, RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import load_tokenizer, make_tokenizer
from gptloom.data.tokenizers.external import TiktokenTokenizer
from gptloom.data.tokens import open_store, prepare
from gptloom.errors import GptloomError, GptloomWarning
from gptloom.interop.nanogpt import import_nanogpt
from gptloom.model.build import build_model
from gptloom.studies.compare import Outcome
from gptloom.studies.ladder.lessons import Plan, Rung
from gptloom.studies.trial import Pace, read_as, write_record

KEPT = Path(tempfile.gettempdir()) / "gptloom-fuzz"
SECONDS = 20.0
"""Seconds; longer than any of these small files takes on a busy machine."""

TEXT = "".join(f"{n}: the quick brown fox jumps over the lazy dog, and naïvely sleeps in the sun\n" for n in range(60))
ODD = [
    b"9" * 5000, b"-1", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"[" * 3000, b'{"a":' * 3000, b'"\\ud800"',
    b"\0", b"\xff\xfe", b"../../x", b"18446744073709551615", b"4294967296", b"\r\n", b'"',
    b"}", b",", b"  ", b"\x80" * 9, b"99999999", b"\n" * 1000,
]  # fmt: skip


class Target(NamedTuple):
    """A loader to test: its name, a folder of valid files, the files to damage, and a function that loads a folder."""

    name: str
    folder: Path
    files: list[str]
    load: Callable[[Path], object]


def read_corpus(path: Path) -> object:
    """Read a whole text."""
    return open_corpus([str(path)], DataConfig()).scan


def read_tokenizer(folder: Path) -> object:
    """Load a tokenizer and use it once."""
    tokenizer = load_tokenizer(folder)
    return tokenizer.decode(tokenizer.encode("the fox", "skip")), tokenizer.vocab_size


def targets(root: Path) -> list[Target]:
    """One valid folder for each kind of file."""
    (root / "in.txt").write_text(TEXT, encoding="utf-8")
    corpus = open_corpus([str(root / "in.txt")], DataConfig())
    found = []

    def add(name: str, files: list[str], load: Callable[[Path], object]) -> Path:
        folder = root / name
        folder.mkdir()
        found.append(Target(name, folder, files, load))
        return folder

    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8}
    for kind in ("char", "byte", "bpe:300", "sentencepiece:320"):
        tokenizer = make_tokenizer(kind, corpus)
        tokenizer.save(add(f"tokenizer {kind.partition(':')[0]}", sorted(tokenizer.files()), read_tokenizer))
    ranks = {bytes([value]): value for value in range(256)} | {b"th": 256, b"the": 257}
    tiktoken = TiktokenTokenizer("small", r"\w+|\W", ranks, {"<|endoftext|>": 258})
    tiktoken.save(add("tokenizer tiktoken", sorted(tiktoken.files()), read_tokenizer))
    characters = make_tokenizer("char", corpus)
    bundle = Bundle(build_model(ModelConfig(vocab_size=characters.vocab_size, **shape)), characters)
    bundle.save(
        add(
            "bundle",
            ["config.json", "model.safetensors", "tokenizer.json"],
            lambda folder: Bundle.read(folder, device="cpu"),
        )
    )
    bundle.save(
        add("bundle with sums", ["SHA256SUMS", "model.safetensors"], lambda folder: Bundle.load(folder, device="cpu"))
    )
    store = prepare(corpus, characters, DataConfig(cache=str(root / "cache")))
    shutil.copy(
        store.path,
        add("token file", ["tokens.safetensors"], lambda folder: open_store(folder / "tokens.safetensors"))
        / "tokens.safetensors",
    )
    toml = add(
        "settings",
        ["config.toml"],
        lambda folder: parse(RunConfig, read_toml(folder / "config.toml"), where="config.toml"),
    )
    (toml / "config.toml").write_text(to_toml(RunConfig()), encoding="utf-8")
    rung = Rung("bigram", 1, 10, 5, 100, 0.5, 0.6, 2.5, None, "a\nb")
    plan = Plan(["shakespeare"], {"steps": 3}, 100, "abc", {"bigram": Pace(0.1, 0.2)})
    for kind, record in ((Rung, rung), (Plan, plan), (Outcome, Outcome(2.5, None, 10, 5, 100, 0.5, 0.6))):
        write_record(
            add(f"record {kind.__name__}", ["it.json"], lambda folder, kind=kind: read_as(folder / "it.json", kind))
            / "it.json",
            asdict(record),
        )
    for suffix, text in {
        "txt": TEXT,
        "jsonl": "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()),
        "csv": "id,text\n" + "".join(f'{n},"{line}"\n' for n, line in enumerate(TEXT.splitlines())),
    }.items():
        folder = add(
            f"text {suffix}", [f"text.{suffix}"], lambda folder, suffix=suffix: read_corpus(folder / f"text.{suffix}")
        )
        (folder / f"text.{suffix}").write_text(text, encoding="utf-8")
    return found


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content after one to three random changes."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data) + 1)
        match draw.choice(
            ["flip", "flip", "flips", "cut", "splice", "odd", "odd", "number", "header", "repeat", "drop", "swell"]
        ):
            case "flip" | "flips" as kind:
                for _ in range(1 if kind == "flip" else 20):
                    if data:
                        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case "cut":
                del data[place:]
            case "splice":
                start = draw.randrange(len(data) + 1)
                data[place : place + draw.randrange(64)] = data[start : start + draw.randrange(64)]
            case "odd":
                data[place : place + draw.randrange(8)] = draw.choice(ODD)
            case "number":
                digits = [index for index, byte in enumerate(data[:20_000]) if 48 <= byte < 58]
                if digits:
                    index = draw.choice(digits)
                    data[index : index + 1] = draw.choice(ODD)
            case "header":
                data[:8] = draw.choice(
                    [0, 1, len(data), max(0, len(data) - 8), 2**31, 2**40, 2**63, 2**64 - 1, draw.randrange(5000)]
                ).to_bytes(8, "little")
            case "repeat":
                data[place:place] = data[place : place + draw.randrange(500)] * draw.randrange(1, 20)
            case "drop":
                del data[place : place + draw.randrange(200)]
            case "swell":
                data[place:place] = draw.randbytes(draw.choice([10, 1000, 200_000]))
    return bytes(data)


def attempt(target: Target, folder: Path) -> str:
    """Describe what is wrong with loading a damaged folder; "" if it loads, or ends in an error of gptloom."""
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GptloomWarning)
            target.load(folder)
    except GptloomError as error:
        if len(error.line()) > 7000 or "\n" in error.line():
            return f"{target.name}: an error of {len(error.line())} characters"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # a panic of Rust code is not an Exception
        return f"{target.name}: {type(error).__name__}: {str(error)[:100]}"
    seconds = time.monotonic() - began
    return f"{target.name}: {seconds:.0f} s" if seconds > SECONDS else ""


def foreign(root: Path) -> list[Target]:
    """A checkpoint of nanoGPT's format; each try is a process."""
    shape = {
        "transformer.wte.weight": (30, 8),
        "transformer.wpe.weight": (8, 8),
        "transformer.ln_f.weight": (8,),
        "lm_head.weight": (30, 8),
    }
    (root / "pt").mkdir()
    weights = {name: torch.ones(size) for name, size in shape.items()}
    torch.save(
        {"model": weights, "model_args": {"n_layer": 0, "n_head": 2, "n_embd": 8, "block_size": 8}},
        root / "pt" / "ckpt.pt",
    )
    return [Target("foreign .pt", root / "pt", ["ckpt.pt"], lambda folder: import_nanogpt(folder / "ckpt.pt"))]


def run(
    number: int,
    *,
    tries: int | None = None,
    seconds: float | None = None,
    make: Callable[[Path], list[Target]] = targets,
) -> tuple[Tally, dict[str, int]]:
    """Damage and load files for a number of tries or seconds, and store failures in `KEPT`.

    Returns:
        The tally, and the number of tried files of each kind.
    """
    tally, counts = Tally("fuzzed files" if make is targets else "fuzzed .pt files"), dict[str, int]()
    with tempfile.TemporaryDirectory() as name:
        every = make(Path(name))
        began, index = time.monotonic(), 0
        while (tries is not None and index < tries) or (seconds is not None and time.monotonic() - began < seconds):
            draw = random.Random(f"{number}/{index}")
            target = every[index % len(every)]
            folder = Path(name) / "try"
            shutil.copytree(target.folder, folder)
            file = folder / draw.choice(target.files)
            file.write_bytes(damaged(file.read_bytes(), draw))
            problem = attempt(target, folder)
            if problem:
                shutil.copytree(folder, KEPT / f"{number}-{index}", dirs_exist_ok=True)
            tally.add(
                f"{problem} (seed {number}, try {index}, kept in {KEPT / f'{number}-{index}'})" if problem else ""
            )
            counts[target.name] = counts.get(target.name, 0) + 1
            shutil.rmtree(folder)
            index += 1
    return tally, counts


def peak() -> int:
    """The peak memory of this process in bytes; 0 if the system does not report it."""
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def rows(quick: bool) -> Iterator[Row]:
    """Two minutes of damaged files and 50 of nanoGPT; the short version has 300 files."""
    torch.set_num_threads(1)
    run(1, tries=40)  # so that the libraries' first allocations do not count
    before = peak()
    tally, counts = run(2, tries=300) if quick else run(3, seconds=120.0)
    grown = (peak() - before) / 1e6
    if grown > 300:
        tally.add(f"memory grew by {grown:.0f} MB")
    yield tally.row(
        f"{len(counts)} kinds of files; each loads or ends in an error with a cause and a cure; "
        f"memory grew by {grown:.0f} MB"
    )
    if not quick:
        yield run(4, tries=50, make=foreign)[0].row("each read by a separate process")
