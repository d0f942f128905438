"""What the tiny world's own models learn from: cut-outs, timestep weights, one-step estimates (drpose.multiview.base_training)."""

import pytest
import tiny_parts
import torch

from drpose.multiview.pipeline import default_scheduler, tiny_prompt_embeds
from drpose.multiview.latents import LatentSet
from drpose.multiview.base_training import (AutoencoderConfig, AutoencoderLoss, BaseConfig, BaseLoss, cut_out,
                                            new_autoencoder)
from drpose.reward.predictor_training import estimate_latents


def latents(count=4):
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, *shape, generator=draw) for shape in ((2, 4, 4, 8, 8), (4, 8, 8), (12,), (23, 3))]
    return LatentSet(*parts, torch.ones(count))


def test_cut_outs_lie_inside_the_image_and_show_the_figure():
    images = torch.full((50, 3, 64, 64), 255, dtype=torch.uint8)
    corners = [(0, 0), (60, 60), (5, 58), (30, 31), (63, 2)]
    for n in range(50):
        row, column = corners[n % 5]
        images[n, :, row : row + 3, column : column + 3] = torch.tensor([10, n, 200], dtype=torch.uint8)[:, None, None]
    images[:, :, 0, 0] = 255  # the corner pixel tells the background
    found = cut_out(images, 32, torch.Generator().manual_seed(0))
    assert found.shape == (50, 3, 32, 32) and found.dtype == torch.uint8
    for n in range(50):
        assert (found[n, 1] == n).any() or n % 5 == 0 and (found[n, 0] == 10).any()


def test_an_empty_image_can_be_cut_too():
    assert cut_out(torch.full((2, 3, 16, 16), 255, dtype=torch.uint8), 8, torch.Generator()).shape == (2, 3, 8, 8)


def test_background_weight_is_the_same_on_cut_outs():
    "A cut-out wholly inside the figure has no background pixel; it must still count as figure, not as background."
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 0, 0] = 255
    config = AutoencoderConfig(batch_size=2, crop=8)
    module = AutoencoderLoss(new_autoencoder(config), images, config)
    module.vae.decode = lambda z: type("Decoded", (), {"sample": torch.ones(2, 3, 8, 8)})()
    loss = (module(0)[0] - config.kl_weight * module(0)[1]["kl"]).item()
    assert loss == pytest.approx(3 * (1 + 0.1), rel=1e-4)  # every pixel off by one, every weight three


@pytest.mark.parametrize("gamma, share", [(0.0, 1.0), (5.0, None)])
def test_timestep_weights(gamma, share):
    "Without Min-SNR the loss is the plain velocity error; with it, less."
    module = BaseLoss(tiny_parts.unet(0), default_scheduler(), latents(), tiny_prompt_embeds(dim=8), BaseConfig(batch_size=3, snr_gamma=gamma))
    with torch.no_grad():
        loss, parts = module(0)
    assert loss.item() == pytest.approx(parts["mse"].item(), rel=1e-6) if share else loss < 0.9 * parts["mse"]


def asked_conditions(monkeypatch, count, config, scheduler=None):
    "The conditions that `BaseLoss` asks a network of zeros with, and its mean losses, over some steps."
    seen, errors = [], []
    monkeypatch.setattr("drpose.multiview.base_training.predict", lambda unet, noisy, timestep, condition: seen.append((condition, timestep)) or torch.zeros_like(noisy))
    data = latents()
    data.photos, data.descriptors, data.latents = torch.ones_like(data.photos), torch.ones_like(data.descriptors), torch.zeros_like(data.latents)
    module = BaseLoss(tiny_parts.unet(0), scheduler or default_scheduler(), data, tiny_prompt_embeds(dim=8), config)
    for step in range(count):
        errors.append(module(step)[1]["mse"].item())
    return seen, errors


def test_the_photo_is_dropped_by_pshumans_rule(monkeypatch):
    seen, _ = asked_conditions(monkeypatch, 60, BaseConfig(batch_size=50, snr_gamma=0.0, condition_dropout=0.05))
    latent, descriptor = (torch.cat([getattr(condition, name).flatten(1)[:, 0] for condition, _ in seen]).bool() for name in ("condition_latents", "class_labels"))
    shares = {"descriptor alone": (latent & ~descriptor), "both": (~latent & ~descriptor), "latent alone": (~latent & descriptor)}
    for name, dropped in shares.items():
        assert dropped.float().mean().item() == pytest.approx(0.05, abs=0.015), name  # 3,000 draws: 3.8 standard errors
    seen, _ = asked_conditions(monkeypatch, 3, BaseConfig(batch_size=50, snr_gamma=0.0))
    assert all(condition.condition_latents.all() and condition.class_labels.all() for condition, _ in seen)


@pytest.mark.parametrize("separate", [False, True])
def test_timesteps_of_the_domains(monkeypatch, separate):
    seen, _ = asked_conditions(monkeypatch, 4, BaseConfig(batch_size=20, snr_gamma=0.0, separate_timesteps=separate))
    equal = torch.cat([timestep[:, 0] == timestep[:, 1] for _, timestep in seen]).float().mean()
    assert equal < 0.1 if separate else equal == 1


def test_the_scheduler_says_what_is_predicted(monkeypatch):
    "Of an all-zero object, the noise is the noise, and the velocity is the noise times the signal level."
    config = BaseConfig(batch_size=50, snr_gamma=0.0)
    seen, noise = asked_conditions(monkeypatch, 4, config, default_scheduler("epsilon"))
    _, velocity = asked_conditions(monkeypatch, 4, config)
    signal = default_scheduler().alphas_cumprod[torch.cat([timestep for _, timestep in seen[:4]])].mean().item()
    assert sum(noise) / 4 == pytest.approx(1, abs=0.02) and sum(velocity) / 4 == pytest.approx(signal, rel=0.05)


def test_a_dropout_above_a_third_is_refused():
    with pytest.raises(ValueError, match="'condition_dropout' is 0.4"):
        BaseConfig(condition_dropout=0.4)


def test_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="'snr_gamma' is -1"):
        BaseConfig(snr_gamma=-1.0)


def test_estimates_keep_their_labels_and_repeat():
    data, unet = latents(), tiny_parts.unet(0)
    once, again = (estimate_latents(unet, default_scheduler(), data, tiny_prompt_embeds(dim=8), seed=3) for _ in range(2))
    assert torch.equal(once.joints, data.joints) and torch.equal(once.latents, again.latents)
    assert not torch.equal(once.latents.float(), data.latents) and once.latents.isfinite().all()


def test_a_step_may_show_two_views_at_right_angles(monkeypatch):
    "One of front and back with one of right and left, each with its own latents and its own text, all pairs equally often."
    asked = []
    monkeypatch.setattr("drpose.multiview.base_training.predict", lambda unet, noisy, timestep, condition: asked.append((noisy, condition.prompt_embeds)) or torch.zeros_like(noisy))
    data, prompts = latents(), tiny_prompt_embeds(dim=8)
    data.latents = 1e4 * torch.arange(4.0)[:, None, None, None].expand_as(data.latents).clone().half()  # a view's own number drowns the noise
    module = BaseLoss(tiny_parts.unet(0), default_scheduler(), data, prompts, BaseConfig(batch_size=4, two_views=True))
    pairs = []
    for step in range(60):
        module(step)
        noisy, given = asked[-1]
        assert noisy.shape[2] == 2 and given.shape[1] == 2
        pair = [next(view for view in range(4) if torch.equal(given[:, place], prompts[:, view])) for place in range(2)]
        shown = noisy.flatten(3).mean(-1)[0, 0]
        assert (shown.abs() < 100).tolist() == [view == 0 for view in pair], "the text of one view with the latents of another"
        pairs.append(tuple(pair))
    assert set(pairs) == {(0, 1), (0, 3), (2, 1), (2, 3)} and max(pairs.count(pair) for pair in set(pairs)) < 30


def test_two_views_need_four(monkeypatch):
    data = latents()
    data.latents = data.latents[:, :, :3]
    with pytest.raises(ValueError, match="two_views"):
        BaseLoss(tiny_parts.unet(0), default_scheduler(), data, tiny_prompt_embeds(dim=8), BaseConfig(two_views=True))


@pytest.mark.parametrize(("share", "noisier"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_the_noisier_half_is_drawn_as_often_as_asked(monkeypatch, share, noisier):
    seen, _ = asked_conditions(monkeypatch, 40, BaseConfig(batch_size=50, snr_gamma=0.0, noisy_share=share))
    timesteps = torch.cat([timestep[:, 0] for _, timestep in seen])
    assert (timesteps >= 500).float().mean().item() == pytest.approx(noisier, abs=0.04) and timesteps.max() > 950 and 0 <= timesteps.min()


def test_two_views_learn(monkeypatch):
    "Real gradients through the network with two views, and all four again afterwards."
    unet = tiny_parts.unet(0)
    BaseLoss(unet, default_scheduler(), latents(), tiny_prompt_embeds(dim=8), BaseConfig(batch_size=3, two_views=True))(0)[0].backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in unet.named_parameters() if "attn_mv.to_out" in name)
    BaseLoss(unet, default_scheduler(), latents(), tiny_prompt_embeds(dim=8), BaseConfig(batch_size=3))(0)
