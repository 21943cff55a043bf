"""Which request gets which connection of a pool, in constant time: no I/O, no waiting, no locks.

Each step can be done again from its start when Ctrl-C ended it half-way: sets and dicts are
changed, nothing is counted, and what undoes a step is noted first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Protocol

from ._runtime import Event

EXPECTATION = 0.25  # seconds to wait for a connection that may turn out to be shared
MOST_PATIENCE = 0.25  # seconds at the head of the line, before a shared connection gives way

type OriginKey = tuple[bytes, bytes, int, bool]  # scheme, host, port, HTTP/1.1 only


class Connection(Protocol):
    """What the assignment asks of a connection."""

    @property
    def capacity(self) -> int | None:
        """Requests that it takes at a time, 0 when it takes no new ones; None: not known yet."""

    @property
    def shared(self) -> bool:
        """Whether that can be more than one: HTTP/2 in the async pool."""
        ...

    def finish_request(self, request: object) -> None: ...
    def is_reusable(self) -> bool: ...
    def close(self) -> None: ...


class PooledConnection:
    """A connection, and the requests that are on it."""

    def __init__(self, connection: Connection, origin: Origin) -> None:
        self.connection = connection
        self.origin = origin
        self.requests: set[PoolRequest] = set()
        self.idle_since = 0.0

    def has_capacity(self) -> bool:
        """Tell whether one more request may be on it."""
        return len(self.requests) < (self.connection.capacity or 0)


class Origin:
    """All that leads to one origin, and the requests that wait for it."""

    def __init__(self, key: OriginKey) -> None:
        self.key = key
        self.requests: set[PoolRequest] = set()
        self.idle: OrderedDict[PooledConnection, None] = OrderedDict()  # last used: last
        self.shared: dict[PooledConnection, None] = {}  # in use
        self.connecting: dict[PooledConnection, None] = {}  # in use, capacity not known yet
        self.waiting: OrderedDict[PoolRequest, None] = OrderedDict()
        self.expecting: OrderedDict[PoolRequest, None] = OrderedDict()  # of those, see `Assignment`
        self.last_was_shared = True  # as far as is known
        self.usual_capacity = 100

    def expects_shared_connection(self) -> bool:
        """Tell whether one more request may wait for the connections that are being made."""
        if not self.connecting or not self.last_was_shared:
            return False
        return len(self.expecting) < len(self.connecting) * self.usual_capacity


class PoolRequest:
    """One request's place in the pool: in line, or on a connection."""

    # Of the class, not of each instance: most requests never wait.
    is_in_pool = False
    origin: Origin | None = None
    pooled: PooledConnection | None = None
    event: Event | None = None  # set when there is news for it
    error: Exception | None = None  # the pool was closed
    queued_since = 0.0
    waited = 0.0  # seconds, of its pool timeout
    has_waited = False
    had_connection = False  # and may be back for another one
    is_unread = False  # its response has come, and nobody has begun to read it
    finish: Callable[[], None] | None = None  # gives back what it has of its connection
    watch: object = None  # see `_locked.py`

    def wake(self) -> None:
        """Let it look at its place again."""
        if self.event is not None:
            self.event.set()


type Draining = tuple[PoolRequest, PooledConnection]


class Assignment:
    """Which request is on which connection, and who is next.

    A request waits in line, first come, first served across origins, when the pool is full. It
    also waits, for a moment, while a connection is being made that it may be able to share: such a
    request is "expecting", and not in line. When nothing comes of it, it joins the line's end.

    Not thread-safe: the pool holds its lock around each call.
    """

    def __init__(
        self,
        create: Callable[[OriginKey, Callable[[], None]], Connection],
        changed: Callable[[PooledConnection], None],
        limits: tuple[float, float, float | None],
    ) -> None:
        self._create, self._changed = create, changed
        self.max_connections, self._max_keepalive, self._keepalive_expiry = limits
        self._origins: dict[OriginKey, Origin] = {}
        self._connections: dict[PooledConnection, None] = {}
        self._idle: OrderedDict[PooledConnection, None] = OrderedDict()  # longest idle: first
        self._line: OrderedDict[PoolRequest, None] = OrderedDict()
        self._expecting: dict[PoolRequest, None] = {}
        self._draining: Draining | None = None  # for whom, and which
        # Begun, and by Ctrl-C perhaps ended half-way: out of the pool; to a connection, or a line;
        # from a connection to another one, perhaps of another origin.
        self._dropping: dict[PooledConnection, None] = {}
        self._moving: dict[PoolRequest, Origin] = {}
        self._leaving: dict[PoolRequest, Origin] = {}

    # --- what the pool asks -----------------------------------------------------------------------

    def acquire(self, request: PoolRequest, key: OriginKey) -> None:
        """Give a request its connection, or a place in line.

        Or another connection, when the one that it has turned out to be of no use.
        """
        if self._dropping or self._moving or self._leaving:
            self._resume()
        if request.error is not None:
            raise request.error
        request.is_in_pool = True  # first: from now on `release` undoes it
        if (useless := request.pooled) is not None:
            self._leave(request, useless)
        origin = self._origins.get(key) or self._origins.setdefault(key, Origin(key))
        request.origin = origin
        origin.requests.add(request)
        if useless is not None:
            self._place_or_wait(request, origin, may_expect=True)
            self._resume()
        elif not self._place(request, origin, may_expect=True):
            self._wait(request, origin, may_expect=True)

    def is_expecting(self, request: PoolRequest) -> bool:
        """Tell whether a request waits for a connection that it may share."""
        return request in self._expecting

    def stop_expecting(self, request: PoolRequest) -> None:
        """Let a request make a connection of its own, if there is room, or stand in line."""
        self._resume()
        if request.origin is not None and request in self._expecting:
            self._place_or_wait(request, request.origin, may_expect=False)

    def release(self, request: PoolRequest) -> None:
        """Take back what a request has, whatever that is; who waits gets it."""
        if self._dropping or self._moving or self._leaving:
            self._resume()
        origin, pooled, draining = request.origin, request.pooled, self._draining
        if origin is None:
            return
        if request.has_waited:
            self._stop_waiting(request, origin)
        origin.requests.discard(request)
        if pooled is not None:
            pooled.requests.discard(request)
            if not pooled.requests and pooled not in self._idle:
                self._retire(pooled)
        if origin.waiting or self._line or draining is not None:
            self._serve(origin, draining)
        self._expire_idle()
        self._drop_if_unused(origin)
        request.pooled = request.origin = None
        request.is_in_pool = False  # last: then nothing is left

    def update(self, pooled: PooledConnection) -> None:
        """Take note that a connection has been made, or takes more or fewer requests."""
        self._resume()
        origin, connection = pooled.origin, pooled.connection
        if connection.capacity is None or pooled not in self._connections:
            return
        origin.last_was_shared = connection.shared
        origin.connecting.pop(pooled, None)
        if connection.shared and pooled.requests:
            origin.shared[pooled] = None
            origin.usual_capacity = connection.capacity or origin.usual_capacity
        self._serve(origin)

    def close(self, error: Exception) -> None:
        """Give up all connections, those in use too, and everybody who waits, or would again."""
        self._resume()
        for origin in self._origins.values():
            for request in origin.requests:
                request.error = error
        for request in [*self._line, *self._expecting]:
            with suppress(RuntimeError):  # its event loop is gone
                request.wake()
        self._line.clear()
        self._expecting.clear()
        for origin in self._origins.values():
            origin.waiting.clear()
            origin.expecting.clear()
        for pooled in list(self._connections):
            self._drop(pooled)

    @property
    def connections(self) -> list[Connection]:
        """The open connections."""
        return [pooled.connection for pooled in list(self._connections)]

    @property
    def waiting(self) -> list[PoolRequest]:
        """The requests that wait, first the one that is next."""
        return [*list(self._line), *list(self._expecting)]

    def count(self) -> tuple[int, int, int]:
        """Return how many connections there are, are idle, and how many requests wait."""
        return len(self._connections), len(self._idle), len(self._line) + len(self._expecting)

    def streams(self) -> tuple[int, int, int]:
        """Return how many connections are shared, their requests, and how many they could take."""
        shared = [pooled for pooled in list(self._connections) if pooled.connection.shared]
        in_use = sum(len(pooled.requests) for pooled in shared)
        return len(shared), in_use, sum(pooled.connection.capacity or 0 for pooled in shared)

    def unclosed(self) -> int:
        """Return how many connections are held by nothing but responses that nobody reads."""
        held = (list(pooled.requests) for pooled in list(self._connections))
        return sum(bool(on_it) and all(one.is_unread for one in on_it) for on_it in held)

    # --- placing ----------------------------------------------------------------------------------

    def _resume(self) -> None:
        """End what Ctrl-C has ended half-way."""
        for pooled in list(self._dropping):
            self._drop(pooled)
        for request, origin in list(self._moving.items()):
            self._place_or_wait(request, origin, may_expect=False)
        for request, origin in list(self._leaving.items()):
            if request.origin is not origin:
                origin.requests.discard(request)
            self._serve(origin)
            self._drop_if_unused(origin)
            self._leaving.pop(request, None)

    def _place_or_wait(self, request: PoolRequest, origin: Origin, *, may_expect: bool) -> bool:
        """Give a waiting request its connection, or another place to wait; tell which."""
        self._moving[request] = origin
        if is_placed := self._place(request, origin, may_expect=may_expect):
            self._stop_waiting(request, origin)
            request.wake()
        else:
            self._wait(request, origin, may_expect=may_expect)
        self._moving.pop(request, None)
        return is_placed

    def _wait(self, request: PoolRequest, origin: Origin, *, may_expect: bool) -> None:
        request.has_waited = True
        expects = may_expect and origin.expects_shared_connection()
        self._stop_waiting(request, origin)
        if expects:
            origin.expecting[request] = self._expecting[request] = None
        else:
            self._line[request] = None
            self._line.move_to_end(request, last=not request.had_connection)
            request.queued_since = monotonic()
            request.wake()
        origin.waiting[request] = None
        origin.waiting.move_to_end(request, last=not request.had_connection)

    def _stop_waiting(self, request: PoolRequest, origin: Origin) -> None:
        for line in (self._line, self._expecting, origin.waiting, origin.expecting):
            line.pop(request, None)
        if self._draining is not None and self._draining[0] is request:
            self._draining = None

    def _place(self, request: PoolRequest, origin: Origin, *, may_expect: bool) -> bool:
        # It has one already where Ctrl-C kept it in line: then all is done again.
        pooled = request.pooled or self._shared_with_capacity(origin) or self._usable_idle(origin)
        expects = may_expect and origin.expects_shared_connection()
        if pooled is None and not expects and self._is_next(request):
            pooled = self._open(origin)
        if pooled is None:
            return False
        request.pooled = pooled  # first: `release` undoes the rest
        request.had_connection = True
        pooled.requests.add(request)
        self._connections[pooled] = None
        self._idle.pop(pooled, None)
        origin.idle.pop(pooled, None)
        if pooled.connection.capacity is None:
            origin.connecting[pooled] = None
        elif pooled.connection.shared:
            origin.shared[pooled] = None
        return True

    def _is_next(self, request: PoolRequest) -> bool:
        """Tell whether what is free is for this request: nobody stands in line before it."""
        return not self._line or next(iter(self._line)) is request

    def _shared_with_capacity(self, origin: Origin) -> PooledConnection | None:
        for pooled in origin.shared:
            if pooled.has_capacity() and not self._must_drain(pooled):
                return pooled
        return None

    def _must_drain(self, pooled: PooledConnection) -> bool:
        """Tell whether a shared connection has to make room, once its requests have ended.

        While new requests join it, it never gets idle, and one who waits for another origin would
        wait for ever: after a moment, one connection takes no more.
        """
        head = next(iter(self._line), None)
        if head is None or head.origin is pooled.origin:
            return False
        if self._draining is None:
            if monotonic() - head.queued_since < MOST_PATIENCE:
                return False
            self._draining = head, pooled
        return self._draining[1] is pooled

    def _usable_idle(self, origin: Origin) -> PooledConnection | None:
        """Return the origin's most recently used idle connection, unless it is too old.

        It is the least likely to have been closed by the server. Whoever gets it has to look: a
        system call here would keep all other threads out of the pool.
        """
        while origin.idle:
            pooled = next(reversed(origin.idle))
            if pooled.idle_since >= self._oldest():
                return pooled
            self._drop(pooled)
        return None

    def _open(self, origin: Origin) -> PooledConnection | None:
        """Make a connection, if need be in the place of the longest idle one."""
        if len(self._connections) >= self.max_connections and self._idle:
            self._drop(next(iter(self._idle)))
        if len(self._connections) >= self.max_connections:
            return None
        pooled: PooledConnection
        connection = self._create(origin.key, lambda: self._changed(pooled))
        pooled = PooledConnection(connection, origin)
        return pooled

    def _leave(self, request: PoolRequest, useless: PooledConnection) -> None:
        """Take a request from its connection, and drop that one, if nobody else is on it.

        The request is first in line by then. Or what it leaves would go to those behind it, and
        where the server closes each connection that it was to keep, time and again.
        """
        request.has_waited = True
        self._line[request] = None
        self._line.move_to_end(request, last=False)
        self._leaving[request] = useless.origin
        if is_alone := useless.requests == {request}:
            self._dropping[useless] = None
        useless.requests.discard(request)
        request.pooled = None
        if is_alone:
            self._drop(useless)

    # --- giving back ------------------------------------------------------------------------------

    def _retire(self, pooled: PooledConnection) -> None:
        """Keep a connection that its last request has left, if it is good for another."""
        if pooled in self._connections and pooled.connection.is_reusable():
            pooled.origin.shared.pop(pooled, None)
            pooled.origin.connecting.pop(pooled, None)
            pooled.idle_since = monotonic()
            pooled.origin.idle[pooled] = None
            self._idle[pooled] = None
        else:
            self._drop(pooled)

    def _drop(self, pooled: PooledConnection) -> None:
        self._dropping[pooled] = None
        pooled.connection.close()
        origin = pooled.origin
        shelves = (self._connections, self._idle, origin.idle, origin.shared, origin.connecting)
        for shelf in shelves:
            shelf.pop(pooled, None)
        self._drop_if_unused(origin)
        self._dropping.pop(pooled, None)

    def _drop_if_unused(self, origin: Origin) -> None:
        unused = not (origin.requests or origin.idle or origin.shared or origin.connecting)
        if unused and self._origins.get(origin.key) is origin:
            del self._origins[origin.key]

    def _serve(self, origin: Origin, draining: Draining | None = None) -> None:
        """Give what has become free to those who wait, in order."""
        draining = draining or self._draining
        self._serve_expecting(origin)
        while origin.waiting and self._shared_with_capacity(origin):
            self._place_or_wait(next(iter(origin.waiting)), origin, may_expect=False)
        while self._line:
            request = next(iter(self._line))
            if request.origin is None or not self._serve_head(request, request.origin):
                break
        if draining is not None and self._draining is not draining:  # it takes requests again
            self._serve(draining[1].origin)

    def _serve_head(self, request: PoolRequest, origin: Origin) -> bool:
        self._moving[request] = origin
        if is_placed := self._place(request, origin, may_expect=False):
            self._stop_waiting(request, origin)
            request.wake()
        self._moving.pop(request, None)
        return is_placed

    def _serve_expecting(self, origin: Origin) -> None:
        """Let those go on whose expectation has come to nothing: HTTP/1.1, or no connection."""
        if origin.last_was_shared and origin.connecting:
            return
        for request in list(origin.expecting):
            self._place_or_wait(request, origin, may_expect=True)

    def _expire_idle(self) -> None:
        """Close idle connections that are too many or too old, the longest idle ones first."""
        while self._idle:
            pooled = next(iter(self._idle))
            if len(self._idle) <= self._max_keepalive and pooled.idle_since >= self._oldest():
                break
            self._drop(pooled)

    def _oldest(self) -> float:
        """Return since when, at most, a connection may have been idle."""
        return -math.inf if self._keepalive_expiry is None else monotonic() - self._keepalive_expiry
