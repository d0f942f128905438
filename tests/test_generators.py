"""Large models as animators: their true code with random weights, from a plan to checked shards; clips that a video model can follow; what is kept, refused and said."""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_animators
import torch
from diffusers import WanAnimatePipeline, WanVACEPipeline
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning import local_provisioner
from PIL import Image
from test_jobs import check_settings, execute, notebook

from drpose.pairs import diffusion_animators
from drpose.pairs.animators import ANIMATORS, load_animator, painted_poses
from drpose.pairs.control_drawing import draw_control
from drpose.pairs.dataset import PosePairs, build_dataset, verify_dataset
from drpose.pairs.driving import DrivenAnimator, driven_clips, portrait_of
from drpose.pairs.planning import plan_clips
from drpose.pairs.scail_animator import read_video, write_video
from drpose.people.bodies import Pose, load_body
from drpose.people.clips import embedded_clips
from drpose.pictures.cameras import Framing, frame_by_diagonal
from drpose.pictures.dressed_people import draw_crowd


@pytest.fixture(scope="module")
def body_model():
    return load_body()


@pytest.fixture(scope="module")
def plan(body_model):
    return plan_clips({name: clip for name, clip in embedded_clips().items() if clip.kind == "dynamic"}, 2, 3, seed=1, body_model=body_model)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Folders of tiny models: the settings that name them."
    folder = tmp_path_factory.mktemp("models")
    base, controlnet = tiny_animators.qwen_controlnet(folder / "qwen")
    return {
        "wan-vace": {"model": str(tiny_animators.wan_vace(folder / "vace"))}, "wan-animate": {"model": str(tiny_animators.wan_animate(folder / "animate"))},
        "qwen-controlnet": {"model": str(base), "controlnet": str(controlnet)},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "Prompts are kept in a folder of this file's tests."
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr(diffusion_animators, "HF_HOME", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder))  # of the kernels that are started
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch_kernel)  # from nothing: libraries read it when they are loaded
    return folder


def tiny(name, models, body_model, **changed):
    return load_animator(name, body_model, **({"image_size": 48, "steps": 2, "dtype": "float32"} | models[name] | changed))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    pytest.importorskip("imageio_ffmpeg")
    folder = tmp_path_factory.mktemp("scail")
    shutil.copyfile(Path(__file__).with_name("scail_stand_in.py"), folder / "generate.py")
    return folder


def scail(checkout, body_model, **changed):
    return load_animator("scail-2", body_model, **({"image_size": 96, "checkout": str(checkout), "python": sys.executable, "weights": "w", "model": "m"} | changed))


@pytest.mark.parametrize("name", ["wan-vace", "wan-animate", "qwen-controlnet"])
def test_from_a_plan_to_checked_shards(name, models, plan, body_model, tmp_path):
    "Random weights paint noise; twice the same noise, other noise for another seed, other pictures for other controls."
    began, animator = time.time(), tiny(name, models, body_model)
    folder = build_dataset(plan, tmp_path / "pairs", animator, shard_size=3, checks=True)
    pairs, scores = PosePairs(folder), PosePairs(folder).scores()
    assert len(pairs) == 6 and not verify_dataset(folder) and pairs[0]["image"].shape == (3, 48, 48)
    assert scores["overlap"].isfinite().all() and scores["identity"].isfinite().all()
    assert torch.equal(pairs.poses().betas, animator.betas_of(plan.drawn.people))
    assert f"- **Painted by**: {animator.model} (revision main, 2 steps, " in (card := (folder / "README.md").read_text()) and f"shown {animator.control} ({animator.channels}) at 48 pixels. The people do not exist.\n" in card
    images, framing = animator.animate(plan.drawn.poses[:3], plan.drawn.people[0], seed=5)
    again, _ = animator.animate(plan.drawn.poses[:3], plan.drawn.people[0], seed=5)
    other, _ = animator.animate(plan.drawn.poses[:3], plan.drawn.people[0], seed=6)
    turned, _ = animator.animate(plan.drawn.poses[:3].mirrored(), plan.drawn.people[0], seed=5)
    assert torch.equal(images, again) and len(framing) == 3
    assert not torch.equal(images, other) and not torch.equal(images, turned)
    assert time.time() - began < 60


def test_scail_from_a_plan_to_checked_shards(checkout, plan, body_model, tmp_path):
    "The stand-in paints the portrait's colour where the driver's mask is: what comes back lies on the labels."
    folder = build_dataset(plan, tmp_path / "pairs", scail(checkout, body_model), checks=True)
    pairs = PosePairs(folder)
    assert len(pairs) == 6 and not verify_dataset(folder) and pairs.scores()["uncovered"].max() < 0.05
    for item in (pairs[i] for i in range(6)):
        figure, label = (item["image"] < 0.7).any(0), draw_control("mask", body_model(item["pose"]), item["framing"], 96)[0, 0] > 0
        assert (figure & label).sum() / (figure | label).sum() > 0.85
    calls = [line.split(" ", 2) for line in (checkout / "calls.txt").read_text().splitlines()]
    seeds = list(dict.fromkeys(row["seed"] for row in pq.read_table(folder / "plan.parquet").to_pylist()))
    assert [int(seed) for seed, *_ in calls] == [seed % 2**31 for seed in seeds] and all(int(frames) % 4 == 1 and "full-length" in prompt for _, frames, prompt in calls)


def test_what_scails_program_says_becomes_the_error(checkout, body_model):
    poses = embedded_clips()["wave"].poses[:1]
    with pytest.raises(ValueError, match="generate.py ended with 1 and wrote no video; it said: … torch.cuda.OutOfMemoryError: there is no card here"):
        scail(checkout, body_model, prompts=("fail",)).animate(poses, 1)
    with pytest.raises(ValueError, match=r"SCAILAnimator painted \(4, 3, 96, 96\), needed finite frames \(5, 3, 96, 96\)"):
        scail(checkout, body_model, prompts=("short",)).animate(Pose.cat([poses, poses]), 1)
    with pytest.raises(FileNotFoundError, match="holds no generate.py, needed a checkout of SCAIL-2"):
        load_animator("scail-2", body_model, checkout=str(checkout / "nowhere"))
    with pytest.raises(ValueError, match="image_size is 48, needed a multiple of 32"):
        scail(checkout, body_model, image_size=48)


def test_videos_keep_their_colours(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    frames = torch.rand(5, 3, 34, 50, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "video.mp4", frames)
    assert (read_video(tmp_path / "video.mp4") - frames).abs().max() < 4 / 255
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="broken.mp4: cannot be read as a video"):
        read_video(tmp_path / "broken.mp4")


@pytest.mark.parametrize("name, kind", [("wan-vace", WanVACEPipeline), ("wan-animate", WanAnimatePipeline)])
def test_what_a_pipeline_is_told(name, kind, models, body_model, monkeypatch):
    "Controls and portrait in the right places and sizes, text padded to 512 rows, the clip's frames; guidance only where it is asked for."
    told, painted = {}, kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, **given: told.update(given) or painted(self, **given))
    animator, poses = tiny(name, models, body_model), embedded_clips()["wave"].poses[[0, 8]]
    animator.animate(poses, 3)
    (clip,) = driven_clips(poses.with_betas(animator.betas_of([3, 3])), body_model, animator.shortest)
    video = told["video"] if name == "wan-vace" else told["pose_video"]
    assert len(video) == len(clip.poses) and all(frame.size == (48, 48) for frame in video)
    first = np.array(video[0]).transpose(2, 0, 1)
    body = body_model(clip.poses)
    framing = frame_by_diagonal(body.vertices)
    framing = Framing(framing.center, framing.scale.amin().expand(len(clip.poses)))
    assert np.array_equal(first, (animator.controls(body, framing)[0] * 255).round().byte().numpy())
    assert told["prompt_embeds"].shape == (1, 512, 32) and told["num_inference_steps"] == 2
    assert not told["prompt_embeds"][0, -1].any() and told["prompt_embeds"][0, 0].any()
    if name == "wan-vace":
        assert told["num_frames"] == len(video) and told["negative_prompt_embeds"].shape == (1, 512, 32) and len(told["reference_images"]) == 1
    else:
        assert "negative_prompt_embeds" not in told and told["segment_frame_length"] == len(video) == len(told["face_video"]) and told["face_video"][0].size == (16, 16)


def test_single_poses_make_the_shortest_clip(models, body_model):
    "Two people in one call: each her own clip, one frame for VACE, five for Wan-Animate."
    poses = embedded_clips()["wave"].poses[:2]
    for name in models:
        images, framing = tiny(name, models, body_model).animate(poses, [1, 2], seed=3)
        assert images.shape == (2, 3, 48, 48) and len(framing) == 2 and not torch.equal(images[0], images[1])


def test_prompts_are_encoded_once(models, body_model, cache, monkeypatch):
    asked, encode = [], diffusion_animators._wan_text
    monkeypatch.setattr(diffusion_animators, "_wan_text", lambda folder, prompts, *rest: asked.append(list(prompts)) or encode(folder, prompts, *rest))
    poses, words = embedded_clips()["wave"].poses[:1], ("somebody nods", "somebody waves")
    for _ in range(2):
        tiny("wan-vace", models, body_model, prompts=words, negative_prompt="rain").animate(poses, 1)
    assert asked == [["somebody nods", "somebody waves", "rain"]] and len(list(cache.rglob("prompt-*.safetensors"))) >= 3
    tiny("wan-vace", models, body_model, prompts=("somebody sits", *words), negative_prompt="rain").animate(poses, 1)
    assert asked[1:] == [["somebody sits"]]


def test_wans_text_is_the_pipelines_own(models):
    "The same numbers that WanVACEPipeline encodes with padding and a mask, without its package for repairing text."
    folder = Path(models["wan-vace"]["model"])
    own, *_ = diffusion_animators._wan_text(folder, ["one person waves"], torch.float32, torch.device("cpu"))
    pipeline = WanVACEPipeline.from_pretrained(folder)
    tokens = pipeline.tokenizer(["one person waves"], padding="max_length", max_length=512, return_tensors="pt")
    with torch.no_grad():
        theirs = pipeline.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0, : len(own)]
    assert int(tokens.attention_mask.sum()) == len(own) and torch.allclose(own, theirs, atol=1e-5)


def test_labels_are_reached_slowly_and_held(body_model):
    "Whole groups of four after the first frame; the label's group ends in two frames that show it; no joint flies."
    clip = embedded_clips()["cartwheel"].poses[::5]
    clips = driven_clips(clip, body_model)
    assert len(clips) > 1 and sum(len(one.kept) for one in clips) == len(clip)
    assert torch.equal(torch.cat([one.poses.axis_angles[one.kept] for one in clips]), clip.axis_angles)
    for one in clips:
        assert len(one.poses) % 4 == 1 and len(one.poses) <= 81 and one.kept[0] == 0 and all(at % 4 == 0 for at in one.kept)
        assert all(torch.equal(one.poses.axis_angles[at], one.poses.axis_angles[at - 1]) for at in one.kept[1:])
        steps = body_model.joints(one.poses).diff(dim=0).norm(dim=-1)
        assert steps.max() < 0.035 * 1.75
    (short,) = driven_clips(clip[:1], body_model, shortest=5)
    assert len(short.poses) == 5 and short.kept == [0] and torch.equal(short.poses.axis_angles[4], clip.axis_angles[0])


def test_a_portrait_of_the_users(body_model, tmp_path):
    "The picture on white, who she is from her file, and the driven body has her shape."
    picture = np.zeros((90, 60, 4), np.uint8)
    picture[10:80, 20:40] = (200, 30, 30, 255)
    Image.fromarray(picture).save(tmp_path / "ann.png")
    with pytest.raises(FileNotFoundError, match="ann.json: no such file, needed the shape of who is in the portrait"):
        portrait_of(5, body_model, 64, str(tmp_path))
    for wrong in ([0.0] * 9, "tall", [float("nan")] * 10, [99.0] * 10, None):
        (tmp_path / "ann.json").write_text(json.dumps({"betas": wrong}))
        with pytest.raises(ValueError, match="ann.json: betas are .*, needed ten numbers from -10 to 10"):
            portrait_of(5, body_model, 64, str(tmp_path))
    (tmp_path / "ann.json").write_text(json.dumps({"betas": [2, -1.5, *[0] * 8]}))
    portrait = portrait_of(5, body_model, 64, str(tmp_path))
    assert portrait.image.shape == (3, 64, 64) and (portrait.image[:, 0, 0] == 1).all() and portrait.mask.mean() > 0.1
    assert torch.equal(portrait.betas, torch.tensor([2, -1.5] + [0.0] * 8))

    @dataclass
    class Keeps(DrivenAnimator):
        control: str = "mask"

        def paint(self, body, framing, portrait, prompt, seed):
            self.seen = body.vertices[0]
            return 1 - self.controls(body, framing)

    animator, poses = Keeps(body_model, 32, portraits=str(tmp_path)), Pose.rest(1)
    animator.animate(poses, 5)
    assert torch.equal(painted_poses(animator, poses, [5]).betas[0], portrait.betas)
    assert torch.allclose(animator.seen, body_model(poses.with_betas(portrait.betas[None])).vertices[0])
    assert torch.equal(Keeps(body_model, 32).betas_of([5]), draw_crowd(body_model, [5]).betas)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: holds no portraits"):
        portrait_of(5, body_model, 64, str(tmp_path / "empty"))


@pytest.mark.parametrize("changed, said", [
    ({"image_size": 40}, "image_size is 40, needed a multiple of 16"), ({"control": "sketch"}, "control is 'sketch' in 'bgr', needed one of openpose, "),
    ({"channels": "grb"}, "in 'grb'"), ({"steps": 0}, "steps = 0"), ({"dtype": "int8"}, "dtype = 'int8'"), ({"prompts": ()}, "needed at least one text"), ({"guidance": float("nan")}, "guidance = nan"),
])  # fmt: skip
def test_settings_that_cannot_be(changed, said, body_model):
    with pytest.raises(ValueError, match=f"WanVACEAnimator: .*{said}"):
        load_animator("wan-vace", body_model, **changed)


def test_folders_that_are_no_such_model(models, body_model, tmp_path):
    poses = embedded_clips()["wave"].poses[:1]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        tiny("wan-vace", models, body_model, model=str(tmp_path / "nowhere")).animate(poses, 1)
    with pytest.raises(ValueError, match="describes a WanAnimatePipeline, needed a WanVACEPipeline"):
        tiny("wan-vace", models, body_model, model=models["wan-animate"]["model"]).animate(poses, 1)
    shutil.copytree(models["wan-vace"]["model"], tmp_path / "odd")
    (tmp_path / "odd" / "extra.py").write_text("")
    with pytest.raises(ValueError, match="extra.py: is a program"):
        tiny("wan-vace", models, body_model, model=str(tmp_path / "odd")).animate(poses, 1)


def test_the_job_paints_with_a_model(models, tmp_path):
    "From the job's parameters to verified pairs and a picture of what the model is shown; settings of other animators are refused."
    path = notebook("build_dataset.ipynb")
    done = execute(path, tmp_path, animator="wan-vace", image_size=48, anchors=2, length=2, calibration=2, channels="rgb", **models["wan-vace"])
    pairs = PosePairs(tmp_path / "run" / "pairs")
    assert len(pairs) == 4 and not verify_dataset(tmp_path / "run" / "pairs")
    (shown,) = [cell for cell in done.cells if "painter.controls" in cell.source]
    assert any("image/png" in output.get("data", {}) for output in shown.outputs)
    with pytest.raises(ValueError, match="setting 'checkout' is '.*', but needs to be empty: the animator 'wan-vace' has no such setting"):
        check_settings(path, animator="wan-vace", checkout="somewhere")
    with pytest.raises(ValueError, match="the animator 'render' has no such setting"):
        check_settings(path, model="Wan-AI/Wan2.1-VACE-14B-diffusers")


def test_all_are_known_by_name():
    assert set(ANIMATORS) == {"render", "wan-animate", "wan-vace", "qwen-controlnet", "scail-2"}
