"""The body model and its poses: the layout that smplx reads, left and right, rotations, and refused files."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import drpose
from drpose.ground.files import read_npz
from drpose.people.bodies import (MIRRORED_JOINTS, PACKED_FIELDS, PARTS, SMPLX_FIELDS, SMPLX_JOINT_NAMES,
                                  SMPLX_PARENTS, Z_UP_TO_Y_UP, BodyModel, Pose, axis_angle_to_matrix, load_body,
                                  matrix_to_axis_angle, pack_body, unpack_body)

ASSETS = Path(drpose.__file__).parent / "assets"
JOINT = {name: index for index, name in enumerate(SMPLX_JOINT_NAMES)}
MIRROR = torch.tensor([-1.0, 1.0, 1.0])
EXTRA = ("nose", "right_eye", "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel")
TIPS = tuple(f"{side}_{finger}" for side in ("left", "right") for finger in ("thumb", "index", "middle", "ring", "pinky"))


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def layout():
    "The embedded body in SMPL-X's layout."
    return unpack_body(read_npz(ASSETS / "body.npz", PACKED_FIELDS))


def some_poses(count, strength=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    return Pose(strength * draw(count, 55, 3), draw(count, 10), draw(count, 3))


@torch.no_grad()
def posed(body, pose):
    return body(pose)


def stock_output(model, pose):
    parts = {name: pose.axis_angles[:, joints].flatten(1) for name, joints in PARTS.items()}
    with torch.no_grad():
        return model(betas=pose.betas, transl=pose.transl, expression=torch.zeros(len(pose), 10), **parts)


# ---- the layout, through the stock package ----


def test_stock_smplx_reads_the_layout_and_agrees(body, layout, tmp_path):
    (tmp_path / "smplx").mkdir()
    file = tmp_path / "smplx" / "SMPLX_NEUTRAL.npz"
    np.savez(file, note=np.array({"an": "object"}, dtype=object), **layout)  # official files hold stray objects too
    stock = smplx.create(str(tmp_path), "smplx", ext="npz", use_pca=False, flat_hand_mean=True)
    pose = some_poses(2)
    theirs, embedded = stock_output(stock, pose), posed(body, pose)
    assert theirs.joints.shape == (2, 127, 3) and theirs.vertices.shape[1] >= 9930
    for ours in (embedded, posed(load_body(tmp_path), pose), posed(load_body(str(file)), pose)):
        assert torch.allclose(ours.vertices, theirs.vertices, atol=1e-5) and torch.allclose(ours.joints, theirs.joints, atol=1e-5)
        assert ours.faces.dtype == torch.int64 and torch.equal(ours.faces, torch.tensor(layout["f"]))


def test_pose_corrections_of_a_licensed_file_are_applied(body, layout):
    corrections = np.zeros((len(layout["v_template"]), 3, 486), np.float32)
    first = (JOINT["left_knee"] - 1) * 9  # nine numbers for each joint but the root, here R[0, 0] - 1 of the left knee
    corrections[:, 1, first : first + 9] = 0.01
    bent = Pose.rest()
    bent.axis_angles[0, JOINT["left_knee"], 2] = 1.0
    feature = (axis_angle_to_matrix(bent.axis_angles[0, JOINT["left_knee"]]) - torch.eye(3)).sum()
    corrected = BodyModel({**layout, "posedirs": corrections})
    moved = posed(corrected, bent).vertices - posed(body, bent).vertices
    trunk = body.part_labels == JOINT["spine3"]
    assert torch.allclose(moved[0, trunk, 1], 0.01 * feature, atol=1e-4)
    assert torch.allclose(posed(corrected, Pose.rest()).vertices, posed(body, Pose.rest()).vertices, atol=1e-6)


def test_large_shape_space_takes_expression_from_300(layout):
    directions = np.zeros((len(layout["v_template"]), 3, 400), np.float16)
    directions[..., :10], directions[..., 300] = layout["shapedirs"][..., :10], 0.25
    model = BodyModel({**layout, "shapedirs": directions}).model
    assert model.shapedirs.shape[2] == 10 and model.expr_dirs.shape[2] == 10
    assert (model.expr_dirs[..., 0] == 0.25).all() and (model.expr_dirs[..., 1:] == 0).all()


def test_loading_is_quiet_and_leaves_no_parameters(capsys):
    model = load_body()
    assert capsys.readouterr().out == "" and list(model.parameters()) == []


def test_pack_and_unpack_keep_the_body(layout):
    again = unpack_body(pack_body(layout))
    assert again.keys() == SMPLX_FIELDS.keys()
    for field, step in (("v_template", 1e-5), ("shapedirs", 1e-6), ("weights", 1e-3), ("J_regressor", 1e-5), ("f", 0), ("lmk_faces_idx", 0)):
        assert abs(again[field].astype(np.float64) - layout[field]).max() <= step, field
    assert (ASSETS / "body.npz").stat().st_size < 1.5e6 and 20000 < len(layout["f"]) < 28000


# ---- anatomy ----


def test_left_is_left_and_named_vertices_are_where_they_belong(body):
    joints = posed(body, Pose.rest()).joints[0]
    at = dict(zip(SMPLX_JOINT_NAMES, joints)) | dict(zip(EXTRA, joints[55:66]))
    tips = dict(zip(TIPS, joints[66:76]))
    for side, sign in (("left", 1), ("right", -1)):
        for name in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist", "eye_smplhf"):
            assert sign * at[f"{side}_{name}"][0] > 0.02, f"{side}_{name}"
        assert at[f"{side}_heel"][2] < at[f"{side}_ankle"][2] < at[f"{side}_big_toe"][2]
        assert sign * (at[f"{side}_small_toe"] - at[f"{side}_big_toe"])[0] > 0.03
        assert sign * at[f"{side}_ear"][0] > 0.06 and 0.01 < sign * at[f"{side}_eye"][0] < 0.05
        for finger in ("index", "middle", "ring", "pinky"):
            assert 0.01 < sign * (tips[f"{side}_{finger}"] - at[f"{side}_{finger}3"])[0] < 0.05, finger
        assert tips[f"{side}_thumb"][2] > tips[f"{side}_index"][2] > tips[f"{side}_pinky"][2]  # palms face down
    assert at["nose"][2] > at["jaw"][2] + 0.05 and at["head"][1] > at["neck"][1] > at["spine3"][1] > at["spine1"][1] > at["pelvis"][1]
    assert 0.10 < (at["left_hip"] - at["right_hip"])[0] < 0.15
    vertices = body.vertices_rest
    assert 1.6 < float(vertices[:, 1].max() - vertices[:, 1].min()) < 1.85


def test_regressed_joints_follow_the_placed_ones_on_extreme_shapes(body):
    placed = read_npz(ASSETS / "body_joints.npz", ("mean", "directions"))
    betas = np.random.default_rng(1).uniform(-3, 3, (300, 10)).astype(np.float32)
    truth = placed["mean"] + np.einsum("bk,kjc->bjc", betas, placed["directions"])
    error = 1e3 * np.linalg.norm(body.rest_joints(torch.tensor(betas)).numpy() - truth, axis=-1)
    assert error.mean() < 2 and error.max() < 10


def test_shape_numbers_change_the_body(body):
    betas = torch.zeros(3, 10)
    betas[0, 0], betas[2, 0] = -2, 2
    people = posed(body, Pose.from_parts(betas=betas))
    heights = (people.vertices.amax(1) - people.vertices.amin(1))[:, 1]
    assert heights[1] - heights[0] > 0.1 and heights[2] - heights[1] > 0.1
    assert torch.allclose(people.joints[:, 0], people.joints[1, 0].expand(3, 3), atol=0.01)  # the pelvis stays near its place


def test_mirrored_pose_gives_the_mirror_image_of_the_mesh(body):
    pose = some_poses(3, strength=0.3)
    here, there = posed(body, pose), posed(body, pose.mirrored())
    rest = body.vertices_rest
    distance, partner = cKDTree(rest.numpy()).query((rest * MIRROR).numpy())
    assert distance.max() < 1e-4
    assert (there.vertices - here.vertices[:, partner] * MIRROR).norm(dim=-1).max() < 3e-3
    assert (there.joints[:, :55] - here.joints[:, list(MIRRORED_JOINTS)] * MIRROR).norm(dim=-1).max() < 3e-3
    labels = torch.tensor(MIRRORED_JOINTS)[body.part_labels[partner]]
    assert (labels == body.part_labels).float().mean() > 0.97


# ---- posing ----


@pytest.mark.parametrize("count", [1, 3, BodyModel.CHUNK + 1])
def test_joints_equal_those_of_smplx(body, count):
    pose = some_poses(count, strength=0.8)
    whole = posed(body, pose)
    assert torch.allclose(whole.joints[:, :55], body.joints(pose), atol=2e-5)
    alone = posed(body, pose[count - 1])
    assert torch.allclose(alone.vertices[0], whole.vertices[-1], atol=1e-5)


def test_a_turned_joint_moves_its_own_side(body):
    pose = Pose.rest()
    pose.axis_angles[0, JOINT["left_hip"], 0] = -1.5  # forward
    pose.axis_angles[0, JOINT["right_shoulder"], 2] = 1.2  # down
    joints, rest = body.joints(pose)[0], body.joints(Pose.rest())[0]
    moved = (joints - rest).norm(dim=-1)
    assert joints[JOINT["left_ankle"], 2] > 0.6 and moved[JOINT["right_ankle"]] < 1e-5
    assert joints[JOINT["right_wrist"], 1] < rest[JOINT["right_wrist"], 1] - 0.4 and moved[JOINT["left_wrist"]] < 1e-5


def test_joints_carry_gradients_also_at_rest(body):
    pose = Pose.rest(2)
    for tensor in (pose.axis_angles, pose.betas, pose.transl):
        tensor.requires_grad_()
    body.joints(pose)[:, JOINT["left_wrist"]].sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (pose.axis_angles, pose.betas, pose.transl))
    assert pose.axis_angles.grad[0, JOINT["left_shoulder"]].abs().sum() > 0.1 and pose.axis_angles.grad[0, JOINT["right_shoulder"]].abs().sum() == 0


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.3, 2.0, 3.1, np.pi - 1e-4])
def test_rotations_agree_with_scipy(angle):
    axis = np.random.default_rng(2).normal(size=(200, 3))
    vectors = angle * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    matrices = axis_angle_to_matrix(torch.tensor(vectors))
    assert np.allclose(matrices, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-9)
    assert np.allclose(matrix_to_axis_angle(matrices), vectors, atol=1e-6)


def test_rotation_gradients_are_right():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [1e-4, 0.0, -1e-4], [0.4, -1.0, 0.2], [2.0, 1.0, -1.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: matrix_to_axis_angle(axis_angle_to_matrix(v)), vectors[1:].detach().requires_grad_(), atol=1e-4)
    matrix_to_axis_angle(axis_angle_to_matrix(vectors)).sum().backward()
    assert torch.allclose(vectors.grad[0], torch.ones(3, dtype=torch.float64))


def test_rotated_turns_everything_about_the_origin(body):
    pose = some_poses(3)
    turns = torch.tensor(Rotation.random(3, random_state=0).as_matrix(), dtype=torch.float32)
    pelvis = body.rest_joints(pose.betas)[:, 0]
    before = body.joints(pose)
    exact = torch.einsum("bij,bkj->bki", turns, before)
    assert torch.allclose(body.joints(pose.rotated(turns, pelvis)), exact, atol=1e-4)
    about_pelvis = torch.einsum("bij,bkj->bki", turns, before - pelvis[:, None]) + pelvis[:, None]
    assert torch.allclose(body.joints(pose.rotated(turns)), about_pelvis, atol=1e-4)
    one = body.joints(pose.rotated(turns[0], pelvis))
    assert torch.allclose(one, before @ turns[0].T, atol=1e-4)


def test_z_up_archives_stand_up(body):
    lying = Pose.from_parts(global_orient=torch.tensor([[torch.pi / 2, 0.0, 0.0]]), transl=torch.tensor([[1.0, 2.0, 3.0]]))
    joints = body.joints(lying.rotated(Z_UP_TO_Y_UP))[0]
    assert joints[JOINT["head"], 1] > joints[JOINT["left_ankle"], 1] + 1 and joints[JOINT["left_hip"], 0] > joints[JOINT["right_hip"], 0]
    assert torch.equal(lying.rotated(Z_UP_TO_Y_UP).transl, torch.tensor([[1.0, 3.0, -2.0]]))  # height 3 stays the height
    assert torch.allclose(Z_UP_TO_Y_UP @ Z_UP_TO_Y_UP.T, torch.eye(3)) and Z_UP_TO_Y_UP.det() == 1


# ---- the pose as a value ----


def test_vectors_round_trip():
    pose = some_poses(4)
    vector = pose.axis_angles.flatten(1)
    assert torch.equal(Pose.from_vector(vector).axis_angles, pose.axis_angles)
    without_face = Pose.from_vector(torch.cat([vector[:, :66], vector[:, 75:]], 1), betas=pose.betas, transl=pose.transl)
    assert torch.equal(without_face.axis_angles[:, :22], pose.axis_angles[:, :22]) and torch.equal(without_face.axis_angles[:, 25:], pose.axis_angles[:, 25:])
    assert (without_face.axis_angles[:, 22:25] == 0).all() and torch.equal(without_face.betas, pose.betas)


def test_parts_land_on_their_joints():
    sizes = {name: joints.stop - joints.start for name, joints in PARTS.items()}
    parts = {name: torch.full((1 if name == "jaw_pose" else 2, 3 * size), float(number)) for number, (name, size) in enumerate(sizes.items())}
    angles = Pose.from_parts(**parts).axis_angles
    expected = [0.0] + [1.0] * 21 + [2.0, 3.0, 4.0] + [5.0] * 15 + [6.0] * 15
    assert torch.equal(angles[1, :, 0], torch.tensor(expected)) and angles.shape == (2, 55, 3)
    assert SMPLX_JOINT_NAMES[22:26] == ("jaw", "left_eye_smplhf", "right_eye_smplhf", "left_index1") and SMPLX_JOINT_NAMES[40] == "right_index1"
    assert SMPLX_PARENTS[25:31] == (20, 25, 26, 20, 28, 29) and SMPLX_PARENTS[40] == 21


def test_mirroring_swaps_sides_and_keeps_the_x_turn():
    pose = Pose.rest()
    pose.axis_angles[0, JOINT["left_hip"]] = torch.tensor([1.0, 2.0, 3.0])
    pose.axis_angles[0, JOINT["head"]] = torch.tensor([1.0, 2.0, 3.0])
    pose.transl[0] = torch.tensor([4.0, 5.0, 6.0])
    mirrored = pose.mirrored()
    for joint in ("right_hip", "head"):
        assert torch.equal(mirrored.axis_angles[0, JOINT[joint]], torch.tensor([1.0, -2.0, -3.0]))
    assert (mirrored.axis_angles[0, JOINT["left_hip"]] == 0).all() and torch.equal(mirrored.transl[0], torch.tensor([-4.0, 5.0, 6.0]))
    assert torch.equal(mirrored.mirrored().axis_angles, pose.axis_angles)


def test_slicing_keeps_the_batch_dimension():
    pose = some_poses(5)
    assert len(pose[2]) == len(pose[-1]) == 1 and len(pose[1:4]) == 3 and len(pose[torch.tensor([0, 4])]) == 2
    assert torch.equal(pose[-1].transl, pose.transl[4:]) and torch.equal(Pose.cat([pose[:2], pose[2:]]).betas, pose.betas)
    assert pose.to(torch.float64).betas.dtype == torch.float64 and len(pose.with_betas(torch.ones(1, 10)).betas) == 5
    with pytest.raises(IndexError, match="5"):
        pose[5]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Pose(torch.zeros(2, 24, 3), torch.zeros(2, 10), torch.zeros(2, 3)), ("axis_angles", "(2, 24, 3)", "(B, 55, 3)")),
        (lambda: Pose(torch.zeros(2, 55, 3), torch.zeros(2, 16), torch.zeros(2, 3)), ("betas", "(2, 16)", "(B, 10)")),
        (lambda: Pose(torch.zeros(2, 55, 3), torch.zeros(1, 10), torch.zeros(2, 3)), ("batch sizes", "'betas': 1")),
        (lambda: Pose(np.zeros((2, 55, 3)), torch.zeros(2, 10), torch.zeros(2, 3)), ("axis_angles", "ndarray")),
        (lambda: Pose.rest(2).with_betas(torch.zeros(2, 8)), ("betas", "(2, 8)", "(B, 10)")),
        (lambda: Pose.from_vector(torch.zeros(3, 72)), ("(3, 72)", "165", "156")),
        (lambda: Pose.from_parts(body_pose=torch.zeros(3, 69)), ("body_pose", "(3, 69)", "(B, 63)")),
        (lambda: Pose.from_parts(body_pose=torch.zeros(3, 63), jaw_pose=torch.zeros(2, 3)), ("'body_pose': 3", "'jaw_pose': 2")),
        (lambda: Pose.cat([]), ("empty list",)),
    ],
)
def test_bad_poses_are_answered_by_a_sentence(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_empty_batch_is_refused(body):
    with pytest.raises(ValueError, match="empty pose batch"):
        body(Pose.rest(3)[:0])


# ---- refused files ----


def spoiled(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


BAD_FIELDS = {
    "too few vertices": (lambda a: cropped(a, 9929), ("'v_template'", "9929 vertices", "9930")),
    "vertices in the plane": (lambda a: {"v_template": a["v_template"][:, :2]}, ("'v_template'", "(13492, 2)", "(V, 3)")),
    "SMPL weights": (lambda a: {"weights": a["weights"][:, :24]}, ("'weights'", "(13492, 24)", "(V, 55)")),
    "weights of another mesh": (lambda a: {"weights": a["weights"][:-1]}, ("'weights'", "(13491, 55)", "V = 13492")),
    "weights do not sum to one": (lambda a: {"weights": 2 * a["weights"]}, ("'weights'", "sum", "needed 1")),
    "sparse regressor": (lambda a: {"J_regressor": np.array(0.0)}, ("'J_regressor'", "()", "(55, V)")),
    "regressor twice": (lambda a: {"J_regressor": 2 * a["J_regressor"]}, ("'J_regressor'", "sum")),
    "NaN in the template": (lambda a: {"v_template": spoiled(a["v_template"], (5, 1), np.nan)}, ("'v_template'", "NaN")),
    "infinite direction": (lambda a: {"shapedirs": spoiled(a["shapedirs"], (5, 1, 2), np.inf)}, ("'shapedirs'", "infinite")),
    "text": (lambda a: {"v_template": a["v_template"].astype("U8")}, ("'v_template'", "U8", "numbers")),
    "face beyond the mesh": (lambda a: {"f": spoiled(a["f"], (0, 0), 13492)}, ("'f'", "13492", "13491")),
    "negative face": (lambda a: {"f": spoiled(a["f"], (0, 0), -1)}, ("'f'", "-1")),
    "fractional face": (lambda a: {"f": a["f"] + 0.5}, ("'f'", "fractions")),
    "no faces": (lambda a: {"f": a["f"][:0]}, ("'f'", "empty")),
    "landmark beyond the faces": (lambda a: {"lmk_faces_idx": spoiled(a["lmk_faces_idx"], 0, len(a["f"]))}, ("'lmk_faces_idx'", str(26971))),
    "another skeleton": (lambda a: {"kintree_table": spoiled(a["kintree_table"], (0, 4), 2)}, ("'kintree_table'", "joint 4", "needed 1")),
    "SMPL skeleton": (lambda a: {"kintree_table": a["kintree_table"][:, :24]}, ("'kintree_table'", "(2, 24)", "(2, 55)")),
    "shape directions only": (lambda a: {"shapedirs": a["shapedirs"][..., :10]}, ("'shapedirs'", "10 directions", "20 to 299")),
    "between the two layouts": (lambda a: {"shapedirs": np.zeros((13492, 3, 350), np.float16)}, ("'shapedirs'", "350 directions")),
    "SMPL pose directions": (lambda a: {"posedirs": a["posedirs"][..., :207]}, ("'posedirs'", "207", "486")),
    "hands by components": (lambda a: {"hands_componentsl": np.eye(12, 45)}, ("'hands_componentsl'", "(12, 45)", "(45, 45)")),
}  # fmt: skip


def cropped(arrays, count):
    "The same arrays with fewer vertices."
    fields = {field: arrays[field][:count] for field in ("v_template", "weights", "shapedirs", "posedirs")}
    return {**fields, "J_regressor": arrays["J_regressor"][:, :count], "f": np.zeros((60000, 3), int)}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_fields_are_answered_by_a_sentence(case, layout):
    change, words = BAD_FIELDS[case]
    with pytest.raises(ValueError) as error:
        BodyModel({**layout, **change(layout)}, "SMPLX_NEUTRAL.npz")
    message = str(error.value)
    assert message.startswith("SMPLX_NEUTRAL.npz: ") and message.count("\n") == 0
    assert all(word in message for word in words), message


def write(path, content):
    path.write_bytes(content)
    return path


def archive(**fields):
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    return buffer.getvalue()


def damaged():
    "An archive whose one array does not match its checksum."
    content = bytearray(archive(v_template=np.arange(3000.0)))
    content[4000:4100] = bytes(100)
    return bytes(content)


def not_an_array():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("v_template.npy", b"just some text")
    return buffer.getvalue()


BAD_FILES = {
    "no file": (lambda folder: folder / "SMPLX_NEUTRAL.npz", FileNotFoundError, "no such file"),
    "empty folder": (lambda folder: folder, FileNotFoundError, "SMPLX_NEUTRAL.npz"),
    "pickle": (lambda folder: write(folder / "SMPLX_NEUTRAL.pkl", b"\x80\x04."), ValueError, "convert it to .npz"),
    "text": (lambda folder: write(folder / "SMPLX_NEUTRAL.npz", b"hello"), ValueError, "not an .npz archive"),
    "empty file": (lambda folder: write(folder / "SMPLX_NEUTRAL.npz", b""), ValueError, "not an .npz archive"),
    "cut short": (lambda folder: write(folder / "SMPLX_NEUTRAL.npz", archive(v_template=np.zeros(999))[:-60]), ValueError, "cut short"),
    "no fields": (lambda folder: write(folder / "SMPLX_NEUTRAL.npz", archive(poses=np.zeros(9))), ValueError, "'v_template' is missing, found poses"),
    "damaged": (lambda folder: write(folder / "SMPLX_NEUTRAL.npz", damaged()), ValueError, "'v_template' holds damaged data"),
    "not an array": (lambda folder: write(folder / "SMPLX_NEUTRAL.npz", not_an_array()), ValueError, "'v_template' holds damaged data"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_answered_by_a_sentence(case, tmp_path):
    make, kind, words = BAD_FILES[case]
    fields = ("v_template",) if case in ("damaged", "not an array") else tuple(SMPLX_FIELDS)
    with pytest.raises(kind) as error:
        path = make(tmp_path)
        load_body(path) if len(fields) > 1 else read_npz(path, fields)
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


class Trap:
    "Unpickling this creates a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_ever_unpickled(layout, tmp_path):
    trace = tmp_path / "trace"
    trap = np.array([Trap(trace)], dtype=object)
    file = write(tmp_path / "SMPLX_NEUTRAL.npz", archive(**{**{name: np.zeros(1) for name in SMPLX_FIELDS}, "v_template": trap}))
    with pytest.raises(ValueError, match="'v_template' holds a pickled object"):
        load_body(file)
    assert not trace.exists()
    np.load(file, allow_pickle=True)["v_template"]
    assert trace.exists(), "the trap itself does not work"


def test_a_trap_in_a_field_that_is_not_needed_is_never_touched(layout, tmp_path):
    trace = tmp_path / "trace"
    file = tmp_path / "SMPLX_FEMALE.npz"
    np.savez(file, note=np.array([Trap(trace)], dtype=object), **layout)
    assert len(load_body(tmp_path).faces) == len(layout["f"]) and not trace.exists()
