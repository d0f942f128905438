"""Figures show what they claim: the right picture in the right place, left and right not exchanged, files small and whole."""

import base64
import io
import json
import re

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from drpose.evaluation import comparison
from drpose.pictures import plots
from drpose.ground.files import read_lines
from drpose.people.bodies import SMPLX_JOINT_NAMES
from drpose.pictures.cameras import FOUR_VIEWS

LEFT, RIGHT = (matplotlib.colors.to_rgb(color) for color in (plots.LEFT_COLOR, plots.RIGHT_COLOR))


def flat(*rgb, size=8):
    return torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, size, size).clone()


def contains(sheet, rgb, box):
    "Share of the box's pixels that have this colour."
    pixels = np.asarray(sheet.convert("RGB").crop(box)).reshape(-1, 3)
    return (np.abs(pixels - 255 * np.array(rgb)).max(1) < 3).mean()


def test_to_image_keeps_axes_and_clips():
    image = torch.zeros(3, 4, 6)
    image[0, 0, 5], image[2, 3, 0] = 1.4, 0.5                  # red beyond 1 at the top right, blue at the bottom left
    picture = plots.to_image(image)
    assert picture.size == (6, 4) and picture.getpixel((5, 0)) == (255, 0, 0) and picture.getpixel((0, 3)) == (0, 0, 128)
    assert plots.to_image(image, scale=2, resample="nearest").getpixel((11, 0)) == (255, 0, 0)
    assert plots.to_image(torch.ones(4, 6)).getpixel((0, 0)) == (255, 255, 255)


def test_save_png_is_small_and_leaves_no_part(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    full, small = plots.save_png(noise, tmp_path / "new" / "a.png"), plots.save_png(noise, tmp_path / "b.png", colors=16)
    assert Image.open(full).convert("RGB").tobytes() == noise.tobytes() and small.stat().st_size < full.stat().st_size / 3
    assert not list(tmp_path.glob("**/*.part"))


def test_joint_colors():
    for joint, name in enumerate(SMPLX_JOINT_NAMES):
        expected = plots.LEFT_COLOR if name.startswith("left") else plots.RIGHT_COLOR if name.startswith("right") else plots.MIDDLE_COLOR
        assert plots.joint_color(joint) == expected


def test_tint_maps_paints_each_joint_in_its_colour():
    maps = torch.zeros(23, 8, 8)
    maps[20, 2, 6] = 1.0                                       # left wrist
    maps[21, 5, 1] = 1.0                                       # right wrist
    image = plots.tint_maps(flat(1, 1, 1), maps)
    assert torch.allclose(image[:, 2, 6], torch.tensor(LEFT), atol=1e-3) and torch.allclose(image[:, 5, 1], torch.tensor(RIGHT), atol=1e-3)
    assert image[:, 0, 0].tolist() == [1, 1, 1]


def test_sheet_places_photo_groups_and_views():
    size, photos = 8, torch.stack([flat(0, 0, 0), flat(0.2, 0.2, 0.2)])
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    base = torch.stack([torch.stack([flat(*c) for c in colors]), torch.stack([flat(*c) for c in colors.flip(0)])])
    sheet = plots.contact_sheet(photos, {"base": base, "true": 1 - base}, scale=1, resample="nearest")
    height = sheet.height
    lower = height - (size + 3)                                # top of the second block's images is close to this
    left_base = 10 + 9 + 10
    for view in range(4):
        box = (left_base + view * 9, lower, left_base + view * 9 + size, height - 3)
        assert contains(sheet, colors.flip(0)[view].tolist(), box) > 0.9
        box_true = (box[0] + 4 * 9 + 10, box[1], box[2] + 4 * 9 + 10, box[3])
        assert contains(sheet, (1 - colors.flip(0)[view]).tolist(), box_true) > 0.9
    assert contains(sheet, (0.2, 0.2, 0.2), (10, lower, 18, height - 3)) > 0.9


def test_sheet_turns_mirrored_views_back():
    half = flat(1, 1, 1)
    half[1:, :, :4] = 0                                        # red at image-left
    views = half.expand(1, 4, 3, 8, 8)
    rig = FOUR_VIEWS.with_mirrored((False, False, True, True))
    sheet = plots.contact_sheet(half[None], {"only": views}, rig=rig, scale=1, resample="nearest")
    top = sheet.height - 11
    for view, flipped in enumerate((False, False, True, True)):
        start = 29 + view * 9
        left, right = (contains(sheet, (1, 0, 0), (start + o, top, start + o + 4, top + 8)) for o in (0, 4))
        assert (right > 0.8 and left < 0.2) if flipped else (left > 0.8 and right < 0.2), view


def test_sheet_with_domains_labels_and_file(tmp_path):
    views = torch.rand(3, 2, 4, 3, 16, 16)
    sheet = plots.contact_sheet(views[:, 1, 0], {"base": views, "true": views}, labels=["a", "b", "c"], rig=FOUR_VIEWS, path=tmp_path / "sheet.png")
    single = plots.contact_sheet(views[:, 1, 0], {"base": views[:, 1], "true": views[:, 1]}, labels=["a", "b", "c"], rig=FOUR_VIEWS)
    assert sheet.width == single.width and sheet.height > 1.4 * single.height
    assert Image.open(tmp_path / "sheet.png").size == sheet.size


def test_skeleton_has_left_at_image_right_from_the_front():
    joints = torch.zeros(23, 3)
    joints[20, 0], joints[21, 0] = 1.0, -1.0                   # left wrist on +X, right wrist on -X; elbows at 0
    front, back, side = plots.plot_skeleton(joints, azimuths=(0, 180, 90)).axes
    reach = lambda axis, color: sum(line.get_xdata().sum() for line in axis.lines if line.get_color() == color)
    assert reach(front, plots.LEFT_COLOR) == pytest.approx(1) and reach(front, plots.RIGHT_COLOR) == pytest.approx(-1)
    assert reach(back, plots.LEFT_COLOR) == pytest.approx(-1) and reach(side, plots.LEFT_COLOR) == pytest.approx(0, abs=1e-6)
    joints[10] = torch.tensor([0.0, 0.0, 1.0])                 # a foot toward +Z, the front: at image-left when seen from +X
    assert min(line.get_xdata().min() for line in plots.plot_skeleton(joints, azimuths=(90,)).axes[0].lines) == pytest.approx(-1)
    assert max(line.get_xdata().max() for line in plots.plot_skeleton(joints, azimuths=(270,)).axes[0].lines) == pytest.approx(1)
    order = [line.get_color() for line in side.lines if line.get_color() != plots.MIDDLE_COLOR]
    assert order[-1] == plots.LEFT_COLOR and order[0] == plots.RIGHT_COLOR             # from +X her left is near, so it is drawn last
    assert len(plots.plot_skeleton(joints, truth=joints).axes[0].lines) == 44


def test_show_views_takes_one_or_many_rows():
    assert len(plots.show_views(torch.rand(4, 3, 8, 8), titles=FOUR_VIEWS).axes) == 4
    assert len(plots.show_views(torch.rand(2, 4, 3, 8, 8), overlay=torch.rand(2, 4, 23, 4, 4)).axes) == 8
    figure = plots.show_views(torch.rand(4, 8, 8) > 0.5, titles=FOUR_VIEWS)
    assert [axis.get_title() for axis in figure.axes] == ["front", "right", "back", "left"]


def test_mesh_figure_is_small_and_colored():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    figure = plots.mesh_figure(vertices, torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    mesh = figure.data[0]
    assert list(mesh.vertexcolor) == ["#f00", "#0f0", "#00f"] and mesh.y[2] == 2 and mesh.x.dtype == np.float32
    assert figure.layout.scene.camera.up.y == 1 and figure.layout.scene.camera.eye.z > 0
    assert type(figure).__name__ == "Figure" and len(figure.to_json()) < 10_000
    scene = figure.layout.scene
    assert scene.camera.projection.type is None and scene.uirevision and scene.aspectmode == "cube", "lit, in a cube, with a camera that stays"
    for points, axis in ((mesh.x, scene.xaxis), (mesh.y, scene.yaxis), (mesh.z, scene.zaxis)):
        assert axis.range[0] < points.min() and points.max() < axis.range[1] and axis.range[1] - axis.range[0] == pytest.approx(1.02 * 5**0.5)


def test_a_figure_is_stored_with_a_still_and_as_a_browser_writes_it(monkeypatch):
    "JupyterLab would add a picture where there is none, and a browser writes 7.0 as 7: either changes the notebook that is only looked at."
    shown = []
    monkeypatch.setattr(plots, "display", lambda bundle, raw: shown.append((bundle, raw)))
    figure = plots.mesh_figure(torch.eye(3), torch.tensor([[0, 1, 2]]), height=300)
    figure.add_scatter3d(x=[0.0, 1.5], y=[0, 1], z=[2.0, 3.0], line={"width": 7.0})
    plots.display_figure(figure, Image.new("RGB", (30, 20), "red"))
    ((bundle, raw),) = shown
    content = bundle["application/vnd.plotly.v1+json"]
    assert raw and '"width": 7}' in json.dumps(content) and not re.search(r"\d\.0\b", json.dumps(content))
    assert content == json.loads(figure.to_json()), "the same numbers"
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert still.size == (30, 20) and still.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_curves_reads_metrics_and_forgives_only_a_cut_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": 1.0 / (s + 1), "name": "x", "flag": True} for s in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 20, "lo')
    assert read_lines(path) == rows
    figure = plots.curves({"a": path, "b": path})
    assert [axis.get_title() for axis in figure.axes] == ["loss"] and len(figure.axes[0].lines) == 4
    assert figure.axes[0].lines[0].get_ydata()[-1] == pytest.approx(1 / 20)
    path.write_text('{"step": 0, "loss": 1}\n{"step"\n{"step": 2, "loss": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path)


def test_effect_figure_draws_the_numbers():
    part = lambda value: {"mpjpe_mm": value, "mpjpe_mm_ci95": [value - 5, value + 5], "color_psnr_db": value / 10}
    figure = comparison.effect_figure({"hard": {"before": part(500), "after": part(400)}, "everyday": {"before": part(200), "after": part(205)}, "seconds": 3, "config": {"a": 1}})
    assert isinstance(figure, Figure) and [axis.get_title().split(" (")[0] for axis in figure.axes] == ["MPJPE mm", "PSNR dB"]
    assert "lower" in figure.axes[0].get_title() and "higher" in figure.axes[1].get_title()
    assert [bar.get_height() for bar in figure.axes[0].patches] == [500, 400, 200, 205]


@pytest.mark.parametrize(
    "call, error, word",
    [
        (lambda: plots.to_image(torch.zeros(4, 8, 8)), ValueError, "to_image"),
        (lambda: plots.to_image(torch.full((3, 8, 8), float("nan"))), ValueError, "finite"),
        (lambda: plots.show_views(torch.zeros(8, 8)), ValueError, "show_views"),
        (lambda: plots.plot_skeleton(torch.zeros(10, 3)), ValueError, "plot_skeleton"),
        (lambda: plots.contact_sheet(torch.rand(2, 3, 8, 8), {}), ValueError, "contact_sheet"),
        (lambda: plots.contact_sheet(torch.rand(2, 3, 8, 8), {"a": torch.rand(3, 4, 3, 8, 8)}), ValueError, "contact_sheet"),
        (lambda: plots.contact_sheet(torch.rand(2, 3, 8, 8), {"a": torch.rand(2, 4, 3, 8, 8), "b": torch.rand(2, 3, 3, 8, 8)}), ValueError, "contact_sheet"),
        (lambda: plots.contact_sheet(torch.rand(2, 3, 8, 8), {"a": torch.rand(2, 4, 3, 8, 8)}, labels=["one"]), ValueError, "labels"),
        (lambda: plots.contact_sheet(torch.rand(2, 3, 8, 8), {"a": torch.rand(2, 4, 3, 8, 8)}, rig=FOUR_VIEWS.__class__((0, 90))), ValueError, "views"),
        (lambda: plots.mesh_figure(torch.zeros(3, 3), torch.tensor([[0, 1, 5]])), ValueError, "below N"),
        (lambda: read_lines("no/such/metrics.jsonl"), FileNotFoundError, "no/such"),
        (lambda: comparison.effect_figure({"seconds": 3}), ValueError, "before"),
    ],
)
def test_bad_input_gets_one_sentence(call, error, word):
    with pytest.raises(error, match=word) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda x: 2 * x - 1, lambda x: 255 * x])
def test_pictures_in_another_range_are_not_drawn(change):
    with pytest.raises(ValueError, match="to_image: the values of pictures must lie in"):
        plots.to_image(change(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))))
