"""`gptloom sample` and `gptloom eval`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from gptloom.cli.flags import (
    NUMBERS,
    RUN,
    TEXTS,
    Parser,
    add_flags,
    add_model_flags,
    given,
    loading,
    make_parser,
    read_prompt,
)
from gptloom.config.load import parse
from gptloom.config.run import DataConfig, SampleConfig, Weights
from gptloom.errors import ConfigError, ExitCode
from gptloom.files import to_json

if TYPE_CHECKING:
    from gptloom.bundle import Bundle, Written
    from gptloom.data.tokens import Tokens
    from gptloom.generate.batch import Token

SAMPLING = """\
A token is chosen in this order: repetition penalty, temperature, top-k, top-p, min-p; then one draw.
Each text depends only on the seed and its number. It does not depend on the other texts.
p and rank are the model's, before all of these steps. The most likely token has rank 0.
A beam search draws nothing: stop strings end its texts, and the settings above do not apply to it.
A translation (encoder-decoder) is the most likely token at each place, unless --temperature, --top-k, --top-p,
--min-p or --samples asks for draws."""

# sample


def sample_command(words: list[str]) -> int:
    """Generate text with a trained model."""
    parser = make_parser("sample", "RUN", sample_command, epilog=SAMPLING)
    parser.add_argument("run", metavar="RUN", help=RUN)
    about = "the text to continue; - reads it from standard input (default: an empty prompt)"
    parser.add_argument("--prompt", default="", help=about)
    about = "print each token with its probability, its rank and the N most likely tokens [3]"
    parser.add_argument("--show-probabilities", metavar="N", nargs="?", type=int, const=3, help=about)
    add_model_flags(parser)
    _add_weights_flag(parser, "int8 is faster for one text at a time on a CPU; `gptloom eval` measures its loss")
    add_flags(parser, SampleConfig)
    args = parser.parse(words)
    config = parse(SampleConfig, given(args, SampleConfig), where="the command line")
    if args.show_probabilities is not None and args.show_probabilities < 1:
        what, cure = f"needs at least 1 alternative, not {args.show_probabilities}", "try --show-probabilities 3"
        raise ConfigError(what, where="--show-probabilities", cure=cure)
    with loading():
        from gptloom.bundle import Bundle

    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint, weights=args.weights)
    prompt = read_prompt(args.prompt)
    if not bundle.task.causal:
        if unused := [f"--{name.replace('_', '-')}" for name in given(args, SampleConfig)]:
            what = f"an encoder fills in masks and draws no text, so {' and '.join(unused)} would do nothing"
            raise ConfigError(what, where="the command line", cure="leave it out")
        _fill_masks(bundle, prompt, args)
    else:
        _continue(bundle, prompt, config, args)
    return ExitCode.DONE


def _continue(bundle: Bundle, prompt: str, config: SampleConfig, args: argparse.Namespace) -> None:
    """Print continuations of the prompt; print a single text token by token."""
    from gptloom.bundle import Written

    translates, window = not bundle.task.continues, bundle.model.window
    # An encoding error must come before the prompt is printed.
    length = 0 if translates else len(bundle.prompt_ids(prompt, args.on_unknown))
    if window and not translates and length + config.tokens > window:
        about = f"the model sees {window} tokens at a time; the context moves as the text grows"
        print(f"note: {about}", file=sys.stderr)
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
        found = {"samples": [_as_dict(text, bundle) for text in texts], "tokens_per_second": round(rate, 1)}
        print(to_json(found))
    elif args.show_probabilities is not None:
        print("\n".join(line for text in texts for line in _probabilities(text, bundle.tokenizer.token_text)))
    elif live:
        print()
    else:
        print("\n---\n".join(text.text if translates else text.prompt + text.text for text in texts))


def _fill_masks(bundle: Bundle, text: str, args: argparse.Namespace) -> None:
    """Print the text with the encoder's predictions in place of the masks."""
    from gptloom.bundle import Written
    from gptloom.generate.task import MASK

    tokens, name = bundle.fill(text, args.on_unknown), bundle.tokenizer.token_text
    pieces = text.split(MASK)
    filled = "".join(piece + name(token.id) for piece, token in zip(pieces, tokens, strict=False)) + pieces[-1]
    if args.json:
        found = {"prompt": text, "text": filled, "tokens": [_token(token, name) for token in tokens]}
        print(to_json({"samples": [found]}))
        return
    print(filled)
    if args.show_probabilities is not None:
        print("\n".join(_probabilities(Written(text, filled, tokens), name)))


def _as_dict(text: Written, bundle: Bundle) -> dict[str, Any]:
    tokens = [_token(token, bundle.tokenizer.token_text) for token in text.tokens]
    found: dict[str, Any] = {"prompt": text.prompt, "text": text.text, "tokens": tokens}
    return found if text.score is None else found | {"score": text.score}


def _token(token: Token, name: Callable[[int], str]) -> dict[str, Any]:
    others = [{"id": one, "text": name(one), "logprob": round(logprob, 6)} for one, logprob in token.alternatives]
    found = {"id": token.id, "text": name(token.id), "logprob": round(token.logprob, 6)}
    return found | {"rank": token.rank, "alternatives": others}


def _probabilities(text: Written, name: Callable[[int], str]) -> list[str]:
    """A line for each token: the token, its probability, its rank, and the most likely tokens."""
    lines = [f"{'token':<12} {'p':>7} {'rank':>5}   most likely"]
    for token in text.tokens:
        others = "  ".join(f"{name(one)!r} {math.exp(logprob):.3f}" for one, logprob in token.alternatives)
        lines.append(f"{name(token.id)!r:<12} {math.exp(token.logprob):7.4f} {token.rank:5d}   {others}")
    return [*lines, ""]


# eval


def eval_command(words: list[str]) -> int:
    """Measure a model's loss on a text."""
    parser = make_parser("eval", "RUN", eval_command, epilog=NUMBERS)
    parser.add_argument("run", metavar="RUN", help=RUN)
    about = f"the text to measure: {TEXTS} (default: the validation split of the run)"
    parser.add_argument("--text", metavar="TEXT", action="append", help=about)
    parser.add_argument("--encoding", help="text encoding (default: UTF-8, else detected)")
    add_model_flags(parser)
    _add_weights_flag(parser, "int8 measures both and prints the difference")
    args = parser.parse(words)
    with loading():
        from gptloom.training.run_dir import validation_split

    if args.text is None:
        trained, tokens = validation_split(args.run, device=args.device, checkpoint=args.checkpoint)
    else:
        trained, tokens = _model_and_text(args)
    bundle = trained.with_weights(args.weights)
    score, exact = bundle.score_tokens(tokens), bundle.task.exact_match(bundle.model, tokens, bundle.tokenizer)
    values: dict[str, Any] = {"loss": score.loss, "perplexity": score.perplexity, "bpb": score.bpb}
    values |= {"tokens": score.tokens, "bytes": score.bytes}
    if exact is not None:
        values["exact_match"] = exact
    if bundle is not trained:
        whole = trained.score_tokens(tokens)
        values |= {"weights": args.weights, "float32_loss": whole.loss, "difference": score.loss - whole.loss}
    print(to_json(values) if args.json else "\n".join(_score_lines(values)))
    return ExitCode.DONE


def _model_and_text(args: argparse.Namespace) -> tuple[Bundle, Tokens]:
    """The model, and the tokens of the text of --text."""
    from gptloom.bundle import Bundle
    from gptloom.data.sources import open_corpus
    from gptloom.data.tokens import Tokens, prepare

    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint)
    config = DataConfig(encoding=args.encoding, on_unknown=args.on_unknown)
    corpus = open_corpus(args.text, config, pairs=bundle.task.pairs)
    store = prepare(corpus, bundle.tokenizer, config)
    for note in corpus.notes:
        print(f"note: {note}", file=sys.stderr)
    return bundle, Tokens(store.ids, store.document_starts.astype("int64"))


def _score_lines(values: dict[str, Any]) -> list[str]:
    bits = "" if values["bpb"] is None else f", {values['bpb']:.4f} bits per byte"
    size = f"({values['tokens']:,} tokens, {values['bytes']:,} bytes)"
    lines = [f"loss {values['loss']:.4f} nats per token, perplexity {values['perplexity']:.3f}{bits} {size}"]
    if "exact_match" in values:
        lines.append(f"{values['exact_match']:.2%} of the targets written to the letter")
    if "weights" in values:
        whole = f"the loss is {values['float32_loss']:.4f} (a difference of {values['difference']:+.5f})"
        lines.append(f"that was with {values['weights']} weights; with float32, as trained, {whole}")
    return lines


def _add_weights_flag(parser: Parser, about: str) -> None:
    """Add --weights, the number format of the weight matrices."""
    about = f"number format of the weight matrices; {about} [float32]"
    parser.add_argument("--weights", choices=get_args(Weights), default="float32", help=about)
