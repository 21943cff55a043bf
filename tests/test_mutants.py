"""Behaviour that mutation testing showed to be held by no other test, or by slow ones only.

Without sockets; in the order of the modules that `tests/benchmarks/mutate.py` changes.
"""

import contextlib
import gzip
import io
import math
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour

from httpx_production import RetryPolicy, parse_retry_after
from httpx_production._deadline import Deadline, LiveTimeout, TimedAuth, current_value
from httpx_production._request_body import (
    AsyncBody,
    DualBody,
    SyncBody,
    make_replayable,
    rewind_function,
    seek_position,
)
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
REQUEST = httpx.Request("GET", URL)


# --- retry.py -------------------------------------------------------------------------------------


def test_every_status_is_shown_to_who_asks_for_all() -> None:
    """HTTP's largest, 999, too: some sites answer robots with it."""
    policy = RetryPolicy(should_retry=lambda request, outcome: None)
    assert all(status in policy.suspects for status in range(100, 1000))


@pytest.mark.parametrize("delay", [-0.5, -1e-9, -1, -math.inf, math.nan, 0, -0.0])
def test_a_backoff_below_zero_is_no_wait(delay: float) -> None:
    """However little it is below."""
    policy = RetryPolicy(backoff=lambda attempt: delay)
    assert policy.delay(0, httpx.ReadTimeout("")) == 0.0


@pytest.mark.parametrize(
    ("today", "value", "year"),
    [
        (2029, "80", 1980),
        (2029, "79", 2079),
        (2029, "30", 2030),
        (2051, "99", 2099),
        (2051, "01", 2101),
        (2051, "02", 2002),
        (1999, "01", 2001),
    ],
)
def test_a_year_of_two_digits_lies_within_fifty_years(today: int, value: str, year: int) -> None:
    """Whatever year we have: RFC 9110 section 5.6.7."""
    now = datetime(today, 6, 1, tzinfo=UTC)
    seconds = parse_retry_after(f"Sunday, 01-Jun-{value} 00:00:00 GMT", now=now)
    assert seconds == max(0.0, (datetime(year, 6, 1, tzinfo=UTC) - now).total_seconds())


def test_a_naive_now_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would take it for local time."""
    monkeypatch.setenv("TZ", "XYZ-9")
    time.tzset()
    try:
        now = datetime(2026, 6, 1)
        assert parse_retry_after("Mon, 01 Jun 2026 00:02:00 GMT", now=now) == 120.0
    finally:
        monkeypatch.undo()
        time.tzset()


# --- _request_body.py and _response_body.py -------------------------------------------------------


class SyncOnly(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield from (b"ab", b"c")


class AsyncOnly(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in (b"ab", b"c"):
            yield part


class Both(SyncOnly, AsyncOnly):
    pass


async def sent(stream: Any) -> bytes:
    """What goes out when a stream is sent."""
    if isinstance(stream, httpx.SyncByteStream):
        return b"".join(stream)
    return b"".join([part async for part in stream])


@pytest.mark.parametrize(
    ("stream", "kind"), [(SyncOnly(), SyncBody), (AsyncOnly(), AsyncBody), (Both(), DualBody)]
)
def test_a_stream_is_wrapped_once_and_keeps_its_kind(stream: Any, kind: type) -> None:
    """Whether it can be sent by the sync client, by the async one, or by both."""
    request = httpx.Request("PUT", URL, stream=stream)
    make_replayable(request)
    wrapped = request.stream
    make_replayable(request)
    assert request.stream is wrapped
    assert type(wrapped) is kind


def test_a_body_in_memory_is_left_alone() -> None:
    """Nothing is spent on what can be sent again anyway."""
    request = httpx.Request("PUT", URL, content=b"x")
    stream = request.stream
    make_replayable(request)
    assert request.stream is stream


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_a_body_that_exists_once_is_sent_once(stream: Any, flavour: Flavour) -> None:
    """It is repeatable until it was begun, and never sent again empty."""
    request = httpx.Request("PUT", URL, stream=stream)
    make_replayable(request)
    body: Any = request.stream
    assert body.replayable
    assert await sent(body) == b"abc"
    assert not body.replayable
    for _ in range(2):
        with pytest.raises(httpx.StreamConsumed):
            await sent(body)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_a_body_is_rewound_before_each_repetition(stream: Any, flavour: Flavour) -> None:
    """Not before the first time: it stands where the caller wants it; and never used up."""
    rewound: list[bool] = []

    async def rewind() -> None:
        rewound.append(True)

    is_async = isinstance(stream, httpx.AsyncByteStream)
    request = httpx.Request("PUT", URL, stream=stream)
    make_replayable(request, rewind if is_async else lambda: rewound.append(True))
    for times in range(4):
        assert request.stream.replayable
        assert await sent(request.stream) == b"abc"
        assert len(rewound) == times


class Pipe(io.BytesIO):
    """A file that can't go back."""

    def seekable(self) -> bool:
        return False


class Bare:
    """A file-like object with nothing but what the test gives it."""

    def __init__(self, **methods: Any) -> None:
        vars(self).update(methods)


def failing(exc: Exception) -> Callable[[], int]:
    def tell() -> int:
        raise exc

    return tell


async def async_tell() -> int:
    return 7


def at(position: int) -> io.BytesIO:
    file = io.BytesIO(b"0123456789")
    file.seek(position)
    return file


POSITIONS: list[tuple[Any, int | None]] = [
    (at(0), 0),
    (at(4), 4),
    (anyio.wrap_file(at(4)), 4),
    (Pipe(b"x"), None),
    (anyio.wrap_file(Pipe(b"x")), None),
    (Bare(seek=print, tell=lambda: 3), 3),
    (Bare(seek=print, tell=lambda: 3, seekable=lambda: True), 3),
    (Bare(seek=print, tell=lambda: 3, seekable=lambda: False), None),
    (Bare(tell=lambda: 3), None),
    (Bare(seek=print), None),
    (Bare(seek=print, tell=async_tell), None),
    (Bare(seek=print, tell=lambda: None), None),
    (Bare(seek=print, tell=failing(OSError())), None),
    (Bare(seek=print, tell=failing(ValueError("closed"))), None),
    (b"bytes", None),
    ([b"list"], None),
]


@pytest.mark.parametrize(("file", "position"), POSITIONS)
def test_where_a_file_stands(file: Any, position: int | None) -> None:
    """None for all that can't be asked, or can't go back there; it never raises."""
    assert seek_position(file) == position


def test_a_file_goes_back_to_where_it_stood() -> None:
    """Not to its start."""
    file = at(4)
    rewind = rewind_function(file, None)
    assert rewind is not None
    assert file.read() == b"456789"
    rewind()
    assert file.read() == b"456789"


@pytest.mark.parametrize(
    ("content", "again"),
    [
        ([b"a", b"b"], True),
        (at(0), True),
        (iter([b"a"]), False),
        (Bare(__anext__=None), False),
        (Bare(read=None), False),
        (Pipe(b"x"), False),
    ],
)
def test_which_contents_can_be_repeated(content: Any, again: bool) -> None:
    """What starts anew when it is iterated, and what can be rewound."""
    rewind = rewind_function(content, None)
    assert (rewind is not None) == again
    if rewind is not None:
        rewind()


@pytest.mark.parametrize(
    ("files", "again"),
    [
        ({"f": b"bytes"}, True),
        ({"f": "text"}, True),
        ({"f": at(0)}, True),
        ({"f": ("name", at(0))}, True),
        ({"f": ("name", b"bytes", "text/plain")}, True),
        ([("f", at(0)), ("g", b"bytes")], True),
        ({"f": Pipe(b"x")}, False),
        ({"f": ("name", Pipe(b"x"))}, False),
        ([("f", at(0)), ("g", Pipe(b"x"))], False),
        ([("f", Pipe(b"x")), ("g", at(0))], False),
    ],
)
def test_which_files_can_be_repeated(files: Any, again: bool) -> None:
    """All of them must be: a multipart body is sent as a whole."""
    rewind = rewind_function(None, files)
    assert (rewind is not None) == again
    if rewind is not None:
        rewind()


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
        deadline = None if left is None else Deadline({}, clock.now + left, 9.0)
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
    deadline = Deadline({"read": 3.0}, 1.0, 1.0)
    received = response(stream)
    hand_over(received, deadline)
    assert await read(received) == b"abc"
    assert (deadline.get("read"), deadline["read"]) == (3.0, 3.0)


def test_a_body_that_goes_on_beyond_the_deadline_is_ended(clock: FakeClock) -> None:
    """Each chunk came in time; all together did not."""
    late = response()
    bound_stream(late, Deadline({}, clock.now + 2.0, 2.0), cancels=False)
    chunks = iter(late.stream)  # type: ignore[arg-type]
    assert next(chunks) == b"ab"
    clock.advance(3.0)
    with pytest.raises(httpx.ReadTimeout, match="did not end in time"):
        next(chunks)


@pytest.mark.parametrize("limit", [None, 0.1, 5.0])
def test_a_discarded_body_gets_a_quarter_of_a_second(clock: FakeClock, limit: float | None) -> None:
    """Or what is left of the deadline; the caller's timeouts are back afterwards."""
    phases = {"read": 7.0}
    timeouts = phases if limit is None else Deadline(phases, clock.now + limit, 9.0)
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


# --- _deadline.py ---------------------------------------------------------------------------------


def test_a_timeout_is_the_shorter_of_its_phase_and_what_is_left(clock: FakeClock) -> None:
    """It shrinks with the time, and only for who asks again; others never get 0."""
    until = clock.now + 2.0
    long, short, none = LiveTimeout(5.0, until), LiveTimeout(1, until), LiveTimeout(None, until)
    assert [long, short, none] == [2.0, 1.0, 2.0]
    assert [current_value(one) for one in (long, short, none)] == [2.0, 1.0, 2.0]
    clock.advance(1.5)
    assert [float(long), float(short)] == [2.0, 1.0]
    assert [current_value(one) for one in (long, short, none)] == [0.5, 0.5, 0.5]
    clock.advance(0.5)
    assert [current_value(one) for one in (long, short, none)] == [0.0, 0.0, 0.0]
    clock.advance(4.5)
    assert [current_value(one) for one in (long, short, none)] == [-4.5, -4.5, -4.5]
    assert LiveTimeout(5.0, until) == 0.001
    assert LiveTimeout(0.0, until) == 0.0


def test_an_ordinary_timeout_is_worth_what_it_says(clock: FakeClock) -> None:
    """Only a deadline's are asked anew."""
    left = LiveTimeout(5.0, clock.now + 2.0)
    clock.advance(0.5)
    assert [current_value(None), current_value(3.0), current_value(left)] == [None, 3.0, 1.5]


def test_a_deadline_answers_each_phase_with_what_is_left(clock: FakeClock) -> None:
    """By `get` and by index, an absent phase too; as a dict it is what it was made of."""
    phases: dict[str, float | None] = {"connect": 5.0, "read": 0.5, "write": None}
    deadline = Deadline(phases, clock.now + 2.0, 3.0)
    assert [deadline.get(name) for name in ("connect", "read", "write")] == [2.0, 0.5, 2.0]
    assert [deadline[name] for name in ("connect", "read", "write")] == [2.0, 0.5, 2.0]
    assert [deadline.get("pool"), deadline.get("pool", 1.0)] == [2.0, 1.0]
    assert dict(deadline) == phases
    assert (deadline.left, deadline.until, deadline.seconds) == (2.0, clock.now + 2.0, 3.0)
    deadline.lift()
    assert [deadline.get(name) for name in phases] == list(phases.values())
    assert [deadline[name] for name in phases] == list(phases.values())


@pytest.mark.parametrize(("left", "notes"), [(0.02, 0), (0.005, 1), (0.0, 1), (-3.0, 1)])
def test_the_note_is_made_once_and_only_at_the_deadline(
    clock: FakeClock, left: float, notes: int
) -> None:
    """A phase that timed out by itself is not blamed on total_timeout."""
    exc = httpx.ReadTimeout("slow")
    deadline = Deadline({}, clock.now + left, 1.5)
    deadline.add_note(exc)
    deadline.add_note(exc)
    assert getattr(exc, "__notes__", []) == ["total_timeout of 1.5 s ran out"] * notes


@pytest.mark.parametrize("late", [0.0, 0.5, 5.0])
def test_no_chunk_is_taken_at_the_deadline(clock: FakeClock, late: float) -> None:
    """Between two chunks the deadline is looked at, and it names itself."""
    deadline = Deadline({}, clock.now + 2.0, 2.0)
    clock.advance(1.5)
    deadline.check("too late")
    clock.advance(0.5 + late)
    with pytest.raises(httpx.ReadTimeout, match="too late") as caught:
        deadline.check("too late")
    assert caught.value.__notes__ == ["total_timeout of 2 s ran out"]


@pytest.mark.anyio
@pytest.mark.flavours("asyncio", "trio")
async def test_what_ignores_its_timeouts_is_cancelled(
    flavour: Flavour, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortly after the deadline, so that those who keep it themselves can name the phase."""
    given, move_on_after = [], anyio.move_on_after
    monkeypatch.setattr(
        anyio, "move_on_after", lambda seconds: given.append(seconds) or move_on_after(0.01)
    )
    deadline = Deadline({}, clock.now + 2.0, 2.0)
    with deadline.cancels("too late"):
        await anyio.lowlevel.checkpoint()
    clock.advance(5.0)
    raises = pytest.raises(httpx.ReadTimeout, match="too late")
    with raises as caught, deadline.cancels("too late"):
        await anyio.sleep(9.0)
    assert given == pytest.approx([2.05, 0.05])
    assert caught.value.__notes__ == ["total_timeout of 2 s ran out"]


class TokenFlow(httpx.Auth):
    """Asks for a token first, and says when it has ended."""

    requires_response_body = True

    def __init__(self, *first: httpx.Request) -> None:
        self.first, self.ended = first, False

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        try:
            for one in self.first:
                assert (yield one).status_code == 200
            request.headers["Authorization"] = "token"
            yield request
        finally:
            self.ended = True


async def walk(
    flavour: Flavour, auth: httpx.Auth, timeouts: Any, turns: int = 99
) -> list[httpx.Request]:
    """The requests of an auth flow, each answered; ended after so many `turns`."""
    request, seen = httpx.Request("GET", URL, extensions={"timeout": timeouts}), []
    flow: Any = auth.sync_auth_flow(request) if flavour.sync else auth.async_auth_flow(request)
    response = None
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        while len(seen) < turns:
            sent = flow.send(response) if flavour.sync else flow.asend(response)
            seen.append(await flavour.run(sent))
            response = httpx.Response(200, request=seen[-1], content=b"")
    await flavour.run(flow.close() if flavour.sync else flow.aclose())
    return seen


@pytest.mark.anyio
async def test_a_flow_s_own_requests_get_the_deadline(flavour: Flavour, clock: FakeClock) -> None:
    """Unless they bring timeouts of their own; the flow goes on to its end."""
    own = httpx.Request("POST", URL, extensions={"timeout": {"read": 1.0}})
    token, deadline = TokenFlow(httpx.Request("POST", URL), own), Deadline({}, clock.now + 2.0, 2.0)
    seen = await walk(flavour, TimedAuth(token), deadline)
    assert [request.method for request in seen] == ["POST", "POST", "GET"]
    assert seen[0].extensions["timeout"] is seen[2].extensions["timeout"] is deadline
    assert own.extensions["timeout"] == {"read": 1.0}
    assert seen[2].headers["Authorization"] == "token"
    assert token.ended


@pytest.mark.anyio
async def test_a_flow_ends_at_the_deadline(flavour: Flavour, clock: FakeClock) -> None:
    """Whatever it does between its requests."""
    token = TokenFlow(httpx.Request("POST", URL))
    with pytest.raises(httpx.ReadTimeout, match="the auth flow did not end in time"):
        await walk(flavour, TimedAuth(token), Deadline({}, clock.now, 2.0))
    assert token.ended


@pytest.mark.anyio
async def test_a_flow_that_is_left_early_is_ended(flavour: Flavour, clock: FakeClock) -> None:
    """Its `finally` runs when the call fails, not when the garbage collector comes by."""
    token = TokenFlow(httpx.Request("POST", URL))
    deadline = Deadline({}, clock.now + 2.0, 2.0)
    assert len(await walk(flavour, TimedAuth(token), deadline, turns=1)) == 1
    assert token.ended
