"""The command line. Each command imports what it needs inside itself, so that `--help` never imports torch."""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptloom.config import RunConfig, SampleConfig
from gptloom.errors import ConfigError, ExitCode, GptloomError, MachineError, nearest
from gptloom.flags import Parser, add_flags, given
from gptloom.settings import SHORT, nest, parse, read_toml, recipe_names

TEXTS = "a file, a folder, a glob, - for standard input, or shakespeare; .jsonl, .csv and .tsv are read by field"
RUN = "a run folder, a checkpoint folder or a bundle"
NUMBERS = """\
Losses are nats per token: the mean of -ln p(next token); a uniform guess costs ln(vocabulary). bits per byte is the same loss
per UTF-8 byte of text, which compares across tokenizers. Perplexity is exp(loss). The validation loss is always that of the
whole validation split, in fixed windows; the one reported at the end is the best checkpoint's."""

SAMPLING = """\
A token is chosen in this order: repetition penalty, temperature, top-k, top-p, min-p; then one draw. A text depends on the seed
and its number, not on the others. p and rank are the model's own, before all of that; rank 0 is the token it held likeliest."""


def train_command(words: list[str]) -> int:
    """Train a GPT on your text."""
    parser = _parser("train", train_command, epilog=f"[in brackets: the value where the recipe sets none]\nrecipes: {', '.join(recipe_names())}\n\n{NUMBERS}")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=TEXTS)
    parser.add_argument("--run", metavar="DIR", type=Path, help="a new folder for the run (default: the next free one under runs/)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file of settings, such as another run's config.toml; flags go over it")
    parser.add_argument("--recipe", metavar="NAME", help="the settings to start from (default: tiny on a CPU, baby on an accelerator)")
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "model.vocab_size"))
    args = parser.parse(words)
    from gptloom.api import configure
    from gptloom.training.run import train

    file = {} if args.config is None else read_toml(args.config)
    where = "the command line" if args.config is None else f"{args.config} and the command line"
    config = configure(args.recipe, file, nest(given(args, RunConfig, skip=("recipe",))), where=where)
    return _finish(train(args.texts, config, run=args.run), args.json)


def resume_command(words: list[str]) -> int:
    """Continue a run that was stopped."""
    parser = _parser("resume", resume_command, epilog=NUMBERS)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--checkpoint", metavar="NAME", default="latest", help="latest, best or step-N [latest]")
    add_flags(parser, RunConfig, short=SHORT, skip=("recipe", "seed", "model"))
    args = parser.parse(words)
    from gptloom.training.run import resume

    return _finish(resume(args.run, nest(given(args, RunConfig)), checkpoint=args.checkpoint), args.json)


def sample_command(words: list[str]) -> int:
    """Write with a trained model."""
    parser = _parser("sample", sample_command, epilog=SAMPLING)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--prompt", default="", help="the text to continue; - reads it from standard input (default: a fresh start)")
    parser.add_argument(
        "--show-probabilities", metavar="N", nargs="?", type=int, const=3, help="each token with its probability, its rank and the N likeliest [3]"
    )
    _add_model_flags(parser)
    add_flags(parser, SampleConfig)
    args = parser.parse(words)
    config = parse(SampleConfig, given(args, SampleConfig), where="the command line")
    if args.show_probabilities is not None and (args.show_probabilities < 1 or config.beams > 1):
        raise ConfigError("needs at least 1 alternative, and no beam search", where="--show-probabilities", cure="try --show-probabilities 3")
    from gptloom.commands.writing import sample

    return sample(args, config)


def eval_command(words: list[str]) -> int:
    """Measure a model's loss on a text."""
    parser = _parser("eval", eval_command, epilog=NUMBERS)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--text", metavar="TEXT", action="append", help=f"what to read: {TEXTS} (default: the run's own validation split)")
    parser.add_argument("--encoding", help="text encoding (default: UTF-8, else detected)")
    _add_model_flags(parser)
    args = parser.parse(words)
    from gptloom.commands.writing import evaluate

    return evaluate(args)


def data_command(words: list[str]) -> int:
    """Describe a text before you train on it."""
    parser = _parser("data", data_command, epilog="overlap is the share of the validation text's 50-character passages that also occur in the training text.")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=TEXTS)
    parser.add_argument("--text-field", default="text", help="field (JSON Lines) or column (CSV) that holds the text [text]")
    parser.add_argument("--encoding", help="text encoding (default: UTF-8, else detected)")
    args = parser.parse(words)
    from gptloom.commands.reporting import data

    return data(args)


def doctor_command(words: list[str]) -> int:
    """Say what this machine offers and what will be used."""
    parser = _parser("doctor", doctor_command)
    args = parser.parse(words)
    from gptloom.commands.reporting import doctor

    return doctor(args)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "resume": resume_command,
    "sample": sample_command,
    "eval": eval_command,
    "data": data_command,
    "doctor": doctor_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see `ExitCode`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not under a test's or a notebook's own stream
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        return _dispatch(words)
    except GptloomError as error:
        return _fail(error, words)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain again while it closes standard output.
        sys.stdout = None
        return ExitCode.DONE
    except OSError as error:
        return _fail(MachineError(error.strerror or str(error), where=str(error.filename or ""), cure="check the disk and the path"), words)
    except MemoryError:
        return _fail(MachineError("the memory is used up", cure="make the model, the batch or the text smaller"), words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return ExitCode.DONE
    if words[0] == "--version":
        from gptloom import __version__

        print(f"gptloom {__version__}")
        return ExitCode.DONE
    if words[0] not in COMMANDS:
        raise ConfigError(
            f"there is no command {words[0]!r}", where="gptloom", cure=nearest(words[0], COMMANDS, count=1) or f"choose from {', '.join(COMMANDS)}"
        )
    return COMMANDS[words[0]](words[1:])


def _fail(error: GptloomError, words: list[str]) -> int:
    if "--json" in words:
        print(json.dumps({"error": {"what": error.what, "where": error.where, "cure": error.cure}}, ensure_ascii=False))
    print(f"error: {error.line()}", file=sys.stderr)
    if "--debug" in words:
        import traceback

        traceback.print_exc()
    return error.code


def _overview() -> str:
    lines = ["usage: gptloom COMMAND ...", "", "Train GPTs from scratch on any text, write with them, and trust the numbers.", ""]
    lines += [f"  {name:<8} {(command.__doc__ or '').rstrip('.')}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`gptloom COMMAND --help` explains each. Try:  gptloom train shakespeare"])


def _parser(name: str, command: Callable[[list[str]], int], epilog: str = "") -> Parser:
    subject = {"train": "TEXT...", "data": "TEXT...", "doctor": ""}.get(name, "RUN")
    usage = f"gptloom {name} {subject} [flags]".replace("  ", " ")
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"gptloom {name}", usage=usage, description=command.__doc__, epilog=epilog, formatter_class=form)
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_model_flags(parser: Parser) -> None:
    parser.add_argument("--checkpoint", metavar="NAME", default="best", help="of a run folder: best, latest or step-N [best]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    choices = ("error", "skip", "replace")
    parser.add_argument("--on-unknown", choices=choices, default="error", help="characters that the tokenizer does not have [error]")


def _finish(result: Any, as_json: bool) -> int:
    """Report a training run and turn its end into an exit code."""
    from gptloom.commands.reporting import report_run

    report_run(result, as_json)
    return 128 + result.signal if result.signal else ExitCode.DONE
