"""Each notebook runs from top to bottom, shows a picture, and is stored without output."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from gptloom.cli.main import COMMANDS

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


class OwnKernelManager(AsyncKernelManager):
    """Starts this interpreter, regardless of the installed kernels."""

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="this Python", language="python")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks after running, by name; they share one kernel with a reset between them, for imports are slow."""
    scratch = tmp_path_factory.mktemp("kernel")
    everything, parts = nbformat.v4.new_notebook(), {}
    for path in NOTEBOOKS:
        parts[path.stem] = nbformat.read(path, as_version=4).cells
        everything.cells += [nbformat.v4.new_code_cell("%reset -f"), *parts[path.stem]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch), "IPYTHONDIR": str(scratch / "ipython")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(scratch / "runtime"))  # no files remain in the user's folders
        client = NotebookClient(
            everything,
            timeout=120,
            allow_errors=True,
            kernel_manager_class=OwnKernelManager,
            resources={"metadata": {"path": str(FOLDER)}},
        )
        client.execute(env=environment)
    return parts


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_shows_what_it_speaks_of(name, executed):
    cells = [cell for cell in executed[name] if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    if any("check(" in cell.source for cell in cells):
        assert "FAIL  " in said and "1 thing to correct" in said, "the exercise has one mistake, and the check names it"
    errors = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert "Warning" not in errors, errors


def faults(path):
    """What is wrong with a notebook as it is stored."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if not 8 <= len(notebook.cells) <= 18:
        yield f"{len(notebook.cells)} cells, where 8 to 18 are allowed"
    for cell in notebook.cells:
        if cell.cell_type != "markdown" and (cell.outputs or cell.execution_count is not None):
            yield "has outputs; clear all outputs before you commit"
        links = [link.split(")")[0] for link in cell.source.split("](")[1:]]
        yield from (f"no such file: {link}" for link in links if not (FOLDER / link).is_file())
        commands = set(re.findall(r"`gptloom ([a-z]+)", cell.source))
        yield from (f"no such command: {command}" for command in commands - COMMANDS.keys())


def test_notebooks_are_stored_clean_and_their_links_lead_somewhere():
    assert NOTEBOOKS
    assert [f"{path.name}: {fault}" for path in NOTEBOOKS for fault in faults(path)] == []
