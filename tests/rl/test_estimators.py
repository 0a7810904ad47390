"""Expected gradients, exactly: every group of a toy whose policy chooses when to stop.

The toy has up to three turns. At each the policy stops right, stops wrong or searches on; the last
turn cannot search. A search is two sampled tokens around a tool token, the second of them of no
consequence, so that tokens, turns and trajectories differ in number. All 14 episodes can be listed,
and so can all groups of them: expectations are sums, and there is no tolerance for luck.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rl.credit import Batch, estimate
from rl.credit.ledger import Unit
from rl.losses import Reduction, Tokens, gspo, ppo_clip

PARAMETERS = 3 + 2 + 3 + 2 + 2  # logits: act at turns 0 and 1, a filler for each, act at turn 2
ACT, FILLER = (slice(0, 3), slice(5, 8), slice(10, 12)), (slice(3, 5), slice(8, 10))
THETA = np.array([0.2, -0.5, 0.4, 0.3, -0.2, 0.1, 0.6, -0.3, -0.1, 0.5, 0.7, -0.4])
SEARCH_REWARD = (0.3, -0.2)
STOP_REWARD = ((1.0, 0.0), (1.4, -0.1), (0.6, -0.5))


@dataclass(frozen=True)
class Episode:
    probability: float
    scores: tuple  # per sampled token: gradient of its log-probability
    rewards: tuple  # per turn
    lengths: tuple  # sampled tokens per turn
    states: tuple  # before each sampled token

    @property
    def reward(self):
        return sum(self.rewards)

    @property
    def score(self):
        return np.sum(self.scores, axis=0)


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def pick(where, action):
    """Probability of one token and the gradient of its logarithm."""
    p = softmax(THETA[where])
    score = np.zeros(PARAMETERS)
    score[where] = -p
    score[where.start + action] += 1
    return p[action], score


def list_episodes(turn=0, chosen=True):
    """All ways to go on from a turn; unless `chosen`, every episode searches twice, then answers."""
    last = turn == 2
    found = []
    if chosen or last:
        for action, reward in enumerate(STOP_REWARD[turn]):
            p, score = pick(ACT[turn], action)
            found.append(Episode(p, (score,), (reward,), (1,), ((turn, 0),)))
    if last:
        return found
    p, score = pick(ACT[turn], 2) if chosen else (1.0, np.zeros(PARAMETERS))
    for filler, rest in itertools.product(range(2), list_episodes(turn + 1, chosen)):
        q, filler_score = pick(FILLER[turn], filler)
        reward = SEARCH_REWARD[turn] + (0.0 if chosen else 0.4 * filler)
        found.append(
            Episode(
                p * q * rest.probability,
                (score, filler_score, *rest.scores),
                (reward, *rest.rewards),
                (2, *rest.lengths),
                ((turn, 0), (turn, 1), *rest.states),
            )
        )
    return found


EPISODES = list_episodes()
FIXED = list_episodes(chosen=False)


def true_gradient(episodes=EPISODES, reward=lambda e: e.reward):
    return sum(e.probability * reward(e) * e.score for e in episodes)


def batch_of(groups, values=None):
    """One batch with each tuple of episodes as a group."""
    episodes = [e for group in groups for e in group]
    spans, sampled, rows = [], [], []
    for e in episodes:
        edges, mask, row = [], [], []
        for length in e.lengths:
            first = sum(mask)
            edges.append((len(mask), len(mask) + length))
            mask += [True] * length + [False]
            known = values or (lambda state: 0.0)
            row += [known(s) for s in e.states[first : first + length]] + [math.nan]
        spans.append(edges)
        sampled.append(mask)
        rows.append(row)
    anchors = [list(range(len(e.rewards))) for e in episodes]
    numbers = [g for g, group in enumerate(groups) for _ in group]
    rewards = {"r": [list(e.rewards) for e in episodes]}
    return Batch.ragged(
        numbers, rewards, spans=spans, sampled=sampled, values=rows, anchors=anchors
    )


def expected(
    name, size, episodes=EPISODES, *, apart=False, per_length=False, values=None, **options
):
    """Sum over all groups of P(group) x (1/G) sum of advantage x score, over all their tokens.

    Args:
        apart: one batch per group, for estimators that look across groups.
        per_length: divide a trajectory's sum by its number of tokens, as mean-of-means losses do.
    """
    groups = list(itertools.product(episodes, repeat=size))
    if apart:
        parts = [estimate(name, batch_of([g], values), **options).advantages for g in groups]
        advantages = [row for part in parts for row in part]
        masks = [m for g in groups for m in batch_of([g], values).sampled]
    else:
        batch = batch_of(groups, values)
        advantages, masks = estimate(name, batch, **options).advantages, batch.sampled
    total, row = np.zeros(PARAMETERS), 0
    for group in groups:
        weight = math.prod(e.probability for e in group) / size
        for e in group:
            share = weight / (len(e.scores) if per_length else 1)
            total += share * (advantages[row][masks[row]] @ np.array(e.scores))
            row += 1
    return total


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def by_turn(gradient):
    """The gradient's shares of turns 0, 1 and 2 (each has logits of its own)."""
    return gradient[:5], gradient[5:10], gradient[10:]


VALUES = {(0, 0): 0.7, (0, 1): -0.3, (1, 0): 1.1, (1, 1): 0.2, (2, 0): -0.4}


def test_the_toy_is_complete_and_its_gradient_is_right():
    assert len(EPISODES) == 2 + 2 * (2 + 2 * 2)
    assert sum(e.probability for e in EPISODES) == pytest.approx(1)
    assert sum(e.probability for e in FIXED) == pytest.approx(1)
    assert sum(e.probability * e.score for e in EPISODES) == pytest.approx(np.zeros(PARAMETERS))
    numeric = np.zeros(PARAMETERS)
    for k in range(PARAMETERS):
        for sign in (1, -1):
            THETA[k] += sign * 1e-5
            numeric[k] += sign * sum(e.probability * e.reward for e in list_episodes()) / 2e-5
            THETA[k] -= sign * 1e-5
    assert true_gradient() == pytest.approx(numeric, abs=1e-8)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["rloo", "turn_rloo", "stopping"])
def test_unbiased_over_groups(name, size):
    assert expected(name, size) == pytest.approx(true_gradient(), abs=1e-9)


def declines(episode):
    """The second way to stop, in the tests of episodes that are left out."""
    return episode.rewards[-1] == STOP_REWARD[len(episode.rewards) - 1][1]


def gradient_given_an_answer():
    """Of the expected reward given that the episode does not decline, and the chance of that."""

    def value():
        kept = [e for e in list_episodes() if not declines(e)]
        mass = sum(e.probability for e in kept)
        return sum(e.probability * e.reward for e in kept) / mass, mass

    numeric = np.zeros(PARAMETERS)
    for k in range(PARAMETERS):
        for sign in (1, -1):
            THETA[k] += sign * 1e-5
            numeric[k] += sign * value()[0] / 2e-5
            THETA[k] -= sign * 1e-5
    return numeric, value()[1]


def left_out(name, size):
    """Sum over all groups of P(group) x sum of advantage x score over those that do not decline."""
    groups = [
        (math.prod(e.probability for e in group), tuple(e for e in group if not declines(e)))
        for group in itertools.product(EPISODES, repeat=size)
    ]
    groups = [(weight, kept) for weight, kept in groups if kept]
    batch = batch_of([kept for _, kept in groups])
    advantages, total, row = estimate(name, batch).advantages, np.zeros(PARAMETERS), 0
    for weight, kept in groups:
        for e in kept:
            total += weight * (advantages[row][batch.sampled[row]] @ np.array(e.scores))
            row += 1
    return total


@pytest.mark.parametrize("size", [2, 3])
def test_rloo_without_what_declined_is_the_gradient_of_the_reward_given_an_answer(size):
    gradient, mass = gradient_given_an_answer()
    assert 0.2 < mass < 0.8
    # mean number of answers, groups with a single one counted as none
    answers = size * mass * (1 - (1 - mass) ** (size - 1))
    assert left_out("rloo", size) == pytest.approx(answers * gradient, abs=1e-7)
    assert np.abs(gradient - true_gradient()).max() > 0.05


@pytest.mark.parametrize("name", ["turn_rloo", "stopping"])
def test_other_baselines_lose_their_unbiasedness_where_what_declined_is_left_out(name):
    gradient, mass = gradient_given_an_answer()
    answers = 3 * mass * (1 - (1 - mass) ** 2)
    assert np.abs(left_out(name, 3) - answers * gradient).max() > 0.02


@pytest.mark.parametrize("name", ["token_gae", "turn_gae", "bilevel_gae"])
def test_gae_with_gamma_and_lambda_one_is_unbiased_for_any_values(name):
    options = {"turn_gamma": 1.0} if name == "bilevel_gae" else {}
    got = expected(name, 1, values=VALUES.get, whiten=False, **options)
    assert got == pytest.approx(true_gradient(), abs=1e-9)


@pytest.mark.parametrize("name", ["token_gae", "turn_gae", "bilevel_gae"])
def test_gae_with_lambda_below_one_inherits_the_error_of_its_values(name):
    options = {"turn_gamma": 1.0} if name == "bilevel_gae" else {}
    got = expected(name, 1, values=VALUES.get, whiten=False, lam=0.5, **options)
    assert np.abs(got - true_gradient()).max() > 0.01


def test_gae_with_lambda_below_one_and_exact_values_is_unbiased():
    exact = {}
    for e in EPISODES:
        token = 0
        for turn, length in enumerate(e.lengths):
            for _ in range(length):
                past, state = sum(e.rewards[:turn]), e.states[token]
                sums = exact.setdefault(state, [0.0, 0.0])
                sums[0] += e.probability * (e.reward - past)
                sums[1] += e.probability
                token += 1
    values = {state: total / mass for state, (total, mass) in exact.items()}
    got = expected("token_gae", 1, values=values.get, whiten=False, lam=0.3)
    assert got == pytest.approx(true_gradient(), abs=1e-9)


def test_stopping_is_unbiased_for_groups_of_questions_with_a_scale_from_the_others():
    """Two groups of two: each gradient is the true one times the mean of 1/scale over the others."""
    pairs = list(itertools.product(EPISODES, repeat=2))
    got, factor = np.zeros(PARAMETERS), 0.0
    elsewhere = [(EPISODES[0], EPISODES[1]), (EPISODES[0], EPISODES[9]), (EPISODES[3],) * 2]
    for others in elsewhere:
        rewards = np.array([e.reward for e in others])
        spread = rewards.std(ddof=1)
        factor += 1 / (spread + 1e-6 if spread > 0 else 1.0) / len(elsewhere)
        for pair in pairs:
            batch = batch_of([pair, others])
            credit = estimate("stopping", batch, scale="others")
            weight = pair[0].probability * pair[1].probability / 2 / len(elsewhere)
            for row, e in enumerate(pair):
                got += weight * (credit.advantages[row][batch.sampled[row]] @ np.array(e.scores))
    assert got == pytest.approx(factor * true_gradient(), abs=1e-9)


@pytest.mark.parametrize("name", ["turn_rloo", "stopping"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_a_discounted_return_needs_the_discount_of_its_turn(name, gamma):
    def discounted(e):
        return sum(gamma**k * r for k, r in enumerate(e.rewards))

    truth = true_gradient(reward=discounted)
    shares = by_turn(expected(name, 2, gamma=gamma))
    for k, (share, true_share) in enumerate(zip(shares, by_turn(truth), strict=True)):
        assert gamma**k * share == pytest.approx(true_share, abs=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_dr_grpo_is_the_true_gradient_times_a_constant(size):
    got = expected("dr_grpo", size)
    assert got == pytest.approx((size - 1) / size * true_gradient(), abs=1e-9)


@pytest.mark.parametrize("success", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("size", [2, 4])
def test_grpo_std_reweights_questions_by_their_difficulty(success, size):
    """One Bernoulli action: the factor is E[sqrt(k (G - k))] / (G p (1 - p))."""
    p = success
    right = Episode(p, (np.array([1 - p]),), (1.0,), (1,), ((0, 0),))
    wrong = Episode(1 - p, (np.array([-p]),), (0.0,), (1,), ((0, 0),))
    got = 0.0
    for group in itertools.product((right, wrong), repeat=size):
        credit = estimate("grpo", batch_of([group]), std="population", eps=1e-12)
        weight = math.prod(e.probability for e in group) / size
        got += weight * sum(
            float(a[0] * e.scores[0][0]) for a, e in zip(credit.advantages, group, strict=True)
        )
    binomial = [
        math.comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k * (size - k))
        for k in range(size + 1)
    ]
    slope = p * (1 - p)  # derivative of p by its logit
    assert got == pytest.approx(sum(binomial) / (size * p * (1 - p)) * slope, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {}),
        ("igpo", {}),
        ("igpo", {"scaled": False}),
        ("gigpo", {}),
        ("gigpo", {"scaled": False, "gamma": 1.0}),
        ("turn_group", {}),
        ("turn_group", {"scaled": True}),
    ],
)
def test_biased_estimators_do_not_even_point_the_right_way(name, options):
    got = expected(name, 3, **options)
    assert cosine(got, true_gradient()) < 0.9995


@pytest.mark.parametrize("name", ["lite_ppo", "reinforce_pp", "reinforce_pp_baseline"])
def test_batch_statistics_bias(name):
    got = expected(name, 2, apart=True)
    assert cosine(got, true_gradient()) < 0.9995


@pytest.mark.parametrize("size", [2, 3])
def test_same_turn_baselines_shrink_late_turns_when_the_policy_chooses_to_stop(size):
    """Each turn's share of the gradient is multiplied by E[1 - 1/n_t | this one reaches t].

    verl#7244: MT-GRPO normalises by turn index and pays a hidden fee for every further turn.
    """
    reach = [sum(e.probability for e in EPISODES if len(e.rewards) > k) for k in range(3)]
    factors = [1 - (1 - (1 - p) ** size) / (size * p) for p in reach]
    assert factors[0] > factors[1] > factors[2]
    shares = by_turn(expected("turn_group", size))
    for share, true_share, factor in zip(shares, by_turn(true_gradient()), factors, strict=True):
        assert share == pytest.approx(factor * true_share, abs=1e-9)


def test_same_turn_baselines_are_harmless_when_all_episodes_have_one_length():
    got = expected("turn_group", 2, FIXED)
    assert got == pytest.approx(0.5 * true_gradient(FIXED), abs=1e-9)


def test_rewards_centred_before_summing_pay_for_length():
    """With the same reward at every turn, the return is the length; IGPO sees nothing at all."""
    flat = [
        Episode(e.probability, e.scores, (0.5,) * len(e.rewards), e.lengths, e.states)
        for e in EPISODES
    ]
    assert np.linalg.norm(true_gradient(flat)) > 0.05
    assert expected("igpo", 2, flat) == pytest.approx(np.zeros(PARAMETERS))
    assert expected("igpo", 2, flat, scaled=False) == pytest.approx(np.zeros(PARAMETERS))
    assert expected("stopping", 2, flat) == pytest.approx(true_gradient(flat), abs=1e-9)


@pytest.mark.parametrize("name", ["rloo", "stopping"])
def test_a_length_divisor_biases_an_unbiased_advantage(name):
    """cua-lite#13: a divisor per trajectory taught shorter turns and more of them."""
    got = expected(name, 2, per_length=True)
    assert cosine(got, true_gradient()) < 0.9995
    if name == "rloo":
        mean = sum(e.probability * e.reward for e in EPISODES)
        exact = sum(e.probability * (e.reward - mean) * e.score / len(e.scores) for e in EPISODES)
        assert got == pytest.approx(exact, abs=1e-9)


def loss_gradient(loss, name, reduction):
    """Expected gradient by autograd, through credit, tool-token masks and the loss, of pairs."""
    move = torch.zeros(PARAMETERS, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(EPISODES, repeat=2):
        batch = batch_of([pair])
        credit = estimate(name, batch)
        mask = np.concatenate(batch.sampled)
        scores = np.full((len(mask), PARAMETERS), 7.0)  # tool tokens: wrong on purpose
        scores[mask] = np.concatenate([e.scores for e in pair])
        logprobs = torch.from_numpy(scores) @ move - 1.0
        sequence = np.repeat([0, 1], [len(m) for m in batch.sampled])
        tokens = Tokens(
            logprobs,
            torch.full_like(logprobs.detach(), -1.0),
            torch.from_numpy(np.concatenate(credit.advantages)),
            torch.from_numpy(mask),
            torch.from_numpy(sequence),
        )
        weight = pair[0].probability * pair[1].probability
        total = total + weight * loss(tokens, reduction=reduction).value
    return -torch.autograd.grad(total, move)[0].numpy()


@pytest.mark.parametrize("name", ["rloo", "turn_rloo", "stopping"])
def test_from_rewards_to_the_loss_the_gradient_is_the_true_one(name):
    for reduction in (Reduction("sequence-sum"), Reduction("sequence-sum", divisor=2)):
        got = loss_gradient(ppo_clip, name, reduction)
        assert got == pytest.approx(true_gradient(), abs=1e-9)
    got = loss_gradient(ppo_clip, name, Reduction("constant", 4))
    assert got == pytest.approx(true_gradient() / 4, abs=1e-9)


@pytest.mark.parametrize("how", ["token-mean", "sequence-mean"])
@pytest.mark.parametrize("loss", [ppo_clip, gspo])
def test_reductions_by_length_bias_what_was_unbiased(loss, how):
    got = loss_gradient(loss, "stopping", Reduction(how))
    assert cosine(got, true_gradient()) < 0.9995


def with_outcome_plus(constant):
    return [
        Episode(
            e.probability,
            e.scores,
            (*e.rewards[:-1], e.rewards[-1] + constant),
            e.lengths,
            e.states,
        )
        for e in EPISODES
    ]


def test_a_constant_added_to_every_outcome_changes_nothing_in_stopping():
    """It does in `turn_rloo`, whose baseline is 0 where no other trajectory reached the turn."""
    pairs = [list(itertools.product(es, repeat=2)) for es in (EPISODES, with_outcome_plus(5.0))]
    for name, same in (("stopping", True), ("turn_rloo", False)):
        a, b = (estimate(name, batch_of(groups)).ledger.advantage for groups in pairs)
        assert np.allclose(a, b) == same


def second_moment(name, episodes, size):
    """E |gradient of a group|^2: the estimator's variance plus a constant."""
    groups = list(itertools.product(episodes, repeat=size))
    batch = batch_of(groups)
    credit, total, row = estimate(name, batch), 0.0, 0
    for group in groups:
        gradient = np.zeros(PARAMETERS)
        for e in group:
            gradient += credit.advantages[row][batch.sampled[row]] @ np.array(e.scores) / size
            row += 1
        total += math.prod(e.probability for e in group) * float(gradient @ gradient)
    return total


@pytest.mark.parametrize("size", [2, 3])
def test_the_stopping_fallback_lowers_variance_where_outcomes_have_a_mean(size):
    episodes = with_outcome_plus(1.0)
    stopping = second_moment("stopping", episodes, size)
    assert stopping < 0.9 * second_moment("turn_rloo", episodes, size)


def test_the_unit_of_account_is_on_the_receipt():
    batch = batch_of([(EPISODES[0], EPISODES[-1])])
    units = {name: estimate(name, batch).ledger.terms[0].unit for name in ("rloo", "stopping")}
    assert units == {"rloo": Unit.TRAJECTORY, "stopping": Unit.TURN}
