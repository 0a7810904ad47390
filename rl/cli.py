"""The commands of the learning side: sft, pretrain, collect, probe, train, export, and parts of doctor
and trace."""

from __future__ import annotations

import json
import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agent import preload
from agent.console.options import (
    Corpus,
    Data,
    Episodes,
    PolicyName,
    Store,
    ToolNames,
    open_history,
    settings_of,
)
from kg.console import AsJson, stderr, stdout
from kg.errors import UsageError

commands = typer.Typer()
doctor = typer.Typer()
trace = typer.Typer()

RecipeName = Annotated[str, typer.Argument(help="A recipe that ships, or a YAML file.")]
RunFolder = Annotated[Path, typer.Option(help="Folder of the run; an interrupted one is resumed.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, over the recipe; repeatable.")
]
Tasks = Annotated[list[str], typer.Argument(help="Sets, JSONL files of questions, or worlds.")]
Limit = Annotated[
    int, typer.Option(help="Tasks a set, spread over it; a larger number adds; 0 is all.")
]
Split = Annotated[str, typer.Option(help="Part of each set: train or test.")]


@commands.command(
    epilog="Examples: agent sft cold_start --data DATA --out runs/cold_start · "
    "agent sft my.yaml --demonstrations demos.jsonl.gz --out runs/mine --set optimizer.lr=1e-4"
)
def sft(
    recipe: RecipeName,
    out: RunFolder,
    data: Data = None,
    demonstrations: Annotated[
        list[Path] | None,
        typer.Option(help="Trajectories (JSONL) instead of the scripted expert's; repeatable."),
    ] = None,
    set_: Changes = None,
) -> None:
    """Fine-tune a policy on demonstration trajectories (cold start)."""
    from rl.cold_start import run

    settings = settings_of()
    _trained(run(recipe, set_ or [], out, data, demonstrations or [], settings, stderr))


@commands.command(
    epilog="Examples: agent collect hotpotqa --data DATA --out runs/a.sqlite --group 8 · "
    "agent collect worlds/a --policy micro --out postgresql://host/turnwise --limit 200"
)
def collect(
    tasks: Tasks,
    out: Annotated[str, typer.Option(help="Trajectory store: a path or a database URL.")],
    group: Annotated[int, typer.Option(help="Rollouts a task.")] = 8,
    policy: PolicyName = None,
    data: Data = None,
    corpus: Corpus = None,
    tools: ToolNames = None,
    limit: Limit = 0,
    split: Split = "train",
    seed: Annotated[int, typer.Option(help="Of each group's first rollout.")] = 0,
    concurrency: Episodes = 8,
    ray: Annotated[int, typer.Option(help="Ray actors, each with its own engine; 0 for none.")] = 0,
    json_: AsJson = False,
) -> None:
    """Collect groups of rollouts to train on; the same command goes on after a kill."""
    preload.start_with(preload.OPENMP)
    from rl.command import collected

    settings = settings_of(policy=policy, corpus=corpus, tools=tools)
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
    stdout(collected(options, settings, out, json_, stderr))


@commands.command(
    epilog="Examples: agent probe nq_open --data DATA --out known.jsonl · "
    "agent probe worlds/a --policy micro --samples 8 --out known.jsonl"
)
def probe(
    tasks: Tasks,
    out: Annotated[Path, typer.Option(help="JSONL file for the labelled tasks.")],
    samples: Annotated[int, typer.Option(help="Closed-book samples a task.")] = 8,
    policy: PolicyName = None,
    data: Data = None,
    limit: Limit = 0,
    split: Split = "train",
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
    stdout(probed(options, settings_of(policy=policy), out, json_, stderr))


@commands.command(
    epilog="Examples: agent train igpo --out runs/igpo · agent train my.yaml --out runs/mine "
    "--set update.optimizer.lr=1e-5 · agent train grpo --from-store history.sqlite --out runs/again · "
    "agent train rest --from-store history.sqlite --from-policy . --reward thumb --out runs/liked"
)
def train(
    context: typer.Context,
    recipe: RecipeName,
    out: RunFolder,
    data: Data = None,
    set_: Changes = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A tripwire that does not pause the run; repeatable.")
    ] = None,
    from_store: Annotated[
        str, typer.Option(help="Train on the episodes of this store instead of new ones.")
    ] = "",
    way: Annotated[
        str, typer.Option(help="Of --from-store: imitate the good ones, or policy gradient.")
    ] = "imitate",
    reward: Annotated[
        str,
        typer.Option(
            help="Of --from-store: a reward attached to the episodes; else gold answers (imitate) or "
            "the recipe's rewards (gradient)."
        ),
    ] = "",
    threshold: Annotated[
        float, typer.Option(help="Of --from-store: episodes with more are imitated.")
    ] = 0.5,
    from_policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Of --from-store: take episodes of this policy too: its name, the version of its "
            "weights, or name@version, as agent trace list shows them; repeatable."
        ),
    ] = None,
    peak_tflops: Annotated[
        float,
        typer.Option(
            min=0, help="10^12 FLOP/s of one device, to tell the share that updates reach."
        ),
    ] = 0.0,
    json_: AsJson = False,
) -> None:
    """Improve a policy by reinforcement learning; the same command goes on after a kill or Ctrl-C.

    Collects, rewards, assigns credit, updates, syncs, validates and saves until done. With a launcher
    (torchrun, deepspeed) several processes learn. Exit codes: 0 done, 1 the run was paused or cannot go
    on, 2 usage, 5 the policy is unavailable, 130 interrupted.
    """
    _require_heard(context, from_store)
    preload.start_with(preload.ALLOCATOR, preload.OPENMP)
    from rl.train_command import retrained, trained

    settings = settings_of()
    aside = redirect_stdout(sys.stderr)  # DeepSpeed logs to stdout, which is the result's alone
    if from_store:
        wanted = {"reward": reward, "threshold": threshold, "policies": tuple(from_policy or ())}
        with aside:
            text, interrupted = retrained(
                recipe, set_ or [], out, from_store, way, wanted, settings, json_, stderr
            )
    else:
        with aside:
            text, interrupted = trained(
                recipe, set_ or [], out, data or "", ignore or [], settings, json_, peak_tflops
            )
    if text:
        stdout(text)
    if interrupted:
        stderr("interrupted: the same command goes on from here")
        raise typer.Exit(130)


#: Options of `agent train` that count with --from-store alone, and those that count without it alone.
_OF_STORE = ("way", "reward", "threshold", "from_policy")
_OF_LOOP = ("data", "ignore", "peak_tflops")


def _require_heard(context: typer.Context, from_store: str) -> None:
    """Refuse options on the command line that would count for nothing.

    Raises:
        UsageError: names one.
    """

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    if given("from_store") and not from_store:
        raise UsageError("--from-store names no store", "give its path or URL")
    idle, why, hint = (
        (_OF_LOOP, "does not go with --from-store", "leave one of the two out")
        if from_store
        else (
            _OF_STORE,
            "says something of --from-store, which is not there",
            "add --from-store STORE",
        )
    )
    for name in filter(given, idle):
        raise UsageError(f"--{name.replace('_', '-')} {why}", hint)
    if given("threshold") and context.params["way"] == "gradient":
        raise UsageError(
            "--threshold says which episodes are imitated; --way gradient compares them all",
            "leave it out",
        )


@commands.command(
    epilog="Examples: agent export runs/igpo --out models/mine · agent ask -p models/mine …"
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of agent train or agent sft.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    last: Annotated[
        bool, typer.Option("--last", help="The last weights, not those that validated best.")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter alone, of a run with LoRA.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Write a run's policy as a folder that agent, vLLM and transformers load, with its model card."""
    from rl.train_command import exported

    stdout(exported(run, out, last, adapter, settings_of(), json_, stderr))


@commands.command(epilog="Example: agent pretrain micro --out runs/micro")
def pretrain(recipe: RecipeName, out: RunFolder, set_: Changes = None) -> None:
    """Train the micro policy's tokenizer and weights from nothing, on fictional worlds."""
    from rl.cold_start import run_pretraining

    _trained(run_pretraining(recipe, set_ or [], out, stderr))


def _trained(report: dict[str, Any]) -> None:
    """Print a training run's report; one that Ctrl-C ended exits with 130."""
    from rl.ranks import is_main

    if is_main():
        stdout(json.dumps(report, indent=2))
    if report["interrupted"]:
        stderr("interrupted: the same command goes on from here")
        raise typer.Exit(130)


@doctor.command(
    "train",
    epilog="Examples: agent doctor train · agent doctor train igpo --json · "
    "agent doctor train my.yaml --policy models/mine --set rollouts.engine=transformers",
)
def doctor_train(
    recipe: RecipeName = "grpo",
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Model or folder, not the recipe's base.")
    ] = None,
    set_: Changes = None,
    json_: AsJson = False,
) -> None:
    """Check the stack of a training run before it is started: template, masks, sampling, sync.

    The recipe's policy, engine and learner play a few episodes, make one step and deliver it; nothing
    is kept. Exit codes: 0 all green, 1 something is red, 2 usage, 5 the policy is unavailable.
    """
    from agent.cli import show_checks
    from agent.doctor import summary
    from rl.doctor import examine
    from rl.ranks import is_main
    from rl.train_recipe import load_train

    made = load_train(recipe, set_ or [])
    if policy is not None:
        made = made.model_copy(update={"base": policy})
    with redirect_stdout(sys.stderr):  # DeepSpeed logs to stdout, which is the result's alone
        found = examine(made, settings_of(), stderr)
    raise typer.Exit(show_checks(found, json_) if is_main() else summary(found))


@trace.command(
    "html",
    epilog="Examples: agent trace html 3f2a -o trace.html · agent trace html -o last.html · "
    "agent trace html 3f2a --credit igpo",
)
def trace_html(
    ids: Annotated[list[str] | None, typer.Argument(help="Episodes; default: the newest.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("trace.html"),
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
    models = settings_of().models_dir
    with open_history(store) as opened:
        if credit is None:
            from agent.console.html import write_html

            written = write_html(opened, ids or [], out, models)
        else:
            from rl.trace_credit import Accountant, write_page

            accountant = Accountant(opened, credit, models, policy, stderr)
            written = write_page(accountant, ids or [], out)
    stdout(str(written))


@trace.command(
    "credit",
    epilog="Examples: agent trace credit 3f2a · agent trace credit 3f2a --recipe grpo --json · "
    "agent trace credit 3f2a --scorer vllm",
)
def trace_credit(
    id: str,
    recipe: Annotated[
        str, typer.Option(help="What judges: a recipe of agent train, or a YAML file.")
    ] = "igpo",
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Model to probe with, not the episode's own.")
    ] = "",
    scorer: Annotated[
        Literal["model", "vllm"],
        typer.Option(help="What computes probes: the model in this process, or vLLM."),
    ] = "model",
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """The receipt of an episode: each turn from its rewards to its part of the loss.

    Its group's other rollouts come from the store. Information gain needs the local model that
    sampled the episode. Exit codes: 0 shown, 1 unexpected failure, 2 usage (no such episode or
    recipe, or nothing to assess), 5 the model is unavailable.
    """
    from rl.trace_credit import Accountant, credit_report

    with open_history(store) as opened:
        models = settings_of().models_dir
        accountant = Accountant(opened, recipe, models, policy, stderr, scorer)
        with closing(accountant):
            stdout(credit_report(accountant, id, json_))


@trace.command(
    "reward",
    epilog="Examples: agent trace reward 3f2a thumb=1 · "
    "agent trace reward 3f2a thumb=0 style=-0.5 --store history.sqlite",
)
def trace_reward(
    id: str,
    rewards: Annotated[list[str], typer.Argument(help="NAME=VALUE, each.")],
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """Attach rewards to an episode, for `agent train --from-store … --reward NAME`.

    A reward of the same name is replaced. Exit codes: 0 attached, 2 usage.
    """
    from rl.attach import attach_rewards

    with open_history(store) as opened:
        full, there = attach_rewards(opened, id, rewards)
    told = ", ".join(f"{name} {value:g}" for name, value in sorted(there.items()))
    stdout(json.dumps({"id": full, "rewards": there}) if json_ else f"{full}: {told}")


@trace.command("correct", epilog='Example: agent trace correct 3f2a --answer "Ada Lovelace"')
def trace_correct(
    id: str,
    answer: Annotated[str, typer.Option(help="The right answer.")],
    store: Store = None,
    json_: AsJson = False,
) -> None:
    """Attach the right answer to an episode, for `agent train --from-store`.

    It takes the place of the episode's own answer where a source that it was shown holds it. Exit codes:
    0 attached, 2 usage.
    """
    from rl.attach import attach_correction

    with open_history(store) as opened:
        full = attach_correction(opened, id, answer)
    stdout(json.dumps({"id": full, "correction": answer}) if json_ else f"{full}: corrected")
