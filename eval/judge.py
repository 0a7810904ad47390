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
from eval.sample import Sample
from eval.score import score_run
from eval.stats import Interval, estimate
from kg.errors import UsageError

CORRECT, INCORRECT, DECLINED, UNREAD = "correct", "incorrect", "declined", "unread"
_LETTERS = {"A": CORRECT, "B": INCORRECT, "C": DECLINED}
_SLOT = re.compile(r"\{(question|gold|answer)\}")
_TOKENS = 8


@dataclass(frozen=True)
class Judged:
    """What a judge said of a run.

    Attributes:
        judge: `name@version`; `prompt` is the digest of its prompt.
        verdicts: by episode id.
        accuracy: share judged correct, over questions.
        unread: replies that named no letter; they count as not correct.
        agreement: share of episodes on which judge and exact match say the same; `kappa` is Cohen's.
        only_judge, only_match: episodes that only one of the two calls right.
    """

    judge: str
    prompt: str
    verdicts: dict[str, str]
    accuracy: Interval
    unread: int
    agreement: float
    kappa: float
    only_judge: int
    only_match: int


def judge_run(
    run: Path,
    policy: Policy,
    concurrency: int = 8,
    advance: Advance = lambda stage, done, total: None,
) -> Judged:
    """Judge every answered episode of a run with a policy; writes `judge.json` into it.

    The policy is closed afterwards.

    Raises:
        UsageError: not a run, nothing to judge, or another judge has begun there.
        PolicyUnavailableError: the judge cannot be reached; what it said so far is kept.
    """
    samples = _answerable(score_run(run).samples)
    if not samples:
        raise UsageError(f"{run} holds no answerable question with a gold answer")
    judge = f"{policy.name}@{policy.version}"
    verdicts = _known(run, judge)
    verdicts |= {s.id: DECLINED for s in samples if not s.answer}
    requests = {s.id: _request(policy, s) for s in samples if s.id not in verdicts}

    def keep(id: str, text: str) -> None:
        verdicts[id] = read_verdict(text)
        advance("judged", len(verdicts), len(samples))

    def save() -> None:
        _save(run, judge, verdicts)

    asyncio.run(ask_all(policy, requests, keep, save, concurrency))
    return summary(judge, samples, verdicts, prompt_digest())


def _request(policy: Policy, sample: Sample) -> Request:
    parts = {
        "question": sample.question,
        "gold": "; ".join(sample.gold[:10]),
        "answer": sample.answer[:500],
    }
    # one pass, not str.format: an answer may hold braces, or the name of a slot
    text = _SLOT.sub(lambda slot: " ".join(parts[slot[1]].split()), _prompt())
    return request_of(policy, text, Sampling(max_tokens=_TOKENS))


def read_verdict(text: str) -> str:
    """The verdict in a judge's reply: its first letter that stands alone."""
    for word in text.replace(":", " ").replace(".", " ").replace(")", " ").split():
        if word in _LETTERS:
            return _LETTERS[word]
    return UNREAD


def summary(judge: str, samples: Sequence[Sample], verdicts: dict[str, str], prompt: str) -> Judged:
    """Figures of a judge over the samples that it judged."""
    judged = [s for s in samples if s.id in verdicts]
    said = [verdicts[s.id] == CORRECT for s in judged]
    matched = [s.right == 1 for s in judged]
    agreed = sum(a == b for a, b in zip(said, matched, strict=True)) / len(judged)
    return Judged(
        judge=judge,
        prompt=prompt,
        verdicts={s.id: verdicts[s.id] for s in judged},
        accuracy=estimate(
            [float(x) for x in said], clusters=[(s.benchmark, s.task) for s in judged]
        ),
        unread=sum(verdicts[s.id] == UNREAD for s in judged),
        agreement=agreed,
        kappa=_kappa(said, matched),
        only_judge=sum(a and not b for a, b in zip(said, matched, strict=True)),
        only_match=sum(b and not a for a, b in zip(said, matched, strict=True)),
    )


def _kappa(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Cohen's kappa; 1 when both always say the same single thing."""
    n = len(a)
    p, q = sum(a) / n, sum(b) / n
    chance = p * q + (1 - p) * (1 - q)
    agreed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)


def prompt_digest() -> str:
    """First 12 hex digits of the SHA-256 of the judge's prompt."""
    return hashlib.sha256(_prompt().encode()).hexdigest()[:12]


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


def _known(run: Path, judge: str) -> dict[str, str]:
    """Verdicts that are there already, of the same judge and prompt."""
    begun, prompt, verdicts = _read(run)
    if verdicts and (begun, prompt) != (judge, prompt_digest()):
        raise UsageError(
            f"{run} was judged by {begun} (prompt {prompt})", "move its judge.json away first"
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


def _save(run: Path, judge: str, verdicts: dict[str, str]) -> None:
    data = {"judge": judge, "prompt": prompt_digest(), "verdicts": dict(sorted(verdicts.items()))}
    write(run / "judge.json", json.dumps(data, indent=1).encode())


def lines(found: Judged) -> Iterable[str]:
    """The summary for people."""
    yield f"judge {found.judge}, prompt {found.prompt}, n={found.accuracy.n}"
    yield f"judged correct {str(found.accuracy).strip()} %, {found.unread} replies unread"
    yield (
        f"agrees with exact match on {100 * found.agreement:.1f} % (kappa {found.kappa:.2f}); "
        f"right by the judge alone {found.only_judge}, by exact match alone {found.only_match}"
    )
