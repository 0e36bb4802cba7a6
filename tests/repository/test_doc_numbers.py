"""A number in prose that the code knows must be the code's number."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "gptloom"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS += sorted((ROOT / "examples").rglob("*.md"))
ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
WORDS = {word: number for number, word in enumerate(ONES, 1)}
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
VAGUE = "two dozen|a dozen|dozens of|a score of|a handful of"
NUMBER = rf"(\d[\d,]*|(?:{'|'.join(TENS)})(?:-(?:{'|'.join(WORDS)}))?|{'|'.join(WORDS)}|{VAGUE})"


def items(name, folder):
    """How many elements the tuple, list or dictionary `name` has, wherever in `folder` it is assigned."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == [name]:
                match node.value:
                    case ast.Dict(keys=elements) | ast.Tuple(elts=elements) | ast.List(elts=elements):
                        return len(elements)
    raise AssertionError(f"no {name} in {folder.relative_to(ROOT)}")


def files(pattern):
    """How many files below the root match; none means that the folder has moved."""
    count = len(list(ROOT.glob(pattern)))
    assert count, f"no file matches {pattern}"
    return count


def checks():
    # The folder's name narrows the search: `ladder check` has checks, too.
    (folder,) = [path for path in (SOURCE / "studies").iterdir() if path.name in ("verifying", "verify")]
    return items("CHECKS", folder)


def known_errors():
    return len(tomllib.loads((ROOT / "tools" / "known_errors.toml").read_text(encoding="utf-8"))["errors"])


FACTS = {
    # what a document calls it, after a number: how the code counts it
    r"checks\b|claims\b": checks,
    r"planted (?:bugs|mistakes)\b|bugs are planted\b": lambda: items("BUGS", ROOT / "tests"),
    r"lessons\b": lambda: files("src/gptloom/studies/**/[0-9][0-9]-*.toml"),
    r"recipes\b": lambda: files("src/gptloom/**/recipes/*.toml"),
    r"commands\b": lambda: items("COMMANDS", SOURCE),
    r"notebooks\b": lambda: files("notebooks/*.ipynb"),
    r"known errors\b": known_errors,
}
VERBS = {r"plants {}": r"planted (?:bugs|mistakes)\b|bugs are planted\b"}
"""Sentences where the number comes after the verb: the pattern, and the fact that it states."""


def value(text):
    """The number that digits or words state; None for "a dozen"."""
    text = text.lower().replace(",", "")
    if text.isdigit():
        return int(text)
    tens, _, ones = text.partition("-")
    if text in WORDS:
        return WORDS[text]
    return TENS[tens] + WORDS.get(ones, 0) if tens in TENS else None


def statements(text):
    """Every number that `text` states of something in `FACTS`, as (line, words, number, fact)."""
    text = re.sub(r"```text\n.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.S)
    for fact in FACTS:
        patterns = [rf"(?<![\w.,/-]){NUMBER} (?:{fact})"]
        patterns += [rf"\b{verb.format(NUMBER)}" for verb, stated in VERBS.items() if stated == fact]
        for pattern in patterns:
            for found in re.finditer(pattern, text, re.IGNORECASE):
                yield text.count("\n", 0, found.start()) + 1, found[0], value(found[1]), fact


@pytest.mark.parametrize("fact", FACTS)
def test_the_code_knows_the_number(fact):
    assert FACTS[fact]() > 1


def test_numbers_in_documents_are_those_of_the_code():
    wrong = []
    for path in DOCUMENTS:
        for line, words, number, fact in statements(path.read_text(encoding="utf-8")):
            # Small numbers name a part ("two recipes differ in ..."), not the whole.
            if (number is None or number > 5) and number != FACTS[fact]():
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {words!r}, but the code has {FACTS[fact]()}")
    if wrong:
        pytest.fail("numbers that the code contradicts\n  " + "\n  ".join(wrong), pytrace=False)


def test_a_repeated_run_is_not_said_to_be_nearer_than_machines_are():
    """Machines round differently: the measured distance of two of them is in the file of tolerances."""
    bands = tomllib.loads((SOURCE / "studies" / "reproduce" / "tolerances.toml").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    measured = re.search(r"(0\.\d+) apart at step (\d+)", bands["gpt-0.21M"]["why"])
    claim = re.search(r"within (0\.\d+) to step (\d+) on any machine", page)
    assert measured and claim and claim[2] == measured[2] and float(claim[1]) >= float(measured[1])
    assert [list(map(float, band)) for band in re.findall(r"on this machine; within ([\d.]+) to step (\d+)", page)] == [
        [bands["single-head"]["bands"][0][1], bands["single-head"]["bands"][1][0]]
    ]


def test_documents_say_that_only_checks_that_apply_are_run():
    for path in [*DOCUMENTS[:1], ROOT / "docs" / "guide.md"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "that apply" in line or not re.search(r"\d+ checks", line), line


@pytest.mark.parametrize(
    ("text", "number"),
    [("It runs 26 checks.", 26), ("Thirty lessons", 30), ("two dozen claims", None), ("twenty-six checks", 26)],
)
def test_a_stated_number_is_found(text, number):
    assert [found[2] for found in statements(text)] == [number]


def test_a_version_or_a_table_is_no_statement():
    assert not list(statements("Python 3.11 recipes; step-12 checks; 12 | checks"))
