"""Time a training step of the tiny recipe next to other programs, with and without the limit on OpenMP's spinning.

GNU OpenMP reads GOMP_SPINCOUNT when torch is first imported, so each measurement runs in a separate process. The two
settings alternate, five times for each neighbour: none, a busy loop, and another training with the same setting. Prints
milliseconds per step: median, minimum and maximum.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import peers

STEP = "import time, torch" + peers.TINY_STEP  # torch is imported before gptloom, so that only `setting` counts

SETTINGS: dict[str, dict[str, str]] = {"without the limit": {}, "with it": {"GOMP_SPINCOUNT": "2000"}}
NEIGHBOURS = {"none": None, "a busy loop": "while True: pass", "another training": STEP.replace("< 3.0", "< 60.0")}


def milliseconds(setting: dict[str, str], neighbour: str | None) -> float:
    """The mean step time of a process next to its neighbour.

    The process imports torch before gptloom, so only `setting` counts.
    """
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"} | setting
    beside = (
        None
        if neighbour is None
        else subprocess.Popen([sys.executable, "-c", neighbour], env=environment, stdout=subprocess.DEVNULL)
    )
    try:
        time.sleep(3.0 if beside else 0.0)  # the neighbour also imports torch
        return float(
            subprocess.run(
                [sys.executable, "-c", STEP], env=environment, check=True, capture_output=True, text=True
            ).stdout
        )
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()


def main() -> None:
    for name, neighbour in NEIGHBOURS.items():
        found: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
        for _ in range(5):
            for setting, environment in SETTINGS.items():
                found[setting].append(milliseconds(environment, neighbour))
        figures = {
            setting: [round(f(times), 1) for f in (statistics.median, min, max)] for setting, times in found.items()
        }
        print(json.dumps({"neighbour": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
