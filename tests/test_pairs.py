"""People, photographs, pose sets, image-pose pairs."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from drpose.ground.files import write_json
from drpose.ground.provenance import alone, digest_of
from drpose.ground.model_files import embedded_models
from drpose.people.bodies import SKELETON_JOINTS, Pose, load_body
from drpose.people.clips import HELD_OUT_CLIPS, clips_for
from drpose.people.selection import pose_difficulty, pose_features
from drpose.people.pose_sets import POSE_SETS, draw_set, everyday_difficulty, person_number
from drpose.pictures.cameras import TINY_RIG, ViewRig
from drpose.pictures.dressed_people import REGIONS, clothing_regions, draw_crowd, draw_palette, photograph
from drpose.multiview.latents import build_images, build_latents, reframe, render_set
from drpose.pairs.animators import load_animator
from drpose.pairs.planning import plan_dataset
from drpose.pairs.dataset import PosePairs, build_dataset, render_photos


@pytest.fixture(scope="module")
def body_model():
    return load_body()


def test_regions_lie_where_they_should(body_model):
    region, rest = clothing_regions(body_model), body_model.vertices_rest
    where = {name: rest[region == number] for number, name in enumerate(REGIONS)}
    assert all(len(points) > 20 for points in where.values()), {name: len(points) for name, points in where.items()}
    for part in ("sleeve", "cuff", "thigh", "shin", "shoe"):
        assert where[f"left {part}"][:, 0].mean() > 0.03 and where[f"right {part}"][:, 0].mean() < -0.03  # +X is the subject's left
    assert where["hair"][:, 1].mean() > where["shirt"][:, 1].mean() > where["trousers"][:, 1].mean() > where["left shin"][:, 1].mean() > where["left shoe"][:, 1].mean()
    assert where["chest print"][:, 2].mean() > where["shirt"][:, 2].mean()  # +Z is out of the chest


def test_kit_tells_left_from_right():
    "Warm on the left, cool on the right, for most people; nobody wears it the other way round."
    left, right = ([REGIONS.index(f"{side} {part}") for part in ("sleeve", "thigh")] for side in ("left", "right"))
    warm_left = warm_right = 0
    for seed in range(200):
        palette = draw_palette(seed)
        warmth = palette[:, 0] - palette[:, 2]
        different = (palette[left] - palette[right]).abs().sum(-1) > 0.3
        warm_left += bool(((warmth[left] > warmth[right] + 0.2) & different).any())
        warm_right += bool(((warmth[right] > warmth[left] + 0.2) & different).any())
    assert warm_left > 150 and warm_right == 0


def test_people_do_not_depend_on_their_company(body_model):
    alone, together = draw_crowd(body_model, [7]), draw_crowd(body_model, [3, 7, 9])
    assert torch.equal(alone.betas[0], together.betas[1]) and torch.equal(alone.vertex_colors[0], together.vertex_colors[1])
    assert not torch.equal(together.betas[0], together.betas[1])


def test_photograph_shows_left_on_the_right_and_mirrors_the_back(body_model):
    pose = Pose.rest()
    pose.axis_angles[:, 17, 2] = 1.3  # right arm down, left arm stays out
    taken = photograph(body_model, pose, draw_crowd(body_model, [1]), TINY_RIG)
    views, (x, y) = taken.views, TINY_RIG.project(taken.joints)[0, 0, 20].long()  # the left wrist, seen from the front
    assert x > 40 and views.masks[0, 0, y, x] > 0.5 and views.masks[0, 0, y, :14].sum() == 0  # her left arm is image-right
    torch.testing.assert_close(views.masks[0, 0], views.masks[0, 2], atol=0.3, rtol=0)  # the mirrored back has the front's outline
    plain = photograph(body_model, pose, draw_crowd(body_model, [1]), ViewRig(TINY_RIG.azimuths)).views
    assert (plain.masks[0, 0] - plain.masks[0, 2]).abs().mean() > 0.01
    torch.testing.assert_close(plain.masks[0, 2].flip(-1), views.masks[0, 2])


def test_photographed_joints_lie_on_the_body(body_model):
    drawn = draw_set("pool", 6, 5, body_model)
    taken = photograph(body_model, drawn.poses, draw_crowd(body_model, drawn.people), TINY_RIG)
    pixels = TINY_RIG.project(taken.joints[:, :22]).long().clamp(0, 63)  # (B, V, 22, 2)
    for b in range(6):
        for v in range(4):
            covered = taken.views.masks[b, v][pixels[b, v, :, 1], pixels[b, v, :, 0]] > 0
            assert covered.float().mean() > 0.85, (b, v)


def test_animator_gives_the_frame_it_used(body_model):
    poses = draw_set("everyday", 2, 3, body_model).poses
    images, framing = load_animator("render", body_model).animate(poses, 5)
    assert images.shape == (2, 3, 64, 64) and 0 <= images.min() and images.max() <= 1 and len(framing.scale) == 2
    with pytest.raises(ValueError, match="unknown animator 'paint'"):
        load_animator("paint", body_model)
    with pytest.raises(ValueError, match="one person per pose"):
        photograph(body_model, poses, draw_crowd(body_model, [1]), TINY_RIG)


def test_sets_are_disjoint_and_addressed(body_model):
    held = clips_for(POSE_SETS["hard_test"].clips)
    pool = clips_for(POSE_SETS["pool"].clips)
    assert set(held) == set(HELD_OUT_CLIPS) and not set(held) & set(pool) and all(clip.kind == "dynamic" for clip in pool.values())
    people = [person_number(name, 0, i) for name in POSE_SETS for i in range(500)]
    assert len(set(people)) == len(people)
    whole, part = draw_set("pool", 12, 4, body_model), draw_set("pool", 5, 4, body_model, start=7)
    assert torch.equal(whole.poses.axis_angles[7:], part.poses.axis_angles) and whole.people[7:] == part.people


def test_hard_is_hard_and_mild_is_upright(body_model):
    threshold = everyday_difficulty(body_model)
    hard = draw_set("hard_test", 40, 0, body_model)
    assert pose_difficulty(body_model.joints(hard.poses)).min() > threshold
    mild = body_model.joints(draw_set("mild", 100, 0, body_model).poses)
    assert (mild[:, 12, 1] > mild[:, 0, 1]).all()  # neck above pelvis
    with pytest.raises(ValueError, match="unknown pose set"):
        draw_set("soft", 1, 0, body_model)


def test_farthest_plan_covers_more_than_random(body_model):
    plans = [plan_dataset(40, 1, selection, everyday_share=0.0, body_model=body_model) for selection in ("farthest", "random")]
    spread = [torch.cdist(features, features).fill_diagonal_(torch.inf).amin(1).mean() for features in (pose_features(body_model.joints(plan.drawn.poses)) for plan in plans)]
    assert spread[0] > 1.2 * spread[1]
    sets = plan_dataset(40, 1, "random", everyday_share=0.25, body_model=body_model).drawn.sets
    assert sets.count("everyday") == 10 and sets.count("pool") == 30


@pytest.fixture(scope="module")
def built(tmp_path_factory, body_model):
    plan = plan_dataset(10, 3, "random", body_model=body_model)
    return plan, build_dataset(plan, tmp_path_factory.mktemp("pairs"), load_animator("render", body_model), shard_size=4)


def test_pairs_round_trip(built, body_model):
    plan, folder = built
    pairs = PosePairs(folder)
    assert len(pairs) == 10 and len(list(folder.glob("data/*.parquet"))) == 3
    item = pairs[5]
    torch.testing.assert_close(item["pose"].axis_angles[0], plan.drawn.poses.axis_angles[5])
    joints = item["framing"].apply(body_model.joints(item["pose"])[:, :22])
    inside = ViewRig((0.0,), image_size=64).project(joints)[0, 0].long().clamp(0, 63)
    figure = (item["image"] < 0.97).any(0)
    assert figure[inside[:, 1], inside[:, 0]].float().mean() > 0.9  # the label lies on the figure
    assert pairs.poses().axis_angles.shape == (10, 55, 3) and pairs[-1]["person"] == plan.drawn.people[-1]


def test_building_resumes_by_shard(built, body_model, tmp_path):
    plan, folder = built
    shutil.copytree(folder, tmp_path / "copy")
    lost = sorted((tmp_path / "copy").glob("data/*.parquet"))[1]
    whole = lost.read_bytes()
    lost.unlink()
    untouched = sorted((tmp_path / "copy").glob("data/*.parquet"))[0]
    stamp = untouched.stat().st_mtime_ns
    build_dataset(plan, tmp_path / "copy", load_animator("render", body_model), shard_size=4)
    assert lost.read_bytes() == whole and untouched.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("damage", "error", "sentence"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), FileNotFoundError, "dataset.json: no such file"),
        (lambda folder: (folder / "dataset.json").write_text("{"), ValueError, "dataset.json: not valid JSON"),
        (lambda folder: sorted(folder.glob("data/*.parquet"))[0].unlink(), ValueError, "promises 10 pairs, the 2 shards hold 6"),
        (lambda folder: sorted(folder.glob("data/*.parquet"))[0].write_bytes(b"PAR1 torn"), ValueError, "train-00000-of-00003.parquet: not a shard"),
        (lambda folder: write_json(folder / "dataset.json", {"pairs": 11}), ValueError, "promises 11 pairs"),
    ],
)
def test_damaged_pairs(built, tmp_path, damage, error, sentence):
    shutil.copytree(built[1], tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(error, match=sentence):
        PosePairs(tmp_path / "copy")


def test_other_plan_in_the_same_folder_is_refused(built, body_model):
    with pytest.raises(ValueError, match="built from another plan"):
        build_dataset(plan_dataset(4, 9, "random", body_model=body_model), built[1], load_animator("render", body_model), shard_size=4)


@pytest.mark.parametrize(("settings", "sentence"), [({"selection": "best"}, "selection is 'best'"), ({"everyday_share": 1.5}, "everyday_share in"), ({"count": 0}, "count >= 1")])
def test_bad_plans(body_model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_dataset(**({"count": 4, "body_model": body_model} | settings))


def test_image_shards_are_kept(tmp_path, body_model):
    first = build_images("everyday", 3, 0, body_model, tmp_path, shard_size=2)
    stamps = [path.stat().st_mtime_ns for path in first]
    assert build_images("everyday", 3, 0, body_model, tmp_path, shard_size=2) == first and [path.stat().st_mtime_ns for path in first] == stamps


def test_a_wider_frame_moves_pictures_and_joints_alike(body_model):
    people = next(render_set(draw_set("everyday", 4, 3, body_model), body_model))
    framed = reframe(people, torch.Generator().manual_seed(1), share=1.0)
    again = reframe(people, torch.Generator().manual_seed(1), share=1.0)
    assert torch.equal(framed.images, again.images) and torch.equal(framed.joints, again.joints)
    for i in range(4):
        factor = framed.scale[i] / people.scale[i]
        assert 0.55 < factor <= 1 and torch.allclose(framed.joints[i, 1:] - framed.joints[i, 0], factor * (people.joints[i, 1:] - people.joints[i, 0]), atol=1e-6)
        assert (framed.joints[i, 0] - factor * people.joints[i, 0])[[0, 2]].abs().max() < 1e-6, "only the height may change"
        rows_before, rows_after = (torch.nonzero(masks[i].amax(-1) > 0.5) for masks in (people.masks, framed.masks))
        shift = (0.5 - (framed.joints[i, 0, 1] - factor * people.joints[i, 0, 1]) - factor * 0.5) * 64
        for view in range(4):
            before, after = (rows[rows[:, 0] == view, 1].float() for rows in (rows_before, rows_after))
            assert (after.min() - (before.min() * factor + shift)).abs() < 1.5 and (after.max() + 1 - ((before.max() + 1) * factor + shift)).abs() < 1.5
    assert (framed.scale / people.scale).std() > 0.01, "every object has its own frame"


def test_a_share_of_nobody_changes_nothing(body_model):
    people = next(render_set(draw_set("everyday", 2, 3, body_model), body_model))
    same = reframe(people, torch.Generator().manual_seed(1), share=0.0)
    assert all(torch.equal(getattr(same, name), getattr(people, name)) for name in ("images", "masks", "joints", "scale"))


def test_reframed_latents_have_a_file_of_their_own(tmp_path, body_model):
    vae = AutoencoderKL.from_pretrained(embedded_models() / "pipeline" / "vae").eval()
    shards, framed = (build_images("everyday", 3, 0, body_model, tmp_path, shard_size=2, reframe_share=share) for share in (0.0, 1.0))
    assert not set(shards) & set(framed)
    plain, wide = build_latents(vae, shards), build_latents(vae, framed)
    assert len(list(tmp_path.glob("latents-*"))) == 2 and not torch.equal(plain.latents, wide.latents) and (wide.scale <= plain.scale).all()
    assert torch.equal(wide.latents, build_latents(vae, framed).latents) and torch.equal(plain.latents, build_latents(vae, shards).latents)


def test_more_workers_render_the_same(tmp_path, body_model):
    "Shards and photos, bit for bit; two shards, so that there is work for two processes."
    shards = {workers: build_images("everyday", 3, 0, body_model, tmp_path / str(workers), shard_size=2, reframe_share=0.5, workers=workers) for workers in (1, 2)}
    assert [path.name for path in shards[1]] == [path.name for path in shards[2]] and digest_of(shards[1]) == digest_of(shards[2])


def test_photos_in_memory_are_those_on_disk(tmp_path, body_model):
    plan = plan_dataset(5, 3, "random", 0.4, body_model=body_model)
    photos, joints = render_photos(plan, body_model)
    for pair, photo, found in zip(PosePairs(build_dataset(plan, tmp_path)), photos, joints, strict=True):
        assert torch.equal((pair["image"] * 255).round().byte(), photo)
        assert torch.allclose(pair["framing"].apply(body_model.joints(pair["pose"])[:, list(SKELETON_JOINTS)])[0], found, atol=1e-6)


def test_people_are_rendered_in_any_lean():
    "Pictures and joints turn together; the pose inside the body stays an everyday one."
    body = load_body()
    upright, leaned = draw_set("everyday_leaned", 24, 1, body), draw_set("everyday_leaned", 12, 1, body, start=12)
    assert torch.equal(upright[slice(12, 24)].poses.axis_angles, leaned.poses.axis_angles), "the same people wherever a shard begins"
    spine = body.joints(upright.poses)
    up = torch.nn.functional.normalize(spine[:, 12] - spine[:, 0], dim=-1)
    assert (up[:, 1] < -0.3).any() and (up[:, 1].abs() < 0.3).any() and (up[:, 1] > 0.3).any()
    assert not torch.equal(upright.poses.axis_angles[:, 1:], draw_set("everyday", 24, 1, body).poses.axis_angles[:, 1:]), "people of their own"
    (images,) = render_set(upright[slice(0, 4)], body, batch_size=4)
    for mask, joints in zip(images.masks[:, 0], images.joints, strict=True):
        rows, columns = ((0.5 - joints[:, 1]) * 64).long().clamp(0, 63), ((0.5 + joints[:, 0]) * 64).long().clamp(0, 63)
        assert mask[rows, columns].mean() > 0.8, "joints lie on the figure"


# --- what kept results were made from --------------------------------------------------------------------------------------------------


def small_plan(body_model):
    return plan_dataset(4, 9, "random", body_model=body_model)


def test_pairs_know_what_they_were_made_from(tmp_path, body_model):
    "The same settings, but other poses or another painter; a build that was killed goes on only as it began."
    plan, animator = small_plan(body_model), load_animator("render", body_model)
    build_dataset(plan, tmp_path / "pairs", animator, shard_size=2)
    before = (tmp_path / "pairs" / "data" / "train-00001-of-00002.parquet").read_bytes()
    (tmp_path / "pairs" / "data" / "train-00001-of-00002.parquet").unlink()
    other = small_plan(body_model)
    other.drawn.poses.transl[0, 0] += 0.5
    with pytest.raises(ValueError, match="this folder of pairs was made from other inputs: poses"):
        build_dataset(other, tmp_path / "pairs", animator, shard_size=2)
    with pytest.raises(ValueError, match="this folder of pairs was made from other inputs: animator"):
        build_dataset(plan, tmp_path / "pairs", load_animator("render", body_model, image_size=32), shard_size=2)
    with pytest.raises(ValueError, match="built from another plan"):
        build_dataset(plan_dataset(6, 9, "random", body_model=body_model), tmp_path / "pairs", animator, shard_size=2)
    assert not (tmp_path / "pairs" / "data" / "train-00001-of-00002.parquet").exists(), "a refusal writes nothing"
    build_dataset(plan, tmp_path / "pairs", animator, shard_size=2)
    assert (tmp_path / "pairs" / "data" / "train-00001-of-00002.parquet").read_bytes() == before
    (tmp_path / "pairs" / "inputs.json").unlink()
    with pytest.raises(ValueError, match="missing beside shards of pairs"):
        build_dataset(plan, tmp_path / "pairs", animator, shard_size=2)


def test_a_second_process_does_not_build_in_the_folder(tmp_path, body_model):
    with alone(tmp_path / "data", "builds pairs", "train-00000-of-00001"), pytest.raises(ValueError, match=r"another process builds pairs in this folder \(train-00000-of-00001\)"):
        build_dataset(small_plan(body_model), tmp_path, load_animator("render", body_model))
    (tmp_path / "data" / ".train-00000-of-00001.parquet.abc.partial").write_bytes(b"left by a kill")
    (tmp_path / ".dataset.json.abc.partial").write_bytes(b"left by a kill")
    build_dataset(small_plan(body_model), tmp_path, load_animator("render", body_model))
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.parametrize(("column", "value", "sentence"), [("betas", [float("nan")] * 10, "column 'betas'"), ("axis_angles", [90.0] * 165, "look like degrees"), ("frame_scale", 0.0, "column 'frame_scale'"), ("transl", [float("inf")] * 3, "column 'transl'"), ("image", {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": None}, "pair 0: cannot be read as a whole PNG")])
def test_wrong_values_in_pairs(column, value, sentence, built, tmp_path):
    shutil.copytree(built[1], tmp_path / "copy")
    path = sorted((tmp_path / "copy").glob("data/*.parquet"))[0]
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(ValueError, match=sentence) as error:
        PosePairs(tmp_path / "copy")[0]
    assert str(tmp_path / "copy") in str(error.value)


def test_rendered_people_belong_to_their_body(tmp_path, body_model):
    "Another body, another folder's shard of the same name: neither is taken for the first."
    first = build_images("everyday", 2, 0, body_model, tmp_path)
    other = load_body()
    other.model.v_template[:, 1] *= 1.01
    assert build_images("everyday", 2, 0, other, tmp_path) != first and len(list(tmp_path.glob("*.safetensors"))) == 2


def test_kept_latents_belong_to_the_shards_content(tmp_path, body_model):
    vae = AutoencoderKL.from_pretrained(embedded_models() / "pipeline" / "vae").eval()
    (shard,) = build_images("everyday", 2, 0, body_model, tmp_path)
    before = build_latents(vae, [shard])
    stored = load_file(shard)
    save_file(stored | {"images": stored["images"].flip(-1).contiguous()}, shard)
    after = build_latents(vae, [shard])
    assert not torch.equal(before.latents, after.latents) and len(list(tmp_path.glob("latents-*"))) == 2
    for kept in tmp_path.glob("latents-*"):
        kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match="latents-.*: cannot be read as kept latents; delete it"):
        build_latents(vae, [shard])
