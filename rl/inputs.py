"""What a run was begun with, besides its recipe: the tasks and passages behind the names, and the base's
files.

`inputs.json` holds digests. A run that goes on with other questions under the same name, or from another
base, would be no run that anybody could tell about: it is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.policies.model_folder import MANIFEST, weight_files, weights_version
from eval.benchmarks import Benchmark
from kg.errors import UsageError
from rl import run_folder

_FILE = "inputs.json"
_BESIDE = (".json", ".jinja", ".txt", ".model")  # configuration, tokenizer and chat template

Digests = dict[str, str]


def claim_inputs(
    run: Path, asked: Sequence[Benchmark], held: Sequence[Benchmark], base: Path
) -> None:
    """Note what a run begins with, or see that it is still the same; in the main process alone.

    Args:
        run: its folder.
        asked, held: sets that are trained on and measured on, narrowed to the tasks of the recipe.
        base: model folder.

    Raises:
        UsageError: names what is not as it was, or a corpus that does not exist; or the folder cannot be
            written.
    """
    found = {f"the training set '{one.name}'": digest_of(one) for one in asked}
    found |= {f"the validation set '{one.name}'": digest_of(one) for one in held}
    passages = {
        f"what is searched for '{one.name}' ({path.name}, {number})": _of_corpus(path, one.name)
        for one in (*asked, *held)
        for number, path in enumerate((*one.corpus, *one.graph), start=1)
    }
    found |= passages
    found |= {f"the base's {name}": value for name, value in files_of(base).items()}
    path = run / _FILE
    before = _read(path) if path.is_file() else found
    if not any(name in before for name in passages):  # there was a time when they were not noted
        before = {**before, **passages}
    if not held:  # there was a time when sets were noted that were never measured on
        before = {name: value for name, value in before.items() if not _unasked(name, asked)}
    if changed := sorted(
        name for name in before.keys() | found.keys() if before.get(name) != found.get(name)
    ):
        raise UsageError(
            f"{run} was begun with other data: {_listed(changed)} changed since",
            "put it back as it was, or begin a run of its own with another --out",
        )
    if not path.is_file() or _read(path) != found:
        run_folder.write(path, found)


def _unasked(name: str, asked: Sequence[Benchmark]) -> bool:
    """Whether an input is of no set that is trained on, in a run that measures on none."""
    of = re.match(r"(?:the validation set|what is searched for) '(.*?)'(?: \(|$)", name)
    return of is not None and (
        name.startswith("the validation") or of[1] not in {one.name for one in asked}
    )


def digest_of(tasks: Benchmark) -> str:
    """Twelve hex digits of a set's tasks, in their order."""
    lines = (json.dumps(task.to_dict(), sort_keys=True) for task in tasks.tasks)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def files_of(base: Path) -> Digests:
    """`weights`, and each file of configuration and tokenizer, to twelve hex digits."""
    skipped = {MANIFEST, *(path.name for path in weight_files(base))}
    beside = (p for p in sorted(base.iterdir()) if p.suffix in _BESIDE and p.name not in skipped)
    return {"weights": weights_version(base), **{p.name: _digest(p) for p in beside}}


def _of_corpus(path: Path, name: str) -> str:
    """Twelve hex digits of the file or folder that is searched for a set of this name."""
    if not path.exists():
        raise UsageError(
            f"the corpus {path} of '{name}' does not exist",
            "check rollouts.agent.corpus, or what the file of questions names",
        )
    if not path.is_dir():
        return _digest(path)
    files = sorted(one for one in path.rglob("*") if one.is_file())
    lines = "".join(f"{one.relative_to(path)} {_digest(one)}\n" for one in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _read(path: Path) -> Mapping[str, str]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "choose another --out") from error
    return found if isinstance(found, dict) else {}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
