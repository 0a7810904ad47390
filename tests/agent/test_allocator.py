"""The allocator of training runs: found, loaded before everything else, and never against one's wish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import allocator
from tests.conftest import ROOT

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD is Linux's")
#: Starts itself anew as `agent train` does, and tells its id before and after.
PROGRAM = """
import json, os, sys
from agent import allocator
print(os.getpid(), file=sys.stderr)
allocator.preload()
maps = open("/proc/self/maps").read()
print(json.dumps([os.getpid(), "libjemalloc" in maps, sys.argv[1:]]))
"""


def started(tmp_path, *arguments, **environment):
    """What the program tells, and the ids that it had on its way."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_CONF")}
    kept |= {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env=kept,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout), [int(line) for line in done.stderr.split() if line.isdigit()]


@LINUX
def test_a_program_goes_on_with_jemalloc_as_the_same_process_with_the_same_arguments(tmp_path):
    if allocator.installed() is None:
        pytest.skip("no jemalloc here")
    (told, used, arguments), ids = started(tmp_path, "train", "--set", "a b=*")
    assert used
    assert arguments == ["train", "--set", "a b=*"]
    assert ids == [told, told]


@LINUX
@pytest.mark.parametrize(
    "wish", [{"AGENT_ALLOCATOR": "system"}, {"LD_PRELOAD": "/x/libtcmalloc.so.4"}]
)
def test_a_chosen_allocator_is_left_alone(tmp_path, wish):
    (_, used, _), ids = started(tmp_path, "train", **wish)
    assert not used
    assert len(ids) == 1


@LINUX
def test_a_program_of_someone_else_is_not_started_anew(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(sys, "argv", ["agent", "train", "grpo"])
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started anew"))
    allocator.preload()


@LINUX
def test_a_library_with_which_python_does_not_start_is_not_taken(tmp_path, monkeypatch):
    broken = tmp_path / "libjemalloc.so.2"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(allocator, "_candidates", lambda: iter([broken, tmp_path / "absent.so"]))
    assert allocator.installed() is None


def test_what_was_preloaded_stays_preloaded_and_options_of_ones_own_stay():
    given = {"LD_PRELOAD": "/a/libgomp.so", "MALLOC_CONF": "narenas:1", "HOME": "/h"}
    made = allocator.with_library(Path("/j/libjemalloc.so.2"), given)
    assert made["LD_PRELOAD"] == "/j/libjemalloc.so.2:/a/libgomp.so"
    assert made["MALLOC_CONF"] == "narenas:1"
    assert made["HOME"] == "/h"
    assert allocator.loaded(made) == "/j/libjemalloc.so.2"
    assert allocator.loaded(given) == ""
