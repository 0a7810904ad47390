"""The training loop with the micro policy, real vLLM and real DeepSpeed.

Where an engine of any kind will do it is the embedded one, which starts at once.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from agent.store import TrajectoryStore
from kg.errors import UsageError
from rl import model_files
from rl.assessment_recipe import LossChoice
from rl.checkpoint import Checkpoint, CheckpointError
from rl.fit import TrainingError
from rl.learner import Learner
from rl.run_history import read_history
from rl.sync import SyncError
from tests import forked
from tests.rl.training_run import Printed, recipe, run

KILLS = int(os.environ.get("TURNWISE_KILLS", "1"))
EMBEDDED = {"rollouts": {"engine": "transformers"}}
EPISODES = 8  # of a step of the runs that are interrupted
VALIDATION = {
    "every": 2,
    "tasks": {
        "worlds": {"count": 1, "first_seed": 5002, "entities": 80, "questions": 60},
        "split": "test",
        "limit": 8,
    },
}


def started(out, *options, engine="vllm", anew=False):
    rollouts = json.dumps({"tasks": 2, "engine": engine})
    args = ["-m", "tests.rl.training_run", str(out), f"rollouts={rollouts}", *options]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    return (
        subprocess.Popen([sys.executable, *args], **pipe) if anew else forked.Forked(args, **pipe)
    )


def metrics(out):
    """Steps without their times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("seconds", "speed/", "resident"))}
        for row in rows
    ]


def tokens(out):
    """What was sampled, by episode."""
    with TrajectoryStore.open(out / "trajectories.sqlite") as store:
        return {t.id: t.token_ids.tolist() for t in store.query() if t.group.startswith("step-")}


def test_a_killed_run_ends_with_the_numbers_of_one_that_was_not(tmp_path):
    """To the last bit: rewards, losses, log-probability gaps, what was sampled.

    The first kill is among the episodes of the third step, behind a checkpoint and a validation, which
    leaves its prompts in the engine's cache; further ones are anywhere.

    open-instruct#1627: on resume the engine sampled with the initial weights.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = int(os.environ.get("TURNWISE_STEPS", "3"))
    options = (f"steps={steps}", f"validation={json.dumps(VALIDATION)}")
    assert started(whole, *options, anew=True).wait(timeout=900) == 0
    chance, lines = random.Random(7), EPISODES + 1  # of a step
    for kill in range(KILLS):
        process = started(cut, *options)
        at, seen = chance.randrange(1 if kill else 2 * lines + 1, 3 * lines), 0
        for line in process.stdout:
            seen += line.startswith(("stage collect", "step"))
            if seen == at:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
        assert process.wait(timeout=60) == -signal.SIGKILL or kill
    last = started(cut, *options)
    assert "step 2\n" not in last.stdout.read()
    assert last.wait(timeout=900) == 0
    assert metrics(cut) == metrics(whole)
    assert len(metrics(cut)) == steps
    assert any(line.get("right_reply", 0.0) < 0 for line in metrics(whole))
    assert tokens(cut) == tokens(whole)
    assert len(tokens(whole)) == steps * EPISODES


def test_ctrl_c_finishes_the_step_and_the_same_command_goes_on(tmp_path):
    out = tmp_path / "run"
    options = ("steps=2", f"validation={json.dumps(VALIDATION)}")
    process = started(out, *options, engine="transformers")
    for line in process.stdout:
        if line.startswith("stage collect"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=300) == 0
    assert "step 1\n" in rest
    assert "step 2\n" not in rest
    assert json.loads((out / "report.json").read_text())["interrupted"]
    again = started(out, *options, engine="transformers")
    text = again.stdout.read()
    assert again.wait(timeout=300) == 0
    assert [line for line in text.splitlines() if line.startswith("step")] == ["step 2"]
    report = json.loads((out / "report.json").read_text())
    assert report["finished"]
    assert report["first"]
    assert {path.name for path in (out / "validation").iterdir()} == {
        "step-00000.json",
        "step-00002.json",
    }
    assert (out / "best" / "model.safetensors").is_file()
    assert sorted(p.name for p in (out / "checkpoint").glob("step-*")) == [
        "step-00001",
        "step-00002",
    ]


def test_a_run_that_the_clock_ends_is_measured_at_its_last_step(tmp_path):
    report = run(
        tmp_path / "run",
        tmp_path / "home",
        **EMBEDDED,
        steps=3,
        max_seconds=0.001,
        validation={**VALIDATION, "every": 3},
    )
    assert (report.steps, report.finished) == (1, False)
    assert [one.step for one in read_history(tmp_path / "run").validations] == [0, 1]
    assert report.last


def test_a_corrupted_sync_is_caught_at_that_step(tmp_path, monkeypatch):
    """One element of one tensor is another one in what the second update hands over."""
    honest, calls = model_files.write_model, []

    def corrupt(weights, like, folder, dtype, adapter):
        calls.append(folder)
        if len(calls) == 3:  # the start, step 1, step 2
            name = sorted(weights)[4]
            changed = weights[name].clone()
            changed.view(-1)[17] += 1e-3
            weights = {**weights, name: changed}
        return honest(weights, like, folder, dtype, adapter)

    monkeypatch.setattr("rl.sampler.write_model", corrupt)
    with pytest.raises(SyncError, match="differs in the folder already"):
        run(tmp_path / "run", tmp_path / "home", steps=4, **EMBEDDED)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1]


def test_losses_that_are_no_numbers_are_kept_and_end_the_run(tmp_path, no_numbers):
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="2 steps in a row"):
        run(out, tmp_path / "home", update={"bad_steps": 2}, **EMBEDDED)
    rows = metrics(out)
    assert [row["skipped"] for row in rows] == [2.0, 2.0]
    assert sorted(path.name for path in (out / "broken").iterdir()) == [
        "step-00001-0-policy.pt",
        "step-00002-0-policy.pt",
    ]
    assert all(row["sync_gap"] < 1e-3 for row in rows)


@contextmanager
def full(megabytes):
    """No file can grow beyond this: to this process the disk is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, micro):
    update = recipe().update.model_copy(update={"minibatches": 1})
    engine, kept = Learner(micro, update, LossChoice(), 4).engine, Checkpoint(tmp_path, keep=2)
    assert kept.save(engine, 1, {})
    with full(1):
        assert not kept.save(engine, 2, {})
        assert kept.load(engine)["step"] == 1
        assert not (tmp_path / "checkpoint" / "step-00002").exists()
        with pytest.raises(CheckpointError, match="step 3 could not be saved"):
            kept.save(engine, 3, {})
    assert kept.save(engine, 4, {})
    assert kept.load(engine)["step"] == 4


def test_a_run_on_a_full_disk_ends_and_goes_on_once_there_is_room(tmp_path):
    """Room for the engine's weights (23 MB) and not for a checkpoint, then for neither."""
    out, changes = tmp_path / "run", {"steps": 3, "checkpoints": {"every": 1}}
    changes |= {"rollouts": {"engine": "transformers", "tasks": 1, "size": 2}}
    disk = ExitStack()

    class Filled(Printed):
        def step(self, metrics):
            if metrics["step"] == 2:
                disk.enter_context(full(40))

    def last():
        return json.loads((out / "checkpoint" / "current.json").read_text())["step"]

    with disk, pytest.raises(CheckpointError, match="step 3 could not be saved"):
        run(out, tmp_path / "home", Filled(), **changes)
    assert last() == 1
    noted = [event.step for event in read_history(out).events if event.kind == "checkpoint"]
    assert noted == [2, 3]
    policy = (out / "policy" / "model.safetensors").read_bytes()
    with full(10), pytest.raises(UsageError, match=f"cannot write {out / 'policy'}: "):
        run(out, tmp_path / "home", **changes)
    assert last() == 1
    assert (out / "policy" / "model.safetensors").read_bytes() == policy
    assert run(out, tmp_path / "home", **changes).finished
    assert last() == 3
    assert [row["step"] for row in metrics(out)] == [1, 2, 3]


def test_tasks_without_what_a_reward_needs_are_refused_before_any_model(tmp_path):
    questions = tmp_path / "mine.jsonl"
    rows = [{"id": f"q{n}", "question": f"Who is {n}?", "answer": "Ada"} for n in range(20)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    mine = {"worlds": None, "sets": (str(questions),)}
    rewards = {"evidence": {"reward": "evidence_recall"}}
    with pytest.raises(UsageError, match="gold evidence"):
        run(tmp_path / "run", tmp_path / "home", tasks=mine, rewards=rewards)


def test_questions_that_are_trained_on_measure_nothing(tmp_path):
    questions = tmp_path / "mine.jsonl"
    questions.write_text('{"id": "a", "question": "Who is Ada?", "answer": "Ada"}\n')
    mine = {"worlds": None, "sets": (str(questions),)}
    with pytest.raises(UsageError, match="trained on and validated on"):
        run(tmp_path / "run", tmp_path / "home", tasks=mine, validation={"every": 1, "tasks": mine})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"updates": {}}, "did you mean 'update'"),
        ({"rollouts": {"taks": 3}}, "did you mean 'tasks'"),
        ({"credit": {"estimator": "grop"}}, "did you mean 'grpo'"),
        ({"rewards": {"answer": {"reward": "exact_macth"}}}, "did you mean 'exact_match'"),
        ({"tasks": {"worlds": None}}, "name worlds or sets"),
        ({"validation": {"every": 2}}, "name the tasks to validate on"),
        ({"loss": {"low": 2}}, "loss.low"),
        ({"loss": {"anchor": {"coefficient": 1, "gradient": "k1"}}}, "0 in expectation"),
        ({"rollouts": {"agent": {"sampling": {"top_p": 0.9}}}}, "agent.sampling.top_p is 0.9"),
        ({"rollouts": {"agent": {"sampling": {"top_k": 5}}}}, "importance ratios are biased"),
        ({"rollouts": {"agent": {"sampling": {"temperature": 0.7}}}}, "validation.temperature"),
    ],
)
def test_a_recipe_that_is_none_is_refused(changes, said):
    with pytest.raises(UsageError) as error:
        recipe(**changes)
    assert said in f"{error.value.message} {error.value.hint}"


def test_a_recipe_that_draws_from_the_whole_distribution_is_taken():
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64}
    made = recipe(rollouts={"agent": {"sampling": plain}})
    assert made.rollouts.agent["sampling"] == plain


def test_a_folder_of_another_run_is_not_taken(tmp_path):
    from rl import run_folder

    run_folder.claim(tmp_path / "run", recipe(seed=1))
    with pytest.raises(UsageError, match="another recipe"):
        run(tmp_path / "run", tmp_path / "home")
