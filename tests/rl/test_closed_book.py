"""What a policy knows by itself, on the bundled library's questions."""

import json
import sqlite3
from contextlib import closing

import pytest

from agent.settings import load_settings
from eval.benchmarks import DataFolder
from eval.benchmarks import load as load_benchmark
from kg.errors import UsageError
from rl.boundary import told_labels
from rl.closed_book import probe, read_known
from rl.collect import CollectRequest
from rl.command import probed
from rl.rewards.context import task_key
from tests.agent.scripted import ScriptedPolicy


class Knowing(ScriptedPolicy):
    """Answers right what it knows, in every third sample."""

    def __init__(self, template, known):
        super().__init__([], template)
        self.known = known

    def _one(self, request):
        text = request.messages[1]["content"]
        right = request.sampling.seed % 3 == 0 and text in self.known
        self.replies = [f"<answer>{self.known[text] if right else 'no idea'}</answer>"]
        return super()._one(request)


def test_a_task_is_known_when_one_sample_is_right(tmp_path, template, monkeypatch):
    rows = [{"question": f"Who is {n}?", "answers": [f"name {n}"], "id": f"q{n}"} for n in range(6)]
    rows.append({"question": "Who is nobody?", "answerable": False, "id": "none"})
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = {f"Who is {n}?": f"name {n}" for n in (0, 2)}
    policy = Knowing(template, known)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    settings = load_settings(home=tmp_path / "home", sampling={"temperature": 1.0})
    request = CollectRequest(tasks=(str(tmp_path / "set.jsonl"),), group=6)
    out = tmp_path / "known.jsonl"
    report = probe(request, settings, out)
    assert (report.tasks, report.known, report.unscored) == (6, 2, 1)
    assert report.accuracy == pytest.approx(2 * 2 / 36)
    tasks = load_benchmark(str(tmp_path / "set.jsonl"), DataFolder("", tmp_path)).tasks
    assert read_known(out) == {task_key(task): task.id in ("q0", "q2") for task in tasks[:6]}
    assert not any("<search>" in r.messages[0]["content"] for r in policy.requests)
    # the labelled tasks are themselves a set of questions, and a second probe asks nothing again
    labelled = load_benchmark(str(out), DataFolder("", tmp_path)).tasks
    assert labelled[0].meta["known"]["samples"] == 6
    asked = len(policy.requests)
    assert probe(request, settings, out).known == 2
    assert len(policy.requests) == asked


def asked_of(tmp_path, monkeypatch, template):
    """Gives `ask(rows, known, name)`: a probe of these rows by a policy of that name, into one file."""
    settings = load_settings(home=tmp_path / "home", sampling={"temperature": 1.0})
    path, out = tmp_path / "set.jsonl", tmp_path / "known.jsonl"
    request = CollectRequest(tasks=(str(path),), group=3)

    def ask(rows, known, name="scripted"):
        path.write_text("\n".join(map(json.dumps, rows)))
        policy = Knowing(template, known)
        policy.name = name
        monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
        return (
            probe(request, settings, out),
            load_benchmark(str(out), DataFolder("", tmp_path)).tasks,
            policy.requests,
        )

    return ask


def test_samples_of_two_policies_are_not_pooled(tmp_path, template, monkeypatch):
    ask = asked_of(tmp_path, monkeypatch, template)
    rows = [{"question": "Who is 0?", "answers": ["name 0"], "id": "q0"}]
    report, [task], _ = ask(rows, {"Who is 0?": "name 0"}, "knowing")
    assert (report.known, task.meta["known"]["samples"]) == (1, 3)
    report, [task], requests = ask(rows, {}, "ignorant")
    assert (report.known, len(requests)) == (0, 3)
    assert task.meta["known"] == {
        "policy": "ignorant@0", "samples": 3, "right": 0.0, "known": False,
    }  # fmt: skip
    report, [task], requests = ask(rows, {}, "knowing")
    assert (report.known, len(requests)) == (1, 0)


def test_a_corrected_gold_answer_is_asked_and_labelled_anew(tmp_path, template, monkeypatch):
    ask = asked_of(tmp_path, monkeypatch, template)
    row = {"question": "Who is 0?", "answers": ["nobody"], "id": "q0"}
    report, *_ = ask([row], {"Who is 0?": "name 0"})
    assert (report.tasks, report.known) == (1, 0)
    report, [task], _ = ask([{**row, "answers": ["name 0"]}], {"Who is 0?": "name 0"})
    assert (report.known, report.unsampled, task.meta["known"]["samples"]) == (1, 0, 3)


def test_sets_whose_ids_are_the_same_keep_their_labels_apart(tmp_path, template, monkeypatch):
    for name in "ab":
        rows = [
            {"question": f"Who is {name}{n}?", "answers": [f"{name}{n}"], "id": str(n)}
            for n in (0, 1)
        ]
        both = {"question": "Who is both?", "answers": ["both"], "id": "both"}
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, both])))
    policy = Knowing(template, {"Who is a0?": "a0", "Who is b1?": "b1"})
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    settings = load_settings(home=tmp_path / "home", sampling={"temperature": 1.0})
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    out = tmp_path / "known.jsonl"
    report = probe(CollectRequest(tasks=tuple(map(str, files)), group=3), settings, out)
    labelled = load_benchmark(str(out), DataFolder("", tmp_path))
    assert labelled.skipped == ()
    assert len(labelled.tasks) == report.tasks == 5
    told = {task.question: task.meta["known"]["known"] for task in labelled.tasks}
    assert {question for question, known in told.items() if known} == {"Who is a0?", "Who is b1?"}
    known = read_known(out)
    for task in (
        task for file in files for task in load_benchmark(str(file), DataFolder("", tmp_path)).tasks
    ):
        assert known[task_key(task)] is told[task.question]
    assert told_labels(labelled.tasks) == known


def test_a_file_without_labels_is_told(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "a", "question": "Who?", "meta": {}}\n')
    with pytest.raises(UsageError, match=r"set.jsonl:1: no label"):
        read_known(path)
    assert read_known(path, problems := []) == {}
    assert len(problems) == 1


def test_bad_rows_and_damaged_samples_are_counted_and_the_rest_is_labelled(
    tmp_path, template, monkeypatch, capsys
):
    rows = [{"question": f"Who is {n}?", "answers": [f"name {n}"], "id": f"q{n}"} for n in range(3)]
    lines = [*map(json.dumps, rows), '{"question": "", "id": "e", "answers": ["x"]}']
    cut = json.dumps({"question": "Who is cut?", "answers": ["x"], "id": "cut"})[:-9]
    (tmp_path / "set.jsonl").write_text("\n".join([*lines, cut]))
    policy = Knowing(template, {"Who is 0?": "name 0"})
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    settings = load_settings(home=tmp_path / "home", sampling={"temperature": 1.0})
    request = CollectRequest(tasks=(str(tmp_path / "set.jsonl"),), group=2)
    out = tmp_path / "known.jsonl"
    report = probe(request, settings, out)
    assert (report.tasks, report.unscored, report.unsampled) == (3, 0, 0)
    assert [line.split(": ")[1] for line in report.skipped] == ["the question is empty", "not JSON"]
    with closing(sqlite3.connect(f"{out}.sqlite")) as store, store:
        store.execute("update episodes set token_ids = x'00' where task = 'q1'")
        store.execute("update episodes set token_ids = x'00' where task = 'q0' and seed = '1'")
    options = {"tasks": request.tasks, "group": 2}
    told = []
    found = json.loads(probed(options, settings, out, True, told.append))
    assert (found["tasks"], found["known"], found["unsampled"]) == (2, 1, 1)
    assert [
        task.meta["known"]["samples"]
        for task in load_benchmark(str(out), DataFolder("", tmp_path)).tasks
    ] == [
        1,
        2,
    ]
    assert len(found["skipped"]) == 5
    assert sum("damaged in the store" in line for line in found["skipped"]) == 3
    assert next(line for line in told if "skipped: " in line).endswith("the question is empty")
    text = probed(options, settings, out, False, told.append)
    assert "1 without a sample, 5 rows skipped" in text
    capsys.readouterr()
