"""Pictures against their labels: faults are planted, and the gate that should notice does."""

import pytest
import torch

from drpose.ground.model_files import embedded_models
from drpose.multiview.pose_estimator import PoseEstimator
from drpose.pairs.animators import RenderAnimator, painted_poses
from drpose.pairs.gates import FAULTS, GATES, Detection, EstimatorDetector, calibrate_limits, check_faults, check_pairs, check_renders, edge_width, failed_gates, figure_mask, outline_scores, plant_fault, project_labels, reprojection_scores
from drpose.pairs.planning import plan_dataset
from drpose.people.bodies import load_body


@pytest.fixture(scope="module")
def body_model():
    return load_body()


def some(count, seed, body_model):
    drawn = plan_dataset(count, seed, "random", 0.25, body_model=body_model).drawn
    return drawn[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


def with_faults(drawn, animator, detector, batches):
    "Scores of pictures, one fault for each batch, and whether each is a fault at all."
    kept = [check_renders(drawn[start : start + size], animator, detector, fault) for start, size, fault in batches]
    return {name: torch.cat([scores[name] for scores, _ in kept]) for name in GATES}, torch.cat([real for _, real in kept])


@pytest.mark.parametrize(("size", "clean", "some_faults"), [(64, 200, 20), (256, 160, 10)])
def test_planted_faults_are_refused_by_the_gate_that_should(size, clean, some_faults, body_model):
    "200 faults (large pictures: 100), 20 to 40 (10 to 20) of a kind, all but those of a person painted from behind; as many clean pictures of the same people."
    animator, detector = RenderAnimator(body_model, size), EstimatorDetector(PoseEstimator.from_pretrained(embedded_models() / "pipeline" / "pose_estimator").float())
    limits = calibrate_limits(check_renders(some(clean, 11, body_model), animator, detector)[0])
    faults, starts = [fault for fault in FAULTS if fault != "turned"], range(0, 10 * some_faults, some_faults)
    drawn, batches = some(10 * some_faults, 12, body_model), [(start, some_faults, faults[number % len(faults)]) for number, start in enumerate(starts)]
    failed = failed_gates(check_renders(drawn, animator, detector)[0], limits)
    assert torch.stack(list(failed.values())).any(0).float().mean() <= 0.02, {name: int(which.sum()) for name, which in failed.items()}
    scores, real = with_faults(drawn, animator, detector, batches)
    failed = failed_gates(scores, limits)
    wanted = torch.cat([torch.stack([failed[gate][start : start + size] for gate in FAULTS[fault]]).any(0) for start, size, fault in batches])
    assert real.sum() > 7.5 * some_faults and wanted[real].float().mean() >= 0.95, [(fault, float(wanted[start : start + size].float().mean())) for start, size, fault in batches]
    scores, _ = check_renders(drawn[slice(2 * some_faults)], animator, detector, "turned")
    assert torch.stack([failed_gates(scores, limits)[gate] for gate in FAULTS["turned"]]).any(0).float().mean() >= 0.7


def test_faults_of_one_render_do_not_meet(body_model):
    "All faults of the same people at once, and each by itself, are measured the same to the bit; and each differs from the clean ones."
    animator, drawn = RenderAnimator(body_model, 32), some(23, 5, body_model)
    together = check_faults(drawn, animator, [None, *FAULTS], quality=80)
    assert list(together) == [None, *FAULTS]
    for fault, (scores, real) in together.items():
        alone, one = check_renders(drawn, animator, fault=fault, quality=80)
        assert torch.equal(real, one) and all(torch.equal(scores[name].nan_to_num(-1), alone[name].nan_to_num(-1)) for name in GATES)
        assert len(real) == 23 and (fault is None) == all(torch.equal(scores[name].nan_to_num(-1), together[None][0][name].nan_to_num(-1)) for name in GATES)


def test_left_and_right(body_model):
    "Whoever finds the labelled joints fits the label; whoever finds them exchanged fits the exchanged one; whoever finds few fits none."
    animator, drawn = RenderAnimator(body_model), some(12, 3, body_model)
    _, framing = animator.animate(drawn.poses, drawn.people)
    joints = project_labels(body_model, painted_poses(animator, drawn.poses, drawn.people), framing, 16).joints
    noise = 0.005 * torch.randn(joints[..., :2].shape, generator=torch.Generator().manual_seed(0))
    found = Detection(joints[..., :2] + noise, torch.full(joints.shape[:2], 0.005))
    right = reprojection_scores(found, joints)
    assert (right["swap"] < 0).all() and right["reprojection"].max() < 0.05
    partner = torch.arange(23)
    for left, other in ((1, 2), (4, 5), (7, 8), (16, 17), (18, 19), (20, 21)):
        partner[[left, other]] = partner[[other, left]]
    turned = reprojection_scores(Detection(found.joints[:, partner], found.error), joints)
    assert torch.allclose(turned["swap"], -right["swap"]) and (turned["swap"] > 0).all()
    found.joints[0, :18] = torch.nan
    assert reprojection_scores(found, joints)["reprojection"][0] == torch.inf and reprojection_scores(found, joints)["reprojection"][1:].isfinite().all()


def test_outlines():
    "Squares: half covered, a stranger beside, nobody, somebody cut off."
    body = torch.zeros(4, 40, 40, dtype=torch.bool)
    body[:, 10:30, 10:20] = True
    figure = body.clone()
    figure[0, 10:20] = False
    figure[1, 10:30, 30:35] = True
    figure[2] = False
    figure[3, 30:] = True
    scores = outline_scores(figure, body)
    assert scores["overlap"].tolist() == pytest.approx([0.5, 2 / 3, 0, 1 / 3]) and scores["uncovered"].tolist() == pytest.approx([0.5, 0, 1, 0])
    assert scores["second_figure"].tolist()[:3] == pytest.approx([0, 0.5, 0]) and scores["border"][3] > 0.2 and scores["border"][:3].sum() == 0
    images = torch.where(figure[:, None], 0.9, 0.2).expand(4, 3, 40, 40)
    assert torch.equal(figure_mask(images), figure), "whatever the ground's colour"


def test_blur_is_the_width_of_edges():
    "A step through a Gaussian of known width, in any colour and contrast."
    from drpose.pairs.gates import _blurred

    step = torch.ones(1, 3, 64, 64)
    step[..., 32:] = 0.4
    near = torch.ones(1, 64, 64)
    for sigma in (1.0, 2.0, 3.0):
        assert edge_width(_blurred(step, sigma), near).item() == pytest.approx(sigma, rel=0.15)
    assert edge_width(step, near) < 0.5 and edge_width(torch.ones_like(step), near) > 10


def test_what_is_not_asked_is_not_judged(body_model):
    animator, drawn = RenderAnimator(body_model, 32), some(3, 4, body_model)
    images, framing = animator.animate(drawn.poses, drawn.people)
    scores = check_pairs(images, painted_poses(animator, drawn.poses, drawn.people), framing, body_model)
    assert list(scores) == list(GATES) and all(scores[name].isnan().all() for name in ("reprojection", "swap", "identity")) and scores["overlap"].min() > 0.6
    limits = calibrate_limits(scores)
    assert set(limits) == set(GATES) - {"reprojection", "swap", "identity"}
    assert not torch.stack(list(failed_gates(scores, limits).values())).any()
    with pytest.raises(ValueError, match="'sharp', but the numbers are reprojection"):
        failed_gates(scores, {"sharp": 1.0})
    with pytest.raises(ValueError, match=r"needed square pictures \(3, 3, H, H\)"):
        check_pairs(images[:2], drawn.poses, framing, body_model)
    with pytest.raises(ValueError, match="unknown fault 'ghost'"):
        plant_fault("ghost", images, drawn, animator)
