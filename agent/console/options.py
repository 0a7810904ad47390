"""Options that several commands have, each declared once, and the settings that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agent.settings import Settings
    from agent.store import TrajectoryStore

Store = Annotated[str | None, typer.Option(help="Trajectory store: a path or a database URL.")]
Corpus = Annotated[
    list[Path] | None,
    typer.Option(help="File, folder or built index to search; repeatable. Default: the library."),
]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", "-p", help="Model, folder, vllm:NAME, or http(s)://server/v1."),
]
ServerModel = Annotated[str | None, typer.Option("--model", "-m", help="Model of a server.")]
ToolNames = Annotated[str | None, typer.Option(help="Comma-separated tool names.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
Episodes = Annotated[int, typer.Option(help="Episodes at once.")]
Data = Annotated[
    str | None,
    typer.Option(envvar="AGENT_DATA", help="Folder, https:// or hf:// of the benchmark data."),
]


def settings_of(
    *,
    corpus: Sequence[Path] | None = None,
    tools: str | None = None,
    temperature: float | None = None,
    **flags: Any,
) -> Settings:
    """Settings with the given flags; those that are None are not set.

    Args:
        corpus: nothing given leaves it as it is set elsewhere.
        tools: comma-separated; an empty text is no tool.
        temperature: of the sampling.
        flags: other settings, by their names.

    Raises:
        UsageError: as `load_settings`.
    """
    from agent.settings import load_settings

    return load_settings(
        corpus=tuple(corpus) if corpus else None,
        tools=names(tools),
        sampling=given(temperature=temperature),
        **flags,
    )


def names(listed: str | None) -> tuple[str, ...] | None:
    """A comma-separated option; an empty one is an empty list, an absent one None."""
    if listed is None:
        return None
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def given(**values: Any) -> dict[str, Any] | None:
    """The values that are not None; None where all are."""
    chosen = {key: value for key, value in values.items() if value is not None}
    return chosen or None


def open_history(url: str | None) -> TrajectoryStore:
    """The trajectory store of `--store`, or of the settings."""
    from agent.store import TrajectoryStore

    return TrajectoryStore.open(settings_of(store=url).store_url)
