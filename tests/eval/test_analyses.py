"""Analyses over real runs of the scripted expert."""

import json
from dataclasses import replace

import pytest

from agent.store import TrajectoryStore
from agent.task import Task
from agent.trajectory import Status, StopReason
from eval.analyses.boundary import boundary, table
from eval.analyses.explain import explain
from eval.analyses.given import given
from eval.benchmarks import DataFolder, load
from eval.benchmarks.musique import _task as musique_task
from eval.command import explained
from eval.compare import compare
from eval.failures import PolicyFailedError
from eval.fictional.make import make_world
from eval.folder import open_store
from eval.run import EvalRequest, run
from eval.sample import score_one, whole
from eval.score import score_run
from kg.errors import UsageError
from tests.eval.runs import (
    ask,
    questions,
    run_folder,
)
from tests.rl.rewards.episodes import answer, episode, malformed, search

TASK = Task(
    "t",
    "Where was the author of X born?",
    ("Y",),
    True,
    meta={
        "plan": ["Who wrote X?", "Where was #1 born?"],
        "knowledge": ["the writer of X: Z", "the birthplace of Z: Y"],
        "steps": [
            {"question": "Who wrote X?", "answers": ["Z"], "evidence": ["book/X"]},
            {"question": "Where was Z born?", "answers": ["Y", "Y town"]},
        ],
    },
)


def test_a_plan_or_the_knowledge_is_told_with_the_question():
    [plan] = given([TASK], "plan")
    told = "\nPlan (#1 stands for what step 1 finds):\n1. Who wrote X?\n2. Where was #1 born?"
    assert plan.question == TASK.question + told
    [single] = given([replace(TASK, meta={"plan": ["Who wrote X?"]})], "plan")
    assert single.question.endswith("\nPlan:\n1. Who wrote X?")
    [known] = given([TASK], "knowledge")
    assert known.question.endswith("\nKnown:\n- the birthplace of Z: Y\n- the writer of X: Z")
    assert (plan.id, plan.answers) == ("t", ("Y",))
    assert list(given([TASK], "")) == [TASK]
    assert not list(given([replace(TASK, meta={})], "plan"))


def test_a_decomposed_question_is_asked_step_by_step_with_what_came_before():
    first, second = given([TASK], "decomposition")
    assert (first.id, first.question, first.answers) == ("t#1", "Who wrote X?", ("Z",))
    assert second.question == "Where was Z born?\nKnown:\n1. Who wrote X? Z"
    assert (second.id, second.answers, second.kind) == ("t#2", ("Y", "Y town"), "step 2")
    assert (first.evidence, second.evidence) == (("book/X",), ())
    assert not list(given([replace(TASK, meta={**TASK.meta, "steps": []})], "decomposition"))


def test_steps_of_a_world_are_true_by_its_graph(tmp_path):
    from rdflib import Graph

    make_world(tmp_path, 5, 200, 200)
    triples = Graph().parse(tmp_path / "graph.nt", format="nt")
    labels = {str(o) for _, p, o in triples if str(p).endswith("label")}
    values = labels | {str(o) for _, _, o in triples}
    rows = (tmp_path / "tasks-train.jsonl").read_text().splitlines()
    tasks = [Task.from_dict(json.loads(row)) for row in rows]
    steps = list(given(tasks, "decomposition"))
    kinds = {t.kind for t in tasks if any(s.meta["of"] == t.id for s in steps)}
    chains = {"1hop", "2hop", "3hop", "4hop", "true_premise", "chemistry"}
    assert kinds == {*chains, "comparison"}
    computed = {t.answers[0] for t in tasks if t.kind == "chemistry"}
    for step in steps:
        assert step.answers[0] in values | computed
        assert "#" not in step.question.split("\n")[0]
    last = {step.meta["of"]: step for step in steps}
    for task in tasks:
        if task.kind in chains:
            assert last[task.id].answers == task.answers


def test_a_decomposed_run_is_compared_with_a_plain_one_by_question(policy, settings, tmp_path):
    tasks = load("library", DataFolder("", tmp_path)).tasks[:6]
    steps = [{"question": task.question, "answers": list(task.answers)} for task in tasks]
    rows = [
        {**task.to_dict(), "meta": {"steps": [steps[n], steps[0]]}} for n, task in enumerate(tasks)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = EvalRequest(benchmarks=(str(path),))
    run(request, settings, tmp_path / "plain")
    with pytest.raises(PolicyFailedError):  # the scripted expert does not know these second steps
        run(request.model_copy(update={"given": "decomposition"}), settings, tmp_path / "steps")
    [one] = compare(tmp_path / "plain", tmp_path / "steps").sets
    assert (one.n, one.only_a, one.only_b) == (6, 0, 0)
    by_step = {s.task: s.right for s in score_run(tmp_path / "steps").samples}
    both = [by_step[f"{task.id}#1"] * by_step[f"{task.id}#2"] for task in tasks]
    assert one.b.mean == sum(both) / 6
    scored = score_run(tmp_path / "steps").sets[0]
    assert (scored.questions, scored.episodes, scored.excluded) == (6, 12, {})
    assert (scored.answers["right"].mean, scored.answers["right"].n) == (one.b.mean, 6)
    assert scored.kinds["step 1"].mean == sum(by_step[f"{task.id}#1"] for task in tasks) / 6
    with open_store(tmp_path / "steps") as store:
        store.delete([next(store.query()).id])
    assert compare(tmp_path / "plain", tmp_path / "steps").sets[0].only_a == 1
    assert score_run(tmp_path / "steps").sets[0].excluded == {"not run": 1}


def test_a_decomposed_question_is_as_its_worst_step_and_costs_all_of_them():
    def step(number, *turns, **fields):
        asked = Task(f"q#{number}", "Who?", ("Ridley Scott",), meta={"of": "q", "steps": 2})
        return score_one("own", "squad2", asked, episode(*turns, of=asked, **fields))

    right, wrong = step(1, search(), answer()), step(2, search(), search("x"), answer("Oslo"))
    silent = step(2, malformed(), status=Status.OVER_BUDGET, stop_reason=StopReason.MAX_TURNS)
    [one] = whole([right, wrong])
    assert (one.task, one.right, one.answer, one.usage.searches) == ("q", 0, "Oslo", 3)
    [cut] = whole([replace(silent, task="q#1"), step(2, answer())])
    assert (cut.answer, cut.abstained, cut.vote, cut.stop_reason) == ("", False, None, "max_turns")
    assert whole([right]) == []


def test_a_plan_names_nothing_that_only_its_steps_find(tmp_path):
    make_world(tmp_path, 5, 200, 200)
    rows = (tmp_path / "tasks-train.jsonl").read_text().splitlines()
    tasks = [Task.from_dict(json.loads(row)) for row in rows]
    standing = 0
    for task in tasks:
        plan, steps = task.meta["plan"], task.meta["steps"]
        for number, step in enumerate(steps):
            [found], text = step["answers"], task.question
            assert found in text or not any(found in line for line in plan), (text, plan)
            assert step["question"] == filled(plan[number], steps)
            standing += "#" in plan[number]
    assert standing > 50


def filled(line, steps):
    for number, step in enumerate(steps, 1):
        line = line.replace(f"#{number}", step["answers"][0])
    return line


def test_a_plan_of_musique_is_its_decomposition_as_published():
    steps = [
        {"question": "X >> author", "answer": "Z"},
        {"question": "#1 >> born in", "answer": "Y"},
    ]
    row = {
        **{"id": "m", "question": "Where was the author of X born?", "answer": "Y", "hop": 2},
        **{"answer_aliases": [], "answerable": True, "supporting_idx": [], "context_ids": []},
        "question_decomposition": steps,
    }
    meta = musique_task(row).meta
    assert meta["plan"] == ["X >> author", "#1 >> born in"]
    assert meta["knowledge"] == ["X >> author: Z", "Z >> born in: Y"]
    assert [step["question"] for step in meta["steps"]] == ["X >> author", "Z >> born in"]


@pytest.mark.data
def test_real_sets_carry_plans(data):
    tasks = load("musique", data).tasks
    [*steps] = given(tasks, "decomposition")
    assert len(steps) > 2 * len(tasks) - 5
    assert not any("#" in step.question.split("\n")[0] for step in steps)
    yes_or_no = load("strategyqa", data).tasks
    assert list(given(yes_or_no, "plan"))
    assert list(given(yes_or_no, "knowledge"))
    assert not list(given(yes_or_no, "decomposition"))
    by_id = {task.id: task for task in tasks}
    for step in steps:
        if step.id.endswith(f"#{step.meta['steps']}"):
            assert step.answers[0] == by_id[step.meta["of"]].answers[0]


def test_a_set_without_plans_is_refused(policy, settings, tmp_path):
    with pytest.raises(UsageError, match="carry no plan"):
        run(EvalRequest(benchmarks=("library",), given="plan"), settings, tmp_path / "a")


def store_changed(folder, change):
    """Rewrite every episode of a run."""
    with open_store(folder) as store:
        every = list(store.query())
        store.delete([one.id for one in every])
        store.add_many(map(change, every))


def test_the_boundary_table_by_hand(policy, settings, tmp_path):
    ask(settings, tmp_path / "open")
    ask(settings, tmp_path / "closed", cache=False)
    with pytest.raises(UsageError, match=r"not closed-book: 'library' was asked with search"):
        boundary(tmp_path / "closed", tmp_path / "open")
    header = json.loads((tmp_path / "closed" / "run.json").read_text())
    header["sets"][0]["tools"] = {}
    (tmp_path / "closed" / "run.json").write_text(json.dumps(header))

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
    assert (one.needless.mean, one.blind.mean) == (1, 0)
    assert (one.needless.n, one.blind.n) == (known, len(tasks) - known)
    assert one.needless.low < 1
    assert one.blind.high > 0
    assert one.closed_book.mean == known / len(tasks)
    assert "| known, searched |" in table([one])

    def silent(done):
        """Of the unknown questions half is answered without a search, half ends without an answer."""
        if int(done.task.id[-1], 16) % 4 == 0:
            return replace(done, turns=(), status=Status.ANSWERED, answer="a guess", error="")
        return replace(done, turns=(), status=Status.OVER_BUDGET, answer="", error="")

    store_changed(tmp_path / "open", silent)
    [one] = boundary(tmp_path / "closed", tmp_path / "open")
    guessed = sum(int(task.id[-1], 16) % 4 == 0 for task in tasks)
    unknown = len(tasks) - known
    assert 0 < guessed < unknown
    assert (one.blind.mean, one.blind.n) == (guessed / unknown, unknown)


def searched(out, tasks, **fields):
    """A run with tools; of every two questions one was searched for twice, and one not at all."""

    def turns(task):
        return (search(), search("other words"), answer()) if int(task.id[1:]) % 2 else (answer(),)

    return run_folder(out, tasks, tools=("search", "judge"), turns=turns, **fields)


def test_a_boundary_is_drawn_between_runs_of_the_same_questions_and_scorer(tmp_path):
    closed = run_folder(tmp_path / "a", questions(4))
    [one] = boundary(closed, searched(tmp_path / "b", questions(4)))
    assert one.closed_book.n == 4
    with pytest.raises(UsageError, match=r"by 'squad2' in .* by 'igpo'"):
        boundary(closed, searched(tmp_path / "c", questions(4), scorer="igpo"))
    golds = searched(tmp_path / "d", questions(4, answers=("y",)))
    with pytest.raises(UsageError, match="4 of 4 ids stand for another"):
        boundary(closed, golds)
    none = questions(4, answers=(), answerable=False)
    with pytest.raises(UsageError, match="no answerable question"):
        boundary(run_folder(tmp_path / "e", none), searched(tmp_path / "f", none))


def test_closed_book_is_what_had_no_tools_not_what_did_not_search(tmp_path):
    closed = run_folder(tmp_path / "closed", questions(2))
    idle = run_folder(tmp_path / "idle", questions(2), tools=("search",))
    [one] = boundary(closed, idle)
    assert one.needless.mean == 0
    with pytest.raises(UsageError, match=r"idle is not closed-book: 'set' .* search") as refused:
        boundary(idle, searched(tmp_path / "open", questions(2)))
    assert refused.value.hint == 'make it with --tools ""'
    with pytest.raises(UsageError, match="not closed-book") as refused:
        boundary(idle, closed)
    assert refused.value.hint.startswith("the other way round")
    with pytest.raises(UsageError, match="closed could not search: 'set' was asked with no tools"):
        boundary(closed, closed)
    judged = run_folder(tmp_path / "judged", questions(2), tools=("judge",))
    with pytest.raises(UsageError, match="judged could not search: 'set' was asked with judge"):
        boundary(closed, judged)


def test_searches_have_an_interval_over_questions(tmp_path):
    closed = run_folder(tmp_path / "closed", questions(8), said=lambda task: "no")
    folder = searched(tmp_path / "open", questions(8))
    store_changed(
        folder,
        lambda done: replace(done, turns=done.turns[1:]) if done.task.id in ("q1", "q3") else done,
    )
    [one] = boundary(closed, folder)
    cells = {(cell.known, cell.searched): cell for cell in one.cells}
    searches = cells[False, True].searches
    assert (searches.mean, searches.n) == (1.5, 4)
    assert 1 <= searches.low < 1.5 < searches.high <= 2
    assert cells[False, False].searches.mean == 0
    assert cells[True, True].searches is None
    shown = table([one])
    assert f"| 1.50 [{searches.low:.2f}, {searches.high:.2f}] |" in shown
    assert "| known, searched | 0 |  |  |" in shown


def test_an_episode_in_plain_words(policy, settings, tmp_path):
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
    assert "it put aside what it was shown: that changed its course." in explain(corrected)
    declined = next(t for t in every if t.task.answerable is False and t.status is Status.ABSTAINED)
    assert "Right: it should decline." in explain(declined)
    failed = explain(replace(right, status=Status.FAILED, error="boom"))
    assert "It failed: boom" in failed
    assert "It ended in an error." in failed
    for status in (Status.FAILED, Status.OVER_BUDGET):
        silent = replace(declined, status=status, turns=declined.turns[:-1], error="boom")
        assert "Wrong: it should have declined, and ended without" in explain(silent)


def test_an_explanation_agrees_with_the_score_of_its_run(policy, settings, tmp_path):
    [task] = load("library", DataFolder("", tmp_path)).tasks[:1]
    row = {
        "id": "m",
        "question": task.question,
        "choices": ["x", task.answers[0]],
        "right": 1,
    }
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(PolicyFailedError):  # the scripted expert does not know the question
        run(EvalRequest(benchmarks=(str(path),), scorer="igpo"), settings, tmp_path / "a")
    store_changed(
        tmp_path / "a",
        lambda done: replace(done, answer="B", turns=(), status=Status.ANSWERED, error=""),
    )
    store = str(tmp_path / "a" / "trajectories.sqlite")
    with TrajectoryStore.open(store) as opened:
        [done] = opened.query()
    assert explained(done, store, "").endswith("Right.")
    plain = replace(done, task=replace(task, answers=("the b",), answerable=True))
    assert "Wrong" in explained(plain, store, "")  # IGPO keeps articles
    assert explained(plain, store, "squad2").endswith("Right.")
    assert explained(plain, None, "").endswith("Right.")
