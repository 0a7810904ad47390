"""`agent doctor train`: green on the micro policy, and red for each thing that can be wrong."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from agent.formats import TagsFormat, ToolCallFormat
from agent.policies.base import Sampling
from agent.policies.chat import ChatTemplate
from agent.policies.transformers import TransformersPolicy
from agent.rollout import Play
from agent.settings import isolated_settings
from agent.trajectory import Span
from kg.errors import UsageError
from rl import checkup
from rl.batches import update_batch
from rl.checkup import HeadWatch, Measured
from rl.curriculum import Drawn
from rl.doctor import Patient, examine, laid_out, learner_of, of_critic, of_rollouts, of_step
from rl.rollouts import Stage, groups_of
from rl.sync import weights_of
from rl.train_recipe import Rollouts, load_train
from tests.conftest import ROOT
from tests.rl.learner import updated, written
from tools.base import Toolbox

NAMES = ["template", "stop token", "mask", "sampling", "gap", "gradient", "passes", "sync"]
#: A thought is shown in the last message only, as templates of reasoning models do it.
STRIPS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}\
{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
#: A message after the second one has a blank line more.
SPACED = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% if loop.index > 4 %}{{ '\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
OFF = {"rollouts.engine": "transformers", "rollouts.concurrency": 16}


def recipe(**changes):
    found = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    return load_train("grpo", [*(f"{key}={value}" for key, value in OFF.items()), *found])


@pytest.fixture(scope="module")
def well(micro, played):
    """The micro policy's learner, rollouts and trees."""
    made = recipe()
    learner = learner_of(made, micro)
    trees = laid_out(played.groups, made.update.tree_tokens)
    return Patient(made, learner, None, micro, played.sets[0].setup, played.groups, trees)


@pytest.fixture(scope="module")
def measured(well):
    return checkup.measure(well.learner, well.trees)


@pytest.fixture(scope="module")
def stepped(micro):
    """A learner whose weights may change."""
    return learner_of(recipe(), micro)


@pytest.fixture
def folder(micro, tmp_path):
    """A policy folder with another chat template."""

    def made(template):
        shutil.copytree(micro, tmp_path / "policy")
        (tmp_path / "policy" / "chat_template.jinja").write_text(template)
        return tmp_path / "policy"

    return made


def again(played, policy, sampling=None, size=4, **agent):
    """The same tasks played by another policy, or otherwise."""
    rollouts = Rollouts(tasks=4, size=size, concurrency=16, engine="transformers")
    [one] = played.sets
    drawn = [Drawn(one, task) for task in one.tasks]
    plays = []
    for play in groups_of(1, drawn, rollouts, 11):
        setup = replace(play.setup, policy=policy, **agent)
        setup = setup if sampling is None else replace(setup, sampling=sampling)
        plays.append(Play(setup, play.episode))
    done = asyncio.run(Stage(policy, rollouts).play(plays))
    return [done[i : i + size] for i in range(0, len(done), size)]


def test_the_command_is_green_on_the_micro_policy_with_its_own_engine(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "doctor", "train", "--json"],
        capture_output=True, text=True, timeout=300, env=plain,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)
    assert [c["name"] for c in checks] == NAMES
    assert {c["status"] for c in checks} == {"ok"}
    assert "world size 1" in checks[6]["detail"]


@pytest.fixture(scope="module")
def stripped(micro, tmp_path_factory):
    """A whole examination of a policy whose template rewrites the past, cut off after three tokens."""
    home = tmp_path_factory.mktemp("stripped")
    shutil.copytree(micro, home / "policy")
    (home / "policy" / "chat_template.jinja").write_text(STRIPS)
    changes = {"base": str(home / "policy"), "rollouts__agent__sampling__max_tokens": 3}
    found = examine(recipe(**changes), isolated_settings(home=home), lambda line: None)
    return {check.name: check for check in found}


def test_a_template_that_drops_earlier_thoughts_is_red(stripped):
    check = stripped["template"]
    assert check.status == "fail"
    assert "First I" in check.detail
    assert "chat_template.jinja" in check.hint


def test_replies_that_never_end_by_themselves_are_red(stripped):
    assert stripped["stop token"].status == "fail"
    assert "cut off" in stripped["stop token"].detail
    assert "max_tokens" in stripped["stop token"].hint


def test_what_else_such_a_policy_does_right_stays_green(stripped):
    good = {name for name, check in stripped.items() if check.status == "ok"}
    assert good == set(NAMES) - {"template", "stop token"}


def test_a_template_that_writes_a_message_by_its_place_is_red(folder):
    check = checkup.template_check(ChatTemplate.load(folder(SPACED)), TagsFormat(Toolbox([])))
    assert check.status == "fail"
    assert "turn by turn" in check.detail


@pytest.mark.parametrize("form", [TagsFormat, ToolCallFormat])
def test_the_templates_that_ship_are_green(micro, template, form):
    for one in (ChatTemplate.load(micro), template):
        assert checkup.template_check(one, form(Toolbox([]))).status == "ok"


def test_a_record_without_the_token_that_ended_it_is_red(well):
    def cut(trajectory):
        turns = tuple(
            replace(t, reply=Span(t.reply.start, t.reply.stop - 1)) for t in trajectory.turns
        )
        return replace(trajectory, turns=turns)

    groups = [[cut(t) for t in group] for group in well.groups]
    template, stops = well.learner.template, well.setup.format.stop
    check = checkup.stop_check(groups, laid_out(groups, 8192), template, stops)
    assert check.status == "fail"
    assert "would never learn to stop" in check.detail


def test_a_mask_that_is_one_off_is_red(well):
    trees = laid_out(shifted(well.groups), 8192)
    check = checkup.mask_check(well.groups, trees, well.learner.template)
    assert check.status == "fail"
    check = checkup.mask_check(shifted(well.groups), trees, well.learner.template)
    assert check.status == "fail"
    assert "the trained tokens read" in check.detail


def shifted(groups):
    """Every reply is said to lie one token before where it does."""
    return [
        [
            replace(
                one,
                turns=tuple(
                    replace(t, reply=Span(t.reply.start - 1, t.reply.stop - 1)) for t in one.turns
                ),
            )
            for one in group
        ]
        for group in groups
    ]


def test_a_recipe_that_asks_for_truncation_is_red(well, measured):
    check = checkup.sampling_check(Sampling(top_p=0.8), well.groups, measured)
    assert check.status == "fail"
    assert "top_p 0.8" in check.detail


def test_truncation_that_the_record_denies_is_seen_in_the_tokens(played, micro, well):
    """The log-probabilities are right; the tokens are too likely."""
    policy = TransformersPolicy(micro, name="micro", dtype="float32")
    groups = again(played, policy, Sampling(temperature=1.0, top_p=0.8), size=8)
    asyncio.run(policy.aclose())
    denied = [
        [replace(t, sampling=replace(t.sampling, top_p=1.0)) for t in group] for group in groups
    ]
    found = checkup.measure(well.learner, laid_out(denied, 8192))
    check = checkup.sampling_check(Sampling(), denied, found)
    assert check.status == "fail", check.detail
    assert "the tokens say otherwise" in check.detail


def test_log_probabilities_of_the_truncated_draw_are_seen_in_the_ratio(well, measured):
    """At top_p 0.8 they are those of the model plus -log of what is left; trl#6789 has 0.896."""
    renormalised = replace(measured, engine=np.minimum(measured.engine - np.log(0.896), 0.0))
    check = checkup.sampling_check(Sampling(), well.groups, renormalised)
    assert check.status == "fail"


def test_an_engine_with_other_weights_is_red(played, micro, well, tmp_path):
    other = written(micro, tmp_path / "other", weights_of(updated(micro, scale=3e-3)))
    policy = TransformersPolicy(other, name="micro", dtype="float32")
    groups = again(played, policy)
    sick = replace(well, policy=policy, groups=groups, trees=laid_out(groups, 8192))
    checks = {c.name: c for c in asyncio.run(of_rollouts(sick))}
    asyncio.run(policy.aclose())
    assert checks["gap"].status == "fail", checks["gap"].detail
    assert (checks["stop token"].status, checks["mask"].status) == ("ok", "ok")


def test_the_gap_may_be_what_the_coarsest_type_makes_it():
    zeros, none = np.zeros(3), np.zeros((4, 3))
    found = Measured(zeros, np.full(3, 0.05), none, none, np.zeros(3, dtype=np.int64))
    assert checkup.gap_check(found, {"float32"}).status == "fail"
    assert checkup.gap_check(found, {"float32", "bfloat16"}).status == "ok"
    nan = replace(found, learner=np.full(3, np.nan))
    assert checkup.gap_check(nan, {"bfloat16"}).status == "fail"


def test_a_gradient_from_tokens_that_were_not_sampled_is_red(well, stepped):
    """Also where the vocabulary projection is computed in parts, and again in the backward pass."""
    groups = well.groups[:1]
    for lay, chunk, expected in (
        (groups, 4096, "ok"),
        (groups, 64, "ok"),
        (shifted(groups), 64, "fail"),
    ):
        stepped.engine.module.chunk, watch = chunk, HeadWatch()
        trees = laid_out(lay, 8192)
        with watch.on(stepped):
            stepped.step(update_batch(trees))
        check = checkup.gradient_check(groups, watch.pushed, trees)
        assert check.status == expected, check.detail
    assert checkup.gradient_check(groups, Counter(), trees).status == "fail"


def test_unequal_passes_are_red():
    assert checkup.passes_check([2, 2], 4).status == "ok"
    assert checkup.passes_check([2, 1], 3).status == "fail"


def test_a_step_that_does_not_reach_the_engine_is_red(well, stepped, micro, tmp_path, monkeypatch):
    """First it does; then the engine ignores what it is given; then nothing has changed."""
    policy = TransformersPolicy(micro, name="micro", dtype="float32")
    few = replace(well, learner=stepped, policy=policy, groups=well.groups[:1])
    few = replace(few, trees=laid_out(few.groups, 8192))

    def sync():
        return {c.name: c for c in asyncio.run(of_step(few, tmp_path / "new"))}["sync"]

    assert sync().status == "ok"
    with monkeypatch.context() as patched:
        patched.setattr(policy.model, "load_state_dict", lambda tensors: None)
        ignored = sync()
    assert ignored.status == "fail"
    assert "does not hold the learner's weights" in ignored.detail
    assert sync().status == "ok"
    monkeypatch.setattr(stepped.engine.optimizer, "step", lambda *_, **__: None)
    unmoved = sync()
    asyncio.run(policy.aclose())
    assert unmoved.status == "fail"
    assert "changed nothing" in unmoved.detail
    assert unmoved.hint == "raise update.optimizer.lr"


def test_what_cannot_be_examined_is_refused(tmp_path):
    settings = SimpleNamespace(models_dir=tmp_path)
    with pytest.raises(UsageError, match="cannot be trained"):
        examine(recipe(base="http://localhost/v1"), settings, lambda line: None)
    with pytest.raises(UsageError, match="nowhere"):
        examine(recipe(base="./nowhere"), settings, lambda line: None)


def test_a_critic_is_started_and_taught(well, played):
    policy, critic = played.sets[0].setup.policy, {"optimizer": {"lr": 1e-4}}
    assert of_critic(replace(well, policy=policy)) == []  # this recipe has none
    made = load_train("ppo", [f"critic={json.dumps(critic)}"])
    [check] = of_critic(replace(well, recipe=made, policy=policy))
    assert (check.name, check.status) == ("critic", "ok")
    assert "1 steps from values that were off by 1 " in check.detail
    [check] = of_critic(replace(well, recipe=made, policy=policy, trees=()))
    assert check.status == "fail"


def test_a_part_that_does_not_start_is_red_and_the_last(micro, tmp_path):
    shutil.copytree(micro, tmp_path / "broken")
    (tmp_path / "broken" / "chat_template.jinja").unlink()
    settings = isolated_settings(home=tmp_path)
    made = recipe(base=str(tmp_path / "broken"))
    [check] = examine(made, settings, lambda line: None)
    assert (check.name, check.status) == ("stack", "fail")
    assert "chat template" in check.detail
