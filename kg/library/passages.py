"""The library as prose: one passage a thing, in sentences that vary by thing."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from kg.library.load import Element, Library, Molecule, Person, Place, load_library

Row = dict[str, str]

_TOPICS = (
    (
        "Periodic table",
        "The periodic table arranges the chemical elements by atomic number in rows called periods "
        "and columns called groups. Its creator was Dmitri Mendeleev, who published it in 1869 and "
        "left gaps for elements not yet found. Elements of one group have similar properties because "
        "their outer electrons are alike. Today it has 118 elements in seven periods.",
    ),
    (
        "Noble gas",
        "The noble gases are the elements of group 18: helium, neon, argon, krypton, xenon, radon and "
        "oganesson. Their outer electron shells are full, so that they hardly react. William Ramsay "
        "discovered most of them in the 1890s.",
    ),
    (
        "Halogen",
        "The halogens are the elements of group 17: fluorine, chlorine, bromine, iodine, astatine and "
        "tennessine. They are very reactive and form salts with metals. Fluorine is the most "
        "electronegative of all elements.",
    ),
    (
        "Transuranium element",
        "Transuranium elements have atomic numbers above 92, the number of uranium. All are "
        "radioactive, and nearly all were first made in laboratories at Berkeley, Dubna, Darmstadt or "
        "Wakō. Neptunium, found in 1940, was the first of them.",
    ),
    (
        "Rare-earth element",
        "The rare earths are scandium, yttrium and the fifteen lanthanides. Many were separated from "
        "minerals of the quarry at Ytterby in Sweden. They go into magnets, lasers and phosphors.",
    ),
    (
        "Nobel Prize",
        "The Nobel Prizes have been awarded since 1901 under the will of Alfred Nobel, the inventor of "
        "dynamite. There are prizes in physics, chemistry, medicine, literature and peace. They are "
        "handed over in Stockholm and, for peace, in Oslo.",
    ),
    (
        "Radioactivity",
        "Radioactivity is the decay of unstable atomic nuclei. Henri Becquerel found it in uranium "
        "salts in 1896, and Marie Curie gave it its name. Its unit is the becquerel, one decay a "
        "second.",
    ),
)


def slug(name: str) -> str:
    """A name as part of a passage id: ASCII letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", name.replace("ø", "o").replace("Ø", "O"))
    ascii_text = plain.encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def passages(library: Library) -> list[Row]:
    """Every passage as `id`, `title` and `text`; ids are stable across versions of the text."""
    rows = [
        _row("element", element.name, _element(element, library)) for element in library.elements
    ]
    rows += [_row("molecule", m.name, _molecule(m)) for m in library.molecules]
    rows += [_row("person", person.name, _person(person, library)) for person in library.people]
    rows += [_row("place", place.name, _place(place, library)) for place in library.places]
    rows += [_row("topic", title, text) for title, text in _TOPICS]
    return rows


def write_corpus(path: Path) -> int:
    """Write the passages as JSON lines; gives their number."""
    rows = passages(load_library())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(rows)


def _row(kind: str, name: str, text: str) -> Row:
    title = name if name != name.lower() else name[0].upper() + name[1:]
    return {"id": f"{kind}/{slug(name)}", "title": title, "text": text}


def _pick(key: str, options: Sequence[str]) -> str:
    """One of the wordings, always the same for a thing."""
    return options[hashlib.sha256(key.encode()).digest()[0] % len(options)]


def _listed(names: Iterable[str]) -> str:
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _element(element: Element, library: Library) -> str:
    where = f"group {element.group}, period {element.period}" if element.group else (
        f"period {element.period}"
    )  # fmt: skip
    sentences = [
        _pick(
            element.name,
            (
                f"{element.name} is a chemical element with the symbol {element.symbol} and atomic "
                f"number {element.number}.",
                f"{element.name}, symbol {element.symbol}, is the chemical element of atomic number "
                f"{element.number}.",
                f"With the symbol {element.symbol} and the atomic number {element.number}, "
                f"{element.name.lower()} is a chemical element.",
            ),
        ),
        f"It is {_article(element.category)} of {where} with an atomic mass of {element.mass:g}.",
        _state(element),
        _discovery(element, library),
        _naming(element, library),
        _use(element),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _state(element: Element) -> str:
    if element.state == "unknown":
        return "It is radioactive and too little of it was ever made to see its bulk state."
    return f"At room temperature it is a {element.state}."


def _discovery(element: Element, library: Library) -> str:
    if element.discovered is None:
        return "It has been known since antiquity."
    who, place = _listed(element.discoverers), element.place
    found = library.place(place) if place else None
    where = f" in {place}, {found.country}" if found else ""
    return _pick(
        element.symbol,
        (
            f"It was discovered in {element.discovered} by {who}{where}.",
            f"{who} discovered it in {element.discovered}{where}.",
        ),
    )


def _naming(element: Element, library: Library) -> str:
    kind, name = element.namesake_kind, element.namesake
    if kind == "word" and "word" in name:
        return f"The name comes from {name}."
    person = library.person(name) if kind == "person" else None
    if name == "Dmitri Mendeleev":
        return f"It is named after {name}, the creator of the periodic table."
    if person:
        return f"It is named after {name}, known for {person.known_for}."
    return f"It is named after {name}."


def _use(element: Element) -> str:
    if element.use == "research alone":
        return "It has no use outside research."
    return _pick(
        element.name + "use",
        (f"It is used for {element.use}.", f"Its main use is in {element.use}."),
    )


def _molecule(molecule: Molecule) -> str:
    name = molecule.name[0].upper() + molecule.name[1:]
    sentences = [
        f"{name} is {_article(molecule.kind)} with the molecular formula {molecule.formula} and a "
        f"molar mass of {molecule.mass:g} g/mol.",
        _pick(
            molecule.name,
            (
                f"It is used for {molecule.use}."
                if not molecule.use.startswith(("the ", "a ", "vitamin"))
                else f"It is known as {molecule.use}.",
                f"Its best-known role: {molecule.use}.",
            ),
        ),
        f"It acts on {molecule.target}." if molecule.target else "",
        _first_made(molecule),
        f"Its SMILES is {molecule.smiles}.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _first_made(molecule: Molecule) -> str:
    if molecule.discoverer and molecule.discovered:
        return f"{molecule.discoverer} first made or isolated it in {molecule.discovered}."
    if molecule.discovered:
        return f"It was first made or isolated in {molecule.discovered}."
    return ""


def _person(person: Person, library: Library) -> str:
    life = f"{person.born}–{person.died}" if person.died else f"born {person.born}"
    title = f"{person.name} ({life}) was {_article(person.nationality)} scientist known for"
    if person.died is None:
        title = title.replace(" was ", " is ")
    sentences = [
        f"{title} {person.known_for}.",
        f"{person.name.split()[-1]} was born in {person.birthplace} in {person.born}.",
        *(
            f"In {prize.year} came the Nobel Prize in {prize.field}."
            if prize.field != "Peace"
            else f"In {prize.year} came the Nobel Peace Prize."
            for prize in person.nobel
        ),
        _found(person, library),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _found(person: Person, library: Library) -> str:
    elements = [e.name.lower() for e in library.elements if person.name in e.discoverers]
    named = [e.name.lower() for e in library.elements if e.namesake == person.name]
    molecules = [m.name for m in library.molecules if m.discoverer == person.name]
    parts = []
    if elements or molecules:
        parts.append(f"Discoveries: {_listed([*elements, *molecules])}.")
    if named:
        parts.append(f"The element {_listed(named)} bears the name.")
    return " ".join(parts)


def _place(place: Place, library: Library) -> str:
    found = [e.name.lower() for e in library.elements if e.place == place.name]
    named = [e.name.lower() for e in library.elements if e.namesake == place.name]
    born = [p.name for p in library.people if p.birthplace == place.name]
    sentences = [f"{place.name} is {place.about}. It lies in {place.country}."]
    if found:
        sentences.append(f"Elements discovered there include {_listed(found)}.")
    if named:
        verb = "is" if len(named) == 1 else "are"
        sentences.append(f"{_listed(named).capitalize()} {verb} named after it.")
    if born:
        sentences.append(f"{_listed(born)} {'was' if len(born) == 1 else 'were'} born there.")
    return " ".join(sentences)
