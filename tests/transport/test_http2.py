"""HTTP/2: a real server, and a scripted one that does what deploys, overload and bugs do.

Subject: `transport/_http2.py`, `transport/_http2_connections.py`.
"""

import contextlib
import socket
import struct
import threading
import time
from typing import Any

import anyio
import httpcore
import httpx
import pytest
from conftest import Flavour
from h2_peer import (
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    H2Peer,
    Peer,
    serve,
)
from helpers import ASYNC, PROMPT, Callers, finished, one_attempt, one_connection, until, within
from hyperframe.frame import DataFrame, PingFrame, RstStreamFrame, WindowUpdateFrame
from servers import Http2Server, ScriptedServer, answer, client_context

from httpx_production.transport import (
    AsyncPooledTransport,
    PooledTransport,
    _http2,
    _http2_protocol,
    _sockets,
)
from httpx_production.transport._http2_connections import AsyncHTTP2Connection, SyncHTTP2Connection

pytestmark = [pytest.mark.anyio, one_connection]


# --- the ordinary -----------------------------------------------------------------------------


async def test_every_answer_belongs_to_its_request(flavour: Flavour) -> None:
    """Concurrent requests to a real server are answered, each with its own answer."""
    with Http2Server() as server:
        async with flavour.using(one_attempt(flavour)) as client:
            urls = [f"{server.url}/{number}" for number in range(120)]
            answers = await flavour.gather(lambda url=url: client.get(url) for url in urls)
    assert [answer.text for answer in answers] == [f"/{number}" for number in range(120)]
    assert {answer.http_version for answer in answers} == {"HTTP/2"}


@ASYNC
async def test_waiting_callers_part_when_the_server_speaks_http1(flavour: Flavour) -> None:
    """Once the first handshake says HTTP/1.1, each waiting caller gets its own connection."""
    with ScriptedServer(lambda _: answer(delay=0.1), tls=True) as server:
        client = one_attempt(flavour)
        for _ in range(2):
            answers = await flavour.gather(lambda: client.get(server.url) for _ in range(5))
            assert [response.http_version for response in answers] == ["HTTP/1.1"] * 5
            assert server.connections == 5


async def test_an_upload_larger_than_the_window_arrives(flavour: Flavour) -> None:
    """A body goes out as the server opens its windows."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        body = bytes(range(256)) * 2000
        response = await flavour.run(client.post(server.url, content=body))
        assert response.status_code == 200
        assert server.peers[0].bodies[1] == body


async def test_early_hints_are_passed_over(flavour: Flavour) -> None:
    """103 before the answer, and trailers after it, change nothing."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream, ("link", "</style.css>; rel=preload"), status=103))
        peer.send(peer.head(stream, ("content-length", "4")), peer.data(stream, b"body"))
        peer.send(peer.head(stream, ("x-checksum", "1"), status=None, end=True))
        peer.rest()

    with H2Peer(script) as server:
        response = await flavour.run(one_attempt(flavour).get(server.url))
        assert (response.status_code, response.content) == (200, b"body")


async def test_head_and_bodiless_answers_are_complete(flavour: Flavour) -> None:
    """A content-length without a body is right after HEAD, and with 304."""

    def script(peer: Peer) -> None:
        for status in (200, 304):
            peer.send(peer.head(peer.request(), ("content-length", "9"), status=status, end=True))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        assert (await flavour.run(client.head(server.url))).content == b""
        assert (await flavour.run(client.get(server.url))).status_code == 304


async def test_a_frame_that_comes_slowly_is_waited_for(flavour: Flavour) -> None:
    """The whole of it takes longer than read_timeout, no part of it does."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        frame = peer.data(stream, bytes(7000), end=True).serialize()
        peer.send(peer.head(stream))
        for start in range(0, len(frame), 1000):
            peer.raw(frame[start : start + 1000])
            time.sleep(0.25)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=1.2)
        with within(8.0, at_least=1.5):
            assert (await flavour.run(client.get(server.url))).content == bytes(7000)


@pytest.mark.parametrize("sign", ["103", "PING"])
async def test_a_server_that_shows_that_it_is_there_is_waited_for(
    flavour: Flavour, sign: str
) -> None:
    """By an interim response, or a PING: `read_timeout` begins anew."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        ping = PingFrame(0, opaque_data=b"12345678")
        for _ in range(4):
            time.sleep(0.5)
            peer.send(peer.head(stream, status=103) if sign == "103" else ping)
        time.sleep(0.5)
        peer.echo(stream)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=1.5)
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"


# --- GOAWAY -----------------------------------------------------------------------------------


async def test_a_stream_that_goaway_includes_is_answered(flavour: Flavour) -> None:
    """A graceful deploy: GOAWAY first, then the answer to what was in flight."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.goaway(stream)
        peer.echo(stream)
        peer.rest()

    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        assert (await flavour.run(client.post(f"{server.url}/old"))).text == "/old"
        assert client.pool_stats().connections == 0
        assert (await flavour.run(client.post(f"{server.url}/new"))).text == "/new"
        assert server.requests == [("POST", "/old"), ("POST", "/new")]
        assert len(server.peers) == 2


# --- resets -----------------------------------------------------------------------------------


async def test_a_reset_is_an_error_and_a_get_is_retried(flavour: Flavour, clock: Any) -> None:
    """INTERNAL_ERROR before the answer and in its body: never a short body."""

    def script(peer: Peer) -> None:
        peer.reset(peer.request(), INTERNAL_ERROR)
        stream = peer.request()
        peer.send(peer.head(stream, ("content-length", "10")), peer.data(stream, b"half"))
        peer.reset(stream, INTERNAL_ERROR)
        serve(peer)

    with H2Peer(script) as server:
        client = flavour.client(verify=client_context())
        response = await flavour.run(client.get(f"{server.url}/x"))
        assert response.text == "/x"
        reasons = [failed.reason for failed in response.extensions["retries"]]
        assert reasons == ["RemoteProtocolError"] * 2


async def test_what_came_before_a_reset_can_be_read(flavour: Flavour) -> None:
    """Status and body so far, and then the error, though all of it has come at once."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        reset = RstStreamFrame(stream, error_code=INTERNAL_ERROR)
        peer.send(peer.head(stream), peer.data(stream, b"half"), reset)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert response.status_code == 200
            chunks = flavour.chunks(response)
            assert await anext(chunks) == b"half"
            with pytest.raises(httpx.RemoteProtocolError, match="INTERNAL_ERROR"):
                await anext(chunks)


@pytest.mark.filterwarnings("error:Async generator")  # trio tells of a body that is not closed
@pytest.mark.parametrize("end", [True, False])
async def test_no_error_after_a_complete_answer_is_no_error(flavour: Flavour, end: bool) -> None:
    """A server that answers before it has read the upload resets it with NO_ERROR.

    node ends with it what it has sent in full, in place of END_STREAM.
    """

    def script(peer: Peer) -> None:
        stream = peer.request()
        head = peer.head(stream, ("content-length", "9"), status=413)
        peer.send(head, peer.data(stream, b"too large", end=end))
        peer.reset(stream, NO_ERROR)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        response = await flavour.run(client.post(server.url, content=b"x" * 300_000))
        assert (response.status_code, response.content) == (413, b"too large")


@pytest.mark.parametrize(
    "ending", ["data", "nothing", "headers", "trailers", "too much", "no error"]
)
async def test_a_body_of_the_wrong_length_is_an_error(flavour: Flavour, ending: str) -> None:
    """END_STREAM before content-length, wherever it stands; the connection goes on."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        length = ("content-length", "10")
        peer.send(peer.head(stream, length, end=ending == "headers"))
        if ending == "data":
            peer.send(peer.data(stream, b"half", end=True))
        elif ending == "nothing":
            peer.send(peer.data(stream, b"", end=True))
        elif ending == "trailers":
            peer.send(peer.data(stream, b"half"), peer.head(stream, status=None, end=True))
        elif ending == "too much":
            peer.send(peer.data(stream, b"half" * 3, end=True))
        elif ending == "no error":
            peer.send(peer.data(stream, b"half"))
            peer.reset(stream, NO_ERROR)
        serve(peer)

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        with pytest.raises(httpx.RemoteProtocolError):
            await flavour.run(client.get(server.url))
        assert (await flavour.run(client.get(f"{server.url}/next"))).text == "/next"
        if not flavour.sync:  # there a connection with half an answer on it is closed
            assert len(server.peers) == 1


@pytest.mark.parametrize(
    "what",
    [
        b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x",  # DATA on stream 0
        b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff",  # not HPACK
        b"\x00\x00\x00\x07\x00\x00\x00\x00\x00",  # a GOAWAY without its fields
    ],
)
async def test_garbage_is_a_protocol_error(flavour: Flavour, what: bytes) -> None:
    """Whatever a server sends, what comes out is httpx's, and the slot is free."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.raw(what)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, max_connections=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await flavour.run(client.get(server.url))
        assert client.pool_stats().connections == 0


async def test_a_reset_connection_is_a_read_error(flavour: Flavour) -> None:
    """With what the system says of it: not the server's protocol is to blame, but the network."""

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        peer.request()
        peer._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(peer._sock)  # RST, and not TLS's goodbye

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            await flavour.run(client.get(server.url))


async def test_a_response_without_a_status_is_a_protocol_error(flavour: Flavour) -> None:
    """httpcore takes it for a 200."""

    def script(peer: Peer) -> None:
        peer.send(peer.head(peer.request(), ("server", "odd"), status=None, end=True))
        peer.rest()

    with H2Peer(script) as server, pytest.raises(httpx.RemoteProtocolError, match="status"):
        await flavour.run(one_attempt(flavour).get(server.url))


async def test_an_error_of_the_state_machine_is_httpx_s(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """encode/httpx#3072: no KeyError, RuntimeError or exception of h2's gets out."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))

        def broken(*args: Any) -> None:
            raise KeyError(1)

        monkeypatch.setattr(_http2_protocol.TolerantH2, "receive_data", broken)
        with pytest.raises(httpx.RemoteProtocolError, match="KeyError"):
            await flavour.run(client.get(server.url))
        monkeypatch.undo()
        monkeypatch.setattr(_http2_protocol.TolerantH2, "send_data", broken)
        with pytest.raises(httpx.LocalProtocolError):
            await flavour.run(client.post(server.url, content=b"x"))


async def test_stream_numbers_run_out(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 2**30 requests the next one goes to a new connection."""
    monkeypatch.setattr(_http2_protocol.TolerantH2, "HIGHEST_ALLOWED_STREAM_ID", 4)
    with H2Peer() as server:
        client = one_attempt(flavour)
        for number in range(5):
            assert (await flavour.run(client.post(f"{server.url}/{number}"))).text == f"/{number}"
        assert [len(peer.paths) for peer in server.peers] == [2, 2, 1]


@ASYNC
@pytest.mark.time_limit(5)
async def test_stream_numbers_run_out_while_one_is_in_use(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request goes elsewhere at once, and the one that is under way is answered."""
    monkeypatch.setattr(_http2_protocol.TolerantH2, "HIGHEST_ALLOWED_STREAM_ID", 2)

    def script(peer: Peer) -> None:
        stream = peer.request()
        assert elsewhere.wait(5)
        peer.echo(stream)
        peer.rest()

    elsewhere = threading.Event()
    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            first = callers.start(client.get, f"{server.url}/first")
            await until(lambda: server.requests)
            assert (await client.get(f"{server.url}/next")).text == "/next"
            elsewhere.set()
            (answer,) = await finished(first)
        assert getattr(answer, "text", answer) == "/first"
        assert len(server.peers) == 2


async def test_a_connection_describes_itself(flavour: Flavour) -> None:
    """In httpcore's words, for its logs and for `pool.connections`."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        (connection,) = client._transport._pool.connections
        assert connection.info() == f"'{server.url}', HTTP/2, IDLE, Request Count: 1"
        assert "IDLE" in repr(connection._connection)
        origin = httpcore.URL(server.url).origin
        assert connection._connection.can_handle_request(origin)
        await flavour.close(client)
        assert "CLOSED" in connection.info()


@pytest.mark.parametrize("settings", [None, {"MAX_CONCURRENT_STREAMS": 2}])
async def test_a_connection_says_when_another_request_may_begin(
    flavour: Flavour, settings: dict[str, int] | None
) -> None:
    """As many at a time as SETTINGS let; one in the sync client, or until SETTINGS are here."""
    most = 1 if flavour.sync or settings is None else 2
    with H2Peer(settings=settings) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        (connection,) = client._transport._pool.connections
        async with contextlib.AsyncExitStack() as stack:
            opened: list[Any] = []
            while len(opened) < most:
                assert connection.is_available()
                streaming = flavour.using(client.stream("GET", server.url))
                opened.append(await stack.enter_async_context(streaming))
            assert not connection.is_available()
            for response in opened:
                await flavour.read(response)
            assert connection.is_available()
        assert len(server.peers) == 1


# --- neighbours -------------------------------------------------------------------------------


@ASYNC
async def test_a_dropped_connection_fails_all_its_streams_at_once(flavour: Flavour) -> None:
    """Not one after the other, and none waits for its timeout."""

    def script(peer: Peer) -> None:
        for _ in range(40):
            peer.request()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=60.0)  # beyond the test's own limit
        outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(40))
        assert {type(outcome) for outcome in outcomes} <= {
            httpx.RemoteProtocolError,
            httpx.ReadError,
        }
        assert client.pool_stats().connections == 0


@ASYNC
async def test_who_has_his_answer_does_not_wait_for_others(flavour: Flavour) -> None:
    """Whoever reads for all wakes exactly those for whom something came."""

    def script(peer: Peer) -> None:
        streams = [peer.request() for _ in range(3)]
        for stream in reversed(streams):
            peer.echo(stream)
            peer.read()  # the next request of the one who was answered: he did not wait
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=2.0)

        async def twice(path: str) -> None:
            assert (await client.get(server.url + path)).text == path
            with contextlib.suppress(httpx.ReadTimeout):
                await client.get(server.url + path, timeout=0.1)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(twice, f"/{number}")


@ASYNC
async def test_as_many_streams_as_the_server_takes(flavour: Flavour) -> None:
    """No more are begun than SETTINGS allow; in a full pool the rest wait, in order."""
    together: list[int] = []

    def script(peer: Peer) -> None:
        while True:
            streams = [peer.request()]
            with contextlib.suppress(TimeoutError):
                while True:
                    streams.append(peer.request(0.02))
            together.append(len(streams))
            for stream in streams:
                peer.echo(stream)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 3}) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=10.0)
        urls = [f"{server.url}/{number}" for number in range(30)]
        answers = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert [answer.text for answer in answers] == [f"/{number}" for number in range(30)]
        assert max(together) == 3
        assert len(server.peers) == 1


@ASYNC
async def test_requests_wait_for_the_server_s_settings(flavour: Flavour) -> None:
    """Until they are here a connection carries one request; its upload need not wait for them."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        assert peer.body(stream) == (b"a" if peer.methods[stream] == "POST" else b"")
        assert len(peer.paths) == 1
        peer.settings()
        peer.echo(stream)
        serve(peer)

    with H2Peer(script, settings=None) as server:
        client = one_attempt(flavour, max_connections=1)
        answers = await flavour.gather(
            [
                lambda: client.post(f"{server.url}/up", content=flavour.generator([b"a"])),
                *(lambda: client.get(f"{server.url}/get") for _ in range(3)),
            ]
        )
        assert [answer.text for answer in answers] == ["/up", "/get", "/get", "/get"]


# --- windows ----------------------------------------------------------------------------------


async def test_an_upload_that_the_server_does_not_take_times_out(flavour: Flavour) -> None:
    """Waiting for the server's window is writing: `write_timeout` bounds it."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.rest()

    with H2Peer(script, settings={"INITIAL_WINDOW_SIZE": 0}) as server:
        client = one_attempt(flavour, write_timeout=0.2)
        started = time.monotonic()
        with pytest.raises(httpx.WriteTimeout):
            await flavour.run(client.post(server.url, content=b"x" * 100_000))
        assert time.monotonic() - started < 4  # and not read_timeout's 8


async def test_a_body_that_the_server_does_not_read_has_one_write_timeout(flavour: Flavour) -> None:
    """That the socket takes a little more when the time is up gives it no other one."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        hold.wait(20)

    hold = threading.Event()
    with H2Peer(script, settings={"INITIAL_WINDOW_SIZE": 2**30}, tls=False) as server:
        client = flavour.client(http1=False, write_timeout=2.0, read_timeout=9, max_attempts=1)
        started = time.monotonic()
        with pytest.raises(httpx.WriteTimeout):
            await flavour.run(client.post(server.url, content=b"x" * 2**26))
        hold.set()
        assert 1.9 < time.monotonic() - started < 3.7


async def test_a_long_response_keeps_its_stream_s_window_open(flavour: Flavour) -> None:
    """What was read is acknowledged, so that a response may be longer than the window."""
    size = 8 * _http2_protocol.STREAM_WINDOW

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream))
        peer.deliver(stream, size)
        peer.rest()

    with H2Peer(script) as server:
        response = await flavour.run(one_attempt(flavour).get(server.url))
        assert len(response.content) == size


async def test_what_is_taken_is_acknowledged_at_once(flavour: Flavour) -> None:
    """The server goes on while the reader is busy with that, and has not asked for more."""
    acknowledged = threading.Event()

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream))
        for _ in range(2):  # a quarter of the window, then it is worth while
            peer.push(stream, _http2_protocol.STREAM_WINDOW // 8)
        peer.until(WindowUpdateFrame, stream)
        acknowledged.set()
        peer.send(peer.data(stream, b"", end=True))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with flavour.using(client.stream("GET", server.url)) as response:
            chunks, left = flavour.chunks(response), _http2_protocol.STREAM_WINDOW // 4
            while left:
                left -= len(await anext(chunks))
            await until(acknowledged.is_set, seconds=3)
            assert [chunk async for chunk in chunks] == []


async def test_a_window_of_one_byte_is_used(flavour: Flavour) -> None:
    """A server that opens no more at a time gets its upload nevertheless."""
    with H2Peer(settings={"INITIAL_WINDOW_SIZE": 1}) as server:
        client = one_attempt(flavour, write_timeout=2.0)
        await flavour.run(client.get(server.url))  # after which its SETTINGS are known
        await flavour.run(client.post(server.url, content=b"abc"))
        assert server.peers[0].bodies[3] == b"abc"


@pytest.mark.filterwarnings("ignore:Async generator")  # the body itself, which trio tells of
@pytest.mark.parametrize("tls", [True, False])
async def test_a_body_is_drawn_as_fast_as_the_socket_takes_it(flavour: Flavour, tls: bool) -> None:
    """All windows are wide open, and the server doesn't read: most stays in the generator."""
    drawn: list[int] = []

    def pieces() -> Any:
        for number in range(1000):
            drawn.append(number)
            yield bytes(2**16)

    def script(peer: Peer) -> None:
        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        peer.answer(peer.request())
        server.stopping.wait(10)

    with H2Peer(script, settings={"INITIAL_WINDOW_SIZE": 2**30}, tls=tls) as server:
        client = one_attempt(flavour, http1=tls, write_timeout=0.5)
        await flavour.run(client.get(server.url))
        with within(0.5 + 2 * PROMPT), pytest.raises(httpx.WriteTimeout):
            await flavour.run(client.post(server.url, content=flavour.generator(pieces())))
        assert len(drawn) < 300  # the kernel's buffers, of both sides


@ASYNC
async def test_a_body_that_is_no_generator_is_sent(flavour: Flavour) -> None:
    """Any async iterable, as httpx takes them."""

    class Pieces(httpx.AsyncByteStream):
        def __init__(self) -> None:
            self.left = [b"c", b"b", b"a"]

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    with H2Peer() as server:
        headers = {"content-length": "3"}
        request = httpx.Request("POST", server.url, headers=headers, stream=Pieces())
        transport = AsyncPooledTransport(client_context(), http2=True)
        client = flavour.plain(transport=transport)
        assert (await client.send(request)).status_code == 200
        assert server.peers[0].bodies[1] == b"abc"


# --- connections that are no longer any good --------------------------------------------------


async def test_a_silent_connection_gets_no_more_requests(flavour: Flavour) -> None:
    """After a timeout without a byte from the server, the next attempt has a new connection."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.rest()

    with H2Peer(script, serve) as server:
        client = one_attempt(flavour, read_timeout=0.2)
        with pytest.raises(httpx.ReadTimeout):
            await flavour.run(client.get(server.url))
        assert (await flavour.run(client.get(f"{server.url}/next"))).text == "/next"
        assert len(server.peers) == 2


@pytest.mark.parametrize(
    ("pings", "pieces", "closes"),
    [
        (0, _http2.MOST_PIECES, True),
        (10, _http2.MOST_PIECES, True),
        (_http2.MOST_PIECES + 10, _http2.MOST_PIECES, True),
        (10, 5, False),  # it says more than is read: its leave may come after that
    ],
)
async def test_an_idle_connection_that_was_closed_is_not_used(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, pings: int, pieces: int, closes: bool
) -> None:
    """A POST isn't lost to the server's FIN, whatever it has said before."""
    monkeypatch.setattr(_http2, "MOST_PIECES", pieces)

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        for _ in range(pings):
            peer.send(PingFrame(0, opaque_data=b"12345678"))  # each in a TLS record of its own
        if closes:
            peer.end()
        said.set()
        peer.rest()

    said = threading.Event()
    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        assert said.wait(5)
        await anyio.sleep(0.05)
        assert (await flavour.run(client.post(f"{server.url}/next"))).text == "/next"
        assert len(server.peers) == 2


@pytest.mark.parametrize("pings", [1, 200])
async def test_pings_on_an_idle_connection_are_no_reason_to_leave_it(
    flavour: Flavour, pings: int
) -> None:
    """What arrived meanwhile is taken in, and answered, and the connection used again."""

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        for _ in range(pings):
            peer.send(PingFrame(0, opaque_data=b"12345678"))
        sent.set()
        assert peer.until(PingFrame).opaque_data == b"12345678"
        serve(peer)

    sent = threading.Event()
    with H2Peer(script) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        assert sent.wait(5)
        await anyio.sleep(0.05)
        assert (await flavour.run(client.get(f"{server.url}/next"))).text == "/next"
        assert len(server.peers) == 1


async def test_a_kept_connection_is_looked_at_once(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a request, for a GOAWAY; a late answer, too, is only asked for when it is here."""
    taken: list[bytes | None] = []
    receive = _sockets.SocketIO.receive

    def script(peer: Peer) -> None:
        for _ in range(2):
            peer.answer(peer.request())
        stream = peer.request()
        server.stopping.wait(0.2)
        peer.answer(stream)
        peer.rest()

    def spy(io: Any, size: int) -> bytes | None:
        taken.append(receive(io, size))
        return taken[-1]

    with H2Peer(script) as server:
        async with flavour.using(one_attempt(flavour)) as client:
            for _ in range(2):  # after which both sides' SETTINGS have been acknowledged
                await flavour.run(client.get(server.url))
            monkeypatch.setattr(_sockets.SocketIO, "receive", spy)
            assert (await flavour.run(client.get(server.url))).status_code == 200
    assert taken.count(None) == 1


async def test_an_idle_connection_expires(flavour: Flavour) -> None:
    """`keepalive_expiry` holds for HTTP/2 too."""
    with H2Peer() as server:
        client = one_attempt(flavour, keepalive_expiry=0.05)
        await flavour.run(client.get(server.url))
        await anyio.sleep(0.1)
        await flavour.run(client.get(server.url))
        assert len(server.peers) == 2


# --- closed, or full, at the wrong moment ------------------------------------------------------


async def test_a_response_is_read_after_the_pool_was_closed(flavour: Flavour) -> None:
    """Its connection is gone: an exception, at once, instead of half a body or a wait."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream, ("content-length", "10")), peer.data(stream, b"half"))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with flavour.using(client.stream("GET", server.url)) as response:
            await flavour.close(client)
            with within(PROMPT), pytest.raises(httpx.TransportError):
                await flavour.read(response)
        assert client.pool_stats().connections == 0


@pytest.mark.parametrize("upload", [False, True])
async def test_a_connection_is_closed_just_before_it_is_waited_for(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, upload: bool
) -> None:
    """By another thread, in the one moment that counts: an exception of httpx's, at once."""
    wait = _sockets.SocketIO.wait

    async def close_and_wait(io: Any, timeout: Any, *, write: bool = False) -> bool:
        if write == upload and began.is_set():
            io.close()
        return await wait(io, timeout, write=write)

    def script(peer: Peer) -> None:
        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        peer.answer(peer.request())
        began.set()
        server.stopping.wait(10)  # reads no more

    began = threading.Event()
    with H2Peer(script, settings={"INITIAL_WINDOW_SIZE": 2**30}) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        await until(began.is_set)
        monkeypatch.setattr(_sockets.SocketIO, "wait", close_and_wait)
        content = bytes(30_000_000) if upload else b""
        with within(PROMPT), pytest.raises(httpx.TransportError):
            await flavour.run(client.post(server.url, content=content))
        monkeypatch.undo()
        assert client.pool_stats().in_use == 0


async def test_a_server_that_talks_and_does_not_listen(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PINGs want answers that it doesn't read: what waits to be sent is bounded."""
    monkeypatch.setattr(_http2, "MOST_UNSENT", 2**15)

    def script(peer: Peer) -> None:
        peer._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.request()
        pings = PingFrame(0, opaque_data=b"12345678").serialize() * 1000
        peer._sock.settimeout(0.3)
        with contextlib.suppress(OSError):
            for _ in range(60):
                peer._sock.sendall(pings)
        server.stopping.wait(10)

    kind = SyncHTTP2Connection if flavour.sync else AsyncHTTP2Connection
    pooled = PooledTransport if flavour.sync else AsyncPooledTransport
    small = (socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with H2Peer(script) as server:
        transport: Any = pooled(client_context(), http2=True, socket_options=[small])
        client = flavour.plain(transport=transport, timeout=1.0)
        async with Callers(flavour) as callers:
            caller = callers.start(client.get, server.url)
            await until(lambda: transport._pool.connections and server.peers)
            unsent = 0
            while not caller.done.is_set():
                await anyio.sleep(0.01)
                for one in transport._pool.connections:
                    if isinstance(one._connection, kind):
                        unsent = max(unsent, len(one._connection._unsent))
        assert isinstance(caller.outcome, httpx.ReadTimeout)
        assert caller.took < 1.0 + PROMPT
        assert 2**15 <= unsent <= 2**15 + _http2.READ_SIZE


async def test_an_upload_s_end_is_sent_before_its_answer_is_read(flavour: Flavour) -> None:
    """Headers came early, the caller has them and asks for no more: the server goes on."""
    answering, ended = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.request())  # and whatever comes with a connection's first one
        stream = peer.request()
        peer.until(DataFrame, stream)
        peer.send(peer.head(stream))
        answering.set()
        while "END_STREAM" not in peer.until(DataFrame, stream).flags:
            pass
        ended.set()
        peer.send(peer.data(stream, b"done", end=True))
        peer.rest()

    def pieces() -> Any:
        yield b"a"
        assert answering.wait(5)  # in the event loop: the next look finds the headers
        yield b"b"

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        upload = client.stream("POST", server.url, content=flavour.generator(pieces()))
        async with flavour.using(upload) as response:
            await until(ended.is_set, seconds=3)
            assert await flavour.read(response) == b"done"


@ASYNC
async def test_an_upload_that_ends_after_its_answer(flavour: Flavour) -> None:
    """The answer came while the body had nothing to give: it is returned, no end is sent."""
    answered = anyio.Event()

    def script(peer: Peer) -> None:
        neighbour, upload = peer.request(), peer.request()
        peer.until(DataFrame, upload)
        peer.send(peer.head(upload, status=413, end=True))
        peer.send(peer.head(neighbour), peer.data(neighbour, b"a", end=True))
        assert peer.until(RstStreamFrame, upload).error_code == CANCEL
        serve(peer)

    async def body() -> Any:
        yield b"a"
        await answered.wait()

    async def get() -> None:
        await client.get(server.url)
        answered.set()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            reader = callers.start(get)
            await until(lambda: server.requests)
            response = await client.post(f"{server.url}/up", content=body())
            await finished(reader)
        assert response.status_code == 413
        assert (await client.get(f"{server.url}/next")).text == "/next"
        assert len(server.peers) == 1


@pytest.mark.parametrize("timeout", [8.0, None])
async def test_answers_that_wait_are_sent_while_another_one_is_awaited(
    flavour: Flavour, timeout: float | None
) -> None:
    """To PINGs of a server that does not read for a moment: then it gets them, without its asking.

    The request waits for its response all the while, and gets it.
    """
    count = 3000

    def script(peer: Peer) -> None:
        peer._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream = peer.request()
        peer._sock.sendall(PingFrame(0, opaque_data=b"12345678").serialize() * count)
        server.stopping.wait(0.3)
        for _ in range(count):
            peer.until(PingFrame)
        peer.echo(stream)
        peer.rest()

    pooled = PooledTransport if flavour.sync else AsyncPooledTransport
    small = (socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with H2Peer(script) as server:
        transport: Any = pooled(client_context(), http2=True, socket_options=[small])
        client = flavour.plain(transport=transport, timeout=timeout)
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
