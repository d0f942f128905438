"""A body from its joints: hard poses, any direction, few joints, wrong ones; refined by views; and what it refuses."""

from dataclasses import replace

import pytest
import torch

from drpose.mesh import body_fit
from drpose.mesh.body_fit import FAR, SIZES, BodyFit, first_guess, fit_joints, fit_views, refine_fit
from drpose.mesh.soft_rendering import SoftViews, soft_views
from drpose.people.bodies import SMPLX_JOINT_NAMES, Body, BodyModel, Pose, axis_angle_to_matrix, load_body, matrix_to_axis_angle
from drpose.people.pose_sets import draw_set
from drpose.people.pose_space import limit_violation
from drpose.pictures.cameras import FOUR_VIEWS, Framing, frame_by_diagonal


@pytest.fixture(scope="module")
def body_model() -> BodyModel:
    return load_body()


@pytest.fixture(scope="module")
def true(body_model) -> Body:
    return body_model(draw_set("hard_test", 50, 3, body_model).poses)


def surface_error(fit: BodyFit, goal: torch.Tensor, body_model: BodyModel) -> torch.Tensor:  # (B,) in the units of the joints
    return (fit.framing.apply(body_model(fit.pose).vertices) - goal).norm(dim=-1).mean(1)


@pytest.mark.parametrize("units", ["metres", "frame"])
def test_fifty_hard_poses_from_exact_and_from_noisy_joints(true, body_model, units):
    "3 cm and 5 cm of vertex error are the limits that the project set itself."
    framing = frame_by_diagonal(true.vertices) if units == "frame" else Framing(torch.zeros(50, 3), torch.ones(50))
    noise = 0.02 * torch.randn(50, 23, 3, generator=torch.Generator().manual_seed(0))
    for offset, limit in ((0 * noise, 0.03), (noise, 0.05)):
        fit = fit_joints(framing.apply(true.joints[:, :23] + offset), body_model, units=units)
        assert (surface_error(fit, framing.apply(true.vertices), body_model) / framing.scale).mean() < limit
        assert fit.residuals.shape == (50, 23) and limit_violation(fit.pose.axis_angles).max() < 0.1
    assert (fit.noise.mean() - 0.02).abs() < 0.004


def test_turning_a_person_turns_the_fit(true, body_model):
    "Upright, lying, upside down, seen from behind: the first guess sees the trunk, so the direction makes no difference."
    joints = true.joints[:1, :23]
    turns = axis_angle_to_matrix(torch.tensor([[0.0, 0, 0], [1.57, 0, 0], [3.14, 0, 0], [0, 3.14159265, 0], [0, 0, 2.0]]))
    fit = fit_joints(joints @ turns.mT, body_model)
    found = body_model(fit.pose).vertices @ turns
    assert (found - found[:1]).norm(dim=-1).max() < 0.01


def test_a_body_does_not_depend_on_its_neighbours(true, body_model):
    joints = true.joints[:4, :23]
    together, alone = fit_joints(joints, body_model), fit_joints(joints[2:3], body_model)
    assert (body_model.joints(together.pose)[2] - body_model.joints(alone.pose)[0]).abs().max() < 1e-3


def test_the_first_guess_bends_elbows_and_knees_the_right_way(body_model):
    pose = Pose.rest(1)
    for name, axis, angle in (("left_elbow", 1, -1.2), ("right_elbow", 1, 1.2), ("left_knee", 0, 1.2), ("right_knee", 0, 1.2)):
        pose.axis_angles[0, SMPLX_JOINT_NAMES.index(name), axis] = angle
    joints = body_model.joints(pose)[:, :23]
    guess = first_guess(joints, torch.ones(1, 23, dtype=torch.bool), body_model)
    assert (body_model.joints(guess)[:, :23] - joints).norm(dim=-1).max() < 0.03
    assert limit_violation(guess.axis_angles).max() < 0.1


def test_unknown_joints_and_confidence_zero_are_the_same(true, body_model):
    joints, confidences = true.joints[:3, :23].clone(), torch.ones(3, 23)
    confidences[:, [15, 20, 22]] = 0
    wild = torch.where(confidences[..., None] > 0, joints, joints + 5)
    unknown = torch.where(confidences[..., None] > 0, joints, torch.nan)
    one, other = fit_joints(wild, body_model, confidences), fit_joints(unknown, body_model)
    assert torch.equal(one.pose.axis_angles, other.pose.axis_angles)
    assert torch.equal(one.residuals.isnan(), confidences == 0) and "of 20 joints" in one.report()


def test_one_wrong_joint_spoils_little_and_is_reported(true, body_model):
    joints = true.joints[:8, :23].clone()
    joints[:, 20, 1] += 0.5
    fit = fit_joints(joints, body_model)
    others = [joint for joint in range(23) if joint not in (18, 20)]
    assert (body_model.joints(fit.pose)[:, others] - joints[:, others]).norm(dim=-1).mean() < 0.02
    assert fit.report().count("left_wrist") >= 6 and (fit.residuals[:, 20] > FAR).float().mean() >= 0.5


def test_the_frame_tells_no_size(true, body_model):
    "The same person twice as large in the picture is the same body in another scale."
    joints = frame_by_diagonal(true.vertices).apply(true.joints[:, :23])[:2]
    small, large = (fit_joints(size * joints, body_model, units="frame") for size in (0.5, 1.0))
    assert torch.allclose(large.framing.scale, 2 * small.framing.scale, rtol=1e-3)
    assert torch.allclose(large.pose.betas, small.pose.betas, atol=0.02)


@pytest.fixture(scope="module")
def seen(true, body_model):
    rig, vertices = FOUR_VIEWS.resized(48), frame_by_diagonal(true.vertices).apply(true.vertices)[:1]
    with torch.no_grad():
        return rig, vertices, soft_views(vertices, true.faces, rig)


def test_views_mend_what_noisy_joints_left(true, body_model, seen):
    rig, vertices, views = seen
    framing = frame_by_diagonal(true.vertices)[:1]
    noise = 0.02 * torch.randn(1, 23, 3, generator=torch.Generator().manual_seed(0))
    before = fit_joints(framing.apply(true.joints[:1, :23] + noise), body_model, units="frame")
    after = refine_fit(before, views, rig, body_model)
    assert surface_error(after, vertices, body_model) < 0.8 * surface_error(before, vertices, body_model)


def test_matching_reaches_limbs_that_lie_beside_their_pictures(true, body_model, seen, monkeypatch):
    "Joints with 5 cm of noise: limbs beside the pictures of themselves, which pixel by pixel say nothing."
    rig, vertices, views = seen
    framing = frame_by_diagonal(true.vertices)[:1]
    noise = 0.05 * torch.randn(1, 23, 3, generator=torch.Generator().manual_seed(0))
    fit = fit_joints(framing.apply(true.joints[:1, :23] + noise), body_model, units="frame")
    matched = surface_error(refine_fit(fit, views, rig, body_model), vertices, body_model)
    monkeypatch.setattr(body_fit, "MATCH_WEIGHT", 0.0)
    assert matched < 0.85 * surface_error(refine_fit(fit, views, rig, body_model), vertices, body_model)


def test_a_fit_that_views_would_spoil_is_left_as_it_was(true, body_model, seen, monkeypatch):
    "Views of a person who stands elsewhere, and far too heavy, pull the joints off by more than their noise."
    rig, vertices, _ = seen
    monkeypatch.setattr(body_fit, "VIEW_WEIGHT", 1e8)
    monkeypatch.setattr(body_fit, "VIEW_STEPS", 15)
    before = fit_joints(frame_by_diagonal(true.vertices)[:1].apply(true.joints[:1, :23]), body_model, units="frame")
    with torch.no_grad():
        elsewhere = soft_views(vertices + torch.tensor([0.08, 0.0, 0.0]), true.faces, rig)
    after = refine_fit(before, elsewhere, rig, body_model)
    assert torch.equal(after.pose.axis_angles, before.pose.axis_angles) and torch.equal(after.residuals, before.residuals)


def test_views_bring_back_a_pose_that_is_off_at_every_joint(true, body_model, seen):
    "15 degrees each, and the body is placed by its views alone, wherever the frame's origin is in metres."
    rig, vertices, views = seen
    pose = draw_set("hard_test", 50, 3, body_model).poses[:1]
    turn = torch.nn.functional.normalize(torch.randn(1, 22, 3, generator=torch.Generator().manual_seed(1)), dim=-1) * 0.26
    rotations = axis_angle_to_matrix(pose.axis_angles)
    rotations[:, :22] = rotations[:, :22] @ axis_angle_to_matrix(turn)
    rough = Pose(matrix_to_axis_angle(rotations), pose.betas, pose.transl)
    framing = frame_by_diagonal(true.vertices)[:1]
    fit = fit_views(rough, framing, views, rig, body_model)
    before = (framing.apply(body_model(rough).vertices) - vertices).norm(dim=-1).mean()
    assert surface_error(fit, vertices, body_model) < 0.2 * before and before > 0.03, "of the frame"
    assert fit.units == "frame" and bool(fit.joints.isnan().all()) and fit.report() == "body 0: no joints were given"


@pytest.mark.parametrize("second", [0.1, 0.3])
def test_each_body_keeps_the_better_of_two_rounds(true, body_model, seen, monkeypatch, second):
    "A round of matching may free an arm and may lose another; the views say which, body by body."
    rig, _, views = seen
    starts = []

    def round_of_matching(fit, views, rig, body_model, steps):
        starts.append(fit.pose.axis_angles)
        moved = replace(fit.pose, axis_angles=fit.pose.axis_angles + 1)
        return replace(fit, pose=moved), torch.ones(1), torch.tensor([0.2] if len(starts) == 1 else [second])

    monkeypatch.setattr(body_fit, "_toward_views", round_of_matching)
    fit = fit_views(Pose.rest(1), frame_by_diagonal(true.vertices)[:1], views, rig, body_model)
    assert torch.equal(starts[1], starts[0] + 1), "the second round goes on from the first"
    assert torch.equal(fit.pose.axis_angles, starts[0] + (2 if second < 0.2 else 1))


def bad_joints(joints: torch.Tensor) -> dict:
    unknown = torch.full_like(joints, torch.nan)
    midline, infinite = unknown.clone(), joints.clone()
    midline[:, [0, 3, 6, 9, 12, 15, 20, 21]], infinite[0, 3] = joints[:, [0, 3, 6, 9, 12, 15, 20, 21]], torch.inf
    return {
        "count": (dict(joints=joints[:, :17]), r"\(1, 17, 3\).*\(B, 23, 3\)"), "kind": (dict(joints=joints.tolist()), "list"), "integers": (dict(joints=joints.long()), "floating point"),
        "all unknown": (dict(joints=unknown), "found 0 known joints"), "one line": (dict(joints=midline), "8 known joints, 5 of them in the trunk"), "infinite": (dict(joints=infinite), "infinite"),
        "millimetres": (dict(joints=1000 * joints), r"person 1\.\d+e\+03 tall, needed metres"), "a doll": (dict(joints=0.1 * joints), "needed metres"), "frame": (dict(joints=10 * joints, units="frame"), "units of the frame"),
        "units": (dict(joints=joints, units="mm"), "'mm', needed 'metres' or 'frame'"), "confidences": (dict(joints=joints, confidences=torch.ones(1, 22)), r"\(1, 22\)"),
        "negative confidences": (dict(joints=joints, confidences=-torch.ones(1, 23)), "at least 0"),
    }  # fmt: skip


@pytest.mark.parametrize("case", ["count", "kind", "integers", "all unknown", "one line", "infinite", "millimetres", "a doll", "frame", "units", "confidences", "negative confidences"])
def test_impossible_joints_are_refused_in_one_sentence(true, body_model, case):
    arguments, message = bad_joints(true.joints[:1, :23])[case]
    with pytest.raises(ValueError, match=message) as refusal:
        fit_joints(body_model=body_model, **arguments)
    assert "\n" not in str(refusal.value) and set(SIZES) == {"metres", "frame"}


@pytest.mark.parametrize("change, message", [
    (lambda views: SoftViews(views.normals, torch.zeros_like(views.masks)), "nobody in view 0 of body 0"),
    (lambda views: SoftViews(views.normals, views.masks * torch.tensor([1.0, 1, 0, 1])[:, None, None]), "nobody in view 2"),
    (lambda views: SoftViews(views.normals * torch.nan, views.masks), "normals: found NaN"),
    (lambda views: SoftViews(views.normals[:, :3], views.masks[:, :3]), "4 views"),
    (lambda views: SoftViews(views.normals, views.masks[..., :40]), "masks: found shape"),
])  # fmt: skip
def test_views_that_cannot_be_compared_are_refused(true, body_model, seen, change, message):
    rig, _, views = seen
    joints = true.joints[:1, :23]
    fit = BodyFit(Pose.rest(1), Framing(torch.zeros(1, 3), torch.ones(1)), joints, torch.ones(1, 23), torch.zeros(1, 23), torch.ones(1), "frame")
    for refused in (lambda: refine_fit(fit, change(views), rig, body_model), lambda: fit_views(fit.pose, fit.framing, change(views), rig, body_model)):
        with pytest.raises(ValueError, match=message):
            refused()
