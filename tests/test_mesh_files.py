"""Meshes (drpose.pictures.mesh_files): colours are found wherever a file keeps them, and a file that is named and missing is an error, not a grey person."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from drpose.pictures.mesh_files import mesh_parts, read_scan, sampled_colors

BALL = trimesh.creation.icosphere(subdivisions=1)
COLOR = np.array([200, 30, 40])
POINTS = "".join("v %.5f %.5f %.5f\n" % tuple(p) for p in BALL.vertices)
PAINTED = "".join("v %.5f %.5f %.5f %.5f %.5f %.5f\n" % (*p, *(COLOR / 255)) for p in BALL.vertices)
PLACES = "".join("vt %.4f %.4f\n" % (p[0] / 2 + 0.5, p[1] / 2 + 0.5) for p in BALL.vertices)
PLAIN = "".join("f %d %d %d\n" % tuple(f + 1) for f in BALL.faces)
WITH_UV = "".join("f " + " ".join(f"{i}/{i}" for i in f + 1) + "\n" for f in BALL.faces)


def corner_colors(path: Path) -> torch.Tensor:
    "(F, 3): the colour of each face at its first corner."
    scan = read_scan(path)
    first = scan.faces[:, 0]
    return sampled_colors(scan, torch.arange(len(first)), scan.colors[first], None if scan.uv is None else scan.uv[first])


def glb(path: Path, color: bool = True, material: dict | None = None) -> Path:
    "One primitive, with colours at the vertices and a material without a picture, as wanted."
    v, c, f = BALL.vertices.astype("<f4").tobytes(), np.tile([*COLOR, 255], (len(BALL.vertices), 1)).astype("u1").tobytes(), BALL.faces.astype("<u4").tobytes()
    views = [{"buffer": 0, "byteOffset": 0, "byteLength": len(v)}, {"buffer": 0, "byteOffset": len(v), "byteLength": len(c)}, {"buffer": 0, "byteOffset": len(v) + len(c), "byteLength": len(f)}]
    count = len(BALL.vertices)
    accessors = [{"bufferView": 0, "componentType": 5126, "count": count, "type": "VEC3"}, {"bufferView": 1, "componentType": 5121, "normalized": True, "count": count, "type": "VEC4"}, {"bufferView": 2, "componentType": 5125, "count": BALL.faces.size, "type": "SCALAR"}]
    primitive = {"attributes": {"POSITION": 0} | ({"COLOR_0": 1} if color else {}), "indices": 2} | ({} if material is None else {"material": 0})
    tree = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}], "accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": len(v + c + f)}]}
    text = json.dumps(tree | ({} if material is None else {"materials": [material]})).encode()
    text += b" " * (-len(text) % 4)
    body = v + c + f
    body += b"\0" * (-len(body) % 4)
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(body)) + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body)
    return path


def obj(folder: Path, name: str, material: str | None, body: str) -> Path:
    if material is not None:
        (folder / f"{name}.mtl").write_text(material)
    (folder / f"{name}.obj").write_text(body)
    return folder / f"{name}.obj"


GREY = "newmtl a\nKd 0.4 0.4 0.4\n"


@pytest.mark.parametrize("name", ["glb", "glb beside a material", "obj", "obj beside a material", "obj beside texture places", "obj beside both", "ply"])
def test_colours_of_vertices_are_kept(name, tmp_path):
    makers = {
        "glb": lambda: glb(tmp_path / "a.glb"),
        "glb beside a material": lambda: glb(tmp_path / "a.glb", material={"pbrMetallicRoughness": {"metallicFactor": 0.0, "baseColorFactor": [0.2, 0.2, 0.2, 1.0]}}),
        "obj": lambda: obj(tmp_path, "a", None, PAINTED + PLAIN),
        "obj beside a material": lambda: obj(tmp_path, "a", GREY, "mtllib a.mtl\n" + PAINTED + "usemtl a\n" + PLAIN),
        "obj beside texture places": lambda: obj(tmp_path, "a", None, PAINTED + PLACES + WITH_UV),
        "obj beside both": lambda: obj(tmp_path, "a", GREY, "mtllib a.mtl\n" + PAINTED + PLACES + "usemtl a\n" + WITH_UV),
        "ply": lambda: trimesh.Trimesh(BALL.vertices, BALL.faces, vertex_colors=np.tile([*COLOR, 255], (len(BALL.vertices), 1)), process=False).export(tmp_path / "a.ply") and tmp_path / "a.ply",
    }
    assert (corner_colors(makers[name]()) * 255 - torch.tensor(COLOR)).abs().max() < 0.6


def test_a_material_of_one_colour(tmp_path):
    found = corner_colors(glb(tmp_path / "a.glb", color=False, material={"pbrMetallicRoughness": {"baseColorFactor": [0.8, 0.2, 0.4, 1.0]}}))
    assert torch.allclose(found, torch.tensor([0.8, 0.2, 0.4]).expand_as(found), atol=0.003)
    found = corner_colors(obj(tmp_path, "b", "newmtl a\nKd 0.8 0.2 0.4\n", "mtllib b.mtl\n" + POINTS + "usemtl a\n" + PLAIN))
    assert torch.allclose(found, torch.tensor([0.8, 0.2, 0.4]).expand_as(found), atol=0.003)
    assert torch.allclose(corner_colors(obj(tmp_path, "c", None, POINTS + PLAIN)), torch.tensor(0.8)), "grey where no colour is told"


def test_several_materials(tmp_path):
    "Each face has its own: a red picture, a blue picture, a flat green."
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGB", (4, 4), (0, 0, 255)).save(tmp_path / "blue.jpg", quality=100)
    material = "newmtl r\nKd 1 1 1\nmap_Kd red.png\nnewmtl b\nmap_Kd blue.jpg\nnewmtl g\nKd 0 1 0\n"
    thirds = np.array_split(WITH_UV.splitlines(keepends=True), 3)
    path = obj(tmp_path, "many", material, "mtllib many.mtl\n" + POINTS + PLACES + "".join(f"usemtl {name}\n" + "".join(part) for name, part in zip("rbg", thirds)))
    found, scan = corner_colors(path), read_scan(path)
    counts = {color: int((found - torch.tensor(color)).abs().amax(1).lt(0.02).sum()) for color in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0))}
    assert list(counts.values()) == [len(part) for part in thirds] and len(scan.textures) == 2 and len(scan.faces) == len(BALL.faces)
    assert {part.name for part in mesh_parts(path)} == {"many.obj", "many.mtl", "red.png", "blue.jpg"}


@pytest.mark.parametrize("line", ["map_Kd red.png", "map_Kd tex\\red.png", "map_Kd -s 1 1 1 red.png", "map_Kd -o 0 0 -clamp on tex/red.png", "map_kd my red skin.png", "map_Kd C:\\scans\\export\\red.png", "  map_Kd   red.png  "])
def test_pictures_are_found_as_they_are_named(line, tmp_path):
    (tmp_path / "tex").mkdir()
    for name in ("red.png", "tex/red.png", "my red skin.png"):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / name)
    path = obj(tmp_path, "a", f"newmtl a\n{line}\n", "mtllib a.mtl\n" + POINTS + PLACES + "usemtl a\n" + WITH_UV)
    assert torch.allclose(corner_colors(path), torch.tensor([1.0, 0.0, 0.0]), atol=0.01)


def test_a_missing_file_names_both(tmp_path):
    body = POINTS + PLACES + "usemtl a\n" + WITH_UV
    ply = trimesh.Trimesh(BALL.vertices, BALL.faces, process=False).export(file_type="ply", encoding="ascii")
    (tmp_path / "c.ply").write_bytes((ply if isinstance(ply, bytes) else ply.encode()).replace(b"\nelement vertex", b"\ncomment TextureFile gone.png\nelement vertex", 1))
    (tmp_path / "d.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": "gone.bin", "byteLength": 8}]}))
    (tmp_path / "e.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "images": [{"uri": "gone%20too.png"}]}))
    cases = {
        obj(tmp_path, "a", "newmtl a\nmap_Kd gone.png\n", "mtllib a.mtl\n" + body): "gone.png", obj(tmp_path, "b", None, "mtllib gone.mtl\n" + body): "gone.mtl",
        tmp_path / "c.ply": "gone.png", tmp_path / "d.gltf": "gone.bin", tmp_path / "e.gltf": "gone%20too.png",
    }  # fmt: skip
    for path, gone in cases.items():
        with pytest.raises(FileNotFoundError) as error:
            read_scan(path)
        assert str(path) in str(error.value) and gone in str(error.value) and "\n" not in str(error.value)


def test_a_gltf_with_a_picture_beside_it(tmp_path):
    "Buffers and pictures in files of their own, a space in a name."
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "my skin.png")
    tree = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0, "scale": [-1, 1, 1]}], "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}], "images": [{"uri": "my%20skin.png"}], "buffers": [{"uri": "points.bin", "byteLength": 36 + 24}], "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 24}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}, {"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"}], "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
    }  # fmt: skip
    corners = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    (tmp_path / "points.bin").write_bytes(corners.tobytes() + np.float32([[0, 0], [1, 0], [0, 1]]).tobytes())
    (tmp_path / "one.gltf").write_text(json.dumps(tree))
    assert torch.allclose(corner_colors(tmp_path / "one.gltf"), torch.tensor([0.0, 1.0, 0.0]), atol=0.01)
    scan = read_scan(tmp_path / "one.gltf")
    a, b, c = scan.vertices[scan.faces[0]]
    assert torch.linalg.cross(b - a, c - a)[2] > 0 and scan.vertices[:, 0].min() == -1, "mirrored by its node, and still counter-clockwise seen from outside"


def test_what_a_mesh_may_not_do(tmp_path):
    "Another program, the network, memory that nobody has."
    (tmp_path / "evil.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    path = obj(tmp_path, "a", "newmtl a\nmap_Kd evil.png\n", "mtllib a.mtl\n" + POINTS + PLACES + "usemtl a\n" + WITH_UV)
    with pytest.raises(ValueError, match="evil.png: cannot be read as"):
        read_scan(path)
    tree = {"asset": {"version": "2.0"}, "accessors": [{"componentType": 5126, "count": 10**9, "type": "VEC3"}]}
    (tmp_path / "bomb.gltf").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="bomb.gltf: declares arrays of 12,000 MB"):
        read_scan(tmp_path / "bomb.gltf")
    (tmp_path / "far.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "images": [{"uri": "https://example.org/a.png"}]}))
    with pytest.raises(ValueError, match="far.gltf: names the picture 'https"):
        read_scan(tmp_path / "far.gltf")
    shutil.copy(path, tmp_path / "a.fbx")
    with pytest.raises(ValueError, match="a.fbx: is no mesh by its name, needed .obj, .ply"):
        read_scan(tmp_path / "a.fbx")
