"""Question sets: what a file holds, and what is said of one that is wrong."""

import gzip
import http.server
import json
import threading
from functools import partial

import pytest

from eval.benchmarks import NAMES, DataFolder, load
from eval.benchmarks.base import choices, read_tasks, rows, split_of, titles_to_ids
from eval.benchmarks.own import task_of
from kg.errors import UsageError

GOLD_FREE = ("scifact", "fiqa")  # the samples hold no verdicts
REPEATS = {"pathquestion", "wc2014", "clintox"}  # their files hold some rows twice


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_every_set_gives_tasks_with_answers_and_a_corpus(name, data):
    found = load(name, data, "test")
    assert len(found.tasks) > 20
    assert bool(found.skipped) == (name in REPEATS)
    assert all("there already" in problem for problem in found.skipped)
    assert all(path.is_file() for path in (*found.corpus, *found.graph))
    assert found.corpus or found.needs or name == "library"
    for task in found.tasks:
        assert task.answers or task.answerable is False or name in GOLD_FREE
        assert task.evidence or name not in GOLD_FREE


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


def test_a_set_over_a_graph_says_which_tool_it_needs(tmp_path):
    from agent.settings import load_settings
    from eval.run import EvalRequest, run

    folder = tmp_path / "data" / "wc2014"
    folder.mkdir(parents=True)
    (folder / "kb.tsv").write_text("A_B\tplays\tC\n")
    row = "where does A_B play ?\tC\tA_B#plays#C\tC/\n"
    (folder / "path2.tsv").write_text("".join(row.replace("A_B", f"A_{n}") for n in range(30)))
    (folder / "conjunctive.tsv").write_text("cut off\n")
    settings = load_settings(tools=("search", "judge"), home=tmp_path / "home")
    request = EvalRequest(benchmarks=("wc2014",), data=str(tmp_path / "data"))
    with pytest.raises(UsageError, match="need the tool 'kg'"):
        run(request, settings, tmp_path / "run")
    found = load("wc2014", DataFolder(str(tmp_path / "data"), tmp_path))
    assert 0 < len(found.tasks) < 30
    assert ["conjunctive.tsv:1" in problem for problem in found.skipped] == [True]


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
    assert task.answers == ("blue", "B")


def test_titles_to_ids(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": 1, "title": "A"}\n{"id": 2, "title": "A"}\n')
    assert titles_to_ids(tmp_path / "c.jsonl") == {"A": ["1", "2"]}


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
    assert [row["question"] for _, row in rows(path, [])] == ["Who?"]
    path.write_bytes(gzip.compress(b"{}"))
    assert data.file("nq_open/qa.jsonl.gz").read_bytes() == gzip.compress(b"{}")
    with pytest.raises(UsageError, match="404"):
        data.file("nq_open/other.jsonl")
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_web_folder_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be fetched"):
        DataFolder("http://127.0.0.1:9", tmp_path).file("x.jsonl")


def test_derived_files_are_written_once_and_again_when_rows_change(tmp_path):
    data = DataFolder("anywhere", tmp_path)
    path = data.derived("a/b.jsonl", [{"x": 1}])
    before = path.stat().st_mtime_ns
    assert data.derived("a/b.jsonl", [{"x": 1}]).stat().st_mtime_ns == before
    assert data.derived("a/b.jsonl", [{"x": 2}]).read_text() == '{"x": 2}\n'
