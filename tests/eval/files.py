"""Files of question sets for tests: written, and what the documentation says of them."""

import gzip
import json
import re
from pathlib import Path

import numpy as np

from agent.policies.base import Sampling
from agent.trajectory import Status, StopReason, Trajectory


def written(folder, name, rows):
    """A data folder that holds these rows as a file of a set."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def answered(task, said):
    return Trajectory(
        task, "p@1", 0, Sampling(), Status.ANSWERED, StopReason.ANSWER, (),
        np.zeros(0, np.int32), np.zeros(0, np.float32), answer=said,
    )  # fmt: skip


def documented():
    """Set to files of questions, their fields and other files, from the table of the documentation."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
    table = page.split("| set | questions | fields of a row |")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        cells = [re.sub(r"\([^)]*\)", "", cell) for cell in line.split("|")[1:-1]]
        assert re.search(r"\w\.\w", cells[4]), f"no original: {line}"
        names, files, fields, others = (re.findall(r"`([^`]+)`", cell) for cell in cells[:4])
        for name in names:
            found[name] = ([one.replace("NAME", name) for one in files], fields,
                           [one.replace("NAME", name) for one in others])  # fmt: skip
    return found
