"""CONTRIBUTING.md names real places, and docs/adr lists its pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_table_of_places_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", text)
    assert len(named) >= 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_index_of_decisions_lists_every_page():
    folder = ROOT / "docs" / "adr"
    pages = sorted(path.name for path in folder.glob("0*.md"))
    assert re.findall(r"\((\d{4}[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8")) == pages


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80
