"""`agent trace credit` and `agent trace html --credit` on a real store and the real micro policy."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import cli
from agent.policies.catalog import resolve
from agent.policies.chat import ChatTemplate
from agent.policies.model_folder import weights_version
from agent.store import TrajectoryStore
from agent.task import Task
from tests.rl.rollouts import RIGHT, group, play

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def micro(models_dir):
    """The micro policy's template, and its name and version."""
    folder = resolve("micro", models_dir)
    return ChatTemplate.load(folder), f"micro@{weights_version(folder)}"


@pytest.fixture(scope="module")
def rollouts(micro):
    return group(*micro)


@pytest.fixture
def store(tmp_path, rollouts):
    path = tmp_path / "store.sqlite"
    with TrajectoryStore.open(path) as opened:
        opened.add_many(rollouts)
    return path


@pytest.fixture
def agent(store, monkeypatch, capsys):
    """Run `agent trace …` in this process: exit code, stdout and stderr."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["agent", "trace", *map(str, args), "--store", str(store)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def add(store, *trajectories):
    with TrajectoryStore.open(store) as opened:
        opened.add_many(trajectories)


def test_the_receipt_of_an_episode_by_the_beginning_of_its_id(agent, rollouts, micro):
    code, out, err = agent("credit", rollouts[1].id[:12])
    assert code == 0, err
    assert "credit   igpo" in out
    assert "3     search: Oganessian" in out
    assert "group g/q1: 4 rollouts" in out
    assert f"scored by {micro[1]}" in out
    lines = out[out.index("information gain") :].splitlines()[2:7]
    gains = [line.split()[-1] for line in lines]
    assert all(re.fullmatch(r"[+-]\d+\.\d{4}", gain) for gain in gains[:-1])
    assert gains[-1] == "-"
    assert "Loading weights" not in err


def test_json_adds_up_to_the_loss(agent, rollouts):
    code, out, _ = agent("credit", rollouts[0].id, "--json")
    receipt = json.loads(out)
    assert code == 0
    assert sum(line["contribution"] for line in receipt["turns"]) == receipt["contribution"]
    total = sum(line["contribution"] for line in receipt["rollouts"])
    assert total == pytest.approx(-receipt["loss"], abs=1e-12)
    for line in receipt["turns"]:
        expected = line["weight"] * line["tokens"] * line["advantage"]
        assert line["contribution"] == pytest.approx(expected, abs=1e-12)
    assert [line["id"] for line in receipt["rollouts"]] == [t.id for t in rollouts]


def test_vllm_computes_the_same_probes(agent, rollouts, micro):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    told = [agent("credit", rollouts[1].id, "--json", "--scorer", s) for s in ("model", "vllm")]
    assert [code for code, _, _ in told] == [0, 0], told
    ours, theirs = (json.loads(out) for _, out, _ in told)
    assert theirs["scored_by"] == ours["scored_by"] == micro[1]
    gold = [[line["gold"] for line in one["turns"]] for one in (ours, theirs)]
    assert gold[1] == pytest.approx(gold[0], abs=1e-3)
    assert theirs["gold_answer"] == ours["gold_answer"]


def test_a_recipe_without_probes_loads_no_model(store, rollouts):
    script = (
        "import sys, cli\ntry: cli.main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    args = ["trace", "credit", rollouts[0].id, "--recipe", "grpo", "--store", str(store)]
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "False"
    assert "credit   grpo" in done.stdout


def test_mistakes_are_one_line_with_their_code(agent, store, rollouts, micro, tmp_path):
    text = play(RIGHT, name="hosted@1", group="text")
    hosted = replace(rollouts[0], id="hosted-1", policy="gpt-hosted@1", group="h")
    hub = replace(rollouts[0], id="hub-1", policy="owner/model@1", group="hub")
    asked = replace(rollouts[0], id="asked-1", task=Task.ask("Why?"), group="")
    script = "<search>gold</search>", "<abstain>I do not know</abstain>"
    declined = play(script, micro[0], "gpt-hosted@1", group="d")  # its model would be a code of 5
    add(store, text, hosted, hub, asked, declined)
    apart = tmp_path / "apart.yaml"
    apart.write_text(
        "rewards: {a: {reward: information_gain}}\ncredit: {estimator: rloo, declined: leave_out}\n"
    )
    own = tmp_path / "mine.yaml"
    own.write_text("rewards: {a: {reward: f11}}\ncredit: {estimator: grpo}\n")
    known = tmp_path / "known.yaml"
    known.write_text("rewards: {a: {reward: boundary_label}}\ncredit: {estimator: grpo}\n")
    label = {"known": {"policy": "micro@1", "known": True}}
    told = replace(rollouts[0], id="told-1", task=replace(rollouts[0].task, meta=label), group="t")
    add(store, told)
    assert agent("credit", told.id, "--recipe", known)[0] == 0
    id = rollouts[0].id
    for args, code, message in (
        (("zzzzzz",), 2, "no episode"),
        ((id, "--recipe", "ipgo"), 2, "did you mean 'igpo'"),
        ((id, "--recipe", "cold_start"), 2, "recipe 'cold_start'"),
        ((id, "--recipe", own), 2, "did you mean 'f1'"),
        ((id, "--recipe", known), 2, "knowledge boundary labels"),
        ((text.id,), 2, "no token ids"),
        ((text.id, "--recipe", "grpo"), 2, "no token ids"),
        ((declined.id, "--recipe", apart), 2, "it declined"),
        ((asked.id,), 2, "no gold answer"),
        ((asked.id, "--recipe", "grpo"), 2, "no gold answers"),
        ((hosted.id,), 5, "'gpt-hosted' that sampled hosted-1 is not a local model"),
        ((hub.id,), 5, "'owner/model' that sampled hub-1 is not a local model"),
        ((id, "--policy", "micr"), 2, "micro"),
        ((id, "--policy", "http://127.0.0.1:9/v1"), 2, "no probes"),
    ):
        found, out, err = agent("credit", *args)
        assert (found, out) == (code, ""), (args, err)
        assert err.startswith("error: ")
        assert message in err, args
        assert len(err.strip().splitlines()) <= 2


def test_a_model_that_does_not_load_is_one_line(agent, rollouts, models_dir, tmp_path):
    broken = shutil.copytree(resolve("micro", models_dir), tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = agent("credit", rollouts[0].id, "--policy", broken)
    assert code == 5
    assert f"no model in {broken}" in err


def test_a_model_asked_for_by_name_probes_what_another_sampled(agent, store, rollouts, micro):
    [alone] = group(*micro, scripts=[RIGHT], group="alone")
    add(store, replace(alone, policy="elsewhere@1"))
    code, out, err = agent("credit", alone.id, "--policy", "micro")
    assert code == 0, err
    assert f"note: probed with {micro[1]}, not with elsewhere@1" in out
    assert "note: a group of one" in out


def test_rollouts_of_other_tasks_and_damaged_ones_are_told(agent, store, rollouts):
    stray = replace(rollouts[0], id="stray", task=Task("q9", "Else?", ("x",)))
    textless = play(RIGHT, name=rollouts[0].policy, group="g/q1")
    add(store, stray, textless)
    code, out, _ = agent("credit", rollouts[0].id, "--recipe", "grpo")
    assert code == 0
    assert "other tasks in this group are not compared: 1" in out
    assert f"left out: {textless.id}: it has no token ids" in out
    assert "4 rollouts" in out


def test_an_episode_without_a_group_says_so(agent, store, rollouts):
    add(store, replace(rollouts[0], id="loner", group=""))
    code, out, _ = agent("credit", "loner", "--recipe", "grpo")
    assert code == 0
    assert "note: the episode belongs to no group" in out


def test_of_files_that_were_cut_off_the_rest_goes_on(agent, store, rollouts, tmp_path):
    many = [
        replace(t, id=f"ep{n:02d}-{t.seed}", group=f"g{n}") for n in range(20) for t in rollouts
    ]
    add(store, *many)
    lines = tmp_path / "all.jsonl"
    assert agent("export", lines)[0] == 0
    whole, text = store.read_bytes(), lines.read_bytes()
    cut = tmp_path / "cut.sqlite"
    cut.write_bytes(whole[: len(whole) // 2])
    lines.write_bytes(text[: len(text) // 2])
    store.write_bytes(cut.read_bytes())
    code, out, err = agent("credit", many[0].id, "--recipe", "grpo")
    assert (code, out) == (2, "")
    assert f"try: agent trace import {store} --store NEW" in err
    for number, (source, told) in enumerate(((cut, "cut off"), (lines, "not JSON"))):
        store.unlink()
        code, out, err = agent("import", source)
        added, skipped = (int(out.split()[n]) for n in (0, 5))
        assert code == 0, number
        assert 20 < added < 80
        assert skipped == err.count("skipped: ") >= 1
        assert told in err
        left = next(line.split()[0] for line in agent("list", "--limit", "1")[1].splitlines())
        code, out, err = agent("credit", left, "--recipe", "grpo")
        assert code == 0, err
        assert "loss at ratio 1" in out


def embedded(page):
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    return {episode["id"]: episode["credit"] for episode in json.loads(data)}


def test_the_page_holds_the_receipts(agent, store, rollouts, tmp_path):
    text = play(RIGHT, name="hosted@1")
    add(store, text)
    out = tmp_path / "page.html"
    ids = [rollouts[0].id, text.id]
    code, said, err = agent("html", *ids, "--credit", "grpo", "-o", out)
    assert (code, said.strip()) == (0, str(out)), err
    assert f"no receipt: the episode {text.id} cannot be assessed" in err
    credit = embedded(out.read_text())
    assert credit[text.id] is None
    assert len(credit[rollouts[0].id]["turns"]) == len(rollouts[0].turns)
    assert agent("html", *ids, "-o", out)[0] == 0
    assert embedded(out.read_text()) == dict.fromkeys(ids)
    assert agent("html", *ids, "--credit", "gpro", "-o", out)[0] == 2


def test_the_page_draws_the_information_gain(agent, rollouts, tmp_path):
    out = tmp_path / "page.html"
    code, _, err = agent("html", rollouts[0].id, "--credit", "igpo", "-o", out)
    assert code == 0, err
    turns = embedded(out.read_text())[rollouts[0].id]["turns"]
    assert turns[1]["gold"] > turns[0]["gold"]  # the search found it
    assert turns[0]["information_gain"] == turns[1]["gold"] - turns[0]["gold"]


def test_rewards_and_the_right_answer_are_attached_by_command(agent, store, rollouts):
    one = rollouts[0]
    assert agent("reward", one.id[:12], "thumb=1", "style=-0.5")[0] == 0
    code, out, _ = agent("reward", one.id, "thumb=0", "--json")
    there = {**one.rewards, "thumb": 0.0, "style": -0.5}
    assert (code, json.loads(out)) == (0, {"id": one.id, "rewards": there})
    code, out, _ = agent("correct", one.id[:12], "--answer", " Ada ")
    assert (code, out.strip()) == (0, f"{one.id}: corrected")
    with TrajectoryStore.open(store) as opened:
        found = opened.get(one.id)
        assert opened.count() == len(rollouts)
    assert found.task.meta["correction"] == "Ada"
    assert found.rewards == there
    for words in ("thumb", "=1", "thumb=good", "thumb=nan"):
        code, _, err = agent("reward", one.id, words)
        assert code == 2
        assert f"'{words}' is no reward" in err
    assert agent("correct", one.id, "--answer", " ")[0] == 2
    assert agent("reward", "nobody", "thumb=1")[0] == 2
