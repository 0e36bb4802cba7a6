"""Every recipe and kept run comes to the losses and texts in values.json; to the bit is `make golden`'s business.

How far another processor or number of threads moves them was measured where values.json was made, by

    python tests/golden/golden.py --json a.json
    VARIABLE=VALUE python tests/golden/golden.py --json b.json [--threads 2]
    python tests/golden/compare.py a.json b.json

with two threads, ATEN_CPU_CAPABILITY=avx2 (MKL in oneDNN's place, narrower loops), ATEN_CPU_CAPABILITY=default,
ONEDNN_MAX_CPU_ISA=AVX2, and avx2 with MKL_CBWR=COMPATIBLE. Losses moved by up to 3e-7 of themselves; those of tiny,
whose rows of n-grams learn at full rate from however small a gradient, by 2e-7 at step 4 and then more and more, to
3e-6 at step 20. Log-probabilities moved by up to 2e-4 nats. No text changed. About ten times that is allowed here. A
learning rate that is larger by a thousandth moves the losses by 5e-5 to 2e-4.
"""

import json

import pytest

import golden

STORED = json.loads((golden.HERE / "values.json").read_text(encoding="utf-8"))["values"]
NATS = 2e-3
"""Allowed between a written token's log-probabilities; nearer than twice that, either of two is right."""


def close(loss, step=golden.STEPS):
    """Within rounding, which training makes larger from step to step."""
    return pytest.approx(loss, rel=2e-6 * step)


def check_written(found, stored):
    """The same validation loss and the same text, up to where a tie makes another one as good."""
    assert found["evaluation"] == close(stored["evaluation"])
    margins = [first - second for first, second in zip(stored["logprobs"], stored["runners_up"], strict=True)]
    sure = next((n for n, margin in enumerate(margins) if margin < 2 * NATS), None)
    assert found["tokens"][:sure] == stored["tokens"][:sure]
    assert found["logprobs"][:sure] == pytest.approx(stored["logprobs"][:sure], abs=NATS)
    assert found["text"][:sure] == stored["text"][:sure]
    if "generated" in stored:
        end = sure and len(golden.PROMPT) + sure
        assert found["generated"][:end] == stored["generated"][:end]


def check(found, stored):
    assert len(found["losses"]) == len(stored["losses"]) == golden.STEPS
    for step, (loss, before) in enumerate(zip(found["losses"], stored["losses"], strict=True), 1):
        assert loss == close(before, step), f"step {step}"
    check_written(found, stored)
    if "before" in stored:
        check_written(found["before"], stored["before"])


@pytest.mark.parametrize("name", golden.NAMES)
def test_losses_and_texts_are_what_they_were_on_both_paths(name):
    fast, reference = (golden.compute(name, path) for path in golden.PATHS)
    check(fast, STORED[name]["fast"])
    check(reference, STORED[name]["reference"])
    check(fast, reference)
    # Where there is a fast path, another order of sums shows in the last bits; so the hooks do keep these off it.
    assert (fast["weights"] != reference["weights"]) == (name in ("encoder", "gpt2", "tiny", *golden.KEPT))


def test_every_recipe_is_measured():
    (line,) = [line for line in golden.command("train", "--help").splitlines() if line.startswith("recipes: ")]
    assert line.removeprefix("recipes: ").split(", ") == sorted(golden.RECIPES)
    assert set(STORED) == set(golden.NAMES)


def test_a_changed_value_is_found():
    import compare

    before = {"tiny": {"fast": {"losses": [1.0, 2.0], "text": "a"}, "reference": {"losses": [1.0, 2.0], "text": "a"}}}
    after = json.loads(json.dumps(before))
    assert compare.table(before, after)[1]
    after["tiny"]["reference"] = {"losses": [1.0, 2.0 + 2**-50], "text": "b"}
    lines, same = compare.table(before, after)
    assert not same and lines[0].endswith("identical") and "losses by 4.4e-16, text changed" in lines[1]
    assert not compare.table(before, {})[1]
