"""HTTP/2: a real server, and a scripted one that does what deploys, overload and bugs do."""

import contextlib
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
    REFUSED_STREAM,
    H2Peer,
    Peer,
    serve,
)
from hyperframe.frame import DataFrame, RstStreamFrame, WindowUpdateFrame
from servers import Http2Server, ScriptedServer, answer, client_context

from httpx_production._pool import http2 as _http2

pytestmark = pytest.mark.anyio
ASYNC = pytest.mark.flavours("asyncio", "trio")
# trio's own warning about generators that httpx leaves when what consumes them fails.
generators_left = pytest.mark.filterwarnings("ignore:Async generator")


def one_attempt(flavour: Flavour, **options: Any) -> Any:
    """A client that doesn't retry: what the pool and the connections do by themselves."""
    options = {"verify": client_context(), "max_attempts": 1, "read_timeout": 5.0, **options}
    return flavour.client(**options)


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
async def test_concurrent_requests_share_one_connection(flavour: Flavour) -> None:
    """Callers that race to a new origin wait for the first handshake, and share what it gives."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        await flavour.gather(lambda: client.get(server.url) for _ in range(50))
        assert len(server.peers) == 1
        assert client.pool_stats().connections == 1


@pytest.mark.flavours("sync")
async def test_a_sync_connection_serves_one_request_at_a_time(flavour: Flavour) -> None:
    """Threads never share a connection, not even one that is still being made."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        await flavour.gather(lambda: client.get(server.url) for _ in range(8))
        for peer in server.peers:
            streams = [f.stream_id for f in peer.received if "END_HEADERS" in f.flags]
            assert streams == sorted(streams)


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
        assert (await flavour.run(client.post(f"{server.url}/new"))).text == "/new"
        assert server.requests == [("POST", "/old"), ("POST", "/new")]
        assert len(server.peers) == 2


@ASYNC
async def test_goaway_parts_the_streams_in_flight(flavour: Flavour) -> None:
    """Up to the last id they are answered; those above are sent again, POST too."""

    def script(peer: Peer) -> None:
        streams = [peer.request() for _ in range(4)]
        peer.goaway(2**31 - 1)  # the first of two, as nginx and Envoy do
        peer.goaway(streams[1])
        for stream in streams[:2]:
            peer.echo(stream)
        peer.rest()

    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(4)]
        answers = await flavour.gather(lambda url=url: client.post(url) for url in urls)
        assert [answer.text for answer in answers] == ["/0", "/1", "/2", "/3"]
        assert len(server.peers) == 2
        assert len(server.requests) == 6


async def test_goaway_instead_of_an_answer_is_sent_again(flavour: Flavour) -> None:
    """A POST above the last id was not processed, says RFC 9113 8.7; 0 is an id like others."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.goaway(0)
        peer.rest()

    with H2Peer(script, serve) as server:
        response = await flavour.run(one_attempt(flavour).post(server.url, content=b"order"))
        assert response.status_code == 200
        assert server.peers[1].bodies[1] == b"order"


async def test_goaway_on_an_idle_connection_is_seen_before_use(flavour: Flavour) -> None:
    """The next request goes to a new connection; the retired one never carries it."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.answer(stream)
        peer.goaway(stream)
        sent.set()
        peer.rest()

    sent = threading.Event()
    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        assert sent.wait(5)
        await anyio.sleep(0.05)  # loopback needs its moment
        assert (await flavour.run(client.post(f"{server.url}/new"))).text == "/new"
        assert len(server.peers[0].paths) == 1


async def test_a_server_that_only_says_goaway_ends_in_an_error(flavour: Flavour) -> None:
    """Sending again has an end: three times, then the error is the caller's."""

    def script(peer: Peer) -> None:
        peer.goaway(0)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        with pytest.raises(httpx.RemoteProtocolError, match="GOAWAY"):
            await flavour.run(client.post(server.url))
        assert len(server.peers) == 3
        assert client.pool_stats().connections == 0


@generators_left
async def test_a_body_that_cannot_be_repeated_is_not(flavour: Flavour) -> None:
    """The refusal itself is raised, not StreamConsumed, and nothing is sent a second time."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.until(DataFrame)
        peer.reset(stream, REFUSED_STREAM)
        serve(peer)

    with H2Peer(script) as server:
        for client in (one_attempt(flavour), unaware(flavour)):
            content = flavour.generator([b"a", b"b"])
            with pytest.raises(httpx.RemoteProtocolError, match="REFUSED_STREAM"):
                await flavour.run(client.post(server.url, content=content))
        assert [len(peer.paths) for peer in server.peers][:1] == [1]


def unaware(flavour: Flavour) -> Any:
    """httpx's client on our pool: its bodies don't know whether they can be sent again."""
    from httpx_production import _pool

    client = flavour.plain(http2=True, verify=client_context())
    _pool.mend(client, ())
    return client


# --- resets -----------------------------------------------------------------------------------


async def test_a_refused_stream_is_sent_again(flavour: Flavour) -> None:
    """REFUSED_STREAM: not processed, so POST too, on the same connection."""

    def script(peer: Peer) -> None:
        peer.reset(peer.request(), REFUSED_STREAM)
        serve(peer)

    with H2Peer(script) as server:
        response = await flavour.run(one_attempt(flavour).post(server.url, content=b"order"))
        assert response.status_code == 200
        assert [method for method, _ in server.requests] == ["POST", "POST"]


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


async def test_no_error_after_a_complete_answer_is_no_error(flavour: Flavour) -> None:
    """A server that answers before it has read the upload resets it with NO_ERROR."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream, status=413), peer.data(stream, b"too large", end=True))
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


async def test_a_response_without_a_status_is_a_protocol_error(flavour: Flavour) -> None:
    """httpcore takes it for a 200."""

    def script(peer: Peer) -> None:
        peer.send(peer.head(peer.request(), ("server", "odd"), status=None, end=True))
        peer.rest()

    with H2Peer(script) as server, pytest.raises(httpx.RemoteProtocolError, match="status"):
        await flavour.run(one_attempt(flavour).get(server.url))


async def test_a_header_that_h2_refuses_is_ours_to_mend(flavour: Flavour) -> None:
    """LocalProtocolError; the connection, whose header compression is out of step, is left."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        with pytest.raises(httpx.LocalProtocolError):
            await flavour.run(client.get(server.url, headers={"te": "gzip"}))
        assert (await flavour.run(client.get(f"{server.url}/next"))).text == "/next"


async def test_an_error_of_the_state_machine_is_httpx_s(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """encode/httpx#3072: no KeyError, RuntimeError or exception of h2's gets out."""
    with H2Peer() as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))

        def broken(*args: Any) -> None:
            raise KeyError(1)

        monkeypatch.setattr(_http2.State, "receive_data", broken)
        with pytest.raises(httpx.RemoteProtocolError, match="KeyError"):
            await flavour.run(client.get(server.url))
        monkeypatch.undo()
        monkeypatch.setattr(_http2.State, "send_data", broken)
        with pytest.raises(httpx.LocalProtocolError):
            await flavour.run(client.post(server.url, content=b"x"))


async def test_stream_numbers_run_out(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 2**30 requests the next one goes to a new connection."""
    monkeypatch.setattr(_http2.State, "HIGHEST_ALLOWED_STREAM_ID", 4)
    with H2Peer() as server:
        client = one_attempt(flavour)
        for number in range(5):
            assert (await flavour.run(client.post(f"{server.url}/{number}"))).text == f"/{number}"
        assert [len(peer.paths) for peer in server.peers] == [2, 2, 1]


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


# --- neighbours -------------------------------------------------------------------------------


@ASYNC
async def test_a_dropped_connection_fails_all_its_streams_at_once(flavour: Flavour) -> None:
    """Not one after the other, and none waits for its timeout."""

    def script(peer: Peer) -> None:
        for _ in range(40):
            peer.request()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        started = time.monotonic()
        outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(40))
        assert time.monotonic() - started < 2
        assert {type(outcome) for outcome in outcomes} <= {
            httpx.RemoteProtocolError,
            httpx.ReadError,
        }
        assert client.pool_stats().connections == 0


@ASYNC
async def test_a_timeout_is_one_s_own(flavour: Flavour) -> None:
    """A slow answer fails its request; the neighbours on the connection get theirs."""

    def script(peer: Peer) -> None:
        streams = {peer.paths[stream]: stream for stream in (peer.request() for _ in range(4))}
        peer.until(RstStreamFrame, streams["/slow"])
        for path, stream in streams.items():
            if path != "/slow":
                peer.echo(stream)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        slow, *others = await flavour.gather(
            [
                lambda: client.get(f"{server.url}/slow", timeout=0.2),
                *(lambda path=path: client.get(server.url + path) for path in ("/a", "/b", "/c")),
            ]
        )
        assert isinstance(slow, httpx.ReadTimeout)
        assert [other.text for other in others] == ["/a", "/b", "/c"]


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
async def test_a_cancelled_request_leaves_its_neighbours_alone(flavour: Flavour) -> None:
    """It is reset on the wire; the others, and who comes later, go on with the connection."""

    def script(peer: Peer) -> None:
        streams = {peer.paths[stream]: stream for stream in (peer.request() for _ in range(2))}
        frame = peer.until(RstStreamFrame, streams["/cancelled"])
        assert frame.error_code == CANCEL
        peer.echo(streams["/kept"])
        serve(peer)

    with H2Peer(script) as server:
        client = one_attempt(flavour)

        async def cancelled() -> None:
            with anyio.move_on_after(0.2):
                await client.get(f"{server.url}/cancelled")

        kept, _ = await flavour.gather([lambda: client.get(f"{server.url}/kept"), cancelled])
        assert kept.text == "/kept"
        assert (await client.get(f"{server.url}/later")).text == "/later"
        assert len(server.peers) == 1
        assert client.pool_stats().in_use == 0


@ASYNC
async def test_waiting_for_a_stream_has_a_limit(flavour: Flavour) -> None:
    """The server takes one stream at a time, and that one hangs: `pool_timeout` ends the wait."""

    def script(peer: Peer) -> None:
        first = peer.request()
        peer.until(RstStreamFrame, first)
        serve(peer)

    with H2Peer(script, settings={"MAX_CONCURRENT_STREAMS": 1}) as server:
        client = one_attempt(flavour, pool_timeout=0.2, read_timeout=0.6)
        outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(2))
        assert {type(outcome) for outcome in outcomes} == {httpx.ReadTimeout, httpx.PoolTimeout}
        note = "1 of 50 connections in use, 1 requests waiting"
        assert any(note in str(outcome) for outcome in outcomes)


@ASYNC
async def test_as_many_streams_as_the_server_takes(flavour: Flavour) -> None:
    """No more are begun than SETTINGS allow; the rest wait in the pool, in order."""
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
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(30)]
        answers = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert [answer.text for answer in answers] == [f"/{number}" for number in range(30)]
        assert max(together) == 3
        assert len(server.peers) == 1


@ASYNC
async def test_requests_wait_for_the_server_s_settings(flavour: Flavour) -> None:
    """Until they are here a connection carries one request, whose upload waits for them too."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        time.sleep(0.05)
        assert not began
        assert len(peer.paths) == 1
        peer.settings()
        peer.body(stream)
        peer.echo(stream)
        serve(peer)

    async def body() -> Any:
        began.append(True)
        yield b"a"

    began: list[bool] = []
    with H2Peer(script, settings=None) as server:
        client = one_attempt(flavour)
        answers = await flavour.gather(
            [
                lambda: client.post(f"{server.url}/up", content=body()),
                *(lambda: client.get(f"{server.url}/get") for _ in range(3)),
            ]
        )
        assert [answer.text for answer in answers] == ["/up", "/get", "/get", "/get"]
        assert len(server.peers) == 1


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
        assert time.monotonic() - started < 2


@ASYNC
async def test_abandoned_responses_give_their_window_back(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody reads any more doesn't count against the connection's window."""
    monkeypatch.setattr(_http2, "WINDOW", 2**17)

    def script(peer: Peer) -> None:
        sent = 0
        while True:
            stream = peer.request()
            peer.send(peer.head(stream))
            for _ in range(6):
                while peer.opened(0) - sent < 16384:
                    peer.read()
                peer.send(peer.data(stream, b"x" * 16384))
                sent += 16384
            peer.until(RstStreamFrame, stream)

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=2.0)
        for _ in range(12):
            async with client.stream("GET", server.url) as response:
                chunks = response.aiter_raw()
                await anext(chunks)
                await chunks.aclose()
        assert len(server.peers) == 1


@ASYNC
async def test_who_does_not_read_holds_up_nobody(flavour: Flavour) -> None:
    """An unread response fills its own window; the connection's is open for the others."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream))
        for _ in range(30):
            peer.send(peer.data(stream, b"x" * 16384))
        other = peer.request()
        peer.echo(other)
        while peer.opened(0) < 65535 + _http2.WINDOW + 30 * 16384:
            peer.read()
        peer.send(peer.data(stream, b"", end=True))
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with client.stream("GET", f"{server.url}/big") as big:
            assert (await client.get(f"{server.url}/other")).text == "/other"
            assert len(await big.aread()) == 30 * 16384


async def test_a_long_response_keeps_its_stream_s_window_open(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is acknowledged, so that a response may be longer than the window."""
    monkeypatch.setattr(_http2, "WINDOW", 2**16)

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream))
        room = 2**16
        for _ in range(20):
            while room < 16384:
                room += peer.until(WindowUpdateFrame, stream).window_increment
            peer.send(peer.data(stream, b"x" * 16384))
            room -= 16384
        peer.send(peer.data(stream, b"", end=True))
        peer.rest()

    with H2Peer(script) as server:
        response = await flavour.run(one_attempt(flavour).get(server.url))
        assert len(response.content) == 20 * 16384


@ASYNC
async def test_a_cancelled_write_without_a_limit_ends_the_connection(flavour: Flavour) -> None:
    """Half a frame is on the wire: whoever is on it gets an error, who comes a new connection."""

    def script(peer: Peer) -> None:
        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        peer.request()
        peer.request()
        stop.wait(10)  # reads no more

    async def upload() -> None:
        with anyio.move_on_after(0.3) as scope:
            await client.post(f"{server.url}/up", content=b"x" * 30_000_000)
        assert scope.cancelled_caught

    stop = threading.Event()
    with H2Peer(script, serve, settings={"INITIAL_WINDOW_SIZE": 2**30}) as server:
        client = one_attempt(flavour, write_timeout=None)
        neighbour, cancelled = await flavour.gather([lambda: client.get(server.url), upload])
        assert isinstance(neighbour, httpx.WriteError)
        assert cancelled is None
        assert (await client.get(f"{server.url}/next")).text == "/next"
        stop.set()


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
        assert (await unaware(flavour).send(request)).status_code == 200
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


async def test_an_idle_connection_that_was_closed_is_not_used(flavour: Flavour) -> None:
    """The server's FIN is seen before the next request is sent: a POST isn't lost to it."""

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        peer.end()
        closed.set()

    closed = threading.Event()
    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        assert closed.wait(5)
        await anyio.sleep(0.05)
        assert (await flavour.run(client.post(f"{server.url}/next"))).text == "/next"


async def test_pings_on_an_idle_connection_are_no_reason_to_leave_it(flavour: Flavour) -> None:
    """What arrived meanwhile is taken in, and answered, and the connection used again."""
    from hyperframe.frame import PingFrame

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
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


async def test_an_idle_connection_expires(flavour: Flavour) -> None:
    """`keepalive_expiry` holds for HTTP/2 too."""
    with H2Peer() as server:
        client = one_attempt(flavour, keepalive_expiry=0.05)
        await flavour.run(client.get(server.url))
        await anyio.sleep(0.1)
        await flavour.run(client.get(server.url))
        assert len(server.peers) == 2
