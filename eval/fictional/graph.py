"""The graph of a world as N-Triples, a line a fact, in a fixed order.

Entities are `https://turnwise.org/world/KIND/NUMBER` with an rdfs:label; relations
`https://turnwise.org/world/NAME`. What was true before a change is `formerNAME`, the year of the change
`NAMESince`.
"""

from __future__ import annotations

from collections.abc import Iterator

from eval.fictional.schema import relations_of
from eval.fictional.world import Entity, Value, World

BASE = "https://turnwise.org/world/"
_TYPE = "<http://www.w3.org/1999/02/22-rdf-syntax-ns#type>"
_LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
_INTEGER = "<http://www.w3.org/2001/XMLSchema#integer>"


def triples(world: World) -> Iterator[str]:
    """Every fact, one N-Triples line each, without the line's end."""
    for subject in world.entities():
        node = iri(subject.id)
        yield f"{node} {_TYPE} {iri(subject.kind.title())} ."
        yield f"{node} {_LABEL} {_text(world.name(subject))} ."
        for of in relations_of(subject.kind):
            value = world.value(subject, of)
            if value is not None:
                yield f"{node} {iri(of.name)} {_object(value, of.target)} ."
            change = world.change(subject, of)
            if change is not None:
                yield f"{node} {iri('former' + of.name.title())} {_object(change.before, '')} ."
                yield f"{node} {iri(of.name + 'Since')} {_object(str(change.year), 'year')} ."


def iri(name: str) -> str:
    """A node or relation of the graph, in angle brackets."""
    return f"<{BASE}{name}>"


def select(subject: str, names: tuple[str, ...]) -> str:
    """SPARQL that follows relations from the thing with this label and selects where they end.

    The last value is given by its label when it has one.
    """
    steps = " / ".join(iri(name) for name in names)
    return (
        f"SELECT DISTINCT ?answer WHERE {{ ?s {_LABEL} {_text(subject)} . ?s {steps} ?v . "
        f"OPTIONAL {{ ?v {_LABEL} ?label }} BIND(COALESCE(?label, ?v) AS ?answer) }}"
    )


def _object(value: Value, target: str) -> str:
    if isinstance(value, Entity):
        return iri(value.id)
    if target in ("year", "number"):
        return f'"{value}"^^{_INTEGER}'
    return _text(value)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
