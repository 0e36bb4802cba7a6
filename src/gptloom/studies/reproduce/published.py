"""The documents' published facts and runs as data, with the tolerances of a repetition."""

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
    # PyTorch's defaults of AdamW, without schedule or clipping.
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
"""The scaled-up run's evaluation settings; used for runs without their own."""


@dataclass(frozen=True)
class PublishedRun:
    """A run of the documents.

    Attributes:
        name: the name in published.json.
        config: gptloom's settings for the run.
        lecture_weights: whether weights are drawn in the lecture's order; else they are drawn by the recipe.
        eval_interval: the steps between evaluations.
        eval_iters: the batches of each split in an evaluation.
        table: the published rows; empty if only the settings were published.
        source: the documents.
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
        """Whether the run has dropout.

        The documents drew its masks head by head from the generator of the data, so exact digits cannot be expected.
        """
        return self.config.model.dropout > 0

    def due(self, steps: int | None) -> list[int]:
        """The steps to evaluate at: those of the published table, or else all multiples of the interval and the last.

        Args:
            steps: the last step to include, or None for all.
        """
        total = self.config.train.steps or 1
        everywhere = [*range(0, total - 1, self.eval_interval), total - 1]
        return [step for step in ([row[0] for row in self.table] or everywhere) if steps is None or step <= steps]


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed difference between a measured and a published loss.

    Attributes:
        bands: (step, tolerance from that step on in nats per character).
        why: the repeated runs that the tolerance comes from.
    """

    bands: list[tuple[int, float]]
    why: str

    def at(self, step: int) -> float:
        """The tolerance at a step."""
        return max(band for band in self.bands if band[0] <= step)[1]


@cache
def published() -> dict[str, Any]:
    """The content of published.json: the documents' numbers with their sources. Do not change the result."""
    found: dict[str, Any] = json.loads(_read("published.json"))
    return found


@cache
def published_runs() -> dict[str, PublishedRun]:
    """All published runs by name, in the documents' order."""
    return {run["name"]: _run(run) for run in published()["runs"]}


@cache
def tolerances() -> dict[str, Tolerance]:
    """The content of tolerances.toml: the tolerance of every published table."""
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
    """The published minGPT settings; they replace those of the recipe of that name."""
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
