"""Skins (drpose.mesh.skinning): the body's own surface moves as the body does, clothes follow the right limb, and nothing tears."""

from __future__ import annotations

import pytest
import torch
import trimesh

from drpose.mesh.skinning import INFLUENCES, carry_weights, fit_skin, joint_transforms, nearest_on_body, skinned, unposed, with_skin
from drpose.mesh.soft_rendering import mesh_edges
from drpose.people.bodies import SMPLX_JOINT_NAMES, Pose, load_body
from drpose.people.clips import embedded_clips
from drpose.pictures.mesh_files import Scan, read_scan
from drpose.pictures.mesh_writing import Skin, write_scan
from drpose.pictures.rendering import vertex_normals

BETAS = torch.linspace(-1.5, 1.5, 10)[None]


@pytest.fixture(scope="module")
def body_model():
    return load_body()


def frame(name: str, number: int) -> Pose:
    return embedded_clips()[name].poses[number : number + 1].with_betas(BETAS)


def others() -> Pose:
    return Pose.cat([frame("cartwheel", 20), frame("sit_cross_legged", 15), frame("dancer", 15)])


def dressed(body_model, pose: Pose) -> torch.Tensor:
    "The body's surface 15 mm outside of itself but for head, hands and feet, rough by 1 mm."
    vertices, part = body_model(pose).vertices[0], body_model.part_labels
    covered = ((part < 20) & (part != SMPLX_JOINT_NAMES.index("head"))).float()[:, None]
    rough = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0))
    return vertices + 0.015 * covered * vertex_normals(vertices[None], body_model.faces)[0] + 0.001 * rough


def test_joint_transforms_are_the_body_models(body_model):
    "With all of the body's weights, a millimetre anywhere would be seen; it is less than a hundredth."
    pose = others()
    rest = body_model(Pose.rest().with_betas(BETAS)).vertices[0]
    weights, joints = body_model.model.lbs_weights.topk(8, 1)
    skin = Skin(joints, weights, body_model.rest_joints(BETAS)[0], pose[:1])
    assert (skinned(rest, skin, pose) - body_model(pose).vertices).norm(dim=-1).max() < 1e-5
    assert joint_transforms(skin.rest_joints, Pose.rest()).sub(torch.eye(3, 4)).abs().max() < 1e-6


def test_the_bodys_own_surface_moves_as_the_body(body_model):
    "Carried over from one pose and brought into others, against linear blend skinning with the body's own weights."
    captured, vertices = frame("high_kick", 18), body_model(frame("high_kick", 18)).vertices[0]
    carried = carry_weights(vertices, body_model.faces, body_model, captured)
    assert carried.sum(1).sub(1).abs().max() < 1e-5 and carried.min() >= 0
    assert ((carried - body_model.model.lbs_weights).abs().sum(1) < 0.1).float().mean() > 0.97
    skin = fit_skin(vertices, body_model.faces, body_model, captured)
    moved = skinned(unposed(vertices, skin), skin, Pose.cat([captured, others()]))
    assert (moved[0] - vertices).norm(dim=-1).max() < 1e-4, "its own pose"
    away = 1000 * (moved[1:] - body_model(others()).vertices).norm(dim=-1)
    assert away.mean() < 0.3 and away.quantile(0.95) < 1
    weights, joints = body_model.model.lbs_weights.topk(6, 1)
    whole = Skin(joints, weights / weights.sum(1, keepdim=True), skin.rest_joints, captured)
    assert (skinned(unposed(vertices, whole), whole, others()) - body_model(others()).vertices).norm(dim=-1).max() < 1e-3


@pytest.mark.parametrize("name, number", [("arms_crossed", 15), ("hands_on_hips", 10), ("high_kick", 18)])
def test_clothes_follow_the_limb_they_are_on(name, number, body_model):
    pose = frame(name, number)
    clothes, ends = dressed(body_model, pose), mesh_edges(body_model.faces)[0]
    weights = carry_weights(clothes, body_model.faces, body_model, pose)
    part = body_model.part_labels
    large = (part < 20) & (part != SMPLX_JOINT_NAMES.index("head"))
    assert ((weights - body_model.model.lbs_weights).abs().sum(1) > 1)[large].float().mean() < 0.005
    rest = unposed(clothes, fit_skin(clothes, body_model.faces, body_model, pose))
    assert (rest[ends[:, 0]] - rest[ends[:, 1]]).norm(dim=1).max() < 0.1, "nothing tears"


def test_the_nearest_point_looks_the_same_way():
    "Two plates 2 cm apart, facing each other; a point nearer to the wrong one, looking as the right one does."
    plate = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    points, faces = torch.cat([plate, plate + torch.tensor([0.0, 0.0, 0.02])]), torch.tensor([[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]])
    grid = trimesh.Trimesh(points.numpy(), faces.numpy(), process=False).subdivide().subdivide().subdivide().subdivide()
    points, faces = torch.tensor(grid.vertices).float(), torch.tensor(grid.faces).long()
    face, weights, distance = nearest_on_body(torch.tensor([[0.51, 0.52, 0.012]]), torch.tensor([[0.0, 0.0, 1.0]]), points, faces)
    found = (points[faces[face]] * weights[..., None]).sum(1)
    assert found[0].tolist() == pytest.approx([0.51, 0.52, 0.0], abs=1e-5) and distance.item() == pytest.approx(0.012, abs=1e-5)


def test_copies_along_a_cut_move_together(body_model):
    pose, faces = frame("high_kick", 18), body_model.faces
    vertices = body_model(pose).vertices[0]
    cut = Scan(vertices[faces].reshape(-1, 3), torch.arange(3 * len(faces)).view(-1, 3), torch.ones(3 * len(faces), 3))
    rest, skin = with_skin(cut, body_model, pose)
    assert skin.joints.shape == (3 * len(faces), INFLUENCES)
    whole = unposed(vertices, fit_skin(vertices, faces, body_model, pose))
    assert (rest.vertices - whole[faces].reshape(-1, 3)).abs().max() < 1e-4


def test_a_skinned_file_holds_the_t_pose_and_the_pose_of_the_photo(body_model, tmp_path):
    pose, faces = frame("high_kick", 18), body_model.faces
    scan = Scan(body_model(pose).vertices[0], faces, torch.full((len(body_model.vertices_rest), 3), 0.5))
    rest, skin = with_skin(scan, body_model, pose)
    found = read_scan(write_scan(tmp_path / "person.glb", rest, skin))
    wanted = body_model(Pose.rest().with_betas(BETAS)).vertices[0]
    assert (found.vertices - wanted).norm(dim=1).median() < 1e-3 and 1.4 < found.vertices[:, 1].max() - found.vertices[:, 1].min() < 2.1
    assert (skinned(rest.vertices, skin, pose)[0] - scan.vertices).abs().max() < 1e-4


def test_bad_surfaces_are_one_sentence(body_model):
    pose = Pose.rest()
    vertices = body_model(pose).vertices[0]
    with pytest.raises(ValueError, match="faces is empty"):
        fit_skin(vertices, body_model.faces[:0], body_model, pose)
    with pytest.raises(ValueError, match="NaN"):
        fit_skin(torch.where(torch.arange(len(vertices))[:, None] == 4, torch.nan, vertices), body_model.faces, body_model, pose)
    with pytest.raises(ValueError, match="2 people"):
        fit_skin(vertices, body_model.faces, body_model, Pose.rest(2))
