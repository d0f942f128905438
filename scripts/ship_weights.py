"""Copy freshly trained tiny models from outputs/tiny into the package, in half precision, each with a model card.

Usage: python scripts/ship_weights.py [outputs/tiny]
Reads what the run notebooks wrote there: autoencoder/vae, base/pipeline, predictor/predictor, judge/predictor, and each summary.json.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from drpose.ground.model_files import embedded_models
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.reward.skeleton_predictor import SkeletonPredictor

PURPOSE = {
    "autoencoder": "Stock AutoencoderKL, 64-pixel images to 16x16 latents of 4 channels, shared by normals and colours.",
    "base": "MultiViewUNet of the tiny world: one photo to four views of normals and colours. Trained on everyday poses and a few upright ones with varied limbs, never on dynamic clips.",
    "predictor": "Skeleton predictor whose answer is the reward of post-training. Never used to measure.",
    "judge": "Evaluation predictor, which only measures: other seed, width, depth, people and renders than the one that rewards.",
}


def card(name: str, folder: Path) -> str:
    """The model card of one trained part, from the summary its run notebook wrote; later stages of the same run are listed under `history`."""
    summary = json.loads((folder / "summary.json").read_text())
    settings = {key: value for key, value in summary["config"].items() if key not in ("log_every", "checkpoint_every", "minutes")}
    lines = [f"# {name}", "", PURPOSE[name], "", f"- steps: {summary['steps']}, seed: {settings.pop('seed')}, training time: {summary['seconds']:.0f} s"]
    lines += [f"- machine: {summary['environment']['machine']}, {summary['environment']['cpu_count']} processors, {summary['environment']['threads']} thread(s), {summary['environment']['device']}"]
    lines += [f"- {note}" for note in summary.get("history", [])]
    lines += ["- settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()), "", "| measured on people never trained on | |", "|---|---|"]
    for key, value in summary["metrics"].items():
        for metric, number in (value.items() if isinstance(value, dict) else [(key, value)]):
            if isinstance(number, (int, float)):
                lines.append(f"| {key + ': ' if isinstance(value, dict) else ''}{metric} | {number:.4g} |")
    return "\n".join(lines) + "\n"


def main(source: Path) -> None:
    """Write drpose/assets/tiny from the four runs under `source`."""
    target = embedded_models()
    pipeline = MultiViewPipeline.from_pretrained(source / "base" / "pipeline")
    pipeline.vae = AutoencoderKL.from_pretrained(source / "autoencoder" / "vae")
    pipeline.to(torch.float16).save_pretrained(target / "pipeline")
    for name in ("predictor", "judge"):
        SkeletonPredictor.from_pretrained(source / name / "predictor").half().save_pretrained(target / name)
    for name, folder in (("autoencoder", target / "pipeline" / "vae"), ("base", target / "pipeline"), ("predictor", target / "predictor"), ("judge", target / "judge")):
        (folder / "README.md").write_text(card(name, source / name))
    for path in target.rglob("*.json"):  # where a model was loaded from concerns nobody else
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 2**20:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/tiny"))
