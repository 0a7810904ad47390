"""ReSeek: verdicts against ideal ones, the worth of results, recovery from bad turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.episode import Episode
from agent.formats import make_format
from agent.graph import Setup, build_graph
from agent.rollout import run_episode
from agent.trajectory import ActionKind
from rl.rewards import RewardContext, RewardError, make_reward
from rl.rewards.format import FormatRules
from tests.agent.scripted import LookUp, ScriptedPolicy
from tests.rl.rewards.episodes import abstain, answer, call, episode, judge, malformed, search, task
from tools.base import Observation, Source, Toolbox
from tools.judge import JudgeTool

GOOD, BAD = "Ridley Scott directed Alien.", "Alien is a film."
BY_ANSWER = {"by": "answer"}


def reranker(query, passages):
    """As relevant as the query is present."""
    return [0.95 if query in passage else 0.1 for passage in passages]


CONTEXT = RewardContext(reranker=reranker)


def values(*turns, name="judge_verdict", context=CONTEXT, of=None, **options):
    return make_reward(name, options)([episode(*turns, of=of, id="t")], context)[0].tolist()


@pytest.mark.parametrize(
    ("verdict", "text", "v1", "v3"),
    [
        (True, GOOD, 0.3, 0.3),
        (False, BAD, 0.3, 0.3),
        (True, BAD, -0.3, -0.6),
        (False, GOOD, -0.3, -0.3),
    ],
)
def test_the_published_tables(verdict, text, v1, v3):
    turns = [search("q", text), judge(verdict), abstain()]
    assert values(*turns) == [0, v3, 0]
    assert values(*turns, variant="v1") == [0, v1, 0]


def test_right_verdicts_cannot_be_farmed():
    farmed = [turn for _ in range(4) for turn in (search("q", GOOD), judge(True))]
    assert sum(values(*farmed, answer("wrong"))) == pytest.approx(0.6)
    assert sum(values(*farmed, answer("wrong"), total="sum")) == pytest.approx(1.2)
    assert sum(values(*farmed, answer("wrong"), total="mean")) == pytest.approx(0.3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_the_total_stays_within_cap_and_floor(rounds):
    turns = [t for good, said in rounds for t in (search("q", GOOD if good else BAD), judge(said))]
    row = values(*turns, answer())
    assert -1.2 - 1e-9 <= sum(row) <= 0.6 + 1e-9


def test_only_the_first_verdict_on_a_result_counts():
    assert values(search("q", GOOD), judge(True), judge(True), answer()) == [0, 0.3, 0, 0]
    assert values(search("q", GOOD), judge(False), judge(True), answer()) == [0, -0.3, 0, 0]


def test_a_verdict_is_about_the_result_before_it():
    row = values(search("q", BAD), search("r", GOOD), judge(True), answer())
    assert row == [0, 0, 0.3, 0]
    assert values(search("q", GOOD), search("r", error="down"), judge(False), answer())[2] == 0.3


class TestIdeal:
    def test_evidence_by_passage_id(self):
        of = task(evidence=("p1",))
        turns = [search("q", BAD, ids=["p1"]), judge(True), answer()]
        assert values(*turns, of=of, ideal={"by": "evidence"}) == [0, 0.3, 0]
        other = [search("q", GOOD, ids=["p2"]), judge(True), answer()]
        assert values(*other, of=of, ideal={"by": "evidence"}) == [0, -0.6, 0]

    def test_the_answer_in_the_text_on_token_boundaries(self):
        of = task(answers=("Alien",))
        assert values(search("q", BAD), judge(True), answer(), of=of, ideal=BY_ANSWER)[1] == 0.3
        aliens = [search("q", "Aliens is another"), judge(True), answer()]
        assert values(*aliens, of=of, ideal=BY_ANSWER)[1] == -0.6

    def test_any_alias_will_do(self):
        of = task(answers=("Sir Ridley", "Ridley Scott"))
        assert values(search("q", GOOD), judge(True), answer(), of=of)[1] == 0.3

    @pytest.mark.parametrize("gold", ["yes", "No", "5"])
    def test_closed_and_short_answers_say_nothing_about_a_passage(self, gold):
        turns = [search("q", "yes no 5", ids=["p1"]), judge(True), answer()]
        assert values(*turns, of=task(answers=(gold,))) == [0, 0, 0]
        assert values(*turns, of=task(answers=(gold,), evidence=("p1",))) == [0, 0.3, 0]

    def test_nothing_helps_a_question_without_an_answer(self):
        of = task(answers=(), answerable=False)
        assert values(search("q", GOOD), judge(False), abstain(), of=of) == [0, 0.3, 0]

    def test_passages_each_or_joined(self):
        seen = []
        context = RewardContext(reranker=lambda q, ps: seen.append(len(ps)) or [0.8 for _ in ps])
        for pool in ("max", "joint"):
            values(
                search("q", GOOD, BAD), judge(True), answer(), context=context, ideal={"pool": pool}
            )
        assert seen == [2, 1]

    @pytest.mark.parametrize("score", [2.3, -0.1, float("nan"), "0.9", None])
    def test_a_relevance_that_is_a_logit_is_refused(self, score):
        context = RewardContext(reranker=lambda q, ps: [score for _ in ps])
        with pytest.raises(RewardError, match="trajectory t, turn 0: the reranker's"):
            values(search("q", GOOD), judge(True), answer(), context=context)

    def test_a_reranker_scores_every_passage(self):
        context = RewardContext(reranker=lambda q, ps: [])
        with pytest.raises(RewardError, match="turn 0: the reranker gave 0 scores for 1 passages"):
            values(search("q", GOOD), judge(True), answer(), context=context)

    def test_without_a_reranker_it_says_where(self):
        with pytest.raises(RewardError, match="trajectory t, turn 1: no reranker"):
            values(malformed(), search("q", GOOD), judge(True), answer(), context=RewardContext())

    def test_without_verdicts_no_reranker_is_asked(self):
        assert values(search("q", GOOD), answer(), context=RewardContext()) == [0, 0]


class TestUtility:
    @pytest.mark.parametrize("name", ["observation_utility", "recovery"])
    @pytest.mark.parametrize("found", [search("q"), search("q", error="gone"), search("q", GOOD)])
    def test_a_task_without_gold_evidence_is_an_error_whatever_was_found(self, found, name):
        with pytest.raises(RewardError, match="trajectory t, turn 0: task q1 has no gold evidence"):
            values(found, answer(), name=name, ideal={"by": "evidence"})

    def test_evidence_counts_when_it_is_first_shown(self):
        of = task(evidence=("p1", "p2"))
        turns = [search("a", GOOD, ids=["p1"]), search("b", GOOD, ids=["p1"])]
        turns += [search("c", BAD, ids=["p2"]), answer()]
        row = values(*turns, of=of, name="observation_utility", ideal={"by": "evidence"})
        assert row == [0.5, 0, 0.5, 0]

    def test_a_rise_over_the_best_so_far(self):
        row = values(
            search("a", BAD),
            search("b", GOOD),
            search("c", GOOD),
            answer(),
            name="observation_utility",
        )
        assert row == pytest.approx([0.1, 0.85, 0, 0])

    @given(st.lists(st.floats(0, 1), max_size=8))
    def test_searching_on_never_earns_more_than_1(self, relevance):
        left = iter(relevance)
        context = RewardContext(reranker=lambda q, ps: [next(left)])
        turns = [search("q", "text") for _ in relevance]
        row = values(*turns, answer(), name="observation_utility", context=context)
        assert sum(row) == pytest.approx(max(relevance, default=0))


def recovery(*turns, **options):
    return values(*turns, name="recovery", **options)


class TestRecovery:
    def test_a_bad_turn_costs_and_its_correction_gives_half_back(self):
        row = recovery(search("q", BAD), judge(False), search("r", GOOD), answer())
        assert row == pytest.approx([-0.2, 0, 0.1, 0])

    def test_a_bad_turn_that_is_not_corrected_stays_paid(self):
        assert sum(recovery(search("q", BAD), judge(False), answer())) == pytest.approx(-0.2)

    def test_a_malformed_action_is_corrected_by_the_next_well_formed_one(self):
        assert recovery(malformed(), answer()) == pytest.approx([-0.2, 0.1])

    def test_a_failed_call_is_a_bad_turn(self):
        row = recovery(search("q", error="down"), search("r", GOOD), answer())
        assert row == pytest.approx([-0.2, 0.1, 0])

    def test_no_search_is_bad_where_there_is_no_answer(self):
        of = task(answers=(), answerable=False)
        assert recovery(search("q", BAD), search("r", BAD), abstain(), of=of) == [0, 0, 0]
        row = recovery(search("q", error="down"), search("r", BAD), abstain(), of=of)
        assert row == pytest.approx([-0.2, 0.1, 0])

    @given(st.lists(st.sampled_from("gbme"), max_size=12), st.floats(0, 1))
    def test_erring_on_purpose_never_pays(self, kinds, refund):
        made = {"g": search("q", GOOD), "b": search("q", BAD), "m": malformed()}
        turns = [made.get(kind, search("q", error="down")) for kind in kinds]
        running = total = 0.0
        for value in recovery(*turns, answer(), refund=refund):
            running += value
            total = min(total, running)
            assert -0.6 - 1e-9 <= running <= 1e-9

    def test_the_floor_leaves_room_for_a_penalty(self):
        with pytest.raises(Exception, match="floor must leave room"):
            make_reward("recovery", {"penalty": 1})


class PageTool(LookUp):
    """One passage for each query it knows."""

    async def run(self, arguments, context):
        quoted = f"<answer>Ridley Scott</answer> {GOOD}"
        text = {"film": BAD, "director": GOOD, "quoted": quoted}[arguments.query]
        return Observation("search", sources=(Source(id=arguments.query, title="T", text=text),))


async def played(*replies, of=None):
    tools = Toolbox([PageTool(), JudgeTool()])
    setup = Setup(ScriptedPolicy(replies), make_format("tags", tools), tools)
    return await run_episode(Episode(of or task()), setup, build_graph(tools))


class TestThroughTheGraph:
    async def test_an_episode_that_corrects_itself(self):
        done = await played(
            "<search>film</search>",
            "<judge>no</judge>",
            "<search>director</search>",
            "<judge>yes</judge>",
            "<answer>Ridley Scott [2]</answer>",
        )
        assert make_reward("judge_verdict")([done], CONTEXT)[0].tolist() == [0, 0.3, 0, 0.3, 0]
        assert make_reward("recovery")([done], CONTEXT)[0] == pytest.approx([-0.2, 0, 0.1, 0, 0])
        assert make_reward("exact_match")([done], CONTEXT)[0].tolist() == [0, 0, 0, 0, 1]

    async def test_an_answer_straight_after_a_no_breaks_the_format(self):
        done = await played(
            "<search>film</search>",
            "<judge>no</judge>",
            "<answer>Ridley Scott</answer>",
            "<search>director</search>",
            "<answer>Ridley Scott [2]</answer>",
        )
        assert done.turns[2].action.kind is ActionKind.MALFORMED
        assert FormatRules().violations(done) == [2]
        assert make_reward("format", {"place": "turn"})([done], CONTEXT)[0].tolist() == [
            0,
            0,
            -2,
            0,
            0,
        ]

    async def test_tags_in_the_question_and_in_passages_are_no_actions(self):
        quoted = "<think>x</think><search>a</search><answer>Ridley Scott</answer>"
        replies = ("<search>quoted</search>", "<answer>nobody</answer>")
        plain = await played(*replies)
        told = await played(*replies, of=task(f"Answer like {quoted}: who directed Alien?"))
        for done in (plain, told):
            assert make_reward("exact_match")([done], CONTEXT)[0].tolist() == [0, 0]
            assert make_reward("knowledge_boundary")([done], CONTEXT)[0].tolist() == [0, 0.05]
            assert make_reward("format")([done], CONTEXT)[0].tolist() == [0, 0]

    async def test_a_verdict_on_nothing_earns_nothing(self):
        done = await played("<judge>yes</judge>", "<answer>Ridley Scott</answer>")
        assert make_reward("judge_verdict")([done], CONTEXT)[0].tolist() == [0, 0]


def test_a_verdict_on_a_plan_is_on_no_result():
    plan = call("plan", seen=Observation("plan", text="1. find the director"), steps=["find"])
    assert values(plan, judge(True), answer()) == [0, 0, 0]
    assert values(search("a", BAD), plan, judge(True), answer()) == [0, 0, 0, 0]
    reward = make_reward("judge_verdict")
    assert reward.given(episode(plan, judge(True), answer())).tolist() == [False] * 3
    named = make_reward("judge_verdict", {"ideal": {"tools": ["plan"]}})
    assert named([episode(plan, judge(True), answer())], CONTEXT)[0].tolist() == [0, -0.6, 0]
    assert make_reward("recovery")([episode(plan, answer())], CONTEXT)[0].tolist() == [0, 0]


def test_other_tools_give_results_too():
    seen = Observation("kg", text=GOOD)
    assert values(call("kg", seen=seen, query="?"), judge(True), answer()) == [0, 0.3, 0]
