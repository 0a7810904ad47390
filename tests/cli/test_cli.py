"""The command line as a person uses it: real processes, real policies, bad input.

What is said of answers is asked of the default policy, all else of the micro policy, which is quick.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import cli
from tests import forked

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "id", "thread_id", "status", "answer", "abstained", "confidence", "citations", "steps", "usage",
    "timing", "termination", "error", "config_digest", "version",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(home):
    """Of a command: a history of its own; models come from the cache."""
    return {**os.environ, "XDG_DATA_HOME": str(home), "NO_COLOR": "1", "AGENT_POLICY": "micro"}


@pytest.fixture
def agent(environment, tmp_path):
    """Run `agent …` in an empty folder."""

    def run(*args, stdin="", **env):
        return forked.run(
            [str(ROOT / "cli.py"), *args],
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True, cwd=tmp_path, timeout=170,
            env={**environment, **env},
        )  # fmt: skip

    return run


def text(done):
    return done.stderr.decode() + done.stdout.decode()


def spent():
    """Seconds of processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick(environment):
    seconds = []
    for _ in range(4):  # of the processor, and the quickest counts: others use the machine too
        began = spent()
        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), "--help"], capture_output=True, env=environment
        )
        seconds.append(spent() - began)
    assert min(seconds) < 0.5
    assert done.returncode == 0
    assert b"agent ask" in done.stdout


def _commands(group, path=()):
    """Every command that does something, as its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


COMMANDS = list(_commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(agent, command):
    done = agent(*command.split(), "--help")
    assert done.returncode == 0
    assert b"Example" in done.stdout


def test_the_first_question_is_answered_with_a_source(agent):
    question = "Which element is named after the creator of the periodic table?"
    done = agent("ask", question, AGENT_POLICY="default")
    out = done.stdout.decode()
    assert done.returncode == 0, text(done)
    assert "mendelevium" in out.lower()
    assert "element/mendelevium" in out
    assert b"search" in done.stderr
    assert b"\x1b[" not in done.stdout + done.stderr


def test_json_has_all_keys_and_nothing_else_on_stdout(agent):
    done = agent("ask", "--json", "-", stdin="Who discovered oxygen?", AGENT_POLICY="default")
    answer = json.loads(done.stdout)
    assert set(answer) == KEYS
    assert answer["status"] in ("answered", "abstained")
    assert answer["usage"]["tool_calls"] >= 1
    shown = agent("trace", "show", answer["id"][:8])
    assert "Who discovered oxygen?" in shown.stdout.decode()
    listed = json.loads(agent("trace", "search", "oxygen", "--json").stdout)
    [policy] = [row["policy"] for row in listed if row["id"] == answer["id"]]
    assert policy in agent("trace", "list").stdout.decode()


def test_stream_json_begins_with_the_thread_and_ends_with_the_envelope(agent):
    done = agent("ask", "--output-format", "stream-json", "What is the chemical symbol of gold?")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["type"] == "start"
    assert lines[-1]["type"] == "result"
    assert set(lines[-1]) == KEYS | {"type"}
    assert {"token", "action", "observation", "answer"} <= {line["type"] for line in lines}
    assert lines[0]["thread_id"] == lines[-1]["thread_id"]


def test_a_spent_budget_still_prints_an_answer_with_its_own_code(agent):
    done = agent("ask", "--json", "--max-turns", "1", "Who discovered radium?")
    answer = json.loads(done.stdout)
    assert done.returncode == 4
    assert (answer["status"], answer["termination"]) == ("over_budget", "max_turns")
    assert answer["answer"]


def test_own_documents_are_searched_and_bad_rows_are_told(agent, tmp_path):
    corpus = tmp_path / "notes"
    corpus.mkdir()
    (corpus / "a.md").write_text("# Zorblax\n\nZorblax was discovered by Quin Ardal in 2231.\n")
    row = {
        "id": "1",
        "title": "Harbour rules",
        "text": "The fee is 12 crowns. Boats must leave before nine in the evening.",
    }
    (corpus / "b.jsonl").write_text(json.dumps(row) + "\n{broken\n")
    (corpus / "c.txt").write_bytes(b"\x00\x01\xff\xfe" * 99)
    done = agent("ask", "--corpus", str(corpus), "Who discovered Zorblax?", AGENT_POLICY="default")
    assert done.returncode == 0, text(done)
    assert "Quin Ardal" in done.stdout.decode()
    assert "b.jsonl:2" in done.stderr.decode()


BAD = [
    (("ask", ""), {}, 2, "empty"),
    (("ask", "-"), {"stdin": "x" * 200_000}, 2, "limit is 16,000"),
    (("ask", "-"), {"stdin": b"\xff\xfe\x00\x01"}, 2, "not UTF-8"),
    (("ask", "--corpus", "nowhere", "x?"), {}, 2, "does not exist"),
    (("ask", "--policy", "smolm2-135m-instruct", "x?"), {}, 2, "smollm2-135m-instruct"),
    (("ask", "--tools", "fly", "x?"), {}, 2, "no tool 'fly'"),
    (("ask", "--max-turns", "0", "x?"), {}, 2, "budgets.turns"),
    (("ask", "--resume", "nothere", "x?"), {}, 2, "no conversation"),
    (("ask", "--policy", "http://127.0.0.1:9/v1", "x?"), {}, 2, "--model"),
    (("ask", b"caf\xe9?"), {}, 2, "not UTF-8"),
    (("ask", "-c", "x?"), {"XDG_DATA_HOME": "nothing-yet"}, 2, "no conversation to continue"),
    (("ask", "x?"), {"AGENT_HOME": "/dev/null/home"}, 2, "cannot be made"),
    (("ask", "--policy", "ftp://u:pw@host/v1", "x?"), {}, 2, "URL begins with http"),
    (("trace", "show", "zzzzzz"), {}, 2, "no episode"),
    (("trace", "rm", "zzzzzz"), {}, 2, "no episode"),
    (("index", "info", "nowhere"), {}, 6, "no such index"),
    (("index", "build", "nowhere", "out"), {}, 2, "nowhere"),
    (("sft", "cold_strat", "--out", "x"), {}, 2, "cold_start"),
    (("trace", "list", "--store", "/proc/none/x"), {}, 2, "cannot be made"),
]


@pytest.mark.parametrize(("args", "more", "code", "message"), BAD)
def test_bad_input_is_one_clear_line_with_its_code(agent, args, more, code, message):
    done = agent(*args, **more)
    assert done.returncode == code, text(done)
    assert message in text(done)
    assert "Traceback" not in text(done)


def test_an_endpoint_that_does_not_answer(agent):
    done = agent("ask", "--json", "--policy", "http://127.0.0.1:9/v1", "-m", "m", "--timeout", "5",
                 "Who?")  # fmt: skip
    answer = json.loads(done.stdout)
    assert set(answer) == KEYS
    assert done.returncode in (4, 5)
    assert answer["termination"] in ("policy_error", "max_seconds")


def test_a_corrupt_index(agent, tmp_path):
    (tmp_path / "a.txt").write_text("Water boils at one hundred degrees.")
    assert agent("index", "build", "a.txt", "ix").returncode == 0
    [vectors] = (tmp_path / "ix").glob("data-*/vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:50])
    done = agent("ask", "--corpus", "ix", "When does water boil?")
    assert done.returncode == 6
    assert "agent index build" in text(done)
    assert "Traceback" not in text(done)


def test_interrupting_a_question_keeps_it_for_resumption(environment, tmp_path, agent):
    code = "import sys; sys.argv=['agent','ask','--output-format','stream-json','Who discovered neon?'];"
    code += f"sys.path.insert(0, {str(ROOT)!r}); import cli; cli.main()"
    process = forked.Forked(
        ["-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    thread = json.loads(process.stdout.readline())["thread_id"]
    for line in process.stdout:
        if '"observation"' in line:
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    last = json.loads(rest.splitlines()[-1])
    assert (last["type"], last["thread_id"], last["termination"]) == ("result", thread, "cancelled")
    goes_on = json.loads(agent("ask", "--json", "--resume", last["id"][:8]).stdout)
    assert (goes_on["thread_id"], goes_on["error"]) == (thread, None)
    assert goes_on["status"] in ("answered", "abstained")
    found = json.loads(agent("trace", "search", "neon", "--json").stdout)
    assert [row["id"] for row in found].count(goes_on["id"]) == 1
    again = agent("ask", "--resume", thread)
    assert again.returncode == 2
    done = agent("ask", "--json", "--resume", thread, "And who discovered helium?")
    assert json.loads(done.stdout)["thread_id"] == thread


def test_a_reader_that_leaves_costs_no_episode_and_no_traceback(environment, tmp_path, agent):
    with forked.Forked(
        [str(ROOT / "cli.py"), "ask", "--output-format", "stream-json",
         "Who discovered xenon?"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors
    assert json.loads(agent("trace", "search", "xenon", "--json").stdout)


def test_nothing_is_kept_of_a_question_that_is_not_to_be_logged(tmp_path, agent):
    elsewhere = tmp_path / "data"
    done = agent("ask", "-n", "Who wrote about secretmarker?", XDG_DATA_HOME=str(elsewhere))
    assert done.returncode in (0, 4), text(done)
    kept = [path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()]
    assert not any(b"secretmarker" in content for content in kept)


def test_the_last_conversation_goes_on_and_exports(agent, tmp_path):
    first = json.loads(agent("ask", "--json", "Where was Lise Meitner born?").stdout)
    second = json.loads(agent("ask", "--json", "--continue", "Where was Niels Bohr born?").stdout)
    assert first["thread_id"] == second["thread_id"]
    assert agent("trace", "export", "all.jsonl").returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    [row] = [row for row in rows if row["id"] == second["id"]]
    if first["answer"]:
        assert row["history"] == [["Where was Lise Meitner born?", first["answer"]]]
    assert agent("trace", "html", second["id"], "-o", "t.html").returncode == 0
    assert "Niels Bohr" in (tmp_path / "t.html").read_text()
    assert "1 episodes deleted" in text(agent("trace", "rm", second["id"][:10]))
    assert "no conversation" in text(agent("ask", "--resume", first["thread_id"], "Who?"))


def test_the_settings_and_where_they_come_from(agent):
    done = agent("config", "show", "--json", AGENT_SEED="7", AGENT_API_KEY="secretkey")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert (rows["seed"]["value"], rows["seed"]["origin"]) == (7, "AGENT_SEED")
    assert "secretkey" not in text(done)


def test_a_world_and_a_changed_index_are_told_as_json(agent, tmp_path):
    assert agent("world", "make", "w", "--seed", "3", "--entities", "40").returncode == 0
    assert json.loads(agent("world", "show", "w", "--json").stdout)["seed"] == 3
    rows = [json.dumps({"id": name, "text": f"{name} boils."}) for name in ("water", "milk")]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert agent("index", "build", "a.jsonl", "ix").returncode == 0
    assert json.loads(agent("index", "delete", "ix", "milk", "--json").stdout)["passages"] == 1
