"""What episodes are cached by."""

import pytest

import eval.folder as eval_folder
from agent.episode import ContextRule
from agent.trajectory import Status
from eval.compare import compare
from eval.folder import (
    open_store,
    read_header,
)
from kg.errors import UsageError
from tests.eval.runs import Failing, ask, outcome
from tools.search.tool import SearchTool


def test_the_cache_knows_everything_that_shapes_an_episode(policy, settings, tmp_path):
    first = ask(settings, tmp_path / "a")
    assert policy.made[-1].calls > 0
    second = ask(settings, tmp_path / "b")
    assert policy.made[-1].calls == 0
    assert outcome(first) == outcome(second)
    assert compare(tmp_path / "a", tmp_path / "b").sets[0].p == 1


def changed(settings, section, **values):
    """Settings with other values in one of their sections."""
    inner = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: inner})


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.model_copy(update={"observation_chars": 3000}),
        lambda s: s.model_copy(update={"seed": 5}),
        lambda s: s.model_copy(update={"system": "Answer."}),
        lambda s: s.model_copy(update={"format": "tool_call"}),
        lambda s: s.model_copy(update={"rule": ContextRule.SOFT}),
        lambda s: s.model_copy(update={"tools": ("search",)}),
        lambda s: changed(s, "budgets", turns=7),
        lambda s: changed(s, "sampling", max_tokens=99),
        lambda s: changed(s, "sampling", temperature=0.5),
        lambda s: changed(s, "search", k=2),
    ],
)
def test_a_setting_that_shapes_an_episode_is_in_the_cache_s_key(policy, lexical, tmp_path, change):
    ask(lexical, tmp_path / "a", limit=1)
    ask(change(lexical), tmp_path / "b", limit=1)
    assert policy.made[-1].calls > 0
    ask(lexical, tmp_path / "c", limit=1)
    assert policy.made[-1].calls == 0


def test_other_packages_compute_other_episodes(policy, lexical, tmp_path, monkeypatch):
    monkeypatch.setattr(Failing, "engine", "vllm float32")
    ask(lexical, tmp_path / "a", limit=1)
    monkeypatch.setattr(eval_folder, "_version", lambda package: f"{package} 99")
    ask(lexical, tmp_path / "b", limit=1)
    assert policy.made[-1].calls > 0
    with pytest.raises(UsageError, match=r"another setup\.\w+"):
        ask(lexical, tmp_path / "a", limit=1)
    told = read_header(tmp_path / "b").setup["packages"]
    assert {"torch", "vllm", "bm25s"} <= set(told)
    monkeypatch.setattr(Failing, "engine", "server http://127.0.0.1/v1")
    ask(lexical, tmp_path / "c", limit=1)
    assert set(read_header(tmp_path / "c").setup["packages"]) == {"faiss-cpu", "bm25s"}


def test_an_episode_in_which_a_tool_broke_is_not_cached(policy, settings, tmp_path, monkeypatch):
    search, broken = SearchTool.run, iter([True])

    async def once(self, arguments, context):
        if next(broken, False):
            raise OSError("the disk is gone")
        return await search(self, arguments, context)

    monkeypatch.setattr(SearchTool, "run", once)
    ask(settings, tmp_path / "a", limit=4)
    with open_store(tmp_path / "a") as store:
        [hurt] = [done for done in store.query() if done.fault]
    assert hurt.status is not Status.FAILED
    ask(settings, tmp_path / "b", limit=4)
    with open_store(tmp_path / "b") as store:
        [again] = [done for done in store.query() if done.task.id == hurt.task.id]
    assert not again.fault
    assert policy.made[-1].calls == len(again.turns)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("engine", "vllm bfloat16"),
        ("engine", "server http://b/v1"),
        ("context_length", 512),
        ("config_version", "0123"),
    ],
)
def test_the_same_weights_under_another_engine_are_asked_anew(
    policy, settings, tmp_path, monkeypatch, what, value
):
    ask(settings, tmp_path / "a", limit=4)
    monkeypatch.setattr(Failing, what, value)
    ask(settings, tmp_path / "b", limit=4)
    assert policy.made[-1].calls > 0
    with pytest.raises(UsageError, match=f"another setup.{what}.*now .*{value}"):
        ask(settings, tmp_path / "a", limit=4)
