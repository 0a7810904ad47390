"""The commands of evaluation: compare, the groups eval and world, and a part of trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agent import preload
from agent.console.options import (
    Corpus,
    Data,
    Episodes,
    PolicyName,
    ServerModel,
    Store,
    Temperature,
    names,
    open_history,
    settings_of,
)
from kg.console import AsJson, group, lines, stderr, stdout


class _RunByDefault(TyperGroup):
    """`agent eval NAME` is `agent eval run NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `run` where no sub-command is named."""
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer()
evaluation = group(
    "Run question sets and score them: agent eval BENCHMARK… --out DIR.", kind=_RunByDefault
)
world = group("Make and inspect fictional worlds.")
trace = typer.Typer()

Scorer = Annotated[str, typer.Option(help="Instead of each set's own.")]


@commands.command(
    epilog="Examples: agent compare runs/a runs/b · agent compare runs/a runs/b --json"
)
def compare(a: Path, b: Path, scorer: Scorer = "", json_: AsJson = False) -> None:
    """Compare two runs on the questions that both answered: intervals, exact tests, Holm.

    Rows for questions with and without an answer, and for all sets, describe; sets are tested.
    """
    from eval.command import compared

    stdout(compared(a, b, scorer, json_))


@evaluation.command(
    "run",
    epilog="Examples: agent eval hotpotqa squad2 --data DATA --limit 100 --out runs/a · "
    "agent eval my-questions.jsonl --corpus notes/ --out runs/mine",
)
def eval_run(
    benchmarks: Annotated[
        list[str], typer.Argument(help="Names, or JSONL files of questions (paths or URLs).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")],
    policy: PolicyName = None,
    model: ServerModel = None,
    data: Data = None,
    corpus: Corpus = None,
    limit: Annotated[
        int,
        typer.Option(help="Questions a set, spread over it; more hold those of fewer; 0 is all."),
    ] = 0,
    samples: Annotated[int, typer.Option(help="Episodes a question.")] = 1,
    temperature: Temperature = None,
    seed: Annotated[int | None, typer.Option(help="Of the first sample.")] = None,
    scorer: Annotated[str, typer.Option(help="Instead of each set's own, such as igpo.")] = "",
    given: Annotated[
        str, typer.Option(help="Tell with each question: plan, knowledge or decomposition.")
    ] = "",
    tools: Annotated[str | None, typer.Option(help='Comma-separated; "" asks closed-book.')] = None,
    concurrency: Episodes = 8,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Do not take episodes of earlier runs.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Run question sets through the agent, score them and write a report."""
    preload.start_with(preload.OPENMP)
    from eval.command import evaluate

    settings = settings_of(
        policy=policy,
        model=model,
        corpus=corpus,
        temperature=temperature,
        seed=seed,
        tools=tools,
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
    stdout(evaluate(benchmarks, options, settings, out, json_, stderr))


@evaluation.command(
    "score", epilog="Examples: agent eval score runs/a · agent eval score runs/a --scorer igpo"
)
def eval_score(run: Path, scorer: Scorer = "", json_: AsJson = False) -> None:
    """Score a run again and write its report; needs no model."""
    from eval.command import score

    stdout(score(run, scorer, json_))


@evaluation.command(
    "inspect",
    epilog="Example: agent eval inspect runs/a logs/, then inspect view --log-dir logs",
)
def eval_inspect(
    run: Path,
    out: Annotated[Path, typer.Argument(help="Folder for one .eval file a question set.")],
    scorer: Scorer = "",
) -> None:
    """Write a run as Inspect logs, for Inspect's viewer and analysis; needs the extra inspect."""
    from eval.command import exported

    stdout(exported(run, out, scorer))


@evaluation.command(
    "judge",
    epilog="Examples: agent eval judge runs/a --policy http://127.0.0.1:8000/v1 --model large · "
    "agent eval judge runs/a --policy vllm:owner/model --json",
)
def eval_judge(
    run: Path,
    policy: PolicyName = None,
    model: ServerModel = None,
    concurrency: Annotated[int, typer.Option(help="Questions at once.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(help="Of a reply; a judge that reasons first needs some hundreds.")
    ] = 8,
    scorer: Annotated[
        str, typer.Option(help="It is compared with. Default: that of the run's report.")
    ] = "",
    json_: AsJson = False,
) -> None:
    """Have a language model judge a run's answers; reports its agreement with exact match."""
    from eval.command import judged

    settings = settings_of(policy=policy, model=model)
    stdout(judged(run, settings, concurrency, max_tokens, scorer, json_, stderr))


@evaluation.command(
    "introspect",
    epilog="Examples: agent eval introspect runs/a · agent eval introspect runs/a --votes 4 --json",
)
def eval_introspect(
    run: Path,
    policy: PolicyName = None,
    model: ServerModel = None,
    votes: Annotated[int, typer.Option(help="Self-analyses a question.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of the votes; at 0 all are the same.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the first vote.")] = None,
    concurrency: Annotated[int, typer.Option(help="Questions at once.")] = 8,
    json_: AsJson = False,
) -> None:
    """Ask a policy which questions of a run it could answer; is it steady, and is it so?"""
    from eval.command import introspected

    settings = settings_of(policy=policy, model=model, seed=seed)
    options = {
        "votes": votes,
        "temperature": temperature,
        "concurrency": concurrency,
        "json": json_,
    }
    stdout(introspected(run, settings, options, stderr))


@evaluation.command(
    "boundary",
    epilog='Example: agent eval nq_open --tools "" --samples 8 --temperature 1 --out runs/closed, '
    "then agent eval nq_open --out runs/open, then agent eval boundary runs/closed runs/open",
)
def eval_boundary(closed: Path, opened: Path, json_: AsJson = False) -> None:
    """What the policy knows by itself against what it searches for, from two runs."""
    from eval.command import bounded

    stdout(bounded(closed, opened, json_))


@world.command(
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
    stdout(json.dumps(facts, indent=1))


@world.command(
    "show", epilog="Examples: agent world show worlds/a · agent world show worlds/a --json"
)
def world_show(world: Path, json_: AsJson = False) -> None:
    """What a world holds."""
    from eval.fictional.make import read_world

    facts = read_world(world)
    stdout(json.dumps(facts) if json_ else lines(facts))


@trace.command(
    "explain",
    epilog="Examples: agent trace explain 3f2a · agent trace credit 3f2a --json > receipt.json, "
    "then agent trace explain 3f2a --receipt receipt.json",
)
def trace_explain(
    id: str,
    store: Store = None,
    scorer: Scorer = "",
    receipt: Annotated[
        Path | None,
        typer.Option(help="JSON of agent trace credit: how likely the answer was at each turn."),
    ] = None,
) -> None:
    """One episode in plain words: what it knew, what it asked, what changed its mind, what went wrong.

    Right and wrong are as in the run that the store belongs to; --scorer takes another scorer.
    """
    from eval.command import explained

    with open_history(store) as opened:
        stdout(explained(opened.get(id), store, scorer, receipt))


@trace.command(
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
    out: Annotated[
        Path, typer.Option("--out", "-o", help="JSONL file; the task is added to it.")
    ] = Path("regressions.jsonl"),
    corpus: Corpus = None,
    store: Store = None,
) -> None:
    """Make a question that went wrong a regression task; run them with agent eval FILE.

    Corpus and scorer of an evaluation run are written with the question; --corpus names what any other
    episode searched.
    """
    from eval.regressions import add_regression, origin_of, searched_elsewhere

    settings = settings_of(corpus=corpus, store=store)
    with open_history(store) as opened:
        done = opened.get(id)
    origin = origin_of(done, settings.store_url, settings.corpus, named=bool(corpus))
    added = add_regression(done, answer or [], unanswerable, out, origin)
    if note := searched_elsewhere(done, origin, settings):
        stderr(note)
    stdout(f"{'added to' if added else 'already in'} {out}; run: agent eval {out} --out DIR")


@trace.command(
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
    model: ServerModel = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the first; the arms share them.")] = 0,
    scorer: Annotated[str, typer.Option(help="Of answers, such as hotpotqa.")] = "squad2",
    tools: Annotated[
        str | None,
        typer.Option(help='Tools that may be asked what is not on the cassette; "" for none.'),
    ] = None,
    corpus: Corpus = None,
    concurrency: Episodes = 8,
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """What a turn was worth: finish the episode many times, as it was and without what it found.

    Recorded tool calls are replayed; others go to the tools where their data is the episode's.
    Nothing is stored. Exit codes: 0 done, 1 unexpected failure, 2 usage, 5 policy unavailable,
    6 tool unavailable, 130 interrupted (what is finished is printed).
    """
    from eval.analyses.fork import fork

    settings = settings_of(corpus=corpus, model=model, store=store)
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
        "tools": names(tools),
        "own_corpus": bool(corpus),
        "concurrency": concurrency,
    }
    with open_history(store) as opened:
        text, code = fork(opened, id, options, settings, json_, stderr)
    stdout(text)
    raise typer.Exit(code)
