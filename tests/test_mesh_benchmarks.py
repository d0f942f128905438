"""Scanned benchmarks on disk (drpose.evaluation.mesh_benchmarks): each dataset's folders give its subjects, in metres, in the order of a list; what is missing or odd gets one sentence."""

import json
import pickle

import numpy as np
import pytest
import trimesh

from drpose.evaluation.mesh_benchmarks import load_mesh_benchmark, read_names

FIT = {"global_orient": [[0.0] * 3], "body_pose": [[0.0] * 63], "betas": [[0.0] * 10]}


def person(path, height: float = 1.7):
    "A box as high as somebody."
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.box((0.3 * height, height, 0.2 * height)).export(path)
    return path


def fit(path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({name: np.array(value, np.float32) for name, value in (FIT | more).items()}))
    else:
        path.write_text(json.dumps(FIT | more))
    return path


def height(subject) -> float:
    return float(np.ptp(subject.surface().vertices, axis=0)[1])


# --- layouts ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scans, fits", [("", None), ("mesh/", "smplx"), ("scans/", "fits")], ids=["as unpacked", "PSHuman's", "ICON's"])
def test_thuman_is_as_large_as_its_fit_says(tmp_path, scans, fits):
    for name, scale in (("0001", 0.4), ("0000", 0.5)):
        person(tmp_path / f"data/{scans}{name}/{name}.obj", 1.7 * scale)
        (tmp_path / f"data/{scans}{name}/material0.jpeg").write_bytes(b"")
        fit(tmp_path / (f"data/{fits}" if fits else "elsewhere") / name / "smplx_param.pkl", scale=[scale], translation=[1.0, 2.0, 3.0])
    found = load_mesh_benchmark("thuman", tmp_path / "data", fits=None if fits else tmp_path / "elsewhere")
    assert [subject.name for subject in found] == ["0000", "0001"] and all(subject.fit.name == "smplx_param.pkl" for subject in found)
    assert [height(subject) for subject in found] == pytest.approx([1.7, 1.7], rel=1e-4)
    assert found[0].unit() == pytest.approx(2)


def test_thuman_without_fits_has_no_unit(tmp_path):
    person(tmp_path / "0000/0000.obj", 0.9)
    (found,) = load_mesh_benchmark("thuman", tmp_path)
    with pytest.raises(ValueError, match=r"0000\.obj: its unit differs from scan to scan .* needed the folder of the fits"):
        found.surface()


def test_custom_humans_are_named_after_their_folders(tmp_path):
    for name in ("0383_00070_02_00061", "0020_00027_01_00101"):
        person(tmp_path / f"mesh/{name}/mesh-f{name[-5:]}.obj")
        person(tmp_path / f"smplx/{name}/mesh-f{name[-5:]}_smplx.obj")
        fit(tmp_path / f"smplx/{name}/mesh-f{name[-5:]}_smplx.json", transl=[[0.0, 1.0, 0.0]])
    person(tmp_path / "mesh/0099_00000_00_00000/mesh-f00000.ply")
    (tmp_path / "list.txt").write_text("# SiTH\n0383_00070_02_00061\n\n0099_00000_00_00000\n")
    everybody = load_mesh_benchmark("custom-humans", tmp_path)
    assert [subject.name[:4] for subject in everybody] == ["0020", "0099", "0383"]
    listed = load_mesh_benchmark("custom-humans", tmp_path, split=tmp_path / "list.txt")
    assert [subject.name[:4] for subject in listed] == ["0383", "0099"]
    assert listed[0].fit.suffix == ".json" and listed[1].fit is None and height(listed[0]) == pytest.approx(1.7, rel=1e-4)


def test_siths_sixty_lie_side_by_side(tmp_path):
    for name in ("002", "001"):
        person(tmp_path / f"gt_meshes_60/{name}.obj")
    found = load_mesh_benchmark("custom-humans", tmp_path / "gt_meshes_60")
    assert [subject.name for subject in found] == ["001", "002"] and found[0].fit is None


def test_cape_comes_in_the_order_of_icons_list(tmp_path):
    names = ["00032-shortlong-hips-000100", "00096-longshort-twist-000055", "03375-blazer-box-000200"]
    for name in names:
        person(tmp_path / f"cape/scans/{name}.obj")
    (tmp_path / "cape/test150.txt").write_text("\n".join(f"cape/{name}" for name in reversed(names)))
    found = load_mesh_benchmark("cape", tmp_path / "cape", split=tmp_path / "cape/test150.txt")
    assert [subject.name for subject in found] == names[::-1] and height(found[0]) == pytest.approx(1.7, rel=1e-4)


def test_four_d_dress_is_read_from_pickles_of_arrays(tmp_path):
    box = trimesh.creation.box((0.5, 1.7, 0.3))
    take = tmp_path / "00122/Outer/Take9"
    (take / "Meshes_pkl").mkdir(parents=True)
    for frame in ("00021", "00011"):
        content = {"vertices": np.array(box.vertices, np.float32), "faces": np.array(box.faces, np.int64), "colors": np.zeros((8, 4), np.uint8)}
        (take / f"Meshes_pkl/mesh-f{frame}.pkl").write_bytes(pickle.dumps(content))
        (take / f"Meshes_pkl/atlas-f{frame}.pkl").write_bytes(pickle.dumps(np.zeros((4, 4, 3), np.uint8)))
    fit(take / "SMPLX/mesh-f00011_smplx.pkl", transl=[0.0, 0.0, 0.0])
    found = load_mesh_benchmark("4d-dress", tmp_path)
    assert [subject.name for subject in found] == ["00122_Outer_Take9_f00011", "00122_Outer_Take9_f00021"]
    assert found[0].fit is not None and found[1].fit is None and height(found[0]) == pytest.approx(1.7, rel=1e-4)


# --- what is missing or odd -----------------------------------------------------------------------------------------------------------------


def test_a_pickle_of_something_else_is_refused(tmp_path):
    place = tmp_path / "00122/Inner/Take1/Meshes_pkl"
    place.mkdir(parents=True)
    vertices, faces = np.zeros((3, 3), np.float32), np.array([[0, 1, 2]])
    for content, sentence in (({"vertices": vertices}, "'faces' is missing"), ({"vertices": vertices[:, :2], "faces": faces}, r"'vertices' has shape \(3, 2\)"),
                              ({"vertices": vertices, "faces": faces + 1}, "names vertices 1 to 3, and there are 3"), ({"vertices": vertices, "faces": faces}, "no area"),
                              ({"vertices": 1000 * np.eye(3, dtype=np.float32), "faces": faces}, "1,000 m long.*millimetres")):  # fmt: skip
        (place / "mesh-f00001.pkl").write_bytes(pickle.dumps(content))
        (subject,) = load_mesh_benchmark("4d-dress", tmp_path)
        with pytest.raises(ValueError, match=rf"mesh-f00001\.pkl: .*{sentence}"):
            subject.surface()


class _Bomb:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_runs_something_runs_nothing(tmp_path, capsys):
    place = tmp_path / "Take1/Meshes_pkl"
    place.mkdir(parents=True)
    (place / "mesh-f00001.pkl").write_bytes(pickle.dumps({"vertices": _Bomb(), "faces": np.array([[0, 1, 2]])}))
    (subject,) = load_mesh_benchmark("4d-dress", tmp_path)
    with pytest.raises(ValueError, match="mesh-f00001.pkl"):
        subject.surface()
    assert "run" not in capsys.readouterr().out


def test_folders_that_are_not_what_they_should_be(tmp_path):
    with pytest.raises(ValueError, match="no dataset 'renderpeople', needed one of thuman, custom-humans, cape, 4d-dress"):
        load_mesh_benchmark("renderpeople", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder, needed the folder of cape"):
        load_mesh_benchmark("cape", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="needed a folder of SMPL-X fits"):
        load_mesh_benchmark("thuman", tmp_path, fits=tmp_path / "nowhere")
    for dataset, layout in (("thuman", "NNNN/NNNN.obj"), ("custom-humans", "mesh/ID/"), ("cape", "scans/NAME.obj"), ("4d-dress", "Meshes_pkl")):
        with pytest.raises(ValueError, match=f"holds no scans in the layout of {dataset}, needed .*{layout}"):
            load_mesh_benchmark(dataset, tmp_path)
    person(tmp_path / "mesh/1/a.obj"), person(tmp_path / "mesh/1/b.obj")
    with pytest.raises(ValueError, match="1: holds 2 meshes, needed the one of this scan"):
        load_mesh_benchmark("custom-humans", tmp_path)
    person(tmp_path / "other/0000/0000.obj"), fit(tmp_path / "twice/0000/a.json"), fit(tmp_path / "twice/0000/b.json")
    with pytest.raises(ValueError, match=r"holds 2 fits of the scan '0000' \(a.json, b.json\), needed one"):
        load_mesh_benchmark("thuman", tmp_path / "other", fits=tmp_path / "twice")


def test_lists_name_people_who_are_there(tmp_path):
    person(tmp_path / "scans/a.obj")
    for text, sentence in (("cape/a\ncape/b\ncape/c\n", "names 'b' \\(2 of 3 names\\), which is not in .* holds 1 subjects, such as 'a'"), ("\n", "names nobody"), ("a\nb\na.obj\n", "names 'a' twice")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValueError, match=f"list.txt: {sentence}"):
            load_mesh_benchmark("cape", tmp_path, split=tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match="no.txt"):
        read_names(tmp_path / "no.txt")


def test_millimetres_are_refused_when_opened(tmp_path):
    person(tmp_path / "scans/a.obj", 1700)
    (subject,) = load_mesh_benchmark("cape", tmp_path)
    with pytest.raises(ValueError, match=r"a\.obj: is 1,700 m long, needed a person in metres.*millimetres"):
        subject.surface()
