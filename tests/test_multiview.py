"""The multi-view UNet and its pipeline: parity with PSHuman, who sees whom, adapters, memory, determinism, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from peft import LoraConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from drpose.pictures.photos import CLIPImageProcessor
from drpose.multiview.unet import LORA_FILE, fuse_face, idle_parameters, load_lora, lora_targets, save_lora
from drpose.multiview.pipeline import (Condition, MultiViewPipeline, MultiViewUNet, PromptTable, decode_latents,
                                       default_scheduler, denoise, encode_images, finish_views, from_rows,
                                       photo_descriptor, photo_tensor, predict, tiny_prompt_embeds, to_rows,
                                       unet_inputs, unmirror)

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "pshuman"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"reference data {FIXTURES} is not on this machine")


def tiny_unet(**changes) -> MultiViewUNet:
    torch.manual_seed(0)
    settings = dict(sample_size=8, num_views=4, face_view=False, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=(1, 2),
                    norm_num_groups=8, cross_attention_dim=8, projection_class_embeddings_input_dim=12,
                    down_block_types=("DownBlock2D", "CrossAttnDownBlockMV2D"), up_block_types=("CrossAttnUpBlockMV2D", "UpBlock2D"))
    unet = MultiViewUNet(**settings | changes).eval()
    for name, part in unet.named_parameters():
        if "attn_mv.to_out" in name:           # zero in a fresh model; these tests want the views to talk
            torch.nn.init.normal_(part, std=0.2)
    return unet


def rows(batch=1, views=4, side=8, tokens=3, text=8, labels=12, dtype=torch.float32) -> dict:
    torch.manual_seed(1)
    count = 2 * batch * views
    return dict(sample=torch.randn(count, 8, side, side, dtype=dtype), timestep=torch.full((count,), 400),
                encoder_hidden_states=torch.randn(count, tokens, text, dtype=dtype), class_labels=torch.randn(count, labels, dtype=dtype))


def tiny_pipeline(**changes) -> MultiViewPipeline:
    torch.manual_seed(2)
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(4, 8, 8),
                        norm_num_groups=4, sample_size=32, mid_block_add_attention=False).eval()
    parts = {"unet": tiny_unet(projection_class_embeddings_input_dim=192), "vae": vae, "scheduler": default_scheduler(), "prompt_table": PromptTable.of(tiny_prompt_embeds(dim=8))}
    pipeline = MultiViewPipeline(**parts | changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


# --- parity ---------------------------------------------------------------------------------------------------------------------


@needs_fixtures
def test_matches_pshuman_outputs_activations_and_gradients():
    data = load_file(FIXTURES / "pshuman_unet_tiny.safetensors")
    config = json.loads((FIXTURES / "pshuman_unet_tiny.json").read_text())["config"]
    unet = MultiViewUNet(**config)
    unet.load_state_dict({key[2:]: value for key, value in data.items() if key.startswith("w.")}, strict=True)
    seen = {}
    for name, module in unet.named_modules():
        if "act." + name in data and name.endswith(("time_embedding", "conv_in", "mid_block", "transformer_blocks.0", "conv_norm_out")):
            module.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output))
    sample = data["in.sample"].requires_grad_()
    output = unet(sample, 737, data["in.encoder_hidden_states"], data["in.class_labels"]).sample
    assert (output - data["out.sample"]).abs().max() < 1e-4
    assert len(seen) >= 7
    for name, value in seen.items():
        assert (value - data["act." + name]).abs().max() < 1e-4, name
    (output * data["in.grad_seed_weight"]).mean().backward()
    assert torch.allclose(sample.grad, data["grad.in.sample"], atol=1e-6)
    parameters, checked = dict(unet.named_parameters()), 0
    for key in data:
        if key.startswith("grad.param."):
            assert torch.allclose(parameters[key[11:]].grad, data[key], atol=1e-5, rtol=1e-3), key
            checked += 1
    assert checked > 20


@needs_fixtures
def test_full_config_from_the_pipeline_fixture_is_accepted():
    config = json.loads((FIXTURES / "pshuman_pipe_tiny.json").read_text())["configs"]["unet"]
    unet = MultiViewUNet.from_config(config)
    assert unet.config.face_view and unet.config.num_views == 7


@needs_fixtures
def test_matches_pshuman_sampling_with_guidance_and_noise(monkeypatch):
    data = load_file(FIXTURES / "pshuman_pipe_tiny.safetensors")
    about = json.loads((FIXTURES / "pshuman_pipe_tiny.json").read_text())
    unet = MultiViewUNet.from_config(about["configs"]["unet"])
    unet.load_state_dict({key[7:]: value for key, value in data.items() if key.startswith("w.unet.")})
    vae = AutoencoderKL.from_config(about["configs"]["vae"])
    vae.load_state_dict({key[6:]: value for key, value in data.items() if key.startswith("w.vae.")})
    known = [data[f"mid.{name}"].unflatten(0, (2, 2, 7))[:, 1][None] for name in ("cond_latents_cfg", "image_embeds")]   # rows: domain, branch, view
    condition = Condition(*known, data["in.prompt_embeds"].unflatten(0, (2, 7)))
    stack = {name: data[name].unflatten(0, (2, 7))[None] for name in data if name.startswith(("noise.", "mid.latents", "in.imgs", "out."))}
    fresh, states = iter([stack[f"noise.step{index}"] for index in range(4)]), []
    monkeypatch.setattr("drpose.multiview.pipeline.draw_noise", lambda *inputs: next(fresh))
    with torch.no_grad():
        assert (encode_images(vae, stack["in.imgs_in"]) - condition.condition_latents).abs().max() < 1e-4
        latents = denoise(unet, DDIMScheduler.from_config(about["configs"]["scheduler"]), condition, stack["noise.init_latents"], 4,
                          guidance_scale=3.0, eta=1.0, on_step=lambda index, timestep, latents: states.append(latents))
        for index, state in enumerate(states):
            assert (state - stack[f"mid.latents_after_step{index}"]).abs().max() < 1e-3, index
        assert (decode_latents(vae, latents) - stack["out.images"]).abs().max() < 1e-3


def pshuman_tiny() -> MultiViewPipeline:
    "The recorded pipeline of the reference data, every part from its recorded config and weights."
    data, configs = load_file(FIXTURES / "pshuman_pipe_tiny.safetensors"), json.loads((FIXTURES / "pshuman_pipe_tiny.json").read_text())["configs"]

    def filled(part, name):
        part.load_state_dict({key[len(name) + 3 :]: value for key, value in data.items() if key.startswith(f"w.{name}.")})
        return part.eval()

    return MultiViewPipeline(
        filled(MultiViewUNet.from_config(configs["unet"]), "unet"), filled(AutoencoderKL.from_config(configs["vae"]), "vae"),
        DDIMScheduler.from_config(configs["scheduler"]), PromptTable.of(data["in.prompt_embeds"].unflatten(0, (2, 7))),
        filled(CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"])), "image_encoder"), CLIPImageProcessor(**configs["feature_extractor"]),
        filled(StableUnCLIPImageNormalizer(16), "image_normalizer"), DDPMScheduler.from_config(configs["image_noising_scheduler"]),
        azimuths=(0, 45, 90, 180, 270, 315), mirrored=(False, False, False, True, True, False), descriptor="clip",
    )  # fmt: skip


@needs_fixtures
@pytest.mark.parametrize("sequential", [False, True])
def test_pipeline_equals_pshuman_from_pictures_to_pictures(monkeypatch, sequential):
    data, pipeline, steps = load_file(FIXTURES / "pshuman_pipe_tiny.safetensors"), pshuman_tiny(), []
    pipeline.set_progress_bar_config(disable=True)
    stack = {name: data[name].unflatten(0, (2, 7))[None] for name in data if name.startswith(("noise.", "mid.latents", "in.imgs", "out."))}
    pictures = stack["in.imgs_in"][:, 0, [0, 6]]
    assert all(torch.equal(stack["in.imgs_in"][:, 0, view], pictures[:, 0]) for view in range(6))
    drawn = iter([stack["noise.clip_embed"], stack["noise.init_latents"], *(stack[f"noise.step{index}"] for index in range(4))])   # PSHuman's order
    monkeypatch.setattr("drpose.multiview.pipeline.draw_noise", lambda shape, *rest: next(drawn).reshape(*shape))
    seen = lambda pipe, index, timestep, given: steps.append((int(timestep), given["latents"])) or {}  # noqa: E731
    latents = pipeline(pictures, 4, guidance_scale=3.0, eta=1.0, output_type="latent", sequential_guidance=sequential, callback_on_step_end=seen).images
    assert [step[0] for step in steps] == [751, 501, 251, 1]
    for index, (_, state) in enumerate(steps):
        assert (state - stack[f"mid.latents_after_step{index}"]).abs().max() < 1e-3, index
    with torch.no_grad():
        images = decode_latents(pipeline.vae, latents)
    assert (images - stack["out.images"]).abs().max() < 1e-3


@needs_fixtures
def test_views_are_finished_as_pshuman_does():
    images, pipeline = torch.rand(2, 2, 7, 3, 48, 48), pshuman_tiny()
    photo = torch.rand(2, 3, 48, 48)
    views = finish_views(images, pipeline.config.mirrored, True, photo)
    assert views.shape == (2, 2, 6, 3, 48, 48)
    assert torch.equal(views[:, :, 3:5], images[:, :, 3:5].flip(-1)) and torch.equal(views[:, :, 1:3], images[:, :, 1:3]) and torch.equal(views[:, :, 5], images[:, :, 5])
    assert torch.equal(views[:, 1, 0], photo)
    outside = torch.ones(48, 48, dtype=torch.bool)
    outside[:16, 16:32] = False
    assert torch.equal(views[:, 0, 0][..., outside], images[:, 0, 0][..., outside])
    flat = finish_views(torch.ones_like(images) * 0.25, (), True)
    assert torch.allclose(flat, torch.full_like(flat, 0.25)), "shrinking keeps a flat face flat"


@needs_fixtures
def test_a_batch_of_photos_equals_each_photo_alone():
    "Upstream lays the first photo's front colour over every object of a batch."
    pipeline = pshuman_tiny()
    pipeline.set_progress_bar_config(disable=True)
    photos = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 1.0, "keep_photo": True}
    together = pipeline(photos, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], **settings).images
    for index, seed in enumerate((5, 6)):
        alone = pipeline(photos[index : index + 1], generator=torch.Generator().manual_seed(seed), **settings).images
        assert (together[index] - alone[0]).abs().max() < 1e-4
        assert (together[index, 1, 0] - photos[index]).abs().max() < 0.003, "its own front colour"


@needs_fixtures
def test_full_pipeline_round_trip_and_photo_from_a_file(tmp_path):
    pipeline = pshuman_tiny()
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = MultiViewPipeline.from_pretrained(tmp_path / "pipeline")
    picture = np.zeros((90, 70, 4), np.uint8)
    picture[9:80, 20:50] = (200, 90, 40, 255)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    first, second = (pipe(tmp_path / "photo.png", 2, crop_size=46, generator=torch.Generator().manual_seed(1)).images for pipe in (pipeline, loaded))
    assert first.shape == (1, 2, 6, 3, 48, 48) and torch.equal(first, second)
    with pytest.raises(ValueError, match="crop_size is for photos"):
        pipeline(torch.rand(1, 3, 48, 48), 2, crop_size=46)


@needs_fixtures
def test_state_dict_of_the_released_config():
    with torch.device("meta"):
        unet = MultiViewUNet()
    lines = (line.split("\t") for line in (FIXTURES / "pshuman_full_keys.txt").read_text().splitlines() if line.strip())
    wanted = {key: shape.replace(" ", "") for key, shape, _ in lines}
    assert {key: str(tuple(value.shape)).replace(" ", "") for key, value in unet.state_dict().items()} == wanted


def test_size_of_the_released_config():
    with torch.device("meta"):
        unet = MultiViewUNet()
    assert len(unet.state_dict()) == 802
    assert round(sum(part.numel() for part in unet.parameters()) / 1e6, 2) == 919.78


# --- who sees whom --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step, reaches_rows, reaches", [("across_domains", range(8), [(0, 1), (1, 1)]), ("across_views", [3], [(0, 0), (0, 1), (0, 2), (0, 3)])])
def test_attention_reaches_exactly(step, reaches_rows, reaches):
    block = tiny_unet().mid_block.attentions[0].transformer_blocks[0]
    tokens = torch.randn(2, 2, 4, 8, 8, 32)                      # domain, person, view, row, column
    changed = tokens.clone()
    changed[0, 1, 1, 3, 5] += 1                                  # one token: normals, person 1, view 1
    with torch.no_grad():
        outputs = [getattr(block, step)(part.reshape(16, 64, 32), 8).reshape(tokens.shape) for part in (tokens, changed)]
    moved = (outputs[0] - outputs[1]).abs().amax((-1, -2)) > 1e-6   # domain, person, view, row
    wanted = torch.zeros_like(moved)
    for domain, view in reaches:
        wanted[domain, 1, view, list(reaches_rows)] = True
    assert torch.equal(moved, wanted)


def test_fresh_model_keeps_views_apart_and_people_never_mix():
    inputs = rows(batch=2)
    changed = inputs["sample"].clone()
    changed[1] += 1                                              # normals, person 0, view 1
    fresh = tiny_unet()
    for name, part in fresh.named_parameters():
        if "attn_mv.to_out" in name:
            torch.nn.init.zeros_(part)
    with torch.no_grad():
        for unet, views in ((fresh, [1]), (tiny_unet(), [0, 1, 2, 3])):
            moved = (unet(**inputs).sample - unet(**inputs | dict(sample=changed)).sample).abs().amax((1, 2, 3)).reshape(2, 2, 4) > 1e-7
            wanted = torch.zeros_like(moved)
            wanted[:, 0, views] = True
            assert torch.equal(moved, wanted)


def test_fresh_row_attention_is_silent():
    unet = MultiViewUNet(**{key: value for key, value in tiny_unet().config.items() if not key.startswith("_")})
    outs = [part for name, part in unet.named_parameters() if name.endswith("attn_mv.to_out.0.weight")]
    assert outs and all((part == 0).all() for part in outs)


def test_face_reaches_the_head_window_without_gradient():
    tokens = torch.randn(2, 7, 81, 3, requires_grad=True)
    fused = fuse_face(tokens, 9)
    moved = (fused - tokens).abs().amax(-1).reshape(2, 7, 9, 9) > 0
    assert moved[:, 0, :3, 3:6].all() and moved.sum() == 2 * 9
    fused[:, 0].sum().backward()
    assert (tokens.grad[:, -1] == 0).all() and tokens.grad[0, 0, 0, 0] == 1 and tokens.grad[0, 0, 4, 0] == 0.5


def test_face_view_configs_run_and_differ_from_body_views():
    inputs = rows(views=3, side=12)
    face, body = tiny_unet(num_views=3, face_view=True), tiny_unet(num_views=3)
    with torch.no_grad():
        assert not torch.allclose(face(**inputs).sample, body(**inputs).sample, atol=1e-4)


def test_one_text_token_equals_that_token_twice():
    unet, inputs = tiny_unet(), rows(tokens=1)
    twice = inputs | dict(encoder_hidden_states=inputs["encoder_hidden_states"].expand(-1, 2, -1))
    with torch.no_grad():
        assert torch.allclose(unet(**inputs).sample, unet(**twice).sample, atol=1e-5)


# --- training -------------------------------------------------------------------------------------------------------------------


def gradients(unet, inputs):
    unet.zero_grad()
    unet(**inputs).sample.square().mean().backward()
    return {name: part.grad.clone() for name, part in unet.named_parameters() if part.grad is not None}


def test_checkpointing_gives_the_same_gradients():
    unet, inputs = tiny_unet(), rows()
    plain = gradients(unet, inputs)
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    calls = []
    original = unet.mid_block._gradient_checkpointing_func
    unet.mid_block._gradient_checkpointing_func = lambda *inputs: calls.append(1) or original(*inputs)
    saved = gradients(unet, inputs)
    assert len(calls) == 3 and plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_one_token_text_leaves_exactly_the_idle_parameters_without_gradient():
    unet = tiny_unet()
    names = {name for name, _ in unet.named_parameters()}
    assert names - gradients(unet, rows(tokens=1)).keys() == set(idle_parameters(unet))
    assert gradients(unet, rows(tokens=3)).keys() == names


def test_float64_gradient_matches_finite_differences():
    unet, inputs = tiny_unet().double(), rows(dtype=torch.float64)
    direction = torch.randn_like(inputs["sample"])

    def value(shift):
        return unet(**inputs | dict(sample=inputs["sample"] + shift * direction)).sample.square().mean()

    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(shift), shift)
    with torch.no_grad():
        measured = (value(1e-5) - value(-1e-5)) / 2e-5
    assert value(0.0).dtype == torch.float64 and abs(slope - measured) < 1e-7 * abs(slope) + 1e-10


@pytest.mark.parametrize("adapted", [False, True])
def test_the_whole_network_compiles_without_graph_breaks(adapted):
    unet, inputs = tiny_unet(num_views=3, face_view=True), rows(views=3, side=12)
    if adapted:
        unet.add_adapter(LoraConfig(r=2, target_modules=lora_targets(3), init_lora_weights=False))
    compiled = torch.compile(unet, backend="eager", fullgraph=True)(**inputs, return_dict=False)[0]
    assert compiled.requires_grad and torch.allclose(compiled, unet(**inputs).sample, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
def test_lora_with_alpha_survives_saving(tmp_path, tokens):
    unet, inputs = tiny_unet(), rows(tokens=tokens)
    with torch.no_grad():
        plain = unet(**inputs).sample
    unet.add_adapter(LoraConfig(r=2, lora_alpha=16, target_modules=lora_targets(tokens), init_lora_weights=False))
    trained = gradients(unet, inputs)
    adapters = [name for name, part in unet.named_parameters() if part.requires_grad]
    assert adapters and set(adapters) == trained.keys() and all("lora_" in name for name in adapters)
    with torch.no_grad():
        adapted = unet(**inputs).sample
        unet.disable_adapters()
        assert torch.equal(unet(**inputs).sample, plain)
        unet.enable_adapters()
        assert torch.equal(unet(**inputs).sample, adapted) and not torch.allclose(adapted, plain, atol=1e-3)
        save_lora(unet, tmp_path)
        other = tiny_unet()
        load_lora(other, tmp_path)
        assert torch.allclose(other(**inputs).sample, adapted, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="save_lora"):
        load_lora(tiny_unet(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="another shape"):
        load_lora(tiny_unet(block_out_channels=(16, 48), attention_head_dim=2), tmp_path)


def with_metadata(change):
    def spoil(path):
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors, settings = change(tensors, settings)
        save_file(tensors, path, metadata={"format": "pt"} if settings is None else {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})

    return spoil


def renamed(tensors, settings):
    return {name.replace("mid_block", "middle_block"): value for name, value in tensors.items()}, settings


def foreign_prefix(tensors, settings):
    return {f"transformer.{name}": value for name, value in tensors.items()}, settings


BAD_LORA = {
    "no settings at all": (lambda tensors, settings: (tensors, None), "does not say its rank, alpha and targets"),
    "no alpha": (lambda tensors, settings: (tensors, {name: value for name, value in settings.items() if name != "lora_alpha"}), "does not say its rank, alpha"),
    "one half of a pair": (lambda tensors, settings: (tensors | {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(3, 32)}, settings), "another shape"),
    "a weight is missing": (lambda tensors, settings: ({name: value for name, value in tensors.items() if "mid_block.attentions.0.transformer_blocks.0.attn_mv.to_k" not in name}, settings), "no weights for some of its own targets: 2 names"),
    "a weight too many": (lambda tensors, settings: (tensors | {"conv_in.lora_A.weight": torch.zeros(2, 8, 3, 3), "conv_in.lora_B.weight": torch.zeros(16, 2, 1, 1)}, settings), "has no place for: 2 names, for example conv_in"),
    "renamed blocks": (renamed, "has no place for"),
    "a foreign prefix": (foreign_prefix, "has no place for"),
    "another rank": (lambda tensors, settings: (tensors, settings | {"r": 4}), "another shape"),
}


@pytest.mark.parametrize("name", BAD_LORA)
def test_adapters_that_fit_in_part_are_refused_and_leave_no_trace(name, tmp_path):
    change, sentence = BAD_LORA[name]
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=16, target_modules=lora_targets(3), init_lora_weights=False))
    save_lora(unet, tmp_path)
    with_metadata(change)(tmp_path / LORA_FILE)
    fresh, inputs = tiny_unet(), rows()
    with torch.no_grad():
        before = fresh(**inputs).sample
    with pytest.raises(ValueError, match=sentence) as error:
        load_lora(fresh, tmp_path)
    assert LORA_FILE in str(error.value) and "\n" not in str(error.value)
    with torch.no_grad():
        assert torch.allclose(fresh(**inputs).sample, before, atol=1e-6) and not getattr(fresh, "peft_config", {})


def test_an_adapter_name_is_used_once(tmp_path):
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=lora_targets(3)))
    save_lora(unet, tmp_path)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        load_lora(unet, tmp_path)


def test_the_pipeline_takes_adapters_by_the_usual_name(tmp_path):
    plain, tuned = tiny_pipeline(), tiny_pipeline()
    tuned.unet.add_adapter(LoraConfig(r=2, lora_alpha=16, target_modules=lora_targets(1), init_lora_weights=False))
    save_lora(tuned.unet, tmp_path)
    plain.load_lora_weights(tmp_path)
    photo = torch.rand(1, 3, 32, 32)
    assert torch.allclose(*(pipe(photo, 2, generator=torch.Generator().manual_seed(0)).images for pipe in (plain, tuned)), atol=1e-5)


def test_unet_round_trip(tmp_path):
    unet, inputs = tiny_unet(), rows()
    unet.save_pretrained(tmp_path)
    again = MultiViewUNet.from_pretrained(tmp_path)
    assert again.config.face_view is False and torch.equal(again(**inputs).sample, unet(**inputs).sample)


@pytest.mark.parametrize("side", [7, 8, 10])
def test_any_square_side_without_a_face_view(side):
    inputs = rows(side=side)
    assert tiny_unet()(**inputs).sample.shape == (8, 4, side, side)


def test_timestep_may_be_a_number_or_one_per_row():
    unet, inputs = tiny_unet(), rows()
    with torch.no_grad():
        per_row = unet(**inputs).sample
        for timestep in (400, torch.tensor(400), torch.tensor([400])):
            assert torch.equal(unet(**inputs | dict(timestep=timestep)).sample, per_row)
        mixed = unet(**inputs | dict(timestep=torch.tensor([400] * 4 + [10] * 4)))
        assert not torch.allclose(mixed.sample, per_row, atol=1e-4)
        assert torch.equal(unet(**inputs, return_dict=False)[0], per_row)


# --- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, sentence", [
    (dict(sample=torch.zeros(8, 8, 8, 6)), "square"),
    (dict(sample=torch.zeros(8, 4, 8, 8)), "8 channels"),
    (dict(sample=torch.zeros(12, 8, 8, 8)), "multiple of 2 domains x 4 views"),
    (dict(encoder_hidden_states=torch.zeros(8, 3, 9)), "encoder_hidden_states"),
    (dict(encoder_hidden_states=torch.zeros(4, 3, 8)), "encoder_hidden_states"),
    (dict(class_labels=None), "class_labels"),
    (dict(class_labels=torch.zeros(8, 11)), "class_labels"),
    (dict(timestep=torch.zeros(3)), "timestep"),
])
def test_bad_inputs_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_unet()(**rows() | change)


def test_face_view_needs_sides_divisible_by_three():
    unet = tiny_unet(num_views=3, face_view=True)
    unet(**rows(views=3, side=6))        # 3 x 3 where the attention is
    with pytest.raises(ValueError, match="divisible by 3"):
        unet(**rows(views=3, side=8))


def test_pipeline_hands_the_late_steps_to_the_base():
    "base_below above all timesteps gives the base's picture, 0 the adapter's, 500 neither; and the adapter is on again afterwards."
    pipeline, photo = tiny_pipeline(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    def draw(**settings):
        return pipeline(photo, num_inference_steps=4, generator=seeds(5), output_type="latent", **settings).images
    base = draw()
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=lora_targets(1), init_lora_weights=False))
    tuned, mixed = draw(), draw(base_below=500)
    assert torch.equal(draw(base_below=1001), base) and torch.equal(draw(), tuned)
    assert not any(torch.equal(a, b) for a, b in ((base, tuned), (base, mixed), (tuned, mixed)))


@pytest.mark.parametrize("change, sentence", [
    (dict(attention_head_dim=3), "attention_head_dim"),
    (dict(attention_head_dim=(1, 2, 4)), "attention_head_dim"),
    (dict(use_dino=True), "use_dino"),
    (dict(selfattn_block="custom"), "selfattn_block"),
    (dict(down_block_types=("DownBlock2D",)), "down_block_types"),
    (dict(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")), "up_block_types"),
    (dict(num_views=1, face_view=True), "num_views"),
    (dict(class_embed_type="timestep"), "class_embed_type"),
    (dict(projection_class_embeddings_input_dim=None), "projection_class_embeddings_input_dim"),
])
def test_bad_configs_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_unet(**change)


# --- pipeline -------------------------------------------------------------------------------------------------------------------


def test_rows_are_domain_person_view():
    stack = torch.arange(3 * 2 * 4).reshape(3, 2, 4)
    assert to_rows(stack)[1 * 12 + 2 * 4 + 3] == stack[2, 1, 3]
    assert torch.equal(from_rows(to_rows(stack), 4), stack)


def test_every_row_gets_its_own_text_photo_and_timestep():
    text = tiny_prompt_embeds(dim=8)
    condition = Condition(torch.randn(3, 4, 8, 8), torch.randn(3, 5), text)
    latents = torch.randn(3, 2, 4, 4, 8, 8)
    inputs = unet_inputs(latents, torch.tensor([[1, 2], [3, 4], [5, 6]]), condition)
    row = 1 * 12 + 2 * 4 + 3                                     # colours, person 2, view 3
    assert torch.equal(inputs["sample"][row], torch.cat([latents[2, 1, 3], condition.condition_latents[2]]))
    assert torch.equal(inputs["encoder_hidden_states"][row], text[1, 3])
    assert torch.equal(inputs["class_labels"][row], condition.class_labels[2]) and inputs["timestep"][row] == 6
    with pytest.raises(ValueError, match="3 photos"):
        unet_inputs(latents, 1, condition[:2])


def test_guidance_interpolates_between_unknown_and_known_photo():
    unet, latents = tiny_unet(), torch.randn(2, 2, 4, 4, 8, 8)
    condition = Condition(torch.randn(2, 4, 8, 8), torch.randn(2, 12), tiny_prompt_embeds(dim=8))
    with torch.no_grad():
        given, without = predict(unet, latents, 300, condition), predict(unet, latents, 300, condition.unconditional())
        strong = predict(unet, latents, 300, condition, guidance_scale=2.5)
    assert torch.allclose(strong, without + 2.5 * (given - without), atol=1e-4) and not torch.allclose(strong, given, atol=1e-3)
    assert torch.equal(condition.unconditional().prompt_embeds, condition.prompt_embeds)


def test_denoise_passes_gradients_and_refuses_clipping():
    unet = tiny_unet()
    condition = Condition(torch.randn(1, 4, 8, 8), torch.randn(1, 12), tiny_prompt_embeds(dim=8))
    noise = torch.randn(1, 2, 4, 4, 8, 8, requires_grad=True)
    denoise(unet, default_scheduler(), condition, noise, 2).sum().backward()
    assert noise.grad.abs().min() > 0
    assert default_scheduler().config.timestep_spacing == "trailing" and not default_scheduler().config.clip_sample
    with pytest.raises(ValueError, match="clip_sample"):
        denoise(unet, default_scheduler(clip_sample=True), condition, noise, 2)


def test_descriptor_and_prompts():
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, :2, 14:] = 1                                     # a red square in the top right corner
    descriptor = photo_descriptor(image).reshape(3, 8, 8)
    assert descriptor[0, 0, 7] == 1 and descriptor.sum() == 2 - 192
    assert torch.equal(tiny_prompt_embeds(seed=3), tiny_prompt_embeds(seed=3))
    assert not torch.allclose(tiny_prompt_embeds(seed=3), tiny_prompt_embeds(seed=4))


def test_latents_and_images_keep_leading_dimensions():
    vae, images = tiny_pipeline().vae, torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        latents = encode_images(vae, images, chunk=4)
        direct = vae.encode(images.flatten(0, 1) * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        assert torch.allclose(latents.flatten(0, 1), direct, atol=1e-6)
        assert decode_latents(vae, latents).shape == images.shape
        assert decode_latents(vae, latents * 100, clamp=False).abs().max() > 1


def test_pipeline_sample_does_not_depend_on_its_batch():
    pipeline, photos = tiny_pipeline(), torch.rand(2, 3, 32, 32)
    settings = dict(num_inference_steps=3, guidance_scale=2.0, eta=1.0)
    together = pipeline(photos, generator=seeds(5, 6), **settings).images
    assert together.shape == (2, 2, 4, 3, 32, 32) and together.min() >= 0 and together.max() <= 1
    for index, seed in enumerate((5, 6)):
        alone = pipeline(photos[index:index + 1], generator=seeds(seed), **settings).images
        assert torch.allclose(alone[0], together[index], atol=1e-4)
    assert not torch.allclose(together[0], pipeline(photos, generator=seeds(7, 6), **settings).images[0], atol=1e-3)
    with pytest.raises(ValueError, match="one per photo"):
        pipeline(photos, generator=seeds(1, 2, 3))


def test_pipeline_round_trip(tmp_path):
    pipeline, photo = tiny_pipeline(mirrored=[False, False, True, False]), torch.rand(1, 3, 32, 32)
    first = pipeline(photo, num_inference_steps=2, generator=seeds(1))
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "prompt_table" / "diffusion_pytorch_model.safetensors").is_file() and not list(tmp_path.rglob("*.bin"))
    again = MultiViewPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert list(again.config.mirrored) == [False, False, True, False] and again.scheduler.config.timestep_spacing == "trailing"
    assert torch.equal(again(photo, num_inference_steps=2, generator=seeds(1)).images, first.images)


def test_only_mirrored_views_are_turned_back():
    stack = torch.rand(1, 2, 4, 3, 5, 5)
    turned = unmirror(stack, [False, True, False, True])
    assert torch.equal(turned[:, :, 1], stack[:, :, 1].flip(-1)) and torch.equal(turned[:, :, 2], stack[:, :, 2])
    assert torch.equal(unmirror(stack, []), stack)
    pipeline, photo = tiny_pipeline(), torch.rand(1, 3, 32, 32)
    latents = pipeline(photo, num_inference_steps=2, generator=seeds(1), output_type="latent").images
    shown = pipeline(photo, num_inference_steps=2, generator=seeds(1)).images
    with torch.no_grad():
        painted = decode_latents(pipeline.vae, latents)
    assert torch.allclose(shown[:, :, 3], painted[:, :, 3].flip(-1), atol=1e-5) and torch.allclose(shown[:, :, 0], painted[:, :, 0], atol=1e-5)


def test_pipeline_takes_cutouts_and_gives_pil_images():
    cutout = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    cutout.paste((200, 0, 0, 255), (10, 4, 20, 30))
    photo = photo_tensor([cutout], 32)
    assert (photo[0, :, 0, 0] == 1).all() and photo[0, 1, 10, 12] == 0     # white where transparent, not the hidden colour
    result = tiny_pipeline()(cutout, num_inference_steps=1, output_type="pil")
    assert result.normals[0][3].size == (32, 32) and len(result.colors[0]) == 4


@pytest.mark.parametrize("image, sentence", [
    (torch.zeros(1, 2, 32, 32), "float tensor"),
    (torch.zeros(3, 32, 32), "float tensor"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float tensor"),
    (torch.zeros(1, 3, 32, 16), "needs 32 x 32"),
    (torch.full((1, 3, 32, 32), 200.0), r"\[0, 1\]"),
    (torch.full((1, 3, 32, 32), float("nan")), r"\[0, 1\]"),
    (torch.zeros(1, 4, 32, 32), "empty mask"),
    (Image.new("RGBA", (32, 32)), "empty mask"),
    (Image.new("RGB", (64, 32)), "64 x 32"),
    (Image.new("L", (32, 32)), "RGB or RGBA"),
    ("photo.png", "RGB or RGBA"),
    ([], "RGB or RGBA"),
])
def test_bad_photos_are_refused(image, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_pipeline()(image)


@pytest.mark.parametrize("change, sentence", [
    (dict(output_type="np"), "output_type"), (dict(num_inference_steps=0), "num_inference_steps"), (dict(latents=torch.zeros(1)), "latents")])
def test_bad_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_pipeline()(torch.rand(1, 3, 32, 32), **change)


def test_pipeline_parts_must_fit():
    with pytest.raises(ValueError, match="azimuths"):
        tiny_pipeline(azimuths=[0, 90])
    with pytest.raises(ValueError, match="descriptor"):
        tiny_pipeline(descriptor="dino")
    with pytest.raises(ValueError, match="image_encoder, feature_extractor, image_normalizer, image_noising_scheduler is missing"):
        tiny_pipeline(descriptor="clip")
    with pytest.raises(ValueError, match="prompt_table holds .* width"):
        tiny_pipeline(prompt_table=PromptTable.of(torch.zeros(2, 4, 1, 5)))
