"""Question sets: what a file holds, and what is said of one that is wrong."""

import gzip
import json

import pytest

from eval.benchmarks import NAMES, load
from eval.benchmarks.base import rows, split_of, titles_to_ids
from kg.errors import UsageError


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_every_set_gives_tasks_with_answers_and_evidence_in_its_corpus(name, data):
    found = load(name, data, "test")
    assert len(found.tasks) > 20
    for task in found.tasks:
        assert task.answers or task.answerable is False
    if name in ("hotpotqa", "2wikimultihopqa", "musique"):
        ids = {i for many in titles_to_ids(found.corpus[0]).values() for i in many}
        assert all(task.evidence and set(task.evidence) <= ids for task in found.tasks)


def test_an_unknown_set_suggests_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="hotpotq") as caught:
        load("hotpotq", tmp_path)
    assert "hotpotqa" in caught.value.hint


def test_missing_files_and_broken_rows_are_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load("squad2", tmp_path)
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"a": 1}).encode() + b"\n{oops\n"))
    with pytest.raises(UsageError, match=r"x\.jsonl\.gz:2"):
        list(rows(path))


def test_the_split_is_fixed_and_about_a_third():
    found = [split_of(f"q{n}") for n in range(2000)]
    assert 0.25 < found.count("test") / 2000 < 0.35
    assert split_of("q0") == split_of("q0")
