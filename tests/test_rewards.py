"""Rewards beside the paper's: each is zero on the truth, rises with the error, and a recipe is the sum of its terms."""

import pytest
import tiny_parts
import torch

from drpose.people.bodies import Pose, load_body
from drpose.pictures.cameras import TINY_RIG, ViewRig, frame_by_diagonal
from drpose.pictures.rendering import skeleton_maps
from drpose.reward.skeleton_predictor import PoseScore, map_distance
from drpose.reward.rewards import (TERMS, ForegroundMap, PerceptualDistance, Reading, RewardSum, read_recipe,
                                   transport_distance)
from drpose.posttraining.post_training import body_masks

RIG = TINY_RIG.resized(16)


@pytest.fixture(scope="module")
def joints():
    body_model = load_body()
    body = body_model(Pose.rest())
    return frame_by_diagonal(body.vertices).apply(body.joints[:, :23])


def reading(read, truth, **more):
    "What the terms see if the skeleton predictor is perfect and `read` is what was drawn."
    logits = (skeleton_maps(read, RIG, 1.0) + 1e-9).log()
    return Reading(torch.zeros(len(read), 2, 4, 4, 16, 16), logits, truth, RIG, 1.0, **more)


def test_transport_is_the_mean_cost_of_moving_the_map():
    "Against a plain sum over cells, for a map that is not square-symmetric."
    logits = torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = torch.rand(1, 2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 8
    found = transport_distance(logits, points)
    for view in range(2):
        total = 0.0
        for joint in range(3):
            share = logits[0, view, joint].exp() / logits[0, view, joint].exp().sum()
            x, y = (points[0, view, joint] / 8).tolist()
            for row in range(8):
                for column in range(8):
                    distance = ((column + 0.5) / 8 - x) ** 2 + ((row + 0.5) / 8 - y) ** 2
                    total += share[row, column].item() * distance / (distance + (3 / 16) ** 2) / 3
        assert abs(found[0, view].item() - total) < 1e-12


def test_a_smear_between_two_places_earns_under_cross_entropy_only():
    rig = ViewRig((0.0,), image_size=16)
    ends = torch.zeros(2, 23, 3)
    ends[0, :, 0], ends[1, :, 0] = -0.2, 0.2
    sharp, points = skeleton_maps(ends, rig, 1.0), rig.project(ends)
    smear = sharp.mean(0, keepdim=True).expand_as(sharp)
    def charged(maps):
        return map_distance(torch.logit(maps.clamp(1e-4, 1 - 1e-4)), sharp).mean(), transport_distance((maps + 1e-12).log(), points).mean()
    right, wrong, between = charged(sharp), charged(sharp.flip(0)), charged(smear)
    assert between[0] < 0.3 * (right[0] + wrong[0]) / 2
    assert abs(between[1] / ((right[1] + wrong[1]) / 2) - 1) < 1e-4


@pytest.mark.parametrize("term", ["bce", "spatial", "multiscale", "transport", "joints3d", "bones"])
def test_each_term_is_least_on_the_truth_and_pulls_towards_it(term, joints):
    "A raised arm costs more than none; going down the gradient of the distance brings the hand nearer."
    arm = [16, 18, 20]  # left shoulder, elbow, wrist
    shift = torch.tensor([0.0, 0.06, 0.0], requires_grad=True)
    moved = joints.clone()
    moved = torch.stack([moved[0, j] + shift * (j in arm) for j in range(23)])[None]
    distance = TERMS[term](reading(moved, joints))
    assert distance.shape == (1, 4) and (distance.mean() > TERMS[term](reading(joints, joints)).mean() + 1e-5)
    distance.mean().backward()
    assert shift.grad[1] > 0


def test_triangulated_joints_see_depth_that_no_single_view_sees(joints):
    "A hand moved towards the front camera changes nothing in the front view; joints3d charges it as much as the same move sideways."
    ahead, aside = joints.clone(), joints.clone()
    ahead[:, 20, 2] += 0.1
    aside[:, 20, 0] += 0.1
    found = [TERMS["joints3d"](reading(moved, joints)).mean() for moved in (ahead, aside)]
    assert found[0] > 1e-4 and abs(found[0] / found[1] - 1) < 0.1
    front = [TERMS["transport"](reading(moved, joints))[0, 0] for moved in (joints, ahead, aside)]
    assert abs(front[1] - front[0]) < 1e-6 < front[2] - front[0]


def test_bones_do_not_mind_where_the_figure_stands(joints):
    moved = TERMS["bones"](reading(joints + torch.tensor([0.05, 0.05, 0.0]), joints)).mean()
    mirrored = TERMS["bones"](reading(joints * torch.tensor([-1.0, 1.0, 1.0]), joints)).mean()
    assert moved < 0.02 < 0.3 < mirrored


def test_recipe():
    assert read_recipe("transport + 0.5 joints3d") == {"transport": 1.0, "joints3d": 0.5}
    assert read_recipe("2e-1 * maps+bones") == {"maps": 0.2, "bones": 1.0}


@pytest.mark.parametrize("recipe", ["", "blur", "maps +", "maps + maps", "-1 maps", "0 maps", "1..2 maps", "maps joints3d"])
def test_bad_recipes_are_refused_in_one_sentence(recipe):
    with pytest.raises(ValueError, match="reward is") as caught:
        read_recipe(recipe)
    assert "\n" not in str(caught.value)


def test_maps_is_the_papers_score(joints):
    latents = torch.randn(2, 2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, paper = (score(latents, joints.expand(2, -1, -1), RIG) for score in (RewardSum(tiny_parts.predictor()), PoseScore(tiny_parts.predictor())))
    torch.testing.assert_close(ours, paper)


def test_a_sum_is_the_sum_per_sample_and_view(joints):
    latents, pose = torch.randn(2, 2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), joints.expand(2, -1, -1)
    whole = RewardSum(tiny_parts.predictor(), "maps + 0.25 bones + 2 transport")
    parts = [weight * RewardSum(tiny_parts.predictor(), term).per_view(latents, pose, RIG) for term, weight in (("maps", 1), ("bones", 0.25), ("transport", 2))]
    torch.testing.assert_close(whole.per_view(latents, pose, RIG), sum(parts))
    torch.testing.assert_close(whole(latents, pose, RIG), whole.per_view(latents, pose, RIG).mean(1))
    assert whole(latents, pose, RIG).shape == (2,)


def test_worst_nearby_is_the_radius_away_and_worse(joints):
    latents, pose = torch.randn(2, 2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), joints.expand(2, -1, -1)
    score = RewardSum(tiny_parts.predictor(), "transport", radius=0.01)
    step = score.worst_nearby(latents, pose, RIG) - latents
    torch.testing.assert_close(step.flatten(1).square().mean(1).sqrt(), torch.full((2,), 0.01))
    assert (score(latents, pose, RIG) < RewardSum(score.predictor, "transport")(latents, pose, RIG)).all()
    with torch.no_grad():  # also where nothing else has a gradient
        score(latents, pose, RIG)


def test_silhouette_is_the_soft_overlap(joints):
    masks = torch.zeros(1, 4, 16, 16)
    masks[..., 4:12, 4:12] = 1.0
    right = TERMS["silhouette"](reading(joints, joints, masks=masks, foreground=masks))
    half = TERMS["silhouette"](reading(joints, joints, masks=masks, foreground=masks * (torch.arange(16) < 8)))
    torch.testing.assert_close(right, torch.zeros(1, 4))
    torch.testing.assert_close(half, torch.full((1, 4), 0.5))
    soft = masks * 0.3  # soft edges: the truth must not be charged for being itself
    torch.testing.assert_close(TERMS["silhouette"](reading(joints, joints, masks=soft, foreground=soft)), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="true masks"):
        TERMS["silhouette"](reading(joints, joints))


def test_figure_is_read_cell_by_cell():
    "Where one channel tells body from background, the fitted question finds it, and a cell's answer does not depend on its neighbours."
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 2, 4, 4, 8, 8, generator=generator)
    masks = (latents[:, 1, :, 2] > 0.3).float()
    figure = ForegroundMap.fit(latents, masks)
    assert ((figure(latents) > 0.5) == (masks > 0.5)).float().mean() > 0.99
    other = latents.clone()
    other[..., 3, 3] = 9.0
    changed = figure(other) != figure(latents)
    assert not changed[..., :3, :].any() and not changed[..., 4:].any()
    with pytest.raises(ValueError, match="masks have shape"):
        ForegroundMap.fit(latents, masks[:, :1])


def test_body_masks_stand_where_the_body_stands():
    body_model = load_body()
    pose = Pose.rest()
    body = body_model(pose)
    framing = frame_by_diagonal(body.vertices)
    masks = body_masks(pose, framing, body_model, ViewRig((0.0, 90.0), image_size=64), 16)
    assert masks.shape == (1, 2, 16, 16) and masks.max() == 1 and masks.min() == 0
    wide, narrow = (masks[0, view].amax(0) > 0.5 for view in range(2))
    assert wide.sum() > narrow.sum() > 0  # arms reach out in the front view
    inside = ViewRig((0.0,), image_size=16).project(framing.apply(body.joints[:, :1]))[0, 0, 0].long()
    assert masks[0, 0, inside[1], inside[0]] > 0.9


def test_perceptual_distance_from_a_file(tmp_path, joints):
    distance = PerceptualDistance(tiny_parts.vgg_file(tmp_path / "vgg16.safetensors"))
    maps = skeleton_maps(torch.cat([joints, joints + 0.1]), RIG.resized(32), 2.0)
    same, other = distance(maps, maps), distance(maps, maps.flip(0))
    assert same.shape == (2, 4) and same.abs().max() < 1e-6 and (other > 1e-3).all()
    score = RewardSum(tiny_parts.predictor(), "maps + 0.1 perceptual", perceptual=distance)
    assert score(torch.randn(1, 2, 4, 4, 16, 16), joints, RIG).shape == (1,)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"features.5.weight": None}, "features.5.weight is missing"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, "needed \\(64, 3, 3, 3\\)"),
        ({"features.14.bias": None}, "features.14.weight"),
    ],
)
def test_bad_perceptual_files(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        PerceptualDistance(tiny_parts.vgg_file(tmp_path / "vgg16.safetensors", **changes))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        PerceptualDistance(tmp_path / "none.safetensors")


def test_recipes_that_lack_a_part_are_refused():
    for recipe, sentence in (("silhouette", "needs foreground="), ("maps + perceptual", "needs perceptual=")):
        with pytest.raises(ValueError, match=sentence):
            RewardSum(tiny_parts.predictor(), recipe)
