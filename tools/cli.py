"""The commands of the tools: `agent index`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kg.console import AsJson, group, lines, stderr, stdout
from kg.errors import UsageError

index = group("Build, change and inspect search indexes.")


@index.command("build", epilog="Examples: agent index build notes/ papers.jsonl.gz my-index")
def index_build(
    paths: Annotated[
        list[Path], typer.Argument(help="JSONL, Markdown, text, HTML, PDF; then OUT.")
    ],
    embedder: Annotated[
        str | None, typer.Option(help="sentence-transformers folder; default all-MiniLM-L6-v2.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the index OUT.")] = False,
    json_: AsJson = False,
) -> None:
    """Build an index: the last path is where it goes."""
    from tools.search.command import add_to, build

    if len(paths) < 2:
        raise UsageError(
            "give at least one corpus and the index folder", "agent index build notes/ OUT"
        )
    *corpus, out = paths
    report = (add_to if add else build)(corpus, out, embedder, stderr)
    stdout(json.dumps(report) if json_ else lines(report))


@index.command("delete", epilog="Example: agent index delete my-index notes/a.md#1")
def index_delete(
    index: Path,
    ids: Annotated[list[str], typer.Argument(help="Of passages or of whole documents.")],
    json_: AsJson = False,
) -> None:
    """Delete passages from an index."""
    from tools.search.command import delete_from

    report = delete_from(index, ids, stderr)
    stdout(json.dumps(report) if json_ else lines(report))


@index.command(
    "info", epilog="Examples: agent index info my-index · agent index info my-index --json"
)
def index_info(index: Path, json_: AsJson = False) -> None:
    """What an index holds and how it was built."""
    from tools.search.index import Index

    info = Index.open(index).info()
    stdout(json.dumps(info) if json_ else lines(info))
