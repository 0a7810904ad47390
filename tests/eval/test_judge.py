"""A judge over a real run; what it says is scripted, what is made of it is not."""

import json

import pytest

from eval.command import score
from eval.judge import judge_run, prompt_digest, read_verdict
from eval.score import score_run
from kg.errors import PolicyUnavailableError, UsageError
from tests.agent.scripted import ScriptedPolicy
from tests.eval.test_run import ask, policy, settings  # noqa: F401  fixtures


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("A", "correct"), (" B.", "incorrect"), ("C: it declines", "declined"), ("(A)", "correct"),
     ("Answer: A", "correct"), ("An answer", "unread"), ("", "unread"), ("a", "unread"),
     ("**A**", "correct"), ("A,", "correct"), ("`B`", "incorrect"),
     ("A: the given answer is", "correct"),
     ("A correct answer would be Rome: B", "incorrect"), ("A correct answer would be Rome.", "unread"),
     ("B. A correct answer would be Rome.", "incorrect"), ("A or B? Rome is right, so\nA", "correct"),
     ("Verdict: **C**. Vitamin B is no answer.", "declined"), ("My verdict is A.", "correct"),
     ("A\nThe vitamin is B in both.", "correct"), ("Grade-A nonsense", "unread"),
     ("<think>B? No: A.</think>\n\nC", "declined"), ("<think>A or B, hm, A is", "unread"),
     ("CAB", "unread"), ("B\n\n**Verdict:** A", "correct")],
)  # fmt: skip
def test_a_verdict_is_a_letter_that_stands_alone(text, verdict):
    assert read_verdict(text) == verdict


class Judge(ScriptedPolicy):
    """Says A where the gold answer is in the given one, and dies when told to."""

    calls = 0
    dies_at = 10**9
    budget = 0

    def _one(self, request):
        self.calls += 1
        self.budget = request.sampling.max_tokens
        if self.calls > self.dies_at:
            raise PolicyUnavailableError("gone")
        text = request.messages[0]["content"]
        gold = text.split("Accepted answers: ")[1].split("\n")[0].split("; ")
        answer = text.split("Given answer: ")[1].split("\n")[0]
        self.replies = ["A" if any(g.lower() in answer.lower() for g in gold) else "B"]
        return super()._one(request)


@pytest.fixture
def run(policy, settings, tmp_path):  # noqa: F811
    ask(settings, tmp_path / "a")
    return tmp_path / "a"


def test_a_judge_is_reported_with_its_agreement(run):
    found = judge_run(run, Judge([]))
    samples = [s for s in score_run(run).samples if s.answerable]
    assert found.accuracy.n == len(samples)
    right = sum(s.right == 1 for s in samples)
    assert round(found.accuracy.mean * len(samples)) >= right
    assert found.agreement == 1 - (found.only_judge + found.only_match) / len(samples)
    assert found.prompt == prompt_digest()
    assert -1 <= found.kappa <= 1
    declined = [s.id for s in samples if not s.answer]
    assert all(found.verdicts[id] == "declined" for id in declined)


def test_a_judge_that_reasons_gets_the_tokens_it_is_given(run):
    judge = Judge([])
    found = judge_run(run, judge, max_tokens=600)
    assert judge.budget == 600
    assert found.prompt == prompt_digest(600) != prompt_digest()


def test_a_report_says_what_the_judge_said(run):
    assert "## Judge" not in score(run, "", as_json=False)
    found = judge_run(run, Judge([]))
    said = f"judge {found.judge}, prompt {found.prompt}, n={found.accuracy.n}"
    assert said in score(run, "", as_json=False)
    assert said in (run / "report.html").read_text()


def test_judging_goes_on_where_it_stopped_and_with_the_same_judge_only(run):
    dying = Judge([])
    dying.dies_at = 5
    with pytest.raises(PolicyUnavailableError):
        judge_run(run, dying, concurrency=1)
    kept = json.loads((run / "judge.json").read_text())["verdicts"]
    asked = sum(verdict != "declined" for verdict in kept.values())
    assert asked == 5
    second = Judge([])
    whole = judge_run(run, second)
    answered = sum(v != "declined" for v in whole.verdicts.values())
    assert second.calls == answered - asked
    other = Judge([])
    other.version = "2"
    with pytest.raises(UsageError, match="was judged by"):
        judge_run(run, other)
    with pytest.raises(UsageError, match="was judged by"):
        judge_run(run, Judge([]), max_tokens=500)
    with pytest.raises(UsageError, match="0 tokens"):
        judge_run(run, Judge([]), max_tokens=0)
    (run / "judge.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        judge_run(run, Judge([]))


def test_an_answer_cannot_fill_the_judges_slots(run):
    from dataclasses import replace

    from eval.judge import _request

    sample = replace(score_run(run).samples[0], question="{answer} {gold}?", answer="x {0}")
    text = _request(Judge([]), sample).messages[0]["content"]
    assert "Question: {answer} {gold}?" in text
    assert "Given answer: x {0}" in text
