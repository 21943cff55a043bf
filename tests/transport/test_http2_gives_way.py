"""What goes over HTTP/1.1 although HTTP/2 is on, and what is refused over both alike."""

import contextlib
import threading
from typing import Any

import httpx
import pytest
from conftest import Flavour
from h2_peer import Gone, H2Peer, Peer, http1_answer, serve
from helpers import (
    ASYNC,
    SYNC,
    Callers,
    finished,
    generators_left,
    in_use,
    one_attempt,
    one_connection,
    until,
)
from hyperframe.frame import DataFrame
from servers import ScriptedServer, client_context

from httpx_production import RetryPolicy

pytestmark = [pytest.mark.anyio, generators_left, one_connection]

HTTP_1_1_REQUIRED = 0xD
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AA==",
}


def switch(head: bytes) -> bytes:
    """101 for an upgrade, the path for all else."""
    if b"\r\nupgrade: websocket" not in head.lower():
        return http1_answer(head)
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


# --- upgrades ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["https", "wss"])
@pytest.mark.parametrize("headers", [UPGRADE, {k.lower(): v.lower() for k, v in UPGRADE.items()}])
async def test_a_websocket_upgrade_goes_over_http1(
    flavour: Flavour, scheme: str, headers: dict[str, str]
) -> None:
    """101, and the connection is the caller's to talk on; the server saw nothing over HTTP/2."""
    with H2Peer(http1=switch) as server:
        client = one_attempt(flavour)
        url = server.url.replace("https", scheme)
        async with flavour.using(client.stream("GET", url, headers=headers)) as response:
            assert (response.status_code, response.http_version) == (101, "HTTP/1.1")
            stream = response.extensions["network_stream"]
            await flavour.run(stream.write(b"ping", timeout=5))
            assert await flavour.run(stream.read(4, timeout=5)) == b"ping"
        assert server.requests == []
        assert in_use(client) == (0, 0)


async def test_an_upgrade_beside_http2(flavour: Flavour) -> None:
    """The origin is known for HTTP/2, before and after: only the upgrade goes another way."""
    with H2Peer(http1=switch) as server:
        client = one_attempt(flavour)
        assert (await flavour.run(client.get(f"{server.url}/1"))).http_version == "HTTP/2"
        for _ in range(2):
            async with flavour.using(client.stream("GET", server.url, headers=UPGRADE)) as response:
                assert response.status_code == 101
                answer = await flavour.run(client.get(f"{server.url}/2"))
                assert (answer.text, answer.http_version) == ("/2", "HTTP/2")
        assert (await flavour.run(client.get(f"{server.url}/3"))).http_version == "HTTP/2"
        assert len(server.http1_heads) == 2
        assert len(server.requests) == 4


async def test_an_upgrade_takes_the_place_of_an_idle_http2_connection(flavour: Flavour) -> None:
    """max_connections=1: the idle one is no use to it, and makes room."""
    with H2Peer(http1=switch) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=1)
        await flavour.run(client.get(server.url))
        async with flavour.using(client.stream("GET", server.url, headers=UPGRADE)) as response:
            assert response.status_code == 101
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"


@ASYNC
async def test_upgrades_do_not_wait_for_each_other(flavour: Flavour) -> None:
    """Ten at once to a new origin: ten connections of their own, and a GET over HTTP/2."""
    with H2Peer(http1=switch, handshake=lambda number: 0.1) as server:
        client = one_attempt(flavour)

        async def upgrade() -> int:
            async with client.stream("GET", server.url, headers=UPGRADE) as response:
                return int(response.status_code)

        *upgrades, plain = await flavour.gather([*[upgrade] * 10, lambda: client.get(server.url)])
        assert upgrades == [101] * 10
        assert plain.http_version == "HTTP/2"


async def test_a_refused_upgrade_is_an_ordinary_answer(flavour: Flavour) -> None:
    """The server answers 200 over HTTP/1.1, and that is returned."""
    with H2Peer(http1=http1_answer) as server:
        response = await flavour.run(one_attempt(flavour).get(f"{server.url}/x", headers=UPGRADE))
        assert (response.text, response.http_version) == ("/x", "HTTP/1.1")


async def test_http2_alone_stays_http2(flavour: Flavour) -> None:
    """With http1=False there is no other way, and no endless search for one."""
    with H2Peer(http1=switch) as server:
        client = one_attempt(flavour, http1=False)
        outcome = await flavour.outcome(client.get, f"{server.url}/x", headers=UPGRADE)
        assert isinstance(outcome, (httpx.TransportError, httpx.Response))
        assert server.http1_heads == []


# --- HTTP_1_1_REQUIRED ---------------------------------------------------------------------------


def old_fashioned(peer: Peer) -> None:
    """Reset every stream with HTTP_1_1_REQUIRED."""
    with contextlib.suppress(Gone):
        while True:
            peer.reset(peer.request(), HTTP_1_1_REQUIRED)


@SYNC
async def test_who_goes_over_to_http1_disturbs_nobody_on_the_connection_left(
    flavour: Flavour,
) -> None:
    """Another thread waits for the only one: a timeout of the first must not end its request."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        go.wait(5)
        peer.reset(stream, HTTP_1_1_REQUIRED)
        stream = peer.request()
        first.done.wait(5)
        peer.echo(stream)

    go = threading.Event()
    with H2Peer(script, serve, http1=http1_answer) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=0.5)
        async with Callers(flavour) as callers:
            first = callers.start(client.post, f"{server.url}/first")
            await until(lambda: server.requests)
            second = callers.start(client.post, f"{server.url}/second")
            await until(lambda: client.pool_stats().waiting)
            go.set()
            answers = await finished(first, second)
        assert [getattr(one, "text", one) for one in answers] == ["/first", "/second"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_http_1_1_required_is_obeyed(flavour: Flavour, method: str) -> None:
    """Sent again over HTTP/1.1, once, by one attempt; the origin stays there."""
    with H2Peer(old_fashioned, http1=http1_answer) as server:
        client = one_attempt(flavour)
        content = b"order" if method == "POST" else None
        for number in range(3):
            url = f"{server.url}/{number}"
            response = await flavour.run(client.request(method, url, content=content))
            assert (response.text, response.http_version) == (f"/{number}", "HTTP/1.1")
        assert server.requests == [(method, "/0")]
        assert len(server.http1_heads) == 3
        assert in_use(client) == (0, 0)


async def test_http_1_1_required_is_about_one_origin(flavour: Flavour) -> None:
    """Another server of the same client is still spoken to in HTTP/2."""
    with H2Peer(old_fashioned, http1=http1_answer) as one, H2Peer(http1=http1_answer) as other:
        client = one_attempt(flavour)
        assert (await flavour.run(client.get(one.url))).http_version == "HTTP/1.1"
        assert (await flavour.run(client.get(other.url))).http_version == "HTTP/2"


@ASYNC
async def test_http_1_1_required_for_one_stream(flavour: Flavour) -> None:
    """Its neighbours on the connection are answered there."""

    def script(peer: Peer) -> None:
        streams = {peer.paths[stream]: stream for stream in (peer.request() for _ in range(3))}
        peer.reset(streams["/1"], HTTP_1_1_REQUIRED)
        peer.echo(streams["/0"])
        peer.echo(streams["/2"])
        peer.rest()

    with H2Peer(script, http1=http1_answer) as server:
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(3)]
        outcomes = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert [getattr(one, "text", one) for one in outcomes] == ["/0", "/1", "/2"]
        versions = [one.http_version for one in outcomes]
        assert versions == ["HTTP/2", "HTTP/1.1", "HTTP/2"]


@ASYNC
async def test_http_1_1_required_for_many_at_once(flavour: Flavour) -> None:
    """Twenty streams are reset: each is sent again once."""

    def script(peer: Peer) -> None:
        for stream in [peer.request() for _ in range(20)]:
            peer.reset(stream, HTTP_1_1_REQUIRED)
        peer.rest()

    with H2Peer(script, http1=http1_answer) as server:
        client = one_attempt(flavour)
        urls = [f"{server.url}/{number}" for number in range(20)]
        outcomes = await flavour.gather(lambda url=url: client.post(url) for url in urls)
        assert [getattr(one, "text", one) for one in outcomes] == [f"/{n}" for n in range(20)]
        assert len(server.http1_heads) == 20


@pytest.mark.filterwarnings("ignore:Async generator")  # the body itself, which trio tells of
async def test_a_body_that_was_begun_cannot_go_over_http1(flavour: Flavour) -> None:
    """A generator is not sent twice: the refusal is raised, and the next request knows."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.until(DataFrame)
        peer.reset(stream, HTTP_1_1_REQUIRED)
        serve(peer)

    with H2Peer(script, http1=http1_answer) as server:
        client = one_attempt(flavour)
        content = flavour.generator([b"a", b"b"])
        with pytest.raises(httpx.RemoteProtocolError):
            await flavour.run(client.post(server.url, content=content))
        response = await flavour.run(client.get(f"{server.url}/x"))
        assert (response.text, response.http_version) == ("/x", "HTTP/1.1")


async def test_a_server_that_has_no_http1_after_all(flavour: Flavour) -> None:
    """It demands HTTP/1.1 and speaks HTTP/2 alone: an error, after few requests, in time."""
    with H2Peer(old_fashioned) as server:
        client = flavour.client(
            verify=client_context(),
            retry=RetryPolicy(max_attempts=2, backoff=lambda attempt: 0),
        )
        outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.TransportError)
        assert len(server.requests) <= 4


# --- the same rules in both protocols ------------------------------------------------------------

ILLEGAL: dict[str, dict[str, Any]] = {
    "CR LF in a value": {"headers": {"X-User": "bob\r\nX-Admin: true"}},
    "LF in a value": {"headers": {"X-User": "bob\nX-Admin: true"}},
    "CR in a value": {"headers": {"X-User": "bob\rX-Admin: true"}},
    "NUL in a value": {"headers": {"X-User": "a\0b"}},
    "CR LF in a name": {"headers": {"X-Name \r\nX-Other": "1"}},
    "LF in a name": {"headers": {b"X-Name\nX-Other": b"1"}},
    "NUL in a name": {"headers": {b"X-\0Name": b"1"}},
    "a space in a name": {"headers": {"X Name": "1"}},
    "a colon in a name": {"headers": {"X:Name": "1"}},
    "a name that is a pseudo-header": {"headers": {":path": "/admin"}},
    "no name": {"headers": [(b"", b"1")]},
    "a length that is no number": {"headers": {"Content-Length": "x"}},
    "CR LF in Host": {"headers": {"Host": "a\r\nX-Admin: true"}},
    "CR LF in a cookie": {"headers": {"Cookie": "a=b\r\nX-Admin: true"}},
    "CR LF in the target": {"extensions": {"target": b"/x\r\nX-Admin: true"}},
    "a space in the target": {"extensions": {"target": b"/x HTTP/1.1"}},
}


@pytest.mark.parametrize("case", ILLEGAL)
@pytest.mark.parametrize("http2", [True, False])
async def test_an_illegal_request_is_refused_before_anything_is_sent(
    flavour: Flavour, case: str, http2: bool
) -> None:
    """LocalProtocolError over both protocols, and the connection goes on to serve others."""
    options: Any = dict(ILLEGAL[case])
    with H2Peer(http1=http1_answer) as server:
        client = one_attempt(flavour, http2=http2)
        await flavour.run(client.get(f"{server.url}/before"))
        with pytest.raises(httpx.LocalProtocolError):
            await flavour.run(client.get(f"{server.url}/evil", **options))
        assert in_use(client) == (0, 0)
        assert (await flavour.run(client.get(f"{server.url}/after"))).text == "/after"
        paths = [path for _, path in server.requests]
        paths += [head.split()[1].decode() for head in server.http1_heads]
        assert paths == ["/before", "/after"]
        if http2:
            assert server.connections == 1


@ASYNC
async def test_an_illegal_request_leaves_its_neighbours_alone(flavour: Flavour) -> None:
    """One is open on the connection while another one is refused there."""

    def script(peer: Peer) -> None:
        first = peer.request()
        serve_one = peer.request()
        peer.echo(serve_one)
        peer.echo(first)
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour)
        async with Callers(flavour) as callers:
            first = callers.start(client.get, f"{server.url}/first")
            await until(lambda: server.requests)
            with pytest.raises(httpx.LocalProtocolError):
                await client.get(server.url, headers={"X-Evil": "a\r\nb: c"})
            assert (await client.get(f"{server.url}/next")).text == "/next"
            (outcome,) = await finished(first)
            assert getattr(outcome, "text", outcome) == "/first"
        assert len(server.peers) == 1


VALUES = ["", "a", "a b", "a\tb", " lead", "trail ", "\ttab", "a\x0bb", "a\x7fb", "\x01", "caf\xe9"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_the_verdict_on_a_value_is_the_same(flavour: Flavour, value: str) -> None:
    """What HTTP/1.1 takes HTTP/2 takes, and what it refuses is refused."""
    verdicts = []
    with H2Peer(http1=http1_answer) as server:
        for http2 in (False, True):
            client = one_attempt(flavour, http2=http2)
            headers = [(b"x-value", value.encode("latin-1"))]
            outcome = await flavour.outcome(client.get, server.url, headers=headers)
            verdicts.append(getattr(outcome, "status_code", type(outcome)))
    assert verdicts[0] == verdicts[1]


async def test_names_are_sent_in_lower_case_and_hop_by_hop_ones_are_not(flavour: Flavour) -> None:
    """HTTP/2's own rules: what is right over HTTP/1.1 is made right, not refused."""
    with H2Peer() as server, ScriptedServer() as plain:
        client = one_attempt(flavour)
        headers = {"X-Mixed-Case": "1", "Connection": "keep-alive", "Keep-Alive": "5"}
        for url in (server.url, plain.url):
            assert (await flavour.run(client.get(url, headers=headers))).status_code == 200
