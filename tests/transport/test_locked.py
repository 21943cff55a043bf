"""Giving back from anywhere: what is noted is done once, by whom it may be, and never forgotten.

Subject: `transport/_locked.py`.
"""

import gc
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from conftest import Flavour
from helpers import ASYNC, Callers, finished, generators_left, in_use, one_attempt, until
from servers import ScriptedServer, chunked

from httpx_production.transport._assignment import Assignment, PoolRequest
from httpx_production.transport._locked import Lease, LockedAssignment
from httpx_production.transport._runtime import Blocking, EventLoop, run

pytestmark = [pytest.mark.anyio, generators_left]

KEY = b"https", b"a", 443, False


class Plain:
    """A connection for one request at a time."""

    capacity = 1
    shared = False

    def finish_request(self, request: object) -> None: ...

    def is_reusable(self) -> bool:
        return True

    def close(self) -> None: ...


def locked(size: int = 1) -> LockedAssignment:
    runtime: Any = Blocking()
    mine = LockedAssignment(runtime, runtime)
    mine.assignment = Assignment(lambda key, changed: Plain(), mine.note_change, (size, 9, None))
    return mine


def acquired(pool: LockedAssignment) -> Any:
    """A lease whose request has a connection, or a place in line."""
    lease = Lease(pool)
    pool.do(lambda: pool.assignment.acquire(lease.request, KEY))
    return lease


def test_a_lease_that_is_dropped_is_given_back() -> None:
    """At the next step of anybody; one that was given back leaves nothing to do."""
    pool = locked()
    lease = acquired(pool)
    del lease
    assert pool.dropped
    pool.settle()
    assert pool.assignment.count() == (1, 1, 0)
    other = acquired(pool)
    other.give_back()
    other.give_back()
    del other
    assert not pool.dropped
    assert pool.assignment.count() == (1, 1, 0)


def test_all_leases_that_are_dropped_are_given_back() -> None:
    """Several, before anybody looks."""
    pool = locked(size=3)
    leases = [acquired(pool) for _ in range(3)]
    leases.clear()
    pool.settle()
    assert pool.assignment.count() == (3, 3, 0)


def test_a_lease_in_a_cycle_is_given_back() -> None:
    """The garbage collector finds it although the pool knows its request."""
    pool = locked()
    lease = acquired(pool)
    lease.myself = lease
    del lease
    gc.collect()
    pool.settle()
    assert pool.assignment.count() == (1, 1, 0)


@pytest.mark.parametrize("way", ["given back", "finalized"])
def test_a_lease_that_another_thread_takes_back_meanwhile(way: str) -> None:
    """What was taken back is not noted again: by close() in a second thread, by a finalizer."""
    pool = locked()
    lease = acquired(pool)

    class TakenBack(PoolRequest):
        @property
        def is_in_pool(self) -> bool:
            pool.release(self)  # after somebody has begun to look
            return True

        @is_in_pool.setter
        def is_in_pool(self, value: bool) -> None: ...

    lease.request.__class__ = TakenBack
    if way == "given back":
        lease.give_back()
    lease.myself = lease  # in a cycle, it is noted before it is finalized
    del lease
    gc.collect()
    pool.settle()
    assert not pool.dropped
    assert pool.assignment.count() == (1, 1, 0)


def test_who_waits_is_woken_by_a_lease_that_is_dropped() -> None:
    """The finalizer does no more than that: it must not block."""
    pool = locked()
    first, second = acquired(pool), acquired(pool)
    second.request.event = event = Blocking().event()
    del first
    assert run(event.wait(5))
    assert second.request.pooled is None
    pool.settle()
    assert second.request.pooled is not None


def test_what_was_dropped_is_noted_before_anybody_is_woken() -> None:
    """Or who looks at once finds nothing, and sleeps on."""
    pool = locked()
    first, second = acquired(pool), acquired(pool)
    found: list[int] = []
    second.request.event = SimpleNamespace(set=lambda: found.append(len(pool.dropped)))
    del first
    assert found == [1]


def test_what_was_dropped_is_there_for_the_next_step() -> None:
    """Who asks for a connection gets the one that was given back, and need not wait."""
    pool = locked()
    lease = acquired(pool)
    del lease
    other = acquired(pool)
    assert other.request.pooled is not None
    assert not other.request.has_waited


def test_a_note_that_fails_is_not_repeated() -> None:
    """A fault of ours is told, once, and what comes after it is done."""
    pool = locked()
    done: list[str] = []

    def fail() -> None:
        raise ValueError("a fault of ours")

    def note_both() -> None:
        pool.note(fail)
        pool.note(lambda: done.append("second"))

    with pytest.raises(ValueError, match="a fault of ours"):
        pool.do(note_both)
    assert not done
    pool.settle()
    assert done == ["second"]


def test_ctrl_c_in_a_note_has_it_done_again() -> None:
    """What was interrupted half-way is still noted."""
    pool = locked()
    interrupts = [KeyboardInterrupt]
    done: list[str] = []

    def note() -> None:
        if interrupts:
            raise interrupts.pop()
        done.append("once")

    with pytest.raises(KeyboardInterrupt):
        pool.note(note)
    pool.do(lambda: done.append("next step"))
    assert done == ["once", "next step"]


def test_a_step_within_a_step_is_only_noted() -> None:
    """A signal handler that interrupts the locked section does not wait for it."""
    pool = locked()
    done: list[str] = []

    def step() -> None:
        pool.note(lambda: done.append("noted"))
        assert not done

    pool.do(step)
    assert done == ["noted"]


def test_no_event_loop_is_current_outside_of_them() -> None:
    """What was made in one is not touched from elsewhere."""
    assert not EventLoop().is_current(object())


@ASYNC
async def test_a_response_is_closed_in_another_thread_s_event_loop(flavour: Flavour) -> None:
    """What it has of the pool is taken back, and given on, in the loop that it belongs to."""
    with ScriptedServer([chunked(b"part", end=b"")]) as server:
        client = one_attempt(flavour, max_connections=1)
        response: httpx.Response = await client.send(
            client.build_request("GET", server.url), stream=True
        )

        def close() -> None:
            anyio.run(response.aclose, backend=flavour.name)

        async with Callers(flavour) as callers:
            waiting = callers.start(client.get, server.url)
            await until(lambda: in_use(client) == (1, 1))
            await anyio.to_thread.run_sync(close)
            (outcome,) = await finished(waiting)
        assert getattr(outcome, "text", outcome) == "ok"
        assert in_use(client) == (0, 0)
