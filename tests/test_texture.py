"""Textures (drpose.mesh.texture): the right texel sees the right pixel, nothing bleeds, light is mixed as light, and what nobody saw is filled from the surface."""

from __future__ import annotations

import pytest
import torch
import trimesh

from drpose.mesh.texture import asked_colors, bake_texture, believed, color_vertices, color_views, lay_flat, spread, texel_points
from drpose.multiview.scans import render_scan
from drpose.people.bodies import Body, load_body
from drpose.people.clips import embedded_clips
from drpose.pictures.cameras import SIX_VIEWS, ViewRig
from drpose.pictures.dressed_people import draw_crowd, photograph
from drpose.pictures.mesh_files import Scan, srgb_levels
from drpose.pictures.rendering import render_views, vertex_normals

PAIR = ViewRig((0.0, 90.0), image_size=64)


def mesh(shape: trimesh.Trimesh) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(shape.vertices).float(), torch.tensor(shape.faces).long()


BALL = mesh(trimesh.creation.icosphere(subdivisions=3, radius=0.3))


def flat(*levels: float, size: int = 64) -> torch.Tensor:
    "One grey picture for each level."
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, size, size).clone()


def masks(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.ones(count, size, size)


@pytest.fixture(scope="module")
def kick():
    body_model, crowd = load_body(), draw_crowd(load_body(), [7])
    pose = embedded_clips()["high_kick"].poses[18:19]
    taken = photograph(body_model, pose, crowd, SIX_VIEWS, 192)
    truth = photograph(body_model, pose, crowd, ViewRig((20.0, 135.0, 225.0)), 192).views
    return taken.framing.apply(body_model(pose.with_betas(crowd.betas)).vertices)[0], body_model.faces, taken.views, truth


def psnr(scan: Scan, truth) -> float:
    colors, _ = render_scan(scan, 192, azimuths=(20.0, 135.0, 225.0))
    wrong = (colors[:, :3] - truth.colors[0]).square().mean(1)[(truth.masks[0] > 0.999) & (colors[:, 3] > 0.999)]
    return -10 * wrong.mean().log10().item()


def test_there_and_back(kick):
    "Baked from exact views and seen from between them: 40 dB as measured, 37 with room for another platform's atlas."
    points, faces, views, truth = kick
    asked = color_views(points, faces, views.colors[0], views.masks[0], SIX_VIEWS)
    baked = bake_texture(points, faces, asked, lay_flat(points, faces, 1024))
    assert psnr(baked.scan, truth) > 37
    assert psnr(Scan(points, faces, srgb_levels(color_vertices(points, faces, asked))), truth) > 35
    assert baked.scan.texture.shape == (3, 1024, 1024) and bool((baked.scan.colors == 1).all())
    assert set(torch.unique(baked.seen[baked.seen < 0]).tolist()) == {-1.0} and 0.7 < (baked.seen[baked.seen >= 0] == 1).float().mean() < 1


def test_a_mirrored_view_gives_the_same(kick):
    points, faces, views, _ = kick
    mirrored = SIX_VIEWS.with_mirrored((False, True, False, True, True, False))
    flip = lambda pictures: torch.stack([picture.flip(-1) if flag else picture for picture, flag in zip(pictures, mirrored.mirrored)])  # noqa: E731
    plain = color_vertices(points, faces, color_views(points, faces, views.colors[0], views.masks[0], SIX_VIEWS))
    turned = color_vertices(points, faces, color_views(points, faces, flip(views.colors[0]), flip(views.masks[0]), mirrored))
    assert (plain - turned).abs().max() < 1e-3


def test_the_atlas_is_the_mesh_cut_open():
    points, faces = BALL
    atlas = lay_flat(points, faces, 128)
    assert torch.equal(atlas.source[atlas.faces], faces) and 0 <= atlas.uv.min() and atlas.uv.max() <= 1
    position, where = texel_points(atlas, points)
    assert len(position.unique()) == len(position) > 0.3 * 128**2
    assert (where.norm(dim=1) - 0.3).abs().max() < 0.01, "each texel lies on the ball"


def test_no_chart_ends_in_its_gutter():
    "Outside the charts the picture goes on in the colour of the nearest one: no black in smaller copies."
    points, faces = BALL
    baked = bake_texture(points, faces, color_views(points, faces, flat(0.7, 0.7), masks(), PAIR), lay_flat(points, faces, 128))
    assert (baked.seen < 0).any() and (baked.scan.texture - 0.7).abs().max() < 1e-4


def test_light_is_mixed_not_levels():
    "Half way between a black and a white view stands half of the light: level 0.735."
    points = torch.tensor([[1.0, 0.0, 1.0]]) * 0.3 / 2**0.5
    views = color_views(*BALL, flat(0.0, 1.0), masks(), PAIR)
    color, weight = asked_colors(points, torch.nn.functional.normalize(points, dim=1), views)
    assert srgb_levels(color).flatten().tolist() == pytest.approx([0.735] * 3, abs=0.01) and weight.item() == pytest.approx(1.0, abs=0.1)


def test_the_better_view_rules_and_weights_count():
    toward = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 2.0]]), dim=1)
    plain, loud = (asked_colors(0.3 * toward, toward, color_views(*BALL, flat(0.0, 1.0), masks(), PAIR, weights))[0].mean().item() for weights in (None, torch.tensor([0.1, 1.0])))
    assert plain < 0.02 < 0.5 < loud


def test_nothing_is_believed_at_outlines():
    depth = torch.zeros(1, 12, 12)
    depth[:, 2:10, 2:10] = 0.1
    depth[:, 2:10, 6:10] = 0.4  # something nearer on the right
    trust = believed(depth, torch.ones(1, 12, 12), 0.01)[0]
    assert trust[5].tolist() == [0, 0, 0, 0.5, 0.5, 0, 0, 0.5, 0.5, 0, 0, 0]
    assert believed(torch.full((1, 9, 9), 0.1), torch.zeros(1, 9, 9), 0.01).max() == 0, "the picture shows nobody there"


def test_background_and_nearer_limbs_do_not_bleed():
    "A small ball before a large one, red before blue on white: no vertex of either has any of the other, nor white."
    small, near = mesh(trimesh.creation.icosphere(subdivisions=3, radius=0.1))
    points, faces = torch.cat([BALL[0], small + torch.tensor([0.0, 0.0, 0.36])]), torch.cat([BALL[1], near + len(BALL[0])])
    rig = ViewRig((0.0,), image_size=96)
    paint = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])[torch.tensor([0] * len(BALL[0]) + [1] * len(small))]
    seen = render_views(Body(points[None], None, faces), rig, 96, paint, None, supersample=3)
    found = color_vertices(points, faces, color_views(points, faces, seen.colors[0], seen.masks[0], rig))
    assert (found - paint).abs().max() < 0.02


def test_unseen_vertices_are_filled_along_the_surface():
    points, faces = BALL
    front = points[:, 2] > 0.05
    values = points[:, 1:2].clone()
    values[~front] = 9.0  # nonsense that nobody saw
    filled = spread(values, front.float(), points, faces)
    assert (filled[front] - values[front]).abs().max() < 0.02 and filled.abs().max() < 0.31, "harmonic: never beyond what is known"
    assert filled[points[:, 1] > 0.2].min() > filled[points[:, 1] < -0.2].max()


def test_a_piece_without_any_known_vertex_takes_the_nearest():
    points, faces = BALL
    both, pieces = torch.cat([points, 0.1 * points + torch.tensor([0.0, 0.45, 0.0]), points[:1] * 0]), torch.cat([faces, faces + len(points)])
    trust = torch.cat([torch.ones(len(points)), torch.zeros(len(points) + 1)])
    filled = spread(both[:, 1:2].clone(), trust, both, pieces)
    assert (filled[len(points) : -1] - 0.3).abs().max() < 0.03 and filled[-1].isfinite()


def _with(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[7] = value
    return tensor


@pytest.mark.parametrize("changes, said", [
    ({"colors": flat(0.5)}, "one square picture for each view"), ({"colors": flat(0.5, 0.5)[..., :32]}, "one square picture"), ({"masks": masks(2, 32)}, "one for each of the colour pictures"),
    ({"faces": torch.zeros(0, 3, dtype=torch.int64)}, "faces is empty"), ({"vertices": _with(BALL[0], torch.nan)}, "NaN"), ({"colors": _with(flat(0.5, 0.5), torch.inf)}, "NaN or infinite numbers in view 0"),
    ({"masks": _with(masks(), torch.nan)}, "masks holds NaN"), ({"colors": 255 * flat(0.5, 0.5)}, "divide by 255"), ({"weights": torch.tensor([1.0])}, "2 finite numbers"), ({"weights": torch.zeros(2)}, "one above"),
])  # fmt: skip
def test_bad_views_are_one_sentence(changes, said):
    given = {"vertices": BALL[0], "faces": BALL[1], "colors": flat(0.5, 0.5), "masks": masks(), "rig": PAIR} | changes
    with pytest.raises(ValueError, match=said) as error:
        color_views(**given)
    assert "\n" not in str(error.value)


def test_no_view_shows_the_mesh():
    with pytest.raises(ValueError, match="no view shows the mesh"):
        color_vertices(*BALL, color_views(*BALL, flat(0.5, 0.5), 0 * masks(), PAIR))


def test_an_atlas_needs_a_mesh_and_a_size():
    with pytest.raises(ValueError, match="faces is empty"):
        lay_flat(BALL[0], BALL[1][:0], 64)
    with pytest.raises(ValueError, match="whole number of texels"):
        lay_flat(*BALL, 0)


def test_a_face_without_area_is_no_harm():
    points, faces = BALL
    faces = torch.cat([faces, torch.tensor([[0, 0, 1], [2, 2, 2]])])
    baked = bake_texture(points, faces, color_views(points, faces, flat(0.6, 0.6), masks(), PAIR), lay_flat(points, faces, 64))
    assert (baked.scan.texture - 0.6).abs().max() < 1e-4 and len(baked.scan.faces) == len(faces)


def test_normals_may_be_missing_nowhere():
    "Points whose normal looks away from all views have no weight, and colour 0."
    views = color_views(*BALL, flat(0.5, 0.5), masks(), PAIR)
    points = BALL[0][:5]
    color, weight = asked_colors(points, -torch.ones(5, 3) / 3**0.5, views)
    assert weight.max() == 0 and color.abs().max() == 0
    assert asked_colors(BALL[0], vertex_normals(BALL[0][None], BALL[1])[0], views)[1].max() > 0.9
