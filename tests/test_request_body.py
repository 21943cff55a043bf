"""Request bodies without sockets: which bodies can be sent again, and from where.

`test_bodies.py` has the bytes that arrive at a server.

Subject: `_request_body.py`.
"""

from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from streams import AsyncOnly, Bare, Both, SyncOnly, Unseekable, at

from httpx_production._deadline import make_deadline
from httpx_production._request_body import (
    AsyncBody,
    DualBody,
    SyncBody,
    bound_body,
    make_replayable,
    rewind_function,
    seek_position,
)

URL = "https://api.example.com/v1"


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


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # that of the test's stream
@pytest.mark.parametrize("stream", [SyncOnly(), AsyncOnly()], ids=["sync", "async"])
async def test_no_piece_of_a_body_is_sent_after_the_deadline(
    stream: Any, flavour: Flavour, clock: FakeClock
) -> None:
    """Each piece came in time; all together did not. The next attempt's deadline is its own."""
    request = httpx.Request("PUT", URL, stream=stream)
    bound_body(request, make_deadline({}, clock.now, 2.0))
    pieces: Any = request.stream
    is_sync = isinstance(pieces, httpx.SyncByteStream)
    pieces = iter(pieces) if is_sync else aiter(pieces)
    assert (next(pieces) if is_sync else await anext(pieces)) == b"ab"
    clock.advance(3.0)
    with pytest.raises(httpx.WriteTimeout, match="did not end in time"):
        next(pieces) if is_sync else await anext(pieces)
    bound_body(request, make_deadline({}, clock.now, 2.0))
    assert await sent(request.stream) == b"abc"


def failing(exc: Exception) -> Callable[[], int]:
    def tell() -> int:
        raise exc

    return tell


async def async_tell() -> int:
    return 7


POSITIONS: list[tuple[Any, int | None]] = [
    (at(0), 0),
    (at(4), 4),
    (anyio.wrap_file(at(4)), 4),
    (Unseekable(b"x"), None),
    (anyio.wrap_file(Unseekable(b"x")), None),
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
        (Unseekable(b"x"), False),
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
        ({"f": Unseekable(b"x")}, False),
        ({"f": ("name", Unseekable(b"x"))}, False),
        ([("f", at(0)), ("g", Unseekable(b"x"))], False),
        ([("f", Unseekable(b"x")), ("g", at(0))], False),
    ],
)
def test_which_files_can_be_repeated(files: Any, again: bool) -> None:
    """All of them must be: a multipart body is sent as a whole."""
    rewind = rewind_function(None, files)
    assert (rewind is not None) == again
    if rewind is not None:
        rewind()
