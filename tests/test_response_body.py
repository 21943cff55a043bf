"""Response bodies without sockets: those that are small, late, discarded, or not all there.

`test_truncated_content.py` and `test_resources.py` have servers that send such bodies.

Subject: `_response_body.py`.
"""

import gzip
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from streams import AsyncOnly, Bare, SyncOnly

from httpx_production._deadline import make_deadline
from httpx_production._response_body import (
    adiscard,
    atake_small,
    bound_stream,
    discard,
    ensure_complete,
    hand_over,
    hurried,
    take_small,
    unpacks_small,
)

URL = "https://api.example.com/v1"


def response(stream: Any = None, timeout: Any = None, **headers: str) -> httpx.Response:
    """A response with headers only, whose request has these timeouts."""
    extensions = {} if timeout is None else {"timeout": timeout}
    return httpx.Response(
        503,
        stream=SyncOnly() if stream is None else stream,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        request=httpx.Request("GET", URL, extensions=extensions),
    )


async def take(small: httpx.Response) -> None:
    """What is done with a body before it is known whether it is small."""
    if isinstance(small.stream, httpx.SyncByteStream):
        take_small(small)
    else:
        await atake_small(small)


def sized(size: int, *, is_async: bool) -> Any:
    """A stream of two chunks, together of this size, that tells whether it was closed."""

    class Sized(AsyncSized if is_async else SyncSized):  # type: ignore[misc]
        pass

    return Sized(size)


class SyncSized(httpx.SyncByteStream):
    def __init__(self, size: int) -> None:
        self.chunks, self.closed = [bytes(size - 1), b"z"], 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks

    def close(self) -> None:
        self.closed += 1


class AsyncSized(httpx.AsyncByteStream):
    def __init__(self, size: int) -> None:
        self.chunks, self.closed = [bytes(size - 1), b"z"], 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk

    async def aclose(self) -> None:
        self.closed += 1


async def read(received: httpx.Response) -> bytes:
    sync = isinstance(received.stream, httpx.SyncByteStream)
    return received.read() if sync else await received.aread()


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_body_of_64_kib_is_taken_in_and_a_larger_one_put_back(
    is_async: bool, flavour: Flavour
) -> None:
    """Either way the reader gets every byte; the transport's stream is closed once."""
    for size, small in ((65536, True), (65537, False)):
        stream = sized(size, is_async=is_async)
        received = response(stream)
        await take(received)
        assert (stream.closed, unpacks_small(received)) == (int(small), small)
        assert await read(received) == bytes(size - 1) + b"z"
        assert stream.closed == 1 + small


@pytest.mark.parametrize("size", [65536, 65537, 10_000_000])
@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
def test_a_body_that_unpacks_to_more_than_64_kib_is_not_small(size: int, coding: str) -> None:
    """However small it came; and next to nothing of it is unpacked to see that."""
    packed = gzip.compress(bytes(size))
    packed = gzip.compress(packed) if "," in coding else packed
    received = response(httpx.ByteStream(packed), content_encoding=coding)
    take_small(received)
    tracemalloc.start()
    try:
        assert unpacks_small(received) == (size == 65536)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_body_that_does_not_unpack_is_not_small() -> None:
    """Whoever reads it gets the error."""
    received = response(httpx.ByteStream(b"no gzip"), content_encoding="gzip")
    assert not unpacks_small(received)  # not even looked at
    take_small(received)
    assert not unpacks_small(received)


class Stalling(SyncOnly):
    """Its second chunk does not come in time."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"ab"
        raise httpx.ReadTimeout("slow")


class AsyncStalling(AsyncOnly):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"ab"
        raise httpx.ReadTimeout("slow")


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [Stalling(), AsyncStalling()], ids=["sync", "async"])
async def test_a_handed_over_chunk_that_times_out_at_the_deadline_says_so(
    stream: Any, flavour: Flavour, clock: FakeClock
) -> None:
    """With the note of total_timeout; without a deadline, or before it, only how much came."""
    for left, notes in ((5.0, 0), (0.005, 1), (None, 0)):
        deadline = None if left is None else make_deadline({}, clock.now + left - 9.0, 9.0)
        stalled = response(stream)
        hand_over(stalled, deadline)
        with pytest.raises(httpx.ReadTimeout, match="slow") as caught:
            await read(stalled)
        told = caught.value.__notes__
        assert told[0].startswith("the response broke off after 2 bytes of its body")
        assert told[1:] == ["total_timeout of 9 s ran out"] * notes


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_a_deadline_is_lifted_when_its_response_is_closed(
    stream: Any, flavour: Flavour
) -> None:
    """Whoever sends a Request of that call again is not bound by it."""
    deadline = make_deadline({"read": 3.0}, 0.0, 1.0)
    received = response(stream)
    hand_over(received, deadline)
    assert await read(received) == b"abc"
    assert (deadline.get("read"), deadline["read"]) == (3.0, 3.0)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # that of the test's stream
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_a_body_that_goes_on_beyond_the_deadline_is_ended(
    stream: Any, flavour: Flavour, clock: FakeClock
) -> None:
    """Each chunk came in time; all together did not."""
    late = response(stream)
    bound_stream(late, make_deadline({}, clock.now, 2.0), cancels=False)
    is_sync = isinstance(stream, httpx.SyncByteStream)
    chunks: Any = late.iter_raw() if is_sync else late.aiter_raw()
    assert (next(chunks) if is_sync else await anext(chunks)) == b"ab"
    clock.advance(3.0)
    with pytest.raises(httpx.ReadTimeout, match="did not end in time"):
        next(chunks) if is_sync else await anext(chunks)


class Silent(AsyncOnly):
    """Its second chunk never comes, and no timeout ends the wait."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"ab"
        await anyio.sleep_forever()


@pytest.mark.anyio
@pytest.mark.flavours("asyncio", "trio")
async def test_a_body_that_stops_is_not_waited_for(flavour: Flavour) -> None:
    """Of a transport that knows no timeouts, neither by its reader nor when it is discarded."""
    late = response(Silent())
    bound_stream(late, make_deadline({}, monotonic(), 0.1), cancels=True)
    with pytest.raises(httpx.ReadTimeout, match="did not end in time"):
        await late.aread()
    failed = response(Silent())
    await adiscard(failed)
    assert failed.is_closed


@pytest.mark.parametrize("limit", [None, 0.1, 5.0])
def test_a_discarded_body_gets_a_quarter_of_a_second(clock: FakeClock, limit: float | None) -> None:
    """Or what is left of the deadline; the caller's timeouts are back afterwards."""
    phases = {"read": 7.0}
    timeouts = phases if limit is None else make_deadline(phases, clock.now, limit)
    failed = response(timeout=timeouts)
    with hurried(failed) as deadline:  # which suppresses AssertionError too
        hurry = failed.request.extensions["timeout"]
    assert hurry is deadline
    assert hurry.left == hurry.get("read") == pytest.approx(min(0.25, limit or 0.25))
    assert dict(hurry) == phases
    assert failed.request.extensions["timeout"] is timeouts


def test_a_discarded_body_may_fail_but_not_be_interrupted(clock: FakeClock) -> None:
    """Nobody wants it; Ctrl-C goes through, and the timeouts are back nevertheless."""
    failed = response()
    with hurried(failed):
        raise httpx.ReadError("cut")
    with pytest.raises(KeyboardInterrupt), hurried(failed):
        raise KeyboardInterrupt
    assert failed.request.extensions["timeout"] == {}


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # that of the test's stream
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("headers", [{}, {"content_encoding": "gzip"}], ids=["plain", "gzip"])
async def test_what_is_discarded_is_closed_and_unpacked_by_nobody(
    clock: FakeClock, headers: dict[str, str], is_async: bool, flavour: Flavour
) -> None:
    """64 KiB of plain bytes can be looked at afterwards; compressed ones are empty then."""
    for size in (65536, 65537):
        stream = sized(size, is_async=is_async)
        failed = response(stream, **headers)
        await flavour.run(adiscard(failed) if is_async else discard(failed))
        closed = stream.closed
        assert (failed.is_closed, closed > 0) == (True, True)
        if size == 65536:
            assert len(failed.content) == (0 if headers else 65536)
        else:
            with pytest.raises(httpx.ResponseNotRead):
                _ = failed.content
        await flavour.run(adiscard(failed) if is_async else discard(failed))
        assert stream.closed == closed


class Telling:
    """A decoder of httpx whose decompressor says what the test wants."""

    def __init__(self, **says: Any) -> None:
        self.decompressor = Bare(**says)


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ({}, None),
        ({"eof": True}, None),
        ({"eof": False}, httpx.RemoteProtocolError),
        ({"is_finished": lambda: True, "eof": False}, None),
        ({"is_finished": lambda: False, "eof": True}, httpx.RemoteProtocolError),
        ({"eof": True, "unused_data": b"padding"}, None),
        ({"eof": True, "unused_data": b"\x1f\x8bmember"}, httpx.DecodingError),
    ],
)
def test_a_decompressor_is_asked_whether_it_is_finished(
    says: dict[str, Any], error: type[httpx.RequestError] | None
) -> None:
    """In brotli's words or in zlib's; one that can't tell is believed, padding ignored."""
    received = response()
    received.read()
    received._decoder = Telling(**says)
    received._num_bytes_downloaded = 1
    if error is None:
        ensure_complete(received)
    else:
        with pytest.raises(error) as caught:
            ensure_complete(received)
        assert caught.value.request is received.request


def test_each_of_several_codings_is_looked_into() -> None:
    """`Content-Encoding: gzip, identity`: the one that can't tell does not hide the other."""
    received = response()
    received.read()
    received._num_bytes_downloaded = 1
    for children in ([Bare(), Telling(eof=False)], [Telling(eof=True), Telling(eof=False)]):
        received._decoder = Bare(children=children)
        with pytest.raises(httpx.RemoteProtocolError, match="ended before its end"):
            ensure_complete(received)
    received._num_bytes_downloaded = 0  # HEAD, 204, 304
    ensure_complete(received)
