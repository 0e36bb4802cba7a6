"""The documents say what the code does."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from gptloom.cli import COMMANDS
from gptloom.config import LadderConfig, RunConfig, SampleConfig
from gptloom.settings import field_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_FLAGS = {"--run", "--config", "--recipe", "--json", "--debug", "--help", "--version", "--checkpoint", "--prompt", "--show-probabilities", "--text"}
STUDY_FLAGS = {"--reproduce", "--example", "--seeds", "--plan", "--claim", "--together", "--show", "--layer", "--head", "--top", "--out"}
SHORT_FLAGS = {"--steps", "--minutes", "--epochs", "--tokenizer", "--encoding", "--on-unknown", "--text-field"}


def test_the_settings_page_is_the_fields():
    page = runpy.run_path(str(ROOT / "tools" / "settings_table.py"))["page"]
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page(), "run: python tools/settings_table.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_and_flag_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    flags = (
        {"--" + key.replace("_", "-") for config in (RunConfig, SampleConfig, LadderConfig) for key in field_names(config)}
        | OTHER_FLAGS
        | STUDY_FLAGS
        | SHORT_FLAGS
    )
    code = re.findall(r"`gptloom ([a-z]+)", text) + [
        word for block in re.findall(r"```sh\n(.*?)```", text, re.S) for word in re.findall(r"gptloom ([a-z]+)", block)
    ]
    assert set(code) <= COMMANDS.keys()
    for line in text.splitlines():
        for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z\d]", line):
            assert flag in flags, f"{page.name}: {flag}"


def test_the_map_in_the_architecture_page_names_real_places():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = text[text.index("| floor |") : text.index("## The seams")]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", house)
    assert len(named) > 30
    for name in named:
        assert list((ROOT / "src" / "gptloom").rglob(name.rstrip("/"))), name


def test_constraints_pin_what_the_project_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {re.split("==", line)[0].replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = {re.split(r"[\[<>=]", need)[0] for need in [*project["dependencies"], *(n for extra in project["optional-dependencies"].values() for n in extra)]}
    assert wanted - {"gptloom"} == pinned
