"""Ablations: every variant changes one thing, the list can be shared out, and an interval counts people and seeds."""

import json
from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import t as t_distribution

from drpose.ground.trainer import config_from
from drpose.evaluation.ablations import QUESTIONS, REFERENCE, Variant, variants, differences, question_table, read_runs, runs
from drpose.posttraining.post_training import PostTrainConfig


def test_every_question_holds_the_reference_and_settings_that_exist():
    known = {field.name for field in fields(PostTrainConfig)}
    for question, columns in QUESTIONS.items():
        assert sum(variant.name == "reference" for variant in columns) == 1, question
        assert len({variant.label for variant in columns}) == len(columns) == len({variant.name for variant in columns})
    for name, variant in variants().items():
        settings = REFERENCE | dict(variant.changes)
        trainer = {key: value for key, value in settings.items() if key not in ("selection", "everyday_share")}
        assert set(trainer) <= known and config_from(PostTrainConfig, trainer, name)
        assert all(REFERENCE.get(key) != value for key, value in variant.changes.items()), name


def test_the_asked_questions_are_there():
    "KL weights, K, estimators, reward forms, LoRA against all weights, pose selection."
    changed = [dict(variant.changes) for variant in variants().values()]
    assert {change.get("kl_weight", REFERENCE["kl_weight"]) for change in changed} == {0.0, 0.01, 0.1, 0.3, 1.0}
    assert {change.get("estimator", REFERENCE["estimator"]) for change in changed} == {"drtune", "draft-k", "draft-lv", "alignprop", "refl", "full", "async"}
    assert {"selection": "random"} in changed and {"everyday_share": 1.0} in changed and any(change.get("lora_rank") == 0 for change in changed)


def test_names_are_fit_for_files_and_say_what_changed():
    assert Variant("x", {"reward": "transport + 0.5 silhouette", "kl_weight": 0.01}).name == "kl_weight=0.01+reward=transport-+-0.5-silhouette"
    assert Variant("y").name == "reference" and all("/" not in name and " " not in name for name in variants())


def test_shards_cover_everything_once():
    whole = [(variant.name, seed) for variant, seed in runs()]
    parts = [[(variant.name, seed) for variant, seed in runs(shard=shard, shards=4)] for shard in range(4)]
    assert sorted(sum(parts, [])) == sorted(whole) and len(set(whole)) == len(whole) == 3 * len(variants())
    with pytest.raises(ValueError, match="shard is 4 of 4"):
        runs(shard=4, shards=4)
    with pytest.raises(ValueError, match="there is no question 'Why\\?'"):
        variants(["Why?"])


def test_difference_by_hand():
    "Two seeds, three people; the interval from the formula, written out."
    reference, other = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), np.array([[2.0, 3.0, 5.0], [2.0, 4.0, 6.0]])
    found = differences({"a": reference, "b": other}, "a")
    gap = other - reference
    people = np.var([1.0, 1.5, 2.5], ddof=1) / 3
    seeds = np.var([gap[0].mean(), gap[1].mean()], ddof=1) / 2
    error = (people + seeds) ** 0.5
    freedom = (people + seeds) ** 2 / (people**2 / 2 + seeds**2 / 1)
    half = t_distribution.ppf(0.975, freedom) * error
    assert found["b"].change == pytest.approx(gap.mean()) and found["b"].high == pytest.approx(gap.mean() + half)
    assert found["a"].change == found["a"].low == found["a"].high == 0 and not found["a"].clear
    with pytest.raises(ValueError, match="all of one shape"):
        differences({"a": reference, "b": other[:, :2]}, "a")
    with pytest.raises(ValueError, match="at least 2 x 2"):
        differences({"a": reference[:1]}, "a")


def test_tables_are_read_from_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="reference-seed0.json"):
        read_runs(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("reference", "kl_weight=1"):
        for seed in range(3):
            people = {"mpjpe_mm": (100 + (name != "reference") * 20 + draw.normal(size=8)).tolist()}
            (tmp_path / f"{name}-seed{seed}.json").write_text(json.dumps({"hard": {"people": people}}))
    (tmp_path / "kl_weight=0-seed0.json").write_text("{}")  # not finished: two seeds are missing
    found = read_runs(tmp_path)
    assert sorted(found) == ["kl_weight=1", "reference"]
    table = question_table("Does the KL penalty matter?", found, {"hard, mm": ("hard", "mpjpe_mm")})
    assert list(table) == ["KL 0.1", "KL 1"] and table["KL 1"]["hard, mm"].clear and abs(table["KL 1"]["hard, mm"].change - 20) < 2
