"""`gptloom recipes`: the named sets of settings, and every value of one."""

from __future__ import annotations

import json

from gptloom.cli.flags import make_parser
from gptloom.config.load import about_recipe, recipe_names, resolve, to_toml
from gptloom.errors import ExitCode

FILE = """\
The values of one recipe are a settings file: `gptloom recipes tiny > my.toml`, change it, and train with it:
`gptloom train TEXT --config my.toml`. A setting that is not in the list is off, or follows from the others."""


def recipes_command(words: list[str]) -> int:
    """List the recipes, or the values of one."""
    parser = make_parser("recipes", "[NAME]", recipes_command, epilog=FILE)
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe: print all its values, as TOML")
    args = parser.parse(words)
    if args.name is None:
        found = {name: about_recipe(name) for name in recipe_names()}
        lines = [f"{name:<12} {about}" for name, about in found.items()]
        print(json.dumps(found) if args.json else "\n".join(lines))
        return ExitCode.DONE
    config = resolve(args.name)
    if args.json:
        print(json.dumps(config.model_dump(mode="json"), ensure_ascii=False))
    else:
        print(f"# {about_recipe(args.name)}\n{to_toml(config)}", end="")
    return ExitCode.DONE
