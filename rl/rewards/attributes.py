"""Molecular attributes that a policy names before it answers, checked by RDKit (AttriLens-Mol).

Source: AttriLens-Mol (arXiv 2508.04748; code szu-tera/AttriLens-Mol). The final reply holds
`<name>MolWt: improve, TPSA: not improve, …</name>` and then the answer, True or False. The published
reward is the sum of the four here, each with weight 1.

Read from the text of the last turn, `meta["smiles"]` and `meta["property"]` of the task. Bugs of the
released code are not copied: "not improve" is read before "improve", a block may span lines, the
answer is compared as a whole, and a name must be known (no nearest match).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from agent.trajectory import ActionKind, Trajectory
from rl.rewards.base import Range, Reward, RewardError, Values, at_end
from rl.rewards.context import Need, RewardContext
from rl.rewards.molecule import descriptor
from rl.rewards.outcome import Outcome
from rl.rewards.reading import final_answer, judged, meta_text
from rl.rewards.registry import register

_BLOCK = re.compile(r"<name>(.*?)</name>", re.DOTALL | re.IGNORECASE)
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)

RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "bbbp": {
        "MolWt": (100, 450), "MolLogP": (1, 4), "TPSA": (0, 70), "NumHDonors": (0, 2),
        "NumHAcceptors": (0, 4), "NumRotatableBonds": (0, 6), "FractionCSP3": (0.2, 0.6),
        "RingCount": (1, 4), "NumAromaticRings": (0, 3), "LabuteASA": (0, 100),
        "NumValenceElectrons": (40, 80), "NumRadicalElectrons": (0, 0),
    },
    "bace": {
        "MolWt": (200, 500), "MolLogP": (1, 5), "TPSA": (0, 60), "NumHDonors": (0, 3),
        "NumHAcceptors": (0, 6), "NumRotatableBonds": (0, 8), "FractionCSP3": (0.2, 0.6),
        "RingCount": (1, 5), "NumAromaticRings": (0, 3), "LabuteASA": (0, 140),
        "NumValenceElectrons": (50, 90), "NumRadicalElectrons": (0, 0),
    },
    "clintox": {
        "MolWt": (50, 450), "MolLogP": (-1, 3), "TPSA": (0, 80), "NumHDonors": (0, 3),
        "NumHAcceptors": (0, 6), "NumRotatableBonds": (0, 7), "FractionCSP3": (0.1, 0.7),
        "RingCount": (0, 4), "NumAromaticRings": (0, 2), "LabuteASA": (0, 110),
        "NumValenceElectrons": (30, 75), "NumRadicalElectrons": (0, 0),
    },
}  # fmt: skip
"""Favourable ranges by property and RDKit descriptor, both ends included (released code)."""

USUAL: dict[str, tuple[float, float]] = {
    "MolMR": (40, 130), "HeavyAtomCount": (20, 70),
    "NOCount": (0, 10), "NHOHCount": (0, 5),
    "qed": (0.67, 1),
}  # fmt: skip
"""Ranges of drug-likeness, whatever the property, for descriptors without one of their own: Ghose's
filter (10.1021/cc9800071: molar refractivity, atoms), Lipinski's rule (10.1016/S0169-409X(96)00423-1:
nitrogen and oxygen atoms, their hydrogens), QED of attractive compounds (10.1038/nchem.1243)."""

_ALIASES = {
    "molecularweight": "MolWt", "mw": "MolWt", "molweight": "MolWt", "weight": "MolWt",
    "logp": "MolLogP", "lipophilicity": "MolLogP", "clogp": "MolLogP",
    "polarsurfacearea": "TPSA", "topologicalpolarsurfacearea": "TPSA", "psa": "TPSA",
    "hbd": "NumHDonors", "hbonddonors": "NumHDonors", "hydrogenbonddonors": "NumHDonors",
    "numhbonddonors": "NumHDonors", "hba": "NumHAcceptors", "hbondacceptors": "NumHAcceptors",
    "hydrogenbondacceptors": "NumHAcceptors", "numhbondacceptors": "NumHAcceptors",
    "rotatablebonds": "NumRotatableBonds", "fsp3": "FractionCSP3", "rings": "RingCount",
    "numrings": "RingCount", "aromaticrings": "NumAromaticRings",
    "valenceelectrons": "NumValenceElectrons", "radicalelectrons": "NumRadicalElectrons",
    "molarrefractivity": "MolMR", "mr": "MolMR", "druglikeness": "qed",
    "heavyatomweight": "HeavyAtomMolWt", "heavyatoms": "HeavyAtomCount",
}  # fmt: skip


RATIONAL = (
    "The attributes named are relevant to the property, and for each of them 'improve' or 'not improve' "
    "is what its value in this molecule does to the property."
)
"""What a judge is asked of a block; own wording."""


class Attribute(NamedTuple):
    """One named attribute: whether it is said to favour the property; None when neither is said."""

    name: str
    improves: bool | None


def attributes(text: str) -> list[Attribute] | None:
    """The items of the last `<name>` block, in order; None when there is no block.

    Items are separated by commas or line ends; "not improve" is read before "improve".
    """
    blocks = _BLOCK.findall(text)
    if not blocks:
        return None
    items = [item.strip() for item in re.split(r"[,\n]", blocks[-1])]
    return [_attribute(item) for item in items if item]


def _attribute(item: str) -> Attribute:
    name, _, said = item.partition(":")
    plain = " ".join(said.lower().replace("_", " ").split())
    improves = {"improve": True, "improves": True, "not improve": False, "does not improve": False}
    return Attribute(name.strip(), improves.get(plain.rstrip(".")))


def descriptor_name(name: str, known: Sequence[str]) -> str | None:
    """The descriptor that a name stands for among those known; None when it is none of them.

    Case, spaces, underscores and hyphens do not matter; common synonyms are known.
    """
    key = re.sub(r"[\s_-]+", "", name.lower())
    plain = {entry.lower(): entry for entry in known}
    alias = _ALIASES.get(key, "")
    return plain.get(key) or (alias if alias in known else None)


def final_text(trajectory: Trajectory) -> str:
    """The reply of the last turn."""
    return trajectory.turns[-1].text if trajectory.turns else ""


def after_block(text: str) -> str:
    """What follows the last `<name>` block, without answer tags; the whole text without a block."""
    blocks = list(_BLOCK.finditer(text))
    return _ANSWER_TAG.sub("", text[blocks[-1].end() if blocks else 0 :]).strip()


@register
class AttributeFormat(Reward):
    """A `<name>` block and then an answer that is not empty, in the last turn."""

    name: ClassVar[str] = "attribute_format"
    source: ClassVar[str] = "AttriLens-Mol 2508.04748 (code)"
    last_turn_only: ClassVar[bool] = True
    valid: float = Field(1.0, ge=0)
    invalid: float = Field(-2.0, le=0)

    @property
    def range(self) -> Range:
        """One of two constants."""
        return Range(self.invalid, self.valid)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """One constant for each trajectory."""
        return [at_end(t, self._value(t)) for t in group]

    def _value(self, trajectory: Trajectory) -> float:
        text = final_text(trajectory)
        answers = bool(trajectory.turns) and trajectory.turns[-1].action.kind is ActionKind.ANSWER
        good = answers and attributes(text) is not None and after_block(text)
        return self.valid if good else self.invalid


@register
class AttributeCorrectness(Outcome):
    """2 for the gold label, True or False, as the whole answer; else 0."""

    name: ClassVar[str] = "attribute_correctness"
    source: ClassVar[str] = "AttriLens-Mol 2508.04748 (code, with a whole-answer match)"
    right: float = Field(2.0, ge=0)

    @property
    def range(self) -> Range:
        """0 or the constant."""
        return Range(0.0, max(self.right, self.declined))

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Polarity against that of the first answer.

        Raises:
            RewardError: the gold answer is neither true nor false.
        """
        wanted = polarity(answers[0])
        if wanted is None:
            raise RewardError(f"the gold label is {answers[0]!r}", trajectory.id)
        return self.right * (polarity(after_block(said)) is wanted)


def polarity(text: str) -> bool | None:
    """The label that a text is: true or yes, false or no; None when it is anything else."""
    plain = text.strip().strip(".!").lower()
    return {"true": True, "yes": True, "false": False, "no": False}.get(plain)


@register
class AttributeCount(Reward):
    """0 when 3 to 10 attributes are named, else a penalty.

    Attributes:
        least, most: numbers of attributes that cost nothing, both included; one said twice counts once.
        outside: of another number; `absent`: without a block.
    """

    name: ClassVar[str] = "attribute_count"
    source: ClassVar[str] = "AttriLens-Mol 2508.04748 (code)"
    last_turn_only: ClassVar[bool] = True
    least: int = Field(3, ge=0)
    most: int = Field(10, ge=1)
    outside: float = Field(-1.0, le=0)
    absent: float = Field(-1.5, le=0)

    @property
    def range(self) -> Range:
        """Penalties only."""
        return Range(min(self.outside, self.absent), 0.0)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The penalty of each trajectory."""
        return [at_end(trajectory, self._value(final_text(trajectory))) for trajectory in group]

    def _value(self, text: str) -> float:
        named = attributes(text)
        if named is None:
            return self.absent
        different = {re.sub(r"[\s_-]+", "", item.name.lower()) for item in named}
        return 0.0 if self.least <= len(different) <= self.most else self.outside


@register
class AttributeRationality(Reward):
    """Do the named attributes speak for or against the property as is said?

    By RDKit: the share of the recognised attributes whose stated direction it confirms. An attribute
    favours the property when its descriptor lies in the favourable range. Names not recognised are left
    out; without any, or with a SMILES that is invalid, the value is 0. By a judge: how sensible it
    finds the attributes and directions, 0 to 1; 0 without a block. Both: the mean of the two.

    Attributes:
        by: `rdkit` as in the released code, where a model's part is the table of ranges; a `judge` of
            each reply; or `both`.
        ranges: favourable ranges by RDKit descriptor, instead of those of the task's property.
        usual: where the property's own table has no range for a descriptor, take the usual one of
            drug-likeness (`USUAL`).
        chance_corrected: 2 * share - 1, so that guessed directions earn nothing on average; the
            published share pays them a half. A judge's part stays as it is.
    """

    name: ClassVar[str] = "attribute_rationality"
    source: ClassVar[str] = "AttriLens-Mol 2508.04748 (code); chance correction, judge: own"
    last_turn_only: ClassVar[bool] = True
    by: Literal["rdkit", "judge", "both"] = "rdkit"
    usual: bool = True
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    chance_corrected: bool = False

    @property
    def range(self) -> Range:
        """A share, or one less chance."""
        low = {"rdkit": -1.0, "both": -0.5, "judge": 0.0}[self.by]
        return Range(low if self.chance_corrected else 0.0, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """A molecule; the property that is asked for, unless own ranges say all; the judge."""
        asked = () if self.ranges and self.by == "rdkit" else (Need.PROPERTY,)
        return (Need.MOLECULE, *asked, *((Need.JUDGE,) if self.by != "rdkit" else ()))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The share, the judge's score or their mean, of each trajectory."""
        return [at_end(trajectory, self._value(trajectory, context)) for trajectory in group]

    def _value(self, trajectory: Trajectory, context: RewardContext) -> float:
        parts = []
        if self.by != "judge":
            parts.append(self._confirmed(trajectory))
        if self.by != "rdkit":
            parts.append(self._sensible(trajectory, context))
        return sum(parts) / len(parts)

    def _sensible(self, trajectory: Trajectory, context: RewardContext) -> float:
        """What the judge says of the block."""
        asked, smiles = meta_text(trajectory, "property"), meta_text(trajectory, "smiles")
        named = attributes(final_text(trajectory)) if context.judge is not None else []
        if named is None:
            return 0.0
        said = {True: "improve", False: "not improve", None: "(no direction)"}
        lines = "\n".join(f"{item.name}: {said[item.improves]}" for item in named)
        text = f"Molecule (SMILES): {smiles}\nProperty: {asked}\nAttributes:\n{lines}"
        return judged(trajectory, RATIONAL, text, context)

    def _confirmed(self, trajectory: Trajectory) -> float:
        """The share that RDKit confirms, less chance where that is corrected."""
        ranges, smiles = self._ranges(trajectory), meta_text(trajectory, "smiles")
        said: dict[str, bool] = {}
        for item in attributes(final_text(trajectory)) or []:
            name = descriptor_name(item.name, list(ranges))
            if name and item.improves is not None:
                said.setdefault(name, item.improves)
        checked = [
            improves == (ranges[name][0] <= value <= ranges[name][1])
            for name, improves in said.items()
            if (value := descriptor(smiles, name)) is not None
        ]
        if not checked:
            return 0.0
        share = sum(checked) / len(checked)
        return 2.0 * share - 1.0 if self.chance_corrected else share

    def _ranges(self, trajectory: Trajectory) -> dict[str, tuple[float, float]]:
        if self.ranges:
            return self.ranges
        asked = meta_text(trajectory, "property").lower()
        if asked not in RANGES:
            known = f"choose one of: {', '.join(RANGES)}, or give ranges"
            raise RewardError(f"no favourable ranges for '{asked}'", trajectory.id, hint=known)
        return {**USUAL, **RANGES[asked]} if self.usual else RANGES[asked]


def named_label(trajectory: Trajectory) -> bool | None:
    """True or False as the trajectory answered; None when its answer is neither."""
    return polarity(after_block(final_answer(trajectory)))
