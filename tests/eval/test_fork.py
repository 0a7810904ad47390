"""What a turn was worth: constructed episodes whose worth is known, and the command on a real one."""

import asyncio
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.episode import Episode
from agent.formats import make_format
from agent.graph import Setup, build_graph
from agent.intervention import with_text, without_observation
from agent.policies.base import Sampling
from agent.replay import rebuild, takes
from agent.rollout import rollout, run_episode
from agent.session import make_setup
from agent.settings import load_settings
from agent.store import TrajectoryStore
from agent.task import Task
from agent.toolbox import open_tools
from eval.analyses.counterfactual import ABSTAINED, FACTUAL, compare_arms, estimate
from eval.analyses.fork import fork
from eval.fictional.make import make_world
from kg.errors import PolicyUnavailableError, ToolUnavailableError, UsageError
from tests import forked
from tests.agent.scripted import FactTool, ScriptedPolicy
from tools.base import Toolbox
from tools.cassette import CassetteTool
from tools.judge import JudgeTool

ROOT = Path(__file__).resolve().parents[2]
TASK = Task.ask("Which element is named after Oganessian?").with_answers(["oganesson"])
OTHER = "without its observation"


class Looking(ScriptedPolicy):
    """Searches twice, then answers: right when it sees the answer."""

    blind = "<answer>tennessine</answer>"

    def _one(self, request):
        said = sum(m["role"] == "assistant" for m in request.messages)
        text = self.template.tokenizer.decode(request.token_ids)
        seen = "<answer>oganesson [2]</answer>" if "Oganesson is" in text else self.blind
        self.replies = [["<search>useless</search>", "<search>good</search>", seen][min(said, 2)]]
        return super()._one(request)


class Library(FactTool):
    async def run(self, arguments, context):
        useful = arguments.query == "good"
        self.passages = ["Oganesson is named after Yuri Oganessian." if useful else "A stone."]
        return await super().run(arguments, context)


def make(template, policy=Looking, blind=""):
    tools = Toolbox([Library(), JudgeTool()])
    chosen = policy([], template)
    chosen.blind = blind or chosen.blind
    return Setup(chosen, make_format("tags", tools), tools, sampling=Sampling(temperature=1.0))


async def play(setup, task=TASK, seed=0):
    return await run_episode(Episode(task, seed=seed), setup, build_graph(setup.tools))


async def worth(setup, done, turn, change=without_observation, samples=4, **options):
    setup = on_cassette(setup, done)
    arms = {FACTUAL: rebuild(done, turn, setup), OTHER: rebuild(done, turn, setup, change)}
    return await compare_arms(arms, setup, samples, **options)


def on_cassette(setup, done):
    """The same tools behind the episode's recording."""
    tools = Toolbox([CassetteTool(Library(), takes(done)), JudgeTool()])
    return replace(setup, tools=tools, format=make_format("tags", tools))


async def test_the_turn_that_holds_the_answer_is_worth_all_of_it(template):
    setup = make(template)
    found = await worth(setup, await play(setup), 2)
    assert (found.worth, found.interval.low, found.interval.n) == (1.0, 1.0, 4)
    assert [arm.value for arm in found.arms] == [1.0, 0.0]
    assert [arm.answers for arm in found.arms] == [{"oganesson": 4}, {"tennessine": 4}]
    assert [arm.within_budget for arm in found.arms] == [4, 4]
    assert [arm.turns for arm in found.arms] == [1.0, 1.0]
    said = [len(template.encode(f"<answer>{a}</answer>")) for a in ("oganesson [2]", "tennessine")]
    assert [arm.tokens for arm in found.arms] == said


async def test_a_useless_turn_is_worth_nothing(template):
    setup = make(template)
    found = await worth(setup, await play(setup), 1)
    assert (found.worth, found.interval.low, found.interval.high) == (0.0, 0.0, 0.0)
    assert [arm.turns for arm in found.arms] == [2.0, 2.0]


async def test_another_observation_is_worth_what_it_says(template):
    setup = make(template)
    done = await play(setup)
    found = await worth(setup, done, 2, with_text("Oganesson is the one."))
    assert found.worth == 0.0


async def test_the_arms_share_their_seeds_and_pass_over_the_episodes_own(template):
    setup = make(template)
    done = await play(setup, seed=1)
    setup.policy.requests.clear()
    found = await worth(setup, done, 2, samples=3, seed=0)
    seeds = [request.sampling.seed for request in setup.policy.requests]
    assert found.finished == 3
    assert len(set(seeds)) == 3
    assert sorted(seeds) == sorted(2 * list(set(seeds)))
    assert (1 * 1_000_003 + 2) % 2**31 not in seeds


async def test_an_abstention_is_right_where_there_is_no_answer(template):
    setup = make(template, blind="<abstain>not there</abstain>")
    task = replace(TASK, answers=(), answerable=False)
    found = await worth(setup, await play(setup, task), 2)
    assert [arm.value for arm in found.arms] == [0.0, 1.0]
    assert found.worth == -1.0
    assert found.arms[1].answers == {ABSTAINED: 4}


async def test_without_gold_the_answers_are_told_and_nothing_is_scored(template):
    setup = make(template)
    found = await worth(setup, await play(setup, Task.ask("Which one?")), 2)
    assert (found.worth, found.interval) == (None, None)
    assert [arm.value for arm in found.arms] == [None, None]
    assert [arm.answers for arm in found.arms] == [{"oganesson": 4}, {"tennessine": 4}]


async def test_a_single_pair_has_no_interval_and_a_single_arm_no_worth(template):
    setup = make(template)
    done = await play(setup)
    found = await worth(setup, done, 2, samples=1)
    assert (found.worth, found.interval) == (1.0, None)
    alone = await compare_arms({FACTUAL: rebuild(done, 2, setup)}, setup, 2)
    assert (alone.worth, alone.arms[0].value) == (None, 1.0)


class Failing(Looking):
    """Fails for some of the calls at the third turn."""

    fails: tuple[int, ...] = ()
    error: Exception = PolicyUnavailableError("the server is gone")
    calls = 0

    def _one(self, request):
        self.calls += 1
        if self.calls in self.fails:
            raise self.error
        return super()._one(request)


async def test_failures_are_left_out_in_pairs_and_told(template):
    setup = make(template, Failing)
    done = await play(setup)
    setup.policy.fails = (5,)  # three to play, then the arms take turns
    found = await worth(setup, done, 2, concurrency=1)
    assert (found.finished, found.failed, found.worth) == (3, 1, 1.0)
    setup.policy.fails = tuple(range(100))
    with pytest.raises(PolicyUnavailableError, match="every continuation failed: the server"):
        await worth(setup, done, 2)


async def test_a_tool_that_is_gone_is_named_as_one(template):
    class Gone(Library):
        async def run(self, arguments, context):
            raise ToolUnavailableError("the index is gone")

    setup = make(template)
    done = await play(setup)
    tools = Toolbox([Gone(), JudgeTool()])
    setup = replace(setup, tools=tools)
    arms = {FACTUAL: rebuild(done, 1, setup)}
    with pytest.raises(ToolUnavailableError, match="the index is gone"):
        await compare_arms(arms, setup, 2)


async def test_cancelling_gives_what_is_finished(template):
    class Slow(Looking):
        calls = 0
        stuck = asyncio.Event()

        async def generate(self, requests):
            self.calls += 1
            if self.calls > 5:
                self.stuck.set()
                await asyncio.sleep(60)
            return await super().generate(requests)

    setup = make(template)
    done = await play(setup)
    setup = replace(setup, policy=Slow([], template))
    running = asyncio.create_task(worth(setup, done, 2, concurrency=1))
    await setup.policy.stuck.wait()
    running.cancel()
    found = await running
    assert found.interrupted
    assert (found.finished, found.samples, found.worth) == (2, 4, 1.0)


async def _ends(template):
    setup = make(template)
    right = await play(setup)
    return right, replace(right, answer="tennessine")


@pytest.fixture(scope="module")
def ends(template):
    return asyncio.run(_ends(template))


@given(scores=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_the_worth_is_the_difference_of_the_values(ends, scores):
    groups = {
        name: [ends[0] if pair[place] else ends[1] for pair in scores]
        for place, name in enumerate((FACTUAL, OTHER))
    }
    found = estimate(groups, dict.fromkeys(groups, 2))
    ours, theirs = (arm.value for arm in found.arms)
    assert found.worth == pytest.approx(ours - theirs)
    assert (found.interval is None) is (len(scores) == 1)
    if found.interval:
        assert -1 <= found.interval.low <= found.worth + 1e-9
        assert found.worth - 1e-9 <= found.interval.high <= 1
    swapped = estimate(dict(reversed(groups.items())), dict.fromkeys(groups, 2))
    assert swapped.worth == pytest.approx(-found.worth)


# the command, with the real policy


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, 77, 60, 40)
    return folder


@pytest.fixture(scope="module")
def own(world):
    corpus = (world / "corpus.jsonl",)
    return load_settings(policy="micro", corpus=corpus, search={"mode": "lexical"})


@pytest.fixture(scope="module")
def store(world, own):
    """A store with episodes of the micro policy."""
    from agent.policies.registry import open_policy
    from eval.benchmarks.base import rows

    tasks = [Task(**row) for _, row in rows(world / "tasks-test.jsonl", [])][:6]
    path = world / "trajectories.sqlite"

    async def run():
        policy = open_policy("micro", own.models_dir)
        setup = make_setup(own, policy, open_tools(own))
        with TrajectoryStore.open(path) as opened:
            async for done in rollout([Episode(task, seed=5) for task in tasks], setup):
                opened.add(done)
        await policy.aclose()

    asyncio.run(run())
    return path


@pytest.fixture(scope="module")
def episode(store):
    with TrajectoryStore.open(store) as opened:
        return next(one for one in opened.query() if len(one.turns) > 2)


def ask(store, id, options, settings):
    with TrajectoryStore.open(store) as opened:
        return fork(opened, id, options, settings, True, lambda line: None)


def test_the_command_takes_up_an_episode_of_the_store(store, own, episode):
    greedy = {"turn": 1, "samples": 1, "temperature": 0.0}
    text, code = ask(store, episode.id[:8], greedy, own)
    found = json.loads(text)
    assert (code, found["exact"], found["notes"]) == (0, True, [])
    assert found["policy"] == found["sampled_by"] == episode.policy
    [arm] = found["result"]["arms"]
    assert list(arm["answers"]) == [episode.answer or ABSTAINED]
    assert found["calls"]["ran"] == found["calls"]["missed"] == 0
    assert arm["turns"] == len(episode.turns) - 1


def test_both_arms_are_sampled_and_told(store, own, episode):
    options = {"turn": 1, "samples": 3, "without_observation": True}
    found = json.loads(ask(store, episode.id, options, own)[0])
    assert [arm["name"] for arm in found["result"]["arms"]] == [FACTUAL, OTHER]
    assert found["result"]["finished"] == 3
    assert found["result"]["interval"]["n"] == 3
    assert all(sum(arm["answers"].values()) == 3 for arm in found["result"]["arms"])
    assert ask(store, episode.id, options, own)[0] == ask(store, episode.id, options, own)[0]


def test_another_query_is_asked_of_the_corpus(store, own, episode):
    options = {"turn": 1, "samples": 2, "replace_query": "zzz"}
    found = json.loads(ask(store, episode.id, options, own)[0])
    assert found["result"]["arms"][1]["name"] == "with another call"
    assert found["calls"]["ran"] >= 1
    closed = json.loads(ask(store, episode.id, {**options, "tools": ()}, own)[0])
    assert closed["calls"]["missed"] >= 1


def test_a_corpus_that_is_not_the_episodes_is_not_asked(store, own, episode, tmp_path):
    (tmp_path / "notes.md").write_text("# Stones\nA stone is hard.\n")
    other = own.model_copy(update={"corpus": (tmp_path / "notes.md",)})
    options = {"turn": 1, "samples": 2, "without_observation": True}
    found = json.loads(ask(store, episode.id, options, other)[0])
    assert "search has other data than in the episode" in found["notes"][0]
    assert found["calls"]["ran"] == 0
    wanted = json.loads(ask(store, episode.id, {**options, "own_corpus": True}, other)[0])
    assert wanted["calls"]["missed"] == 0
    absent = own.model_copy(update={"corpus": (tmp_path / "none",)})
    found = json.loads(ask(store, episode.id, options, absent)[0])
    assert "search is not available" in found["notes"][0]
    with pytest.raises(UsageError, match="none does not exist"):
        ask(store, episode.id, {**options, "own_corpus": True}, absent)
    found = json.loads(ask(store, episode.id, {**options, "tools": ()}, absent)[0])
    assert found["notes"] == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"turn": 0}, "--turn"),
        ({"turn": 99}, "has no turn 99"),
        ({"turn": 1, "samples": 0}, "--samples"),
        ({"turn": 1, "scorer": "squadd"}, "no scorer 'squadd'"),
        ({"turn": 1, "temperature": 0.0}, "temperature 0"),
        ({"turn": 1, "replace": "x", "without_observation": True}, "different arms"),
        ({"turn": 1, "replace": "x", "replace_query": "y"}, "different arms"),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(store, own, episode, options, says):
    nowhere = own.model_copy(update={"home": Path("/nonexistent")})
    with pytest.raises(UsageError, match=says):
        ask(store, episode.id, options, nowhere)


def test_another_policy_is_said_or_refused(store, own, episode, tmp_path):
    path = tmp_path / "store.sqlite"
    name, _, version = episode.policy.rpartition("@")
    with TrajectoryStore.open(path) as opened:
        opened.add(replace(episode, id="a" * 32, policy=f"{name}@0000"))
        opened.add(replace(episode, id="b" * 32, policy=f"gpt@{'remote'}"))
        opened.add(replace(episode, id="c" * 32, policy="nobody-knows@1"))
    options = {"turn": 1, "samples": 1}
    with pytest.raises(UsageError, match=f"sampled by micro@0000; this is micro@{version}"):
        ask(path, "aaaa", options, own)
    found = json.loads(ask(path, "aaaa", {**options, "policy": "micro"}, own)[0])
    assert found["notes"] == [f"micro@{version} goes on with what micro@0000 began"]
    assert found["exact"]
    with pytest.raises(UsageError, match="by 'gpt' on a server"):
        ask(path, "bbbb", options, own)
    with pytest.raises(PolicyUnavailableError, match="cannot be had"):
        ask(path, "cccc", options, own)


def command(store, world, *args, **popen):
    return forked.Forked(
        [str(ROOT / "cli.py"), "trace", "fork", *args, "--store", str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=world,
        env={**os.environ, "NO_COLOR": "1", "AGENT_SEARCH__MODE": "lexical"}, **popen,
    )  # fmt: skip


def test_the_command_line_prints_the_worth_and_one_line_errors(store, world, episode):
    corpus = ("--corpus", str(world / "corpus.jsonl"))
    options = ("--turn", "1", "--replace", "Nothing here.", "-n", "2", *corpus)
    done = command(store, world, episode.id[:8], *options)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert "after turn 1 of" in out
    assert "with another observation: value" in out
    assert "turn 1 was worth" in out
    done = command(store, world, episode.id[:8], "--turn", "77")
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (2, "")
    assert err.startswith("error: the episode")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 2


def test_ctrl_c_reports_what_is_finished(store, world, episode):
    corpus = ("--corpus", str(world / "corpus.jsonl"))
    options = ("--turn", "1", "-n", "100000", "--concurrency", "2", "--json", *corpus)
    running = command(store, world, episode.id[:8], *options)
    seen = ""
    for line in running.stderr:  # progress: at the start, and every 15 seconds
        seen += line
        if line.startswith("finishing: ") and not line.startswith("finishing: 0/"):
            break
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, seen + err
    found = json.loads(out)["result"]
    assert found["interrupted"]
    assert 0 < found["finished"] < 100000
    assert "Traceback" not in err
