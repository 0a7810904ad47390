"""The models that rewards ask, as the plain functions of `RewardContext`.

A reranker and an entailment model are local folders of transformers classifiers. A judge and a fact
extractor are policies that are asked greedily. Every answer is kept, so that the same thing is asked
once a run.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.policies.base import Policy, Request, Sampling
from agent.policies.registry import open_policy
from agent.settings import load_settings
from kg.errors import PolicyUnavailableError, UsageError
from rl import ranks
from rl.rewards import Need, RewardContext, RewardError
from rl.rewards.context import Entailment, Facts, Judge, Reranker
from rl.train_recipe import Asked, TrainRecipe

Notify = Callable[[str], None]

_PATIENCE = 300.0  # seconds for one answer of a policy
_KEPT = 65536
_BATCH = 32
_LENGTH = 512  # tokens of a question and its passage together
_JUDGE = (
    "You grade transcripts. Reply with one whole number from 0 (the criterion is not met at all) to 10 "
    "(it is met in full) and nothing else."
)
_FACTS = (
    "List the atomic facts that the text states, one full sentence a line, without numbering. Leave out "
    "plans, questions and guesses. Reply with an empty line if it states none."
)
_GRADE = re.compile(r"\s*(10|[0-9])(?:\s*/\s*10)?\s*\.?\s*")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s*")


def functions(
    recipe: TrainRecipe, models: Path, notify: Notify = lambda line: None
) -> RewardContext:
    """A context with the models that the recipe names and its rewards read, loaded.

    Args:
        recipe: of the run.
        models: folder of pulled models.
        notify: gets one line a model.

    Raises:
        UsageError: a folder that holds no such model; or policies that are asked by several processes,
            which need not get the same answer.
        PolicyUnavailableError: a policy cannot be had.
    """
    named, needs = recipe.models, recipe.reward.needs
    made = RewardContext()
    asked = [one for one in (named.judge, named.facts) if one is not None]
    if asked and ranks.launched():
        raise UsageError(
            "a policy as judge or fact extractor works in one process alone: several would not get "
            "the same rewards",
            "train in one process, or use a reranker or an entailment model",
        )
    if named.reranker is not None and Need.RERANKER in needs:
        notify(f"loading the reranker {named.reranker}")
        made = replace(made, reranker=reranker(Path(named.reranker)))
    if named.entailment is not None and Need.ENTAILMENT in needs:
        notify(f"loading the entailment model {named.entailment}")
        made = replace(made, entailment=entailment(Path(named.entailment)))
    if named.judge is not None and Need.JUDGE in needs:
        made = replace(made, judge=judge(_opened(named.judge, models, notify)))
    if named.facts is not None and Need.FACTS in needs:
        made = replace(made, facts=facts(_opened(named.facts, models, notify)))
    return made


def reranker(folder: Path) -> Reranker:
    """(query, passages) to sigmoid(logit) of each pair, by a cross-encoder with one output.

    Raises:
        UsageError: the folder holds no such model.
    """
    model, tokenizer = _classifier(folder)
    if model.config.num_labels != 1:
        raise UsageError(
            f"the model in {folder} has {model.config.num_labels} outputs: a reranker has one",
            "give a cross-encoder such as bge-reranker",
        )

    @lru_cache(_KEPT)
    def scored(query: str, passages: tuple[str, ...]) -> tuple[float, ...]:
        logits = _logits(model, tokenizer, [(query, passage) for passage in passages])
        return tuple(logits[:, 0].sigmoid().tolist())

    return lambda query, passages: scored(query, tuple(passages)) if passages else ()


def entailment(folder: Path) -> Entailment:
    """(passage, statement) to the probability of the label `entailment`.

    Raises:
        UsageError: the folder holds no model with such a label.
    """
    model, tokenizer = _classifier(folder)
    labels = {str(name).lower(): int(i) for i, name in model.config.id2label.items()}
    if "entailment" not in labels:
        raise UsageError(
            f"the model in {folder} has the labels {', '.join(labels)}: none is 'entailment'",
            "give a classifier that was trained on natural-language inference",
        )

    @lru_cache(_KEPT)
    def probability(passage: str, statement: str) -> float:
        logits = _logits(model, tokenizer, [(passage, statement)])
        return float(logits.softmax(-1)[0, labels["entailment"]])

    return probability


def judge(policy: Policy) -> Judge:
    """(criterion, transcript) to the grade of a policy, 0 to 1.

    The function raises RewardError where the reply is no whole number from 0 to 10.
    """
    ask = _Asker(policy)

    @lru_cache(_KEPT)
    def graded(criterion: str, transcript: str) -> float:
        reply = ask(_JUDGE, f"Criterion: {criterion}\n\nTranscript:\n{transcript}", 16)
        found = _GRADE.fullmatch(reply)
        if found is None:
            raise RewardError(f"the judge replied {reply[:80]!r}, not a number from 0 to 10")
        return int(found[1]) / 10

    return graded


def facts(policy: Policy) -> Facts:
    """Text to the statements that a policy lists, one a line."""
    ask = _Asker(policy)

    @lru_cache(_KEPT)
    def listed(text: str) -> tuple[str, ...]:
        lines = (_BULLET.sub("", line).strip() for line in ask(_FACTS, text, 512).splitlines())
        return tuple(line for line in lines if line)

    return listed


class _Asker:
    """Asks a policy from plain functions: its engine lives in an event loop of its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="reward-policy", daemon=True).start()

    def __call__(self, system: str, text: str, most: int) -> str:
        messages = ({"role": "system", "content": system}, {"role": "user", "content": text})
        template = self._policy.template
        ids = tuple(template.opening(messages)) if template is not None else ()
        request = Request(messages, ids, Sampling(temperature=0.0, max_tokens=most))
        waiting = asyncio.run_coroutine_threadsafe(self._policy.generate([request]), self._loop)
        try:
            [done] = waiting.result(_PATIENCE)
        except TimeoutError as error:
            waiting.cancel()
            raise PolicyUnavailableError(
                f"the policy '{self._policy.name}' gave no grade within {_PATIENCE:g} seconds",
                "give a faster one under models",
            ) from error
        return done.text.strip()


def _opened(asked: Asked, models: Path, notify: Notify) -> Policy:
    notify(f"opening the policy {asked.policy} for rewards")
    key = load_settings().api_key if "://" in asked.policy else None
    return open_policy(asked.policy, models, model=asked.model, api_key=key, notify=notify)


def _classifier(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder.

    Raises:
        UsageError: it holds none.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is no model folder",
            "fetch one, and name its folder under models.reranker or models.entailment",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            str(folder), local_files_only=True
        )
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"the classifier in {folder} does not load: {cause}") from error
    return model.eval(), tokenizer


def _logits(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Any:
    """float32[pairs, labels]; the longer text of a pair that is too long is cut."""
    import torch

    limit = min(_LENGTH, getattr(model.config, "max_position_embeddings", _LENGTH))
    out = []
    with torch.inference_mode():
        for start in range(0, len(pairs), _BATCH):
            first, second = zip(*pairs[start : start + _BATCH], strict=True)
            inputs = tokenizer(
                list(first),
                list(second),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            out.append(model(**inputs).logits.float())
    return torch.cat(out)
