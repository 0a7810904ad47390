"""Reasoning about a molecule, claim by claim, paid only under a right answer (MPPReasoner).

Source: MPPReasoner (arXiv 2510.10248; code Jesse-zjx/MPPReasoner, correctness gating):

    unparsable answer  -1.5        wrong answer  -1
    right answer       (1 + format) + 0.25 * (consistency + comparison) + 0.25 * (principles + structure)

Claims are read from the thoughts of all turns; the molecule is `meta["smiles"]`, molecules that it may
be compared with are `meta["neighbours"]` (SMILES), and the label is the task's first answer. No tool
is imported: descriptors are computed here, so that a claim is checked whether or not a tool was asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from agent.trajectory import Trajectory
from rl.rewards.attributes import named_label, polarity
from rl.rewards.base import Range, Reward, RewardError, Values, at_end
from rl.rewards.context import Need, RewardContext
from rl.rewards.format import FormatRules
from rl.rewards.molecule import descriptor, has_substructure, molecule
from rl.rewards.reading import gold, last, meta_text, meta_texts, thought_of
from rl.rewards.registry import register

_WEIGHING = re.compile(
    r"\b(?:overall|therefore|on balance|in summary|taken together|thus|hence|in conclusion)\b", re.I
)
_NO = r"(?:not|inactive|negative|false|unlikely|fails?)"
_HEDGE = "(?:likely|probably|expected|predicted)"
_TO_BE = "(?: to)?(?: be)?"
_CONFIRMING = {
    True: re.compile(
        rf"\b(?:is|be) (?:{_HEDGE}\b(?!{_TO_BE} {_NO}\b)|(?:active|positive|true)\b)", re.I
    ),
    False: re.compile(rf"\b(?:is|be) (?:{_HEDGE}{_TO_BE} )?{_NO}\b", re.I),
}
_NEGATED = re.compile(r"\b(?:not|no|non|without|lacks?|lacking|absence of)\b[\w\s]{0,20}$", re.I)


class Claim(NamedTuple):
    """A statement about the molecule and whether it holds; None where the principle leaves it open."""

    principle: str
    holds: bool | None


def _above(name: str, high: float, low: float) -> Callable[[str], bool | None]:
    """True above `high`, False below `low`, open between."""

    def check(smiles: str) -> bool | None:
        value = descriptor(smiles, name)
        if value is None or low <= value <= high:
            return None
        return value > high

    return check


def _opposite(check: Callable[[str], bool | None]) -> Callable[[str], bool | None]:
    def inverse(smiles: str) -> bool | None:
        held = check(smiles)
        return None if held is None else not held

    return inverse


def lipinski_violations(smiles: str) -> int:
    """How many of Lipinski's four limits are broken: 500 Da, logP 5, 5 donors, 10 acceptors."""
    limits = {"MolWt": 500, "MolLogP": 5, "NumHDonors": 5, "NumHAcceptors": 10}
    return sum((descriptor(smiles, name) or 0.0) > limit for name, limit in limits.items())


def _breaks_lipinski(smiles: str) -> bool | None:
    return lipinski_violations(smiles) >= 2


def _bonds_hydrogen(smiles: str) -> bool | None:
    names = ("NumHDonors", "NumHAcceptors")
    return sum(descriptor(smiles, name) or 0.0 for name in names) > 0


def _crowded(smiles: str) -> bool | None:
    return (descriptor(smiles, "HeavyAtomCount") or 0.0) > 30


def _aromatic(smiles: str) -> bool | None:
    return (descriptor(smiles, "NumAromaticRings") or 0.0) > 0


_LIPOPHILIC = _above("MolLogP", 3, 1)
_LARGE = _above("MolWt", 500, 200)
_POLAR = _above("TPSA", 140, 60)
_FLEXIBLE = _above("NumRotatableBonds", 5, 1)
_RULE = r"(?:lipinski(?:'s)?(?: rules?)?(?: of five)?|rule of five)"

_Check = Callable[[str], bool | None]
PRINCIPLES: tuple[tuple[str, re.Pattern[str], _Check], ...] = tuple(
    (principle, re.compile(rf"(?<![\w-])(?:{words})\b", re.I), check)
    for principle, words, check in (
        (
            "lipinski",
            rf"(?:violat\w+|breaks?|fails?) (?:of )?(?:the )?{_RULE}|{_RULE} violations?",
            _breaks_lipinski,
        ),
        (
            "lipinski",
            rf"(?:satisf\w+|compl\w+ with|obeys?|meets?|passes|follows) (?:the )?{_RULE}",
            _opposite(_breaks_lipinski),
        ),
        ("lipophilicity", r"lipophilic|hydrophobic|high log ?p", _LIPOPHILIC),
        ("lipophilicity", r"hydrophilic|low log ?p", _opposite(_LIPOPHILIC)),
        ("hydrogen bonds", r"hydrogen[- ]bond\w*|h-bond\w*", _bonds_hydrogen),
        ("size", r"large molecule|high molecular weight|bulky molecule", _LARGE),
        ("size", r"small molecule|low molecular weight", _opposite(_LARGE)),
        ("aromaticity", r"aromatic\w*", _aromatic),
        ("polarity", r"polar|high tpsa|high polar surface area", _POLAR),
        ("polarity", r"non-?polar|low tpsa|low polar surface area", _opposite(_POLAR)),
        ("sterics", r"steric\w*|bulk", _crowded),
        ("flexibility", r"flexible|flexibility", _FLEXIBLE),
        ("flexibility", r"rigid|rigidity", _opposite(_FLEXIBLE)),
    )
)
"""Principle, words that claim it (whole words: "polar" is not in "nonpolar"), and its check."""

FEATURES: dict[str, str] = {
    "hydroxyl": "[OX2H]", "phenol": "c[OX2H]", "carboxylic acid": "C(=O)[OX2H]",
    "ester": "[#6]C(=O)O[#6]", "ether": "[#6][OX2][#6]", "amide": "C(=O)N", "aniline": "cN",
    "amine": "[NX3;!$(NC=O)]", "nitrile": "C#N", "nitro": "[N+](=O)[O-]",
    "ketone": "[#6]C(=O)[#6]", "aldehyde": "[CX3H1](=O)", "fluorine": "F", "chlorine": "Cl",
    "bromine": "Br", "iodine": "I", "sulfonamide": "S(=O)(=O)N", "thioether": "[#6][SX2][#6]",
    "thiol": "[SX2H]", "benzene": "c1ccccc1", "pyridine": "n1ccccc1", "imidazole": "c1cnc[n]1",
    "piperidine": "C1CCNCC1", "epoxide": "C1OC1",
}  # fmt: skip
"""Structural features by name, each as SMARTS."""

_FEATURE_WORDS = {
    name: re.compile(rf"(?<![\w-]){name.replace(' ', '[- ]')}s?\b", re.I) for name in FEATURES
}


def principle_claims(text: str, smiles: str) -> list[Claim]:
    """What a text claims of a molecule's physical chemistry; a claim made twice counts once."""
    found = [
        Claim(principle, _held(check(smiles), text, match))
        for principle, words, check in PRINCIPLES
        for match in words.finditer(text)
    ]
    return list(dict.fromkeys(found))


def structure_claims(text: str, smiles: str) -> list[Claim]:
    """Structural features that a text says the molecule has, or has not."""
    found = [
        Claim(name, _held(has_substructure(smiles, FEATURES[name]), text, match))
        for name, words in _FEATURE_WORDS.items()
        for match in words.finditer(text)
    ]
    return list(dict.fromkeys(found))


def _held(holds: bool | None, text: str, match: re.Match[str]) -> bool | None:
    """The check's result, turned round where a negation stands close before the claim."""
    before = re.split(r"[.;,:!?\n]", text[: match.start()])[-1]
    return (not holds) if holds is not None and _NEGATED.search(before) else holds


def any_claim(claims: Sequence[Claim]) -> float:
    """Published: 1 when any one claim holds or is left open."""
    return float(any(claim.holds is not False for claim in claims))


def claim_precision(claims: Sequence[Claim], false_cost: float, enough: int) -> float:
    """(true - cost * false) / checkable, in -1..1, in full from `enough` checkable claims on."""
    checkable = [claim.holds for claim in claims if claim.holds is not None]
    if not checkable:
        return 0.0
    true = sum(checkable)
    value = (true - false_cost * (len(checkable) - true)) / len(checkable)
    return max(value, -1.0) * min(1.0, len(checkable) / enough)


@register
class MolecularReasoning(Reward):
    """MPPReasoner's correctness-gated sum, on the last turn.

    `precision` scores all checkable claims and charges false ones; `any`, as published, pays in full
    for one claim that holds, so that naming everything is free.

    Attributes:
        form: how claims are scored.
        false_cost: of a false claim against a true one, in the form `precision`.
        enough: checkable claims from which on precision counts in full.
        weight: of the auxiliary terms.
        wrong, unparsable: of a wrong answer, and of one that is neither true nor false.
    """

    name: ClassVar[str] = "molecular_reasoning"
    source: ClassVar[str] = "MPPReasoner 2510.10248 (code); the form `precision`: own"
    last_turn_only: ClassVar[bool] = True
    form: Literal["precision", "any"] = "precision"
    false_cost: float = Field(1.0, ge=0, le=1)
    enough: int = Field(3, ge=1)
    weight: float = Field(0.25, ge=0, le=0.25)
    wrong: float = Field(-1.0, le=0)
    unparsable: float = Field(-1.5, le=0)
    rules: FormatRules = FormatRules(thought="some")

    @property
    def range(self) -> Range:
        """From an answer that cannot be read to everything right."""
        return Range(min(self.wrong, self.unparsable), 2.0 + 4 * self.weight)

    @property
    def needs(self) -> tuple[Need, ...]:
        """A label and a molecule."""
        return (Need.ANSWERS, Need.MOLECULE)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The gated sum of each trajectory."""
        return [at_end(trajectory, self._value(trajectory)) for trajectory in group]

    def _value(self, trajectory: Trajectory) -> float:
        wanted, said = self._label(trajectory), named_label(trajectory)
        if said is None:
            return self.unparsable
        if said is not wanted:
            return self.wrong
        text = "\n".join(filter(None, map(thought_of, trajectory.turns)))
        smiles = meta_text(trajectory, "smiles")
        claims = principle_claims(text, smiles), structure_claims(text, smiles)
        checked = [self._claims(c) if molecule(smiles) is not None else 0.0 for c in claims]
        told = consistency(text, said) + comparison(text, meta_texts(trajectory, "neighbours"))
        return 1.0 + self.rules.valid(trajectory) + self.weight * (told + sum(checked))

    def _label(self, trajectory: Trajectory) -> bool:
        """The gold label.

        Raises:
            RewardError: there is none, or it is neither true nor false.
        """
        answers = gold(trajectory)
        wanted = polarity(answers[0]) if answers else None
        if wanted is None:
            what = f"the gold label of task {trajectory.task.id} is neither true nor false"
            raise RewardError(what, trajectory.id, last(trajectory))
        return wanted

    def _claims(self, claims: Sequence[Claim]) -> float:
        if self.form == "any":
            return any_claim(claims)
        return claim_precision(claims, self.false_cost, self.enough)


def consistency(text: str, said: bool) -> float:
    """1 when the text weighs its points and confirms what is answered, and not the opposite."""
    weighs = bool(_WEIGHING.search(text)) and bool(_CONFIRMING[said].search(text))
    return float(weighs and not _CONFIRMING[not said].search(text))


def comparison(text: str, neighbours: Sequence[str]) -> float:
    """1 when one of the molecules given for comparison is quoted."""
    return float(any(smiles and smiles in text for smiles in neighbours))
