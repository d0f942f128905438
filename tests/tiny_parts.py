"""Random miniature models, small enough that a post-training step takes milliseconds."""

import torch

from drpose.dataset import TINY_RIG
from drpose.multiview import MultiViewUNet, default_scheduler, tiny_prompt_embeds
from drpose.posescore import SkeletonPredictor
from drpose.training import PairConditions, PostTrainConfig


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
                               "warmup_steps": 0, "log_every": 1, "checkpoint_every": 3} | changes))
