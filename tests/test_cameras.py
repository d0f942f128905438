"""Which side is left, where a pixel's centre lies, and how large a person stands in the frame."""

import json
import math
from pathlib import Path

import pytest
import torch
from drpose.people.bodies import load_body
from drpose.pictures.cameras import (FOUR_VIEWS, SIX_VIEWS, VIEW_NAMES, Framing, ViewRig, frame_by_diagonal,
                                     triangulate, view_axes)
from safetensors.torch import load_file

FIXTURE = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "pshuman" / "pshuman_preproc_cam.json"
MIRRORED_SIX = SIX_VIEWS.with_mirrored((False, False, False, True, True, False))
HALF = math.sqrt(0.5)
# azimuth: (image-right, toward the viewer) in world coordinates, written out by hand
AXES = {
    0: ((1, 0, 0), (0, 0, 1)),
    45: ((HALF, 0, -HALF), (HALF, 0, HALF)),
    90: ((0, 0, -1), (1, 0, 0)),
    180: ((-1, 0, 0), (0, 0, -1)),
    270: ((0, 0, 1), (-1, 0, 0)),
    315: ((HALF, 0, HALF), (-HALF, 0, HALF)),
}


def random_points(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.5


# --- directions ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("azimuth", AXES)
def test_axes_by_hand(azimuth):
    rig = ViewRig((azimuth,))
    right, toward = AXES[azimuth]
    torch.testing.assert_close(rig.right()[0], torch.tensor(right, dtype=torch.float32), atol=1e-7, rtol=0)
    torch.testing.assert_close(rig.toward()[0], torch.tensor(toward, dtype=torch.float32), atol=1e-7, rtol=0)
    assert rig.up().tolist() == [[0, 1, 0]]
    torch.testing.assert_close(torch.linalg.cross(rig.right(), rig.up()), rig.toward(), atol=1e-6, rtol=0)  # right-handed


def test_right_angles_are_exact_and_dtype_follows():
    right, up, toward = view_axes((0, 90, 180, 270), torch.zeros((), dtype=torch.float64))
    assert right.dtype == torch.float64 and set(torch.cat([right, up, toward]).flatten().tolist()) <= {-1.0, 0.0, 1.0}


def test_known_rigs():
    assert SIX_VIEWS.azimuths == (0, 45, 90, 180, 270, 315) and FOUR_VIEWS.azimuths == (0, 90, 180, 270)
    assert (SIX_VIEWS.num_views, SIX_VIEWS.half_extent, SIX_VIEWS.image_size, SIX_VIEWS.mirrored) == (6, 0.5, 768, ())
    assert [VIEW_NAMES[azimuth] for azimuth in SIX_VIEWS.azimuths] == ["front", "front_right", "right", "back", "left", "front_left"]


def test_azimuth_90_looks_from_plus_x():
    near_camera, chest = torch.tensor([[0.4, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.2]])
    rig = ViewRig((90,), image_size=100)
    assert rig.depth(near_camera).item() == pytest.approx(0.4)  # her left side is nearest
    assert rig.project(chest)[0, 0, 0].item() == pytest.approx(30)  # seen from her left she faces image-left


# --- pixels -------------------------------------------------------------------------------------------------------------------------------


def test_projection_convention():
    rig = ViewRig((0,), half_extent=1.0, image_size=4)
    corners = torch.tensor([[-1.0, 1.0, 0.3], [1.0, -1.0, 0.3], [0.0, 0.0, 9.0], [-0.75, 0.75, 0.0]])
    assert rig.project(corners)[0].tolist() == [[0, 0], [4, 4], [2, 2], [0.5, 0.5]]  # y down; depth has no influence; first pixel centre
    grid = rig.pixel_grid()
    assert grid.shape == (4, 4, 2) and grid[0, 3].tolist() == [3.5, 0.5] and grid[3, 0].tolist() == [0.5, 3.5]


def test_left_is_image_right_from_the_front_and_image_left_from_the_back():
    joints = load_body().rest_joints(torch.zeros(1, 10))[0]
    left_wrist, right_wrist, head, foot = 20, 21, 15, 10
    pixels = ViewRig((0, 180), half_extent=2.0, image_size=64).project(joints)
    assert pixels[0, left_wrist, 0] > 32 > pixels[0, right_wrist, 0]
    assert pixels[1, left_wrist, 0] < 32 < pixels[1, right_wrist, 0]
    assert (pixels[:, head, 1] < pixels[:, foot, 1]).all()  # the head is above the feet, and rows run down
    nose_side = joints[foot, 2] - joints[7, 2]  # toes minus ankle
    assert nose_side > 0  # the body faces +Z


def test_batch_dimensions_and_float64():
    points = random_points(2, 3, 5, dtype=torch.float64)
    pixels, depth = SIX_VIEWS.project(points), SIX_VIEWS.depth(points)
    assert pixels.shape == (2, 3, 6, 5, 2) and depth.shape == (2, 3, 6, 5) and pixels.dtype == depth.dtype == torch.float64
    torch.testing.assert_close(pixels[1, 2], SIX_VIEWS.project(points[1, 2]))


def test_mirroring_flips_columns_and_nothing_else():
    points = random_points(7)
    plain, mirrored = SIX_VIEWS.project(points), MIRRORED_SIX.project(points)
    for view in range(6):
        if view in (3, 4):
            torch.testing.assert_close(mirrored[view, :, 0], SIX_VIEWS.image_size - plain[view, :, 0], atol=1e-3, rtol=0)
            assert (mirrored[view, :, 0] - plain[view, :, 0]).abs().max() > 10
        else:
            assert torch.equal(mirrored[view], plain[view])
    assert torch.equal(mirrored[..., 1], plain[..., 1]) and torch.equal(MIRRORED_SIX.depth(points), SIX_VIEWS.depth(points))
    assert torch.equal(mirrored[3], mirrored[0])  # a mirrored back view lies on the front view
    assert MIRRORED_SIX.flips().tolist() == [1, 1, 1, -1, -1, 1] and SIX_VIEWS.flips().tolist() == [1] * 6


def test_resized_scales_pixels():
    points = random_points(7)
    small = MIRRORED_SIX.resized(96)
    assert (small.image_size, small.azimuths, small.mirrored, small.half_extent) == (96, MIRRORED_SIX.azimuths, MIRRORED_SIX.mirrored, 0.5)
    torch.testing.assert_close(small.project(points) * 8, MIRRORED_SIX.project(points))
    assert MIRRORED_SIX.with_mirrored(()) == SIX_VIEWS
    assert hash(SIX_VIEWS) == hash(ViewRig([0.0, 45, 90, 180, 270, 315]))  # frozen, usable as a key


def test_unproject_inverts_project_and_depth():
    points = random_points(2, 9)
    back = MIRRORED_SIX.unproject(MIRRORED_SIX.project(points), MIRRORED_SIX.depth(points))
    torch.testing.assert_close(back, points[:, None].expand(2, 6, 9, 3), atol=1e-6, rtol=0)


# --- triangulation ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rig", [SIX_VIEWS, MIRRORED_SIX, FOUR_VIEWS.with_mirrored((0, 0, 1, 1)).resized(16), ViewRig((10, 75), half_extent=2.0)], ids=["six", "mirrored", "tiny", "two"])
@pytest.mark.parametrize("weighted", [False, True])
def test_triangulation_is_exact_without_noise(rig, weighted):
    points = random_points(3, 11)
    pixels = rig.project(points)
    weights = torch.rand(pixels.shape[:-1], generator=torch.Generator().manual_seed(1)) + 0.05 if weighted else None
    torch.testing.assert_close(rig.triangulate(pixels, weights), points, atol=2e-5, rtol=0)


def test_triangulation_would_notice_a_forgotten_mirror():
    points = random_points(1, 11)
    assert (SIX_VIEWS.triangulate(MIRRORED_SIX.project(points)) - points).abs().max() > 0.05


def test_triangulation_is_the_least_squares_solution():
    rig = MIRRORED_SIX.resized(64)
    pixels = rig.project(random_points(1, 4, dtype=torch.float64)) + torch.randn(1, 6, 4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = torch.rand(1, 6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    flips = torch.tensor([1, 1, 1, -1, -1, 1.0], dtype=torch.float64)
    for n in range(4):  # the same problem, stacked and given to a general solver
        rows, values = [], []
        for view, azimuth in enumerate(rig.azimuths):
            root, a = weights[0, view, n].sqrt(), math.radians(azimuth)
            u, w = pixels[0, view, n] * 2 / 64 - 1
            rows += [root * torch.tensor([math.cos(a), 0, -math.sin(a)], dtype=torch.float64), root * torch.tensor([0, 1.0, 0], dtype=torch.float64)]
            values += [root * flips[view] * u * 0.5, root * -w * 0.5]
        solution = torch.linalg.lstsq(torch.stack(rows), torch.stack(values)[:, None]).solution[:, 0]
        torch.testing.assert_close(triangulate(rig, pixels, weights)[0, n], solution, atol=1e-9, rtol=0)


def test_scale_of_the_weights_does_not_matter_and_a_bad_view_can_be_turned_off():
    points = random_points(1, 5)
    pixels = SIX_VIEWS.project(points)
    pixels[:, 2] += 100
    weights = torch.ones(1, 6, 5)
    assert (SIX_VIEWS.triangulate(pixels) - points).abs().max() > 0.01
    weights[:, 2] = 0
    torch.testing.assert_close(SIX_VIEWS.triangulate(pixels, weights * 1e-4), points, atol=1e-5, rtol=0)


def test_triangulation_gradients():
    rig = FOUR_VIEWS.with_mirrored((0, 0, 1, 1)).resized(16)
    pixels = rig.project(random_points(2, 2, dtype=torch.float64)) + 0.3 * random_points(2, 4, 2, dtype=torch.float64)[..., :2]
    weights = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda p, w: triangulate(rig, p, w), (pixels.requires_grad_(), weights.requires_grad_()))


@pytest.mark.parametrize("azimuths", [(0,), (0, 180), (45, 225, 45), (90, 90)])
def test_views_that_see_no_depth_are_refused(azimuths):
    with pytest.raises(ValueError, match="2 points cannot be triangulated"):
        ViewRig(azimuths).triangulate(torch.zeros(1, len(azimuths), 2, 2))


def test_weights_that_leave_one_direction_are_refused():
    weights = torch.ones(1, 6, 2)
    weights[0, :, 1] = 0
    with pytest.raises(ValueError, match="1 points cannot be triangulated"):
        SIX_VIEWS.triangulate(torch.zeros(1, 6, 2, 2), weights)
    weights[0, (0, 3), 1] = 1.0  # front and back
    with pytest.raises(ValueError, match="neither equal nor opposite"):
        SIX_VIEWS.triangulate(torch.zeros(1, 6, 2, 2), weights)


# --- framing ------------------------------------------------------------------------------------------------------------------------------


def test_frame_by_diagonal_makes_the_box_diagonal_one_and_centres_it():
    vertices = random_points(3, 50) * torch.tensor([1.0, 2.0, 0.4]) * torch.tensor([1.0, 30.0, 0.1])[:, None, None] + torch.tensor([5.0, -3.0, 1.0])
    framing = frame_by_diagonal(vertices)
    framed = framing.apply(vertices)
    low, high = framed.amin(1), framed.amax(1)
    torch.testing.assert_close((high - low).norm(dim=-1), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(low, -high, atol=1e-4, rtol=0)
    torch.testing.assert_close(framing.invert(framed), vertices, atol=1e-4, rtol=0)
    assert ((SIX_VIEWS.project(framed) >= -0.5) & (SIX_VIEWS.project(framed) <= 768.5)).all()


def test_framing_slices_keep_the_batch():
    framing = Framing(torch.arange(9.0).view(3, 3), torch.tensor([1.0, 2.0, 3.0]))
    assert len(framing) == 3 and len(framing[1]) == 1 and framing[1].scale.item() == 2 and len(framing[1:]) == 2
    assert framing[torch.tensor([2, 0])].scale.tolist() == [3, 1]
    assert framing[1].apply(torch.tensor([[[4.0, 5.0, 6.0]]])).tolist() == [[[2, 2, 2]]]


# --- bad input ----------------------------------------------------------------------------------------------------------------------------

P = torch.zeros
BAD = {
    "no view": (lambda: ViewRig(()), "ViewRig.azimuths"),
    "one number": (lambda: ViewRig(90), "sequence of numbers"),
    "nan azimuth": (lambda: ViewRig((0, math.nan)), "finite"),
    "text azimuth": (lambda: ViewRig(("front",)), "ViewRig.azimuths"),
    "zero extent": (lambda: ViewRig((0,), half_extent=0.0), "ViewRig.half_extent"),
    "size": (lambda: ViewRig((0,), image_size=64.5), "ViewRig.image_size"),
    "size zero": (lambda: SIX_VIEWS.resized(0), "ViewRig.image_size"),
    "too few flags": (lambda: SIX_VIEWS.with_mirrored((True,)), "each of the 6 views"),
    "one flag": (lambda: ViewRig((0,), mirrored=True), "ViewRig.mirrored"),
    "2d points": (lambda: SIX_VIEWS.project(P(5, 2)), "points is .* of shape"),
    "integer points": (lambda: SIX_VIEWS.project(P(5, 3, dtype=torch.int64)), "floating-point"),
    "list points": (lambda: SIX_VIEWS.depth([[0, 0, 0]]), "points is list"),
    "views": (lambda: SIX_VIEWS.triangulate(P(1, 4, 5, 2)), "points2d"),
    "weight shape": (lambda: SIX_VIEWS.triangulate(P(1, 6, 5, 2), P(1, 6, 4)), "weights"),
    "negative weight": (lambda: SIX_VIEWS.triangulate(P(1, 6, 5, 2), P(1, 6, 5) - 1), "negative or non-finite"),
    "nan weight": (lambda: SIX_VIEWS.triangulate(P(1, 6, 5, 2), P(1, 6, 5) + math.nan), "negative or non-finite"),
    "unproject": (lambda: SIX_VIEWS.unproject(P(6, 5, 2), P(6, 4)), "depths"),
    "one body": (lambda: frame_by_diagonal(P(3)), "vertices"),
    "coinciding": (lambda: frame_by_diagonal(P(1, 5, 3)), "coincide"),
    "nan vertices": (lambda: frame_by_diagonal(torch.full((1, 5, 3), math.nan)), "finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    call, expected = BAD[name]
    with pytest.raises(ValueError, match=expected) as refused:
        call()
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


# --- PSHuman's own cameras ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream():
    if not FIXTURE.is_file():
        pytest.skip("PSHuman's recorded cameras are not here: shared/fixtures/pshuman/pshuman_preproc_cam")
    return json.loads(FIXTURE.read_text(encoding="utf-8")), load_file(FIXTURE.with_suffix(".safetensors"))


def test_camera_axes_agree_with_pshumans_carving_cameras(upstream):
    "OpenGL world-to-camera matrices: rows are image-right, up, toward the viewer."
    matrices = upstream[1]["cam.carve_w2c_gl"].float()
    for row, axes in enumerate((SIX_VIEWS.right(), SIX_VIEWS.up(), SIX_VIEWS.toward())):
        torch.testing.assert_close(matrices[:, row, :3], axes, atol=1e-5, rtol=0)


def test_pixels_agree_with_pshumans_clip_coordinates(upstream):
    "There the frame is 4 wide, and y was negated to make rows run down."
    points, clip = (upstream[1][name].float() for name in ("cam.test_points", "cam.test_clip"))
    expected = (clip[..., :2] / clip[..., 3:] + 1) / 2 * 64
    torch.testing.assert_close(ViewRig(SIX_VIEWS.azimuths, half_extent=2.0, image_size=64).project(points[:, :3]), expected, atol=1e-3, rtol=0)


def test_camera_directions_agree_with_pshumans_training_renders(upstream):
    "OpenCV cameras (x right, y down, z forward) in Blender's world, whose axes (x, y, z) are ours (z, x, y)."
    to_ours = [1, 2, 0]
    for view, azimuth in zip((0, 1, 2, 4, 6, 7), SIX_VIEWS.azimuths):
        matrix, rig = upstream[1][f"cam.extrinsic_w2c_cv.{view}"].float(), ViewRig((azimuth,))
        for row, axis in ((0, rig.right()), (1, -rig.up()), (2, -rig.toward())):
            torch.testing.assert_close(matrix[row, :3][to_ours], axis[0], atol=2e-3, rtol=0)