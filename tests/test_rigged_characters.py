"""Rigged characters and motion as a folder of scans (drpose.evaluation.rigged_characters): skins by name, in any unit and any standing pose, posed as the motion says; the layout that is written; doors."""

import json
import struct

import numpy as np
import pytest
import torch
from test_motion import write_bvh

from drpose.evaluation.mesh_benchmarks import load_mesh_benchmark
from drpose.evaluation.rigged_characters import pose_characters, posed_character, read_character
from drpose.people.bodies import Pose, axis_angle_to_matrix, load_body
from drpose.people.clips import embedded_clips
from drpose.people.motion import BVH_SKELETONS
from drpose.pictures.mesh_files import Scan, read_scan
from drpose.pictures.mesh_writing import Skin, write_scan


@pytest.fixture(scope="module")
def body():
    return load_body()


def write_character(path, body, pose=None, unit=1.0, names=None, edit=lambda header: None):
    "The body with a skin, bound in a pose, in another unit, its joints called `names`, and `edit` at work on the file's header."
    weights, joints = body.model.lbs_weights.topk(4, 1)
    pose = Pose.rest() if pose is None else pose
    shown = body(pose)
    skin = Skin(joints, weights / weights.sum(1, keepdim=True), unit * shown.joints[0, :55], Pose.rest())
    colors = torch.rand(shown.vertices[0].shape, generator=torch.Generator().manual_seed(0))
    write_scan(path, Scan(unit * shown.vertices[0], body.faces, colors), skin)
    content = path.read_bytes()
    (size,) = struct.unpack("<I", content[12:16])
    header, rest = json.loads(content[20 : 20 + size]), content[20 + size :]
    for node in header["nodes"]:
        node["name"] = (names or {}).get(node["name"], node["name"])
    edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest)) + struct.pack("<I4s", len(text), b"JSON") + text + rest)
    return path


def arms_down(angle=0.7):
    pose = Pose.rest()
    pose.axis_angles[0, 16, 2], pose.axis_angles[0, 17, 2] = -angle, angle
    return pose


def mixamo(prefix="mixamorig:"):
    return {ours: prefix + theirs for ours, theirs in BVH_SKELETONS["Mixamo"].items()}


def some_poses():
    clips = embedded_clips()
    return Pose.cat(clips[name].poses[frame : frame + 1] for name, frame in (("high_kick", 18), ("star_jump", 12), ("cartwheel", 20)))


def about_pelvis(body, vertices):
    return vertices - vertices[:, body.part_labels == 0].mean(1, keepdim=True)


def facing(body, poses):
    "What BodyModel says, turned about the vertical until the pelvis faces +z."
    toward = axis_angle_to_matrix(poses.axis_angles[:, 0])[:, :, 2]
    angle = torch.zeros(len(poses), 3)
    angle[:, 1] = -torch.atan2(toward[:, 0], toward[:, 2])
    return body(poses).vertices @ axis_angle_to_matrix(angle).mT


def test_a_character_in_t_pose_is_posed_as_the_body(body, tmp_path):
    character = read_character(write_character(tmp_path / "ours.glb", body))
    vertices = posed_character(character, some_poses())
    apart = (about_pelvis(body, vertices) - about_pelvis(body, facing(body, some_poses()))).norm(dim=-1)
    assert apart.mean() < 0.001 and character.name == "ours"
    assert torch.allclose(character.scan.colors, read_scan(tmp_path / "ours.glb").colors)


@pytest.mark.parametrize("unit", [1.0, 100.0, 1000.0])
def test_names_units_and_standing_poses_do_not_matter(unit, body, tmp_path):
    character = read_character(write_character(tmp_path / "theirs.glb", body, arms_down(), unit, mixamo()))
    vertices = posed_character(character, some_poses())
    apart = (about_pelvis(body, vertices) - about_pelvis(body, facing(body, some_poses()))).norm(dim=-1)
    assert apart.mean() < 0.01, "fingers are joints that have no counterpart here; they move with the hand"
    assert np.ptp(character.scan.vertices[:, 1].numpy()) == pytest.approx(np.ptp(body.vertices_rest[:, 1].numpy()), abs=0.02)


def test_scans_are_written_where_the_benchmark_looks(body, tmp_path):
    for folder in ("characters", "motion"):
        (tmp_path / folder).mkdir()
    write_character(tmp_path / "characters" / "anna.glb", body, arms_down(), 100.0, mixamo())
    clip = embedded_clips()["star_jump"].poses[:13]
    write_bvh(tmp_path / "motion" / "jump.bvh", clip, body, 0.01, skeleton="Mixamo")
    written = pose_characters(tmp_path / "characters", tmp_path / "motion", tmp_path / "posed", every=6)
    subjects = load_mesh_benchmark("custom-humans", tmp_path / "posed")
    assert [subject.name for subject in subjects] == ["anna_jump_00000", "anna_jump_00006", "anna_jump_00012"] and [subject.mesh for subject in subjects] == written
    true = facing(body, clip[[12]])
    found = torch.from_numpy(np.asarray(subjects[2].surface().vertices)).float()[None]
    assert (about_pelvis(body, found) - about_pelvis(body, true)).norm(dim=-1).mean() < 0.015
    assert read_scan(written[0]).colors.std() > 0.1, "still in colour"


@pytest.mark.parametrize(
    "changes, words",
    [({"edit": lambda header: header.pop("skins")}, "holds no skin"), ({"names": {"left_knee": "Knie"}}, "its skin lacks the joints"), ({"unit": 7.0}, "units large, needed a person in metres"),
     ({"edit": lambda header: header["accessors"][0].update(count=10**7)}, "beyond the file's end"), ({"edit": lambda header: header["skins"][0].update(joints=[999])}, "theirs.glb")],
)  # fmt: skip
def test_what_is_no_character_is_refused_in_one_sentence(changes, words, body, tmp_path):
    path = write_character(tmp_path / "theirs.glb", body, **changes)
    with pytest.raises(ValueError, match=words) as told:
        read_character(path)
    assert "theirs.glb" in str(told.value) and "\n" not in str(told.value)


def test_lying_characters_and_empty_folders_are_refused(body, tmp_path):
    lying = Pose.rest().rotated(torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]))
    with pytest.raises(ValueError, match="does not stand upright"):
        read_character(write_character(tmp_path / "lying.glb", body, lying))
    (tmp_path / "junk.glb").write_bytes(b"glTF" + bytes(30))
    with pytest.raises(ValueError, match="junk.glb"):
        read_character(tmp_path / "junk.glb")
    with pytest.raises(FileNotFoundError, match="missing.glb"):
        read_character(tmp_path / "missing.glb")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no .glb"):
        pose_characters(tmp_path / "empty", tmp_path, tmp_path / "posed")
    (tmp_path / "one").mkdir()
    write_character(tmp_path / "one" / "a.glb", body)
    with pytest.raises(FileNotFoundError, match="holds no motion"):
        pose_characters(tmp_path / "one", tmp_path / "empty", tmp_path / "posed")
    assert not (tmp_path / "posed").exists()
