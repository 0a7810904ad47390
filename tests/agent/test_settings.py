"""Settings: precedence, and mistakes that name their place."""

import os
from pathlib import Path

import pytest

from agent.settings import load_settings, origins
from kg.errors import UsageError


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("AGENT_HOME", "AGENT_POLICY", "AGENT_BUDGETS__TURNS", "AGENT_TOOLS"):
        monkeypatch.delenv(name, raising=False)


def test_flags_beat_environment_beats_project_beats_user(tmp_path, monkeypatch):
    (tmp_path / "config" / "turnwise").mkdir(parents=True)
    (tmp_path / "config" / "turnwise" / "agent.toml").write_text('policy = "user"\nseed = 4\n')
    assert load_settings().policy == "user"
    (tmp_path / "agent.toml").write_text('policy = "project"\n')
    assert (load_settings().policy, load_settings().seed) == ("project", 4)
    monkeypatch.setenv("AGENT_POLICY", "environment")
    assert load_settings().policy == "environment"
    assert load_settings(policy="flag").policy == "flag"


def test_nested_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AGENT_BUDGETS__TURNS", "3")
    assert load_settings().budgets.turns == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seed": "x"}, "seed"),
        ({"budgets": {"turns": 0}}, "budgets.turns"),
        ({"rule": "?"}, "rule"),
    ],
)
def test_wrong_values_are_named(flags, message):
    with pytest.raises(UsageError, match=message):
        load_settings(**flags)


def test_a_broken_settings_file_is_told(tmp_path):
    (tmp_path / "agent.toml").write_text("policy = ")
    with pytest.raises(UsageError, match="settings"):
        load_settings()


def test_one_variable_moves_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_HOME", str(tmp_path / "home"))
    settings = load_settings()
    for path in (settings.models_dir, settings.indexes_dir, settings.data_dir):
        assert path.is_relative_to(tmp_path / "home")


def test_the_key_is_neither_shown_nor_part_of_the_digest():
    settings = load_settings(api_key="sk-very-secret")
    assert "very-secret" not in repr(settings)
    assert settings.digest == load_settings().digest


@pytest.mark.parametrize(
    ("text", "name"), [('polcy = "x"', "polcy"), ("[budgets]\nturn = 3", "budgets.turn"),
                       ("[search]\nkk = 3", "search.kk")]
)  # fmt: skip
def test_a_misspelt_setting_is_told(tmp_path, monkeypatch, text, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_DATA", "elsewhere")  # not a setting, and none of its business
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(UsageError, match=f"'{name}': there is no such setting"):
        load_settings()


@pytest.mark.parametrize("name", ["policy", "store"])
def test_a_project_file_names_no_server(tmp_path, monkeypatch, name):
    monkeypatch.setenv("AGENT_API_KEY", "secret")
    url = "https://collector.example/v1"
    (tmp_path / "agent.toml").write_text(f'{name} = "{url}"\n')
    with pytest.raises(UsageError, match=f"names a server as '{name}'"):
        load_settings()
    (tmp_path / "agent.toml").unlink()
    (tmp_path / "config" / "turnwise").mkdir(parents=True)
    (tmp_path / "config" / "turnwise" / "agent.toml").write_text(f'{name} = "{url}"\n')
    assert getattr(load_settings(), name) == url


def test_lists_in_the_environment_are_plain_or_json(monkeypatch):
    monkeypatch.setenv("AGENT_TOOLS", "search, judge")
    monkeypatch.setenv("AGENT_CORPUS", os.pathsep.join(["notes", "papers.jsonl"]))
    assert load_settings().tools == ("search", "judge")
    assert load_settings().corpus == (Path("notes"), Path("papers.jsonl"))
    monkeypatch.setenv("AGENT_TOOLS", '["judge"]')
    assert load_settings().tools == ("judge",)
    monkeypatch.setenv("AGENT_TOOLS", "[judge")
    with pytest.raises(UsageError, match="tools"):
        load_settings()


def test_where_each_setting_comes_from(tmp_path, monkeypatch):
    (tmp_path / "agent.toml").write_text('seed = 4\napi_key = "secret"\n')
    monkeypatch.setenv("AGENT_POLICY", "micro")
    shown = {name: (value, origin) for name, value, origin in origins()}
    assert shown["policy"] == ("micro", "AGENT_POLICY")
    assert shown["seed"] == (4, "agent.toml")
    assert shown["dtype"] == ("auto", "default")
    assert shown["api_key"] == ("**********", "agent.toml")


def test_passwords_in_urls_are_not_shown(monkeypatch):
    monkeypatch.setenv("AGENT_STORE", "postgresql://me:pass/w@rd@host:5432/name?password=hidden")
    monkeypatch.setenv("AGENT_POLICY", "https://me:password@host/v1")
    shown = {name: value for name, value, _ in origins()}
    assert shown["store"] == "postgresql://***@host:5432/name?***"
    assert shown["policy"] == "https://***@host/v1"
    monkeypatch.setenv("AGENT_STORE", "a@b?.sqlite")
    assert {name: value for name, value, _ in origins()}["store"] == "a@b?.sqlite"
