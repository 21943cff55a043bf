"""A request body is sent again byte for byte or not at all, whatever kind it is.

The servers record what arrives, attempt by attempt; httpx.MockTransport would not do, because it
reads the body into memory first.

Subject: `_request_body.py`.
"""

import contextlib
import io
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Received, ScriptedServer, answer, fin, redirect, reset
from streams import Unseekable

from httpx_production import RetryPolicy

pytestmark = [
    pytest.mark.anyio,
    # httpcore leaves the body's async generator to the garbage collector when sending fails.
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]

DATA = bytes(range(256)) * 4
CUT = 10  # a file's start offset
REST = DATA[CUT:]
BIG = (bytes(range(11, 256)) * 400 + b"\n") * 30  # 3 MB: more than the kernel's buffers take
NOT_AGAIN = "the request body can't be sent again"


# --- the kinds of bodies --------------------------------------------------------------------------


class OnlyRead:
    """Nothing but `read()`."""

    def __init__(self) -> None:
        self.read = io.BytesIO(DATA).read


class Reader(OnlyRead):
    """A file as many libraries make them: `read()`, and iterable because httpx asks for it."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")


class AsyncReiterable:
    """Starts anew each time it is iterated."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


class AsyncOnce:
    """An async iterator that is no generator: httpx can't tell that it is used up."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> "AsyncOnce":
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def split(data: bytes, size: int = 300) -> list[bytes]:
    """Cut a body into chunks."""
    return [data[i : i + size] for i in range(0, len(data), size)]


class Maker:
    """Makes bodies for one flavour; `file`, `memory` and `pipe` stand open until the test ends."""

    def __init__(self, flavour: Any, path: Path, stack: contextlib.ExitStack) -> None:
        self.flavour, self.path, self._stack = flavour, path, stack

    def opened(self, data: bytes = DATA, offset: int = 0) -> Any:
        """A binary file on the disk, standing at an offset."""
        self.path.write_bytes(data)
        file = self._stack.enter_context(self.path.open("rb"))
        file.seek(offset)
        return file

    def content(self, file: Any) -> Any:
        """A file as this flavour's `content=`: the async client wants anyio's."""
        return file if self.flavour.sync else anyio.wrap_file(file)

    def pipe(self) -> Any:
        """The reading end of a pipe, as `sys.stdin.buffer` is one."""
        reading, writing = os.pipe()
        os.write(writing, DATA)
        os.close(writing)
        return self.content(self._stack.enter_context(open(reading, "rb")))

    def many(self, chunks: list[bytes]) -> Any:
        """A body that starts anew when it is iterated again."""
        return chunks if self.flavour.sync else AsyncReiterable(chunks)

    def once(self, chunks: list[bytes]) -> Any:
        """An iterator that can be gone through once."""
        return map(bytes, chunks) if self.flavour.sync else AsyncOnce(chunks)


def memory(offset: int = 0, kind: type[io.BytesIO] = io.BytesIO) -> io.BytesIO:
    """A BytesIO with the data, standing at an offset."""
    file = kind(DATA)
    if offset:
        file.seek(offset)
    return file


@dataclass
class Kind:
    """A kind of body."""

    name: str
    options: Callable[[Maker], dict[str, Any]]  # the request's arguments
    again: bool = True  # it can be sent again
    wire: bytes | None = DATA  # what must arrive; None for multipart


LENGTH = {"Content-Length": str(len(REST))}

KINDS = [
    Kind("bytes", lambda m: {"content": DATA}),
    Kind("empty", lambda m: {"content": b""}, wire=b""),
    Kind("str", lambda m: {"content": "grüße " * 50}, wire="grüße ".encode() * 50),
    Kind("json", lambda m: {"json": {"n": [1, 2]}}, wire=b'{"n":[1,2]}'),
    Kind("form", lambda m: {"data": {"a": "ä&", "b": "2"}}, wire=b"a=%C3%A4%26&b=2"),
    Kind("file", lambda m: {"content": m.content(m.opened())}),
    Kind("file at offset", lambda m: {"content": m.content(m.opened(DATA, CUT))}, wire=REST),
    Kind("file at offset with length",
         lambda m: {"content": m.content(m.opened(DATA, CUT)), "headers": LENGTH}, wire=REST),
    Kind("file at its end", lambda m: {"content": m.content(memory(len(DATA)))}, wire=b""),
    Kind("BytesIO", lambda m: {"content": m.content(memory())}),
    Kind("BytesIO at offset", lambda m: {"content": m.content(memory(CUT))}, wire=REST),
    Kind("re-iterable", lambda m: {"content": m.many(split(DATA))}),
    Kind("generator", lambda m: {"content": m.flavour.generator(split(DATA))}, again=False),
    Kind("iterator", lambda m: {"content": m.once(split(DATA))}, again=False),
    Kind("reader", lambda m: {"content": Reader() if m.flavour.sync else m.once([DATA])},
         again=False),
    Kind("unseekable", lambda m: {"content": m.content(memory(kind=Unseekable))}, again=False),
    Kind("pipe", lambda m: {"content": m.pipe()}, again=False),
    Kind("multipart of bytes", lambda m: {"files": {"f": ("n", DATA)}}, wire=None),
    Kind("multipart of a file", lambda m: {"files": {"f": m.opened()}}, wire=None),
    Kind("multipart of two files", lambda m: {
        "files": [("f", m.opened(DATA, CUT)), ("g", ("g.bin", memory(CUT)))],
        "data": {"field": "value"}}, wire=None),
    Kind("multipart, one unseekable", lambda m: {
        "files": {"f": m.opened(), "g": ("g", memory(kind=Unseekable))}}, again=False, wire=None),
    Kind("multipart of a field and an unseekable", lambda m: {
        "files": {"f": memory(kind=Unseekable)}, "data": {"field": "value"}},
        again=False, wire=None),
    Kind("multipart by an iterator", lambda m: {
        "files": iter([("f", m.opened()), ("g", DATA)])}, wire=None),
    Kind("multipart by an iterator, one unseekable", lambda m: {
        "files": iter([("f", m.opened()), ("g", memory(kind=Unseekable))])},
        again=False, wire=None),
    Kind("multipart, only read()", lambda m: {"files": {"f": OnlyRead()}}, again=False, wire=None),
]  # fmt: skip


def only(*names: str) -> pytest.MarkDecorator:
    """Run the test with these kinds."""
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name.replace(" ", "-"))


@pytest.fixture
def maker(flavour: Any, tmp_path: Path) -> Iterator[Maker]:
    with contextlib.ExitStack() as stack:
        yield Maker(flavour, tmp_path / "data", stack)


def check_bodies(kind: Kind, requests: list[Received]) -> None:
    """Every attempt brought the whole, right body, and announced it rightly."""
    assert len({request.body for request in requests}) == 1
    for request in requests:
        assert request.complete
        length = request.headers.get("content-length")
        assert length == (
            None if "transfer-encoding" in request.headers else str(len(request.body))
        )
        if kind.wire is None:
            assert request.body.count(DATA) == request.body.count(b"filename") > 0
            assert request.body.endswith(b"--\r\n")
        else:
            assert request.body == kind.wire


# --- each kind against each fault -----------------------------------------------------------------


@only()
async def test_every_attempt_brings_the_same_bytes(flavour, clock, maker, kind, caplog):
    """Refused, 503, reset, closed: the same bytes each time, or once, and then the 503 itself.

    The refused connection took nothing from the body, so that even a generator is sent after it.
    """
    caplog.set_level(logging.WARNING, "httpx_production")
    with ScriptedServer([answer(503), reset(), fin(), answer()], listening=False) as server:
        clock.during_wait.append(server.listen)
        response = await flavour.run(flavour.client().put(server.url, **kind.options(maker)))
    check_bodies(kind, server.requests)
    assert response.status_code == (200 if kind.again else 503)
    assert len(server.requests) == (4 if kind.again else 1)
    assert kind.again or NOT_AGAIN in caplog.text


@only("generator", "iterator", "unseekable", "multipart, one unseekable")
@pytest.mark.parametrize("fault", [reset(), fin(), reset(read=100)], ids=["reset", "fin", "cut"])
async def test_the_error_after_a_body_that_exists_once_is_the_true_one(
    flavour, clock, maker, kind, fault
):
    """A connection lost after such a body was sent is reported as that, never StreamConsumed."""
    with ScriptedServer([fault, answer()]) as server:
        outcome = await flavour.outcome(flavour.client().put, server.url, **kind.options(maker))
    assert isinstance(outcome, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    assert NOT_AGAIN in "".join(outcome.__notes__)
    assert len(server.requests) == 1


# To a file at its end, or a pipe, httpx.Request itself gives a wrong length.
@only(*{kind.name for kind in KINDS} - {"file at its end", "pipe"})
@pytest.mark.parametrize("extensions", [{}, {"timeout": {"read": 9.0}}], ids=["", "timeouts"])
async def test_hand_built_requests_are_protected_too(flavour, clock, maker, kind, extensions):
    """`send(httpx.Request(...))`: the same bytes on every attempt, or one attempt and the 503."""
    options = kind.options(maker)
    if kind.wire == REST:
        options["headers"] = LENGTH  # only the caller knows the offset here
    with ScriptedServer([answer(503), answer(503), answer()]) as server:
        request = httpx.Request("PUT", server.url + "/", extensions=extensions, **options)
        response = await flavour.run(flavour.client().send(request))
    check_bodies(kind, server.requests)
    outcome = (response.status_code, len(server.requests))
    assert outcome in ([(200, 3), (503, 1)] if kind.again else [(503, 1)])
    assert outcome == (200, 3) or not isinstance(request.stream, httpx.ByteStream)


@only()
async def test_a_307_sends_the_body_to_the_new_place(flavour, clock, maker, kind):
    """A redirect that keeps the method gets the same bytes, or the error that httpx has for it."""
    script = [redirect("/b", 307), answer(503), redirect("/b", 307), answer()]
    with ScriptedServer(script) as server:
        client = flavour.client(follow_redirects=True)
        outcome = await flavour.outcome(client.put, server.url + "/a", **kind.options(maker))
    if kind.again:
        check_bodies(kind, server.requests)
        assert outcome.status_code == 200
        assert [request.path for request in server.requests] == ["/a", "/b", "/a", "/b"]
    else:
        check_bodies(kind, server.requests[:1])
        assert isinstance(outcome, httpx.StreamConsumed)
        assert not any(request.complete for request in server.requests[1:])


@only("file at offset", "multipart of two files", "generator", "iterator")
async def test_a_digest_challenge_gets_the_same_body_again(flavour, clock, maker, kind):
    """The second request of an auth flow carries the body of the first, or is never sent."""
    challenge = {"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'}
    with ScriptedServer([answer(401, b"", challenge), answer(503), answer()]) as server:
        client = flavour.client(auth=httpx.DigestAuth("user", "secret"))
        outcome = await flavour.outcome(client.put, server.url, **kind.options(maker))
    if kind.again:
        check_bodies(kind, server.requests)
        assert outcome.status_code == 200
    else:
        assert isinstance(outcome, httpx.StreamConsumed)
        assert not any(request.complete for request in server.requests[1:])


async def check_sent_twice(flavour, kind, client, server, request):
    """The same Request object again: the same bytes, or StreamConsumed instead of b""."""
    first = await flavour.run(client.send(request))
    second = await flavour.outcome(client.send, request)
    assert first.status_code == 200
    if kind.again:
        assert second.status_code == 200
        check_bodies(kind, server.requests)
    else:
        assert isinstance(second, httpx.StreamConsumed)
        assert not any(request.complete for request in server.requests[1:])


@only("file at offset", "multipart of two files", "generator", "iterator", "unseekable")
async def test_a_request_sent_twice_never_sends_an_empty_body(flavour, clock, maker, kind):
    """One of the client's own."""
    with ScriptedServer() as server:
        client = flavour.client()
        request = client.build_request("PUT", server.url, **kind.options(maker))
        await check_sent_twice(flavour, kind, client, server, request)


@only("iterator", "re-iterable")
async def test_a_hand_built_request_sent_twice_sends_no_empty_body(flavour, clock, maker, kind):
    """Whether its body begins anew is seen when it is sent: in httpx an iterator's is b"" then."""
    with ScriptedServer() as server:
        request = httpx.Request("PUT", server.url, **kind.options(maker))
        await check_sent_twice(flavour, kind, flavour.client(), server, request)


# --- uploads that don't fit into the kernel's buffers ---------------------------------------------


BIG_KINDS = [
    Kind("bytes", lambda m: {"content": BIG}, wire=BIG),
    Kind("file", lambda m: {"content": m.content(m.opened(BIG))}, wire=BIG),
    Kind("generator", lambda m: {"content": m.flavour.generator(split(BIG, 65536))}, again=False),
]
each_big_kind = pytest.mark.parametrize("kind", BIG_KINDS, ids=lambda kind: kind.name)


@each_big_kind
@pytest.mark.parametrize("then", ["keep", "fin"])
async def test_an_upload_that_is_refused_before_it_is_read(flavour, clock, maker, kind, then):
    """A 503 that comes before the server read 3 MB is seen as that 503, not as a broken pipe."""
    with ScriptedServer([answer(503, read="head", then=then)] * 2 + [answer()]) as server:
        response = await flavour.run(flavour.client().put(server.url, **kind.options(maker)))
    assert response.status_code == (200 if kind.again else 503)
    assert len(server.requests) == (3 if kind.again else 1)
    assert not kind.again or server.bodies[-1] == BIG


@each_big_kind
async def test_an_upload_that_is_reset_in_the_middle(flavour, clock, maker, kind):
    """An upload that breaks after 1 MB begins again at its first byte, or ends with the error."""
    with ScriptedServer([reset(read=1_000_000), reset(read=0), answer()]) as server:
        outcome = await flavour.outcome(flavour.client().put, server.url, **kind.options(maker))
    assert all(BIG.startswith(body) for body in server.bodies)
    if kind.again:
        assert outcome.status_code == 200
        assert server.bodies[-1] == BIG
    else:
        assert isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError)
        assert NOT_AGAIN in "".join(outcome.__notes__)
        assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [answer(503), reset(), reset(read=100)])
async def test_a_post_is_never_sent_twice(flavour, clock, fault):
    """A POST whose fate is unknown, or bad, is the caller's to repeat: the note says so."""
    with ScriptedServer([fault]) as server:
        outcome = await flavour.outcome(flavour.client().post, server.url, content=BIG)
    assert len(server.requests) == 1
    assert isinstance(outcome, httpx.Response) or "POST" in "".join(outcome.__notes__)


async def test_a_post_that_may_be_repeated_brings_the_same_bytes(flavour, clock):
    """With an Idempotency-Key a POST is repeated: the same key and body on every attempt."""
    with ScriptedServer([answer(503), reset(), answer()]) as server:
        headers = {"Idempotency-Key": '"8e03978e"'}
        await flavour.run(flavour.client().post(server.url, json={"a": 1}, headers=headers))
    assert server.bodies == [b'{"a":1}'] * 3
    assert {request.headers["idempotency-key"] for request in server.requests} == {'"8e03978e"'}


# --- files that somebody else touches -------------------------------------------------------------


async def test_a_file_is_rewound_to_where_it_stood_when_the_request_was_built(
    flavour, clock, maker
):
    """What somebody does to a shared file during the wait does no harm."""
    file = memory(CUT)
    hook = flavour.hook(lambda failed: file.seek(7) and None)
    with ScriptedServer([answer(503), answer()]) as server:
        client = flavour.client(event_hooks={"retry": [hook]})
        await flavour.run(client.put(server.url, content=maker.content(file)))
    assert server.bodies == [REST, REST]


async def test_a_closed_file_ends_the_call_with_its_own_error(flavour, clock, maker):
    """A file that was closed before the retry gives its ValueError, not a silent empty body."""
    file = memory()
    hook = flavour.hook(lambda failed: file.close())
    with ScriptedServer([answer(503), answer()]) as server:
        client = flavour.client(event_hooks={"retry": [hook]})
        outcome = await flavour.outcome(client.put, server.url, content=maker.content(file))
    assert isinstance(outcome, ValueError)
    assert server.bodies[0] == DATA
    assert not any(request.complete for request in server.requests[1:])


@pytest.mark.flavours("asyncio", "trio")
async def test_a_pipe_that_has_nothing_holds_no_call_up(flavour):
    """It is read in a worker thread, which nobody can interrupt: the call goes without it."""
    reading, writing = os.pipe()
    with open(reading, "rb") as file, ScriptedServer() as server:
        with open(writing, "wb"), anyio.move_on_after(0.3) as scope:
            await flavour.run(flavour.client().put(server.url, content=file))
        assert scope.cancelled_caught
    assert not any(request.complete for request in server.requests)


async def test_a_file_of_many_lines_is_read_in_large_pieces(flavour, maker):
    """Not line by line: in the async client each line would cost a change of threads."""

    class Counting(io.BytesIO):
        calls = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.calls += 1
            return super().read(size)

        def readline(self, size: int | None = -1, /) -> bytes:
            self.calls += 1
            return super().readline(size)

    file = Counting(b"a short line\n" * 10_000)
    with ScriptedServer() as server:
        await flavour.run(flavour.client().put(server.url, content=maker.content(file)))
    assert server.bodies == [b"a short line\n" * 10_000]
    assert file.calls < 10


async def test_an_object_with_only_read_is_refused_at_once(flavour):
    """As in httpx a body must be iterable (drop-in): TypeError, and nothing is sent."""
    with ScriptedServer() as server:
        outcome = await flavour.outcome(flavour.client().put, server.url, content=OnlyRead())
    assert isinstance(outcome, TypeError)
    assert server.connections == 0


# --- any chunking, any offset ---------------------------------------------------------------------


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    chunks=st.lists(st.binary(max_size=70_000), max_size=8),
    offset=st.integers(0, 80_000),
    form=st.sampled_from(["file", "re-iterable", "one-shot", "multipart"]),
    fault=st.sampled_from([answer(503), reset(), reset(read=1), answer(503, read="head")]),
)
async def test_any_chunking_and_start_offset(flavour, clock, maker, chunks, offset, form, fault):
    """Whatever its shape, a body that arrives is whole; 200 is the answer to the last one."""
    data = b"".join(chunks)
    file = io.BytesIO(data)
    file.seek(offset)
    options, expected = {
        "file": ({"content": maker.content(file)}, data[offset:]),
        "re-iterable": ({"content": maker.many(chunks)}, data),
        "one-shot": ({"content": maker.once(chunks)}, data),
        "multipart": ({"files": {"f": file}}, data),
    }[form]
    with ScriptedServer([fault]) as server:
        async with flavour.using(flavour.client(retry=RetryPolicy(max_attempts=2))) as client:
            outcome = await flavour.outcome(client.put, server.url, **options)
    for body in (request.body for request in server.requests if request.complete):
        assert expected in body if form == "multipart" else body == expected
    if form == "one-shot":
        assert len(server.requests) == 1
    else:
        assert outcome.status_code == 200
        assert server.requests[-1].complete


# --- under a deadline, in memory, in both clients -------------------------------------------------


@pytest.mark.parametrize("kind", [BIG_KINDS[1], BIG_KINDS[2]], ids=["file", "generator"])
async def test_a_body_under_a_deadline_is_sent_as_without_one(flavour, clock, maker, kind):
    """Each attempt looks at its own deadline; what can be sent again is sent again."""
    policy = RetryPolicy(backoff=lambda attempt: 40.0, total_timeout=200, attempt_timeout=30)
    with ScriptedServer([answer(503), answer(503), answer()]) as server:
        client = flavour.client(retry=policy)
        response = await flavour.run(client.put(server.url, **kind.options(maker)))
    assert response.status_code == (200 if kind.again else 503)
    assert set(server.bodies) == {BIG}
    assert len(server.bodies) == (3 if kind.again else 1)


class Signing(httpx.Auth):
    """Reads the body."""

    requires_request_body = True

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["X-Length"] = str(len(request.content))
        yield request


async def test_a_body_that_an_auth_flow_reads_can_be_sent_again(flavour, clock):
    """It is in memory then: for the next attempt, and for the caller's next call, as in httpx."""
    for timeouts in ({}, {"total_timeout": 60}):
        with ScriptedServer([answer(503), answer(), answer()]) as server:
            client = flavour.client(auth=Signing(), **timeouts)
            content = flavour.generator(split(DATA))
            request = client.build_request("PUT", server.url, content=content)
            for _ in range(2):
                assert (await flavour.run(client.send(request))).status_code == 200
                assert request.content == DATA
        assert set(server.bodies) == {DATA}
        assert {one.headers["x-length"] for one in server.requests} == {str(len(DATA))}


async def test_a_body_that_an_auth_flow_has_read_outlives_a_failure(flavour):
    """The caller may send the same request again after an exception, too."""
    with ScriptedServer([reset(), answer()]) as server:
        client = flavour.client(auth=Signing(), max_attempts=1)
        content = flavour.generator(split(DATA))
        request = client.build_request("PUT", server.url, content=content)
        assert isinstance(await flavour.outcome(client.send, request), httpx.TransportError)
        assert request.content == DATA
        assert (await flavour.run(client.send(request))).status_code == 200
    assert server.bodies[-1] == DATA


async def test_a_multipart_request_is_sent_by_either_client(flavour, tmp_path):
    """Built by the other one, as httpx allows; of files larger than a piece, and by an iterator."""
    import httpx_production

    makers = [httpx_production.ProductionHTTPClient, httpx_production.AsyncProductionHTTPClient]
    with ScriptedServer() as server:
        client = flavour.client()
        for kind in makers:
            for files in ({"f": memory(), "g": io.BytesIO(BIG)}, iter([("f", io.BytesIO(BIG))])):
                request = kind(trust_env=False).build_request("POST", server.url, files=files)
                assert (await flavour.run(client.send(request))).status_code == 200
    assert [body.count(BIG) for body in server.bodies] == [1] * 4
    assert all(request.complete for request in server.requests)
