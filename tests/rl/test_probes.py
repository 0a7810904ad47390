"""What is before a probe: the same whether the budget lasted or not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from agent.episode import Budgets
from agent.formats import FORMATS
from agent.trajectory import Span
from rl.probes import opening_of, probed_context
from tests.rl.rollouts import ASTRAY, RIGHT, play


def call(name, **arguments):
    said = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{said}\n</tool_call>"


#: Turns before the answer, and the answer, as a policy writes it of its own and behind what opens it.
SCRIPTS = {
    "tags": (RIGHT[:2], RIGHT[2], "oganesson [1]</answer>"),
    "tool_call": (
        (call("search", query="Oganessian"), call("judge", verdict="yes")),
        "oganesson [1]",
        "oganesson [1]",
    ),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_spent_budget_adds_nothing_to_what_the_gold_answer_is_forced_behind(template, form):
    turns, free, forced = SCRIPTS[form]
    whole = play((*turns, free), template, form=form)
    spent = play((*turns, forced), template, form=form, budgets=Budgets(turns=len(turns)))
    assert [t.turns[-1].forced for t in (whole, spent)] == [False, True]
    assert whole.answer == spent.answer == "oganesson"
    for number, turn in enumerate(whole.turns):
        ours, theirs = probed_context(whole, number), probed_context(spent, number)
        np.testing.assert_array_equal(ours, whole.prompt_of(turn))
        np.testing.assert_array_equal(ours, theirs)
    saw = spent.prompt_of(spent.turns[-1])
    written = template.decode(saw[len(probed_context(spent, 2)) :].tolist())
    assert (written == "<answer>") if form == "tags" else "final answer now" in written


def test_a_result_left_out_of_the_context_stays_out_and_its_stub_stays_in(template):
    script = (*ASTRAY[:2], "oganesson</answer>")
    spent = play(script, template, budgets=Budgets(turns=2))
    assert spent.turns[-1].forced
    saw, probed = spent.prompt_of(spent.turns[-1]), probed_context(spent, 2)
    np.testing.assert_array_equal(saw[: len(probed)], probed)
    assert template.decode(saw[len(probed) :].tolist()) == "<answer>"
    text = template.decode(probed.tolist())
    assert "Omitted: judged not helpful." in text
    assert "yellow metal" not in text


def test_a_turn_that_sees_nothing_after_what_came_before_is_cut_within_a_span(template):
    spent = play((*RIGHT[:2], "oganesson</answer>"), template, budgets=Budgets(turns=2))
    last = spent.turns[-1]
    [whole] = last.context  # the opening is joined to what is before it
    assert whole == Span(0, last.reply.start)
    apart = replace(last, context=(Span(0, 9), Span(9, last.reply.start)))
    other = replace(spent, turns=(*spent.turns[:-1], apart))
    np.testing.assert_array_equal(probed_context(spent, 2), probed_context(other, 2))


def test_the_opening_is_the_formats(template):
    played = {form: play((SCRIPTS[form][1],), template, form=form) for form in FORMATS}
    assert {form: opening_of(one) for form, one in played.items()} == {
        "tags": "<answer>",
        "tool_call": "",
    }
    assert opening_of(replace(played["tags"], versions={"format": "json"})) == ""
