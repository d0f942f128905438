"""The viewers of chapter `explorers` without a browser: a photo becomes a person, pairs are chosen and shown, and wrong input becomes one sentence. `make browser-test` looks at them in JupyterLab."""

import base64
import html
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from drpose.ground.files import write_json
from drpose.people.bodies import load_body
from drpose.people.clips import embedded_clips
from drpose.pictures.cameras import ViewRig
from drpose.pictures.dressed_people import draw_crowd, photograph
from drpose.pictures.mesh_files import read_scan
from drpose.pairs.animators import RenderAnimator
from drpose.pairs.planning import plan_clips
from drpose.pairs.dataset import build_dataset
from drpose.posttraining.explorers import PairExplorer, PairPages, PhotoToMesh


def said(viewer) -> str:
    return html.unescape(viewer.message.value).removeprefix("<b>").removesuffix("</b>")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    "A person of the tiny world, cut out."
    body_model, pose = load_body(), embedded_clips()["wave"].poses[20:21]
    views = photograph(body_model, pose, draw_crowd(body_model, [5]), ViewRig((0.0,)), 128).views
    picture = torch.cat([views.colors[0, 0], views.masks[0, 0][None]]).clamp(0, 1)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy(), "RGBA").save(path)
    return path


def uploaded(viewer, name: str, content: bytes) -> None:
    "As the browser sends it."
    viewer.upload.set_state({"value": [{"name": name, "type": "image/png", "size": len(content), "content": memoryview(content), "last_modified": 0}]})


def test_an_uploaded_photo_becomes_a_person_to_download(photo, tmp_path):
    viewer = PhotoToMesh()
    viewer.texture.value = 0
    uploaded(viewer, "me.png", photo.read_bytes())
    shown = viewer.picture.value
    assert said(viewer) == "" and shown, "the photo is shown as soon as it is there"
    parts = []
    viewer.doing.observe(lambda change: parts.append(change["new"]), names="value")
    viewer.button.click()
    assert said(viewer) == "" and viewer.made is not None and viewer.picture.value != shown
    assert parts == ["reading the models", "drawing the person from all sides, draw 1 of 1", "carving a surface and painting it", ""]
    assert viewer.bar.layout.display == "none" and not viewer.button.disabled
    mesh = viewer.scene.children[0].data[0]
    assert len(mesh.vertexcolor) == len(mesh.x) > 1000 and len(set(mesh.vertexcolor)) > 20
    assert 1.2 < np.ptp(mesh.y) < 2.4, "metres"
    path = tmp_path / "person.glb"
    path.write_bytes(base64.b64decode(viewer.link.value.split("base64,")[1].split('"')[0]))
    assert len(read_scan(path).faces) == len(viewer.made.person.scan.faces) and 'download="person.glb"' in viewer.link.value
    uploaded(viewer, "notes.txt", b"no picture")
    assert said(viewer).startswith("notes.txt: cannot be read as a photo") and viewer.made is None
    assert not viewer.scene.children and not viewer.link.value and not viewer.picture.value, "nothing old is left"


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda folder: "", "no photo is chosen, needed an upload or the name of a file"),
    (lambda folder: folder / "none.png", "none.png: no such file, needed a photo"),
    (lambda folder: (folder / "broken.png").write_bytes(b"no picture") and folder / "broken.png", "broken.png: cannot be read as a photo"),
    (lambda folder: Image.new("RGBA", (64, 64)).save(folder / "nobody.png") or folder / "nobody.png", "so there is no person to show"),
    (lambda folder: folder, "needed a photo"),
])
def test_a_photo_that_is_none_is_one_sentence(make, sentence, tmp_path):
    viewer = PhotoToMesh(make(tmp_path))
    viewer.button.click()
    assert sentence in said(viewer) and "\n" not in said(viewer)
    assert viewer.made is None and not viewer.button.disabled and viewer.bar.layout.display == "none" and viewer.doing.value == ""


def test_models_that_are_not_there_are_one_sentence(photo, tmp_path):
    viewer = PhotoToMesh(photo, models=tmp_path / "none")
    viewer.button.click()
    assert "none" in said(viewer) and "\n" not in said(viewer)


LIMITS = {"overlap": 0.8, "blur": 0.32, "border": 0.01}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    "What the job build_dataset leaves: pairs, some of them blurred, and limits."
    body_model, folder = load_body(), tmp_path_factory.mktemp("job")

    class Blurs(RenderAnimator):
        def animate(self, poses, person):
            images, framing = super().animate(poses, person)
            if person[0] % 3 == 0:
                images = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (2, 2, 2, 2), value=1.0), 5, 1)
            return images, framing

    build_dataset(plan_clips(embedded_clips(), anchors=8, length=3, seed=2, body_model=body_model, selection="shares"), folder / "pairs", Blurs(body_model), checks=True)
    write_json(folder / "limits.json", LIMITS)
    return folder


def test_pairs_are_chosen_by_difficulty_verdict_and_number(job):
    pages = PairPages(job)
    every, blur, overlap = set(range(24)), pages.scores["blur"], pages.scores["overlap"]
    assert set(pages.chosen()) == every == set(PairPages(job / "pairs").chosen())
    kinds = [set(pages.chosen(kind)) for kind in ("easy", "medium", "hard")]
    assert set.union(*kinds) == every and sum(map(len, kinds)) == 24
    refused, blurred = set(pages.chosen(verdict="refused")), set(pages.chosen(verdict="sharpness"))
    assert blurred and blurred == {index for index in every if blur[index] > LIMITS["blur"]} <= refused
    assert set(pages.chosen(verdict="passes")) == every - refused
    assert set(pages.chosen("hard", "refused")) == kinds[2] & refused
    worst = pages.chosen(number="overlap")
    assert worst[0] == overlap.argmin() and pages.chosen(number="blur")[0] == blur.argmax()
    assert set(pages.chosen(number="overlap", bounds=(0.82, 0.85))) == {index for index in every if 0.82 <= overlap[index] <= 0.85}
    assert pages.measured() == ["overlap", "uncovered", "second_figure", "margin", "border", "blur", "identity"], "no detector was there"


def test_the_skeleton_lies_on_the_person(job):
    pages = PairPages(job)
    for index in pages.chosen(verdict="passes"):
        columns, rows = (pages.points[index] / 170 * 64).astype(int).clip(0, 63).T
        assert (pages.pairs[index]["image"].amin(0)[rows, columns] < 0.97).float().mean() > 0.8
    picture = np.asarray(pages.picture(pages.chosen(verdict="refused")[:1]))
    assert tuple(picture[22, 8]) == (192, 57, 43), "a refused pair has a red frame"


def test_moving_the_filters_moves_the_page(job):
    viewer = PairExplorer(job)
    assert said(viewer) == "" and viewer.words.value == "24 of 24 pairs" and viewer.page.max == 2 and viewer.bounds.disabled
    first = viewer.picture.value
    viewer.page.value = 2
    assert viewer.picture.value != first
    viewer.verdict.value = "sharpness"
    assert viewer.page.value == 1 and viewer.words.value == f"{len(viewer.pages.chosen(verdict='sharpness'))} of 24 pairs"
    viewer.verdict.value, viewer.number.value = "all", "blur"
    assert viewer.words.value.startswith("24 of 24 pairs; blur from 0.") and not viewer.bounds.disabled
    viewer.bounds.value = (LIMITS["blur"], viewer.bounds.max)
    assert viewer.words.value.startswith(f"{int((viewer.pages.scores['blur'] >= LIMITS['blur']).sum())} of 24 pairs; blur from 0.320")
    viewer.difficulty.value, viewer.verdict.value = "easy", "passes"
    assert viewer.words.value.startswith("0 of 24 pairs") and viewer.picture.value == b"", "blurred, but passes: nobody"


def test_without_limits_nothing_is_refused_and_it_says_so(job, tmp_path):
    shutil.copytree(job / "pairs", tmp_path / "pairs")
    viewer = PairExplorer(tmp_path / "pairs")
    assert "there is no limits.json" in viewer.words.value and not viewer.pages.refused.any() and viewer.picture.value


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda folder: None, "no such folder, needed one that the job build_dataset has written"),
    (lambda folder: folder.mkdir(), "dataset.json: no such file"),
    (lambda folder: (folder.mkdir(), (folder / "dataset.json").write_text("{")), "not valid JSON"),
    (lambda folder: (folder.mkdir(), (folder / "dataset.json").write_text('{"pairs": 3}')), "dataset.json promises 3 pairs"),
    (lambda folder: (folder.mkdir(), (folder / "dataset.json").write_text('{"pairs": 0}')), "holds no pairs, needed at least one"),
])
def test_a_folder_without_pairs_is_one_sentence(make, sentence, tmp_path):
    make(tmp_path / "pairs")
    viewer = PairExplorer(tmp_path / "pairs")
    assert sentence in said(viewer) and "\n" not in said(viewer) and viewer.picture.value == b""
    viewer.verdict.value = viewer.verdict.value
    viewer.page.value = 1  # nothing is open: nothing happens


@pytest.mark.parametrize("limits", [{"overlapp": 0.5}, {"overlap": "high"}, {"blur": float("nan")}])
def test_limits_that_are_none_are_one_sentence(limits, job, tmp_path):
    shutil.copytree(job, tmp_path / "job")
    (tmp_path / "job" / "limits.json").write_text(json.dumps(limits))
    viewer = PairExplorer(tmp_path / "job")
    assert "limits.json" in said(viewer) and "\n" not in said(viewer)
