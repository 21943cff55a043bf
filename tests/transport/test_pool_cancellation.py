"""No slot is lost, wherever a request is cancelled, interrupted or out of time."""

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from conftest import Flavour
from h2_peer import H2Peer, Peer
from helpers import ASYNC, SYNC, generators_left, one_attempt
from servers import Received, ScriptedServer, Step, chunked, echo, full_backlog, message

from httpx_production.transport import PoolStats

pytestmark = pytest.mark.anyio

KINDS = ("http", "https", "http2")
SHORT: Any = [(phase, 0.0001) for phase in ("connect", "pool", "read", "write")] + [("read", 0.005)]
STRESS = int(os.environ.get("HTTPX_PRODUCTION_STRESS", "1000"))  # requests of the thread test


def slowly(request: Received) -> Step:
    """The path as body, in two pieces, the first one late."""
    whole = message(200, request.path.encode())
    return Step(send=(whole[:-2], whole[-2:]), delay=0.004, pause=0.002)


def slowly_over_http2(peer: Peer) -> None:
    """The same, for many streams at a time."""
    due: deque[tuple[float, int]] = deque()
    while True:
        with contextlib.suppress(TimeoutError):
            wait = due[0][0] - time.monotonic() if due else 10.0
            due.append((time.monotonic() + 0.006, peer.request(max(wait, 0.0001))))
        while due and due[0][0] <= time.monotonic():
            _, stream = due.popleft()
            body = peer.paths[stream].encode()
            peer.send(peer.head(stream, ("content-length", str(len(body)))))
            peer.send(peer.data(stream, body[:-1]), peer.data(stream, body[-1:], end=True))


@contextlib.contextmanager
def serving(kind: str) -> Iterator[Any]:
    if kind == "http2":
        with H2Peer(slowly_over_http2) as server:
            yield server
    else:
        with ScriptedServer(slowly, tls=kind == "https") as server:
            yield server


async def assert_whole(flavour: Flavour, client: Any, url: str, size: int) -> None:
    """As many requests as there are connections are answered at once; nothing is left over."""
    urls = [f"{url}/after/{number}" for number in range(size)]
    answers = await flavour.gather(lambda url=url: client.get(url) for url in urls)
    assert [getattr(one, "text", one) for one in answers] == [
        f"/after/{number}" for number in range(size)
    ]
    stats = client.pool_stats()
    assert (stats.in_use, stats.waiting) == (0, 0)
    assert stats.connections <= size


# --- cancellation -----------------------------------------------------------------------------


@ASYNC
@generators_left
@pytest.mark.parametrize("kind", KINDS)
async def test_a_thousand_random_cancellations(flavour: Flavour, kind: str) -> None:
    """During connect, queueing, headers and body: ten slots before, ten slots after."""
    dice = random.Random(kind)
    ended: list[str] = []

    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=10, max_keepalive_connections=10)

        async def caller(number: int) -> None:
            for _ in range(25):
                with anyio.move_on_after(dice.choice((0, dice.uniform(0, 0.02)))) as scope:
                    response = await client.get(f"{server.url}/{number}")
                    assert response.text == f"/{number}"
                ended.append("cancelled" if scope.cancelled_caught else "answered")

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(caller, number)
        assert ended.count("cancelled") >= 1000
        await assert_whole(flavour, client, server.url, 10)


@ASYNC
@generators_left
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancellation_at_every_step(flavour: Flavour, kind: str) -> None:
    """After n turns of the event loop, for each n until the request is done: the slot is free."""
    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=1)
        for turns in (*range(30), *range(30, 300, 30)):
            async with anyio.create_task_group() as tasks:
                for number in range(3):  # one connects or reads, two wait for it
                    tasks.start_soon(client.get, f"{server.url}/{number}")
                for turn in range(turns):
                    await (anyio.lowlevel.checkpoint() if turn < 30 else anyio.sleep(0.0001))
                tasks.cancel_scope.cancel()
            stats = client.pool_stats()
            assert (stats.in_use, stats.waiting) == (0, 0), turns
            if turns % 5 == 0:
                await assert_whole(flavour, client, server.url, 1)


@ASYNC
@pytest.mark.parametrize("tls", [False, True])
async def test_a_cancelled_handshake_leaves_no_socket(flavour: Flavour, tls: bool) -> None:
    """Neither while connecting nor in the TLS handshake; ResourceWarnings are errors here."""
    with contextlib.ExitStack() as stack:
        if tls:
            server = stack.enter_context(ScriptedServer([Step(read="nothing", then="hang")]))
            url = server.url.replace("http:", "https:")
        else:
            url = stack.enter_context(full_backlog())
        client = one_attempt(flavour, max_connections=1)
        with anyio.move_on_after(0.1) as scope:
            await client.get(url)
        assert scope.cancelled_caught
        assert client.pool_stats() == PoolStats(0, 0, 0, 0)


@ASYNC
async def test_a_slot_handed_to_someone_cancelled_goes_on(flavour: Flavour) -> None:
    """Granted and cancelled in one turn of the event loop: the next one in line gets it."""
    with ScriptedServer(slowly) as server:
        client = one_attempt(flavour, max_connections=1)
        scope = anyio.CancelScope()

        async def unlucky() -> None:
            with scope:
                await client.get(f"{server.url}/unlucky")

        async def next_one() -> None:
            assert (await client.get(f"{server.url}/next")).text == "/next"

        async with client.stream("GET", server.url) as held, anyio.create_task_group() as tasks:
            tasks.start_soon(unlucky)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(next_one)
            await anyio.wait_all_tasks_blocked()
            await held.aclose()
            scope.cancel()
        assert [request.path for request in server.requests if request.path != "/"] == ["/next"]


@generators_left
@pytest.mark.parametrize("kind", KINDS)
async def test_timeouts_lose_no_slot(flavour: Flavour, kind: str) -> None:
    """Short timeouts of each phase, many at once: the pool is whole afterwards."""
    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=4)
        for phase, seconds in (*SHORT, *SHORT):
            timeout: Any = httpx.Timeout(1, **{phase: seconds})
            await flavour.gather(
                lambda t=timeout: client.get(server.url, timeout=t) for _ in range(12)
            )
            await assert_whole(flavour, client, server.url, 4)


@generators_left
@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_left_unread_gives_its_slot_back(flavour: Flavour, kind: str) -> None:
    """Closed before, in and after its body."""
    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=1)
        for reads in (0, 1, 99):
            async with flavour.using(client.stream("GET", f"{server.url}/abc")) as response:
                chunks = flavour.chunks(response)
                for _ in range(reads):
                    if await anext(chunks, None) is None:
                        break
                await chunks.aclose()
            await assert_whole(flavour, client, server.url, 1)


@generators_left
@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_that_raises_gives_its_slot_back(flavour: Flavour, kind: str) -> None:
    """The caller's own exception comes out, while his upload was under way."""

    def pieces() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    async def async_pieces() -> Any:
        for piece in pieces():
            yield piece

    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=1)
        body = pieces() if flavour.sync else async_pieces()
        with pytest.raises(ZeroDivisionError):
            await flavour.run(client.post(server.url, content=body))
        await assert_whole(flavour, client, server.url, 1)


async def test_a_body_that_breaks_off_gives_its_slot_back(flavour: Flavour) -> None:
    """At once, in plain httpx's client too, which closes only what was read to its end."""
    with ScriptedServer([chunked(b"part", end=b"", then="fin")]) as server:
        client = flavour.pooled()
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request, stream=True))
        with pytest.raises(httpx.RemoteProtocolError):
            await flavour.read(response)
        assert client._transport.pool_stats() == PoolStats(0, 0, 0, 0)
        await flavour.close(response)


# --- interruption -----------------------------------------------------------------------------


@SYNC
@pytest.mark.filterwarnings("ignore:unclosed")  # sockets half made, in ssl's code too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a __del__
@pytest.mark.parametrize("kind", KINDS)
async def test_ctrl_c_loses_no_slot(flavour: Flavour, kind: str) -> None:
    """KeyboardInterrupt from a real signal, at any moment of a request and of its wait."""
    dice = random.Random(kind)
    main = threading.get_ident()
    interrupted = 0

    def interrupt(delay: float) -> None:
        until = time.monotonic() + delay
        while time.monotonic() < until:
            pass
        signal.pthread_kill(main, signal.SIGUSR1)

    def handler(*args: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with serving(kind) as server:
            client = one_attempt(flavour, max_connections=4)
            for _ in range(100):
                thread = threading.Thread(target=interrupt, args=[dice.uniform(0, 0.012)])
                try:
                    thread.start()
                    client.get(server.url)
                    thread.join()
                    time.sleep(0.01)
                except KeyboardInterrupt:
                    interrupted += 1
                thread.join()
            assert interrupted > 90
            gc.collect()  # Ctrl-C in the clean-up itself: the garbage collector gives it back
            await assert_whole(flavour, client, server.url, 4)
    finally:
        signal.signal(signal.SIGUSR1, previous)


@generators_left
@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_that_is_forgotten_gives_its_slot_back(
    flavour: Flavour, kind: str
) -> None:
    """Neither read nor closed: when it is garbage, its connection is closed and replaced."""
    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=1)
        for _ in range(3):
            request = client.build_request("GET", server.url)
            await flavour.run(client.send(request, stream=True))
            gc.collect()
        await assert_whole(flavour, client, server.url, 1)


# --- threads ----------------------------------------------------------------------------------


@SYNC
@pytest.mark.time_limit(120)
@pytest.mark.parametrize("kind", KINDS)
async def test_fifty_threads_share_a_client(flavour: Flavour, kind: str) -> None:
    """None fails and every answer is its own, with the threads switching as fast as they can."""
    threads, each = 50, STRESS // 50
    failures: list[object] = []

    with contextlib.ExitStack() as stack:
        server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
        stack.enter_context(server)
        client = one_attempt(flavour, max_connections=20, pool_timeout=30.0)

        def caller(number: int) -> None:
            for turn in range(each):
                try:
                    path = f"/{number}/{turn}"
                    if (text := client.get(server.url + path).text) != path:
                        failures.append((path, text))
                except Exception as exc:
                    failures.append(exc)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        try:
            callers = [threading.Thread(target=caller, args=(n,)) for n in range(threads)]
            for one in callers:
                one.start()
            for one in callers:
                one.join()
        finally:
            sys.setswitchinterval(interval)
        assert failures == []
        stats = client.pool_stats()
        assert (stats.in_use, stats.waiting) == (0, 0)
        assert stats.connections <= 20
