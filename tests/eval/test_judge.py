"""A judge over a real run; what it says is scripted, what is made of it is not."""

import json
from dataclasses import replace

import pytest

import eval.command as command
from agent.task import Task
from eval.command import judged, score
from eval.judge import judge_run, lines, prompt_digest, read_verdict, summary
from eval.score import score_run
from kg.errors import PolicyUnavailableError, UsageError
from tests.agent.scripted import ScriptedPolicy
from tests.eval.runs import (
    ask,
    questions,
    run_folder,
)


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
def run(policy, settings, tmp_path):
    ask(settings, tmp_path / "a")
    return tmp_path / "a"


def test_a_judge_is_reported_with_its_agreement(run):
    found = judge_run(run, Judge([]))
    samples = [s for s in score_run(run).samples if s.answerable]
    assert found.accuracy.n == len(samples)
    said = [any(g.lower() in s.answer.lower() for g in s.gold if s.answer) for s in samples]
    same = [said == (s.right == 1) for said, s in zip(said, samples, strict=True)]
    assert found.accuracy.mean == pytest.approx(sum(said) / len(samples))
    assert found.agreement.mean == pytest.approx(sum(same) / len(samples))
    assert found.prompt == prompt_digest()
    declined = [s.id for s in samples if not s.answer]
    assert all(found.verdicts[id] == "declined" for id in declined)


#: Gold, answer: four are an exact match, and the judge accepts three of them and one other.
PAIRS = [("x", "x")] * 3 + [("x", "it is x"), ("x", "y"), ("x", "z"), ("x", ""), ("the x", "x")]


@pytest.fixture
def by_hand(tmp_path):
    tasks = [Task(f"q{n}", f"Who is {n}?", (gold,), True) for n, (gold, _) in enumerate(PAIRS)]
    said = {f"q{n}": answer for n, (_, answer) in enumerate(PAIRS)}
    return run_folder(tmp_path / "hand", tasks, said=lambda task: said[task.id])


def test_agreement_and_kappa_are_those_of_the_table_and_have_intervals(by_hand):
    found = judge_run(by_hand, Judge([]))
    assert (found.only_judge, found.only_match) == (1, 1)
    assert (found.agreement.mean, found.agreement.n) == (6 / 8, 8)
    assert found.agreement.low < 6 / 8 < found.agreement.high < 1
    assert (found.kappa.mean, found.kappa.n) == (pytest.approx(0.5), 8)
    assert found.kappa.low < 0.5 < found.kappa.high
    told = list(lines(found))[-1]
    assert f"on {found.agreement.shown} % (kappa 0.50 [" in told


def test_samples_of_one_question_are_one_question_of_the_agreement(by_hand):
    samples = score_run(by_hand).samples
    more = [replace(samples[3], id=f"more{n}", seed=n + 1) for n in range(40)]
    verdicts = {s.id: "correct" if "x" in s.answer and s.gold == ("x",) else "incorrect"
                for s in (*samples, *more)}  # fmt: skip
    found = summary("j", [*samples, *more], verdicts, "p")
    assert (found.agreement.mean, found.agreement.n) == (6 / 8, 8)
    assert found.kappa.mean == pytest.approx(0.5)
    assert found.only_judge == 41


def test_where_both_say_the_same_of_all_there_is_no_kappa(tmp_path):
    found = judge_run(run_folder(tmp_path / "a", questions(4)), Judge([]))
    assert (found.agreement.mean, found.kappa) == (1, None)
    assert found.agreement.low < 1
    assert "no kappa" in list(lines(found))[-1]


def test_answers_that_a_judge_sees_a_part_of_are_counted(tmp_path):
    many = tuple(f"gold{n};" for n in range(11))
    tasks = [Task("q0", "Who?", many, True), *questions(3)[1:]]
    said = {"q0": "gold10;", "q1": "y" * 500 + "x", "q2": "x"}
    run = run_folder(tmp_path / "a", tasks, said=lambda task: said[task.id])
    found = judge_run(run, Judge([]))
    assert found.cut == 2
    assert list(found.verdicts.values()).count("correct") == 1
    assert "2 answers judged by a part: of the accepted ones the first 10" in "\n".join(
        lines(found)
    )


def test_a_report_that_another_scorer_made_stays_its_when_it_is_judged(by_hand, monkeypatch):
    monkeypatch.setattr(command, "policy_of", lambda *told: Judge([]))

    def agreed(scorer=""):
        return json.loads(judged(by_hand, None, 8, 8, scorer, True, print))["agreement"]["mean"]

    def scored_by():
        return json.loads((by_hand / "scores.json").read_text())["sets"][0]["scorer"]

    assert (agreed(), scored_by()) == (6 / 8, "squad2")  # never scored: the set's own
    score(by_hand, "igpo", as_json=False)
    assert (agreed(), scored_by()) == (7 / 8, "igpo")  # IGPO keeps articles: no match either
    assert "agrees with exact match on 87.5" in (by_hand / "report.md").read_text()
    assert (agreed("squad2"), scored_by()) == (6 / 8, "squad2")
    (by_hand / "scores.json").write_text("{}")
    with pytest.raises(UsageError, match=r"scores\.json is damaged"):
        agreed()


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
    from eval.judge import _request

    sample = replace(score_run(run).samples[0], question="{answer} {gold}?", answer="x {0}")
    text = _request(Judge([]), sample).messages[0]["content"]
    assert "Question: {answer} {gold}?" in text
    assert "Given answer: x {0}" in text
