"""turnwise and Inspect: our runs as its logs, and our agent in its evaluations."""

import asyncio
import gzip
import json
from importlib.metadata import entry_points
from pathlib import Path

import inspect_ai
import pytest
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target
from inspect_ai.solver import TaskState

import eval.inspect.agent as adapter
import eval.run as eval_run
from agent.settings import load_settings
from agent.task import Task
from agent.trajectory import Status, StopReason, Trajectory
from eval.benchmarks import DataFolder, load
from eval.command import exported
from eval.inspect.messages import messages_of
from eval.judge import CORRECT
from eval.revision import source
from eval.run import EvalRequest, run
from eval.score import score_run
from kg.errors import PolicyUnavailableError, UsageError
from kg.library.load import load_library
from kg.library.passages import passages
from rl.guidance.expert import ExpertPolicy, Passage
from tests.rl.rewards.episodes import abstain, answer, episode, malformed


def expert(template):
    tasks = load("library", DataFolder("", Path()), "test").tasks
    corpus = {row["id"]: Passage(row["title"], row["text"]) for row in passages(load_library())}
    return ExpertPolicy(template, tasks, corpus, misleading=0.2)


@pytest.fixture
def finished(template, monkeypatch, tmp_path):
    monkeypatch.setattr(eval_run, "policy_of", lambda *_, **__: expert(template))
    out = tmp_path / "run"
    run(EvalRequest(benchmarks=("library",), limit=12, cache=False), load_settings(), out)
    return out


def test_a_run_becomes_a_log_that_inspect_reads(finished, tmp_path):
    ours = score_run(finished)
    answered = [s.id for s in ours.samples if s.answerable]
    said = {"judge": "j@1", "prompt": "p", "verdicts": dict.fromkeys(answered, CORRECT)}
    (finished / "judge.json").write_text(json.dumps(said))
    [path] = map(Path, exported(finished, tmp_path / "logs", "").split("\n"))
    log = read_eval_log(str(path))
    [one] = ours.sets
    assert (log.status, log.eval.task, log.eval.model) == ("success", "library", ours.header.policy)
    means = {(s.scorer, s.name): s.metrics["mean"].value for s in log.results.scores}
    figures = {one.scorer: one.answers, "retrieval": one.retrieval, "support": one.support}
    told = {(kind, name): i.mean for kind, values in figures.items() for name, i in values.items()}
    assert means == pytest.approx({**told, ("j@1", "judged"): 1.0})
    judged = next(s.metadata for s in log.results.scores if s.scorer == "j@1")
    agreement = (
        score_run(finished).sets[0].answers["em"].mean
    )  # the judge called every answer right
    assert judged["agreement"]["mean"] == pytest.approx(agreement)
    assert (log.eval.metadata["source"], log.eval.metadata["limit"]) == (ours.header.source, 12)
    assert (log.eval.revision.commit if log.eval.revision else None) == source().get("revision")
    assert log.stats.completed_at == ours.header.finished
    mine = {sample.task: sample for sample in ours.samples}
    assert len(log.samples) == len(mine) == 12
    for sample in log.samples:
        expected = mine[sample.id]
        assert sample.scores["em"].value == expected.em
        assert sample.metadata["retrieval"] == pytest.approx(expected.retrieval)
        assert sample.metadata["support"] == pytest.approx(expected.support)
        assert sample.metadata["judge"] == said["verdicts"].get(expected.id)
        assert sample.output.completion == expected.answer
        assert sample.messages[0].text == expected.question
        assert sample.model_usage[ours.header.policy].output_tokens == expected.usage.sampled_tokens
        searches = [m for m in sample.messages if m.role == "tool" and m.function == "search"]
        assert len(searches) == expected.usage.searches
        calls = [c.id for m in sample.messages if m.role == "assistant" for c in m.tool_calls or ()]
        assert [m.tool_call_id for m in sample.messages if m.role == "tool"] == calls


def evaluated(tmp_path, **options):
    task = adapter.question_set("library", questions=6)
    [log] = inspect_ai.eval(
        task, model="none", display="none", log_dir=str(tmp_path), log_format="json", **options
    )
    return log


def test_inspect_runs_the_agent_and_scores_it_as_we_do(template, monkeypatch, tmp_path):
    monkeypatch.setattr(adapter, "policy_of", lambda *_, **__: expert(template))
    log = evaluated(tmp_path)
    assert log.status == "success", log.error
    assert len(log.samples) == 6
    for sample in log.samples:
        done = Trajectory.from_dict(sample.store[adapter.STORED])
        assert done.has_tokens
        assert sample.output.completion == done.answer
        assert [m.text for m in sample.messages] == [m.text for m in messages_of(done)]
        gold = [sample.target] if isinstance(sample.target, str) else sample.target
        value = sample.scores["answers"].value
        assert value["em"] == float(any(done.answer.lower() == one.lower() for one in gold))
    assert sum(s.scores["answers"].value["right"] for s in log.samples) >= 4


def test_only_an_act_of_declining_is_right_where_there_is_no_answer(monkeypatch):
    of = Task("u", "Who?", answerable=False)
    spent = {"status": Status.OVER_BUDGET, "stop_reason": StopReason.MAX_TURNS}
    score = adapter.answers()
    for made, right in (
        (episode(abstain(), of=of), 1),
        (episode(abstain(), of=of, **spent), 1),
        (episode(malformed(), of=of, **spent), 0),
        (episode(answer("Ann"), of=of), 0),
        (None, 1),
    ):
        said = made.answer if made else ""
        state = TaskState("none", "u", 1, "Who?", [], output=ModelOutput.from_content("x", said))
        if made:
            state.store.set(adapter.STORED, made.to_dict())
        assert asyncio.run(score(state, Target(""))).value == dict.fromkeys(
            ("right", "em", "f1"), right
        )


def test_a_set_that_the_agent_cannot_be_asked_is_refused_and_skipped_rows_are_told(
    tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "metaqa"
    folder.mkdir()
    fields = {"topic_entity": "A", "answers": ["x"], "qtype": "a", "answers_match_kb": True}
    for hops in (1, 2, 3):
        rows = [{"id": f"{hops}-{n}", "hop": hops, "question": f"Who is {n}?", **fields,
                 "topic_entity": f"A{n}"} for n in range(20)]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"id": "broken"}\n'
        (folder / f"qa_{hops}hop.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "kb.tsv.gz").write_bytes(gzip.compress(b"A\tb\tx\n"))
    with pytest.raises(UsageError, match="need the tool 'kg'"):
        adapter.question_set("metaqa", str(tmp_path))
    monkeypatch.setenv("AGENT_TOOLS", "")
    made = adapter.question_set("metaqa", str(tmp_path))
    assert len(made.metadata["skipped"]) == 3
    assert "3 rows are left out" in caplog.text


def test_every_epoch_has_a_seed_of_its_own(template, monkeypatch, tmp_path):
    monkeypatch.setattr(adapter, "policy_of", lambda *_, **__: expert(template))
    log = evaluated(tmp_path, epochs=3, limit=2)
    assert log.status == "success", log.error
    first = load_settings().seed
    seeds = {}
    for sample in log.samples:
        done = Trajectory.from_dict(sample.store[adapter.STORED])
        seeds.setdefault(sample.id, []).append((sample.epoch, done.seed))
    assert len(seeds) == 2
    assert all(sorted(found) == [(n, first + n - 1) for n in (1, 2, 3)] for found in seeds.values())


def test_a_policy_that_fails_is_an_error_of_the_sample(template, monkeypatch, tmp_path):
    class Gone(ExpertPolicy):
        async def generate(self, requests):
            raise PolicyUnavailableError("the server is gone")

    monkeypatch.setattr(adapter, "policy_of", lambda *_, **__: Gone(template, (), {}, misleading=0))
    log = evaluated(tmp_path, fail_on_error=False)
    assert all("the server is gone" in sample.error.message for sample in log.samples)


def test_inspect_finds_us():
    found = {one.name: one for one in entry_points(group="inspect_ai")}
    assert {"turnwise", "eval"} <= set(found)
    assert found["eval"].value == found["turnwise"].value
    assert found["turnwise"].load().question_set is adapter.question_set
