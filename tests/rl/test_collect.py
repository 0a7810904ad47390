"""Collection with the real micro policy on a small world: groups, seeds, kills, actors, bad input."""

import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.checkpoints import checkpoints
from agent.settings import load_settings
from agent.store import TrajectoryStore
from agent.threads import Threads
from agent.trajectory import Status
from eval.fictional.make import make_world
from kg.errors import PolicyUnavailableError, UsageError
from rl.collect import CollectRequest, collect, journal, load_sets, make_plan
from tests import forked
from tests.agent.scripted import ScriptedPolicy

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("TURNWISE_KILLS", "10"))


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
        str(ROOT / "cli.py"), "collect", str(world), "--policy", "micro", "--out",
        str(out), "--group", "3", "--limit", "4", "--concurrency", "4", *more,
    ]  # fmt: skip


def environment(home):
    return {**os.environ, "AGENT_HOME": str(home), "AGENT_SEARCH__MODE": "lexical"}


def killed(world, out, home, seconds):
    """Begin or go on, and be killed so long after the episodes began."""
    with forked.Forked(
        command(world, out), env=environment(home), stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith("collected"):
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)


def in_mid_air(path):
    """Episodes of a killed process by id, as they lie on disk."""

    async def read():
        async with checkpoints(path) as saver:
            saved = {
                id: await saver.aget_tuple({"configurable": {"thread_id": id}})
                for id in Threads(path).ids()
            }
        return {id: one.checkpoint["channel_values"].get("episode") for id, one in saved.items()}

    return asyncio.run(read())


def goes_on(begun, done):
    """Whether a finished episode holds what was there when its process was killed: a turn that was
    sampled again would have taken another time."""
    size = len(begun.token_ids)
    turns = [
        [(turn.text, turn.reply, turn.started, turn.policy_seconds) for turn in one.turns]
        for one in (begun, done)
    ]
    logprobs = np.asarray(begun.logprobs, dtype=np.float32)
    return (
        turns[0] == turns[1][: len(turns[0])]
        and list(begun.token_ids) == done.token_ids[:size].tolist()
        and np.array_equal(logprobs, done.logprobs[:size], equal_nan=True)
    )


def test_killed_again_and_again_it_ends_as_if_it_had_not_been(world, home, whole, tmp_path):
    """SIGKILL at random moments: the same ids, tokens and log-probabilities, no half episode, and
    nothing that was sampled is sampled again."""
    out, chance, left = tmp_path / "killed.sqlite", random.Random(7), []
    with TrajectoryStore.open(out) as store:
        path = journal(store, settings_of(home))
    for _ in range(KILLS):
        killed(world, out, home, chance.uniform(0.1, 1.5))
        assert all(t.turns and t.status is not Status.FAILED for t in contents(out).values())
        left.append({id: one for id, one in in_mid_air(path).items() if id not in contents(out)})
    done = subprocess.run(
        [sys.executable, *command(world, out, "--json")], env=environment(home), text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] == len(left[-1])
    assert Threads(path).ids() == set()
    found = contents(out)
    begun = [(id, one) for some in left for id, one in some.items() if one and one.turns]
    assert begun, "no kill hit an episode after its first turn"
    assert all(goes_on(one, found[id]) for id, one in begun)
    expected = {id: t for id, t in contents(whole).items() if t.seed < 3}
    assert found.keys() == expected.keys()
    assert len(found) == 12
    same = [found[id].token_ids.tolist() == t.token_ids.tolist() for id, t in expected.items()]
    assert all(same), f"{same.count(False)} of {len(same)} differ; {len(begun)} were resumed"
    for id, t in expected.items():
        assert np.allclose(found[id].logprobs, t.logprobs, rtol=0, atol=1e-4, equal_nan=True)


def test_two_actors_collect_the_same(world, home, whole, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    out = tmp_path / "actors.sqlite"
    report = collect(request_of(world, actors=2, limit=2), settings_of(home), str(out))
    assert (report.episodes, report.known) == (6, 0)
    expected, found = contents(whole), contents(out)
    assert found.keys() <= expected.keys()
    assert sorted(Counter(t.group for t in found.values()).values()) == [3, 3]
    for id, t in found.items():
        assert t.token_ids.tolist() == expected[id].token_ids.tolist()
        assert t.group == expected[id].group


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from rl.collect_ray import _cluster

    with _cluster(2):
        yield ray


def test_an_actor_that_fails_or_dies_loses_nobody_elses_episodes(whole, cluster):
    from rl.collect_ray import _stream

    expected = list(contents(whole).values())[:6]
    records = [json.dumps(t.to_dict()) for t in expected]

    class Frail:
        """Raises in the second episode and dies of the third."""

        def play(self, plan, number):
            if number == 1:
                raise ValueError("odd")
            if number == 2:
                os._exit(1)
            return records[number]

    lost = []
    actors = [cluster.remote(num_cpus=0)(Frail).remote() for _ in range(2)]
    jobs = iter([(0, number) for number in range(6)])
    found = list(_stream(cluster, actors, jobs, 2, lost))
    assert {t.id for t in found} == {t.id for i, t in enumerate(expected) if i not in (1, 2)}
    assert len(lost) == 2
    assert any(isinstance(error, ValueError) for error in lost)
    assert any(isinstance(error, cluster.exceptions.RayActorError) for error in lost)


@pytest.mark.parametrize(("at_once", "expected"), [(3, 3), (1, 2)])
def test_the_actors_share_the_episodes_at_once(whole, cluster, at_once, expected):
    from rl.collect_ray import _stream

    record = json.dumps(next(iter(contents(whole).values())).to_dict())
    handed_out = []

    class Plain:
        def play(self, plan, number):
            return record

    def jobs():
        for number in range(9):
            handed_out.append(number)
            yield 0, number

    actors = [cluster.remote(num_cpus=0)(Plain).remote() for _ in range(2)]
    stream = _stream(cluster, actors, jobs(), at_once, [])
    next(stream)
    assert len(handed_out) == expected + 1  # one came back, and one took its place
    assert len(list(stream)) == 8


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
    """One episode's search hangs until its time-out; the others, of this set and of the next, are done
    long before."""
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
    make_world(tmp_path / "next", 6, 60, 60)
    sets = (str(world), str(tmp_path / "next"))
    request = CollectRequest(tasks=sets, limit=2, group=3, concurrency=4)
    collect(
        request, settings_of(home, tool_seconds=9.0),
        str(tmp_path / "s.sqlite"), advance=lambda *_: seconds.append(time.perf_counter() - began),
    )  # fmt: skip
    assert len(seconds) == 13  # before the first, and after each
    assert seconds[-2] < 9 <= seconds[-1] + 0.5


def test_no_episode_ends_by_the_clock_unless_a_limit_is_named(world, home, template):
    def budgets(**flags):
        settings = settings_of(home, **flags)
        [found] = load_sets(request_of(world), settings)
        plan = make_plan(found, ScriptedPolicy([], template), request_of(world), settings, print)
        return plan.setup.budgets.seconds, plan.setup.final_seconds

    assert budgets() == (math.inf, math.inf)
    assert budgets(budgets={"turns": 3})[0] == math.inf
    assert budgets(budgets={"seconds": 40.0}) == (40.0, 60.0)


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


def test_progress_tells_tokens_as_they_are_spent(home, tmp_path, template, monkeypatch, capsys):
    from rl.command import collected

    policy = Stubborn(template, after=10**9)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    options = {"tasks": [asked(tmp_path, "a")], "group": 3}
    told = []
    text = collected(options, settings_of(home), str(tmp_path / "s.sqlite"), True, told.append)
    report, lines = json.loads(text), capsys.readouterr().err.splitlines()
    assert report["sampled_tokens"] > 0
    spent = f"{report['sampled_tokens']:,} tokens sampled, {report['prompt_tokens']:,} read"
    assert lines[0].endswith("0 tokens sampled, 0 read")
    assert lines[-1].startswith("collected: 3/3")
    assert lines[-1].endswith(spent)


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
