"""The commands of the runtime: ask, doctor, and the groups doctor, config, models and trace.

`commands`, `doctor` and `trace` hold what `cli.py` joins with the commands of other packages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.console.options import (
    Corpus,
    PolicyName,
    ServerModel,
    Store,
    Temperature,
    ToolNames,
    given,
    open_history,
    settings_of,
)
from kg.console import AsJson, group, stderr, stdout
from kg.errors import TurnwiseError

if TYPE_CHECKING:
    from agent.console.printer import Printer
    from agent.doctor import Check
    from agent.store import Summary

commands = typer.Typer()
config = group("Look at the settings.")
models = group("List and fetch models.")
doctor = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
trace = typer.Typer()

Question = Annotated[
    str | None, typer.Argument(help="The question; - or a pipe reads it from stdin.")
]
ApiKey = Annotated[
    str | None, typer.Option(help="Key of a server; better as AGENT_API_KEY.", show_default=False)
]
Format = Annotated[str | None, typer.Option("--format", help="Action format: tags or tool_call.")]
Output = Annotated[str, typer.Option(help="text, json or stream-json (one event a line).")]
Streamed = Annotated[bool, typer.Option("--trace", "-v", help="Stream the policy's own text too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="The answer alone.")]
GoesOn = Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")]
Thread = Annotated[
    str | None, typer.Option("--resume", "--thread", help="Go on with the conversation of an id.")
]
Status = Annotated[
    str | None, typer.Option(help="answered, abstained, truncated, over_budget or failed.")
]
SampledBy = Annotated[str | None, typer.Option(help="name@version, as agent trace list tells it.")]
NotLogged = Annotated[bool, typer.Option("--no-log", "-n", help="Do not store the episode.")]
FailsOnAbstain = Annotated[
    bool, typer.Option("--fail-on-abstain", help="Exit with 3 when there is no answer.")
]


@commands.command(
    epilog='Examples: agent ask "Which element is named after Lise Meitner?" · '
    'agent ask --corpus notes/ --json "When is it due?" · echo "Who was Marie Curie?" | agent ask'
)
def ask(
    question: Question = None,
    corpus: Corpus = None,
    policy: PolicyName = None,
    model: ServerModel = None,
    api_key: ApiKey = None,
    tools: ToolNames = None,
    format: Format = None,
    system: Annotated[str | None, typer.Option(help="Replace the system prompt.")] = None,
    json_: AsJson = False,
    output_format: Output = "text",
    trace: Streamed = False,
    quiet: Quiet = False,
    continue_: GoesOn = False,
    resume: Thread = None,
    no_log: NotLogged = False,
    fail_on_abstain: FailsOnAbstain = False,
    max_turns: Annotated[int | None, typer.Option(help="Policy calls.")] = None,
    max_tool_calls: Annotated[int | None, typer.Option(help="Tool calls.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Sampled tokens, in all.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    temperature: Temperature = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    store: Store = None,
) -> None:
    """Answer a question with sources; without a question, open a conversation.

    Exit codes: 0 answered, 1 unexpected failure, 2 usage, 3 abstained (with --fail-on-abstain),
    4 budget spent (the best answer so far is printed), 5 policy unavailable, 6 tool unavailable,
    130 interrupted.
    """
    from agent.console.printer import make_printer

    printer = make_printer("json" if json_ else output_format, trace, quiet)
    budgets = given(turns=max_turns, tool_calls=max_tool_calls, tokens=max_tokens, seconds=timeout)

    def answered() -> int:
        from agent.console.ask import Ask, read_question, run

        settings = settings_of(
            corpus=corpus,
            policy=policy,
            model=model,
            api_key=api_key,
            tools=tools,
            format=format,
            system=system,
            store=store,
            seed=seed,
            budgets=budgets,
            temperature=temperature,
        )
        asked = read_question(question, resuming=bool(resume))
        thread = resume or ("latest" if continue_ else "")
        return run(Ask(asked, thread, not no_log, fail_on_abstain), settings, printer)

    raise typer.Exit(_told(answered, printer))


def _told(work: Callable[[], int], printer: Printer) -> int:
    """The exit code of `work`; an error goes to the printer: with --json it is told as JSON."""
    try:
        return work()
    except Exception as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        if not isinstance(error, TurnwiseError):
            error = TurnwiseError(f"{type(error).__name__}: {error}", "agent --debug ask …")
        printer.error(error)
        return error.exit_code


@doctor.callback(
    epilog="Examples: agent doctor · agent doctor --json · agent doctor --policy vllm:default · "
    "agent doctor train"
)
def _doctor(
    context: typer.Context,
    policy: PolicyName = None,
    corpus: Corpus = None,
    json_: AsJson = False,
) -> None:
    """Check versions, engines, model, index, store, disk and TLS, and name the next command."""
    if context.invoked_subcommand is not None:
        return
    from agent.doctor import check

    raise typer.Exit(show_checks(check(settings_of(policy=policy, corpus=corpus)), json_))


def show_checks(checks: Sequence[Check], as_json: bool) -> int:
    """Print what a doctor found; gives the exit code."""
    from agent.doctor import summary

    if as_json:
        typer.echo(json.dumps([asdict(c) for c in checks]))
        return summary(checks)
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    for c in checks:
        mark = typer.style(f"{c.status:<4}", fg=colours[c.status])
        typer.echo(f"{mark} {c.name:<14} {c.detail}" + (f"\n     try: {c.hint}" if c.hint else ""))
    return summary(checks)


@config.command("show", epilog="Examples: agent config show · agent config show --json")
def config_show(json_: AsJson = False) -> None:
    """Every setting, and whether it comes from the environment, a file or the default."""
    from agent.settings import origins

    rows = [{"name": n, "value": value, "origin": origin} for n, value, origin in origins()]
    if json_:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['name']:<18} {json.dumps(row['value'])}  ({row['origin']})")


@models.command("list", epilog="Examples: agent models list · agent models list --json")
def models_list(json_: AsJson = False) -> None:
    """Known models, and which are on disk."""
    from agent.policies.catalog import list_models

    entries = [entry.model_dump(mode="json") for entry in list_models(settings_of().models_dir)]
    if json_:
        typer.echo(json.dumps(entries, default=str))
        return
    for e in entries:
        state = str(e["path"]) if e["cached"] else "not pulled"
        typer.echo(f"{e['name']:<24} {e['parameters']:>13,} {e['licence']:<12} {state}")


@models.command(
    "pull", epilog="Examples: agent models pull default · agent models pull owner/model"
)
def models_pull(
    name: Annotated[str, typer.Argument(help="As agent models list has it, or owner/model.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch again over a broken copy.")] = False,
) -> None:
    """Fetch a model and check its hash."""
    from agent.policies.catalog import pull

    typer.echo(str(pull(name, settings_of().models_dir, stderr, force=force)))


@trace.command(
    "list", epilog="Examples: agent trace list · agent trace list --status abstained --json"
)
def trace_list(
    limit: Annotated[int, typer.Option(help="Newest first.")] = 20,
    status: Status = None,
    policy: SampledBy = None,
    task: Annotated[str | None, typer.Option(help="Task id.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO time.")] = None,
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """Past episodes, newest first."""
    from agent.store import Filter

    chosen = Filter(limit=limit, status=status, policy=policy, task=task, since=since)
    with open_history(store) as opened:
        _summaries(list(opened.summaries(chosen)), json_)


@trace.command("search", epilog='Example: agent trace search "periodic table"')
def trace_search(
    text: str,
    limit: Annotated[int, typer.Option(help="Best first.")] = 20,
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """Full-text search over questions and answers."""
    with open_history(store) as opened:
        _summaries(list(opened.search(text, limit)), json_)


@trace.command("show", epilog="Examples: agent trace show 3f2a · agent trace show 3f2a --json")
def trace_show(id: str, store: Store = None, json_: AsJson = False) -> None:
    """One episode, step by step; a prefix of its id is enough."""
    from agent.viewer import render_text

    with open_history(store) as opened:
        trajectory = opened.get(id)
    typer.echo(json.dumps(trajectory.to_dict()) if json_ else render_text(trajectory))


@trace.command(
    "export", epilog="Examples: agent trace export all.jsonl · agent trace export all.parquet"
)
def trace_export(
    out: Path,
    status: Status = None,
    policy: SampledBy = None,
    store: Store = None,
) -> None:
    """Write episodes to .jsonl, .jsonl.gz or .parquet, without loss."""
    from agent.exchange import export
    from agent.store import Filter

    problems: list[str] = []
    with open_history(store) as opened:
        count = export(opened, out, Filter(status=status, policy=policy), problems)
    for problem in problems:
        stderr(f"skipped: {problem}")
    typer.echo(f"{count} episodes written to {out}")


@trace.command(
    "import",
    epilog="Examples: agent trace import all.jsonl · "
    "agent trace import damaged.sqlite --store new.sqlite",
)
def trace_import(path: Path, store: Store = None) -> None:
    """Read episodes of an export into the store; known ids are left alone.

    PATH may be another SQLite store: of a damaged one what can be read comes over.
    """
    from agent.exchange import import_

    with open_history(store) as opened:
        report = import_(opened, path)
    for problem in report.problems:
        stderr(f"skipped: {problem}")
    typer.echo(f"{report.added} episodes added, {report.known} known, {report.skipped} skipped")


@trace.command("rm", epilog="Example: agent trace rm 3f2a…")
def trace_rm(ids: list[str], store: Store = None) -> None:
    """Delete episodes, and the conversations that they belong to."""
    from agent.threads import forget

    settings = settings_of(store=store)
    with open_history(store) as opened:
        typer.echo(f"{forget(opened, ids, settings.threads_path)} episodes deleted")


def _summaries(found: Sequence[Summary], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in found], default=str))
        return
    for row in found:
        question = " ".join(row.question.split())
        stdout(
            f"{row.id[:8]}  {row.created[:19]}  {row.status:<11} {row.policy:<22}  "
            f"{question[:60]:<60} {row.answer}"
        )
