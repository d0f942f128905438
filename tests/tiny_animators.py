"""Random miniature generators in the layout of the published ones, and a program that stands in for SCAIL-2's checkout."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanAnimateTransformer3DModel,
    WanVACETransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, UMT5Config, UMT5EncoderModel

VAE = dict(z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
WAN = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=256, ffn_dim=32, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32, out_channels=16)  # fmt: skip


def _index(folder: Path, name: str, **parts: tuple[str, str]) -> Path:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.38.0"} | {part: list(kind) for part, kind in parts.items()}))
    return folder


def _wan_common(folder: Path) -> dict[str, tuple[str, str]]:
    "Autoencoder, tokenizer, text encoder and scheduler; each with the real one's class and factors."
    AutoencoderKLWan(base_dim=3, **VAE).save_pretrained(folder / "vae")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(code), -3.0) for code in range(ord("a"), ord("z") + 1))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(UMT5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, relative_attention_num_buckets=8)).save_pretrained(folder / "text_encoder")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000).save_pretrained(folder / "scheduler")
    return {"vae": ("diffusers", "AutoencoderKLWan"), "tokenizer": ("transformers", "PreTrainedTokenizerFast"), "text_encoder": ("transformers", "UMT5EncoderModel"), "scheduler": ("diffusers", "UniPCMultistepScheduler")}


def wan_vace(folder: Path) -> Path:
    torch.manual_seed(0)
    WanVACETransformer3DModel(in_channels=16, num_layers=3, vace_layers=[0, 2], vace_in_channels=96, **WAN).save_pretrained(folder / "transformer")
    return _index(folder, "WanVACEPipeline", **_wan_common(folder), transformer=("diffusers", "WanVACETransformer3DModel"), transformer_2=(None, None))


def wan_animate(folder: Path) -> Path:
    "With text and picture attention of the real one, which counts on text of 512 rows."
    torch.manual_seed(0)
    WanAnimateTransformer3DModel(
        in_channels=36, latent_channels=16, num_layers=2, added_kv_proj_dim=24, image_dim=4, motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_encoder_size=16,
        motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2, inject_face_latents_blocks=2, **WAN,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    CLIPVisionModel(CLIPVisionConfig(hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=4, intermediate_size=16, patch_size=1)).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(crop_size=4, size=4).save_pretrained(folder / "image_processor")
    return _index(folder, "WanAnimatePipeline", **_wan_common(folder), transformer=("diffusers", "WanAnimateTransformer3DModel"), image_encoder=("transformers", "CLIPVisionModel"), image_processor=("transformers", "CLIPImageProcessor"))


def qwen_controlnet(folder: Path) -> tuple[Path, Path]:
    "The folders of the base and of the ControlNet, whose last layers are zero when fresh and are not here."
    torch.manual_seed(0)
    base, controlnet = folder / "base", folder / "controlnet"
    dims = dict(patch_size=2, in_channels=64, out_channels=16, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4))
    QwenImageTransformer2DModel(num_layers=2, **dims).save_pretrained(base / "transformer")
    control = QwenImageControlNetModel(num_layers=1, **dims)
    for weight in (*control.controlnet_blocks.parameters(), *control.controlnet_x_embedder.parameters()):
        torch.nn.init.normal_(weight, std=0.5)
    control.save_pretrained(controlnet)
    AutoencoderKLQwenImage(base_dim=3, **VAE).save_pretrained(base / "vae")
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()) + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    (base / "tokenizer").mkdir(parents=True)
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=300, rope_theta=1e6, rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"})
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16)
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).save_pretrained(base / "text_encoder")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=1.0).save_pretrained(base / "scheduler")
    parts = {"vae": "AutoencoderKLQwenImage", "transformer": "QwenImageTransformer2DModel", "scheduler": "FlowMatchEulerDiscreteScheduler"}
    others = {"tokenizer": "Qwen2Tokenizer", "text_encoder": "Qwen2_5_VLForConditionalGeneration"}
    _index(base, "QwenImagePipeline", **{part: ("diffusers", kind) for part, kind in parts.items()}, **{part: ("transformers", kind) for part, kind in others.items()})
    return base, controlnet
