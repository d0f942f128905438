"""Model folders and adapters (drpose.ground.model_files, multiview_unet): loaded whole or refused, by path or by hub name, and nothing beside the weights is opened."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from pathlib import Path

import pytest
import tiny_parts
import torch
from diffusers import AutoencoderKL
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from drpose.ground import model_files
from drpose.ground.model_files import embedded_models, load_model, weight_files
from drpose.multiview.unet import LORA_FILE, MultiViewUNet, load_lora, lora_targets, merged, save_lora
from drpose.multiview.pipeline import MultiViewPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_parts.pshuman_checkpoint(tmp_path_factory.mktemp("original") / "PSHuman")


@pytest.fixture
def checkpoint(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "PSHuman"))


@pytest.fixture
def pipeline_folder(tmp_path):
    return Path(shutil.copytree(embedded_models() / "pipeline", tmp_path / "pipeline"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path: Path, change) -> None:
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, metadata={"format": "pt"})


def weights(pipeline) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": tensor for part in ("unet", "vae", "image_encoder") if getattr(pipeline, part) is not None for name, tensor in getattr(pipeline, part).state_dict().items()}


# --- by hub name -----------------------------------------------------------------------------------------------------------------------


def hub_cache(root: Path, folder: Path, name: str = "someone/PSHuman_tiny") -> Path:
    "A hub cache as huggingface_hub leaves it, made by hand."
    place = root / ("models--" + name.replace("/", "--"))
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(REVISION)
    shutil.copytree(folder, place / "snapshots" / REVISION)
    return root


@pytest.fixture
def no_network(monkeypatch):
    "Whatever asks the network fails at once, as on a machine without one."
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *inputs, **options: pytest.fail("asked the network"))


@pytest.mark.parametrize("options", [{}, {"revision": "main"}, {"revision": REVISION}, {"torch_dtype": torch.bfloat16}])
def test_pshuman_by_its_hub_name(options, original, tmp_path, no_network):
    cache = hub_cache(tmp_path / "cache", original)
    found = MultiViewPipeline.from_pretrained("someone/PSHuman_tiny", cache_dir=cache, local_files_only=True, **options)
    wanted = MultiViewPipeline.from_pretrained(original, torch_dtype=options.get("torch_dtype"))
    assert weights(found).keys() == weights(wanted).keys() and all(torch.equal(tensor, weights(wanted)[name]) for name, tensor in weights(found).items())
    assert found.config.mirrored == wanted.config.mirrored and torch.equal(found.prompt_table.embeds, wanted.prompt_table.embeds)


def test_ours_and_its_parts_by_hub_name(tmp_path, no_network):
    cache = hub_cache(tmp_path / "cache", embedded_models() / "pipeline", "someone/ours")
    hub = {"cache_dir": cache, "local_files_only": True}
    assert MultiViewPipeline.from_pretrained("someone/ours", **hub).config.descriptor == "pooled"
    assert MultiViewUNet.from_pretrained("someone/ours", subfolder="unet", **hub).config.num_views == 4


def test_a_name_that_is_nowhere(tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as error:
        MultiViewPipeline.from_pretrained("someone/gone", cache_dir=tmp_path, local_files_only=True)
    assert str(error.value).startswith("someone/gone: no folder of this name in ") and "\n" not in str(error.value)


def test_a_path_never_reaches_the_network(checkpoint, no_network, monkeypatch):
    monkeypatch.setattr(model_files, "snapshot_download", lambda *inputs, **options: pytest.fail("asked the hub"))
    MultiViewPipeline.from_pretrained(checkpoint)
    for gone in (checkpoint / "gone", "./gone", "a/b/gone", "gone"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            MultiViewPipeline.from_pretrained(gone)


def test_half_precision_files_alone(checkpoint):
    wanted = MultiViewPipeline.from_pretrained(checkpoint, torch_dtype=torch.float16)
    for path in (checkpoint / "unet" / WEIGHTS, checkpoint / "vae" / WEIGHTS, checkpoint / "image_encoder" / "model.safetensors"):
        change_weights(path, lambda tensors: {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()})
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    with pytest.raises(ValueError, match="holds diffusion_pytorch_model.fp16.safetensors alone; to load it say variant='fp16'"):
        MultiViewPipeline.from_pretrained(checkpoint)
    found = MultiViewPipeline.from_pretrained(checkpoint, variant="fp16", torch_dtype=torch.float16)
    assert all(torch.equal(tensor, weights(wanted)[name]) for name, tensor in weights(found).items())


def test_unknown_options_are_named(pipeline_folder):
    with pytest.raises(ValueError, match="device_map is no option of from_pretrained; there are torch_dtype, variant"):
        MultiViewPipeline.from_pretrained(pipeline_folder, device_map="auto")
    with pytest.raises(ValueError, match="prompt_embeds is for folders in PSHuman's layout"):
        MultiViewPipeline.from_pretrained(pipeline_folder, prompt_embeds="somewhere")


# --- whole models or none --------------------------------------------------------------------------------------------------------------


def test_older_names_in_an_autoencoder(tmp_path):
    "Stable Diffusion's first files call its attention query, key, value, proj_attn, some as convolutions."
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=16)
    vae.save_pretrained(tmp_path)
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors):
        found = {}
        for name, tensor in tensors.items():
            for new, old in older.items():
                name, tensor = name.replace(new, old), tensor[..., None, None] if new in name and name.endswith("to_q.weight") else tensor
            found[name] = tensor
        return found

    change_weights(tmp_path / WEIGHTS, rename)
    assert any(".query." in name for name in load_file(tmp_path / WEIGHTS))
    again = load_model(AutoencoderKL, tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in vae.state_dict().items())


def drop(name):
    return lambda path: change_weights(path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})


def not_a_number(path):
    change_weights(path, lambda tensors: tensors | {min(tensors): torch.full_like(tensors[min(tensors)], torch.nan)})


HALF = {
    "an image encoder of other names": ("image_encoder/model.safetensors", lambda path: change_weights(path, lambda tensors: {f"other.{name}": tensor for name, tensor in tensors.items()}), "image_encoder: its weights lack .* tensors"),
    "an autoencoder that lacks one": (f"vae/{WEIGHTS}", drop("decoder.conv_out.bias"), "vae: its weights lack 1 of .* decoder.conv_out.bias"),
    "a U-Net that lacks one": (f"unet/{WEIGHTS}", drop("conv_in.bias"), "unet: its weights lack 1 of .* conv_in.bias"),
    "a normalizer that lacks one": (f"image_normalizer/{WEIGHTS}", drop("std"), "image_normalizer: its weights lack 1"),
    "NaN in the U-Net": (f"unet/{WEIGHTS}", not_a_number, "not finite"),
    "NaN in the autoencoder": (f"vae/{WEIGHTS}", not_a_number, "not finite"),
    "NaN in the image encoder": ("image_encoder/model.safetensors", not_a_number, "not finite"),
    "a scale that is no number": ("vae/config.json", lambda path: edit(path, scaling_factor=float("nan")), "'scaling_factor' is nan, needed a number above 0"),
    "a scale of 0": ("vae/config.json", lambda path: edit(path, scaling_factor=0.0), "'scaling_factor' is 0.0, needed a number above 0"),
    "a million layers": ("unet/config.json", lambda path: edit(path, layers_per_block=10**6), "'layers_per_block' is 1000000, needed"),
    "a million layers for the photo": ("image_encoder/config.json", lambda path: edit(path, num_hidden_layers=10**6), "'num_hidden_layers' is 1000000, needed"),
    "endless brackets": ("unet/config.json", lambda path: path.write_text("[" * 10**6), "config.json: not valid JSON"),
    "another image encoder": ("image_encoder/config.json", lambda path: edit(path, architectures=["CLIPModel"]), "describes CLIPModel, needed a CLIPVisionModelWithProjection"),
}


@pytest.mark.parametrize("name", HALF)
def test_half_models_are_refused(name, checkpoint):
    file, damage, sentence = HALF[name]
    damage(checkpoint / file)
    began = time.monotonic()
    with pytest.raises(ValueError, match=sentence) as error:
        MultiViewPipeline.from_pretrained(checkpoint)
    assert str(checkpoint) in str(error.value) and "\n" not in str(error.value) and time.monotonic() - began < 5


def test_a_skeleton_predictor_needs_a_width_of_its_maps(tmp_path):
    folder = Path(shutil.copytree(embedded_models() / "predictor", tmp_path / "reader"))
    edit(folder / "config.json", sigma=0)
    with pytest.raises(ValueError, match="'sigma' is 0, needed a number above 0"):
        tiny_parts.SkeletonPredictor.from_pretrained(folder)


# --- nothing beside the weights is opened ------------------------------------------------------------------------------------------------


def test_what_lies_beside_the_weights_does_not_count(checkpoint):
    "An index that points elsewhere, a config of an adapter, a second file, a pickle: neither followed nor taken for weights."
    wanted = weights(MultiViewPipeline.from_pretrained(checkpoint))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("image_encoder", "model")):
        folder = checkpoint / part
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / f"{stem}.safetensors"), "../../other.safetensors")}))
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../evil.bin"}}))
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else", "peft_type": "LORA", "megatron_core": "evil"}))
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R.")
        save_file({"zzz": torch.zeros(1)}, folder / "other.safetensors")
    found = weights(MultiViewPipeline.from_pretrained(checkpoint))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    change_weights(checkpoint / "unet" / WEIGHTS, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "conv_in.bias"})
    save_file({"conv_in.bias": torch.zeros(32)}, checkpoint / "unet" / "stray.safetensors")
    with pytest.raises(ValueError, match="its weights lack 1"):
        MultiViewPipeline.from_pretrained(checkpoint)


def test_a_model_in_parts(tmp_path):
    unet = tiny_parts.unet()
    unet.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(weight_files(tmp_path)) > 1
    assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in MultiViewUNet.from_pretrained(tmp_path).state_dict().items())
    index = tmp_path / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    for name in ("../away.safetensors", "/etc/passwd", "pytorch_model.bin", "gone.safetensors"):
        index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | {"conv_in.bias": name}}))
        with pytest.raises(ValueError, match="needed names of safetensors files beside it"):
            MultiViewUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["", "vae", "unet", "prompt_table"])
@pytest.mark.parametrize("name", ["diffusers.py", "pipeline.py"])
def test_programs_in_a_model_folder(part, name, pipeline_folder, monkeypatch):
    monkeypatch.chdir(pipeline_folder / part)
    (pipeline_folder / part / name).write_text("open('MARKER', 'w')")
    with pytest.raises(ValueError, match=f"{name}: is a program in the folder of a "):
        MultiViewPipeline.from_pretrained(pipeline_folder)
    assert not list(pipeline_folder.rglob("MARKER"))


@pytest.mark.parametrize(
    "entry",
    [["evil", "AutoencoderKL"], ["diffusers", "AutoencoderKLEvil"], ["diffusers.evil", "AutoencoderKL"], ["drpose.evil", "AutoencoderKL"], ["transformers", "AutoencoderKL"], "AutoencoderKL", ["diffusers"], [["diffusers"], "AutoencoderKL"], None],
)
def test_only_exact_classes_are_loaded(entry, pipeline_folder):
    edit(pipeline_folder / "model_index.json", vae=entry)
    with pytest.raises(ValueError, match="part 'vae' is .*, needed a AutoencoderKL"):
        MultiViewPipeline.from_pretrained(pipeline_folder)


def test_a_part_too_many(pipeline_folder):
    edit(pipeline_folder / "model_index.json", safety_checker=["os", "system"])
    with pytest.raises(ValueError, match="has a part 'safety_checker'"):
        MultiViewPipeline.from_pretrained(pipeline_folder)


# --- adapters --------------------------------------------------------------------------------------------------------------------------


def adapted(**changes) -> MultiViewUNet:
    torch.manual_seed(1)
    unet = tiny_parts.unet()
    unet.add_adapter(LoraConfig(**{"r": 2, "lora_alpha": 8, "target_modules": lora_targets(1), "init_lora_weights": False} | changes))
    return unet


def answer(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sample, labels = torch.randn(8, 8, 8, 8, generator=generator), torch.randn(8, 12, generator=generator)
    with torch.no_grad():
        return unet(sample, 500, torch.ones(8, 1, 8), labels).sample


def test_a_network_is_not_saved_with_its_adapter(tmp_path):
    pipeline = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=lora_targets(1), init_lora_weights=False))
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = pipeline(photo, 2, generator=torch.Generator().manual_seed(0)).images
    for part in (pipeline, pipeline.unet):
        with pytest.raises(ValueError, match="not saved, the .* carries the adapter default"):
            part.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    pipeline.unet = merged(pipeline.unet)
    pipeline.save_pretrained(tmp_path / "mine")
    again = MultiViewPipeline.from_pretrained(tmp_path / "mine")(photo, 2, generator=torch.Generator().manual_seed(0)).images
    assert torch.allclose(again, wanted, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"exclude_modules": r".*attn2\.to_v"}, {"target_modules": ["to_q", "attn1.to_k"]}, {"target_modules": ["to_q", "to_v"], "exclude_modules": ["attn2.to_q"]}, {"lora_dropout": 0.5}])
def test_adapters_come_back_exactly(changes, tmp_path):
    unet = adapted(**changes).eval()
    save_lora(unet, tmp_path)
    fresh = tiny_parts.unet()
    load_lora(fresh, tmp_path)
    assert torch.equal(answer(fresh.eval()), answer(unet))
    names = [{name for name in network.state_dict() if "lora_" in name} for network in (unet, fresh)]
    assert names[0] == names[1] and names[0]


@pytest.mark.parametrize(("changes", "name"), [({"rank_pattern": {"to_q": 4}}, "rank_pattern"), ({"alpha_pattern": {"to_q": 1}}, "alpha_pattern"), ({"use_dora": True}, "use_dora"), ({"use_rslora": True}, "use_rslora"), ({"modules_to_save": ["conv_in"]}, "modules_to_save"), ({"bias": "lora_only"}, "bias")])
def test_other_adapters_are_refused_at_saving(changes, name, tmp_path):
    with pytest.raises(ValueError, match=f"has {name} = .*, needed plain LoRA"):
        save_lora(adapted(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def rewrite(folder: Path, **changes) -> None:
    path = folder / LORA_FILE
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    save_file(load_file(path), path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(settings | changes)})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank_pattern": {"to_q": 4}}, "rank_pattern"), ({"use_dora": True}, "use_dora"), ({"target_modules": "(.*)*(.*)*x"}, "at most one star"), ({"target_modules": "(a+)+b"}, "at most one star"), ({"target_modules": "("}, "no pattern"),
        ({"target_modules": 3}, "needed names"), ({"r": 0}, "rank is 0"), ({"r": 10**9}, "rank is 1000000000"), ({"r": True}, "rank is True"), ({"lora_alpha": float("nan")}, "alpha is nan"), ({"lora_alpha": "8"}, "alpha is 8"), ({"lora_alpha": 0}, "alpha is 0"),
        ({"exclude_modules": "(.*)*(.*)*x"}, "at most one star"),
    ],
)  # fmt: skip
def test_hostile_settings_of_an_adapter(changes, sentence, tmp_path):
    save_lora(adapted(), tmp_path)
    rewrite(tmp_path, **changes)
    began = time.monotonic()
    with pytest.raises(ValueError, match=sentence) as error:
        load_lora(tiny_parts.unet(), tmp_path)
    assert LORA_FILE in str(error.value) and "\n" not in str(error.value) and time.monotonic() - began < 5


def test_an_adapter_imports_nothing(tmp_path, monkeypatch):
    "peft would import the module that an adapter names as its megatron."
    save_lora(adapted(), tmp_path)
    rewrite(tmp_path, megatron_config={"a": 1}, megatron_core="evil_module", auto_mapping={"base_model_class": "x", "parent_library": "evil_module"}, task_type="evil", loftq_config={"a": 1}, init_lora_weights="loftq")
    (tmp_path / "evil_module.py").write_text("open('MARKER', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_lora(tiny_parts.unet(), tmp_path)
    assert not (tmp_path / "MARKER").exists()


def test_not_a_number_in_an_adapter(tmp_path):
    save_lora(adapted(), tmp_path)
    tensors = load_file(tmp_path / LORA_FILE)
    from safetensors import safe_open

    with safe_open(tmp_path / LORA_FILE, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors | {min(tensors): torch.full_like(tensors[min(tensors)], torch.nan)}, tmp_path / LORA_FILE, metadata=metadata)
    with pytest.raises(ValueError, match="not finite"):
        load_lora(tiny_parts.unet(), tmp_path)


def test_a_second_adapter_warns_of_nothing(tmp_path, capfd):
    save_lora(adapted(), tmp_path / "a")
    save_lora(adapted(target_modules=["to_q"]), tmp_path / "b")
    unet = tiny_parts.unet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lora(unet, tmp_path / "a", "first")
        alone = answer(unet)
        load_lora(unet, tmp_path / "b", "second")
    captured = capfd.readouterr()
    assert "missing" not in (captured.out + captured.err).lower()
    unet.set_adapters(["first"])
    assert torch.equal(answer(unet), alone)
