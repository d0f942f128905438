"""Written meshes (drpose.pictures.mesh_writing): what was written is read back, other programs open it, and what cannot be written is refused before anything is."""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from drpose.people.bodies import SMPLX_JOINT_NAMES, SMPLX_PARENTS, Pose, forward_kinematics, load_body
from drpose.pictures.mesh_files import Scan, linear_light, read_scan, smooth_normals, srgb_levels
from drpose.pictures.mesh_writing import Skin, write_scan

BALL = trimesh.creation.icosphere(subdivisions=2, radius=0.3)


def ball(textured: bool) -> Scan:
    points, faces = torch.tensor(BALL.vertices).float(), torch.tensor(BALL.faces).long()
    if not textured:
        return Scan(points, faces, (points / 0.6 + 0.5).clamp(0, 1))
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    uv = points[:, :2] / 0.62 + 0.5
    return Scan(points, faces, torch.ones_like(points), uv, (picture,), torch.zeros(len(faces), dtype=torch.int64))


def skin(count: int, seed: int = 0) -> Skin:
    draw = torch.Generator().manual_seed(seed)
    pose = Pose(0.4 * torch.randn(1, 55, 3, generator=draw), torch.zeros(1, 10), torch.randn(1, 3, generator=draw))
    weights = torch.rand(count, 4, generator=draw) * torch.tensor([1.0, 0.5, 0.2, 0.0])
    return Skin(torch.rand(count, 55, generator=draw).topk(4, 1).indices, weights / weights.sum(1, keepdim=True), load_body().rest_joints(torch.zeros(1, 10))[0], pose)


def content(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def array(header: dict, binary: bytes, number: int) -> np.ndarray:
    accessor = header["accessors"][number]
    view, width = header["bufferViews"][accessor["bufferView"]], {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
    kind = {5121: np.uint8, 5125: np.uint32, 5126: np.float32}[accessor["componentType"]]
    return np.frombuffer(binary, kind, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)


@pytest.mark.parametrize("name, textured", [("a.glb", True), ("a.glb", False), ("a b.obj", True), ("a.obj", False), ("a.ply", False)])
def test_what_is_written_is_read_back(name, textured, tmp_path):
    scan = ball(textured)
    found = read_scan(write_scan(tmp_path / name, scan))
    assert torch.equal(found.faces, scan.faces) and torch.allclose(found.vertices, scan.vertices, atol=1e-6)
    assert len(found.textures) == len(scan.textures) and (found.colors - scan.colors).abs().max() < 0.003
    if textured:
        assert torch.allclose(found.textures[0], scan.textures[0], atol=1e-6) and torch.allclose(found.uv, scan.uv, atol=1e-6)


def test_a_glb_has_normals_and_a_texture_and_no_colours_beside_it(tmp_path):
    header, binary = content(write_scan(tmp_path / "a.glb", ball(True)))
    attributes = header["meshes"][0]["primitives"][0]["attributes"]
    assert sorted(attributes) == ["NORMAL", "POSITION", "TEXCOORD_0"]
    material = header["materials"][0]["pbrMetallicRoughness"]
    assert material["baseColorFactor"] == [1, 1, 1, 1] and material["baseColorTexture"] == {"index": 0} and header["images"][0]["mimeType"] == "image/png"
    normals = array(header, binary, attributes["NORMAL"])
    assert np.abs((normals * BALL.vertices).sum(1) / 0.3 - 1).max() < 0.01, "outward"
    (mesh,) = trimesh.load_scene(tmp_path / "a.glb").geometry.values()
    assert mesh.is_watertight and mesh.visual.material.baseColorTexture.size == (32, 32) and "color" not in mesh.visual.vertex_attributes


def test_colours_at_vertices_are_linear_as_gltf_wants_them(tmp_path):
    scan = replace(ball(False), colors=torch.full((len(BALL.vertices), 3), 0.5))
    header, binary = content(write_scan(tmp_path / "a.glb", scan))
    found = array(header, binary, header["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"])
    assert np.abs(found - 0.2140).max() < 1e-3


def test_levels_and_light_are_inverse():
    levels = torch.linspace(0, 1, 256)
    assert torch.allclose(srgb_levels(linear_light(levels)), levels, atol=1e-6)
    assert linear_light(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 0.21404, 1], abs=1e-4)


def test_a_skin_moves_the_mesh_as_gltf_says(tmp_path):
    "The nodes, multiplied out as a viewer does it, are the body model's joints; the inverse bind matrices shift to them."
    scan = ball(False)
    given = skin(len(scan.vertices))
    header, binary = content(write_scan(tmp_path / "a.glb", scan, given))
    node = next(node for node in header["nodes"] if "mesh" in node)
    assert [header["nodes"][joint]["name"] for joint in header["skins"][0]["joints"]] == list(SMPLX_JOINT_NAMES) and node["skin"] == 0
    world = [np.eye(4)] * 55
    parents = {child: parent for parent, entry in enumerate(header["nodes"]) for child in entry.get("children", ())}
    assert [parents.get(joint, -1) for joint in range(55)] == list(SMPLX_PARENTS)
    for joint in range(55):
        x, y, z, w = header["nodes"][joint]["rotation"]
        local = np.eye(4)
        local[:3, :3] = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
        local[:3, 3] = header["nodes"][joint]["translation"]
        world[joint] = local if joint == 0 else world[parents[joint]] @ local
    turns, places = forward_kinematics(given.pose.axis_angles, given.rest_joints[None])
    assert np.abs(np.stack(world)[:, :3, :3] - turns[0].numpy()).max() < 1e-5
    assert np.abs(np.stack(world)[:, :3, 3] - (places + given.pose.transl[:, None])[0].numpy()).max() < 1e-5
    binds = array(header, binary, header["skins"][0]["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    assert np.abs(binds[:, :3, 3] + given.rest_joints.numpy()).max() < 1e-6 and np.abs(binds[:, :3, :3] - np.eye(3)).max() == 0
    attributes = header["meshes"][0]["primitives"][0]["attributes"]
    joints, weights = (array(header, binary, attributes[name]) for name in ("JOINTS_0", "WEIGHTS_0"))
    assert np.abs(weights.sum(1) - 1).max() < 1e-6 and (joints[weights == 0] == 0).all() and joints.max() < 55
    assert (joints[:, :3] == given.joints[:, :3].numpy()).all()


@functools.cache
def validator() -> str | None:
    "Why Khronos' validator cannot be asked, None if it can."
    if shutil.which("node") is None:
        return "there is no node"
    found = subprocess.run(["node", "-e", "require.resolve('gltf-validator')"], capture_output=True, cwd=os.getcwd())
    return None if found.returncode == 0 else "node finds no gltf-validator (npm install gltf-validator, and NODE_PATH)"


def said_by_khronos(path: Path) -> dict:
    program = "const fs=require('fs');require('gltf-validator').validateBytes(new Uint8Array(fs.readFileSync(process.argv[1]))).then(r=>console.log(JSON.stringify(r.issues)))"
    done = subprocess.run(["node", "-e", program, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("textured", [True, False])
@pytest.mark.parametrize("skinned", [True, False])
def test_khronos_validator_has_nothing_to_say(textured, skinned, tmp_path):
    if validator() is not None:
        pytest.skip(validator())
    scan = ball(textured)
    issues = said_by_khronos(write_scan(tmp_path / "a.glb", scan, skin(len(scan.vertices)) if skinned else None))
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]


def test_a_vertex_without_faces_has_a_normal_too(tmp_path):
    scan = ball(False)
    lonely = Scan(torch.cat([scan.vertices, torch.zeros(1, 3)]), scan.faces, torch.cat([scan.colors, torch.zeros(1, 3)]))
    header, binary = content(write_scan(tmp_path / "a.glb", lonely))
    assert np.abs(np.linalg.norm(array(header, binary, header["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]), axis=1) - 1).max() < 1e-5


def test_copies_along_a_cut_share_a_normal():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
    normals = smooth_normals(points, torch.tensor([[0, 1, 2], [3, 5, 4]]))[0]
    assert torch.equal(normals[1], normals[3]) and torch.equal(normals[2], normals[4])


def _broken(scan: Scan) -> Scan:
    points = scan.vertices.clone()
    points[3, 1] = torch.nan
    return replace(scan, vertices=points)


@pytest.mark.parametrize("name, scan, with_skin, said", [
    ("a.stl", ball(False), False, "is no mesh by its name"), ("a.obj", ball(False), True, "hold no skin"), ("a.ply", ball(True), False, "hold no picture"),
    ("a.glb", replace(ball(False), faces=torch.zeros(0, 3, dtype=torch.int64)), False, "no faces"), ("a.glb", _broken(ball(False)), False, "NaN"),
    ("a.glb", replace(ball(True), textures=ball(True).textures * 2), False, "2 textures"), ("a.glb", replace(ball(True), face_texture=torch.full((len(BALL.faces),), -1)), False, "faces without any"),
])  # fmt: skip
def test_what_cannot_be_written_is_one_sentence_and_no_file(name, scan, with_skin, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        write_scan(tmp_path / name, scan, skin(len(scan.vertices)) if with_skin else None)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_skin_of_another_mesh_is_refused(tmp_path):
    with pytest.raises(ValueError, match="four for each vertex"):
        write_scan(tmp_path / "a.glb", ball(False), skin(7))
