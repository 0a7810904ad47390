"""Does one pass over a group's token tree give what a pass a turn gives, on real weights?

Random groups: a common prompt, turns that several rollouts share, omitted observations, forced turns,
and a probe of a gold answer at every turn. Each group is scored by its tree and by the library's own
attention, one sequence at a time, both in float32; the largest difference of any log-probability (nats)
is printed. Exits 1 when it exceeds 1e-4.

    python benchmarks/tree_equality.py [--policy micro|default] [--groups 200] [--seconds 0]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.policies.base import Sampling  # noqa: E402
from agent.policies.catalog import resolve  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from agent.task import Task  # noqa: E402
from agent.trajectory import (  # noqa: E402
    Action,
    ActionKind,
    Span,
    Status,
    StopReason,
    Trajectory,
    Turn,
    join,
)
from rl.probes import Probe, make_probe, probed_context  # noqa: E402
from rl.scoring import ModelScorer, load_scorer, score_group  # noqa: E402
from tools.base import Observation  # noqa: E402

AIM = 1e-4
ANSWERS = ("Lise Meitner", "Oganesson", "the 14th of July 1789", "no", "Quin Ardal of Tessaly")


def random_group(seed: int, vocabulary: int, size: int) -> list[Trajectory]:
    """Rollouts of one question: a prompt of 40 to 60 tokens, then 2 to 4 turns."""
    chance = random.Random(seed)

    def some(low: int = 4, high: int = 16) -> list[int]:
        return [chance.randrange(vocabulary) for _ in range(chance.randint(low, high))]

    prompt, shared = some(40, 60), [(some(), some()) for _ in range(2)]
    return [_rollout(chance, some, prompt, shared, f"{seed}-{n}") for n in range(size)]


def _rollout(
    chance: random.Random, some: Any, prompt: list[int], shared: Any, id: str
) -> Trajectory:
    ids = list(prompt)
    context: tuple[Span, ...] = (Span(0, len(prompt)),)
    turns: list[Turn] = []
    common, count = chance.randint(0, 2), chance.randint(2, 4)
    for number in range(count):
        reply, seen = shared[number] if number < common else (some(), some())
        last = number == count - 1
        opened = some(1, 4) if last and chance.random() < 0.3 else []
        context = join((*context, Span(len(ids), len(ids) + len(opened))))
        ids += opened
        span = Span(len(ids), len(ids) + len(reply))
        shown = Span(span.stop, span.stop + (0 if last else len(seen)))
        ids += reply + ([] if last else seen)
        action = Action(ActionKind.TOOL, "search", {"query": str(number)})
        found = None if last else Observation("search", "found")
        sampled = chance.random() < 0.9
        turns.append(
            Turn(context, span, shown, "", action, found, sampled=sampled, forced=bool(opened))
        )
        if chance.random() < 0.3:  # the policy sees a stub in the observation's place
            stub = some(1, 4)
            context = join((*context, span, Span(len(ids), len(ids) + len(stub))))
            ids += stub
        else:
            context = join((*context, span, shown))
    known = np.full(len(ids), np.nan, dtype=np.float32)
    for turn in turns:
        if turn.sampled:
            known[turn.reply.start : turn.reply.stop] = -1.0
    return Trajectory(
        Task(id, "Q?", ("gold",)), "p@1", 0, Sampling(temperature=1.0), Status.ANSWERED,
        StopReason.ANSWER, tuple(turns), np.asarray(ids, dtype=np.int32), known, id=id,
    )  # fmt: skip


def alone(model: Any, ids: np.ndarray, last: int) -> np.ndarray:
    """float64[last]: log-probabilities of a sequence's last tokens, the sequence computed alone."""
    with torch.inference_mode():
        whole = torch.from_numpy(ids)
        logits = model(whole[None], logits_to_keep=last + 1).logits[0, :-1].double()
        found = logits.log_softmax(-1)[torch.arange(last), whole[-last:]]
    return np.asarray(found.numpy())


def gaps(
    model: Any, scorer: ModelScorer, group: Sequence[Trajectory], answer: str
) -> tuple[float, float]:
    """Largest difference of a sampled token's log-probability, and of the gold answer's at a turn."""
    probe: Probe = make_probe(scorer.template, answer)
    found = score_group(scorer, group, [answer])
    assert not found.problems, found.problems
    token, gold = 0.0, 0.0
    for t in group:
        for number, turn in enumerate(t.turns):
            context = t.prompt_of(turn).astype(np.int64)
            reply = t.token_ids[turn.reply.start : turn.reply.stop].astype(np.int64)
            if turn.sampled:
                ours = found.logprobs[t.id][turn.reply.start : turn.reply.stop]
                theirs = alone(model, np.concatenate([context, reply]), len(reply))
                token = max(token, float(np.abs(ours - theirs).max()))
            probed = np.concatenate([probed_context(t, number), probe.ids])
            forced = alone(model, probed, len(probe.ids))
            mean = forced[probe.answer].mean()
            gold = max(gold, float(abs(found.gold[t.id][0, number] - mean)))
    return token, gold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="micro")
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0, help="stop after these; 0 for never")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/tree_equality.json"))
    args = parser.parse_args()
    folder = resolve(args.policy, load_settings().models_dir)
    scorer = load_scorer(folder, "p")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    vocabulary = min(len(scorer.template.tokenizer), model.config.vocab_size)
    began, done, worst, tokens = time.monotonic(), 0, (0.0, 0.0), 0
    for seed in range(args.groups):
        group = random_group(seed, vocabulary, size=3 + seed % 2)
        found = gaps(model, scorer, group, ANSWERS[seed % len(ANSWERS)])
        worst = max(worst[0], found[0]), max(worst[1], found[1])
        done, tokens = done + 1, tokens + sum(len(t.token_ids) for t in group)
        if args.seconds and time.monotonic() - began > args.seconds:
            break
    row = {
        "policy": args.policy,
        "groups": done,
        "tokens": tokens,
        "largest_gap_of_a_token": worst[0],
        "largest_gap_of_a_gold_answer": worst[1],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(row))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(row, indent=1))
    raise SystemExit(0 if max(worst) <= AIM else 1)


if __name__ == "__main__":
    main()
