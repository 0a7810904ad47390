"""One process or many: what the processes of a training run have to agree on.

A launcher (`torchrun`, `deepspeed`) sets RANK, WORLD_SIZE, LOCAL_RANK and the master's address; without
one, a run is a single process. Files are the main process's work; a decision to stop is everybody's.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from kg.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Result = TypeVar("Result")
# others wait this long while the main process makes tokenizers or plays demonstrations
_PATIENCE = timedelta(hours=12)
_world: object | None = None  # the group of all processes that was joined


def join() -> None:
    """Become one of the run's processes; does nothing the second time.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
    """
    global _world
    import torch

    if "RANK" not in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it whenever an engine is made
    here = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
    if here is not None and _world in (None, here):
        _world = here
        return
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("deepspeed", "train", "training") from error
    if _world is not None:
        _forget_groups()
    if here is not None:
        _world = here
        return
    # On CPUs DeepSpeed would compile a shared-memory all-reduce here, under a lock that a killed process
    # leaves behind and every later one waits for. gloo does the same without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    with _rendezvous():
        deepspeed.init_distributed("nccl" if gpu else "gloo", verbose=False, timeout=_PATIENCE)
    _world = torch.distributed.group.WORLD


def _forget_groups() -> None:
    """Let DeepSpeed forget the process groups that it remembers: another engine of this process
    (vLLM, when it closes) has ended them."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    groups._release_process_group_references()
    comm.cdb = None


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether files are this process's work."""
    return int(os.environ.get("RANK", "0")) == 0


def main_first(work: Callable[[], T]) -> T:
    """Do `work` in the main process, then in the others, which find there what it left.

    The work must do nothing where its result is there already.
    """
    if not launched():
        return work()
    join()
    made = [work()] if is_main() else []
    meet()
    return made[0] if made else work()


def meet() -> None:
    """Wait until every process of the run is here."""
    if launched():
        import torch

        torch.distributed.barrier()


def total(value: float, device: torch.device) -> float:
    """The sum over all processes, in double precision."""
    return _reduced(value, device, "SUM")


def anybody(flag: bool, device: torch.device) -> bool:
    """Whether any process says so; all get the same answer."""
    return _reduced(float(flag), device, "MAX") > 0


def most(count: int, device: torch.device) -> int:
    """The largest count of any process; all get the same answer."""
    return int(_reduced(count, device, "MAX"))


def _reduced(value: float, device: torch.device, how: str) -> float:
    import torch

    if torch.distributed.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor, op=getattr(torch.distributed.ReduceOp, how))
    return float(tensor)


@contextmanager
def _rendezvous() -> Iterator[None]:
    """What torch.distributed wants to know, for a run that no launcher started.

    It is taken back afterwards: a training run that this process starts would meet here, at a port that
    is taken.
    """
    if "RANK" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(meeting)
    try:
        yield
    finally:
        for key in meeting:
            os.environ.pop(key, None)


def shared(value: T | None) -> T:
    """The main process's object, in every process."""
    if not launched():
        return value  # type: ignore[return-value]
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def dealt(items: Sequence[T], work: Callable[[T], Result]) -> list[Result]:
    """The result of each item, in every process, where each process works on its share of them.

    All work equally often, as ZeRO 3 wants, whose passes gather weights from everybody: one with fewer
    items works on the first once more, for nothing.

    Args:
        items: the same in every process.
        work: gives the same in whatever process it is done.
    """
    if not launched() or not items:
        return [work(item) for item in items]
    import torch

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = [work(item) for item in items[rank::world]]
    if len(mine) < math.ceil(len(items) / world):
        work(items[0])
    shares = gathered(mine)
    return [shares[number % world][number // world] for number in range(len(items))]


def gathered(value: T) -> list[T]:
    """Every process's object, in order of rank, in every process."""
    if not launched():
        return [value]
    import torch

    found: list[T] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found
