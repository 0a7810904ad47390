"""What `agent eval` and `agent compare` run: plain values in, text for stdout out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.policies.registry import policy_of
from agent.settings import Settings
from agent.trajectory import Trajectory
from eval.analyses.boundary import boundary
from eval.analyses.boundary import table as boundary_table
from eval.analyses.explain import explain
from eval.analyses.probed import read_probed
from eval.benchmarks.own import DEFAULT_SCORER
from eval.compare import compare, table
from eval.failures import PolicyFailedError
from eval.judge import judge_run, lines, read_judged
from eval.metrics import scorer
from eval.regressions import origin_of
from eval.report import markdown, reported_scorer, write_reports
from eval.run import EvalRequest, run
from eval.score import score_run
from kg.errors import UsageError
from tools.progress import bar


def evaluate(
    benchmarks: Sequence[str],
    options: Mapping[str, Any],
    settings: Settings,
    out: Path,
    as_json: bool,
    notify: Callable[[str], None],
) -> str:
    """Run, score, report; see `eval.run.run`.

    Raises:
        UsageError: an option out of range, or as `run`.
        PolicyFailedError: as `run`; the report of what there is has been written.
    """
    try:
        request = EvalRequest(benchmarks=tuple(benchmarks), **options)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"--{problem['loc'][0]}: {problem['msg']}") from error
    try:
        with bar(lines=True) as advance:
            run(request, settings, out, notify, advance)
    except PolicyFailedError:
        score(out, "", as_json)
        notify(f"report of what there is: {out / 'report.html'}")
        raise
    text = score(out, "", as_json)
    notify(f"report: {out / 'report.html'}")
    return text


def score(run_folder: Path, scorer_name: str, as_json: bool) -> str:
    """Score a run and write its reports into it."""
    scores = score_run(run_folder, scorer_name)
    write_reports(scores, run_folder)
    if as_json:
        return json.dumps(scores.to_dict())
    return markdown(scores, read_judged(run_folder, scores.samples))


def exported(run_folder: Path, out: Path, scorer_name: str) -> str:
    """Write a run's Inspect logs; see `eval.inspect.log`."""
    from eval.inspect.log import export

    return "\n".join(map(str, export(run_folder, out, scorer_name)))


def judged(
    run_folder: Path,
    settings: Settings,
    concurrency: int,
    max_tokens: int,
    scorer_name: str,
    as_json: bool,
    notify: Callable[[str], None],
) -> str:
    """Have a policy judge a run's answers, scored as in its report unless a scorer is named; see
    `eval.judge`."""
    chosen = scorer_name or reported_scorer(run_folder)
    scores = score_run(run_folder, chosen)
    policy = policy_of(settings, notify)
    with bar(lines=True) as advance:
        found = judge_run(run_folder, policy, concurrency, advance, max_tokens, chosen)
    write_reports(scores, run_folder)
    return json.dumps(asdict(found)) if as_json else "\n".join(lines(found))


def introspected(
    run_folder: Path, settings: Settings, options: Mapping[str, Any], notify: Callable[[str], None]
) -> str:
    """What a policy says it could answer; see `eval.analyses.introspection`."""
    from eval.analyses import introspection

    policy = policy_of(settings, notify)
    with bar(lines=True) as advance:
        found = introspection.introspect(
            run_folder,
            policy,
            votes=options["votes"],
            temperature=options["temperature"],
            seed=settings.seed,
            concurrency=options["concurrency"],
            advance=advance,
        )
    return introspection.to_json(found) if options["json"] else introspection.table(found)


def explained(
    done: Trajectory, store: str | None, scorer_name: str, receipt: Path | None = None
) -> str:
    """An episode in plain words, scored as its run scores it; see `eval.analyses.explain`.

    Raises:
        UsageError: no such scorer, or a receipt that is none of this episode with probes.
    """
    known = origin_of(done, store).scorer if store else ""
    probed = read_probed(receipt, done) if receipt else None
    return explain(done, scorer(scorer_name or known or DEFAULT_SCORER).name, probed)


def bounded(closed: Path, opened: Path, as_json: bool) -> str:
    """The knowledge-boundary table of two runs."""
    found = boundary(closed, opened)
    return json.dumps([asdict(one) for one in found]) if as_json else boundary_table(found)


def compared(a: Path, b: Path, scorer_name: str, as_json: bool) -> str:
    """Compare two runs."""
    found = compare(a, b, scorer_name)
    if as_json:
        sets = [{**asdict(one), "differs": one.differs} for one in found.sets]
        return json.dumps({**asdict(found), "sets": sets})
    return table(found)
