"""The space of poses: blending, joint limits, noise, random poses, self-collision."""

import pytest
import torch

from drpose.people.bodies import SMPLX_JOINT_NAMES, Pose, axis_angle_to_matrix, load_body
from drpose.people.pose_space import (JOINT_LIMITS, from_swing_twist, limit_sample, limit_violation, mix, perturb,
                                      random_rotation, segment_distance, self_collision, slerp, to_swing_twist)

JOINT = {name: number for number, name in enumerate(SMPLX_JOINT_NAMES)}


@pytest.fixture(scope="module")
def body():
    return load_body()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample_joint_limits(n: int, generator: torch.Generator, random_root: bool = False) -> Pose:
    "Poses inside JOINT_LIMITS, upright or any way up."
    axis_angles = limit_sample(torch.randn(n, 55, 3, generator=generator))
    if random_root:
        axis_angles[:, 0] = random_rotation(torch.randn(n, 4, generator=generator))
    return Pose(axis_angles, torch.zeros(n, 10), torch.zeros(n, 3))


def test_slerp_turns_at_constant_speed():
    start, end = torch.tensor([0.3, 0.0, 0.0]), torch.tensor([1.5, 0.0, 0.0])
    assert torch.allclose(slerp(start, end, 0.25), torch.tensor([0.6, 0.0, 0.0]), atol=1e-6)
    a, b = torch.randn(2, 30, 3, generator=seeded()).unbind(0)
    third = axis_angle_to_matrix(slerp(a, b, 1 / 3))
    step = axis_angle_to_matrix(a).mT @ third
    assert torch.allclose(axis_angle_to_matrix(a) @ step @ step @ step, axis_angle_to_matrix(b), atol=1e-5)


def test_slerp_takes_the_short_way():
    assert slerp(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([0.0, -3.0, 0.0]), 0.5)[1].abs() > 3.0


def test_swing_twist_is_exact_and_separates_the_twist():
    axis_angles = 1.5 * torch.randn(50, 55, 3, generator=seeded())
    back = from_swing_twist(to_swing_twist(axis_angles))
    assert torch.allclose(axis_angle_to_matrix(back), axis_angle_to_matrix(axis_angles), atol=1e-5)
    twisted = torch.zeros(1, 55, 3)
    twisted[0, JOINT["left_elbow"], 0] = 0.7  # about the forearm, x
    twisted[0, JOINT["left_hip"], 1] = 0.4  # about the thigh, y
    assert torch.allclose(to_swing_twist(twisted)[0, [JOINT["left_elbow"], JOINT["left_hip"]]], twisted[0, [JOINT["left_elbow"], JOINT["left_hip"]]], atol=1e-6)


def test_limits_mirror():
    for name, (x_range, y_range, z_range) in JOINT_LIMITS.items():
        if name.startswith("left_"):
            other = JOINT_LIMITS["right_" + name.removeprefix("left_")]
            assert other == (x_range, (-y_range[1], -y_range[0]), (-z_range[1], -z_range[0]))
    sampled = sample_joint_limits(50, seeded())
    assert limit_violation(sampled.mirrored().axis_angles).max() < 1e-3


def test_limits_know_which_way_joints_bend():
    pose = torch.zeros(4, 55, 3)
    pose[0, JOINT["left_knee"], 0] = 1.5
    pose[1, JOINT["left_knee"], 0] = -0.6
    pose[2, JOINT["left_elbow"], 1] = 0.6
    pose[3, JOINT["right_elbow"], 1] = 0.6
    assert (limit_violation(pose) > 0.1).tolist() == [False, True, True, False]


def test_perturb_is_seeded_bounded_and_scales():
    pose = sample_joint_limits(100, seeded())
    weak, strong = (perturb(pose, seeded(1), strength) for strength in (0.2, 1.0))
    assert torch.equal(weak.axis_angles, perturb(pose, seeded(1), 0.2).axis_angles)
    assert torch.allclose(perturb(pose, seeded(1), 0.0).axis_angles, pose.axis_angles, atol=1e-4)
    assert max(limit_violation(p.axis_angles).max() for p in (weak, strong)) < 1e-3
    change = [(p.axis_angles - pose.axis_angles).norm(dim=-1).mean() for p in (weak, strong)]
    assert 2 < change[1] / change[0] < 6


def test_random_roots_are_upright_or_any_way_up():
    upright, tilted = (sample_joint_limits(400, seeded(), root).axis_angles[:, 0] for root in (False, True))
    assert upright.abs().max() == 0
    up = axis_angle_to_matrix(tilted)[:, 1, 1]  # how much of the body's up is the world's up: uniform on [-1, 1]
    assert up.mean().abs() < 0.1 and 0.5 < up.std() < 0.65


def test_mix_blends_everything():
    a, b = sample_joint_limits(5, seeded(0)), sample_joint_limits(5, seeded(1)).with_betas(torch.ones(5, 10))
    middle = mix(a, b, torch.linspace(0, 1, 5))
    assert torch.allclose(axis_angle_to_matrix(middle.axis_angles[0]), axis_angle_to_matrix(a.axis_angles[0]), atol=1e-5)
    assert torch.allclose(axis_angle_to_matrix(middle.axis_angles[4]), axis_angle_to_matrix(b.axis_angles[4]), atol=1e-5)
    assert torch.allclose(middle.betas[:, 0], torch.linspace(0, 1, 5))


def test_segment_distance_against_a_dense_search():
    ends = torch.randn(20, 4, 3, generator=seeded())
    t = torch.linspace(0, 1, 201)[:, None]
    a = ends[:, None, 0] + t * (ends[:, None, 1] - ends[:, None, 0])
    b = ends[:, None, 2] + t * (ends[:, None, 3] - ends[:, None, 2])
    assert torch.allclose(segment_distance(*ends.unbind(1)), torch.cdist(a, b).flatten(1).amin(1), atol=0.02)
    point = torch.zeros(1, 3)
    assert torch.allclose(segment_distance(point, point, torch.ones(1, 3), torch.ones(1, 3)), torch.tensor([3.0]).sqrt())


def test_self_collision_sees_crossed_legs_but_not_folded_limbs(body):
    pose = Pose.rest(4)
    pose.axis_angles[1, [JOINT["left_knee"], JOINT["right_knee"]], 0] = 2.0
    pose.axis_angles[2, JOINT["left_hip"], 2] = -0.5  # through the right leg
    pose.axis_angles[3, JOINT["right_hip"], 2] = 0.5  # its mirror image
    depth = self_collision(body.joints(pose))
    assert depth[0] == 0 and depth[1] == 0
    assert depth[2] > 0.05 and abs(depth[2] - depth[3]) < 0.005
