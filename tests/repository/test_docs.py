"""The documents agree with the code."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import torch

from gptloom.cli.main import COMMANDS
from gptloom.config.base import field_names
from gptloom.config.run import LadderConfig, RunConfig, SampleConfig
from gptloom.model.build import build_model
from gptloom.studies.check.exercises import EXERCISES
from gptloom.studies.ladder.lessons import configure_lesson, find_lesson, read_lessons
from gptloom.studies.ladder.show import ABOUT
from gptloom.studies.reproduce.published import published

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_FLAGS = {
    "--run",
    "--config",
    "--recipe",
    "--json",
    "--debug",
    "--help",
    "--version",
    "--checkpoint",
    "--discard-later",
    "--prompt",
    "--show-probabilities",
    "--text",
}
STUDY_FLAGS = {
    "--reproduce",
    "--example",
    "--seeds",
    "--plan",
    "--claim",
    "--together",
    "--show",
    "--layer",
    "--head",
    "--top",
    "--out",
    "--n-head",
    "--mlp",
}
SCRIPT_FLAGS = {"--base", "--nanogpt", "--quick", "--rounds"}
COST_FLAGS = {
    "--only",
    "--largest",
    "--tokens",
    "--flops",
    "--hours",
    "--budget",
    "--devices",
    "--mfu",
    "--price-per-hour",
    "--text-tokens",
}
SHORT_FLAGS = {
    "--steps",
    "--minutes",
    "--epochs",
    "--tokenizer",
    "--encoding",
    "--on-unknown",
    "--text-field",
    "--weights",
}


def test_the_settings_page_is_the_fields():
    page = runpy.run_path(str(ROOT / "tools" / "settings_table.py"))["page"]
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page(), "run: python tools/settings_table.py"


@pytest.fixture
def lessons(monkeypatch):
    """The generator of the lessons' pages."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return runpy.run_path(str(ROOT / "tools" / "lesson_pages.py"))


def test_the_lessons_are_what_the_steps_the_code_and_the_figures_make(lessons):
    made = lessons["pages"]()
    stored = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "lessons").glob("*.md")}
    assert stored.keys() == made.keys()
    for name, text in made.items():
        assert stored[name] == text, f"{name}: run: python tools/lesson_pages.py"


def test_every_step_has_a_page_with_its_figures_its_exercise_and_a_notebook(lessons):
    steps = json.loads(lessons["MEASURED"].read_text(encoding="utf-8"))["steps"]
    assert [step["name"] for step in steps] == list(read_lessons()), "the ladder was climbed as a whole"
    assert sorted(name for names in lessons["NOTEBOOKS"].values() for name in names) == sorted(
        [*read_lessons(), *ABOUT]
    )
    for step in steps:
        page = (ROOT / "docs" / "lessons" / lessons["file_names"]()[step["name"]]).read_text(encoding="utf-8")
        assert f"{step['val_loss']:.4f}" in page and (f"gptloom ladder check {step['name']} " in page) == (
            step["name"] in EXERCISES
        )
    for path in (ROOT / "docs" / "lessons").glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", path.read_text(encoding="utf-8")):
            assert (path.parent / "".join(link)).is_file(), f"{path.name}: {link}"


def test_a_sentence_about_a_result_is_the_one_for_its_figure(lessons):
    measured = lessons["read_measured"](lessons["MEASURED"])
    assert measured.seeds < 3, "with three seeds a page may show standard deviations"
    for name, file in lessons["file_names"]().items():
        page = (ROOT / "docs" / "lessons" / file).read_text(encoding="utf-8")
        found = {outcome for outcome, text in read_lessons()[name].outcomes.items() if text in page}
        verdict = measured.verdicts.get(name)
        same_text = {
            one for one, text in read_lessons()[name].outcomes.items() if verdict and text == verdict.explanation
        }
        assert found == same_text and "±" not in page, name
        # The page says first how far its figures can be trusted, and what the counted steps have read.
        assert page.index("What these figures can show") < page.index("## The idea")
        assert f"{measured.tokens:,} training tokens for each trained step" in page
        assert f"whole training split, {measured.counted:,} tokens" in page


def test_the_known_errors_are_those_of_the_published_list(lessons):
    errors = lessons["read_errors"]()
    assert [error["text"] for error in errors] == published()["known_errors_in_the_documents"]
    for error in errors:
        assert error["explanation"].strip() and error["cost"].strip() and error.get("step", "scale") in read_lessons()


def test_what_the_known_errors_state_is_so(lessons):
    page = (ROOT / "docs" / "lessons" / lessons["ERROR_PAGE"]).read_text(encoding="utf-8")
    assert page.count("**What it costs.**") == len(lessons["read_errors"]()) >= 17
    for width in (5, 64):
        x = torch.randn(4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        share = 1 - (x.var(1, correction=0) / x.var(1)).sqrt().mean().item()
        assert f"{share:.1%}".replace("%", " %") in page
    lecture = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
    scale = configure_lesson(find_lesson("scale"), tokens=1).model
    count = build_model(scale.model_copy(update=lecture)).parameter_count()
    assert f"{count / 1e6:.1f} million" in page and f"by a factor of {count / 300_000:.0f}" in page
    assert f"{12 * 96 * 1248**2 / 1e9 + 50_257 * 1248 / 1e9:.1f} billion" in page
    with pytest.raises(IndexError):
        torch.zeros(4, 8, 8)[0][8][4]
    with pytest.raises(IndexError):
        torch.nn.Embedding(65, 16, padding_idx=0)(torch.tensor([65]))


def test_every_command_and_flag_that_a_page_names_exists():
    keys = [key for config in (RunConfig, SampleConfig, LadderConfig) for key in field_names(config)]
    flags = (
        {"--" + key.replace("_", "-") for key in keys}
        | OTHER_FLAGS
        | STUDY_FLAGS
        | SHORT_FLAGS
        | SCRIPT_FLAGS
        | COST_FLAGS
    )
    assert len(PAGES) > 40
    offenders = []
    for page in PAGES:
        # Texts of models may contain anything.
        text = re.sub(r"```text\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
        commands = re.findall(r"`gptloom ([a-z]+)", text) + re.findall(r"gptloom ([a-z]+)", shell)
        offenders += [f"{page.name}: gptloom {command}" for command in commands if command not in COMMANDS]
        named = re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z\d]", text)
        offenders += [f"{page.name}: {flag}" for flag in named if flag not in flags]
    assert offenders == []


def test_the_map_in_the_architecture_page_names_real_places():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = text[text.index("| layer |") : text.index("## The seams")]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", house)
    assert len(named) > 30
    for name in named:
        assert list((ROOT / "src" / "gptloom").rglob(name.rstrip("/"))), name


def test_constraints_pin_what_the_project_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        re.split("==", line)[0].replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {
        re.split(r"[\[<>=]", need)[0]
        for need in [
            *project["dependencies"],
            *(n for extra in project["optional-dependencies"].values() for n in extra),
        ]
    }
    assert wanted - {"gptloom"} == pinned
