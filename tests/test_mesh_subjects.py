"""Views of people whose surface is known become meshes and numbers (drpose.evaluation.mesh_subjects): the right people, in metres, at their place; nobody left out in silence; kept rows only for the same inputs."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import trimesh

from drpose.evaluation.mesh_benchmarks import load_mesh_benchmark
from drpose.evaluation.mesh_subjects import compare_subjects, kept_row, measure_latents, measure_views, posed_subjects, scanned_subjects, true_views
from drpose.mesh import reconstruction
from drpose.mesh.carving import carve_surface
from drpose.people.bodies import load_body
from drpose.pictures.cameras import FOUR_VIEWS


@pytest.fixture(scope="module")
def body_model():
    return load_body()


@pytest.fixture(scope="module")
def subjects(body_model):
    return posed_subjects("everyday", 2, body_model)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(reconstruction, "carve_surface", partial(carve_surface, steps=10))


def alpha_of(subject) -> torch.Tensor:
    return torch.from_numpy(np.array(subject.photo))[..., 3] / 255


def test_posed_people_are_metres_around_the_middle_of_the_frame(subjects):
    for subject in subjects:
        low, high = subject.mesh.bounds
        assert 1.3 < np.ptp(subject.mesh.vertices, axis=0).max() < 2.2 and np.allclose(low, -high, atol=1e-4)
        assert np.linalg.norm(high - low) * subject.scale == pytest.approx(1, rel=1e-4)  # the frame is the box's diagonal
        assert np.allclose(subject.in_metres(subject.body.vertices * subject.scale), subject.body.vertices.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="no benchmark 'hardest'"):
        posed_subjects("hardest", 1, None)


def test_the_photo_shows_the_surface(subjects):
    for subject in subjects:
        outline = (true_views(subject, FOUR_VIEWS.resized(64))[1, 0] - 1).abs().sum(0) > 0.1
        shown = alpha_of(subject) > 0.5
        assert (outline & shown).sum() / (outline | shown).sum() > 0.9


def test_scans_are_framed_where_they_stand(tmp_path, subjects):
    "A scan three metres to the side, comes back in metres around the frame's middle."
    mesh = subjects[0].mesh.copy()
    mesh.apply_translation([3.0, -1.0, 0.5])
    (tmp_path / "mesh" / "anna").mkdir(parents=True)
    mesh.export(tmp_path / "mesh" / "anna" / "mesh-f00001.obj")
    (found,) = scanned_subjects(load_mesh_benchmark("custom-humans", tmp_path), 64)
    assert found.name == "anna" and found.body is None and found.photo.size == (64, 64)
    assert found.scale == pytest.approx(subjects[0].scale, rel=1e-4) and np.allclose(found.mesh.bounds, subjects[0].mesh.bounds, atol=1e-4)
    both = alpha_of(found) > 0.5, alpha_of(subjects[0]) > 0.5
    assert (both[0] & both[1]).sum() / (both[0] | both[1]).sum() > 0.9


def test_true_views_give_small_numbers_and_a_misplaced_truth_large_ones(subjects, body_model, few_steps):
    subject, rig = subjects[0], FOUR_VIEWS.resized(96)
    joints = subject.body.joints[0, :23] * subject.scale
    row, person = measure_views(true_views(subject, rig), joints, subject, rig, body_model)
    assert row["chamfer_cm"] < 2 and row["mpjpe_mm"] < 30 and row["pve_mm"] < 40 and person.fit is not None
    beside = subject.mesh.copy()
    beside.apply_translation([0.0, 0.3, 0.0])
    worse, _ = measure_views(true_views(subject, rig), joints, replace(subject, mesh=beside), rig, body_model)
    assert worse["chamfer_cm"] > row["chamfer_cm"] + 5  # nothing aligns them
    mirrored, _ = measure_views(true_views(subject, rig).flip(-1), joints * torch.tensor([-1.0, 1.0, 1.0]), subject, rig, body_model)
    assert mirrored["chamfer_cm"] > row["chamfer_cm"]


def test_a_draw_that_shows_nobody_has_a_reason_in_place_of_numbers(subjects, body_model):
    row, person = measure_views(torch.ones(2, 4, 3, 64, 64), None, subjects[0], FOUR_VIEWS.resized(64), body_model)
    assert person is None and set(row) == {"note"} and "nobody in view 0" in row["note"]


def test_a_kept_row_is_read_for_the_same_inputs_alone(tmp_path):
    made = []

    def make(value: float) -> dict:
        made.append(value)
        return {"chamfer_cm": value, "volume_iou": float("nan"), "note": "the prediction is open"}

    first = kept_row(tmp_path / "anna.json", {"latents": torch.zeros(3)}, lambda: make(1.0))
    again = kept_row(tmp_path / "anna.json", {"latents": torch.zeros(3)}, lambda: make(2.0))
    other = kept_row(tmp_path / "anna.json", {"latents": torch.ones(3)}, lambda: make(3.0))
    assert made == [1.0, 3.0] and first == again == {"chamfer_cm": 1.0, "volume_iou": None, "note": "the prediction is open"} and other["chamfer_cm"] == 3.0


def test_subjects_and_latents_belong_together(subjects, body_model):
    with pytest.raises(ValueError, match="1 drawn people and 2 subjects"):
        measure_latents(torch.zeros(1, 2, 4, 4, 16, 16), subjects, None, None, body_model)


def test_a_change_is_over_those_whom_both_know():
    before = [{"chamfer_cm": 4.0, "p2s_cm": 1.0}, {"chamfer_cm": 2.0, "p2s_cm": None}, {"note": "nobody"}]
    after = [{"chamfer_cm": 3.0, "p2s_cm": 1.0}, {"chamfer_cm": 2.0, "p2s_cm": 1.0}, {"chamfer_cm": 1.0}]
    change = compare_subjects(before, after)
    assert set(change) == {"chamfer_cm"} and change["chamfer_cm"]["relative"] == pytest.approx(-1 / 6, rel=1e-3) and change["chamfer_cm"]["subjects"] == 2
    with pytest.raises(ValueError, match="3 rows before and 1 after"):
        compare_subjects(before, after[:1])


def test_ends_of_a_box_are_not_a_person(tmp_path):
    (tmp_path / "mesh" / "dot").mkdir(parents=True)
    trimesh.creation.box((0.01, 0.01, 0.01)).export(tmp_path / "mesh" / "dot" / "mesh-f1.obj")
    with pytest.raises(ValueError, match="mesh-f1.obj"):
        list(scanned_subjects(load_mesh_benchmark("custom-humans", tmp_path), 64))
