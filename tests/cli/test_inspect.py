"""`gptloom inspect` as a user types it."""

import json
import sys

import pytest
import torch

import gptloom
from gptloom.bundle import Bundle
from gptloom.cli.main import main
from gptloom.data.tokenizers.char import CharTokenizer
from gptloom.interpret import trace as probe
from model_helpers import CONFIGS, build
from plot_helpers import is_png
from training_helpers import small_run, write_text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    small_run(write_text(folder), folder / "run", train={"steps": 20, "learning_rate": 1e-2, "sample_tokens": 0})
    return folder / "run"


def inspect(capsys, *words):
    code = main(["inspect", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_inspect_writes_every_view_and_one_json_object(run, capsys, tmp_path):
    prompt = "the lazy\ndog"
    code, out, err = inspect(capsys, run, "--prompt", prompt, "--layer", 1, "--head", 0, "--json", "--device", "cpu")
    assert code == 0 and err == ""
    found = json.loads(out)
    folder = run / "inspect"
    names = {
        "attention.png",
        "head-1-0.png",
        "lens.png",
        "tokens.html",
        "embedding.png",
        "statistics.png",
        "distance.png",
        "inspect.json",
    }
    assert {path.name for path in folder.iterdir()} == names and set(found["files"].values()) == {
        str(folder / name) for name in names
    }
    assert all(is_png(path) for path in folder.glob("*.png"))
    assert json.loads((folder / "inspect.json").read_text(encoding="utf-8")) == found
    bundle = gptloom.load(run, device="cpu")
    ids = torch.tensor([bundle.prompt_ids(prompt)])
    torch.testing.assert_close(
        torch.tensor(found["attention"]), torch.cat(probe.look(bundle.model, ids).attention), atol=6e-5, rtol=0
    )
    assert "".join(token["text"] for token in found["tokens"]) == prompt and found["tokens"][0]["loss"] is None
    assert found["tokens"][3].keys() == {"id", "text", "loss", "logprob", "rank", "alternatives"}
    assert [layer["after"] for layer in found["lens"]] == ["embedding", "after layer 0", "after layer 1"]
    likeliest = found["lens"][-1]["positions"][3]["alternatives"]
    assert [one["id"] for one in likeliest] == [one["id"] for one in found["tokens"][4]["alternatives"]]
    assert {"stream", "branches", "hidden", "attention_entropy", "parameters"} <= found["statistics"].keys() and found[
        "missing"
    ] == {}


def test_the_mean_loss_of_a_long_text_is_that_of_eval(run, capsys, tmp_path):
    text = write_text(tmp_path, repeats=3)
    code, out, err = inspect(capsys, run, "--text", text, "--show", "tokens", "--out", tmp_path / "out", "--json")
    assert code == 0 and "windows" in err
    found = json.loads(out)
    assert main(["eval", str(run), "--text", str(text), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    losses = [token["loss"] for token in found["tokens"][1:]]
    assert len(losses) == score["tokens"] > 100 and None not in losses
    assert found["loss"] == pytest.approx(score["loss"], abs=1e-6) and found["bpb"] == pytest.approx(
        score["bpb"], abs=1e-6
    )
    assert sum(losses) / len(losses) == pytest.approx(
        gptloom.load(run).score(text.read_text(encoding="utf-8")).loss, abs=1e-5
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tokens.html", "inspect.json"}


def test_maps_of_a_long_prompt_show_its_last_window(run, capsys, tmp_path):
    code, out, err = inspect(
        capsys, run, "--prompt", "the quick brown fox jumps", "--show", "lens", "--out", tmp_path, "--json"
    )
    assert code == 0 and "the last 16 tokens" in err
    bundle = gptloom.load(run)
    best = bundle.model(torch.tensor([bundle.prompt_ids("the quick brown fox jumps")[-16:]]))[0].argmax(-1).tolist()
    assert [guess["alternatives"][0]["id"] for guess in json.loads(out)["lens"][-1]["positions"]] == best


def test_piped_output_is_plain_and_a_terminal_s_is_coloured_unless_no_color(run, capsys, tmp_path, monkeypatch):
    words = (run, "--prompt", "the dog", "--show", "tokens", "--out", tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    code, out, _ = inspect(capsys, *words)
    assert (
        code == 0
        and "\x1b" not in out
        and "most likely" in out
        and str(tmp_path / "tokens.html") in out
        and "nats per token" in out
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[48;5;" in inspect(capsys, *words)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert inspect(capsys, *words)[1] == out


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        ({"n_layer": 0, "positions": "none", "head": "none"}, {"attention", "lens", "distance"}),
        ({"mixer": "none", "n_layer": 1}, {"attention", "distance"}),
        ({"mixer": "mean", "n_layer": 1}, set()),
    ],
    ids=["bigram", "no-exchange", "mean"],
)
def test_models_without_a_view_say_so_and_draw_nothing_empty(model, missing, tmp_path, capsys, monkeypatch):
    config = CONFIGS["lecture"].model_copy(update={"vocab_size": 9, **model})
    (tmp_path / "bundle").mkdir()
    Bundle(build(config), CharTokenizer(" adeghot\n", ends=False)).save(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    code, out, err = inspect(capsys, "bundle", "--prompt", "the dog", "--json", "--show", "attention, lens, distance")
    assert code == 0
    found = json.loads(out)
    assert found["missing"].keys() == missing and all(f"no {view} view: " in err for view in missing)
    assert ("averages" in err) == (model.get("mixer") == "mean")
    drawn = {path.name.split(".")[0].split("-")[0] for path in (tmp_path / "inspect").iterdir()}
    assert drawn == ({"attention", "lens", "distance"} - missing) | {"inspect"} | (
        {"head"} if "attention" not in missing else set()
    )
    if "attention" in missing:
        code, _, err = inspect(capsys, "bundle", "--prompt", "the dog", "--layer", 0)
        assert code == 2 and "this model has no attention" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "the", "--layer", "2"], "--layer: there is no layer 2; choose 0 to 1"),
        (["--prompt", "the", "--head", "-1"], "--head: there is no head -1; choose 0 to 1"),
        (["--prompt", "t"], "--prompt: has 1 token, and a loss needs 2"),
        (["--prompt", "the ~"], "is not among the"),
        (["--prompt", "the", "--show", "lense"], "there is no view 'lense'; did you mean lens"),
        (["--prompt", "the", "--show", ","], "names no view"),
        (["--prompt", "the", "--top", "0"], "--top"),
        ([], "one of the arguments --prompt --text is required"),
        (["--prompt", "a", "--text", "b"], "not allowed with"),
        (["--text", "no-such-file"], "no-such-file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_write_nothing(run, capsys, tmp_path, words, message):
    code, out, err = inspect(capsys, run, *words, "--out", tmp_path / "none")
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err and not (tmp_path / "none").exists()
