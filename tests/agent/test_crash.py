"""kill -9 in the middle of 100 concurrent episodes: every finished one is in the store, once."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from agent.store import Filter, TrajectoryStore

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import asyncio, random, sys
sys.path.insert(0, {root!r})
from tests.agent.scripted import HAPPY, FactTool, ScriptedPolicy
from agent.episode import Episode
from agent.formats import make_format
from agent.graph import Setup
from agent.rollout import rollout
from agent.store import TrajectoryStore
from agent.task import Task
from tools.base import Toolbox
from tools.judge import JudgeTool

class Busy(ScriptedPolicy):
    async def generate(self, requests):
        await asyncio.sleep(random.uniform(0.01, 0.1))
        turn = sum(m["role"] == "assistant" for m in requests[0].messages)
        self.replies = [HAPPY[turn]]
        return [self._one(request) for request in requests]

async def main():
    store = TrajectoryStore.open({store!r})
    tools = Toolbox([FactTool(), JudgeTool()])
    setup = Setup(Busy([]), make_format("tags", tools), tools)
    tasks = (Episode(Task.ask(f"question {{i}}")) for i in range(3000))
    async for done in rollout(tasks, setup, concurrency=100):
        await asyncio.to_thread(store.add, done)
        print(done.id, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [5, 60, 150])
def test_no_finished_episode_is_lost_or_doubled(tmp_path, after):
    url = str(tmp_path / "store.sqlite")
    code = SCRIPT.format(root=str(ROOT), store=url)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    told = []
    for line in process.stdout:
        told.append(line.strip())
        if len(told) >= after:
            process.send_signal(signal.SIGKILL)
            break
    told += [line.strip() for line in process.stdout if len(line.strip()) == 32]
    assert process.wait(30) == -signal.SIGKILL
    began = time.monotonic()
    with TrajectoryStore.open(url) as store:
        assert time.monotonic() - began < 1
        counts = Counter(t.id for t in store.query(Filter()))
        assert set(told) <= set(counts)
        assert set(counts.values()) == {1}
        assert all(t.status == "answered" for t in store.query(Filter()))
