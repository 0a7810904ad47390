"""Wrong answers as regression tasks."""

from dataclasses import replace

import pytest

from agent.settings import load_settings
from agent.store import TrajectoryStore
from agent.task import Task
from eval.benchmarks import DataFolder, load
from eval.benchmarks.base import choices
from eval.folder import (
    SetHeader,
    open_store,
)
from eval.regressions import Origin, add_regression, origin_of, searched_elsewhere
from eval.run import EvalRequest, run
from eval.score import score_run
from kg.errors import UsageError
from tests.eval.runs import ask, run_folder


def test_a_wrong_answer_becomes_a_regression_task(policy, settings, tmp_path):
    ask(settings, tmp_path / "a", limit=6)
    out = tmp_path / "r.jsonl"
    with TrajectoryStore.open(tmp_path / "a" / "trajectories.sqlite") as store:
        done = next(t for t in store.query() if t.task.answers)
    assert add_regression(done, [], False, out)
    assert not add_regression(done, [], False, out)
    gold = done.task.answers[0]
    for other, answers in (
        (done, ["mendelevium"]),
        (replace(done, task=replace(done.task, question="Who else?")), []),
    ):
        with pytest.raises(UsageError, match=f"{gold}.* now it is .*(mendelevium|Who else)"):
            add_regression(other, answers, False, out)
    with pytest.raises(UsageError, match=r"now it is .*unanswerable"):
        add_regression(done, [], True, out)
    with pytest.raises(UsageError, match="another scorer"):
        add_regression(done, [], False, out, Origin("igpo"))
    assert len(out.read_text().splitlines()) == 1
    unknown = replace(done, task=replace(done.task, id="other", answers=(), answerable=None))
    with pytest.raises(UsageError, match="not known"):
        add_regression(unknown, [], False, out)
    assert add_regression(unknown, [], True, out)
    tasks = load(str(out), DataFolder("", tmp_path)).tasks
    assert [(t.question, t.answerable) for t in tasks] == [
        (done.task.question, True), (done.task.question, False)
    ]  # fmt: skip
    run(EvalRequest(benchmarks=(str(out),)), settings, tmp_path / "b")
    assert score_run(tmp_path / "b").sets[0].questions == 2


def test_a_regression_task_is_scored_and_asked_over_what_the_first_one_was(tmp_path):
    corpus = tmp_path / "notes.jsonl"
    corpus.write_text('{"id": "p", "text": "Red is a colour."}\n')
    choice = choices("Which?", ["red", "blue"], 1, id="c", kind="choice")
    tasks = [choice, Task("t", "Who?", ("x",), True), Task("d", "Who not?", (), False)]
    sets = [
        SetHeader(name="set", scorer="igpo", tasks=3, skipped=[], tools={}, corpus=[str(corpus)])
    ]
    out = run_folder(tmp_path / "a", tasks, sets=sets)
    store, file = str(out / "trajectories.sqlite"), tmp_path / "r.jsonl"
    with open_store(out) as opened:
        episodes = {one.task.id: replace(one, task=task) for one in opened.query()
                    for task in tasks if task.id == one.task.id}  # fmt: skip
    for done in episodes.values():
        assert add_regression(done, [], False, file, origin_of(done, store))
    found = load(str(file), DataFolder("", tmp_path))
    assert (found.scorer, found.corpus, found.skipped) == ("igpo", (corpus,), ())
    asked = {task.id: task for task in found.tasks}
    for task in tasks:
        again = asked[task.id]
        assert (again.question, again.answers, again.answerable, again.kind) == (
            task.question, task.answers, task.answerable, task.kind
        )  # fmt: skip
    assert (asked["c"].meta["choices"], asked["c"].meta["right"]) == (["red", "blue"], 1)

    other = Task("o", "Else?", ("y",), True)
    with pytest.raises(UsageError, match="another scorer: igpo"):
        add_regression(replace(episodes["t"], task=other), [], False, file)
    assert add_regression(episodes["c"], ["Red"], False, tmp_path / "s.jsonl")
    assert load(str(tmp_path / "s.jsonl"), DataFolder("", tmp_path)).tasks[0].meta["right"] == 0
    with pytest.raises(UsageError, match="none of the choices"):
        add_regression(episodes["c"], ["green"], False, tmp_path / "u.jsonl")
    with pytest.raises(UsageError, match="normalises to nothing"):
        add_regression(episodes["t"], ["The"], False, tmp_path / "u.jsonl")
    assert not (tmp_path / "u.jsonl").exists()
    moved = origin_of(episodes["t"], store, (tmp_path,), named=True)
    assert (moved.scorer, moved.corpus) == ("igpo", (str(tmp_path),))
    assert origin_of(episodes["t"], store, (tmp_path,)).corpus == (str(corpus),)
    lost = replace(episodes["t"], versions={"search": "0123:hybrid:k3:c500"})
    settings = load_settings(home=tmp_path / "home")
    assert "--corpus" in searched_elsewhere(lost, Origin("", (str(corpus),)), settings)
    assert not searched_elsewhere(episodes["t"], Origin(), settings)
