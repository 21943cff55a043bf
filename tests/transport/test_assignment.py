"""Which request gets which connection: tables and random walks over the assignment, without I/O.

Subject: `transport/_assignment.py`.
"""

import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from httpx_production.transport import _assignment
from httpx_production.transport._assignment import Assignment, OriginKey, PoolRequest

CLOSED = RuntimeError("the pool was closed")


class FakeConnection:
    """A connection that is what the test says."""

    def __init__(self, key: OriginKey, changed: Callable[[], None], capacity: int | None) -> None:
        self.host, self._changed = key[1].decode(), changed
        self.capacity = capacity
        self.shared = False
        self.reusable = True
        self.closed = False

    def finish_request(self, request: object) -> None: ...

    def is_reusable(self) -> bool:
        return self.reusable and not self.closed

    def close(self) -> None:
        self.closed = True

    def become(self, capacity: int | None, *, shared: bool = True) -> None:
        """Turn out to take so many requests at a time."""
        self.capacity, self.shared = capacity, shared
        self._changed()


class FakeEvent:
    """What a waiting request sleeps on."""

    is_set = False

    def set(self) -> None:
        self.is_set = True

    async def wait(self, timeout: float | None) -> bool:
        return self.is_set


class ClosedLoop(FakeEvent):
    """One whose event loop is gone."""

    def set(self) -> None:
        raise RuntimeError("Event loop is closed")


class Requests:
    """An assignment and its requests by name: `a1` is the request 1 to the origin `a`."""

    def __init__(
        self,
        size: float = 2,
        keep: float = 99,
        expiry: float | None = None,
        *,
        negotiates: bool = False,
    ) -> None:
        self.made: list[FakeConnection] = []
        self.by_name: dict[str, PoolRequest] = {}
        self._capacity = None if negotiates else 1
        self.assignment = Assignment(
            self._create,
            lambda pooled: self.assignment.update(pooled),
            (size, keep, expiry),
        )

    def _create(self, key: OriginKey, changed: Callable[[], None]) -> FakeConnection:
        self.made.append(connection := FakeConnection(key, changed, self._capacity))
        return connection

    def acquire(self, *names: str) -> None:
        for name in names:
            if name not in self.by_name:
                self.by_name[name] = PoolRequest()
            key = b"https", name[:1].encode(), 443, False
            self.assignment.acquire(self.by_name[name], key)
            self.by_name[name].event = FakeEvent()

    def release(self, *names: str) -> None:
        for name in names:
            self.assignment.release(self.by_name[name])

    def stop_expecting(self, *names: str) -> None:
        for name in names:
            self.assignment.stop_expecting(self.by_name[name])

    def connected(self) -> str:
        """Who has a connection."""
        return " ".join(name for name, request in self.by_name.items() if request.pooled)

    def of(self, name: str) -> Any:
        pooled = self.by_name[name].pooled
        assert pooled is not None, f"{name} has no connection"
        return pooled.connection

    def is_woken(self, name: str) -> bool:
        event: Any = self.by_name[name].event
        return bool(event.is_set)

    def closed(self) -> list[FakeConnection]:
        return [connection for connection in self.made if connection.closed]

    def count(self) -> tuple[int, int, int]:
        return self.assignment.count()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as the only item of a list."""
    now = [1000.0]
    monkeypatch.setattr(_assignment, "monotonic", lambda: now[0])
    return now


# --- connections that take one request at a time ---------------------------------------------


def test_a_free_connection_goes_to_one_request_in_order() -> None:
    """First come, first served, across origins, and nobody else is even woken."""
    requests = Requests(size=1)
    names = ("a1", "a2", "b1", "a3")
    requests.acquire(*names)
    for turn, name in enumerate(names):
        assert requests.connected() == name
        assert [requests.is_woken(one) for one in names[turn + 1 :]] == [False] * (3 - turn)
        requests.release(name)
    assert requests.count() == (1, 1, 0)


def test_who_gets_a_connection_is_woken() -> None:
    """Else it would sleep on it until its pool_timeout."""
    requests = Requests(size=1)
    requests.acquire("a1", "a2")
    requests.release("a1")
    assert requests.connected() == "a2"
    assert requests.is_woken("a2")


def test_the_most_recently_used_connection_is_used_again() -> None:
    """The others stay idle until they expire: a quiet pool shrinks."""
    requests = Requests(size=3)
    requests.acquire("a1", "a2", "a3")
    last = requests.of("a2")
    requests.release("a1", "a3", "a2")
    requests.acquire("a4")
    assert requests.of("a4") is last


def test_of_connections_that_are_too_old_none_is_used(now: list[float]) -> None:
    """Nothing else came by since, that would have closed them."""
    requests = Requests(expiry=30.0)
    requests.acquire("a1", "a2")
    requests.release("a1", "a2")
    now[0] += 30.125
    requests.acquire("a3")
    assert requests.closed() == requests.made[:2]
    assert requests.of("a3") is requests.made[2]


def test_only_the_surplus_of_idle_connections_is_closed() -> None:
    """httpcore counts those in use too, and so closes nearly all."""
    requests = Requests(size=50, keep=20)
    names = [f"a{number}" for number in range(50)]
    requests.acquire(*names)
    requests.release(*names[:20])
    assert requests.closed() == []
    requests.release(*names[20:])
    assert requests.closed() == requests.made[:30]  # the longest idle ones
    assert requests.count() == (20, 20, 0)


def test_connections_are_kept_until_their_time_is_over(now: list[float]) -> None:
    """At exactly `keepalive_expiry` seconds they still are; other origins' requests end it."""
    requests = Requests(size=9, expiry=30.0)
    requests.acquire("a1", "b1", "c1", "d1")
    requests.release("a1")
    now[0] += 20.0
    requests.release("b1")
    now[0] += 10.0
    requests.release("c1")
    assert requests.count() == (4, 3, 0)
    now[0] += 0.125
    requests.release("d1")
    assert [connection.host for connection in requests.closed()] == ["a"]


def test_the_longest_idle_connection_makes_room_for_another_origin() -> None:
    """A full pool of idle connections is no reason to wait."""
    requests = Requests(size=2)
    requests.acquire("a1", "b1")
    requests.release("b1", "a1")
    requests.acquire("c1")
    assert requests.connected() == "c1"
    assert [connection.host for connection in requests.closed()] == ["b"]


def test_a_connection_that_is_no_good_is_not_kept() -> None:
    """Its request was cancelled half-way: the slot goes to the next one."""
    requests = Requests(size=1)
    requests.acquire("a1", "a2")
    requests.of("a1").reusable = False
    requests.release("a1")
    assert requests.connected() == "a2"
    assert requests.closed() == requests.made[:1]


def test_who_leaves_while_waiting_takes_nothing_along() -> None:
    """Releasing twice, or what never was in the pool, changes nothing either."""
    requests = Requests(size=1)
    requests.acquire("a1", "a2", "a3")
    requests.release("a2", "a2", "a1", "a1")
    assert requests.connected() == "a3"
    requests.release("a3")
    requests.assignment.release(PoolRequest())
    assert requests.count() == (1, 1, 0)


def test_what_a_useless_connection_leaves_is_for_who_had_it() -> None:
    """Not for those who wait: where each one that is handed on is useless, it would never end."""
    requests = Requests(size=1)
    requests.acquire("a1", "a2", "b1")
    useless = requests.of("a1")
    requests.acquire("a1")
    assert requests.connected() == "a1"
    assert requests.closed() == [useless]
    assert requests.assignment.waiting == [requests.by_name["a2"], requests.by_name["b1"]]
    requests.release("a1")
    assert requests.connected() == "a2"


def test_what_it_does_not_need_is_for_who_waits() -> None:
    """It joins another connection, which has become free for it meanwhile."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "a2")
    requests.of("a1").become(1)
    requests.acquire("a3", "b1")
    assert requests.connected() == "a1 a2"
    requests.of("a2").become(3)
    useless = requests.of("a1")
    requests.acquire("a1")
    assert requests.of("a1") is requests.of("a2") is requests.of("a3")
    assert requests.closed() == [useless]
    assert requests.connected() == "a1 a2 a3 b1"


def test_a_useless_connection_is_left_to_who_is_still_on_it(now: list[float]) -> None:
    """Who leaves it is first in line, of its origin too."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(2)
    requests.acquire("a2", "a3", "b1")
    requests.of("a1").become(0)
    requests.acquire("a1")
    assert (requests.connected(), requests.closed()) == ("a2", [])
    assert [requests.by_name[name] for name in ("a1", "a3", "b1")] == requests.assignment.waiting
    requests.release("a2")
    assert requests.connected() == "a1"
    requests.of("a1").become(1)
    requests.release("a1")
    assert requests.connected() == "a3"


def test_who_comes_back_is_first_for_a_stream_too() -> None:
    """Before those of its origin who have not had a connection yet."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(2)
    requests.acquire("a2", "a3")
    requests.of("a1").become(1)
    requests.acquire("a1")
    assert requests.connected() == "a2"
    requests.of("a2").become(2)
    assert requests.connected() == "a1 a2"


def test_nothing_is_remembered_of_origins_that_are_gone() -> None:
    """A crawler that sees a million hosts doesn't fill the memory."""
    requests = Requests(size=1)
    for number in range(100):
        requests.acquire(f"{chr(200 + number)}1")
        requests.release(f"{chr(200 + number)}1")
    assert len(requests.assignment._origins) == 1


# --- closing ----------------------------------------------------------------------------------


def test_closing_closes_all_and_fails_who_waits() -> None:
    """Those in use too; nobody who waited is given a connection afterwards.

    The pool that was here before let them make connections of their own.
    """
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "a2", "b1", "c1")
    requests.release("b1")
    requests.by_name["c1"].event = ClosedLoop()
    requests.acquire("b2", "d1")
    requests.assignment.close(CLOSED)
    assert requests.closed() == requests.made
    waiting = ("a2", "d1")
    assert [requests.by_name[name].error for name in waiting] == [CLOSED] * 2
    assert [requests.is_woken(name) for name in waiting] == [True] * 2
    with pytest.raises(RuntimeError, match="the pool was closed"):
        requests.acquire("a1")  # it has a connection, which is of no use now
    assert requests.count() == (0, 0, 0)
    requests.release(*requests.by_name)
    assert requests.count() == (0, 0, 0)
    assert requests.assignment._origins == {}


def test_a_handshake_that_ends_after_the_close_changes_nothing() -> None:
    """Its connection is closed, and stays out of the pool."""
    requests = Requests(negotiates=True)
    requests.acquire("a1")
    connection = requests.of("a1")
    requests.assignment.close(CLOSED)
    connection.become(100)
    assert requests.count() == (0, 0, 0)
    requests.release("a1")
    assert requests.count() == (0, 0, 0)


# --- connections that may turn out to be shared -----------------------------------------------


def test_the_first_handshake_decides_for_all_who_wait() -> None:
    """One connection is made to an unknown origin; with HTTP/2 it serves them all."""
    requests = Requests(size=9, negotiates=True)
    requests.acquire("a1", "a2", "a3", "b1")
    assert requests.connected() == "a1 b1"
    requests.of("a1").become(100)
    assert requests.connected() == "a1 a2 a3 b1"
    assert requests.is_woken("a3")
    assert len(requests.made) == 2


def test_with_http1_each_gets_its_own_and_it_is_remembered() -> None:
    """Only the first burst waits for a handshake."""
    requests = Requests(size=3, keep=0, negotiates=True)
    requests.acquire("a1", "a2", "a3", "a4")
    requests.of("a1").become(1, shared=False)
    assert requests.connected() == "a1 a2 a3"
    requests.release("a1", "a2", "a3")
    assert requests.connected() == "a4"
    requests.acquire("a5", "a6")
    assert requests.connected() == "a4 a5 a6"


def test_a_shared_connection_is_waited_for_until_it_tells_its_capacity() -> None:
    """HTTP/2 is agreed on, the server's SETTINGS are still to come."""
    requests = Requests(size=9, negotiates=True)
    requests.acquire("a1", "a2")
    requests.of("a1").become(None)
    requests.acquire("a3")
    assert requests.connected() == "a1"
    requests.of("a1").become(100)
    assert requests.connected() == "a1 a2 a3"
    assert len(requests.made) == 1


def test_with_http1_nobody_waits_for_another_handshake() -> None:
    """The first connection tells that none will be shared, those that are still made included."""
    requests = Requests(size=3, negotiates=True)
    requests.acquire("a1", "a2", "a3")
    requests.stop_expecting("a2")
    assert requests.connected() == "a1 a2"
    requests.of("a1").become(1, shared=False)
    assert requests.connected() == "a1 a2 a3"


def test_a_failed_handshake_is_the_next_one_s_turn() -> None:
    """Nobody waits for a connection that will not come."""
    requests = Requests(negotiates=True)
    requests.acquire("a1", "a2", "a3")
    requests.of("a1").reusable = False
    requests.release("a1")
    assert requests.connected() == "a2"
    assert requests.assignment.is_expecting(requests.by_name["a3"])


def test_who_has_waited_enough_makes_a_connection_of_its_own() -> None:
    """As far as there is room; else it stands in line, like everybody."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "a2", "a3")
    requests.stop_expecting("a2", "a3", "a1")
    assert requests.connected() == "a1 a2"
    assert not requests.assignment.is_expecting(requests.by_name["a3"])
    assert requests.count() == (2, 0, 1)
    requests.of("a2").become(100)
    assert requests.connected() == "a1 a2 a3"


def test_who_stands_in_line_by_then_keeps_its_place() -> None:
    """Its expectation came to nothing before it had waited enough."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("a1", "a2", "a3")
    requests.of("a1").become(1, shared=False)
    requests.stop_expecting("a2")
    requests.release("a1")
    assert requests.connected() == "a2"


def test_who_is_done_expects_nothing() -> None:
    """A request that was released meanwhile is left alone."""
    requests = Requests(negotiates=True)
    requests.acquire("a1", "a2")
    requests.release("a2")
    requests.stop_expecting("a2")
    assert requests.count() == (1, 0, 0)


def test_no_more_requests_wait_for_a_handshake_than_it_could_serve() -> None:
    """With ten streams a connection, the twelfth request makes another one."""
    requests = Requests(size=9, negotiates=True)
    requests.acquire("a0")
    requests.of("a0").become(10)
    requests.of("a0").become(0)
    requests.acquire(*(f"a{number}" for number in range(1, 12)))
    assert requests.connected() == "a0 a1"
    requests.acquire("a12")
    assert requests.connected() == "a0 a1 a12"


def test_streams_are_handed_out_up_to_the_limit_and_in_order() -> None:
    """In a full pool the others wait for one to end; when the limit rises they go on."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("a1", "a2", "a3", "a4", "a5")
    requests.of("a1").become(2)
    assert requests.connected() == "a1 a2"
    requests.release("a2")
    assert requests.connected() == "a1 a3"
    requests.of("a1").become(3)
    assert requests.connected() == "a1 a3 a4"
    assert len(requests.made) == 1


def test_when_all_streams_are_taken_another_connection_is_made() -> None:
    """Requests wait when the pool is full, not otherwise; before, they waited for a stream."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(2)
    requests.acquire("a2", "a3", "a4")
    assert requests.connected() == "a1 a2 a3"
    assert requests.of("a3") is not requests.of("a1")
    requests.of("a3").become(2)
    requests.acquire("a5")
    assert requests.connected() == "a1 a2 a3 a4"
    assert requests.count() == (2, 0, 1)


def test_a_retired_connection_is_replaced_at_once() -> None:
    """GOAWAY: those on it stay, those who wait get a new one, and it goes with its last request."""
    requests = Requests(size=9, negotiates=True)
    requests.acquire("a1", "a2", "a3")
    old = requests.of("a1")
    old.become(2)
    old.become(0)
    assert requests.connected() == "a1 a2 a3"
    assert requests.of("a3") is not old
    old.reusable = False
    requests.release("a1", "a2")
    assert requests.closed() == [old]


def test_those_who_come_back_wait_for_one_connection_that_replaces_it() -> None:
    """After a GOAWAY with many in flight: not a connection for each of them."""
    requests = Requests(size=9, negotiates=True)
    names = "a1", "a2", "a3"
    requests.acquire(*names)
    requests.of("a1").become(100)
    requests.of("a1").become(0)
    requests.acquire(*names)
    assert requests.connected() == "a1"
    requests.of("a1").become(100)
    assert requests.connected() == "a1 a2 a3"
    assert len(requests.made) == 2


def test_an_idle_shared_connection_is_shared_again() -> None:
    """It is idle when the last request leaves, and takes several when they come back."""
    requests = Requests(size=9, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(100)
    requests.release("a1")
    assert requests.count() == (1, 1, 0)
    requests.acquire("a2", "a3")
    assert requests.of("a2") is requests.of("a3")
    assert requests.count() == (1, 0, 0)


def test_a_change_of_an_idle_connection_is_noted() -> None:
    """It is not in use because of that."""
    requests = Requests(negotiates=True)
    requests.acquire("a1")
    connection = requests.of("a1")
    connection.become(100)
    requests.release("a1")
    connection.become(50)
    assert requests.count() == (1, 1, 0)
    assert requests.assignment.streams() == (1, 0, 50)


def test_a_change_does_not_make_an_idle_connection_younger(now: list[float]) -> None:
    """SETTINGS that come while nobody uses it: when it is too old, it is."""
    requests = Requests(expiry=30.0, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(100)
    requests.release("a1")
    requests.made[0].become(50)
    now[0] += 30.125
    requests.acquire("a2")
    assert requests.closed() == requests.made[:1]
    assert requests.of("a2") is requests.made[1]


def test_an_idle_connection_that_never_said_what_it_is_can_be_used() -> None:
    """The next request takes it, and finds out."""
    requests = Requests(negotiates=True)
    requests.acquire("a1")
    connection = requests.of("a1")
    requests.release("a1")
    requests.acquire("a2", "a3")
    assert requests.of("a2") is connection
    assert requests.assignment.is_expecting(requests.by_name["a3"])


def test_who_waits_for_a_slot_can_end_up_sharing() -> None:
    """A full pool: the first to get a slot makes the connection, the others share it."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("b1")
    requests.of("b1").become(1, shared=False)
    requests.acquire("a1", "a2", "c1")
    requests.release("b1")
    assert requests.connected() == "a1"
    assert requests.count() == (1, 0, 2)
    requests.of("a1").become(100)
    assert requests.connected() == "a1 a2"
    requests.release("a1", "a2")
    assert requests.connected() == "c1"


def test_who_waited_in_vain_to_share_is_served_by_whatever_becomes_free() -> None:
    """The handshake gave HTTP/1.1: it waits like everybody, also for another origin's slot."""
    requests = Requests(negotiates=True)
    requests.acquire("b1", "a1", "a2")
    requests.of("a1").become(1, shared=False)
    assert requests.connected() == "b1 a1"
    assert requests.count() == (2, 0, 1)
    requests.release("b1")
    assert requests.connected() == "a1 a2"


def test_who_gives_up_waiting_for_a_handshake_gets_no_stream() -> None:
    """One given to a request that is gone would be lost."""
    requests = Requests(negotiates=True)
    requests.acquire("a1", "a2", "a3")
    requests.release("a2")
    assert requests.count() == (1, 0, 1)
    requests.of("a1").become(9)
    assert requests.connected() == "a1 a3"
    assert requests.assignment.streams() == (1, 2, 9)


# --- another origin's turn --------------------------------------------------------------------


def test_a_busy_shared_connection_gives_way_after_a_moment(now: list[float]) -> None:
    """Another origin's request waits: new ones no longer join, and it is served when they end."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(100)
    requests.acquire("b1", "a2")
    assert requests.connected() == "a1 a2"
    now[0] += 0.25
    requests.acquire("a3", "a4")
    assert requests.connected() == "a1 a2"
    requests.release("a1", "a2")
    assert requests.connected() == "b1"
    requests.release("b1")
    assert requests.connected() == "a3"
    requests.of("a3").become(100)
    assert requests.connected() == "a3 a4"


def test_one_connection_gives_way_to_one_request(now: list[float]) -> None:
    """The others go on taking requests."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "b1")
    for name in ("a1", "b1"):
        requests.of(name).become(100)
    requests.acquire("c1")
    now[0] += 0.3
    requests.acquire("a2", "b2")
    assert requests.connected() == "a1 b1 b2"


def test_who_gives_up_is_no_longer_given_way_to(now: list[float]) -> None:
    """The connection takes requests again, those first who have waited because of it."""
    requests = Requests(size=1, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(100)
    requests.acquire("b1")
    now[0] += 0.3
    requests.acquire("a2")
    assert requests.connected() == "a1"
    requests.release("b1")
    assert requests.connected() == "a1 a2"


def test_who_expects_another_connection_joins_when_nobody_needs_the_first_to_end(
    now: list[float],
) -> None:
    """Though the one who gave up was the last that stood in line."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1")
    requests.of("a1").become(1)
    requests.acquire("a2", "a3", "b1")
    assert requests.assignment.is_expecting(requests.by_name["a3"])
    now[0] += 0.3
    requests.of("a1").become(2)
    assert requests.connected() == "a1 a2"  # the first connection gives way to b1
    requests.release("b1")
    assert requests.connected() == "a1 a2 a3"


def test_a_connection_takes_requests_again_when_nobody_needs_it_to_end(now: list[float]) -> None:
    """Who it was to make room for got another one: those whom it kept out go on at once."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a0")
    requests.of("a0").become(100)
    requests.acquire("b0", "b1")
    requests.stop_expecting("b1")
    now[0] += 1.0
    requests.acquire("c1", "a1")
    assert requests.connected() == "a0 b0"
    requests.of("b0").become(100)
    assert requests.connected() == "a0 b0 b1 a1"


def test_nobody_overtakes_who_has_waited_for_another_to_pass(now: list[float]) -> None:
    """The one that was given way to has its connection: the first who waited because of it joins.

    Whoever comes later does not join before.
    """
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "x1")
    requests.of("a1").become(100)
    requests.of("x1").become(1, shared=False)
    requests.acquire("b1")
    now[0] += 0.2
    requests.acquire("c1")
    now[0] += 0.1
    requests.acquire("a2")
    assert requests.connected() == "a1 x1"  # the connection to `a` gives way to b1
    requests.release("x1")
    requests.acquire("a3")
    assert requests.connected() == "a1 b1 a2 a3"


# --- what it says of itself -------------------------------------------------------------------


def test_connections_requests_and_streams_are_counted() -> None:
    """For pool_stats() and for the text of a PoolTimeout."""
    requests = Requests(size=3, negotiates=True)
    requests.acquire("a1", "a2", "b1")
    requests.of("a1").become(10)
    requests.of("b1").become(1, shared=False)
    assert requests.count() == (2, 0, 0)
    assert requests.assignment.streams() == (1, 2, 10)
    requests.acquire("c1", "d1")
    assert requests.count() == (3, 0, 1)
    assert len(requests.assignment.connections) == 3
    requests.of("a1").capacity = None
    assert requests.assignment.streams() == (1, 2, 0)


def test_connections_that_only_responses_hold_are_counted() -> None:
    """Each request on it has its response already, which nobody reads or has closed."""
    requests = Requests(size=3, negotiates=True)
    requests.acquire("a1", "b1", "c1")
    requests.of("a1").become(9)
    requests.acquire("a2")
    assert requests.assignment.unclosed() == 0
    for name, unclosed in (("a1", 0), ("b1", 1), ("a2", 2)):
        requests.by_name[name].is_unread = True
        assert requests.assignment.unclosed() == unclosed
    requests.release("a1", "b1")
    assert requests.assignment.unclosed() == 1
    requests.by_name["a2"].is_unread = False
    assert requests.assignment.unclosed() == 0


# --- random walks -----------------------------------------------------------------------------


@contextmanager
def interrupted_after(lines: int | None) -> Iterator[None]:
    """Ctrl-C before a line of the assignment's, after so many others."""
    left = [-1 if lines is None else lines]

    def trace(frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != _assignment.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    if lines is None:
        yield
        return
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize("lines", range(1, 120))
def test_ctrl_c_at_each_line_of_giving_back(lines: int) -> None:
    """And another thread's request, which is quicker than the second try: nothing is lost."""
    requests = Requests(size=1)
    requests.acquire("a1", "a2")
    try:
        with interrupted_after(lines):
            requests.release("a1")
    except KeyboardInterrupt:
        requests.acquire("b1")
        requests.release("a1")
    else:
        requests.acquire("b1")
    assert requests.assignment.count()[0] <= 1
    requests.release("a2")
    assert requests.connected() == "b1"
    requests.release("b1")
    connections, idle, waiting = requests.count()
    assert (connections - idle, waiting) == (0, 0)


@pytest.mark.parametrize("lines", range(1, 60))
@pytest.mark.parametrize("next_one", ["comes", "goes on"])
def test_ctrl_c_at_each_line_of_going_on_alone(lines: int, next_one: str) -> None:
    """And another thread's request, before anything is made good: no connection too many."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "a2", "a3")
    with suppress(KeyboardInterrupt), interrupted_after(lines):
        requests.stop_expecting("a2")
    if next_one == "comes":
        requests.acquire("b1")
    else:
        requests.stop_expecting("a3")
    requests.of("a1").become(1)
    assert requests.count()[0] == 2


@pytest.mark.parametrize("lines", range(1, 60))
def test_ctrl_c_at_each_line_before_the_close(lines: int) -> None:
    """What is made good afterwards brings nothing into a pool that is closed."""
    requests = Requests(size=2, negotiates=True)
    requests.acquire("a1", "a2")
    with suppress(KeyboardInterrupt), interrupted_after(lines):
        requests.stop_expecting("a2")
    requests.assignment.close(CLOSED)
    requests.release("a2", "a1")
    assert requests.count() == (0, 0, 0)


@pytest.mark.parametrize("lines", range(1, 60))
def test_ctrl_c_at_each_line_of_making_room(lines: int) -> None:
    """Nobody is given the connection that has to go, and finds it closed under its feet."""
    requests = Requests(size=1)
    requests.acquire("a1")
    requests.release("a1")
    with suppress(KeyboardInterrupt), interrupted_after(lines):
        requests.acquire("b1")
    requests.acquire("a2")
    requests.release("b1")
    assert requests.connected() == "a2"
    assert not requests.of("a2").closed


class Walk:
    """Random steps, some of them interrupted and made good as the pool does it."""

    def __init__(self, seed: int, interrupts: bool) -> None:
        self.dice = random.Random(seed)
        self.size = self.dice.randint(1, 4)
        self.requests = Requests(self.size, self.dice.randint(0, 4), 60.0, negotiates=True)
        self.assignment = self.requests.assignment
        self._interrupts = interrupts
        self._number = 0
        self.seen: set[Any] = set()
        self.log: list[str] = []

    def _do(self, text: str, step: Callable[[], object], again: Callable[[], object]) -> None:
        """Do a step; what Ctrl-C has ended is made good, and that may be interrupted too."""
        while True:
            lines = (
                self.dice.randint(1, 60) if self._interrupts and self.dice.random() < 0.5 else None
            )
            self.log.append(f"{text} interrupted after {lines}")
            try:
                with interrupted_after(lines):
                    step()
                return
            except KeyboardInterrupt:
                text, step = f"again: {text}", again

    def step(self) -> None:
        kinds = [self.acquire, self.acquire, self.release, self.release, self.stop_expecting]
        self.dice.choice([*kinds, self.acquire_another, self.update, self.spoil])()

    def acquire(self) -> None:
        if len(self.requests.by_name) >= 12:
            return
        self._number += 1
        name = f"{self.dice.choice('abc')}{self._number}"
        request = self.requests.by_name[name] = PoolRequest()
        request.event = FakeEvent()
        key = b"https", name[:1].encode(), 443, False
        self._do(
            f"acquire {name}",
            lambda: self.assignment.acquire(request, key),
            lambda: self._release(name),
        )
        if request.origin is None:
            del self.requests.by_name[name]

    def acquire_another(self) -> None:
        """Its connection is of no use, or its origin has another key from now on."""
        connected = [name for name, request in self.requests.by_name.items() if request.pooled]
        if not connected:
            return
        name = self.dice.choice(connected)
        request = self.requests.by_name[name]
        request.event = FakeEvent()
        key = b"https", name[:1].encode(), 443, self.dice.random() < 0.2
        self._do(
            f"acquire another {name}",
            lambda: self.assignment.acquire(request, key),
            lambda: self._release(name),
        )
        if request.origin is None:
            del self.requests.by_name[name]

    def _release(self, name: str) -> None:
        self.assignment.release(self.requests.by_name[name])

    def release(self) -> None:
        if names := list(self.requests.by_name):
            self._leave(self.dice.choice(names))

    def _leave(self, name: str) -> None:
        self._do(f"release {name}", lambda: self._release(name), lambda: self._release(name))
        del self.requests.by_name[name]

    def stop_expecting(self) -> None:
        expecting = [n for n, r in self.requests.by_name.items() if self.assignment.is_expecting(r)]
        if not expecting:
            return
        name = self.dice.choice(expecting)
        request = self.requests.by_name[name]
        self._do(
            f"stop expecting {name}",
            lambda: self.assignment.stop_expecting(request),
            lambda: self._release(name),
        )
        if request.origin is None:
            del self.requests.by_name[name]

    def update(self) -> None:
        """A connection turns out to be something, or its server changes its mind."""
        if not (pools := list(self.assignment._connections)):
            return
        pooled = self.dice.choice(pools)
        connection: Any = pooled.connection
        if connection.capacity is None:
            connection.shared = self.dice.random() < 0.7
            connection.capacity = self.dice.randint(0, 3) if connection.shared else 1
        elif connection.shared:
            connection.capacity = self.dice.randint(0, 3)
        update = lambda: self.assignment.update(pooled)  # noqa: E731
        state = f"{connection.host} {connection.capacity} {connection.shared}"
        self._do(f"update {state}", update, update)

    def spoil(self) -> None:
        """A connection is no good any more."""
        if pools := list(self.assignment._connections):
            connection: Any = self.dice.choice(pools).connection
            connection.reusable = False
            self.log.append(f"spoil {connection.host}")

    # --- what always holds ---

    def check(self) -> None:
        kept = list(self.assignment._connections)
        assert len(kept) <= self.size
        self.seen |= {one.connection for one in kept}  # one that Ctrl-C kept out has no socket yet
        connections = {one.connection for one in kept}
        assert {one for one in self.seen if not one.closed} <= connections
        if not self._interrupts:  # else one that is closed may be kept, until it is looked at
            assert not any(one.closed for one in connections)
        idle = {one for one in kept if not one.requests}
        assert set(self.assignment._idle) == idle
        origins = self.assignment._origins.values()
        assert {one for origin in origins for one in origin.idle} == idle
        requests = self.requests.by_name.values()
        for pooled in kept:
            assert pooled.requests == {one for one in requests if one.pooled is pooled}
        waiting = self.assignment.waiting
        assert set(waiting) == {one for one in requests if one.pooled is None}
        assert len(waiting) == len(set(waiting))
        for request in requests:
            assert request.origin is not None
            assert request.origin is self.assignment._origins[request.origin.key]
            event: Any = request.event
            assert request.pooled is None or event.is_set or not request.has_waited
        self.check_who_waits()

    def check_who_waits(self) -> None:
        """Nobody waits while there is room, or a connection to be shared."""
        line = list(self.assignment._line)
        if line:
            assert len(self.assignment._connections) == self.size
            assert not self.assignment._idle
        for request in self.assignment.waiting:
            assert request.origin is not None
            shared = [one for one in request.origin.shared if one.has_capacity()]
            assert shared == []
            if self.assignment.is_expecting(request):
                assert request.origin.connecting
        arrived = [one for one in self.requests.by_name.values() if one in line]
        first_time = [one for one in line if not one.had_connection]
        assert [one.queued_since for one in first_time] == sorted(
            one.queued_since for one in first_time
        )
        assert len(arrived) == len(line)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves, but too little for a connection to give way to another origin."""
    ticks = [0]

    def monotonic() -> float:
        ticks[0] += 1
        return ticks[0] * 1e-7

    monkeypatch.setattr(_assignment, "monotonic", monotonic)


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("interrupts", [False, True], ids=["", "ctrl-c"])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_invariants_hold(seed: int, interrupts: bool) -> None:
    """Bounded, nothing lost, nobody waits in vain, in order; after Ctrl-C at any line too."""
    walk = Walk(seed, interrupts)
    try:
        for _ in range(400):
            walk.step()
            walk.check()
        for name in list(walk.requests.by_name):
            walk._leave(name)
            walk.check()
    except BaseException as exc:
        exc.add_note("\n".join(walk.log[-12:]))
        raise
    connections, idle, waiting = walk.assignment.count()
    assert (connections - idle, waiting) == (0, 0)
    left = walk.assignment._moving, walk.assignment._leaving, walk.assignment._dropping
    assert left == ({}, {}, {})
    walk.assignment.close(CLOSED)
    assert walk.assignment.count() == (0, 0, 0)
    assert walk.assignment._origins == {}
