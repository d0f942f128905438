"""The command line (drpose.ground.command): jobs are found, names are checked before a kernel starts, paths are the shell's, a stray module in the folder is not run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drpose.ground import command
from drpose.ground.command import (find_preset, job_notebooks, job_parameters, job_presets, main, read_preset,
                                   settings_of)


def said(capsys, *arguments: str) -> tuple[int, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_jobs_and_their_presets_are_listed(capsys):
    status, text = said(capsys, "jobs")
    assert status == 0 and all(name in text for name in job_notebooks()) and "Presets: long, tiny" in text
    fitting = {preset for path in job_notebooks().values() for preset in job_presets(path)}
    assert fitting == {path.stem for path in (next(iter(job_notebooks().values())).parent / "configs").glob("*.yaml")}, "each preset belongs to a job"


@pytest.mark.parametrize("name", sorted(job_notebooks()))
def test_help_tells_every_parameter(name, capsys):
    status, text = said(capsys, "run", name, "--help")
    parameters = job_parameters(job_notebooks()[name])
    assert status == 0 and all(parameter.name in text and parameter.help in text for parameter in parameters.values())


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["run", "postrain"], "postrain: no such job; did you mean posttrain"), (["run", "posttrain", "-f", "tinny"], "tinny: no such preset; posttrain has long, tiny"), (["run", "posttrain", "-p", "stesp", "3"], "-p stesp: posttrain has no such parameter; did you mean steps"),
    (["run", "posttrain", "-f", "small"], "this preset is for posttrain_own"), (["run", "posttrain", "-f", "empty.yaml"], "empty.yaml: 'steps' is left empty"), (["run", "posttrain", "-f", "list.yaml"], "list.yaml: holds a list"),
    (["run", "posttrain", "-f", "torn.yaml"], "torn.yaml: is no valid YAML"), (["run", "posttrain", "-f", "evil.yaml"], "evil.yaml: is no valid YAML"), (["run", "posttrain", "-f", "other.yaml"], "posttrain has no parameter 'stesp'; did you mean steps"),
])  # fmt: skip
def test_what_cannot_run_is_refused_before_a_kernel_starts(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty": "steps:\n", "list": "- 1\n", "torn": "steps: [1\n", "other": "stesp: 3\n", "evil": "steps: !!python/object/apply:os.system ['touch MARKER']\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(command, "run_job", lambda *inputs: pytest.fail("a kernel was started"))
    status, text = said(capsys, *arguments)
    assert status == 2 and sentence in text and text.count("\n") == 1 and not (tmp_path / "MARKER").exists()


def test_values_are_what_was_meant(tmp_path):
    job = job_notebooks()["generate"]
    given = [("photos", "me.png"), ("eta", "1e-1"), ("guidance_scale", "2"), ("low_memory", "true"), ("model", "1e5")]
    assert settings_of(job, None, given, "out") == {"photos": ["me.png"], "eta": 0.1, "guidance_scale": 2, "low_memory": True, "model": "1e5", "output_dir": "out"}
    (tmp_path / "mine.yaml").write_text("seed: 7\neta: 0.5\n")
    assert settings_of(job, str(tmp_path / "mine.yaml"), [("seed", "8")]) == {"seed": 8, "eta": 0.5}
    assert read_preset(find_preset("tiny", job_notebooks()["posttrain"]))["steps"] > 0


def test_a_job_runs_where_it_was_typed(tmp_path):
    "From a folder with data of somebody else's, a module of a famous name among them."
    picture = np.zeros((200, 200, 4), np.uint8)
    picture[20:180, 70:130] = (220, 30, 30, 255)
    Image.fromarray(picture, "RGBA").save(tmp_path / "me.png")
    for name in ("diffusers", "torch", "numpy", "drpose"):
        (tmp_path / f"{name}.py").write_text("open('MARKER', 'w'); raise SystemExit(9)")
    program = [shutil.which("drpose", path=str(Path(sys.executable).parent)) or "drpose", "run", "generate", "-p", "num_inference_steps", "2"]
    environment = os.environ | {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, "-p", "photos", "me.png", "-o", "pictures"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    assert (tmp_path / "pictures" / "me" / "color_090.png").is_file() and (tmp_path / "pictures" / "generate.ipynb").is_file() and not (tmp_path / "MARKER").exists()
    assert json.loads((tmp_path / "pictures" / "summary.json").read_text())["photos"] == [str(tmp_path / "me.png")]
    done = subprocess.run([*program, "-p", "photos", "gone.png", "-o", "others"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and f"{tmp_path / 'gone.png'}: no such file" in done.stderr.splitlines()[-1]
