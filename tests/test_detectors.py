"""Detectors: whose points are which joints, how each network's outputs are read, and that people upside down are understood. Networks are stand-ins that see coloured dots, and only on upright people; the files and doors around them are the real ones."""

import io
import math
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiny_parts
import torch
from PIL import Image

from drpose.ground.provenance import digest_of
from drpose.pairs import detectors
from drpose.pairs.animators import RenderAnimator, painted_poses
from drpose.pairs.detectors import DETECTORS, Keypoints, decode_blazepose, decode_simcc, load_detector, matting_by, skeleton_of
from drpose.pairs.gates import GATES, EstimatorDetector, calibrate_limits, check_renders, compressed, failed_gates, figure_mask, project_labels, reprojection_scores
from drpose.people.bodies import load_body
from drpose.people.pose_sets import draw_set
from drpose.pictures.photos import cut_out_person

LIMBS = (16, 18, 20, 1, 4, 7, 17, 19, 21, 2, 5, 8)
COCO = (5, 7, 9, 11, 13, 15, 6, 8, 10, 12, 14, 16)
BLAZE = (11, 13, 15, 23, 25, 27, 12, 14, 16, 24, 26, 28)
COLORS = [(r, g, b) for r in (0.0, 0.5, 1.0) for g in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0) if len({r, g, b}) > 1][:12]
STANDING = torch.tensor([[0.12, 0.22], [0.18, 0.08], [0.2, -0.05], [0.06, 0.0], [0.07, -0.18], [0.07, -0.36], [-0.12, 0.22], [-0.2, 0.3], [-0.16, 0.42], [-0.06, 0.0], [-0.1, -0.16], [-0.08, -0.33]])  # one arm up


def dots(places, side=256):
    "Pictures of twelve coloured discs on white, at places (B, 12, 2) in frame units."
    pictures, line = torch.ones(len(places), 3, side, side), (torch.arange(side) + 0.5) / side - 0.5
    for picture, some in zip(pictures, places):
        for (x, y), color in zip(some.tolist(), COLORS, strict=True):
            picture[:, (line[None] - x) ** 2 + (-line[:, None] - y) ** 2 < (6 / 256) ** 2] = torch.tensor(color)[:, None]
    return pictures


def seen(picture):
    "Where the twelve dots are in a picture (3, H, W), pixels (12, 2) from the middle of the first; guesses unless the person stands upright."
    places = []
    for color in COLORS:
        near = (picture - torch.tensor(color)[:, None, None]).abs().amax(0) < 0.12
        rows, columns = near.nonzero().float().unbind(1)
        places.append([columns.mean(), rows.mean()] if len(rows) else [math.nan, math.nan])
    places = torch.tensor(places)
    up = (places[[3, 9]].mean(0) - places[[0, 6]].mean(0))[1]
    if up < 0.7 * (places[[3, 9]].mean(0) - places[[0, 6]].mean(0)).norm():
        return picture.shape[-1] * (0.3 + 0.4 * torch.rand(12, 2, generator=torch.Generator().manual_seed(int(1e4 * picture.mean()))))
    return places


DEPTHS = torch.tensor([0.05, 0.12, 0.2, 0.02, 0.1, -0.08, -0.03, -0.15, -0.2, -0.02, -0.1, 0.06])  # toward the viewer


def turned(places, degrees):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return places @ torch.tensor([[cos, sin], [-sin, cos]])


class Interpreter:
    "Of ai-edge-litert: BlazePose's inputs and outputs."

    shape, gives, present = (1, 256, 256, 3), {1: (1, 195), 2: (1, 1), 3: (1, 117)}, 1.0

    def __init__(self, path, num_threads=1):
        if Path(path).read_bytes() != b"weights":
            raise ValueError("Model provided has model identifier 'junk', should be 'TFL3'")

    def allocate_tensors(self):
        pass

    def get_input_details(self):
        return [{"index": 0, "shape": np.array(self.shape)}]

    def get_output_details(self):
        return [{"index": index, "shape": np.array(shape)} for index, shape in self.gives.items()]

    def set_tensor(self, index, value):
        assert index == 0 and value.shape == (1, 256, 256, 3) and value.dtype == np.float32 and 0 <= value.min() and value.max() <= 1
        self.picture = torch.from_numpy(value)[0].permute(2, 0, 1)

    def invoke(self):
        self.numbers = torch.zeros(39, 5)
        self.numbers[:, :2] = 128
        self.numbers[list(BLAZE), :2] = (seen(self.picture) + 0.5).nan_to_num(128)
        self.numbers[:, 3:] = 4.0
        # metres of somebody 1.7 times as large as in this look, z away from the viewer; how large the look is, is read off the trunk
        self.space, places = torch.zeros(39, 3), self.numbers[list(BLAZE), :2] / 256 - 0.5
        trunk = lambda some: (some[[0, 6]].mean(0) - some[[3, 9]].mean(0)).norm()  # noqa: E731
        self.space[list(BLAZE)] = 1.7 * torch.cat([places, -(trunk(places) / trunk(STANDING) * DEPTHS)[:, None]], 1)

    def get_tensor(self, index):
        return {1: self.numbers.reshape(1, 195), 2: torch.full((1, 1), self.present), 3: self.space.reshape(1, 117)}[index].numpy()


class Session:
    "Of onnxruntime: RTMPose's input and outputs, 17 points, 256 x 192."

    given, gives = ([1, 3, 256, 192],), ([1, 17, 384], [1, 17, 512])

    def __init__(self, path, providers):
        if Path(path).read_bytes() != b"weights":
            raise RuntimeError("INVALID_PROTOBUF : Load model failed")

    def get_inputs(self):
        return [types.SimpleNamespace(name="input", shape=shape) for shape in self.given]

    def get_outputs(self):
        return [types.SimpleNamespace(name=f"simcc_{i}", shape=shape) for i, shape in enumerate(self.gives)]

    def run(self, wanted, given):
        picture = torch.from_numpy(given["input"])[0]
        assert wanted is None and picture.shape == (3, 256, 192)
        picture = (picture * torch.tensor([58.395, 57.12, 57.375])[:, None, None] + torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / 255
        places, both = seen(picture), [torch.zeros(1, 17, 384), torch.zeros(1, 17, 512)]
        for number, place in zip(COCO, places.nan_to_num(0)):
            for one, where in zip(both, place):
                one[0, number, int((2 * where).round().clamp(0, one.shape[-1] - 1))] = 0.9
        return [one.numpy() for one in both]


class HeatMaps(torch.nn.Module):
    "In ViTPose's place: heat maps of the dots, a quarter of the size of the processor's pictures."

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, pixel_values):
        pictures = pixel_values * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        height, width = (side // 4 for side in pictures.shape[2:])
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
        maps = torch.zeros(len(pictures), 17, height, width)
        for own, picture in zip(maps, pictures):
            # unbiased data processing: both grids run from the first pixel's middle to the last one's
            for number, (x, y) in zip(COCO, seen(picture) * torch.tensor([(width - 1) / (4 * width - 1), (height - 1) / (4 * height - 1)])):
                own[number] = (-((columns - x) ** 2 + (rows - y) ** 2) / 8).exp().nan_to_num(0)
        return types.SimpleNamespace(heatmaps=maps)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "Gives a detector by name whose network sees dots; all the rest is real."
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", types.SimpleNamespace(Interpreter=Interpreter))
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=Session, get_available_providers=lambda: ["CPUExecutionProvider"]))

    def made(name):
        for opened in (detectors._blazepose, detectors._vitpose, detectors._rtmpose):
            opened.cache_clear()
        if name != "vitpose":
            (tmp_path / "network").write_bytes(b"weights")
            return load_detector(name, tmp_path / "network")
        detector = load_detector(name, tiny_parts.vitpose(tmp_path / "vitpose"))
        network, processor = detector.opened(torch.device("cpu"))
        processor.size = {"height": 256, "width": 192}
        monkeypatch.setattr(type(detector), "opened", lambda self, device: (HeatMaps(network.config), processor))
        return detector

    yield made
    for opened in (detectors._blazepose, detectors._vitpose, detectors._rtmpose):
        opened.cache_clear()


@pytest.mark.parametrize("name", ["blazepose", "vitpose", "rtmpose"])
def test_dots_are_found_where_they_are_whichever_way_up(name, stand_in):
    "Within two pixels of 256, left on the left, upright, leaning, on the side, upside down; and where each was in the label."
    places = torch.stack([turned(STANDING, degrees) for degrees in (0, 20, 90, -90, 180, 150)])
    found = stand_in(name).detect(dots(places))
    assert found.joints.shape == (6, 23, 2) and found.error.shape == (6, 23) and (found.error > 0).all() and found.told.all()
    off = (found.joints[:, list(LIMBS)] - places).norm(dim=-1)
    assert off.max() < 2 / 256, off.amax(1)
    assert found.joints[:, [3, 6, 9, 13, 14, 22]].isnan().all()
    label = torch.zeros(6, 23, 3)
    label[:, list(LIMBS), :2], label[:, 12, :2], label[:, 0, :2] = places, places[:, [0, 6]].mean(1), places[:, [3, 9]].mean(1)
    scores = reprojection_scores(found, label)
    assert scores["reprojection"].max() < 0.05 and (scores["swap"] < 0).all()


def test_blazepose_sees_depth_whichever_way_up(stand_in, monkeypatch):
    "From the pelvis, toward the viewer, in units of the frame; a smaller person is less deep; where nobody is, nor is a depth; a file without points in space gives none."
    detector, sizes = stand_in("blazepose"), torch.tensor([1.0, 1.0, 0.7, 1.0])
    found = detector.detect(dots(torch.stack([size * turned(STANDING, degrees) for size, degrees in zip(sizes, (0, 90, 180, 150))])))
    hips, shoulders = DEPTHS[[3, 9]].mean(), DEPTHS[[0, 6]].mean()
    expected = sizes[:, None] * (DEPTHS - (hips + 0.175 * (shoulders - hips)))
    assert found.depth.shape == (4, 23) and (found.depth[:, list(LIMBS)] - expected).abs().max() < 0.008, found.depth[:, list(LIMBS)] - expected
    assert (found.depth[:, 0] == 0).all() and torch.equal(found.depth.isnan(), found.joints.isnan().any(-1))
    monkeypatch.setattr(Interpreter, "present", 0.1)
    assert detector.detect(torch.ones(1, 3, 64, 64)).depth.isnan().all()
    monkeypatch.setattr(Interpreter, "present", 1.0)
    monkeypatch.setattr(Interpreter, "gives", {1: (1, 195), 2: (1, 1)})
    detectors._blazepose.cache_clear()
    assert detector.detect(dots(STANDING[None])).depth is None


def test_who_does_not_understand_says_so(stand_in, monkeypatch):
    "A network that guesses anew at each look is not believed, and its picture not judged; that nobody is there is an answer, and refused."
    detector, label = stand_in("blazepose"), torch.zeros(2, 23, 3)
    label[:, 12, 1] = 0.3
    guess = torch.Generator().manual_seed(1)
    monkeypatch.setattr(sys.modules[__name__], "seen", lambda picture: 256 * torch.rand(12, 2, generator=guess))
    scores = reprojection_scores(detector.detect(dots(STANDING[None].expand(2, 12, 2))), label)
    assert scores["reprojection"].isnan().all() and scores["swap"].isnan().all()
    assert not failed_gates(scores, {"reprojection": 0.1, "swap": 0.0})["reprojection"].any()
    monkeypatch.setattr(Interpreter, "present", 0.1)
    scores = reprojection_scores(detector.detect(torch.ones(2, 3, 64, 64)), label)
    assert (scores["reprojection"] == math.inf).all() and failed_gates(scores, {"reprojection": 0.1})["reprojection"].all()


@pytest.mark.parametrize("name", ["blazepose", "vitpose", "rtmpose"])
def test_half_a_pixel(name, stand_in):
    "One look at a standing person has no bias to a side: a picture and its half turn would else disagree by twice of it."
    detector, ways = stand_in(name), []
    for step in range(8):
        places = STANDING[None] * 0.8 + torch.tensor([0.005, 0.003]) * step
        ways.append(skeleton_of(detector.look(dots(places))).points[:, list(LIMBS)] - places)
    assert torch.cat(ways).mean((0, 1)).abs().max() < 0.35 / 256, torch.cat(ways).mean((0, 1)) * 256


def test_blazepose_draws_outlines(stand_in, monkeypatch):
    "Asked for the mask that some of its files hold: in [0, 1], as large as the picture, each picture its own."
    detector = stand_in("blazepose")
    with pytest.raises(ValueError, match="draws no outline"):
        detector.outline(dots(STANDING[None]))
    monkeypatch.setattr(Interpreter, "gives", {**Interpreter.gives, 4: (1, 256, 256, 1)})
    plain = Interpreter.get_tensor
    monkeypatch.setattr(Interpreter, "get_tensor", lambda self, index: (20 * (0.5 - self.picture.mean(0)))[None, ..., None].numpy() if index == 4 else plain(self, index))
    pictures = torch.ones(2, 3, 128, 128)
    pictures[0, :, 20:100, 40:80], pictures[1, :, 60:90, :30] = 0, 0
    found = detector.outline(pictures)
    assert found.shape == (2, 128, 128) and ((found > 0.5) == (pictures[:, 0] < 0.5)).float().mean() > 0.99


@pytest.mark.parametrize("degrees, size", [(0, (400, 300)), (90, (340, 340)), (180, (300, 420))])
def test_people_are_cut_out_of_photos(degrees, size, stand_in, monkeypatch):
    "Wide and high photos, people upright, lying, upside down: the outline lies where it was drawn, colours stay, and a second dark thing in the room is left out; nobody is one sentence."
    detector = stand_in("blazepose")
    monkeypatch.setattr(Interpreter, "gives", {**Interpreter.gives, 4: (1, 256, 256, 1)})
    plain = Interpreter.get_tensor
    monkeypatch.setattr(Interpreter, "get_tensor", lambda self, index: (40 * (0.15 - self.picture.amax(0)))[None, ..., None].numpy() if index == 4 else plain(self, index))
    square = dots(0.5 * turned(STANDING, degrees)[None], 420)[0]
    trunk = 0.5 * turned(torch.tensor([[x, y] for x in (-0.04, 0.04) for y in (0.06, 0.16)]), degrees)
    columns, rows = ((0.5 + trunk[:, 0]) * 420).int().tolist(), ((0.5 - trunk[:, 1]) * 420).int().tolist()
    square[:, min(rows) : max(rows), min(columns) : max(columns)] = 0
    left, top = ((420 - extent) // 2 for extent in size)
    true = (square.amax(0) == 0)[top : top + size[1], left : left + size[0]].clone()
    square[:, top : top + 20, left : left + 20] = 0  # a dark thing far from the person
    levels = (square[:, top : top + size[1], left : left + size[0]] * 255).byte().permute(1, 2, 0).numpy()
    made = cut_out_person(Image.fromarray(levels), matting_by(detector))
    alpha = np.asarray(made)[..., 3] / 255
    assert made.mode == "RGBA" and made.size == size and np.array_equal(np.asarray(made)[..., :3], levels)
    assert alpha[:20, :20].max() == 0 and ((alpha > 0.5) != true.numpy()).mean() < 0.004 and (alpha > 0.5).sum() > 0.9 * true.sum()
    monkeypatch.setattr(Interpreter, "present", 0.1)
    with pytest.raises(ValueError, match="the detector finds nobody in the photo"):
        cut_out_person(Image.fromarray(levels), matting_by(detector))
    assert matting_by(load_detector("estimator")) is None and matting_by(None) is None


def test_points_become_joints():
    "Every layout has the twelve limbs where its own table has them; what a joint is made of decides whether it is known, and how surely."
    for count, limbs in ((17, COCO), (133, COCO), (33, BLAZE)):
        points, sure = torch.rand(2, count, 2), torch.rand(2, count)
        points[1, limbs[0]] = math.nan
        made = skeleton_of(Keypoints(points, sure))
        assert torch.equal(made.points[0, list(LIMBS)], points[0, list(limbs)]) and torch.equal(made.confidence[0, list(LIMBS)], sure[0, list(limbs)])
        hips, shoulders = points[0, [limbs[3], limbs[9]]].mean(0), points[0, [limbs[0], limbs[6]]].mean(0)
        assert torch.allclose(made.points[0, 0], hips + 0.175 * (shoulders - hips), atol=1e-5) and torch.allclose(made.points[0, 12], shoulders + 0.09 * (shoulders - hips), atol=1e-5)
        assert made.points[1, [16, 0, 12, 15]].isnan().all() and made.points[1, 17].isfinite().all() and made.confidence[1, 16] == 0
        assert made.points[:, [10, 11]].isnan().all() == (count == 17)
    with pytest.raises(ValueError, match="a detector gives 21 points, needed 17"):
        skeleton_of(Keypoints(torch.rand(1, 21, 2), torch.rand(1, 21)))


def test_outputs_are_read():
    "Numbers put in by hand: the corner of BlazePose's picture is the corner of the frame; SimCC's bins are half pixels."
    numbers = torch.zeros(2, 39, 5)
    numbers[0, 11] = torch.tensor([0.0, 0.0, 7.0, 2.0, -1.0])
    numbers[0, 12] = torch.tensor([256.0, 192.0, 7.0, 50.0, 50.0])
    found = decode_blazepose(numbers.reshape(2, 195), torch.tensor([0.9, 0.4]))
    assert found.points[0, 11].tolist() == [-0.5, 0.5] and found.points[0, 12].tolist() == [0.5, -0.25] and found.points.shape == (2, 33, 2)
    assert found.confidence[0, 11].item() == pytest.approx(1 / (1 + math.exp(-2)) / (1 + math.exp(1))) and found.confidence[0, 12] == 1
    assert found.points[1].isnan().all() and (found.confidence[1] == 0).all() and found.depth is None
    space = torch.randn(2, 39, 3, generator=torch.Generator().manual_seed(2))
    numbers[:, :33, :2] = 128 + 256 * 0.3 * space[:, :33, :2]
    found = decode_blazepose(numbers.reshape(2, 195), torch.tensor([0.9, 0.4]), (space + 2).reshape(2, 117))
    assert torch.allclose(found.depth[0] - found.depth[0, 0], -0.3 * (space[0, :33, 2] - space[0, 0, 2]), atol=1e-5) and found.depth[1].isnan().all()
    columns, rows = torch.zeros(1, 1, 384), torch.zeros(1, 1, 512)
    columns[..., 100], rows[..., 301] = 0.8, 0.6
    points, sure = decode_simcc(columns, rows, 192, 256)
    assert points.tolist() == [[[50.5, 151.0]]] and sure.item() == pytest.approx(0.6)


@pytest.mark.parametrize("experts", [1, 3])
def test_vitpose_with_random_weights_runs_its_whole_way(experts, tmp_path):
    "From a folder in the hub's layout through the library's own processor; three experts as in ViTPose+."
    detectors._vitpose.cache_clear()
    detector = load_detector("vitpose", str(tiny_parts.vitpose(tmp_path / "vitpose", experts)))
    pictures = dots(STANDING[None].expand(2, 12, 2), 96)
    seen_once = detector.look(pictures)
    assert seen_once.points.shape == (2, 17, 2) and torch.equal(seen_once.points.isnan().any(-1), seen_once.confidence < 0.3)
    detectors._PEAK, peak = -1.0, detectors._PEAK
    try:
        everything = detector.look(pictures)
    finally:
        detectors._PEAK = peak
    assert everything.points.isfinite().all() and everything.points.abs().max() < 1
    found = detector.detect(pictures)
    assert found.joints.shape == (2, 23, 2) and found.error.isfinite().all()
    (tmp_path / "vitpose" / "preprocessor_config.json").unlink()
    detectors._vitpose.cache_clear()
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        load_detector("vitpose", tmp_path / "vitpose")


def test_an_onnx_file_runs(tmp_path):
    "A real file through the real runtime, where both packages are installed: maxima of columns and rows of the red channel."
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes, outputs = [], []
    for axis, (name, size) in enumerate((("simcc_x", 192), ("simcc_y", 256))):
        nodes += [make.make_node("ReduceMax", ["input"], [f"{name}_line"], axes=[1, 2 + axis], keepdims=0), make.make_node("Unsqueeze", [f"{name}_line", "one"], [f"{name}_row"]),
                  make.make_node("Expand", [f"{name}_row", f"{name}_shape"], [name])]
        outputs.append(make.make_tensor_value_info(name, kind, [1, 17, size]))
    constants = [make.make_tensor("one", onnx.TensorProto.INT64, [1], [1]), make.make_tensor("simcc_x_shape", onnx.TensorProto.INT64, [3], [1, 17, 192]), make.make_tensor("simcc_y_shape", onnx.TensorProto.INT64, [3], [1, 17, 256])]
    graph = make.make_graph(nodes, "stand-in", [make.make_tensor_value_info("input", kind, [1, 3, 256, 192])], outputs, constants)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8), tmp_path / "network.onnx")
    detectors._rtmpose.cache_clear()
    picture = torch.zeros(1, 3, 256, 256)
    picture[0, 0, 60:200, 100:120] = 0.5
    picture[0, :, 150:152, 110:112] = 1.0
    found = load_detector("rtmpose", tmp_path / "network.onnx").look(picture)
    assert (found.points[0, 0] - torch.tensor([111 / 256 - 0.5, 0.5 - 151 / 256])).abs().max() < 1.5 / 256
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="bad.onnx: is no network of ONNX"):
        load_detector("rtmpose", tmp_path / "bad.onnx")


def test_doors(tmp_path, stand_in, monkeypatch):
    "One sentence for an unknown name, no weights, no file, another network's file, junk, and a package that is not there."
    detector = stand_in("blazepose")
    assert set(DETECTORS) == {"estimator", "blazepose", "vitpose", "rtmpose"}
    assert isinstance(load_detector("estimator"), EstimatorDetector)
    before = digest_of(detector)
    for name, weights, error, says in (
        ("openpose", "", ValueError, "unknown detector 'openpose': this version has estimator, blazepose, vitpose, rtmpose"),
        ("blazepose", "", ValueError, "'blazepose' needs weights: a file"), ("vitpose", "", ValueError, "'vitpose' needs weights: a folder, or a name on the hub"),
        ("blazepose", tmp_path / "none.tflite", FileNotFoundError, "none.tflite: no such file, needed the network of the detector 'blazepose', such as pose_landmark_heavy.tflite"),
        ("rtmpose", tmp_path / "none.onnx", FileNotFoundError, "none.onnx: no such file"), ("vitpose", tmp_path / "none", FileNotFoundError, "none"),
        ("estimator", tmp_path / "none", FileNotFoundError, "none")):  # fmt: skip
        with pytest.raises(error, match=says):
            load_detector(name, weights)
    (tmp_path / "junk").write_bytes(b"junk")
    assert digest_of(DETECTORS["blazepose"](tmp_path / "junk")) != before, "the weights' content belongs to what pairs are made from"
    with pytest.raises(ValueError, match="junk: is no network of TensorFlow Lite .*TFL3"):
        load_detector("blazepose", tmp_path / "junk")
    with pytest.raises(ValueError, match="junk: is no network of ONNX .*INVALID_PROTOBUF"):
        load_detector("rtmpose", tmp_path / "junk")
    detectors._blazepose.cache_clear()
    monkeypatch.setattr(Interpreter, "shape", (1, 224, 224, 3))
    with pytest.raises(ValueError, match=r"network: takes \[\(1, 224, 224, 3\)\] and gives .*needed BlazePose's landmarks"):
        load_detector("blazepose", tmp_path / "network")
    monkeypatch.setattr(Session, "gives", ([1, 17, 384],))
    with pytest.raises(ValueError, match=r"network: takes \[\[1, 3, 256, 192\]\] and gives \[\[1, 17, 384\]\], needed"):
        load_detector("rtmpose", tmp_path / "network")
    for name, package in (("blazepose", "ai_edge_litert.interpreter"), ("rtmpose", "onnxruntime")):
        monkeypatch.setitem(sys.modules, package, None)
        detectors._blazepose.cache_clear(), detectors._rtmpose.cache_clear()
        with pytest.raises(ImportError, match=rf"the detector '{name}' needs a package that is not installed: pip install 'drpose\[detectors\]'"):
            load_detector(name, tmp_path / "network")


def test_a_mistaken_detector_does_not_open_its_gate():
    "Two of sixty clean pictures misread: with the strict share the limit lies beyond them, with the detector's own it does not; other gates keep theirs."
    scores = {name: torch.linspace(0.1, 0.2, 60) for name in GATES}
    scores["reprojection"] = scores["reprojection"].clone()
    scores["reprojection"][:2] = torch.tensor([1.5, 1.4])
    strict, own = calibrate_limits(scores), calibrate_limits(scores, mistaken=DETECTORS["blazepose"].mistaken)
    assert strict["reprojection"] > 1.5 and 0.2 < own["reprojection"] < 0.3
    assert {name: limit for name, limit in strict.items() if GATES[name].gate != "reprojection"} == {name: limit for name, limit in own.items() if GATES[name].gate != "reprojection"}


@pytest.fixture(scope="module")
def people():
    body_model = load_body()
    return body_model, RenderAnimator(body_model, 256), draw_set("pool", 40, 31, body_model), draw_set("pool", 50, 32, body_model)


def test_the_figure_is_found_after_a_codec(people):
    "At 256 pixels: JPEG at quality 50, noise of an autoencoder, blur, a shaded ground; each outline within 4 % of the true one."
    body_model, animator, drawn, _ = people
    drawn = drawn[slice(16)]
    images, framing = animator.animate(drawn.poses, drawn.people)
    true = project_labels(body_model, painted_poses(animator, drawn.poses, drawn.people), framing, 128).body
    line = torch.linspace(-1, 1, 256)
    noise = torch.nn.functional.interpolate(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), (256, 256), mode="bicubic")
    shaded = images * 0.85 * (1 - 0.06 * (line[None] ** 2 + line[:, None] ** 2) + 0.05 * line[:, None])
    for name, shown in (("clean", images), ("codec", compressed(images, 50)), ("noise", (images + 0.02 * noise).clamp(0, 1)), ("blur", torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)), ("shade and codec", compressed(shaded, 50))):
        found = figure_mask(torch.nn.functional.interpolate(shown, (128, 128), mode="area"))
        overlap = (found & true).flatten(1).sum(1) / (found | true).flatten(1).sum(1)
        assert overlap.mean() > 0.96 and overlap.min() > 0.93, (name, overlap.mean(), overlap.min())


def test_a_codec_does_not_make_gates_refuse(people):
    "Limits learnt from clean renders: the outline's gates take compressed ones as well. Limits learnt from compressed ones: all gates do."
    body_model, animator, few, drawn = people
    clean = calibrate_limits(check_renders(few, animator)[0])
    scores, _ = check_renders(drawn, animator, quality=50)
    failed = failed_gates(scores, clean)
    assert torch.stack([failed[gate] for gate in ("silhouette", "single person", "in frame")]).any(0).float().mean() <= 0.02
    told = failed_gates(scores, calibrate_limits(check_renders(few, animator, quality=50)[0]))
    assert torch.stack(list(told.values())).any(0).float().mean() <= 0.04, {name: int(which.sum()) for name, which in told.items()}
    with pytest.raises(ValueError, match="quality is 0, needed 1 to 95"):
        compressed(torch.ones(1, 3, 8, 8), 0)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(picture, "JPEG", quality=50)
    assert torch.equal(compressed(torch.tensor([200, 100, 50]).view(1, 3, 1, 1).expand(1, 3, 8, 8) / 255, 50)[0, :, 0, 0], torch.from_numpy(np.array(Image.open(picture)))[0, 0] / 255)


@pytest.mark.skipif(not os.environ.get("DRPOSE_BLAZEPOSE"), reason="DRPOSE_BLAZEPOSE names no file of BlazePose's landmarks")
def test_blazepose_itself_finds_rendered_people(people):
    body_model, animator, _, _ = people
    drawn = draw_set("everyday", 6, 21, body_model)
    images, framing = animator.animate(drawn.poses, drawn.people)
    joints = project_labels(body_model, painted_poses(animator, drawn.poses, drawn.people), framing, 16).joints
    detector = load_detector("blazepose", os.environ["DRPOSE_BLAZEPOSE"])
    for shown, label in ((images, joints), (images.flip(-1).flip(-2), joints * torch.tensor([-1.0, -1.0, 1.0]))):
        scores = reprojection_scores(detector.detect(shown), label)
        assert scores["reprojection"].max() < 0.12 and (scores["swap"] < 0).all()
