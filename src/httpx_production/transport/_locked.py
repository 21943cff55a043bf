"""An assignment, its lock, and the one way by which everything comes back to it.

Giving back never blocks, so that it may happen anywhere: in another thread, in a finalizer, in a
signal handler, within our own locked section. It is noted; whoever has the lock does what is noted
before letting go, or whoever gets it next, and who waits is woken for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from ._assignment import Assignment, PooledConnection, PoolRequest
from ._runtime import Runtime


class Lease:
    """What a caller holds of the pool: dropped, it is as good as given back."""

    def __init__(self, locked: LockedAssignment) -> None:
        self.locked = locked
        self.request = PoolRequest()
        # The callback runs in C, where Ctrl-C can't strike, as it can in __del__.
        self.request.watch = watch = Watch(self, self.locked.dropped.append)
        watch.request = self.request

    def __del__(self) -> None:
        # Looked at once: in a cycle the callback came first, and another thread may be at it now.
        watch: Watch | None = getattr(getattr(self, "request", None), "watch", None)
        if watch is not None and watch.request.is_in_pool:
            self.locked.dropped.append(watch)
            self.locked.nudge()

    def give_back(self) -> None:
        """Give back what the caller has, whatever that is."""
        watch = self.request.watch  # looked at once: another thread may be giving it back, too
        if watch is not None and self.request.is_in_pool:
            self.locked.dropped.append(watch)
            self.locked.settle()


class Watch(ref[Lease]):
    """Sees a lease go, and knows what that stood for. Lives as long as the pool has the request."""

    request: PoolRequest


class LockedAssignment:
    """One event loop's connections, or those of all threads."""

    def __init__(self, loop: Any, runtime: Runtime) -> None:
        self.assignment: Assignment
        self.dropped: deque[Any] = deque()  # watches
        self._loop, self._runtime = loop, runtime
        self._notes: deque[Callable[[], None]] = deque()
        # An RLock alone can tell, as threading.Condition asks it, whether this thread has it.
        self._lock = threading.RLock()
        self.is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    def do[T](self, step: Callable[[], T]) -> T:
        """Do a step of the assignment's, and what was noted before and meanwhile."""
        with self._lock:
            if self._notes or self.dropped:
                self._take_notes()
            result = step()
        if self._notes or self.dropped:
            self.settle()
        return result

    def note(self, what: Callable[[], None]) -> None:
        """Have something done: now, unless this thread is interrupted where it has the lock."""
        self._notes.append(what)
        self.settle()

    def note_change(self, pooled: PooledConnection) -> None:
        """Take note that a connection has been made, or takes more or fewer requests."""
        self.note(partial(self.assignment.update, pooled))

    def settle(self) -> None:
        """Do what was noted, in its own event loop."""
        while (self._notes or self.dropped) and not self.is_inside():
            if not self._runtime.is_current(self._loop) and self.nudge():
                return
            with self._lock:
                self._take_notes()

    def nudge(self) -> bool:
        """Have `settle` called soon, by somebody else; False when there is nobody."""
        return self._runtime.nudge(self._loop, self.settle, self.assignment.waiting)

    def release(self, request: PoolRequest) -> None:
        """Take back what a request has: of its connection first, then of the pool."""
        if request.finish is not None:
            request.finish()
        self.assignment.release(request)
        request.watch = None  # or it would note each lease that goes

    def _take_notes(self) -> None:
        # Taken from the deques afterwards: what Ctrl-C has ended half-way is done again.
        while self.dropped:
            self.release(self.dropped[0].request)
            self.dropped.popleft()
        while self._notes:
            try:
                self._notes[0]()
            except Exception:
                self._notes.popleft()  # a fault of ours: not again and again
                raise
            self._notes.popleft()
