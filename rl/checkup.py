"""The checks of `agent doctor train`, each on real parts: templates, records, numbers, gradients.

A check takes what it examines, measures, and says green or red with the measured numbers; it opens no
model and plays nothing. `rl.doctor` does that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agent.doctor import Check
from agent.formats import ActionFormat
from agent.policies.base import Sampling
from agent.policies.chat import ChatTemplate
from agent.trajectory import Trajectory, Turn
from rl.batches import TreeBatch
from rl.learner import Learner
from rl.sync import TOLERANCES
from tools.base import Observation

Floats = npt.NDArray[np.float64]

#: Standard errors that a mean may lie away from what it must be.
SIGMAS = 4.0
#: Shares of probability outside of which unlikely tokens are counted.
NUCLEI = (0.8, 0.9, 0.95, 0.99)
#: Of a chance below exp(-8), 0.03 %, is said that it is none.
_ODDS = 8.0
_ROUNDING = 1e-5
_THOUGHT = "<think>\nFirst I look it up.\n</think>\n\n"


@dataclass(frozen=True)
class Measured:
    """Sampled tokens as the engine and the learner see them; k of them in all trees.

    Attributes:
        engine, learner: float64[k], log-probabilities in nats.
        tails: float64[nuclei, k], probability of all tokens outside each nucleus, by the learner.
        floors: float64[nuclei, k], log-probability of the least likely token inside.
        trajectory: int64[k], number of the trajectory.
    """

    engine: Floats
    learner: Floats
    tails: Floats
    floors: Floats
    trajectory: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.engine)


def template_check(template: ChatTemplate, form: ActionFormat) -> Check:
    """Whether a longer conversation begins with the tokens of the shorter one, and whether the tokens
    that the runtime writes turn by turn are those that the template writes at once."""
    render, messages = _renderer(template, form), _conversation(form)
    shorter = render(messages[:2], True)
    for count in range(3, len(messages) + 1):
        longer = render(messages[:count], messages[count - 1]["role"] != "assistant")
        if longer[: len(shorter)] != shorter:
            at = next(
                (i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b),
                len(longer),
            )
            lost = template.tokenizer.decode(shorter[at : at + 12])
            return Check(
                "template",
                "fail",
                f"a message more changes earlier tokens, from {at} of {len(shorter)} on, where "
                f"{lost!r} stood: a chat server would show another past than the one trained on",
                "make chat_template.jinja render earlier messages whatever follows them, thoughts too",
            )
        shorter = longer
    return _turn_by_turn(template, form, messages, render)


def _turn_by_turn(
    template: ChatTemplate,
    form: ActionFormat,
    messages: Sequence[dict[str, Any]],
    render: Callable[[Sequence[dict[str, Any]], bool], list[int]],
) -> Check:
    ids = template.opening(messages[:2], form.schemas)
    for index in (2, 4):
        reply = template.encode(messages[index]["content"])
        ids += [*reply, *template.between(form.role, messages[index + 1]["content"], reply[-1])]
    whole = render(messages[:6], True)
    ours, theirs = template.tokenizer.decode(ids), template.tokenizer.decode(whole)
    if ours != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
        return Check(
            "template",
            "fail",
            f"turn by turn the runtime writes {ours[at : at + 30]!r}, the template at once "
            f"{theirs[at : at + 30]!r}",
            "make chat_template.jinja write each message in the same way wherever it stands",
        )
    detail = (
        f"{len(messages)} messages in {len(whole)} tokens: each longer conversation begins with the "
        "tokens of the shorter one, and turn by turn gives the same"
    )
    return Check("template", "ok", detail)


def _renderer(
    template: ChatTemplate, form: ActionFormat
) -> Callable[[Sequence[dict[str, Any]], bool], list[int]]:
    def render(messages: Sequence[dict[str, Any]], replies: bool) -> list[int]:
        text = template.tokenizer.apply_chat_template(
            list(messages),
            tools=list(form.schemas) or None,
            tokenize=False,
            add_generation_prompt=replies,
        )
        return list(template.tokenizer(text, add_special_tokens=False)["input_ids"])

    return render


def _conversation(form: ActionFormat) -> list[dict[str, Any]]:
    """Two rounds of thinking, acting and reading, and an answer."""
    call = {"role": "assistant", "content": f"{_THOUGHT}I search for it."}
    seen = {"role": form.role, "content": form.render(Observation("", "Nothing was found."))}
    return [
        {"role": "system", "content": form.system("Answer the question.")},
        {"role": "user", "content": "Which element is named after Lise Meitner?"},
        *(call, seen, call, seen),
        {"role": "assistant", "content": f"{_THOUGHT}It is meitnerium."},
    ]


def stop_check(
    groups: Sequence[Sequence[Trajectory]],
    trees: Sequence[TreeBatch],
    template: ChatTemplate,
    stops: Sequence[str],
) -> Check:
    """Whether replies end by tokens that the policy sampled, and whether those carry loss."""
    trained = _loss_positions(groups, trees)
    ended = cut = 0
    for number, trajectory in enumerate(t for group in groups for t in group):
        for turn in _spoken(trajectory):
            if turn.finish == "length":
                cut += 1
                continue
            reply = trajectory.token_ids[slice(*turn.reply)].tolist()
            text = template.decode(reply)
            if reply[-1] != template.eos_id and not any(stop in text for stop in stops):
                return Check(
                    "stop token",
                    "fail",
                    f"a reply ends in {template.tokenizer.decode(reply[-3:])!r} without the token that "
                    "ended it: the policy would never learn to stop",
                    "use an engine that returns the stop token: vllm or transformers",
                )
            if turn.reply.stop - 1 not in trained[number]:
                return Check(
                    "stop token",
                    "fail",
                    f"the last token of turn {trajectory.turns.index(turn) + 1} carries no loss",
                    "report this with the recipe: the runtime's mask is wrong",
                )
            ended += 1
    if ended <= cut:
        return Check(
            "stop token",
            "fail",
            f"{cut} of {ended + cut} replies were cut off: where no stop is sampled, none is trained",
            "raise rollouts.agent.sampling.max_tokens, or cold-start the policy: agent sft",
        )
    detail = f"{ended} of {ended + cut} replies ended by a sampled stop, and each carries loss"
    return Check("stop token", "ok", detail)


def mask_check(
    groups: Sequence[Sequence[Trajectory]], trees: Sequence[TreeBatch], template: ChatTemplate
) -> Check:
    """Whether exactly the sampled replies carry loss, token for token and as text."""
    hint = "report this with the recipe: the record and what is trained on differ"
    trained, tokens, total = _loss_positions(groups, trees), _loss_tokens(trees), 0
    for number, trajectory in enumerate(t for group in groups for t in group):
        name = f"trajectory {trajectory.id}"
        if trained[number] != set(np.flatnonzero(trajectory.sampled).tolist()):
            odd = trained[number] ^ set(np.flatnonzero(trajectory.sampled).tolist())
            detail = f"{name}: {len(odd)} tokens carry loss and were not sampled, or the reverse"
            return Check("mask", "fail", detail, hint)
        if any(int(trajectory.token_ids[at]) != id for at, id in tokens[number].items()):
            return Check("mask", "fail", f"{name}: another token is trained than the sampled", hint)
        for turn in _spoken(trajectory):
            text = template.decode(trajectory.token_ids[slice(*turn.reply)].tolist())
            if text != turn.text:
                detail = (
                    f"{name}: the trained tokens read {text[:40]!r}, the reply {turn.text[:40]!r}"
                )
                return Check("mask", "fail", detail, hint)
        if np.isnan(trajectory.logprobs[trajectory.sampled]).any():
            detail = f"{name}: a sampled token has no log-probability"
            return Check(
                "mask", "fail", detail, "use an engine that tells them: vllm or transformers"
            )
        total += len(trained[number])
    size = sum(len(t.token_ids) for group in groups for t in group)
    turns = sum(len(list(_spoken(t))) for group in groups for t in group)
    return Check(
        "mask", "ok", f"{total} of {size} tokens carry loss: the {turns} replies, word for word"
    )


def _spoken(trajectory: Trajectory) -> Iterator[Turn]:
    """Turns that the policy sampled."""
    return (t for t in trajectory.turns if t.sampled and t.reply.stop > t.reply.start)


def _loss_positions(
    groups: Sequence[Sequence[Trajectory]], trees: Sequence[TreeBatch]
) -> list[set[int]]:
    """Per trajectory, the positions in its `token_ids` that the loss reads."""
    out: list[set[int]] = [set() for group in groups for _ in group]
    for item in trees:
        for number, tokens in item.where:
            out[number] |= set(tokens.tolist())
    return out


def _loss_tokens(trees: Sequence[TreeBatch]) -> dict[int, dict[int, int]]:
    """Trajectory to position to the token id that the tree trains there."""
    out: dict[int, dict[int, int]] = {}
    for item in trees:
        ids = iter(item.tree.ids[item.rows[item.place]].tolist())
        for number, tokens in item.where:
            out.setdefault(number, {}).update((int(at), next(ids)) for at in tokens)
    return out


def sampling_check(
    asked: Sampling, groups: Sequence[Sequence[Trajectory]], measured: Measured
) -> Check:
    """Whether the draw is the policy's own distribution: as recorded, and as the tokens show.

    Of a draw from the whole distribution, as many tokens lie outside a nucleus as their probabilities
    say, and the importance ratio exp(learner - engine) is 1 on average. Truncation and temperatures
    below 1 leave unlikely tokens out; log-probabilities renormalised over what is left move the ratio.

    Args:
        asked: what the recipe's settings of the agent say.
        groups: rollouts.
        measured: their tokens.
    """
    used = [t.sampling for group in groups for t in group]
    for one in (asked, *used):
        if one.truncated or (one in used and one.temperature != 1.0):
            detail = f"temperature {one.temperature:g}, top_p {one.top_p:g}, top_k {one.top_k}"
            return Check(
                "sampling",
                "fail",
                f"{detail}: importance ratios of a truncated draw are biased",
                "remove rollouts.agent.sampling.top_p and top_k from the recipe",
            )
    ratio = np.exp(measured.learner - measured.engine)
    spread = float(ratio.std()) / math.sqrt(len(ratio))
    outside = (measured.learner < measured.floors - _ROUNDING).sum(axis=1)
    expected = np.maximum(measured.tails.sum(axis=1), 1e-3)
    # Chernoff: a count this far from its expectation, either way, has a chance below exp(-odds)
    odds = expected - outside + outside * np.log(np.maximum(outside, 1) / expected)
    worst = int(odds.argmax())
    mean = float(expected[worst])
    shown = (
        f"temperature 1, no truncation; over {len(measured)} tokens the mean importance ratio is "
        f"{ratio.mean():.4f} ± {spread:.4f} (1 is right), and {outside[worst]} tokens lie outside the "
        f"likeliest {100 * NUCLEI[worst]:g} % ({mean:.1f} ± {math.sqrt(mean):.1f} expected)"
    )
    good = abs(float(ratio.mean()) - 1) <= SIGMAS * spread + 1e-3
    if not good or odds[worst] > _ODDS:
        hint = "let the engine draw from the whole vocabulary and tell raw log-probabilities"
        return Check("sampling", "fail", f"the tokens say otherwise: {shown}", hint)
    return Check("sampling", "ok", shown)


def gap_check(measured: Measured, kinds: set[str]) -> Check:
    """Whether the engine and the learner give sampled tokens the same log-probabilities.

    Args:
        measured: sampled tokens.
        kinds: types in play; the coarsest decides what is allowed (`rl.sync.TOLERANCES`), a tenth of it
            on average.
    """
    gap = np.abs(measured.learner - measured.engine)
    most = max(TOLERANCES.get(kind, 0.0) for kind in kinds)
    whole = np.zeros(int(measured.trajectory.max()) + 1)
    np.add.at(whole, measured.trajectory, measured.learner - measured.engine)
    detail = (
        f"mean {gap.mean():.2g}, max {gap.max():.2g} nats a token over {len(gap)} tokens, "
        f"{np.abs(whole).max():.2g} over an episode ({', '.join(sorted(kinds))}); "
        f"{most / 10:g} and {most:g} a token are allowed"
    )
    if gap.max() <= most and gap.mean() <= most / 10:
        return Check("gap", "ok", detail)
    hint = (
        "see that both load the same weights; then compare in float32: --set rollouts.dtype=float32"
    )
    return Check("gap", "fail", detail, hint)


def gradient_check(
    groups: Sequence[Sequence[Trajectory]], pushed: Counter[int], trees: Sequence[TreeBatch]
) -> Check:
    """Whether a step's gradient pushes sampled tokens and no others.

    Args:
        groups: rollouts of the step.
        pushed: token ids that a row of the vocabulary projection was pushed for or against.
        trees: of the step.
    """
    sampled = Counter(
        int(id) for group in groups for t in group for id in t.token_ids[t.sampled].tolist()
    )
    rows = sum(len(item.rows) for item in trees)
    strange, count = pushed - sampled, pushed.total()
    size = sum(len(t.token_ids) for group in groups for t in group)
    if strange or not count:
        which = f"{strange.total()} are of no sampled token" if count else "no gradient at all"
        hint = "report this with the recipe: the loss reads tokens that the policy did not write"
        return Check(
            "gradient", "fail", f"{count} tokens are pushed by the gradient; {which}", hint
        )
    detail = (
        f"{count} of {rows} predictions push a token, each a sampled one; the {size - sampled.total()} "
        f"of {size} tokens that were not sampled are not pushed"
    )
    return Check("gradient", "ok", detail)


def passes_check(passes: Sequence[int], trees: int) -> Check:
    """Whether every process made the same number of passes in a step.

    Args:
        passes: of each process.
        trees: of the step.
    """
    detail = f"world size {len(passes)}: {', '.join(map(str, passes))} passes over {trees} trees"
    if len(set(passes)) == 1 and passes[0]:
        return Check("passes", "ok", detail)
    hint = "do not use ZeRO 3 before this is understood: unequal passes never end"
    return Check("passes", "fail", detail, hint)


@dataclass
class HeadWatch:
    """What goes through the learner's vocabulary projection while it is watched.

    Attributes:
        nuclei: per projection that no gradient is wanted of, float64[2, nuclei, its rows]: tails and
            floors, as `Measured` has them.
        pushed: token ids that a gradient is for or against.
    """

    nuclei: list[Floats] = field(default_factory=list)
    pushed: Counter[int] = field(default_factory=Counter)

    @contextmanager
    def on(self, learner: Learner) -> Iterator[None]:
        """Watch the learner within."""
        model = learner.engine.module.model
        head = (model.get_base_model() if hasattr(model, "peft_config") else model).lm_head
        hooks = (
            head.register_forward_hook(self._computed),
            head.register_full_backward_hook(self._returned),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _computed(self, module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> None:
        if logits.requires_grad:
            return
        ordered = logits.double().log_softmax(-1).sort(dim=-1, descending=True).values
        chances = ordered.exp()
        above = chances.cumsum(-1) - chances
        parts = []
        for share in NUCLEI:
            floor = ordered.gather(-1, (above < share).sum(-1, keepdim=True) - 1)
            tail = (chances * (ordered < floor - _ROUNDING)).sum(-1)
            parts.append(torch.stack([tail, floor[:, 0]]))
        self.nuclei.append(torch.stack(parts, dim=1).cpu().numpy())

    def _returned(self, module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        """A gradient of c (p - onehot) has one entry of another sign than the rest: its token's.

        Where p rounds to 1, or to 0 for all others but one, nothing tells which: such a row is left out.
        """
        grad = outputs[0]
        below, above = (grad < 0).sum(-1), (grad > 0).sum(-1)
        for alone, others, found in (
            (below, above, grad.argmin(-1)),
            (above, below, grad.argmax(-1)),
        ):
            self.pushed.update(found[(alone == 1) & (others > 1)].tolist())


def measure(learner: Learner, trees: Sequence[TreeBatch]) -> Measured:
    """The log-probabilities of all loss tokens on both sides; every process must call it."""
    found: list[Floats] = []
    nuclei: list[Floats] = []
    for item in trees:
        watch = HeadWatch()
        with watch.on(learner):
            [scored] = learner.scored([item])
        found.append(np.stack([item.behaviour, scored]).astype(np.float64))
        nuclei.append(np.concatenate(watch.nuclei, axis=-1)[:, :, item.place])
    engine, ours = np.concatenate(found, axis=-1)
    tails, floors = np.concatenate(nuclei, axis=-1)
    number = np.concatenate([item.sequence for item in trees])
    return Measured(engine, ours, tails, floors, number)
