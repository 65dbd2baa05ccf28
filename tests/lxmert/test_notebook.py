"""The notebook: what it stores is whole, and all its cells run."""

from __future__ import annotations

import base64
import importlib.util
import json
from types import ModuleType

import pytest

from common.errors import DataError
from common.files import repository_root

FOLDER = repository_root() / "LXMERT" / "nbs"
NOTEBOOK = FOLDER / "adaptive_attention.ipynb"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute_notebook", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(notebook: dict) -> list[bytes]:
    return [
        base64.b64decode(output["data"]["image/png"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]


def test_the_stored_notebook_was_executed_and_is_small(execute):
    notebook = execute.read_notebook(NOTEBOOK)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    found = pictures(notebook)
    assert len(found) == sum("".join(cell["source"]).startswith("show(") for cell in cells) == 6
    assert all(picture.startswith(b"\x89PNG") and len(picture) < MOST_BYTES for picture in found)
    assert (
        str(repository_root()) not in NOTEBOOK.read_text() and "/tmp/" not in NOTEBOOK.read_text()
    )


def test_a_cell_that_fails_is_named_and_ends_it(execute):
    cells = [{"cell_type": "code", "source": [text]} for text in ("x = 1\n", "print(x)\nx / 0")]
    with pytest.raises(ZeroDivisionError) as caught:
        execute.execute({"cells": cells})
    assert caught.value.__notes__ == ["in code cell 2"]
    outputs = execute.run_cell("print('a')\nprint('b')\n3 * x", {"x": 2})
    assert outputs[0]["text"] == ["a\n", "b\n"] and outputs[1]["data"] == {"text/plain": "6"}


def test_what_is_no_notebook_is_refused(execute, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text("[]")
    with pytest.raises(DataError, match="no notebook"):
        execute.read_notebook(path)


@pytest.mark.slow
def test_all_cells_run(execute, easy_vqa_root, tmp_path, monkeypatch):
    """On a few hundred questions of the embedded data, into another folder."""
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    monkeypatch.setenv("NOTEBOOK_RUN", str(tmp_path / "run"))
    monkeypatch.chdir(FOLDER)
    stored = execute.read_notebook(NOTEBOOK)
    notebook = json.loads(NOTEBOOK.read_text())
    execute.execute(notebook)
    assert len(pictures(notebook)) == len(pictures(stored))
    for ran, kept in zip(notebook["cells"], stored["cells"], strict=True):
        kinds = [[o["output_type"] for o in cell.get("outputs", ())] for cell in (ran, kept)]
        assert kinds[0] == kinds[1], "".join(kept["source"])
    assert (tmp_path / "run" / "visualizations" / "spans.png").is_file()
