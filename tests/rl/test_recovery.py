"""Episodes misled at their first search: drawn by seed, measured, trained on.

The micro policy and real search.
"""

import asyncio
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agent.policies.transformers import TransformersPolicy
from agent.settings import isolated_settings
from agent.store import TrajectoryStore
from eval.sample import score_one
from kg.errors import UsageError
from rl.curriculum import Drawn
from rl.question_sets import load_sets, open_sets
from rl.recovery import ask_misled, recovery
from rl.rewards import RewardContext
from rl.rewards.self_correction import Usefulness
from rl.rollouts import Stage, goes_wrong, groups_of, measured
from rl.run_history import read_history
from rl.run_report import write_report
from rl.step_metrics import facts_of, of_rollouts, validated
from rl.train_recipe import Rollouts, Tasks
from tests.rl.conftest import WORLD
from tests.rl.training_run import recipe, run

SHARE = 0.5
KINDS = ("1hop", "false_premise", "unanswerable")  # the last has no gold evidence


@pytest.fixture(scope="module")
def stage(micro, tmp_path_factory):
    """Two groups, half of whose rollouts are misled, and a validation with its misled half."""
    folder = tmp_path_factory.mktemp("misled")
    rollouts = Rollouts(size=4, concurrency=16, engine="transformers", misled=SHARE)
    agent = {"search": {"mode": "lexical"}, "budgets": {"turns": 5}}

    async def play():
        policy = TransformersPolicy(micro, name="micro", dtype="float32")
        settings = isolated_settings(home=folder, **agent)
        tasks = Tasks(worlds={**WORLD, "first_seed": 5})
        sets = open_sets(
            load_sets(tasks, settings, "", folder / "worlds"), settings, policy, lambda line: None
        )
        kinds = [[t for t in sets[0].tasks if t.kind == kind] for kind in KINDS]
        drawn = [Drawn(sets[0], task) for found in kinds for task in found[:2]]
        plays, stage = groups_of(1, drawn, rollouts, 7), Stage(policy, rollouts)
        found, again = await stage.play(plays), await stage.play(plays)
        done = await stage.play(measured(drawn, 3, 0))
        clean = [
            score_one(d.source.name, d.source.scorer, d.task, t)
            for d, t in zip(drawn, done, strict=True)
        ]
        misled = await ask_misled(drawn, clean, stage, 0, 3, 0.0, lambda d, n: None)
        await policy.aclose()
        return SimpleNamespace(
            plays=plays, drawn=drawn, found=found, again=again, clean=clean, misled=misled
        )

    return asyncio.run(play())


def groups(found):
    return [found[i : i + 4] for i in range(0, len(found), 4)]


def scorer_of(trajectory):
    return "world", "squad2"


def right(trajectory):
    return score_one("world", "squad2", trajectory.task, trajectory).right


def test_who_is_misled_follows_from_the_seed_and_the_task_alone(stage):
    assert [p.episode.misled for p in stage.plays] == [
        goes_wrong(p.episode.task, p.episode.seed, SHARE) for p in stage.plays
    ]
    gold = [p.episode for p in stage.plays if p.episode.task.evidence]
    assert 0 < sum(e.misled for e in gold) < len(gold)
    bare = [p.episode for p in stage.plays if not p.episode.task.evidence]
    assert bare
    assert not any(e.misled for e in bare)


def test_the_share_of_seeds_is_the_one_asked_for(stage):
    task = next(d.task for d in stage.drawn if d.task.evidence)
    for share in (0.0, 0.1, 0.5, 1.0):
        hits = sum(goes_wrong(task, seed, share) for seed in range(4000))
        assert hits / 4000 == pytest.approx(share, abs=0.03)
    assert not goes_wrong(replace(task, evidence=()), 1, 1.0)
    # whoever is misled at a smaller share is at a larger one: runs of one seed compare
    assert all(goes_wrong(task, seed, 0.5) for seed in range(400) if goes_wrong(task, seed, 0.1))


def test_no_other_episode_is_changed_by_it(stage):
    """Ids, seeds and groups are those of a run that misleads nobody."""
    plain = groups_of(1, stage.drawn, Rollouts(size=4), 7)
    for ours, theirs in zip(stage.plays, plain, strict=True):
        assert replace(ours.episode, misled=False) == theirs.episode


def test_a_step_that_is_played_again_is_the_same(stage):
    for one, two in zip(stage.found, stage.again, strict=True):
        assert (one.id, one.misled, one.versions) == (two.id, two.misled, two.versions)
        assert one.token_ids.tolist() == two.token_ids.tolist()


def test_gold_was_hidden_once_and_rewards_see_what_was_shown(stage):
    ideal, misled = Usefulness(by="evidence"), [t for t in stage.found if t.misled]
    assert misled
    for one in misled:
        scores = ideal.scores(one, RewardContext())
        first = min(scores)
        assert one.turns[first].observation.misled
        assert scores[first] == 0.0
        assert sum(turn.observation.misled for turn in one.turns if turn.observation) == 1
        assert one.versions["misled"] == "search"
    later = [ideal.scores(t, RewardContext()) for t in misled]
    assert any(1.0 in scores.values() for scores in later)  # a later search finds it


def test_metrics_tell_of_it_where_it_was_asked_for(stage):
    found = of_rollouts(groups(stage.found), scorer_of, misled=True)
    plain = of_rollouts(groups(stage.found), scorer_of)
    assert found.keys() - plain.keys() == {"misled", "recovered"}
    shares = [sum(t.misled for t in group) / 4 for group in groups(stage.found)]
    assert found["misled"] == pytest.approx(sum(shares) / len(shares))
    rights = []
    for group in groups(stage.found):
        hit = [right(t) for t in group if t.misled and t.task.answerable]
        rights += [sum(hit) / len(hit)] if hit else []
    assert found["recovered"] == pytest.approx(sum(rights) / len(rights))
    none = of_rollouts([[t] for t in stage.found if not t.misled], scorer_of, misled=True)
    assert none["misled"] == 0.0
    assert math.isnan(none["recovered"])


def test_a_validation_measures_the_same_tasks_misled(stage):
    again, episodes = stage.misled
    gold = [n for n, d in enumerate(stage.drawn) if d.task.evidence]
    assert 0 < len(gold) < len(stage.drawn)
    assert [s.task for s in again.samples] == [stage.drawn[n].task.id for n in gold]
    assert [s.seed for s in again.samples] == [stage.clean[n].seed for n in gold]
    assert all(t.group.startswith("misled-00000/") for t in episodes)
    rights = [s.right for s in again.samples]
    assert again.right.mean == pytest.approx(sum(rights) / len(rights))
    clean = [stage.clean[n].right for n in gold]
    assert again.lost.mean == pytest.approx(again.right.mean - sum(clean) / len(clean))
    hit = [s for s, was in zip(again.samples, again.shown, strict=True) if was]
    assert again.misled == len(hit) / len(rights)
    able = [s.right for s in hit if s.answerable]
    assert 0 < len(able) < len(hit)
    assert again.recovered.mean == pytest.approx(sum(able) / len(able))


def test_recovery_counts_answerable_episodes_that_were_misled(stage):
    again, episodes = stage.misled
    none = recovery(again.samples, again.samples, [replace(t, turns=()) for t in episodes])
    assert (none.misled, none.recovered) == (0.0, None)
    declined = [replace(s, answerable=False) for s in again.samples]
    assert recovery(declined, declined, episodes).recovered is None


def test_the_file_of_a_validation_holds_it_and_readers_find_it(stage, tmp_path):
    again, _ = stage.misled
    plain = validated(0, stage.clean)
    assert "misled" not in facts_of(plain)
    facts = json.loads(json.dumps(facts_of(replace(plain, misled=again))))
    assert [q["misled"] for q in facts["misled"]["questions"]] == list(again.shown)
    assert [q["episode"] for q in facts["misled"]["questions"]] == [s.id for s in again.samples]
    assert facts["right"] == facts_of(plain)["right"]
    path = tmp_path / "validation" / "step-00000.json"
    path.parent.mkdir()
    path.write_text(json.dumps(facts))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    [seen] = read_history(tmp_path).validations
    assert seen.figures["misled"] == again.right.mean
    assert seen.figures["recovered"] == again.recovered.mean
    (tmp_path / "recipe.json").write_text("{}")
    assert "right when the first search misleads, %" in write_report(tmp_path).read_text("utf-8")


@pytest.mark.parametrize("key", ["rollouts", "validation"])
def test_sets_without_gold_evidence_are_refused_before_any_model(tmp_path, key):
    questions, held = tmp_path / "mine.jsonl", tmp_path / "held.jsonl"
    for path, first in ((questions, 0), (held, 50)):
        rows = [
            {"id": f"q{n}", "question": f"Who is {n}?", "answer": "Ada"}
            for n in range(first, first + 9)
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
    mine = {"worlds": None, "sets": (str(questions),)}
    validation = {"every": 1, "tasks": {"worlds": None, "sets": (str(held),), "split": "train"}}
    changes = {"rollouts": {"misled": 0.2}} if key == "rollouts" else {}
    changes["validation"] = {**validation, "misled": key == "validation"}
    named = "mine" if key == "rollouts" else "held"
    with pytest.raises(UsageError, match=f"{key}.misled: no task of '{named}' has gold evidence"):
        run(tmp_path / "run", tmp_path / "home", tasks=mine, base="absent", **changes)


def test_episodes_that_cannot_search_cannot_be_misled(tmp_path):
    rollouts = {"misled": 0.2, "agent": {"tools": ["judge"]}}
    with pytest.raises(UsageError, match="no tool 'search'"):
        run(tmp_path / "run", tmp_path / "home", base="absent", rollouts=rollouts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollouts": {"misled": 1.5}}, "rollouts.misled"),
        ({"rollouts": {"misled": -0.1}}, "rollouts.misled"),
        ({"validation": {"misled": True}}, "nothing is validated"),
    ],
)
def test_a_share_that_is_none_is_refused(changes, said):
    with pytest.raises(UsageError) as error:
        recipe(**changes)
    assert said in f"{error.value.message} {error.value.hint}"


def test_a_run_trains_on_misled_episodes_and_measures_recovery(tmp_path):
    out = tmp_path / "run"
    held = {"count": 1, "first_seed": 5002, "entities": 80, "questions": 60}
    tasks = {"worlds": held, "split": "test", "limit": 3, "kinds": ["1hop"]}
    run(
        out,
        tmp_path / "home",
        steps=1,
        tasks={"kinds": ["1hop"]},
        rollouts={"engine": "transformers", "tasks": 2, "size": 4, "misled": SHARE},
        validation={"every": 1, "misled": True, "tasks": tasks},
    )
    [row] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    with TrajectoryStore.open(out / "trajectories.sqlite") as store:
        kept = list(store.query())
    step = [t for t in kept if t.group.startswith("step-")]
    assert row["misled"] == sum(t.misled for t in step) / 8 > 0
    assert "recovered" in row
    for number in (0, 1):
        facts = json.loads((out / "validation" / f"step-{number:05d}.json").read_text())
        asked = [t for t in kept if t.group.startswith(f"misled-{number:05d}/")]
        assert sorted(q["episode"] for q in facts["misled"]["questions"]) == sorted(
            t.id for t in asked
        )
        assert len(asked) == len(facts["questions"]) == 3
        assert not any(t.misled for t in kept if t.group.startswith(f"validation-{number:05d}/"))
