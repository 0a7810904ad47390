"""Where the files of question sets come from: folders, web folders, the Hub."""

import base64
import gzip
import http.server
import json
import threading
import tracemalloc
from functools import partial

import huggingface_hub
import pytest

from eval.benchmarks import DataFolder, load
from eval.benchmarks.base import rows
from kg.errors import UsageError
from tests.eval.files import written


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


def test_a_web_folder_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be fetched"):
        DataFolder("http://127.0.0.1:9", tmp_path).file("x.jsonl")


def test_derived_files_are_written_once_and_again_when_rows_change(tmp_path):
    data = DataFolder("anywhere", tmp_path)
    path = data.derived("a/b.jsonl", [{"x": 1}])
    before = path.stat().st_mtime_ns
    assert data.derived("a/b.jsonl", [{"x": 1}]).stat().st_mtime_ns == before
    assert data.derived("a/b.jsonl", [{"x": 2}]).read_text() == '{"x": 2}\n'
