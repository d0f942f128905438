"""The evaluation predictor that sees pictures: its network, what it is given, and that nothing reaches past its eyes."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from drpose.evaluation.benchmarks import load_benchmark, measure_draws
from drpose.ground.model_files import embedded_models, load_model
from drpose.ground.seeding import seeded_generator
from drpose.ground.trainer import RunDirectory
from drpose.multiview.latents import ImageSet
from drpose.multiview.pipeline import MultiViewPipeline, decode_latents
from drpose.pictures.cameras import TINY_RIG
from drpose.reward import picture_predictor
from drpose.reward.picture_predictor import DecodedPredictor, PictureLoss, PicturePredictor, load_eval_predictor, spoilt, train_picture_predictor
from drpose.reward.predictor_training import PredictorConfig
from drpose.reward.skeleton_predictor import SkeletonPredictor

GRID = TINY_RIG.resized(16)


@pytest.fixture(scope="module")
def vae():
    return load_model(AutoencoderKL, embedded_models() / "pipeline" / "vae")


def small(**settings) -> PicturePredictor:
    torch.manual_seed(0)
    return PicturePredictor(**{"width": 16, "dilations": (1, 2)} | settings).eval()


def people(count: int = 3, seed: int = 1) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(256, (count, 2, 4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return ImageSet(pictures, pictures[:, 0, :, 0], 0.2 * torch.randn(count, 23, 3, generator=generator), torch.full((count,), 0.5))


def config(**settings) -> PredictorConfig:
    return PredictorConfig(**{"steps": 2, "batch_size": 2, "warmup_steps": 0, "log_every": 1, "checkpoint_every": 1, "sigma": 1.0, "noise": 0.1, "tracker": "none"} | settings)


def test_views_are_read_one_by_one_and_where_the_camera_stands_is_known():
    network, pictures = small(), torch.rand(2, 2, 4, 3, 64, 64)
    maps = network(pictures, TINY_RIG)
    assert maps.shape == (2, 4, 23, 16, 16)
    changed = pictures.clone()
    changed[:, :, 2] = 0
    moved = (network(changed, TINY_RIG) - maps).abs().amax((0, 2, 3, 4))
    assert (moved[[0, 1, 3]] == 0).all() and moved[2] > 0
    same = pictures[:, :, :1].expand(-1, -1, 4, -1, -1, -1)
    assert (network(same, TINY_RIG)[:, 0] - network(same, TINY_RIG)[:, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(2, 1, 4, 3, 64, 64), (2, 2, 3, 3, 64, 64), (2, 2, 4, 4, 16, 16), (2, 2, 4, 3, 66, 64), (2, 4, 3, 64, 64)])
def test_pictures_that_do_not_fit_are_one_sentence(shape):
    with pytest.raises(ValueError, match="PicturePredictor needs pictures"):
        small()(torch.rand(shape), TINY_RIG)


@pytest.mark.parametrize("cell", [0, 1, 3, 12])
def test_cells_are_powers_of_two(cell):
    with pytest.raises(ValueError, match="pixels_per_cell"):
        small(pixels_per_cell=cell)


def test_latents_are_decoded_and_nothing_climbs_back(vae):
    network = DecodedPredictor(small(), vae)
    latents = torch.randn(2, 2, 4, 4, 16, 16, requires_grad=True)
    with torch.no_grad():
        seen = (decode_latents(vae, latents) * 255).round() / 255
    assert torch.equal(network(latents, GRID), network.predictor(seen, GRID)) and torch.equal(network.features(latents, GRID), network.predictor.features(seen, GRID))
    assert not network(latents, GRID).requires_grad and not network.reward(latents, torch.zeros(2, 23, 3), GRID).requires_grad
    other = latents.detach() + 1  # other latents of the same size are not answered from memory
    assert not torch.equal(network(other, GRID), network(latents, GRID))
    assert network.config.sigma == 1.0 and not [name for name, _ in network.named_parameters() if "vae" in name]


def test_a_folder_says_which_it_is(vae, tmp_path):
    small().save_pretrained(tmp_path / "pictures")
    SkeletonPredictor(8, 23, (16, 16)).save_pretrained(tmp_path / "latents")
    assert isinstance(load_eval_predictor(tmp_path / "pictures", vae), DecodedPredictor) and isinstance(load_eval_predictor(tmp_path / "latents", vae), SkeletonPredictor)
    small(pixels_per_cell=8).save_pretrained(tmp_path / "coarse")
    with pytest.raises(ValueError, match="cells of 8 pixels"):
        load_eval_predictor(tmp_path / "coarse", vae)
    with pytest.raises(FileNotFoundError, match="evaluation predictor"):
        load_eval_predictor(tmp_path / "nowhere", vae)


def test_every_object_is_spoilt_in_its_own_way_and_all_its_views_alike():
    picture = torch.full((1, 2, 4, 3, 64, 64), 0.3)
    picture[..., :8, :] = 1.0
    several = spoilt(picture.expand(40, -1, -1, -1, -1, -1), 0.0, seeded_generator("a test"))
    assert torch.equal(several[:, :, :1].expand_as(several), several)  # no noise: only blur and mist, the same in each view
    inside = several[:, 0, 0, 0, 40, 40]
    assert 0.2 < (inside > 0.301).float().mean() < 0.45 and inside.max() < 0.3 + 0.6 * 0.7 + 1e-6  # mist reaches some
    noisy = spoilt(picture.expand(40, -1, -1, -1, -1, -1), 0.2, seeded_generator("a test"))
    assert noisy.min() >= 0 and noisy.max() <= 1 and 0.4 < ((noisy - several).abs().amax((1, 2, 3, 4, 5)) > 0).float().mean() < 0.8


def test_targets_move_with_the_pictures():
    "One person without noise: whatever the shift, the network sees the picture at the cell where its target lies."
    data, seen = people(1), []
    network = small()
    network.forward = lambda pictures, rig: seen.append(pictures) or torch.zeros(len(pictures), 4, 23, 16, 16, requires_grad=True)
    loss = PictureLoss(network, data, TINY_RIG, config(noise=0.0, batch_size=1))
    whole = data.images.float() / 255
    for step in range(12):
        loss(step)
    shifts = set()
    for picture in seen:
        fits = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (picture - torch.roll(whole, (4 * dy, 4 * dx), (-2, -1))).abs().mean() < 0.2]
        shifts.update(fits)
    assert len(shifts) > 5


def test_training_resumes_and_learns(tmp_path):
    losses, data = {}, people(4)
    for name, pieces in (("whole", (6,)), ("twice", (3, 6))):
        network = small()
        for steps in pieces:
            run = RunDirectory(tmp_path / name, config(steps=6, minutes=0.0))
            settings = config(steps=6)
            if steps < 6:
                with pytest.raises(KeyboardInterrupt):
                    stop_after(steps, lambda: train_picture_predictor(settings, data, TINY_RIG, run, network, data))
                network = small()
            else:
                train_picture_predictor(settings, data, TINY_RIG, run, network, data)
        losses[name] = [line["loss"] for line in run.metrics()]
    assert losses["whole"] == losses["twice"] and losses["whole"][-1] < losses["whole"][0]


def stop_after(steps: int, work) -> None:
    "Work that is interrupted when its loss is asked for step number `steps`."
    forward = PictureLoss.forward

    def interrupted(self, step, *part):
        if step == steps:
            raise KeyboardInterrupt
        return forward(self, step, *part)

    PictureLoss.forward = interrupted
    try:
        work()
    finally:
        PictureLoss.forward = forward


def test_what_eight_draws_reach():
    "Draws that are known: three noises give depths of 0, twice the truth and the truth, so the best draw is right."
    pipeline = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    benchmark = load_benchmark("hard", pipeline.vae, samples=2)
    answers = iter([0.0, 2.0, 1.0])

    class Fake:
        def joints(self, latents, rig):
            joints = benchmark.truth.joints.clone()
            joints[..., 2] = joints[:, :1, 2] + next(answers) * (joints[..., 2] - joints[:, :1, 2])
            return type("Read", (), {"joints3d": joints})

    found = measure_draws(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, benchmark, Fake(), 3, 1)
    assert found["draws"] == 3 and found["people"] == 2 and found["coverage_mm"] < 1e-3
    assert found["depth_mm"] == pytest.approx(found["depth_of_flat"] * 2 / 3, rel=1e-3) and found["spread_mm"] == pytest.approx(found["depth_of_flat"], rel=1e-3)
    with pytest.raises(ValueError, match="at least 2"):
        measure_draws(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, benchmark, Fake(), 1)


def test_several_questions_cost_one_look(vae, monkeypatch):
    "Joints, features and reward of the same latents: decoded once, seen once; told what they look like, not decoded at all; another rig or other latents are looked at anew."
    network, looks, decodes = DecodedPredictor(small(), vae), [], []
    plain, decode = PicturePredictor.seen, picture_predictor.decode_latents
    monkeypatch.setattr(PicturePredictor, "seen", lambda self, pictures, rig: looks.append(rig) or plain(self, pictures, rig))
    monkeypatch.setattr(picture_predictor, "decode_latents", lambda *given: decodes.append(1) or decode(*given))
    latents, truth = torch.randn(2, 2, 4, 4, 16, 16), torch.zeros(2, 23, 3)
    first = network.joints(latents, GRID).joints3d, network.features(latents, GRID), network.reward(latents, truth, GRID)
    assert len(looks) == len(decodes) == 1
    turned = replace(GRID, azimuths=(0.0, 90.0, 180.0, 200.0))
    assert not torch.equal(network.features(latents, turned), first[1]) and (len(looks), len(decodes)) == (2, 1)
    again = latents.clone()
    network.remember(again, network.pictures(latents))
    assert torch.equal(network.reward(again, truth, GRID), first[2]) and (len(looks), len(decodes)) == (3, 1)
    assert not torch.equal(network.features(latents + 1, GRID), first[1]) and (len(looks), len(decodes)) == (4, 2)
