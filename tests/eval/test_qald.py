"""QALD: which answers can be told in words, and what is said of the others."""

import pytest

from eval.benchmarks import DataFolder, load
from eval.metrics import normalise
from eval.sample import score_one
from kg.errors import UsageError
from tests.eval.files import answered, written


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
