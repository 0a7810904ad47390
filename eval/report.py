"""Reports of a scored run: Markdown for reading anywhere, one self-contained HTML page with plots.

What a policy or a document wrote is text here and nothing else: escaped in the page, one line in
Markdown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from agent.viewer import render_html
from eval import html_page, plots
from eval.folder import open_store, read_header, write
from eval.judge import Judged, read_judged
from eval.judge import lines as judge_lines
from eval.metrics import scorer
from eval.sample import Sample
from eval.score import RunScores, SetScores
from eval.stats import Interval, in_percent, in_units
from kg.errors import MissingExtraError, UsageError
from kg.strict_json import dumps

_TRACES = 100
_MARK = str.maketrans({"\\": "\\\\", "|": "\\|", "\n": " ", "\r": " ", "<": "&lt;", "`": "'"})

Table = tuple[str, Sequence[str], list[Sequence[str]]]


def write_reports(scores: RunScores, run: Path) -> list[Path]:
    """Write `scores.json`, `samples.jsonl`, `report.md`, `report.html` and `traces.html` into the run.

    Without the extra `eval` the page has no plots, and says so.

    Raises:
        UsageError: a file cannot be written.
    """
    rows = [dumps(asdict(sample)) for sample in scores.samples]
    judged = read_judged(run, scores.samples)
    files = {
        "scores.json": json.dumps(scores.to_dict(), indent=1),
        "samples.jsonl": "\n".join(rows) + "\n",
        "report.md": markdown(scores, judged),
        "report.html": page(scores, judged),
        "traces.html": _traces(scores, run),
    }
    for name, text in files.items():
        write(run / name, text.encode("utf-8", "replace"))
    return [run / name for name in files]


def reported_scorer(run: Path) -> str:
    """The scorer that a run's report was made with instead of each set's own; "" where there is none.

    Raises:
        UsageError: not a run, or its `scores.json` is damaged.
    """
    own = {one.name: scorer(one.scorer).name for one in read_header(run).sets}
    try:
        sets = json.loads((run / "scores.json").read_text("utf-8"))["sets"]
        used = {one["name"]: str(one["scorer"]) for one in sets}
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError) as error:
        hint = "agent eval score RUN writes it anew"
        raise UsageError(f"{run / 'scores.json'} is damaged: {error}", hint) from error
    return "" if used == own else next(iter(used.values()), "")


def markdown(scores: RunScores, judged: Judged | None = None) -> str:
    """The whole report as Markdown, with what a judge said and where the plots and traces lie."""
    head = [f"# Evaluation of {_line(scores.header.policy)}", "", _facts(scores), ""]
    parts = [_markdown_table(table) for table in tables(scores)]
    if judged is not None:
        parts += ["## Judge", "", *(f"- {_line(line)}" for line in judge_lines(judged)), ""]
    return "\n".join([*head, *parts, *_places(scores)])


def _places(scores: RunScores) -> list[str]:
    """Lines on what a table does not hold, and where it is."""
    wrong, episodes = _wrong(scores.samples), Counter(s.benchmark for s in scores.samples)
    count = Counter(s.benchmark for s in wrong)
    return [
        "## Wrong answers and plots",
        "",
        *(
            f"- {_line(name)}: {count[name]} of {n} episodes are wrong"
            for name, n in episodes.items()
        ),
        f"- [report.html](report.html): plots, and the wrong answers{_few(wrong)} with their traces",
        "- [traces.html](traces.html): those traces, turn by turn",
        "- [samples.jsonl](samples.jsonl): every episode with its scores",
        "- trajectories.sqlite: every episode whole, for agent trace --store",
        "",
    ]


def page(scores: RunScores, judged: Judged | None = None) -> str:
    """The whole report as one HTML page."""
    body = [
        f"<h1>Evaluation of {escape(scores.header.policy)}</h1>",
        f"<p>{escape(_facts(scores))}</p>",
    ]
    for title, head, rows in tables(scores):
        body.append(f"<h2>{escape(title)}</h2>{html_page.table(head, rows)}")
    if judged is not None:
        said = "".join(f"<li>{escape(line)}</li>" for line in judge_lines(judged))
        body.append(f"<h2>Judge</h2><ul>{said}</ul>")
    body += _figures(scores)
    body.append(_wrong_answers(scores.samples))
    return html_page.page("turnwise evaluation", "".join(body))


def tables(scores: RunScores) -> list[Table]:
    """Title, head and rows of every table."""
    return [
        _answers_table(scores.sets),
        *_figures_table(
            "Retrieval (%, gold passages in what was shown, in order)",
            {one.name: one.retrieval for one in scores.sets},
        ),
        *_figures_table(
            "Support (%, cited passages against gold ones, and jointly with the answer)",
            {one.name: one.support for one in scores.sets},
        ),
        *_figures_table("Abstention (%)", {s.name: s.abstention for s in scores.sets}),
        *_figures_table("Confidence of answers (%)", {s.name: s.calibration for s in scores.sets}),
        *_figures_table(
            "Numbers (RMSE in the unit of the question)",
            {one.name: one.numbers for one in scores.sets},
            in_units,
        ),
        *_figures_table("Several samples (%)", {s.name: s.several for s in scores.sets}),
        *[
            _interval_table(f"{one.name} by {what}", values)
            for one in scores.sets
            for what, values in (("kind", one.kinds), ("number of searches", one.by_searches))
            if len(values) > 1
        ],
        *_figures_table("Cost", {one.name: one.usage for one in scores.sets}, in_units),
        *_figures_table(
            "Stop reasons (% of episodes)", {one.name: one.stop_shares for one in scores.sets}
        ),
        *_left_out(scores.sets),
    ]


def _answers_table(sets: Sequence[SetScores]) -> Table:
    head = ("set", "scorer", "n", "accuracy", "EM", "F1", "cover-EM", "errors", "without errors")
    rows = [
        (
            one.name,
            one.scorer,
            str(one.answers["right"].n if one.answers else 0),
            *(in_percent(one.answers.get(key)) for key in ("right", "em", "f1", "cover")),
            str(one.errors),
            in_percent(one.without_errors) if one.errors else "",
        )
        for one in sets
    ]
    return "Answers (%, 95 % intervals over questions)", head, list(rows)


def _interval_table(title: str, values: Mapping[Any, Interval]) -> Table:
    rows = [(str(key) or "-", str(value.n), in_percent(value)) for key, value in values.items()]
    return title, ("", "n", "accuracy"), list(rows)


def _figures_table(
    title: str,
    values: Mapping[str, Mapping[str, Interval]],
    show: Callable[[Interval | None], str] | None = None,
) -> list[Table]:
    """One row a set with its questions; a figure over fewer of them says over how many. No table when
    there is no figure."""
    kept = {name: one for name, one in values.items() if one}
    names = list(dict.fromkeys(name for one in kept.values() for name in one))
    rows: list[Sequence[str]] = []
    for key, one in kept.items():
        n = max(value.n for value in one.values())
        cells = [_with_n(one.get(name), n, show or in_percent) for name in names]
        rows.append((key, str(n), *cells))
    return [(title, ("set", "n", *names), rows)] if rows else []


def _with_n(value: Interval | None, n: int, show: Callable[[Interval | None], str]) -> str:
    over = f" (n={value.n})" if value is not None and value.n != n else ""
    return show(value) + over


def _left_out(sets: Sequence[SetScores]) -> list[Table]:
    rows: list[Sequence[str]] = []
    for one in sets:
        rows += [(one.name, str(count), reason) for reason, count in one.excluded.items()]
        if one.no_evidence:
            rows.append((one.name, str(one.questions), one.no_evidence))
        if one.no_number:
            why = "not answered with one number; counted as wrong, and left out of the RMSE"
            rows.append((one.name, str(one.no_number), why))
        if one.asked_again:
            rows.append((one.name, str(one.asked_again), "attempts failed and were asked again"))
        if one.incomplete:
            lack = f"lack {one.missing} sample(s) in all; averaged over those that are there"
            rows.append((one.name, str(one.incomplete), lack))
        rows += [(one.name, "1", problem) for problem in one.skipped[:20]]
        if len(one.skipped) > 20:
            rows.append((one.name, str(len(one.skipped) - 20), "more rows skipped"))
    return [("Left out or incomplete", ("set", "n", "why"), rows)] if rows else []


def _figures(scores: RunScores) -> list[str]:
    try:
        drawn = [
            plots.interval_bars(
                "accuracy", {s.name: s.answers["right"] for s in scores.sets if s.answers}
            )
        ]
        for one in scores.sets:
            drawn += [
                plots.interval_bars(f"{one.name} by {what}", {str(k): v for k, v in values.items()})
                for what, values in (("kind", one.kinds), ("searches", one.by_searches))
                if len(values) > 1
            ]
            if one.calibration:
                drawn += [
                    plots.risk_coverage(f"{one.name}: risk against coverage", one.risk_coverage),
                    plots.reliability(f"{one.name}: reliability", one.reliability),
                ]
    except MissingExtraError as error:
        return [f"<p>{escape(str(error))}</p>"]
    return ["<h2>Plots</h2>", *(f"<figure>{svg}</figure>" for svg in drawn)]


def _wrong_answers(samples: Sequence[Sample]) -> str:
    wrong = _wrong(samples)
    rows = [
        (s.benchmark, s.id, s.question[:200], ", ".join(s.gold[:3]) or "(none)", _said(s)[:200])
        for s in _traced(wrong)
    ]
    lines = [
        f'<tr><td>{escape(name)}</td><td><a href="traces.html#{escape(id)}">{escape(question)}</a>'
        f'</td><td>{escape(gold)}</td><td class="bad">{escape(said)}</td></tr>'
        for name, id, question, gold, said in rows
    ]
    return (
        f"<h2>Wrong answers ({len(wrong)}{_few(wrong)})</h2>"
        "<table><tr><th>set</th><th>question</th><th>gold</th><th>said</th></tr>"
        f"{''.join(lines)}</table>"
    )


def _said(sample: Sample) -> str:
    silent = "(declined)" if sample.abstained else f"(no answer: {sample.stop_reason})"
    return sample.error or sample.answer or silent


def _wrong(samples: Iterable[Sample]) -> list[Sample]:
    return [sample for sample in samples if not sample.excluded and sample.right < 1]


def _few(wrong: Sequence[Sample]) -> str:
    """What to say where not all wrong answers are shown."""
    return f", {_TRACES} of them, of each set alike" if len(wrong) > _TRACES else ""


def _traced(wrong: Sequence[Sample]) -> list[Sample]:
    """The wrong answers that are shown, in their order: the first of each set, the second of each, and
    so on, until there are as many as a page takes."""
    sets: dict[str, list[Sample]] = {}
    for sample in wrong:
        sets.setdefault(sample.benchmark, []).append(sample)
    turns = (one for row in zip_longest(*sets.values()) for one in row if one is not None)
    chosen = {sample.id for sample in islice(turns, _TRACES)}
    return [sample for sample in wrong if sample.id in chosen]


def _traces(scores: RunScores, run: Path) -> str:
    with open_store(run) as store:
        chosen = [store.get(sample.id) for sample in _traced(_wrong(scores.samples))]
    return render_html(chosen, None)


def _facts(scores: RunScores) -> str:
    header = scores.header
    sampling = header.setup["sampling"]
    limit = f", at most {header.limit} questions a set" if header.limit else ""
    return (
        f"{header.created} to {header.finished or '(not finished)'}; "
        f"{header.samples} episode(s) a question from seed {header.seed}{limit}, "
        f"temperature {sampling['temperature']}, format {header.setup['format']}, "
        f"turnwise {header.packages.get('turnwise', '?')}{_revision(header.source)}."
    )


def _revision(source: Mapping[str, str | bool]) -> str:
    if not source:
        return ""
    changed = " with changes" if source["dirty"] else ""
    return f" at {str(source['revision'])[:12]}{changed}"


def _markdown_table(table: Table) -> str:
    title, head, rows = table
    names = " | ".join(map(_line, head))
    lines = [f"## {_line(title)}", "", f"| {names} |", "|" + " --- |" * len(head)]
    lines += [f"| {' | '.join(_line(cell) for cell in row)} |" for row in rows]
    return "\n".join([*lines, ""])


def _line(text: str) -> str:
    """Text of one cell or line; a link or an image in it is text too and loads nothing."""
    return text.translate(_MARK).replace("](", "]\\(")
