"""Labels of a run: which of its tasks the policy answers by itself."""

import asyncio
import json

from agent.formats import make_format
from agent.graph import Setup
from agent.task import Task
from rl.boundary import balanced, known_tasks
from rl.question_sets import QuestionSet
from rl.rewards.context import task_key
from rl.rollouts import Stage
from rl.train_recipe import load_train
from tests.agent.scripted import ScriptedPolicy
from tools.base import Toolbox

RECIPE = load_train("ikea", ["tasks.probe=2", "rollouts.concurrency=1"])
RIGHT, WRONG, GONE = "<answer>yes</answer>", "<answer>no</answer>", RuntimeError("gone")


def label(run, tasks, replies):
    """The labels of a run over these sets of tasks, two replies a task that has an answer."""
    policy, tools = ScriptedPolicy(replies), Toolbox()
    setup = Setup(policy, make_format("tags", tools), tools)
    sets = [QuestionSet(f"set{n}", tuple(own), setup, "squad") for n, own in enumerate(tasks)]
    stage = Stage(policy, RECIPE.rollouts)
    return sets, asyncio.run(known_tasks(sets, stage, RECIPE, run, lambda done, total: None))


def test_a_task_all_of_whose_samples_failed_has_no_label(tmp_path):
    _, half, right, none = tasks = [
        Task(id, f"Is it {id}?", ("yes",) if id != "none" else ())
        for id in ("lost", "half", "right", "none")
    ]
    replies = [GONE, GONE, GONE, WRONG, WRONG, RIGHT]
    sets, found = label(tmp_path, [tasks], replies)
    assert found == {task_key(half): False, task_key(right): True, task_key(none): False}
    assert balanced(sets, found, 0) == tuple(sets)  # one known, one not; the others are neither
    assert label(tmp_path, [tasks], [])[1] == found  # nothing is asked again


def test_tasks_of_two_sets_with_one_id_have_labels_of_their_own(tmp_path):
    known, unknown = Task("0", "Is it so?", ("yes",)), Task("0", "Is it otherwise?", ("yes",))
    sets, found = label(tmp_path, [[known], [unknown]], [RIGHT, WRONG, WRONG, WRONG])
    assert found == {task_key(known): True, task_key(unknown): False}
    assert balanced(sets, found, 0) == tuple(sets)


def test_labels_that_were_kept_by_id_are_asked_for_anew(tmp_path):
    (tmp_path / "known.json").write_text(json.dumps({"0": False}))
    task = Task("0", "Is it so?", ("yes",))
    assert label(tmp_path, [[task]], [RIGHT, WRONG])[1] == {task_key(task): True}
