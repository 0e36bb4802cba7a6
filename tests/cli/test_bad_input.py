"""Invalid files and arguments end in one error line with a cause and a cure."""

import codecs
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from axes import every_architecture
from gptloom import load
from gptloom.checkpoint.format import write_sums
from gptloom.cli.main import COMMANDS, main
from gptloom.config.model import ModelConfig
from gptloom.errors import InputError, MachineError
from gptloom.files import json_object, read_json
from gptloom.model.build import build_model, check_memory, meta_model
from training_helpers import small_run, write_text

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a byte tokenizer, so that it can read any prompt."""
    folder = tmp_path_factory.mktemp("trained")
    small_run(write_text(folder), folder / "run", tokenizer="byte")
    return folder / "run"


@pytest.fixture
def bundle(trained, tmp_path):
    """A separate bundle to be damaged; it has no checksums, like one that was made by hand."""
    name = (trained / "latest").read_text().strip()
    shutil.copytree(trained / "checkpoints" / name, tmp_path / "bundle")
    (tmp_path / "bundle" / "SHA256SUMS").unlink()
    return tmp_path / "bundle"


def fails(capsys, *words, code=2):
    """The error line of a command that must fail."""
    assert main([str(word) for word in words]) == code
    printed = capsys.readouterr()
    assert (
        printed.err.count("\n") <= 3
        and "error: " in printed.err
        and "Traceback" not in printed.err
        and len(printed.err) < 8000
    )
    assert printed.err.splitlines()[-1].isprintable()
    return printed.err


def header(content, body=b""):
    """A safetensors file with any header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensors(path, change):
    """Rewrite a safetensors file with other tensors."""
    found = load_file(path)
    change(found)
    save_file(found, path)


# --- bundles --------------------------------------------------------------------------------------

CONFIG = {
    "empty": "",
    "truncated": '{"format": "gptloom", "mod',
    "a list": "[]",
    "nested deeply": DEEP,
    "not UTF-8": b"\xff\xfe\x00{",
    "a number of 5,000 digits": '{"format": "gptloom", "model": {"n_layer": ' + "9" * 5000 + "}}",
    "NaN": '{"format": "gptloom", "model": {"dropout": NaN}}',
    "a key twice": '{"format": "gptloom", "format": "gptloom", "model": {}}',
    "of another program": '{"architectures": ["GPT2LMHeadModel"]}',
    "oversized": '{"format": "' + "x" * 2_000_000 + '"}',
    "half a surrogate pair": '{"format": "gptloom", "model": {"mixer": "\\ud800"}}',
    "another shape": '{"format": "gptloom", "model": {"n_embd": 1048576, "n_layer": 1000}}',
}
WEIGHTS = {
    "empty": b"",
    "truncated in the length": b"\x10\0\0",
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "a header of 2**64 bytes": b"\xff" * 8 + b"{}",
    "no JSON": header(b"not JSON at all"),
    "nested deeply": header(DEEP.encode()),
    "no tensors": header({}),
    "shapes without end": header(
        {"token_table.weight": {"dtype": "F32", "shape": [10**6, 10**6, 10**6], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a name twice": header(
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, '
        b'"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}',
        bytes(4),
    ),
    "a name that climbs": header(
        {"../../../etc/passwd": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a shape that is no list": header(
        {"token_table.weight": {"dtype": "F32", "shape": "256", "data_offsets": [0, 4]}}, b"\0" * 4
    ),
}
TENSORS = {
    "one is missing": (lambda found: found.pop("token_table.weight"), "token_table.weight is missing"),
    "one too many": (lambda found: found.update(extra=np.zeros(3, np.float32)), "extra is not expected"),
    "another shape": (
        lambda found: found.update({"token_table.weight": np.zeros((3, 16), np.float32)}),
        "has shape (3, 16) instead of (256, 16)",
    ),
    "another type": (
        lambda found: found.update({"token_table.weight": np.zeros((256, 16), np.int32)}),
        "is of type I32 instead of F32",
    ),
    "NaN": (
        lambda found: found["token_table.weight"].__setitem__((3, 4), np.nan),
        "token_table.weight has 1 values that are NaN or infinite",
    ),
    "infinity": (
        lambda found: found["token_table.weight"].__setitem__(slice(2), np.inf),
        "token_table.weight has 32 values",
    ),
}
TOKENIZER = {
    "empty": "",
    "truncated": '{"kind": "by',
    "nested deeply": DEEP,
    "of an unknown kind": '{"kind": "telepathy"}',
    "a name that climbs": '{"kind": "../../x"}',
    "without an alphabet": '{"kind": "char", "end_of_text": false}',
    "half a surrogate pair": '{"kind": "char", "alphabet": "\\ud800", "end_of_text": false}',
    "ids far apart": '{"version": "1.0", "added_tokens": [], '
    '"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}',
    "no tokens": '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "a model that is gone": '{"kind": "sentencepiece", "model_sha256": "00"}',
    "ranks that are gone": '{"kind": "tiktoken", "ranks_sha256": "00", "special_tokens": {}, '
    '"name": "x", "pattern": "x"}',
    "of another model": '{"kind": "byte", "end_of_text": true}',
}
ELSEWHERE = (
    "of another model",
    "another shape",
    "a model that is gone",
    "ranks that are gone",
)  # named in the other file
FILES = [
    (name, kind, content)
    for name, kinds in (("config.json", CONFIG), ("model.safetensors", WEIGHTS), ("tokenizer.json", TOKENIZER))
    for kind, content in kinds.items()
]


@pytest.mark.parametrize(("name", "kind", "content"), FILES, ids=[f"{name}: {kind}" for name, kind, _ in FILES])
def test_a_damaged_bundle_is_named(name, kind, content, bundle, capsys):
    (bundle / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = fails(capsys, "sample", bundle)
    assert name in said or kind in ELSEWHERE


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_are_not_the_model_s_are_named(kind, bundle, capsys):
    change, expected = TENSORS[kind]
    tensors(bundle / "model.safetensors", change)
    assert expected in fails(capsys, "eval", bundle, "--text", bundle / "config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["gone", "a folder", "a pipe", "a device", "a loop"])
def test_what_is_no_file_is_not_opened(name, kind, bundle, capsys):
    """A pipe without a writer would hang, and a device has no end."""
    path = bundle / name
    path.unlink()
    match kind:
        case "a folder":
            path.mkdir()
        case "a pipe" if hasattr(os, "mkfifo"):
            os.mkfifo(path)
        case "a device" if Path("/dev/zero").exists():
            path.symlink_to("/dev/zero")
        case "a loop" if os.name != "nt":
            path.symlink_to(path)
    assert kind.removeprefix("a ") in fails(capsys, "sample", bundle) or kind in ("gone", "a loop")


def test_an_absurd_shape_is_refused_before_anything_is_allocated(bundle, trained, tmp_path, capsys):
    text = write_text(tmp_path)
    for flags in (
        ["--model.n-embd", "1048576"],
        ["--model.n-layer", "1024", "--model.n-embd", "65536"],
        ["--train.batch-size", "2000000000"],
    ):
        assert "GB" in fails(
            capsys, "train", text, "--run", tmp_path / "run", "--device", "cpu", "--model.n-head", "1", *flags, code=3
        )
    assert "at most" in fails(capsys, "train", text, "--run", tmp_path / "run", "--model.n-embd", "1000000000")
    assert not (tmp_path / "run").exists()
    saved = json.loads((bundle / "config.json").read_text())
    saved["model"]["n_layer"] = 1024
    (bundle / "config.json").write_text(json.dumps(saved))
    assert "too few for n_layer=1024" in fails(capsys, "sample", bundle)


@every_architecture
@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
def test_an_outline_has_the_model_s_names_and_shapes_and_the_estimate_its_size(architecture, positions):
    config = ModelConfig(
        architecture=architecture, positions=positions, n_layer=5, n_embd=16, n_head=2, block_size=8, head="tied"
    )
    model = build_model(config)
    assert {name: (one.shape, one.dtype) for name, one in meta_model(config).named_parameters()} == {
        name: (one.shape, one.dtype) for name, one in model.named_parameters()
    }
    with pytest.raises(MachineError, match=f"^cpu: {model.parameter_count():,} parameters"):
        check_memory(config, torch.device("cpu"), copies=10**12)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latest", b""),
        ("latest", b"\xff\xfe"),
        ("latest", b"../../../etc"),
        ("latest", b"step-999999\n" * 100_000),
        ("best", DEEP.encode()),
        ("run.json", DEEP.encode()),
        ("run.json", b'{"texts": 5}'),
        ("config.toml", b"x = " + b"[" * 10_000),
        ("config.toml", b"seed = " + b"9" * 5000),
        ("config.toml", b".".join([b"a"] * 100_000) + b" = 1"),
        ("config.toml", b"\xff"),
        (
            "metrics.jsonl",
            b'{"step": 1}\n{"step": 2, "event": "train", "loss": 3.5}\n{"step": 3, "event": "train", "loss": "x"}\n'
            * 10_000,
        ),
        ("metrics.jsonl", b"\xff" * 1000 + DEEP.encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_damaged_run_goes_on_with_a_warning_or_ends_in_a_line(name, content, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    code = main(["resume", str(tmp_path / "run"), "--steps", "14", "--train.eval-every", "1000"])
    said = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in said
    assert code == 0 or said.splitlines()[-1].startswith("error: ")


# --- texts ----------------------------------------------------------------------------------------

TEXTS = {
    "empty.txt": b"",
    "binary.txt": bytes(range(256)) * 100,
    "truncated.jsonl": b'{"text": "a"}\n{"text": "b',
    "deep.jsonl": DEEP.encode(),
    "huge-number.jsonl": b'{"text": ' + b"9" * 5000 + b"}",
    "list.jsonl": b"[1, 2]\n",
    "many-keys.jsonl": json.dumps({f"key{n}": n for n in range(50_000)}).encode(),
    "number.jsonl": b'{"text": 5}\n',
    "no-column.csv": b"a,b\n1,2\n",
    "many-columns.csv": ",".join(f"column{n}" for n in range(50_000)).encode() + b"\n",
    "short-row.csv": b"id,text\n1,good\n2\n",
    "open-quote.csv": b'id,text\n1,"' + b"x" * 100_000,
}


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "open-quote.csv"])
def test_a_text_that_cannot_be_read_is_named(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(TEXTS[name])
    assert name in fails(
        capsys, "train", tmp_path / name, "--run", tmp_path / "run", "--data.cache", tmp_path / "cache", "--steps", "1"
    )
    assert not (tmp_path / "run").exists()


def test_a_quote_that_never_ends_is_one_long_text(tmp_path):
    """Python's csv continues to the end of the file; nothing hangs, and nothing is lost."""
    (tmp_path / "open-quote.csv").write_bytes(TEXTS["open-quote.csv"])
    assert main(["data", str(tmp_path / "open-quote.csv")]) == 0


@pytest.mark.parametrize(
    "word",
    [
        "x" * 300,
        "x" * 100_000,
        "a/" * 3000,
        "**x",
        "[",
        "\udcff.txt",
        "no\0where",
        "/dev/zero",
        "numbers:",
        "tab\there\x1b[31m",
    ],
)
def test_a_word_that_is_no_text_is_named(word, tmp_path, capsys):
    fails(capsys, "train", word, "--run", tmp_path / "run", "--data.cache", tmp_path / "cache")


def test_a_loop_of_links_ends(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert "no file here" in fails(capsys, "data", tmp_path / "a")
    fails(capsys, "data", tmp_path / "self")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        DEEP.encode(),
        b'{"own_seeds": 1}',
        b'{"own_seeds": false, "seed": 1, "arms": []}',
        b"\xff",
        b'{"seed": NaN}',
    ],
)
def test_a_damaged_record_of_a_study_is_named(content, tmp_path, capsys):
    for name, words in (
        ("comparison.json", ["compare", "lr=1e-3,2e-3", "--seeds", "1", "--steps", "2"]),
        ("ladder.json", ["ladder", "--steps", "10"]),
    ):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_bytes(content)
        assert name in fails(capsys, *words, write_text(tmp_path), "--run", folder)


# --- prompts and sampling -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--temperature", "-1"], "temperature: expected a number, at least 0"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", "0"], "top_k: expected a whole number, at least 1"),
        (["--top-p", "1.5"], "top_p: expected a number, above 0 and at most 1"),
        (["--min-p", "-0.1"], "min_p"),
        (["--repetition-penalty", "0.5"], "repetition_penalty"),
        (["--tokens", "1000000000000"], "tokens: expected a whole number, at least 1 and at most 2,147,483,647"),
        (["--tokens", "0"], "tokens"),
        (["--samples", "1000000"], "samples: expected a whole number, at least 1 and at most 10,000"),
        (["--beams", "99999999"], "beams"),
        (["--length-penalty", "1e300"], "length_penalty"),
        (["--seed", "-1"], "seed"),
        (["--temperature", "x", "--top-k", "0", "--top-p", "9", "--tokenz", "5"], "did you mean --tokens?"),
        (["--tokens"], "expected one argument"),
    ],
)
def test_sampling_out_of_range_is_refused(flags, expected, trained, capsys):
    assert expected in fails(capsys, "sample", trained, *flags)


@pytest.mark.parametrize(
    "flags",
    [["--temperature", "1e-320"], ["--temperature", "1e308"], ["--top-k", "2000000000"],
     ["--repetition-penalty", "1000"], ["--min-p", "1"], ["--top-p", "1e-300"],
     ["--length-penalty", "10", "--beams", "3"], ["--beams", "300"]],
)  # fmt: skip
def test_sampling_at_the_edge_of_its_range_writes(flags, trained, capsys):
    assert main(["sample", str(trained), "--prompt", "the", "--tokens", "5", *flags]) == 0
    assert capsys.readouterr().out.startswith("the")


@pytest.fixture
def sample_from(trained, capsys, monkeypatch):
    """Sample with bytes on standard input; return the exit code and the output."""

    def go(content, *flags):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        code = main(["sample", str(trained), "--prompt", "-", "--tokens", "5", *flags])
        return code, *capsys.readouterr()

    return go


def test_a_prompt_of_a_million_characters_is_read_and_the_end_of_it_continued(sample_from):
    code, printed, _ = sample_from(b"the fox\0" * 125_000)
    assert code == 0 and printed.startswith("the fox\0") and len(printed) > 1_000_000


def test_a_binary_prompt_is_refused_unless_its_bytes_are_to_be_left_out(sample_from):
    binary = b"\x7fELF\xff\xfe" + bytes(range(256))
    code, printed, said = sample_from(binary)
    assert code == 2 and "lone surrogate" in said and said.count("\n") == 1 and not printed
    assert sample_from(binary, "--on-unknown", "skip")[0] == sample_from(binary, "--on-unknown", "replace")[0] == 0


def test_as_a_command(trained):
    """Once as a process, because only there are bytes converted to arguments."""
    command = [sys.executable, "-m", "gptloom", "sample", str(trained), "--prompt", "-", "--tokens", "5"]
    done = subprocess.run(command, input=b"\xff\xfe\0", capture_output=True, check=False)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"lone surrogate" in done.stderr


class Endless:
    """Standard input without an end; it must not be read completely."""

    def __init__(self):
        self.buffer = self

    def read(self, most=-1):
        assert most >= 0
        return b"a" * most


def test_standard_input_without_an_end_is_refused(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Endless())
    assert "longer than" in fails(capsys, "sample", trained, "--prompt", "-")
    monkeypatch.setattr("sys.stdin", None)
    assert "is closed" in fails(capsys, "sample", trained, "--prompt", "-")


@pytest.mark.parametrize("prompt", ["", "\0", "a\0b", "\udcff", "é" * 1000, "\x1b[31m"])
def test_odd_prompts(prompt, trained, capsys):
    """A byte of the command line that is not UTF-8 becomes half a surrogate pair."""
    if prompt == "\udcff":
        assert "lone surrogate" in fails(capsys, "sample", trained, "--prompt", prompt)
    else:
        assert main(["sample", str(trained), "--prompt", prompt, "--tokens", "3"]) == 0


def test_words_that_no_flag_takes_name_the_nearest(trained, capsys):
    said = fails(capsys, "train", "x", "--model.n-lyer", "3", "--train.batchsize", "4")
    assert "did you mean --model.n-layer?" in said and "did you mean --train.batch-size?" in said
    fails(capsys, "inspect", trained, "--prompt", "the fox", "--layer", "99", "--show", "attention")
    fails(capsys, "inspect", trained, "--prompt", "the fox", "--top", "9" * 5000)


# --- shared readers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "NaN",
        '{"a": 1, "a": 2}',
        '{"a": Infinity}',
        DEEP,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": {"b": 1, "b": 1}}',
    ],
)
def test_json_is_read_strictly(text):
    with pytest.raises(ValueError, match=r"."):
        json_object(text)


def test_a_file_beyond_its_limit_is_not_read(tmp_path):
    (tmp_path / "big.json").write_text('{"a": "' + "x" * 5000 + '"}')
    assert read_json(tmp_path / "big.json", limit=6000)["a"].startswith("x")
    with pytest.raises(InputError, match=r"has 5,009 bytes, and such a file has at most 1,000"):
        read_json(tmp_path / "big.json", limit=1000)


def test_sums_of_a_hostile_bundle_help_it_nothing(bundle, capsys):
    """The author of a file also writes its checksums. They detect accidents only, so the content is checked, too."""
    (bundle / "config.json").write_text(DEEP)
    write_sums(bundle)
    assert "config.json" in fails(capsys, "sample", bundle)


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 99 bytes",
        "CUDA out of memory. Tried ...",
    ],
)
def test_memory_that_is_used_up_is_the_machine_s_fault(said, capsys, monkeypatch):
    def full(words):
        raise RuntimeError(said)

    monkeypatch.setitem(COMMANDS, "sample", full)
    assert "the memory is used up" in fails(capsys, "sample", "x", code=3)


# --- permissions ----------------------------------------------------------------------------------


@pytest.fixture
def own(trained):
    """A copy of the run in the hands of a user whom the system can refuse."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(trained, folder / "run")
    write_text(folder)
    about = json.loads((folder / "run" / "run.json").read_text())
    about |= {"texts": [str(folder / "text.txt")], "tokens": str(folder / "cache" / "gone")}
    (folder / "run" / "run.json").write_text(json.dumps(about))
    root = os.geteuid() == 0
    if root:
        codecs.lookup("utf-32-le")  # that user may not read Python's own files
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)
    shutil.rmtree(folder)


DENIED = {
    "run.json": (0, ["resume", "run", "--steps", "20"]),
    "config.toml": (0, ["resume", "run", "--steps", "20"]),
    "latest": (0, ["resume", "run", "--steps", "20"]),
    "tokenizer.json": (0, ["sample", "run/checkpoints/step-000012"]),
    "state.json": (0, ["eval", "run"]),
    "optimizer.safetensors": (0, ["resume", "run", "--steps", "20"]),
    "model.safetensors": (0, ["sample", "run"]),
    "checkpoints": (0, ["sample", "run"]),
    "text.txt": (0, ["resume", "run", "--steps", "20", "--data.cache", "cache"]),
    "metrics.jsonl": (0, ["resume", "run", "--steps", "20", "--data.cache", "cache"]),
    "run": (0o500, ["resume", "run", "--steps", "20"]),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("name", DENIED)
def test_a_missing_permission_is_told_as_that_with_its_cure(name, own, capsys, monkeypatch):
    mode, words = DENIED[name]
    monkeypatch.chdir(own)
    (own / "run" / ".lock").unlink()
    for path in own.rglob(name):
        path.chmod(mode)
    assert main(words) in (2, 3)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Permission denied" in said and "; change its permissions (chmod, chown), or work as its owner" in said
    assert "new run" not in said and "free some space" not in said and "damaged" not in said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_folder_or_a_cache_without_permission_is_named(own, capsys, monkeypatch):
    monkeypatch.chdir(own)
    flags = ["--device", "cpu", "--steps", "2", "--train.sample-tokens", "0", "--model.block-size", "16"]
    (own / "texts" / "inner").mkdir(parents=True)
    (own / "texts" / "one.txt").write_text("some words\n" * 20)
    (own / "texts" / "inner").chmod(0)
    assert "texts/inner: cannot be read: Permission denied" in fails(capsys, "data", "texts")
    (own / "locked").mkdir(mode=0o500)
    cache = fails(capsys, "train", "text.txt", "--run", "new", "--data.cache", "locked", *flags, code=3)
    assert "name another folder (--data.cache)" in cache and "space" not in cache
    run = fails(capsys, "train", "text.txt", "--run", "locked/new", "--data.cache", "cache", *flags, code=3)
    assert "Permission denied" in run and "chmod" in run


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        small_run(write_text(tmp_path), tmp_path / "run", tokenizer="bpe:260", train={"steps": 2})
        (tmp_path / "bundle").mkdir()
        load(tmp_path / "run").save(tmp_path / "bundle")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".toml", ".jsonl", ".png", ".txt"}
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in files}
    assert modes == dict.fromkeys(modes, oct(0o666 & ~umask))
