"""Behaviour that mutation testing showed to be held by no other test, or by slow ones only.

Without sockets; in the order of the modules that `tests/benchmarks/mutate.py` changes.
"""

import contextlib
import io
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import anyio
import httpcore
import httpx
import pytest
from conftest import FakeClock, Flavour

from httpx_production import RetryPolicy, parse_retry_after
from httpx_production._bodies import (
    AsyncBody,
    DualBody,
    SyncBody,
    ensure_complete,
    guard,
    hurried,
    rewinder,
    tell,
    watch,
)
from httpx_production._deadline import Deadline, DeadlineAuth, Left, remaining
from httpx_production._pool import ledger as _ledger
from httpx_production._pool.ledger import Ledger, NotProcessed, Ticket

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


# --- _bodies.py -----------------------------------------------------------------------------------


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
    guard(request)
    wrapped = request.stream
    guard(request)
    assert request.stream is wrapped
    assert type(wrapped) is kind


def test_a_body_in_memory_is_left_alone() -> None:
    """Nothing is spent on what can be sent again anyway."""
    request = httpx.Request("PUT", URL, content=b"x")
    stream = request.stream
    guard(request)
    assert request.stream is stream


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_a_body_that_exists_once_is_sent_once(stream: Any, flavour: Flavour) -> None:
    """It is repeatable until it was begun, and never sent again empty."""
    request = httpx.Request("PUT", URL, stream=stream)
    guard(request)
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
    guard(request, rewind if is_async else lambda: rewound.append(True))
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
    assert tell(file) == position


def test_a_file_goes_back_to_where_it_stood() -> None:
    """Not to its start."""
    file = at(4)
    rewind = rewinder(file, None)
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
    rewind = rewinder(content, None)
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
        (iter([("f", at(0))]), False),
    ],
)
def test_which_files_can_be_repeated(files: Any, again: bool) -> None:
    """All of them must be: a multipart body is sent as a whole."""
    rewind = rewinder(None, files)
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


def test_an_ordinary_body_is_not_watched() -> None:
    """Neither a deadline nor a coding to look after: it costs nothing."""
    plain, stream = response(), SyncOnly()
    plain.stream = stream
    watch(plain)
    assert plain.stream is stream


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # nobody closes it here
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_a_watched_body_ends_above_its_limit(stream: Any, flavour: Flavour) -> None:
    """Counted over all its chunks; exactly the limit may pass."""
    for limit, fits in ((3, True), (2, False)):
        watched = response(stream, content_encoding="identity")
        watch(watched, limit)
        if fits:
            assert await sent(watched.stream) == b"abc"
        else:
            with pytest.raises(httpx.ReadError, match="larger than is worth reading") as caught:
                await sent(watched.stream)
            assert caught.value.request is watched.request


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
async def test_a_chunk_that_times_out_at_the_deadline_says_so(
    stream: Any, flavour: Flavour, clock: FakeClock
) -> None:
    """With the note of total_timeout; without a deadline, or before it, as it is."""
    for left, notes in ((5.0, 0), (0.005, 1), (None, 0)):
        timeout = {} if left is None else Deadline({}, clock.now + left, 9.0)
        stalled = response(stream, timeout, content_encoding="identity")
        watch(stalled)
        with pytest.raises(httpx.ReadTimeout, match="slow") as caught:
            await sent(stalled.stream)
        assert getattr(caught.value, "__notes__", []) == ["total_timeout of 9 s ran out"] * notes


def test_a_body_that_goes_on_beyond_the_deadline_is_ended(clock: FakeClock) -> None:
    """Each chunk came in time; all together did not."""
    deadline = Deadline({}, clock.now + 2.0, 2.0)
    late = response(timeout=deadline)
    watch(late)
    chunks = iter(late.stream)
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
    with hurried(failed):  # which suppresses AssertionError too
        hurry = failed.request.extensions["timeout"]
    assert hurry.left == hurry.get("read") == pytest.approx(min(0.25, limit or 0.25))
    assert (hurry.total, dict(hurry)) == (0.25, phases)
    assert failed.request.extensions["timeout"] is timeouts


def test_a_discarded_body_may_fail_but_not_be_interrupted(clock: FakeClock) -> None:
    """Nobody wants it; Ctrl-C goes through, and the timeouts are back nevertheless."""
    failed = response()
    with hurried(failed):
        raise httpx.ReadError("cut")
    with pytest.raises(KeyboardInterrupt), hurried(failed):
        raise KeyboardInterrupt
    assert failed.request.extensions["timeout"] == {}


class Sized(SyncOnly):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        yield bytes(self.size)


@pytest.mark.parametrize(
    ("headers", "most"), [({}, 65536), ({"content_encoding": "identity"}, 4096)]
)
def test_a_discarded_body_has_a_size_that_is_worth_reading(
    clock: FakeClock, headers: dict[str, str], most: int
) -> None:
    """64 KiB; a sixteenth of that where a thousand times its size may come out of it."""
    for size, fits in ((most, True), (most + 1, False)):
        failed = response(Sized(size), **headers)
        with hurried(failed):
            failed.read()
        assert failed.is_stream_consumed
        assert hasattr(failed, "_content") == fits


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
    """It shrinks with the time, down to a millisecond, and only for who asks again."""
    until = clock.now + 2.0
    long, short, none = Left(5.0, until), Left(1, until), Left(None, until)
    assert [long, short, none] == [2.0, 1.0, 2.0]
    assert [long.now(), short.now(), none.now()] == [2.0, 1.0, 2.0]
    clock.advance(1.5)
    assert [float(long), float(short)] == [2.0, 1.0]
    assert [long.now(), short.now(), none.now()] == [0.5, 0.5, 0.5]
    clock.advance(5.0)
    assert [long.now(), short.now(), none.now(), Left(5.0, until)] == [0.001] * 4
    assert [Left(0.0, until), Left(0.0, until).now()] == [0.0, 0.0]


def test_an_ordinary_timeout_is_worth_what_it_says(clock: FakeClock) -> None:
    """Only a deadline's are asked anew."""
    left = Left(5.0, clock.now + 2.0)
    clock.advance(0.5)
    assert [remaining(None), remaining(3.0), remaining(left)] == [None, 3.0, 1.5]


def test_a_deadline_answers_each_phase_with_what_is_left(clock: FakeClock) -> None:
    """By `get` and by index, an absent phase too; as a dict it is what it was made of."""
    phases: dict[str, float | None] = {"connect": 5.0, "read": 0.5, "write": None}
    deadline = Deadline(phases, clock.now + 2.0, 3.0)
    assert [deadline.get(name) for name in ("connect", "read", "write")] == [2.0, 0.5, 2.0]
    assert [deadline[name] for name in ("connect", "read", "write")] == [2.0, 0.5, 2.0]
    assert [deadline.get("pool"), deadline.get("pool", 1.0)] == [2.0, 1.0]
    assert dict(deadline) == phases
    assert (deadline.left, deadline.until, deadline.total) == (2.0, clock.now + 2.0, 3.0)


@pytest.mark.parametrize(("left", "notes"), [(0.02, 0), (0.005, 1), (0.0, 1), (-3.0, 1)])
def test_the_note_is_made_once_and_only_at_the_deadline(
    clock: FakeClock, left: float, notes: int
) -> None:
    """A phase that timed out by itself is not blamed on total_timeout."""
    exc = httpx.ReadTimeout("slow")
    deadline = Deadline({}, clock.now + left, 1.5)
    deadline.explain(exc)
    deadline.explain(exc)
    assert getattr(exc, "__notes__", []) == ["total_timeout of 1.5 s ran out"] * notes


@pytest.mark.parametrize("late", [0.0, 0.5, 5.0])
def test_no_chunk_is_taken_at_the_deadline(clock: FakeClock, late: float) -> None:
    """Between two chunks the deadline is looked at, and it names itself."""
    deadline = Deadline({}, clock.now + 2.0, 2.0)
    clock.advance(1.5)
    deadline.check(REQUEST)
    clock.advance(0.5 + late)
    with pytest.raises(httpx.ReadTimeout, match=r"did not end in time") as caught:
        deadline.check(REQUEST)
    assert caught.value.request is REQUEST
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
    with deadline.enforced(REQUEST):
        await anyio.lowlevel.checkpoint()
    clock.advance(5.0)
    raises = pytest.raises(httpx.ReadTimeout, match="did not come in time")
    with raises as caught, deadline.enforced(REQUEST):
        await anyio.sleep(9.0)
    assert given == pytest.approx([2.05, 0.05])
    assert caught.value.request is REQUEST
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


async def walk(flavour: Flavour, auth: httpx.Auth, turns: int = 99) -> list[httpx.Request]:
    """The requests of an auth flow, each answered; ended after so many `turns`."""
    request, seen = httpx.Request("GET", URL), []
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
    seen = await walk(flavour, DeadlineAuth(token, deadline))
    assert [request.method for request in seen] == ["POST", "POST", "GET"]
    assert seen[0].extensions["timeout"] is seen[2].extensions["timeout"] is deadline
    assert own.extensions["timeout"] == {"read": 1.0}
    assert seen[2].headers["Authorization"] == "token"
    assert token.ended


@pytest.mark.anyio
async def test_a_flow_that_is_left_early_is_ended(flavour: Flavour, clock: FakeClock) -> None:
    """Its `finally` runs when the call fails, not when the garbage collector comes by."""
    token = TokenFlow(httpx.Request("POST", URL))
    assert len(await walk(flavour, DeadlineAuth(token, Deadline({}, clock.now, 2.0)), turns=1)) == 1
    assert token.ended


# --- _pool/ledger.py ------------------------------------------------------------------------------


class Plain:
    """A connection that says nothing of sharing, as httpcore's own."""

    expired = False

    def is_idle(self) -> bool:
        return True

    def has_expired(self) -> bool:
        return self.expired


class Negotiating(Plain):
    """A connection that may turn out to be HTTP/2."""

    multiplexes: bool | None = None
    streams = 1

    def negotiate(self, streams: int, changed: Callable[[], None]) -> None:
        self.multiplexes, self.streams = streams > 1, streams
        changed()


def ledger(
    size: float = 2, *, expiry: float | None = None, kind: type[Plain] = Plain
) -> Ledger[Any]:
    return Ledger(lambda origin, changed: kind(), Plain.is_idle, Flag, (size, 9, expiry))


class Flag:
    """An event, and Ctrl-C while it is set."""

    was_set = False
    interrupts: ClassVar[list[type[BaseException]]] = []

    def set(self) -> None:
        self.was_set = True
        if self.interrupts:
            raise self.interrupts.pop()


def enter(desk: Ledger[Any], host: bytes = b"a") -> Ticket[Any]:
    ticket: Ticket[Any] = Ticket(desk.lost)
    desk.enter(ticket, httpcore.Origin(b"https", host, 443))
    return ticket


def test_a_connection_that_says_nothing_serves_one_request() -> None:
    """Sharing is only for those that say so."""
    desk = ledger(size=1)
    first, second = enter(desk), enter(desk)
    assert first.slot is not None
    assert (first.slot.multiplexes, first.slot.streams) == (False, 1)
    assert second.slot is None
    assert not second.event.was_set
    desk.leave(first)
    assert second.slot is not None
    assert second.event.was_set
    desk.leave(second)
    third, fourth = enter(desk), enter(desk)
    assert third.slot is not None
    assert fourth.slot is None


def test_the_crowd_is_counted() -> None:
    """What a PoolTimeout says: connections in use, of how many, and who waits."""
    desk = ledger(size=3)
    tickets = [enter(desk), enter(desk), enter(desk), enter(desk), enter(desk)]
    assert "after 2.1 s: 3 of 3 connections in use, 2 requests waiting" in desk.crowd(2.06)
    for ticket in tickets[2:] + tickets[:1]:
        desk.leave(ticket)
    assert desk.count() == (3, 2, 0)
    assert ": 1 of 3 connections in use, 0 requests waiting; raise max" in desk.crowd(0.0)


def test_a_refused_request_is_sent_three_times_in_all() -> None:
    """The server did nothing with it; but not for ever, and only a body that can be repeated."""
    refusal = NotProcessed("refused")
    request = httpcore.Request("POST", URL, content=b"x")
    ticket: Ticket[Any] = Ticket(deque())
    assert ticket.refusal is None
    for _ in range(2):
        ticket.refused(request, refusal)
        assert ticket.refusal is refusal
    with pytest.raises(NotProcessed):
        ticket.refused(request, refusal)


def test_a_refused_request_whose_body_is_gone_is_not_sent_again() -> None:
    """The refusal is the caller's outcome."""
    for replayable in (True, False):
        stream: Any = Bare(replayable=replayable, __iter__=None)
        request = httpcore.Request("POST", URL)
        request.stream = stream
        ticket: Ticket[Any] = Ticket(deque())
        if replayable:
            ticket.refused(request, NotProcessed("refused"))
        else:
            with pytest.raises(NotProcessed):
                ticket.refused(request, NotProcessed("refused"))


def test_who_gives_up_waiting_for_a_handshake_gets_no_stream() -> None:
    """A slot given to a request that is gone would be lost."""
    desk = ledger(kind=Negotiating)
    first, gone, second = enter(desk), enter(desk), enter(desk)
    desk.leave(gone)
    assert desk.count() == (1, 0, 1)
    first.slot.connection.negotiate(9, lambda: desk.changed(first.slot))
    assert gone.slot is None
    assert second.slot is first.slot
    assert len(first.slot.users) == 2


def test_a_connection_that_rests_is_not_waited_for() -> None:
    """Whether it said what it negotiated or not: the next one takes it."""
    desk = ledger(kind=Negotiating)
    first = enter(desk)
    connection = first.slot.connection
    desk.leave(first)
    second, third = enter(desk), enter(desk)
    assert second.slot.connection is connection
    assert third.slot is not None
    assert {slot.connection for slot in (second.slot, third.slot)} == set(desk.connections)


def test_a_connection_is_kept_until_its_time_is_over(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At exactly `keepalive_expiry` seconds it still is."""
    monkeypatch.setattr(_ledger, "monotonic", clock.monotonic)
    desk = ledger(size=9, expiry=30.0)
    tickets = [enter(desk), enter(desk), enter(desk)]
    for seconds, idle in ((0.0, 1), (30.0, 2), (0.125, 2)):
        clock.advance(seconds)
        desk.leave(tickets.pop())
        assert desk.count()[1] == idle


def test_who_waited_in_vain_to_share_is_served_by_whatever_becomes_free() -> None:
    """The handshake gave HTTP/1.1: he waits like everybody, also for another origin's slot."""
    desk = ledger(kind=Negotiating)
    other = enter(desk, b"b")
    first, second = enter(desk), enter(desk)
    first.slot.connection.negotiate(1, lambda: desk.changed(first.slot))
    assert second.slot is None
    assert desk.count() == (2, 0, 1)
    desk.leave(other)
    assert second.slot is not None


def test_a_step_that_was_interrupted_is_done_again() -> None:
    """Ctrl-C while a request leaves: its slot is neither lost nor given back twice."""
    interrupts = [KeyboardInterrupt]

    def reusable(connection: Plain) -> bool:
        if interrupts:
            raise interrupts.pop()
        return True

    desk: Ledger[Any] = Ledger(lambda origin, changed: Plain(), reusable, Flag, (1, 9, None))
    first, second = enter(desk), enter(desk)
    slot = first.slot
    with pytest.raises(KeyboardInterrupt):
        desk.leave(first)
    desk.leave(first)
    assert second.slot is slot
    assert len(slot.users) == 1
    desk.leave(second)
    assert desk.count() == (1, 1, 0)


def test_taking_a_slot_that_was_interrupted_costs_none() -> None:
    """Ctrl-C between the slot and its being counted: leaving gives back what there is."""
    desk = ledger(size=1)

    class Interrupted(set[int]):
        def add(self, one: int) -> None:
            raise KeyboardInterrupt

    first = enter(desk)
    slot = first.slot
    desk.leave(first)
    slot.users = Interrupted()
    second: Ticket[Any] = Ticket(desk.lost)
    with pytest.raises(KeyboardInterrupt):
        desk.enter(second, httpcore.Origin(b"https", b"a", 443))
    slot.users = set()
    desk.leave(second)
    assert desk.count() == (1, 1, 0)
    assert enter(desk).slot is slot


def test_who_was_served_when_interrupted_does_not_block_the_line() -> None:
    """Ctrl-C between the slot and the end of the wait: those behind him get theirs."""
    desk = ledger(size=2)
    first, other, second, third = enter(desk), enter(desk), enter(desk), enter(desk)
    Flag.interrupts.append(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        desk.leave(first)
    desk.leave(first)
    assert second.slot is not None
    desk.leave(other)
    assert third.slot is not None
    assert desk.count() == (2, 0, 0)


def test_an_idle_shared_connection_is_looked_at_before_it_is_shared_again() -> None:
    """HTTP/2 connections expire too, and servers close them."""
    desk = ledger(kind=Negotiating)
    first = enter(desk)
    slot = first.slot
    slot.connection.negotiate(9, lambda: desk.changed(slot))
    desk.leave(first)
    slot.connection.expired = True
    assert enter(desk).slot is not slot
    assert desk.closing == [slot.connection]
