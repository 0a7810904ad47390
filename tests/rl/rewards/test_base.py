"""What holds for every reward: shapes, errors, names, needs, groups of one and of none."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.task import Task
from kg.errors import TurnwiseError, UsageError
from rl.credit import Batch, estimate
from rl.rewards import (
    Need,
    Range,
    Reward,
    RewardContext,
    RewardError,
    make_reward,
    missing,
    padded,
    register,
    require,
    reward_kind,
    reward_names,
)
from rl.rewards.base import at_end, saturated
from rl.rewards.context import task_key
from tests.rl.rewards.episodes import (
    abstain,
    answer,
    call,
    episode,
    judge,
    malformed,
    search,
    task,
)
from tools.base import Observation

META = {
    "choices": ["Ridley Scott", "James Cameron"],
    "right": 0,
    "plan": ["alien director"],
    "rubric": [{"points": 2, "criterion": "names a director"}],
    "smiles": "CCO",
    "property": "bbbp",
    "claimed": "feasible",
}
FULL = task(answers=("Ridley Scott",), answerable=True, evidence=("p1",), meta=META)
SPECIAL = {
    "combination": {"parts": {"answer": {"reward": "exact_match"}}},
    "abstention": {"confidence": "given"},
    "numeric": None,
    "attribute_correctness": None,
    "molecular_reasoning": None,
}
NUMBER = task(answers=("42",), answerable=True, meta=META)
LABEL = task(answers=("True",), answerable=True, meta=META)


def make(name):
    return make_reward(name, SPECIAL.get(name) or {})


def example(name, id="a"):
    of = {"numeric": NUMBER, "attribute_correctness": LABEL, "molecular_reasoning": LABEL}
    text = "Ridley Scott directed Alien."
    graph = {"target_probability": 0.6, "edges": [["a", "b"]]}
    found = search("alien director", text, ids=["p1"], thought=text)
    seen = replace(found.observation, data=graph)
    turns = [replace(found, observation=seen), judge(True)]
    said = "feasible" if name == "self_consistency" else "True"
    made = episode(*turns, answer(said), of=of.get(name, FULL), id=id)
    return made.with_rewards({"feedback": 0.5})


def context(*ids):
    return RewardContext(
        gold_logprobs={id: np.array([[-3.0, -1.0, -0.5]]) for id in ids},
        step_logprobs={id: np.array([[-3.0, -1.0, -1.0], [-2.0, -2.0, -0.5]]) for id in ids},
        anchor_kl={id: np.array([0.2, -0.1, 0.0]) for id in ids},
        known={task_key(FULL): True},
        confidence=dict.fromkeys(ids, 0.5),
        vote_shares={"feasible": 0.5, "infeasible": 0.5},
        progress=0.5,
        edges=[("a", "b")],
        reranker=lambda query, passages: [0.9 for _ in passages],
        entailment=lambda passage, statement: 0.9,
        judge=lambda criterion, transcript: 1.0,
    )


@pytest.mark.parametrize("name", reward_names())
class TestEvery:
    def test_gives_one_finite_float64_a_turn_within_its_range(self, name):
        reward = make(name)
        group = [example(name, "a"), example(name, "b")]
        found = reward(group, context("a", "b"))
        assert [row.shape for row in found] == [(3,), (3,)]
        assert all(row.dtype == np.float64 for row in found)
        assert all(reward.range.low <= row.sum() <= reward.range.high for row in found)

    def test_takes_a_group_of_one_and_of_none(self, name):
        assert len(make(name)([example(name)], context("a"))) == 1
        assert make(name)([], RewardContext()) == []

    def test_an_episode_without_turns_has_no_place_for_a_reward(self, name):
        of = example(name).task
        found = make(name)([episode(of=of, id="empty")], context("a"))
        assert [row.shape for row in found] == [(0,)]

    def test_speaks_wherever_its_value_is_not_0(self, name):
        reward, one = make(name), example(name)
        [row] = reward([one], context("a"))
        spoken = reward.given(one)
        assert spoken.dtype == np.bool_
        assert spoken[row != 0].all()
        assert reward.given(episode(of=one.task)).shape == (0,)

    def test_is_pure(self, name):
        group, given = [example(name, "a"), example(name, "b")], context("a", "b")
        before = [t.to_dict() for t in group]
        first = make(name)(group, given)
        kept = [row.copy() for row in first]
        for row in first:
            row += 1
        again = make(name)(group, given)
        assert all((a == b).all() for a, b in zip(again, kept, strict=True))
        assert [t.to_dict() for t in group] == before

    def test_says_what_it_is(self, name):
        reward = make(name)
        assert reward.source
        assert reward_kind(name).__doc__
        assert isinstance(reward.range, Range)
        assert reward.range.low <= reward.range.high

    def test_refuses_unknown_options(self, name):
        with pytest.raises(UsageError, match="unknown option 'colour'"):
            make_reward(name, {**(SPECIAL.get(name) or {}), "colour": 1})

    def test_whatever_it_needs_and_lacks_is_an_error_that_names_the_trajectory(self, name):
        reward = make(name)
        for need in set(reward.needs) - {Need.ANSWERABLE}:
            of, given = deprived(example(name).task, context("t", "u"), need)
            with pytest.raises(RewardError) as error:
                reward([replace(example(name, id), task=of) for id in ("t", "u")], given)
            assert error.value.trajectory == "t"

    def test_whatever_a_task_or_a_tool_left_behind_is_scored_or_an_error_that_names_it(self, name):
        made = example(name, "t")
        for junk in JUNK:
            metas = [{**META, key: junk} for key in (*META, "answer_set", "neighbours", "steps")]
            tasks = [replace(made.task, meta=meta) for meta in metas]
            odd = [replace(made, task=of) for of in tasks]
            for key in ("target_probability", "edges", "rollout_probabilities", "steps"):
                first, *others = made.turns
                data = {**first.observation.data, key: junk}
                seen = replace(first.observation, data=data)
                odd.append(replace(made, turns=(replace(first, observation=seen), *others)))
            assert {blamed(name, one) for one in odd} <= {"", "t"}


GRAPH = call("graph", seen=Observation("graph", data={"target_probability": 0.5, "edges": []}))
SEARCHED = episode(
    search("a b", thought="I should look."),
    judge(False),
    malformed(),
    search("alien director", "Ridley Scott.", thought="Alien is a film."),
    call("plan", steps=["alien director"]),
    GRAPH,
    answer(),
    of=FULL,
)


@pytest.mark.parametrize(
    ("name", "options", "turns"),
    [
        ("knowledge_boundary", {}, [6]),
        ("knowledge_boundary", {"place": "turns"}, [6]),  # malformed: the whole of it is at the end
        ("boundary_label", {}, [0, 3, 6]),
        ("factuality", {"place": "last"}, [6]),
        ("factuality", {}, [3]),
        ("factuality", {"check": {"extract": "extractor"}}, [0, 3]),
        ("judge_verdict", {}, [1]),
        ("observation_utility", {}, [0, 3]),
        ("observation_utility", {"ideal": {"tools": ["search", "graph"]}}, [0, 3, 5]),
        ("recovery", {}, [0, 2, 3]),
        ("plan_adherence", {}, [0, 3, 5]),
        ("plan_adherence", {"against": "own"}, [5]),
        ("graph_process", {}, [5]),
        ("repetition", {}, [0, 3, 4, 5]),
        ("tool_cost", {}, range(7)),
        ("format", {}, [6]),
    ],
)
def test_a_reward_speaks_of_the_turns_that_it_is_about(name, options, turns):
    assert np.flatnonzero(make_reward(name, options).given(SEARCHED)).tolist() == list(turns)


def test_searches_speak_where_they_give_back_a_share_of_the_bonus():
    spread = make_reward("knowledge_boundary", {"place": "turns", "most": 1})
    right = episode(search("a"), search("b"), answer(), of=FULL)
    assert spread.given(right).tolist() == [True, False, True]
    wrong = episode(search("a"), answer("x"), of=FULL)
    assert spread.given(wrong).tolist() == [False, True]


def test_a_verdict_that_nothing_can_judge_says_nothing():
    closed = task(answers=("yes",))
    unsure = episode(search("q", "yes"), judge(True), answer("yes"), of=closed)
    assert not make_reward("judge_verdict").given(unsure).any()
    assert not make_reward("observation_utility").given(unsure).any()
    failed = episode(search("q", error="gone"), judge(True), abstain(), of=closed)
    assert make_reward("judge_verdict").given(failed).tolist() == [False, True, False]


def test_a_turn_that_a_reward_says_nothing_of_is_not_charged_for_it():
    """A search costs a right answer 0.2 of 1.6; as a 0 in the pool it would cost 1.4 deviations more."""
    reward = make_reward("knowledge_boundary")
    group = [episode(search(), answer(), of=FULL), episode(answer(), of=FULL)]
    rows = zip(group, reward(group, RewardContext()), strict=True)
    given = [
        [float(v) if spoken else None for v, spoken in zip(row, reward.given(t), strict=True)]
        for t, row in rows
    ]
    spans = [[(0, 1), (1, 2)], [(0, 1)]]
    batch = Batch.ragged([0, 0], {"kb": given}, spans=spans, sampled=[[True] * 2, [True]])
    searched, at_once = estimate("igpo", batch).advantages
    assert searched == pytest.approx([-1.0, -1.0], abs=1e-4)
    assert at_once == pytest.approx([1.0], abs=1e-4)


def blamed(name, one):
    """Id of the trajectory that an error names; empty when it is scored."""
    try:
        assert np.isfinite(make(name)([one], context(one.id))[0]).all()
    except RewardError as error:
        return error.trajectory or "nobody"
    return ""


JUNK = (None, True, 5, -1.5, float("nan"), "", "x", [], [None], [5], ["x"], [["a"]], {}, {"a": 1})
OPTIONAL = (Need.PROGRESS, Need.EDGES, Need.RERANKER, Need.ENTAILMENT, Need.FACTS, Need.JUDGE)
FIELD = re.compile(r"(?:Task|RewardContext)\.(\w+)(?:\['(\w+)'\])?")


def deprived(of, given, need):
    """The task and context without what the need asks for."""
    field, key = FIELD.search(need.remedy).groups()
    if key:
        return replace(of, meta={k: v for k, v in of.meta.items() if k != key}), given
    if need.remedy.startswith("Task"):
        return replace(of, **{field: ()}), given
    return of, replace(given, **{field: None if need in OPTIONAL else {}})


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="no reward 'exact_mach'") as error:
        make_reward("exact_mach")
    assert error.value.hint == "did you mean 'exact_match'?"


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"unknown option 'bonuss'; did you mean 'bonus'\?"):
        make_reward("knowledge_boundary", {"bonuss": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_options_are_finite_numbers(value):
    with pytest.raises(UsageError, match="invalid"):
        make_reward("format", {"invalid": value})


def test_an_unknown_scorer_is_told_when_the_reward_is_made():
    with pytest.raises(UsageError, match="no scorer 'squat'"):
        make_reward("f1", {"scorer": "squat"})


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="two rewards"):
        register(type("Other", (reward_kind("format"),), {}))


def test_a_group_is_of_one_task():
    other = episode(answer(), of=task(id="q2"))
    with pytest.raises(RewardError, match="holds the tasks q1 and q2"):
        make_reward("exact_match")([episode(answer()), other], RewardContext())


class Broken(Reward):
    name = "broken"
    source = "test"
    value: str = "nan"
    short: bool = False

    @property
    def range(self):
        return Range(0, 1)

    def values(self, group, context):
        rows = [at_end(t, float(self.value)) for t in group]
        return [row[1:] for row in rows] if self.short else rows


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_value_that_is_no_number_names_trajectory_and_turn(value):
    with pytest.raises(RewardError, match="trajectory t7, turn 1") as error:
        Broken(value=value)([episode(search(), answer(), id="t7")], RewardContext())
    assert (error.value.trajectory, error.value.turn) == ("t7", 1)
    assert isinstance(error.value, TurnwiseError)


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(RewardError, match=r"shape \(1,\) for 2 turns"):
        Broken(value="0", short=True)([episode(search(), answer())], RewardContext())


def test_rewards_are_frozen():
    with pytest.raises(ValidationError):
        make_reward("format").invalid = 0


class TestMissing:
    def test_one_message_names_every_gap_of_every_reward(self):
        chosen = [make_reward(n) for n in ("information_gain", "judge_verdict", "exact_match")]
        tasks = [task(), Task("bare", "?")]
        assert missing(chosen, RewardContext(), tasks) == (
            "information_gain lacks information-gain probes (RewardContext.gold_logprobs); "
            "judge_verdict lacks gold answers (Task.answers: 1 of 2 tasks, first bare), "
            "reranker (models.reranker or RewardContext.reranker); "
            "exact_match lacks gold answers (Task.answers: 1 of 2 tasks, first bare)"
        )

    def test_nothing_lacks_where_all_is_there_or_promised(self):
        chosen = [make_reward(name, SPECIAL.get(name) or {}) for name in reward_names()]
        assert missing(chosen, context("a"), [FULL]) == ""
        promised = RewardContext(promised=frozenset(Need))
        assert missing(chosen, promised, [Task("bare", "?")]) == ""

    def test_a_task_without_an_answer_needs_no_gold_answer(self):
        chosen = [make_reward("exact_match"), make_reward("evidence_recall")]
        assert missing(chosen, RewardContext(), [Task("q", "?", answerable=False)]) == ""

    def test_require_refuses(self):
        with pytest.raises(UsageError, match="self_consistency lacks vote shares"):
            require([make_reward("self_consistency")], RewardContext())
        require([make_reward("format")], RewardContext())

    def test_options_decide_what_is_needed(self):
        plain = make_reward("judge_verdict", {"ideal": {"by": "answer"}})
        assert Need.RERANKER not in plain.needs
        assert make_reward("graph_process", {"edge_weight": 0}).needs == ()


def test_padded_marks_where_turns_are():
    rectangle, mask = padded([np.array([1.0, 2.0]), np.array([]), np.array([3.0])])
    assert rectangle.tolist() == [[1, 2], [0, 0], [3, 0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert padded([])[0].shape == (0, 0)


@given(st.lists(st.floats(-2, 2)), st.floats(-3, 0), st.floats(0, 3))
def test_a_saturated_total_never_leaves_its_bounds(row, low, high):
    running = np.cumsum(saturated(row, low, high))
    assert (running >= low - 1e-9).all()
    assert (running <= high + 1e-9).all()


def test_nothing_is_hoarded_beyond_a_bound():
    assert saturated([0.3] * 4 + [-0.6], -1, 0.6) == pytest.approx([0.3, 0.3, 0, 0, -0.6])


def test_malformed_and_cut_episodes_are_rewarded_like_any_other():
    group = [episode(malformed(), malformed()), episode(search(), answer())]
    assert [row.tolist() for row in make_reward("f1")(group, RewardContext())] == [[0, 0], [0, 1]]


def documented():
    page = Path(__file__).parents[3] / "docs" / "rewards.md"
    table = page.read_text("utf-8").split("## The rewards")[1].split("Tables that do not fit")[0]
    return {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}


def test_the_documentation_s_example_runs():
    page = Path(__file__).parents[3] / "docs" / "rewards.md"
    code = page.read_text("utf-8").split("```python\n")[1].split("```")[0]
    names = {"group": [example("f1")], "tasks": [FULL]}
    exec(code, names)
    summed = sum(values[0] for values in names["parts"].values())
    assert summed.tolist() == names["values"][0].tolist()


def test_the_documentation_lists_every_reward_and_what_it_needs():
    lines = documented()
    assert set(lines) == set(reward_names())
    for name in set(reward_names()) - {"combination"}:
        reward = make_reward(name)
        alike = {Need.RERANKER: "the same", Need.ANSWERS: "the same"}
        for need in reward.needs:
            assert need.value in lines[name] or alike.get(need, need.value) in lines[name]


@pytest.mark.parametrize(
    "name", ["exact_match", "knowledge_boundary", "abstention", "factual_reasoning", "tool_cost"]
)
def test_every_reward_that_matches_answers_takes_a_known_scorer(name):
    assert make_reward(name, {"scorer": "nq_open"}).scorer == "nq_open"
    with pytest.raises(UsageError, match="no scorer 'nq_close'"):
        make_reward(name, {"scorer": "nq_close"})


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("judge_verdict", {"total": "mean"}, -0.6, 0.3),
        ("judge_verdict", {"total": "sum"}, -np.inf, np.inf),
        ("information_gain", {"form": "probability"}, -1, 1),
        ("information_gain", {"form": "probability", "only": ["search"]}, -np.inf, np.inf),
        ("graph_process", {"form": "level"}, -np.inf, np.inf),
        ("factual_reasoning", {"form": "paper"}, -2, 4),
        ("attribute_rationality", {"chance_corrected": True}, -1, 1),
        ("self_consistency", {"balanced": False}, 0, 1),
        ("rubric", {"clip": True}, 0, 1),
        ("format", {"valid": 1, "invalid": -1}, -1, 1),
        ("format", {"valid": 1, "invalid": 0.5}, 0, 1),
        ("graph_process", {}, -2, 1),
        ("attribute_count", {}, -1.5, 0),
        ("molecular_reasoning", {}, -1.5, 3),
        ("abstention", {}, -3, 1.5),
        ("knowledge_boundary", {}, -1, 1.6),
        ("boundary_label", {}, -0.3, 0),
        ("tool_cost", {"most": 2}, -2, 0),
        ("plan_adherence", {}, -0.5, 1),
        ("recovery", {}, -0.6, 0),
    ],
)
def test_ranges_follow_the_options(name, options, low, high):
    assert make_reward(name, options).range == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("name", "options", "need"),
    [
        ("judge_verdict", {"ideal": {"by": "evidence"}}, Need.EVIDENCE),
        ("plan_adherence", {}, Need.PLAN),
        ("factuality", {"check": {"extract": "extractor"}}, Need.FACTS),
        ("factual_reasoning", {"correctness": "judge"}, Need.JUDGE),
        ("self_consistency", {"credit": "claimed"}, Need.CLAIMED),
        ("abstention", {"confidence": "given"}, Need.CONFIDENCE),
    ],
)
def test_needs_follow_the_options_and_lacking_one_is_an_error(name, options, need):
    reward = make_reward(name, options)
    assert need in reward.needs
    of, given = deprived(example(name).task, context("t", "u"), need)
    with pytest.raises(RewardError, match="trajectory t"):
        reward([replace(example(name, id), task=of) for id in ("t", "u")], given)
