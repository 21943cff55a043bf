"""A pool's requests: each waits for its connection, is sent on it, and gives it back."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any
from weakref import WeakSet

import httpcore
import httpx

from .._deadline import current_value
from ._assignment import EXPECTATION, Assignment, OriginKey, PooledConnection, PoolRequest
from ._connections import HTTPConnection
from ._http2_stream import HTTP11Required, NotProcessed, SendElsewhere
from ._locked import Lease, LockedAssignment
from ._network import AsyncBackend, Backend
from ._runtime import is_over

_pools: WeakSet[PoolCore] = WeakSet()


class PoolCore(ABC):
    """Sends the requests of one pool."""

    def __init__(self, pool: Any, backend: type[Backend | AsyncBackend]) -> None:
        self._pool, self._backend = pool, backend
        self._runtime = backend().runtime
        limits = pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry
        self._limits: tuple[float, float, float | None] = limits
        self._http1_origins: set[OriginKey] = set()
        # One for each event loop: a connection is of use only where it was made.
        self._loops: dict[Any, LockedAssignment] = {}
        _pools.add(self)

    def forget(self) -> None:
        """Begin with no connections and fresh locks: in a child process."""
        self._loops = {}

    # --- one request ------------------------------------------------------------------------------

    async def handle(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; its connection is free when the response has been read or closed."""
        lease = Lease(self._locked())
        try:
            response = await self._send(request, lease)
            response.stream = self.body(response.stream, lease)
            return response
        except BaseException as exc:
            lease.give_back()
            raise exc from None

    async def _send(self, request: httpcore.Request, lease: Lease) -> httpcore.Response:
        key, moved = self._key(request), False
        while True:
            pooled = await self._acquire(request, lease, key)
            connection: Any = pooled.connection
            try:
                lease.request.finish = partial(connection.finish_request, request)
                if not connection.has_expired():
                    response = await self.exchange(connection, request)
                    lease.request.is_unread = True
                    return response
            except httpcore.ConnectionNotAvailable:
                pass  # nothing was sent
            except (NotProcessed, HTTP11Required) as exc:
                if isinstance(exc, HTTP11Required) and self._pool._http1:
                    self._http1_origins.add(key)
                if moved or not _can_be_sent_again(request, exc):
                    raise
                key, moved = self._key(request), True

    def _key(self, request: httpcore.Request) -> OriginKey:
        origin = request.url.origin
        key = origin.scheme, origin.host, origin.port, False
        if not self._pool._http2 or not self._pool._http1:
            return key
        upgrades = b"upgrade" in [name.lower() for name, _ in request.headers]
        return (*key[:3], True) if upgrades or key in self._http1_origins else key

    async def _acquire(
        self, request: httpcore.Request, lease: Lease, key: OriginKey
    ) -> PooledConnection:
        locked, mine = lease.locked, lease.request
        if locked.is_inside():  # nobody could give it a connection before the handler returns
            raise RuntimeError("a request by a signal handler that has interrupted the pool itself")
        locked.do(lambda: locked.assignment.acquire(mine, key))
        return mine.pooled or await self._wait(locked, mine, _pool_timeout(request))

    async def _wait(
        self, locked: LockedAssignment, mine: PoolRequest, timeout: float | None
    ) -> PooledConnection:
        expectation = EXPECTATION
        while (pooled := locked.do(lambda: self._look(mine))) is None:
            expecting = locked.assignment.is_expecting(mine)
            limit = expectation if expecting else _patience(timeout, mine)
            started = monotonic()
            is_woken = mine.event is None or await mine.event.wait(limit)
            elapsed = monotonic() - started
            if expecting:
                expectation -= elapsed
            else:
                mine.waited += elapsed
            if not is_woken:
                locked.do(partial(_stop_waiting, locked.assignment, mine, expecting))
        return pooled

    def _look(self, mine: PoolRequest) -> PooledConnection | None:
        """Return the connection that a request has been given; else have it woken."""
        if mine.error is not None:
            raise mine.error
        if mine.pooled is None:
            mine.event = self._runtime.event()
        return mine.pooled

    # --- connections ------------------------------------------------------------------------------

    def _locked(self) -> LockedAssignment:
        loop = self._runtime.loop()
        if (locked := self._loops.get(loop)) is not None:
            return locked
        for other, left_over in list(self._loops.items()):
            if is_over(other):
                self._loops.pop(other, None)
                left_over.note(partial(left_over.assignment.close, _closed_error()))
        locked = LockedAssignment(loop, self._runtime)
        locked.assignment = Assignment(self._create, locked.note_change, self._limits)
        return self._loops.setdefault(loop, locked)

    def _create(self, key: OriginKey, changed: Callable[[], None]) -> HTTPConnection:
        scheme, host, port, http1_only = key
        stock = self._pool.create_connection(httpcore.Origin(scheme, host, port))
        backend = self._backend()
        parts: list[Any] = [stock, getattr(stock, "_connection", None)]  # a tunnel, the proxy's
        for part in parts:
            if hasattr(part, "_network_backend"):
                part._network_backend = backend
        if http1_only:
            stock._http2 = False
        return HTTPConnection(stock, backend, changed)

    @property
    def connections(self) -> list[Any]:
        """httpcore's open connections."""
        found: list[Any] = []
        for locked in list(self._loops.values()):
            found += locked.assignment.connections
        return [connection.http for connection in found]

    def count(self) -> tuple[int, int, int]:
        """Return how many connections there are, are idle, and how many requests wait.

        Without the lock: a signal handler may ask that has interrupted its holder.
        """
        counts = [locked.assignment.count() for locked in list(self._loops.values())]
        return sum(c[0] for c in counts), sum(c[1] for c in counts), sum(c[2] for c in counts)

    def close(self) -> None:
        """Close all connections, those in use too; who waits for one gets an error at once."""
        for locked in list(self._loops.values()):
            locked.note(partial(locked.assignment.close, _closed_error()))

    # --- what differs between the flavours --------------------------------------------------------

    @abstractmethod
    async def exchange(self, connection: Any, request: httpcore.Request) -> httpcore.Response:
        """Send a request on a connection."""
        ...

    @abstractmethod
    def body(self, stream: Any, lease: Lease) -> Any:
        """Return a response's body, which gives the connection back."""
        ...


def _pool_timeout(request: Any) -> float | None:
    timeout: float | None = request.extensions.get("timeout", {}).get("pool")
    return timeout


def _closed_error() -> Exception:
    return RuntimeError("the connection pool was closed before this request was sent")


def _patience(timeout: float | None, mine: PoolRequest) -> float | None:
    """Return what is left of the pool timeout: a second wait does not start it anew."""
    limit = current_value(timeout)
    if timeout is None or limit is None or limit == math.inf:
        return None
    return max(0.0, min(limit, timeout - mine.waited))


def _stop_waiting(assignment: Assignment, mine: PoolRequest, expecting: bool) -> None:
    if expecting:
        assignment.stop_expecting(mine)
    elif mine.pooled is None and mine.error is None:
        raise httpcore.PoolTimeout(pool_timeout_message(assignment, mine.waited))


def _can_be_sent_again(request: httpcore.Request, exc: SendElsewhere) -> bool:
    stream: Any = request.stream
    repeats = isinstance(stream, httpx.ByteStream) or getattr(stream, "replayable", False)
    return repeats or not exc.body_started


def pool_timeout_message(assignment: Assignment, waited: float) -> str:
    """Say why a request got no connection in time, and what to do about it."""
    connections, idle, waiting = assignment.count()
    shared, streams, capacity = assignment.streams()
    unclosed = assignment.unclosed()
    in_use = f"{connections - idle} of {_counted(assignment.max_connections, 'connection')} in use"
    if shared:
        in_use += f" ({streams} of {_counted(capacity, 'stream')} on {shared} over HTTP/2)"
    advice = "raise max_connections or pool_timeout"
    if unclosed:
        those = "a response that was" if unclosed == 1 else "responses that were"
        in_use += f", {unclosed} of them by {those} not closed"
        advice = "close streamed responses, or raise max_connections or pool_timeout"
    waits = f"{_counted(waiting, 'request')} waiting"
    return f"no free connection after {waited:.1f} s: {in_use}, {waits}; {advice}"


def _counted(number: float, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _after_fork() -> None:
    for core in list(_pools):
        core.forget()


if hasattr(os, "register_at_fork"):  # pragma: no branch  (not on Windows)
    os.register_at_fork(after_in_child=_after_fork)
