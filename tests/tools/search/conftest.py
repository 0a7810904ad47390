import json

import pytest

from tools.search.build import build_index
from tools.search.settings import IndexSettings

FACTS = {
    "curie": ("Marie Curie", "Marie Curie discovered radium and polonium with her husband Pierre."),
    "mendeleev": ("Dmitri Mendeleev", "Mendeleev arranged the known elements in a periodic table."),
    "aspirin": ("Aspirin", "Aspirin lowers fever and keeps blood platelets from clumping."),
    "caffeine": ("Caffeine", "Caffeine blocks adenosine receptors and keeps people awake."),
    "helium": ("Helium", "Helium was seen in sunlight before anybody found it on Earth."),
    "vitamin": ("Vitamin C", "Vitamin C is ascorbic acid; lack of it causes scurvy in sailors."),
}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    rows = [{"id": key, "title": t, "text": text} for key, (t, text) in FACTS.items()]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "facts.jsonl", rows)


@pytest.fixture
def lexical_settings():
    return IndexSettings(dense="none")


@pytest.fixture(scope="session")
def built(corpus, tmp_path_factory):
    """A hybrid index of the facts, built once; tests that change one copy it."""
    out = tmp_path_factory.mktemp("built") / "index"
    build_index([corpus], out)
    return out
