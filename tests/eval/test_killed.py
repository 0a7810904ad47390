"""Evaluations that are killed where it hurts: with the cache on, and between two files of a report."""

import os
import signal
import subprocess
import sys
import time

import pytest

from eval.command import score
from eval.score import score_run
from tests import forked
from tests.eval.runs import ROOT, outcome, questions, run_folder

CACHED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import eval.run as eval_run
from agent.policies.chat import ChatTemplate
from agent.settings import load_settings
from eval.run import EvalRequest, run
from tests.eval.runs import Failing, expert

class Slow(Failing):
    async def generate(self, requests):
        await asyncio.sleep(0.02)
        print("asked", flush=True)
        return await super().generate(requests)

template = ChatTemplate.load(Path({model!r}))
eval_run.policy_of = lambda *a, **k: expert(template, Slow)
run(EvalRequest(benchmarks=("library",), limit=30, concurrency=4), load_settings(), Path({out!r}))
"""
REPORTS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from eval.command import score

replace, files = os.replace, [0]

def stopping(partial, path):
    files[0] += 1
    if files[0] == {stop_at}:
        print("written", flush=True)
        time.sleep(600)
    replace(partial, path)

os.replace = stopping
score(Path('{out}'), "", False)
"""
FILES = ("scores.json", "samples.jsonl", "report.md", "report.html", "traces.html")


def begun(code, anew=False, **environment):
    pipe = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **environment}}
    if anew:
        return subprocess.Popen([sys.executable, "-c", code], **pipe)
    return forked.Forked(["-c", code], **pipe)


def lines_of(code, kill_at=None, anew=False, **environment):
    """How many lines a script prints; killed by the system at one of them, if that is given."""
    printed = 0
    with begun(code, anew, **environment) as process:
        for printed, _ in enumerate(process.stdout, 1):
            if printed == kill_at:
                process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=300) == (-signal.SIGKILL if kill_at else 0)
    return printed


def test_a_run_that_is_killed_with_the_cache_on_loses_and_doubles_nothing(base_model, tmp_path):
    def code(out):
        return CACHED.format(root=str(ROOT), model=str(base_model), out=str(tmp_path / out))

    own = {"AGENT_HOME": str(tmp_path / "home"), "AGENT_SEARCH__MODE": "lexical"}
    for kill_at in (15, 40):
        lines_of(code("a"), kill_at, **own)
    assert lines_of(code("a"), **own) > 0
    apart = {**own, "AGENT_HOME": str(tmp_path / "other")}
    # an episode that was stored when the kill came may be missing from the cache
    assert 3 * lines_of(code("b"), **own) < lines_of(code("c"), anew=True, **apart)
    killed, cached, whole = (score_run(tmp_path / name) for name in "abc")
    assert outcome(killed) == outcome(cached) == outcome(whole)
    assert len({(s.task, s.seed) for s in killed.samples}) == len(killed.samples) == 30


@pytest.mark.parametrize("stop_at", [1, 4])
def test_reports_that_were_cut_off_are_whole_or_not_there(tmp_path, stop_at):
    out, code = tmp_path / "a", REPORTS.format(root=str(ROOT), out=tmp_path / "a", stop_at=stop_at)
    for folder in (out, tmp_path / "b"):
        run_folder(folder, questions(5), said=lambda task: "y")
    score(tmp_path / "b", "", False)
    lines_of(code, 1)
    assert [name for name in FILES if (out / name).exists()] == list(FILES[: stop_at - 1])
    score(out, "", False)
    lines_of(code, 1)  # now over files that are there
    for name in ("scores.json", "report.md"):
        assert (out / name).read_text() == (tmp_path / "b" / name).read_text()
    assert all((out / name).stat().st_size for name in FILES)


SCRIPT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import eval.run as eval_run
from agent.policies.chat import ChatTemplate
from agent.settings import load_settings
from eval.run import EvalRequest, run
from tests.eval.runs import Failing, expert

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
    def start(out, anew=False):
        code = SCRIPT.format(root=str(ROOT), model=str(base_model), out=str(out))
        return begun(code, anew, AGENT_SEARCH__MODE="lexical")  # which starts at once

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
    assert finish(start(tmp_path / "b", anew=True)) == 0
    killed, whole = score_run(tmp_path / "a"), score_run(tmp_path / "b")
    assert outcome(killed) == outcome(whole)
    assert len({(s.task, s.seed) for s in killed.samples}) == len(killed.samples) == 60
    assert (killed.sets[0].answers, killed.sets[0].kinds) == (
        whole.sets[0].answers,
        whole.sets[0].kinds,
    )
