"""Connections, file descriptors and memory: what a failed attempt held is free before the wait.

Subject: `_response_body.py`.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import (
    Received,
    ScriptedServer,
    Step,
    answer,
    cut,
    drip,
    fin,
    hang,
    message,
    reset,
)

from httpx_production import RetryPolicy, _response_body
from httpx_production import client as client_module

pytestmark = [
    pytest.mark.anyio,
    # trio's own warning about httpx's generators, when a body is not read to its end.
    pytest.mark.filterwarnings("ignore:Async generator 'http"),
]

AT_ONCE = RetryPolicy(backoff=lambda attempt: 0)
SMALL = 64 * 1024
PATIENCE = 4.0  # seconds: much less than the slow bodies here take, much more than they may cost

# Failed answers whose body isn't worth the wait: each would take 10 s or more to read.
SLOW = {
    "drips": drip(message(503, b"x" * 100), 0.1, at_once=60),
    "drips-fast": drip(message(503, b"x" * 3000), 0.002, at_once=60),
    "chunks-drip": Step(
        send=(b"HTTP/1.1 503 \r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 60),
        pause=0.1,
    ),
    "stalls": Step(send=(message(503, b"x" * 100)[:-50],), then="hang"),
    "stalls-at-once": Step(send=(message(503, b"x" * 100)[:-100],), then="hang"),
    "has-no-end": Step(send=(b"HTTP/1.1 503 \r\n\r\nsorry",), then="hang"),
}


def once(step: Step, then: Step | None = None) -> Callable[[Received], Step]:
    """A server that does this with the first request for each path."""
    seen: set[str] = set()

    def handler(request: Received) -> Step:
        if request.target in seen:
            return then or answer(200, request.target.encode())
        seen.add(request.target)
        return step

    return handler


# --- the failed response's connection ---------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        answer(503, b""),
        answer(503, b"busy"),
        answer(503, b"x" * SMALL),
        Step(send=(b"HTTP/1.1 503 \r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n",)),
        Step(send=(message(503, b"busy")[:-4], b"bu", b"sy"), pause=0.02),
    ],
    ids=["empty", "small", "64 KiB", "chunked", "in pieces"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["read", "streamed"])
async def test_a_small_body_is_read_and_its_connection_reused(
    flavour: Flavour, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, step: Step, stream: bool
) -> None:
    """Closing it unread would cost the connection: 20 x 503 made 20 connections."""
    monkeypatch.setattr(_response_body, "DRAIN_TIME", 5.0)  # on a busy machine
    client = flavour.client()
    with ScriptedServer([step] * 4) as server:
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request, stream=stream))
        assert await flavour.read(response) == b"ok"
    assert (len(server.requests), server.connections) == (5, 1)


@pytest.mark.parametrize("size", [SMALL + 1, 5_000_000])
async def test_a_larger_body_is_not_read(flavour: Flavour, clock: FakeClock, size: int) -> None:
    """A new connection is cheaper."""
    client = flavour.client(max_connections=1)
    with ScriptedServer([answer(503, bytes(size))] * 2) as server:
        response = await flavour.run(client.get(server.url))
    assert response.content == b"ok"
    assert (len(server.requests), server.connections) == (3, 3)
    for failed in response.extensions["retries"]:
        assert failed.outcome.is_closed
        with pytest.raises(httpx.ResponseNotRead):
            _ = failed.outcome.content


async def all_slow_bodies(flavour: Flavour, client: Any) -> tuple[list[bytes], float, int]:
    """What GETs of all slow bodies at once return, the time it took, and the connections made."""
    seen: set[str] = set()

    def script(request: Received) -> Step:
        kind = request.path.removeprefix("/")
        if kind in seen:
            return answer(200, kind.encode())
        seen.add(kind)
        return SLOW[kind]

    with ScriptedServer(script) as server:
        begin = time.monotonic()
        calls = [lambda kind=kind: client.get(f"{server.url}/{kind}") for kind in SLOW]
        responses = await flavour.gather(calls)
        took = time.monotonic() - begin
    return [response.content for response in responses], took, server.connections


async def test_slow_bodies_are_not_waited_for(flavour: Flavour) -> None:
    """A quarter of a second, then they are closed unread, by the real clock."""
    client = flavour.client(retry=AT_ONCE)
    contents, took, connections = await all_slow_bodies(flavour, client)
    assert contents == [kind.encode() for kind in SLOW]
    assert took < PATIENCE
    assert len(SLOW) < connections <= 2 * len(SLOW)


async def test_the_hurry_ends_with_the_discard(flavour: Flavour) -> None:
    """The next attempt's timeouts are the caller's again."""
    client = flavour.client(retry=AT_ONCE, max_connections=1)
    with ScriptedServer([SLOW["stalls"]]) as server:
        response = await flavour.run(client.get(server.url, timeout=7))
    assert response.content == b"ok"
    assert response.request.extensions["timeout"] == httpx.Timeout(7).as_dict()
    assert (len(server.requests), server.connections) == (2, 2)


async def test_a_slow_body_is_not_waited_for_in_a_stream(flavour: Flavour) -> None:
    """The same before the hand-over."""
    client = flavour.client(retry=AT_ONCE, max_connections=1)
    with ScriptedServer([SLOW["drips"], SLOW["stalls"]]) as server:
        begin = time.monotonic()
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == b"ok"
        assert time.monotonic() - begin < PATIENCE
    assert (len(server.requests), server.connections) == (3, 3)


async def test_a_slow_body_that_is_final_is_waited_for(flavour: Flavour) -> None:
    """The discard's hurry doesn't reach the attempts: their timeouts are the caller's."""
    busy = message(503, b"wait")
    slow = drip(busy, 0.15, at_once=len(busy) - 2)
    client = flavour.client(retry=AT_ONCE, max_attempts=2)
    with ScriptedServer([slow, slow]) as server:
        response = await flavour.run(client.get(server.url))
    assert (response.status_code, response.content) == (503, b"wait")
    assert (len(server.requests), server.connections) == (2, 2)


async def test_a_response_that_a_hook_closed_is_discarded(
    flavour: Flavour, clock: FakeClock
) -> None:
    """raise_for_status() in a response hook makes httpx close the response unread."""
    hook = flavour.hook(lambda response: response.raise_for_status() and None)
    client = flavour.client(event_hooks={"response": [hook]}, max_connections=1)
    with ScriptedServer([answer(503, b"busy")] * 4) as server:
        assert (await flavour.run(client.get(server.url))).content == b"ok"


async def test_small_bodies_can_be_looked_at(flavour: Flavour, clock: FakeClock) -> None:
    """By should_retry, by retry hooks, and in the history; of streamed calls as well."""
    seen = []

    def ask(request: httpx.Request, outcome: httpx.Response | Exception) -> None:
        if isinstance(outcome, httpx.Response) and outcome.is_error:
            seen.append(("should_retry", outcome.json()))

    def hook(failed: Any) -> None:
        seen.append(("hook", failed.outcome.json()))

    for policy in (RetryPolicy(), RetryPolicy(should_retry=ask)):
        client = flavour.client(retry=policy, event_hooks={"retry": [flavour.hook(hook)]})
        with ScriptedServer(once(answer(503, b'{"error": 7}'))) as server:
            response = await flavour.run(client.get(server.url))
            assert response.extensions["retries"][0].outcome.json() == {"error": 7}
            async with flavour.using(client.stream("GET", f"{server.url}/streamed")) as response:
                assert response.extensions["retries"][0].outcome.json() == {"error": 7}
    kinds = ["hook"] * 2 + ["should_retry", "hook"] * 2
    assert seen == [(kind, {"error": 7}) for kind in kinds]


# --- the pool ---------------------------------------------------------------------------------


def during_wait(monkeypatch: pytest.MonkeyPatch, flavour: Flavour, call: Callable[[], Any]) -> None:
    """Do this in place of each wait."""

    async def async_sleep(seconds: float) -> None:
        await flavour.run(call())

    monkeypatch.setattr(client_module, "sleep", lambda seconds: call())
    monkeypatch.setattr(client_module, "async_sleep", async_sleep)


FAILURES = {
    "drips": SLOW["drips"],
    "small": answer(503, b"busy"),
    "large": answer(503, bytes(SMALL * 2)),
    "reset": reset(),
    "FIN": fin(),
    "body cut": cut(b"x" * 99, 50),
    "body reset": cut(b"x" * 99, 50, then="reset"),
    "garbage": Step(send=(b"what?\r\n\r\n",), then="fin"),
}


@pytest.mark.parametrize("step", FAILURES.values(), ids=FAILURES)
async def test_another_call_gets_through_during_a_backoff(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """The wait holds no connection, even where there is only one."""
    client = flavour.client(max_connections=1, pool_timeout=0.5)
    others: list[int] = []

    async def async_other(url: str) -> None:
        others.append((await client.get(url)).status_code)

    def other(url: str) -> Any:
        return others.append(client.get(url).status_code) if flavour.sync else async_other(url)

    with ScriptedServer([step]) as server, ScriptedServer() as second:
        during_wait(monkeypatch, flavour, lambda: other(second.url))
        response = await flavour.run(client.get(server.url))
    assert response.content == b"ok"
    assert (len(response.extensions["retries"]), others) == (1, [200])


@pytest.mark.parametrize(
    ("stream", "step"),
    [(False, answer(503, b"busy")), (True, answer(503, bytes(SMALL * 2)))],
    ids=["small", "large, streamed"],
)
async def test_200_requests_with_a_503_each(
    flavour: Flavour, clock: FakeClock, stream: bool, step: Step
) -> None:
    """In tens at once on a pool of five: no PoolTimeout, and few connections."""
    client = flavour.client(max_connections=5, max_keepalive_connections=5)

    async def streamed(url: str) -> bytes:
        async with client.stream("GET", url) as response:
            return await response.aread()

    def call(url: str) -> Any:
        if not stream:
            return client.get(url)
        if not flavour.sync:
            return streamed(url)
        with client.stream("GET", url) as response:
            return response.read()

    with ScriptedServer(once(step)) as server:
        for ten in range(20):
            urls = [f"{server.url}/{ten}/{n}" for n in range(10)]
            got = await flavour.gather([lambda url=url: call(url) for url in urls])
            contents = [getattr(one, "content", one) for one in got]
            assert contents == [url.removeprefix(server.url).encode() for url in urls]
        alive = sum(sock.fileno() != -1 for sock in server._sockets)
    assert len(server.requests) == 400
    assert alive <= 10  # five, and some that the server hasn't seen closing yet
    assert server.connections <= (10 if len(step.send[0]) < SMALL else 205)


@pytest.mark.parametrize(
    "step", [cut(b"x" * 99, 50), cut(b"x" * 99, 50, then="reset"), answer(503, bytes(SMALL * 2))]
)
async def test_the_last_attempt_gives_its_connection_back(
    flavour: Flavour, clock: FakeClock, step: Step
) -> None:
    """Whether it ends in an exception or in a response."""
    client = flavour.client(max_connections=1, pool_timeout=0.5)
    with ScriptedServer([step] * 5) as server:
        await flavour.outcome(client.get, server.url)
        assert len(server.requests) == 5
        assert (await flavour.run(client.get(server.url))).content == b"ok"


# --- memory and file descriptors --------------------------------------------------------------


async def test_exceptions_in_the_history_hold_no_frames(flavour: Flavour, clock: FakeClock) -> None:
    """A traceback would keep the attempt's sockets and buffers, and the caller's own variables."""
    client = flavour.client()
    with ScriptedServer([reset(), fin(), cut(b"x" * 99, 50)]) as server:
        response = await flavour.run(client.get(server.url))
    assert len(response.extensions["retries"]) == 3
    for failed in response.extensions["retries"]:
        exc: BaseException | None = failed.outcome
        depth = 0
        while exc is not None:
            assert exc.__traceback__ is None
            exc, depth = exc.__cause__ or exc.__context__, depth + 1
        assert depth > 1


def open_files() -> int:
    """How many file descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


async def test_file_descriptors_do_not_grow(flavour: Flavour, clock: FakeClock) -> None:
    """Whatever fails, and however often."""
    kinds = [step for name, step in FAILURES.items() if name != "drips"]
    client = flavour.client()
    counts = []
    with ScriptedServer([step for _ in range(11) for step in (*kinds, answer())]) as server:
        for _ in range(11):
            for _ in range(2):  # five attempts, then three: the seven kinds and a success
                await flavour.outcome(client.get, server.url)
            counts.append(open_files())
    # The server's side of a connection may be closed a moment later than ours.
    assert max(counts[1:]) <= counts[0] + len(kinds)


async def test_a_closed_client_holds_nothing(flavour: Flavour, clock: FakeClock) -> None:
    """All its connections are gone, whatever became of its calls."""
    before = open_files()
    client = flavour.client()
    with ScriptedServer(once(answer(503), answer(200, b"ok"))) as server:
        for step in [reset(), fin(), cut(b"x" * 99, 50), answer(503, bytes(SMALL * 2)), hang()]:
            server._script.append(step)
            policy = {"retry": RetryPolicy(max_attempts=2)}
            await flavour.outcome(
                client.get, server.url, extensions=policy, timeout=httpx.Timeout(5, read=0.2)
            )
        await flavour.close(client)
        server.settle()
    assert open_files() <= before
