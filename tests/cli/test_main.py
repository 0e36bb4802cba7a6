"""The command line as a user types it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from gptloom.cli.main import COMMANDS, main
from gptloom.config.base import field_names
from gptloom.config.load import read_toml, recipe_names, resolve
from gptloom.config.run import RunConfig, SampleConfig
from training_helpers import checkpoint_bytes, losses, write_text

SMALL = [
    "--model.n-layer",
    "1",
    "--model.n-head",
    "2",
    "--model.n-embd",
    "16",
    "--model.block-size",
    "16",
    "--train.batch-size",
    "4",
    "--device",
    "cpu",
]


def gptloom(*words, stdin=None, cwd=None, **environment):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "gptloom", *map(str, words)]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=os.environ | environment,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def run(folder):
    """A trained run, made as a user makes one."""
    words = [write_text(folder), "--run", folder / "run", "--steps", 30, "--data.cache", folder / "cache", *SMALL]
    done = gptloom("train", *words, "--json")
    assert done.returncode == 0, done.stderr
    return folder / "run", json.loads(done.stdout), done.stderr


def failure(capsys, *words):
    """The error line and exit code of a command that must fail; it must be one line and no traceback."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("error: ")
    return code, printed.err


def test_train_gives_one_json_object_and_talks_on_standard_error(run):
    folder, result, said = run
    keys = {
        "run",
        "checkpoint",
        "parameters",
        "steps",
        "tokens",
        "seconds",
        "train_loss",
        "val_loss",
        "val_bpb",
        "best_step",
    }
    assert keys <= result.keys() and result["steps"] == 30 and result["run"] == str(folder)
    for word in (
        "parameters",
        "tokens to train on",
        "30 steps",
        "weights, gradients and optimizer",
        "ms a step",
        "validation loss",
    ):
        assert word in said


def test_sample_writes_the_prompt_and_goes_on(run):
    done = gptloom("sample", run[0], "--prompt", "the quick", "--tokens", 30, "--device", "cpu")
    assert (
        done.returncode == 0 and done.stdout.startswith("the quick") and len(done.stdout) == len("the quick") + 30 + 1
    )
    assert "the context moves" in done.stderr  # 9 + 30 tokens are more than this model's context of 16


def test_sample_json_lists_tokens_with_probabilities(run, capsys):
    assert main(["sample", str(run[0]), "--prompt", "the", "--tokens", "4", "--samples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["samples"]) == 2 and found["tokens_per_second"] > 0
    for sample in found["samples"]:
        assert "".join(token["text"] for token in sample["tokens"]) == sample["text"]
        assert all(token["logprob"] <= 0 and len(token["alternatives"]) == 3 for token in sample["tokens"])


def test_show_probabilities_prints_a_line_a_token(run, capsys):
    assert main(["sample", str(run[0]), "--prompt", "the", "--tokens", "5", "--show-probabilities", "2"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 6 and "rank" in lines[0]


def test_beams_and_a_prompt_from_standard_input(run):
    done = gptloom("sample", run[0], "--prompt", "-", "--beams", 3, "--samples", 2, "--tokens", 5, stdin="the lazy")
    assert done.returncode == 0 and done.stdout.count("the lazy") == 2 and "\n---\n" in done.stdout


def test_beams_stop_and_show_their_probabilities(run, capsys):
    words = ["sample", str(run[0]), "--prompt", "the ", "--beams", "3", "--tokens", "12", "--json", "--stop", "z"]
    assert main(words) == 0
    tokens = json.loads(capsys.readouterr().out)["samples"][0]["tokens"]
    assert all(token["logprob"] < 0 and len(token["alternatives"]) == 3 for token in tokens)
    assert main([*words[:-3], "--show-probabilities", "2"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 13


def test_eval_of_the_run_is_the_loss_that_training_reported(run, capsys):
    assert main(["eval", str(run[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(run[1]["val_loss"], abs=1e-6) and found["bpb"] == pytest.approx(
        run[1]["val_bpb"], abs=1e-6
    )
    assert found["tokens"] == found["bytes"]


def test_eval_of_another_text(run, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("the dog jumps over the fox\n" * 3)
    assert main(["eval", str(run[0]), "--text", str(tmp_path / "other.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 27 * 3 - 1


def test_eval_of_several_documents_by_a_model_of_one(run, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("the dog jumps over the fox\n")
    assert main(["eval", str(run[0]), "--text", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == found["bytes"] == 2 * 27 - 1


def test_data_reports_and_doctor_tells(run, capsys):
    assert main(["data", str(run[0].parent / "text.txt")]) == 0
    assert "characters per token" in capsys.readouterr().out
    assert main(["data", str(run[0].parent / "text.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 1
    assert main(["doctor", "--json"]) == 0
    assert {"used", "versions", "threads", "recipes"} <= json.loads(capsys.readouterr().out).keys()
    assert main(["doctor"]) == 0


def test_a_run_can_be_repeated_from_its_own_config(run, tmp_path):
    again = gptloom(
        "train", run[0].parent / "text.txt", "--run", tmp_path / "again", "--config", run[0] / "config.toml", "--json"
    )
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "again") == losses(run[0]) and checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(
        run[0]
    )


def test_compiled_equals_eager_to_rounding(run, tmp_path):
    """In a process of its own, for the shape checks of the tests and the compiler do not go together.

    Needs a C++ compiler.
    """
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("no C++ compiler on this machine; that a run then goes on without is tested in test_training")
    words = [
        run[0].parent / "text.txt",
        "--steps",
        30,
        "--data.cache",
        tmp_path / "cache",
        "--train.log-every",
        1,
        *SMALL,
    ]
    for mode in ("off", "on"):
        done = gptloom("train", *words, "--run", tmp_path / mode, "--train.compile", mode)
        assert (
            done.returncode == 0 and ("compiling" in done.stderr) == (mode == "on") and "failed" not in done.stderr
        ), done.stderr
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), abs=5e-4)
    assert load_file(latest_weights(tmp_path / "on")).keys() == load_file(latest_weights(tmp_path / "off")).keys()


def latest_weights(run):
    return run / "checkpoints" / (run / "latest").read_text().strip() / "model.safetensors"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_with_its_state_saved_and_resume_goes_on(run, tmp_path, number, code):
    words = [
        run[0].parent / "text.txt",
        "--run",
        tmp_path / "run",
        "--steps",
        20_000,
        "--data.cache",
        tmp_path / "cache",
        *SMALL,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "gptloom", "train", *map(str, words), "--train.eval-every", "20000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and '"step": 200,' in metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said and f"next: gptloom resume {tmp_path / 'run'}" in printed
    step = int((tmp_path / "run" / "latest").read_text().strip().removeprefix("step-"))
    assert 200 <= step < 20_000
    done = gptloom("resume", tmp_path / "run", "--steps", step + 5, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == step + 5


def write(name, content):
    def make(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return make


def thirty_files(folder):
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(
            f"story {number}: the fox met the dog and they slept under tree number {number}\n" * 3
        )
    return folder


GOOD = {
    "emoji and Bengali": write("text.txt", "আমার সোনার বাংলা 🌾 আমি তোমায় ভালোবাসি 💚\n" * 60),
    "cp1252": write("text.txt", ("“Café” – déjà vu, naïve façade… he said it’s fine\n" * 60).encode("cp1252")),
    "a folder of 30 files": thirty_files,
    "300 bytes": write(
        "text.txt",
        "All the world's a stage, and all the men and women merely players.\n" * 4 + "They have their exits and",
    ),
    "JSON Lines": write(
        "text.jsonl",
        "".join(json.dumps({"text": f"document {n} says hello to document {n + 1}"}) + "\n" for n in range(60)),
    ),
    "CSV": write("text.csv", "id,text\n" + "".join(f'{n},"row {n}, with a comma and ""quotes"""\n' for n in range(60))),
    "CRLF": write("text.txt", "the fox\r\nand the dog\r\n" * 100),
}


@pytest.mark.parametrize("kind", GOOD)
def test_real_texts_train_and_write(kind, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    path = GOOD[kind](tmp_path / "in")
    words = [str(path), "--run", str(tmp_path / "run"), "--steps", "5", "--data.cache", str(tmp_path / "cache"), *SMALL]
    assert main(["train", *words]) == 0
    assert main(["sample", str(tmp_path / "run"), "--tokens", "20"]) == 0
    said = capsys.readouterr().err
    assert ("cp1252" in said) == (kind == "cp1252") and ("LF" in said) == (kind == "CRLF")


def test_windows_that_respect_documents_train_and_resume(tmp_path):
    path = GOOD["JSON Lines"](tmp_path)
    words = [
        "--steps",
        6,
        "--data.sampling",
        "documents",
        "--data.split",
        "document",
        "--run",
        tmp_path / "run",
        *SMALL,
    ]
    assert main(["train", str(path), *map(str, words)]) == 0
    assert main(["resume", str(tmp_path / "run"), "--steps", "8"]) == 0


def test_a_text_from_standard_input_trains_and_resumes(tmp_path):
    text = write_text(tmp_path).read_text()
    done = gptloom("train", "-", "--steps", 5, "--run", tmp_path / "run", *SMALL, stdin=text)
    assert done.returncode == 0, done.stderr
    done = gptloom("resume", tmp_path / "run", "--steps", 8, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["steps"] == 8


BAD = {
    "empty": (write("text.txt", ""), "empty"),
    "binary": (write("text.bin", bytes(range(256)) * 40), "binary"),
    "no such file": (lambda folder: folder / "nowhere.txt", "no such file"),
    "one character": (write("text.txt", "a"), ""),
    "bad JSON Lines": (write("text.jsonl", '{"text": "good"}\n{"text": \n'), "text.jsonl:2"),
    "no such field": (write("text.jsonl", '{"body": "good"}\n'), "body"),
    "no such column": (write("text.csv", "id,body\n1,good\n"), "body"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_texts_end_in_one_line(kind, tmp_path, capsys):
    make, word = BAD[kind]
    code, line = failure(
        capsys, "train", make(tmp_path), "--run", tmp_path / "run", "--data.cache", tmp_path / "cache", *SMALL
    )
    assert code == 2 and word in line.lower()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "did you mean train?"),
        (["train"], "required: TEXT"),
        (["train", "x", "--train.learning-rte", "1"], "did you mean --train.learning-rate?"),
        (["train", "x", "--learning-rte", "1"], "did you mean --learning-rate?"),
        (["train", "x", "--train.learning-rate", "fast"], "train.learning_rate"),
        (["train", "x", "--model.n-head", "5"], "n_head=5 does not divide n_embd=128; nearby: 4, 8 (--model.n-head)"),
        (["train", "x", "--model.mlp", "gleu", "--train.steps", "-1"], "model.mlp"),
        (["train", "x", "--steps", "5", "--minutes", "1"], "exclude one another"),
        (["train", "x", "--recipe", "tony"], "did you mean tiny?"),
        (["train", "x", "--device", "quantum"], "is not a device"),
        (["train", "x", "--config", "nowhere.toml"], "nowhere.toml"),
        (["train", "x", "--tokenizer", "bep:100"], "bpe"),
        (["sample", "nowhere"], "no such folder"),
        (["sample", "nowhere", "--temperature", "-1", "--top-p", "2"], "temperature"),
        (["sample", "nowhere", "--show-probabilities", "0"], "at least 1"),
        (["sample", "nowhere", "--beams", "2", "--samples", "3"], "2 beams cannot return 3 texts"),
        (["sample", "nowhere", "--nonsense"], "see `gptloom sample --help`"),
        (["resume", "nowhere"], "nowhere"),
        (["eval", "nowhere"], "no such folder"),
        (["data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words_end_in_one_line_with_a_cure(words, expected, capsys, tmp_path):
    if "x" in words:
        words[words.index("x")] = str(write_text(tmp_path))
    code, line = failure(capsys, *words)
    assert code == 2 and expected in line


def test_all_mistakes_are_named_at_once(capsys, tmp_path):
    (tmp_path / "bad.toml").write_text('seed = -1\n[model]\nn_layr = 3\nmlp = "gleu"\n[train]\nsteps = "many"\n')
    code, line = failure(capsys, "train", write_text(tmp_path), "--config", tmp_path / "bad.toml")
    assert code == 2
    for word in ("seed", "n_layr", "did you mean model.n_layer", "model.mlp", "train.steps"):
        assert word in line


def test_errors_are_json_when_json_is_asked_for(capsys):
    assert main(["sample", "nowhere", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["what"] == "there is no such folder" and error["where"] == "nowhere" and error["cure"]


def test_a_device_that_is_not_there_is_the_machines_fault(capsys, tmp_path):
    code, line = failure(capsys, "train", write_text(tmp_path), "--device", "cuda:99")
    assert code == 3 and "cuda:99" in line


def test_an_unwritable_run_folder_is_the_machines_fault(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, line = failure(
        capsys,
        "train",
        write_text(tmp_path),
        "--run",
        tmp_path / "file" / "run",
        "--data.cache",
        tmp_path / "cache",
        *SMALL,
    )
    assert code == 3 and "cannot be written" in line


def test_help_never_imports_torch():
    commands = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    code = f"""
import contextlib, sys
from gptloom.cli.main import main
for words in {commands!r}:
    with contextlib.suppress(SystemExit):
        main(words)
print([name for name in ("torch", "numpy", "rich", "matplotlib", "tokenizers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_first_step_loads_nothing_that_it_does_not_need(tmp_path):
    """Each would take a tenth of a second or more of the time to the first step.

    What `import torch` itself loads is not ours.
    """
    heavy = {
        "matplotlib",
        "rich",
        "tensorboard",
        "tokenizers",
        "sentencepiece",
        "tiktoken",
        "charset_normalizer",
        "sympy",
        "networkx",
    }
    heavy |= {f"torch.{name}" for name in ("_dynamo", "_inductor", "distributed", "distributions", "onnx")}
    words = [
        "train",
        str(write_text(tmp_path)),
        "--run",
        str(tmp_path / "run"),
        "--data.cache",
        str(tmp_path / "cache"),
        *SMALL,
    ]
    program = f"""
import sys, torch
before = set(sys.modules)

class Stderr:
    def __getattr__(self, name):
        return getattr(sys.__stderr__, name)
    def write(self, text):
        if text.startswith("step 1 of"):
            print(sorted({heavy!r} & (set(sys.modules) - before)))
        return len(text)

sys.stderr = Stderr()
from gptloom.cli.main import main
main({words!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[]"


def test_every_command_explains_its_numbers(capsys):
    words = {
        "train": "nats per token",
        "resume": "nats per token",
        "sample": "in this order",
        "eval": "bits per byte",
        "ladder": "bought is",
        "compare": "paired t-test",
        "verify": "roundings of float32",
        "bench": "share is the limit's time",
        "plan": "6 N + 12 L T C a token",
        "inspect": "logit lens",
        "recipes": "--config my.toml",
        "import": "does not contain the tokenizer",
        "data": "overlap is",
        "completion": ">> ~/.bashrc",
        "doctor": "will be used",
    }
    assert words.keys() == COMMANDS.keys()
    for name, word in words.items():
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0 and word in capsys.readouterr().out


def help_of(capsys, *words):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["tiny", "baby", "mingpt", "translate"])
@pytest.mark.parametrize("command", [["train"], ["compare"], ["bench"], ["plan"]])
def test_help_shows_the_values_that_a_run_would_use(command, name, capsys):
    config, shown = resolve(name), help_of(capsys, *command, "--recipe", name)
    for words, value in (
        ("Sequences per optimizer step", config.train.batch_size),
        ("Number of blocks", config.model.n_layer),
        ("Base of the rotary frequencies (theta)", config.model.rope_theta),
    ):
        assert f"{words} [{value}]" in shown
    assert f"the values of the recipe {name}]" in shown


def test_help_without_a_recipe_shows_the_default_recipe(capsys):
    assert "Sequences per optimizer step [8]" in help_of(capsys, "train")
    assert "Sequences per optimizer step [64]" in help_of(capsys, "train", "numbers:en-fr")
    neighbours = help_of(capsys, "ladder", "neighbours")
    assert "added to the token embeddings (1: none) [1]" in neighbours and "such as torch:SGD [adamw]" in neighbours
    assert "Sequences per optimizer step [" not in help_of(capsys, "resume")  # a run has its own


def test_recipes_lists_them_and_prints_a_settings_file(capsys, tmp_path):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == recipe_names() and "nanoGPT's" in listed[0]
    for name in recipe_names():
        assert main(["recipes", name]) == 0
        (tmp_path / "my.toml").write_text(capsys.readouterr().out, encoding="utf-8")
        settings = read_toml(tmp_path / "my.toml")
        assert resolve(settings.pop("recipe"), settings) == resolve(name)
    assert main(["recipes", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["optimizer"] == "muon"
    code, line = failure(capsys, "recipes", "tony")
    assert code == 2 and "did you mean tiny?" in line


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_flags_and_recipes(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    wanted = {"re": {"resume", "recipes"}, "train --train.lea": {"--train.learning-rate"}, "sample --bea": {"--beams"},
              "train --recipe mi": {"mingpt"}, "recipes ti": {"tiny"}, "train --tok": {"--tokenizer"}}  # fmt: skip
    for line, words in wanted.items():
        typed = ["gptloom", *line.split()]
        ask = f'COMP_WORDS=({" ".join(typed)}); COMP_CWORD={len(typed) - 1}; _gptloom; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == words
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out


def test_a_settings_own_name_is_a_flag(run, tmp_path, capsys):
    small = [word.replace("--model.", "--").replace("--train.", "--") for word in SMALL]
    words = ["train", run[0].parent / "text.txt", "--run", tmp_path / "run", "--data.cache", tmp_path / "cache"]
    words += [*small, "--steps", 3, "--lr=2e-3", "--no-qk-norm", "--warmup", 1, "--log-every", "1", "--json"]
    assert main([str(word) for word in words]) == 0
    config = read_toml(tmp_path / "run" / "config.toml")
    assert config["train"]["learning_rate"] == 2e-3 and config["train"]["warmup_steps"] == 1
    assert config["model"]["n_embd"] == 16 and not config["model"]["qk_norm"]
    assert main(["resume", str(tmp_path / "run"), "--steps", "4", "--eval-every", "2"]) == 0
    assert main(["plan", "--heads", "2", "--width", "64", "--batch-size", "7"]) == 0


def test_a_value_that_begins_with_a_dash_reaches_its_flag(run, capsys, tmp_path):
    text = run[0].parent / "text.txt"
    assert (
        "learning_rate: expected a number, above 0, not '-1e-3'" in failure(capsys, "train", text, "--lr", "-1e-3")[1]
    )
    assert "not '-5'" in failure(capsys, "sample", run[0], "--tokens", "-5")[1]
    assert "./-dash.txt" in failure(capsys, "train", "-dash.txt")[1]
    assert "--prompt=--text" in failure(capsys, "sample", run[0], "--prompt", "--tokens")[1]
    assert main(["eval", str(run[0]), "--text", "-dash.txt"]) == 2
    assert "-dash.txt: there is no such file" in capsys.readouterr().err
    assert main(["sample", str(run[0]), "--prompt", "-he", "--tokens", "3"]) == 2  # the text has no dash
    assert "'-'" in capsys.readouterr().err


def test_only_the_command_line_knows_argparse():
    source = Path(__file__).parents[2] / "src" / "gptloom"
    users = {
        path.relative_to(source).parts[0] for path in source.rglob("*.py") if "argparse" in path.read_text("utf-8")
    }
    assert users == {"cli"}


def test_the_flags_are_the_approved_ones():
    """A new knob must show in review: this file changes with it. Regenerate with GPTLOOM_APPROVE=1."""
    flags = [f"train --{key.replace('_', '-')}" for key in field_names(RunConfig)] + [
        f"sample --{key.replace('_', '-')}" for key in field_names(SampleConfig)
    ]
    approved = Path(__file__).parents[1] / "approved_flags.txt"
    if os.environ.get("GPTLOOM_APPROVE"):
        approved.write_text("\n".join(flags) + "\n", encoding="utf-8")
    assert approved.read_text(encoding="utf-8").split("\n")[:-1] == flags


def test_a_reader_that_leaves_early_is_no_error(run):
    command = f"{sys.executable} -m gptloom data {run[0].parent / 'text.txt'} | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.stdout.startswith("text")


SHORT = ["--steps", "12", "--train.sample-tokens", "0", *SMALL]


@pytest.mark.parametrize("ends", ["2>&1 | true", "2>&- >&-", "2>/dev/full"])
def test_training_continues_when_nobody_reads_its_output(run, tmp_path, ends):
    def shell(command, *words):
        line = shlex.join([sys.executable, "-m", "gptloom", command, *map(str, words)])
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {line} {ends}"], stdout=subprocess.DEVNULL, check=False)
        return done.returncode

    text, cache = run[0].parent / "text.txt", ["--data.cache", str(tmp_path / "cache")]
    assert shell("train", text, "--run", tmp_path / "run", *cache, *SHORT) == 0
    assert (tmp_path / "run" / "latest").read_text() == "step-000012\n"
    assert shell("resume", tmp_path / "run", "--steps", 15) == 0
    assert (tmp_path / "run" / "latest").read_text() == "step-000015\n"
    arms = [text, "model.dropout=0,0.1", "--seeds", 1, "--run", tmp_path / "compare", *cache, *SHORT]
    assert shell("compare", *arms) == 0 and (tmp_path / "compare" / "result.json").exists()
    assert shell("train", tmp_path / "nothing.txt") == 2


def test_training_from_python_continues_when_nobody_reads_its_output(run, tmp_path):
    settings = {"steps": 12, "run": str(tmp_path / "run"), "model": {"n_layer": 1, "n_head": 2, "n_embd": 16}}
    program = f"import gptloom; gptloom.train({str(run[0].parent / 'text.txt')!r}, **{settings!r})"
    line = shlex.join([sys.executable, "-c", program])
    subprocess.run(["bash", "-c", f"{line} 2>&1 | true"], check=True)
    assert (tmp_path / "run" / "latest").read_text() == "step-000012\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_result_that_cannot_be_written_is_an_error():
    """Also where it is too short to leave Python's buffer before the end."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gptloom", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=buffered,
            text=True,
            check=False,
        )
    assert done.returncode == 3 and done.stderr == "error: No space left on device; check the disk and the path\n"
