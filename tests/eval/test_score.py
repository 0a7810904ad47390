"""Scores of episodes built by hand: what counts, how often, and how sure it is."""

import math
import statistics
from dataclasses import replace

import pytest

from agent.graph import SPENT as SPENT_TEXT
from agent.trajectory import Status, StopReason
from eval.folder import SetHeader
from eval.metrics.choice import rmse
from eval.metrics.usage import usage
from eval.report import _markdown_table, _wrong_answers, tables
from eval.sample import score_one
from eval.score import RunScores, _with_evidence, set_scores
from tests.rl.rewards.episodes import abstain, answer, call, episode, malformed, search, task
from tools.base import Observation

UNANSWERABLE = task("Who directed Bliss?", answers=(), answerable=False, id="u")


def sample(*turns, of=None, scorer="squad2", **fields):
    done = episode(*turns, of=of or task(), **fields)
    return score_one("own", scorer, done.task, done)


def test_only_an_act_of_declining_is_right_where_there_is_no_answer():
    spent = {"status": Status.OVER_BUDGET, "stop_reason": StopReason.MAX_TOKENS}
    for turns, fields, right in (
        ([search(), abstain()], {}, 1),
        ([search(), abstain()], spent, 1),
        ([malformed(), malformed()], spent, 0),
        ([malformed()], {**spent, "status": Status.TRUNCATED}, 0),
        ([abstain()], {"status": Status.FAILED, "error": "boom"}, 0),
        ([answer("Ann")], {}, 0),
    ):
        one = sample(*turns, of=UNANSWERABLE, **fields)
        assert (one.right, one.em, one.f1, one.cover) == (right,) * 4
        assert one.abstained == bool(right)


def test_gold_passages_are_ranked_by_when_they_were_shown():
    ids = [f"p{n}" for n in range(6)]
    one = sample(
        search("x", *ids, ids=ids),
        search("y", "gold", ids=["g"]),
        answer("Ridley Scott", citations=(3, 7)),
        of=task(evidence=("g", "p2")),
    )
    found = one.retrieval
    assert (found["hit@5"], found["recall@5"], found["recall@10"], found["recall"]) == (
        1,
        0.5,
        1,
        1,
    )
    assert found["MRR"] == pytest.approx(1 / 3)
    best = 1 + 1 / math.log2(3)
    assert found["nDCG@10"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(8)) / best)
    scored = of([task(evidence=("g",))], [one])
    assert {name: value.mean for name, value in scored.retrieval.items()} == pytest.approx(found)
    assert "recall@5" in str(tables_of(scored))
    assert not sample(answer("Oslo")).retrieval


@pytest.mark.parametrize(
    ("said", "cites", "support", "joint"),
    [
        ("Ridley Scott", (1, 2), (1, 1), (1, 1)),
        ("Ridley Scott", (1,), (0, 2 / 3), (0, 2 / 3)),
        ("Scott", (1, 2, 3), (0, 0.8), (0, 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))),
        ("Ridley Scott", (), (0, 0), (0, 0)),
    ],
)
def test_cited_passages_are_scored_as_supporting_facts(said, cites, support, joint):
    texts = ["one", "two", "three"]
    one = sample(
        search("x", *texts, ids=["a", "b", "c"]),
        answer(said, citations=cites),
        of=task(evidence=("a", "b")),
        scorer="hotpotqa",
    )
    found = one.support
    assert (found["support EM"], found["support F1"]) == pytest.approx(support)
    assert (found["joint EM"], found["joint F1"]) == pytest.approx(joint)
    assert not sample(answer(said, citations=cites)).support


def tables_of(scored):
    return tables(RunScores(None, (scored,), ()))


def of(benchmark_tasks, samples, planned=1):
    return set_scores("own", "squad2", benchmark_tasks, samples, planned)


def asked(number, **fields):
    return task(f"Question {number}?", answers=("Rome",), id=f"q{number}", **fields)


def test_all_right_is_not_called_certain():
    tasks = [asked(n) for n in range(20)]
    found = of(tasks, [sample(answer("Rome"), of=one) for one in tasks])
    right = found.answers["right"]
    assert (right.mean, right.high, right.n) == (1, 1, 20)
    assert right.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    assert found.abstention["coverage"].low == right.low
    assert found.stop_shares["answer"].low == right.low


def test_every_figure_counts_questions_and_not_episodes():
    """One question with eight wrong samples weighs as much as one with a single right one."""
    tasks = [asked(n) for n in range(2)]
    many = [sample(answer("Oslo"), of=tasks[0], seed=seed) for seed in range(8)]
    found = of(tasks, [*many, sample(answer("Rome"), of=tasks[1])], planned=8)
    for figure in (found.answers["right"], found.abstention["accuracy when answered"]):
        assert (figure.mean, figure.n) == (0.5, 2)
    assert found.abstention["SimpleQA F1"].mean == pytest.approx(0.5)
    assert found.usage["turns / question"].n == 2
    assert (found.incomplete, found.missing) == (1, 7)
    assert found.several["pass@8"].n == 1


def test_a_figure_of_questions_that_are_not_there_is_left_out():
    known = [asked(n) for n in range(3)]
    found = of(known, [sample(answer("Rome"), of=one) for one in known]).abstention
    assert found["answerable F1"].mean == 1
    assert "unanswerable F1" not in found
    found = of([UNANSWERABLE], [sample(abstain(), of=UNANSWERABLE)]).abstention
    assert found["unanswerable F1"].mean == 1
    assert "answerable F1" not in found


def sure(confidence, *turns, of):
    return replace(sample(*turns, of=of), confidence=confidence)


def test_the_share_answered_stands_beside_the_figures_of_confidence():
    """Two policies of the same answers, one of which declines more: only the share tells them apart."""
    tasks = [asked(n) for n in range(6)]
    given = [sure(0.9, answer("Rome"), of=tasks[0]), sure(0.4, answer("Oslo"), of=tasks[1])]
    silent = [sample(abstain(), of=one) for one in tasks[2:]]
    few, all_ = of(tasks, [*given, *silent]), of(tasks[:2], given)
    assert few.calibration["AURC"].mean == all_.calibration["AURC"].mean == pytest.approx(0.25)
    shares = [one.calibration["share answered"] for one in (few, all_)]
    assert [(share.mean, share.n) for share in shares] == [(pytest.approx(1 / 3), 6), (1, 2)]
    assert few.risk_coverage[-1][0] == 1
    assert not of(tasks, silent).calibration


def test_yes_or_no_questions_have_the_roc_auc_of_their_label():
    said = [("yes", "yes", 0.9), ("yes", "no", 0.3), ("no", "yes", 0.2), ("no", "No.", 0.8)]
    tasks = [task(f"Q{n}?", answers=(gold,), id=f"q{n}") for n, (gold, _, _) in enumerate(said)]
    samples = [sure(c, answer(a), of=t) for t, (_, a, c) in zip(tasks, said, strict=True)]
    vague = task("Q9?", answers=("no",), id="q9")
    found = of([*tasks, vague], [*samples, sure(0.7, answer("perhaps"), of=vague)])
    auc = found.calibration["ROC-AUC of yes"]
    assert (auc.mean, auc.n) == (3 / 4, 4)
    assert "ROC-AUC of yes" in str(tables_of(of(tasks, samples)))
    other = sure(0.7, answer("Rome"), of=asked(9))
    assert "ROC-AUC of yes" not in of([*tasks, asked(9)], [*samples, other]).calibration


def numeric(number, gold, *said, scorer="number", **fields):
    """A question about a number and the samples of its answers."""
    one = task(f"Q{number}?", answers=gold if isinstance(gold, tuple) else (gold,), id=f"q{number}")
    turns = [answer(text) if text else abstain() for text in said]
    return one, [sample(turn, of=one, scorer=scorer, seed=n) for n, turn in enumerate(turns)]


def numbers_of(*questions, scorer="number", planned=1):
    tasks, samples = zip(*questions, strict=True)
    return set_scores("own", scorer, tasks, [s for group in samples for s in group], planned)


def test_questions_about_numbers_have_the_rmse_of_the_answers_that_are_one():
    asked = [
        numeric(0, "-2", "-2.5"),
        numeric(1, "4", "about 1 kcal/mol"),
        numeric(2, "3", "between 2 and 3"),
        numeric(3, "1", "very soluble"),
        numeric(4, "1", ""),
    ]
    found = numbers_of(*asked)
    assert found.numbers["RMSE"].mean == pytest.approx(math.sqrt((0.5**2 + 3**2) / 2))
    assert found.numbers["RMSE"].low == pytest.approx(0.5)
    assert found.numbers["RMSE"].high == pytest.approx(3)
    assert found.numbers["SD of gold"].mean == pytest.approx(3)
    share = found.numbers["share with a number"]
    assert (share.mean, share.n, found.numbers["RMSE"].n, found.no_number) == (2 / 5, 5, 2, 3)
    assert (found.answers["right"].mean, found.answers["right"].n) == (1 / 5, 5)
    shown = {title: (head, rows) for title, head, rows in tables_of(found)}
    head, rows = shown["Numbers (RMSE in the unit of the question)"]
    assert dict(zip(head, rows[0], strict=True))["RMSE"] == "2.15 [0.50, 3.00] (n=2)"
    left = shown["Left out or incomplete"][1]
    assert [row[:2] for row in left if "not answered with one number" in row[2]] == [("own", "3")]


def test_the_rmse_is_as_its_definition_and_weighs_questions_and_not_samples():
    golds, said = [0.5, -1.25, 3, 2], [1, -1, 1.5, 2]
    asked = [numeric(n, str(g), str(a)) for n, (g, a) in enumerate(zip(golds, said, strict=True))]
    found = numbers_of(*asked).numbers
    assert found["RMSE"].mean == pytest.approx(rmse(said, golds))
    assert found["SD of gold"].mean == pytest.approx(statistics.pstdev(golds))
    assert found["RMSE"].low < found["RMSE"].mean < found["RMSE"].high
    several = numbers_of(
        numeric(0, "0", "2", "2", "none"), numeric(1, "0", "0", "0", "0"), planned=3
    )
    assert several.numbers["RMSE"].mean == pytest.approx(math.sqrt(4 / 2))
    assert several.numbers["share with a number"].mean == pytest.approx((2 / 3 + 1) / 2)
    assert several.no_number == 0
    assert several.several["maj@3"].mean == 1 / 2


def test_the_nearest_of_several_gold_numbers_counts():
    found = numbers_of(numeric(0, ("5", "-2"), "-1"))
    assert found.numbers["RMSE"].mean == 1


def test_other_sets_have_no_rmse():
    text, number = numeric(0, "Rome", "3"), numeric(1, "3", "3")
    assert not numbers_of(text, number).numbers
    assert not numbers_of(numeric(1, "3", "3", scorer="squad"), scorer="squad").numbers
    silent = numbers_of(numeric(0, "3", "who knows"))
    assert list(silent.numbers) == ["share with a number"]
    assert (silent.numbers["share with a number"].mean, silent.no_number) == (0, 1)


def test_a_wrong_answer_that_is_none_says_how_the_episode_ended():
    wrong = [sample(abstain()), sample(malformed(), **SPENT), sample(answer("Oslo"))]
    page = _wrong_answers(wrong)
    assert page.count("(declined)") == page.count("(no answer: max_turns)") == 1
    assert ">Oslo<" in page


def test_calls_that_the_runtime_refused_are_not_counted():
    refused = call("search", seen=Observation("", SPENT_TEXT), query="alien director")
    used = usage(episode(search(), search(error="timed out"), refused, answer()))
    assert (used.searches, used.tool_calls, used.repeated, used.invalid) == (2, 2, 2, 1)


def test_questions_that_lack_samples_are_told():
    tasks = [asked(n) for n in range(3)]
    samples = [sample(answer("Rome"), of=one, seed=s) for one in tasks for s in range(2)][:-1]
    found = of(tasks, samples, planned=2)
    assert (found.incomplete, found.missing, found.several["maj@2"].n) == (1, 1, 2)
    assert not of(tasks, samples[::2], planned=2).several
    assert not of(tasks, samples[::2]).several


def majority_of(*said, of=None, **fields):
    one = of or asked(0, **fields)
    samples = [
        sample(turn, of=one, seed=seed, **({} if turn.action.kind != "malformed" else SPENT))
        for seed, turn in enumerate(said)
    ]
    return set_scores("own", "squad2", [one], samples, len(said)).several[f"maj@{len(said)}"].mean


SPENT = {"status": Status.OVER_BUDGET, "stop_reason": StopReason.MAX_TURNS}
CHOICES = {"choices": ["red", "blue", "green"], "right": 1}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ((malformed(), malformed(), answer("Rome")), 1),
        ((malformed(), malformed(), malformed()), 0),
        ((abstain(), abstain(), answer("Rome")), 0),
        ((answer("Rome"), answer("rome!"), answer("Oslo")), 1),
    ],
)
def test_what_said_nothing_has_no_vote(said, right):
    assert majority_of(*said) == right


def test_samples_of_a_choice_vote_by_choice():
    said = (answer("A"), answer("A) red"), answer("B"), answer("B) blue sky"), answer("blue"))
    assert majority_of(*said, of=task("Which?", answers=("blue",), meta=CHOICES)) == 1
    assert majority_of(*said[:3], of=task("Which?", answers=("blue",), meta=CHOICES)) == 0


def test_a_majority_for_declining_is_right_where_there_is_no_answer():
    assert majority_of(abstain(), malformed(), abstain(), answer("Ann"), of=UNANSWERABLE) == 1
    assert majority_of(malformed(), malformed(), of=UNANSWERABLE) == 0


def test_what_a_document_wrote_is_one_cell_of_markdown_and_loads_nothing():
    kind = "![x](https://host/seen.png) a\\|b <img src=x>"
    [*_, row] = _markdown_table((kind, (kind, "n"), [(kind, "1 [0.2, 0.4] (n=3)")])).split("\n")[
        :-1
    ]
    assert row == (r"| ![x]\(https://host/seen.png) a\\\|b &lt;img src=x> | 1 [0.2, 0.4] (n=3) |")


def own_set(name, samples):
    return [replace(one, benchmark=name, id=f"{name}-{n}") for n, one in enumerate(samples)]


def test_wrong_answers_of_a_later_set_are_shown_too():
    wrong = [sample(answer("Oslo")) for _ in range(120)]
    many, few = own_set("many", wrong), own_set("few", wrong[:7])
    page = _wrong_answers([*many, *few])
    assert page.count("<td>few</td>") == 7
    assert page.count("<td>many</td>") == 93
    assert "(127, 100 of them, of each set alike)" in page
    assert "Wrong answers (7)" in _wrong_answers(few)


@pytest.mark.parametrize(
    ("tools", "other_corpus", "shown", "why"),
    [
        ({"judge": "1"}, False, [], "closed-book"),
        ({"search": "1"}, True, [], "another corpus"),
        ({"search": "1"}, False, [], ""),
        ({"search": "1"}, True, ["g"], ""),
    ],
)
def test_a_table_of_zeros_that_no_policy_could_have_changed_is_left_out(
    tools, other_corpus, shown, why
):
    one = task(evidence=("g",))
    turns = [search("x", "text", ids=shown or ["p"])] if "search" in tools else []
    scored = of([one], [sample(*turns, answer("Oslo"), of=one)])
    header = SetHeader(
        name="own", scorer="squad2", tasks=1, skipped=[], tools=tools, other_corpus=other_corpus
    )
    found = _with_evidence(scored, header)
    titles = [title for title, _, _ in tables_of(found)]
    assert any("Retrieval" in title for title in titles) is not bool(why)
    assert any("Support" in title for title in titles) is not bool(why)
    assert why in found.no_evidence
    assert bool(found.no_evidence) is bool(why)
    assert found.no_evidence in str(tables_of(found)[-1])
