"""Groups of rollouts played through the real graph by a script, token-exact with a real tokenizer."""

import asyncio

from agent.episode import Budgets, Episode
from agent.formats import make_format
from agent.graph import Setup, build_graph
from agent.rollout import run_episode
from agent.task import Task
from tests.agent.scripted import LookUp, ScriptedPolicy
from tools.base import Observation, Source, Toolbox
from tools.judge import JudgeTool

TASK = Task("q1", "Which element is named after Yuri Oganessian?", ("Oganesson", "Og"))
RIGHT = (
    "<search>Oganessian</search>",
    "<judge>yes</judge>",
    "<answer>oganesson [1]</answer>",
)
ASTRAY = (
    "<search>gold</search>",
    "<judge>no</judge>",
    "<search>Oganessian</search>",
    "<judge>yes</judge>",
    "<answer>oganesson [2]</answer>",
)
WRONG = ("<search>gold</search>", "<judge>yes</judge>", "<answer>gold [1]</answer>")
BROKEN = ("no action at all", "nor here", "<answer>oganesson</answer>")
AT_ONCE = ("<answer>the element oganesson</answer>",)


class Facts(LookUp):
    """Knows two things."""

    async def run(self, arguments, context):
        known = "The element Oganesson is named after Yuri Oganessian."
        text = known if "Oganessian" in arguments.query else "Gold is a yellow metal."
        return Observation("search", sources=(Source(arguments.query, "Elements", text),))


EIGHT_TURNS = Budgets(turns=8)


def play(script, template=None, name="micro@0", budgets=EIGHT_TURNS, form="tags", **episode):
    """One rollout; `name` is the policy it is recorded under, `form` the action format."""
    tools = Toolbox([Facts(), JudgeTool()])
    policy = ScriptedPolicy(script, template)
    policy.name, policy.version = name.split("@")
    setup = Setup(policy, make_format(form, tools), tools, budgets=budgets)
    made = Episode(**{"task": TASK, **episode})
    return asyncio.run(run_episode(made, setup, build_graph(tools)))


def group(template=None, name="micro@0", scripts=(RIGHT, ASTRAY, WRONG, BROKEN), **episode):
    """Rollouts of one task, seeds 0, 1, …"""
    given = {"group": "g/q1", **episode}
    return [play(s, template, name, seed=seed, **given) for seed, s in enumerate(scripts)]
