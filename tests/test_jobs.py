"""Every run notebook goes through papermill at its own (tiny) parameters, and refuses settings it does not know."""

import ast
import importlib.util
import json
import logging
import re
import shutil
import time
from functools import partial

import nbformat
import papermill
import pytest
import tiny_parts
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.exceptions import PapermillExecutionError
from project_files import RUN_CONFIGS, RUN_NOTEBOOKS, code_cells, parameter_cells, relative, source

from drpose.evaluation import mesh_subjects
from drpose.evaluation.mesh_metrics import evaluate_meshes
from drpose.mesh import body_fit, reconstruction
from drpose.mesh.carving import carve_surface
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.pairs.gates import EstimatorDetector
from drpose.reward.skeleton_predictor import SkeletonPredictor

OPTIONAL_PACKAGES = {"anny", "pybullet", "pybullet_data", "rembg", "imageio_ffmpeg", "pytorch3d"}  # the extras of settings.ini
OUTPUT_PARAMETER = "output_dir"  # where a run writes; sent to a temporary folder here
SMALLER = {  # parameters with which a job is run the second time: that it runs at its own is known from the first
    "ablate": {"pairs": 4, "steps": 1}, "guide": {"samples": 2, "evaluation_steps": 1, "given": "true", "scales": [1.5], "sheet": 1}, "benchmark": {"baseline": False}, "benchmark_carving": {"starts": [], "disagreeing": 1, "image_size": 32}, "benchmark_multiview": {"repeats": 1}, "benchmark_pipeline": {"measure": False}, "benchmark_rendering": {"image_sizes": [64], "repeats": 1, "mesh_rings": 30},
    "evaluate": {"drawn": ["tuned"], "detector": "estimator", "num_inference_steps": 2}, "build_dataset": {"anchors": 2, "calibration": 3}, "generate": {"num_inference_steps": 2, "detector": "estimator"}, "reconstruct": {"best_of": 1, "num_inference_steps": 2, "texture_size": 0},
    "real_person": {"frames": [4], "cameras": ["cam03"], "num_inference_steps": 2},
    "posttrain": {"pairs": 4, "steps": 1, "evaluation_steps": 1, "num_inference_steps": 2, "trained_steps": 1, "early_stop": 1, "validation_every": 1, "sheet": 1},
    "posttrain_own": {"steps": 1, "num_inference_steps": 2, "trained_steps": 1, "early_stop": 1, "validation_every": 1, "sheet": 1},
    "train_base": {"steps": 2}, "train_base_on_scans": {"steps": 2, "sample_steps": 2}, "train_pose_estimator": {"dynamic_pairs": 6, "everyday_pairs": 2, "steps": 2}, "train_skeleton_predictor": {"steps": 2}, "train_picture_predictor": {"steps": 2, "pool_objects": 6, "everyday_objects": 2, "guesses": 2},
}  # fmt: skip
A_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def parameters(path) -> dict:
    "The notebook's parameters and their default values."
    (cell,) = parameter_cells(path)
    values = {}
    for statement in ast.parse(source(cell)).body:
        (target,) = statement.targets if isinstance(statement, ast.Assign) else (statement.target,)
        values[target.id] = ast.literal_eval(statement.value)
    return values


def skip_without_its_packages(path) -> None:
    "Skip the notebook at `path` where it imports an optional package that is not installed."
    for cell in code_cells(path):
        imported = {match[1] for match in re.finditer(r"^(?:import|from)\s+(\w+)", source(cell), re.MULTILINE)}
        for name in sorted(imported & OPTIONAL_PACKAGES):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{path.name} needs the optional package {name}")


def execute(path, tmp_path, **changed):
    "Run the notebook in its own folder with `changed` parameters; everything it writes lands under `tmp_path`."
    if OUTPUT_PARAMETER in parameters(path):
        changed.setdefault(OUTPUT_PARAMETER, str(tmp_path / "run"))
    return papermill.execute_notebook(
        path, tmp_path / path.name, parameters=changed, cwd=path.parent, kernel_name="python3", progress_bar=False, execution_timeout=600
    )


@pytest.mark.parametrize("path", RUN_NOTEBOOKS, ids=relative)
def test_run_all_twice_in_one_kernel(path, tmp_path):
    "As in JupyterLab: all cells, then a parameter that the job refuses, then another folder, smaller sizes, and all cells again."
    skip_without_its_packages(path)
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    defaults = cell.source
    always = ({"data_dir": str(tmp_path / "data")} if "data_dir" in parameters(path) else {}) | ({"parts": ["rendering"]} if path.stem == "gpu_check" else {})

    def set_parameters(folder: str, smaller: dict) -> None:
        wanted = always | smaller | {"output_dir": str(tmp_path / folder)}
        assert set(wanted) <= set(parameters(path)), f"{path.name} has no parameter {set(wanted) - set(parameters(path))}"
        lines = [(line, line.partition(":")[0]) for line in defaults.splitlines()]
        cell.source = "\n".join(f"{name}: object = {wanted[name]!r}" if name in wanted else line for line, name in lines)

    def run_all() -> None:
        for number, one in enumerate(notebook.cells):
            if one.cell_type == "code":
                client.execute_cell(one, number)

    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    with client.setup_kernel():
        set_parameters("first", {})
        run_all()
        at = notebook.cells.index(cell)
        client.execute_cell(cell, at)
        notebook.cells.append(nbformat.v4.new_code_cell("# Parameters\nseeed = {'a': None}"))
        client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
        notebook.cells.pop()
        settings = next(number for number, one in enumerate(notebook.cells) if number > at and one.cell_type == "code")
        with pytest.raises(CellExecutionError, match="unknown name 'seeed'"):
            client.execute_cell(notebook.cells[settings], settings)
        time.sleep(1)  # a kernel drops what is sent to it in the moment after an error
        set_parameters("second", SMALLER.get(path.stem, {}))
        run_all()
    assert any((tmp_path / "first").rglob("*")) and any((tmp_path / "second").rglob("*")), f"{path.name} wrote nothing into {OUTPUT_PARAMETER}"
    assert not (tmp_path / "outputs").exists(), f"{path.name} wrote outside of its folder"


@pytest.mark.parametrize("path", RUN_NOTEBOOKS, ids=relative)
def test_papermill_can_read_every_parameter(path, caplog):
    "A comment it cannot parse would hide a parameter, and each use would be warned about."
    with caplog.at_level(logging.WARNING):
        found = papermill.inspect_notebook(str(path))
    assert set(found) == set(parameters(path)) and not caplog.records, [record.message for record in caplog.records]
    assert all(entry["help"].strip() for entry in found.values())


def test_the_gpu_check_goes_on_past_a_failed_part_and_repeats_nothing(tmp_path, monkeypatch):
    "A part that cannot run is named and left behind; what is done is not done again; what failed is tried again."
    path, kept = notebook("gpu_check.ipynb"), tmp_path / "run" / "rendering.json"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step").write_text("a file where a folder should be")
    execute(path, tmp_path, parts=["step", "rendering"], minutes=2.0)
    failed, first = json.loads((tmp_path / "run" / "step.json").read_text()), kept.read_text()
    assert failed["error"] and failed["result"] is None
    assert json.loads(first)["result"]["64 px"]["views_per_second"] > 0 and json.loads((tmp_path / "run" / "room.json").read_text())["disk_gb"] > 2
    (tmp_path / "run" / "step").unlink()
    execute(path, tmp_path, parts=["step", "rendering"])
    again = json.loads((tmp_path / "run" / "step.json").read_text())
    assert again["error"] is None and again["result"]["benchmark"]["results"] and kept.read_text() == first


def check_settings(path, cells_of_code: int = 2, **changed) -> None:
    "Run only the cells that take the settings, in this process: the parameters, what papermill would put behind them, and the first cell of code; or some more."
    (cell,) = parameter_cells(path)
    cells = code_cells(path)
    namespace = {"__name__": "__main__", "In": ["", source(cell), "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in changed.items())]}
    for text in namespace["In"]:
        exec(text, namespace)
    at = cells.index(cell)
    for one in cells[at + 1 : at + cells_of_code]:
        exec(source(one), namespace)


@pytest.mark.parametrize("path", RUN_NOTEBOOKS, ids=relative)
def test_run_notebook_refuses_an_unknown_parameter(path, tmp_path, monkeypatch):
    "papermill itself only warns, and would run the defaults."
    skip_without_its_packages(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="seeed"):
        check_settings(path, seeed=3)


def test_papermill_itself_hands_an_unknown_parameter_on(tmp_path):
    with pytest.raises(PapermillExecutionError, match="seeed"):
        execute(notebook("benchmark_rendering.ipynb"), tmp_path, seeed=3)


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=relative)
def test_config_fits_a_run_notebook(path):
    "Some run notebook knows every key, and its defaults have the same types. YAML reads 1e-4 as text: write 1.0e-4."
    config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    numbers_as_text = [key for key, value in config.items() if isinstance(value, str) and A_NUMBER.fullmatch(value)]
    assert not numbers_as_text, f"{path.name}: {numbers_as_text} are text; write a number with a dot, as in 1.0e-4"
    unknown = {notebook.name: sorted(set(config) - set(parameters(notebook))) for notebook in RUN_NOTEBOOKS}
    assert [] in unknown.values(), f"{path.name} fits no run notebook; unknown keys: {unknown}"
    for notebook in RUN_NOTEBOOKS:
        if unknown[notebook.name]:
            continue
        for key, default in parameters(notebook).items():
            value = config.get(key, default)
            if value is not None and default is not None:
                kinds = (int, float) if type(default) is float else type(default)
                assert isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool), f"{path.name}: {key} is {value!r}, but {default!r} in {notebook.name}"


def notebook(name):
    return next(path for path in RUN_NOTEBOOKS if path.name == name)


@pytest.mark.parametrize("start", ["PSHuman's checkpoint", "Stable Diffusion with body renders"])
def test_a_base_learns_from_scans(start, tmp_path):
    "render_scans, then train_base_on_scans: killed half way it goes on, and what it leaves is a pipeline."
    meshes = [str(tiny_parts.colored_box(tmp_path / f"box_{number}.ply", (0.4 + 0.1 * number, 1.6, 0.3))) for number in range(3)]
    execute(notebook("render_scans.ipynb"), tmp_path, output_dir=str(tmp_path / "scans"), meshes=meshes, size=48)
    bodies = start != "PSHuman's checkpoint"
    build = tiny_parts.stable_unclip_checkpoint if bodies else tiny_parts.pshuman_checkpoint
    for folder in (tmp_path / "scans").glob("[!.]*") if bodies else []:
        (folder / "image").rename(folder / "smpl_image"), shutil.copytree(folder / "smpl_image", folder / "image")
    settings = dict(scans=str(tmp_path / "scans"), checkpoint=str(build(tmp_path / "start")), data_dir=str(tmp_path / "data"), batch_size=2, steps=6, warmup_steps=1, learning_rate=3.0e-3, ema_decay=0.0, sample_steps=2,
                    separate_timesteps=True, condition_dropout=0.05, snr_gamma=5.0, gradient_checkpointing=True, body_renders=bodies, checkpoint_every=2)  # fmt: skip
    execute(notebook("train_base_on_scans.ipynb"), tmp_path, **settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    errors = list(summary["metrics"]["error_by_timestep"].values())
    assert summary["steps"] == 6 and sum(after for _, after in errors) < sum(before for before, _ in errors), errors
    assert (tmp_path / "run" / "box_2.png").exists(), "a sheet of the scan that was held out"
    pipeline = MultiViewPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipeline.unet.config.in_channels == (12 if bodies else 8) and pipeline.config.descriptor == "clip"


@pytest.mark.parametrize("change, sentence", [
    ({"scans": "somewhere"}, "'scans' is '.*somewhere', but needs to be an existing folder"), ({"test_scans": 0}, "'test_scans'"),
    ({"precision": "fp16"}, "overflow in fp16"), ({"fronts": [8]}, "'fronts'"), ({"body_renders": True}, "'body_renders'"),
])  # fmt: skip
def test_train_base_on_scans_refuses_what_does_not_go_together(change, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        check_settings(notebook("train_base_on_scans.ipynb"), **change)


def test_a_skeleton_predictor_learns_from_scans(tmp_path):
    "render_scans with fits, then train_predictor_on_scans with the paper's loss, through a pipeline of six views and a face."
    execute(notebook("render_scans.ipynb"), tmp_path, output_dir=str(tmp_path / "scans"), size=48)
    settings = dict(scans=str(tmp_path / "scans"), checkpoint=str(tiny_parts.pshuman_checkpoint(tmp_path / "start")), data_dir=str(tmp_path / "data"), batch_size=4, steps=12, warmup_steps=1, learning_rate=1.0e-2,
                    loss="bce + 0.1 perceptual", perceptual_weights=str(tiny_parts.vgg_file(tmp_path / "vgg16.safetensors")), fronts=[0, 3], ema_decay=0.0, log_every=1)  # fmt: skip
    execute(notebook("train_predictor_on_scans.ipynb"), tmp_path, **settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found, lines = summary["metrics"]["scans"], [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["steps"] == 12 and lines[-1]["bce"] < 0.5 * lines[0]["bce"] and lines[-1]["perceptual"] > 0
    assert found["map_psnr_db"] > 10 and 0 < found["map_ssim"] < 1 and found["mpjpe_mm"] < 2000 and (tmp_path / "run" / "read.png").exists()
    assert SkeletonPredictor.from_pretrained(tmp_path / "run" / "predictor").config.sigma == 1.0


@pytest.mark.parametrize("change, sentence", [
    ({"loss": "bce + bones"}, "'loss' is 'bce \\+ bones', but needs to be made of maps"),
    ({"loss": "bce + perceptual"}, "'perceptual_weights' is ''"), ({"loss": "bcee"}, "'loss' is 'bcee'; it must be terms"), ({"test_scans": 0}, "'test_scans'"), ({"estimate_share": 1.0}, "'estimate_share'"),
])  # fmt: skip
def test_training_a_predictor_on_scans_refuses_what_does_not_go_together(change, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        check_settings(notebook("train_predictor_on_scans.ipynb"), **change)


def test_generate_keeps_what_is_done_and_refuses_other_settings(tmp_path):
    path = notebook("generate.ipynb")
    execute(path, tmp_path, num_inference_steps=2)
    sheets = sorted((tmp_path / "run").glob("*/sheet.png"))
    pictures = [sheet.read_bytes() for sheet in sheets]
    stamps = [sheet.stat().st_mtime_ns for sheet in sheets]
    assert len(sheets) == 3
    sheets[1].unlink()  # as if it had been stopped here
    execute(path, tmp_path, num_inference_steps=2)
    assert [sheet.read_bytes() for sheet in sheets] == pictures, "each photo has its own seed"
    assert [sheet.stat().st_mtime_ns == stamp for sheet, stamp in zip(sheets, stamps)] == [True, False, True]
    with pytest.raises(PapermillExecutionError, match=r"made with other settings \(num_inference_steps\)"):
        execute(path, tmp_path, num_inference_steps=3)


def test_a_real_person_is_measured_by_a_detector_without_depth(tmp_path, monkeypatch):
    "ViTPose and RTMPose see places alone: there is no pose to tell, and everything else is measured."
    pytest.importorskip("imageio_ffmpeg")
    found = EstimatorDetector.detect
    monkeypatch.setattr(EstimatorDetector, "detect", lambda self, images: found(self, images)._replace(depth=None))
    monkeypatch.chdir(tmp_path)
    check_settings(notebook("real_person.ipynb"), 5, output_dir=str(tmp_path / "run"), num_inference_steps=2)
    (row,) = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    assert {"flat", "constant", "alone: body"} <= set(row) and not [who for who in row if who == "seen" or "told" in who]


def test_ablations_of_other_settings_are_not_taken_for_these(tmp_path):
    "Results are known by arm and seed alone, so their folder says what they were made from; one that does not say is not added to."
    path, results = notebook("ablate.ipynb"), tmp_path / "results"
    check_settings(path, 3, output_dir=str(tmp_path), results_dir=str(results))
    made_from = (results / "inputs.json").read_text()
    (results / "reference-seed0.json").write_text("{}")
    with pytest.raises(ValueError, match="inputs.json: what lies in this folder was made from other inputs: run was"):
        check_settings(path, 3, output_dir=str(tmp_path), results_dir=str(results), batch_size=3)
    assert (results / "inputs.json").read_text() == made_from
    (results / "inputs.json").unlink()
    with pytest.raises(ValueError, match="results_dir"):
        check_settings(path, 3, output_dir=str(tmp_path), results_dir=str(results))


def test_the_main_job_makes_meshes_of_its_first_people(tmp_path, monkeypatch):
    "Bodies and surfaces hardly begin to move here; that each person gets numbers of every model, and the same person each time, is what is asked."
    monkeypatch.setattr(reconstruction, "carve_surface", partial(carve_surface, steps=1))
    monkeypatch.setattr(mesh_subjects, "evaluate_meshes", partial(evaluate_meshes, samples=1_000))
    monkeypatch.setattr(body_fit, "STEPS", 2)
    monkeypatch.setattr(body_fit, "VIEW_STEPS", 1)
    monkeypatch.setattr(body_fit, "MATCH_STEPS", 1)
    check_settings(notebook("posttrain.ipynb"), 99, output_dir=str(tmp_path), mesh_people=2, draw_people=2, samples=2, pairs=4, sheet=1, validation_every=0, advanced={"tracker": "none"}, **{name: 1 for name in ("evaluation_steps", "steps", "batch_size", "num_inference_steps", "trained_steps", "early_stop")})
    summary = json.loads((tmp_path / "summary.json").read_text())
    for benchmark in ("hard", "everyday"):
        found = summary["meshes"][benchmark]
        assert set(found) == {"before", "after", "shipped", "true", "after_change", "shipped_change", "true_change"}
        assert all(found[when]["subjects"] == 2 and found[when]["chamfer_cm"] > 0 for when in ("before", "after", "shipped", "true"))
        assert found["shipped_change"]["chamfer_cm"]["before"] == pytest.approx(found["before"]["chamfer_cm"], rel=1e-4)
        assert len(list((tmp_path / "meshes" / f"{benchmark}_after").glob("*.json"))) == 2
        drawn = summary["draws"][benchmark]
        assert set(drawn) == {"before", "after", "shipped"} and all(one["draws"] == 8 and one["people"] == 2 and 0 < one["coverage_mm"] < one["depth_mm"] and one["spread_mm"] > 0 for one in drawn.values())
        assert len({one["depth_of_flat"] for one in drawn.values()}) == 1
