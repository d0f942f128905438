"""Run nbs/index.ipynb, keep its outputs, and write README.md from it: `make readme`.

nbdev's own way needs quarto. Here the notebook goes through nbconvert, with three rules: a cell that begins with `#| hide` is left out,
of a cell that begins with `#| echo: false` only the output stays, and pictures become files in docs/readme.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "nbs" / "index.ipynb"
README = ROOT / "README.md"
PICTURES = "docs/readme"


def execute(path: Path) -> NotebookNode:
    "Run the notebook from its own folder and store it with its outputs, as nbdev_clean would."
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(notebook, path)
    clean = f"from nbdev.clean import nbdev_clean; nbdev_clean({str(path)!r})"
    subprocess.run([sys.executable, "-c", clean], cwd=ROOT, check=True)
    return nbformat.read(path, as_version=4)


def readable(notebook: NotebookNode) -> NotebookNode:
    "The cells that a reader of the README should see, without nbdev's directives; links point from the repository's root."
    kept = []
    for cell in notebook.cells:
        text = re.sub(r"^(#\|.*\n?)+", "", cell.source)
        directives = cell.source[: len(cell.source) - len(text)]
        if re.search(r"^#\|\s*hide\b", directives, re.MULTILINE):
            continue
        if cell.cell_type == "code" and re.search(r"^#\|\s*echo:\s*false", directives, re.MULTILINE):
            text = ""
        if cell.cell_type == "markdown":
            text = from_root(text)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = from_root(output.data["text/markdown"])
        kept.append(NotebookNode({**cell, "source": text}))
    python = NotebookNode({"language_info": {"name": "python"}})  # nbdev_clean drops it; the code blocks are coloured by it
    return NotebookNode({**notebook, "cells": kept, "metadata": python})


def from_root(text: str) -> str:
    "Links that start in nbs/ rewritten for a page one folder up."
    return re.sub(r"\]\((?!\w+:|#)([^)]+)\)", lambda link: f"]({link[1][3:] if link[1].startswith('../') else 'nbs/' + link[1]})", text)


def main() -> None:
    "Write README.md and the pictures it shows."
    notebook = readable(execute(INDEX))
    resources = {"output_files_dir": PICTURES, "unique_key": "index"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    text = re.sub(r"```python\s*```\n*", "", text)  # a cell whose source is not shown
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    shutil.rmtree(ROOT / PICTURES, ignore_errors=True)
    for name, data in resources["outputs"].items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(data)
    README.write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
