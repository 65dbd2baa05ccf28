"""Execute the code cells of a notebook and keep what they show, without Jupyter.

    python nbs/execute.py nbs/adaptive_attention.ipynb

What a cell prints becomes its text output; a last expression that can show itself as PNG (an image
of Pillow) becomes a picture. The notebook stays one that Jupyter opens and runs.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import repository_root, write_bytes
from common.reading import read_json
from common.voice import spoken

Cell = dict[str, Any]


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook in a file.

    Raises:
        DataError: it is no notebook.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        raise DataError(f"{path}: no notebook (a JSON object with a list 'cells')")
    return found


def execute(notebook: dict[str, Any]) -> None:
    """Run all code cells in their order in one namespace and put their outputs into them.

    Raises:
        Exception: what a cell raises, with the number of the cell as a note.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        try:
            cell["outputs"] = run_cell("".join(cell["source"]), names)
        except Exception as error:
            error.add_note(f"in code cell {number}")
            raise
        cell["execution_count"] = number


def run_cell(source: str, names: dict[str, Any]) -> list[Cell]:
    """The outputs of one cell; `names` is what the cells before it have defined."""
    tree = ast.parse(source)
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(shown, ast.Expr):
            value = eval(compile(ast.Expression(shown.value), "cell", "eval"), names)
    outputs: list[Cell] = []
    if text := printed.getvalue().replace(f"{repository_root()}/", ""):
        lines = text.splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": display(value)})
    return outputs


def display(value: Any) -> dict[str, str]:
    """What is shown of a value: a picture where it has one, and text."""
    picture = getattr(value, "_repr_png_", None)
    if picture is None:
        return {"text/plain": repr(value)}
    return {"image/png": base64.b64encode(picture()).decode(), "text/plain": "picture"}


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    made = argparse.ArgumentParser(prog="python nbs/execute.py", description=__doc__.split("\n")[0])
    made.add_argument("notebook", type=Path, help="its outputs are replaced")
    path = made.parse_args(arguments).notebook.resolve()
    notebook = read_notebook(path)
    execute(notebook)
    write_bytes(path, (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
