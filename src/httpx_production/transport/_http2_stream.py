"""One request over HTTP/2 and its response, without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import httpcore
from h2.errors import ErrorCodes

from .._deadline import current_value
from ._runtime import Event

STREAM_WINDOW = 2**17  # bytes that the server may be ahead of a reader, to begin with


class SendElsewhere(httpcore.RemoteProtocolError):
    """The server has done nothing with the request, and will not on this connection."""

    def __init__(self, text: str, stream: HTTP2Stream) -> None:
        super().__init__(text)
        self.body_started = stream.body_started


class NotProcessed(SendElsewhere):
    """It is above GOAWAY's last stream: POST too may be sent again (RFC 9113 section 8.7)."""


class HTTP11Required(SendElsewhere):
    """The server wants it over HTTP/1.1 (RFC 9113 section 7)."""


class HTTP2Stream:
    """One request and its response."""

    def __init__(self, stream_id: int, request: Any, has_body: bool) -> None:
        self.id = stream_id
        self.request = request  # httpcore's
        self.is_sent = not has_body
        self.body_started = False
        self.status = 0  # until the response's headers have come
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: deque[bytes] = deque()
        self.length: int | None = None  # the body's, as promised by content-length
        self.received = 0
        self.window = STREAM_WINDOW
        self.unacknowledged = 0  # bytes that were taken, or were padding
        self.ended = False
        self.heard = 0.0  # when an interim response, or part of a frame, last came
        self.error: Exception | None = None
        self.event: Event | None = None  # while it waits for another one who reads, or writes

    def timeout(self, phase: str) -> float | None:
        """Return the request's timeout for a phase, in seconds."""
        timeouts: dict[str, float | None] = self.request.extensions.get("timeout", {})
        return timeouts.get(phase)

    def has_time(self, phase: str) -> bool:
        """Tell whether its deadline, if it has one, has not passed."""
        left = current_value(self.timeout(phase))
        return left is None or left > 0

    def wake(self) -> None:
        """Let it look again."""
        if self.event is not None:
            self.event.set()

    def is_finished(self) -> bool:
        """Tell whether nothing more will arrive."""
        return self.ended or self.error is not None

    def has_headers(self) -> bool:
        """Tell whether the response's headers are here, or never will be."""
        return self.status > 0 or self.is_finished()

    def is_readable(self) -> bool:
        """Tell whether there is something to take: a piece of the body, or its end."""
        return bool(self.chunks) or self.is_finished()

    def take(self) -> bytes | None:
        """Return what has come of the body, None at its end; raise what went wrong."""
        if self.chunks:
            data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
            self.chunks.clear()
            return data
        if self.error is not None:
            raise self.error
        return None

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.is_finished():
            self.error = error

    def receive_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Take in the response's status and headers."""
        self.headers = [(name, value) for name, value in headers if not name.startswith(b":")]
        fields = dict(headers)
        status, length = fields.get(b":status", b""), fields.get(b"content-length", b"")
        if not (status.isdigit() and len(status) == 3):
            return self.fail(httpcore.RemoteProtocolError("a response without a status"))
        self.status = int(status)
        has_body = self.request.method != b"HEAD" and self.status not in (204, 304)
        if length.isdigit() and has_body:
            self.length = int(length)

    def receive_data(self, data: bytes, padding: int) -> None:
        """Take in a piece of the body."""
        self.received += len(data)
        self.unacknowledged += padding
        if data:
            self.chunks.append(data)

    def receive_end(self) -> None:
        """Take in the end; h2 compares lengths on DATA frames only, not on HEADERS that end."""
        if self.length not in (None, self.received):
            return self.fail_malformed()
        self.ended = self.error is None

    def fail_malformed(self) -> None:
        """Fail: the body has not the length that the headers promise. Never a short body."""
        size = f"{self.received} byte{'' if self.received == 1 else 's'}"
        text = f"a body of {size} where content-length says {self.length}"
        self.fail(httpcore.RemoteProtocolError(text))

    def receive_reset(self, code: ErrorCodes | int | None) -> None:
        """Take in a RST_STREAM; after a complete response it means nothing any more."""
        if code == ErrorCodes.NO_ERROR and self.status and self.length == self.received:
            self.ended = self.error is None  # node's way of ending what it has sent in full
        elif code == ErrorCodes.HTTP_1_1_REQUIRED and not self.status:
            self.fail(HTTP11Required("the server wants HTTP/1.1 (HTTP_1_1_REQUIRED)", self))
        elif code == ErrorCodes.REFUSED_STREAM and not self.status:
            text = "the server refused the stream (REFUSED_STREAM)"
            self.fail(httpcore.RemoteProtocolError(text))
        else:
            self.fail(
                httpcore.RemoteProtocolError(f"the server reset the stream: {error_name(code)}")
            )


def error_name(code: Any) -> str:
    return ErrorCodes(code).name if code in ErrorCodes else str(code)


def closed_error() -> Exception:
    """Return what the reader of a response gets that somebody else has closed."""
    return httpcore.ReadError("the response was closed")
