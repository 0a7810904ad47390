"""Who watches a training run."""

from __future__ import annotations

from typing import Protocol, Self

from rl.step_metrics import Metrics, Validated


class Observer(Protocol):
    """Who watches a run; every method may do nothing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Episodes go on: `probe` before the first step, `collect` or `validate`; how many are done."""

    def notify(self, line: str) -> None:
        """One line for people."""

    def step(self, metrics: Metrics) -> None:
        """A step is done."""

    def validated(self, found: Validated) -> None:
        """The policy was measured."""


class Silent:
    """Watches and says nothing: all processes of a run but the main one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed."""

    def stage(self, name: str, done: int, total: int) -> None:
        """See `Observer.stage`."""

    def notify(self, line: str) -> None:
        """See `Observer.notify`."""

    def step(self, metrics: Metrics) -> None:
        """See `Observer.step`."""

    def validated(self, found: Validated) -> None:
        """See `Observer.validated`."""
