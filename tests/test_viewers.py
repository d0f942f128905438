"""The viewers without a browser: what their sliders and buttons do, and what they say to wrong input. `make browser-test` looks at them in JupyterLab."""

import html
import json

import numpy as np
import pytest
import torch

from drpose.ground.model_files import embedded_models
from drpose.ground.trainer import STOP_FILE, RunDirectory
from drpose.people.bodies import SMPLX_JOINT_NAMES, Pose
from drpose.people.clips import embedded_clips
from drpose.people.motion import load_motion
from drpose.multiview.unet import save_lora
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.posttraining.post_training import PostTrainConfig, prepare_weights
from drpose.posttraining.viewers import BeforeAfter, ClipPlayer, PoseEditor, TrainingView, save_pose


def said(viewer) -> str:
    return html.unescape(viewer.message.value).removeprefix("<b>").removesuffix("</b>")


@pytest.fixture(scope="module")
def editor():
    viewer = PoseEditor("star_jump")
    assert said(viewer) == ""
    return viewer


@pytest.fixture
def begun(editor):
    "The editor as it opens."
    for button in editor.counted:
        button.value = True
    editor.source.index = 0
    editor.joint.value = SMPLX_JOINT_NAMES.index("left_hip")
    editor.load("star_jump")
    editor.hold()
    return editor


def test_turning_a_joint_moves_body_maps_and_score_but_not_the_camera(begun):
    figure, mesh, score, picture = begun.figure, np.array(begun.figure.data[0].y), begun.total, begun.picture.value
    camera = figure.layout.scene.camera.eye.to_plotly_json()
    swing = next(slider for slider in begun.angles if "swing z" in slider.description)
    swing.value = swing.min
    assert begun.figure is figure and figure.layout.scene.camera.eye.to_plotly_json() == camera and figure.layout.scene.uirevision
    assert np.abs(np.array(figure.data[0].y) - mesh).max() > 0.01 and begun.total < score - 0.05 and begun.picture.value != picture
    assert f"{begun.total:.4f}" in begun.score.value
    assert max(np.abs(np.array(figure.data[0][axis])).max() for axis in "xyz") <= 0.5 + 1e-6, "the frame holds any pose"
    other = begun.pose.axis_angles[0, SMPLX_JOINT_NAMES.index("right_hip")]
    assert torch.equal(other, begun.frames[begun.frame.value].axis_angles[0, SMPLX_JOINT_NAMES.index("right_hip")]), "one joint moves"


def test_the_score_is_of_the_views_that_count(begun):
    swing = next(slider for slider in begun.angles if "swing z" in slider.description)
    swing.value = swing.min
    every = begun.total
    begun.counted[0].value = begun.counted[2].value = False
    assert begun.total > every + 0.05, "from the sides the leg has hardly moved"
    for button in begun.counted:
        button.value = False
    assert said(begun) == "no view is chosen, needed at least one to score"


def test_shape_clip_and_frame_change_the_body(begun):
    before = begun.studio.look(begun.pose).joints
    begun.shape[0].value = 2.5
    assert begun.pose.betas[0, 0] == 2.5 and not torch.equal(begun.studio.look(begun.pose).joints, before)
    begun.clip.value = "tree"
    begun.frame.value = 3
    assert torch.equal(begun.pose.axis_angles, embedded_clips()["tree"].poses[3:4].axis_angles)


def test_what_the_base_draws_scores_less_than_the_views_themselves(begun):
    true = begun.total
    begun.source.index = 1
    assert begun.total < true


def test_a_pose_is_saved_and_loaded(begun, tmp_path):
    begun.path.value = str(tmp_path / "mine.npz")
    begun.angles[0].value = begun.angles[0].min
    begun.save()
    saved = begun.pose
    begun.load("tree")
    begun.load(begun.path.value)
    torch.testing.assert_close(begun.pose.axis_angles[:, :22], saved.axis_angles[:, :22])
    torch.testing.assert_close(begun.pose.transl, saved.transl)
    assert load_motion(tmp_path / "mine.npz", up_axis="y").fps == 30
    begun.path.value = str(tmp_path / "mine.txt")
    begun.save()
    assert "needed a name with that ending" in said(begun) and not (tmp_path / "mine.txt").exists()
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    begun.load(tmp_path / "broken.npz")
    assert "broken.npz" in said(begun) and "\n" not in said(begun)


def test_several_frames_are_saved_as_a_motion(tmp_path):
    poses = embedded_clips()["cartwheel"].poses[:5]
    found = load_motion(save_pose(tmp_path / "five.npz", poses), up_axis="y").poses
    torch.testing.assert_close(found.axis_angles, Pose(poses.axis_angles, poses.betas, poses.transl).axis_angles)
    assert torch.equal(found.transl, poses.transl)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    "What a post-training run leaves, its adapter made up."
    folder = tmp_path_factory.mktemp("job")
    config = PostTrainConfig(steps=2, lora_rank=4, batch_size=1)
    run = RunDirectory(folder / "run", config)
    unet = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline").unet
    prepare_weights(unet, config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    save_lora(unet, run.path / "lora")
    run.log(1, {"reward": -0.3})
    run.log(2, {"reward": -0.2})
    return folder


def test_before_and_after_draws_the_runs_people(run_folder):
    viewer = BeforeAfter(run_folder, people=2)
    assert said(viewer) == "" and [line.split(":")[0] for line in viewer.comparison.words("hard", 0).splitlines()] == ["base", "tuned", "truth"]
    drawn = viewer.comparison.of("hard")
    assert not torch.allclose(drawn.images["base"], drawn.images["tuned"], atol=1e-2), "the adapter was folded in"
    assert drawn.measured["truth"].mpjpe_mm.mean() < drawn.measured["base"].mpjpe_mm.mean()
    one, picture, figure = viewer.numbers.value, viewer.picture.value, viewer.figure
    viewer.person.value = 1
    assert viewer.numbers.value != one and viewer.picture.value != picture and viewer.figure is figure, "the scene keeps its camera"
    for control, value in ((viewer.view, 2), (viewer.normals, True), (viewer.bones, False), (viewer.view, -1)):
        picture = viewer.picture.value
        control.value = value
        assert viewer.picture.value != picture and said(viewer) == ""
    names = {trace.name for trace in viewer.figure.data}
    assert names == {"true body", "base", "tuned", "truth"}


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda folder: None, "no such folder, needed one that the job posttrain has written"),
    (lambda folder: folder.mkdir(), "holds no config.json"),
    (lambda folder: RunDirectory(folder, PostTrainConfig()), "holds no folder lora, needed a run that has ended"),
    (lambda folder: (folder.mkdir(), (folder / "config.json").write_text('{"step": 3}')), "unknown name 'step'"),
    (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "not valid JSON"),
])
def test_before_and_after_says_what_is_wrong_with_a_run(make, sentence, tmp_path):
    make(tmp_path / "job")
    viewer = BeforeAfter(tmp_path / "job")
    assert sentence in said(viewer) and "\n" not in said(viewer)


def test_a_clip_is_played(tmp_path):
    player = ClipPlayer(save_pose(tmp_path / "motion.npz", embedded_clips()["walk"].poses[:12]))
    first = player.picture.value
    player.frame.value = 7
    assert said(player) == "" and player.frame.max == 11 and player.picture.value != first
    player.named.value = str(tmp_path / "none.bvh")
    player.read()
    assert said(player).endswith("none.bvh: no such file, needed a motion file")
    player.frame.value = 3  # nothing is open: nothing happens
    assert "none.bvh" in said(player)


def test_a_training_is_watched_and_stopped(run_folder, tmp_path):
    view = TrainingView(run_folder)
    assert view.curves.value and "step 2 of 2: reward -0.2" in view.words.value and said(view) == "this run has no sheet of validation (yet)"
    view.stop()
    assert (run_folder / "run" / STOP_FILE).exists() and "ends at its next checkpoint" in said(view)
    (run_folder / "run" / "validation.jsonl").write_text(json.dumps({"step": 2, "hard_mm": 251.4, "everyday_mm": 80, "psnr": 18, "alarms": ["pictures blur"]}) + "\n")
    view.follow.value = 1
    assert "validation at step 2: hard 251 mm" in view.words.value and "pictures blur" in view.words.value and "asked to stop" in view.words.value
    (run_folder / "run" / "validation").mkdir()
    (run_folder / "run" / "validation" / "hard-000002.png").write_bytes(b"no picture")
    view.follow.value = 2
    assert "hard-000002.png: cannot be read as a sheet of validation" in said(view)
    view.run.value = str(tmp_path / "none")
    assert "needed the folder of a run" in said(view)
    view.stop()
    assert "needed the folder of a run" in said(view)
