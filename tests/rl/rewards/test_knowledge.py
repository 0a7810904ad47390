"""Knowing what one knows: IKEA's table, SALU's five cases, KnowRL's consistency."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.episode import Budgets
from kg.errors import UsageError
from rl.rewards import RewardContext, RewardError, make_reward
from rl.rewards.abstention import stated_confidence
from rl.rewards.context import task_key
from rl.rewards.knowledge_boundary import is_known
from rl.rewards.self_knowledge import consensus
from tests.rl.rewards.episodes import abstain, answer, confident, episode, malformed, search, task
from tests.rl.rollouts import play

NONE = RewardContext()


def searched(n, text="Ridley Scott", *before):
    return episode(*before, *[search(f"q{i}") for i in range(n)], answer(text), id="t")


class TestIkea:
    BOUNDARY = make_reward("knowledge_boundary")

    @pytest.mark.parametrize(("n", "right"), list(enumerate([1.6, 1.4, 1.2, 1.0, 1.0])))
    def test_the_published_table(self, n, right):
        cases = [searched(n), searched(n, "wrong"), searched(n, "Ridley Scott", malformed())]
        found = [self.BOUNDARY([case], NONE)[0].sum() for case in cases]
        assert found == pytest.approx([right, 0.05 if n else 0, -1])

    def test_a_forced_answer_after_the_last_search_is_no_violation(self):
        searches = ["<search>gold</search>", "<search>tin</search>", "<search>iron</search>"]
        known = "<search>Oganessian</search>"
        script = [*searches, known, "oganesson</answer>"]
        right = play(script, budgets=Budgets(turns=8, tool_calls=3))
        assert right.turns[-1].forced
        assert self.BOUNDARY([right], NONE)[0].tolist() == [0, 0, 0, 0, 1]
        wrong = play([*script[:-1], "gold</answer>"], budgets=Budgets(turns=8, tool_calls=3))
        assert self.BOUNDARY([wrong], NONE)[0].sum() == 0.05
        strict = make_reward("knowledge_boundary", {"rules": {"forced": True}})
        assert strict([right], NONE)[0].sum() == -1

    def test_the_order_of_the_cases(self):
        few, many = searched(0), searched(3)
        wrong, guess, bad = searched(1, "x"), searched(0, "x"), episode(malformed())
        ranked = [self.BOUNDARY([c], NONE)[0].sum() for c in (few, many, wrong, guess, bad)]
        assert ranked == sorted(ranked, reverse=True)
        assert len(set(ranked)) == 5

    @given(st.integers(0, 9), st.integers(0, 9), st.booleans())
    def test_more_searches_never_pay_when_right(self, n, m, valid):
        a, b = (self.BOUNDARY.closed_form(True, k, valid) for k in sorted((n, m)))
        assert a >= b

    @pytest.mark.parametrize("n", range(5))
    def test_turn_by_turn_the_sum_is_the_same(self, n):
        spread = make_reward("knowledge_boundary", {"place": "turns"})([searched(n)], NONE)[0]
        assert spread.sum() == pytest.approx(self.BOUNDARY.closed_form(True, n))
        assert spread[:n].tolist() == pytest.approx([-0.2, -0.2, -0.2, 0][:n])

    def test_abstaining_is_no_right_answer(self):
        assert self.BOUNDARY([episode(search(), abstain())], NONE)[0].tolist() == [0, 0.05]

    def test_a_group_all_wrong_with_searches_has_no_spread(self):
        rows = self.BOUNDARY([searched(n, "x") for n in (1, 2, 3)], NONE)
        assert {round(row.sum(), 9) for row in rows} == {0.05}


class TestLabel:
    def test_one_right_closed_book_answer_makes_a_question_known(self):
        assert is_known([False] * 15 + [True])
        assert not is_known([False] * 16)

    @pytest.mark.parametrize(
        ("known", "trajectory", "row"),
        [
            (True, searched(2), [-0.1, -0.1, 0]),
            (True, searched(5), [-0.1, -0.1, -0.1, 0, 0, 0]),
            (True, searched(0), [0]),
            (False, searched(2), [0, 0, 0]),
            (False, searched(0), [-0.3]),
            (False, episode(abstain()), [0]),
        ],
    )
    def test_costs_by_label(self, known, trajectory, row):
        found = make_reward("boundary_label")(
            [trajectory], RewardContext(known={task_key(task()): known})
        )
        assert found[0].tolist() == row

    def test_a_label_is_of_the_task_and_not_of_its_id(self):
        other = task("Who wrote it?")
        known = RewardContext(known={task_key(task()): True, task_key(other): False})
        reward = make_reward("boundary_label")
        assert reward([searched(1)], known)[0].tolist() == [-0.1, 0]
        assert reward([episode(search(), answer(), of=other)], known)[0].tolist() == [0, 0]
        again = task(id="another", meta={"known": {"known": False}})
        assert task_key(again) == task_key(task())

    def test_a_question_without_a_label_is_an_error(self):
        with pytest.raises(RewardError, match="trajectory t, turn 1: task q1 has no knowledge"):
            make_reward("boundary_label")([searched(1)], NONE)


OPEN, CLOSED = task(answerable=True), task(answers=(), answerable=False)
CASES = {
    "right": episode(answer(), of=OPEN, id="t"),
    "declined_answerable": episode(abstain(), of=OPEN, id="t"),
    "wrong": episode(answer("x"), of=OPEN, id="t"),
    "declined": episode(abstain(), of=CLOSED, id="t"),
    "hallucinated": episode(answer("x"), of=CLOSED, id="t"),
}


def five(case, confidence, **options):
    given = RewardContext(confidence={"t": confidence})
    reward = make_reward("abstention", {"confidence": "given", **options})
    return reward([CASES[case]], given)[0].sum()


class TestSalu:
    @pytest.mark.parametrize("shape", ["linear", "quadratic"])
    @pytest.mark.parametrize(
        ("case", "unsure", "sure"),
        [
            ("right", 1, 1.5),
            ("declined_answerable", -0.2, -0.2),
            ("wrong", -1, -1.5),
            ("declined", 1, 1.5),
            ("hallucinated", -2, -3),
        ],
    )
    def test_the_five_cases(self, case, unsure, sure, shape):
        assert five(case, 0.0, shape=shape) == pytest.approx(unsure)
        assert five(case, 1.0, shape=shape) == pytest.approx(sure)

    @given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["linear", "quadratic"]))
    def test_monotone_in_confidence(self, c, d, shape):
        low, high = sorted((c, d))
        for case in CASES:
            rise = five(case, high, shape=shape) - five(case, low, shape=shape)
            assert rise >= 0 if case in ("right", "declined") else rise <= 0

    @given(st.floats(0, 1), st.sampled_from(["linear", "quadratic"]))
    def test_hallucination_is_the_worst_case(self, c, shape):
        assert five("hallucinated", c, shape=shape) == min(five(k, c, shape=shape) for k in CASES)

    @pytest.mark.parametrize("chance", [0.1, 0.5, 0.8])
    def test_quadratic_is_best_served_by_the_true_chance(self, chance):
        grid = [i / 100 for i in range(101)]
        paid = [chance * five("right", c) + (1 - chance) * five("wrong", c) for c in grid]
        assert grid[paid.index(max(paid))] == pytest.approx(chance, abs=0.01)

    def test_always_and_never_abstaining_are_both_worse_than_knowing(self):
        c = 0.7
        always = five("declined_answerable", c) + five("declined", c)
        never = five("right", c) + five("hallucinated", c)
        knowing = 0.8 * five("right", c) + 0.2 * five("wrong", c) + five("declined", c)
        assert knowing > max(always, never)

    def test_measured_by_the_reply_s_tokens(self):
        reward = make_reward("abstention", {"shape": "linear"})
        sure = confident(CASES["right"], 0.8)
        assert reward([sure], NONE)[0].sum() == pytest.approx(1.4)
        with pytest.raises(RewardError, match="trajectory t, turn 0: no measured confidence"):
            reward([CASES["right"]], NONE)

    def test_stated_in_the_reply(self):
        stated = episode(answer(whole="Confidence: 80%. <answer>Ridley Scott</answer>"), of=OPEN)
        options = {"confidence": "stated", "shape": "linear"}
        assert make_reward("abstention", options)([stated], NONE)[0].sum() == pytest.approx(1.4)

    @pytest.mark.parametrize("said", ["", "Confidence: 250. ", "I am sure. "])
    @pytest.mark.parametrize("shape", ["linear", "quadratic"])
    def test_stating_no_confidence_never_pays(self, said, shape):
        reward = make_reward("abstention", {"confidence": "stated", "shape": shape})

        def paid(text, right, of=OPEN):
            name = "Ridley Scott" if right else "x"
            one = episode(answer(name, whole=f"{text}<answer>{name}</answer>"), of=of)
            return reward([one], NONE)[0].sum()

        assert [paid(said, True), paid(said, False), paid(said, False, CLOSED)] == [1, -1.5, -3]
        for stated in (f"Confidence: {n}%. " for n in range(0, 101, 10)):
            assert paid(said, True) <= paid(stated, True)
            assert paid(said, False) <= paid(stated, False)

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("confidence: 0.7", 0.7),
            ("confidence: 1", 1),
            ("confidence 100%", 1),
            ("confidence: 0.4 no, confidence: 0.6", 0.6),
            ("Confidence = 95 %", 0.95),
            ("confidence 250", None),
            ("confidence: .9", 0.9),
            ("Confidence: 9/10", 0.9),
            ("confidence: 4 out of 5.", 0.8),
            ("confidence is 90%", 0.9),
            ("Confidence level: 0.9", 0.9),
            ("**Confidence:** 85 / 100", 0.85),
            ("confidence: 5", None),
            ("confidence: 80", None),
            ("confidence: 11/10", None),
            ("<confidence>80%</confidence>", 0.8),
            ('{"confidence": 0.8}', 0.8),
            ("Confidence - 80%", 0.8),
            ("confidence: `0.7`", 0.7),
            ("confidence: ~95 percent", 0.95),
            ("confidence: 1/2", None),
            ("confidence: 1 in 20", None),
            ("sure", None),
        ],
    )
    def test_reading_a_stated_confidence(self, text, value):
        assert stated_confidence(text) == value

    def test_without_weight_no_confidence_is_read(self):
        assert make_reward("abstention", {"weight": 0})([CASES["right"]], NONE)[0].sum() == 1

    @pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
    def test_a_confidence_outside_0_to_1_is_an_error(self, bad):
        with pytest.raises(RewardError, match="trajectory t, turn 0: the confidence is"):
            five("right", bad)

    def test_the_order_of_the_cases_is_kept(self):
        with pytest.raises(UsageError, match="the order is hallucinated"):
            make_reward("abstention", {"hallucinated": -0.5})
        assert make_reward("abstention", {"hallucinated": -1.0}).range.low == -1.5


VOTES = {"f": "feasible", "i": "Infeasible.", "?": "maybe", "b": "feasible or infeasible"}


def analyses(votes):
    return [episode(answer(VOTES[v]), of=task(meta={"claimed": "feasible"})) for v in votes]


def consistency(votes, shares=None, **options):
    given = RewardContext(vote_shares=shares or {})
    options = {"balanced": shares is not None, **options}
    rows = make_reward("self_consistency", options)(analyses(votes), given)
    return [float(row.sum()) for row in rows]


class TestKnowRl:
    def test_agreement_of_8_is_the_most_and_4_against_4_the_least(self):
        shares = [consensus(["f"] * n + ["i"] * (8 - n)) for n in range(9)]
        assert shares[0] == shares[8] == max(shares) == 1
        assert shares[4] == min(shares) == 0.5

    @given(st.permutations(["f"] * 5 + ["i"] * 2 + [None]))
    def test_the_order_of_votes_does_not_matter(self, votes):
        assert consensus(votes) == 5 / 8

    def test_votes_that_cannot_be_read_agree_with_none(self):
        assert consensus(["f", None, None, None]) == 0.25
        assert consensus([None, None]) == consensus([]) == 0
        assert consistency("ff??")[:2] == pytest.approx([1 / 3, 1 / 3])
        assert consistency("f?b", unreadable=-0.5)[1:] == [-0.5, -0.5]

    def test_each_vote_by_those_that_say_the_same(self):
        assert consistency("fffi") == pytest.approx([2 / 3] * 3 + [0])

    def test_the_whole_group_by_its_consensus_or_the_claim(self):
        assert consistency("fffi", credit="task") == [0.75] * 4
        assert consistency("fiii", credit="claimed") == [0.25] * 4

    @pytest.mark.parametrize("credit", ["vote", "task", "claimed"])
    def test_a_policy_that_always_says_the_same_gains_nothing(self, credit):
        collapsed = {"feasible": 1.0, "infeasible": 0.0}
        assert consistency("ffffffff", collapsed, credit=credit) == [0] * 8
        balanced = {"feasible": 0.5, "infeasible": 0.5}
        assert consistency("ffffffff", balanced, credit=credit) == [0.5] * 8

    @given(st.text("fi?b", min_size=1, max_size=8), st.floats(0, 1))
    def test_values_stay_in_range(self, votes, p):
        for credit in ("vote", "task", "claimed"):
            shares = {"feasible": p, "infeasible": 1 - p}
            assert all(-1 <= v <= 1 for v in consistency(votes, shares, credit=credit))

    def test_one_vote_agrees_with_nobody(self):
        assert consistency("f") == [0]

    def test_a_missing_share_is_an_error(self):
        with pytest.raises(RewardError, match="no vote share of 'infeasible'"):
            consistency("ii", {"feasible": 1.0})

    def test_labels_are_two_words(self):
        with pytest.raises(UsageError, match="two different words"):
            make_reward("self_consistency", {"labels": ["yes", "Yes."]})
        with pytest.raises(UsageError, match="two different words"):
            make_reward("self_consistency", {"labels": ["can answer", "cannot answer"]})
