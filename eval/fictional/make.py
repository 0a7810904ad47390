"""Write a world: `corpus.jsonl`, `graph.nt`, `tasks-train.jsonl`, `tasks-test.jsonl`, `taught.jsonl`,
`world.json`. The same seed and sizes give the same bytes on every machine. Memory grows with the number
of questions, which are held until they are written, and not with the number of things or passages.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from eval.fictional.chains import wordings
from eval.fictional.graph import triples
from eval.fictional.passages import passages, source_of
from eval.fictional.questions import questions
from eval.fictional.split import split_of
from eval.fictional.world import World, told
from kg.errors import UsageError

WORLD_FORMAT = 1
_FACTS = "world.json"
_AGAIN = "make the world again: agent world make DIR"
_EVERY = 1000

Advance = Callable[[str, int, int], None]


def make_world(
    out: Path,
    seed: int,
    entities: int,
    count: int,
    taught: float = 0.0,
    advance: Advance = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Write a world into a folder; gives what `world.json` says.

    Args:
        out: folder, made when it is not there; files of another world in it are replaced. It is a world
            once all of them are there: `world.json` goes first and comes last.
        seed: of everything.
        entities: about how many things; a corpus has about 1.7 passages a thing.
        count: questions, at most.
        taught: share of facts that `taught.jsonl` holds as closed-book questions.
        advance: gets stage, done and total.

    Raises:
        UsageError: a size or share that cannot be, or a file that cannot be written.
    """
    if count < 0:
        raise UsageError(f"{count} questions cannot be made")
    world = World(seed, entities, taught)
    things = sum(world.counts.values())
    facts: dict[str, Any] = {
        "format": WORLD_FORMAT,
        "seed": seed,
        "entities": things,
        "kinds": dict(world.counts),
        "taught": taught,
    }
    writer = _Writer(out, advance)
    writer.remove(_FACTS)
    corpus = (json.dumps(one.row(), ensure_ascii=False) for one in passages(world))
    facts["passages"] = writer.write("corpus.jsonl", corpus, 0)
    facts["triples"] = writer.write("graph.nt", triples(world), 0)
    facts["taught_facts"] = writer.write("taught.jsonl", _taught(world), 0)
    split: dict[str, list[str]] = {"train": [], "test": []}
    kinds: dict[str, int] = {}
    for number, made in enumerate(questions(world, count)):
        task = made.task(world, number)
        kinds[task.kind] = kinds.get(task.kind, 0) + 1
        line = json.dumps(task.to_dict(), ensure_ascii=False, sort_keys=True)
        split[task.meta["split"]].append(line)
        if number % _EVERY == 0:
            advance("questions", number, count)
    for name, lines in split.items():
        facts[f"tasks_{name}"] = writer.write(f"tasks-{name}.jsonl", lines, len(lines))
    facts["questions"] = dict(sorted(kinds.items()))
    facts["sha256"] = writer.digests
    writer.write(_FACTS, [json.dumps(facts, indent=1)], 1)
    return facts


def read_world(world: Path) -> dict[str, Any]:
    """What `world.json` says.

    Raises:
        UsageError: it is missing, damaged or of another format.
    """
    path = world / _FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if facts.get("format") != WORLD_FORMAT:
            raise UsageError(f"{path} has format {facts.get('format')}; this reads {WORLD_FORMAT}")
    except FileNotFoundError as error:
        raise UsageError(f"{world} is not a world", "agent world make DIR") from error
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return facts


def require_own(world: Path, facts: dict[str, Any], *names: str) -> None:
    """See that files of a world are those that it was made with: what one says of another is wrong
    otherwise. A gigabyte takes less than a second.

    Args:
        world: the folder.
        facts: what its `world.json` says.
        names: of the files.

    Raises:
        UsageError: one is missing, or is not the one that `world.json` tells of.
    """
    for name in names:
        path = world / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", _AGAIN) from error
        if found != facts.get("sha256", {}).get(name):
            raise UsageError(f"{path} is not the file that {world / _FACTS} tells of", _AGAIN)


def _taught(world: World) -> Iterator[str]:
    """Facts to be taught, as closed-book questions with their answers."""
    if not world.taught_share:
        return
    for subject in world.entities():
        for of in told(subject.kind):
            value = world.value(subject, of)
            if value is None or not world.taught(subject, of):
                continue
            row = {
                "id": f"{subject.id}#{of.name}",
                "question": of.question.format(s=world.name(subject)),
                "answers": [world.name(value)],
                "evidence": [source_of(world, subject, of)],
                "meta": {
                    "split": split_of(world, [subject]),
                    "wordings": wordings(world, subject, of),
                },
            }
            yield json.dumps(row, ensure_ascii=False)


class _Writer:
    """Writes files line by line, each whole or not at all, and keeps their digests."""

    def __init__(self, out: Path, advance: Advance) -> None:
        self._out = out
        self._advance = advance
        self.digests: dict[str, str] = {}

    def remove(self, name: str) -> None:
        """Take away what an earlier world has left."""
        path = self._out / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def write(self, name: str, lines: Iterable[str], total: int) -> int:
        """Gives the number of lines."""
        path = self._out / name
        partial, digest, count = path.with_name(f".{name}.part"), hashlib.sha256(), 0
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                for line in lines:
                    data = f"{line}\n".encode()
                    file.write(data)
                    digest.update(data)
                    count += 1
                    if count % _EVERY == 0:
                        self._advance(name, count, total)
            os.replace(partial, path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
        self._advance(name, count, count)
        self.digests[name] = digest.hexdigest()
        return count
