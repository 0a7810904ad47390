"""A run's policy as a folder: what this project, transformers, peft and vLLM make of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agent.policies.catalog import resolve
from agent.settings import isolated_settings
from kg.errors import UsageError
from rl.export import _steps, _write_papers, export
from rl.loop import train
from rl.model_files import note_base
from rl.train_recipe import load_train
from tests.rl.conftest import WORLD

TINY = [
    "steps=1",
    f"tasks.worlds={json.dumps(WORLD)}",
    "tasks.limit=4",
    "rollouts.tasks=4",
    "rollouts.size=4",
    "rollouts.engine=transformers",
    "rollouts.concurrency=16",
    "rollouts.agent.budgets={turns: 5}",
    f"validation.tasks.worlds={json.dumps({**WORLD, 'first_seed': 515151})}",
    "validation.tasks.limit=2",
    "loss.anchor={coefficient: 0.1, into: reward}",
    "tasks.probe=1",
    "update.lora={rank: 4, targets: [q_proj, v_proj]}",
    "update.optimizer.lr=1e-2",
]


class Quiet:
    def __init__(self):
        self.steps, self.lines = [], []

    def stage(self, name, done, total):
        pass

    def notify(self, line):
        self.lines.append(line)

    def step(self, metrics):
        self.steps.append(metrics)

    def validated(self, found):
        pass


@pytest.fixture(scope="module")
def trained(models_dir, tmp_path_factory):
    """One step of the combination, with adapters, KL in the reward and closed-book labels."""
    run, watch = tmp_path_factory.mktemp("export") / "run", Quiet()
    recipe = load_train("igpo_reseek_ikea", TINY)
    train(recipe, isolated_settings(home=models_dir.parent), run, watch)
    return run, recipe, watch


@pytest.fixture(scope="module")
def home(models_dir):
    return isolated_settings(home=models_dir.parent)


@pytest.fixture(scope="module")
def merged(trained, home):
    return export(trained[0], trained[0].parent / "merged", home, which="last").out


def test_a_run_feeds_the_rewards_what_they_read(trained):
    run, recipe, watch = trained
    assert {"reward/kl", "reward/boundary", "reward/gain"} <= watch.steps[0].keys()
    assert {"update_tokens", "update_flops", "speed/update_tokens"} <= watch.steps[0].keys()
    assert "speed/utilisation" not in watch.steps[0]  # nobody said what the device could do
    assert watch.steps[0]["reward/kl"] == pytest.approx(0.0, abs=1e-6)  # it has not moved yet
    assert (run / "known.json").is_file()
    assert any("known closed-book" in line for line in watch.lines)
    assert recipe.provides


def test_the_folder_holds_settings_recipe_and_card(trained, merged):
    run, recipe, _ = trained
    settings = tomllib.loads((merged / "agent.toml").read_text())
    assert settings["budgets"]["turns"] == 5
    assert settings["search"] == {"k": 3, "passage_chars": 500, "mode": "lexical"}
    assert settings["tools"] == ["search", "judge"]
    assert settings["policy"] == "."
    assert json.loads((merged / "recipe.json").read_text())["base"] == "micro"
    card = (merged / "README.md").read_text()
    for part in (
        recipe.digest,
        "Apache-2.0",
        "fictional worlds from seed 424242",
        "| 0 |",
        "| 1 |",
    ):
        assert part in card
    assert str(run) not in card
    found = json.loads((run / "validation" / "step-00001.json").read_text())["right"]
    assert f"{100 * found['mean']:.1f} [{100 * found['low']:.1f}, " in card


def test_the_card_names_commands_that_there_are(merged):
    """`agent serve` was printed before there was one."""
    from typer.main import get_command

    import cli

    there = get_command(cli.app).commands
    card = (merged / "README.md").read_text()
    named = re.findall(r"\bagent ([a-z]+) (?:-|\")", card)
    assert named
    assert set(named) <= there.keys()


def test_transformers_loads_it_with_what_was_learnt(trained, merged, micro):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(merged), local_files_only=True)
    assert AutoTokenizer.from_pretrained(str(merged)).chat_template
    ids = torch.tensor([[5, 6, 7]])
    assert torch.isfinite(model(ids).logits).all()
    new, old = load_file(merged / "model.safetensors"), load_file(micro / "model.safetensors")
    changed = {k for k in new if not torch.equal(new[k].float(), old[k].float())}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


def test_the_adapter_is_the_merged_policy(trained, merged, home, micro):
    from agent.policies.merge import merged_model

    found = export(trained[0], trained[0].parent / "adapter", home, which="last", adapter=True)
    assert found.kind == "adapter"
    again = merged_model(micro, found.out).state_dict()
    for name, tensor in load_file(merged / "model.safetensors").items():
        assert torch.allclose(again[name].float(), tensor.float(), atol=1e-5), name


def test_the_adapter_of_a_run_from_an_adapter_holds_both(trained, home, micro, tmp_path):
    """As one is shipped that goes on from the default policy."""
    from agent.policies.merge import merged_model

    first = export(trained[0], tmp_path / "first", home, which="last", adapter=True).out
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | {"base": str(first)}))
    note_base(run / "policy" / "adapter", resolve(str(first), home.models_dir))
    both = export(run, tmp_path / "both", home, which="last", adapter=True).out
    told = json.loads((both / "adapter_config.json").read_text())
    assert (told["r"], told["base_model_name_or_path"]) == (8, "micro")
    assert "as the base `micro`" in (both / "README.md").read_text()
    plain = load_file(micro / "model.safetensors")
    once, twice = (merged_model(micro, folder).state_dict() for folder in (first, both))
    moved = 0
    for name, tensor in plain.items():
        delta = once[name] - tensor.float()
        assert torch.allclose(twice[name], tensor.float() + 2 * delta, atol=1e-5), name
        moved += bool(delta.any())
    assert moved


def test_an_adapter_is_not_put_on_another_base_than_it_was_trained_on(trained, home, tmp_path):
    """As when the policy that a name stands for has changed since."""
    first = export(trained[0], tmp_path / "first", home, which="last", adapter=True).out
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | {"base": str(first)}))
    with pytest.raises(UsageError, match="was trained on the weights"):
        export(run, tmp_path / "both", home, which="last", adapter=True)


def test_the_best_weights_have_their_adapter(trained, home, micro, tmp_path):
    """Whichever step they are of: not the checkpoint's."""
    from agent.policies.merge import merged_model

    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    shutil.rmtree(run / "checkpoint")
    found = export(run, tmp_path / "out", home, adapter=True)
    again = merged_model(micro, found.out).state_dict()
    for name, tensor in load_file(run / "best" / "model.safetensors").items():
        assert torch.allclose(again[name].float(), tensor.float(), atol=1e-5), name


def test_agent_ask_answers_with_it_under_the_settings_beside_it(merged):
    root = Path(__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENT_")}
    asked = ["ask", "Who founded Acme?", "--json", "--no-log", "--policy", str(merged)]
    done = subprocess.run(
        [sys.executable, str(root / "cli.py"), *asked],
        cwd=merged,
        env={**env, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] in ("answered", "abstained", "over_budget")
    beside = tomllib.loads((merged / "agent.toml").read_text())
    assert told["config_digest"] == isolated_settings(**{**beside, "policy": str(merged)}).digest


def test_vllm_loads_it(merged):
    import asyncio

    from agent.policies.base import Request, Sampling
    from agent.policies.vllm import VllmPolicy

    async def ask():
        policy = VllmPolicy(merged, name="exported", dtype="float32", max_num_seqs=2)
        ids = tuple(policy.template.opening([{"role": "user", "content": "Who?"}]))
        [done] = await policy.generate([Request((), ids, Sampling(max_tokens=4))])
        await policy.aclose()
        return done

    assert len(asyncio.run(ask()).token_ids) > 0


@pytest.mark.parametrize("what", ["nothing", "full", "whole", "old"])
def test_what_cannot_be_exported_is_told(what, trained, home, tmp_path):
    run, out, adapter, message = trained[0], tmp_path / "out", False, "is no folder of a run"
    if what == "nothing":
        run = tmp_path
    if what == "full":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        message = "is there already"
    if what in ("whole", "old"):
        run = tmp_path / "run"
        shutil.copytree(trained[0], run)
        shutil.rmtree(run / "policy" / "adapter")
        recipe = json.loads((run / "recipe.json").read_text())
        recipe["update"]["lora"] = None if what == "whole" else recipe["update"]["lora"]
        (run / "recipe.json").write_text(json.dumps(recipe))
        adapter = True
        message = "trained all weights" if what == "whole" else "before adapters were kept"
    with pytest.raises(UsageError, match=message):
        export(run, out, home, which="last", adapter=adapter)
    assert not (tmp_path / ".out.part").exists()


def test_nothing_that_is_exported_names_a_folder_of_this_machine(trained, home, micro, tmp_path):
    """The same run, as if it had been begun from a folder on questions in files."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["base"] = str(micro)
    recipe["tasks"]["sets"] = ["/home/ada/questions/mine.jsonl", "popqa"]
    recipe["models"]["judge"] = {"policy": "vllm:/models/judge-7b", "model": ""}
    recipe["rollouts"]["agent"]["system"] = "/no_think Answer."
    (run / "recipe.json").write_text(json.dumps(recipe))
    for adapter in (False, True):
        out = export(run, tmp_path / f"out-{adapter}", home, "last", adapter).out
        for name in ("README.md", "recipe.json", "adapter_config.json"):
            text = (out / name).read_text() if (out / name).is_file() else ""
            for place in (str(micro.parent), "/home/ada", "/models", str(tmp_path)):
                assert place not in text, name
        card = (out / "README.md").read_text()
        assert "questions of `mine.jsonl`" in card
        assert "policy: vllm:judge-7b" in card
        assert "/no_think Answer." in card
        assert "`popqa`" in card
    told = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert told == micro.name


def test_the_last_weights_are_of_the_last_step_not_of_an_earlier_end(trained, home, tmp_path):
    """A run that Ctrl-C ended at step 1, that went on and was killed after step 3."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    assert _steps(run, "policy") == 1
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}\n{"step": 3}\n{"step"')
    assert json.loads((run / "report.json").read_text())["steps"] == 1
    found = export(run, tmp_path / "out", home, "last")
    assert found.step == 3
    assert "step 3" in (found.out / "README.md").read_text()
    (run / "metrics.jsonl").unlink()
    assert _steps(run, "policy") == 1


def test_a_retraining_tells_the_steps_of_its_weights_and_whose_settings_they_were(tmp_path):
    """Its weights are written when it ends: what a process did that was killed since is not in them."""
    told = {"steps": 2, "used": 4, "corrected": 0, "from_episodes": ["format", "tools"]}
    told["agent"] = {"format": "tool_call", "tools": ["search"], "budgets": {"turns": 3}}
    recipe = {"base": "micro", "rollouts": {"agent": {"tools": ["kg"], "budgets": {"turns": 3}}}}
    (tmp_path / "retrain.json").write_text(json.dumps(told))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert _steps(tmp_path, "policy") == 2
    _write_papers(tmp_path, tmp_path, recipe, "merged", 2)
    text = (tmp_path / "agent.toml").read_text()
    assert text.startswith(
        "# As in the episodes that this policy learnt from: format, tools. All else"
    )
    made = tomllib.loads(text)
    assert (made["format"], made["tools"], made["budgets"]["turns"]) == ("tool_call", ["search"], 3)
    (tmp_path / "retrain.json").write_text(json.dumps({**told, "from_episodes": []}))
    _write_papers(tmp_path, tmp_path, recipe, "merged", 2)
    assert "do not agree on theirs" in (tmp_path / "agent.toml").read_text().splitlines()[0]


def test_validations_of_steps_that_did_not_happen_are_in_no_card(trained, home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    later = json.loads((run / "validation" / "step-00001.json").read_text())
    later["step"], later["right"]["mean"] = 7, 1.0
    (run / "validation" / "step-00007.json").write_text(json.dumps(later))
    found = export(run, tmp_path / "out", home)
    assert found.step == json.loads((run / "best" / "step.json").read_text())["step"]
    card = (found.out / "README.md").read_text()
    assert "| 7 |" not in card
    assert "| 1 |" in card
