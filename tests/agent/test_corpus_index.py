import os

import pytest

from agent.corpus_index import find_index, index_of
from kg.errors import UsageError
from tools.search import manifest
from tools.search.index import Index


def test_a_new_index_format_builds_the_cached_index_again(tmp_path, monkeypatch):
    corpus = (tmp_path / "tin.md",)
    corpus[0].write_text("Tin melts early.")
    folder = index_of(corpus, tmp_path / "indexes")
    assert find_index(corpus, tmp_path / "indexes") == folder
    monkeypatch.setattr(manifest, "FORMAT_VERSION", manifest.FORMAT_VERSION + 1)
    assert find_index(corpus, tmp_path / "indexes") is None


def test_a_copy_in_place_of_a_file_is_the_same_corpus_and_a_new_text_is_another(tmp_path):
    corpus = (tmp_path / "tin.md",)
    corpus[0].write_text("Tin melts early.")
    folder = index_of(corpus, tmp_path / "indexes", mode="lexical")
    os.utime(corpus[0], (1, 1))
    assert find_index(corpus, tmp_path / "indexes", "lexical") == folder
    corpus[0].write_text("Tin melts late..")
    os.utime(corpus[0], (2, 2))
    assert find_index(corpus, tmp_path / "indexes", "lexical") is None


def test_an_unchanged_corpus_is_not_read_again(tmp_path, monkeypatch):
    corpus = (tmp_path / "tin.md",)
    corpus[0].write_text("Tin melts early.")
    folder = index_of(corpus, tmp_path / "indexes", mode="lexical")
    monkeypatch.setattr(manifest, "hash_file", lambda path: pytest.fail(f"{path} was read"))
    assert find_index(corpus, tmp_path / "indexes", "lexical") == folder


def test_lexical_searches_get_an_index_without_vectors_or_the_full_one_that_is_there(tmp_path):
    corpus = (tmp_path / "tin.md",)
    corpus[0].write_text("Tin melts early.")
    indexes = tmp_path / "indexes"
    folder = index_of(corpus, indexes, mode="lexical")
    with Index.open(folder) as index:
        assert index.manifest.settings.dense == "none"
        assert index.search("tin", mode="lexical")
    assert find_index(corpus, indexes, "lexical") == folder
    assert find_index(corpus, indexes, "hybrid") is None
    full = index_of(corpus, indexes)
    assert full != folder
    assert find_index(corpus, indexes, "lexical") == find_index(corpus, indexes) == full


def test_another_programs_manifest_is_no_index(tmp_path):
    page = tmp_path / "page"
    page.mkdir()
    (page / "manifest.json").write_text('{"name": "A web page", "version": 3}')
    (page / "notes.md").write_text("The ferry leaves at nine.")
    assert find_index((page,), tmp_path / "indexes") is None
    (page / "manifest.json").write_text('{"format": "turnwise-ind')  # cut off: an index, damaged
    assert find_index((page,), tmp_path / "indexes") == page


def test_a_home_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be kept"):
        find_index((), tmp_path / "file" / "indexes")
