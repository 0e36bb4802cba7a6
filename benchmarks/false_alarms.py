"""Count the false alarms of `gptloom compare` for two equal arms: the A/A test of its rule.

    python benchmarks/false_alarms.py [COMPARISONS] [FIRST SEED] [SEEDS]

Each of the 200 comparisons trains one tiny model (288 parameters, 20 steps, a text of numbers in words) twice with 5
seeds each; all seeds differ. Prints one JSON object: the number of verdicts that claim a difference, the number of 95 %
intervals that exclude 0 (about 5 % are expected, so the verdict's rule is stricter), and quantiles of the p-values.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from gptloom.config.run import DataConfig
from gptloom.devices import derive
from gptloom.studies.compare import Folder, Plan, open_materials, run_all
from gptloom.studies.compare.factors import Factor, plan_arms
from gptloom.studies.compare.summary import summarise

TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 8, "mlp_width": 8}
TRAIN = {"steps": 20, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "threads": 1, "eval_batch_size": 512}


def main() -> None:
    comparisons, first, seeds = (int(word) for word in (sys.argv[1:] + ["200", "1", "5"][len(sys.argv) - 1 :])[:3])
    decisions: Counter[str] = Counter()
    p_values, left_out, spread = [], 0, []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "numbers.txt"
        text.write_text(
            "\n".join(f"{tens}-{one} {other}" for tens in TENS for one in ONES for other in TENS), encoding="utf-8"
        )
        data = DataConfig(cache=str(folder / "cache")).model_dump()
        for number in range(comparisons):
            base = {
                "seed": derive(first, "false alarms", number),
                "device": "cpu",
                "data": data,
                "model": MODEL,
                "train": TRAIN,
            }
            arms = plan_arms([Factor("train.learning_rate", (1e-2, 1e-2))], "tiny", base)
            plan = Plan(arms, seeds, own_seeds=True)
            if not number:
                materials = open_materials([str(text)], arms)
            outcomes = run_all(plan, materials, Folder(folder / f"comparison-{number}"), [0.0, 0.0], lambda _line: None)
            result = summarise(plan, outcomes)["comparisons"][0]
            decisions[result["decision"]] += 1
            p_values.append(result["p"])
            left_out += result["interval"][0] > 0 or result["interval"][1] < 0
            spread.append(result["sd"])
            print(f"{number + 1} of {comparisons}: {result['verdict']}", file=sys.stderr, flush=True)
    alarms = decisions["better"] + decisions["worse"]
    thirds = Counter(min(2, int(3 * p)) for p in p_values)
    print(
        json.dumps(
            {
                "comparisons": comparisons,
                "seeds": seeds,
                "first_seed": first,
                "parameters": outcomes[0][0].parameters,
                "false_alarms": alarms,
                "share": alarms / comparisons,
                "intervals_that_leave_out_0": left_out,
                "p_values_by_third": [thirds[i] for i in range(3)],
                "median_sd_of_differences": sorted(spread)[len(spread) // 2],
                "seconds": round(time.perf_counter() - start),
            }
        )
    )


if __name__ == "__main__":
    main()
