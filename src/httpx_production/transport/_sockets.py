"""Sockets and TLS that never block: bytes are taken and given as far as they go at once.

Waiting is the caller's affair (`_runtime.py`), so that a request which gives up its wait leaves
nothing half done: what TLS has encrypted stays in line until the socket takes it. Closing is a
system call that may be made in any thread, event loop, finalizer or child process.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import suppress
from typing import Any
from weakref import WeakSet, finalize

from ._runtime import Runtime

RECORDS = 64 * 1024  # bytes: what is read from a socket at a time
MOST_ENCRYPTED = 128 * 1024  # bytes at a time: a batch of HTTP/2's with all of its frames' heads

# All sockets of this process that may be open. A child process gives up its copies of them:
# it would read its parent's answers (and keep the parent's connections from ever being closed).
_sockets: WeakSet[SocketIO] = WeakSet()


class SocketIO:
    """A socket: closed at once, or by whoever waits for it, woken by that."""

    has_unsent = False  # whether something that was taken has not gone to the socket

    def __init__(self, sock: socket.socket, runtime: Runtime) -> None:
        self.socket = sock
        self.runtime = runtime
        self.closed = False
        self.sent = 0  # bytes, in all
        self._reads: set[Any] = set()
        self._writes: set[Any] = set()
        _sockets.add(self)
        finalize(self, sock.close)  # not __del__: in a cycle, the socket's own might come first
        sock.setblocking(False)

    @property
    def base(self) -> SocketIO:
        """The socket beneath."""
        return self

    def receive(self, size: int) -> bytes | None:
        """Return what has arrived, b"" at the end, None when nothing has."""
        try:
            return self.socket.recv(size)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, data: bytes | memoryview) -> int:
        """Send what can be sent at once; return how many bytes that were."""
        try:
            sent = self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        self.sent += sent
        return sent

    def flush(self) -> bool:
        """Send on what was taken; tell whether all of it has gone."""
        return True

    def pending(self) -> bool:
        """Tell whether bytes have arrived that the socket no longer has."""
        return False

    async def wait(self, timeout: float | None, *, write: bool = False) -> bool:
        """Wait until the socket can be read, or written; False after `timeout` seconds.

        One wait of each kind at a time.
        """
        waits = self._writes if write else self._reads
        try:
            if self.closed:  # trio takes any two waits without a descriptor for one too many
                raise OSError("the connection was closed")
            return await self.runtime.wait(self.socket, timeout, waits, write=write)
        except ValueError:  # another thread has closed it just now
            raise OSError("the connection was closed") from None
        finally:
            if self.closed:
                self.close()

    def connect(self, address: Any, timeout: float | None) -> bool:
        """Connect, or begin to: False when that has to be waited for."""
        self._writes.add(attempt := object())  # whoever closes it meanwhile must not do it here
        try:
            return self.runtime.connect(self.socket, address, timeout)
        finally:
            self._writes.discard(attempt)

    def interrupt(self, *, write: bool = False) -> None:
        """End the wait for something to read, or to write, as if its time had passed."""
        self.runtime.interrupt(self._writes if write else self._reads)

    def close(self) -> None:
        """Close the socket. Who waits for it is woken, and closes it: the descriptor is in use."""
        self.closed = True
        if self._reads or self._writes:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        else:
            self.socket.close()

    def leave_to_parent(self) -> None:
        """In a child process: give up the descriptor without a word to the server.

        Not by close(): the socket object, or a selector, may use its number once more.
        """
        if (number := self.socket.fileno()) >= 0:
            with open(os.devnull, "r+b", buffering=0) as nothing:
                os.dup2(nothing.fileno(), number, inheritable=False)


class TLSIO:
    """TLS over a socket, or over another TLS: an https proxy's."""

    def __init__(self, below: SocketIO | TLSIO, context: Any, server_hostname: str | None) -> None:
        self._below = below
        self.base: SocketIO = below.base  # the socket beneath
        self.runtime: Runtime = below.runtime
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._unsent = b""
        self._waits_for_server = False  # before it can write
        self._ended = False
        # One thread may read while another writes: a websocket's. Never held while waiting; taken
        # again by a finalizer or a signal handler that has interrupted its holder.
        self._lock = threading.RLock()
        self.object: ssl.SSLObject = wrap(context, self._incoming, self._outgoing, server_hostname)

    @property
    def closed(self) -> bool:
        """Whether the socket was closed."""
        return self.base.closed

    def receive(self, size: int) -> bytes | None:
        """Return what has arrived, b"" at the end, None when nothing has."""
        with self._lock:
            has_bytes = self._ended or self._incoming.pending or self.object.pending()
            while has_bytes or self._feed():
                try:
                    data = self.object.read(size)
                except ssl.SSLWantReadError:
                    has_bytes = False
                    continue
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    data = b""  # without a goodbye too, as in the ssl module's own sockets
                finally:
                    if self._outgoing.pending:  # answers to key updates
                        with suppress(OSError):  # what was received counts; a write will say so
                            self.flush()
                self._ended = not data
                return data
            return None

    def _feed(self) -> bool:
        """Take over what has arrived beneath; False when nothing has."""
        data = self._below.receive(RECORDS)
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        return data is not None

    def send(self, data: bytes | memoryview) -> int:
        """Take what can be taken without piling up; return how many bytes that were."""
        with self._lock:
            if not self.flush():
                return 0
            try:
                return self.object.write(memoryview(data)[:MOST_ENCRYPTED])
            except ssl.SSLWantReadError:  # a handshake that the server began again
                self._waits_for_server = not self._feed()
                return 0
            finally:
                self.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether something encrypted has not gone to the socket."""
        return bool(self._unsent or self._outgoing.pending) or self._below.has_unsent

    def flush(self) -> bool:
        """Send on what is encrypted; tell whether all of it has gone."""
        if not self.has_unsent:
            return True
        with self._lock:
            if self._outgoing.pending:
                self._unsent += self._outgoing.read()
            while self._unsent and (sent := self._below.send(self._unsent)):
                self._unsent = self._unsent[sent:]
            return self._below.flush() and not self._unsent

    def pending(self) -> bool:
        """Tell whether bytes have arrived that the socket no longer has, or TLS's own end."""
        here = self._ended or self._incoming.pending or self.object.pending()
        return bool(here) or self._below.pending()

    async def wait(self, timeout: float | None, *, write: bool = False) -> bool:
        """Wait for the socket beneath."""
        if self._waits_for_server:
            self._waits_for_server = write = False
        return await self._below.wait(timeout, write=write)

    def shake_hands(self) -> bool:
        """Go on with the handshake; False when more has to arrive first."""
        try:
            while True:
                try:
                    self.object.do_handshake()
                    return True
                except ssl.SSLWantReadError:
                    self.flush()
                    if not self._feed():
                        return False
        finally:
            with suppress(OSError):
                self.flush()  # also the alert that says why it failed

    def close(self) -> None:
        """Close the socket."""
        self._below.close()


class ALPNContext:
    """An SSLContext, with the protocols that one connection offers.

    httpcore writes the list into the context at each connect, and handshakes going on would offer
    another connection's: all but the list is the context's.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.protocols: list[str] = []

    def set_alpn_protocols(self, protocols: list[str]) -> None:
        """Note the protocols, HTTP/2 first: some servers take the client's first."""
        self.protocols = sorted(protocols, key=lambda protocol: protocol != "h2")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)


_wrapping = threading.RLock()


def wrap(context: Any, incoming: Any, outgoing: Any, server_hostname: str | None) -> ssl.SSLObject:
    """Begin TLS with the protocols that are meant for this connection."""
    with _wrapping:
        if isinstance(context, ALPNContext):
            context.context.set_alpn_protocols(context.protocols)
        tls: ssl.SSLObject = context.wrap_bio(incoming, outgoing, server_hostname=server_hostname)
        return tls


def _after_fork() -> None:
    global _wrapping
    _wrapping = threading.RLock()
    for one in list(_sockets):
        one.leave_to_parent()


if hasattr(os, "register_at_fork"):  # pragma: no branch  (not on Windows)
    os.register_at_fork(after_in_child=_after_fork)
