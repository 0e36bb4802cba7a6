"""The Python interface: `train`, and `load`, which returns a `Bundle`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.bundle import Bundle
from gptloom.config.base import field_names
from gptloom.config.load import bare_names, nest, resolve
from gptloom.config.run import RunConfig, Weights
from gptloom.data.number_words import is_numbers
from gptloom.devices import pick_device
from gptloom.errors import ConfigError
from gptloom.training.optim import OptimizerFactory
from gptloom.training.run import train as run_training
from gptloom.training.session import Result


def train(
    *texts: str | Path,
    recipe: str | None = None,
    run: str | Path | None = None,
    optimizer: OptimizerFactory | None = None,
    **settings: Any,
) -> Result:
    """Train a model.

    Args:
        texts: files, folders, globs, `shakespeare`, or number words such as `numbers:en-fr`.
        recipe: a named set of settings; by default translate for number words, else tiny on a CPU and baby on an
            accelerator.
        run: a new folder for the run; by default the next free folder under runs/.
        optimizer: builds the optimizer from parameter groups, such as `partial(torch.optim.SGD, lr=0.1)`; the schedule
            scales each group's "lr". Such a run cannot be resumed. By default, `train.optimizer` selects the optimizer.
        settings: any setting by its own name, such as minutes=1, lr=1e-3, n_layer=6 or tokenizer="byte"; and groups of
            them as model={...}, train={...}, data={...}.

    Returns:
        The results; `load(result.run)` loads the best checkpoint.

    Raises:
        GptloomError: a setting, the text or the machine prevents the run; one line with cause and cure.
    """
    changes = _spelled_out(settings)
    words = [str(text) for text in texts]
    config, folder = configure(recipe, {}, changes, texts=words), None if run is None else Path(run)
    return run_training(words, config, run=folder, optimizer=optimizer)


def _spelled_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings: a bare name (`load.bare_names`) goes into its group.

    Raises:
        ConfigError: a setting is given twice, by its own name and in its group.
    """
    bare, found = bare_names(field_names(RunConfig)), dict[str, Any]()
    for name, value in settings.items():
        group = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else None
        for key, one in ({bare.get(name, name): value} if group is None else group).items():
            if key in found:
                raise ConfigError("is given twice", where=key, cure="give it once")
            found[key] = one
    return nest(found)


def load(path: str | Path, *, device: str = "auto", which: str = "best", weights: Weights = "float32") -> Bundle:
    """Load a trained model from a run folder, a checkpoint folder or a bundle; see `Bundle.load`."""
    return Bundle.load(path, device=device, which=which, weights=weights)


def configure(
    recipe: str | None,
    file: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    texts: Sequence[str] = (),
    where: str = "settings",
) -> RunConfig:
    """Return a run's settings: the recipe, overridden by the file, overridden by the changes.

    Args:
        recipe: the recipe; by default the file's, else translate for number words, tiny on a CPU, baby on an
            accelerator.
        file: settings of a TOML file.
        changes: settings of the command line or of keyword arguments.
        texts: the texts of the run.
        where: the source of the settings, for error messages.

    Raises:
        ConfigError: a setting is wrong.
    """
    device = str(changes.get("device", file.get("device", "auto")))
    default = "translate" if any(map(is_numbers, texts)) else "tiny" if pick_device(device).type == "cpu" else "baby"
    name = recipe or file.get("recipe") or default
    above = {key: value for key, value in file.items() if key != "recipe"}
    return resolve(str(name), above, changes, where=where)
