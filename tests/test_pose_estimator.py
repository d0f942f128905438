"""Joints from a photo (drpose.multiview.pose_estimator), and telling them to the multi-view model."""

import math

import pytest
import tiny_parts
import torch
from diffusers import AutoencoderKL

from drpose.ground.model_files import embedded_models, load_model
from drpose.ground.trainer import RunDirectory
from drpose.people.bodies import SKELETON_JOINTS, SMPLX_JOINT_NAMES, load_body
from drpose.people.pose_sets import draw_set
from drpose.pictures.cameras import TINY_RIG
from drpose.pictures.rendering import skeleton_maps
from drpose.multiview.unet import HandOver, MultiViewUNet, add_skeleton_input, load_lora, save_lora
from drpose.multiview.pose_estimator import Estimate, PoseEstimator, laplace_loss, mirror, turn, vary
from drpose.multiview.pipeline import (Condition, MultiViewPipeline, PromptTable, default_scheduler, predict,
                                       skeleton_input, tiny_prompt_embeds)
from drpose.multiview.latents import LatentSet
from drpose.multiview.base_training import (BaseConfig, BaseLoss, EstimatorConfig, base_error, tiny_unet, train_base,
                                            train_pose_estimator)
from drpose.pairs.planning import plan_dataset
from drpose.pairs.dataset import PosePairs, build_dataset
from drpose.evaluation.benchmarks import generate_latents, load_benchmark, with_estimates
from drpose.posttraining.post_training import PairConditions, TrainingSamples, condition_pairs, posttrain, prepare_weights

NAMES = [SMPLX_JOINT_NAMES[number] for number in SKELETON_JOINTS]


def listening(unet: MultiViewUNet) -> MultiViewUNet:
    "A network with a skeleton input that it does not ignore."
    given = add_skeleton_input(unet)
    torch.nn.init.normal_(given.conv_skeleton.weight, std=0.3, generator=torch.Generator().manual_seed(5))
    return given.eval()


def small_estimator(seed: int = 0) -> PoseEstimator:
    torch.manual_seed(seed)
    return PoseEstimator(64, (8, 16, 16, 16), 1).eval()


# --- the estimator itself ---------------------------------------------------------------------------------------------------------------


def test_a_mirrored_photo_shows_the_other_hand():
    joints = torch.randn(2, 23, 3)
    photos, mirrored = mirror(torch.arange(8.0).expand(2, 3, 8, 8), joints)
    left, right = NAMES.index("left_wrist"), NAMES.index("right_wrist")
    assert torch.equal(photos[0, 0, 0], torch.arange(8.0).flip(0))
    assert torch.equal(mirrored[:, left, 1:], joints[:, right, 1:]) and torch.equal(mirrored[:, left, 0], -joints[:, right, 0])
    assert torch.equal(mirror(photos, mirrored)[1], joints)
    middle = [NAMES.index(name) for name in ("pelvis", "neck", "head", "jaw", "spine3")]
    assert torch.equal(mirrored[:, middle, 1:], joints[:, middle, 1:])


def test_a_quarter_turn_is_exact():
    "Counter-clockwise: what was right is now up."
    photos, joints = torch.rand(1, 3, 16, 16), torch.randn(1, 23, 3)
    turned, its_joints = turn(photos, joints, torch.tensor([math.pi / 2]), torch.ones(1), torch.zeros(1, 2))
    assert torch.allclose(turned, torch.rot90(photos, 1, (-2, -1)), atol=1e-4)
    assert torch.allclose(its_joints, torch.stack([-joints[..., 1], joints[..., 0], joints[..., 2]], -1), atol=1e-5)


def test_size_and_place_go_along():
    "Half the size a quarter to the right: depth is halved too, and the border is the background's."
    photos, joints = torch.zeros(1, 3, 16, 16), torch.randn(1, 23, 3)
    photos[..., 4:12, 4:12] = 1
    moved, its_joints = turn(photos, joints, torch.zeros(1), torch.full((1,), 0.5), torch.tensor([[0.25, 0.0]]))
    wanted = torch.zeros(16, 16)
    wanted[6:10, 10:14] = 1
    assert torch.allclose(moved[0, 0], wanted, atol=1e-5)
    assert torch.allclose(its_joints, 0.5 * joints + torch.tensor([0.25, 0.0, 0.0]), atol=1e-6)


def test_varied_people_stay_whole_people():
    "Photos and joints of real renders still fit: the joints lie on the figure, and bones keep their length up to the scale."
    body = load_body()
    from drpose.pictures.cameras import ViewRig
    from drpose.pictures.dressed_people import draw_crowd, photograph

    drawn = draw_set("pool", 16, 5, body)
    taken = photograph(body, drawn.poses, draw_crowd(body, drawn.people), ViewRig((0.0,), image_size=64), 64)
    photos, joints = taken.views.colors[:, 0], taken.joints[:, list(SKELETON_JOINTS)]

    def on_figure(photos, joints):
        "Share of joints whose pixel differs from the background."
        column, row = ((joints[..., 0] + 0.5) * 64).long().clamp(0, 63), ((0.5 - joints[..., 1]) * 64).long().clamp(0, 63)
        different = (photos - photos[..., :1, :1]).abs().amax(1) > 0.02
        return torch.stack([different[n, row[n], column[n]].float().mean() for n in range(len(photos))])

    varied, its_joints = vary(photos, joints, torch.Generator().manual_seed(1))
    assert on_figure(photos, joints).mean() > 0.95 and on_figure(varied, its_joints).mean() > 0.93
    length = lambda j: (j[:, NAMES.index("left_knee")] - j[:, NAMES.index("left_hip")]).norm(dim=1) / (j[:, NAMES.index("neck")] - j[:, NAMES.index("pelvis")]).norm(dim=1)
    other = lambda j: (j[:, NAMES.index("right_knee")] - j[:, NAMES.index("right_hip")]).norm(dim=1) / (j[:, NAMES.index("neck")] - j[:, NAMES.index("pelvis")]).norm(dim=1)
    assert torch.minimum((length(its_joints) - length(joints)).abs(), (length(its_joints) - other(joints)).abs()).max() < 1e-4
    assert (its_joints - joints).abs().amax((1, 2)).min() > 0.005, "somebody was not varied at all"


def test_the_loss_is_least_where_the_expected_error_is_the_true_one():
    errors = torch.distributions.Laplace(0.0, 0.07).sample((4000, 23, 3))
    cost = {b: laplace_loss(Estimate(errors, torch.full_like(errors, b)), torch.zeros_like(errors)).item() for b in (0.03, 0.05, 0.07, 0.1, 0.15)}
    assert min(cost, key=cost.get) == 0.07


def test_it_takes_photos_of_any_size_and_refuses_other_things():
    estimator = small_estimator()
    photo, large = (torch.nn.functional.interpolate(torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)), (side, side), mode="bilinear") for side in (64, 256))
    assert torch.allclose(estimator(photo).joints, estimator(large).joints, atol=2e-3)
    for wrong in (torch.rand(3, 64, 64), torch.rand(1, 4, 64, 64), torch.rand(1, 3, 64, 48)):
        with pytest.raises(ValueError, match="square photos"):
            estimator(wrong)
    with pytest.raises(ValueError, match="image_size is 48, but 4 widths need 64"):
        PoseEstimator(48)


def test_it_learns_and_goes_on_where_it_was_stopped(tmp_path):
    draw = torch.Generator().manual_seed(0)
    photos, joints = torch.randint(0, 256, (8, 3, 64, 64), generator=draw, dtype=torch.uint8), 0.2 * torch.randn(8, 23, 3, generator=draw)
    settings = dict(batch_size=4, block_out_channels=(8, 16, 16, 16), layers_per_block=1, learning_rate=2e-3, warmup_steps=0, log_every=1, checkpoint_every=2, tracker="none", ema_decay=0.5)
    whole, _ = train_pose_estimator(EstimatorConfig(steps=6, **settings), photos, joints, RunDirectory(tmp_path / "whole", EstimatorConfig(steps=6, **settings)))
    for steps in (4, 6):
        config = EstimatorConfig(steps=steps, **settings)
        halves, result = train_pose_estimator(config, photos, joints, RunDirectory(tmp_path / "halves", config))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True)) and result.steps == 6
    with pytest.raises(ValueError, match="joints was"):
        train_pose_estimator(config, photos, joints + 0.1, RunDirectory(tmp_path / "halves", config))
    with pytest.raises(ValueError, match="uint8 and joints"):
        train_pose_estimator(config, photos.float(), joints, RunDirectory(tmp_path / "other", config))


# --- telling it -------------------------------------------------------------------------------------------------------------------------


def test_a_network_gets_an_input_that_changes_nothing_until_it_is_trained():
    plain = tiny_parts.unet(0)
    given = add_skeleton_input(plain)
    inputs = dict(sample=torch.randn(8, 8, 8, 8), timestep=500, encoder_hidden_states=torch.randn(8, 1, 8), class_labels=torch.randn(8, 12))
    maps = torch.rand(8, 23, 8, 8)
    with torch.no_grad():
        assert torch.equal(given(**inputs, skeletons=maps).sample, plain(**inputs).sample)
        heard = listening(plain)(**inputs, skeletons=maps).sample
        assert not torch.allclose(heard, plain(**inputs).sample, atol=1e-2)
        assert torch.equal(listening(plain)(**inputs, skeletons=torch.zeros_like(maps)).sample, plain(**inputs).sample)
    with pytest.raises(ValueError, match="no input for them"):
        plain(**inputs, skeletons=maps)
    with pytest.raises(ValueError, match=r"skeletons must have shape \(8, 23, 8, 8\), found \(8, 22, 8, 8\)"):
        given(**inputs, skeletons=maps[:, 1:])
    with pytest.raises(ValueError, match="needs a network without skeleton input"):
        add_skeleton_input(given)


def test_guidance_by_the_pose_exaggerates_the_pose_and_holds_the_photo():
    "eps = given + (g - 1)(given - unknown) + (s - 1)(given - photo alone), at one timestep or at each person's own."
    unet, rig = listening(tiny_parts.unet(0)), TINY_RIG.resized(8)
    latents = torch.randn(2, 2, 4, 4, 8, 8)
    maps = skeleton_input(unet, 0.2 * torch.randn(2, 23, 3), rig)
    maps[1] = 0  # of the second person nothing is known, so there is nothing to exaggerate
    condition = Condition(torch.randn(2, 4, 8, 8), torch.randn(2, 12), tiny_prompt_embeds(dim=8), maps)
    for timestep in (500, torch.tensor([500, 100]), torch.tensor([[500, 400], [100, 200]])):
        with torch.no_grad():
            given, unknown, photo = (predict(unet, latents, timestep, one) for one in (condition, condition.unconditional(), condition.without_pose()))
            clearer = predict(unet, latents, timestep, condition, pose_scale=1.5)
            both = predict(unet, latents, timestep, condition, 3.0, pose_scale=1.5)
            apart = predict(unet, latents, timestep, condition, 3.0, sequential=True, pose_scale=1.5)
        assert torch.allclose(clearer, given + 0.5 * (given - photo), atol=1e-4)
        assert not torch.allclose(clearer[0], given[0], atol=1e-2) and torch.allclose(clearer[1], given[1], atol=1e-4)
        assert torch.allclose(both, given + 2 * (given - unknown) + 0.5 * (given - photo), atol=1e-4) and torch.allclose(apart, both, atol=1e-4)
    assert torch.equal(condition.without_pose().condition_latents, condition.condition_latents)


def test_maps_reach_their_own_view_and_person():
    rig, joints = TINY_RIG.resized(8), 0.2 * torch.randn(2, 23, 3)
    unet = listening(tiny_parts.unet(0))
    maps = skeleton_input(unet, joints, rig)
    assert torch.equal(maps, skeleton_maps(joints, rig))
    joints[1, 7, 2] = torch.nan
    assert torch.equal(skeleton_input(unet, joints, rig)[0], maps[0]) and skeleton_input(unet, joints, rig)[1].abs().max() == 0
    latents, condition = torch.randn(2, 2, 4, 4, 8, 8), Condition(torch.randn(2, 4, 8, 8), torch.randn(2, 12), tiny_prompt_embeds(dim=8))
    condition.skeletons = maps
    with torch.no_grad():
        both, alone = predict(unet, latents, 500, condition), predict(unet, latents[1:], 500, condition[1:])
        assert torch.allclose(both[1:], alone, atol=1e-5)
        halved = predict(unet, latents, 500, condition, guidance_scale=2.0)
        assert torch.allclose(halved, predict(unet, latents, 500, condition, guidance_scale=2.0, sequential=True), atol=1e-4)
    with pytest.raises(ValueError, match="do not fit a network with 0 skeleton channels"):
        skeleton_input(tiny_parts.unet(0), joints, rig)
    with pytest.raises(ValueError, match="pose_scale is 2, but no pose is given"):
        predict(unet, latents, 500, Condition(condition.condition_latents, condition.class_labels, condition.prompt_embeds), pose_scale=2.0)
    assert skeleton_input(tiny_parts.unet(0), None, rig) is None


def test_a_face_view_gets_no_pose():
    unet = MultiViewUNet(
        sample_size=12, num_views=3, face_view=True, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=(1, 2), norm_num_groups=4, cross_attention_dim=8,
        projection_class_embeddings_input_dim=12, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), skeleton_channels=23,
    )  # fmt: skip
    from drpose.pictures.cameras import ViewRig

    maps = skeleton_input(unet, 0.1 * torch.randn(1, 23, 3), ViewRig((0.0, 90.0), image_size=12))
    assert maps.shape == (1, 3, 23, 12, 12) and maps[:, :2].flatten(2).amax(-1).min() > 0.5 and maps[:, 2].abs().max() == 0


def some_latents(count: int = 4) -> LatentSet:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, *shape, generator=draw) for shape in ((2, 4, 4, 8, 8), (4, 8, 8), (12,))]
    return LatentSet(*parts, 0.2 * torch.randn(count, 23, 3, generator=draw), torch.ones(count))


def test_the_base_is_given_the_joints_of_the_object_it_draws(monkeypatch):
    seen = []
    monkeypatch.setattr("drpose.multiview.base_training.predict", lambda unet, noisy, timestep, condition: seen.append(condition) or torch.zeros_like(noisy))
    data, unet = some_latents(), add_skeleton_input(tiny_parts.unet(0))
    data.photos[:] = torch.arange(4.0).view(-1, 1, 1, 1)  # the photo says whose it is
    module = BaseLoss(unet, default_scheduler(), data, tiny_prompt_embeds(dim=8), BaseConfig(batch_size=40, snr_gamma=0.0, skeleton_dropout=0.25, skeleton_jitter=0.0, two_views=True))
    unheard = 0
    for step in range(12):
        module(step)
        condition, whose = seen[-1], seen[-1].condition_latents[:, 0, 0, 0].long()
        views = [int((condition.prompt_embeds[0, n] - tiny_prompt_embeds(dim=8)[0]).abs().flatten(1).sum(1).argmin()) for n in range(2)]
        wanted = skeleton_maps(data.joints[whose], TINY_RIG.resized(8))[:, views]
        given = condition.skeletons.flatten(1).any(1)
        assert torch.allclose(condition.skeletons[given], wanted[given]) and condition.skeletons[~given].abs().max() == 0
        unheard += int((~given).sum())
    assert unheard / 480 == pytest.approx(0.25, abs=0.06)
    module.config.skeleton_jitter = 0.1
    joints = module.given_joints(torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0))
    off = (joints - data.joints[0])[joints.isfinite().flatten(1).all(1)]
    assert off.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)  # of a standard deviation drawn evenly up to .1

    def loss_of(joints: int) -> BaseLoss:
        return BaseLoss(unet, default_scheduler(), LatentSet(data.latents, data.photos, data.descriptors, torch.zeros(4, joints, 3), data.scale), tiny_prompt_embeds(dim=8), BaseConfig())

    with pytest.raises(ValueError, match="setting 'data'"):
        loss_of(5)
    assert loss_of(0).given_joints(torch.zeros(4, dtype=torch.long), torch.Generator()) is None  # scans whose joints nobody knows


def test_a_pose_conditioned_base_learns_to_use_the_pose(tmp_path):
    data = some_latents(8)
    config = BaseConfig(steps=30, batch_size=8, learning_rate=1e-2, warmup_steps=0, ema_decay=0.0, skeleton_dropout=0.0, log_every=30, checkpoint_every=30, tracker="none")
    unet, _ = train_base(config, add_skeleton_input(tiny_parts.unet(0)), default_scheduler(), data, tiny_prompt_embeds(dim=8), RunDirectory(tmp_path, config))
    knows, guesses = (base_error(unet, default_scheduler(), data, tiny_prompt_embeds(dim=8), (900,), pose_given=given)[900] for given in (True, False))
    assert knows < guesses and unet.conv_skeleton.weight.abs().max() > 0


def shipped_parts(**more) -> MultiViewPipeline:
    folder = embedded_models() / "pipeline"
    torch.manual_seed(0)
    return MultiViewPipeline(listening(tiny_unet((8, 16), (0, 1))), load_model(AutoencoderKL, folder / "vae"), default_scheduler(), PromptTable.of(tiny_prompt_embeds()), azimuths=TINY_RIG.azimuths, mirrored=TINY_RIG.mirrored, **more)


def test_the_pipeline_asks_its_estimator_unless_somebody_knows_better(tmp_path):
    estimator, photo = small_estimator(), torch.rand(2, 3, 64, 64)
    pipeline, alone = shipped_parts(pose_estimator=estimator), shipped_parts()
    pipeline.set_progress_bar_config(disable=True), alone.set_progress_bar_config(disable=True)

    def draw(which, **more):
        return which(photo, 2, generator=torch.Generator().manual_seed(0), output_type="latent", **more).images

    asked = draw(pipeline)
    assert torch.equal(asked, draw(pipeline, joints=estimator(photo).joints.detach()))
    assert torch.equal(draw(pipeline, joints=torch.full((2, 23, 3), torch.nan)), draw(alone)) and not torch.allclose(asked, draw(alone), atol=1e-3)
    assert not torch.allclose(asked, draw(pipeline, joints=0.2 * torch.randn(2, 23, 3)), atol=1e-3)
    pipeline.save_pretrained(tmp_path)
    again = MultiViewPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), asked)
    for wrong, words in ((torch.zeros(1, 23, 3), r"float tensor \(2, 23, 3\), found torch.float32 \(1, 23, 3\)"), (torch.full((2, 23, 3), 300.0), "1 wide"), ([0], "found list"), (torch.full((2, 23, 3), torch.inf), "1 wide")):
        with pytest.raises(ValueError, match=words):
            draw(pipeline, joints=wrong)
    with pytest.raises(ValueError, match="the UNet takes 0"):
        MultiViewPipeline(tiny_unet((8, 16), (0, 1)), pipeline.vae, pipeline.scheduler, pipeline.prompt_table, azimuths=TINY_RIG.azimuths, mirrored=TINY_RIG.mirrored, pose_estimator=estimator)
    plain = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline", unet=tiny_unet((8, 16), (0, 1)), pose_estimator=None)
    with pytest.raises(ValueError, match="is not conditioned on a pose"):
        plain(photo, 2, joints=torch.zeros(2, 23, 3))


def test_pairs_and_benchmarks_are_given_what_the_estimator_sees(tmp_path):
    "Never the truth."
    pipeline, body = shipped_parts(pose_estimator=small_estimator()), load_body()
    build_dataset(plan_dataset(3), tmp_path / "pairs")
    pairs = PosePairs(tmp_path / "pairs")
    data = condition_pairs(pairs, pipeline, body, batch_size=2)
    photos = torch.stack([pairs[i]["image"] for i in range(3)])
    with torch.no_grad():
        assert torch.allclose(data.given, pipeline.pose_estimator(photos).joints, atol=1e-4) and not torch.allclose(data.given, data.joints, atol=0.05)
    assert condition_pairs(pairs, shipped_parts(), body).given is None and condition_pairs(pairs, shipped_parts(), body).digest() != data.digest()

    benchmark = load_benchmark("hard", pipeline.vae, body, 3)
    given = with_estimates(benchmark, pipeline.pose_estimator)
    with torch.no_grad():
        assert torch.allclose(given.given, pipeline.pose_estimator(benchmark.truth.images[:, 1, 0]).joints, atol=1e-4)
        pipeline.set_progress_bar_config(disable=True)
        drawn = generate_latents(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, given, 2)
    noise = torch.stack([torch.randn(2, 4, 4, 16, 16, generator=generator) for generator in noise_of(given)])
    same = pipeline(benchmark.truth.images[:, 1, 0], 2, latents=noise, output_type="latent").images
    assert torch.allclose(drawn, same, atol=1e-2)  # photos are kept in half precision
    assert not torch.allclose(drawn, generate_latents(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, benchmark, 2), atol=1e-2)
    assert with_estimates(benchmark, None) is benchmark


def noise_of(benchmark):
    from drpose.ground.seeding import seeded_generator

    return [seeded_generator(0, number, benchmark.name) for number in range(len(benchmark))]


def test_post_training_tells_each_sample_its_own_estimate(tmp_path):
    data = tiny_parts.pairs()
    given = PairConditions(data.photos, data.descriptors, data.joints, given=data.joints + 0.1)
    unet, *others = tiny_parts.parts()
    unet = listening(unet)
    asked = []
    networks = TrainingSamples(HandOver(unet, None, 0), given, others[3], 0, rig=TINY_RIG.resized(8)).networks([4, 1], torch.device("cpu"))
    unet.forward = lambda sample, timestep, **inputs: asked.append(inputs["skeletons"]) or (sample[:, :4],)
    networks["predict"](torch.randn(2, 2, 4, 4, 8, 8), torch.tensor(500))
    wanted = skeleton_maps(given.given[[4, 1]], TINY_RIG.resized(8))
    assert torch.allclose(asked[0].unflatten(0, (2, 2, 4))[0], wanted) and torch.allclose(asked[0].unflatten(0, (2, 2, 4))[1], wanted)

    results = {}
    for name, pairs in (("given", given), ("not given", data), ("all weights", given)):
        unet = listening(tiny_parts.unet(0))
        config = tiny_parts.config(steps=2, lora_rank=0 if name == "all weights" else 2)
        before = unet.conv_skeleton.weight.clone()
        results[name] = posttrain(config, unet, others[0], others[1], pairs, *others[3:], tmp_path / name).loop
        assert torch.equal(unet.conv_skeleton.weight, before), "how it takes the pose is not trained"
        lines = RunDirectory(tmp_path / name, config).metrics()
        results[name] = [line["reward"] for line in lines]
    assert results["given"] != results["not given"]


def test_an_adapter_of_a_pose_conditioned_network_is_saved_and_read(tmp_path):
    unet = listening(tiny_parts.unet(0))
    prepare_weights(unet, tiny_parts.config())
    save_lora(unet, tmp_path)
    load_lora(listening(tiny_parts.unet(0)), tmp_path)
    load_lora(tiny_parts.unet(0), tmp_path)  # the adapter has nothing to do with the input
