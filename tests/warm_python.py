"""Interpreters of their own that begin with the heavy libraries loaded: a template process imports them once, and every program is run in a fork of it.

A fork is as good as new: no seed was drawn, no figure opened. It only saves the six seconds that torch, diffusers and their kin take to load, and with `package` the three that the package and its clips take; without, no module of the package is imported."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "scipy.stats", "trimesh", "pyarrow.parquet", "matplotlib.pyplot", "plotly.graph_objects", "nbdev.test", "ipykernel.kernelapp")
KERNEL = """
import os, runpy, sys
import matplotlib
sys.argv.append(f"--IPKernelApp.parent_handle={os.getppid()}")  # it ends with the template; ipykernel, loaded before, has read the template's environment
matplotlib.rcParams["backend"] = os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # pyplot, loaded before, has read the template's
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""


@cache
def _template() -> subprocess.Popen:
    "This process's template; it ends with it."
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def start(code: str, *arguments: str, cwd: Path, environment: dict[str, str], stdout: Path, stderr: Path, package: bool = False) -> int:
    "Begin a program; its process number. `finish` has to be called before the next one starts."
    template = _template()
    template.stdin.write(json.dumps({"code": code, "arguments": arguments, "cwd": str(cwd), "environment": environment, "stdout": str(stdout), "stderr": str(stderr), "package": package}) + "\n")
    template.stdin.flush()
    return int(template.stdout.readline())


def finish() -> int:
    "Wait for the program; its exit status, minus the signal's number where one killed it."
    return int(_template().stdout.readline())


def run(code: str, *arguments: str, cwd: Path, environment: dict[str, str], timeout: float, package: bool = False) -> subprocess.CompletedProcess:
    "Run a program to its end, as `subprocess.run` would."
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "stdout", Path(folder) / "stderr"
        number = start(code, *arguments, cwd=cwd, environment=environment, stdout=outputs[0], stderr=outputs[1], package=package)
        before = signal.signal(signal.SIGALRM, lambda *_: os.killpg(number, signal.SIGKILL))
        signal.alarm(int(timeout))
        try:
            status = finish()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        return subprocess.CompletedProcess(code, status, *(path.read_text(errors="replace") for path in outputs))


class WarmKernel:
    """A notebook's kernel in a fork of the template, in place of the `subprocess.Popen` that jupyter_client makes of its command.

    Set in the place of `jupyter_client.provisioning.local_provisioner.launch_kernel`."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], cwd: str | None = None, env: dict[str, str] | None = None, **_):
        assert "ipykernel_launcher" in command, f"no Python kernel: {command}"
        arguments, nowhere, self.returncode = command[command.index("ipykernel_launcher") + 1 :], Path(os.devnull), None
        self.pid = start(KERNEL, *arguments, cwd=Path(cwd or os.getcwd()), environment=env or dict(os.environ), stdout=nowhere, stderr=nowhere, package=True)
        while os.getpgid(self.pid) != self.pid:  # whoever stops a kernel signals its group: it must not be ours
            time.sleep(0.001)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([_template().stdout], [], [], 0)[0]:
            self.returncode = finish()
        return self.returncode

    def wait(self) -> int:
        self.returncode = finish() if self.returncode is None else self.returncode
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(asked: dict) -> None:
    "In the fork: be an interpreter that was started with this program."
    import traceback
    import types

    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for number, name in ((0, os.devnull), (1, asked["stdout"]), (2, asked["stderr"])):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)
    sys.argv, sys.path[0] = ["-c", *asked["arguments"]], ""
    places = [place for place in asked["environment"].get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [sys.path[0], *places, *(place for place in sys.path[1:] if place not in places)]
    for name in [] if asked["package"] else [name for name in sys.modules if name.partition(".")[0] == "drpose"]:
        del sys.modules[name]
    module = types.ModuleType("__main__")
    sys.modules["__main__"], status = module, 0
    try:
        exec(compile(asked["code"], "<string>", "exec"), module.__dict__)
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(int(status) % 256)


def _serve() -> None:
    "The template: load the libraries, then fork for every line of JSON that comes in."
    import importlib
    import pkgutil

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print while they load is no answer
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    for module in pkgutil.walk_packages(importlib.import_module("drpose").__path__, "drpose."):
        importlib.import_module(module.name)
    importlib.import_module("drpose.people.clips").embedded_clips()
    del sys.path[0]
    for line in iter(sys.stdin.readline, ""):
        number = os.fork()
        if number == 0:
            answers.close()
            _become(json.loads(line))
        print(number, file=answers)
        while (ended := os.waitpid(number, os.WNOHANG))[0] == 0:
            if select.select([sys.stdin], [], [], 0.02)[0]:  # nobody asks meanwhile: the process that this template belongs to has ended
                os.killpg(number, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(ended[1]), file=answers)


if __name__ == "__main__":
    _serve()
