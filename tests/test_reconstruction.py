"""From a photo to a person: coverage of drawn normals, the choice among draws, units, files, what happens without a body or a predictor, doors, the command."""

import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from drpose.ground import command
from drpose.ground.model_files import embedded_models
from drpose.mesh import reconstruction
from drpose.mesh.carving import carve_surface
from drpose.mesh.reconstruction import Reconstruction, ReconstructionConfig, coverage_of, load_models, person_from_views, read_person, reconstruct, seen_joints
from drpose.multiview.pipeline import encode_images
from drpose.pairs.detectors import load_detector
from drpose.pairs.gates import Detection
from drpose.pairs.scail_animator import read_video
from drpose.people.bodies import load_body
from drpose.people.clips import embedded_clips
from drpose.people.pose_sets import draw_set
from drpose.pictures.cameras import FOUR_VIEWS
from drpose.pictures.dressed_people import draw_crowd, photograph
from drpose.pictures.mesh_files import read_scan

SIZE = 64


@pytest.fixture(scope="module")
def body_model():
    return load_body()


@pytest.fixture(scope="module")
def somebody(body_model):
    "A person who waves: four true views of 64 pixels, and the joints in the frame."
    crowd = draw_crowd(body_model, [5])
    pose = embedded_clips()["wave"].poses[20:21].with_betas(crowd.betas)
    taken = photograph(body_model, pose, crowd, FOUR_VIEWS, SIZE)
    body = body_model(pose)
    return taken, taken.framing.apply(body.joints[:, :23])[0], body


@pytest.fixture(scope="module")
def photo(somebody, tmp_path_factory):
    taken, _, _ = somebody
    picture = torch.cat([taken.views.colors[0, 0], taken.views.masks[0, 0][None]]).clamp(0, 1)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy(), "RGBA").save(path)
    return path


@pytest.fixture(scope="module")
def person(somebody, body_model):
    taken, joints, _ = somebody
    return person_from_views(taken.views.normals[0], taken.views.colors[0], taken.views.masks[0], FOUR_VIEWS, body_model, joints, texture_size=128)


def in_few_steps(patch):
    "From here on, surfaces and bodies are in their places when they have hardly begun to move; how good they get is seen with true views."
    patch.setattr(reconstruction, "carve_surface", partial(carve_surface, steps=8))
    patch.setattr("drpose.mesh.carving.ROUND_STEPS", 3)
    patch.setattr("drpose.mesh.body_fit.VIEW_STEPS", 4)
    patch.setattr("drpose.mesh.body_fit.MATCH_STEPS", 10)


@pytest.fixture(scope="module")
def made(photo):
    with pytest.MonkeyPatch.context() as patch:
        in_few_steps(patch)
        return reconstruct(photo, num_inference_steps=4, best_of=2, texture_size=0)


@pytest.mark.parametrize("level", [0.5, 1.0, 0.0])
def test_coverage_is_the_mask_on_any_plain_background(somebody, level):
    views = somebody[0].views
    masks = views.masks[0]
    vectors = torch.nn.functional.normalize(2 * views.normals[0] - 1, dim=1, eps=1e-6)
    drawn = masks[:, None] * (vectors / 2 + 0.5) + (1 - masks[:, None]) * level
    found = coverage_of(drawn + 0.02 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0)))
    assert ((found > 0.5) != (masks > 0.5)).float().mean() < 0.02
    assert ((found > 0.5) & (masks > 0.5)).sum() > 0.97 * (masks > 0.5).sum() and found[masks == 0].mean() < 0.02


def test_specks_are_no_person(somebody):
    normals = somebody[0].views.normals[0].clone()
    before = coverage_of(normals)
    normals[1, :, 2:4, 2:4] = torch.tensor([0.5, 0.5, 1.0])[:, None, None]
    assert torch.equal(coverage_of(normals), before)


def test_true_views_give_a_person_of_the_true_size(person, somebody):
    true = somebody[2].vertices[0]
    height = lambda vertices: float(vertices[:, 1].max() - vertices[:, 1].min())  # noqa: E731
    assert height(person.carved.vertices) == pytest.approx(height(true) * somebody[0].framing.scale.item(), rel=0.02), "in the frame, where views do tell"
    assert height(person.scan.vertices) == pytest.approx(height(true), abs=0.2), "two metres tall: proportions tell a size only roughly"
    assert person.scan.texture.shape == (3, 128, 128) and person.fit.residuals.mean() < 0.05
    carved = trimesh.Trimesh(person.carved.vertices.numpy(), person.carved.faces.numpy(), process=False)
    assert carved.is_watertight and carved.body_count == 1
    framed = somebody[0].framing.apply(somebody[2].vertices)[0]
    near = torch.cdist(person.carved.vertices, framed).amin(1)
    assert near.mean() < 0.008, "1.5 cm of a person, at pixels of 3 cm"


@pytest.mark.parametrize("name", ["person.glb", "person.obj"])
def test_files_hold_the_person(person, name, tmp_path):
    again = read_scan(person.save(tmp_path / name))
    assert again.texture is not None and len(again.faces) == len(person.scan.faces)
    if name.endswith("glb"):
        assert b'"skins"' in (tmp_path / name).read_bytes() and b"left_shoulder" in (tmp_path / name).read_bytes()
    else:
        assert torch.allclose(again.vertices.amax(0), person.scan.vertices.amax(0), atol=1e-3)


def test_a_turntable_goes_around(person, tmp_path):
    gif = Image.open(person.turntable(tmp_path / "person.gif", 4, 48))
    frames = []
    for number in range(gif.n_frames):
        gif.seek(number)
        frames.append(np.asarray(gif.convert("RGB"), float))
    assert len(frames) == 4 and gif.size == (48, 48) and gif.info["loop"] == 0
    assert all(np.abs(one - other).mean() > 1 for one, other in zip(frames, frames[1:])) and frames[0][0, 0].min() > 240
    with pytest.raises(ValueError, match="ends in .gif or .mp4"):
        person.turntable(tmp_path / "person.avi")


def test_a_turntable_is_a_film_too(person, tmp_path):
    "As every player shows it (4:2:0), once around in 2.4 s, with the pictures of the GIF."
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    made = person.turntables(tmp_path / "person.glb", 12, 48)
    assert [path.name for path in made] == ["person.gif", "person.mp4"] and all(path.is_file() for path in made)
    about = next(ffmpeg.read_frames(str(made[1])))
    assert about["pix_fmt"].startswith("yuv420p") and about["codec"] == "h264" and about["duration"] == pytest.approx(2.4, abs=0.1)
    frames, gif = (read_video(made[1]) * 255).permute(0, 2, 3, 1).numpy(), Image.open(made[0])
    assert frames.shape == (12, 48, 48, 3)
    for number, frame in enumerate(frames):
        gif.seek(number)
        assert np.abs(frame - np.asarray(gif.convert("RGB"), float)).mean() < 6


def test_without_ffmpeg_a_turntable_is_a_gif(person, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "find_spec", lambda name: None)
    assert person.turntables(tmp_path / "person.glb", 2, 32) == [tmp_path / "person.gif"]
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'drpose\[video\]'"):
        person.turntable(tmp_path / "film.mp4", 2, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["person.gif"]


def test_without_joints_there_is_no_skeleton(somebody, body_model, tmp_path, monkeypatch):
    in_few_steps(monkeypatch)
    views = somebody[0].views
    found = person_from_views(views.normals[0], views.colors[0], views.masks[0], FOUR_VIEWS, body_model, texture_size=0)
    assert found.fit is None and b'"skins"' not in found.save(tmp_path / "person.glb").read_bytes()
    longest = (found.scan.vertices.amax(0) - found.scan.vertices.amin(0)).max()
    assert longest == pytest.approx(reconstruction.TALL, abs=0.01)


def test_joints_of_nobody_are_told_and_left(somebody, body_model, monkeypatch):
    in_few_steps(monkeypatch)
    taken, joints, _ = somebody
    with pytest.warns(UserWarning, match="no body fits the joints"):
        found = person_from_views(taken.views.normals[0], taken.views.colors[0], taken.views.masks[0], FOUR_VIEWS, body_model, 0.01 * joints, texture_size=0)
    assert found.fit is None


def test_true_views_agree_more_than_mixed_ones(body_model):
    pipeline, predictor = load_models(ReconstructionConfig())
    drawn = draw_set("everyday_test", 2, 0, body_model)
    crowd = draw_crowd(body_model, drawn.people[1:])
    taken = photograph(body_model, drawn.poses[1:], crowd, FOUR_VIEWS, SIZE)
    true = taken.framing.apply(body_model(drawn.poses[1:].with_betas(crowd.betas)).joints[:, :23])[0]
    views = taken.views
    images = torch.stack([views.normals, views.colors], 1)
    images[:, :, 2:] = images[:, :, 2:].flip(-1)  # as the tiny model draws them
    latents = encode_images(pipeline.vae, images)
    mixed = latents.clone()
    mixed[:, :, 1] = latents[:, :, 2]
    photo = views.colors[0, 0]
    (joints, right), (_, wrong) = (read_person(given, photo, pipeline, predictor) for given in (latents, mixed))
    _, other_photo = read_person(latents, photo.flip(-1), pipeline, predictor)
    assert right < 0.7 * wrong and right < other_photo
    assert (joints - true).norm(dim=1).mean() < 0.04, "of the frame"


def test_the_draw_that_agrees_most_is_kept(made, photo):
    assert isinstance(made, Reconstruction) and len(made.disagreements) == 2 and made.images.shape == (2, 4, 3, SIZE, SIZE)
    alone = [reconstruction.draw_photo(made.photo, number, *load_models(ReconstructionConfig()), ReconstructionConfig(num_inference_steps=4)) for number in range(2)]
    assert [draw.disagreement for draw in alone] == pytest.approx(made.disagreements, abs=1e-5)
    assert torch.allclose(alone[int(np.argmin(made.disagreements))].images, made.images, atol=1e-5)


class Seer:
    "Finds what it was given, and has no points for spine, collars and jaw."

    def __init__(self, joints, told=True, depth=True):
        joints = joints.clone()
        joints[[3, 6, 9, 13, 14, 22]] = torch.nan
        self.found = Detection(joints[None, :, :2], torch.full((1, 23), 0.01), torch.tensor([told]), joints[None, :, 2] - joints[0, 2] if depth else None)

    def detect(self, images):
        return self.found


def test_what_a_detector_does_not_know_is_a_bodys(somebody, body_model):
    "Known joints come back as they are, from the middle of the body's box; spine, collars and jaw lie where they do in the true body, to 3 cm."
    _, joints, _ = somebody
    scale = somebody[0].framing.scale.item()
    found = seen_joints(torch.ones(3, 8, 8), Seer(joints), body_model)
    known = [joint for joint in range(23) if joint not in (3, 6, 9, 13, 14, 22)]
    assert torch.allclose(found[known, :2], joints[known, :2]) and torch.allclose(found[known, 2] - found[0, 2], joints[known, 2] - joints[0, 2], atol=1e-6)
    assert (found - joints).norm(dim=-1).max() < 0.03 * scale, "the frame's middle too, to which the true joints belong"


def test_a_detector_that_cannot_say_is_refused(somebody, body_model):
    joints = somebody[1]
    with pytest.raises(ValueError, match="Seer sees no depth, needed one that does.*blazepose"):
        seen_joints(torch.ones(3, 8, 8), Seer(joints, depth=False), body_model)
    with pytest.raises(ValueError, match="Seer finds too little of a person in the photo"):
        seen_joints(torch.ones(3, 8, 8), Seer(torch.full((23, 3), torch.nan)), body_model)
    with pytest.warns(UserWarning, match="two looks of Seer at the photo do not agree"):
        seen_joints(torch.ones(3, 8, 8), Seer(joints, told=False), body_model)


def test_a_pose_that_was_seen_is_drawn_and_believed(made, somebody):
    "Told another pose, the model draws another person; the body starts from what was seen. A model that takes no pose draws as ever."
    models, config, joints = load_models(ReconstructionConfig()), ReconstructionConfig(num_inference_steps=4), somebody[1]
    alone, told, mirrored = (reconstruction.draw_photo(made.photo, 0, *models, config, one) for one in (None, joints, joints * torch.tensor([1.0, 1.0, -1.0])))
    assert torch.equal(told.joints, joints) and not torch.equal(alone.joints, joints)
    sides = lambda draw: draw.images[1, 1::2]  # noqa: E731
    assert (sides(told) - sides(mirrored)).abs().mean() > 3 * (told.images[1, 0] - mirrored.images[1, 0]).abs().mean(), "the front does not tell depth"
    models[0].unet.register_to_config(skeleton_channels=0)
    models[0].register_modules(pose_estimator=None)
    untold, again = (reconstruction.draw_photo(made.photo, 0, *models, config, one) for one in (None, joints))
    assert torch.equal(untold.images, again.images) and torch.equal(again.joints, joints)
    assert torch.equal(reconstruction.draw_photo(made.photo, 0, models[0], None, config, joints).joints, joints) and reconstruction.draw_photo(made.photo, 0, models[0], None, config).joints is None


def test_the_command_asks_a_detector(photo, monkeypatch):
    "The estimator that ships, asked as a detector about the same photo, at 512 pixels: nearly the pose that the pipeline finds by itself."
    told = []
    monkeypatch.setattr(reconstruction, "draw_photo", lambda photo, number, pipeline, predictor, config, joints: told.append((joints, pipeline.estimate(photo.body[None, None])[0])) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reconstruct(photo, detector="estimator")
    ((seen, own),) = told
    assert (seen[:, :2] - own[:, :2]).norm(dim=-1).mean() < 0.02 and ((seen - seen[0]) - (own - own[0])).norm(dim=-1).mean() < 0.04
    assert isinstance(load_detector("estimator").detect(torch.ones(1, 3, 64, 64)).depth, torch.Tensor)


def test_a_pipeline_alone_has_no_predictor(tmp_path):
    pipeline = tmp_path / "alone"
    shutil.copytree(embedded_models() / "pipeline", pipeline)
    assert load_models(ReconstructionConfig(models=str(pipeline)))[1] is None
    with pytest.raises(ValueError, match="best_of.*holds no skeleton predictor"):
        load_models(ReconstructionConfig(models=str(pipeline), best_of=2))


@pytest.mark.parametrize(
    "settings, words",
    [({"best_of": 0}, "best_of"), ({"start": "cube"}, "start"), ({"texture_size": 3}, "texture_size"), ({"dtype": "float8"}, "dtype"), ({"num_inference_steps": 0}, "num_inference_steps"),
     ({"detector": "openpose"}, "detector"), ({"detector_weights": "some.tflite"}, "detector_weights")],
)  # fmt: skip
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        ReconstructionConfig(**settings)


def test_the_command(photo, tmp_path, capsys, monkeypatch, made):
    monkeypatch.setattr(reconstruction, "reconstruct", lambda given, config: made)
    assert command.main(["reconstruct", str(photo), "-o", str(tmp_path / "person.glb"), "--best-of", "3", "--texture-size", "0"]) == 0
    assert (tmp_path / "person.glb").is_file() and (tmp_path / "person.gif").is_file() and "faces" in capsys.readouterr().out


def test_who_has_no_photo_gets_an_example(tmp_path, capsys, monkeypatch, made):
    "It lies beside the mesh, and no picture that has the mesh's name is written over."
    given = []
    monkeypatch.setattr(reconstruction, "reconstruct", lambda shown, config: given.append(shown) or made)
    (tmp_path / "me.png").write_bytes(b"mine")
    assert command.main(["reconstruct", "-o", str(tmp_path / "me.glb")]) == 0
    assert "me_example.png" in capsys.readouterr().out and (tmp_path / "me.png").read_bytes() == b"mine"
    with Image.open(tmp_path / "me_example.png") as kept:
        assert kept.mode == "RGBA" and np.array_equal(np.array(kept), np.array(given[0]))
        alpha = np.array(kept)[..., 3]
    assert 0.03 < (alpha > 127).mean() < 0.5 and not alpha[[0, -1]].any(), "a whole person, with air around"


@pytest.mark.parametrize(
    "arguments, words",
    [(["missing.png", "-o", "person.glb"], "missing.png"), (["{photo}", "-o", "person.jpg"], "no mesh by its name"), (["{photo}", "-o", "person.glb", "--models", "nowhere"], "nowhere"),
     (["{photo}", "-o", "person.glb", "--start", "cube"], "start"), (["{photo}", "-o", "person.glb", "--detector", "blazepose"], "'blazepose' needs weights")],
)  # fmt: skip
def test_the_command_refuses_in_one_sentence(arguments, words, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["reconstruct", *(part.format(photo=photo) for part in arguments)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not list(tmp_path.iterdir())
