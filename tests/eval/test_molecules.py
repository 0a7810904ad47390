"""Question sets about structures."""

import csv

import pytest

from eval.benchmarks import DataFolder, load
from tests.eval.files import documented, written

MOLECULES = ("bbbp", "bace", "clintox", "hiv", "esol", "freesolv", "lipophilicity")


@pytest.mark.data
@pytest.mark.parametrize("name", MOLECULES)
def test_every_molecule_is_in_one_split_or_is_told(name, data):
    [file] = documented()[name][0]
    parts = [load(name, data, split) for split in ("train", "test")]
    with data.file(file).open(encoding="utf-8") as lines:
        count = sum(1 for _ in csv.DictReader(lines))
    assert count == sum(len(part.tasks) for part in parts) + len(parts[0].skipped)
    train, test = ({task.meta["smiles"] for task in part.tasks} for part in parts)
    assert not train & test
    assert parts[0].skipped == parts[1].skipped


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "column", "lowest", "highest"),
    [
        ("esol", "measured log solubility in mols per litre", -11.6, 1.58),
        ("freesolv", "expt", -25.47, 3.43),
        ("lipophilicity", "exp", -1.5, 4.5),
    ],
)
def test_the_gold_number_is_the_measured_one_of_that_molecule(name, column, lowest, highest, data):
    """Within the range that MoleculeNet's publication gives for the quantity in that unit."""
    measured = {}
    with data.file(f"moleculenet/{name}.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            measured.setdefault(row["smiles"].strip(), float(row[column]))
    found = load(name, data, "test")
    assert found.scorer == "number"
    for task in found.tasks:
        value = float(task.answers[0])
        assert value == pytest.approx(measured[task.meta["smiles"]], abs=1e-6)
        assert lowest <= value <= highest
        assert len(task.answers[0]) <= 8
        assert task.question.endswith(f" SMILES: {task.meta['smiles']}")


def molecules(folder, name, head, *lines):
    path = written(folder, f"moleculenet/{name}.csv", [])
    path.write_text("\n".join([head, *lines]) + "\n")
    return [load(name, DataFolder(folder, folder), split) for split in ("train", "test")]


def test_broken_rows_of_measured_molecules_are_told_and_counted(tmp_path):
    bad = [
        "1,",
        "nan,C",
        "inf,CC",
        "about 2,CCC",
        '"1,5",CCCC',
        ",CO",
        "-1.5,OC",
        "2,OC",
        "1e999,OCC",
    ]
    parts = molecules(
        tmp_path, "freesolv", "expt,smiles", *bad, *(f"{n},N{'C' * n}" for n in range(30))
    )
    told = [problem.split("freesolv.csv:")[1] for problem in parts[0].skipped]
    assert told == [
        "2: no label, or no structure",
        "3: the label 'nan' is no number",
        "4: the label 'inf' is no number",
        "5: the label 'about 2' is no number",
        "6: the label '1,5' is no number",
        "7: no label, or no structure",
        "9: the molecule is there already",
        "10: the label '1e999' is no number",
    ]
    assert parts[1].skipped == parts[0].skipped
    tasks = {task.meta["smiles"]: task for part in parts for task in part.tasks}
    assert sum(len(part.tasks) for part in parts) == len(tasks) == 31
    assert tasks["OC"].answers == ("-1.5",)
    assert all(part.tasks for part in parts)


def test_a_label_that_is_neither_yes_nor_no_is_told(tmp_path):
    parts = molecules(tmp_path, "bbbp", "p_np,smiles", "2,C", ",CC", "1,CCC", "0,CCCC", "1, CCC")
    told = [problem.split("bbbp.csv:")[1] for problem in parts[0].skipped]
    assert told == [
        "2: the label is '2', not 0 or 1",
        "3: no label, or no structure",
        "6: the molecule is there already",
    ]
    assert sorted(t.answers[0] for part in parts for t in part.tasks) == ["no", "yes"]
