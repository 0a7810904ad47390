"""The library as an RDF graph, for the knowledge-graph tool: same facts, same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kg.library.load import Element, Library, Molecule, Person, load_library
from kg.library.passages import slug

if TYPE_CHECKING:
    from rdflib import Graph, URIRef

BASE = "https://turnwise.org/library/"


def build_graph(library: Library) -> Graph:
    """Triples about every thing; a name without an entry of its own becomes a labelled node."""
    from rdflib import Graph

    graph = Graph()
    graph.bind("tw", BASE)
    for element in library.elements:
        _element(graph, element, library)
    for molecule in library.molecules:
        _molecule(graph, molecule)
    for person in library.people:
        _person(graph, person)
    for place in library.places:
        node = _node(graph, "place", place.name, "Place")
        _add(graph, node, "country", _node(graph, "place", place.country, "Country"))
        _add(graph, node, "about", place.about)
    return graph


def write_turtle(path: Path) -> int:
    """Write the graph as Turtle; gives the number of triples."""
    graph = build_graph(load_library())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(graph.serialize(format="longturtle"), "utf-8")
    return len(graph)


def _node(graph: Graph, kind: str, name: str, type_: str) -> URIRef:
    from rdflib import RDF, RDFS, Literal, URIRef

    node = URIRef(f"{BASE}{kind}/{slug(name)}")
    graph.add((node, RDF.type, URIRef(BASE + type_)))
    graph.add((node, RDFS.label, Literal(name, lang="en")))
    return node


def _add(graph: Graph, node: URIRef, relation: str, value: object) -> None:
    from rdflib import Literal, URIRef

    if value is not None:
        target = value if isinstance(value, URIRef) else Literal(value)
        graph.add((node, URIRef(BASE + relation), target))


def _element(graph: Graph, element: Element, library: Library) -> None:
    node = _node(graph, "element", element.name, "Element")
    for field in ("symbol", "number", "mass", "group", "period", "category", "state", "use"):
        _add(graph, node, field, getattr(element, field))
    _add(graph, node, "discoveredInYear", element.discovered)
    for name in element.discoverers:
        _add(graph, node, "discoveredBy", _node(graph, "person", name, "Person"))
    if element.place:
        _add(graph, node, "discoveredIn", _node(graph, "place", element.place, "Place"))
    if element.namesake_kind == "person":
        _add(graph, node, "namedAfter", _node(graph, "person", element.namesake, "Person"))
    elif element.namesake_kind == "place":
        _add(graph, node, "namedAfter", _node(graph, "place", element.namesake, "Place"))
    else:
        _add(graph, node, "namedAfter", element.namesake)


def _molecule(graph: Graph, molecule: Molecule) -> None:
    node = _node(graph, "molecule", molecule.name, "Molecule")
    for field in ("smiles", "formula", "mass", "kind", "use", "target"):
        _add(graph, node, field, getattr(molecule, field))
    _add(graph, node, "discoveredInYear", molecule.discovered)
    if molecule.discoverer:
        _add(graph, node, "discoveredBy", _node(graph, "person", molecule.discoverer, "Person"))


def _person(graph: Graph, person: Person) -> None:
    node = _node(graph, "person", person.name, "Person")
    for field in ("born", "died", "nationality"):
        _add(graph, node, field, getattr(person, field))
    _add(graph, node, "knownFor", person.known_for)
    _add(graph, node, "bornIn", _node(graph, "place", person.birthplace, "Place"))
    for prize in person.nobel:
        _add(graph, node, "nobelPrize", f"{prize.year} {prize.field}")
