"""Episodes of a step and of a validation: what comes out when some of them, or the program, fail."""

import asyncio
import math

import pytest

from agent.episode import Episode
from agent.formats import make_format
from agent.graph import Setup
from agent.task import Task
from agent.trajectory import Status
from eval.sample import score_one
from kg.errors import PolicyUnavailableError
from rl.export import model_card
from rl.rollouts import Play, Stage
from rl.run_history import read_history
from rl.run_report import write_report
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
