import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from filelock import FileLock

from kg.errors import UsageError
from tools.search import assemble
from tools.search.build import add, build_index, delete
from tools.search.errors import EmbedderUnavailableError, SearchIndexWriteError
from tools.search.index import Index
from tools.search.settings import IndexSettings


def _rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _numbered(path, count):
    return _rows(path, [{"id": f"n{n:03}", "text": f"Fact {n} of {n * 7}"} for n in range(count)])


def _vectors(path):
    return np.load(next(path.glob("data-*")) / "vectors.npy")


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def test_a_second_build_of_the_same_corpus_changes_nothing(copy, corpus):
    before = (copy / "manifest.json").read_bytes()
    report = build_index([corpus], copy)
    assert report.unchanged
    assert report.embedded == 0
    assert (copy / "manifest.json").read_bytes() == before


def test_the_digest_does_not_depend_on_the_place_or_order(corpus, tmp_path, lexical_settings):
    rows = corpus.read_text().splitlines(keepends=True)
    other = tmp_path / "reversed.jsonl"
    other.write_text("".join(reversed(rows)))
    first = build_index([corpus], tmp_path / "a", lexical_settings)
    second = build_index([other], tmp_path / "b", lexical_settings)
    assert first.manifest.digest == second.manifest.digest


def test_killed_builds_go_on_from_their_shards(tmp_path):
    corpus, out = _numbered(tmp_path / "rows.jsonl", 300), tmp_path / "index"
    script = f"""
import os, signal
from tools.search import shards
from tools.search.build import build_index
shards.SHARD_ROWS = 64
def progress(stage, done, total):
    if stage == "embed" and done > 128:
        os.kill(os.getpid(), signal.SIGKILL)
build_index([{str(corpus)!r}], {str(out)!r}, progress=progress)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    report = build_index([corpus], out)
    assert report.embedded == 300 - 128
    fresh = build_index([corpus], tmp_path / "fresh")
    assert report.manifest.digest == fresh.manifest.digest
    assert np.allclose(_vectors(out), _vectors(tmp_path / "fresh"), atol=1e-5)
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        report.manifest.data,
        "manifest.json",
    ]


def test_a_failed_rebuild_leaves_the_old_index_answering(copy, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assemble, "write_vectors", full)
    with pytest.raises(SearchIndexWriteError, match="No space left") as caught:
        add(copy, [_numbered(tmp_path / "more.jsonl", 3)])
    assert caught.value.exit_code == 6
    with Index.open(copy) as index:
        assert index.search("radium", 1)[0].id == "curie"
    monkeypatch.undo()
    assert add(copy, [tmp_path / "more.jsonl"]).embedded == 0


def test_add_embeds_only_what_is_new_and_replaces_by_id(copy, tmp_path):
    more = [
        {"id": "neon", "title": "Neon", "text": "Neon lamps glow orange."},
        {"id": "helium", "title": "Helium", "text": "Helium fills party balloons."},
    ]
    before = (copy / "manifest.json").stat()
    report = add(copy, [_rows(tmp_path / "more.jsonl", more)])
    assert (report.embedded, report.deleted, report.passages, report.documents) == (2, 1, 7, 7)
    assert (copy / "manifest.json").stat() != before
    with Index.open(copy) as index:
        assert index.search("orange lamps", 1)[0].id == "neon"
        texts = [hit.text for hit in index.search("helium", 7)]
        assert "Helium fills party balloons." in texts
        assert not any("sunlight" in text for text in texts)
        assert len(index.manifest.sources) == 2


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "dense"])
def test_deleted_passages_are_never_returned(copy, mode):
    report = delete(copy, ["curie", "absent"])
    assert (report.embedded, report.deleted, report.passages) == (0, 1, 5)
    assert [problem.where for problem in report.problems] == ["absent"]
    with Index.open(copy) as index:
        assert "curie" not in [hit.id for hit in index.search("who discovered radium", 6, mode)]


def test_deleting_a_document_takes_all_its_passages(tmp_path, lexical_settings):
    text = "Quartz rings at a steady pitch in watches. " * 60
    (tmp_path / "quartz.txt").write_text(text)
    (tmp_path / "mica.txt").write_text("Mica splits into sheets.")
    out = tmp_path / "index"
    build_index([tmp_path / "quartz.txt", tmp_path / "mica.txt"], out, lexical_settings)
    report = delete(out, ["quartz.txt"])
    assert report.deleted > 1
    assert report.documents == 1
    with Index.open(out) as index:
        assert index.search("quartz watches") == []


def test_deleting_nothing_or_everything_is_refused(copy):
    with pytest.raises(UsageError, match="none of the ids"):
        delete(copy, ["absent"])
    everything = ["curie", "mendeleev", "aspirin", "caffeine", "helium", "vitamin"]
    with pytest.raises(UsageError, match="empty"):
        delete(copy, everything)
    with Index.open(copy) as index:
        assert len(index) == 6


def test_bad_rows_and_duplicates_are_counted_with_their_line(tmp_path, lexical_settings):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n{broken\n{"id": "a", "text": "two"}\n')
    report = build_index([path], tmp_path / "index", lexical_settings)
    assert (report.passages, report.skipped) == (1, 2)
    assert [problem.where for problem in report.problems] == [f"{path}:2", f"{path}:3"]
    assert "duplicate id 'a'" in report.problems[1].message
    assert report.manifest.sources[0].skipped == 2


def test_a_corpus_with_no_passage_is_a_usage_error_naming_the_first_problem(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: broken JSON"):
        build_index([path], tmp_path / "index")
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_a_foreign_folder_is_not_written_into(tmp_path, corpus):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(UsageError, match="not an index"):
        build_index([corpus], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_two_builds_of_one_folder_do_not_mix(copy, corpus):
    with FileLock(copy / ".lock"), pytest.raises(UsageError, match="another process"):
        build_index([corpus], copy)


def test_an_unknown_embedder_or_stemmer_fails_with_the_choices(corpus, tmp_path):
    with pytest.raises(EmbedderUnavailableError):
        build_index([corpus], tmp_path / "a", IndexSettings(embedder="no/such/folder"))
    with pytest.raises(UsageError, match="klingon") as caught:
        build_index([corpus], tmp_path / "b", IndexSettings(dense="none", stemmer="klingon"))
    assert "english" in caught.value.hint


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_records_its_recall_and_beam(kind, tmp_path):
    corpus = _numbered(tmp_path / "rows.jsonl", 130)
    report = build_index([corpus], tmp_path / "index", IndexSettings(dense=kind))
    dense = report.manifest.dense
    assert dense.recall_at_10 >= 0.95
    assert dense.recall_queries == 130
    assert (dense.nprobe if kind == "ivf" else dense.ef_search) >= 1
    assert delete(tmp_path / "index", ["n007"]).manifest.dense.kind == kind
    with Index.open(tmp_path / "index") as index:
        ids = [hit.id for hit in index.search("Fact 7 of 49", 10, "dense")]
        assert len(ids) == 10
        assert "n007" not in ids


def test_a_large_corpus_gets_ivf_without_being_asked(tmp_path):
    assert IndexSettings().dense_kind(49_999) == "flat"
    assert IndexSettings().dense_kind(50_000) == "ivf"
    corpus = _numbered(tmp_path / "rows.jsonl", 20)
    report = build_index([corpus], tmp_path / "index", IndexSettings(flat_below=10))
    assert report.manifest.dense.kind == "ivf"


def test_a_rebuild_cures_a_damaged_index(copy, corpus):
    (next(copy.glob("data-*")) / "vectors.npy").write_bytes(b"")
    report = build_index([corpus], copy)
    assert not report.unchanged
    with Index.open(copy) as index:
        assert index.search("radium", 1)[0].id == "curie"


def test_files_of_one_name_keep_apart_and_each_replaces_only_itself(tmp_path, lexical_settings):
    for number, place in enumerate(("a/notes", "b/notes", "c"), 1):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.md").write_text(f"Copper mine number {number}.")
    out = tmp_path / "index"
    folders = [tmp_path / "a/notes", tmp_path / "b/notes"]
    first = build_index(folders, out, lexical_settings)
    assert (first.documents, first.problems) == (2, [])
    report = add(out, [tmp_path / "c/x.md"])
    assert (report.documents, report.deleted) == (3, 0)
    ids = {"notes/x.md": 1, "b/notes/x.md": 2, "x.md": 3}
    with Index.open(out) as index:
        assert {p.document: int(p.text[-2]) for p in index.passages()} == ids
    (tmp_path / "b/notes/x.md").write_text("Copper mine number 9.")
    report = add(out, [tmp_path / "b/notes/x.md"])  # as a file, though it came with its folder
    assert (report.documents, report.deleted) == (3, 1)
    assert len(report.manifest.sources) == 3
    with Index.open(out) as index:
        assert {p.document: int(p.text[-2]) for p in index.passages()} == {**ids, "b/notes/x.md": 9}


def test_a_file_named_twice_is_one_document(tmp_path, lexical_settings):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/x.md").write_text("Tin melts early.")
    paths = [tmp_path / "notes", tmp_path / "notes/x.md"]
    report = build_index(paths, tmp_path / "index", lexical_settings)
    assert (report.documents, report.problems) == (1, [])


def test_a_corpus_that_moved_replaces_its_own_documents(tmp_path, lexical_settings):
    (tmp_path / "old/notes").mkdir(parents=True)
    (tmp_path / "old/notes/x.md").write_text("Tin melts early.")
    out = tmp_path / "index"
    build_index([tmp_path / "old/notes"], out, lexical_settings)
    (tmp_path / "old").rename(tmp_path / "new")
    report = add(out, [tmp_path / "new/notes"])
    assert (report.documents, report.deleted) == (1, 1)


def test_a_new_id_that_is_a_passage_of_another_document_is_refused(tmp_path, lexical_settings):
    long = "Quartz rings at a steady pitch in watches. " * 60
    out = tmp_path / "index"
    build_index(
        [_rows(tmp_path / "a.jsonl", [{"id": "q", "text": long * 3}])], out, lexical_settings
    )
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="'q#2' of a new document is that of a passage of 'q'"):
        add(out, [_rows(tmp_path / "b.jsonl", [{"id": "q#2", "text": "Another text."}])])
    assert (out / "manifest.json").read_bytes() == before
    with Index.open(out, verify=True) as index:
        assert {p.document for p in index.passages()} == {"q"}


def test_rows_that_moved_within_their_file_are_cited_where_they_stand(tmp_path, lexical_settings):
    rows = [{"id": "a", "text": "Tin melts early."}, {"id": "b", "text": "Iron melts late."}]
    out = tmp_path / "index"
    build_index([_rows(tmp_path / "rows.jsonl", rows)], out, lexical_settings)
    report = build_index([_rows(tmp_path / "rows.jsonl", rows[::-1])], out, lexical_settings)
    assert not report.unchanged
    with Index.open(out) as index:
        assert index.search("tin", 1)[0].source.endswith("rows.jsonl:2")
    add(out, [_rows(tmp_path / "rows.jsonl", [{"id": "c", "text": "Zinc."}, *rows])])
    with Index.open(out) as index:
        assert index.search("tin", 1)[0].source.endswith("rows.jsonl:2")
        assert index.search("iron", 1)[0].source.endswith("rows.jsonl:3")
    add(out, [_rows(tmp_path / "moved.jsonl", rows[:1])])
    with Index.open(out) as index:
        assert index.search("tin", 1)[0].source.endswith("moved.jsonl:1")


def test_a_reader_never_misses_the_index_while_others_change_it(tmp_path, lexical_settings):
    rows = [{"id": f"r{n}", "text": f"Iron bar {n}."} for n in range(5)]
    out = tmp_path / "index"
    build_index([_rows(tmp_path / "rows.jsonl", rows)], out, lexical_settings)
    stop, opened = threading.Event(), []

    def read():
        while not stop.is_set():
            with Index.open(out) as index:
                opened.append(index.search("iron bar", 3)[0].id)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for number in range(12):
            add(out, [_rows(tmp_path / "one.jsonl", [{"id": "new", "text": f"Rope {number}."}])])
        stop.set()
        for reader in readers:
            reader.result()
    assert len(opened) > 12
