"""A run that goes on: what it was begun with is still the same, and nothing tells of steps to come."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch

from agent.store import TrajectoryStore
from agent.task import Task
from eval.benchmarks import Benchmark
from kg.errors import UsageError
from rl import run_folder
from rl.assessment_recipe import LossChoice
from rl.best import Best
from rl.checkpoint import Checkpoint, CheckpointError
from rl.inputs import claim_inputs
from rl.learner import Learner
from rl.rewind import rewind
from rl.run_history import read_history
from rl.stamp import Stamp
from rl.train_recipe import FREE, Rollouts, TrainRecipe, Update
from tests import forked
from tests.rl.histories import history, measured, write
from tests.rl.rollouts import RIGHT, play
from tests.rl.training_run import RECIPE, recipe, run

HELD = {
    "worlds": {"count": 1, "first_seed": 5002, "entities": 80, "questions": 60},
    "split": "test",
    "limit": 4,
}
SMALL = {"engine": "transformers", "tasks": 1, "size": 2}


def sets(*tasks, name="mine"):
    return (Benchmark(name, tasks, ()),)


@pytest.fixture
def base(micro, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(micro, folder)
    (folder / "turnwise.json").unlink(missing_ok=True)
    return folder


A, B = Task("a", "Who is Ada?", ("Ada",)), Task("b", "Who is Bob?", ("Bob",))


@pytest.mark.parametrize(
    ("asked", "held", "said"),
    [
        (sets(A, Task("b", "Who is Bob?", ("Rob",))), sets(A, name="other"), "training set 'mine'"),
        (sets(A, B), sets(B, name="other"), "validation set 'other'"),
    ],
)
def test_other_tasks_under_the_same_name_are_refused_by_that_name(
    tmp_path, base, asked, held, said
):
    begun = (sets(A, B), sets(A, name="other"))
    claim_inputs(tmp_path / "run", *begun, base)
    claim_inputs(tmp_path / "run", *begun, base)
    with pytest.raises(UsageError, match=said) as error:
        claim_inputs(tmp_path / "run", asked, held, base)
    assert error.value.message.count("set '") == 1
    assert "--out" in error.value.hint


def test_sets_that_an_earlier_version_noted_without_measuring_on_them_do_not_end_a_run(
    tmp_path, base
):
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"id": "1", "text": "Ada is a mathematician."}\n')
    mine = (Benchmark("mine", (A, B), (corpus,)),)
    claim_inputs(tmp_path / "run", mine, (Benchmark("other", (A,), (corpus,)),), base)
    claim_inputs(tmp_path / "run", mine, (), base)
    noted = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert not any("other" in name for name in noted)
    corpus.write_text('{"id": "1", "text": "Ada is a programmer."}\n')
    with pytest.raises(UsageError, match="what is searched for 'mine'"):
        claim_inputs(tmp_path / "run", mine, (), base)


def test_other_passages_behind_the_same_questions_are_refused(tmp_path, base):
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"id": "1", "text": "Ada is a mathematician."}\n')
    mine = (Benchmark("mine", (A, B), (corpus,)),)
    claim_inputs(tmp_path / "run", mine, (), base)
    claim_inputs(tmp_path / "run", mine, (), base)
    corpus.write_text('{"id": "1", "text": "Ada is a programmer."}\n')
    with pytest.raises(
        UsageError, match=r"what is searched for 'mine' \(passages.jsonl, 1\) changed"
    ):
        claim_inputs(tmp_path / "run", mine, (), base)


def test_a_corpus_that_does_not_exist_is_named(tmp_path, base):
    mine = (Benchmark("mine", (A, B), (tmp_path / "gone.jsonl",)),)
    with pytest.raises(UsageError, match=r"the corpus .*gone\.jsonl of 'mine' does not exist"):
        claim_inputs(tmp_path / "run", mine, (), base)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_another_base_in_the_same_folder_is_refused(tmp_path, base, name):
    claim_inputs(tmp_path / "run", sets(A), (), base)
    with (base / name).open("ab") as file:
        file.write(b" ")
    os.utime(base / name, ns=(1, 1))
    said = "weights" if name.endswith("safetensors") else name
    with pytest.raises(UsageError, match=f"the base's {said} changed"):
        claim_inputs(tmp_path / "run", sets(A), (), base)


def test_a_run_whose_questions_changed_is_not_taken_up(tmp_path):
    questions, home = tmp_path / "mine.jsonl", tmp_path / "home"

    def asked(answer):
        rows = [{"id": f"q{n}", "question": f"Who is {n}?", "answer": answer} for n in range(9)]
        questions.write_text("\n".join(map(json.dumps, rows)))

    mine = {"worlds": None, "sets": (str(questions),)}
    asked("Ada")
    assert run(tmp_path / "run", home, steps=1, tasks=mine, rollouts=SMALL).finished
    before = read_history(tmp_path / "run")
    asked("Bob")
    with pytest.raises(UsageError, match=r"the training set '.*mine.*' changed since"):
        run(tmp_path / "run", home, steps=1, tasks=mine, rollouts=SMALL)
    assert read_history(tmp_path / "run") == before


def made(run, name, text):
    """A policy folder."""
    folder = run / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    return folder


def test_the_best_is_never_of_a_step_after_the_checkpoint(tmp_path):
    best = Best(tmp_path)
    best.take(made(tmp_path, "policy", "zero"), 0)
    best.commit()  # a checkpoint
    for step, text in ((2, "two"), (4, "four")):
        best.take(made(tmp_path, "policy", text), step)
    assert best.step == 4
    best.rewind(1)
    assert best.step == 0
    assert (best.folder / "model.safetensors").read_text() == "zero"
    best.take(made(tmp_path, "policy", "three"), 3)
    best.rewind(3)  # the checkpoint was there, the kill came before the commit
    assert (best.step, (best.folder / "model.safetensors").read_text()) == (3, "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "policy"]
    best.rewind(-1)
    assert best.step is None
    assert not best.folder.exists()


def test_a_kill_while_the_best_is_taken_leaves_the_one_before(tmp_path, monkeypatch):
    best = Best(tmp_path)
    best.take(made(tmp_path, "policy", "zero"), 0)
    best.commit()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rl.run_folder.shutil.copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        best.take(tmp_path / "policy", 2)
    monkeypatch.undo()
    Best(tmp_path).rewind(1)
    assert Best(tmp_path).step == 0


def test_the_best_policy_tells_its_recipe_and_another_one_refuses_it(tmp_path):
    (tmp_path / "policy").mkdir()
    mine, other = (Stamp.of(recipe(seed=seed)) for seed in (1, 2))
    Best(tmp_path, mine).take(tmp_path / "policy", 2)
    assert Best(tmp_path).recipe == recipe(seed=1).digest
    Best(tmp_path, mine).rewind(2)
    with pytest.raises(UsageError, match="made by another recipe"):
        Best(tmp_path, other).rewind(2)


def test_what_suits_the_machine_may_change_in_a_saved_state_and_nothing_else(tmp_path):
    moved = {"gpu_memory": 0.5, "tensor_parallel": 2, "deterministic": True}
    begun = Stamp.of(recipe(), FREE)
    elsewhere = Stamp.of(recipe(rollouts=moved, tripwires={"gap": None}), FREE)
    assert elsewhere.fixed == begun.fixed
    assert elsewhere.recipe != begun.recipe
    (tmp_path / "policy").mkdir()
    Best(tmp_path, begun).take(tmp_path / "policy", 2)
    Best(tmp_path, elsewhere).rewind(2)
    longer = Stamp.of(recipe(rollouts={**moved, "context": 512}), FREE)
    for other in (longer, Stamp.of(recipe(seed=9), FREE)):
        with pytest.raises(UsageError, match="made by another recipe"):
            Best(tmp_path, other).rewind(2)


def test_free_keys_make_no_section_that_was_not_there():
    plain = TrainRecipe(**{key: RECIPE[key] for key in ("tasks", "rewards", "credit", "update")})
    moved = plain.model_copy(update={"rollouts": Rollouts(gpu_memory=0.5)})
    assert moved.chosen_digest(FREE) == plain.chosen_digest(FREE) == plain.chosen_digest()
    assert moved.chosen_digest() != plain.chosen_digest()


def test_a_folder_goes_back_to_its_checkpoint(tmp_path):
    folder = write(
        tmp_path / "run", history(6, validations=[measured(n, 10 * n) for n in (0, 2, 4, 6)])
    )
    (folder / "broken").mkdir()
    for step in (2, 5):
        run_folder.note(folder, step, "skipped", "why")
        (folder / "broken" / f"step-{step:05d}-1.pt").touch()
    labels = ["validation-00000", "step-00002", "validation-00004", "step-00005"]
    with TrajectoryStore.open(folder / "trajectories.sqlite") as store:
        store.add_many([play(RIGHT, group=f"{label}/mine/q1") for label in labels])

    def groups():
        with TrajectoryStore.open(folder / "trajectories.sqlite") as store:
            return sorted(t.group.partition("/")[0] for t in store.query())

    rewind(folder, 4)
    seen = read_history(folder)
    assert (seen.step, [one.step for one in seen.validations]) == (4, [0, 2, 4])
    assert [event.step for event in seen.events] == [2]
    assert [path.name for path in (folder / "broken").iterdir()] == ["step-00002-1.pt"]
    assert groups() == ["step-00002", "validation-00000", "validation-00004"]
    rewind(folder, None)  # no checkpoint: the first step and its validation are made again
    assert (read_history(folder).step, groups()) == (0, [])
    assert list((folder / "validation").iterdir()) == []


def test_a_run_killed_before_its_first_checkpoint_repeats_no_episode(tmp_path):
    out = tmp_path / "run"
    command = ["-m", "tests.rl.training_run", str(out), "steps=2"]
    command += [f"rollouts={json.dumps(SMALL)}", 'checkpoints={"every": 9}']
    command += [f"validation={json.dumps({'every': 1, 'tasks': HELD})}"]
    with forked.Forked(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("validated 1"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    forked.run(command, stdout=subprocess.DEVNULL, timeout=300, check=True)
    with TrajectoryStore.open(out / "trajectories.sqlite") as store:
        counts = Counter(t.group.partition("/")[0] for t in store.query())
        named = {
            asked.episode
            for one in read_history(out).validations
            for asked in one.questions.values()
        }
        assert named <= store.ids()
    assert counts == {
        "validation-00000": 4,
        "step-00001": 2,
        "validation-00001": 4,
        "step-00002": 2,
        "validation-00002": 4,
    }
    best = json.loads((out / "best" / "step.json").read_text())["step"]
    assert best == read_history(out).best.step
    assert not (out / ".best.saved").exists()


class Code:
    """What a file may hold that is no weight: unpickled, it runs a command."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize(
    ("zero", "dtype"), [(0, "float32"), (1, "float32"), (3, "float32"), (0, "bfloat16")]
)
def test_a_checkpoint_is_read_back_and_runs_no_code(tmp_path, micro, zero, dtype):
    update = Update(optimizer={"lr": 1e-4}, zero=zero, dtype=dtype)
    learner, kept = Learner(micro, update, LossChoice(), 3), Checkpoint(tmp_path, 2)
    state = {"scores": [(0, 0.5, "half")], "bad": 1}
    assert kept.save(learner.engine, 1, state)
    assert Checkpoint(tmp_path, 2).step == 1
    found = kept.load(learner.engine)
    assert (found["step"], found["scores"], found["bad"]) == (1, [(0, 0.5, "half")], 1)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    mine, other = (Stamp.of(recipe(seed=seed), FREE) for seed in (1, 2))
    assert (
        Checkpoint(tmp_path, 2, mine).load(learner.engine)["step"] == 1
    )  # from before there were any
    assert Checkpoint(tmp_path, 2, mine).save(learner.engine, 2, state)
    found = Checkpoint(tmp_path, 2, mine).load(learner.engine)
    assert (found["step"], found["recipe"]) == (2, recipe(seed=1).digest)
    free = {"tripwires": {"entropy": None}, "rollouts": {"gpu_memory": 0.5}}
    loosened = Stamp.of(recipe(seed=1, **free), FREE)
    assert loosened.recipe != mine.recipe
    assert Checkpoint(tmp_path, 2, loosened).load(learner.engine)["step"] == 2
    with pytest.raises(UsageError, match=f"another recipe .{mine.recipe}"):
        Checkpoint(tmp_path, 2, other).load(learner.engine)
    [file] = (tmp_path / "checkpoint" / "step-00002").glob("*model_states.pt")
    torch.save({"module": Code(tmp_path / "ran")}, file)
    with pytest.raises(
        CheckpointError,
        match=r"it holds 'posix.system'",
    ):
        kept.load(learner.engine)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_the_optimizer_of_this_stage_is_refused(tmp_path, micro):
    """As one of a bfloat16 run was before such engines had ZeRO stage 1: DeepSpeed would go on with a
    new optimizer and say nothing."""
    update = Update(optimizer={"lr": 1e-4}, dtype="bfloat16")
    learner, kept = Learner(micro, update, LossChoice(), 3), Checkpoint(tmp_path, 2)
    assert kept.save(learner.engine, 1, {})
    [file] = (tmp_path / "checkpoint" / "step-00001").glob("*zero_pp_rank_0*optim_states.pt")
    file.unlink()
    with pytest.raises(CheckpointError, match="another ZeRO stage"):
        kept.load(learner.engine)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    run = tmp_path / "run"
    other = f"""
from pathlib import Path
from rl import run_folder
with run_folder.held(Path({str(run)!r})):
    pass
"""
    command = [sys.executable, "-c", other]
    with run_folder.held(run):
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode != 0
        assert "another process is training in" in found.stderr
    assert subprocess.run(command).returncode == 0
