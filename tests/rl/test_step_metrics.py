"""What a step's rollouts tell of the policy."""

from dataclasses import replace

import numpy as np
import pytest

from agent.policies.chat import ChatTemplate
from rl.step_metrics import of_rollouts
from tests.rl.rollouts import RIGHT, WRONG, play


@pytest.fixture(scope="module")
def template(micro):
    return ChatTemplate.load(micro)


def flipped(rollout, heads, rng):
    """The rollout with log-probabilities as if each sampled token were a flip of a coin."""
    up = rng.random(len(rollout.token_ids)) < heads
    flips = np.log(np.where(up, heads, 1 - heads))
    return replace(rollout, logprobs=np.where(rollout.sampled, flips, np.nan))


def told(groups):
    return of_rollouts(groups, lambda trajectory: ("world", "squad2"))["sampled_entropy"]


def test_the_sampled_entropy_is_that_of_the_policy_whether_rollouts_differ_or_not(template):
    rng, same = np.random.default_rng(0), play(RIGHT, template)
    exact = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    groups = [[flipped(same, 0.9, rng) for _ in range(2)] for _ in range(40)]
    assert told(groups) == pytest.approx(exact, abs=0.03)


def test_the_sampled_entropy_is_a_mean_over_tokens_of_all_rollouts(template):
    one, other = play(RIGHT, template), play(WRONG, template)
    sure = replace(one, logprobs=np.where(one.sampled, 0.0, np.nan))
    unsure = replace(other, logprobs=np.where(other.sampled, -1.0, np.nan))
    tokens = [int(t.sampled.sum()) for t in (sure, unsure)]
    assert min(tokens) > 0
    assert told([[sure], [unsure]]) == pytest.approx(tokens[1] / sum(tokens))
    assert told([[sure, sure]]) == 0.0
    unknown = replace(one, logprobs=np.full(len(one.token_ids), np.nan))
    assert told([[sure, unknown]]) == 0.0
    assert np.isnan(told([[unknown]]))
