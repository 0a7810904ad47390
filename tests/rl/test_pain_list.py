"""What users of other trainers ran into, and that it does not happen here.

Each test names a thread and what went wrong there. Threads that another test covers are named in that
test's docstring: `grep -rn '#[0-9]' tests`.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from agent.episode import Episode
from agent.formats import make_format
from agent.graph import Setup, build_graph
from agent.policies.base import Completion, Request, Sampling
from agent.policies.chat import ChatTemplate
from agent.policies.transformers import TransformersPolicy
from agent.rollout import run_episode
from agent.settings import isolated_settings
from agent.task import Task
from rl.assessment_recipe import Correction, LossChoice
from rl.batches import calls_tree, update_batch
from rl.curriculum import Drawn
from rl.losses import importance_weights
from rl.packing import rows
from rl.question_sets import load_sets, open_sets
from rl.rollouts import groups_of
from rl.sampler import hand_over
from rl.step_metrics import of_rollouts
from rl.sync import Canary
from rl.train_recipe import Rollouts, Tasks
from tests.agent.scripted import HAPPY, FactTool, ScriptedPolicy
from tests.rl.conftest import WORLD
from tests.rl.learning import learner, tiny_model, trees_of
from tests.rl.test_doctor import STRIPS
from tools.base import Toolbox
from tools.judge import JudgeTool


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def play(replies, template, kind=ScriptedPolicy):
    """One episode with a script and a real tokenizer; gives the policy and the record."""
    tools = Toolbox([FactTool(), JudgeTool()])
    policy = kind(replies, template)
    setup = Setup(policy, make_format("tags", tools), tools)
    episode = Episode(Task("q", "Which element is named after Oganessian?", ("oganesson",)))
    return policy, asyncio.run(run_episode(episode, setup, build_graph(tools)))


def test_many_turns_are_one_sequence_of_the_loss():
    """SkyRL#1278: a turn became a sequence, which changed GSPO and every mean over sequences."""
    for item in trees_of(3, turns=(3, 4)):
        trajectories = {number for number, _ in item.where}
        assert len(item.where) > len(trajectories)
        assert set(item.sequence.tolist()) == trajectories
    assert update_batch(trees_of(3, turns=(3, 4))).sequences == 12


def test_a_question_with_more_rollouts_or_turns_counts_once_in_the_metrics(played):
    """labs-molt#64: rows were averaged, and a checkpoint that scored 0.45 was reported with 0.28."""
    score = lambda trajectory: (played.sets[0].name, played.sets[0].scorer)  # noqa: E731
    groups = [group[:1] for group in played.groups]
    more = [group * (5 if index == 0 else 1) for index, group in enumerate(groups)]
    few, many = of_rollouts(groups, score), of_rollouts(more, score)
    assert len({len(t.turns) for group in groups for t in group}) > 1
    assert {name: many[name] for name in ("right", "turns", "searches")} == {
        name: pytest.approx(few[name]) for name in ("right", "turns", "searches")
    }


@pytest.mark.parametrize("which", ["micro", "base_model"])
def test_the_tokens_between_turns_are_those_of_the_template(which, request):
    """verl#3720, verl PR#6921: the newline behind an end of turn was dropped before every tool result,
    so that the policy was trained on a text that no server ever shows it."""
    template = ChatTemplate.load(request.getfixturevalue(which))
    ended = [f"{reply}<|im_end|>" for reply in HAPPY]
    for replies in (HAPPY, ended):
        policy, _ = play(replies, template)
        last = policy.requests[-1]
        assert sum(m["role"] == "assistant" for m in last.messages) == 2
        whole = template.tokenizer.apply_chat_template(
            list(last.messages), tokenize=False, add_generation_prompt=True
        )
        assert template.tokenizer.decode(last.token_ids) == whole


def test_real_rollouts_read_as_the_template_writes_them(played, micro):
    """verl#6719: the same for what the micro policy sampled, whatever its tokens are."""
    template, [one] = ChatTemplate.load(micro), played.sets
    seen = 0
    for trajectory in (t for group in played.groups for t in group):
        told = [t for t in trajectory.turns[:-1] if t.observation is not None]
        if len(told) < len(trajectory.turns) - 1 or trajectory.turns[-1].forced:
            continue
        last, before = trajectory.turns[-1], trajectory.prompt_of(trajectory.turns[0]).tolist()
        if len(trajectory.prompt_of(last)) < last.reply.start:  # an observation was omitted
            continue
        text = template.tokenizer.decode(before)
        for turn in told:
            shown = template.neutralise(one.setup.format.render(turn.observation))
            text += f"{turn.text}<|im_end|>\n<|im_start|>user\n{shown}<|im_end|>\n"
            text += "<|im_start|>assistant\n"
        assert template.tokenizer.decode(trajectory.prompt_of(last).tolist()) == text
        seen += 1
    assert seen >= 4


def test_a_template_that_strips_thoughts_does_not_cut_an_episode_into_samples(micro, tmp_path):
    """slime#2288, verl#6854, trl#6361: re-rendering dropped earlier thoughts, so that no turn extended
    the one before, and 8 rollouts became 64 samples."""
    shutil.copytree(micro, tmp_path / "policy")
    (tmp_path / "policy" / "chat_template.jinja").write_text(STRIPS)
    thinking = [f"<think>because of {n}</think>{reply}" for n, reply in enumerate(HAPPY)]
    policy, done = play(thinking, ChatTemplate.load(tmp_path / "policy"))
    assert "because of 0" in policy.prompt(2)
    [row] = rows(done)
    assert row.target.sum() == done.sampled.sum()
    assert row.ids.tolist() == done.token_ids.tolist()


class Spelling(ScriptedPolicy):
    """Samples character by character, as no tokenizer would write it."""

    def _one(self, request):
        done = super()._one(request)
        ids = tuple(id for letter in done.text for id in self.template.encode(letter))
        assert ids != tuple(self.template.encode(done.text))
        return Completion(self.template.decode(ids), ids, tuple(-0.5 for _ in ids))


def test_tokens_that_no_tokenizer_would_write_are_trained_as_sampled(micro):
    """rllm#352: where re-tokenised text differed, the mask was all zeros and the run went on;
    agent-lightning#326: other ids than the sampled ones were trained."""
    template = ChatTemplate.load(micro)
    _, done = play([reply.replace(" ", "") for reply in HAPPY], template, Spelling)
    assert len(done.turns) == 3
    tree, replies, found = calls_tree([(0, done)])
    assert tree.ids[found].tolist() == done.token_ids[done.sampled].tolist()
    assert sum(len(reply.tokens) for reply in replies) == done.sampled.sum() > 0
    assert not np.isnan(done.logprobs[done.sampled]).any()


def test_a_training_rollout_is_never_truncated_whatever_the_settings_say(played, micro, tmp_path):
    """trl#6789: top-p left in the sampling gave a mean ratio of 0.896 with no change of the policy."""
    policy = ScriptedPolicy([], ChatTemplate.load(micro))
    asked = {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "max_tokens": 99}
    settings = isolated_settings(home=tmp_path, search={"mode": "lexical"}, sampling=asked)
    loaded = load_sets(Tasks(worlds=WORLD, limit=1), settings, "", played.worlds)
    [one] = open_sets(loaded, settings, policy, lambda line: None)
    plays = groups_of(1, [Drawn(one, task) for task in one.tasks], Rollouts(size=2), 0)
    assert {play.setup.sampling for play in plays} == {Sampling(temperature=1.0, max_tokens=99)}


def test_the_log_probability_does_not_depend_on_how_the_token_was_drawn(micro):
    """trl#4159: the sampler's temperature was not the trainer's; ratios were off from the start."""
    policy = TransformersPolicy(micro, dtype="float32", reuse=False)
    prompt = tuple(policy.template.opening(({"role": "user", "content": "Who?"},)))
    drawn = [Sampling(1.0, max_tokens=12), Sampling(0.5, 0.9, 5, 12), Sampling(0.0, max_tokens=12)]

    async def done():
        found = []
        for one in drawn:
            [sampled] = await policy.generate([Request((), prompt, one)])
            whole = Request(
                (), (*prompt, *sampled.token_ids), Sampling(max_tokens=1), prompt_logprobs=True
            )
            [scored] = await policy.generate([whole])
            found.append((sampled.logprobs, scored.prompt_logprobs[len(prompt) :]))
        await policy.aclose()
        return found

    for told, scored in asyncio.run(done()):
        assert told == pytest.approx(scored, abs=1e-4)


def test_a_small_gap_over_a_long_episode_masks_nothing():
    """trl#4772: 0.012 nats a token over 100 tokens are a sequence ratio of 3.3, over the cap: whole
    episodes were left out, the long ones first. Here the factor is a token's, by default."""
    old = torch.full((1000,), -1.0)
    correction = LossChoice().correction
    assert correction == Correction(level="token", mode="truncate")
    sequence = torch.zeros(1000, dtype=torch.int64)
    mask = torch.ones(1000, dtype=torch.bool)

    def factors(**options):
        return importance_weights(old, old - 0.012, mask, sequence, **options)

    found = factors(**correction.model_dump())
    assert found.tolist() == pytest.approx([np.exp(0.012)] * 1000, rel=1e-5)
    assert not factors(level="sequence", mode="mask", high=3.0).any()  # what happened there


def test_the_gap_does_not_grow_when_nothing_is_learnt(micro, tmp_path):
    """open-instruct#1473: with learning rate 0 engine and trainer drifted apart from sync to sync."""
    made = learner(micro)
    policy = TransformersPolicy(micro, dtype="float32")
    canary = Canary.of(made.template)

    async def deliveries():
        return [
            await hand_over(made.engine, policy, micro, tmp_path / "p", Rollouts(), canary)
            for _ in range(3)
        ]

    found = asyncio.run(deliveries())
    asyncio.run(policy.aclose())
    assert len({one.gap for one in found}) == 1
    assert len({one.version for one in found}) == 1
    assert found[0].gap < 1e-4


def test_an_adapter_reaches_the_engine(micro, tmp_path):
    """verl#7495, verl-omni#552: LoRA updates never reached the engine, or were bound to no module; it
    was taken for staleness for two months."""
    made = learner(micro, lora=True, lr=1e-2)
    policy, canary = TransformersPolicy(micro, dtype="float32"), Canary.of(made.template)
    before = asyncio.run(policy.fingerprints())
    for step in (1, 2):  # B is 0 at first, so that A has no gradient in the first step
        assert made.step(update_batch(trees_of(step))).applied
    asyncio.run(hand_over(made.engine, policy, micro, tmp_path / "p", Rollouts(), canary))
    after = asyncio.run(policy.fingerprints())
    asyncio.run(policy.aclose())
    moved = {name for name, one in after.items() if before[name] != one}
    assert len([name for name in moved if "proj" in name]) == 6 * 7


UNEQUAL = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rl.batches import update_batch
from rl.step import UnequalPassesError
from tests.rl.learning import learner, trees_of
made = learner(Path(sys.argv[1]), zero=3)
trees = trees_of(1)
mine = trees[:2] if torch.distributed.get_rank() == 0 else trees
try:
    made.step(update_batch(mine))
except UnequalPassesError as error:
    print("refused:", error.message)
"""


def test_processes_with_different_numbers_of_passes_are_stopped_and_do_not_hang(tiny):
    """ms-swift PR#8102, trl#2840: ranks with other numbers of turns made other numbers of passes, and
    ZeRO 3 waited for ever."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", UNEQUAL, str(tiny)],
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in running:
        out, _ = process.communicate(timeout=180)
        assert "refused: the processes hold different batches" in out


def test_a_log_probability_that_is_not_known_is_never_taken_for_a_number():
    """Flash-RL#19: masked log-probabilities were stored as 1, which gave ratios of 1/e."""
    behaviour, old = torch.tensor([np.nan, -2.0]), torch.tensor([-1.0, -2.0])
    mask = torch.ones(2, dtype=torch.bool)
    for level in ("token", "sequence"):
        found = importance_weights(
            old, behaviour, mask, torch.zeros(2, dtype=torch.int64), level=level
        )
        assert found.tolist() == [1.0, 1.0]
