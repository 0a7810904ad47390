"""Question sets: what a file holds, and what is said of one that is wrong."""

import gzip
import json

import pytest

from eval.benchmarks import NAMES, DataFolder, load
from eval.benchmarks.base import choices, read_tasks, rows, split_of, titles_to_ids
from eval.benchmarks.own import task_of
from eval.benchmarks.paths import path_tasks
from eval.metrics import normalise
from eval.sample import score_one
from kg.errors import UsageError
from tests.eval.files import answered, documented, written

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
