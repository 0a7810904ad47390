"""Evaluation runs through the real graph, search and store, played by the scripted expert."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval.folder as eval_folder
import eval.run as eval_run
from agent.episode import ContextRule
from agent.exchange import read
from agent.policies.base import Completion, Policy, Sampling
from agent.settings import SearchSettings, Settings, load_settings
from agent.store import TrajectoryStore
from agent.task import Task
from agent.trajectory import Status, StopReason, Trajectory
from benchmarks.rollout import Recorder, by_episode
from eval.benchmarks import DataFolder, load
from eval.benchmarks.base import choices
from eval.command import compared, evaluate, exported, score
from eval.compare import compare
from eval.failures import Failures, PolicyFailedError
from eval.folder import (
    RunHeader,
    SetHeader,
    claim,
    digest_of,
    group_of,
    keep_failed,
    open_store,
    read_failed,
    read_header,
)
from eval.metrics import SCORERS, exact_match
from eval.regressions import Origin, add_regression, origin_of, searched_elsewhere
from eval.revision import source
from eval.run import EvalRequest, run, spread
from eval.score import score_run
from kg.errors import PolicyUnavailableError, UsageError
from kg.library.load import load_library
from kg.library.passages import passages
from rl.guidance.expert import ExpertPolicy, Passage
from tools.search.tool import SearchTool

ROOT = Path(__file__).resolve().parents[2]


class Failing(ExpertPolicy):
    """Plays on until it has replied `after` times, then nobody answers."""

    after = 10**9
    calls = 0

    async def generate(self, requests):
        self.calls += 1
        if self.calls > self.after:
            raise PolicyUnavailableError("the server is gone")
        return await super().generate(requests)


def expert(template, kind=Failing):
    tasks = load("library", DataFolder("", Path()), "test").tasks
    corpus = {row["id"]: Passage(row["title"], row["text"]) for row in passages(load_library())}
    return kind(template, tasks, corpus, misleading=0.2)


class Own(Settings):
    """The user's models and indexes; the rest in a folder of the test."""

    @property
    def benchmarks_dir(self):
        return self.home / "benchmarks"

    @property
    def models_dir(self):
        return load_settings().models_dir

    @property
    def indexes_dir(self):
        return load_settings().indexes_dir


@pytest.fixture
def settings(tmp_path):
    return Own(home=tmp_path / "home")


@pytest.fixture
def lexical(settings):
    """Without an encoder, which takes the longest to start."""
    return settings.model_copy(update={"search": SearchSettings(mode="lexical")})


@pytest.fixture
def policy(template, monkeypatch):
    made = []

    def opened(*_, **__):
        made.append(expert(template))
        if opened.after is not None:
            made[-1].after = opened.after
        return made[-1]

    opened.after = None
    opened.made = made
    monkeypatch.setattr(eval_run, "policy_of", opened)
    return opened


def ask(settings, out, **options):
    run(EvalRequest(benchmarks=("library",), **{"limit": 24, **options}), settings, out)
    return score_run(out)


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


def test_going_on_asks_only_what_is_missing_and_what_failed(policy, settings, tmp_path):
    out = tmp_path / "a"
    policy.after = 20
    with pytest.raises(PolicyUnavailableError, match="times in a row"):
        ask(settings, out, cache=False)
    broken = score_run(out).sets[0]
    assert 0 < broken.errors < 24
    assert broken.excluded.get("not run", 0) + broken.episodes == 24
    assert broken.answers["right"].mean < 1
    assert broken.without_errors.n + broken.errors == broken.episodes
    policy.after = None
    whole = ask(settings, out, cache=False)
    assert (whole.sets[0].episodes, whole.sets[0].errors) == (24, 0)
    calls = policy.made[-1].calls
    again = ask(settings, tmp_path / "b", cache=False)
    assert calls < policy.made[-1].calls
    assert outcome(whole) == outcome(again)
    ask(settings, out, cache=False)
    assert policy.made[-1].calls == 0


@pytest.mark.parametrize("limit", [5, 2])
def test_a_policy_that_is_gone_is_no_accuracy_of_zero(policy, lexical, tmp_path, limit):
    """Fewer questions than failures that end a run at once."""
    mine, out = own_questions(tmp_path / "mine.jsonl"), tmp_path / "a"
    policy.after, told = 0, []
    with pytest.raises(
        PolicyUnavailableError, match=r"on (\d) of \1 episodes: .* is gone"
    ) as caught:
        evaluate([mine], {"limit": limit}, lexical, out, False, told.append)
    assert caught.value.exit_code == 5
    assert f"agent eval score {out}" in caught.value.hint
    assert "| mine | squad2 | " in (out / "report.md").read_text()
    assert (out / "report.html").is_file()
    assert str(out / "report.html") in told[-1]
    assert read_header(out).finished == ""
    again = f"| mine | {limit} | attempts failed and were asked again |"
    policy.after = None
    for _ in range(2):  # the second has nothing to ask
        assert again in evaluate([mine], {"limit": limit}, lexical, out, False, told.append)
    [one] = score_run(out).sets
    assert (one.errors, one.asked_again) == (0, limit)
    header = read_header(out)
    assert header.created <= header.finished
    assert (header.limit, header.sets[0].data) == (limit, mine)


def test_a_failed_attempt_is_kept_once_however_often_it_is_written(tmp_path):
    with open_store(run_folder(tmp_path / "a", questions(2))) as store:
        episodes = list(store.query())
    for some in (episodes[:1], episodes):  # killed before the first was removed from the store
        keep_failed(tmp_path / "a", "set", some)
    assert [row["id"] for row in read_failed(tmp_path / "a")] == [one.id for one in episodes]
    assert score_run(tmp_path / "a").sets[0].asked_again == 2
    (tmp_path / "a" / "failed.jsonl").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_failed(tmp_path / "a")


def test_failures_in_a_row_count_across_sets(policy, lexical, tmp_path):
    sets = [own_questions(tmp_path / f"{name}.jsonl") for name in "abc"]
    policy.after = 0
    with pytest.raises(PolicyUnavailableError, match="8 times in a row"):
        evaluate(sets, {"limit": 5, "concurrency": 1}, lexical, tmp_path / "r", False, print)
    assert [one.episodes for one in score_run(tmp_path / "r").sets] == [5, 3, 0]
    assert (tmp_path / "r" / "report.html").is_file()


def test_a_policy_that_is_gone_at_the_end_is_told(policy, lexical, tmp_path):
    mine = own_questions(tmp_path / "mine.jsonl")
    options = {"limit": 6, "concurrency": 1, "cache": False}
    evaluate([mine], options, lexical, tmp_path / "a", False, print)
    calls = policy.made[-1].calls
    policy.after, told = calls // 2, []
    with pytest.raises(PolicyUnavailableError, match=r"on the last [2-5] of 6 episodes"):
        evaluate([mine], options, lexical, tmp_path / "b", False, print)
    policy.after = calls - 1
    evaluate([mine], options, lexical, tmp_path / "c", False, told.append)
    assert any("1 of 6 episodes failed" in line for line in told)


class Partly(Policy):
    """Three of four questions fail at once; the others are answered a little later."""

    name = version = "partly"

    def __init__(self):
        self.asked = []

    async def generate(self, requests):
        [request] = requests
        number = int(re.search(r"Who is (\d+)", request.messages[-1]["content"])[1])
        self.asked.append(number)
        if number % 4:
            raise PolicyUnavailableError("the server is gone")
        await asyncio.sleep(0.3)
        return [Completion("<answer>x</answer>")]

    async def aclose(self):
        pass


def test_what_is_under_way_when_the_policy_fails_too_often_is_finished(
    lexical, tmp_path, monkeypatch
):
    partly, closed = Partly(), lexical.model_copy(update={"tools": (), "format": "tags"})
    monkeypatch.setattr("eval.run.policy_of", lambda *_, **__: partly)
    mine = tmp_path / "mine.jsonl"
    mine.write_text(
        "".join(
            json.dumps({"question": f"Who is {n}?", "answers": ["x"]}) + "\n" for n in range(40)
        )
    )
    for asked, answered, failed in ((16, 4, 12), (32, 5, 15)):  # and the same command again
        with pytest.raises(PolicyUnavailableError, match="8 times in a row"):
            evaluate(
                [str(mine)],
                {"concurrency": 16, "cache": False},
                closed,
                tmp_path / "a",
                False,
                print,
            )
        with open_store(tmp_path / "a") as store:
            found = Counter(str(one.status) for one in store.query())
        assert len(partly.asked) == asked
        assert found == {"answered": answered, "failed": failed}


@pytest.mark.parametrize(
    ("said", "answered", "error"),
    [
        ("xooo" * 3, True, ""),
        ("xxox", False, "on 3 of 4"),
        ("ooxx", True, "on the last 2 of 4"),
        ("x", False, "on 1 of 1"),
        ("x", True, ""),  # one that fails whenever the run goes on
        ("xx", True, "on 2 of 2"),
        ("xxxxxxxx" + "o" * 9, True, "8 times in a row"),
        ("xxxxxxx" + "o" * 9, True, ""),
    ],
)
def test_when_a_policy_counts_as_failed(tmp_path, said, answered, error):
    failures = Failures(tmp_path)
    for one in said:
        reason = StopReason.POLICY_ERROR if one == "x" else StopReason.ANSWER
        failures.note(SimpleNamespace(stop_reason=reason, error="gone"))

    def judge():
        failures.check()
        failures.settle(answered)

    if not error:
        judge()
        return
    with pytest.raises(PolicyFailedError, match=error):
        judge()


def own_questions(path, count=6):
    """A file of library questions; gives its path."""
    tasks = load("library", DataFolder("", Path()), "test").tasks
    rows = [
        {"id": t.id, "question": t.question, "answers": list(t.answers)} for t in tasks if t.answers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return str(path)


def outcome(scores):
    return sorted(
        (s.benchmark, s.task, s.seed, s.answer, s.right, s.usage.turns) for s in scores.samples
    )


def test_the_cache_knows_everything_that_shapes_an_episode(policy, settings, tmp_path):
    first = ask(settings, tmp_path / "a")
    assert policy.made[-1].calls > 0
    second = ask(settings, tmp_path / "b")
    assert policy.made[-1].calls == 0
    assert outcome(first) == outcome(second)
    assert compare(tmp_path / "a", tmp_path / "b").sets[0].p == 1


def changed(settings, section, **values):
    """Settings with other values in one of their sections."""
    inner = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: inner})


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.model_copy(update={"observation_chars": 3000}),
        lambda s: s.model_copy(update={"seed": 5}),
        lambda s: s.model_copy(update={"system": "Answer."}),
        lambda s: s.model_copy(update={"format": "tool_call"}),
        lambda s: s.model_copy(update={"rule": ContextRule.SOFT}),
        lambda s: s.model_copy(update={"tools": ("search",)}),
        lambda s: changed(s, "budgets", turns=7),
        lambda s: changed(s, "sampling", max_tokens=99),
        lambda s: changed(s, "sampling", temperature=0.5),
        lambda s: changed(s, "search", k=2),
    ],
)
def test_a_setting_that_shapes_an_episode_is_in_the_cache_s_key(policy, lexical, tmp_path, change):
    ask(lexical, tmp_path / "a", limit=1)
    ask(change(lexical), tmp_path / "b", limit=1)
    assert policy.made[-1].calls > 0
    ask(lexical, tmp_path / "c", limit=1)
    assert policy.made[-1].calls == 0


def test_other_packages_compute_other_episodes(policy, lexical, tmp_path, monkeypatch):
    monkeypatch.setattr(Failing, "engine", "vllm float32")
    ask(lexical, tmp_path / "a", limit=1)
    monkeypatch.setattr(eval_folder, "_version", lambda package: f"{package} 99")
    ask(lexical, tmp_path / "b", limit=1)
    assert policy.made[-1].calls > 0
    with pytest.raises(UsageError, match=r"another setup\.\w+"):
        ask(lexical, tmp_path / "a", limit=1)
    told = read_header(tmp_path / "b").setup["packages"]
    assert {"torch", "vllm", "bm25s"} <= set(told)
    monkeypatch.setattr(Failing, "engine", "server http://127.0.0.1/v1")
    ask(lexical, tmp_path / "c", limit=1)
    assert set(read_header(tmp_path / "c").setup["packages"]) == {"faiss-cpu", "bm25s"}


def test_an_episode_in_which_a_tool_broke_is_not_cached(policy, settings, tmp_path, monkeypatch):
    search, broken = SearchTool.run, iter([True])

    async def once(self, arguments, context):
        if next(broken, False):
            raise OSError("the disk is gone")
        return await search(self, arguments, context)

    monkeypatch.setattr(SearchTool, "run", once)
    ask(settings, tmp_path / "a", limit=4)
    with open_store(tmp_path / "a") as store:
        [hurt] = [done for done in store.query() if done.fault]
    assert hurt.status is not Status.FAILED
    ask(settings, tmp_path / "b", limit=4)
    with open_store(tmp_path / "b") as store:
        [again] = [done for done in store.query() if done.task.id == hurt.task.id]
    assert not again.fault
    assert policy.made[-1].calls == len(again.turns)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("engine", "vllm bfloat16"),
        ("engine", "server http://b/v1"),
        ("context_length", 512),
        ("config_version", "0123"),
    ],
)
def test_the_same_weights_under_another_engine_are_asked_anew(
    policy, settings, tmp_path, monkeypatch, what, value
):
    ask(settings, tmp_path / "a", limit=4)
    monkeypatch.setattr(Failing, what, value)
    ask(settings, tmp_path / "b", limit=4)
    assert policy.made[-1].calls > 0
    with pytest.raises(UsageError, match=f"another setup.{what}.*now .*{value}"):
        ask(settings, tmp_path / "a", limit=4)


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


_SETUP = {"budgets": {}, "sampling": {"temperature": 0.0, "max_tokens": 9}, "format": "tags"}


def run_folder(
    out,
    tasks,
    said=lambda task: "x",
    scorer="squad2",
    of=lambda task: "set",
    tools=(),
    turns=lambda task: (),
    **header,
):
    """A finished run, written as a run leaves it; `said` gives the answer to a task, `of` its set."""
    counts = Counter(map(of, tasks))
    sets = [
        SetHeader(
            name=name, scorer=scorer, tasks=count, skipped=[], tools=dict.fromkeys(tools, "1")
        )
        for name, count in counts.items()
    ]
    fields = {"given": "", "seed": 0, "samples": 1, "setup": _SETUP, "packages": {}}
    made = RunHeader(
        **{
            **fields,
            "created": "2026-01-01T00:00:00+00:00",
            "policy": "p@1",
            "sets": sets,
            **header,
        }
    )
    claim(out, made, [(of(task), task) for task in tasks])
    with open_store(out) as store:
        for task in tasks:
            status, reason = Status.ANSWERED, StopReason.ANSWER
            if not said(task):
                status, reason = Status.ABSTAINED, StopReason.ABSTAIN
            store.add(
                Trajectory(
                    replace(task, answers=()), "p@1", 0, Sampling(), status,
                    reason, turns(task), np.zeros(0, np.int32), np.zeros(0, np.float32),
                    answer=said(task), group=group_of(of(task), task),
                )
            )  # fmt: skip
    return out


def questions(count, **fields):
    return [Task(f"q{n}", f"Who is {n}?", **{"answers": ("x",), **fields}) for n in range(count)]


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


SCRIPT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import eval.run as eval_run
from agent.policies.chat import ChatTemplate
from agent.settings import load_settings
from eval.run import EvalRequest, run
from tests.eval.test_run import Failing, expert

class Slow(Failing):
    async def generate(self, requests):
        await asyncio.sleep(0.05)
        return await super().generate(requests)

template = ChatTemplate.load(Path({model!r}))
eval_run.policy_of = lambda *a, **k: expert(template, Slow)
request = EvalRequest(benchmarks=("library",), limit=60, concurrency=16, cache=False)
run(request, load_settings(), Path({out!r}), advance=lambda *a: print(a[1], flush=True))
"""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(base_model, tmp_path):
    def start(out):
        code = SCRIPT.format(root=str(ROOT), model=str(base_model), out=str(out))
        environment = {**os.environ, "AGENT_SEARCH__MODE": "lexical"}  # starts at once
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )

    def finish(process, kill_at=None):
        for line in process.stdout:
            if kill_at is not None and int(line) >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        return process.wait(timeout=120)

    for kill_at in (1, 20, 45):
        assert finish(start(tmp_path / "a"), kill_at) == -signal.SIGKILL
        time.sleep(0.1)
    assert finish(start(tmp_path / "a")) == 0
    assert finish(start(tmp_path / "b")) == 0
    killed, whole = score_run(tmp_path / "a"), score_run(tmp_path / "b")
    assert outcome(killed) == outcome(whole)
    assert len({(s.task, s.seed) for s in killed.samples}) == len(killed.samples) == 60
    assert (killed.sets[0].answers, killed.sets[0].kinds) == (
        whole.sets[0].answers,
        whole.sets[0].kinds,
    )


def test_a_run_exports_as_trajectories(policy, settings, tmp_path):
    from agent.exchange import export

    ask(settings, tmp_path / "a", limit=4)
    with TrajectoryStore.open(tmp_path / "a" / "trajectories.sqlite") as store:
        assert export(store, tmp_path / "t.jsonl") == 4
    assert len(list(read(tmp_path / "t.jsonl", []))) == 4
