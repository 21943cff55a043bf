"""The pool over sockets: what is kept, what it says of itself, and what it must not touch.

Subject: `transport/_pool.py`, `transport/_pools.py`, `transport/_pooled.py`,
`transport/_private_names.py`.
"""

import ast
import contextlib
import dataclasses
import re
import socket
import ssl
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
from conftest import Flavour, _outcome
from h2_peer import H2Peer
from helpers import PROMPT, SYNC, one_attempt, until
from servers import (
    Connection,
    Received,
    ScriptedServer,
    Step,
    answer,
    client_context,
    echo,
    hang,
    message,
)
from wording import HTTPCORE

from httpx_production.transport import (
    AsyncPooledTransport,
    PooledTransport,
    PoolStats,
    _pool,
    _pooled,
    _pools,
    _private_names,
)
from httpx_production.transport._assignment import PoolRequest
from httpx_production.transport._connections import HTTPConnection

pytestmark = pytest.mark.anyio

NOTHING = PoolStats(0, 0, 0, 0)


def _stats(client: Any) -> PoolStats:
    return _pooled._stats(client._transport._pool)


# --- connections opened, over sockets ---------------------------------------------------------


@pytest.fixture(params=["ours", "httpcore's"])
def any_pool(request: pytest.FixtureRequest, flavour: Flavour) -> Any:
    """httpx's own client, on httpcore's pool and on ours: what must be the same on both."""

    def client(**options: Any) -> Any:
        if request.param == "httpcore's":
            return flavour.plain(**options)
        kind = PooledTransport if flavour.sync else AsyncPooledTransport
        return flavour.plain(transport=kind(trust_env=False, **options))

    return client


async def in_flight(flavour: Flavour, client: Any, url: str, callers: int, each: int) -> None:
    async def loop() -> None:
        for _ in range(each):
            assert (await flavour.run(client.get(url))).status_code == 200

    def sync_loop() -> None:
        for _ in range(each):
            assert client.get(url).status_code == 200

    outcomes = await flavour.gather([sync_loop if flavour.sync else loop] * callers)
    assert outcomes == [None] * callers


async def test_fifty_callers_open_few_new_connections(flavour: Flavour) -> None:
    """1000 requests at 50 callers on the default limits: httpcore opens more than 900.

    A busy machine lets more than twenty be idle for a moment, and closes what is too many.
    """
    with ScriptedServer(lambda _: answer(delay=0.002)) as server:
        client = flavour.client()
        await in_flight(flavour, client, server.url, 50, 20)
        assert server.connections <= 150


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
        assert client.pool_stats() == PoolStats(5, 5, 0, 0)


async def test_a_connection_is_used_again(flavour: Flavour, any_pool: Any) -> None:
    """One after the other: one connection."""
    with ScriptedServer(echo) as server:
        client = any_pool()
        for number in range(3):
            assert (await flavour.run(client.get(f"{server.url}/{number}"))).text == f"/{number}"
        assert server.connections == 1
        assert _stats(client) == PoolStats(1, 1, 0, 0)
        assert len(client._transport._pool.connections) == 1
        assert "0 active, 1 idle" in repr(client._transport._pool)


async def test_what_is_in_use_is_counted(flavour: Flavour, any_pool: Any) -> None:
    """`stats` while a response is being read, on httpcore's pool as well."""
    with ScriptedServer(echo) as server:
        client = any_pool()
        async with flavour.using(client.stream("GET", server.url)):
            assert _stats(client) == PoolStats(1, 0, 1, 0)
        await flavour.close(client)
        assert _stats(client) == NOTHING


def test_what_is_counted_is_a_frozen_record() -> None:
    """One moment's numbers: nobody who is given them can change them for others."""
    stats: Any = PoolStats(connections=2, idle=1, in_use=1, waiting=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.idle = 2


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


def together(number: int, then: Any = "keep") -> Callable[[Received], Step]:
    """A handler that answers `/together` when so many have asked."""
    barrier = threading.Barrier(number)

    def handler(request: Received) -> Step:
        if request.path != "/together":
            return echo(request)
        barrier.wait(10)
        return answer(then=then)

    return handler


async def test_connections_that_the_server_closed_are_left_one_by_one(flavour: Flavour) -> None:
    """The pool is full of them: two POSTs, that wait for each other's, pass them all over."""
    gone: list[Connection] = []

    def leave(connection: Connection) -> None:
        connection.sock.shutdown(socket.SHUT_WR)
        gone.append(connection)

    with ScriptedServer(together(3, then=leave)) as server:
        client = one_attempt(flavour, max_connections=3)
        await flavour.gather([lambda: client.get(server.url + "/together")] * 3)
        assert client.pool_stats() == PoolStats(3, 3, 0, 0)
        await until(lambda: len(gone) == 3)
        outcomes = await flavour.gather([lambda: client.post(server.url)] * 2)
        assert [one.status_code for one in outcomes] == [200, 200]
        assert client.pool_stats().connections <= 2


async def test_one_kept_connection_is_looked_at(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By each request, the one that it gets: a look is a system call."""
    looks: list[HTTPConnection] = []
    look = HTTPConnection.has_expired
    monkeypatch.setattr(HTTPConnection, "has_expired", lambda one: looks.append(one) or look(one))
    with ScriptedServer(together(10)) as server:
        client = flavour.client()
        await flavour.gather([lambda: client.get(server.url + "/together")] * 10)
        assert client.pool_stats().idle == 10
        looks.clear()
        for _ in range(5):
            await flavour.run(client.get(server.url))
        assert len(looks) == 5


@pytest.mark.flavours("sync")
async def test_a_look_at_a_kept_connection_keeps_no_other_thread_out(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets other threads run: within the pool's lock, all of them would queue up behind it."""
    answered: list[int] = []
    look = HTTPConnection.has_expired

    def look_while_another_thread_uses_the_pool(connection: HTTPConnection) -> bool:
        monkeypatch.setattr(HTTPConnection, "has_expired", look)
        other = threading.Thread(target=get, daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive()
        return look(connection)

    def get() -> None:
        answered.append(client.get(server.url).status_code)

    with ScriptedServer(echo) as server:
        client = flavour.client()
        get()
        monkeypatch.setattr(HTTPConnection, "has_expired", look_while_another_thread_uses_the_pool)
        response = client.get(server.url)
        assert (answered, response.status_code) == ([200, 200], 200)


async def test_other_protocols_are_refused_in_httpcore_s_words(
    flavour: Flavour, any_pool: Any
) -> None:
    """As a URL without a scheme is."""
    client = any_pool()
    for url, words in {"ftp://host": "unsupported protocol", "//host": "missing an 'http"}.items():
        with pytest.raises(httpx.UnsupportedProtocol, match=words):
            await flavour.run(client.get(url))


# --- waiting ----------------------------------------------------------------------------------


async def test_a_pool_timeout_tells_of_unclosed_responses(flavour: Flavour) -> None:
    """Whoever forgets to close streamed responses reads here what it is that fills the pool."""
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=0.1)
        async with flavour.using(client.stream("GET", server.url)):
            with pytest.raises(httpx.PoolTimeout) as caught:
                await flavour.run(client.get(server.url))
        waited = float(str(caught.value).split()[4])
        assert 0.1 <= waited < 0.1 + PROMPT
        assert str(caught.value) == (
            f"no free connection after {waited} s: 1 of 1 connection in use, 1 of them by a "
            "response that was not closed, 1 request waiting; close streamed responses, or raise "
            "max_connections or pool_timeout"
        )


def test_a_second_wait_goes_on_with_the_first_one_s_time() -> None:
    """What was waited is not waited again; no limit stays none."""
    mine = PoolRequest()
    for waited, left in ((0.0, 2.0), (1.5, 0.5), (3.0, 0.0)):
        mine.waited = waited
        assert _pool._patience(2.0, mine) == left
        assert _pool._patience(None, mine) is None
        assert _pool._patience(float("inf"), mine) is None


def test_what_comes_just_as_the_time_ends_is_taken() -> None:
    """A connection, or an error that says more than a PoolTimeout: nobody else gets it."""
    assignment: Any = None  # isn't asked
    for given in ({"pooled": object()}, {"error": RuntimeError("closed")}):
        mine = PoolRequest()
        for name, value in given.items():
            setattr(mine, name, value)
        _pool._stop_waiting(assignment, mine, expecting=False)  # raises no PoolTimeout
        assert {name: getattr(mine, name) for name in given} == given


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
    said = threading.Event()
    pieces = (head, FORGED) if pause else (head + FORGED,)
    first = Step(send=pieces, pause=pause, then=lambda _: said.set())
    with ScriptedServer([first], tls=tls) as server:
        client = one_attempt(flavour)
        method = "HEAD" if case == "head" else "GET"
        await flavour.run(client.request(method, server.url))
        await until(said.is_set)
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
async def test_a_connection_on_which_a_request_was_cut_short_is_not_used_again(
    flavour: Flavour, tls: bool
) -> None:
    """The answer came early, and the last chunk's turn too late: to the server it is yet to come.

    The next request there would be taken for the rest of this one.
    """
    answered = threading.Event()
    early = answer(200, b"", read="head", then=lambda _: answered.set())

    def chunks() -> Iterator[bytes]:
        yield b"part"
        assert answered.wait(15)
        time.sleep(0.6)  # blocking: nobody cancels it

    with ScriptedServer([early], tls=tls) as server:
        client = one_attempt(flavour)
        body = flavour.generator(chunks())
        limit = {"retry": {"total_timeout": 0.5}}
        exc = await flavour.outcome(client.put, server.url, content=body, extensions=limit)
        assert isinstance(exc, httpx.TimeoutException)
        assert client.pool_stats() == NOTHING
        assert (await flavour.run(client.get(server.url))).content == b"ok"


@pytest.mark.parametrize("tls", [False, True])
async def test_an_upload_that_is_reset_is_an_error(flavour: Flavour, tls: bool) -> None:
    """No answer, no slot lost."""
    with ScriptedServer([Step(read=1000, then="reset")], tls=tls) as server:
        client = one_attempt(flavour)
        with pytest.raises((httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)):
            await flavour.run(client.post(server.url, content=b"x" * 3_000_000))
        assert client.pool_stats() == NOTHING


async def test_an_answer_before_the_reset_is_read(flavour: Flavour) -> None:
    """503, and a reset because the upload is unread: what came before the reset counts."""
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


# --- whose transports and pools are ours ------------------------------------------------------


def pools_of(client: Any) -> set[type]:
    transports = [client._transport, *client._mounts.values()]
    return {type(one._pool) for one in transports if one is not None}


async def test_the_pool_is_httpcore_s_with_what_httpx_has_given_it(flavour: Flavour) -> None:
    """A subclass with the same limits and context."""
    client = flavour.client(max_connections=7, max_keepalive_connections=3, keepalive_expiry=1.5)
    pool = client._transport._pool
    kind = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    assert isinstance(pool, kind)
    assert pools_of(client) == {_pools.Pool if flavour.sync else _pools.AsyncPool}
    assert (pool._max_connections, pool._max_keepalive_connections) == (7, 3)
    assert pool._keepalive_expiry == 1.5
    assert isinstance(pool._ssl_context, ssl.SSLContext)


async def test_a_given_transport_is_left_alone(flavour: Flavour) -> None:
    """The default one, and the mounts: they belong to the user."""
    kind = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    given, mounted = kind(), kind()
    client = flavour.client(
        transport=given, mounts={"https://a.test": mounted, "http://b.test": None}
    )
    core = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    assert pools_of(client) == {core}
    assert client.pool_stats() == NOTHING


async def test_proxies_of_the_environment_get_our_pools(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY and ALL_PROXY make transports too, and they are ours."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    http, socks = _pools.HTTPProxyPool, _pools.SOCKSProxyPool
    if not flavour.sync:
        http, socks = _pools.AsyncHTTPProxyPool, _pools.AsyncSOCKSProxyPool
    own = _pools.Pool if flavour.sync else _pools.AsyncPool
    assert pools_of(flavour.client(trust_env=True)) == {own, http, socks}


async def test_a_pool_of_another_kind_is_left_alone(flavour: Flavour) -> None:
    """Somebody's subclass knows better."""

    class Special(httpcore.ConnectionPool):
        pass

    pool = Special()
    assert _pooled._pooled(pool) is pool


async def test_another_library_s_pool_is_left_alone_with_a_warning(flavour: Flavour) -> None:
    """httpx2 2.9.0's alias is for httpx alone: its pools are httpcore2's, `httpcore` isn't."""
    core = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    attributes = {name: getattr(core, name) for name in dir(core) if name not in dir(object)}
    del attributes["__dict__"], attributes["__weakref__"]
    pool = type(
        core.__name__, (), {**attributes, "__init__": core.__init__, "__module__": "core3"}
    )()
    with pytest.warns(RuntimeWarning, match=f"pool is core3's, not {HTTPCORE}'s") as caught:
        assert _pooled._pooled(pool) is pool
    assert len(caught) == 1


@pytest.fixture(params=["name", "class", "module", "constructor"])
def without(
    flavour: Flavour, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A httpcore that has changed something, and what the warning says of it."""
    monkeypatch.setattr(_private_names, "_known", {})
    kind = "HTTP11Connection" if flavour.sync else "AsyncHTTP11Connection"
    if request.param == "name":
        monkeypatch.setattr(httpcore, kind, lambda *_: types.SimpleNamespace(_network_stream=None))
        names = ("_h11_state", "is_idle", "has_expired")
        return ", ".join(f"SimpleNamespace.{name}" for name in names)
    if request.param == "class":
        monkeypatch.delattr(httpcore, kind)
        return f"module '{HTTPCORE}' has no attribute '{kind}'"
    if request.param == "module":
        monkeypatch.setitem(sys.modules, "httpcore._trace", None)
        return "import of httpcore._trace halted"
    monkeypatch.setattr(httpcore, kind, lambda: None)
    return "positional argument"


async def test_without_the_names_it_needs_httpcore_s_pool_serves(
    flavour: Flavour, without: str
) -> None:
    """With one warning that says what is missing, and where; the numbers are still told.

    Names are looked for; before, versions were compared.
    """
    kind = PooledTransport if flavour.sync else AsyncPooledTransport
    with pytest.warns(RuntimeWarning, match=re.escape(without)) as caught:
        transport: Any = kind()
    assert [warning.filename for warning in caught] == [__file__]
    core = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    assert type(transport._pool) is core
    with ScriptedServer(echo) as server:
        client = flavour.plain(transport=transport)
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
    assert transport.pool_stats() == PoolStats(1, 1, 0, 0)


def every_pool() -> Iterator[Any]:
    for flavour in ("", "Async"):
        yield getattr(httpcore, f"{flavour}ConnectionPool")()
        yield getattr(httpcore, f"{flavour}HTTPProxy")("http://x")
        yield getattr(httpcore, f"{flavour}SOCKSProxy")("socks5://x")


@pytest.mark.parametrize("pool", list(every_pool()), ids=lambda pool: type(pool).__name__)
def test_the_names_that_it_looks_for_are_there(pool: Any) -> None:
    """In the versions that these tests run with: else they would test httpcore's pool."""
    assert _private_names.missing_names(pool) == ""


def test_it_looks_for_every_name_that_it_uses() -> None:
    """Private names of this package's own, and one of `threading`, need no look."""
    own, used = {"_is_owned"}, set[str]()
    for path in Path(_private_names.__file__).parent.glob("*.py"):
        if path.name == "_private_names.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    own.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                    used |= set(re.findall(r"^_[a-z]\w+$", name))
                case _:
                    pass
    needed = [names for pool in every_pool() for _, names in _private_names.names_needed(pool)]
    looked_for = set(re.split(r"[ |]", " ".join(needed)))
    assert used - own - looked_for == set()
    assert {"_h11_state", "_requests", "_remote_origin", "_receive_data_frame"} <= used


async def test_a_transport_that_keeps_its_pool_elsewhere_is_left_alone(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_pool` is a private name, too: httpx's. It is said, and nothing crashes."""
    owner: Any = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    original = owner.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.elsewhere = self.__dict__.pop("_pool")

    monkeypatch.setattr(owner, "__init__", init)
    with pytest.warns(RuntimeWarning, match="needs names that are not there"):
        transport: Any = PooledTransport() if flavour.sync else AsyncPooledTransport()
    core = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    assert type(transport.elsewhere) is core
    assert transport.pool_stats() == NOTHING


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


# --- from where it may be called ---------------------------------------------------------------


@SYNC
async def test_a_request_from_within_the_pool_is_refused(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal handler that has interrupted it: it would wait for itself, for ever."""
    outcomes: list[Any] = []
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour)
        acquire = _pool.Assignment.acquire

        def interrupted(*args: Any) -> None:
            monkeypatch.undo()
            outcomes.append(_outcome(lambda: client.get(f"{server.url}/handler")))
            acquire(*args)

        monkeypatch.setattr(_pool.Assignment, "acquire", interrupted)
        assert client.get(f"{server.url}/x").text == "/x"
        assert isinstance(outcomes[0], RuntimeError)
        assert "signal handler" in str(outcomes[0])
        assert client.pool_stats() == PoolStats(1, 1, 0, 0)


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_a_body_may_be_closed_twice(flavour: Flavour, kind: str) -> None:
    """By whoever uses the transport without httpx's Response around it; it is told once."""
    told: list[str] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        told.append(name.partition(".")[2])

    with contextlib.ExitStack() as stack:
        server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
        stack.enter_context(server)
        pooled = PooledTransport if flavour.sync else AsyncPooledTransport
        transport: Any = pooled(client_context(), http2=True)
        send = transport.handle_request if flavour.sync else transport.handle_async_request
        for number in range(2):
            extensions = {"trace": flavour.hook(trace)}
            request = httpx.Request("GET", f"{server.url}/x", extensions=extensions)
            response = await flavour.run(send(request))
            for _ in range(2):
                await flavour.close(response.stream)
            assert transport.pool_stats().in_use == 0
            assert told.count("response_closed.started") == number + 1
        await flavour.close(transport)


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_a_connection_may_be_closed_by_its_own_name(flavour: Flavour, kind: str) -> None:
    """`pool.connections` is httpcore's API: the next request finds out, and makes another one."""
    with contextlib.ExitStack() as stack:
        server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
        stack.enter_context(server)
        client = one_attempt(flavour)
        for number in range(2):
            assert (await flavour.run(client.get(f"{server.url}/{number}"))).text == f"/{number}"
            (connection,) = client._transport._pool.connections
            await flavour.close(connection)
            assert connection.is_closed()
        assert client.pool_stats().in_use == 0


async def test_a_forgotten_pool_begins_anew(flavour: Flavour) -> None:
    """What a child process does after a fork: no connections, no locks of the parent's."""
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour)
        await flavour.run(client.get(server.url))
        with client._transport._pool.core._locked()._lock:
            _pool._after_fork()
        assert client.pool_stats() == NOTHING
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
        assert client.pool_stats() == PoolStats(1, 1, 0, 0)
