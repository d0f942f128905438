"""What runs on an accelerator must give what it gives on the processor: `python tests/device_checks.py <device> [name …]`.

Each check below runs once on the processor and once on the device, in miniature, and its numbers are compared. The device is "cuda", or "pretend" (see `pretend_device`), which needs no GPU.
While a check runs on the device, the public functions of the package that meet a tensor or a network there are noted; `test_device.py` compares them with all that handle tensors, so that a new one joins by itself.
The last line printed is JSON: {check: {"seconds", "error", "worst"}}, the functions met under "covered"."""

from __future__ import annotations

import copy
import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import os
import pkgutil
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import trimesh
from accelerate.state import AcceleratorState, PartialState
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))

import tiny_animators  # noqa: E402
import tiny_parts  # noqa: E402
from project_files import NOTEBOOKS, code_cells, parameter_cells, source  # noqa: E402

import drpose  # noqa: E402
from drpose.evaluation import metrics  # noqa: E402
from drpose.people import pose_space  # noqa: E402
from drpose.pictures.dressed_people import clothing_regions, draw_crowd, photograph  # noqa: E402
from drpose.pairs.animators import RenderAnimator, painted_poses  # noqa: E402
from drpose.people.bodies import Body, Pose, axis_angle_to_matrix, load_body, matrix_to_axis_angle
from drpose.reward.calibration import calibrate, rank_correlation, rotate_joint  # noqa: E402
from drpose.people.clips import Clip, embedded_clips
from drpose.people.pose_sets import draw_set, lean
from drpose.pictures.cameras import TINY_RIG, ViewRig, frame_by_diagonal, triangulate
from drpose.multiview.latents import encode_set, reframe, render_set
from drpose.pairs.gates import EstimatorDetector, calibrate_limits, check_pairs, check_renders, compressed, failed_gates, plant_fault, reference_colors
from drpose.pairs.detectors import decode_blazepose, decode_simcc, load_detector, skeleton_of
from drpose.pairs.control_drawing import CONTROLS, draw_control
from drpose.pairs.driving import DrivenAnimator, driven_clips, portrait_of
from drpose.pairs import diffusion_animators  # noqa: E402
from drpose.pairs.diffusion_animators import WanVACEAnimator
from drpose.pairs.planning import plan_clips, plan_dataset
from drpose.pairs.dataset import PosePairs, build_dataset, dataset_stats, render_photos
from drpose.evaluation.views import drift, metrics_of_joints
from drpose.evaluation.benchmarks import evaluate_latents, generate_latents, load_benchmark, measure_draws, with_estimates
from drpose.evaluation import mesh_subjects as mesh_subjects_chapter  # noqa: E402
from drpose.evaluation.mesh_metrics import evaluate_meshes  # noqa: E402
from drpose.evaluation.mesh_protocols import body_errors  # noqa: E402
from drpose.evaluation.real_person import constant_joints, drawn_joints, outline  # noqa: E402
from drpose.evaluation.mesh_subjects import measure_latents, measure_views, posed_subjects, true_views  # noqa: E402
from drpose.posttraining.validation import pair_benchmark  # noqa: E402
from drpose.ground.provenance import digest_of  # noqa: E402
from drpose.posttraining.launching import PostTrainSources, launch  # noqa: E402
from drpose.evaluation.metrics import masks_from_normals  # noqa: E402
from drpose.people.motion import upright_share  # noqa: E402
from drpose.multiview.unet import adapters_off, add_skeleton_input, load_lora, merged, save_lora, without_adapters
from drpose.multiview.pose_estimator import PoseEstimator, laplace_loss, mirror, turn
from drpose.multiview.pipeline import MultiViewPipeline, decode_latents, encode_images, on_white, pil_images  # noqa: E402
from drpose.reward.skeleton_predictor import PoseScore, SkeletonPredictor, read_joints  # noqa: E402
from drpose.people.pose_space import limit_violation, self_collision  # noqa: E402
from drpose.multiview.pshuman import from_stable_unclip
from drpose.multiview.base_training import (AutoencoderConfig, BaseConfig, EstimatorConfig, base_error,
                                            new_autoencoder, tiny_unet, train_autoencoder, train_base,
                                            train_pose_estimator)
from drpose.mesh.remeshing import begin, remesh, step
from drpose.mesh import body_fit, carving, reconstruction  # noqa: E402
from drpose.mesh.body_fit import angle_prior, first_guess, fit_joints, fit_views, refine_fit, rotations_of  # noqa: E402
from drpose.mesh.soft_rendering import (blend, crossings, mesh_edges, outline_pieces, soft_views,  # noqa: E402
                                        visible)
from drpose.mesh.skinning import skinned, with_skin  # noqa: E402
from drpose.mesh.carving import carve, carve_surface, largest_piece, level_set, visual_hull, without_ripples  # noqa: E402
from drpose.mesh.reconstruction import ReconstructionConfig, coverage_of, load_models, person_from_views, read_person, reconstruct  # noqa: E402
from drpose.mesh.texture import bake_texture, color_vertices, color_views, lay_flat  # noqa: E402
from drpose.pictures.mesh_files import Scan, srgb_levels  # noqa: E402
from drpose.pictures.mesh_writing import write_scan  # noqa: E402
from drpose.reward.predictor_training import PredictorConfig, estimate_latents, train_skeleton_predictor  # noqa: E402
from drpose.reward.picture_predictor import DecodedPredictor, PicturePredictor, load_eval_predictor, train_picture_predictor  # noqa: E402
from drpose.pictures.rendering import find_hits, render_views, skeleton_maps  # noqa: E402
from drpose.reward.rewards import TERMS, ForegroundMap, PerceptualDistance, RewardSum  # noqa: E402
from drpose.ground.trainer import RunDirectory, new_accelerator  # noqa: E402
from drpose.ground.model_files import embedded_models
from drpose.people.anchors import choose_anchors, coverage_radius, diversity_report, frame_facts
from drpose.people.recordings import clean_parts, frame_faults, resample
from drpose.people.selection import (diversity, farthest_point_sampling, geodesic_features, pose_difficulty,
                                     pose_features)
from drpose.pictures.plots import contact_sheet, mesh_figure, plot_skeleton, show_views, tint_maps
from drpose.multiview.scans import encode_scans, normals_seen_from, read_scan, render_scan, render_scans
from drpose.posttraining.post_training import PostTrainConfig, condition_pairs, kept_conditions, load_tuned, posttrain

Device = str | torch.device
Check = Callable[[Device, Path], dict]
CHECKS: dict[str, Check] = {}
CLOSE = 1e-5  # largest difference allowed, of numbers of size 1
LOOSE = {"half precision": 0.1, "training in half precision": 0.1, "training of the tiny models": 1e-4}  # where halves are rounded, and Adam's first steps, which have the size of the step whatever the gradient's


def check(name: str) -> Callable[[Check], Check]:
    def keep(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return keep


def seeds(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def pipeline_on(device: Device, folder: Path | str | None = None, **options) -> MultiViewPipeline:
    pipeline = MultiViewPipeline.from_pretrained(folder or embedded_models() / "pipeline", **options).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def cut_out(height: int, width: int) -> Image.Image:
    "A photo with a person-sized block that is cut out."
    levels = torch.randint(0, 255, (height, width, 4), generator=seeds(), dtype=torch.uint8).numpy()
    levels[..., 3] = 0
    levels[height // 8 : -height // 8, width // 3 : -width // 3, 3] = 255
    return Image.fromarray(levels, "RGBA")


def predictor_on(device: Device, name: str = "predictor") -> SkeletonPredictor:
    return SkeletonPredictor.from_pretrained(embedded_models() / name).to(device).eval()


def some_poses(count: int = 3) -> Pose:
    return draw_set("pool", count, 3, load_body()).poses


@check("bodies, cameras and pictures")
def bodies(device, folder):
    body, poses = load_body().to(device), some_poses().to(device)
    found = body(poses)
    framing, rig = frame_by_diagonal(found.vertices), ViewRig((0.0, 90.0), image_size=32)
    joints = framing.apply(found.joints[:, :23])
    views = render_views(found, rig, 32, supersample=2, shading=0.5)
    maps, points = skeleton_maps(joints, rig, 1.0), rig.project(joints)[0]
    back = triangulate(rig, points)
    mesh = mesh_figure(found.vertices[0], body.faces)
    plot_skeleton(joints[0])
    return {
        "vertices": found.vertices, "joints": body.joints(poses), "normals": views.normals, "colors": views.colors, "masks": views.masks, "maps": maps, "points": points,
        "triangulated": back, "there and back": framing.invert(framing.apply(found.vertices)), "regions": clothing_regions(body), "mesh": torch.tensor(mesh is not None),
    }  # fmt: skip


@check("soft views and their gradient")
def soft(device, folder):
    vertices, faces = load_body()(some_poses(1)).vertices.double(), load_body().faces
    points = frame_by_diagonal(vertices).apply(vertices).to(device).requires_grad_()
    edges = mesh_edges(faces.to(device))
    seen = soft_views(points, faces.to(device), ViewRig((0.0, 90.0), image_size=24, mirrored=(False, True)), edges)
    slope = torch.autograd.grad(seen.masks.square().sum() + seen.normals[:, :, 0].sum(), points)[0]
    hits = find_hits(points.detach(), faces.to(device), ViewRig((0.0,), image_size=16))
    outline = outline_pieces(points.detach(), faces.to(device), ViewRig((0.0,), image_size=16), edges)
    found = visible(crossings(outline, 16), hits, 16 * 16)
    pixels = blend(torch.rand(16 * 16, 2, generator=seeds(), dtype=torch.double).to(device), found)
    return {"normals": seen.normals, "masks": seen.masks, "slope": slope, "edges": edges[0], "extent": found.extent.sort().values, "pixels": pixels}


@check("a surface that is remade")
def remade(device, folder):
    ball = trimesh.creation.icosphere(subdivisions=2)
    points = torch.tensor(ball.vertices) * torch.tensor([1.0, 0.5, 0.7])
    surface = begin(points.to(device), torch.tensor(ball.faces).long().to(device), 0.3)
    for number in range(1, 6):
        surface = remesh(step(surface, surface.vertices * surface.vertices.norm(dim=1, keepdim=True), number, (0.05, 0.3)))
    return {"vertices": surface.vertices, "faces": surface.faces.double(), "notes": surface.notes}


@check("bodies from joints and views")
def fitted(device, folder):
    "A few steps: what Adam makes of a rounding error grows with every one."
    body, poses, rig = load_body().to(device), some_poses(2).to(device), ViewRig((0.0, 90.0), image_size=24)
    found = body(poses)
    framing = frame_by_diagonal(found.vertices)
    joints = framing.apply(found.joints[:, :23])
    with torch.no_grad():
        views = soft_views(framing.apply(found.vertices), body.faces, rig)
    kept = body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS
    body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS = 4, 1, 1
    try:
        fit = fit_joints(joints, body, units="frame")
        seen = refine_fit(fit, views, rig, body)
        matched = fit_views(poses, framing, views, rig, body)
    finally:
        body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS = kept
    guess = first_guess(found.joints[:, :23], torch.ones(2, 23, dtype=torch.bool, device=device), body)
    return {"guess": guess.axis_angles, "angles": fit.pose.axis_angles, "scale": fit.framing.scale, "residuals": fit.residuals, "noise": fit.noise, "seen": seen.pose.axis_angles, "matched": matched.pose.axis_angles, "shape": seen.pose.betas,
            "prior": angle_prior(poses.axis_angles) / 1000, "turns": rotations_of(poses.axis_angles), "lines": torch.tensor(len(fit.report().splitlines()))}  # fmt: skip


@check("textures and skins")
def textures(device, folder):
    pose, faces = some_poses(1).to(device), load_body().faces.to(device)
    body = load_body().to(device)
    crowd, rig = draw_crowd(body, [3]), ViewRig((0.0, 90.0, 180.0), image_size=48)
    taken = photograph(body, pose, crowd, rig, 48)
    surface = body(pose.with_betas(crowd.betas.to(device))).vertices
    framed = taken.framing.apply(surface)[0]
    views = color_views(framed, faces, taken.views.colors[0], taken.views.masks[0], rig)
    baked = bake_texture(framed, faces, views, lay_flat(framed, faces, 128))
    rest, skin = with_skin(Scan(surface[0], faces, srgb_levels(color_vertices(framed, faces, views))), body, pose.with_betas(crowd.betas.to(device)))
    moved = skinned(rest.vertices, skin, some_poses(2).to(device))
    path = write_scan(folder / "person.glb", rest, skin)
    return {"colors": rest.colors, "texture": baked.scan.texture.mean((1, 2)), "seen": (baked.seen == 1).float().mean(), "own pose": skinned(rest.vertices, skin, skin.pose), "moved": moved.mean((1, 2)), "written": read_scan(path).vertices}


@check("a surface carved, and a person from views")
def carved(device, folder):
    "Few steps and means: where two edges wish alike for the same place, a rounding error decides."
    rig, body = ViewRig((0.0, 90.0, 180.0, 270.0), image_size=32), load_body().to(device)
    found = body(some_poses(1).to(device))
    framing = frame_by_diagonal(found.vertices)
    framed = framing.apply(found.vertices)[0]
    with torch.no_grad():
        seen = soft_views(framed[None], body.faces, rig)
    normals, masks, colors = seen.normals[0] / 2 + 0.5, seen.masks[0].clamp(0, 1), torch.rand(4, 3, 32, 32, generator=seeds()).to(device)
    kept = carving.ROUNDS, carving.ROUND_STEPS, carving.CELLS, carving.BENDS_FROM, body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS
    carving.ROUNDS, carving.ROUND_STEPS, carving.CELLS, carving.BENDS_FROM, body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS = 1, 2, 24, 6, 2, 1, 1
    reconstruction.carve_surface = functools.partial(carve_surface, steps=2)
    try:
        hull = visual_hull(masks, rig)
        surface = carve_surface(normals, masks, rig, "hull", steps=7, keep=1)
        mesh = carve(normals, colors, masks, rig, (framed, body.faces), steps=1)
        person = person_from_views(normals, colors, masks, rig, body, framing.apply(found.joints[:, :23])[0], "sphere", 0)
    finally:
        carving.ROUNDS, carving.ROUND_STEPS, carving.CELLS, carving.BENDS_FROM, body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS = kept
        reconstruction.carve_surface = carve_surface
    assert surface.bends.any()  # the sixth step found some
    values = torch.randn(8, 8, 8, generator=seeds()).to(device)
    pipeline, predictor = load_models(ReconstructionConfig(device=str(device)))
    latents = torch.randn(1, 2, 4, 4, 16, 16, generator=seeds()).to(device)
    joints, apart = read_person(latents, colors[0].repeat(1, 2, 2), pipeline, predictor)
    person.turntable(folder / "person.gif", 2, 32)
    return {"hull": hull[0].mean(0), "level": level_set(values)[0].sum(0), "largest": largest_piece(framed, body.faces)[0].mean(0), "carved": surface.vertices.mean(0), "loss": torch.tensor(surface.losses[:2]), "bends": surface.bends.mean((0, 2, 3)), "aligned": surface.aligned(colors).mean(),
            "coverage": coverage_of(normals), "mesh": torch.tensor(mesh.vertices.mean(0)), "person": person.scan.vertices.mean(0), "joints": joints, "apart": torch.tensor(apart)}  # fmt: skip


@check("drawn people as meshes")
def mesh_subjects(device, folder):
    body = load_body().to(device)
    kept = carving.ROUNDS, body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS
    carving.ROUNDS, body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS = 1, 2, 1, 1
    reconstruction.carve_surface = functools.partial(carve_surface, steps=2)
    mesh_subjects_chapter.evaluate_meshes = functools.partial(evaluate_meshes, samples=2_000)
    pipeline, predictor = load_models(ReconstructionConfig(device=str(device)))
    try:
        subjects = posed_subjects("everyday", 1, body)
        views = encode_images(pipeline.vae, torch.rand(1, 2, 4, 3, 64, 64, generator=seeds()).to(device))
        rows = measure_latents(views, subjects, pipeline.vae, predictor, body)
        seen = true_views(subjects[0], TINY_RIG.resized(48))
        row, _ = measure_views(seen.to(device), subjects[0].body.joints[0, :23] * subjects[0].scale, subjects[0], ViewRig(TINY_RIG.azimuths, image_size=48), body)
        whole = reconstruct(subjects[0].photo, device=str(device), num_inference_steps=2, texture_size=32, detector="estimator")  # from the photo to the file
        whole.person.save(folder / "person.glb")
    finally:
        carving.ROUNDS, body_fit.STEPS, body_fit.VIEW_STEPS, body_fit.MATCH_STEPS = kept
        reconstruction.carve_surface, mesh_subjects_chapter.evaluate_meshes = carve_surface, evaluate_meshes
    assert len(rows) == 1 and set(rows[0]) <= set(row) | {"note"}
    return {"photo": torch.from_numpy(np.array(subjects[0].photo)).float() / 255, "truth": torch.from_numpy(subjects[0].mesh.vertices.mean(0)), "seen": seen, "chamfer": torch.tensor(row["chamfer_cm"]), "drawn": whole.images.mean((2, 3, 4)), "disagreements": torch.tensor(whole.disagreements), "whole": whole.person.scan.vertices.mean(0), "texture": whole.person.scan.texture.mean(), "bones": whole.person.fit.pose.axis_angles.mean(1), "ironed": without_ripples(subjects[0].body.vertices[0], subjects[0].body.faces).mean(0)}  # fmt: skip


@check("somebody among real cameras")
def real_person(device, folder):
    detector = load_detector("estimator", device=device)
    picture = torch.ones(1, 3, 64, 64, device=device)
    picture[..., 8:56, 20:40] = 0.3
    drawn = drawn_joints(picture.expand(4, -1, -1, -1), ViewRig((0.0, 90.0, 180.0, 270.0), image_size=64), detector)
    return {"outline": outline(picture, detector), "drawn": torch.from_numpy(drawn), "constant": torch.from_numpy(constant_joints(load_body().to(device)))}


@check("dressed people and their photographs")
def people(device, folder):
    body, poses = load_body().to(device), some_poses().to(device)
    taken = photograph(body, poses, draw_crowd(body, [1, 2, 3]), ViewRig((0.0, 180.0)), 48)
    images, framing = RenderAnimator(body, 32).animate(poses, 7)
    return {"colors": taken.views.colors, "images": images, "scale": framing.scale}


@check("what a pose-conditioned model is shown")
def controls(device, folder):
    body = load_body().to(device)(some_poses().to(device))
    framing = frame_by_diagonal(body.vertices)
    return {kind: draw_control(kind, body, framing, 48) for kind in CONTROLS}


@check("clips for a video model, painted")
def driven(device, folder):
    @dataclasses.dataclass
    class Ink(DrivenAnimator):
        def paint(self, body, framing, portrait, prompt, seed):
            return 1 - self.controls(body, framing) * portrait.image.mean((1, 2))[:, None, None]

    body, poses = load_body().to(device), embedded_clips()["wave"].poses[[0, 6]]
    (clip,), portrait = driven_clips(poses.to(device), body), portrait_of(5, body, 32)
    painted, framing = Ink(body, 32).animate(poses, [5, 5])
    diffusion_animators.HF_HOME = str(folder)  # encoded prompts are kept there
    generated, _ = WanVACEAnimator(body, 32, model=str(tiny_animators.wan_vace(folder / "vace")), steps=1, dtype="float32").animate(poses, [5, 5])
    return {"clip": clip.poses.axis_angles, "portrait": portrait.image, "painted": painted, "scale": framing.scale, "generated": generated}


@check("poses and their choice")
def poses(device, folder):
    body, drawn = load_body().to(device), some_poses(8).to(device)
    joints = body.joints(drawn)
    features, spread = pose_features(joints), diversity(joints)
    return {
        "features": features, "chosen": farthest_point_sampling(features, 3), "geodesic": geodesic_features(drawn), "difficulty": pose_difficulty(joints), 
        "spread": torch.tensor([value for value in vars(spread).values() if isinstance(value, float)]), "angles": matrix_to_axis_angle(axis_angle_to_matrix(drawn.axis_angles)),
        "limits": limit_violation(drawn.axis_angles), "collisions": self_collision(joints),
    }  # fmt: skip


@check("motion on its way to pictures")
def motion(device, folder):
    body, walk = load_body().to(device), embedded_clips()["cartwheel"]
    clip = resample(Clip(walk.poses.to(device), walk.fps, walk.name), 20.0)
    facts, features = frame_facts(clip, body), pose_features(clip.poses, body)
    chosen = choose_anchors(features, facts.bins(), 5)
    report = diversity_report(clip.poses[chosen], clip.poses, clip.poses[:3], None, body)
    faults = frame_faults(clip, body)
    return {"finer": clip.poses.axis_angles, "tilt": facts.tilt, "speed": facts.speed, "support": facts.support, "chosen": chosen, **faults,
            "parts": clean_parts(clip, body, 8)[0].poses.transl, "report": torch.tensor([report.joint_spread, report.spread_ratio, report.coverage_radius]),
            "radius": torch.tensor(coverage_radius(features[chosen], features))}  # fmt: skip


@check("pairs, sets and latents")
def sets(device, folder):
    body, vae = load_body().to(device), pipeline_on(device).vae
    drawn = draw_set("everyday", 3, 1, body)
    rendered = next(render_set(drawn, body, TINY_RIG))
    latents = encode_set(vae, reframe(rendered, seeds(), 0.5))
    build_dataset(plan_dataset(4, candidates=2, body_model=body), folder / "pairs", RenderAnimator(body))
    photos, joints = render_photos(plan_dataset(3, selection="random", body_model=body), body)
    clips = build_dataset(plan_clips(embedded_clips(), 2, 3, body_model=body), folder / "clips", RenderAnimator(body, 32), checks=True)
    stats = dataset_stats(clips, {"overlap": 0.5}, body)
    few = {name: embedded_clips()[name] for name in ("cartwheel", "walk")}
    shared = plan_clips(few, 2, 3, body_model=body, selection="shares").drawn
    return {"measured": torch.tensor(list(stats["scores"].values())), "images": rendered.images, "latents": latents.latents, "pair": PosePairs(folder / "pairs")[3]["image"],
            "photos": photos.float() / 255, "joints in photos": joints, "shares": shared.poses.axis_angles}


@check("pictures against their labels")
def gates(device, folder):
    torch.manual_seed(0)
    body, drawn = load_body().to(device), draw_set("pool", 3, 1, load_body())
    animator, detector = RenderAnimator(body, 32), EstimatorDetector(PoseEstimator(16, (8, 8), 1, 8).to(device))
    images, framing = animator.animate(drawn.poses, drawn.people)
    reference, faulty = reference_colors(animator, drawn.people, body), plant_fault("cropped", images, drawn, animator)
    labels = painted_poses(animator, drawn.poses, drawn.people)
    scores = check_pairs(images, labels, framing, body, detector, reference)
    failed = failed_gates(check_pairs(faulty, labels, framing, body, detector, reference), calibrate_limits(scores))
    again, real = check_renders(drawn, animator, detector, "mirrored")
    return {"again": torch.stack(list(again.values())), "scores": torch.stack(list(scores.values())), "failed": torch.stack(list(failed.values())).float(), "real": real.float(), "faulty": faulty}


@check("detectors")
def detectors(device, folder):
    body, drawn = load_body().to(device), draw_set("everyday", 2, 1, load_body())
    images = compressed(RenderAnimator(body, 48).animate(drawn.poses, drawn.people)[0], 50)
    vitpose = load_detector("vitpose", tiny_parts.vitpose(folder / "vitpose"), device)
    found, outputs = vitpose.detect(images), torch.randn(3, 195, generator=seeds()).to(device)
    read = decode_blazepose(outputs, torch.tensor([0.9, 0.8, 0.2]).to(device))
    points, sure = decode_simcc(*(torch.rand(2, 17, bins, generator=seeds()).to(device) for bins in (96, 128)), 48, 64)
    joints = skeleton_of(read).points
    return {"images": images, "error": found.error, "found": found.joints.nan_to_num(9), "seen": vitpose.look(images).confidence, "read": read.points.nan_to_num(9),
            "joints": joints.nan_to_num(9), "points": points, "sure": sure}


REWARD = " + ".join(TERMS)


@check("rewards and their gradients")
def rewards(device, folder):
    body, poses = load_body(), some_poses(2)
    predictor = predictor_on(device)
    perceptual = PerceptualDistance(tiny_parts.vgg_file(folder / "vgg.safetensors")).to(device)
    latents = torch.randn(2, 2, 4, 4, 16, 16, generator=seeds()).to(device).requires_grad_()
    joints = 0.2 * torch.randn(2, 23, 3, generator=seeds(1)).to(device)
    masks = torch.rand(2, 4, 16, 16, generator=seeds(2)).to(device)
    foreground = ForegroundMap.fit(torch.randn(3, 2, 4, 4, 8, 8, generator=seeds(3)).to(device), torch.rand(3, 4, 8, 8, generator=seeds(4)).to(device))
    score = RewardSum(predictor, REWARD, foreground=foreground, perceptual=perceptual).to(device)
    rig = TINY_RIG.resized(16)
    value = score(latents, joints, rig, masks) if "masks" in str(inspect.signature(score.forward)) else score(latents, joints, rig)
    plain = PoseScore(predictor, body.to(device))
    asked = plain(latents, poses.to(device), rig)
    (value.sum() + asked.sum()).backward()
    found = read_joints(predictor(latents, rig), rig)
    return {"value": value, "pose": asked, "gradient": latents.grad, "weight": foreground.weight, "points": found.points2d, "joints": found.joints3d}


@check("our pipeline")
def ours(device, folder):
    pipeline, photo, found = pipeline_on(device), torch.rand(2, 3, 64, 64, generator=seeds()), {}
    for name, options in {"plain": {}, "guided": {"guidance_scale": 2.0, "eta": 0.7, "keep_photo": True}, "sequential": {"guidance_scale": 2.0, "sequential_guidance": True}}.items():
        found[name] = pipeline(photo, 3, generator=seeds(1), **options).images
    pipeline.vae.enable_slicing()
    found["latents"] = pipeline(photo, 3, generator=seeds(1), output_type="latent").images
    found["framed"] = pipeline(cut_out(80, 80), 2, generator=seeds(1), crop_size=50, latents=torch.randn(1, 2, 4, 4, 16, 16, generator=seeds(2))).images
    assert len(pil_images(found["plain"][0, 0])) == 4
    return found


@check("half precision")
def half(device, folder):
    pipeline = pipeline_on(device, torch_dtype=torch.bfloat16)
    return {"images": pipeline(torch.rand(1, 3, 64, 64, generator=seeds()), 2, generator=seeds(1)).images.float()}


@check("PSHuman's layout")
def pshuman(device, folder):
    checkpoint = tiny_parts.pshuman_checkpoint(folder / "PSHuman")
    pipeline, found = pipeline_on(device, checkpoint), {}
    photo = cut_out(90, 60)
    for name, options in {"plain": {}, "guided": {"guidance_scale": 3.0, "eta": 1.0, "noise_level": 5}, "sequential": {"guidance_scale": 3.0, "sequential_guidance": True}}.items():
        found[name] = pipeline(photo, 2, generator=seeds(1), crop_size=40, **options).images
    twelve = MultiViewPipeline(**{name: part for name, part in pipeline.components.items() if name != "unet"}, unet=from_stable_unclip(tiny_parts.stable_unclip_checkpoint(folder / "stock") / "unet", in_channels=12).to(device), azimuths=pipeline.config.azimuths, mirrored=pipeline.config.mirrored, descriptor="clip")
    twelve.set_progress_bar_config(disable=True)
    found["bodies"] = twelve(photo, 2, generator=seeds(1), crop_size=40, body_images=torch.rand(1, 7, 3, 48, 48, generator=seeds(2))).images
    return found


@check("parts on the device in turn")
def offloaded(device, folder):
    pipeline = MultiViewPipeline.from_pretrained(tiny_parts.pshuman_checkpoint(folder / "PSHuman"))
    pipeline.set_progress_bar_config(disable=True)
    if torch.device(device).type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
    photo = cut_out(90, 60)
    found = {"images": pipeline(photo, 2, generator=seeds(1), crop_size=40, guidance_scale=2.0).images}
    return found | {"latents": encode_images(pipeline.vae, torch.rand(2, 3, 48, 48, generator=seeds(3)))}


@check("adapters")
def adapters(device, folder):
    from peft import LoraConfig

    unet = tiny_parts.unet().to(device)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeds(parameter.numel())).to(device))
    save_lora(unet, folder)
    again = tiny_parts.unet().to(device)
    load_lora(again, folder)
    inputs = torch.randn(8, 8, 8, 8, generator=seeds()).to(device), torch.tensor(500, device=device), torch.ones(8, 1, 8, device=device), torch.randn(8, 12, generator=seeds(1)).to(device)
    with torch.no_grad():
        found = {"adapted": again(*inputs).sample, "merged": merged(again)(*inputs).sample, "base": without_adapters(again)(*inputs).sample}
        with adapters_off(again):
            found["off"] = again(*inputs).sample
    assert digest_of(unet) == digest_of(tiny_parts.unet())
    return found


def trained(folder: Path, **settings) -> dict:
    config = tiny_parts.config(steps=2, checkpoint_every=2, **settings)
    result = posttrain(config, *tiny_parts.parts(), folder)
    device = os.environ["ACCELERATE_TORCH_DEVICE"]
    assert result.unet.device.type == torch.device(device).type, f"trained on {result.unet.device}, not on {device}"
    lines = RunDirectory(folder, config).metrics()
    weights = {f"weights: {name}": parameter for name, parameter in result.unet.named_parameters() if "lora_" in name or not config.lora_rank}
    return {name: torch.tensor([line[name] for line in lines]) for name in ("reward", "kl", "grad_norm")} | weights


VARIANTS = {
    "drtune": {}, "draft-k": {"estimator": "draft-k"}, "draft-lv": {"estimator": "draft-lv", "copies": 2}, "alignprop": {"estimator": "alignprop"}, "refl": {"estimator": "refl"}, "full": {"estimator": "full"}, "async": {"estimator": "async"},
    "all weights": {"lora_rank": 0, "learning_rate": 1e-4}, "every layer, guided, noisy, robust": {"lora_targets": "all", "guidance_scale": 2.0, "eta": 1.0, "reward_radius": 0.05},
    "recomputed, averaged, kl on answers": {"checkpointing": "both", "ema_decay": 0.5, "accumulate": 2, "kl_on": "prediction"},
}  # fmt: skip
for _name, _settings in VARIANTS.items():
    CHECKS[f"post-training: {_name}"] = lambda device, folder, settings=_settings: trained(folder, **settings)


@check("training in half precision")
def trained_in_half(device, folder):
    return trained(folder, precision="bf16")


@check("post-training: resumed")
def resumed(device, folder):
    trained(folder / "run", lora_rank=2)
    config = tiny_parts.config(steps=4, checkpoint_every=2)
    posttrain(config, *tiny_parts.parts(), folder / "run")
    return {"rewards": torch.tensor([line["reward"] for line in RunDirectory(folder / "run", config).metrics()])}


@check("post-training as the jobs start it")
def launched(device, folder):
    build_dataset(plan_dataset(4), folder / "pairs")
    config = PostTrainConfig(steps=1, batch_size=2, num_inference_steps=2, trained_steps=1, early_stop=1, log_every=1, checkpoint_every=2, tracker="none", reward="maps + silhouette")
    result = launch(config, PostTrainSources(str(folder / "pairs")), folder / "run")
    return {"rewards": torch.tensor([line["reward"] for line in RunDirectory(folder / "run", config).metrics()]), "steps": torch.tensor(result.loop.steps)}


@check("scans, their benchmark and held-out pairs")
def scans(device, folder):
    mesh = tiny_parts.colored_box(folder / "box.ply")
    colors, normals = render_scan(read_scan(mesh), 48)
    places = render_scans([mesh], folder / "scans", 48)
    pipeline = pipeline_on(device, tiny_parts.pshuman_checkpoint(folder / "PSHuman"))
    data = encode_scans(pipeline, places, folder / "kept", backgrounds=(1.0,))
    build_dataset(plan_dataset(4), folder / "pairs")
    ours = pipeline_on(device)
    held_out = pair_benchmark("hard", PosePairs(folder / "pairs"), 4, ours, load_body(), TINY_RIG, outlines=True)
    conditions = kept_conditions(folder / "kept", PosePairs(folder / "pairs"), ours, load_body().to(device), outlines=TINY_RIG)
    return {"colors": colors, "normals": normals, "latents": data.latents, "photos": conditions.photos, "masks": conditions.masks, "held out": held_out.truth.joints}


@check("training of the tiny models")
def pretraining(device, folder):
    body, shared = load_body(), dict(steps=2, batch_size=2, warmup_steps=0, log_every=1, checkpoint_every=2)
    people = next(render_set(draw_set("everyday", 4, 1, body), body, TINY_RIG))

    def run_of(name, config):
        return RunDirectory(folder / name, config), new_accelerator(config, folder / name)

    config = AutoencoderConfig(**shared)
    run, accelerator = run_of("vae", config)
    vae, _ = train_autoencoder(config, (people.images.flatten(0, 2) * 255).round().byte(), run, new_autoencoder(config), accelerator)
    config, shipped, unet = BaseConfig(**shared, two_views=True, noisy_share=0.5), pipeline_on("cpu"), tiny_unet((8, 16), (0, 1))
    data, prompts = encode_set(shipped.vae, people), shipped.prompt_table.embeds
    run, accelerator = run_of("base", config)
    base, _ = train_base(config, unet, shipped.scheduler, data, prompts, run, accelerator)
    errors = base_error(base.to(device), shipped.scheduler, data[slice(0, 1)], prompts, (500,))
    estimates = estimate_latents(base, shipped.scheduler, data, prompts, 0)
    config = PredictorConfig(**shared, block_out_channels=(16, 16))
    run, accelerator = run_of("reader", config)
    predictor, _ = train_skeleton_predictor(config, data, TINY_RIG, run, estimates, None, accelerator)
    seeing, pictures = PicturePredictor(width=16, dilations=(1, 2)), dataclasses.replace(people, images=(people.images * 255).round().byte())
    run, accelerator = run_of("pictures", config)
    train_picture_predictor(config, pictures, TINY_RIG, run, seeing, pictures, accelerator)
    return {f"{name} {key}": tensor for name, model in (("vae", vae), ("base", base), ("reader", predictor), ("seeing", seeing)) for key, tensor in model.state_dict().items()} | {"error": torch.tensor(errors[500]), "estimates": estimates.latents}


@check("a pose that is given")
def given(device, folder):
    body, shared = load_body(), dict(steps=2, batch_size=2, warmup_steps=0, log_every=1, checkpoint_every=2, tracker="none")
    people = next(render_set(draw_set("everyday", 4, 1, body), body, TINY_RIG))
    photos, joints = (people.images[:, 1, 0] * 255).round().byte(), people.joints
    config = EstimatorConfig(**shared, block_out_channels=(8, 16, 16, 16), layers_per_block=1)
    estimator, _ = train_pose_estimator(config, photos, joints, RunDirectory(folder / "estimator", config), None, new_accelerator(config, folder / "estimator"))
    mirrored, its_joints = mirror(people.images[:, 1, 0].to(device), joints.to(device))
    turned, its_joints = turn(mirrored, its_joints, *(torch.full(shape, 0.5, device=device) for shape in ((4,), (4,), (4, 2))))
    loss = laplace_loss(estimator(turned), its_joints)
    plain = pipeline_on("cpu")
    config, unet = BaseConfig(**shared, two_views=True), add_skeleton_input(tiny_unet((8, 16), (0, 1)))
    base, _ = train_base(config, unet, plain.scheduler, encode_set(plain.vae, people), plain.prompt_table.embeds, RunDirectory(folder / "base", config), new_accelerator(config, folder / "base"))
    there = pipeline_on(device)
    pipeline = MultiViewPipeline(base, there.vae, there.scheduler, there.prompt_table, azimuths=TINY_RIG.azimuths, mirrored=TINY_RIG.mirrored, pose_estimator=estimator)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(people.images[:2, 1, 0], 2, generator=seeds(), joints=joints[:2], output_type="latent").images
    benchmark = with_estimates(load_benchmark("hard", pipeline.vae, load_body().to(device), 4), pipeline.pose_estimator)
    from_photos = generate_latents(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, benchmark, 2)
    build_dataset(plan_dataset(4), folder / "pairs")
    data = condition_pairs(PosePairs(folder / "pairs"), pipeline, load_body().to(device))
    config, untouched = PostTrainConfig(**shared, num_inference_steps=4, trained_steps=1, early_stop=1), copy.deepcopy(pipeline.unet)
    posttrain(config, pipeline.unet, plain.scheduler, predictor_on(device), data, plain.prompt_table.embeds, TINY_RIG, folder / "run", accelerator=new_accelerator(config, folder / "run"))
    again = generate_latents(load_tuned(folder / "run", untouched), pipeline.scheduler, pipeline.prompt_table.embeds, benchmark, 2)
    rewards = torch.tensor([line["reward"] for line in RunDirectory(folder / "run", config).metrics()])
    return {"loss": loss, "drawn": drawn, "found": benchmark.given, "from photos": from_photos, "given": data.given, "rewards": rewards, "again": again, "input": add_skeleton_input(tiny_unet((8, 16), (0, 1)).to(device)).conv_skeleton.weight}


@check("benchmarks, measures and calibration")
def measured(device, folder):
    body, pipeline = load_body().to(device), pipeline_on(device)
    benchmark, eval_predictor = load_benchmark("hard", pipeline.vae, body, 4), load_eval_predictor(embedded_models() / "judge", pipeline.vae).to(device)
    torch.manual_seed(0)
    seeing = DecodedPredictor(PicturePredictor(width=16, dilations=(1, 2)).to(device), pipeline.vae)
    several = measure_draws(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, benchmark[:2], eval_predictor, 2, 1)
    drawn = generate_latents(pipeline.unet, pipeline.scheduler, pipeline.prompt_table.embeds, benchmark, 2)
    found = evaluate_latents(drawn, benchmark, pipeline.vae, eval_predictor, base_latents=drawn.flip(0))
    by_eye = evaluate_latents(drawn, benchmark, pipeline.vae, seeing)
    curves = calibrate({"maps": PoseScore(eval_predictor)}, pipeline.vae, body, draw_set("pool", 2, 5, load_body()), sigmas=(1.0,))
    return {"drawn": drawn, "mpjpe": torch.from_numpy(found.mpjpe_mm), "drift": torch.from_numpy(found.drift), "decoded": decode_latents(pipeline.vae, drawn[:1]), "draws": torch.tensor(list(several.values())), "by eye": torch.from_numpy(by_eye.judge_reward), "calibration": curves["maps"].distance}


@check("figures")
def figures(device, folder):
    images = torch.rand(2, 2, 4, 3, 64, 64, generator=seeds()).to(device)
    contact_sheet(images[:, 1, 0], {"a": images[:, 0], "b": images[:, 1]}, rig=TINY_RIG, path=folder / "sheet.png")
    show_views(images[:, 0], torch.rand(2, 4, 23, 16, 16, generator=seeds(2)).to(device), TINY_RIG)
    tinted = tint_maps(images[0, 0, 0], torch.rand(23, 16, 16, generator=seeds(1)).to(device))
    return {"tinted": torch.as_tensor(tinted).float() if isinstance(tinted, torch.Tensor) else torch.zeros(1)}


@check("measures one by one")
def measures(device, folder):
    a, b = (0.2 * torch.randn(3, 23, 3, generator=seeds(n)).to(device) for n in (1, 2))
    p, q = (16 * torch.rand(3, 4, 23, 2, generator=seeds(n)).to(device) for n in (3, 4))
    x, y = (torch.rand(3, 3, 32, 32, generator=seeds(n)).to(device) for n in (5, 6))
    mask = masks_from_normals(x)
    errors = metrics.pixel_errors(p, q)
    constant = metrics_of_joints(a[0], b, torch.full((3,), 0.5, device=device), TINY_RIG)
    return {
        **metrics.axis_errors(a, b, torch.full((3,), 0.5, device=device)), "mpjpe": metrics.millimetres(metrics.mpjpe(a, b), torch.full((3,), 0.5, device=device)), "pa": metrics.pa_mpjpe(a, b), "pixels": errors, "swapped": metrics.swap_forgiven_pixels(p, q), "pck": metrics.pck(errors, 64), "psnr": metrics.psnr(x, y),
        "ssim": metrics.ssim(x, y), "sharpness": metrics.sharpness(x, y), "iou": metrics.silhouette_iou(mask, masks_from_normals(y)), "area": metrics.area_ratio(mask, masks_from_normals(y)), "inside": metrics.psnr_inside(x, y, mask), "normals": metrics.normal_degrees(x, y, torch.ones_like(mask)), "constant": torch.from_numpy(constant.mpjpe_mm), **body_errors(Body(a, a, torch.zeros(1, 3, dtype=torch.int64)), Body(b, b, torch.zeros(1, 3, dtype=torch.int64))),
        "correlation": torch.tensor(rank_correlation(a[:, 0, 0], b[:, 0, 0])), "drift": drift(torch.rand(2, 2, 4, 4, 8, 8, generator=seeds(7)).to(device), torch.rand(2, 2, 4, 4, 8, 8, generator=seeds(8)).to(device)),
    }  # fmt: skip


@check("poses varied and photos framed")
def varied(device, folder):
    drawn = some_poses(4).to(device)
    angles, normals = drawn.axis_angles, torch.randn(4, 55, 3, generator=seeds()).to(device)
    photo = torch.zeros(2, 4, 60, 40)
    photo[..., 10:50, 10:30] = torch.rand(2, 4, 40, 20, generator=seeds(1)) * 0.4 + 0.6
    photo, scan = photo.to(device), read_scan(tiny_parts.colored_box(folder / "box.ply"))
    scan.vertices, scan.faces, scan.colors = scan.vertices.to(device), scan.faces.to(device), scan.colors.to(device)
    colors, normals_seen = render_scan(scan, 32)
    return {
        "noisy": pose_space.add_noise(angles, normals, 1.0), "mixed": pose_space.mix(drawn[:2], drawn[2:], 0.3).axis_angles, "perturbed": pose_space.perturb(drawn, seeds(2)).axis_angles,
        "rotated": rotate_joint(drawn, [16, 17, 18, 19], 20.0).axis_angles, "leaned": lean(drawn, 3).axis_angles, "upright": torch.tensor(upright_share(drawn)), 
        "white": on_white(photo), "colors": colors, "normals": normals_seen_from(normals_seen, 45.0),
    }  # fmt: skip


def job_cells(job: str, **changed) -> None:
    "A job's cells, one after another, as a notebook would run them."
    path = NOTEBOOKS / "runs" / f"{job}.ipynb"
    (cell,) = parameter_cells(path)
    text = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in changed.items())
    namespace = {"__name__": "__main__", "In": ["", source(cell), text], "display": lambda *shown: None}
    for one in [source(cell), text, *map(source, code_cells(path)[code_cells(path).index(cell) + 1 :])]:
        exec(compile(one, f"{job}.ipynb", "exec", dont_inherit=True), namespace)


@check("the demo's job, validation included")
def demo(device, folder):
    job_cells("posttrain", output_dir=str(folder / "demo"), pairs=4, samples=4, evaluation_steps=1, steps=1, batch_size=1, validation_every=1, validation_people=4, sheet=1, num_inference_steps=2, trained_steps=1, early_stop=1, advanced={"tracker": "none"})
    summary = json.loads((folder / "demo" / "summary.json").read_text())
    rows = {f"{name} {when} {key}": value["mean"] if isinstance(value, dict) else value for name in ("hard", "everyday") for when in ("before", "after") for key, value in summary[name][when].items()}
    assert (folder / "demo" / "figures" / "effect.png").is_file()
    return {name: torch.tensor(float(value)) for name, value in rows.items() if isinstance(value, (int, float)) and "frechet" not in name}


def as_numbers(value) -> torch.Tensor:
    value = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    return value.detach().cpu().float()


# --- running and noting ------------------------------------------------------------------------------------------------------------------


def public_functions() -> dict[str, list]:
    "Every public function and every public class's own methods, by name; those alone whose signature or class handles tensors or networks."
    words = ("Tensor", "Module", "UNet", "Autoencoder", "Pose", "BodyModel", "Pipeline", "SkeletonPredictor", "vae", "LatentSet", "ImageSet")
    found = {}
    for module in pkgutil.walk_packages(drpose.__path__, "drpose."):
        if "._" in module.name or module.name.startswith("drpose.jobs"):
            continue
        module = importlib.import_module(module.name)
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            if getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(thing) and any(word in str(inspect.signature(thing)) for word in words):
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = [inspect.unwrap(thing)]
            elif inspect.isclass(thing) and (issubclass(thing, torch.nn.Module) or dataclasses.is_dataclass(thing) and any("Tensor" in str(field.type) for field in dataclasses.fields(thing))):
                own = [inspect.unwrap(getattr(method, "__func__", method)) for key, method in vars(thing).items() if not key.startswith("__") or key == "__call__"]
                own = [method for method in own if inspect.isfunction(method)]
                if own:
                    found[f"{module.__name__.rpartition('.')[2]}.{name}"] = own
    return found


def lies_there(value, kind: str, depth: int = 0) -> bool:
    "Whether a value, or something in it, lies on a device of this kind."
    if isinstance(value, torch.Tensor):
        return value.device.type == kind
    if isinstance(value, torch.nn.Module):
        first = next(iter([*value.parameters(), *value.buffers()]), None)
        return first is not None and first.device.type == kind
    if depth < 2 and dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(lies_there(getattr(value, field.name, None), kind, depth + 1) for field in dataclasses.fields(value))
    if depth < 2 and isinstance(value, (list, tuple)):
        return any(lies_there(part, kind, depth + 1) for part in value[:8])
    if depth < 2 and isinstance(value, dict):
        return any(lies_there(part, kind, depth + 1) for part in list(value.values())[:12])
    if isinstance(value, MultiViewPipeline):
        return lies_there(value.unet, kind)
    return depth < 2 and type(value).__module__.startswith("drpose") and any(lies_there(part, kind, depth + 1) for part in getattr(value, "__dict__", {}).values())


class Noting:
    """While it lasts, the watched functions that are called with something on the device, or are told to work there, are noted.

    Their code is exchanged, so that they are met wherever they are known by another name; Python's trace functions would slow down everything else as well."""

    def __init__(self, kind: str):
        self.kind, self.met, self.on = kind, set(), False
        for name, functions in public_functions().items():
            for function in functions:
                self._watch(function, name)

    def _watch(self, function: types.FunctionType, name: str) -> None:
        "From now on `function` asks `_called` to call what it was."
        was = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
        was.__kwdefaults__, function.__signature__ = function.__kwdefaults__, inspect.signature(function)

        def stand_in(*inputs, **named):
            called = "called"  # replaced by the function itself, which has no name where `function` lives
            return called(inputs, named)

        called = lambda inputs, named: self._called(was, name, inputs, named)  # noqa: E731
        code = stand_in.__code__
        constants = tuple(called if one == "called" else one for one in code.co_consts)
        function.__code__ = code.replace(co_consts=constants, co_freevars=function.__code__.co_freevars)
        function.__defaults__ = function.__kwdefaults__ = None

    def _called(self, was, name: str, inputs: tuple, named: dict):
        if not self.on or name in self.met:
            return was(*inputs, **named)
        self._note(name, *inputs, *named.values())
        result = was(*inputs, **named)
        if inspect.isgenerator(result):
            return self._each(name, result)
        self._note(name, result, *inputs)  # what it was given may have come to the device meanwhile
        return result

    def _each(self, name: str, results):
        for result in results:
            self._note(name, result)
            yield result

    def _note(self, name: str, *values) -> None:
        if any(value.type == self.kind if isinstance(value, torch.device) else lies_there(value, self.kind) for value in values):
            self.met.add(name)

    def __enter__(self):
        self.on = True
        return self

    def __exit__(self, *_):
        self.on = False


def run(device: str, names: list[str], say: Callable[[str], None] = print) -> dict:
    "Every named check on the processor and on the device; what each took and how far the two lie apart."
    results, noting = {}, Noting(torch.device(device).type)
    torch.set_num_threads(1)
    # The processor's fast attention and the plain one round differently; what is compared here are devices.
    attention = sdpa_kernel(SDPBackend.MATH) if torch.device(device).type == "pretend" else contextlib.nullcontext()
    with attention:
        return _run(device, names, say, results, noting)


def _run(device, names, say, results, noting) -> dict:
    for name in names:
        began, answers = time.monotonic(), []
        try:
            for place in ("cpu", device):
                os.environ["ACCELERATE_TORCH_DEVICE"] = place
                PartialState._reset_state(), AcceleratorState._reset_state()  # accelerate keeps a process's first device for good
                with tempfile.TemporaryDirectory() as folder:
                    if place == "cpu":
                        answers.append(CHECKS[name](place, Path(folder)))
                    else:
                        with noting:
                            answers.append(CHECKS[name](place, Path(folder)))
            worst, where = 0.0, None
            for key in answers[0]:
                a, b = as_numbers(answers[0][key]), as_numbers(answers[1][key])
                assert a.shape == b.shape, f"{key}: {tuple(a.shape)} and {tuple(b.shape)}"
                small = isinstance(answers[0][key], torch.Tensor) and answers[0][key].dtype in (torch.float16, torch.bfloat16)  # stored in halves, whose last bit may fall either way
                # Adam's first steps have the size of the step whatever the gradient's: where that is nearly 0, rounding decides its sign.
                apart = (0.005 if small or key.startswith("weights") else 1) * ((a - b).abs() / (1 + a.abs())).max().item() if a.numel() else 0.0
                if not apart <= worst:  # NaN too
                    worst, where = apart, key
            # a real card rounds the factors of convolutions to ten bits (TF32), each by up to 5e-4
            limit = max(LOOSE.get(name, CLOSE), 0.0 if torch.device(device).type == "pretend" else 1e-2)
            error = None if worst <= limit else f"{where} differs by {worst:.2g}, at most {limit:g} are allowed"
        except Exception as failure:
            worst, error = None, f"{type(failure).__name__}: {failure}\n{traceback.format_exc(limit=-6)}"
        results[name] = {"seconds": round(time.monotonic() - began, 2), "error": error, "worst": worst}
        say(f"{name}: {'ok' if error is None else error}")
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    return {"device": device, "checks": results, "covered": sorted(noting.met), "public": sorted(public_functions())}


if __name__ == "__main__":
    chosen = sys.argv[1]
    if chosen == "pretend":
        import pretend_device  # noqa: F401
    print(json.dumps(run(chosen, sys.argv[2:] or list(CHECKS))))
