"""Search: cost over its raw parts, and recall@10 on SciFact and HotpotQA passages.

    python benchmarks/search.py --data DIR [--work DIR] [--out FILE]

Three measurements, each pair taken side by side in this one process:

1. a hybrid query over the sum of a raw bm25s, a raw FAISS and a raw encoder call (target <= 1.2);
2. passages a second of `build_index` over those of the encoder alone (target >= 0.9);
3. recall@10 of documents for each mode, with 95% bootstrap intervals over the questions.

`--data` (or AGENT_DATA) holds `scifact/{corpus.jsonl.gz,queries.jsonl,qrels.tsv}` and
`hotpotqa/{corpus.jsonl.gz,qa.jsonl.gz}`. With `--work` the indexes that are queried are kept for the
next run; the builds that are timed start from nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.search.build import build_index
from tools.search.embedder import Embedder
from tools.search.index import Index, Mode
from tools.search.settings import IndexSettings
from tools.search.store import PassageStore

MODES: tuple[Mode, ...] = ("lexical", "dense", "hybrid")
TIMED_QUERIES, WARM_QUERIES = 100, 10
RATE_PASSAGES, RATE_ROUNDS = 1024, 3
RESAMPLES = 2000


@dataclass(frozen=True)
class Question:
    """What is asked and the ids of the documents that answer it."""

    text: str
    gold: frozenset[str]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)


def scifact_questions(folder: Path) -> list[Question]:
    gold: dict[str, set[str]] = defaultdict(set)
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            gold[query].add(document)
    rows = read_rows(folder / "queries.jsonl")
    return [Question(row["text"], frozenset(gold[row["_id"]])) for row in rows if gold[row["_id"]]]


def hotpotqa_questions(folder: Path) -> list[Question]:
    titles = {row["id"]: row["title"] for row in read_rows(folder / "corpus.jsonl.gz")}
    questions = []
    for row in read_rows(folder / "qa.jsonl.gz"):
        named = {title for title, _ in row["supporting_facts"]}
        gold = frozenset(name for name in row["context_ids"] if titles[name] in named)
        if gold:
            questions.append(Question(row["question"], gold))
    return questions


def show(stage: str, done: int, total: int) -> None:
    end = "\n" if done == total else "\r"
    print(f"  {stage} {done}/{total}   ", end=end, file=sys.stderr, flush=True)


def mean_interval(values: list[float]) -> dict[str, float]:
    """Mean with its 95% percentile bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def document_recall(index: Index, questions: list[Question], mode: Mode) -> list[float]:
    """For each question the share of its gold documents among the first ten documents found."""
    found = index.search_many([question.text for question in questions], k=50, mode=mode)
    recalls = []
    for question, hits in zip(questions, found, strict=True):
        documents = list(dict.fromkeys(hit.document for hit in hits))[:10]
        recalls.append(len(question.gold & set(documents)) / len(question.gold))
    return recalls


def measure_recall(index: Index, questions: list[Question]) -> dict[str, Any]:
    results = {mode: mean_interval(document_recall(index, questions, mode)) for mode in MODES}
    return {"questions": len(questions), "passages": len(index), "recall@10": results}


class RawParts:
    """The three libraries called directly over the same passages, each with what it recommends."""

    def __init__(self, index: Index) -> None:
        import bm25s
        import faiss
        import Stemmer
        from sentence_transformers import SentenceTransformer

        data = index.path / index.manifest.data
        texts = [passage.indexed_text for passage in PassageStore(data / "passages.sqlite")]
        self._stemmer = Stemmer.Stemmer("english")
        self._bm25s = bm25s
        self._bm25 = bm25s.BM25()
        self._bm25.index(self._tokens(texts), show_progress=False)
        vectors = np.load(data / "vectors.npy")
        self._flat = faiss.IndexFlatIP(vectors.shape[1])
        self._flat.add(vectors)
        assert index.embedder is not None
        self.model = SentenceTransformer(str(index.embedder.folder))
        self._depth = index.manifest.settings.depth

    def _tokens(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stemmer=self._stemmer, show_progress=False)

    def lexical(self, query: str) -> None:
        """Tokenize and retrieve with bm25s."""
        self._bm25.retrieve(self._tokens([query]), k=self._depth, show_progress=False)

    def encode(self, query: str) -> Any:
        """The query's unit vector [1, dimension] by sentence-transformers."""
        return self.model.encode([query], normalize_embeddings=True, show_progress_bar=False)

    def dense(self, vector: Any) -> None:
        """Search a flat FAISS index."""
        self._flat.search(vector, self._depth)


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def measure_queries(index: Index, questions: list[Question]) -> dict[str, float]:
    """Seconds of one query, hybrid and raw parts, interleaved query by query; medians and ratio."""
    raw = RawParts(index)
    texts = [question.text for question in questions]
    random.Random(0).shuffle(texts)
    columns: dict[str, list[float]] = defaultdict(list)
    for number, text in enumerate(texts[: WARM_QUERIES + TIMED_QUERIES]):
        seconds: dict[str, float] = {}
        steps = [lambda s=seconds, t=text: time_raw(raw, t, s)]
        steps.append(lambda s=seconds, t=text: time_hybrid(index, t, s))
        # Whichever goes second finds the tokenizer's and the encoder's memory warm: take turns.
        for step in steps if number % 2 else reversed(steps):
            step()
        if number >= WARM_QUERIES:
            for name, value in seconds.items():
                columns[name].append(value)
    medians = {name: float(np.median(values)) for name, values in columns.items()}
    parts = sum(sum(columns[name]) for name in ("bm25s", "faiss", "encoder"))
    middle = sum(medians[name] for name in ("bm25s", "faiss", "encoder"))
    return {
        **{f"{name}_median_s": value for name, value in medians.items()},
        "ratio_of_sums": sum(columns["hybrid"]) / parts,
        "ratio_of_medians": medians["hybrid"] / middle,
        "queries": len(columns["hybrid"]),
    }


def time_raw(raw: RawParts, text: str, seconds: dict[str, float]) -> None:
    seconds["bm25s"], _ = timed(raw.lexical, text)
    seconds["encoder"], vector = timed(raw.encode, text)
    seconds["faiss"], _ = timed(raw.dense, vector)


def time_hybrid(index: Index, text: str, seconds: dict[str, float]) -> None:
    seconds["hybrid"], _ = timed(index.search, text, 10)


def measure_build(corpus: Path, work: Path) -> dict[str, float]:
    """Passages a second of whole builds and of the encoder alone, in alternation; the best of each."""
    sample = work / "sample.jsonl"
    rows = [row for row, _ in zip(read_rows(corpus), range(RATE_PASSAGES), strict=False)]
    sample.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    embedder = Embedder.from_settings(IndexSettings())
    embedder.load()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(embedder.folder))
    build_s, raw_s = [], []
    for _ in range(RATE_ROUNDS):
        # A folder of its own: an index or the shards of an earlier run would leave nothing to embed.
        with tempfile.TemporaryDirectory(dir=work) as out:
            seconds, report = timed(build_index, [sample], out)
            store = PassageStore(report.path / report.manifest.data / "passages.sqlite")
            texts = [passage.indexed_text for passage in store]
            store.close()
        build_s.append(seconds)
        raw_s.append(timed(lambda t=texts: model.encode(t, show_progress_bar=False))[0])
    best, raw, count = min(build_s), min(raw_s), report.passages
    rates = {"build_per_s": count / best, "encoder_per_s": count / raw}
    return {**rates, "ratio": raw / best, "passages": count}


def run(data: Path, work: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"recall": {}}
    results["build"] = measure_build(data / "hotpotqa/corpus.jsonl.gz", work)
    readers = {"scifact": scifact_questions, "hotpotqa": hotpotqa_questions}
    for name, read in readers.items():
        report = build_index([data / name / "corpus.jsonl.gz"], work / name, progress=show)
        index = Index.open(report.path)
        index.warm()
        questions = read(data / name)
        results["recall"][name] = measure_recall(index, questions)
        if name == "hotpotqa":
            results["query"] = measure_queries(index, questions)
    return results


def print_table(results: dict[str, Any]) -> None:
    query, build = results["query"], results["build"]
    parts = " + ".join(
        f"{n} {query[f'{n}_median_s'] * 1e3:.2f}" for n in ("bm25s", "faiss", "encoder")
    )
    print(f"query: hybrid {query['hybrid_median_s'] * 1e3:.2f} ms over {parts} ms")
    print(
        f"  ratio of sums {query['ratio_of_sums']:.3f}, of medians {query['ratio_of_medians']:.3f}"
    )
    print(
        f"build: {build['build_per_s']:.1f} over {build['encoder_per_s']:.1f} passages/s", end=" "
    )
    print(f"= {build['ratio']:.3f}")
    print(f"{'recall@10':<12}" + "".join(f"{mode:>24}" for mode in MODES))
    for name, result in results["recall"].items():
        cells = (result["recall@10"][mode] for mode in MODES)
        shown = (f"{c['mean']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells)
        print(f"{name:<12}" + "".join(f"{cell:>24}" for cell in shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=os.environ.get("AGENT_DATA"))
    parser.add_argument("--work", type=Path, help="keep the indexes here")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/search.json"))
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set AGENT_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results = run(Path(options.data), work)
    print_table(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
