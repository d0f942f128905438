"""Selection: features keep tilt and sides but not heading, sampling equals brute force, difficulty and diversity mean what they say."""

import math
from itertools import pairwise

import pytest
import torch

from drpose.people.bodies import Pose, axis_angle_to_matrix, load_body, matrix_to_axis_angle
from drpose.people.clips import embedded_clips
from drpose.people.selection import (METRICS, diversity, farthest_point_sampling, geodesic_features, is_tilted,
                                     pose_difficulty, pose_features, trunk_tilt)


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def pool():
    return Pose.cat([clip.poses[::5] for clip in embedded_clips().values()])


def turned(pose: Pose, axis: tuple[float, float, float], degrees: float) -> Pose:
    "The pose with its root turned about a world axis."
    rotation = axis_angle_to_matrix(torch.tensor(axis) * math.radians(degrees))
    angles = pose.axis_angles.clone()
    angles[:, 0] = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(angles[:, 0]))
    return Pose(angles, pose.betas, pose.transl)


def test_features_forget_heading_and_place_only(pool, body):
    upright = pool[~is_tilted(pool)]
    moved = turned(upright, (0.0, 1.0, 0.0), 130)
    moved = Pose(moved.axis_angles, moved.betas, moved.transl + 2)
    assert pose_features(upright).shape == (len(upright), 66)
    assert torch.allclose(pose_features(moved), pose_features(upright), atol=2e-4)
    assert torch.allclose(pose_features(body.joints(upright)), pose_features(upright), atol=1e-6)


def test_features_keep_tilt_and_sides():
    rest = Pose.rest(1)
    assert (pose_features(turned(rest, (1.0, 0, 0), 180)) - pose_features(rest)).norm() > 0.8     # upside down
    assert (pose_features(turned(rest, (1.0, 0, 0), 90)) - pose_features(rest)).norm() > 0.5      # prone is not standing
    one_arm = Pose.rest(1)
    one_arm.axis_angles[0, 16, 2] = -1.2                                                          # the left arm down
    assert (pose_features(one_arm) - pose_features(one_arm.mirrored())).norm() > 0.1
    face_up, face_down = turned(rest, (1.0, 0, 0), -90), turned(rest, (1.0, 0, 0), 90)
    assert (pose_features(face_up) - pose_features(face_down)).norm() > 0.05


def test_feature_distance_is_rms_joint_distance(body):
    joints = body.joints(Pose.rest(2)).clone()
    joints[1, 22, 1] += 0.22                                                                      # one of 22 joints moves
    features = pose_features(joints)
    assert (features[0] - features[1]).norm().item() == pytest.approx(0.22 / math.sqrt(22), abs=1e-5)


@pytest.mark.parametrize(("count", "width", "k", "start", "offset"), [(200, 66, 40, 0, 0), (57, 3, 57, 11, 0), (400, 1, 20, 399, 0), (301, 3, 60, 5, 1000)])
def test_sampling_equals_brute_force(count, width, k, start, offset):
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    features = features + offset                                                 # far from the origin, differences of squares lose digits
    table = (features.double()[:, None] - features.double()[None]).norm(dim=-1)
    taken = [start]
    while len(taken) < k:
        nearest = table[:, taken].min(dim=1).values
        nearest[taken] = -1
        taken.append(int(nearest.argmax()))
    assert farthest_point_sampling(features, k, start).tolist() == taken


def test_sampling_is_distinct_among_duplicates_and_deterministic():
    features = torch.zeros(10, 4)
    features[7] = 1
    taken = farthest_point_sampling(features, 10).tolist()
    assert taken[:2] == [0, 7] and sorted(taken) == list(range(10))
    assert taken == farthest_point_sampling(features, 10).tolist()


def test_geodesic_distance_is_the_joint_angle():
    poses = Pose.rest(4)
    poses.axis_angles[1, 18, 1] = -2.4                        # an elbow bends by 2.4 rad
    poses.axis_angles[2, 18, 1] = -0.6
    poses.axis_angles[3, 18, 1] = 4.0                         # the same turn as 2 pi - 4 the other way round
    poses = Pose.cat([poses, turned(Pose.rest(1), (0.0, 1.0, 0.0), 90), turned(Pose.rest(1), (0.0, 0, 1), 90)])
    features = geodesic_features(poses)
    distances = METRICS["geodesic"](features)(0)
    expected = [0, 2.4 / 24, 0.6 / 24, (2 * math.pi - 4) / 24, 0, 3 * math.pi / 2 / 24]   # a turn of heading costs nothing, a tilt by 90 degrees counts as three joints
    assert torch.allclose(distances, torch.tensor(expected), atol=1e-3)
    assert farthest_point_sampling(features, 3, metric="geodesic").tolist() == [0, 5, 1]


def test_tilt_strata():
    poses = Pose.cat([turned(Pose.rest(1), (1.0, 0, 0), degrees) for degrees in (0, 40, 55, 90, 180, -55)])
    reference = trunk_tilt(Pose.rest(1))
    assert reference < 0.1                                    # the embedded spine is nearly vertical
    assert is_tilted(poses).tolist() == [False, False, True, True, True, True]
    assert trunk_tilt(poses)[4].item() == pytest.approx(math.pi - reference.item(), abs=1e-3)


def test_difficulty_terms(body):
    joints = body.joints(Pose.rest(1))
    hanging = joints.clone()
    trunk = torch.nn.functional.normalize(joints[0, 0] - joints[0, 12], dim=0)
    for chain in ((16, 18, 20), (17, 19, 21), (1, 4, 7), (2, 5, 8)):
        for upper, lower in pairwise(chain):
            hanging[0, lower] = hanging[0, upper] + 0.3 * trunk          # every limb straight along the trunk
    lean = trunk_tilt(hanging).item() / math.pi
    assert pose_difficulty(hanging).item() == pytest.approx(lean, abs=1e-3)
    bent = hanging.clone()
    bent[0, 20] = bent[0, 18] + torch.tensor([0, 0, 0.3])                # one of eight bends: a right angle
    forearm = math.pi / 2 + math.asin(trunk[2]) * -1
    assert pose_difficulty(bent).item() - lean == pytest.approx(forearm / 8 / (2 * math.pi / 3), abs=1e-3)
    apart = hanging.clone()
    apart[0, [7, 4]] += torch.tensor([1.0, 0, 0])
    assert pose_difficulty(apart) > pose_difficulty(hanging) + 0.3


def test_difficulty_orders_clips_and_ignores_heading_and_mirroring(pool):
    clips = embedded_clips()
    hardest = {name: pose_difficulty(clips[name].poses).max().item() for name in ("stand", "walk", "high_kick", "cartwheel", "handstand_walk")}
    assert hardest["stand"] < hardest["walk"] < hardest["high_kick"] < hardest["cartwheel"]
    assert hardest["handstand_walk"] > 2
    assert torch.allclose(pose_difficulty(turned(pool, (0.0, 1.0, 0.0), 70)), pose_difficulty(pool), atol=1e-3)
    assert (pose_difficulty(pool.mirrored()) - pose_difficulty(pool)).abs().max() < 0.1


def test_diversity_by_hand(body):
    joints = body.joints(Pose.rest(3)).clone()
    joints[1, 22, 1] += 0.22
    joints[2, 22, 1] += 0.66                                  # distances 0.22, 0.44, 0.66 on one of 22 joints
    result = diversity(joints)
    assert result.count == 3
    assert result.pairwise_distance == pytest.approx(0.02, abs=1e-5)
    assert result.nearest_distance == pytest.approx((0.01 + 0.01 + 0.02) / 3, abs=1e-5)
    assert result.smallest_distance == pytest.approx(0.01, abs=1e-5)
    spread = torch.tensor([0, 0.22, 0.66]).std(correction=0).item() / 66
    assert result.joint_spread == pytest.approx(spread, abs=1e-5)


def test_diversity_sees_duplicates_and_variety(pool):
    clips = embedded_clips()
    everyday = diversity(Pose.cat([clip.poses for clip in clips.values() if clip.kind == "everyday"]), at_most=300)
    dynamic = diversity(Pose.cat([clip.poses for clip in clips.values() if clip.kind == "dynamic"]), at_most=300)
    assert dynamic.joint_spread > 1.5 * everyday.joint_spread and dynamic.pairwise_distance > everyday.pairwise_distance
    twice = diversity(Pose.cat([pool[:20], pool[:20]]))
    assert twice.nearest_distance < 1e-3


BAD = {
    "too many": (lambda: farthest_point_sampling(torch.zeros(5, 3), 6), "k = 6"),
    "none": (lambda: farthest_point_sampling(torch.zeros(5, 3), 0), "k = 0"),
    "start": (lambda: farthest_point_sampling(torch.zeros(5, 3), 2, start=5), "start = 5"),
    "metric": (lambda: farthest_point_sampling(torch.zeros(5, 3), 2, metric="cosine"), "metric = 'cosine'"),
    "NaN features": (lambda: farthest_point_sampling(torch.full((5, 3), math.nan), 2), "needed finite numbers"),
    "3D features": (lambda: farthest_point_sampling(torch.zeros(5, 3, 3), 2), "(5, 3, 3)"),
    "width": (lambda: farthest_point_sampling(torch.zeros(5, 66), 2, metric="geodesic"), "needed 87"),
    "joints": (lambda: pose_features(torch.zeros(5, 17, 3)), "(5, 17, 3)"),
    "not joints": (lambda: pose_difficulty([1, 2]), "list"),
    "NaN joints": (lambda: pose_difficulty(torch.full((2, 55, 3), math.nan)), "NaN or infinity in 2 of 2"),
    "one pose": (lambda: diversity(Pose.rest(1)), "needed 2 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    call, expected = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert expected in str(caught.value)
