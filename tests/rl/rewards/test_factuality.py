"""KnowRL (zjunlp): statements of the thoughts against passages, and the two combined forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.formats import make_format
from agent.policies.base import Completion
from rl.rewards import RewardContext, RewardError, make_reward
from rl.rewards.context import task_key
from rl.rewards.factuality import few_facts, overlap_support, statements
from tests.rl.rewards.episodes import abstain, answer, call, episode, search, task, turn
from tools.base import Observation, Toolbox

PAGE = "Alien was directed by Ridley Scott. It was filmed in England."
TRUE = "Alien was directed by Ridley Scott."
FALSE = "Alien was not directed by Ridley Scott."
OVERLAP = {"by": "overlap", "threshold": 0.8}


def entails(passage, statement):
    return 0.9 if statement in passage else 0.05


def share(*turns, context=None, check=OVERLAP, **options):
    reward = make_reward("factuality", {"check": check, "enough": 0, **options})
    return reward([episode(*turns, id="t")], context or RewardContext())[0].tolist()


class TestSupport:
    def test_a_fact_copied_from_the_page_is_supported_and_its_negation_is_not(self):
        assert overlap_support(PAGE, TRUE) == 1
        assert overlap_support(PAGE, FALSE) == 0
        assert overlap_support("Alien wasn't made in Spain.", "Alien was made in Spain.") == 0

    def test_words_must_stand_in_one_sentence(self):
        assert overlap_support("Alien is a film. Blade Runner was directed.", TRUE) < 0.8

    def test_without_a_passage_nothing_is_supported(self):
        assert share(answer(thought=TRUE)) == [0]
        assert share(search("q", thought=TRUE), answer()) == [0, 0]

    def test_passages_of_the_task_count_too(self):
        assert share(
            answer(thought=TRUE), context=RewardContext(knowledge={task_key(task()): [PAGE]})
        ) == [1]
        assert share(
            answer(thought=TRUE), context=RewardContext(knowledge={task_key(task("?")): [PAGE]})
        ) == [0]

    def test_a_plan_of_the_policy_s_own_supports_nothing(self):
        plan = call("plan", seen=Observation("plan", text=TRUE), thought=TRUE)
        assert share(plan, answer()) == [0, 0]
        assert share(plan, answer(), check={**OVERLAP, "tools": ["plan"]}) == [1, 0]

    def test_an_entailment_model_decides(self):
        row = share(
            search("q", PAGE, thought=TRUE),
            answer(),
            context=RewardContext(entailment=entails),
            check={},
        )
        assert row == [1, 0]

    def test_overlap_of_words_has_a_threshold_of_its_own(self):
        most = "Ridley Scott filmed Alien."  # three of its four words are in one sentence
        third = "Cameron produced Alien."
        assert share(search("q", PAGE, thought=most), answer(), check={"by": "overlap"}) == [1, 0]
        assert share(search("q", PAGE, thought=third), answer(), check={"by": "overlap"}) == [0, 0]
        given = {"by": "overlap", "threshold": 0.3}
        assert share(search("q", PAGE, thought=third), answer(), check=given) == [1, 0]

    def test_the_five_nearest_passages_are_tried(self):
        tried = []
        context = RewardContext(entailment=lambda p, s: tried.append(p) or 0.0)
        pages = [f"Nothing number {i}." for i in range(8)]
        share(search("q", *pages, PAGE, thought=TRUE), answer(), context=context, check={})
        assert len(tried) == 5
        assert PAGE in tried[0]

    @pytest.mark.parametrize("p", [1.2, float("nan")])
    def test_a_probability_outside_0_to_1_names_trajectory_and_turn(self, p):
        context = RewardContext(entailment=lambda a, b: p)
        with pytest.raises(RewardError, match="trajectory t, turn 0: the entailment"):
            share(search("q", PAGE, thought=TRUE), answer(), context=context, check={})


class TestShare:
    def test_each_turn_gets_its_part(self):
        row = share(
            search("q", PAGE, thought=TRUE), answer(thought="The sky is bright green. " + TRUE)
        )
        assert row == [0.5, 0]
        at_end = share(
            search("q", PAGE, thought=TRUE),
            answer(thought="The sky is bright green."),
            place="last",
        )
        assert at_end == [0, 0.5]

    def test_a_statement_repeated_counts_once(self):
        often = " ".join([TRUE] * 10)
        assert share(search("q", PAGE, thought=often), answer(thought=often)) == [1, 0]
        few = share(search("q", PAGE, thought=often), answer(thought=often), enough=10)
        assert sum(few) == pytest.approx(math.exp(-9))

    def test_plans_questions_and_guesses_claim_nothing(self):
        text = (
            "I should search for Alien. Who directed Alien? Maybe James Cameron directed it. Yes."
        )
        assert statements(text) == []
        assert share(search("q", PAGE, thought=text), answer()) == [0, 0]

    def test_two_words_claim_something_and_one_does_not(self):
        assert statements("Ridley directed. Indeed.") == ["Ridley directed."]

    def test_a_fact_extractor_may_cut_the_thoughts(self):
        context = RewardContext(facts=lambda text: [TRUE, "Alien is a musical comedy."])
        check = {**OVERLAP, "extract": "extractor"}
        assert share(search("q", PAGE, thought="x"), answer(), context=context, check=check) == [
            0.5,
            0,
        ]

    @pytest.mark.parametrize(("n", "factor"), [(0, 0), (3, 0.097), (5, 0.368), (10, 1), (30, 1)])
    def test_saying_little_is_worth_little(self, n, factor):
        assert few_facts(n) == pytest.approx(factor, abs=5e-4)
        assert n in (0, 30) or few_facts(n) == math.exp(1 - 10 / n)

    @given(st.integers(0, 50), st.integers(0, 50))
    def test_the_factor_grows_with_the_facts(self, n, m):
        assert few_facts(min(n, m)) <= few_facts(max(n, m)) <= 1


def whole(trajectory, form, **options):
    given = RewardContext(entailment=entails)
    options = {"form": form, "enough": 0, **options}
    return make_reward("factual_reasoning", options)([trajectory], given)[0].sum()


FOUND = search("q", PAGE, thought=f"{TRUE} Alien is a musical comedy.")  # a share of one half
UNTHOUGHT = search("q", PAGE)


class TestWholeReward:
    @pytest.mark.parametrize(
        ("trajectory", "paper", "code"),
        [
            (episode(FOUND, answer()), 3.5, 3),
            (episode(FOUND, abstain()), 2, 2),
            (episode(FOUND, answer("x")), 0.5, 0.5),
            (episode(FOUND, answer("x", forced=True)), -1.5, -1.5),
            (episode(UNTHOUGHT, answer("x")), -2, -2),
            (episode(UNTHOUGHT, answer()), 1, 1),
        ],
        ids=[
            "right",
            "refused",
            "wrong",
            "malformed, wrong",
            "no thought, wrong",
            "no thought, right",
        ],
    )
    def test_the_table_in_both_forms(self, trajectory, paper, code):
        assert whole(trajectory, "paper") == pytest.approx(paper)
        assert whole(trajectory, "code") == pytest.approx(code)

    @given(st.floats(0, 1), st.booleans())
    def test_in_the_code_s_form_facts_never_lift_a_wrong_answer_above_a_refusal(self, fact, valid):
        reward = make_reward("factual_reasoning")
        refused = reward.combined(valid, 1.0, True, fact)
        assert (
            reward.combined(valid, -1.0, False, fact)
            < refused
            < reward.combined(valid, 2, False, fact)
        )

    def test_a_refusal_that_costs_is_no_better_than_a_wrong_answer(self):
        refused, wrong = (
            episode(FOUND, abstain()),
            episode(UNTHOUGHT, answer("x", thought="So it is.")),
        )
        assert whole(refused, "code") > whole(wrong, "code")
        assert whole(refused, "code", refusal=-1) == whole(wrong, "code", refusal=-1)

    def test_a_judge_may_read_the_answer_s_meaning(self):
        def judge(criterion, transcript):
            assert "Ridley Scott" in criterion
            return float("Answer: Sir Ridley" in transcript)

        given = RewardContext(entailment=entails, judge=judge)
        reward = make_reward("factual_reasoning", {"correctness": "judge"})
        rows = reward([episode(FOUND, answer(a)) for a in ("Sir Ridley", "a man")], given)
        assert rows[0].sum() == 3
        assert rows[1].sum() < 1

    def test_thoughts_of_tool_calling_models_are_read(self):
        calls = make_format("tool_call", Toolbox([]))
        action = calls.parse(Completion(f"<think>{TRUE}</think>\nRidley Scott"))
        assert whole(episode(UNTHOUGHT, turn(action)), "paper") == 4

    def test_without_an_answer_key_it_says_so(self):
        with pytest.raises(RewardError, match="no gold answers"):
            whole(episode(FOUND, answer(), of=task(answers=())), "code")
