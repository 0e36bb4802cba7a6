"""Whole runs of the other architectures with the command line: the same commands as for a GPT."""

import json

import pytest
import torch

import gptloom
from gptloom.cli.main import main
from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX, RunConfig
from gptloom.data.batches import Batches, MaskedBatches, masked_windows
from gptloom.data.tokenizers import CharTokenizer
from gptloom.data.tokens import Tokens
from gptloom.errors import InputError
from gptloom.generate.task import task_of
from gptloom.studies.ladder.neighbours import compare_neighbours, count_parameters, match_width
from gptloom.studies.trial import open_material
from gptloom.training.run import resume
from training_helpers import Quiet, checkpoint_bytes, losses, metrics, small_run, write_text

import numpy as np  # isort: skip

RECURRENT = {"n_layer": 2, "n_embd": 16, "block_size": 16}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A language in which every word is reversed."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    words = [f"{a}{b}{c}" for a in "abcd" for b in "efgh" for c in "ijkl"]
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in words), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def translator(pairs, tmp_path_factory):
    model = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 8}
    train = {"steps": 150, "minutes": None, "batch_size": 16, "learning_rate": 5e-3, "warmup_steps": 10}
    run = tmp_path_factory.mktemp("runs") / "backwards"
    data = {"cache": str(run.parent / "cache")}
    return gptloom.train(pairs, recipe="translate", run=run, device="cpu", model=model, train=train, data=data)


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "encoder"])
def test_a_stopped_run_resumes_to_the_same_bits(text, tmp_path, architecture, monkeypatch):
    fields = {"architecture": architecture, "dropout": 0.2}
    straight = small_run(text, tmp_path / "straight", model=fields, train={"steps": 8})
    monkeypatch.setattr("gptloom.training.run.make_display", lambda: Quiet(stop_at=5))
    stopped = small_run(text, tmp_path / "stopped", model=fields, train={"steps": 8})
    assert stopped.end == "stopped" and stopped.steps == 5
    resume(tmp_path / "stopped", {}, display=Quiet())
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert checkpoint_bytes(tmp_path / "stopped") == checkpoint_bytes(tmp_path / "straight")
    assert straight.exact_match is None


def test_an_encoder_decoder_resumes_to_the_same_bits(pairs, tmp_path, monkeypatch):
    settings = {
        "recipe": "translate",
        "device": "cpu",
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "dropout": 0.2},
        "train": {"steps": 8, "minutes": None, "batch_size": 6, "micro_batch_size": 3, "log_every": 1},
        "data": {"cache": str(tmp_path / "cache")},
    }
    gptloom.train(pairs, run=tmp_path / "straight", **settings)
    monkeypatch.setattr("gptloom.training.run.make_display", lambda: Quiet(stop_at=5))
    gptloom.train(pairs, run=tmp_path / "stopped", **settings)
    resume(tmp_path / "stopped", {}, display=Quiet())
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert checkpoint_bytes(tmp_path / "stopped") == checkpoint_bytes(tmp_path / "straight")


def test_a_recurrent_run_is_sampled_and_measured_by_the_same_commands(text, tmp_path, capsys):
    result = small_run(text, tmp_path / "run", model={"architecture": "lstm"})
    assert (
        main(["sample", str(tmp_path / "run"), "--prompt", "the", "--tokens", "40", "--json", "--device", "cpu"]) == 0
    )
    sampled = json.loads(capsys.readouterr().out)["samples"][0]
    assert len(sampled["tokens"]) == 40
    assert main(["eval", str(tmp_path / "run"), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(result.val_loss, abs=1e-6)


def test_an_encoder_learns_fills_in_and_does_not_write(text, tmp_path, capsys):
    result = small_run(
        text, tmp_path / "run", model={"architecture": "encoder"}, train={"steps": 150, "learning_rate": 1e-2}
    )
    first = metrics(tmp_path / "run", "evaluation")[0]["loss"]
    assert result.val_loss < first - 0.5 and result.val_bpb is None
    assert main(["sample", str(tmp_path / "run"), "--prompt", "the qu[MASK]ck f[MASK]x", "--device", "cpu"]) == 0
    filled = capsys.readouterr().out.strip("\n")
    assert len(filled) == len("the quick fox") and filled.startswith("the qu") and filled.endswith("x")
    assert main(["sample", str(tmp_path / "run"), "--prompt", "no mask here", "--device", "cpu"]) == 2
    assert "[MASK]" in capsys.readouterr().err
    bundle = gptloom.load(tmp_path / "run", device="cpu")
    tokens = bundle.fill("the qu[MASK]ck")
    assert len(tokens) == 1 and tokens[0].rank == 0 and tokens[0].id < bundle.tokenizer.vocab_size
    with pytest.raises(InputError, match="fill in"):
        bundle.generate("the")


def test_only_what_is_hidden_is_a_target_and_it_cannot_be_seen():
    ids = np.arange(1, 101, dtype=np.uint8)
    batches = Batches(Tokens(ids, np.zeros(1, np.int64)), block_size=20, batch_size=8, seed=1, sampling="random")
    masked = MaskedBatches(batches, mask=200, fraction=0.3, seed=1)
    share = []
    for step in range(20):
        inputs, targets = masked.batch(step)
        hidden = inputs == 200
        assert torch.equal(hidden, targets != IGNORE_INDEX)
        assert torch.equal(torch.where(hidden, targets, inputs), batches.batch(step).inputs)
        assert all(torch.equal(a, b) for a, b in zip(masked.batch(step), (inputs, targets), strict=True))
        share.append(hidden.float().mean().item())
    assert 0.25 < sum(share) / 20 < 0.35
    short = next(masked_windows(Tokens(ids[:30], np.zeros(1, np.int64)), 20, 8, mask=200, fraction=0.5))
    assert (short.inputs[1, 9:] == -1).all() and (short.targets[1, 9:] == IGNORE_INDEX).all()


def test_ranks_hide_the_tokens_that_one_would_hide():
    tokens = Tokens(np.arange(1, 101, dtype=np.uint8), np.zeros(1, np.int64))
    config = RunConfig(model={"architecture": "encoder", "vocab_size": 200, "block_size": 20}, train={"batch_size": 6})
    tokenizer = CharTokenizer("ab", ends=False)
    whole = task_of(config.model).training_batches(config, tokens, tokenizer)
    ranks = [task_of(config.model).training_batches(config, tokens, tokenizer, rank=rank, world=3) for rank in range(3)]
    for step in range(5):
        for wanted, *parts in zip(whole.batch(step), *(one.batch(step) for one in ranks), strict=True):
            assert torch.equal(torch.cat(parts), wanted)


def test_an_encoder_decoder_learns_to_spell_backwards(translator, pairs, capsys):
    assert translator.exact_match is not None and translator.val_bpb is None
    assert main(["eval", translator.run, "--json", "--device", "cpu"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["exact_match"] == translator.exact_match
    assert values["loss"] == pytest.approx(translator.val_loss, abs=1e-6)
    bundle = gptloom.load(translator.run, device="cpu")
    right = sum(
        bundle.generate(word, temperature=0.0) == word[::-1]
        for word in ("dhj", "dhk", "dhl", "dgl", "dhi", "dgi", "dgj")
    )
    assert right / 7 == pytest.approx(translator.exact_match)  # the last tenth of the pairs
    assert right >= 4  # chance is one in a thousand
    assert main(["eval", translator.run, "--text", str(pairs), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] >= 0.7


def test_a_translation_is_greedy_unless_a_setting_asks_for_draws(translator, pairs, capsys):
    bundle, words = gptloom.load(translator.run, device="cpu"), ["bfj", "cgk", "dhl", "aei"]
    greedy = [bundle.generate(word, temperature=0) for word in words]
    assert [bundle.generate(word, seed=3) for word in words] == greedy
    for flags in ([], ["--json"], ["--seed", "7"]):
        assert main(["sample", translator.run, "--prompt", "bfj", *flags, "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert (json.loads(printed)["samples"][0]["text"] if flags == ["--json"] else printed.strip()) == greedy[0]
    assert len({tuple(bundle.generate(word, seed=seed, temperature=3.0) for word in words) for seed in range(3)}) == 3
    assert len(set(bundle.generate("bfj", samples=20))) > 1


def test_an_encoder_refuses_settings_of_sampling(text, tmp_path, capsys):
    run = small_run(text, tmp_path / "run", model={"architecture": "encoder"}, train={"steps": 2}).run
    assert main(["sample", str(run), "--prompt", "the [MASK]at", "--tokens", "3", "--temperature", "2"]) == 2
    assert "--tokens and --temperature would do nothing" in capsys.readouterr().err
    assert main(["sample", str(run), "--prompt", "the [MASK]at"]) == 0


def test_a_translation_is_printed_without_its_source(translator, capsys):
    for search in ([], ["--beams", "3"], ["--temperature", "0"]):
        assert main(["sample", translator.run, "--prompt", "bfj", *search, "--device", "cpu"]) == 0
        assert "bfj" not in capsys.readouterr().out
    assert main(["sample", translator.run, "--device", "cpu"]) == 2
    assert "source" in capsys.readouterr().err


def test_pairs_that_do_not_fit_are_refused_before_training(pairs, tmp_path, capsys):
    words = [
        "train",
        str(pairs),
        "--recipe",
        "translate",
        "--model.block-size",
        "3",
        "--run",
        str(tmp_path / "run"),
        "--steps",
        "3",
    ]
    assert main(words) == 2
    assert "--model.block-size 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_equal_parameters_and_the_same_data_for_every_neighbour(text, tmp_path):
    model = ModelConfig(vocab_size=30, n_layer=2, n_head=2, n_embd=32, block_size=16)
    wanted = count_parameters(model)
    for architecture in ("rnn", "lstm", "gru"):
        shape = match_width(model, architecture, wanted)
        assert abs(count_parameters(shape) - wanted) / wanted < 0.05
        others = [shape.model_copy(update={"n_embd": shape.n_embd + change}) for change in (-1, 1)]
        assert all(abs(count_parameters(other) - wanted) >= abs(count_parameters(shape) - wanted) for other in others)
    config = RunConfig(device="cpu", model=model, train={"steps": 10, "batch_size": 4})
    found = compare_neighbours(
        config, open_material([str(text)], config.data), architectures=("decoder", "gru"), say=lambda _line: None
    )
    assert [one.name for one in found] == ["decoder", "gru"]
    assert all(one.trial.tokens == 10 * 4 * 16 and len(one.trial.evaluations) >= 10 for one in found)
    assert all(one.distances == list(range(16)) and 0 <= one.reach < 16 for one in found)


def test_a_translation_is_inspected_with_its_alignment(translator, tmp_path, capsys):
    words = [
        "inspect",
        translator.run,
        "--prompt",
        "dhj",
        "--out",
        str(tmp_path),
        "--layer",
        "0",
        "--head",
        "1",
        "--device",
        "cpu",
        "--json",
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    bundle = gptloom.load(translator.run, device="cpu")
    assert found["translation"] == bundle.generate("dhj", temperature=0.0)
    assert (
        found["source"] == ["d", "h", "j"] and len(found["alignment"]) == len(found["translation"]) + 1
    )  # the end is written, too
    assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in found["alignment"])
    cross = np.array(found["cross"])
    assert cross.shape[:2] == (1, 2)
    assert np.abs(cross.mean(axis=(0, 1)) - np.array(found["alignment"])).max() < 2e-4
    assert {"alignment", "alignment-0-1", "reading", "tokens", "inspect"} == found["files"].keys()
    assert all(
        (tmp_path / name).stat().st_size > 1000
        for name in ("alignment.png", "alignment-0-1.png", "reading.png", "tokens.html")
    )
    assert main(["inspect", translator.run, "--prompt", "dhjdhjdhj", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "1 to 8 tokens" in capsys.readouterr().err


def test_an_encoder_is_inspected_with_each_token_hidden_in_turn(text, tmp_path, capsys):
    run = tmp_path / "run"
    small_run(text, run, model={"architecture": "encoder"})
    assert main(["inspect", str(run), "--prompt", "the quick", "--device", "cpu", "--json"]) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    bundle = gptloom.load(run, device="cpu")
    assert found["missing"].keys() == {"lens", "statistics", "distance"} and "no lens view" in out.err
    for place, token in enumerate(found["tokens"]):
        hidden = "the quick"[:place] + "[MASK]" + "the quick"[place + 1 :]
        ids = dict(bundle.fill(hidden)[0].alternatives)
        if token["id"] in ids:
            assert token["logprob"] == pytest.approx(ids[token["id"]], abs=1e-5)
    assert sum(token["id"] in dict(bundle.fill("the qui[MASK]k")[0].alternatives) for token in found["tokens"]) > 0
    first = np.array(found["attention"][0][0])
    assert np.triu(first, 1).any()  # nothing hides the future


def test_a_recurrent_model_is_inspected_as_far_as_there_is_something_to_see(text, tmp_path, capsys):
    run = tmp_path / "run"
    result = small_run(text, run, model={"architecture": "gru"})
    assert main(["inspect", str(run), "--text", str(text), "--device", "cpu", "--json"]) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert found["missing"].keys() == {"attention", "lens"}
    assert found["loss"] == pytest.approx(gptloom.load(run, device="cpu").score(text.read_text()).loss, abs=1e-5)
    assert found["distance"]["gradient"][0] > found["distance"]["gradient"][10] > 0
    assert len(found["statistics"]["parameters"]) == len(
        list(gptloom.load(result.run, device="cpu").model.named_parameters())
    )


def test_the_race_of_the_neighbours_as_a_user_runs_it(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [
        "--model.n-layer",
        "1",
        "--model.n-head",
        "2",
        "--model.n-embd",
        "16",
        "--model.block-size",
        "8",
        "--train.batch-size",
        "4",
    ]
    assert main(["ladder", "neighbours", str(text), "--steps", "4", *small, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["neighbours"]] == ["decoder", "rnn", "lstm", "gru"]
    assert {row["tokens"] for row in found["neighbours"]} == {4 * 4 * 8}
    counts = [row["parameters"] for row in found["neighbours"]]
    assert max(counts) / min(counts) < 1.1
    assert (tmp_path / "neighbours" / "loss.png").stat().st_size > 5000 and (
        tmp_path / "neighbours" / "distance.png"
    ).stat().st_size > 5000
    assert main(["ladder", "neighbours", "--model.archtecture", "x"]) == 2
