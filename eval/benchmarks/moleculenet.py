"""MoleculeNet's yes-or-no sets as questions about a structure: BBBP, BACE and ClinTox."""

from __future__ import annotations

import csv
from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, split_of
from eval.data import DataFolder
from kg.errors import UsageError

# the column of the label, and what is asked
_SETS = {
    "bbbp": ("p_np", "Does this molecule pass the blood-brain barrier?"),
    "bace": ("Class", "Does this molecule inhibit human beta-secretase 1?"),
    "clintox": ("CT_TOX", "Did this molecule fail clinical trials for toxicity?"),
}


def load(name: str, data: DataFolder, split: Split) -> Benchmark:
    """Molecules whose SMILES falls into `split`.

    Not MoleculeNet's scaffold split: figures are not comparable with its tables.
    """
    column, question = _SETS[name]
    tasks, skipped = _tasks(data.file(f"moleculenet/{name}.csv"), column, question, split)
    return Benchmark(name, tasks, (), "hotpotqa", skipped, needs=("chem",))


def _tasks(
    path: Path, column: str, question: str, split: Split
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    found: dict[str, Task] = {}
    problems: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines), 2):
                smiles, label = row.get("smiles") or "", (row.get(column) or "").strip()
                if label not in ("0", "1") or not smiles:
                    problems.append(f"{path}:{number}: no label, or no structure")
                elif smiles in found:
                    problems.append(f"{path}:{number}: the molecule is there already")
                elif split_of(smiles) == split:
                    found[smiles] = Task(
                        id=f"{path.stem}-{number}",
                        question=f"{question} SMILES: {smiles}",
                        answers=("yes" if label == "1" else "no",),
                        answerable=True,
                        kind=column,
                        meta={"smiles": smiles, "property": path.stem},
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return tuple(found.values()), tuple(problems)
