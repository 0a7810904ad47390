"""The recipes that ship: the values their papers print, and that each can judge real rollouts."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent.settings import isolated_settings
from agent.task import Task
from kg.errors import UsageError
from rl.actor import Actor
from rl.assess import assess
from rl.boundary import balanced, told_labels
from rl.question_sets import load_sets, open_sets
from rl.receipt import make_receipt
from rl.recipe import shipped
from rl.rewards import RewardContext, missing
from rl.rewards.context import task_key
from rl.scoring import load_scorer
from rl.trace_credit import plain
from rl.train_recipe import load_assessment, load_train

METHODS = (
    "abstain", "attrilens", "grpo", "igpo", "igpo_reseek_ikea", "ikea", "knowrl_fact", "lite_ppo",
    "mppreasoner", "ppo", "reseek", "rest", "search_r1",
)  # fmt: skip
MOLECULES = ("attrilens", "mppreasoner")


def at(recipe, path):
    for part in path.split("."):
        recipe = recipe[part] if isinstance(recipe, dict) else getattr(recipe, part)
    return recipe


PUBLISHED = {
    "search_r1": {
        "rewards.answer.reward": "exact_match",
        "credit.estimator": "grpo",
        "rollouts.size": 5,
        "rollouts.agent.budgets.tool_calls": 4,
        "rollouts.agent.search.k": 3,
        "loss.low": 0.2,
        "loss.anchor.coefficient": 0.001,
        "loss.anchor.value": "k3",
    },
    "ppo": {
        "rewards.answer.reward": "exact_match",
        "credit.options": {"gamma": 1.0, "lam": 1.0},
        "rollouts.size": 1,
        "rollouts.agent.budgets.tool_calls": 4,
        "loss.anchor.coefficient": 0.001,
        "loss.anchor.into": "reward",
        "loss.entropy": 0.001,
        "update.minibatches": 2,
        "critic.optimizer.warmup": 0.015,
        "critic.value_clip": 0.5,
    },
    "grpo": {
        "credit.estimator": "grpo",
        "loss.aggregation": "sequence-mean",
        "loss.anchor.coefficient": 0.04,
        "loss.anchor.gradient": "k3",
        "update.minibatches": 1,
    },
    "lite_ppo": {
        "credit.estimator": "lite_ppo",
        "loss.aggregation": "token-mean",
        "loss.anchor": None,
        "rollouts.size": 8,
    },
    "igpo": {
        "rewards.answer.options.scheme": "igpo",
        "rewards.gain.options.form": "log_probability",
        "credit.options": {"pools": "separate", "gamma": 1.0, "std": "population"},
        "loss.aggregation": "sequence-mean",
        "loss.anchor.coefficient": 0.001,
        "loss.entropy": 0.001,
        "rollouts.agent.budgets.turns": 10,
        "update.optimizer.warmup": 0.0,
        "update.optimizer.final": 1.0,
    },
    "reseek": {
        "rewards.answer.reward": "exact_match",
        "rewards.judge.options.variant": "v3",
        "rewards.judge.options.ideal.threshold": 0.7,
        "credit.estimator": "grpo",
        "rollouts.agent.budgets.tool_calls": 4,
        "rollouts.agent.search.k": 3,
    },
    "ikea": {
        "rewards.answer.options.bonus": 0.6,
        "rewards.answer.options.most": 3,
        "rewards.answer.options.consolation": 0.05,
        "rewards.answer.options.malformed": -1.0,
        "rollouts.agent.budgets.tool_calls": 3,
        "loss.anchor.coefficient": 0.001,
        "tasks.balanced": True,
    },
    "igpo_reseek_ikea": {"credit.estimator": "stopping", "tasks.probe": 4},
    "abstain": {"rewards.answer.reward": "abstention"},
    "knowrl_fact": {
        "rewards.answer.options.form": "code",
        "rewards.answer.options.refusal": 1.0,
        "rewards.answer.options.enough": 10,
        "rewards.answer.options.check.top": 5,
        "rewards.answer.options.rules.thought": "some",
        "loss.anchor.coefficient": 0.001,
        "rollouts.size": 10,
    },
    "attrilens": {
        "rewards.format.options": {"valid": 1.0, "invalid": -2.0},
        "rewards.answer.options.right": 2.0,
        "rewards.count.options.absent": -1.5,
        "rollouts.size": 8,
        "update.lora.rank": 8,
        "update.lora.alpha": 32,
        "update.lora.targets": ["q_proj", "v_proj"],
        "update.optimizer.lr": 5e-5,
        "update.optimizer.betas": (0.9, 0.99),
        "update.optimizer.weight_decay": 0.1,
        "update.optimizer.clip": 0.5,
    },
    "mppreasoner": {
        "rewards.answer.options.weight": 0.25,
        "rewards.answer.options.wrong": -1.0,
        "rewards.answer.options.unparsable": -1.5,
        "rollouts.size": 8,
        "loss.anchor.coefficient": 0.01,
        "update.minibatches": 2,
    },
    "rest": {
        "credit.estimator": "filtered",
        "rewards.answer.reward": "exact_match",
        "loss.anchor": None,
        "update.epochs": 1,
        "update.minibatches": 1,
    },
}


def test_every_method_ships_and_names_its_paper():
    assert set(METHODS) <= set(shipped())
    assert set(PUBLISHED) == set(METHODS)
    from importlib import resources

    for name in METHODS:
        text = resources.files("rl.recipes").joinpath(f"{name}.yaml").read_text("utf-8")
        head = text[: text.index("\nbase:")]
        assert "arXiv " in head, name
        assert "ublished" in head, name
        assert "urs" in head, name


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_holds_what_its_paper_prints(name):
    recipe = load_train(name)
    assert {path: at(recipe, path) for path in PUBLISHED[name]} == PUBLISHED[name]
    leash = {"kl"} if recipe.needs_anchor else set()
    assert load_assessment(name).reward.parts.keys() == recipe.rewards.keys() | leash
    isolated_settings(**recipe.rollouts.agent)  # settings that exist


@pytest.fixture(scope="module")
def scorer(micro):
    return load_scorer(micro, "micro")


def guessed(groups):
    """What a critic would say that expects a little everywhere."""
    return [0.3 * t.sampled for group in groups for t in group]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in MOLECULES])
def test_a_recipe_judges_real_rollouts_and_its_receipts_add_up(name, played, scorer):
    recipe = load_train(name)
    tasks = [task for one in played.sets for task in one.tasks]
    known = {task_key(t): i % 2 == 0 for i, t in enumerate(tasks)}
    still = {t.id: np.zeros(len(t.turns)) for group in played.groups for t in group}
    context = RewardContext(progress=0.5, known=known, anchor_kl=still)
    promised = replace(context, promised=recipe.provides)
    assert missing(recipe.reward.rewards.values(), promised, tasks) == ""
    groups = played.groups[:2] if recipe.needs_probes else played.groups
    values = None if recipe.critic is None else guessed
    found = assess(groups, recipe, context, scorer if recipe.needs_probes else None, values)
    assert {one.reason for one in found.dropped} <= {"its task has no gold answer to probe for"}
    assert len(found.batch) >= 4
    assert found.batch.rewards.any()
    assert found.credit.ledger.residual() < 1e-9
    receipts = [make_receipt(found, id) for id in found.batch.ids]
    assert sum(one.contribution for one in receipts) == pytest.approx(-found.loss, abs=1e-9)
    assert set(plain(receipts[0])["turns"][0]["parts"]) <= {*recipe.rewards, "kl"}


def test_the_filter_of_rest_is_the_likelihood_of_what_is_right(played):
    found = assess(played.groups, load_train("rest"))
    right = found.batch.outcomes == 1
    assert right.any()
    assert not right.all()
    for ok, advantages, mask in zip(
        right, found.credit.advantages, found.batch.sampled, strict=True
    ):
        assert (advantages[mask] == float(ok)).all()
    tokens = found.batch.tokens.sum(axis=1)
    assert found.loss == pytest.approx(
        -tokens[right].sum() / tokens.sum()
    )  # rejected ones divide too


@pytest.mark.parametrize("name", MOLECULES)
def test_a_molecule_recipe_says_what_is_missing(name, played, tmp_path):
    recipe = load_train(name)
    rewards = recipe.reward.rewards.values()
    bare = [Task("q", "?", ("yes",))]
    assert "molecules (Task.meta['smiles']: 1 of 1 tasks, first q)" in missing(
        rewards, RewardContext(), bare
    )
    policy = played.sets[0].setup.policy
    settings = isolated_settings(home=tmp_path, **recipe.rollouts.agent)
    with pytest.raises(UsageError, match=r"bbbp\.csv"):
        load_sets(recipe.tasks, settings, str(tmp_path / "none"), tmp_path)
    for file, column in (("bbbp", "p_np"), ("bace", "Class")):
        path = tmp_path / "data" / "moleculenet" / f"{file}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{'C' * n}O,{n % 2}" for n in range(1, 12)]
        path.write_text("\n".join([f"smiles,{column}", *rows]))
    loaded = load_sets(recipe.tasks, settings, str(tmp_path / "data"), tmp_path)
    try:
        sets = open_sets(loaded, settings, policy, lambda line: None)
        said = missing(rewards, RewardContext(), [t for one in sets for t in one.tasks])
    except UsageError as error:
        said = error.message
    assert said in (
        "no tool 'chem'",
        "",
    )  # nothing else is missing, and no tool's absence is silent


def test_tasks_are_balanced_between_known_and_unknown(played):
    asked = [task for one in played.sets for task in one.tasks if task.answers]
    known = {task_key(task): index == 0 for index, task in enumerate(asked)}
    kept = [task for one in balanced(played.sets, known, 0) for task in one.tasks]
    sides = [known[task_key(task)] for task in kept if task.answers]
    assert sorted(sides) == [False, True]
    assert [t for t in kept if not t.answers] == [
        t for one in played.sets for t in one.tasks if not t.answers
    ]
    assert balanced(played.sets, dict.fromkeys(known, False), 0) == tuple(played.sets)


def test_labels_of_a_probe_are_read_from_the_tasks(played):
    one = played.sets[0]
    labelled = [
        replace(task, meta={**task.meta, "known": {"known": i == 0}})
        for i, task in enumerate(one.tasks[:2])
    ]
    told = told_labels([*labelled, *one.tasks[2:]])
    assert told == {task_key(one.tasks[0]): True, task_key(one.tasks[1]): False}


class Told(SimpleNamespace):
    """Keeps the lines that a run tells."""

    def notify(self, line):
        self.lines.append(line)


def labelled(folder, name, label):
    """A file of three questions, each with this label."""
    rows = [
        {"id": f"{name}{n}", "question": f"What is {name} {n}?", "answer": "tin"} for n in range(3)
    ]
    lines = [json.dumps(row | ({"meta": {"known": label}} if label else {})) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return str(folder / f"{name}.jsonl")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("{reward: tool_cost, options: {prices: {serach: 1}}}", "names 'serach', no tool"),
        ("{reward: knowledge_boundary, options: {tools: [kg]}}", "names 'kg', no tool"),
        (
            "{reward: plan_adherence, options: {against: own, tool: plann}}",
            "names 'plann', no tool",
        ),
        ("{reward: information_gain, options: {only: [search, lookup]}}", "names 'lookup'"),
        (
            "{reward: combination, options: {parts: {a: {reward: judge_verdict, "
            "options: {ideal: {by: answer, tools: [browse]}}}}}}",
            "names 'browse'",
        ),
    ],
)
def test_an_option_that_names_a_tool_which_the_run_lacks_is_refused(tmp_path, reward, message):
    sets = json.dumps({"sets": [labelled(tmp_path, "asked", None)]})
    held = json.dumps({"sets": [labelled(tmp_path, "held", None)]})
    choices = [f"tasks={sets}", f"validation.tasks={held}", f"rewards={{a: {reward}}}"]
    settings = isolated_settings(home=tmp_path / "home")
    with pytest.raises(UsageError, match=message) as error:
        Actor(load_train("grpo", choices), settings, tmp_path / "run", "", Told(lines=[]))
    near = "serach" in message
    assert error.value.hint == ("did you mean 'search'?" if near else "there are: search, judge")


def test_labels_that_some_tasks_lack_or_another_policy_earned_are_told_before_the_run(tmp_path):
    told = Told(lines=[])

    def actor(*sets):
        tasks, rewards = {"sets": sets}, "{a: {reward: f1}, known: {reward: boundary_label}}"
        held = json.dumps({"sets": [labelled(tmp_path, "held", None)]})
        choices = [f"tasks={json.dumps(tasks)}", f"rewards={rewards}", f"validation.tasks={held}"]
        settings = isolated_settings(home=tmp_path / "home")
        return Actor(load_train("grpo", choices), settings, tmp_path / "run", "", told)

    mine = labelled(tmp_path, "mine", {"policy": "micro@1", "known": True})
    bare, odd = labelled(tmp_path, "bare", None), labelled(tmp_path, "odd", {"known": "maybe"})
    for other in (bare, odd):
        share = rf"knowledge boundary labels \(.*: 3 of 6 tasks, first {Path(other).stem}0"
        with pytest.raises(UsageError, match=share):
            actor(mine, other)
    with pytest.raises(
        UsageError,
        match=r"lacks knowledge boundary labels \(tasks.probe, .* or RewardContext.known\)",
    ):
        actor(bare)
    actor(mine)
    assert told.lines == []
    actor(mine, labelled(tmp_path, "theirs", {"policy": "llama@2", "known": False}))
    [line] = told.lines
    assert line.startswith("3 of 6 labels tell what another policy knows (llama), not 'micro'")
    same = labelled(tmp_path, "same", None)
    Path(same).write_text(Path(same).read_text().replace("same", "mine").replace("What", "Who"))
    with pytest.raises(UsageError, match=r"lacks knowledge boundary labels"):
        actor(mine, same)  # the label of another task with its id is not its own


def test_validation_sets_are_read_where_something_is_validated_alone(tmp_path):
    def actor(every):
        tasks = json.dumps({"sets": [labelled(tmp_path, "mine", None)]})
        held = json.dumps({"sets": [str(tmp_path / "gone.jsonl")]})
        changes = [f"tasks={tasks}", f"validation={{every: {every}, tasks: {held}}}"]
        settings = isolated_settings(home=tmp_path / "home")
        made = load_train("grpo", changes)
        return Actor(made, settings, tmp_path / "run", "", Told(lines=[]))

    assert actor(0).held == ()
    with pytest.raises(UsageError, match=r"gone\.jsonl"):
        actor(1)


def test_rewards_are_finite_for_every_recipe(played):
    for name in ("reseek", "ikea", "abstain", "knowrl_fact"):
        found = assess(played.groups, load_train(name))
        assert np.isfinite(found.batch.rewards).all()
