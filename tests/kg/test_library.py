"""The bundled library: every formula and mass against RDKit, every reference, every question."""

import re

import pytest
from rdkit import Chem
from rdkit.Chem.Descriptors import MolWt
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from eval.metrics import contains
from kg.library.graph import BASE, build_graph, write_turtle
from kg.library.load import load_library
from kg.library.passages import passages, write_corpus
from kg.library.questions import load_questions

LIBRARY = load_library()
PASSAGES = {row["id"]: row for row in passages(LIBRARY)}
TABLE = Chem.GetPeriodicTable()

# from textbooks, not from RDKit: a wrong SMILES would agree with its own formula
KNOWN = {
    "aspirin": "C9H8O4", "caffeine": "C8H10N4O2", "glucose": "C6H12O6", "morphine": "C17H19NO3",
    "penicillin G": "C16H18N2O4S", "cholesterol": "C27H46O", "quinine": "C20H24N2O2",
    "atorvastatin": "C33H35FN2O5", "imatinib": "C29H31N7O", "artemisinin": "C15H22O5",
    "sildenafil": "C22H30N6O4S", "sucrose": "C12H22O11", "beta-carotene": "C40H56",
    "folic acid": "C19H19N7O6", "dexamethasone": "C22H29FO5", "warfarin": "C19H16O4",
    "strychnine": "C21H22N2O2", "LSD": "C20H25N3O", "cholecalciferol": "C27H44O",
    "lovastatin": "C24H36O5", "fentanyl": "C22H28N2O", "methotrexate": "C20H22N8O5",
    "oseltamivir": "C16H28N2O4", "squalene": "C30H50", "naloxone": "C19H21NO4",
    "colchicine": "C22H25NO6", "cocaine": "C17H21NO4", "sucralose": "C12H19Cl3O8",
}  # fmt: skip


@pytest.mark.parametrize("molecule", LIBRARY.molecules, ids=lambda m: m.name)
def test_formula_and_mass_of_every_molecule(molecule):
    mol = Chem.MolFromSmiles(molecule.smiles)
    assert CalcMolFormula(mol) == molecule.formula
    assert MolWt(mol) == pytest.approx(molecule.mass, abs=0.02)


def test_known_formulas():
    by_name = {m.name: m.formula for m in LIBRARY.molecules}
    assert {name: by_name[name] for name in KNOWN} == KNOWN


def test_the_elements_are_all_there_with_the_right_symbol_and_mass():
    assert [e.number for e in LIBRARY.elements] == list(range(1, 119))
    for element in LIBRARY.elements:
        assert TABLE.GetElementSymbol(element.number) == element.symbol
        tolerance = 0.05 if element.number < 84 and element.number not in (43, 61) else 6
        assert TABLE.GetAtomicWeight(element.number) == pytest.approx(element.mass, abs=tolerance)


def test_groups_and_categories():
    by_symbol = {e.symbol: e for e in LIBRARY.elements}
    expected = {
        "H": 1,
        "He": 18,
        "C": 14,
        "Fe": 8,
        "Au": 11,
        "Lu": 3,
        "La": None,
        "U": None,
        "Og": 18,
    }
    assert {s: by_symbol[s].group for s in expected} == expected
    assert {e.symbol for e in LIBRARY.elements if e.category == "halogen"} == {
        *("F", "Cl", "Br", "I", "At", "Ts"),
    }


def test_about_150_molecules_and_unique_passages():
    assert len(LIBRARY.molecules) >= 150
    rows = passages(LIBRARY)
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9-]+", row["id"]) for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)


def test_the_showcase_question_can_be_answered():
    assert (
        "Dmitri Mendeleev, the creator of the periodic table"
        in PASSAGES["element/mendelevium"]["text"]
    )


def test_every_answer_is_in_its_supporting_passages():
    for question in load_questions():
        support = " ".join(
            PASSAGES[i]["title"] + " " + PASSAGES[i]["text"] for i in question.supporting
        )
        if question.kind == "unanswerable":
            assert not question.answers
        else:
            assert any(contains(support, answer) for answer in question.answers), question


def test_what_unanswerable_questions_ask_is_nowhere():
    text = " ".join(row["text"].lower() for row in PASSAGES.values())
    asked = ("melting point", "thermal conductivity", "isotopes", "price", "density", "marry",
             "pupil", "mother", "boiling point", "daily dose")  # fmt: skip
    assert not [word for word in asked if re.search(rf"\b{word}\b", text)]


def test_questions_are_many_of_every_kind_and_split_without_overlap():
    questions = load_questions()
    assert len(questions) >= 200
    assert len({q.id for q in questions}) == len(questions) == len({q.question for q in questions})
    for split in ("train", "test"):
        kinds = {q.kind for q in load_questions(split)}
        assert kinds == {"one_hop", "two_hop", "comparison", "unanswerable"}
    chains = {
        s: {q.supporting for q in load_questions(s) if q.kind == "two_hop"}
        for s in ("train", "test")
    }
    assert not {c for c in chains["train"] & chains["test"] if len(c) == 2}


def test_a_fact_and_its_inverse_are_on_the_same_side():
    split = {q.question: q.split for q in load_questions()}
    pairs = 0
    for element in LIBRARY.elements:
        forward = split.get(f"After whom or what is {element.name.lower()} named?")
        backward = split.get(f"Which element is named after {element.namesake}?")
        pairs += bool(forward and backward)
        assert None in (forward, backward) or forward == backward
    assert pairs


def test_comparisons_name_the_greater_one():
    mass = {m.name: m.mass for m in LIBRARY.molecules}
    number = {e.name.lower(): e.number for e in LIBRARY.elements}
    seen = 0
    for q in load_questions():
        if q.kind == "comparison":
            scale = mass if "molar mass" in q.question else number
            names = q.question.split(", ", 1)[1].rstrip("?").split(" or ")
            best = max(names, key=lambda name: scale[name])
            assert q.answers[0].lower() == best.lower()
            seen += 1
    assert seen >= 20


def test_the_graph_says_the_same_and_is_written_the_same_twice(tmp_path):
    from rdflib import Graph, URIRef

    for name in ("a.ttl", "b.ttl"):
        write_turtle(tmp_path / name)
    assert (tmp_path / "a.ttl").read_bytes() == (tmp_path / "b.ttl").read_bytes()
    graph = Graph().parse(tmp_path / "a.ttl")
    assert len(graph) == len(build_graph(LIBRARY)) > 3000
    named = graph.value(URIRef(BASE + "element/mendelevium"), URIRef(BASE + "namedAfter"))
    assert str(named) == BASE + "person/dmitri-mendeleev"


def test_the_corpus_is_written_the_same_twice(tmp_path):
    assert write_corpus(tmp_path / "a.jsonl") == write_corpus(tmp_path / "b.jsonl") == len(PASSAGES)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
