"""Folders of motion: every file once, in order, at one rate; what cannot be read or was never done by a person is named and left out."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from drpose.people.bodies import Pose, load_body
from drpose.people.motion import Clip, embedded_clips, load_motion
from drpose.people.recordings import FAULT_LIMITS, Recordings, clean_parts, frame_faults, motion_files, resample


@pytest.fixture(scope="module")
def body():
    return load_body()


def save(path, clip: Clip, fps: float | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = torch.zeros(len(clip), 322)
    table[:, :66], table[:, 66:156], table[:, 309:312] = clip.poses.axis_angles[:, :22].flatten(1), clip.poses.axis_angles[:, 25:].flatten(1), clip.poses.transl
    if fps is None:
        np.save(path, table.numpy())
    else:
        np.savez(path, root_orient=table[:, :3], pose_body=table[:, 3:66], trans=table[:, 309:312], mocap_frame_rate=fps)
    return path


@pytest.mark.parametrize("fps", [7.5, 24, 30, 60, 119.88])
def test_resampling_keeps_the_time(body, fps):
    clip = embedded_clips()["cartwheel"]
    other = resample(clip, fps)
    assert other.fps == fps and len(other) == int(clip.seconds * fps + 0.01) + 1 and other.name == clip.name
    assert torch.equal(other.poses[:1].axis_angles, clip.poses[:1].axis_angles) or torch.allclose(other.poses[:1].axis_angles, clip.poses[:1].axis_angles, atol=1e-5)
    for frame in (1, len(other) // 2, len(other) - 1):  # at the time it says
        time = frame / fps * clip.fps
        near = body.joints(clip.poses[min(round(time), len(clip) - 1) : min(round(time), len(clip) - 1) + 1])
        speed = body.joints(clip.poses).diff(dim=0).norm(dim=-1).amax()
        assert (body.joints(other.poses[frame : frame + 1]) - near).norm(dim=-1).max() <= abs(time - round(time)) * speed * 1.3 + 1e-4


def test_resampling_one_frame_and_nonsense():
    one = Clip(Pose.rest(1), 30, "one")
    assert len(resample(one, 120)) == 1 and resample(one, 120).fps == 120
    for fps in (0, -30, math.nan):
        with pytest.raises(ValueError, match="needed a positive number of frames per second"):
            resample(one, fps)


def test_folders_are_walked_in_order_and_broken_files_are_named(tmp_path):
    clips = embedded_clips()
    save(tmp_path / "b" / "walk.npy", clips["walk"]), save(tmp_path / "a" / "walk.npz", clips["jog"], 60.0), save(tmp_path / "c.npy", clips["wave"])
    (tmp_path / "a" / "shape.npz").write_bytes(b"PK no motion"), (tmp_path / "a" / "take_stagei.npz").write_bytes(b"PK")
    (tmp_path / "a" / "notes.md").write_text("no motion"), (tmp_path / ".hidden").mkdir(), (tmp_path / ".hidden" / "x.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "b" / "cut.npy").write_bytes((tmp_path / "b" / "walk.npy").read_bytes()[:500])
    recordings = Recordings([tmp_path, tmp_path / "c.npy"])
    for _ in range(2):  # a second loop begins anew
        found = list(recordings)
        assert [clip.name for clip in found] == ["a/walk", "b/walk", "c", "c"] and all(clip.fps == 30 for clip in found)
        assert len(recordings.refused) == 1 and str(tmp_path / "b" / "cut.npy") in recordings.refused[0]
    assert len(found[0]) == (len(clips["jog"]) + 1) // 2 and Recordings([tmp_path / "a"], fps=None).__iter__().__next__().fps == 60
    with pytest.raises(FileNotFoundError, match="needed motion files"):
        list(motion_files(tmp_path / "nowhere"))


def test_memory_stays_at_one_clip(tmp_path):
    clip = Clip(Pose.cat([embedded_clips()["cartwheel"].poses] * 8), 30, "long")
    save(tmp_path / "0.npy", clip)
    for number in range(1, 60):
        (tmp_path / f"{number}.npy").hardlink_to(tmp_path / "0.npy")
    size = (tmp_path / "0.npy").stat().st_size
    tracemalloc.start()
    count = sum(1 for _ in Recordings([tmp_path]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 and peak < 20 * size


def test_thirty_clips_in_two_layouts_give_the_same_joints(tmp_path, body):
    "AMASS (Z up, 60 frames per second) and Motion-X (Y up, 30): within a millimetre."
    z_up, pelvis = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), body.rest_joints(torch.zeros(1, 10))[:, 0]
    for name, clip in list(embedded_clips().items())[:30]:
        fine = resample(clip, 60)
        save(tmp_path / "amass" / f"{name}.npz", Clip(fine.poses.rotated(z_up, pelvis), 60, name), 60.0)
        save(tmp_path / "motion_x" / f"{name}.npy", clip)
    one, other = ({clip.name: clip for clip in Recordings([tmp_path / layout])} for layout in ("amass", "motion_x"))
    assert set(one) == set(other) and len(one) == 30
    for name in one:
        assert (body.joints(one[name].poses)[:, :22] - body.joints(other[name].poses)[:, :22]).norm(dim=-1).max() < 1e-3, name


def with_fault(fault: str) -> Clip:
    clip, generator = embedded_clips()["slow_walk"], torch.Generator().manual_seed(0)
    poses = Pose(clip.poses.axis_angles.clone(), clip.poses.betas, clip.poses.transl.clone())
    if fault == "jitter":
        poses.axis_angles[15:35, 18] += 0.06 * torch.randn(20, 3, generator=generator)
    elif fault == "jump":
        poses.axis_angles[25, 16] = torch.tensor([0.0, 0.0, 1.3])
    elif fault == "collision":
        poses.axis_angles[20:30, [1, 2], 2] += torch.tensor([-0.35, 0.35])
    else:
        poses.transl[20:24, 1] -= 0.15
    return Clip(poses, 30, "slow_walk")


@pytest.mark.parametrize("fault", FAULT_LIMITS)
def test_a_planted_fault_is_found_where_it_is(body, fault):
    faults, clean = frame_faults(with_fault(fault), body), frame_faults(embedded_clips()["slow_walk"], body)
    bad = (faults[fault] > FAULT_LIMITS[fault]).nonzero().flatten()
    assert len(bad) and bad.min() >= 12 and bad.max() <= 38 and not (clean[fault] > FAULT_LIMITS[fault]).any()
    parts = clean_parts(with_fault(fault), body, shortest=8)
    assert [part.name.startswith("slow_walk#") for part in parts] and all((frame_faults(part, body)["jump"] <= FAULT_LIMITS["jump"]).all() for part in parts)
    assert sum(map(len, parts)) <= len(clean["jump"]) - len(bad)


def test_clean_clips_stay_as_they_are(body):
    clips = embedded_clips()
    kept = {name: clean_parts(clip, body, shortest=8) for name, clip in clips.items()}
    assert kept["backflip"][0] is clips["backflip"] and sum(len(part) for parts in kept.values() for part in parts) > 0.97 * sum(map(len, clips.values()))
    assert clean_parts(clips["hurdle"], body, shortest=999) == [] and clean_parts(clips["hurdle"], body, 8, {"jump": -1.0}) == []
    with pytest.raises(ValueError, match="a limit is set for 'speed', but the faults are jitter, jump, collision, sunk"):
        clean_parts(clips["walk"], body, limits={"speed": 1.0})
    short = Clip(clips["walk"].poses[:3], 30, "short")
    assert all(len(values) == 3 and not values.any() for name, values in frame_faults(short, body).items() if name != "sunk")


def test_load_motion_agrees_with_the_walker(tmp_path):
    path = save(tmp_path / "x.npy", embedded_clips()["walk"])
    assert torch.equal(next(iter(Recordings([path]))).poses.axis_angles, load_motion(path).poses.axis_angles)
