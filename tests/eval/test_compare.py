"""Two runs against each other."""

import json
from dataclasses import replace

import pytest

from agent.task import Task
from agent.trajectory import Status
from eval.command import compared
from eval.compare import compare
from eval.folder import (
    open_store,
)
from kg.errors import UsageError
from tests.eval.runs import ask, questions, run_folder


def test_comparisons_say_what_each_run_has_alone(policy, settings, tmp_path):
    ask(settings, tmp_path / "a", limit=24)
    ask(settings, tmp_path / "b", limit=12)
    [one] = compare(tmp_path / "a", tmp_path / "b").sets
    assert one.n + one.only_a == 24
    assert one.n + one.only_b == 12
    assert not one.differs
    text = compared(tmp_path / "a", tmp_path / "b", "", False)
    assert "McNemar" in text
    assert f"| library | {one.only_a} | A: scored; B: was not asked it |" in text
    told = json.loads(compared(tmp_path / "a", tmp_path / "b", "", True))
    assert (told["sets"][0]["n"], told["sets"][0]["differs"], told["together"]) == (
        one.n,
        False,
        None,
    )


def test_a_comparison_tells_answering_from_declining(tmp_path):
    none = [Task(f"n{n}", f"Who is no {n}?", (), False) for n in range(3)]
    tasks = [*questions(9), *none, Task("z", "Who is z?", ("x",))]
    runs = [
        run_folder(
            tmp_path / name, tasks, said, of=lambda task: "other" if task.id == "z" else "mixed"
        )
        for name, said in (
            ("a", lambda task: "x"),
            ("b", lambda task: "x" * (task.id in ("q0", "n0", "n1"))),
        )
    ]
    found = compare(*runs)
    mixed, other = found.sets
    assert [(one.name, one.n, one.a.mean, one.b.mean) for one in mixed.halves] == [
        ("mixed, with an answer", 9, 1, 1 / 9),
        ("mixed, without one", 3, 0, 1 / 3),
    ]
    declined = [(one.declined_a.mean, one.declined_b.mean) for one in mixed.halves]
    assert declined == [(0, 8 / 9), (0, 1 / 3)]
    assert mixed.a.low < mixed.a.mean < mixed.a.high
    assert (mixed.won, mixed.lost, other.halves) == (1, 8, ())
    together = found.together
    assert (together.n, together.a.mean, together.b.mean) == (13, 10 / 13, 2 / 13)
    lines = compared(*runs, "", False).splitlines()
    rows = [row.strip("|").split(" | ") for row in lines if row[:1] == "|"][2:]
    names = [row[0].strip() for row in rows]
    assert names == ["mixed", "mixed, with an answer", "mixed, without one", "other", "all"]
    assert [bool(row[-3].strip()) for row in rows] == [True, False, False, True, False]
    assert mixed.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert mixed.adjusted == 2 * mixed.p  # two sets are tested, and nothing else


def test_a_comparison_says_what_it_leaves_out_and_of_whom_it_speaks(tmp_path):
    def said(task):
        return "x" * (task.id != "q1")

    def of(task):
        return "one" if task.id < "q2" else "two"

    blank = Task("b", "Blank?", ())
    a = run_folder(tmp_path / "a", [*questions(4), blank], said, of=of)
    b = run_folder(tmp_path / "b", [*questions(2), blank], said, of=of, policy="other@2")
    with open_store(b) as store:
        done = next(one for one in store.query() if one.task.id == "q0")
        store.replace(replace(done, status=Status.FAILED, error="boom"))
    found = compare(a, b)
    assert {(one.name, one.n, one.why) for one in found.left_out} == {
        ("two", 2, "A: scored; B: has no such set"),
        ("one", 1, "A: no gold answer; B: no gold answer"),
    }
    [one] = found.sets
    assert (one.n, one.errors, one.difference.mean, one.without_errors.mean) == (2, 1, -0.5, 0)
    text = compared(a, b, "", False)
    for part in (
        f"- A: {a}, policy p@1, temperature 0, 1 episode(s) a question\n",
        f"- B: {b}, policy other@2",
        "| one | 1 | 1 | 0.0 (no spread) |",
        "| two | 2 | A: scored; B: has no such set |",
        "| 50.0 [9.5, 90.5] | 0.0 [0.0, 65.8] |",
    ):
        assert part in text


def test_runs_that_mean_different_things_are_not_compared(tmp_path):
    a = run_folder(tmp_path / "a", questions(4))
    [one] = compare(a, run_folder(tmp_path / "b", questions(3))).sets
    assert (one.scorer, one.n) == ("squad2", 3)
    assert "| set | squad2 | 3 (+1 only A, +0 only B) |" in compared(a, tmp_path / "b", "", False)
    other = run_folder(tmp_path / "c", questions(4), scorer="igpo")
    with pytest.raises(UsageError, match=r"by 'squad2' in .* by 'igpo'") as caught:
        compare(a, other)
    assert caught.value.hint == f"agent compare {a} {other} --scorer squad2"
    assert compare(a, other, "squad2").sets[0].n == 4
    gold = run_folder(tmp_path / "d", [*questions(3), Task("q3", "Who is 3?", ("y",))])
    words = run_folder(tmp_path / "e", [*questions(3), Task("q3", "Who was 3?", ("x",))])
    for changed in (gold, words):
        with pytest.raises(UsageError, match=r"1 of 4 ids stand for another.*'q3' first"):
            compare(a, changed)
    told = [replace(task, question=f"{task.question}\nPlan:\n1. Ask.") for task in questions(4)]
    assert compare(a, run_folder(tmp_path / "f", told, given="plan")).sets[0].n == 4
    with pytest.raises(UsageError, match="stand for another"):
        compare(a, run_folder(tmp_path / "g", told))
