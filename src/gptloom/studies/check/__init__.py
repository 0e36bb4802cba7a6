"""`gptloom ladder check STEP FILE` compares a learner's classes with the plain reference and names the mistakes.

The reference's weights are copied into the learner's parameters, regardless of their names. If the outputs still
differ, they are compared with those of mutants (`mutants.py`), which are references with one known mistake. An equal
mutant names the mistake. Other differences are probed: the check tests the shapes, and which positions depend on which.

The learner's file is imported, and so it runs in this process with this user's rights.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from gptloom.errors import InputError, nearest
from gptloom.reference.build import PLAIN
from gptloom.studies.check.exercises import EXERCISES, SIZES, Failure, attempt, load, set_globals
from gptloom.studies.check.judge import Finding, judge

__all__ = ["Finding", "Report", "check", "report_lines"]


@dataclass(frozen=True)
class Report:
    """The result for one file.

    Attributes:
        step: the ladder step.
        passed: whether no finding failed.
        findings: all findings, in order. A passed finding confirms something, or names a mistake that is allowed.
    """

    step: str
    passed: bool
    findings: list[Finding]


def check(step: str, path: Path) -> Report:
    """Check a learner's file for a ladder step.

    Args:
        step: a step with an exercise (`exercises.EXERCISES`).
        path: the learner's Python file. It is imported, so its top-level code runs. Its output goes to standard error.

    Raises:
        InputError: the file or the step does not exist, or the step has no exercise.
    """
    path = Path(path).resolve()
    if step not in EXERCISES:
        cause = "has no exercise: nothing new is written there" if step in PLAIN else "is unknown"
        cure = "" if step in PLAIN else nearest(step, EXERCISES)
        raise InputError(f"step {step!r} {cause}", where="ladder check", cure=cure or f"one of: {', '.join(EXERCISES)}")
    if not path.is_file():
        raise InputError("no such file", where=str(path), cure="give the Python file that holds " + _wanted(step))
    with contextlib.redirect_stdout(sys.stderr):
        module = attempt(lambda: load(path), path)
        if isinstance(module, Failure):
            findings = [
                Finding(
                    "import-error", False, f"the file cannot be imported: {module.line}", f"try: python {path.name}"
                )
            ]
        else:
            findings = []
            for exercise in EXERCISES[step]:
                set_globals(module, SIZES | exercise.values())
                findings += judge(exercise, module, path)
    return Report(step, all(finding.passed for finding in findings), findings)


def _wanted(step: str) -> str:
    return " and ".join(exercise.usage for exercise in EXERCISES[step])


def report_lines(report: Report) -> list[str]:
    """The report as lines of text: each finding with its hint, and a verdict."""
    lines = []
    for finding in report.findings:
        lines.append(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.what}  [{finding.name}]")
        if finding.hint:
            lines.append(f"      {finding.hint}")
    failed = sum(not finding.passed for finding in report.findings)
    verdict = "it equals the reference" if report.passed else f"{failed} thing{'s' if failed > 1 else ''} to correct"
    return [*lines, f"{report.step}: {verdict}"]
