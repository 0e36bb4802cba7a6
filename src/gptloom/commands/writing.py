"""`gptloom sample` and `gptloom eval`."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from gptloom.bundle import MASK, Bundle, Written
from gptloom.commands.prompting import read_prompt
from gptloom.config.run import DataConfig, SampleConfig
from gptloom.data.sources import open_corpus
from gptloom.data.splits import Tokens, prepare
from gptloom.errors import ExitCode
from gptloom.generate.batch import Token
from gptloom.generate.task import exact_match, reads_pairs
from gptloom.training.run import validation_split


def sample(args: argparse.Namespace, config: SampleConfig) -> int:
    """Write texts to standard output, as they grow where there is one."""
    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint, weights=args.weights)
    prompt = read_prompt(args.prompt)
    if bundle.model.config.architecture == "encoder":
        return _fill(bundle, prompt, args)
    translates, window = reads_pairs(bundle.model.config), bundle.model.window
    length = (
        0 if translates else len(bundle.prompt_ids(prompt, args.on_unknown))
    )  # a prompt that cannot be read is not printed either
    if window and not translates and length + config.tokens > window:
        print(
            f"note: the model sees {window} tokens at a time; the context slides along as the text grows",
            file=sys.stderr,
        )
    wants_details = args.json or args.show_probabilities is not None
    live = config.samples == 1 and config.beams == 1 and not wants_details
    if live and not translates:
        print(prompt, end="", flush=True)
    start = time.perf_counter()
    details = (args.show_probabilities or 3) if wants_details else None
    texts = list[Written]()
    if live:
        for piece in bundle.stream(prompt, config, on_unknown=args.on_unknown):
            print(piece.text, end="", flush=bool(piece.text))
    else:
        texts = bundle.write(prompt, config, on_unknown=args.on_unknown, details=details)
    rate = sum(len(text.tokens) for text in texts) / max(time.perf_counter() - start, 1e-9)
    if args.json:
        print(
            json.dumps(
                {"samples": [_as_dict(text, bundle) for text in texts], "tokens_per_second": round(rate, 1)},
                ensure_ascii=False,
            )
        )
    elif args.show_probabilities is not None:
        print("\n".join(line for text in texts for line in _probabilities(text, bundle.tokenizer.token_text)))
    elif live:
        print()
    else:
        print("\n---\n".join(text.text if translates else text.prompt + text.text for text in texts))
    return ExitCode.DONE


def _fill(bundle: Bundle, text: str, args: argparse.Namespace) -> int:
    """An encoder's guesses at the masks of a text."""
    tokens, name = bundle.fill(text, args.on_unknown), bundle.tokenizer.token_text
    pieces = text.split(MASK)
    filled = "".join(piece + name(token.id) for piece, token in zip(pieces, tokens, strict=False)) + pieces[-1]
    if args.json:
        print(
            json.dumps(
                {"samples": [{"prompt": text, "text": filled, "tokens": [_token(token, name) for token in tokens]}]},
                ensure_ascii=False,
            )
        )
    else:
        print(
            "\n".join(
                [
                    filled,
                    *(
                        _probabilities(Written(text, filled, tokens), name)
                        if args.show_probabilities is not None
                        else []
                    ),
                ]
            )
        )
    return ExitCode.DONE


def evaluate(args: argparse.Namespace) -> int:
    """Print loss, perplexity and bits per byte of a text."""
    trained, tokens = _what_to_measure(args)
    bundle = trained.with_weights(args.weights)
    score, exact = bundle.score_tokens(tokens), exact_match(bundle.model, tokens, bundle.tokenizer)
    whole = score if bundle is trained else trained.score_tokens(tokens)
    values: dict[str, Any] = {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bpb": score.bpb,
        "tokens": score.tokens,
        "bytes": score.bytes,
    }
    if exact is not None:
        values["exact_match"] = exact
    if bundle is not trained:
        values |= {"weights": args.weights, "float32_loss": whole.loss, "difference": score.loss - whole.loss}
    if args.json:
        print(json.dumps(values))
    else:
        bits = "" if score.bpb is None else f", {score.bpb:.4f} bits per byte"
        print(
            f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.3f}{bits} ({score.tokens:,} tokens, {score.bytes:,} bytes)"
        )
        if exact is not None:
            print(f"{exact:.2%} of the targets written to the letter")
        if bundle is not trained:
            print(
                f"that was with {args.weights} weights; with float32, as trained, the loss is {whole.loss:.4f} (a difference of {score.loss - whole.loss:+.5f})"
            )
    return ExitCode.DONE


def _what_to_measure(args: argparse.Namespace) -> tuple[Bundle, Tokens]:
    """The model, and the text that was given or else the run's own validation split."""
    if args.text is None:
        return validation_split(args.run, device=args.device, checkpoint=args.checkpoint)
    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint)
    config = DataConfig(encoding=args.encoding, on_unknown=args.on_unknown)
    corpus = open_corpus(args.text, config, pairs=reads_pairs(bundle.model.config))
    store = prepare(corpus, bundle.tokenizer, config)
    for note in corpus.notes:
        print(f"note: {note}", file=sys.stderr)
    return bundle, Tokens(store.ids, store.document_starts.astype("int64"))


def _as_dict(text: Written, bundle: Bundle) -> dict[str, Any]:
    name = bundle.tokenizer.token_text
    found: dict[str, Any] = {
        "prompt": text.prompt,
        "text": text.text,
        "tokens": [_token(token, name) for token in text.tokens],
    }
    return found if text.score is None else found | {"score": text.score}


def _token(token: Token, name: Callable[[int], str]) -> dict[str, Any]:
    alternatives = [{"id": one, "text": name(one), "logprob": round(logprob, 6)} for one, logprob in token.alternatives]
    return {
        "id": token.id,
        "text": name(token.id),
        "logprob": round(token.logprob, 6),
        "rank": token.rank,
        "alternatives": alternatives,
    }


def _probabilities(text: Written, name: Callable[[int], str]) -> list[str]:
    """A line a token: the token, its probability, its rank, and what else was likely."""
    lines = [f"{'token':<12} {'p':>7} {'rank':>5}   likeliest"]
    for token in text.tokens:
        others = "  ".join(f"{name(one)!r} {math.exp(logprob):.3f}" for one, logprob in token.alternatives)
        lines.append(f"{name(token.id)!r:<12} {math.exp(token.logprob):7.4f} {token.rank:5d}   {others}")
    return [*lines, ""]
