"""Evaluation end to end with an evaluation predictor that knows the truth: views, units, mirrored views, pairing and the table."""

import json
from dataclasses import replace
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drpose.evaluation import comparison, metrics, views
from drpose.pictures.cameras import FOUR_VIEWS

SIZE, GRID, COUNT = 32, 8, 12
RIG = FOUR_VIEWS.with_mirrored((False, False, True, True))


class FakePredictor:
    "Answers given 3D joints in every view of the rig it is handed, as a mapping or as an object."

    def __init__(self, joints, as_object=False, wrong_views=()):
        self.answer, self.as_object, self.wrong_views, self.rigs = joints, as_object, wrong_views, []

    def joints(self, latents, rig):
        self.rigs.append(rig)
        points = rig.project(self.answer)
        for view in self.wrong_views:
            points[:, view, :, 0] += 1.0                      # one pixel of the latent grid
        found = {"points2d": points, "joints3d": self.answer}
        return SimpleNamespace(**found) if self.as_object else found

    def features(self, latents, rig):
        views = torch.arange(latents.shape[2]).repeat(len(latents)).float()      # tells which views were kept
        return torch.cat([views[:, None], latents.mean((1, 4, 5)).flatten(0, 1)], 1)

    def reward(self, latents, joints, rig):
        assert rig.image_size == latents.shape[-1]
        return -(self.answer - joints).square().mean((1, 2))


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, 2, 4, 3, 4, 4, generator=generator).repeat_interleave(8, -1).repeat_interleave(8, -2)
    joints = 0.2 * torch.randn(COUNT, 23, 3, generator=generator)
    truth = views.GroundTruth(images, views.masks_from_normals(images[:, 0]), joints, torch.linspace(0.4, 0.9, COUNT))
    return truth, torch.randn(COUNT, 2, 4, 4, GRID, GRID, generator=generator)


def test_the_truth_scores_perfectly(world):
    truth, latents = world
    result = views.evaluate_views(truth.images, latents, truth, FakePredictor(truth.joints), RIG, base_latents=latents)
    assert result.mpjpe_mm.max() < 1e-3 and result.pa_mpjpe_mm.max() < 0.1 and result.pixels_unseen.max() < 1e-4
    assert (result.pck3 == 1).all() and (result.silhouette_iou == 1).all() and result.normal_deg.max() < 0.1
    assert (result.color_psnr_db == 100).all() and np.allclose(result.sharpness, 1) and (result.drift == 0).all() and (result.judge_reward == 0).all()
    assert (result.side_area == 1).all() and (result.inside_psnr_db == 100).all()
    assert result.features.shape == (COUNT, 3, 5) and (result.features[:, :, 0] == [1, 2, 3]).all()
    assert all(getattr(result, name).dtype == np.float64 for name in ("mpjpe_mm", "silhouette_iou", "features"))


def test_a_figure_that_shrinks_gains_decibels_but_not_inside(world):
    truth, latents = world
    images = torch.full_like(truth.images, 0.5)
    images[..., 8:24, 8:24] = torch.tensor([0.5, 0.5, 1.0])[:, None, None]  # a square that faces the camera
    images[:, 1] = torch.where(images[:, 0, :, 2:] == 1.0, 0.2, 1.0)
    masks = views.masks_from_normals(images[:, 0])
    square, small, wrong = replace(truth, images=images, masks=masks), images.clone(), images.clone()
    small[:, 0, ..., :16] = 0.5
    small[:, 1, ..., :16] = 1.0
    wrong[:, 1] = torch.where(masks[:, :, None], 0.5, 1.0)  # all of it there, in another colour
    shrunk, pale = (views.evaluate_views(pictures, latents, square, FakePredictor(truth.joints), RIG) for pictures in (small, wrong))
    assert (shrunk.side_area == 0.5).all() and (pale.side_area == 1).all()
    assert np.allclose(shrunk.inside_psnr_db, -10 * np.log10(0.5 * 0.8**2)) and np.allclose(pale.inside_psnr_db, -10 * np.log10(0.3**2))
    assert np.allclose(shrunk.color_psnr_db - shrunk.inside_psnr_db, 10 * np.log10(4))  # three quarters are background


def test_units_of_a_known_error(world):
    truth, latents = world
    wrong = truth.joints.clone()
    wrong[:, 20, 2] += 0.23                                   # the left wrist, in depth only: 0.01 of the frame on average
    result = views.evaluate_views(truth.images, latents, truth, FakePredictor(wrong, as_object=True), RIG)
    assert np.allclose(result.mpjpe_mm, 10 / truth.scale.numpy(), rtol=1e-4)
    # depth is invisible in the back view and 0.23 of 32 px in each side view
    assert np.allclose(result.pixels_unseen, 0.23 * SIZE * 2 / (3 * 23), rtol=1e-3)
    assert np.allclose(result.pck3, 1 - 2 / (3 * 23))         # 7.4 px is beyond 3 px of 64 at this size too
    assert result.drift is None


def test_the_evaluation_predictor_gets_the_latent_grid_and_its_pixels_are_enlarged(world):
    truth, latents = world
    eval_predictor = FakePredictor(truth.joints, wrong_views=(2,))
    result = views.evaluate_views(truth.images, latents, truth, eval_predictor, RIG.resized(512))
    assert eval_predictor.rigs[0] == RIG.resized(GRID)
    assert np.allclose(result.pixels_unseen, SIZE / GRID / 3, rtol=1e-4)      # one of three unseen views, 4 image pixels for one of the grid


def test_the_seen_view_does_not_count(world):
    truth, latents = world
    images = truth.images.clone()
    images[:, :, 0] = 1 - images[:, :, 0]
    eval_predictor = FakePredictor(truth.joints, wrong_views=(0,))
    result = views.evaluate_views(images, latents, truth, eval_predictor, RIG)
    assert result.pixels_unseen.max() < 1e-4 and (result.silhouette_iou == 1).all() and (result.color_psnr_db == 100).all()
    other = views.evaluate_views(images, latents, truth, eval_predictor, RIG, seen=(1,))
    assert other.pixels_unseen.min() > 1 and (other.color_psnr_db < 20).all()


def test_forgetting_the_mirrored_views_shows(world):
    truth, latents = world

    class Unaware(FakePredictor):
        def joints(self, latents, rig):
            return super().joints(latents, rig.with_mirrored(()))

    result = views.evaluate_views(truth.images, latents, truth, Unaware(truth.joints), RIG)
    assert result.pixels_unseen.min() > 2


def test_normals_and_colours_are_not_confused(world):
    truth, latents = world
    images = truth.images.clone()
    images[:, 1] = 0.5                                         # colours gone, normals right
    result = views.evaluate_views(images, latents, truth, FakePredictor(truth.joints), RIG)
    assert result.normal_deg.max() < 0.1 and (result.silhouette_iou == 1).all() and (result.color_psnr_db < 20).all()


def test_drift_is_the_mean_square(world):
    truth, latents = world
    result = views.evaluate_views(truth.images, latents + 0.5, truth, FakePredictor(truth.joints), RIG, base_latents=latents)
    assert np.allclose(result.drift, 0.25, rtol=1e-4)


def test_batches_join_to_the_whole(world):
    truth, latents = world
    wrong = truth.joints + 0.05 * torch.randn(truth.joints.shape, generator=torch.Generator().manual_seed(1))
    whole = views.evaluate_views(truth.images * 0.9, latents, truth, FakePredictor(wrong), RIG)
    parts = [views.evaluate_views(truth.images[i] * 0.9, latents[i], truth[i], FakePredictor(wrong[i]), RIG) for i in (slice(0, 5), slice(5, 12))]
    joined = views.PerSample.cat(parts)
    assert len(joined) == COUNT and joined.drift is None
    for name in ("mpjpe_mm", "pa_mpjpe_mm", "pixels_unseen", "silhouette_iou", "normal_deg", "color_psnr_db", "sharpness", "features"):
        assert np.allclose(getattr(joined, name), getattr(whole, name), rtol=1e-4), name
    with pytest.raises(ValueError, match="drift"):
        views.PerSample.cat([parts[0], views.evaluate_views(truth.images[:5], latents[:5], truth[:5], FakePredictor(wrong[:5]), RIG, base_latents=latents[:5])])


def test_constant_pose(world):
    truth, _ = world
    mean = truth.joints.mean(0)
    result = views.metrics_of_joints(mean, truth.joints, truth.scale, RIG.resized(64))
    expected = (mean - mean[0] - (truth.joints - truth.joints[:, :1])).norm(dim=-1).mean(-1) / truth.scale * 1000
    assert np.allclose(result.mpjpe_mm, expected, rtol=1e-4)
    twice = views.metrics_of_joints(mean, truth.joints, truth.scale, RIG.resized(128))
    assert np.allclose(twice.pixels_unseen, 2 * result.pixels_unseen, rtol=1e-4) and np.allclose(twice.pck3, result.pck3)
    assert "silhouette_iou" not in comparison.summarise(result) and "frechet" not in comparison.summarise(result)
    with pytest.raises(ValueError, match="joints have shape"):
        views.metrics_of_joints(mean[:5], truth.joints, truth.scale, RIG)


def synthetic(seed, shift=0.0, count=100):
    random = np.random.default_rng(seed)
    person = np.random.default_rng(99).normal(size=count) * 50 + 300          # the same people each time
    columns = {name: random.random(count) for name in ("pck3", "silhouette_iou", "normal_deg", "judge_reward", "sharpness")}
    return views.PerSample(mpjpe_mm=person + shift + 5 * random.normal(size=count), pa_mpjpe_mm=person / 2, pixels_unseen=person / 50, swap_forgiven_pixels=person / 60,
                                color_psnr_db=17 + shift / 100 + random.random(count), features=random.normal(size=(count, 3, 8)) + abs(shift) / 50, **columns)


def test_summary_has_the_fixed_keys_and_is_json():
    reference = np.random.default_rng(5).normal(size=(100, 3, 8))
    summary = comparison.summarise(synthetic(0), reference)
    for name in ("mpjpe_mm", "pa_mpjpe_mm", "silhouette_iou", "normal_deg", "color_psnr_db", "judge_reward", "frechet", "sharpness", "pixels_unseen", "swap_forgiven_pixels", "pck3"):
        low, high = summary[name + "_ci95"]
        assert low <= summary[name] <= high, name
    assert json.loads(json.dumps(summary)) == summary and summary["samples"] == 100
    assert all(type(value) in (float, int, list) for value in summary.values())
    spread = synthetic(0).mpjpe_mm.std() / 10
    assert (summary["mpjpe_mm_ci95"][1] - summary["mpjpe_mm_ci95"][0]) == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_frechet_reads_a_shift_of_the_features():
    reference = np.random.default_rng(5).normal(size=(100, 3, 8))
    near, far = (comparison.summarise(synthetic(0, shift), reference)["frechet"] for shift in (0, -50))
    assert near < 0.5 and far == pytest.approx(8, rel=0.15)                   # 8 features moved by 1
    assert comparison.summarise(synthetic(0), reference.reshape(-1, 8))["frechet"] == near


def test_strata_split_the_samples():
    result, reference = synthetic(0), np.random.default_rng(5).normal(size=(100, 3, 8))
    tilted = np.arange(100) < 30
    strata = comparison.summarise_strata(result, reference, tilted)
    assert (strata["tilted"]["samples"], strata["upright"]["samples"]) == (30, 70)
    assert strata["tilted"]["mpjpe_mm"] == pytest.approx(result.mpjpe_mm[:30].mean(), rel=1e-4)
    assert strata["upright"]["frechet"] == pytest.approx(metrics.frechet_distance(result.features[30:].reshape(-1, 8), reference[30:].reshape(-1, 8)), rel=1e-3)
    assert "tilted" not in comparison.summarise_strata(result, None, np.arange(100) < 1)
    with pytest.raises(ValueError, match="one flag for each"):
        comparison.summarise_strata(result, None, tilted[:50])


def test_compare_is_paired():
    before, after = synthetic(0), synthetic(1, shift=-30)
    change = comparison.compare(before, after)["mpjpe_mm"]
    difference = after.mpjpe_mm - before.mpjpe_mm
    assert change["change"] == pytest.approx(difference.mean(), rel=1e-4) and change["change"] < 0
    assert change["se"] == pytest.approx(difference.std(ddof=1) / 10, rel=1e-4) and change["se"] < 1          # unpaired it would be about 7
    assert change["z"] == pytest.approx(change["change"] / change["se"], rel=1e-3)
    assert change["relative"] == pytest.approx(after.mpjpe_mm.mean() / before.mpjpe_mm.mean() - 1, rel=1e-4)
    for value, interval in ((change["change"], change["change_ci95"]), (change["relative"], change["relative_ci95"])):
        assert interval[0] < value < interval[1] < 0
    assert change["change_ci95"][1] - change["change_ci95"][0] == pytest.approx(2 * 1.96 * change["se"], rel=0.15)
    shuffled = comparison.compare(before, after[np.random.default_rng(0).permutation(100)])["mpjpe_mm"]
    assert shuffled["se"] > 5 * change["se"]


def test_compare_frechet_and_bad_input():
    before, after, reference = synthetic(0, -50), synthetic(1), np.random.default_rng(5).normal(size=(100, 3, 8))
    row = comparison.compare(before, after, reference)["frechet"]
    assert row["change"] == pytest.approx(row["after"] - row["before"], rel=1e-3) and row["z"] < -4 and row["relative_ci95"][1] < -0.5
    assert json.loads(json.dumps(row)) == row
    with pytest.raises(ValueError, match="same samples"):
        comparison.compare(before, after[:50])
    broken = synthetic(0)
    broken.mpjpe_mm[7] = math.nan
    with pytest.raises(ValueError, match="mpjpe_mm of sample 7"):
        comparison.summarise(broken)


def test_table_fits_one_screen_and_says_what_is_better():
    before, after, reference = synthetic(0), synthetic(1, shift=-30), np.random.default_rng(5).normal(size=(100, 3, 8))
    rows = {"hard": None} | {f"  row {i}": comparison.summarise(before, reference) for i in range(12)} | {"  constant": {"mpjpe_mm": 613.0}}
    changes = {"hard": comparison.compare(before, after, reference), "everyday": comparison.compare(before, before, reference)}
    text = comparison.format_table(rows, changes)
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert lines[1] == "hard" and "613.0" in text and lines[14].split()[2] == "-"                 # what is not measured is a dash
    found = next(line for line in lines if line.startswith("MPJPE mm"))
    hard, everyday = found[10:54].split(), found[54:].split()
    assert hard[0].startswith("-") and hard[-1] == "+" and everyday[-1] == "="                    # less error is better
    psnr = next(line for line in lines if line.startswith("PSNR dB"))[10:54].split()
    assert psnr[0].startswith("-0.") and psnr[-1] == "-"                                         # fewer decibels are worse
    with pytest.raises(ValueError, match="one screen"):
        comparison.format_table({str(i): {"mpjpe_mm": 1.0} for i in range(50)})


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda i, l, t: (i[:, :1], l, t), "images have shape"),
        (lambda i, l, t: (i[:, :, :3], l, t), "images have shape"),
        (lambda i, l, t: (i[..., :16, :16], l, t), "images have shape"),
        (lambda i, l, t: (i, l[:5], t), "latents have shape"),
        (lambda i, l, t: (i, torch.full_like(l, math.nan), t), "latents of sample 0 are not finite"),
        (lambda i, l, t: (i.index_fill(0, torch.tensor([3]), math.inf), l, t), "images of sample 3 are not finite"),
        (lambda i, l, t: (i, l, views.GroundTruth(t.images, t.masks, t.joints[:, :22], t.scale)), "true joints have shape"),
        (lambda i, l, t: (i, l, views.GroundTruth(t.images, t.masks[:, 0], t.joints, t.scale)), "true masks have shape"),
        (lambda i, l, t: (i, l, views.GroundTruth(t.images, t.masks, t.joints, t.scale * 0)), "true scale of sample 0"),
    ],
)
def test_bad_input_gets_one_sentence(world, break_it, word):
    truth, latents = world
    images, latents, truth = break_it(truth.images, latents, truth)
    with pytest.raises(ValueError, match=word) as error:
        views.evaluate_views(images, latents, truth, FakePredictor(truth.joints), RIG)
    assert "\n" not in str(error.value)


def test_no_unseen_view_is_an_error(world):
    truth, latents = world
    with pytest.raises(ValueError, match="no unseen view"):
        views.evaluate_views(truth.images, latents, truth, FakePredictor(truth.joints), RIG, seen=(0, 1, 2, 3))


def test_the_error_of_a_frechet_change_is_in_its_own_unit():
    "Features twice as large: distances, their change and its error four times as large."
    reference = np.random.default_rng(5).normal(size=(100, 3, 8))
    before, after = synthetic(0), synthetic(1, shift=20.0)
    one = comparison.compare(before, after, reference)["frechet"]
    two = comparison.compare(replace(before, features=2 * before.features), replace(after, features=2 * after.features), 2 * reference)["frechet"]
    assert one["se"] > 0 and all(two[name] == pytest.approx(4 * one[name], rel=1e-3) for name in ("before", "change", "se")) and two["z"] == pytest.approx(one["z"], rel=1e-3)


def test_forty_lines_are_one_screen_and_one_more_is_not():
    row = comparison.summarise(synthetic(0))
    assert len(comparison.format_table({f"row {number}": row for number in range(39)}).splitlines()) == 40
    with pytest.raises(ValueError, match="41 lines"):
        comparison.format_table({f"row {number}": row for number in range(40)})
