"""The notebook of the docs, executed as a newcomer would: on the run that the first command made."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.conftest import PROJECT
from tests.runs.conftest import Train

TOUR = PROJECT / "docs" / "tour.ipynb"


def test_it_is_stored_clean() -> None:
    notebook = nbformat.read(TOUR, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        assert cell.id
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("folder", [pytest.param(".", marks=pytest.mark.full), "docs"])
def test_every_cell_works(folder: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("--steps", 30) == 0
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": os.fspath(tmp_path / folder)}}
    ).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert all(shown for name, shown in outputs.items() if name != "root")
    assert not [output for shown in outputs.values() for output in shown if output.output_type == "error"]
    (frame,) = outputs["load"]
    assert "unigram_entropy" in frame.data["text/html"] and frame.data["text/html"].count("<tr") == 32
    (chart,) = outputs["show"]
    assert chart.data["image/png"]
    assert "<span" in outputs["tokens"][-1].data["text/html"]
