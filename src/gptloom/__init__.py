"""gptloom: train GPTs from scratch on any text, write with them, and trust the numbers.

    import gptloom

    result = gptloom.train("shakespeare", minutes=2)
    print(gptloom.load(result.run).generate("ROMEO:", tokens=300))

Nothing heavy is imported before it is used.
"""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptloom.api import load, train
    from gptloom.model.decoder import Decoder as GPT

__all__ = ["GPT", "load", "train"]
__version__ = metadata.version("gptloom")


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that `import gptloom` does not import torch."""
    if name in ("load", "train"):
        from gptloom import api

        return getattr(api, name)
    if name == "GPT":
        from gptloom.model.decoder import Decoder

        return Decoder
    raise AttributeError(f"module 'gptloom' has no attribute {name!r}")
