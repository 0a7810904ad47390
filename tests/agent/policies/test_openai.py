"""The OpenAI-compatible policy against a real HTTP server on loopback that misbehaves on purpose."""

import asyncio
import json
import time
import traceback
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from agent.http import Retry
from agent.policies.base import FinishReason, Request, Sampling
from agent.policies.openai import OpenAIPolicy
from kg.errors import PolicyUnavailableError, UsageError

MESSAGES = ({"role": "user", "content": "hi"},)


class Server:
    """Speaks HTTP; each request takes the next script, the last one for ever: (status, headers,
    lines) or a coroutine."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.requests = []
        self.headers = []
        self.times = []
        self.closed = asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append(json.loads(body))
                self.headers.append(head)
                self.times.append(time.monotonic())
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                if callable(script):
                    await script(reader, writer)
                    return
                await reply(writer, *script)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


async def reply(writer, status, headers, chunks):
    payload = "".join(chunks).encode()
    extra = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(payload)}\r\n{extra}\r\n"
    writer.write(head.encode() + payload)
    await writer.drain()


def event(delta=None, finish=None, **more):
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish, **more}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def good(*pieces, finish="stop"):
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    body = [event({"content": piece}) for piece in pieces]
    return (
        200,
        {},
        [*body, event(finish=finish), f"data: {json.dumps(usage)}\n\n", "data: [DONE]\n\n"],
    )


async def ask(server, retry=None, **request):
    policy = OpenAIPolicy(
        server.url,
        "m",
        SecretStr("sk-secret"),
        read=0.7,
        retry=retry or Retry(attempts=3, base=0.01),
    )
    try:
        [done] = await policy.generate([Request(MESSAGES, **request)])
        return done
    finally:
        await policy.aclose()


async def test_a_reply_is_streamed_and_counted():
    pieces = []
    async with Server(good("Hello", " there")) as server:
        done = await ask(server, on_text=pieces.append, sampling=Sampling(temperature=0.5, seed=3))
    assert (done.text, done.prompt_tokens, pieces) == ("Hello there", 7, ["Hello", " there"])
    sent = server.requests[0]
    assert (sent["temperature"], sent["seed"], sent["stream"]) == (0.5, 3, True)
    assert "Bearer sk-secret" in server.headers[0]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_passing_failures_are_tried_again(status):
    async with Server((status, {}, ["busy"]), good("ok")) as server:
        assert (await ask(server)).text == "ok"


@pytest.mark.parametrize("kind", ["number", "date"])
async def test_retry_after_is_obeyed(kind):
    from datetime import UTC, datetime, timedelta

    when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    header = {"Retry-After": "1" if kind == "number" else when}
    async with Server((429, header, []), good("ok")) as server:
        await ask(server)
    assert server.times[1] - server.times[0] > 0.9


async def test_a_wait_beyond_the_deadline_is_not_begun():
    async with Server((429, {"Retry-After": "900"}, [])) as server:
        began = time.monotonic()
        with pytest.raises(PolicyUnavailableError, match="status 429"):
            await ask(server)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(("status", "hint"), [(401, "AGENT_API_KEY"), (404, "--model"), (400, "")])
async def test_refusals_are_not_tried_again_and_do_not_show_the_key(status, hint):
    error = json.dumps({"error": {"message": "no such thing"}})
    async with Server((status, {}, [error])) as server:
        with pytest.raises(PolicyUnavailableError, match="no such thing") as caught:
            await ask(server)
    assert hint in caught.value.hint
    assert len(server.requests) == 1
    assert "sk-secret" not in str(caught.value) + caught.value.hint


async def test_nobody_listening_is_a_clear_error():
    async with Server() as server:
        url = server.url
    policy = OpenAIPolicy(url, "m", retry=Retry(attempts=2, base=0.01))
    with pytest.raises(PolicyUnavailableError, match="did not answer after 2 attempts"):
        await policy.generate([Request(MESSAGES)])
    await policy.aclose()


async def test_a_field_the_server_does_not_know_is_left_out_from_then_on():
    refusal = (400, {}, [json.dumps({"error": {"message": "unknown field return_token_ids"}})])
    async with Server(refusal, good("ok"), good("again")) as server:
        policy = OpenAIPolicy(server.url, "m")
        await policy.generate([Request(MESSAGES)])
        await policy.generate([Request(MESSAGES)])
        await policy.aclose()
    has = ["return_token_ids" in request for request in server.requests]
    assert has == [True, False, False]


def refusal(status=400, **error):
    return (status, {}, [json.dumps({"error": error})])


async def test_a_field_is_forgotten_only_when_leaving_it_out_helped():
    scripts = (refusal(message="seed: bad"), refusal(message="no credit"), good("ok"))
    async with Server(*scripts) as server:
        policy = OpenAIPolicy(server.url, "m")
        with pytest.raises(PolicyUnavailableError, match="no credit"):
            await policy.generate([Request(MESSAGES)])
        await policy.generate([Request(MESSAGES)])
        await policy.aclose()
    assert ["seed" in request for request in server.requests] == [True, False, True]


async def test_the_named_parameter_counts_not_other_words_of_the_message():
    said = refusal(message="temperature: see seed and logprobs", param="temperature")
    async with Server(said, good("ok")) as server:
        await ask(server)
    assert set(server.requests[0]) - set(server.requests[1]) == {"temperature"}


async def test_the_limit_of_tokens_is_renamed_but_never_lifted():
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    async with Server(refusal(message=message, param="max_tokens"), good("ok")) as server:
        await ask(server, sampling=Sampling(max_tokens=9))
    assert "max_tokens" not in server.requests[1]
    assert server.requests[1]["max_completion_tokens"] == 9
    message = "'max_tokens' or 'max_completion_tokens' is too large: 9"
    async with Server(refusal(message=message, param="max_tokens"), good("no")) as server:
        with pytest.raises(PolicyUnavailableError, match="too large"):
            await ask(server, sampling=Sampling(max_tokens=9))
    assert len(server.requests) == 1


async def test_tools_are_never_left_out():
    async with Server(refusal(message="tools are not supported"), good("no")) as server:
        with pytest.raises(PolicyUnavailableError, match="tools are not supported"):
            await ask(server, tools=({"type": "function"},))


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
async def test_reasoning_is_read_under_both_names(key):
    body = [event({key: "hm "}), event({key: "so"}), event({"content": "x"}), event(finish="stop")]
    async with Server((200, {}, body)) as server:
        done = await ask(server)
    assert (done.reasoning, done.text) == ("hm so", "x")


async def test_tool_calls_are_put_together_from_their_pieces():
    def call(index, **function):
        return event({"tool_calls": [{"index": index, "id": f"c{index}", "function": function}]})

    body = [
        call(0, name="search", arguments='{"que'),
        call(1, name="judge", arguments="{}"),
        call(0, arguments='ry": "x"}'),
        event(finish="tool_calls"),
    ]
    async with Server((200, {}, body)) as server:
        done = await ask(server, tools=({"type": "function"},))
    assert done.finish is FinishReason.TOOL_CALLS
    assert done.tool_calls[0] == {"id": "c0", "name": "search", "arguments": '{"query": "x"}'}
    assert done.tool_calls[1]["name"] == "judge"
    assert server.requests[0]["tools"] == [{"type": "function"}]


async def test_the_stop_string_that_the_server_cut_off_is_put_back():
    async with Server(good("<search>x"), good("<search>x", finish="length")) as server:
        stops = ("</search>", "</answer>")
        assert (await ask(server, stop=stops)).text == "<search>x</search>"
        cut = await ask(server, stop=stops)
    assert (cut.text, cut.finish) == ("<search>x", FinishReason.LENGTH)


@pytest.mark.parametrize("key", ["stop_reason", "matched_stop"])
async def test_a_stop_string_that_the_server_names_is_believed(key):
    def script(named):
        return (200, {}, [event({"content": "<search>x"}), event(finish="stop", **{key: named})])

    stops = ("</answer>", "</search>")
    async with Server(script("</answer>"), script(None)) as server:
        assert (await ask(server, stop=stops)).text == "<search>x</answer>"
        assert (await ask(server, stop=stops)).text == "<search>x"  # the model ended it itself


async def test_the_tag_opened_last_is_the_one_that_is_closed():
    pieces, stops = [], ("</answer>", "</search>", "\n\n")
    async with Server(good("<answer>a</answer> <search>x")) as server:
        done = await ask(server, stop=stops[1:])
        assert done.text == "<answer>a</answer> <search>x</search>"
    async with Server(good("<answer> <search>x")) as server:
        done = await ask(server, stop=stops, on_text=pieces.append)
    assert done.text == "".join(pieces) == "<answer> <search>x</search>"


async def test_text_behind_a_stop_string_that_the_server_missed_is_dropped():
    gone = asyncio.Event()

    async def runs_on(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n")
        for piece in ("<e>x</", "e> and", " more"):
            writer.write(event({"content": piece}).encode())
        await writer.drain()
        await reader.read()
        gone.set()

    pieces, stops = [], tuple(f"</{name}>" for name in "abcde")
    async with Server(runs_on) as server:
        done = await ask(server, stop=stops, on_text=pieces.append)
        await asyncio.wait_for(gone.wait(), 5)
    assert done.text == "".join(pieces) == "<e>x</e>"
    assert done.finish is FinishReason.STOP
    assert server.requests[0]["stop"] == list(stops[:4])


async def test_tool_calls_without_an_index_or_all_with_the_same_are_told_apart():
    def call(**part):
        return event({"tool_calls": [part]})

    bare = [call(function={"name": "search", "arguments": "{"}), call(function={"arguments": "}"})]
    same = [
        call(index=0, id="a", function={"name": "search", "arguments": "{}"}),
        call(index=0, id="b", function={"name": "judge", "arguments": "{}"}),
    ]
    async with Server(
        (200, {}, [*bare, event(finish="tool_calls")]),
        (200, {}, [*same, event(finish="tool_calls")]),
    ) as server:
        one, two = await ask(server), await ask(server)
    assert one.tool_calls == ({"id": "call_0", "name": "search", "arguments": "{}"},)
    assert [(c["id"], c["name"], c["arguments"]) for c in two.tool_calls] == [
        ("a", "search", "{}"),
        ("b", "judge", "{}"),
    ]


async def test_tokens_are_not_asked_for_when_they_are_not_wanted():
    async with Server(good("ok")) as server:
        policy = OpenAIPolicy(server.url, "m", tokens="never")
        await policy.generate([Request(MESSAGES)])
        await policy.aclose()
    assert not {"logprobs", "return_token_ids"} & set(server.requests[0])


@pytest.mark.parametrize("key", ["sk-s\ncret", "sk-s cret", "sk-s\u00e9cret"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key):
    with pytest.raises(UsageError, match="API key") as caught:
        OpenAIPolicy("http://127.0.0.1/v1", "m", SecretStr(key))
    assert "cret" not in str(caught.value)


async def test_a_key_from_a_file_with_a_line_end_works():
    async with Server(good("ok")) as server:
        policy = OpenAIPolicy(server.url + "/", "m", SecretStr("sk-secret\n"))
        await policy.generate([Request(MESSAGES)])
        await policy.aclose()
    assert "authorization: Bearer sk-secret\r\n" in server.headers[0]
    assert "sk-secret" not in repr(vars(policy))


@pytest.mark.parametrize(
    "script",
    [
        (401, {}, ["bad key sk-secret"]),
        (500, {}, ["sk-secret"]),
        (200, {}, ["data: sk-secret\n\n"]),
        (401, {}, [196 * "x" + " sk-secret"]),  # cut in the middle of the key
        (503, {}, [196 * "x" + " sk-secret"]),
    ],
)
async def test_a_key_that_the_server_echoes_is_not_shown(script, caplog):
    async with Server(script) as server:
        with pytest.raises(PolicyUnavailableError) as caught:
            await ask(server)
    assert "***" in str(caught.value)
    trace = "".join(traceback.format_exception(caught.value))
    assert "sk-" not in trace + caplog.text


async def test_a_password_that_the_server_echoes_is_not_shown_either():
    async with Server((401, {}, ["no user me with pa55word (bWU6cGE1NXdvcmQ=)"])) as server:
        policy = OpenAIPolicy(server.url.replace("//", "//me:pa55word@"), "m")
        with pytest.raises(PolicyUnavailableError, match=r"with \*\*\* \(\*\*\*\)"):
            await policy.generate([Request(MESSAGES)])
        await policy.aclose()


async def test_password_and_query_of_the_url_are_sent_and_not_shown(caplog):
    caplog.set_level("INFO")
    async with Server((404, {}, ["gone"])) as server:
        url = server.url.replace("//", "//me:pa55@") + "?api-version=1"
        policy = OpenAIPolicy(url, "m", retry=Retry(attempts=1))
        with pytest.raises(PolicyUnavailableError) as caught:
            await policy.generate([Request(MESSAGES)])
        await policy.aclose()
    assert server.headers[0].startswith("POST /v1/chat/completions?api-version=1 ")
    assert "authorization: Basic bWU6cGE1NQ==" in server.headers[0]
    assert "pa55" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "http://", "http://host:port/v1", "file:///x"]
)
def test_a_url_that_cannot_be_asked_is_refused(url):
    with pytest.raises(UsageError, match="URL"):
        OpenAIPolicy(url, "m")


async def test_token_ids_and_logprobs_are_kept_where_the_server_gives_them():
    logprobs = {"content": [{"token": "x", "logprob": -0.25}]}
    first = f"data: {json.dumps({'choices': [], 'prompt_token_ids': [1, 2]})}\n\n"
    ours = event({"content": "x"}, token_ids=[5], logprobs=logprobs)
    bare = event({"content": "x"}, logprobs=logprobs)
    odd = event({"content": "x"}, token_ids=[5, 6], logprobs=logprobs)
    end = event(finish="stop")
    async with Server(*((200, {}, [first, body, end]) for body in (ours, bare, odd))) as server:
        found = [(await ask(server)).meta for _ in range(3)]
    names = ("prompt_token_ids", "token_ids", "logprobs")
    assert [[meta[name] for name in names] for meta in found] == [
        [[1, 2], [5], [-0.25]],
        [[], [], [-0.25]],
        [[], [], []],
    ]


async def _reset(reader, writer):
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n" + event({"content": "x"}).encode()
    )
    await writer.drain()
    writer.transport.abort()


async def _silent(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(30)


BREAKS = [
    (_reset, "RemoteProtocolError|ReadError"),
    (_silent, "ReadTimeout"),
    ((200, {}, [event({"content": "x"})]), "without a finish reason"),
    ((200, {}, ['data: {"error": {"message": "boom", "code": 503}}\n\n']), "boom"),
]
GARBAGE = [
    ((200, {}, ["data: {oops\n\n"]), "broken event"),
    ((200, {}, ['data: {"choices": [5]}\n\n']), "unknown shape"),
    ((200, {}, ['data: {"error": {"message": "boom"}}\n\n']), "boom"),
    ((307, {"Location": "/elsewhere"}, []), "redirects"),
]


@pytest.mark.parametrize(("script", "message"), BREAKS)
async def test_a_reply_that_breaks_before_its_text_is_handed_on_is_asked_for_again(script, message):
    async with Server(script, good("ok")) as server:
        assert (await ask(server)).text == "ok"
    async with Server(script) as server:
        with pytest.raises(PolicyUnavailableError, match=f"after 2 attempts: .*({message})"):
            await ask(server, retry=Retry(attempts=2, base=0.01))


async def test_a_reply_whose_text_was_handed_on_is_never_asked_for_twice():
    pieces = []
    async with Server(_reset, good("ok")) as server:
        with pytest.raises(PolicyUnavailableError, match="broke off"):
            await ask(server, on_text=pieces.append)
    assert (pieces, len(server.requests)) == (["x"], 1)


@pytest.mark.parametrize(("script", "message"), GARBAGE)
async def test_a_reply_that_makes_no_sense_is_a_clear_error_at_once(script, message):
    async with Server(script) as server:
        with pytest.raises(PolicyUnavailableError, match=message):
            await ask(server)
    assert len(server.requests) == 1


async def test_a_reply_that_never_ends_is_given_up_after_the_total_time():
    async def drip(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n")
        while True:  # no silence is long enough for the read time-out
            writer.write(event({"content": "x"}).encode())
            await writer.drain()
            await asyncio.sleep(0.05)

    async with Server(drip) as server:
        policy = OpenAIPolicy(server.url, "m", read=5, total=0.5)
        with pytest.raises(PolicyUnavailableError, match=r"within 0\.5 s"):
            await policy.generate([Request(MESSAGES)])
        await policy.aclose()


async def test_text_with_line_separators_of_unicode_arrives_whole():
    text = "a\u2028b\x85c\u00e9"
    choice = {"delta": {"content": text}, "finish_reason": "stop"}
    line = f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\r\n\r\n"
    async with Server((200, {}, [line])) as server:
        assert (await ask(server)).text == text


async def test_a_server_that_does_not_stream_is_understood():
    message = {"content": "hi", "reasoning": "hm", "tool_calls": None}
    body = {
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
    }
    script = (200, {"Content-Type": "application/json; charset=utf-8"}, [json.dumps(body)])
    pieces = []
    async with Server(script) as server:
        done = await ask(server, on_text=pieces.append)
    assert (done.text, done.reasoning, pieces) == ("hi", "hm", ["hi"])
    assert (done.prompt_tokens, done.cached_tokens) == (5, 4)


async def test_one_failure_closes_the_other_requests_of_the_call():
    gone = asyncio.Event()

    async def hang(reader, writer):
        await reader.read()
        gone.set()

    async with Server(hang, (400, {}, ["no"])) as server:
        policy = OpenAIPolicy(server.url, "m")
        with pytest.raises(PolicyUnavailableError, match="status 400"):
            await policy.generate([Request(MESSAGES), Request(MESSAGES)])
        await asyncio.wait_for(gone.wait(), 5)
        await policy.aclose()


async def test_no_more_requests_are_in_flight_than_allowed():
    now, most = 0, 0

    async def slow(reader, writer):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        await reply(writer, *good("ok"))
        now -= 1

    async with Server(slow) as server:
        policy = OpenAIPolicy(server.url, "m", concurrency=3)
        done = await policy.generate([Request(MESSAGES)] * 10)
        await policy.aclose()
    assert ([d.text for d in done], most) == (["ok"] * 10, 3)


async def test_cancelling_closes_the_connection():
    asked, gone = asyncio.Event(), asyncio.Event()

    async def watch(reader, writer):
        asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
        await writer.drain()
        await reader.read()
        gone.set()

    async with Server(watch) as server:
        task = asyncio.create_task(ask(server))
        await asyncio.wait_for(asked.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)


def test_the_engine_is_the_server_without_what_is_secret():
    policy = OpenAIPolicy("http://me:sk-secret@host:8000/v1/?key=sk-other", "m")
    assert policy.engine == "server http://host:8000/v1"
