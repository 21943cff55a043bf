"""Failures that no repetition mends are tried once, those that may pass are tried again.

Subject: `retry.py`.
"""

import contextlib
import itertools
import ssl
from collections.abc import Iterator
from typing import Any

import h2.exceptions
import h11
import httpcore
import httpx
import pytest
from conftest import FakeClock, Flavour
from h2_peer import ENHANCE_YOUR_CALM, H2Peer, Peer, serve
from servers import ScriptedServer, Step, answer, client_context, forward, server_context

from httpx_production import RetryPolicy

# --- as tables ------------------------------------------------------------------------------------


def caused(*links: Exception) -> Exception:
    """The last link, each one caused by the one before."""
    for cause, effect in itertools.pairwise(links):
        effect.__cause__ = cause
    return links[-1]


def local(cause: Exception) -> Exception:
    """As httpcore and httpx hand on what a protocol's own package raised."""
    return caused(cause, httpcore.LocalProtocolError(cause), httpx.LocalProtocolError(str(cause)))


PERMANENT = [
    local(h11.LocalProtocolError("Illegal header value b'a\\n'")),
    local(h11.LocalProtocolError("Illegal header value b'Invalid input '")),
    local(h11.LocalProtocolError("Too much data for declared Content-Length")),
    local(h11.LocalProtocolError("Missing mandatory Host: header")),
    local(h2.exceptions.ProtocolError("Invalid value for TE header: b'gzip'")),
    local(h2.exceptions.ProtocolError("Received header name with zero length.")),
    local(h2.exceptions.ProtocolError("Illegal character ' ' in header name: b'a b'")),
    httpx.LocalProtocolError("illegal request: header value b'a\\r\\nb'"),
    *(httpx.ProxyError(f"{status} Because") for status in (400, 401, 403, 404, 407, 421, 451, 499)),
    httpx.ProxyError("407"),
    httpx.ProxyError("403 "),
    httpx.ProxyError("Invalid username/password"),
    httpx.ProxyError(
        "Requested NO AUTHENTICATION REQUIRED from proxy server, but got NO ACCEPTABLE METHODS."
    ),
    httpx.ProxyError("Proxy Server could not connect: Connection not allowed by ruleset."),
    httpx.ProxyError("Proxy Server could not connect: Command not supported."),
    httpx.ProxyError("Proxy Server could not connect: Address type not supported."),
    caused(ssl.SSLCertVerificationError(1, "self-signed"), httpx.ConnectError("x")),
    *(
        kind(f"[SSL: {alert}] that alert (_ssl.c:2559)")
        for kind in (httpx.ConnectError, httpx.ReadError, httpx.WriteError)
        for alert in (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "SSLV3_ALERT_BAD_CERTIFICATE",
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            "TLSV1_ALERT_UNKNOWN_CA",
        )
    ),
    httpx.RemoteProtocolError("the server refuses the request after GOAWAY: ENHANCE_YOUR_CALM"),
]

PASSING = [
    httpx.ReadError("[SSL: TLSV1_ALERT_INTERNAL_ERROR] that alert (_ssl.c:2559)"),
    httpx.ReadError("a server that says: [SSL: TLSV1_ALERT_UNKNOWN_CA]"),
    httpx.RemoteProtocolError("Server disconnected after GOAWAY: ENHANCE_YOUR_CALM"),
    local(h11.LocalProtocolError("Can't send data when our state is ERROR")),
    local(h11.LocalProtocolError("can't handle event type Data when role=CLIENT and state=DONE")),
    local(h11.LocalProtocolError("not in a reusable state. self.states={}")),
    local(h2.exceptions.ProtocolError("Invalid input SEND_HEADERS in state CLOSED")),
    local(h2.exceptions.StreamClosedError(1)),
    local(h2.exceptions.InvalidBodyLengthError(10, 5)),
    local(h2.exceptions.TooManyStreamsError("Max outbound streams is 100, 100 open")),
    local(RuntimeError("Illegal header value")),
    httpx.LocalProtocolError("the request was not illegal"),
    httpx.RemoteProtocolError("illegal request: says the server"),
    caused(h2.exceptions.ProtocolError("Invalid value"), httpx.RemoteProtocolError("x")),
    *(httpx.ProxyError(f"{status} Because") for status in (408, 429, 500, 502, 503, 504, 302, 600)),
    httpx.ProxyError("4030"),
    httpx.ProxyError("502 after 407 ms"),
    httpx.ProxyError("SOCKSError in the SOCKS handshake: 403"),
    *(
        httpx.ProxyError(f"Proxy Server could not connect: {reply}.")
        for reply in (
            "General SOCKS server failure", "Network unreachable", "Host unreachable",
            "Connection refused", "TTL expired", "UNKOWN",
        )
    ),
    httpx.ConnectError("407 Proxy Authentication Required"),
]  # fmt: skip


@pytest.mark.parametrize("exc", PERMANENT, ids=repr)
def test_a_permanent_failure_is_not_covered(exc: Exception) -> None:
    """Although its type is in the table."""
    assert not RetryPolicy().covers(exc)


@pytest.mark.parametrize("exc", PASSING, ids=repr)
def test_a_failure_that_may_pass_is_covered(exc: Exception) -> None:
    """A state of our own that is broken, a proxy in trouble: another connection may do."""
    assert RetryPolicy().covers(exc)


def test_what_the_caller_was_handling_is_no_part_of_a_failure() -> None:
    """A certificate's error, in whose handler the call was made, says nothing about the call."""
    before = ssl.SSLCertVerificationError(1, "self-signed")
    exc = httpx.ConnectError("refused")
    exc.__context__ = before
    assert not RetryPolicy().covers(exc)
    assert RetryPolicy().covers(exc, outer=before)


# --- over the wire --------------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407])
async def test_a_proxy_that_refuses_a_tunnel_is_asked_once(
    flavour: Flavour, clock: FakeClock, status: int
) -> None:
    """407, tinyproxy's 401, a rule's 403: five times the wrong password lock an account."""
    with ScriptedServer(lambda request: answer(status)) as proxy:
        client = flavour.client(proxy=proxy.url.replace("//", "//user:wrong@"))
        outcome = await flavour.outcome(client.get, "https://127.0.0.1:1/")
    assert isinstance(outcome, httpx.ProxyError)
    assert str(outcome).startswith(str(status))
    assert proxy.methods == ["CONNECT"]
    assert clock.delays == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_a_proxy_in_trouble_is_asked_again(
    flavour: Flavour, clock: FakeClock, status: int
) -> None:
    """What a proxy says about itself, or the way, may be over in a second."""
    with ScriptedServer([answer(status), forward]) as proxy, ScriptedServer(tls=True) as server:
        client = flavour.client(proxy=proxy.url, verify=client_context())
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert [failed.reason for failed in response.extensions["retries"]] == ["ProxyError"]


SOCKS_ACCEPTS_PASSWORD, SOCKS_ACCEPTS_NOBODY = b"\x05\x02", b"\x05\xff"
SOCKS_WRONG_PASSWORD, SOCKS_RIGHT_PASSWORD = b"\x01\x01", b"\x01\x00"


def socks_reply(code: int) -> bytes:
    """The answer to a request for a connection; 0 is success."""
    return bytes([5, code, 0, 1]) + bytes(6)


@contextlib.contextmanager
def socks_proxy(*replies: bytes) -> Iterator[tuple[ScriptedServer, str]]:
    """A SOCKS5 server that says these things, one for each message, on every connection."""
    pytest.importorskip("socksio")

    def talk(connection: Any) -> None:
        for reply in replies:
            connection.sock.recv(4096)
            connection.sock.sendall(reply)
        connection.open = False
        connection.fin()

    with ScriptedServer([Step(read="nothing", then=talk)] * 9) as server:
        yield server, server.url.replace("http://", "socks5://user:wrong@")


@pytest.mark.parametrize(
    ("replies", "connections"),
    [
        ([SOCKS_ACCEPTS_PASSWORD, SOCKS_WRONG_PASSWORD], 1),
        ([SOCKS_ACCEPTS_NOBODY], 1),
        ([SOCKS_ACCEPTS_PASSWORD, SOCKS_RIGHT_PASSWORD, socks_reply(2)], 1),
        ([SOCKS_ACCEPTS_PASSWORD, SOCKS_RIGHT_PASSWORD, socks_reply(7)], 1),
        ([SOCKS_ACCEPTS_PASSWORD, SOCKS_RIGHT_PASSWORD, socks_reply(1)], 5),
        ([SOCKS_ACCEPTS_PASSWORD, SOCKS_RIGHT_PASSWORD, socks_reply(4)], 5),
        ([SOCKS_ACCEPTS_PASSWORD, SOCKS_RIGHT_PASSWORD, socks_reply(5)], 5),
    ],
    ids=["password", "method", "ruleset", "command", "failure", "unreachable", "refused"],
)
async def test_a_socks_proxy_s_refusal_is_final_and_its_trouble_is_not(
    flavour: Flavour, clock: FakeClock, replies: list[bytes], connections: int
) -> None:
    """RFC 1928 section 6, RFC 1929: who isn't let in is not let in a second later."""
    with socks_proxy(*replies) as (server, url):
        outcome = await flavour.outcome(flavour.client(proxy=url).get, "http://127.0.0.1:1/")
    assert isinstance(outcome, httpx.ProxyError)
    assert server.connections == connections


@pytest.mark.parametrize("own_transport", [True, False], ids=["our transport", "httpx's"])
@pytest.mark.parametrize("headers", [{"TE": "gzip"}, {":x": "y"}])
async def test_a_request_that_http2_forbids_is_tried_once(
    flavour: Flavour, clock: FakeClock, headers: dict[str, str], own_transport: bool
) -> None:
    """It is illegal on every connection; and it costs the next request nothing."""
    kind = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    options: dict[str, Any] = {"verify": client_context(), "http1": False, "http2": True}
    with H2Peer() as peer:
        options = options if own_transport else {"transport": kind(**options)}
        client = flavour.client(**options)
        outcome = await flavour.outcome(client.get, peer.url, headers=headers)
        assert isinstance(outcome, httpx.LocalProtocolError)
        assert outcome.request.extensions["retries"] == ()
        assert clock.delays == []
        if own_transport:
            assert (await flavour.run(client.get(peer.url))).status_code == 200


async def test_a_request_that_http1_forbids_is_tried_once(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The same by the rules of HTTP/1.1."""
    with ScriptedServer() as server:
        client = flavour.client()
        outcome = await flavour.outcome(client.get, server.url, headers={"a b": "c"})
        assert isinstance(outcome, httpx.LocalProtocolError)
        assert (clock.delays, server.requests) == ([], [])


# --- what servers refuse --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_client_certificate_that_is_missing(flavour: Flavour, clock: FakeClock) -> None:
    """The server's alert, which TLS 1.3 sends after the handshake, is believed at once."""
    context = server_context.__wrapped__()
    context.verify_mode = ssl.CERT_REQUIRED
    with ScriptedServer(tls=True) as server:
        server._context = context
        client = flavour.client(verify=client_context())
        outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.NetworkError)
        assert (server.connections, clock.delays) == (1, [])


@pytest.mark.anyio
@pytest.mark.parametrize("last", [0, 1])
async def test_a_request_that_ends_a_new_connection(
    flavour: Flavour, clock: FakeClock, last: int
) -> None:
    """nginx, when a header is too large: nothing but this request can be the reason."""

    def script(peer: Peer) -> None:
        peer.goaway(last if peer.request() else 0, ENHANCE_YOUR_CALM)
        peer.rest()

    with H2Peer(script) as server:
        client = flavour.client(verify=client_context())
        outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.RemoteProtocolError)
        assert "ENHANCE_YOUR_CALM" in str(outcome)
        assert (len(server.requests), clock.delays) == (1, [])


@pytest.mark.anyio
async def test_a_request_that_ends_a_used_connection(flavour: Flavour, clock: FakeClock) -> None:
    """What went before may be the reason, so it is tried on another one."""

    def script(peer: Peer) -> None:
        peer.echo(peer.request())
        peer.goaway(peer.request(), ENHANCE_YOUR_CALM)
        peer.rest()

    with H2Peer(script, serve) as server:
        client = flavour.client(verify=client_context())
        for path in ("/one", "/two"):
            assert (await flavour.run(client.get(server.url + path))).text == path
        assert [path for _, path in server.requests] == ["/one", "/two", "/two"]
        assert len(clock.delays) == 1
