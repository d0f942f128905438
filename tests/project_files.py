"""What the repository tests look at: paths, the notebooks by kind, and the files that git would commit."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path

import warm_python

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
PACKAGE = ROOT / "drpose"
PARTS = ("ground", "people", "pictures", "multiview", "pairs", "reward", "mesh", "evaluation", "posttraining")  # each imports only what stands before it
OPENINGS = [NOTEBOOKS / part / f"00_{part}.ipynb" for part in PARTS]
DEFINITION_NOTEBOOKS = [path for part in PARTS for path in sorted((NOTEBOOKS / part).glob("[0-9]*.ipynb")) if path not in OPENINGS]
DOOR = NOTEBOOKS / "00_drpose.ipynb"
INDEX = NOTEBOOKS / "index.ipynb"
RUN_NOTEBOOKS = sorted((NOTEBOOKS / "runs").glob("*.ipynb"))
RESULT_NOTEBOOKS = sorted((NOTEBOOKS / "results").glob("*.ipynb"))
ALL_NOTEBOOKS = [DOOR, INDEX, *OPENINGS, *DEFINITION_NOTEBOOKS, *RUN_NOTEBOOKS, *RESULT_NOTEBOOKS]
RUN_CONFIGS = sorted((NOTEBOOKS / "runs" / "configs").glob("*.yaml"))
GENERATED = {"__init__.py", "_modidx.py"}  # nbdev writes these without a notebook of their own


def relative(path: Path) -> str:
    "`path` as seen from the repository, for test ids and messages."
    return path.relative_to(ROOT).as_posix()


@cache
def read_notebook(path: Path) -> dict:
    "The notebook as plain JSON."
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    "The text of one cell."
    return "".join(cell["source"])


def code_cells(path: Path) -> list[dict]:
    "The code cells of the notebook at `path`."
    return [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]


def parameter_cells(path: Path) -> list[dict]:
    "The cells that papermill takes for the notebook's parameters."
    return [cell for cell in read_notebook(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]


def run_python(code: str, *arguments: str, cwd: Path, timeout: float, package: bool = False) -> subprocess.CompletedProcess:
    "Run `code` in an interpreter of its own, so that no seed, figure, default dtype or environment variable leaks between tests; with `package` it has this checkout's package loaded."
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}  # nbdev turns nbdev_export off under it
    return warm_python.run(code, *arguments, cwd=cwd, environment=environment | {"MPLBACKEND": "agg"}, timeout=timeout, package=package)


@cache
def committed_files() -> list[Path]:
    "The files that git tracks or would add; without git, everything that is not a build product."
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:
        names = [name for name in listing.stdout.split("\0") if name]
    else:
        left_out = {".git", "build", "dist", "outputs", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache"}
        names = [relative(path) for path in ROOT.rglob("*") if not any(part in left_out or part.startswith(".venv") or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)]
    return sorted(path for path in (ROOT / name for name in names) if path.is_file())
