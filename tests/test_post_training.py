"""Post-training: the KL penalty starts at zero, the base stays as it was, the reward rises, and a killed run loses nothing."""

import json
import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_parts
import torch
import warm_python
from safetensors.torch import load_file

from drpose.ground.trainer import RunDirectory
from drpose.multiview.unet import adapters_off, merged
from drpose.multiview.pipeline import Condition, denoise, predict
from drpose.reward.rewards import ForegroundMap, RewardSum
from drpose.posttraining.post_training import PairConditions, PostTrainLoss, posttrain, prepare_weights


def base_tensors(unet):
    return {name.replace(".base_layer", ""): value.clone() for name, value in unet.state_dict().items() if "lora_" not in name}


def loss_module(config, seed=0):
    unet, scheduler, predictor, data, prompts, rig = tiny_parts.parts(seed)
    base = prepare_weights(unet, config)
    return PostTrainLoss(unet, base, scheduler, RewardSum(predictor, config.reward), data, prompts, rig, config)


@pytest.mark.parametrize("rank", [2, 0])
def test_kl_starts_at_zero_and_grows(tmp_path, rank):
    config = tiny_parts.config(lora_rank=rank)
    posttrain(config, *tiny_parts.parts(), tmp_path)
    lines = RunDirectory(tmp_path, config).metrics()
    assert lines[0]["kl"] < 1e-10 and lines[-1]["kl"] > 1e-6
    assert [line["step"] for line in lines] == list(range(1, 11))


def test_lora_leaves_the_base_bit_identical(tmp_path):
    parts = tiny_parts.parts()
    before = base_tensors(parts[0])
    result = posttrain(tiny_parts.config(), *parts, tmp_path)
    after = base_tensors(result.unet)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(next(result.adapter.glob("*.safetensors")))
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)


def test_reward_rises_without_the_kl_penalty(tmp_path):
    config = tiny_parts.config(steps=40, batch_size=6, kl_weight=0.0, lora_rank=0, learning_rate=5e-3, checkpoint_every=40)
    posttrain(config, *tiny_parts.parts(), tmp_path)
    rewards = [line["reward"] for line in RunDirectory(tmp_path, config).metrics()]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.02


def test_the_kl_penalty_shortens_the_way(tmp_path):
    ends = []
    for weight in (0.0, 100.0):
        config = tiny_parts.config(steps=25, kl_weight=weight)
        posttrain(config, *tiny_parts.parts(), tmp_path / str(weight))
        ends.append(RunDirectory(tmp_path / str(weight), config).metrics()[-1]["kl"])
    assert ends[1] < 0.2 * ends[0]


def test_every_adapter_matrix_gets_a_gradient():
    module = loss_module(tiny_parts.config(estimator="full", early_stop=1))
    with torch.no_grad():
        for name, parameter in module.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    loss, _ = module(0)
    loss.backward()
    silent = [name for name, parameter in module.unet.named_parameters() if parameter.requires_grad and (parameter.grad is None or parameter.grad.abs().max() == 0)]
    assert not silent


def test_adapters_are_on_again_after_an_error():
    config = tiny_parts.config()
    module = loss_module(config)
    with pytest.raises(KeyboardInterrupt), adapters_off(module.unet):
        raise KeyboardInterrupt
    loss, _ = module(0)
    loss.backward()
    assert any(parameter.grad is not None for parameter in module.unet.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("rank", [2, 0])
def test_asynchronous_rollouts_train_and_keeps_the_start(tmp_path, rank):
    "The first KL is 0 and it grows; the base inside is untouched; one network call with a graph per update and one of the base."
    config = tiny_parts.config(estimator="async", lora_rank=rank)
    parts = tiny_parts.parts()
    before = base_tensors(parts[0])
    result = posttrain(config, *parts, tmp_path)
    lines = RunDirectory(tmp_path, config).metrics()
    assert lines[0]["kl"] < 1e-10 and lines[-1]["kl"] > 1e-6
    if rank:
        after = base_tensors(result.unet)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_asynchronous_rollouts_carry_samples_from_noise_to_image():
    "With unchanging weights slot 0 ends where the sampler ends, and then starts over from new noise with another photo."
    module = loss_module(tiny_parts.config(estimator="async"))
    seen = []
    for update in range(5):
        module(update)
        seen.append(module.samples[0, 0].clone())
    samples = module.training_samples
    condition = Condition(*(value[[samples.pair(0, 0)]] for value in (samples.data.photos, samples.data.descriptors)), samples.prompt_embeds)
    with torch.no_grad():
        image = denoise(module.unet, module.scheduler, condition, samples.noise(0, 0)[None], 4)[0]
    torch.testing.assert_close(seen[3], image, rtol=1e-4, atol=1e-5)
    assert (seen[4] - seen[3]).abs().max() > 0.1


def test_a_broken_answer_does_not_poison_the_others():
    module = loss_module(tiny_parts.config(estimator="async"))
    module(0)
    before = module.samples.clone()
    with torch.no_grad():
        next(module.unet.parameters()).fill_(float("nan"))
    loss, _ = module(1)
    assert not torch.isfinite(loss) and torch.equal(module.samples[0, 0], before[0, 0]) and torch.isfinite(module.samples).all()


def test_merged_network_answers_alike(tmp_path):
    "Folding the adapter in changes rounding only, and the folded copy has no adapter left."
    result = posttrain(tiny_parts.config(), *tiny_parts.parts(), tmp_path)
    folded, data = merged(result.unet), tiny_parts.pairs()
    sample, condition = torch.randn(2, 2, 4, 4, 8, 8), Condition(data.photos[:2], data.descriptors[:2], tiny_parts.parts()[4])
    with torch.no_grad():
        ours, theirs = (predict(unet, sample, torch.tensor(499), condition) for unet in (folded, result.unet))
        start = predict(tiny_parts.unet(0), sample, torch.tensor(499), condition)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - start).abs().max() > 100 * (ours - theirs).abs().max()
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in tiny_parts.unet(0).parameters())


@pytest.mark.parametrize("rank", [2, 0])
def test_base_draws_what_it_was_handed(tmp_path, rank):
    "Below base_below the answer is the start model's, bit for bit; above, the tuned network's, with the adapter folded in; and the adapters are on again."
    start, scheduler, predictor, data, prompts, rig = tiny_parts.parts()
    config = tiny_parts.config(lora_rank=rank, early_stop=4, early_stop_least=3, trained_steps=1, base_below=500)
    result = posttrain(config, tiny_parts.unet(0), scheduler, predictor, data, prompts, rig, tmp_path)
    sample, condition = torch.randn(2, 2, 4, 4, 8, 8), Condition(data.photos[:2], data.descriptors[:2], prompts)
    with torch.no_grad():
        for timestep, owner, rounding in ((249, start, 0), (499, start, 0), (500, result.unet, 1e-5), (999, result.unet, 1e-5)):
            drawn = predict(result.drawing, sample, torch.tensor(timestep), condition)
            torch.testing.assert_close(drawn, predict(owner, sample, torch.tensor(timestep), condition), rtol=10 * rounding, atol=rounding)
        assert not torch.equal(predict(start, sample, torch.tensor(999), condition), predict(result.drawing, sample, torch.tensor(999), condition))
        with pytest.raises(ValueError, match="both sides of base_below = 500"):
            predict(result.drawing, sample, torch.tensor([[499, 499], [999, 999]]), condition)


def test_a_step_the_base_draws_cannot_be_trained(tmp_path):
    "4 steps stand at 999, 749, 499, 249: stopping at the last but one may train 499."
    with pytest.raises(ValueError, match="base_below is 500, but drtune may train step 3 of 4 at timestep 499"):
        posttrain(tiny_parts.config(early_stop=3, early_stop_least=2, base_below=500), *tiny_parts.parts(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("estimator", ["drtune", "draft-k", "async"])
def test_checkpointing_changes_nothing(estimator):
    "Gradients with the KL term on, bit for bit."
    gradients = []
    for where in ("none", "blocks", "calls", "both"):
        module = loss_module(tiny_parts.config(checkpointing=where, estimator=estimator))
        module(0)[0].backward()
        gradients.append([p.grad.clone() for p in module.unet.parameters() if p.grad is not None])
    for other in gradients[1:]:
        assert len(gradients[0]) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_noise_belongs_to_the_slot():
    "The first samples of a batch do not depend on how many there are."
    seen = []

    class Capture(torch.nn.Module):
        def forward(self, latents, joints, rig):
            seen.append(latents.detach())
            return latents.flatten(1).mean(1)

    for size in (1, 3):
        module = loss_module(tiny_parts.config(batch_size=size))
        module.score, samples = Capture(), module.training_samples.data
        module.training_samples.data = PairConditions(*(value[:1] for value in (samples.photos, samples.descriptors, samples.joints)))  # one pair, so the condition is the same
        module(5)
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=1e-4, atol=1e-5)
    assert (seen[1][0] - seen[1][1]).abs().max() > 0.1


def test_non_finite_steps_are_skipped_and_counted(tmp_path, capsys):
    config = tiny_parts.config(steps=6)
    parts = tiny_parts.parts()
    parts[3].joints[:3] = float("nan")
    result = posttrain(config, *parts, tmp_path)
    assert 0 < result.loop.skipped < 6 and "is not finite, step skipped" in capsys.readouterr().out
    assert all(torch.isfinite(p).all() for p in result.unet.parameters())


WORKER = """
import sys, time, torch
sys.path.insert(0, {tests!r})
import tiny_parts
from drpose.posttraining.post_training import posttrain
torch.set_num_threads(1)
posttrain(tiny_parts.config(steps=24, checkpoint_every=5, estimator=sys.argv[2]), *tiny_parts.parts(), sys.argv[1], on_step=lambda step: time.sleep(0.05))
"""


def run_worker(folder, estimator, kill_after_step=None):
    "Train in a process of its own; kill it once it has printed a step."
    printed = Path(folder).with_name(f"{Path(folder).name}-{time.monotonic_ns()}.txt")
    number = warm_python.start(WORKER.format(tests=str(Path(__file__).parent)), str(folder), estimator, cwd=Path.cwd(), environment=dict(os.environ), stdout=printed, stderr=printed.with_suffix(".err"))
    ends = time.monotonic() + 120
    while kill_after_step is not None and time.monotonic() < ends:
        if printed.exists() and f"step {kill_after_step}/" in printed.read_text():
            os.kill(number, signal.SIGKILL)
            break
        time.sleep(0.001)
    return warm_python.finish()


@pytest.mark.parametrize("estimator", ["drtune", "async"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, estimator):
    "kill -9 at two random steps (asynchronous rollouts are then in the middle of their chains: 5 is no multiple of 4), then the same command: weights and metrics are equal bit for bit, and nothing torn is left."
    chooser = random.Random(time.time_ns())
    stops = sorted(chooser.sample(range(2, 23), 2))
    assert run_worker(tmp_path / "whole", estimator) == 0
    for stop in stops:
        assert run_worker(tmp_path / "killed", estimator, kill_after_step=stop) == -signal.SIGKILL
    assert run_worker(tmp_path / "killed", estimator) == 0
    adapters = [load_file(next((tmp_path / name / "lora").glob("*.safetensors"))) for name in ("whole", "killed")]
    assert adapters[0].keys() == adapters[1].keys() and all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0]), stops
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "killed" / "metrics.jsonl").read_text()


def test_same_folder_other_settings_is_refused(tmp_path):
    posttrain(tiny_parts.config(steps=1), *tiny_parts.parts(), tmp_path)
    with pytest.raises(ValueError, match="kl_weight = 1.0, not 0.5"):
        posttrain(tiny_parts.config(steps=1, kl_weight=0.5), *tiny_parts.parts(), tmp_path)


def test_finished_run_is_not_trained_again(tmp_path):
    first = posttrain(tiny_parts.config(steps=3), *tiny_parts.parts(), tmp_path)
    again = posttrain(tiny_parts.config(steps=3), *tiny_parts.parts(), tmp_path)
    assert again.loop.finished and again.loop.steps == 3
    one, two = (result.unet.state_dict() for result in (first, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_metrics_hold_no_clock(tmp_path):
    posttrain(tiny_parts.config(steps=2), *tiny_parts.parts(), tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line) == {"step", "loss", "reward", "kl", "grad_norm"} and math.isclose(line["loss"], 1 - line["reward"] + line["kl"], rel_tol=1e-4)


class Looker:
    "A watch that notes what it saw, and ends the run at a step."

    def __init__(self, module, every=3, end_at=None):
        self.module, self.every, self.end_at, self.begun, self.seen = module, every, end_at, [], {}

    def begin(self, step):
        self.begun.append(step)

    def __call__(self, done):
        self.seen[done] = next(p for p in self.module.unet.parameters() if p.requires_grad).detach().clone()
        return done == self.end_at


def looked_at(folder, **arguments):
    "Train with a Looker; returns it and the result."
    made = []
    result = posttrain(tiny_parts.config(), *tiny_parts.parts(), folder, validator=lambda drawing, score, run: made.append(Looker(drawing, **arguments)) or made[0])
    return made[0], result


def test_a_watch_sees_averaged_weights_and_changes_nothing(tmp_path):
    looker, result = looked_at(tmp_path / "watched", every=5)
    alone = posttrain(tiny_parts.config(), *tiny_parts.parts(), tmp_path / "alone")
    assert looker.begun == [0] and sorted(looker.seen) == [5, 10] and result.loop.finished
    left = [next(p for name, p in one.unet.named_parameters() if "lora_" in name) for one in (result, alone)]
    assert torch.equal(*left) and torch.equal(looker.seen[10], left[0]) and not torch.equal(looker.seen[5], looker.seen[10])


def test_a_watch_ends_the_run_for_good(tmp_path):
    "At step 6 of 10; starting again takes no further step, and tells the callback where the run stands."
    looker, result = looked_at(tmp_path, end_at=6)
    again, same = looked_at(tmp_path, end_at=6)
    assert (result.loop.steps, result.loop.finished) == (same.loop.steps, same.loop.finished) == (6, True)
    assert sorted(looker.seen) == [3, 6] and again.seen == {} and again.begun == [6]
    one, two = (found.unet.state_dict() for found in (result, same))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [line["step"] for line in RunDirectory(tmp_path, tiny_parts.config()).metrics()] == [1, 2, 3, 4, 5, 6]


def test_a_reward_of_your_own(tmp_path):
    "Any module that scores samples; here one that wants latents to be 0."

    class Small(torch.nn.Module):
        def forward(self, latents, joints, rig):
            return -latents.square().flatten(1).mean(1)

    config = tiny_parts.config(steps=30, kl_weight=0.0, lora_rank=0, batch_size=4, learning_rate=5e-3)
    posttrain(config, *tiny_parts.parts(), tmp_path, score=Small())
    rewards = [line["reward"] for line in RunDirectory(tmp_path, config).metrics()]
    assert sum(rewards[-5:]) / 5 > 0.8 * sum(rewards[:5]) / 5


def test_outlines_reach_the_reward(tmp_path):
    "Masks travel with their pairs; without them, or without what reads outlines from latents, the setting is refused."
    unet, scheduler, predictor, data, prompts, rig = tiny_parts.parts()
    config, foreground = tiny_parts.config(steps=2, reward="maps + silhouette"), ForegroundMap(torch.randn(2, 4), torch.zeros(()))
    with pytest.raises(ValueError, match="the term silhouette needs outlines"):
        posttrain(config, unet, scheduler, predictor, data, prompts, rig, tmp_path / "refused", foreground=foreground)
    data.masks = torch.rand(len(data), 4, 8, 8)
    posttrain(config, unet, scheduler, predictor, data, prompts, rig, tmp_path / "run", foreground=foreground)
    assert not (tmp_path / "refused").exists() and (tmp_path / "run" / "lora").is_dir()


@pytest.mark.parametrize("settings", [{"guidance_scale": 2.0}, {"eta": 1.0}, {"gradient_point": "estimate", "estimator": "draft-k"}, {"step_choice": "random"}, {"estimator": "draft-lv", "copies": 3}, {"reward_radius": 0.05}, {"precision": "bf16"}, {"checkpointing": "both"}])
def test_every_option_trains(tmp_path, settings):
    "Gradients arrive, the KL begins at 0 and the base stays as it was."
    parts = tiny_parts.parts()
    before = base_tensors(parts[0])
    config = tiny_parts.config(steps=3, **settings)
    result = posttrain(config, *parts, tmp_path)
    lines, after = RunDirectory(tmp_path, config).metrics(), base_tensors(result.unet)
    assert lines[0]["kl"] < 1e-10 and lines[-1]["kl"] > 0 and all(line["grad_norm"] > 0 for line in lines)
    assert all(torch.equal(before[name], after[name]) for name in before) and all(p.dtype == torch.float32 for name, p in result.unet.named_parameters() if "lora_" in name)
