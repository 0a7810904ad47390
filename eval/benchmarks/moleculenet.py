"""MoleculeNet as questions about a structure: BBBP, BACE, ClinTox and HIV ask for yes or no, ESOL,
FreeSolv and Lipophilicity for a number."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import BAD_ROW, Benchmark, Split, cause, checked, split_of
from eval.data import DataFolder
from eval.metrics.values import number, written
from kg.errors import UsageError


def _yes_or_no(label: str) -> str:
    if label not in ("0", "1"):
        raise ValueError(f"the label is {label!r:.40}, not 0 or 1")
    return "yes" if label == "1" else "no"


def _measured(label: str) -> str:
    value = number(label)
    if value is None:
        raise ValueError(f"the label {label!r:.40} is no number")
    return written(round(value, 6))  # 1.1440000000000001 is what a float makes of 1.144


@dataclass(frozen=True)
class _Set:
    """One of the sets: the column of its label, what is asked, the answer from a label, the scorer."""

    column: str
    question: str
    answer: Callable[[str], str]
    scorer: str
    file: str = ""


def _asked(column: str, question: str, file: str = "") -> _Set:
    return _Set(column, question, _yes_or_no, "hotpotqa", file)


def _sought(column: str, quantity: str) -> _Set:
    question = f"What is the {quantity}? Answer with the number alone."
    return _Set(column, question, _measured, "number")


_SETS = {
    "bbbp": _asked("p_np", "Does this molecule pass the blood-brain barrier?"),
    "bace": _asked("Class", "Does this molecule inhibit human beta-secretase 1?"),
    "clintox": _asked("CT_TOX", "Did this molecule fail clinical trials for toxicity?"),
    "hiv": _asked(
        "HIV_active", "Does this molecule inhibit the replication of HIV?", "hiv_sample.csv"
    ),
    "esol": _sought(
        "measured log solubility in mols per litre",
        "decimal logarithm of this molecule's solubility in water (in mol/L)",
    ),
    "freesolv": _sought("expt", "hydration free energy of this molecule (in kcal/mol)"),
    "lipophilicity": _sought(
        "exp", "octanol/water distribution coefficient of this molecule (as logD at pH 7.4)"
    ),
}


def load(name: str, data: DataFolder, split: Split) -> Benchmark:
    """Molecules whose SMILES falls into `split`.

    Not MoleculeNet's scaffold or random split: figures are not comparable with its tables.
    """
    made, found = _SETS[name], dict[str, Task]()
    problems: list[str] = []
    path = data.file(f"moleculenet/{made.file or f'{name}.csv'}")
    seen: set[str] = set()
    for number_of_row, row in _rows(path):
        try:
            task = checked(_task(name, made, number_of_row, row))
            smiles = task.meta["smiles"]
            if smiles in seen:
                raise ValueError("the molecule is there already")
        except BAD_ROW as error:
            problems.append(f"{path}:{number_of_row}: {cause(error)}")
            continue
        seen.add(smiles)
        if split_of(smiles) == split:
            found[smiles] = task
    tasks = tuple(found.values())
    return Benchmark(name, tasks, (), made.scorer, tuple(problems), needs=("chem",))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and columns of each row, the first being 2.

    Raises:
        UsageError: the file is no table of text.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            yield from enumerate(csv.DictReader(lines), 2)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _task(name: str, made: _Set, place: int, row: dict[str, str]) -> Task:
    smiles, label = (row.get("smiles") or "").strip(), (row.get(made.column) or "").strip()
    if not smiles or not label:
        raise ValueError("no label, or no structure")
    return Task(
        id=f"{name}-{place}",
        question=f"{made.question} SMILES: {smiles}",
        answers=(made.answer(label),),
        answerable=True,
        kind=made.column,
        meta={"smiles": smiles, "property": name},
    )
