"""Settings, files and the loop."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from drpose.ground.seeding import seeded_generator
from drpose.ground.files import read_json, write_atomic, write_json
from drpose.ground.trainer import (LocalPath, LocalPaths, LoopConfig, ModelName, RunDirectory, ask_to_stop, config_from,
                                   learning_rate_at, notebook_parameters, optimise, split_settings)
from drpose.posttraining.post_training import PostTrainConfig


@dataclass
class Extra:
    pairs: int = 3


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"learning_rat": 1e-4}, ValueError, "unknown name 'learning_rat'"),
        ({"learning_rate": "1e-4"}, TypeError, "'learning_rate' is '1e-4' .str., but needs a float .in YAML write 1.0e-4"),
        ({"learning_rate": 0.0}, ValueError, "'learning_rate' is 0.0, but needs to be above 0"),
        ({"learning_rate": float("inf")}, ValueError, "finite"),
        ({"steps": 0}, ValueError, "'steps' is 0"),
        ({"steps": 2.5}, TypeError, "'steps' is 2.5"),
        ({"steps": True}, TypeError, "needs a int"),
        ({"steps": 10, "decay_steps": 11}, ValueError, "between 0 and steps = 10"),
        ({"ema_decay": 1.0}, ValueError, "in \\[0, 1\\)"),
        ({"max_grad_norm": -1.0}, ValueError, "'max_grad_norm'"),
        ({"log_every": 0}, ValueError, "log_every"),
        ({"estimator": "magic"}, ValueError, "one of drtune"),
        ({"kl_weight": -0.1}, ValueError, "at least 0"),
        ({"batch_size": 0}, ValueError, "'batch_size'"),
        ({"trained_steps": 11}, ValueError, "between 1 and num_inference_steps = 10"),
        ({"early_stop": 11}, ValueError, "'early_stop' is 11"),
        ({"early_stop_least": 5}, ValueError, "'early_stop_least' is 5"),
        ({"reward": "blur"}, ValueError, "reward is 'blur'"),
        ({"reward": "maps + maps"}, ValueError, "must appear once"),
        ({"reward": "perceptual"}, ValueError, "'perceptual_weights' is ''"),
        ({"reward_radius": -0.5}, ValueError, "'reward_radius'"),
        ({"step_choice": "any"}, ValueError, "one of spaced"),
        ({"gradient_point": "first"}, ValueError, "one of last"),
        ({"copies": 0}, ValueError, "'copies' is 0"),
        ({"eta": 1.5}, ValueError, "'eta' is 1.5"),
        ({"guidance_scale": 0.5}, ValueError, "'guidance_scale'"),
        ({"estimator": "async", "eta": 0.5}, ValueError, "for asynchronous rollouts"),
        ({"checkpointing": "some"}, ValueError, "one of none, blocks, calls, both"),
        ({"validation_every": -1}, ValueError, "0 = never"),
        ({"validation_people": 2}, ValueError, "at least 4"),
        ({"accumulate": 0}, ValueError, "'accumulate' is 0"),
        ({"precision": "fp16"}, ValueError, "overflow in fp16"),
        ({"precision": "fp8"}, ValueError, "'precision' is 'fp8'"),
        ({"lora_rank": -1}, ValueError, "0 trains all weights"),
        ({"lora_targets": "some"}, ValueError, "'attention' or 'all'"),
    ],
)
def test_bad_settings(values, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        config_from(PostTrainConfig, values, "tiny.yaml")
    assert "\n" not in str(caught.value)


def test_integers_serve_as_floats():
    assert config_from(PostTrainConfig, {"kl_weight": 1}).kl_weight == 1.0


def kernel(*cells: str, **left_over) -> dict:
    "A kernel's globals after it ran these cells."
    namespace = {"In": ["", *cells]} | left_over
    for cell in cells:
        exec(cell, namespace)
    return namespace


PARAMETERS = "steps: int = 4  # optimiser steps\npairs: int = 5\nkl_weight: float = 0.5"


def test_parameters_are_dealt_out():
    config, extra = split_settings(notebook_parameters(kernel(PARAMETERS)), PostTrainConfig, Extra)
    assert (config.steps, config.kl_weight, extra.pairs) == (4, 0.5, 5)
    with pytest.raises(ValueError, match="unknown name 'stesp'"):
        split_settings(notebook_parameters(kernel(PARAMETERS, "# Parameters\nstesp = 9\n")), PostTrainConfig, Extra)


@pytest.mark.parametrize("value", ["None", "{'a': 1}", "[1]"])
def test_no_unknown_name_goes_unnoticed(value):
    with pytest.raises(ValueError, match="unknown name 'stesp'"):
        split_settings(notebook_parameters(kernel(PARAMETERS, f"# Parameters\nstesp = {value}\n")), PostTrainConfig, Extra)


def test_only_the_cell_of_parameters_counts():
    "A notebook's own variables are none, nor is a refused value of an earlier pass; what was run last holds."
    left_over = kernel(PARAMETERS, "# Parameters\nstesp = 9\n", "azimuth = 3", PARAMETERS.replace("= 4", "= 7"), began=1.0, crop=[1])
    assert notebook_parameters(left_over) == {"steps": 7, "pairs": 5, "kl_weight": 0.5}
    assert notebook_parameters(kernel(PARAMETERS, "# Parameters\nsteps = 9\n"))["steps"] == 9
    with pytest.raises(ValueError, match="cell of parameters has not been run"):
        notebook_parameters(kernel("steps = 3"))


@dataclass
class Places:
    folder: LocalPath = ""
    files: LocalPaths = ()
    model: ModelName = ""


def test_paths_are_told_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = config_from(Places, {"folder": "runs/a", "files": ["b.png", "~/c.png"], "model": "owner/model"})
    assert found == Places(str(tmp_path / "runs" / "a"), (str(tmp_path / "b.png"), str(tmp_path / "home" / "c.png")), "owner/model")
    assert config_from(Places, {"folder": "", "model": "./owner/model"}) == Places("", (), str(tmp_path / "owner" / "model"))


@pytest.mark.parametrize(("values", "sentence"), [({"files": "b.png"}, "'files' is 'b.png' .str., but needs a list"), ({"files": None}, "'files' is left empty"), ({"folder": None}, "'folder' is left empty"), ({"folder": {"a": 1}}, "'folder' is {'a': 1}")])
def test_empty_and_nested_values_are_refused(values, sentence):
    with pytest.raises(TypeError, match=sentence):
        config_from(Places, values)


def test_learning_rate_rises_holds_and_falls():
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10, decay_steps=50)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:51] == [1.0] * 42 and rates[75] == 0.5 and rates[99] == 0.02


def test_addresses_are_independent_of_history():
    torch.manual_seed(5)
    first = torch.rand(4, generator=seeded_generator(1, 2, "noise"))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=seeded_generator(1, 2, "noise")))
    assert not torch.equal(first, torch.rand(4, generator=seeded_generator(1, 2, "pairs")))
    assert not torch.equal(torch.rand(4, generator=seeded_generator(1, 12)), torch.rand(4, generator=seeded_generator(11, 2)))


def test_atomic_write_keeps_the_old_file_on_error(tmp_path):
    path = write_json(tmp_path / "a.json", {"x": 1})

    def fails(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fails)
    assert read_json(path) == {"x": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("content", "error", "sentence"), [(None, FileNotFoundError, "no such file"), ("{", ValueError, "not valid JSON")])
def test_bad_json(tmp_path, content, error, sentence):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(error, match=f"a.json: {sentence}"):
        read_json(tmp_path / "a.json")


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 0.0]))

    def forward(self, step):
        x = torch.randn(8, 2, generator=seeded_generator(0, step))
        return ((x @ self.weight) - x @ torch.tensor([1.0, -2.0])).square().mean(), {}


def test_loop_learns_and_logs(tmp_path):
    config = LoopConfig(steps=300, learning_rate=0.05, ema_decay=0.9, log_every=100, checkpoint_every=100)
    line = Line()
    result = optimise(RunDirectory(tmp_path, config), line, config)
    torch.testing.assert_close(line.weight.detach(), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    assert result.finished and [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [100, 200, 300]


def test_stopping_for_time_can_be_continued(tmp_path):
    whole, parts = Line(), Line()
    config = LoopConfig(steps=20, learning_rate=0.05, log_every=5, checkpoint_every=5)
    optimise(RunDirectory(tmp_path / "whole", config), whole, config)
    short = LoopConfig(**(vars(config) | {"minutes": 1e-9}))
    results = []
    for _ in range(20):
        parts = Line()
        results.append(optimise(RunDirectory(tmp_path / "parts", short), parts, short))
    assert not results[0].finished and results[0].steps == 1 and results[-1].finished
    assert torch.equal(whole.weight, parts.weight)


def test_a_run_that_is_asked_to_stop_ends_at_its_next_checkpoint_and_goes_on(tmp_path):
    whole, parts = Line(), Line()
    config = LoopConfig(steps=20, learning_rate=0.05, log_every=100, checkpoint_every=5)
    optimise(RunDirectory(tmp_path / "whole", config), whole, config)
    with pytest.raises(FileNotFoundError, match="needed the folder of a run"):
        ask_to_stop(tmp_path / "parts")
    first = optimise(RunDirectory(tmp_path / "parts", config), parts, config, on_step=lambda step: ask_to_stop(tmp_path / "parts") if step == 7 else None)
    run = RunDirectory(tmp_path / "parts", config)
    assert (first.steps, first.finished, run.state()["step"]) == (10, False, 10)
    assert [line["step"] for line in run.metrics()] == [10], "the last step is logged"
    parts = Line()
    second = optimise(run, parts, config)  # the wish was for the first start
    assert second.finished and torch.equal(whole.weight, parts.weight) and not run.stop_path.exists()


def test_torn_metrics_line_is_dropped(tmp_path):
    run = RunDirectory(tmp_path, LoopConfig())
    run.log(1, {"loss": 2.0})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in run.metrics()] == [1]


def test_checkpoint_of_another_model_is_refused(tmp_path):
    config = LoopConfig(steps=2, checkpoint_every=1)
    optimise(RunDirectory(tmp_path, config), Line(), config)
    other = Line()
    other.weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="do not match this model"):
        optimise(RunDirectory(tmp_path, config), other, config)
