"""Retrieval, samples, choices, abstention."""

import math
import random
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import weighted
from eval.metrics.abstention import (
    Reply,
    abstention,
    aurc,
    confidence_auroc,
    ece,
    reliability,
    risk_coverage,
)
from eval.metrics.choice import entity_overlap, hits_at_1, multiple_choice, rmse, roc_auc
from eval.metrics.retrieval import hit_at_k, mrr, ndcg_at_k, recall_at_k
from eval.metrics.sampling import majority, pass_at_k
from eval.metrics.values import normalise_values, number, number_in, numbers_in, written
from tests.eval import references as ref


def test_retrieval():
    ranked = ["d", "a", "c", "b"]
    assert (hit_at_k(ranked, ["a"], 1), hit_at_k(ranked, ["a"], 2)) == (0, 1)
    assert recall_at_k(ranked, ["a", "b", "x", "y"], 4) == 0.5
    assert (mrr(ranked, ["c", "b"]), mrr(ranked, ["c"], 2)) == (pytest.approx(1 / 3), 0)
    with pytest.raises(ValueError, match="relevant"):
        recall_at_k(ranked, [], 1)


@given(
    st.permutations(list("abcdefgh")),
    st.sets(st.sampled_from("abcdefgh"), min_size=1),
    st.integers(1, 9),
)
def test_ndcg_equals_the_definition_and_is_1_for_the_best_ranking(ranked, relevant, k):
    assert ndcg_at_k(ranked, relevant, k) == pytest.approx(ref.ndcg(ranked, relevant, k))
    best = sorted(ranked, key=lambda document: document not in relevant)
    assert ndcg_at_k(best, relevant, k) == pytest.approx(1)


def test_three_thousand_fuzzed_rankings_score_as_the_reference():
    chance = random.Random(0)
    for _ in range(3000):
        ranked = chance.sample("abcdefghij", chance.randint(0, 10))
        relevant = chance.sample("abcdefghijxyz", chance.randint(1, 4))
        k = chance.randint(1, 10)
        hit, recall, rank = ref.retrieval(ranked, relevant, k)
        assert (hit_at_k(ranked, relevant, k), recall_at_k(ranked, relevant, k)) == (hit, recall)
        assert mrr(ranked, relevant) == rank
        assert ndcg_at_k(ranked, relevant, k) == pytest.approx(ref.ndcg(ranked, relevant, k))


def test_a_repeated_document_counts_once():
    assert recall_at_k(["a", "a", "a", "b"], ["b"], 2) == 1
    assert ndcg_at_k(["a", "a"], ["a"], 2) == 1


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (5, 1, 5)])
def test_pass_at_k_is_what_enumeration_gives(n, c, k):
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_refuses_what_cannot_be():
    for n, c, k in ((3, 1, 4), (3, 1, 0), (3, 4, 1)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(n, c, k)


def test_majority_is_after_normalisation_and_the_earlier_wins_ties():
    assert majority(["The cat", "dog", "cat!"]) == "The cat"
    assert majority(["b", "a"]) == "b"
    assert majority(["", "", "x"]) == ""


@pytest.mark.parametrize(
    ("said", "score"),
    [("B", 1), ("(b)", 1), ("b) blue", 1), ("Blue.", 1), ("the blue", 1), ("A", 0), ("red", 0),
     ("", 0), ("Answer: B", 1), ("Because", 0), ("C", 0)],
)  # fmt: skip
def test_multiple_choice(said, score):
    assert multiple_choice(said, ["red", "blue", "green"], 1) == score


@pytest.mark.parametrize(
    "run",
    ["!", "- ", "x", "(", "x. ", "\n", "(x)", "\\boxed{", "I choose ", "B is ", "so B ", "(B "],
)
def test_a_reply_of_one_sign_without_end_is_scored_in_no_time(run):
    began = time.process_time()
    for choices in (["red", "blue"], ["yes", "no"]):
        assert multiple_choice(20_000 * run + "?", choices, 1) == 0
    assert time.process_time() - began < 1


SIX = ["fracture", "-20", "20", "2.5", "E. coli", "a"]


@pytest.mark.parametrize(
    ("said", "named"),
    [("A fracture of the hip", None), ("A fracture", 0), ("fracture", 0), ("A", 5), ("a.", 5),
     ("(A)", 0), ("A)", 0), ("A: the fracture", 0), ("A, because of the hip", 0), ("A, B", None),
     ("A or B", None), ("A and B", None), ("A\nIt broke.", 0), ("A - broken", 0), ("I am", None),
     ("20", 2), ("-20", 1), ("-20.", 1), ("\u221220", 1), ("25", None), ("2.5", 3), ("20 %", 2),
     ("E. coli", 4), ("E. coli infection", None), ("E. The bacterium", 4), ("e. e. coli", 4),
     ("The answer is B", 1), ("The answer is B.", 1), ("So the answer is (B)", 1),
     ("The answer is B because it is cold", 1), ("The answer is: B) -20", 1),
     ("The correct answer is option C, the warm one", 2), ("The answer is a fracture", 0),
     ("The answer is a bone", None), ("The answer is not B", None), ("Answer: **D**", 3),
     ("It is cold, so the answer is B.", 1), ("The answer is B. No, the answer is C.", None),
     ("The answer is -20", 1), ("The final answer is 20", 2), ("**B**", 1), ('"B"', 1),
     ("B -20", 1), ("option b", 1), ("Choice C", 2), ("Z", None), ("", None), ("B's", None),
     ("Option B is correct", 1), ("B is correct", 1), ("B is the best answer.", 1),
     ("(B) is right because it is cold", 1), ("A is correct.", 0), ("So B is the answer", 1),
     ("It is cold. Therefore, option B is correct.", 1), ("I think that B is correct", 1),
     ("I choose B", 1), ("I'd go with option B.", 1), ("I would pick (A)", 0), ("I choose B - -20", 1),
     ("\\boxed{B}", 1), ("It is cold: $\\boxed{\\text{B}}$.", 1), ("\\boxed{(b)}", 1),
     ("\\boxed{-20}", 1),
     ("The correct choice: B", 1), ("Correct option: (B) cold", 1), ("-20 (B)", 1), ("2.5 [D].", 3),
     ("The answer is -20 (B).", 1), ("E. coli (E)", 4), ("Both B and C are correct", None),
     ("B or C is correct", None), ("A and B is correct", None), ("B is incorrect", None),
     ("B is not correct", None), ("B is right-sided", None), ("B is right atrial failure", None),
     ("B is correct? No.", None), ("If B is correct, the rest is wrong", None),
     ("I don't think B is correct", None), ("Nobody says B is correct", None),
     ("Vitamin B is best", None), ("Hepatitis B is correct", None), ("I choose a bone", None),
     ("I choose not B", None), ("I would not choose B", None), ("I choose B or C", None),
     ("Option B is correct. Option C is correct.", None), ("B. The answer is C.", None),
     ("\\boxed{B} \\boxed{C}", None), ("\\boxed{A bone}", None),
     ("The answer is B or C", None), ("The answer is (B), (C)", None), ("The answer is B, C", None),
     ("(A) or (B)", None), ("(B), (C)", None), ("B) and C)", None), ("A) B cells", 0),
     ("The answer is B. C is wrong.", 1), ("The answer is B, a cold one", 1),
     ("The wrong answer is B", None), ("Incorrect option: B", None), ("-20 (C)", None),
     ("a statin (B)", None), ("not -20 (B)", None), ("Vitamin (B)", None), ("I", None),
     ("I think so", None), ("It is correct", None), ("That's correct", None), ("A is a letter", None)],
)  # fmt: skip
def test_what_names_a_choice(said, named):
    found = [place for place in range(6) if multiple_choice(said, SIX, place)]
    assert found == ([] if named is None else [named])


VERDICTS = ["yes", "no", "maybe"]


@pytest.mark.parametrize(
    ("said", "named"),
    [("Yes, because it heals", 0), ("Yes - it does", 0), ("yes, it does.", 0), ("Yes. It heals.", 0),
     ("No: nothing was found", 1), ("No because of it", 1), ("Maybe, if it is cold", 2),
     ("Maybe\nWhy", 2),
     ("Yes, because no harm was found", 0), ("Yes, no harm was found", 0), ("**No**, it does not", 1),
     ("The answer is yes, because it heals", 0), ("A) Yes, because it heals", 0), ("(B) no", 1),
     ("Yes, no", None), ("Yes. No, it does not.", None), ("Yes and no", None), ("yes/no", None),
     ("No - maybe", None), ("No. 5 was best", None), ("No harm was found", None),
     ("Yesterday, it did", None), ("It heals, yes", None), ("There is no, or little, harm", None),
     ("Maybe not", None)],
)  # fmt: skip
def test_a_verdict_may_say_why(said, named):
    found = [place for place in range(3) if multiple_choice(said, VERDICTS, place)]
    assert found == ([] if named is None else [named])
    assert multiple_choice("Red, because it is warm", ["red", "blue"], 0) == 0


FORMS = (
    *("{letter}", "({letter})", "{letter})", "{letter}.", "{letter}) {text}", "{letter}: {text}"),
    *("{letter}. {text}", "{letter} {text}", "{text}", "{text}.", "The answer is {letter}."),
    *("the answer is {text}", "Answer: {letter}", "Option {letter}", "**{letter}**", "[{letter}]"),
    *(
        "Option {letter} is correct",
        "{letter} is correct",
        "I choose {letter}",
        "\\boxed{{{letter}}}",
    ),
    *("The correct choice: {letter}", "{text} ({letter})", "The answer is {text} ({letter})."),
)


@given(
    st.lists(
        st.from_regex(r"[b-z][a-z]{2,5}( [0-9]{1,3})?", fullmatch=True),
        min_size=2, max_size=6, unique_by=str.lower,
    ),
    st.data(),
)  # fmt: skip
def test_each_way_to_name_a_choice_names_it_alone(options, drawn):
    place = drawn.draw(st.integers(0, len(options) - 1))
    form = drawn.draw(st.sampled_from(FORMS))
    said = form.format(letter="ABCDEF"[place], text=options[place])
    if {"the", "an"} & set(" ".join(options).split()):
        return
    scores = [multiple_choice(said, options, right) for right in range(len(options))]
    assert scores == [float(right == place) for right in range(len(options))]


SILENT = (
    *(
        "If {letter} is correct, so be it",
        "{letter} or {other}",
        "({letter}), ({other})",
        "not {letter}",
    ),
    *("{text} ({other})", "{letter}. The answer is {other}.", "{letter} is incorrect", "perhaps"),
    *("\\boxed{{{letter}}} \\boxed{{{other}}}", "I would not choose {letter}", "{letter} {word}"),
)


def test_three_thousand_fuzzed_replies_name_what_they_were_written_to_name():
    """Options are invented words, so that nothing but the form of a reply can name one."""
    chance = random.Random(2)
    for _ in range(3000):
        words = ["".join(chance.choices("bcdfglmnoprtu", k=6)) for _ in range(6)]
        options, place = words[: chance.randint(2, 5)], chance.randrange(2)
        form, named = chance.choice(
            [(form, True) for form in FORMS] + [(form, False) for form in SILENT]
        )
        said = form.format(
            letter="ABCDE"[place], other="BA"[place], text=options[place], word=words[5]
        )
        scores = [multiple_choice(said, options, right) for right in range(len(options))]
        assert scores == [float(named and right == place) for right in range(len(options))], said


def test_choices_that_are_written_alike_are_one():
    assert [multiple_choice("yes", ["Yes", "no", "yes"], n) for n in range(3)] == [1, 0, 1]


def test_a_choice_text_that_is_a_letter_counts_as_text():
    assert multiple_choice("B", ["B", "C", "D"], 0) == 1
    with pytest.raises(ValueError, match="choice 3 of 2"):
        multiple_choice("a", ["x", "y"], 3)


def test_entities():
    assert hits_at_1(["The Hague", "x"], ["hague"]) == 1
    assert hits_at_1([], ["x"]) == 0
    found = entity_overlap(["Ann", "ann!", "Bob"], ["bob", "Cid", "Dan"])
    assert (found.precision, found.recall) == (1 / 2, 1 / 3)
    assert found.f1 == pytest.approx(0.4)
    assert entity_overlap([], ["x"]).f1 == 0


def test_roc_auc_is_the_share_of_ordered_pairs_and_rmse_by_hand():
    chance = random.Random(0)
    labels = [chance.random() < 0.4 for _ in range(60)]
    scores = [round(chance.random(), 1) for _ in labels]
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, yes in zip(scores, labels, strict=True) if yes
        for n, other in zip(scores, labels, strict=True) if not other
    ]  # fmt: skip
    assert roc_auc(labels, scores) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(roc_auc([True, True], [0.1, 0.2]))
    assert rmse([1, 2, 3], [1, 4, 3]) == pytest.approx(math.sqrt(4 / 3))
    with pytest.raises(ValueError, match="value 1 is nan"):
        rmse([1, math.nan], [1, 2])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-2.5", -2.5),
        ("about -2.5 log mol/L.", -2.5),
        ("−2.5", -2.5),
        ("logS = +.5", 0.5),
        ("-7.3kcal/mol", -7.3),
        ("1,234,567.5", 1234567.5),
        ("5.3394E10", 53394000000),
        ("1e-3", 0.001),
        ("-2.5 mol L-1", -2.5),
        ("C1CC1 has 3", 3),
        ("minus 2.5", -2.5),
        ("about (negative 2.5)", -2.5),
        ("-2.5 kcal mol^-1", -2.5),
        ("-2.5 mol L^{-1}", -2.5),
        ("2,000", 2000),
        ("- 2.5", None),
        ("Answer: − 2.5", None),
        ("—2.5", None),
        ("minus -2.5", None),
        ("0x10", None),
        ("1_000", None),
        ("10^-3", None),
        ("10 ^3", None),
        ("2-3", None),
        ("-2.5 ± 0.3", None),
        ("2,5", None),
        ("1.2.3", None),
        ("1,5 or 3", None),
        ("12,34", None),
        ("1e999", None),
        ("1e100", None),
        ("nan", None),
        ("two", None),
        ("", None),
        ("C1", None),
        ("１２", None),
    ],
)
def test_one_number_is_read_out_of_prose(text, found):
    assert number_in(text) == found


MARKS = (
    *("minus", "negative", "- ", "−", "—", "-", "^", "{", "(", ")", "}", " ", "2", "3.5", "1,000"),
    *("L", "x", "_", "mol", "kcal", "e", "E5", "10", "°", "×", ".", ","),
)


def test_numbers_among_signs_and_words_equal_the_reference():
    chance, doubtful = random.Random(1), 0
    for _ in range(20_000):
        text = "".join(chance.choices(MARKS, k=chance.randint(1, 7)))
        found = [None if math.isnan(value) else value for value in numbers_in(text)]
        assert found == ref.values_of(text), text
        doubtful += None in found
    assert doubtful > 1000


@given(st.floats(-1e15, 1e15, allow_subnormal=False))
def test_a_written_number_is_read_again(value):
    assert number(written(value)) == pytest.approx(value, rel=1e-14)
    assert number(f" {value!r} ") == value
    assert number(f"about {value!r}") is None


def test_a_long_reply_is_read_once():
    for part in ("1", "1.", "1,", "-", "1 ", "- ", "^-1", "(", " (", "April 5 "):
        began = time.perf_counter()
        normalise_values(part * 20_000)
        number_in(part * 20_000)
        assert time.perf_counter() - began < 5


R = [
    Reply(True, True, True, 0.9), Reply(True, False, True, 0.8), Reply(True, True, True, 0.6),
    Reply(False, False, False), Reply(False, False, True), Reply(True, False, False, 0.2),
]  # fmt: skip


def test_abstention_by_hand():
    found = abstention(R)
    assert (found.n, found.coverage, found.accuracy) == (6, 4 / 6, 3 / 6)
    assert found.selective_accuracy == 2 / 4
    assert found.simpleqa_f1 == pytest.approx(2 * (2 / 4) * (2 / 6) / (2 / 4 + 2 / 6))
    assert (found.unanswerable.precision, found.unanswerable.recall) == (1 / 2, 1 / 2)
    assert (found.answerable.precision, found.answerable.recall) == (3 / 4, 3 / 4)


def test_what_is_neither_an_answer_nor_an_abstention_is_no_right_decline():
    said = [Reply(False, False, False, declined=False), Reply(False, False, False, declined=True)]
    found = abstention(said)
    assert (found.coverage, found.accuracy) == (0, 0.5)
    assert (found.unanswerable.precision, found.unanswerable.recall) == (1, 1 / 2)


def test_always_abstaining_has_no_selective_accuracy():
    found = abstention([Reply(False, False, True)] * 3)
    assert (found.coverage, found.accuracy, found.simpleqa_f1) == (0, 0, 0)
    assert math.isnan(found.selective_accuracy)


def test_confidence_by_hand():
    assert risk_coverage(R) == [(0.25, 0), (0.5, 0.5), (0.75, pytest.approx(1 / 3)), (1, 0.5)]
    assert aurc(R) == pytest.approx(0.25 * (0 + 0.5 + 1 / 3 + 0.5))
    assert confidence_auroc(R) == 0.75
    assert sum(count for _, _, count in reliability(R)) == 4
    assert ece(R) == pytest.approx((0.1 + 0.8 + 0.4 + 0.2) / 4)


REPLIES = st.lists(
    st.builds(
        Reply, st.just(True), st.booleans(), st.just(True), st.sampled_from([0.0, 0.2, 0.55, 0.9, 1.0])
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(REPLIES, st.data())
def test_a_weight_counts_as_that_many_replies(replies, data):
    n = len(replies)
    weights = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    repeated = [r for r, times in zip(replies, weights, strict=True) for _ in range(times)]
    row = np.asarray([weights], dtype=float)
    for figure, plain in (
        (weighted.auroc, confidence_auroc), (weighted.aurc, aurc), (weighted.ece, ece)
    ):  # fmt: skip
        assert figure(replies)(row)[0] == pytest.approx(plain(repeated), nan_ok=True)


def test_weighted_figures_of_abstention_equal_the_plain_ones():
    ones, found = np.ones((1, len(R))), abstention(R)
    assert weighted.simpleqa_f1(R)(ones)[0] == pytest.approx(found.simpleqa_f1)
    said, true = [r.answered for r in R], [r.answerable for r in R]
    assert weighted.f1(said, true)(ones)[0] == pytest.approx(found.answerable.f1)
    declined, none = [r.abstained for r in R], [not r.answerable for r in R]
    assert weighted.f1(declined, none)(ones)[0] == pytest.approx(found.unanswerable.f1)


def test_equal_confidence_enters_together_whatever_the_order():
    tied = [Reply(True, right, True, 0.5) for right in (True, False, True, False)]
    assert aurc(tied) == aurc(tied[::-1]) == 0.5


def test_a_confidence_that_is_none_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        ece([Reply(True, True, True, 1.2)])
