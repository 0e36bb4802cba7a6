"""Count the false alarms of `gptloom verify`: run it with different seeds on correct code.

    python benchmarks/verify_alarms.py [RUNS] [RECIPE ...]

Prints for each recipe: the runs, the runs in which all checks passed, seconds (median and maximum), and the largest
ratio of a deviation to its tolerance.
"""

import json
import statistics
import subprocess
import sys
import time


def once(recipe: str, seed: int) -> tuple[float, dict[str, object]]:
    """Run once; return the seconds and the result."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "gptloom", "verify", "--recipe", recipe, "--seed", str(seed), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return time.perf_counter() - start, json.loads(done.stdout)


def main(runs: int, recipes: list[str]) -> None:
    """Run and count."""
    for recipe in recipes:
        seconds, clean, nearest = [], 0, (0.0, "")
        for seed in range(runs):
            took, result = once(recipe, seed)
            seconds.append(took)
            clean += bool(result["passed"])
            for check in result["checks"]:
                if check["passed"] is False:
                    print(f"  {recipe}, seed {seed}: {check}", flush=True)
                if check["passed"] is not None and check["tolerance"]:
                    nearest = max(nearest, (check["deviation"] / check["tolerance"], check["name"]))
        times = f"{statistics.median(seconds):.0f} s (at most {max(seconds):.0f})"
        print(
            f"{recipe}: {clean} of {runs} runs without an alarm, {times}; "
            f"the nearest to its tolerance was {nearest[1]} at {nearest[0]:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else 20, words[1:] or ["tiny", "translate", "lstm"])
