"""`gptloom verify`: run the checks, print a line each, and say whether all passed."""

import argparse
import json
import sys
import time
from dataclasses import asdict

from gptloom.errors import ExitCode
from gptloom.fast.train import TrainingPass
from gptloom.model.loss import Objective
from gptloom.studies.verify import Finding, chosen, passed, verify
from gptloom.studies.verify.open import open_recipe, open_run


def verify_model(args: argparse.Namespace) -> int:
    """Print the findings as they come, or one object of all."""
    start = time.perf_counter()
    checks = chosen(None if args.checks is None else [name.strip() for name in args.checks.split(",") if name.strip()])
    if args.run is not None:
        subject = open_run(args.run, device=args.device, checkpoint=args.checkpoint, seed=args.seed)
    else:
        subject = open_recipe(args.recipe, {"device": args.device}, seed=args.seed)
    for note in subject.notes:
        print(f"note: {note}", file=sys.stderr)
    passes = TrainingPass(Objective(subject.exact), subject.exact.zero_grad)
    passes.check([part.clamp(min=0) for part in subject.batch()])
    print(f"note: passes: {passes.describe()}", file=sys.stderr)
    findings = []
    for finding in verify(subject, checks):
        findings.append(finding)
        if not args.json:
            print(line(finding), flush=True)
    good = passed(findings)
    if args.json:
        about = {"subject": subject.name, "device": str(subject.device), "seed": subject.seed, "notes": subject.notes}
        about |= {"path": passes.path, "why": passes.why, "deviation": passes.deviation}
        print(json.dumps({"passed": good, "checks": [asdict(one) for one in findings], **about}, ensure_ascii=False))
    else:
        counts = [sum(one.passed is kind for one in findings) for kind in (True, False, None)]
        found = ", ".join(
            f"{count} {word}"
            for count, word in zip(counts, ("passed", "failed", "not possible here"), strict=True)
            if count
        )
        print(f"{subject.name}: {found or 'nothing to check'} ({time.perf_counter() - start:.0f} s)")
    return ExitCode.DONE if good else ExitCode.FAILED


def line(finding: Finding) -> str:
    """A finding as a person reads it."""
    if finding.passed is None:
        return f"-     {finding.name:<16}{finding.claim:<50} not possible here: {finding.note}"
    mark, deviation = (
        "ok  " if finding.passed else "FAIL",
        "none" if finding.deviation is None else f"{finding.deviation:.1e}",
    )
    text = f"{mark}  {finding.name:<16}{finding.claim:<50} {deviation:>8} of {finding.tolerance:7.1e}   if not: {finding.meaning}"
    return f"{text}\n      {finding.note}" if finding.note else text
