"""What nobody has read yet is bounded, and the bound makes nobody starve.

The peers here count the bytes that they were able to send: the client holds those, but for what
the kernel's buffers take.
"""

import contextlib
import socket
import threading
import time
from typing import Any

import anyio
import httpx
import pytest
from conftest import Flavour
from h2_peer import Gone, H2Peer, Peer
from helpers import (
    ASYNC,
    Callers,
    finished,
    generators_left,
    in_use,
    one_attempt,
    one_connection,
    until,
    within,
)
from hyperframe.frame import PingFrame
from servers import Connection, ScriptedServer, Step, client_context

pytestmark = [pytest.mark.anyio, generators_left, one_connection]

MIB = 2**20
LIMIT = 32 * MIB  # of a connection, says the contract
KERNEL = 14 * MIB  # at most, of both sides' socket buffers on loopback


# --- HTTP/2 --------------------------------------------------------------------------------------


@ASYNC
@pytest.mark.time_limit(90)
@pytest.mark.parametrize("count", [20, 90])
async def test_unread_streams_are_bounded_together(flavour: Flavour, count: int) -> None:
    """A server that sends all that the windows allow on streams that nobody reads."""
    sent: list[int] = []

    def script(peer: Peer) -> None:
        *unread, reading = [peer.request() for _ in range(count + 1)]
        for stream in unread:
            peer.send(peer.head(stream))
        peer.flood(*unread)
        sent.append(peer.sent[0])
        peer.send(peer.head(reading))
        peer.deliver(reading, 3 * MIB)
        sent.append(peer.sent[0])
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=60)
        async with contextlib.AsyncExitStack() as stack:
            opening = [client.stream("GET", f"{server.url}/{n}") for n in range(count)]

            async def enter(manager: Any) -> Any:
                return await stack.enter_async_context(manager)

            async with Callers(flavour) as callers:
                started = [callers.start(enter, manager) for manager in opening]
                await until(lambda: len(server.requests) == count, seconds=60)
                # This one waits for its answer, so that all that comes is taken in.
                reading = callers.start(client.get, f"{server.url}/reading")
                await finished(*started, seconds=60)
                (outcome,) = await finished(reading, seconds=60)
            assert len(getattr(outcome, "content", b"")) == 3 * MIB, outcome
            assert sent[0] <= LIMIT + KERNEL
            assert len(server.peers) == 1
        await until(lambda: in_use(client) == (0, 0))


@ASYNC
async def test_a_slow_reader_does_not_starve_a_fast_one(flavour: Flavour) -> None:
    """One response is never read; another of ten times any window comes to its end meanwhile."""

    def script(peer: Peer) -> None:
        slow, fast = peer.request(), peer.request()
        peer.send(peer.head(slow), peer.head(fast))
        peer.flood(slow, quiet=0.1)
        size = 40 * MIB
        while size:
            for stream in (slow, fast):
                piece = min(peer.room(stream), 16384, size)
                if piece > 0:
                    peer.push(stream, piece)
                    size -= piece if stream == fast else 0
            if peer.room(fast) <= 0:
                peer.read()
        peer.send(peer.data(fast, b"", end=True))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            opening = callers.start(
                client.send, client.build_request("GET", f"{server.url}/slow"), stream=True
            )
            await until(lambda: server.requests)
            received = 0
            async with client.stream("GET", f"{server.url}/fast") as response:
                async for chunk in response.aiter_raw():
                    received += len(chunk)
            assert received == 40 * MIB
            (slow,) = await finished(opening)
            await slow.aclose()


async def test_the_window_grows_for_a_reader_that_keeps_up(flavour: Flavour) -> None:
    """A download that is read as it comes lets the server be far more than 64 KiB ahead."""
    ahead: list[int] = []

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream))
        size = 24 * MIB
        while size:
            while (room := peer.room(stream)) <= 0:
                peer.read()
            ahead.append(room)
            piece = min(size, room, 16384)
            peer.push(stream, piece)
            size -= piece
            with contextlib.suppress(TimeoutError):
                while len(ahead) % 16 == 0:
                    peer.read(0.0005)
        peer.send(peer.data(stream, b"", end=True))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with flavour.using(client.stream("GET", server.url)) as response:
            received = 0
            async for chunk in flavour.chunks(response):
                received += len(chunk)
        assert received == 24 * MIB
        assert max(ahead) >= 4 * 65536


@ASYNC
async def test_bodies_given_up_do_not_use_the_window_up(flavour: Flavour) -> None:
    """Sixty streams of 1 MiB each that are closed unread, then one that is read."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(Gone):
            while True:
                stream = peer.request()
                peer.send(peer.head(stream))
                if peer.paths[stream] == "/last":
                    peer.deliver(stream, MIB)
                else:
                    left = MIB
                    while left > 0 and peer.room(stream) > 0:
                        piece = min(left, peer.room(stream), 16384)
                        peer.push(stream, piece)
                        left -= piece

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=4)
        for _ in range(60):
            async with client.stream("GET", f"{server.url}/given-up"):
                pass
        response = await client.get(f"{server.url}/last")
        assert len(response.content) == MIB
        assert len(server.peers) == 1


@pytest.mark.time_limit(40)
async def test_padding_counts_and_is_given_back(flavour: Flavour) -> None:
    """A body that is nearly all padding, and larger than the windows, comes to its end."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        while not peer.received:
            peer.read()
        with contextlib.suppress(TimeoutError):
            while True:
                peer.read(0.05)
        peer.send(peer.head(stream))
        total = min(peer.room(stream), 17 * MIB) + MIB
        frames, room = 0, peer.room(stream)
        while total > 0:
            batch = min(64, peer.room(stream) // 257)
            if not batch:
                peer.read()
                continue
            peer.push(stream, 1, padding=255, times=batch)
            frames += batch
            total -= batch * 257
        assert room > 0
        counts.append(frames)
        peer.send(peer.data(stream, b"", end=True))
        peer.rest()

    counts: list[int] = []
    with H2Peer(script) as server:
        client = one_attempt(flavour)
        response = await flavour.run(client.get(server.url))
        assert len(response.content) == counts[0]
        assert in_use(client) == (0, 0)


@ASYNC
async def test_padding_for_streams_that_are_gone_is_given_back(flavour: Flavour) -> None:
    """What comes for a request that was cancelled counts against the connection's window."""
    cancelled, sent = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        stream = peer.request()
        assert cancelled.wait(5)
        before = peer.sent[0]
        while peer.sent[0] - before < 2 * MIB and peer.room(stream) > 16384:
            peer.push(stream, 16000, padding=200)
        sent.set()
        other = peer.request()
        peer.send(peer.head(other))
        peer.deliver(other, 40 * MIB)  # more than any window of a connection
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        with anyio.move_on_after(0.2):
            await client.get(server.url)
        cancelled.set()
        await until(sent.is_set)
        async with client.stream("GET", f"{server.url}/other") as response:
            received = 0
            async for chunk in response.aiter_raw():
                received += len(chunk)
        assert received == 40 * MIB
        assert len(server.peers) == 1


# --- a server that talks during an upload --------------------------------------------------------


class Talker:
    """Sends without an end, reads nothing, and counts."""

    def __init__(self, first: bytes, again: bytes) -> None:
        self.first, self.again = first, again
        self.sent = 0
        self.over = False

    def __call__(self, connection: Connection) -> None:
        connection.open = False
        sock = connection.sock
        sock.settimeout(0.1)
        with contextlib.suppress(ConnectionError, OSError):
            sock.sendall(self.first)
            while not connection.server.stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    self.sent += socket.socket.send(sock, self.again)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"
TALK = {
    "an answer without an end": (HEAD, b"x" * 65536),
    "headers without an end": (b"HTTP/1.1 200 OK\r\n", b"X-Name: value\r\n" * 4000),
}


@pytest.mark.parametrize("talk", TALK)
async def test_a_server_that_talks_during_an_upload(flavour: Flavour, talk: str) -> None:
    """HTTP/1.1, and the upload is not read: what the server says is not taken in without bound."""
    talker = Talker(*TALK[talk])
    with ScriptedServer([Step(read="head", then=talker)]) as server:
        client = one_attempt(flavour, write_timeout=1.0, read_timeout=1.0)
        body = b"x" * 60_000_000
        request = client.build_request("POST", server.url, content=body)
        with within(5):
            outcome = await flavour.outcome(client.send, request, stream=True)
        sent = talker.sent
        if isinstance(outcome, httpx.Response):
            await flavour.close(outcome)
        else:
            assert isinstance(outcome, httpx.TransportError)
        assert sent < KERNEL + MIB
        assert in_use(client) == (0, 0)


@pytest.mark.filterwarnings("ignore:Async generator")  # the body itself, which trio tells of
async def test_a_generator_s_upload_is_bounded_too(flavour: Flavour) -> None:
    """The same when the body comes in small pieces, each a write of its own."""
    talker = Talker(HEAD, b"x" * 65536)
    pieces = [b"x" * 8192] * 20_000
    with ScriptedServer([Step(read="head", then=talker)]) as server:
        client = one_attempt(flavour, write_timeout=1.0, read_timeout=1.0)
        content = flavour.generator(pieces)
        request = client.build_request("POST", server.url, content=content)
        with within(6):
            outcome = await flavour.outcome(client.send, request, stream=True)
        sent = talker.sent
        if isinstance(outcome, httpx.Response):
            await flavour.close(outcome)
        assert sent < KERNEL + MIB


async def test_a_response_is_read_at_the_reader_s_pace(flavour: Flavour) -> None:
    """HTTP/1.1: what the caller has not asked for stays in the kernel and at the server."""
    talker = Talker(HEAD, b"x" * 65536)
    with ScriptedServer([Step(then=talker)]) as server:
        client = one_attempt(flavour)
        async with flavour.using(client.stream("GET", server.url)) as response:
            chunks = flavour.chunks(response)
            assert await anext(chunks)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                await anyio.sleep(0.05)
            assert talker.sent < KERNEL + MIB
            await chunks.aclose()


async def test_a_server_that_talks_and_never_reads_is_not_listened_to(flavour: Flavour) -> None:
    """Each PING wants an answer: what waits to be sent is bounded, and the call ends in time."""
    sent: list[int] = []

    def script(peer: Peer) -> None:
        peer.request()
        ping = PingFrame(0, opaque_data=b"8 octets").serialize() * 1000
        with contextlib.suppress(OSError, Gone):
            for number in range(1000):
                sent.append(number * len(ping))
                peer.raw(ping)  # 17 MB in all, were they taken

    small = [(socket.SOL_SOCKET, option, 4096) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    with H2Peer(script) as server:
        transport = flavour.transport(http2=True, verify=client_context(), socket_options=small)
        client = flavour.plain(transport=transport, timeout=httpx.Timeout(5, read=1.0))
        outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.ReadTimeout | httpx.RemoteProtocolError | httpx.ReadError)
        assert max(sent) < KERNEL
        await flavour.close(client)
