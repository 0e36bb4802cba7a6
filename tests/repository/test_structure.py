"""The shape of the source: sizes, imports, names that prose mentions, and plain English.

Every test collects all offenders before it fails, so that one run shows everything there is to mend.
"""

import ast
import builtins
import importlib
import io
import json
import keyword
import re
import statistics
import sys
import tokenize
import tomllib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "gptloom"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("src", "tests", "benchmarks", "tools")
UNTRACKED = {".git", ".venv", "__pycache__", "node_modules", "dist", "runs"}


@cache
def sources():
    """Every module of the package: its path below src/gptloom, its text and its syntax tree."""
    paths = sorted(SOURCE.rglob("*.py"))
    texts = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


def fail_with(offenders, title):
    """Fail with all offenders, one a line."""
    if offenders:
        pytest.fail(f"{title}: {len(offenders)}\n  " + "\n  ".join(offenders), pytrace=False)


# Sizes.


def test_the_package_has_few_files():
    count = len(sources())
    assert count <= 160


def test_files_have_at_most_400_lines():
    lines = {name: len(text.splitlines()) for name, (text, _) in sources().items()}
    fail_with([f"{name}: {count}" for name, count in lines.items() if count > 400], "files over 400 lines")


def test_the_median_file_has_more_than_130_lines():
    lines = {name: len(text.splitlines()) for name, (text, _) in sources().items()}
    rooms = [count for name, count in lines.items() if not (name.endswith("__init__.py") and count <= 5)]
    median = statistics.median(rooms)
    assert median > 130


def test_functions_have_at_most_60_lines():
    long = [
        f"{name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for name, (_, tree) in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 60
    ]
    fail_with(long, "functions over 60 lines")


def test_the_root_of_the_package_is_small():
    packages = {name.split("/")[0] for name in sources() if "/" in name}
    files = {name for name in sources() if "/" not in name} - {"__init__.py", "__main__.py"}
    fail_with(sorted(packages) if len(packages) > 15 else [], "packages at the root (15 at most)")
    fail_with(sorted(files) if len(files) > 6 else [], "files at the root (6 at most)")


def test_lines_have_at_most_120_characters():
    long = defaultdict(list)
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > 120:
                long[path.relative_to(ROOT).as_posix()].append(number)
    fail_with(
        [f"{name}: {len(lines)}, first at line {lines[0]}" for name, lines in long.items()], "files with long lines"
    )


def test_a_name_is_defined_once_in_a_file():
    """Two files that were merged may both have had a `_CURE`: the second would replace the first without a word."""
    twice = []
    for name, (_, tree) in sources().items():
        defined = Counter(one for node in tree.body if not isinstance(node, ast.If) for one in set(defined_by(node)))
        twice += [f"{name}: {one}" for one, count in defined.items() if count > 1]
    fail_with(twice, "names that are defined twice")


# Imports.


def module_name(name):
    return ".".join(["gptloom", *name.removesuffix(".py").split("/")]).removesuffix(".__init__")


def imports(name):
    """The modules that a file imports anywhere, as (line, dotted name); of ours, the module and not the name in it."""
    ours = {module_name(file) for file in sources()}
    package = module_name(name).split(".")
    package = package if name.endswith("__init__.py") else package[:-1]
    for node in ast.walk(sources()[name][1]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for one in node.names:
                inner = f"{module}.{one.name}"
                yield node.lineno, inner if inner in ours else module


def circles(graph):
    """The groups of modules that reach each other, by Tarjan's algorithm."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def test_no_module_imports_itself_through_others():
    # The root package is loaded before every module in it, so an import of it (for the version) closes no circle.
    graph = {module_name(name): {module for _, module in imports(name)} - {"gptloom"} for name in sources()}
    graph = {name: {module for module in modules if module in graph} - {name} for name, modules in graph.items()}
    fail_with([" <-> ".join(sorted(group)) for group in circles(graph)], "import circles")


def test_circles_are_found():
    assert [sorted(group) for group in circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})] == [["b", "c"]]


def test_the_model_does_not_import_the_fast_passes():
    wrong = [
        f"{name}:{line} imports {module}"
        for name in sources()
        if name.startswith("model/")
        for line, module in imports(name)
        if module.startswith("gptloom.fast")
    ]
    fail_with(wrong, "model/ imports fast/")


def test_only_the_command_line_parses_arguments():
    wrong = [
        f"{name}:{line}"
        for name in sources()
        if not name.startswith("cli/")
        for line, module in imports(name)
        if module == "argparse"
    ]
    fail_with(wrong, "argparse outside cli/")


# Prose: docstrings, comments, help texts and pages.


@cache
def strings(name):
    """The docstrings of a module, its attributes' docstrings included, as (line, text)."""
    nodes = [node.value for node in ast.walk(sources()[name][1]) if isinstance(node, ast.Expr)]
    return [
        (node.lineno, node.value) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@cache
def comments(name):
    """The comments of a module, as (line, text)."""
    tokens = tokenize.generate_tokens(io.StringIO(sources()[name][0]).readline)
    return [(token.start[0], token.string.lstrip("# ")) for token in tokens if token.type == tokenize.COMMENT]


def help_texts(name):
    """What a module passes as help=, description= or epilog=, as (line, text)."""
    for node in ast.walk(sources()[name][1]):
        if isinstance(node, ast.keyword) and node.arg in ("help", "description", "epilog"):
            parts = [part for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            yield from ((part.lineno, part.value) for part in parts if isinstance(part.value, str))


def page_text(path):
    """A page without its blocks of code; the lines keep their numbers."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.S | re.M)


def prose():
    """All text for readers, as (place, line of its beginning, text)."""
    for name in sources():
        for line, text in sorted({*strings(name), *comments(name), *help_texts(name)}):
            yield f"src/gptloom/{name}", line, text
    for path in PAGES:
        yield path.relative_to(ROOT).as_posix(), 1, page_text(path)


# Names in backticks.

ALIASES = {
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "np": "numpy",
    "plt": "matplotlib.pyplot",
    "dist": "torch.distributed",
}
ATTRIBUTES_OF = (
    "torch.Tensor",
    "torch.nn.Module",
    "torch.optim.Optimizer",
    "numpy.ndarray",
    "pathlib.Path",
    "pydantic.BaseModel",
)
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")


class Known:
    """Everything that a name in backticks can mean.

    Attributes:
        names: identifiers and literals of the repository.
        classes: for each class of ours, its members and its bases' names.
        modules: for each module of ours, by dotted name, what it defines.
        paths: files and folders of the repository.
        flags: of every command and script.
        targets: of the Makefile.
        commands: of the command line.
    """

    def __init__(self):
        self.names, self.classes, self.modules = set(), defaultdict(lambda: (set(), set())), {}
        self.paths = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if not UNTRACKED & set(path.parts)}
        # A path's name counts without its number and its ending: 07-bigram.toml is the lesson bigram.
        for path in map(Path, self.paths):
            self.names |= {path.name, path.stem, re.sub(r"^\d+-", "", path.stem)}
        for name, (_, tree) in sources().items():
            self._add(tree, module_name(name))
        for folder in FOLDERS[1:]:
            for path in (ROOT / folder).rglob("*.py"):
                self._add(ast.parse(path.read_text(encoding="utf-8")), None)
        for path in [
            ROOT / "pyproject.toml",
            *SOURCE.rglob("*.toml"),
            *SOURCE.rglob("*.json"),
            *ROOT.glob("docs/**/*.json"),
        ]:
            text = path.read_text(encoding="utf-8")
            self._add_data(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        self.targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
        self.names |= set(re.findall(r"\w+", makefile))
        approved = (ROOT / "tests" / "approved_flags.txt").read_text(encoding="utf-8").split()
        self.commands = {word for word in approved if not word.startswith("-")} | self._dispatched()
        self.flags = {word for word in self.names | {*approved} if word.startswith("--")} | {"--help", "--version"}
        self.flags |= {f"--{name.replace('_', '-')}" for name in self.names if name.isidentifier()}

    def _add(self, tree, module):
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    self.names.add(name)
                case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                    self.names.add(name)
                case ast.alias(name=name, asname=other):
                    self.names |= {*name.split("."), other or name}
                case ast.Constant(value=str(text)) if " " not in text and (module or text.startswith("--")):
                    self.names |= {text, *re.findall(r"[\w-]+", text)}
            if isinstance(node, ast.ClassDef) and module:
                members, bases = self.classes[node.name]
                members |= members_of(node)
                bases |= {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
        if module:
            defined = {name for node in tree.body for name in defined_by(node)}
            self.modules[module] = defined

    def _add_data(self, data):
        if isinstance(data, dict):
            self.names |= set(data)
            data = list(data.values())
        for item in data if isinstance(data, list) else ():
            if isinstance(item, str):
                self.names.add(item)
            self._add_data(item)

    def _dispatched(self):
        """The keys of the table of commands."""
        for _, tree in sources().values():
            for node in tree.body:
                if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    if ast.unparse(target) == "COMMANDS":
                        return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
        return set()

    def has_name(self, name):
        """Whether `name` is an identifier, a dotted identifier or a literal that exists."""
        if name in self.names or hasattr(builtins, name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
            return True
        first, *others = name.split(".")
        if not others:
            return is_library_attribute(name) or is_importable(name)
        if name.startswith("gptloom."):
            return self.has_module(name)
        if first in self.classes:
            return self.has_member(first, others[0]) and (len(others) == 1 or self.names.issuperset(others[1:]))
        modules = [module for module in self.modules if module.endswith(f".{first}")]
        if any(self.has_module(f"{module}.{'.'.join(others)}") for module in modules):
            return True
        # A variable's attribute (`progress.step`) or a key of a file (`model.n_layer`).
        return is_importable(name) or all(part in self.names or is_library_attribute(part) for part in (first, *others))

    def has_module(self, name):
        """Whether `name` is a module of ours, or a name in one."""
        if name in self.modules or f"src/{name.replace('.', '/')}" in self.paths:
            return True
        module, _, last = name.rpartition(".")
        if module in self.modules:
            return last in self.modules[module]
        outer, _, inner = module.rpartition(".")
        return outer in self.modules and inner in self.modules[outer] and self.has_member(inner, last)

    def has_member(self, name, member):
        """Whether a class of ours or a base of it has this member; other bases have what `ATTRIBUTES_OF` have."""
        if name not in self.classes:
            return is_library_attribute(member)
        members, bases = self.classes[name]
        return member in members or is_library_attribute(member) or any(self.has_member(base, member) for base in bases)

    def has_path(self, path):
        """Whether a file or folder has this path, from the root or from anywhere below it."""
        pattern = re.compile(rf"(^|.*/){re.escape(path.strip('/')).replace(re.escape('*'), '[^/]*')}$")
        return any(map(pattern.match, self.paths)) or path in self.names

    def why_not(self, code):
        """What is wrong with text in backticks; "" if it resolves or is no name."""
        words = code.split()
        if words and words[0] in ("gptloom", "make", "python") and len(words) > 1:
            return self._command_fault(words)
        if code.startswith("--"):
            flag = re.split(r"[ =]", code)[0]
            return "" if flag in self.flags or "*" in flag else "no such flag"
        name = re.sub(r"\([^()]*\)$", "", code)
        if NAME.fullmatch(name) and not re.search(r"\.(py|md|toml|json|jsonl|ipynb|txt|csv|html|png|svg)$", name):
            # One letter, or capitals and digits, are a symbol of a formula or stand for something.
            return "" if len(name) == 1 or re.fullmatch(r"[A-Z_\d]+", name) or self.has_name(name) else "no such name"
        if (PATH.fullmatch(code) and "/" in code) or re.fullmatch(r"[\w-]+\.(py|md|ipynb)", code):
            first = code.split("/")[0]
            ours = (
                re.search(r"\.(py|md|ipynb)$", code)
                or first in FOLDERS
                or first in {path.split("/")[2] for path in self._package()}
            )
            return "no such file" if ours and not self.has_path(code) else ""
        return ""

    def _package(self):
        return [path for path in self.paths if re.match(r"src/gptloom/\w", path)]

    def _command_fault(self, words):
        program, first, *_ = words
        flags = [re.split(r"[=\]]", word)[0].strip("[],.") for word in words[1:] if word.strip("[").startswith("--")]
        unknown = [flag for flag in flags if flag not in self.flags]
        if program == "gptloom" and re.fullmatch(r"[a-z][a-z-]*", first) and first not in self.commands:
            return f"no command {first}"
        if program == "make" and re.fullmatch(r"[a-z-]+", first) and first not in self.targets:
            return f"no target {first}"
        if program == "python" and "/" in first and not self.has_path(first):
            return f"no file {first}"
        return f"no flag {', '.join(unknown)}" if unknown and program == "gptloom" else ""


def members_of(node):
    """The methods and fields of a class, and the attributes that its methods set on self."""
    found = {name for child in node.body for name in defined_by(child)}
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "self":
            found.add(child.attr)
    return found


def defined_by(node):
    """The names that a statement defines; those of an import, too."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (one.asname or one.name for one in names)
        case ast.Assign() | ast.AnnAssign():
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        case ast.If() | ast.Try() | ast.With():
            yield from (name for child in node.body for name in defined_by(child))


@cache
def is_library_attribute(name):
    """Whether a tensor, a layer, an array, a path or a settings object has an attribute of this name."""
    return any(hasattr(load(owner), name) for owner in ATTRIBUTES_OF)


@cache
def load(name):
    """What a dotted name of an installed library means; None for nothing."""
    first, *others = name.split(".")
    parts = [*ALIASES.get(first, first).split("."), *others]
    dependencies = {"torch", "numpy", "safetensors", "tokenizers", "pydantic", "jaxtyping", "rich", "matplotlib"}
    if parts[0] not in dependencies | {"platformdirs", "filelock", "tomli_w", "pytest", *sys.stdlib_module_names}:
        return None
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part, None)
        return value
    return None


def is_importable(name):
    return load(name) is not None


def in_backticks(text):
    """The texts in single or double backticks, as (line, text)."""
    for found in re.finditer(r"(?<!`)(`{1,2})([^`\n]+(?:\n[^`\n]+)?)\1(?!`)", text):
        yield text.count("\n", 0, found.start()), " ".join(found[2].split())


@pytest.fixture(scope="module")
def known():
    return Known()


def test_every_name_in_backticks_exists(known):
    wrong = []
    for place, start, text in prose():
        for line, code in in_backticks(text):
            if fault := known.why_not(code):
                wrong.append(f"{place}:{start + line}: `{code}`: {fault}")
    fail_with(wrong, "names in backticks that do not exist")


@pytest.mark.parametrize(
    "code",
    [
        *("ModelConfig.n_layers", "gptloom.model.no_such", "no_such_name_here", "torch.no_such_thing"),
        *("model/no_such.py", "tests/nothing", "make nothing", "gptloom nothing", "python tools/nothing.py"),
        *("--train.no-such" + "-flag", "gptloom train --no-such" + "-flag"),  # whole, they would be known from here
    ],
)
def test_a_wrong_name_is_found(known, code):
    assert known.why_not(code)


@pytest.mark.parametrize(
    "code",
    [
        *("ModelConfig", "ModelConfig.n_layer", "n_layer", "torch.nn.Linear", "nn.Linear", "requires_grad", "zip"),
        *("make test", "--train.steps", "gptloom train shakespeare", "tests/faults", "test_structure.py"),
        *("b t c", "x @ w.T", "step-N"),  # shapes, formulas and placeholders are no names
    ],
)
def test_a_right_name_passes(known, code):
    assert not known.why_not(code)


# Plain English.

SENTENCE = r"(?:^|[.:;!?]\s+)"
BANNED = [
    # pattern, what to write instead
    (
        SENTENCE + r"(?:What|Which|Whoever|Whatever|Who) [^?\n.]*(?:\.|$)",
        "begin with a noun: the subject",
    ),
    (r"\bof (?:its|their|his|one's|our) own\b", "'its own X', or 'a separate X'"),
    (r"\bbeside\b", "'next to', 'with' or 'besides'"),
    (r"\banew\b", "'again'"),
    (r"\b(?:likeliest|unlikeliest)\b", "'most likely'"),
    (r"\b(?:goes|go|went|going) on\b", "'continues'"),
    (r"\bnobody\b", "the passive, or name who"),
    (
        r"\b(?:lies|lie|lay|lain) (?!down\b)(?:in|at|on|under|apart|between|where|there|behind|below|above|beyond)\b",
        "'is' or 'is stored'",
    ),
    (r"\b(?:stands|stand|stood) (?!for\b)", "'is'"),
    (r"\b(?:learns?|learned|learning|learnt) (?:[\w ]{1,20} )?by heart\b", "'overfits' or 'memorizes'"),
    (r"\bis told\b|\bare told\b|\btold of\b", "'is given' or 'is reported'"),
    (r"\bheirs?\b", "'subclass'"),
    (r"\b(?:stirs?|stirred)\b", "'perturbs'"),
    (r"\bwrites? on\b", "'continues'"),
    (r"(?<!there )\bis no (?=[a-z]+\b)(?!longer|more|less|other|need|way|reason)", "'is not a'"),
    (r"\bas chance has it\b", "'at random'"),
    (r"\b(?:a score of|two dozen|a dozen)\b", "the number"),
    (r"\bhereof|thereof|wherein|whereby|thereby\b", "'of it', 'in which', 'by which'"),
    (r"\bheed(?:s|ed)?\b", "'handles' or 'checks'"),
]


def test_prose_is_plain_english():
    wrong = []
    for place, start, text in prose():
        # Code in backticks keeps its length in lines only; it is no prose.
        plain = re.sub(r"(`{1,2})[^`]*\1", lambda code: "X" + "\n" * code[0].count("\n"), text)
        for pattern, instead in BANNED:
            for found in re.finditer(pattern, plain, re.M | (0 if pattern.startswith(SENTENCE) else re.I)):
                line = start + plain.count("\n", 0, found.start())
                wrong.append(f"{place}:{line}: {' '.join(found[0].split())[:60]!r}: write {instead}")
    fail_with(wrong, "sentences in private words")


@pytest.mark.parametrize("text", ["What it costs.", "a file of its own", "Data lies in a folder.", "is no tokenizer"])
def test_private_words_are_found(text):
    assert any(re.search(pattern, text, re.M) for pattern, _ in BANNED)


@pytest.mark.parametrize("text", ["It stands for a name.", "There is no longer a file.", "Besides that, it reads."])
def test_plain_sentences_pass(text):
    assert not any(re.search(pattern, text, re.M) for pattern, _ in BANNED)
