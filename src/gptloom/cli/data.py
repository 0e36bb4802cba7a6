"""`gptloom data`: a report on a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from gptloom.cli.flags import TEXTS, loading, make_parser
from gptloom.config.run import DataConfig
from gptloom.errors import ExitCode

if TYPE_CHECKING:
    from gptloom.data.report import Report

OVERLAP = """\
overlap is the share of the validation text's 50-character passages that also occur in the training text."""


def data_command(words: list[str]) -> int:
    """Describe a text before you train on it."""
    parser = make_parser("data", "TEXT...", data_command, epilog=OVERLAP)
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=TEXTS)
    about = "field (JSON Lines) or column (CSV) that holds the text [text]"
    parser.add_argument("--text-field", default="text", help=about)
    parser.add_argument("--encoding", help="text encoding (default: UTF-8, else detected)")
    args = parser.parse(words)
    with loading():
        from gptloom.data.report import describe
        from gptloom.data.sources import open_corpus

    config = DataConfig(text_field=args.text_field, encoding=args.encoding)
    report = describe(open_corpus(args.texts, config), config)
    print(json.dumps(asdict(report), ensure_ascii=False) if args.json else "\n".join(_lines(report)))
    return ExitCode.DONE


def _lines(report: Report) -> list[str]:
    """Format the report as text, one fact per line."""
    characters = (character for character, _ in report.alphabet.characters[:20])
    frequent = " ".join(repr(character)[1:-1] if character != " " else "space" for character in characters)
    size = f"{report.documents:,} documents, {report.characters:,} characters, {report.bytes:,} bytes"
    lines = [
        f"text       {report.name}: {size}",
        f"alphabet   {report.alphabet.size:,} characters; most frequent first: {frequent}",
        f"{'tokens':<17} {'vocabulary':>10} {'tokens':>13}  characters per token",
    ]
    for name, count in report.tokens.items():
        tokens = f"{' ' if count.exact else '~'}{count.tokens:>12,}"
        lines.append(f"  {name:<15} {count.vocab_size:>10,} {tokens}  {count.characters_per_token:.2f}")
    found = report.repeats
    lines_repeat = f"{found.line_share:.1%} of {found.lines:,} lines repeat an earlier one"
    documents_repeat = f"{found.repeated_documents:,} of {found.documents:,} documents do"
    overlap = f"{report.leakage:.1%} of the validation text's 50-character passages"
    return [
        *lines,
        f"repeats    {lines_repeat}; {documents_repeat}",
        f"overlap    {overlap} also occur in the training text",
        *(f"warning    {warning}" for warning in report.warnings),
        *(f"note       {note}" for note in report.notes),
    ]
