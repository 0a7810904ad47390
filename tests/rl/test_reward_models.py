"""Models that rewards ask, as plain functions: real classifiers, tiny and untrained; real policies."""

import asyncio

import pytest

from agent.policies.base import Completion, Policy
from kg.errors import UsageError
from rl.reward_models import entailment, facts, functions, judge, reranker
from rl.rewards import RewardError
from rl.train_recipe import load_train


def classifier(folder, micro, labels):
    """A random BERT of a few thousand parameters, with the micro policy's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(str(micro))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_cross_encoder_gives_each_passage_a_relevance(tmp_path, micro):
    rank = reranker(classifier(tmp_path / "one", micro, ["LABEL_0"]))
    passages = ["gold is a metal", "short", "a very long passage " * 100]
    found = rank("Who?", passages)
    assert len(found) == 3
    assert all(0 <= value <= 1 for value in found)
    assert [rank("Who?", [p])[0] for p in passages] == pytest.approx(list(found), abs=1e-5)
    assert rank("Who?", []) == ()
    with pytest.raises(UsageError, match="has 2 outputs"):
        reranker(classifier(tmp_path / "two", micro, ["no", "yes"]))


def test_an_entailment_model_is_found_by_its_label(tmp_path, micro):
    labels = ["contradiction", "neutral", "ENTAILMENT"]
    entails = entailment(classifier(tmp_path / "nli", micro, labels))
    values = {entails(text, "gold is a metal") for text in ("gold is a metal", "no", "x y z")}
    assert all(0 < value < 1 for value in values)
    assert len(values) == 3
    with pytest.raises(UsageError, match="none is 'entailment'"):
        entailment(classifier(tmp_path / "odd", micro, ["no", "yes", "maybe"]))
    with pytest.raises(UsageError, match="is no model folder"):
        entailment(tmp_path / "absent")


class Replies(Policy):
    """A server's policy: no template, replies given."""

    name, version = "replies", "1"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    async def generate(self, requests):
        await asyncio.sleep(0)
        self.asked += requests
        return [Completion(self.replies.pop(0)) for _ in requests]


def test_a_judge_gives_a_number_or_an_error_and_is_asked_once():
    policy = Replies("7", "10/10", "A good answer")
    grade = judge(policy)
    assert [grade("right", "x"), grade("right", "x"), grade("right", "y")] == [0.7, 0.7, 1.0]
    assert len(policy.asked) == 2
    assert policy.asked[0].sampling.temperature == 0
    with pytest.raises(RewardError, match="not a number from 0 to 10"):
        grade("right", "z")


def test_facts_are_lines_without_bullets():
    assert facts(Replies("1. Gold is a metal.\n\n- It is yellow.\n"))("…") == (
        "Gold is a metal.",
        "It is yellow.",
    )


def test_a_local_policy_can_judge(micro, models_dir):
    """The micro policy does not grade; that it is asked at all is what its odd reply shows."""
    recipe = load_train(
        "knowrl_fact", [f"models.judge={micro}", "rewards.answer.options.correctness=judge"]
    )
    context = functions(recipe, models_dir)
    assert context.reranker is None
    with pytest.raises(RewardError, match="the judge replied"):
        context.judge("is a number", "seven")


def test_no_model_is_loaded_that_no_reward_reads(tmp_path):
    recipe = load_train("search_r1", [f"models.reranker={tmp_path / 'absent'}"])
    assert functions(recipe, tmp_path).reranker is None
