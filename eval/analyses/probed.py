"""How likely the gold answer was at each turn, read from a receipt (`agent trace credit ID --json`)."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.trajectory import Trajectory
from kg.errors import UsageError

_HINT = "agent trace credit ID --json > FILE"


class _Line(BaseModel):
    gold: float | None


class Probed(BaseModel):
    """The part of a receipt that probes are in.

    Attributes:
        id: of the episode.
        gold_answer: the answer that was probed for.
        gold_form: `log_probability` (nats a token) or `probability` of what `turns` hold.
        turns: one for each turn.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    gold_answer: str
    gold_form: str
    turns: tuple[_Line, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """In their form: how likely the answer was in what each turn's call saw."""
        return tuple(line.gold for line in self.turns if line.gold is not None)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The same as probabilities a token, the geometric mean over the answer's tokens."""
        plain = self.gold_form == "probability"
        return tuple(value if plain else math.exp(value) for value in self.values)


def read_probed(path: Path, done: Trajectory) -> Probed:
    """The probes of an episode.

    Raises:
        UsageError: no such file, no receipt, one of another episode, or one without probes.
    """
    try:
        found = Probed.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _HINT) from error
    except ValidationError as error:
        raise UsageError(f"{path} holds no receipt", _HINT) from error
    if found.id != done.id:
        raise UsageError(f"{path} is the receipt of {found.id}, not of {done.id}", _HINT)
    if not found.values or len(found.values) != len(done.turns):
        raise UsageError(
            f"{path} does not tell how likely the answer was at each turn",
            f"a recipe with information gain: {_HINT.replace(' >', ' --recipe igpo >')}",
        )
    return found
