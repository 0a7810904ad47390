"""Python processes that need not import anything first.

Torch, transformers, vLLM and DeepSpeed take long to import, and many tests start
processes that need them: to kill them, to interrupt them, to see what a command prints. Here such a
process is forked from one that has imported them all and done nothing else, and is from then on as if
it had been started: arguments, environment, folder, pipes, signals and exit code are its own.

What is hidden by this: a module that uses another one without importing it; variables that Python or
a library reads as it starts (`PYTHONPATH`, `OMP_NUM_THREADS`); a crash while Python takes itself
apart; and what depends on the seed of hashes, which all have in common, such as the order of a set of
strings. Tests of these start their processes with `subprocess`, and so does one side of each test that
compares runs.

Run as a program, with the number of a socket, this is the process that is forked from.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# what a command with a model, a training run and an evaluation end up with; absent ones are passed over
MODULES = (
    "cli", "agent.console.ask", "agent.policies.vllm_engine", "agent.policies.transformers", "eval.run",
    "eval.cli", "rl.cli", "rl.train_command", "rl.loop", "rl.collect", "rl.retrain",
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
        self._readers: list[_Reader | None] = []
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
        try:
            _send(json.dumps(facts).encode(), [*self._theirs, tells])
        finally:
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
            self._told.close()
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
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """What it still writes; waits for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        until = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if until is None else max(0.0, until - time.monotonic())

        self._readers = [
            _Reader(pipe) if pipe is not None and not pipe.closed else None
            for pipe in (self.stdout, self.stderr)
        ]
        if self.stdin is not None:
            try:
                if input:
                    self.stdin.write(input)
                self.stdin.close()
            except BrokenPipeError:
                pass
        out, err = (one and one.result(left(), self.args) for one in self._readers)
        self.wait(left())
        return out, err

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        busy = {id(one.pipe) for one in self._readers if one is not None and one.is_alive()}
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe is not None and id(pipe) not in busy:
                pipe.close()
        self.wait()


class _Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, pipe: IO[Any]) -> None:
        super().__init__(daemon=True)
        self.pipe, self._found = pipe, Future[Any]()
        self.start()

    def run(self) -> None:
        try:
            self._found.set_result(self.pipe.read())
        except Exception as error:
            self._found.set_exception(error)

    def result(self, timeout: float | None, args: Sequence[str]) -> Any:
        """Raises: subprocess.TimeoutExpired: somebody holds its other end still."""
        try:
            return self._found.result(timeout)
        except FutureTimeout as error:
            raise subprocess.TimeoutExpired(args, timeout or 0.0) from error


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
_server: subprocess.Popen[bytes] | None = None
_ENVIRONMENT = dict(os.environ)  # as it was before any test changed it
# programs are not started anew with other libraries, and vLLM is as quiet as an engine of ours makes it
_OWN = {"AGENT_ALLOCATOR": "system", "AGENT_OPENMP": "system", "VLLM_LOGGING_LEVEL": "ERROR"}
_lock = threading.Lock()


def _send(message: bytes, files: Sequence[int]) -> None:
    global _channel, _server
    with _lock:
        if _channel is None:
            _channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
            _server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env={**_ENVIRONMENT, **_OWN}, cwd=ROOT
            )
            theirs.close()
        try:
            socket.send_fds(_channel, [message], list(files))
        except OSError:  # it has ended: the next one is forked from another
            _channel = None
            raise


def _import_all() -> None:
    own, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # warnings of libraries
    for name in MODULES:
        with suppress(Exception):  # a test that needs it will tell
            importlib.import_module(name)
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
        with suppress(BrokenPipeError):
            os.write(files[3], f"{pid}\n".encode())
        for end in files[:3]:
            os.close(end)


def _tell_ended(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        if (end := running.pop(pid, -1)) < 0:
            continue
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(end, f"{status}\n".encode())
        os.close(end)


def _become(job: Mapping[str, Any]) -> NoReturn:
    """Go on as Python would that was started so, but for the taking apart of all modules at the end."""
    code, interrupted = 0, False
    try:
        _run(job)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _run(job: Mapping[str, Any]) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    kept |= {name: os.environ[name] for name in _OWN}  # and what imports added
    os.environ.clear()
    os.environ.update({**kept, **job["env"]})
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
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
            exec(compile(what, "<string>", "exec", dont_inherit=True), main.__dict__)
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
