"""Meshes against scans (drpose.evaluation.mesh_metrics, mesh_protocols): distances are the minimum, directions are what their names say, volumes and alignments are right, and what cannot be measured gets one sentence."""

import csv
import math
import time

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from drpose.people.bodies import Pose, load_body
from drpose.people.clips import embedded_clips
from drpose.evaluation import mesh_metrics
from drpose.evaluation.mesh_metrics import (
    Alignment,
    align_meshes,
    both_ways,
    check_person,
    evaluate_meshes,
    f_score,
    nearest_on_surface,
    prepare_surface,
    read_person,
    sample_surface,
    volume_iou,
)
from drpose.evaluation.mesh_protocols import PROTOCOLS, body_errors, edges_of_small_faces, evaluate_protocol, summarise_subjects, write_mesh_tables


def plain(vertices, faces) -> trimesh.Trimesh:
    return trimesh.Trimesh(np.asarray(vertices, float), np.asarray(faces), process=False)


@pytest.fixture(scope="module")
def pair() -> tuple[trimesh.Trimesh, trimesh.Trimesh]:
    "A guess of a kick, and the kick."
    kick = embedded_clips()["high_kick"].poses[18:19]
    noise = torch.randn(kick.axis_angles.shape, generator=torch.Generator().manual_seed(0))
    body_model = load_body()
    guess = body_model(Pose(kick.axis_angles + 0.02 * noise, kick.betas + 0.3, kick.transl + 0.005))
    true = body_model(kick)
    return tuple(plain(body.vertices[0].double().numpy(), body.faces.numpy()) for body in (guess, true))


def ball(radius: float = 0.5, at=(0.0, 0.0, 0.0), subdivisions: int = 4) -> trimesh.Trimesh:
    made = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return plain(made.vertices + np.asarray(at), made.faces)


def soup(count: int, seed: int, flat: int = 0) -> trimesh.Trimesh:
    "Unconnected triangles: fair ones, needles, large and tiny ones, and `flat` without area."
    random = np.random.default_rng(seed)
    corners = random.normal(size=(count, 1, 3)) + random.normal(size=(count, 3, 3)) * 10 ** random.uniform(-3, 0.3, (count, 1, 1))
    corners[: count // 4, 2] = corners[: count // 4, 0] + (corners[: count // 4, 1] - corners[: count // 4, 0]) * 0.3 + 1e-5
    if flat:
        corners[-flat:, 2] = corners[-flat:, 1]
        corners[-flat // 2 :] = corners[-flat // 2 :, :1]
    return plain(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3))


def brute_force(point: np.ndarray, mesh: trimesh.Trimesh) -> float:
    "Distance of one point to every triangle, by regions of the triangle's plane: a different way from the chapter's."
    best = math.inf
    for a, b, c in np.asarray(mesh.vertices)[mesh.faces]:
        candidates = []
        for start, end in ((a, b), (b, c), (c, a)):
            edge = end - start
            t = 0.0 if edge @ edge == 0 else min(1.0, max(0.0, (point - start) @ edge / (edge @ edge)))
            candidates.append(start + t * edge)
        normal = np.cross(b - a, c - a)
        if normal @ normal > 0:
            foot = point - normal * ((point - a) @ normal) / (normal @ normal)
            if all(np.cross(end - start, foot - start) @ normal >= 0 for start, end in ((a, b), (b, c), (c, a))):
                candidates.append(foot)
        best = min(best, *(np.linalg.norm(point - place) for place in candidates))
    return best


# --- the distance ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [soup(60, 0), soup(60, 1, flat=12), soup(1, 2), ball(subdivisions=1), trimesh.creation.box((1, 2, 0.1))], ids=["soup", "flat", "one", "ball", "box"])
def test_distances_are_those_of_brute_force(mesh):
    random = np.random.default_rng(3)
    points = np.concatenate([random.normal(size=(40, 3)), random.normal(size=(5, 3)) * 100, sample_surface(mesh, 10, 0).points, np.asarray(mesh.vertices)[:5], [mesh.vertices.mean(0)]])
    found = nearest_on_surface(points, prepare_surface(mesh))
    assert np.abs(found.distance - [brute_force(point, mesh) for point in points]).max() < 1e-9
    assert np.abs(np.linalg.norm(points - found.point, axis=1) - found.distance).max() < 1e-9
    for point, face in zip(found.point, found.face):
        assert brute_force(point, plain(mesh.vertices, mesh.faces[face : face + 1])) < 1e-9, "the point lies on the face that is named"


def test_distances_are_those_of_trimesh_on_a_body(pair):
    predicted, true = pair
    points = sample_surface(predicted, 60, 5).points
    ours = nearest_on_surface(points, prepare_surface(true)).distance
    theirs = np.concatenate([trimesh.proximity.closest_point_naive(true, part)[1] for part in np.array_split(points, 6)])
    assert np.abs(ours - theirs).max() < 1e-6 and abs(ours.mean() / theirs.mean() - 1) < 0.005


def test_equal_distances_do_not_fill_the_memory(monkeypatch):
    "At the centre of a sphere every triangle is as near as every other."
    monkeypatch.setattr(mesh_metrics, "MOST_PAIRS", 20_000)
    sphere = ball()
    inside = np.random.default_rng(0).normal(size=(300, 3)) * 1e-4
    assert nearest_on_surface(inside, prepare_surface(sphere)).distance == pytest.approx(0.5, abs=2e-3)
    assert nearest_on_surface(inside[:2], prepare_surface(sphere)).distance == pytest.approx([brute_force(point, sphere) for point in inside[:2]], abs=1e-9)


def test_a_floor_under_a_person_is_found():
    "One triangle of ten metres beside many small ones."
    small = ball(0.05, (0, 1, 0))
    corners = [[-9, 0, -9], [9, 0, -9], [0, 0, 12]]
    floor = plain(np.concatenate([small.vertices, corners]), np.concatenate([small.faces, [len(small.vertices) + np.arange(3)]]))
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3)) + [0, 1.2, 0]
    found = nearest_on_surface(points, prepare_surface(floor)).distance
    assert np.abs(found - np.minimum(np.abs(points[:, 1]), nearest_on_surface(points, prepare_surface(small)).distance)).max() < 1e-12


def test_threads_change_nothing(pair):
    points = sample_surface(pair[0], 5_000, 0).points
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(nearest_on_surface(points, prepare_surface(pair[1])))
    torch.set_num_threads(before)
    assert all((a == b).all() for a, b in zip(*found))


def test_a_hundred_thousand_points_take_no_more_than_some_nearest_neighbour_queries(pair):
    "In processor time, so that it holds on a busy machine: about 15 were measured."
    predicted, true = pair
    points = [sample_surface(mesh, 100_000, 0).points for mesh in pair]
    began = time.process_time()
    for mesh, queries in ((true, points[0]), (predicted, points[1])):
        cKDTree(mesh.triangles_center).query(queries)
    plain_queries = time.process_time() - began
    began = time.process_time()
    both_ways(predicted, true, 100_000)
    assert time.process_time() - began < 60 * plain_queries


# --- samples and metrics ----------------------------------------------------------------------------------------------------------------


def test_samples_are_spread_by_area_and_repeat():
    "A large and a small square, and a face without area between them."
    mesh = plain([[0, 0, 0], [3, 0, 0], [3, 3, 0], [0, 3, 0], [5, 0, 0], [6, 0, 0], [6, 1, 0], [5, 1, 0], [9, 9, 9], [9, 9, 9]], [[0, 1, 2], [8, 9, 8], [0, 2, 3], [4, 5, 6], [4, 6, 7], [8, 8, 9]])
    found = sample_surface(mesh, 10_000, 0)
    counts = np.bincount(found.faces, minlength=6)
    assert counts[1] == counts[5] == 0 and np.abs(counts - np.array([4500, 0, 4500, 500, 500, 0])).max() <= 1
    large = found.points[found.points[:, 0] < 4]
    assert np.abs(large[:, :2].mean(0) - 1.5).max() < 0.05 and np.abs(large[:, :2].std(0) - 3 / 12**0.5).max() < 0.05
    assert (sample_surface(mesh, 10_000, 0).points == found.points).all() and not (sample_surface(mesh, 10_000, 1).points == found.points).all()


def test_directions_are_what_their_names_say():
    "Two balls are true, one is predicted: nothing is there that should not be, and half is missing."
    true = trimesh.util.concatenate([ball(0.3), ball(0.3, (1, 0, 0))])
    found = evaluate_meshes(ball(0.3), true, 5_000)
    assert found.prediction_to_truth_cm < 1e-9 and 30 < found.truth_to_prediction_cm < 50
    assert found.chamfer_cm == (found.prediction_to_truth_cm + found.truth_to_prediction_cm) / 2
    row = found.row()
    assert row["p2s_cm"] == found.prediction_to_truth_cm and row["s2p_cm"] == found.truth_to_prediction_cm
    assert found.volume_iou == pytest.approx(0.5, abs=0.01)
    assert found.f_score_1cm == pytest.approx(2 * 100 * 50 / 150, abs=1)
    back = evaluate_meshes(true, ball(0.3), 5_000)
    assert back.truth_to_prediction_cm < 1e-9 and back.prediction_to_truth_cm == pytest.approx(found.truth_to_prediction_cm, rel=0.05)


def test_a_larger_ball_is_as_far_as_its_radius_says():
    found = evaluate_meshes(ball(0.51, subdivisions=5), ball(0.5, subdivisions=5), 20_000)
    assert found.prediction_to_truth_cm == pytest.approx(1, abs=0.01) == found.truth_to_prediction_cm
    assert found.normal_consistency > 0.999 and found.volume_iou == pytest.approx((0.5 / 0.51) ** 3, abs=0.005)
    assert found.f_score_5mm == 0 and found.f_score_2cm == 100


def test_inside_out_is_seen_by_one_convention_alone():
    turned = ball()
    turned = plain(turned.vertices, turned.faces[:, ::-1])
    found = evaluate_meshes(turned, ball(), 5_000)
    assert found.normal_consistency > 0.99 and found.normal_consistency_signed < -0.99 and found.volume_iou == pytest.approx(1)


def test_f_score_by_hand():
    assert f_score(np.array([0.0, 0.2, 0.3, 0.4]), np.array([0.0, 1.0]), 0.3) == pytest.approx(2 * 75 * 50 / 125)
    assert f_score(np.ones(3), np.ones(3), 0.5) == 0


# --- volume -----------------------------------------------------------------------------------------------------------------------------


def test_volumes_of_balls_and_boxes():
    distance, radius = 0.4, 0.5
    lens = math.pi * (4 * radius + distance) * (2 * radius - distance) ** 2 / 12
    whole = 4 / 3 * math.pi * radius**3
    assert volume_iou(ball(subdivisions=5), ball(at=(0, distance, 0), subdivisions=5))[0] == pytest.approx(lens / (2 * whole - lens), abs=0.003)
    box = trimesh.creation.box((1, 1, 1))
    assert volume_iou(box, box.copy().apply_translation([0, 0, 0.5])) == (pytest.approx(1 / 3, abs=1e-6), "")
    assert volume_iou(box, box.copy().apply_translation([3, 0, 0]))[0] == 0


def test_parts_that_overlap_count_once_and_seams_are_no_holes():
    two = trimesh.util.concatenate([trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1)).apply_translation([0.5, 0, 0])])
    one = trimesh.creation.box((1.5, 1, 1)).apply_translation([0.25, 0, 0])
    assert volume_iou(two, one)[0] == pytest.approx(1, abs=0.01)
    cut = one.copy()
    cut.unmerge_vertices()
    assert volume_iou(cut, one)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("change, reason", [
    (lambda faces: faces[2:], "the truth is open: 4 edges have one face"),
    (lambda faces: np.concatenate([faces, faces[:1, [0, 2, 1]]]), "the truth is not a manifold: 3 edges have more than two faces"),
    (lambda faces: np.concatenate([faces[:1, ::-1], faces[1:]]), "the truth is inside out in places: 3 edges"),
])  # fmt: skip
def test_a_scan_without_a_volume_is_measured_otherwise(change, reason):
    box = trimesh.creation.box((1, 1, 1))
    found = evaluate_meshes(box, plain(box.vertices, change(box.faces)), 2_000)
    assert math.isnan(found.volume_iou) and found.note.startswith(reason)
    assert math.isfinite(found.chamfer_cm) and found.prediction_to_truth_cm < 25 and found.truth_to_prediction_cm < 1e-9
    assert math.isfinite(found.normal_consistency)


def test_faces_without_area_change_nothing():
    "Neither samples nor volume nor distances see a face whose corners lie on one edge."
    whole = ball()
    flat = plain(whole.vertices, np.concatenate([whole.faces, [[0, 0, 1], [5, 5, 5], [*whole.faces[0][:2], whole.faces[0][0]]]]))
    found, wanted = (evaluate_meshes(mesh, ball(0.52), 4_000) for mesh in (flat, whole))
    assert found.prediction_to_truth_cm == wanted.prediction_to_truth_cm and found.volume_iou == wanted.volume_iou
    assert evaluate_meshes(ball(0.52), flat, 4_000).chamfer_cm == pytest.approx(wanted.chamfer_cm, rel=1e-3)


# --- alignment --------------------------------------------------------------------------------------------------------------------------


def test_alignment_finds_a_known_move(pair):
    angle = np.radians(6)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    move = Alignment(0.97, turn, np.array([0.02, -0.03, 0.04]))
    true = pair[1]
    points = np.asarray(true.vertices)
    assert np.allclose(move.undo(move.apply(points)), points)
    found = align_meshes(move.moved(true), true)
    assert np.linalg.norm(found.apply(move.apply(points)) - points, axis=1).mean() < 1e-3 and found.scale == pytest.approx(1 / 0.97, rel=1e-3)
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def test_alignment_neither_mirrors_nor_shrinks(pair):
    true = pair[1]
    mirrored = plain(np.asarray(true.vertices) * [-1, 1, 1], true.faces[:, ::-1])
    found = align_meshes(mirrored, true)
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    arm = plain(true.vertices, np.asarray(true.faces)[np.asarray(true.triangles_center)[:, 1] > true.vertices[:, 1].mean()])
    assert 0.5 < align_meshes(arm, true).scale < 2.5, "a half is not shrunk to a point"


def test_alignment_helps_a_moved_prediction(pair):
    predicted, true = pair
    moved = plain(np.asarray(predicted.vertices) * 1.04 + [0, 0, 0.03], predicted.faces)
    as_it_is, aligned = (evaluate_meshes(moved, true, 5_000, align=align) for align in (False, True))
    assert aligned.chamfer_cm < 0.6 * as_it_is.chamfer_cm


# --- at the door ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil, sentence", [
    (lambda mesh: plain(1000 * np.asarray(mesh.vertices), mesh.faces), "is 1,000 m long, needed a person in metres, 0.4 to 4 m; these look like millimetres, so divide by 1,000"),
    (lambda mesh: plain(100 * np.asarray(mesh.vertices), mesh.faces), "these look like centimetres, so divide by 100$"),
    (lambda mesh: plain(np.asarray(mesh.vertices) / 50, mesh.faces), "is 0.02 m long, needed a person in metres, 0.4 to 4 m$"),
    (lambda mesh: plain(mesh.vertices, np.zeros((0, 3), int)), "has 642 vertices and no faces, needed a mesh"),
    (lambda mesh: trimesh.Trimesh(), "has 0 vertices and no faces"),
    (lambda mesh: plain(np.where(np.arange(642)[:, None] < 3, np.nan, mesh.vertices), mesh.faces), "3 of 642 vertices hold NaN or infinite numbers"),
    (lambda mesh: plain(mesh.vertices, np.asarray(mesh.faces)[:, [0, 0, 1]]), "its 1280 faces have no area"),
    (lambda mesh: trimesh.Scene(mesh), "is a Scene, needed one trimesh.Trimesh"),
], ids=["millimetres", "centimetres", "tiny", "no faces", "empty", "NaN", "no area", "scene"])  # fmt: skip
def test_what_cannot_be_measured_gets_one_sentence(spoil, sentence):
    mesh = ball(subdivisions=3)
    for measure in (lambda: check_person(spoil(mesh), "truth"), lambda: evaluate_meshes(mesh, spoil(mesh), 100), lambda: evaluate_protocol(mesh, spoil(mesh), "ICON")):
        with pytest.raises(ValueError, match=f"^truth: .*{sentence}"):
            measure()


def test_a_poor_prediction_is_measured_and_one_in_another_unit_is_not():
    true = ball(0.8)
    assert evaluate_meshes(ball(0.15), true, 500).truth_to_prediction_cm > 50, "small, but a prediction"
    with pytest.raises(ValueError, match="^prediction: is 1e\\+03 times as large as the truth|^prediction: is 1,000 times as large as the truth"):
        evaluate_meshes(plain(1000 * np.asarray(true.vertices), true.faces), true, 500)
    with pytest.raises(ValueError, match="^prediction: 1 of"):
        evaluate_meshes(plain(np.where(np.arange(len(true.vertices))[:, None] < 1, np.inf, true.vertices), true.faces), true, 500)


def test_a_file_is_read_in_its_unit(tmp_path):
    ball(850, subdivisions=2).export(tmp_path / "scan.obj")
    assert check_person(read_person(tmp_path / "scan.obj", 0.001), "scan") == pytest.approx(1.7)
    with pytest.raises(ValueError, match=r"scan\.obj: is 1,700 m long.*millimetres"):
        read_person(tmp_path / "scan.obj")
    with pytest.raises(FileNotFoundError, match="other.obj"):
        read_person(tmp_path / "other.obj")


# --- protocols --------------------------------------------------------------------------------------------------------------------------


def test_protocols_say_p2s_in_their_own_direction():
    predicted, true = ball(0.4), trimesh.util.concatenate([ball(0.4), ball(0.4, (1, 0, 0))])
    for name in ("ours", "PIFuHD"):
        found = evaluate_protocol(predicted, true, name)
        assert found["p2s_cm"] == found["prediction to truth"] < 1e-9
    for name in ("ICON", "ECON", "PSHuman"):
        found = evaluate_protocol(predicted, true, name)
        assert found["p2s_cm"] == found["truth to prediction"] > 20
    assert set(PROTOCOLS) == {"ours", "ours aligned", "PIFuHD", "ICON", "ECON", "PSHuman", "SiTH"}


def test_ours_is_evaluate_meshes(pair):
    found, wanted = evaluate_protocol(*pair, "ours"), evaluate_meshes(*pair)
    assert (found["chamfer_cm"], found["p2s_cm"]) == pytest.approx((wanted.chamfer_cm, wanted.prediction_to_truth_cm), abs=0.01)
    assert found["normals"] == pytest.approx(wanted.normal_consistency, abs=0.005) and found["f_score_1cm"] == pytest.approx(wanted.f_score_1cm, abs=0.5)


def test_small_faces_become_their_edges_and_large_ones_stay():
    corner = np.array([[0.0, 0, 0], [0.09, 0, 0], [0, 0.09, 0]])
    point = np.array([[0.03, 0.03, 0.01]])
    for scale, wanted in ((1.0, np.hypot(0.09 / 2**0.5 - 0.06 / 2**0.5, 0.01)), (2.0, 0.01)):
        mesh = edges_of_small_faces(plain(scale * corner, [[0, 1, 2]]))
        assert nearest_on_surface(point * [scale, scale, 1], prepare_surface(mesh)).distance[0] == pytest.approx(wanted)


def test_samples_have_a_floor_and_surfaces_have_none(pair):
    true = pair[1]
    assert 0.1 < evaluate_protocol(true, true, "SiTH")["chamfer_cm"] < 0.3
    assert evaluate_protocol(true, true, "ICON")["chamfer_cm"] < 1e-9
    assert evaluate_protocol(true, true, "ICON")["normals"] == 0


def test_pshumans_unit_is_half_the_diagonal():
    predicted, true = ball(0.82), ball(0.8)
    ours, theirs = (evaluate_protocol(predicted, true, name)["chamfer_cm"] for name in ("ICON", "PSHuman"))
    diagonal = np.linalg.norm(np.ptp(true.vertices, axis=0))
    assert theirs / ours == pytest.approx(2 / diagonal, rel=0.1)


def test_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="no protocol 'PIFu', needed one of ours"):
        evaluate_protocol(ball(), ball(), "PIFu")


def test_bodies_are_compared_joint_by_joint():
    body_model, kick = load_body(), embedded_clips()["high_kick"].poses[18:20]
    first = body_model(kick)
    moved = body_model(Pose(kick.axis_angles, kick.betas, kick.transl + 0.3))
    assert all(value.abs().max() < 0.01 for value in body_errors(moved, first).values()), "a move is forgiven"
    larger = type(first)(1.1 * first.vertices, 1.1 * first.joints, first.faces)
    found = body_errors(larger, first)
    about = first.vertices - first.joints[:, :1]
    assert torch.allclose(found["pve_mm"], 100 * about.norm(dim=-1).mean(-1), rtol=1e-4)
    assert found["pa_mpjpe_mm"].max() < 0.01 < found["mpjpe_mm"].min()
    with pytest.raises(ValueError, match="body_errors: predicted has shape"):
        body_errors(body_model(kick[:1]), first)


# --- tables -----------------------------------------------------------------------------------------------------------------------------


def test_tables_have_means_intervals_and_three_forms(tmp_path):
    random = np.random.default_rng(0)
    rows = [{"chamfer_cm": value, "volume_iou": value if k else math.nan} for k, value in enumerate(random.uniform(1, 2, 20))]
    files = write_mesh_tables({"50 % & more_steps": rows, "one": rows[:1]}, tmp_path / "new" / "table")
    assert [path.name for path in files] == ["table.csv", "table.md", "table.tex"]
    lines = list(csv.DictReader(files[0].read_text().splitlines()))
    mean = float(lines[0]["mean"])
    assert mean == pytest.approx(np.mean([row["chamfer_cm"] for row in rows]), abs=1e-4)
    assert float(lines[0]["low95"]) < mean < float(lines[0]["high95"]) and lines[0]["subjects"] == "20" and lines[1]["subjects"] == "19"
    assert (lines[2]["method"], lines[2]["low95"]) == ("one", "")
    assert "| 50 % & more_steps | 20 | " in files[1].read_text(encoding="utf-8") and "(19)" in files[1].read_text(encoding="utf-8")
    text = files[2].read_text(encoding="utf-8")
    assert r"50 \% \& more\_steps & 20 & $" in text and text.count(r"\\") == 3 and r"\bottomrule" in text
    assert summarise_subjects(rows)["volume_iou_subjects"] == 19


def test_a_method_without_subjects_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no subjects"):
        write_mesh_tables({"some": [{"chamfer_cm": 1.0}], "none": []}, tmp_path / "table")
    assert not list(tmp_path.iterdir())
