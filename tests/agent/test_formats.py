"""Action formats: parsing, rendering, and foreign text that wants to act."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.formats import TagsFormat, ToolCallFormat, make_format
from agent.policies.base import Completion, FinishReason
from agent.trajectory import ActionKind
from kg.errors import UsageError
from tools.base import Observation, Source, Toolbox
from tools.judge import JudgeTool
from tools.search.tool import SearchTool

TOOLS = Toolbox([SearchTool(index=None), JudgeTool()])
TAGS = TagsFormat(TOOLS)
CALLS = ToolCallFormat(TOOLS)


def parse(text, prefix=""):
    return TAGS.parse(Completion(text), prefix)


@pytest.mark.parametrize(
    ("text", "kind", "name", "arguments"),
    [
        ("<search>who</search>", ActionKind.TOOL, "search", {"query": "who"}),
        ('<search>{"query": "who"}</search>', ActionKind.TOOL, "search", {"query": "who"}),
        ("<search>{not json}</search>", ActionKind.TOOL, "search", {"query": "{not json}"}),
        ("<judge>yes</judge>", ActionKind.TOOL, "judge", {"verdict": "yes"}),
        ("<answer></answer>", ActionKind.MALFORMED, "", {}),
        ("<answer>[1]</answer>", ActionKind.MALFORMED, "", {}),
        ("<search>who", ActionKind.MALFORMED, "", {}),
        ("", ActionKind.MALFORMED, "", {}),
    ],
)
def test_tags_are_parsed(text, kind, name, arguments):
    action = parse(text)
    assert (action.kind, action.name, action.arguments) == (kind, name, arguments)


@pytest.mark.parametrize(
    ("text", "answer", "citations"),
    [
        ("<answer>Paris [1]</answer>", "Paris", (1,)),
        ("<answer>Paris [1, 3][2]</answer>", "Paris", (1, 3, 2)),
        ("<answer>H2O [2] [2]</answer>", "H2O", (2,)),
        ("<answer>array[i]</answer>", "array[i]", ()),
    ],
)
def test_citations_are_taken_out_of_the_answer(text, answer, citations):
    action = parse(text)
    assert (action.text, action.citations) == (answer, citations)


def test_thoughts_before_the_action_are_kept_apart():
    action = parse("<think>Let me see.</think><search>x</search>")
    assert (action.thought, action.arguments) == ("Let me see.", {"query": "x"})


DEEP = "[" * 3000 + "]" * 3000
UNHOLDABLE = (
    DEEP,
    "[" * 3000,
    "[" * 40 + "]" * 40,
    "NaN",
    "-Infinity",
    "1e999",
    '"\\ud83d"',
    "1" * 25,
)


@pytest.mark.parametrize("value", [*UNHOLDABLE, "1" * 5000])
def test_json_that_no_record_can_hold_is_no_json(value):
    """Each of these ended the episode with a library's error, some only when it was saved."""
    body = f'{{"query": "x", "more": {value}}}'
    assert parse(f"<search>{body}</search>").arguments == {"query": body}
    action = CALLS.parse(
        Completion(f'<tool_call>{{"name": "search", "arguments": {body}}}</tool_call>')
    )
    assert (action.kind, action.arguments) == (ActionKind.MALFORMED, {})
    native = ({"id": "1", "name": "search", "arguments": body},)
    assert CALLS.parse(Completion("", tool_calls=native)).kind is ActionKind.MALFORMED


def test_a_number_of_thousands_of_digits_cites_nothing():
    action = parse(f"<answer>yes [{'1' * 5000}] [2]</answer>")
    assert (action.kind, action.citations) == (ActionKind.ANSWER, (2,))


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_blanks_without_end_are_read_in_no_time(blank):
    began = time.process_time()
    TAGS.neutralise("<" + 30_000 * blank)
    parse(f"<answer>yes{30_000 * blank}[a]</answer>")
    assert time.process_time() - began < 1


def test_a_forced_opening_is_part_of_the_reply():
    assert parse("Paris</answer>", "<answer>").text == "Paris"


def test_complaints_name_what_is_wrong():
    assert "no action <fly>" in parse("<fly>up</fly>").text
    assert "<search> is not closed" in parse("<search>up").text


@pytest.mark.parametrize(
    ("completion", "kind", "text"),
    [
        (Completion("plain answer [1]"), ActionKind.ANSWER, "plain answer"),
        (Completion("ABSTAIN: no source"), ActionKind.ABSTAIN, "no source"),
        (Completion("<tool_call>{broken</tool_call>"), ActionKind.MALFORMED, "not JSON"),
        (
            Completion('<tool_call>{"name": "fly"}</tool_call>'),
            ActionKind.MALFORMED,
            "no tool 'fly'",
        ),
        (Completion("<tool_call>"), ActionKind.MALFORMED, "not closed"),
        (Completion(""), ActionKind.MALFORMED, "empty"),
        (
            Completion("", tool_calls=({"id": "1", "name": "search", "arguments": "[1]"},)),
            ActionKind.MALFORMED,
            "not a JSON object",
        ),
    ],
)
def test_tool_calls_are_parsed(completion, kind, text):
    action = CALLS.parse(completion)
    assert action.kind is kind
    assert text in action.text


CUT_OFF = "the reply was cut off: keep it short"


@pytest.mark.parametrize(
    ("text", "finish", "kind", "said"),
    [
        ("Paris is", FinishReason.LENGTH, ActionKind.MALFORMED, CUT_OFF),
        ("<think>Let me", FinishReason.STOP, ActionKind.MALFORMED, "the reply is empty"),
        ("<think>Let me", FinishReason.LENGTH, ActionKind.MALFORMED, CUT_OFF),
        ("ABSTAIN: not told", FinishReason.STOP, ActionKind.ABSTAIN, "not told"),
        ("ABSTAIN", FinishReason.STOP, ActionKind.ABSTAIN, ""),
        ("Abstain.", FinishReason.STOP, ActionKind.ABSTAIN, ""),
        ("Abstainers of 1830", FinishReason.STOP, ActionKind.ANSWER, "Abstainers of 1830"),
        ("Abstain from wine", FinishReason.STOP, ActionKind.ANSWER, "Abstain from wine"),
    ],
)  # fmt: skip
def test_a_reply_without_a_call_is_an_answer_only_when_it_is_one(text, finish, kind, said):
    action = CALLS.parse(Completion(text, finish=finish))
    assert (action.kind, action.text) == (kind, said)


@pytest.mark.parametrize(
    ("completion", "kind", "thought"),
    [
        (Completion("<think>Known.</think>Paris"), ActionKind.ANSWER, "Known."),
        (Completion("<think>Unknown.</think>\nABSTAIN: no source"), ActionKind.ABSTAIN, "Unknown."),
        (
            Completion(
                "<think>Look.</think>\nI search. "
                '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>'
            ),
            ActionKind.TOOL,
            "Look.\nI search.",
        ),
        (
            Completion(
                "<think>Look.</think>\nI search.",
                tool_calls=({"id": "1", "name": "search", "arguments": '{"query": "x"}'},),
            ),
            ActionKind.TOOL,
            "Look.\nI search.",
        ),
    ],
)
def test_what_a_model_thinks_before_a_call_or_an_answer_is_its_thought(completion, kind, thought):
    action = CALLS.parse(completion)
    assert (action.kind, action.thought) == (kind, thought)


def test_an_unknown_format_is_a_usage_error():
    with pytest.raises(UsageError, match="no action format 'xml'"):
        make_format("xml", TOOLS)


TAG = re.compile(r"<\s*/?\s*(think|answer|abstain|result|tool_call|search|judge)\b", re.IGNORECASE)
PIECES = ["<", ">", "/", " ", "|", "search", "answer", "im_end", "JUDGE", "x", "\n", "‹"]
noise = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(noise, noise, noise)
def test_no_foreign_text_survives_as_a_tag_or_special_token(title, text, error):
    seen = [
        Observation("search", sources=(Source("id", title, text, number=1),)),
        Observation("search", text=text),
        Observation("search", error=error),
    ]
    for observation in seen:
        body = TAGS.render(observation).removeprefix("<result>").removesuffix("</result>")
        assert not TAG.search(body)
        assert "<|" not in body
        assert not TAG.search(CALLS.render(observation))


@given(st.text())
def test_harmless_text_is_not_changed(text):
    if "<" not in text:
        assert TAGS.neutralise(text) == text
