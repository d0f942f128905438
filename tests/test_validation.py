"""Validation: large and clear changes are alarms, each with its reason; luck is not. (The planted hack runs in the chapter's notebook.)"""

import copy
import json
from types import SimpleNamespace

import pytest
import tiny_parts
import torch

from drpose.ground.model_files import embedded_models
from drpose.ground.trainer import RunDirectory
from drpose.multiview.unet import HandOver
from drpose.multiview.pipeline import MultiViewPipeline
from drpose.reward.skeleton_predictor import SkeletonPredictor
from drpose.reward.rewards import RewardSum
from drpose.evaluation.benchmarks import load_benchmark
from drpose.posttraining.validation import Change, Validator, ValidationSettings, Limits, find_alarms, read_validation

STEADY = {name: Change(before, 0.0, 0.01 * before) for name, before in {"psnr": 20.0, "sharpness": 0.9, "everyday_mm": 80.0, "hard_mm": 300.0, "frechet": 0.1, "reward": 0.3, "judge_reward": 0.3, "drift": 0.1}.items()}


def test_nothing_moved_nothing_said():
    assert find_alarms(STEADY, 1.0, Limits()) == []


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("psnr", -1.7, "wash out: colour PSNR 20.0 -> 18.3"),
        ("sharpness", -0.2, "blur: sharpness 0.90 -> 0.70"),
        ("everyday_mm", 40.0, "forgotten: joint error 80 -> 120"),
        ("hard_mm", 30.0, "get worse: joint error 300 -> 330"),
        ("frechet", 2.0, "stop looking like people"),
        ("reward", 0.2, "being fooled: it rose by 0.200"),
    ],
)
def test_each_harm_has_its_reason(name, change, sentence):
    "Large and clear: one alarm. Good news, or a change within the noise: none."
    before = STEADY[name].before
    (alarm,) = find_alarms(STEADY | {name: Change(before, change, abs(change) / 5)}, 1.0, Limits())
    assert sentence in alarm and "\n" not in alarm
    assert find_alarms(STEADY | {name: Change(before, -change, abs(change) / 5)}, 1.0, Limits()) == []
    assert find_alarms(STEADY | {name: Change(before, change, abs(change))}, 1.0, Limits()) == []


def test_a_gain_that_the_evaluation_predictor_shares_is_no_alarm():
    for by_evaluation, count in ((0.15, 0), (0.06, 0), (0.01, 1), (-0.1, 1)):
        seen = STEADY | {"reward": Change(-0.4, 0.2, 0.02), "judge_reward": Change(-0.4, by_evaluation, 0.005)}
        assert len(find_alarms(seen, 1.0, Limits())) == count, by_evaluation


def test_a_model_that_ignores_the_noise_is_an_alarm():
    assert "diversity is 0.20" in find_alarms(STEADY, 0.2, Limits())[0]


class Given(Validator):
    "A validator whose measurements are given, so that only its decisions are tested."

    def __init__(self, folder, script, **settings):
        super().__init__(
            SimpleNamespace(start=None, unet=None), None, RunDirectory(folder, tiny_parts.config()), scheduler=None, vae=None, eval_predictor=None, prompt_embeds=None, benchmarks=dict, eval_score=None,
            settings=ValidationSettings(every=1, **settings),
        )  # fmt: skip
        self.script = script

    def _draw(self, network, name, seed=0):
        return None

    def begin(self, step):
        self.make_benchmarks = lambda: {"everyday": None, "hard": None}
        known = self.lines_path.read_text().splitlines() if self.lines_path.exists() else []
        self.lines = [line for line in map(json.loads, known) if line["step"] <= step]
        self._write()
        self.benchmarks, self.base_diversity = self.make_benchmarks(), 1.0

    def _diversity(self, network, drawn):
        return 1.0

    def _kl(self, drawn):
        return 0.0

    def _picture(self, path, name, latents):
        pass

    def changes(self, drawn):
        return STEADY | self.script.pop(0)


BAD = {"psnr": Change(20.0, -2.0, 0.1)}


def by_evaluation(value):
    return {"judge_reward": Change(0.3, value, 0.01)}


def test_two_looks_in_a_row_end_the_run_and_one_does_not(tmp_path, capsys):
    validator = Given(tmp_path, [{}, BAD, {}, BAD, BAD])
    validator.begin(0)
    assert [validator(done) for done in range(1, 6)] == [False, False, False, False, True]
    printed = capsys.readouterr().out
    assert "validation at step 2: WARNING, everyday pictures wash out" in printed and "validation at step 5: the run ends here, because everyday pictures wash out" in printed


def test_it_can_be_told_only_to_warn(tmp_path):
    validator = Given(tmp_path, [BAD, BAD, BAD], stop=False)
    validator.begin(0)
    assert [validator(done) for done in (1, 2, 3)] == [False] * 3


def test_best_is_the_evaluation_predictors_favourite_without_an_alarm(tmp_path):
    validator = Given(tmp_path, [by_evaluation(0.1), by_evaluation(0.05), by_evaluation(0.3) | BAD, by_evaluation(0.2)])
    validator.begin(0)
    for done in range(1, 5):
        validator(done)
    assert [look["best"] for look in read_validation(tmp_path)] == [True, False, False, True]


def test_looks_after_the_checkpoint_are_taken_again(tmp_path):
    validator = Given(tmp_path, [by_evaluation(0.1), by_evaluation(0.2), by_evaluation(0.3)])
    validator.begin(0)
    for done in (1, 2, 3):
        validator(done)
    resumed = Given(tmp_path, [by_evaluation(0.2), by_evaluation(0.3)])
    resumed.begin(1)
    whole = [{"step": look["step"], "best": look["best"]} for look in read_validation(tmp_path)]
    assert whole == [{"step": 1, "best": True}]
    for done in (2, 3):
        resumed(done)
    assert [(look["step"], look["best"]) for look in read_validation(tmp_path)] == [(1, True), (2, True), (3, True)]


def test_a_look_goes_where_the_networks_are(tmp_path):
    "Devices and precisions are handed on together; double precision shows, without a GPU, what was not."
    pipeline = MultiViewPipeline.from_pretrained(embedded_models() / "pipeline")
    held_out = {name: load_benchmark(name, pipeline.vae, samples=4, seed=1) for name in ("hard", "everyday")}
    held_out["hard"].truth.images, held_out["hard"].photos = None, held_out["hard"].truth.images[:, 1, 0]  # as of pairs
    base = pipeline.to(torch.float64).unet
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.conv_out.bias.add_(0.05)
    eval_predictor = SkeletonPredictor.from_pretrained(embedded_models() / "predictor").eval()
    score = RewardSum(eval_predictor, "transport")
    validator = Validator(
        HandOver(tuned, base, 0), score, RunDirectory(tmp_path, tiny_parts.config()), scheduler=pipeline.scheduler, vae=pipeline.vae, eval_predictor=eval_predictor, prompt_embeds=pipeline.prompt_table.embeds, benchmarks=lambda: held_out,
        eval_score=score, settings=ValidationSettings(every=1, num_inference_steps=3),
    )  # fmt: skip
    validator.begin(0)
    validator(1)
    (look,) = read_validation(tmp_path)
    assert look["kl"] > 0.001 and look["drift"] > 0 and sorted(path.stem for path in (tmp_path / "validation").iterdir()) == ["everyday-000001", "hard-000001"]
    assert look["reward"] == look["judge_reward"], "the same predictor, the same gain"
