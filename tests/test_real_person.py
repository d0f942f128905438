"""Footage of somebody filmed by several calibrated cameras (drpose.evaluation.real_person): the layout on disk and in pose2sim's wheel, cameras, joints in space, what a comparison forgives, doors. With `DRPOSE_POSE2SIM` (the wheel) and `DRPOSE_BLAZEPOSE` (the network) in the environment also the real man, down to a GLB."""

import os
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw

from drpose.evaluation import real_person
from drpose.evaluation.real_person import COMPARED, RealTruth, azimuths_of, constant_joints, draw_footage, drawn_joints, flat_joints, level_square, locate_joints, open_footage, outline, read_cameras, read_moment, sight
from drpose.mesh import reconstruction
from drpose.mesh.carving import carve_surface
from drpose.mesh.reconstruction import reconstruct
from drpose.pairs.detectors import load_detector
from drpose.pairs.gates import Detection
from drpose.pairs.scail_animator import write_video
from drpose.people.bodies import load_body
from drpose.pictures.cameras import ViewRig
from test_mesh_writing import said_by_khronos, validator

pytest.importorskip("imageio_ffmpeg")
MOMENT = 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "Footage of somebody drawn and its true joints (23, 3) at one moment."
    footage, joints = draw_footage(tmp_path_factory.mktemp("footage"), load_body(), 7, (120, 160))
    return footage, joints[MOMENT]


@pytest.fixture(scope="module")
def seen(drawn):
    return sight(drawn[0], MOMENT, load_detector("estimator"))


def packed(folder: Path, wheel: Path) -> Path:
    "A wheel with the footage of a folder where pose2sim has its own, and with what else such a wheel holds."
    with zipfile.ZipFile(wheel, "w") as made:
        for path in sorted(folder.rglob("*.*")):
            made.write(path, f"Pose2Sim/Demo_SinglePerson/{path.parent.name}/{path.name}")
        made.writestr("Pose2Sim/Demo_MultiPerson/videos/cam01.mp4", b"another")
        made.writestr("Pose2Sim/__init__.py", "raise RuntimeError('imported')")
    return wheel


def test_a_wheel_is_read_without_being_imported(drawn, tmp_path):
    folder = drawn[0].videos[0].parents[1]
    footage = open_footage(packed(folder, tmp_path / "pose2sim-0-py3-none-any.whl"), tmp_path / "out")
    assert [path.read_bytes() for path in footage.videos] == [path.read_bytes() for path in drawn[0].videos]
    for one, other in zip(footage.cameras, drawn[0].cameras):
        assert one.name == other.name and np.allclose(one.project(drawn[1]), other.project(drawn[1]))
    assert len(list((tmp_path / "out").rglob("*.*"))) == 5


def test_a_calibration_means_what_it_means_to_its_authors(tmp_path):
    "pose2sim's first camera, and where its authors' own axes put a point one metre before it, a little to the right and up."
    (tmp_path / "one.qca.txt").write_text('''<calibration><cameras>
        <camera active="1" serial="cam01"><fov_video bottom="1919" left="0" right="1087" top="0"/><transform r11="0.5536380477336265" r12="0.8046719867383512" r13="0.2144479094331626" r21="-0.4345300743838753" r22="0.05946489349975602" r23="0.8986921279821063" r31="0.7104002579937896" r32="-0.5907342212870501" r33="0.3825762057979294" x="1460.2" y="-1909.1" z="1896.5"/>
        <intrinsic centerPointU="34110.316406" centerPointV="60680.792969" focalLengthU="107599.671875" focalLengthV="107588.828125" radialDistortion1="-0.046183" radialDistortion2="0.139983" skew="0" tangentalDistortion1="0.000608" tangentalDistortion2="0.00069"/></camera>
        <camera active="1" serial="cam02"><fov_video left="0" top="10"/><transform r11="1" r12="0" r13="0" r21="0" r22="1" r23="0" r31="0" r32="0" r33="1" x="0" y="0" z="0"/><intrinsic centerPointU="640" centerPointV="1280" focalLengthU="6400" focalLengthV="6400" radialDistortion1="0" radialDistortion2="0" tangentalDistortion1="0" tangentalDistortion2="0"/></camera>
        <camera active="0" serial="asleep"/></cameras></calibration>''')
    first, second = read_cameras(tmp_path / "one.qca.txt")
    assert second.project(np.array([0.1, 0.2, -1.0])).tolist() == pytest.approx([20.0, -10.0])
    right, up, back = first.rotation[0], -first.rotation[1], -first.rotation[2]
    pixel = first.project(first.centre - back + 0.05 * right + 0.1 * up)
    assert pixel == pytest.approx([34110.3 / 64 + 0.05 * 1681.2, 60680.8 / 64 - 0.1 * 1681.1], abs=3)
    assert up[2] > 0.8 and first.centre.tolist() == pytest.approx([1.4602, -1.9091, 1.8965])


@pytest.mark.parametrize(
    "old, new, words",
    [("<calibration>", "", "is not XML"), ('active="1"', 'active="0"', "holds 0 active cameras"), ('r22="', 'r22="7', "no rotation"), ("focalLengthU", "focal", "has no intrinsic with the numbers focalLengthU"),
     ('x="', 'x="nan" was="', "finite numbers"), ("<fov_video", "<other", "has no fov_video")],
)  # fmt: skip
def test_a_broken_calibration_is_refused_by_name(old, new, words, drawn, tmp_path):
    (path,) = (drawn[0].videos[0].parents[1] / "calibration").iterdir()
    broken = tmp_path / "broken.qca.txt"
    broken.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=words) as told:
        read_cameras(broken)
    assert str(broken) in str(told.value) and "\n" not in str(told.value)


def test_what_is_no_footage_is_refused(drawn, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder, needed footage"):
        open_footage(tmp_path / "missing", tmp_path)
    with pytest.raises(ValueError, match="holds 0 calibrations"):
        open_footage(tmp_path, tmp_path)
    (tmp_path / "junk.whl").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.whl: is no wheel"):
        open_footage(tmp_path / "junk.whl", tmp_path)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as other:
        other.writestr("other/__init__.py", "")
    with pytest.raises(ValueError, match="other.whl: holds no Pose2Sim/Demo_SinglePerson"):
        open_footage(tmp_path / "other.whl", tmp_path)
    wheel = packed(drawn[0].videos[0].parents[1], tmp_path / "some.whl")
    open_footage(wheel, tmp_path / "some")
    (tmp_path / "some" / "videos" / "cam02.mp4").unlink()
    with pytest.raises(ValueError, match="3 videos for 4 cameras"):
        open_footage(tmp_path / "some", tmp_path)


def test_a_moment_and_what_moves(drawn, tmp_path):
    footage, joints = drawn
    for camera, path in zip(footage.cameras, footage.videos):
        frame, box = read_moment(path, MOMENT)
        pixels = camera.project(joints)
        assert frame.shape == (160, 120, 3) and (pixels >= box[:2] - 3).all() and (pixels <= box[2:] + 3).all()
    with pytest.raises(ValueError, match="has 7 frames, needed frame 7"):
        read_moment(footage.videos[0], 7)
    write_video(tmp_path / "still.mp4", torch.full((4, 3, 64, 48), 0.5))
    with pytest.raises(ValueError, match="nothing moves in it"):
        read_moment(tmp_path / "still.mp4", 0)
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.mp4: cannot be read as a video"):
        read_moment(tmp_path / "junk.mp4", 0)


def test_what_stands_is_upright_in_a_level_square(drawn, seen):
    "A plumb line through the person is a column of the square, in tilted cameras too, and a cut picture shows what lies there."
    footage, joints = drawn
    assert len({round(one.square.up[0], 2) for one in seen}) > 2
    for camera, one in zip(footage.cameras, seen):
        ends = camera.project(joints[0] + np.array([[0, 0, -0.1], [0, 0, 0.1]]))
        line = (ends[1] - ends[0]) @ np.linalg.inv(one.square.axes)
        assert abs(line[0]) < 0.05 * line[1], "to 3 degrees, and up"
        again = one.square.pixels((camera.project(joints) - one.square.centre) @ np.linalg.inv(one.square.axes))
        assert np.allclose(again, camera.project(joints))
        places = (camera.project(joints[list(COMPARED)]) - one.square.centre) @ np.linalg.inv(one.square.axes)
        column, row = ((places * [1, -1] + 0.5) * 512).astype(int).T
        assert one.alpha[row, column].mean() > 0.85 and 0.05 < one.alpha.mean() < 0.5
        assert np.asarray(one.photo()).shape == (512, 512, 4)
    box = np.array([10.0, 20.0, 60.0, 120.0])
    assert level_square(footage.cameras[0], box).side == pytest.approx(125) and level_square(footage.cameras[0], box).centre.tolist() == [35, 70]


def test_joints_are_where_the_cameras_see_them(drawn, seen):
    footage, joints = drawn
    exact = np.stack([camera.project(joints) for camera in footage.cameras])
    found, apart = locate_joints(footage.cameras, exact, np.ones((4, 23)))
    assert np.abs(found - joints).max() < 1e-6 and apart.max() < 1e-3
    wrong, lost = exact.copy(), exact.copy()
    wrong[2, 7] += 40
    assert np.abs(locate_joints(footage.cameras, wrong, np.ones((4, 23)))[0] - joints).max() < 0.003
    lost[1:, 3] = np.nan
    found, apart = locate_joints(footage.cameras, lost, np.ones((4, 23)))
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, 0)).all() and np.isnan(apart[1:, 3]).all()
    points, sure = (np.stack([getattr(one, name) for one in seen]) for name in ("points", "sure"))
    assert np.linalg.norm(locate_joints(footage.cameras, points, sure)[0] - joints, axis=-1).mean() < 0.12


def test_a_comparison_forgives_scale_and_place_and_nothing_else(drawn, seen):
    footage, joints = drawn
    truth = RealTruth(footage.cameras, 0, joints, np.stack([camera.project(joints) for camera in footage.cameras]))
    right = (joints - joints[0]) @ truth.axes.T
    assert max(truth.compare(0.3 * right + 5).values()) < 1e-6
    assert set(truth.compare(right)) == {"mpjpe_cm", "depth_cm", "pa_mpjpe_cm", "cam02_px", "cam03_px", "cam04_px"}
    behind = truth.compare(right * [1, 1, -1])
    assert behind["depth_cm"] > 5 and behind["mpjpe_cm"] == pytest.approx(behind["depth_cm"], rel=0.05)
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    turned = truth.compare(right @ turn)
    assert turned["mpjpe_cm"] > 20 and turned["pa_mpjpe_cm"] < 1e-6 and turned["cam02_px"] > 5
    flat, constant = truth.compare(flat_joints(seen[0])), truth.compare(constant_joints(load_body()))
    assert flat["mpjpe_cm"] < constant["mpjpe_cm"] and np.abs(flat_joints(seen[0])[:, 2]).max() == 0
    assert azimuths_of(footage.cameras, 0, np.array([0, 0, 1.0])) == pytest.approx([0, 65, 140, -105], abs=0.01)
    with pytest.raises(ValueError, match="not finite"):
        truth.compare(np.full((23, 3), np.nan))
    with pytest.raises(ValueError, match=r"joints \[4\] were found by fewer than two cameras"):
        RealTruth(footage.cameras, 0, np.where(np.arange(23)[:, None] == 4, np.nan, joints), truth.points)


def test_outlines_come_from_what_is_at_hand(seen, monkeypatch):
    monkeypatch.setattr(real_person, "cut_out_person", lambda photo: Image.fromarray(np.dstack([np.asarray(photo), np.full(photo.size[::-1], 51, np.uint8)])))
    assert outline(seen[0].picture, object()).unique().tolist() == pytest.approx([0.2])
    assert set(outline(seen[0].picture, load_detector("estimator")).unique().tolist()) == {0, 1}


@pytest.mark.parametrize("views, placed", [((0, 1, 2, 3), True), ((0, 3), True), ((0, 2), False), ((1, 3), False), ((2,), False)])
def test_two_views_from_opposite_sides_place_nothing(views, placed):
    "A joint of the limbs that only front and back show: the person is not read, whatever the others; of a joint that nobody compares, it alone is lost."
    rig = ViewRig((0.0, 90.0, 180.0, 270.0), image_size=64)
    joints = torch.rand(23, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    pixels = rig.project(joints[None])[0]
    found = torch.stack([pixels[..., 0] / 64 - 0.5, 0.5 - pixels[..., 1] / 64], -1)
    for joint in (20, 22):
        some = found.clone()
        some[[view for view in range(4) if view not in views], joint] = torch.nan
        read = drawn_joints(torch.ones(4, 3, 64, 64), rig, SimpleNamespace(detect=lambda images, some=some: Detection(some, torch.full((4, 23), 0.01))))
        if joint == 20 and not placed:
            assert read is None
        else:
            assert np.isnan(read).any(1).nonzero()[0].tolist() == ([] if placed else [22]) and np.nanmax(np.abs(read - joints.numpy())) < 1e-4


def test_nobody_is_told(drawn, monkeypatch):
    monkeypatch.setattr(real_person, "outline", lambda picture, detector: torch.zeros(512, 512))
    with pytest.raises(ValueError, match="shows nobody in frame 3"):
        sight(drawn[0], MOMENT, load_detector("estimator"))


def test_a_photograph_of_somebody_real_goes_the_whole_way(tmp_path, monkeypatch):
    "Grace Hopper, whose portrait comes with matplotlib (public domain), cut out along an outline drawn by hand. Half of her is enough for that: textures, a file that opens."
    monkeypatch.setattr(reconstruction, "carve_surface", partial(carve_surface, steps=8))
    monkeypatch.setattr("drpose.mesh.carving.ROUND_STEPS", 3)
    monkeypatch.setattr("drpose.mesh.body_fit.VIEW_STEPS", 4)
    monkeypatch.setattr("drpose.mesh.body_fit.MATCH_STEPS", 4)
    photo = Image.open(get_sample_data("grace_hopper.jpg")).convert("RGBA")
    alpha, outline_by_hand = Image.new("L", photo.size), [(150, 170), (148, 100), (176, 80), (176, 60), (230, 24), (290, 24), (345, 60), (370, 100), (376, 200), (352, 290), (330, 318), (480, 385), (511, 440), (511, 599), (10, 599), (25, 450), (62, 385), (200, 318), (165, 285)]
    ImageDraw.Draw(alpha).polygon(outline_by_hand, fill=255)
    photo.putalpha(alpha)
    photo.save(tmp_path / "photo.png")
    with pytest.warns(UserWarning, match="reaches the lower"):
        made = reconstruct(tmp_path / "photo.png", num_inference_steps=4, texture_size=256)
    (mesh,) = trimesh.load_scene(made.save(tmp_path / "person.glb")).geometry.values()
    assert mesh.visual.material.baseColorTexture.size == (256, 256) and len(mesh.faces) > 500
    assert (made.person.fit is not None) == (b'"skins"' in (tmp_path / "person.glb").read_bytes())


def test_a_real_photo_becomes_a_textured_person_with_a_skin(tmp_path):
    "pose2sim's man on one leg, cut out by BlazePose: the whole way to a GLB."
    wheel, network = (os.environ.get(name, "") for name in ("DRPOSE_POSE2SIM", "DRPOSE_BLAZEPOSE"))
    if not wheel or not network:
        pytest.skip("DRPOSE_POSE2SIM and DRPOSE_BLAZEPOSE name no files: pose2sim's wheel and pose_landmark_heavy.tflite")
    pytest.importorskip("ai_edge_litert")
    sightings = sight(open_footage(wheel, tmp_path), 50, load_detector("blazepose", network))
    points, sure = (np.stack([getattr(one, name) for one in sightings]) for name in ("points", "sure"))
    cameras = open_footage(tmp_path, tmp_path).cameras
    joints, apart = locate_joints(cameras, points, sure)
    assert np.nanmedian(apart) < 20, "pixels of 1920; other ways to read the axes give more than 90"
    thighs, shins = (np.linalg.norm(joints[[a, a + 1]] - joints[[b, b + 1]], axis=-1) for a, b in ((1, 4), (4, 7)))
    assert (abs(thighs - 0.43) < 0.05).all() and (abs(shins - 0.37) < 0.06).all()
    sightings[1].photo().save(tmp_path / "photo.png")
    began = time.perf_counter()
    made = reconstruct(tmp_path / "photo.png")
    path = made.save(tmp_path / "person.glb")
    print(f"a real photo in {time.perf_counter() - began:.0f} s: {made.seconds}")
    (mesh,) = trimesh.load_scene(path).geometry.values()
    assert mesh.visual.material.baseColorTexture.size == (1024, 1024) and len(mesh.faces) > 2000
    assert b'"skins"' in path.read_bytes() and made.person.fit is not None
    if validator() is None:
        assert said_by_khronos(path)["numErrors"] == 0


def test_a_wheel_cannot_write_beside_the_folder(drawn, tmp_path):
    wheel = packed(Path(drawn[0].videos[0]).parent.parent, tmp_path / "leading_out.whl")
    with zipfile.ZipFile(wheel, "a") as more:
        more.writestr("Pose2Sim/Demo_SinglePerson/../stray.mp4", b"not a video")
        more.writestr("Pose2Sim/Demo_SinglePerson/videos/deeper/stray.mp4", b"not a video")
    footage = open_footage(wheel, tmp_path / "inside")
    assert len(footage.videos) == len(footage.cameras) and not list(tmp_path.rglob("stray.mp4"))
