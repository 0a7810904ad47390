"""Recipes: what is wrong is named, with the nearest right thing."""

import traceback

import pytest

from kg.errors import UsageError
from rl.recipe import load_pretrain, load_sft, shipped
from rl.train_recipe import Models, load_assessment, load_train


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


@pytest.mark.parametrize(
    ("load", "name", "command"),
    [
        (load_train, "cold_start", "agent sft"),
        (load_assessment, "micro", "agent pretrain"),
        (load_sft, "igpo", "agent train"),
        (load_pretrain, "micro_taught", "agent sft"),
    ],
)
def test_a_recipe_of_another_command_is_told_with_that_command(load, name, command):
    with pytest.raises(UsageError, match=f"'{name}' is one of {command}") as caught:
        load(name)
    assert caught.value.hint == f"{command} {name} --out RUN"


def test_recipes_that_are_named_for_a_command_are_its_own():
    with pytest.raises(UsageError, match="no recipe 'zzz' of agent pretrain") as caught:
        load_pretrain("zzz")
    assert caught.value.hint == "there are: micro"


def test_a_file_that_is_not_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        load_sft(str(path))


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("loss.correction.high=-1", "loss.correction.high"),
        ("loss.correction.high=.nan", "loss.correction.high"),
        ("loss.correction.high=0.5", "loss.correction.high"),
        ("loss.correction.low=-0.1", "loss.correction.low"),
        ("loss.correction.low=3", "loss.correction.low"),
        ("loss.correction={low: 1, high: 1}", "low and high are equal"),
        ("loss.high=.inf", "loss.high"),
        ("update.optimizer.lr=.inf", "update.optimizer.lr"),
        ("update.optimizer.clip=.inf", "update.optimizer.clip"),
        ("update.optimizer.weight_decay=.nan", "update.optimizer.weight_decay"),
        ("update.optimizer.betas=[1.5, 0.9]", "update.optimizer.betas.0"),
        ("update.optimizer.betas=[0.9, 1]", "update.optimizer.betas.1"),
        ("credit.options={eps: .nan}", "'eps' is nan"),
        ("tripwires.gap.growth=.inf", "tripwires.gap.growth"),
        ("max_seconds=.inf", "max_seconds"),
    ],
)
def test_numbers_that_reverse_or_void_an_update_are_refused(override, where):
    with pytest.raises(UsageError, match=where):
        load_train("lite_ppo", [override])


def test_bounds_of_the_correction_lie_on_either_side_of_one():
    found = load_train("lite_ppo", ["loss.correction={low: 0.5, high: 1, mode: mask}"])
    assert (found.loss.correction.low, found.loss.correction.high) == (0.5, 1.0)


@pytest.mark.parametrize(
    "override",
    [
        "models.judge={policy: 'https://ada:s3cret@host/v1', model: m}",
        "models.facts=HTTPS://ada:s3cret@host/v1",
        "tasks.sets=['https://ada:s3cret@host/q.jsonl']",
        "rollouts={engine: server, server: {url: 'http://s3cret@host:8000'}}",
    ],
)
def test_a_recipe_holds_no_password(override):
    with pytest.raises(UsageError, match="AGENT_API_KEY") as caught:
        load_train("lite_ppo", [override])
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert load_train("lite_ppo", [override.replace("ada:", "").replace("s3cret@", "")])


def test_an_at_sign_in_a_path_or_a_name_is_no_password():
    judge = {"policy": "https://host/@ada/v1", "model": "m"}
    assert Models(judge=judge, facts="vllm:models/a@b").judge.policy == judge["policy"]
