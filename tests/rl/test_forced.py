"""The gold answer's likelihood in the loss: forced where it is probed, and the half of a gradient."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.policies.bundled import MICRO_FOLDER
from rl.assess import assess
from rl.batches import lay_out, minibatches, update_batch
from rl.credit import Batch, estimate
from rl.rewards import Part, RewardError
from rl.scoring import load_scorer
from rl.step_metrics import of_credit
from rl.train_recipe import Assessment, CreditChoice, LossChoice
from tests.rl.learning import learner, tiny_model
from tests.rl.rollouts import group
from tests.rl.test_batches import path


@pytest.fixture(scope="module")
def scorer():
    return load_scorer(MICRO_FOLDER, "micro")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def spec(likelihood=0.5, **gain):
    return Assessment(
        rewards={"gain": Part(reward="information_gain", options=gain)},
        credit=CreditChoice(estimator="stopping"),
        loss=LossChoice(likelihood=likelihood, aggregation="sequence-sum"),
    )


def judged(scorer, how=None, groups=None):
    """Two groups, of four rollouts and of two."""
    played = groups or [
        group(scorer.template, "micro@0", group="g/a"),
        group(scorer.template, "micro@0", group="g/b")[:2],
    ]
    made = [[replace(t, id=f"{n}-{i}") for i, t in enumerate(g)] for n, g in enumerate(played)]
    return assess(made, how or spec(), scorer=replaceable(scorer))


def replaceable(scorer):
    scorer.policy = ""  # the rollouts are a script's
    return scorer


@pytest.mark.parametrize("most", [1, 10_000])
@pytest.mark.parametrize("before", ["<answer>", "So it is "])
def test_the_answer_that_is_measured_is_forced_where_the_last_call_stood(scorer, most, before):
    found = judged(scorer, spec(before=before))
    every, tokenizer = found.trajectories, scorer.template.tokenizer
    seen = []
    for tree in lay_out(found, most, scorer.template):
        held = sorted({number for number, _ in tree.where})
        assert tree.forced.answers == len(held)
        assert tree.forced.shares.sum() == pytest.approx(len(held))
        ends = np.flatnonzero(np.cumsum(tree.forced.shares) % 1 < 1e-6).tolist()
        starts = [0, *(end + 1 for end in ends[:-1])]
        assert len(ends) == len(held)
        for number, start, end in zip(held, starts, ends, strict=True):
            last = every[number].turns[-1]
            rows = tree.rows[tree.forced.place[start : end + 1]]
            whole = path(tree.tree, int(rows[-1]))
            prompt = every[number].prompt_of(last).tolist()
            assert whole[: len(prompt)] == prompt
            told = tokenizer.decode(whole[len(prompt) :])
            alias, _ = found.spec.gain.curves(found.groups[0], found.context)
            assert told == before + every[number].task.answers[alias]
            assert (
                tokenizer.decode(tree.tree.ids[rows]).strip() == every[number].task.answers[alias]
            )
            seen.append(number)
    assert seen == list(range(len(every)))


def test_its_log_probability_is_what_information_gain_ended_at(scorer):
    found = judged(scorer)
    trees = lay_out(found, 10_000, scorer.template)
    told = 0.0
    for tree in trees:
        logprobs = scorer.logprobs(tree.tree, tree.rows)[tree.forced.place]
        told += float((tree.forced.shares * logprobs).sum())
    ends = [np.nanmax(found.context.gold_logprobs[t.id][:, -1]) for t in found.trajectories]
    assert told == pytest.approx(sum(ends), abs=1e-4)
    means = [np.mean(ends[:4]), np.mean(ends[4:])]
    assert of_credit(found)["gold_logprob"] == pytest.approx(np.mean(means), abs=1e-5)
    as_probability = judged(scorer, spec(form="probability"))
    assert of_credit(as_probability)["gold_logprob"] == pytest.approx(np.mean(means), abs=1e-5)


def test_nothing_is_forced_unless_the_recipe_asks(scorer):
    for found in (
        lay_out(judged(scorer, spec(likelihood=0.0)), 10_000, scorer.template),
        lay_out(judged(scorer), 10_000),
    ):
        assert all(tree.forced is None for tree in found)
        assert update_batch(found).answers == 0


def test_a_recipe_without_information_gain_is_probed_for_it_all_the_same(scorer):
    how = spec().model_copy(update={"rewards": {"answer": Part(reward="exact_match")}})
    how = Assessment.model_validate(how.model_dump(include={"rewards", "credit", "loss"}))
    assert how.needs_probes
    trees = lay_out(judged(scorer, how), 10_000, scorer.template)
    assert update_batch(trees).answers == 6
    unprobed = assess([group(scorer.template)], how)
    with pytest.raises(RewardError, match="no gold-answer log-probabilities"):
        lay_out(unprobed, 10_000, scorer.template)


def test_a_question_without_an_answer_is_left_out_and_told(scorer):
    played = group(scorer.template)
    bare = [replace(t, task=replace(t.task, answers=(), answerable=False)) for t in played[:2]]
    found = judged(scorer, groups=[played, bare])
    assert {one.reason for one in found.dropped} == {"its task has no gold answer to probe for"}
    assert update_batch(lay_out(found, 10_000, scorer.template)).answers == 4


def silenced(found):
    """The same without advantages: what is learnt is the likelihood alone."""
    none = tuple(np.zeros_like(a) for a in found.credit.advantages)
    return replace(found, credit=replace(found.credit, advantages=none))


def test_the_loss_and_its_gradient_are_the_answers_mean_one_by_one(tiny):
    """Against a plain transformers model, a call after the other, and however the trees are cut."""
    from transformers import AutoModelForCausalLM

    choice = LossChoice(likelihood=0.5)
    made = learner(tiny, loss=choice)
    own = judged(load_scorer(tiny, "tiny"))
    trees = lay_out(silenced(own), 10_000, made.template)
    assert all(tree.silent for tree in trees)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    means = []
    for trajectory in own.trajectories:
        prompt = trajectory.prompt_of(trajectory.turns[-1]).tolist()
        wrap = made.template.tokenizer.encode("<answer>", add_special_tokens=False)
        alias, _ = own.spec.gain.curves(own.groups[0], own.context)
        answer = trajectory.task.answers[alias]
        ids = made.template.tokenizer.encode("<answer>" + answer, add_special_tokens=False)
        assert ids[: len(wrap)] == wrap
        logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        places = range(len(prompt) + len(wrap), len(prompt) + len(ids))
        means.append(torch.stack([logits[i - 1, (prompt + ids)[i]] for i in places]).mean())
    loss = -0.5 * torch.stack(means).mean()
    loss.backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    for most in (10_000, 1):
        batch = update_batch(lay_out(silenced(own), most, made.template))
        stats = learner(tiny, loss=choice).step(batch)
        assert stats.loss == pytest.approx(float(loss.detach()), abs=1e-5)
        assert stats.figures["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert stats.figures["silent"] == 0


def test_it_adds_to_the_policy_loss_and_is_learnt(tiny):
    own = judged(load_scorer(tiny, "tiny"))
    loud = replace(own, spec=spec(likelihood=0.0))
    plain = learner(tiny, loss=LossChoice()).step(update_batch(lay_out(loud, 10_000)))
    made = learner(tiny, loss=LossChoice(likelihood=2.0), lr=1e-2)
    trees = lay_out(own, 10_000, made.template)
    first = made.step(update_batch(trees))
    ends = [np.nanmax(own.context.gold_logprobs[t.id][:, -1]) for t in own.trajectories]
    assert first.loss == pytest.approx(plain.loss - 2 * np.mean(ends), abs=1e-4)
    for _ in range(15):
        made.step(update_batch(lay_out(silenced(own), 10_000, made.template)))
    after = made.step(update_batch(lay_out(silenced(own), 10_000, made.template)))
    assert after.loss < -2 * np.mean(ends) / 2


def test_minibatches_divide_by_their_own_answers(scorer):
    trees = lay_out(judged(scorer), 1, scorer.template)
    steps = minibatches(trees, 3)
    assert [step.answers for step in steps] == [
        sum(tree.forced.answers for tree in step.trees) for step in steps
    ]
    assert sum(step.answers for step in steps) == 6


# A policy of one table: at first it looks left, looks right, or answers; after a look it may look again.
# How likely the gold answer is where it ends shares its parameters.
ACTIONS = {(): 3, (0,): 2, (1,): 2, (0, 0): 2, (1, 0): 2}
THETA = torch.tensor(
    [0.2, -0.5, 0.4, 0.3, -0.2, 0.6, -0.3, -0.1, 0.5, 0.7, -0.4], dtype=torch.float64
)


def toy(theta):
    """Every episode: log-probability of each turn's action, and of the gold answer where it stood."""
    offsets = dict(zip(ACTIONS, itertools.accumulate((0, *ACTIONS.values())), strict=False))

    def gold(state):
        mixed = sum((k + 1.5) * (a + 0.5) * theta[k + 3 * a] for k, a in enumerate(state))
        return torch.nn.functional.logsigmoid(theta[0] - theta[4] + mixed)

    def go_on(state, logs, golds):
        size = ACTIONS[state]
        logits = theta[offsets[state] : offsets[state] + size].log_softmax(0)
        for action in range(size):
            here = ([*logs, logits[action]], [*golds, gold(state)])
            ends = action == size - 1 or len(state) == 2
            yield from [here] if ends else go_on((*state, action), *here)

    return list(go_on((), [], []))


def test_with_it_the_gradient_of_the_expected_likelihood_is_whole():
    """Over all pairs of episodes: credit of information gain, and the likelihood, add up to the gradient
    of E[log p(gold answer | what the episode found)]; credit alone misses the second half."""
    theta = THETA.clone().requires_grad_()
    episodes = toy(theta)
    chances = [torch.stack(logs).sum().exp() for logs, _ in episodes]
    assert float(sum(chances)) == pytest.approx(1)
    assert {len(logs) for logs, _ in episodes} == {1, 2, 3}
    whole = sum(p * golds[-1] for p, (_, golds) in zip(chances, episodes, strict=True))
    [true] = torch.autograd.grad(whole, theta, retain_graph=True)
    pairs = list(itertools.product(range(len(episodes)), repeat=2))
    gains, spans, sampled = [], [], []
    for number in itertools.chain(*pairs):
        curve = [float(one.detach()) for one in episodes[number][1]]
        gains.append([*np.diff(curve), None])
        spans.append([(k, k + 1) for k in range(len(curve))])
        sampled.append([True] * len(curve))
    numbers = np.repeat(np.arange(len(pairs)), 2).tolist()
    batch = Batch.ragged(numbers, {"gain": gains}, spans=spans, sampled=sampled)
    advantages = estimate("stopping", batch).advantages
    credit = torch.zeros((), dtype=torch.float64)
    for row, number in enumerate(itertools.chain(*pairs)):
        a, b = pairs[row // 2]
        weight = float(chances[a] * chances[b]) / 2
        credit = (
            credit
            + weight * (torch.from_numpy(advantages[row]) * torch.stack(episodes[number][0])).sum()
        )
    told = sum(float(p) * golds[-1] for p, (_, golds) in zip(chances, episodes, strict=True))
    [first] = torch.autograd.grad(credit, theta, retain_graph=True)
    [second] = torch.autograd.grad(told, theta)
    assert torch.allclose(first + second, true, atol=1e-9)
    assert float((first - true).abs().max()) > 0.05


def test_the_key_is_refused_below_zero_and_named_when_it_is_misspelt(tmp_path):
    from kg.errors import UsageError
    from rl.train_recipe import load_train

    with pytest.raises(UsageError, match="greater than or equal to 0"):
        load_train("igpo", ["loss.likelihood=-1"])
    with pytest.raises(UsageError, match="did you mean 'likelihood'"):
        load_train("igpo", ["loss.likelyhood=1"])
    assert (
        json.loads(load_train("igpo", ["loss.likelihood=0.1"]).model_dump_json())["loss"][
            "likelihood"
        ]
        == 0.1
    )
