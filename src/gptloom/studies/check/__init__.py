"""`gptloom ladder check STEP FILE`: a learner's own classes against the plain reference, and what differs in words.

Their parameters are filled with the reference's weights, whatever they are called. If the outputs then differ, they are
compared with those of mutants (`check_mutants`), references with one known mistake: the mutant that a learner's class
equals names the mistake. What no mutant explains is probed: who sees whom, and what has which shape.

The learner's file is imported, which runs it, in this process and with this user's rights.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from gptloom.errors import InputError, nearest
from gptloom.reference import PLAIN
from gptloom.studies.check.exercises import EXERCISES
from gptloom.studies.check.judge import Finding, judge
from gptloom.studies.check.solution import SIZES, Failure, attempt, load, set_globals

__all__ = ["Finding", "Report", "check", "report_lines"]


@dataclass(frozen=True)
class Report:
    """The outcome for one file.

    Attributes:
        step: the ladder step.
        passed: whether nothing failed.
        findings: in the order in which they were found; passed ones say what is right, or remark on what may stay.
    """

    step: str
    passed: bool
    findings: list[Finding]


def check(step: str, path: Path) -> Report:
    """Hold a learner's file against a ladder step.

    Args:
        step: a step with something to write (`check_exercises.EXERCISES`).
        path: their Python file. It is imported: whatever it does at its top level is done, and what it prints goes to
            standard error.

    Raises:
        InputError: no such file, or no such step.
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
    """The report as text: a line for each finding, what to do below it, and a verdict."""
    lines = []
    for finding in report.findings:
        lines.append(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.what}  [{finding.name}]")
        if finding.hint:
            lines.append(f"      {finding.hint}")
    failed = sum(not finding.passed for finding in report.findings)
    verdict = "it is the reference's equal" if report.passed else f"{failed} thing{'s' if failed > 1 else ''} to mend"
    return [*lines, f"{report.step}: {verdict}"]
