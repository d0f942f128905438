"""The reward: zero at the truth, falling with error, blind to nothing it should see, and never training its predictor."""

import math

import pytest
import tiny_parts
import torch

from drpose.people.bodies import Pose, load_body
from drpose.pictures.cameras import ViewRig, frame_by_diagonal
from drpose.pictures.rendering import skeleton_maps
from drpose.reward.skeleton_predictor import (PoseScore, SkeletonPredictor, bce_excess, map_distance, read_joints,
                                              spatial_excess, view_features)

RIG = ViewRig((0.0, 90.0, 180.0, 270.0), image_size=16, mirrored=(False, False, True, True))


def logits_of(joints, sigma=1.0):
    return torch.logit(skeleton_maps(joints, RIG, sigma).clamp(1e-6, 1 - 1e-6))


@pytest.fixture
def joints():
    body = load_body()(Pose.rest())
    return frame_by_diagonal(body.vertices).apply(body.joints)[:, :23]


def test_excess_is_zero_at_the_truth_and_positive_elsewhere(joints):
    target = skeleton_maps(joints, RIG, 1.0)
    assert bce_excess(logits_of(joints), target).abs().max() < 1e-4
    assert spatial_excess(torch.log(target + 1e-12), target).abs().max() < 1e-5
    moved = joints + torch.tensor([0.06, 0.0, 0.0])
    assert (bce_excess(logits_of(moved), target)[:, [0, 2]] > 0.01).all()  # seen from front and back
    assert bce_excess(logits_of(moved), target)[:, [1, 3]].abs().max() < 1e-4  # depth for the side views


def test_a_cell_on_a_joint_weighs_eleven_times_an_empty_one():
    "Undecided maps cost log 2 a cell; the class balance is what keeps the many empty cells from deciding."
    undecided, full = torch.zeros(1, 1, 1, 4, 4), torch.ones(1, 1, 1, 4, 4)
    assert torch.allclose(bce_excess(undecided, 0 * full), torch.tensor([[math.log(2)]]))
    assert torch.allclose(bce_excess(undecided, full), torch.tensor([[11 * math.log(2)]]))


def test_swapping_left_and_right_costs(joints):
    target = skeleton_maps(joints, RIG, 1.0)
    swapped = joints.clone()
    swapped[:, [20, 21]] = swapped[:, [21, 20]]
    assert map_distance(logits_of(swapped), target)[0, 0] > map_distance(logits_of(joints), target)[0, 0] + 0.05


def test_read_joints_recover_the_true_ones(joints):
    found = read_joints(torch.log(skeleton_maps(joints, RIG, 1.0) + 1e-12), RIG)
    assert (found.joints3d - joints).norm(dim=-1).max() < 0.01
    assert (found.points2d - RIG.project(joints)).abs().max() < 0.3


def test_reward_is_the_mean_over_views_and_reaches_latents_only():
    latents = torch.randn(3, 2, 4, 4, 8, 8, requires_grad=True)
    score = PoseScore(tiny_parts.predictor())
    joints, rig = 0.2 * torch.randn(3, 23, 3), RIG.resized(8)
    torch.testing.assert_close(score(latents, joints, rig), score.per_view(latents, joints, rig).mean(1))
    torch.testing.assert_close(score(latents, joints, rig), score.predictor.reward(latents, joints, rig))
    score(latents, joints, rig).sum().backward()
    assert latents.grad.flatten(1).abs().amax(1).min() > 0 and not any(p.requires_grad for p in score.parameters())


def test_pose_and_its_framed_joints_score_the_same(joints):
    body, latents = load_body(), torch.randn(1, 2, 4, 4, 8, 8)
    score = PoseScore(tiny_parts.predictor(), body)
    torch.testing.assert_close(score(latents, Pose.rest(), RIG.resized(8)), score(latents, joints, RIG.resized(8)))


def test_views_are_scored_one_by_one():
    predictor, latents = tiny_parts.predictor(), torch.randn(1, 2, 4, 4, 8, 8)
    changed = latents.clone()
    changed[:, :, 2] += 1
    difference = (predictor(latents, RIG.resized(8)) - predictor(changed, RIG.resized(8))).abs().amax((0, 2, 3, 4))
    assert difference[2] > 1e-3 and difference[[0, 1, 3]].max() < 1e-5


def test_the_predictor_knows_mirrored_views():
    plain = ViewRig(RIG.azimuths, image_size=8)
    assert not torch.equal(view_features(plain), view_features(RIG))
    latents = torch.randn(1, 2, 4, 4, 8, 8)
    difference = (tiny_parts.predictor()(latents, plain) - tiny_parts.predictor()(latents, RIG.resized(8))).abs().amax((0, 2, 3, 4))
    assert difference[2:].min() > 1e-4 and difference[:2].max() == 0


def test_gradient_pulls_a_joint_toward_its_place(joints):
    "Moving a read joint along the negative gradient of the distance brings it nearer."
    target = skeleton_maps(joints, RIG, 1.0)
    shift = torch.tensor([0.08, 0.0, 0.0], requires_grad=True)
    map_distance(logits_of(joints + shift), target).mean().backward()
    assert shift.grad[0] > 0 and shift.grad[1].abs() < shift.grad[0]


def test_save_and_load_round_trip(tmp_path):
    predictor = tiny_parts.predictor()
    predictor.save_pretrained(tmp_path)
    again = SkeletonPredictor.from_pretrained(tmp_path).eval()
    latents = torch.randn(1, 2, 4, 4, 8, 8)
    assert torch.equal(predictor(latents, RIG.resized(8)), again(latents, RIG.resized(8)))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda score: score(torch.randn(1, 2, 3, 4, 8, 8), torch.zeros(1, 23, 3), RIG.resized(8)), "V = 4"),
        (lambda score: score(torch.randn(1, 1, 4, 4, 8, 8), torch.zeros(1, 23, 3), RIG.resized(8)), "D\\*C = 8"),
        (lambda score: score(torch.randn(1, 2, 4, 4, 8, 8), torch.zeros(1, 5, 3), RIG.resized(8)), "23 or more"),
        (lambda score: score(torch.randn(1, 2, 4, 4, 8, 8), Pose.rest(), RIG.resized(8)), "needs a body model"),
    ],
)
def test_bad_inputs(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(PoseScore(tiny_parts.predictor()))
