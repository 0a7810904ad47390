"""What published rewards drive a policy to, seen on small ones.

The policy is a table of logits. What it earns is paid by the real rewards for real episodes. Where
nothing else is said, the expectation is climbed to the end, so that there is no luck in it.
"""

import numpy as np
import pytest

from eval.metrics.weighted import f1
from rl.rewards import RewardContext, make_reward
from tests.rl.rewards.episodes import abstain, answer, episode, search

RIGHT, WRONG = "Ridley Scott", "James Cameron"


def paid(reward, *turns):
    return float(reward([episode(*turns, id="t")], RewardContext())[0].sum())


def climbed(values, steps=4000, rate=0.5):
    """Probabilities of the actions after gradient ascent on their expected value, from equal ones."""
    logits, values = np.zeros(len(values)), np.asarray(values)
    for _ in range(steps):
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        logits += rate * chances * (values - chances @ values)
    return chances


@pytest.mark.parametrize(
    ("right", "searches"),
    [((1.0, 1.0, 1.0, 1.0), 0), ((0.0, 1 / 3, 2 / 3, 1.0), 3)],
    ids=["easy questions", "hard questions"],
)
def test_ikea_searches_not_at_all_on_easy_questions_and_to_the_cap_on_hard_ones(right, searches):
    """`right`: how often the answer is right after so many searches."""
    reward = make_reward("knowledge_boundary")

    def value(count, chance):
        asked = [search(f"q{n}") for n in range(count)]
        ends = [paid(reward, *asked, answer(said)) for said in (RIGHT, WRONG)]
        return chance * ends[0] + (1 - chance) * ends[1]

    found = climbed([value(count, chance) for count, chance in enumerate(right)])
    assert found[searches] > 0.99


@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_refusal_that_costs_is_made_less_often_and_more_answers_are_wrong(form):
    """KnowRL's ablation, on questions that the policy is right about nine times, and once, in ten."""

    def rates(refusal):
        reward = make_reward("factual_reasoning", {"form": form, "refusal": refusal})
        ends = [paid(reward, turn) for turn in (answer(RIGHT), answer(WRONG), abstain())]
        refused, wrong = 0.0, 0.0
        for known in (0.9, 0.1):
            answers = known * ends[0] + (1 - known) * ends[1]
            chances = climbed([answers, ends[2]])
            refused += chances[1] / 2
            wrong += chances[0] * (1 - known) / 2
        return refused, wrong

    kind, strict = rates(1.0), rates(-1.0)
    assert strict[0] < kind[0] - 0.4
    assert strict[1] > kind[1] + 0.4


def self_knowledge(seed, balanced, rounds=40, questions=60, rate=4.0):
    """F1 of "infeasible" in the votes of the first and the last round, of questions half of which are.

    The policy knows a little of what it knows, and thinks too well of itself: it calls most of what
    is not feasible feasible too. No label is paid for.
    """
    luck = np.random.default_rng(seed)
    true = np.arange(questions) % 2 == 1
    logits = 1.0 + np.where(true, -0.8, 0.8) + luck.normal(0, 0.4, questions)  # of "feasible"
    reward = make_reward("self_consistency", {"balanced": balanced})
    found = []
    for _ in range(rounds):
        chances = 1 / (1 + np.exp(-logits))
        votes = luck.random((questions, 8)) < chances[:, None]
        found.append(f1((~votes).ravel(), np.repeat(true, 8))(np.ones((1, votes.size))).item())
        shares = {"feasible": float(votes.mean()), "infeasible": float(1 - votes.mean())}
        for number, own in enumerate(votes):
            said = [episode(answer("feasible" if vote else "infeasible"), id="t") for vote in own]
            paid_for = [row.sum() for row in reward(said, RewardContext(vote_shares=shares))]
            logits[number] += rate * np.mean(paid_for * (own - chances[number]))
    return found[0], found[-1]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_agreement_with_oneself_teaches_what_one_knows_if_labels_are_balanced(seed):
    """KnowRL (self-knowledge): F1 of one class, always the same, rises from first round to last."""
    first, last = self_knowledge(seed, balanced=True)
    assert last > first + 0.1
    collapsed = self_knowledge(seed, balanced=False)[1]
    assert collapsed < last - 0.2
