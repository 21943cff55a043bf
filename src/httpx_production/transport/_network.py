"""httpcore's network interface over `_sockets.py`: connecting, and each operation's time limit.

Each operation asks anew how long it may take: a deadline that has passed raises, and while a
connection is being made its connect_timeout bounds all that goes on, TLS and proxies included.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain, zip_longest
from time import monotonic
from typing import Any

import httpcore

from .._deadline import LiveTimeout, current_value
from ._runtime import Blocking, EventLoop, Runtime, Turn, check_connected, is_ready, run
from ._sockets import TLSIO, SocketIO

SocketOptions = Iterable[httpcore.SOCKET_OPTION] | None

ATTEMPT_DELAY = 0.25  # seconds between the attempts at a name's addresses (RFC 8305 section 5)
LOOK_AROUND = 0.05  # seconds to wait for one attempt, between two looks at all of them
PIECE = 16 * 2**20  # bytes of an upload between two looks at the deadline: milliseconds
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class NetworkStream:
    """A connection to a server, for both flavours."""

    def __init__(self, io: SocketIO | TLSIO, connect_until: float | None = None) -> None:
        self.io = io
        self.connect_until = connect_until  # while the connection is being made
        self._early = b""  # of an answer that came while the request was being sent
        self._is_read = False  # somebody is at it
        self.turn = Turn()
        self._has_sent = False  # something since it last received: then an answer takes its time
        self.is_torn = False  # what was to be sent has not been, or not to its end

    def limit(self, timeout: float | None) -> float | None:
        """Return how long an operation may take now, in seconds; raise when no time is left."""
        limit = current_value(timeout)
        if self.connect_until is not None:
            left = self.connect_until - monotonic()
            limit = left if limit is None else min(limit, left)
        if limit is not None and limit <= 0:
            raise TimeoutError("timed out")
        return limit

    async def receive(self, max_bytes: int, timeout: float | None) -> bytes:
        """Return what arrives within `timeout` seconds, b"" at the end."""
        self._is_read = True
        try:
            if early := self._early:
                self._early = b""
                return early
            limit = self.limit(timeout)
            may_wait = self._has_sent and not self.io.pending()
            if not may_wait and (data := self.io.receive(max_bytes)) is not None:
                if self.turn.is_over(len(data)):
                    self._early = data  # as long as this may be cancelled
                    await self.io.runtime.checkpoint()
                    self._early = b""
                return data
            self._has_sent = False
            return await self._wait_and_receive(max_bytes, limit)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.ReadError(reason(exc)) from exc
        finally:
            self._is_read = False

    async def _wait_and_receive(self, max_bytes: int, limit: float | None) -> bytes:
        until = None if limit is None else monotonic() + limit
        while True:
            if not await self.io.wait(limit):
                raise TimeoutError("timed out")
            if (data := self.io.receive(max_bytes)) is not None:
                return data
            # Half a TLS record: its rest does not get the whole time again.
            limit = None if until is None else until - monotonic()

    async def transmit(self, buffer: bytes, timeout: float | None) -> None:
        """Send everything within `timeout` seconds, in the sync client each piece of it."""
        self._has_sent = self.is_torn = True
        if self.io.runtime.limits_whole_writes:
            timeout = _of_the_whole(timeout)
        try:
            rest = memoryview(buffer)
            while rest or not self.io.flush():
                limit = self.limit(timeout)
                sent = self.io.send(rest[:PIECE])  # as a rule that is all of it
                rest = rest[sent:]
                if not sent and not await self.io.wait(limit, write=True):
                    raise TimeoutError("timed out")
            self.is_torn = False
            if self.turn.is_over(len(buffer)):
                await self.io.runtime.checkpoint()
        except TimeoutError as exc:
            # A server that answered early and stopped reading: httpcore takes a WriteError (and
            # only that) as "look for the answer".
            kind = httpcore.WriteError if self._has_answer() else httpcore.WriteTimeout
            raise kind(str(exc)) from exc
        except OSError as exc:
            raise httpcore.WriteError(reason(exc)) from exc

    def _has_answer(self) -> bool:
        """Tell whether the server has said something; a TLS record may hold no data at all.

        Not while another one reads, of an upgraded connection: that would get it too late.
        """
        if self._is_read:
            return False
        try:
            self._early = self.io.receive(64 * 1024) or b""
        except OSError:
            return False
        return bool(self._early)

    async def encrypt(
        self, context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> TLSIO:
        """Return this connection under TLS; it is closed when that fails or is given up."""
        try:
            with connecting():
                tls = TLSIO(self.io, context, server_hostname)
                while not tls.shake_hands():
                    if not await tls.wait(self.limit(timeout)):
                        raise TimeoutError("timed out")
            return tls
        except BaseException:
            self.io.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore's own streams tell."""
        sock = self.io.base.socket
        if info == "ssl_object":
            return getattr(self.io, "object", None)
        if info == "client_addr":
            return sock.getsockname()
        if info == "server_addr":
            return sock.getpeername()
        if info == "is_readable":  # httpcore: a closed one is
            return bool(self._early) or self.io.pending() or is_ready(sock, 0)
        return sock if info == "socket" else None


def _of_the_whole(timeout: float | None) -> float | None:
    """Make a limit of each piece one of all of them: a deadline, from now on."""
    limit = current_value(timeout)
    return None if limit is None else LiveTimeout(limit, monotonic() + limit)


class Stream(NetworkStream, httpcore.NetworkStream):
    """The sync stream."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives within `timeout` seconds, b"" at the end."""
        return run(self.receive(max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything; each piece may take `timeout` seconds."""
        if buffer:
            run(self.transmit(buffer, timeout))

    def close(self) -> None:
        """Close the connection."""
        self.io.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Return this connection under TLS."""
        tls = run(self.encrypt(ssl_context, server_hostname, timeout))
        return Stream(tls, self.connect_until)


class AsyncStream(NetworkStream, httpcore.AsyncNetworkStream):
    """The async stream, on asyncio and on trio."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives within `timeout` seconds, b"" at the end."""
        return await self.receive(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything within `timeout` seconds."""
        if buffer:
            await self.transmit(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        self.io.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return this connection under TLS."""
        tls = await self.encrypt(ssl_context, server_hostname, timeout)
        return AsyncStream(tls, self.connect_until)


@contextmanager
def connecting() -> Generator[None]:
    """Turn what can go wrong while connecting into httpcore's exceptions."""
    try:
        yield
    except TimeoutError as exc:
        raise httpcore.ConnectTimeout(str(exc) or "timed out") from exc
    except OSError as exc:  # ssl.SSLError too
        raise httpcore.ConnectError(reason(exc)) from exc


def reason(exc: BaseException) -> str:
    """Say what happened, whatever the exception says of itself."""
    return str(exc) or type(exc).__name__


class Connector:
    """Makes one connection of the pool, and closes it, also when it is half made."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._attempts: list[SocketIO] = []
        self._closed = False

    async def connect(
        self,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        options: SocketOptions,
    ) -> tuple[SocketIO, float | None]:
        """Connect to the first address that answers; return when connect_timeout ends, too."""
        with connecting():
            until = _until(timeout)
            if not 0 <= port <= 65535:  # getaddrinfo would make another port of it
                raise OSError(f"no such port: {port}")
            found = _interleaved(await self.runtime.resolve(host, port, _left(until)))
            return await self._race(found, until, local_address, options), until

    async def connect_unix(
        self, path: str, timeout: float | None, options: SocketOptions
    ) -> tuple[SocketIO, float | None]:
        """Connect to a Unix domain socket."""
        with connecting():
            until = _until(timeout)
            with self._closing_on_failure():
                io = self._open((socket.AF_UNIX, socket.SOCK_STREAM), None, options or ())
                await self._attempt(io, path, _left(until))
            return io, until

    async def _race(
        self, found: list[Any], until: float | None, local: str | None, options: SocketOptions
    ) -> SocketIO:
        """Try the addresses 250 ms apart: one that is dead, or slow, doesn't starve the others."""
        errors = [OSError("the name has no address")]  # the last one is told, a late one too
        with self._closing_on_failure():
            for number, (*kind, _, address) in enumerate(found, 1):
                alone = number == len(found) and not self._attempts
                limit = _left(until)
                try:
                    io = self._open(kind, local, [*(options or ()), NODELAY])
                    await self._attempt(io, address, limit if alone else _share(limit))
                    return self._won(io)
                except OSError as exc:
                    errors.append(exc)
                if (winner := self._first_connected(errors)) is not None:
                    return self._won(winner)
            return await self._first_of_the_rest(until, errors)

    async def _first_of_the_rest(self, until: float | None, errors: list[OSError]) -> SocketIO:
        """Wait for the attempts that are still under way."""
        limit = math.inf if until is None else until - monotonic()
        while self._attempts and limit > 0:
            await self._attempts[0].wait(LOOK_AROUND, write=True)
            limit -= LOOK_AROUND  # a clock that stands still (freezegun) must not make a loop
            if (winner := self._first_connected(errors)) is not None:
                return self._won(winner)
        raise TimeoutError("timed out") if self._attempts else errors[-1]

    async def _attempt(self, io: SocketIO, address: Any, limit: float | None) -> None:
        """Connect; an attempt that takes too long goes on, one that fails is closed."""
        try:
            if not io.connect(address, limit):
                if not await io.wait(limit, write=True):
                    raise TimeoutError("timed out")
                check_connected(io.socket)
        except OSError as exc:
            if exc.errno is not None:  # else it has run out of its own limit
                self._discard(io)
            raise

    def _first_connected(self, errors: list[OSError]) -> SocketIO | None:
        """Return an attempt that has succeeded meanwhile; those that have failed are closed."""
        for io in [io for io in self._attempts if is_ready(io.socket, 0, write=True)]:
            try:
                check_connected(io.socket)
                return io
            except OSError as exc:
                self._discard(io)
                if isinstance(errors[-1], TimeoutError):  # what it failed with says more
                    errors.append(exc)
        return None

    def _open(self, kind: Any, local: str | None, options: Iterable[Any]) -> SocketIO:
        sock = socket.socket(*kind)
        self._attempts.append(io := SocketIO(sock, self.runtime))
        for option in options:
            sock.setsockopt(*option)
        if local is not None:
            sock.bind((local, 0))
        if self._closed:
            raise OSError("the connection pool was closed")
        return io

    def _won(self, winner: SocketIO) -> SocketIO:
        for io in self._attempts:
            if io is not winner:
                io.close()
        self._attempts = [winner]
        return winner

    def _discard(self, io: SocketIO) -> None:
        io.close()
        self._attempts.remove(io)

    @contextmanager
    def _closing_on_failure(self) -> Generator[None]:
        self._attempts = []
        try:
            yield
        except BaseException:
            for io in self._attempts:
                io.close()
            raise

    def close(self) -> None:
        """Close the connection, made or half made, without waiting."""
        self._closed = True
        for io in list(self._attempts):
            io.close()


def _until(timeout: float | None) -> float | None:
    limit = current_value(timeout)
    return None if limit is None else monotonic() + limit


def _left(until: float | None) -> float | None:
    if until is None:
        return None
    if (left := until - monotonic()) <= 0:
        raise TimeoutError("timed out")
    return left


def _share(limit: float | None) -> float:
    """Return for how long an address is waited for alone: of a short time, half of what is left."""
    return ATTEMPT_DELAY if limit is None else min(ATTEMPT_DELAY, limit / 2)


def _interleaved(found: list[Any]) -> list[Any]:
    """Take IPv6 and IPv4 addresses by turns, the preferred family first (RFC 8305 section 4)."""
    first = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    return [one for one in chain(*zip_longest(first, others)) if one is not None]


class Backend(Connector, httpcore.SyncBackend):
    """The sync pool's network."""

    def __init__(self) -> None:
        super().__init__(Blocking())

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers."""
        return Stream(*run(self.connect(host, port, timeout, local_address, socket_options)))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: SocketOptions = None
    ) -> httpcore.NetworkStream:
        """Connect to a Unix domain socket."""
        return Stream(*run(self.connect_unix(path, timeout, socket_options)))


class AsyncBackend(Connector, httpcore.AnyIOBackend):
    """The async pool's network, on asyncio and on trio."""

    def __init__(self) -> None:
        super().__init__(EventLoop())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers."""
        found = await self.connect(host, port, timeout, local_address, socket_options)
        return AsyncStream(*found)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: SocketOptions = None
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a Unix domain socket."""
        return AsyncStream(*await self.connect_unix(path, timeout, socket_options))
