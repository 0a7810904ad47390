"""The process of an isolated engine: it hears no Ctrl-C, and it ends when its parent does.

A launcher, as a terminal, sends Ctrl-C to a whole group of processes. The run's own processes then
finish their step, for which they need the engine: it must not be told. vLLM's child, in turn, waits
for work for ever when its parent was killed: it has to look for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


def stand_alone() -> None:
    """Make this process, a child by `multiprocessing`, a session of its own; it ends with its parent."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def run(*args: Any, **kwargs: Any) -> None:
    """What vLLM's child runs, in a process that stands alone."""
    stand_alone()
    from vllm.v1.engine.core import EngineCoreProc

    # a forked child finds the parent's replacement there, a spawned one vLLM's own
    vars(run).get("inner", EngineCoreProc.run_engine_core)(*args, **kwargs)


@contextmanager
def standing_alone() -> Iterator[None]:
    """Within, children that vLLM starts from this thread stand alone, and from their first moment hear
    no Ctrl-C."""
    from vllm.v1.engine.core import EngineCoreProc

    resource_tracker.ensure_running()  # its start would let Ctrl-C through again
    inner: Any = EngineCoreProc.run_engine_core
    run.inner = inner  # type: ignore[attr-defined]
    EngineCoreProc.run_engine_core = run
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        EngineCoreProc.run_engine_core = staticmethod(inner)
