"""Response bodies: complete or an error, bounded by a deadline, discarded cheaply.

Works on `response.stream`, which is public; `ensure_complete` alone looks at a private name of
httpx and says why. Functions for the async client begin with an "a", as httpx's do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final, cast

import httpx

from ._deadline import Deadline, make_deadline

SMALL_BODY = 64 * 1024  # bytes of a failed response that are worth reading for its connection
DRAIN_TIME = 0.25  # seconds that this may take
LATE = "the response body did not end in time"


class _Wrapper:
    """A response's stream around another one."""

    _stream: Any

    @property
    def elapsed(self) -> Any:
        """How long the response took: httpx2 asks the stream, httpx is told."""
        return getattr(self._stream, "elapsed", None)


# --- a deadline between the chunks ----------------------------------------------------------------


class _Bounded(_Wrapper):
    """A response's stream of which no chunk is taken after the deadline."""

    def __init__(self, stream: Any, deadline: Deadline, cancels: bool) -> None:
        self._stream, self._deadline, self._cancels = stream, deadline, cancels


class _SyncBounded(_Bounded, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._deadline.check(LATE)
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _AsyncBounded(_Bounded, httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._stream)
        while (chunk := await self._next(chunks)) is not None:
            self._deadline.check(LATE)
            yield chunk

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        if not self._cancels:
            return await anext(chunks, None)
        with self._deadline.cancels(LATE):
            return await anext(chunks, None)

    async def aclose(self) -> None:
        await self._stream.aclose()


def bound_stream(response: httpx.Response, deadline: Deadline, *, cancels: bool) -> None:
    """Let the response's body keep the deadline; `cancels` where its transport does not itself."""
    kind = _SyncBounded if isinstance(response.stream, httpx.SyncByteStream) else _AsyncBounded
    response.stream = kind(response.stream, deadline, cancels)


# --- after the hand-over --------------------------------------------------------------------------


class _HandedOver(_Wrapper):
    """The stream of a response that the caller reads: complete, or an error that says so."""

    def __init__(self, response: httpx.Response, deadline: Deadline | None) -> None:
        self._response, self._stream, self._deadline = response, response.stream, deadline

    def _explain(self, exc: Exception) -> None:
        received = self._response.num_bytes_downloaded
        exc.add_note(
            f"the response broke off after {received} byte{'' if received == 1 else 's'} of its "
            "body; it had been handed over, so that nothing is retried"
        )
        if self._deadline is not None and isinstance(exc, httpx.TimeoutException):
            self._deadline.add_note(exc)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.lift()


class _SyncHandedOver(_HandedOver, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
            ensure_complete(self._response)
        except httpx.RequestError as exc:
            self._explain(exc)
            raise

    def close(self) -> None:
        self._end()
        self._stream.close()


class _AsyncHandedOver(_HandedOver, httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
            ensure_complete(self._response)
        except httpx.RequestError as exc:
            self._explain(exc)
            raise

    async def aclose(self) -> None:
        self._end()
        await self._stream.aclose()


def hand_over(response: httpx.Response, deadline: Deadline | None) -> None:
    """Ready the body of a response that the caller reads for its promises."""
    if not response.is_closed:
        sync = isinstance(response.stream, httpx.SyncByteStream)
        response.stream = (_SyncHandedOver if sync else _AsyncHandedOver)(response, deadline)


# --- bodies that the caller did not ask for -------------------------------------------------------


class _Taken(_Wrapper):
    """A stream of which some chunks have been taken: they come first. `rest` is None at the end."""

    def __init__(self, taken: list[bytes], rest: Any, stream: Any) -> None:
        self.taken, self.rest, self._stream = taken, rest, stream


class _SyncTaken(_Taken, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield from self.taken
        if self.rest is not None:
            yield from self.rest

    def close(self) -> None:
        self._stream.close()


class _AsyncTaken(_Taken, httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.taken:
            yield chunk
        if self.rest is not None:
            async for chunk in self.rest:
                yield chunk

    async def aclose(self) -> None:
        if self.rest is not None:
            await self.rest.aclose()
        await self._stream.aclose()


def take_small(response: httpx.Response) -> None:
    """Take in a body, as it came, until it ends, is larger than SMALL_BODY bytes, or takes long.

    What goes wrong meanwhile goes wrong for whoever reads it, not here.
    """
    stream: Any = response.stream
    chunks, taken, until = iter(stream), list[bytes](), monotonic() + DRAIN_TIME
    try:
        for chunk in chunks:
            taken.append(chunk)
            if sum(map(len, taken)) > SMALL_BODY or monotonic() > until:
                response.stream = _SyncTaken(taken, chunks, stream)
                return
    except Exception as exc:
        response.stream = _SyncTaken(taken, _broken(exc), stream)
        return
    stream.close()  # the connection is free now
    response.stream = _SyncTaken(taken, None, stream)


async def atake_small(response: httpx.Response) -> None:
    """Do the same for the async client."""
    stream: Any = response.stream
    chunks, taken, until = aiter(stream), list[bytes](), monotonic() + DRAIN_TIME
    try:
        async for chunk in chunks:
            taken.append(chunk)
            if sum(map(len, taken)) > SMALL_BODY or monotonic() > until:
                response.stream = _AsyncTaken(taken, chunks, stream)
                return
    except Exception as exc:
        response.stream = _AsyncTaken(taken, _abroken(exc), stream)
        return
    await stream.aclose()  # the connection is free now
    response.stream = _AsyncTaken(taken, None, stream)


def _broken(exc: Exception) -> Iterator[bytes]:
    raise exc
    yield b""


async def _abroken(exc: Exception) -> AsyncIterator[bytes]:
    raise exc
    yield b""


def unpacks_small(response: httpx.Response) -> bool:
    """Tell whether a body that was taken in is small unpacked, too: 800 bytes may be 400 MiB."""
    stream = response.stream
    if not isinstance(stream, _Taken) or stream.rest is not None:
        return False
    if "Content-Encoding" not in response.headers:
        return True
    probe = httpx.Response(200, headers=response.headers, stream=_Crumbs(stream.taken))
    size = 0
    with suppress(httpx.DecodingError):  # whoever reads the body gets that
        for chunk in probe.iter_bytes():
            size += len(chunk)
            if size > SMALL_BODY:
                return False
        return True
    return False


class _Crumbs(httpx.SyncByteStream):
    """A body in pieces so small that a decoder can be stopped in time."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._body = b"".join(chunks)

    def __iter__(self) -> Iterator[bytes]:
        size = 1 if len(self._body) <= 4096 else 16  # gzip in gzip: a byte may be a megabyte
        for start in range(0, len(self._body), size):
            yield self._body[start : start + size]


@contextmanager
def hurried(response: httpx.Response) -> Generator[Deadline]:
    """Give a body that nobody waits for DRAIN_TIME; a failure to read it is no matter.

    httpcore asks for the timeouts when the body is begun, so a short deadline can be lent to the
    request meanwhile.
    """
    extensions = response.request.extensions
    timeouts = extensions.get("timeout", {})
    limit = DRAIN_TIME
    if isinstance(timeouts, Deadline):
        limit = min(limit, timeouts.left)
    extensions["timeout"] = deadline = make_deadline(dict(timeouts), monotonic(), limit)
    try:
        with suppress(Exception):
            yield deadline
    finally:
        extensions["timeout"] = timeouts


def discard(response: httpx.Response) -> None:
    """Close a failed response; its connection lives on if the rest is small and comes at once.

    Nothing is unpacked. What came as plain bytes can be looked at by hooks; of a small body that
    is compressed `content` is empty, a larger one has not been read.
    """
    if response.is_closed:
        return
    try:
        with hurried(response) as deadline:
            bound_stream(response, deadline, cancels=True)
            take_small(response)
            if _is_plain(response):
                response.read()
    finally:
        response.close()


async def adiscard(response: httpx.Response) -> None:
    """Do the same for the async client."""
    if response.is_closed:
        return
    try:
        with hurried(response) as deadline:
            bound_stream(response, deadline, cancels=True)
            await atake_small(response)
            if _is_plain(response):
                await response.aread()
    finally:
        await response.aclose()


def _is_plain(response: httpx.Response) -> bool:
    """Tell whether a body was taken in that may be read: a compressed one is emptied before."""
    stream = response.stream
    if not isinstance(stream, _Taken) or stream.rest is not None:
        return False
    if "Content-Encoding" in response.headers:
        stream.taken.clear()
    return True


# --- complete or an error -------------------------------------------------------------------------


# Only the decompressor knows whether its input was complete, and no public name leads to it.
_DECODER: Final = "_decoder"
_IDENTITY: Final = cast("Any", type(getattr(httpx.Response(200, content=b""), _DECODER, None)))


def ensure_complete(response: httpx.Response) -> None:
    """Raise when compressed content ended early although its transfer was complete.

    httpx returns what it could decompress, as if that were all (RFC 9112 section 8: an incomplete
    message must not be used as complete). A body without a single byte (HEAD, 204, 304) is
    complete, and a part of a representation (206) need not have an end.
    """
    decoder = getattr(response, _DECODER, None)
    if type(decoder) is _IDENTITY:
        return
    if response.status_code == 206 or "Content-Range" in response.headers:
        return
    if response.num_bytes_downloaded:
        for one in getattr(decoder, "children", (decoder,)):
            decompressor = getattr(one, "decompressor", None)  # httpx2 wraps zlib's once more
            decompressor = getattr(decompressor, "decompressor", decompressor)
            _ensure_finished(decompressor, response.request)


def _ensure_finished(decompressor: Any, request: httpx.Request) -> None:
    if _is_unfinished(decompressor):
        message = "the compressed body ended before its end"
        raise httpx.RemoteProtocolError(message, request=request)
    if getattr(decompressor, "unused_data", b"").startswith(b"\x1f\x8b"):
        message = "a gzip body of several members, of which httpx decodes the first"
        raise httpx.DecodingError(message, request=request)


def _is_unfinished(decompressor: Any) -> bool:
    """Tell whether zlib's, zstandard's or brotli's decompressor still waits for data."""
    if hasattr(decompressor, "is_finished"):
        return not decompressor.is_finished()
    return not getattr(decompressor, "eof", True)
