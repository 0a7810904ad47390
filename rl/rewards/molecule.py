"""Descriptors of a molecule by RDKit, for the rewards that check what a policy says of one.

RDKit is imported on first use. A descriptor is any function of `rdkit.Chem.Descriptors` by its name.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from kg.errors import MissingExtraError, UsageError


@lru_cache(maxsize=4096)
def molecule(smiles: str) -> Any | None:
    """The RDKit molecule; None when the SMILES does not parse or is empty.

    Raises:
        MissingExtraError: RDKit is not installed.
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise MissingExtraError("rdkit", "chem", "a reward about molecules") from error
    with rdBase.BlockLogs():
        made = Chem.MolFromSmiles(smiles)
    return made if made is not None and made.GetNumAtoms() else None


@lru_cache(maxsize=65536)
def descriptor(smiles: str, name: str) -> float | None:
    """A descriptor's value in RDKit's unit; None for an invalid SMILES or a value not finite.

    Raises:
        UsageError: RDKit has no descriptor of that name.
    """
    made = molecule(smiles)
    if made is None:
        return None
    from rdkit.Chem import Descriptors

    function = dict(Descriptors.descList).get(name)
    if function is None:
        raise UsageError(f"RDKit has no descriptor '{name}'")
    value = float(function(made))
    return value if math.isfinite(value) else None


@lru_cache(maxsize=65536)
def has_substructure(smiles: str, smarts: str) -> bool:
    """Whether a molecule contains the pattern; False for an invalid SMILES."""
    made = molecule(smiles)
    if made is None:
        return False
    from rdkit import Chem

    return bool(made.HasSubstructMatch(Chem.MolFromSmarts(smarts)))
