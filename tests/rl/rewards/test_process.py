"""Rewards of the way there: graph steps, plans, costs, checklists, and sums of rewards."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kg.errors import UsageError
from rl.rewards import Combination, Need, Part, RewardContext, RewardError, make_reward
from rl.rewards.aspects import restl, total, weight_at, without_each
from rl.rewards.graph_process import accepted
from rl.rewards.plan import align, own_steps
from rl.rewards.rubric import transcript
from tests.rl.rewards.episodes import answer, call, episode, judge, malformed, search, task
from tools.base import Observation

NONE = RewardContext()


def row(name, *turns, of=None, context=NONE, **options):
    return make_reward(name, options)([episode(*turns, of=of, id="t")], context)[0].tolist()


def grown(probability, edges=(), **data):
    data = {"target_probability": probability, "edges": [list(e) for e in edges], **data}
    return call("kg", seen=Observation("kg", data=data))


REFERENCE = RewardContext(edges=[("a", "b"), ("b", "c")])


class TestGraph:
    def test_the_published_formula(self):
        turns = [grown(0.8, [("a", "b")], rollout_probabilities=[0.9, 0.7]), answer()]
        found = row("graph_process", *turns, context=REFERENCE, form="level", rollout_weight=0.5)
        assert found == pytest.approx([0.3 + 0.5 * 0.3, 0])

    def test_one_edge_outside_the_reference_costs_exactly_its_weight(self):
        inside = row("graph_process", grown(0.8, [("a", "b")]), answer(), context=REFERENCE)
        edges = [("a", "b"), ("a", "c")]
        for weight in (1.0, 0.3):
            found = row(
                "graph_process", grown(0.8, edges), answer(), context=REFERENCE, edge_weight=weight
            )
            assert inside[0] - found[0] == pytest.approx(weight)
        two = [*edges, ("c", "d")]
        again = row("graph_process", grown(0.8, two), answer(), context=REFERENCE, edge_weight=0.3)
        assert again == found

    def test_edges_have_no_direction_unless_told(self):
        turned = [grown(0.8, [("b", "a")]), answer()]
        assert row("graph_process", *turned, context=REFERENCE)[0] == pytest.approx(0.3)
        assert row("graph_process", *turned, context=REFERENCE, directed=True)[0] == pytest.approx(
            -0.7
        )

    def test_without_a_weight_no_reference_is_read(self):
        turns = [grown(0.8, [("a", "z")]), answer()]
        assert row("graph_process", *turns, edge_weight=0)[0] == pytest.approx(0.3)

    def test_an_empty_graph_is_valid(self):
        assert row("graph_process", grown(0.5), answer(), context=REFERENCE) == [0, 0]

    def test_the_change_pays_a_good_graph_once_and_the_level_every_turn(self):
        turns = [grown(0.9, [("a", "b")])] * 3 + [answer()]
        assert row("graph_process", *turns, context=REFERENCE) == pytest.approx([0.4, 0, 0, 0])
        level = row("graph_process", *turns, context=REFERENCE, form="level")
        assert level == pytest.approx([0.4, 0.4, 0.4, 0])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_changes_add_up_to_the_last_graph(self, probabilities):
        turns = [grown(p) for p in probabilities]
        found = sum(row("graph_process", *turns, answer(), context=REFERENCE))
        assert found == pytest.approx(probabilities[-1] - 0.5)

    def test_a_step_is_accepted_only_above_0(self):
        assert [accepted(v) for v in (-0.1, 0.0, 0.1)] == [False, False, True]

    def test_following_the_reward_makes_the_better_node_likelier(self):
        logits, rates = np.zeros(2), np.random.default_rng(0)
        for _ in range(200):
            p = np.exp(logits) / np.exp(logits).sum()
            node = int(rates.random() > p[0])
            reward = row("graph_process", grown((0.9, 0.2)[node]), answer(), context=REFERENCE)[0]
            logits += 0.2 * reward * (np.eye(2)[node] - p)
        assert np.exp(logits[0]) / np.exp(logits).sum() > 0.9

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            ({"edges": []}, "needs target_probability and edges"),
            ({"target_probability": 1.4, "edges": []}, "probability is 1.4"),
            ({"target_probability": math.nan, "edges": []}, "probability is nan"),
            ({"target_probability": "high", "edges": []}, "is 'high'"),
            ({"target_probability": 0.5, "edges": [["a"]]}, "not pairs"),
            ({"target_probability": 0.5, "edges": [], "rollout_probabilities": [2]}, "is 2"),
        ],
    )
    def test_a_broken_record_names_trajectory_and_turn(self, data, what):
        broken = call("kg", seen=Observation("kg", data=data))
        with pytest.raises(RewardError, match=f"trajectory t, turn 1: .*{what}"):
            row("graph_process", search(), broken, answer(), context=REFERENCE)

    def test_turns_that_change_no_graph_earn_nothing(self):
        assert row("graph_process", search(), judge(True), answer(), context=REFERENCE) == [0, 0, 0]


PLAN = ["Who directed Alien?", "Where was the director born?"]
FIRST, SECOND = search("director of alien directed"), search("director born where")


class TestPlan:
    def test_each_step_carried_out_pays_its_share(self):
        of = task(meta={"plan": PLAN})
        assert row("plan_adherence", FIRST, SECOND, answer(), of=of) == [0.5, 0.5, 0]

    def test_steps_out_of_order_or_twice_are_off_the_plan(self):
        of = task(meta={"plan": PLAN})
        assert sum(row("plan_adherence", SECOND, FIRST, answer(), of=of)) == pytest.approx(0.4)
        assert sum(row("plan_adherence", FIRST, FIRST, answer(), of=of)) == pytest.approx(0.4)

    def test_steps_that_stand_on_earlier_answers_are_followed_with_these_filled_in(self):
        solved = [{"question": PLAN[0]}, {"question": "Where was Ridley Scott born?"}]
        of = task(meta={"plan": [PLAN[0], "Where was #1 born?"], "steps": solved})
        second = search("ridley scott born")
        assert row("plan_adherence", FIRST, second, answer(), of=of) == [0.5, 0.5, 0]

    def test_calls_off_the_plan_cost_up_to_a_bound(self):
        of = task(meta={"plan": PLAN})
        found = row("plan_adherence", *[search("weather")] * 9, answer(), of=of)
        assert sum(found) == pytest.approx(-0.5)

    def test_the_policy_s_own_plan_holds_from_where_it_is_made(self):
        plan = call("plan", steps=PLAN)
        assert row("plan_adherence", plan, FIRST, SECOND, answer(), against="own") == [
            0,
            0.5,
            0.5,
            0,
        ]
        assert row("plan_adherence", FIRST, plan, SECOND, answer(), against="own") == [0, 0, 0.5, 0]

    def test_an_own_plan_of_one_step_is_worth_half(self):
        assert (
            row("plan_adherence", call("plan", steps=PLAN[:1]), FIRST, answer(), against="own")[1]
            == 0.5
        )

    def test_without_an_own_plan_there_is_nothing_to_follow(self):
        assert row("plan_adherence", FIRST, answer(), against="own") == [0, 0]

    def test_a_plan_is_read_from_data_arguments_or_lines(self):
        data = Observation("plan", data={"steps": ["a b"]})
        assert own_steps(call("plan", seen=data, text="x")) == ["a b"]
        assert own_steps(call("plan", steps=["a", " "])) == ["a"]
        assert own_steps(call("plan", text="1. find it\n2) read it\n- say it\n")) == [
            "find it",
            "read it",
            "say it",
        ]

    def test_a_step_of_a_decomposed_task_has_their_number_and_its_plan_counts(self):
        plain = row("plan_adherence", FIRST, answer(), of=task(meta={"plan": PLAN}))
        step = row("plan_adherence", FIRST, answer(), of=task(meta={"plan": PLAN, "steps": 2}))
        assert step == plain

    def test_a_task_without_a_plan_is_an_error(self):
        with pytest.raises(RewardError, match="trajectory t: task q1 has no plan"):
            row("plan_adherence", answer())

    @given(
        st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7)
    )
    def test_the_alignment_is_the_longest_in_order(self, steps, made):
        pairs = align(steps, [search(m).action for m in made], 1.0)
        assert all(steps[s] == made[c] for s, c in pairs if steps[s] != "a")
        assert all(s < t and c < d for (s, c), (t, d) in pairwise(pairs))
        assert len(pairs) == longest([s for s in steps if s != "a"], [m for m in made if m != "a"])


def longest(one, other):
    """Length of the longest common subsequence, by definition ("a" is an article: no word)."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest(one[1:], other[1:])
    return max(longest(one[1:], other), longest(one, other[1:]))


class TestCost:
    def test_calls_have_prices_and_verdicts_none(self):
        turns = [search(), judge(True), call("kg", query="x"), malformed(), answer()]
        found = row("tool_cost", *turns, prices={"kg": 0.2})
        assert found == pytest.approx([-0.05, 0, -0.2, 0, 0])
        assert row("tool_cost", *turns, prices={"kg": 0.2}, free=1)[:3] == pytest.approx(
            [0, 0, -0.2]
        )

    @given(st.integers(0, 40), st.floats(0, 1))
    def test_costs_are_bounded(self, n, most):
        assert -most - 1e-9 <= sum(row("tool_cost", *[search()] * n, answer(), most=most)) <= 0

    @given(st.integers(0, 20))
    def test_one_more_call_never_pays(self, n):
        fewer, more = (sum(row("tool_cost", *[search()] * k, answer())) for k in (n, n + 1))
        assert more <= fewer + 1e-9

    def test_only_right_answers_may_be_charged(self):
        assert sum(row("tool_cost", search(), answer("x"), only_when_right=True)) == 0
        assert sum(row("tool_cost", search(), answer(), only_when_right=True)) == -0.05
        assert make_reward("tool_cost", {"only_when_right": True}).needs == (Need.ANSWERS,)

    def test_time_beyond_the_free_seconds_costs_where_it_is_taken(self):
        turns = [call(seconds=8, query="a"), call(seconds=6, query="b"), answer(policy_seconds=2.0)]
        assert row("latency", *turns) == pytest.approx([0, -0.04, -0.02])

    @pytest.mark.parametrize("seconds", [math.nan, -1.0, math.inf])
    def test_impossible_times_name_trajectory_and_turn(self, seconds):
        with pytest.raises(RewardError, match="trajectory t, turn 1: the turn took"):
            row("latency", search(), call(seconds=seconds), answer())

    def test_the_same_call_again_costs(self):
        turns = [search("Alien director"), search("alien  DIRECTOR"), search("born"), answer()]
        assert row("repetition", *turns) == pytest.approx([0, -0.1, 0, 0])

    def test_nearly_the_same_words_cost_by_similarity(self):
        turns = [search("who directed alien"), search("who directed alien film"), answer()]
        assert row("repetition", *turns)[1] == 0
        assert row("repetition", *turns, similarity=0.7)[1] == pytest.approx(-0.1)

    @pytest.mark.parametrize(
        ("one", "other"), [("c1ccccc1", "C1CCCCC1"), ("CC(=O)O", "CCOO"), ("CCO", "CCO ")]
    )
    def test_molecules_are_the_same_letter_by_letter_alone(self, one, other):
        turns = [call("chem", smiles=one), call("chem", smiles=other), call("chem", smiles=one)]
        assert row("repetition", *turns, answer()) == pytest.approx([0, 0, -0.1, 0])

    def test_another_tool_is_another_call(self):
        turns = [
            search("alien"),
            call("kg", query="alien"),
            call("kg", depth=1),
            call("kg", depth=2),
        ]
        assert sum(row("repetition", *turns, answer())) == 0

    def test_a_negative_price_is_refused(self):
        with pytest.raises(UsageError, match="at least 0"):
            make_reward("tool_cost", {"prices": {"kg": -1}})


ITEMS = [
    {"points": 5, "criterion": "names the director"},
    {"points": 3, "criterion": "names the year"},
    {"points": -6, "criterion": "invents a source"},
]


def says(*met):
    return RewardContext(judge=lambda criterion, text: float(criterion in met))


class TestRubric:
    def test_the_published_case(self):
        context = says("names the director", "invents a source")
        assert row("rubric", answer(), items=ITEMS, context=context) == [-0.125]
        assert row("rubric", answer(), items=ITEMS, context=context, clip=True) == [0]
        assert make_reward("rubric", {"items": ITEMS}).range == (-0.75, 1)

    def test_a_task_may_bring_its_own(self):
        of = task(meta={"rubric": ITEMS})
        assert row("rubric", search(), answer(), of=of, context=says("names the year")) == [
            0,
            0.375,
        ]

    @given(st.lists(st.booleans(), min_size=3, max_size=3))
    def test_the_score_stays_in_range(self, met):
        context = says(*(item["criterion"] for item, m in zip(ITEMS, met, strict=True) if m))
        assert -0.75 <= row("rubric", answer(), items=ITEMS, context=context)[0] <= 1

    def test_rules_need_no_judge(self):
        items = [
            {"points": 1, "rule": rule} for rule in ("cites_a_source", "grounded", "short_answer")
        ]
        assert make_reward("rubric", {"items": items}).needs == ()
        good = [search("q", "Ridley Scott directed it."), answer(citations=[1])]
        assert sum(row("rubric", *good, items=items)) == 1
        assert sum(row("rubric", search("q", "x"), answer(), items=items)) == pytest.approx(1 / 3)
        rest = [
            {"points": 1, "rule": r} for r in ("used_a_tool", "no_tool_errors", "covers_evidence")
        ]
        of = task(evidence=("p1",))
        assert sum(row("rubric", search("q", "x", ids=["p1"]), answer(), of=of, items=rest)) == 1
        assert sum(
            row("rubric", search("q", error="down"), answer(), of=of, items=rest)
        ) == pytest.approx(1 / 3)

    @pytest.mark.parametrize(("words", "met"), [(0, 0), (1, 1), (10, 1), (11, 0)])
    def test_a_short_answer_has_at_most_ten_words(self, words, met):
        done = answer(" ".join(["word"] * words))
        assert row("rubric", done, items=[{"points": 1, "rule": "short_answer"}]) == [met]

    def test_an_item_is_met_from_the_threshold_on(self):
        half = RewardContext(judge=lambda c, t: 0.5)
        items = [{"points": 1, "criterion": "x"}]
        assert row("rubric", answer(), items=items, context=half) == [1]
        assert row("rubric", answer(), items=items, context=half, met=0.51) == [0]

    def test_the_judge_reads_the_whole_episode(self):
        text = transcript(episode(search("who", "He did.", thought="Look."), answer()))
        assert text.splitlines()[:4] == [
            "Question: Who directed Alien?",
            "Thought: Look.",
            "Call: search {'query': 'who'}",
            "Result: [1] : He did.",
        ]
        assert text.endswith("Answer: Ridley Scott")

    @pytest.mark.parametrize("score", [math.nan, 2.0])
    def test_a_judge_that_says_neither_is_an_error(self, score):
        context = RewardContext(judge=lambda c, t: score)
        with pytest.raises(RewardError, match="trajectory t, turn 0: the judge's score"):
            row("rubric", answer(), items=ITEMS, context=context)

    @pytest.mark.parametrize(
        ("items", "what"),
        [
            ([{"points": -1, "criterion": "x"}], "no item has positive points"),
            ([{"points": 0, "criterion": "x"}], "no item has positive points"),
            ([{"points": 1}], "a criterion or a rule"),
            ([{"points": 1, "rule": "magic"}], "no rule 'magic'"),
        ],
    )
    def test_a_checklist_that_is_none_is_refused(self, items, what):
        with pytest.raises(UsageError, match=what):
            make_reward("rubric", {"items": items})
        with pytest.raises(RewardError, match=what):
            row("rubric", answer(), of=task(meta={"rubric": items}), context=says())


def combined(**parts):
    return Combination(parts={label: Part(reward=label, weight=w) for label, w in parts.items()})


class TestCombination:
    GROUP = (episode(search(), answer()), episode(malformed(), answer("x")))

    def test_the_weighted_sum_reproduces_hand_values(self):
        reward = combined(exact_match=2, format=0.5, tool_cost=10)
        right, wrong = reward(self.GROUP, NONE)
        assert right == pytest.approx([-0.5, 2])
        assert wrong == pytest.approx([0, -1])
        assert reward.range == (-1 - 5, 2)

    def test_parts_are_kept_and_add_up(self):
        reward = combined(exact_match=2, format=0.5)
        assert [r.sum() for r in reward.separate(self.GROUP, NONE)["format"]] == [0, -2]
        parts = reward.weighted(self.GROUP, NONE)
        assert list(parts) == ["exact_match", "format"]
        summed = total(parts, self.GROUP)
        assert all((a == b).all() for a, b in zip(summed, reward(self.GROUP, NONE), strict=True))

    @given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
    def test_the_sum_stays_in_its_range(self, weights):
        reward = combined(**dict(zip(("exact_match", "format", "tool_cost"), weights, strict=True)))
        sums = [r.sum() for r in reward(self.GROUP, NONE)]
        assert all(reward.range.low - 1e-9 <= s <= reward.range.high + 1e-9 for s in sums)

    def test_leaving_each_part_out(self):
        parts = combined(exact_match=2, format=0.5).weighted(self.GROUP, NONE)
        table = {
            label: sum(r.sum() for r in rest)
            for label, rest in without_each(parts, self.GROUP).items()
        }
        assert table == {"exact_match": -1, "format": 2}

    def test_one_reward_twice_under_two_labels(self):
        parts = {
            "loose": Part(reward="f1"),
            "strict": Part(reward="f1", options={"scorer": "igpo"}),
        }
        both = Combination(parts=parts)
        assert list(both.separate(self.GROUP, NONE)) == ["loose", "strict"]
        assert both(self.GROUP, NONE)[0].tolist() == [0, 2]

    def test_a_combination_may_hold_another(self):
        inner = {"parts": {"a": {"reward": "exact_match"}}}
        outer = make_reward(
            "combination",
            {"parts": {"x": {"reward": "combination", "weight": 3, "options": inner}}},
        )
        assert outer(self.GROUP, NONE)[0].tolist() == [0, 3]

    def test_a_wrong_part_is_told_when_it_is_made(self):
        with pytest.raises(UsageError, match="no reward 'exact'"):
            make_reward("combination", {"parts": {"a": {"reward": "exact"}}})
        with pytest.raises(UsageError, match="at least 1 item"):
            make_reward("combination", {"parts": {}})

    def test_weights_may_change_over_the_run(self):
        assert [weight_at((0.5, 1.0), p) for p in (0, 0.5, 1)] == [0.5, 0.75, 1]
        ramp = combined(exact_match=(0.0, 1.0))
        assert ramp.needs == (Need.ANSWERS, Need.PROGRESS)
        assert ramp(self.GROUP, RewardContext(progress=0.25))[0].tolist() == [0, 0.25]
        with pytest.raises(RewardError, match="whose progress is None"):
            ramp(self.GROUP, NONE)

    def test_restl_s_weights(self):
        reward = restl()
        assert [part.weight for part in reward.parts.values()] == [0.2, 0.25, 0.35, 0.2]
        of = task(evidence=("p1", "p2"))
        done = episode(search("q", "x", ids=["p1"]), search(error="down"), answer(), of=of)
        expected = 0.2 * 0.5 + 0.25 * 0.5 + 0.35 * 1 + 0.2 * 1
        assert reward([done], NONE)[0].tolist() == pytest.approx([0, 0, expected])
        assert reward.range == pytest.approx((0, 1))

    def test_an_empty_answer_is_not_brief(self):
        assert sum(row("brevity", search())) == 0

    def test_nothing_is_evidence_for_a_question_without_an_answer(self):
        of = task(answers=(), answerable=False, evidence=("p1",))
        assert sum(row("evidence_recall", search("q", "x", ids=["p1"]), of=of)) == 0
