"""The rollout's gradients against finite differences and closed forms, the KL term, and the errors (drpose.posttraining.reward_gradients)."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import nn

from drpose.multiview.unet import MultiViewUNet
from drpose.multiview.pipeline import Condition, default_scheduler, denoise, predict, tiny_prompt_embeds
from drpose.posttraining.reward_gradients import (ESTIMATORS, check_scheduler, gradient_weights, rollout, spaced_steps,
                                                  step_table, async_step)

BATCH, DOMAINS, VIEWS, CHANNELS, SIDE = 2, 2, 2, 4, 5


class TinyNet(nn.Module):
    "A float64 convolution net that sees the timestep, on latents (B, D, V, 4, h, w)."

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter = nn.Conv2d(CHANNELS + 1, 8, 3, padding=1)
            self.leave = nn.Conv2d(8, CHANNELS, 3, padding=1)
        self.double()
        self.calls = []   # (grad enabled, timestep, input) of every call

    def forward(self, sample, timestep):
        self.calls.append((torch.is_grad_enabled(), int(timestep), sample))
        flat = sample.flatten(0, 2)
        clock = torch.full_like(flat[:, :1], float(timestep) / 1000)
        return self.leave(torch.tanh(self.enter(torch.cat([flat, clock], 1)))).view_as(sample)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def start(batch=BATCH, dtype=torch.float64, seed=1):
    return torch.randn(batch, DOMAINS, VIEWS, CHANNELS, SIDE, SIDE, generator=seeded(seed), dtype=dtype)


def score(latents):
    "A curved reward, so that a constant factor or a wrong image shows."
    return (torch.sin(2 * latents) - 0.1 * latents**2).flatten(1).mean(1)


def gradient(model, result, extra=0.0):
    weights = list(model.parameters())
    found = torch.autograd.grad(score(result.latents).mean() + extra, weights, allow_unused=True)   # some queries ask a single token
    return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(weights, found)])


def run(model, estimator, noise=None, prediction_type="v_prediction", seed=0, **settings):
    settings = {"num_inference_steps": 5, "early_stop": 2, "generator": seeded(seed)} | settings
    return rollout(model, default_scheduler(prediction_type), start() if noise is None else noise, estimator, **settings)


# ---- the sampler ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_lines_equal_diffusers_step(prediction_type, eta, steps):
    scheduler = default_scheduler(prediction_type)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    table = step_table(scheduler, steps, eta)
    scheduler.set_timesteps(steps)
    assert table.timesteps == tuple(scheduler.timesteps.tolist())
    for i, t in enumerate(table.timesteps):
        sample, answer, noise = torch.randn(3, 30, generator=seeded(i), dtype=torch.float64)
        theirs = scheduler.step(answer, t, sample, eta=eta, variance_noise=noise)
        ours = table.keep[i] * sample + table.gain[i] * answer + table.sigma[i] * noise
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=0, atol=1e-12)
        image = table.image_keep[i] * sample + table.image_gain[i] * answer
        torch.testing.assert_close(image, theirs.pred_original_sample, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_full_run_equals_the_diffusers_loop(prediction_type):
    model, scheduler = TinyNet(), default_scheduler(prediction_type)
    result = run(model, "full", prediction_type=prediction_type)
    scheduler.set_timesteps(5)
    sample = start()
    with torch.no_grad():
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample, t), t, sample).prev_sample
    torch.testing.assert_close(result.latents, sample, rtol=1e-5, atol=1e-5)   # diffusers' noise levels are float32


def test_the_callers_scheduler_is_left_alone():
    scheduler = default_scheduler()
    scheduler.set_timesteps(13)
    rollout(TinyNet(), scheduler, start(), "draft-k", num_inference_steps=5)
    assert scheduler.num_inference_steps == 13 and len(scheduler.timesteps) == 13


# ---- gradients ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_all_steps_equal_finite_differences(prediction_type, eta):
    model = TinyNet()
    settings, step = dict(prediction_type=prediction_type, trained_steps=5, eta=eta), 3e-7
    exact = gradient(model, run(model, "draft-k", **settings))
    assert torch.equal(exact, gradient(model, run(model, "full", **settings)))
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    for seed in range(3):
        direction = torch.randn(len(weights), generator=seeded(seed), dtype=torch.float64)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(weights + sign * step * direction, model.parameters())
            values.append(score(run(model, "full", **settings).latents).mean().item())
        measured = (values[0] - values[1]) / (2 * step)
        assert abs((exact @ direction).item() - measured) < 1e-6 * abs(measured)
        nn.utils.vector_to_parameters(weights, model.parameters())


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_draft_k_equals_detaching_the_early_samples(kept):
    model, noise, table = TinyNet(), start(), step_table(default_scheduler(), 5)
    sample = noise
    for i, t in enumerate(table.timesteps):          # every call in grad mode; the graph is cut by hand
        if i == 5 - kept:
            sample = sample.detach()
        sample = table.keep[i] * sample + table.gain[i] * model(sample, torch.tensor(t))
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(score(sample).mean(), list(model.parameters()))])
    torch.testing.assert_close(gradient(model, run(model, "draft-k", noise, trained_steps=kept)), by_hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("seed", range(6))
def test_drtune_equals_the_closed_form(prediction_type, seed):
    model, noise = TinyNet(), start()
    result = run(model, "drtune", noise, prediction_type, seed)
    ours = gradient(model, result)
    inputs = [call[2].detach() for call in model.calls[: result.early_stop_index + 1]]
    abar = default_scheduler().alphas_cumprod.double()
    angle = [abar[t].sqrt().acos() for t in (999, 799, 599, 399, 199)][: result.early_stop_index + 1] + [torch.tensor(0.0)]
    if prediction_type == "epsilon":                 # tan of the next angle minus tan of this one
        weights = [angle[i + 1].tan() - angle[i].tan() for i in range(len(angle) - 1)]
    else:
        turns = [angle[i] - angle[i + 1] for i in range(len(angle) - 1)]
        weights = [-turns[i].sin() * torch.stack([t.cos() for t in turns[i + 1:]] + [torch.tensor(1.0)]).prod() for i in range(len(turns))]
    torch.testing.assert_close(
        torch.tensor(gradient_weights(step_table(default_scheduler(prediction_type), 5), result.early_stop_index)),
        torch.stack([w.float() for w in weights]), rtol=1e-5, atol=1e-6)
    image = result.latents.detach().requires_grad_()
    pull, = torch.autograd.grad(score(image).mean(), image)
    total = sum(weights[i] * (model(inputs[i], result.trained_timesteps[k]) * pull).sum() for k, i in enumerate(result.trained_indices))
    formula = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    assert (ours - formula).norm() < 1e-9 * formula.norm()


def test_drtune_differs_from_true_backpropagation():
    "Same trained steps and image, but the road through the networks is cut."
    model = TinyNet()
    cut = gradient(model, run(model, "drtune", trained_steps=5, early_stop=1))
    true = gradient(model, run(model, "full"))
    assert 0.01 < ((cut - true).norm() / true.norm()).item() < 1


def test_early_stop_shows_the_one_jump_image():
    model, table = TinyNet(), step_table(default_scheduler(), 5)
    seen = set()
    for seed in range(12):
        model.calls.clear()
        result = run(model, "drtune", seed=seed)
        stop = result.early_stop_index
        seen.add(stop)
        assert len(model.calls) == stop + 1
        last = model.calls[-1][2]
        image = table.image_keep[stop] * last + table.image_gain[stop] * model(last, torch.tensor(table.timesteps[stop]))
        torch.testing.assert_close(result.latents, image, rtol=1e-12, atol=1e-12)
    assert seen == {3, 4}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_checkpointing_changes_nothing(estimator):
    model, base = TinyNet(), TinyNet(5)
    settings = dict(base_predict=base, seed=3)
    plain, stored = run(model, estimator, **settings), run(model, estimator, checkpoint_steps=True, **settings)
    assert torch.equal(gradient(model, plain, plain.kl.sum()), gradient(model, stored, stored.kl.sum()))


def count_saved_tensors(work):
    "How many tensors autograd keeps for a backward pass."
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(1) or x, lambda x: x):
        work()
    return len(saved)


@pytest.mark.parametrize("estimator, with_graph", [("drtune", 2), ("draft-k", 2), ("draft-lv", 3), ("refl", 1), ("full", 5)])
def test_only_trained_calls_build_a_graph(estimator, with_graph):
    model = TinyNet()
    one_call = count_saved_tensors(lambda: model(start(), 500))
    for seed in range(4):
        model.calls.clear()
        results = []
        saved = count_saved_tensors(lambda: results.append(run(model, estimator, copies=3, seed=seed)))  # noqa: B023
        assert sum(grad for grad, _, _ in model.calls) == with_graph
        assert {t for grad, t, _ in model.calls if grad} == set(results[0].trained_timesteps)
        assert 0 < saved <= with_graph * one_call          # the untrained steps and the line keep nothing
    if estimator == "drtune":
        assert all(not given.requires_grad for _, _, given in model.calls)


def test_draft_lv_averages_renoised_last_steps():
    model, noise, table = TinyNet(), start(), step_table(default_scheduler(), 5)
    result = run(model, "draft-lv", noise, copies=3, seed=7)
    assert result.copies == 3 and result.latents.shape == (3 * BATCH, *noise.shape[1:])
    first = run(model, "draft-k", noise, trained_steps=1)
    torch.testing.assert_close(result.latents[:BATCH], first.latents, rtol=0, atol=0)
    draw, total = seeded(7), score(first.latents).mean()
    for _ in range(2):
        fresh = torch.randn(noise.shape, generator=draw, dtype=noise.dtype)
        noised = table.signal[-1] * first.latents.detach() + table.noise_level[-1] * fresh
        total = total + score(table.keep[-1] * noised + table.gain[-1] * model(noised, table.timesteps[-1])).mean()
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(total / 3, list(model.parameters()))])
    torch.testing.assert_close(gradient(model, result), by_hand, rtol=1e-12, atol=1e-14)


# ---- draws ----


def test_draws_come_from_the_generator_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    results = [run(TinyNet(), "drtune", seed=s) for s in (4, 4)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(results[0].latents, results[1].latents) and results[0].trained_indices == results[1].trained_indices
    assert len({(r.early_stop_index, r.trained_indices) for r in (run(TinyNet(), "drtune", seed=s) for s in range(10))}) > 2


def test_spaced_steps_fit_and_reach_every_step():
    for executed in range(1, 12):
        for count in range(1, executed + 1):
            draws = {spaced_steps(count, executed, seeded(s)) for s in range(60)}
            for steps in draws:
                assert len(steps) == count and 0 <= steps[0] and steps[-1] < executed
                assert all(b - a == executed // count for a, b in zip(steps, steps[1:]))
            assert {i for steps in draws for i in steps} == set(range(executed))


def test_alignprop_draws_the_length_of_its_tail():
    lengths = set()
    for seed in range(20):
        result = run(TinyNet(), "alignprop", trained_steps=3, seed=seed)
        lengths.add(len(result.trained_indices))
        assert result.trained_indices == tuple(range(5 - len(result.trained_indices), 5))
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_do_not_influence_each_other(estimator):
    model, base, noise = TinyNet(), TinyNet(5), start(3)
    settings = dict(base_predict=base, eta=0.4)
    together = run(model, estimator, noise, noise_generators=[seeded(10 + b) for b in range(3)], **settings)
    for b in range(3):
        alone = run(model, estimator, noise[b:b + 1], noise_generators=[seeded(10 + b)], **settings)
        assert alone.trained_indices == together.trained_indices
        torch.testing.assert_close(alone.latents, together.latents[b::3], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(alone.kl, together.kl[b:b + 1], rtol=1e-11, atol=1e-14)


# ---- the KL penalty ----


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_is_zero_at_start_and_grows(estimator):
    model = TinyNet()
    base = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    result = run(model, estimator, base_predict=model)      # the same weights in the same memory, as with an adapter that adds nothing
    assert result.kl.shape == (BATCH,) and torch.equal(result.kl, torch.zeros(BATCH, dtype=torch.float64))
    (-score(result.latents).mean() + result.kl.mean()).backward()
    optimizer.step()
    after = run(model, estimator, base_predict=base)
    assert (after.kl > 0).all() and after.kl.requires_grad
    assert all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("kl_on", ["noise", "prediction"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_kl_is_the_mean_square_over_trained_steps(prediction_type, kl_on):
    model, base, signal = TinyNet(), TinyNet(5), default_scheduler().alphas_cumprod.double().sqrt()
    result = run(model, "drtune", base_predict=base, seed=2, prediction_type=prediction_type, kl_on=kl_on)
    expected = 0
    for i, t in zip(result.trained_indices, result.trained_timesteps):
        given = model.calls[i][2]
        # The noise that a v prediction implies: eps = sin x + cos v, with cos the signal level.
        factor = signal[t] if (prediction_type, kl_on) == ("v_prediction", "noise") else 1.0
        expected = expected + (factor * (model(given, t) - base(given, t))).square().mean(dim=(1, 2, 3, 4, 5)) / 2
    torch.testing.assert_close(result.kl, expected, rtol=1e-12, atol=1e-14)


def test_an_asynchronous_step_is_refl_at_that_step():
    "Same image, same penalty, same gradient as a rollout that stops there; and the next sample is the sampler's."
    model, base, table, sample = TinyNet(), TinyNet(5), check_scheduler(default_scheduler(), 5), start()
    for index in range(5):
        steps = torch.full((BATCH,), index)
        walked = async_step(lambda x, t: model(x, t[0]), table, sample, steps, base_predict=lambda x, t: base(x, t[0]))
        stopped = run(model, "refl", base_predict=base, early_stop=5 - index, early_stop_least=5 - index)
        torch.testing.assert_close(walked.latents, stopped.latents, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(walked.kl, stopped.kl, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient(model, walked, walked.kl.sum()), gradient(model, stopped, stopped.kl.sum()), rtol=1e-10, atol=1e-14)
        assert not walked.following.requires_grad and (walked.kl > 0).all()
        sample = walked.following
    torch.testing.assert_close(sample, run(model, "full").latents.detach(), rtol=1e-12, atol=1e-14)


def test_kl_without_base_is_zero_without_graph():
    result = run(TinyNet(), "drtune")
    assert torch.equal(result.kl, torch.zeros(BATCH, dtype=torch.float64)) and not result.kl.requires_grad


def test_an_adapter_switched_off_for_the_base_keeps_its_gradient():
    "One network plays both parts, also when trained steps are recomputed in the backward pass."
    frozen, adapter, active = TinyNet().requires_grad_(False), TinyNet(9), [True]
    def predict(sample, timestep):
        answer = frozen(sample, timestep)
        return answer + 0.1 * adapter(sample, timestep) if active[0] else answer
    def base_predict(sample, timestep):
        active[0] = False
        try:
            return predict(sample, timestep)
        finally:
            active[0] = True
    results = [run(predict, "drtune", base_predict=base_predict, seed=1, checkpoint_steps=flag) for flag in (False, True)]
    grads = [gradient(adapter, r, r.kl.mean()) for r in results]
    assert torch.equal(*grads) and grads[0].norm() > 0 and (results[0].kl > 0).all()


def test_under_no_grad_it_is_a_sampler():
    model = TinyNet()
    with torch.no_grad():
        result = run(model, "full")
    assert not result.latents.requires_grad and not any(call[0] for call in model.calls)


def test_float32_samples_survive_a_bfloat16_network():
    net = TinyNet().float()
    def predict(sample, timestep):
        return net(sample, timestep).bfloat16()
    result = run(predict, "drtune", start(dtype=torch.float32), base_predict=predict)
    assert result.latents.dtype == result.kl.dtype == torch.float32 and result.kl.sum() == 0


def test_a_reward_rises_with_a_kl_penalty():
    model = TinyNet()
    base = copy.deepcopy(model)
    optimizer, draw, rewards = torch.optim.Adam(model.parameters(), 3e-3), seeded(0), []
    for _ in range(40):
        result = run(model, "drtune", generator=draw, base_predict=base)
        rewards.append(-(result.latents - 0.3).square().mean())
        optimizer.zero_grad()
        (0.1 * result.kl.mean() - rewards[-1]).backward()
        optimizer.step()
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05 and result.kl.max() < 1


def test_early_stop_least_keeps_away_from_the_end():
    "m = T and least 3 of 5: only the first three steps are ever the last one that runs, and the first alone is enough for an image."
    results = [run(TinyNet(), "refl", seed=n, early_stop=5, early_stop_least=3) for n in range(30)]
    assert {r.early_stop_index for r in results} == {0, 1, 2} and all(r.trained_indices == (r.early_stop_index,) for r in results)
    always = run(TinyNet(), "drtune", trained_steps=1, early_stop=5, early_stop_least=5)
    assert always.early_stop_index == 0 and always.trained_indices == (0,)


def test_one_step_is_a_chain_too():
    "Its whole gradient is what every estimator gives: there is nothing to leave out."
    model = TinyNet()
    whole = gradient(model, run(model, "full", num_inference_steps=1, early_stop=1))
    assert whole.abs().max() > 0
    assert torch.equal(gradient(model, run(model, "draft-k", num_inference_steps=1, early_stop=1, trained_steps=1)), whole)


# ---- errors: one clear sentence each ----

BAD_SETTINGS = [
    (dict(estimator="drtunes"), r"estimator is 'drtunes'.*drtune, draft-k"),
    (dict(estimator="draft-k", trained_steps=6), r"trained_steps is 6.*1 to 5"),
    (dict(estimator="draft-k", trained_steps=0), r"trained_steps is 0"),
    (dict(estimator="alignprop", trained_steps=9), r"trained_steps is 9"),
    (dict(estimator="drtune", trained_steps=6), r"trained_steps is 6.*1 to 4"),
    (dict(estimator="drtune", trained_steps=5, early_stop=2), r"trained_steps is 5.*runs only 4"),
    (dict(estimator="drtune", early_stop=6), r"early_stop is 6.*1 to 5"),
    (dict(estimator="drtune", early_stop=2, early_stop_least=3), r"early_stop_least is 3.*1 to 2"),
    (dict(estimator="drtune", early_stop=0), r"early_stop is 0"),
    (dict(estimator="refl", early_stop=6), r"early_stop is 6"),
    (dict(estimator="draft-lv", copies=0), r"copies is 0"),
    (dict(eta=-0.1), r"eta is -0.1"),
    (dict(eta=float("nan")), r"eta is nan"),
    (dict(kl_on="image"), r"kl_on is 'image'; it must be one of noise, prediction"),
    (dict(num_inference_steps=0), r"num_inference_steps is 0"),
    (dict(num_inference_steps=1001), r"num_inference_steps is 1001.*1000"),
    (dict(num_inference_steps=2.5), r"num_inference_steps is 2.5"),
    (dict(noise_generators=[None]), r"noise_generators has 1 entries for 2 samples"),
    (dict(noise=torch.zeros(2, 2, 2, 4, 5, 5, dtype=torch.int64)), r"noise has shape .*int64"),
]


@pytest.mark.parametrize("settings, sentence", BAD_SETTINGS)
def test_bad_settings(settings, sentence):
    settings = {"num_inference_steps": 5, "early_stop": 2, "estimator": "drtune", "noise": start()} | settings
    with pytest.raises(ValueError, match=sentence) as caught:
        rollout(TinyNet(), default_scheduler(), **settings)
    assert "\n" not in str(caught.value)


def test_a_prediction_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"^predict returned shape \(2, 2, 2, 3, 5, 5\)"):
        run(lambda sample, timestep: sample[:, :, :, :3], "draft-k")
    with pytest.raises(ValueError, match=r"^base_predict returned shape \(1, "):
        run(TinyNet(), "draft-k", base_predict=lambda sample, timestep: sample[:1])


GOOD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)
BAD_SCHEDULERS = [
    (dict(clip_sample=True), r"clip_sample=True.*set clip_sample=False"),
    (dict(thresholding=True), r"thresholding=True.*set thresholding=False"),
    (dict(prediction_type="sample"), r"prediction_type='sample'"),
    (dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False), r"0\.012.*set timestep_spacing='trailing'"),
    (dict(prediction_type="epsilon", rescale_betas_zero_snr=True), r"pure noise.*v_prediction"),
]


@pytest.mark.parametrize("change, sentence", BAD_SCHEDULERS)
def test_bad_schedulers(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_scheduler(DDIMScheduler(**(GOOD | change)), 20)


def test_a_scheduler_of_another_kind():
    with pytest.raises(ValueError, match=r"DDIMScheduler.*DPMSolverMultistepScheduler"):
        rollout(TinyNet(), DPMSolverMultistepScheduler(), start())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 5, 10, 20, 40, 50])
def test_good_schedulers_pass_and_end_on_the_image(prediction_type, steps):
    table = check_scheduler(default_scheduler(prediction_type), steps)
    assert (table.keep[-1], table.gain[-1]) == pytest.approx((table.image_keep[-1], table.image_gain[-1]), abs=1e-12)
    assert table.timesteps[0] == 999 and abs(table.gain[-1]) > 0.1


# ---- the real multi-view network, in its smallest size ----


@pytest.fixture(scope="module")
def multiview():
    "(predict bound to a network, network, condition, noise (B, D, V, 4, h, w)), all float64."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = MultiViewUNet(
            block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlockMV2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlockMV2D"),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=32, projection_class_embeddings_input_dim=12, num_views=4, face_view=False)
        for weights in unet.parameters():      # some layers start at zero and would pass nothing on
            nn.init.normal_(weights, std=0.15) if weights.abs().sum() == 0 else None
    unet = unet.double().eval()
    draw = seeded(3)
    condition = Condition(torch.randn(2, 4, 8, 8, generator=draw, dtype=torch.float64), torch.randn(2, 12, generator=draw, dtype=torch.float64), tiny_prompt_embeds().double())
    noise = torch.randn(2, 2, 4, 4, 8, 8, generator=draw, dtype=torch.float64)
    return lambda sample, timestep: predict(unet, sample, timestep, condition), unet, condition, noise


def test_multiview_full_gradient_equals_finite_differences(multiview):
    bound, unet, _, noise = multiview
    settings = dict(num_inference_steps=4)
    exact = gradient(unet, rollout(bound, default_scheduler(), noise, "draft-k", trained_steps=4, **settings))
    weights = nn.utils.parameters_to_vector(unet.parameters()).detach()
    direction = torch.randn(len(weights), generator=seeded(0), dtype=torch.float64)
    direction, values, step = direction / direction.norm(), [], 1e-5
    for sign in (1, -1):
        nn.utils.vector_to_parameters(weights + sign * step * direction, unet.parameters())
        with torch.no_grad():
            values.append(score(rollout(bound, default_scheduler(), noise, "full", **settings).latents).mean().item())
    nn.utils.vector_to_parameters(weights, unet.parameters())
    measured = (values[0] - values[1]) / (2 * step)
    assert abs((exact @ direction).item() - measured) < 1e-6 * abs(measured)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_multiview_kl_starts_at_zero_and_checkpointing_is_exact(multiview, dtype):
    _, unet, condition, noise = multiview
    unet, frozen = copy.deepcopy(unet).to(dtype), copy.deepcopy(unet).to(dtype).requires_grad_(False)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), frozen.parameters()))
    condition = Condition(condition.condition_latents.to(dtype), condition.class_labels.to(dtype), condition.prompt_embeds.to(dtype))
    def own_predict(sample, timestep):
        return predict(unet, sample, timestep, condition)
    def run_it(base_predict, checkpoint_steps=False):
        return rollout(own_predict, default_scheduler(), noise.to(dtype), "drtune", 4, early_stop=2, generator=seeded(2), base_predict=base_predict, checkpoint_steps=checkpoint_steps)
    same = run_it(own_predict)
    assert same.kl.tolist() == [0.0, 0.0] and same.latents.shape == noise.shape
    def base_predict(sample, timestep):
        return predict(frozen, sample, timestep, condition)
    assert run_it(base_predict).kl.max() < 1e-11            # a copy elsewhere in memory: MKL's sums may round differently
    with torch.no_grad():
        for weights in frozen.parameters():
            weights.mul_(0.9)
    plain, stored = run_it(base_predict), run_it(base_predict, checkpoint_steps=True)
    assert (plain.kl > 1e-6).all()
    assert torch.equal(gradient(unet, plain, plain.kl.sum()), gradient(unet, stored, stored.kl.sum()))


def test_multiview_full_rollout_is_what_the_pipeline_samples(multiview):
    bound, unet, condition, noise = multiview
    with torch.no_grad():
        ours = rollout(bound, default_scheduler(), noise, "full", num_inference_steps=5).latents
        theirs = denoise(unet, default_scheduler(), condition, noise, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)      # diffusers' noise levels are float32
