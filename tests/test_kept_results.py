"""Kept results know what they were made from (drpose.ground.provenance, drpose.ground.trainer): other inputs, a second process and damaged checkpoints are refused; a run goes on where it would have come to itself."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_parts
import torch
from torch import nn

from drpose.ground.provenance import alone, digest_of, same_inputs
from drpose.ground.trainer import LoopConfig, RunDirectory, environment, optimise
from drpose.multiview.unet import save_lora
from drpose.posttraining.post_training import posttrain


def train(folder, seed: int = 0, **settings):
    "A run of miniature parts; 'unet', 'data' and so on name parts to exchange."
    names = ("unet", "scheduler", "predictor", "data", "prompt_embeds", "rig")
    parts = dict(zip(names, tiny_parts.parts(seed), strict=True))
    parts |= {name: settings.pop(name) for name in (*names, "start_from") if name in settings}
    return posttrain(tiny_parts.config(**settings), **parts, run_path=folder)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next((folder / "lora").glob("*.safetensors")))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    train(folder, steps=4)
    return folder


@pytest.mark.parametrize(
    ("exchange", "name"),
    [({"data": tiny_parts.pairs(seed=9)}, "pairs"), ({"unet": tiny_parts.unet(5)}, "network"), ({"predictor": tiny_parts.predictor(7)}, "reward"), ({"prompt_embeds": 2 * tiny_parts.parts()[4]}, "prompts")],
)
def test_a_run_belongs_to_its_inputs(begun, exchange, name):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"inputs.json: this run was made from other inputs: {name} was"):
        train(begun, steps=4, **exchange)
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    train(begun, steps=4)


def test_a_finished_run_can_be_trained_longer(tmp_path):
    "Raising the steps goes on as the longer run would have; where it cannot, it says so."
    train(tmp_path / "long", steps=6)
    train(tmp_path / "short", steps=3)
    train(tmp_path / "short", steps=6)
    first, second = adapter(tmp_path / "long"), adapter(tmp_path / "short")
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="has taken 6 steps already, more than steps = 5"):
        train(tmp_path / "short", steps=5)
    train(tmp_path / "falls", steps=4, decay_steps=2)
    with pytest.raises(ValueError, match="its learning rate has fallen already"):
        train(tmp_path / "falls", steps=8, decay_steps=2)


def test_a_run_starts_from_an_adapter(tmp_path):
    train(tmp_path / "first", steps=3)
    adapted = tmp_path / "first" / "lora"
    train(tmp_path / "second", steps=1, start_from=adapted, learning_rate=1e-9)
    before, after = adapter(tmp_path / "first"), adapter(tmp_path / "second")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before) and any(before[name].abs().max() > 1e-3 for name in before if "lora_B" in name)
    with pytest.raises(ValueError, match="has r = 2, and the run lora_rank = 4"):
        train(tmp_path / "third", steps=1, start_from=adapted, lora_rank=4)
    with pytest.raises(ValueError, match="lora_rank 0 trains all weights"):
        train(tmp_path / "fourth", steps=1, start_from=adapted, lora_rank=0)
    with pytest.raises(ValueError, match="other inputs: adapter to start from"):
        train(tmp_path / "second", steps=1, learning_rate=1e-9)


def damaged(folder: Path, change) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "checkpoint.pt")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "damaged checkpoint"),
        (lambda state: state["optimizer"]["state"][0].pop("exp_avg_sq"), "damaged checkpoint"),
        (lambda state: state["parameters"].pop(), "do not match this model's"),
        (lambda state: state.update(processes=2), "was written by 2 processes"),
        (lambda state: state.update(step=-1), "is cut short or no checkpoint"),
        (lambda state: state.update(skipped="many"), "damaged checkpoint"),
        (lambda state: state.pop("optimizer"), "damaged checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused(change, sentence, tmp_path):
    train(tmp_path, steps=3)
    damaged(tmp_path, change)
    with pytest.raises(ValueError, match=sentence) as error:
        train(tmp_path, steps=3)
    assert "checkpoint.pt" in str(error.value) and "weights_only" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", bytes(100)])
def test_a_torn_checkpoint_names_its_file(content, tmp_path):
    train(tmp_path, steps=3)
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt: is cut short or no checkpoint of a run; delete it to begin again"):
        train(tmp_path, steps=3)


def test_one_bad_line_of_metrics_deletes_nothing(tmp_path):
    train(tmp_path, steps=3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{torn", *lines[1:]]) + "\n")
    before = path.read_text()
    with pytest.raises(ValueError, match="metrics.jsonl: line 2 is not a JSON object"):
        train(tmp_path, steps=6)
    assert path.read_text() == before


def test_without_git_a_run_still_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git_commit"] is None


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, step):
        return (self.weight - 1) ** 2, {}


HOLD = """
import sys, time
from drpose.ground.provenance import alone
with alone(sys.argv[1], "trains"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_and_one_folder(tmp_path):
    "The second is refused while the first lives, and not when it was killed."
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "held"
    config = LoopConfig(steps=2, learning_rate=0.1, warmup_steps=0, log_every=1, checkpoint_every=1, tracker="none")
    with pytest.raises(ValueError, match="another process trains in this folder; wait until it has ended or choose another folder"):
        optimise(RunDirectory(tmp_path / "run", config), Weight(), config, "test")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    holder.kill()
    holder.wait()
    (tmp_path / "run" / ".checkpoint.pt.x.partial").write_bytes(b"left by the dead one")
    optimise(RunDirectory(tmp_path / "run", config), Weight(), config, "test")
    assert (tmp_path / "run" / "checkpoint.pt").exists() and not list((tmp_path / "run").glob(".*.partial"))


def test_digests_follow_content(tmp_path):
    @dataclasses.dataclass
    class Settings:
        a: int = 1
        tensor: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(2))

    assert digest_of(Settings()) == digest_of(Settings()) != digest_of(Settings(2))
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"]) and digest_of([]) != digest_of(None) and digest_of(True) != digest_of(1)
    assert digest_of(torch.zeros(2, dtype=torch.bfloat16)) != digest_of(torch.zeros(2, dtype=torch.half))
    assert digest_of(float("nan")) == digest_of(float("nan"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = digest_of(tmp_path / "a")
    (tmp_path / "a" / ".lock").touch()
    assert digest_of(tmp_path / "a") == before, "hidden files are nobody's input"
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert digest_of(tmp_path / "a") != before, "inside of a folder names tell files apart"
    with pytest.raises(TypeError, match="no digest of a set"):
        digest_of({1, 2})


def test_inputs_come_and_go(tmp_path):
    same_inputs(tmp_path / "inputs.json", {"photo": 1}, "this picture")
    for inputs in ({"photo": 2}, {"photo": 1, "model": 1}, {}):
        with pytest.raises(ValueError, match="this picture was made from other inputs"):
            same_inputs(tmp_path / "inputs.json", inputs, "this picture")
    assert json.loads((tmp_path / "inputs.json").read_text()) == {"photo": digest_of(1)}


def test_an_adapter_is_part_of_nothing_but_itself(tmp_path):
    "A network's digest does not depend on an adapter that training puts on it."
    unet = tiny_parts.unet()
    before = digest_of(unet)
    train(tmp_path, steps=1, unet=unet)
    assert any("lora_" in name for name in unet.state_dict()) and digest_of(unet) == before
    save_lora(unet, tmp_path / "again")


def test_the_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), alone(tmp_path, "works"):
        raise RuntimeError
    with alone(tmp_path, "works"):
        pass
