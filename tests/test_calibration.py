"""Calibration: people drawn wrong by a known amount, and a rank correlation that is one."""

import pytest
import scipy.stats
import tiny_parts
import torch
from diffusers import AutoencoderKL

from drpose.ground.model_files import embedded_models
from drpose.people.bodies import Pose, load_body
from drpose.people.pose_sets import draw_set
from drpose.pictures.cameras import TINY_RIG
from drpose.reward.rewards import RewardSum
from drpose.people.bodies import MIRRORED_SKELETON
from drpose.reward.calibration import (ANGLES, TURNED, blurred, calibrate, rank_correlation,
                                       rotate_joint, without_forearm)


def test_a_rotation_has_its_angle_and_moves_only_what_hangs_on_the_joint():
    body_model, poses = load_body(), Pose.rest(2)
    turned = rotate_joint(poses, [16, 2], 40.0)
    extra = turned.axis_angles.norm(dim=-1)
    assert torch.allclose(torch.rad2deg(extra[0, 16]), torch.tensor(40.0), atol=1e-3) and torch.allclose(torch.rad2deg(extra[1, 2]), torch.tensor(40.0), atol=1e-3)
    moved = (body_model.joints(turned) - body_model.joints(poses))[:, :22].norm(dim=-1) > 1e-3
    assert moved[0].nonzero().flatten().tolist() == [18, 20] and moved[1].nonzero().flatten().tolist() == [5, 8, 11]


def test_blur_keeps_the_mean_and_flattens():
    images = torch.rand(2, 3, 32, 32)
    soft = blurred(images, 2.0)
    assert soft.shape == images.shape and torch.equal(blurred(images, 0.0), images)
    assert (soft.mean() - images.mean()).abs() < 5e-3 and soft.var() < 0.1 * images.var()
    assert torch.allclose(blurred(torch.ones(1, 3, 8, 8), 1.0), torch.ones(1, 3, 8, 8), atol=1e-6)


def test_the_forearm_is_gone_and_nothing_else():
    images = torch.rand(1, 2, 1, 3, 32, 32)
    images[..., 0, 0] = 1.0
    points = torch.tensor([[[[8.5, 8.5], [20.5, 8.5]]]])
    bare = without_forearm(images, points, 2.0)
    changed = (bare != images).any(2).any(2)[0, 0]
    assert changed[8, 12:24].all() and not changed[:, :8].any() and not changed[12:].any() and (bare[0, :, 0, :, 8, 15] == 1.0).all()


def test_mirrored_joints_exchange_sides_only():
    joints = torch.arange(23.0)[None, :, None].expand(1, 23, 3)
    swapped = joints[:, list(MIRRORED_SKELETON)][0, :, 0]
    assert swapped[0] == 0 and swapped[1] == 2 and swapped[16] == 17 and swapped[20] == 21 and [MIRRORED_SKELETON[joint] for joint in MIRRORED_SKELETON] == list(range(23))


def test_rank_correlation_is_spearmans():
    a, b = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.randn(40, generator=torch.Generator().manual_seed(1))
    assert rank_correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic) and rank_correlation(a, a.exp()) == pytest.approx(1)


def test_every_score_is_asked_the_same(tmp_path):
    body_model = load_body()
    vae = AutoencoderKL.from_pretrained(embedded_models() / "pipeline" / "vae").eval()
    people = draw_set("everyday_test", len(TURNED), 0, body_model)
    found = calibrate({"maps": RewardSum(tiny_parts.predictor(), "maps"), "again": RewardSum(tiny_parts.predictor(), "maps"), "other": RewardSum(tiny_parts.predictor(), "transport")}, vae, body_model, people, TINY_RIG, (1.0,))
    one = found["maps"]
    assert one.error_mm.shape == one.distance.shape == (len(ANGLES), len(people)) and one.blur.shape == (1, len(people))
    assert one.error_mm[0].max() < 0.1 and one.error_mm[-1].mean() > 10
    assert torch.equal(one.distance, found["again"].distance) and not torch.equal(one.distance, found["other"].distance)
