"""The sync and the async HTTP/2 connection: httpcore's names for what `_http2.py` does."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpcore
from httpcore._trace import Trace

from ._http2 import HTTP2Connection, logger
from ._http2_stream import HTTP2Stream
from ._runtime import run


class BlockingTrace(Trace):
    """httpcore's tracing for the sync client, whose callbacks are plain functions."""

    async def __aenter__(self) -> Trace:
        return self.__enter__()

    async def __aexit__(self, *exc_info: Any) -> None:
        self.__exit__(*exc_info)


class BlockingChunks:
    """A sync request body, iterated as the one text of this file does it."""

    def __init__(self, body: Any) -> None:
        self._chunks = iter(body)

    def __aiter__(self) -> BlockingChunks:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = next(self._chunks)
        except StopIteration:
            raise StopAsyncIteration from None
        return chunk


class SyncHTTP2Connection(HTTP2Connection, httpcore.ConnectionInterface):
    """For one request at a time: threads can't get at each other's streams."""

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response, whose body is yet to be read."""
        return run(self.exchange(request))

    def body(self, stream: HTTP2Stream) -> SyncBody:
        """Return a response's body."""
        return SyncBody(self, stream)

    def chunks(self, body: Any) -> BlockingChunks:
        """Return an iterator over a request's body."""
        return BlockingChunks(body)

    def trace(self, name: str, request: Any, facts: dict[str, Any]) -> Trace:
        """Return httpcore's tracing of one step."""
        return BlockingTrace(name, logger, request, facts)

    def close(self) -> None:
        """Close the connection."""
        self._io.close()


class AsyncHTTP2Connection(HTTP2Connection, httpcore.AsyncConnectionInterface):
    """For many requests at a time."""

    shared = True

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response, whose body is yet to be read."""
        return await self.exchange(request)

    def body(self, stream: HTTP2Stream) -> AsyncBody:
        """Return a response's body."""
        return AsyncBody(self, stream)

    def chunks(self, body: Any) -> AsyncIterator[bytes]:
        """Return an iterator over a request's body."""
        return aiter(body)

    def trace(self, name: str, request: Any, facts: dict[str, Any]) -> Trace:
        """Return httpcore's tracing of one step."""
        return Trace(name, logger, request, facts)

    async def aclose(self) -> None:
        """Close the connection."""
        self._io.close()


class Body:
    """A response's body; what it has of the connection is given back by the pool."""

    def __init__(self, connection: HTTP2Connection, stream: HTTP2Stream) -> None:
        self._connection, self._stream = connection, stream

    def _trace(self, name: str, **facts: Any) -> Trace:
        return Trace(name, logger, self._stream.request, facts)


class SyncBody(Body):
    """The body of a sync response."""

    def __iter__(self) -> Iterator[bytes]:
        with self._trace("receive_response_body", request=self._stream.request):
            while (data := run(self._connection.next_chunk(self._stream))) is not None:
                yield data

    def close(self) -> None:
        """Tell the tracing."""
        with self._trace("response_closed", stream_id=self._stream.id):
            pass


class AsyncBody(Body):
    """The body of an async response."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self._trace("receive_response_body", request=self._stream.request):
            while (data := await self._connection.next_chunk(self._stream)) is not None:
                yield data

    async def aclose(self) -> None:
        """Tell the tracing."""
        async with self._trace("response_closed", stream_id=self._stream.id):
            pass
