"""A first search that goes wrong: what it shows, what the record says of it, what goes on from it.

Real search over the corpus of a fictional world; the replies are given.
"""

from dataclasses import replace

import pytest

from agent.cassette import open_cassette
from agent.episode import Episode
from agent.formats import make_format
from agent.graph import Setup, build_graph
from agent.intervention import with_call, without_observation
from agent.misleading import withheld_from
from agent.replay import rebuild, takes
from agent.rollout import run_episode
from agent.settings import isolated_settings
from agent.task import Task
from agent.toolbox import open_tools
from agent.trajectory import Trajectory
from agent.viewer import render_html, render_text
from eval.analyses.explain import explain
from eval.benchmarks.world import load_world
from eval.fictional.make import make_world
from eval.metrics import contains
from tests.agent.scripted import ScriptedPolicy
from tools.base import Toolbox
from tools.cassette import CassetteTool
from tools.withheld import Withheld


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder / "world", 424242, 60, 60)
    return folder


@pytest.fixture(scope="module")
def own(world):
    corpus = (world / "world" / "corpus.jsonl",)
    return isolated_settings(home=world / "home", corpus=corpus, search={"mode": "lexical"})


@pytest.fixture(scope="module")
def tools(own):
    return open_tools(own)


@pytest.fixture(scope="module")
def tasks(world):
    splits = (load_world(world / "world", split).tasks for split in ("train", "test"))
    return [task for split in splits for task in split]


@pytest.fixture(scope="module")
def hop(tasks, tools):
    """A question whose own words find its gold passage."""
    return next(t for t in tasks if t.kind == "1hop" and finds(tools, t))


def finds(tools, task):
    return task.evidence[0] in {s.id for s in tools["search"].passages(task.question)}


def script(task, searches=2):
    calls = [f"<search>{task.question}{' qqz' * n}</search>" for n in range(searches)]
    return [calls[0], "<judge>no</judge>", *calls[1:], "<answer>x [1]</answer>"]


def make(replies, template, tools):
    policy = ScriptedPolicy(replies, template)
    return Setup(policy, make_format("tags", tools), tools)


async def play(replies, template, tools, task, misled=True, **episode):
    setup = make(replies, template, tools)
    made = Episode(task, misled=misled, **episode)
    done = await run_episode(made, setup, build_graph(tools))
    return Trajectory.from_dict(done.to_dict())  # what a store gives back


def shown(done):
    return [[s.id for s in t.observation.sources] for t in done.turns if t.action.name == "search"]


async def test_the_first_search_alone_hides_the_gold(template, tools, hop):
    done = await play(script(hop), template, tools, hop)
    clean = await play(script(hop), template, tools, hop, misled=False)
    first, second = shown(done)
    best, again = shown(clean)
    assert hop.evidence[0] in best
    assert not set(first) & {*hop.evidence, *hop.meta["restated"]}
    assert len(first) == len(best) == 3
    assert second == again == best
    for source in done.turns[0].observation.sources:
        assert not any(contains(f"{source.title} {source.text}", a) for a in hop.answers)
    # the best of the others, in their order
    kept = [id for id in best if id in first]
    assert first[: len(kept)] == kept


async def test_the_record_says_what_was_done(template, tools, hop):
    done = await play(script(hop), template, tools, hop)
    clean = await play(script(hop), template, tools, hop, misled=False)
    assert [t.observation.misled for t in done.turns if t.observation] == [True, False, False]
    hidden = done.turns[0].observation.data["misled"]["withheld"]
    assert set(hidden) == set(shown(clean)[0]) - set(shown(done)[0]) != set()
    assert hop.evidence[0] in hidden
    assert done.misled
    assert done.versions == {**clean.versions, "misled": "search"}
    assert not clean.misled
    assert clean.turns[0].observation.data == {}
    assert render_text(done).count("made to go wrong") == 1
    assert "made to go wrong" in explain(done)
    assert hidden[0] in render_html([done])
    assert "made to go wrong" not in render_text(clean) + explain(clean)


async def test_every_task_with_gold_is_shown_none_of_it(tools, tasks):
    search, counts = tools["search"], {"empty": 0, "instead": 0, "asked": 0}
    for task in (t for t in tasks if t.evidence):
        withheld = withheld_from(task)
        for query in (task.question, *(c["query"] for c in task.meta["calls"])):
            sources, told = search._astray(query, task.question, withheld)
            counts["asked"] += 1
            counts["empty"] += not sources
            counts["instead"] += "instead" in told
            assert not {s.id for s in sources} & {*task.evidence, *task.meta["restated"]}
            given = [a for a in task.answers if not contains(task.question, a) and len(a) > 2]
            assert not any(contains(s.text, a) for s in sources for a in given)
    assert counts["asked"] > 60
    assert counts["empty"] == 0


async def test_the_same_words_once_more_miss_again(template, tools, hop):
    """An engine that missed does not find it when asked the same; recovery is to ask otherwise."""
    words = (hop.question, f"  {hop.question.upper()} ", f"{hop.question} qqz", hop.question)
    replies = [f"<search>{query}</search>" for query in words]
    done = await play([*replies, "<answer>x</answer>"], template, tools, hop)
    assert [t.observation.misled for t in done.turns if t.observation] == [True, True, False, False]
    assert shown(done)[0] == shown(done)[1]
    assert hop.evidence[0] in shown(done)[2]


async def test_a_call_that_fails_does_not_use_up_the_first_search(template, tools, hop):
    replies = ['<search>{"q": 1}</search>', *script(hop)]
    done = await play(replies, template, tools, hop)
    assert [t.observation.misled for t in done.turns if t.observation][:3] == [False, True, False]


async def test_a_task_without_gold_is_searched_as_ever(template, tools, hop):
    bare = replace(hop, evidence=(), answers=(), meta={})
    done = await play(script(bare), template, tools, bare)
    clean = await play(script(bare), template, tools, bare, misled=False)
    assert shown(done) == shown(clean)


async def test_it_goes_on_from_every_turn_as_it_did(template, tools, hop):
    """What a fork needs: the mark survives the record, and later searches are not misled."""
    replies = script(hop, searches=3)
    done = await play(replies, template, tools, hop, seed=5)
    for turn in range(len(done.turns)):
        setup = make(replies[turn:], template, tools)
        built = rebuild(done, turn, setup)
        assert built.misled
        again = await run_episode(built, setup, build_graph(tools))
        assert again.token_ids.tolist() == done.token_ids.tolist()
        assert shown(again) == shown(done)
        assert again.versions == done.versions


async def test_the_recording_of_a_misled_call_answers_misled_calls_alone(template, own, tools, hop):
    """Other words, asked later, found the gold: a fork must not get the first result for them."""
    done = await play(script(hop), template, tools, hop)
    cassette, notes = open_cassette(done, own)
    assert notes == []
    assert cassette.names == ("search", "judge")
    # one that answers the judge's turn with another search is not shown the misled result again
    for turn, first in ((0, False), (1, True), (2, True)):
        replies = [f"<search>{hop.question}{' qqz' * first}</search>", "<answer>x</answer>"]
        setup = make(list(replies), template, cassette)
        again = await run_episode(rebuild(done, turn, setup), setup, build_graph(cassette))
        marks = [t.observation.misled for t in again.turns if t.action.name == "search"]
        assert marks == ([True, False] if first else [True])
        assert hop.evidence[0] in shown(again)[-1] or not first
    assert cassette["search"].missed == 0
    assert cassette["search"].replayed == 3
    alone = CassetteTool(tools["search"], takes(done)[:1], live=False)
    only = Toolbox([alone, *(tool for tool in tools if tool.name == "judge")])
    setup = make(list(replies), template, only)
    again = await run_episode(rebuild(done, 1, setup), setup, build_graph(only))
    assert again.turns[1].observation.error == "search: not on the cassette"


async def test_another_first_call_is_misled_too_and_none_after_an_emptied_one(template, tools, hop):
    done = await play(script(hop), template, tools, hop)
    setup = make([], template, tools)
    other = await with_call(done, 1, setup, f"{hop.question} today")
    assert other.turns[0].observation.misled
    setup = make(script(hop)[2:], template, tools)
    emptied = rebuild(done, 1, setup, without_observation)
    again = await run_episode(emptied, setup, build_graph(tools))
    assert hop.evidence[0] in shown(again)[1]


@pytest.mark.parametrize(
    ("question", "answers", "phrases"),
    [
        ("Who wrote it?", ("Ada Lovelace", "A"), {" ada lovelace "}),
        ("Which is older, Ulm or Bonn?", ("Bonn",), set()),
        ("How many?", ("1", "one"), {" 1 ", " one "}),
        ("What?", ("", "!!"), set()),
        ("Is it Bonn's?", ("bon",), {" bon "}),
        ("Who sang?", ("The Beatles",), {" beatles "}),
    ],
)
def test_answers_that_tell_something(question, answers, phrases):
    assert Withheld.of((), answers, question).phrases == phrases


def test_a_passage_is_covered_by_its_id_its_document_or_whole_words():
    withheld = Withheld.of(("doc",), ("Ada Lovelace",), "Who?")
    assert withheld.covers(("doc#3", "doc"), "nothing")
    assert withheld.covers(("x",), "by ADA\nLovelace, 1843")
    for answer, text in (
        ("The Beatles", "by Beatles"),
        ("U.N.O.", "the UNO"),
        ("1,200", "1200 m"),
    ):
        assert Withheld.of((), (answer,), "Who?").covers((), text)
    assert not withheld.covers(("document",), "Ada Lovelaces, Lovelace and Ada")
    assert withheld_from(Task("t", "Who?", ("Ada",))).ids == frozenset()
