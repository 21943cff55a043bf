"""httpcore's pools with ours inside.

What somebody has put in the place of `httpcore.ConnectionPool.handle_request`, or around it, is
called as ever. httpcore's own function, which it may call, takes ours for its list of requests and
for the connection; where nobody has, that detour is left out: it costs more than all of ours.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import nullcontext
from types import FunctionType, MethodType
from typing import Any

import anyio
import httpcore

from ._locked import Lease
from ._network import AsyncBackend, Backend
from ._pool import PoolCore
from ._runtime import run

SCHEMES = (b"http", b"https", b"ws", b"wss")  # httpcore says what is wrong with others


class _Requests:
    """In the place of httpcore's list of requests: each has its "connection" at once, the core."""

    def __init__(self, core: PoolCore) -> None:
        self._core = core

    def append(self, pool_request: Any) -> None:
        """Take in a request."""
        pool_request.assign_to_connection(self._core)

    def remove(self, pool_request: Any) -> None:
        """Forget it: what it had was given back by its own way out."""


class SyncCore(PoolCore):
    """The sync pool's."""

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request, as a connection of httpcore's does."""
        return run(self.handle(request))

    async def exchange(self, connection: Any, request: httpcore.Request) -> httpcore.Response:
        """Send a request on a connection."""
        response: httpcore.Response = connection.way_in.handle_request(request)
        return response

    def body(self, stream: Any, lease: Lease) -> Any:
        """Return a response's body, which gives the connection back."""
        return Body(stream, lease)


class AsyncCore(PoolCore):
    """The async pool's."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request, as a connection of httpcore's does."""
        return await self.handle(request)

    async def exchange(self, connection: Any, request: httpcore.Request) -> httpcore.Response:
        """Send a request on a connection."""
        response: httpcore.Response = await connection.way_in.handle_async_request(request)
        return response

    def body(self, stream: Any, lease: Lease) -> Any:
        """Return a response's body, which gives the connection back."""
        return AsyncBody(stream, lease)


class Body:
    """A response's body: closed, also because reading it has failed, it gives the connection back.

    (Of its own accord httpx closes only what was read to its end.)
    """

    def __init__(self, stream: Any, lease: Lease) -> None:
        self._stream, self._lease, self._closed = stream, lease, False

    def __iter__(self) -> Generator[bytes]:
        self._lease.request.is_unread = False
        try:
            yield from self._stream
        except BaseException as exc:
            self.close()
            raise exc from None

    def close(self) -> None:
        """Give the connection back."""
        if not self._closed:
            self._closed = True
            try:
                self._stream.close()
            finally:
                self._lease.give_back()


class AsyncBody:
    """The same in the async pool."""

    def __init__(self, stream: Any, lease: Lease) -> None:
        self._stream, self._lease, self._closed = stream, lease, False

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        self._lease.request.is_unread = False
        try:
            async for part in self._stream:
                yield part
        except BaseException as exc:
            await self.aclose()
            raise exc from None

    async def aclose(self) -> None:
        """Give the connection back."""
        if not self._closed:
            self._closed = True
            try:
                with anyio.CancelScope(shield=True):
                    await self._stream.aclose()
            finally:
                self._lease.give_back()


def _is_httpcores_own(method: Any) -> bool:
    # By types and by where its code is: functools.wraps copies names, wrapt's proxies attributes.
    if type(method) is not MethodType or type(method.__func__) is not FunctionType:
        return False
    return str(method.__func__.__globals__["__name__"]).partition(".")[0] == httpcore.__name__


class _Pool:
    """What all of our pools have in common."""

    core: PoolCore

    def take_over(self, stock: object, core: type[PoolCore], backend: Any) -> None:
        """Take the configuration of a pool of httpcore's that has not been used."""
        vars(self).update(vars(stock))
        self.core = core(self, backend)
        ours = {"_requests": _Requests(self.core), "_optional_thread_lock": nullcontext()}
        vars(self).update(ours)

    def _assign_requests_to_connections(self) -> list[Any]:
        return []

    @property
    def connections(self) -> list[Any]:
        """The open connections."""
        return self.core.connections

    def __repr__(self) -> str:
        connections, idle, waiting = self.core.count()
        return (
            f"<{type(self).__name__} [Requests: {waiting} queued | "
            f"Connections: {connections - idle} active, {idle} idle]>"
        )


class Pool(_Pool, httpcore.ConnectionPool):
    """The sync pool: a connection serves one request at a time, HTTP/2 too."""

    def __init__(self, stock: httpcore.ConnectionPool) -> None:
        self.take_over(stock, SyncCore, Backend)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request."""
        handle = super().handle_request
        if request.url.scheme in SCHEMES and _is_httpcores_own(handle):
            return run(self.core.handle(request))
        return handle(request)

    def close(self) -> None:
        """Close all connections, those in use too."""
        self.core.close()


class AsyncPool(_Pool, httpcore.AsyncConnectionPool):
    """The async pool: concurrent requests share an HTTP/2 connection."""

    def __init__(self, stock: httpcore.AsyncConnectionPool) -> None:
        self.take_over(stock, AsyncCore, AsyncBackend)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request."""
        handle = super().handle_async_request
        if request.url.scheme in SCHEMES and _is_httpcores_own(handle):
            return await self.core.handle(request)
        return await handle(request)

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        self.core.close()


class HTTPProxyPool(Pool, httpcore.HTTPProxy):
    """The same through an HTTP proxy."""


class SOCKSProxyPool(Pool, httpcore.SOCKSProxy):
    """The same through a SOCKS proxy."""


class AsyncHTTPProxyPool(AsyncPool, httpcore.AsyncHTTPProxy):
    """The same through an HTTP proxy."""


class AsyncSOCKSProxyPool(AsyncPool, httpcore.AsyncSOCKSProxy):
    """The same through a SOCKS proxy."""


POOLS: dict[type, Callable[[Any], Any]] = {
    httpcore.ConnectionPool: Pool,
    httpcore.HTTPProxy: HTTPProxyPool,
    httpcore.SOCKSProxy: SOCKSProxyPool,
    httpcore.AsyncConnectionPool: AsyncPool,
    httpcore.AsyncHTTPProxy: AsyncHTTPProxyPool,
    httpcore.AsyncSOCKSProxy: AsyncSOCKSProxyPool,
}
