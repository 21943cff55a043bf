"""Closing a client: who waits fails at once, nothing is sent afterwards, and it takes no time.

Subject: `transport/_pool.py`, `transport/_connections.py`.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest
from conftest import Flavour
from h2_peer import H2Peer, Peer
from helpers import ASYNC, PROMPT, Callers, finished, generators_left, one_attempt, until, within
from hyperframe.frame import WindowUpdateFrame
from servers import ScriptedServer, Step, chunked, echo, full_backlog, hang, resolving

from httpx_production.transport import PoolStats, _network
from httpx_production.transport._connections import HTTPConnection

pytestmark = [pytest.mark.anyio, generators_left]

# In httpx a closed client raises RuntimeError; what the transport says is a TransportError.
CLOSED = (httpx.TransportError, RuntimeError)


def nothing_left(client: Any) -> bool:
    stats = client.pool_stats()
    return (stats.connections, stats.in_use, stats.waiting) == (0, 0, 0)


@contextlib.contextmanager
def busy(kind: str) -> Iterator[Any]:
    """A server whose only connection, or stream, is taken by the first request for ever."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream), peer.data(stream, b"part"))
        peer.rest()

    server: Any = (
        H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 1})
        if kind == "http2"
        else ScriptedServer([chunked(b"part", end=b"", then="hang")], tls=kind == "https")
    )
    with server:
        yield server


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_closing_ends_who_waits(flavour: Flavour, kind: str) -> None:
    """Three requests wait for the only slot: they fail at once and are never sent."""
    with busy(kind) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request, stream=True))
        async with Callers(flavour) as callers:
            waiting = [callers.start(client.post, f"{server.url}/{n}") for n in range(3)]
            await until(lambda: client.pool_stats().waiting == 3)
            with within(PROMPT):
                await flavour.close(client)
                outcomes = await finished(*waiting)
        assert all(isinstance(one, CLOSED) for one in outcomes), outcomes
        assert not any(isinstance(one, httpx.PoolTimeout) for one in outcomes)
        assert nothing_left(client)
        await flavour.close(response)
        assert nothing_left(client)
        assert len(server.requests) == 1


@pytest.mark.parametrize("place", ["connect", "handshake"])
async def test_closing_while_a_connection_is_made(flavour: Flavour, place: str) -> None:
    """The request is not sent on it; whoever waits for that connection fails at once too."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(H2Peer(handshake=lambda number: 0.6))
        url = server.url
        if place == "connect":
            url = stack.enter_context(full_backlog()).replace("http:", "https:")
        client = one_attempt(flavour, connect_timeout=2, max_connections=1, pool_timeout=8)
        async with Callers(flavour) as callers:
            started = [callers.start(client.post, f"{url}/{n}") for n in range(3)]
            await until(lambda: client.pool_stats().connections == 1)
            await anyio.sleep(0.1)
            with within(PROMPT):
                await flavour.close(client)
            outcomes = await finished(*started)
        assert all(isinstance(one, CLOSED) for one in outcomes), outcomes
        assert nothing_left(client)
        time.sleep(0.3 if place == "handshake" else 0)
        assert server.requests == []


async def test_closing_while_several_addresses_are_tried(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before the first is looked at again: an exception of httpx's all the same."""
    look = _network.is_ready

    def close_and_look(*args: Any, **options: Any) -> bool:
        client._transport._pool.core.close()
        return look(*args, **options)

    with resolving(monkeypatch, "two.example", ["127.0.0.1", "127.0.0.2"]), full_backlog() as url:
        client = one_attempt(flavour, connect_timeout=5)
        monkeypatch.setattr(_network, "is_ready", close_and_look)
        with within(PROMPT):
            outcome = await flavour.outcome(client.get, url.replace("127.0.0.1", "two.example"))
        assert isinstance(outcome, httpx.ConnectError), outcome
        assert nothing_left(client)


@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_closing_while_a_kept_connection_is_looked_at(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The request that has it gets no other in its place, and nothing is sent."""
    look = HTTPConnection.has_expired

    def close_and_look(connection: HTTPConnection) -> bool:
        monkeypatch.undo()
        client._transport._pool.core.close()  # by another thread, or a task just before
        return look(connection)

    with H2Peer() if kind == "http2" else ScriptedServer() as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        monkeypatch.setattr(HTTPConnection, "has_expired", close_and_look)
        outcome = await flavour.outcome(client.post, server.url)
        assert isinstance(outcome, CLOSED), outcome
        assert nothing_left(client)
        assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_closing_ends_who_reads(flavour: Flavour, kind: str) -> None:
    """A response that is being read ends with an exception, at once.

    A thread that is blocked in a read may have to wait for its own timeout.
    """
    with busy(kind) as server:
        client = one_attempt(flavour, read_timeout=1 if flavour.sync else 6)
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request, stream=True))
        async with Callers(flavour) as callers:
            reader = callers.start(response.read if flavour.sync else response.aread)
            await anyio.sleep(0.1)
            with within(1 + PROMPT if flavour.sync else PROMPT):
                await flavour.close(client)
                (outcome,) = await finished(reader)
        assert isinstance(outcome, CLOSED), outcome
        assert nothing_left(client)


async def test_closing_ends_who_waits_for_headers(flavour: Flavour) -> None:
    """A request that was sent and has no answer yet; a thread's own timeout may end it."""
    with ScriptedServer([hang()]) as server:
        client = one_attempt(flavour, read_timeout=1 if flavour.sync else 6)
        async with Callers(flavour) as callers:
            caller = callers.start(client.get, server.url)
            await until(lambda: server.requests)
            await anyio.sleep(0.05)
            with within(1 + PROMPT if flavour.sync else PROMPT):
                await flavour.close(client)
                (outcome,) = await finished(caller)
        assert isinstance(outcome, CLOSED), outcome
        assert nothing_left(client)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # the body's, on trio
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_closing_in_the_middle_of_a_request(flavour: Flavour, tls: bool) -> None:
    """Its body closes the client: the request fails as by the network, each time."""

    def body(client: Any) -> Any:
        def chunks() -> Iterator[bytes]:
            yield b"first"
            client.close()
            yield b"second"

        async def achunks() -> Any:
            yield b"first"
            await client.aclose()
            yield b"second"

        return chunks() if flavour.sync else achunks()

    with ScriptedServer(tls=tls) as server:
        for _ in range(3):
            client = one_attempt(flavour)
            with within(PROMPT):
                outcome = await flavour.outcome(client.post, server.url, content=body(client))
            assert isinstance(outcome, httpx.NetworkError), outcome
            assert nothing_left(client)


async def test_a_closed_client_sends_nothing(flavour: Flavour) -> None:
    """As in httpx; and closing twice is once too often, but no error."""
    with ScriptedServer() as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        for _ in range(2):
            await flavour.close(client)
        with pytest.raises(RuntimeError, match="the client has been closed"):
            await flavour.run(client.get(server.url))
        with pytest.raises(RuntimeError, match="the client has been closed"):
            await flavour.run(client.send(client.build_request("GET", server.url), stream=True))
        with pytest.raises(RuntimeError, match="Cannot reopen a client"):
            await flavour.using(client).__aenter__()
        assert len(server.requests) == 1
        assert nothing_left(client)


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_closing_closes_idle_connections(flavour: Flavour, kind: str) -> None:
    """Every one of them is seen to end by the server."""
    server: Any = H2Peer() if kind == "http2" else ScriptedServer(tls=kind == "https")
    with server:
        client = one_attempt(flavour)
        await flavour.gather(lambda: client.get(server.url) for _ in range(4))
        await flavour.close(client)
        assert nothing_left(client)
        if kind != "http2":
            server.settle()


@ASYNC
async def test_saying_goodbye_has_a_limit(flavour: Flavour) -> None:
    """The peer reads nothing and its socket is full: closing response and client takes a moment."""
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        stream = peer.request()
        peer.send(peer.head(stream))
        stop.wait(10)

    with H2Peer(script, settings={"INITIAL_WINDOW_SIZE": 2**30}) as server:
        client = one_attempt(flavour, write_timeout=8)
        request = client.build_request("GET", server.url)
        response = await client.send(request, stream=True)
        async with Callers(flavour) as callers:
            upload = callers.start(client.post, server.url, content=b"x" * 30_000_000)
            await anyio.sleep(0.3)
            with within(2.5):
                await response.aclose()
            with within(2.5):
                await client.aclose()
            upload.scope.cancel()
        stop.set()
        assert nothing_left(client)


@pytest.mark.parametrize("kind", ["http", "https"])
async def test_closing_an_upload_that_nobody_reads(flavour: Flavour, kind: str) -> None:
    """HTTP/1.1, with TLS whose own goodbye can't be written either."""
    with ScriptedServer([Step(read="head", then="hang")], tls=kind == "https") as server:
        client = one_attempt(flavour, write_timeout=1)
        async with Callers(flavour) as callers:
            upload = callers.start(client.post, server.url, content=b"x" * 30_000_000)
            await until(lambda: server.requests)
            await anyio.sleep(0.2)
            with within(2.5):
                await flavour.close(client)
            (outcome,) = await finished(upload)
        assert isinstance(outcome, CLOSED), outcome
        assert nothing_left(client)


@ASYNC
async def test_closing_in_a_cancelled_scope_closes(flavour: Flavour) -> None:
    """Clean-up is shielded: `async with` left by a deadline leaves no socket behind."""
    with ScriptedServer([chunked(b"part", end=b"", then="hang")]) as server:
        client = one_attempt(flavour)
        with anyio.move_on_after(0.2) as scope:
            async with client, client.stream("GET", server.url) as response:
                async for _ in response.aiter_raw():
                    pass
        assert scope.cancelled_caught
        assert nothing_left(client)
        await until(lambda: all(sock.fileno() == -1 for sock in server._sockets))


@ASYNC
async def test_closing_what_was_read_keeps_the_connection(flavour: Flavour) -> None:
    """Also where it is closed in a cancelled scope: a deadline that passed just then."""
    with ScriptedServer(echo) as server:
        transport = flavour.transport()
        async with transport:
            response = await transport.handle_async_request(httpx.Request("GET", server.url))
            assert b"".join([part async for part in response.stream]) == b"/"
            with anyio.CancelScope() as scope:
                scope.cancel()
                await response.stream.aclose()
            assert transport.pool_stats() == PoolStats(1, 1, 0, 0)
