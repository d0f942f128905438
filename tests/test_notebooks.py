"""Every chapter, the index and every results page runs from top to bottom, its assertions included (the engine of `nbdev_test`)."""

import pytest
from project_files import DEFINITION_NOTEBOOKS, DOOR, INDEX, OPENINGS, RESULT_NOTEBOOKS, ROOT, relative, run_python

RUN_ONE_NOTEBOOK = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb
passed, seconds = run_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)
sys.exit(not passed)
"""


@pytest.mark.parametrize("path", [DOOR, INDEX, *OPENINGS, *DEFINITION_NOTEBOOKS, *RESULT_NOTEBOOKS], ids=relative)
def test_notebook_runs(path):
    finished = run_python(RUN_ONE_NOTEBOOK, str(path), cwd=ROOT, timeout=600, package=True)
    assert finished.returncode == 0, f"{relative(path)} failed:\n{finished.stderr[-6000:]}"


def test_there_are_notebooks_to_run():
    assert DEFINITION_NOTEBOOKS, "nbs holds no numbered notebook, so nothing was tested"
