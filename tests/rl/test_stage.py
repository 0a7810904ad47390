"""Episodes of a step and of a validation: what comes out when some of them, or the program, fail."""

import asyncio
import math

import pytest

from agent.episode import Budgets, Episode
from agent.formats import make_format
from agent.graph import Setup
from agent.policies.vllm_engine import EngineOptions
from agent.rollout import Play
from agent.task import Task
from agent.trajectory import Status, StopReason
from eval.sample import score_one
from kg.errors import PolicyUnavailableError
from rl.curriculum import Drawn
from rl.export import model_card
from rl.question_sets import QuestionSet
from rl.rollouts import Stage, groups_of
from rl.run_history import read_history
from rl.run_report import write_report
from rl.sampler import of_gpus
from rl.step_metrics import facts_of, validated
from rl.train_recipe import Rollouts
from tests.agent.scripted import ScriptedPolicy
from tests.rl.histories import history, write
from tests.rl.rollouts import RIGHT, TASK, WRONG, Facts, play
from tools.base import Toolbox
from tools.judge import JudgeTool

NOBODY = Task("q2", "Which element is named after nobody's cat?", answerable=False)
GONE = (PolicyUnavailableError("the server is gone"),)


class Slip(Exception):
    """An error of the program."""


@pytest.mark.parametrize("seats", [1, 3])
def test_an_error_of_the_program_comes_out_as_itself(seats):
    tools = Toolbox([Facts(), JudgeTool()])
    policy = ScriptedPolicy(["<answer>gold</answer>"] * 8, delay=0.01)
    plays = [Play(Setup(policy, make_format("tags", tools), tools), Episode(TASK)) for _ in "abcd"]

    def told(done, total):
        if done == 2:
            raise Slip("no room on the screen")

    with pytest.raises(Slip, match="no room"):
        asyncio.run(Stage(policy, Rollouts(concurrency=seats)).play(plays, told))


def asked(setup, **rollouts):
    """One rollout of the question, as a training step plays it."""
    [one] = groups_of(
        1,
        [Drawn(QuestionSet("own", (TASK,), setup, "em"), TASK)],
        Rollouts(size=1, **rollouts),
        seed=0,
    )
    return one


@pytest.mark.parametrize("budgets", [{}, {"seconds": 0.02}])
def test_no_rollout_ends_by_the_clock_unless_the_recipe_says_so(budgets):
    """A slower machine, or more episodes at once, would change answers and rewards."""
    tools = Toolbox([Facts(), JudgeTool()])
    policy = ScriptedPolicy([*RIGHT[:2], "oganesson [1]</answer>"], delay=0.05)
    setup = Setup(
        policy,
        make_format("tags", tools),
        tools,
        budgets=Budgets(seconds=0.02, turns=2),
        final_seconds=0.02,
    )
    play = asked(setup, agent={"budgets": budgets} if budgets else {})
    [done] = asyncio.run(Stage(policy, Rollouts()).play([play]))
    timed = done.stop_reason is StopReason.MAX_SECONDS
    assert timed is bool(budgets)
    assert timed or (done.stop_reason, done.answer) == (StopReason.MAX_TURNS, "oganesson")


class Counted(ScriptedPolicy):
    """Notes how many callers it was told to wait for."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.told = []

    def expect(self, callers):
        self.told.append(callers)


@pytest.mark.parametrize("wanted", [None, True, False])
def test_the_engine_waits_for_everybody_on_a_cpu_alone_unless_told(wanted):
    """One episode in a slow tool keeps all others from their tokens."""
    import torch

    tools = Toolbox([Facts(), JudgeTool()])
    policy = Counted(["<answer>gold</answer>"])
    setup = Setup(policy, make_format("tags", tools), tools)
    asyncio.run(Stage(policy, Rollouts(deterministic=wanted)).play([asked(setup)]))
    waits = wanted if wanted is not None else not torch.cuda.is_available()
    assert (policy.told[:1] == [1]) is waits
    assert bool(policy.told) is waits


def test_an_engine_on_the_learners_gpu_leaves_it_room():
    """vLLM takes nine tenths of a GPU unless it is told: with the learner there it would not start."""
    told = of_gpus(Rollouts(), there=True)
    assert told["gpu_memory"] <= 0.4
    own = Rollouts(gpu_memory=0.6, tensor_parallel=2, context=1024)
    assert of_gpus(own, there=True) == {"gpu_memory": 0.6, "tensor_parallel": 2}
    assert of_gpus(own, there=False) == {}
    options = EngineOptions(max_model_len=own.context, **told)
    assert (options.gpu_memory, options.tensor_parallel) == (told["gpu_memory"], 1)


def measured(scripts):
    """A validation of one question a script; the last one's has no answer."""
    tasks = [TASK] * (len(scripts) - 1) + [NOBODY]
    done = [play(script, task=task) for script, task in zip(scripts, tasks, strict=True)]
    return validated(
        4, [score_one("own", "squad2", task, t) for task, t in zip(tasks, done, strict=True)]
    )


def test_failed_episodes_of_a_validation_are_counted_apart(tmp_path):
    found = measured([RIGHT, WRONG, GONE, ("<abstain>I do not know</abstain>",), GONE])
    assert [one.status for one in found.samples].count(Status.FAILED) == 2
    assert (found.right.mean, found.right.n) == (pytest.approx(1 / 5), 5)
    assert found.errors == 2
    assert (found.without_errors.mean, found.without_errors.n) == (pytest.approx(1 / 3), 3)
    assert (found.wrong, found.declined) == (0.25, 0.25)  # of four that have an answer
    assert found.hallucinated == 0  # nothing was said

    run = write(tmp_path / "run", history(4), '{"base": "micro", "rewards": {}, "credit": {}}')
    from rl import run_folder

    run_folder.write(run / "validation" / "step-00004.json", facts_of(found))
    [one] = read_history(run).validations
    assert one.figures["errors"] == 2
    assert one.without_errors.mean == pytest.approx(1 / 3)
    page = write_report(run).read_text()
    assert "without errors" in page
    assert "33.3" in page
    card = model_card(run, {"base": "micro", "validation": {}}, "merged", 4)
    assert "At step 4, 2 of 5 episodes ended in an error and are not right; 33.3" in card


def test_a_validation_without_errors_says_nothing_of_them(tmp_path):
    found = measured([RIGHT, WRONG, ("<answer>tin</answer>",)])
    assert (found.errors, found.without_errors) == (0, found.right)
    assert found.hallucinated == 1
    nothing = measured([GONE, GONE])
    assert (nothing.errors, nothing.without_errors, nothing.right.mean) == (2, None, 0)
    assert not math.isnan(nothing.wrong)

    run = write(tmp_path / "run", history(4), '{"base": "micro", "rewards": {}, "credit": {}}')
    from rl import run_folder

    run_folder.write(run / "validation" / "step-00004.json", facts_of(found))
    assert "without errors" not in write_report(run).read_text()
    assert "ended in an error" not in model_card(
        run, {"base": "micro", "validation": {}}, "merged", 4
    )
