"""How much faster the production model trains than `model.plain`, the lecture's way, at the lecture's size (209,729 parameters).

Both run in this process, in turn, with the same arithmetic: batch 16, context 32, width 64, 4 heads, 4 layers, AdamW, no dropout.
Prints one JSON object with the medians and the ratio's median, minimum and maximum over the pairs.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch

from gptloom.config import ModelConfig, TrainConfig
from gptloom.model.decoder import Decoder
from gptloom.model.objective import Objective
from gptloom.model.plain import PlainGPT
from gptloom.training.optim import FlatAdamW

VOCABULARY, BLOCK, WIDTH, HEADS, LAYERS, BATCH = 65, 32, 64, 4, 4, 16


def milliseconds(action: Callable[[], None], times: int) -> float:
    """Mean duration of `times` calls, after one that does not count."""
    action()
    start = time.perf_counter()
    for _ in range(times):
        action()
    return 1000 * (time.perf_counter() - start) / times


def compare(plain: Callable[[], None], ours: Callable[[], None], *, pairs: int, times: int) -> dict[str, float]:
    """Both in turn, `pairs` times."""
    found = [(milliseconds(plain, times), milliseconds(ours, times)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in found)
    return {
        "plain_ms": round(statistics.median(a for a, _ in found), 3),
        "ours_ms": round(statistics.median(b for _, b in found), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(ratios[0], 2),
        "ratio_max": round(ratios[-1], 2),
    }


def main() -> None:
    torch.manual_seed(1337)
    shape = {"vocab_size": VOCABULARY, "block_size": BLOCK, "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
    lecture = ModelConfig(**shape, mlp="relu", bias="not-qkv", head_bias=True, score_scale="embedding", init="pytorch")
    model, plain = Decoder(lecture), PlainGPT(VOCABULARY, BLOCK, WIDTH, HEADS, LAYERS, scale=WIDTH**-0.5)
    assert model.parameter_count() == sum(p.numel() for p in plain.parameters()) == 209_729
    inputs, targets = torch.randint(VOCABULARY, (2, BATCH, BLOCK)).unbind()
    objective, ours = Objective(model), FlatAdamW(model, TrainConfig(learning_rate=1e-3, beta2=0.999, weight_decay=0.01))
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-3)

    def our_step() -> None:
        ours.zero_grad()
        nats, count = objective(inputs, targets)
        (nats / count).backward()
        ours.step()

    def plain_step() -> None:
        loss = plain.loss(inputs, targets)
        theirs.zero_grad(set_to_none=True)
        loss.backward()
        theirs.step()

    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "training step": compare(plain_step, our_step, pairs=15, times=20)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
