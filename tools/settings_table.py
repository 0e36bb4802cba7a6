"""Write docs/settings.md from the typed fields: `python tools/settings_table.py`. The tests compare the two."""

from pathlib import Path
from typing import Any

from gptloom.cli.flags import metavar
from gptloom.config.base import Config
from gptloom.config.load import read_recipe, recipe_names
from gptloom.config.model import ModelConfig
from gptloom.config.run import DataConfig, RunConfig, SampleConfig, TrainConfig

TARGET = Path(__file__).parent.parent / "docs" / "settings.md"


def table(config: type[Config], prefix: str) -> list[str]:
    """A row for every field that is not a group."""
    rows = ["| flag | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            continue
        value: Any = field.get_default(call_default_factory=True)
        default = "" if value in (None, ()) else f"`{value}`"
        kind = (
            "on / off" if field.annotation is bool else metavar(field.annotation).strip("{}").replace(",", ", ").lower()
        )
        flag, meaning = (prefix + name).replace("_", "-"), str(field.description).replace("|", "/")
        rows.append(f"| `--{flag}` | {kind} | {default} | {meaning} |")
    return [*rows, ""]


def page() -> str:
    """The whole page."""
    lines = ["# Settings", "", "Made by `python tools/settings_table.py` from the fields in `config/run.py`.", ""]
    lines += [
        "A TOML file has the same names in tables, with underscores: "
        "`--train.batch-size 32` is `batch_size = 32` under `[train]`.",
        "",
    ]
    groups = [
        ("The run", RunConfig, ""),
        ("Data", DataConfig, "data."),
        ("Model", ModelConfig, "model."),
        ("Training", TrainConfig, "train."),
    ]
    for title, config, prefix in [*groups, ("Sampling (`gptloom sample`)", SampleConfig, "")]:
        lines += [f"## {title}", "", str(config.__doc__).splitlines()[0], "", *table(config, prefix)]
    lines += ["## Recipes", "", "A setting that a recipe does not set has the default above.", ""]
    for name in recipe_names():
        lines += [f"### {name}", ""]
        for group, values in read_recipe(name).items():
            if isinstance(values, dict):
                lines += [f"- {group}: " + ", ".join(f"`{key} = {value}`" for key, value in values.items())]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
