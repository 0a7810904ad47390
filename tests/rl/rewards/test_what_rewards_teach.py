"""What published reward tables drive a policy to, by exact gradients of small ones.

The policy is a table: a logit an action, and a softmax. What it earns is paid by the real rewards for
real episodes, and its expectation is climbed to the end, so that there is no luck in it.
"""

import numpy as np
import pytest

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
