"""Which frames become pictures: kinds of difficulty read from motion, shares that add up, a choice more varied than farthest points alone."""

import math

import pytest
import torch

from drpose.people.anchors import (MOST_OF_BIN, SUPPORTS, TILT_BINS, FrameFacts, bin_shares, choose_anchors, coverage_radius, diversity_report,
                                   frame_facts)
from drpose.people.bodies import Pose, load_body
from drpose.people.clips import Clip, embedded_clips
from drpose.people.selection import diversity, farthest_point_sampling, pose_features


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def pool(body):
    "Embedded frames and their mirror images: poses, kinds and features."
    poses, kinds = [], []
    for clip in embedded_clips().values():
        for mirrored in (clip.poses, clip.poses.mirrored()):
            poses.append(mirrored)
            kinds += frame_facts(Clip(mirrored, clip.fps, clip.name), body).bins()
    poses = Pose.cat(poses)
    return poses, kinds, pose_features(poses, body)


@pytest.mark.parametrize(("name", "support", "share"), [("walk", "feet", 0.99), ("headstand", "hands", 0.9), ("boat", "body", 0.6), ("pike_jump", "air", 0.5), ("air_chair", "hands", 0.6)])
def test_support_is_what_carries(body, name, support, share):
    facts = frame_facts(embedded_clips()[name], body)
    assert (facts.support == SUPPORTS.index(support)).float().mean() > share


def test_facts_do_not_depend_on_where_the_floor_is_and_which_way_she_faces(body):
    clip = embedded_clips()["cartwheel"]
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    moved = clip.poses.rotated(turn, body.rest_joints(torch.zeros(1, 10))[:, 0])
    moved.transl[:, 1] += 3.0
    one, other = frame_facts(clip, body), frame_facts(Clip(moved, clip.fps, "moved"), body)
    assert torch.allclose(one.tilt, other.tilt, atol=0.05) and torch.allclose(one.speed, other.speed, atol=1e-3) and torch.equal(one.support, other.support)


def test_speed_is_metres_per_second(body):
    "A body that slides by 2 m/s, at any frame rate."
    for fps in (10, 120):
        poses = Pose(torch.zeros(20, 55, 3), torch.zeros(20, 10), torch.arange(20)[:, None] * torch.tensor([[2.0 / fps, 0, 0]]))
        facts = frame_facts(Clip(poses, fps, "slide"), body)
        assert torch.allclose(facts.speed, torch.full((20,), 2.0), atol=1e-3) and set(facts.bins()) == {"upright, moving, feet"}
    assert frame_facts(Clip(Pose.rest(1), 30, "one"), body).speed.tolist() == [0.0]


def test_every_value_has_a_kind():
    facts = FrameFacts(torch.tensor([0.0, 45, 90, 135, 180]), torch.tensor([0.0, 1, 3, 99, 0.5]), torch.tensor([0, 1, 2, 3, 0]))
    assert facts.bins() == ["upright, still, feet", "leaning, moving, hands", "below level, fast, body", "upside down, fast, air", "upside down, still, feet"]


def test_shares_add_up_and_nobody_gives_more_than_a_fifth(pool):
    _, kinds, _ = pool
    for count in (1, 7, 100, 500):
        shares = bin_shares(kinds, count)
        assert sum(shares.values()) == count and all(share <= math.ceil(MOST_OF_BIN * kinds.count(name)) for name, share in shares.items())
    by_tilt = [sum(share for name, share in bin_shares(kinds, 100).items() if name.startswith(tilt)) for tilt in TILT_BINS]
    assert max(by_tilt) - min(by_tilt) <= 1
    most = sum(math.ceil(MOST_OF_BIN * kinds.count(name)) for name in set(kinds))
    assert sum(bin_shares(kinds, 10**6).values()) == most
    # within a tilt and a speed: by the square root of the frames
    two = bin_shares(["upright, still, feet"] * 1600 + ["upright, still, air"] * 100, 50)
    assert two == {"upright, still, feet": 40, "upright, still, air": 10}


def test_the_choice_is_more_varied_than_farthest_points_alone(pool, body):
    "And far more than everyday poses: the paper's 1.73."
    poses, kinds, features = pool
    everyday = Pose.cat([clip.poses for clip in embedded_clips().values() if clip.kind == "everyday"])
    for count in (60, 150):
        ours, paper = choose_anchors(features, kinds, count), farthest_point_sampling(features, count)
        assert len(set(ours.tolist())) == count
        spread = [diversity(poses[rows], body, at_most=2).joint_spread for rows in (ours, paper)]
        assert spread[0] >= spread[1] and spread[0] >= 1.73 * diversity(everyday, body, at_most=2).joint_spread
    assert torch.equal(choose_anchors(features, kinds, 60), choose_anchors(features.clone(), list(kinds), 60))
    with pytest.raises(ValueError, match="needed as many of both"):
        choose_anchors(features, kinds[:-1], 5)
    with pytest.raises(ValueError, match="count = 0"):
        choose_anchors(features, kinds, 0)


def test_inside_a_kind_it_is_farthest_point_sampling(pool):
    _, kinds, features = pool
    one = [i for i, kind in enumerate(kinds) if kind == "upright, moving, feet"]
    rows, far = torch.tensor(one), (features[one] - features[one].mean(0)).norm(dim=1)
    chosen = choose_anchors(features[rows], ["upright, moving, feet"] * len(rows), 12)
    assert chosen.tolist() == farthest_point_sampling(features[rows], 12, start=int(far.argmax())).tolist()


def test_report_counts_by_other_means(pool, body):
    poses, kinds, features = pool
    rows = torch.arange(0, len(poses), 37)
    reference = Pose.cat([embedded_clips()[name].poses for name in ("stand", "wave")])
    report = diversity_report(poses[rows], poses[::5], reference, [kinds[i] for i in rows.tolist()], body)
    table = (features[::5, None] - features[rows][None]).norm(dim=-1)
    assert report.coverage_radius == pytest.approx(float(table.min(1).values.max()), abs=1e-4) == pytest.approx(coverage_radius(features[rows], features[::5]), abs=1e-4)
    assert report.count == len(rows) and sum(report.tilts.values()) == pytest.approx(1) and report.upside_down == report.tilts["upside down"]
    assert report.airborne == pytest.approx(sum(kinds[i].endswith("air") for i in rows.tolist()) / len(rows))
    assert report.spread_ratio == pytest.approx(report.joint_spread / diversity(reference, body).joint_spread, rel=1e-5) and report.spread_ratio > 1.73
    assert math.isnan(diversity_report(poses[rows], poses[rows], reference, None, body).airborne)
    assert diversity_report(poses[rows], poses[rows], reference, None, body).coverage_radius < 1e-3


def test_farthest_points_of_many_poses_are_exact_and_quick():
    "A tenth of the paper's case, beside the loop as one writes it in numpy."
    import time

    import numpy as np

    sample = torch.randn(30_000, 66, generator=torch.Generator().manual_seed(0))
    table, nearest, taken = sample.numpy().astype(np.float64), np.full(30_000, np.inf), [0]
    for _ in range(39):
        nearest = np.minimum(nearest, ((table - table[taken[-1]]) ** 2).sum(1))
        taken.append(int(nearest.argmax()))
    started = time.perf_counter()
    assert farthest_point_sampling(sample, 40).tolist() == taken
    assert time.perf_counter() - started < 20
