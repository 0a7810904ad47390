"""The `agent` command: parse flags, call one function of a package, show the result.

Nothing heavy is imported before a command runs, so that `agent --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kg.errors import TurnwiseError, UsageError

if TYPE_CHECKING:
    from agent.console.printer import Printer
    from agent.settings import Settings
    from agent.store import TrajectoryStore

_HELP = {"help_option_names": ["-h", "--help"]}


class _RunByDefault(TyperGroup):
    """`agent eval NAME` is `agent eval run NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `run` where no sub-command is named."""
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _app(text: str, examples: str = "", group: type[TyperGroup] = TyperGroup) -> typer.Typer:
    return typer.Typer(
        cls=group,
        help=text,
        epilog=examples,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_HELP,
    )


app = _app(
    "Ask a question and get an answer with its sources, from an agent that learns from every turn.",
    'Examples: agent ask "Who discovered oxygen?" · agent doctor · agent trace list',
)
index_app = _app("Build, change and inspect search indexes.")
models_app = _app("List and fetch models.")
trace_app = _app("Look at past episodes; only fork needs a model.")
eval_app = _app(
    "Run question sets and score them: agent eval BENCHMARK… --out DIR.", group=_RunByDefault
)
world_app = _app("Make and inspect fictional worlds.")
config_app = _app("Look at the settings.")
app.add_typer(config_app, name="config")
app.add_typer(eval_app, name="eval")
app.add_typer(world_app, name="world")
app.add_typer(index_app, name="index")
app.add_typer(models_app, name="models")
app.add_typer(trace_app, name="trace")

Store = Annotated[str | None, typer.Option(help="Trajectory store: a path or a database URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Corpus = Annotated[
    list[Path] | None,
    typer.Option(help="File, folder or built index to search; repeatable. Default: the library."),
]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", "-p", help="Model, folder, vllm:NAME, or http(s)://server/v1."),
]


def _version(value: bool) -> None:
    if value:
        from agent.console.envelope import package_version

        typer.echo(f"turnwise {package_version()}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option(help="Show tracebacks and debug logs.")] = False,
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
    logging.basicConfig(
        level=level, format="%(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    for noisy in ("httpcore", "httpx", "asyncio", "aiosqlite", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@app.command(
    epilog='Examples: agent ask "Which element is named after Lise Meitner?" · '
    'agent ask --corpus notes/ --json "When is it due?" · echo "Who was Marie Curie?" | agent ask'
)
def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question; - or a pipe reads it from stdin.")
    ] = None,
    corpus: Corpus = None,
    policy: PolicyName = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of a server.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key of a server; better as AGENT_API_KEY.", show_default=False),
    ] = None,
    tools: Annotated[str | None, typer.Option(help="Comma-separated tool names.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Action format: tags or tool_call.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Replace the system prompt.")] = None,
    json_: AsJson = False,
    output_format: Annotated[
        str, typer.Option(help="text, json or stream-json (one event a line).")
    ] = "text",
    trace: Annotated[
        bool, typer.Option("--trace", "-v", help="Stream the policy's own text too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The answer alone.")] = False,
    continue_: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", "--thread", help="Go on with the conversation of an id."),
    ] = None,
    no_log: Annotated[
        bool, typer.Option("--no-log", "-n", help="Do not store the episode.")
    ] = False,
    fail_on_abstain: Annotated[
        bool, typer.Option("--fail-on-abstain", help="Exit with 3 when there is no answer.")
    ] = False,
    max_turns: Annotated[int | None, typer.Option(help="Policy calls.")] = None,
    max_tool_calls: Annotated[int | None, typer.Option(help="Tool calls.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Sampled tokens, in all.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    store: Store = None,
) -> None:
    """Answer a question with sources; without a question, open a conversation.

    Exit codes: 0 answered, 1 unexpected failure, 2 usage, 3 abstained (with --fail-on-abstain),
    4 budget spent (the best answer so far is printed), 5 policy unavailable, 6 tool unavailable,
    130 interrupted.
    """
    printer = _printer("json" if json_ else output_format, trace, quiet)
    try:
        from agent.console.ask import Ask, read_question, run

        settings = _settings(
            corpus=tuple(corpus) if corpus else None,
            policy=policy,
            model=model,
            api_key=api_key,
            tools=_names(tools),
            format=format,
            system=system,
            store=store,
            seed=seed,
            budgets=_given(
                turns=max_turns, tool_calls=max_tool_calls, tokens=max_tokens, seconds=timeout
            ),
            sampling=_given(temperature=temperature),
        )
        thread = resume or ("latest" if continue_ else "")
        asked = read_question(question)
        if resume and question is None and not (asked or "").strip():
            asked = None  # nothing new is asked: the unfinished question goes on
        code = run(Ask(asked, thread, not no_log, fail_on_abstain), settings, printer)
    except TurnwiseError as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        printer.error(error)
        code = error.exit_code
    except Exception as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        printer.error(TurnwiseError(f"{type(error).__name__}: {error}", "agent --debug ask …"))
        code = 1
    raise typer.Exit(code)


@app.command(
    epilog="Examples: agent doctor · agent doctor --json · agent doctor --policy vllm:default"
)
def doctor(policy: PolicyName = None, corpus: Corpus = None, json_: AsJson = False) -> None:
    """Check versions, engines, model, index, store, disk and TLS, and name the next command."""
    from agent.doctor import check, summary

    checks = check(_settings(policy=policy, corpus=tuple(corpus) if corpus else None))
    if json_:
        typer.echo(json.dumps([vars_of(c) for c in checks]))
    else:
        colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
        for c in checks:
            mark = typer.style(f"{c.status:<4}", fg=colours[c.status])
            typer.echo(
                f"{mark} {c.name:<14} {c.detail}" + (f"\n     try: {c.hint}" if c.hint else "")
            )
    raise typer.Exit(summary(checks))


@app.command(
    epilog="Examples: agent sft cold_start --data DATA --out runs/cold_start · "
    "agent sft my.yaml --demonstrations demos.jsonl.gz --out runs/mine --set optimizer.lr=1e-4"
)
def sft(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships, or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one is resumed.")],
    data: Annotated[
        str | None,
        typer.Option(envvar="AGENT_DATA", help="Folder, https:// or hf:// of the benchmark data."),
    ] = None,
    demonstrations: Annotated[
        list[Path] | None,
        typer.Option(help="Trajectories (JSONL) instead of the scripted expert's."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, over the recipe.")
    ] = None,
) -> None:
    """Fine-tune a policy on demonstration trajectories (cold start)."""
    from rl.cold_start import run

    settings = _settings()
    _trained(run(recipe, set_ or [], out, data, demonstrations or [], settings, _stderr))


@app.command(
    epilog="Examples: agent collect hotpotqa --data DATA --out runs/a.sqlite --group 8 · "
    "agent collect worlds/a --policy micro --out postgresql://host/turnwise --limit 200"
)
def collect(
    tasks: Annotated[list[str], typer.Argument(help="Sets, JSONL files of questions, or worlds.")],
    out: Annotated[str, typer.Option(help="Trajectory store: a path or a database URL.")],
    group: Annotated[int, typer.Option(help="Rollouts a task.")] = 8,
    policy: PolicyName = None,
    data: Annotated[
        str | None,
        typer.Option(envvar="AGENT_DATA", help="Folder, https:// or hf:// of the benchmark data."),
    ] = None,
    corpus: Corpus = None,
    tools: Annotated[str | None, typer.Option(help="Comma-separated tool names.")] = None,
    limit: Annotated[int, typer.Option(help="Tasks a set, spread over it; 0 is all.")] = 0,
    split: Annotated[str, typer.Option(help="Part of each set: train or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Of each group's first rollout.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Episodes at once.")] = 8,
    ray: Annotated[int, typer.Option(help="Ray actors, each with its own engine; 0 for none.")] = 0,
    json_: AsJson = False,
) -> None:
    """Collect groups of rollouts to train on; the same command goes on after a kill."""
    from rl.command import collected

    settings = _settings(
        policy=policy, corpus=tuple(corpus) if corpus else None, tools=_names(tools)
    )
    options = {
        "tasks": tasks,
        "data": data or "",
        "split": split,
        "limit": limit,
        "group": group,
        "seed": seed,
        "concurrency": concurrency,
        "actors": ray,
    }
    typer.echo(collected(options, settings, out, json_, _stderr))


@app.command(
    epilog="Examples: agent probe nq_open --data DATA --out known.jsonl · "
    "agent probe worlds/a --policy micro --samples 8 --out known.jsonl"
)
def probe(
    tasks: Annotated[list[str], typer.Argument(help="Sets, JSONL files of questions, or worlds.")],
    out: Annotated[Path, typer.Option(help="JSONL file for the labelled tasks.")],
    samples: Annotated[int, typer.Option(help="Closed-book samples a task.")] = 8,
    policy: PolicyName = None,
    data: Annotated[
        str | None,
        typer.Option(envvar="AGENT_DATA", help="Folder, https:// or hf:// of the benchmark data."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Tasks a set, spread over it; 0 is all.")] = 0,
    split: Annotated[str, typer.Option(help="Part of each set: train or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Of each task's first sample.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Samples at once.")] = 8,
    json_: AsJson = False,
) -> None:
    """Label tasks as known or unknown to the policy, by closed-book samples."""
    from rl.command import probed

    options = {
        "tasks": tasks,
        "data": data or "",
        "split": split,
        "limit": limit,
        "group": samples,
        "seed": seed,
        "concurrency": concurrency,
    }
    typer.echo(probed(options, _settings(policy=policy), out, json_, _stderr))


@app.command(epilog="Example: agent pretrain micro --out runs/micro")
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships, or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one is resumed.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, over the recipe.")
    ] = None,
) -> None:
    """Train the micro policy's tokenizer and weights from nothing, on fictional worlds."""
    from rl.cold_start import run_pretraining

    _trained(run_pretraining(recipe, set_ or [], out, _stderr))


def _names(listed: str | None) -> tuple[str, ...] | None:
    """A comma-separated option; an empty one is an empty list, an absent one None."""
    if listed is None:
        return None
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _trained(report: dict[str, Any]) -> None:
    """Print a training run's report; one that Ctrl-C ended exits with 130."""
    from rl.ranks import is_main

    if is_main():
        typer.echo(json.dumps(report, indent=2))
    if report["interrupted"]:
        _stderr("interrupted: the same command goes on from here")
        raise typer.Exit(130)


@eval_app.command(
    "run",
    epilog="Examples: agent eval hotpotqa squad2 --data DATA --limit 100 --out runs/a · "
    "agent eval my-questions.jsonl --corpus notes/ --out runs/mine",
)
def eval_run(
    benchmarks: Annotated[list[str], typer.Argument(help="Names, or JSONL files of questions.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")],
    policy: PolicyName = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of a server.")] = None,
    data: Annotated[
        str | None,
        typer.Option(envvar="AGENT_DATA", help="Folder, https:// or hf:// of the benchmark data."),
    ] = None,
    corpus: Corpus = None,
    limit: Annotated[int, typer.Option(help="Questions a set, spread over it; 0 is all.")] = 0,
    samples: Annotated[int, typer.Option(help="Episodes a question.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first sample.")] = None,
    scorer: Annotated[str, typer.Option(help="Instead of each set's own, such as igpo.")] = "",
    given: Annotated[
        str, typer.Option(help="Tell with each question: plan, knowledge or decomposition.")
    ] = "",
    tools: Annotated[str | None, typer.Option(help='Comma-separated; "" asks closed-book.')] = None,
    concurrency: Annotated[int, typer.Option(help="Episodes at once.")] = 8,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Do not take episodes of earlier runs.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Run question sets through the agent, score them and write a report."""
    from eval.command import evaluate

    sampling = {"temperature": temperature} if temperature is not None else None
    settings = _settings(
        policy=policy,
        model=model,
        corpus=tuple(corpus) if corpus else None,
        sampling=sampling,
        seed=seed,
        tools=_names(tools),
    )
    options = {
        "data": data or "",
        "limit": limit,
        "samples": samples,
        "scorer": scorer,
        "given": given,
        "concurrency": concurrency,
        "cache": not no_cache,
    }
    typer.echo(evaluate(benchmarks, options, settings, out, json_, _stderr))


@eval_app.command(
    "score", epilog="Examples: agent eval score runs/a · agent eval score runs/a --scorer igpo"
)
def eval_score(
    run: Path,
    scorer: Annotated[str, typer.Option(help="Instead of each set's own.")] = "",
    json_: AsJson = False,
) -> None:
    """Score a run again and write its report; needs no model."""
    from eval.command import score

    typer.echo(score(run, scorer, json_))


@eval_app.command(
    "inspect",
    epilog="Example: agent eval inspect runs/a logs/, then inspect view --log-dir logs",
)
def eval_inspect(
    run: Path,
    out: Annotated[Path, typer.Argument(help="Folder for one .eval file a question set.")],
    scorer: Annotated[str, typer.Option(help="Instead of each set's own.")] = "",
) -> None:
    """Write a run as Inspect logs, for Inspect's viewer and analysis; needs the extra inspect."""
    from eval.command import exported

    typer.echo(exported(run, out, scorer))


@eval_app.command(
    "judge",
    epilog="Examples: agent eval judge runs/a --policy http://127.0.0.1:8000/v1 --model large · "
    "agent eval judge runs/a --policy vllm:owner/model --json",
)
def eval_judge(
    run: Path,
    policy: PolicyName = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of a server.")] = None,
    concurrency: Annotated[int, typer.Option(help="Questions at once.")] = 8,
    json_: AsJson = False,
) -> None:
    """Have a language model judge a run's answers; reports its agreement with exact match."""
    from eval.command import judged

    settings = _settings(policy=policy, model=model)
    typer.echo(judged(run, settings, concurrency, json_, _stderr))


@eval_app.command(
    "introspect",
    epilog="Examples: agent eval introspect runs/a · agent eval introspect runs/a --votes 4 --json",
)
def eval_introspect(
    run: Path,
    policy: PolicyName = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of a server.")] = None,
    votes: Annotated[int, typer.Option(help="Self-analyses a question.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of the votes; at 0 all are the same.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the first vote.")] = None,
    concurrency: Annotated[int, typer.Option(help="Questions at once.")] = 8,
    json_: AsJson = False,
) -> None:
    """Ask a policy which questions of a run it could answer; is it steady, and is it so?"""
    from eval.command import introspected

    settings = _settings(policy=policy, model=model, seed=seed)
    options = {
        "votes": votes,
        "temperature": temperature,
        "concurrency": concurrency,
        "json": json_,
    }
    typer.echo(introspected(run, settings, options, _stderr))


@eval_app.command(
    "boundary",
    epilog='Example: agent eval nq_open --tools "" --samples 8 --temperature 1 --out runs/closed, '
    "then agent eval nq_open --out runs/open, then agent eval boundary runs/closed runs/open",
)
def eval_boundary(closed: Path, opened: Path, json_: AsJson = False) -> None:
    """What the policy knows by itself against what it searches for, from two runs."""
    from eval.command import bounded

    typer.echo(bounded(closed, opened, json_))


@app.command(epilog="Examples: agent compare runs/a runs/b · agent compare runs/a runs/b --json")
def compare(
    a: Path,
    b: Path,
    scorer: Annotated[str, typer.Option(help="Instead of each set's own.")] = "",
    json_: AsJson = False,
) -> None:
    """Compare two runs on the questions that both answered: intervals, exact tests, Holm."""
    from eval.command import compared

    typer.echo(compared(a, b, scorer, json_))


@world_app.command(
    "make",
    epilog="Examples: agent world make worlds/a --seed 1 --entities 500 · "
    "agent world make worlds/big --entities 700000 --questions 20000 --taught 0.3",
)
def world_make(
    out: Annotated[Path, typer.Argument(help="Folder of the world.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    entities: Annotated[
        int, typer.Option(help="Things; a corpus has about 1.7 passages each.")
    ] = 300,
    questions: Annotated[int, typer.Option(help="At most.")] = 400,
    taught: Annotated[float, typer.Option(help="Share of facts to be taught to a policy.")] = 0.0,
) -> None:
    """Make a closed world that no model has seen: corpus, graph, questions with gold evidence."""
    from eval.fictional.make import make_world
    from tools.progress import bar

    with bar() as advance:
        facts = make_world(out, seed, entities, questions, taught, advance)
    typer.echo(json.dumps(facts, indent=1))


@world_app.command("show", epilog="Example: agent world show worlds/a")
def world_show(world: Path) -> None:
    """What a world holds."""
    from eval.fictional.make import read_world

    typer.echo(_lines(read_world(world)))


@index_app.command("build", epilog="Examples: agent index build notes/ papers.jsonl.gz my-index")
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
    report = (add_to if add else build)(corpus, out, embedder, _stderr)
    typer.echo(json.dumps(report) if json_ else _lines(report))


@index_app.command("delete", epilog="Example: agent index delete my-index notes/a.md#0")
def index_delete(
    index: Path, ids: Annotated[list[str], typer.Argument(help="Passage ids.")]
) -> None:
    """Delete passages from an index."""
    from tools.search.command import delete_from

    typer.echo(_lines(delete_from(index, ids, _stderr)))


@index_app.command(
    "info", epilog="Examples: agent index info my-index · agent index info my-index --json"
)
def index_info(index: Path, json_: AsJson = False) -> None:
    """What an index holds and how it was built."""
    from tools.search.index import Index

    info = Index.open(index).info()
    typer.echo(json.dumps(info) if json_ else _lines(info))


@config_app.command("show", epilog="Examples: agent config show · agent config show --json")
def config_show(json_: AsJson = False) -> None:
    """Every setting, and whether it comes from the environment, a file or the default."""
    from agent.settings import origins

    rows = [{"name": n, "value": value, "origin": origin} for n, value, origin in origins()]
    if json_:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['name']:<18} {json.dumps(row['value'])}  ({row['origin']})")


@models_app.command("list", epilog="Examples: agent models list · agent models list --json")
def models_list(json_: AsJson = False) -> None:
    """Known models, and which are on disk."""
    from agent.policies.catalog import list_models

    entries = [entry.model_dump(mode="json") for entry in list_models(_settings().models_dir)]
    if json_:
        typer.echo(json.dumps(entries, default=str))
        return
    for e in entries:
        state = str(e["path"]) if e["cached"] else "not pulled"
        typer.echo(f"{e['name']:<24} {e['parameters']:>13,} {e['licence']:<12} {state}")


@models_app.command(
    "pull", epilog="Examples: agent models pull default · agent models pull owner/model"
)
def models_pull(
    name: str,
    force: Annotated[bool, typer.Option("--force", help="Fetch again over a broken copy.")] = False,
) -> None:
    """Fetch a model and check its hash."""
    from agent.policies.catalog import pull

    typer.echo(str(pull(name, _settings().models_dir, _stderr, force=force)))


@trace_app.command(
    "list", epilog="Examples: agent trace list · agent trace list --status abstained --json"
)
def trace_list(
    limit: Annotated[int, typer.Option(help="Newest first.")] = 20,
    status: Annotated[str | None, typer.Option(help="answered, abstained, over_budget, …")] = None,
    policy: Annotated[str | None, typer.Option(help="name@version")] = None,
    task: Annotated[str | None, typer.Option(help="Task id.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO time.")] = None,
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """Past episodes, newest first."""
    from agent.store import Filter

    chosen = Filter(limit=limit, status=status, policy=policy, task=task, since=since)
    with _store(store) as opened:
        _summaries(list(opened.summaries(chosen)), json_)


@trace_app.command("search", epilog='Example: agent trace search "periodic table"')
def trace_search(
    text: str,
    limit: Annotated[int, typer.Option()] = 20,
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """Full-text search over questions and answers."""
    with _store(store) as opened:
        _summaries(list(opened.search(text, limit)), json_)


@trace_app.command("show", epilog="Examples: agent trace show 3f2a · agent trace show 3f2a --json")
def trace_show(id: str, store: Store = None, json_: AsJson = False) -> None:
    """One episode, step by step; a prefix of its id is enough."""
    from agent.viewer import render_text

    with _store(store) as opened:
        trajectory = opened.get(id)
    typer.echo(json.dumps(trajectory.to_dict()) if json_ else render_text(trajectory))


@trace_app.command(
    "export", epilog="Examples: agent trace export all.jsonl · agent trace export all.parquet"
)
def trace_export(
    out: Path,
    status: Annotated[str | None, typer.Option()] = None,
    policy: Annotated[str | None, typer.Option()] = None,
    store: Store = None,
) -> None:
    """Write episodes to .jsonl, .jsonl.gz or .parquet, without loss."""
    from agent.exchange import export
    from agent.store import Filter

    problems: list[str] = []
    with _store(store) as opened:
        count = export(opened, out, Filter(status=status, policy=policy), problems)
    for problem in problems:
        _stderr(f"skipped: {problem}")
    typer.echo(f"{count} episodes written to {out}")


@trace_app.command(
    "import",
    epilog="Examples: agent trace import all.jsonl · "
    "agent trace import damaged.sqlite --store new.sqlite",
)
def trace_import(path: Path, store: Store = None) -> None:
    """Read episodes of an export into the store; known ids are left alone.

    PATH may be another SQLite store: of a damaged one what can be read comes over.
    """
    from agent.exchange import import_

    with _store(store) as opened:
        report = import_(opened, path)
    for problem in report.problems:
        _stderr(f"skipped: {problem}")
    typer.echo(f"{report.added} episodes added, {report.known} known, {report.skipped} skipped")


@trace_app.command(
    "html",
    epilog="Examples: agent trace html 3f2a -o trace.html · agent trace html -o last.html · "
    "agent trace html 3f2a --credit igpo",
)
def trace_html(
    ids: Annotated[list[str] | None, typer.Argument(help="Episodes; default: the newest.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("trace.html"),
    credit: Annotated[
        str | None, typer.Option(help="Show the receipt by this recipe, such as igpo.")
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Model for --credit, not the episode's own.")
    ] = "",
    store: Store = None,
) -> None:
    """Write one self-contained HTML page to look at episodes.

    Exit codes: 0 written, 2 usage, 5 the model that --credit needs is unavailable.
    """
    models = _settings().models_dir
    with _store(store) as opened:
        if credit is None:
            from agent.console.html import write_html

            written = write_html(opened, ids or [], out, models)
        else:
            from rl.trace_credit import Accountant, write_page

            accountant = Accountant(opened, credit, models, policy, _stderr)
            written = write_page(accountant, ids or [], out)
    typer.echo(str(written))


@trace_app.command(
    "credit",
    epilog="Examples: agent trace credit 3f2a · agent trace credit 3f2a --recipe grpo --json",
)
def trace_credit(
    id: str,
    recipe: Annotated[
        str, typer.Option(help="Rewards, credit and loss: igpo, grpo or a YAML file.")
    ] = "igpo",
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Model to probe with, not the episode's own.")
    ] = "",
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """The receipt of an episode: each turn from its rewards to its part of the loss.

    Its group's other rollouts come from the store. Information gain needs the local model that
    sampled the episode. Exit codes: 0 shown, 1 unexpected failure, 2 usage (no such episode or
    recipe, or nothing to assess), 5 the model is unavailable.
    """
    from rl.trace_credit import Accountant, credit_report

    with _store(store) as opened:
        accountant = Accountant(opened, recipe, _settings().models_dir, policy, _stderr)
        typer.echo(credit_report(accountant, id, json_))


@trace_app.command("explain", epilog="Example: agent trace explain 3f2a")
def trace_explain(id: str, store: Store = None) -> None:
    """One episode in plain words: what it asked, what changed its mind, where it went wrong."""
    from eval.analyses.explain import explain

    with _store(store) as opened:
        typer.echo(explain(opened.get(id)))


@trace_app.command(
    "regress",
    epilog='Example: agent trace regress 3f2a --answer "mendelevium" --out regressions.jsonl',
)
def trace_regress(
    id: str,
    answer: Annotated[
        list[str] | None, typer.Option(help="Right answer; repeatable. Default: the task's own.")
    ] = None,
    unanswerable: Annotated[
        bool, typer.Option("--unanswerable", help="The right reply is to decline.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("regressions.jsonl"),
    store: Store = None,
) -> None:
    """Make a question that went wrong a regression task; run them with agent eval FILE."""
    from eval.regressions import add_regression

    with _store(store) as opened:
        added = add_regression(opened.get(id), answer or [], unanswerable, out)
    typer.echo(f"{'added to' if added else 'already in'} {out}; run: agent eval {out} --out DIR")


@trace_app.command(
    "fork",
    epilog="Examples: agent trace fork 3f2a --turn 2 --without-observation · "
    'agent trace fork 3f2a --turn 1 --replace "The lightest element is hydrogen." -n 16 --json',
)
def trace_fork(
    id: str,
    turn: Annotated[int, typer.Option(help="Go on after this turn; agent trace show counts them.")],
    without_observation: Annotated[
        bool, typer.Option("--without-observation", help="The other arm: nothing was found.")
    ] = False,
    replace: Annotated[str | None, typer.Option(help="The other arm: this was found.")] = None,
    replace_query: Annotated[
        str | None, typer.Option(help="The other arm: the same tool was asked this.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="Continuations an arm.")] = 8,
    policy: PolicyName = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of a server.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the first; the arms share them.")] = 0,
    scorer: Annotated[str, typer.Option(help="Of answers, such as hotpotqa.")] = "squad2",
    tools: Annotated[
        str | None,
        typer.Option(help='Tools that may be asked what is not on the cassette; "" for none.'),
    ] = None,
    corpus: Corpus = None,
    concurrency: Annotated[int, typer.Option(help="Episodes at once.")] = 8,
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """What a turn was worth: finish the episode many times, as it was and without what it found.

    Recorded tool calls are replayed; others go to the tools where their data is the episode's.
    Nothing is stored. Exit codes: 0 done, 1 unexpected failure, 2 usage, 5 policy unavailable,
    6 tool unavailable, 130 interrupted (what is finished is printed).
    """
    from eval.analyses.fork import fork

    settings = _settings(corpus=tuple(corpus) if corpus else None, model=model, store=store)
    options = {
        "turn": turn,
        "without_observation": without_observation,
        "replace": replace,
        "replace_query": replace_query,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "scorer": scorer,
        "policy": policy,
        "tools": _names(tools),
        "own_corpus": bool(corpus),
        "concurrency": concurrency,
    }
    with _store(store) as opened:
        text, code = fork(opened, id, options, settings, json_, _stderr)
    typer.echo(text)
    raise typer.Exit(code)


@trace_app.command("rm", epilog="Example: agent trace rm 3f2a…")
def trace_rm(ids: list[str], store: Store = None) -> None:
    """Delete episodes, and the conversations that they belong to."""
    from agent.threads import forget

    settings = _settings(store=store)
    with _store(store) as opened:
        typer.echo(f"{forget(opened, ids, settings.threads_path)} episodes deleted")


def vars_of(value: Any) -> dict[str, Any]:
    """Fields of a dataclass as a dict."""
    from dataclasses import asdict

    return asdict(value)


def _settings(**flags: Any) -> Settings:
    from agent.settings import load_settings

    return load_settings(**flags)


def _given(**values: Any) -> dict[str, Any] | None:
    chosen = {key: value for key, value in values.items() if value is not None}
    return chosen or None


def _store(url: str | None) -> TrajectoryStore:
    from agent.store import TrajectoryStore

    return TrajectoryStore.open(_settings(store=url).store_url)


def _printer(kind: str, trace: bool, quiet: bool) -> Printer:
    from agent.console import printer

    if kind == "text":
        return printer.TextPrinter(tokens=trace, quiet=quiet)
    if kind == "json":
        return printer.JsonPrinter()
    if kind == "stream-json":
        return printer.StreamPrinter()
    raise UsageError(f"no output format '{kind}'", "text, json or stream-json")


def _summaries(found: Sequence[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([vars_of(row) for row in found], default=str))
        return
    for row in found:
        question = " ".join(row.question.split())
        typer.echo(
            f"{row.id[:8]}  {row.created[:19]}  {row.status:<11} {question[:60]:<60} {row.answer}"
        )


def _lines(values: dict[str, Any]) -> str:
    return "\n".join(f"{key:<20} {value}" for key, value in values.items())


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point: typed errors become one line and their exit code."""
    try:
        app()
    except TurnwiseError as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        _stderr(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("AGENT_DEBUG"):
            raise
        _stderr(
            f"error: {type(error).__name__}: {error}\n  try: the same command with agent --debug"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
