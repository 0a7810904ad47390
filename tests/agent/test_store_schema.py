"""Stores of older versions, of other programs, and records that other programs wrote."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from agent.record import check_types, logprob_array, token_array, utc
from agent.store import SCHEMA_VERSION, Filter, StoreError, TrajectoryStore
from agent.store.connection import label, make_engine
from agent.task import Task
from agent.trajectory import Trajectory, TrajectoryError
from kg.errors import UsageError
from tests.agent.test_store import simple

_V1_TRIGGERS = (
    "CREATE VIRTUAL TABLE episodes_text USING fts5"
    "(question, answer, content='episodes', content_rowid='seq')",
    "CREATE TRIGGER episodes_added AFTER INSERT ON episodes BEGIN INSERT INTO "
    "episodes_text(rowid, question, answer) VALUES (new.seq, new.question, new.answer); END",
)


def version_1(url, trajectories):
    """A store as the first version of the schema laid it out."""
    metadata = sa.MetaData()
    texts = ("id", "created", "task", "grp", "policy", "status", "stop_reason")
    table = sa.Table(
        "episodes",
        metadata,
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        *(sa.Column(name, sa.String(256), nullable=False, index=name != "id") for name in texts),
        sa.Column("reward", sa.Float, index=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("question", "answer", "record")),
        *(sa.Column(name, sa.LargeBinary, nullable=False) for name in ("token_ids", "logprobs")),
    )
    versions = sa.Table("turnwise_schema", metadata, sa.Column("version", sa.Integer))
    engine = make_engine(url)
    with engine.execution_options(writes=True).begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(versions).values(version=1))
        if engine.dialect.name == "sqlite":
            for statement in _V1_TRIGGERS:
                connection.exec_driver_sql(statement)
        for one in trajectories:
            record = one.to_dict()
            connection.execute(
                sa.insert(table).values(
                    id=one.id, created=one.created, task=one.task.id, grp=one.group,
                    policy=one.policy, status=one.status, stop_reason=one.stop_reason,
                    reward=sum(one.rewards.values()), question=one.task.question,
                    answer=one.answer, record=json.dumps(record),
                    token_ids=one.token_ids.astype("<i4").tobytes(),
                    logprobs=one.logprobs.astype("<f4").tobytes(),
                )
            )  # fmt: skip
    engine.dispose()


def test_a_store_of_the_first_version_is_brought_up_and_keeps_its_episodes(store_url):
    old = [replace(simple(n), seed=n) for n in range(3)]
    version_1(store_url, old)
    for _ in range(2):  # the second opening has nothing to do
        with TrajectoryStore.open(store_url) as store:
            assert {t.id for t in store.query()} == {t.id for t in old}
            assert [t.task.id for t in store.query(Filter(seed=2))] == ["t2"]
            assert [s.task for s in store.search("question 1")] == ["t1"]
            assert [t.task.id for t in store.query(Filter(since="2026-01-03"))] == ["t2"]
    engine = make_engine(store_url)
    with engine.begin() as connection:
        version = connection.exec_driver_sql("SELECT version FROM turnwise_schema").scalar_one()
    engine.dispose()
    assert version == SCHEMA_VERSION


def test_a_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    engine = make_engine(str(path))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE customers (name TEXT)")
    engine.dispose()
    with pytest.raises(StoreError, match="another program"):
        TrajectoryStore.open(path)
    engine = make_engine(str(path))
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["customers"]
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hidden@host/db?sslmode=require",
        "postgresql://host/db?user=me&password=hidden",
    ],
)
def test_a_label_never_shows_a_password(url):
    assert "hidden" not in label(make_engine(url))


def test_times_of_all_zones_sort_as_one(store_url):
    with TrajectoryStore.open(store_url) as store:
        store.add(simple(1, created="2026-03-01T12:00:00+02:00"))
        store.add(simple(2, created="2026-03-01T10:30:00"))
        store.add(simple(3, created="2026-03-01T11:00:00Z"))
        found = store.query(Filter(since="2026-03-01T12:10+02:00", newest_first=False))
        assert [t.task.id for t in found] == ["t2", "t3"]


@pytest.mark.parametrize(
    "chosen", [{"since": "yesterday"}, {"status": "odd"}, {"limit": -1}, {"offset": -1}]
)
def test_a_filter_that_cannot_be_is_refused(chosen):
    with pytest.raises(UsageError):
        Filter(**chosen)


def test_utc_takes_dates_and_zones_and_refuses_the_rest():
    assert utc("2026-01-31") == "2026-01-31T00:00:00.000000+00:00"
    assert utc("2026-01-31T09:00+01:00") == "2026-01-31T08:00:00.000000+00:00"
    for wrong in ("", "soon", "2026-13-01", "0001-01-01T00:00:00+23:00"):
        with pytest.raises(ValueError, match="ISO 8601"):
            utc(wrong)


@pytest.mark.parametrize("wrong", [["7"], [1.5], [2**31], [True], [None]])
def test_token_ids_of_another_type_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        token_array(wrong)


def test_arrays_of_a_record():
    assert token_array([]).dtype == np.int32
    assert np.isnan(logprob_array([None, -1.0])[0])
    with pytest.raises(ValueError, match="not numbers"):
        logprob_array(["x"])


def test_check_types_names_the_place():
    with pytest.raises(ValueError, match=r"answers\[1\]: int where str belongs"):
        check_types(Task("a", "q", ("x", 3)), Task)
    with pytest.raises(ValueError, match="question: NoneType"):
        check_types(Task("a", None), Task)
    check_types(Task("a", "q", answerable=None), Task)


@pytest.mark.parametrize("id", ["", "x" * 65, "a\nb", "\x1b[31m"])
def test_an_id_that_a_terminal_or_url_cannot_hold_is_refused(id):
    with pytest.raises(TrajectoryError, match="printable"):
        Trajectory.from_dict({**simple(1).to_dict(), "id": id})
