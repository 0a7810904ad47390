"""The trace viewer: one file, no network, nothing in the data can act. In a real browser."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn
from agent.viewer import render_html, render_text
from tools.base import Observation, Source, Verdict

EVIL = "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture
def trajectory():
    source = Source("p/1", f"Title {EVIL}", f"Text {EVIL}", number=1)
    search = Turn(
        (Span(0, 2),), Span(2, 4), Span(4, 6), "<search>x</search>",
        Action(ActionKind.TOOL, "search", {"query": "x"}, thought="let me look"),
        Observation("search", sources=(source,)),
    )  # fmt: skip
    judge = Turn(
        (Span(0, 6),), Span(6, 7), Span(7, 8), "<judge>no</judge>",
        Action(ActionKind.TOOL, "judge", {"verdict": "no"}),
        Observation("judge", "Dropped.", verdict=Verdict.UNHELPFUL),
    )  # fmt: skip
    answer = Turn(
        (Span(0, 4), Span(6, 8)), Span(8, 10), Span(10, 10), "<answer>mendelevium [1]</answer>",
        Action(ActionKind.ANSWER, text="mendelevium", citations=(1,)),
    )  # fmt: skip
    return Trajectory(
        Task.ask("Which element?"), "tiny@abc", 7, Sampling(), Status.ANSWERED, StopReason.ANSWER,
        (search, judge, answer), np.arange(10, dtype=np.int32),
        np.full(10, -0.7, dtype=np.float32), answer="mendelevium", citations=(1,), sources=(source,),
    )  # fmt: skip


def test_the_data_of_a_page_are_json_that_a_browser_reads(trajectory):
    page = render_html([trajectory.with_rewards({"judge": float("nan")})])
    assert '"judge": null' in page


def in_a_browser(page, folder):
    """The page once its script has run, and what the script complained about."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    path = folder / "trace.html"
    path.write_text(page)
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-quic --enable-logging=stderr --dump-dom"
    ).split()
    done = subprocess.run(
        [chromium, *flags, f"--user-data-dir={folder / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert "<title>turnwise trace</title>" in done.stdout
    return done.stdout, complaints


def shown_in(dom):
    return dom[dom.index("<main") : dom.index("</main>")]


def test_the_text_view_tells_the_story(trajectory):
    text = render_text(trajectory)
    for part in (
        "Which element?",
        "search: x",
        "let me look",
        "judge: no",
        "mendelevium [1]",
        "p/1",
    ):
        assert part in text


def test_the_page_is_one_file_that_loads_nothing(trajectory):
    page = render_html([trajectory])
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert page.count("<script") == 2


def test_the_page_in_a_real_browser(trajectory, tmp_path):
    other = replace(trajectory, id="second", task=Task.ask("Another question?"))
    page = render_html([trajectory, other], decode=lambda ids: f"t{ids[0]}")
    dom, complaints = in_a_browser(page, tmp_path)
    assert complaints == []
    main = shown_in(dom)
    assert "mendelevium [1]" in main
    assert "left out of what the policy saw" in main
    assert "&lt;/script&gt;&lt;script&gt;" in main
    assert "<img" not in main
    assert main.count('class="turn"') == 3
    assert "p = 0.497" in main
    assert "Another question?" in dom[: dom.index("<main")]


EVIL_NAME = "<b>evil</b>"
RECEIPT = {
    "id": "first", "group": "g", "policy": "tiny@abc", "recipe": EVIL, "digest": "d", "options": {},
    "parts": [{"label": "gain", "reward": EVIL_NAME, "weight": 0.5}], "estimator": "igpo",
    "aggregation": "token-mean", "constant": 1.0, "loss": -0.25, "contribution": 0.25,
    "turns": [
        {
            "turn": turn, "action": EVIL, "parts": {"gain": 0.5} if turn < 2 else {},
            "normalised": {}, "reward": 0.5, "advantage": 1.5 - turn, "tokens": 2, "weight": 0.125,
            "contribution": 0.2, "gold": gold, "information_gain": gain,
            "terms": [{
                "name": "return", "unit": "turn", "returns": 1.0, "baseline": 0.5, "center": 0.0,
                "scale": 0.25, "weight": 1.0, "advantage": 2.0,
            }],
        }
        for turn, (gold, gain) in enumerate([(-3.0, 1.0), (-2.0, -0.5), (-2.5, None)])
    ],
    "rollouts": [{
        "id": "first", "status": "answered", "answer": EVIL, "reward": 0.5, "tokens": 6,
        "contribution": 0.25,
    }],
    "dropped": [["gone", EVIL]], "gold_answer": EVIL, "gold_form": "log_probability",
    "scored_by": "tiny@abc", "notes": [EVIL],
}  # fmt: skip


def test_a_receipt_stands_beside_the_turns_and_the_curve_is_drawn(trajectory, tmp_path):
    shown = replace(trajectory, id="first")
    page = render_html([shown], receipts={"first": RECEIPT})
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    dom, complaints = in_a_browser(page, tmp_path)
    main = shown_in(dom)
    assert complaints == []
    assert main.count('class="credit"') == 3
    assert "advantage <span" in main
    assert main.count("<circle") == 3
    points = re.search(r'<polyline points="([^"]*)"', main)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[1] < heights[2] < heights[0]  # the likeliest is the highest on the page
    for word in ("normalised", "baseline", "scale", "contribution", "0.2000", "+1", "-0.5000"):
        assert word in main
    assert ">center<" not in main  # it does nothing here
    assert "0.5 × &lt;b&gt;evil&lt;/b&gt;" in main
    assert "<b>" not in main
    assert "<img" not in main
    assert "Left out: gone" in main


def test_without_a_receipt_nothing_of_it_is_shown(trajectory, tmp_path):
    dom, complaints = in_a_browser(render_html([trajectory]), tmp_path)
    main = shown_in(dom)
    assert complaints == []
    assert main.count('class="turn"') == 3
    assert 'class="receipt"' not in main
    assert 'class="credit"' not in main
    assert ">null<" not in main
    assert "</div>null" not in main


def test_a_receipt_without_probes_has_no_curve(trajectory, tmp_path):
    turns = [{**turn, "gold": None, "information_gain": None} for turn in RECEIPT["turns"]]
    receipt = {**RECEIPT, "turns": turns, "gold_answer": "", "gold_form": ""}
    shown = replace(trajectory, id="first")
    dom, complaints = in_a_browser(render_html([shown], receipts={"first": receipt}), tmp_path)
    main = shown_in(dom)
    assert complaints == []
    assert "<svg" not in main
    assert 'class="numbers"' in main
