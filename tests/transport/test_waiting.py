"""Who waits for a connection or a stream, for how long, in which order, and what it is told.

Subject: `transport/_pool.py`.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import httpcore
import httpx
import pytest
from conftest import Flavour
from h2_peer import Gone, H2Peer, Peer, serve
from helpers import (
    ASYNC,
    PROMPT,
    Callers,
    finished,
    generators_left,
    in_use,
    one_attempt,
    until,
    within,
)
from servers import (
    Received,
    ScriptedServer,
    Step,
    answer,
    chunked,
    echo,
    full_backlog,
    hang,
    resolving,
)

from httpx_production.transport import _pool, _runtime
from httpx_production.transport._connections import HTTPConnection

pytestmark = [pytest.mark.anyio, generators_left]


def texts(outcomes: list[Any]) -> list[Any]:
    return [getattr(one, "text", one) for one in outcomes]


# --- a connection that is being made -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["https", "http2"])
async def test_a_slow_handshake_is_no_reason_for_a_pool_timeout(
    flavour: Flavour, kind: str
) -> None:
    """Five POSTs to a new origin whose handshake takes longer than pool_timeout: five answers."""
    server: Any = (
        H2Peer(handshake=lambda number: 1.2)
        if kind == "http2"
        else ScriptedServer(echo, tls=True, handshake_delay=1.2)
    )
    with server:
        client = one_attempt(flavour, pool_timeout=0.5)
        with within(3.5):
            outcomes = await flavour.gather(
                lambda url=f"{server.url}/{n}": client.post(url) for n in range(5)
            )
        assert texts(outcomes) == [f"/{n}" for n in range(5)]


async def test_a_slow_name_server_is_no_reason_for_a_pool_timeout(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the DNS look-up."""
    with (
        ScriptedServer(echo, tls=True) as server,
        resolving(monkeypatch, "localhost", ["127.0.0.1"], delay=1.2),
    ):
        client = one_attempt(flavour, pool_timeout=0.5)
        url = server.url.replace("127.0.0.1", "localhost")
        with within(4.5):
            outcomes = await flavour.gather(lambda n=n: client.post(f"{url}/{n}") for n in range(5))
        assert texts(outcomes) == [f"/{n}" for n in range(5)]


async def test_nobody_waits_long_for_another_s_handshake(flavour: Flavour) -> None:
    """The first connection hangs in its handshake; the others make their own a moment later."""
    with H2Peer(handshake=lambda number: 5.0 * (number == 0)) as server:
        client = one_attempt(flavour, connect_timeout=3)
        async with Callers(flavour) as callers:
            unlucky = callers.start(client.get, f"{server.url}/unlucky")
            await until(lambda: server.connections == 1)
            with within(PROMPT):
                outcomes = await finished(
                    *[callers.start(client.get, f"{server.url}/{n}") for n in range(4)]
                )
            assert texts(outcomes) == ["/0", "/1", "/2", "/3"]
            # Either it takes over a connection of the others', or its own limit ends it.
            (outcome,) = await finished(unlucky, seconds=5)
            assert isinstance(outcome, httpx.ConnectTimeout) or outcome.text == "/unlucky"


@ASYNC
async def test_a_quick_handshake_is_waited_for(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty callers of a new HTTP/2 origin open one connection, not fifty."""
    longer = 40 * _pool.EXPECTATION  # 10 s: on a busy machine nothing is quick
    monkeypatch.setattr(_pool, "EXPECTATION", longer)
    with H2Peer(handshake=lambda number: 0.05) as server:
        client = one_attempt(flavour)
        outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(50))
        assert [getattr(one, "status_code", one) for one in outcomes] == [200] * 50
        assert server.connections == 1


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("https://origin", {"http2": True}, True),
        ("https://origin", {"http2": True, "proxy": "http://proxy"}, True),
        ("https://origin", {"http2": False}, False),
        ("http://origin", {"http2": True}, False),
        ("http://origin", {"http2": True, "http1": False}, True),
        ("http://origin", {"http2": True, "proxy": "http://proxy"}, False),
    ],
)
async def test_only_what_requests_may_share_is_waited_for(
    flavour: Flavour, url: str, options: dict[str, Any], expected: bool
) -> None:
    """HTTP/2, as far as is known before it is made: in the async client alone."""
    core = flavour.transport(**options)._pool.core
    connection = core._create(core._key(httpcore.Request("GET", url)), lambda: None)
    assert connection.capacity == (None if expected and not flavour.sync else 1)


@pytest.mark.parametrize("fault", ["handshake stalls", "address is dead"])
async def test_callers_of_a_dead_origin_time_out_together(flavour: Flavour, fault: str) -> None:
    """Six callers, each with its own connect_timeout: not one after the other."""
    with contextlib.ExitStack() as stack:
        if fault == "handshake stalls":
            silent = Step(read="nothing", then="hang")
            url = stack.enter_context(ScriptedServer([silent] * 20)).url
        else:
            url = stack.enter_context(full_backlog())
        url = url.replace("http:", "https:")
        client = one_attempt(flavour, pool_timeout=8)
        limits = [0.5, 0.5, 0.7, 0.7, 0.9, 0.9]
        async with Callers(flavour) as callers:
            started = [
                callers.start(client.get, url, timeout=httpx.Timeout(8, connect=limit))
                for limit in limits
            ]
            outcomes = await finished(*started)
        assert [type(one) for one in outcomes] == [httpx.ConnectTimeout] * 6
        # 0.25 s for another's connection may come on top, but no other's limit.
        assert max(one.took for one in started) < 2.2
        assert in_use(client) == (0, 0)


@ASYNC
async def test_a_handshake_that_fails_leaves_nobody_waiting(flavour: Flavour) -> None:
    """The caller who makes the connection is cancelled: those who wait for it make their own."""
    with H2Peer(handshake=lambda number: 0.1) as server:
        client = one_attempt(flavour, pool_timeout=5)
        async with Callers(flavour) as callers:
            first = callers.start(client.get, f"{server.url}/first")
            await until(lambda: server.connections == 1)
            others = [callers.start(client.get, f"{server.url}/{n}") for n in range(3)]
            first.scope.cancel()
            with within(PROMPT):
                outcomes = await finished(*others)
        assert texts(outcomes) == ["/0", "/1", "/2"]


# --- streams -------------------------------------------------------------------------------------


def together(expected: int) -> Callable[[Peer], None]:
    """Answer nobody before so many requests are here, on whatever connections."""
    everybody = threading.Event()
    count: list[int] = []

    def script(peer: Peer) -> None:
        streams: list[int] = []
        with contextlib.suppress(Gone):
            while True:
                with contextlib.suppress(TimeoutError):
                    streams.append(peer.request(0.02))
                    count.append(1)
                if len(count) >= expected:
                    everybody.set()
                if everybody.is_set():
                    while streams:
                        peer.echo(streams.pop(0))

    return script


@ASYNC
async def test_more_requests_than_streams_open_more_connections(flavour: Flavour) -> None:
    """Ten streams a connection, forty POSTs that are only answered together: four connections."""
    with H2Peer(together(40), settings={"MAX_CONCURRENT_STREAMS": 10}) as server:
        client = one_attempt(flavour, pool_timeout=2, read_timeout=4)
        with within(4):
            outcomes = await flavour.gather(
                lambda url=f"{server.url}/{n}": client.post(url) for n in range(40)
            )
        assert texts(outcomes) == [f"/{n}" for n in range(40)]
        assert 4 <= len(server.peers) <= 40
        assert len(server.requests) == 40


@ASYNC
async def test_a_warm_connection_that_is_full_is_joined_by_another(flavour: Flavour) -> None:
    """Known to be HTTP/2, full of endless streams: a request is no longer kept waiting for it."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(Gone):
            while True:
                stream = peer.request()
                if peer.paths[stream] == "/endless":
                    peer.send(peer.head(stream), peer.data(stream, b"part"))
                else:
                    peer.echo(stream)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 2}) as server:
        client = one_attempt(flavour, max_connections=3, pool_timeout=2)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(client.stream("GET", f"{server.url}/endless"))
            with within(PROMPT):
                assert (await client.get(f"{server.url}/x")).text == "/x"
        assert len(server.peers) == 3


@ASYNC
async def test_with_one_connection_they_queue(flavour: Flavour) -> None:
    """max_connections=1: forty POSTs take turns on ten streams of one connection."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(Gone):
            while True:
                streams = [peer.request()]
                with contextlib.suppress(TimeoutError):
                    while True:
                        streams.append(peer.request(0.05))
                for stream in streams:
                    peer.echo(stream)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 10}) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        outcomes = await flavour.gather(
            lambda url=f"{server.url}/{n}": client.post(url) for n in range(40)
        )
        assert texts(outcomes) == [f"/{n}" for n in range(40)]
        assert len(server.peers) == 1


@ASYNC
async def test_a_connection_that_takes_no_more_streams_is_waited_for(flavour: Flavour) -> None:
    """MAX_CONCURRENT_STREAMS=0 beside an endless stream: pool_timeout ends it, no busy loop."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.settings(MAX_CONCURRENT_STREAMS=0)
        peer.send(peer.head(stream))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=0.4)
        async with client.stream("GET", server.url):
            before = time.process_time()
            with within(6):
                outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.PoolTimeout)
        assert time.process_time() - before < 0.4
        assert len(server.requests) == 1


async def test_without_a_pool_timeout_a_request_waits_for_its_turn(flavour: Flavour) -> None:
    """`pool_timeout=None` is no limit: it ends when the connection is free."""
    with ScriptedServer([chunked(b"part", end=b"", then="hang")]) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=None)
        async with Callers(flavour) as callers:
            async with flavour.using(client.stream("GET", server.url)):
                waiting = callers.start(client.get, server.url)
                await until(lambda: in_use(client) == (1, 1))
            assert texts(await finished(waiting)) == ["ok"]


# --- what a PoolTimeout says ---------------------------------------------------------------------


async def test_a_pool_timeout_counts_connections_and_requests(flavour: Flavour) -> None:
    """HTTP/1.1: connections in use, requests waiting, and which arguments to raise."""
    with ScriptedServer([chunked(b"part", end=b"", then="hang")] * 2) as server:
        client = one_attempt(flavour, max_connections=2, pool_timeout=0.3)
        async with (
            flavour.using(client.stream("GET", server.url)),
            flavour.using(client.stream("GET", server.url)),
        ):
            outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(3))
        assert {type(one) for one in outcomes} == {httpx.PoolTimeout}
        said = [str(one) for one in outcomes]
        assert all(re.search(r"\b2 of 2 connections\b", one) for one in said), said
        assert any(re.search(r"\b3\b[^,;]*\bwaiting\b", one) for one in said), said
        assert all("max_connections" in one and "pool_timeout" in one for one in said), said


@ASYNC
async def test_a_pool_timeout_counts_streams(flavour: Flavour) -> None:
    """HTTP/2: one connection of one, both of its streams, and the requests that wait."""

    def script(peer: Peer) -> None:
        for _ in range(2):
            peer.send(peer.head(peer.request()))
        peer.rest()

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 2}) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=0.3)
        async with client.stream("GET", server.url), client.stream("GET", server.url):
            outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(3))
        assert {type(one) for one in outcomes} == {httpx.PoolTimeout}
        said = [str(one) for one in outcomes]
        assert all(re.search(r"\b1 of 1 connection\b", one) for one in said), said
        assert all(re.search(r"\b2 of 2 [^,;]*\bstreams\b", one) for one in said), said
        assert any(re.search(r"\b3\b[^,;]*\bwaiting\b", one) for one in said), said


# --- order and fairness --------------------------------------------------------------------------


async def test_first_come_first_served_across_origins(flavour: Flavour) -> None:
    """One connection, six requests to two origins in turn: they are sent in that order."""
    order: list[str] = []

    def record(request: Received) -> Step:
        order.append(request.path)
        return answer(200, request.path.encode())

    part = chunked(b"part", end=b"", then="hang")
    with ScriptedServer(record) as one, ScriptedServer(record) as two, ScriptedServer([part]) as x:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        async with Callers(flavour) as callers:
            async with flavour.using(client.stream("GET", x.url)):
                started = []
                for number in range(6):
                    url = (one, two)[number % 2].url
                    started.append(callers.start(client.get, f"{url}/{number}"))
                    await until(lambda n=number: client.pool_stats().waiting == n + 1)
            outcomes = await finished(*started)
        assert texts(outcomes) == order == [f"/{number}" for number in range(6)]


async def test_a_connection_that_was_closed_costs_nobody_its_turn(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server closes each connection that it was to keep: who waits is handed one after another.

    What it leaves is its own. Else it would go to those behind, for as long as there are any.
    """
    look, go = HTTPConnection.has_expired, threading.Event()

    def look_when_it_is_closed(connection: HTTPConnection) -> bool:
        if connection.made is not None:
            sock = connection.made._network_stream.get_extra_info("socket")
            assert _runtime.is_ready(sock, 5)
        return look(connection)

    def hold(request: Received) -> Step:
        go.wait(5)
        return answer(then="fin")

    monkeypatch.setattr(HTTPConnection, "has_expired", look_when_it_is_closed)
    with ScriptedServer([hold, *[answer(then="fin")] * 5]) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        async with Callers(flavour) as callers:
            started = [callers.start(client.post, f"{server.url}/0")]
            await until(lambda: server.requests)
            for number in range(1, 6):
                started.append(callers.start(client.post, f"{server.url}/{number}"))
                await until(lambda n=number: client.pool_stats().waiting == n)
            go.set()
            outcomes = await finished(*started)
        assert texts(outcomes) == ["ok"] * 6
        assert [one.path for one in server.requests] == [f"/{number}" for number in range(6)]


@ASYNC
async def test_first_come_first_served_for_streams(flavour: Flavour) -> None:
    """The streams of a shared connection are handed out in order too."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        first = peer.request()
        go.wait(5)
        peer.echo(first)
        serve(peer)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 1}) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        async with Callers(flavour) as callers:
            started = [callers.start(client.get, f"{server.url}/0")]
            await until(lambda: server.requests)
            for number in range(1, 7):
                started.append(callers.start(client.get, f"{server.url}/{number}"))
                await until(lambda n=number: client.pool_stats().waiting == n)
            go.set()
            await finished(*started)
        assert [path for _, path in server.requests] == [f"/{number}" for number in range(7)]


@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_a_busy_origin_does_not_starve_another(flavour: Flavour, kind: str) -> None:
    """One connection, which four callers of one origin keep busy: another's request gets its turn.

    Over HTTP/2 their requests overlap, so that the connection is never idle by itself.
    """
    stop = threading.Event()

    def overlap(peer: Peer) -> None:
        with contextlib.suppress(Gone):
            open_streams = [peer.request()]
            while True:
                with contextlib.suppress(TimeoutError):
                    open_streams.append(peer.request(0.05))
                peer.echo(open_streams.pop(0)) if open_streams else peer.request(5)

    server: Any = (
        H2Peer(overlap) if kind == "http2" else ScriptedServer(lambda _: answer(delay=0.01))
    )
    with server, ScriptedServer(echo) as other:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)

        def sync_loop() -> None:
            while not stop.is_set():
                client.get(server.url)

        async def async_loop() -> None:
            while not stop.is_set():
                await client.get(server.url)

        async with Callers(flavour) as callers:
            busy = [callers.start(sync_loop if flavour.sync else async_loop) for _ in range(4)]
            await until(lambda: len(server.requests) > 4)
            try:
                with within(6):
                    (outcome,) = await finished(callers.start(client.get, f"{other.url}/x"))
            finally:
                stop.set()
            assert getattr(outcome, "text", outcome) == "/x"
            assert [one.outcome for one in busy if one.done.is_set() and one.outcome] == []


@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_a_waiting_request_that_gives_up_is_passed_over(flavour: Flavour, kind: str) -> None:
    """Its place in line goes to the next one, and is no longer counted."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        first = peer.request()
        go.wait(5)
        peer.echo(first)
        serve(peer)

    def step(request: Received) -> Step:
        if request.path == "/0":
            go.wait(5)
        return echo(request)

    server: Any = (
        H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 1})
        if kind == "http2"
        else ScriptedServer(step)
    )
    with server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        async with Callers(flavour) as callers:
            first = callers.start(client.get, f"{server.url}/0")
            await until(lambda: len(server.requests) == 1)
            short = httpx.Timeout(8, pool=0.3)
            gone = callers.start(client.get, f"{server.url}/1", timeout=short)
            await until(lambda: client.pool_stats().waiting == 1)
            later = callers.start(client.get, f"{server.url}/2")
            (outcome,) = await finished(gone, seconds=3)
            assert isinstance(outcome, httpx.PoolTimeout)
            assert client.pool_stats().waiting == 1
            go.set()
            assert texts(await finished(first, later)) == ["/0", "/2"]
        assert len(server.requests) == 2


# --- how many connections ------------------------------------------------------------------------


async def test_a_burst_opens_no_more_connections_than_callers(flavour: Flavour) -> None:
    """Fifty callers of twenty requests each on HTTP/1.1, all kept: at most fifty connections."""
    with ScriptedServer(lambda _: answer(delay=0.002)) as server:
        client = one_attempt(flavour, max_keepalive_connections=50, pool_timeout=8)

        def sync_loop() -> list[int]:
            return [client.get(server.url).status_code for _ in range(20)]

        async def async_loop() -> list[int]:
            return [(await client.get(server.url)).status_code for _ in range(20)]

        outcomes = await flavour.gather([sync_loop if flavour.sync else async_loop] * 50)
        assert outcomes == [[200] * 20] * 50
        assert server.connections <= 50


async def test_a_request_does_not_wait_while_there_is_room(flavour: Flavour) -> None:
    """Ten hanging requests, then one more: it is sent at once on a connection of its own."""
    with ScriptedServer([hang(), *[hang()] * 9]) as server:
        client = one_attempt(flavour, max_connections=11, read_timeout=2, pool_timeout=0.2)
        async with Callers(flavour) as callers:
            hanging = [callers.start(client.get, server.url) for _ in range(10)]
            await until(lambda: len(server.requests) == 10)
            with within(PROMPT):
                (outcome,) = await finished(callers.start(client.get, server.url))
            assert getattr(outcome, "text", outcome) == "ok"
            outcomes = await finished(*hanging)
            assert {type(one) for one in outcomes} == {httpx.ReadTimeout}
