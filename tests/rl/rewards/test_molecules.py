"""AttriLens-Mol's attributes and MPPReasoner's claims, checked by RDKit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kg.errors import UsageError
from rl.rewards import Need, RewardContext, RewardError, make_reward
from rl.rewards.attributes import RANGES, USUAL, attributes, descriptor_name
from rl.rewards.chemistry import (
    FEATURES,
    Claim,
    any_claim,
    claim_precision,
    comparison,
    consistency,
    lipinski_violations,
    principle_claims,
    structure_claims,
)
from rl.rewards.molecule import descriptor, has_substructure
from tests.rl.rewards.episodes import abstain, answer, episode, search, task

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"  # 180 Da, logP 1.3, TPSA 64, 1 donor, 3 acceptors, no CNS drug
NONE = RewardContext()


def molecule(smiles=ASPIRIN, label="True", **meta):
    return task(answers=(label,), meta={"smiles": smiles, "property": "bbbp", **meta})


def named(block, said="True", of=None, id="t"):
    text = f"<name>{block}</name><answer>{said}</answer>"
    return episode(answer(said, whole=text), of=of or molecule(), id=id)


def total(name, trajectory, **options):
    return make_reward(name, options)([trajectory], NONE)[0].sum()


class TestAttributes:
    def test_not_improve_is_read_before_improve(self):
        found = attributes("<name>MolWt: improve, TPSA: not improve, logP: maybe</name>")
        assert [a.improves for a in found] == [True, False, None]

    @pytest.mark.parametrize(
        ("block", "share"),
        [
            ("MolWt: improve", 1),  # 180 lies in 100..450
            ("MolWt: not improve", 0),
            ("MolWt: improve, TPSA: not improve, logP: not improve", 1 / 3),
            ("Molecular Weight: improve", 1),
            ("colour: improve", 0),
            ("", 0),
            ("MolWt: improve, MolWt: not improve", 1),  # said twice: the first counts
        ],
    )
    def test_rationality(self, block, share):
        assert total("attribute_rationality", named(block)) == pytest.approx(share)

    @pytest.mark.parametrize(
        ("block", "share"),
        [
            ("MolMR: improve", 1),  # 44.7 lies in 40..130
            ("NOCount: improve, NHOHCount: not improve", 0.5),  # 4 and 1
            ("heavy atoms: improve", 0),  # 13, below 20
            ("QED: improve", 0),  # 0.55
            (
                "MolWt: not improve, molar refractivity: improve",
                0.5,
            ),  # the property's own range counts
        ],
    )
    def test_usual_ranges_stand_where_the_property_has_none(self, block, share):
        assert total("attribute_rationality", named(block)) == pytest.approx(share)
        own = {"usual": False}
        if "MolWt" not in block:
            assert total("attribute_rationality", named(block), **own) == 0

    def test_every_usual_range_is_of_a_descriptor_that_rdkit_has(self):
        assert all(low < high for low, high in USUAL.values())
        assert all(descriptor(ASPIRIN, name) is not None for name in USUAL)
        assert not USUAL.keys() & set().union(*RANGES.values())

    @pytest.mark.parametrize(("by", "value"), [("judge", 0.8), ("both", 0.9), ("rdkit", 1.0)])
    def test_rationality_by_a_judge(self, by, value):
        asked = []

        def judge(criterion, text):
            asked.append((criterion, text))
            return 0.8

        context, reward = (
            RewardContext(judge=judge),
            make_reward("attribute_rationality", {"by": by}),
        )
        assert (Need.JUDGE in reward.needs) == (by != "rdkit")
        one = named("MolWt: improve, TPSA: sure")
        assert reward([one], context)[0].sum() == pytest.approx(value)
        if by == "rdkit":
            assert asked == []
            return
        [(criterion, text)] = asked
        assert "relevant" in criterion
        assert ASPIRIN in text
        assert text.endswith("bbbp\nAttributes:\nMolWt: improve\nTPSA: (no direction)")
        bare = episode(answer("True"), of=molecule(), id="t")
        assert reward([bare], context)[0].sum() == 0
        assert len(asked) == 1  # without a block there is nothing to ask
        with pytest.raises(RewardError, match="trajectory t, turn 0: no judge policy"):
            reward([one], NONE)

    def test_the_judge_s_part_is_not_corrected_for_chance(self):
        options = {"by": "both", "chance_corrected": True}
        reward = make_reward("attribute_rationality", options)
        context = RewardContext(judge=lambda criterion, text: 0.0)
        assert reward([named("MolWt: not improve")], context)[0].sum() == reward.range.low == -0.5

    def test_an_invalid_smiles_is_worth_nothing_and_no_error(self):
        bad = named("MolWt: improve", of=molecule("this is no molecule"))
        assert total("attribute_rationality", bad) == 0

    def test_a_task_without_a_molecule_is_an_error(self):
        with pytest.raises(RewardError, match=r"trajectory t: task q1 has no meta\['smiles'\]"):
            total(
                "attribute_rationality", named("MolWt: improve", of=task(meta={"property": "bbbp"}))
            )
        other = named("MolWt: improve", of=molecule(property="taste"))
        with pytest.raises(RewardError, match="no favourable ranges for 'taste'"):
            total("attribute_rationality", other)

    def test_guessed_directions_earn_nothing_when_chance_is_corrected(self):
        half = named("MolWt: improve, TPSA: not improve")  # one right, one wrong
        assert total("attribute_rationality", half) == 0.5
        assert total("attribute_rationality", half, chance_corrected=True) == 0

    def test_any_descriptor_may_have_a_range(self):
        row = named("BertzCT: improve")
        assert total("attribute_rationality", row, ranges={"BertzCT": (0, 1000)}) == 1
        with pytest.raises(UsageError, match="no descriptor 'Charm'"):
            total("attribute_rationality", named("Charm: improve"), ranges={"Charm": (0, 1)})

    @pytest.mark.parametrize(("n", "value"), [(0, -1), (2, -1), (3, 0), (10, 0), (11, -1)])
    def test_count(self, n, value):
        block = ", ".join(f"attribute {i}: improve" for i in range(n))
        assert total("attribute_count", named(block)) == value

    def test_count_without_a_block_with_lines_and_with_repeats(self):
        assert total("attribute_count", episode(answer())) == -1.5
        assert (
            total("attribute_count", named("MolWt: improve,\nTPSA: improve,\nlogP: improve")) == 0
        )
        assert total("attribute_count", named("MolWt: improve, " * 5)) == -1

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("<name>a: improve</name><answer>True</answer>", 1),
            ("thinking\n<name>a: improve,\nb: improve</name>\n<answer>False</answer>", 1),
            ("<answer>True</answer>", -2),
            ("<answer>True</answer><name>a: improve</name>", -2),
            ("<name>a: improve</name><answer></answer>", -2),
        ],
    )
    def test_format(self, text, value):
        assert total("attribute_format", episode(answer("True", whole=text))) == value

    def test_a_block_before_another_action_is_no_answer(self):
        block = "<name>a: improve</name>"
        for turn in (search(block), abstain(text=f"{block}<abstain>no</abstain>")):
            assert total("attribute_format", episode(turn)) == -2

    @pytest.mark.parametrize(
        ("said", "value"),
        [("False", 0), ("True", 2), ("true.", 2), ("False because not True", 0), ("untrue", 0)],
    )
    def test_correctness_compares_the_whole_answer(self, said, value):
        assert total("attribute_correctness", named("MolWt: improve", said)) == value

    def test_a_gold_label_that_is_none_is_an_error(self):
        with pytest.raises(RewardError, match="trajectory t: the gold label is 'blue'"):
            total("attribute_correctness", named("MolWt: improve", of=molecule(label="blue")))

    def test_an_answer_with_its_block_inside_is_read_behind_it(self):
        text = "<name>MolWt: improve</name> <answer>True</answer>"
        assert total("attribute_correctness", episode(answer(text), of=molecule())) == 2

    def test_names_are_known_or_nothing(self):
        known = list(RANGES["bbbp"])
        assert descriptor_name("H-bond donors", known) == "NumHDonors"
        assert descriptor_name("mol wt", known) == "MolWt"
        assert descriptor_name("heavy atoms", known) is None  # a count is no weight
        assert descriptor_name("x", known) is None

    def test_the_published_ranges(self):
        table = {  # BBBP, BACE, ClinTox
            "MolWt": [(100, 450), (200, 500), (50, 450)],
            "MolLogP": [(1, 4), (1, 5), (-1, 3)],
            "TPSA": [(0, 70), (0, 60), (0, 80)],
            "NumHDonors": [(0, 2), (0, 3), (0, 3)],
            "NumHAcceptors": [(0, 4), (0, 6), (0, 6)],
            "NumRotatableBonds": [(0, 6), (0, 8), (0, 7)],
            "FractionCSP3": [(0.2, 0.6), (0.2, 0.6), (0.1, 0.7)],
            "RingCount": [(1, 4), (1, 5), (0, 4)],
            "NumAromaticRings": [(0, 3), (0, 3), (0, 2)],
            "LabuteASA": [(0, 100), (0, 140), (0, 110)],
            "NumValenceElectrons": [(40, 80), (50, 90), (30, 75)],
            "NumRadicalElectrons": [(0, 0), (0, 0), (0, 0)],
        }
        for n, name in enumerate(("bbbp", "bace", "clintox")):
            assert RANGES[name] == {key: row[n] for key, row in table.items()}

    def test_every_range_is_of_a_real_descriptor(self):
        for ranges in RANGES.values():
            assert all(descriptor(ASPIRIN, name) is not None for name in ranges)

    @given(st.text("abMolWtTPSA:, improvenot\n", max_size=60))
    def test_any_block_is_scored_within_range(self, block):
        for name in ("attribute_rationality", "attribute_count", "attribute_format"):
            reward = make_reward(name)
            assert reward.range.low <= reward([named(block)], NONE)[0].sum() <= reward.range.high


def claims(text, smiles):
    return {c.principle: c.holds for c in principle_claims(text, smiles)}


OCTYLBENZENE, GLUCOSE = "CCCCCCCCc1ccccc1", "OCC1OC(O)C(O)C(O)C1O"


class TestClaims:
    @pytest.mark.parametrize(
        ("text", "smiles", "holds"),
        [
            ("It is lipophilic.", OCTYLBENZENE, True),
            ("It is lipophilic.", GLUCOSE, False),
            ("It is not lipophilic.", GLUCOSE, True),
            ("It is hydrophilic.", GLUCOSE, True),
            ("It is nonpolar.", OCTYLBENZENE, True),
            ("It is polar.", OCTYLBENZENE, False),
            ("It is flexible.", OCTYLBENZENE, True),
            ("It is rigid.", OCTYLBENZENE, False),
            ("It forms hydrogen bonds.", GLUCOSE, True),
            ("It has no aromatic ring.", OCTYLBENZENE, False),
            ("It violates Lipinski's rule of five.", GLUCOSE, False),
            ("It does not violate the rule of five.", GLUCOSE, True),
            ("It satisfies the rule of five.", GLUCOSE, True),
            ("It is a small molecule.", ASPIRIN, True),
            ("It is a large molecule.", ASPIRIN, False),
            ("Steric hindrance matters.", ASPIRIN, False),
            ("It is lipophilic.", ASPIRIN, None),  # logP 1.3: between the limits
        ],
    )
    def test_principles(self, text, smiles, holds):
        assert list(claims(text, smiles).values()) == [holds]

    @pytest.mark.parametrize(
        ("smiles", "broken"),
        [
            (ASPIRIN, 0),
            ("C" * 20, 1),  # logP
            ("C" * 40, 2),  # logP and weight
            ("OCC1OC(OC2(CO)OC(CO)C(O)C2O)C(O)C(O)C1O", 2),  # sucrose: donors and acceptors
            ("OCC(O)C(O)C(O)C(O)CO", 1),  # sorbitol: 6 donors, 6 acceptors
            ("OCC(O)C(O)C(O)CO", 0),  # xylitol: 5 donors, at the limit
        ],
    )
    def test_lipinski_counts_what_is_beyond_its_limits(self, smiles, broken):
        assert lipinski_violations(smiles) == broken
        assert claims("It violates the rule of five.", smiles) == {"lipinski": broken >= 2}

    def test_one_ring_is_aromatic_and_one_acceptor_bonds(self):
        assert claims("aromatic", ASPIRIN) == {"aromaticity": True}
        assert claims("hydrogen bonds", "COC") == {"hydrogen bonds": True}
        assert claims("hydrogen bonds", "CCC") == {"hydrogen bonds": False}

    def test_of_a_molecule_that_does_not_parse_no_claim_counts(self):
        bad = molecule("this is no molecule")
        text = "Aromatic, with steric bulk, an ester and a thiol."
        assert total("molecular_reasoning", reasoned(text, of=bad)) == 2

    def test_more_claims_than_enough_are_worth_no_more(self):
        true = [Claim(str(i), True) for i in range(6)]
        assert claim_precision(true, 1, 3) == 1
        assert claim_precision([*true[:3], Claim("x", None)], 1, 3) == 1
        assert claim_precision([Claim("x", False)] * 3, 1, 3) == -1
        assert claim_precision([*true[:3], Claim("x", False)], 0.5, 3) == pytest.approx(2.5 / 4)

    def test_polar_is_not_read_in_nonpolar(self):
        assert principle_claims("a nonpolar, non-polar tail", OCTYLBENZENE) == [("polarity", True)]

    def test_structures_are_whole_words(self):
        found = dict(
            structure_claims("An ester and a carboxylic acid, of course; no nitro.", ASPIRIN)
        )
        assert found == {"ester": True, "carboxylic acid": True, "nitro": True}
        assert structure_claims("The effect of fluorination", ASPIRIN) == []

    def test_every_feature_is_a_pattern(self):
        examples = {
            "nitrile": "CC#N",
            "fluorine": "CF",
            "epoxide": "C1OC1",
            "piperidine": "C1CCNCC1",
        }
        assert all(has_substructure(smiles, FEATURES[name]) for name, smiles in examples.items())
        assert not any(has_substructure("C", pattern) for pattern in FEATURES.values())

    def test_stuffing_is_free_as_published_and_costs_here(self):
        everything = "lipophilic, hydrophilic, polar, nonpolar, flexible, rigid, aromatic, steric"
        found = principle_claims(everything, OCTYLBENZENE)
        assert any_claim(found) == 1
        assert claim_precision(found, 1, 3) < 0.5

    def test_one_safe_claim_is_worth_a_third(self):
        assert claim_precision(principle_claims("aromatic", ASPIRIN), 1, 3) == pytest.approx(1 / 3)
        assert claim_precision([], 1, 3) == 0


RIGHT = (
    "Overall it is likely to pass: it is aromatic, a small molecule, and nonpolar regions matter."
)


def reasoned(thought=RIGHT, said="True", of=None):
    return episode(search("x", thought=thought), answer(said), of=of or molecule(), id="t")


class TestGating:
    def test_wrong_unparsable_and_declined_get_no_auxiliary_terms(self):
        for form in ("precision", "any"):
            assert total("molecular_reasoning", reasoned(said="False"), form=form) == -1
            assert total("molecular_reasoning", reasoned(said="perhaps"), form=form) == -1.5
            assert (
                total("molecular_reasoning", episode(abstain(), of=molecule()), form=form) == -1.5
            )

    def test_everything_right_is_worth_3(self):
        text = f"{RIGHT} Like CCO, it has an ester and a carboxylic acid and benzene."
        of = molecule(neighbours=["CCO"])
        assert total("molecular_reasoning", reasoned(text, of=of), form="any") == 3
        assert (
            2.9
            < total("molecular_reasoning", reasoned(text.replace("nonpolar", "ring"), of=of))
            <= 3
        )

    def test_a_missing_thought_costs_the_format_and_is_no_error(self):
        assert total("molecular_reasoning", reasoned("")) == 1

    def test_false_claims_cost(self):
        false = "It is a large molecule with a nitro group, a thiol and bromine. It is flexible."
        assert total("molecular_reasoning", reasoned(false)) < total(
            "molecular_reasoning", reasoned("Hm.")
        )

    def test_a_label_that_is_none_is_an_error(self):
        with pytest.raises(RewardError, match="trajectory t, turn 1: the gold label of task q1"):
            total("molecular_reasoning", reasoned(of=molecule(label="blue")))

    def test_consistency_is_lost_by_confirming_both(self):
        assert consistency("Overall it is likely active.", True) == 1
        assert consistency("Overall it is likely active.", False) == 0
        assert consistency("Overall it is likely active, but it is unlikely.", True) == 0
        assert consistency("It is likely active.", True) == 0

    @pytest.mark.parametrize(
        ("phrase", "said"),
        [
            ("is likely to be active", True),
            ("is expected to pass", True),
            ("is active", True),
            ("is likely inactive", False),
            ("is predicted to be inactive", False),
            ("is expected to fail", False),
            ("is unlikely to pass", False),
            ("is not likely to pass", False),
            ("is not active", False),
        ],
    )
    def test_a_phrase_confirms_one_answer_only(self, phrase, said):
        assert consistency(f"Overall it {phrase}.", said) == 1
        assert consistency(f"Overall it {phrase}.", not said) == 0

    def test_comparison_quotes_a_neighbour(self):
        assert comparison("as in CCN", ["CCO", "CCN"]) == 1
        assert comparison("as in CCN", ["", "CCO"]) == 0

    @given(
        st.lists(
            st.sampled_from(["lipophilic", "polar", "not rigid", "aromatic", "ester", "thiol"])
        )
    )
    def test_any_text_is_scored_within_range(self, words):
        reward = make_reward("molecular_reasoning")
        value = reward([reasoned(", ".join(words))], NONE)[0].sum()
        assert 0.5 <= value <= reward.range.high
