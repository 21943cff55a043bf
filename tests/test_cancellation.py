"""Cancellation and KeyboardInterrupt end a call at once, wherever it stands, and leave nothing.

Subject: `client.py`.
"""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpx
import pytest
from conftest import Flavour
from servers import Received, ScriptedServer, Step, answer, cut, fin, hang, message

from httpx_production import FailedAttempt, ProductionHTTPClient, RetryPolicy, _response_body
from httpx_production import client as client_module

asynchronous = pytest.mark.flavours("asyncio", "trio")
pytestmark = [
    pytest.mark.anyio,
    # trio's own warning about httpx's generators, when a body is not read to its end.
    pytest.mark.filterwarnings("ignore:Async generator 'http"),
]

LONG = 30.0  # seconds: longer than any test may take
ONE: dict[str, Any] = {"max_connections": 1, "pool_timeout": 0.5}
PATIENT = RetryPolicy(backoff=lambda attempt: LONG)
AT_ONCE = RetryPolicy(backoff=lambda attempt: 0)
# It would have everything retried that it is asked about.
RESTLESS = RetryPolicy(
    backoff=lambda attempt: 0,
    should_retry=lambda request, outcome: isinstance(outcome, BaseException) or None,
)


@pytest.fixture
def long_discard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed responses are read for as long as it takes to interrupt that."""
    monkeypatch.setattr(_response_body, "DRAIN_TIME", LONG)


@contextmanager
def at_once() -> Iterator[None]:
    """The block takes next to no time."""
    begin = time.monotonic()
    try:
        yield
    finally:
        assert time.monotonic() - begin < 5


# --- asyncio and trio -------------------------------------------------------------------------


@asynccontextmanager
async def cancelled(
    call: Callable[[], Any], *, when: Callable[[], Any] = lambda: True
) -> AsyncIterator[None]:
    """Run the call beside the block, and cancel it after the block, as soon as `when()` holds.

    What passes through the call is the bare cancellation, without a note, or nothing at all.
    """
    passed: list[BaseException] = []

    async def run(scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await call()
            except BaseException as exc:
                passed.append(exc)
                raise

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(run, scope)
        with anyio.fail_after(5):
            while not when():
                await anyio.sleep(0.005)
        yield
        begin = time.monotonic()
        scope.cancel()
    assert time.monotonic() - begin < 5
    (exc,) = passed
    assert isinstance(exc, anyio.get_cancelled_exc_class())
    assert not hasattr(exc, "__notes__")


async def usable(client: Any, server: ScriptedServer) -> bool:
    """The client's one connection is free, and the cancelled call sends nothing any more."""
    before = len(server.requests)
    response = await client.get(server.url)
    await anyio.sleep(0.02)
    return response.text == "ok" and len(server.requests) == before + 1


HANGS = {
    "before the head": hang(),
    "in the head": Step(send=(b"HTTP/1.1 200 OK\r\nContent-",), then="hang"),
    "in the body": cut(b"x" * 99, 50, then="hang"),
}


@asynchronous
@pytest.mark.parametrize("step", HANGS.values(), ids=HANGS)
async def test_cancelled_during_an_attempt(flavour: Flavour, step: Step) -> None:
    """The connection is given back, and there is no further attempt."""
    client = flavour.client(retry=RESTLESS, **ONE)
    with ScriptedServer([answer(503), step]) as server:
        async with cancelled(lambda: client.get(server.url), when=lambda: len(server.requests) > 1):
            await anyio.sleep(0.02)
        assert await usable(client, server)
        assert len(server.requests) == 3


@asynchronous
@pytest.mark.parametrize("sent", [0, 50], ids=["no body", "half a body"])
async def test_cancelled_during_the_discard(
    flavour: Flavour, long_discard: None, sent: int
) -> None:
    """While the failed response is read for its connection's sake."""
    called = []
    busy = message(503, b"x" * 100)
    stalled = Step(send=(busy[: len(busy) - 100 + sent],), then="hang")
    client = flavour.client(retry=AT_ONCE, event_hooks={"retry": [called.append]}, **ONE)
    with ScriptedServer([stalled]) as server:
        async with cancelled(lambda: client.get(server.url), when=lambda: server.requests):
            await anyio.sleep(0.1)  # the head arrives
        assert called == []
        assert await usable(client, server)


@asynchronous
@pytest.mark.parametrize("step", [answer(503), answer(503, bytes(100_000)), fin()])
async def test_cancelled_during_a_hook(flavour: Flavour, step: Step) -> None:
    """A hook that waits, for a token perhaps, can be cancelled like anything else."""
    called = []

    async def hook(failed: FailedAttempt) -> None:
        called.append(failed)
        await anyio.sleep(LONG)

    client = flavour.client(retry=AT_ONCE, event_hooks={"retry": [hook]}, **ONE)
    with ScriptedServer([step]) as server:
        async with cancelled(lambda: client.get(server.url), when=lambda: called):
            pass
        assert len(called) == 1
        assert await usable(client, server)


@asynchronous
@pytest.mark.parametrize("step", [answer(503), answer(503, bytes(100_000)), fin()])
async def test_cancelled_during_the_wait(flavour: Flavour, step: Step) -> None:
    """The commonest place: nothing was held there."""
    called = []
    client = flavour.client(retry=PATIENT, event_hooks={"retry": [called.append]}, **ONE)
    with ScriptedServer([step]) as server:
        async with cancelled(lambda: client.get(server.url), when=lambda: called):
            assert await usable(client, server)
        assert await usable(client, server)


@asynchronous
async def test_a_stream_cancelled_during_the_wait(flavour: Flavour) -> None:
    """The same before the hand-over of a stream."""
    called = []
    client = flavour.client(retry=PATIENT, event_hooks={"retry": [called.append]}, **ONE)

    async def call() -> None:
        async with client.stream("GET", server.url):
            pytest.fail("handed over")

    with ScriptedServer([answer(503)]) as server:
        async with cancelled(call, when=lambda: called):
            pass
        assert await usable(client, server)


@asynchronous
async def test_a_timeout_around_the_call(flavour: Flavour) -> None:
    """anyio's and trio's timeouts, and those of asyncio, are cancellation."""
    client = flavour.client(retry=PATIENT, **ONE)
    with ScriptedServer([answer(503), answer(503)]) as server, at_once():
        with pytest.raises(TimeoutError), anyio.fail_after(0.1):
            await client.get(server.url)
        if flavour.name == "asyncio":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get(server.url), 0.1)
        else:
            await anyio.sleep(0)
        server._script.clear()
        assert await usable(client, server)


@asynchronous
async def test_other_tasks_run_during_a_wait(flavour: Flavour) -> None:
    """A backoff of one call is nobody else's."""
    ticks = 0
    client = flavour.client(retry=RetryPolicy(backoff=lambda attempt: 0.3))

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.01)
            ticks += 1

    with ScriptedServer([answer(503)]) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            response = await client.get(server.url)
            tasks.cancel_scope.cancel()
    assert len(response.extensions["retries"]) == 1
    assert ticks > 5


@asynchronous
async def test_one_of_two_calls_is_cancelled(flavour: Flavour) -> None:
    """The other one, in the same kind of wait, goes on and succeeds."""
    called: list[FailedAttempt] = []
    results = []
    policy = RetryPolicy(backoff=lambda attempt: 0.2)
    client = flavour.client(event_hooks={"retry": [called.append]})

    def script(request: Received) -> Step:
        paths = [one.path for one in server.requests]
        return answer(503) if paths.count(request.path) == 1 else answer(200)

    async def other() -> None:
        results.append(await client.get(f"{server.url}/b", extensions={"retry": policy}))

    with ScriptedServer(script) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            long = {"retry": PATIENT}
            async with cancelled(
                lambda: client.get(f"{server.url}/a", extensions=long), when=lambda: len(called) > 1
            ):
                pass
    assert [response.status_code for response in results] == [200]
    assert sorted(one.path for one in server.requests) == ["/a", "/b", "/b"]


# --- the sync client and KeyboardInterrupt ----------------------------------------------------
# Plain functions: under anyio's plugin SIGINT would belong to the event loop.


@pytest.fixture
def client() -> Iterator[ProductionHTTPClient]:
    """A sync client with a single connection."""
    with ProductionHTTPClient(trust_env=False, retry=PATIENT, **ONE) as client:
        yield client


@contextmanager
def interrupted() -> Iterator[Callable[[float], None]]:
    """The block ends by KeyboardInterrupt, at once and without a note.

    It gets a function that interrupts it later, as Ctrl-C does: by a signal to the main thread,
    which reaches it in a system call, too.
    """
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored without a terminal
    timers: list[threading.Timer] = []

    def interrupt(seconds: float) -> None:
        timers.append(threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT)))
        timers[-1].start()

    # Where pytest runs in the background, without a terminal, SIGINT may be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as info, at_once():
            yield interrupt
    finally:
        for timer in timers:  # whoever ended by himself isn't interrupted any more
            timer.cancel()
            timer.join()
        signal.signal(signal.SIGINT, before)
    assert not hasattr(info.value, "__notes__")


def sync_usable(client: ProductionHTTPClient, server: ScriptedServer) -> bool:
    """As above."""
    before = len(server.requests)
    response = client.get(server.url)
    return response.text == "ok" and len(server.requests) == before + 1


@pytest.mark.parametrize("step", [answer(503), answer(503, bytes(100_000)), fin()])
def test_interrupted_during_the_wait(
    client: ProductionHTTPClient, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """Raised by sleep() itself: no further attempt, nothing held."""
    delays = []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(client_module, "sleep", sleep)
    with ScriptedServer([step]) as server:
        with interrupted():
            client.get(server.url)
        assert (delays, len(server.requests)) == ([LONG], 1)
        assert sync_usable(client, server)


def test_interrupted_during_the_wait_by_a_signal(client: ProductionHTTPClient) -> None:
    """The real sleep, the real signal."""
    with ScriptedServer([answer(503)]) as server:
        with interrupted() as interrupt:
            client.event_hooks["retry"] = [lambda failed: interrupt(0.1)]
            client.get(server.url)
        assert len(server.requests) == 1
        assert sync_usable(client, server)


@pytest.mark.parametrize("step", HANGS.values(), ids=HANGS)
def test_interrupted_during_an_attempt(client: ProductionHTTPClient, step: Step) -> None:
    """While recv() waits."""
    with ScriptedServer([answer(503), step]) as server:
        client.retry = RESTLESS
        with interrupted() as interrupt:
            client.event_hooks["retry"] = [lambda failed: interrupt(0.2)]
            client.get(server.url)
        assert len(server.requests) == 2
        assert sync_usable(client, server)


def test_interrupted_during_the_discard(client: ProductionHTTPClient, long_discard: None) -> None:
    """While a failed response is read for its connection's sake."""
    stalled = Step(send=(message(503, b"x" * 100)[:-50],), then="hang")
    with ScriptedServer([stalled]) as server:
        with interrupted() as interrupt:
            interrupt(0.2)
            client.get(server.url)
        assert len(server.requests) == 1
        assert sync_usable(client, server)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("kind", ["request", "response", "retry"])
def test_a_hook_that_ends_the_program(
    client: ProductionHTTPClient, kind: str, error: type[BaseException]
) -> None:
    """No `except Exception` of ours stands in its way."""
    client.retry = RESTLESS

    def hook(_: Any) -> None:
        client.event_hooks[kind] = []
        raise error

    client.event_hooks[kind] = [hook]
    with ScriptedServer([answer(503, bytes(100_000))]) as server:
        with pytest.raises(error) as info:
            client.get(server.url)
        assert not hasattr(info.value, "__notes__")
        assert len(server.requests) == (kind != "request")
        server._script.clear()
        assert sync_usable(client, server)


def test_interrupted_in_should_retry(client: ProductionHTTPClient) -> None:
    """The caller's predicate holds the response in its hands; it is given back all the same."""

    def ask(request: httpx.Request, outcome: httpx.Response | Exception) -> bool | None:
        raise KeyboardInterrupt

    with ScriptedServer([answer(200, bytes(100_000))]) as server:
        policy = RetryPolicy(should_retry=ask)
        with interrupted(), client.stream("GET", server.url, extensions={"retry": policy}):
            pass
        assert sync_usable(client, server)
