"""Connecting, TLS, proxies and what a network stream tells: over real sockets.

Subject: `transport/_network.py`, `transport/_sockets.py`, `transport/_runtime.py`.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import resource
import select
import selectors
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpcore
import httpx
import pytest
from conftest import Flavour
from h2_peer import H2Peer
from helpers import ASYNC, PROMPT, Callers, finished, in_use, one_attempt, until, within
from servers import (
    LOOPBACK,
    ScriptedServer,
    Step,
    answer,
    client_context,
    echo,
    fill_backlog,
    forward,
    full_backlog,
    hang,
    message,
    refused_port,
    resolving,
    server_context,
)

from httpx_production.transport import (
    AsyncPooledTransport,
    PooledTransport,
    PoolStats,
    _network,
    _runtime,
    _sockets,
)

pytestmark = pytest.mark.anyio

NOTHING = PoolStats(0, 0, 0, 0)


# --- connecting -------------------------------------------------------------------------------


@contextlib.contextmanager
def resolving_to(monkeypatch: pytest.MonkeyPatch, *urls: str) -> Iterator[str]:
    """A name with these addresses, in this order."""
    ports = [httpx.URL(url).port for url in urls]

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (LOOPBACK, port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield f"http://{len(urls)}.test"
    monkeypatch.undo()


async def test_several_addresses_share_the_connect_timeout(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that don't answer take as long as one; a fourth that does is still reached."""
    with ScriptedServer(echo) as server, full_backlog() as deaf, refused_port() as shut:
        client = one_attempt(flavour, connect_timeout=0.6)
        with (
            resolving_to(monkeypatch, deaf, deaf, deaf) as url,
            within(0.6 + PROMPT, at_least=0.5),
            pytest.raises(httpx.ConnectTimeout),
        ):
            await flavour.run(client.get(url))
        with resolving_to(monkeypatch, deaf, shut, shut, server.url) as url:
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"
        with resolving_to(monkeypatch, shut, shut) as url, pytest.raises(httpx.ConnectError):
            await flavour.run(client.get(url))
        with (
            resolving_to(monkeypatch) as url,
            pytest.raises(httpx.ConnectError, match="no address"),
        ):
            await flavour.run(client.get(url))


async def test_no_limit_is_no_limit(flavour: Flavour) -> None:
    """`timeout=None` reaches the sockets."""
    with ScriptedServer(echo, tls=True) as server:
        client = flavour.client(verify=client_context(), timeout=None)
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"


async def test_a_failed_handshake_leaves_no_socket(flavour: Flavour) -> None:
    """An untrusted certificate, plain HTTP where TLS is expected: ResourceWarnings fail here."""
    with ScriptedServer(tls=True) as trusted, ScriptedServer() as plain:
        client = one_attempt(flavour, verify=True, connect_timeout=0.3)
        for url in (trusted.url, plain.url.replace("http:", "https:")):
            with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
                await flavour.run(client.get(url))
        assert client.pool_stats() == NOTHING


async def test_what_fails_below_is_httpcore_s_exception(flavour: Flavour) -> None:
    """Reading from and writing to a stream that was closed."""
    kind = _network.Backend if flavour.sync else _network.AsyncBackend
    with ScriptedServer(echo) as server:
        port = httpx.URL(server.url).port or 0
        stream: Any = await flavour.run(kind().connect_tcp(LOOPBACK, port, timeout=1.0))
        await flavour.run(stream.write(b""))
        with pytest.raises(httpcore.ReadTimeout):
            await flavour.run(stream.read(1, timeout=0.01))
        await flavour.close(stream)
        await flavour.close(stream)
        with pytest.raises(httpcore.ReadError):
            await flavour.run(stream.read(1))
        with pytest.raises(httpcore.WriteError):
            await flavour.run(stream.write(b"x"))


async def test_a_socket_that_is_closed_just_before_the_wait(flavour: Flavour) -> None:
    """By another thread, after the look at whether it is closed: an error, and no timeout."""
    with ScriptedServer(lambda _: hang()) as server:
        stream = await connected(flavour, server.url)
        await flavour.run(stream.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        stream.get_extra_info("socket").close()
        with within(PROMPT), pytest.raises(httpcore.ReadError, match=r"closed|descriptor"):
            await flavour.run(stream.read(1, timeout=5))


@pytest.mark.parametrize("levels", [1, 2])
async def test_decrypted_bytes_are_seen(flavour: Flavour, levels: int) -> None:
    """What TLS holds, in a tunnel through TLS too, counts as readable; select can't see it."""
    kind = _network.Backend if flavour.sync else _network.AsyncBackend
    context = client_context()
    with ScriptedServer(echo, tls=True) as server, ScriptedServer(forward, tls=True) as proxy:
        url = httpx.URL(server.url if levels == 1 else proxy.url)
        stream: Any = await flavour.run(kind().connect_tcp(LOOPBACK, url.port or 0, timeout=5))
        stream = await flavour.run(stream.start_tls(context, LOOPBACK, timeout=5))
        if levels == 2:
            target = httpx.URL(server.url).netloc
            await flavour.run(stream.write(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % target))
            assert b" 200 " in await flavour.run(stream.read(4096, timeout=5))
            stream = await flavour.run(stream.start_tls(context, LOOPBACK, timeout=5))
        await flavour.run(stream.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        assert await flavour.run(stream.read(1, timeout=5)) == b"H"
        assert stream.get_extra_info("is_readable")
        assert (await flavour.run(stream.read(4096, timeout=5))).endswith(b"/x")
        assert not stream.get_extra_info("is_readable")
        await flavour.close(stream)


async def test_an_address_is_not_looked_up(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it takes no thread: the program's own work may have them all."""
    original, threads = socket.getaddrinfo, set()

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return original(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for host in (LOOPBACK, "::1", "fe80::1%1"):
        found = await _runtime_result(flavour, runtime_of(flavour).resolve(host, 80, 5.0))
        assert found[0][4][1] == 80
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (65535, "Connection refused"),
        (65536, "no such port: 65536"),
        (99999, "no such port: 99999"),
    ],
)
async def test_a_port_that_does_not_exist_is_a_connect_error(
    flavour: Flavour, port: int, words: str
) -> None:
    """65535 is the last; getaddrinfo would make another of 99999, and anyio a group of errors."""
    client = flavour.client(max_attempts=1)
    exc = await flavour.outcome(client.get, f"http://127.0.9.99:{port}/")
    assert isinstance(exc, httpx.ConnectError)
    assert words in str(exc)


# --- proxies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy_tls", [False, True])
@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_through_a_proxy(flavour: Flavour, kind: str, proxy_tls: bool) -> None:
    """Forwarding and tunnels, TLS within TLS: connections are used again, and cleaned up."""
    with contextlib.ExitStack() as stack:
        server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
        stack.enter_context(server)
        proxy = stack.enter_context(ScriptedServer(forward, tls=proxy_tls))
        context = client_context() if proxy_tls else None
        client = one_attempt(flavour, proxy=httpx.Proxy(proxy.url, ssl_context=context))
        for number in range(3):
            response = await flavour.run(client.get(f"{server.url}/{number}"))
            assert response.text == f"/{number}"
        assert client.pool_stats() == PoolStats(1, 1, 0, 0)


@pytest.mark.parametrize("refusal", [answer(407), Step(then="fin"), answer(200, b"")])
async def test_a_tunnel_that_fails_keeps_no_slot(flavour: Flavour, refusal: Step) -> None:
    """Refused, closed, or without TLS at its end (httpcore loses that slot for ever)."""
    with ScriptedServer(lambda _: refusal) as proxy:
        client = one_attempt(flavour, proxy=proxy.url, max_connections=1, connect_timeout=0.2)
        for _ in range(2):
            with pytest.raises(httpx.TransportError) as caught:
                await flavour.run(client.get("https://127.0.0.1:1/"))
            assert not isinstance(caught.value, httpx.PoolTimeout)
        assert client.pool_stats() == NOTHING


class Socks:
    """A SOCKS5 proxy that says these things, one for each message, and then connects or closes."""

    OK = b"\x05\x00"
    CONNECTED = b"\x05\x00\x00\x01" + bytes(6)

    def __init__(self, *replies: bytes, target: str = "", stalls: bool = False) -> None:
        self._replies, self._stalls = replies, stalls
        self._port = httpx.URL(target).port

    def __call__(self, connection: Any) -> None:
        for reply in self._replies:
            connection.sock.recv(4096)
            connection.sock.sendall(reply)
        connection.open = False
        if self._stalls:
            connection.hang()
        elif self._port:
            connection.tunnel(LOOPBACK, self._port)
        else:
            connection.fin()


@contextlib.contextmanager
def socks_proxy(*replies: bytes, **options: Any) -> Iterator[str]:
    pytest.importorskip("socksio")
    step = Step(read="nothing", then=Socks(*replies, **options))
    with ScriptedServer([step] * 9) as server:
        yield server.url.replace("http:", "socks5:")


@pytest.mark.parametrize("tls", [False, True])
async def test_through_a_socks_proxy(flavour: Flavour, tls: bool) -> None:
    """Its connections are used again; the limit of the handshake ends with it."""
    with (
        ScriptedServer(lambda request: answer(200, b"late", delay=1.2), tls=tls) as server,
        socks_proxy(Socks.OK, Socks.CONNECTED, target=server.url) as proxy,
    ):
        client = one_attempt(flavour, proxy=proxy, connect_timeout=1.0, read_timeout=None)
        for _ in range(2):
            assert (await flavour.run(client.get(server.url))).text == "late"
        assert client.pool_stats() == PoolStats(1, 1, 0, 0)
        assert server.connections == 1
        with pytest.raises(httpx.ReadTimeout):  # of the request: the handshake is long over
            await flavour.run(client.get(server.url, timeout=0.05))


@pytest.mark.parametrize(
    ("replies", "stalls", "error"),
    [
        ([], True, httpx.ConnectTimeout),  # httpcore waits for ever
        ([Socks.OK], True, httpx.ConnectTimeout),
        ([b"HTTP/1.1 400 Bad Request"], False, httpx.ProxyError),  # socksio's own exception
        ([Socks.OK, b"\x05"], False, httpx.ProxyError),
        ([b"\x05\xff"], False, httpx.ProxyError),
        ([], False, httpx.ProxyError),
    ],
)
async def test_a_socks_handshake_that_fails(
    flavour: Flavour, replies: list[bytes], stalls: bool, error: type[Exception]
) -> None:
    """In time, as httpx's exception, and without a socket left over."""
    with socks_proxy(*replies, stalls=stalls) as proxy:
        limit = 0.3 if stalls else 10.0
        client = one_attempt(flavour, proxy=proxy, connect_timeout=limit, max_connections=1)
        for _ in range(2):
            with pytest.raises(error):
                await flavour.run(client.get("http://127.0.0.1:1/"))
        assert client.pool_stats() == NOTHING


async def test_a_socks_proxy_that_is_not_there(flavour: Flavour) -> None:
    """Nothing was made, so there is nothing to close."""
    pytest.importorskip("socksio")
    with refused_port() as url:
        client = one_attempt(flavour, proxy=url.replace("http:", "socks5:"))
        with pytest.raises(httpx.ConnectError):
            await flavour.run(client.get("http://127.0.0.1:1/"))


# --- what a stream tells, and when it ends ------------------------------------------------------


async def connected(flavour: Flavour, url: str, tls: bool = False) -> Any:
    """A network stream, as httpcore's connections use it."""
    kind = _network.Backend if flavour.sync else _network.AsyncBackend
    port = httpx.URL(url).port or 0
    stream: Any = await flavour.run(kind().connect_tcp(LOOPBACK, port, timeout=5))
    if tls:
        stream = await flavour.run(stream.start_tls(client_context(), LOOPBACK, timeout=5))
    return stream


async def test_a_socket_that_is_closed_is_not_waited_for(flavour: Flavour) -> None:
    """Its descriptor's number may be somebody else's already."""
    with ScriptedServer([Step(read="nothing", send=(), then="hang")]) as server:
        stream = await connected(flavour, server.url)
        stream.io.close()
        for write in (False, True):
            with pytest.raises(OSError, match="closed"):
                await _runtime_result(flavour, stream.io.wait(0.5, write=write))


def runtime_of(flavour: Flavour) -> Any:
    return _runtime.Blocking() if flavour.sync else _runtime.EventLoop()


async def _runtime_result(flavour: Flavour, coroutine: Any) -> Any:
    return _runtime.run(coroutine) if flavour.sync else await coroutine


@pytest.mark.parametrize("tls", [False, True])
async def test_a_wait_is_for_something_to_read(flavour: Flavour, tls: bool) -> None:
    """Unless it is said to be for writing: that the socket has room would make a busy loop."""
    ours, theirs = socket.socketpair()
    io: Any = _sockets.SocketIO(ours, runtime_of(flavour))
    if tls:
        io = _sockets.TLSIO(io, ssl.create_default_context(), "x")
    with theirs:
        assert not await _runtime_result(flavour, io.wait(0.02))
        assert await _runtime_result(flavour, io.wait(5, write=True))
        theirs.sendall(b"x")
        assert await _runtime_result(flavour, io.wait(5))
    io.close()


async def test_a_write_to_a_full_socket_waits(flavour: Flavour) -> None:
    """Until there is room, or its time is up."""
    ours, theirs = socket.socketpair()
    io = _sockets.SocketIO(ours, runtime_of(flavour))
    while io.send(bytes(65536)):
        pass
    stream: Any = (_network.Stream if flavour.sync else _network.AsyncStream)(io)
    with theirs:
        with pytest.raises(httpcore.WriteTimeout):
            await flavour.run(stream.write(b"x", timeout=0.02))
        theirs.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while theirs.recv(65536):
                pass
        await flavour.run(stream.write(b"x", timeout=5))
        assert theirs.recv(9) == b"x"
    await flavour.close(stream)


async def test_a_write_s_limit_is_of_the_whole_or_of_each_piece(flavour: Flavour) -> None:
    """As in httpcore: a large one that moves, but slowly, comes to its end in the sync client."""
    ours, theirs = socket.socketpair()
    stream: Any = (_network.Stream if flavour.sync else _network.AsyncStream)(
        _sockets.SocketIO(ours, runtime_of(flavour))
    )
    stopping = threading.Event()

    def read_slowly() -> None:
        while theirs.recv(2**16):
            stopping.wait(0.04)

    with theirs, ThreadPoolExecutor() as pool:
        reading = pool.submit(read_slowly)
        with within(20, at_least=0.7):
            outcome = await flavour.outcome(stream.write, bytes(2**21), timeout=0.8)
        stopping.set()
        await flavour.close(stream)
        reading.result(5)
    assert outcome is None if flavour.sync else isinstance(outcome, httpcore.WriteTimeout)


async def test_what_tls_has_taken_is_sent_before_the_answer_is_waited_for(
    flavour: Flavour,
) -> None:
    """It takes a small upload as a whole, though the socket has room for a part of it only."""

    def read_late(connection: Any) -> None:
        connection.server.stopping.wait(0.1)
        connection.play(answer())

    script, content = [Step(read="head", then=read_late)], bytes(120_000)
    with ScriptedServer(script, tls=True, listening=False) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**13)
        server.listen()
        small = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**13)]
        client = flavour.pooled(verify=client_context(), socket_options=small)
        assert (await flavour.run(client.post(server.url, content=content))).text == "ok"
        assert server.bodies == [content]


async def test_a_write_after_one_that_timed_out(flavour: Flavour) -> None:
    """Under TLS: it waits for room, too, and goes after what was taken before, which is whole."""
    may_read, read = threading.Event(), []

    def read_late(connection: Any) -> None:
        connection.open = False
        assert may_read.wait(4)
        while data := connection.sock.recv(65536):
            read.append(data)

    with ScriptedServer([Step(then=read_late)], tls=True) as server:
        stream = await connected(flavour, server.url, tls=True)
        await flavour.run(stream.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        for _ in range(3):  # a socket that is full may take a little more, a moment later
            with pytest.raises(httpcore.WriteTimeout):
                await flavour.run(stream.write(b"1" * 9_000_000, timeout=0.1))
        may_read.set()
        await flavour.run(stream.write(b"2", timeout=5))
        await until(lambda: read and read[-1].endswith(b"2"))
        await flavour.close(stream)
    assert b"".join(read).strip(b"1") == b"2"


class Renegotiating:
    """An SSLObject that has to hear from the server before it can write (TLS 1.2)."""

    def write(self, data: object) -> int:
        raise ssl.SSLWantReadError

    def pending(self) -> int:
        return 0


async def test_a_write_that_waits_for_the_server_is_no_busy_loop(flavour: Flavour) -> None:
    """The socket can be written to all the while; what is waited for is something to read."""
    ours, theirs = socket.socketpair()
    with theirs:
        io = _sockets.SocketIO(ours, runtime_of(flavour))
        tls: Any = _sockets.TLSIO(io, ssl.create_default_context(), "x")
        tls.object = Renegotiating()
        assert tls.send(b"data") == 0
        assert not await _runtime_result(flavour, tls.wait(0.05, write=True))
        assert tls.send(b"data") == 0
        theirs.sendall(b"record")
        assert await _runtime_result(flavour, tls.wait(5, write=True))
        assert tls.send(b"data") == 0  # takes in the record
        assert await _runtime_result(flavour, tls.wait(0.05, write=True))  # the socket has room
        tls.close()


class Answering:
    """An SSLObject that has something to say when it is read: its answer to a key update."""

    def __init__(self, outgoing: Any) -> None:
        self.outgoing = outgoing

    def read(self, size: int) -> bytes:
        self.outgoing.write(b"answer")
        return b"data"

    def pending(self) -> int:
        return 1


async def test_what_tls_answers_is_sent_at_once(flavour: Flavour) -> None:
    """Though nobody writes; where the server has gone, what it said before counts even so."""
    ours, theirs = socket.socketpair()
    io = _sockets.SocketIO(ours, runtime_of(flavour))
    tls: Any = _sockets.TLSIO(io, ssl.create_default_context(), "x")
    tls.object = Answering(tls._outgoing)
    with theirs:
        assert tls.receive(9) == b"data"
        theirs.settimeout(5)
        assert theirs.recv(9) == b"answer"
    assert tls.receive(9) == b"data"
    tls.close()


class SocketThatIsBusy:
    """It lets another thread in while it sends, as a system call does."""

    has_unsent = False

    def __init__(self, meanwhile: Any) -> None:
        self.base, self.runtime = self, _runtime.Blocking()
        self.threads: list[threading.Thread] = []
        self._meanwhile = meanwhile

    def send(self, data: Any) -> int:
        with memoryview(data):
            if not self.threads:
                self.threads.append(threading.Thread(target=self._meanwhile))
                self.threads[0].start()
                self.threads[0].join(0.1)  # it has to wait
        return len(data)

    def receive(self, size: int) -> None:
        return None

    def flush(self) -> bool:
        return True


@pytest.mark.flavours("sync")
async def test_a_thread_may_write_while_another_one_reads(flavour: Flavour) -> None:
    """A websocket's: what one has in hand is not changed by the other (BufferError)."""
    raised: list[Exception] = []

    def shake_hands() -> None:
        try:
            tls.receive(1)
        except Exception as exc:
            raised.append(exc)

    below: Any = SocketThatIsBusy(shake_hands)
    tls = _sockets.TLSIO(below, ssl.create_default_context(), "x")
    assert not tls.shake_hands()  # its first flight is sent
    below.threads[0].join(5)
    assert raised == []


@ASYNC
async def test_a_write_that_times_out_takes_nothing_from_who_reads(flavour: Flavour) -> None:
    """A websocket's: what has come is no early answer; the reader would get it out of order."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = _network.AsyncStream(_sockets.SocketIO(ours, _runtime.EventLoop()))
        async with Callers(flavour) as callers:
            reader = callers.start(stream.read, 3, timeout=5)
            await anyio.wait_all_tasks_blocked()
            theirs.sendall(b"one")
            with pytest.raises(httpcore.WriteTimeout):
                await stream.write(b"x", timeout=0)
            theirs.sendall(b"two")
            assert await finished(reader) == [b"one"]
            assert await stream.read(3, timeout=5) == b"two"


@ASYNC
async def test_a_read_that_is_cancelled_loses_nothing(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it lets others run it has its bytes: the next one gets them, and nobody twice.

    (A websocket's reader may be cancelled, and go on later.)
    """
    monkeypatch.setattr(_runtime.Turn, "SHARE", 0)  # each read lets others run
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = _network.AsyncStream(_sockets.SocketIO(ours, _runtime.EventLoop()))
        theirs.sendall(b"onetwotre")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.read(3)
        assert scope.cancelled_caught
        assert [await stream.read(3) for _ in range(3)] == [b"one", b"two", b"tre"]


@pytest.mark.parametrize("tls", [False, True])
async def test_a_stream_tells_about_itself(flavour: Flavour, tls: bool) -> None:
    """What httpcore's own tell; a name that nobody knows is None, a closed one is readable."""
    with ScriptedServer(echo, tls=tls) as server:
        stream = await connected(flavour, server.url, tls)
        raw = stream.get_extra_info("socket")
        assert stream.get_extra_info("client_addr") == raw.getsockname()
        assert stream.get_extra_info("server_addr") == (LOOPBACK, server.port)
        tls_object = stream.get_extra_info("ssl_object")
        assert (tls_object is not None) == tls
        assert not tls or tls_object.version() == "TLSv1.3"
        assert stream.get_extra_info("colour") is None
        assert tls or not stream.get_extra_info("is_readable")  # TLS sends tickets
        await flavour.close(stream)
        assert stream.get_extra_info("is_readable")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_new_connection_has_nothing_to_read(flavour: Flavour, tls: bool) -> None:
    """Where the server has said no more than its handshake."""
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in TLS 1.3, tickets come after it
    with ScriptedServer(echo, tls=tls) as server:
        stream = await connected(flavour, server.url)
        if tls:
            stream = await flavour.run(stream.start_tls(context, LOOPBACK, timeout=5))
        assert not stream.get_extra_info("is_readable")
        await flavour.close(stream)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("goodbye", [False, True])
async def test_the_end_of_a_connection_is_an_empty_read(
    flavour: Flavour, tls: bool, goodbye: bool
) -> None:
    """With TLS's own goodbye and without it."""

    def end(connection: Any) -> None:
        connection.open = False
        if goodbye and tls:
            connection.sock.unwrap()
        connection.sock.shutdown(socket.SHUT_RDWR)

    with ScriptedServer([Step(send=(b"a",), then=end)], tls=tls) as server:
        stream = await connected(flavour, server.url, tls)
        await flavour.run(stream.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        assert await flavour.run(stream.read(9, timeout=5)) == b"a"
        assert await flavour.run(stream.read(9, timeout=5)) == b""
        await flavour.close(stream)


def say_goodbye(connection: Any) -> None:
    """TLS's own, and TCP stays open: a server that lingers."""
    connection.open = False
    connection.sock.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.sock.unwrap()  # which asks for the client's
    connection.hang()


async def test_the_end_of_tls_is_told_as_often_as_asked(flavour: Flavour) -> None:
    """Though the socket has nothing more to say."""
    with ScriptedServer([Step(send=(b"a",), then=say_goodbye)], tls=True) as server:
        stream = await connected(flavour, server.url, tls=True)
        await flavour.run(stream.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        assert await flavour.run(stream.read(9, timeout=5)) == b"a"
        for _ in range(2):
            assert await flavour.run(stream.read(9, timeout=5)) == b""
        assert stream.get_extra_info("is_readable")
        await flavour.close(stream)


async def test_a_connection_whose_tls_has_ended_is_not_used(flavour: Flavour) -> None:
    """After a body without a length: its end is the connection's, too. A POST was lost to it."""
    body = b"HTTP/1.1 200 OK\r\n\r\nbody"
    with ScriptedServer([Step(send=(body,), then=say_goodbye), echo], tls=True) as server:
        client = one_attempt(flavour)
        assert (await flavour.run(client.get(server.url))).content == b"body"
        assert (await flavour.run(client.post(f"{server.url}/x", content=b"x"))).status_code == 200
        assert server.connections == 2


@pytest.mark.parametrize("tls", [False, True])
async def test_closing_ends_a_read_without_a_limit(flavour: Flavour, tls: bool) -> None:
    """At once, with an exception or as the end; the descriptor is given up when it is not used."""
    with ScriptedServer([hang()] * 2, tls=tls) as server:
        stream = await connected(flavour, server.url, tls)
        async with Callers(flavour) as callers:
            reader = callers.start(stream.read, 1, None)
            await until(lambda: stream.io.base._reads)
            with within(PROMPT):
                await flavour.close(stream)
                (outcome,) = await finished(reader)
        assert outcome == b"" or isinstance(outcome, httpcore.ReadError)
        assert stream.get_extra_info("socket").fileno() == -1
        with pytest.raises(httpcore.ReadError, match=r"closed|Bad file descriptor"):
            await flavour.run(stream.read(1, None))


async def test_what_a_read_waits_for_has_a_limit_in_all(flavour: Flavour) -> None:
    """A TLS record that comes by drips: its rest does not get the whole time again."""

    def stall(connection: Any) -> None:
        connection.open = False
        raw = socket.socket.detach(connection.sock)
        connection.sock = plain = socket.socket(fileno=raw)
        plain.sendall(b"\x17\x03\x03\x01")
        while not connection.server.stopping.wait(0.1):  # or until the client has closed it
            plain.sendall(b"\x00")

    with ScriptedServer([Step(then=stall)], tls=True) as server:
        stream = await connected(flavour, server.url, tls=True)
        await flavour.run(stream.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        with within(0.5 + PROMPT, at_least=0.4), pytest.raises(httpcore.ReadTimeout):
            await flavour.run(stream.read(9, timeout=0.5))
        await flavour.close(stream)


@ASYNC
@pytest.mark.parametrize("setting", ["connect_timeout", "total_timeout"])
async def test_a_slow_look_up_has_a_limit(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """That of the connection, or of the call: the thread that looks up the name is left alone."""
    limit: dict[str, Any] = {setting: 0.3}
    with resolving(monkeypatch, "slow.example", ["127.0.0.1"], delay=0.3 + 2 * PROMPT):
        client = one_attempt(flavour, **limit)
        with (
            within(0.3 + PROMPT, at_least=0.2),
            pytest.raises(httpx.ConnectTimeout, match="timed out"),
        ):
            await flavour.run(client.get("http://slow.example:1/"))
        assert in_use(client) == (0, 0)


async def test_a_limit_that_has_passed_is_a_timeout(flavour: Flavour) -> None:
    """Not another look at what may have arrived; an answer that is here makes a write one to read.

    (httpcore takes a WriteError, and only that, as "look for the answer".)
    """
    with ScriptedServer([Step(read="nothing", send=(b"1",), then="hang")]) as server:
        stream = await connected(flavour, server.url)
        assert _runtime.is_ready(stream.get_extra_info("socket"), 10)
        for timeout in (0.0, -1.0):
            with pytest.raises(httpcore.ReadTimeout):
                await flavour.run(stream.read(1, timeout=timeout))
        with pytest.raises(httpcore.WriteError):
            await flavour.run(stream.write(b"x", timeout=0.0))
        assert await flavour.run(stream.read(1, timeout=10)) == b"1"
        for timeout in (0.0, -1.0):
            with pytest.raises(httpcore.WriteTimeout):
                await flavour.run(stream.write(b"x", timeout=timeout))
        await flavour.close(stream)


# --- TLS ----------------------------------------------------------------------------------------


async def test_a_handshake_has_a_limit_of_its_own_too(flavour: Flavour) -> None:
    """On a connection that was made without one: then the server sees that it is given up."""
    kind = _network.Backend if flavour.sync else _network.AsyncBackend
    with ScriptedServer([hang(read="nothing")]) as server:
        stream: Any = await flavour.run(kind().connect_tcp(LOOPBACK, server.port))
        with within(0.2 + PROMPT, at_least=0.15), pytest.raises(httpcore.ConnectTimeout):
            await flavour.run(stream.start_tls(client_context(), LOOPBACK, timeout=0.2))
        server.settle()
        await flavour.close(stream)


async def client_hello(flavour: Flavour, **options: Any) -> bytes:
    """The first bytes that a client sends to an https server."""
    hello: list[bytes] = []

    def listen(connection: Any) -> None:
        hello.append(connection.sock.recv(65536))
        connection.open = False
        connection.fin()

    with ScriptedServer([Step(read="nothing", then=listen)]) as server:
        client = one_attempt(flavour, **options)
        with pytest.raises((httpx.ConnectError, httpx.ReadError)):
            await flavour.run(client.get(server.url.replace("http:", "https:")))
        await flavour.close(client)
    return hello[0]


async def test_http2_is_offered_first(flavour: Flavour) -> None:
    """httpcore offers it last, and some servers take the first that they know."""
    context = client_context()
    hello = await client_hello(flavour, verify=context)
    assert b"\x02h2\x08http/1.1" in hello
    hello = await client_hello(flavour, verify=context, http2=False)
    assert b"\x08http/1.1" in hello
    assert b"\x02h2" not in hello


async def test_a_proxy_s_own_handshake_offers_http1_alone(flavour: Flavour) -> None:
    """With one context for both: each connection offers its own, whoever was there before."""
    with H2Peer() as server, ScriptedServer(forward, tls=True) as proxy:
        context = client_context()
        given = httpx.Proxy(proxy.url, ssl_context=context)
        client = one_attempt(flavour, proxy=given, verify=context)
        response = await flavour.run(client.get(f"{server.url}/x"))
        assert (response.http_version, response.text) == ("HTTP/2", "/x")


def test_a_context_that_is_wrapped_answers_as_itself() -> None:
    """For whoever looks at it on a connection of httpcore's."""
    context = client_context()
    wrapped = _sockets.ALPNContext(context)
    assert wrapped.verify_mode is context.verify_mode
    assert wrapped.check_hostname is context.check_hostname


async def test_the_server_is_told_why_its_certificate_is_refused(flavour: Flavour) -> None:
    """By an alert, so that its log says more than "connection reset"."""
    reasons: list[str] = []

    def serve(connection: Any) -> None:
        connection.open = False
        try:
            server_context().wrap_socket(connection.sock, server_side=True)
        except ssl.SSLError as exc:
            reasons.append(exc.reason or "")

    with ScriptedServer([Step(read="nothing", then=serve)]) as server:
        client = one_attempt(flavour, verify=True)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await flavour.run(client.get(server.url.replace("http:", "https:")))
        await until(lambda: reasons)
    assert "UNKNOWN_CA" in reasons[0]


# --- connecting, in odd places ------------------------------------------------------------------


async def test_a_local_address_that_is_not_ours_is_a_connect_error(flavour: Flavour) -> None:
    """In the words of the system; and its socket is closed."""
    kind = PooledTransport if flavour.sync else AsyncPooledTransport
    transport: Any = kind(local_address="192.0.2.1", trust_env=False)
    client = flavour.plain(transport=transport)
    with refused_port() as url, pytest.raises(httpx.ConnectError, match="assign"):
        await flavour.run(client.get(url))
    assert transport.pool_stats() == NOTHING


async def test_a_name_that_does_not_exist_is_a_connect_error(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the resolver."""

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    outcome = await flavour.outcome(one_attempt(flavour).get, "http://nowhere.test")
    monkeypatch.undo()
    assert isinstance(outcome, httpx.ConnectError)
    assert "Name or service not known" in str(outcome)


async def test_a_server_that_refuses_is_a_connect_error(flavour: Flavour) -> None:
    """In the words of the system."""
    with refused_port() as url:
        outcome = await flavour.outcome(one_attempt(flavour).get, url)
    assert isinstance(outcome, httpx.ConnectError)
    assert "Connection refused" in str(outcome)


async def test_a_unix_socket_whose_backlog_is_full(flavour: Flavour, tmp_path: Path) -> None:
    """Nothing is under way then that could be waited for: a ConnectError, at once."""
    path = str(tmp_path / "socket")
    kind = PooledTransport if flavour.sync else AsyncPooledTransport
    client = flavour.plain(transport=kind(uds=path, trust_env=False))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler = stack.enter_context(socket.socket(socket.AF_UNIX))
                filler.setblocking(False)
                filler.connect(path)
        with within(PROMPT), pytest.raises(httpx.ConnectError):
            await flavour.run(client.get("http://host/"))


async def test_a_unix_socket_that_is_not_there(flavour: Flavour, tmp_path: Path) -> None:
    """A ConnectError too."""
    kind = PooledTransport if flavour.sync else AsyncPooledTransport
    client = flavour.plain(transport=kind(uds=str(tmp_path / "socket"), trust_env=False))
    with pytest.raises(httpx.ConnectError):
        await flavour.run(client.get("http://host/"))


def test_families_take_turns() -> None:
    """The preferred one first (RFC 8305 section 4)."""
    found = [(family, number) for family in (6, 4) for number in range(3)][:5]
    assert _network._interleaved(found) == [(6, 0), (4, 0), (6, 1), (4, 1), (6, 2)]


def test_what_has_no_text_is_told_by_its_type() -> None:
    """`str(ConnectionResetError())` is empty, and would say nothing."""
    assert _network.reason(ConnectionResetError()) == "ConnectionResetError"
    assert _network.reason(OSError(32, "Broken pipe")) == "[Errno 32] Broken pipe"


# --- waiting ------------------------------------------------------------------------------------


@pytest.fixture(params=["poll", "select"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With poll(), and as it is on Windows and under eventlet."""
    if request.param == "select":
        monkeypatch.setattr(_runtime, "select", SimpleNamespace(select=select.select))


@pytest.mark.usefixtures("either_way")
@pytest.mark.time_limit(4)
async def test_a_socket_is_waited_for_as_long_as_was_said(flavour: Flavour) -> None:
    """Time that has passed already is no time at all, and a very long one no error."""
    ours, theirs = socket.socketpair()
    io = _sockets.SocketIO(ours, runtime_of(flavour))
    with theirs:
        with within(PROMPT):
            for timeout in (-1.0, 0.0, 0.02):
                assert not await _runtime_result(flavour, io.wait(timeout))
        theirs.sendall(b"x")
        for timeout in (1e10, math.inf, None):
            assert await _runtime_result(flavour, io.wait(timeout))
    io.close()


@pytest.mark.flavours("sync")
async def test_without_poll_select_does(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows and under eventlet: requests, uploads and timeouts work there too."""
    monkeypatch.setattr(_runtime, "select", SimpleNamespace(select=select.select))
    with ScriptedServer([answer(200, b"a"), answer(200, b"b"), hang()]) as server:
        client = one_attempt(flavour)
        assert client.get(server.url).text == "a"
        assert client.post(server.url, content=bytes(3_000_000)).text == "b"
        with within(0.2 + PROMPT, at_least=0.15), pytest.raises(httpx.ReadTimeout):
            client.get(server.url, timeout=0.2)


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """The number of one that only a process with many of them has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield 1500
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_descriptor_s_number_may_be_large(flavour: Flavour, many_descriptors: int) -> None:
    """select() counts to 1024, and fails beyond."""
    ours, theirs = socket.socketpair()
    number = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, many_descriptors)
    io = _sockets.SocketIO(socket.socket(fileno=number), runtime_of(flavour))
    with ours, theirs:
        assert not await _runtime_result(flavour, io.wait(0.02))
        assert await _runtime_result(flavour, io.wait(5, write=True))
    io.close()


@pytest.mark.parametrize("seconds", [1e10, float("inf")])
async def test_a_very_long_timeout_is_no_timeout(flavour: Flavour, seconds: float) -> None:
    """What the system can't count that far is not taken for a short one."""
    with ScriptedServer(lambda _: answer(delay=0.1), tls=True) as server:
        client = flavour.client(verify=client_context(), timeout=seconds, max_connections=1)
        answers = await flavour.gather(lambda: client.get(server.url) for _ in range(2))
        assert [getattr(one, "text", one) for one in answers] == ["ok", "ok"]


async def test_an_event_is_waited_for_as_long_as_was_said(flavour: Flavour) -> None:
    """Time that has passed already is no time at all; what was set before is there even so."""
    event = runtime_of(flavour).event()
    with within(PROMPT):  # less than any wait of whole seconds, three times
        for timeout in (-1.0, 0.0, 0.02):
            assert not await _runtime_result(flavour, event.wait(timeout))
    for _ in range(2):
        event.set()
    assert await _runtime_result(flavour, event.wait(0.0))


async def test_a_thread_that_runs_no_loop_is_not_in_one(flavour: Flavour) -> None:
    """A finalizer may run there: what the loop's requests wait for is left to the loop."""
    runtime = runtime_of(flavour)
    here = runtime.loop()
    assert runtime.is_current(here)
    with ThreadPoolExecutor() as pool:  # in the sync client, any thread will do
        assert pool.submit(runtime.is_current, here).result() == flavour.sync


def test_a_turn_is_over_after_some_bytes_or_some_operations() -> None:
    """Many small ones keep others waiting as well as a few large ones; then it begins anew."""
    turn = _runtime.Turn()
    for _ in range(2):
        assert not turn.is_over(turn.SHARE // 2)
        assert turn.is_over(turn.SHARE // 2)
    small = [turn.is_over(1) for _ in range(200)]
    assert 2 <= small.count(True) <= 4


@ASYNC
async def test_what_never_has_to_wait_lets_others_run(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small writes, many small reads: now and then, not at each."""
    monkeypatch.setattr(_runtime.Turn, "SHARE", 16 * 1024)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes(100_000))
        stream = _network.AsyncStream(_sockets.SocketIO(ours, _runtime.EventLoop()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await anyio.lowlevel.checkpoint()
            for operation in (partial(stream.read, 1000), partial(stream.write, bytes(1000))):
                before = turns
                for _ in range(60):  # as many as the socket takes without being read
                    await operation()
                assert 1 <= turns - before < 30
            tasks.cancel_scope.cancel()


def test_a_coroutine_of_the_sync_transport_never_suspends() -> None:
    """One that did would never go on, so it is an error of ours, told at once."""

    async def suspends() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="was suspended"):
        _runtime.run(suspends())


@ASYNC
async def test_a_client_in_two_loops_at_once_keeps_the_connections_of_both(
    flavour: Flavour,
) -> None:
    """A loop that goes on elsewhere is not over: neither uses, nor closes, the other's."""
    with ScriptedServer(echo) as server:
        transport: Any = AsyncPooledTransport(trust_env=False)
        client = flavour.plain(transport=transport)

        async def get(path: str) -> str:
            return (await client.get(server.url + path)).text

        assert await get("/1") == "/1"
        backend = "trio" if flavour.name == "asyncio" else "asyncio"
        for path in ("/2", "/3"):
            run = partial(anyio.run, get, path, backend=backend)
            assert await anyio.to_thread.run_sync(run) == path
        assert await get("/4") == "/4"
        assert [request.connection for request in server.requests] == [0, 1, 2, 0]
        assert transport.pool_stats().in_use == 0


@pytest.mark.flavours("asyncio")
async def test_asyncio_is_enough(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has imported trio, nobody is asked whether it runs."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    with ScriptedServer(echo) as server:
        assert (await one_attempt(flavour).get(f"{server.url}/x")).text == "/x"
    monkeypatch.undo()


async def test_garbage_under_tls_is_no_early_answer(flavour: Flavour) -> None:
    """The server stops reading an upload, and says something that is no TLS: a WriteTimeout."""

    def babble(connection: Any) -> None:
        connection.open = False
        raw = socket.socket.detach(connection.sock)
        connection.sock = socket.socket(fileno=raw)
        connection.sock.sendall(b"no TLS at all")
        connection.hang()

    with ScriptedServer([Step(read="head", then=babble)], tls=True) as server:
        client = one_attempt(flavour, write_timeout=0.3)
        with pytest.raises(httpx.WriteTimeout):
            await flavour.run(client.post(server.url, content=bytes(9_000_000)))


@pytest.mark.parametrize("is_first", [False, True])
async def test_the_last_attempts_are_waited_for_together(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """One hangs for ever; the other one, be it the first or the last, comes about after a while."""
    with contextlib.ExitStack() as stack:
        slow = fill_backlog(stack, LOOPBACK, 0)
        deaf = stack.enter_context(full_backlog())
        url = f"http://{LOOPBACK}:{slow.getsockname()[1]}"
        client = one_attempt(flavour, connect_timeout=20.0)
        with resolving_to(monkeypatch, *([url, deaf] if is_first else [deaf, url])) as name:
            async with Callers(flavour) as callers:
                caller = callers.start(client.get, name)
                await anyio.sleep(0.6)  # both attempts are under way
                answering = stack.enter_context(accepting(slow))
                (outcome,) = await finished(caller)  # long before connect_timeout
        assert isinstance(outcome, httpx.Response), repr(outcome)
        answering.set()


async def test_addresses_that_refuse_late_are_a_connect_error(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the system, and no timeout: connect_timeout is far from over.

    (A host that is down on one's own network: the system knows that after three seconds.)
    """
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(full_backlog()) for _ in range(2)]
        client = one_attempt(flavour, connect_timeout=20.0)
        with resolving_to(monkeypatch, *slow) as name:
            async with Callers(flavour) as callers:
                caller = callers.start(client.get, name)
                await anyio.sleep(0.6)  # both attempts are under way
                stack.close()
                (outcome,) = await finished(caller)
    assert isinstance(outcome, httpx.ConnectError)
    assert "Connection refused" in str(outcome)


@contextlib.contextmanager
def accepting(listener: socket.socket) -> Iterator[threading.Event]:
    """A server at last: whoever says something is answered, until the event is set."""
    stopping = threading.Event()

    def serve() -> None:
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not stopping.is_set():
                for key, _ in selector.select(0.05):
                    if (sock := key.data) is None:
                        sock = stack.enter_context(listener.accept()[0])
                        selector.register(sock, selectors.EVENT_READ, sock)
                    elif sock.recv(4096):
                        sock.sendall(message(200, b"late"))
                    else:
                        selector.unregister(sock)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield stopping
    finally:
        stopping.set()
        thread.join(5)


async def test_closing_during_a_look_up_connects_to_nobody(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look-up can't be interrupted; when it is done, no connection is begun."""
    with (
        ScriptedServer(echo) as server,
        resolving(monkeypatch, "slow.test", [LOOPBACK], delay=0.4) as asked,
    ):
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            caller = callers.start(client.get, f"http://slow.test:{server.port}/")
            await until(lambda: asked)
            await flavour.close(client)
            (outcome,) = await finished(caller)
        assert isinstance(outcome, httpx.ConnectError)
        assert "closed" in str(outcome)
        assert server.connections == 0
        assert client.pool_stats() == NOTHING


# --- after a fork -------------------------------------------------------------------------------


def test_a_copy_of_a_socket_is_given_up_without_a_word() -> None:
    """A child process can neither read nor write on it any more; the parent and the server can."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(socket.socket(fileno=os.dup(ours.fileno()))) as copy:
        io = _sockets.SocketIO(copy, _runtime.Blocking())
        _sockets._after_fork()
        with pytest.raises(OSError, match="non-socket"):
            io.receive(1)
        with pytest.raises(OSError, match="non-socket"):
            io.send(b"x")
        assert not copy.get_inheritable()  # nor is it handed on to other programs
        io.close()
        io.leave_to_parent()  # there is nothing to give up now
        ours.sendall(b"ping")
        theirs.sendall(b"pong")
        assert (theirs.recv(9), ours.recv(9)) == (b"ping", b"pong")
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(9)
