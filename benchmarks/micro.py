"""How well a policy answers on fictional worlds that no training has seen, by kind of question.

Each world is made, indexed and asked through the whole agent (its test part only) with lexical search; a
second pass without tools, cut off after one short reply, shows what can be had by guessing, and a third,
whose search shows the passages of the question's gold evidence whatever it is asked, what finding them
is worth. Figures are pooled over the worlds, intervals over questions. The seeds are apart from those of
the recipes and from those that settings were chosen on.

    python benchmarks/micro.py [--policy micro] [--worlds 5] [--first-seed 910001]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # beside this file lies one named as a package

import eval.run as eval_run  # noqa: E402
from agent.formats import make_format  # noqa: E402
from agent.graph import Setup  # noqa: E402
from agent.policies.base import Policy  # noqa: E402
from agent.settings import Settings, load_settings  # noqa: E402
from eval.benchmarks import Benchmark  # noqa: E402
from eval.fictional.make import make_world  # noqa: E402
from eval.run import EvalRequest, run  # noqa: E402
from eval.sample import Sample  # noqa: E402
from eval.score import score_run  # noqa: E402
from eval.stats import bootstrap  # noqa: E402
from tools.base import Observation, Source, Toolbox, ToolContext  # noqa: E402
from tools.search.tool import SearchArguments, SearchTool, excerpt  # noqa: E402

ENTITIES, QUESTIONS = 200, 400
#: Kinds with an answer that a guess often gives: one of two names in the question, and a small number.
GUESSED = ("comparison", "counting")


def answered(
    worlds: Sequence[Path], policy: str, out: Path, concurrency: int, **changes: Any
) -> tuple[Sample, ...]:
    """Scored episodes of all worlds."""
    settings = load_settings(policy=policy, search={"mode": "lexical"}, **changes)
    request = EvalRequest(benchmarks=tuple(map(str, worlds)), concurrency=concurrency, cache=False)
    run(request, settings, out, notify=lambda line: print(line, file=sys.stderr))
    return score_run(out).samples


class Oracle(SearchTool):
    """A search that shows the gold evidence of the episode's question, and nothing else.

    Args:
        plain: the search that it stands for.
        world: folder with the passages and the questions, whose words name one each.
    """

    def __init__(self, plain: SearchTool, world: Path) -> None:
        super().__init__(plain.index, plain.k, plain.passage_chars, plain.mode)
        passages = {row["id"]: row for row in _rows(world / "corpus.jsonl")}
        self._gold = {
            task["question"]: [passages[id] for id in task.get("evidence", ())]
            for task in _rows(world / "tasks-test.jsonl")
        }

    async def run(self, arguments: SearchArguments, context: ToolContext) -> Observation:
        """The gold passages; of a question that has none, what the plain search shows."""
        if not (gold := self._gold[context.question]):
            return await super().run(arguments, context)
        query, cut = arguments.query, self.passage_chars
        found = tuple(Source(p["id"], p["title"], excerpt(p["text"], query, cut)) for p in gold)
        return Observation(self.name, sources=found)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def oracles() -> Iterator[None]:
    """Evaluations within have an `Oracle` in the place of their search."""
    plain = eval_run.setup_of

    def made(settings: Settings, policy: Policy, found: Benchmark, notify: Any) -> Setup:
        setup, world = plain(settings, policy, found, notify), found.corpus[0].parent
        tools = Toolbox(Oracle(t, world) if isinstance(t, SearchTool) else t for t in setup.tools)
        return replace(setup, tools=tools, format=make_format(setup.format.name, tools))

    with patch.object(eval_run, "setup_of", made):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="micro")
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=910_001)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/micro.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        worlds = [Path(root) / f"w{args.first_seed + n}" for n in range(args.worlds)]
        for n, world in enumerate(worlds):
            make_world(world, args.first_seed + n, ENTITIES, QUESTIONS)
        found = answered(worlds, args.policy, Path(root) / "run", args.concurrency)
        short = {"turns": 1, "tokens": 48, "repairs": 0}
        blind = answered(
            worlds, args.policy, Path(root) / "blind", args.concurrency, tools=(), budgets=short
        )
        with oracles():
            shown = answered(worlds, args.policy, Path(root) / "shown", args.concurrency)
    facts = {
        "policy": args.policy,
        "right": by_kind(found),
        "closed book": by_kind(blind),
        "with the gold passages": by_kind(shown),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1))


def by_kind(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Print the share of right answers; n, mean, low and high of each kind and of some sets of kinds."""
    kinds = sorted({s.kind for s in samples})
    rows = {kind: [s for s in samples if s.kind == kind] for kind in kinds}
    rows["all"] = list(samples)
    rows["answerable"] = [s for s in samples if s.answerable]
    rows["answerable, open"] = [s for s in rows["answerable"] if s.kind not in GUESSED]
    print()
    facts = {}
    for name, chosen in rows.items():
        value = bootstrap([s.right for s in chosen])
        print(f"{name:<24} {value.n:>5} {value}")
        facts[name] = [value.n, value.mean, value.low, value.high]
    return facts


if __name__ == "__main__":
    main()
