"""The Python interface: `train`, and `load`, which returns a `Bundle`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.bundle import Bundle
from gptloom.config.base import field_names, shown
from gptloom.config.load import bare_names, nest, resolve
from gptloom.config.run import RunConfig, Weights
from gptloom.data.number_words import is_numbers
from gptloom.devices import pick_device
from gptloom.errors import ConfigError, InputError
from gptloom.training.progress import Display
from gptloom.training.run import train as run_training
from gptloom.training.session import Result


def train(
    *texts: str | Path | Iterable[str | Path],
    recipe: str | None = None,
    run: str | Path | None = None,
    optimizer: Any = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train a model.

    Args:
        texts: files, folders, globs, `shakespeare`, or number words such as `numbers:en-fr`; or lists of them.
        recipe: a named set of settings; by default translate for number words, else tiny on a CPU and baby on an
            accelerator.
        run: a new folder for the run; by default the next free folder under runs/.
        optimizer: the name of an optimizer, as `train.optimizer`; or a function that builds it from parameter groups,
            such as `partial(torch.optim.SGD, lr=0.1)`. The schedule scales each group's "lr". A run whose optimizer is
            a function cannot be resumed.
        quiet: show no progress; warnings are still shown.
        settings: any setting by its own name, such as minutes=1, lr=1e-3, n_layer=6 or tokenizer="byte"; and groups of
            them as model={...}, train={...}, data={...}.

    Returns:
        The results; `load(result.run)` loads the best checkpoint.

    Raises:
        GptloomError: a setting, the text or the machine prevents the run; one line with cause and cure.
    """
    if isinstance(optimizer, str):
        settings, optimizer = settings | {"train.optimizer": optimizer}, None
    if not (optimizer is None or callable(optimizer)):
        cure = "give a name such as torch:SGD, or a function of parameter groups such as torch.optim.SGD"
        raise ConfigError(f"{shown(optimizer)} does not build an optimizer", where="optimizer", cure=cure)
    changes, words = _spelled_out(settings), list(_paths(texts))
    config, folder = configure(recipe, {}, changes, texts=words), None if run is None else Path(run)
    display = Display(lambda _line: None) if quiet else None
    return run_training(words, config, run=folder, display=display, optimizer=optimizer)


def _paths(texts: Iterable[Any]) -> Iterator[str]:
    """Yield the paths among the texts and in lists of texts."""
    for text in texts:
        if isinstance(text, str | Path):
            yield str(text)
        elif isinstance(text, list | tuple | Iterator):
            yield from _paths(text)
        else:
            cure = "give the path of a file or folder, or a list of paths"
            raise InputError(f"{shown(text)} is not a text", where="train", cure=cure)


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
