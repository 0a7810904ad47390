"""Checkpoints of a training run: weights, optimizer and position, saved so that a kill is harmless.

`checkpoint/step-N` is DeepSpeed's; `checkpoint/current.json` names the newest complete one and is
replaced in one step. A disk that is full leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kg.errors import TurnwiseError, UsageError
from rl import ranks, run_folder
from rl.engine import keeps_states
from rl.stamp import Stamp

log = logging.getLogger(__name__)
_POINTER = "current.json"
_ALIEN = re.compile(r"Weights only load failed.*GLOBAL (\S+)", re.DOTALL)
_NOBODY = Stamp()
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class CheckpointError(TurnwiseError):
    """A checkpoint cannot be read, or several in a row could not be written."""


class Checkpoint:
    """The checkpoints of one run folder.

    Args:
        run: the run's folder.
        keep: how many of the newest stay.
        stamp: of the recipe; it is saved too, and a checkpoint of another one is refused.
    """

    def __init__(self, run: Path, keep: int, stamp: Stamp = _NOBODY) -> None:
        self.folder = run / "checkpoint"
        self._keep, self._stamp = keep, stamp
        self._failures = 0

    def save(
        self,
        engine: Any,
        step: int,
        state: dict[str, Any],
        beside: Mapping[str, Any] | None = None,
    ) -> bool:
        """Save the engine and what belongs to it; whether it worked.

        Args:
            engine: of DeepSpeed.
            step: updates done.
            state: JSON values.
            beside: other engines by name, saved within the same checkpoint.

        Called by every process. A disk that is full is told as a warning once and as an error the
        second time in a row; the last complete checkpoint stays.

        Raises:
            CheckpointError: it failed twice in a row.
        """
        tag, problem = f"step-{step:05d}", ""
        try:
            self._write(engine, self.folder, tag, {"step": step, **self._stamp.facts, **state})
            for name, other in (beside or {}).items():
                self._write(other, self.folder / tag, name, {})
        except (OSError, RuntimeError) as error:
            problem = (str(error).splitlines() or [type(error).__name__])[0]
            if ranks.launched():  # the others wait inside DeepSpeed: the launcher has to end them
                raise CheckpointError(
                    f"step {step} could not be saved: {problem}",
                    "free some space; the same command goes on from the last checkpoint",
                ) from error
        if not problem:
            problem = self._point_at(tag, step)
        if not ranks.anybody(bool(problem), engine.device):
            self._failures = 0
            self._tidy(tag)
            return True
        self._failures += 1
        if ranks.is_main():
            shutil.rmtree(self.folder / tag, ignore_errors=True)
        message = f"step {step} could not be saved: {problem or 'another process failed'}"
        if self._failures > 1:
            raise CheckpointError(
                message, "free some space; the same command goes on from the last checkpoint"
            )
        log.warning("%s; going on, %s stays", message, self._current() or "nothing")
        return False

    def _write(self, engine: Any, folder: Path, tag: str, state: dict[str, Any]) -> None:
        engine.save_checkpoint(
            str(folder),
            tag=tag,
            client_state=state,
            exclude_frozen_parameters=True,
            save_latest=False,
        )

    def _point_at(self, tag: str, step: int) -> str:
        """Make a complete checkpoint the current one; what went wrong, "" for nothing."""
        try:
            facts = {"tag": tag, "step": step, **self._stamp.facts}
            run_folder.write(self.folder / _POINTER, facts)
        except UsageError as error:
            return error.message
        return ""

    def load(self, engine: Any, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Restore the newest complete checkpoint; gives its state, empty when there is none.

        Args:
            engine: as it was saved.
            beside: the other engines that were saved with it, by name.

        Raises:
            CheckpointError: the checkpoint that is named is not there or broken.
            UsageError: another recipe's.
        """
        tag = self._current()
        if not tag:
            return {}
        wanted = [(engine, self.folder, tag)]
        wanted += [(one, self.folder / tag, name) for name, one in (beside or {}).items()]
        for one, folder, name in wanted:
            if (folder / name).is_dir() and not keeps_states(one, folder / name):
                raise CheckpointError(
                    f"the checkpoint {folder / name} was saved at another ZeRO stage: bfloat16 engines "
                    "have stage 1 at least since gradients are added up in float32",
                    "go on with the version of turnwise that began the run, or begin it anew (--out)",
                )
        try:
            with _no_code():
                found = [
                    one.load_checkpoint(str(folder), tag=name, load_module_strict=False)
                    for one, folder, name in wanted
                ]
        except Exception as error:  # torch, zipfile and DeepSpeed each raise their own
            alien = _ALIEN.search(str(error))
            cause = f"it holds '{alien[1]}', no part of a checkpoint" if alien else error
            raise CheckpointError(
                f"the checkpoint {self.folder / tag} is broken: {cause}"
            ) from error
        if any(path is None for path, _ in found):
            raise CheckpointError(f"the checkpoint {self.folder / tag} is not there, or not whole")
        self._stamp.require(found[0][1], self.folder / tag)
        log.info("going on from %s", tag)
        return dict(found[0][1])

    @property
    def step(self) -> int | None:
        """The step of the newest complete checkpoint; None when there is none.

        Raises:
            CheckpointError: what names it cannot be read.
        """
        found = self._pointer()
        return None if found is None else found[1]

    def _current(self) -> str:
        found = self._pointer()
        return "" if found is None else found[0]

    def _pointer(self) -> tuple[str, int] | None:
        path = self.folder / _POINTER
        if not path.is_file():
            return self._older_pointer()
        try:
            found = json.loads(path.read_text("utf-8"))
            return str(found["tag"]), int(found["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def _older_pointer(self) -> tuple[str, int] | None:
        """What DeepSpeed's own pointer names: fine-tuning had no other before."""
        path = self.folder / "latest"
        tag = path.read_text("utf-8").strip() if path.is_file() else ""
        digits = tag.removeprefix("step")
        return (tag, int(digits)) if digits.isdigit() else None

    def _tidy(self, newest: str) -> None:
        """Remove all but the newest few, and what a killed process left unfinished."""
        if not ranks.is_main():
            return
        there = sorted(path for path in self.folder.glob("step*") if path.is_dir())
        older = [path for path in there if path.name <= newest]
        for path in (*older[: -self._keep], *(p for p in there if p.name > newest)):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / "latest").unlink(missing_ok=True)


@contextmanager
def _no_code() -> Iterator[None]:
    """Within, `torch.load` makes tensors, plain values and what DeepSpeed's states hold besides, and
    runs no code that a file brings along. DeepSpeed asks for the opposite; the variable has the last
    word."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
