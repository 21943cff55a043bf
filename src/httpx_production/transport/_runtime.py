"""Waiting, in the sync and in the async way: all that differs between the two transports.

The rest of this package is one text of coroutines. Over `Blocking` nothing in them ever suspends,
so that `run` has the result after one step; over `EventLoop` they wait on asyncio or trio.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Protocol

import anyio
import anyio.lowlevel

MOST_SECONDS = 2_147_483  # poll() takes milliseconds as a C int: more would wrap around


class Event(Protocol):
    """What a waiting request sleeps on, once."""

    def set(self) -> None: ...
    async def wait(self, timeout: float | None) -> bool: ...


class Runtime(Protocol):
    """How to wait. `timeout` is in seconds, None for no limit; False says that it has passed."""

    shares_connections: bool
    limits_whole_writes: bool

    def event(self) -> Event: ...
    def loop(self) -> Any: ...
    def is_current(self, loop: Any) -> bool: ...
    def nudge(self, loop: Any, settle: Callable[[], None], waiting: list[Any]) -> bool: ...
    async def wait(
        self, sock: socket.socket, timeout: float | None, waits: set[Any], *, write: bool
    ) -> bool: ...
    def interrupt(self, waits: set[Any]) -> None: ...
    def connect(self, sock: socket.socket, address: Any, timeout: float | None) -> bool: ...
    async def resolve(self, host: str, port: int, timeout: float | None) -> list[Any]: ...
    async def checkpoint(self) -> None: ...


def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over `Blocking`, where each wait blocks instead of suspending."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine of the sync transport was suspended")


class BlockingEvent:
    """Set from any thread, finalizer or signal handler without blocking.

    `threading.Event` has a lock of its own, which the very thread may hold that is interrupted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the one who waits go on, or not wait at all."""
        with suppress(RuntimeError):  # set before
            self._lock.release()

    async def wait(self, timeout: float | None) -> bool:
        """Block until it is set."""
        limit = -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        return self._lock.acquire(timeout=limit)


class Blocking:
    """The sync transport's way: threads."""

    shares_connections = False  # an HTTP/2 connection serves one request at a time
    limits_whole_writes = False  # as in httpcore: each send() has the whole write_timeout

    def event(self) -> Event:
        """Return an event for one wait."""
        return BlockingEvent()

    def loop(self) -> Any:
        """Return what stands for an event loop where there is none."""
        return self

    def is_current(self, loop: Any) -> bool:
        """Tell whether this is the thread to work for `loop` in: any thread is."""
        return True

    def nudge(self, loop: Any, settle: Callable[[], None], waiting: list[Any]) -> bool:
        """Have `settle` called soon by somebody who waits: from a finalizer, which must not block.

        When nobody waits it has time until the pool is next used.
        """
        for request in waiting[:1]:
            request.wake()
        return bool(waiting)

    async def wait(
        self, sock: socket.socket, timeout: float | None, waits: set[Any], *, write: bool
    ) -> bool:
        """Block until the socket can be read or written without blocking."""
        waits.add(wait := object())
        try:
            return is_ready(sock, timeout, write=write)
        finally:
            waits.discard(wait)

    def interrupt(self, waits: set[Any]) -> None:
        """End waits, if that can be done: a blocking one ends when its socket is closed."""

    def connect(self, sock: socket.socket, address: Any, timeout: float | None) -> bool:
        """Connect; after a TimeoutError the socket goes on connecting."""
        sock.settimeout(None if timeout is None else min(timeout, MOST_SECONDS))
        try:
            sock.connect(address)
        finally:
            sock.setblocking(False)
        return True

    async def resolve(self, host: str, port: int, timeout: float | None) -> list[Any]:
        """Look up a name. Nobody can interrupt that."""
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def checkpoint(self) -> None:
        """Let others run: threads do anyway."""


class LoopEvent:
    """Set in its event loop's thread."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Let the one who waits go on, or not wait at all."""
        self._event.set()

    async def wait(self, timeout: float | None) -> bool:
        """Wait until it is set."""
        with anyio.move_on_after(timeout):
            await self._event.wait()
        return self._event.is_set()


class EventLoop:
    """The async transport's way: asyncio and trio."""

    shares_connections = True
    limits_whole_writes = True  # as in httpcore: all that is written at once has one write_timeout

    def event(self) -> Event:
        """Return an event for one wait."""
        return LoopEvent()

    def loop(self) -> Any:
        """Return asyncio's event loop or trio's token: equal as long as the loop runs."""
        if "trio" in sys.modules:
            with suppress(RuntimeError):
                return sys.modules["trio"].lowlevel.current_trio_token()
        return asyncio.get_running_loop()

    def is_current(self, loop: Any) -> bool:
        """Tell whether this code runs in `loop`."""
        with suppress(RuntimeError):  # in none at all
            return self.loop() is loop
        return False

    def nudge(self, loop: Any, settle: Callable[[], None], waiting: list[Any]) -> bool:
        """Have `settle` called soon in the loop: from a finalizer, in whatever thread that runs."""
        call_soon = getattr(loop, "run_sync_soon", None) or loop.call_soon_threadsafe
        with suppress(RuntimeError):  # the loop is closed: nobody waits there
            call_soon(settle)
            return True
        return False

    async def wait(
        self, sock: socket.socket, timeout: float | None, waits: set[Any], *, write: bool
    ) -> bool:
        """Wait until the socket can be read or written without blocking."""
        wait = anyio.wait_writable if write else anyio.wait_readable
        with anyio.move_on_after(timeout) as scope:
            waits.add(scope)
            try:
                await wait(sock)
                return True
            finally:
                waits.discard(scope)
        return False

    def interrupt(self, waits: set[Any]) -> None:
        """End waits of this event loop, as if their time had passed."""
        for scope in waits:
            scope.cancel()

    def connect(self, sock: socket.socket, address: Any, timeout: float | None) -> bool:
        """Begin to connect; False when that has to be waited for."""
        try:
            sock.connect(address)
        except BlockingIOError as exc:
            if exc.errno == errno.EAGAIN:
                raise  # a Unix socket's backlog is full: nothing is under way
            return False
        return True

    async def resolve(self, host: str, port: int, timeout: float | None) -> list[Any]:
        """Look up a name, in a thread, which goes on when its time is up."""
        with suppress(ValueError):  # a name
            ip_address(host)
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with anyio.fail_after(timeout):
            found: list[Any] = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return found

    async def checkpoint(self) -> None:
        """Let other tasks run."""
        await anyio.lowlevel.checkpoint()


class Turn:
    """Lets other tasks run after a fair share of bytes and operations that did not have to wait."""

    SHARE = 64 * 1024  # bytes
    OPERATION = 1024  # bytes that an operation counts for besides

    _spent = 0

    def is_over(self, size: int) -> bool:
        """Note an operation; tell whether it is time for `checkpoint`."""
        self._spent += size + self.OPERATION
        if self._spent <= self.SHARE:
            return False
        self._spent = 0
        return True


def is_ready(sock: socket.socket, timeout: float | None, *, write: bool = False) -> bool:
    """Block until the socket can be read or written; False after `timeout` seconds.

    Without blocking when another thread has closed it: who uses it then is told so at once.
    """
    if (number := sock.fileno()) < 0:
        return True
    if timeout:  # to poll() less than nothing would be no limit, to select() an error
        timeout = min(max(timeout, 0.0), MOST_SECONDS)
    if hasattr(select, "poll"):  # not on Windows, nor under eventlet
        poll = select.poll()
        poll.register(number, select.POLLOUT if write else select.POLLIN)
        return bool(poll.poll(timeout and math.ceil(timeout * 1000)))
    mine = [number]
    return any(select.select(() if write else mine, mine if write else (), mine, timeout))


def check_connected(sock: socket.socket) -> None:
    """Raise what a connection attempt has ended with, if it has failed."""
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))
    sock.getpeername()  # raises when it was never connected


def is_over(loop: Any) -> bool:
    """Tell whether an event loop will never run again."""
    if hasattr(loop, "is_closed"):
        return bool(loop.is_closed())
    try:
        loop.run_sync_soon(lambda: None)
    except RuntimeError:  # trio.RunFinishedError
        return True
    return False
