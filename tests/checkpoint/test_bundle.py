"""A trained model as a folder and as an object that reads and writes text."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gptloom
from gptloom.bundle import Bundle
from gptloom.config.run import SampleConfig
from gptloom.errors import ConfigError, InputError
from gptloom.generate.batch import DecodeBatch
from training_helpers import small_run, write_text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    small_run(write_text(folder), folder / "run", model={"head": "tied"}, train={"steps": 60, "learning_rate": 1e-2})
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path):
    """A bundle that may be damaged."""
    return Path(shutil.copytree(best_checkpoint(run), tmp_path / "bundle"))


def best_checkpoint(run):
    return run / "checkpoints" / (run / "best").read_text().strip()


def test_a_run_a_checkpoint_and_a_saved_bundle_are_the_same_model(run, tmp_path):
    bundle = gptloom.load(run)
    (tmp_path / "saved").mkdir()
    bundle.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "SHA256SUMS",
    }
    ids = torch.tensor([bundle.prompt_ids("the lazy")])
    for path in (best_checkpoint(run), tmp_path / "saved"):
        other = gptloom.load(path)
        assert (
            torch.equal(other.model(ids), bundle.model(ids))
            and other.tokenizer.fingerprint == bundle.tokenizer.fingerprint
        )
    assert "head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")  # tied: saved once
    assert bundle.model.head.weight is bundle.model.token_table.weight


def test_generate_is_reproducible_and_takes_any_setting(run):
    bundle = gptloom.load(run)
    one = bundle.generate("the quick", tokens=30, seed=5)
    assert one == bundle.generate("the quick", tokens=30, seed=5) != bundle.generate("the quick", tokens=30, seed=6)
    assert one.startswith("the quick") and len(one) == len("the quick") + 30
    assert bundle.generate("the", tokens=8, temperature=0) == bundle.generate("the", tokens=8, top_k=1, seed=9)
    with pytest.raises(ConfigError, match="temprature: unknown setting; did you mean temperature"):
        bundle.generate("the", temprature=1)


def test_an_empty_prompt_starts_afresh(run):
    assert len(gptloom.load(run).generate(tokens=12)) == 12


def test_stop_strings_end_a_text_and_are_not_part_of_it(run):
    bundle = gptloom.load(run)
    whole = bundle.generate("the", tokens=60, temperature=0)[3:]
    stop = whole[20:23]
    assert (
        bundle.write("the", SampleConfig(tokens=60, temperature=0, stop=(stop,)))[0].text == whole[: whole.index(stop)]
    )


def test_what_is_streamed_piece_by_piece_is_the_text(run):
    bundle, config = gptloom.load(run), SampleConfig(tokens=40, samples=3, stop=("z", "ox"))
    texts, tokens = ["", "", ""], [[], [], []]
    for piece in bundle.stream("fox", config, details=2):
        texts[piece.row] += piece.text
        if piece.token is not None:
            tokens[piece.row].append(piece.token)
    written = bundle.write("fox", config, details=2)
    assert [(text.text, text.tokens) for text in written] == list(zip(texts, tokens, strict=True))
    assert len(set(texts)) == 3


def test_a_stream_computes_a_token_when_it_is_asked_for_one_and_refuses_at_once(run, monkeypatch):
    bundle, steps = gptloom.load(run), []
    step = DecodeBatch.step
    monkeypatch.setattr(DecodeBatch, "step", lambda batch: (steps.append(1), step(batch))[1])
    pieces = bundle.stream("the", SampleConfig(tokens=40))
    assert not steps
    for _ in range(3):
        next(pieces)
    assert len(steps) == 3
    with pytest.raises(ConfigError, match="beam"):
        bundle.stream("the", SampleConfig(beams=2))
    with pytest.raises(InputError):
        bundle.stream("\u2603", SampleConfig())


def test_details_are_the_models_own_probabilities(run):
    bundle = gptloom.load(run)
    written = bundle.write("the q", SampleConfig(tokens=4, temperature=2.0, top_k=5), details=3)[0]
    ids = bundle.prompt_ids("the q")
    for token in written.tokens:
        logprobs = bundle.model(torch.tensor([ids]))[0, -1].detach().log_softmax(-1)
        assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
        assert token.rank == int((logprobs > logprobs[token.id]).sum())
        assert [one for one, _ in token.alternatives] == logprobs.topk(3).indices.tolist()
        ids.append(token.id)


def test_beam_search_finds_likelier_text_than_greedy_or_equal(run):
    bundle = gptloom.load(run)

    def likelihood(text):
        return -bundle.score("the " + text).nats

    greedy = bundle.write("the ", SampleConfig(tokens=10, temperature=0))[0].text
    beams = bundle.write("the ", SampleConfig(tokens=10, beams=6, samples=3))
    assert likelihood(beams[0].text) >= likelihood(greedy) - 1e-3
    assert [one.score for one in beams] == sorted((one.score for one in beams), reverse=True)


def test_a_stop_string_ends_a_beam_and_is_not_part_of_its_text(run):
    bundle, config = gptloom.load(run), SampleConfig(tokens=30, beams=3, samples=3)
    whole = bundle.write("the ", config)[0].text
    stop = whole[12:15]
    stopped = bundle.write("the ", config.model_copy(update={"stop": (stop, "\u2603")}))
    assert all(stop not in one.text for one in stopped)
    assert any(len(one.tokens) == len(one.text) + len(stop) for one in stopped)
    assert any(one.text == whole[: whole.index(stop)] for one in stopped)


def test_the_tokens_of_a_beam_have_the_models_probabilities(run):
    bundle = gptloom.load(run)
    found = bundle.write("the q", SampleConfig(tokens=6, beams=4, samples=2), details=2)
    for written in found:
        assert sum(token.logprob for token in written.tokens) / 6 == pytest.approx(written.score, abs=1e-5)
        sampled = bundle.write("the q", SampleConfig(tokens=6, temperature=0), details=2)[0].tokens[0]
        assert [one for one, _ in written.tokens[0].alternatives] == [one for one, _ in sampled.alternatives]
    assert any(token.rank for written in found for token in written.tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 1.5), ("temperature", 0.7), ("top_k", 5), ("top_p", 0.5), ("min_p", 0.1)],
)
def test_settings_of_draws_are_refused_in_a_beam_search(run, name, value):
    bundle = gptloom.load(run)
    with pytest.raises(ConfigError, match=f"draws no tokens, so {name}={value:g} has no meaning with beams=3"):
        bundle.generate("the", beams=3, **{name: value})
    with pytest.raises(ConfigError, match="there are none"):
        bundle.generate("the", length_penalty=0.6)
    assert bundle.generate("the", beams=2, tokens=3, temperature=0, top_p=1.0)  # without effect anywhere


def test_samples_returns_a_list_of_different_texts(run):
    bundle = gptloom.load(run)
    texts = bundle.generate("the ", samples=3, tokens=20)
    assert len(set(texts)) == 3 and all(text.startswith("the ") for text in texts)
    assert texts[0] == bundle.generate("the ", tokens=20) and bundle.generate("the ", samples=1, tokens=20) == texts[:1]
    assert len(bundle.generate("the ", samples=2, beams=4, tokens=5)) == 2


def test_score_is_cross_entropy_over_fixed_windows_with_exact_bytes(run):
    bundle = gptloom.load(run)
    text = "the quick brown fox jumps over the lazy dog"
    ids, block = bundle.prompt_ids(text), bundle.model.config.block_size
    nats = 0.0
    for start in range(0, len(ids) - 1, block):
        window, targets = ids[start : start + block], ids[start + 1 : start + block + 1]
        logprobs = bundle.model(torch.tensor([window]))[0].detach().log_softmax(-1)
        nats -= sum(float(logprobs[i, target]) for i, target in enumerate(targets))
    score = bundle.score(text)
    assert score.nats == pytest.approx(nats, rel=1e-5) and score.tokens == len(ids) - 1 == score.bytes
    assert score.bpb == pytest.approx(score.loss / math.log(2)) and score.perplexity == pytest.approx(
        math.exp(score.loss)
    )


def test_unknown_characters_are_named_skipped_or_replaced(run):
    bundle = gptloom.load(run)
    with pytest.raises(InputError, match="U\\+00E9"):
        bundle.prompt_ids("thé")
    assert bundle.prompt_ids("thé", "skip") == bundle.prompt_ids("th")
    assert bundle.prompt_ids("thé", "replace") == bundle.prompt_ids("the")


def damage_config(path):
    (path / "config.json").write_text("{")


def foreign_config(path):
    (path / "config.json").write_text('{"model_type": "gpt2"}')


def bad_field(path):
    saved = json.loads((path / "config.json").read_text())
    saved["model"]["n_head"] = 3
    (path / "config.json").write_text(json.dumps(saved))


def cut_weights(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def wrong_shape(path):
    tensors = load_file(path / "model.safetensors")
    tensors["token_table.weight"] = torch.zeros(3, 3)
    save_file(tensors, path / "model.safetensors")


def missing_tensor(path):
    tensors = load_file(path / "model.safetensors")
    del tensors["blocks.0.mixer.qkv.weight"]
    save_file(tensors, path / "model.safetensors")


def no_tokenizer(path):
    (path / "tokenizer.json").unlink()


def other_tokenizer(path):
    saved = json.loads((path / "tokenizer.json").read_text())
    saved["alphabet"] += "é"
    (path / "tokenizer.json").write_text(json.dumps(saved))


@pytest.mark.parametrize(
    "damage",
    [damage_config, foreign_config, bad_field, cut_weights, wrong_shape, missing_tensor, no_tokenizer, other_tokenizer],
)
def test_a_damaged_bundle_is_refused_with_a_cause(copy, damage):
    Bundle.load(copy)
    damage(copy)
    with pytest.raises((InputError, ConfigError)) as caught:
        Bundle.load(copy)
    assert str(copy) in caught.value.line() and "\n" not in caught.value.line()


def test_a_path_that_is_no_bundle_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="run folder"):
            Bundle.load(path)


@pytest.mark.parametrize("name", ["../best", "step-999999", "newest"])
def test_a_checkpoint_must_be_one_of_the_runs_own(run, name):
    with pytest.raises(InputError, match="choose best, latest or one of step-"):
        Bundle.load(run, which=name)


MISTAKES = """
import sys, gptloom
from gptloom.bundle import Bundle
from gptloom.config.run import SampleConfig
from gptloom.errors import GptloomError
bundle, text = gptloom.load(sys.argv[1]), open(sys.argv[2]).read()
calls = {
    "generate(None)": lambda: bundle.generate(None),
    "generate([0, 99])": lambda: bundle.generate([0, 99]),
    "generate([0.5])": lambda: bundle.generate([0.5]),
    "generate([[1], [2, 3]])": lambda: bundle.generate([[1], [2, 3]]),
    "score(None)": lambda: bundle.score(None),
    "fill(None)": lambda: bundle.fill(None),
    "SampleConfig(tokens=0)": lambda: SampleConfig(tokens=0),
    "stop=''": lambda: bundle.generate("the", stop=""),
    "load(None)": lambda: gptloom.load(None),
    "load(text)": lambda: gptloom.load(text),
    "train(text)": lambda: gptloom.train(text),
    "train(None)": lambda: gptloom.train(None),
    "train()": lambda: gptloom.train(),
    "train(optimizer=3)": lambda: gptloom.train("x", optimizer=3),
    "train(optimizer='adamv')": lambda: gptloom.train("x", optimizer="adamv"),
    "train(optimizer=len)": lambda: gptloom.train(sys.argv[2], run=sys.argv[3], steps=1, optimizer=len),
    "train(learning=1)": lambda: gptloom.train("x", learning=1),
    "train(n_head=5)": lambda: gptloom.train("x", recipe="tiny", n_head=5),
    "train(recipe='tony')": lambda: gptloom.train("x", recipe="tony"),
}
for name, call in calls.items():
    try:
        print("accepted", name, call())
    except GptloomError as error:
        print(name, "|", error)
"""


def test_mistakes_in_python_are_one_short_line_that_names_keywords(run, tmp_path):
    words = [str(run), str(run.parent / "text.txt"), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", MISTAKES, *words], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 19 and not [line for line in lines if line.startswith("accepted")]
    assert not [line for line in lines if "--" in line.replace("`gptloom train --help`", "") or len(line) > 500]
    for part in ("None is neither a text nor", "from 0 to", "tokens: expected a whole number", "is not a path",
                 "looks like a text", "no text was given", "3 does not build an optimizer", "built 2, not an optimizer",
                 "did you mean adamw?", "nearby: 4, 8 (model.n_head)", "did you mean tiny?"):  # fmt: skip
        assert part in done.stdout, part


def test_ids_do_in_place_of_a_text(run):
    bundle, config = gptloom.load(run), SampleConfig(tokens=20, stop="z", temperature=0)
    ids = bundle.prompt_ids("the quick")
    wanted = bundle.write("the quick", config)[0]
    for given in (ids, np.array(ids), np.array(ids, dtype=np.uint8), tuple(ids)):
        assert bundle.write(given, config)[0] == wanted and bundle.score(given) == bundle.score("the quick")
        assert bundle.generate(given, tokens=5, temperature=0) == bundle.generate("the quick", tokens=5, temperature=0)
    assert bundle.generate([], tokens=5) == bundle.generate("", tokens=5)


def test_a_bundle_is_saved_under_any_path_and_shown_in_a_line(run, tmp_path):
    bundle = gptloom.load(run)
    bundle.save(str(tmp_path / "new" / "bundle"))
    assert gptloom.load(str(tmp_path / "new" / "bundle")).generate("the") == bundle.generate("the")
    count = sum(p.numel() for p in bundle.model.parameters())
    assert repr(bundle) == f"Bundle(decoder, {count:,} parameters, {bundle.tokenizer.vocab_size} tokens, cpu)"
    assert len(repr(bundle.write("the", SampleConfig(), details=3)[0])) < 500


def test_dir_lists_the_public_names():
    assert {"GPT", "load", "train", "__version__"} <= set(dir(gptloom))
