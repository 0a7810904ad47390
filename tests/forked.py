"""Python processes that need not import anything first.

Torch, transformers, vLLM and DeepSpeed take 6 to 14 seconds of a core to import, and many tests start
processes that need them: to kill them, to interrupt them, to see what a command prints. Here such a
process is forked from one that has imported them all and done nothing else, and is from then on as if
it had been started: arguments, environment, folder, pipes, signals and exit code are its own.

What is hidden by this is a module that uses another one without importing it, and variables that a
library reads as it is imported: tests of either start their processes with `subprocess`.

Run as a program, with the number of a socket, this is the process that is forked from.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# what a command with a model, a training run and an evaluation end up with; absent ones are passed over
MODULES = (
    "cli", "agent.console.ask", "agent.policies.vllm_engine", "agent.policies.transformers", "eval.run",
    "eval.cli", "eval.fork", "rl.cli", "rl.train_command", "rl.loop", "rl.collect", "rl.retrain",
    "rl.sft", "rl.doctor", "rl.trace_credit", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.generation.utils",
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.llama.modeling_llama",
    "torch.distributed", "torch._dynamo", "torch.utils.tensorboard", "deepspeed", "peft", "faiss",
    "bm25s", "pyarrow", "vllm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker",
    "vllm.v1.executor.uniproc_executor", "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.llama", "vllm.entrypoints.llm",
)  # fmt: skip
_MESSAGE = 1 << 20


class Forked:
    """A process, with as much of `subprocess.Popen` as tests use.

    Args:
        args: what would stand behind `python`: `-c CODE …`, `-m MODULE …` or `SCRIPT …`.
        stdin, stdout, stderr: `subprocess.PIPE`, `subprocess.DEVNULL`, or None for this process's own.
        text: whether pipes are read and written as text.
    """

    def __init__(
        self,
        args: Sequence[str | bytes],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = False,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.args = [os.fsdecode(one) for one in args]
        self.returncode: int | None = None
        mode = "" if text else "b"
        self._theirs: list[int] = []
        self.stdin = self._pipe(stdin, 0, "w" + mode)
        self.stdout = self._pipe(stdout, 1, "r" + mode)
        self.stderr = self._pipe(stderr, 2, "r" + mode)
        told, tells = os.pipe()
        facts = {
            "args": self.args,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        _send(json.dumps(facts).encode(), [*self._theirs, tells])
        for end in (*self._theirs, tells):
            os.close(end)
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = int(self._line())

    def _pipe(self, wanted: int | None, own: int, mode: str) -> IO[Any] | None:
        if wanted == subprocess.PIPE:
            read, write = os.pipe()
            theirs, ours = (read, write) if own == 0 else (write, read)
            self._theirs.append(theirs)
            return os.fdopen(ours, mode, buffering=-1 if own or "b" not in mode else 0)
        self._theirs.append(
            os.open(os.devnull, os.O_RDWR) if wanted == subprocess.DEVNULL else os.dup(own)
        )
        return None

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := self._told.read(1)):
                raise RuntimeError("the process that is forked from has ended")
            line += byte
        return line

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._line()))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired: it still runs."""
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """To a process that has ended, nothing."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """What it still writes; waits for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        until = None if timeout is None else time.monotonic() + timeout
        read: dict[int, Any] = {}
        threads = []
        for number, pipe in enumerate((self.stdout, self.stderr)):
            if pipe is not None and not pipe.closed:
                target = lambda n=number, p=pipe: read.update({n: p.read()})  # noqa: E731
                threads.append(threading.Thread(target=target, daemon=True))
                threads[-1].start()
        if self.stdin is not None:
            try:
                if input:
                    self.stdin.write(input)
                self.stdin.close()
            except BrokenPipeError:
                pass
        for thread in threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        return read.get(0), read.get(1)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe is not None:
                pipe.close()
        self.wait()


def run(
    args: Sequence[str],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of a `Forked`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    with Forked(args, stdin=stdin, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode or 0, out, err)
    if check:
        done.check_returncode()
    return done


# ---- the process that is forked from --------------------------------------------------------------

_channel: socket.socket | None = None
_lock = threading.Lock()


def _send(message: bytes, files: Sequence[int]) -> None:
    global _channel
    with _lock:
        if _channel is None:
            _channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
            own = {"AGENT_ALLOCATOR": "system", "AGENT_OPENMP": "system"}  # not started anew
            subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env={**os.environ, **own}, cwd=ROOT
            )
            theirs.close()
        socket.send_fds(_channel, [message], list(files))


def _import_all() -> None:
    own, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # warnings of libraries
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    os.dup2(own, 2)
    os.close(own)
    os.close(null)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for every message; gives in a forked process what it is to do, and None at the end."""
    wakes, woken = socket.socketpair()
    for end in (wakes, woken):
        end.setblocking(False)
    previous = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),  # of the terminal
    }
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([channel, wakes], [], [])
        if wakes in ready:
            wakes.recv(4096)
            _tell_ended(running)
        if channel not in ready:
            continue
        message, files, _, _ = socket.recv_fds(channel, _MESSAGE, 4)
        if not message:
            return None
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for number, handler in previous.items():
                signal.signal(number, handler)
            for end in (channel, wakes, woken):
                end.close()
            for end in (*running.values(), files[3]):
                os.close(end)
            for own, end in enumerate(files[:3]):
                os.dup2(end, own)
                os.close(end)
            found: dict[str, Any] = json.loads(message)
            return found
        running[pid] = files[3]
        os.write(files[3], f"{pid}\n".encode())
        for end in files[:3]:
            os.close(end)


def _tell_ended(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        end = running.pop(pid)
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(end, f"{status}\n".encode())
        os.close(end)


def _become(job: Mapping[str, Any]) -> NoReturn:
    """Go on as Python would that was started so, but for the taking apart of all modules at the end."""
    code = 0
    try:
        _run(job)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _run(job: Mapping[str, Any]) -> None:
    kept = {name: os.environ[name] for name in ("AGENT_ALLOCATOR", "AGENT_OPENMP")}
    os.environ.clear()
    os.environ.update({**kept, **job["env"]})
    os.chdir(job["cwd"])
    first, *rest = job["args"]
    if first in ("-c", "-m"):
        sys.path[0] = os.getcwd() if first == "-m" else ""
        what, *rest = rest
        sys.argv = [first, *rest]
        if first == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = str(Path(first).parent)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _import_all()
    gc.collect()
    gc.freeze()  # what is shared is not copied for the collector's sake
    job = _serve(socket.socket(fileno=int(sys.argv[1])))
    if job is None:
        os._exit(0)
    _become(job)
