"""Network streams under the mended pool: each operation asks anew how long it may take.

Written for httpcore 1.0.x and anyio 4; imported when the first pool is made.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore
from anyio.streams.tls import TLSAttribute, TLSStream
from httpcore._backends.anyio import AnyIOStream
from httpcore._backends.sync import SyncStream, TLSinTLSStream

from .._deadline import remaining

SocketOptions = Iterable[httpcore.SOCKET_OPTION] | None

_NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
# ssl.SSLError is an OSError; BusyResourceError is TLS that wants to write while it reads.
_BROKEN = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.BusyResourceError,
    anyio.EndOfStream,
    OSError,
)


@contextmanager
def _connecting() -> Generator[None]:
    """Turn what can go wrong while connecting into httpcore's exceptions."""
    try:
        yield
    except TimeoutError as exc:
        raise httpcore.ConnectTimeout(str(exc) or "timed out") from exc
    except _BROKEN as exc:
        raise httpcore.ConnectError(_reason(exc)) from exc


def _reason(exc: BaseException) -> str:
    """Say what happened: anyio's own exceptions are empty, their causes are not."""
    return str(exc) or str(exc.__cause__ or "") or type(exc).__name__


class Stream(SyncStream):
    """A socket whose timeouts are live."""

    # The limit of operations that name none: httpcore's SOCKS handshake.
    default: float | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives within `timeout` seconds, b"" at the end."""
        try:
            self._sock.settimeout(remaining(self.default if timeout is None else timeout))
            return self._sock.recv(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(exc) from exc
        except OSError as exc:
            raise httpcore.ReadError(exc) from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything; each piece may take `timeout` seconds."""
        rest: bytes | memoryview = buffer  # a view costs no copy; mocked sockets want bytes first
        try:
            while rest:
                self._sock.settimeout(remaining(self.default if timeout is None else timeout))
                rest = memoryview(rest)[self._sock.send(rest) :]
        except TimeoutError as exc:
            # A server that answered early and stopped reading: httpcore takes a WriteError (and
            # only that) as "look for the answer".
            answered = self.get_extra_info("is_readable")
            raise (httpcore.WriteError if answered else httpcore.WriteTimeout)(exc) from exc
        except OSError as exc:
            raise httpcore.WriteError(exc) from exc

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Return this connection under TLS; the socket is closed when that fails."""
        with _connecting():
            try:
                if isinstance(self._sock, ssl.SSLSocket):
                    return NestedStream(
                        self._sock, ssl_context, server_hostname, remaining(timeout)
                    )
                self._sock.settimeout(remaining(timeout))
                return Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname))
            except BaseException:
                self.close()
                raise

    def get_extra_info(self, info: str) -> Any:
        """Answer as httpcore does, but for "is_readable": decrypted bytes count too."""
        if info == "is_readable" and isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        return super().get_extra_info(info)


class NestedStream(TLSinTLSStream):
    """TLS inside TLS (an https proxy) whose timeouts are live."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives; each read of the socket may take `timeout` seconds."""
        return super().read(max_bytes, remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything; each write to the socket may take `timeout` seconds."""
        super().write(buffer, remaining(timeout))

    def get_extra_info(self, info: str) -> Any:
        """Answer as httpcore does, but for "is_readable": bytes underway count too."""
        if info == "is_readable" and (self._incoming.pending or self.ssl_obj.pending()):
            return True
        return super().get_extra_info(info)


class Backend(httpcore.SyncBackend):
    """Connects within the time given, however many addresses a name has."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers."""
        options = [*(socket_options or ()), _NODELAY]
        with _connecting():
            _check_port(port)
            # Only the look-up itself can't be interrupted.
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return Stream(_first(found, timeout, local_address, options))


def _check_port(port: int) -> None:
    """Refuse what connect() can't take: getaddrinfo would make another port of it."""
    if not 0 <= port <= 65535:
        raise OSError(f"no such port: {port}")


def _first(
    found: list[Any], timeout: float | None, local: str | None, options: list[Any]
) -> socket.socket:
    """Return a socket connected to the first of the addresses that lets it.

    Each gets an even share of the time that is left: the first can't starve the others, as it
    would in `socket.create_connection` if that had one limit for all.
    """
    limit = remaining(timeout)
    deadline = None if limit is None else monotonic() + limit
    for last, (*kind, _, address) in zip(range(len(found) - 1, -1, -1), found, strict=True):
        share = None if deadline is None else max((deadline - monotonic()) / (last + 1), 0.001)
        try:
            return _connected(kind, address, share, local, options)
        except OSError:
            if not last:
                raise
    raise OSError("the name has no address")


def _connected(
    kind: list[int], address: Any, timeout: float | None, local: str | None, options: list[Any]
) -> socket.socket:
    sock = socket.socket(*kind)
    try:
        for option in options:
            sock.setsockopt(*option)
        sock.settimeout(timeout)
        if local is not None:
            sock.bind((local, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class AsyncStream(AnyIOStream):
    """An anyio stream, on asyncio or trio, whose timeouts are live."""

    default: float | None = None
    # HTTP/1.1 only: whether to look for an early answer while a large write is under way.
    listens = True

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        super().__init__(stream)
        self._early: deque[bytes] = deque()  # of the answer, while the request is being sent

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives within `timeout` seconds, b"" at the end."""
        if self._early:
            return self._early.popleft()
        try:
            with anyio.fail_after(remaining(self.default if timeout is None else timeout)):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError as exc:
            raise httpcore.ReadTimeout("timed out") from exc
        except _BROKEN as exc:
            raise httpcore.ReadError(_reason(exc)) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything within `timeout` seconds."""
        if not buffer:
            return
        try:
            with anyio.fail_after(remaining(self.default if timeout is None else timeout)):
                if self.listens and len(buffer) > 16384:
                    await self._send_and_listen(buffer)
                else:
                    await self._stream.send(buffer)
        except TimeoutError as exc:
            # As in the sync stream: an early answer is worth more than the timeout.
            raise (httpcore.WriteError if self._early else httpcore.WriteTimeout)(
                "timed out"
            ) from exc
        except _BROKEN as exc:
            raise httpcore.WriteError(_reason(exc)) from exc

    async def _send_and_listen(self, buffer: bytes) -> None:
        """Send, and take in what the server says meanwhile.

        A server that answers 413 or 503 before it has read the upload, and closes, makes the
        write fail; asyncio then throws away the answer if nobody has read it by then.
        """
        failed: list[Exception] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen)
            for _ in range(10):  # what is here already: TLS's own records, or the answer
                if not super().get_extra_info("is_readable"):
                    break
                await anyio.lowlevel.checkpoint()
            try:
                await self._stream.send(buffer)
            except _BROKEN as exc:
                failed.append(exc)
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]

    async def _listen(self) -> None:
        with suppress(*_BROKEN):  # the next read will say so
            while True:
                self._early.append(await self._stream.receive())

    async def aclose(self) -> None:
        """Close the connection; never raises, also when it was lost before."""
        with suppress(*_BROKEN):
            await super().aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return this connection under TLS; it is closed when that fails or is cancelled."""
        with _connecting():
            async with _closing_on_failure(self._stream):
                with anyio.fail_after(remaining(timeout)):
                    tls = await TLSStream.wrap(
                        self._stream,
                        ssl_context=ssl_context,
                        hostname=server_hostname,
                        standard_compatible=False,
                        server_side=False,
                    )
        return AsyncStream(tls)

    def get_extra_info(self, info: str) -> Any:
        """Answer as httpcore does, but for "is_readable": bytes that were taken in count too."""
        if info == "is_readable" and (self._early or _holds_bytes(self._stream)):
            return True
        return super().get_extra_info(info)


def _holds_bytes(stream: Any) -> bool:
    """Whether bytes wait above the socket, in TLS or in asyncio, where select can't see them."""
    while isinstance(stream, TLSStream):
        if stream._read_bio.pending or stream.extra(TLSAttribute.ssl_object).pending():
            return True
        stream = stream.transport_stream
    return bool(getattr(getattr(stream, "_protocol", None), "read_queue", None))


@asynccontextmanager
async def _closing_on_failure(stream: anyio.abc.AsyncResource) -> AsyncGenerator[None]:
    try:
        yield
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


class AsyncBackend(httpcore.AnyIOBackend):
    """anyio's sockets, on asyncio and on trio alike."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers (happy eyeballs)."""
        with _connecting():
            _check_port(port)
            with anyio.fail_after(remaining(timeout)):
                stream = await anyio.connect_tcp(host, port, local_host=local_address)
            async with _closing_on_failure(stream):
                raw: Any = stream.extra(anyio.abc.SocketAttribute.raw_socket)
                for option in (*(socket_options or ()), _NODELAY):
                    raw.setsockopt(*option)
            return AsyncStream(stream)


class HandshakeBackend(Backend):
    """For one connection: keeps its stream, whose operations without a limit get the connect one.

    That is httpcore's SOCKS handshake, which reads and writes without any.
    """

    stream: Any = None

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **options: Any
    ) -> Any:
        """Connect to the first address that answers."""
        self.stream = super().connect_tcp(host, port, timeout, *args, **options)
        self.stream.default = timeout
        return self.stream


class AsyncHandshakeBackend(AsyncBackend):
    """The same for an async connection."""

    stream: Any = None

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **options: Any
    ) -> Any:
        """Connect to the first address that answers."""
        self.stream = await super().connect_tcp(host, port, timeout, *args, **options)
        self.stream.default = timeout
        return self.stream
