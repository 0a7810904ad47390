"""Pre-training from nothing on fictional worlds, at a size that takes seconds; the real engines."""

import asyncio

import pytest

from agent.policies.base import Request, Sampling
from agent.policies.chat import ChatTemplate
from agent.policies.transformers import TransformersPolicy
from kg.errors import UsageError
from rl.pretrain import documents, load_tokenizer, pretrain
from rl.recipe import MicroShape, Optimizer, PretrainRecipe, Worlds

SHAPE = MicroShape(
    vocabulary=1024, hidden=64, layers=2, heads=2, key_value_heads=1, head_size=32, feed_forward=128,
    context=1024,
)  # fmt: skip


def recipe(**changes):
    return PretrainRecipe(**{
        "shape": SHAPE, "worlds": Worlds(count=3, first_seed=5, entities=60), "documents": 150,
        "epochs": 2,
        "optimizer": Optimizer(lr=3e-3), "pack_tokens": 1024, "batch_tokens": 4096, "dtype": "float32",
        **changes,
    })  # fmt: skip


def test_documents_are_the_same_each_time_and_answers_stand_in_them():
    first, again = list(documents(recipe(), [5, 6])), list(documents(recipe(), [5, 6]))
    assert first == again
    asked = [text for text in first if "<answer>" in text]
    assert 0.5 < len(asked) / len(first) < 0.9
    for text in asked:
        passages = text.split("<answer>")[0]
        for part in text.split("<answer>")[1:]:
            answer, number = part.split("</answer>")[0].rsplit(" [", 1)
            line = next(one for one in passages.split("\n") if one.startswith(f"[{number}"))
            assert answer in line


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("micro")
    return run, pretrain(recipe(), run)


def test_the_loss_falls_and_the_result_is_a_policy(made):
    _, report = made
    assert report.finished
    assert report.holdout_after < report.holdout_before - 1.5
    policy = TransformersPolicy(report.out, dtype="float32")
    ids = tuple(policy.template.opening(({"role": "user", "content": "Who wrote it?"},)))
    [done] = asyncio.run(policy.generate([Request((), ids, Sampling(max_tokens=5))]))
    assert len(done.token_ids) == len(done.logprobs) >= 1
    asyncio.run(policy.aclose())


def test_the_tokenizer_has_a_template_that_only_appends(made):
    run, _ = made
    template = ChatTemplate(load_tokenizer(run / "tokenizer"))
    opening = template.opening(({"role": "user", "content": "a"},))
    assert (
        template.tokenizer.decode(opening)
        == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.tokenizer.decode(template.between("user", "b")) == (
        "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.eos_id == template.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_run_of_another_recipe_is_refused(made):
    run, _ = made
    with pytest.raises(UsageError, match="another recipe"):
        pretrain(recipe(seed=9), run)


def test_copying_is_measured_on_questions_of_an_unread_world(made):
    from rl.pretrain import copied

    _, report = made
    policy = TransformersPolicy(report.out, dtype="float32")
    found = asyncio.run(copied(policy, recipe(), seed=77, count=12))
    asyncio.run(policy.aclose())
    assert found.n == 12
    assert 0 <= found.mean <= 1
