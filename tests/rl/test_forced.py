"""Right replies in the loss: forced where the answer is supported, and learnt exactly as asked."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.episode import Budgets
from agent.policies.bundled import MICRO_FOLDER
from agent.policies.chat import ChatTemplate
from agent.task import Task
from kg.errors import UsageError
from rl.assess import assess
from rl.batches import lay_out, minibatches, update_batch
from rl.forced import reply_with, right_replies, right_reply, shown
from rl.rewards import Part
from rl.train_recipe import Assessment, CreditChoice, LossChoice, load_train
from tests.rl.learning import learner, tiny_model
from tests.rl.rollouts import ASTRAY, AT_ONCE, RIGHT, TASK, WRONG, group, play
from tests.rl.test_batches import path

BOTH = ("<search>gold</search>", *RIGHT[1:2], *RIGHT)
DECLINED = (*RIGHT[:2], "<abstain>I do not know</abstain>")


@pytest.fixture(scope="module")
def template():
    return ChatTemplate.load(MICRO_FOLDER)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def spec(likelihood=0.5):
    return Assessment(
        rewards={"answer": Part(reward="f1")},
        credit=CreditChoice(estimator="rloo"),
        loss=LossChoice(likelihood=likelihood),
    )


def judged(template, how=None, scripts=(RIGHT, ASTRAY, WRONG, DECLINED)):
    """Two groups, of four rollouts and of two; the answer was shown to all but the third."""
    groups = [
        group(template, group="g/a", scripts=scripts),
        group(template, group="g/b", scripts=scripts)[:2],
    ]
    made = [[replace(t, id=f"{n}-{i}") for i, t in enumerate(g)] for n, g in enumerate(groups)]
    return assess(made, how or spec())


def text_of(reply, template):
    return template.tokenizer.decode(reply.ids), template.tokenizer.decode(reply.ids[reply.answer])


def test_the_right_reply_stands_where_the_answer_was_shown(template):
    """Whether the policy was right, wrong or declined; and nowhere else."""
    found = right_replies(judged(template), template)
    assert sorted(found) == ["0-0", "0-1", "0-3", "1-0", "1-1"]
    assert text_of(found["0-0"], template) == (
        "<answer>oganesson [1]</answer>",
        "oganesson [1]</answer>",
    )
    assert text_of(found["0-1"], template)[0] == "<answer>oganesson [2]</answer>"  # what it cites
    assert right_replies(judged(template, spec(likelihood=0.0)), template) == {}


def test_all_gold_passages_must_be_shown_where_a_task_names_some(template):
    def reply(script, *evidence, answers=("yes",)):
        task = replace(TASK, answers=answers, evidence=evidence)
        made = right_reply(play(script, template, task=task), template)
        return made and text_of(made, template)[1]

    assert reply(RIGHT, "Oganessian") == "yes [1]</answer>"
    assert reply(BOTH, "Oganessian", "gold") == "yes [1, 2]</answer>"
    assert reply(ASTRAY, "Oganessian", "gold") is None  # the first was judged useless and omitted
    assert reply(RIGHT, "Oganessian", "gold") is None
    assert reply(WRONG, "Oganessian") is None
    assert reply(RIGHT) is None  # a word like that is anywhere
    assert reply(RIGHT, "Oganessian", answers=("Og", "oganesson")) == "oganesson [1]</answer>"
    assert reply(RIGHT, "Oganessian", answers=(" ", "Og")) == "Og [1]</answer>"
    assert reply(RIGHT, answers=("Og",)) is None
    assert reply(RIGHT, "Oganessian", answers=()) is None


def test_no_reply_is_forced_that_the_policy_did_not_begin(template):
    assert right_reply(play(AT_ONCE, template), template) is None  # nothing was shown
    searching = play(RIGHT[:2] * 3, template, budgets=Budgets(turns=3))
    assert searching.turns[-1].forced
    assert right_reply(searching, template) is None
    scripted = play(RIGHT, template)
    last = replace(scripted.turns[-1], sampled=False)
    assert right_reply(replace(scripted, turns=(*scripted.turns[:-1], last)), template) is None
    other = replace(scripted, versions={**scripted.versions, "format": "json"})
    assert right_reply(other, template) is None


def test_a_passage_that_is_no_longer_in_context_supports_nothing(template):
    """What was judged useless is omitted from then on."""
    assert [source.id for source in shown(play(BOTH, template))] == ["Oganessian", "gold"]
    assert [source.id for source in shown(play(ASTRAY, template))] == ["Oganessian"]
    late = (*RIGHT[:1], "<judge>no</judge>", "<abstain>I do not know</abstain>")
    assert right_reply(play(late, template), template) is None


def test_a_tool_call_policy_answers_in_plain_text(template):
    one = play(RIGHT, template)
    plain = replace(one, versions={**one.versions, "format": "tool_call"})
    reply = reply_with(plain, "<answer>oganesson", shown(one), template)
    assert reply.answer.all()
    assert reply.ids[-1] == template.eos_id
    said = template.tokenizer.decode(reply.ids[:-1])
    assert said.endswith("oganesson [1]")
    assert "<answer>" not in said  # foreign text opens no action


@pytest.mark.parametrize("most", [1, 10_000])
def test_its_tokens_lie_behind_what_the_last_call_saw(template, most):
    found = judged(template)
    right, every = right_replies(found, template), found.trajectories
    seen = []
    for tree in lay_out(found, most, right):
        numbers = [n for n in dict.fromkeys(n for n, _ in tree.where) if every[n].id in right]
        if not numbers:
            assert tree.forced is None
            continue
        assert tree.forced.replies == len(numbers)
        assert tree.forced.shares.sum() == pytest.approx(len(numbers))
        at = 0
        for number in numbers:
            reply, trajectory = right[every[number].id], every[number]
            size = int(reply.answer.sum())
            assert np.allclose(tree.forced.shares[at : at + size], 1 / size)
            rows = tree.rows[tree.forced.place[at : at + size]]
            prompt = trajectory.prompt_of(trajectory.turns[-1]).tolist()
            assert path(tree.tree, int(rows[-1])) == prompt + reply.ids.tolist()
            assert tree.tree.ids[rows].tolist() == reply.ids[reply.answer].tolist()
            at += size
            seen.append(number)
        assert at == len(tree.forced.place)
    assert seen == [0, 1, 3, 4, 5]


def silenced(found):
    """The same without advantages: what is learnt is the likelihood alone."""
    none = tuple(np.zeros_like(a) for a in found.credit.advantages)
    return replace(found, credit=replace(found.credit, advantages=none))


def test_the_loss_and_its_gradient_are_the_replies_mean_one_by_one(tiny, template):
    """Against a plain transformers model, a reply after the other; however the trees are cut."""
    from transformers import AutoModelForCausalLM

    own = judged(template)
    model, means = AutoModelForCausalLM.from_pretrained(tiny), []
    for trajectory, cited in zip(own.trajectories, (1, 2, None, 1, 1, 2), strict=True):
        if cited is None:
            continue
        prompt = trajectory.prompt_of(trajectory.turns[-1]).tolist()
        opening = template.encode("<answer>")
        ids = template.encode(f"<answer>oganesson [{cited}]</answer>")
        assert ids[: len(opening)] == opening
        logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        places = range(len(prompt) + len(opening), len(prompt) + len(ids))
        means.append(torch.stack([logits[i - 1, (prompt + ids)[i]] for i in places]).mean())
    loss = -0.5 * torch.stack(means).mean()
    loss.backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    right = right_replies(own, template)
    for most in (10_000, 1):
        trees = lay_out(silenced(own), most, right)
        assert all(tree.silent for tree in trees)
        stats = learner(tiny, loss=LossChoice(likelihood=0.5)).step(update_batch(trees))
        assert stats.loss == pytest.approx(loss.item(), abs=1e-5)
        assert stats.figures["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert stats.figures["silent"] == sum(tree.forced is None for tree in trees)


def test_it_adds_to_the_policy_loss_and_is_learnt(tiny, template):
    own = judged(template)
    right = right_replies(own, template)
    plain = learner(tiny, loss=LossChoice()).step(update_batch(lay_out(own, 10_000)))
    assert "right_reply" not in plain.figures
    made = learner(tiny, loss=LossChoice(likelihood=2.0))
    both = made.step(update_batch(lay_out(own, 10_000, right)))
    assert both.loss == pytest.approx(plain.loss - 2 * both.figures["right_reply"], abs=0.05)
    start = made.step(update_batch(lay_out(silenced(own), 10_000, right))).loss
    for _ in range(15):
        made.step(update_batch(lay_out(silenced(own), 10_000, right)))
    assert made.step(update_batch(lay_out(silenced(own), 10_000, right))).loss < start / 2


def test_steps_of_a_batch_divide_by_the_replies_of_their_own(tiny, template):
    """Two optimizer steps that hold the same: each has the loss of one, not half of it."""
    own = silenced(judged(template))
    [first, _] = lay_out(own, 10_000, right_replies(own, template))
    once = learner(tiny, loss=LossChoice(likelihood=1.0), lr=1e-9)
    alone = once.step(update_batch([first])).loss
    for step in minibatches([first, first], 2):
        assert once.step(step).loss == pytest.approx(alone, rel=1e-4)
    assert once.step(update_batch([first, first])).loss == pytest.approx(alone, rel=1e-4)


def test_a_question_without_an_answer_keeps_its_policy_gradient(template):
    asked = Task("u", TASK.question, (), answerable=False)
    groups = [group(template, scripts=(RIGHT, DECLINED), task=asked, group="g/u")]
    how = Assessment(
        rewards={"answer": Part(reward="exact_match")},
        credit=CreditChoice(estimator="rloo"),
        loss=LossChoice(likelihood=0.5),
    )
    found = assess(groups, how)
    assert found.dropped == ()
    trees = lay_out(found, 10_000, right_replies(found, template))
    assert update_batch(trees).replies == 0
    assert not all(tree.silent for tree in trees)


def test_the_key_is_refused_below_zero_and_named_when_it_is_misspelt():
    with pytest.raises(UsageError, match="greater than or equal to 0"):
        load_train("igpo", ["loss.likelihood=-1"])
    with pytest.raises(UsageError, match="did you mean 'likelihood'"):
        load_train("igpo", ["loss.likelyhood=1"])
    told = json.loads(load_train("igpo", ["loss.likelihood=0.1"]).model_dump_json())
    assert told["loss"]["likelihood"] == 0.1


def test_probes_are_not_computed_for_it():
    assert not spec().needs_probes
