"""The trajectory store on real SQLite and real PostgreSQL."""

import dataclasses
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.exchange import export, import_
from agent.policies.base import Sampling
from agent.store import Filter, StoreError, TrajectoryStore
from agent.task import Task
from agent.threads import forget
from agent.trajectory import (
    Action,
    ActionKind,
    Span,
    Status,
    StopReason,
    Trajectory,
    TrajectoryError,
    Turn,
)
from kg.errors import UsageError
from tools.base import Observation, Source, Verdict

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
logprob = st.floats(-50, 0, width=32) | st.just(float("nan"))


@st.composite
def trajectories(draw):
    size = draw(st.integers(0, 12))
    ids = np.asarray(draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size)))
    values = draw(st.lists(logprob, min_size=size, max_size=size))
    source = Source("a", draw(text), draw(text), draw(st.floats(-5, 5)), number=1)
    observation = Observation(
        "search", draw(text), (source,), verdict=draw(st.sampled_from([None, *Verdict]))
    )
    kind = draw(st.sampled_from(list(ActionKind)))
    action = Action(kind, "search", {"query": draw(text)}, draw(text), draw(text), (1, 2))
    turn = Turn(
        (Span(0, size),), Span(size // 2, size), Span(size, size), draw(text), action, observation
    )
    return Trajectory(
        Task(draw(text), draw(text), (draw(text),), draw(st.sampled_from([None, True, False]))),
        "p@1", draw(st.integers(0, 9)), Sampling(temperature=draw(st.floats(0, 2))),
        draw(st.sampled_from(list(Status))), draw(st.sampled_from(list(StopReason))),
        (turn,), ids.astype(np.int32), np.asarray(values, dtype=np.float32),
        answer=draw(text), sources=(source,), history=((draw(text), draw(text)),),
        rewards=draw(st.dictionaries(text, st.floats(-2, 2), max_size=2)),
    )  # fmt: skip


def simple(number, **changes):
    values = {
        "answer": f"answer {number}", "status": Status.ANSWERED, "policy": "p@1",
        "created": f"2026-01-{number + 1:02d}T00:00:00", "rewards": {"em": float(number)},
        "seed": 0,
    }  # fmt: skip
    values.update(changes)
    return Trajectory(
        task=Task(f"t{number}", changes.pop("question", f"question {number}?")),
        sampling=Sampling(), stop_reason=StopReason.ANSWER, turns=(),
        token_ids=np.zeros(0, dtype=np.int32), logprobs=np.zeros(0, dtype=np.float32),
        **{k: v for k, v in values.items() if k != "question"},
    )  # fmt: skip


def same(a, b):
    return a.to_dict() == b.to_dict()


@given(trajectories())
def test_a_record_survives_its_json_form(trajectory):
    assert same(Trajectory.from_dict(trajectory.to_dict()), trajectory)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trajectories())
def test_what_is_stored_comes_back(store_url, trajectory):
    with TrajectoryStore.open(store_url) as store:
        assert store.add(trajectory)
        assert not store.add(trajectory)
        assert same(store.get(trajectory.id), trajectory)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(trajectories(), max_size=4), st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]))
def test_export_and_import_lose_nothing(tmp_path_factory, made, ending):
    folder = tmp_path_factory.mktemp("exchange")
    with (
        TrajectoryStore.open(folder / "a.sqlite") as old,
        TrajectoryStore.open(folder / "b.sqlite") as new,
    ):
        old.add_many(made)
        assert export(old, folder / f"out{ending}") == len(made)
        report = import_(new, folder / f"out{ending}")
        assert (report.added, report.skipped) == (len(made), 0)
        assert {t.id: t.to_dict() for t in new.query()} == {t.id: t.to_dict() for t in made}
        assert import_(new, folder / f"out{ending}").known == len(made)


def test_bad_rows_are_reported_and_skipped(tmp_path):
    path = tmp_path / "x.jsonl"
    with TrajectoryStore.open(tmp_path / "s.sqlite") as store:
        store.add(simple(1))
        export(store, path)
        good = path.read_text()
        path.write_text("{broken\n[1]\n" + good.replace('"format": 1', '"format": 99') + good[:40])
        report = import_(store, path)
    assert report.skipped == 4
    assert ":1: not JSON" in report.problems[0]
    assert "format 99" in report.problems[2]


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (Filter(task="t2"), [2]),
        (Filter(status="abstained"), [3]),
        (Filter(policy="q@2"), [4]),
        (Filter(reward_min=1, reward_max=2), [2, 1]),
        (Filter(since="2026-01-04", newest_first=False), [3, 4]),
        (Filter(until="2026-01-02"), [0]),
        (Filter(limit=2, offset=1), [3, 2]),
        (Filter(offset=3), [1, 0]),
        (Filter(limit=0), []),
        (Filter(group="g/1"), [4, 3]),
        (Filter(seed=7), [3]),
        (Filter(seed=0, group="g/1"), [4]),
        (Filter(policy="q@2", status="abstained"), []),
    ],
)
def test_filters(store_url, chosen, numbers):
    with TrajectoryStore.open(store_url) as store:
        store.add_many(simple(n) for n in range(3))
        store.add(simple(3, status=Status.ABSTAINED, group="g/1", seed=7))
        store.add(simple(4, policy="q@2", group="g/1"))
        assert [t.task.id for t in store.query(chosen)] == [f"t{n}" for n in numbers]
        assert [s.task for s in store.summaries(chosen)] == [f"t{n}" for n in numbers]
        if chosen.limit is None and not chosen.offset:
            assert store.count(chosen) == len(numbers)


def test_a_filter_that_is_none_is_refused():
    for wrong, message in (
        ({"status": "done"}, "no status 'done'"),
        ({"since": "yesterday"}, "since: "),
        ({"limit": -1}, "negative"),
        ({"offset": -1}, "negative"),
    ):
        with pytest.raises(UsageError, match=message):
            Filter(**wrong)


def test_full_text_search_takes_any_text(store_url):
    with TrajectoryStore.open(store_url) as store:
        store.add(simple(1, question="Who made the periodic table?", answer="Mendeleev"))
        store.add(simple(2, question="Is it 5 o'clock?", answer="no"))
        assert [s.task for s in store.search("periodic TABLE")] == ["t1"]
        assert [s.task for s in store.search("mendeleev")] == ["t1"]
        for odd in ("", '"', "a AND (", "* NEAR/2", "'; DROP TABLE episodes; --", "\u2028 ^ :"):
            assert isinstance(store.search(odd), list)
        assert store.count() == 2
        store.delete([store.search("periodic")[0].id])
        assert store.search("periodic") == []


def test_ids_may_be_shortened(store_url):
    with TrajectoryStore.open(store_url) as store:
        store.add(simple(1, id="abcdef01"))
        store.add(simple(2, id="abcdff02"))
        assert store.get("abcde").task.id == "t1"
        for wrong, message in (
            ("abcd", "beginning of"),
            ("abc", "too short"),
            ("zzzz", "no episode"),
        ):
            with pytest.raises(UsageError, match=message):
                store.get(wrong)


def test_rewards_are_added_later(store_url):
    with TrajectoryStore.open(store_url) as store:
        store.add(simple(1, id="abcdef01"))
        store.set_rewards("abcdef01", {"format": 0.5})
        assert store.get("abcdef01").rewards == {"em": 1.0, "format": 0.5}
        assert store.count(Filter(reward_min=1.5)) == 1


def test_many_writers_and_readers_at_once(store_url):
    stop = threading.Event()

    def read():
        with TrajectoryStore.open(store_url) as store:
            while not stop.is_set():
                assert all(len(t.id) == 32 for t in store.query())

    def write(first):
        with TrajectoryStore.open(store_url) as store:
            return sum(store.add(simple(n % 20)) for n in range(first, first + 25))

    with ThreadPoolExecutor(10) as pool:
        reader = pool.submit(read)
        try:
            written = list(pool.map(write, range(0, 200, 25)))
        finally:
            stop.set()
        reader.result(30)
    with TrajectoryStore.open(store_url) as store:
        assert sum(written) == store.count() == 200


def test_a_new_store_opens_while_another_process_makes_it(tmp_path):
    """SQLite itself does not wait for a writer when a connection turns the journal to WAL."""
    path = tmp_path / "s.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ["COMMIT"])
    release.start()
    with TrajectoryStore.open(path) as store:
        assert store.add(simple(1))
    release.join()
    other.close()


def test_a_reader_in_mid_query_blocks_no_writer(tmp_path):
    url = tmp_path / "s.sqlite"
    with TrajectoryStore.open(url) as store:
        store.add_many(simple(n) for n in range(5))
        reading = store.query()
        next(reading)
        with TrajectoryStore.open(url) as other:
            assert other.add(simple(9))
        assert len(list(reading)) == 4


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        TrajectoryStore.open(path)
    assert path.read_text().startswith("these are my notes")


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "s.sqlite"
    TrajectoryStore.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE turnwise_schema SET version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        TrajectoryStore.open(path)


def test_a_server_that_is_not_there_is_a_clear_error_without_the_password():
    with pytest.raises(StoreError, match="does not open") as caught:
        TrajectoryStore.open("postgresql://me:secret-word@127.0.0.1:9/x")
    assert "secret-word" not in str(caught.value)


def test_a_url_that_is_none_is_a_clear_error():
    with pytest.raises(StoreError, match="not one"):
        TrajectoryStore.open("nonsense://x")


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_there(tmp_path):
    with TrajectoryStore.open(tmp_path / "s.sqlite") as store:
        store.add(simple(1))
        with store._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        from sqlalchemy import event

        @event.listens_for(store._engine, "begin")
        def small(connection):
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1}")

        with pytest.raises(StoreError, match="full"):
            store.add(simple(2, answer="x" * 100_000))
        assert store.count() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 2}, "format 2"), ({"status": "odd"}, "odd"), ({"logprobs": [0.0]}, "logprobs")],
)
def test_a_wrong_record_is_named(change, message):
    with pytest.raises(TrajectoryError, match=message):
        Trajectory.from_dict({**simple(1).to_dict(), **change})


def test_a_span_outside_the_tokens_is_refused():
    """trl#5144: a mask longer than the ids."""
    turn = Turn((Span(0, 9),), Span(0, 0), Span(0, 0), "", Action(ActionKind.ANSWER))
    with pytest.raises(TrajectoryError, match="outside"):
        Trajectory.from_dict(_spanning(turn))


def _spanning(turn):
    from agent.trajectory import turn_to_dict

    return {**simple(1).to_dict(), "turns": [turn_to_dict(turn)]}


def test_a_damaged_episode_is_skipped_told_and_can_be_removed(tmp_path):
    whole, damaged = simple(0), simple(1)
    path = tmp_path / "store.sqlite"
    with TrajectoryStore.open(path) as store:
        store.add_many([whole, damaged])
        with sqlite3.connect(path) as file:
            file.execute("UPDATE episodes SET record = '{' WHERE id = ?", (damaged.id,))
        problems = []
        assert export(store, tmp_path / "all.jsonl", None, problems) == 1
        [problem] = problems
        assert damaged.id in problem
        assert "agent trace rm" in problem
        assert forget(store, [damaged.id], tmp_path / "threads.sqlite") == 1
        assert store.ids() == {whole.id}


@pytest.mark.parametrize("share", [0.95, 0.5, 0.3])
def test_what_is_left_of_a_store_that_was_cut_off_comes_over_and_the_rest_is_told(tmp_path, share):
    made = [simple(1, id=f"e{n:03d}", answer="word " * 100 * (n % 7)) for n in range(200)]
    path, cut = tmp_path / "store.sqlite", tmp_path / "cut.sqlite"
    with TrajectoryStore.open(path) as store:
        store.add_many(made)
        store.delete([made[3].id])
    data = path.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StoreError, match="malformed") as caught:
        TrajectoryStore.open(cut)
    assert f"agent trace import {cut} --store NEW" in caught.value.hint
    with TrajectoryStore.open(tmp_path / "new.sqlite") as store:
        report = import_(store, cut)
        found = list(store.query(Filter(newest_first=False)))
    assert 20 < report.added < 199
    whole = {one.id: one.to_dict() for one in made}
    assert {one.id: one.to_dict() for one in found}.items() <= whole.items()
    assert report.problems[-1].startswith(f"{cut}: cut off: nothing can be read behind episode ")
    last = int(report.problems[-1].split()[-1])
    assert report.added + len(report.problems) - 1 == last - 1  # one was removed before the cut
    assert cut.read_bytes() == data[: int(len(data) * share)]


def test_a_whole_store_is_imported_like_an_export(tmp_path):
    with TrajectoryStore.open(tmp_path / "a.sqlite") as one:
        one.add_many([simple(n) for n in range(3)])
        one.add(damaged := simple(4))
        with sqlite3.connect(tmp_path / "a.sqlite") as file:
            file.execute("UPDATE episodes SET record = '{' WHERE id = ?", (damaged.id,))
        with TrajectoryStore.open(tmp_path / "b.sqlite") as other:
            report = import_(other, tmp_path / "a.sqlite")
            assert (report.added, report.skipped, other.count()) == (3, 1, 3)
            assert import_(other, tmp_path / "a.sqlite").known == 3
    head = tmp_path / "head.sqlite"
    head.write_bytes((tmp_path / "a.sqlite").read_bytes()[:5000])
    told = pytest.raises(StoreError, match="nothing can be read of the store")
    with TrajectoryStore.open(tmp_path / "c.sqlite") as store, told:
        import_(store, head)


def test_an_episode_gives_way_to_its_whole(store_url):
    cut = simple(0)
    whole = dataclasses.replace(cut, answer="the whole")
    with TrajectoryStore.open(store_url) as store:
        store.replace(cut)
        store.replace(whole)
        assert store.get(cut.id).answer == "the whole"
        assert store.count() == 1
        assert [row.id for row in store.search("whole")] == [cut.id]
