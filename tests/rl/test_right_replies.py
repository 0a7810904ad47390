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
from agent.trajectory import ActionKind
from kg.errors import UsageError
from rl.assess import assess
from rl.assessment_recipe import Assessment, CreditChoice, LossChoice
from rl.batches import lay_out, minibatches, update_batch
from rl.imitation import right_replies
from rl.replies import CORRECTION, reply_with, right_reply, shown
from rl.rewards import Part
from rl.train_recipe import load_train
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
    return template.tokenizer.decode(reply.ids), template.tokenizer.decode(reply.ids[reply.learnt])


def test_the_right_reply_stands_where_the_answer_was_shown(template):
    """Whether the policy was right, wrong or declined; and nowhere else."""
    found = right_replies(judged(template), template)
    assert sorted(found) == ["0-0", "0-1", "0-3", "1-0", "1-1"]
    assert text_of(found["0-0"], template) == (
        "<answer>Oganesson [1]</answer>",
        "Oganesson [1]</answer>",
    )
    assert text_of(found["0-1"], template)[0] == "<answer>Oganesson [2]</answer>"  # what it cites
    assert right_replies(judged(template, spec(likelihood=0.0)), template) == {}


def said(script, template, *evidence, answers=("oganesson",), **task):
    """What should have been learnt behind a script, of a task that names gold passages."""
    asked = replace(TASK, answers=answers, evidence=evidence, **task)
    reply = right_reply(play(script, template, task=asked), template)
    return reply and text_of(reply, template)[1]


def test_all_gold_passages_must_be_shown_and_one_must_hold_the_answer(template):
    assert said(RIGHT, template, "Oganessian") == "oganesson [1]</answer>"
    assert said(BOTH, template, "Oganessian", "gold") == "oganesson [2]</answer>"  # who says so
    assert said(RIGHT, template, "Oganessian", "gold") is None
    assert said(WRONG, template, "Oganessian") is None
    both = ("Og", "oganesson")
    assert said(RIGHT, template, "Oganessian", answers=both) == "oganesson [1]</answer>"
    assert said(RIGHT, template, "Oganessian", answers=("Og",)) is None
    assert said(BOTH, template, "gold", answers=both) is None  # another passage says it
    assert said(RIGHT, template, "Oganessian", answers=()) is None
    assert said(RIGHT, template, "Oganessian", answers=("", " ")) is None
    assert said(RIGHT, template, "Oganessian", answerable=False) is None


def test_a_yes_and_a_count_need_their_passages_and_cite_all(template):
    assert said(BOTH, template, "Oganessian", "gold", answers=("yes",)) == "yes [1, 2]</answer>"
    assert said(ASTRAY, template, "Oganessian", "gold", answers=("yes",)) is None  # one is omitted
    assert said(RIGHT, template, answers=("Yes.",)) is None
    count = {"answers": ("two",), "kind": "counting"}
    assert said(BOTH, template, "Oganessian", "gold", **count) == "two [1, 2]</answer>"


def test_without_gold_passages_one_that_speaks_of_the_question_must_hold_the_answer(template):
    assert said(BOTH, template) == "oganesson [2]</answer>"
    assert said(BOTH, template, answers=("yellow metal",)) is None


def test_a_correction_comes_before_the_gold_answer(template):
    meta = {CORRECTION: "Yuri Oganessian"}
    assert said(RIGHT, template, "gold", meta=meta) == "Yuri Oganessian [1]</answer>"
    assert said(RIGHT, template, answers=(), meta=meta) == "Yuri Oganessian [1]</answer>"
    assert said(RIGHT, template, "Oganessian", meta={CORRECTION: "nihonium"}) is None


def test_nothing_is_learnt_where_the_runtime_takes_no_answer(template):
    """After a verdict "no", though the first result holds all that is needed."""
    script = (*RIGHT[:2], "<search>gold</search>", "<judge>{}</judge>", "<abstain>no</abstain>")
    tried = {word: [one.format(word) for one in script] for word in ("yes", "no")}
    assert said(tried["yes"], template, "Oganessian") == "oganesson [1]</answer>"
    assert said(tried["no"], template, "Oganessian") is None


def test_nothing_is_learnt_where_the_policy_did_not_choose_to_end(template):
    one = play(RIGHT, template)
    last = one.turns[-1]

    def with_last(**changes):
        return right_reply(
            replace(one, turns=(*one.turns[:-1], replace(last, **changes))), template
        )

    assert with_last()
    assert with_last(sampled=False) is None
    assert with_last(action=replace(last.action, thought="It says so.")) is None
    spent = play((*RIGHT[:2], "oganesson [1]</answer>"), template, budgets=Budgets(turns=2))
    assert spent.turns[-1].forced
    assert spent.turns[-1].action.kind is ActionKind.ANSWER
    assert right_reply(spent, template) is None
    cut = play(RIGHT[:2] * 2, template, budgets=Budgets(turns=3))
    assert right_reply(cut, template) is None
    assert right_reply(play(AT_ONCE, template), template) is None  # nothing was shown
    other = replace(one, versions={**one.versions, "format": "json"})
    assert right_reply(other, template) is None


def test_a_passage_that_is_no_longer_in_context_supports_nothing(template):
    """What was judged useless is omitted from then on."""
    assert [source.id for source in shown(play(BOTH, template))] == ["Oganessian", "gold"]
    assert [source.id for source in shown(play(ASTRAY, template))] == ["Oganessian"]


def test_a_tool_call_policy_answers_in_plain_text(template):
    one = play(RIGHT, template)
    plain = replace(one, versions={**one.versions, "format": "tool_call"})
    reply = reply_with(plain, "<answer>oganesson", shown(one), template)
    assert reply.learnt.tolist() == [False] + [True] * (len(reply.ids) - 1)
    assert reply.ids[-1] == template.eos_id
    assert template.decode(reply.ids.tolist()) == reply.text
    assert reply.text.endswith("oganesson [1]")
    assert "<answer>" not in reply.text  # foreign text opens no action


@pytest.mark.parametrize("most", [1, 10_000])
def test_its_tokens_lie_behind_what_the_last_call_saw(template, most):
    found = judged(template)
    right, every = right_replies(found, template), found.trajectories
    seen = []
    for tree in lay_out(found, most, right):
        numbers = [n for n in dict.fromkeys(n for n, _ in tree.where) if every[n].id in right]
        if not numbers:
            assert tree.right is None
            continue
        assert tree.right.count == len(numbers)
        assert tree.right.shares.sum() == pytest.approx(len(numbers))
        at = 0
        for number in numbers:
            reply, trajectory = right[every[number].id], every[number]
            size = int(reply.learnt.sum())
            assert np.allclose(tree.right.shares[at : at + size], 1 / size)
            rows = tree.rows[tree.right.place[at : at + size]]
            prompt = trajectory.prompt_of(trajectory.turns[-1]).tolist()
            assert path(tree.tree, int(rows[-1])) == prompt + reply.ids.tolist()
            assert tree.tree.ids[rows].tolist() == reply.ids[reply.learnt].tolist()
            at += size
            seen.append(number)
        assert at == len(tree.right.place)
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
        ids = template.encode(f"<answer>Oganesson [{cited}]</answer>")
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
        assert stats.figures["silent"] == sum(tree.right is None for tree in trees)


def test_it_adds_to_the_policy_loss_and_is_learnt(tiny, template):
    own = judged(template)
    right = right_replies(own, template)
    plain = learner(tiny, loss=LossChoice()).step(update_batch(lay_out(own, 10_000)))
    assert "right_reply" not in plain.figures
    made = learner(tiny, loss=LossChoice(likelihood=2.0))
    both = made.step(update_batch(lay_out(own, 10_000, right)))
    assert both.loss == pytest.approx(plain.loss - 2 * both.figures["right_reply"], abs=1e-5)
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
