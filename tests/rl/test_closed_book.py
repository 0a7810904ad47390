"""What a policy knows by itself, on the bundled library's questions."""

import json

import pytest

from agent.settings import load_settings
from eval.benchmarks import load as load_benchmark
from kg.errors import UsageError
from rl.closed_book import probe, read_known
from rl.collect import CollectRequest
from tests.agent.scripted import ScriptedPolicy


class Knowing(ScriptedPolicy):
    """Answers right what it knows, in every third sample."""

    def __init__(self, template, known):
        super().__init__([], template)
        self.known = known

    def _one(self, request):
        text = request.messages[1]["content"]
        right = request.sampling.seed % 3 == 0 and text in self.known
        self.replies = [f"<answer>{self.known[text] if right else 'no idea'}</answer>"]
        return super()._one(request)


def test_a_task_is_known_when_one_sample_is_right(tmp_path, template, monkeypatch):
    rows = [{"question": f"Who is {n}?", "answers": [f"name {n}"], "id": f"q{n}"} for n in range(6)]
    rows.append({"question": "Who is nobody?", "answerable": False, "id": "none"})
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = {f"Who is {n}?": f"name {n}" for n in (0, 2)}
    policy = Knowing(template, known)
    monkeypatch.setattr("rl.collect.policy_of", lambda *_, **__: policy)
    settings = load_settings(home=tmp_path / "home", sampling={"temperature": 1.0})
    request = CollectRequest(tasks=(str(tmp_path / "set.jsonl"),), group=6)
    out = tmp_path / "known.jsonl"
    report = probe(request, settings, out)
    assert (report.tasks, report.known, report.unscored) == (6, 2, 1)
    assert report.accuracy == pytest.approx(2 * 2 / 36)
    assert read_known(out) == {f"q{n}": n in (0, 2) for n in range(6)}
    assert not any("<search>" in r.messages[0]["content"] for r in policy.requests)
    # the labelled tasks are themselves a set of questions, and a second probe asks nothing again
    labelled = load_benchmark(str(out), None).tasks
    assert labelled[0].meta["known"]["samples"] == 6
    asked = len(policy.requests)
    assert probe(request, settings, out).known == 2
    assert len(policy.requests) == asked


def test_a_file_without_labels_is_told(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "a", "question": "Who?", "meta": {}}\n')
    with pytest.raises(UsageError, match=r"set.jsonl:1: no label"):
        read_known(path)
