"""What a pose-conditioned model is shown: the right points in the right places, left on the left, hidden where a detector would not find them."""

import math

import pytest
import torch

from drpose.pairs.control_drawing import CONTROLS, draw_control
from drpose.people.bodies import Body, Pose, axis_angle_to_matrix, load_body
from drpose.people.clips import embedded_clips
from drpose.pictures.cameras import ViewRig, frame_by_diagonal
from drpose.pictures.rendering import rasterize

SIZE = 256
SKELETONS = [kind for kind in CONTROLS if kind.startswith("openpose")]


@pytest.fixture(scope="module")
def bodies():
    "A walker, a cartwheel and a walker seen from behind."
    clips = embedded_clips()
    walk = clips["walk"].poses[20:21]
    return load_body()(Pose.cat([walk, clips["cartwheel"].poses[25:26], walk.rotated(axis_angle_to_matrix(torch.tensor([[0.0, math.pi, 0.0]])))]))


def pixels(bodies, joints):
    return ViewRig((0.0,), image_size=SIZE).project(frame_by_diagonal(bodies.vertices).apply(bodies.joints[:, joints]))[:, 0].long()


@pytest.mark.parametrize("kind", CONTROLS)
def test_every_kind_is_a_picture_on_black(kind, bodies):
    drawn = draw_control(kind, bodies, frame_by_diagonal(bodies.vertices), SIZE)
    assert drawn.shape == (3, 3, SIZE, SIZE) and drawn.dtype == torch.float32 and 0 <= drawn.min() and drawn.max() <= 1
    assert (drawn[..., 0, 0] == 0).all() and (drawn.amax((1, 2, 3)) > 0.5).all()


@pytest.mark.parametrize("kind", SKELETONS)
def test_joints_have_their_own_colours(kind, bodies):
    "Right wrist, left wrist, right ankle, left ankle: 4, 7, 10 and 13 steps of 20 degrees around the hue circle."
    drawn, places = draw_control(kind, bodies, frame_by_diagonal(bodies.vertices), SIZE), pixels(bodies, [21, 20, 8, 7])
    wanted = torch.tensor([[170, 255, 0], [0, 255, 85], [0, 170, 255], [85, 0, 255]]) / 255
    for body in range(3):
        for (column, row), color in zip(places[body].tolist(), wanted):
            near = drawn[body, :, row - 1 : row + 2, column - 1 : column + 2].flatten(1).T
            assert (near - color).abs().amax(1).min() < 0.01, (kind, body)


def test_width_hands_toes_and_dots_are_each_models_own(bodies):
    framing = frame_by_diagonal(bodies.vertices)
    drawn = {kind: draw_control(kind, bodies, framing, 512) for kind in SKELETONS}
    inked = {kind: int((images[0].amax(0) > 0).sum()) for kind, images in drawn.items()}
    assert inked["openpose"] > 1.5 * inked["openpose-vace"] > 1.5 * inked["openpose-animate"]
    white = {kind: (images == 1).all(1).flatten(1).sum(1) for kind, images in drawn.items()}
    assert white["openpose-vace"][0] > 50 and white["openpose-vace"][2] == 0 and not white["openpose"].any() and not white["openpose-animate"].any()
    for kind, images in drawn.items():  # the finger tips, and beyond the ankles
        for joint in (68, 60):
            column, row = (pixels(bodies, [joint])[0, 0] * 2).tolist()
            assert bool(images[0, :, row - 3 : row + 4, column - 3 : column + 4].any()) == (kind == "openpose-animate"), (kind, joint)


def test_a_face_that_looks_away_is_not_drawn(bodies):
    "Nose, eyes; ears; in the colours of their discs."
    drawn, places = draw_control("openpose", bodies, frame_by_diagonal(bodies.vertices), SIZE), pixels(bodies, [55, 56, 58])
    colors = torch.tensor([[255, 0, 0], [170, 0, 255], [255, 0, 170]]) / 255
    found = [[bool(((drawn[body, :, row - 3 : row + 4, column - 3 : column + 4].flatten(1).T - color).abs().amax(1) < 0.01).any()) for (column, row), color in zip(places[body].tolist(), colors)] for body in (0, 2)]
    assert found == [[True, True, True], [False, False, True]]


def test_mask_and_depth_are_exact(bodies):
    framing = frame_by_diagonal(bodies.vertices)
    seen = rasterize(framing.apply(bodies.vertices), bodies.faces, ViewRig((0.0,), image_size=SIZE))
    covered = seen.pix_to_face[:, 0] >= 0
    mask, depth = (draw_control(kind, bodies, framing, SIZE) for kind in ("mask", "depth"))
    assert torch.equal(mask, covered[:, None].expand_as(mask).float()) and torch.equal(depth[:, 0] > 0, covered)
    shown, true = depth[:, 0][covered], seen.depth[:, 0][covered]
    assert torch.corrcoef(torch.stack([shown, true]))[0, 1] > 0.9999 and shown.min() >= 0.199


def test_the_nearer_cylinder_hides_the_other():
    "Arms crossed in depth: where they meet in the picture the nearer one's colour is seen."
    body = load_body()(Pose.rest(2))
    joints, framing = body.joints.clone(), frame_by_diagonal(body.vertices)
    middle = joints[:, 15]
    for batch, near in enumerate((0.3, -0.3)):  # the body's right forearm before, then behind the left one
        joints[batch, [19, 21]] = middle[batch] + torch.tensor([[-0.3, 0.3, near], [0.3, 0.3, near]])
        joints[batch, [18, 20]] = middle[batch] + torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.5, 0.0]])
    drawn = draw_control("cylinders", Body(body.vertices, joints, body.faces), framing, SIZE)
    column, row = ViewRig((0.0,), image_size=SIZE).project(framing.apply(middle[:, None] + torch.tensor([0.0, 0.3, 0.0])))[0, 0, 0].long().tolist()
    (first_red, _, first_blue), (second_red, _, second_blue) = drawn[:, :, row, column + 1].tolist()
    assert first_red > first_blue and second_blue > second_red


def test_channels_trade_places(bodies):
    framing = frame_by_diagonal(bodies.vertices)
    assert torch.equal(draw_control("openpose-vace", bodies, framing, 64, "bgr"), draw_control("openpose-vace", bodies, framing, 64).flip(1))


def test_what_cannot_be_drawn_is_refused_in_one_sentence(bodies):
    framing = frame_by_diagonal(bodies.vertices)
    with pytest.raises(ValueError, match="control 'openpoze' in 'rgb': there are openpose, "):
        draw_control("openpoze", bodies, framing, 64)
    with pytest.raises(ValueError, match="in 'rbg'"):
        draw_control("mesh", bodies, framing, 64, "rbg")
    with pytest.raises(ValueError, match="found 55 joints of 3 bodies and 3 framings, needed 127"):
        draw_control("mesh", Body(bodies.vertices, bodies.joints[:, :55], bodies.faces), framing, 64)
    with pytest.raises(ValueError, match="3 bodies and 1 framings"):
        draw_control("mesh", bodies, framing[0], 64)
