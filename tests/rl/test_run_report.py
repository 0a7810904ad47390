import json
from html.parser import HTMLParser

import pytest

from agent.store import TrajectoryStore
from agent.task import Task
from kg.errors import UsageError
from rl import run_folder
from rl.run_curves import CURVES, lines_of
from rl.run_history import Asked, History, Measured
from rl.run_report import write_report
from rl.train_recipe import TrainRecipe
from tests.rl.histories import history, measured, write
from tests.rl.rollouts import RIGHT, WRONG, play

RECIPE = {
    "steps": 20,
    "tasks": {"sets": ["<b>mine</b>"]},
    "rewards": {"answer": {"reward": "exact_match"}},
    "credit": {"estimator": "grpo"},
    "update": {"optimizer": {"lr": 1e-4}},
}
EVIL = '<img src=x onerror="alert(1)"></div><script>alert(1)</script>'
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """The tags of a page; closing ones must fit."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(run):
    out = write_report(run)
    assert out == run / "report.html"
    text = out.read_text("utf-8")
    page = Page(text)
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attrs in page.seen for name in attrs)
    for _, attrs in page.seen:  # nothing is loaded
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")
    return page, "".join(page.text)


def recipe():
    return TrainRecipe.model_validate(RECIPE)


def episodes(run):
    """Two questions asked at steps 0 and 20: one becomes right, one wrong; all written by an enemy."""
    evil = (f"<search>{EVIL}</search>", "<judge>yes</judge>", f"<answer>{EVIL}</answer>")
    made = {}
    with TrajectoryStore.open(run / "trajectories.sqlite") as store:
        for step, scripts in ((0, (WRONG, RIGHT)), (20, (RIGHT, evil))):
            for number, script in enumerate(scripts):
                task = Task(f"q{number}", f"Question {number} {EVIL}?", ("oganesson",))
                group = f"validation-{step:05d}/world/q{number}"
                done = play(script, task=task, group=group)
                store.add(done)
                made[step, number] = done.id
    return made


def validation(step, ids, rights):
    plain = measured(step, sum(rights), len(rights))
    asked = {
        f"world/q{n}": Asked("1hop", float(right), ids[step, n]) for n, right in enumerate(rights)
    }
    return Measured(step, plain.right, plain.kinds, plain.figures, asked)


@pytest.fixture
def run(tmp_path):
    """A finished run with everything in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    ids = episodes(folder)
    validations = [validation(0, ids, (False, True)), validation(20, ids, (True, False))]
    seen = history(validations=validations, passes=lambda step: 0.0 if step == 7 else 3.0)
    write(folder, seen, recipe().model_dump_json())
    run_folder.note(folder, 12, "checkpoint", f"it could not be saved {EVIL}")
    report = {"steps": 20, "finished": True, "interrupted": False}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_the_page_of_a_finished_run(run):
    page, text = page_of(run)
    assert "20 of 20 steps, finished" in text
    assert recipe().digest in text
    assert "lr: 0.0001" in text
    assert "it could not be saved" in text
    assert "no rollout was better than another" in text
    assert "50.0 [ 40.0,  60.0]" in text
    plots = [tag for tag, _ in page.seen].count("svg")
    assert plots >= 8


def test_changed_questions_are_shown_side_by_side_and_escaped(run):
    page, text = page_of(run)
    assert "From wrong to right: 1" in text
    assert "From right to wrong: 1" in text
    pairs = [attrs for tag, attrs in page.seen if tag == "div" and attrs.get("class") == "pair"]
    assert len(pairs) == 2
    assert "right: oganesson" in text
    assert "wrong: gold" in text
    assert f"wrong: {EVIL}" in text  # shown as what it is: text
    assert "Gold is a yellow metal." in text  # what the search found


def test_a_run_that_goes_on_has_a_page(tmp_path):
    seen = history(3, validations=(measured(0, 40),))
    _, text = page_of(write(tmp_path / "run", seen, recipe().model_dump_json()))
    assert "3 of 20 steps, not finished" in text
    assert "No later validation" in text


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    _, text = page_of(write(tmp_path / "run", History(), recipe().model_dump_json()))
    assert "0 of 20 steps, not finished" in text
    assert "was not validated" in text


def test_differences_to_the_first_validation_are_paired(tmp_path):
    validations = (measured(0, 40), measured(10, 60), measured(20, 50))
    _, text = page_of(write(tmp_path / "run", history(validations=validations), "{}"))
    assert "best (step 10) - first" in text
    assert "20.0 [ 13.0,  28.0]" in text  # 20 of 100 questions changed, all one way
    assert "last (step 20) - first" in text
    assert "unknown: the recipe is of another version" in text


def test_without_questions_the_difference_is_said_to_be_unpaired(tmp_path):
    validations = (measured(0, 40, pairs=False), measured(20, 60, pairs=False))
    _, text = page_of(write(tmp_path / "run", history(validations=validations), "{}"))
    assert "100 (not paired)" in text


def test_an_episode_that_is_gone_is_said(run):
    (run / "trajectories.sqlite").unlink()
    TrajectoryStore.open(run / "trajectories.sqlite").close()
    _, text = page_of(run)
    assert "no episode" in text


def test_a_paused_run_says_so(run):
    run_folder.note(run, 20, "tripwire", "gap: too large")
    _, text = page_of(run)
    assert "paused by a tripwire" in text
    assert "gap: too large" in text


def test_a_run_that_went_on_is_not_called_finished(run):
    report = {"steps": 10, "finished": False, "interrupted": True}
    (run / "report.json").write_text(json.dumps(report))
    assert "20 of 20 steps, not finished" in page_of(run)[1]


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a training run"):
        write_report(tmp_path)


def test_reward_parts_get_a_line_each():
    seen = history(3, **{"reward/format": lambda step: 0.1 * step})
    lines = lines_of(seen, CURVES[0])
    assert list(lines) == ["reward", "answer", "format"]
    assert lines["format"] == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]
