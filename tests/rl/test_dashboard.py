import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from eval.stats import Interval
from rl.dashboard import Dashboard, clock, derived, line, trend
from rl.observer import Silent
from rl.recovery import WhenMisled
from rl.step_metrics import Validated
from rl.train_command import watcher_of
from tests.rl.histories import CALM, history, measured, write


def console(terminal, width=120):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def metrics(step, **changed):
    return {**CALM, "step": float(step), **changed}


def validated(step, right):
    interval = Interval(right, right - 0.05, right + 0.05, 200)
    return Validated(step, interval, {"1hop": interval}, 2.0, 5.0, 0.3, 0.1, math.nan, ())


def played(run, to, steps=3):
    with Dashboard(run, to) as observer:
        observer.notify("making the world 1")
        observer.stage("validate", 3, 200)
        observer.validated(validated(0, 0.3))
        for step in range(1, steps + 1):
            observer.stage("collect", 7, 128)
            observer.step(metrics(step))
        observer.validated(validated(steps, 0.4))
        text = Console(file=io.StringIO(), width=to.width)
        text.print(observer.view())
    return text.file.getvalue()


def test_piped_one_plain_line_a_step(tmp_path):
    to = console(False)
    played(tmp_path, to)
    lines = to.file.getvalue().splitlines()
    assert [one for one in lines if one.startswith("step ")] == [
        f"step {n}/40  reward 0.300 (answer 0.300)  right 30.0 %  advantage 0.200  KL 0.001  "
        "entropy 0.12  entropy learnt from 0.15  clipped 3.0 %  gap 0.002  gradient 0.5  turns 5.0  "
        "searches 2.0  tokens/s 250  "
        f"time 5.0 s (collect 4.0 s, update 1.0 s)  {left} to go"
        for n, left in ((1, "3:15"), (2, "3:10"), (3, "3:05"))
    ]
    assert "making the world 1" in lines
    assert lines[-1] == (
        "validation at step 3: 40.0 [ 35.0,  45.0] % right over 200 questions; "
        "best 40.0 [ 35.0,  45.0] at step 3"
    )
    assert "\x1b" not in to.file.getvalue()


def test_one_process_of_a_run_shows_it(tmp_path, monkeypatch, capsys):
    for rank, kind in (("1", Silent), ("0", Dashboard)):
        monkeypatch.setenv("RANK", rank)
        with watcher_of(tmp_path / rank) as watcher:
            assert isinstance(watcher, kind)
            watcher.step(metrics(1))
            watcher.notify("here")
        assert ("here" in "".join(capsys.readouterr())) is (kind is Dashboard)
    assert not (tmp_path / "1").exists()


def test_the_view_shows_the_step_its_course_the_validation_and_the_stage(tmp_path):
    to = console(True)
    shown = played(tmp_path, to)
    assert "step 3 of 40, 3:05 to go" in shown
    assert "0.300 (answer 0.300)" in shown
    assert "validation at step 3: 40.0" in shown
    assert "\x1b[?25l" in to.file.getvalue()  # a live view hides the cursor


def test_the_stage_that_goes_on_has_a_bar(tmp_path):
    board = Dashboard(tmp_path, console(True))
    board.stage("collect", 7, 128)
    text = Console(file=io.StringIO(), width=100)
    text.print(board.view())
    assert "collect" in text.file.getvalue()
    assert "7/128" in text.file.getvalue()


def test_a_run_that_goes_on_keeps_its_best_and_reckons_from_its_own_steps(tmp_path):
    seen = history(4, validations=(measured(0, 30), measured(4, 70)), seconds=lambda step: 1000.0)
    board = Dashboard(write(tmp_path / "run", seen), console(False))
    assert math.isnan(board.seconds_left)
    board.step(metrics(5, seconds=2.0))
    assert board.seconds_left == 35 * 2.0
    board.validated(validated(5, 0.5))
    assert "best 70.0 [ 60.0,  80.0] at step 4" in board.console.file.getvalue()


def test_numbers_that_are_not_there_are_not_shown():
    said = line(metrics(1, entropy=math.nan, **{"seconds/collect": 0.0}), math.nan)
    assert "entropy 0.12" in said
    assert "entropy learnt from" not in said
    assert "tokens/s" not in said
    assert said.endswith("? to go")


def test_the_anchor_kl_comes_before_that_to_the_old_policy():
    assert derived(metrics(1))["any_kl"] == 0.001
    assert derived(metrics(1, kl=0.5))["any_kl"] == 0.5


def test_a_notice_cannot_drive_the_terminal(tmp_path):
    to = console(False)
    Dashboard(tmp_path, to).notify("a \x1b[2J[bold]b[/bold]")
    assert to.file.getvalue() == "a \ufffd[2J[bold]b[/bold]\n"


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"), ([1, math.nan, 2], "▁ █"), ([3, 3], "▅▅"), ([1], "")],
)
def test_a_trend_goes_from_lowest_to_highest(values, shown):
    assert trend(values) == shown


def test_clock():
    assert [clock(s) for s in (5, 125, 3723, math.nan)] == ["0:05", "2:05", "1:02:03", "?"]


def test_without_tensorboard_it_is_said_once(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", None
    )  # as where it is not installed
    to = console(False)
    played(tmp_path, to)
    assert to.file.getvalue().count("no TensorBoard files") == 1
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    played(tmp_path, console(False))
    played(tmp_path, console(False), steps=2)  # goes on: what was after its first step is hidden
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    tags = found.Tags()["scalars"]
    assert {"train/reward", "reward/answer", "seconds/collect", "validation/right"} <= set(tags)
    assert "validation/hallucinated" not in tags  # not a number
    assert [(one.step, round(one.value, 3)) for one in found.Scalars("train/reward")] == [
        (1, 0.3),
        (2, 0.3),
    ]


def test_what_is_recovered_stands_behind_the_validation(tmp_path):
    half = Interval(0.25, 0.2, 0.3, 40)
    astray = WhenMisled(half, half, 1.0, Interval(0.125, 0.1, 0.2, 40), 2.0, (), ())
    to = console(False)
    with Dashboard(tmp_path, to) as observer:
        observer.validated(validated(0, 0.3))
        observer.validated(replace(validated(1, 0.4), misled=astray))
        observer.validated(replace(validated(2, 0.4), misled=replace(astray, recovered=None)))
    plain, told, none = to.file.getvalue().splitlines()[-3:]
    assert "misleads" not in plain
    assert told.endswith("; when the first search misleads 25.0 % right, 12.5 % recovered")
    assert none.endswith("; when the first search misleads 25.0 % right")
