"""The `agent` command: the commands of every package, joined; each package's are in its `cli` module.

Nothing heavy is imported before a command runs, so that `agent --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agent import cli as agent_cli
from agent import preload
from eval import cli as eval_cli
from kg.console import group, stderr
from kg.errors import TurnwiseError
from kg.plain_text import printable
from rl import cli as rl_cli
from tools import cli as tools_cli


class _RemoveLast(TyperGroup):
    """`rm` stands last, whichever package comes last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of the help."""
        return sorted(super().list_commands(ctx), key=lambda name: name == "rm")


class _Plain(logging.Formatter):
    """Log lines in which nothing that a document, a model or a server wrote acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, its traceback included."""
        return printable(super().format(record))


app = group(
    "Ask a question and get an answer with its sources, from an agent that learns from every turn.",
    'Examples: agent ask "Who discovered oxygen?" · agent doctor · agent trace list',
)
trace = group(
    "Past episodes: look, judge, give away; fork and credit load a model.", kind=_RemoveLast
)
for package in (agent_cli, rl_cli, eval_cli):
    app.add_typer(package.commands)
    trace.add_typer(package.trace)
agent_cli.doctor.add_typer(rl_cli.doctor)
app.add_typer(agent_cli.doctor, name="doctor")
app.add_typer(agent_cli.config, name="config")
app.add_typer(eval_cli.evaluation, name="eval")
app.add_typer(eval_cli.world, name="world")
app.add_typer(tools_cli.index, name="index")
app.add_typer(agent_cli.models, name="models")
app.add_typer(trace, name="trace")


def _version(value: bool) -> None:
    if value:
        from agent.console.envelope import package_version

        typer.echo(f"turnwise {package_version()}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Common to all commands."""
    if debug:
        os.environ["AGENT_DEBUG"] = "1"
    level = logging.DEBUG if debug else logging.WARNING
    handler = logging.StreamHandler()
    handler.setLevel(level)  # some libraries set their own loggers to DEBUG
    handler.setFormatter(_Plain("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("httpcore", "httpx", "asyncio", "aiosqlite", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def main() -> None:
    """Entry point: typed errors become one line and their exit code."""
    try:
        app()
    except TurnwiseError as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        stderr(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        stderr(
            f"error: {type(error).__name__}: {error}\n  try: the same command with agent --debug"
        )
        sys.exit(1)


def program() -> None:
    """`main` as the program `agent`, whose process is its own."""
    preload.announce()
    main()


if __name__ == "__main__":
    program()
