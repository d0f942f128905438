"""Streams of pairs: every pair once an epoch, the same order for the same seed, and after a kill the pair that would have come next; tar files of the same bytes."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from project_files import run_python

from drpose.pairs.animators import load_animator
from drpose.pairs.dataset import PosePairs, build_dataset
from drpose.pairs.planning import plan_clips, plan_dataset
from drpose.pairs.streaming import WINDOW, PairStream, export_webdataset, shuffled_order
from drpose.people.bodies import load_body
from drpose.people.clips import embedded_clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    body = load_body()
    plan = plan_clips(embedded_clips(), 12, 4, seed=1, test_share=0.3, body_model=body)
    return build_dataset(plan, tmp_path_factory.mktemp("stream") / "pairs", load_animator("render", body, image_size=16), shard_size=12)


@pytest.fixture(scope="module")
def pairs(folder):
    return PosePairs(folder)


def keys(items) -> list[float]:
    "What tells 48 pairs apart."
    return [float(item["pose"].axis_angles.double().sum()) for item in items]


@pytest.mark.parametrize("count", [0, 1, 64, 65, 64 * WINDOW + 1, 1984])
def test_an_order_has_each_pair_once(count):
    groups = [range(start, min(start + 64, count)) for start in range(0, count, 64)]
    orders = [shuffled_order(groups, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(torch.equal(order.sort().values, torch.arange(count)) for order in orders) and torch.equal(orders[0], shuffled_order(groups, 0, 0))
    if count > 64:
        assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    if count % 64 == 0:
        for window in (orders[0] // 64).split(64 * WINDOW):  # no more groups at once than are kept
            assert len(window.unique()) <= WINDOW


def test_groups_are_what_lies_together(pairs, folder):
    assert [len(group) for group in pairs.groups()] == [12] * 4 or sum(map(len, pairs.groups())) == 48
    assert torch.equal(torch.cat([torch.arange(group.start, group.stop) for group in pairs.groups()]), torch.arange(48))
    assert np.array_equal(np.array(Image.open(io.BytesIO(pairs.encoded(-1)))), (pairs[47]["image"] * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("stop", [1, 17, 47, 48])
def test_a_killed_stream_goes_on_where_it_was(pairs, stop):
    whole = PairStream(pairs, 3)
    two_epochs = keys(whole) + keys(whole)
    assert sorted(two_epochs[:48]) == sorted(two_epochs[48:]) == sorted(keys(pairs[i] for i in range(48))) and two_epochs[:48] != two_epochs[48:]
    killed, before = PairStream(pairs, 3), []
    for item in killed:
        before += keys([item])
        if len(before) == stop:
            break
    state = json.loads(json.dumps(killed.state_dict()))  # as a checkpoint holds it
    resumed = PairStream(pairs, 3)
    resumed.load_state_dict(state)
    after = keys(resumed)
    after += keys(resumed) if stop < 48 else []
    assert before + after == two_epochs


def test_a_stream_of_another_process_gives_the_same(folder, pairs):
    "Nothing of the order depends on the process that asks."
    code = f"from drpose.pairs.dataset import PosePairs; from drpose.pairs.streaming import PairStream; print(PairStream(PosePairs({str(folder)!r}), 5).own_order().tolist())"
    ran = run_python(code, cwd=folder, timeout=300)
    assert json.loads(ran.stdout) == PairStream(pairs, 5).own_order().tolist(), ran.stderr[-500:]


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_ranks_share_the_pairs(pairs, ranks):
    shares = [keys(PairStream(pairs, 2, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1 and len(set(sum(shares, []))) == 48 - 48 % ranks == sum(map(len, shares))


def test_a_loader_gets_them_too(pairs):
    loader = torch.utils.data.DataLoader(PairStream(pairs, 2), batch_size=5, collate_fn=list)
    assert keys(item for batch in loader for item in batch) == keys(PairStream(pairs, 2)) and len(loader) == 10
    workers = torch.utils.data.DataLoader(PairStream(pairs, 2), batch_size=None, num_workers=2, collate_fn=lambda item: item)
    assert sorted(keys(workers)) == sorted(keys(PairStream(pairs, 2)))


def test_what_makes_no_sense_is_refused(pairs):
    for rank, ranks in ((1, 1), (-1, 2), (0, 49)):
        with pytest.raises(ValueError, match=f"rank = {rank}, ranks = {ranks}: needed"):
            PairStream(pairs, 0, rank, ranks)
    with pytest.raises(ValueError, match="a stream has seed = 1, and this stream 2"):
        PairStream(pairs, 2).load_state_dict(PairStream(pairs, 1).state_dict())
    with pytest.raises(ValueError, match="a stream has pairs = None, and this stream 48"):
        PairStream(pairs, 2).load_state_dict({"seed": 2, "position": 0, "epoch": 0})


def test_tar_files_hold_the_shards(folder, pairs, tmp_path):
    paths = export_webdataset(folder, tmp_path / "tar")
    assert sorted(path.stem for path in paths) == sorted(path.stem for path in folder.glob("data/*.parquet")) and len(paths) > 2
    found = {}
    for path in paths:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert all(one.name.split(".")[0] == other.name.split(".")[0] for one, other in zip(members[::2], members[1::2])) and not any(member.mtime for member in members)
            for picture, label in zip(members[::2], members[1::2]):
                row = json.loads(tar.extractfile(label).read())
                found[round(sum(row["axis_angles"]), 4)] = np.array(Image.open(io.BytesIO(tar.extractfile(picture).read())))
    for item in (pairs[i] for i in range(48)):
        assert np.array_equal(found[round(sum(item["pose"].axis_angles.flatten().tolist()), 4)], (item["image"] * 255).round().byte().permute(1, 2, 0).numpy())
    before = paths[0].read_bytes()
    paths[0].unlink()
    assert export_webdataset(folder, tmp_path / "tar")[0].read_bytes() == before
    assert {path.name.split("-")[0] for path in export_webdataset(folder, tmp_path / "test", "test")} == {"test"}
    with pytest.raises(ValueError, match="has no split 'val'"):
        export_webdataset(folder, tmp_path / "val", "val")
    with pytest.raises(FileNotFoundError):
        export_webdataset(tmp_path, tmp_path / "val")
    with pytest.raises(FileNotFoundError, match="has no shard 'x.parquet'"):
        PosePairs(folder, shard="x.parquet")


def test_pairs_that_stand_alone_have_tar_files_too(tmp_path):
    body = load_body()
    folder = build_dataset(plan_dataset(3, 3, "random", body_model=body), tmp_path / "pairs", load_animator("render", body, image_size=16))
    (path,) = export_webdataset(folder, tmp_path / "tar")
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 6


def test_what_the_encoders_make_of_pairs_is_kept(tmp_path):
    "The second run reads what the first one made; other pairs or other encoders make their own."
    import dataclasses

    from drpose.ground.model_files import embedded_models
    from drpose.multiview.pipeline import MultiViewPipeline
    from drpose.pictures.cameras import TINY_RIG
    from drpose.posttraining.launching import PostTrainSources
    from drpose.posttraining.post_training import condition_pairs, kept_conditions

    body, pipeline = load_body(), MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    pairs = PosePairs(build_dataset(plan_dataset(3, body_model=body), tmp_path / "pairs"))
    made = condition_pairs(pairs, pipeline, body, outlines=TINY_RIG)
    first = kept_conditions(tmp_path / "kept", pairs, pipeline, body, outlines=TINY_RIG)
    (path,) = (tmp_path / "kept").glob("*.safetensors")
    before = path.stat().st_mtime_ns
    again = kept_conditions(tmp_path / "kept", pairs, pipeline, body, outlines=TINY_RIG)
    for name in ("photos", "descriptors", "joints", "masks", "given"):
        assert torch.equal(getattr(made, name), getattr(first, name)) and torch.equal(getattr(made, name), getattr(again, name)), name
    assert made.digest() == first.digest() == again.digest() and path.stat().st_mtime_ns == before
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(0.01)
    kept_conditions(tmp_path / "kept", pairs, pipeline, body, outlines=TINY_RIG)
    kept_conditions(tmp_path / "kept", pairs, pipeline, body)
    other = PosePairs(build_dataset(plan_dataset(3, seed=9, body_model=body), tmp_path / "others"))
    kept_conditions(tmp_path / "kept", other, pipeline, body)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 4
    assert "conditions" in {field.name for field in dataclasses.fields(PostTrainSources)}
