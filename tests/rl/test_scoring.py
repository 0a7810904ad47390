"""One pass over a token tree against every sequence alone, with real models."""

import asyncio
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from agent.policies.catalog import resolve
from agent.policies.chat import ChatTemplate
from agent.trajectory import Span
from kg.errors import UsageError
from rl.probes import Wrapper, make_probe, probed_context
from rl.rewards import RewardContext, make_reward
from rl.scoring import ModelScorer, VllmScorer, load_scorer, score_group, score_groups
from rl.tree import build_tree
from rl.tree_attention import NAME, _chosen, on_tree, register, tree_attention
from tests.rl.groups import random_group

CLOSE = 1e-4


@pytest.fixture(scope="module")
def micro(models_dir):
    return resolve("micro", models_dir)


def alone(model, ids):
    """float64[n]: log p of each token of one sequence, by the library's own attention; NaN first."""
    with torch.inference_mode():
        logits = model(torch.tensor([list(map(int, ids))])).logits[0].double()
    found = logits[:-1].log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return np.concatenate([[np.nan], found.numpy()])


def one_by_one(model, group, probes):
    """Scores as a forward pass a turn and trajectory gives them."""
    logprobs, gold = {}, {}
    for trajectory in group:
        row = np.full(len(trajectory.token_ids), np.nan)
        table = np.full((len(probes), len(trajectory.turns)), np.nan)
        for number, turn in enumerate(trajectory.turns):
            context = trajectory.prompt_of(turn).astype(np.int64)
            reply = trajectory.token_ids[turn.reply.start : turn.reply.stop].astype(np.int64)
            if turn.sampled:
                values = alone(model, np.concatenate([context, reply]))
                row[turn.reply.start : turn.reply.stop] = values[len(context) :]
            context = probed_context(trajectory, number)
            for answer, probe in enumerate(probes):
                values = alone(model, np.concatenate([context, probe.ids]))[len(context) :]
                table[answer, number] = values[probe.answer].mean()
        logprobs[trajectory.id], gold[trajectory.id] = row, table
    return logprobs, gold


def tiny():
    """A model of random weights with grouped keys, and a tokenizer's worth of tokens."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=49_152, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models():
    """The same random weights twice: with the tree, and as the library computes them."""
    register()
    plain = tiny()
    plain.set_attn_implementation("eager")
    tree = tiny()
    tree.set_attn_implementation(NAME)
    return tree, plain


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_one_pass_equals_every_turn_alone_on_random_groups(models, template, seed):
    tree, plain = models
    group = random_group(seed)
    answers = ("gold", "the golden one")
    found = score_group(ModelScorer(tree, template, ""), group, answers)
    probes = [make_probe(template, answer) for answer in answers]
    logprobs, gold = one_by_one(plain, group, probes)
    for trajectory in group:
        if trajectory.sampled.any():
            ours = found.logprobs[trajectory.id]
            np.testing.assert_allclose(ours, logprobs[trajectory.id], atol=CLOSE)
            assert (np.isnan(ours) == ~trajectory.sampled).all()
        np.testing.assert_allclose(found.gold[trajectory.id], gold[trajectory.id], atol=CLOSE)
    assert found.tokens <= found.sequence_tokens


@pytest.mark.parametrize("name", ["micro", "default base"])
def test_real_models_score_as_one_by_one(name, micro, base_model):
    folder = micro if name == "micro" else base_model
    scorer = load_scorer(folder, "p")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = min(500, plain.config.vocab_size)
    worst = 0.0
    for seed in range(20 if name == "micro" else 3):
        group = random_group(seed, size=3, vocabulary=vocabulary, lengths=(2, 20))
        answer = "Lise Meitner"
        found = score_group(scorer, group, [answer])
        logprobs, gold = one_by_one(plain, group, [make_probe(scorer.template, answer)])
        for t in group:
            worst = max(worst, np.nanmax(np.abs(found.gold[t.id] - gold[t.id])))
            if t.sampled.any():
                worst = max(worst, np.nanmax(np.abs(found.logprobs[t.id] - logprobs[t.id])))
    assert worst <= CLOSE


def test_a_large_group_in_several_trees_scores_the_same(models, template):
    scorer = ModelScorer(models[0], template, "")
    group = random_group(3, size=8)
    whole, parts = (
        score_group(scorer, group, ["gold"]),
        score_group(scorer, group, ["gold"], most=60),
    )
    assert parts.tokens > whole.tokens
    for t in group:
        np.testing.assert_allclose(parts.gold[t.id], whole.gold[t.id], atol=CLOSE)


def test_large_trees_go_to_the_kernel_that_a_device_is_quick_with():
    """A GPU would wait for a kernel a segment in every layer."""
    rows = np.arange(3000, dtype=np.int64)
    tree = build_tree([rows, np.concatenate([rows[:2000], rows[:500] + 5])])
    assert _chosen(tree, torch.device("cuda")) == "flex"
    assert _chosen(tree, torch.device("cpu")) == "runs"
    small = build_tree([rows[:100]])
    assert _chosen(small, torch.device("cuda")) == "dense"


@pytest.mark.parametrize("way", ["runs", "dense", "flex"])
def test_every_way_to_attend_gives_the_same(models, template, way):
    """FlexAttention, uncompiled here, included."""
    for seed in range(5):
        group = random_group(seed, size=3, turns=(2, 4))
        auto = score_group(ModelScorer(models[0], template, ""), group, ["gold"])
        found = score_group(ModelScorer(models[0], template, "", way), group, ["gold"])
        for t in group:
            np.testing.assert_allclose(found.gold[t.id], auto.gold[t.id], atol=CLOSE)
            if t.sampled.any():
                ours, theirs = found.logprobs[t.id], auto.logprobs[t.id]
                np.testing.assert_allclose(ours, theirs, atol=CLOSE)


def test_a_token_behind_a_turn_changes_nothing_before_it(models, template):
    scorer = ModelScorer(models[0], template, "")
    [first, *_] = random_group(11, size=1, turns=(4, 4))
    cut = first.turns[2].reply.start
    ids = first.token_ids.copy()
    ids[cut:] = (ids[cut:] + 7) % 200
    before = score_group(scorer, [first], ["gold"])
    after = score_group(scorer, [replace(first, token_ids=ids)], ["gold"])
    same = [n for n, turn in enumerate(first.turns) if max(s.stop for s in turn.context) <= cut]
    assert len(same) >= 2
    np.testing.assert_array_equal(
        np.round(before.gold[first.id][:, same], 5), np.round(after.gold[first.id][:, same], 5)
    )
    np.testing.assert_allclose(
        before.logprobs[first.id][:cut], after.logprobs[first.id][:cut], atol=1e-6
    )


def test_scores_carry_no_gradient_and_the_tree_does(models, template):
    from rl.engine import TargetLogprobs
    from rl.tree import build_tree

    tree = build_tree([np.array([1, 2, 3]), np.array([1, 2, 4, 5])])
    rows = tree.rows[1][2:]
    parts = (tree.ids, tree.positions, rows, tree.predictors()[rows])
    with on_tree(tree, torch.device("cpu")):
        TargetLogprobs(models[0])(*map(torch.from_numpy, parts)).sum().backward()
    embedded = models[0].get_input_embeddings().weight.grad
    assert embedded[2].abs().sum() > 0
    assert embedded[3].abs().sum() == 0  # the other branch is not seen
    models[0].zero_grad()
    found = score_group(ModelScorer(models[0], template, ""), random_group(1), ["gold"])
    assert all(isinstance(table, np.ndarray) for table in found.gold.values())
    assert models[0].get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("way", ["dense", "runs"])
def test_attention_of_bfloat16_is_rounded_once_on_a_cpu(way):
    from rl.tree import build_tree

    tree = build_tree([np.array([1, 2, 3]), np.array([1, 2, 4, 5])])
    made = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, 5, 8, generator=made).bfloat16() for heads in (4, 2, 2)]
    with on_tree(tree, torch.device("cpu"), way):
        [found, wide] = [tree_attention(None, *some, None)[0] for some in (parts, _wide(parts))]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wide.bfloat16())


def _wide(parts):
    return [part.float() for part in parts]


def test_what_cannot_be_scored_is_told_and_the_rest_goes_on(models, template):
    scorer = ModelScorer(models[0], template, "p@1")
    group = random_group(2, size=4)
    none = np.zeros(0, dtype=np.int32)
    text_only = replace(
        group[0], turns=(), token_ids=none, logprobs=none.astype(np.float32), id="text"
    )
    foreign = replace(group[1], token_ids=group[1].token_ids + 100_000, id="foreign")
    other = replace(group[2], policy="other@1", id="other")
    found = score_group(scorer, [text_only, foreign, other, group[3]], ["gold"])
    assert set(found.gold) == {group[3].id}
    assert [p.split()[1] for p in found.problems] == ["text", "foreign", "other"]
    assert score_group(scorer, [], ["gold"]).gold == {}
    with pytest.raises(UsageError, match="empty"):
        score_group(scorer, group, [" "])


@pytest.mark.parametrize("alias", ["all", "likeliest", "first"])
def test_groups_together_score_as_each_alone(models, template, alias):
    """All trees at once; a group whose answers are empty is told and harms no other."""
    scorer = ModelScorer(models[0], template, "")
    groups = [random_group(seed, size=3) for seed in (3, 4, 5)]
    answers = [["gold", "Au"], [" "], ["silver"]]
    several = []
    many = scorer.many
    scorer.many = lambda trees: several.append(len(trees)) or many(trees)
    together = score_groups(scorer, groups, answers, most=60, alias=alias)
    assert max(several) >= 4  # trees of more than one group
    assert together[1].gold == {}
    told = zip(groups[1], together[1].problems, strict=True)
    assert all(f"trajectory {t.id} cannot be scored" in problem for t, problem in told)
    for n in (0, 2):
        alone = score_group(scorer, groups[n], answers[n], most=60, alias=alias)
        assert (together[n].tokens, together[n].problems) == (alone.tokens, ())
        for t in groups[n]:
            np.testing.assert_allclose(together[n].gold[t.id], alone.gold[t.id], atol=CLOSE)
            if t.sampled.any():
                ours, theirs = together[n].logprobs[t.id], alone.logprobs[t.id]
                np.testing.assert_allclose(ours, theirs, atol=CLOSE)


@pytest.mark.parametrize("way", ["runs", "dense", "flex"])
@pytest.mark.parametrize("read", ["behind", "at its end"])
def test_what_trees_begin_with_is_computed_once(models, template, way, read):
    """The beginning goes through the model alone and no tree holds it again; scores are those of each
    tree computed whole."""
    rng = np.random.default_rng(0)
    shared = rng.integers(10, 200, 40)

    def branch(size):
        return np.concatenate([shared, rng.integers(200, 400, size)])

    trees = [build_tree([branch(9), branch(3), np.append(branch(5), n)]) for n in range(3)]
    first = 41 if read == "behind" else 40  # row 40 is predicted by the last of the beginning
    asked = [(tree, np.arange(first, len(tree))) for tree in trees]
    scorer = ModelScorer(models[0], template, "", way)
    sizes = []
    compute = scorer._targets.forward
    scorer._targets.forward = lambda ids, *rest: sizes.append(len(ids)) or compute(ids, *rest)
    together = scorer.many(asked)
    kept = 39  # a root keeps a token; so it does where that predicts what is read
    assert sizes == [kept, *(len(tree) - kept for tree in trees)]
    for (tree, rows), found in zip(asked, together, strict=True):
        np.testing.assert_allclose(found, scorer.logprobs(tree, rows), atol=CLOSE)
    assert sizes[4:] == [len(tree) for tree in trees]


def test_trees_without_a_common_beginning_are_computed_whole(models, template):
    """So is one alone, one of several roots, and one whose second token is read."""
    rng = np.random.default_rng(1)
    plain, other, wide = (
        build_tree([rng.integers(10, 400, 9)]),
        build_tree([rng.integers(10, 400, 9)]),
        build_tree([rng.integers(10, 400, 9) for _ in range(2)]),
    )
    scorer = ModelScorer(models[0], template, "")
    rows = np.arange(1, 9)
    for trees in ([plain], [plain, other], [wide, wide], [plain, plain]):
        asked = [(tree, rows) for tree in trees]
        for (tree, _), found in zip(asked, scorer.many(asked), strict=True):
            np.testing.assert_array_equal(found, scorer.logprobs(tree, rows))
    assert scorer.many([(plain, rows[:0]), (plain, rows)])[0].shape == (0,)


def test_a_row_that_is_too_long_is_told_and_the_rest_goes_on(models, template):
    scorer = ModelScorer(models[0], template, "")
    assert scorer.context_length == 512
    group = random_group(2, size=3)
    probe = len(make_probe(template, "gold").ids)

    def size(t):
        """Of its longest context with what is scored behind it."""
        return max(
            len(t.prompt_of(u)) + max(probe, u.sampled * (u.reply.stop - u.reply.start))
            for u in t.turns
        )

    *others, far = sorted(group, key=size)
    scorer.context_length = size(far) - 1
    found = score_group(scorer, group, ["gold"])
    assert set(found.gold) == {t.id for t in others}
    assert f"trajectory {far.id} is too long to score: {size(far)} tokens" in found.problems[0]
    scorer.context_length = size(far)
    assert score_group(scorer, group, ["gold"]).problems == ()


def test_only_the_alias_that_is_scored_is_probed_at_every_turn(models, template):
    scorer = ModelScorer(models[0], template, "")
    group = random_group(4, size=4, turns=(2, 4))
    answers = ["gold", "", "the golden one", "Au"]
    whole = score_group(scorer, group, [a for a in answers if a])
    best = [0, 2, 3][int(np.mean([t[:, 0] for t in whole.gold.values()], axis=0).argmax())]
    likeliest = score_group(scorer, group, answers, alias="likeliest")
    first = score_group(scorer, group, answers, alias="first")
    for alias, found in ((best, likeliest), (0, first)):
        alone = score_group(scorer, group, [answers[alias]])
        for t in group:
            np.testing.assert_allclose(found.gold[t.id][alias], alone.gold[t.id][0], atol=CLOSE)
            others = np.delete(found.gold[t.id], alias, axis=0)
            assert np.isnan(others[:, 1:]).all()
    assert first.tokens < likeliest.tokens < whole.tokens
    context = RewardContext(gold_logprobs=likeliest.gold)
    chosen, curves = make_reward("information_gain").curves(group, context)
    assert chosen == best
    assert all(np.isfinite(curve).all() for curve in curves)
    context = RewardContext(gold_logprobs=first.gold)
    assert make_reward("information_gain", {"alias": "first"}).curves(group, context)[0] == 0


def test_only_tokens_of_the_answer_count(template):
    probe = make_probe(template, "Lise Meitner", Wrapper("<answer>\n", "</answer>"))
    assert template.decode(probe.ids[probe.answer]).strip() == "Lise Meitner"
    assert template.decode(probe.ids).endswith("Lise Meitner")
    assert template.decode(probe.ids[~probe.answer]).strip() == "<answer>"


async def in_a_loop(scorer, group):
    """Scored by a caller that has an event loop, as a notebook or a server has."""
    return score_group(scorer, group, ["Lise Meitner"])


def test_vllm_scores_as_the_model_in_this_process(micro):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from agent.policies.vllm import VllmPolicy

    policy = VllmPolicy(micro, name="p", dtype="float32", max_model_len=512, cache_gib=1)
    try:
        group = random_group(8, size=3, vocabulary=300)
        ours = score_group(load_scorer(micro, "p"), group, ["Lise Meitner"])
        scorer = VllmScorer(policy)
        theirs = asyncio.run(in_a_loop(scorer, group))
        assert scorer.context_length == policy.context_length - 1
        long = np.tile(group[0].token_ids, 40)[: policy.context_length - 5]
        end = Span(len(long) - 1, len(long))
        turn = replace(group[0].turns[0], context=(Span(0, end.start),), reply=end, sampled=True)
        grown = {"token_ids": long, "logprobs": np.zeros(len(long), np.float32)}
        far = replace(group[0], id="far", turns=(turn,), **grown)
        found = score_group(scorer, [far, *group[1:]], ["Lise Meitner"])
        assert set(found.gold) == {t.id for t in group[1:]}
        assert "trajectory far is too long to score" in found.problems[0]
        for t in group:
            np.testing.assert_allclose(theirs.gold[t.id], ours.gold[t.id], atol=1e-3)
    finally:
        asyncio.run(policy.aclose())


def test_a_template_without_offsets_is_told(template):
    class Slow:
        name_or_path = "slow"
        chat_template = "{{ messages }}"
        added_tokens_decoder: ClassVar[dict] = {}
        all_special_tokens: ClassVar[list] = []

        def __call__(self, *_, **__):
            raise NotImplementedError

    with pytest.raises(UsageError, match="offsets"):
        make_probe(ChatTemplate(Slow()), "gold")


def test_the_tokenizer_of_a_model_reads_its_own_probe(micro):
    tokenizer = AutoTokenizer.from_pretrained(micro)
    probe = make_probe(ChatTemplate(tokenizer), "Quin Ardal")
    assert probe.answer.any()
