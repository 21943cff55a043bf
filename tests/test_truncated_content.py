"""Compressed content that ends early although its transfer was complete is never taken for all.

A proxy or an application that dies in the middle of compressing sends this: the right
Content-Length, or the last chunk, and half a gzip stream. httpx returns half the text.

Subject: `_response_body.py`.
"""

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import ScriptedServer, Step, answer, chunked, message

from httpx_production import RetryPolicy

pytestmark = [
    pytest.mark.anyio,
    # trio's own warning about httpx's generators, when a body is not read to its end.
    pytest.mark.filterwarnings("ignore:Async generator"),
]

TEXT = b"\n".join(b"line %d of what the server has to say" % n for n in range(200))


def raw_deflate(data: bytes) -> bytes:
    """What some servers send as "deflate": without zlib's head and checksum."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def gzipped(data: bytes) -> bytes:
    """The same bytes each time."""
    return gzip.compress(data, mtime=0)


def both(data: bytes) -> bytes:
    """Two codings, one upon the other."""
    return gzipped(zlib.compress(data))


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzipped),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "brotli": ("br", brotli.compress),
    "deflate, gzip": ("deflate, gzip", both),
}
each_coding = pytest.mark.parametrize("coding", CODINGS)
#: How much of the content arrives: the last byte alone is missing from the last one.
CUTS = {"half": lambda data: data[: len(data) // 2], "all but a byte": lambda data: data[:-1]}
each_cut = pytest.mark.parametrize("cut", CUTS)


def encoded(coding: str, cut: str = "", **step: Any) -> Step:
    """A complete transfer of the text, or of what the cut leaves of it."""
    name, compress = CODINGS[coding]
    data = CUTS.get(cut, bytes)(compress(TEXT))
    return answer(200, data, {"Content-Encoding": name}, **step)


# --- content that ends early ------------------------------------------------------------------


@each_cut
async def test_plain_httpx_takes_it_for_all(flavour: Flavour, cut: str) -> None:
    """What these tests are about: a 200, no error, and not the text, or an unchecked one."""
    client = flavour.plain()
    for coding in CODINGS:
        with ScriptedServer([encoded(coding, cut)]) as server:
            response = await flavour.run(client.get(server.url))
        assert response.status_code == 200
        assert TEXT.startswith(response.content)
        assert cut == "all but a byte" or len(response.content) < len(TEXT)


@each_coding
@each_cut
async def test_a_get_is_retried(flavour: Flavour, clock: FakeClock, coding: str, cut: str) -> None:
    """The caller gets all of the text, after a RemoteProtocolError that is in the history."""
    with ScriptedServer([encoded(coding, cut), encoded(coding)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    (failed,) = response.extensions["retries"]
    assert response.content == TEXT
    assert isinstance(failed.outcome, httpx.RemoteProtocolError)
    assert len(server.requests) == 2


@each_coding
async def test_a_post_is_not(flavour: Flavour, clock: FakeClock, coding: str) -> None:
    """It gets the exception: it has been done once already."""
    with ScriptedServer([encoded(coding, "half")]) as server:
        exc = await flavour.outcome(flavour.client().post, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert str(exc) == "the compressed body ended before its end"
    assert exc.request.url == server.url
    assert len(server.requests) == 1


@pytest.mark.parametrize("cut", [1, 2, 9, 10, 11, 30])
async def test_however_little_arrived(flavour: Flavour, clock: FakeClock, cut: int) -> None:
    """In gzip's head, at its end, and after it."""
    head = answer(200, gzipped(TEXT)[:cut], {"Content-Encoding": "gzip"})
    with ScriptedServer([head, encoded("gzip")]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert (response.content, len(server.requests)) == (TEXT, 2)


async def test_always_truncated(flavour: Flavour, clock: FakeClock) -> None:
    """An exception in the end, never half the text."""
    with ScriptedServer([encoded("gzip", "half")] * 9) as server:
        exc = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert "after 5 attempts" in exc.__notes__[0]
    assert len(server.requests) == 5


async def test_without_a_length(flavour: Flavour, clock: FakeClock) -> None:
    """Chunked, with the last chunk; and by an orderly close, where no framing could tell."""
    half = CUTS["half"](gzipped(TEXT))
    headers = {"Content-Encoding": "gzip"}
    close = Step(send=(message(200, half, headers, length=False),), then="fin")
    with ScriptedServer([chunked(half, headers=headers), close, encoded("gzip")]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert (response.content, len(server.requests)) == (TEXT, 3)


async def test_the_connection_is_given_back(flavour: Flavour, clock: FakeClock) -> None:
    """It was well in itself, and may be used again."""
    client = flavour.client(max_connections=1, pool_timeout=0.5)
    with ScriptedServer([encoded("gzip", "half")] * 5) as server:
        await flavour.outcome(client.get, server.url)
        assert (await flavour.run(client.get(server.url))).content == b"ok"
    assert server.connections == 1


async def test_under_a_deadline(flavour: Flavour, clock: FakeClock) -> None:
    """With total_timeout, whose own wrapper watches the body as well."""
    client = flavour.client(total_timeout=60)
    with ScriptedServer([encoded("gzip", "half"), encoded("gzip")]) as server:
        response = await flavour.run(client.get(server.url))
    assert (response.content, len(server.requests)) == (TEXT, 2)


async def test_a_failed_response_may_be_truncated(flavour: Flavour, clock: FakeClock) -> None:
    """Its status and its Retry-After count, though its body can't be looked at."""
    headers = {"Content-Encoding": "gzip", "Retry-After": "7"}
    with ScriptedServer([answer(503, gzipped(TEXT)[:50], headers)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    (failed,) = response.extensions["retries"]
    assert (failed.reason, failed.delay) == ("503 Service Unavailable", 7.0)
    assert server.connections == 1


# --- streams ----------------------------------------------------------------------------------


async def streamed(flavour: Flavour, client: Any, url: str, how: str, got: list[Any]) -> Any:
    """Read a stream in one of httpx's ways; `got` keeps the pieces."""
    async with flavour.using(client.stream("GET", url)) as response:
        if how == "read":
            got.append(await flavour.read(response))
        elif flavour.sync:
            got.extend(getattr(response, f"iter_{how}")())
        else:
            async for piece in getattr(response, f"aiter_{how}")():
                got.append(piece)
        return response


WAYS = ("bytes", "text", "lines", "read")


@each_coding
@each_cut
async def test_a_stream_raises_at_its_end(
    flavour: Flavour, clock: FakeClock, coding: str, cut: str
) -> None:
    """After all that could be had; it is too late for a retry."""
    client = flavour.client()
    for how in WAYS:
        got: list[Any] = []
        with ScriptedServer([encoded(coding, cut)]) as server:
            exc = await flavour.outcome(streamed, flavour, client, server.url, how, got)
        assert isinstance(exc, httpx.RemoteProtocolError)
        assert len(server.requests) == 1
        if how in ("bytes", "text") and coding != "brotli":  # gives nothing of a block cut
            pieces = [one.encode() if isinstance(one, str) else one for one in got]
            assert b"".join(pieces)
            assert TEXT.startswith(b"".join(pieces))


@each_coding
async def test_a_complete_stream_is_complete(
    flavour: Flavour, clock: FakeClock, coding: str
) -> None:
    """In many pieces, too."""
    (data,) = encoded(coding).send
    step = Step(send=tuple(data[i : i + 100] for i in range(0, len(data), 100)))
    client = flavour.client()
    for how in WAYS:
        got: list[Any] = []
        with ScriptedServer([step]) as server:
            await streamed(flavour, client, server.url, how, got)
        lines = [one.encode() if isinstance(one, str) else one for one in got]
        assert (b"\n" if how == "lines" else b"").join(lines) == TEXT


@each_cut
async def test_raw_bytes_are_not_looked_into(flavour: Flavour, clock: FakeClock, cut: str) -> None:
    """iter_raw() gives what was sent: who wants that decompresses himself."""
    got: list[bytes] = []
    with ScriptedServer([encoded("gzip", cut)]) as server:
        await streamed(flavour, flavour.client(), server.url, "raw", got)
    assert b"".join(got) == CUTS[cut](gzipped(TEXT))


async def test_a_stream_that_is_left_early(flavour: Flavour, clock: FakeClock) -> None:
    """Nobody asked for the end."""
    client = flavour.client()
    with ScriptedServer([encoded("gzip", "half")]) as server:
        async with flavour.using(client.stream("GET", server.url)) as response:
            async for _ in flavour.chunks(response):
                break
    assert response.is_closed


# --- content that is complete -----------------------------------------------------------------


@each_coding
async def test_complete_content_is_complete(
    flavour: Flavour, clock: FakeClock, coding: str
) -> None:
    """One attempt."""
    with ScriptedServer([encoded(coding)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert (response.content, response.extensions["retries"]) == (TEXT, ())
    assert len(server.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize("case", ["HEAD", "204", "304", "empty", "empty chunked"])
async def test_no_body_is_complete(
    flavour: Flavour, clock: FakeClock, stream: bool, case: str
) -> None:
    """HEAD, 204 and 304 name the coding of a body that they don't have; so do some empty 200s."""
    client = flavour.client()
    for name, _ in CODINGS.values():
        headers = {"Content-Encoding": name}
        of_99 = message(200, b"", {**headers, "Content-Length": "99"}, length=False)
        step = {
            "HEAD": Step(send=(of_99,)),
            "204": answer(204, b"", headers),
            "304": answer(304, b"", headers),
            "empty": answer(200, b"", headers),
            "empty chunked": chunked(headers=headers),
        }[case]
        with ScriptedServer([step]) as server:
            request = client.build_request("HEAD" if case == "HEAD" else "GET", server.url)
            response = await flavour.run(client.send(request, stream=stream))
            assert await flavour.read(response) == b""
            await flavour.close(response)
        assert response.extensions["retries"] == ()
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "data",
    [
        gzipped(TEXT) + bytes(10),
        gzipped(TEXT) + b"rest",
        gzipped(b""),
    ],
    ids=["padded", "trailing", "nothing"],
)
async def test_what_httpx_makes_of_odd_gzip(
    flavour: Flavour, clock: FakeClock, data: bytes
) -> None:
    """Padding: complete, and the same content as without us."""
    step = answer(200, data, {"Content-Encoding": "gzip"})
    with ScriptedServer([step, step]) as server:
        theirs = await flavour.run(flavour.plain().get(server.url))
        ours = await flavour.run(flavour.client().get(server.url))
    assert ours.content == theirs.content
    assert ours.extensions["retries"] == ()
    assert len(server.requests) == 2


async def test_a_second_gzip_member_is_not_dropped_silently(
    flavour: Flavour, clock: FakeClock
) -> None:
    """httpx decodes the first member and returns that as if it were all; repeating is no help."""
    step = answer(200, gzipped(TEXT) + gzipped(TEXT), {"Content-Encoding": "gzip"})
    with ScriptedServer([step, step]) as server:
        assert (await flavour.run(flavour.plain().get(server.url))).content == TEXT
        outcome = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(outcome, httpx.DecodingError)
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["identity", "aws-chunked", "", "identity, identity"])
async def test_other_codings_are_not_looked_into(
    flavour: Flavour, clock: FakeClock, name: str
) -> None:
    """What httpx doesn't decompress is as complete as its transfer."""
    step = answer(200, gzipped(TEXT)[:50], {"Content-Encoding": name})
    with ScriptedServer([step, step]) as server:
        client = flavour.client()
        response = await flavour.run(client.get(server.url))
        assert len(response.content) == 50
        got: list[bytes] = []
        await streamed(flavour, client, server.url, "bytes", got)
        assert len(b"".join(got)) == 50
    assert len(server.requests) == 2


@each_coding
async def test_corrupt_content_is_httpx_own_error(
    flavour: Flavour, clock: FakeClock, coding: str
) -> None:
    """DecodingError, which isn't in the table: the same bytes may well come again."""
    name, _ = CODINGS[coding]
    step = answer(200, b"\xff\xfe no such content" * 9, {"Content-Encoding": name})
    with ScriptedServer([step]) as server:
        exc = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(exc, httpx.DecodingError)
    assert len(server.requests) == 1


async def test_a_policy_may_let_it_pass(flavour: Flavour, clock: FakeClock) -> None:
    """One attempt still means: complete, or an exception."""
    client = flavour.client(retry=RetryPolicy(max_attempts=1))
    with ScriptedServer([encoded("gzip", "half")]) as server:
        exc = await flavour.outcome(client.get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert not hasattr(exc, "__notes__")
