"""A separate process that prepares one text, as a run does, and prints the time and the peak memory."""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from gptloom.config.run import DataConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import make_tokenizer
from gptloom.data.tokens import prepare
from gptloom.devices import peak_memory
from gptloom.errors import GptloomError

PIECE = 1 << 20


def main(text: str, settings: str) -> None:
    """Print the measurements of a text as JSON; print {"error": line} if it cannot be prepared."""
    config = DataConfig.model_validate(json.loads(settings))
    try:
        print(json.dumps(measure(Path(text), config)))
    except GptloomError as error:
        print(json.dumps({"error": error.line()}))


def measure(text: Path, config: DataConfig) -> dict[str, float | int | None]:
    """Seconds of each part, and sizes in bytes; `limit` is the time to only read, decode and hash the file."""
    marks = [time.perf_counter()]

    def lap() -> float:
        marks.append(time.perf_counter())
        return marks[-1] - marks[-2]

    digest = hashlib.sha256()
    with text.open(encoding="utf-8") as file:
        while piece := file.read(PIECE):
            digest.update(piece.encode())
    limit = lap()
    corpus = open_corpus([str(text)], config)
    _ = corpus.scan
    scan = lap()
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    learn = lap()
    store = prepare(corpus, tokenizer, config)
    encode = lap()
    memory = peak_memory(torch.device("cpu"))
    return {
        "bytes": corpus.bytes,
        "tokens": len(store.ids),
        "limit": limit,
        "scan": scan,
        "learn": learn,
        "encode": encode,
        "peak_memory": memory,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
