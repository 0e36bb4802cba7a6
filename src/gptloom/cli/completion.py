"""`gptloom completion`: a script that completes commands and flags in bash and zsh."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping

from gptloom.cli.flags import make_parser
from gptloom.config.load import recipe_names
from gptloom.errors import ExitCode

SETUP = """\
bash: gptloom completion bash >> ~/.bashrc
zsh:  gptloom completion zsh >> ~/.zshrc"""


def print_completion(words: list[str], commands: Mapping[str, Callable[[list[str]], int]]) -> int:
    """Run `gptloom completion`, which completes these commands."""
    parser = make_parser("completion", "SHELL", commands["completion"], epilog=SETUP)
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")
    args = parser.parse(words)
    cases = "\n".join(f"    {name}) words='{' '.join(_flags(command))}' ;;" for name, command in commands.items())
    start = "autoload -U +X bashcompinit && bashcompinit\n" if args.shell == "zsh" else ""
    print(f"""{start}_gptloom() {{
  local words='' word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  [[ $COMP_CWORD == 1 ]] && words='{" ".join(commands)}'
  [[ $before == --recipe || $before == recipes ]] && words='{" ".join(recipe_names())}'
  [[ $word == -* ]] && case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _gptloom gptloom""")
    return ExitCode.DONE


def _flags(command: Callable[[list[str]], int]) -> list[str]:
    """Return the flags that a command's help lists."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command(["--help"])
    lines = re.findall(r"^ +-.*", printed.getvalue(), re.MULTILINE)
    return sorted({flag for line in lines for flag in re.findall(r"--[a-z][\w.-]*", line)})
