"""`make lab` opens notebooks without marking them as changed: read with what JupyterLab would write into them, written without it. `make browser-test` sees the mark itself."""

import asyncio
import shutil

import pytest
from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import KernelSpecManager
from project_files import DOOR, ROOT
from traitlets.config import Config, Configurable


class Server(Configurable):
    "As much of one as is asked."

    kernel_spec_manager = KernelSpecManager()


@pytest.fixture
def files(tmp_path):
    config = Config()
    exec(compile((ROOT / "scripts" / "lab_config.py").read_text(encoding="utf-8"), "lab_config", "exec"), {"get_config": lambda: config, "__name__": "lab_config"})
    shutil.copyfile(DOOR, tmp_path / "door.ipynb")
    return config.ServerApp.contents_manager_class(root_dir=str(tmp_path), parent=Server())


def test_a_notebook_is_read_with_what_jupyterlab_writes_and_saved_as_it_was(files, tmp_path):
    before = (tmp_path / "door.ipynb").read_bytes()
    model = asyncio.run(files.get("door.ipynb"))
    metadata = model["content"]["metadata"]
    assert metadata["kernelspec"]["display_name"] == KernelSpecManager().get_kernel_spec("python3").display_name != "python3"
    assert metadata["language_info"] == IPythonKernel.language_info
    asyncio.run(files.save(model, "door.ipynb"))
    assert (tmp_path / "door.ipynb").read_bytes() == before


def test_other_kernels_and_files_are_left_alone(files, tmp_path):
    model = asyncio.run(files.get("door.ipynb"))
    model["content"]["metadata"] = {"kernelspec": {"display_name": "R", "language": "R", "name": "ir"}, "language_info": {"name": "R"}}
    asyncio.run(files.save(model, "r.ipynb"))
    assert asyncio.run(files.get("r.ipynb"))["content"]["metadata"]["language_info"] == {"name": "R"}
    (tmp_path / "page.md").write_text("# page")
    assert asyncio.run(files.get("page.md"))["content"] == "# page"
    assert asyncio.run(files.get(""))["type"] == "directory"
