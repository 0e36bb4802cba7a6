"""Measure the loss of the default recipe on tiny Shakespeare after its minute: the README's first figure.

    python benchmarks/tiny_recipe.py [SEEDS]

Each seed is a run of the command line for one minute. The loss is that of the best checkpoint on the whole validation
split.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    seeds = range(1337, 1337 + int(sys.argv[1] if len(sys.argv) > 1 else 3))
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            command = [
                sys.executable,
                "-m",
                "gptloom",
                "train",
                "shakespeare",
                "--run",
                str(Path(folder) / str(seed)),
                "--seed",
                str(seed),
                "--json",
            ]
            result = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
            )
            losses.append(result["val_loss"])
            print(
                json.dumps(
                    {
                        "seed": seed,
                        **{
                            key: result[key]
                            for key in ("val_loss", "val_bpb", "steps", "tokens", "seconds", "parameters")
                        },
                    }
                )
            )
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    print(
        json.dumps(
            {
                "runs": len(losses),
                "val_loss_mean": round(statistics.mean(losses), 4),
                "val_loss_sd": round(spread, 4),
                "val_loss_max": max(losses),
            }
        )
    )


if __name__ == "__main__":
    main()
