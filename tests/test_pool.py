"""The pool: who gets which connection, what is kept, what it says, and what it must not touch."""

import contextlib
import importlib.util
import inspect
import re
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import h2
import h2.connection
import httpcore
import httpx
import pytest
from anyio.streams.tls import TLSStream
from conftest import Flavour
from h2_peer import H2Peer
from httpcore._backends.anyio import AnyIOStream
from httpcore._backends.sync import SyncStream
from httpcore._sync.http_proxy import TunnelHTTPConnection
from httpcore._trace import Trace
from servers import (
    LOOPBACK,
    Received,
    ScriptedServer,
    Step,
    answer,
    client_context,
    cut,
    forward,
    full_backlog,
    hang,
    message,
    refused_port,
)

from httpx_production import _pool
from httpx_production._pool import ledger as _ledger
from httpx_production._pool import network as _network

pytestmark = pytest.mark.anyio
ASYNC = pytest.mark.flavours("asyncio", "trio")


# --- the ledger, without I/O ------------------------------------------------------------------


class Fake:
    """A connection that is what the test says; it counts how often it is asked."""

    asked: ClassVar[Counter[str]] = Counter()

    def __init__(self, origin: httpcore.Origin, changed: Callable[[], None]) -> None:
        self.origin, self.changed = origin, changed
        self.multiplexes: bool | None = False
        self.streams = 1
        self.good = True
        self.expired = False

    def is_idle(self) -> bool:
        return self.good

    def has_expired(self) -> bool:
        self.asked["has_expired"] += 1
        return self.expired

    def negotiate(self, streams: int) -> None:
        """Turn out to be HTTP/2 with so many streams; 0 means HTTP/1.1."""
        self.multiplexes, self.streams = streams > 0, streams or 1
        self.changed()


class Event:
    def set(self) -> None: ...


class Desk:
    """A ledger and its tickets, called by letters."""

    def __init__(
        self, size: float = 2, keep: float = 99, expiry: float | None = None, maybe: bool = False
    ) -> None:
        def create(origin: httpcore.Origin, changed: Callable[[], None]) -> Fake:
            fake = Fake(origin, changed)
            fake.multiplexes = None if maybe else False
            self.made.append(fake)
            return fake

        self.made: list[Fake] = []
        self.tickets: dict[str, Any] = {}
        self.ledger = _ledger.Ledger[Fake](create, Fake.is_idle, Event, (size, keep, expiry))
        Fake.asked.clear()

    def enter(self, *names: str) -> None:
        """`a1`: the request 1 to the origin a."""
        for name in names:
            self.tickets.setdefault(name, _ledger.Ticket(self.ledger.lost))
            origin = httpcore.Origin(b"https", name[0].encode(), 443)
            self.ledger.enter(self.tickets[name], origin)

    def leave(self, *names: str) -> None:
        for name in names:
            self.ledger.leave(self.tickets[name])

    def served(self) -> str:
        """Who has a connection."""
        return " ".join(name for name, ticket in self.tickets.items() if ticket.slot)

    def of(self, name: str) -> Fake:
        return self.tickets[name].slot.connection

    def closed(self) -> list[Fake]:
        closing, self.ledger.closing = self.ledger.closing, []
        return closing


def test_a_free_connection_goes_to_one_request_in_order() -> None:
    """First come, first served, and nobody else is even woken."""
    desk = Desk(size=1)
    desk.enter("a1", "a2", "b1", "a3")
    for turn in ("a1", "a2", "b1", "a3"):
        assert desk.served() == turn
        desk.leave(turn)
    assert desk.ledger.count() == (1, 1, 0)


def test_the_most_recently_used_connection_is_used_again() -> None:
    """The others stay idle until they expire: a quiet pool shrinks."""
    desk = Desk(size=3)
    desk.enter("a1", "a2", "a3")
    last = desk.of("a2")
    desk.leave("a1", "a3", "a2")
    desk.enter("a4")
    assert desk.of("a4") is last


def test_only_what_is_handed_out_is_looked_at() -> None:
    """200 idle connections, to one origin or to 200, cost nothing."""
    for origins in ("a", "".join(chr(97 + number) for number in range(200))):
        desk = Desk(size=200, keep=200)
        names = [f"{origins[number % len(origins)]}{number}" for number in range(200)]
        desk.enter(*names)
        desk.leave(*names)
        Fake.asked.clear()
        for _ in range(100):
            desk.enter("ax")
            desk.leave("ax")
        assert Fake.asked["has_expired"] == 100
        assert desk.ledger.count() == (200, 200, 0)


def test_an_expired_connection_is_closed_instead_of_used() -> None:
    """Whatever made it useless: `has_expired` covers age and the server's close."""
    desk = Desk()
    desk.enter("a1", "a2")
    first, second = desk.made
    desk.leave("a1", "a2")
    first.expired = second.expired = True
    desk.enter("a3")
    assert desk.of("a3") not in (first, second)
    assert desk.closed() == [second, first]


def test_only_the_surplus_of_idle_connections_is_closed() -> None:
    """httpcore counts those in use too, and so closes nearly all."""
    desk = Desk(size=50, keep=20)
    names = [f"a{number}" for number in range(50)]
    desk.enter(*names)
    desk.leave(*names[:20])
    assert desk.closed() == []
    desk.leave(*names[20:])
    assert desk.closed() == desk.made[:30]  # the longest idle ones
    assert desk.ledger.count() == (20, 20, 0)


def test_the_old_are_closed_when_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of origins that nobody asks for any more."""
    now = 0.0
    monkeypatch.setattr(_ledger, "monotonic", lambda: now)
    desk = Desk(size=9, expiry=30.0)
    desk.enter("a1", "b1", "c1")
    desk.leave("a1")
    now = 20.0
    desk.leave("b1")
    now = 31.0
    desk.leave("c1")
    assert [fake.origin.host for fake in desk.closed()] == [b"a"]
    assert desk.ledger.count() == (2, 2, 0)


def test_the_longest_idle_connection_makes_room_for_another_origin() -> None:
    """A full pool of idle connections is no reason to wait."""
    desk = Desk(size=2)
    desk.enter("a1", "b1")
    desk.leave("b1", "a1")
    desk.enter("c1")
    assert desk.served() == "c1"
    assert [fake.origin.host for fake in desk.closed()] == [b"b"]


def test_a_connection_that_never_began_is_not_kept() -> None:
    """Its request was cancelled first: the slot goes to the next one."""
    desk = Desk(size=1)
    desk.enter("a1", "a2")
    desk.of("a1").good = False
    desk.leave("a1")
    assert desk.served() == "a2"
    assert desk.closed() == desk.made[:1]


def test_who_leaves_while_waiting_takes_nothing_along() -> None:
    """Leaving twice, or before having entered, changes nothing either."""
    desk = Desk(size=1)
    desk.enter("a1", "a2", "a3")
    desk.leave("a2", "a2", "a1", "a1")
    assert desk.served() == "a3"
    desk.leave("a3")
    desk.ledger.leave(_ledger.Ticket(desk.ledger.lost))
    assert desk.ledger.count() == (1, 1, 0)


def test_who_comes_back_is_first_in_line() -> None:
    """A request whose connection turned out useless does not queue behind the others."""
    desk = Desk(size=1)
    desk.enter("a1", "a2", "a3")
    desk.of("a1").good = False
    desk.leave("a1")
    desk.enter("a1")
    desk.leave("a2")
    assert desk.served() == "a1"


def test_a_forgotten_ticket_is_taken_back() -> None:
    """A response that is garbage does not keep its connection."""
    desk = Desk(size=1)
    desk.enter("a1")
    del desk.tickets["a1"]
    desk.enter("a2")
    assert desk.served() == "a2"


def test_an_interrupted_step_is_made_good() -> None:
    """Ctrl-C in the middle of leaving, and of being served, costs no slot."""
    desk = Desk(size=2)
    desk.enter("a1", "b1", "a2")
    interrupted = desk.tickets["a1"]
    interrupted.slot.users.clear()
    desk.ledger._queue[desk.tickets["b1"]] = desk.tickets["b1"].lane
    desk.leave("a1")
    assert desk.served() == "b1 a2"
    desk.leave("b1", "a2")
    assert desk.ledger.count() == (2, 2, 0)


def test_nothing_is_remembered_of_origins_that_are_gone() -> None:
    """A crawler that sees a million hosts doesn't fill the memory."""
    desk = Desk(size=1)
    for number in range(100):
        desk.enter(f"{chr(200 + number)}1")
        desk.leave(f"{chr(200 + number)}1")
    assert len(desk.ledger._lanes) == 1


def test_clearing_closes_all_and_serves_who_waits() -> None:
    """A closed pool keeps nothing, but whoever is on his way gets there."""
    desk = Desk(size=1)
    desk.enter("a1", "a2")
    desk.ledger.clear()
    assert desk.closed() == desk.made[:1]
    assert desk.served() == "a1 a2"
    desk.leave("a1", "a2")
    assert set(desk.closed()) == set(desk.made)
    assert desk.ledger.count() == (0, 0, 0)


def test_the_first_handshake_decides_for_all_who_wait() -> None:
    """One connection is made to an unknown origin; with HTTP/2 it serves them all."""
    desk = Desk(size=9, maybe=True)
    desk.enter("a1", "a2", "a3", "b1")
    assert desk.served() == "a1 b1"
    desk.of("a1").negotiate(100)
    assert desk.served() == "a1 a2 a3 b1"
    assert len(desk.made) == 2


def test_with_http1_each_gets_his_own_and_it_is_remembered() -> None:
    """Only the first burst waits for a handshake."""
    desk = Desk(size=3, maybe=True)
    desk.enter("a1", "a2", "a3", "a4")
    desk.of("a1").negotiate(0)
    assert desk.served() == "a1 a2 a3"
    desk.leave("a1", "a2", "a3")
    assert desk.served() == "a4"
    for fake in desk.made:
        fake.expired = True
    desk.enter("a5", "a6")
    assert desk.served() == "a4 a5 a6"


def test_a_failed_handshake_is_the_next_one_s_turn() -> None:
    """Nobody waits for a connection that will not come."""
    desk = Desk(maybe=True)
    desk.enter("a1", "a2", "a3")
    desk.of("a1").good = False
    desk.leave("a1")
    assert desk.served() == "a2"


def test_streams_are_handed_out_up_to_the_limit_and_in_order() -> None:
    """The others wait for one to end; when the limit rises they go on."""
    desk = Desk(size=9, maybe=True)
    desk.enter("a1", "a2", "a3", "a4", "a5")
    desk.of("a1").negotiate(2)
    assert desk.served() == "a1 a2"
    desk.leave("a2")
    assert desk.served() == "a1 a3"
    desk.of("a1").negotiate(3)
    assert desk.served() == "a1 a3 a4"
    assert len(desk.made) == 1


def test_a_retired_connection_is_replaced_at_once() -> None:
    """GOAWAY: those on it stay, those who wait get a new one, and it goes with its last request."""
    desk = Desk(size=9, maybe=True)
    desk.enter("a1", "a2", "a3")
    old = desk.of("a1")
    old.negotiate(2)
    old.streams = 0
    old.changed()
    assert desk.served() == "a1 a2 a3"
    assert desk.of("a3") is not old
    old.good = False
    desk.leave("a1", "a2")
    assert desk.closed() == [old]


def test_an_idle_shared_connection_is_shared_again() -> None:
    """It rests when the last request leaves, and takes several when they come back."""
    desk = Desk(size=9, maybe=True)
    desk.enter("a1")
    desk.of("a1").negotiate(100)
    desk.leave("a1")
    assert desk.ledger.count() == (1, 1, 0)
    desk.enter("a2", "a3")
    assert desk.of("a2") is desk.of("a3")
    assert desk.ledger.count() == (1, 0, 0)


def test_who_waits_for_a_slot_can_end_up_sharing() -> None:
    """A full pool: the first to get a slot makes the connection, the others of his origin wait."""
    desk = Desk(size=1, maybe=True)
    desk.enter("b1")
    desk.of("b1").negotiate(0)
    desk.enter("a1", "a2", "c1")
    desk.leave("b1")
    assert desk.served() == "a1"
    assert desk.ledger.count() == (1, 0, 2)
    desk.of("a1").negotiate(100)
    assert desk.served() == "a1 a2"
    desk.leave("a1", "a2")
    assert desk.served() == "c1"


def test_the_end_of_a_connection_that_was_cleared_changes_nothing() -> None:
    """A handshake that ends after the pool was closed."""
    desk = Desk(maybe=True)
    desk.enter("a1")
    fake = desk.of("a1")
    desk.ledger.clear()
    fake.negotiate(100)
    desk.leave("a1")
    assert desk.ledger.count() == (0, 0, 0)


# --- connections opened, over sockets ---------------------------------------------------------


@pytest.fixture(params=["mended", "stock"])
def any_pool(request: pytest.FixtureRequest, flavour: Flavour) -> Callable[..., Any]:
    """httpx's own client, on httpcore's pool and on ours: what must be the same on both."""

    def client(**options: Any) -> Any:
        client = flavour.plain(**options)
        if request.param == "mended":
            _pool.mend(client, ())
        return client

    return client


def one_attempt(flavour: Flavour, **options: Any) -> Any:
    return flavour.client(**{"verify": client_context(), "max_attempts": 1, **options})


def echo(request: Received) -> Step:
    return answer(200, request.path.encode())


async def in_flight(flavour: Flavour, client: Any, url: str, callers: int, each: int) -> None:
    async def loop() -> None:
        for _ in range(each):
            assert (await flavour.run(client.get(url))).status_code == 200

    def sync_loop() -> None:
        for _ in range(each):
            assert client.get(url).status_code == 200

    outcomes = await flavour.gather([sync_loop if flavour.sync else loop] * callers)
    assert outcomes == [None] * callers


async def test_fifty_callers_open_no_new_connections(flavour: Flavour) -> None:
    """1000 requests at 50 callers: at most 60 connections on the default limits."""
    with ScriptedServer(lambda _: answer(delay=0.002)) as server:
        client = flavour.client()
        await in_flight(flavour, client, server.url, 50, 20)
        assert server.connections <= 60


async def test_fifty_connections_kept_are_enough(flavour: Flavour) -> None:
    """With as many idle ones as there may be, not one beyond the first fifty."""
    with ScriptedServer(lambda _: answer(delay=0.002)) as server:
        client = flavour.client(max_keepalive_connections=50)
        await in_flight(flavour, client, server.url, 50, 2)
        first = server.connections
        await in_flight(flavour, client, server.url, 50, 20)
        assert first <= 50
        assert server.connections <= 50


async def test_more_callers_than_connections(flavour: Flavour) -> None:
    """They take turns; the pool never grows beyond its limit."""
    with ScriptedServer(echo) as server:
        client = flavour.client(max_connections=5, pool_timeout=10.0)
        await in_flight(flavour, client, server.url, 40, 5)
        assert server.connections == 5
        assert client.pool_stats() == _pool.PoolStats(5, 5, 0, 0)


async def test_a_connection_is_used_again(flavour: Flavour, any_pool: Any) -> None:
    """One after the other: one connection."""
    with ScriptedServer(echo) as server:
        client = any_pool()
        for number in range(3):
            assert (await flavour.run(client.get(f"{server.url}/{number}"))).text == f"/{number}"
        assert server.connections == 1
        assert _pool.stats(client, ()) == _pool.PoolStats(1, 1, 0, 0)
        assert len(client._transport._pool.connections) == 1
        assert "0 active, 1 idle" in repr(client._transport._pool)


async def test_what_is_in_use_is_counted(flavour: Flavour, any_pool: Any) -> None:
    """`stats` while a response is being read, on httpcore's pool as well."""
    with ScriptedServer(echo) as server:
        client = any_pool()
        async with flavour.using(client.stream("GET", server.url)):
            assert _pool.stats(client, ()) == _pool.PoolStats(1, 0, 1, 0)
        await flavour.close(client)
        assert _pool.stats(client, ()) == _pool.PoolStats(0, 0, 0, 0)


async def test_an_old_connection_is_not_used_again(flavour: Flavour, any_pool: Any) -> None:
    """`keepalive_expiry`, in seconds."""
    with ScriptedServer(echo) as server:
        client = any_pool(limits=httpx.Limits(keepalive_expiry=0.05))
        await flavour.run(client.get(server.url))
        await anyio.sleep(0.1)
        await flavour.run(client.get(server.url))
        assert server.connections == 2


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_that_the_server_closed_is_not_used(
    flavour: Flavour, any_pool: Any, tls: bool
) -> None:
    """An orderly close of an idle connection is seen before the next request."""
    with ScriptedServer([answer(then="fin")], tls=tls) as server:
        client = any_pool(verify=client_context())
        await flavour.run(client.get(server.url))
        await anyio.sleep(0.05)
        assert (await flavour.run(client.post(server.url))).status_code == 200


async def test_other_protocols_are_refused_in_httpcore_s_words(
    flavour: Flavour, any_pool: Any
) -> None:
    """As a URL without a scheme is."""
    client = any_pool()
    for url, words in {"ftp://host": "unsupported protocol", "//host": "missing an 'http"}.items():
        with pytest.raises(httpx.UnsupportedProtocol, match=words):
            await flavour.run(client.get(url))


# --- waiting ----------------------------------------------------------------------------------


async def test_a_pool_timeout_says_what_to_do(flavour: Flavour) -> None:
    """How many connections, how many in use, how many waiting, and the argument to raise."""
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=0.1)
        async with flavour.using(client.stream("GET", server.url)):
            with pytest.raises(httpx.PoolTimeout) as caught:
                await flavour.run(client.get(server.url))
        assert str(caught.value) == (
            "no free connection after 0.1 s: 1 of 1 connections in use, 1 requests waiting; "
            "raise max_connections or pool_timeout"
        )


def test_a_second_wait_goes_on_with_the_first_one_s_time() -> None:
    """What was waited is not waited again; no limit stays none."""
    request = httpcore.Request("GET", "http://host", extensions={"timeout": {"pool": 2.0}})
    ticket: Any = _ledger.Ticket(_ledger.Ledger[Fake](Fake, Fake.is_idle, Event, (1, 1, 1)).lost)
    assert _pool._patience(request, ticket) == 2.0
    ticket.waited = 1.5
    assert _pool._patience(request, ticket) == 0.5
    ticket.waited = 3.0
    assert _pool._patience(request, ticket) == 0.0
    for endless in (None, float("inf")):
        request.extensions["timeout"] = {"pool": endless}
        assert _pool._patience(request, ticket) is None


async def test_closing_the_client_ends_what_is_open(flavour: Flavour) -> None:
    """A connection whose response is being read is closed too, and nothing is left."""
    with ScriptedServer([answer(), cut(b"half", 2, then="hang")]) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        async with flavour.using(client.stream("GET", server.url)) as response:
            await flavour.close(client)
            assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)
            with pytest.raises(httpx.TransportError):
                await flavour.read(response)
        assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)


# --- bytes after the end of a response --------------------------------------------------------

FORGED = message(200, b"forged")


@pytest.mark.parametrize(
    ("case", "pause", "tls"),
    [
        ("get", 0.0, False),
        ("get", 0.0, True),
        ("get", 0.02, True),
        ("head", 0.0, True),
        ("head", 0.02, False),
        ("204", 0.02, False),
        ("304", 0.0, False),
    ],
)
async def test_bytes_after_a_response_are_not_the_next_answer(
    flavour: Flavour, case: str, pause: float, tls: bool
) -> None:
    """In the same packet or in a later one, after a body, or after what has none."""
    head = message(200 if case in ("get", "head") else int(case))
    first = Step(send=(head, FORGED) if pause else (head + FORGED,), pause=pause)
    with ScriptedServer([first], tls=tls) as server:
        client = one_attempt(flavour)
        method = "HEAD" if case == "head" else "GET"
        await flavour.run(client.request(method, server.url))
        await anyio.sleep(pause * 3)
        assert (await flavour.run(client.get(f"{server.url}/next"))).content == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("tls", [False, True])
async def test_an_early_answer_to_an_upload_is_read(flavour: Flavour, tls: bool) -> None:
    """413 before the body was read, and a close: the answer counts, not the broken pipe."""
    early = answer(413, b"too large", {"Connection": "close"}, read="head", then="fin")
    with ScriptedServer([early], tls=tls) as server:
        client = one_attempt(flavour)
        response = await flavour.run(client.post(server.url, content=b"x" * 3_000_000))
        assert (response.status_code, response.content) == (413, b"too large")
        assert client.pool_stats().connections == 0


async def test_an_early_answer_counts_more_than_a_write_timeout(flavour: Flavour) -> None:
    """The server answered and stopped reading, without closing."""
    with ScriptedServer([answer(503, b"busy", read="head", then="hang")]) as server:
        client = one_attempt(flavour, write_timeout=0.3)
        response = await flavour.run(client.post(server.url, content=b"x" * 9_000_000))
        assert (response.status_code, response.content) == (503, b"busy")


@pytest.mark.parametrize("tls", [False, True])
async def test_an_upload_that_is_reset_is_an_error(flavour: Flavour, tls: bool) -> None:
    """No answer, no slot lost."""
    with ScriptedServer([Step(read=1000, then="reset")], tls=tls) as server:
        client = one_attempt(flavour)
        with pytest.raises((httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)):
            await flavour.run(client.post(server.url, content=b"x" * 3_000_000))
        assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)


@pytest.mark.flavours("sync", "trio")
async def test_an_answer_before_the_reset_is_read(flavour: Flavour) -> None:
    """503, and a reset because the upload is unread: what came before the reset counts.

    On asyncio it may be lost: a write that fails closes the socket, whatever is in it.
    """
    with ScriptedServer([answer(503, b"busy", read="head", then="reset")]) as server:
        client = one_attempt(flavour)
        response = await flavour.run(client.post(server.url, content=b"x" * 3_000_000))
        assert (response.status_code, response.content) == (503, b"busy")


async def test_a_write_timeout_without_an_answer_is_one(flavour: Flavour) -> None:
    """The server neither reads nor answers."""
    with ScriptedServer([hang(read="head")]) as server:
        client = one_attempt(flavour, write_timeout=0.2)
        with pytest.raises(httpx.WriteTimeout):
            await flavour.run(client.post(server.url, content=b"x" * 9_000_000))


# --- connecting -------------------------------------------------------------------------------


@contextlib.contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *urls: str) -> Iterator[str]:
    """A name with these addresses, in this order."""
    ports = [httpx.URL(url).port for url in urls]

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (LOOPBACK, port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield f"http://{len(urls)}.test"
    monkeypatch.undo()


@pytest.mark.flavours("sync")
async def test_several_addresses_share_the_connect_timeout(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that don't answer take as long as one; a fourth that does is still reached."""
    with ScriptedServer(echo) as server, full_backlog() as deaf, refused_port() as shut:
        client = one_attempt(flavour, connect_timeout=0.6)
        started = time.monotonic()
        with (
            resolving(monkeypatch, deaf, deaf, deaf) as url,
            pytest.raises(httpx.ConnectTimeout),
        ):
            await flavour.run(client.get(url))
        assert 0.5 < time.monotonic() - started < 1.0
        with resolving(monkeypatch, deaf, shut, shut, server.url) as url:
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"
        with resolving(monkeypatch, shut, shut) as url, pytest.raises(httpx.ConnectError):
            await flavour.run(client.get(url))
        with resolving(monkeypatch) as url, pytest.raises(httpx.ConnectError, match="no address"):
            await flavour.run(client.get(url))


async def test_no_limit_is_no_limit(flavour: Flavour) -> None:
    """`timeout=None` reaches the sockets."""
    with ScriptedServer(echo, tls=True) as server:
        client = one_attempt(flavour, request_timeout=None, timeout=None)
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"


async def test_a_failed_handshake_leaves_no_socket(flavour: Flavour) -> None:
    """An untrusted certificate, plain HTTP where TLS is expected: ResourceWarnings fail here."""
    with ScriptedServer(tls=True) as trusted, ScriptedServer() as plain:
        client = one_attempt(flavour, verify=True, connect_timeout=0.3)
        for url in (trusted.url, plain.url.replace("http:", "https:")):
            with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
                await flavour.run(client.get(url))
        assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)


async def test_options_of_the_backend_are_honoured(flavour: Flavour) -> None:
    """A local address and socket options, as httpcore's pools take them."""
    option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with ScriptedServer(echo) as server:
        arguments: Any = {"local_address": "127.0.0.3", "socket_options": [option]}
        kind = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
        mended = _pool.Pool if flavour.sync else _pool.AsyncPool
        pool: Any = mended(kind(**arguments))  # type: ignore[arg-type]
        async with flavour.using(pool):
            response = await flavour.run(pool.request("GET", server.url))
            raw = response.extensions["network_stream"].get_extra_info("socket")
            assert raw.getsockname()[0] == "127.0.0.3"
            assert raw.getsockopt(*option[:2])
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_what_fails_below_is_httpcore_s_exception(flavour: Flavour) -> None:
    """Reading from and writing to a stream that was closed."""
    kind = _network.Backend if flavour.sync else _network.AsyncBackend
    with ScriptedServer(echo) as server:
        port = httpx.URL(server.url).port or 0
        stream: Any = await flavour.run(kind().connect_tcp(LOOPBACK, port, timeout=1.0))
        await flavour.run(stream.write(b""))
        with pytest.raises(httpcore.ReadTimeout):
            await flavour.run(stream.read(1, timeout=0.01))
        await flavour.close(stream)
        await flavour.close(stream)
        with pytest.raises(httpcore.ReadError):
            await flavour.run(stream.read(1))
        with pytest.raises(httpcore.WriteError):
            await flavour.run(stream.write(b"x"))


@pytest.mark.parametrize("levels", [1, 2])
async def test_decrypted_bytes_are_seen(flavour: Flavour, levels: int) -> None:
    """What TLS holds, in a tunnel through TLS too, counts as readable; select can't see it."""
    kind = _network.Backend if flavour.sync else _network.AsyncBackend
    context = client_context()
    with ScriptedServer(echo, tls=True) as server, ScriptedServer(forward, tls=True) as proxy:
        url = httpx.URL(server.url if levels == 1 else proxy.url)
        stream: Any = await flavour.run(kind().connect_tcp(LOOPBACK, url.port or 0, timeout=5))
        stream = await flavour.run(stream.start_tls(context, LOOPBACK, timeout=5))
        if levels == 2:
            target = httpx.URL(server.url).netloc
            await flavour.run(stream.write(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % target))
            assert b" 200 " in await flavour.run(stream.read(4096, timeout=5))
            stream = await flavour.run(stream.start_tls(context, LOOPBACK, timeout=5))
        await flavour.run(stream.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5))
        assert await flavour.run(stream.read(1, timeout=5)) == b"H"
        assert stream.get_extra_info("is_readable")
        assert (await flavour.run(stream.read(4096, timeout=5))).endswith(b"/x")
        assert not stream.get_extra_info("is_readable")
        await flavour.close(stream)


# --- proxies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy_tls", [False, True])
@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_through_a_proxy(flavour: Flavour, kind: str, proxy_tls: bool) -> None:
    """Forwarding and tunnels, TLS within TLS: connections are used again, and cleaned up."""
    with contextlib.ExitStack() as stack:
        server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
        stack.enter_context(server)
        proxy = stack.enter_context(ScriptedServer(forward, tls=proxy_tls))
        context = client_context() if proxy_tls else None
        client = one_attempt(flavour, proxy=httpx.Proxy(proxy.url, ssl_context=context))
        for number in range(3):
            response = await flavour.run(client.get(f"{server.url}/{number}"))
            assert response.text == f"/{number}"
        assert client.pool_stats() == _pool.PoolStats(1, 1, 0, 0)
        assert {type(transport._pool) for transport in client._mounts.values()} <= {
            _pool.HTTPProxyPool,
            _pool.AsyncHTTPProxyPool,
        }


@pytest.mark.parametrize("refusal", [answer(407), Step(then="fin"), answer(200, b"")])
async def test_a_tunnel_that_fails_keeps_no_slot(flavour: Flavour, refusal: Step) -> None:
    """Refused, closed, or without TLS at its end (httpcore loses that slot for ever)."""
    with ScriptedServer(lambda _: refusal) as proxy:
        client = one_attempt(flavour, proxy=proxy.url, max_connections=1, connect_timeout=0.2)
        for _ in range(2):
            with pytest.raises(httpx.TransportError) as caught:
                await flavour.run(client.get("https://127.0.0.1:1/"))
            assert not isinstance(caught.value, httpx.PoolTimeout)
        assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)


class Socks:
    """A SOCKS5 proxy that says these things, one for each message, and then connects or closes."""

    OK = b"\x05\x00"
    CONNECTED = b"\x05\x00\x00\x01" + bytes(6)

    def __init__(self, *replies: bytes, target: str = "", stalls: bool = False) -> None:
        self._replies, self._stalls = replies, stalls
        self._port = httpx.URL(target).port

    def __call__(self, connection: Any) -> None:
        for reply in self._replies:
            connection.sock.recv(4096)
            connection.sock.sendall(reply)
        connection.open = False
        if self._stalls:
            connection.hang()
        elif self._port:
            connection.tunnel(LOOPBACK, self._port)
        else:
            connection.fin()


@contextlib.contextmanager
def socks_proxy(*replies: bytes, **options: Any) -> Iterator[str]:
    pytest.importorskip("socksio")
    step = Step(read="nothing", then=Socks(*replies, **options))
    with ScriptedServer([step] * 9) as server:
        yield server.url.replace("http:", "socks5:")


@pytest.mark.parametrize("tls", [False, True])
async def test_through_a_socks_proxy(flavour: Flavour, tls: bool) -> None:
    """Its connections are used again; the limit of the handshake ends with it."""
    with (
        ScriptedServer(lambda request: answer(200, b"late", delay=0.4), tls=tls) as server,
        socks_proxy(Socks.OK, Socks.CONNECTED, target=server.url) as proxy,
    ):
        client = one_attempt(flavour, proxy=proxy, connect_timeout=0.3, read_timeout=None)
        for _ in range(2):
            assert (await flavour.run(client.get(server.url))).text == "late"
        assert client.pool_stats() == _pool.PoolStats(1, 1, 0, 0)
        assert server.connections == 1
        with pytest.raises(httpx.ReadTimeout):  # of the request: the handshake is long over
            await flavour.run(client.get(server.url, timeout=0.05))


@pytest.mark.parametrize(
    ("replies", "stalls", "error"),
    [
        ([], True, httpx.ConnectTimeout),  # httpcore waits for ever
        ([Socks.OK], True, httpx.ConnectTimeout),
        ([b"HTTP/1.1 400 Bad Request"], False, httpx.ProxyError),  # socksio's own exception
        ([Socks.OK, b"\x05"], False, httpx.ProxyError),
        ([b"\x05\xff"], False, httpx.ProxyError),
        ([], False, httpx.ProxyError),
    ],
)
async def test_a_socks_handshake_that_fails(
    flavour: Flavour, replies: list[bytes], stalls: bool, error: type[Exception]
) -> None:
    """In time, as httpx's exception, and without a socket left over."""
    with socks_proxy(*replies, stalls=stalls) as proxy:
        client = one_attempt(flavour, proxy=proxy, connect_timeout=0.3, max_connections=1)
        for _ in range(2):
            with pytest.raises(error):
                await flavour.run(client.get("http://127.0.0.1:1/"))
        assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)


async def test_a_socks_proxy_that_is_not_there(flavour: Flavour) -> None:
    """Nothing was made, so there is nothing to close."""
    pytest.importorskip("socksio")
    with refused_port() as url:
        client = one_attempt(flavour, proxy=url.replace("http:", "socks5:"))
        with pytest.raises(httpx.ConnectError):
            await flavour.run(client.get("http://127.0.0.1:1/"))


# --- what is mended, and what is not ----------------------------------------------------------


@pytest.fixture
def kinds(flavour: Flavour) -> tuple[Any, Any, Any]:
    """The client, its transport and the pool of this flavour."""
    if flavour.sync:
        return httpx.Client, httpx.HTTPTransport, httpcore.ConnectionPool
    return httpx.AsyncClient, httpx.AsyncHTTPTransport, httpcore.AsyncConnectionPool


async def test_the_transports_stay_httpx_s(flavour: Flavour, kinds: Any) -> None:
    """`isinstance` holds for the transport and its pool; limits and context are the same."""
    client = flavour.client(max_connections=7, max_keepalive_connections=3, keepalive_expiry=1.5)
    pool = client._transport._pool
    assert type(client._transport) is kinds[1]
    assert isinstance(pool, kinds[2])
    assert isinstance(pool, _pool.Pool | _pool.AsyncPool)
    assert (pool._max_connections, pool._max_keepalive_connections) == (7, 3)
    assert pool._keepalive_expiry == 1.5
    assert isinstance(pool._ssl_context, ssl.SSLContext)


async def test_a_given_transport_is_left_alone(flavour: Flavour, kinds: Any) -> None:
    """The default one, and the mounts: they belong to the user."""
    given, mounted = kinds[1](), kinds[1]()
    client = flavour.client(
        transport=given, mounts={"https://a.test": mounted, "http://b.test": None}
    )
    assert type(given._pool) is kinds[2]
    assert type(mounted._pool) is kinds[2]
    assert client.pool_stats() == _pool.PoolStats(0, 0, 0, 0)


async def test_mounts_of_the_environment_are_mended(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY makes a transport too, and it is ours."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = flavour.client(trust_env=True)
    pools = {type(one._pool) for one in client._mounts.values() if one is not None}
    assert len(pools) == 1
    assert pools <= {_pool.HTTPProxyPool, _pool.AsyncHTTPProxyPool}


async def test_a_pool_of_another_kind_is_left_alone(flavour: Flavour, kinds: Any) -> None:
    """Somebody's subclass knows better."""

    class Special(kinds[2]):  # type: ignore[misc]
        pass

    client = flavour.plain()
    client._transport._pool = pool = Special()
    _pool.mend(client, ())
    assert client._transport._pool is pool


@pytest.mark.parametrize("newer", [(httpcore, "1.1.0"), (h2, "5.0.0")])
def test_other_versions_keep_their_own_pool(
    monkeypatch: pytest.MonkeyPatch, newer: tuple[Any, str]
) -> None:
    """One warning at import, then nothing is touched; the numbers are still told."""
    module, version = newer
    monkeypatch.setattr(module, "__version__", version)
    spec: Any = importlib.util.spec_from_file_location("httpx_production._other", _pool.__file__)
    other: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, other)
    with pytest.warns(RuntimeWarning, match=f"{module.__name__} {version}") as caught:
        spec.loader.exec_module(other)
    assert len(caught) == 1
    with httpx.Client() as client:
        other.mend(client, ())
        assert type(client._transport._pool) is httpcore.ConnectionPool
        assert other.stats(client, ()) == other.PoolStats(0, 0, 0, 0)


PRIVATE = {
    httpx.Client: ["_transport", "_mounts"],
    httpx.HTTPTransport: ["_pool"],
    httpcore.ConnectionPool: [
        "_max_connections", "_max_keepalive_connections", "_keepalive_expiry", "_http1", "_http2",
        "_network_backend", "_connections", "_requests",
    ],
    httpcore.HTTPConnection: [
        "_connection", "_origin", "_http1", "_http2", "_keepalive_expiry", "_network_backend",
    ],
    TunnelHTTPConnection: ["_connection", "_remote_origin", "_http1", "_http2"],
    httpcore.HTTP11Connection: ["_network_stream", "_keepalive_expiry", "_origin", "_h11_state"],
    httpcore.HTTP2Connection: ["_network_stream", "_keepalive_expiry", "_origin"],
    SyncStream: ["_sock"],
    AnyIOStream: ["_stream"],
    h2.connection.H2Connection: [
        "_receive_goaway_frame", "_receive_data_frame", "_frame_dispatch_table", "_data_to_send",
    ],
    TLSStream: ["_read_bio"],
    Trace: ["__enter__", "__aenter__", "return_value"],
}  # fmt: skip


@pytest.mark.parametrize("owner", PRIVATE, ids=lambda owner: owner.__name__)
def test_the_private_names_that_are_used_exist(owner: Any) -> None:
    """Fails when an upgrade changes one of them, before anything stranger does."""
    methods = [one for one in vars(owner).values() if inspect.isfunction(one)]
    files = {one.__code__.co_filename for one in methods} - {"<string>"}
    source = "".join(Path(file).read_text() for file in files)
    missing = [name for name in PRIVATE[owner] if not re.search(rf"\b{name}\b", source)]
    assert missing == []


@pytest.mark.flavours("asyncio")
async def test_bytes_above_an_asyncio_socket_are_seen(flavour: Flavour) -> None:
    """anyio keeps what asyncio has read in `_protocol.read_queue`, where select can't see it."""
    with ScriptedServer([Step(read="nothing", send=(b"12",), then="hang")]) as server:
        port = httpx.URL(server.url).port or 0
        stream: Any = await _network.AsyncBackend().connect_tcp(LOOPBACK, port)
        assert await stream.read(1, timeout=5) == b"1"
        assert list(stream._stream._protocol.read_queue) == [b"2"]
        assert stream.get_extra_info("is_readable")
        assert await stream.read(1, timeout=5) == b"2"
        assert not stream.get_extra_info("is_readable")
        await stream.aclose()


async def test_a_mocked_pool_is_called_instead(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """respx puts its mocks in the place of httpcore's methods: they are not queued for a slot."""
    client = flavour.client(max_connections=1)

    def mocked(pool: Any, request: httpcore.Request) -> httpcore.Response:
        return httpcore.Response(200, content=b"mocked")

    async def async_mocked(pool: Any, request: httpcore.Request) -> httpcore.Response:
        return mocked(pool, request)

    monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", mocked)
    monkeypatch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", async_mocked)
    response = await flavour.run(client.get("http://127.0.0.1:1/"))
    assert response.content == b"mocked"
    assert client.pool_stats().connections == 0


async def test_a_port_that_does_not_exist_is_a_connect_error(flavour: Flavour) -> None:
    """getaddrinfo would make another port of 99999, and anyio an exception group."""
    client = flavour.client(max_attempts=1)
    exc = await flavour.outcome(client.get, "http://127.0.0.1:99999/")
    assert isinstance(exc, httpx.ConnectError)
    assert "no such port: 99999" in str(exc)


async def test_requests_that_an_auth_flow_makes_have_timeouts(flavour: Flavour) -> None:
    """httpx gives none to a Request that it did not build: a silent token server would hang it."""
    with ScriptedServer([hang()]) as server:

        class Token(httpx.Auth):
            def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
                yield httpx.Request("POST", server.url)

        client = flavour.client(read_timeout=0.3, auth=Token())
        exc = await flavour.outcome(client.get, server.url)
        await flavour.close(client)
    assert isinstance(exc, httpx.ReadTimeout)
    assert [request.method for request in server.requests] == ["POST"]
