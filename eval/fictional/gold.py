"""Executing a question's gold tool sequence through the real tools: does it lead to the answer?

The proof that a world's questions can be answered, and that those to decline cannot. Search goes through
the search tool, graph calls through rdflib, chemistry through RDKit. What is in no passage is worked out
from what the passages shown say: which of two is larger, how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from agent.task import Task
from eval.fictional.graph import select
from eval.fictional.kinds import COUNTED, PREMISES
from eval.fictional.schema import RELATIONS, Relation, relation
from eval.metrics import contains
from kg.errors import MissingExtraError

if TYPE_CHECKING:
    from rdflib import Graph

    from tools.base import Source
    from tools.search.tool import SearchTool

_SMILES = (re.compile(r"written (\S+) in SMILES"), re.compile(r"as (\S+) \(SMILES\)"))
_SENTENCE = re.compile(r"(?<=\.) ")


def leads_to_answer(task: Task, search: SearchTool, graph: Graph) -> bool:
    """Whether the calls in the task's `meta` find its answer; for a question to decline, whether
    nothing that they show, nor the graph, would answer it."""
    shown: list[Source] = []
    found: list[str] = []
    for call in task.meta["calls"]:
        if call["tool"] == "search":
            shown += search.passages(call["query"])
        elif call["tool"] == "graph":
            found += [str(row[0]) for row in graph.query(call["query"])]  # type: ignore[index]
        else:
            found += _computed(call["query"], shown)
    if not set(task.evidence) <= {source.id for source in shown}:
        return False
    if not task.answers:
        return _refuted(task, shown) if task.evidence else not _told(task, shown, graph)
    if task.kind in _WORKED_OUT:
        found = _WORKED_OUT[task.kind](task, shown)
    if found or task.kind in _WORKED_OUT:
        return any(answer in found for answer in task.answers)
    return any(contains(source.text, answer) for source in shown for answer in task.answers)


def _values(shown: Iterable[Source], of: Relation, name: str) -> set[str]:
    """Everything that the passages shown say of this thing under a relation, as it is or as it was."""
    forms = [re.compile(_pattern(form, name)) for form in (*of.statements, *of.former, *of.current)]
    return {
        match["v"]
        for source in shown
        if source.title == name
        for sentence in _SENTENCE.split(source.text)
        for form in forms
        if (match := form.search(sentence)) and match.end() == len(sentence)
    }


def _pattern(form: str, name: str) -> str:
    filled = re.escape(form).replace(r"\{s\}", re.escape(name)).replace(r"\{year\}", r"\d+")
    return filled.replace(r"\{v\}", "(?P<v>.+)")


def _asked(text: str, form: str) -> tuple[str, ...] | None:
    """What fills the slots of a question's form, in the order of the slots; None where it is another."""
    match = re.fullmatch(re.sub(r"\\\{\w+\\\}", "(.+)", re.escape(form)), text)
    return match.groups() if match else None


def _told(task: Task, shown: Sequence[Source], graph: Graph) -> bool:
    """Whether passages shown, or the graph, hold the fact that nobody is to know."""
    for of in RELATIONS:
        asked = _asked(task.question, of.question)
        if asked and (_values(shown, of, asked[0]) or _rows(graph, asked[0], of)):
            return True
    return False


def _rows(graph: Graph, name: str, of: Relation) -> list[object]:
    return list(graph.query(select(name, (of.name,))))


def _refuted(task: Task, shown: Sequence[Source]) -> bool:
    """Whether the passages shown name others than the one that the question takes for granted."""
    for kind, name, _, form in PREMISES:
        order = re.findall(r"\{(\w)\}", form)
        if asked := _asked(task.question, form):
            said = dict(zip(order, asked, strict=True))
            true = _values(shown, relation(kind, name), said["s"])
            return bool(true) and said["p"] not in true
    return False


def _winner(task: Task, shown: Sequence[Source]) -> list[str]:
    """Which of the two that a question compares is it, by the numbers that the passages shown tell."""
    for of in RELATIONS:
        asked = _asked(task.question, of.order) if of.order else None
        if asked:
            numbers = [sorted(map(int, _values(shown, of, name))) for name in asked]
            if [len(found) for found in numbers] != [1, 1]:
                return []
            return [asked[0] if (numbers[0] > numbers[1]) == of.larger else asked[1]]
    return []


def _count(task: Task, shown: Sequence[Source]) -> list[str]:
    """How many books of the passages shown are by the person asked for."""
    asked = _asked(task.question, COUNTED)
    of = relation("book", "author")
    titles = {source.title for source in shown}
    return [str(sum(_values(shown, of, title) == set(asked or ()) for title in titles))]


_WORKED_OUT = {"comparison": _winner, "counting": _count}


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
