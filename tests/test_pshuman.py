"""A checkpoint in PSHuman's own layout (drpose.multiview.pshuman): loaded, run, saved, tuned; and one clear sentence for each way it can be broken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_parts
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from drpose.multiview.unet import MultiViewUNet, load_lora, lora_targets, save_lora
from drpose.multiview.pshuman import PROMPT_FILES, from_stable_unclip, is_pshuman, load_pshuman, pshuman_prompts
from drpose.multiview.pipeline import MultiViewPipeline


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return tiny_parts.pshuman_checkpoint(tmp_path / "PSHuman")


def quiet(pipeline: MultiViewPipeline) -> MultiViewPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photo() -> Image.Image:
    pixels = np.zeros((90, 70, 4), np.uint8)
    pixels[9:80, 20:50] = (200, 90, 40, 255)
    return Image.fromarray(pixels)


def drawn(pipeline: MultiViewPipeline, **settings) -> torch.Tensor:
    return pipeline(photo(), 2, guidance_scale=3.0, eta=1.0, crop_size=46, generator=torch.Generator().manual_seed(1), **settings).images


def test_loads_runs_saves_and_reloads_identically(checkpoint, tmp_path):
    pipeline = quiet(MultiViewPipeline.from_pretrained(checkpoint))
    assert pipeline.config.azimuths == [0, 45, 90, 180, 270, 315] and pipeline.config.mirrored == [False, False, False, True, True, False]
    assert pipeline.scheduler.config.prediction_type == "v_prediction" and pipeline.prompt_table.embeds.shape == (2, 7, 5, 24)
    images = drawn(pipeline)
    assert images.shape == (1, 2, 6, 3, 48, 48) and images.isfinite().all()
    pipeline.save_pretrained(tmp_path / "ours")
    assert not is_pshuman(tmp_path / "ours") and not list((tmp_path / "ours").rglob("*.pt"))
    again = quiet(MultiViewPipeline.from_pretrained(tmp_path / "ours"))
    assert torch.equal(drawn(again), images)


def test_prompts_keep_their_domain(checkpoint):
    table = pshuman_prompts(checkpoint)
    for domain, name in enumerate(("normal_embeds.pt", "clr_embeds.pt")):
        assert torch.equal(table[domain], torch.load(checkpoint / name, weights_only=True).float())


def test_prompts_from_another_folder(checkpoint, tmp_path):
    elsewhere = tmp_path / "embeds"
    elsewhere.mkdir()
    for name in PROMPT_FILES:
        (checkpoint / name).rename(elsewhere / name)
    assert MultiViewPipeline.from_pretrained(checkpoint, prompt_embeds=elsewhere).prompt_table.embeds.abs().max() > 0


def test_prompts_from_the_text_encoder(checkpoint):
    for name in PROMPT_FILES:
        (checkpoint / name).unlink()
    letters = [chr(code) for code in range(33, 127)]
    words = {token: number for number, token in enumerate([*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"])}
    (checkpoint / "vocab.json").write_text(json.dumps(words))
    (checkpoint / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(checkpoint / "vocab.json"), str(checkpoint / "merges.txt"), model_max_length=77).save_pretrained(checkpoint / "tokenizer")
    end = words["<|endoftext|>"]
    config = CLIPTextConfig(vocab_size=len(words), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end)
    CLIPTextModel(config).save_pretrained(checkpoint / "text_encoder")
    table = pshuman_prompts(checkpoint)
    assert table.shape == (2, 7, 77, 24)
    flat = table.flatten(0, 1).flatten(1)
    assert (torch.cdist(flat, flat) + torch.eye(14) * 9 > 1e-3).all(), "fourteen different sentences"
    assert torch.equal(table, pshuman_prompts(checkpoint))


def test_a_lora_is_accepted_and_changes_the_pictures(checkpoint, tmp_path):
    pipeline = quiet(MultiViewPipeline.from_pretrained(checkpoint))
    before = drawn(pipeline)
    tuned = quiet(MultiViewPipeline.from_pretrained(checkpoint))
    tuned.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=lora_targets(5), init_lora_weights=False))
    save_lora(tuned.unet, tmp_path / "lora")
    load_lora(pipeline.unet, tmp_path / "lora")
    after = drawn(pipeline)
    assert (after - before).abs().max() > 1e-3 and torch.allclose(after, drawn(tuned), atol=1e-5)


def with_body_input(checkpoint: Path) -> MultiViewPipeline:
    "The same checkpoint for twelve input channels: what it knows of the first eight stays, the others are random."
    pipeline = quiet(MultiViewPipeline.from_pretrained(checkpoint))
    wide = MultiViewUNet.from_config(dict(pipeline.unet.config) | {"in_channels": 12})
    weights = pipeline.unet.state_dict()
    fresh = torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(3)) * 0.1
    wide.load_state_dict(weights | {"conv_in.weight": torch.cat([weights["conv_in.weight"], fresh], 1)})
    return quiet(MultiViewPipeline(**pipeline.components | {"unet": wide.eval()}, **{name: pipeline.config[name] for name in ("azimuths", "mirrored", "descriptor")}))


def test_body_renders_reach_their_own_view_mirrored_where_it_is(checkpoint, tmp_path):
    pipeline = with_body_input(checkpoint)
    bodies, seen = torch.rand(1, 7, 3, 48, 48, generator=torch.Generator().manual_seed(0)), []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs, named: seen.append(named["sample"]), with_kwargs=True)
    drawn(pipeline, body_images=bodies)
    rows = seen[0].unflatten(0, (2, 2, 7))   # domain, branch (without, with the photo), view
    assert rows.shape[3] == 12 and (rows[:, 0, :, 4:] == 0).all(), "an unknown photo has an unknown body"
    shown = bodies[0].clone()
    shown[3:5] = shown[3:5].flip(-1)
    with torch.no_grad():
        latents = pipeline.vae.encode(shown * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert torch.allclose(rows[:, 1, :, 8:], latents.expand(2, -1, -1, -1, -1), atol=1e-4)
    pipeline.save_pretrained(tmp_path / "twelve")
    again = quiet(MultiViewPipeline.from_pretrained(tmp_path / "twelve"))
    assert torch.equal(drawn(again, body_images=bodies), drawn(pipeline, body_images=bodies))
    assert not torch.allclose(drawn(again, body_images=bodies.flip(1)), drawn(pipeline, body_images=bodies), atol=1e-3)


def test_body_renders_are_checked(checkpoint):
    pipeline = with_body_input(checkpoint)
    for bodies, sentence in ((None, "is missing"), (torch.rand(1, 6, 3, 48, 48), "of shape"), (torch.rand(1, 7, 3, 48, 48) * 2, "in .0, 1."), (torch.zeros(1, 7, 3, 48, 48).int(), "finite floats")):
        with pytest.raises(ValueError, match=sentence):
            drawn(pipeline, body_images=bodies)
    with pytest.raises(ValueError, match="takes no body renders"):
        drawn(quiet(MultiViewPipeline.from_pretrained(checkpoint)), body_images=torch.rand(1, 7, 3, 48, 48))
    parts = pipeline.components | {"unet": MultiViewUNet.from_config(dict(pipeline.unet.config) | {"in_channels": 10})}
    with pytest.raises(ValueError, match="reads 10 channels, needed 8"):
        MultiViewPipeline(**parts, azimuths=pipeline.config.azimuths, mirrored=pipeline.config.mirrored, descriptor="clip")


def test_half_precision_throughout(checkpoint):
    pipeline = quiet(MultiViewPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16))
    assert {next(part.parameters()).dtype for part in (pipeline.unet, pipeline.vae, pipeline.image_encoder, pipeline.prompt_table)} == {torch.bfloat16}
    assert drawn(pipeline).isfinite().all()


def test_parts_of_mixed_precision_work_together(checkpoint):
    pipeline = quiet(MultiViewPipeline.from_pretrained(checkpoint))
    full = drawn(pipeline)
    pipeline.unet.to(torch.bfloat16)
    pipeline.image_encoder.to(torch.bfloat16)
    mixed = drawn(pipeline)
    assert mixed.dtype == torch.float32 and 0 < (mixed - full).abs().mean() < 0.1


def test_guidance_in_two_calls_gives_the_same_pictures(checkpoint):
    pipeline = quiet(MultiViewPipeline.from_pretrained(checkpoint))
    assert (drawn(pipeline, sequential_guidance=True) - drawn(pipeline)).abs().max() < 1e-4


def test_the_callback_sees_and_may_change_every_step(checkpoint):
    pipeline, seen = quiet(MultiViewPipeline.from_pretrained(checkpoint)), []

    def watch(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    latents = drawn(pipeline, output_type="latent", callback_on_step_end=watch)
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] > seen[1][1] and latents.abs().max() == 0


def without_part(folder):
    (folder / "image_encoder").rename(folder / "gone")


def pickled_unet(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def missing_weight(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights)


def torn_vae(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


BAD = {
    "a part is missing": (without_part, FileNotFoundError, "holds no part image_encoder, needed a CLIPVisionModelWithProjection"),
    "weights as a pickle": (pickled_unet, ValueError, "a pickle, which can run any program"),
    "a weight is missing": (missing_weight, ValueError, "lack 1 of .* for example conv_in.weight"),
    "a torn file": (torn_vae, ValueError, "cut short"),
    "one prompt file": (lambda folder: (folder / PROMPT_FILES[0]).unlink(), FileNotFoundError, "lacks normal_embeds.pt"),
    "no prompts at all": (lambda folder: [(folder / name).unlink() for name in PROMPT_FILES], FileNotFoundError, "neither .* nor a tokenizer and text_encoder"),
    "a hostile prompt file": (lambda folder: torch.save(Trap(), folder / PROMPT_FILES[1]), ValueError, r"clr_embeds\.pt: is no plain tensor"),
    "prompts of another kind": (lambda folder: torch.save([1, 2], folder / PROMPT_FILES[0]), ValueError, "holds list, needed one finite tensor"),
    "prompts of other lengths": (lambda folder: torch.save(torch.zeros(7, 4, 24), folder / PROMPT_FILES[0]), ValueError, "two of the same shape"),
    "prompts of another width": (lambda folder: [torch.save(torch.zeros(7, 5, 20), folder / name) for name in PROMPT_FILES], ValueError, "width 24"),
    "prompts for fewer views": (lambda folder: [torch.save(torch.zeros(6, 5, 24), folder / name) for name in PROMPT_FILES], ValueError, "prompt_table 6 views"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_checkpoints_get_one_sentence(name, checkpoint):
    spoil, kind, sentence = BAD[name]
    spoil(checkpoint)
    with pytest.raises(kind, match=sentence) as error:
        MultiViewPipeline.from_pretrained(checkpoint)
    assert "\n" not in str(error.value) and (str(checkpoint) in str(error.value) or "prompt_table" in str(error.value))


def test_unknown_options_are_refused(checkpoint):
    with pytest.raises(ValueError, match="colour is no option; there are prompt_embeds, torch_dtype, variant, unet"):
        load_pshuman(checkpoint, colour="red")


def test_an_index_that_is_no_json_is_not_taken_for_pshuman(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    assert not is_pshuman(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model_index.json"))):
        MultiViewPipeline.from_pretrained(tmp_path)


# --- from Stable Diffusion on -------------------------------------------------------------------------------------------------------------


def stock_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(3)
    settings = dict(
        sample_size=12, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4), norm_num_groups=8, cross_attention_dim=24, use_linear_projection=True,
        class_embed_type="projection", projection_class_embeddings_input_dim=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return UNet2DConditionModel(**settings | changes).eval()


@pytest.mark.parametrize("in_channels", [8, 12])
def test_a_fresh_start_answers_as_the_stock_network(in_channels, tmp_path):
    stock = stock_unet()
    stock.save_pretrained(tmp_path / "stock")
    unet = from_stable_unclip(tmp_path / "stock", num_views=3, face_view=False, in_channels=in_channels).eval()
    sample, text, label = torch.randn(3, 4, 12, 12), torch.randn(3, 5, 24), torch.randn(3, 32)
    rest = torch.randn(6, in_channels - 4, 12, 12)
    with torch.no_grad():
        known = stock(sample, 321, text, class_labels=label).sample
        found = unet(torch.cat([sample.repeat(2, 1, 1, 1), rest], 1), 321, text.repeat(2, 1, 1), label.repeat(2, 1)).sample
    assert (found - known.repeat(2, 1, 1, 1)).abs().max() < 1e-5
    other = torch.cat([sample.repeat(2, 1, 1, 1), rest], 1)
    other[3:, :4] = torch.randn(3, 4, 12, 12)
    with torch.no_grad():
        assert (unet(other, 321, text.repeat(2, 1, 1), label.repeat(2, 1)).sample[:3] - known).abs().max() > 1e-3, "the domains do see each other"


def test_a_fresh_start_has_a_face_view_and_learns_everywhere():
    unet = from_stable_unclip(stock_unet())
    assert unet.config.num_views == 7 and unet.config.face_view and unet.config.in_channels == 8
    unet(torch.randn(14, 8, 12, 12), 500, torch.randn(14, 5, 24), torch.randn(14, 32)).sample.square().mean().backward()
    assert unet.conv_in.weight.grad[:, 4:].abs().max() > 0
    silent = [name for name, weight in unet.named_parameters() if weight.grad is None]
    assert not silent, silent[:3]


def test_the_released_size_starts_from_the_stock_size():
    with torch.device("meta"):
        stock = UNet2DConditionModel(
            sample_size=96, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
            class_embed_type="projection", projection_class_embeddings_input_dim=2048,
        )  # fmt: skip
        unet = from_stable_unclip(stock)
        released = MultiViewUNet()
    assert {name: value.shape for name, value in unet.state_dict().items()} == {name: value.shape for name, value in released.state_dict().items()}
    assert len(unet.state_dict()) == 802 and round(sum(value.numel() for value in unet.parameters()) / 1e6, 2) == 919.78


@pytest.mark.parametrize(
    "changes, settings, sentence",
    [
        (dict(class_embed_type=None), {}, "class_embed_type None, needed 'projection'"),
        ({}, dict(in_channels=3), "in_channels is 3, but the stock U-Net alone reads 4"),
        (dict(down_block_types=("AttnDownBlock2D", "DownBlock2D")), {}, "down_block_types"),
    ],
)
def test_unsuitable_stock_networks_are_refused(changes, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_stable_unclip(stock_unet(**changes), **settings)
