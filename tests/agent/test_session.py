"""Sessions: a thread goes on after the process is gone, also in the middle of an episode."""

import os
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, json, os, sys
sys.path.insert(0, {root!r})
from tests.agent.scripted import HAPPY, FactTool, ScriptedPolicy
from agent.graph import build_graph
from agent.policies.chat import ChatTemplate
from agent.checkpoints import checkpoints
from agent.session import Session, make_setup
from agent.settings import load_settings
from agent.store import TrajectoryStore
from tools.base import Toolbox
from tools.judge import JudgeTool

class Dying(ScriptedPolicy):
    version = os.environ.get("SCRIPTED_VERSION", "0")
    async def generate(self, requests):
        if not self.replies:
            os._exit(9)
        return await super().generate(requests)

async def main(replies, question):
    settings = load_settings()
    template = ChatTemplate.load({model!r})
    tools = Toolbox([FactTool(), JudgeTool()])
    setup = make_setup(settings, Dying(replies, template), tools)
    async with checkpoints(settings.threads_path) as saver:
        with TrajectoryStore.open(settings.store_url) as store:
            session = Session(setup, build_graph(tools, saver), store, settings)
            events = session.resume("t1") if question is None else session.ask(question, "t1")
            async for event in events:
                pass
            print(json.dumps(session.last.to_dict()))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


def run(base_model, home, replies, question):
    import json

    code = PROGRAM.format(root=str(ROOT), model=str(base_model))
    done = forked.run(
        ["-c", code, json.dumps([replies, question])],
        capture_output=True, text=True, timeout=60, env={**os.environ, "AGENT_HOME": str(home)},
    )  # fmt: skip
    return done, json.loads(done.stdout) if done.stdout else None


SEARCH, JUDGE, ANSWER = (
    "<search>Oganessian</search>",
    "<judge>yes</judge>",
    "<answer>oganesson [1]</answer>",
)


def test_a_killed_episode_goes_on_from_its_last_turn_and_then_the_conversation(
    base_model, tmp_path
):
    from agent.store import Filter, TrajectoryStore

    done, _ = run(base_model, tmp_path, [SEARCH, JUDGE], "Which element?")
    assert done.returncode == 9
    done, finished = run(base_model, tmp_path, [ANSWER], None)
    assert done.returncode == 0, done.stderr
    assert finished["answer"] == "oganesson"
    assert [turn["text"] for turn in finished["turns"]] == [SEARCH, JUDGE, ANSWER]
    _, whole = run(base_model, tmp_path / "other", [SEARCH, JUDGE, ANSWER], "Which element?")
    assert finished["token_ids"] == whole["token_ids"]
    assert finished["logprobs"] == whole["logprobs"]
    done, second = run(base_model, tmp_path, [SEARCH, JUDGE, ANSWER], "And its symbol?")
    assert second["history"] == [["Which element?", "oganesson"]]
    done, _ = run(base_model, tmp_path, [], None)
    assert "no unfinished question" in done.stderr
    with TrajectoryStore.open(tmp_path / "trajectories.sqlite") as store:
        assert [t.task.question for t in store.query(Filter(newest_first=False))] == [
            "Which element?",
            "And its symbol?",
        ]


def test_another_policy_does_not_finish_what_one_began(base_model, tmp_path, monkeypatch):
    from agent.store import Filter, TrajectoryStore

    done, _ = run(base_model, tmp_path, [SEARCH, JUDGE], "Which element?")
    with TrajectoryStore.open(tmp_path / "trajectories.sqlite") as store:
        before = [t.id for t in store.query(Filter())]
    monkeypatch.setenv("SCRIPTED_VERSION", "1")
    done, _ = run(base_model, tmp_path, [ANSWER], None)
    assert "was begun with scripted@0; this is scripted@1" in done.stderr
    with TrajectoryStore.open(tmp_path / "trajectories.sqlite") as store:
        assert [t.id for t in store.query(Filter())] == before


def test_forgetting_an_episode_forgets_its_conversation(base_model, tmp_path):
    import sqlite3

    from agent.store import TrajectoryStore
    from agent.threads import Threads, forget

    _, told = run(base_model, tmp_path, [SEARCH, JUDGE, ANSWER], "What is secretmarker?")
    threads = Threads(tmp_path / "threads.sqlite")
    assert (threads.latest(), threads.has("t1")) == ("t1", True)
    with TrajectoryStore.open(tmp_path / "trajectories.sqlite") as store:
        assert forget(store, [told["id"][:8]], threads.path) == 1
        assert store.count() == 0
    assert (threads.latest(), threads.has("t1")) == (None, False)
    with sqlite3.connect(threads.path) as file:
        assert file.execute("SELECT count(*) FROM writes").fetchone() == (0,)


def test_conversations_that_are_not_there_or_damaged(tmp_path):
    from agent.threads import Threads
    from kg.errors import UsageError

    assert Threads(tmp_path / "none.sqlite").latest() is None
    broken = tmp_path / "threads.sqlite"
    broken.write_bytes(b"no database at all" * 99)
    with pytest.raises(UsageError, match="cannot be read"):
        Threads(broken).has("t1")
