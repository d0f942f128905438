"""Broken files and parameters of every kind: each is answered by one clear sentence of its own, and by no other error from deep inside."""

import json
import pickle
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_multiview
import tiny_parts
import torch
from PIL import Image
from project_files import PACKAGE
from test_motion import cut, some_pose, write_amass, write_bvh, write_motion_x

from drpose.ground.files import read_npz
from drpose.ground.trainer import RunDirectory, config_from, split_settings
from drpose.people.bodies import PACKED_FIELDS, SMPLX_FIELDS, load_body, unpack_body
from drpose.people.clips import clips_for
from drpose.people.motion import load_motion
from drpose.people.pose_sets import draw_set
from drpose.pictures.cameras import ViewRig
from drpose.pictures.rendering import render_views
from drpose.multiview.unet import LORA_FILE, load_lora
from drpose.multiview.pipeline import MultiViewPipeline, MultiViewUNet, default_scheduler, photo_tensor
from drpose.pairs.planning import plan_dataset
from drpose.pairs.dataset import PosePairs
from drpose.reward.skeleton_predictor import SkeletonPredictor
from drpose.evaluation.views import GroundTruth, evaluate_views
from drpose.evaluation.comparison import compare
from drpose.evaluation.benchmarks import load_benchmark
from drpose.posttraining.reward_gradients import rollout
from drpose.posttraining.post_training import PostTrainConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
RIG = ViewRig((0.0, 90.0, 180.0, 270.0), image_size=16)


@dataclass
class World:
    "A fresh folder, and whole models in others to copy and damage."

    folder: Path
    models: Path
    body: object

    def copied(self, name: str) -> Path:
        return Path(shutil.copytree(self.models / name, self.folder / name))

    def file(self, name: str, content: bytes = b"") -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "One whole pipeline and one whole skeleton predictor on disk."
    folder = tmp_path_factory.mktemp("models")
    test_multiview.tiny_pipeline().save_pretrained(folder / "pipeline")
    tiny_parts.predictor().save_pretrained(folder / "predictor")
    return folder


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture
def world(tmp_path, models, body):
    return World(tmp_path, models, body)


# ---- what breaks things; each returns the path to load ----


def body_file(world: World, **changes) -> Path:
    "The embedded body as an SMPL-X npz, with some fields changed (None = left out)."
    fields = unpack_body(read_npz(PACKAGE / "assets" / "body.npz", PACKED_FIELDS))
    fields["posedirs"] = fields["posedirs"].astype(np.int8)  # all 0, and large
    fields |= {name: change(fields[name]) if callable(change) else change for name, change in changes.items()}
    np.savez(world.folder / "SMPLX_NEUTRAL.npz", **{name: fields[name] for name in SMPLX_FIELDS if fields[name] is not None})
    return world.folder / "SMPLX_NEUTRAL.npz"


def edited(folder: Path, file: str, **changes) -> Path:
    "The JSON of `file` with fields replaced."
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


def truncated(folder: Path, file: str) -> Path:
    cut(folder / file)
    return folder


def renamed(folder: Path, file: str, other: str) -> Path:
    (folder / file).rename(folder / other)
    return folder


def pickled(folder: Path, file: str) -> Path:
    "A pickle in the place of safetensors, which would leave a trace if anybody opened it."
    (folder / file).write_bytes(pickle.dumps({"conv_in.weight": np.zeros(3)}))
    return folder


def removed(folder: Path, file: str) -> Path:
    (folder / file).unlink()
    return folder


def lora_folder(world: World) -> Path:
    world.file(LORA_FILE, bytes(40))
    return world.folder


def settings(**values):
    return config_from(PostTrainConfig, values, "my.yaml")


def pipeline_call(world: World, image=None, **options):
    pipeline = test_multiview.tiny_pipeline()
    return pipeline(torch.rand(1, 3, 32, 32) if image is None else image, **options)


def run_folder(world: World):
    "A run that was started with other settings."
    RunDirectory(world.folder / "run", PostTrainConfig(seed=1))
    return RunDirectory(world.folder / "run", PostTrainConfig(seed=2))


def pairs_folder(world: World, content: str, shard: bytes | None = None) -> Path:
    world.file("dataset.json", content.encode())
    if shard is not None:
        world.file("pairs-000000.parquet", shard)
    return world.folder


def evaluation(**changes):
    truth = dict(images=torch.rand(2, 2, 4, 3, 16, 16), masks=torch.ones(2, 4, 16, 16), joints=torch.zeros(2, 23, 3), scale=torch.ones(2))
    inputs = dict(images=torch.rand(2, 2, 4, 3, 16, 16), latents=torch.zeros(2, 2, 4, 4, 8, 8))
    inputs |= {name: value for name, value in changes.items() if name in inputs}
    truth |= {name.removeprefix("true_"): value for name, value in changes.items() if name.startswith("true_")}
    return evaluate_views(**inputs, truth=GroundTruth(**truth), eval_predictor=None, rig=RIG)


def with_nan(shape, at=0):
    tensor = torch.rand(shape)
    tensor.view(-1)[at] = float("nan")
    return tensor


# ---- the table: what is broken, the call, the error, what its sentence names ----

BAD = {
    # motion files
    "motion: no such file": (lambda w: load_motion(w.folder / "walk.npz"), FileNotFoundError, "walk.npz"),
    "motion: a folder": (lambda w: load_motion(w.folder), IsADirectoryError, "needed one motion file"),
    "motion: empty": (lambda w: load_motion(w.file("walk.npz")), ValueError, "0 bytes"),
    "motion: a picture": (lambda w: load_motion(w.file("walk.npz", b"\x89PNG" + bytes(60))), ValueError, "begins with"),
    "motion: AMASS cut short": (lambda w: load_motion(cut(write_amass(w.folder / "walk.npz", some_pose(50), w.body))), ValueError, "cannot be read as an npz"),
    "motion: AMASS with a rate of 0": (lambda w: load_motion(write_amass(w.folder / "walk.npz", some_pose(), w.body, mocap_frame_rate=0.0)), ValueError, "mocap_frame_rate"),
    "motion: AMASS in degrees": (lambda w: load_motion(write_amass(w.folder / "walk.npz", some_pose(4), w.body, poses=np.full((4, 165), 45.0))), ValueError, "radians"),
    "motion: Motion-X width": (lambda w: load_motion(write_motion_x(w.folder / "walk.npy", some_pose(), array=np.zeros((4, 263)))), ValueError, "(frames, 322)"),
    "motion: pickle with a program": (lambda w: load_motion(w.file("dance.pkl", b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R.")), ValueError, "posix.system"),
    "motion: BVH without motion": (lambda w: load_motion(write_bvh(w.folder / "walk.bvh", some_pose(), w.body, edit=lambda text: text.split("MOTION")[0])), ValueError, "MOTION"),
    "motion: no such axis": (lambda w: load_motion(write_amass(w.folder / "walk.npz", some_pose(), w.body), up_axis="x"), ValueError, "up_axis"),
    # body models
    "body: no such file": (lambda w: load_body(w.folder / "SMPLX_MALE.npz"), FileNotFoundError, "SMPLX_MALE.npz"),
    "body: folder without a model": (lambda w: load_body(w.folder), FileNotFoundError, "SMPLX_NEUTRAL.npz"),
    "body: a pickle": (lambda w: load_body(w.file("SMPLX_NEUTRAL.pkl", pickle.dumps(0))), ValueError, "pickle"),
    "body: cut short": (lambda w: load_body(w.file("SMPLX_NEUTRAL.npz", b"PK\x03\x04" + bytes(99))), ValueError, "not an .npz archive"),
    "body: field missing": (lambda w: load_body(body_file(w, weights=None)), ValueError, "field 'weights' is missing"),
    "body: NaN": (lambda w: load_body(body_file(w, v_template=lambda old: old * np.nan)), ValueError, "NaN"),
    "body: millimetres": (lambda w: load_body(body_file(w, v_template=lambda old: old * 1000)), ValueError, "needed metres"),
    "body: too few joints": (lambda w: load_body(body_file(w, weights=lambda old: old[:, :24])), ValueError, "(V, 55)"),
    # network folders
    "pipeline: no such folder": (lambda w: MultiViewPipeline.from_pretrained(w.folder / "nowhere"), FileNotFoundError, "nowhere"),
    "pipeline: a file": (lambda w: MultiViewPipeline.from_pretrained(w.file("model.ckpt")), ValueError, "is a file"),
    "pipeline: empty folder": (lambda w: MultiViewPipeline.from_pretrained(w.folder), FileNotFoundError, "model_index.json"),
    "pipeline: folder of a UNet": (lambda w: MultiViewPipeline.from_pretrained(w.copied("pipeline") / "unet"), FileNotFoundError, "needed the folder of a MultiViewPipeline"),
    "pipeline: another pipeline": (lambda w: MultiViewPipeline.from_pretrained(edited(w.copied("pipeline"), "model_index.json", _class_name="StableDiffusionPipeline")), ValueError, "StableDiffusionPipeline"),
    "pipeline: foreign code": (lambda w: MultiViewPipeline.from_pretrained(edited(w.copied("pipeline"), "model_index.json", image_encoder=["os", "system"])), ValueError, "'os'"),
    "pipeline: part of another class": (lambda w: MultiViewPipeline.from_pretrained(edited(w.copied("pipeline"), "model_index.json", unet=["diffusers", "UNet2DModel"])), ValueError, "UNet2DModel"),
    "pipeline: VAE cut short": (lambda w: MultiViewPipeline.from_pretrained(truncated(w.copied("pipeline"), f"vae/{WEIGHTS}")), ValueError, "vae"),
    "pipeline: no scheduler": (lambda w: MultiViewPipeline.from_pretrained(removed(w.copied("pipeline"), "scheduler/scheduler_config.json")), FileNotFoundError, "scheduler_config.json"),
    "pipeline: UNet without weights": (lambda w: MultiViewPipeline.from_pretrained(removed(w.copied("pipeline"), f"unet/{WEIGHTS}")), FileNotFoundError, "no weights"),
    "UNet: config of other width": (lambda w: MultiViewUNet.from_pretrained(edited(w.copied("pipeline") / "unet", "config.json", cross_attention_dim=12)), ValueError, "shape"),
    "UNet: config of nonsense": (lambda w: MultiViewUNet.from_pretrained(edited(w.copied("pipeline") / "unet", "config.json", attention_head_dim=[3])), ValueError, "attention_head_dim"),
    "UNet: more levels than weights": (lambda w: MultiViewUNet.from_pretrained(edited(w.copied("pipeline") / "unet", "config.json", layers_per_block=2)), ValueError, "lack"),
    "UNet: weights as .bin": (lambda w: MultiViewUNet.from_pretrained(renamed(w.copied("pipeline") / "unet", WEIGHTS, "diffusion_pytorch_model.bin")), ValueError, "never read"),
    "predictor: cut short": (lambda w: SkeletonPredictor.from_pretrained(truncated(w.copied("predictor"), WEIGHTS)), ValueError, WEIGHTS),
    "predictor: a pickle under the right name": (lambda w: SkeletonPredictor.from_pretrained(pickled(w.copied("predictor"), WEIGHTS)), ValueError, "safetensors"),
    "predictor: config of a UNet": (lambda w: SkeletonPredictor.from_pretrained(w.copied("pipeline") / "unet"), ValueError, "MultiViewUNet"),
    "predictor: config no JSON": (lambda w: SkeletonPredictor.from_pretrained(truncated(w.copied("predictor"), "config.json")), ValueError, "not valid JSON"),
    "predictor: config without class": (lambda w: SkeletonPredictor.from_pretrained(edited(w.copied("predictor"), "config.json", _class_name=None)), ValueError, "describes no model"),
    "predictor: latents of one domain": (lambda w: tiny_parts.predictor()(torch.zeros(1, 1, 4, 4, 8, 8), RIG), ValueError, "D*C = 8"),
    "predictor: odd latents": (lambda w: tiny_parts.predictor()(torch.zeros(1, 2, 4, 4, 7, 8), RIG), ValueError, "7 x 8"),
    "adapter: none there": (lambda w: load_lora(tiny_parts.unet(), w.folder), FileNotFoundError, LORA_FILE),
    "adapter: damaged": (lambda w: load_lora(tiny_parts.unet(), lora_folder(w)), ValueError, LORA_FILE),
    # settings
    "settings: unknown name": (lambda w: settings(leraning_rate=1.0), ValueError, "'leraning_rate'"),
    "settings: text for a number": (lambda w: settings(learning_rate="1e-4"), TypeError, "1.0e-4"),
    "settings: not finite": (lambda w: settings(kl_weight=float("nan")), ValueError, "finite"),
    "settings: estimator": (lambda w: settings(estimator="reinforce"), ValueError, "'estimator'"),
    "settings: more trained than steps": (lambda w: settings(trained_steps=20), ValueError, "'trained_steps'"),
    "settings: early stop": (lambda w: settings(early_stop=11), ValueError, "'early_stop'"),
    "settings: of no job": (lambda w: split_settings({"sede": 1}, PostTrainConfig), ValueError, "'sede'"),
    "settings: of another run": (run_folder, ValueError, "seed = 1"),
    "rollout: noise without batch": (lambda w: rollout(None, default_scheduler(), torch.zeros(4)), ValueError, "noise has shape"),
    # photos
    "photo: a path": (lambda w: photo_tensor("me.png", 32), ValueError, "['str']"),
    "photo: nothing": (lambda w: photo_tensor([], 32), ValueError, "found none"),
    "photo: numpy array": (lambda w: photo_tensor(np.zeros((32, 32, 3)), 32), ValueError, "ndarray"),
    "photo: grey picture": (lambda w: photo_tensor(Image.new("L", (32, 32)), 32), ValueError, "['L']"),
    "photo: one pixel": (lambda w: photo_tensor(Image.new("RGB", (1, 1)), 32), ValueError, "1 x 1"),
    "photo: two channels": (lambda w: photo_tensor(torch.zeros(1, 2, 32, 32), 32), ValueError, "(1, 2, 32, 32)"),
    "photo: empty batch": (lambda w: photo_tensor(torch.zeros(0, 3, 32, 32), 32), ValueError, "(0, 3, 32, 32)"),
    "photo: bytes": (lambda w: photo_tensor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 32), ValueError, "uint8"),
    "photo: tensor of other size": (lambda w: pipeline_call(w, torch.rand(1, 3, 1, 1)), ValueError, "tensor of 1 x 1"),
    "photo: NaN": (lambda w: pipeline_call(w, with_nan((1, 3, 32, 32))), ValueError, "NaN"),
    "photo: up to 255": (lambda w: pipeline_call(w, 255 * torch.ones(1, 3, 32, 32)), ValueError, "255"),
    "photo: nobody in it": (lambda w: photo_tensor(torch.zeros(1, 4, 32, 32), 32), ValueError, "empty mask"),
    "pipeline: no steps": (lambda w: pipeline_call(w, num_inference_steps=0), ValueError, "num_inference_steps"),
    "pipeline: output type": (lambda w: pipeline_call(w, output_type="np"), ValueError, "output_type"),
    "pipeline: starting noise": (lambda w: pipeline_call(w, latents=torch.zeros(1, 4, 8, 8)), ValueError, "latents must have shape"),
    # datasets and benchmarks
    "pairs: no card": (lambda w: PosePairs(w.folder), FileNotFoundError, "dataset.json"),
    "pairs: card of another kind": (lambda w: PosePairs(pairs_folder(w, "[4]")), ValueError, "holds a JSON list"),
    "pairs: shard is no Parquet": (lambda w: PosePairs(pairs_folder(w, '{"pairs": 4}', b"PAR1 torn")), ValueError, "pairs-000000.parquet"),
    "pairs: shards missing": (lambda w: PosePairs(pairs_folder(w, '{"pairs": 4}')), ValueError, "promises 4 pairs"),
    "plan: selection": (lambda w: plan_dataset(4, selection="best", body_model=w.body), ValueError, "'best'"),
    "pose set: name": (lambda w: draw_set("soft", 1, 0, w.body), ValueError, "'soft'"),
    "clips: purpose": (lambda w: clips_for("test"), ValueError, "'test'"),
    "benchmark: name": (lambda w: load_benchmark("medium", None, w.body), ValueError, "'medium'"),
    "benchmark: no samples": (lambda w: load_benchmark("hard", None, w.body, samples=0), ValueError, "and 0"),
    # views and evaluation
    "rig: no views": (lambda w: ViewRig(()), ValueError, "azimuths"),
    "rig: mirror flags": (lambda w: ViewRig((0, 90), mirrored=(True,)), ValueError, "mirrored"),
    "render: framing": (lambda w: render_views(w.body(some_pose(1)), RIG, framing="height"), ValueError, "framing"),
    "evaluation: views": (lambda w: evaluation(images=torch.rand(2, 2, 3, 3, 16, 16)), ValueError, "(2, 2, 3, 3, 16, 16)"),
    "evaluation: joints": (lambda w: evaluation(true_joints=torch.zeros(2, 22, 3)), ValueError, "true joints"),
    "evaluation: NaN": (lambda w: evaluation(latents=with_nan((2, 2, 4, 4, 8, 8), at=-1)), ValueError, "latents of sample 1"),
    "evaluation: unpaired": (lambda w: compare(np.zeros(3), np.zeros(2)), ValueError, "same samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(world, name, sentences):
    call, error, named = BAD[name]
    with pytest.raises(error) as caught:
        call(world)
    assert type(caught.value) is error, f"{type(caught.value).__name__} is a special case that callers do not expect"
    sentence = str(caught.value)
    assert named in sentence, sentence
    assert "\n" not in sentence and 20 < len(sentence) < 400, sentence
    sentences.setdefault(sentence.replace(str(world.folder), ""), []).append(name)


@pytest.fixture(scope="module")
def sentences():
    "Every sentence that came up; at the end no two inputs may share one."
    seen: dict[str, list[str]] = {}
    yield seen
    shared = [names for names in seen.values() if len(names) > 1]
    assert not shared, f"the same sentence answers {shared[0]}"


def test_the_whole_models_load(world):
    "The folders that the table damages are good before."
    MultiViewPipeline.from_pretrained(world.copied("pipeline"))
    SkeletonPredictor.from_pretrained(world.copied("predictor"))
    load = partial(MultiViewPipeline.from_pretrained, removed(world.folder / "pipeline", f"unet/{WEIGHTS}"))
    assert load(unet=test_multiview.tiny_unet(projection_class_embeddings_input_dim=192)).unet.config.num_views == 4
    load_body(body_file(world))
