"""What is measured of a step: the behaviour of its rollouts, its credit and its updates; validations."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from agent.policies.chat import ChatTemplate
from agent.trajectory import Status, StopReason
from eval.sample import score_one
from rl.credit import Batch, estimate
from rl.critic import CriticStats
from rl.step import UpdateStats
from rl.step_metrics import facts_of, of_credit, of_critic, of_rollouts, of_updates, validated
from tests.rl.rewards.episodes import abstain, answer, episode, judge, malformed, search, task
from tests.rl.rollouts import RIGHT, WRONG, play

CLOSED = task("Who directed Nothing?", (), id="q2", answerable=False)
FAILED = {"status": Status.FAILED, "stop_reason": StopReason.POLICY_ERROR}


def named(trajectory):
    return "world", "squad2"


def test_behaviour_is_a_mean_over_questions_of_the_mean_over_their_rollouts():
    right = episode(search(), search(), judge(True), answer(prompt_tokens=7))
    wrong = episode(malformed(), answer("Nolan", prompt_tokens=5))
    groups = [
        [right, wrong],
        [episode(search(), abstain(), of=CLOSED)],
        [episode(search(), search("ridley"), of=task(id="q3"))],
        [episode(of=task(id="q4"))],
        [],
    ]
    found = of_rollouts(groups, named)
    assert {n: v for n, v in found.items() if n != "sampled_entropy"} == pytest.approx(
        {
            "right": (1 / 2 + 1 + 0 + 0) / 4,
            "right_answerable": (1 / 2 + 0 + 0) / 3,
            "solved_all": 1 / 4,
            "solved_none": 2 / 4,
            "abstained": 1 / 4,
            "failed": 1 / 4,
            "capped": 1 / 4,
            "turns": ((4 + 2) / 2 + 2 + 2 + 0) / 4,
            "searches": (2 / 2 + 1 + 2 + 0) / 4,
            "invalid": (1 / 2) / 4,
            "repeated": (1 / 2) / 4,
            "tool_entropy": -(5 / 6) * math.log(5 / 6) - (1 / 6) * math.log(1 / 6),
            "sampled_tokens": 0.0,
            "read_tokens": 12.0,
        }
    )
    assert math.isnan(found["sampled_entropy"])
    assert of_rollouts([[episode(answer())]], named)["tool_entropy"] == 0.0


def test_a_validation_tells_wrong_from_declined_and_answerable_from_not():
    played = [
        episode(search(), answer()),
        episode(answer("Nolan")),
        episode(abstain()),
        episode(search(), answer(), **FAILED),
        episode(answer("Nobody"), of=CLOSED),
        episode(abstain(), of=CLOSED),
        episode(answer("Nobody"), of=CLOSED, **FAILED),
    ]
    played = [
        replace(t, task=replace(t.task, id=f"q{n}", kind="even" if n % 2 == 0 else "odd"))
        for n, t in enumerate(played)
    ]
    found = validated(3, [score_one("world", "squad2", t.task, t) for t in played])
    assert (found.step, found.right.mean, found.right.n) == (3, pytest.approx(2 / 7), 7)
    assert {kind: (one.mean, one.n) for kind, one in found.kinds.items()} == {
        "even": (1 / 4, 4),
        "odd": (pytest.approx(1 / 3), 3),
    }
    assert (found.wrong, found.declined) == (1 / 4, 1 / 4)  # of four answerable ones
    assert found.hallucinated == pytest.approx(1 / 3)
    assert (found.errors, found.without_errors.mean, found.without_errors.n) == (2, 2 / 5, 5)
    assert (found.searches, found.turns) == (pytest.approx(2 / 7), pytest.approx(9 / 7))
    facts = json.loads(json.dumps(facts_of(found)))
    assert [q["episode"] for q in facts["questions"]] == [t.id for t in played]
    assert [q["right"] for q in facts["questions"]] == [1, 0, 0, 0, 0, 1, 0]
    assert [q["declined"] for q in facts["questions"]] == [n in (2, 5) for n in range(7)]
    assert [q["answerable"] for q in facts["questions"]] == [n < 4 for n in range(7)]
    assert validated(0, found.samples[3:4]).without_errors is None
    assert math.isnan(validated(0, found.samples[:1]).hallucinated)


def test_credit_is_told_a_trajectory_and_its_advantages_a_sampled_token():
    rewards = {"answer": [[None, 1.0], [0.0]], "cost": [[-0.1, -0.2], [None]]}
    batch = Batch.ragged(
        [0, 0], rewards, spans=[[(1, 2), (3, 5)], [(1, 4)]], sampled=[[0, 1, 0, 1, 1], [0, 1, 1, 1]]
    )
    credit = estimate("dr_grpo", batch)
    spec = SimpleNamespace(needs_probes=False)
    found = of_credit(SimpleNamespace(batch=batch, credit=credit, dropped=("a", "b"), spec=spec))
    assert math.isnan(found.pop("reward_error"))  # of one task
    assert found == pytest.approx(
        {
            "reward": 0.7 / 2,
            "reward/answer": 1 / 2,
            "reward/cost": -0.3 / 2,
            "advantage_abs": 0.35,
            "dropped": 2.0,
        }
    )


def test_the_error_of_a_reward_is_clustered_by_task():
    rewards = [[1.0], [1.0], [0.0], [0.0], [0.5], [0.1]]
    batch = Batch.ragged([7, 7, 3, 3, 5, 5], {"answer": rewards})
    credit = estimate("dr_grpo", batch)
    spec = SimpleNamespace(needs_probes=False)
    found = of_credit(SimpleNamespace(batch=batch, credit=credit, dropped=(), spec=spec))
    means = [1.0, 0.0, 0.3]  # clusters of one size: the plain standard error of their means
    assert found["reward_error"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(3))


def test_figures_of_updates_are_means_or_the_furthest():
    one = UpdateStats(1.0, True, {"kl": 1.0, "ratio_max": 2.0, "weight_min": 0.5, "lr": 0.1})
    other = UpdateStats(3.0, False, {"kl": 3.0, "ratio_max": 5.0, "weight_min": 0.9})
    figures = {"kl": 2.0, "ratio_max": 5.0, "weight_min": 0.5, "lr": 0.1}
    assert of_updates([one, other]) == {"loss": 2.0, **figures, "skipped": 1.0}
    assert of_critic(CriticStats(0.5, -0.25, (one, other))) == {
        "critic/mse": 0.5,
        "critic/explained_variance": -0.25,
        "critic/loss": 2.0,
        "critic/lr": 0.1,
        "critic/skipped": 1.0,
    }


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


def test_right_verdicts_are_told_of_the_rollouts_that_gave_any():
    gold, other = search("q", "text", ids=["gold/0"]), search("r", "text", ids=["else/0"])
    of = task(evidence=("gold/0",))
    told = [
        episode(gold, judge(True), other, judge(True), answer(), of=of),  # one of two
        episode(other, judge(False), answer(), of=of),
        episode(gold, answer(), of=of),  # none
    ]
    declined = episode(search("q", "text"), judge(False), abstain(), of=CLOSED)
    found = of_rollouts([told, [declined]], named)
    assert found["verdicts_right"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert "verdicts_right" not in of_rollouts(
        [[episode(gold, judge(True), of=task(id="q2"))]], named
    )
