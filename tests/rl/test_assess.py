"""From rewards to the loss: what each turn is said to add is what the loss really gets from it."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.policies.catalog import resolve
from agent.task import Task
from agent.trajectory import Status
from kg.errors import PolicyUnavailableError, UsageError
from rl.assess import assess, by_group
from rl.assessment_recipe import Assessment, CreditChoice, LossChoice
from rl.credit import ESTIMATORS, CreditError
from rl.losses import Reduction, Tokens, gspo, kl_loss, ppo_clip
from rl.probes import Wrapper
from rl.receipt import make_receipt
from rl.receipt_table import render_receipt
from rl.rewards import Part, RewardContext, RewardError, make_reward, reward_kind
from rl.scoring import load_scorer, score_group
from rl.step_metrics import of_credit
from rl.train_recipe import load_assessment
from tests.rl.groups import random_group
from tests.rl.rollouts import ASTRAY, AT_ONCE, RIGHT, TASK, WRONG, group, play

CRITIC = ("token_gae", "turn_gae", "bilevel_gae")  # they need predicted values
NO_CRITIC = sorted(set(ESTIMATORS) - set(CRITIC))
HOW = ("token-mean", "sequence-mean", "sequence-sum", "constant")


def spec(estimator="igpo", how="token-mean", **rewards):
    parts = rewards or {
        "cost": Part(reward="repetition", weight=0.3),
        "format": Part(reward="format", options={"place": "turn"}),
        "gain": Part(reward="information_gain", weight=0.5),
    }
    return Assessment(
        rewards=parts,
        credit=CreditChoice(estimator=estimator),
        loss=LossChoice(aggregation=how, constant=7.0),
    )


def random_groups(seed, count=3):
    """Groups of one to four rollouts of different tasks, and random probes for all."""
    chance = np.random.default_rng(seed)
    groups, gold = [], {}
    for number in range(count):
        made = random_group(seed + number, size=int(chance.integers(1, 5)))
        task = Task(f"t{number}", "Q?", ("gold",))
        groups.append([replace(t, task=task, id=f"{number}-{i}") for i, t in enumerate(made)])
        for t in groups[-1]:
            gold[t.id] = -chance.random((1, len(t.turns))) * 5
    return groups, RewardContext(gold_logprobs=gold)


def policy_loss(assessed, loss=ppo_clip):
    """The loss of the batch at ratio 1 and its gradient by each token's log-probability."""
    batch = assessed.batch
    total = sum(len(mask) for mask in batch.sampled)
    logprobs = torch.linspace(-3, -0.1, max(total, 1), dtype=torch.float64)[:total]
    current = logprobs.clone().requires_grad_()
    rows = [torch.full((len(mask),), i) for i, mask in enumerate(batch.sampled)]
    tokens = Tokens(
        logprobs=current,
        old=logprobs,
        advantages=torch.from_numpy(np.concatenate(assessed.credit.advantages)),
        mask=torch.from_numpy(np.concatenate(batch.sampled)),
        sequence=torch.cat(rows),
    )
    choice = assessed.spec.loss
    found = loss(tokens, reduction=Reduction(choice.aggregation, choice.constant)).value
    found.backward()
    return found.item(), current.grad.numpy()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(NO_CRITIC), st.sampled_from(HOW))
def test_the_contributions_of_all_turns_add_up_to_the_loss(seed, estimator, how):
    groups, context = random_groups(seed)
    found = assess(groups, spec(estimator, how), context)
    assert found.dropped == ()
    loss, gradient = policy_loss(found)
    assert found.contributions.sum() == pytest.approx(-loss, abs=1e-9)
    assert found.loss == pytest.approx(loss, abs=1e-9)
    each = np.concatenate(
        [w * a for w, a in zip(found.weights, found.credit.advantages, strict=True)]
    )
    np.testing.assert_allclose(gradient, -each, atol=1e-12)  # token by token
    for receipt in (make_receipt(found, id) for id in found.batch.ids):
        adds_up(receipt)


def test_the_same_for_sequence_ratios():
    groups, context = random_groups(3)
    found = assess(groups, spec("rloo", "sequence-mean"), context)
    assert found.loss == pytest.approx(policy_loss(found, gspo)[0], abs=1e-9)


def adds_up(receipt):
    """Every column of a receipt follows from those before it."""
    for line in receipt.turns:
        assert line.reward == pytest.approx(sum(line.normalised.values()))
        summed = sum(
            term.weight * (term.returns - term.baseline - term.center) / term.scale
            for term in line.terms
        )
        assert line.advantage == pytest.approx(summed, abs=1e-9)
        assert line.contribution == pytest.approx(
            line.weight * line.tokens * line.advantage, abs=1e-9
        )
    if receipt.estimator == "igpo":  # plain sums of what is normalised
        rewards = [line.reward for line in receipt.turns]
        returns = [line.terms[0].returns for line in receipt.turns]
        np.testing.assert_allclose(returns, np.cumsum(rewards[::-1])[::-1], atol=1e-9)
    this = next(line for line in receipt.rollouts if line.id == receipt.id)
    assert receipt.contribution == pytest.approx(this.contribution, abs=1e-12)
    total = sum(line.contribution for line in receipt.rollouts)
    assert total == pytest.approx(-receipt.loss, abs=1e-9)


@pytest.fixture(scope="module")
def folder(models_dir):
    return resolve("micro", models_dir)


@pytest.fixture(scope="module")
def scorer(folder):
    return load_scorer(folder, "micro")


@pytest.fixture(scope="module")
def rollouts(scorer):
    """Four real rollouts of one task, as the store would hold them."""
    return group(scorer.template, scorer.policy)


@pytest.fixture(scope="module")
def scored(rollouts, scorer):
    """The four by the recipe that ships, probed by the real model."""
    return assess([rollouts], load_assessment("igpo"), scorer=scorer)


def test_a_real_group_by_the_recipe_that_ships(rollouts, scored, scorer):
    found = scored
    assert found.dropped == ()
    assert policy_loss(found)[0] == pytest.approx(found.loss, abs=1e-9)
    receipts = [make_receipt(found, t.id, scored_by=scorer.policy) for t in rollouts]
    for receipt in receipts:
        adds_up(receipt)
    right, astray, wrong, broken = receipts
    assert right.turns[0].information_gain > 1  # the search found it
    assert astray.turns[2].information_gain > 1
    assert wrong.turns[0].information_gain < right.turns[0].information_gain
    assert right.turns[-1].parts == {"answer": 1.0}
    assert broken.turns[-1].parts == {"answer": -2.0}
    assert right.gold_answer in TASK.answers
    assert right.turns[0].parts == {"gain": pytest.approx(right.turns[0].information_gain)}
    assert "gain" not in right.turns[-1].parts  # nothing comes after it
    assert right.contribution > broken.contribution


def test_several_groups_in_one_batch_are_compared_apart_and_weighed_together(rollouts, scorer):
    other = Task("q2", "Which metal is yellow?", ("gold",))
    more = group(scorer.template, scorer.policy, (WRONG, RIGHT, RIGHT), task=other, group="g/q2")
    recipe = load_assessment("grpo", ["loss.aggregation=token-mean"])
    both = assess(by_group([*rollouts, *more]), recipe)
    apart = [assess([g], recipe) for g in (rollouts, more)]
    for one, rows in zip(apart, (both.batch.groups), strict=True):
        for i, row in enumerate(rows):
            np.testing.assert_allclose(both.credit.advantages[row], one.credit.advantages[i])
    tokens = both.batch.tokens.sum()
    assert {float(w.max()) for w in both.weights} == {1 / tokens}
    assert policy_loss(both)[0] == pytest.approx(both.loss, abs=1e-9)


def test_episodes_without_a_group_are_each_alone():
    loose = [play(WRONG), play(WRONG)]
    assert [len(found) for found in by_group(loose)] == [1, 1]


def test_what_cannot_be_assessed_is_left_out_and_named_and_the_rest_goes_on(
    rollouts, scored, scorer
):
    text = play(RIGHT, name=scorer.policy, group="g/q1")
    empty = replace(rollouts[0], id="empty", turns=())
    foreign = replace(rollouts[0], id="foreign", policy="other@1")
    nan = replace(rollouts[1], id="nan")
    probes = {**scored.context.gold_logprobs, "nan": np.full((2, len(nan.turns)), np.nan)}
    context = RewardContext(gold_logprobs=probes)
    failed = replace(rollouts[0], id="failed", status=Status.FAILED)
    backwards = replace(rollouts[0], id="backwards", turns=rollouts[0].turns[::-1])
    bad = [text, empty, foreign, nan, backwards, failed, rollouts[0]]
    found = assess([[*rollouts, *bad]], load_assessment("igpo"), context, scorer)
    reasons = {drop.id: drop.reason for drop in found.dropped}
    named = {"empty", "foreign", "nan", "backwards", "failed"}
    assert set(reasons) == {text.id, rollouts[0].id, *named}
    assert "the episode failed" in reasons["failed"]
    assert "span" in reasons["backwards"]
    assert "no token ids" in reasons[text.id]
    assert "no turns" in reasons["empty"]
    assert "of the policy other@1" in reasons["foreign"]
    assert "nan" in reasons["nan"]
    assert "already" in reasons[rollouts[0].id]
    np.testing.assert_array_equal(found.contributions, scored.contributions)
    with pytest.raises(UsageError, match="cannot be assessed: it has no turns"):
        make_receipt(found, "empty")
    assert "left out: foreign" in render_receipt(make_receipt(found, rollouts[0].id))


@pytest.mark.parametrize("form", ["log_probability", "probability"])
def test_the_gold_answer_s_last_log_probability_is_a_mean_over_questions(form):
    groups, context = random_groups(11)
    gain = Part(reward="information_gain", options={"form": form})
    found = assess(groups, spec("igpo", gain=gain), context)
    ends = [np.mean([context.gold_logprobs[t.id][0, -1] for t in g]) for g in found.groups]
    assert len({len(g) for g in found.groups}) > 1
    assert of_credit(found)["gold_logprob"] == pytest.approx(np.mean(ends))
    assert "gold_logprob" not in of_credit(
        assess(groups, spec("rloo", cost=Part(reward="repetition")))
    )


def test_rollouts_that_declined_are_compared_or_left_out(rollouts, scorer):
    script = "<search>gold</search>", "<abstain>I do not know</abstain>"
    declined = play(script, scorer.template, scorer.policy, group="g/q1", seed=9)
    assert declined.abstained
    both = spec("rloo", answer=Part(reward="f1"))
    apart = both.model_copy(update={"credit": CreditChoice(estimator="rloo", declined="leave_out")})
    compared, left_out = (
        assess([[*rollouts, declined]], both),
        assess([[*rollouts, declined]], apart),
    )
    assert (compared.dropped, len(compared.batch)) == ((), 5)
    assert [(drop.id, drop.reason) for drop in left_out.dropped] == [
        (declined.id, "it declined, and the recipe compares only rollouts that did not")
    ]
    alone = assess([rollouts], both)
    np.testing.assert_array_equal(left_out.contributions, alone.contributions)
    assert not np.allclose(compared.contributions[:4], alone.contributions)
    with pytest.raises(UsageError, match="cannot be assessed: it declined"):
        make_receipt(left_out, declined.id)
    group_gone = assess([[declined], rollouts], apart)
    np.testing.assert_array_equal(group_gone.contributions, alone.contributions)
    nothing = assess([[declined]], apart)
    assert (nothing.groups, nothing.loss) == ((), 0.0)
    told = of_credit(nothing)
    assert np.isnan([told["reward"], told["reward/answer"]]).all()  # and no 0 in the curves
    with pytest.raises(ValidationError, match="leave_out"):
        CreditChoice(estimator="rloo", declined="leave-out")


def test_empty_groups_and_groups_of_several_tasks_leave_the_others_alone(rollouts, scored, scorer):
    other = replace(rollouts[0], id="x", task=Task("q2", "Else?", ("x",)))
    mixed = [replace(rollouts[1], id="y"), other]
    found = assess([[], mixed, rollouts, []], load_assessment("igpo"), scored.context, scorer)
    assert [drop.id for drop in found.dropped] == ["y", "x"]
    assert all("one group holds the tasks" in drop.reason for drop in found.dropped)
    assert found.groups == (tuple(rollouts),)
    np.testing.assert_array_equal(found.contributions, scored.contributions)
    nothing = assess([[]], load_assessment("igpo"), scored.context, scorer)
    assert (nothing.groups, nothing.loss) == ((), 0.0)


def test_what_a_tool_left_behind_cannot_end_a_batch(rollouts):
    first, *others = rollouts
    seen = replace(
        first.turns[0].observation,
        data={"target_probability": 0.5, "edges": [], "rollout_probabilities": None},
    )
    odd = replace(first, turns=(replace(first.turns[0], observation=seen), *first.turns[1:]))
    built = spec("grpo", graph=Part(reward="graph_process", options={"edge_weight": 0}))
    found = assess([[odd, *others]], built)
    assert [(d.id, d.reason.split(": ")[1]) for d in found.dropped] == [
        (odd.id, "rollout_probabilities is no list")
    ]
    assert len(found.batch) == 3


def test_a_weighted_reward_that_overflows_leaves_its_trajectory_out(rollouts):
    huge = Part(reward="format", weight=1e308, options={"invalid": -20.0})
    found = assess([rollouts], spec("grpo", format=huge))
    assert [(drop.id, drop.reason) for drop in found.dropped] == [
        (rollouts[3].id, "its weighted reward is not finite")
    ]
    assert len(found.batch) == 3


CHECKLIST = Part(reward="rubric", options={"items": [{"points": 1, "criterion": "is right"}]})
MEANING = Part(
    reward="factual_reasoning", options={"correctness": "judge", "check": {"by": "overlap"}}
)


def failing(error, where="Answer: gold"):
    """A context whose judge fails on some transcripts."""

    def judge(criterion, transcript):
        if where in transcript:
            raise error
        return 1.0

    return RewardContext(judge=judge)


@pytest.mark.parametrize("part", [CHECKLIST, MEANING], ids=["rubric", "factual_reasoning"])
def test_an_odd_reply_of_the_judge_leaves_out_the_episode_that_it_is_about(rollouts, part):
    said = RewardError("the judge replied '8, because', not a number from 0 to 10")
    found = assess([rollouts], spec("grpo", judged=part), failing(said))
    assert [drop.id for drop in found.dropped] == [rollouts[2].id]
    assert f"trajectory {rollouts[2].id}" in found.dropped[0].reason
    assert len(found.batch) == 3
    assert found.faults == ()


def test_a_fault_of_a_reward_s_code_ends_no_batch_and_is_told_as_one(rollouts, caplog):
    other = [
        replace(t, id=f"x{i}", task=Task("q2", "Else?", ("x",))) for i, t in enumerate(rollouts)
    ]
    judged = spec("grpo", judged=CHECKLIST, answer=Part(reward="exact_match"))
    found = assess([rollouts, other], judged, failing(ZeroDivisionError("division by zero")))
    told = "the reward 'judged' failed, a fault of its code: ZeroDivisionError: division by zero"
    assert {drop.id for drop in found.dropped} == {rollouts[2].id, "x2"}
    assert {drop.reason for drop in found.dropped} == set(found.faults) == {told}
    assert len(found.batch) == 6
    [record] = caplog.records
    assert record.getMessage() == told
    assert record.exc_info[0] is ZeroDivisionError


def test_a_fault_that_no_episode_has_alone_leaves_out_the_group(rollouts):
    class Broken(dict):
        def __contains__(self, label):
            raise KeyError(label)

    votes = Part(reward="self_consistency", options={"labels": ["oganesson", "gold"]})
    other = [replace(rollouts[0], id="alone", task=Task("q2", "Else?", ("x",)))]  # a vote of one
    found = assess(
        [rollouts, other], spec("grpo", votes=votes), RewardContext(vote_shares=Broken(a=1))
    )
    assert [drop.id for drop in found.dropped] == [t.id for t in rollouts]
    assert found.faults == (
        "the reward 'votes' failed, a fault of its code: KeyError: 'oganesson'",
    )
    assert found.batch.ids == ("alone",)


def test_a_model_that_is_gone_is_no_matter_of_an_episode(rollouts):
    with pytest.raises(PolicyUnavailableError, match="no grade"):
        assess(
            [rollouts], spec("grpo", judged=CHECKLIST), failing(PolicyUnavailableError("no grade"))
        )


def test_a_group_without_gold_answers_is_left_out_as_a_whole(rollouts, scored, scorer):
    unknown = [replace(t, id=f"u{i}", task=Task.ask("Why?")) for i, t in enumerate(rollouts)]
    for name, reason in (("igpo", "no gold answer"), ("grpo", "no gold answers")):
        found = assess([unknown, rollouts], load_assessment(name), scored.context, scorer)
        assert len(found.dropped) == len(unknown)
        assert all(reason in drop.reason for drop in found.dropped)
        assert found.batch.ids == tuple(t.id for t in rollouts)
    nothing = assess([unknown], load_assessment("grpo"))
    assert (len(nothing.batch), nothing.loss) == (0, 0.0)
    assert assess([], load_assessment("grpo")).loss == 0.0


def test_a_scripted_turn_is_rewarded_and_carries_no_loss(rollouts, scored):
    first, *others = rollouts
    script = replace(first.turns[0], sampled=False)
    led = replace(first, turns=(script, *first.turns[1:]))
    found = assess([[led, *others]], load_assessment("igpo"), scored.context)
    line = make_receipt(found, led.id).turns[0]
    assert (line.tokens, line.weight, line.contribution) == (0, 0.0, 0.0)
    assert "gain" in line.parts
    assert policy_loss(found)[0] == pytest.approx(found.loss, abs=1e-9)


def test_a_group_of_one_and_a_question_answered_at_once(scorer):
    alone = play(AT_ONCE, scorer.template, scorer.policy)
    for name in ("igpo", "grpo"):
        found = assess([[alone]], load_assessment(name), scorer=scorer)
        assert found.dropped == ()
        assert found.loss == 0.0
        assert "sum" in render_receipt(make_receipt(found, alone.id))


def test_turns_that_saw_the_same_share_a_state(rollouts):
    anchors = assess([rollouts], spec("gigpo", f1=Part(reward="f1"))).batch.anchors
    assert len(set(anchors[:, 0])) == 1  # the bare question
    assert anchors[1, 1] == anchors[2, 1]  # after the same search
    assert anchors[0, 1] != anchors[1, 1]


@pytest.mark.parametrize(
    "loss", [ppo_clip, lambda t, **how: kl_loss(t, t.old - 0.5, **how)], ids=["clip", "kl"]
)
def test_retrieved_tokens_change_no_mask_and_get_no_gradient(rollouts, scored, loss):
    def swapped(trajectory):
        ids = trajectory.token_ids.copy()
        ids[~trajectory.sampled] = (ids[~trajectory.sampled] + 11) % 300
        return replace(trajectory, token_ids=ids)

    other = assess([[swapped(t) for t in rollouts]], scored.spec, scored.context)
    mask = np.concatenate(scored.batch.sampled)
    assert (np.concatenate(other.batch.sampled) == mask).all()
    (value, slope), (again, same) = policy_loss(scored, loss), policy_loss(other, loss)
    assert value == again
    np.testing.assert_array_equal(slope, same)
    assert (slope[~mask] == 0).all()
    assert (slope[mask] != 0).any()


def test_the_text_before_a_forced_answer_is_an_option(rollouts, scored, scorer):
    bare = "rewards.gain.options={before: 'The answer is '}"
    found = assess([rollouts], load_assessment("igpo", [bare]), scorer=scorer)
    for t in rollouts:
        assert (found.context.gold_logprobs[t.id] != scored.context.gold_logprobs[t.id]).all()


def test_an_answer_is_forced_as_the_episodes_own_format_opens_one(rollouts, scorer):
    called = {**rollouts[0].versions, "format": "tool_call"}
    mixed = [replace(t, versions=called) if i % 2 else t for i, t in enumerate(rollouts)]
    found = assess([mixed], load_assessment("igpo"), scorer=scorer)
    assert found.dropped == ()
    for i, t in enumerate(mixed):
        wrapper = Wrapper("" if i % 2 else "<answer>")
        expected = score_group(scorer, [t], t.task.answers, wrapper, alias="likeliest").gold
        np.testing.assert_allclose(found.context.gold_logprobs[t.id], expected[t.id], atol=1e-4)


def test_the_answers_of_steps_are_probed_as_gold_answers_are(rollouts, scored, scorer):
    steps = [{"answers": [said]} for said in ("Oganesson", "1940")]
    asked = [
        replace(t, task=replace(t.task, meta={**t.task.meta, "steps": steps})) for t in rollouts
    ]
    both = spec("grpo", gain=Part(reward="information_gain"), steps=Part(reward="step_gain"))
    assert (both.needs_probes, both.needs_scorer) == (True, True)
    found = assess([asked], both, scorer=scorer)
    assert found.dropped == ()
    expected = score_group(scorer, asked, ["Oganesson", "1940"]).gold
    for t in asked:
        np.testing.assert_allclose(found.context.step_logprobs[t.id], expected[t.id], atol=1e-5)
    alone = spec("grpo", steps=Part(reward="step_gain"))
    assert (alone.needs_probes, alone.needs_scorer) == (False, True)
    again = assess([asked], alone, scorer=scorer)
    assert again.context.gold_logprobs == {}
    for one, other in zip(again.batch.parts, found.batch.parts[1:], strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)
    assert np.abs(again.batch.parts[0].values).max() > 0
    assert make_receipt(again, asked[0].id, scored_by="base").scored_by == "base"
    unknown = [replace(t, task=replace(t.task, answers=(), meta={})) for t in rollouts]
    assert {d.reason for d in assess([unknown], alone, scorer=scorer).dropped} == {
        "its task has no gold answer to probe for"
    }
    with pytest.raises(UsageError, match="step_gain lacks probes of step answers"):
        assess([asked], alone)
    with pytest.raises(ValidationError, match="parts of step_gain differ in 'before'"):
        spec(
            "grpo", a=Part(reward="step_gain"), b=Part(reward="step_gain", options={"before": "x"})
        )


def test_a_blank_alias_is_passed_over(rollouts, scorer, scored):
    blank = [replace(t, task=replace(t.task, answers=("", *t.task.answers))) for t in rollouts]
    found = assess([blank], load_assessment("igpo"), scorer=scorer)
    assert found.dropped == ()
    np.testing.assert_allclose(found.contributions, scored.contributions, atol=1e-6)
    gold = found.context.gold_logprobs[rollouts[1].id]
    assert np.isfinite(gold).all(axis=1).sum() == 1  # one alias alone is probed at every turn
    first = load_assessment("igpo", ["rewards.gain.options={alias: first}"])
    assert (
        make_receipt(assess([blank], first, scorer=scorer), rollouts[0].id).gold_answer
        == "Oganesson"
    )


def test_the_probes_of_a_gain_within_a_combination_are_its_own(rollouts, scored, scorer):
    def summed(*gains):
        parts = {str(n): {"reward": "information_gain", "options": o} for n, o in enumerate(gains)}
        return spec("grpo", sum=Part(reward="combination", options={"parts": parts}))

    bare = {"before": "The answer is "}
    found = assess([rollouts], summed(bare), scorer=scorer)
    for t in rollouts:
        assert (found.context.gold_logprobs[t.id] != scored.context.gold_logprobs[t.id]).all()
    assert summed(bare, {**bare, "form": "probability"}).gain.before == "The answer is "
    for other in ({}, {**bare, "alias": "first"}):
        with pytest.raises(ValidationError, match="differ in 'before' or 'alias'"):
            summed(bare, other)


def test_probes_that_are_there_need_no_scorer(rollouts, scored):
    again = assess([rollouts], load_assessment("igpo"), scored.context)
    np.testing.assert_array_equal(scored.contributions, again.contributions)


def test_rewards_that_nobody_feeds_are_told_before_anything_is_computed(rollouts):
    with pytest.raises(UsageError, match="information-gain probes"):
        assess([rollouts], load_assessment("igpo"))
    ramp = spec("grpo", f1=Part(reward="f1", weight=(0.0, 1.0)))
    with pytest.raises(UsageError, match="progress"):
        assess([rollouts], ramp)
    half = assess([rollouts], ramp, RewardContext(progress=0.5))
    receipt = make_receipt(half, rollouts[0].id)
    assert receipt.parts[0].weight == 0.5
    assert "f1 = 0.5 x f1" in render_receipt(receipt)
    with pytest.raises(UsageError, match="knowledge boundary labels"):
        assess([rollouts], spec("grpo", known=Part(reward="boundary_label")))
    with pytest.raises(CreditError, match="values"):
        assess([rollouts], spec("turn_gae", f1=Part(reward="f1")))


MISTAKES = [
    (["rewards.answer.reward=format_gated_outcom"], "did you mean 'format_gated_outcome'"),
    (["rewards.gain.options={foms: probability}"], "did you mean 'form'"),
    (["rewards.gain.wieght=2"], "did you mean 'weight'"),
    (["rewards={}"], "rewards"),
    (
        ["rewards.other={reward: information_gain, options: {before: 'So '}}"],
        "differ in 'before' or 'alias'",
    ),
    (["credit.estimator=igop"], "did you mean 'igpo'"),
    (["credit.options={gama: 1}"], "did you mean 'gamma'"),
    (["credit.options={gamma: much}"], "'gamma' is 'much'"),
    (["credit.options={std: median}"], "sample"),
    (["loss.aggregation=sequence-median"], "sequence-mean"),
    (["loss.constant=0"], "loss.constant"),
    (["lost.constant=1"], "did you mean 'loss'"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_mistakes_in_a_recipe_are_named(overrides, message):
    with pytest.raises(UsageError) as caught:
        load_assessment("igpo", overrides)
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_the_examples_in_the_documentation_run(rollouts, scored, scorer):
    page = Path("docs/credit.md").read_text("utf-8")
    names = {"trajectories": rollouts, "scorer": scorer}
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        exec(code, names)
    assert names["found"].loss == pytest.approx(scored.loss)
    advantages = names["credit"].advantages
    assert [a.size for a in advantages] == [16, 8]  # as the comments say
    assert (advantages[0] != 0).any()


def test_the_recipe_in_the_documentation_loads(tmp_path):
    page = Path("docs/credit.md").read_text("utf-8")
    recipe = tmp_path / "documented.yaml"
    recipe.write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert load_assessment(str(recipe)).reward.rewards == load_assessment("igpo").reward.rewards


def test_rewards_of_the_last_turn_are_those_the_table_says():
    table = Path("docs/rewards.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (last|turn|malformed|known)", table, re.MULTILINE)
    last = {name for name, place in rows if place == "last" and name != "format"}
    assert len(last) > 15
    for name, _ in rows:
        assert reward_kind(name).last_turn_only == (name in last), name


def test_where_a_reward_speaks(rollouts):
    right, _, _, broken = rollouts
    last = [False, False, True]
    assert make_reward("f1").given(right).tolist() == last
    assert make_reward("tool_cost").given(right).all()
    assert make_reward("format").given(broken).tolist() == last
    assert make_reward("format", {"place": "turn"}).given(broken).tolist() == last[::-1]
    gain = make_reward("information_gain", {"only": ["search"]})
    assert gain.given(right).tolist() == last[::-1]
    both = make_reward("combination", {"parts": {"a": {"reward": "f1"}, "b": {"reward": "format"}}})
    assert both.given(right).tolist() == last
    nowhere = replace(right, turns=())
    assert make_reward("f1").given(nowhere).tolist() == []
    assert gain.given(nowhere).tolist() == []


def test_the_table_shows_all_columns(rollouts, scorer):
    found = assess([rollouts], load_assessment("grpo"), scorer=scorer)
    text = render_receipt(make_receipt(found, rollouts[1].id, recipe="grpo"))
    head = next(line for line in text.splitlines() if line.startswith("turn"))
    columns = "turn action answer normalised return baseline scale advantage tokens weight"
    assert head.split() == [*columns.split(), "contribution"]
    assert "3     search: Oganessian" in text
    assert f"{len(ASTRAY)}     answer" in text
    evil = replace(rollouts[0], answer="\x1b[2Jgone")
    found = assess([[evil, *rollouts[1:]]], load_assessment("grpo"))
    assert "\x1b" not in render_receipt(make_receipt(found, evil.id))


def test_a_receipt_is_plain_data(rollouts):
    found = assess([rollouts], load_assessment("grpo"))
    assert json.loads(json.dumps(asdict(make_receipt(found, rollouts[0].id))))["loss"] == found.loss
