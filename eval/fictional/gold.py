"""Executing a question's gold tool sequence through the real tools: does it lead to the answer?

The proof that a world's questions can be answered. Search goes through the search tool, graph calls
through rdflib, chemistry through RDKit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.task import Task
from eval.metrics import contains
from kg.errors import MissingExtraError

if TYPE_CHECKING:
    from rdflib import Graph

    from tools.base import Source
    from tools.search.tool import SearchTool

_SMILES = (re.compile(r"written (\S+) in SMILES"), re.compile(r"as (\S+) \(SMILES\)"))


def leads_to_answer(task: Task, search: SearchTool, graph: Graph) -> bool:
    """Whether the calls in the task's `meta` find its answer; for a question to decline, whether
    they show nothing that would answer it."""
    shown: list[Source] = []
    found: list[str] = []
    for call in task.meta["calls"]:
        if call["tool"] == "search":
            shown += search.passages(call["query"])
        elif call["tool"] == "graph":
            found += [str(row[0]) for row in graph.query(call["query"])]  # type: ignore[index]
        else:
            found += _computed(call["query"], shown)
    ids = {source.id for source in shown}
    if not task.answers:
        return not task.evidence or set(task.evidence) <= ids
    if found:
        return any(answer in found for answer in task.answers)
    if not set(task.evidence) <= ids:
        return False
    if task.kind in ("comparison", "counting"):  # the answer is in no passage: it follows from all
        return True
    return any(contains(source.text, answer) for source in shown for answer in task.answers)


def _computed(query: str, shown: list[Source]) -> list[str]:
    """The property of the structure that the passages show."""
    try:
        from rdkit import Chem
        from rdkit.Chem.rdMolDescriptors import CalcMolFormula
    except ImportError as error:
        raise MissingExtraError("rdkit", "chem", "questions about structures") from error
    smiles = next(
        (match[1] for source in shown for form in _SMILES if (match := form.search(source.text))),
        "",
    )
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not smiles:
        return []
    if query == "formula":
        return [CalcMolFormula(molecule)]
    symbol = query.removeprefix("count ")
    return [str(sum(atom.GetSymbol() == symbol for atom in molecule.GetAtoms()))]
