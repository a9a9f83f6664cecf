"""Makes first_adapter.ipynb: the cells of first_adapter.py, executed in an empty folder.

python examples/make_notebook.py            writes the notebook with its outputs
python examples/make_notebook.py --check    executes nothing; exit 1 where the notebook's cells are not the script's
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import nbformat

HERE: Final = Path(__file__).resolve().parent
SCRIPT: Final = HERE / "first_adapter.py"
NOTEBOOK: Final = SCRIPT.with_suffix(".ipynb")
LONGEST_S: Final = 600
"""A cell that takes longer has failed."""


def cells(text: str) -> list[tuple[str, str]]:
    """(`markdown` or `code`, source) of a script whose cells begin with `# %%`.

    >>> cells("# %% [markdown]\\n# Hello\\n\\n# %%\\nx = 1\\n")
    [('markdown', 'Hello'), ('code', 'x = 1')]
    """
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", body.strip()))
    return found


def notebook() -> Any:
    """The notebook of the script, not executed."""
    made = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    parts = cells(SCRIPT.read_text(encoding="utf-8"))
    book = nbformat.v4.new_notebook(
        cells=[made[kind](text, id=f"cell-{number}") for number, (kind, text) in enumerate(parts)]
    )
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return book


def execute() -> None:
    """Execute the notebook and write it; nothing of this machine may stand in it."""
    from nbclient import NotebookClient

    book = notebook()
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of the kernel: tqdm names its own folder
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            book, timeout=LONGEST_S, kernel_name="python3", resources=resources, record_timing=False
        ).execute()
    book.metadata.pop("language_info", None)  # the version of this machine's Python
    for output in (output for cell in book.cells for output in cell.get("outputs", ())):
        output.get("data", {}).pop("image/jpeg", None)  # the same picture as image/png
    nbformat.write(book, NOTEBOOK)


def difference() -> str:
    """What is wrong with the notebook that stands; empty where it is the script's, executed."""
    stands = nbformat.read(NOTEBOOK, as_version=4)
    sources = [(cell.cell_type, cell.source) for cell in stands.cells]
    if sources != cells(SCRIPT.read_text(encoding="utf-8")):
        return f"{NOTEBOOK.name} is not {SCRIPT.name}: python examples/make_notebook.py"
    idle = [cell.id for cell in stands.cells if cell.cell_type == "code" and cell.execution_count is None]
    return f"{NOTEBOOK.name} has cells that were not executed: {idle}" if idle else ""


if __name__ == "__main__":
    sys.exit(difference() or None if "--check" in sys.argv[1:] else execute())
