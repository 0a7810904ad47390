"""Losses: reference numbers, masks, and gradients against what they ought to be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.losses import (
    LossError,
    Reduction,
    Tokens,
    aggregate,
    clipped_surrogate,
    entropy_from_logits,
    gspo,
    importance_weights,
    kl,
    kl_loss,
    kl_straight_through,
    masked_log_ratio,
    ppo_clip,
)

NAN = float("nan")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def tokens(logprobs, old, advantages, mask=None, sequence=None, weights=None):
    n = len(logprobs)
    return Tokens(
        torch.tensor(logprobs, dtype=torch.float64, requires_grad=True),
        tensor(*old),
        tensor(*advantages),
        torch.tensor([True] * n if mask is None else mask),
        torch.tensor([0] * n if sequence is None else sequence),
        None if weights is None else tensor(*weights),
    )


def gradient(output, inputs):
    value = output if isinstance(output, torch.Tensor) else output.value
    return torch.autograd.grad(value, inputs.logprobs, retain_graph=True)[0].tolist()


# --- aggregation --------------------------------------------------------------------------------

LOSSES = tensor(*[1.0] * 2, *[-0.5] * 8)
SEQUENCE = torch.tensor([0] * 2 + [1] * 8)
AGGREGATED = {
    "token-mean": -0.2,
    "sequence-mean": 0.25,
    "sequence-sum": -1.0,
    "constant": -0.0625,
}


@pytest.mark.parametrize("how", AGGREGATED)
def test_aggregation_reference_numbers(how):
    got = aggregate(LOSSES, torch.ones(10, dtype=torch.bool), SEQUENCE, Reduction(how, 16))
    assert float(got) == pytest.approx(AGGREGATED[how], abs=1e-12)


@pytest.mark.parametrize("how", AGGREGATED)
def test_padding_and_order_do_not_matter(how):
    plain = aggregate(LOSSES, torch.ones(10, dtype=torch.bool), SEQUENCE, Reduction(how, 16))
    losses = torch.cat([LOSSES.flip(0), tensor(NAN, 7.0)])
    mask = torch.tensor([True] * 10 + [False] * 2)
    sequence = torch.cat([SEQUENCE.flip(0) * 40 - 3, torch.tensor([5, -3])])
    assert float(aggregate(losses, mask, sequence, Reduction(how, 16))) == pytest.approx(
        float(plain)
    )


@pytest.mark.parametrize("how", AGGREGATED)
def test_parts_of_a_batch_add_up_to_the_whole(how):
    mask = torch.ones(10, dtype=torch.bool)
    whole = aggregate(LOSSES, mask, SEQUENCE, Reduction(how, 16))
    divisor = 10 if how == "token-mean" else 2
    part = Reduction(how, 16, divisor)
    cut = [slice(0, 2), slice(2, 10)]
    total = sum(aggregate(LOSSES[c], mask[c], SEQUENCE[c], part) for c in cut)
    assert float(total) == pytest.approx(float(whole))


@pytest.mark.parametrize("how", AGGREGATED)
def test_without_a_loss_token_the_loss_is_zero_and_can_be_differentiated(how):
    given = tokens([NAN, -1.0], [NAN, NAN], [NAN, 1.0], mask=[False, False])
    for function in (ppo_clip, gspo):
        output = function(given, reduction=Reduction(how))
        assert float(output.value.detach()) == 0.0
        assert gradient(output, given) == [0.0, 0.0]
    nothing, integers = tensor(), torch.zeros(0, dtype=torch.long)
    empty = Tokens(tensor().requires_grad_(), nothing, nothing, integers.bool(), integers)
    assert float(ppo_clip(empty, reduction=Reduction(how)).value.detach()) == 0.0


def test_reductions_that_make_no_sense_are_refused():
    for options in ({"how": "mean"}, {"constant": 0.0}, {"divisor": -1.0}, {"divisor": NAN}):
        with pytest.raises(LossError):
            Reduction(**options)


# --- KL -----------------------------------------------------------------------------------------

LOGITS, ANCHOR = tensor(0.3, -0.2, 0.5), tensor(-0.4, 0.6, 0.1)
KL_TABLE = {
    "k1": (0.18943, (0.0, 0.0, 0.0)),
    "k2": (0.17684, (0.15958, -0.22493, 0.06534)),
    "k3": (0.18943, (0.16729, -0.29200, 0.12471)),
    "true reverse": (0.18943, (0.15958, -0.22493, 0.06534)),
    "true forward": (0.21116, (0.16729, -0.29200, 0.12471)),
}


def kl_row(name):
    """Value and gradient w.r.t. logits, expectation over tokens drawn from the policy, held fixed."""
    logits = LOGITS.clone().requires_grad_()
    p, q = torch.log_softmax(logits, -1), torch.log_softmax(ANCHOR, -1)
    if name == "true reverse":
        value = (p.exp() * (p - q)).sum()
    elif name == "true forward":
        value = (q.exp() * (q - p)).sum()
    else:
        value = (p.detach().exp() * kl(p, q, name)).sum()
    return float(value.detach()), torch.autograd.grad(value, logits)[0].tolist()


@pytest.mark.parametrize("name", KL_TABLE)
def test_kl_reference_numbers(name):
    value, grad = kl_row(name)
    assert value == pytest.approx(KL_TABLE[name][0], abs=6e-6)
    assert grad == pytest.approx(KL_TABLE[name][1], abs=6e-6)


def test_k2_descends_the_reverse_and_k3_the_forward_divergence_exactly():
    assert kl_row("k2")[1] == pytest.approx(kl_row("true reverse")[1], abs=1e-12)
    assert kl_row("k3")[1] == pytest.approx(kl_row("true forward")[1], abs=1e-12)


@pytest.mark.parametrize("value", ["k1", "k2", "k3"])
@pytest.mark.parametrize("slope", ["k1", "k2", "k3"])
def test_straight_through_has_one_value_and_another_gradient(value, slope):
    logprobs = tensor(-1.0, -0.2).requires_grad_()
    anchor = tensor(-0.5, -2.0)
    mixed = kl_straight_through(logprobs, anchor, value, slope)
    assert mixed.tolist() == pytest.approx(kl(logprobs, anchor, value).tolist())
    got = torch.autograd.grad(mixed.sum(), logprobs)[0]
    want = torch.autograd.grad(kl(logprobs, anchor, slope).sum(), logprobs)[0]
    assert got.tolist() == pytest.approx(want.tolist())


def test_kl_loss_ignores_tokens_without_loss():
    given = tokens([-1.0, NAN, -0.5], [-1.0, 0, -0.5], [0, 0, 0], mask=[True, False, True])
    output = kl_loss(given, tensor(-1.5, NAN, -0.5))
    expected = (math.exp(-0.5) + 0.5 - 1) / 2
    assert float(output.value.detach()) == pytest.approx(expected)
    assert float(output.diagnostics["kl"]) == pytest.approx(expected)
    assert gradient(output, given) == pytest.approx([0.25, 0.0, 0.0])
    with pytest.raises(LossError, match="k4"):
        kl_loss(given, tensor(0, 0, 0), value="k4")
    with pytest.raises(LossError, match="k1's gradient is 0"):
        kl_loss(given, tensor(0, 0, 0), gradient="k1")


@pytest.mark.parametrize(("slope", "name"), [("k2", "true reverse"), ("k3", "true forward")])
def test_off_policy_the_kl_has_the_value_and_the_gradient_of_the_exact_one(slope, name):
    """Tokens of an engine, ratios to a policy before: three distributions, and all tokens of each."""
    engine, before = (torch.log_softmax(tensor(*z), -1) for z in ((0.9, -1, 0), (0, 0.5, -0.3)))
    logits = LOGITS.clone().requires_grad_()
    current, anchor = torch.log_softmax(logits, -1), torch.log_softmax(ANCHOR, -1)
    total = torch.zeros((), dtype=current.dtype)
    for token in range(3):
        mask, one = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
        at = slice(token, token + 1)
        weights = importance_weights(before[at], engine[at], mask, one, high=None)
        given = Tokens(current[at], before[at], tensor(0.0), mask, one, weights)
        total = total + engine[token].exp() * kl_loss(given, anchor[at], gradient=slope).value
    found = torch.autograd.grad(total, logits)[0].tolist()
    assert float(total.detach()) == pytest.approx(KL_TABLE["true reverse"][0], abs=6e-6)
    assert found == pytest.approx(kl_row(name)[1], abs=1e-9)


# --- PPO ----------------------------------------------------------------------------------------


def test_clip_by_hand():
    ratios = [1.5, 0.5, 1.5, 0.5, 1.1]
    given = tokens([math.log(r) for r in ratios], [0.0] * 5, [1.0, 1.0, -1.0, -1.0, 2.0])
    output = ppo_clip(given, low=0.2, high=0.28)
    losses = [-1.28, -0.5, 1.5, 0.8, -2.2]
    assert float(output.value.detach()) == pytest.approx(sum(losses) / 5)
    assert gradient(output, given) == pytest.approx([0, -0.1, 0.3, 0, -0.44])
    d = output.diagnostics
    assert (float(d["clip_low"]), float(d["clip_high"])) == pytest.approx((0.2, 0.2))
    assert float(d["ratio_mean"]) == pytest.approx(sum(ratios) / 5)
    assert float(d["ratio_max"]) == pytest.approx(1.5)
    assert (int(d["tokens"]), int(d["sequences"])) == (5, 1)
    kls = [r - 1 - math.log(r) for r in ratios]
    assert float(d["old_kl"]) == pytest.approx(sum(kls) / 5)
    assert not any(v.requires_grad for v in d.values())


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    given = tokens([math.log(9.0), math.log(2.0), math.log(9.0)], [0.0] * 3, [-1.0, -1.0, 1.0])
    output = ppo_clip(given, dual=3.0)
    assert float(output.value.detach()) == pytest.approx((3 + 2 - 1.2) / 3)
    assert gradient(output, given) == pytest.approx([0, 2 / 3, 0])
    assert float(output.diagnostics["clip_dual"]) == pytest.approx(1 / 3)
    assert float(ppo_clip(given).value.detach()) == pytest.approx((9 + 2 - 1.2) / 3)


def test_on_policy_it_is_reinforce():
    given = tokens([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [0.5, -1.5, 2.0])
    assert gradient(ppo_clip(given), given) == pytest.approx([-0.5 / 3, 1.5 / 3, -2 / 3])


@pytest.mark.parametrize("function", [ppo_clip, gspo])
def test_numbers_outside_the_mask_are_never_used(function):
    """Flash-RL#19: log-probabilities stored for masked tokens entered the ratios."""
    mask = [True, False, True, False]
    clean = tokens([-1.0, -9, -0.7, -9], [-1.2, -9, -0.6, -9], [1, 0, -1, 0], mask, [0, 0, 1, 1])
    dirty = tokens([-1.0, NAN, -0.7, 5], [-1.2, NAN, -0.6, NAN], [1, NAN, -1, 7], mask,
                   [0, 0, 1, 1], [1, NAN, 1, NAN])  # fmt: skip
    a, b = function(clean), function(dirty)
    assert float(a.value.detach()) == float(b.value.detach())
    assert gradient(a, clean) == gradient(b, dirty)
    assert gradient(b, dirty)[1] == gradient(b, dirty)[3] == 0.0
    for name, value in a.diagnostics.items():
        assert float(value) == float(b.diagnostics[name]), name


def test_weights_multiply_the_loss_of_their_token():
    given = tokens([0.0, 0.0], [0.0, 0.0], [1.0, 1.0], weights=[0.5, 0.0])
    assert gradient(ppo_clip(given), given) == pytest.approx([-0.25, 0.0])


def test_an_enormous_ratio_stays_finite():
    given = tokens([0.0, 0.0], [-1e4, -1e4], [-1.0, 0.0])
    output = ppo_clip(given)
    assert math.isfinite(float(output.value.detach()))
    assert gradient(output, given) == [0.0, 0.0]
    assert float(masked_log_ratio(given).detach().max()) == 20.0


def test_options_out_of_range_and_shapes_that_differ_are_refused():
    given = tokens([0.0], [0.0], [1.0])
    for options in ({"low": -0.1}, {"low": 1.1}, {"high": -1.0}, {"dual": 1.0}):
        with pytest.raises(LossError):
            ppo_clip(given, **options)
    with pytest.raises(LossError, match="old has the shape"):
        tokens([0.0], [0.0, 1.0], [1.0])
    with pytest.raises(LossError, match="mask is torch"):
        Tokens(given.logprobs, given.old, given.advantages, given.old, given.sequence)
    with pytest.raises(LossError, match="expected \\[tokens\\]"):
        Tokens(*(torch.zeros(1, 1),) * 5)


def test_sixteen_bit_log_probabilities_are_refused():
    given = tokens([0.0], [0.0], [1.0])
    rest = (given.old, given.advantages, given.mask, given.sequence)
    with pytest.raises(LossError, match=r"logprobs is torch\.bfloat16"):
        Tokens(given.logprobs.bfloat16(), *rest)


def test_a_reshaped_ratio_can_be_clipped_too():
    ratio = tensor(0.5, 3.0).requires_grad_()
    losses, flags = clipped_surrogate(ratio / (ratio + 0.1), tensor(1.0, 1.0), 0.2, 0.2, None)
    assert losses.tolist() == pytest.approx([-0.5 / 0.6, -3 / 3.1])
    assert not flags["clip_high"].any()


# --- GSPO ---------------------------------------------------------------------------------------


def test_gspo_has_one_ratio_per_sequence():
    given = tokens([-1.0, -1.0, -1.0], [-1.2, -1.0, -0.9], [1.0, 1.0, 1.0], sequence=[0, 0, 1])
    output = gspo(given, low=0.5, high=0.5)
    s0, s1 = math.exp(0.1), math.exp(-0.1)
    assert float(output.value.detach()) == pytest.approx(-(s0 + s1) / 2)
    assert gradient(output, given) == pytest.approx([-s0 / 4, -s0 / 4, -s1 / 2])


def test_gspo_is_reduced_as_it_is_told():
    given = tokens([-1.0, -1.0, -1.0], [-1.2, -1.0, -0.9], [1.0, 1.0, 1.0], sequence=[0, 0, 1])
    output = gspo(given, low=0.5, high=0.5, reduction=Reduction("token-mean"))
    s0, s1 = math.exp(0.1), math.exp(-0.1)
    assert float(output.value.detach()) == pytest.approx(-(2 * s0 + s1) / 3)


def test_gspo_clips_whole_sequences_and_caps_the_log_ratio():
    given = tokens([-1.0, -1.0, -1.0], [-1.2, -1.0, -0.9], [1.0, 1.0, -1.0], sequence=[0, 0, 1])
    output = gspo(given)
    assert gradient(output, given) == [0.0, 0.0, 0.0]
    assert float(output.diagnostics["clip_high"]) == pytest.approx(2 / 3)
    assert float(output.diagnostics["clip_low"]) == pytest.approx(1 / 3)
    far = tokens([0.0], [-50.0], [-1.0])
    capped = gspo(far, cap=10.0)
    assert float(capped.value.detach()) == pytest.approx(math.exp(10))
    assert gradient(capped, far) == [0.0]


def test_gspo_with_tokens_of_one_each_is_ppo():
    given = tokens([-1.0, -2.0], [-1.3, -1.6], [1.0, -2.0], sequence=[0, 1])
    a, b = gspo(given, low=0.2, high=0.2), ppo_clip(given, low=0.2, high=0.2)
    assert float(a.value.detach()) == pytest.approx(float(b.value.detach()))
    assert gradient(a, given) == pytest.approx(gradient(b, given))


# --- importance weights, entropy ----------------------------------------------------------------

OLD, BEHAVIOUR = tensor(-1.0, -1.0, -1.0, -1.0), tensor(-2.0, -0.5, NAN, -1.1)
MASK, TWO = torch.tensor([True, True, True, False]), torch.tensor([0, 0, 1, 1])
E = math.e
WEIGHTS = {
    ("token", "truncate"): [2.0, math.exp(-0.5), 1.0, 1.0],
    ("token", "mask"): [0.0, math.exp(-0.5), 1.0, 1.0],
    ("sequence", "truncate"): [math.exp(0.5), math.exp(0.5), 1.0, 1.0],
    ("sequence", "mask"): [math.exp(0.5), math.exp(0.5), 1.0, 1.0],
}


@pytest.mark.parametrize(("level", "mode"), WEIGHTS)
def test_importance_weights_by_hand(level, mode):
    got = importance_weights(OLD, BEHAVIOUR, MASK, TWO, level=level, mode=mode, high=2.0)
    assert got.tolist() == pytest.approx(WEIGHTS[level, mode])


def test_importance_bounds():
    def weights(**options):
        return importance_weights(OLD, BEHAVIOUR, MASK, TWO, **options).tolist()

    assert weights(high=None) == pytest.approx([E, math.exp(-0.5), 1, 1])
    assert weights(low=0.9, high=None) == pytest.approx([E, 0.9, 1, 1])
    assert weights(low=0.9, high=None, mode="mask") == pytest.approx([E, 0, 1, 1])
    assert weights(level="sequence", mode="mask", high=1.2) == pytest.approx([0, 0, 1, 1])
    with pytest.raises(LossError):
        weights(level="turn")


def test_sequence_weights_without_bounds_make_any_expectation_that_of_the_old_policy():
    """All sequences of two binary tokens, drawn by another policy."""
    p, q = 0.3, 0.6
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            drawn = (q if a else 1 - q) * (q if b else 1 - q)
            old = tensor(*(math.log(p if x else 1 - p) for x in (a, b)))
            behaviour = tensor(*(math.log(q if x else 1 - q) for x in (a, b)))
            mask, one = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
            w = importance_weights(old, behaviour, mask, one, level="sequence", high=None)
            total += drawn * float(w[0]) * (a + 2 * b)
    assert total == pytest.approx(3 * p)


def test_entropy_of_known_distributions():
    logits = torch.stack([tensor(0, 0, 0, 0), tensor(0, 0, -math.inf, -math.inf)])
    got = entropy_from_logits(logits)
    assert got.tolist() == pytest.approx([math.log(4), math.log(2)])
    logits = tensor(1.0, -2.0, 0.5, -math.inf).requires_grad_()
    entropy_from_logits(logits).backward()
    assert torch.isfinite(logits.grad).all()
    p = torch.softmax(logits.detach(), -1)[:3]
    expected = -p * (p.log() + entropy_from_logits(logits.detach()))
    assert logits.grad[:3].tolist() == pytest.approx(expected.tolist())


# --- properties -----------------------------------------------------------------------------------

number = st.floats(-2, 2)


@st.composite
def batches(draw):
    n = draw(st.integers(1, 12))
    column = st.lists(number, min_size=n, max_size=n)
    return (
        draw(column),
        draw(column),
        draw(column),
        draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)),
    )


@pytest.mark.parametrize("function", [ppo_clip, gspo])
@settings(max_examples=40, deadline=None)
@given(raw=batches(), random=st.randoms())
def test_losses_do_not_depend_on_the_order_of_tokens(function, raw, random):
    order = list(range(len(raw[0])))
    random.shuffle(order)
    plain, mixed = tokens(*raw), tokens(*([column[i] for i in order] for column in raw))
    a, b = function(plain), function(mixed)
    assert float(a.value.detach()) == pytest.approx(float(b.value.detach()), abs=1e-9)
    moved = [gradient(a, plain)[i] for i in order]
    assert gradient(b, mixed) == pytest.approx(moved, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(raw=batches())
def test_the_clipped_loss_is_never_below_the_plain_surrogate(raw):
    given = tokens(*raw)
    ratio = masked_log_ratio(given).exp()
    plain = torch.where(given.mask, -ratio * given.advantages, torch.zeros_like(ratio))
    mean = plain.sum() / given.mask.sum().clamp(min=1)
    assert float(ppo_clip(given).value.detach()) >= float(mean.detach()) - 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=6), number)
def test_entropy_lies_between_zero_and_log_n_and_ignores_shifts(logits, shift):
    one = float(entropy_from_logits(tensor(*logits)))
    assert -1e-12 <= one <= math.log(len(logits)) + 1e-12
    assert float(entropy_from_logits(tensor(*logits) + shift)) == pytest.approx(one, abs=1e-9)
