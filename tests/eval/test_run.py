"""Evaluation runs through the real graph, search and store, played by the scripted expert."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import eval.run as eval_run
from agent.exchange import read
from agent.store import TrajectoryStore
from agent.task import Task
from agent.trajectory import Status
from benchmarks.rollout import Recorder, by_episode
from eval.benchmarks import DataFolder, load
from eval.command import evaluate, exported, score
from eval.compare import compare
from eval.folder import (
    SetHeader,
    digest_of,
    open_store,
    read_header,
)
from eval.metrics import SCORERS, exact_match
from eval.revision import source
from eval.run import EvalRequest, run, spread
from eval.score import score_run
from kg.errors import UsageError
from tests.eval.runs import ROOT, ask, expert, questions, run_folder


def test_a_run_is_scored_from_its_folder_alone(policy, settings, tmp_path):
    found = ask(settings, tmp_path / "a")
    [one] = found.sets
    assert (one.questions, one.episodes, one.errors, one.scorer) == (24, 24, 0, "squad2")
    assert one.answers["right"].mean > 0.8
    assert one.answers["right"].n == 24
    assert one.retrieval["recall"].mean > 0.7
    for sample in found.samples:
        expected = exact_match(sample.answer, sample.gold)
        assert sample.right == sample.em == expected
    [kind] = [s for s in found.samples if s.kind == "two_hop"][:1]
    assert kind.usage.searches >= 1
    assert kind.usage.turns > kind.usage.searches
    assert sum(one.stop_reasons.values()) == 24
    assert one.usage["sampled_tokens / question"].mean > 5


def test_reports_hold_every_set_and_escape_what_was_said(policy, settings, tmp_path):
    out = tmp_path / "a"
    text = evaluate(["library"], {"limit": 12}, settings, out, False, lambda line: None)
    assert "| library | squad2 | 12 |" in text
    assert (out / "report.md").read_text() == text
    heads = [line for line in text.splitlines() if re.match(r"\| (set)? +\|", line)]
    assert len(heads) >= 5
    assert all("| n |" in head for head in heads)
    [coverage] = re.findall(r"\| set \| n \| coverage .*\n.*\n\| library \| 12 \| (.*?) \|", text)
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", coverage)
    with TrajectoryStore.open(out / "trajectories.sqlite") as store:
        first = next(store.query())
        store.delete([first.id])
        store.add(
            replace(first, answer="<script>alert(1)</script> | x", status=Status.ANSWERED, error="")
        )
    markdown = score(out, "", False)
    page = (out / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in markdown
    assert page.count("<svg") >= 2
    assert re.search(r'href="traces.html#\w+"', page)
    data = json.loads((out / "scores.json").read_text())
    assert data["sets"][0]["answers"]["right"]["n"] == 12
    lines = (out / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 12
    rows = [json.loads(line) for line in lines]
    assert documented("samples.jsonl") == {key for row in rows for key in (*row, *row["usage"])}
    assert documented("scores.json") == set(data["sets"][0])
    assert set(data) == {"run", "sets"}
    assert data["run"]["source"] == source()
    assert str(source().get("revision", ""))[:12] in text


def documented(name):
    """Names of the fields that the documentation lists for a file: those of the first column, and what
    `usage` is made of."""
    part = (ROOT / "docs" / "evaluation.md").read_text().split(f"### The fields of `{name}`")[1]
    rows = [line.split("|")[1:3] for line in part.split("\n#")[0].splitlines() if line[:3] == "| `"]
    inner = [what for cell, what in rows if cell.strip() == "`usage`"]
    return set(re.findall(r"`(\w+)`", " ".join([*(cell for cell, _ in rows), *inner])))


def test_a_folder_takes_no_other_run(policy, settings, tmp_path):
    ask(settings, tmp_path / "a", limit=4)
    with pytest.raises(UsageError, match="another sets"):
        ask(settings, tmp_path / "a", limit=5)
    with pytest.raises(UsageError, match="another seed"):
        ask(settings.model_copy(update={"seed": 3}), tmp_path / "a", limit=4)


def test_a_folder_takes_one_process_at_a_time(policy, settings, tmp_path):
    other = f"""
import sys
from pathlib import Path
from kg import lock
with lock.held(Path({str(tmp_path / "a" / ".lock")!r}), "busy", "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", other]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process is evaluating in"):
            ask(settings, tmp_path / "a", limit=4)
        assert policy.made[-1].calls == 0
        process.stdin.close()
    assert ask(settings, tmp_path / "a", limit=4).sets[0].episodes == 4


def test_the_source_of_a_run_is_told_where_it_is_a_checkout(tmp_path):
    def git(*words):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert source(tmp_path) == {}
    git("init")
    assert source(tmp_path) == {}
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    found = source(tmp_path)
    assert len(found["revision"]) == 40
    assert found["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert source(tmp_path) == {**found, "dirty": True}


def test_what_cannot_be_run_says_so(settings, tmp_path):
    for benchmarks, options, message in (
        (("librar",), {}, "no benchmark"),
        (("library", "library"), {}, "twice"),
        (("library",), {"samples": 3}, "all the same"),
        (("squad2",), {}, "data folder"),
        (("library",), {"scorer": "squat"}, "no scorer"),
    ):
        with pytest.raises(UsageError, match=message):
            run(EvalRequest(benchmarks=benchmarks, **options), settings, tmp_path / "x")
    with pytest.raises(UsageError, match="--limit"):
        evaluate(["library"], {"limit": -1}, settings, tmp_path / "x", False, print)
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="not an evaluation run"):
        score_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 7}')
    with pytest.raises(UsageError, match="format 7"):
        read_header(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_header(tmp_path)


def test_own_questions_rows_that_are_broken_are_counted(policy, settings, tmp_path):
    task = load("library", DataFolder("", Path()), "test").tasks[0]
    path = tmp_path / "mine.jsonl"
    path.write_text(
        json.dumps({"id": "m1", "question": task.question, "answers": list(task.answers)})
        + "\n{oops\n"
    )
    run(EvalRequest(benchmarks=(str(path),)), settings, tmp_path / "a")
    [one] = score_run(tmp_path / "a").sets
    assert (one.name, one.questions, len(one.skipped)) == ("mine", 1, 1)
    assert "mine.jsonl:2" in score(tmp_path / "a", "", False)
    path.write_text(path.read_text().replace('"answers": [', '"answers": ["other", '))
    with pytest.raises(UsageError, match="questions of 'mine' or their answers"):
        run(EvalRequest(benchmarks=(str(path),)), settings, tmp_path / "a")


def test_the_recorder_of_the_benchmarks_stands_in_for_a_policy(
    template, settings, tmp_path, monkeypatch
):
    recorder = Recorder(expert(template))
    monkeypatch.setattr(eval_run, "policy_of", lambda *_, **__: recorder)
    ask(settings, tmp_path / "a", limit=4)
    assert read_header(tmp_path / "a").policy.startswith(recorder.name)
    with open_store(tmp_path / "a") as store:
        episodes = list(store.query())
    asked = by_episode(recorder, episodes)
    assert sum(map(len, asked)) == len(recorder.calls)


def test_a_gold_that_cannot_be_scored_leaves_out_its_question_alone(tmp_path):
    bad = [
        Task("null", "Who?", (None,)),
        Task("index", "Which?", ("a",), meta={"choices": ["a", "b"], "right": -1}),
        Task("kind", "Which?", ("a",), meta={"choices": [3, 4], "right": 0}),
        Task("empty", "Which?", ("a",), meta={"choices": None}),
    ]
    out = run_folder(tmp_path / "a", [*questions(3), *bad])
    [one] = score_run(out).sets
    assert (one.questions, one.answers["right"].n, one.answers["right"].mean) == (7, 3, 1)
    assert sum(one.excluded.values()) == 4
    assert all("cannot be compared with" in reason for reason in one.excluded)
    assert "cannot be compared with" in score(out, "", False)


def test_a_gold_that_normalises_to_nothing_does_not_make_silence_right(tmp_path):
    choice = Task("c", "Which?\nA) Aspirin\nB) b", ("Aspirin", "A"), True,
                  meta={"choices": ["Aspirin", "b"], "right": 0})  # fmt: skip
    tasks = [choice, Task("e", "Who?", ("",)), Task("d", "Who?", (), False)]
    for named in SCORERS:
        silent = score_run(run_folder(tmp_path / named, tasks, lambda task: "", named)).samples
        assert [(s.right, s.em, s.f1, s.cover) for s in silent] == [(0,) * 4, (0,) * 4, (1,) * 4]


def test_a_scorer_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path):
    out = run_folder(tmp_path / "a", questions(2))
    for wrong in (
        lambda: score(out, "igp", False),
        lambda: compare(out, out, "igp"),
        lambda: exported(out, tmp_path / "logs", "igp"),
    ):
        with pytest.raises(UsageError, match="no scorer 'igp'") as caught:
            wrong()
        assert "igpo" in caught.value.hint
    unknown = run_folder(tmp_path / "b", questions(2), scorer="of-a-later-version")
    with pytest.raises(UsageError, match="no scorer 'of-a-later-version'"):
        score_run(unknown)


def test_spread_takes_from_the_whole_set():
    assert spread(range(10), 0) == tuple(range(10))
    assert spread(range(100), 4) == (0, 25, 50, 75)
    assert len(set(spread(range(7), 5))) == 5
    for size in (1, 2, 3, 7, 100, 1000, 1024):
        found = [set(spread(range(size), limit)) for limit in range(1, size + 1)]
        assert [len(one) for one in found] == list(range(1, size + 1))
        assert all(small < large for small, large in pairwise(found))  # a larger limit adds
    for limit in (10, 96, 100, 300):
        chosen = spread(range(1000), limit)
        gaps = [b - a for a, b in pairwise((*chosen, 1000))]
        assert list(chosen) == sorted(chosen)
        assert max(gaps) <= 2 * 1000 / limit + 1


def test_a_run_does_not_go_on_with_other_questions(tmp_path):
    def header(tasks):
        one = SetHeader(name="mine", scorer="squad2", tasks=len(tasks), skipped=[], tools={},
                        corpus=[], digest=digest_of(tasks))  # fmt: skip
        return {"sets": [one]}

    tasks = questions(2)
    for count, changed in enumerate((
        [replace(tasks[0], question="Who was 0?"), tasks[1]],
        [replace(tasks[0], answers=("y",)), tasks[1]],
        tasks[::-1],
    )):  # fmt: skip
        out = run_folder(tmp_path / str(count), tasks, **header(tasks))
        with pytest.raises(UsageError, match="questions of 'mine' or their answers"):
            run_folder(out, changed, **header(changed))


def test_a_run_exports_as_trajectories(policy, settings, tmp_path):
    from agent.exchange import export

    ask(settings, tmp_path / "a", limit=4)
    with TrajectoryStore.open(tmp_path / "a" / "trajectories.sqlite") as store:
        assert export(store, tmp_path / "t.jsonl") == 4
    assert len(list(read(tmp_path / "t.jsonl", []))) == 4
