"""What is the caller's stays as it was: the Request, the exception being handled, the memory.

Subject: `_attempts.py`, `_call.py`.
"""

import asyncio
import gc
import gzip
import io
import logging
import ssl
import threading
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import ScriptedServer, Step, answer, drip, fin, hang, message, redirect

from httpx_production import FailedAttempt, RetryPolicy

pytestmark = pytest.mark.anyio

AT_ONCE = RetryPolicy(backoff=lambda attempt: 0.0)
TOTAL = 0.3


def mock(*statuses: int, seen: list[httpx.Request] | None = None) -> httpx.MockTransport:
    """Answers with these statuses, then with 200; `seen` gets the requests."""
    left = list(statuses)

    def respond(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return httpx.Response(left.pop(0) if left else 200, content=b"ok")

    return httpx.MockTransport(respond)


# --- the Request ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", [AT_ONCE, RetryPolicy(total_timeout=30), RetryPolicy(attempt_timeout=30)]
)
@pytest.mark.parametrize("statuses", [(), (503,)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_as_it_was(
    flavour: Flavour, clock: FakeClock, policy: RetryPolicy, statuses: tuple[int, ...], stream: bool
) -> None:
    """During the call, as far as others see it, and afterwards: its extensions above all."""
    inside: list[httpx.Request] = []
    client = flavour.client(transport=mock(*statuses, seen=inside), retry=policy)
    request = client.build_request("PUT", "http://x", content=b"x", timeout=7)
    extensions, before = request.extensions, dict(request.extensions)
    response = await flavour.run(client.send(request, stream=stream))
    assert request.extensions is extensions
    assert request.extensions == before
    assert type(request.extensions["timeout"]) is dict
    assert len(inside) == 1 + len(statuses)
    assert response.request.headers is request.headers
    assert stream or response.request is request
    await flavour.close(response)


class WatchedRequest(httpx.Request):
    """Remembers that its extensions were replaced; a copy has the same memory."""

    replaced: list[httpx.Request]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "extensions" and hasattr(self, "replaced"):
            self.replaced.append(self)


@pytest.mark.parametrize("limits", [{"total_timeout": 30}, {"attempt_timeout": 30}])
@pytest.mark.parametrize("statuses", [(), (503,)])
async def test_a_call_with_a_deadline_writes_nothing_to_the_request(
    flavour: Flavour, clock: FakeClock, limits: dict[str, Any], statuses: tuple[int, ...]
) -> None:
    """Another call that has it in hand at the same time would lose what it has put there."""
    client = flavour.client(transport=mock(*statuses), **limits)
    request = WatchedRequest("GET", "http://x", extensions={"timeout": {"read": 7.0}})
    request.replaced = []
    response = await flavour.run(client.send(request))
    assert response.status_code == 200
    assert not any(one is request for one in request.replaced)


async def test_a_request_without_timeouts_may_say_so(flavour: Flavour) -> None:
    """As in httpx: None in place of the four."""
    for limits in ({}, {"total_timeout": 30}):
        client = flavour.client(transport=mock(), **limits)
        request = httpx.Request("GET", "http://x", extensions={"timeout": None})
        assert (await flavour.run(client.send(request))).status_code == 200
        assert request.extensions == {"timeout": None}


async def test_a_failing_request_is_as_it_was(flavour: Flavour, clock: FakeClock) -> None:
    """The exception's own request has the history."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    client = flavour.client(transport=httpx.MockTransport(fail), total_timeout=30, max_attempts=2)
    for method, retries in (("GET", 1), ("POST", 0)):
        request = client.build_request(method, "http://x")
        before = dict(request.extensions)
        exc = await flavour.outcome(client.send, request)
        assert request.extensions == before
        assert len(exc.request.extensions["retries"]) == retries
        assert exc.request.headers is request.headers


async def test_one_request_sent_by_two_calls_at_once(flavour: Flavour) -> None:
    """Each has its own deadline and counts its own attempts."""
    attempts: list[int] = []

    def look(request: httpx.Request) -> None:
        attempts.append(request.extensions["attempt"])

    with ScriptedServer(lambda request: answer(delay=0.5)) as server:
        patient = flavour.client(event_hooks={"request": [flavour.hook(look)]})
        hurried = flavour.client(total_timeout=TOTAL)
        request = patient.build_request("GET", server.url)
        outcomes = await flavour.gather([
            lambda: hurried.send(request), lambda: patient.send(request),
            lambda: flavour.plain().send(request),
        ])  # fmt: skip
    assert isinstance(outcomes[0], httpx.TimeoutException)
    assert [outcome.text for outcome in outcomes[1:]] == ["ok", "ok"]
    assert attempts == [0]


async def test_a_request_sent_later_by_a_plain_client(flavour: Flavour) -> None:
    """Its deadline was the first call's; so was that of a redirect's Request."""
    with ScriptedServer([redirect("/b"), answer(), redirect("/b")] + [answer()] * 9) as server:
        client = flavour.client(total_timeout=1.0, follow_redirects=True)
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request))
        unfollowed = await flavour.run(client.send(request, follow_redirects=False))
        await anyio.sleep(1.0)
        for again in (request, response.request, unfollowed.next_request):
            assert (await flavour.run(flavour.plain().send(again))).status_code == 200


async def test_what_hooks_change_is_kept(flavour: Flavour, clock: FakeClock) -> None:
    """A retry hook's header reaches the next attempt; a request hook's changes are httpx's."""
    seen: list[tuple[str | None, int]] = []

    def mark(failed: FailedAttempt) -> None:
        assert failed.request.extensions["attempt"] == failed.attempt
        failed.request.headers["X-Attempt"] = str(failed.attempt + 1)

    def look(request: httpx.Request) -> None:
        seen.append((request.headers.get("X-Attempt"), request.extensions["attempt"]))
        request.headers["X-Hook"] = "1"

    hooks = {"retry": [flavour.hook(mark)], "request": [flavour.hook(look)]}
    client = flavour.client(transport=mock(503, 503), event_hooks=hooks)
    request = client.build_request("GET", "http://x")
    await flavour.run(client.send(request))
    assert seen == [(None, 0), ("1", 1), ("2", 2)]
    assert request.headers["X-Hook"] == "1"


async def test_an_auth_flow_s_requests_have_the_timeouts_of_today(flavour: Flavour) -> None:
    """After `client.timeout = …` too; the auth reads back as it was set."""
    seen: list[float] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"]["read"])
        return httpx.Response(200)

    class Token(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
            yield httpx.Request("POST", "http://x/token")
            yield request

    auth = Token()
    for options in ({"auth": auth}, {}):
        client = flavour.client(transport=httpx.MockTransport(respond), **options)
        client.auth = client.auth or auth
        assert client.auth is auth
        client.timeout = 3.0
        await flavour.run(client.get("http://x"))
        await flavour.run(client.get("http://x", auth=auth))
    assert seen == [3.0] * 8


# --- the exception that the caller is handling ----------------------------------------------------


async def test_the_exception_being_handled_is_not_touched(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A call that retries inside `except` leaves it its traceback, and is not decided by it."""
    left = [1, 1]

    def fail(request: httpx.Request) -> httpx.Response:
        if left.pop() if left else 0:
            raise httpx.ReadTimeout("slow", request=request)
        return httpx.Response(200)

    client = flavour.client(transport=httpx.MockTransport(fail))
    try:
        raise ssl.SSLCertVerificationError("the primary's")
    except ssl.SSLError as exc:
        handled = exc
        response = await flavour.run(client.get("http://fallback"))
    assert handled.__traceback__ is not None
    assert len(response.extensions["retries"]) == 2


async def test_a_certificate_of_this_call_is_still_permanent(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Wherever the call stands: the chain is what happened inside."""

    def fail(request: httpx.Request) -> httpx.Response:
        try:
            raise ssl.SSLCertVerificationError("this server's")
        except ssl.SSLError as exc:
            raise httpx.ConnectError("refused", request=request) from exc

    client = flavour.client(transport=httpx.MockTransport(fail))
    try:
        raise ValueError("the caller's")
    except ValueError:
        exc = await flavour.outcome(client.get, "http://x")
    assert exc.request.extensions["retries"] == ()


# --- memory ---------------------------------------------------------------------------------------


BOMB = gzip.compress(gzip.compress(bytes(50 << 20), 9), 9)


@pytest.mark.parametrize("ask", [None, lambda request, outcome: None], ids=["", "should_retry"])
async def test_nothing_is_unpacked_that_nobody_asked_for(flavour: Flavour, ask: Any) -> None:
    """An error body of a few hundred bytes may be gigabytes: discarded as it came."""
    step = answer(503, BOMB, {"Content-Encoding": "gzip, gzip"})
    with ScriptedServer([step, answer()]) as server:
        client = flavour.client(retry=RetryPolicy(backoff=lambda n: 0.0, should_retry=ask))
        tracemalloc.start()
        try:
            async with flavour.using(client.stream("GET", server.url)) as response:
                assert response.status_code == 200
            assert tracemalloc.get_traced_memory()[1] < 10 << 20
        finally:
            tracemalloc.stop()
    assert server.connections == 1  # small as it came: the connection lives on
    (failed,) = response.extensions["retries"]
    assert failed.outcome.content == b""  # a hook that looks at it must not raise


LARGE = bytes(range(256)) * 1000


@pytest.mark.parametrize("coding", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip"])
async def test_a_large_error_body_is_the_caller_s_in_a_stream(
    flavour: Flavour, coding: dict[str, str]
) -> None:
    """should_retry is asked without it, be it large only when unpacked; the caller gets it all."""
    asked: list[bool] = []

    def ask(request: httpx.Request, outcome: Any) -> bool:
        with pytest.raises(httpx.ResponseNotRead):
            _ = outcome.text
        asked.append(True)
        return False

    with ScriptedServer([answer(503, gzip.compress(LARGE) if coding else LARGE, coding)]) as server:
        client = flavour.client(retry=RetryPolicy(should_retry=ask))
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == LARGE
    assert asked == [True]


@pytest.mark.parametrize("coding", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip"])
async def test_a_small_error_body_can_be_looked_at_in_a_stream(
    flavour: Flavour, clock: FakeClock, coding: dict[str, str]
) -> None:
    """What should_retry read is there for the caller too, as a stream as well."""
    body = gzip.compress(b"busy") if coding else b"busy"
    asked: list[str] = []

    def ask(request: httpx.Request, outcome: Any) -> bool:
        asked.append(outcome.text)
        return len(asked) < 2

    with ScriptedServer([answer(400, body, coding)] * 2) as server:
        client = flavour.client(retry=RetryPolicy(should_retry=ask))
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert b"".join([chunk async for chunk in flavour.chunks(response)]) == b"busy"
    assert asked == ["busy", "busy"]


async def test_an_error_body_that_ends_early_is_asked_about_as_a_failure(
    flavour: Flavour, clock: FakeClock
) -> None:
    """should_retry never takes half of a body for the whole."""
    asked: list[Any] = []

    def ask(request: httpx.Request, outcome: Any) -> bool:
        asked.append(outcome)
        return len(asked) < 2

    half = answer(503, gzip.compress(b"busy")[:-8], {"Content-Encoding": "gzip"})
    with ScriptedServer([half, answer(503, b"busy")]) as server:
        client = flavour.client(retry=RetryPolicy(should_retry=ask))
        assert (await flavour.run(client.get(server.url))).text == "busy"
    assert isinstance(asked[0], httpx.TransportError)
    assert asked[1].text == "busy"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_history_holds_no_large_body(
    flavour: Flavour, clock: FakeClock, stream: bool
) -> None:
    """Though should_retry, or a response hook, has read it."""
    sizes: list[int] = []

    def ask(request: httpx.Request, outcome: Any) -> bool | None:
        sizes.append(len(outcome.content))
        return None

    policy = RetryPolicy(should_retry=None if stream else ask)
    hooks: dict[str, Any] = {"response": [_read_async if not flavour.sync else _read]}
    with ScriptedServer([answer(503, LARGE), answer(503, b"small"), answer()]) as server:
        client = flavour.client(retry=policy, event_hooks=hooks if stream else {})
        if stream:
            async with flavour.using(client.stream("GET", server.url)) as response:
                pass
        else:
            response = await flavour.run(client.get(server.url))
    large, small = (failed.outcome for failed in response.extensions["retries"])
    with pytest.raises(httpx.ResponseNotRead):
        _ = large.content
    assert (large.status_code, large.is_closed, small.content) == (503, True, b"small")
    assert large.elapsed is not None
    assert stream or len(LARGE) in sizes


async def test_a_large_body_is_gone_before_the_next_attempt(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The first one's, too: `send()` has nothing more to do with it."""
    seen: list[weakref.ref[httpx.Response]] = []

    def ask(request: httpx.Request, outcome: Any) -> bool | None:
        gc.collect()
        assert [one() for one in seen] == [None] * len(seen)
        seen.append(weakref.ref(outcome))
        return None

    client = flavour.client(retry=RetryPolicy(should_retry=ask))
    with ScriptedServer([answer(503, LARGE), answer(503, LARGE), answer()]) as server:
        assert (await flavour.run(client.get(server.url))).status_code == 200
    assert len(seen) == 3


def _read(response: httpx.Response) -> None:
    response.read()


async def _read_async(response: httpx.Response) -> None:
    await response.aread()


# --- deadlines ------------------------------------------------------------------------------------


def endless(pause: float) -> Iterator[bytes]:
    while True:
        time.sleep(pause)
        yield bytes(65536)


async def aendless(pause: float) -> AsyncIterator[bytes]:
    while True:
        await anyio.sleep(pause)
        yield bytes(65536)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize("own", [True, False], ids=["ours", "httpx's"])
async def test_an_upload_without_end_ends_at_the_deadline(
    flavour: Flavour, pause: float, own: bool
) -> None:
    """Whether or not its source pauses, over our transport and over httpx's own."""
    kind = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    options = {} if own else {"transport": kind()}
    with ScriptedServer([Step(read=1 << 40)]) as server:
        client = flavour.client(total_timeout=TOTAL, **options)
        body = endless(pause) if flavour.sync else aendless(pause)
        started = time.monotonic()
        exc = await flavour.outcome(client.put, server.url, content=body)
        assert time.monotonic() - started < TOTAL + 1.5
    assert isinstance(exc, httpx.TimeoutException)
    assert any("total_timeout of 0.3 s ran out" in note for note in exc.__notes__)


@pytest.mark.flavours("asyncio", "trio")
async def test_a_body_that_never_comes_is_cancelled(flavour: Flavour) -> None:
    """The caller's own generator waits; its WriteTimeout names the deadline."""
    with ScriptedServer([Step(read=1 << 40)]) as server:
        client = flavour.client(total_timeout=TOTAL)
        with anyio.fail_after(TOTAL + 1.5):
            exc = await flavour.outcome(client.put, server.url, content=aendless(60))
    assert isinstance(exc, httpx.WriteTimeout)


async def test_fast_redirects_with_slow_hooks_end_at_the_deadline(flavour: Flavour) -> None:
    """Nothing is sent after it."""

    async def slow(request: httpx.Request) -> None:
        await anyio.sleep(0.1)

    def sync_slow(request: httpx.Request) -> None:
        time.sleep(0.1)

    hooks = {"request": [sync_slow if flavour.sync else slow]}
    with ScriptedServer([redirect("/again")] * 19 + [answer()]) as server:
        client = flavour.client(total_timeout=TOTAL, event_hooks=hooks, follow_redirects=True)
        started = time.monotonic()
        exc = await flavour.outcome(client.get, server.url)
        assert time.monotonic() - started < TOTAL + 1.5
    assert isinstance(exc, httpx.TimeoutException)
    assert len(server.requests) <= 3


async def test_a_late_answer_of_a_mock_is_late(flavour: Flavour, clock: FakeClock) -> None:
    """A deadline that has passed raises, also over a transport that knows of none."""

    def slow(request: httpx.Request) -> httpx.Response:
        clock.advance(2.0)
        return httpx.Response(200)

    client = flavour.client(transport=httpx.MockTransport(slow), total_timeout=1.0)
    exc = await flavour.outcome(client.get, "http://x")
    assert isinstance(exc, httpx.ReadTimeout)
    assert exc.__notes__[0] == "total_timeout of 1 s ran out"


@pytest.mark.flavours("asyncio", "trio")
@pytest.mark.parametrize("kind", ["function", "object", "mounted"])
@pytest.mark.parametrize("where", ["head", "body"])
async def test_a_transport_that_knows_of_no_deadline_is_cancelled(
    flavour: Flavour, where: str, kind: str
) -> None:
    """An ASGI application, say, that waits for something: before its answer, or within it."""

    async def waits(request: httpx.Request) -> httpx.Response:
        if where == "head":
            await anyio.sleep(60)
        return httpx.Response(200, content=aendless(60))

    class Waits:
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            return await waits(request)

    transport = httpx.MockTransport(Waits() if kind == "object" else waits)
    place = {"mounts": {"http://x": transport}} if kind == "mounted" else {"transport": transport}
    client = flavour.client(total_timeout=TOTAL, **place)
    with anyio.fail_after(TOTAL + 1.5):
        exc = await flavour.outcome(client.get, "http://x")
    assert isinstance(exc, httpx.ReadTimeout)
    assert "total_timeout of 0.3 s ran out" in exc.__notes__[0]


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx2's
async def test_of_a_body_by_a_foreign_transport_no_chunk_is_taken_too_late(
    flavour: Flavour, clock: FakeClock
) -> None:
    """It takes no notice of the timeouts; each chunk takes 0.4 s."""
    taken: list[float] = []

    def chunk() -> bytes:
        taken.append(clock.now)
        clock.advance(0.4)
        return b"x"

    class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return iter(chunk, None)

        def __aiter__(self) -> Any:  # no generator: trio warns when one is left to the collector
            return self

        async def __anext__(self) -> bytes:
            return chunk()

    class Foreign(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=Endless())

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return self.handle_request(request)

    exc = await flavour.outcome(
        flavour.client(transport=Foreign(), total_timeout=1.0).get, "http://x"
    )
    assert isinstance(exc, httpx.ReadTimeout)
    assert len(taken) == 3
    assert exc.__notes__[0] == "total_timeout of 1 s ran out"


async def test_a_retry_hook_may_use_up_the_time(flavour: Flavour, clock: FakeClock) -> None:
    """Then nothing more is sent, or waited for."""
    seen: list[httpx.Request] = []
    hooks = {"retry": [flavour.hook(lambda failed: clock.advance(5.0))]}
    client = flavour.client(
        transport=mock(503, seen=seen), event_hooks=hooks, total_timeout=4.0, retry=AT_ONCE
    )
    exc = await flavour.outcome(client.get, "http://x")
    assert isinstance(exc, httpx.TimeoutException)
    assert len(seen) == 1
    assert clock.delays == []


# --- attempt_timeout ------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [None, 5.0])
async def test_an_attempt_that_drips_is_given_up_and_repeated(
    flavour: Flavour, total: float | None
) -> None:
    """With total_timeout alone the replica that drips would use up all the time."""
    step = drip(message(200, bytes(999)), 0.05)
    with ScriptedServer([step, hang(), answer()]) as server:
        client = flavour.client(retry=AT_ONCE, attempt_timeout=0.25, total_timeout=total)
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    failed = response.extensions["retries"]
    assert [one.reason for one in failed] == ["ReadTimeout"] * 2
    notes = [note for one in failed for note in one.outcome.__notes__]
    assert notes == ["attempt_timeout of 0.25 s ran out"] * 2


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpcore's, cut off
async def test_an_attempt_ends_with_the_hand_over(flavour: Flavour) -> None:
    """What the caller does with a stream is no part of it; total_timeout goes on."""
    whole = message(200, bytes(300))
    with ScriptedServer([drip(whole, 0.002, at_once=len(whole) - 250)] * 2) as server:
        client = flavour.client(max_attempts=1, attempt_timeout=0.25)
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == bytes(300)
        policy = RetryPolicy(attempt_timeout=0.25, total_timeout=0.4)
        streamed = client.stream("GET", server.url, extensions={"retry": policy})
        with pytest.raises(httpx.ReadTimeout) as caught:
            async with flavour.using(streamed) as response:
                await flavour.read(response)
    assert "total_timeout of 0.4 s ran out" in caught.value.__notes__


# --- responses ------------------------------------------------------------------------------------


async def test_a_part_of_a_compressed_representation_is_returned(
    flavour: Flavour, clock: FakeClock
) -> None:
    """206, or Content-Range: it need not have an end. A truncated whole is still an error."""
    part = gzip.compress(LARGE)[:300]
    ranged = {"Content-Encoding": "gzip", "Content-Range": "bytes 0-299/999"}
    for step in (answer(206, part, {"Content-Encoding": "gzip"}), answer(200, part, ranged)):
        with ScriptedServer([step]) as server:
            response = await flavour.run(flavour.client().get(server.url))
        assert LARGE.startswith(response.content)
        assert len(server.requests) == 1
    with ScriptedServer([answer(200, part, {"Content-Encoding": "gzip"})] * 9) as server:
        exc = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)


@pytest.mark.parametrize(("missing", "came"), [(40, "60 bytes"), (99, "1 byte")])
async def test_a_stream_that_breaks_says_how_much_came(
    flavour: Flavour, missing: int, came: str
) -> None:
    """And that nothing is retried from there; the history is the exception's request's."""
    step = Step(send=[message(200, bytes(100))[:-missing]], then="fin")
    with ScriptedServer([answer(503), step]) as server:
        client = flavour.client(retry=AT_ONCE)
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            async with flavour.using(client.stream("GET", server.url)) as response:
                await flavour.read(response)
    assert f"broke off after {came} of its body" in caught.value.__notes__[0]
    assert "nothing is retried" in caught.value.__notes__[0]
    assert len(caught.value.request.extensions["retries"]) == 1


# --- request bodies and headers -------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("kind", ["file", "BytesIO"])
async def test_plain_files_work_in_both_clients(
    flavour: Flavour, clock: FakeClock, tmp_path: Path, kind: str, offset: int
) -> None:
    """Read in a worker thread by the async one, announced by their length, and replayed."""
    path = tmp_path / "data"
    path.write_bytes(LARGE)
    with path.open("rb") if kind == "file" else io.BytesIO(LARGE) as file:
        file.seek(offset)
        with ScriptedServer([answer(503), fin(), answer()]) as server:
            response = await flavour.run(flavour.client().put(server.url, content=file))
    assert response.status_code == 200
    assert {request.body for request in server.requests} == {LARGE[offset:]}
    lengths = {request.headers["content-length"] for request in server.requests}
    assert lengths == {str(len(LARGE) - offset)}


@pytest.mark.flavours("asyncio", "trio")
async def test_a_file_is_sent_in_chunks_where_the_caller_says_so(flavour: Flavour) -> None:
    """An explicit Transfer-Encoding stays."""
    headers = {"Transfer-Encoding": "chunked"}
    with ScriptedServer() as server:
        await flavour.client().put(server.url, content=io.BytesIO(b"abc"), headers=headers)
    (request,) = server.requests
    assert (request.body, request.headers.get("content-length")) == (b"abc", None)


@pytest.mark.flavours("asyncio")
async def test_reading_a_file_does_not_block_the_loop(flavour: Flavour) -> None:
    """Nor does that of a multipart form."""

    turned = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            turned.clear()
            assert turned.wait(10), "the loop stood still"
            return super().read(size)

    async def turn() -> None:
        while True:
            turned.set()
            await asyncio.sleep(0.01)

    with ScriptedServer() as server:
        client = flavour.client()
        task = asyncio.create_task(turn())
        await client.put(server.url, content=Slow(b"abc"))
        await client.post(server.url, files={"f": Slow(b"abc")}, data={"a": "b"})
        task.cancel()
    assert server.bodies[0] == b"abc"
    assert server.bodies[1].count(b"\r\nabc\r\n") == 1  # a boundary is random


@pytest.mark.parametrize("name", ["headers", "default_headers"])
def test_one_idempotency_key_for_all_requests_is_refused(flavour_name: str, name: str) -> None:
    """Every POST would carry it, and the server take them all for one; a blank one is none."""
    flavour = Flavour(flavour_name)
    with pytest.raises(ValueError, match="give each request its own") as caught:
        flavour.client(**{name: {"idempotency-key": "secret"}})
    assert "secret" not in str(caught.value)
    flavour.client(**{name: {"Idempotency-Key": " "}})


async def test_no_method_and_no_path_forges_a_log_line(
    flavour: Flavour, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters are escaped, in the fields too; in a path httpx takes none."""
    caplog.set_level(logging.INFO, "httpx_production")
    client = flavour.client(
        transport=mock(503, 503), max_attempts=2, retry=RetryPolicy(methods=["G\nX"])
    )
    request = httpx.Request("G\nX", "http://x/path")
    await flavour.run(client.send(request))
    assert len(caplog.records) == 2
    for record in caplog.records:
        shown = f"{record.getMessage()} {vars(record)['http_url']} {vars(record)['http_method']}"
        assert shown.isprintable()
    assert [vars(record)["attempt"] for record in caplog.records] == [0, 1]


# --- a policy for one call, in few words ----------------------------------------------------------


async def test_fields_of_the_policy_can_be_changed_for_one_request(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The others stay the client's; the next request has the client's again."""
    client = flavour.client(transport=mock(*[503] * 99), max_attempts=3)
    for own, attempts in (({"max_attempts": 2}, 2), (None, 3), ({"backoff": lambda n: 0.0}, 3)):
        extensions = None if own is None else {"retry": own}
        response = await flavour.run(client.get("http://x", extensions=extensions))
        assert len(response.extensions["retries"]) + 1 == attempts
    assert client.retry == RetryPolicy(max_attempts=3)


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        (
            {"retries": RetryPolicy()},
            r"extensions\['retries'\] does nothing: use {'retry': policy}",
        ),
        (
            {"retry_policy": RetryPolicy()},
            r"extensions\['retry_policy'\] does nothing: use {'retry': policy}",
        ),
        ({"retries": 3}, r"extensions\['retries'\] does nothing: use {'retry': policy}"),
        ({"total_timeout": 1}, r"use {'retry': {'total_timeout': ...}}"),
        ({"retry": {"max_attemps": 1}}, "unknown field 'max_attemps': did you mean 'max_attempts'"),
        ({"retry": {"x": 1}}, "unknown field 'x'$"),
        ({"retry": {"max_attempts": "1"}}, "max_attempts must be a whole number"),
        ({"retry": 3}, r"extensions\['retry'\] must be a RetryPolicy, not 3"),
    ],
)
async def test_what_would_be_ignored_is_refused(
    flavour: Flavour, extensions: dict[str, Any], message: str
) -> None:
    """With the right words, whether the client or the caller builds the Request."""
    client = flavour.client(transport=mock())
    by_hand = httpx.Request("GET", "http://x", extensions=extensions)
    with pytest.raises(TypeError, match=message):
        await flavour.run(client.get("http://x", extensions=extensions))
    with pytest.raises(TypeError, match=message):
        await flavour.run(client.send(by_hand))


async def test_the_first_of_a_chain_is_the_caller_s_request(
    flavour: Flavour, clock: FakeClock
) -> None:
    """In the history, as in httpx; a Request that is left to the caller has plain timeouts."""
    for options in ({}, {"total_timeout": 30}):
        with ScriptedServer([redirect("/b"), redirect("/c"), answer(), redirect("/b")]) as server:
            client = flavour.client(follow_redirects=True, **options)
            request = client.build_request("GET", server.url)
            response = await flavour.run(client.send(request))
            assert response.history[0].request is request
            assert response.request.extensions["timeout"].get("read") == 10.0
            streamed = client.stream("GET", server.url, follow_redirects=False)
            async with flavour.using(streamed) as response:
                assert type(response.next_request.extensions["timeout"]) is dict


# --- Requests that the caller has made by hand ---------------------------------------------------


def by_hand(flavour: Flavour, url: str, body: str) -> httpx.Request:
    """A Request of httpx's own, whose body begins anew each time it is sent."""
    if body == "multipart":
        return httpx.Request("POST", url, files={"f": io.BytesIO(b"file")})
    if flavour.sync:
        return httpx.Request("POST", url, content=[b"a", b"b"])

    class Anew:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

    return httpx.Request("POST", url, content=Anew())


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("body", ["iterable", "multipart"])
@pytest.mark.parametrize("again", ["ours", "httpx", "redirect"])
async def test_a_body_that_begins_anew_may_be_sent_anew(
    flavour: Flavour, body: str, again: str
) -> None:
    """By whoever sends it: what plain httpx sends twice in full, ours does too."""
    first = redirect("/new", 307) if again == "redirect" else answer()
    with ScriptedServer([first, answer()]) as server:
        client = flavour.client(follow_redirects=True)
        request = by_hand(flavour, server.url, body)
        assert (await flavour.run(client.send(request))).status_code == 200
        if again != "redirect":
            other = client if again == "ours" else flavour.plain()
            assert (await flavour.run(other.send(request))).status_code == 200
        one, two = server.bodies
        assert one == two
        assert one


async def test_a_body_that_exists_once_is_not_sent_empty(flavour: Flavour) -> None:
    """httpx sends a consumed iterator again as if there were nothing to send."""
    if flavour.sync:
        content: Any = map(bytes, [b"a", b"b"])
    else:

        class Once:
            left = [b"a", b"b"]  # noqa: RUF012

            def __aiter__(self) -> "Once":
                return self

            async def __anext__(self) -> bytes:
                if not self.left:
                    raise StopAsyncIteration
                return self.left.pop(0)

        content = Once()
    with ScriptedServer([answer(), answer()]) as server:
        client = flavour.client(max_attempts=1)
        request = httpx.Request("POST", server.url, content=content)
        assert (await flavour.run(client.send(request))).status_code == 200
        with pytest.raises(httpx.StreamConsumed):
            await flavour.run(client.send(request))
        assert [received for received in server.bodies if received] == [server.bodies[0]]


@pytest.mark.parametrize("hook", [False, True])
async def test_what_was_sent_can_be_looked_at_afterwards(flavour: Flavour, hook: bool) -> None:
    """By tests that use MockTransport, and when a hook has read it: as in httpx."""

    def read(request: httpx.Request) -> Any:
        return request.read() and None

    async def aread(request: httpx.Request) -> None:
        await request.aread()

    hooks = {"request": [read if flavour.sync else aread]} if hook else {}
    client = flavour.client(transport=mock(), event_hooks=hooks)
    response = await flavour.run(client.post("http://x", files={"f": b"file"}))
    assert b"file" in response.request.content


# --- auth flows, predicates and hooks that take their time ---------------------------------------


class KeyInQuery(httpx.Auth):
    """Replaces the request's URL, and marks it, as an API's own flow may."""

    def auth_flow(self, request: httpx.Request) -> Any:
        request.url = request.url.copy_merge_params({"key": "1"})
        yield request


@pytest.mark.parametrize("limits", [{}, {"total_timeout": 30}])
@pytest.mark.parametrize("statuses", [(), (503,)])
@pytest.mark.parametrize("with_auth", [False, True])
async def test_the_response_names_what_hooks_and_flows_have_sent(
    flavour: Flavour,
    clock: FakeClock,
    limits: dict[str, Any],
    statuses: tuple[int, ...],
    with_auth: bool,
) -> None:
    """A URL, an attribute, an extension: on the response's Request, which says what was sent."""

    def change(request: httpx.Request) -> None:
        request.started = 1.5  # type: ignore[attr-defined]
        request.extensions["trace_id"] = "7"
        request.url = request.url.copy_merge_params({"hook": "1"})

    hooks = {"request": [flavour.hook(change)]}
    options: dict[str, Any] = {"event_hooks": hooks, "auth": KeyInQuery() if with_auth else None}
    plain = flavour.plain(transport=mock(), **options)
    ours = flavour.client(transport=mock(*statuses), **options, **limits)
    for client in (plain, ours):
        request = client.build_request("GET", "http://x")
        response = await flavour.run(client.send(request))
        sent: Any = response.request
        assert response.url == ("http://x?key=1&hook=1" if with_auth else "http://x?hook=1")
        assert sent.started == 1.5
        assert sent.extensions["trace_id"] == "7"


@pytest.mark.parametrize("limits", [{}, {"total_timeout": 30}])
@pytest.mark.parametrize("statuses", [(), (503,), (503, 503)])
@pytest.mark.parametrize("replaces", [False, True])
async def test_an_extension_of_a_hook_s_own_is_kept(
    flavour: Flavour,
    clock: FakeClock,
    limits: dict[str, Any],
    statuses: tuple[int, ...],
    replaces: bool,
) -> None:
    """Wherever the call ends, and each time the Request is sent, as in httpx."""
    number = 0

    def count(request: httpx.Request) -> None:
        nonlocal number
        number += 1
        if replaces:
            request.extensions = {**request.extensions, "number": number}
        request.extensions["number"] = number

    hooks = {"request": [flavour.hook(count)]}
    client = flavour.client(transport=mock(*statuses), event_hooks=hooks, max_attempts=2, **limits)
    request = client.build_request("GET", "http://x")
    for _ in range(3):
        response = await flavour.run(client.send(request))
        assert response.request is request
        assert request.extensions["number"] == number
    assert request.extensions.keys() == {"timeout", "number"}


async def test_what_was_sent_in_time_can_be_sent_again_later(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The deadline of the call, which the body keeps too, is lifted when that is over."""

    def change(request: httpx.Request) -> None:
        request.url = request.url.copy_merge_params({"hook": "1"})

    hooks = {"request": [flavour.hook(change)]}
    client = flavour.client(event_hooks=hooks, total_timeout=30)
    with ScriptedServer(lambda request: answer()) as server:
        response = await flavour.run(client.put(server.url, files={"f": b"file"}))
        clock.advance(60)
        again = await flavour.run(flavour.plain().send(response.request))
        assert again.status_code == 200
        assert server.bodies[0] == server.bodies[1] != b""


@pytest.mark.parametrize("limits", [{}, {"total_timeout": 30}])
async def test_what_the_caller_changes_meanwhile_stays(
    flavour: Flavour, limits: dict[str, Any]
) -> None:
    """A Request that two calls share gets a new token: the next call sends it."""
    shared: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if shared:
            shared.pop().headers = httpx.Headers({"Authorization": "new"})
        return httpx.Response(200)

    client = flavour.client(transport=httpx.MockTransport(respond), **limits)
    request = client.build_request("GET", "http://x", headers={"Authorization": "old"})
    shared.append(request)
    first = await flavour.run(client.send(request, auth=None))
    second = await flavour.run(client.send(request, auth=None))
    assert first.request.headers["Authorization"] == "old"
    assert second.request is request
    assert request.headers["Authorization"] == "new"


class KeepsItsRequest(httpx.Auth):
    """A flow that sends the same token request in each call."""

    def __init__(self, url: str) -> None:
        self.token = httpx.Request("GET", f"{url}/token")

    def auth_flow(self, request: httpx.Request) -> Any:
        yield self.token
        yield request


async def test_a_flow_s_request_has_each_call_s_deadline(flavour: Flavour) -> None:
    """And not that of an earlier one: neither one that has passed nor none at all."""
    slow = answer(delay=5.0)
    with ScriptedServer([answer(), answer(), slow, answer()]) as server:
        auth = KeepsItsRequest(server.url)
        client = flavour.client(auth=auth, total_timeout=0.6, max_attempts=1)
        assert (await flavour.run(client.get(server.url))).status_code == 200
        started = time.monotonic()
        assert isinstance(await flavour.outcome(client.get, server.url), httpx.TimeoutException)
        assert time.monotonic() - started < 4.5
        assert (await flavour.run(client.get(server.url))).status_code == 200


async def test_an_error_body_that_drips_is_the_caller_s(flavour: Flavour) -> None:
    """should_retry is asked without it, and what goes wrong with it is the reader's."""
    step = Step(
        send=(message(404, b"x" * 5, [("Content-Length", "100")], length=False),), then="hang"
    )
    with ScriptedServer([step]) as server:
        policy = RetryPolicy(should_retry=lambda request, outcome: None)
        client = flavour.client(retry=policy, read_timeout=0.2)
        response = await flavour.run(
            client.send(client.build_request("GET", server.url), stream=True)
        )
        assert response.status_code == 404
        with pytest.raises(httpx.ReadTimeout):
            await flavour.read(response)
        await flavour.close(response)


async def test_no_wait_is_begun_that_hooks_have_left_no_time_for(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait was to end in time; a hook took longer: the call ends, it does not sleep."""

    def plain(failed: FailedAttempt) -> None:
        time.sleep(0.4)

    async def asynchronous(failed: FailedAttempt) -> None:
        await anyio.sleep(5)

    with ScriptedServer([answer(503), answer()]) as server:
        client = flavour.client(
            retry=RetryPolicy(backoff=lambda attempt: 0.5, total_timeout=0.7),
            event_hooks={"retry": [plain if flavour.sync else asynchronous]},
        )
        started = time.monotonic()
        outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.ReadTimeout)
        assert "total_timeout" in "".join(outcome.__notes__)
        assert time.monotonic() - started < 4.5
        assert len(server.requests) == 1


async def test_a_compressed_stream_that_ends_early_says_so(flavour: Flavour) -> None:
    """With the note that nothing is retried from there."""
    whole = gzip.compress(b"x" * 10_000)
    step = answer(200, whole[: len(whole) // 2], {"Content-Encoding": "gzip"})
    with ScriptedServer([step]) as server:
        client = flavour.client()
        response = await flavour.run(
            client.send(client.build_request("GET", server.url), stream=True)
        )
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await flavour.read(response)
        assert "handed over" in "".join(caught.value.__notes__)
