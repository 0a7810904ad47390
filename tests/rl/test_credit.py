"""Credit: reference numbers, corner cases and properties of every estimator."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.credit import ESTIMATORS, Batch, CreditError, drop_and_count, estimate, find
from rl.credit.gae import bilevel_gae, token_gae, turn_gae
from rl.credit.group import RewardPart, suffix_returns
from rl.credit.ledger import Unit
from rl.credit.outcome import (
    dr_grpo,
    grpo,
    lite_ppo,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)
from rl.credit.spread import divisor
from rl.credit.stopping import stopping
from rl.credit.turns import gigpo, igpo, turn_group, turn_rloo
from rl.rewards.information_gain import CURRICULUM

# two groups with rewards 1,0,0,0 and 1,1,1,0: winner and loser of each
REFERENCE = {
    "grpo sample": (lambda b: grpo(b, eps=0), (1.5, -0.5, 0.5, -1.5)),
    "grpo population": (
        lambda b: grpo(b, std="population", eps=0),
        (1.73205, -0.57735, 0.57735, -1.73205),
    ),
    "dr_grpo": (dr_grpo, (0.75, -0.25, 0.25, -0.75)),
    "rloo": (rloo, (1.0, -0.3333, 0.3333, -1.0)),
    "lite_ppo raw": (lambda b: lite_ppo(b, eps=0), (1.4031, -0.4677, 0.4677, -1.4031)),
    "lite_ppo demeaned": (
        lambda b: lite_ppo(b, spread="demeaned", eps=0),
        (1.6202, -0.5401, 0.5401, -1.6202),
    ),
    "reinforce_pp_baseline": (
        lambda b: reinforce_pp_baseline(b, eps=0),
        (1.6202, -0.5401, 0.5401, -1.6202),
    ),
    "reinforce_pp": (lambda b: reinforce_pp(b, eps=0), (0.9354, -0.9354, 0.9354, -0.9354)),
}


def outcomes(*groups, tokens=1):
    """One-turn trajectories, group by group."""
    rewards = [[float(r)] for group in groups for r in group]
    numbers = [g for g, group in enumerate(groups) for _ in group]
    spans = [[(0, tokens)] for _ in rewards]
    return Batch.ragged(numbers, {"outcome": rewards}, spans=spans)


def firsts(credit):
    return [float(row[0]) for row in credit.advantages]


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_numbers(name):
    function, expected = REFERENCE[name]
    got = firsts(function(outcomes([1, 0, 0, 0], [1, 1, 1, 0])))
    assert [got[0], got[1], got[4], got[7]] == pytest.approx(expected, abs=6e-5)


def test_near_equal_rewards_are_blown_up_by_group_std_and_not_by_batch_std():
    batch = outcomes([1, 1, 1, 0.999], [1, 0, 0, 0])
    assert firsts(grpo(batch, eps=0))[3] == pytest.approx(-1.5)
    spread = float(batch.outcomes.std(ddof=1))
    assert firsts(lite_ppo(batch, eps=0))[3] == pytest.approx(-0.00075 / spread)


def test_the_two_batch_stds_are_named_and_differ():
    batch = outcomes([1, 0, 0, 0], [1, 1, 1, 0])
    ratio = firsts(lite_ppo(batch, spread="demeaned"))[0] / firsts(lite_ppo(batch))[0]
    assert ratio == pytest.approx(0.5345 / 0.4629, abs=1e-3)
    with pytest.raises(CreditError, match="spread is 'both'"):
        lite_ppo(batch, spread="both")
    with pytest.raises(CreditError, match="std is 'n'"):
        grpo(batch, std="n")


def test_a_group_of_one_and_a_group_of_equals_get_exactly_nothing():
    for name in ("grpo", "dr_grpo", "rloo", "lite_ppo", "turn_group", "turn_rloo", "stopping"):
        assert firsts(estimate(name, outcomes([0.7]))) == [0.0], name
        assert firsts(estimate(name, outcomes([0.1] * 3, [5.0]))) == [0.0] * 4, name


def test_an_empty_batch_gives_empty_credit():
    batch = Batch.ragged([], {"outcome": []}, values=[], anchors=[])
    for name in ESTIMATORS:
        credit = estimate(name, batch)
        assert credit.advantages == ()
        assert credit.ledger.residual() == 0.0


def test_a_trajectory_without_turns_has_zeros():
    batch = Batch.ragged(
        [0, 0, 0],
        {"r": [[], [1.0], [0.0]]},
        sampled=[[False, False], [True], [True]],
        values=[[0, 0], [0], [0]],
        anchors=[[], [1], [1]],
    )
    for name in ESTIMATORS:
        credit = estimate(name, batch)
        assert credit.advantages[0].tolist() == [0.0, 0.0], name


def episodes():
    """Two groups of two-part, two- and three-turn trajectories with tool tokens between turns."""
    gain = [[0.5, -0.2, None], [0.1, None], [0.0, 0.3, None], [0.9, None]]
    outcome = [[None, None, 1.0], [None, 0.0], [None, None, 0.25], [None, -2.0]]
    long, short = [(1, 3), (4, 6), (8, 9)], [(1, 4), (5, 7)]
    tokens = {9: np.zeros(9, bool), 7: np.zeros(7, bool)}
    for spans, size in ((long, 9), (short, 7)):
        for start, stop in spans:
            tokens[size][start:stop] = True
    tokens[9][4] = False  # a forced token within a reply
    return Batch.ragged(
        [7, 7, 3, 3],
        {"information_gain": gain, "outcome": outcome},
        ids=["a", "b", "c", "d"],
        spans=[long, short, long, short],
        sampled=[tokens[9], tokens[7], tokens[9], tokens[7]],
        values=[np.linspace(0, 1, 9), np.linspace(1, 0, 7), np.ones(9), np.zeros(7)],
        anchors=[[0, 1, 2], [0, 2], [0, 0, 1], [0, 1]],
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_receipt_columns_add_up(name):
    batch = episodes()
    credit = estimate(name, batch)
    ledger = credit.ledger
    assert ledger.residual() < 1e-12
    for i, spans in enumerate(batch.spans):
        for k, (start, stop) in enumerate(spans):
            receipt = ledger.receipt(i, k)
            assert sum(receipt.parts.values()) == pytest.approx(batch.rewards[i, k])
            assert sum(t.advantage for t in receipt.terms) == pytest.approx(receipt.advantage)
            for t in receipt.terms:
                expected = t.weight * (t.returns - t.baseline - t.center) / t.scale
                assert t.advantage == pytest.approx(expected)
            mask = batch.sampled[i][start:stop]
            borne = credit.advantages[i][start:stop][mask]
            assert receipt.tokens == len(borne)
            assert borne.mean() == pytest.approx(receipt.advantage, abs=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_tokens_that_were_not_sampled_get_exactly_zero(name):
    batch = episodes()
    for row, mask in zip(estimate(name, batch).advantages, batch.sampled, strict=True):
        assert (row[~mask] == 0.0).all()
        assert row.shape == mask.shape


def test_a_receipt_names_the_turn_and_refuses_a_missing_one():
    ledger = igpo(episodes()).ledger
    receipt = ledger.receipt(1, 1)
    assert (receipt.trajectory, receipt.turn, receipt.parts) == ("b", 1, {"outcome": 0.0})
    assert receipt.terms[0].unit is Unit.TURN
    with pytest.raises(CreditError, match="trajectory 1, turn 2"):
        ledger.receipt(1, 2)
    with pytest.raises(CreditError):
        ledger.receipt(9, 0)


def test_igpo_credits_search_turns_where_grpo_has_nothing_to_say():
    """SkyRL#201: rewards of turns were accepted and ignored."""
    gains = [[0.5, 0.1, None], [-0.3, 0.2, None], [0.0, None]]
    outcome = [[None, None, 1.0], [None, None, 1.0], [None, 1.0]]
    batch = Batch.ragged([0, 0, 0], {"information_gain": gains, "outcome": outcome})
    plain = Batch.ragged([0, 0, 0], {"outcome": outcome})
    assert all((row == 0).all() for row in grpo(plain).advantages)
    credit = igpo(batch)
    assert (credit.ledger.advantage[:, 0] != 0).all()
    assert [row[-1] for row in credit.advantages] == [0.0, 0.0, 0.0]


def test_igpo_gamma_zero_is_the_normalised_reward_and_gamma_one_the_suffix_sum():
    batch = episodes()
    rewards = igpo(batch, gamma=0).ledger
    assert rewards.advantage == pytest.approx(rewards.normalised)
    sums = igpo(batch, gamma=1).ledger
    backwards = np.cumsum(rewards.normalised[:, ::-1], axis=1)[:, ::-1]
    assert sums.advantage[batch.turn_mask] == pytest.approx(backwards[batch.turn_mask])
    half = igpo(batch, gamma=0.5).ledger.advantage
    r = rewards.normalised
    assert half[0, 0] == pytest.approx(r[0, 0] + 0.5 * r[0, 1] + 0.25 * r[0, 2])


def test_igpo_normalises_before_it_accumulates_and_pools_all_turns_of_a_part():
    ledger = igpo(episodes(), eps=0).ledger
    pool = np.array([0.5, -0.2, 0.1])
    assert ledger.normalised[0, 1] == pytest.approx((-0.2 - pool.mean()) / pool.std())
    joint = igpo(episodes(), pools="joint", eps=0).ledger
    pool = np.array([0.5, -0.2, 1.0, 0.1, 0.0])
    assert joint.normalised[0, 1] == pytest.approx((-0.2 - pool.mean()) / pool.std())
    assert joint.normalised[1, 1] == pytest.approx((0.0 - pool.mean()) / pool.std())


def test_igpo_a_gain_of_exactly_zero_is_a_reward_and_a_missing_one_is_not():
    given_zero = Batch.ragged([0, 0], {"r": [[0.0, 1.0], [3.0, 0.0]]})
    missing = Batch.ragged([0, 0], {"r": [[None, 1.0], [3.0, None]]})
    assert igpo(given_zero).ledger.parts[0].center[0, 0] == 1.0
    assert igpo(missing).ledger.parts[0].center[0, 0] == 2.0
    assert igpo(missing).ledger.normalised[0, 0] == 0.0


def test_igpo_a_malformed_rollout_is_punished_at_its_end_and_keeps_its_turns():
    ledger = igpo(episodes()).ledger
    receipt = ledger.receipt(3, 1)
    assert receipt.parts == {"outcome": -2.0}
    assert receipt.normalised["outcome"] < 0
    assert ledger.turn_mask.sum(axis=1).tolist() == [3, 2, 3, 2]


def weighted(batch, at):
    """The batch at the start (0) or the end (1) of IGPO's curriculum."""
    parts = (replace(p, values=p.values * CURRICULUM[p.name][at]) for p in batch.parts)
    return replace(batch, parts=tuple(parts))


def test_curriculum_weights_cancel_exactly_where_documented():
    batch = episodes()
    early, late = weighted(batch, 0), weighted(batch, 1)
    separate = [igpo(b, eps=0).ledger.advantage for b in (early, late)]
    assert separate[0] == pytest.approx(separate[1])
    for options in ({"pools": "joint"}, {"scaled": False}):
        a, b = (igpo(x, **options).ledger.advantage for x in (early, late))
        assert np.abs(a - b).max() > 0.05
    with pytest.raises(CreditError, match="pools"):
        igpo(batch, pools="both")


def test_gigpo_by_hand():
    batch = Batch.ragged([0, 0], {"r": [[0.0, 1.0], [0.0, 0.0]]}, anchors=[[5, 6], [5, 7]])
    credit = gigpo(batch, gamma=0.5, omega=2.0, scaled=False)
    # episodes: 1 and 0, mean 0.5; state 5: returns 0.5 and 0; states 6 and 7 were seen once
    assert credit.advantages[0] == pytest.approx([0.5 + 2 * 0.25, 0.5])
    assert credit.advantages[1] == pytest.approx([-0.5 - 2 * 0.25, -0.5])
    assert [t.name for t in credit.ledger.receipt(0, 0).terms] == ["episode", "step"]
    with pytest.raises(CreditError, match="anchors"):
        gigpo(outcomes([1, 0]))


def test_turn_baselines_by_hand():
    batch = Batch.ragged([0, 0, 0], {"r": [[0.0, 6.0], [0.0, 2.0], [3.0]]})
    assert turn_group(batch).advantages[0] == pytest.approx([6 - 11 / 3, 6 - 4])
    assert turn_rloo(batch).advantages[0] == pytest.approx([6 - 2.5, 6 - 2])
    assert stopping(batch).advantages[2] == pytest.approx([3 - 4])
    alone = Batch.ragged([0, 0], {"r": [[0.0, 6.0], [3.0]]})
    assert turn_rloo(alone).advantages[0] == pytest.approx([3, 6])
    assert stopping(alone).advantages[0] == pytest.approx([3, 6 - 3])


def test_stopping_scale_comes_from_the_other_groups():
    batch = outcomes([1, 0], [3, 0], [8, 4])
    scaled, plain = stopping(batch, scale="others", eps=0), stopping(batch)
    spread = np.std([3, 0, 8, 4], ddof=1)
    assert firsts(scaled)[0] == pytest.approx(firsts(plain)[0] / spread)
    assert firsts(stopping(outcomes([1, 0]), scale="others")) == [1.0, -1.0]
    equal_elsewhere = stopping(outcomes([1, 0], [0.1] * 3), scale="others")
    assert firsts(equal_elsewhere)[:2] == [1.0, -1.0]  # rounding noise is no spread
    with pytest.raises(CreditError, match="scale is 'own'"):
        stopping(batch, scale="own")


def test_token_gae_by_hand_and_across_tool_tokens():
    plain = Batch.ragged([0], {"r": [[1.0]]}, spans=[[(0, 2)]], values=[[0.2, 0.6]])
    last = 1 - 0.6
    first = 0.9 * 0.6 - 0.2 + 0.9 * 0.8 * last
    got = token_gae(plain, gamma=0.9, lam=0.8, whiten=False).advantages[0]
    assert got == pytest.approx([first, last])
    split = Batch.ragged(
        [0],
        {"r": [[0.0, 1.0]]},
        spans=[[(1, 2), (4, 5)]],
        sampled=[[False, True, False, False, True]],
        values=[[np.nan, 0.2, 99.0, np.inf, 0.6]],
    )
    got = token_gae(split, gamma=0.9, lam=0.8, whiten=False).advantages[0]
    assert got == pytest.approx([0, first, 0, 0, last])


def test_whitened_gae_has_mean_zero_and_std_one():
    batch = episodes()
    credit = token_gae(batch, eps=0)
    pool = np.concatenate([a[m] for a, m in zip(credit.advantages, batch.sampled, strict=True)])
    assert pool.mean() == pytest.approx(0, abs=1e-12)
    assert pool.std(ddof=1) == pytest.approx(1)


def test_turn_gae_by_hand():
    batch = Batch.ragged(
        [0], {"r": [[0.5, 1.0]]}, spans=[[(0, 2), (3, 4)]], values=[[0.2, 9.0, 9.0, 0.6]],
        sampled=[[True, True, False, True]],
    )  # fmt: skip
    last = 1 - 0.6
    first = 0.5 + 0.9 * 0.6 - 0.2 + 0.9 * 0.8 * last
    got = turn_gae(batch, gamma=0.9, lam=0.8, whiten=False).advantages[0]
    assert got == pytest.approx([first, first, 0, last])


def test_bilevel_gae_sees_a_turn_with_reward_zero():
    values = [[0.1, 0.3, 0.5, 0.7]]
    spans = [[(0, 2), (2, 4)]]
    batch = Batch.ragged([0], {"r": [[0.0, 1.0]]}, spans=spans, values=values)
    got = bilevel_gae(batch, turn_gamma=0.95, gamma=0.9, lam=0.8, whiten=False).advantages[0]
    high_2 = 1 - 0.7
    high_1 = 0 + 0.95 * 0.7 - 0.3 + 0.95 * 0.8 * high_2
    first = 0.9 * 0.3 - 0.1 + 0.9 * 0.8 * high_1
    third = 0.9 * 0.7 - 0.5 + 0.9 * 0.8 * high_2
    assert got == pytest.approx([first, high_1, third, high_2])
    merged = Batch.ragged([0], {"r": [[1.0]]}, spans=[[(0, 4)]], values=values)
    one_turn = bilevel_gae(merged, turn_gamma=0.95, gamma=0.9, lam=0.8, whiten=False)
    assert abs(one_turn.advantages[0][1] - got[1]) > 0.05


def test_values_are_to_predict_the_return_where_they_are_read():
    batch = Batch.ragged(
        [0, 1],
        {"r": [[0.5, 1.0], [np.nan]]},
        spans=[[(0, 2), (3, 4)], [(0, 1)]],
        sampled=[[True, True, False, True], [True]],
        values=[[0.2, 9.0, 9.0, 0.6], [0.0]],
    )
    options = {"gamma": 0.9, "lam": 0.8}
    none = np.nan
    for name, read in (
        ("token_gae", [True, True, False, True]),
        ("turn_gae", [True, False, False, True]),
        ("bilevel_gae", [True, True, False, True]),
    ):
        plain = estimate(name, batch, whiten=False, **options)
        expected = np.where(read, plain.advantages[0] + batch.values[0], none)
        for whiten in (False, True):  # whitening scales advantages, not what is learnt
            found = estimate(name, batch, whiten=whiten, **options).targets
            assert found[0] == pytest.approx(expected, nan_ok=True), name
            assert np.isnan(found[1]).all()  # it was dropped: its reward is not finite
    assert estimate("grpo", batch).targets is None


def test_gae_without_values_is_an_error():
    for function in (token_gae, turn_gae, bilevel_gae):
        with pytest.raises(CreditError, match="values"):
            function(outcomes([1, 0]))


def test_a_scripted_turns_reward_falls_on_the_token_before_it():
    batch = Batch.ragged(
        [0], {"r": [[0.0, 1.0]]}, spans=[[(0, 1), (1, 2)]], sampled=[[True, False]], values=[[0, 0]]
    )
    for function in (token_gae, turn_gae, bilevel_gae):
        assert function(batch, whiten=False).advantages[0].tolist() == [1.0, 0.0]
    nobody = Batch.ragged(
        [0], {"r": [[1.0, 0.0]]}, spans=[[(0, 1), (1, 2)]], sampled=[[False, True]], values=[[0, 0]]
    )
    for function in (token_gae, turn_gae, bilevel_gae):
        assert function(nobody, whiten=False).advantages[0].tolist() == [0.0, 0.0]


def test_reinforce_pp_discounts_over_sampled_tokens_only():
    """verl#6376: a tool result was taken for the end of the episode; earlier turns lost their return."""
    batch = Batch.ragged(
        [0, 1],
        {"r": [[0.0, 1.0], [0.0]]},
        spans=[[(0, 2), (4, 5)], [(0, 1)]],
        sampled=[[True, True, False, False, True], [True]],
    )
    credit = reinforce_pp(batch, gamma=0.5, eps=0)
    returns = np.array([0.25, 0.5, 1.0, 0.0])
    white = (returns - returns.mean()) / returns.std(ddof=1)
    assert credit.advantages[0] == pytest.approx([white[0], white[1], 0, 0, white[2]])
    assert credit.advantages[1] == pytest.approx([white[3]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_bad_reward_is_named_and_the_batch_goes_on(name, bad):
    def build(rewards, group):
        return Batch.ragged(
            group,
            {"r": rewards},
            ids=[f"t{i}" for i in range(len(group))],
            values=[np.zeros(len(row)) for row in rewards],
            anchors=[[0] * len(row) for row in rewards],
        )

    rewards = [[0.0, 1.0], [0.0, bad], [0.5], [0.25], [bad]]
    batch = build(rewards, [0, 0, 0, 0, 1])
    with pytest.raises(CreditError, match=r"trajectory t1, turn 1: reward 'r' is") as caught:
        find(name).compute(batch)
    assert (caught.value.trajectory, caught.value.turn) == ("t1", 1)
    credit = estimate(name, batch)
    assert [e.trajectory for e in credit.dropped] == ["t1", "t4"]
    sound = find(name).compute(build([rewards[i] for i in (0, 2, 3)], [0, 0, 0]))
    for row, i in enumerate((0, 2, 3)):
        assert credit.advantages[i].tolist() == sound.advantages[row].tolist()
    assert not credit.advantages[1].any()
    assert credit.ledger.turn_mask.any(axis=1).tolist() == [True, False, True, True, False]
    assert credit.ledger.residual() < 1e-12
    with pytest.raises(CreditError):
        credit.ledger.receipt(1, 0)


def test_a_batch_of_nothing_but_bad_rows_gives_zeros():
    credit = drop_and_count(grpo, outcomes([float("nan"), float("inf")]))
    assert len(credit.dropped) == 2
    assert firsts(credit) == [0.0, 0.0]


def test_a_bad_value_is_named():
    batch = Batch.ragged(
        [0], {"r": [[0.0, 1.0]]}, ids=["x"], spans=[[(0, 2), (2, 3)]], values=[[0, 0, np.nan]]
    )
    with pytest.raises(CreditError, match="trajectory x, turn 1: value nan at token 2"):
        token_gae(batch)


def test_unknown_names_say_what_was_meant():
    with pytest.raises(CreditError) as caught:
        find("gropo")
    assert caught.value.hint == "did you mean 'grpo'?"
    with pytest.raises(CreditError) as caught:
        estimate("igpo", episodes(), gama=0.5)
    assert caught.value.hint == "did you mean 'gamma'?"
    with pytest.raises(CreditError) as caught:
        estimate("rloo", episodes(), gamma=0.5)
    assert caught.value.hint == "it has none"
    assert estimate("igpo", episodes(), gamma=0.5).dropped == ()


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(CreditError, match="at least one reward part"):
        Batch.ragged([0], {})
    with pytest.raises(CreditError, match="1 rows for 2"):
        Batch.ragged([0, 0], {"r": [[1.0]]})
    with pytest.raises(CreditError, match="2 turns in row 0"):
        Batch.ragged([0], {"r": [[1.0]], "s": [[1.0, 2.0]]})
    with pytest.raises(CreditError, match=r"turn 1: span 1\.\.3"):
        Batch.ragged([0], {"r": [[1.0, 1.0]]}, spans=[[(0, 2), (1, 3)]])
    with pytest.raises(CreditError, match="sampled token 1 is in no turn"):
        Batch.ragged([0], {"r": [[1.0]]}, spans=[[(0, 1)]], sampled=[[True, True]])
    with pytest.raises(CreditError, match="2 values for 1 tokens"):
        Batch.ragged([0], {"r": [[1.0]]}, values=[[0.0, 0.0]])
    with pytest.raises(CreditError, match="2 anchors for 1 turns"):
        Batch.ragged([0], {"r": [[1.0]]}, anchors=[[0, 0]])
    with pytest.raises(CreditError, match="spans of shape"):
        Batch.ragged([0], {"r": [[1.0]]}, spans=[[]])


def test_masks_with_gaps_and_rewards_beyond_the_end_are_refused():
    good = Batch.ragged([0], {"r": [[1.0, 2.0]]})
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    with pytest.raises(CreditError, match="gap"):
        Batch(**{**fields, "turn_mask": np.array([[False, True]])})
    with pytest.raises(CreditError, match="beyond"):
        Batch(**{**fields, "turn_mask": np.array([[True, False]])})
    part = RewardPart("r", np.zeros((1, 3)), np.zeros((1, 3), bool))
    with pytest.raises(CreditError, match="r has the shape"):
        Batch(**{**fields, "parts": (part,)})


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_suffix_returns_at_the_ends_of_gamma(rewards):
    row = np.array([rewards])
    assert suffix_returns(row, 0.0).tolist() == row.tolist()
    assert suffix_returns(row, 1.0)[0] == pytest.approx(
        [sum(rewards[k:]) for k in range(len(row[0]))]
    )


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if "gamma" in e.options])
def test_a_discount_outside_zero_to_one_is_refused(name, gamma):
    with pytest.raises(CreditError, match=r"gamma'? is (-0\.1|1\.1|nan)"):
        estimate(name, episodes(), gamma=gamma)


def test_unnormalised_information_gains_telescope():
    """The return of a turn is how far the confidence rose from its start to the end."""
    confidence = [-2.0, -1.1, -1.4, -0.3]
    gains = [b - a for a, b in itertools.pairwise(confidence)]
    credit = turn_rloo(Batch.ragged([0, 0], {"information_gain": [gains, [0.0]]}))
    returns = credit.ledger.terms[0].returns[0]
    assert returns == pytest.approx([confidence[-1] - c for c in confidence[:-1]])


# --- properties -------------------------------------------------------------------------------

ALL = sorted(ESTIMATORS)
IN_GROUP = ("grpo", "dr_grpo", "rloo", "igpo", "turn_group", "turn_rloo", "gigpo", "stopping")
reward = st.integers(-8, 8).map(lambda k: k / 4)


@st.composite
def ragged(draw, least=1):
    """Random groups with turns of one to three tokens, tool tokens and scripted replies."""
    n = draw(st.integers(least, 8))
    rows = [draw(st.lists(reward, min_size=1, max_size=4)) for _ in range(n)]
    spans, sampled = [], []
    for row in rows:
        edges, mask = [], []
        for _ in row:
            mask += [False] * draw(st.integers(0, 2))
            length = draw(st.integers(1, 3))
            edges.append((len(mask), len(mask) + length))
            mask += [draw(st.integers(0, 5)) > 0] * length
        spans.append(edges)
        sampled.append(mask)
    return {
        "group": [draw(st.integers(0, 2)) for _ in rows],
        "rewards": rows,
        "spans": spans,
        "sampled": sampled,
        "values": [[draw(reward) for _ in mask] for mask in sampled],
        "anchors": [[draw(st.integers(0, 2)) for _ in row] for row in rows],
    }


def build(raw, order=None, scale=1.0):
    order = range(len(raw["group"])) if order is None else order
    rewards = [[scale * r for r in raw["rewards"][i]] for i in order]
    rest = {k: [raw[k][i] for i in order] for k in ("spans", "sampled", "anchors")}
    values = [[scale * v for v in raw["values"][i]] for i in order]
    return Batch.ragged([raw["group"][i] for i in order], {"r": rewards}, values=values, **rest)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(raw=ragged(), random=st.randoms())
def test_the_order_of_trajectories_does_not_matter(name, raw, random):
    order = list(range(len(raw["group"])))
    random.shuffle(order)
    straight, mixed = estimate(name, build(raw)), estimate(name, build(raw, order))
    for row, i in enumerate(order):
        assert mixed.advantages[row] == pytest.approx(straight.advantages[i], abs=1e-7)


@pytest.mark.parametrize("name", IN_GROUP)
@settings(max_examples=25, deadline=None)
@given(raw=ragged(least=3), change=st.floats(0.5, 3))
def test_nothing_leaks_from_one_group_to_another(name, raw, change):
    before = estimate(name, build(raw))
    other = raw["group"][0]
    raw["rewards"] = [
        [r * change + 1 for r in row] if g == other else row
        for g, row in zip(raw["group"], raw["rewards"], strict=True)
    ]
    after = estimate(name, build(raw))
    for i, g in enumerate(raw["group"]):
        if g != other:
            assert after.advantages[i].tolist() == before.advantages[i].tolist()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "lite_ppo"])
@settings(max_examples=50, deadline=None)
@given(raw=ragged())
def test_advantages_of_a_group_sum_to_zero_over_trajectories(name, raw):
    """agent-lightning#445: with a row a turn, long trajectories weighed more in the group's mean."""
    batch = build(raw)
    first = estimate(name, batch).ledger.advantage[:, 0]
    for rows in batch.groups:
        assert first[rows].sum() == pytest.approx(0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(raw=ragged())
def test_normalised_rewards_sum_to_zero_in_their_pool_and_centred_returns_per_turn(raw):
    batch = build(raw)
    ledger, returns = igpo(batch).ledger, turn_group(batch).ledger
    for rows in batch.groups:
        assert ledger.normalised[rows].sum() == pytest.approx(0, abs=1e-6)
        assert returns.advantage[rows].sum(axis=0) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["grpo", "lite_ppo", "reinforce_pp", "reinforce_pp_baseline",
                                  "igpo", "gigpo", "token_gae", "turn_gae", "bilevel_gae"])  # fmt: skip
@settings(max_examples=25, deadline=None)
@given(raw=ragged(), scale=st.sampled_from([0.25, 3.0, 100.0]))
def test_scaled_estimators_do_not_feel_the_scale_of_rewards(name, raw, scale):
    compute = find(name).compute
    small, large = compute(build(raw), eps=1e-12), compute(build(raw, scale=scale), eps=1e-12)
    for a, b in zip(small.advantages, large.advantages, strict=True):
        if np.abs(a).max() < 1e3:  # a pool of almost equal numbers is noise in either
            assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("name", ["dr_grpo", "rloo", "turn_group", "turn_rloo", "stopping"])
@settings(max_examples=25, deadline=None)
@given(raw=ragged(), scale=st.sampled_from([0.25, 3.0, 100.0]))
def test_unscaled_estimators_scale_with_rewards(name, raw, scale):
    small, large = estimate(name, build(raw)), estimate(name, build(raw, scale=scale))
    for a, b in zip(small.advantages, large.advantages, strict=True):
        assert a * scale == pytest.approx(b, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(raw=ragged())
def test_masks_finiteness_and_columns_hold_everywhere(name, raw):
    batch = build(raw)
    credit = estimate(name, batch)
    assert credit.ledger.residual() < 1e-9
    for row, mask in zip(credit.advantages, batch.sampled, strict=True):
        assert np.isfinite(row).all()
        assert (row[~mask] == 0).all()


@settings(max_examples=50, deadline=None)
@given(raw=ragged())
def test_rloo_is_dr_grpo_times_a_constant(raw):
    batch = build(raw)
    a, b = rloo(batch).ledger.advantage, dr_grpo(batch).ledger.advantage
    for rows in batch.groups:
        factor = len(rows) / (len(rows) - 1) if len(rows) > 1 else 1.0
        assert a[rows] == pytest.approx(b[rows] * factor, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(raw=ragged())
def test_one_turn_estimators_agree_with_their_outcome_kin(raw):
    raw["rewards"] = [row[:1] for row in raw["rewards"]]
    raw["anchors"] = [row[:1] for row in raw["anchors"]]
    raw["spans"] = [row[:1] for row in raw["spans"]]
    raw["sampled"] = [m[: s[0][1]] for m, s in zip(raw["sampled"], raw["spans"], strict=True)]
    raw["values"] = [v[: len(m)] for v, m in zip(raw["values"], raw["sampled"], strict=True)]
    batch = build(raw)
    pairs = [
        (rloo(batch), turn_rloo(batch)),
        (rloo(batch), stopping(batch)),
        (dr_grpo(batch), turn_group(batch)),
        (grpo(batch), turn_group(batch, scaled=True)),
        (grpo(batch, std="population"), igpo(batch)),
    ]
    for a, b in pairs:
        assert a.ledger.advantage == pytest.approx(b.ledger.advantage, abs=1e-9)


EQUAL = [
    name
    for name, one in ESTIMATORS.items()
    if "eps" in one.options and not one.values and name != "gigpo"  # which wants anchors
]


@pytest.mark.parametrize("name", EQUAL)
def test_equal_rewards_give_nothing_where_nothing_is_added_to_the_spread(name):
    credit = estimate(name, outcomes([0.1] * 4), eps=0.0)
    assert credit.dropped == ()
    assert all((row == 0).all() for row in credit.advantages)


@pytest.mark.parametrize("name", EQUAL)
def test_a_spread_with_less_than_nothing_added_is_refused(name):
    with pytest.raises(CreditError, match="'eps' is -1"):
        estimate(name, outcomes([1.0, 0.0, 0.0, 0.0]), eps=-1)
    with pytest.raises(CreditError, match="eps is -1"):
        divisor(np.array([1.0, 0.0]), "sample", -1.0)
