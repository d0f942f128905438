"""Random miniature models, small enough that a post-training step takes milliseconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import trimesh
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

from drpose.pictures.cameras import TINY_RIG
from drpose.pictures.photos import CLIPImageProcessor
from drpose.multiview.pshuman import PROMPT_FILES, PSHUMAN_PIPELINE
from drpose.multiview.pipeline import MultiViewUNet, default_scheduler, tiny_prompt_embeds
from drpose.reward.skeleton_predictor import SkeletonPredictor
from drpose.reward.rewards import VGG_LAYERS
from drpose.posttraining.post_training import PairConditions, PostTrainConfig


def unet(seed: int = 0) -> MultiViewUNet:
    torch.manual_seed(seed)
    model = MultiViewUNet(
        sample_size=8, in_channels=8, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlockMV2D"), up_block_types=("CrossAttnUpBlockMV2D", "UpBlock2D"),
        block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=(1, 2), norm_num_groups=4, cross_attention_dim=8, class_embed_type="projection",
        projection_class_embeddings_input_dim=12, num_views=4, face_view=False,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "attn_mv.to_out" in name:  # zero when fresh; a test must not pass because a path is dead
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def predictor(seed: int = 1) -> SkeletonPredictor:
    torch.manual_seed(seed)
    return SkeletonPredictor(block_out_channels=(16, 16), sigma=1.0).eval()


def pairs(count: int = 6, seed: int = 2) -> PairConditions:
    generator = torch.Generator().manual_seed(seed)
    return PairConditions(torch.randn(count, 4, 8, 8, generator=generator), torch.randn(count, 12, generator=generator), 0.2 * torch.randn(count, 23, 3, generator=generator))


def parts(seed: int = 0) -> tuple:
    "Everything `posttrain` takes between its settings and its folder."
    return unet(seed), default_scheduler(), predictor(), pairs(), tiny_prompt_embeds(dim=8), TINY_RIG


def config(**changes) -> PostTrainConfig:
    return PostTrainConfig(**({"steps": 10, "batch_size": 2, "num_inference_steps": 4, "early_stop": 1, "lora_rank": 2, "lora_alpha": 2.0, "learning_rate": 1e-2,
                               "warmup_steps": 0, "log_every": 1, "checkpoint_every": 3, "tracker": "none"} | changes))


def pshuman_checkpoint(folder: Path) -> Path:
    "A checkpoint in PSHuman's layout: random weights, 48-pixel pictures, upstream's names."
    torch.manual_seed(0)
    unet = MultiViewUNet(
        sample_size=12, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4), norm_num_groups=8, cross_attention_dim=24, projection_class_embeddings_input_dim=32,
        down_block_types=("CrossAttnDownBlockMV2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlockMV2D"),
    )  # fmt: skip
    clip = CLIPVisionConfig(hidden_size=24, intermediate_size=48, projection_dim=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    parts = {
        "unet": unet, "image_encoder": CLIPVisionModelWithProjection(clip), "image_normalizer": StableUnCLIPImageNormalizer(16),
        "vae": AutoencoderKL(block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, sample_size=48),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    }  # fmt: skip
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNetMV2DConditionModel", "_diffusers_version": "0.27.2"}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PSHUMAN_PIPELINE, "unet": ["mvdiffusion.models_unclip.unet_mv2d_condition", "UNetMV2DConditionModel"]}))
    for seed, name in enumerate(PROMPT_FILES):
        torch.save(torch.randn(7, 5, 24, generator=torch.Generator().manual_seed(seed)).half(), folder / name)
    return folder


def stable_unclip_checkpoint(folder: Path) -> Path:
    "The same with a stock U-Net and a scheduler that clips, as Stable Diffusion 2.1 unCLIP has them."
    pshuman_checkpoint(folder)
    shutil.rmtree(folder / "unet")
    torch.manual_seed(3)
    UNet2DConditionModel(
        sample_size=12, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4), norm_num_groups=8, cross_attention_dim=24, use_linear_projection=True, class_embed_type="projection",
        projection_class_embeddings_input_dim=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PSHUMAN_PIPELINE, "unet": ["diffusers", "UNet2DConditionModel"]}))
    return folder


def colored_box(path: Path, size=(0.4, 1.6, 0.3)) -> Path:
    "A box standing up, as a mesh file: its front (+z) red, its back blue, its left side (+x) green, the others grey."
    box = trimesh.creation.box(size)
    colors = np.full((len(box.faces), 4), 128, np.uint8)
    for axis, sign, color in ((2, 1, (255, 0, 0)), (2, -1, (0, 0, 255)), (0, 1, (0, 255, 0))):
        colors[box.face_normals[:, axis] * sign > 0.5, :3] = color
    box.unmerge_vertices()
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=np.repeat(colors, 3, axis=0))
    box.export(path)
    return path


def vgg_file(path, **changes):
    "Random weights in torchvision's names."
    generator, tensors = torch.Generator().manual_seed(0), {}
    for number, before, after in (layer for layer in VGG_LAYERS if isinstance(layer, tuple)):
        tensors[f"features.{number}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{number}.bias"] = torch.zeros(after)
    save_file({name: value for name, value in (tensors | changes).items() if value is not None}, path)
    return path


def vitpose(folder: Path, experts: int = 1) -> Path:
    "A folder of ViTPose's like the hub's, with random weights, for 64 x 48 pixels; several experts as in ViTPose+."
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, out_indices=[1], num_experts=experts, part_features=4 if experts > 1 else 0)
    VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 48}, "image_processor_type": "VitPoseImageProcessor"}))
    return folder
