"""A shared HTTP/2 connection: what befalls one request is that request's alone.

Subject: `transport/_http2_waiting.py`, `transport/_http2.py`.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
import trio
from conftest import Flavour
from h2_peer import CANCEL, Gone, H2Peer, Peer, serve
from helpers import (
    ASYNC,
    PROMPT,
    Callers,
    finished,
    generators_left,
    in_use,
    one_attempt,
    one_connection,
    until,
    within,
)
from hyperframe.frame import (
    DataFrame,
    ExtensionFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)
from servers import client_context

from httpx_production import RetryPolicy
from httpx_production.transport import _runtime

pytestmark = [pytest.mark.anyio, generators_left, one_connection]

BODY = b"x" * 30_000_000  # more than all buffers between client and server take
WIDE = {"INITIAL_WINDOW_SIZE": 2**30}


class Scene:
    """A server with a victim and two neighbours on one connection.

    What it does to "/victim" is the test's; "/1" and "/2" are answered after `release`, then all
    that comes later is. Every frame must be one that HTTP/2 knows.
    """

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.release = threading.Event()
        self.settings = {
            "upload, no window": {"INITIAL_WINDOW_SIZE": 0},
            "upload, peer does not read": WIDE,
            "waiting for a stream": {"MAX_CONCURRENT_STREAMS": 2},
        }.get(phase, {})
        self.victim_seen = threading.Event()

    def __call__(self, peer: Peer) -> None:
        if self.settings == WIDE:
            peer.send(self.window())
        while not self.release.is_set():
            with contextlib.suppress(TimeoutError):
                self.take(peer.read(0.02), peer)
        with contextlib.suppress(TimeoutError):  # the three are not for serve() to answer
            while peer.request(0.001):
                pass
        for stream, path in list(peer.paths.items()):
            if path in ("/1", "/2"):
                peer.echo(stream)
        serve(peer)
        assert not any(isinstance(frame, ExtensionFrame) for frame in peer.received)
        assert not any(body.strip(b"x") for body in peer.bodies.values()), "not the body"

    @staticmethod
    def window() -> Any:
        from hyperframe.frame import WindowUpdateFrame

        return WindowUpdateFrame(0, window_increment=2**30)

    def take(self, frame: Any, peer: Peer) -> None:
        if not isinstance(frame, HeadersFrame) or peer.paths[frame.stream_id] != "/victim":
            return
        self.victim_seen.set()
        if self.phase == "body":
            peer.send(peer.head(frame.stream_id), peer.data(frame.stream_id, b"part"))
        elif self.phase == "upload, peer does not read":
            self.release.wait(10)

    def call(self, client: Any, url: str, **options: Any) -> Any:
        method = "POST" if self.phase.startswith("upload") else "GET"
        content = BODY if method == "POST" else None
        return client.request(method, f"{url}/victim", content=content, **options)


PHASES = [
    "headers",
    "body",
    "upload, no window",
    "upload, peer does not read",
    "waiting for a stream",
]


async def neighbours(
    client: Any, scene: Scene, server: H2Peer, victim: Callable[[], Any], connections: int = 1
) -> None:
    """Two requests, then the victim's; when it has ended the two are answered, and a later one.

    That one may go to a second connection when the first was silent until a timeout.
    """
    async with anyio.create_task_group() as tasks:
        outcomes: dict[str, Any] = {}

        async def call(path: str) -> None:
            try:
                outcomes[path] = (await client.get(server.url + path)).text
            except Exception as exc:
                outcomes[path] = exc

        tasks.start_soon(call, "/1")
        await until(lambda: len(server.requests) == 1)
        tasks.start_soon(call, "/2")
        await until(lambda: len(server.requests) == 2)
        try:
            await victim()
        finally:
            scene.release.set()
    assert outcomes == {"/1": "/1", "/2": "/2"}
    assert (await client.get(f"{server.url}/later")).text == "/later"
    assert len(server.peers) <= connections
    assert in_use(client) == (0, 0)


# --- the ways in which a call is given up --------------------------------------------------------


async def by_anyio_deadline(call: Callable[[], Any]) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(0.5):
        await call()


async def by_asyncio_timeout(call: Callable[[], Any]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await call()


async def by_task_cancel(call: Callable[[], Any]) -> None:
    task = asyncio.ensure_future(call())
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_trio_deadline(call: Callable[[], Any]) -> None:
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.5):
        await call()


async def by_trio_cancel(call: Callable[[], Any]) -> None:
    async def cancel() -> None:
        await trio.sleep(0.5)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel)
            await call()
    assert scope.cancelled_caught


WAYS = {
    "asyncio": [by_anyio_deadline, by_asyncio_timeout, by_task_cancel],
    "trio": [by_anyio_deadline, by_trio_deadline, by_trio_cancel],
}


@ASYNC
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_call_that_is_given_up_ends_alone(
    flavour: Flavour, phase: str, number: int
) -> None:
    """However it is cancelled and wherever it stands: in time, with the canceller's exception."""
    give_up = WAYS[flavour.name][number]
    scene = Scene(phase)
    with H2Peer(scene, serve, settings=scene.settings) as server:
        client = one_attempt(
            flavour, max_connections=1, pool_timeout=8, write_timeout=8, read_timeout=8
        )

        async def victim() -> None:
            with within(0.5 + PROMPT, at_least=0.4):
                await give_up(lambda: scene.call(client, server.url))

        await neighbours(client, scene, server, victim)


@ASYNC
@pytest.mark.parametrize(
    ("phase", "limit", "error"),
    [
        ("headers", "read_timeout", httpx.ReadTimeout),
        ("body", "read_timeout", httpx.ReadTimeout),
        ("upload, no window", "write_timeout", httpx.WriteTimeout),
        ("upload, peer does not read", "write_timeout", httpx.WriteTimeout),
        ("waiting for a stream", "pool_timeout", httpx.PoolTimeout),
    ],
)
async def test_a_timeout_ends_one_call(
    flavour: Flavour, phase: str, limit: str, error: type[Exception]
) -> None:
    """Each phase's own timeout, after its own time, while the neighbours wait on."""
    scene = Scene(phase)
    with H2Peer(scene, serve, settings=scene.settings) as server:
        client = one_attempt(flavour, max_connections=1)
        timeout: Any = {"connect": 8, "pool": 8, "read": 8, "write": 8}
        timeout[limit.removesuffix("_timeout")] = 0.5

        async def victim() -> None:
            with within(0.5 + PROMPT, at_least=0.4), pytest.raises(error):
                await scene.call(client, server.url, timeout=httpx.Timeout(**timeout))

        await neighbours(client, scene, server, victim, connections=2)


@ASYNC
@pytest.mark.parametrize("phase", PHASES)
async def test_total_timeout_ends_one_call(flavour: Flavour, phase: str) -> None:
    """The client's own deadline is no different: one call ends, in time."""
    scene = Scene(phase)
    with H2Peer(scene, serve, settings=scene.settings) as server:
        client = one_attempt(
            flavour, max_connections=1, pool_timeout=8, write_timeout=8, read_timeout=8
        )

        async def victim() -> None:
            retry = {"retry": RetryPolicy(max_attempts=1, total_timeout=0.5)}
            with within(0.5 + PROMPT, at_least=0.4), pytest.raises(httpx.TimeoutException):
                await scene.call(client, server.url, extensions=retry)

        await neighbours(client, scene, server, victim, connections=2)


@ASYNC
async def test_a_given_up_request_is_reset_on_the_wire(flavour: Flavour) -> None:
    """The server is told (CANCEL), so that it can stop working for nobody."""
    frames: list[Any] = []

    def script(peer: Peer) -> None:
        stream = peer.request()
        frames.append(peer.until(RstStreamFrame, stream))
        serve(peer)

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        with anyio.move_on_after(0.2):
            await client.get(server.url)
        await until(lambda: frames)
        assert frames[0].error_code == CANCEL


@ASYNC
async def test_many_cancelled_uploads_leave_whole_frames(flavour: Flavour) -> None:
    """Forty uploads, cancelled at any moment: the server's parser never sees half a frame."""

    def script(peer: Peer) -> None:
        peer.send(Scene.window())
        with contextlib.suppress(Exception):
            while True:
                frame = peer.read()
                assert not isinstance(frame, ExtensionFrame)
                if isinstance(frame, DataFrame):
                    time.sleep(0.0005)  # so that uploads have to wait
                if "END_STREAM" in frame.flags and peer.paths.get(frame.stream_id) == "/ping":
                    peer.echo(frame.stream_id)

    with H2Peer(script, settings=WIDE) as server:
        client = one_attempt(flavour, write_timeout=8)

        async def upload(number: int) -> None:
            with anyio.move_on_after(0.02 * (number % 10) + 0.001 * number):
                await client.post(f"{server.url}/upload", content=BODY)

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(upload, number)
            assert (await client.post(f"{server.url}/ping", content=b"x" * 100)).text == "/ping"
        # One that was left with frames still to be written is not kept for others.
        assert len(server.peers) <= 3
        assert in_use(client) == (0, 0)


# --- reading for all -----------------------------------------------------------------------------


@ASYNC
@pytest.mark.parametrize("position", [0, 1, 3])
async def test_whoever_reads_for_all_hands_it_over(flavour: Flavour, position: int) -> None:
    """The first request, one in the middle or the last one is cancelled; data comes after that."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        streams = [peer.request() for _ in range(4)]
        peer.until(RstStreamFrame, streams[position])
        gone.set()
        time.sleep(0.1)
        for stream in streams[:position] + streams[position + 1 :]:
            peer.send(peer.head(stream), peer.data(stream, b"a"))
            time.sleep(0.02)
            peer.send(peer.data(stream, b"b", end=True))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=3.0)
        async with Callers(flavour) as callers:
            started = []
            for number in range(4):
                started.append(callers.start(client.get, f"{server.url}/{number}"))
                await until(lambda seen=number: len(server.requests) > seen)
            started[position].scope.cancel()
            await until(gone.is_set)
            others = started[:position] + started[position + 1 :]
            outcomes = await finished(*others)
            assert [getattr(one, "text", one) for one in outcomes] == ["ab"] * 3


@ASYNC
async def test_a_request_cancelled_as_it_begins_leaves_nobody_unread(flavour: Flavour) -> None:
    """An idle connection is looked at before its use: cancelled there, it hands the reading on."""

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        while True:
            stream = peer.request()
            time.sleep(0.002)
            peer.echo(stream)

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=3.0)
        await client.get(server.url)
        for turns in range(40):
            async with Callers(flavour) as callers:
                cancelled = callers.start(client.get, f"{server.url}/cancelled")
                for _ in range(turns % 20):
                    await anyio.lowlevel.checkpoint()
                kept = [callers.start(client.get, f"{server.url}/{n}") for n in range(2)]
                if turns >= 20:
                    await anyio.lowlevel.checkpoint()
                cancelled.scope.cancel()
                outcomes = await finished(*kept)
                assert [getattr(one, "text", one) for one in outcomes] == ["/0", "/1"], turns
        assert in_use(client) == (0, 0)


@ASYNC
async def test_a_lost_connection_is_an_exception_of_one_s_own(flavour: Flavour) -> None:
    """Ten neighbours get ten exceptions: no shared traceback, request or notes."""

    def script(peer: Peer) -> None:
        for _ in range(10):
            peer.request()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(10)]
        with within(6):
            outcomes = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert {type(one) for one in outcomes} <= {httpx.RemoteProtocolError, httpx.ReadError}
        chains = [one.__cause__ or one.__context__ or one for one in outcomes]
        assert len({id(one) for one in outcomes}) == len({id(one) for one in chains}) == 10
        assert [str(one.request.url) for one in outcomes] == urls
        assert client.pool_stats().connections == 0


@ASYNC
async def test_a_neighbour_s_garbage_body_is_its_own_trouble(flavour: Flavour) -> None:
    """A caller's body that raises ends the caller's request; the others are answered."""
    scene = Scene("headers")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with H2Peer(scene, serve) as server:
        client = one_attempt(flavour)

        async def victim() -> None:
            with within(PROMPT), pytest.raises(ZeroDivisionError):
                await client.post(f"{server.url}/victim", content=pieces())

        await neighbours(client, scene, server, victim)


# --- clean-up ------------------------------------------------------------------------------------


@ASYNC
@pytest.mark.parametrize("kind", ["deadline", "scope"])
async def test_clean_up_is_not_cancelled(flavour: Flavour, kind: str) -> None:
    """A cancelled stream in a cancelled scope is given back: reset on the wire, nothing in use."""
    frames: list[Any] = []

    def script(peer: Peer) -> None:
        for _ in range(3):
            stream = peer.request()
            peer.send(peer.head(stream), peer.data(stream, b"part"))
            frames.append(peer.until(RstStreamFrame, stream))
        serve(peer)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 1}) as server:
        client = one_attempt(flavour, max_connections=1)
        for _ in range(3):
            with anyio.CancelScope() as scope:
                if kind == "deadline":
                    scope.deadline = anyio.current_time() + 0.2
                async with client.stream("GET", server.url) as response:
                    async for _ in response.aiter_raw():
                        if kind == "scope":
                            scope.cancel()
                    pytest.fail("the body has no end")
            assert scope.cancelled_caught
            assert in_use(client) == (0, 0)
        assert (await client.get(f"{server.url}/x")).text == "/x"
        assert len(frames) == 3
        assert len(server.peers) == 1


# --- other tasks ---------------------------------------------------------------------------------


class Turns:
    """Counts how often another task gets its turn."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        while True:
            self.count += 1
            await anyio.lowlevel.checkpoint()


@ASYNC
async def test_an_upload_that_never_has_to_wait_lets_others_run(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Socket and windows take all of its pieces at once: now and then, not at each."""
    monkeypatch.setattr(_runtime.Turn, "SHARE", 16 * 1024)
    turns, taken = Turns(), 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b"x"
        before = turns.count
        for _ in range(60):
            yield bytes(1000)
        taken = turns.count - before

    with H2Peer() as server:
        client = one_attempt(flavour)
        await client.get(server.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turns)
            await client.post(server.url, content=pieces())
            tasks.cancel_scope.cancel()
    assert 3 <= taken < 30


@ASYNC
async def test_a_download_that_never_has_to_wait_lets_others_run(flavour: Flavour) -> None:
    """All of it is here when the reader begins, in many small pieces: not all in one go."""
    turns, sent = Turns(), threading.Event()

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream))
        for _ in range(80):  # TLS records: no more than is read from the socket at a time
            peer.push(stream, 500)
        sent.set()
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with (
            anyio.create_task_group() as tasks,
            client.stream("GET", server.url) as response,
        ):
            assert sent.wait(5)  # in the event loop: nobody reads meanwhile
            tasks.start_soon(turns)
            chunks, left = flavour.chunks(response), 80 * 500
            while left:
                left -= len(await anext(chunks))
            assert turns.count >= 10
            await chunks.aclose()
            tasks.cancel_scope.cancel()


# --- limits of a connection ----------------------------------------------------------------------


@ASYNC
@pytest.mark.parametrize("limit", [None, 1000])
async def test_at_most_a_hundred_streams_at_a_time(flavour: Flavour, limit: int | None) -> None:
    """Whatever the server allows: the others wait for their turn."""
    together: list[int] = []

    def script(peer: Peer) -> None:
        streams: list[int] = []
        while sum(together) < 150:
            try:
                streams.append(peer.request(0.4))
            except TimeoutError:
                if streams:
                    together.append(len(streams))
                for stream in streams:
                    peer.echo(stream)
                streams = []
        peer.rest()

    settings = {} if limit is None else {"MAX_CONCURRENT_STREAMS": limit}
    with H2Peer(script, settings=settings) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        urls = [f"{server.url}/{number}" for number in range(150)]
        answers = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert [getattr(one, "text", one) for one in answers] == [f"/{n}" for n in range(150)]
        assert max(together) == 100


@ASYNC
async def test_settings_that_raise_the_limit_wake_who_waits(flavour: Flavour) -> None:
    """One stream at first, taken by an endless one; then five: the waiting go on at once."""
    more = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        assert more.wait(5)
        peer.settings(MAX_CONCURRENT_STREAMS=5)
        serve(peer)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 1}) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=8)
        async with Callers(flavour) as callers:
            endless = callers.start(client.get, f"{server.url}/endless")
            await until(lambda: server.requests)
            waiting = [callers.start(client.get, f"{server.url}/{n}") for n in range(3)]
            await until(lambda: client.pool_stats().waiting == 3)
            more.set()
            outcomes = await finished(*waiting, seconds=3)
            assert [getattr(one, "text", one) for one in outcomes] == ["/0", "/1", "/2"]
            assert not endless.done.is_set()
            endless.scope.cancel()


async def test_max_header_list_size_is_announced(flavour: Flavour) -> None:
    """64 KiB of headers at most, told in the first SETTINGS; and no push."""
    with H2Peer() as server:
        await flavour.run(one_attempt(flavour).get(server.url))
        peer = server.peers[0]
        assert peer.announced("MAX_HEADER_LIST_SIZE", 0) == 65536
        assert peer.announced("ENABLE_PUSH", 1) == 0


async def test_an_early_answer_ends_the_upload_with_a_reset(flavour: Flavour) -> None:
    """The whole answer before the upload: it is returned at once, the stream is not left open."""
    resets: list[int] = []

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream, status=413), peer.data(stream, b"too large", end=True))
        resets.append(peer.until(RstStreamFrame, stream).stream_id)
        serve(peer)

    with H2Peer(script) as server:
        client = one_attempt(flavour, write_timeout=8)
        with within(PROMPT):
            response = await flavour.run(client.post(server.url, content=b"x" * 300_000))
        assert (response.status_code, response.content) == (413, b"too large")
        assert in_use(client) == (0, 0)
        assert (await flavour.run(client.get(f"{server.url}/next"))).text == "/next"
        await until(lambda: resets or flavour.sync)  # a sync connection may be closed instead


@pytest.mark.flavours("sync")
async def test_threads_are_no_neighbours(flavour: Flavour) -> None:
    """A sync connection carries one request at a time, so nothing can befall two of them."""
    open_at_once: list[int] = []

    def script(peer: Peer) -> None:
        while True:
            stream = peer.request()
            with contextlib.suppress(TimeoutError):
                peer.request(0.05)
                open_at_once.append(stream)
            peer.echo(stream)

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        answers = await flavour.gather(lambda: client.get(server.url) for _ in range(12))
        assert [getattr(one, "status_code", one) for one in answers] == [200] * 12
        assert open_at_once == []


@ASYNC
@pytest.mark.parametrize("comes", ["at once", "after a PING", "late", "late, after two records"])
async def test_what_an_upload_has_taken_from_the_socket_is_read(
    flavour: Flavour, comes: str
) -> None:
    """It looks for an early answer, at one TLS record: which may be all of another one's.

    Or the next one is. Which may be no news, either, and no reason to give up.
    """
    late = comes.startswith("late")
    waits, blocked, sent = threading.Event(), threading.Event(), threading.Event()
    answered = anyio.Event()

    def script(peer: Peer) -> None:
        reader = peer.request()
        peer.send(PingFrame(0, opaque_data=b"12345678"))
        peer.until(PingFrame)  # what came before was read
        waits.set()
        upload = peer.request()
        peer.until(DataFrame, upload)
        assert blocked.wait(5)
        if late:
            for _ in range(1 if comes == "late" else 2):
                peer.send(WindowUpdateFrame(0, window_increment=1))
        else:
            if comes == "after a PING":
                peer.send(PingFrame(0, opaque_data=b"12345678"))
            peer.echo(reader)
        sent.set()
        while peer.bodies[upload] != (b"abc" if late else b"ab"):
            peer.read()
        if late:
            server.stopping.wait(0.1)
            peer.echo(reader)
        while "END_STREAM" not in peer.until(DataFrame, upload).flags:
            pass  # and nothing is sent
        peer.echo(upload)
        peer.rest()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await anyio.wait_all_tasks_blocked()
        blocked.set()
        assert sent.wait(5)  # in the event loop: nobody else sees that there is something
        yield b"b"
        if late:
            yield b"c"
        await answered.wait()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            reader = callers.start(client.get, f"{server.url}/reader")
            await until(waits.is_set)
            upload = callers.start(client.post, f"{server.url}/upload", content=body())
            with within(PROMPT):
                (answer,) = await finished(reader)
            answered.set()
            (posted,) = await finished(upload)
        assert (answer.text, posted.text) == ("/reader", "/upload")


def small_buffers(flavour: Flavour, server: H2Peer, **timeout: float) -> Any:
    """A client and a server whose sockets take little."""
    sizes = [(socket.SOL_SOCKET, name, 2**16) for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    for size in sizes:
        server._listener.setsockopt(*size)
    transport = flavour.transport(verify=client_context(), http2=True, socket_options=sizes)
    return flavour.plain(transport=transport, timeout=httpx.Timeout(8, **timeout))


@contextlib.contextmanager
def deaf(
    says: Callable[[Peer], None] | None = None,
) -> Iterator[tuple[H2Peer, threading.Event]]:
    """A server that answers once, reads on when the event is set, and then answers everything.

    Or then says something, and reads no more.
    """
    hears = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(Scene.window())
        peer.echo(peer.request())
        assert hears.wait(15)
        if says is not None:
            says(peer)
            server.stopping.wait(15)
        with contextlib.suppress(Gone):
            while True:
                frame = peer.read()
                if "END_STREAM" in frame.flags:
                    peer.echo(frame.stream_id)

    with H2Peer(script, settings=WIDE) as server:
        try:
            yield server, hears
        finally:
            hears.set()


@ASYNC
async def test_whoever_writes_for_all_hands_it_over(flavour: Flavour) -> None:
    """An upload that waits for the socket is cancelled: the one behind it goes on at once."""
    with deaf() as (server, hears):
        client = small_buffers(flavour, server)
        await client.get(f"{server.url}/first")
        async with Callers(flavour) as callers:
            cancelled = callers.start(client.put, f"{server.url}/cancelled", content=BODY)
            await anyio.wait_all_tasks_blocked()
            behind = callers.start(client.put, f"{server.url}/behind", content=bytes(500_000))
            await anyio.wait_all_tasks_blocked()
            cancelled.scope.cancel()
            await finished(cancelled)
            hears.set()
            with within(PROMPT):
                (answer,) = await finished(behind)
            assert getattr(answer, "text", answer) == "/behind"
        assert len(server.peers) == 1


@ASYNC
@pytest.mark.parametrize("says", ["answer", "garbage"])
async def test_an_upload_that_is_not_read_is_told_its_end(flavour: Flavour, says: str) -> None:
    """A neighbour reads its early answer, or what is no HTTP/2; the server still doesn't read."""

    def say(peer: Peer) -> None:
        if says == "answer":
            peer.send(peer.head(5, status=413, end=True))
        else:
            peer.raw(b"\0\0\1\0\0\0\0\0\0x")  # DATA on stream 0

    with deaf(say) as (server, go):
        client = small_buffers(flavour, server)
        await client.get(f"{server.url}/first")
        async with Callers(flavour) as callers:
            reader = callers.start(client.get, server.url)
            await anyio.wait_all_tasks_blocked()
            upload = callers.start(client.put, server.url, content=BODY)  # stream 5
            await anyio.wait_all_tasks_blocked()
            go.set()
            with within(PROMPT):
                (outcome,) = await finished(upload)
            reader.scope.cancel()
        if says == "answer":
            assert getattr(outcome, "status_code", outcome) == 413
        else:
            assert isinstance(outcome, httpx.RemoteProtocolError)
        assert len(server.peers) == 1


@ASYNC
async def test_headers_that_are_not_taken_time_out(flavour: Flavour) -> None:
    """They stand behind an upload that the server doesn't read: `write_timeout` bounds that."""
    with deaf() as (server, _):
        client = small_buffers(flavour, server)
        await client.get(f"{server.url}/first")
        async with Callers(flavour) as callers:
            upload = callers.start(client.put, f"{server.url}/upload", content=BODY)
            await anyio.wait_all_tasks_blocked()
            headers = {f"x-{n}": "x" * 4000 for n in range(20)}  # more than there is room for
            timeout = httpx.Timeout(8.0, write=0.3)
            with within(0.3 + PROMPT, at_least=0.2), pytest.raises(httpx.WriteTimeout):
                await client.get(server.url, headers=headers, timeout=timeout)
            upload.scope.cancel()


@ASYNC
async def test_answers_are_read_while_uploads_stand_in_line(flavour: Flavour) -> None:
    """A server that answers before it reads on would never do it, nor read."""

    def script(peer: Peer) -> None:
        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        peer.echo(peer.request())
        streams = [peer.request() for _ in range(30)]
        server.stopping.wait(0.3)  # until the uploads fill the buffers
        for stream in streams:
            if peer.methods[stream] == "GET":
                peer.send(peer.head(stream), *[peer.data(stream, bytes(16_000))] * 8)
                peer.send(peer.data(stream, b"", end=True))
        with contextlib.suppress(Gone):
            while True:
                frame = peer.read()
                if "END_STREAM" in frame.flags:
                    peer.echo(frame.stream_id)

    with H2Peer(script, settings=WIDE) as server:
        client = small_buffers(flavour, server)
        assert (await flavour.run(client.get(f"{server.url}/first"))).text == "/first"
        post = partial(client.post, f"{server.url}/up", content=bytes(500_000))
        with within(8):
            answers = await flavour.gather([partial(client.get, server.url)] * 20 + [post] * 10)
        assert [len(one.content) for one in answers] == [128_000] * 20 + [3] * 10


@ASYNC
@pytest.mark.parametrize("window", [2**16, 2**30])
async def test_uploads_wait_for_each_other(flavour: Flavour, window: int) -> None:
    """On a slow line all of them take longer than write_timeout: as long as it moves, they wait."""

    def script(peer: Peer) -> None:
        peer.send(WindowUpdateFrame(0, window_increment=window))
        with contextlib.suppress(Gone):
            while True:
                frame = peer.read()
                if isinstance(frame, DataFrame):
                    time.sleep(len(frame.data) / 500_000)
                    if frame.data:
                        peer.send(WindowUpdateFrame(0, window_increment=len(frame.data)))
                if "END_STREAM" in frame.flags:
                    peer.echo(frame.stream_id)

    with H2Peer(script, settings=WIDE) as server:
        client = small_buffers(flavour, server, write=1.0)
        assert (await flavour.run(client.get(f"{server.url}/first"))).text == "/first"
        with within(30, at_least=2):
            answers = await flavour.gather(
                lambda n=number: client.post(f"{server.url}/{n}", content=bytes(2**16))
                for number in range(24)
            )
        assert [getattr(one, "text", one) for one in answers] == [f"/{n}" for n in range(24)]
        assert len(server.peers) == 1


@pytest.mark.flavours("sync")
@pytest.mark.parametrize(
    ("phase", "phase_limit", "error"),
    [
        ("headers", "read", httpx.ReadTimeout),
        ("body", "read", httpx.ReadTimeout),
        ("upload, no window", "write", httpx.WriteTimeout),
        ("upload, peer does not read", "write", httpx.WriteTimeout),
    ],
)
async def test_a_sync_call_ends_in_time_over_http2(
    flavour: Flavour, phase: str, phase_limit: str, error: type[Exception]
) -> None:
    """Each phase's own timeout holds in the sync client as well, and the slot is free."""
    scene = Scene(phase)
    with H2Peer(scene, serve, settings=scene.settings) as server:
        client = one_attempt(flavour, max_connections=1)
        timeout: Any = {"connect": 8, "pool": 8, "read": 8, "write": 8, phase_limit: 0.5}
        with within(0.5 + PROMPT, at_least=0.4), pytest.raises(error):
            scene.call(client, server.url, timeout=httpx.Timeout(**timeout))
        assert in_use(client) == (0, 0)
        scene.release.set()
        assert client.get(f"{server.url}/later").text == "/later"
