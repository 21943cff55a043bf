"""HTTP/2 connections that keep one stream's trouble away from its neighbours.

`Session` is the protocol without I/O, written once; the two connections below read and write for
it, and take the place of httpcore's. Written for h2 4; imported by `connections.py` alone.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import suppress
from functools import wraps
from time import monotonic
from typing import Any

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpcore
from h2.errors import ErrorCodes
from httpcore._trace import Trace

from .._deadline import remaining
from .ledger import NotProcessed

logger = logging.getLogger("httpcore.http2")

READ_SIZE = 64 * 1024
WINDOW = 2**24  # bytes that the server may be ahead, for a stream and for the connection
MOST_STREAMS = 100  # at a time, whatever the server allows; as in httpcore
GRACE = 0.05  # seconds to hear what an idle connection has to say before it is used again
PARTING = 1.0  # seconds to tell the server that a response is no longer wanted


class Exchange:
    """One request and its response: a stream of a session."""

    def __init__(self, stream_id: int, request: Any, has_body: bool) -> None:
        self.id = stream_id
        self.request = request  # httpcore's
        self.sent = not has_body
        self.status = 0  # until the response's headers have come
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: deque[tuple[bytes, int]] = deque()  # data, and its share of the window
        self.length: int | None = None  # the body's, as promised by content-length
        self.received = 0
        self.unacknowledged = 0
        self.ended = False
        self.error: Exception | None = None
        self.wake: anyio.Event | None = None  # while it sleeps (async)

    def timeout(self, phase: str) -> float | None:
        """Return the request's timeout for a phase, in seconds."""
        timeouts: dict[str, float | None] = self.request.extensions.get("timeout", {})
        return timeouts.get(phase)

    def over(self) -> bool:
        """Whether nothing more will arrive."""
        return self.ended or self.error is not None

    def answered(self) -> bool:
        """Whether the response's headers are here, or never will be."""
        return self.status > 0 or self.over()

    def readable(self) -> bool:
        """Whether there is something to take: a piece of the body, or its end."""
        return bool(self.chunks) or self.over()

    def take(self) -> bytes | None:
        """Return the next piece of the body, None at its end; raise what went wrong."""
        if self.chunks:
            data, share = self.chunks.popleft()
            self.unacknowledged += share
            return data
        if self.error is not None:
            raise self.error
        return None

    def fail(self, error: Exception) -> None:
        """End the exchange with an error, unless it has ended."""
        if not self.over():
            self.error = error

    def head(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Take in the response's status and headers."""
        self.headers = [(name, value) for name, value in headers if not name.startswith(b":")]
        fields = dict(headers)
        status, length = fields.get(b":status", b""), fields.get(b"content-length", b"")
        if not (status.isdigit() and len(status) == 3):
            return self.fail(httpcore.RemoteProtocolError("a response without a status"))
        self.status = int(status)
        bodiless = self.request.method == b"HEAD" or self.status in (204, 304)
        if length.isdigit() and not bodiless:
            self.length = int(length)

    def data(self, data: bytes, share: int) -> None:
        """Take in a piece of the body."""
        self.received += len(data)
        if data:
            self.chunks.append((data, share))
        else:
            self.unacknowledged += share  # padding

    def end(self) -> None:
        """Take in the end; h2 compares lengths on DATA frames only, not on HEADERS that end."""
        if self.length not in (None, self.received):
            return self.malformed()
        self.ended = self.error is None

    def malformed(self) -> None:
        """Fail: the body has not the length that the headers promise. Never a short body."""
        text = f"a body of {self.received} bytes where content-length says {self.length}"
        self.fail(httpcore.RemoteProtocolError(text))

    def reset(self, code: ErrorCodes | int | None) -> None:
        """Take in a RST_STREAM; after a complete response it means nothing any more."""
        refused = code == ErrorCodes.REFUSED_STREAM and not self.status
        kind = NotProcessed if refused else httpcore.RemoteProtocolError
        self.fail(kind(f"the server reset the stream: {_name(code)}"))


def _name(code: Any) -> str:
    return ErrorCodes(code).name if code in ErrorCodes else str(code)


class State(h2.connection.H2Connection):
    """h2's state machine, but for two frames that it takes for the end of the connection."""

    def __init__(self) -> None:
        super().__init__(h2.config.H2Configuration(validate_inbound_headers=False))
        self.goaway: Any = None  # the frame
        self.malformed: list[Any] = []  # DATA frames that don't fit their content-length

    @property
    def pending(self) -> bool:
        """Whether there is something to write."""
        return bool(self._data_to_send)

    def _receive_goaway_frame(self, frame: Any) -> Any:
        """Note it: streams up to its last id are still answered (RFC 9113 6.8).

        h2 refuses all later frames, so that every graceful deploy fails what is in flight.
        """
        self.goaway = frame
        return [], []

    def _receive_data_frame(self, frame: Any) -> Any:
        """Let a body of the wrong length fail its stream alone (RFC 9113 8.1.1)."""
        try:
            return super()._receive_data_frame(frame)
        except h2.exceptions.InvalidBodyLengthError:
            self.malformed.append(frame)
            self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
            if frame.flow_controlled_length:
                self.increment_flow_control_window(frame.flow_controlled_length)
            return [], []


def _settings() -> h2.settings.Settings:
    codes = h2.settings.SettingCodes
    settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            codes.MAX_HEADER_LIST_SIZE: 65536,
            codes.INITIAL_WINDOW_SIZE: WINDOW,
        },
    )
    del settings[codes.ENABLE_CONNECT_PROTOCOL]  # as httpcore: some servers balk at it
    return settings


def _head(request: httpcore.Request) -> list[tuple[bytes, bytes]]:
    fields = [(name.lower(), value) for name, value in request.headers]
    authority = next((value for name, value in fields if name == b"host"), request.url.host)
    return [
        (b":method", request.method),
        (b":authority", authority),
        (b":scheme", request.url.scheme),
        (b":path", request.url.target),
        *(field for field in fields if field[0] not in (b"host", b"transfer-encoding")),
    ]


def _ours[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Turn what h2 raises when we use it wrongly into httpcore's exception (encode/httpx#3072)."""

    @wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except (httpcore.ProtocolError, httpcore.ConnectionNotAvailable):
            raise
        except Exception as exc:
            raise httpcore.LocalProtocolError(f"{type(exc).__name__}: {exc}") from exc

    return wrapper


class Session:
    """The state of one connection, without I/O: what to write, and what reading it meant."""

    def __init__(self) -> None:
        self.state = State()
        self.state.local_settings = _settings()
        self.state.initiate_connection()
        self.state.increment_flow_control_window(WINDOW)
        self.exchanges: dict[int, Exchange] = {}
        self.limit = 1  # streams at a time: one, until the server's SETTINGS are here
        self.settled = False
        self.retired = False
        self.error: Exception | None = None
        self.requests = 0
        self.heard = monotonic()

    @property
    def usable(self) -> bool:
        """Whether new requests may begin here."""
        return self.error is None and self.state.goaway is None and not self.retired

    @property
    def streams(self) -> int:
        """How many requests at a time the server takes here, 0 when it takes no new ones."""
        return self.limit if self.usable else 0

    @_ours
    def begin(self, request: httpcore.Request) -> Exchange:
        """Open a stream for a request; its headers wait to be written.

        In one go: with an await in between, two requests can end up on one stream.
        """
        if len(self.exchanges) >= self.streams:
            raise httpcore.ConnectionNotAvailable
        names = {name.lower() for name, _ in request.headers}
        has_body = not names.isdisjoint((b"content-length", b"transfer-encoding"))
        try:
            exchange = Exchange(self.state.get_next_available_stream_id(), request, has_body)
            self.state.send_headers(exchange.id, _head(request), end_stream=exchange.sent)
        except (h2.exceptions.NoAvailableStreamIDError, h2.exceptions.TooManyStreamsError):
            self.retired = True
            raise httpcore.ConnectionNotAvailable from None
        except h2.exceptions.ProtocolError:
            self.retired = True  # half a header block has gone into the compression's state
            raise
        self.requests += 1
        self.exchanges[exchange.id] = exchange
        return exchange

    @_ours
    def window(self, exchange: Exchange) -> int:
        """Return how many bytes of the body the server lets come."""
        return 0 if exchange.over() else self.state.local_flow_control_window(exchange.id)

    @_ours
    def send(self, exchange: Exchange, data: memoryview) -> memoryview:
        """Put a piece of the body in line, as large as may be; return the rest."""
        size = min(self.window(exchange), self.state.max_outbound_frame_size)
        if size > 0:
            self.state.send_data(exchange.id, bytes(data[:size]))
        return data[size:]

    @_ours
    def end(self, exchange: Exchange) -> None:
        """Put the end of the body in line."""
        self.state.end_stream(exchange.id)
        exchange.sent = True

    def feed(self, data: bytes) -> list[Exchange]:
        """Take in what the server sent; return the exchanges that it may concern."""
        if not data:
            raise httpcore.RemoteProtocolError("Server disconnected" + self._farewell())
        self.heard = monotonic()
        events = self.state.receive_data(data)
        touched = [exchange for event in events for exchange in self._handle(event)]
        touched += self._unprocessed()
        share = sum(getattr(event, "flow_controlled_length", 0) or 0 for event in events)
        if share:
            # At once: who dawdles, or is gone, uses up a window of his own, not everybody's.
            self.state.increment_flow_control_window(share)
        return touched

    def _handle(self, event: h2.events.Event) -> Iterable[Exchange]:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self.settled = True
            self.limit = min(self.state.remote_settings.max_concurrent_streams, MOST_STREAMS)
            return list(self.exchanges.values())
        stream_id = getattr(event, "stream_id", None)
        if stream_id == 0:  # the connection's window
            return list(self.exchanges.values())
        exchange = self.exchanges.get(stream_id) if stream_id else None
        if exchange is None:
            return ()
        if isinstance(event, h2.events.ResponseReceived):
            exchange.head(event.headers or ())
        elif isinstance(event, h2.events.DataReceived):
            exchange.data(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.StreamEnded):
            exchange.end()
        elif isinstance(event, h2.events.StreamReset):
            exchange.reset(event.error_code)
        return (exchange,)

    def _unprocessed(self) -> list[Exchange]:
        """Fail what the two unusual frames of `State` tell of."""
        while self.state.malformed:
            frame = self.state.malformed.pop()
            exchange = self.exchanges[frame.stream_id]
            exchange.received += len(frame.data)
            exchange.malformed()
        if self.state.goaway is not None:
            for exchange in self.exchanges.values():
                if exchange.id > self.state.goaway.last_stream_id:
                    exchange.fail(NotProcessed("the server retired the connection (GOAWAY)"))
        return [exchange for exchange in self.exchanges.values() if exchange.error is not None]

    def _farewell(self) -> str:
        goaway = self.state.goaway
        return "" if goaway is None else f" after GOAWAY: {_name(goaway.error_code)}"

    @_ours
    def acknowledge(self, exchange: Exchange) -> None:
        """Let the server send more on a stream whose data was taken."""
        if exchange.unacknowledged >= WINDOW // 4 and not exchange.over():
            self.state.increment_flow_control_window(exchange.unacknowledged, exchange.id)
            exchange.unacknowledged = 0

    def late(self, exchange: Exchange, started: float, phase: str) -> None:
        """Fail the one request that waited too long; its neighbours go on.

        When not a byte came from the server in the latter half of the wait, the connection may be
        dead (a NAT that forgot it): no new requests there, so that the next attempt can do better.
        """
        kind = httpcore.ReadTimeout if phase == "read" else httpcore.WriteTimeout
        exchange.fail(kind("timed out"))
        if self.heard < (started + monotonic()) / 2:
            self.retired = True

    def lose(self, exc: Exception) -> None:
        """The connection is gone: fail everybody, each with an exception of his own."""
        known = isinstance(exc, (httpcore.NetworkError, httpcore.ProtocolError))
        kind = type(exc) if known else httpcore.RemoteProtocolError
        text = str(exc) if known else f"{type(exc).__name__}: {exc}"
        self.error = self.error or kind(text)
        for exchange in self.exchanges.values():
            exchange.fail(kind(text))

    def unwritten(self, exchange: Exchange, exc: Exception) -> None:
        """A write failed, for this exchange as it says; to the others the connection is lost."""
        exchange.fail(exc)
        self.lose(httpcore.WriteError(str(exc)))

    def finish(self, exchange: Exchange) -> None:
        """Forget an exchange, telling the server when it is still at it."""
        del self.exchanges[exchange.id]
        if self.error is None and not (exchange.ended and exchange.sent):
            with suppress(h2.exceptions.ProtocolError):  # it was the server who ended it
                self.state.reset_stream(exchange.id, ErrorCodes.CANCEL)


class Connection:
    """What the pool asks a connection; the same for both flavours."""

    multiplexes = False

    def __init__(self, origin: httpcore.Origin, keepalive_expiry: float | None) -> None:
        self._origin = origin
        self._keepalive_expiry = keepalive_expiry
        self._expire_at = math.inf
        self._session = Session()
        self._closed = False

    @property
    def streams(self) -> int:
        """How many requests may be on it at a time; 0 when it takes no new ones."""
        return self._session.streams

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        """Whether it leads there."""
        return origin == self._origin

    def is_available(self) -> bool:
        """Whether another request may begin here."""
        return len(self._session.exchanges) < self._session.streams and not self._closed

    def is_idle(self) -> bool:
        """Whether it is fit for use and has nothing to do."""
        return self.is_available() and not self._session.exchanges

    def has_expired(self) -> bool:
        """Whether it has been idle for too long."""
        return monotonic() > self._expire_at

    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    def info(self) -> str:
        """Say what httpcore's own would."""
        state = "CLOSED" if self._closed else "IDLE" if self.is_idle() else "ACTIVE"
        return f"{str(self._origin)!r}, HTTP/2, {state}, Request Count: {self._session.requests}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.info()}]>"

    def _rest(self) -> bool:
        """Note the time when the last request leaves; False when the connection is of no use."""
        if self._session.exchanges:
            return True
        expiry = self._keepalive_expiry
        self._expire_at = math.inf if expiry is None else monotonic() + expiry
        return self._session.usable


Ready = Callable[[], bool]


def _response(exchange: Exchange, stream: Any, content: Any) -> httpcore.Response:
    """Return the response; raise what came instead."""
    if not exchange.status and exchange.error is not None:
        raise exchange.error
    return httpcore.Response(
        status=exchange.status,
        headers=exchange.headers,
        content=content,
        extensions={
            "http_version": b"HTTP/2",
            "network_stream": stream,
            "stream_id": exchange.id,
        },
    )


class HTTP2Connection(Connection, httpcore.ConnectionInterface):
    """For one request at a time: threads can't get at each other's streams."""

    def __init__(
        self,
        origin: httpcore.Origin,
        stream: httpcore.NetworkStream,
        keepalive_expiry: float | None,
    ) -> None:
        super().__init__(origin, keepalive_expiry)
        self._network_stream = stream

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response, whose body is yet to be read."""
        if self._session.requests:
            self._catch_up()
        exchange = self._session.begin(request)
        try:
            self._send(exchange)
            with Trace("receive_response_headers", logger, request, _facts(exchange)) as trace:
                self._until(exchange, exchange.answered, "read")
                response = _response(exchange, self._network_stream, Body(self, exchange))
                trace.return_value = (exchange.status, exchange.headers)
            return response
        except BaseException:
            self.finish(exchange)
            raise

    def _catch_up(self) -> None:
        """Hear what the server has said already: it may have retired the connection."""
        until = monotonic() + GRACE
        with suppress(httpcore.ReadTimeout):
            while (
                self._session.error is None
                and monotonic() < until
                and self._network_stream.get_extra_info("is_readable")
            ):
                self._read(GRACE)

    def _send(self, exchange: Exchange) -> None:
        request = exchange.request
        with Trace("send_request_headers", logger, request, _facts(exchange)):
            self._flush(exchange)
        if exchange.sent:
            return
        with Trace("send_request_body", logger, request, _facts(exchange)):
            stream: Any = request.stream
            for data in stream:
                self._send_data(exchange, data)
                if exchange.over():
                    return  # an answer came early, nobody wants the rest
            self._session.end(exchange)
            self._flush(exchange)

    def _send_data(self, exchange: Exchange, data: bytes) -> None:
        def ready() -> bool:
            return self._session.window(exchange) > 0 or exchange.over()

        rest = memoryview(data)
        while rest and not exchange.over():
            self._catch_up()  # an early answer, or a GOAWAY
            self._until(exchange, ready, "write")
            rest = self._session.send(exchange, rest)
            self._flush(exchange)

    def _until(self, exchange: Exchange, ready: Ready, phase: str) -> None:
        """Read until `ready()`, or until the exchange has failed."""
        started = monotonic()
        deadline = started + _seconds(exchange.timeout(phase))
        while not ready():
            left = deadline - monotonic()
            if left <= 0:
                self._session.late(exchange, started, phase)
                return
            with suppress(httpcore.ReadTimeout):
                self._read(left)
            self._flush(exchange)

    def _read(self, limit: float) -> None:
        try:
            self._session.feed(self._network_stream.read(READ_SIZE, _timeout(limit)))
        except httpcore.ReadTimeout:
            raise
        except Exception as exc:
            self._session.lose(exc)

    def _flush(self, exchange: Exchange) -> None:
        """Write what is in line; a failure is the exchange's."""
        if not self._session.state.pending or self._session.error is not None:
            return
        try:
            data = self._session.state.data_to_send()
            self._network_stream.write(data, exchange.timeout("write"))
        except Exception as exc:
            self._session.unwritten(exchange, exc)

    def next(self, exchange: Exchange) -> bytes | None:
        """Return the next piece of a response's body, None at its end."""
        self._until(exchange, exchange.readable, "read")
        data = exchange.take()
        self._session.acknowledge(exchange)
        self._flush(exchange)
        return data

    def finish(self, exchange: Exchange) -> None:
        """End an exchange; a connection with half a response on it is closed."""
        if exchange.id not in self._session.exchanges:
            return
        complete = exchange.over()
        self._session.finish(exchange)
        self._flush(exchange)
        if not (self._rest() and complete):
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._network_stream.close()


class Body:
    """The body of a sync response."""

    def __init__(self, connection: HTTP2Connection, exchange: Exchange) -> None:
        self._connection, self._exchange = connection, exchange

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        try:
            with Trace("receive_response_body", logger, exchange.request, _facts(exchange)):
                while (data := self._connection.next(exchange)) is not None:
                    yield data
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the exchange, whether or not the body was read."""
        with Trace("response_closed", logger, self._exchange.request, _facts(self._exchange)):
            self._connection.finish(self._exchange)


class AsyncHTTP2Connection(Connection, httpcore.AsyncConnectionInterface):
    """For many requests at a time.

    Whoever waits reads for all; the others sleep until there is something for them. (httpcore
    hands a lock around: a timeout becomes everybody's, and who waits for the lock waits without
    one, although his answer may be here already.)
    """

    multiplexes = True

    def __init__(
        self,
        origin: httpcore.Origin,
        stream: httpcore.AsyncNetworkStream,
        keepalive_expiry: float | None,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(origin, keepalive_expiry)
        self._network_stream = stream
        self._changed = changed  # called when `streams` has changed
        self._told = self.streams
        self._reading = False
        self._asleep: dict[Exchange, None] = {}
        self._writing = anyio.Lock(fast_acquire=True)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response, whose body is yet to be read."""
        if self._session.requests and not self._session.exchanges:
            await self._catch_up()
        exchange = self._session.begin(request)
        try:
            await self._send(exchange)
            facts = _facts(exchange)
            async with Trace("receive_response_headers", logger, request, facts) as trace:
                await self._until(exchange, exchange.answered, "read")
                response = _response(exchange, self._network_stream, AsyncBody(self, exchange))
                trace.return_value = (exchange.status, exchange.headers)
            return response
        except BaseException:
            await self.finish(exchange)
            raise

    async def _catch_up(self) -> None:
        """Hear what the server has said already: it may have retired the connection."""
        until = monotonic() + GRACE
        with suppress(httpcore.ReadTimeout):
            while (
                not self._reading
                and self._session.error is None
                and monotonic() < until
                and self._network_stream.get_extra_info("is_readable")
            ):
                await self._read(GRACE)
        self._pass_on()

    async def _send(self, exchange: Exchange) -> None:
        request = exchange.request
        async with Trace("send_request_headers", logger, request, _facts(exchange)):
            await self._flush(exchange)
        if exchange.sent:
            return
        async with Trace("send_request_body", logger, request, _facts(exchange)):
            # Others wait for the server's SETTINGS; a body may take its time, and nobody reads.
            await self._until(exchange, lambda: self._session.settled or exchange.over(), "read")
            if await self._send_all(exchange):
                self._session.end(exchange)
                await self._flush(exchange)

    async def _send_all(self, exchange: Exchange) -> bool:
        """Send the body; False when an answer came early and nobody wants the rest."""
        chunks: AsyncIterator[bytes] = aiter(exchange.request.stream)
        try:
            async for data in chunks:
                await self._send_data(exchange, data)
                if exchange.over():
                    return False
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()  # at once: trio warns when the garbage collector does it
        return True

    async def _send_data(self, exchange: Exchange, data: bytes) -> None:
        def ready() -> bool:
            return self._session.window(exchange) > 0 or exchange.over()

        rest = memoryview(data)
        while rest and not exchange.over():
            await self._catch_up()  # an early answer, or a GOAWAY
            await self._until(exchange, ready, "write")
            rest = self._session.send(exchange, rest)
            await self._flush(exchange)

    async def _until(self, exchange: Exchange, ready: Ready, phase: str) -> None:
        """Wait until `ready()` or until the exchange has failed; read, unless somebody does."""
        started = monotonic()
        deadline = started + _seconds(exchange.timeout(phase))
        try:
            while not ready():
                left = deadline - monotonic()
                if left <= 0:
                    self._session.late(exchange, started, phase)
                    return
                if self._reading:
                    await self._sleep(exchange, left)
                    continue
                with suppress(httpcore.ReadTimeout):
                    await self._read(left)
                await self._flush(exchange)
        finally:
            self._pass_on()

    async def _sleep(self, exchange: Exchange, limit: float) -> None:
        exchange.wake = anyio.Event()
        self._asleep[exchange] = None
        try:
            with anyio.move_on_after(limit):
                await exchange.wake.wait()
        finally:
            self._asleep.pop(exchange, None)

    def _pass_on(self) -> None:
        """Let somebody else read, when nobody does."""
        self._tell()
        if not self._reading and self._asleep:
            _wake(next(iter(self._asleep)))

    def _tell(self) -> None:
        if self._told != self.streams:
            self._told = self.streams
            self._changed()

    async def _read(self, limit: float) -> None:
        self._reading = True
        try:
            data = await self._network_stream.read(READ_SIZE, _timeout(limit))
            touched = self._session.feed(data)
        except httpcore.ReadTimeout:
            raise
        except Exception as exc:
            self._session.lose(exc)
            touched = list(self._asleep)
        finally:
            self._reading = False
        for exchange in touched:
            _wake(exchange)
        self._tell()

    async def _flush(self, exchange: Exchange, limit: float | None = None) -> None:
        """Write what is in line; a failure is the exchange's."""
        timeout = remaining(exchange.timeout("write")) if limit is None else limit
        if not self._session.state.pending or self._session.error is not None:
            return
        with anyio.move_on_after(timeout) as waiting:
            await self._writing.acquire()
        if waiting.cancelled_caught:
            exchange.fail(httpcore.WriteTimeout("timed out"))
            return
        try:
            await self._write(exchange, timeout)
        finally:
            self._writing.release()

    async def _write(self, exchange: Exchange, timeout: float | None) -> None:
        """Write without being interrupted: half a frame on the wire is the end for everybody.

        So a cancellation may have to wait, up to the timeout, for a peer that doesn't read. With
        no timeout there is no such limit, then the cancelled one takes the connection with him.
        """
        try:
            with anyio.CancelScope(shield=timeout is not None):
                await self._network_stream.write(self._session.state.data_to_send(), timeout)
        except Exception as exc:
            self._session.unwritten(exchange, exc)
        except BaseException as exc:
            text = f"{type(exc).__name__} in the middle of a write"
            self._session.unwritten(exchange, httpcore.WriteError(text))
            raise
        finally:
            if self._session.error is not None:
                with anyio.CancelScope(shield=True):
                    await self.aclose()  # whoever reads for all hears of it, and wakes the others

    async def next(self, exchange: Exchange) -> bytes | None:
        """Return the next piece of a response's body, None at its end."""
        await self._until(exchange, exchange.readable, "read")
        data = exchange.take()
        self._session.acknowledge(exchange)
        await self._flush(exchange)
        return data

    async def finish(self, exchange: Exchange) -> None:
        """End an exchange, also one that nobody waits for any more."""
        if exchange.id not in self._session.exchanges:
            return
        with anyio.CancelScope(shield=True):
            self._session.finish(exchange)
            await self._flush(exchange, PARTING)
            if not self._rest():
                await self.aclose()
        self._tell()

    async def aclose(self) -> None:
        """Close the connection."""
        self._closed = True
        await self._network_stream.aclose()


class AsyncBody:
    """The body of an async response."""

    def __init__(self, connection: AsyncHTTP2Connection, exchange: Exchange) -> None:
        self._connection, self._exchange = connection, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            async with Trace("receive_response_body", logger, exchange.request, _facts(exchange)):
                while (data := await self._connection.next(exchange)) is not None:
                    yield data
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the exchange, whether or not the body was read."""
        async with Trace("response_closed", logger, self._exchange.request, _facts(self._exchange)):
            await self._connection.finish(self._exchange)


def _facts(exchange: Exchange) -> dict[str, Any]:
    """Return what httpcore tells the trace extension."""
    return {"request": exchange.request, "stream_id": exchange.id}


def _seconds(timeout: float | None) -> float:
    limit = remaining(timeout)
    return math.inf if limit is None else limit


def _timeout(limit: float) -> float | None:
    return None if limit == math.inf else limit


def _wake(exchange: Exchange) -> None:
    if exchange.wake is not None:
        exchange.wake.set()
