"""What an explanation says of knowledge and of changed minds, on episodes built by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from agent.trajectory import Action, ActionKind
from eval.analyses.explain import explain
from eval.analyses.knowing import knew
from eval.analyses.probed import read_probed
from eval.analyses.turning import turned
from eval.command import explained
from kg.errors import UsageError
from rl.assess import assess
from rl.assessment_recipe import Assessment, CreditChoice
from rl.receipt import make_receipt
from rl.rewards import Part, RewardContext
from rl.trace_credit import plain
from tests.rl.groups import random_group
from tests.rl.rewards.episodes import abstain, answer, episode, judge, malformed, search, task, turn


def label(known, policy="hand@0"):
    return task(
        meta={"known": {"policy": policy, "samples": 8, "right": 0.25 * known, "known": known}}
    )


def test_the_label_of_a_probe_says_what_it_knew_and_the_first_reply_what_it_made_of_it():
    looked, blind = (search(), answer()), (answer("Oslo"),)
    text = knew(episode(*looked, of=label(True)))
    assert text.startswith(
        "Closed-book 25 % of 8 samples were right: it knows the answer by itself."
    )
    assert text.endswith("It looked it up, although it knows it.")
    assert knew(episode(*looked, of=label(False))).endswith("It looked it up.")
    text = knew(episode(malformed(), *blind, of=label(False)))
    assert "Closed-book 0 % of 8 samples were right: it does not know" in text
    assert text.endswith("It answered without a search what it does not know.")
    assert knew(episode(*blind, of=label(True))).endswith("It answered without a search.")
    other = knew(episode(*looked, of=label(True, "big@1")))
    assert other == (
        "Closed-book 25 % of 8 samples of another policy (big@1) were right. It looked it up."
    )
    assert "it knows the answer" in knew(episode(*looked, of=label(True, "hand@7")))


@pytest.mark.parametrize("meta", [{}, {"known": True}, {"known": {"known": "yes"}}])
def test_what_it_knew_is_not_made_up_where_nobody_asked(meta):
    text = knew(episode(abstain(), of=task(meta=meta)))
    assert text == (
        "Whether it knows the answer by itself is not recorded (agent probe asks). "
        "It declined without a search."
    )
    assert knew(episode(of=task())).endswith("(agent probe asks).")


def test_another_query_after_a_result_names_what_it_took_from_it():
    done = episode(
        search("alien director", "Alien was directed by Ridley Scott."),
        judge(True),
        search("birthplace Ridley Scott"),
        search("birthplace Ridley Scott"),
        search("where from"),
        answer("South Shields"),
    )
    assert turned(done) == [
        "Turn 3: after the result of turn 1 it asked for \u201cbirthplace Ridley Scott\u201d instead of "
        "\u201calien director\u201d, with \u201cridley scott\u201d from that result.",
        "Turn 5: after the result of turn 4 it asked for \u201cwhere from\u201d instead of "
        "\u201cbirthplace Ridley Scott\u201d.",
    ]


def test_an_answer_that_it_held_and_gave_up_is_told():
    done = episode(
        search(thought="The answer is probably James Cameron. Let me look."),
        judge(False),
        answer("Ridley Scott", thought="So the answer was Ridley Scott, not the other one."),
    )
    assert turned(done) == [
        "Turn 2: it put aside what it was shown: that changed its course.",
        "Turn 3: it gave up \u201cJames Cameron\u201d for \u201cRidley Scott\u201d.",
    ]
    declined = episode(search(thought="The answer may be 3.5 million"), abstain())
    assert turned(declined) == ["Turn 2: it gave up \u201c3.5 million\u201d and declined."]
    hidden = replace(search(), reasoning="I think the answer is James Cameron")
    assert len(turned(episode(hidden, answer()))) == 1
    unsure = episode(search(thought="The answer is not here. The answer may be in [2]"), answer())
    assert turned(unsure) == []
    kept = episode(search(thought="the answer might be Ridley Scott"), answer("Sir Ridley Scott"))
    assert turned(kept) == []


def test_an_answer_that_the_runtime_refused_was_held():
    refused = turn(
        Action(ActionKind.MALFORMED, text="you judged the last result unhelpful"),
        text="<answer>James Cameron</answer>",
    )
    done = episode(refused, search(), answer(), versions={"format": "tags"})
    assert turned(done) == [
        "Turn 3: it gave up \u201cJames Cameron\u201d for \u201cRidley Scott\u201d."
    ]
    assert turned(episode(malformed(), answer(), versions={"format": "tags"})) == []


@pytest.fixture
def receipt(tmp_path):
    """Of an episode of three turns, the second of which raises the gold answer from 0.1 to 0.8."""

    def write(done, form="log_probability", **changes):
        scores = [math.log(p) for p in (0.2, 0.1, 0.8)]
        lines = [
            {"turn": k, "gold": gold, "information_gain": None} for k, gold in enumerate(scores)
        ]
        data = {"id": done.id, "gold_answer": "Ridley Scott", "gold_form": form, "turns": lines}
        path = tmp_path / "receipt.json"
        path.write_text(json.dumps({**data, "loss": 0.5, **changes}))
        return path

    return write


def test_probes_say_how_likely_the_answer_was_and_which_turn_gained_most(receipt):
    done = episode(search("a b"), search("a b"), answer())
    text = explained(done, None, "", receipt(done))
    assert (
        "What it knew: Before it did anything \u201cRidley Scott\u201d had a probability of 0.20"
        in text
    )
    told = "- Turn 2: it gained most: \u201cRidley Scott\u201d went from 0.10 to 0.80 a token."
    assert f"What changed its mind:\n{told}\n\n" in text
    falling = [{"gold": gold} for gold in (0.5, 0.4, 0.3)]
    text = explained(done, None, "", receipt(done, "probability", turns=falling))
    assert "had a probability of 0.50" in text
    assert "gained most" not in text
    assert "What changed its mind:\n- Nothing that is recorded.\n\n" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "other"}, "is the receipt of other, not of"),
        ({"turns": [{"gold": None}] * 3, "gold_answer": ""}, "does not tell how likely"),
        ({"turns": [{"gold": -1.0}] * 2}, "does not tell how likely"),
        ({"turns": 3}, "holds no receipt"),
    ],
)
def test_a_receipt_that_does_not_fit_is_refused(receipt, changes, message):
    done = episode(search(), search(), answer())
    with pytest.raises(UsageError, match=message):
        read_probed(receipt(done, **changes), done)


def test_a_receipt_is_read_as_it_is_printed(tmp_path):
    done = replace(random_group(3, size=1)[0], task=task(), id="a")
    curve = -np.linspace(3, 1, len(done.turns))[None, :]
    spec = Assessment(
        rewards={"gain": Part(reward="information_gain")}, credit=CreditChoice(estimator="igpo")
    )
    found = assess([[done]], spec, RewardContext(gold_logprobs={"a": curve}))
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(plain(make_receipt(found, "a"))))
    read = read_probed(path, done)
    assert read.gold_answer == "Ridley Scott"
    assert read.probabilities == pytest.approx(np.exp(curve[0]))


def test_a_receipt_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_probed(tmp_path / "none.json", episode(answer()))


def test_rewards_that_were_attached_are_told():
    text = explain(episode(search(), answer(), rewards={"thumb": 1.0, "clarity": 0.25}))
    assert "Rewards attached to it: thumb 1, clarity 0.25." in text
    assert "Rewards" not in explain(episode(answer()))


@pytest.mark.parametrize("reason", ["The results do not say.", "The results do not say", ""])
def test_a_sentence_ends_with_one_full_stop(reason):
    text = explain(episode(abstain(reason)))
    said = reason.rstrip(".") or "no reason given"
    assert f"It declined to answer: {said}.\n" in text
