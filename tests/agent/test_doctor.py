"""The doctor on real settings: what is missing is named with the next command."""

import time

import pytest

from agent.doctor import check, summary
from agent.settings import load_settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_HOME", str(tmp_path / "home"))
    return load_settings


def named(checks):
    return {c.name: c for c in checks}


def test_a_fresh_home_has_nothing_broken(settings):
    began = time.monotonic()
    found = check(settings())
    assert time.monotonic() - began < 5
    assert summary(found) == 0, [c for c in found if c.status == "fail"]
    checks = named(found)
    assert checks["policy"].hint == "agent models pull default"
    assert checks["index"].status == "warn"
    assert checks["store"].detail.startswith("0 episodes")


def test_a_missing_corpus_and_a_broken_store_fail_with_the_next_command(settings, tmp_path):
    (tmp_path / "store").write_text("not a database at all" * 50)
    found = check(settings(corpus=(tmp_path / "nowhere",), store=str(tmp_path / "store")))
    checks = named(found)
    assert summary(found) == 1
    assert "does not exist" in checks["index"].detail
    assert "not a database" in checks["store"].detail
    assert all(c.hint for c in found if c.status == "fail")


def test_a_server_that_is_not_there_fails_without_showing_the_key(settings):
    found = check(settings(policy="http://127.0.0.1:9/v1", model="m", api_key="sk-secret"))
    policy = named(found)["policy"]
    assert policy.status == "fail"
    assert "sk-secret" not in policy.detail + policy.hint
