"""httpcore's pools with another assignment: linear, fair, and no slot is ever lost.

`mend` puts them behind a client's own transports. Who gets which connection is decided in
`ledger.py`; what the connections do otherwise than httpcore's is in `connections.py`,
`http2.py` and `network.py`, imported only for the versions that they are made for.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

import anyio
import h2
import httpcore
import httpx

from .._deadline import remaining
from .ledger import Ledger, NotProcessed, Slot, Ticket

_MENDS = httpcore.__version__.startswith("1.0.") and h2.__version__.startswith("4.")
if not _MENDS:
    warnings.warn(
        "httpx-production's connection pool is made for httpcore 1.0 and h2 4; with httpcore "
        f"{httpcore.__version__} and h2 {h2.__version__} clients use httpcore's own",
        RuntimeWarning,
        stacklevel=2,
    )


@dataclass(frozen=True)
class PoolStats:
    """The connections of a client's own transports, at one moment."""

    connections: int
    """Open, or being opened."""
    idle: int
    """Open, with nothing to do."""
    in_use: int
    """The others. Near `max_connections`, requests will soon wait."""
    waiting: int
    """Requests that wait for a connection, each at most `pool_timeout` seconds."""


def mend(client: httpx.Client | httpx.AsyncClient, given: Collection[object]) -> None:
    """Replace the pools of the transports that httpx made, not of those that were `given` to it."""
    if _MENDS:
        for transport in _own(client, given):
            pool: object = transport._pool
            mended = _POOLS.get(type(pool))
            if mended is not None:
                transport._pool = mended(pool)
                transport._pool.timeouts = client.timeout.as_dict()


def stats(client: httpx.Client | httpx.AsyncClient, given: Collection[object]) -> PoolStats:
    """Count what the pools of the client's own transports hold, mended or not."""
    counts = [_count(transport._pool) for transport in _own(client, given)]
    connections, idle, waiting = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
    return PoolStats(connections, idle, connections - idle, waiting)


def _own(client: httpx.Client | httpx.AsyncClient, given: Collection[object]) -> list[Any]:
    transports = [client._transport, *client._mounts.values()]
    theirs = {id(transport) for transport in given}
    kinds = (httpx.HTTPTransport, httpx.AsyncHTTPTransport)
    return [one for one in transports if isinstance(one, kinds) and id(one) not in theirs]


def _count(pool: Any) -> tuple[int, int, int]:
    if isinstance(pool, Pool | AsyncPool):
        return pool.count()
    connections = list(pool._connections)
    idle = sum(connection.is_idle() for connection in connections)
    return len(connections), idle, sum(request.is_queued() for request in list(pool._requests))


def _check(request: httpcore.Request) -> None:
    """Refuse other protocols, in httpcore's words."""
    scheme = request.url.scheme.decode()
    if scheme == "":
        raise httpcore.UnsupportedProtocol(
            "Request URL is missing an 'http://' or 'https://' protocol."
        )
    if scheme not in ("http", "https", "ws", "wss"):
        raise httpcore.UnsupportedProtocol(
            f"Request URL has an unsupported protocol '{scheme}://'."
        )


def _patience(request: Any, ticket: Ticket[Any]) -> float | None:
    """Return what is left of the pool timeout: a second wait does not start it anew."""
    timeout = remaining(request.extensions.get("timeout", {}).get("pool"))
    return None if timeout is None or timeout == math.inf else max(0.0, timeout - ticket.waited)


def _handed_over(response: Any, body: Any) -> httpcore.Response:
    return httpcore.Response(
        response.status,
        headers=response.headers,
        content=body,
        extensions=response.extensions,
    )


def _mocked(method: Callable[..., Any]) -> bool:
    """Whether a mocking library (respx) stands in httpcore's place: then it is called instead."""
    return not method.__module__.startswith("httpcore")


def _limits(pool: Any) -> tuple[float, float, float | None]:
    return pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry


class Pool(httpcore.ConnectionPool):
    """The sync pool: a connection serves one request at a time, HTTP/2 too."""

    # Of requests without any, which are those that an auth flow makes: httpx gives them none.
    timeouts: Mapping[str, float | None] = {}

    def __init__(self, stock: httpcore.ConnectionPool) -> None:
        """Take over the configuration of a pool that has not been used."""
        from .connections import own, reusable
        from .network import Backend

        vars(self).update(vars(stock))
        self._network_backend = Backend()
        # httpcore's own lock is written in Python: Ctrl-C in it can leave it locked for ever.
        self._lock = threading.Lock()

        def create(origin: httpcore.Origin, changed: Callable[[], None]) -> Any:
            return own(self.create_connection(origin), shares=False, changed=lambda: None)

        self._ledger: Ledger[httpcore.ConnectionInterface] = Ledger(
            create, reusable, threading.Event, _limits(stock)
        )

    @property
    def connections(self) -> list[httpcore.ConnectionInterface]:
        """The open connections."""
        return self._ledger.connections

    def count(self) -> tuple[int, int, int]:
        """Return how many connections there are, are idle, and how many requests wait."""
        with self._lock:
            return self._ledger.count()

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request on a connection of the pool."""
        if _mocked(httpcore.ConnectionPool.handle_request):
            return super().handle_request(request)
        _check(request)
        cast("Any", request).extensions.setdefault("timeout", self.timeouts)
        ticket: Ticket[httpcore.ConnectionInterface] = Ticket(self._ledger.lost)
        try:
            response = self._send(request, ticket)
        except BaseException:
            self.leave(ticket)
            raise
        return _handed_over(response, Body(response.stream, self, ticket))

    def _send(
        self, request: httpcore.Request, ticket: Ticket[httpcore.ConnectionInterface]
    ) -> httpcore.Response:
        while True:
            slot = self._wait(request, ticket)
            try:
                return slot.connection.handle_request(request)
            except httpcore.ConnectionNotAvailable:
                pass  # nothing was sent
            except NotProcessed as exc:
                ticket.refused(request, exc)
            except httpx.StreamConsumed as exc:
                raise ticket.refusal or exc from None
            self.leave(ticket)

    def _wait(
        self, request: httpcore.Request, ticket: Ticket[httpcore.ConnectionInterface]
    ) -> Slot[httpcore.ConnectionInterface]:
        with self._lock:
            self._ledger.enter(ticket, request.url.origin)
        self._sweep()
        if ticket.slot is None:
            started = monotonic()
            ticket.event.wait(_patience(request, ticket))
            ticket.waited += monotonic() - started
            with self._lock:
                if ticket.slot is None:
                    raise httpcore.PoolTimeout(self._ledger.crowd(ticket.waited))
        return ticket.slot

    def leave(self, ticket: Ticket[httpcore.ConnectionInterface]) -> None:
        """Give back what a request has of the pool."""
        with self._lock:
            self._ledger.leave(ticket)
        self._sweep()

    def _sweep(self) -> None:
        if self._ledger.closing:
            with self._lock:
                closing, self._ledger.closing = self._ledger.closing, []
            for connection in closing:
                with suppress(Exception):  # not this request's affair
                    connection.close()

    def close(self) -> None:
        """Close all connections, those in use too."""
        with self._lock:
            self._ledger.clear()
        self._sweep()
        super().close()  # what a mocking library let through

    def __repr__(self) -> str:
        return _describe(self)


class Body:
    """A response's body; its connection is free when it was read or closed."""

    def __init__(self, stream: Any, pool: Pool, ticket: Ticket[Any]) -> None:
        self._stream, self._pool, self._ticket = stream, pool, ticket

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back."""
        if self._ticket.lane is not None:
            try:
                self._stream.close()
            finally:
                self._pool.leave(self._ticket)


class AsyncPool(httpcore.AsyncConnectionPool):
    """The async pool: concurrent requests share an HTTP/2 connection."""

    timeouts: Mapping[str, float | None] = {}

    def __init__(self, stock: httpcore.AsyncConnectionPool) -> None:
        """Take over the configuration of a pool that has not been used."""
        from .connections import own, reusable
        from .network import AsyncBackend

        vars(self).update(vars(stock))
        self._network_backend = AsyncBackend()

        def create(origin: httpcore.Origin, changed: Callable[[], None]) -> Any:
            return own(self.create_connection(origin), shares=True, changed=changed)

        self._ledger: Ledger[httpcore.AsyncConnectionInterface] = Ledger(
            create, reusable, anyio.Event, _limits(stock)
        )

    @property
    def connections(self) -> list[httpcore.AsyncConnectionInterface]:
        """The open connections."""
        return self._ledger.connections

    def count(self) -> tuple[int, int, int]:
        """Return how many connections there are, are idle, and how many requests wait."""
        return self._ledger.count()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request on a connection of the pool."""
        if _mocked(httpcore.AsyncConnectionPool.handle_async_request):
            return await super().handle_async_request(request)
        _check(request)
        cast("Any", request).extensions.setdefault("timeout", self.timeouts)
        ticket: Ticket[httpcore.AsyncConnectionInterface] = Ticket(self._ledger.lost)
        try:
            response = await self._send(request, ticket)
        except BaseException:
            await self.leave(ticket)
            raise
        return _handed_over(response, AsyncBody(response.stream, self, ticket))

    async def _send(
        self, request: httpcore.Request, ticket: Ticket[httpcore.AsyncConnectionInterface]
    ) -> httpcore.Response:
        while True:
            slot = await self._wait(request, ticket)
            try:
                return await slot.connection.handle_async_request(request)
            except httpcore.ConnectionNotAvailable:
                pass  # nothing was sent
            except NotProcessed as exc:
                ticket.refused(request, exc)
            except httpx.StreamConsumed as exc:
                raise ticket.refusal or exc from None
            await self.leave(ticket)

    async def _wait(
        self, request: httpcore.Request, ticket: Ticket[httpcore.AsyncConnectionInterface]
    ) -> Slot[httpcore.AsyncConnectionInterface]:
        self._ledger.enter(ticket, request.url.origin)
        await self._sweep()
        if ticket.slot is None:
            started = monotonic()
            with anyio.move_on_after(_patience(request, ticket)):
                await ticket.event.wait()
            ticket.waited += monotonic() - started
            if ticket.slot is None:
                raise httpcore.PoolTimeout(self._ledger.crowd(ticket.waited))
        return ticket.slot

    async def leave(self, ticket: Ticket[httpcore.AsyncConnectionInterface]) -> None:
        """Give back what a request has of the pool."""
        self._ledger.leave(ticket)
        await self._sweep()

    async def _sweep(self) -> None:
        closing, self._ledger.closing = self._ledger.closing, []
        if closing:
            with anyio.CancelScope(shield=True):
                for connection in closing:
                    with suppress(Exception):  # not this request's affair
                        await connection.aclose()

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        self._ledger.clear()
        await self._sweep()
        await super().aclose()

    def __repr__(self) -> str:
        return _describe(self)


class AsyncBody:
    """A response's body; its connection is free when it was read or closed."""

    def __init__(self, stream: Any, pool: AsyncPool, ticket: Ticket[Any]) -> None:
        self._stream, self._pool, self._ticket = stream, pool, ticket

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._stream:
                yield part
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Give the connection back."""
        if self._ticket.lane is not None:
            with anyio.CancelScope(shield=True):
                try:
                    await self._stream.aclose()
                finally:
                    await self._pool.leave(self._ticket)


def _describe(pool: Pool | AsyncPool) -> str:
    connections, idle, waiting = pool.count()
    return (
        f"<{type(pool).__name__} [Requests: {waiting} queued | "
        f"Connections: {connections - idle} active, {idle} idle]>"
    )


class HTTPProxyPool(Pool, httpcore.HTTPProxy):
    """The same through an HTTP proxy."""


class SOCKSProxyPool(Pool, httpcore.SOCKSProxy):
    """The same through a SOCKS proxy."""


class AsyncHTTPProxyPool(AsyncPool, httpcore.AsyncHTTPProxy):
    """The same through an HTTP proxy."""


class AsyncSOCKSProxyPool(AsyncPool, httpcore.AsyncSOCKSProxy):
    """The same through a SOCKS proxy."""


_POOLS: dict[type, Callable[[Any], Any]] = {
    httpcore.ConnectionPool: Pool,
    httpcore.HTTPProxy: HTTPProxyPool,
    httpcore.SOCKSProxy: SOCKSProxyPool,
    httpcore.AsyncConnectionPool: AsyncPool,
    httpcore.AsyncHTTPProxy: AsyncHTTPProxyPool,
    httpcore.AsyncSOCKSProxy: AsyncSOCKSProxyPool,
}
