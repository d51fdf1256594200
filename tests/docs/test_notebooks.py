"""The notebooks of the documentation run from top to bottom, at a size of seconds."""

import re

import pytest
from paths import REPOSITORY

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "ten_minutes.ipynb"
# The number of persons is a word of the command line, and so may more words be.
SMALLER = (
    'persons, test_persons, epochs = "8 --backbone tiny --height 48 --width 16 --p 4 --k 2", 4, 1'
)


def test_outputs_are_stripped():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    settings.source, changed = re.subn(r"^persons, .*", SMALLER, settings.source)
    assert changed == 1
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    printed = [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    ]
    said = "".join(printed)
    assert "re-ranked" in said and said.count("person ") == 3
    figures = re.findall(r"^noise .*: mAP (0\.\d+)$", said, re.MULTILINE)
    assert len(figures) == 2 and figures[0] > figures[1]
    assert (tmp_path / "runs" / "notebook" / "ranked.png").is_file()
