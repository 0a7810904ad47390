"""The OpenAI-compatible policy against a real HTTP server on loopback that misbehaves on purpose."""

import asyncio
import json
import time
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from agent.http import Retry
from agent.policies.base import FinishReason, Request, Sampling
from agent.policies.openai import OpenAIPolicy
from kg.errors import PolicyUnavailableError

MESSAGES = ({"role": "user", "content": "hi"},)


class Server:
    """Speaks HTTP; each request takes the next script: (status, headers, lines) or a coroutine."""

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
                script = self.scripts.pop(0)
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
        read=2,
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


async def test_token_ids_and_logprobs_are_kept_where_the_server_gives_them():
    logprobs = {"content": [{"token": "x", "logprob": -0.25}]}
    body = [event({"content": "x"}, token_ids=[5], logprobs=logprobs), event(finish="stop")]
    async with Server((200, {}, body)) as server:
        done = await ask(server)
    assert (done.meta["token_ids"], done.meta["logprobs"]) == ([5], [-0.25])


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


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (_reset, "broke off"),
        (_silent, "broke off"),
        ((200, {}, ["data: {oops\n\n"]), "broken event"),
        ((200, {}, [event({"content": "x"})]), "without a finish reason"),
        ((200, {}, ['data: {"error": {"message": "boom"}}\n\n']), "boom"),
    ],
)
async def test_a_reply_that_breaks_is_a_clear_error_never_an_answer(script, message):
    async with Server(script) as server:
        with pytest.raises(PolicyUnavailableError, match=message):
            await ask(server)


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
