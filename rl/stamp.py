"""The mark of the recipe that a saved state was made by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kg.errors import UsageError
from rl.recipe import Strict


@dataclass(frozen=True)
class Stamp:
    """Digests of a recipe; both empty where nobody says which it is.

    Attributes:
        recipe: of the resolved recipe, as reports tell it.
        fixed: of what may not change while the run goes on.
    """

    recipe: str = ""
    fixed: str = ""

    @classmethod
    def of(cls, recipe: Strict, free: Collection[str] = ()) -> Self:
        """The stamp of a recipe whose sections `free` may change."""
        return cls(recipe.digest, recipe.chosen_digest(free))

    @property
    def facts(self) -> dict[str, str]:
        """What is written into a saved state."""
        return {"recipe": self.recipe, "fixed": self.fixed} if self.fixed else {}

    def require(self, found: Mapping[str, Any], where: Path) -> None:
        """Refuse a state of another recipe; one that was saved without a stamp is taken.

        Raises:
            UsageError: it is another's.
        """
        theirs = found.get("fixed")
        if self.fixed and theirs and theirs != self.fixed:
            raise UsageError(
                f"{where} was made by another recipe ({found.get('recipe')}, this one is {self.recipe})",
                "choose another --out",
            )
