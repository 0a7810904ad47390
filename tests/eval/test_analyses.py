"""Analyses over real runs of the scripted expert."""

from dataclasses import replace

import pytest

from agent.store import TrajectoryStore
from agent.task import Task
from agent.trajectory import Status
from eval.analyses.boundary import boundary, table
from eval.analyses.explain import explain
from eval.analyses.given import given
from eval.benchmarks import load
from eval.folder import open_store
from eval.run import EvalRequest, run
from kg.errors import UsageError
from tests.eval.test_run import ask, policy, settings  # noqa: F401  fixtures

TASK = Task(
    "t",
    "Where was the author of X born?",
    ("Y",),
    True,
    meta={
        "plan": ["Who wrote X?", "Where was Z born?"],
        "knowledge": ["the author of X: Z", "the birthplace of Z: Y"],
    },
)


def test_a_plan_or_the_knowledge_is_told_with_the_question():
    [plan] = given([TASK], "plan")
    assert plan.question.endswith("born?\nPlan:\n1. Who wrote X?\n2. Where was Z born?")
    [known] = given([TASK], "knowledge")
    assert known.question.endswith("Known:\n1. the author of X: Z\n2. the birthplace of Z: Y")
    assert (plan.id, plan.answers) == ("t", ("Y",))
    assert list(given([TASK], "")) == [TASK]
    assert not list(given([replace(TASK, meta={})], "plan"))


def test_a_decomposed_question_is_asked_step_by_step_with_what_came_before():
    first, second = given([TASK], "decomposition")
    assert (first.id, first.question, first.answers) == ("t#1", "Who wrote X?", ("Z",))
    assert second.question == "Where was Z born?\nKnown:\n1. the author of X: Z"
    assert (second.id, second.answers, second.kind) == ("t#2", ("Y",), "step 2")


@pytest.mark.data
def test_real_sets_carry_plans(data):
    tasks = load("musique", data).tasks
    [*steps] = given(tasks, "decomposition")
    assert len(steps) > 2 * len(tasks) - 5
    assert not any("#" in step.question.split("\n")[0] for step in steps)
    assert list(given(load("strategyqa", data).tasks, "plan"))


def test_a_set_without_plans_is_refused(policy, settings, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match="carry no plan"):
        run(EvalRequest(benchmarks=("library",), given="plan"), settings, tmp_path / "a")


def store_changed(folder, change):
    """Rewrite every episode of a run."""
    with open_store(folder) as store:
        every = list(store.query())
        store.delete([one.id for one in every])
        store.add_many(map(change, every))


def test_the_boundary_table_by_hand(policy, settings, tmp_path):  # noqa: F811
    ask(settings, tmp_path / "open")
    ask(settings, tmp_path / "closed", cache=False)
    with pytest.raises(UsageError, match="not closed-book"):
        boundary(tmp_path / "closed", tmp_path / "open")

    def closed(done):
        known = done.task.answers and int(done.task.id[-1], 16) % 2
        answer = done.task.answers[0] if known else "nobody knows"
        return replace(done, turns=(), answer=answer, status=Status.ANSWERED, error="")

    store_changed(tmp_path / "closed", closed)
    [one] = boundary(tmp_path / "closed", tmp_path / "open")
    cells = {(cell.known, cell.searched): cell for cell in one.cells}
    with open_store(tmp_path / "open") as store:
        tasks = [t.task for t in store.query() if t.task.answerable]
    known = sum(int(task.id[-1], 16) % 2 for task in tasks)
    assert cells[True, True].n == known
    assert cells[False, True].n == len(tasks) - known
    assert cells[True, False].n == cells[False, False].n == 0
    assert (one.needless, one.blind) == (1, 0)
    assert one.closed_book.mean == known / len(tasks)
    assert "| known, searched |" in table([one])


def test_an_episode_in_plain_words(policy, settings, tmp_path):  # noqa: F811
    ask(settings, tmp_path / "a", limit=0)
    with TrajectoryStore.open(tmp_path / "a" / "trajectories.sqlite") as store:
        every = list(store.query())
    right = next(t for t in every if t.status is Status.ANSWERED and len(t.turns) == 3)
    text = explain(right)
    assert "It used search with" in text
    assert "It judged that this helps." in text
    assert "The answer stands in what it cites" in text
    assert text.endswith("Right.")
    unread = replace(right, answer="something else")
    assert "A failure of reading" in explain(unread)
    unseen = replace(unread, sources=())
    assert "A failure of search" in explain(unseen)
    corrected = next(
        t for t in every if any(x.observation and x.observation.verdict == "no" for x in t.turns)
    )
    assert "that changed its course" in explain(corrected)
    declined = next(t for t in every if t.task.answerable is False and t.status is Status.ABSTAINED)
    assert "Right: it should decline." in explain(declined)
    assert "It failed: boom" in explain(replace(right, status=Status.FAILED, error="boom"))
