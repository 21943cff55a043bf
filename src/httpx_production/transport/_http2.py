"""HTTP/2 connections: they read and write for the protocol of `_http2_protocol.py`.

What arrives is taken in without waiting, in one go, by whoever comes by; what is to be sent is
handed to the socket as far as it goes. The only thing ever waited for is the socket itself, so
that a request can give up its wait at any moment and leaves nothing half done.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from threading import Lock
from time import monotonic
from typing import Any

import httpcore

from ._http2_protocol import HTTP2Protocol
from ._http2_stream import HTTP2Stream, closed_error
from ._http2_waiting import Clock, Role
from ._network import NetworkStream, reason
from ._runtime import Turn

logger = logging.getLogger(f"{httpcore.__name__}.http2")

READ_SIZE = 16 * 1024  # bytes at a time: some 1,800 of the smallest frames
MOST_PIECES = 256  # that an idle connection is read for before it is used; over TLS, records
MOST_UNSENT = 2**18  # bytes: a server that doesn't read isn't listened to, it wants answers
PROGRESS = 2**14  # bytes, a frame's, that may take a whole write_timeout, as in httpcore
LISTEN_AT_MOST = 0.05  # seconds to wait for the server's bytes, while ours are not all on their way


class HTTP2Connection:
    """What the two flavours have in common: all but the names of their methods."""

    shared = False
    body: Callable[[HTTP2Stream], Any]  # a response's body
    chunks: Callable[[Any], Any]  # an async iterator over a request's body
    trace: Callable[[str, Any, dict[str, Any]], Any]  # httpcore's tracing of one step

    def __init__(
        self,
        origin: httpcore.Origin,
        network_stream: NetworkStream,
        changed: Callable[[], None],
    ) -> None:
        self._origin = origin
        self._network_stream: Any = network_stream
        self._io = network_stream.io
        self._changed = changed  # called when `capacity` has changed
        self._told: int | None = None
        self._protocol = HTTP2Protocol()
        self._initiated = False
        # A thread may close the response that another one reads: it must not touch its state.
        self._guard: Any = nullcontext() if self.shared else Lock()
        self._unsent = b""
        self._turn = Turn()
        self._write_failed = False
        self._noted, self._noted_at = 0, 0.0  # how many bytes had been sent, and when
        self._has_more = False  # perhaps: what waiting for the socket doesn't see, in TLS above all
        self._reading = Role(self._wait_readable, self._io.runtime)
        self._writing = Role(self._wait_writable, self._io.runtime)

    # --- what the pool asks -----------------------------------------------------------------------

    @property
    def capacity(self) -> int | None:
        """How many requests it takes at a time; 0: no new ones; None: not known yet."""
        limit = self._protocol.capacity
        return limit if self.shared or limit == 0 else 1

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        """Tell whether it leads there."""
        return origin == self._origin

    def is_available(self) -> bool:
        """Tell whether another request may begin here."""
        if (capacity := self.capacity) is None:
            capacity = 1
        is_whole = not (self.is_closed() or self._protocol.whole.is_torn())
        return is_whole and len(self._protocol.streams) < capacity

    def is_idle(self) -> bool:
        """Tell whether it is fit for use and has nothing to do, nor bytes that wait to be sent."""
        return self.is_available() and not self._protocol.streams and self._flush_now()

    def has_expired(self) -> bool:
        """Tell whether the server has taken leave; the pool knows for how long it has been idle."""
        if not self.is_closed():
            self._catch_up()
        return not self.is_available()

    def is_closed(self) -> bool:
        """Tell whether it has been closed."""
        return self._io.closed

    def info(self) -> str:
        """Say what httpcore's own would."""
        state = "CLOSED" if self.is_closed() else "ACTIVE" if self._protocol.streams else "IDLE"
        return f"{str(self._origin)!r}, HTTP/2, {state}, Request Count: {self._protocol.requests}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.info()}]>"

    # --- one request ------------------------------------------------------------------------------

    async def exchange(self, request: Any) -> httpcore.Response:
        """Send a request and return its response, whose body is yet to be read."""
        with self._guard:
            try:
                await self._initiate(request)
                stream = self._protocol.begin(request)
                await self._send(stream)
                await self._receive_headers(stream)
                return self._response(stream)
            except httpcore.ConnectionNotAvailable:
                self._protocol.retired = True  # whoever sends requests here counts otherwise
                self._tell()
                raise
            except BaseException:
                self._finish(request)
                async with self.trace("response_closed", request, {"request": request}):
                    pass
                raise

    async def _initiate(self, request: Any) -> None:
        if not self._initiated:
            async with self.trace("send_connection_init", request, {"request": request}):
                self._initiated = True
                self._protocol.initiate()
        elif self.shared and not self._protocol.streams:  # another one was looked at by the pool
            self._catch_up()

    async def _receive_headers(self, stream: HTTP2Stream) -> None:
        facts = {"request": stream.request, "stream_id": stream.id}
        async with self.trace("receive_response_headers", stream.request, facts) as trace:
            await self._until(stream, stream.has_headers, "read")
            await self._trace_settings(stream.request)
            if not stream.status and stream.error is not None:
                raise stream.error
            trace.return_value = (stream.status, stream.headers)

    async def _trace_settings(self, request: Any) -> None:
        while self._protocol.settings_changes:
            event = self._protocol.settings_changes.popleft()
            async with self.trace("receive_remote_settings", request, {}) as trace:
                trace.return_value = event

    def _response(self, stream: HTTP2Stream) -> httpcore.Response:
        return httpcore.Response(
            status=stream.status,
            headers=stream.headers,
            content=self.body(stream),
            extensions={
                "http_version": b"HTTP/2",
                "network_stream": self._network_stream,
                "stream_id": stream.id,
            },
        )

    async def _send(self, stream: HTTP2Stream) -> None:
        request, facts = stream.request, {"request": stream.request, "stream_id": stream.id}
        async with self.trace("send_request_headers", request, facts):
            await self._flush(stream)
        async with self.trace("send_request_body", request, facts):
            if not stream.is_sent and not stream.is_finished():
                await self._send_body(stream)

    async def _send_body(self, stream: HTTP2Stream) -> None:
        stream.body_started = True
        chunks = self.chunks(stream.request.stream)
        try:
            async for chunk in chunks:
                await self._send_chunk(stream, chunk)
                if stream.is_finished():
                    return  # an answer came early, nobody wants the rest
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()  # at once: trio warns when the garbage collector does it
        if not stream.is_finished():
            self._protocol.end(stream)
            await self._flush(stream)

    async def _send_chunk(self, stream: HTTP2Stream, chunk: bytes) -> None:
        def may_send() -> bool:
            return self._protocol.window(stream) > 0 or stream.is_finished()

        rest = memoryview(chunk)
        while rest and not stream.is_finished():
            # An early answer, or a GOAWAY; or what the reader waits for, which has to be told.
            if self._receive_now() and self._reading.owner is not None:
                self._interrupt_reader()
            if self._turn.is_over(len(rest)):
                await self._io.runtime.checkpoint()
            await self._flush(stream)  # what others have put in line, first
            await self._until(stream, may_send, "write")
            rest = self._protocol.send(stream, rest)
            await self._flush(stream)

    async def next_chunk(self, stream: HTTP2Stream) -> bytes | None:
        """Return the next piece of a response's body, None at its end."""
        with self._guard:
            await self._until(stream, stream.is_readable, "read")
            data = stream.take()
            if data is not None:
                self._protocol.acknowledge(stream, len(data))
                self._flush_now()
            return data

    def finish_request(self, request: Any) -> None:
        """End a request's use of the connection, wherever it stands; never waits."""
        if self.shared:
            return self._finish(request)
        if not self._guard.acquire(blocking=False):  # a thread is in the middle of it
            for stream in list(self._protocol.streams.values()):
                stream.fail(closed_error())
            return self._io.close()
        try:
            self._finish(request)
        finally:
            self._guard.release()

    def _finish(self, request: Any) -> None:
        for stream in list(self._protocol.streams.values()):
            if stream.request is request:
                self._protocol.finish(stream)
                stream.wake()
                if self._reading.owner is stream:
                    self._io.base.interrupt()
        self._flush_now()
        self._tell()

    # --- the socket -------------------------------------------------------------------------------

    async def _until(self, stream: HTTP2Stream, ready: Callable[[], bool], phase: str) -> None:
        """Wait until `ready()`, or until the stream has failed."""
        if ready() and stream.has_time(phase):
            return
        clock = Clock(stream.timeout(phase), self._news_for(stream, phase))
        try:
            while await self._wait(self._reading, stream, clock, phase):
                if ready() and stream.has_time(phase):
                    return
        finally:
            self._hand_over()

    async def _flush(self, stream: HTTP2Stream) -> None:
        """Wait until the socket has taken all that is in line, or the stream has failed."""
        if self._flush_now() or stream.is_finished():
            return
        clock = Clock(stream.timeout("write"), self._last_sent)
        try:
            while await self._wait(self._writing, stream, clock, "write"):
                if self._flush_now() or stream.is_finished():
                    return
        finally:
            self._hand_over()

    def _news_for(self, stream: HTTP2Stream, phase: str) -> Callable[[], float]:
        heard = self._protocol.heard_for(stream)
        if phase == "read":
            return heard
        is_held_up = self._protocol.is_held_up
        return lambda: max(heard(), self._last_sent() if is_held_up(stream) else 0.0)

    def _last_sent(self) -> float:
        """Return when the socket last took something worth mention; noted as it is asked.

        A body has to wait behind those of others: that may take longer than one write_timeout.
        """
        sent = self._io.base.sent
        if sent - self._noted >= PROGRESS:
            self._noted, self._noted_at = sent, monotonic()
        return self._noted_at

    def _hand_over(self) -> None:
        self._reading.hand_over()
        self._writing.hand_over()

    async def _wait(self, role: Role, stream: HTTP2Stream, clock: Clock, phase: str) -> bool:
        """Wait once; False when the stream's time is up."""
        left = clock.left()
        if left is None or left > 0:
            limit = left
            if not self._flush_now():
                if len(self._unsent) >= MOST_UNSENT:
                    role = self._writing
                elif role is self._reading:
                    limit = LISTEN_AT_MOST if left is None else min(left, LISTEN_AT_MOST)
            if await role.wait(stream, limit):
                return True
            clock.add(limit)
            left = clock.left()
        if left is not None and left <= 0:
            self._protocol.fail_timed_out(stream, phase, clock.elapsed())
            return False
        return True

    async def _wait_readable(self, limit: float | None) -> bool:
        try:
            if readable := self._has_more:
                await self._io.runtime.checkpoint()
            else:
                readable = await self._io.wait(limit) or self._has_more
        except (OSError, ValueError) as exc:
            self._fail(exc)
            return True
        self._has_more = False  # only here: an upload's look must not hide it from who waits
        self._receive_now()
        return readable

    async def _wait_writable(self, limit: float | None) -> bool:
        try:
            return await self._io.wait(limit, write=True)
        except (OSError, ValueError) as exc:
            self._fail(exc)
            return True

    def _receive_now(self) -> bytes | None:
        """Take in what has arrived, without waiting: one piece, so that others get their turn."""
        data = None
        try:
            with self._protocol.whole:  # what was taken from the socket must get where it belongs
                data = self._io.receive(READ_SIZE)
                concerned = () if data is None else self._protocol.receive(data)
            if data is not None:
                self._wake(concerned)
                if len(data) == READ_SIZE or self._io.pending():
                    self._has_more = True
        except Exception as exc:
            self._fail(exc)
        return data

    def _interrupt_reader(self) -> None:
        """Have whoever waits for the socket look again, at what the socket won't show."""
        self._has_more = True
        self._io.base.interrupt()

    def _catch_up(self) -> None:
        """Take in what arrived while nobody was there: a server's leave comes last of all.

        Where that does not come to an end, no request begins here: it might be lost to the leave.
        """
        for _ in range(MOST_PIECES):
            if not self._receive_now():
                return
        self._protocol.retired = True

    def _flush_now(self) -> bool:
        """Hand what is in line to the socket, without waiting; False when some of it is left."""
        if not (self._unsent or self._protocol.has_data_to_send() or self._io.has_unsent):
            return True
        if self._protocol.whole.is_torn():
            return True  # by Ctrl-C: what has gone already, and what has not, nobody knows
        try:
            with self._protocol.whole:
                self._unsent += self._protocol.data_to_send()
                if self._protocol.error is not None or self._write_failed:
                    self._unsent = b""
                    return True
                while self._unsent and (sent := self._io.send(self._unsent)):
                    self._unsent = self._unsent[sent:]
                    self._last_sent()  # notes it
                return self._io.flush() and not self._unsent
        except OSError:
            # What the server has said before it went, GOAWAY above all, is still to be read; the
            # end of that ends the streams.
            self._write_failed = self._protocol.retired = True
            return True

    def _fail(self, exc: Exception) -> None:
        if isinstance(exc, OSError):
            exc = httpcore.ReadError(reason(exc))
        self._wake(self._protocol.fail_connection(exc))
        self._io.close()

    def _wake(self, streams: Iterable[HTTP2Stream]) -> None:
        for stream in streams:
            stream.wake()  # but not who waits for the socket, on behalf of all
            if stream is self._writing.owner and stream.is_finished():
                self._io.base.interrupt(write=True)
        self._tell()

    def _tell(self) -> None:
        if self._told != (limit := self._protocol.capacity):
            self._told = limit
            self._changed()
