"""What the documents published, as data: their facts, the settings of their runs, and how near a repetition must come."""

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from gptloom.config.load import merge, parse, read_recipe
from gptloom.config.run import RunConfig

Row = tuple[int, float, float]
"""(step, train loss, validation loss) in nats per character."""

_LECTURE = {
    "model": {
        # The documents scale the scores by the width of the embedding; their losses were measured that way.
        "score_scale": "embedding",
        "bias": "not-qkv",
        "mlp": "relu",
        "head_bias": True,
        "init": "pytorch",
        "embd_dropout": 0.0,
    },
    # PyTorch's defaults for AdamW, and nothing else.
    "train": {
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "decay": "all",
        "beta1": 0.9,
        "beta2": 0.999,
        "grad_clip": 0.0,
    },
}
_SHAPES = {"single-head": {"model": {"mlp": "none", "residual": "none", "norm": "none", "output_projection": False}}}

_EVAL_INTERVAL, _EVAL_ITERS = 500, 200
"""Where a document gives settings and no evaluation, that of the scaled-up run."""


@dataclass(frozen=True)
class PublishedRun:
    """A run of the documents.

    Attributes:
        name: its name in published.json.
        config: its settings in gptloom's words.
        lecture_weights: the weights are drawn in the lecture's order; else as the recipe draws them.
        eval_interval: steps between evaluations.
        eval_iters: batches of each split in an evaluation.
        table: the published rows; empty where only the settings were published.
        source: which documents.
    """

    name: str
    config: RunConfig
    lecture_weights: bool
    eval_interval: int
    eval_iters: int
    table: list[Row]
    source: str

    @property
    def has_dropout(self) -> bool:
        """Its masks came from the data's generator, head by head, so a batched model can meet the table only in distribution."""
        return self.config.model.dropout > 0

    def due(self, steps: int | None) -> list[int]:
        """The steps to evaluate at: the published ones or, where none were, every multiple of the interval and the last step.

        Args:
            steps: nothing after this step, or None.
        """
        total = self.config.train.steps or 1
        everywhere = [*range(0, total - 1, self.eval_interval), total - 1]
        return [step for step in ([row[0] for row in self.table] or everywhere) if steps is None or step <= steps]


@dataclass(frozen=True)
class Tolerance:
    """How far a measured loss may be from a published one.

    Attributes:
        bands: (step, nats per character): the tolerance from that step on.
        why: the repeated runs that it comes from.
    """

    bands: list[tuple[int, float]]
    why: str

    def at(self, step: int) -> float:
        """The tolerance at a step."""
        return max(band for band in self.bands if band[0] <= step)[1]


@cache
def published() -> dict[str, Any]:
    """published.json: numbers that the documents print, each with its source. To be read, not changed."""
    found: dict[str, Any] = json.loads(_read("published.json"))
    return found


@cache
def published_runs() -> dict[str, PublishedRun]:
    """Every run with settings, by name, in the documents' order."""
    return {run["name"]: _run(run) for run in published()["runs"]}


@cache
def tolerances() -> dict[str, Tolerance]:
    """tolerances.toml: for every published table, and the repeated runs behind it."""
    read = tomllib.loads(_read("tolerances.toml"))
    return {
        name: Tolerance([(int(step), float(most)) for step, most in entry["bands"]], entry["why"])
        for name, entry in read.items()
    }


def lecture_config(model: dict[str, Any], train: dict[str, Any], *, seed: int = 1337) -> RunConfig:
    """The lecture's model and optimizer with these sizes.

    Raises:
        ConfigError: the sizes do not fit together.
    """
    return parse(RunConfig, merge(_LECTURE, {"seed": seed, "model": model, "train": train}), where="published.json")


def _run(entry: dict[str, Any]) -> PublishedRun:
    given = entry["config"]
    model = {key: given[key] for key in ("block_size", "n_embd", "n_head", "n_layer")} | {
        "vocab_size": published()["corpus"]["vocabulary"]
    }
    train = {"batch_size": given["batch_size"], "learning_rate": given["learning_rate"], "steps": given["max_iters"]}
    lecture = entry["name"] != "mingpt"
    if lecture:
        config = lecture_config(
            model | {"dropout": given["dropout"]} | _SHAPES.get(entry["name"], {}).get("model", {}),
            train,
            seed=entry["seed"],
        )
    else:
        config = parse(
            RunConfig,
            merge(read_recipe("mingpt"), _mingpt(given, model, train) | {"seed": entry["seed"]}),
            where="published.json",
        )
    table = [(int(step), float(train_loss), float(val_loss)) for step, train_loss, val_loss in entry["table"]]
    interval, iters = given.get("eval_interval", _EVAL_INTERVAL), given.get("eval_iters", _EVAL_ITERS)
    return PublishedRun(entry["name"], config, lecture, interval, iters, table, entry["source"])


def _mingpt(given: dict[str, Any], model: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """MinGPT's settings over the recipe of that name, which has the shape and the way to draw weights."""
    beta1, beta2 = given["betas"]
    dropout = {
        "dropout": given["resid_pdrop"],
        "attn_dropout": given["attn_pdrop"],
        "embd_dropout": given["embd_pdrop"],
    }
    optimizer = {
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": given["weight_decay"],
        "grad_clip": given["grad_norm_clip"],
    }
    return {"model": model | dropout, "train": train | optimizer}


def _read(name: str) -> str:
    return resources.files("gptloom.studies.reproduce").joinpath(name).read_text(encoding="utf-8")
