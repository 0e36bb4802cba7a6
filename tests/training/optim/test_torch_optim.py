"""Classes of torch.optim train by name: saved and resumed bit for bit, and AdamW as gptloom's own."""

import pytest
import torch

import gptloom
from gptloom.config.load import nest, resolve
from gptloom.config.run import TORCH_OPTIMIZERS, TrainConfig
from gptloom.errors import ConfigError
from gptloom.model.build import build_model
from gptloom.training.optim import make_optimizer
from gptloom.training.run import resume, train
from training_helpers import Quiet, checkpoint_bytes, losses, small_run, write_text

NO_TABLES = {"ngrams": 1}


def settings(tmp_path, name, steps=12):
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "ngrams": 1}
    training = {"steps": steps, "batch_size": 4, "log_every": 1, "sample_tokens": 5, "optimizer": name}
    data = {"cache": str(tmp_path / "cache")}
    return resolve("tiny", {"device": "cpu", "model": model, "train": training, "data": data})


@pytest.mark.parametrize("name", ["torch:SGD", "torch:AdamW"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, name):
    text, config = str(write_text(tmp_path)), settings(tmp_path, name)
    train([text], config, run=tmp_path / "straight", display=Quiet())
    assert train([text], config, run=tmp_path / "parts", display=Quiet(stop_at=5)).end == "stopped"
    assert resume(tmp_path / "parts", {}, display=Quiet()).end == "finished"
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    assert checkpoint_bytes(tmp_path / "parts") == checkpoint_bytes(tmp_path / "straight")
    assert losses(tmp_path / "straight")[12] < losses(tmp_path / "straight")[1]


def test_torch_s_adamw_is_ours_to_rounding(tmp_path):
    text = str(write_text(tmp_path))
    for name in ("adamw", "torch:AdamW"):
        train([text], settings(tmp_path, name), run=tmp_path / name[:5], display=Quiet())
    assert losses(tmp_path / "torch") == pytest.approx(losses(tmp_path / "adamw"), rel=1e-5)
    assert losses(tmp_path / "torch")[12] != losses(tmp_path / "torch")[11]


def test_every_class_of_torch_optim_is_named_or_needs_what_training_does_not_give():
    classes = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    assert classes - {"Optimizer", "LBFGS", "SparseAdam"} == set(TORCH_OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name in TORCH_OPTIMIZERS if name != "Muon"])
def test_every_class_takes_a_model_s_parameters(name):
    model = build_model(resolve("tiny", {"model": {"n_layer": 1, "n_embd": 16, "vocab_size": 9}}).model)
    optimizer = make_optimizer(model, TrainConfig(optimizer=f"torch:{name}"))
    held = [label for group in optimizer.param_groups for label in group["param_names"]]
    assert sorted(held) == sorted(label for label, _ in model.named_parameters())


def test_what_the_class_refuses_is_said_in_a_line():
    model = build_model(resolve("mingpt", {"model": {"n_layer": 1, "vocab_size": 9}}).model)
    with pytest.raises(ConfigError, match=r"torch.optim.Muon rejects"):
        make_optimizer(model, TrainConfig(optimizer="torch:Muon"))


@pytest.mark.parametrize(
    ("given", "said"),
    [("torch:adamw", "torch:AdamW"), ("torch:SDG", "torch:SGD"), ("adam", "adamw"), ("torch:LBFGS", "closure")],
)
def test_a_wrong_name_is_met_with_the_nearest(given, said):
    with pytest.raises(ConfigError, match=said):
        resolve("tiny", nest({"train.optimizer": given}))


def test_an_optimizer_of_one_s_own_trains_through_python(tmp_path):
    made = []

    def factory(groups):
        made.append(torch.optim.SGD(groups, lr=0.1))
        return made[-1]

    small_run(write_text(tmp_path), tmp_path / "run", model=NO_TABLES, optimizer=factory)
    assert made and losses(tmp_path / "run")[12] < losses(tmp_path / "run")[1]
    with pytest.raises(ConfigError, match="not saved in a run folder"):
        resume(tmp_path / "run", nest({"train.steps": 15}), display=Quiet())
    with pytest.raises(ConfigError, match="ranks"):
        gptloom.train(tmp_path / "text.txt", train={"ranks": 2}, recipe="tiny", optimizer=factory)
