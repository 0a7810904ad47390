"""How the benchmark of published claims reads and pairs runs."""

import itertools
import json
import sys

import pytest

from benchmarks import claims, claims_runs
from benchmarks.claims_runs import Finished, Question


def asked(key, right, misled=False, answerable=True, known=False, searches=1.0, astray=False):
    return Question(key, "1hop", answerable, known, misled, astray, right, searches, 0.0)


def test_levels_and_paired_differences():
    ours = [Finished("plain/igpo", s, (), (asked("a", 1), asked("b", s % 2))) for s in (1, 2)]
    theirs = [Finished("plain/outcome", s, (), (asked("b", 0), asked("a", 1))) for s in (2, 1, 3)]
    assert claims_runs.level(ours, claims_runs.right).mean == 0.75
    gap = claims_runs.difference(ours, theirs, claims_runs.right)
    assert gap.mean == 0.25
    assert gap.n == 2
    assert gap.low < -2  # of two seeds hardly anything can be said of others
    assert (
        claims_runs.difference(ours[:1], theirs[:1], claims_runs.right) is None
    )  # no seed in common


def test_a_question_counts_where_all_runs_have_it():
    """Who did not search was not misled, and says nothing of recovery."""
    ours = [
        Finished("plain/reseek", 1, (), (asked("a", 1, True, astray=True), asked("b", 1, True)))
    ]
    theirs = [Finished("plain/outcome", 1, (), tuple(asked(k, 0, True, astray=True) for k in "ab"))]
    gap = claims_runs.difference(ours, theirs, claims_runs.recovered)
    assert (gap.mean, gap.n) == (1.0, 1)


def test_each_measure_reads_its_questions_only():
    run = Finished(
        "plain/igpo",
        1,
        (),
        (
            asked("a", 1, known=True, searches=2),
            asked("b", 0, searches=4),
            asked("a", 0, misled=True),
            asked("b", 1, misled=True, astray=True, searches=2),
            asked("e", 0, misled=True, astray=True, searches=1),
            asked("c", 1, answerable=False),
            asked("d", 0, answerable=False),
        ),
    )
    found = {
        name: claims_runs.level([run], measure) for name, measure in claims_runs.MEASURES.items()
    }
    assert {name: (one.mean, one.n) for name, one in found.items()} == {
        "accuracy": (0.5, 2),
        "right when misled": (pytest.approx(1 / 3), 3),
        "recovered": (0.5, 2),
        "searched again": (0.5, 2),
        "right, searched again": (1.0, 1),
        "declined": (0.0, 2),
        "invented": (0.5, 2),
        "searches, known": (2.0, 1),
        "searches, unknown": (4.0, 1),
    }


def test_rollouts_until_the_baseline_is_reached():
    slow = Finished("plain/outcome", 1, (0.0,) * 4 + (0.4,) * 4, ())
    fast = Finished("plain/igpo", 1, (0.4,) * 8, ())
    never = Finished("plain/igpo", 2, (0.1,) * 8, ())
    per_step = claims_runs.TASKS * claims_runs.SIZE
    assert claims_runs.speed([fast], [slow]) == [(1, 4 * per_step, 8 * per_step)]
    assert claims_runs.speed([never], [slow._replace(seed=2)]) == [(2, None, 8 * per_step)]


def test_arms_differ_in_rewards_and_credit_alone(tmp_path, monkeypatch):
    from rl.train_recipe import load_train

    monkeypatch.setattr(claims, "taught", lambda out: tmp_path / "model")
    own = {"rewards", "credit", "models"}
    for worlds in claims.WORLDS:
        seen = []
        for arm in claims.ARMS:
            if not arm.startswith(f"{worlds}/"):
                continue
            [command] = claims.waiting(tmp_path, [arm], [7])
            sets = [b for a, b in itertools.pairwise(command) if a == "--set"]
            data = load_train(command[2], sets).model_dump(mode="json")
            declined = data["rewards"]["answer"].get("options", {}).get("declined")
            assert (declined == 0) is not arm.endswith(("abstain", "ikea"))
            assert (data["tasks"].pop("probe") > 0) is arm.endswith("combination")
            data["update"]["entropy"] = None  # a figure that is told
            seen.append({key: value for key, value in data.items() if key not in own})
        assert len(seen) > 1
        assert all(one == seen[0] for one in seen)
        assert set(seen[0]["tripwires"].values()) == {None}


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    folder = tmp_path / "plain" / "igpo-3"
    world = folder / "worlds" / "world-1"
    (folder / "validation").mkdir(parents=True)
    world.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "right_answerable": 0.25}\n')
    task = {"id": "w-1", "meta": {"taught": [True, True]}}
    (world / "tasks-test.jsonl").write_text(json.dumps(task) + "\n")
    row = {"set": "w", "task": "w-1", "kind": "2hop", "answerable": True, "right": 1.0}
    row |= {"searches": 2, "declined": False}
    again = {**row, "right": 0.0, "misled": True}
    facts = {"questions": [row], "misled": {"questions": [again]}}
    path = folder / "validation" / f"step-{claims_runs.STEPS:05d}.json"
    path.write_text(json.dumps(facts))
    assert len(list(claims.waiting(tmp_path, ["plain/igpo"], [3]))) == 1
    (folder / "report.json").write_text('{"finished": true}')
    assert list(claims.waiting(tmp_path, ["plain/igpo"], [3])) == []
    run = claims_runs.read_run(folder)
    assert (run.arm, run.seed, run.curve) == ("plain/igpo", 3, (0.25,))
    assert [(q.known, q.misled, q.right) for q in run.questions] == [
        (True, False, 1),
        (True, True, 0),
    ]


def test_the_combination_is_compared_with_every_arm_of_its_worlds():
    arms = dict.fromkeys(claims.ARMS)
    assert claims._others("plain/combination", arms) == [
        "plain/outcome", "plain/igpo", "plain/reseek", "plain/abstain",
    ]  # fmt: skip
    assert claims._others("taught/ikea", arms) == ["taught/outcome"]
    assert claims._others("plain/outcome", arms) == []


def test_no_run_no_level():
    assert claims_runs.level([], claims_runs.right) is None


def test_a_command_that_fails_is_counted_and_the_others_run(tmp_path):
    def command(name, code):
        return [sys.executable, "-c", f"print({code}); raise SystemExit({code})", "--out", name]

    names = [str(tmp_path / "plain" / f"arm-{n}") for n in (1, 2, 3)]
    commands = [command(name, code) for name, code in zip(names, (0, 3, 0), strict=True)]
    assert claims.run_all(commands, jobs=2) == 1
    assert [(tmp_path / "plain" / f"arm-{n}.log").read_text() for n in (1, 2, 3)] == [
        "0\n", "3\n", "0\n",
    ]  # fmt: skip


def test_what_was_before_training_is_compared_with_nothing():
    arms = dict.fromkeys(["plain/before", "plain/outcome", "plain/igpo", "plain/combination"])
    assert claims._others("plain/before", arms) == []
    assert claims._others("plain/igpo", arms) == ["plain/outcome"]
    assert claims._others("plain/combination", arms) == ["plain/outcome", "plain/igpo"]
