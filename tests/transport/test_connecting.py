"""Connecting: one limit for all of it, addresses that don't starve each other, early answers.

Subject: `transport/_network.py`.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import freezegun
import httpx
import pytest
from conftest import Flavour
from h2_peer import H2Peer, Peer
from helpers import PROMPT, generators_left, in_use, one_attempt, within
from servers import (
    LOOPBACK,
    Connection,
    Received,
    ScriptedServer,
    Step,
    answer,
    client_context,
    echo,
    fill_backlog,
    forward,
    full_backlog,
    hang,
    resolving,
)

from httpx_production.transport import _network

pytestmark = [pytest.mark.anyio, generators_left]

SILENT = Step(read="nothing", then="hang")


# --- one limit for the whole of it ---------------------------------------------------------------


@contextlib.contextmanager
def slow_accept(seconds: float) -> Iterator[str]:
    """The URL of a listener whose full queue is emptied after a while; then it is silent.

    The client's kernel tries again one second after the first attempt.
    """
    with contextlib.ExitStack() as stack:
        listener = fill_backlog(stack, LOOPBACK, 0)
        accepted: list[socket.socket] = []

        def drain() -> None:
            listener.settimeout(0.1)
            while not over.wait(0.02):
                with contextlib.suppress(OSError):
                    accepted.append(listener.accept()[0])

        over = threading.Event()
        timer = threading.Timer(seconds, drain)
        timer.start()
        try:
            yield f"https://{LOOPBACK}:{listener.getsockname()[1]}"
        finally:
            over.set()
            timer.join()
            for sock in accepted:
                sock.close()


async def test_tcp_and_tls_share_the_connect_timeout(flavour: Flavour) -> None:
    """A second until the connection is accepted, then a handshake that stalls: 1.6 s, not 2.6."""
    with slow_accept(0.4) as url:
        client = one_attempt(flavour, connect_timeout=1.6)
        with within(2.3, at_least=1.4), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get(url))
        assert client.pool_stats().connections == 0


class SlowTunnel:
    """CONNECT is answered after a while; what comes then is silence."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def __call__(self, request: Received) -> Step:
        established = (b"HTTP/1.1 200 Connection established\r\n\r\n",)
        return Step(send=established, delay=self.delay, then="hang")


async def test_a_tunnel_and_its_tls_share_the_connect_timeout(flavour: Flavour) -> None:
    """1.2 s for CONNECT, then a TLS handshake that stalls: 1.5 s in all."""
    with ScriptedServer(SlowTunnel(1.2)) as proxy:
        client = one_attempt(flavour, proxy=proxy.url, connect_timeout=1.5)
        with within(2.4, at_least=1.3), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get("https://127.0.0.1:1/"))
        assert client.pool_stats().connections == 0


@pytest.mark.parametrize("proxy_tls", [False, True])
async def test_a_proxy_that_stalls_in_connect(flavour: Flavour, proxy_tls: bool) -> None:
    """The tunnel is part of connecting: connect_timeout bounds it, not read_timeout."""
    with ScriptedServer([hang()], tls=proxy_tls) as server:
        proxy = httpx.Proxy(server.url, ssl_context=client_context() if proxy_tls else None)
        client = one_attempt(flavour, proxy=proxy, connect_timeout=0.5)
        with within(0.5 + PROMPT, at_least=0.4), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get("https://127.0.0.1:1/"))
        assert client.pool_stats().connections == 0


async def test_a_proxy_that_answers_connect_by_drips(flavour: Flavour) -> None:
    """A byte now and then does not start the time anew."""
    drip = Step(send=[b"HTTP/1.1 200 OK\r\nX: ", *[b"y"] * 40], pause=0.1)
    with ScriptedServer([drip]) as proxy:
        client = one_attempt(flavour, proxy=proxy.url, connect_timeout=0.5)
        with within(0.5 + PROMPT, at_least=0.4), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get("https://127.0.0.1:1/"))


async def test_a_proxy_s_own_handshake_that_stalls(flavour: Flavour) -> None:
    """TLS to the proxy itself."""
    with ScriptedServer([SILENT]) as server:
        proxy = httpx.Proxy(server.url.replace("http:", "https:"), ssl_context=client_context())
        client = one_attempt(flavour, proxy=proxy, connect_timeout=0.5)
        with within(0.5 + PROMPT, at_least=0.4), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get("https://127.0.0.1:1/"))


def socks(*replies: bytes, delay: float = 0.0) -> Callable[[Connection], None]:
    """A SOCKS5 proxy that says these things, each after `delay` seconds, and then nothing."""

    def play(connection: Connection) -> None:
        for reply in replies:
            connection.sock.recv(4096)
            connection.server.stopping.wait(delay)
            connection.sock.sendall(reply)
        connection.open = False
        connection.hang()

    return play


OK, CONNECTED = b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6)


@pytest.mark.parametrize("replies", [[], [OK], [OK, CONNECTED]])
async def test_a_socks_proxy_that_stalls(flavour: Flavour, replies: list[bytes]) -> None:
    """At the greeting, at its CONNECT, and in the TLS handshake behind it."""
    with ScriptedServer([Step(read="nothing", then=socks(*replies))]) as server:
        proxy = server.url.replace("http:", "socks5:")
        client = one_attempt(flavour, proxy=proxy, connect_timeout=0.5)
        with within(0.5 + PROMPT, at_least=0.4), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get("https://127.0.0.1:1/"))
        assert client.pool_stats().connections == 0


async def test_the_steps_of_socks_share_the_connect_timeout(flavour: Flavour) -> None:
    """0.7 s for each answer of the proxy, then a TLS handshake that stalls: 1.6 s in all."""
    step = Step(read="nothing", then=socks(OK, CONNECTED, delay=0.7))
    with ScriptedServer([step]) as server:
        proxy = server.url.replace("http:", "socks5:")
        client = one_attempt(flavour, proxy=proxy, connect_timeout=1.6)
        with within(2.5, at_least=1.4), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get("https://127.0.0.1:1/"))


# --- several addresses ---------------------------------------------------------------------------


@contextlib.contextmanager
def addresses(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedServer, *kinds: str
) -> Iterator[str]:
    """A name with these addresses: "refused", "dead" (a full backlog), or "alive" (the server)."""
    hosts = [f"127.0.9.{number}" for number in range(1, len(kinds) + 1)]
    with contextlib.ExitStack() as stack:
        for number, kind in enumerate(kinds):
            if kind == "dead":
                fill_backlog(stack, hosts[number], server.port)
            elif kind == "alive":
                hosts[number] = LOOPBACK
        stack.enter_context(resolving(monkeypatch, "many.test", hosts))
        yield f"http://many.test:{server.port}"


@pytest.mark.parametrize(("dead", "limit"), [(1, 8), (4, 8), (1, None)])
async def test_dead_addresses_cost_a_quarter_of_a_second_each(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, dead: int, limit: float | None
) -> None:
    """The next attempt begins 250 ms later, however long connect_timeout is; without one, too."""
    with (
        ScriptedServer(echo) as server,
        addresses(monkeypatch, server, *["dead"] * dead, "alive") as url,
    ):
        client = one_attempt(flavour, connect_timeout=limit)
        with within(0.25 * dead + 1.2, at_least=0.2 * dead):
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"


async def test_a_dead_address_leaves_half_of_a_short_time(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the others: also where connect_timeout is shorter than what one is waited for alone."""
    monkeypatch.setattr(_network, "ATTEMPT_DELAY", 30.0)
    with ScriptedServer(echo) as server, addresses(monkeypatch, server, "dead", "alive") as url:
        client = one_attempt(flavour, connect_timeout=3)
        with within(1.5 + PROMPT, at_least=1.4):
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"


async def test_refused_addresses_cost_nothing(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen that refuse, and the last one of sixteen is there: no pause before the next."""
    with (
        ScriptedServer(echo) as server,
        addresses(monkeypatch, server, *["refused"] * 15, "alive") as url,
    ):
        client = one_attempt(flavour, connect_timeout=8)
        with within(PROMPT):
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"


async def test_an_attempt_goes_on_beside_the_next_ones(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of sixteen addresses takes a second, the others for ever: it still gets there."""
    hosts = [f"127.0.9.{number}" for number in range(1, 17)]
    with contextlib.ExitStack() as stack:
        listener = fill_backlog(stack, hosts[0], 0)
        port = listener.getsockname()[1]
        for host in hosts[1:]:
            fill_backlog(stack, host, port)
        stack.enter_context(resolving(monkeypatch, "slow.test", hosts))
        accepted: list[socket.socket] = []

        def serve() -> None:
            listener.settimeout(0.1)
            while not over.wait(0.02):
                with contextlib.suppress(OSError):
                    accepted.append(listener.accept()[0])
                for sock in accepted:
                    with contextlib.suppress(OSError):
                        sock.setblocking(False)
                        if b"\r\n\r\n" in sock.recv(65536):
                            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        over = threading.Event()
        timer = threading.Timer(0.4, serve)
        timer.start()
        try:
            client = one_attempt(flavour, connect_timeout=2.5)
            with within(3.5):
                response = await flavour.run(client.get(f"http://slow.test:{port}"))
            assert response.text == "ok"
        finally:
            over.set()
            timer.join()
            for sock in accepted:
                sock.close()


@pytest.mark.parametrize("kind", ["dead", "refused"])
async def test_addresses_that_all_fail_end_in_time(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Sixteen dead ones are a ConnectTimeout in time, sixteen refusing ones a ConnectError."""
    error = httpx.ConnectTimeout if kind == "dead" else httpx.ConnectError
    with ScriptedServer(echo) as server, addresses(monkeypatch, server, *[kind] * 16) as url:
        client = one_attempt(flavour, connect_timeout=0.9)
        with within(0.9 + PROMPT), pytest.raises(error):
            await flavour.run(client.get(url))
        assert client.pool_stats().connections == 0


async def test_an_address_that_refuses_takes_no_time_from_a_slow_one(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one attempt that is left has all of connect_timeout, and no more."""
    with ScriptedServer(echo) as server, addresses(monkeypatch, server, "dead", "refused") as url:
        client = one_attempt(flavour, connect_timeout=0.6)
        with within(0.6 + PROMPT, at_least=0.5), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get(url))


async def test_a_mixture_of_addresses(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, dead, refused, dead, alive: half a second, and no socket is left over."""
    with (
        ScriptedServer(echo) as server,
        addresses(monkeypatch, server, "refused", "dead", "refused", "dead", "alive") as url,
    ):
        client = one_attempt(flavour, connect_timeout=8)
        with within(6.0, at_least=0.3):
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"


@pytest.mark.flavours("asyncio", "trio")
async def test_cancelling_several_attempts_leaves_no_socket(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attempts are under way: all of their sockets are closed (ResourceWarnings fail)."""
    with (
        ScriptedServer(echo) as server,
        addresses(monkeypatch, server, *["dead"] * 8) as url,
    ):
        client = one_attempt(flavour, connect_timeout=8)
        with within(0.7 + PROMPT), anyio.move_on_after(0.7) as scope:
            await client.get(url)
        assert scope.cancelled_caught
        assert client.pool_stats().connections == 0


async def test_one_dead_address_takes_the_whole_connect_timeout(flavour: Flavour) -> None:
    """No more and no less."""
    with full_backlog() as url:
        client = one_attempt(flavour, connect_timeout=0.6)
        with within(0.6 + PROMPT, at_least=0.5), pytest.raises(httpx.ConnectTimeout):
            await flavour.run(client.get(url))


@pytest.mark.parametrize("kind", ["http", "https", "tunnel"])
async def test_a_connection_that_is_made_has_no_connect_timeout(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """However old it is when it is used again."""
    with ScriptedServer(echo, tls=kind != "http") as server, ScriptedServer(forward) as proxy:
        client = one_attempt(flavour, proxy=proxy.url if kind == "tunnel" else None)
        assert (await flavour.run(client.get(f"{server.url}/1"))).text == "/1"
        later = time.monotonic() + 100.0
        monkeypatch.setattr(_network, "monotonic", lambda: later)
        assert (await flavour.run(client.post(f"{server.url}/2", content=b"x"))).text == "/2"
        assert server.connections == 1


# --- a clock that stands still -------------------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[Callable[[], contextlib.ExitStack]]:
    """Stop the clock, as freezegun does it; it moves again after the test, however that ends.

    The event loops keep the real time, or nothing at all would time out.
    """
    freezer = freezegun.freeze_time("2026-01-01", real_asyncio=True, ignore=["trio", "anyio"])
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(freezer) and stack


@pytest.mark.time_limit(7)
@pytest.mark.parametrize("where", ["headers", "body", "upload"])
async def test_a_frozen_clock_makes_no_loop(
    flavour: Flavour, frozen: Callable[[], contextlib.ExitStack], where: str
) -> None:
    """freezegun, and an HTTP/2 server that is silent: the timeout comes, and the CPU rests."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        if where == "body":
            peer.send(peer.head(stream), peer.data(stream, b"part"))
        peer.rest()

    settings = {"INITIAL_WINDOW_SIZE": 0}
    error = httpx.WriteTimeout if where == "upload" else httpx.ReadTimeout
    with H2Peer(script, settings=settings) as server:
        client = one_attempt(flavour, read_timeout=0.5, write_timeout=0.5)
        method, content = ("POST", b"x" * 100_000) if where == "upload" else ("GET", None)
        now, cpu = time.perf_counter, time.process_time  # the real ones
        with frozen():
            started, before = now(), cpu()
            outcome = await flavour.outcome(client.request, method, server.url, content=content)
            took, used = now() - started, cpu() - before
        assert took < 0.5 + PROMPT
        assert used < 0.1 + 0.5 * took
        assert isinstance(outcome, error)
        assert in_use(client) == (0, 0)


@pytest.mark.time_limit(7)
@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_requests_work_under_a_frozen_clock(
    flavour: Flavour, frozen: Callable[[], contextlib.ExitStack], kind: str
) -> None:
    """Connecting, uploading, waiting for a slot and reading need no clock that moves."""
    server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
    with server:
        client = one_attempt(flavour, max_connections=1)
        with frozen():
            outcomes = await flavour.gather(
                lambda url=f"{server.url}/{n}": client.post(url, content=b"x" * 200_000)
                for n in range(3)
            )
        assert [getattr(one, "text", one) for one in outcomes] == ["/0", "/1", "/2"]


# --- early answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["fin", "reset", "hang"])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("body", ["bytes", "generator"])
@pytest.mark.filterwarnings("ignore:Async generator")  # the body itself, which trio tells of
async def test_an_answer_before_the_upload_was_read(
    flavour: Flavour, then: Any, tls: bool, body: str
) -> None:
    """413 with `Connection: close`, and an orderly close, an immediate RST, or nothing."""
    early = answer(413, b"too large", {"Connection": "close"}, read="head", then=then)
    with ScriptedServer([early], tls=tls) as server:
        client = one_attempt(flavour, write_timeout=1.0)
        content: Any = b"x" * 6_000_000
        if body == "generator":
            content = flavour.generator([b"x" * 60_000] * 100)
        with within(1.0 + PROMPT):
            response = await flavour.run(client.post(server.url, content=content))
        assert (response.status_code, response.content) == (413, b"too large")
        assert client.pool_stats().connections == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_an_early_answer_may_be_long(flavour: Flavour, tls: bool) -> None:
    """What had come when the upload ran out of time is its beginning, once; the rest follows."""
    body = b"".join(b"%06d" % number for number in range(50_000))
    early = answer(413, body, {"Connection": "close"}, read="head", then="hang")
    with ScriptedServer([early], tls=tls) as server:
        client = one_attempt(flavour, write_timeout=0.3)
        response = await flavour.run(client.post(server.url, content=b"x" * 9_000_000))
        assert response.status_code == 413
        assert response.content == body


@pytest.mark.parametrize("delay", [0.05, 0.3])
async def test_an_answer_in_the_middle_of_the_upload(flavour: Flavour, delay: float) -> None:
    """Part of the upload was read, then 413 and a reset."""
    early = answer(413, b"enough", {"Connection": "close"}, read=500_000, delay=delay, then="reset")
    with ScriptedServer([early]) as server:
        client = one_attempt(flavour, write_timeout=2.0)
        with within(2.0 + PROMPT):
            response = await flavour.run(client.post(server.url, content=b"x" * 30_000_000))
        assert (response.status_code, response.content) == (413, b"enough")


async def test_a_reset_without_an_answer_is_an_error(flavour: Flavour) -> None:
    """Nothing is made up."""
    with ScriptedServer([Step(read=1000, then="reset")]) as server:
        client = one_attempt(flavour)
        with pytest.raises((httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)):
            await flavour.run(client.post(server.url, content=b"x" * 6_000_000))
        assert client.pool_stats().connections == 0
