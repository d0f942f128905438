"""From any picture to the model's frame (drpose.pictures.photos): PSHuman's numbers, turned and odd files, and one clear sentence for what cannot work."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from drpose.pictures.photos import (CLIPImageProcessor, ClipDescriber, cut_out_person, frame_person, open_photo,
                                    person_mask, prepare_photo)

FIXTURE = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "pshuman" / "pshuman_preproc_cam.safetensors"


def somebody(width=60, height=90) -> Image.Image:
    "A red figure with a blue left half on a transparent picture."
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[10:-10, 15:-15] = (200, 30, 30, 255)
    pixels[10:-10, 15 : width // 2] = (30, 30, 200, 255)
    return Image.fromarray(pixels)


@pytest.mark.skipif(not FIXTURE.is_file(), reason=f"reference data {FIXTURE} is not on this machine")
@pytest.mark.parametrize("crop_size", [740, 720])
def test_equals_pshuman_to_the_grey_level(crop_size):
    data = load_file(FIXTURE)
    framed = frame_person(Image.fromarray(data["pre.rgba"].numpy()), crop_size)
    for name, found in (("body", framed.body), ("face", framed.face)):
        assert torch.equal((found * 255).round().byte(), data[f"pre.{name}_{crop_size}"]), name


def test_exif_turns_the_picture():
    upright = somebody().convert("RGB")
    for code, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)):
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[0x0112] = code
        upright.transpose(turn).save(buffer, "PNG", exif=exif)
        assert np.array_equal(np.asarray(open_photo(Image.open(buffer))), np.asarray(upright)), code


def test_every_depth_and_mode_gives_the_same_person(tmp_path):
    grey = somebody().convert("LA")
    levels = np.asarray(grey)[..., 0]
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I")
    for picture in (open_photo(tmp_path / "deep.png"), open_photo(Image.fromarray(levels)), open_photo(Image.fromarray(levels / np.float32(255)))):
        assert picture.mode == "RGB" and np.abs(np.asarray(picture)[..., 1].astype(int) - levels).max() <= 1
    assert open_photo(grey).mode == "RGBA" and np.array_equal(np.asarray(open_photo(grey))[..., 3], np.asarray(grey)[..., 1])
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 250, 10, 10])
    palette.putpixel((3, 3), 1)
    palette.info["transparency"] = 0
    alpha = np.asarray(open_photo(palette))[..., 3]
    assert alpha[3, 3] == 255 and alpha[0, 0] == 0
    assert open_photo(Image.new("CMYK", (4, 4))).mode == "RGB"


@pytest.mark.parametrize("size", [96, 192])
def test_the_longer_side_becomes_crop_size_in_the_middle(size):
    framed = frame_person(somebody(), crop_size=size // 2, frame=size)
    assert framed.body.shape == framed.face.shape == (3, size, size) and framed.alpha.shape == (size, size)
    rows, columns = torch.nonzero(framed.alpha > 0.5).unbind(-1)
    assert abs(int(rows.max() - rows.min() + 1) - size // 2) <= 1 and abs(int(rows.min() + rows.max()) - (size - 1)) <= 1
    assert abs(int(columns.min() + columns.max()) - (size - 1)) <= 2
    middle = size // 2
    assert framed.body[2, middle, middle - 4] > 0.7 > 0.3 > framed.body[0, middle, middle - 4], "blue stays on the left of the picture"
    assert (framed.body[:, 0, 0] == 1).all(), "white around it"


def test_the_face_window_is_the_top_middle_ninth_enlarged():
    framed = frame_person(somebody(), crop_size=90, frame=96)
    window = torch.nn.functional.interpolate(framed.body[None, :, :32, 32:64], size=(96, 96), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    assert (framed.face - window).abs().mean() < 0.02 and (framed.face - framed.body).abs().mean() > 0.1


def test_a_framed_photo_is_left_where_it_is():
    photo = somebody(90, 90)
    framed = frame_person(photo, crop_size=None, frame=90)
    opaque = framed.alpha == 1
    assert torch.equal((framed.body[0] * 255).round().byte()[opaque], torch.from_numpy(np.array(photo)[..., 0])[opaque])


def test_twenty_megapixels_are_no_trouble():
    big = somebody().resize((4000, 5000), Image.Resampling.NEAREST)
    small = frame_person(somebody(480, 600), 80, 96)
    assert prepare_photo(big, 80, 96).body.shape == small.body.shape


def test_matting_is_asked_only_without_alpha(monkeypatch):
    asked = []

    def remove(photo):
        asked.append(photo.mode)
        return somebody(*photo.size)

    monkeypatch.setitem(sys.modules, "rembg", types.SimpleNamespace(remove=remove))
    assert cut_out_person(somebody()).mode == "RGBA" and not asked
    assert np.asarray(cut_out_person(somebody().convert("RGB")))[..., 3].any() and asked == ["RGB"]
    assert cut_out_person(Image.new("RGBA", (60, 90), (1, 2, 3, 255))).mode == "RGBA" and len(asked) == 2, "an alpha of 255 everywhere says nothing"


@pytest.mark.parametrize("alpha", [254, 255, 243])
def test_an_alpha_that_cuts_nobody_out_is_none(alpha, monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "rembg", types.SimpleNamespace(remove=lambda photo: asked.append(photo.mode) or somebody(*photo.size)))
    photo = Image.new("RGBA", (60, 90), (1, 2, 3, alpha))
    photo.putpixel((0, 0), (0, 0, 0, 0))
    assert np.asarray(cut_out_person(photo))[..., 3].min() == 0 and asked == ["RGB"]


def rows_of(picture: np.ndarray) -> tuple[int, float]:
    "Height and middle of the framed person, pixels of the frame."
    rows = np.flatnonzero((prepare_photo(Image.fromarray(picture, "RGBA")).alpha.numpy() > 0.5).any(1))
    return len(rows), (rows[0] + rows[-1]) / 2


DIRT = {
    "specks of alpha 1 and 2": lambda picture: (picture.__setitem__((398, 298, 3), 2), picture.__setitem__((1, 150, 3), 1)),
    "a visible speck": lambda picture: picture.__setitem__((slice(2, 8), slice(2, 8)), 255),
    "a haze": lambda picture: np.maximum(picture[..., 3], 2, out=picture[..., 3]),
    "a haze that fades": lambda picture: np.maximum(picture[..., 3], np.linspace(0, 11, 400).astype(np.uint8)[:, None], out=picture[..., 3]),
    "a line at the border": lambda picture: picture.__setitem__((399, slice(None), 3), 3),
}


@pytest.mark.parametrize("name", DIRT)
def test_dirt_in_the_alpha_moves_nobody(name):
    picture = np.zeros((400, 300, 4), np.uint8)
    picture[100:300, 110:190] = (200, 40, 40, 255)
    clean = rows_of(picture)
    dirty = picture.copy()
    DIRT[name](dirty)
    assert not np.array_equal(picture, dirty)
    found = rows_of(dirty)
    assert abs(found[0] - clean[0]) <= 2 and abs(found[1] - clean[1]) <= 1


def test_a_clean_outline_counts_to_its_last_pixel():
    "Soft edges, and parts that hang together by nothing (a hand behind a pole), as upstream takes them."
    y, x = np.mgrid[:400, :300]
    soft = np.clip(255 * (1.2 - np.hypot((x - 150) / 60, (y - 200) / 110)) * 4, 0, 255).astype(np.uint8)
    soft[180:200, 30:60] = 255
    assert 0 < soft[soft > 0].min() < 13 and np.array_equal(person_mask(soft), soft > 0)


def test_a_person_cut_off_by_the_picture_is_warned_of(recwarn):
    picture = np.zeros((400, 300, 4), np.uint8)
    picture[100:300, 110:190] = (200, 40, 40, 255)
    prepare_photo(Image.fromarray(picture, "RGBA"))
    assert not recwarn.list
    picture[300:, 110:190] = (200, 40, 40, 255)
    with pytest.warns(UserWarning, match="reaches the lower edge of the picture"):
        framed = prepare_photo(Image.fromarray(picture, "RGBA"))
    rows = np.flatnonzero((framed.alpha.numpy() > 0.5).any(1))
    assert 735 <= len(rows) <= 741, "framed by what there is"


def test_a_postscript_is_no_photo(tmp_path):
    "Pillow would start another program for it."
    with pytest.raises(ValueError, match="cannot be read as a photo"):
        open_photo(written(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"))


def written(folder: Path, content: bytes) -> Path:
    path = folder / "photo.png"
    path.write_bytes(content)
    return path


BAD = {
    "no such file": (lambda folder: folder / "none.png", FileNotFoundError, r"none\.png: no such file"),
    "no picture": (lambda folder: written(folder, b"hello"), ValueError, r"photo\.png: cannot be read as a photo"),
    "a folder": (lambda folder: folder, ValueError, "is a folder, needed a photo"),
    "cut short": (lambda folder: written(folder, png_bytes(somebody())[:120]), ValueError, r"photo\.png: "),
    "empty mask": (lambda folder: Image.new("RGBA", (64, 64)), ValueError, "empty mask"),
    "one pixel": (lambda folder: Image.new("RGBA", (1, 1), (9, 9, 9, 128)), ValueError, "1 x 1 pixels, needed at least 16"),
    "a speck": (lambda folder: somebody(40, 26), ValueError, "needed at least 16"),
    "not a number": (lambda folder: Image.fromarray(np.full((4, 4), np.nan, np.float32)), ValueError, "not all finite"),
}


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", BAD)
def test_bad_photos_get_one_sentence(name, tmp_path):
    make, kind, sentence = BAD[name]
    with pytest.raises(kind, match=sentence) as error:
        prepare_photo(make(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("rembg") is not None, reason="rembg is installed here")
def test_a_missing_matting_network_is_named():
    with pytest.raises(ImportError, match=r"drpose\[matting\]"):
        prepare_photo(somebody().convert("RGB"))


@pytest.mark.parametrize(
    "settings, sentence",
    [(dict(crop_size=0), "crop_size is 0"), (dict(crop_size=800), "crop_size is 800.*768"), (dict(crop_size=None), "60 x 90 pixels.*768 x 768")],
)
def test_bad_frames_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        frame_person(somebody(), **settings)


def test_a_photo_without_alpha_is_not_framed():
    with pytest.raises(ValueError, match="mode RGB, needed RGBA"):
        frame_person(somebody().convert("RGB"))


PIPE = FIXTURE.with_name("pshuman_pipe_tiny.safetensors")


@pytest.mark.skipif(not PIPE.is_file(), reason=f"reference data {PIPE} is not on this machine")
def test_labels_equal_pshuman():
    data, configs = load_file(PIPE), json.loads(PIPE.with_suffix(".json").read_text())["configs"]
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"])).eval()
    encoder.load_state_dict({key[len("w.image_encoder.") :]: value for key, value in data.items() if key.startswith("w.image_encoder.")})
    normalizer = StableUnCLIPImageNormalizer(16)
    normalizer.load_state_dict({key: data[f"w.image_normalizer.{key}"] for key in ("mean", "std")})
    describer = ClipDescriber(encoder, CLIPImageProcessor(**configs["feature_extractor"]), normalizer, DDPMScheduler.from_config(configs["image_noising_scheduler"]))
    with torch.no_grad():
        labels = describer.labels(describer.embed(data["in.imgs_in"]), data["noise.clip_embed"], 0)
    known = data["mid.image_embeds"].unflatten(0, (2, 2, 7))  # domain, (without, with), view
    assert (labels.unflatten(0, (2, 7)) - known[:, 1]).abs().max() < 1e-4 and known[:, 0].abs().max() == 0


@pytest.mark.parametrize("level", [-1, 1000, 0.5, True])
def test_a_noise_level_has_to_be_in_the_schedule(level):
    describer = ClipDescriber(None, None, StableUnCLIPImageNormalizer(4), DDPMScheduler())
    with pytest.raises(ValueError, match=r"noise_level is .*0 to 999"):
        describer.labels(torch.zeros(2, 4), torch.zeros(2, 4), level)
