"""Fictional worlds: the same everywhere, true to themselves, answerable by their gold tool calls."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdflib import Graph

from agent.task import Task
from eval.benchmarks.base import rows
from eval.fictional.chance import Chance, Permutation
from eval.fictional.gold import leads_to_answer
from eval.fictional.graph import BASE
from eval.fictional.make import make_world, read_world
from eval.fictional.names import Names
from eval.fictional.passages import passages, source_of
from eval.fictional.questions import SHARES, questions, split_of
from eval.fictional.schema import KINDS, RELATIONS, relation
from eval.fictional.world import Entity, World, told
from kg.errors import UsageError
from tools.search.build import build_index
from tools.search.index import Index
from tools.search.settings import IndexSettings
from tools.search.tool import SearchTool


@given(st.integers(1, 3000), st.integers(0, 99))
def test_a_permutation_is_a_bijection_and_its_inverse_undoes_it(n, seed):
    order = Permutation(Chance(seed), n, "x")
    sample = range(0, n, max(1, n // 50))
    images = [order(i) for i in sample]
    assert len(set(images)) == len(images)
    assert all(0 <= image < n for image in images)
    assert [order.inverse(image) for image in images] == list(sample)


def test_a_whole_permutation_reaches_everything():
    order = Permutation(Chance(1), 1000, "x")
    assert sorted(map(order, range(1000))) == list(range(1000))


def test_chance_is_even_and_depends_on_seed_and_key():
    counts = Counter(Chance(3).below(10, "k", i) for i in range(10_000))
    assert min(counts.values()) > 850
    assert Chance(1).bits("a", 1) != Chance(2).bits("a", 1) != Chance(2).bits("a1")
    assert sorted(Chance(0).shuffled("abcdef", 7)) == list("abcdef")


def test_names_are_unique_within_a_kind():
    names = Names(Chance(5))
    for kind in (*KINDS, "language", "currency"):
        found = {names(kind, i) for i in range(4000)}
        assert len(found) == 4000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    return out, make_world(out, 7, 300, 300, taught=0.3)


def tasks_of(out):
    return [
        Task.from_dict(row)
        for name in ("train", "test")
        for _, row in rows(out / f"tasks-{name}.jsonl", [])
    ]


def test_the_same_seed_gives_the_same_bytes_in_another_process(made, tmp_path):
    out, facts = made
    script = (
        "import sys; from pathlib import Path; from eval.fictional.make import make_world;"
        f"make_world(Path({str(tmp_path)!r}), 7, 300, 300, taught=0.3)"
    )
    env = {"PYTHONHASHSEED": "123", "PATH": "/usr/bin", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env, cwd=tmp_path)
    for name in ("corpus.jsonl", "graph.nt", "tasks-train.jsonl", "tasks-test.jsonl", "world.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    digest = hashlib.sha256((out / "corpus.jsonl").read_bytes()).hexdigest()
    assert facts["sha256"]["corpus.jsonl"] == digest


def test_known_bytes():
    """Pins the generator: a change of any value changes every world that was made before."""
    world = World(1, 300)
    assert [world.name(Entity(kind, 0)) for kind in ("person", "city", "book")] == KNOWN_NAMES
    text = "\n".join(one.text for one in passages(world))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == KNOWN_CORPUS


KNOWN_NAMES = ["Truso Flobregra", "Kuzhiskux", "The Voyage of Lusalo"]
KNOWN_CORPUS = "0895f92b8f61e53f"


def test_every_kind_of_question_is_there_in_both_splits(made):
    out, facts = made
    assert set(facts["questions"]) == set(SHARES)
    tasks = tasks_of(out)
    assert len({task.id for task in tasks}) == len({task.question for task in tasks}) == len(tasks)
    assert {task.kind for task in tasks if task.meta["split"] == "train"} == set(SHARES)
    assert 0.15 < sum(task.meta["split"] == "test" for task in tasks) / len(tasks) < 0.45


def test_no_test_question_is_about_what_a_training_question_was():
    world = World(7, 300, taught=0.3)
    anchors = {"train": set(), "test": set()}
    for one in questions(world, 300):
        anchors[split_of(world, one.anchor)].add(one.anchor)
    assert not anchors["train"] & anchors["test"]


def test_the_graph_says_what_the_passages_say(made):
    out, facts = made
    graph = Graph().parse(out / "graph.nt", format="nt")
    assert len(graph) == facts["triples"]
    world = World(7, 300)
    corpus = {row["id"]: row["text"] for _, row in rows(out / "corpus.jsonl", [])}
    checked = 0
    for subject in list(world.entities())[::7]:
        for of in told(subject.kind):
            value = world.value(subject, of)
            query = f"SELECT ?v WHERE {{ <{BASE}{subject.id}> <{BASE}{of.name}> ?v }}"
            [*found] = graph.query(query)
            assert len(found) == (value is not None)
            if value is not None:
                shown = str(found[0][0])
                expected = f"{BASE}{value.id}" if isinstance(value, Entity) else value
                assert shown == expected
                assert world.name(value) in corpus[source_of(world, subject, of)]
                checked += 1
    assert checked > 60


def test_inverse_relations_agree_with_the_facts():
    world = World(3, 400)
    author = relation("book", "author")
    for person in world.entities("person"):
        for book in world.books_of(person):
            assert world.value(book, author) == person
    written = sum(len(world.books_of(person)) for person in world.entities("person"))
    assert written == world.counts["book"]
    for country in world.entities("country"):
        capital = world.value(country, relation("country", "capital"))
        assert world.value(capital, relation("city", "country")) == country


def wordings(of, name):
    """Every wording that would tell a fact about this name, as patterns."""
    for text in (*of.statements, *of.former, *of.current):
        pattern = re.escape(text).replace(r"\{v\}", "(.+)").replace(r"\{year\}", r"\d+")
        yield re.compile(pattern.replace(r"\{s\}", re.escape(name)))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Twenty worlds with their real search tool and graph."""
    out = []
    for seed in range(20):
        folder = tmp_path_factory.mktemp(f"w{seed}")
        make_world(folder, seed, 200, 150)
        build_index([folder / "corpus.jsonl"], folder / "index", IndexSettings(dense="none"))
        search = SearchTool(Index.open(folder / "index"), k=5, mode="lexical")
        graph = Graph().parse(folder / "graph.nt", format="nt")
        out.append((World(seed, 200), folder, search, graph))
    return out


def test_gold_tool_calls_lead_to_the_answer_in_99_of_100(worlds):
    right, total = Counter(), Counter()
    for _, folder, search, graph in worlds:
        for task in tasks_of(folder):
            total[task.kind] += 1
            right[task.kind] += leads_to_answer(task, search, graph)
    print({kind: f"{right[kind]}/{total[kind]}" for kind in total})
    assert sum(right.values()) / sum(total.values()) >= 0.99
    for kind in total:
        assert right[kind] / total[kind] >= 0.95, kind


def test_the_gold_check_refuses_a_wrong_answer_and_a_question_to_decline_that_has_one(worlds):
    """Of every kind, the same tasks with an answer that is not true: none may pass."""
    refused = Counter()
    for world, folder, search, graph in worlds[:4]:
        tasks = tasks_of(folder)
        for task in tasks:
            if not leads_to_answer(task, search, graph):
                continue
            for wrong in untrue(world, task):
                assert not leads_to_answer(wrong, search, graph), (wrong.question, wrong.answers)
                refused[task.kind] += 1
    assert set(refused) == {"1hop", "comparison", "counting", "false_premise", "graph", "chemistry"}


def untrue(world, task):
    """Tasks that claim something false with the same calls."""
    if task.kind == "1hop":  # its passage is shown: it is no question to decline
        yield replace(task, answers=(), evidence=(), kind="unanswerable")
    elif task.kind == "comparison":
        names = re.split(r", | or ", task.question)[1:3]
        yield replace(
            task,
            answers=tuple(
                n.removeprefix("the ").rstrip("?") for n in names if task.answers[0] not in n
            ),
        )
    elif task.kind in ("counting", "graph", "chemistry"):
        yield replace(task, answers=("99",))
    elif task.kind == "false_premise":
        subject = next(
            e for e in world.entities() if e.id == task.evidence[0].removesuffix("/more")
        )
        of = {"book": "author", "company": "founder", "compound": "discoverer"}[subject.kind]
        truth = world.name(world.value(subject, relation(subject.kind, of)))
        person = re.search(r"did (\w+ \w+) ", task.question)[1]
        yield replace(task, question=task.question.replace(person, truth))


def test_nothing_in_the_corpus_supports_an_unanswerable_question(worlds):
    checked = 0
    for world, folder, _, _ in worlds:
        corpus = [row["text"] for _, row in rows(folder / "corpus.jsonl", [])]
        by_question = {}
        for subject in world.entities():
            for of in told(subject.kind):
                by_question[of.question.format(s=world.name(subject))] = (subject, of)
        for task in tasks_of(folder):
            if task.kind != "unanswerable":
                continue
            subject, of = by_question[task.question]
            patterns = list(wordings(of, world.name(subject)))
            sentences = (s for text in corpus for s in re.split(r"(?<=\.) ", text))
            for sentence in sentences:
                if world.name(subject) in sentence:
                    assert not any(pattern.fullmatch(sentence) for pattern in patterns), sentence
            checked += 1
    assert checked > 50


def test_nothing_in_the_corpus_supports_a_false_premise(worlds):
    for _, folder, _, _ in worlds:
        corpus = {row["id"]: row["text"] for _, row in rows(folder / "corpus.jsonl", [])}
        for task in tasks_of(folder):
            if task.kind == "false_premise":
                [source] = task.evidence
                person = re.search(r"did (\w+ \w+) ", task.question)[1]
                assert person not in corpus[source]


def test_there_are_passages_that_get_in_the_way(worlds):
    roles = Counter()
    for _, folder, _, _ in worlds:
        for _, row in rows(folder / "corpus.jsonl", []):
            parts = row["id"].split("/")
            roles[parts[2] if len(parts) > 2 else "main"] += 1
    assert set(roles) == {"main", "more", "again", "old", "other", "idle"}
    assert min(roles.values()) > 50


def test_taught_facts_are_the_marked_share(made):
    out, facts = made
    taught = [row for _, row in rows(out / "taught.jsonl", [])]
    world = World(7, 300, taught=0.3)
    tellable = sum(
        world.value(subject, of) is not None
        for subject in world.entities()
        for of in RELATIONS
        if of.kind == subject.kind and of.statements
    )
    assert len(taught) == facts["taught_facts"]
    assert 0.25 < len(taught) / tellable < 0.35
    asked = {row["question"]: row["answers"][0] for row in taught}
    ones = [t for t in tasks_of(out) if t.kind == "1hop"]
    for task in ones:
        assert task.meta["taught"] == [task.question in asked]
    assert any(task.question in asked for task in ones)


@pytest.mark.parametrize(
    ("entities", "count", "taught", "message"),
    [(5, 10, 0, "at least"), (100, -1, 0, "cannot be made"), (100, 1, 2, "not 0 to 1")],
)
def test_sizes_that_cannot_be(tmp_path, entities, count, taught, message):
    with pytest.raises(UsageError, match=message):
        make_world(tmp_path / "w", 1, entities, count, taught)
    with pytest.raises(UsageError, match="not a world"):
        read_world(tmp_path)


def test_a_small_world_gives_fewer_questions_and_ends(tmp_path):
    facts = make_world(tmp_path, 1, 40, 3000)
    assert 100 < facts["tasks_train"] + facts["tasks_test"] < 3000
    assert json.loads((tmp_path / "world.json").read_text()) == read_world(tmp_path)


def test_a_world_is_a_benchmark(made):
    from eval.benchmarks import DataFolder, load

    out, _ = made
    found = load(str(out), DataFolder("", out))
    assert found.corpus == (out / "corpus.jsonl",)
    assert not {"graph", "chemistry"} & {task.kind for task in found.tasks}
    assert any("knowledge-graph tool" in note for note in found.skipped)
    train = load(str(out), DataFolder("", out), "train")
    assert not {t.id for t in train.tasks} & {t.id for t in found.tasks}
