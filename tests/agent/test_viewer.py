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
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    page = tmp_path / "trace.html"
    other = replace(trajectory, id="second", task=Task.ask("Another question?"))
    page.write_text(render_html([trajectory, other], decode=lambda ids: f"t{ids[0]}"))
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-quic --dump-dom"
    ).split()
    done = subprocess.run(
        [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    dom = done.stdout
    assert "<title>turnwise trace</title>" in dom
    main = dom[dom.index("<main") : dom.index("</main>")]
    assert "mendelevium [1]" in main
    assert "left out of what the policy saw" in main
    assert "&lt;/script&gt;&lt;script&gt;" in main
    assert "<img" not in main
    assert main.count('class="turn"') == 3
    assert "p = 0.497" in main
    assert "Another question?" in dom[: dom.index("<main")]
