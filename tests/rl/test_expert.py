"""The scripted expert through the real tools: what it demonstrates is right and varied."""

from collections import Counter

import pytest

from agent.corpus_index import index_of
from agent.settings import SearchSettings, load_settings
from agent.trajectory import Status
from eval.benchmarks import load
from eval.metrics import exact_match
from rl.guidance.demonstrations import demonstrate
from rl.guidance.expert import keywords
from rl.recipe import Demonstrations


def play(source, data, template, **options):
    recipe = Demonstrations(sources={source: 1}, **options)
    indexes = load_settings().indexes_dir
    return list(
        demonstrate(
            recipe, data, template, lambda b: index_of(b.corpus, indexes), SearchSettings(), 3
        )
    )


@pytest.fixture(scope="module")
def library(template, data):
    return play("library", data, template, misleading=0.3)


def test_every_kept_demonstration_ends_right(library):
    assert len(library) > 150
    gave_up = 0
    for done in library:
        if done.status is Status.ANSWERED:
            assert exact_match(done.answer, done.task.answers)
            assert done.citations
        else:
            assert done.status is Status.ABSTAINED
            if done.task.answerable:
                gave_up += 1
                assert not set(done.task.evidence) <= {s.id for s in done.sources}
    assert gave_up <= 0.1 * len(library)


def test_the_cited_source_is_gold_evidence(library):
    for done in library:
        cited = {s.id for s in done.sources if s.number in done.citations}
        if done.status is Status.ANSWERED:
            assert cited & set(done.task.evidence)


def test_misleading_queries_carry_no_loss_and_are_recovered_from(library):
    astray = [done for done in library if not done.turns[0].sampled]
    assert len(astray) > 20
    recovered = 0
    for done in astray:
        assert not done.sampled[slice(*done.turns[0].reply)].any()
        verdicts = [
            t.observation.verdict for t in done.turns if t.observation and t.observation.verdict
        ]
        recovered += verdicts[0] == "no" and done.status is Status.ANSWERED
    assert recovered > 10


def test_there_are_one_and_two_searches(library):
    searches = Counter(sum(t.action.name == "search" for t in done.turns) for done in library)
    assert searches[1] > 50
    assert searches[2] > 10


def test_keywords_drop_what_a_search_does_not_need():
    assert keywords("What is the boiling point of caffeine?") == "boiling point caffeine"


@pytest.mark.data
def test_no_held_out_question_is_played(data):
    for name in ("hotpotqa", "2wikimultihopqa", "musique", "squad2", "nq_open", "library"):
        train, test = load(name, data, "train"), load(name, data, "test")
        assert train.tasks
        assert test.tasks
        assert not {t.id for t in train.tasks} & {t.id for t in test.tasks}
        if name == "squad2":
            assert not {e for t in train.tasks for e in t.evidence} & {
                e for t in test.tasks for e in t.evidence
            }


def test_bad_habits_are_shown_by_their_share_and_kept(data, template):
    found = play("library", data, template, habits={"guess": 0.4, "decline": 0.2})
    guessed = [d for d in found if len(d.turns) == 1 and d.status is Status.ANSWERED]
    declined = [
        d for d in found if d.task.answerable and d.status is Status.ABSTAINED and len(d.turns) == 3
    ]
    assert 0.3 < len(guessed) / len(found) < 0.55
    assert 0.1 < len(declined) / len(found) < 0.35
    assert sum(exact_match(d.answer, d.task.answers) for d in guessed) < 0.2 * len(guessed)
    assert all(done.turns[0].sampled for done in guessed)
    skilled = [d for d in found if d not in guessed and d not in declined]
    assert len(skilled) > 0.2 * len(found)


def test_habits_are_shares_of_one_whole():
    with pytest.raises(ValueError, match="more than 1"):
        Demonstrations(habits={"guess": 0.7, "decline": 0.4})
