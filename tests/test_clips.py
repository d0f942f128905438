"""Embedded motion clips: the words they are written in, what they look like in numbers, and drawing varied poses from them."""

import json

import pytest
import torch

from drpose.people.bodies import SMPLX_JOINT_NAMES, Pose, load_body
from drpose.people.pose_space import limit_violation
from drpose.people.pose_space import self_collision
from drpose.people.clips import HELD_OUT_CLIPS, Clip, clips_for, draw_poses, embedded_clips, parse_keyframe, pose_keyframe, read_clips

JOINT = {name: number for number, name in enumerate(SMPLX_JOINT_NAMES)}


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def clips():
    return embedded_clips()


@pytest.fixture(scope="module")
def posed(body):
    def joints(text: str) -> torch.Tensor:
        return body.joints(Pose(pose_keyframe(parse_keyframe(text))[None], torch.zeros(1, 10), torch.zeros(1, 3)))[0]

    return joints


@pytest.mark.parametrize(
    "text, joint, axis, sign",
    [
        ("left_shoulder raise 90 out 90", "left_wrist", 0, 1),
        ("right_shoulder raise 90 out 90", "right_wrist", 0, -1),
        ("left_shoulder raise 90 out 0", "left_wrist", 2, 1),
        ("left_shoulder raise 60 out 180", "left_wrist", 2, -1),
        ("right_shoulder raise 175 out 45", "right_wrist", 1, 1),
        ("left_elbow flex 90", "left_wrist", 2, 1),
        ("left_elbow flex 90; left_shoulder twist 50", "left_wrist", 0, 1),
        ("right_elbow flex 90; right_shoulder twist 50", "right_wrist", 0, -1),
        ("right_hip flex 80", "right_knee", 2, 1),
        ("left_hip abduct 60", "left_ankle", 0, 1),
        ("right_hip abduct 60", "right_ankle", 0, -1),
        ("left_hip twist 40", "left_foot", 0, 1),
        ("right_hip twist 40", "right_foot", 0, -1),
        ("left_knee flex 90", "left_ankle", 2, -1),
        ("left_ankle point 40", "left_foot", 1, -1),
        ("spine bend 60", "head", 2, 1),
        ("spine side 40", "head", 0, 1),
        ("spine turn 40", "left_shoulder", 2, -1),
        ("neck nod 50", "left_eye_smplhf", 1, -1),
        ("neck turn 50", "left_eye_smplhf", 0, 1),
        ("root pitch 60", "head", 2, 1),
        ("root lean 60", "head", 0, 1),
        ("root turn 90; root turn 90 pitch 60", "head", 0, 1),
        ("root turn 60", "left_shoulder", 2, -1),
        ("root lean 180 spin 60", "left_shoulder", 2, -1),
        ("hands curl 80", "left_index3", 0, -1),
    ],
)
def test_words_move_joints_the_way_they_say(posed, text, joint, axis, sign):
    moved = posed(text) - posed("root lean 180" if "spin" in text else "")
    assert sign * moved[JOINT[joint], axis] > 0.02


def test_plurals_are_symmetric(posed):
    joints = posed("shoulders raise 70 out 60 twist 20; elbows flex 50 supinate 20; hips flex 40 abduct 30 twist 20; collars raise 10 forward 5; wrists bend 20")
    for name in ("wrist", "elbow", "ankle", "knee", "middle3"):
        mirrored = joints[JOINT[f"right_{name}"]] * torch.tensor([-1.0, 1.0, 1.0])
        assert torch.allclose(joints[JOINT[f"left_{name}"]], mirrored, atol=0.015), name


@pytest.mark.parametrize("wrong", ["knee flex 10", "left_knee bend 10", "left_knee flex", "root pitch much", "left_spine bend 3", "elbow_left flex 3", "lift"])
def test_wrong_words_give_one_sentence_with_the_place(wrong):
    with pytest.raises(ValueError, match="^here: .*") as error:
        parse_keyframe(wrong, "here")
    assert str(error.value).count("\n") == 0 and wrong.split()[0] in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON at line 1"),
        ("[]", "must be an object"),
        ('{"clips": {}}', "'relaxed'"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "dynamic"}}}), "clip 'a'.*'keys'"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "dynamic", "keys": ["0: "]}}}), "clip 'a'.*at least two"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "odd", "keys": ["0:", "1:"]}}}), "kind is 'odd'"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "dynamic", "keys": ["0:", "soon:"]}}}), "keyframe 1.*'soon'"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "dynamic", "keys": ["1:", "0:"]}}}), "must increase"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "dynamic", "keys": ["0:", "1: mirror 1"]}}}), "mirrors keyframe 1"),
        (json.dumps({"relaxed": "", "clips": {"a": {"kind": "dynamic", "keys": ["0:", "1: hips bend 3"]}}}), "keyframe 1: hips has no 'bend'"),
    ],
)
def test_bad_clip_files_are_refused_clearly(content, message):
    with pytest.raises(ValueError, match=message):
        read_clips(content, "mine.json")


def test_keyframes_are_hit_and_blended(body):
    text = json.dumps({"relaxed": "left_elbow flex 10", "clips": {"a": {"kind": "dynamic", "base": "root pitch 0", "keys": ["0: left_knee flex 30", "1: left_knee flex 90; lift 0.5", "2: mirror 1"]}}})
    clip = read_clips(text)["a"]
    assert len(clip) == 61 and clip.seconds == 2 and clip.fps == 30
    knees = torch.rad2deg(clip.poses.axis_angles[:, [JOINT["left_knee"], JOINT["right_knee"]], 0])
    assert torch.allclose(knees[[0, 15, 30, 60]], torch.tensor([[30.0, 0], [60, 0], [90, 0], [0, 90]]), atol=0.01)
    assert torch.allclose(body.joints(clip.poses)[..., 1].amin(1)[[0, 15, 30, 60]], torch.tensor([0.0, 0.25, 0.5, 0.5]), atol=1e-4)


def test_clip_checks_its_fields():
    with pytest.raises(ValueError, match="fps is 0"):
        Clip(Pose.rest(2), 0, "a")
    assert Clip(Pose.rest(2), 30, "a").kind == "unknown"


def test_there_are_enough_clips_and_they_are_well_formed(clips):
    kinds = [clip.kind for clip in clips.values()]
    assert kinds.count("everyday") >= 12 and kinds.count("dynamic") >= 28
    for name, clip in clips.items():
        assert clip.name == name and len(clip) >= 20
        assert torch.isfinite(clip.poses.axis_angles).all()
        assert limit_violation(clip.poses.axis_angles).max() < 1e-3, name


def test_nobody_sinks_into_the_floor_or_through_himself(clips, body):
    for name, clip in clips.items():
        joints = body.joints(clip.poses)
        assert joints[..., 1].amin() > -1e-4, name
        assert self_collision(joints).max() < 0.03, name


def test_clips_move_smoothly(clips, body):
    for name, clip in clips.items():
        steps = body.joints(clip.poses).diff(dim=0).norm(dim=-1)
        assert steps.max() < 0.6, name  # metres in a thirtieth of a second: a whole turn in the air moves feet fast, a jump in the data faster


def test_everyday_people_stay_upright_and_acrobats_do_not(clips, body):
    for name, clip in clips.items():
        joints = body.joints(clip.poses)
        up = (joints[:, JOINT["neck"], 1] - joints[:, JOINT["pelvis"], 1]) / (joints[:, JOINT["neck"]] - joints[:, JOINT["pelvis"]]).norm(dim=-1)
        if clip.kind == "everyday":
            assert up.min() > 0.75, name
        if name in ("cartwheel", "handstand_walk", "headstand", "backflip", "back_handspring", "front_flip", "forward_roll", "backward_roll", "round_off"):
            assert up.min() < -0.7, name


def test_each_flip_turns_its_own_way(clips):
    def turned(name: str) -> torch.Tensor:
        root = clips[name].poses.axis_angles[:, 0]
        return root[len(root) // 3]

    assert turned("front_flip")[0] > 0 > turned("backflip")[0]
    assert turned("forward_roll")[0] > 0 > turned("backward_roll")[0]
    assert turned("cartwheel")[2] < 0  # to her left


def test_held_out_clips_are_a_fair_share_of_the_dynamic_ones(clips, body):
    everyday, pool, held_out = (clips_for(purpose) for purpose in ("everyday", "pool", "held_out"))
    assert set(held_out) == set(HELD_OUT_CLIPS) and all(clip.kind == "dynamic" for clip in held_out.values())
    assert not set(pool) & set(held_out) and set(everyday) | set(pool) | set(held_out) == set(clips)
    assert 0.15 < len(held_out) / (len(pool) + len(held_out)) < 0.35
    lowest_neck = {name: (j := body.joints(clip.poses))[:, JOINT["neck"], 1].sub(j[:, JOINT["pelvis"], 1]).min() for name, clip in held_out.items()}
    tilted = sum(bool(value < 0.2) for value in lowest_neck.values())
    assert 4 <= tilted <= len(held_out) - 4
    with pytest.raises(ValueError, match="purpose is 'test'"):
        clips_for("test")


def test_draws_do_not_depend_on_who_draws_them():
    pool, options = clips_for("pool"), {"limit_share": 0.5, "tilt_share": 0.5}
    whole = draw_poses(pool, 40, seed=1, **options)
    part = draw_poses(pool, 5, seed=1, start=20, **options)
    for name in ("axis_angles", "betas", "transl"):
        assert torch.equal(getattr(whole, name)[20:25], getattr(part, name))
    assert not torch.equal(draw_poses(pool, 5, seed=2, start=20, **options).axis_angles, part.axis_angles)
    assert len(draw_poses(pool, 0, seed=1)) == 0


def test_draws_respect_limits_bodies_and_options(body):
    pool = clips_for("pool")
    pose = draw_poses(pool, 400, seed=5, limit_share=0.5, tilt_share=0.5)
    assert limit_violation(pose.axis_angles).max() < 1e-3
    assert pose.betas.abs().max() <= 2 and 0.8 < pose.betas.std() < 1.0
    assert self_collision(body.joints(pose)).gt(0.03).float().mean() < 0.01
    loose = draw_poses(pool, 400, seed=5, limit_share=0.5, tilt_share=0.5, max_penetration=10.0)
    assert self_collision(body.joints(loose)).gt(0.03).float().mean() > 0.05


def test_mirroring_yaw_and_noise_can_be_switched_off(body):
    wave = {"wave": clips_for("everyday")["wave"]}

    def higher(pose: Pose) -> torch.Tensor:
        joints = body.joints(pose)
        return joints[:, JOINT["left_wrist"], 1] > joints[:, JOINT["right_wrist"], 1] + 0.1

    plain = draw_poses(wave, 100, seed=0, strength=0.0, mirror=False, yaw_degrees=0.0)
    assert higher(plain).sum() == 0
    assert plain.axis_angles[:, 0].norm(dim=-1).max() < 1e-3
    assert 0.2 < higher(draw_poses(wave, 100, seed=0)).float().mean() < 0.6
    yaw = draw_poses(wave, 200, seed=0, strength=0.0, yaw_degrees=40.0).axis_angles[:, 0].rad2deg()
    assert 35 < yaw[:, 1].max() < 40.1 and -40.1 < yaw[:, 1].min() < -35 and yaw[:, [0, 2]].abs().max() < 1e-2


def test_tilted_samples_are_tilted():
    stand = {"stand": clips_for("everyday")["stand"]}
    tilted = draw_poses(stand, 200, seed=0, limit_share=1.0, tilt_share=1.0)
    upright = draw_poses(stand, 200, seed=0, limit_share=1.0)
    assert tilted.axis_angles[:, 0].norm(dim=-1).mean() > 1.5 > upright.axis_angles[:, 0].norm(dim=-1).max()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="clips is empty"):
        draw_poses({}, 3, seed=0)
    with pytest.raises(ValueError, match="limit_share is 2"):
        draw_poses(clips_for("everyday"), 3, seed=0, limit_share=2)


@pytest.mark.parametrize("text", ["hips flex nan", "hips flex 1e9", "lift inf", "hips flex 80; left_knee flex -inf"])
def test_keyframes_of_wild_numbers_are_refused(text):
    with pytest.raises(ValueError, match="keyframe: "):
        parse_keyframe(text)


def test_clips_nested_without_end_are_refused():
    with pytest.raises(ValueError, match="clips.json: "):
        read_clips('{"clips": ' + "[" * 200_000 + "]" * 200_000 + "}")
