"""Bodies: which request body can be sent again, and whether a response body is complete.

Works on `request.stream` and `response.stream`, which are public; `ensure_complete` alone looks
at a private name of httpx and says why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from inspect import iscoroutinefunction
from time import monotonic
from typing import Any, cast

import httpx

from ._deadline import Deadline

SMALL_BODY = 64 * 1024  # bytes of a failed response that are worth reading for its connection
SHORT_WAIT = 0.25  # seconds that this may take


class _Body:
    """A request's stream, sent again byte for byte or not at all.

    Plain httpx sends a consumed iterator again as an EMPTY body, and a file from where the last
    attempt left it.
    """

    def __init__(self, stream: Any, rewind: Callable[[], Any] | None) -> None:
        self._stream, self._rewind = stream, rewind
        self._started = False

    @property
    def replayable(self) -> bool:
        """Whether the same bytes can be sent (again)."""
        return self._rewind is not None or not self._started

    def _start(self) -> Any:
        if not self.replayable:
            raise httpx.StreamConsumed
        first, self._started = not self._started, True
        return None if first or self._rewind is None else self._rewind()


class SyncBody(_Body, httpx.SyncByteStream):
    """A body of the sync client."""

    def __iter__(self) -> Iterator[bytes]:
        self._start()
        yield from self._stream


class AsyncBody(_Body, httpx.AsyncByteStream):
    """A body of the async client; `rewind` may be a coroutine function."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if hasattr(rewound := self._start(), "__await__"):
            await rewound
        async for chunk in self._stream:
            yield chunk


class DualBody(SyncBody, AsyncBody):
    """Multipart: httpx's stream is of both kinds, so the wrapper is too."""


class _Pieces:
    """An anyio file in pieces: iterated, it gives lines, each by a change of threads."""

    def __init__(self, file: Any) -> None:
        self._file = file

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._file.read(SMALL_BODY):
            yield piece


def in_pieces(content: Any) -> Any:
    """Wrap an anyio file; leave everything else alone."""
    return _Pieces(content) if hasattr(content, "__aiter__") else content


def guard(request: httpx.Request, rewind: Callable[[], Any] | None = None) -> None:
    """Wrap the request's stream, unless it is in memory or was wrapped before."""
    stream = request.stream
    if isinstance(stream, httpx.ByteStream | _Body):
        return
    if not isinstance(stream, httpx.AsyncByteStream):
        request.stream = SyncBody(stream, rewind)
    elif isinstance(stream, httpx.SyncByteStream):
        request.stream = DualBody(stream, rewind)
    else:
        request.stream = AsyncBody(stream, rewind)


def rewinder(content: Any, files: Any) -> Callable[[], Any] | None:
    """Return what puts a body back to its start, or None for a body that exists only once."""
    if content is None:
        return _nothing if _repeatable(files) else None
    if (position := tell(content)) is not None:
        return lambda: content.seek(position)
    if hasattr(content, "__next__") or hasattr(content, "__anext__") or hasattr(content, "read"):
        return None
    return _nothing  # a list of bytes, or an object whose __iter__ starts anew


def tell(content: Any) -> int | None:
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


def _repeatable(files: Any) -> bool:
    """Tell whether httpx, which goes back to byte 0 of each file, can do so for all of them."""
    if hasattr(files, "__next__"):  # used up by httpx, so nobody knows
        return False
    for _, value in files.items() if hasattr(files, "items") else files:
        content = cast("Any", value[1] if isinstance(value, tuple) else value)
        if not isinstance(content, str | bytes) and tell(content) is None:
            return False
    return True


class _Watched:
    """A response's stream that keeps a deadline and a size between its chunks."""

    def __init__(self, response: httpx.Response, deadline: Deadline | None, limit: float) -> None:
        self._response, self._stream = response, response.stream
        self._deadline, self._limit = deadline, limit
        self._size = 0

    def _check(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            raise httpx.ReadError("larger than is worth reading", request=self._response.request)
        if self._deadline is not None:
            self._deadline.check(self._response.request)

    def _explain(self, exc: httpx.TimeoutException) -> None:
        if self._deadline is not None:
            self._deadline.explain(exc)


class _SyncWatched(_Watched, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._stream, httpx.SyncByteStream)
        try:
            for chunk in self._stream:
                self._check(chunk)
                yield chunk
        except httpx.TimeoutException as exc:
            self._explain(exc)
            raise
        ensure_complete(self._response)

    def close(self) -> None:
        assert isinstance(self._stream, httpx.SyncByteStream)
        self._stream.close()


class _AsyncWatched(_Watched, httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._stream, httpx.AsyncByteStream)
        chunks = aiter(self._stream)
        try:
            while (chunk := await self._next(chunks)) is not None:
                self._check(chunk)
                yield chunk
        except httpx.TimeoutException as exc:
            self._explain(exc)
            raise
        ensure_complete(self._response)

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        if self._deadline is None:
            return await anext(chunks, None)
        with self._deadline.enforced(self._response.request):
            return await anext(chunks, None)

    async def aclose(self) -> None:
        assert isinstance(self._stream, httpx.AsyncByteStream)
        await self._stream.aclose()


def watch(response: httpx.Response, limit: float = float("inf")) -> None:
    """Let the response's body keep the deadline, a size, and its promise to be complete."""
    timeouts = response.request.extensions.get("timeout")
    deadline = timeouts if isinstance(timeouts, Deadline) else None
    if deadline is not None or "Content-Encoding" in response.headers:
        kind = _SyncWatched if isinstance(response.stream, httpx.SyncByteStream) else _AsyncWatched
        response.stream = kind(response, deadline, limit)


@contextmanager
def hurried(response: httpx.Response) -> Generator[None]:
    """Give a body that nobody waits for 64 KiB and 0.25 s; a failure to read it is no matter.

    Read whole, it lets the connection live on. httpcore asks for the timeouts when the body is
    begun, so a short deadline can be lent to the request meanwhile.
    """
    extensions = response.request.extensions
    timeouts = extensions.get("timeout", {})
    until = min(monotonic() + SHORT_WAIT, getattr(timeouts, "until", float("inf")))
    extensions["timeout"] = Deadline(dict(timeouts), until, SHORT_WAIT)
    # A thousand times its size may come out of a compressed body.
    watch(response, SMALL_BODY // 16 if "Content-Encoding" in response.headers else SMALL_BODY)
    try:
        with suppress(Exception):
            yield
    finally:
        extensions["timeout"] = timeouts


def ensure_complete(response: httpx.Response) -> None:
    """Raise when compressed content ended early although its transfer was complete.

    httpx returns what it could decompress, as if that were all (RFC 9112 section 8: an incomplete
    message must not be used as complete). Only the decompressor knows, and no public name leads
    there, hence `_decoder`. A body without a single byte (HEAD, 204, 304) is complete.
    """
    decoder = getattr(response, "_decoder", None)
    if not getattr(decoder, "__dict__", None):  # identity: nothing to ask
        return
    for one in getattr(decoder, "children", (decoder,)):
        decompressor = getattr(one, "decompressor", None)
        if decompressor is None or not response.num_bytes_downloaded:
            continue
        if _unfinished(decompressor):
            message = "the compressed body ended before its end"
            raise httpx.RemoteProtocolError(message, request=response.request)
        if getattr(decompressor, "unused_data", b"").startswith(b"\x1f\x8b"):
            message = "a gzip body of several members, of which httpx decodes the first"
            raise httpx.DecodingError(message, request=response.request)


def _unfinished(decompressor: Any) -> bool:
    """Tell whether zlib's, zstandard's or brotli's decompressor still waits for data."""
    if hasattr(decompressor, "is_finished"):
        return not decompressor.is_finished()
    return not getattr(decompressor, "eof", True)
