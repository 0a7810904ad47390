"""Estimators by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rl.credit.gae import bilevel_gae, token_gae, turn_gae
from rl.credit.group import Batch, CreditError
from rl.credit.ledger import Credit, Unit
from rl.credit.outcome import (
    dr_grpo,
    filtered,
    grpo,
    lite_ppo,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)
from rl.credit.settle import drop_and_count
from rl.credit.stopping import stopping
from rl.credit.turns import gigpo, igpo, turn_group, turn_rloo

_FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True)
class Estimator:
    """A credit estimator as recipes name it.

    Attributes:
        name: in recipes.
        compute: from a batch and keyword options to credit.
        unit: what one return is counted for.
        unbiased: whether its defaults give the gradient of the expected reward.
        values: whether it reads the predictions of a critic.
    """

    name: str
    compute: Callable[..., Credit]
    unit: Unit
    unbiased: bool
    values: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""
        return tuple(inspect.signature(self.compute).parameters)[1:]

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, converted to their types.

        Raises:
            CreditError: one that is unknown (the nearest is suggested), of a wrong type, or not finite.
        """
        for option in options:
            if option not in self.options:
                message = f"{self.name} has no option '{option}'"
                raise CreditError(message, _nearest(option, self.options))
        types = get_type_hints(self.compute, include_extras=True)
        made: dict[str, Any] = {}
        for option, value in options.items():
            try:
                kind: TypeAdapter[Any] = TypeAdapter(types[option], config=_FINITE)
                made[option] = kind.validate_python(value)
            except ValidationError as error:
                message = f"{self.name}: the option '{option}' is {value!r}"
                raise CreditError(message, error.errors()[0]["msg"]) from error
        return made


ESTIMATORS = {
    estimator.name: estimator
    for estimator in (
        Estimator("grpo", grpo, Unit.TRAJECTORY, False),
        Estimator("dr_grpo", dr_grpo, Unit.TRAJECTORY, False),
        Estimator("rloo", rloo, Unit.TRAJECTORY, True),
        Estimator("lite_ppo", lite_ppo, Unit.TRAJECTORY, False),
        Estimator("filtered", filtered, Unit.TRAJECTORY, False),
        Estimator("reinforce_pp", reinforce_pp, Unit.TOKEN, False),
        Estimator("reinforce_pp_baseline", reinforce_pp_baseline, Unit.TRAJECTORY, False),
        Estimator("igpo", igpo, Unit.TURN, False),
        Estimator("turn_group", turn_group, Unit.TURN, False),
        Estimator("turn_rloo", turn_rloo, Unit.TURN, True),
        Estimator("gigpo", gigpo, Unit.TURN, False),
        Estimator("stopping", stopping, Unit.TURN, True),
        Estimator("token_gae", token_gae, Unit.TOKEN, False, values=True),
        Estimator("turn_gae", turn_gae, Unit.TURN, False, values=True),
        Estimator("bilevel_gae", bilevel_gae, Unit.TOKEN, False, values=True),
    )
}


def find(name: str) -> Estimator:
    """The estimator of this name.

    Raises:
        CreditError: there is none; the hint names the nearest one.
    """
    if name not in ESTIMATORS:
        raise CreditError(f"no credit estimator '{name}'", _nearest(name, ESTIMATORS))
    return ESTIMATORS[name]


def estimate(name: str, batch: Batch, **options: object) -> Credit:
    """Credit by the estimator of this name; bad trajectories are dropped and counted.

    Raises:
        CreditError: no such estimator or option, or a batch that it cannot work with.
    """
    estimator = find(name)
    return drop_and_count(partial(estimator.compute, **estimator.checked(options)), batch)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"there are: {', '.join(names)}" if names else "it has none"
