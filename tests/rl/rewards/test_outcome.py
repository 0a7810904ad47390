"""Outcome rewards and what a format violation does to them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trajectory import Status
from rl.rewards import RewardContext, RewardError, make_reward
from rl.rewards.format import FormatRules
from rl.rewards.outcome import only_number
from tests.rl.rewards.episodes import abstain, answer, episode, malformed, search, task

NONE = RewardContext()


def total(name, trajectory, **options):
    return make_reward(name, options)([trajectory], NONE)[0].sum()


def said(text, answers=("Ridley Scott",), **fields):
    return episode(answer(text), of=task(answers=answers, **fields))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("exact_match", "the Ridley Scott.", 1),
        ("exact_match", "Scott", 0),
        ("f1", "Scott", 2 / 3),
        ("cover_match", "It was Ridley Scott who did", 1),
        ("cover_match", "Ridley Scott " + "and others " * 10, 0),
        ("set_f1", "Ridley Scott, James Cameron", 2 / 3),
        ("rouge_l", "Ridley the great Scott", 4 / 5),
        ("brevity", "Ridley Scott of South Shields", 2 / 5),
    ],
)
def test_scores(name, text, expected):
    assert total(name, said(text)) == pytest.approx(expected)


def test_the_outcome_sits_on_the_last_turn():
    row = make_reward("exact_match")([episode(search(), search(), answer())], NONE)[0]
    assert row.tolist() == [0, 0, 1]


def test_the_scorer_is_an_option():
    assert total("exact_match", said("the Ridley Scott")) == 1
    assert total("exact_match", said("the Ridley Scott"), scorer="igpo") == 0


def test_choices_by_letter_or_text():
    of = {"meta": {"choices": ["Cameron", "Scott"], "right": 1}}
    assert total("multiple_choice", said("(B)", **of)) == 1
    assert total("multiple_choice", said("Cameron", **of)) == 0
    with pytest.raises(RewardError, match="no choices"):
        total("multiple_choice", said("B"))
    with pytest.raises(RewardError, match="choices of task q1: choice 7 of 1"):
        total("multiple_choice", said("B", meta={"choices": ["x"], "right": 7}))


def test_sets_are_compared_as_sets():
    of = {"meta": {"answer_set": ["Alien", "Blade Runner", "Ridley and Sons"]}}
    assert total("set_f1", said("Blade Runner; Alien", **of)) == pytest.approx(0.8)
    assert total("set_f1", said("Ridley and Sons", **of)) == pytest.approx(0.5)
    of = {"meta": {"answer_set": ["Trinidad and Tobago", "France"]}}
    assert total("set_f1", said("Trinidad and Tobago, France", **of)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("about 101 g", 1), ("102.5", 0), ("101 or 102", 0), ("heavy", 0), ("1.01e2", 1)],
)
def test_one_number_within_tolerance(text, expected):
    assert total("numeric", said(text, ("100.5 g",))) == expected


@pytest.mark.parametrize(
    ("text", "gold"),
    [("5mg", "5 mg"), ("5 mg", "5mg"), ("12 %", "12%"), ("12%", "0.12"), ("−5°C", "-5 °C")],
)
def test_a_unit_may_touch_its_number(text, gold):
    assert total("numeric", said(text, (gold,))) == 1
    assert total("numeric", said("7 mg", (gold,))) == 0


def test_a_gold_answer_that_is_no_number_is_an_error():
    with pytest.raises(RewardError, match="is a number"):
        total("numeric", said("5", ("many",)))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5 kg", 1234.5),
        ("12%", 0.12),
        ("C60", None),
        ("3-4", None),
        ("−3", -3),
        ("", None),
        ("1.5e3J of CO2", 1500),
        ("12\u202f%", 0.12),
        ("12 and %", 12),
        ("H2O", None),
        ("minus 3", -3),
        ("- 3", None),
        ("1e999", None),
    ],
)
def test_reading_numbers(text, number):
    assert only_number(text) == number


@given(st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-6))
def test_a_number_reads_back(value):
    assert only_number(f"it is {value!r} in all") == value


class TestAbstaining:
    def test_declining_what_has_no_answer_is_right(self):
        assert total("exact_match", episode(abstain(), of=task(answers=(), answerable=False))) == 1

    def test_answering_it_is_wrong(self):
        assert total("f1", said("anything", (), answerable=False)) == 0

    def test_running_out_of_budget_is_no_abstention(self):
        cut = episode(search(), of=task(answers=(), answerable=False))
        assert total("exact_match", cut) == 0

    def test_declining_an_answerable_question_is_wrong(self):
        assert total("exact_match", episode(abstain())) == 0

    def test_a_failed_episode_earns_nothing(self):
        assert total("f1", replace(episode(answer()), status=Status.FAILED)) == 0

    def test_a_task_without_gold_answers_names_trajectory_and_turn(self):
        broken = episode(search(), answer(), of=task(answers=()), id="t3")
        with pytest.raises(RewardError, match="trajectory t3, turn 1: task q1 has no gold"):
            total("f1", broken)


class TestFormat:
    GOOD = episode(search(thought="look"), answer(thought="so"))

    @pytest.mark.parametrize(
        ("trajectory", "rules", "bad"),
        [
            (GOOD, {}, []),
            (episode(malformed(), answer()), {}, [0]),
            (episode(search(), search()), {}, [1]),
            (episode(answer(forced=True)), {}, [0]),
            (episode(answer(forced=True)), {"forced": False}, []),
            (episode(search(), answer()), {"thought": "some"}, [1]),
            (episode(search(thought="x"), answer()), {"thought": "some"}, []),
            (episode(search(thought="x"), answer()), {"thought": "every"}, [1]),
            (episode(search(error="no index"), answer()), {}, []),
            (episode(search(error="no index"), answer()), {"errors": True}, [0]),
            (episode(answer(whole="<think>open <answer>x</answer>")), {}, [0]),
            (replace(episode(search()), status=Status.FAILED), {}, []),
        ],
    )
    def test_violations(self, trajectory, rules, bad):
        assert FormatRules(**rules).violations(trajectory) == bad

    def test_a_malformed_rollout_gets_minus_2_at_its_end_and_keeps_its_turns(self):
        rows = make_reward("format")([episode(malformed(), search(), answer()), self.GOOD], NONE)
        assert [row.tolist() for row in rows] == [[0, 0, -2], [0, 0]]

    def test_the_penalty_may_sit_on_the_turn_that_earned_it(self):
        bad = episode(search(), malformed(), malformed(), answer())
        row = make_reward("format", {"place": "turn"})([bad], NONE)[0]
        assert row.tolist() == [0, -2, 0, 0]

    @pytest.mark.parametrize(
        ("scheme", "values"),
        [  # right, right but malformed, wrong, wrong and malformed, malformed without an answer
            ("igpo", [1, -2, 0, -2, -2]),
            ("search_r1", [1, 0.8, 0.2, 0.1, 0]),
            ("research", [1, 0, 0.1, 0, 0]),
            ("r1_searcher", [1, -1, 0, -2, -2]),
        ],
    )
    def test_published_tables(self, scheme, values):
        cases = [
            episode(answer()),
            episode(malformed(), answer()),
            episode(answer("James Cameron")),
            episode(malformed(), answer("James Cameron")),
            episode(malformed(), search()),
        ]
        found = [total("format_gated_outcome", case, scheme=scheme) for case in cases]
        assert found == pytest.approx(values)

    @pytest.mark.parametrize(
        ("text", "gold", "igpo", "search_r1", "research"),
        [
            ("The Beatles", "Beatles", 2 / 3, 1, 1),
            ("York New York", "New York", 1, 0.2, 0.8),
            ("yes he did", "yes", 1 / 2, 0.2, 0.1),
        ],
    )
    def test_each_scheme_scores_the_answer_as_its_source_does(
        self, text, gold, igpo, search_r1, research
    ):
        one = said(text, (gold,))
        found = [
            total("format_gated_outcome", one, scheme=scheme)
            for scheme in ("igpo", "search_r1", "research")
        ]
        assert found == pytest.approx([igpo, search_r1, research])
        told = {"scheme": "search_r1", "scorer": "igpo", "score_by": "f1"}
        assert total("format_gated_outcome", one, **told) == (1 if igpo == 1 else 0.2)

    @pytest.mark.parametrize(("scheme", "value"), [("igpo", -2), ("search_r1", 1), ("research", 0)])
    def test_a_forced_answer_is_valid_where_the_last_reply_has_no_tools(self, scheme, value):
        forced = episode(answer(thought="so", forced=True))
        rules = {"thought": "some"}
        assert total("format_gated_outcome", forced, scheme=scheme, rules=rules) == value

    def test_partial_credit_is_kept_under_the_gate(self):
        assert total("format_gated_outcome", said("Scott")) == pytest.approx(2 / 3)
        assert total("format_gated_outcome", said("Scott"), score_by="em") == 0
        long = said("Scott " + " ".join(f"word{n}" for n in range(40)))
        assert 0 < total("format_gated_outcome", long, scheme="research") < 0.1
