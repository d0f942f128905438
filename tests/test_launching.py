"""Several processes: gradients are averaged, two with one sample are one with two, and a killed run loses nothing."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_parts
import torch
from project_files import run_python
from safetensors.torch import load_file

from drpose.ground.model_files import embedded_models
from drpose.ground.trainer import RunDirectory, new_accelerator
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.multiview.scans import POSE_FILE, render_scans
from drpose.pairs.planning import plan_dataset
from drpose.pairs.dataset import build_dataset
from drpose.reward.skeleton_predictor import SkeletonPredictor
from drpose.posttraining.validation import read_validation
from drpose.posttraining.launching import JOB, PostTrainSources, launch, require_processes, rig_of

TESTS = Path(__file__).parent


def two_ranks(*jobs: tuple) -> list:
    "Run functions of two_ranks.py, each (name, folder, settings), in a process of its own, which may fork: this one has threads."
    jobs = json.dumps([(what, str(folder), arguments) for what, folder, arguments in jobs])
    found = run_python(f"import sys; sys.path.insert(0, {str(TESTS)!r}); import runpy; runpy.run_path({str(TESTS / 'two_ranks.py')!r}, run_name='__main__')", jobs, cwd=TESTS.parent, timeout=600, package=True)
    assert found.returncode == 0, found.stderr[-3000:]
    printed = json.loads(found.stdout.splitlines()[-1])
    assert all(not isinstance(codes, list) or not any(codes) for codes in printed), found.stderr[-3000:]
    return printed


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "lora").glob("*.safetensors")))


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys() and len(one) > 0
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("estimator", ["drtune", "draft-lv", "async"])
def test_gradients_are_equal_on_ranks_and_those_of_the_full_batch(tmp_path, estimator):
    "Float64, with noise in the steps (but for asynchronous rollouts): 2 processes x 1, 1 process x 2, and 1 process x 2 parts of 1."
    shared = dict(estimator=estimator, kl_weight=0.5, eta=0.0 if estimator == "async" else 0.7)
    two_ranks(*(("gradients", tmp_path, shared | split) for split in ({"ranks": 2, "batch_size": 1}, {"ranks": 1, "batch_size": 2}, {"ranks": 1, "batch_size": 1, "accumulate": 2})))
    found = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    assert sorted(found) == ["rank0-of1x1", "rank0-of1x2", "rank0-of2x1", "rank1-of2x1"]
    whole = found.pop("rank0-of1x1")
    assert max(value.abs().max() for value in whole["gradients"].values()) > 1e-4
    for name, part in found.items():
        assert furthest(part["gradients"], whole["gradients"]) < 1e-12, name
        assert abs(part["loss"] - whole["loss"]) < 1e-12, name
    assert furthest(found["rank0-of2x1"]["gradients"], found["rank1-of2x1"]["gradients"]) == 0


@pytest.mark.parametrize("estimator", ["drtune", "async"])
@pytest.mark.parametrize(("double", "learning_rate", "tolerance"), [(False, 1e-4, 1e-6), (True, 1e-3, 1e-12)], ids=["single", "double"])
def test_two_processes_with_one_sample_learn_what_one_with_two_learns(tmp_path, estimator, double, learning_rate, tolerance):
    """Losses and LoRA weights after 5 steps.

    Adam's first steps divide a gradient by its own size, rounding errors of small ones included: what is left of them grows with the step size, and differs between processors.
    Double precision shows that nothing but rounding is left.
    """
    shared = dict(steps=5, estimator=estimator, learning_rate=learning_rate, double=double)
    splits = {"2x1": {"ranks": 2, "batch_size": 1}, "1x2": {"ranks": 1, "batch_size": 2}, "accumulated": {"ranks": 1, "batch_size": 1, "accumulate": 2}}
    two_ranks(*(("train", tmp_path / name, shared | split) for name, split in splits.items()))
    lines = {name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("2x1", "1x2", "accumulated")}
    assert all(value.dtype == (torch.float64 if double else torch.float32) for value in adapter(tmp_path / "1x2").values())
    for name in ("2x1", "accumulated"):
        assert furthest(adapter(tmp_path / name), adapter(tmp_path / "1x2")) < tolerance
        assert len(lines[name]) == 5 and all(abs(a["loss"] - b["loss"]) <= 1.01e-6 for a, b in zip(lines[name], lines["1x2"], strict=True))
    assert max(value.abs().max() for name, value in adapter(tmp_path / "1x2").items() if "lora_B" in name) > learning_rate


@pytest.mark.parametrize("estimator", ["drtune", "async"])
def test_twenty_kills_lose_nothing(tmp_path, estimator):
    "kill -9 of a two-process run at random moments, 20 in all over both estimators, resumed each time: weights and metrics equal the uninterrupted run's, no temporary or torn file is left."
    settings = dict(steps=30, batch_size=1, checkpoint_every=2, estimator=estimator)
    _, printed = two_ranks(("train", tmp_path / "whole", settings | {"ranks": 2}), ("kill_and_resume", tmp_path / "killed", settings | {"kills": 10, "seed": time.time_ns()}))
    assert printed["kills"] == 10 and printed["last"] == [0, 0], printed
    assert max(printed["resumed_after"]) > 0, printed  # at least one kill came while it trained
    whole = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*"))
    for run in range(printed["runs"]):
        folder = tmp_path / "killed" / f"run{run}"
        assert furthest(adapter(folder), adapter(tmp_path / "whole")) == 0, printed
        assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text(), printed
        assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == whole, printed


def test_launch_starts_as_many_as_asked_and_reads_back(tmp_path, capsys):
    "Through torchrun, with the shipped models; then again: nothing is trained twice, and what it returns draws alike."
    sources = PostTrainSources(str(build_dataset(plan_dataset(4), tmp_path / "pairs")))
    config = tiny_parts.config(steps=2, batch_size=1)
    result = launch(config, sources, tmp_path / "run", processes=2)
    assert "posttrain step 2/2" in capsys.readouterr().out and result.loop.steps == 2 and result.loop.finished
    assert len(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["parameters"]) == len([name for name, _ in result.unet.named_parameters() if "lora_" in name])
    pipeline = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    pipeline.load_lora_weights(tmp_path / "run" / "lora")
    assert furthest(result.unet.state_dict(), pipeline.unet.state_dict()) == 0
    rows, lines = rig_of(pipeline), RunDirectory(tmp_path / "run", config).metrics()
    assert rows.image_size == 64 and rows.num_views == 4 and [line["step"] for line in lines] == [1, 2]


def test_a_failing_process_is_reported_with_its_reason(tmp_path):
    sources = PostTrainSources(str(build_dataset(plan_dataset(2), tmp_path / "pairs")))
    (tmp_path / "pairs" / "dataset.json").write_text('{"pairs": 7}')
    with pytest.raises(RuntimeError, match="exit code 1 after ValueError: .*promises 7 pairs") as caught:
        launch(tiny_parts.config(steps=2), sources, tmp_path / "run", processes=2)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoint.pt").exists()


def test_fewer_processes_than_asked_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="2 processes were asked for, but 1 run"):
        require_processes(new_accelerator(tiny_parts.config(), tmp_path), 2)


@pytest.mark.parametrize("processes", [0, 1.5, True, "2"])
def test_bad_number_of_processes(tmp_path, processes):
    with pytest.raises(ValueError, match="whole number"):
        launch(tiny_parts.config(), PostTrainSources("nowhere"), tmp_path / "run", processes)
    assert not (tmp_path / "run" / JOB).exists()


@pytest.mark.parametrize("settings", [{}, {"reward": "maps + silhouette"}, {"lora_rank": 0}])
def test_a_pshuman_checkpoint_is_post_trained(tmp_path, settings):
    "Its layout, six body views and a face, CLIP descriptors: pairs of 64-pixel pictures in, an adapter that its pipeline loads out."
    tiny_parts.pshuman_checkpoint(tmp_path / "models" / "pipeline")
    SkeletonPredictor(block_out_channels=(16, 16), sigma=1.0).save_pretrained(tmp_path / "models" / "predictor")
    pairs = str(build_dataset(plan_dataset(2), tmp_path / "pairs"))
    config = tiny_parts.config(steps=2, batch_size=1, **settings)
    result = launch(config, PostTrainSources(pairs, str(tmp_path / "models")), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run", config).metrics()
    assert lines[0]["kl"] < 1e-10 and lines[1]["kl"] > 0 and all(line["grad_norm"] > 0 for line in lines)
    pipeline = MultiViewPipeline.from_pretrained(tmp_path / "models" / "pipeline")
    if result.adapter is not None:
        pipeline.load_lora_weights(result.adapter)
        assert furthest(result.unet.state_dict(), pipeline.unet.state_dict()) == 0


@pytest.fixture(scope="module")
def own_world(tmp_path_factory) -> PostTrainSources:
    "What somebody with a pipeline of PSHuman's kind would have: models, pairs, held-out pairs, and scans of four boxes with something like a pose."
    folder = tmp_path_factory.mktemp("own")
    tiny_parts.pshuman_checkpoint(folder / "models" / "pipeline")
    for seed, name in enumerate(("predictor", "judge")):
        tiny_parts.predictor(seed).save_pretrained(folder / "models" / name)
    for name, seed in (("pairs", 0), ("held_out", 1)):
        build_dataset(plan_dataset(4, seed), folder / name)
    for place in render_scans([tiny_parts.colored_box(folder / f"box_{number}.ply", (0.4 + 0.1 * number, 1.6, 0.3)) for number in range(4)], folder / "scans", size=48):
        (place / POSE_FILE).write_text(json.dumps({"joints": (0.1 * torch.randn(23, 3, generator=torch.Generator().manual_seed(3))).tolist(), "scale": 0.5}))
    return PostTrainSources(*(str(folder / name) for name in ("pairs", "models", "scans", "held_out")))


@pytest.mark.parametrize("settings", [{}, {"reward": "maps + silhouette + perceptual", "lora_rank": 0}])
def test_validation_watches_a_pipeline_of_pshumans_kind(own_world, tmp_path, settings):
    "Scans say what everyday people look like, held-out pairs are the hard ones; nothing of the tiny world's is used."
    if "perceptual" in settings.get("reward", ""):
        settings = settings | {"perceptual_weights": str(tiny_parts.vgg_file(tmp_path / "vgg16.safetensors"))}
    config = tiny_parts.config(steps=2, batch_size=1, validation_every=1, validation_people=4, validation_stop=False, learning_rate=1e-3, **settings)
    launch(config, own_world, tmp_path / "run")
    looks = read_validation(tmp_path / "run")
    assert [look["step"] for look in looks] == [1, 2] and all(math.isfinite(look[name]) for look in looks for name in ("hard_mm", "everyday_mm", "psnr", "reward", "judge_reward", "kl", "diversity", "frechet"))
    assert all(look["kl"] > 0 for look in looks), "the network has moved"
    assert sorted(path.name for path in (tmp_path / "run" / "validation").iterdir()) == ["everyday-000001.png", "everyday-000002.png", "hard-000001.png", "hard-000002.png"]


def test_validation_without_people_are_refused_before_anything_is_trained(own_world, tmp_path):
    config = tiny_parts.config(steps=2, batch_size=1, validation_every=1, validation_people=4)
    for changes, sentence in ((dict(validation_scans="", validation_pairs=""), "not the tiny world's: name validation_scans and validation_pairs"), (dict(validation_scans=""), "validation_scans '': holds 0"), (dict(validation_pairs=str(tmp_path)), "dataset.json: no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            launch(config, replace(own_world, **changes), tmp_path / "run")
    with pytest.raises(ValueError, match="holds 4 people with a known pose, needed 5"):
        launch(replace(config, validation_people=5), own_world, tmp_path / "run")
    assert not (tmp_path / "run").exists()
