"""A model on disk: finding its folder in a run, its SHA256SUMS, config.json and model.safetensors."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gptloom.config.load import parse
from gptloom.config.model import ModelConfig
from gptloom.errors import DeniedError, GptloomWarning, InputError, shortened
from gptloom.fast.int8 import is_quantised, refuse
from gptloom.files import denied, file_hash, json_object, read_bytes, read_json, regular_size, write_text
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model, meta_model

SUMS = "SHA256SUMS"
_PATH_CURE = "give a run folder, a checkpoint folder or a bundle"
_WRITTEN_BY_US = (".json", ".safetensors", ".model")


_NAME = r"(step|kept)-\d{6,}"
"""A checkpoint's folder. kept-N is the best one, of a part of the run that was given up after a resume."""


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def checkpoint_step(name: str) -> int:
    """Return the step in a checkpoint's folder name."""
    return int(name.removeprefix("step-"))


def checkpoint_names(run: Path) -> list[str]:
    """Return the names of a run's checkpoints, oldest first. Raises DeniedError if the folder cannot be listed."""
    folder = run / "checkpoints"
    try:
        found = [path.name for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    except PermissionError as error:
        raise denied(folder, error) from None
    except OSError:
        return []
    return sorted(found, key=checkpoint_step)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of a folder into SHA256SUMS, in the format of `sha256sum --check`."""
    write_text(
        folder / SUMS,
        "".join(f"{file_hash(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS),
    )


def damage(folder: Path) -> str | None:
    """Describe the first fault of a folder with a SHA256SUMS; None if every file matches its hash.

    Raises:
        DeniedError: this user may not read a file.
    """
    try:
        text = read_bytes(folder / SUMS).decode("ascii")
        found = re.fullmatch(r"(?:[0-9a-f]{64}  [\w.-]+\n)+", text)
        if not found:
            return f"{SUMS} is damaged"
        sums = {name: expected for expected, _, name in (line.partition("  ") for line in text.splitlines())}
        for path in folder.iterdir():
            if path.suffix in _WRITTEN_BY_US and path.name not in sums:
                return f"{SUMS} is damaged: it does not list {path.name}"
        for name, expected in sums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if file_hash(folder / name) != expected:
                return f"{name} is damaged: its SHA-256 is not the one in {SUMS}"
    except UnicodeDecodeError:
        return f"{SUMS} is damaged"
    except PermissionError as error:
        raise denied(Path(error.filename or folder), error) from None
    except DeniedError:
        raise
    except InputError as error:
        return f"{SUMS} is damaged: it {error.what}" if (folder / SUMS).exists() else f"{SUMS} is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


def find_bundle(path: Path, which: str = "best") -> Path:
    """Return the folder with the weights, after checking its files against their hashes.

    Args:
        path: a run folder, a checkpoint folder or a bundle. A bundle without SHA256SUMS is not checked.
        which: the checkpoint of a run folder: best, latest, diverged (the state before a step whose loss or gradient
            was not finite), or a checkpoint's name.

    Raises:
        InputError: there is no such folder or checkpoint, or the named checkpoint is damaged.

    Warns:
        GptloomWarning: best or latest is damaged, and the newest intact checkpoint is used instead.
    """
    try:
        if path.parent.name == "checkpoints" and not path.exists():
            path = path.with_name(_full_name(path.name))
        wrong = "" if path.is_dir() else "is not a folder" if path.exists() else "there is no such folder"
    except PermissionError as error:
        raise denied(path, error) from None
    except OSError as error:  # such as a name that is too long
        wrong = f"cannot be opened: {error.strerror}"
    if wrong:
        raise InputError(wrong, where=str(path), cure=_PATH_CURE)
    if which == "diverged" and (path / "diverged").is_dir():
        return find_bundle(path / "diverged", "latest")
    is_checkpoint = path.parent.name == "checkpoints"
    if is_checkpoint or (path / "model.safetensors").exists() or (path / SUMS).exists():
        if problem := damage(path) if is_checkpoint or (path / SUMS).exists() else None:
            raise InputError(problem, where=str(path), cure=_choose_intact(path.parent.parent))
        return path
    names = checkpoint_names(path)
    if not names:
        raise _without_model(path)
    if which not in ("best", "latest"):
        which = _full_name(which)
        if which not in names and not (re.fullmatch(_NAME, which) and (path / "checkpoints" / which).is_dir()):
            raise InputError(
                f"there is no checkpoint {which!r}",
                where=str(path),
                cure=f"choose best, latest or one of {', '.join(names)}",
            )
        return find_bundle(path / "checkpoints" / which)
    return _pointed(path, which, names)


def _full_name(name: str) -> str:
    """Return step-000020 for step-20, and any other name unchanged."""
    found = re.fullmatch(r"step-(\d{1,12})", name)
    return checkpoint_name(int(found[1])) if found else name


def _without_model(path: Path) -> InputError:
    """Return the error of a folder without a model, which may be that of a run that failed at its start."""
    if (path / "run.json").exists():
        return InputError("has no checkpoint yet", where=str(path), cure=f"train it with `gptloom resume {path}`")
    if not any(not one.name.startswith(".") for one in path.iterdir()):
        cure = f"{_PATH_CURE}, or train into this one with `gptloom train TEXT --run {path}`"
        return InputError("is empty", where=str(path), cure=cure)
    return InputError("holds no model and no checkpoints yet", where=str(path), cure=_PATH_CURE)


def _pointed(run: Path, which: str, names: list[str]) -> Path:
    """Return the best or the newest checkpoint; if it is damaged, the newest intact one."""
    name = (read_pointer(run / "best") if which == "best" else None) or names[-1]
    there = (run / "checkpoints" / name).is_dir()
    problem = damage(run / "checkpoints" / name) if there else "it is missing"
    if problem is None:
        return run / "checkpoints" / name
    for other in reversed(names):
        if other != name and damage(run / "checkpoints" / other) is None:
            warnings.warn(
                f"{run / 'checkpoints' / name}: {problem}; {other}, the newest intact checkpoint, is used instead",
                GptloomWarning,
                stacklevel=3,
            )
            return run / "checkpoints" / other
    raise InputError(
        f"{problem}, and no other checkpoint is intact",
        where=str(run / "checkpoints" / name),
        cure="start a new run, or restore a copy",
    )


def read_pointer(path: Path) -> str | None:
    """Return the checkpoint name in a pointer file (latest, best); None if there is no file, or no name in it."""
    try:
        name = read_bytes(path).decode("ascii").strip() if path.exists() else None
    except DeniedError:
        raise
    except (InputError, UnicodeDecodeError):
        name = ""
    if name is None:
        return None
    if re.fullmatch(_NAME, name):
        return name
    warnings.warn(f"{path}: does not name a checkpoint; it is ignored", GptloomWarning, stacklevel=4)
    return None


def _choose_intact(run: Path) -> str:
    intact = [name for name in checkpoint_names(run) if damage(run / "checkpoints" / name) is None]
    return f"choose an intact checkpoint: {', '.join(intact)}" if intact else "restore a copy"


_CURE = "use another checkpoint"
_TOGETHER = "keep the files of a bundle together"
_LONGEST_HEADER = 1 << 24  # bytes; a model of 1,000 layers needs a tenth of that


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Return CPU copies of the model's parameters by name.

    A parameter that several layers share (a tied head, a shared table) appears once.

    Raises:
        ConfigError: some weights are int8.
    """
    if is_quantised(model):
        refuse()
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that other users may read as the umask says; the library alone gives it mode 0600."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def write_model(folder: Path, config: ModelConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    text = json.dumps({"format": "gptloom", "version": 1, "model": config.model_dump(mode="json")}, indent=2)
    write_text(folder / "config.json", text + "\n")
    write_tensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> LanguageModel:
    """Load the model of a bundle. Its files are compared before memory is allocated for the model.

    Raises:
        InputError: a file is missing or damaged, the files contradict each other, or a weight is not finite.
        MachineError: the model does not fit into memory.
    """
    config, path = read_model_config(folder / "config.json"), folder / "model.safetensors"
    header = read_header(path)
    if config.n_layer > max(64, len(header)):  # before a model of that many layers is built on the meta device
        raise InputError(
            f"has {len(header)} tensors, too few for n_layer={config.n_layer}", where=str(path), cure=_TOGETHER
        )
    _compare(header, meta_model(config), path)
    model = build_model(config)
    load_weights(model, path)
    return model


def load_weights(model: LanguageModel, path: Path, *, names: Mapping[str, str] | None = None) -> None:
    """Fill a model from a safetensors file.

    Args:
        model: its parameters are overwritten.
        path: the file.
        names: {name in the model: name in the file}, for a file of another program; its dtypes may also differ.

    Raises:
        InputError: the file is damaged, its names, shapes or dtypes are not those of the model, or a weight is NaN or
            infinite.
    """
    header = read_header(path)
    _compare(
        header if names is None else {here: ("F32", header[there][1]) for here, there in names.items()}, model, path
    )
    broken = []
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name, parameter in model.named_parameters():
                tensor = file.get_tensor(name if names is None else names[name])
                # aminmax propagates NaN; this is ten times as fast as checking every value.
                if not torch.stack(tensor.aminmax()).isfinite().all():
                    broken.append((name, int((~tensor.isfinite()).sum())))
                parameter.copy_(tensor)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights cannot be read: {error}", where=str(path), cure=_CURE) from None
    if broken:
        name, count = broken[0]
        more = f", and {len(broken) - 1} more tensors have such values" if len(broken) > 1 else ""
        raise InputError(f"{name} has {count:,} values that are NaN or infinite{more}", where=str(path), cure=_CURE)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read the dtype and shape of each tensor in a safetensors file, by name; the tensors are not read.

    Raises:
        InputError: the file cannot be read, or has no valid header.
    """
    size = regular_size(path, cure=_CURE)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"its header cannot have {length:,} bytes")
            content = json_object(file.read(length).decode())
        content.pop("__metadata__", None)
        return {name: (str(about["dtype"]), tuple(map(int, about["shape"]))) for name, about in content.items()}
    except PermissionError as error:
        raise denied(path, error) from None
    except OSError as error:
        raise InputError(f"the weights cannot be read: {error.strerror}", where=str(path), cure=_CURE) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"is not a valid safetensors file: {error}", where=str(path), cure=_CURE) from None


def _compare(header: Mapping[str, tuple[str, tuple[int, ...]]], model: LanguageModel, path: Path) -> None:
    """Check that a file's tensors have the model's names, shapes and dtypes."""
    expected = {name: ("F32", tuple(one.shape)) for name, one in model.named_parameters()}
    problems = [f"{name} is missing" for name in expected.keys() - header.keys()] + [
        f"{name} is not expected" for name in header.keys() - expected.keys()
    ]
    for name in expected.keys() & header.keys():
        if header[name] != expected[name]:
            (dtype, shape), (right, wanted) = header[name], expected[name]
            problems.append(
                f"{name} has shape {shape} instead of {wanted}"
                if shape != wanted
                else f"{name} is of type {dtype} instead of {right}"
            )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        listed = ", ".join(shortened(problem, 200) for problem in sorted(problems)[:3])
        raise InputError(f"the weights do not fit the model's shape: {listed}{more}", where=str(path), cure=_TOGETHER)


def read_model_config(path: Path) -> ModelConfig:
    """Read the model's configuration from a bundle's config.json."""
    cure = "give a run folder, a checkpoint folder or a bundle"
    saved = read_json(path, cure=cure)
    if saved.get("format") != "gptloom" or not isinstance(saved.get("model"), dict):
        raise InputError("is not a gptloom configuration", where=str(path), cure=cure)
    return parse(ModelConfig, saved["model"], where=str(path))
