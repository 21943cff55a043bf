"""HTTP/2 without I/O: what to write, what reading it meant, and to which request.

Over h2's state machine, which takes three things for the end of the connection that concern one
stream, or nobody; here they are kept from its neighbours.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import re
import string
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.frame_buffer
import h2.settings
import hpack
import httpcore
from h2.errors import ErrorCodes

from ._http2_stream import STREAM_WINDOW, HTTP2Stream, NotProcessed, closed_error, error_name

MOST_STREAMS = 100  # at a time, whatever the server allows; as in httpcore
MOST_UNREAD = 2**25  # bytes that one connection may hold for its readers: 32 MiB
SPARE_WINDOW = 2**24  # bytes by which the windows of readers that keep up may grow, in all
# A hundred first windows and all of the spare one are below MOST_UNREAD, so that the connection's
# own window can be opened again at once: a slow reader uses up its window, not everybody's.
assert MOST_STREAMS * STREAM_WINDOW + SPARE_WINDOW < MOST_UNREAD
BATCH = 64 * 1024  # bytes of a request's body that are put in line at a time
# What servers say of a head that is too large: nginx; apache, nghttpd and node; lighttpd.
BLAMES = ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.COMPRESSION_ERROR, ErrorCodes.FRAME_SIZE_ERROR
BODY_HEADERS = frozenset((b"content-length", b"transfer-encoding"))
Fields = list[tuple[bytes, bytes]]
OURS = httpcore.ProtocolError, httpcore.ConnectionNotAvailable, OSError

# As h11 has them for HTTP/1.1 (RFC 9110 sections 5.1 and 5.5), for `translate`: a third of what a
# regular expression costs, in each header of each request.
_OF_TOKENS = b"-!#$%&'*+.^_`|~" + (string.digits + string.ascii_letters).encode()
_NOT_IN_VALUES = b"\0\n\v\f\r"
_TARGET = re.compile(rb"[\x21-\x7e]+")


class Frames(h2.frame_buffer.FrameBuffer):
    """What arrives, frame by frame.

    h2 asks each for its repr(), for a log that is not kept: that of DATA writes the whole body in
    hexadecimal, 260,000 instructions for 16 KB, 40 % of what receiving it costs.
    """

    def __next__(self) -> Any:
        frame: Any = super().__next__()
        frame.serialize_body = bytes  # what repr() shows: b""
        return frame


class PlainEncoder(hpack.Encoder):
    """Encodes headers without Huffman codes, which are optional (RFC 7541 section 5.2).

    hpack's take time by the square of a value's length: 0.4 ms for a token of 1 KB, 5 ms for 4 KB,
    in each request, since an `authorization` is never put into the table of what was said before.
    """

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        """Return the header block."""
        return super().encode(headers, huffman=huffman)


class TolerantH2(h2.connection.H2Connection):
    """h2's state machine, but for two frames that it takes for the end of the connection."""

    def __init__(self) -> None:
        super().__init__(h2.config.H2Configuration(validate_inbound_headers=False))
        self.local_settings = _settings()
        self.encoder = PlainEncoder()
        self.incoming_buffer = Frames(server=False)
        self.goaway: Any = None  # the frame
        self.malformed_data: list[Any] = []  # DATA frames that don't fit their content-length

    def _receive_goaway_frame(self, frame: Any) -> Any:
        """Note it: streams up to its last id are still answered (RFC 9113 section 6.8).

        h2 refuses all later frames, so that every graceful deploy fails what is in flight.
        """
        self.goaway = frame
        return [], []

    def _receive_data_frame(self, frame: Any) -> Any:
        """Let a body of the wrong length fail its stream alone (RFC 9113 section 8.1.1)."""
        try:
            return super()._receive_data_frame(frame)
        except h2.exceptions.InvalidBodyLengthError:
            self.malformed_data.append(frame)
            self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return [], []

    def half_received(self) -> int:
        """Return the stream of a frame whose rest has not come yet; 0: of none."""
        buffer: Any = self.incoming_buffer
        data: bytes = buffer._data if hasattr(buffer, "_data") else buffer.data  # before h2 4.3
        return int.from_bytes(data[5:9]) & 0x7FFF_FFFF if len(data) >= 9 else 0


def _settings() -> h2.settings.Settings:
    codes = h2.settings.SettingCodes
    settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            codes.MAX_HEADER_LIST_SIZE: 65536,
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        },
    )
    del settings[codes.ENABLE_CONNECT_PROTOCOL]  # as httpcore: some servers balk at it
    return settings


def _header_block(request: httpcore.Request, fields: Fields) -> Fields:
    """Return what is sent; raise for what HTTP/1.1 would not send either, and h2 would."""
    for name, value in fields:
        if not name or name.translate(None, _OF_TOKENS):
            raise httpcore.LocalProtocolError(f"illegal request: header name {name!r}")
        if value.strip() != value or value.translate(None, _NOT_IN_VALUES) != value:
            raise httpcore.LocalProtocolError(f"illegal request: the value of {name.decode()!r}")
        if name == b"content-length" and not value.isdigit():
            raise httpcore.LocalProtocolError(f"illegal request: a content-length of {value!r}")
        if name == b"te" and value.lower() != b"trailers":
            raise httpcore.LocalProtocolError("illegal request: 'te' but for trailers, in HTTP/2")
    method, target = request.method, request.url.target
    if not method or method.translate(None, _OF_TOKENS) or not _TARGET.fullmatch(target):
        raise httpcore.LocalProtocolError("illegal request: method or target")
    hosts = [value for name, value in fields if name == b"host"]
    return [
        (b":method", method),
        (b":authority", hosts[0] if hosts else request.url.host),
        (b":scheme", request.url.scheme),
        (b":path", target),
        *[field for field in fields if field[0] not in (b"host", b"transfer-encoding")],
    ]


class Whole:
    """The steps that must not be ended half-way, as Ctrl-C may do it.

    While one runs the connection counts as torn, and stays so when the step is interrupted: then
    it is of no more use. What h2 raises when we use it wrongly becomes httpcore's exception
    (encode/httpx#3072).
    """

    def __init__(self) -> None:
        self._depth = 0

    def is_torn(self) -> bool:
        """Tell whether a step is going on, or has not come to its end."""
        return self._depth > 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if exc is not None and not isinstance(exc, Exception):
            return
        self._depth -= 1
        if exc is not None and not isinstance(exc, OURS):
            raise httpcore.LocalProtocolError(f"{type(exc).__name__}: {exc}") from exc


class HTTP2Protocol:
    """The state of one connection."""

    def __init__(self) -> None:
        self.state = TolerantH2()
        self.whole = Whole()
        self.streams: dict[int, HTTP2Stream] = {}
        self.limit: int | None = None  # streams at a time, when the server's SETTINGS are here
        self.settings_changes: deque[Any] = deque(maxlen=10)  # for the tracing
        self.retired = False
        self.error: Exception | None = None
        self.requests = 0
        self.heard = self._pinged = monotonic()
        self._spare_window = SPARE_WINDOW
        self._unacknowledged = 0

    def initiate(self) -> None:
        """Put the preface and our SETTINGS in line."""
        with self.whole:
            self.state.initiate_connection()
            self.state.increment_flow_control_window(MOST_UNREAD)

    def has_data_to_send(self) -> bool:
        """Tell whether anything is in line."""
        return bool(self.state._data_to_send)

    def data_to_send(self) -> bytes:
        """Return what is in line, which is then the caller's to write."""
        return self.state.data_to_send()

    def heard_for(self, stream: HTTP2Stream) -> Callable[[], float]:
        """Return what tells when the server last said something that keeps a wait alive.

        That is an interim response or part of a frame on this stream, or a PING. (In httpcore it is
        whatever arrives, so that on a busy connection a stream never times out.)
        """
        return lambda: max(stream.heard, self._pinged)

    @property
    def capacity(self) -> int | None:
        """How many requests at a time the server takes here; None while that is not known."""
        if self.retired or self.error is not None or self.state.goaway is not None:
            return 0
        return self.limit

    def begin(self, request: httpcore.Request) -> HTTP2Stream:
        """Open a stream for a request; its headers wait to be written.

        In one go: with an await in between, two requests can end up on one stream.
        """
        with self.whole:
            return self._begin(request)

    def _begin(self, request: httpcore.Request) -> HTTP2Stream:
        room = 1 if (capacity := self.capacity) is None else capacity
        if len(self.streams) >= room:
            raise httpcore.ConnectionNotAvailable
        fields = [(name.lower(), value) for name, value in request.headers]
        headers = _header_block(request, fields)
        has_body = not BODY_HEADERS.isdisjoint(dict(fields))
        try:
            stream = HTTP2Stream(self.state.get_next_available_stream_id(), request, has_body)
            self.state.send_headers(stream.id, headers, end_stream=stream.is_sent)
        except (h2.exceptions.NoAvailableStreamIDError, h2.exceptions.TooManyStreamsError):
            self.retired = True
            raise httpcore.ConnectionNotAvailable from None
        except h2.exceptions.ProtocolError as exc:
            self.retired = True  # half a header block has gone into the compression's state
            raise httpcore.LocalProtocolError(f"illegal request: {exc}") from exc
        self.requests += 1
        self.streams[stream.id] = stream
        return stream

    def window(self, stream: HTTP2Stream) -> int:
        """Return how many bytes of the body the server lets come."""
        return 0 if stream.is_finished() else self.state.local_flow_control_window(stream.id)

    def is_held_up(self, stream: HTTP2Stream) -> bool:
        """Tell whether a body waits for the others: all it lacks is the window that they share."""
        mine = self.state.streams.get(stream.id)
        window = 0 if mine is None else mine.outbound_flow_control_window
        return window > 0 >= self.state.outbound_flow_control_window

    def send(self, stream: HTTP2Stream, data: memoryview) -> memoryview:
        """Put a piece of the body in line, as large as may be; return the rest."""
        size = min(len(data), self.window(stream), BATCH)
        frame = self.state.max_outbound_frame_size
        with self.whole:
            for start in range(0, size, frame):
                self.state.send_data(stream.id, bytes(data[start : min(start + frame, size)]))
        return data[size:]

    def end(self, stream: HTTP2Stream) -> None:
        """Put the end of the body in line."""
        with self.whole:
            self.state.end_stream(stream.id)
            stream.is_sent = True

    def receive(self, data: bytes) -> Iterable[HTTP2Stream]:
        """Take in what the server sent; return the streams that it may concern."""
        if not data:
            raise httpcore.RemoteProtocolError("Server disconnected" + self._goaway_reason())
        self.heard = monotonic()
        concerned: dict[HTTP2Stream, None] = {}
        try:
            with self.whole:
                for event in self.state.receive_data(data):
                    self._handle(event, concerned)
                self._fail_malformed(concerned)
                self._heed_goaway(concerned)
                self._open_windows(concerned)
                if (begun := self.streams.get(self.state.half_received())) is not None:
                    begun.heard = self.heard
        except httpcore.LocalProtocolError as exc:  # what h2 says of what it was sent
            raise httpcore.RemoteProtocolError(str(exc)) from exc
        return concerned

    def _open_windows(self, concerned: Iterable[HTTP2Stream]) -> None:
        for stream in concerned:
            self._acknowledge(stream, 0)  # padding
        # At once: see MOST_UNREAD. Not for each frame: that is an answer to each packet.
        if self._unacknowledged >= MOST_UNREAD // 8:
            self.state.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0

    def _handle(self, event: h2.events.Event, concerned: dict[HTTP2Stream, None]) -> None:
        size = 0
        if isinstance(event, h2.events.DataReceived):
            self._unacknowledged += (size := event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.PingReceived):
            self._pinged = monotonic()
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings_changes.append(event)
            self.limit = min(self.state.remote_settings.max_concurrent_streams, MOST_STREAMS)
            concerned.update(dict.fromkeys(self.streams.values()))
            return
        stream_id = getattr(event, "stream_id", None)
        if stream_id == 0:  # the connection's window
            concerned.update(dict.fromkeys(self.streams.values()))
        stream = self.streams.get(stream_id) if stream_id else None
        if stream is not None:
            concerned[stream] = None
            self._hand_on(event, stream, size)

    def _hand_on(self, event: h2.events.Event, stream: HTTP2Stream, size: int) -> None:
        if isinstance(event, h2.events.InformationalResponseReceived):
            stream.heard = monotonic()
        elif isinstance(event, h2.events.ResponseReceived):
            stream.receive_headers(event.headers or ())
        elif isinstance(event, h2.events.DataReceived):
            data = event.data or b""
            stream.receive_data(data, size - len(data))
        elif isinstance(event, h2.events.StreamEnded):
            stream.receive_end()
        elif isinstance(event, h2.events.StreamReset):
            stream.receive_reset(event.error_code)

    def _fail_malformed(self, concerned: dict[HTTP2Stream, None]) -> None:
        for frame in self.state.malformed_data:
            self._unacknowledged += frame.flow_controlled_length
            if (stream := self.streams.get(frame.stream_id)) is not None:
                stream.received += len(frame.data)
                stream.fail_malformed()
                concerned[stream] = None
        self.state.malformed_data.clear()

    def _heed_goaway(self, concerned: dict[HTTP2Stream, None]) -> None:
        """Fail what is not answered any more.

        Below the last id all is, unless an error is the reason: then the server has to close the
        connection (RFC 9113 section 5.4.1), and node, say, neither answers nor closes.
        """
        if (goaway := self.state.goaway) is None:
            return
        reason, code = self._goaway_reason(), goaway.error_code
        for stream in self.streams.values():
            if code in BLAMES and self.requests == 1:
                stream.fail(httpcore.RemoteProtocolError("the server refuses the request" + reason))
            elif stream.id > goaway.last_stream_id:
                text = "not processed: the server retired the connection" + reason
                stream.fail(NotProcessed(text, stream))
            elif code == ErrorCodes.NO_ERROR:
                continue
            else:
                stream.fail(httpcore.RemoteProtocolError("Server disconnected" + reason))
            concerned[stream] = None

    def _goaway_reason(self) -> str:
        goaway = self.state.goaway
        return "" if goaway is None else f" after GOAWAY: {error_name(goaway.error_code)}"

    def acknowledge(self, stream: HTTP2Stream, taken: int) -> None:
        """Let the server send more on a stream whose data was taken.

        The window of a reader that keeps up is doubled, as far as there is room for it.
        """
        with self.whole:
            self._acknowledge(stream, taken)

    def _acknowledge(self, stream: HTTP2Stream, taken: int) -> None:
        stream.unacknowledged += taken
        if stream.unacknowledged < stream.window // 4 or stream.is_finished():
            return
        growth = min(stream.window, self._spare_window) if taken else 0
        self._spare_window -= growth
        stream.window += growth
        self.state.increment_flow_control_window(stream.unacknowledged + growth, stream.id)
        stream.unacknowledged = 0

    def fail_timed_out(self, stream: HTTP2Stream, phase: str, waited: float) -> None:
        """Fail the one request that has waited too long; its neighbours go on.

        When not a byte came from the server in the latter half of the wait, the connection may be
        dead (a NAT that forgot it): no new requests there, so that the next attempt can do better.
        """
        kind = httpcore.ReadTimeout if phase == "read" else httpcore.WriteTimeout
        stream.fail(kind("timed out"))
        if monotonic() - self.heard >= waited / 2:
            self.retired = True

    def fail_connection(self, exc: Exception) -> list[HTTP2Stream]:
        """The connection is gone: fail all of its streams, each with an exception of its own."""
        known = isinstance(exc, (httpcore.NetworkError, httpcore.ProtocolError))
        kind = type(exc) if known else httpcore.RemoteProtocolError
        text = str(exc) if known else f"{type(exc).__name__}: {exc}"
        self.error = self.error or kind(text)
        for stream in self.streams.values():
            stream.fail(kind(text))
        return list(self.streams.values())

    def finish(self, stream: HTTP2Stream) -> None:
        """Forget a stream, telling the server when it is still at it."""
        with self.whole:
            del self.streams[stream.id]
            self._spare_window += stream.window - STREAM_WINDOW
            goaway = self.state.goaway
            is_known = goaway is None or stream.id <= goaway.last_stream_id
            if self.error is None and is_known and not (stream.ended and stream.is_sent):
                with suppress(h2.exceptions.ProtocolError):  # it was the server who ended it
                    self.state.reset_stream(stream.id, ErrorCodes.CANCEL)
        # Its reader, in another task or thread, must not wait for what will not come.
        stream.fail(closed_error())
