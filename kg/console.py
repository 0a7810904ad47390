"""What the commands of every package share: how a group of them is made, and how they print.

It lives in the lowest layer, as the errors do, so that each package declares its own commands in its
`cli` module and `cli.py` joins them. Such a module imports what a command needs inside the command.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kg.plain_text import printable

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def group(text: str, examples: str = "", kind: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A group of commands; without a command it shows its help."""
    return typer.Typer(
        cls=kind,
        help=text,
        epilog=examples,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def lines(values: Mapping[str, Any]) -> str:
    """A line for each value, after its name."""
    return "\n".join(f"{key:<20} {value}" for key, value in values.items())


def stderr(line: str) -> None:
    """Tell a person something that is no result; nothing in it acts on a terminal."""
    print(printable(line), file=sys.stderr, flush=True)


def stdout(text: str) -> None:
    """Print a result; nothing that a document or a model wrote in it acts on a terminal."""
    typer.echo(printable(text))
