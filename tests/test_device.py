"""Everything that a GPU would run, on an accelerator that is not there (`pretend_device`): no tensor is left on the processor, and the numbers are the processor's. `device_checks.py cuda` does the same on a GPU."""

from __future__ import annotations

import ast
import fcntl
import json
from pathlib import Path

import pytest
from project_files import run_python

TESTS = Path(__file__).resolve().parent
CHECKS = TESTS / "device_checks.py"

NOT_ON_A_DEVICE = {
    "reads or writes files, and gives what lies on the processor": """
        files.read_tensors model_files.check_fits model_files.empty_model model_files.load_model motion.load_motion motion.load_pybullet_clips scans.read_scan_pose scans.render_scans scans.stand_in_scans scans.ScanFit mesh_files.sampled_colors
        pshuman.encode_prompts pshuman.pshuman_prompts pshuman.read_prompt_file latents.build_images latents.build_latents latents.read_images latents.shown_photos bodies.load_body animators.load_animator viewers.save_pose scail_animator.read_video scail_animator.write_video real_person.Sighting real_person.draw_footage rigged_characters.posed_character motion.bone_turns""",
    "makes a new model or table, which is moved afterwards": """
        pipeline.tiny_prompt_embeds pipeline.PromptTable unet.build_stages base_training.new_autoencoder base_training.tiny_unet pshuman.from_stable_unclip""",
    "draws poses, people or settings, on the processor by design: a draw must not depend on the machine": """
        dressed_people.draw_palette clips.draw_poses clips.between_keyframes clips.pose_keyframe pose_space.limit_sample pose_space.random_rotation reward_gradients.async_indices pose_estimator.vary streaming.shuffled_order""",
    "a photo of Pillow, and a network that its interpreter keeps on the processor": "detectors.cut_out",
    "pictures of Pillow become tensors, which are moved afterwards": "pipeline.pictures_tensor pipeline.photo_tensor pipeline.framed_pictures reconstruction.framed_photo",
    "keeps data on the processor and hands out batches; the loop moves them": "latents.LatentSet post_training.PairConditions base_training.train_autoencoder base_training.train_base predictor_training.train_skeleton_predictor base_training.AutoencoderLoss predictor_training.PredictorLoss picture_predictor.PictureLoss picture_predictor.spoilt dataset.chosen_pairs dataset.passing_pairs base_training.cut_out post_training.pose_reward",
    "measures on the processor by design (tried on a device by 'measures one by one' where it can be called alone)": "benchmarks.Benchmark views.picture_metrics views.pose_metrics benchmarks.load_scan_benchmark",
    "looks at names alone": "unet.idle_parameters",
    "its own methods make one from plain numbers, on the processor; what it holds is met everywhere": "bodies.Pose reconstruction.Reconstruction",
    "runs on CUDA alone": "rendering.seen_by_pytorch3d",
}  # fmt: skip


def names_of_checks() -> list[str]:
    "Without importing them: they bring the whole package, and the device must be there first."
    tree = ast.parse(CHECKS.read_text(encoding="utf-8"))
    named = [decorator.args[0].value for node in tree.body if isinstance(node, ast.FunctionDef) for decorator in node.decorator_list if getattr(getattr(decorator, "func", None), "id", "") == "check"]
    variants = next(node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VARIANTS")
    return named + [f"post-training: {key.value}" for key in variants.keys]


PORTIONS = 4


def portions() -> list[list[str]]:
    "The names of the checks, dealt out."
    names = names_of_checks()
    return [names[number::PORTIONS] for number in range(PORTIONS)]


@pytest.fixture(scope="session")
def report(tmp_path_factory, request):
    """What the checks of a portion found, each portion in a process of its own, since the device is registered for good.

    Both workers of pytest-xdist may ask: who finds a portion under way does another one before it waits."""
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if hasattr(request.config, "workerinput") else mine

    def done(number: int, wait: bool) -> bool:
        "Whether the portion is done, by whomever; False if it is under way and nobody is to wait."
        found = shared / f"device-{number}.json"
        with open(shared / f"device-{number}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            if not found.exists():
                ran = run_python(f"import runpy; runpy.run_path({str(CHECKS)!r}, run_name='__main__')", "pretend", *portions()[number], cwd=TESTS.parent, timeout=1800, package=True)
                assert ran.returncode == 0, ran.stderr[-2000:]
                found.write_text(ran.stdout.splitlines()[-1])
        return True

    def of(number: int) -> dict:
        if not done(number, wait=False):
            for other in range(PORTIONS):
                done(other, wait=False)
            done(number, wait=True)
        return json.loads((shared / f"device-{number}.json").read_text())

    return of


@pytest.mark.parametrize("portion, name", [(number, name) for number, names in enumerate(portions()) for name in names])
def test_the_device_gives_the_processors_numbers(portion, name, report):
    found = report(portion)["checks"][name]
    assert found["error"] is None, found["error"]


def test_every_public_function_has_been_there(report):
    "What handles tensors is met on the device by some check, or stands in the table above with its reason. A new function joins by itself."
    excused = {name for names in NOT_ON_A_DEVICE.values() for name in names.split()}
    covered, public = ({name for number in range(PORTIONS) for name in report(number)[which]} for which in ("covered", "public"))
    missing = sorted(public - covered - excused)
    assert not missing, f"no check in device_checks.py takes these to the device: {missing}"
    assert excused <= public, f"no such functions: {sorted(excused - public)}"


def test_the_device_finds_what_is_left_behind():
    "The tool itself: a tensor of the processor is refused, a number is welcome, and values are those of the processor."
    program = (
        "import pretend_device, torch\n"
        "there = torch.arange(4.0).to('pretend')\n"
        "assert torch.equal((there * 2 + 1).cpu(), torch.arange(4.0) * 2 + 1)\n"
        "for act in (lambda: there + torch.arange(4.0), lambda: torch.cat([there, torch.zeros(1)]), lambda: torch.zeros(4)[there > 1], there.numpy):\n"
        "    try:\n        act()\n    except (RuntimeError, TypeError):\n        continue\n    raise SystemExit('accepted')\n"
    )
    done = run_python(program, cwd=TESTS, timeout=300)
    assert done.returncode == 0, done.stderr[-800:]
