"""The benchmark against TRL's trainer compares one computation: what it says is equal, is."""

import json
import random

import pytest

from benchmarks.learner import compare, compared, equal_length, failures, run_side
from benchmarks.learner_sides import Sample
from tests.rl.learning import tiny_model

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)


def groups(seed, count=2, size=4):
    """A prompt a group, then replies and observations by turns; two rollouts are the same."""
    chance = random.Random(seed)

    def some(low, high):
        return [chance.randrange(5, 4000) for _ in range(chance.randint(low, high))]

    def rollout(prompt):
        ids, mask = [], []
        for turn in range(chance.randint(2, 3)):
            for sampled, part in ((0, some(5, 15) if turn else []), (1, some(3, 8))):
                ids, mask = ids + part, mask + [sampled] * len(part)
        return Sample(prompt, ids, mask, chance.gauss(0, 1))

    made = [[rollout(prompt) for _ in range(size - 1)] for prompt in (some(20, 30), some(20, 30))]
    return [[*group, group[0]._replace(reward=0.5)] for group in made[:count]]


def test_both_sides_compute_the_same(tmp_path):
    """Rollouts that share much, in two padded passes of TRL's, and rollouts that share nothing."""
    folder = tiny_model(tmp_path / "tiny")
    case = [*groups(0), *equal_length(1, 4, 24, 4000)]
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case))
    outs = [tmp_path / f"{side}.json" for side in ("ours", "trl")]
    for side, out in zip(("ours", "trl"), outs, strict=True):
        run_side(side, path, out, folder, "--check", "--threads", 1, "--rows", 6)
    found = compared(*(out.with_suffix(".pt") for out in outs))
    assert failures(found) == []
    assert found["weights_5"] < 1e-3


def test_speed_is_told_against_trl_as_it_comes_and_under_the_same_deepspeed():
    sides = {"trl": {"step": 4.0}, "trl-deepspeed": {"step": 3.0}, "ours": {"step": 2.0}}
    compare(sides, {"trained": 100, "tokens": 600})
    assert sides["ours"] == {
        "step": 2.0,
        "trained_per_s": 50.0,
        "processed_per_s": 300.0,
        "speedup": 2.0,
        "speedup_deepspeed": 1.5,
    }
    assert sides["trl"]["speedup_deepspeed"] == 0.75
    alone = {"ours": {"step": 2.0}}
    compare(alone, {"trained": 100, "tokens": 600})
    assert "speedup" not in alone["ours"]
