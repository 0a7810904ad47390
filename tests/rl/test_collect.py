"""Collection with the real micro policy on a small world: groups, seeds, kills, actors, bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from agent.settings import load_settings
from agent.store import TrajectoryStore
from agent.threads import Threads
from agent.trajectory import Status
from eval.fictional.make import make_world
from kg.errors import PolicyUnavailableError, UsageError
from rl.collect import CollectRequest, collect, journal, load_sets, make_plan
from tests.agent.scripted import ScriptedPolicy

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("TURNWISE_KILLS", "3"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, 5, 60, 60)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory, models_dir):
    """A home of the test's own, with the models that are there already."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").symlink_to(models_dir)
    return folder


def settings_of(home, **flags):
    options = {"policy": "micro", "search": {"mode": "lexical"}, "sampling": {"temperature": 1.0}}
    return load_settings(home=home, **{**options, **flags})


def request_of(world, **options):
    return CollectRequest(tasks=(str(world),), **{"limit": 4, "group": 3, **options})


@pytest.fixture(scope="module")
def whole(world, home, tmp_path_factory):
    """A collection that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "store.sqlite"
    report = collect(request_of(world), settings_of(home), str(out))
    assert (report.groups, report.episodes, report.known) == (4, 12, 0)
    return out


def contents(path):
    with TrajectoryStore.open(path) as store:
        return {t.id: t for t in store.query()}


def test_groups_are_whole_and_sampled_from_the_model_itself(whole):
    found = contents(whole)
    assert set(Counter(t.group for t in found.values()).values()) == {3}
    assert {t.seed for t in found.values()} == {0, 1, 2}
    assert len({t.answer for t in found.values()}) > 1
    for t in found.values():
        assert (t.sampling.temperature, t.sampling.truncated) == (1.0, False)
        assert t.has_tokens
        assert t.status is not Status.FAILED


def test_nothing_is_collected_twice_and_a_larger_group_adds_to_it(world, home, whole, tmp_path):
    before = contents(whole)
    again = collect(request_of(world), settings_of(home), str(whole))
    assert (again.known, again.statuses) == (12, {})
    more = collect(request_of(world, group=4, limit=2), settings_of(home), str(whole))
    assert (more.episodes, more.known) == (8, 6)
    after = contents(whole)
    assert {id: after[id].to_dict() for id in before} == {
        id: t.to_dict() for id, t in before.items()
    }
    seeds = collect(request_of(world, limit=1, seed=2, group=3), settings_of(home), str(whole))
    assert (seeds.episodes, seeds.known, sum(seeds.statuses.values())) == (3, 2, 1)
    after = contents(whole)
    assert len({(t.group, t.seed) for t in after.values()}) == len(after) == 15
    other = collect(request_of(world, limit=1), settings_of(home), str(tmp_path / "other.sqlite"))
    assert other.known == 0
    assert contents(tmp_path / "other.sqlite").keys() <= after.keys()


def command(world, out, *more):
    return [
        sys.executable, str(ROOT / "cli.py"), "collect", str(world), "--policy", "micro", "--out",
        str(out), "--group", "3", "--limit", "4", "--concurrency", "4", *more,
    ]  # fmt: skip


def environment(home):
    return {**os.environ, "AGENT_HOME": str(home), "AGENT_SEARCH__MODE": "lexical"}


def test_killed_again_and_again_it_ends_as_if_it_had_not_been(world, home, whole, tmp_path):
    """SIGKILL at random moments: the same ids, tokens and log-probabilities, and no half episode."""
    out, chance, resumed = tmp_path / "killed.sqlite", random.Random(7), 0
    for _ in range(KILLS):
        with subprocess.Popen(
            command(world, out), env=environment(home), stderr=subprocess.PIPE, text=True
        ) as process:
            for line in process.stderr:
                if line.startswith("collected"):
                    break
            time.sleep(chance.uniform(0.1, 2.5))
            process.send_signal(signal.SIGKILL)
        if out.is_file():
            assert all(t.turns for t in contents(out).values())
    done = subprocess.run(
        command(world, out, "--json"), env=environment(home), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    resumed = json.loads(done.stdout)["resumed"]
    found, expected = contents(out), contents(whole)
    expected = {id: t for id, t in expected.items() if t.seed < 3}
    assert found.keys() == expected.keys()
    same = [found[id].token_ids.tolist() == t.token_ids.tolist() for id, t in expected.items()]
    assert all(same), f"{same.count(False)} of {len(same)} differ; {resumed} went on"
    with TrajectoryStore.open(out) as store:
        assert Threads(journal(store, settings_of(home))).ids() == set()


def test_two_actors_collect_the_same(world, home, whole, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    out = tmp_path / "actors.sqlite"
    report = collect(request_of(world, actors=2, limit=2), settings_of(home), str(out))
    assert (report.episodes, report.known) == (6, 0)
    expected = contents(whole)
    for id, t in contents(out).items():
        assert t.token_ids.tolist() == expected[id].token_ids.tolist()
        assert t.group == expected[id].group


class Stubborn(ScriptedPolicy):
    """Fails after a number of calls, as a server that goes away."""

    calls = 0

    def __init__(self, template, after):
        super().__init__([], template)
        self.after = after

    def _one(self, request):
        self.calls += 1
        if self.calls > self.after:
            raise PolicyUnavailableError("the server is gone")
        self.replies = ["<search>who</search>" if self.calls % 2 else "<answer>x [1]</answer>"]
        return super()._one(request)


def test_a_policy_that_dies_leaves_what_is_finished(world, home, tmp_path, template, monkeypatch):
    out = tmp_path / "store.sqlite"
    policy = Stubborn(template, after=8)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    with pytest.raises(PolicyUnavailableError, match="in a row"):
        collect(request_of(world, concurrency=1), settings_of(home), str(out))
    finished = [t for t in contents(out).values() if t.status is not Status.FAILED]
    assert finished
    policy.after = 10**9
    report = collect(request_of(world), settings_of(home), str(out))
    assert report.known == len(finished)
    assert all(t.status is not Status.FAILED for t in contents(out).values())


def test_a_damaged_file_of_unfinished_episodes_is_set_aside_and_told(
    world, home, tmp_path, template, monkeypatch
):
    out = tmp_path / "store.sqlite"
    policy = Stubborn(template, after=9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    with pytest.raises(PolicyUnavailableError):
        collect(request_of(world, concurrency=1), settings_of(home), str(out))
    finished = {id for id, t in contents(out).items() if t.status is not Status.FAILED}
    with TrajectoryStore.open(out) as store:
        path = journal(store, settings_of(home))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    policy.after, told = 10**9, []
    report = collect(request_of(world), settings_of(home), str(out), told.append)
    assert (report.known, report.resumed) == (len(finished), 0)
    assert finished < contents(out).keys()
    assert len(contents(out)) == 12
    [line] = [line for line in told if "damaged" in line]
    assert line.endswith(str(path.with_suffix(".damaged")))
    assert path.with_suffix(".damaged").read_bytes() == data[: len(data) // 2]


def test_one_collection_at_a_time_writes_a_store_whatever_its_path_is_called(
    home, tmp_path, template, monkeypatch
):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    request, refused = CollectRequest(tasks=(asked(tmp_path, "a"),), group=1), []
    settings = settings_of(home)

    class Doubled(Stubborn):
        """Somebody collects into the same store while the first episode is played."""

        def _one(self, asked_for):
            with pytest.raises(UsageError, match="another process is collecting into") as error:
                collect(request, settings, str(tmp_path / "s.sqlite"))
            refused.append(error.value)
            return super()._one(asked_for)

    policy = Doubled(template, after=10**9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    assert collect(request, settings, "s.sqlite").statuses
    assert refused
    paths = []
    for folder, name in (
        (tmp_path, "s.sqlite"),
        (tmp_path, "there/../s.sqlite"),
        (tmp_path / "there", "s.sqlite"),
        (tmp_path, f"sqlite:///{tmp_path}/s.sqlite"),
    ):
        monkeypatch.chdir(folder)
        with TrajectoryStore.open(name) as store:
            paths.append(journal(store, settings))
    assert paths[0] == paths[1] == paths[3] != paths[2]


def test_a_slow_tool_holds_nobody(world, home, tmp_path, template, monkeypatch):
    """One episode's search hangs until its time-out; the others are done long before."""
    import asyncio

    from tools.search.tool import SearchTool

    order, plain = [], SearchTool.run

    async def slow(self, arguments, context):
        if not order:
            order.append("slow")
            await asyncio.sleep(60)
        return await plain(self, arguments, context)

    policy = Stubborn(template, after=10**9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    monkeypatch.setattr(SearchTool, "run", slow)
    began, seconds = time.perf_counter(), []
    collect(
        request_of(world, concurrency=4), settings_of(home, tool_seconds=9.0),
        str(tmp_path / "s.sqlite"), advance=lambda *_: seconds.append(time.perf_counter() - began),
    )  # fmt: skip
    assert seconds[-2] < 9 <= seconds[-1] + 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sampling": {"temperature": 0.0}}, "temperature 1"),
        ({"sampling": {"temperature": 1.0, "top_p": 0.9}}, "top_p 0.9"),
        ({"sampling": {"temperature": 1.0, "top_k": 5}}, "top_k 5"),
        ({"policy": "http://127.0.0.1:9/v1", "model": "m"}, "no token ids"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(world, home, tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        collect(request_of(world), settings_of(home, **flags), str(tmp_path / "s.sqlite"))


def asked(folder, name, **fields):
    """A file of one question."""
    row = {"id": "1", "question": f"Who made {name}?", "answers": ["Ada"], **fields}
    path = folder / name / "train.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def test_files_of_one_name_and_corrected_answers_make_episodes_of_their_own(
    home, tmp_path, template, monkeypatch
):
    policy = Stubborn(template, after=10**9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    out = tmp_path / "store.sqlite"

    def again(*tasks):
        report = collect(CollectRequest(tasks=tasks, group=2), settings_of(home), str(out))
        assert len(contents(out)) == report.known + sum(report.statuses.values()) + old
        return report

    old = 0
    a, b = asked(tmp_path, "a"), asked(tmp_path, "b")
    report = again(a, b)
    assert (report.groups, report.episodes, report.known) == (2, 4, 0)
    assert {t.task.question for t in contents(out).values()} == {"Who made a?", "Who made b?"}
    assert again(a, b).known == 4
    old = 4
    report = again(asked(tmp_path, "a", answers=["Grace"]))
    assert (report.known, sum(report.statuses.values())) == (0, 2)
    golds = Counter(t.task.answers for t in contents(out).values())
    assert golds == {("Ada",): 4, ("Grace",): 2}


def test_a_task_of_two_sets_is_played_once_and_a_set_named_twice_is_refused(
    home, tmp_path, template, monkeypatch
):
    policy = Stubborn(template, after=10**9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    out = str(tmp_path / "store.sqlite")
    a, b = asked(tmp_path, "a"), asked(tmp_path, "b")
    Path(b).write_text(Path(a).read_text() + Path(b).read_text().replace('"1"', '"2"'))
    request = CollectRequest(tasks=(a, b), group=2)
    report = collect(request, settings_of(home), out)
    assert (report.groups, report.episodes, sum(report.statuses.values())) == (2, 4, 4)
    assert len(contents(out)) == 4
    with pytest.raises(UsageError, match="a set is named twice: train"):
        collect(CollectRequest(tasks=(a, a)), settings_of(home), out)


def test_an_episode_that_another_process_stored_meanwhile_is_not_counted_as_new(
    home, tmp_path, template, monkeypatch
):
    out = tmp_path / "store.sqlite"

    class Beaten(Stubborn):
        """The second episode is stored by somebody else while it is played."""

        def _one(self, request):
            found = contents(out) if out.is_file() else {}
            if len(found) == 1:
                [one] = found.values()
                with TrajectoryStore.open(out) as store:
                    store.add(replace(one, id=ids[1]))
            return super()._one(request)

    policy = Beaten(template, after=10**9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    request = CollectRequest(tasks=(asked(tmp_path, "a"),), group=2, concurrency=1)
    settings = settings_of(home)
    [found] = load_sets(request, settings)
    ids = [e.meta["id"] for e in make_plan(found, policy, request, settings, print).episodes]
    report = collect(request, settings, str(out))
    assert (report.episodes, report.known, sum(report.statuses.values())) == (2, 1, 1)


def test_unknown_sets_and_sets_for_testing_are_refused(home, tmp_path):
    for name, message in (("hotpotq", "hotpotq"), ("bamboogle", "testing only")):
        with pytest.raises(UsageError, match=message):
            collect(CollectRequest(tasks=(name,)), settings_of(home), str(tmp_path / "s.sqlite"))
