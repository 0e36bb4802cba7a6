"""`gptloom import`: models of other programs give the same logits here, and hostile files end in one error line."""

import io
import json
import math
import os
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from gptloom.bundle import Bundle
from gptloom.cli.main import main
from gptloom.data.tokenizers.external import TiktokenTokenizer
from gptloom.errors import InputError
from gptloom.interop.nanogpt import NANOGPT, rename, reverse
from gptloom.interop.pt_reader import Refused, read

ALPHABET = "\n !abcdefghijklmnopqrstuvwxyz"
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": len(ALPHABET)}


def state(*, bias=True, tied=True, seed=0, layers=2, width=16, vocab=29, block=12):
    """Random weights under nanoGPT's names, far from any initial values."""
    drawn = torch.Generator().manual_seed(seed)

    def matrix(*shape):
        return torch.randn(*shape, generator=drawn) * (0.5 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5)

    def linear(name, out, into):
        return {f"{name}.weight": matrix(out, into)} | ({f"{name}.bias": matrix(out)} if bias else {})

    def norm(name):
        return {f"{name}.weight": 1 + matrix(width)} | ({f"{name}.bias": matrix(width)} if bias else {})

    found = {
        "transformer.wte.weight": torch.randn(vocab, width, generator=drawn),
        "transformer.wpe.weight": matrix(block, width),
    }
    for n in range(layers):
        at = f"transformer.h.{n}"
        found |= (
            norm(f"{at}.ln_1")
            | linear(f"{at}.attn.c_attn", 3 * width, width)
            | linear(f"{at}.attn.c_proj", width, width)
        )
        found |= (
            norm(f"{at}.ln_2")
            | linear(f"{at}.mlp.c_fc", 4 * width, width)
            | linear(f"{at}.mlp.c_proj", width, 4 * width)
        )
    return (
        found
        | norm("transformer.ln_f")
        | {"lm_head.weight": found["transformer.wte.weight"] if tied else matrix(vocab, width)}
    )


def logits(weights, ids, heads, exact):
    """GPT-2 by the formulas of the papers, row by row.

    See Radford et al. (2019), Vaswani et al. (2017), and Hendrycks and Gimpel (2016).
    """

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weights[
            f"{name}.weight"
        ] + weights.get(f"{name}.bias", 0.0)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def gelu(x):
        if exact:
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: len(ids)]
    layer = 0
    while f"transformer.h.{layer}.ln_1.weight" in weights:
        at = f"transformer.h.{layer}"
        query, key, value = linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").chunk(3, dim=-1)
        width = query.shape[-1] // heads
        joined = []
        for head in range(heads):
            q, k, v = (part[:, head * width : (head + 1) * width] for part in (query, key, value))
            rows = [torch.softmax(q[t] @ k[: t + 1].T / math.sqrt(width), dim=-1) @ v[: t + 1] for t in range(len(ids))]
            joined.append(torch.stack(rows))
        x = x + linear(torch.cat(joined, dim=-1), f"{at}.attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
        layer += 1
    return norm(x, "transformer.ln_f") @ weights["lm_head.weight"].T


def checkpoint(path, weights, **arguments):
    """A checkpoint as nanoGPT's train.py saves it."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))])
    torch.save(
        {
            "model": weights,
            "optimizer": optimizer.state_dict(),
            "model_args": SHAPE | {"bias": True, "dropout": 0.1} | arguments,
            "iter_num": 7,
        },
        path,
    )
    return path


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(ALPHABET * 3, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def in_place(monkeypatch):
    """Read checkpoints in this process, for speed; the separate process and its limits have their own tests."""

    def read_here(path, folder):
        try:
            read(path, folder)
        except Refused as error:
            raise InputError(str(error)) from None
        except Exception as error:  # noqa: BLE001  # as the process does
            raise InputError(str(error).splitlines()[0]) from None
        return json.loads((folder / "about.json").read_text())["model_args"]

    monkeypatch.setattr("gptloom.interop.nanogpt._read_apart", read_here)


def bring_in(*words):
    return main(["import", *map(str, words)])


def same_logits(folder, weights, exact):
    model = Bundle.load(folder, device="cpu").model
    ids = torch.randint(len(ALPHABET), (12,), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids[None])[0], logits(weights, ids, 2, exact), rtol=1e-5, atol=1e-5)
    return model.config


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt_gives_the_same_logits(tmp_path, text, bias, request):
    if not bias:  # once through a separate process, as in use
        request.getfixturevalue("in_place")
    weights = state(bias=bias)
    path = checkpoint(tmp_path / "ckpt.pt", {f"_orig_mod.{name}": one for name, one in weights.items()}, bias=bias)
    assert bring_in(path, tmp_path / "out", "--text", text) == 0
    config = same_logits(tmp_path / "out", weights, exact=True)
    assert (config.head, config.bias, config.dropout) == ("tied", "all" if bias else "none", 0.1)


def test_a_state_dictionary_of_mingpt_gives_the_same_logits(tmp_path, text, capsys, in_place):
    weights = state(tied=False)
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 12, 12).tril() for n in range(2)}
    torch.save(weights | masks, tmp_path / "model.pt")
    assert bring_in(tmp_path / "model.pt", tmp_path / "out", "--text", text) == 2  # the number of heads is unknown
    assert "--n-head" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert bring_in(tmp_path / "model.pt", tmp_path / "out", "--text", text, "--n-head", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"]["mlp"] == "gelu-tanh"
    assert same_logits(tmp_path / "out", weights, exact=False).head == "linear"
    assert main(["sample", str(tmp_path / "out"), "--prompt", "ab", "--tokens", "5"]) == 0


def test_a_padded_vocabulary_is_kept_and_its_unused_ids_stand_for_nothing(tmp_path, in_place):
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256}
    (tmp_path / "tokenizer").mkdir()
    TiktokenTokenizer("small", r"\w+|\W", ranks, {"<|endoftext|>": 257}).save(tmp_path / "tokenizer")
    path = checkpoint(tmp_path / "ckpt.pt", state(vocab=320), vocab_size=320)
    assert bring_in(path, tmp_path / "out", "--tokenizer", tmp_path / "tokenizer" / "tokenizer.json") == 0
    bundle = Bundle.load(tmp_path / "out", device="cpu")
    assert bundle.tokenizer.vocab_size == 320 and bundle.model.config.vocab_size == 320
    assert bundle.tokenizer.encode("ab c").tolist() == [256, 32, 99]
    assert bundle.tokenizer.decode([256, 300, 99]) == "abc" and bundle.tokenizer.end_of_text == 257


def test_half_precision_becomes_float32(tmp_path, text, in_place):
    weights = {name: one.bfloat16() for name, one in state().items()}
    assert bring_in(checkpoint(tmp_path / "ckpt.pt", weights), tmp_path / "out", "--text", text) == 0
    model = Bundle.load(tmp_path / "out", device="cpu").model
    assert torch.equal(model.token_table.weight, weights["transformer.wte.weight"].float())


def test_the_table_of_names_can_be_read_both_ways():
    back = reverse(NANOGPT)
    assert len(back) == len(NANOGPT)
    names = list(state())
    assert rename(rename(names, NANOGPT).values(), back) == dict(
        zip(rename(names, NANOGPT).values(), names, strict=True)
    )


class Bomb:
    """A pickle that runs a command if it is loaded without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def without(weights, name):
    return {key: one for key, one in weights.items() if key != name}


def changed(name, tensor):
    return state() | {name: tensor}


def rewritten(path, *, compression=zipfile.ZIP_STORED, grow=None):
    """A .pt file with the same content in another packing, or with its largest part replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if grow:
        parts[max(parts, key=lambda name: len(parts[name]))] = grow
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def hostile(kind, path):
    """Write one bad file."""
    match kind:
        case "a bomb":
            torch.save({"model": state(), "model_args": Bomb(path.parent / "ran")}, path)
        case "a whole model object":
            torch.save(nn.Linear(3, 3), path)
        case "a truncated archive":
            checkpoint(path, state())
            path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
        case "a compressed bomb":
            checkpoint(path, state())
            rewritten(path, compression=zipfile.ZIP_DEFLATED, grow=bytes(200_000_000))
        case "an old pickle":
            torch.save(state(), path, _use_new_zipfile_serialization=False)
        case "no archive":
            path.write_bytes(b"not a zip at all" * 100)
        case "an empty file":
            path.write_bytes(b"")
        case "a lying archive":
            checkpoint(path, state())
            content = bytearray(path.read_bytes())
            content[content.rfind(b"PK\1\2") + 24 : content.rfind(b"PK\1\2") + 28] = struct.pack("<I", 2**31)
            path.write_bytes(content)
        case "a tensor of a trillion":
            torch.save(changed("transformer.wte.weight", torch.zeros(1).expand(10**6, 10**6)), path)
        case "a list":
            torch.save([1, 2, 3], path)
        case "no weights":
            torch.save({"model": {}}, path)
        case "a name that climbs":
            torch.save(state() | {"../../etc/passwd": torch.zeros(3)}, path)
        case "a missing weight":
            checkpoint(path, without(state(), "transformer.h.1.mlp.c_fc.weight"))
        case "a missing table":
            checkpoint(path, without(state(), "transformer.wpe.weight"))
        case "another shape":
            checkpoint(path, changed("transformer.h.0.attn.c_attn.weight", torch.zeros(16, 48)))
        case "not a number":
            checkpoint(path, changed("transformer.ln_f.weight", torch.full((16,), math.nan)))
        case "settings at odds":
            checkpoint(path, state(), n_embd=32)
        case "heads that do not divide":
            checkpoint(path, state(), n_head=3)
        case "heads without end":
            checkpoint(path, state(), n_head=10**30)
        case "complex numbers":
            checkpoint(path, changed("transformer.wpe.weight", torch.zeros(12, 16, dtype=torch.complex64)))
        case "another alphabet":
            checkpoint(path, state(vocab=40), vocab_size=40)
        case "layers without end":
            torch.save(state() | {"transformer.h.9999.ln_1.weight": torch.ones(16)}, path)


HOSTILE = {
    "a bomb": "holds more than tensors and plain values: it calls",
    "a whole model object": "holds more than tensors and plain values: it calls torch.nn",
    "a truncated archive": "or is truncated",
    "a compressed bomb": "is compressed",
    "an old pickle": "is not a .pt file",
    "no archive": "is not a .pt file",
    "an empty file": "is not a .pt file",
    "a lying archive": "",
    "a tensor of a trillion": "claims more numbers than it has",
    "a list": "holds a list",
    "no weights": "no weights",
    "a name that climbs": "../../etc/passwd",
    "a missing weight": "blocks.1.mlp.up.weight is missing",
    "a missing table": "has no transformer.wpe.weight",
    "another shape": "has shape (16, 48) instead of (48, 16)",
    "not a number": "final_norm.weight has 16 values that are NaN",
    "settings at odds": "n_embd=32, but its tensors say 16",
    "heads that do not divide": "n_head=3 does not divide n_embd=16",
    "heads without end": "n_head: expected a whole number",
    "complex numbers": "not a dense tensor of real numbers",
    "another alphabet": "29 different characters",
    "layers without end": "n_layer: expected a whole number",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_ends_in_one_line(kind, tmp_path, text, capsys, in_place):
    hostile(kind, tmp_path / "model.pt")
    heads = ["--n-head", 2] if kind in ("a name that climbs", "layers without end") else []
    assert bring_in(tmp_path / "model.pt", tmp_path / "out", "--text", text, *heads) == 2
    said = capsys.readouterr().err
    assert HOSTILE[kind] in said
    assert said.count("\n") == 1 and said.startswith("error: ") and len(said) < 800
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()


def test_the_process_that_reads_a_bomb_says_so_in_a_line(tmp_path, text, capsys):
    hostile("a bomb", tmp_path / "model.pt")
    assert bring_in(tmp_path / "model.pt", tmp_path / "out", "--text", text, "--n-head", 2) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and not (tmp_path / "ran").exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system tells no process how much memory it has")
def test_the_process_that_reads_has_a_bound_on_its_memory(tmp_path):
    (tmp_path / "small.pt").write_bytes(bytes(1000))
    code = f"""
from pathlib import Path
import torch
from gptloom.interop.pt_reader import limit
limit(Path({str(tmp_path / "small.pt")!r}))
torch.zeros(2 << 30, dtype=torch.uint8)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "memory" in done.stderr


def test_a_reader_that_never_ends_is_ended(tmp_path, text, capsys, monkeypatch):
    checkpoint(tmp_path / "model.pt", state())
    real = subprocess.run
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda words, **given: real([sys.executable, "-c", "import time; time.sleep(60)"], **given | {"timeout": 0.5}),
    )
    began = time.monotonic()
    assert bring_in(tmp_path / "model.pt", tmp_path / "out", "--text", text) == 3
    assert "could not be read in" in capsys.readouterr().err and time.monotonic() - began < 50


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere.pt", "OUT", "--text", "TEXT"], "nowhere.pt: cannot be read"),
        (["FOLDER", "OUT", "--text", "TEXT"], "is a folder"),
        (["GOOD", "OUT"], "--tokenizer tiktoken:gpt2"),
        (["GOOD", "OUT", "--text", "TEXT", "--tokenizer", "tiktoken:gpt2"], "exclude one another"),
        (["GOOD", "FOLDER", "--text", "TEXT"], "already exists"),
        (["GOOD", "OUT", "--tokenizer", "nothing.json"], "nothing.json"),
        (["GOOD", "OUT", "--text", "nowhere.txt"], "nowhere.txt"),
        (["GOOD", "OUT", "--text", "TEXT", "--n-head", "4"], "2 heads"),
        (["GOOD", "OUT", "--text", "TEXT", "--mlp", "relu"], "--mlp"),
        (["GOOD"], "required: OUT"),
    ],
)
def test_wrong_words_end_in_one_line(words, expected, tmp_path, text, capsys, in_place):
    places = {
        "OUT": tmp_path / "out",
        "TEXT": text,
        "FOLDER": tmp_path,
        "GOOD": checkpoint(tmp_path / "ckpt.pt", state()),
    }
    assert bring_in(*(places.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and expected in said and not (tmp_path / "out").exists()


def test_what_torch_saves_into_memory_is_what_lies_in_a_file(tmp_path):
    """The archive check accepts the files that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(state(), buffer)
    (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    (tmp_path / "out").mkdir()
    read(tmp_path / "model.pt", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"about.json", "tensors.safetensors"}
