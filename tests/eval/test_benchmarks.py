"""Question sets: what a file holds, and what is said of one that is wrong."""

import base64
import csv
import gzip
import http.server
import json
import re
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from agent.policies.base import Sampling
from agent.trajectory import Status, StopReason, Trajectory
from eval.benchmarks import NAMES, DataFolder, load
from eval.benchmarks.base import choices, read_tasks, rows, split_of, titles_to_ids
from eval.benchmarks.own import task_of
from eval.benchmarks.paths import path_tasks
from eval.metrics import normalise
from eval.sample import score_one
from kg.errors import UsageError

GOLD_FREE = ("scifact", "fiqa")  # the samples hold no verdicts
REPEATS = {"pathquestion", "wc2014", "clintox", "esol"}  # their files hold some rows twice
WORDLESS = {
    "qald9plus": 25,
    "qald10": 83,
}  # rows whose answers cannot be told, or are asked elsewhere
SIGNS = {"nq_open", "frames"}  # a row or two whose only answer is a sign, such as ")"


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_every_set_gives_tasks_with_answers_and_a_corpus(name, data):
    found = load(name, data, "test")
    assert len(found.tasks) > 20
    outside = [problem for problem in found.skipped if "over the graph" in problem]
    assert len(outside) == (252 if name == "metaqa" else 0)
    wordless = [problem for problem in found.skipped if name in WORDLESS]
    assert len(wordless) == WORDLESS.get(name, 0)
    assert bool(found.skipped) == (name in REPEATS | SIGNS | {"metaqa"} | WORDLESS.keys())
    signs = [problem for problem in found.skipped if "normalises to nothing" in problem]
    assert len(signs) <= 2
    assert name in SIGNS | {"pathquestion"} or not signs
    told = {*signs, *outside, *wordless}
    assert all("there already" in problem for problem in found.skipped if problem not in told)
    assert all(path.is_file() for path in (*found.corpus, *found.graph))
    assert found.corpus or found.needs or name == "library"
    for task in found.tasks:
        assert task.answers or task.answerable is False or name in GOLD_FREE
        assert task.evidence or name not in GOLD_FREE
        assert "choices" in task.meta or all(normalise(answer) for answer in task.answers)


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["hotpotqa", "2wikimultihopqa", "musique", "squad2", "pubmedqa", "scifact"]
)
def test_the_gold_evidence_is_in_the_corpus(name, data):
    found = load(name, data, "test")
    ids = {str(row.get("id", row.get("_id"))) for _, row in rows(found.corpus[0], [])}
    assert all(task.evidence and set(task.evidence) <= ids for task in found.tasks)


@pytest.mark.data
@pytest.mark.parametrize("name", ["metaqa", "pathquestion", "wc2014"])
def test_the_gold_path_and_the_answers_are_in_the_graph(name, data):
    """An independent walk: every answer is an entity of the graph, and every gold step a triple."""
    found = load(name, data, "test")
    triples = set()
    for path in found.graph:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            triples |= {tuple(line.rstrip("\n").split("\t")) for line in lines}
    names = {end.replace("_", " ") for head, _, tail in triples for end in (head, tail)}
    reached = [set(task.answers) <= names for task in found.tasks]
    assert sum(reached) / len(reached) > 0.99
    steps = [
        tuple(path[i : i + 3])
        for task in found.tasks
        for path in task.meta.get("paths", [])
        for i in range(0, len(path) - 2, 2)
    ]
    known = [(h, r, t) in triples or (t, r, h) in triples for h, r, t in steps]
    assert not known or sum(known) / len(known) > 0.95


def test_a_set_over_a_graph_says_which_tool_it_needs(tmp_path, graph_data):
    from agent.settings import load_settings
    from eval.run import EvalRequest, run

    settings = load_settings(tools=("search", "judge"), home=tmp_path / "home")
    request = EvalRequest(benchmarks=("wc2014",), data=str(graph_data))
    with pytest.raises(UsageError, match="need the tool 'kg'"):
        run(request, settings, tmp_path / "run")
    found = load("wc2014", DataFolder(str(graph_data), tmp_path))
    assert 0 < len(found.tasks) < 30
    assert ["conjunctive.tsv:1" in problem for problem in found.skipped] == [True]


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["metaqa", "squad2", "medmcqa", "fever", "nq_open", "hotpotqa_open", "qald9"]
)
def test_every_row_is_a_question_of_one_split_or_is_told(name, data):
    paths = [data.file(file) for file in documented()[name][0]]
    parts = [load(name, data, split) for split in ("train", "test")]
    count = sum(1 for path in paths for _ in rows(path, []))
    assert count == sum(len(part.tasks) for part in parts) + len(parts[0].skipped)
    assert parts[0].skipped == parts[1].skipped


def test_a_question_that_the_graph_does_not_answer_is_told_with_its_place(tmp_path):
    data = lay_out(tmp_path, "metaqa")
    row = {
        "id": "x",
        "hop": 1,
        "question": "what did [E] do",
        "topic_entity": "E",
        "answers": ["y"],
    }
    bad = [{**row, "qtype": "actor_to_movie", "answers_match_kb": value} for value in (False, "no")]
    written(tmp_path, "metaqa/qa_1hop.jsonl.gz", bad)
    skipped = load("metaqa", data).skipped
    assert len(skipped) == 2
    assert "qa_1hop.jsonl.gz:1: following 'actor_to_movie' over the graph" in skipped[0]
    assert "qa_1hop.jsonl.gz:2: 'answers_match_kb' is 'no'" in skipped[1]


MOLECULES = ("bbbp", "bace", "clintox", "hiv", "esol", "freesolv", "lipophilicity")


@pytest.mark.data
@pytest.mark.parametrize("name", MOLECULES)
def test_every_molecule_is_in_one_split_or_is_told(name, data):
    [file] = documented()[name][0]
    parts = [load(name, data, split) for split in ("train", "test")]
    with data.file(file).open(encoding="utf-8") as lines:
        count = sum(1 for _ in csv.DictReader(lines))
    assert count == sum(len(part.tasks) for part in parts) + len(parts[0].skipped)
    train, test = ({task.meta["smiles"] for task in part.tasks} for part in parts)
    assert not train & test
    assert parts[0].skipped == parts[1].skipped


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "column", "lowest", "highest"),
    [
        ("esol", "measured log solubility in mols per litre", -11.6, 1.58),
        ("freesolv", "expt", -25.47, 3.43),
        ("lipophilicity", "exp", -1.5, 4.5),
    ],
)
def test_the_gold_number_is_the_measured_one_of_that_molecule(name, column, lowest, highest, data):
    """Within the range that MoleculeNet's publication gives for the quantity in that unit."""
    measured = {}
    with data.file(f"moleculenet/{name}.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            measured.setdefault(row["smiles"].strip(), float(row[column]))
    found = load(name, data, "test")
    assert found.scorer == "number"
    for task in found.tasks:
        value = float(task.answers[0])
        assert value == pytest.approx(measured[task.meta["smiles"]], abs=1e-6)
        assert lowest <= value <= highest
        assert len(task.answers[0]) <= 8
        assert task.question.endswith(f" SMILES: {task.meta['smiles']}")


def molecules(folder, name, head, *lines):
    path = written(folder, f"moleculenet/{name}.csv", [])
    path.write_text("\n".join([head, *lines]) + "\n")
    return [load(name, DataFolder(folder, folder), split) for split in ("train", "test")]


def test_broken_rows_of_measured_molecules_are_told_and_counted(tmp_path):
    bad = [
        "1,",
        "nan,C",
        "inf,CC",
        "about 2,CCC",
        '"1,5",CCCC',
        ",CO",
        "-1.5,OC",
        "2,OC",
        "1e999,OCC",
    ]
    parts = molecules(
        tmp_path, "freesolv", "expt,smiles", *bad, *(f"{n},N{'C' * n}" for n in range(30))
    )
    told = [problem.split("freesolv.csv:")[1] for problem in parts[0].skipped]
    assert told == [
        "2: no label, or no structure",
        "3: the label 'nan' is no number",
        "4: the label 'inf' is no number",
        "5: the label 'about 2' is no number",
        "6: the label '1,5' is no number",
        "7: no label, or no structure",
        "9: the molecule is there already",
        "10: the label '1e999' is no number",
    ]
    assert parts[1].skipped == parts[0].skipped
    tasks = {task.meta["smiles"]: task for part in parts for task in part.tasks}
    assert sum(len(part.tasks) for part in parts) == len(tasks) == 31
    assert tasks["OC"].answers == ("-1.5",)
    assert all(part.tasks for part in parts)


def test_a_label_that_is_neither_yes_nor_no_is_told(tmp_path):
    parts = molecules(tmp_path, "bbbp", "p_np,smiles", "2,C", ",CC", "1,CCC", "0,CCCC", "1, CCC")
    told = [problem.split("bbbp.csv:")[1] for problem in parts[0].skipped]
    assert told == [
        "2: the label is '2', not 0 or 1",
        "3: no label, or no structure",
        "6: the molecule is there already",
    ]
    assert sorted(t.answers[0] for part in parts for t in part.tasks) == ["no", "yes"]


def test_a_question_of_hotpotqa_is_in_one_split_with_and_without_its_passages(tmp_path):
    asked = {
        "question": "So?",
        "answer": "x",
        "type": "t",
        "supporting_facts": [],
        "context_ids": [],
    }
    rows = [{**asked, "id": f"dev-row-{n}"} for n in range(30)]
    written(tmp_path, "hotpotqa/qa.jsonl.gz", [*rows, {**asked, "id": "5a8c7595"}])
    written(tmp_path, "hotpotqa/corpus.jsonl.gz", [])
    written(tmp_path, "wiki_passages/corpus.jsonl.gz", [])
    open_rows = [{"row": n, "question": "So?", "answer": "x", "type": "t"} for n in range(30)]
    open_rows.append({**open_rows[0], "id": "5a8c7595"})
    written(tmp_path, "hotpotqa/qa_no_context.jsonl.gz", open_rows)
    data = DataFolder(tmp_path, tmp_path)
    for split in ("train", "test"):
        ids = [
            [t.id for t in load(name, data, split).tasks] for name in ("hotpotqa", "hotpotqa_open")
        ]
        assert ids[0] == ids[1] != []


@pytest.mark.data
def test_no_training_question_of_hotpotqa_is_a_test_question_without_its_passages(data):
    for name, other in (("hotpotqa", "hotpotqa_open"), ("hotpotqa_open", "hotpotqa")):
        train = {normalise(task.question) for task in load(name, data, "train").tasks}
        assert not train & {normalise(task.question) for task in load(other, data, "test").tasks}


def result(*cells):
    """A question of QALD whose query gives these, a row each."""
    told = [{"results": {"bindings": [{"x": cell} for cell in cells]}}]
    words = [{"language": "de", "string": "Was?"}, {"language": "en", "string": "What? "}]
    return {"id": 1, "question": words, "answers": told}


def uri(name, host="http://dbpedia.org/resource/"):
    return {"type": "uri", "value": f"{host}{name}"}


def literal(value, datatype=""):
    return {"type": "literal", "value": value, "datatype": f"http://www.w3.org/#{datatype}"}


@pytest.mark.parametrize(
    ("cells", "kind", "answers"),
    [
        ([uri("Snatch_(film)")], "entity", ("Snatch (film)",)),
        ([uri("AC/DC"), uri("AC/DC")], "entity", ("AC/DC",)),
        ([uri("Skal_vi_v%C3%A6dde_en_million%3F")], "entity", ("Skal vi vædde en million?",)),
        ([uri("Gene_Conley__1"), uri("Gene_Conley")], "entity", ("Gene Conley",)),
        ([literal("5.3394E10")], "number", ("53394000000",)),
        ([literal("+242.86", "decimal")], "number", ("242.86",)),
        ([literal("20.0")], "number", ("20",)),
        ([literal("1986-2-28")], "date", ("February 28, 1986",)),
        ([literal("1997-04-05T00:00:00Z", "dateTime")], "date", ("April 5, 1997",)),
        ([literal("1248-01-01T00:00:00Z", "dateTime")], "date", ("1248",)),
        ([literal("-3600000-01-01T00:00:00Z", "dateTime")], "date", ("3600000 BC",)),
        ([literal("Lady Ella")], "text", ("Lady Ella",)),
        ([uri("Greg_Abbott"), literal("")], "entity", ("Greg Abbott",)),
        ([uri("Rome"), literal("1")], "mixed", ("Rome", "1")),
        ([], "", "no answer is given"),
        ([literal("")], "", "no answer is given"),
        ([uri("Q42", "http://www.wikidata.org/entity/")], "", "identifier without a name"),
        ([uri("Rome"), uri("Q42", "http://www.wikidata.org/entity/")], "", "without a name"),
        ([uri("", "http://www.tata.com")], "", "without a name"),
        ([literal("Point(114.054 22.535)", "wktLiteral")], "", "place on the map"),
        ([literal("1997-13-05")], "", "no month 13"),
        ([{"type": "literal"}], "", "'value' is missing"),
        ([{"type": "literal", "value": 5}], "", "of another type"),
    ],
)
def test_an_answer_of_qald_is_told_in_words_or_left_out(cells, kind, answers, tmp_path):
    written(tmp_path, "wiki_passages/corpus.jsonl.gz", [])
    written(tmp_path, "qald10/test.jsonl.gz", [result(*cells)])
    found = load("qald10", DataFolder(tmp_path, tmp_path))
    if kind:
        [task] = found.tasks
        assert (task.id, task.question, task.kind, task.answers) == (
            "qald10-1",
            "What?",
            kind,
            answers,
        )
        assert not found.skipped
        assert score_one("qald10", found.scorer, task, answered(task, ", ".join(answers))).f1 == 1
    else:
        assert not found.tasks
        assert len(found.skipped) == 1
        assert answers in found.skipped[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": [{"language": "de", "string": "Was?"}]}, "no English question"),
        ({"question": [{"language": "en", "string": " "}]}, "no English question"),
        ({"question": "What?"}, "of another type"),
        ({"answers": []}, "0 results"),
        ({"answers": [{"boolean": "true"}]}, "not true or false"),
        ({"answers": [{"results": {"bindings": None}}]}, "of another type"),
    ],
)
def test_a_broken_row_of_qald_is_told(change, message, tmp_path):
    written(tmp_path, "wiki_passages/corpus.jsonl.gz", [])
    written(tmp_path, "qald10/test.jsonl.gz", [{**result(literal("5")), **change}])
    found = load("qald10", DataFolder(tmp_path, tmp_path))
    assert not found.tasks
    assert [message in problem for problem in found.skipped] == [True]


@pytest.mark.data
def test_no_training_question_of_qald_9_is_asked_for_testing(data):
    asked = {
        name: {normalise(task.question) for task in load(name, data, "test").tasks}
        for name in ("qald9", "qald9plus", "qald10")
    }
    train = {normalise(task.question) for task in load("qald9", data, "train").tasks}
    assert [len(train & words) for words in asked.values()] == [0, 0, 0]
    for name, scale in (("qald9plus", 75), ("qald10", 200)):
        found = load(name, data, "test")
        assert len(found.tasks) + len(found.skipped) == scale
        with pytest.raises(UsageError, match="testing only"):
            load(name, data, "train")


@pytest.mark.parametrize(
    ("column", "answers"),
    [
        ("Venus_(New_version)(Venus_(New_version)/)", ("Venus (New version)",)),
        ("Hard_Times(Hard_Times_(live)/Hard_Times/)", ("Hard Times (live)", "Hard Times")),
        ("Hard_Times_(live)(Hard_Times_(live)/Hard_Times/)", ("Hard Times (live)", "Hard Times")),
        ("B_C(X/B_C/)", ("X", "B C")),
        ("B_(UK)", ("B (UK)",)),
        ("B", ("B",)),
        ("B(X/C/)", None),
    ],
)
def test_an_answer_that_holds_brackets_is_not_cut(column, answers, tmp_path):
    path = tmp_path / "pq.tsv"
    path.write_text("".join(f"what is A_{n} ?\t{column}\tA_{n}#r#B\n" for n in range(30)))
    tasks, problems = path_tasks(path, "pq", "test")
    assert {task.answers for task in tasks} == ({answers} if answers else set())
    assert len(problems) == (0 if answers else 30)


@pytest.mark.data
def test_sets_for_testing_are_not_trained_on(data):
    for name in ("bamboogle", "simpleqa", "medqa", "scifact", "triviaqa"):
        with pytest.raises(UsageError, match="testing only"):
            load(name, data, "train")


def test_an_unknown_set_suggests_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="hotpotq") as caught:
        load("hotpotq", DataFolder(tmp_path, tmp_path))
    assert "hotpotqa" in caught.value.hint


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load("squad2", DataFolder(tmp_path, tmp_path / "cache"))


def test_bad_rows_are_reported_with_their_place_and_skipped(tmp_path):
    path = tmp_path / "q.jsonl"
    good = {"question": "Who?", "answers": ["x"]}
    lines = [
        json.dumps(good), "{oops", "[1]", json.dumps({**good, "id": "a"}), "",
        json.dumps({**good, "id": "a"}), json.dumps({"question": "No gold?"}),
        json.dumps({"answers": ["x"]}), json.dumps({"question": " ", "answers": ["x"]}),
        json.dumps({"question": "Text?", "answers": "x"}),
        json.dumps({"question": "Unanswerable?", "answerable": False}),
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    found = load(str(path), DataFolder(tmp_path, tmp_path))
    assert [task.question for task in found.tasks] == ["Who?", "Who?", "Unanswerable?"]
    places = [problem.split("q.jsonl:")[1] for problem in found.skipped]
    assert [place.split(":")[0] for place in places] == ["2", "3", "6", "7", "8", "9", "10"]
    for part, word in zip(
        places, ("JSON", "object", "already", "no answer", "question", "empty", "list"), strict=True
    ):
        assert word in part


def test_a_file_that_breaks_off_gives_what_it_holds(tmp_path):
    path = tmp_path / "q.jsonl.gz"
    line = json.dumps({"question": "Who?", "answers": ["x"]}) + "\n"
    path.write_bytes(gzip.compress((line * 3000).encode())[:-20])
    tasks, problems = read_tasks(path, task_of)
    assert "cut off" in problems[-1]
    with pytest.raises(UsageError, match="does not exist"):
        list(rows(tmp_path / "none.jsonl", []))
    assert len(tasks) <= 1


def test_the_split_is_fixed_and_about_a_third():
    found = [split_of(f"q{n}") for n in range(2000)]
    assert 0.25 < found.count("test") / 2000 < 0.35
    assert split_of("q0") == split_of("q0")


def test_choices_are_lettered_in_the_question():
    task = choices("Which  colour?", ["red", "blue"], 1, id="c")
    assert task.question == "Which colour?\nA) red\nB) blue"
    assert task.answers == ("blue",)


@pytest.mark.parametrize(
    ("options", "right", "message"),
    [
        (["red", "blue"], 2, "2 of 2"),
        (["red", "blue"], -1, "-1 of 2"),
        (["red", "blue"], "1", "'1' of 2"),
        (["red", "blue"], True, "True of 2"),
        (["red", "blue"], None, "None of 2"),
        ([3, 4], 0, "holds 3"),
        ("red", 0, "list of texts"),
        (["red"], 0, "1 choices"),
        ([str(n) for n in range(27)], 0, "27 choices"),
    ],
)
def test_choices_that_cannot_be_scored_are_refused(options, right, message):
    with pytest.raises(ValueError, match=message):
        choices("Which?", options, right, id="c")


def test_titles_to_ids(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": 1, "title": "A"}\n{"id": 2, "title": "A"}\n')
    problems = []
    assert titles_to_ids(tmp_path / "c.jsonl", problems) == {"A": ["1", "2"]}
    assert not problems
    (tmp_path / "c.jsonl").write_text('{"id": 1}\n{"id": 2, "title": ["A"]}\n{"title": "A"}\n')
    assert titles_to_ids(tmp_path / "c.jsonl", problems) == {}
    assert [problem.split("c.jsonl:")[1][0] for problem in problems] == ["1", "2", "3"]


WRONG = (None, 5, 2.5, True, "", " ", "text", "\ud800", [], [None], [[]], ["x", 3], {}, {"a": None})


def written(folder, name, rows):
    """A data folder that holds these rows as a file of a set."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def sound(task):
    """What a run and its scores rely on, written down independently of the loaders."""
    texts = (task.id, task.question, task.kind, *task.answers, *task.evidence)
    assert all(type(text) is str and text.encode() is not None for text in texts)
    assert task.id
    assert task.question.strip()
    assert task.answerable in (True, False, None)
    if "choices" in task.meta:
        assert all(type(option) is str for option in task.meta["choices"])
        assert task.meta["choices"][task.meta["right"]] == task.answers[0]
        assert task.meta["right"] >= 0
    else:
        assert all(normalise(answer) for answer in task.answers)
    score = score_one("set", "squad2", task, answered(task, "x"))
    assert not score.excluded or score.excluded == "no gold answer"


def answered(task, said):
    return Trajectory(
        task, "p@1", 0, Sampling(), Status.ANSWERED, StopReason.ANSWER, (),
        np.zeros(0, np.int32), np.zeros(0, np.float32), answer=said,
    )  # fmt: skip


OWN_ROWS = (
    {"question": "Who?", "answers": ["x"]},
    {"question": "Who?", "answer": "x", "id": "i", "kind": "k", "evidence": ["e"], "meta": {}},
    {"question": "Which?", "choices": ["red", "blue"], "right": 0},
    {"question": "Which?", "answers": [], "answerable": False},
)


@pytest.mark.parametrize("row", OWN_ROWS)
def test_whatever_stands_in_a_field_no_row_stops_the_others(row, tmp_path):
    rows = [{**row, name: value} for name in (*row, "answerable") for value in WRONG]
    path = written(tmp_path, "q.jsonl", [*rows, {"question": "Last?", "answers": ["x"], "id": "z"}])
    found = load(str(path), DataFolder(tmp_path, tmp_path))
    assert found.tasks[-1].question == "Last?"
    assert len(found.tasks) + len(found.skipped) == len(rows) + 1
    for task in found.tasks:
        sound(task)


def test_gold_that_would_score_an_abstention_as_right_is_refused(tmp_path):
    rows = (
        {"question": "Who?", "answers": [""]}, {"question": "Who?", "answers": ["The", ")"]},
        {"question": "Who?", "answers": ["x", ")"]}, {"question": "Which?", "choices": ["a", "b"],
        "right": 0},
    )  # fmt: skip
    found = load(str(written(tmp_path, "q.jsonl", rows)), DataFolder(tmp_path, tmp_path))
    assert [task.answers for task in found.tasks] == [("x",), ("a",)]
    assert all("normalises to nothing" in problem for problem in found.skipped)
    for task in found.tasks:
        assert score_one("set", "squad", task, answered(task, "")).em == 0
        assert score_one("set", "squad", task, answered(task, "")).right == 0


LISTS = (
    ("nq_open", {"row": 1, "question": "Who?", "answer": ["x"]}, "answer"),
    ("bamboogle", {"id": "b", "Question": "Who?", "answer": ["x"]}, "answer"),
    ("frames", {"id": 1, "Question": "Who?", "reasoning_types": "t", "answer": ["x"]}, "answer"),
)


@pytest.mark.parametrize(("name", "row", "field"), LISTS)
def test_a_text_where_a_list_of_answers_belongs_is_not_cut_into_letters(name, row, field, tmp_path):
    written(tmp_path, "wiki_passages/corpus.jsonl.gz", [])
    rows = [{**row, field: value, "id": f"i{n}", "row": n} for n, value in enumerate(WRONG)]
    rows += [{**row, "id": f"j{n}", "row": 100 + n} for n in range(30)]
    written(tmp_path, f"{name}/qa.jsonl.gz", rows)
    found = load(name, DataFolder(tmp_path, tmp_path))
    assert {task.answers for task in found.tasks} <= {("x",), ()}
    assert ("x",) in {task.answers for task in found.tasks}
    assert any("'answer' is not a list of texts: 'text'" in line for line in found.skipped)


def test_broken_rows_of_side_files_are_counted(tmp_path):
    data = DataFolder(tmp_path, tmp_path / "cache")
    written(tmp_path, "scifact/corpus.jsonl.gz", [])
    written(tmp_path, "scifact/queries.jsonl", [{"_id": n, "text": "So?"} for n in (1, 2)])
    (tmp_path / "scifact" / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n1\td\t1\n2\td\tx\n2\n"
    )
    found = load("scifact", data)
    assert [(task.id, task.evidence) for task in found.tasks] == [("1", ("d",))]
    assert ["qrels.tsv:3" in found.skipped[0], "qrels.tsv:4" in found.skipped[1]] == [True, True]
    assert "no relevant passage for '2'" in found.skipped[2]

    row = {"QUESTION": "So?", "CONTEXTS": ["It is."], "final_decision": "yes"}
    rows = [{**row, "pmid": n} for n in range(30)]
    rows += [{**row, "pmid": 30, "CONTEXTS": None}, {**row, "pmid": 31, "CONTEXTS": [None]}]
    written(tmp_path, "pubmedqa/qa.jsonl.gz", rows)
    found = load("pubmedqa", data)
    assert found.tasks
    places = ["qa.jsonl.gz:31: 'CONTEXTS'", "qa.jsonl.gz:32: 'CONTEXTS'"]
    assert [part in line for part, line in zip(places, found.skipped, strict=True)] == [True, True]

    asked = {"question": "So?", "answer": "x", "type": "t", "supporting_facts": [["A", 0]]}
    rows = [{**asked, "id": f"q{n}", "context_ids": ["1"]} for n in range(30)]
    written(tmp_path, "hotpotqa/qa.jsonl.gz", rows)
    written(tmp_path, "hotpotqa/corpus.jsonl.gz", [{"id": 1, "title": "A"}, {"id": 2}])
    found = load("hotpotqa", data)
    assert all(task.evidence == ("1",) for task in found.tasks)
    assert ["corpus.jsonl.gz:2" in line for line in found.skipped] == [True]


@pytest.fixture
def served(tmp_path):
    """A web folder on the loopback interface."""
    folder = tmp_path / "web"
    (folder / "nq_open").mkdir(parents=True)
    row = {"row": 2, "question": "Who?", "answer": ["x"]}
    (folder / "nq_open" / "qa.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_folder_are_fetched_once(served, tmp_path):
    data = DataFolder(served, tmp_path / "cache")
    path = data.file("nq_open/qa.jsonl.gz")
    assert data.origin == served
    assert [row["question"] for _, row in rows(path, [])] == ["Who?"]
    path.write_bytes(gzip.compress(b"{}"))
    assert data.file("nq_open/qa.jsonl.gz").read_bytes() == gzip.compress(b"{}")
    with pytest.raises(UsageError, match="404"):
        data.file("nq_open/other.jsonl")
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_cache_that_is_no_place_to_write_to_is_a_clear_error(served, tmp_path):
    (tmp_path / "cache").write_text("a file")
    for read in (
        lambda data: data.file("nq_open/qa.jsonl.gz"),
        lambda data: data.derived("b.jsonl", [{"x": 1}]),
    ):
        with pytest.raises(UsageError, match="cannot be kept in") as told:
            read(DataFolder(served, tmp_path / "cache"))
        assert "AGENT_HOME" in told.value.hint


def test_a_file_is_fetched_without_being_held_in_memory(served, tmp_path):
    with (tmp_path / "web/big.jsonl").open("wb") as out:
        out.truncate(32 << 20)
    tracemalloc.start()
    try:
        found = DataFolder(served, tmp_path / "cache").file("big.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.stat().st_size == 32 << 20
    assert peak < 8 << 20


def test_a_file_that_breaks_off_leaves_nothing_behind(tmp_path):
    class Short(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        data = DataFolder(f"http://127.0.0.1:{server.server_port}", tmp_path)
        try:
            with pytest.raises(UsageError, match="cannot be fetched"):
                data.file("x.jsonl")
        finally:
            server.shutdown()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["nq_open/other.jsonl", "gone/x.jsonl", "nowhere"])
def test_the_password_of_a_web_folder_is_sent_and_never_shown(path, tmp_path):
    seen = []

    class Guarded(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_response(302 if "gone" in self.path else 403)
            self.send_header("Location", "/signed?token=secret-sign")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://me:secret-word@127.0.0.1:{server.server_port}/data"
    if path == "nowhere":
        address = "http://me:secret-word@127.0.0.1:9/data"
    try:
        with pytest.raises(UsageError, match="cannot be fetched") as caught:
            DataFolder(address, tmp_path).file(path)
        with pytest.raises(UsageError) as own:
            load(f"{address}/{path}.jsonl", DataFolder("", tmp_path))
        with pytest.raises(UsageError) as other:
            load(f"{address}/..jsonl/", DataFolder("", tmp_path))
    finally:
        server.shutdown()
        server.server_close()
    assert "secret" not in "".join(
        f"{error.value.message} {error.value.hint}" for error in (caught, own, other)
    )
    if path != "nowhere":
        assert set(seen) == {"Basic " + base64.b64encode(b"me:secret-word").decode()}


def test_questions_at_a_url_are_fetched_and_name_no_local_file(served, tmp_path):
    data = DataFolder("", tmp_path / "cache")
    own = {"question": "Who?", "answers": ["x"], "id": "a"}
    written(tmp_path / "web", "my set/q.jsonl", [own, {**own, "id": "b", "corpus": ["/etc"]}])
    found = load(f"{served}my%20set/q.jsonl", data)
    assert found.origin == f"{served}my%20set/q.jsonl"
    assert (found.name, [task.id for task in found.tasks], found.corpus) == ("q", ["a"], ())
    assert "a fetched file may not" in found.skipped[0]
    for wrong, message in (
        (f"{served}q.jsonl", "404"),
        (f"{served}q.csv", "ends in neither"),
        ("ftp://host/q.jsonl", "names no file that can be fetched"),
        ("hf://owner/q.jsonl", "names no file that can be fetched"),
        ("hf://owner/name/a/../../q.jsonl", "names no file that can be fetched"),
        ("hf://owner/name/%2E%2E/q.jsonl", "names no file that can be fetched"),
        (f"{served}..%2F..%2Fq.jsonl", "names no file that can be fetched"),
        (f"{served}..%5C..%5Cq.jsonl", "names no file that can be fetched"),
        (f"{served}q%00.jsonl", "names no file that can be fetched"),
        (f"https://{'a' * 70}.org/q.jsonl", "cannot be fetched"),
        ("https://xn--/q.jsonl", "URL is not valid"),
        ("https://host\x01/q.jsonl", "URL is not valid"),
    ):
        with pytest.raises(UsageError, match=message):
            load(wrong, data)


def test_a_set_says_where_its_data_came_from(tmp_path, monkeypatch):
    place = tmp_path / "datasets--owner--name" / "snapshots" / "0123abcd"
    own = written(place, "q.jsonl", [{"question": "Who?", "answers": ["x"]}])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name, **__: str(place / name))
    hub = DataFolder("hf://owner/name@main", tmp_path)
    hub.file("q.jsonl")
    assert hub.origin == "hf://owner/name@0123abcd"
    assert load("library", hub).origin == ""
    assert load("hf://owner/name/q.jsonl", hub).origin == "hf://owner/name@0123abcd/q.jsonl"
    assert load(str(own), hub).origin == str(own.resolve())


# what a row may hold, by field; `#` stands for the number of the row
VALUES = {
    **dict.fromkeys(("question", "Question", "QUESTION", "text", "claim", "sentence"), "So #?"),
    **dict.fromkeys(("id", "_id", "ex_id", "qid", "ID", "pmid", "question_id", "row"), "#"),
    "answer": "x", "answers": ["x"], "all_answers": [], "answer_aliases": ["y"], "type": "t",
    "supporting_facts": [["A", 0]], "context_ids": ["p"], "context_id": "p", "title": "T#",
    "supporting_idx": [0], "hop": 2, "answerable": True, "decomposition": ["a"], "facts": ["b"],
    "question_decomposition": [{"question": "a", "answer": "b"}], "is_impossible": True,
    "CONTEXTS": ["It is."], "final_decision": "yes", "options": {"A": "red", "B": "blue"},
    "answer_idx": "B", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1,
    "reasoning_types": "t", "compositionality_type": "t", "level": "l", "topic_entity": "E#",
    "qtype": "t", "answers_match_kb": True, "smiles": "C#", "p_np": "1", "Class": "1",
    "CT_TOX": "1", "HIV_active": "0", "measured log solubility in mols per litre": "-1.1440000000000001",
    "expt": "-2.5", "exp": "3", "gold path": "A_#", "one answer": "B(B/)",
}  # fmt: skip
QALD = {"question": [{"language": "en", "string": "So #?"}], "answers": [{"boolean": True}]}
OTHERWISE = {
    **dict.fromkeys(("qald9", "qald9plus", "qald10"), QALD),
    **{
        key: {"answer": ["x"]}
        for key in ("nq_open", "bamboogle", "frames", "nq_titles", "selfaware")
    },
    "triviaqa": {"answer": '["x"]'},
    "strategyqa": {"answer": True},
    "squad2": {"answers": []},
    "grailqa": {"answer": [{"answer_argument": "m.1"}]},
    "fever": {"label": "SUPPORTS"},
    "creak": {"label": "true"},
}
SIDE = {
    ".gz": gzip.compress(b""),
    "qrels.tsv": b"query-id\tcorpus-id\tscore\n" + b"".join(b"%d\td\t1\n" % n for n in range(30)),
    ".tsv": b"A\tr\tB\n",
}


def documented():
    """Set to files of questions, their fields and other files, from the table of the documentation."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
    table = page.split("| set | questions | fields of a row |")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        cells = [re.sub(r"\([^)]*\)", "", cell) for cell in line.split("|")[1:-1]]
        assert re.search(r"\w\.\w", cells[4]), f"no original: {line}"
        names, files, fields, others = (re.findall(r"`([^`]+)`", cell) for cell in cells[:4])
        for name in names:
            found[name] = ([one.replace("NAME", name) for one in files], fields,
                           [one.replace("NAME", name) for one in others])  # fmt: skip
    return found


class Noted(DataFolder):
    """Tells which files were asked for."""

    def file(self, name):
        self.asked = {*getattr(self, "asked", ()), name}
        return super().file(name)


def lay_out(folder, name, leave_out=""):
    """A data folder of nothing but what the documentation says of a set."""
    files, fields, others = documented()[name]
    for other in others:
        path = folder / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(next(content for end, content in SIDE.items() if other.endswith(end)))
    values = {**VALUES, **OTHERWISE.get(name, {})}
    for number, file in enumerate(files):
        rows = [
            {key: json.loads(json.dumps(values[key]).replace("#", f"{number}{n}" if number else str(n)))
             for key in fields if key != leave_out}
            for n in range(30)
        ]  # fmt: skip
        if file.endswith((".tsv", ".csv")):
            mark = "\t" if file.endswith(".tsv") else ","
            heads = [] if mark == "\t" else [mark.join(rows[0])]
            path = written(folder, file, [])
            path.write_text("\n".join(heads + [mark.join(row.values()) for row in rows]) + "\n")
        else:
            written(folder, file, rows)
    return Noted(folder, folder / "cache")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "library"])
def test_the_documented_files_and_fields_are_what_a_set_needs(name, tmp_path):
    files, fields, others = documented()[name]
    data = lay_out(tmp_path / "all", name)
    found = load(name, data)
    assert found.tasks
    assert not found.skipped
    assert data.asked == {*files, *others}
    for number, field in enumerate(fields):
        less = load(name, lay_out(tmp_path / str(number), name, leave_out=field))
        assert not less.tasks, f"{field} is not needed"
        assert less.skipped


def test_a_web_folder_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be fetched"):
        DataFolder("http://127.0.0.1:9", tmp_path).file("x.jsonl")


def test_derived_files_are_written_once_and_again_when_rows_change(tmp_path):
    data = DataFolder("anywhere", tmp_path)
    path = data.derived("a/b.jsonl", [{"x": 1}])
    before = path.stat().st_mtime_ns
    assert data.derived("a/b.jsonl", [{"x": 1}]).stat().st_mtime_ns == before
    assert data.derived("a/b.jsonl", [{"x": 2}]).read_text() == '{"x": 2}\n'
