"""Stands in for `generate.py` of SCAIL-2's checkout: takes its arguments, insists on its layout as its loader does, and paints the portrait's mean colour where the driver is."""

import argparse
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
for name, kind in {"model": str, "ckpt_dir": str, "scail_path": str, "image": Path, "mask_image": Path, "pose": Path, "mask_video": Path, "prompt": str, "save_file": Path, "target_h": int, "target_w": int, "sample_steps": int, "sample_guide_scale": float, "base_seed": int}.items():
    parser.add_argument(f"--{name}", type=kind, required=True)
given = parser.parse_args()


def video(path):
    frames = imageio_ffmpeg.read_frames(str(path))
    width, height = next(frames)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


def colors(mask):
    "Which of eight pure colours each pixel has: a channel is on from level 225."
    return (mask >= 225) @ np.array([4, 2, 1])


if "fail" in given.prompt:
    sys.exit("torch.cuda.OutOfMemoryError: there is no card here")
assert given.model == "SCAIL-14B" and given.target_h % 32 == 0 == given.target_w % 32 and 0 <= given.base_seed < 2**31
portrait, portrait_mask = (np.array(Image.open(path).convert("RGB")) for path in (given.image, given.mask_image))
pose, driver = video(given.pose), video(given.mask_video)
size = (given.target_h, given.target_w)
assert portrait.shape[:2] == portrait_mask.shape[:2] == pose.shape[1:3] == driver.shape[1:3] == size and len(pose) == len(driver) and len(pose) % 4 == 1
assert set(np.unique(colors(portrait_mask))) == {7, 4} and set(np.unique(colors(driver))) == {0, 4}, "red on white for the portrait, red on black for the driver"
assert pose[colors(driver) == 0].mean() < 1 < pose[colors(driver) == 4].mean(), "the driving video shows who the mask shows"
painted = np.where((colors(driver) == 4)[..., None], portrait[colors(portrait_mask) == 4].mean(0), 255).astype(np.uint8)
painted = painted[:-1] if "short" in given.prompt else painted
writer = imageio_ffmpeg.write_frames(str(given.save_file), size[::-1], fps=16, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=1)
writer.send(None)
for frame in painted:
    writer.send(np.ascontiguousarray(frame))
writer.close()
Path(sys.argv[0]).with_name("calls.txt").open("a").write(f"{given.base_seed} {len(pose)} {given.prompt}\n")
