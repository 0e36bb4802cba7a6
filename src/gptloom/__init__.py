"""gptloom: train GPTs from scratch on any text, sample from them, and verify the results.

    import gptloom

    result = gptloom.train("shakespeare", minutes=1)
    print(gptloom.load(result.run).generate("ROMEO:", tokens=300))

Large packages such as torch are imported at first use.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptloom.api import load, train
    from gptloom.model.transformer import Decoder as GPT

    __version__: str

# GNU OpenMP's threads spin while they wait for each other. If another program uses one of the cores, each of a step's
# hundreds of waits can last a time slice, and a step takes many times as long. benchmarks/busy_machine.py measures
# this, and the cost of this limit on an idle machine. OpenMP reads the variable when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__all__ = ["GPT", "load", "train"]


def __dir__() -> list[str]:
    """List the public names, which `__getattr__` loads."""
    return sorted([*globals(), *__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that `import gptloom` does not import torch."""
    if name in ("load", "train"):
        from gptloom import api

        return getattr(api, name)
    if name == "GPT":
        from gptloom.model.transformer import Decoder

        return Decoder
    if name == "__version__":
        from importlib import metadata

        return metadata.version("gptloom")
    raise AttributeError(f"module 'gptloom' has no attribute {name!r}")
