"""`gptloom import`."""

from pathlib import Path

from gptloom.words import loading, make_parser

IMPORT = """\
FILE.pt is nanoGPT's ckpt.pt, or a state dictionary of nanoGPT or minGPT that torch.save wrote. It is read by a process of its own,
with bounds on memory and time, and nothing in it is run. OUT is a bundle: `gptloom sample OUT`, `gptloom eval OUT --text FILE`.

How ids become text is not in the file, and nanoGPT's meta.pkl is not read, because reading a pickle can run anything. For a model of
characters give the text that it was trained on (--text): its sorted alphabet is the vocabulary. For GPT-2's tokens say
--tokenizer tiktoken:gpt2; rows that the vocabulary was padded with, as 50,257 to 50,304, are kept, and stand for no text.

gelu is exact, as in nanoGPT since 17 May 2023; gelu-tanh is GPT-2's approximation, as in minGPT and in nanoGPT before."""


def import_command(words: list[str]) -> int:
    """Bring in a model of nanoGPT or minGPT."""
    parser = make_parser("import", "FILE.pt OUT", import_command, epilog=IMPORT)
    parser.add_argument("file", metavar="FILE.pt", type=Path, help="what torch.save wrote")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the bundle")
    parser.add_argument(
        "--text", metavar="TEXT", action="append", help="for a model of characters: the text that it was trained on"
    )
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="tiktoken:NAME, or the path of a tokenizer.json or .model file"
    )
    parser.add_argument(
        "--n-head", metavar="N", type=int, help="number of heads, where the file does not tell (minGPT)"
    )
    parser.add_argument(
        "--mlp", choices=("gelu", "gelu-tanh"), help="activation (default: gelu for nanoGPT's ckpt.pt, else gelu-tanh)"
    )
    args = parser.parse(words)
    with loading():
        from gptloom.commands.importing import import_model

    return import_model(args)
