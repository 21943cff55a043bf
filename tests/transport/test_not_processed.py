"""Requests that the server says it did not process: GOAWAY and REFUSED_STREAM."""

import contextlib
import gc
import threading
from typing import Any

import httpx
import pytest
from conftest import Flavour
from h2_peer import REFUSED_STREAM, Gone, H2Peer, Peer, serve
from helpers import (
    ASYNC,
    PROMPT,
    Callers,
    finished,
    generators_left,
    in_use,
    one_attempt,
    one_connection,
    until,
    within,
)
from hyperframe.frame import DataFrame
from servers import client_context

from httpx_production import RetryPolicy

pytestmark = [pytest.mark.anyio, generators_left, one_connection]

BODY_LEFT = pytest.mark.filterwarnings("ignore:Async generator")  # trio tells of the body itself


def refuses(peer: Peer) -> None:
    """REFUSED_STREAM for all."""
    with contextlib.suppress(Gone):
        while True:
            peer.reset(peer.request(), REFUSED_STREAM)


def retires(peer: Peer) -> None:
    """GOAWAY below whatever arrives first."""
    peer.request()
    peer.goaway(0)
    peer.rest()


# --- REFUSED_STREAM ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refused_stream_is_raised(flavour: Flavour, method: str) -> None:
    """One attempt sends one request: what comes next is the policy's affair."""
    with H2Peer(refuses) as server:
        client = one_attempt(flavour)
        with pytest.raises(httpx.RemoteProtocolError, match="REFUSED_STREAM"):
            await flavour.run(client.request(method, server.url))
        assert len(server.requests) == 1
        assert in_use(client) == (0, 0)


@pytest.mark.parametrize(("method", "sent"), [("GET", 3), ("PUT", 3), ("POST", 1)])
async def test_the_policy_decides_about_refused_streams(
    flavour: Flavour, method: str, sent: int
) -> None:
    """Three attempts are three requests, each after the policy's wait; a POST is not repeated."""
    waits: list[int] = []

    def backoff(attempt: int) -> float:
        waits.append(attempt)
        return 0

    with H2Peer(refuses) as server:
        policy = RetryPolicy(max_attempts=3, backoff=backoff)
        client = flavour.client(verify=client_context(), retry=policy)
        outcome = await flavour.outcome(client.request, method, server.url)
        assert isinstance(outcome, httpx.RemoteProtocolError)
        assert len(server.requests) == sent
        assert waits == list(range(sent - 1))


@ASYNC
async def test_a_refused_stream_leaves_its_connection(flavour: Flavour) -> None:
    """Its neighbours are answered there, and so is the next request."""

    def script(peer: Peer) -> None:
        streams = {peer.paths[stream]: stream for stream in (peer.request() for _ in range(3))}
        peer.reset(streams["/1"], REFUSED_STREAM)
        peer.echo(streams["/0"])
        peer.echo(streams["/2"])
        serve(peer)

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(3)]
        one, refused, two = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert (one.text, two.text) == ("/0", "/2")
        assert isinstance(refused, httpx.RemoteProtocolError)
        assert (await client.get(f"{server.url}/next")).text == "/next"
        assert len(server.peers) == 1


@BODY_LEFT
async def test_a_refused_generator_is_the_refusal(flavour: Flavour) -> None:
    """Not StreamConsumed, and nothing is sent a second time."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.until(DataFrame)
        peer.reset(stream, REFUSED_STREAM)
        serve(peer)

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        with pytest.raises(httpx.RemoteProtocolError, match="REFUSED_STREAM"):
            await flavour.run(client.post(server.url, content=flavour.generator([b"a", b"b"])))
        assert len(server.requests) == 1


# --- GOAWAY --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed")  # a response that is dropped unclosed is
@pytest.mark.parametrize("way", ["closed", "dropped"])
async def test_a_request_that_has_moved_gives_its_slot_back(flavour: Flavour, way: str) -> None:
    """The second connection's, as it gave back the first one's."""

    def half(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream), peer.data(stream, b"half"))
        serve(peer)

    with H2Peer(retires, half, serve) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=1)
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request, stream=True))
        assert in_use(client) == (1, 0)
        if way == "closed":
            await flavour.close(response)
        del response, request
        gc.collect()
        assert (await flavour.run(client.get(f"{server.url}/next"))).text == "/next"
        await until(lambda: in_use(client) == (0, 0))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_above_goaway_goes_to_another_connection(
    flavour: Flavour, method: str
) -> None:
    """By itself, POST too, with its whole body: the server says that it did nothing with it."""
    with H2Peer(retires, serve) as server:
        client = one_attempt(flavour)
        content = b"order" if method == "POST" else None
        response = await flavour.run(client.request(method, f"{server.url}/x", content=content))
        assert response.text == "/x"
        assert server.requests == [(method, "/x")] * 2
        assert server.peers[1].bodies[1] == (content or b"")


async def test_it_goes_to_another_connection_once(flavour: Flavour) -> None:
    """A server that retires that one as well: two requests in all, and the error is raised."""
    with H2Peer(retires) as server:
        client = one_attempt(flavour)
        with pytest.raises(httpx.RemoteProtocolError, match="GOAWAY"):
            await flavour.run(client.post(server.url, content=b"order"))
        assert len(server.requests) == 2
        assert in_use(client) == (0, 0)


@pytest.mark.parametrize(("unsent", "sent"), [(False, 2), (True, 3)])
async def test_the_policy_decides_about_retired_connections(
    flavour: Flavour, unsent: bool, sent: int
) -> None:
    """A POST that two servers in a row say they did nothing with is sent again by retry_unsent."""
    with H2Peer(retires, retires, serve) as server:
        policy = RetryPolicy(retry_unsent=unsent, backoff=lambda attempt: 0)
        client = flavour.client(verify=client_context(), retry=policy)
        outcome = await flavour.outcome(client.post, f"{server.url}/x", content=b"order")
        assert len(server.requests) == sent
        assert isinstance(outcome, httpx.Response if unsent else httpx.RemoteProtocolError)


@ASYNC
async def test_goaway_parts_the_streams(flavour: Flavour) -> None:
    """Those up to its last stream are answered where they are, though late; the others elsewhere.

    Requests that come meanwhile do not use the retired connection.
    """
    go = threading.Event()

    def script(peer: Peer) -> None:
        streams = [peer.request() for _ in range(6)]
        peer.goaway(streams[2])
        go.wait(5)
        for stream in streams[:3]:
            peer.echo(stream)
        peer.rest()

    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            started = [callers.start(client.post, f"{server.url}/{n}") for n in range(6)]
            await until(lambda: len(server.requests) == 9)  # three of them elsewhere
            new = callers.start(client.post, f"{server.url}/new")
            with within(PROMPT):
                await finished(new)
            go.set()
            outcomes = await finished(*started, new)
        texts = [getattr(one, "text", one) for one in outcomes]
        assert texts == [f"/{n}" for n in range(6)] + ["/new"]
        assert len(server.peers) == 2
        counts = {path: server.requests.count(("POST", path)) for _, path in server.requests}
        assert sorted(counts.values())[:4] == [1, 1, 1, 1]
        assert max(counts.values()) == 2


@ASYNC
async def test_streams_in_flight_are_lost_with_a_connection_that_ends(flavour: Flavour) -> None:
    """GOAWAY and then the end: those that it includes may have been processed, and fail."""

    def script(peer: Peer) -> None:
        streams = [peer.request() for _ in range(4)]
        peer.goaway(streams[1])
        peer.end()

    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(4)]
        outcomes = await flavour.gather(lambda url=url: client.post(url) for url in urls)
        assert sorted(isinstance(one, httpx.TransportError) for one in outcomes) == [
            False,
            False,
            True,
            True,
        ]
        assert len(server.requests) == 6
        assert in_use(client) == (0, 0)


@BODY_LEFT
@pytest.mark.parametrize("kind", ["our client", "httpx's client"])
async def test_a_generator_above_goaway_is_the_refusal(flavour: Flavour, kind: str) -> None:
    """What was taken from it cannot be sent again: RemoteProtocolError, not StreamConsumed."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.until(DataFrame)
        peer.goaway(0)
        peer.rest()

    with H2Peer(script, serve) as server:
        pooled = flavour.pooled(http2=True, verify=client_context())
        client = one_attempt(flavour) if kind == "our client" else pooled
        with pytest.raises(httpx.RemoteProtocolError):
            await flavour.run(client.post(server.url, content=flavour.generator([b"a", b"b"])))
        assert len(server.requests) == 1


async def test_a_retired_idle_connection_is_not_used(flavour: Flavour) -> None:
    """GOAWAY came while it was idle: the next request never touches it."""
    said = threading.Event()

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.answer(stream)
        peer.goaway(stream)
        said.set()
        peer.rest()

    with H2Peer(script, serve) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(f"{server.url}/old"))
        assert said.wait(5)
        threading.Event().wait(0.1)  # loopback needs its moment
        response: Any = await flavour.run(client.post(f"{server.url}/new"))
        assert response.text == "/new"
        assert server.requests == [("GET", "/old"), ("POST", "/new")]
