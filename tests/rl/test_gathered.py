"""What a batch tells its own rewards: shares of votes, agreement, what tasks know."""

from dataclasses import replace

import pytest

from agent.trajectory import Status
from kg.errors import UsageError
from rl.gathered import agreement, gathered, vote_shares
from rl.rewards import Combination, Part, RewardContext, require
from rl.rewards.context import task_key
from rl.train_recipe import load_train
from tests.rl.rewards.episodes import abstain, answer, episode, task

VOTES = Combination(parts={"same": Part(reward="self_consistency")})
SURE = Combination(parts={"sure": Part(reward="abstention", options={"confidence": "given"})})


def group(of, *said):
    turns = [abstain() if text is None else answer(text) for text in said]
    return [episode(turn, of=of, id=f"{of.id}-{n}") for n, turn in enumerate(turns)]


FIRST = group(task(id="a"), "feasible", "feasible", "infeasible", "maybe")
SECOND = group(task(id="b"), "Feasible.", None)


def test_vote_shares_are_over_the_readable_votes_of_all_tasks():
    assert vote_shares([FIRST, SECOND], VOTES) == {"feasible": 0.75, "infeasible": 0.25}
    nested = Combination(parts={"all": Part(reward="combination", options=VOTES.model_dump())})
    assert vote_shares([FIRST, SECOND], nested) == {"feasible": 0.75, "infeasible": 0.25}
    assert vote_shares([group(task(), "maybe")], VOTES) == {"feasible": 0, "infeasible": 0}


def test_a_policy_that_always_says_the_same_earns_nothing_by_the_shares_of_its_own_batch():
    same = [group(task(f"Is {name}?", id=name), *["feasible"] * 4) for name in "ab"]
    context = gathered(same, VOTES, RewardContext())
    assert [row.sum() for one in same for row in VOTES(one, context)] == [0] * 8


def test_one_task_has_no_shares_and_what_is_given_stays():
    assert gathered([FIRST], VOTES, RewardContext()).vote_shares == {}
    given = RewardContext(vote_shares={"feasible": 0.5, "infeasible": 0.5})
    assert gathered([FIRST, SECOND], VOTES, given).vote_shares == given.vote_shares
    assert gathered([FIRST, SECOND], SURE, RewardContext()).vote_shares == {}


def test_confidence_is_the_share_of_the_other_rollouts_that_end_alike():
    rollouts = group(task(), "Ridley Scott", "the ridley scott.", "James Cameron", None)
    assert list(agreement(rollouts).values()) == pytest.approx([1 / 3, 1 / 3, 0, 0])
    assert agreement(rollouts[:1]) == {}
    broken = replace(rollouts[2], status=Status.FAILED)
    context = gathered([[*rollouts[:2], broken]], SURE, RewardContext())
    assert context.confidence == {rollouts[0].id: 1.0, rollouts[1].id: 1.0}
    paid = [row.sum() for row in SURE(rollouts[:2], context)]
    assert paid == [1.5, 1.5]


def test_a_batch_of_groups_of_one_ends_no_run():
    context = gathered([FIRST[:1]], SURE, RewardContext())
    require([SURE], context)
    assert context.confidence == {}


def test_what_a_task_knows_is_what_statements_are_checked_against():
    known = task(meta={"knowledge": ["Alien is a film."]})
    odd = task(id="odd", meta={"knowledge": "no list"})
    context = gathered([group(known, "x"), group(odd, "x")], SURE, RewardContext())
    assert context.knowledge == {task_key(known): ("Alien is a film.",)}
    other = task(
        "Who wrote it?", meta={"knowledge": ["Dan did."]}
    )  # of another set, with the same id
    both = gathered([group(known, "x"), group(other, "x")], SURE, RewardContext()).knowledge
    assert both == {task_key(known): ("Alien is a film.",), task_key(other): ("Dan did.",)}
    mine = RewardContext(knowledge={task_key(known): ["mine"]})
    assert gathered([group(known, "x")], SURE, mine).knowledge == mine.knowledge


def test_a_run_promises_what_its_batches_will_tell():
    changes = ["rewards={a: {reward: self_consistency}, b: {reward: abstention, options: "
               "{confidence: given}}}"]  # fmt: skip
    recipe = load_train("grpo", changes)
    promised = RewardContext(promised=recipe.provides)
    require(recipe.reward.rewards.values(), promised)
    alone = load_train("grpo", [*changes, "rollouts.tasks=1", "rollouts.size=1"])
    with pytest.raises(UsageError, match=r"vote shares.*confidences"):
        require(alone.reward.rewards.values(), RewardContext(promised=alone.provides))
