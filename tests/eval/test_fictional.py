"""Fictional worlds: the same everywhere, true to themselves, answerable by their gold tool calls."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdflib import Graph, Literal, URIRef
from rdflib.namespace import RDFS

from agent.settings import SearchSettings
from agent.task import Task
from eval.benchmarks.base import rows
from eval.benchmarks.world import load_world
from eval.fictional.chance import Chance, Permutation
from eval.fictional.gold import leads_to_answer
from eval.fictional.graph import BASE, triples
from eval.fictional.make import make_world, read_world
from eval.fictional.names import Names
from eval.fictional.passages import passages, passages_of, source_of
from eval.fictional.questions import SHARES, questions
from eval.fictional.schema import KINDS, RELATIONS, relation, relations_of
from eval.fictional.split import split_of
from eval.fictional.world import Entity, World, told
from kg.errors import UsageError
from rl.guidance.lessons import lessons_of
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
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert set(names) >= {*facts["sha256"], "taught.jsonl", "world.json"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name
    assert (out / "taught.jsonl").stat().st_size > 10_000
    digest = hashlib.sha256((out / "corpus.jsonl").read_bytes()).hexdigest()
    assert facts["sha256"]["corpus.jsonl"] == digest


def test_known_bytes():
    """Pins the generator: a change of any value changes every world that was made before."""
    world = World(1, 300)
    assert [world.name(Entity(kind, 0)) for kind in ("person", "city", "book")] == KNOWN_NAMES
    tasks = (one.task(world, n) for n, one in enumerate(questions(world, 300)))
    written = {
        "corpus": [one.text for one in passages(world)],
        "graph": triples(world),
        "tasks": [json.dumps(task.to_dict(), sort_keys=True) for task in tasks],
    }
    found = {name: hashlib.sha256("\n".join(lines).encode()) for name, lines in written.items()}
    assert {name: digest.hexdigest()[:16] for name, digest in found.items()} == KNOWN


KNOWN_NAMES = ["Truso Flobregra", "Kuzhiskux", "The Voyage of Lusalo"]
KNOWN = {
    "corpus": "1c76c278f9c0e799",
    "graph": "bbc71ea1e35c983f",
    "tasks": "65b8e8a1827a0ca0",
}


def test_known_bytes_of_what_is_taught(made):
    out, facts = made
    digest = hashlib.sha256((out / "taught.jsonl").read_bytes()).hexdigest()
    assert facts["sha256"]["taught.jsonl"] == digest
    assert digest[:16] == KNOWN_TAUGHT


KNOWN_TAUGHT = "2a20b8b7d8c93eb4"


def test_every_kind_of_question_is_there_in_both_splits(made):
    out, facts = made
    assert set(facts["questions"]) == set(SHARES)
    tasks = tasks_of(out)
    assert len({task.id for task in tasks}) == len({task.question for task in tasks}) == len(tasks)
    assert {task.kind for task in tasks if task.meta["split"] == "train"} == set(SHARES)
    assert 0.15 < sum(task.meta["split"] == "test" for task in tasks) / len(tasks) < 0.45


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
    written = Counter()
    for person in world.entities("person"):
        books = world.books_of(person)
        assert all(world.value(book, author) == person for book in books)
        written[len(books)] += len(set(books))
    assert sum(written.values()) == world.counts["book"]
    assert set(written) == {0, 1, 2, 3, 4, 5}
    for country in world.entities("country"):
        capital = world.value(country, relation("country", "capital"))
        assert world.value(capital, relation("city", "country")) == country


@pytest.mark.parametrize(("seed", "entities"), [(3, 1000), (5, 60), (9, 46)])
def test_no_fact_of_the_graph_is_before_what_it_rests_on(seed, entities):
    """Nobody writes, founds or governs as a child, and no firm moves before it is founded."""
    facts = Graph().parse(data="\n".join(triples(World(seed, entities))), format="nt")

    def pairs(name, *through):
        """Both ends of a relation, the second one followed further."""
        for subject, value in facts.subject_objects(URIRef(BASE + name)):
            for step in through:
                value = facts.value(value, URIRef(BASE + step))
            if value is not None:
                yield subject, value

    def year(subject, name):
        return int(facts.value(subject, URIRef(BASE + name), default=0))

    compared = Counter()
    for before, after, *by in (
        (20, "published", "author", "born"),
        (20, "founded", "founder", "born"),
        (25, "mayorSince", "mayor", "born"),
        (31, "mayorSince", "formerMayor", "born"),
    ):
        for subject, born in pairs(*by):
            if year(subject, after):
                assert year(subject, after) - int(born) >= before, (subject, by)
                compared[by[0]] += 1
    for company, founded in pairs("founded"):
        assert year(company, "seatSince") - int(founded) >= 6
        compared["seat"] += 1
    for person, opened_in in pairs("studied", "opened"):
        if year(person, "born"):
            assert year(person, "born") + 18 > int(opened_in)
            compared["studied"] += 1
    twins = dict(pairs("twin"))
    assert all(twins[other] == city != other for city, other in twins.items())
    assert len(twins) == World(seed, entities).counts["city"] // 2 * 2
    assert all(int(born) >= 1940 for _, born in pairs("mayor", "born"))
    assert len(compared) == 6
    assert min(compared.values()) >= 1


def test_an_outdated_passage_was_written_when_it_was_true():
    world = World(3, 1000)
    founded, seat = relation("company", "founded"), relation("company", "seat")
    checked = 0
    for company in world.entities("company"):
        for passage in passages_of(world, company):
            year = world.value(company, founded)
            if passage.id.endswith("/old") and year is not None:
                written = int(re.match(r"From a directory of (\d+):", passage.text)[1])
                assert int(year) <= written < world.change(company, seat).year
                checked += 1
    assert checked > 50


def opened(folder, seed, entities, count):
    """A world with its real search tool, as the agent has it, and its graph."""
    make_world(folder, seed, entities, count)
    build_index([folder / "corpus.jsonl"], folder / "index", IndexSettings(dense="none"))
    search = SearchTool(Index.open(folder / "index"), k=SearchSettings().k, mode="lexical")
    graph = Graph().parse(folder / "graph.nt", format="nt")
    return World(seed, entities), folder, search, graph


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return [opened(tmp_path_factory.mktemp(f"w{seed}"), seed, 200, 150) for seed in range(20)]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("larger"), 1, 666, 300)


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


def needed(task, asked, graph):
    """The things and facts that a task's recorded evidence and gold calls go through."""
    found = {"/".join(id.split("/")[:2]) for id in task.evidence}
    for call in task.meta["calls"]:
        if call["tool"] == "search":
            found |= {part for fact in asked.get(call["query"], ()) for part in (fact, fact[0])}
        elif call["tool"] == "graph":
            [label] = re.findall(r'label> "(.*?)" \.', call["query"])
            at = graph.value(predicate=RDFS.label, object=Literal(label))
            for step in re.findall(rf"<{BASE}(\w+)>", call["query"]):
                thing = str(at).removeprefix(BASE)
                found |= {thing, (thing, step)}
                at = graph.value(at, URIRef(BASE + step))
    return found


def test_no_test_question_needs_what_a_training_question_does(worlds, larger):
    hops = Counter()
    for world, folder, _, graph in [*worlds, larger]:
        asked = {}
        for subject in world.entities():
            for of in relations_of(subject.kind):
                question = of.question.format(s=world.name(subject))
                asked.setdefault(question, set()).add((subject.id, of.name))
        sides = {"train": set(), "test": set()}
        for task in tasks_of(folder):
            found = needed(task, asked, graph)
            assert found, task
            sides[task.meta["split"]] |= found
            hops[task.kind] += sum(isinstance(one, tuple) for one in found)
        assert len(sides["test"]) > 60
        assert not sides["train"] & sides["test"]
    assert hops["4hop"] >= 4 * 100  # every step of a chain is counted, not only where it begins
    assert hops["graph"] > 200


def test_no_kind_runs_out_in_either_split():
    """At the sizes that the recipes train on, and at a larger one."""
    for entities in (200, 666):
        found = Counter()
        for seed in range(700001, 700005):
            world = World(seed, entities)
            made = [(one.kind, split_of(world, one.things)) for one in questions(world, 300)]
            assert len(made) >= 285
            found.update(made)
        for kind, share in SHARES.items():
            train, test = found[kind, "train"], found[kind, "test"]
            assert train + test >= 0.6 * share * 4 * 300, kind
            assert 0.15 < test / (train + test) < 0.5, kind


@pytest.fixture(scope="module")
def asked():
    """What is asked of fifteen worlds of the size that the recipes train on."""
    made = (World(seed, 200) for seed in range(15))
    return [(world, list(questions(world, 300))) for world in made]


def test_no_answer_is_right_for_more_than_its_share_of_a_kind(asked):
    """A reply that never changes: for all worlds, and one for each world that knows its questions."""
    pooled, best, total = {}, Counter(), Counter()
    for _, made in asked:
        mine = {}
        for one in made:
            if one.answers:
                mine.setdefault(one.kind, Counter())[one.answers[0]] += 1
        for kind, answers in mine.items():
            pooled.setdefault(kind, Counter()).update(answers)
            best[kind] += max(answers.values())
            total[kind] += sum(answers.values())
    for kind, answers in pooled.items():
        share = {"counting": 0.4, "chemistry": 0.25}.get(kind, 0.05)
        assert max(answers.values()) / total[kind] <= share, kind
        share = {"counting": 0.45, "chemistry": 0.3}.get(kind, 0.2)
        assert best[kind] / total[kind] <= share, kind
    assert set(pooled["counting"]) == {"1", "2", "3", "4", "5"}


def test_neither_place_nor_time_gives_an_answer_away(asked):
    """Of a comparison the first is as often right as the second, of what changed the old as the new."""
    first, current, total = 0, 0, Counter()
    for world, made in asked:
        for one in made:
            total[one.kind] += 1
            if one.kind == "comparison":
                a, b = (world.name(thing) for thing in one.things)
                assert one.answers[0] in (a, b)
                first += one.answers[0] == a
            if one.kind == "temporal":
                current += one.text.endswith("today?")
    assert min(total["comparison"], total["temporal"]) > 300
    assert 0.42 < first / total["comparison"] < 0.58
    assert 0.4 < current / total["temporal"] < 0.6


def wording_of(question):
    """What is left of a question without its names."""
    return " ".join(word for word in question.text.split() if word.islower())


def guesses(told):
    """What may be said without the corpus: a reply by name, from a question and the names in it."""
    usual = {}
    for one, _ in told:
        for key in (one.kind, (one.kind, wording_of(one))):
            usual.setdefault(key, Counter())[one.answers[0] if one.answers else ""] += 1
    usual = {key: answers.most_common(1)[0][0] for key, answers in usual.items()}
    return {
        "decline": lambda one, names: "",
        "the kind's most common answer": lambda one, names: usual[one.kind],
        "the wording's": lambda one, names: usual.get((one.kind, wording_of(one)), ""),
        "the first name": lambda one, names: names[0] if names else "",
        "the last name": lambda one, names: names[-1] if names else "",
    }


def share_right(guess, asked):
    said = [(guess(one, names), one.answers) for one, names in asked]
    return sum(text in answers if answers else not text for text, answers in said) / len(said)


# kinds of which a guess may be right: one of two names, small numbers, and to decline
GUESSED = {
    "comparison": (0.4, 0.6),
    "counting": (0.2, 0.4),
    "chemistry": (0.05, 0.2),
    "false_premise": (1, 1),
    "unanswerable": (1, 1),
}


def test_the_best_guess_without_the_corpus_is_right_on_one_open_question_in_a_hundred(
    asked,
):
    """By kind, the guess that is right most often on the training questions of all worlds."""
    sides = {"train": {}, "test": {}}
    for world, made in asked:
        known = [world.name(thing) for thing in world.entities()]
        for one in made:
            names = sorted((n for n in known if n in one.text), key=one.text.index)
            sides[split_of(world, one.things)].setdefault(one.kind, []).append((one, names))
    ways = guesses([pair for pairs in sides["train"].values() for pair in pairs])
    right, total = Counter(), Counter()
    for kind, pairs in sides["test"].items():
        best = max(ways, key=lambda way: share_right(ways[way], sides["train"][kind]))
        share = share_right(ways[best], pairs)
        print(f"{kind}: {100 * share:.1f} % of {len(pairs)} by {best}")
        low, high = GUESSED.get(kind, (0, 0.03))
        assert low <= share <= high, kind
        if kind not in GUESSED:
            right[kind], total[kind] = share * len(pairs), len(pairs)
    print(f"open kinds: {right.total():.0f} of {total.total()}")
    assert total.total() > 800
    assert right.total() / total.total() <= 0.01


def test_no_wording_says_by_itself_that_there_is_no_answer(asked):
    declined, total = Counter(), Counter()
    for _, made in asked:
        for one in made:
            total[wording_of(one)] += 1
            declined[wording_of(one)] += not one.answers
    for wording in declined:
        assert declined[wording] / total[wording] <= 0.75 or total[wording] < 15, wording
    assert sum(declined[wording] > 10 for wording in declined) >= 6


def test_a_count_is_that_of_the_graph_and_its_words_agree(worlds):
    counts = Counter()
    for _, folder, _, graph in worlds:
        for task in tasks_of(folder):
            if task.kind == "counting":
                name = re.fullmatch(r"How many books did (.+) write\?", task.question)[1]
                person = graph.value(predicate=RDFS.label, object=Literal(name))
                books = [*graph.subjects(URIRef(BASE + "author"), person)]
                assert {str(book) for book in books} == {BASE + id for id in task.evidence}
                words = ["one", "two", "three", "four", "five"]
                assert task.answers == (str(len(books)), words[len(books) - 1])
                counts[len(books)] += 1
    assert min(counts[n] for n in range(1, 6)) >= 3


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


# a question that may have no answer; words that would tell of it; what a value of it looks like
ASKED = (
    (r"In which year was (.+) born\?", r"born|birth", r"\d"),
    (r"Where did (.+) study\?", r"stud(y|ied|ent)|universit|college|academy", ""),
    (r"When was (.+) published\?", r"publi|edition|appeared|print", r"\d"),
    (r"When was (.+) founded\?", r"found|dates|establish", r"\d"),
    (r"How many inhabitants does (.+) have\?", r"inhabit|people|population|home", r"\d"),
    (r"When did (.+) open\?", r"open|entered|student", r"\d"),
)


def telling(question, corpus):
    """Sentences that may answer a question, found by words; None where none of `ASKED` is asked. A
    passage is about its title, so that a sentence in it need not name the thing."""
    asked = [
        (found[1], cue, value)
        for pattern, cue, value in ASKED
        if (found := re.fullmatch(pattern, question))
    ]
    if not asked:
        return None
    [(name, cue, value)] = asked
    return [
        sentence
        for row in corpus
        for sentence in re.split(r"(?<=\.) ", row["text"])
        if (name in sentence or name == row["title"])
        and re.search(cue, sentence)
        and re.search(value, sentence.replace(name, ""))
    ]


def test_nothing_in_the_corpus_supports_an_unanswerable_question(worlds):
    """A search by words that knows nothing of how passages are made; it finds every answer there is."""
    checked, known = 0, 0
    for _, folder, _, _ in worlds:
        corpus = [row for _, row in rows(folder / "corpus.jsonl", [])]
        for task in tasks_of(folder):
            found = telling(task.question, corpus)
            if task.kind == "unanswerable":
                assert found == [], (task.question, found)
                checked += 1
            elif task.kind == "1hop" and found is not None:
                assert any(task.answers[0] in sentence for sentence in found), task.question
                known += 1
    assert checked > 50
    assert known > 50


def test_a_sentence_that_does_not_name_its_thing_is_found():
    row = {
        "title": "The Tin Sea",
        "text": "The Tin Sea is a book by Ann Lee. Its first edition appeared in 1950.",
    }
    other = {**row, "title": "The Red Sea", "text": row["text"].replace("Tin", "Red")}
    question = "When was The Tin Sea published?"
    assert telling(question, [other, row]) == ["Its first edition appeared in 1950."]
    assert telling(question, [other]) == []


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
    changing = [t.meta["taught"] for t in tasks_of(out) if t.kind == "temporal"]
    assert len(changing) > 5
    assert not any(any(marks) for marks in changing)  # no lesson tells what changed


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
    facts = make_world(tmp_path, 1, 40, 1000)
    assert 100 < facts["tasks_train"] + facts["tasks_test"] < 900
    assert json.loads((tmp_path / "world.json").read_text()) == read_world(tmp_path)


def test_a_world_that_is_cut_off_over_another_one_is_none(tmp_path):
    make_world(tmp_path, 1, 60, 60)
    assert load_world(tmp_path, "test").tasks

    def cut_off(stage, done, total):
        if stage == "graph.nt":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path, 2, 60, 60, advance=cut_off)
    with pytest.raises(UsageError, match="not a world"):
        load_world(tmp_path, "test")


@pytest.mark.parametrize("name", ["corpus.jsonl", "tasks-test.jsonl", "taught.jsonl"])
def test_a_file_of_another_world_is_refused(tmp_path, name):
    for seed in (1, 2):
        make_world(tmp_path / str(seed), seed, 60, 60, taught=0.5)
    mixed = tmp_path / "1"
    loaded = load_world(mixed, "test")
    shutil.copy(tmp_path / "2" / name, mixed / name)
    with pytest.raises(UsageError, match=f"{name} is not the file"):
        lessons_of(loaded) if name == "taught.jsonl" else load_world(mixed, "test")
    (mixed / name).unlink()
    with pytest.raises(UsageError, match=f"cannot read .*{name}"):
        lessons_of(loaded) if name == "taught.jsonl" else load_world(mixed, "test")


def test_a_world_is_a_benchmark(made):
    from eval.benchmarks import DataFolder, load

    out, _ = made
    found = load(str(out), DataFolder("", out))
    assert found.corpus == (out / "corpus.jsonl",)
    assert not {"graph", "chemistry"} & {task.kind for task in found.tasks}
    assert any("knowledge-graph tool" in note for note in found.skipped)
    train = load(str(out), DataFolder("", out), "train")
    assert not {t.id for t in train.tasks} & {t.id for t in found.tasks}
