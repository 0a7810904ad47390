"""IGPO: differences of the gold answer's probability, turn by turn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.probes import step_answers
from rl.rewards import Combination, Part, RewardContext, RewardError, make_reward
from rl.rewards.information_gain import CURRICULUM
from tests.rl.rewards.episodes import answer, call, episode, malformed, search, task


def gains(trajectories, scores, **options):
    pairs = zip(trajectories, scores, strict=True)
    given = RewardContext(gold_logprobs={t.id: np.array(s) for t, s in pairs})
    return make_reward("information_gain", options)(trajectories, given)


def two_turns(id="t"):
    return episode(search(), answer(), id=id)


def test_the_gain_of_a_toy_policy_is_the_analytic_difference():
    # the gold answer has two tokens: 0.2 and 0.05 before the search, 0.9 and 0.4 after it
    before, after = np.log([0.2, 0.05]).mean(), np.log([0.9, 0.4]).mean()
    scores = [[before, after]]
    assert gains([two_turns()], scores)[0] == pytest.approx([math.log(6), 0], abs=1e-6)
    expected = [math.sqrt(0.36) - math.sqrt(0.01), 0]
    found = gains([two_turns()], scores, form="probability")[0]
    assert found == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(-30, 0), min_size=1, max_size=12), st.booleans())
def test_the_sum_telescopes(scores, probability):
    turns = [search() for _ in scores[1:]]
    form = "probability" if probability else "log_probability"
    row = gains([episode(*turns, answer(), id="t")], [scores], form=form)[0]
    g = math.exp if probability else float
    assert row.sum() == pytest.approx(g(scores[-1]) - g(scores[0]), abs=1e-9)
    assert row[-1] == 0
    assert not probability or -1 <= row.sum() <= 1


def test_values_are_plain_numbers_cut_off_from_the_scores():
    scores = np.array([-2.0, -1.0])
    context = RewardContext(gold_logprobs={"t": scores})
    row = make_reward("information_gain")([two_turns()], context)[0]
    scores += 1
    assert type(row) is np.ndarray
    assert row.tolist() == [1, 0]


def test_with_equal_outcomes_turns_before_the_last_still_differ():
    group = [two_turns("a"), two_turns("b")]
    outcome = [row.sum() for row in make_reward("f1")(group, RewardContext())]
    assert outcome[0] - np.mean(outcome) == 0
    gain = [row[0] for row in gains(group, [[-3, -1], [-3, -2.5]])]
    assert gain[0] - np.mean(gain) == pytest.approx(0.75)


def test_malformed_turns_keep_their_place():
    row = gains([episode(malformed(), search(), answer(), id="t")], [[-3, -3, -1]])[0]
    assert row.tolist() == [0, 2, 0]


@pytest.mark.parametrize("scores", [[-3], [-3, -2, -1]])
def test_there_is_one_score_a_turn(scores):
    with pytest.raises(RewardError, match=r"trajectory t: .* not \[answers, 2\]"):
        gains([two_turns()], [scores])


class TestAlias:
    GROUP = (two_turns("a"), two_turns("b"))
    # the second alias is likelier on the bare prompt, the first one after some searches
    SCORES = ([[-5, -0.1], [-2, -1.5]], [[-5, -4], [-2, -1]])

    def test_one_alias_is_chosen_for_the_whole_question(self):
        rows = gains(self.GROUP, self.SCORES)
        assert [row[0] for row in rows] == pytest.approx([0.5, 1])

    def test_the_first_one_as_in_the_released_code(self):
        rows = gains(self.GROUP, self.SCORES, alias="first")
        assert [row[0] for row in rows] == pytest.approx([4.9, 1])

    def test_the_order_of_the_group_does_not_matter(self):
        there, back = gains(self.GROUP, self.SCORES), gains(self.GROUP[::-1], self.SCORES[::-1])
        assert [r.tolist() for r in there] == [r.tolist() for r in back[::-1]]

    def test_an_alias_that_was_probed_behind_the_bare_prompt_alone_is_passed_over(self):
        none = math.nan
        scores = ([[-1, none], [-2, -0.5], [none, none]], [[-1, none], [-2, -1], [none, none]])
        for alias in ("likeliest", "first"):
            rows = gains(self.GROUP, scores, alias=alias)
            assert [row[0] for row in rows] == pytest.approx([1.5, 1])

    def test_trajectories_probed_for_different_answers_are_refused(self):
        none = math.nan
        with pytest.raises(RewardError, match="scored on different aliases"):
            gains(self.GROUP, ([[-1, -1], [-2, none]], [[-1, none], [-2, -1]]))

    def test_a_hole_in_a_probed_row_is_an_error(self):
        made = episode(search(), search(), answer(), id="t")
        with pytest.raises(RewardError, match="trajectory t, turn 1: the gold answer's log-prob"):
            gains([made], [[[-1, math.nan, -1], [-2, math.nan, math.nan]]])

    def test_trajectories_scored_on_different_aliases_are_refused(self):
        with pytest.raises(RewardError, match=r"on \[1, 2\] aliases"):
            gains(self.GROUP, ([[-5, -1]], self.SCORES[1]))


def test_only_turns_of_named_tools_may_earn():
    mixed = episode(search(), call("visit", url="x"), answer(), id="t")
    row = gains([mixed], [[-3, -2, -1]], only=("visit",))[0]
    assert row.tolist() == [0, 1, 0]


def test_a_bound_cuts_single_turns():
    assert gains([two_turns()], [[-9, -1]], bound=2)[0].tolist() == [2, 0]


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf, 0.5])
def test_a_score_that_is_no_log_probability_names_trajectory_and_turn(bad):
    with pytest.raises(RewardError, match="trajectory t, turn 1: the gold answer's") as error:
        gains([two_turns()], [[-1, bad]])
    assert (error.value.trajectory, error.value.turn) == ("t", 1)


def test_missing_scores_name_the_trajectory():
    with pytest.raises(RewardError, match="trajectory t: no log-probabilities of the gold answer"):
        make_reward("information_gain")([two_turns()], RewardContext())


@pytest.mark.parametrize(
    ("progress", "outcome", "gain"), [(0, 0.5, 1), (0.5, 0.75, 0.75), (1, 1, 0.5)]
)
def test_the_curriculum_moves_weight_from_gain_to_outcome(progress, outcome, gain):
    names = {"outcome": "exact_match", "information_gain": "information_gain"}
    parts = {k: Part(reward=v, weight=CURRICULUM[k]) for k, v in names.items()}
    given = RewardContext(gold_logprobs={"t": np.array([-2.0, -1.0])}, progress=progress)
    row = Combination(parts=parts)([episode(search(), answer(), of=task(), id="t")], given)[0]
    assert row == pytest.approx([gain, outcome])


def step_gains(trajectories, scores, **options):
    pairs = zip(trajectories, scores, strict=True)
    given = RewardContext(step_logprobs={t.id: np.array(s) for t, s in pairs})
    return make_reward("step_gain", options)(trajectories, given)


def test_the_gain_of_steps_is_the_mean_of_their_gains():
    chain = episode(search(), search(), answer(), id="t")
    # the first search finds the first step, the second the last
    scores = [[-4.0, -1.0, -1.0], [-6.0, -6.0, -1.0]]
    assert step_gains([chain], [scores])[0].tolist() == [1.5, 2.5, 0]
    found = step_gains([chain], [scores], form="probability")[0]
    first = (math.exp(-1) - math.exp(-4)) / 2
    assert found == pytest.approx([first, (math.exp(-1) - math.exp(-6)) / 2, 0])
    assert step_gains([chain], [scores], only=("judge",))[0].tolist() == [0, 0, 0]
    assert step_gains([chain], [scores], bound=2.0)[0].tolist() == [1.5, 2, 0]


@given(st.lists(st.lists(st.floats(-30, 0), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_sum_over_steps_telescopes(scores):
    turns = [search() for _ in range(3)]
    row = step_gains([episode(*turns, answer(), id="t")], [scores])[0]
    ends = np.mean(scores, axis=0)
    assert row.sum() == pytest.approx(ends[-1] - ends[0], abs=1e-9)


def test_steps_that_were_not_probed_do_not_count():
    nothing = [math.nan, math.nan]
    assert step_gains([two_turns()], [[[-3.0, -1.0], nothing]])[0].tolist() == [2, 0]
    with pytest.raises(RewardError, match="the step answer's log-probability is nan"):
        step_gains([two_turns()], [[nothing]])
    with pytest.raises(RewardError, match="no log-probabilities of the step answer"):
        make_reward("step_gain")([two_turns()], RewardContext())


@pytest.mark.parametrize(
    ("meta", "answers"),
    [
        (
            {"steps": [{"answers": ["Leeds", "City of Leeds"]}, {"answers": ["1812"]}]},
            ("Leeds", "1812"),
        ),
        ({"steps": [{"answers": ["Leeds"]}, {"answers": ["Leeds"]}]}, ("Leeds",)),
        ({"steps": []}, ("x",)),
        ({"steps": 3}, ("x",)),  # of one step of a decomposed question
        ({"steps": [{"answers": ["", "Leeds"]}, {"answers": [""]}]}, ("Leeds",)),
        ({"steps": [{"question": "a"}, "x", None, 5]}, ("x",)),
        ({"steps": [{"answers": None}, {"answers": [["a"]]}, {"answers": {"a": 1}}]}, ("x",)),
        ({"steps": [{"answers": "Leeds"}, {"answers": [1940, "1940"]}]}, ("1940",)),
        ({}, ("x",)),
    ],
)
def test_the_answers_of_steps_are_those_of_the_task(meta, answers):
    assert step_answers(task(answers=("", "x", "y"), meta=meta)) == answers
    assert step_answers(task(answers=("",), meta=meta)) == ()  # the right reply is to decline
