"""Motion readers: every format round-trips to the joints it was written from, and every broken file says in one sentence what is wrong."""

import json
import math
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from drpose.people.bodies import SMPLX_JOINT_NAMES, SMPLX_PARENTS, Pose, axis_angle_to_matrix, load_body
from drpose.people.motion import (BVH_SKELETONS, MOST_FRAMES, PYBULLET_HELD_OUT, Clip, embedded_clips, load_motion,
                                  load_pybullet_clips, motion_format, upright_share)

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


def write_fields(path, **fields):
    with open(path, "wb") as file:
        np.savez(file, **fields)
    return path


def nested_lists(*plain: bytes) -> bytes:
    "A pickle of some 200 bytes: in each of 40 levels a list holds the one below twice; under smpl_scaling, and smpl_poses where `plain` does not name it."
    bomb = b"]" + b"".join(b"q" + bytes([level]) + b"0](h" + bytes([level]) + b"h" + bytes([level]) + b"e" for level in range(40))
    poses = pickle.dumps({"smpl_poses": np.zeros((2, 72)), "smpl_trans": np.zeros((2, 3))}, protocol=2)[2:-1]
    start = poses if plain else b"}U\x0asmpl_poses" + bomb + b"s"
    return b"\x80\x02" + start + b"U\x0csmpl_scaling" + bomb + b"s."


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
    "amass cut": (lambda p, b: cut(write_amass(p, some_pose(50), b)), "cannot be read as an npz of a motion"),
    "amass stagei": (lambda p, b: write_amass(p, some_pose(), b, poses=None), "(it holds: betas, gender, mocap_frame_rate, trans), needed a motion"),
    "amass width": (lambda p, b: write_amass(p, some_pose(), b, poses=POSES[:, :99]), "'poses' has shape (4, 99), needed (frames, 165) for SMPL-X or (frames, 156)"),
    "amass no frames": (lambda p, b: write_amass(p, some_pose(), b, poses=POSES[:0]), "'poses' has shape (0, 165)"),
    "amass NaN": (lambda p, b: write_amass(p, some_pose(4), b, poses=changed(POSES, (2, 5), np.nan)), "'poses' holds NaN or infinity in 1 of 4 frames (first: 2)"),
    "amass too large": (lambda p, b: write_amass(p, some_pose(4), b, trans=np.full((4, 3), 1e200)), "'trans' holds NaN or infinity"),
    "amass degrees": (lambda p, b: write_amass(p, some_pose(4), b, poses=POSES + 45), "needed axis-angles in radians"),
    "amass objects": (lambda p, b: write_amass(p, some_pose(4), b, poses=np.array([None, 1], dtype=object)), "field 'poses' holds a pickled object"),
    "amass text": (lambda p, b: write_amass(p, some_pose(4), b, poses=np.array([["a"]])), "'poses' holds <U1 values"),
    "amass no trans": (lambda p, b: write_amass(p, some_pose(4), b, trans=None), "'trans' is a NoneType, needed (4, 3)"),
    "amass short trans": (lambda p, b: write_amass(p, some_pose(4), b, poses=POSES, trans=np.zeros((3, 3))), "'trans' has 3 frames and the poses 4"),
    "amass short betas": (lambda p, b: write_amass(p, some_pose(4), b, betas=np.zeros(4)), "'betas' has shape (1, 4), needed (10,) or more"),
    "amass zero rate": (lambda p, b: write_amass(p, some_pose(4), b, mocap_frame_rate=0.0), "'mocap_frame_rate' is 0.0, needed one positive number"),
    "amass millimetres": (lambda p, b: write_amass(p, some_pose(4), b, trans=np.full((4, 3), 1500.0)), "'trans' goes as far as 1500, needed metres"),
    "amass betas": (lambda p, b: write_amass(p, some_pose(4), b, betas=np.full(16, 1e6)), "'betas' holds 1000000"),
    "amass rate of objects": (lambda p, b: write_amass(p, some_pose(4), b, mocap_frame_rate=np.array([1.0, 2.0])), "'mocap_frame_rate' is an array of shape (2,)"),
    "amass too many frames": (lambda p, b: write_amass(p, some_pose(4), b, poses=np.zeros((MOST_FRAMES + 1, 72), np.int8)), "'poses' has 131,073 frames, needed at most 131,072"),
    "parts of two lengths": (lambda p, b: write_fields(p, global_orient=np.zeros((4, 3)), body_pose=np.zeros((5, 63))), "'global_orient' has 4 frames and 'body_pose' 5"),
    "parts in degrees": (lambda p, b: write_fields(p, global_orient=np.zeros((4, 3)), body_pose=np.full((4, 63), 90.0)), "'body_pose' holds a rotation of 156, needed axis-angles in radians"),
    "parts not finite": (lambda p, b: write_fields(p, root_orient=np.zeros((4, 3)), pose_body=np.full((4, 63), 1e39), trans=np.zeros((4, 3))), "'pose_body' holds NaN or infinity in 4 of 4"),
    "3DPW nobody": (lambda p, b: p.write_bytes(pickle.dumps({"poses": [], "cam_poses": 0, "trans": []})), "'poses' holds 0 people"),
    "pickle that hangs": (lambda p, b: p.write_bytes(b"\x80\x02})" + b"2\x86" * 70 + b"Ns."), "a key that is not a plain word or number"),
    "pickle of a huge table": (lambda p, b: p.write_bytes(b"\x80\x02}r\xff\xff\xff\xffX\xff\xff\xff\x7fa."), "it is cut short"),
    "pickle of huge bytes": (lambda p, b: p.write_bytes(b"\x80\x05}\x96" + (2**40).to_bytes(8, "little") + b"s."), "it is cut short"),
    "pickle of nested lists": (lambda p, b: p.write_bytes(nested_lists()), "'smpl_poses' is a list, needed (frames, 72)"),
    "pickle of nested numbers": (lambda p, b: p.write_bytes(nested_lists(b"smpl_trans", b"smpl_scaling")), "'smpl_scaling' is a list, needed one positive number"),
    "pickle without sense": (lambda p, b: p.write_bytes(b"\x80\x02sssu."), "its words make no sense"),
    "pickle of a tensor": (lambda p, b: p.write_bytes(pickle.dumps({"poses": torch.zeros(4, 72)})), "torch._utils._rebuild_tensor_v2, and only arrays and plain containers are admitted; save its arrays as an npz"),
    "json without end": (lambda p, b: p.write_text('{"Frames": ' + "[" * 100_000), "needed a DeepMimic motion"),
    "json list of lists": (lambda p, b: p.write_text('{"Frames": [' + "[" * 500 + "]" * 500 + "]}"), "frame 0 of 'Frames' has 1 entries"),
    "fbx": (lambda p, b: p.write_bytes(b"Kaydara FBX Binary  \x00\x1a\x00" + bytes(99)), "is FBX or glTF, which is not read; export it as BVH"),
    "motion-x cut": (lambda p, b: cut(write_motion_x(p, some_pose(50))), "its header promises"),
    "motion-x promises": (lambda p, b: p.write_bytes(write_motion_x(p, some_pose()).read_bytes().replace(b"(5, 322)", b"(5000000000, 322)")), "its header promises"),
    "motion-x width": (lambda p, b: write_motion_x(p, some_pose(), array=np.zeros((4, 263))), "has shape (4, 263), needed (frames, 322)"),
    "motion-x one frame": (lambda p, b: write_motion_x(p, some_pose(), array=np.zeros(322)), "has shape (322,)"),
    "motion-x objects": (lambda p, b: write_motion_x(p, some_pose(), array=np.array([{"a": 1}], dtype=object)), "holds a pickled object"),
    "motion-x infinite": (lambda p, b: write_motion_x(p, some_pose(), array=changed(TABLE, (0, 310), np.inf)), "holds NaN or infinity in 1 of 4"),
    "aist cut": (lambda p, b: cut(write_aist(p, some_pose())), "cannot be read as a motion pickle (it is cut short)"),
    "aist list": (lambda p, b: p.write_bytes(pickle.dumps([1, 2])), "holds a list instead of a dictionary"),
    "aist command": (lambda p, b: p.write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R."), "asks for posix.system"),
    "aist keypoints": (lambda p, b: p.write_bytes(pickle.dumps({"keypoints3d": np.zeros((3, 17, 3))})), "(it holds: keypoints3d), needed a motion"),
    "aist width": (lambda p, b: write_aist(p, some_pose(), smpl_poses=SMPL[:, :69]), "'smpl_poses' has shape (4, 69), needed (frames, 72)"),
    "aist objects": (lambda p, b: write_aist(p, some_pose(), smpl_poses=np.array([None], dtype=object)), "'smpl_poses' is an array of type 'O8' instead of numbers"),
    "aist scaling": (lambda p, b: write_aist(p, some_pose(4), smpl_scaling=np.array([0.0])), "'smpl_scaling' is 0.0, needed one positive number"),
    "json cut": (lambda p, b: cut(write_deepmimic(p, [rest_frame()] * 3)), "not valid JSON"),
    "json other": (lambda p, b: p.write_text('{"frames": []}'), "has no list 'Frames' of frames (it holds: frames)"),
    "json laikago": (lambda p, b: write_deepmimic(p, [[0.1] * 20]), "frame 0 of 'Frames' has 20 entries, needed 44 numbers"),
    "json null": (lambda p, b: write_deepmimic(p, without_frame_numbers(rest_frame(), 7, None)), "frame 1 of 'Frames'"),
    "json quaternion": (lambda p, b: write_deepmimic(p, without_frame_numbers(rest_frame(), 16, 0.0)), "columns 16:20 hold a quaternion near 0"),
    "json zero time": (lambda p, b: write_deepmimic(p, [[0.0, *rest_frame()[1:]]] * 2), "needed one positive number (frames per second)"),
    "bvh no motion": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.split("MOTION")[0]), "has no MOTION part"),
    "bvh frame count": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("Frames: 5", "Frames: 7")), "holds 5 frames, needed 7"),
    "bvh promises": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("Frames: 5", "Frames: 7000000000000")), "needed 7000000000000 as 'Frames:' says"),
    "bvh channel count": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("CHANNELS 3", "CHANNELS 3000000000", 1)), "needed a joint, OFFSET x y z or CHANNELS n"),
    "bvh endless bone": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("OFFSET 0", "OFFSET 1e300", 1)), "needed a joint, OFFSET x y z"),
    "bvh no frames": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.split("Frame Time")[0].replace("Frames: 5", "Frames: 0") + "Frame Time: .01"), "holds 0 frames"),
    "bvh many joints": (lambda p, b: write_bvh(p, some_pose(), b, edit=lambda t: t.replace("HIERARCHY", "HIERARCHY" + "\nROOT a" * 20_000)), "more than 10000 joints"),
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


SEVERAL = {  # what published files hold, for poses (T, 72), places (T, 3) and vectors (T, 165): (content, up axis, frames per second)
    "3DPW": (lambda p, t, x: {"poses": [p, 2 * p], "trans": [t, t + 1], "betas": [np.ones(10), np.zeros(300)], "cam_poses": np.tile(np.eye(4), (len(p), 1, 1)), "genders": ["m", "f"], "sequence": "s"}, "y", 30),
    "EMDB": (lambda p, t, x: {"gender": "male", "smpl": {"poses_root": p[:, :3], "poses_body": p[:, 3:], "trans": t, "betas": np.zeros(10)}, "camera": {"intrinsics": np.eye(3)}}, "y", 30),
    "EDGE": (lambda p, t, x: {"smpl_poses": p, "smpl_trans": t, "full_pose": np.zeros((len(p), 24, 3))}, "z", 30),
    "MOYO": (lambda p, t, x: {"fullpose": x, "trans": t, "betas": np.zeros(300), "mocap_framerate": 60}, "z", 60),
    "SMPL": (lambda p, t, x: {"poses": p, "trans": t, "betas": np.zeros(10), "mocap_framerate": np.array(25.0)}, "z", 25),
    "smplx": (lambda p, t, x: {"global_orient": x[:, None, :3], "body_pose": x[:, 3:66].reshape(-1, 21, 3), "transl": t, "left_hand_pose": x[:, 75:120], "fps": 50}, "y", 50),
    "AMASS by parts": (lambda p, t, x: {"root_orient": x[:, :3], "pose_body": x[:, 3:66], "pose_hand": x[:, 75:165], "trans": t, "mocap_frame_rate": 120.0}, "z", 120),
}


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("kind", SEVERAL)
def test_published_layouts(tmp_path, body, kind, pickled):
    "Each layout gives the poses it was made from, in its own axes, whether it is a pickle or an npz with the same keys."
    make, up, rate = SEVERAL[kind]
    pose = some_pose()
    lying = pose.rotated(Z_TO_Y.T, body.rest_joints(torch.zeros(1, 10))[:, 0]) if up == "z" else pose
    vector = lying.axis_angles.flatten(1).numpy()
    content = make(np.pad(vector[:, :66], ((0, 0), (0, 6))), lying.transl.numpy(), vector)
    if pickled:
        (tmp_path / "clip.pkl").write_bytes(pickle.dumps(content))
    else:
        content = {name: value for name, value in content.items() if not isinstance(value, str)}
        content |= content.pop("smpl", {})
        flat = {name: np.stack([array[:10] if array.ndim == 1 else array for array in value]) if isinstance(value, list) and not isinstance(value[0], str) else value for name, value in content.items() if name != "camera"}
        write_fields(tmp_path / "clip.npz", **flat, gender=np.array("male", dtype=object))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = load_motion(tmp_path / ("clip.pkl" if pickled else "clip.npz"))
    hands = {"MOYO": slice(25, 55), "AMASS by parts": slice(25, 55), "smplx": slice(25, 40)}.get(kind, slice(0, 0))
    assert clip.fps == rate
    assert torch.allclose(clip.poses.axis_angles[:, hands], pose.axis_angles[:, hands], atol=1e-5)
    assert torch.allclose(axis_angle_to_matrix(clip.poses.axis_angles[:, :22]), axis_angle_to_matrix(pose.axis_angles[:, :22]), atol=1e-4)
    if kind != "3DPW":
        assert torch.allclose(body.joints(clip.poses)[:, :20], body.joints(pose)[:, :20], atol=2e-4)


def test_one_of_several_people(tmp_path):
    poses = np.full((3, 72), 0.1)
    (tmp_path / "two.pkl").write_bytes(pickle.dumps(SEVERAL["3DPW"][0](poses, np.zeros((3, 3)), None)))
    with pytest.warns(UserWarning, match="2 people"):
        first = load_motion(tmp_path / "two.pkl", up_axis="y")
    second = load_motion(tmp_path / "two.pkl", up_axis="y", person=1)
    assert torch.allclose(2 * first.poses.axis_angles, second.poses.axis_angles) and second.poses.transl.eq(1).all()
    assert first.poses.betas.eq(1).all() and second.poses.betas.eq(0).all()
    with pytest.raises(ValueError, match="2 people, needed one of them, found person 2"):
        load_motion(tmp_path / "two.pkl", person=2)


def test_rate_is_asked_for(tmp_path, body):
    path = write_amass(tmp_path / "walk.npz", embedded_clips()["walk"].poses, body, mocap_frame_rate=None)
    with pytest.warns(UserWarning, match="has no frame rate"):
        assert load_motion(path).fps == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_motion(path, fps=25).fps == 25 and load_motion(write_motion_x(tmp_path / "walk.npy", embedded_clips()["walk"].poses), fps=60).fps == 60
    for wrong in (0, float("nan"), -3, "30", True):
        with pytest.raises(ValueError, match="'fps' is .*needed one positive number"):
            load_motion(path, fps=wrong)


def test_fields_that_nobody_needs_are_not_opened(tmp_path, body):
    "Three gigabytes of zeros and an object beside the motion: read in no time."
    path = write_amass(tmp_path / "walk.npz", some_pose(), body, gender=np.array({"a": 1}, dtype=object))
    block = bytes(2**20)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("labels.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (100 * 2**20,)})
        for _ in range(100):
            member.write(block)
    assert len(load_motion(path, up_axis="z").poses) == 5


@pytest.mark.parametrize("axis", ["-y", "z", "-z"])
def test_camera_axes_are_turned_upright(tmp_path, body, axis):
    turn = {"z": Z_TO_Y, "-z": Z_TO_Y.T, "-y": torch.diag(torch.tensor([1.0, -1, -1]))}[axis]
    walk = embedded_clips()["walk"].poses
    path = write_motion_x(tmp_path / "camera.npy", walk.rotated(turn.T, body.rest_joints(torch.zeros(1, 10))[:, 0]))
    with pytest.warns(UserWarning, match="upside down" if axis == "-y" else "no frame is upright"):
        load_motion(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(body.joints(load_motion(path, up_axis=axis).poses), body.joints(walk), atol=1e-4)
        load_motion(write_motion_x(tmp_path / "upright.npy", walk))


@pytest.mark.parametrize("prefix", ["mixamorig:", "mixamorig5:", "mixamorig", "mixamorig_", "MIXAMORIG:", "Armature|", "Armature|mixamorig:", "Character1_", "my rig "])
def test_only_the_end_of_a_joint_name_counts(tmp_path, body, prefix):
    pose = some_pose(hands=False)
    path = write_bvh(tmp_path / "clip.bvh", pose, body, 0.01, skeleton="Mixamo", edit=lambda text: text.replace("JOINT ", f"JOINT {prefix}").replace("ROOT ", f"ROOT {prefix}"))
    assert torch.allclose(body.joints(load_motion(path).poses), body.joints(pose), atol=1e-3)


def under(text: str, channels: str, values: list[list[float]]) -> str:
    "The BVH with a joint above its root, moved by `values`."
    tree, motion = text.removeprefix("HIERARCHY\n").split("MOTION\n")
    head, rows = motion.strip().split("\n")[:2], motion.strip().split("\n")[2:]
    rows = [" ".join(map(str, above)) + " " + row for above, row in zip(values, rows, strict=True)]
    return "\n".join([f"HIERARCHY\nROOT Reference\n{{\nOFFSET 0 0 0\nCHANNELS {channels}\n{tree.replace('ROOT', 'JOINT')}}}\nMOTION", *head, *rows, ""])


def test_joints_above_the_hips_carry_the_person(tmp_path, body):
    pose = some_pose(hands=False)
    steps = [[10.0 * t, 0.0, 5.0, 20.0 * t] for t in range(5)]                     # centimetres, and degrees about y
    path = write_bvh(tmp_path / "clip.bvh", pose, body, 0.01, edit=lambda text: under(text, "4 Xposition Yposition Zposition Yrotation", steps))
    turns = torch.tensor(Rotation.from_rotvec([[0, row[3], 0] for row in steps], degrees=True).as_matrix()).float()
    wanted = torch.einsum("tij,tkj->tki", turns, body.joints(pose)) + torch.tensor(steps)[:, None, :3] / 100
    assert torch.allclose(body.joints(load_motion(path, up_axis="y").poses), wanted, atol=1e-3)


def test_a_first_row_is_a_t_pose_only_if_every_rotation_says_so(tmp_path, body):
    "A real frame in which the root alone has no turn is kept."
    pose = some_pose(hands=False)
    pose.axis_angles[0, 0] = 0
    clip = load_motion(write_bvh(tmp_path / "clip.bvh", pose, body), up_axis="y")
    assert len(clip.poses) == len(pose) and torch.allclose(body.joints(clip.poses), body.joints(pose), atol=1e-3)


def test_a_row_more_than_promised_is_read(tmp_path, body):
    path = write_bvh(tmp_path / "clip.bvh", some_pose(), body, edit=lambda text: text.replace("Frames: 5", "Frames: 4"))
    with pytest.warns(UserWarning, match="5 whole frames where 'Frames:' says 4"):
        assert len(load_motion(path).poses) == 5


@pytest.mark.parametrize("rest_too", [True, False])
def test_bvh_with_z_up(tmp_path, body, rest_too):
    "The world's up axis is the one that is told; the rest pose may stand along it or along y."
    pose = some_pose(hands=False)
    turn = Z_TO_Y.T
    lying = pose.rotated(turn, body.rest_joints(torch.zeros(1, 10))[:, 0])
    if rest_too:                                                                    # every joint's axes are turned with the bones
        matrices = turn @ axis_angle_to_matrix(pose.axis_angles) @ turn.T
        lying = Pose(torch.tensor(Rotation.from_matrix(matrices.reshape(-1, 3, 3).numpy()).as_rotvec()).float().reshape(-1, 55, 3), pose.betas, lying.transl)

    def lay(text: str) -> str:
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if rest_too and line.startswith("OFFSET"):
                x, y, z = line.split()[1:]
                lines[number] = f"OFFSET {x} {-float(z)} {y}"
        start = lines.index("MOTION") + 3
        places = (body.joints(pose)[:, 0] @ turn.T / 0.01).tolist()
        lines[start:] = [" ".join([*map(str, place), *line.split()[3:]]) for place, line in zip(places, lines[start:], strict=True)]
        return "\n".join(lines) + "\n"

    path = write_bvh(tmp_path / "clip.bvh", lying, body, 0.01, edit=lay)
    assert torch.allclose(body.joints(load_motion(path, up_axis="z").poses), body.joints(pose), atol=1e-3)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_motion(tmp_path / "missing.npz")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_motion(tmp_path)
    write_deepmimic(tmp_path / "clip", [rest_frame()])
    for axis in ("x", "z"):
        with pytest.raises(ValueError, match="up_axis"):
            load_motion(tmp_path / "clip", up_axis=axis)


def to_soma(path, pose: Pose, body, unit: float = 0.01, lying: bool = True):
    "A BVH of SOMA's joints: bones along the axes that Kimodo's published T-pose gives them (rotations rounded to 1e-4), a Root above the hips."
    from drpose.people.motion import _soma_t_pose

    stand = _soma_t_pose().double().numpy() if lying else np.tile(np.eye(3), (22, 1, 1))
    names = [BVH_SKELETONS["SOMA"][name] for name in SMPLX_JOINT_NAMES[:22]]
    rest = body.joints(Pose.rest(1))[0, :22].double().numpy() / unit
    world = np.zeros((len(pose), 22, 3, 3))
    local = Rotation.from_rotvec(pose.axis_angles[:, :22].reshape(-1, 3).numpy()).as_matrix().reshape(-1, 22, 3, 3)
    for joint in range(22):
        world[:, joint] = (world[:, SMPLX_PARENTS[joint]] if joint else np.eye(3)) @ local[:, joint]
    laid, order = world @ stand, []

    def block(joint: int) -> str:
        order.append(joint)
        offset = stand[SMPLX_PARENTS[joint]].T @ (rest[joint] - rest[SMPLX_PARENTS[joint]]) if joint else np.zeros(3)
        children = "".join("JOINT " + block(child) for child in range(joint + 1, 22) if SMPLX_PARENTS[child] == joint)
        channels = "CHANNELS 3" if joint else "CHANNELS 6 Xposition Yposition Zposition"
        return f"{names[joint]}\n{{\nOFFSET {' '.join(map(str, offset))}\n{channels} Zrotation Yrotation Xrotation\n{children}}}\n"

    tree = "ROOT Root\n{\nOFFSET 0 0 0\nCHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation\nJOINT " + block(0) + "}\n"
    steps = np.stack([laid[:, j] if not j else np.swapaxes(laid[:, SMPLX_PARENTS[j]], 1, 2) @ laid[:, j] for j in order], 1)
    euler = Rotation.from_matrix(steps.reshape(-1, 3, 3)).as_euler("ZYX", degrees=True).reshape(len(pose), -1)
    places = body.joints(pose)[:, 0].numpy() / unit
    rows = "\n".join(" ".join(map(str, [0.0] * 6 + places[t].tolist() + euler[t].tolist())) for t in range(len(pose)))
    path.write_text(f"HIERARCHY\n{tree}MOTION\nFrames: {len(pose)}\nFrame Time: 0.008333\n{rows}\n")
    return path


def test_soma_joints_stand_as_kimodo_says():
    "World rotations of the T-pose as nv-tlabs/kimodo publishes them (standard_t_pose_global_offsets_rots), some of the 77."
    from drpose.people.motion import _soma_t_pose

    published = {
        "pelvis": [[0, 0, 1], [1, 0.0033, 0], [-0.0033, 1, 0]], "spine2": [[0, 0, 1], [0.9942, 0.1074, 0], [-0.1074, 0.9942, 0]],
        "neck": [[0, 0, 1], [0.9582, -0.2862, 0], [0.2862, 0.9582, 0]], "left_collar": [[0.9382, 0.3460, 0], [0, 0, -1], [-0.3460, 0.9382, 0]],
        "right_collar": [[0.9382, 0.3460, 0], [0, 0, 1], [0.3460, -0.9382, 0]], "left_wrist": [[1, 0, 0], [0, -0.1687, -0.9857], [0, 0.9857, -0.1687]],
        "right_wrist": [[1, 0, 0], [0, 0.1687, 0.9857], [0, -0.9857, 0.1687]], "left_knee": [[0, 0, 1], [-0.9966, 0.0823, 0], [-0.0823, -0.9966, 0]],
        "right_ankle": [[0, 0, 1], [0.3572, 0.9340, 0], [-0.9340, 0.3572, 0]], "left_shoulder": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    }  # fmt: skip
    ours = _soma_t_pose()
    for name, turn in published.items():
        assert torch.allclose(ours[SMPLX_JOINT_NAMES.index(name)], torch.tensor(turn, dtype=torch.float32), atol=3e-4), name


@pytest.mark.parametrize("lying", [True, False])
def test_soma_round_trip(tmp_path, body, lying):
    pose = some_pose(hands=False)
    pose.axis_angles[:, [10, 11, 20, 21]] = 0.1
    clip = load_motion(to_soma(tmp_path / "clip.bvh", pose, body, lying=lying))
    assert clip.fps == pytest.approx(120, abs=0.01)
    assert (body.joints(clip.poses)[:, :22] - body.joints(pose)[:, :22]).norm(dim=-1).max() < 1e-4
    assert (axis_angle_to_matrix(clip.poses.axis_angles[:, :22]) - axis_angle_to_matrix(pose.axis_angles[:, :22])).abs().max() < 1e-5


def kimodo_fields(pose: Pose, body, joints: int):
    "World rotations and places as Kimodo writes them; what SMPL-X has no joint for stays at rest."
    from drpose.people.motion import _KIMODO_JOINTS

    world = np.zeros((len(pose), 22, 3, 3))
    local = Rotation.from_rotvec(pose.axis_angles[:, :22].reshape(-1, 3).numpy()).as_matrix().reshape(-1, 22, 3, 3)
    for joint in range(22):
        world[:, joint] = (world[:, SMPLX_PARENTS[joint]] if joint else np.eye(3)) @ local[:, joint]
    turns, places = np.tile(np.eye(3), (len(pose), joints, 1, 1)), np.zeros((len(pose), joints, 3))
    turns[:, _KIMODO_JOINTS[joints]], places[:, _KIMODO_JOINTS[joints]] = world, body.joints(pose)[:, :22].numpy()
    return {"global_rot_mats": turns.astype(np.float32), "posed_joints": places.astype(np.float32), "foot_contacts": np.zeros((len(pose), 4), bool)}


@pytest.mark.parametrize("joints", [22, 30, 77])
def test_kimodo_round_trip(tmp_path, body, joints):
    pose = some_pose(hands=False)
    clip = load_motion(write_fields(tmp_path / "motion.npz", **kimodo_fields(pose, body, joints)))
    assert clip.fps == 30 and (body.joints(clip.poses)[:, :22] - body.joints(pose)[:, :22]).norm(dim=-1).max() < 1e-4


def annotations(pose: Pose, names=("root_orient", "pose_body"), shuffled: bool = True) -> dict:
    rows = [{"image_id": 100 + t, "smplx_params": {names[0]: pose.axis_angles[t, 0].tolist(), names[1]: pose.axis_angles[t, 1:22].flatten().tolist(),
             "lhand_pose": pose.axis_angles[t, 25:40].flatten().tolist(), "rhand_pose": pose.axis_angles[t, 40:].flatten().tolist(),
             "trans": pose.transl[t].tolist(), "shape": pose.betas[t].tolist()}} for t in range(len(pose))]  # fmt: skip
    return {"images": [], "annotations": rows[::-1] if shuffled else rows}


def test_motion_x_annotations_in_the_world_and_in_the_camera(tmp_path, body):
    pose, pelvis = some_pose(), body.rest_joints(torch.zeros(1, 10))[:, 0]
    (tmp_path / "world.json").write_text(json.dumps(annotations(pose)))
    seen = pose.rotated(torch.diag(torch.tensor([1.0, -1, -1])), pelvis)
    (tmp_path / "camera.json").write_text(json.dumps(annotations(seen, ("root_pose", "body_pose"))))
    for name in ("world.json", "camera.json"):
        clip = load_motion(tmp_path / name)
        assert clip.fps == 30 and torch.allclose(body.joints(clip.poses), body.joints(pose), atol=2e-4), name
    two = annotations(pose, shuffled=False)
    two["annotations"] += annotations(pose.rotated(torch.eye(3)).mirrored())["annotations"]
    (tmp_path / "two.json").write_text(json.dumps(two))
    assert torch.allclose(load_motion(tmp_path / "two.json", person=1).poses.axis_angles, pose.mirrored().axis_angles, atol=1e-5)
    with pytest.raises(ValueError, match="'annotations' holds 2 people, needed one of them, found person 2"):
        load_motion(tmp_path / "two.json", person=2)


def test_one_frame_of_a_scan(tmp_path, body):
    "CustomHumans' JSON and CAPE's npz: a clip of one frame."
    pose = some_pose(1, hands=False)
    fit = {"global_orient": pose.axis_angles[0, 0].tolist(), "body_pose": pose.axis_angles[0, 1:22].flatten().tolist(), "transl": pose.transl[0].tolist(), "fps": 30}
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    write_fields(tmp_path / "cape.npz", pose=np.pad(pose.axis_angles[0, :22].flatten().numpy(), (0, 6)), transl=pose.transl[0].numpy(), v_cano=np.zeros((6890, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("fit.json", "cape.npz"):
            clip = load_motion(tmp_path / name)
            assert len(clip) == 1 and torch.allclose(body.joints(clip.poses), body.joints(pose), atol=1e-4), name


@pytest.mark.parametrize(("change", "expected"), [
    (lambda f: f | {"posed_joints": f["posed_joints"][:, :5]}, "'posed_joints' (5, 5, 3), needed (frames, joints, 3, 3)"),
    (lambda f: f | {"global_rot_mats": 2 * f["global_rot_mats"]}, "matrices that are no rotations"),
    (lambda f: f | {"posed_joints": f["posed_joints"][..., [1, 0, 2]]}, "needed neck above the hips"),
    (lambda f: f | {"posed_joints": f["posed_joints"] * np.nan}, "'posed_joints' holds NaN or infinity in 5 of 5"),
    (lambda f: {name: np.repeat(value[:, :1], 34, 1) if value.ndim > 2 else value for name, value in f.items()}, "22, 30 or 77 joints"),
])  # fmt: skip
def test_broken_kimodo_file(tmp_path, body, change, expected):
    path = write_fields(tmp_path / "motion.npz", **change(kimodo_fields(some_pose(hands=False), body, 77)))
    with pytest.raises(ValueError) as caught:
        load_motion(path)
    assert str(path) in str(caught.value) and expected in str(caught.value), caught.value


@pytest.mark.parametrize(("content", "expected"), [
    ({"annotations": [{"bbox": [0, 0, 1, 1]}]}, "entries without 'smplx_params'"),
    ({"annotations": []}, "entries without 'smplx_params'"),
    ({"global_orient": [0, 0, 0], "body_pose": [0.0] * 60}, "'body_pose' has shape (1, 60)"),
    ({"global_orient": [[0, 0, 0], [0, 0]], "body_pose": [[0.0] * 63] * 2}, "inhomogeneous"),
    ({"global_orient": "x", "body_pose": [0.0] * 63}, "'global_orient' is a str"),
])  # fmt: skip
def test_broken_json_of_arrays(tmp_path, content, expected):
    (tmp_path / "clip.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        load_motion(tmp_path / "clip.json")
    assert str(tmp_path / "clip.json") in str(caught.value) and expected in str(caught.value), caught.value


WRITERS = {"AMASS": write_amass, "Motion-X": lambda path, pose, body: write_motion_x(path, pose), "AIST++": lambda path, pose, body: write_aist(path, pose),
           "SOMA": to_soma, "Kimodo": lambda path, pose, body: write_fields(path, **kimodo_fields(pose, body, 22))}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_round_trips_in_radians(tmp_path, body, name):
    "Each joint's rotation comes back within 1e-5 rad, the angle of the difference."
    pose = some_pose(40, hands=False)
    pose.axis_angles[:, 22:] = 0
    back = load_motion(WRITERS[name](tmp_path / "clip.x", pose, body)).poses
    turn = (Rotation.from_rotvec(pose.axis_angles[:, :20].double().reshape(-1, 3).numpy()).inv() * Rotation.from_rotvec(back.axis_angles[:, :20].double().reshape(-1, 3).numpy())).magnitude()
    assert turn.max() < 1e-5, f"{turn.max():.2e} rad"
