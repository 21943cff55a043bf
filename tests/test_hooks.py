"""Event hooks: "retry" before each wait, "request" and "response" on each attempt.

Subject: `client.py`, `_call.py`.
"""

import functools
import re
from typing import Any
from unittest.mock import AsyncMock

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import ScriptedServer, answer, cut, fin, redirect

from httpx_production import FailedAttempt

pytestmark = pytest.mark.anyio
# trio's own warning about httpx's generators, when a body is not read to its end.
generators_left = pytest.mark.filterwarnings("ignore:Async generator 'http")


class Recorder:
    """A retry hook that keeps what it was called with."""

    def __init__(self) -> None:
        self.seen: list[FailedAttempt] = []

    def __call__(self, failed: FailedAttempt) -> None:
        self.seen.append(failed)


# --- when a retry hook runs -------------------------------------------------------------------


async def test_the_response_is_closed_then_the_hook_runs_then_the_wait_begins(
    flavour: Flavour, clock: FakeClock
) -> None:
    """In this order, so that nothing is held while a hook or the wait takes its time."""
    events = []

    def hook(failed: FailedAttempt) -> None:
        assert isinstance(failed.outcome, httpx.Response)
        events.append(f"hook {failed.attempt} closed={failed.outcome.is_closed}")

    client = flavour.client(event_hooks={"retry": [flavour.hook(hook)]})
    clock.during_wait.append(lambda: events.append("wait"))
    with ScriptedServer([answer(503), answer(503)]) as server:
        await flavour.run(client.get(server.url))
    assert events == ["hook 0 closed=True", "wait", "hook 1 closed=True", "wait"]


async def test_the_hook_gets_what_the_history_holds(flavour: Flavour, clock: FakeClock) -> None:
    """The same FailedAttempt, its delay known before it is waited for."""
    recorder = Recorder()
    client = flavour.client(event_hooks={"retry": [flavour.hook(recorder)]})
    with ScriptedServer([answer(503, b"", {"Retry-After": "7"}), fin()]) as server:
        response = await flavour.run(client.get(server.url))
    assert response.extensions["retries"] == tuple(recorder.seen)
    assert [one.reason for one in recorder.seen] == [
        "503 Service Unavailable",
        "RemoteProtocolError",
    ]
    assert [one.delay for one in recorder.seen] == clock.delays
    assert clock.delays[0] == 7.0


@pytest.mark.parametrize("step", [answer(503), fin()], ids=["503", "FIN"])
async def test_the_hook_is_not_called_when_nothing_is_retried(
    flavour: Flavour, clock: FakeClock, step: Any
) -> None:
    """Neither after the last attempt, nor for a success or a method that isn't covered."""
    recorder = Recorder()
    client = flavour.client(event_hooks={"retry": [flavour.hook(recorder)]}, max_attempts=2)
    with ScriptedServer([answer(), step, step, step]) as server:
        await flavour.run(client.get(server.url))
        assert recorder.seen == []
        await flavour.outcome(client.get, server.url)
        assert len(recorder.seen) == 1
        await flavour.outcome(client.post, server.url)
        assert len(recorder.seen) == 1
    assert len(server.requests) == 4


async def test_hooks_run_in_order(flavour: Flavour, clock: FakeClock) -> None:
    """As httpx's own hooks do."""
    order: list[int] = []
    hooks = [flavour.hook(lambda failed, n=n: order.append(n)) for n in range(3)]
    with ScriptedServer([answer(503), answer(503)]) as server:
        await flavour.run(flavour.client(event_hooks={"retry": hooks}).get(server.url))
    assert order == [0, 1, 2, 0, 1, 2]


async def test_a_stream_calls_them_too(flavour: Flavour, clock: FakeClock) -> None:
    """What failed before the hand-over was closed before the hook."""
    recorder = Recorder()
    client = flavour.client(event_hooks={"retry": [flavour.hook(recorder)]})
    with ScriptedServer([answer(503, b"busy")]) as server:
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == b"ok"
    (failed,) = recorder.seen
    assert isinstance(failed.outcome, httpx.Response)
    assert (failed.outcome.is_closed, failed.outcome.content) == (True, b"busy")


# --- what it may do ---------------------------------------------------------------------------


async def test_a_changed_header_reaches_the_next_attempt(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A fresh token, or a count of the retries for the server."""

    def hook(failed: FailedAttempt) -> None:
        failed.request.headers["X-Retry"] = str(failed.attempt + 1)
        failed.request.headers.pop("X-Once", None)

    client = flavour.client(event_hooks={"retry": [flavour.hook(hook)]})
    with ScriptedServer([answer(503), fin()]) as server:
        await flavour.run(client.get(server.url, headers={"X-Once": "a"}))
        assert [r.headers.get("X-Retry") for r in server.requests] == [None, "1", "2"]
        assert [r.headers.get("X-Once") for r in server.requests] == ["a", None, None]
        await flavour.run(client.get(server.url))
    assert "X-Retry" not in server.requests[3].headers


async def test_a_changed_header_survives_redirects(flavour: Flavour, clock: FakeClock) -> None:
    """The hook gets the caller's request, which each attempt starts from."""

    def hook(failed: FailedAttempt) -> None:
        failed.request.headers["X-Retry"] = "1"

    client = flavour.client(event_hooks={"retry": [flavour.hook(hook)]}, follow_redirects=True)
    with ScriptedServer([redirect("/b"), answer(503), redirect("/b")]) as server:
        await flavour.run(client.get(f"{server.url}/a"))
    assert [(r.path, r.headers.get("X-Retry")) for r in server.requests] == [
        ("/a", None),
        ("/b", None),
        ("/a", "1"),
        ("/b", "1"),
    ]


@generators_left
@pytest.mark.parametrize("step", [answer(503, bytes(70_000)), answer(503), fin()])
@pytest.mark.parametrize("error", [RuntimeError("mine"), httpx.ReadError("mine")], ids=repr)
async def test_what_a_hook_raises_reaches_the_caller(
    flavour: Flavour, clock: FakeClock, step: Any, error: Exception
) -> None:
    """At once and as it is, an httpx exception too; nothing is retried, nothing leaks."""

    def hook(failed: FailedAttempt) -> None:
        raise error

    client = flavour.client(event_hooks={"retry": [flavour.hook(hook)]}, max_connections=1)
    with ScriptedServer([step]) as server:
        assert await flavour.outcome(client.get, server.url) is error
        assert not hasattr(error, "__notes__")
        assert (len(server.requests), clock.delays) == (1, [])
        assert (await flavour.run(client.get(server.url))).content == b"ok"


# --- which functions --------------------------------------------------------------------------


@pytest.mark.flavours("asyncio", "trio")
async def test_the_async_client_awaits_what_can_be_awaited(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Async functions, partials and objects of them; plain functions are tolerated."""
    seen = []

    async def slow(name: str, failed: FailedAttempt) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(name)

    class Slow:
        async def __call__(self, failed: FailedAttempt) -> None:
            await slow("object", failed)

    hooks = [
        functools.partial(slow, "partial"),
        Slow(),
        lambda failed: slow("lambda", failed),
        lambda failed: seen.append("plain"),
    ]
    client = flavour.client(event_hooks={"retry": hooks})
    clock.during_wait.append(lambda: seen.append("wait"))
    with ScriptedServer([answer(503)]) as server:
        await flavour.run(client.get(server.url))
    assert seen == ["partial", "object", "lambda", "plain", "wait"]


async def slow(*args: Any) -> None:
    """Nothing, by an async function."""


class SlowHook:
    """An object that is called as an async function."""

    async def __call__(self, failed: FailedAttempt) -> None: ...


@pytest.mark.flavours("sync")
@pytest.mark.parametrize("hook", [slow, functools.partial(slow, 1), SlowHook(), AsyncMock()])
async def test_the_sync_client_refuses_async_hooks_where_they_are_set(
    flavour: Flavour, hook: Any
) -> None:
    """In the constructor, and later: not by the first retry, which may be weeks away."""
    said = (
        f"can't await the retry hook {hook!r}: use a plain function, or AsyncProductionHTTPClient"
    )
    with pytest.raises(TypeError, match=re.escape(said)):
        flavour.client(event_hooks={"retry": [print, hook]})
    client = flavour.client(event_hooks={"retry": [print]})
    with pytest.raises(TypeError, match=re.escape(said)):
        client.event_hooks = {"retry": [hook]}
    assert client.event_hooks["retry"] == [print]


class Awaitable:
    """Awaitable, and nothing to close."""

    def __await__(self) -> Any:
        yield


@pytest.mark.flavours("sync")
@pytest.mark.parametrize("hook", [lambda failed: slow(), lambda failed: Awaitable(), slow])
async def test_the_sync_client_refuses_an_awaitable_at_the_call(
    flavour: Flavour, clock: FakeClock, hook: Any
) -> None:
    """What can't be told beforehand; its coroutine is closed, so that Python warns of nothing."""
    client = flavour.client()
    client.event_hooks["retry"] = [hook]
    with ScriptedServer([answer(503)]) as server:
        with pytest.raises(TypeError, match="the sync client can't await the retry hook <function"):
            await flavour.run(client.get(server.url))
        assert (len(server.requests), clock.delays) == (1, [])
        assert client.pool_stats().in_use == 0


@pytest.mark.parametrize("hooks", [[5], ["print"], [None], "print", None, 5])
async def test_a_retry_hook_that_is_no_function_is_refused(flavour: Flavour, hooks: Any) -> None:
    """By name, where it is set."""
    for set_hooks in (
        lambda: flavour.client(event_hooks={"retry": hooks}),
        lambda: setattr(flavour.client(), "event_hooks", {"retry": hooks}),
    ):
        with pytest.raises(TypeError, match=r"a retry hook must be|event_hooks\['retry'\] must be"):
            set_hooks()


# --- where hooks are set ----------------------------------------------------------------------


async def calls(flavour: Flavour, client: Any, recorder: Recorder) -> int:
    """How often the recorder is called in one retried request."""
    recorder.seen.clear()
    with ScriptedServer([answer(503)]) as server:
        await flavour.run(client.get(server.url))
    return len(recorder.seen)


async def test_retry_hooks_can_be_set_at_any_time(flavour: Flavour, clock: FakeClock) -> None:
    """In the constructor, later as a whole, by item, by `append`; and taken away again."""
    recorder = Recorder()
    hook = flavour.hook(recorder)
    client = flavour.client(event_hooks={"retry": [hook]})
    assert await calls(flavour, client, recorder) == 1
    client.event_hooks["retry"].append(hook)
    assert await calls(flavour, client, recorder) == 2
    client.event_hooks["retry"] = []
    assert await calls(flavour, client, recorder) == 0
    client.event_hooks = {"retry": [hook]}
    assert await calls(flavour, client, recorder) == 1
    client.event_hooks = {}
    assert await calls(flavour, client, recorder) == 0
    client.event_hooks["retry"] = [hook]
    assert await calls(flavour, client, recorder) == 1
    del client.event_hooks["retry"]
    assert await calls(flavour, client, recorder) == 0


async def test_event_hooks_read_back_as_they_were_set(flavour: Flavour) -> None:
    """The key "retry" is there only when it was set: other libraries compare the dict."""
    client = flavour.client()
    assert client.event_hooks == {"request": [], "response": []}
    client.event_hooks = {"request": [print]}
    assert client.event_hooks == {"request": [print], "response": []}
    client.event_hooks = {"retry": [print]}
    assert client.event_hooks == {"request": [], "response": [], "retry": [print]}
    given = {"response": [print], "retry": [print]}
    assert flavour.client(event_hooks=given).event_hooks == {**given, "request": []}


async def test_the_callers_lists_stay_the_callers(flavour: Flavour) -> None:
    """Hooks given to two clients are not shared between them."""
    hooks = {"retry": [print]}
    one, two = flavour.client(event_hooks=hooks), flavour.client(event_hooks=hooks)
    one.event_hooks["retry"].append(repr)
    assert two.event_hooks["retry"] == hooks["retry"] == [print]


async def test_an_unknown_hook_name_is_refused(flavour: Flavour) -> None:
    """httpx drops it without a word."""
    unknown = "unknown event hook 'retries': use request, response or retry"
    with pytest.raises(ValueError, match=unknown):
        flavour.client(event_hooks={"retries": [print]})
    client = flavour.client(event_hooks={"retry": [print]})
    with pytest.raises(ValueError, match=unknown):
        client.event_hooks = {"retries": [print]}
    assert client.event_hooks["retry"] == [print]


# --- httpx's own hooks ------------------------------------------------------------------------


async def test_request_and_response_hooks_run_on_each_attempt(
    flavour: Flavour, clock: FakeClock
) -> None:
    """As if each attempt were a request of its own, which it is."""
    events = []
    client = flavour.client(
        event_hooks={
            "request": [flavour.hook(lambda request: events.append("request"))],
            "response": [flavour.hook(lambda response: events.append(response.status_code))],
            "retry": [flavour.hook(lambda failed: events.append(failed.reason))],
        }
    )
    with ScriptedServer([answer(503), fin()]) as server:
        await flavour.run(client.get(server.url))
    assert events == [
        *["request", 503, "503 Service Unavailable"],
        *["request", "RemoteProtocolError"],
        *["request", 200],
    ]


async def test_a_request_hook_may_change_each_attempt(flavour: Flavour, clock: FakeClock) -> None:
    """What it sets is sent: a time stamp, a trace id."""

    def stamp(request: httpx.Request) -> None:
        request.headers["X-Attempt"] = str(request.extensions["attempt"])

    client = flavour.client(event_hooks={"request": [flavour.hook(stamp)]})
    with ScriptedServer([answer(503), fin()]) as server:
        await flavour.run(client.get(server.url))
    assert [request.headers["X-Attempt"] for request in server.requests] == ["0", "1", "2"]


async def test_a_response_hook_may_read_the_body(flavour: Flavour, clock: FakeClock) -> None:
    """Of failed responses, and of streamed ones, as huggingface_hub's does."""
    texts = []

    def look(response: httpx.Response) -> None:
        response.read()
        texts.append(response.text)

    async def async_look(response: httpx.Response) -> None:
        await response.aread()
        texts.append(response.text)

    client = flavour.client(event_hooks={"response": [look if flavour.sync else async_look]})
    with ScriptedServer([answer(503, b"busy"), answer(200, b"ok"), answer(503, b"busy")]) as server:
        assert (await flavour.run(client.get(server.url))).text == "ok"
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == b"ok"
    assert texts == ["busy", "ok"] * 2
    assert server.connections == 1


async def test_a_failure_in_a_response_hooks_read_is_retried(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A body that breaks is an outcome wherever it is read."""

    async def look(response: httpx.Response) -> None:
        await response.aread()

    hook = httpx.Response.read if flavour.sync else look
    client = flavour.client(event_hooks={"response": [hook]})
    with ScriptedServer([cut(b"hello", 2)]) as server:
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert [f.reason for f in response.extensions["retries"]] == ["RemoteProtocolError"]
