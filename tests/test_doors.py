"""Hundreds of damaged and hostile files, drawn from one seed, through every door: each is answered by one sentence that names the file, or handled rightly.

Nothing takes more than a few seconds or a gigabyte, and nothing that a file would like to have run is run."""

import io
import json
import pickle
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import test_multiview
import tiny_parts
import torch
from peft import LoraConfig
from PIL import Image
from project_files import PACKAGE
from test_motion import rest_frame, some_pose, write_aist, write_amass, write_bvh, write_deepmimic, write_motion_x

from drpose.ground.files import read_lines, read_npz
from drpose.ground.trainer import RunDirectory
from drpose.people.bodies import PACKED_FIELDS, SMPLX_FIELDS, load_body, unpack_body
from drpose.people.motion import load_motion
from drpose.pictures.photos import open_photo
from drpose.multiview.unet import LORA_FILE, load_lora, save_lora
from drpose.multiview.pshuman import read_prompt_file
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.multiview.scans import POSE_FILE, read_fit, read_scan, read_scan_pictures, read_scan_pose, render_scans
from drpose.pairs.animators import load_animator
from drpose.pairs.planning import plan_dataset
from drpose.pairs.dataset import PosePairs, build_dataset
from drpose.reward.skeleton_predictor import SkeletonPredictor
from drpose.posttraining.post_training import PostTrainConfig
from drpose.posttraining.validation import read_validation

SECONDS, BYTES = 5.0, 1e9
PER_DOOR = 30
SLOW = {"body": 8, "pipeline": 40, "PSHuman": 24}  # a whole body has 40 MB, and pipelines have many files
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass
class Door:
    "A whole input on disk: the folder that holds it, the files in it that are damaged, and the call that reads them."

    folder: Path
    damaged: tuple[str, ...]
    open: Callable[[Path], object]


# ---- whole inputs ----


def _body(folder: Path) -> None:
    whole = unpack_body(read_npz(PACKAGE / "assets" / "body.npz", PACKED_FIELDS))
    whole["posedirs"] = whole["posedirs"].astype(np.int8)  # all 0, and large
    np.savez(folder / "SMPLX_NEUTRAL.npz", **{name: whole[name] for name in SMPLX_FIELDS})


def _mesh(folder: Path) -> None:
    (folder / "box.obj").write_text("mtllib box.mtl\nusemtl skin\n" + "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1)) + "vt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\nf 2/1 4/2 3/3\nf 5/1 7/2 6/3\nf 6/1 7/2 8/3\n")
    (folder / "box.mtl").write_text("newmtl skin\nKd 1 .5 .25\nmap_Kd skin.png\n")
    Image.new("RGB", (8, 8), (200, 100, 50)).save(folder / "skin.png")


def _glb(folder: Path) -> None:
    import trimesh

    trimesh.creation.box().export(folder / "box.glb")


def _ply(folder: Path) -> None:
    import trimesh

    trimesh.creation.box().export(folder / "box.ply")


def _run(folder: Path) -> None:
    run = RunDirectory(folder, PostTrainConfig(seed=1))
    run.log(1, {"loss": 0.5})
    run.log(2, {"loss": 0.25})
    run.save(2, {"weights": {"a": torch.rand(3)}, "seconds": 1.0})


def _pairs(folder: Path, body) -> None:
    build_dataset(plan_dataset(3, seed=0, candidates=2, body_model=body), folder, load_animator("render", body_model=body))


def files_of(folder: Path) -> tuple[str, ...]:
    "What a reader of the folder may open."
    return tuple(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".safetensors", ".parquet", ".png", ".pt"))


def _fit(path: Path, **changes) -> Path:
    whole = {"global_orient": np.zeros((1, 3), np.float32), "body_pose": 0.1 * np.ones((1, 63), np.float32), "betas": np.zeros((1, 10), np.float32), "transl": np.zeros((1, 3), np.float32), "scale": np.ones(1, np.float32)}
    np.savez(path, **(whole | changes))
    return path


@pytest.fixture(scope="module")
def doors(tmp_path_factory) -> dict[str, Door]:
    "Every door with a whole input. Each is opened once undamaged, so that a refusal means the damage."
    root, body = tmp_path_factory.mktemp("doors"), load_body()

    def folder(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    def single(name: str, file: str, write: Callable[[Path], object], read: Callable[[Path], object]) -> Door:
        place = folder(name)
        write(place / file)
        return Door(place, (file,), lambda where: read(where / file))

    _body(folder("body"))
    _mesh(folder("mesh"))
    _glb(folder("glb"))
    _ply(folder("ply"))
    _run(folder("run"))
    _pairs(root / "pairs", body)
    test_multiview.tiny_pipeline().save_pretrained(root / "pipeline")
    tiny_parts.predictor().save_pretrained(root / "predictor")
    unet = tiny_parts.unet()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]))
    save_lora(unet, folder("adapter"))
    tiny_parts.pshuman_checkpoint(folder("pshuman"))
    scan = render_scans([tiny_parts.colored_box(root / "box.ply")], root / "scans", size=16)[0]
    (scan / POSE_FILE).write_text(json.dumps({"joints": [[0.1, 0.2, 0.3]] * 23, "scale": 1.0}))
    motion = {
        "AMASS": ("walk.npz", lambda path: write_amass(path, some_pose(), body)), "Motion-X": ("walk.npy", lambda path: write_motion_x(path, some_pose())),
        "AIST++": ("dance.pkl", lambda path: write_aist(path, some_pose())), "BVH": ("walk.bvh", lambda path: write_bvh(path, some_pose(), body)),
        "DeepMimic": ("walk.txt", lambda path: write_deepmimic(path, [rest_frame()] * 3)),
    }  # fmt: skip
    found = {
        "body": Door(root / "body", ("SMPLX_NEUTRAL.npz",), load_body),
        **{f"motion {name}": single(name, file, write, load_motion) for name, (file, write) in motion.items()},
        "fit": single("fit", "box.npz", _fit, read_fit),
        "mesh OBJ": Door(root / "mesh", ("box.obj", "box.mtl", "skin.png"), lambda where: read_scan(where / "box.obj")),
        "mesh GLB": Door(root / "glb", ("box.glb",), lambda where: read_scan(where / "box.glb")),
        "mesh PLY": Door(root / "ply", ("box.ply",), lambda where: read_scan(where / "box.ply")),
        "photo": single("photo", "me.png", lambda path: Image.new("RGBA", (24, 24), (9, 99, 200, 255)).save(path), lambda path: open_photo(path).load()),
        "pairs": Door(root / "pairs", files_of(root / "pairs"), lambda where: [PosePairs(where)[0], PosePairs(where).poses()]),
        "run": Door(root / "run", ("config.json", "checkpoint.pt", "metrics.jsonl"), lambda where: RunDirectory(where, PostTrainConfig(seed=1)).resume()),
        "pipeline": Door(root / "pipeline", files_of(root / "pipeline"), MultiViewPipeline.from_pretrained),
        "reader": Door(root / "predictor", ("config.json", WEIGHTS), SkeletonPredictor.from_pretrained),
        "adapter": Door(root / "adapter", (LORA_FILE,), lambda where: load_lora(tiny_parts.unet(), where)),
        "PSHuman": Door(root / "pshuman", files_of(root / "pshuman"), MultiViewPipeline.from_pretrained),
        "scan": Door(scan, files_of(scan), lambda where: [read_scan_pictures(where, 16), read_scan_pose(where)]),
        "metrics": Door(root / "run", ("metrics.jsonl",), lambda where: read_lines(where / "metrics.jsonl")),
        "looks": single("looks", "validation.jsonl", lambda path: path.write_text('{"step": 10, "best": true, "alarms": []}\n{"step": 20, "best": false, "alarms": ["x"]}\n'), lambda path: read_validation(path.parent)),
        "prompts": single("prompts", "normal_embeds.pt", lambda path: torch.save(torch.rand(7, 5, 24), path), read_prompt_file),
    }
    for door in found.values():
        door.open(door.folder)
    return found


# ---- damage; each takes the content of a file and a generator, and gives another content ----


class Payload:
    "What a hostile pickle would do: leave a file behind."

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def _cut(content, draw):
    return content[: draw.integers(len(content) + 1)]


def _flip(content, draw):
    changed = bytearray(content)
    for place in draw.integers(len(content), size=draw.integers(1, 12)) if content else ():
        changed[place] ^= 1 << draw.integers(8)
    return bytes(changed)


def _head(content, draw):
    "Flips where the declared sizes stand."
    return _flip(content[:160], draw) + content[160:]


def _noise(content, draw):
    start = draw.integers(len(content) + 1)
    return content[:start] + draw.bytes(int(draw.integers(1, 200))) + content[start + draw.integers(200) :]


def _twice(content, draw):
    return content + content


WRONG = (None, float("nan"), float("inf"), -1, 0, 10**6, 10**18, 1e300, "", "x", "../../etc", [], {}, [[[]]], True, ["os", "system"], [10**6] * 3, "a" * 10**5)


def _leaf(content, draw):
    "One value of a JSON file replaced by a wrong one, left out, or wrapped in brackets; of a JSON header too (safetensors, glTF)."
    value = json.loads(content)
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(value, dict | list):
        return b"{}"
    walk(value)
    if places:
        node, key = places[draw.integers(len(places))]
        if draw.random() < 0.2:
            del node[key]
        else:
            node[key] = WRONG[draw.integers(len(WRONG))]
    return json.dumps(value).encode()


def _safetensors(content, draw):
    size = struct.unpack("<Q", content[:8])[0]
    header = _leaf(content[8 : 8 + size], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _not_finite(content, draw):
    tensors = {name: tensor.clone() for name, tensor in torch_tensors(content).items()}
    name = sorted(tensors)[draw.integers(len(tensors))]
    if draw.random() < 0.3:
        tensors.pop(name)
    elif draw.random() < 0.3:
        tensors[name] = tensors[name].flatten()[:-1].clone()
    elif tensors[name].is_floating_point():
        tensors[name].view(-1)[draw.integers(tensors[name].numel())] = float("nan") if draw.random() < 0.5 else float("inf")
    return stored(tensors)


def torch_tensors(content: bytes) -> dict:
    from safetensors.torch import load

    return load(content)


def stored(tensors: dict) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _glb_header(content, draw):
    size = struct.unpack("<I", content[12:16])[0]
    header = _leaf(content[20 : 20 + size], draw)
    header += b" " * (-len(header) % 4)
    return content[:8] + struct.pack("<I", len(content) - size + len(header)) + struct.pack("<I", len(header)) + content[16:20] + header + content[20 + size :]


def _line(content, draw):
    "One line of a text left out, doubled, or with one word replaced."
    lines = content.split(b"\n")
    at = draw.integers(len(lines))
    words = lines[at].split(b" ")
    kind = draw.integers(3)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    else:
        words[draw.integers(len(words))] = [b"nan", b"1e400", b"-1", b"99999999999", b"x", b"", b"../../up", b"inf"][draw.integers(8)]
        lines[at] = b" ".join(words)
    return b"\n".join(lines)


def _member(content, draw):
    "One array of an npz wrong: not finite, of another shape, a pickled object, huge by its header, left out."
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    name = sorted(arrays)[draw.integers(len(arrays))]
    kind = draw.integers(6)
    value = arrays[name]
    if kind == 0 and value.dtype.kind == "f" and value.size:
        value = value.copy()
        value.reshape(-1)[draw.integers(value.size)] = [np.nan, np.inf, 1e30, -1e6][draw.integers(4)]
        arrays[name] = value
    elif kind == 1:
        arrays[name] = value.reshape(-1)[:-1]
    elif kind == 2:
        arrays[name] = np.array(["text"])
    elif kind == 3:
        arrays.pop(name)
    buffer = io.BytesIO()
    if kind == 4:
        arrays[name] = np.array([Payload(MARKER)], dtype=object)
    np.savez(buffer, **arrays)
    if kind != 5:
        return buffer.getvalue()
    lying = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as old, zipfile.ZipFile(lying, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, huge_array() if entry == f"{name}.npy" else old.read(entry))
    return lying.getvalue()


def huge_array() -> bytes:
    "The header of an array of 80 GB with nothing behind it."
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**10,)})
    return buffer.getvalue() + bytes(64)


def huge_png() -> bytes:
    "A PNG of 60,000 x 60,000 pixels in a few hundred bytes."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(2000))) + chunk(b"IEND", b"")


MARKER = "set by the test"


def hostile() -> list[bytes]:
    "Whole files of another kind, whatever the name says."
    nested = pickle.dumps(Payload(MARKER))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("poses.npy", bytes(10**7))
    program = io.BytesIO()
    torch.save({"step": 2, "x": torch.zeros(1)}, program)
    return [
        b"", b"\x00" * 500, b"[" * 200_000, b'{"a":' * 100_000, nested, b"\x80\x04X\xff\xff\xff\x7f" + bytes(30), huge_array(), huge_png(), bomb.getvalue(), program.getvalue(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"null", b"NaN", b"{}", b"[]", b'"text"', struct.pack("<Q", 2**40) + b"{}", b"PK\x03\x04" + bytes(40), b"\xff\xfe" + bytes(99), b"glTF\x02\x00\x00\x00\xff\xff\xff\x7f",
        b"ply\nformat binary_little_endian 1.0\nelement vertex 2000000000\nproperty float x\nproperty float y\nproperty float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n",
        b"HIERARCHY\nROOT Hips\n{\nOFFSET 0 0 0\nCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation\nEnd Site\n{\nOFFSET 0 0 1\n}\n}\nMOTION\nFrames: 999999999\nFrame Time: 0\n",
    ]  # fmt: skip


def damages(name: str, content: bytes) -> list[Callable]:
    "What may be done to a file of that name, the kinds that know its format first."
    common = [_cut, _flip, _head, _noise, _twice]
    if name.endswith((".json", ".txt")):
        return [_leaf] * 12 + [_line] * 2 + common
    if name.endswith(".safetensors"):
        return [_safetensors] * 5 + [_not_finite] * 3 + common
    if name.endswith(".npz"):
        return [_member] * 10 + common
    if name.endswith(".glb"):
        return [_glb_header] * 10 + common
    if name.endswith((".obj", ".mtl", ".bvh", ".jsonl")):
        return [_line] * 8 + common
    return [_head] * 3 + common


# ---- the walk ----


class Hung(BaseException):
    "Raised by the alarm; no `except Exception` swallows it."


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes(reset: bool = False) -> float:
    "The most memory this process has held, since the last reset where the system can forget it."
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024.0 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def numbers(value) -> Iterator[torch.Tensor]:
    "All tensors that a door gave back."
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, MultiViewPipeline):
        for part in value.components.values():
            yield from numbers(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from numbers(getattr(value, field.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from numbers(part)


def by_evaluation(door: Door, where: Path, damaged: Path) -> str | None:
    "What is wrong with how `door` answers the damaged file; None if it answers as it should."
    before, began = peak_bytes(reset=True), time.monotonic()
    try:
        with within(20):
            found = door.open(where)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        said = str(error)
        if type(error) not in (ValueError, FileNotFoundError):
            return f"{type(error).__name__}: {said[:200]}"
        if "\n" in said or not 20 < len(said) < 600:
            return f"not one sentence: {said[:300]!r}"
        if str(where) not in said and damaged.name not in said:
            return f"names no file: {said[:200]!r}"
        if "weights_only" in said:
            return f"passes on unsafe advice: {said[:200]!r}"
    except Hung:
        return "hung"
    except BaseException as error:
        return f"stray {type(error).__name__}: {str(error)[:200]}"
    else:
        if any(tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()) for tensor in numbers(found)):
            return "accepted, and gave numbers that are not finite"
    if time.monotonic() - began > SECONDS:
        return f"took {time.monotonic() - began:.1f} s"
    if peak_bytes() - before > BYTES:
        return f"took {(peak_bytes() - before) / 1e9:.1f} GB"
    return None


NAMES = ("body", "motion AMASS", "motion Motion-X", "motion AIST++", "motion BVH", "motion DeepMimic", "fit", "mesh OBJ", "mesh GLB", "mesh PLY", "photo", "pairs", "run", "pipeline", "reader", "adapter", "prompts", "PSHuman", "scan", "metrics", "looks")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_no_damaged_file_gets_past_its_door(name, doors, tmp_path, monkeypatch):
    door, draw = doors[name], np.random.default_rng([2026, NAMES.index(name)])
    marker = tmp_path / "marker"
    monkeypatch.setattr(sys.modules[__name__], "MARKER", str(marker))
    monkeypatch.chdir(tmp_path)
    faults = []
    whole = hostile()
    attempts = SLOW.get(name, PER_DOOR)
    for number in range(attempts):
        file = door.damaged[number % len(door.damaged)]
        where = tmp_path / f"{number}"
        shutil.copytree(door.folder, where)
        content = (where / file).read_bytes()
        if number % 3 == 2:
            chosen, damage = "hostile", whole[draw.integers(len(whole))]
        else:
            kinds = damages(file, content)
            change = kinds[draw.integers(len(kinds))]
            chosen = change.__name__
            try:
                damage = change(content, draw)
            except (ValueError, UnicodeDecodeError):  # a header that was not JSON to begin with
                damage = _cut(content, draw)
        (where / file).write_bytes(damage)
        said = by_evaluation(door, where, where / file)
        if said is not None:
            faults.append(f"{number} {file} ({chosen}): {said.replace(str(tmp_path), '')}")
        shutil.rmtree(where)
    assert not marker.exists(), "a file's program was run"
    assert not faults, f"{len(faults)} of {attempts}:\n" + "\n".join(faults)


def test_every_door_is_tried(doors):
    "The table above and the fixture name the same doors, and together they make more than five hundred attempts."
    assert set(NAMES) == set(doors) and sum(SLOW.get(name, PER_DOOR) for name in NAMES) > 500


# ---- files that nobody asked for ----

PROGRAM = "open({marker!r}, 'w').close()\n"
STRAYS = {
    "diffusers.py": lambda marker: PROGRAM.format(marker=marker).encode(),
    "megatron/__init__.py": lambda marker: PROGRAM.format(marker=marker).encode(),
    "adapter_config.json": lambda marker: json.dumps({"peft_type": "LORA", "auto_mapping": {"base_model_class": "X", "parent_library": "diffusers"}, "megatron_config": {}, "megatron_core": "megatron"}).encode(),
    "diffusion_pytorch_model.safetensors.index.json": lambda marker: json.dumps({"weight_map": {"conv_in.weight": "../../elsewhere.bin"}}).encode(),
    "model.safetensors.index.json": lambda marker: json.dumps({"weight_map": {"x": "/etc/passwd"}}).encode(),
    "diffusion_pytorch_model.bin": lambda marker: pickle.dumps(Payload(marker)),
    "pytorch_model.bin": lambda marker: pickle.dumps(Payload(marker)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("name", ["pipeline", "PSHuman", "reader", "adapter"])
def test_a_stray_file_is_neither_run_nor_read(name, stray, doors, tmp_path, monkeypatch):
    "In the folder of a network, in each of its parts and in the working directory: refused in one sentence, or as if it were not there."
    door, marker = doors[name], tmp_path / "marker"
    places = [path.relative_to(door.folder) for path in [door.folder, *sorted(door.folder.iterdir())] if path.is_dir()]
    faults = []
    for number, place in enumerate(places):
        where = tmp_path / str(number)
        shutil.copytree(door.folder, where)
        target = where / place / stray
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(STRAYS[stray](str(marker)))
        monkeypatch.chdir(where / place)
        said = by_evaluation(door, where, target)
        faults += [] if said is None else [f"{place}: {said}"]
    assert not marker.exists(), "a file's program was run"
    assert not faults, faults
