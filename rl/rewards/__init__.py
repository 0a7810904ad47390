"""Rewards: pure functions from a group of trajectories to one number a turn, by name.

`make_reward(name, options)` makes one, `missing(rewards, context, tasks)` says before a run what it
lacks, and calling it with a group and a `RewardContext` gives a float64[turns] for each trajectory.
docs/rewards.md has the table of all.
"""

from rl.rewards import (  # noqa: F401  importing a family registers its rewards
    abstention,
    anchor,
    aspects,
    attached,
    attributes,
    chemistry,
    cost,
    factuality,
    format,
    graph_process,
    information_gain,
    knowledge_boundary,
    outcome,
    plan,
    rubric,
    self_correction,
    self_knowledge,
)
from rl.rewards.aspects import Combination, Part
from rl.rewards.base import Floats, Range, Reward, RewardError, Values, padded
from rl.rewards.context import Need, RewardContext
from rl.rewards.registry import (
    make_reward,
    missing,
    register,
    require,
    require_tools,
    reward_kind,
    reward_names,
)

__all__ = [
    "Combination",
    "Floats",
    "Need",
    "Part",
    "Range",
    "Reward",
    "RewardContext",
    "RewardError",
    "Values",
    "make_reward",
    "missing",
    "padded",
    "register",
    "require",
    "require_tools",
    "reward_kind",
    "reward_names",
]
