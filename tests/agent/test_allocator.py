"""The allocator of training runs: found, loaded before everything else, and never against one's wish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import allocator, doctor
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="LD_PRELOAD is Linux's"
)
OWN = ("LD_PRELOAD", "MALLOC_CONF", allocator.VARIABLE)
#: Starts itself anew as `agent train` does, and tells its id before and after.
PROGRAM = """
import json, os, sys
from agent import allocator
print(os.getpid(), file=sys.stderr)
allocator.wanted = lambda: True
{announce}
allocator.preload()
maps = open("/proc/self/maps").read()
print(json.dumps([os.getpid(), "libjemalloc" in maps, sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def jemalloc():
    found = allocator.installed()
    if found is None:
        pytest.skip("no jemalloc here")
    return found


def started(tmp_path, *arguments, announce="allocator.announce()", **environment):
    """What the program tells, and the ids that it had on its way."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(announce=announce))
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout), [int(line) for line in done.stderr.split() if line.isdigit()]


@pytest.mark.usefixtures("jemalloc")
def test_a_program_goes_on_with_jemalloc_as_the_same_process_with_the_same_arguments(tmp_path):
    (told, used, arguments), ids = started(tmp_path, "train", "--set", "a b=*")
    assert used
    assert arguments == ["train", "--set", "a b=*"]
    assert ids == [told, told]


@pytest.mark.usefixtures("jemalloc")
@pytest.mark.parametrize(
    "wish", [{allocator.VARIABLE: "system"}, {"LD_PRELOAD": "libtcmalloc.so.4"}]
)
def test_a_chosen_allocator_is_left_alone(tmp_path, wish):
    (_, used, _), ids = started(tmp_path, "train", **wish)
    assert not used
    assert len(ids) == 1


@pytest.mark.usefixtures("jemalloc")
def test_a_callers_own_program_is_not_started_anew(tmp_path):
    (_, used, _), ids = started(tmp_path, "train", announce="")
    assert not used
    assert len(ids) == 1


def test_the_command_announces_itself_and_a_call_of_it_does_not():
    code = (
        "import sys; sys.argv = ['agent', '--version']; import cli; from agent import allocator\n"
    )
    code += "try: cli.{name}()\nexcept SystemExit: print(allocator._program)"
    for name, announced in (("program", "True"), ("main", "False")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name=name)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.split()[-1] == announced


def test_a_library_with_which_python_does_not_start_is_not_taken(tmp_path, monkeypatch):
    broken = tmp_path / "libjemalloc.so.2"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(allocator, "_candidates", lambda: iter([broken, tmp_path / "absent.so"]))
    assert allocator.installed() is None


def test_another_library_that_does_not_load_is_no_reason(jemalloc, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/libother.so")
    assert allocator.installed() == jemalloc


def test_what_was_preloaded_stays_preloaded_and_options_of_ones_own_stay(tmp_path):
    library = tmp_path / "libjemalloc.so.2"
    library.touch()
    given = {"LD_PRELOAD": "/a/libgomp.so", "MALLOC_CONF": "narenas:1", "HOME": "/h"}
    made = allocator.with_library(library, given)
    assert made["LD_PRELOAD"] == f"{library}:/a/libgomp.so"
    assert made["MALLOC_CONF"] == "narenas:1"
    assert made["HOME"] == "/h"
    assert allocator.preloaded(made) == str(library)
    assert allocator.preloaded(given) == ""
    assert allocator.preloaded({"LD_PRELOAD": "/nowhere/libjemalloc.so.2"}) == ""


def test_the_doctor_tells_which_it_will_be(tmp_path, monkeypatch):
    def told():
        [found] = doctor._allocator()
        return found.status, found.detail

    library = tmp_path / "libjemalloc.so.2"
    library.touch()
    monkeypatch.setattr(allocator, "wanted", lambda: True)
    monkeypatch.setattr(allocator, "installed", lambda: Path("/found/libjemalloc.so.2"))
    assert told() == ("ok", "agent train allocates by /found/libjemalloc.so.2")
    monkeypatch.setenv(allocator.VARIABLE, "system")
    assert told() == ("ok", "the system's, as AGENT_ALLOCATOR says")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    assert told() == ("ok", f"agent train allocates by {library}")
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.delenv(allocator.VARIABLE)
    monkeypatch.setattr(allocator, "installed", lambda: None)
    assert told()[0] == "warn"
    monkeypatch.setattr(allocator, "wanted", lambda: False)
    assert list(doctor._allocator()) == []
