"""Evaluation as a person runs it: processes, the micro policy, a world of a few questions."""

import json
import os
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    *("run.json", "tasks.jsonl.gz", "trajectories.sqlite", "scores.json", "samples.jsonl"),
    *("report.md", "report.html", "traces.html"),
}


@pytest.fixture
def agent(tmp_path):
    """Run `agent …` in an empty folder, with a history of its own."""
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "NO_COLOR": "1",
        "AGENT_POLICY": "micro",
        "AGENT_SEARCH__MODE": "lexical",
        "AGENT_SAMPLING__MAX_TOKENS": "48",
    }

    def run(*args):
        return forked.run(
            [str(ROOT / "cli.py"), *args],
            capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment,
        )  # fmt: skip

    return run


def test_a_world_is_evaluated_scored_and_compared(agent, tmp_path):
    made = agent("world", "make", "w", "--seed", "1", "--entities", "60", "--questions", "40")
    assert made.returncode == 0, made.stderr
    asked = ("eval", "w", "--limit", "3", "--no-cache")
    opened = agent(*asked, "--out", "a")
    assert opened.returncode == 0, opened.stderr
    assert opened.stdout.startswith("# Evaluation of micro@")
    assert {path.name for path in (tmp_path / "a").iterdir()} >= FILES
    assert (tmp_path / "a" / "report.md").read_text() == opened.stdout.removesuffix("\n")
    header = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (header["limit"], header["sets"][0]["data"]) == (3, str(tmp_path / "w"))
    assert header["finished"] >= header["created"]

    closed = agent(*asked, "--tools", "", "--out", "b")
    assert closed.returncode == 0, closed.stderr
    assert "asked closed-book" in closed.stdout
    assert "## Retrieval" not in closed.stdout

    again = agent("eval", "score", "a", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sets"][0]["answers"]["right"]["n"] == 3

    compared = agent("compare", "a", "b")
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.count("policy micro@") == 2
    assert "| McNemar |" in compared.stdout
    assert agent("eval", "w", "--limit", "2", "--out", "a").returncode == 2


def test_a_server_that_is_not_there_ends_the_run_and_leaves_a_report(agent, tmp_path):
    url = "http://me:sk-secret@127.0.0.1:9/v1"
    done = agent("eval", "library", "--limit", "2", "--policy", url, "--model", "m", "--out", "c")
    assert done.returncode == 5
    assert done.stdout == ""
    assert "the policy failed on 2 of 2 episodes" in done.stderr
    assert "agent eval score c" in done.stderr
    assert {path.name for path in (tmp_path / "c").iterdir()} >= FILES
    header = json.loads((tmp_path / "c" / "run.json").read_text())
    assert header["setup"]["engine"] == "server http://127.0.0.1:9/v1"
    assert header["finished"] == ""
    for path in (tmp_path / "c").iterdir():
        assert b"sk-secret" not in path.read_bytes()
    assert "sk-secret" not in done.stderr
    scored = agent("eval", "score", "c")
    assert scored.returncode == 0
    assert "(not finished)" in scored.stdout
