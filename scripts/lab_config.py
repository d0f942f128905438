"""How `make lab` serves notebooks: opening one does not mark it as changed.

JupyterLab writes into each notebook that it opens what the kernel is called on this machine and which Python it runs, and then takes the notebook for changed. The repository's notebooks hold neither (`nbdev_clean` removes both). So both are added when a notebook is read, and taken away when it is written.
"""

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

KERNEL = "python3"


class NotebooksAsStored(AsyncLargeFileManager):
    "Files as JupyterLab's own manager reads and writes them; notebooks with the metadata that it expects, and without."

    async def get(self, path, content=True, **options):
        model = await super().get(path, content=content, **options)
        if model["type"] == "notebook" and model["content"]:
            metadata = model["content"]["metadata"]
            if metadata.get("kernelspec") == {"display_name": KERNEL, "language": "python", "name": KERNEL} and "language_info" not in metadata:
                metadata["kernelspec"]["display_name"] = self.parent.kernel_spec_manager.get_kernel_spec(KERNEL).display_name
                metadata["language_info"] = dict(IPythonKernel.language_info)
        return model

    async def save(self, model, path=""):
        if model.get("type") == "notebook" and model.get("content"):
            metadata = model["content"]["metadata"]
            if metadata.get("kernelspec", {}).get("name") == KERNEL:
                metadata["kernelspec"]["display_name"] = KERNEL
                metadata.pop("language_info", None)
        return await super().save(model, path)


c = get_config()  # noqa: F821, jupyter's
c.ServerApp.contents_manager_class = NotebooksAsStored
