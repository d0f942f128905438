"""Copy freshly trained tiny models from outputs/tiny into the package, in half precision, each with a model card.

Usage: python scripts/ship_weights.py [outputs/tiny]
Reads what the run notebooks wrote there: autoencoder/vae, conditioned/pipeline, pose_estimator/pose_estimator, predictor/predictor, judge/predictor, and each summary.json; where it is there, also long/run, the adapter of the long post-training.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from drpose.ground.model_files import embedded_models
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.multiview.pose_estimator import PoseEstimator
from drpose.multiview.unet import LORA_FILE
from drpose.reward.skeleton_predictor import SkeletonPredictor
from drpose.reward.picture_predictor import PicturePredictor

PURPOSE = {
    "autoencoder": "Stock AutoencoderKL, 64-pixel images to 16x16 latents of 4 channels, shared by normals and colours.",
    "conditioned": "MultiViewUNet of the tiny world: one photo, and joints where they are given, to four views of normals and colours. Trained on everyday poses and upright ones with varied limbs, half of them rendered in any lean, never on dynamic clips.",
    "pose_estimator": "Joints of the person in one photo. Learnt from what post-training learns from: single pictures and the pose in each, dynamic ones among them, never a second view.",
    "long": "What the base learnt in a long post-training: an adapter (LoRA) for the noisier timesteps; the base draws the last ones. From single pictures and their poses alone.",
    "predictor": "Skeleton predictor whose answer is the reward of post-training. Never used to measure.",
    "judge": "Evaluation predictor, which only measures: it sees decoded pictures where the one that rewards reads latents, and learnt from other people and renders, with another architecture.",
}


def card(name: str, folder: Path) -> str:
    """The model card of one trained part, from the summary its run notebook wrote; later stages of the same run are listed under `history`."""
    summary = json.loads((folder / "summary.json").read_text())
    settings = {key: value for key, value in summary["config"].items() if key not in ("log_every", "checkpoint_every", "minutes")}
    seconds = summary["seconds"]
    lines = [f"# {name}", "", PURPOSE[name], "", f"- steps: {summary['steps']}, seed: {settings.pop('seed')}, training time: {seconds['training'] if isinstance(seconds, dict) else seconds:.0f} s"]
    lines += [f"- machine: {summary['environment']['machine']}, {summary['environment']['cpu_count']} processors, {summary['environment']['threads']} thread(s), {summary['environment']['device']}"]
    lines += [f"- {note}" for note in summary.get("history", [])]
    lines += ["- settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()), "", "| measured on people never trained on | |", "|---|---|"]
    metrics = summary.get("metrics") or {f"{benchmark}, {when}": summary[benchmark][when] for benchmark in ("hard", "everyday") for when in ("before", "after")}
    for key, value in metrics.items():
        for metric, number in (value.items() if isinstance(value, dict) else [(key, value)]):
            if isinstance(number, (int, float)):
                lines.append(f"| {key + ': ' if isinstance(value, dict) else ''}{metric} | {number:.4g} |")
    return "\n".join(lines) + "\n"


def ship_adapter(run: Path, target: Path) -> None:
    """The settings and the adapter of a finished run, in half precision, with what the adapter's file says of itself."""
    (target / "lora").mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", target / "config.json")
    with safe_open(run / "lora" / LORA_FILE, "pt") as stored:
        said = stored.metadata()
    halves = {name: tensor.half().contiguous() for name, tensor in load_file(run / "lora" / LORA_FILE).items()}
    save_file(halves, target / "lora" / LORA_FILE, metadata=said)


def main(source: Path) -> None:
    """Write drpose/assets/tiny from the runs under `source`."""
    target = embedded_models()
    trained = MultiViewPipeline.from_pretrained(source / "conditioned" / "pipeline")
    pipeline = MultiViewPipeline(trained.unet, AutoencoderKL.from_pretrained(source / "autoencoder" / "vae"), trained.scheduler, trained.prompt_table, azimuths=trained.config.azimuths,
                                 mirrored=trained.config.mirrored, pose_estimator=PoseEstimator.from_pretrained(source / "pose_estimator" / "pose_estimator"))
    pipeline.to(torch.float16).save_pretrained(target / "pipeline")
    for name, kind in {"predictor": SkeletonPredictor, "judge": PicturePredictor}.items():
        kind.from_pretrained(source / name / "predictor").half().save_pretrained(target / name)
    cards = {"autoencoder": target / "pipeline" / "vae", "conditioned": target / "pipeline", "pose_estimator": target / "pipeline" / "pose_estimator", "predictor": target / "predictor", "judge": target / "judge"}
    if (source / "long" / "run" / "lora").is_dir():
        ship_adapter(source / "long" / "run", target / "tuned")
        cards["long"] = target / "tuned"
    for name, folder in cards.items():
        (folder / "README.md").write_text(card(name, source / name))
    for path in target.rglob("*.json"):  # where a model was loaded from concerns nobody else
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 2**20:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/tiny"))
