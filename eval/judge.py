"""A language model as judge of answers, and how far it agrees with exact match.

A judge's figure is worth what its agreement is worth: both are always reported together, with the
judge's name and the digest of its prompt. Any policy can judge. Judging is a pass over a finished run,
and goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from agent.policies.base import Policy, Request, Sampling
from eval.asking import Advance, ask_all, request_of
from eval.folder import write
from eval.metrics.weighted import kappa
from eval.sample import Sample
from eval.score import score_run
from eval.stats import Interval, estimate, in_percent, in_units, resampled
from kg.errors import UsageError

CORRECT, INCORRECT, DECLINED, UNREAD = "correct", "incorrect", "declined", "unread"
_LETTERS = {"A": CORRECT, "B": INCORRECT, "C": DECLINED}
_SLOT = re.compile(r"\{(question|gold|answer)\}")
_STATED = re.compile(r"\b(?i:verdict)\W*(?i:is\b)?\W*([ABC])(?!\w)")
_MARKS = r"[\s*_`#>()\[\]{}.,:;!\"'-]*"
_LINE = re.compile(rf"^{_MARKS}([ABC]){_MARKS}$", re.MULTILINE)
_LONE = re.compile(
    r"(?<![\w'-])(?:([BC])|(A)(?!\s+[a-z]))(?![\w'-])"
)  # "A correct …" is an article
_READING = 2  # version of `read_verdict` and of the cuts below: another gives other verdicts
TOKENS = 8
GOLDS, CHARS = 10, 500  # what a judge is shown: accepted answers, and characters of the given one


@dataclass(frozen=True)
class Judged:
    """What a judge said of a run.

    Attributes:
        judge: `name@version`; `prompt` is the digest of what shapes a verdict, see `prompt_digest`.
        verdicts: by episode id.
        accuracy: share judged correct, over questions.
        unread: replies that named no letter; they count as not correct.
        cut: answered episodes of which the judge was shown a part: the first `GOLDS` accepted answers,
            or the first `CHARS` characters of the given one.
        agreement: mean over questions of the share of episodes on which judge and scorer say the same.
        kappa: Cohen's, every question weighing the same; None where both say one and the same of all.
        only_judge, only_match: episodes that only one of the two calls right.
    """

    judge: str
    prompt: str
    verdicts: dict[str, str]
    accuracy: Interval
    unread: int
    cut: int
    agreement: Interval
    kappa: Interval | None
    only_judge: int
    only_match: int


def judge_run(
    run: Path,
    policy: Policy,
    concurrency: int = 8,
    advance: Advance = lambda stage, done, total: None,
    max_tokens: int = TOKENS,
    scorer: str = "",
) -> Judged:
    """Judge every answered episode of a run with a policy; writes `judge.json` into it.

    The policy is closed afterwards. A judge that reasons before its verdict needs more `max_tokens`.
    It is compared with exact match under each set's own scorer, or under the one that is named.

    Raises:
        UsageError: not a run, nothing to judge, no token to say it with, or another judge, prompt or
            token budget has begun there.
        PolicyUnavailableError: the judge cannot be reached; what it said so far is kept.
    """
    if max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens a verdict", f"--max-tokens {TOKENS}")
    samples = _answerable(score_run(run, scorer).samples)
    if not samples:
        raise UsageError(f"{run} holds no answerable question with a gold answer")
    judge = f"{policy.name}@{policy.version}"
    digest = prompt_digest(max_tokens)
    verdicts = _known(run, judge, digest)
    verdicts |= {s.id: DECLINED for s in samples if not s.answer}
    requests = {s.id: _request(policy, s, max_tokens) for s in samples if s.id not in verdicts}

    def keep(id: str, text: str) -> None:
        verdicts[id] = read_verdict(text)
        advance("judged", len(verdicts), len(samples))

    def save() -> None:
        _save(run, judge, digest, verdicts)

    asyncio.run(ask_all(policy, requests, keep, save, concurrency))
    return summary(judge, samples, verdicts, digest)


def _request(policy: Policy, sample: Sample, max_tokens: int = TOKENS) -> Request:
    parts = {
        "question": sample.question,
        "gold": "; ".join(sample.gold[:GOLDS]),
        "answer": sample.answer[:CHARS],
    }
    # one pass, not str.format: an answer may hold braces, or the name of a slot
    text = _SLOT.sub(lambda slot: " ".join(parts[slot[1]].split()), _prompt())
    return request_of(policy, text, Sampling(max_tokens=max_tokens))


def read_verdict(text: str) -> str:
    """The verdict in a judge's reply, behind its reasoning where that is marked.

    The last "verdict: X" counts, else the last line that is a letter, else the last letter that stands
    alone, whatever marks stand around it. Reasoning that was cut off has no verdict.
    """
    said = text.rpartition("</think>")[2]
    if "<think>" in said:
        return UNREAD
    for form in (_STATED, _LINE, _LONE):
        if found := list(form.finditer(said)):
            letter = next(group for group in found[-1].groups() if group)
            return _LETTERS[letter]
    return UNREAD


def summary(judge: str, samples: Sequence[Sample], verdicts: dict[str, str], prompt: str) -> Judged:
    """Figures of a judge over the samples that it judged."""
    judged = [s for s in samples if s.id in verdicts]
    said = [verdicts[s.id] == CORRECT for s in judged]
    matched = [s.right == 1 for s in judged]
    agreed = [float(a == b) for a, b in zip(said, matched, strict=True)]
    units = [(s.benchmark, s.task) for s in judged]
    return Judged(
        judge=judge,
        prompt=prompt,
        verdicts={s.id: verdicts[s.id] for s in judged},
        accuracy=estimate([float(x) for x in said], clusters=units),
        unread=sum(verdicts[s.id] == UNREAD for s in judged),
        cut=sum(bool(s.answer) and _cut(s) for s in judged),
        agreement=estimate(agreed, clusters=units),
        kappa=resampled(kappa(said, matched), units),
        only_judge=sum(a and not b for a, b in zip(said, matched, strict=True)),
        only_match=sum(b and not a for a, b in zip(said, matched, strict=True)),
    )


def _cut(sample: Sample) -> bool:
    return len(sample.gold) > GOLDS or len(sample.answer) > CHARS


def prompt_digest(max_tokens: int = TOKENS) -> str:
    """First 12 hex digits of the SHA-256 of the judge's prompt, its token budget and how replies are
    read: verdicts under the same digest were made in the same way."""
    shape = f"{_prompt()}\n{max_tokens} tokens, reading {_READING}"
    return hashlib.sha256(shape.encode()).hexdigest()[:12]


def _prompt() -> str:
    return (resources.files("eval.prompts") / "judge.txt").read_text("utf-8")


def read_judged(run: Path, samples: Sequence[Sample]) -> Judged | None:
    """What a judge said of a scored run; None when none has judged it.

    Raises:
        UsageError: `judge.json` is damaged.
    """
    judge, prompt, verdicts = _read(run)
    known = [s for s in _answerable(samples) if s.id in verdicts]
    return summary(judge, known, verdicts, prompt) if known else None


def _answerable(samples: Iterable[Sample]) -> list[Sample]:
    return [s for s in samples if not s.excluded and s.answerable]


def _known(run: Path, judge: str, digest: str) -> dict[str, str]:
    """Verdicts that are there already, of the same judge, prompt and token budget."""
    begun, prompt, verdicts = _read(run)
    if verdicts and (begun, prompt) != (judge, digest):
        raise UsageError(
            f"{run} was judged by {begun} (prompt {prompt}); this is {judge} (prompt {digest})",
            "move its judge.json away first",
        )
    return verdicts


def _read(run: Path) -> tuple[str, str, dict[str, str]]:
    """Judge, digest of its prompt, verdicts by episode; empty when there are none."""
    try:
        data: dict[str, Any] = json.loads((run / "judge.json").read_text("utf-8"))
        return data["judge"], data["prompt"], dict(data["verdicts"])
    except FileNotFoundError:
        return "", "", {}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run / 'judge.json'} is damaged: {error}", "delete it") from error


def _save(run: Path, judge: str, digest: str, verdicts: dict[str, str]) -> None:
    data = {"judge": judge, "prompt": digest, "verdicts": dict(sorted(verdicts.items()))}
    write(run / "judge.json", json.dumps(data, indent=1).encode())


def lines(found: Judged) -> Iterable[str]:
    """The summary for people."""
    yield f"judge {found.judge}, prompt {found.prompt}, n={found.accuracy.n}"
    yield f"judged correct {found.accuracy.shown} %, {found.unread} replies unread"
    if found.cut:
        yield (
            f"{found.cut} answers judged by a part: of the accepted ones the first {GOLDS} are shown, "
            f"of the given one {CHARS} characters"
        )
    chance = (
        f"kappa {in_units(found.kappa)}" if found.kappa else "no kappa: both say the same of all"
    )
    yield (
        f"agrees with exact match on {in_percent(found.agreement)} % ({chance}); "
        f"right by the judge alone {found.only_judge}, by exact match alone {found.only_match}"
    )
