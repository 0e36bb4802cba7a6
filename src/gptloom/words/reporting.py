"""`gptloom data` and `gptloom doctor`."""

from gptloom.words import TEXTS, loading, make_parser


def data_command(words: list[str]) -> int:
    """Describe a text before you train on it."""
    parser = make_parser(
        "data",
        "TEXT...",
        data_command,
        epilog="overlap is the share of the validation text's 50-character passages that also occur in the training text.",
    )
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=TEXTS)
    parser.add_argument(
        "--text-field", default="text", help="field (JSON Lines) or column (CSV) that holds the text [text]"
    )
    parser.add_argument("--encoding", help="text encoding (default: UTF-8, else detected)")
    args = parser.parse(words)
    with loading():
        from gptloom.commands.reporting import data

    return data(args)


def doctor_command(words: list[str]) -> int:
    """Say what this machine offers and what will be used."""
    parser = make_parser("doctor", "", doctor_command)
    args = parser.parse(words)
    with loading():
        from gptloom.commands.reporting import doctor

    return doctor(args)
