"""A policy that fails while a run is under way."""

import asyncio
import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from agent.policies.base import Completion, Policy
from agent.task import Task
from agent.trajectory import StopReason
from eval.analyses.given import OF
from eval.command import evaluate
from eval.failures import Failures, PolicyFailedError
from eval.folder import (
    keep_failed,
    open_store,
    read_failed,
    read_header,
)
from eval.score import score_run
from kg.errors import PolicyUnavailableError, UsageError
from tests.eval.runs import (
    ask,
    outcome,
    own_questions,
    questions,
    run_folder,
)


def test_going_on_asks_only_what_is_missing_and_what_failed(policy, settings, tmp_path):
    out = tmp_path / "a"
    policy.after = 20
    with pytest.raises(PolicyUnavailableError, match="in a row"):
        ask(settings, out, cache=False)
    broken = score_run(out).sets[0]
    assert 0 < broken.errors < 24
    assert broken.excluded.get("not run", 0) + broken.episodes == 24
    assert broken.answers["right"].mean < 1
    assert broken.without_errors.n + broken.errors == broken.episodes
    policy.after = None
    whole = ask(settings, out, cache=False)
    assert (whole.sets[0].episodes, whole.sets[0].errors) == (24, 0)
    calls = policy.made[-1].calls
    again = ask(settings, tmp_path / "b", cache=False)
    assert calls < policy.made[-1].calls
    assert outcome(whole) == outcome(again)
    ask(settings, out, cache=False)
    assert policy.made[-1].calls == 0


@pytest.mark.parametrize("limit", [5, 2])
def test_a_policy_that_is_gone_is_no_accuracy_of_zero(policy, lexical, tmp_path, limit):
    """Fewer questions than failures that end a run at once."""
    mine, out = own_questions(tmp_path / "mine.jsonl"), tmp_path / "a"
    policy.after, told = 0, []
    with pytest.raises(
        PolicyUnavailableError, match=r"on (\d) of \1 episodes: .* is gone"
    ) as caught:
        evaluate([mine], {"limit": limit}, lexical, out, False, told.append)
    assert caught.value.exit_code == 5
    assert f"agent eval score {out}" in caught.value.hint
    assert "| mine | squad2 | " in (out / "report.md").read_text()
    assert (out / "report.html").is_file()
    assert str(out / "report.html") in told[-1]
    assert read_header(out).finished == ""
    again = f"| mine | {limit} | attempts failed and were asked again |"
    policy.after = None
    for _ in range(2):  # the second has nothing to ask
        assert again in evaluate([mine], {"limit": limit}, lexical, out, False, told.append)
    [one] = score_run(out).sets
    assert (one.errors, one.asked_again) == (0, limit)
    header = read_header(out)
    assert header.created <= header.finished
    assert (header.limit, header.sets[0].data) == (limit, mine)


def test_a_failed_attempt_is_kept_once_however_often_it_is_written(tmp_path):
    with open_store(run_folder(tmp_path / "a", questions(2))) as store:
        episodes = list(store.query())
    for some in (episodes[:1], episodes):  # killed before the first was removed from the store
        keep_failed(tmp_path / "a", "set", some)
    assert [row["id"] for row in read_failed(tmp_path / "a")] == [one.id for one in episodes]
    assert score_run(tmp_path / "a").sets[0].asked_again == 2
    (tmp_path / "a" / "failed.jsonl").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_failed(tmp_path / "a")


def test_failures_in_a_row_count_across_sets(policy, lexical, tmp_path):
    sets = [own_questions(tmp_path / f"{name}.jsonl") for name in "abc"]
    policy.after = 0
    with pytest.raises(PolicyUnavailableError, match="8 questions in a row"):
        evaluate(sets, {"limit": 5, "concurrency": 1}, lexical, tmp_path / "r", False, print)
    assert [one.episodes for one in score_run(tmp_path / "r").sets] == [5, 3, 0]
    assert (tmp_path / "r" / "report.html").is_file()


def test_a_policy_that_is_gone_at_the_end_is_told(policy, lexical, tmp_path):
    mine = own_questions(tmp_path / "mine.jsonl")
    options = {"limit": 6, "concurrency": 1, "cache": False}
    evaluate([mine], options, lexical, tmp_path / "a", False, print)
    calls = policy.made[-1].calls
    policy.after, told = calls // 2, []
    with pytest.raises(PolicyUnavailableError, match=r"on the last [2-5] questions, of 6 episodes"):
        evaluate([mine], options, lexical, tmp_path / "b", False, print)
    policy.after = calls - 1
    evaluate([mine], options, lexical, tmp_path / "c", False, told.append)
    assert any("1 of 6 episodes failed" in line for line in told)


class Partly(Policy):
    """Three of four questions fail at once; the others are answered a little later."""

    name = version = "partly"

    def __init__(self):
        self.asked = []

    async def generate(self, requests):
        [request] = requests
        number = int(re.search(r"Who is (\d+)", request.messages[-1]["content"])[1])
        self.asked.append(number)
        if number % 4:
            raise PolicyUnavailableError("the server is gone")
        await asyncio.sleep(0.3)
        return [Completion("<answer>x</answer>")]

    async def aclose(self):
        pass


def test_what_is_under_way_when_the_policy_fails_too_often_is_finished(
    lexical, tmp_path, monkeypatch
):
    partly, closed = Partly(), lexical.model_copy(update={"tools": (), "format": "tags"})
    monkeypatch.setattr("eval.run.policy_of", lambda *_, **__: partly)
    mine = tmp_path / "mine.jsonl"
    mine.write_text(
        "".join(
            json.dumps({"question": f"Who is {n}?", "answers": ["x"]}) + "\n" for n in range(40)
        )
    )
    for asked, answered, failed in ((16, 4, 12), (32, 5, 15)):  # and the same command again
        with pytest.raises(PolicyUnavailableError, match="8 questions in a row"):
            evaluate(
                [str(mine)],
                {"concurrency": 16, "cache": False},
                closed,
                tmp_path / "a",
                False,
                print,
            )
        with open_store(tmp_path / "a") as store:
            found = Counter(str(one.status) for one in store.query())
        assert len(partly.asked) == asked
        assert found == {"answered": answered, "failed": failed}


@pytest.mark.parametrize(
    ("said", "answered", "error"),
    [
        # a letter is a question, a capital one that fails
        ("ABcdefABghiABkl", True, ""),
        ("ABCd", False, "on 3 of 4"),
        ("abcdCD", True, "on the last 2 questions, of 6"),
        ("A", False, "on 1 of 1"),
        ("A", True, ""),  # it fails whenever the run goes on
        ("AAAAAAAAAAAA", True, ""),  # all of its samples do
        ("bcdeAAA", True, ""),
        ("AB", True, "on 2 of 2"),
        ("ABABAB", True, "on 6 of 6"),
        ("ABCDEFGHijklmnopq", True, "8 questions in a row"),
        ("ABCDEFGijklmnopq", True, ""),
    ],
)
def test_when_a_policy_counts_as_failed(tmp_path, said, answered, error):
    failures = Failures(tmp_path)
    for one in said:
        reason = StopReason.POLICY_ERROR if one.isupper() else StopReason.ANSWER
        task = Task(one, "Who?")
        failures.note("set", SimpleNamespace(stop_reason=reason, error="gone", task=task))

    def judge():
        failures.check()
        failures.settle(answered)

    if not error:
        judge()
        return
    with pytest.raises(PolicyFailedError, match=error):
        judge()


def test_the_steps_of_a_question_fail_as_one(tmp_path):
    failures, steps = Failures(tmp_path), [Task(f"q#{n}", "Who?", meta={OF: "q"}) for n in range(9)]
    for step in steps:
        found = SimpleNamespace(stop_reason=StopReason.POLICY_ERROR, error="gone", task=step)
        failures.note("set", found)
    failures.check()
    failures.settle(answered=True)
