"""Execute getting_started.ipynb in place, or to another file: python docs/notebooks/execute.py [OUT]."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("getting_started.ipynb")


def main(out: Path) -> None:
    """Every cell from the first, in a new kernel of this Python; a cell that fails ends it with its traceback."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # No times in the file: executed again, it differs where its outputs do.
    NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK)
