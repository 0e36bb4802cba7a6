"""stub"""

from typing import Any


class PairBatches:
    tokens_per_epoch: int

    def __init__(self, tokens: Any, *, batch_size: int, seed: int, end_of_text: int) -> None: ...
    def batch(self, step: int) -> Any: ...


def pair_windows(tokens: Any, batch_size: int, end_of_text: int) -> Any: ...
