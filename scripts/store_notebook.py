"""Run notebooks and store them with their outputs, as they should be read on a git host: `make store NOTEBOOKS="nbs/runs/posttrain.ipynb"`.

Each runs from its own folder. Progress bars, live widgets and what was written to stderr are not stored, and the metadata is what nbdev_clean leaves.
"""

import base64
import io
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

LARGE = 80_000  # bytes; a picture with more is stored with 128 colours, a third of the size
ROOT = Path(__file__).resolve().parent.parent


def worth_storing(output: nbformat.NotebookNode) -> bool:
    "Text, tables and pictures; no bars and no widgets, which show nothing once their kernel is gone."
    return output.get("name") != "stderr" and not any(kind.startswith("application/vnd.jupyter.widget") for kind in output.get("data", {}))


def tidy(output: nbformat.NotebookNode) -> None:
    "One form of each picture, none too large, and no path of the machine it was run on."
    data = output.get("data", {})
    data.pop("image/jpeg", None)  # Pillow offers both
    if len(data.get("image/png", "")) > LARGE:
        small = io.BytesIO()
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        picture.quantize(128, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
        data["image/png"] = base64.b64encode(small.getvalue()).decode()
    for part, name in ((output, "text"), (data, "text/plain")):
        if name in part:
            part[name] = part[name].replace(str(ROOT), "…")


def store(path: Path) -> None:
    "Execute the notebook and write it back. CellExecutionError if a cell fails; the file is then as it was."
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if worth_storing(output)]
            for output in cell.outputs:
                tidy(output)
    nbformat.write(notebook, path)
    clean = f"from nbdev.clean import nbdev_clean; nbdev_clean({str(path)!r})"
    subprocess.run([sys.executable, "-c", clean], cwd=ROOT, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name).resolve())
        print(f"{name}: stored", flush=True)
