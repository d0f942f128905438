"""Motion readers: every format round-trips to the joints it was written from, and every broken file says in one sentence what is wrong."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from drpose.bodies import SMPLX_JOINT_NAMES, SMPLX_PARENTS, Pose, axis_angle_to_matrix, load_body
from drpose.motion import BVH_SKELETONS, PYBULLET_HELD_OUT, Clip, embedded_clips, load_motion, load_pybullet_clips, motion_format, upright_share

LEFT_WRIST, RIGHT_WRIST = SMPLX_JOINT_NAMES.index("left_wrist"), SMPLX_JOINT_NAMES.index("right_wrist")
Z_TO_Y = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.fixture(scope="module")
def body():
    return load_body()


def some_pose(frames: int = 5, hands: bool = True) -> Pose:
    "Asymmetric poses with a turning root, so that a swapped side or axis cannot go unnoticed."
    generator = torch.Generator().manual_seed(3)
    angles = 0.4 * torch.randn(frames, 55, 3, generator=generator)
    angles[:, 22:25] = 0
    if not hands:
        angles[:, 22:] = 0
    return Pose(angles, torch.zeros(frames, 10), torch.randn(frames, 3, generator=generator))


# ---- writers: each makes the bytes of one format from a known pose, by other means than the reader ----


def write_amass(path, pose: Pose, body, width: int = 165, rate_name: str = "mocap_frame_rate", **changes):
    "AMASS npz in its Z-up world, from joint positions' point of view: the pelvis lands where the turned pelvis is."
    root = Rotation.from_matrix(Z_TO_Y.numpy().T) * Rotation.from_rotvec(pose.axis_angles[:, 0].numpy())
    angles = pose.axis_angles.clone()
    angles[:, 0] = torch.tensor(root.as_rotvec())
    rest_pelvis = body.joints(Pose.rest(1).with_betas(pose.betas[:1]))[:, 0]
    pelvis = body.joints(pose)[:, 0] @ Z_TO_Y
    betas = np.concatenate([pose.betas[0].numpy(), np.ones(6, np.float32)])
    poses = angles.flatten(1) if width == 165 else torch.cat([angles[:, :22], angles[:, 25:]], 1).flatten(1)
    fields = {"poses": poses.numpy(), "trans": (pelvis - rest_pelvis).numpy(), "betas": betas, "gender": np.array("neutral"), rate_name: np.array(120.0)}
    fields = {name: value for name, value in (fields | changes).items() if value is not None}
    with open(path, "wb") as file:
        np.savez(file, **fields)
    return path


def write_motion_x(path, pose: Pose, **changes):
    table = torch.zeros(len(pose), 322)
    table[:, :66], table[:, 66:156], table[:, 156:159] = pose.axis_angles[:, :22].flatten(1), pose.axis_angles[:, 25:].flatten(1), pose.axis_angles[:, 22]
    table[:, 309:312], table[:, 312:] = pose.transl, pose.betas
    with open(path, "wb") as file:
        np.save(file, changes.get("array", table.numpy().astype(np.float64)), allow_pickle=True)
    return path


def write_aist(path, pose: Pose, protocol: int = 4, **changes):
    poses = torch.cat([pose.axis_angles[:, :22].flatten(1), torch.zeros(len(pose), 6)], 1).numpy().astype(changes.pop("dtype", np.float64), order=changes.pop("order", "C"))
    fields = {"smpl_poses": poses, "smpl_trans": 90 * pose.transl.numpy(), "smpl_scaling": np.array([90.0]), "smpl_loss": 0.5}
    path.write_bytes(pickle.dumps({name: value for name, value in (fields | changes).items() if value is not None}, protocol=protocol))
    return path


def write_bvh(path, pose: Pose, body, unit: float = 1.0, t_pose: bool = False, skeleton: str = "CMU", edit=lambda text: text):
    "A BVH whose skeleton is the body's own rest skeleton in another unit, with Z Y X Euler angles."
    names = [BVH_SKELETONS[skeleton][name] for name in SMPLX_JOINT_NAMES[:22]]
    rest = body.joints(Pose.rest(1))[0, :22] / unit
    order: list[int] = []

    def block(joint: int) -> str:
        order.append(joint)
        offset = rest[joint] - rest[SMPLX_PARENTS[joint]] if joint else torch.zeros(3)
        channels = "CHANNELS 3 " if joint else "CHANNELS 6 Xposition Yposition Zposition "
        children = "".join("JOINT " + block(child) for child in range(joint + 1, 22) if SMPLX_PARENTS[child] == joint)
        end = children or "End Site\n{\nOFFSET 0 0 1\n}\n"
        return f"{names[joint]}\n{{\nOFFSET {' '.join(f'{x:.8f}' for x in offset)}\n{channels}Zrotation Yrotation Xrotation\n{end}}}\n"

    tree = "ROOT " + block(0)
    euler = Rotation.from_rotvec(pose.axis_angles[:, :22].reshape(-1, 3).numpy()).as_euler("ZYX", degrees=True).reshape(len(pose), 22, 3)
    position = body.joints(pose)[:, 0] / unit
    rows = [[*position[t].tolist(), *euler[t, order].reshape(-1)] for t in range(len(pose))]
    rows = ([[0.0] * 69] if t_pose else []) + rows
    lines = "\n".join(" ".join(f"{x:.7f}" for x in row) for row in rows)
    path.write_text(edit(f"HIERARCHY\n{tree}MOTION\nFrames: {len(rows)}\nFrame Time: .0083333\n{lines}\n"))
    return path


def rest_frame() -> list[float]:
    frame = [0.0] * 44
    for start in (4, 8, 12, 16, 21, 25, 30, 35, 39):
        frame[start] = 1.0
    frame[0], frame[2] = 1 / 30, 0.9
    return frame


def write_deepmimic(path, frames: list[list[float]]):
    path.write_text(json.dumps({"Loop": "wrap", "Frames": frames}, indent=1))
    return path


# ---- round trips ----


@pytest.mark.parametrize(("width", "rate_name", "name"), [(165, "mocap_frame_rate", "a_stageii.npz"), (156, "mocap_framerate", "b_poses.npz"), (165, "mocap_frame_rate", "renamed.dat")])
def test_amass_round_trip(tmp_path, body, width, rate_name, name):
    pose = some_pose().with_betas(torch.linspace(-1, 1, 10)[None])
    clip = load_motion(write_amass(tmp_path / name, pose, body, width, rate_name))
    assert isinstance(clip, Clip) and clip.fps == 120 and clip.name == name.split(".")[0] and clip.kind == "unknown"
    assert torch.allclose(clip.poses.betas, pose.betas)
    assert torch.allclose(body.joints(clip.poses), body.joints(pose), atol=2e-4)
    assert torch.allclose(axis_angle_to_matrix(clip.poses.axis_angles), axis_angle_to_matrix(pose.axis_angles), atol=1e-4)


def test_amass_wrong_axis_shows_in_upright_share(tmp_path, body):
    path = write_amass(tmp_path / "walk.npz", embedded_clips()["walk"].poses, body)
    assert upright_share(load_motion(path).poses) == 1
    assert upright_share(load_motion(path, up_axis="y").poses) == 0


@pytest.mark.parametrize("writer", [write_motion_x, write_aist])
def test_y_up_formats_round_trip(tmp_path, body, writer):
    pose = some_pose(hands=writer is write_motion_x)
    clip = load_motion(writer(tmp_path / "clip.bin", pose))
    assert clip.fps == (30 if writer is write_motion_x else 60)
    assert torch.allclose(body.joints(clip.poses), body.joints(pose), atol=1e-4)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_aist_pickles_of_all_protocols(tmp_path, protocol):
    pose = some_pose()
    clip = load_motion(write_aist(tmp_path / "clip.pkl", pose, protocol, smpl_scaling=np.float64(90.0), smpl_loss=np.float32(1)))
    assert torch.allclose(clip.poses.axis_angles[:, :22], pose.axis_angles[:, :22], atol=1e-6)
    assert torch.allclose(clip.poses.transl, pose.transl, atol=1e-5)


@pytest.mark.parametrize(("dtype", "order"), [("<f8", "F"), (">f4", "C"), ("<f4", "F")])
def test_aist_arrays_of_other_layouts(tmp_path, dtype, order):
    pose = some_pose()
    clip = load_motion(write_aist(tmp_path / "clip.pkl", pose, dtype=dtype, order=order))
    assert torch.allclose(clip.poses.axis_angles[:, :22], pose.axis_angles[:, :22], atol=1e-6)


@pytest.mark.parametrize(("skeleton", "unit"), [("CMU", 0.056), ("Mixamo", 0.01)])
def test_bvh_round_trip(tmp_path, body, skeleton, unit):
    pose = some_pose(hands=False)
    clip = load_motion(write_bvh(tmp_path / "clip.txt", pose, body, unit, t_pose=True, skeleton=skeleton))
    assert len(clip.poses) == len(pose) and clip.fps == 120                      # the T-pose row is gone
    assert torch.allclose(axis_angle_to_matrix(clip.poses.axis_angles), axis_angle_to_matrix(pose.axis_angles), atol=1e-4)
    assert torch.allclose(body.joints(clip.poses), body.joints(pose), atol=1e-3)


def test_bvh_with_splayed_rest_legs_keeps_bone_directions(tmp_path, body):
    "Rest legs 20 degrees apart, turned back to straight by the motion: the result stands straight."
    legs = Pose.rest(2)
    legs.axis_angles[:, 0, 1] = 0.1
    path = write_bvh(tmp_path / "clip.bvh", legs, body)
    rest = body.joints(Pose.rest(1))[0]
    lines = path.read_text().splitlines()
    for name, sign in (("LeftLeg", 1), ("RightLeg", -1)):
        knee = SMPLX_JOINT_NAMES.index("left_knee" if sign > 0 else "right_knee")
        bone = rest[knee] - rest[SMPLX_PARENTS[knee]]
        turned = Rotation.from_euler("z", 20 * sign, degrees=True).apply(bone.numpy())
        at = next(i for i, line in enumerate(lines) if line.strip() == f"JOINT {name}")
        lines[at + 2] = "OFFSET " + " ".join(f"{x:.6f}" for x in turned)
    path.write_text("\n".join(lines))
    joints = body.joints(load_motion(path).poses)[0] @ axis_angle_to_matrix(torch.tensor([0, 0.1, 0]))
    for hip, knee, sign in ((1, 4, 1), (2, 5, -1)):
        thigh = joints[knee] - joints[hip]
        angle = math.degrees(math.atan2(sign * thigh[0], -thigh[1])) - math.degrees(math.atan2(sign * (rest[knee] - rest[hip])[0], -(rest[knee] - rest[hip])[1]))
        assert angle == pytest.approx(20, abs=1)                                 # zero rotation shows the source's rest pose, not ours


def test_deepmimic_round_trip(tmp_path, body):
    "Angles that its hinges can express, written through its own axes by scipy, come back equal."
    generator = np.random.default_rng(5)
    turn = np.array([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]])                        # its frame to ours
    pose = Pose.rest(4)
    angles = pose.axis_angles.numpy()
    frames = [rest_frame() for _ in range(4)]
    for t in range(4):
        for joints, start in (((0,), 4), ((3, 6, 9), 8), ((12, 15), 12), ((2,), 16), ((8,), 21), ((1,), 30), ((7,), 35), ((17,), 25), ((16,), 39)):
            vector = generator.normal(scale=0.5, size=3)
            for joint in joints:
                angles[t, joint] = vector / len(joints)
            ours = Rotation.from_rotvec(vector)
            if joints[0] in (16, 17):                                            # arms hang in its rest pose
                ours = ours * Rotation.from_euler("z", 90 if joints[0] == 16 else -90, degrees=True)
            frames[t][start:start + 4] = (Rotation.from_matrix(turn.T) * ours * Rotation.from_matrix(turn)).as_quat(scalar_first=True).tolist()
        for joint, column in ((5, 20), (4, 34)):
            bend = generator.uniform(0, 2)
            angles[t, joint], frames[t][column] = (bend, 0, 0), -bend
        for joint, column, sign in ((19, 29, 1), (18, 43, -1)):
            bend = generator.uniform(0, 2)
            angles[t, joint], frames[t][column] = (0, sign * bend, 0), bend
    clip = load_motion(write_deepmimic(tmp_path / "humanoid3d_test.txt", frames))
    assert clip.fps == pytest.approx(30) and motion_format(tmp_path / "humanoid3d_test.txt") == "deepmimic"
    assert torch.allclose(axis_angle_to_matrix(clip.poses.axis_angles), axis_angle_to_matrix(pose.axis_angles), atol=1e-4)


def test_deepmimic_left_is_left_and_forward_is_forward(tmp_path, body):
    raised, walked = rest_frame(), rest_frame()
    raised[39:43] = Rotation.from_euler("x", -170, degrees=True).as_quat(scalar_first=True).tolist()   # its +Z is right: -X turn lifts the left arm outwards
    walked[1], walked[3] = 1.0, 0.5                                              # one metre forward, half a metre to the right
    joints = body.joints(load_motion(write_deepmimic(tmp_path / "clip", [rest_frame(), raised, walked])).poses)
    assert joints[0, LEFT_WRIST, 0] > 0.1 and joints[0, RIGHT_WRIST, 0] < -0.1
    assert joints[0, LEFT_WRIST, 1] < joints[0, 18, 1] < joints[0, 16, 1]        # arms hang
    assert joints[1, LEFT_WRIST, 1] > joints[1, 15, 1] > joints[1, RIGHT_WRIST, 1]
    assert joints[2, 0, 2] - joints[0, 0, 2] > 0.9 and joints[2, 0, 0] - joints[0, 0, 0] < -0.4
    assert 0 < joints[0, 10, 1] < 0.15                                           # the feet stand on the floor


def test_pybullet_clips_are_found_without_importing(tmp_path, monkeypatch):
    folder = tmp_path / "pybullet_data" / "data" / "motions"
    folder.mkdir(parents=True)
    (tmp_path / "pybullet_data" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match="humanoid3d"):
        load_pybullet_clips()
    for name in ("walk", "spinkick"):
        write_deepmimic(folder / f"humanoid3d_{name}.txt", [rest_frame()] * 2)
    (folder / "laikago_walk.txt").write_text("{}")
    clips = load_pybullet_clips()
    assert {name: clip.kind for name, clip in clips.items()} == {"spinkick": "dynamic", "walk": "everyday"}
    assert "spinkick" in PYBULLET_HELD_OUT and "walk" not in PYBULLET_HELD_OUT


def test_pybullet_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'drpose\[mocap\]'"):
        load_pybullet_clips()


def test_a_pickle_is_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"smpl_poses": Trap()}))
    with pytest.raises(ValueError, match="_io.open|io.open"):
        load_motion(tmp_path / "trap.pkl")
    assert not (tmp_path / "executed").exists()


# ---- broken files ----


def changed(array: np.ndarray, index, value) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


POSES, TABLE, SMPL = np.zeros((4, 165), np.float32), np.zeros((4, 322)), np.zeros((4, 72))


def cut(path, share: float = 0.6):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def without_frame_numbers(frame: list, index: int, value) -> list[list[float]]:
    return [frame, [*frame[:index], value, *frame[index + 1:]]]


BROKEN = {  # name: (writer of a broken file, what the sentence must contain)
    "empty": (lambda p, b: p.write_bytes(b""), "is empty (0 bytes)"),
    "picture": (lambda p, b: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), "begins with b'\\x89PNG"),
    "amass cut": (lambda p, b: cut(write_amass(p, some_pose(50), b)), "cannot be read as npz"),
    "amass stagei": (lambda p, b: write_amass(p, some_pose(), b, poses=None), "has no 'poses' (it holds: trans, betas"),
    "amass width": (lambda p, b: write_amass(p, some_pose(), b, poses=POSES[:, :72]), "'poses' has shape (4, 72), needed (frames, 165) for SMPL-X or (frames, 156)"),
    "amass no frames": (lambda p, b: write_amass(p, some_pose(), b, poses=POSES[:0]), "'poses' has shape (0, 165)"),
    "amass NaN": (lambda p, b: write_amass(p, some_pose(4), b, poses=changed(POSES, (2, 5), np.nan)), "'poses' holds NaN or infinity in 1 of 4 frames (first: 2)"),
    "amass too large": (lambda p, b: write_amass(p, some_pose(4), b, trans=np.full((4, 3), 1e200)), "'trans' holds NaN or infinity"),
    "amass degrees": (lambda p, b: write_amass(p, some_pose(4), b, poses=POSES + 45), "needed axis-angles in radians"),
    "amass objects": (lambda p, b: write_amass(p, some_pose(4), b, poses=np.array([None, 1], dtype=object)), "Object arrays cannot be loaded"),
    "amass text": (lambda p, b: write_amass(p, some_pose(4), b, poses=np.array([["a"]])), "'poses' holds <U1 values"),
    "amass no trans": (lambda p, b: write_amass(p, some_pose(4), b, trans=None), "'trans' is a NoneType, needed (4, 3)"),
    "amass short trans": (lambda p, b: write_amass(p, some_pose(4), b, poses=POSES, trans=np.zeros((3, 3))), "'trans' has 3 frames and 'poses' 4"),
    "amass short betas": (lambda p, b: write_amass(p, some_pose(4), b, betas=np.zeros(4)), "'betas' has shape (1, 4), needed (10,) or more"),
    "amass no rate": (lambda p, b: write_amass(p, some_pose(4), b, mocap_frame_rate=None), "has no frame rate, needed 'mocap_frame_rate' or 'mocap_framerate'"),
    "amass zero rate": (lambda p, b: write_amass(p, some_pose(4), b, mocap_frame_rate=0.0), "'mocap_frame_rate' is 0.0, needed one positive number"),
    "motion-x cut": (lambda p, b: cut(write_motion_x(p, some_pose(50))), "cannot be read as npy"),
    "motion-x width": (lambda p, b: write_motion_x(p, some_pose(), array=np.zeros((4, 263))), "has shape (4, 263), needed (frames, 322)"),
    "motion-x one frame": (lambda p, b: write_motion_x(p, some_pose(), array=np.zeros(322)), "has shape (322,)"),
    "motion-x objects": (lambda p, b: write_motion_x(p, some_pose(), array=np.array([{"a": 1}], dtype=object)), "Object arrays cannot be loaded"),
    "motion-x infinite": (lambda p, b: write_motion_x(p, some_pose(), array=changed(TABLE, (0, 310), np.inf)), "holds NaN or infinity in 1 of 4"),
    "aist cut": (lambda p, b: cut(write_aist(p, some_pose())), "cannot be read as an AIST++ pickle"),
    "aist list": (lambda p, b: p.write_bytes(pickle.dumps([1, 2])), "holds a list instead of a dictionary"),
    "aist command": (lambda p, b: p.write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R."), "asks for posix.system"),
    "aist keypoints": (lambda p, b: p.write_bytes(pickle.dumps({"keypoints3d": np.zeros((3, 17, 3))})), "has no smpl_poses, smpl_trans, smpl_scaling (it holds: keypoints3d)"),
    "aist width": (lambda p, b: write_aist(p, some_pose(), smpl_poses=SMPL[:, :69]), "'smpl_poses' has shape (4, 69), needed (frames, 72)"),
    "aist objects": (lambda p, b: write_aist(p, some_pose(), smpl_poses=np.array([None], dtype=object)), "an array of type 'O8' instead of numbers"),
    "aist scaling": (lambda p, b: write_aist(p, some_pose(4), smpl_scaling=np.array([0.0])), "needed (4, 3) and one positive number"),
    "json cut": (lambda p, b: cut(write_deepmimic(p, [rest_frame()] * 3)), "is not whole JSON"),
    "json other": (lambda p, b: p.write_text('{"frames": []}'), "has no list 'Frames' of frames (it holds: frames)"),
    "json laikago": (lambda p, b: write_deepmimic(p, [[0.1] * 20]), "frame 0 of 'Frames' has 20 entries, needed 44 numbers"),
    "json null": (lambda p, b: write_deepmimic(p, without_frame_numbers(rest_frame(), 7, None)), "frame 1 of 'Frames'"),
    "json quaternion": (lambda p, b: write_deepmimic(p, without_frame_numbers(rest_frame(), 16, 0.0)), "columns 16:20 hold a quaternion near 0"),
    "json zero time": (lambda p, b: write_deepmimic(p, [[0.0, *rest_frame()[1:]]] * 2), "needed one positive number (frames per second)"),
    "bvh no motion": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.split("MOTION")[0]), "has no MOTION part"),
    "bvh frame count": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("Frames: 5", "Frames: 7")), "holds 5 frames, needed 7"),
    "bvh short row": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.rstrip().rsplit(" ", 1)[0]), "frame 4 has 68 numbers, needed 69"),
    "bvh not a number": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.rstrip().rsplit(" ", 1)[0] + " x"), "something that is not a number"),
    "bvh NaN": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.rstrip().rsplit(" ", 1)[0] + " nan"), "holds NaN or infinity in 1 of 5"),
    "bvh zero time": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace(".0083333", "0")), "'Frame Time (1 / seconds)' is 0"),
    "bvh no time": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("Frame Time", "Time")), "needed 'Frames: n' and 'Frame Time: seconds'"),
    "bvh other skeleton": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("JOINT LeftForeArm", "JOINT l_elbow")), "lacks the joints LeftForeArm of a"),
    "bvh channels": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("CHANNELS 3", "CHANNELS 2", 1)), "needed a joint, OFFSET x y z or CHANNELS n"),
    "bvh no channels": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("CHANNELS 3 Zrotation Yrotation Xrotation\n", "", 1)), "needed OFFSET and three rotation CHANNELS"),
    "bvh Z up": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: "\n".join(
        "OFFSET {0} {2} {1}".format(*line.split()[1:]) if line.startswith("OFFSET") else line for line in t.splitlines())), "needed neck above the hips (+Y)"),
    "bvh mirrored": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("Left", "?").replace("Right", "Left").replace("?", "Right")), "needed left leg on +X"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_gets_one_sentence(tmp_path, body, name):
    path = tmp_path / "some_clip.bin"
    make, expected = BROKEN[name]
    make(path, body)
    with pytest.raises(ValueError) as caught:
        load_motion(path)
    message = str(caught.value)
    assert str(path) in message and expected in message, message
    assert len(message) < 500 and "Traceback" not in message


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_motion(tmp_path / "missing.npz")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_motion(tmp_path)
    write_deepmimic(tmp_path / "clip", [rest_frame()])
    for axis in ("x", "z"):
        with pytest.raises(ValueError, match="up_axis"):
            load_motion(tmp_path / "clip", up_axis=axis)
