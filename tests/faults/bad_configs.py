"""Configurations with mistakes: each must end with exit code 2 and a few lines, before any file is read or written."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import tomli_w
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from faults.table import Row, Tally
from gptloom.config.base import Config, field_names
from gptloom.config.load import nest
from gptloom.config.run import RunConfig

SECONDS = 3.0
KNOWN = {key: field for key, field in field_names(RunConfig).items() if key not in ("model.vocab_size", "data.cache")}
GROUPS = [
    name
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
]

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
NO_NUMBERS = st.one_of(
    st.sampled_from(["fast", "1e400", "nan", "0x10", "½", "1_", "--", ""]),
    st.booleans(),
    st.lists(st.integers(-9, 9)),
    st.just({"a": 1}),
)
BELOW = st.one_of(
    st.integers(-(10**40), -1),
    st.floats(max_value=-1e-9, allow_nan=False),
    st.sampled_from([float("nan"), float("-inf")]),
)
BEYOND = st.one_of(st.integers(2**63, 10**60), st.just(float("inf")))
NO_TEXTS = st.one_of(st.integers(), st.booleans(), st.lists(st.integers(), max_size=3), st.just({"a": {"b": 1}}))

CONFLICTS = [
    {"model": {"n_head": 7, "n_embd": 64}},
    {"model": {"n_head": 6, "n_kv_head": 4, "n_embd": 36}},
    {"model": {"positions": "rotary", "n_embd": 12, "n_head": 4}},
    {"model": {"positions": "sinusoidal", "n_embd": 63, "n_head": 3}},
    {"model": {"head": "none"}},
    {"model": {"architecture": "encoder", "mixer": "mean"}},
    {"model": {"output_projection": False, "n_head": 4, "head_size": 3, "n_embd": 64}},
    {"train": {"steps": 3, "minutes": 1.0}},
    {"train": {"epochs": 3.0, "minutes": 1.0}},
    {"train": {"batch_size": 6, "micro_batch_size": 4}},
    {"train": {"batch_size": 6, "ranks": 4}},
    {"data": {"tokenizer": "letters"}},
    {"data": {"tokenizer": "bpe:many"}},
    {"device": "quantum"},
    {"recipe": "tony"},
]
BROKEN = [
    b"[model", b"n_layer = ", b"a = 1\na = 2", b"[model]\n[model]", b"\xff\xfe\x00", b"seed = " + b"9" * 5000,
    b"x = " + b"[" * 3000, b".".join([b"a"] * 4000) + b" = 1", b"= 1", b'a = "', b"a = 2020-13-40", b"\0",
    b"model.n_layer = 1\n[model]\nn_layer = 2", b"#" * 20_000, b"[[model]]", b"model = 1\ntrain = []\ndata = ''",
    b'"" = 1',
]  # fmt: skip


def wrong_value(kind: object, text: bool) -> st.SearchStrategy[object]:
    """Values that are invalid for a field of this type."""
    parts = (
        [part for part in get_args(kind) if part is not type(None)]
        if get_origin(kind) not in (None, Literal) and not hasattr(kind, "__metadata__")
        else []
    )
    kind = parts[0] if parts else kind
    kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if get_origin(kind) is Literal:
        return st.one_of(WORDS.filter(lambda word: word not in get_args(kind)), NO_TEXTS)
    if kind is bool:
        return st.one_of(st.sampled_from(["maybe", "", "11"]), st.integers(2), st.just([]))
    if kind in (int, float):
        return st.one_of(NO_NUMBERS, BELOW, BEYOND)
    return NO_TEXTS


@st.composite
def mistakes(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A settings file and flags with at least one mistake."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(BROKEN)), []
    values: dict[str, object] = {}
    flags: list[str] = []
    for kind in draw(
        st.lists(
            st.sampled_from(["unknown", "value", "value", "group", "conflict", "flag", "typo"]), min_size=1, max_size=4
        )
    ):
        key = draw(st.sampled_from(sorted(KNOWN)))
        if kind == "unknown":
            name = draw(WORDS).replace(".", "_") + draw(st.sampled_from(["", "_x", key.rpartition(".")[2] + "s"])) + "?"
            values |= {
                f"{draw(st.sampled_from(['', *(f'{group}.' for group in GROUPS)]))}{name}": draw(
                    st.one_of(st.integers(-9, 9), WORDS)
                )
            }
        elif kind == "value":
            values[key] = draw(wrong_value(KNOWN[key].annotation, True))
        elif kind == "group":
            values = {one: value for one, value in values.items() if not one.startswith("model")} | {
                "model": draw(st.one_of(st.integers(), WORDS, st.just([])))
            }
        elif kind == "conflict":
            conflict = draw(st.sampled_from(CONFLICTS))
            group, inner = next(iter(conflict.items()))
            if group not in values:
                values |= (
                    {f"{group}.{name}": value for name, value in inner.items()} if isinstance(inner, dict) else conflict
                )
        elif kind == "flag":
            word = draw(st.sampled_from(["fast", "-1e999", "[]", "nan", "1" * 5000]))
            flags += [
                f"--{draw(st.sampled_from(['train.learning-rate', 'model.n-embd', 'train.batch-size', 'seed']))}={word}"
            ]
        else:
            flag = f"--{key.replace('_', '-')}"
            place = draw(st.integers(3, len(flag) - 1))
            flags += [flag[:place] + "zz" + flag[place:], "1"]
    if "model" in values:
        values = {key: value for key, value in values.items() if not key.startswith("model.")}
    return tomli_w.dumps(nest(values)).encode("utf-8", "replace"), flags


def in_process(words: list[str], folder: Path) -> tuple[int, str, float]:
    """Run the command in a separate process; return the exit code, standard error and seconds."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gptloom", *words],
            cwd=folder,
            capture_output=True,
            timeout=10 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, "", time.monotonic() - began
    return (
        done.returncode,
        done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace"),
        time.monotonic() - began,
    )


def judge(
    config: bytes,
    flags: list[str],
    folder: Path,
    execute: Callable[[list[str], Path], tuple[int, str, float]],
    limit: float,
) -> str:
    """Describe what is wrong with the command's end; "" if it is right."""
    (folder / "text.txt").write_text("the quick brown fox\n" * 50, encoding="utf-8")
    (folder / "bad.toml").write_bytes(config)
    before = sorted(path.name for path in folder.iterdir())
    words = [
        "train",
        str(folder / "text.txt"),
        "--config",
        str(folder / "bad.toml"),
        "--run",
        str(folder / "run"),
        "--data.cache",
        str(folder / "cache"),
        *flags,
    ]
    code, said, seconds = execute(words, folder)
    if code != 2:
        return f"exit {code}"
    if "Traceback" in said or not 1 <= said.count("\n") <= 3 or len(said) > 10_000:
        return f"{said.count(chr(10))} lines"
    if seconds > limit:
        return f"more than {limit:.0f} s"
    if sorted(path.name for path in folder.iterdir()) != before:
        return "something was written"
    return ""


def run(
    tries: int,
    number: int,
    execute: Callable[[list[str], Path], tuple[int, str, float]] = in_process,
    limit: float = SECONDS,
) -> tuple[Tally, float]:
    """Try this many configurations, and print failures; return the tally and the longest time."""
    tally, slowest = Tally("bad configurations"), 0.0

    def timed(words: list[str], folder: Path) -> tuple[int, str, float]:
        nonlocal slowest
        found = execute(words, folder)
        slowest = max(slowest, found[2])
        return found

    @seed(number)
    @settings(
        max_examples=tries,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    @given(mistakes())
    def each(found: tuple[bytes, list[str]]) -> None:
        with tempfile.TemporaryDirectory() as name:
            problem = judge(*found, Path(name), timed, limit)
        tally.add(f"{problem}: {found}" if problem else "")

    each()
    return tally, slowest


def rows(quick: bool) -> Iterator[Row]:
    """500 configurations (5 in the short version), each as a command of at most 3 seconds."""
    tally, slowest = run(5 if quick else 500, 7)
    yield tally.row(f"exit 2 and one to three lines, each in {SECONDS:.0f} s; the slowest took {slowest:.1f} s")
