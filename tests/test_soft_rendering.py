"""Soft pictures of a mesh: coverage as a fine picture has it, gradients at outlines, mirrored views, open and hidden meshes."""

import pytest
import torch
import torch.nn.functional as F
import trimesh

from drpose.mesh.soft_rendering import FALL, crossings, mesh_edges, outline_pieces, soft_views, visible
from drpose.people.bodies import load_body
from drpose.people.clips import embedded_clips
from drpose.pictures.cameras import SIX_VIEWS, ViewRig, frame_by_diagonal
from drpose.pictures.rendering import find_hits, rasterize

FRONT = ViewRig((0.0,), image_size=32)


@pytest.fixture(scope="module")
def kick():
    body = load_body()(embedded_clips()["high_kick"].poses[18:19])
    return frame_by_diagonal(body.vertices).apply(body.vertices).double(), body.faces


def square(left: float, right: float, depth: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    "Two triangles that face the front camera, from x = left to right and y = -0.2 to 0.2."
    points = torch.tensor([[left, -0.2, depth], [right, -0.2, depth], [right, 0.2, depth], [left, 0.2, depth]], dtype=torch.double)
    return points[None], torch.tensor([[0, 1, 2], [0, 2, 3]])


def test_edges_know_their_faces():
    points, faces = square(-0.2, 0.2)
    ends, sides = mesh_edges(faces)
    assert ends.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]
    assert sides.tolist() == [[0, -1], [0, 1], [1, -1], [0, -1], [1, -1]]


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_a_square_covers_its_area_wherever_it_lies(shift):
    "Edges parallel to the pixels: coverage is exact, between pixel centres too."
    pixel = 1 / 32
    points, faces = square(-0.2 + shift * pixel, 0.2 + shift * pixel)
    assert soft_views(points, faces, FRONT).masks.sum() * pixel**2 == pytest.approx(0.16, rel=0.03)
    column = soft_views(points, faces, FRONT).masks[0, 0, 16]
    assert column.sum() * pixel == pytest.approx(0.4, abs=1e-9) and column.min() >= 0 and column.max() <= 1


def test_moving_a_square_moves_its_mask():
    points, faces = square(-0.21, 0.19)
    points.requires_grad_()
    weight = torch.arange(32.0, dtype=torch.double)
    (slope,) = torch.autograd.grad((soft_views(points, faces, FRONT).masks[0, 0, 16] * weight).sum(), points)
    assert slope[..., 0].sum() == pytest.approx(0.4 * 32 * 32, rel=0.03)  # columns times 32 per unit: the integral moves with the square
    assert slope[..., 2].abs().max() == 0  # depth moves nothing


def test_masks_are_what_a_fine_picture_shows(kick):
    points, faces = kick
    fine = (rasterize(points, faces, SIX_VIEWS.resized(8 * 64)).pix_to_face >= 0).double()
    wanted = F.avg_pool2d(fine[0, :, None], 8)[:, 0]
    soft = soft_views(points, faces, SIX_VIEWS.resized(64)).masks[0]
    hard = (rasterize(points, faces, SIX_VIEWS.resized(64)).pix_to_face[0] >= 0).double()
    assert (soft - wanted).abs().mean() < 0.5 * (hard - wanted).abs().mean()
    assert soft.sum() == pytest.approx(wanted.sum().item(), rel=0.01)


def test_a_mirrored_view_is_the_mirror_image(kick):
    points, faces = kick
    plain, mirrored = (soft_views(points, faces, ViewRig((90.0,), image_size=48, mirrored=(flag,))) for flag in (False, True))
    assert torch.allclose(plain.masks.flip(-1), mirrored.masks, atol=1e-9)
    assert torch.allclose(plain.normals.flip(-1), mirrored.normals, atol=1e-9)


def test_normals_inside_have_the_slope_that_differences_have(kick):
    "Where no outline passes, the picture is smooth in the vertices: within 1 %."
    points, faces = kick
    rig, edges = ViewRig((0.0, 90.0), image_size=96), mesh_edges(faces)
    weight = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    inside = -F.max_pool2d(-soft_views(points, faces, rig, edges).masks, 5, 1, 2)[0, :, None] > 0.999
    motion = torch.stack([points[..., 1].square(), 0.3 * points[..., 0], points[..., 1] * points[..., 0]], -1)
    seen = lambda step: (soft_views(points + step * motion, faces, rig, edges).normals[0] * weight * inside).sum()  # noqa: E731
    step = torch.zeros((), dtype=torch.double, requires_grad=True)
    (analytic,) = torch.autograd.grad(seen(step), step)
    measured = (seen(1e-7) - seen(-1e-7)) / 2e-7
    assert inside.sum() > 100 and analytic.item() == pytest.approx(measured.item(), rel=0.01)


def test_outlines_give_the_slope_of_the_misfit(kick):
    points, faces = kick
    rig, edges, pixel = SIX_VIEWS.resized(96), mesh_edges(faces), 1 / 96
    mask = lambda shape: soft_views(shape, faces, rig, edges).masks  # noqa: E731
    motion = torch.tensor([1.0, 0.5, 0.3], dtype=torch.double).expand_as(points)
    target = mask(points + 3 * pixel * motion)
    step = torch.zeros((), dtype=torch.double, requires_grad=True)
    misfit = lambda size: (mask(points + size * motion) - target).square().sum()  # noqa: E731
    (analytic,) = torch.autograd.grad(misfit(step), step)
    measured = sum((misfit(h * pixel) - misfit(-h * pixel)) / (2 * h * pixel) for h in (0.5, 0.25)) / 2
    assert measured < 0 and analytic.item() == pytest.approx(measured.item(), rel=0.15)


def test_what_is_hidden_is_no_outline():
    "A small square behind a large one shows nothing; before it, its whole outline."
    (large, faces), (small, _) = square(-0.2, 0.2), square(-0.1, 0.1)
    for depth, crosses in ((-0.15, False), (0.15, True)):
        points = torch.cat([large, small * 0.5 + torch.tensor([0.0, 0.0, depth])], 1)
        both = torch.cat([faces, faces + 4])
        hits = find_hits(points, both, FRONT)
        found = visible(crossings(outline_pieces(points, both, FRONT, mesh_edges(both)), 32), hits, 32 * 32)
        near = (found.depth - depth).abs() < 1e-6
        assert bool(near.any()) == crosses, f"depth {depth}, surfaces may fall away by {FALL}"


def test_nothing_in_the_picture_is_an_empty_picture():
    points, faces = square(3.0, 3.4)
    seen = soft_views(points.requires_grad_(), faces, FRONT)
    assert seen.masks.abs().sum() == 0 and seen.normals.shape == (1, 1, 3, 32, 32)
    seen.masks.sum().backward()
    assert points.grad is None or points.grad.abs().max() == 0


def test_two_bodies_do_not_meet():
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.2)
    faces, one = torch.tensor(ball.faces).long(), torch.tensor(ball.vertices)[None]
    other = one * 0.7 + torch.tensor([0.1, 0.0, 0.0])
    together = soft_views(torch.cat([one, other]), faces, SIX_VIEWS.resized(32))
    for number, alone in enumerate((one, other)):
        assert torch.allclose(together.masks[number], soft_views(alone, faces, SIX_VIEWS.resized(32)).masks[0], atol=1e-12)


def test_faces_seen_from_their_edge_count_as_turned_away():
    "Some faces of this sphere are seen exactly from their edge. Where rounding errors turn them this way or that, the outline takes two of their edges in the place of one; it has 96 pieces from all four sides."
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.3)
    points, faces = torch.tensor(ball.vertices)[None], torch.tensor(ball.faces).long()
    outline = outline_pieces(points, faces, ViewRig((0.0, 90.0, 180.0, 270.0), image_size=64), mesh_edges(faces))
    assert outline.picture.bincount().tolist() == [96] * 4


def test_edges_are_found_again_when_faces_change():
    "The last answer is remembered for its face tensor alone: not for another one, nor for the same one changed in place."
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    pairs, sides = mesh_edges(faces)
    assert mesh_edges(faces)[0] is pairs and len(pairs) == 5 and (sides >= 0).all(1).sum() == 1
    faces[1, 2] = 4
    assert mesh_edges(faces)[0].max() == 4
    assert len(mesh_edges(faces[:1].clone())[0]) == 3
