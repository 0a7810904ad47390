import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kg.cores import CORES
from kg.errors import UsageError
from tools.search.build import build_index
from tools.search.embedder import Embedder, find_embedder, fingerprint_folder
from tools.search.errors import (
    EmbedderUnavailableError,
    SearchIndexCorruptError,
    SearchIndexMismatchError,
)
from tools.search.index import Index
from tools.search.settings import IndexSettings


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


@pytest.fixture(scope="module")
def index(built):
    with Index.open(built) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "dense"])
def test_each_mode_finds_the_passage(index, mode):
    hits = index.search("who discovered radium", 2, mode)
    assert hits[0].id == "curie"
    assert hits[0].source.endswith("facts.jsonl:1")
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def test_dense_finds_by_meaning_what_lexical_cannot(index):
    query = "medicine against pain and high temperature"
    assert index.search(query, 1, "dense")[0].id == "aspirin"
    assert "aspirin" not in [hit.id for hit in index.search(query, 3, "lexical")]


def test_one_letter_words_count(index):
    assert index.search("C", 1, "lexical")[0].id == "vitamin"


def test_queries_with_nothing_known_are_answered(index):
    assert index.search("   ") == []
    assert index.search("zzyzx qwxv", mode="lexical") == []
    assert len(index.search("zzyzx qwxv", 3)) == 3
    assert len(index.search("the of and", 3)) == 3
    assert index.search("\x00radium", 1)[0].id == "curie"


def test_many_queries_give_what_single_ones_give(index):
    queries = ["radium", "", "why am I awake", "sailors"]
    many = index.search_many(queries, 3)
    for query, hits in zip(queries, many, strict=True):
        single = index.search(query, 3)
        assert [hit.id for hit in hits] == [hit.id for hit in single]


def test_concurrent_queries_agree_with_sequential_ones(index):
    queries = [f"{word} {n}" for n in range(10) for word in ("radium", "helium", "scurvy", "sleep")]
    alone = [[hit.id for hit in index.search(query)] for query in queries]
    with ThreadPoolExecutor(8) as pool:
        together = [[hit.id for hit in hits] for hits in pool.map(index.search, queries)]
    assert together == alone


def test_threads_that_open_an_index_read_numpy_headers_one_at_a_time(
    corpus, tmp_path, lexical_settings, monkeypatch
):
    build_index([corpus], tmp_path / "index", lexical_settings)
    load, busy = np.load, threading.Lock()

    def alone(*arguments, **options):
        assert busy.acquire(blocking=False)
        try:
            time.sleep(0.01)
            return load(*arguments, **options)
        finally:
            busy.release()

    monkeypatch.setattr(np, "load", alone)
    with ThreadPoolExecutor(4) as pool:
        for index in pool.map(Index.open, [tmp_path / "index"] * 8):
            index.close()


def test_equal_texts_are_one_result(tmp_path):
    rows = [{"id": name, "title": name, "text": "The same text."} for name in ("b", "a", "c")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    build_index([path], tmp_path / "index")
    with Index.open(tmp_path / "index") as opened:
        for mode in ("hybrid", "lexical", "dense"):
            assert [hit.id for hit in opened.search("same text", 3, mode)] == ["a"]


def test_bad_requests_are_usage_errors(index):
    with pytest.raises(UsageError, match="at least 1"):
        index.search("x", 0)
    with pytest.raises(UsageError, match="no search mode"):
        index.search("x", 1, "fuzzy")


def test_info_is_json_and_names_the_settings(index):
    facts = json.loads(json.dumps(index.info()))
    assert facts["passages"] == len(index) == 6
    assert facts["dense"]["kind"] == "flat"
    assert facts["embedder"]["dimension"] == 384
    assert facts["settings"]["rrf_k"] == 60


def test_an_index_without_vectors_needs_no_embedder(corpus, tmp_path, lexical_settings):
    build_index([corpus], tmp_path / "index", lexical_settings)
    with Index.open(tmp_path / "index", lexical_settings) as opened:
        assert opened.search("scurvy")[0].id == "vitamin"
        with pytest.raises(UsageError, match="no vectors"):
            opened.search("scurvy", mode="dense")


@pytest.mark.parametrize(
    "name",
    [
        "passages.sqlite",
        "vectors.npy",
        "canonical.npy",
        "lexical/data.csc.index.npy",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_damage_is_named_with_the_way_out(copy, name, damage):
    data = next(copy.glob("data-*"))
    path = copy / name if name == "manifest.json" else data / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        half = len(content) // 2
        flipped = bytes([content[half] ^ 0xFF])
        path.write_bytes(content[:half] + (flipped + content[half + 1 :]) * (damage == "flipped"))
    with pytest.raises(SearchIndexCorruptError) as caught:
        Index.open(copy)
    assert path.name in str(caught.value) or str(copy) in str(caught.value)
    assert "agent index build" in caught.value.hint
    assert caught.value.exit_code == 6


def test_a_manifest_that_lies_about_its_files_is_caught(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["passages"] = 99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SearchIndexCorruptError, match="has 6 rows, not 99"):
        Index.open(copy)


def test_other_settings_are_a_mismatch(built):
    with pytest.raises(SearchIndexMismatchError, match=r"b=0\.75") as caught:
        Index.open(built, IndexSettings(b=0.4))
    assert caught.value.exit_code == 2
    Index.open(built, IndexSettings()).close()


@pytest.mark.parametrize("version", [1, 99])
def test_another_format_version_is_a_mismatch(copy, version):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    with pytest.raises(SearchIndexMismatchError, match=f"format {version}, not") as caught:
        Index.open(copy)
    assert "agent index build" in caught.value.hint


def test_a_folder_that_is_no_index_says_so(tmp_path):
    with pytest.raises(SearchIndexCorruptError, match="no such index"):
        Index.open(tmp_path / "absent")
    with pytest.raises(SearchIndexCorruptError, match="not an index"):
        Index.open(tmp_path)


def test_another_embedder_is_a_mismatch_and_an_absent_one_unavailable(built, tmp_path):
    other = shutil.copytree(find_embedder("all-MiniLM-L6-v2"), tmp_path / "other")
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10_000:] = bytes(10_000)
    weights.write_bytes(content)
    with pytest.raises(SearchIndexMismatchError, match="not the one"):
        Index.open(built, embedder=str(other))
    with pytest.raises(EmbedderUnavailableError):
        Index.open(built, embedder=str(tmp_path / "absent"))


def test_the_embedder_gives_sentence_transformers_own_vectors():
    from sentence_transformers import SentenceTransformer

    folder = find_embedder("all-MiniLM-L6-v2")
    texts = ["short", "a rather longer text about the discovery of radium", "ß 字"]
    expected = SentenceTransformer(str(folder)).encode(texts, normalize_embeddings=True)
    ours = Embedder(folder).encode_passages(texts)
    assert np.allclose(ours, expected, atol=1e-6)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_prefixes_come_from_the_settings_else_from_the_folder(tmp_path):
    config = {"prompts": {"query": "query: ", "document": "passage: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    own = Embedder(tmp_path)
    assert (own.query_prefix, own.passage_prefix) == ("query: ", "passage: ")
    assert Embedder(tmp_path, query_prefix="q ").query_prefix == "q "
    plain = Embedder(find_embedder("all-MiniLM-L6-v2"))
    prefixed = Embedder(plain.folder, query_prefix="query: ")
    same = prefixed.encode_queries(["radium"]) - plain.encode_queries(["query: radium"])
    assert np.abs(same).max() < 1e-6


def test_an_embedder_folder_without_weights_is_unavailable(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EmbedderUnavailableError, match="does not load"):
        Embedder(tmp_path).encode_queries(["x"])
    assert fingerprint_folder(tmp_path)


def test_opening_and_lexical_search_do_not_import_torch(built):
    script = (
        "import sys; from tools.search.index import Index;"
        f"index = Index.open({str(built)!r}); index.search('radium', mode='lexical');"
        "assert 'torch' not in sys.modules and 'sentence_transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.data
def test_hotpotqa_titles_are_found(data, tmp_path, lexical_settings):
    build_index([data.file("hotpotqa/corpus.jsonl.gz")], tmp_path / "index", lexical_settings)
    with Index.open(tmp_path / "index") as opened:
        hits = opened.search("actress who portrayed Corliss Archer in the film Kiss and Tell", 5)
    assert "Kiss and Tell (1945 film)" in [hit.title for hit in hits]


def test_copies_of_one_text_do_not_take_the_places_of_others(tmp_path, lexical_settings):
    rows = [{"id": f"copy{n:03}", "title": "", "text": "Iron iron iron."} for n in range(300)]
    rows += [
        {"id": f"other{n}", "title": "", "text": f"Iron with {n} parts of tin."} for n in range(4)
    ]
    out = tmp_path / "index"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index([path], out, lexical_settings)
    with Index.open(out) as index:
        found = [hit.id for hit in index.search("iron", 5)]
        assert found[0] == "copy000"
        assert sorted(found[1:]) == [f"other{n}" for n in range(4)]


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_approximate_index_gives_k_texts_too(kind, mode, tmp_path):
    rows = [{"id": f"copy{n:03}", "text": "Iron iron iron."} for n in range(400)]
    rows += [{"id": f"other{n}", "text": f"{n} parts of tin."} for n in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the least target keeps the beam at 1: one list of an ivf index is searched
    build_index([path], tmp_path / "index", IndexSettings(dense=kind, recall_target=1e-9))
    with Index.open(tmp_path / "index") as index:
        assert len(index.search("iron", 5, mode)) == 5
        assert len(index.search("iron", 9, mode)) == 5  # all there are


def test_settings_that_name_another_embedder_are_a_mismatch(built, tmp_path):
    other = shutil.copytree(find_embedder("all-MiniLM-L6-v2"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "note": "another"}))
    assert Index.open(built, IndexSettings()).digest
    with pytest.raises(SearchIndexMismatchError, match="not the one"):
        Index.open(built, IndexSettings(embedder=str(other)))


def test_queries_are_encoded_in_a_turn_and_passages_are_not():
    embedder = Embedder(find_embedder("all-MiniLM-L6-v2"))
    embedder.load()
    with ThreadPoolExecutor(1) as pool:
        with CORES.turn():
            assert embedder.encode_passages(["A fact."]).shape[0] == 1
            asked = pool.submit(embedder.encode_queries, ["Which fact?"])
            with pytest.raises(TimeoutError):
                asked.result(0.5)
        assert asked.result(60).shape[0] == 1
