"""Which request gets which connection of a pool, in constant time: no I/O, no waiting, no locks.

The pools of this package do what is decided here, in the sync and in the async way.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import httpcore

MOST_SENDS = 3  # of a request that servers say they did not process


class NotProcessed(httpcore.RemoteProtocolError):
    """The server says that it did nothing with the request: safe to send again, POST included.

    RFC 9113 8.7: streams above a GOAWAY's last id, and those reset with REFUSED_STREAM.
    """


class Connection(Protocol):
    """What a ledger asks a connection, beside `multiplexes` and `streams` (see `Slot`)."""

    def is_idle(self) -> bool: ...
    def has_expired(self) -> bool: ...


C = TypeVar("C", bound=Connection)


class Slot(Generic[C]):
    """A connection, and how many requests are on it."""

    def __init__(self, connection: C, lane: Lane[C]) -> None:
        self.connection = connection
        self.lane = lane
        self.users: set[int] = set()  # ids of tickets: a set, so that each step can be done again
        self.idle_since = 0.0

    @property
    def multiplexes(self) -> bool | None:
        """Whether requests can share it; None while that is being negotiated."""
        return getattr(self.connection, "multiplexes", False)

    @property
    def streams(self) -> int:
        """How many requests it takes at a time; 0 when it will take no new ones."""
        return getattr(self.connection, "streams", 1)


class Lane(Generic[C]):
    """All that leads to one origin."""

    def __init__(self, key: tuple[bytes, bytes, int]) -> None:
        self.key = key
        self.members = 0  # slots and tickets: the lane goes when there are none
        self.idle: OrderedDict[Slot[C], None] = OrderedDict()  # the most recently used one last
        self.shared: dict[Slot[C], None] = {}  # in use, and multiplexing
        self.connecting: dict[Slot[C], None] = {}  # in use, and may turn out to multiplex
        self.waiting: OrderedDict[Ticket[C], Lane[C]] = OrderedDict()  # for one of those
        self.shares = True  # as far as known: what the last connection negotiated

    @property
    def promising(self) -> bool:
        """Whether a connection that can be shared is here, if full, or on its way.

        While the first one to an unknown origin is made, the others wait for it: a round trip
        later they know whether one connection serves them all. The answer is remembered, so that
        with HTTP/1.1 only the first burst waits.
        """
        return bool(self.connecting) or any(slot.streams for slot in self.shared)


class Ticket(Generic[C]):
    """One request's place in the pool."""

    def __init__(self, lost: deque[Ticket[C]]) -> None:
        self._lost = lost
        self.lane: Lane[C] | None = None  # while it is in the pool
        self.slot: Slot[C] | None = None
        self.event: Any = None  # set when it gets a slot, if it has to wait
        self.waited = 0.0  # seconds, of its pool timeout
        self.served = False  # it has had a slot, and may be back for another
        self.sends = 0
        self.refusal: NotProcessed | None = None

    def __del__(self) -> None:
        # A response dropped without being closed, or Ctrl-C between two lines: the pool takes
        # back what the ticket has at its next step. Here would be any thread, at any moment.
        if self.lane is not None:
            self._lost.append(self)

    def refused(self, request: httpcore.Request, refusal: NotProcessed) -> None:
        """Note that the server did not process it; raise when it can't be sent again."""
        self.sends += 1
        self.refusal = refusal
        if self.sends == MOST_SENDS or not getattr(request.stream, "replayable", True):
            raise refusal


class Ledger(Generic[C]):
    """Which request is on which connection: no I/O, no waiting, each step in constant time.

    Not thread-safe: the sync pool holds a lock around each call.
    """

    def __init__(
        self,
        create: Callable[[httpcore.Origin, Callable[[], None]], C],
        reusable: Callable[[C], bool],
        event: Callable[[], Any],
        limits: tuple[float, float, float | None],
    ) -> None:
        self._create, self._reusable, self._event = create, reusable, event
        self._max_connections, self._max_keepalive, self._keepalive_expiry = limits
        self._lanes: dict[tuple[bytes, bytes, int], Lane[C]] = {}
        self._slots: dict[Slot[C], None] = {}
        self._idle: OrderedDict[Slot[C], None] = OrderedDict()  # the longest idle one first
        self._queue: OrderedDict[Ticket[C], Lane[C]] = OrderedDict()  # for a free slot, in order
        self.closing: list[C] = []  # no longer in the pool, to be closed by it
        self.lost: deque[Ticket[C]] = deque()

    @property
    def connections(self) -> list[C]:
        """The open connections."""
        return [slot.connection for slot in list(self._slots)]

    def count(self) -> tuple[int, int, int]:
        """Return how many connections there are, are idle, and how many requests wait."""
        in_lanes = sum(len(lane.waiting) for lane in list(self._lanes.values()))
        return len(self._slots), len(self._idle), len(self._queue) + in_lanes

    def crowd(self, waited: float) -> str:
        """Say why a request got no connection in time, and what to do about it."""
        connections, idle, waiting = self.count()
        return (
            f"no free connection after {waited:.1f} s: {connections - idle} of "
            f"{self._max_connections} connections in use, {waiting} requests waiting; "
            "raise max_connections or pool_timeout"
        )

    def enter(self, ticket: Ticket[C], origin: httpcore.Origin) -> None:
        """Give a request its slot, or a place in line: the first one, when it had a slot before."""
        while self.lost:
            self.leave(self.lost.popleft())
        key = (origin.scheme, origin.host, origin.port)
        ticket.lane = lane = self._lanes.setdefault(key, Lane(key))
        lane.members += 1
        if not self._place(ticket, lane):
            ticket.event = self._event()
            line = lane.waiting if lane.promising else self._queue
            line[ticket] = lane
            line.move_to_end(ticket, last=not ticket.served)

    def leave(self, ticket: Ticket[C]) -> None:
        """Take back what a request has, whatever that is; who waits gets it."""
        slot, lane = ticket.slot, ticket.lane
        if lane is None:
            return
        self._queue.pop(ticket, None)
        lane.waiting.pop(ticket, None)
        if slot is not None:
            slot.users.discard(id(ticket))
            if not slot.users and slot not in self._idle:
                self._retire(slot)
            self._serve(lane)
            self._trim()
        ticket.slot = ticket.lane = None  # last, so that after Ctrl-C on the way all is done again
        self._part(lane)

    def changed(self, slot: Slot[C]) -> None:
        """Take note that a connection has been made, or takes more or fewer requests."""
        slot.lane.connecting.pop(slot, None)
        slot.lane.shares = bool(slot.multiplexes)
        if slot.multiplexes and slot.users and slot in self._slots:
            slot.lane.shared[slot] = None
        self._serve(slot.lane)

    def clear(self) -> None:
        """Give up all connections, those in use too, and keep none idle from now on."""
        self._max_keepalive = 0
        for slot in list(self._slots):
            self._drop(slot)
        for lane in list(self._lanes.values()):
            self._serve(lane)

    def _place(self, ticket: Ticket[C], lane: Lane[C]) -> bool:
        # It has one already where Ctrl-C kept it in line: then all is done again.
        slot = ticket.slot or self._with_room(lane) or self._rested(lane)
        if slot is None and not lane.promising and self._make_room():
            slot = self._open(lane)
        if slot is None:
            return False
        ticket.slot, ticket.served = slot, True  # first: now leave() undoes what follows
        slot.users.add(id(ticket))
        self._idle.pop(slot, None)
        lane.idle.pop(slot, None)
        if slot.multiplexes:
            lane.shared[slot] = None
        if ticket.event is not None:
            ticket.event.set()
        return True

    def _with_room(self, lane: Lane[C]) -> Slot[C] | None:
        return next((slot for slot in lane.shared if len(slot.users) < slot.streams), None)

    def _rested(self, lane: Lane[C]) -> Slot[C] | None:
        """Return the lane's most recently used idle slot that is still good.

        Only what is handed out is looked at: asking every idle connection costs a system call
        each. And the last one used is the least likely to have been closed by the server.
        """
        while lane.idle:
            slot = next(reversed(lane.idle))
            if not slot.connection.has_expired():
                return slot
            self._drop(slot)
        return None

    def _make_room(self) -> bool:
        """Whether a connection can be opened, if in the place of the longest idle one."""
        if len(self._slots) >= self._max_connections and self._idle:
            self._drop(next(iter(self._idle)))
        return len(self._slots) < self._max_connections

    def _open(self, lane: Lane[C]) -> Slot[C]:
        slot: Slot[C]
        connection = self._create(httpcore.Origin(*lane.key), lambda: self.changed(slot))
        slot = Slot(connection, lane)
        self._slots[slot] = None
        lane.members += 1
        if slot.multiplexes is None and lane.shares:
            lane.connecting[slot] = None
        return slot

    def _retire(self, slot: Slot[C]) -> None:
        """Keep a connection that the last request has left, if it is good for another."""
        if slot in self._slots and self._reusable(slot.connection):
            slot.lane.shared.pop(slot, None)
            slot.lane.connecting.pop(slot, None)
            slot.idle_since = monotonic()
            slot.lane.idle[slot] = None
            self._idle[slot] = None
        else:
            self._drop(slot)

    def _drop(self, slot: Slot[C]) -> None:
        self.closing.append(slot.connection)
        if slot in self._slots:
            del self._slots[slot]
            self._part(slot.lane)
        for shelf in (self._idle, slot.lane.idle, slot.lane.shared, slot.lane.connecting):
            shelf.pop(slot, None)

    def _part(self, lane: Lane[C]) -> None:
        lane.members -= 1
        if not lane.members:
            self._lanes.pop(lane.key, None)

    def _serve(self, lane: Lane[C]) -> None:
        """Give what has become free to those who wait: in the lane, then in the queue."""
        while lane.waiting and self._place(next(iter(lane.waiting)), lane):
            lane.waiting.popitem(last=False)
        if not lane.promising:
            self._queue.update(lane.waiting)
            lane.waiting.clear()
        while self._queue:
            ticket, lane = next(iter(self._queue.items()))
            if not self._place(ticket, lane):
                if not lane.promising:
                    break
                lane.waiting[ticket] = lane
            del self._queue[ticket]

    def _trim(self) -> None:
        """Close idle connections that are too many or too old, the longest idle ones first."""
        oldest = -math.inf
        if self._keepalive_expiry is not None:
            oldest = monotonic() - self._keepalive_expiry
        while self._idle:
            slot = next(iter(self._idle))
            if len(self._idle) <= self._max_keepalive and slot.idle_since >= oldest:
                break
            self._drop(slot)
