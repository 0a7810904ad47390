from agent.toolbox import find_index, index_of
from tools.search import manifest


def test_a_new_index_format_builds_the_cached_index_again(tmp_path, monkeypatch):
    corpus = (tmp_path / "tin.md",)
    corpus[0].write_text("Tin melts early.")
    folder = index_of(corpus, tmp_path / "indexes")
    assert find_index(corpus, tmp_path / "indexes") == folder
    monkeypatch.setattr(manifest, "FORMAT_VERSION", manifest.FORMAT_VERSION + 1)
    assert find_index(corpus, tmp_path / "indexes") is None
