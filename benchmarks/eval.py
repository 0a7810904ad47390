"""What the evaluation harness costs: time of `agent eval` over that of the bare policy.

The bundled library's questions run through the whole harness (graph, real search, store) at 64 at once;
the bare engine then replays the very same requests, and the bare index the very same searches, in the
same batches. All in one process, alternating, each pass without prefixes of the passes before, with the
libraries that `agent eval` starts itself with. `ratio` is the harness over the engine alone, median
over median; `ratios` are those of each pass to the one beside it, which tell how much the machine
varies; `ratio_with_search` is over engine and searches, which share the machine. `report_s` is what
scoring a run and writing its report takes afterwards, in no ratio.

    python benchmarks/eval.py [--engine vllm|transformers] [--questions 192] [--passes 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this file's name is that of a package

import eval.run as harness  # noqa: E402
from agent import preload  # noqa: E402
from agent.corpus_index import index_of  # noqa: E402
from agent.policies.base import Request  # noqa: E402
from agent.policies.catalog import resolve  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from benchmarks.rollout import Recorder, bare, by_episode, count, make_engine  # noqa: E402
from eval.command import score  # noqa: E402
from eval.folder import open_store  # noqa: E402
from tools.base import Source  # noqa: E402
from tools.search.index import Index  # noqa: E402
from tools.search.tool import SearchTool  # noqa: E402


def through_harness(recorder: Recorder, questions: int, concurrency: int, out: Path) -> float:
    """Wall time of a run, from its first question to its last."""
    setattr(harness, "policy_of", lambda *_, **__: recorder)  # noqa: B010
    request = harness.EvalRequest(
        benchmarks=("library",), limit=questions, concurrency=concurrency, cache=False
    )
    times: list[float] = []
    harness.run(request, load_settings(), out, advance=lambda *_: times.append(time.perf_counter()))
    return times[-1] - times[0]


def reported(out: Path) -> float:
    """Seconds of `agent eval score`."""
    began = time.perf_counter()
    score(out, "", as_json=True)
    return time.perf_counter() - began


def watch_searches(batches: list[list[str]]) -> None:
    """Note the queries of every batch that the search tool answers."""
    answer = SearchTool.passages_of

    def noted(tool: SearchTool, queries: Sequence[str]) -> list[tuple[Source, ...]]:
        batches.append(list(queries))
        return answer(tool, queries)

    setattr(SearchTool, "passages_of", noted)  # noqa: B010


def bare_search(batches: Sequence[Sequence[str]]) -> float:
    """Seconds that the bare index takes for the same searches."""
    settings = load_settings()
    with Index.open(index_of(settings.corpus, settings.indexes_dir)) as index:
        index.search("warm", settings.search.k, settings.search.mode)
        began = time.perf_counter()
        for queries in batches:
            index.search_many(queries, settings.search.k, settings.search.mode)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--policy", default="default")
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/eval.json"))
    args = parser.parse_args()
    preload.announce()
    preload.start_with(preload.OPENMP)
    engine = make_engine(args.engine, resolve(args.policy, load_settings().models_dir), True)
    recorder = Recorder(engine)
    batches: list[list[str]] = []
    watch_searches(batches)
    with tempfile.TemporaryDirectory() as root:
        through_harness(recorder, 8, 8, Path(root) / "warm")  # the first requests are slow
        recorder.calls.clear()
        batches.clear()
        whole: list[float] = []
        reports: list[float] = []
        policy: list[float] = []
        requests: list[list[Request]] = []
        for number in range(args.passes):
            out = Path(root) / str(number)
            asyncio.run(engine.forget_prefixes())
            whole.append(through_harness(recorder, args.questions, args.concurrency, out))
            reports.append(reported(out))
            if not requests:
                tokens, searched = count(recorder.calls), list(batches)
                with open_store(out) as store:
                    requests = by_episode(recorder, list(store.query()))
            asyncio.run(engine.forget_prefixes())
            policy.append(asyncio.run(bare(engine, requests, args.concurrency)))
    asyncio.run(engine.aclose())
    search = min(bare_search(searched) for _ in range(2))
    row = {
        "engine": args.engine,
        "openmp": "Intel's" if preload.OPENMP.preloaded(os.environ) else "PyTorch's",
        "questions": len(requests),
        "concurrency": args.concurrency,
        "tokens": tokens,
        "harness_s": [round(one, 2) for one in whole],
        "bare_policy_s": [round(one, 2) for one in policy],
        "bare_search_s": round(search, 2),
        "report_s": [round(one, 2) for one in reports],
        "searches": sum(map(len, searched)),
        "search_batches": len(searched),
        "ratios": [round(one / other, 3) for one, other in zip(whole, policy, strict=True)],
        "ratio": round(statistics.median(whole) / statistics.median(policy), 3),
        "ratio_with_search": round(
            statistics.median(whole) / (statistics.median(policy) + search), 3
        ),
    }
    print(json.dumps(row))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
