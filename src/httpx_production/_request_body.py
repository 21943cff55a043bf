"""Request bodies that know whether they can be sent again.

Works on `request.stream`, which is public. What comes back is in `_response_body.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from inspect import iscoroutinefunction
from io import SEEK_END
from typing import Any, cast

import httpx

from ._deadline import Deadline

PIECE = 64 * 1024  # bytes read from a file at a time
LATE = "the request body did not end in time"


class _Body:
    """A request's stream, sent again byte for byte or not at all.

    Plain httpx sends a consumed iterator again as an EMPTY body, and a file from where the last
    attempt left it.
    """

    def __init__(
        self, stream: Any, rewind: Callable[[], Any] | None, is_foreign: bool = False
    ) -> None:
        self.stream, self._rewind = stream, rewind
        self._is_foreign = is_foreign  # of a Request made by hand: nobody knows if it begins anew
        self._started = self._had_content = False

    @property
    def replayable(self) -> bool:
        """Whether the same bytes can be sent (again)."""
        return self._rewind is not None or not self._started

    def start(self) -> Any:
        """Go to where the body begins; an awaitable where that has to be awaited."""
        if not (self.replayable or self._is_foreign):
            raise httpx.StreamConsumed
        first, self._started = not self._started, True
        return None if first or self._rewind is None else self._rewind()

    def end(self, has_content: bool) -> None:
        """Refuse to send as empty what was not empty before."""
        if self._had_content and not has_content:
            raise httpx.StreamConsumed
        self._had_content = has_content


class SyncBody(_Body, httpx.SyncByteStream):
    """A body of the sync client."""

    def __iter__(self) -> Iterator[bytes]:
        self.start()
        has_content = False
        for chunk in self.stream:
            has_content = has_content or bool(chunk)
            yield chunk
        self.end(has_content)


class AsyncBody(_Body, httpx.AsyncByteStream):
    """A body of the async client; `rewind` may be a coroutine function."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if hasattr(rewound := self.start(), "__await__"):
            await rewound
        has_content = False
        async for chunk in self.stream:
            has_content = has_content or bool(chunk)
            yield chunk
        self.end(has_content)


class DualBody(SyncBody, AsyncBody):
    """Multipart: httpx's stream is of both kinds, so the wrapper is too."""


class _BoundedBody:
    """The body of one attempt: no piece of it is taken after the deadline.

    Beside the body, not in it: another call may send the same Request.
    """

    def __init__(self, body: Any, deadline: Deadline) -> None:
        self.body, self._deadline = body, deadline

    @property
    def replayable(self) -> bool:
        """Whether the same bytes can be sent (again)."""
        return bool(getattr(self.body, "replayable", True))

    def check(self) -> None:
        """Raise when the deadline has passed."""
        self._deadline.check(LATE, httpx.WriteTimeout)


class _SyncBoundedBody(_BoundedBody, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.body:
            self.check()
            yield chunk


class _AsyncBoundedBody(_BoundedBody, httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self.body)
        while (chunk := await self._next(chunks)) is not None:
            self.check()
            yield chunk

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        with self._deadline.cancels(LATE, httpx.WriteTimeout):  # the caller's code may wait
            return await anext(chunks, None)


class _DualBoundedBody(_SyncBoundedBody, _AsyncBoundedBody):
    pass


def _of_kind(stream: Any, sync: type, async_: type, dual: type) -> type[Any]:
    if not isinstance(stream, httpx.AsyncByteStream):
        return sync
    return dual if isinstance(stream, httpx.SyncByteStream) else async_


def make_replayable(
    request: httpx.Request, rewind: Callable[[], Any] | None = None, *, is_foreign: bool = False
) -> None:
    """Wrap the request's stream, unless it is in memory or was wrapped before."""
    stream = request.stream
    if not isinstance(stream, (httpx.ByteStream, _Body)):
        kind = _of_kind(stream, SyncBody, AsyncBody, DualBody)
        request.stream = kind(stream, rewind, is_foreign)


def bound_body(request: httpx.Request, deadline: Deadline) -> None:
    """Let the request's stream keep this deadline, in place of that of an earlier attempt."""
    body: Any = request.stream
    if isinstance(body, _BoundedBody):
        body = body.body
    kinds = _SyncBoundedBody, _AsyncBoundedBody, _DualBoundedBody
    request.stream = _of_kind(body, *kinds)(body, deadline)


class _AsyncFile:
    """A file for the async client: read in pieces, a plain one in a worker thread."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self._interruptible = seek_position(file) is None  # a pipe may have nothing for hours

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._read():
            yield piece

    async def _read(self) -> Any:
        if iscoroutinefunction(self.file.read):  # anyio's: iterated, it gives lines
            return await self.file.read(PIECE)
        from anyio import to_thread

        return await to_thread.run_sync(
            self.file.read, PIECE, abandon_on_cancel=self._interruptible
        )


class _AsyncMultipart(httpx.SyncByteStream, httpx.AsyncByteStream):
    """httpx's multipart stream, whose files the async client reads in a worker thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        from anyio import to_thread

        chunks = iter(self._stream)
        while piece := await to_thread.run_sync(_next_piece, chunks):
            yield piece


def _next_piece(chunks: Iterator[bytes]) -> bytes:
    """Join small chunks: each piece costs a change of threads."""
    piece = bytearray()
    for chunk in chunks:
        piece += chunk
        if len(piece) >= PIECE:
            break
    return bytes(piece)


def readable(content: Any) -> Any:
    """Return content that the async client can send: httpx refuses a plain file."""
    if hasattr(content, "read") and (hasattr(content, "__aiter__") or hasattr(content, "__iter__")):
        return _AsyncFile(content)
    return content


def read_files_in_thread(request: httpx.Request, files: Any) -> None:
    """Let the multipart stream of a request read its files without blocking the event loop."""
    if isinstance(request.stream, httpx.SyncByteStream) and not _in_memory(files):
        request.stream = _AsyncMultipart(request.stream)


def rewind_function(content: Any, files: Any) -> Callable[[], Any] | None:
    """Return what puts a body back to its start, or None for a body that exists only once."""
    if content is None:
        return _nothing if _repeatable(files) else None
    content = content.file if isinstance(content, _AsyncFile) else content
    if (position := seek_position(content)) is not None:
        return lambda: content.seek(position)
    if hasattr(content, "__next__") or hasattr(content, "__anext__") or hasattr(content, "read"):
        return None
    return _nothing  # a list of bytes, or an object whose __iter__ starts anew


def seek_position(content: Any) -> int | None:
    """Return where a seekable file stands, None for anything else.

    An anyio file is asked through the plain file that it wraps: its own tell() is a coroutine.
    """
    file = getattr(content, "wrapped", content)
    if not hasattr(file, "seek") or iscoroutinefunction(getattr(file, "tell", None)):
        return None
    try:
        return int(file.tell()) if not hasattr(file, "seekable") or file.seekable() else None
    except (AttributeError, TypeError, OSError, ValueError):
        return None


def _nothing() -> None:
    """Rewind nothing: the stream starts anew by itself."""


def _contents(files: Any) -> Iterator[Any]:
    """Yield what is sent of each file of a multipart body."""
    for _, value in files.items() if hasattr(files, "items") else files:
        yield cast("Any", value[1] if isinstance(value, tuple) else value)


def _in_memory(files: Any) -> bool:
    """Tell whether all of a multipart body is text or bytes."""
    return files is None or all(isinstance(content, str | bytes) for content in _contents(files))


def _repeatable(files: Any) -> bool:
    """Tell whether httpx, which goes back to byte 0 of each file, can do so for all of them."""
    return all(
        isinstance(content, str | bytes) or seek_position(content) is not None
        for content in _contents(files)
    )


# --- Content-Length -------------------------------------------------------------------------------


def correct_length(request: httpx.Request, content: Any, *, known: bool, chunked: bool) -> None:
    """Mend the Content-Length that httpx takes from fstat: the whole file's, and 0 for a pipe.

    A file that doesn't stand at its start is announced by its rest (pydantic/httpx2#578), what
    has no end that could be known is sent in chunks; `chunked` where the caller says so.
    """
    headers = request.headers
    if not known:
        if headers.pop("Content-Length", None) is not None:
            headers["Transfer-Encoding"] = "chunked"
    elif (
        isinstance(content, _AsyncFile) and not chunked
    ):  # to httpx an async iterator, of unknown length
        headers.pop("Transfer-Encoding", None)
        headers["Content-Length"] = str(_length_of_rest(content.file))
    elif "Content-Length" in headers and seek_position(content):
        headers["Content-Length"] = str(_length_of_rest(content))


def _length_of_rest(file: Any) -> int:
    file = getattr(file, "wrapped", file)
    position = int(file.tell())
    file.seek(0, SEEK_END)
    end = int(file.tell())
    file.seek(position)
    return max(0, end - position)
