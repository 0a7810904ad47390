"""Recipes: what is wrong is named, with the nearest right thing."""

import pytest

from kg.errors import UsageError
from rl.recipe import load_pretrain, load_sft, shipped
from rl.train_recipe import load_assessment, load_train


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads(name):
    special = {
        "micro": load_pretrain,
        "micro_cold_start": load_sft,
        "micro_careless": load_sft,
        "micro_taught": load_sft,
        "cold_start": load_sft,
    }
    if name in special:
        assert special[name](name).optimizer.lr > 0
        return
    assert load_train(name).update.optimizer.lr > 0
    assert load_assessment(name).rewards


def test_overrides_reach_nested_fields_and_change_the_digest():
    plain, changed = (
        load_sft("cold_start"),
        load_sft("cold_start", ["optimizer.lr=1e-5", "epochs=3"]),
    )
    assert (changed.optimizer.lr, changed.epochs) == (1e-5, 3)
    assert plain.digest != changed.digest


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("cold_strat", [], "no recipe"),
        ("cold_start", ["epohcs=2"], "did you mean 'epochs'"),
        ("cold_start", ["optimizer.learning=1"], "unknown key 'optimizer.learning'"),
        ("cold_start", ["epochs=0"], "epochs"),
        ("cold_start", ["epochs"], "expected key=value"),
        ("cold_start", ["seed.x=1"], "not a section"),
    ],
)
def test_mistakes_are_named(name, overrides, message):
    with pytest.raises(UsageError, match=message):
        load_sft(name, overrides)


def test_a_file_that_is_not_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        load_sft(str(path))
