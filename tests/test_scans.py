"""Scans (drpose.multiview.scans): meshes become pictures whose sides, normals and outlines are right, pictures become examples, examples latents; and bad folders get one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_parts
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image
from safetensors.torch import load_file

from drpose.multiview import scans
from drpose.ground.provenance import alone
from drpose.ground.model_files import embedded_models
from drpose.people.bodies import load_body
from drpose.people.pose_sets import draw_set
from drpose.pictures.cameras import TINY_RIG, ViewRig
from drpose.pictures.dressed_people import draw_crowd
from drpose.multiview.pshuman import is_stable_unclip, load_stable_unclip
from drpose.multiview.pipeline import MultiViewPipeline, PromptTable, encode_images
from drpose.multiview.scans import (ScanPictures, encode_scans, normals_seen_from, read_scan, read_scan_pictures,
                                    read_scan_pose, render_scan, render_scans, scan_example)
from drpose.reward.picture_predictor import load_eval_predictor
from drpose.evaluation.metrics import millimetres, mpjpe
from drpose.evaluation.benchmarks import predictor_errors, load_benchmark

FIXTURE = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "pshuman" / "pshuman_preproc_cam.safetensors"
SIX = (0, 45, 90, 180, 270, 315)
MIRRORED = (False, False, False, True, True, False)
RED, GREEN, BLUE = torch.eye(3)


def middle(picture: torch.Tensor) -> torch.Tensor:
    "The centre pixel of (C, S, S)."
    return picture[:, picture.shape[-1] // 2, picture.shape[-1] // 2]


@pytest.fixture
def box(tmp_path) -> Path:
    return render_scans([tiny_parts.colored_box(tmp_path / "box.ply")], tmp_path / "renders", size=48)[0]


# --- rendering ----------------------------------------------------------------------------------------------------------------------


def test_each_side_of_a_box_is_seen_from_its_side(tmp_path):
    colors, normals = render_scan(read_scan(tiny_parts.colored_box(tmp_path / "box.ply")), size=48)
    assert colors.shape == (8, 4, 48, 48) and normals.shape == (8, 3, 48, 48)
    for number, color, normal in ((0, RED, (0, 0, 1)), (2, GREEN, (1, 0, 0)), (4, BLUE, (0, 0, -1)), (6, torch.full((3,), 128 / 255), (-1, 0, 0))):
        assert torch.allclose(middle(colors[number])[:3], color, atol=0.01) and middle(colors[number])[3] == 1
        tilt = (middle(normals[number]) * torch.tensor(normal, dtype=torch.float32)).sum()
        assert tilt > 0.4, "smoothed over the box's edges, but on this side of it"


def test_the_frame_is_pshumans(tmp_path):
    colors, _ = render_scan(read_scan(tiny_parts.colored_box(tmp_path / "box.ply", (0.4, 1.6, 0.3))), size=100, supersample=4)
    diagonal = (0.4**2 + 1.6**2 + 0.3**2) ** 0.5
    for number, width in ((0, 0.4), (2, 0.3)):
        covered = colors[number, 3].sum().item() / 100**2
        assert covered == pytest.approx(width * 1.6 / diagonal**2, rel=0.01)


def test_a_texture_is_sampled_where_it_belongs(tmp_path):
    "A square facing +z whose picture has one colour per quarter: top left red, top right green, bottom left blue, bottom right white."
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32], picture[:32, 32:], picture[32:, :32], picture[32:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]])
    visual = trimesh.visual.TextureVisuals(uv=(corners[:, :2] + 1) / 2, image=Image.fromarray(picture))
    trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False).export(tmp_path / "square.glb")
    scan = read_scan(tmp_path / "square.glb")
    assert scan.texture is not None and (scan.colors == 1).all()
    colors, _ = render_scan(scan, size=40)
    for row, column, color in ((12, 12, RED), (12, 27, GREEN), (27, 12, BLUE), (27, 27, torch.ones(3))):
        assert torch.allclose(colors[0, :3, row, column], color, atol=0.02)
    assert torch.allclose(colors[4, :3, 12, 27], RED, atol=0.02), "from behind, left is right"


def test_seams_do_not_show_in_the_normals(tmp_path):
    "A sphere cut open along a meridian (as textures are) has the normals of the whole one."
    whole = trimesh.creation.icosphere(3)
    whole.export(tmp_path / "whole.ply")
    cut = whole.copy()
    cut.unmerge_vertices()      # every face on its own
    trimesh.Trimesh(cut.vertices, cut.faces, process=False).export(tmp_path / "cut.ply")
    first, second = (render_scan(read_scan(tmp_path / name), size=32)[1] for name in ("whole.ply", "cut.ply"))
    assert len(read_scan(tmp_path / "cut.ply").vertices) > len(read_scan(tmp_path / "whole.ply").vertices)
    assert torch.allclose(first, second, atol=1e-4)


def test_outline_pixels_keep_their_colour(tmp_path):
    colors, _ = render_scan(read_scan(tiny_parts.colored_box(tmp_path / "box.ply")), size=41, supersample=3)
    partly = (colors[0, 3] > 0) & (colors[0, 3] < 1)
    assert partly.any() and torch.allclose(colors[0, :3, partly], RED[:, None].expand(-1, int(partly.sum())), atol=0.01)


def test_finished_scans_are_kept_and_torn_ones_made_again(tmp_path, monkeypatch):
    mesh, folder = tiny_parts.colored_box(tmp_path / "box.ply"), tmp_path / "renders"
    (folder / ".box.partial" / "image").mkdir(parents=True)
    (folder / ".box.partial" / "image" / "009.png").write_bytes(b"left by a kill")
    (place,) = render_scans([mesh], folder, size=24)
    assert sorted(path.name for path in place.rglob("*.png")) == sorted([f"{number:03d}.png" for number in range(8)] * 2) and not list(folder.glob(".*.partial"))
    monkeypatch.setattr(scans, "render_scan", lambda *inputs: pytest.fail("rendered again"))
    render_scans([mesh], folder, size=24)


def test_scans_know_what_they_were_made_from(tmp_path):
    "A repaired mesh, another texture or size: refused, never the old pictures under the new name; another fit: new joints."
    material, body = "newmtl a\nmap_Kd skin.png\n", "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 2 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl a\nf 1/1 2/2 3/3\n"
    (tmp_path / "a.mtl").write_text(material), (tmp_path / "a.obj").write_text(body)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "skin.png")
    (place,) = render_scans([tmp_path / "a.obj"], tmp_path / "renders", size=16)
    before = {path: path.read_bytes() for path in place.rglob("*.png")}
    for change, undo, sentence in (
        (lambda: Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "skin.png"), lambda: Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "skin.png"), "mesh or textures was"),
        (lambda: (tmp_path / "a.obj").write_text(body.replace("v 0 2 0", "v 0 3 0")), lambda: (tmp_path / "a.obj").write_text(body), "mesh or textures was"),
    ):  # fmt: skip
        change()
        with pytest.raises(ValueError, match=sentence):
            render_scans([tmp_path / "a.obj"], tmp_path / "renders", size=16)
        undo()
    for settings in ({"size": 32}, {"size": 16, "supersample": 1}):
        with pytest.raises(ValueError, match="this scan was made from other inputs: size"):
            render_scans([tmp_path / "a.obj"], tmp_path / "renders", **settings)
    render_scans([tmp_path / "a.obj"], tmp_path / "renders", size=16)
    assert before == {path: path.read_bytes() for path in place.rglob("*.png")}
    (place / "inputs.json").unlink()
    with pytest.raises(ValueError, match="missing beside rendered pictures"):
        render_scans([tmp_path / "a.obj"], tmp_path / "renders", size=16)


def test_nobody_else_renders_there_and_nothing_outside(tmp_path):
    mesh = tiny_parts.colored_box(tmp_path / "box.ply")
    with alone(tmp_path / "renders", "renders scans"), pytest.raises(ValueError, match="another process renders scans in this folder"):
        render_scans([mesh], tmp_path / "renders", size=16)
    shutil.copy(mesh, tmp_path / "...ply")
    with pytest.raises(ValueError, match="its name begins with a dot"):
        render_scans([tmp_path / "...ply"], tmp_path / "renders", size=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["...ply", "box.ply", "renders"])


# --- reading and composing ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not FIXTURE.is_file(), reason=f"reference data {FIXTURE} is not on this machine")
@pytest.mark.parametrize("view", [0, 1, 2, 4, 6, 7])
def test_normals_in_the_fronts_frame_equal_pshumans(view, tmp_path):
    data = load_file(FIXTURE)
    for number in range(8):
        for kind, channels in (("image", [np.zeros((96, 96, 3), np.uint8), (data["nrm.alpha"].numpy() * 255).round().astype(np.uint8)]), ("normal", [data["nrm.world_png_uint8"].numpy()])):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(np.concatenate(channels, -1)).save(tmp_path / kind / f"{number:03d}.png")
    pictures = read_scan_pictures(tmp_path, 96)
    pictures.alphas[:] = data["nrm.alpha"].permute(2, 0, 1)     # upstream's is not of 8 bits
    example = scan_example(pictures, view, SIX, (), face_view=False, background=1.0)
    expected = data[f"nrm.out_frontcam_of_view{view}"].permute(2, 0, 1)
    assert (example.images[0] - expected).abs().max() < 1 / 255 / 10


def test_what_was_rendered_is_read_back(box, tmp_path):
    colors, normals = render_scan(read_scan(tmp_path / "box.ply"), size=48)
    pictures = read_scan_pictures(box, 48)
    sure = pictures.alphas > 0.99
    assert ((pictures.colors - colors[:, :3]).abs() * sure).max() < 1 / 255 and (pictures.alphas - colors[:, 3:]).abs().max() < 1 / 255
    assert ((pictures.normals - normals).abs() * sure).max() < 0.02
    smaller = read_scan_pictures(box, 24)
    assert smaller.colors.shape == (8, 3, 24, 24) and torch.allclose(smaller.alphas, F.avg_pool2d(pictures.alphas, 2), atol=0.25)


def test_turning_the_front_turns_the_normals():
    vector = torch.tensor([0.6, 0.0, 0.8])[:, None, None]      # toward the viewer at atan(.6 / .8) degrees
    turned = normals_seen_from(vector, float(np.degrees(np.arctan2(0.6, 0.8))))
    assert torch.allclose(turned.flatten(), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("front", range(8))
def test_any_side_may_be_the_front(box, front):
    "The view seen from a side shows that side, its normal is +z, and relative views follow."
    pictures = read_scan_pictures(box, 48)
    example = scan_example(pictures, front, SIX, MIRRORED, face_view=False)
    for view, azimuth in enumerate(SIX):
        source = (front + azimuth // 45) % 8
        color = pictures.colors[source] * pictures.alphas[source] + 1 - pictures.alphas[source]
        assert torch.allclose(example.images[1, view], color.flip(-1) if MIRRORED[view] else color, atol=1e-6)
    normal = middle(example.images[0, 0]) * 2 - 1
    assert normal[2] > 0.4 and torch.equal(example.shown, example.images[1, :1])


def test_the_face_view_is_the_head_window(box):
    pictures = read_scan_pictures(box, 48)
    example = scan_example(pictures, 0, SIX, MIRRORED, face_view=True, background=0.5)
    assert example.images.shape == (2, 7, 3, 48, 48) and example.shown.shape == (2, 3, 48, 48)
    window = example.images[1, 0, :, :16, 16:32]
    assert (F.adaptive_avg_pool2d(example.images[1, 6], 16) - window).abs().mean() < 0.03
    assert torch.equal(example.shown[1], example.images[1, 6]) and middle(example.shown[1]).allclose(RED, atol=0.02)


@pytest.mark.parametrize("background", [1.0, 0.0, 0.5])
def test_one_background_for_photo_and_targets(box, background):
    example = scan_example(read_scan_pictures(box, 48), 0, SIX, MIRRORED, face_view=True, background=background)
    for stack in (example.images.flatten(0, 1), example.shown):
        assert torch.allclose(stack[:, :, -1, 0], torch.tensor(background))


def without(kind, number):
    return lambda folder: (folder / kind / f"{number:03d}.png").unlink()


def resaved(change):
    def spoil(folder):
        path = folder / "image" / "003.png"
        change(Image.open(path)).save(path)

    return spoil


BAD = {
    "a picture is missing": (without("image", 5), FileNotFoundError, "005.png: no such file, needed a PNG; 000.png to 007.png"),
    "a normal map is missing": (without("normal", 0), FileNotFoundError, "normal/000.png"),
    "no alpha": (resaved(lambda picture: picture.convert("RGB")), ValueError, "003.png: has no alpha"),
    "not square": (resaved(lambda picture: picture.crop((0, 0, 48, 40))), ValueError, "is 48 x 40 pixels, needed a square of at least 48"),
    "too small": (resaved(lambda picture: picture.resize((20, 20))), ValueError, "is 20 x 20 pixels"),
    "nobody there": (resaved(lambda picture: Image.new("RGBA", picture.size)), ValueError, "003.png: its alpha is 0 everywhere"),
    "no picture": (lambda folder: (folder / "image" / "003.png").write_bytes(b"text"), ValueError, "003.png: cannot be read as a PNG"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_get_one_sentence(name, box):
    spoil, kind, sentence = BAD[name]
    spoil(box)
    with pytest.raises(kind, match=sentence) as error:
        read_scan_pictures(box, 48)
    assert "\n" not in str(error.value)


def test_bad_meshes_get_one_sentence(tmp_path):
    trimesh.PointCloud(np.random.rand(5, 3)).export(tmp_path / "points.ply")
    (tmp_path / "text.obj").write_text("hello")
    (tmp_path / "torn.glb").write_bytes(b"glTF" + bytes(10))
    for name, kind, sentence in (("gone.obj", FileNotFoundError, "no such file"), ("points.ply", ValueError, "holds no triangles|cannot be read"), ("text.obj", ValueError, "holds no triangles|cannot be read"), ("torn.glb", ValueError, "cannot be read as a glTF file")):
        with pytest.raises(kind, match=sentence) as error:
            read_scan(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="two meshes are called 'box'"):
        render_scans([tmp_path / "a" / "box" / "box.ply", tmp_path / "b" / "box" / "box.obj"], tmp_path / "renders")


def test_views_that_were_not_rendered_are_refused():
    blank = ScanPictures(torch.rand(8, 3, 12, 12), torch.ones(8, 1, 12, 12), F.normalize(torch.randn(8, 3, 12, 12), dim=1))
    with pytest.raises(ValueError, match="every 45 degrees"):
        scan_example(blank, 0, (0, 30), (), face_view=False)
    with pytest.raises(ValueError, match="front 8"):
        scan_example(blank, 8, (0, 90), (), face_view=False)


# --- poses --------------------------------------------------------------------------------------------------------------------------


BODY = load_body()


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Three bodies of the embedded world as scans in three dialects: metres and JSON, centimetres off their place and npz, and a pickle as THuman2.1's."""
    folder = tmp_path_factory.mktemp("people")
    drawn = draw_set("everyday_test", 3, 5, BODY)
    bodies, crowd = BODY(drawn.poses), draw_crowd(BODY, drawn.people)
    for number, (scale, offset) in enumerate(((1.0, 0.0), (100.0, 7.0), (0.3, -2.0))):
        place = folder / "meshes" / f"person_{number}"
        place.mkdir(parents=True)
        trimesh.Trimesh(scale * bodies.vertices[number].numpy() + offset, bodies.faces.numpy(), vertex_colors=(crowd.vertex_colors[number] * 255).byte().numpy(), process=False).export(place / "mesh.glb")
        pose = drawn.poses[number]
        fit = {"global_orient": pose.axis_angles[:, 0].numpy(), "body_pose": pose.axis_angles[:, 1:22].flatten(1).numpy(), "betas": pose.betas.numpy(), "transl": pose.transl.numpy(), "left_hand_pose": np.zeros((1, 12))}
        fit |= {"scale": np.full(1, scale), "translation": np.full(3, offset)} if number else {}
        (folder / "fits" / place.name).mkdir(parents=True)
        if number == 0:
            (folder / "fits" / place.name / "mesh_smplx.json").write_text(json.dumps({name: value.tolist() for name, value in fit.items()}))
        elif number == 1:
            np.savez(folder / "fits" / "person_1.npz", **fit)
        else:
            (folder / "fits" / "person_2.pkl").write_bytes(pickle.dumps(fit))
    return folder


def meshes(people: Path) -> list[Path]:
    return sorted(people.rglob("mesh.glb"))


def test_an_evaluation_predictor_reads_scans_as_it_reads_the_world_they_came_from(people, tmp_path):
    "The whole way from mesh and fit to latents and joints: any wrong turn, mirror, unit or frame would show as centimetres."
    vae, rig = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline").vae, TINY_RIG.resized(16)
    eval_predictor = load_eval_predictor(embedded_models() / "judge", vae)
    folders = render_scans(meshes(people), tmp_path / "renders", size=64, supersample=4, fits=people / "fits", body_model=BODY)
    images, joints, scale = [], [], []
    for pictures in (read_scan_pictures(folder, 64) for folder in folders):
        for front in (0, 3, 6):
            grey, white = (scan_example(pictures, front, TINY_RIG.azimuths, TINY_RIG.mirrored, face_view=False, background=background) for background in (0.5, 1.0))
            images.append(torch.stack([grey.images[0], white.images[1]]))  # the tiny world's normals lie on grey
            joints.append(white.joints)
            scale.append(pictures.scale)
    images, joints, scale = torch.stack(images), torch.stack(joints), torch.tensor(scale)
    with torch.no_grad():
        read = eval_predictor.joints(encode_images(vae, images), rig).joints3d
    error = millimetres(mpjpe(read, joints), scale)
    usual = predictor_errors(eval_predictor, load_benchmark("everyday", vae, BODY, 24))["mpjpe_mm"]
    assert error.mean() < 1.5 * usual, f"{error.mean():.0f} mm on scans, {usual:.0f} mm on renders of its own world"
    assert millimetres(mpjpe(read, joints * torch.tensor([-1.0, 1, 1])), scale).mean() > 2.5 * error.mean(), "the test would see a mirror"


def test_encoded_scans_carry_the_joints_of_their_front(people, tmp_path):
    pipeline = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    folders = render_scans(meshes(people), tmp_path / "renders", size=64, fits=people / "fits", body_model=BODY)[2:]
    data = encode_scans(pipeline, folders, tmp_path / "latents", fronts=(0, 3), backgrounds=(1.0, 0.5), poses=True)
    known, scale = scans.read_scan_pose(folders[0])
    assert torch.equal(data.joints[:2], known.expand(2, 23, 3)) and torch.allclose(data.scale, torch.tensor(scale))
    front, turned = ViewRig((135.0,), image_size=64).project(known[None]), ViewRig((0.0,), image_size=64).project(data.joints[2:3])
    assert torch.allclose(front, turned, atol=1e-4), "seen from the front of picture 003, they lie where camera 135 degrees sees them"


def test_joints_are_given_only_where_asked_for(people, tmp_path):
    pipeline = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    folders = render_scans(meshes(people)[:1], tmp_path / "renders", size=64)
    with pytest.raises(FileNotFoundError, match="person_0|mesh/pose.json|mesh"):
        encode_scans(pipeline, folders, tmp_path / "latents", backgrounds=(1.0,), poses=True)
    assert encode_scans(pipeline, folders, tmp_path / "latents", backgrounds=(1.0,)).joints.shape == (1, 0, 3)
    picture = folders[0] / "image" / "000.png"
    before = picture.stat().st_mtime_ns
    shutil.copy(people / "fits" / "person_0" / "mesh_smplx.json", tmp_path / "mesh.json")
    render_scans(meshes(people)[:1], tmp_path / "renders", size=64, fits=tmp_path, body_model=BODY)
    assert picture.stat().st_mtime_ns == before, "pictures are kept where only the joints were missing"
    assert encode_scans(pipeline, folders, tmp_path / "latents", backgrounds=(1.0,), poses=True).joints.shape == (1, 23, 3)
    assert encode_scans(pipeline, folders, tmp_path / "latents", backgrounds=(1.0,)).joints.shape == (1, 0, 3), "scans with and without fits train a base together"


def test_another_fit_gives_other_joints(people, tmp_path):
    shutil.copytree(people / "fits" / "person_0", tmp_path / "fits" / "mesh")
    (place,) = render_scans(meshes(people)[:1], tmp_path / "renders", size=16, fits=tmp_path / "fits", body_model=BODY)
    (fit,) = (tmp_path / "fits" / "mesh").iterdir()
    before, content = read_scan_pose(place)[0], json.loads(fit.read_text())
    content["body_pose"] = (np.array(content["body_pose"]).reshape(-1, 3) + [[0.1, 0, 0]]).tolist()
    fit.write_text(json.dumps(content))
    render_scans(meshes(people)[:1], tmp_path / "renders", size=16, fits=tmp_path / "fits", body_model=BODY)
    assert not torch.equal(read_scan_pose(place)[0], before)


def test_fits_are_read_under_any_spelling_and_without_what_nobody_needs(tmp_path):
    fit = dict(betas=np.ones((1, 10)), scale=np.array(2.0, np.float32))
    parts = dict(root_orient=np.full((1, 3), 0.1), pose_body=np.full((1, 21, 3), 0.2), trans=np.full((1, 3), 0.3))
    np.savez(tmp_path / "a.npz", **fit, **parts, gender=np.array("male", dtype=object))
    (tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    (tmp_path / "b.PKL").write_bytes(pickle.dumps(fit | parts | {"gender": np.array("male", dtype=object), "frames": np.array(["a"])}))
    (tmp_path / "c.JSON").write_text(json.dumps({name: value.tolist() for name, value in (fit | parts).items()} | {"gender": {"of": None}}))
    for name in "abc":
        found = scans.read_fit(scans.find_fit(tmp_path, name))
        assert found.scale == 2 and found.pose.betas.eq(1).all()
        assert torch.allclose(found.pose.axis_angles[0, :22].mean(1), torch.tensor([0.1] + [0.2] * 21)) and torch.allclose(found.pose.transl, torch.tensor(0.3))


def test_bad_fits_get_one_sentence_and_leave_nothing(people, tmp_path):
    mesh, good = meshes(people)[0], json.loads((people / "fits" / "person_0" / "mesh_smplx.json").read_text())

    def attempt(content, name: str = "mesh.json") -> str:
        shutil.rmtree(tmp_path / "fits", ignore_errors=True)
        (tmp_path / "fits").mkdir()
        if content is not None:
            (tmp_path / "fits" / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            render_scans([mesh], tmp_path / "renders", size=16, fits=tmp_path / "fits", body_model=BODY)
        assert not (tmp_path / "renders" / "mesh").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "no fit of this scan" in attempt(None)
    assert "mesh.json: not valid JSON" in attempt(b"{")
    assert "has no 'body_pose'" in attempt({name: value for name, value in good.items() if name != "body_pose"})
    assert "'body_pose' holds more than 63 numbers, needed 63" in attempt(good | {"body_pose": [0.0] * 69})
    assert "'global_orient' holds 3 numbers, some not finite" in attempt(good | {"global_orient": [0, 0, float("nan")]})
    assert "'betas' is not made of numbers" in attempt(good | {"betas": ["fat"] * 10})
    assert "'scale' is 0" in attempt(good | {"scale": 0})
    assert "puts 0 of 23 joints into the box" in attempt(good | {"scale": 1, "translation": [5, 0, 0]})
    assert "asks for posix.system" in attempt(b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R.", "mesh.pkl")
    assert "cannot be read as an SMPL-X fit" in attempt(b"PK\x03\x04 torn", "mesh.npz")
    assert "holds a JSON list" in attempt([1, 2])
    assert "'scale' is 0" in attempt(good | {"scale": 1e-60}), "0 as float32"
    assert "'scale' holds 1 numbers, some not finite" in attempt(good | {"scale": 1e60})
    assert "'body_pose' holds a rotation of 90, needed axis-angles in radians" in attempt(good | {"body_pose": [90.0, 0, 0] * 21})
    assert "'transl' holds 1500, needed metres" in attempt(good | {"transl": [0, 1500, 0]})
    assert "'body_pose' holds more than 63 numbers" in attempt(good | {"body_pose": [[0.0] * 1000] * 1000})
    bomb = b"]" + b"".join(b"q" + bytes([level]) + b"0](h" + bytes([level]) + b"h" + bytes([level]) + b"e" for level in range(40))
    zeros = pickle.dumps({"global_orient": np.zeros(3), "body_pose": np.zeros(63)}, protocol=2)[2:-1]
    assert "'betas' is not made of numbers" in attempt(b"\x80\x02" + zeros + b"U\x05betas" + bomb + b"s.", "mesh.pkl"), "a list that holds another one twice, 40 levels deep"
    assert "mesh.json: not valid JSON" in attempt(b'{"betas": ' + b"[" * 100_000)
    (tmp_path / "fits" / "mesh").mkdir()
    (tmp_path / "fits" / "mesh.json").unlink()
    for name in ("a.json", "b.json"):
        (tmp_path / "fits" / "mesh" / name).write_text(json.dumps(good))
    with pytest.raises(ValueError, match="is one of 2 fits of the scan 'mesh'"):
        render_scans([mesh], tmp_path / "renders", size=16, fits=tmp_path / "fits", body_model=BODY)


# --- latents ------------------------------------------------------------------------------------------------------------------------


def test_latents_are_what_the_pipeline_is_conditioned_on(box, tmp_path):
    pipeline = MultiViewPipeline.from_pretrained(tiny_parts.pshuman_checkpoint(tmp_path / "PSHuman"))
    data = encode_scans(pipeline, [box], tmp_path / "latents", fronts=(0, 1), backgrounds=(1.0, 0.5))
    assert data.latents.shape == (4, 2, 7, 4, 12, 12) and data.photos.shape == (4, 7, 4, 12, 12) and data.descriptors.shape == (4, 2, 7, 32)
    assert data.joints.shape == (4, 0, 3)
    example = scan_example(read_scan_pictures(box, 48), 1, SIX, MIRRORED, face_view=True)      # front 1 on white: the third
    with torch.no_grad():
        condition = pipeline.condition(example.shown[None], torch.Generator().manual_seed(0), 0)
        target = pipeline.vae.encode(example.images.flatten(0, 1) * 2 - 1).latent_dist.mode().unflatten(0, (2, 7)) * pipeline.vae.config.scaling_factor
    assert torch.allclose(data.latents[2].float(), target, atol=2e-3) and torch.allclose(data.photos[2].float(), condition.condition_latents[0], atol=2e-3)
    assert torch.allclose(data.descriptors[2], condition.class_labels[0], atol=0.1), "up to the noise of level 0"
    assert not torch.allclose(data.photos[0], data.photos[1]) and not torch.allclose(data.latents[0], data.latents[2])


def test_kept_latents_are_read_and_belong_to_their_makers(box, tmp_path, monkeypatch):
    pipeline = MultiViewPipeline.from_pretrained(tiny_parts.pshuman_checkpoint(tmp_path / "PSHuman"))
    first = encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(1.0,))
    made = []
    real = scans.encode_scan
    monkeypatch.setattr(scans, "encode_scan", lambda *inputs: made.append(1) or real(*inputs))
    again = encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(1.0,))
    assert not made and torch.equal(first.latents, again.latents)
    encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(0.0,))
    assert len(made) == 1
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.bias.add_(1)
    encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(1.0,))
    assert len(made) == 2, "another autoencoder"
    Image.new("RGBA", (48, 48), "red").save(box / "image" / "002.png")
    encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(1.0,))
    assert len(made) == 3, "another picture"
    with pytest.raises(ValueError, match="at least one rendered scan"):
        encode_scans(pipeline, [], tmp_path / "latents")


def test_body_renders_are_the_third_picture(box, tmp_path):
    folder = tiny_parts.stable_unclip_checkpoint(tmp_path / "stock")
    assert is_stable_unclip(folder)
    parts = load_stable_unclip(folder, in_channels=12)
    pipeline = MultiViewPipeline(**parts | {"prompt_table": PromptTable.of(parts["prompt_table"])})
    with pytest.raises(FileNotFoundError, match="smpl_image/000.png"):
        encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(1.0,))
    (box / "smpl_image").mkdir()
    for number in range(8):
        Image.new("RGBA", (48, 48), (30 * number, 0, 0, 255)).save(box / "smpl_image" / f"{number:03d}.png")
    data = encode_scans(pipeline, [box], tmp_path / "latents", backgrounds=(1.0,))
    assert data.photos.shape == (1, 7, 8, 12, 12)
    flat = torch.zeros(1, 3, 48, 48)
    flat[:, 0] = 30 * 4 / 255      # the back view, three views on, is picture 004
    with torch.no_grad():
        expected = pipeline.vae.encode(flat * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert torch.allclose(data.photos[0, 3, 4:].float(), expected[0], atol=2e-3)
