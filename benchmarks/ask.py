"""Does the shipped policy beat its base model, alone and with retrieved passages in one prompt?

Held-out questions of the bundled library, HotpotQA and SQuAD 2.0 (answerable and unanswerable);
exact match and F1 with 95 % bootstrap intervals, and the paired difference to each baseline. An
unanswerable question is right when the system declines. All three systems run on the same engine
with greedy decoding; both baselines are told that they may decline, and how.

    python benchmarks/ask.py --data DATA [--engine vllm|transformers] [--limit 100]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # beside this file lies one named as a package

from agent.corpus_index import index_of  # noqa: E402
from agent.episode import Episode  # noqa: E402
from agent.policies.base import Policy, Request, Sampling  # noqa: E402
from agent.policies.registry import open_policy  # noqa: E402
from agent.rollout import rollout  # noqa: E402
from agent.session import make_setup  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from agent.task import Task  # noqa: E402
from eval.benchmarks import DataFolder, load  # noqa: E402
from eval.metrics import exact_match, normalise, token_f1  # noqa: E402
from eval.stats import bootstrap, paired  # noqa: E402
from tools.base import Toolbox  # noqa: E402
from tools.judge import JudgeTool  # noqa: E402
from tools.search.index import Index  # noqa: E402
from tools.search.tool import SearchTool  # noqa: E402

ALONE = (
    'Answer the question with a short phrase and nothing else. If you do not know, say "unknown".'
)
WITH = (
    "Answer the question from the passages with a short phrase and nothing else. "
    'If the passages do not hold the answer, say "unknown".'
)
NOTHING = "(no answer)"
DECLINED = ("unknown", "i dont know", "i do not know", "not mentioned", "not stated", "none")


@dataclass(frozen=True)
class Scored:
    """One prediction's scores."""

    em: float
    f1: float


def score(prediction: str, task: Task) -> Scored:
    answers = task.answers if task.answerable is not False else ()
    return Scored(exact_match(prediction, answers), token_f1(prediction, answers))


def read(text: str) -> str:
    """A baseline's answer: its first line, empty when it declines."""
    line = text.strip().split("\n")[0].strip()
    return "" if normalise(line).startswith(DECLINED) else line


async def prompted(policy: Policy, tasks: list[Task], tool: SearchTool | None) -> list[str]:
    """One prompt a question, with passages when a tool is given."""

    async def one(task: Task) -> str:
        system, question = ALONE, task.question
        if tool is not None:
            hits = await asyncio.to_thread(tool.passages, task.question)
            passages = "\n".join(f"[{i}] {h.title}: {h.text}" for i, h in enumerate(hits, 1))
            system, question = WITH, f"{passages}\n\nQuestion: {task.question}"
        messages = ({"role": "system", "content": system}, {"role": "user", "content": question})
        assert policy.template is not None
        ids = tuple(policy.template.opening(messages))
        request = Request(messages, ids, Sampling(max_tokens=32), stop=("\n",))
        [done] = await policy.generate([request])
        return read(done.text)

    return list(await asyncio.gather(*(one(task) for task in tasks)))


async def acted(policy: Policy, tasks: list[Task], tool: SearchTool, concurrency: int) -> list[str]:
    """The agent with its tools; an episode that ended without answer or abstention is never right."""
    setup = make_setup(load_settings(), policy, Toolbox([tool, JudgeTool()]))
    found: dict[str, str] = {}
    async for done in rollout([Episode(task) for task in tasks], setup, concurrency):
        found[done.task.id] = "" if done.abstained else done.answer or NOTHING
    return [found[task.id] for task in tasks]


def sets(data: Path, limit: int) -> dict[str, tuple[list[Task], Path]]:
    """Held-out tasks and index of each set."""
    indexes = load_settings().indexes_dir
    out = {}
    for name in ("library", "hotpotqa", "squad2"):
        benchmark = load(name, DataFolder(data, load_settings().benchmarks_dir), "test")
        folder = index_of(benchmark.corpus, indexes, print)
        for answerable in (True, False):
            # the published order of SQuAD groups an article's questions: spread over all of them
            tasks = [t for t in benchmark.tasks if t.answerable is answerable]
            tasks = tasks[:: max(1, len(tasks) // limit)][:limit]
            if tasks:
                out[f"{name}/{'answerable' if answerable else 'unanswerable'}"] = (tasks, folder)
    return out


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--policy", default="default", help="the policy to compare with its base")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--limit", type=int, default=100, help="questions a set")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/ask.json"))
    args = parser.parse_args()
    models, chosen = load_settings().models_dir, sets(args.data, args.limit)
    predictions: dict[str, dict[str, list[str]]] = {name: {} for name in chosen}
    search = load_settings().search

    def tool(folder: Path) -> SearchTool:
        return SearchTool(Index.open(folder), search.k, search.passage_chars, search.mode)

    base = open_policy(f"{args.engine}:{args.base}", models)
    for name, (tasks, folder) in chosen.items():
        predictions[name]["base alone"] = await prompted(base, tasks, None)
        predictions[name]["base + passages"] = await prompted(base, tasks, tool(folder))
        print(f"{name}: baselines done", flush=True)
    await base.aclose()
    shipped = open_policy(f"{args.engine}:{args.policy}", models)
    for name, (tasks, folder) in chosen.items():
        began = time.monotonic()
        found = await acted(shipped, tasks, tool(folder), args.concurrency)
        predictions[name]["shipped"] = found
        print(f"{name}: {len(tasks)} episodes in {time.monotonic() - began:.0f} s", flush=True)
    await shipped.aclose()
    report(chosen, predictions, args.out)


def report(
    chosen: dict[str, tuple[list[Task], Path]],
    predictions: dict[str, dict[str, list[str]]],
    out: Path,
) -> None:
    """Print the table and write it with every prediction."""
    whole = {name: tasks for name, (tasks, _) in chosen.items()}
    whole["squad2/all"] = [t for n in whole if n.startswith("squad2") for t in whole[n]]
    whole["library/all"] = [t for n in chosen if n.startswith("library") for t in whole[n]]
    for key in ("squad2", "library"):
        names = [n for n in chosen if n.startswith(key)]
        predictions[f"{key}/all"] = {
            system: [p for n in names for p in predictions[n][system]]
            for system in predictions[names[0]]
        }
    rows = []
    for name, tasks in whole.items():
        scored = {
            s: [score(p, t) for p, t in zip(ps, tasks, strict=True)]
            for s, ps in predictions[name].items()
        }
        for system, values in scored.items():
            em, f1 = bootstrap([v.em for v in values]), bootstrap([v.f1 for v in values])
            gap = paired([v.em for v in scored["shipped"]], [v.em for v in values])
            gap_f1 = paired([v.f1 for v in scored["shipped"]], [v.f1 for v in values])
            rows.append(
                {
                    "set": name,
                    "system": system,
                    "n": em.n,
                    "em": str(em),
                    "f1": str(f1),
                    "shipped - this, em": str(gap),
                    "shipped - this, f1": str(gap_f1),
                }
            )
            line = f"{name:<22} {system:<16} n={em.n:<4} EM {em}  F1 {f1}"
            if system != "shipped":
                line += f"   shipped better by EM {gap}, F1 {gap_f1}"
            print(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    detail = [
        {
            "set": name,
            "id": t.id,
            "question": t.question,
            "answers": t.answers,
            **{system: ps[i] for system, ps in predictions[name].items()},
        }
        for name, tasks in whole.items()
        if not name.endswith("/all")
        for i, t in enumerate(tasks)
    ]
    out.write_text(json.dumps({"rows": rows, "predictions": detail}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
