"""Introspection over a real run; the votes are scripted, what is made of them is not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.analyses.introspection import FILE, consensus, introspect, read_vote, summary, table
from eval.score import score_run
from kg.errors import PolicyUnavailableError, UsageError
from tests.agent.scripted import ScriptedPolicy
from tests.eval.runs import (
    ask,
)


@pytest.mark.parametrize(
    ("text", "vote"),
    [("Yes.", "yes"), ("no", "no"), ("I know: no", "no"), ("maybe", "unread"), ("", "unread"),
     ("nobody", "unread"), ("NO, yes", "no")],
)  # fmt: skip
def test_a_vote_is_the_first_yes_or_no(text, vote):
    assert read_vote(text) == vote


@given(st.permutations(["yes"] * 5 + ["no"] * 3))
def test_consensus_does_not_depend_on_order(votes):
    assert consensus(votes) == 5 / 8


def test_consensus_goes_from_evenly_split_to_agreed():
    assert consensus(["yes"] * 8) == consensus(["no"] * 8) == 1
    assert consensus(["yes"] * 4 + ["no"] * 4) == 0.5
    assert consensus(["unread"] * 8) == 0
    assert consensus(["yes"] * 4 + ["unread"] * 4) == 0.5


class Oracle(ScriptedPolicy):
    """Says yes to the questions named, no to the others; dies when told to."""

    def __init__(self, known, dies_at=10**9):
        super().__init__([])
        self.known, self.dies_at, self.calls = known, dies_at, 0

    def _one(self, request):
        self.calls += 1
        if self.calls > self.dies_at:
            raise PolicyUnavailableError("gone")
        text = request.messages[0]["content"]
        question = text.split("Question: ")[1].split("\n")[0]
        self.replies = ["yes" if question in self.known else "no"]
        return super()._one(request)


@pytest.fixture
def run(policy, settings, tmp_path):
    ask(settings, tmp_path / "a")
    return tmp_path / "a"


def test_a_policy_that_knows_itself_is_told_from_one_that_says_yes_to_all(run):
    samples = [
        replace(sample, right=float(number % 3 == 0), answerable=number % 2 == 0)
        for number, sample in enumerate(score_run(run).samples)
    ]
    able = {s.task for s in samples if s.right and s.answerable}
    name = samples[0].benchmark

    def cast(says_yes):
        return {f"{name}/{s.task}/{n}": says_yes(s) for s in samples for n in range(3)}

    seeds = range(3)
    knowing = summary(name, samples, cast(lambda s: "yes" if s.task in able else "no"), seeds)
    assert (knowing.consensus.mean, knowing.against_right.mean, knowing.f1_right.mean) == (1, 1, 1)
    assert knowing.says_yes.mean == pytest.approx(len(able) / len(samples))
    boasting = summary(name, samples, cast(lambda s: "yes"), seeds)
    assert (boasting.consensus.mean, boasting.says_yes.mean, boasting.f1_label.mean) == (1, 1, 0)
    assert boasting.against_right.mean == pytest.approx(len(able) / len(samples))
    labels = summary(name, samples, cast(lambda s: "yes" if s.answerable else "no"), seeds)
    assert (labels.against_label.mean, labels.f1_label.mean) == (1, 1)
    mute = summary(name, samples, cast(lambda s: "unread"), seeds)
    assert (mute.unread.mean, mute.consensus.mean, mute.says_yes.mean) == (1, 0, 0)


def test_every_figure_has_its_interval_and_its_number_of_questions(run):
    samples = [
        replace(sample, right=float(number % 3 != 1), answerable=number % 2 == 0)
        for number, sample in enumerate(score_run(run).samples)
    ]
    name, n = samples[0].benchmark, len(samples)
    said = {
        f"{name}/{s.task}/{seed}": ("yes", "no", "unread")[(number + seed) % 3]
        for number, s in enumerate(samples)
        for seed in (0, 1)
    }
    found = summary(name, samples, said, range(2))
    shares = (found.unread, found.says_yes, found.against_right, found.against_label)
    for one in (*shares, found.f1_right, found.f1_label):
        assert one.low < one.mean < one.high
        assert one.n == n
    assert found.unread.mean == pytest.approx(2 / 3 / 2, abs=1 / n)
    none_right = summary(name, [replace(s, right=0.0) for s in samples], said, range(2))
    assert none_right.f1_right is None
    head, _, row = table([found]).splitlines()
    assert head.startswith("| set | n | votes | unread, % |")
    assert row.startswith(f"| {name} | {n} | 2 | {found.unread.shown} |")
    assert found.f1_right.shown in row
    assert row.count("[") + row.count("(no spread)") == 7


def test_another_seed_is_asked_anew_and_the_same_is_not(run):
    asked = len(score_run(run).samples)
    every = {sample.question for sample in score_run(run).samples}
    introspect(run, Oracle(set()), votes=2, seed=0)
    other = Oracle(every)
    [found] = introspect(run, other, votes=2, seed=5)
    assert (other.calls, found.says_yes.mean) == (2 * asked, 1)
    again, seen = Oracle(every), []
    [found] = introspect(run, again, votes=2, seed=0, advance=lambda *now: seen.append(now))
    assert (again.calls, seen, found.says_yes.mean) == (0, [], 0)
    between = Oracle(every)
    introspect(run, between, votes=2, seed=1, advance=lambda *now: seen.append(now))
    assert between.calls == asked  # seed 1 is there
    assert seen[-1] == ("introspected", 2 * asked, 2 * asked)


def test_a_right_decline_is_no_answer_that_the_policy_could_give(run):
    """Half is answered rightly and voted yes, half is rightly declined and voted no: all as forecast."""
    samples = [
        replace(sample, right=1.0, answerable=number % 2 == 0)
        for number, sample in enumerate(score_run(run).samples)
    ]
    name = samples[0].benchmark
    said = {f"{name}/{s.task}/0": "yes" if s.answerable else "no" for s in samples}
    found = summary(name, samples, said, range(1))
    assert (found.against_right.mean, found.f1_right.mean) == (1, 1)


def test_introspection_goes_on_where_it_stopped_and_with_the_same_policy_only(run):
    dying = Oracle(set(), dies_at=5)
    with pytest.raises(PolicyUnavailableError):
        introspect(run, dying, votes=2, concurrency=1)
    assert len(json.loads((run / FILE).read_text())["votes_by_seed"]) == 5
    rest = Oracle(set())
    [found] = introspect(run, rest, votes=2)
    assert rest.calls == 2 * len(score_run(run).samples) - 5
    assert found.says_yes.mean == 0
    with pytest.raises(UsageError, match="was introspected by"):
        introspect(run, rest, votes=2, temperature=0.5)
    with pytest.raises(UsageError, match="0 votes"):
        introspect(run, rest, votes=0)
