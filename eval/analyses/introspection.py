"""Introspection: what a policy says it could answer, whether it says so steadily, and whether it is so.

Source: KnowRL (arXiv 2510.11407): k independent self-analyses of each question; their consensus is
the intrinsic figure, agreement with the truth the extrinsic one. The paper's exact formula and prompt
were not readable; consensus here is the share of votes for the more frequent side. It is not
correctness, and saying "yes" to everything gives the highest: the share of yes is shown beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from agent.policies.base import Policy, Sampling
from eval.asking import Advance, ask_all, request_of
from eval.folder import write
from eval.metrics.weighted import f1
from eval.sample import Sample
from eval.score import score_run
from eval.stats import Interval, bootstrap, estimate, in_percent, resampled
from kg.errors import UsageError

FILE = "introspection.json"
YES, NO, UNREAD = "yes", "no", "unread"
_WORD = re.compile(r"[a-z]+")
_TOKENS = 8
_VOTES = "votes_by_seed"


@dataclass(frozen=True)
class Introspection:
    """Figures of one set.

    Attributes:
        votes: self-analyses a question.
        unread: mean over questions of the share of replies that were neither yes nor no; they count for
            neither side.
        consensus: mean over questions of the share of votes for the more frequent side, 0.5 to 1 where
            every vote was read.
        says_yes: share of questions whose majority says yes; near 0 or 1 the labels have collapsed.
        against_right: accuracy of the majority as a forecast of whether the run answered rightly; to
            decline is no answer, whatever the question.
        f1_right: its F1, "could answer" being the positive class; None where no answer was right.
        against_label: the same against the set's own answerable label; None where all are of one kind.
        f1_label: its F1, "unanswerable" being the positive class, as SelfAware reports it.
    """

    name: str
    votes: int
    unread: Interval
    consensus: Interval
    says_yes: Interval
    against_right: Interval
    f1_right: Interval | None
    against_label: Interval | None
    f1_label: Interval | None


def introspect(
    run: Path,
    policy: Policy,
    votes: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    concurrency: int = 8,
    advance: Advance = lambda stage, done, total: None,
) -> list[Introspection]:
    """Ask a policy about every question of a run, `votes` times each; writes `introspection.json`.

    The votes have the seeds `seed`, `seed + 1`, … The policy is closed afterwards. A vote of a seed that
    is there already is not asked again.

    Raises:
        UsageError: not a run, no scored question, or another policy has begun there.
        PolicyUnavailableError: the policy cannot be reached; the votes so far are kept.
    """
    if votes < 1:
        raise UsageError(f"{votes} votes a question", "--votes 8")
    samples = [s for s in score_run(run).samples if not s.excluded]
    if not samples:
        raise UsageError(f"{run} holds no question with a gold answer or a label")
    asker = f"{policy.name}@{policy.version} t{temperature:g}"
    said = _known(run, asker)
    seeds = range(seed, seed + votes)
    keys = {_key(s.benchmark, s.task, of): (s.question, of) for s in samples for of in seeds}
    requests = {
        key: request_of(policy, _text(question), Sampling(temperature, max_tokens=_TOKENS, seed=of))
        for key, (question, of) in keys.items()
        if key not in said
    }

    def keep(key: str, text: str) -> None:
        said[key] = read_vote(text)
        advance("introspected", len(said.keys() & keys), len(keys))

    def save() -> None:
        found = {"asker": asker, "prompt": _digest(), _VOTES: said}
        write(run / FILE, json.dumps(found, indent=1).encode())

    asyncio.run(ask_all(policy, requests, keep, save, concurrency))
    names = dict.fromkeys(s.benchmark for s in samples)
    return [
        summary(name, [s for s in samples if s.benchmark == name], said, seeds) for name in names
    ]


def read_vote(text: str) -> str:
    """Yes or no, by the first word of a reply that is one of them."""
    for word in _WORD.findall(text.lower()):
        if word in (YES, NO):
            return str(word)
    return UNREAD


def summary(
    name: str, samples: Sequence[Sample], said: dict[str, str], seeds: Sequence[int]
) -> Introspection:
    """The figures of a set from its votes of these seeds."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    cast = {t: [said[_key(name, t, of)] for of in seeds] for t in by_task}
    yes = {task: _majority(found) for task, found in cast.items()}
    label = {task: of[0].answerable for task, of in by_task.items()}
    right = {t: label[t] and _mean([s.right for s in of]) >= 0.5 for t, of in by_task.items()}
    both = len(set(label.values())) == 2
    could_not = {task: not answer for task, answer in yes.items()}
    no_answer = {task: not answerable for task, answerable in label.items()}
    return Introspection(
        name=name,
        votes=len(seeds),
        unread=estimate([found.count(UNREAD) / len(found) for found in cast.values()]),
        consensus=bootstrap([consensus(found) for found in cast.values()]),
        says_yes=estimate([float(v) for v in yes.values()]),
        against_right=estimate([float(yes[t] == right[t]) for t in by_task]),
        f1_right=_f1(yes, right),
        against_label=estimate([float(yes[t] == label[t]) for t in by_task]) if both else None,
        f1_label=_f1(could_not, no_answer) if both else None,
    )


def consensus(votes: Sequence[str]) -> float:
    """Share of votes for the more frequent of yes and no; votes that were not read count for neither."""
    return max(votes.count(YES), votes.count(NO)) / len(votes)


def table(found: Sequence[Introspection]) -> str:
    """The figures as Markdown."""
    columns = (
        *("set", "n", "votes", "unread, %", "consensus, %", "says yes, %"),
        *("as the run, %", "F1", "label, %", "F1"),
    )
    rows = [
        (
            *(one.name, str(one.consensus.n), str(one.votes)),
            *map(in_percent, (one.unread, one.consensus, one.says_yes)),
            *map(in_percent, (one.against_right, one.f1_right, one.against_label, one.f1_label)),
        )
        for one in found
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows))


def to_json(found: Sequence[Introspection]) -> str:
    """The figures as JSON."""
    return json.dumps([asdict(one) for one in found])


def _majority(votes: Sequence[str]) -> bool:
    """A tie, or no vote that was read, is not a yes."""
    return votes.count(YES) > votes.count(NO)


def _f1(said: dict[str, bool], true: dict[str, bool]) -> Interval | None:
    return resampled(f1([said[t] for t in true], list(true.values())), list(true))


def _key(name: str, task: str, seed: int) -> str:
    return f"{name}/{task}/{seed}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _text(question: str) -> str:
    return _prompt().replace("{question}", " ".join(question.split()))


def _prompt() -> str:
    return (resources.files("eval.prompts") / "introspect.txt").read_text("utf-8")


def _digest() -> str:
    return hashlib.sha256(_prompt().encode()).hexdigest()[:12]


def _known(run: Path, asker: str) -> dict[str, str]:
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        begun, prompt, votes = found["asker"], found["prompt"], dict(found[_VOTES])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged or of an earlier version: {error}", "move it away"
        ) from error
    if (begun, prompt) != (asker, _digest()):
        raise UsageError(f"{run} was introspected by {begun}", f"move its {FILE} away first")
    return votes
