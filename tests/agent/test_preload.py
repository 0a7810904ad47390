"""What a process is started with: found, loaded before everything else, and never against one's wish."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import cli
from agent import doctor, preload
from agent.preload import ALLOCATOR, OPENMP
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="LD_PRELOAD is Linux's"
)
OWN = ("LD_PRELOAD", "MALLOC_CONF", "KMP_BLOCKTIME", ALLOCATOR.variable, OPENMP.variable)
#: Starts itself anew as `agent train` does, and tells its id before and after.
PROGRAM = """
import json, os, sys
from agent import preload
print(os.getpid(), file=sys.stderr)
preload.Library.wanted = lambda self: True
{announce}
preload.start_with(preload.ALLOCATOR, preload.OPENMP)
maps = open("/proc/self/maps").read()
used = ["libjemalloc" in maps, "libiomp5" in maps]
print(json.dumps([os.getpid(), used, sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def jemalloc():
    found = ALLOCATOR.installed()
    if found is None:
        pytest.skip("no jemalloc here")
    return found


@pytest.fixture
def both(jemalloc):
    if OPENMP.installed() is None:
        pytest.skip("no OpenMP of Intel's here")


def started(tmp_path, *arguments, announce="preload.announce()", **environment):
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


@pytest.mark.usefixtures("both")
def test_a_program_goes_on_with_both_as_the_same_process_with_the_same_arguments(tmp_path):
    (told, used, arguments), ids = started(tmp_path, "train", "--set", "a b=*")
    assert used == [True, True]
    assert arguments == ["train", "--set", "a b=*"]
    assert ids == [told, told]


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"AGENT_ALLOCATOR": "system"}, [False, True]),
        ({"AGENT_OPENMP": "system"}, [True, False]),
        ({"LD_PRELOAD": "libtcmalloc.so.4"}, [False, True]),
        ({"LD_PRELOAD": "libgomp.so.1"}, [True, False]),
    ],
)
def test_a_chosen_library_is_left_alone(tmp_path, wish, expected):
    (_, used, _), ids = started(tmp_path, "train", **wish)
    assert used == expected
    assert len(ids) == 2


def test_nothing_is_started_anew_for_what_is_chosen_already(tmp_path):
    wish = {"AGENT_ALLOCATOR": "system", "AGENT_OPENMP": "system"}
    (_, used, _), ids = started(tmp_path, "train", **wish)
    assert used == [False, False]
    assert len(ids) == 1


@pytest.mark.usefixtures("both")
def test_a_callers_own_program_is_not_started_anew(tmp_path):
    (_, used, _), ids = started(tmp_path, "train", announce="")
    assert used == [False, False]
    assert len(ids) == 1


def test_the_command_announces_itself_and_a_call_of_it_does_not():
    code = "import sys; sys.argv = ['agent', '--version']; import cli; from agent import preload\n"
    code += "try: cli.{name}()\nexcept SystemExit: print(preload._program)"
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
    found = iter([broken, tmp_path / "absent.so"])
    assert replace(ALLOCATOR, candidates=lambda: found).installed() is None


def test_a_library_that_the_loader_cannot_name_is_not_taken(jemalloc, tmp_path):
    """It reads a space in LD_PRELOAD as the end of a path: the program would start itself for ever."""
    apart = tmp_path / "a folder"
    apart.mkdir()
    copied = Path(shutil.copy(jemalloc, apart / "libjemalloc.so.2"))
    assert replace(ALLOCATOR, candidates=lambda: iter([copied])).installed() is None
    assert replace(ALLOCATOR, candidates=lambda: iter([copied, jemalloc])).installed() == jemalloc


@pytest.mark.usefixtures("both")
def test_a_process_is_started_anew_once_whatever_it_finds_then(tmp_path):
    dropped = "os.environ.pop('LD_PRELOAD', None); preload.announce()"
    (_, used, _), ids = started(tmp_path, "train", announce=dropped)
    assert used == [True, True]
    assert len(ids) == 2


def test_each_library_matters_on_its_machines(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    for machine, expected in (("x86_64", [True, True]), ("aarch64", [True, False])):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert [library.wanted() for library in (ALLOCATOR, OPENMP)] == expected
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    assert not ALLOCATOR.wanted()


@pytest.mark.parametrize(
    ("command", "libraries"),
    [
        (["train", "nosuch"], (ALLOCATOR, OPENMP)),
        (["eval", "run", "nosuch"], (OPENMP,)),
        (["collect", "nosuch"], (OPENMP,)),
    ],
)
def test_the_commands_that_compute_for_long_start_with_them(
    tmp_path, monkeypatch, command, libraries
):
    asked = []
    monkeypatch.setattr(preload, "start_with", lambda *given: asked.append(given))
    monkeypatch.setattr(sys, "argv", ["agent", *command, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert asked == [libraries]


def test_another_library_that_does_not_load_is_no_reason(jemalloc, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/libother.so")
    assert ALLOCATOR.installed() == jemalloc


def test_what_was_preloaded_stays_preloaded_and_options_of_ones_own_stay(tmp_path):
    library = tmp_path / "libjemalloc.so.2"
    library.touch()
    given = {"LD_PRELOAD": "/a/libother.so", "MALLOC_CONF": "narenas:1", "HOME": "/h"}
    made = ALLOCATOR.added(library, given)
    assert made["LD_PRELOAD"] == f"{library}:/a/libother.so"
    assert made["MALLOC_CONF"] == "narenas:1"
    assert made["HOME"] == "/h"
    assert ALLOCATOR.preloaded(made) == str(library)
    assert ALLOCATOR.preloaded(given) == ""
    elsewhere = {"LD_PRELOAD": "/opt/jemalloc-5/libother.so /gone/libtcmalloc.so"}
    assert ALLOCATOR.preloaded(elsewhere) == ""
    assert ALLOCATOR.added(library, elsewhere)["LD_PRELOAD"] == (
        f"{library}:/opt/jemalloc-5/libother.so"
    )
    assert ALLOCATOR.preloaded({"LD_PRELOAD": "/nowhere/libjemalloc.so.2"}) == ""


def test_the_doctor_tells_which_it_will_be(tmp_path, monkeypatch):
    at = tmp_path / "libjemalloc.so.2"
    at.touch()

    def told(found="/found/libjemalloc.so.2"):
        paths = iter([Path(found)] if found else [])
        monkeypatch.setattr(preload.Library, "installed", lambda _: next(paths, None))
        [check] = doctor._preloaded(ALLOCATOR, "agent train")
        return check.status, check.detail

    monkeypatch.setattr(preload.Library, "wanted", lambda _: True)
    assert told() == ("ok", "agent train: /found/libjemalloc.so.2")
    monkeypatch.setenv("AGENT_ALLOCATOR", "system")
    assert told() == ("ok", "the system's, as AGENT_ALLOCATOR says")
    monkeypatch.setenv("LD_PRELOAD", str(at))
    assert told() == ("ok", f"agent train: {at}")
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.delenv("AGENT_ALLOCATOR")
    assert told("") == ("warn", "the system's: agent train can be slower")
    monkeypatch.setattr(preload.Library, "wanted", lambda _: False)
    assert list(doctor._preloaded(ALLOCATOR, "agent train")) == []
