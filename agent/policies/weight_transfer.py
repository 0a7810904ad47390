"""A model folder's tensors sent to a vLLM server over NCCL, by vLLM's own weight-transfer API.

The sender is one process with a GPU of its own: NCCL wants every member on another device.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from agent.policies import weight_reader
from kg.errors import MissingExtraError, PolicyUnavailableError


class NcclSender:
    """One connection to a server's workers; each `send` is a whole update.

    Args:
        url: of the server, without `/v1`.
        timeout: seconds that one step of an update may take.

    Raises:
        PolicyUnavailableError: there is no GPU here, or the server does not join.
    """

    def __init__(self, url: str, timeout: float) -> None:
        import torch

        if not torch.cuda.is_available():
            raise PolicyUnavailableError(
                "weights go over NCCL from GPU to GPU, and there is none here",
                "set rollouts.server.transfer=files",
            )
        try:
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except ImportError as error:
            raise MissingExtraError("vllm", "vllm", "weight transfer to a vLLM server") from error
        self._source, self._control = _Folder(), _Control(url, timeout)
        here, port = _reachable(url)
        info = NCCLTrainerInitInfo(here, port, 1 + self._control.workers(), rank=0)
        try:
            self._engine = WeightTransferTrainerFactory.trainer_init(
                info, client=self._control, source=self._source
            )
        except Exception as error:  # NCCL, the store and HTTP each raise their own
            raise PolicyUnavailableError(f"the server did not join: {error}") from error

    def send(self, folder: Path) -> None:
        """Replace the server's weights.

        Raises:
            PolicyUnavailableError: it broke off; the server's weights are undefined.
        """
        self._source.folder = folder
        try:
            self._engine.send_weights()
        except Exception as error:
            raise PolicyUnavailableError(
                f"sending the weights broke off: {error}", "restart the server and the run"
            ) from error


class _Control:
    """The server's weight-transfer routes, as vLLM's trainer side calls them."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url, timeout

    def workers(self) -> int:
        """How many processes hold a part of the weights."""
        reply = httpx.get(f"{self._url}/get_world_size", timeout=self._timeout)
        reply.raise_for_status()
        return int(reply.json()["world_size"])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("start_weight_update", None)

    def update_weights(self, update_info: Any) -> None:
        self._post("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("finish_weight_update", {"weight_version": weight_version})

    def _post(self, route: str, body: Any) -> None:
        httpx.post(f"{self._url}/{route}", json=body, timeout=self._timeout).raise_for_status()


class _Folder:
    """The tensors of a model folder, in the form of vLLM's `WeightSource`."""

    folder: Path

    def metadata(self) -> list[Any]:
        """Name, type and shape of each, in the order of iteration."""
        import torch
        from vllm.distributed.weight_transfer.base import ParamMeta

        kinds, shapes = weight_reader.dtypes(self.folder), weight_reader.shapes(self.folder)
        return [ParamMeta(name, getattr(torch, kinds[name]), shapes[name]) for name in shapes]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name, tensor in weight_reader.tensors(self.folder):
            yield name, tensor.cuda()


def _reachable(url: str) -> tuple[str, int]:
    """An address of this machine that the server reaches, and a free port."""
    target = httpx.URL(url)
    with socket.create_connection((target.host, target.port or 80), timeout=10) as seen:
        here = str(seen.getsockname()[0])
    with socket.socket() as probe:
        probe.bind((here, 0))
        return here, int(probe.getsockname()[1])
