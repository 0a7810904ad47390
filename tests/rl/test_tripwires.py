"""Each wire on histories that must trip it and on ones that must not."""

import json
import math

import pytest

from kg.errors import UsageError
from rl import run_folder
from rl.pause import TrippedError, looked
from rl.run_history import History, read_history
from rl.train_recipe import FREE, TrainRecipe
from rl.tripwires import Tripwires, check, require_known
from tests.rl.histories import CALM, history, measured, write

RECIPE = {
    "tasks": {"sets": ["mine"]},
    "rewards": {"answer": {"reward": "exact_match"}},
    "credit": {"estimator": "grpo"},
    "update": {"optimizer": {"lr": 1e-4}},
}
RISING = {"reward": lambda step: 0.02 * step + 0.01 * (step % 2)}
FALLING = (measured(0, 60), measured(5, 62), measured(10, 63), measured(15, 50), measured(20, 40))


def tripped(seen, **settings):
    return [trip.wire for trip in check(Tripwires(**settings), seen)]


def until(step, start, end):
    """A course that is `start` up to a step and `end` after it."""
    return lambda now: start if now <= step else end


def test_a_calm_run_trips_nothing():
    validations = (measured(0, 60), measured(10, 62), measured(20, 61))
    assert tripped(history(validations=validations)) == []
    assert tripped(History()) == []


def test_a_run_that_learns_trips_nothing():
    seen = history(
        validations=(measured(0, 40), measured(10, 50), measured(20, 60)),
        reward=lambda step: 0.2 + 0.02 * step,
        sampled_entropy=lambda step: 0.2 / (1 + 0.1 * step),
        grad_norm=lambda step: 9.0 if step == 12 else 0.4,
        turns=lambda step: 6 - 0.1 * step,
    )
    assert tripped(seen) == []


def test_reward_up_while_validation_falls():
    """rllm#143: the training return rose while the evaluation fell."""
    [trip] = check(Tripwires(), history(validations=FALLING, **RISING))
    assert (trip.wire, trip.before, trip.after) == ("validation", 10, 20)
    assert "63.0 % right at step 10 to 40.0 % at step 20" in trip.said
    assert "-23.0 [" in trip.said


@pytest.mark.parametrize(
    ("validations", "reward"),
    [
        pytest.param(FALLING, lambda step: 0.3 + 0.01 * (step % 2), id="reward level"),
        pytest.param(FALLING, lambda step: 0.9 - 0.02 * step, id="reward falls too"),
        pytest.param(FALLING[:4], RISING["reward"], id="no fresh validation"),
        pytest.param((measured(0, 60), measured(20, 40)), RISING["reward"], id="one bad one"),
        pytest.param(
            (*FALLING[:3], measured(15, 50), measured(20, 61)), RISING["reward"], id="recovered"
        ),
        pytest.param(
            (measured(0, 63), measured(15, 61), measured(20, 61)), RISING["reward"], id="small fall"
        ),
    ],
)
def test_a_validation_that_does_not_fall_behind_a_rising_reward(validations, reward):
    assert tripped(history(validations=validations, reward=reward)) == []


def test_a_policy_ruined_at_once_is_seen():
    """All that changes lies within the first window: the spread between its steps tells no error."""
    fell = (measured(0, 58), measured(2, 4), measured(4, 4))
    course = {"reward": lambda step: -0.3 if step == 1 else 0.0}
    seen = history(4, validations=fell, **course)
    [trip] = check(Tripwires.model_validate({"validation": {"window": 3}}), seen)
    assert (trip.wire, trip.before, trip.after) == ("validation", 0, 4)
    assert "the reward rose from -0.300 to 0.000" in trip.said
    noisy = history(4, validations=fell, reward_error=lambda step: 0.2, **course)
    assert tripped(noisy) == []


@pytest.mark.parametrize(
    ("reward", "trips"),
    [(RISING["reward"], True), (lambda step: 0.3 + 0.01 * (step % 2), False)],
)
def test_where_no_step_tells_its_error_the_spread_between_steps_does(reward, trips):
    untold = {"reward": reward, "reward_error": lambda step: math.nan}
    assert tripped(history(validations=FALLING, **untold)) == ["validation"] * trips
    early = (measured(0, 63), measured(15, 50), measured(20, 40))
    assert tripped(history(validations=early, **untold)) == ["validation"] * trips
    assert tripped(history(4, validations=(measured(0, 63), measured(4, 40)), **untold)) == []


def test_without_questions_whole_intervals_must_part():
    apart = tuple(
        measured(step, right, pairs=False) for step, right in ((5, 70), (15, 40), (20, 40))
    )
    near = tuple(
        measured(step, right, pairs=False) for step, right in ((5, 60), (15, 45), (20, 45))
    )
    assert tripped(history(validations=apart, **RISING)) == ["validation"]
    assert tripped(history(validations=near, **RISING)) == []


@pytest.mark.parametrize(
    ("wire", "courses", "said"),
    [
        ("tool_entropy", {"tool_entropy": until(10, 0.68, 0.05)}, "0.68 to 0.05"),
        ("entropy", {"sampled_entropy": until(10, 0.2, 0.001)}, "0.2 to 0.001"),
        ("gap", {"gap_mean": until(0, 0.0, 0.3)}, "0.3 nats a token, above 0.1"),
        ("gap", {"gap_mean": until(10, 0.001, 0.05)}, "grew from 0.001 to 0.05"),
        (
            "capped",
            {"capped": until(10, 0.1, 0.8), "turns": until(10, 4, 8)},
            "10% to 80% (turns 4.0",
        ),
        ("masked", {"masked": until(10, 0.0, 0.4)}, "40% of the loss tokens are masked"),
        ("masked", {"failed": until(10, 0.0, 0.5)}, "50% of the rollouts failed"),
        ("masked", {"weight_mean": until(10, 1.0, 0.2)}, "weight is 0.2, below 0.5"),
        ("masked", {"weight_min": until(10, 1.0, 1e-6)}, "1e-06 or less"),
        ("grad_norm", {"grad_norm": until(17, 0.5, 80.0)}, "0.5 to 80"),
    ],
)
def test_a_wire_that_is_tripped_says_its_numbers(wire, courses, said):
    """Search-R1#12, agent-lightning#490: runs that collapse after hundreds of steps, unwatched."""
    seen = history(**courses)
    [trip] = check(Tripwires(), seen)
    assert trip.wire == wire
    assert said in trip.said
    assert (trip.before, trip.after) == (1, 20)
    assert tripped(seen, **{wire: None}) == []
    assert check(Tripwires(), seen, ignored=[wire]) == []


def test_a_collapse_that_silences_every_group_trips():
    """Nothing is learnt from then on: no pass computes an entropy, and the steps do not tell one."""
    seen = history(sampled_entropy=until(10, 0.2, 0.001))
    for one in seen.steps[10:]:
        del one["entropy"]
    assert tripped(seen) == ["entropy"]


@pytest.mark.parametrize(
    "courses",
    [
        pytest.param({"tool_entropy": until(10, 0.05, 0.0)}, id="one tool from the start"),
        pytest.param({"tool_entropy": until(18, 0.68, 0.0)}, id="two odd steps"),
        pytest.param({"sampled_entropy": until(10, 0.2, 0.05)}, id="entropy a quarter"),
        pytest.param({"gap_mean": until(10, 1e-7, 1e-5)}, id="a tiny gap that grows"),
        pytest.param({"capped": until(0, 0.0, 0.8)}, id="capped from the start"),
        pytest.param({"masked": until(19, 0.0, 1.0)}, id="one masked step"),
        pytest.param(
            {"weight_min": until(0, 0.0, 0.0), "masked": until(0, 0.0, 0.05)}, id="5% masked"
        ),
        pytest.param({"grad_norm": until(19, 0.5, 500.0)}, id="one spike"),
        pytest.param({"grad_norm": until(17, 1e-4, 0.5)}, id="a small gradient"),
        pytest.param({"grad_norm": until(17, 0.0, 5.0)}, id="silent steps before"),
        pytest.param(
            {name: until(0, math.nan, math.nan) for name in CALM if name != "steps"},
            id="no numbers",
        ),
    ],
)
def test_what_must_not_trip(courses):
    assert tripped(history(**courses)) == []


def test_a_wire_says_nothing_before_two_windows():
    assert tripped(history(9, tool_entropy=until(4, 0.68, 0.0))) == []
    assert tripped(history(10, tool_entropy=until(5, 0.68, 0.0))) == ["tool_entropy"]


def test_thresholds_are_the_recipes():
    seen = history(capped=until(10, 0.1, 0.4))
    assert tripped(seen) == []
    assert tripped(seen, capped={"most": 0.3}) == ["capped"]
    assert TrainRecipe.model_fields["tripwires"].default == Tripwires()


def test_an_unknown_wire_is_named_with_the_nearest():
    require_known(["entropy", "gap"])
    with pytest.raises(UsageError) as caught:
        require_known(["grad_nrm"])
    assert "did you mean 'grad_norm'" in caught.value.hint


def test_a_pause_says_which_wire_what_to_compare_and_how_to_go_on(tmp_path):
    write(tmp_path / "run", history(validations=FALLING, **RISING))
    error = looked(tmp_path / "run", Tripwires())
    assert isinstance(error, TrippedError)
    assert "tripwire 'validation' paused the run at step 20" in error.message
    assert "--ignore validation" in error.hint
    assert "--set tripwires.validation=null" in error.hint
    lost = 40  # the first question that was right at step 10 and is wrong at step 20
    assert f"{10:04x}{lost:028x}" in error.hint
    assert f"{20:04x}{lost:028x}" in error.hint
    [event] = read_history(tmp_path / "run").events
    assert (event.step, event.kind) == (20, "tripwire")
    assert looked(tmp_path / "run", Tripwires(), ["validation"]) is None


def test_several_wires_are_all_named(tmp_path):
    write(
        tmp_path / "run", history(sampled_entropy=until(10, 0.2, 0.0), capped=until(10, 0.0, 0.9))
    )
    error = looked(tmp_path / "run", Tripwires())
    assert "'capped'" in error.message
    assert "also entropy" in error.message
    assert "--ignore capped --ignore entropy" in error.hint


def test_only_tripwires_and_what_suits_the_machine_may_change_while_a_run_goes_on(tmp_path):
    begun = TrainRecipe.model_validate(RECIPE)
    other = begun.model_copy(
        update={
            "tripwires": Tripwires(gap=None),
            "rollouts": begun.rollouts.model_copy(update={"gpu_memory": 0.5, "tensor_parallel": 2}),
        }
    )
    run_folder.claim(tmp_path, begun, free=FREE)
    run_folder.claim(tmp_path, other, free=FREE)
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["tripwires"]["gap"] is None
    assert written["rollouts"]["gpu_memory"] == 0.5
    longer = other.rollouts.model_copy(update={"context": 512})
    for change in ({"seed": 9}, {"rollouts": longer}):
        with pytest.raises(UsageError, match="another recipe"):
            run_folder.claim(tmp_path, other.model_copy(update=change), free=FREE)


def test_a_run_that_was_begun_before_a_key_was_there_goes_on(tmp_path):
    """And before `deterministic` followed the machine."""
    now = TrainRecipe.model_validate(RECIPE)
    before = json.loads(now.model_dump_json())
    for key in ("gpu_memory", "context", "tensor_parallel"):
        del before["rollouts"][key]
    before["rollouts"]["deterministic"] = True
    (tmp_path / "recipe.json").write_text(json.dumps(before))
    run_folder.claim(tmp_path, now, free=FREE)
    assert json.loads((tmp_path / "recipe.json").read_text()) == json.loads(now.model_dump_json())


def test_a_run_that_goes_on_forgets_later_steps_and_events(tmp_path):
    run = write(tmp_path / "run", history(5))
    for step in (2, 4):
        run_folder.note(run, step, "skipped", "why")
    with run_folder.metrics(run, 3) as file:
        file.add({"step": 4, "reward": math.nan})
    seen = read_history(run)
    assert [one["step"] for one in seen.steps] == [1, 2, 3, 4]
    assert [one.step for one in seen.events] == [2]


def test_damage_in_a_run_folder_is_left_out(tmp_path):
    run = write(tmp_path / "run", history(3, validations=(measured(0, 5), measured(2, 6))))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('not JSON\n{"step": 4, "reward": null}\n[1]\n{"step": 5, "rew')
    (run / "validation" / "step-00002.json").write_text("{")
    (run / "validation" / "step-00009.json").write_text(
        (run / "validation" / "step-00000.json").read_text().replace('"step": 0', '"step": 9')
    )
    seen = read_history(run)
    assert [one["step"] for one in seen.steps] == [1, 2, 3, 4]
    assert math.isnan(seen.steps[-1]["reward"])
    assert [one.step for one in seen.validations] == [0]  # 9: of a killed process
    assert read_history(tmp_path / "nothing") == History()
