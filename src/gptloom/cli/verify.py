"""`gptloom verify`: run the checks, print a line for each, and report whether all passed."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gptloom.cli.flags import RUN, add_checkpoint_flags, loading, make_parser
from gptloom.config.load import recipe_names
from gptloom.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from gptloom.studies.verify import Finding

CHECKING = """\
Each line names a claim, says whether it holds, how far its two sides differ, and how far they may differ.
It ends with what a failure means. The tolerances are measured on this model: they are how far its numbers
move when its weights are moved by 32 roundings of float32 (2**-24 each). Most checks draw weights so that
every part of the model counts; the weights of a run are checked too. Without RUN, a fresh model of --recipe
is checked, on tiny Shakespeare if it was downloaded before, else on a made-up text. Nothing is written into
the run. The exit code is 0 if no check failed and 1 if one did."""


def verify_command(words: list[str]) -> int:
    """Check on this machine that the numbers of your model can be trusted."""
    epilog = f"recipes: {', '.join(recipe_names())}\n\n{CHECKING}"
    parser = make_parser("verify", "[RUN]", verify_command, epilog=epilog)
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help=f"{RUN} (default: a fresh model of --recipe)")
    about = "without RUN: whose model to check (default: tiny on a CPU, baby on an accelerator)"
    parser.add_argument("--recipe", metavar="NAME", help=about)
    parser.add_argument("--checks", metavar="NAME,...", help="only these checks (default: all that apply)")
    add_checkpoint_flags(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=1337, help="seed of weights and batches [1337]")
    args = parser.parse(words)
    if args.run is not None and args.recipe is not None:
        raise ConfigError("a run has its own recipe", where="--recipe", cure="leave out RUN or --recipe")
    if not 0 <= args.seed < 2**63:
        raise ConfigError(f"{args.seed} is not between 0 and 2**63 - 1", where="--seed", cure="try --seed 1337")
    with loading():
        from gptloom.devices import autocast, pick_precision
        from gptloom.fast.train import TrainingPass
        from gptloom.model.loss import Objective
        from gptloom.studies.verify import chosen, passed, verify
        from gptloom.studies.verify.open import open_recipe, open_run

    start = time.perf_counter()
    checks = chosen(None if args.checks is None else [name.strip() for name in args.checks.split(",") if name.strip()])
    if args.run is not None:
        subject = open_run(args.run, device=args.device, checkpoint=args.checkpoint, seed=args.seed)
    else:
        subject = open_recipe(args.recipe, {"device": args.device}, seed=args.seed)
    for note in subject.notes:
        print(f"note: {note}", file=sys.stderr)
    train = subject.config.train
    context = partial(autocast, subject.device, pick_precision(train.precision, subject.device))
    passes = TrainingPass(Objective.from_config(subject.exact, train), subject.exact.zero_grad, context)
    passes.check([part.clamp(min=0) for part in subject.batch()])
    print(f"note: passes: {passes.describe()}", file=sys.stderr)
    findings = []
    for finding in verify(subject, checks):
        findings.append(finding)
        if not args.json:
            print(_line(finding), flush=True)
    good = passed(findings)
    if args.json:
        more = {"subject": subject.name, "device": str(subject.device), "seed": subject.seed, "notes": subject.notes}
        more |= {"path": passes.path, "why": passes.why, "deviation": passes.deviation}
        print(json.dumps({"passed": good, "checks": [asdict(one) for one in findings], **more}, ensure_ascii=False))
    else:
        print(f"{subject.name}: {_summary(findings)} ({time.perf_counter() - start:.0f} s)")
    return ExitCode.DONE if good else ExitCode.FAILED


def _summary(findings: list[Finding]) -> str:
    """Count the checks that passed, failed, and were not possible."""
    counts = Counter(one.passed for one in findings)
    words = {True: "passed", False: "failed", None: "not possible here"}
    return ", ".join(f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind]) or "nothing to check"


def _line(finding: Finding) -> str:
    """Format one finding as text."""
    about = f"{finding.name:<16}{finding.claim:<50}"
    if finding.passed is None:
        return f"-     {about} not possible here: {finding.note}"
    mark = "ok  " if finding.passed else "FAIL"
    deviation = "none" if finding.deviation is None else f"{finding.deviation:.1e}"
    text = f"{mark}  {about} {deviation:>8} of {finding.tolerance:7.1e}   if not: {finding.meaning}"
    return f"{text}\n      {finding.note}" if finding.note else text
