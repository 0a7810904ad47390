"""`agent trace html`: episodes of the store as one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.store import Filter, TrajectoryStore
from agent.trajectory import Trajectory
from agent.viewer import Decode, render_html
from kg.errors import TurnwiseError, UsageError

Receipts = Callable[[Sequence[Trajectory]], Mapping[str, Mapping[str, Any]]]
"""Episodes to their credit receipts by id, as plain JSON values."""


def write_html(
    store: TrajectoryStore,
    ids: Sequence[str],
    out: Path,
    models: Path,
    receipts: Receipts | None = None,
) -> Path:
    """Write the page; without ids, of the newest episode.

    Args:
        store: holds the episodes.
        ids: or their beginnings.
        out: the file.
        models: folder of pulled models, for the tokenizer.
        receipts: makes what is shown beside the turns.

    Raises:
        UsageError: no such episode, or the file cannot be written.
    """
    chosen = [store.get(id) for id in ids] or list(store.query(Filter(limit=1)))
    if not chosen:
        raise UsageError("there is no episode yet", 'agent ask "your question"')
    made = receipts(chosen) if receipts else None
    page = render_html(chosen, _decoder(chosen, models), made)
    partial = out.with_name(f".{out.name}.part")
    try:
        partial.write_text(page, "utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return out


def _decoder(trajectories: Sequence[Trajectory], models: Path) -> Decode | None:
    """The tokenizer of the episodes' policy, when there is one policy and its model is on disk."""
    names = {t.policy.rpartition("@")[0] for t in trajectories if t.has_tokens}
    if len(names) != 1:
        return None
    from agent.policies.catalog import list_models
    from agent.policies.chat import ChatTemplate

    [name] = names
    folders = [Path(name), *(e.path for e in list_models(models) if e.name == name and e.path)]
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            try:
                return ChatTemplate.load(folder).decode
            except TurnwiseError:
                return None
    return None
