"""Folders of image-pose pairs: built by one process or three, killed at any time, the same bytes; opened by `datasets`; read whichever version wrote them."""

import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drpose.ground.files import write_json
from drpose.ground.provenance import alone
from drpose.pairs.animators import load_animator
from drpose.pairs.dataset import PosePairs, build_dataset, chosen_pairs, dataset_stats, kept_limits, passing_pairs, verify_dataset
from drpose.pairs.gates import calibrate_limits
from drpose.pairs.planning import plan_clips, plan_dataset
from drpose.people.bodies import load_body
from drpose.people.clips import embedded_clips


@pytest.fixture(scope="module")
def body_model():
    return load_body()


@pytest.fixture(scope="module")
def plan(body_model):
    clips = {name: clip for name, clip in embedded_clips().items() if clip.kind == "dynamic"}
    return plan_clips(clips, 9, 3, seed=1, test_share=0.3, body_model=body_model)


def build(plan, folder, body_model, **options):
    return build_dataset(plan, folder, load_animator("render", body_model, image_size=32), shard_size=6, checks=True, **options)


@pytest.fixture(scope="module")
def built(plan, body_model, tmp_path_factory):
    return build(plan, tmp_path_factory.mktemp("built") / "pairs", body_model)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")}


def in_a_fork(work) -> int:
    "The number of a new process that does `work`; it ends with 0 if nothing is raised."
    number = os.fork()
    if number == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return number


def test_killed_ten_times_it_ends_in_the_same_bytes(plan, built, body_model, tmp_path):
    "kill -9 at random; the eleventh process finishes."
    draw, killed = random.Random(0), 0
    for _ in range(10):
        number = in_a_fork(lambda: build(plan, tmp_path / "pairs", body_model))
        time.sleep(draw.uniform(0.02, 0.5))
        os.kill(number, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(number, 0)[1])
    build(plan, tmp_path / "pairs", body_model)
    assert killed >= 3 and content(tmp_path / "pairs") == content(built) and not list((tmp_path / "pairs").rglob(".*.partial"))


def test_three_ranks_at_once_write_the_same_bytes(plan, built, body_model, tmp_path):
    numbers = [in_a_fork(lambda rank=rank: build(plan, tmp_path / "pairs", body_model, rank=rank, ranks=3)) for rank in range(3)]
    assert [os.waitpid(number, 0)[1] for number in numbers] == [0, 0, 0]
    assert content(tmp_path / "pairs") == content(built)


def test_one_rank_alone_leaves_the_others_theirs(plan, body_model, tmp_path):
    folder = build(plan, tmp_path, body_model, rank=1, ranks=3)
    shards = sorted(set(pq.read_table(folder / "plan.parquet")["shard"].to_pylist()), key=lambda name: (not name.startswith("train"), name))
    assert sorted(path.stem for path in folder.glob("data/*.parquet")) == sorted(shards[1::3]) and not (folder / "manifest.json").exists()
    with pytest.raises(FileNotFoundError, match="manifest.json: no such file"):
        verify_dataset(folder)
    with pytest.raises(ValueError, match="rank = 3, ranks = 3"):
        build(plan, tmp_path, body_model, rank=3, ranks=3)


def test_a_second_build_of_the_same_shard_is_refused(plan, body_model, tmp_path):
    first = sorted(path.stem for path in build(plan, tmp_path / "whole", body_model).glob("data/train-*"))[0]
    with alone(tmp_path / "pairs" / "data", "builds pairs", first), pytest.raises(ValueError, match=f"another process builds pairs in this folder \\({first}\\); wait"):
        build(plan, tmp_path / "pairs", body_model)


def test_splits_share_neither_sequence_nor_person(plan, built):
    rows = pq.read_table(built / "plan.parquet").to_pylist()
    for column in (lambda row: row["sequence"].removesuffix(" mirrored"), lambda row: row["person"], lambda row: row["clip_id"]):
        train, test = ({column(row) for row in rows if row["split"] == split} for split in ("train", "test"))
        assert train and test and not train & test
    assert len({row["pair_id"] for row in rows}) == 27 and len({row["seed"] for row in rows}) == 9
    assert len(PosePairs(built, "train")) + len(PosePairs(built, "test")) == len(PosePairs(built)) == 27
    with pytest.raises(ValueError, match="has no split 'val', needed one of test, train"):
        PosePairs(built, "val")


def test_ids_do_not_depend_on_the_company(plan, built, body_model, tmp_path):
    "A clip keeps its ids and seed in a smaller plan."
    from dataclasses import replace

    few = replace(plan, drawn=plan.drawn[3:6], sequences=plan.sequences[3:6], frames=plan.frames[3:6], clips=[0] * 3, splits=plan.splits[3:6])
    small = pq.read_table(build(few, tmp_path, body_model) / "plan.parquet").to_pylist()
    whole = {row["pair_id"]: row for row in pq.read_table(built / "plan.parquet").to_pylist()}
    assert all(whole[row["pair_id"]]["seed"] == row["seed"] and whole[row["pair_id"]]["clip_id"] == row["clip_id"] for row in small)


def test_neighbours_lie_apart(plan, body_model):
    from drpose.people.selection import pose_features

    steps = pose_features(plan.drawn.poses, body_model).unflatten(0, (9, 3)).diff(dim=1).norm(dim=-1)
    assert steps.median() > 0.05 and all(plan.frames[3 * i] < plan.frames[3 * i + 1] < plan.frames[3 * i + 2] for i in range(9))
    with pytest.raises(ValueError, match="the motion has 0 frames in sequences that are long enough"):
        plan_clips({}, 1, body_model=body_model)


def test_what_was_built_can_be_verified_and_counted(built, body_model, tmp_path):
    import shutil

    shutil.copytree(built, tmp_path / "copy")
    assert verify_dataset(tmp_path / "copy") == []
    pairs = PosePairs(built)
    assert all(not values.isnan().any() for name, values in pairs.scores().items() if name not in ("reprojection", "swap"))
    stats = dataset_stats(built, calibrate_limits(pairs.scores()), body_model)
    assert stats["pairs"] == 27 and stats["people"] == 9 and sum(stats["tilt"].values()) == 27 and stats["passes"] == 1.0
    strict = dataset_stats(built, {"overlap": stats["scores"]["overlap"][1]}, body_model)
    assert 0.3 < strict["passes"] < 0.7 and strict["refused"]["silhouette"] == 27 - round(27 * strict["passes"])
    first, second = sorted((tmp_path / "copy" / "data").glob("*.parquet"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    wrong = verify_dataset(tmp_path / "copy")
    assert len(wrong) == 2 and f"{first}: missing" in wrong[0] + wrong[1] and "its checksum is another" in wrong[0] + wrong[1]


def test_the_shards_say_how_datasets_shows_them(built):
    "The library itself is asked where it is installed."
    path = next(built.glob("data/train-*.parquet"))
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["axis_angles"]["length"] == 165 and set(features) == set(pq.read_schema(path).names)
    assert "path: data/train-*.parquet" in (built / "README.md").read_text()
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(built), split="train")
    assert isinstance(loaded[0]["image"], Image.Image) and loaded[0]["image"].size == (32, 32) and len(loaded) == len(PosePairs(built, "train"))
    assert np.array_equal(np.array(loaded[0]["image"]), (PosePairs(built, "train")[0]["image"] * 255).round().byte().permute(1, 2, 0).numpy())


def test_folders_of_the_version_before_are_read_and_left_alone(body_model, tmp_path):
    "PNG bytes in pairs-000000.parquet, as they were written until now."
    plan, names = plan_dataset(4, 3, "random", body_model=body_model), ("axis_angles", "betas", "transl")
    new = PosePairs(build_dataset(plan, tmp_path / "new", load_animator("render", body_model, image_size=32)))
    schema = pa.schema([("image", pa.binary())] + [(field.name, field.type) for field in new.table.schema if field.name != "scores"])
    rows = []
    for i, row in enumerate(new.table.drop_columns(["scores"]).to_pylist()):
        png = io.BytesIO()
        Image.fromarray((new[i]["image"] * 255).round().byte().permute(1, 2, 0).numpy()).save(png, "PNG")
        rows.append(row | {"image": png.getvalue()})
    (tmp_path / "old").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:2], schema=schema), tmp_path / "old" / "pairs-000000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:], schema=schema), tmp_path / "old" / "pairs-000002.parquet")
    write_json(tmp_path / "old" / "dataset.json", json.loads((tmp_path / "new" / "dataset.json").read_text()))
    write_json(tmp_path / "old" / "inputs.json", {name: digest for name, digest in json.loads((tmp_path / "new" / "inputs.json").read_text()).items() if name in ("poses", "people", "animator")})
    old, before = PosePairs(tmp_path / "old"), content(tmp_path / "old")
    for i in range(4):
        assert torch.equal(old[i]["image"], new[i]["image"]) and all(torch.equal(getattr(old[i]["pose"], name), getattr(new[i]["pose"], name)) for name in names)
    build_dataset(plan, tmp_path / "old", load_animator("render", body_model, image_size=32))
    assert content(tmp_path / "old") == before and all(values.isnan().all() for values in old.scores().values())


def test_an_animator_may_take_the_clips_seed(plan, body_model, tmp_path):
    class Seeded:
        takes_seed = True

        def __init__(self):
            self.calls = []

        def animate(self, poses, person, seed):
            self.calls.append((len(poses), set(person), seed))
            return load_animator("render", body_model, image_size=16).animate(poses, person)

    animator = Seeded()
    folder = build_dataset(plan, tmp_path, animator)
    planned = {row["seed"] for row in pq.read_table(folder / "plan.parquet").to_pylist()}
    assert len(animator.calls) == 9 and all(count == 3 and len(people) == 1 for count, people, _ in animator.calls) and {seed for *_, seed in animator.calls} == planned


# ---- a share for each kind of difficulty, and what is refused painted again ----


@pytest.fixture(scope="module")
def shared_plan(body_model):
    return plan_clips(embedded_clips(), 16, 4, seed=1, test_share=0.3, body_model=body_model, selection="shares")


def test_shares_have_even_steps_and_no_near_duplicates(shared_plan, body_model):
    from drpose.people.selection import pose_features

    features = pose_features(shared_plan.drawn.poses, body_model).unflatten(0, (16, 4))
    steps = features.diff(dim=1).norm(dim=-1)
    assert steps.min() > 0.0499 and steps.max() < 0.121
    between = torch.cdist(features.flatten(0, 1), features.flatten(0, 1))
    between[torch.tensor(shared_plan.clips)[:, None] == torch.tensor(shared_plan.clips)] = 1.0
    assert between.min() > 0.0299
    assert shared_plan.settings["selection"] == "shares" and len(set(shared_plan.drawn.sets)) > 9 and all(kind.count(",") == 2 for kind in shared_plan.drawn.sets)
    again = plan_clips(embedded_clips(), 16, 4, seed=1, test_share=0.3, body_model=body_model, selection="shares")
    assert torch.equal(again.drawn.poses.axis_angles, shared_plan.drawn.poses.axis_angles) and again.frames == shared_plan.frames
    upside_down = [kind.startswith("upside down") for kind in shared_plan.drawn.sets]
    assert 0.15 < sum(upside_down) / len(upside_down) < 0.45


def test_what_motion_cannot_give_is_said(body_model):
    stand = {"stand": embedded_clips()["stand"]}
    with pytest.raises(ValueError, match="the motion has 0 clips that differ from each other, needed more motion"):
        plan_clips(stand, 2, 10, body_model=body_model, selection="shares")
    with pytest.raises(ValueError, match="selection is 'best', needed one of farthest, shares"):
        plan_clips(stand, 2, 10, body_model=body_model, selection="best")


def test_parts_of_one_recording_are_on_one_side(body_model):
    clips = {f"{name}#{start}": replace_poses(clip, start) for name, clip in list(embedded_clips().items())[17:40] for start in (0, 10)}
    plan = plan_clips(clips, 20, 3, seed=4, test_share=0.4, body_model=body_model)
    sides = {}
    for sequence, split in zip(plan.sequences, plan.splits, strict=True):
        sides.setdefault(sequence.partition("#")[0], set()).add(split)
    assert all(len(side) == 1 for side in sides.values()) and {"train", "test"} == set.union(*sides.values())


def replace_poses(clip, start):
    from drpose.people.clips import Clip

    return Clip(clip.poses[start : start + 12], clip.fps, clip.name)


def moody(body_model, odd: bool = True):
    "A renderer that paints another frame's pose where the seed is odd."
    from drpose.pairs.animators import RenderAnimator

    class Moody(RenderAnimator):
        takes_seed = True
        seeds = []

        def animate(self, poses, person, seed=0):
            self.seeds.append(seed)
            images, framing = super().animate(poses, person)
            return (images.roll(2, 0) if seed % 2 and odd else images), framing

    return Moody(body_model, 32)


@pytest.fixture(scope="module")
def clean_limits(shared_plan, body_model):
    from drpose.pairs.gates import check_renders

    return calibrate_limits(check_renders(shared_plan.drawn[torch.arange(0, 64, 3)], load_animator("render", body_model, image_size=32))[0])


def test_refused_clips_are_painted_again_with_new_seeds(shared_plan, clean_limits, body_model, tmp_path):
    shares = {}
    for attempts in (1, 4):
        animator = moody(body_model)
        folder = build_dataset(shared_plan, tmp_path / str(attempts), animator, 24, checks=True, limits=clean_limits, attempts=attempts)
        assert verify_dataset(folder) == []
        stats = dataset_stats(folder, clean_limits, body_model)
        shares[attempts], counts = stats["passes"], stats["attempts"]
        assert sum(counts.values()) == 64 and max(counts) <= attempts - 1 and stats["near_duplicates"] == 0
        assert len(animator.seeds) == len(set(animator.seeds)) and all(0 <= seed < 2**63 for seed in animator.seeds)
        assert set(stats["passes_by_difficulty"]) <= {"easy", "medium", "hard"} and len(stats["passes_by_set"]) > 9
        assert sum(stats["difficulty"].values()) == sum(stats["set"].values()) == 64
    assert shares[1] < 0.75 and shares[4] > shares[1] + 0.25
    card = (tmp_path / "4" / "README.md").read_text()
    assert "Clips of which\n  something was refused were painted up to 4 times" in card and f"are {shares[4]:.1%}: " in card
    # each pair's attempt is the first that passes; its seed stays the clip's
    rows = pq.read_table(tmp_path / "4" / "data").to_pylist()
    assert {row["seed"] for row in rows} == {row["seed"] for row in pq.read_table(tmp_path / "4" / "plan.parquet").to_pylist()}
    assert all(row["attempt"] == 0 for row in rows if row["seed"] % 2 == 0)


def test_painting_again_comes_to_the_same_bytes_when_killed(shared_plan, clean_limits, body_model, tmp_path):
    whole = build_dataset(shared_plan, tmp_path / "whole", moody(body_model), 24, checks=True, limits=clean_limits)
    build_dataset(shared_plan, tmp_path / "half", moody(body_model), 24, checks=True, limits=clean_limits, rank=1, ranks=2)
    build_dataset(shared_plan, tmp_path / "half", moody(body_model), 24, checks=True, limits=clean_limits)
    assert content(tmp_path / "half") == content(whole)
    with pytest.raises(ValueError, match="limits was"):
        build_dataset(shared_plan, tmp_path / "half", moody(body_model), 24, checks=True, limits=clean_limits | {"overlap": 0.1})


def test_limits_need_checks(shared_plan, clean_limits, body_model, tmp_path):
    for options in ({"checks": False}, {"checks": True, "attempts": 0}):
        with pytest.raises(ValueError, match="limits are given with checks"):
            build_dataset(shared_plan, tmp_path, moody(body_model), limits=clean_limits, **options)


def test_near_duplicates_are_counted(plan, built, body_model):
    "Three clips of one motion overlap; by another count."
    from drpose.pairs.dataset import near_duplicates
    from drpose.people.selection import pose_features

    pairs = PosePairs(built)
    features, names = pose_features(pairs.poses(), body_model), pairs.table["clip_id"].to_pylist()
    expected = sum(any(names[i] != names[j] and (features[i] - features[j]).norm() < 0.03 for j in range(i)) for i in range(len(names)))
    assert near_duplicates(pairs, body_model) == expected


def test_training_takes_the_pairs_of_its_split_that_pass(plan, built, tmp_path):
    every = PosePairs(built)
    train = chosen_pairs(built, "train")
    assert 0 < len(train) < len(every) and len(train) + len(chosen_pairs(built, "test")) == len(every)
    assert len(chosen_pairs(built, "spare")) == len(every)  # no such split: everything
    whole, bound = PosePairs(built, "train"), float(PosePairs(built, "train").scores()["overlap"].median())
    few = passing_pairs(whole, {"overlap": bound})
    kept = (whole.scores()["overlap"] >= bound).nonzero().flatten().tolist()
    assert few.rows == kept and 0 < len(few) < len(whole) and few.digest() != whole.digest()
    for place, row in ((0, kept[0]), (len(few) - 1, kept[-1])):
        assert torch.equal(few[place]["image"], whole[row]["image"]) and few.encoded(place) == whole.encoded(row)
        assert torch.equal(few[place]["pose"].axis_angles, whole.poses()[row : row + 1].axis_angles)
    assert [i for part in few.groups() for i in part] == list(range(len(few)))
    assert passing_pairs(few, {}).rows == few.rows  # of what was chosen one may choose again
    with pytest.raises(ValueError, match="refuse all of its"):
        passing_pairs(whole, {"overlap": 2.0})


def test_limits_beside_a_folder_hold_for_training(built, tmp_path):
    shutil.copytree(built, tmp_path / "pairs")
    bound = float(PosePairs(built, "train").scores()["overlap"].median())
    assert kept_limits(tmp_path / "pairs") == {} and len(chosen_pairs(tmp_path / "pairs", "train")) == len(PosePairs(built, "train"))
    write_json(tmp_path / "limits.json", {"overlap": bound})  # where the job build_dataset leaves them
    assert len(chosen_pairs(tmp_path / "pairs", "train")) < len(PosePairs(built, "train"))
    write_json(tmp_path / "pairs" / "limits.json", {"overlap": "much"})
    with pytest.raises(ValueError, match="limits.json: holds 'overlap': 'much'"):
        chosen_pairs(tmp_path / "pairs", "train")
