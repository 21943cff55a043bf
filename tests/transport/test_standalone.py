"""The transport without the wrapper, the wrapper without the transport.

Subject: `transport/_pooled.py`.
"""

import ast
import contextlib
import inspect
import threading
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
from conftest import Flavour
from h2_peer import H2Peer, http1_answer, serve
from helpers import ASYNC, Callers, finished, generators_left, until, within
from servers import ScriptedServer, answer, chunked, client_context, echo, forward, hang

import httpx_production

pytestmark = [pytest.mark.anyio, generators_left]


def counts(owner: Any) -> tuple[int, int, int, int]:
    stats = owner.pool_stats()
    return stats.connections, stats.idle, stats.in_use, stats.waiting


# --- the transport alone -------------------------------------------------------------------------


async def test_httpx_s_client_works_over_it(flavour: Flavour) -> None:
    """GET, POST and streams; one connection; its numbers are told by the transport."""
    with ScriptedServer(echo) as server:
        transport = flavour.transport()
        client = flavour.plain(transport=transport)
        assert counts(transport) == (0, 0, 0, 0)
        for method in ("GET", "POST", "PUT"):
            response = await flavour.run(client.request(method, f"{server.url}/{method}"))
            assert response.text == f"/{method}"
        async with flavour.using(client.stream("GET", f"{server.url}/s")) as response:
            assert counts(transport) == (1, 0, 1, 0)
            assert await flavour.read(response) == b"/s"
        assert counts(transport) == (1, 1, 0, 0)
        assert isinstance(transport.pool_stats(), httpx_production.PoolStats)
        await flavour.close(client)
        assert counts(transport) == (0, 0, 0, 0)
        assert server.connections == 1


async def test_it_speaks_http2_when_asked_to(flavour: Flavour) -> None:
    """As httpx's own transports, whose default is HTTP/1.1."""
    with H2Peer(http1=http1_answer) as server:
        for options, version in (({}, "HTTP/1.1"), ({"http2": True}, "HTTP/2")):
            client = flavour.pooled(verify=client_context(), **options)
            response = await flavour.run(client.get(f"{server.url}/x"))
            assert (response.text, response.http_version) == ("/x", version)


async def test_it_is_an_httpx_transport(flavour: Flavour) -> None:
    """A subclass with the same arguments, exported from the package and from its module."""
    from httpx_production import transport as module

    ours: Any = module.PooledTransport if flavour.sync else module.AsyncPooledTransport
    theirs: Any = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    assert issubclass(ours, theirs)
    assert getattr(httpx_production, ours.__name__) is ours
    arguments = inspect.signature(theirs).parameters
    assert list(inspect.signature(ours).parameters)[: len(arguments)] == list(arguments)
    for name, parameter in inspect.signature(ours).parameters.items():
        assert parameter.default == arguments[name].default


async def test_our_clients_use_it(flavour: Flavour) -> None:
    """For the default transport and for a proxy's alike; what the caller gives is left alone."""
    from httpx_production.transport import AsyncPooledTransport, PooledTransport

    kind: Any = PooledTransport if flavour.sync else AsyncPooledTransport
    client = flavour.client(mounts={"http://a.test": (given := flavour.transport())})
    assert isinstance(client._transport, kind)
    assert given in client._mounts.values()
    proxied = flavour.client(proxy="http://127.0.0.1:1")
    assert {type(one) for one in proxied._mounts.values()} == {kind}


async def test_limits_are_httpx_s(flavour: Flavour) -> None:
    """`httpx.Limits`: how many, how many idle, and how long."""
    limits = httpx.Limits(max_connections=3, max_keepalive_connections=1, keepalive_expiry=0.2)
    with ScriptedServer(lambda _: answer(delay=0.05)) as server:
        transport = flavour.transport(limits=limits)
        client = flavour.plain(transport=transport)
        outcomes = await flavour.gather(lambda: client.get(server.url) for _ in range(9))
        assert [one.status_code for one in outcomes] == [200] * 9
        assert server.connections == 3
        assert counts(transport) == (1, 1, 0, 0)
        await anyio.sleep(0.4)
        await flavour.run(client.get(server.url))
        assert server.connections == 4


async def test_a_pool_timeout_is_httpx_s(flavour: Flavour) -> None:
    """Without the wrapper too: the exception, and its text."""
    with ScriptedServer([chunked(b"part", end=b"", then="hang")]) as server:
        transport = flavour.transport(limits=httpx.Limits(max_connections=1))
        client = flavour.plain(transport=transport, timeout=httpx.Timeout(5, pool=0.2))
        async with flavour.using(client.stream("GET", server.url)), Callers(flavour) as callers:
            waiting = callers.start(client.get, server.url)
            await until(lambda: counts(transport) == (1, 0, 1, 1))
            (outcome,) = await finished(waiting)
        assert isinstance(outcome, httpx.PoolTimeout)
        assert "1 of 1 connection in use" in str(outcome)


async def test_it_takes_a_proxy(flavour: Flavour) -> None:
    """Forwarding and a tunnel."""
    with (
        ScriptedServer(echo) as plain,
        ScriptedServer(echo, tls=True) as secure,
        ScriptedServer(forward) as proxy,
    ):
        client = flavour.pooled(proxy=httpx.Proxy(proxy.url), verify=client_context())
        for url in (plain.url, secure.url):
            assert (await flavour.run(client.get(f"{url}/x"))).text == "/x"
        assert {request.method for request in proxy.requests} == {"GET", "CONNECT"}


async def test_it_takes_a_unix_socket(flavour: Flavour, tmp_path: Path) -> None:
    """`uds=`, as httpx's transports."""
    import socket

    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve_one() -> None:
            with contextlib.suppress(OSError):  # nobody came
                connection, _ = listener.accept()
                with connection:
                    while data := connection.recv(65536):
                        connection.sendall(http1_answer(data))

        thread = threading.Thread(target=serve_one, daemon=True)
        thread.start()
        client = flavour.pooled(uds=path)
        for number in range(2):
            response = await flavour.run(client.get(f"http://api.test/{number}"))
            assert response.text == f"/{number}"
        await flavour.close(client)
        thread.join(5)
        assert not thread.is_alive()


async def test_it_takes_a_local_address_and_socket_options(flavour: Flavour) -> None:
    """They reach the socket."""
    import socket

    option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with ScriptedServer(echo) as server:
        client = flavour.pooled(local_address="127.0.0.3", socket_options=[option])
        async with flavour.using(client.stream("GET", server.url)) as response:
            raw = response.extensions["network_stream"].get_extra_info("socket")
            assert raw.getsockname()[0] == "127.0.0.3"
            assert raw.getsockopt(*option[:2])


async def test_it_retries_connecting_when_asked_to(flavour: Flavour) -> None:
    """`retries=`, which httpx's transports have: the port opens while it tries again."""
    with ScriptedServer(echo, listening=False) as server:
        client = flavour.pooled(retries=4)
        timer = threading.Timer(0.3, server.listen)
        timer.start()
        try:
            assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
        finally:
            timer.join()
    assert len(server.requests) == 1


async def test_an_unused_transport_closes(flavour: Flavour) -> None:
    """Made and closed, and used as a context manager as httpx's are."""
    await flavour.close(flavour.transport())
    with ScriptedServer(echo) as server:
        async with flavour.using(flavour.transport()) as transport:
            client = flavour.plain(transport=transport)
            await flavour.run(client.get(server.url))
        assert counts(transport) == (0, 0, 0, 0)


@ASYNC
async def test_requests_share_an_http2_connection(flavour: Flavour) -> None:
    """Fifty at once are answered over one, each with its own answer."""
    with H2Peer() as server:
        client = flavour.pooled(http2=True, verify=client_context())
        urls = [f"{server.url}/{number}" for number in range(50)]
        outcomes = await flavour.gather(lambda url=url: client.get(url) for url in urls)
        assert [one.text for one in outcomes] == [f"/{number}" for number in range(50)]
        assert len(server.peers) == 1


async def test_a_request_without_timeouts_works(flavour: Flavour) -> None:
    """`httpx.Request` built by hand has none: no limit, and no KeyError."""
    with ScriptedServer(echo) as server:
        client = flavour.pooled()
        response = await flavour.run(client.send(httpx.Request("GET", f"{server.url}/x")))
        assert response.text == "/x"


async def test_goaway_is_mended_without_the_wrapper(flavour: Flavour) -> None:
    """httpx's bodies don't know whether they can be sent again: bytes can."""

    def retires(peer: Any) -> None:
        peer.request()
        peer.goaway(0)
        peer.rest()

    with H2Peer(retires, serve) as server:
        client = flavour.pooled(http2=True, verify=client_context())
        response = await flavour.run(client.post(f"{server.url}/x", content=b"order"))
        assert response.text == "/x"
        assert len(server.requests) == 2


async def test_a_read_timeout_is_httpx_s(flavour: Flavour) -> None:
    """httpx's own timeouts hold over it."""
    with ScriptedServer([hang()]) as server:
        client = flavour.pooled()
        with within(4), pytest.raises(httpx.ReadTimeout):
            await flavour.run(client.get(server.url, timeout=0.2))


# --- the wrapper alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_our_clients_work_over_httpx_s_transport(flavour: Flavour, kind: str) -> None:
    """`transport=httpx.HTTPTransport(http2=True)`: left alone, retried, and not counted."""
    theirs: Any = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    server: Any = H2Peer() if kind == "http2" else ScriptedServer([answer(503), answer()])
    with server:
        given = theirs(http2=True, verify=client_context())
        policy = httpx_production.RetryPolicy(backoff=lambda attempt: 0)
        client = flavour.client(transport=given, retry=policy)
        assert (await flavour.run(client.get(server.url))).status_code == 200
        pools = (httpcore.ConnectionPool, httpcore.AsyncConnectionPool)
        assert type(given._pool) in pools
        assert counts(client) == (0, 0, 0, 0)


async def test_our_clients_work_over_a_transport_that_is_given(flavour: Flavour) -> None:
    """A PooledTransport of the caller's keeps its own limits, and tells its own numbers."""
    with ScriptedServer(echo) as server:
        transport = flavour.transport(limits=httpx.Limits(max_connections=2))
        client = flavour.client(transport=transport)
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
        assert counts(transport) == (1, 1, 0, 0)


def test_the_transport_imports_nothing_from_above() -> None:
    """But the deadline: it could be a distribution of its own."""
    folder = Path(httpx_production.__file__).parent / "transport"
    files = sorted(folder.rglob("*.py"))
    assert files, "there is no transport/"
    above = set()
    for path in files:
        outside = len(path.relative_to(folder).parts) + 1  # dots that lead out of the folder
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and node.level >= outside:
                above |= {node.module} if node.module else {alias.name for alias in node.names}
            assert "httpx_production" not in names, names
    assert above <= {"_deadline"}
