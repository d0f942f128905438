"""The rasteriser against a pixel-by-pixel reference, and every picture against left/right, front/back and up/down mistakes."""

import importlib.util
import math

import pytest
import torch
from drpose.people.bodies import Body, Pose, load_body
from drpose.pictures.cameras import FOUR_VIEWS, SIX_VIEWS, ViewRig, frame_by_diagonal
from drpose.pictures.rendering import find_hits, rasterize, render_views, skeleton_maps, vertex_normals

MIRRORED_SIX = SIX_VIEWS.with_mirrored((False, False, False, True, True, False))
NORMAL_X, NORMAL_Y, NORMAL_Z = range(3)


def as_body(vertices, faces):
    return Body(vertices, vertices[:, :1], faces)


def sphere(radius=0.4, rings=24, dtype=torch.float32):
    "A closed ball, faces counter-clockwise seen from outside."
    polar, turn = torch.meshgrid(torch.linspace(0, math.pi, rings + 1, dtype=dtype), torch.arange(2 * rings, dtype=dtype) * math.pi / rings, indexing="ij")
    vertices = radius * torch.stack([polar.sin() * turn.sin(), polar.cos(), polar.sin() * turn.cos()], dim=-1).flatten(0, 1)
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(2 * rings), indexing="ij")
    a, b = i * 2 * rings + j, i * 2 * rings + (j + 1) % (2 * rings)
    below_a, below_b = a + 2 * rings, b + 2 * rings
    return vertices[None], torch.stack([torch.stack([a, below_a, b], -1), torch.stack([b, below_a, below_b], -1)]).view(-1, 3)


def soup(bodies, count, seed, dtype=torch.float32, spread=1.2):
    "Random triangles of all sizes, some of them partly or wholly outside the frame."
    generator = torch.Generator().manual_seed(seed)
    centre = (torch.rand(bodies, count, 1, 3, generator=generator, dtype=dtype) - 0.5) * spread
    size = torch.rand(bodies, count, 1, 1, generator=generator, dtype=dtype).square() * 0.5
    return (centre + size * torch.randn(bodies, count, 3, 3, generator=generator, dtype=dtype)).view(bodies, -1, 3), torch.arange(3 * count).view(-1, 3)


def reference(vertices, faces, rig):
    "Nearest face, barycentrics and depth of one body, pixel after pixel and face after face, in float64; also how close to undecided each pixel is."
    pixels, depths = rig.project(vertices.double()), rig.depth(vertices.double())
    views, size = rig.num_views, rig.image_size
    face_map = torch.full((views, size, size), -1)
    weights, depth_map = torch.zeros(views, size, size, 3, dtype=torch.float64), torch.zeros(views, size, size, dtype=torch.float64)
    unsure = torch.zeros(views, size, size, dtype=torch.bool)
    centre = rig.pixel_grid().double()
    for view in range(views):
        nearest = torch.full((size, size), -math.inf, dtype=torch.float64)
        for number, face in enumerate(faces.tolist()):
            corners, z = pixels[view, face], depths[view, face]
            area = torch.det(torch.stack([corners[1] - corners[0], corners[2] - corners[0]]))
            if area.abs() < 1e-12:
                continue
            place = torch.stack([torch.ones(3, dtype=torch.float64), *corners.T])  # solve sum w = 1, sum w * corner = centre
            w = torch.linalg.solve(place, torch.cat([torch.ones(size, size, 1, dtype=torch.float64), centre], -1).flatten(0, 1).T).T.view(size, size, 3)
            height = (w * z).sum(-1)
            inside = (w > 0).all(-1)
            unsure |= ((w.amin(-1) * area.abs()).abs() < 1e-4) | (inside & ((height - nearest).abs() < 1e-5))
            wins = inside & (height > nearest)
            nearest = torch.where(wins, height, nearest)
            face_map[view][wins] = number
            weights[view][wins], depth_map[view][wins] = w[wins], height[wins]
    return face_map, weights, depth_map, unsure


@pytest.fixture(scope="module")
def posed():
    "The embedded body with its left arm raised and its right leg stretched forward."
    pose = Pose.rest(1)
    pose.axis_angles[0, 16, 2] = 1.1  # left shoulder up
    pose.axis_angles[0, 17, 2] = 1.1  # right shoulder down
    pose.axis_angles[0, 2, 0] = -1.0  # right hip: leg forward
    with torch.no_grad():
        return load_body()(pose)


# --- the rasteriser -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rig", [MIRRORED_SIX.resized(24), FOUR_VIEWS.with_mirrored((0, 0, 1, 1)).resized(17), ViewRig((30, 210, 75), half_extent=0.4, image_size=20, mirrored=(1, 1, 0))], ids=["six", "tiny", "odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_pixel_by_pixel_reference(rig, dtype):
    vertices, faces = soup(2, 25, seed=1, dtype=dtype)
    found = rasterize(vertices, faces, rig, "torch")
    for body in range(2):
        face_map, weights, depth, unsure = reference(vertices[body], faces, rig)
        assert unsure.float().mean() < 0.01 and (face_map >= 0).float().mean() > 0.2
        sure = ~unsure
        assert torch.equal(found.pix_to_face[body][sure], face_map[sure])
        tolerance = 2e-3 if dtype == torch.float32 else 1e-9  # needle-shaped faces
        torch.testing.assert_close(found.barycentric[body][sure].double(), weights[sure], atol=tolerance, rtol=0)
        torch.testing.assert_close(found.depth[body][sure].double(), depth[sure], atol=tolerance, rtol=0)


@pytest.mark.parametrize("pieces", [1 << 5, 1 << 22])
def test_the_size_of_the_pieces_changes_nothing(pieces, monkeypatch):
    vertices, faces = soup(2, 60, seed=2)
    usual = rasterize(vertices, faces, MIRRORED_SIX.resized(32))
    monkeypatch.setattr("drpose.pictures.rendering.PAIRS_AT_ONCE", pieces)
    other = rasterize(vertices, faces, MIRRORED_SIX.resized(32))
    assert torch.equal(usual.pix_to_face, other.pix_to_face) and torch.equal(usual.barycentric, other.barycentric) and torch.equal(usual.depth, other.depth)


def test_covered_pixels_have_weights_that_sum_to_one_and_empty_ones_are_zero():
    vertices, faces = soup(1, 25, seed=3)
    found = rasterize(vertices, faces, SIX_VIEWS.resized(24))
    covered = found.pix_to_face >= 0
    torch.testing.assert_close(found.barycentric.sum(-1), covered.float(), atol=1e-6, rtol=0)
    assert (found.barycentric >= 0).all() and (found.depth[~covered] == 0).all() and found.pix_to_face.dtype == torch.int64


def test_weights_point_at_the_pixel():
    "The surface point under a pixel projects onto the pixel's centre and lies at the pixel's depth, in mirrored views too."
    vertices, faces = sphere()
    rig = MIRRORED_SIX.resized(40)
    found = rasterize(vertices, faces, rig)
    grid = rig.pixel_grid()
    for view in range(6):
        covered = found.pix_to_face[0, view] >= 0
        corners = vertices[0][faces[found.pix_to_face[0, view][covered]]]
        points = (corners * found.barycentric[0, view][covered][..., None]).sum(1)
        torch.testing.assert_close(rig.project(points)[view], grid[covered], atol=1e-3, rtol=0)
        torch.testing.assert_close(rig.depth(points)[view], found.depth[0, view][covered], atol=1e-5, rtol=0)
        assert (found.depth[0, view][covered] > 0).all()  # the near half of the ball, from every side


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearest_face_wins_from_both_sides(order):
    square = torch.tensor([[-0.3, -0.3], [0.3, -0.3], [0.0, 0.4]])
    far, near = torch.cat([square, torch.full((3, 1), -0.2)], 1), torch.cat([square, torch.full((3, 1), 0.1)], 1)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])[list(order)]
    found = rasterize(torch.cat([far, near])[None], faces, ViewRig((0, 180), image_size=16))
    seen = [set(found.pix_to_face[0, view].unique().tolist()) - {-1} for view in range(2)]
    assert seen == [{order.index(1)}, {order.index(0)}]
    torch.testing.assert_close(found.depth[0].amax((1, 2)), torch.tensor([0.1, 0.2]))


def test_of_two_faces_in_one_place_the_lower_number_is_seen():
    vertices = torch.tensor([[[-0.3, -0.3, 0.0], [0.3, -0.3, 0.0], [0.0, 0.4, 0.0]]])
    found = rasterize(vertices, torch.tensor([[0, 1, 2], [2, 1, 0], [0, 1, 2]]), ViewRig((0, 180, 45), image_size=16))
    assert set(found.pix_to_face.unique().tolist()) == {-1, 0}


def test_a_centre_on_an_edge_is_not_covered():
    vertices = torch.tensor([[[-0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, -0.5, 0.0]]])  # its long edge runs through the diagonal's pixel centres
    found = rasterize(vertices, torch.tensor([[0, 1, 2]]), ViewRig((0,), image_size=8))
    assert torch.equal(found.pix_to_face[0, 0] >= 0, torch.ones(8, 8).triu(1).bool())


def test_degenerate_faces_are_invisible():
    vertices = torch.tensor([[[-0.3, 0.0, 0.0], [0.3, 0.01, 0.0], [0.0, 0.005, 0.0], [0.1, 0.1, 0.1]]])
    faces = torch.tensor([[0, 0, 1], [3, 3, 3], [0, 1, 2]])  # an edge, a point, a line
    found = rasterize(vertices, faces, SIX_VIEWS.resized(64))
    assert (found.pix_to_face == -1).float().mean() > 0.999 and torch.isfinite(found.barycentric).all() and torch.isfinite(found.depth).all()
    edge_on = rasterize(torch.tensor([[[-0.3, -0.3, 0.0], [0.3, -0.3, 0.0], [0.0, 0.4, 0.0]]]), torch.tensor([[0, 1, 2]]), ViewRig((90,), image_size=64))
    assert (edge_on.pix_to_face == -1).all()


@pytest.mark.parametrize("shift", [(5.0, 0.0, 5.0), (0.0, -3.0, 0.0), (1e6, 1e6, 1e6)])
def test_nothing_in_the_frame(shift):
    vertices, faces = sphere()
    found = rasterize(vertices + torch.tensor(shift), faces, FOUR_VIEWS.resized(16))
    assert (found.pix_to_face == -1).all() and (found.barycentric == 0).all()
    views = render_views(as_body(vertices + torch.tensor(shift), faces), FOUR_VIEWS, 16, framing=None, normal_background=0.25, color_background=0.75, supersample=2)
    assert (views.masks == 0).all() and (views.depths == 0).all() and (views.normals == 0.25).all() and (views.colors == 0.75).all()


def test_no_faces_at_all():
    found = rasterize(torch.zeros(2, 3, 3), torch.zeros(0, 3, dtype=torch.int64), FOUR_VIEWS.resized(8))
    assert found.pix_to_face.shape == (2, 4, 8, 8) and (found.pix_to_face == -1).all()


def test_a_face_larger_than_the_frame_covers_it():
    vertices = torch.tensor([[[-40.0, -30.0, 0.2], [40.0, -30.0, 0.2], [0.0, 50.0, 0.2]]])
    found = rasterize(vertices, torch.tensor([[0, 1, 2]]), ViewRig((0, 180), image_size=32))
    assert (found.pix_to_face == 0).all()
    torch.testing.assert_close(found.depth[0, 0], torch.full((32, 32), 0.2)), torch.testing.assert_close(found.depth[0, 1], torch.full((32, 32), -0.2))


def test_a_part_outside_the_frame_takes_nothing_from_the_part_inside():
    vertices, faces = sphere(radius=0.7)
    small = rasterize(vertices, faces, ViewRig((0, 90, 180), half_extent=0.5, image_size=32))
    large = rasterize(vertices, faces, ViewRig((0, 90, 180), half_extent=1.0, image_size=64))
    inner = large.pix_to_face[..., 16:48, 16:48]
    assert (small.pix_to_face == inner).float().mean() > 0.999


def test_batch_equals_singles():
    vertices, faces = soup(7, 30, seed=4)
    rig = MIRRORED_SIX.resized(24)
    together = rasterize(vertices, faces, rig)
    for body in range(7):
        alone = rasterize(vertices[body : body + 1], faces, rig)
        assert torch.equal(together.pix_to_face[body], alone.pix_to_face[0])
        assert torch.equal(together.barycentric[body], alone.barycentric[0]) and torch.equal(together.depth[body], alone.depth[0])


# --- gradients ----------------------------------------------------------------------------------------------------------------------------


def test_gradients_of_weights_and_depth_by_finite_differences():
    vertices, faces = soup(2, 6, seed=5, dtype=torch.float64)
    rig = MIRRORED_SIX.resized(12)
    fixed = rasterize(vertices, faces, rig).pix_to_face
    generator = torch.Generator().manual_seed(6)
    pull, lift = (torch.randn(*fixed.shape, *tail, generator=generator, dtype=torch.float64) for tail in ((3,), ()))

    def value(points):
        found = rasterize(points, faces, rig)
        assert torch.equal(found.pix_to_face, fixed)  # no outline crossed a pixel centre on the way
        return (found.barycentric * pull).sum() + (found.depth * lift).sum()

    vertices.requires_grad_()
    (gradient,) = torch.autograd.grad(value(vertices), vertices)
    assert gradient.abs().max() > 1
    for seed in range(4):
        direction = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            difference = (value(vertices + step * direction) - value(vertices - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-5)


def test_pictures_carry_gradients_to_vertices_and_colours():
    vertices, faces = sphere(rings=6)
    vertices.requires_grad_()
    colors = torch.rand(1, vertices.shape[1], 3, generator=torch.Generator().manual_seed(7)).requires_grad_()
    views = render_views(as_body(vertices, faces), FOUR_VIEWS, 16, vertex_colors=colors, supersample=2)
    for picture, wanted in ((views.normals, [vertices]), (views.depths, [vertices]), (views.colors, [vertices, colors])):
        for gradient in torch.autograd.grad(picture.square().sum(), wanted, retain_graph=True):
            assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    (gradient,) = torch.autograd.grad(views.masks.sum(), vertices)
    assert (gradient == 0).all()  # outlines carry none


# --- directions ---------------------------------------------------------------------------------------------------------------------------


def test_vertex_normals_of_a_ball_point_outward():
    vertices, faces = sphere()
    vertices = torch.cat([vertices, 2 * vertices])
    outward = torch.nn.functional.normalize(vertices, dim=-1)
    poles = vertices[..., 1].abs() > vertices[..., 1].abs().amax(1, keepdim=True) - 1e-6
    assert ((vertex_normals(vertices, faces) * outward).sum(-1)[~poles] > 0.99).all()
    changed = faces.clone()
    assert torch.equal(vertex_normals(vertices, changed), vertex_normals(vertices, faces))
    changed[:] = changed.flip(1)  # in place: what is remembered about the faces must not be used again
    assert ((vertex_normals(vertices, changed) * outward).sum(-1)[~poles] < -0.99).all()


@pytest.mark.parametrize("rig", [SIX_VIEWS, MIRRORED_SIX], ids=["plain", "mirrored"])
def test_normals_are_in_the_front_views_frame_in_every_view(rig):
    vertices, faces = sphere()
    views = render_views(as_body(vertices, faces), rig, 34, framing=None)  # an even size: a centre exactly on the ball's seams would see nothing
    normals = views.normals[0] * 2 - 1
    torch.testing.assert_close(normals[:, :, 17, 17], rig.toward(), atol=0.06, rtol=0)  # the middle faces the viewer: z < 0 from behind
    image_right = torch.tensor([1, 1, 1, -1, -1, 1] if rig.mirrored else [1] * 6)[:, None] * rig.right()
    assert ((normals[:, :, 17, 27] * image_right).sum(1) > 0.6).all()  # right of the middle they lean to image-right
    assert (normals[:, NORMAL_Y, 6, 17] > 0.6).all() and (normals[:, NORMAL_Y, 27, 17] < -0.6).all()  # up above, down below
    covered = views.masks[0] > 0
    torch.testing.assert_close(normals.norm(dim=1)[covered], torch.ones(int(covered.sum())), atol=1e-5, rtol=0)


def wedge():
    "A box whose corner at the person's left, top and front sticks out: no symmetry at all."
    corners = torch.cartesian_prod(*[torch.tensor([-0.15, 0.15])] * 3)
    corners[7] = torch.tensor([0.4, 0.3, 0.22])  # +x (her left), +y, +z
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners[None], torch.tensor([face for a, b, c, d in sides for face in ((a, b, c), (a, c, d))])


# view: on which half of the picture the tip lies (columns: -1 left, +1 right), and whether it is on the near side
TIP = {0: (1, True), 45: (None, True), 90: (-1, True), 180: (-1, False), 270: (1, False), 315: (1, None)}


@pytest.mark.parametrize("rig", [SIX_VIEWS, MIRRORED_SIX], ids=["plain", "mirrored"])
def test_an_asymmetric_mesh_is_never_flipped(rig):
    vertices, faces = wedge()
    found = rasterize(vertices, faces, rig.resized(64))
    for view, (azimuth, (column, near)) in enumerate(TIP.items()):
        covered = found.pix_to_face[0, view] >= 0
        rows, columns = (covered.any(axis).nonzero().flatten().float() for axis in (1, 0))
        assert 31.5 - rows.min() > rows.max() - 31.5 + 5, "the tip is above the middle"
        if column is not None:
            side = -column if rig.mirrored and rig.mirrored[view] else column
            assert side * (columns.max() + columns.min() - 63) > 2, f"tip on the wrong side at azimuth {azimuth}"
        if near is not None:
            tip_seen = bool(((found.barycentric[0, view] > 0.9) & (faces[found.pix_to_face[0, view]] == 7)).any())
            assert tip_seen, f"the tip is on the outline and can always be seen; azimuth {azimuth}"
            top = found.depth[0, view][covered].max() if near else -found.depth[0, view][covered].min()
            assert top > 0.19, f"the tip must be on the {'near' if near else 'far'} side at azimuth {azimuth}"


def halves(mask):
    "Covered share of the image-left and the image-right half of the top quarter's rows of the silhouette."
    rows = mask.any(1).nonzero().flatten()
    top = mask[rows.min() : rows.min() + len(rows) // 4].float()
    middle = mask.shape[1] // 2
    return top[:, :middle].sum().item(), top[:, middle:].sum().item()


@pytest.mark.parametrize("rig", [SIX_VIEWS, MIRRORED_SIX], ids=["plain", "mirrored"])
def test_the_raised_left_arm_is_where_it_belongs(posed, rig):
    "Image-right from the front, image-left from the back, image-right again in a mirrored back view."
    framing = frame_by_diagonal(posed.vertices)
    pelvis = framing.apply(posed.joints)[:, :1] * torch.tensor([1.0, 0.0, 0.0])
    centred = as_body(framing.apply(posed.vertices) - pelvis, posed.faces)
    masks = render_views(centred, rig, 96, framing=None).masks[0] > 0.5
    for view, on_the_right in ((0, True), (3, bool(rig.mirrored))):
        left, right = halves(masks[view])
        assert (right > 1.4 * left) if on_the_right else (left > 1.4 * right), f"view {view}: {left} left, {right} right"
    assert torch.equal(masks[3] if rig.mirrored else masks[3].flip(-1), masks[0])


@pytest.mark.parametrize("rig", [SIX_VIEWS, MIRRORED_SIX], ids=["plain", "mirrored"])
def test_colours_show_the_right_part_in_the_right_place(posed, rig):
    "Hand and foot painted; where their colour appears must be where their joints project."
    labels = load_body().part_labels
    colors = torch.zeros(len(labels), 3)
    colors[(labels == 20) | (labels >= 25) & (labels < 40)] = torch.tensor([1.0, 0, 0])  # left hand
    colors[(labels == 8) | (labels == 11)] = torch.tensor([0, 1.0, 0])  # right foot
    views = render_views(posed, rig, 96, vertex_colors=colors, color_background=0.0)
    pixels = rig.resized(96).project(frame_by_diagonal(posed.vertices).apply(posed.joints[:, [20, 11]]))[0]
    centre = rig.resized(96).pixel_grid()
    found_any = 0
    for view in range(6):
        for channel in range(2):
            weight = (views.colors[0, view, channel] > 0.5).float()
            if weight.sum() >= 4:
                found_any += 1
                place = (centre * weight[..., None]).sum((0, 1)) / weight.sum()
                assert (place - pixels[view, channel]).norm() < 9, f"view {view}, channel {channel}: {place.tolist()} against {pixels[view, channel].tolist()}"
    assert found_any >= 10
    hand, foot = pixels[0]
    assert hand[0] > 52 and hand[1] < 30 and foot[0] < 48 and foot[1] > 48  # raised left hand image-right and high


def test_chest_faces_the_front_view_and_the_leg_points_at_it(posed):
    views = render_views(posed, SIX_VIEWS, 96)
    z = [(views.normals[0, view, NORMAL_Z] * 2 - 1)[views.masks[0, view] > 0].mean() for view in range(6)]
    assert z[0] > 0.4 and z[3] < -0.4 and abs(z[2]) < 0.3 and abs(z[4]) < 0.3
    x = [(views.normals[0, view, NORMAL_X] * 2 - 1)[views.masks[0, view] > 0].mean() for view in range(6)]
    assert x[2] > 0.4 and x[4] < -0.4  # azimuth 90 sees her left side
    columns = (views.masks[0, 2] > 0)[60:].any(0).nonzero().flatten()
    rest = (views.masks[0, 2] > 0)[20:40].any(0).nonzero().flatten()
    assert rest.min() - columns.min() > 8  # from her left side the lifted leg reaches to image-left


# --- pictures -----------------------------------------------------------------------------------------------------------------------------


def test_coverage_and_background_are_blended():
    "A half-plane whose edge cuts every pixel of one column at three quarters."
    edge = (8 + 0.75) / 16 - 0.5
    vertices = torch.tensor([[[-9.0, -9.0, 0.1], [edge, -9.0, 0.1], [edge, 9.0, 0.1], [-9.0, 9.0, 0.1]]])
    body = as_body(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    red = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    views = render_views(body, ViewRig((0,)), 16, vertex_colors=red, framing=None, supersample=4, normal_background=0.2, color_background=0.6)
    row = views.masks[0, 0, 5]
    assert torch.equal(row, torch.tensor([1.0] * 8 + [0.75] + [0.0] * 7))
    torch.testing.assert_close(views.colors[0, 0, :, 5, 8], 0.75 * torch.tensor([1.0, 0, 0]) + 0.25 * 0.6)
    torch.testing.assert_close(views.normals[0, 0, :, 5, 8], 0.75 * torch.tensor([0.5, 0.5, 1.0]) + 0.25 * 0.2)
    assert views.depths[0, 0, 5, 8].item() == pytest.approx(0.1) and views.depths[0, 0, 5, 9] == 0
    assert (views.colors[0, 0, :, 5, 9] == 0.6).all() and (views.normals[0, 0, :, 5, 9] == 0.2).all()


def test_supersampling_averages_the_larger_picture():
    vertices, faces = sphere()
    small = render_views(as_body(vertices, faces), MIRRORED_SIX, 16, supersample=3)
    large = render_views(as_body(vertices, faces), MIRRORED_SIX, 48)
    torch.testing.assert_close(small.masks, torch.nn.functional.avg_pool2d(large.masks, 3))
    torch.testing.assert_close(small.colors, torch.nn.functional.avg_pool2d(large.colors[0], 3)[None], atol=1e-5, rtol=0)


def test_vertex_colours_may_differ_per_body():
    vertices, faces = sphere(rings=6)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    one = red.expand(vertices.shape[1], 3)
    views = render_views(as_body(vertices.expand(2, -1, -1), faces), FOUR_VIEWS, 16, vertex_colors=torch.stack([one, blue.expand_as(one)]))
    torch.testing.assert_close(views.colors[0, :, :, 8, 8], red.expand(4, 3)), torch.testing.assert_close(views.colors[1, :, :, 8, 8], blue.expand(4, 3))
    shared = render_views(as_body(vertices.expand(2, -1, -1), faces), FOUR_VIEWS, 16, vertex_colors=one)
    assert torch.equal(shared.colors[0], shared.colors[1]) and torch.equal(shared.colors[0], views.colors[0])
    assert (render_views(as_body(vertices, faces), FOUR_VIEWS, 16).colors[0, :, :, 8, 8] - 0.8).abs().max() < 1e-6


def test_light_comes_from_above_and_is_the_same_in_all_views():
    vertices, faces = sphere()
    lit = render_views(as_body(vertices, faces), SIX_VIEWS, 34, shading=1.0, color_background=0.5, framing=None)
    high, middle, low = (lit.colors[0, :, 0, row, 17] for row in (5, 17, 28))
    assert (high > 1.3 * middle).all() and (middle > 1.3 * low).all()
    torch.testing.assert_close(middle, torch.full((6,), 0.4), atol=0.03, rtol=0)


def test_rendering_a_batch_equals_rendering_singles(posed):
    other = Pose.rest(1)
    other.axis_angles[0, 1, 0] = -0.8
    with torch.no_grad():
        vertices = torch.cat([posed.vertices, load_body()(other).vertices * 1.3 + 2.0, posed.vertices.flip(-1)])
    together = render_views(as_body(vertices, posed.faces), MIRRORED_SIX, 48, supersample=2)
    for body in range(3):
        alone = render_views(as_body(vertices[body : body + 1], posed.faces), MIRRORED_SIX, 48, supersample=2)
        for name in ("normals", "colors", "masks", "depths"):
            torch.testing.assert_close(getattr(together, name)[body], getattr(alone, name)[0], atol=1e-5, rtol=0)


def test_framing_is_the_diagonal_rule_by_default(posed):
    framing = frame_by_diagonal(posed.vertices)
    usual = render_views(posed, FOUR_VIEWS, 48)
    given = render_views(posed, FOUR_VIEWS, 48, framing=framing)
    none = render_views(as_body(framing.apply(posed.vertices), posed.faces), FOUR_VIEWS, 48, framing=None)
    assert torch.equal(usual.depths, given.depths) and torch.equal(usual.depths, none.depths)
    assert (usual.masks[..., 0, :] == 0).all() and (usual.masks[..., :, 0] == 0).all()


def test_outline_fits_the_projected_vertices(posed):
    rig = MIRRORED_SIX.resized(96)
    masks = render_views(posed, rig, 96).masks[0] > 0
    pixels = rig.project(frame_by_diagonal(posed.vertices).apply(posed.vertices))[0]
    for view in range(6):
        rows, columns = (masks[view].any(axis).nonzero().flatten() for axis in (1, 0))
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (found - torch.cat([pixels[view].amin(0), pixels[view].amax(0)])).abs().max() < 1.6  # thin fingertips may miss a centre


# --- skeleton maps ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rig", [SIX_VIEWS, MIRRORED_SIX], ids=["plain", "mirrored"])
def test_skeleton_map_peaks_lie_on_the_projected_joints(posed, rig):
    rig = rig.resized(48)
    joints = frame_by_diagonal(posed.vertices).apply(posed.joints[:, :23])
    maps = skeleton_maps(joints, rig)
    assert maps.shape == (1, 6, 23, 48, 48) and maps.min() >= 0 and maps.max() <= 1
    weight = maps / maps.sum((-2, -1), keepdim=True)
    place = torch.einsum("bvjhw,hwc->bvjc", weight, rig.pixel_grid())
    torch.testing.assert_close(place, rig.project(joints), atol=0.02, rtol=0)
    left_wrist, right_wrist = place[0, :, 20], place[0, :, 21]
    assert left_wrist[0, 0] > right_wrist[0, 0] + 5 and (left_wrist[:, 1] < right_wrist[:, 1] - 5).all()
    assert (left_wrist[3, 0] > right_wrist[3, 0]) == bool(rig.mirrored)
    if rig.mirrored:
        assert torch.equal(maps[:, 3], maps[:, 0])


def test_skeleton_maps_see_through_the_body_and_keep_their_height():
    rig = FOUR_VIEWS.resized(16)
    on_a_centre = torch.tensor([[[0.5 / 16, -0.5 / 16, z] for z in (-0.4, 0.0, 0.4)]])  # one behind the other, on the centre of pixel (8, 8)
    maps = skeleton_maps(on_a_centre, rig, sigma=2.0)
    assert (maps[0, 0, :, 8, 8] == 1).all() and torch.equal(maps[0, 0, 0], maps[0, 0, 1]) and torch.equal(maps[0, 0, 0], maps[0, 0, 2])
    assert maps[0, 0, 0, 8, 10].item() == pytest.approx(math.exp(-0.5)) == maps[0, 0, 0, 10, 8].item()  # one sigma away
    assert maps[0, 0, 0, 10, 10].item() == pytest.approx(math.exp(-1.0))
    assert skeleton_maps(on_a_centre + 100, rig).max() == 0


def test_skeleton_maps_have_gradients():
    joints = (torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda points: skeleton_maps(points, FOUR_VIEWS.with_mirrored((0, 0, 1, 1)).resized(6)), joints)


# --- bad input ----------------------------------------------------------------------------------------------------------------------------

TRIANGLE, FACE = torch.tensor([[[-0.3, -0.3, 0.0], [0.3, -0.3, 0.0], [0.0, 0.4, 0.0]]]), torch.tensor([[0, 1, 2]])
NAN = torch.cat([TRIANGLE, TRIANGLE * math.nan, TRIANGLE])
BAD = {
    "nan": (lambda: rasterize(NAN, FACE, FOUR_VIEWS), "NaN or infinite numbers in body 1"),
    "infinite": (lambda: render_views(as_body(TRIANGLE / 0, FACE), FOUR_VIEWS), "NaN or infinite"),
    "no batch": (lambda: rasterize(TRIANGLE[0], FACE, FOUR_VIEWS), "add a batch dimension"),
    "two coordinates": (lambda: rasterize(TRIANGLE[..., :2], FACE, FOUR_VIEWS), "vertices is"),
    "int32 faces": (lambda: rasterize(TRIANGLE, FACE.int(), FOUR_VIEWS), "int64 of shape"),
    "quads": (lambda: rasterize(TRIANGLE, torch.zeros(1, 4, dtype=torch.int64), FOUR_VIEWS), "int64 of shape"),
    "missing vertex": (lambda: rasterize(TRIANGLE, FACE + 1, FOUR_VIEWS), "faces names vertices 1 to 3"),
    "negative vertex": (lambda: rasterize(TRIANGLE, FACE - 1, FOUR_VIEWS), "faces names vertices -1"),
    "backend": (lambda: rasterize(TRIANGLE, FACE, FOUR_VIEWS, backend="opengl"), "backend is 'opengl'"),
    "framing": (lambda: render_views(as_body(TRIANGLE, FACE), FOUR_VIEWS, framing="photo"), "framing is 'photo'"),
    "framing of others": (lambda: render_views(as_body(TRIANGLE, FACE), FOUR_VIEWS, framing=frame_by_diagonal(TRIANGLE.expand(2, -1, -1))), "framing is for 2 bodies"),
    "image size": (lambda: render_views(as_body(TRIANGLE, FACE), FOUR_VIEWS, 0), "image_size is 0"),
    "supersample": (lambda: render_views(as_body(TRIANGLE, FACE), FOUR_VIEWS, 16, supersample=1.5), "supersample is 1.5"),
    "shading": (lambda: render_views(as_body(TRIANGLE, FACE), FOUR_VIEWS, 16, shading=2.0), "shading is 2.0"),
    "colours": (lambda: render_views(as_body(TRIANGLE, FACE), FOUR_VIEWS, 16, vertex_colors=torch.zeros(4, 3)), "vertex_colors has shape"),
    "joints": (lambda: skeleton_maps(torch.zeros(5, 3), FOUR_VIEWS), "joints is"),
    "sigma": (lambda: skeleton_maps(torch.zeros(1, 5, 3), FOUR_VIEWS, sigma=0.0), "sigma is 0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    call, expected = BAD[name]
    with pytest.raises(ValueError, match=expected) as refused:
        call()
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


# --- pytorch3d ----------------------------------------------------------------------------------------------------------------------------

HAS_PYTORCH3D = importlib.util.find_spec("pytorch3d") is not None


@pytest.mark.skipif(HAS_PYTORCH3D, reason="pytorch3d is installed here")
def test_a_missing_pytorch3d_gets_one_sentence():
    with pytest.raises(ImportError, match="pip install"):
        rasterize(TRIANGLE, FACE, FOUR_VIEWS, backend="pytorch3d")


def test_auto_is_torch_on_the_cpu(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("pytorch3d takes minutes on a CPU")

    monkeypatch.setattr("drpose.pictures.rendering.seen_by_pytorch3d", refuse)
    monkeypatch.setattr("drpose.pictures.rendering.has_pytorch3d", lambda: True)
    assert len(find_hits(TRIANGLE, FACE, FOUR_VIEWS.resized(8)).face) > 0


@pytest.mark.skipif(not HAS_PYTORCH3D, reason="pytorch3d is not installed: parity of the two backends is not tested here")
def test_pytorch3d_sees_the_same_faces(posed):
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, rig = (256, MIRRORED_SIX) if device == "cuda" else (48, ViewRig((0, 90, 180), mirrored=(0, 0, 1)))  # its CPU path is slow
    rig = rig.resized(size)
    vertices, faces = frame_by_diagonal(posed.vertices).apply(posed.vertices).to(device), posed.faces.to(device)
    ours, theirs = (rasterize(vertices, faces, rig, backend) for backend in ("torch", "pytorch3d"))
    covered = (ours.pix_to_face >= 0) | (theirs.pix_to_face >= 0)
    assert (ours.pix_to_face == theirs.pix_to_face)[covered].float().mean() >= 0.9999
    # its own weights, of the first view, after renormalising: it divides by area + 1e-8
    ndc = 1 - rig.project(vertices)[:, 0] * (2 / size)
    meshes = Meshes(verts=torch.cat([ndc, (2 - rig.depth(vertices)[:, 0])[..., None]], -1), faces=faces[None])
    packed, _, weights, _ = rasterize_meshes(meshes, size, blur_radius=0.0, faces_per_pixel=1, perspective_correct=False, max_faces_per_bin=len(faces))
    same = (packed[0, ..., 0] == ours.pix_to_face[0, 0]) & (packed[0, ..., 0] >= 0)
    weights = weights[0, ..., 0, :][same]
    difference = weights / weights.sum(-1, keepdim=True) - ours.barycentric[0, 0][same]
    assert difference.abs().quantile(0.99) < 1e-3 and difference.abs().max() < 0.05
