"""Settings of an evaluation, and a policy that fails when told to."""

import pytest

import eval.run as eval_run
from agent.settings import SearchSettings
from tests.eval.runs import Own, expert


@pytest.fixture
def settings(tmp_path):
    return Own(home=tmp_path / "home")


@pytest.fixture
def lexical(settings):
    """Without an encoder, which takes the longest to start."""
    return settings.model_copy(update={"search": SearchSettings(mode="lexical")})


@pytest.fixture
def policy(template, monkeypatch):
    made = []

    def opened(*_, **__):
        made.append(expert(template))
        if opened.after is not None:
            made[-1].after = opened.after
        return made[-1]

    opened.after = None
    opened.made = made
    monkeypatch.setattr(eval_run, "policy_of", opened)
    return opened
