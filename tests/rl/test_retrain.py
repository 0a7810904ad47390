"""Retraining from use, on a store of real rollouts of the micro policy; and the KL in the reward."""

import asyncio
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agent.formats import TagsFormat
from agent.policies.base import Completion, Sampling
from agent.policies.chat import ChatTemplate
from agent.policies.model_folder import weights_version
from agent.settings import isolated_settings
from agent.store import TrajectoryStore
from agent.trajectory import Status, StopReason
from eval.metrics.text import contains
from kg.errors import UsageError
from rl.assess import assess
from rl.fit import TrainingError
from rl.group_names import of_validation
from rl.learner import Learner
from rl.leash import turn_kl
from rl.logged import Wanted, comparable, demonstrations, played_under, with_correction
from rl.packing import rows
from rl.receipt import make_receipt
from rl.retrain import _context, retrain
from rl.rewards import RewardContext
from rl.rewards.context import task_key
from rl.scoring import load_scorer, score_group
from rl.train_recipe import TrainRecipe, load_train
from tests import forked
from tests.rl.rollouts import RIGHT, WRONG, play
from tools.base import Toolbox

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["update.optimizer.lr=1e-3", "loss.aggregation=token-mean", "rollouts.tasks=2"]


@pytest.fixture(scope="module")
def template(micro):
    return ChatTemplate.load(micro)


@pytest.fixture
def logged(played):
    return [trajectory for group in played.groups for trajectory in group]


def right(trajectory):
    return any(contains(trajectory.answer, a) for a in trajectory.task.answers)


def stored(path, trajectories):
    with TrajectoryStore.open(path) as store:
        store.add_many(trajectories)
    return str(path)


def test_what_is_right_becomes_a_demonstration_and_the_rest_is_counted(logged, template):
    chosen = demonstrations(logged, Wanted(), template, "micro")
    assert chosen.used
    assert chosen.left_out
    assert len(chosen.used) + len(chosen.left_out) == len(logged)
    assert sum(chosen.reasons.values()) == len(chosen.left_out)
    for one in chosen.used:
        assert right(one) or (one.task.answerable is False and one.status is Status.ABSTAINED)


def test_what_cannot_be_trained_on_is_named(logged, template):
    one = logged[0].with_rewards({"thumb": 1.0})
    odd = {
        "failed": replace(one, id="a", status=Status.FAILED),
        "of another policy": replace(one, id="b", policy="llama@1"),
        "no token ids": replace(
            one, id="c", turns=(), token_ids=one.token_ids[:0], logprobs=one.logprobs[:0]
        ),
        "of another tokenizer": replace(one, id="d", token_ids=(one.token_ids + 7) % 500),
        "no reward 'thumb'": replace(one, id="e", rewards={}),
        "not above": replace(one, id="f").with_rewards({"thumb": 0.0}),
        "the same tokens": replace(one, id="g"),
    }
    chosen = demonstrations([one, *odd.values()], Wanted(reward="thumb"), template, "micro")
    assert [t.id for t in chosen.used] == [one.id]
    for (words, trajectory), found in zip(odd.items(), chosen.left_out, strict=True):
        assert found.id == trajectory.id
        assert words in found.reason
    other = odd["of another policy"]
    for named in ("llama", "llama@1", "1"):
        wanted = Wanted(reward="thumb", policies=(named,))
        assert demonstrations([other], wanted, template, "micro").used
    wanted = Wanted(reward="thumb", policies=("llama@2",))
    assert not demonstrations([other], wanted, template, "micro").used


def test_a_greedy_draw_teaches_no_gradient(logged, template):
    greedy = replace(logged[0], id="greedy", sampling=Sampling(temperature=0.0))
    blind = replace(logged[0], id="blind", logprobs=np.full_like(logged[0].logprobs, np.nan))
    chosen = comparable([*logged, greedy, blind], Wanted(), template, "micro")
    assert len(chosen.used) == len(logged)
    assert [one.id for one in chosen.left_out] == ["greedy", "blind"]


def test_one_draw_stored_twice_counts_once(logged, template):
    again = replace(logged[0], id="again")
    seed = replace(logged[0], id="seed", seed=logged[0].seed + 1000)
    chosen = comparable([*logged, again, seed], Wanted(), template, "micro")
    assert [one.id for one in chosen.used] == [*(one.id for one in logged), "seed"]
    assert chosen.reasons == {"the same draw as another one": 1}


def searched(logged):
    """An episode that was shown a passage and answered it by itself, and a word of the passage."""
    for one in logged:
        last = one.turns[-1]
        for turn in one.turns[:-1]:
            start = turn.observation_span.start
            held = any(s.start <= start < s.stop for s in last.context)
            if turn.observation and turn.observation.sources and held and not last.forced:
                source = turn.observation.sources[0]
                return one, source, source.text.rstrip(".").split()[-1]
    raise AssertionError("no rollout searched")


def test_a_correction_takes_the_place_of_the_answer_where_it_was_shown(logged, template):
    one, source, answer = searched(logged)
    one = replace(one, answer="nonsense")
    chosen = demonstrations([with_correction(one, answer)], Wanted(), template, "micro")
    [made] = chosen.used
    assert chosen.corrected == 1
    assert made.answer == answer
    assert made.citations == (source.number,)
    last = made.turns[-1]
    assert template.decode(made.token_ids[slice(*last.reply)].tolist()) == last.text
    parsed = TagsFormat(Toolbox()).parse(Completion(last.text))
    assert (parsed.text, parsed.citations) == (answer, (source.number,))
    assert (made.token_ids[: last.reply.start] == one.token_ids[: last.reply.start]).all()
    taught = np.concatenate([row.ids[row.target] for row in rows(made)])
    assert taught.tolist() == made.token_ids[made.sampled].tolist()


def test_a_correction_that_was_never_shown_is_not_taught(logged, template):
    one, *_ = searched(logged)
    found = demonstrations([with_correction(one, "Zyxwv Utsrq")], Wanted(), template, "micro")
    assert found.reasons == {"corrected, but the right answer is in nothing that it was shown": 1}


def test_a_correction_is_not_taught_where_no_answer_is_taken(template):
    """The runtime refuses an answer behind a verdict "no", whatever was shown before."""
    ends = "<abstain>I do not know</abstain>"
    reasons = {}
    for word in ("yes", "no"):
        script = (*RIGHT[:2], "<search>gold</search>", f"<judge>{word}</judge>", ends)
        one = with_correction(play(script, template), "oganesson")
        reasons[word] = demonstrations([one], Wanted(), template, "micro").reasons
    assert reasons["yes"] == {}
    assert list(reasons["no"]) == [
        "corrected, but it ended behind a verdict 'no', where no answer is taken"
    ]


def test_settings_are_those_of_the_episodes_where_all_agree():
    one = play(RIGHT)
    assert played_under([one, play(WRONG)]) == {
        "tools": ("search", "judge"), "format": "tags", "rule": "omit",
    }  # fmt: skip
    other = replace(one, versions={**one.versions, "chem": "1", "rule": "soft"})
    assert played_under([one, other]) == {"format": "tags"}
    assert played_under([replace(one, versions={"format": "mine"})]) == {}


@pytest.mark.parametrize("way", ["imitate", "gradient"])
def test_validations_of_a_run_are_not_trained_on(logged, template, way):
    sound = [t.with_rewards({"thumb": 1.0}) for t in logged if t.status is not Status.FAILED]
    held = [
        replace(sound[0], id="v", group=of_validation(10, "world", "q1")),
        replace(sound[1], id="m", group=of_validation(10, "world", "q1", misled=True)),
    ]
    plain = [replace(sound[2], group="misled-souls/world/q1"), *sound[3:]]
    select = demonstrations if way == "imitate" else comparable
    chosen = select([*held, *plain], Wanted(reward="thumb"), template, "micro")
    reason = "asked to be measured: an episode of a validation"
    assert [one.id for one in chosen.left_out if one.reason == reason] == ["v", "m"]
    assert chosen.reasons[reason] == 2
    assert plain[0].id in {one.id for one in chosen.used}


def test_imitation_raises_the_likelihood_of_what_was_liked(logged, micro, models_dir, tmp_path):
    liked = [t.with_rewards({"thumb": float(i % 2)}) for i, t in enumerate(logged)]
    url = stored(tmp_path / "log.sqlite", liked)
    recipe = load_train("rest", [*SMALL, "update.epochs=2", "update.optimizer.lr=1e-4"])
    lines = []
    report = retrain(
        url, recipe, settings_of(models_dir), tmp_path / "run", wanted=Wanted(reward="thumb"),
        notify=lines.append,
    )  # fmt: skip
    assert report.episodes == 16
    assert report.used + sum(report.left_out.values()) == 16
    assert "8 (its reward is not above the threshold)" in lines[0]
    facts = json.loads((tmp_path / "run" / "retrain.json").read_text())
    assert facts["used"] == report.used
    assert facts["recipe"] == recipe.digest
    kept = [t for t in liked if t.rewards["thumb"] and t.status is not Status.FAILED]
    before, after = (
        np.mean([mean_logprob(folder, one) for one in kept]) for folder in (micro, report.out)
    )
    assert after > before


def settings_of(models_dir):
    return isolated_settings(home=models_dir.parent)


def mean_logprob(folder, trajectory):
    scores = score_group(load_scorer(folder, "micro"), [trajectory], ())
    return float(np.nanmean(scores.logprobs[trajectory.id]))


def test_a_gradient_learns_from_attached_rewards(logged, micro, models_dir, tmp_path):
    graded = [t.with_rewards({"grade": float(i % 4 == 0)}) for i, t in enumerate(logged)]
    url = stored(tmp_path / "log.sqlite", [*graded, replace(graded[0], id="x", policy="gpt@1")])
    changes = ["loss.anchor=null", "loss.correction=null", "loss.likelihood=0.1"]
    recipe = load_train("grpo", [*SMALL, *changes])
    run = tmp_path / "run"
    report = retrain(url, recipe, settings_of(models_dir), run, "gradient", Wanted(reward="grade"))
    assert (report.episodes, report.used, report.silent) == (17, 16, 0)
    assert report.left_out == {"of another policy: gpt": 1}
    assert report.finished
    assert report.steps == 2  # four tasks, two a step
    kept = json.loads((run / "recipe.json").read_text())
    assert (
        kept["loss"]["correction"]["high"] == 2.0
    )  # importance weights, though the recipe had none
    told = json.loads((run / "retrain.json").read_text())
    assert told["recipe"] == TrainRecipe.model_validate(kept).digest != recipe.digest
    assert told["recipe"] == json.loads((run / "checkpoint" / "current.json").read_text())["recipe"]
    old, new = load_file(micro / "model.safetensors"), load_file(report.out / "model.safetensors")
    assert any((old[name].float() - new[name].float()).abs().max() > 1e-5 for name in new)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert any(line.get("right_reply", 0.0) < 0 for line in lines)
    assert lines[0]["weight_mean"] == pytest.approx(1.0, abs=0.05)  # the same weights drew them


def test_tasks_without_a_label_and_labels_of_another_policy_are_told(logged):
    from rl.retrain import _context

    lines, label = [], {"known": {"policy": "gpt@1", "known": True}}
    first = logged[0].task.id
    some = [
        replace(t, task=replace(t.task, meta={**t.task.meta, **label})) if t.task.id == first else t
        for t in logged
    ]
    recipe = load_train("grpo", ["rewards={known: {reward: boundary_label}}"])
    context = _context(recipe, some, isolated_settings(), lines.append)
    assert context.known == {task_key(logged[0].task): True}
    assert lines[0] == "3 of 4 tasks have no label of agent probe and are left out"
    assert lines[1].startswith("1 of 1 labels tell what another policy knows (gpt), not 'micro'")
    with pytest.raises(UsageError, match="knowledge boundary labels"):
        _context(recipe, logged, isolated_settings(), lines.append)


def test_an_interrupted_gradient_exits_with_130_and_goes_on(logged, micro, models_dir, tmp_path):
    """By the command, on episodes of an exported policy, whose name is `.`; the base is its folder."""
    version = weights_version(micro)
    named = [replace(t, policy=f".@{version}" if i % 2 else ".@old") for i, t in enumerate(logged)]
    graded = [t.with_rewards({"grade": float(i % 3 == 0)}) for i, t in enumerate(named)]
    url = stored(tmp_path / "log.sqlite", graded)

    changes = [*SMALL, f"base={micro}", "loss.anchor=null", "update.epochs=4"]
    changes += ["checkpoints.every=1"]

    def start(out, *more):
        command = ["cli.py", "train", "grpo", "--from-store", url]
        command += ["--way", "gradient", "--out", str(out), "--reward", "grade", "--json", *more]
        command += [word for one in changes for word in ("--set", one)]
        environment = {**os.environ, "AGENT_HOME": str(models_dir.parent)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return forked.Forked(command, env=environment, cwd=ROOT, **pipes)

    def told(process):
        out, err = process.communicate(timeout=300)
        return process.returncode, json.loads(out or "null"), err

    cut = start(tmp_path / "cut", "--from-policy", ".")
    for line in cut.stderr:
        if line.startswith("step 2/"):
            cut.send_signal(signal.SIGINT)
            break
    code, report, err = told(cut)
    assert (code, report["interrupted"], report["finished"]) == (130, True, False), err
    done = report["steps"]
    code, report, err = told(start(tmp_path / "cut", "--from-policy", "old"))
    assert (code, report["finished"], report["used"]) == (0, True, 16), err
    assert 2 <= done < report["steps"]
    assert "step 2/" not in err
    recipe, settings, whole = (
        load_train("grpo", changes),
        settings_of(models_dir),
        tmp_path / "whole",
    )
    wanted = Wanted(reward="grade", policies=(".@old",))
    assert retrain(url, recipe, settings, whole, "gradient", wanted).used == 16
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("cut", "whole")]
    assert rows[0] == rows[1]
    made = [
        load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("cut", "whole")
    ]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    with pytest.raises(UsageError, match="begun on other episodes"):  # half of them
        retrain(url, recipe, settings, whole, "gradient", Wanted(reward="grade"))


def test_a_gradient_keeps_batches_that_are_no_numbers(logged, no_numbers, models_dir, tmp_path):
    graded = [t.with_rewards({"grade": float(i % 4 == 0)}) for i, t in enumerate(logged)]
    url, run = stored(tmp_path / "log.sqlite", graded), tmp_path / "run"
    recipe = load_train("grpo", [*SMALL, "loss.anchor=null", "update.bad_steps=2"])
    with pytest.raises(TrainingError, match="2 steps in a row"):
        retrain(url, recipe, settings_of(models_dir), run, "gradient", Wanted(reward="grade"))
    assert {path.name for path in (run / "broken").iterdir()} == {
        "step-00001-0-policy.pt",
        "step-00002-0-policy.pt",
    }
    assert json.loads((run / "checkpoint" / "current.json").read_text())["step"] == 2


def test_a_gradient_that_needs_a_critic_is_refused(logged, models_dir, tmp_path):
    url = stored(tmp_path / "log.sqlite", logged)
    with pytest.raises(UsageError, match="token_gae needs a critic"):
        retrain(url, load_train("ppo"), settings_of(models_dir), tmp_path / "run", "gradient")


def test_a_reward_that_no_task_of_the_log_feeds_is_told_before_anything_is_loaded(
    logged, models_dir, tmp_path
):
    asked = [t for t in logged if t.task.evidence]
    bare = [replace(t, task=replace(t.task, evidence=())) for t in asked]
    part = "{reward: observation_utility, options: {ideal: {by: evidence}}}"
    recipe = load_train("grpo", [*SMALL, f"rewards={{found: {part}}}"])
    url, run = stored(tmp_path / "bare.sqlite", bare), tmp_path / "run"
    with pytest.raises(UsageError, match="observation_utility lacks gold evidence"):
        retrain(url, recipe, settings_of(models_dir), run, "gradient")
    assert not run.exists()
    some = _context(recipe, [*bare, replace(asked[0], task=replace(asked[0].task, id="w"))],
                    settings_of(models_dir), print)  # fmt: skip
    assert some.progress == 1.0


def test_a_store_without_anything_to_learn_from_says_why(logged, models_dir, tmp_path):
    url = stored(tmp_path / "log.sqlite", [replace(t, policy="gpt@1") for t in logged])
    with pytest.raises(UsageError, match=r"none of 16 .*another policy: gpt \(16\)"):
        retrain(url, load_train("rest"), settings_of(models_dir), tmp_path / "run")


def test_a_store_of_rollouts_that_all_declined_names_the_setting(logged, models_dir, tmp_path):
    ended = {"status": Status.ABSTAINED, "stop_reason": StopReason.ABSTAIN, "answer": ""}
    url = stored(tmp_path / "log.sqlite", [replace(t, **ended) for t in logged])
    recipe = load_train("grpo", [*SMALL, "credit={estimator: rloo, declined: leave_out}"])
    with pytest.raises(UsageError, match=r"none of 16 .*it declined") as told:
        retrain(url, recipe, settings_of(models_dir), tmp_path / "run", "gradient")
    assert "--set credit.declined=compare" in told.value.hint


def test_the_kl_to_the_start_is_taken_off_the_reward(played, micro, tmp_path):
    recipe = load_train(
        "search_r1", ["loss.anchor={coefficient: 0.5, into: reward}", "credit.estimator=turn_rloo"]
    )
    groups = played.groups[:2]
    learner = Learner(micro, recipe.update, recipe.loss, 1)
    still = turn_kl(learner, groups, 4096)
    assert all(not row.any() for row in still.values())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in learner.engine.module.parameters():
            parameter += torch.randn_like(parameter) * 3e-3
    moved = turn_kl(learner, groups, 4096)
    assert any(abs(row).max() > 0.01 for row in moved.values())
    agree_with_plain_sequences(learner, groups[0][0], moved)
    context = RewardContext(anchor_kl=moved)
    found = assess(groups, recipe, context)
    assert found.credit.ledger.residual() < 1e-9
    plain = assess(groups, load_train("search_r1", ["credit.estimator=turn_rloo"]))
    for row, trajectory in enumerate(found.trajectories):
        receipt = make_receipt(found, trajectory.id)
        assert [one.label for one in receipt.parts] == ["answer", "kl"]
        for line, kl in zip(receipt.turns, moved[trajectory.id], strict=True):
            assert line.parts["kl"] == pytest.approx(-0.5 * kl)
            assert sum(line.parts.values()) == pytest.approx(found.batch.rewards[row, line.turn])
        off = plain.batch.outcomes[row] - found.batch.outcomes[row]
        assert off == pytest.approx(0.5 * moved[trajectory.id].sum())
    with pytest.raises(UsageError, match="anchor log-probabilities"):
        assess(groups, recipe)
    leash = "loss.anchor={coefficient: 1, into: reward}"
    with pytest.raises(UsageError, match="label 'kl'"):
        load_train("search_r1", [leash, "rewards.kl={reward: f1}"])


def agree_with_plain_sequences(learner, trajectory, moved):
    """Each turn scored as a sequence of its own gives the same."""
    from rl.tree import build_tree

    for index, turn in enumerate(trajectory.turns):
        context = trajectory.prompt_of(turn).astype(np.int64)
        reply = trajectory.token_ids[slice(*turn.reply)].astype(np.int64)
        tree = build_tree([np.concatenate([context, reply])])
        ids = np.arange(len(context), len(context) + len(reply))
        now, then = (learner.logprobs(tree, ids, anchor=a) for a in (False, True))
        assert moved[trajectory.id][index] == pytest.approx((now - then).sum(), abs=1e-3)


def test_closed_book_labels_of_a_run_are_kept(played, micro, tmp_path):
    from agent.policies.transformers import TransformersPolicy
    from rl.boundary import known_tasks
    from rl.question_sets import load_sets, open_sets
    from rl.rollouts import Stage
    from rl.train_recipe import Tasks
    from tests.rl.conftest import WORLD

    recipe = load_train("ikea", ["tasks.probe=2", "rollouts.engine=transformers"])
    tasks = Tasks(worlds=WORLD, kinds=("1hop", "unanswerable"), limit=3)
    told = []

    async def ask():
        policy = TransformersPolicy(micro, name="micro", dtype="float32")
        settings = isolated_settings(home=tmp_path, tools=())
        loaded = load_sets(tasks, settings, "", played.worlds)
        closed = open_sets(loaded, settings, policy, lambda line: None)
        stage = Stage(policy, recipe.rollouts)
        first = await known_tasks(closed, stage, recipe, tmp_path, lambda d, n: told.append(n))
        again = await known_tasks(closed, stage, recipe, tmp_path, lambda d, n: told.append(n))
        await policy.aclose()
        return closed, first, again

    closed, first, again = asyncio.run(ask())
    asked = [task for one in closed for task in one.tasks if task.answers]
    assert set(first) == {task_key(task) for one in closed for task in one.tasks}
    assert first == again == json.loads((tmp_path / "known.json").read_text())
    assert told == [2 * len(asked)] * (2 * len(asked))  # the second time nothing is asked
