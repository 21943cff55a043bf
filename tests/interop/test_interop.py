"""The client against real servers and proxies: each scenario, server, protocol and flavour.

`uv run --group interop pytest tests/interop -n 4 --dist=loadgroup` (some 5 minutes on two cores).
`.ci/run` installs the servers. One that is not installed is skipped with one line.
"""

import hashlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import anyio
import httpx
import httpx_ws
import pytest
from conftest import FakeClock, Flavour
from real_servers import (
    LARGE,
    LOOPBACK,
    PASSWORD,
    PROTOCOLS,
    PROXIES,
    SERVERS,
    USER,
    Running,
    Server,
    World,
    every,
    new_world,
)
from servers import Connection, ScriptedServer, Step

from httpx_production import RetryPolicy
from httpx_production.retry import never_sent

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.time_limit(60.0),
    # trio's own warning about httpx's generators, when what consumes them fails.
    pytest.mark.filterwarnings("ignore:Async generator"),
]

QUICK = RetryPolicy(backoff=lambda attempt: 0.05 * 2.0**attempt, retry_unsent=True)


class Lane:
    """A server, and the protocol that is spoken to it."""

    def __init__(self, server: Server, protocol: str) -> None:
        self.server, self.protocol = server, protocol

    def start(self, world: World, **options: Any) -> str:
        """Its URL, set up as told."""
        return world.server(self.server, **options).urls[self.protocol]

    def client(self, flavour: Flavour, world: World, **options: Any) -> Any:
        """One of ours that speaks the protocol, and may wait for a busy machine."""
        defaults = {"http2": self.protocol == "h2", "pool_timeout": 20.0, "read_timeout": 20.0}
        verify = world.certificates.context()
        return flavour.client(**{**defaults, "verify": verify, **options})


def lanes(*needs: str, protocols: tuple[str, ...] = PROTOCOLS) -> pytest.MarkDecorator:
    """Run on every server that is installed and can do what the scenario needs."""
    chosen = [
        pytest.param(
            Lane(server, protocol),
            id=f"{server.name}-{protocol}",
            marks=pytest.mark.xdist_group(server.name),
        )
        for server in SERVERS
        if server.is_installed and server.can.issuperset(needs)
        for protocol in protocols
        if protocol in server.protocols
    ]
    return pytest.mark.parametrize("lane", chosen)


def proxies(kind: str = "") -> pytest.MarkDecorator:
    """Run through every proxy that is installed and is of a kind."""
    chosen = [
        pytest.param(proxy, id=proxy.name, marks=pytest.mark.xdist_group(proxy.name))
        for proxy in PROXIES
        if proxy.is_installed and (not kind or kind in proxy.kinds_of_proxy)
    ]
    return pytest.mark.parametrize("proxy", chosen)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with new_world() as world:
        yield world


@pytest.mark.flavours("sync")
@pytest.mark.parametrize("server", [*SERVERS, *PROXIES], ids=lambda server: server.name)
def test_it_is_installed(server: Server, flavour_name: str) -> None:
    """Where it is not, this is the one line that says so."""
    if not server.is_installed:
        pytest.skip(f"{server.name} is not installed")


def in_flavour(flavour: Flavour, function: Callable[[], Awaitable[Any]]) -> Callable[[], Any]:
    """A coroutine function for `flavour.gather`: in the sync flavour it never suspends."""
    if not flavour.sync:
        return function

    def call() -> Any:
        try:
            function().send(None)  # type: ignore[attr-defined]
        except StopIteration as stop:
            return stop.value

    return call


def unique(name: str) -> str:
    """A path that no other test uses."""
    return f"/{name}/{uuid4().hex}"


def paths(outcomes: list[Any]) -> list[str]:
    """What was answered; raises what one ended with instead."""
    for one in outcomes:
        if isinstance(one, BaseException):
            raise one
    return [one.json()[0] for one in outcomes]


def is_settled(client: Any) -> bool:
    stats = client.pool_stats()
    return (stats.in_use, stats.waiting) == (0, 0)


# --- many, and much -------------------------------------------------------------------------------


@lanes()
async def test_200_concurrent_gets(flavour: Flavour, world: World, lane: Lane) -> None:
    """Each gets its own answer, at the first attempt, within the pool's limits."""
    url, client = lane.start(world), lane.client(flavour, world)
    calls = [lambda n=n: client.get(f"{url}/{n}") for n in range(200)]
    responses = await flavour.gather(calls)
    assert paths(responses) == [f"/{n}" for n in range(200)]
    assert {one.extensions["retries"] for one in responses} == {()}
    versions = {one.http_version for one in responses}
    assert versions == {"HTTP/2" if lane.protocol == "h2" else "HTTP/1.1"}
    assert client.pool_stats().connections <= 50
    assert is_settled(client)


@lanes()
async def test_50_mb_down_and_up(flavour: Flavour, world: World, lane: Lane) -> None:
    """Every byte arrives, both ways."""
    url, client = lane.start(world), lane.client(flavour, world, max_attempts=1)
    has_application = "application" in lane.server.can
    response = await flavour.run(
        client.get(f"{url}/size/{LARGE}" if has_application else f"{url}/large")
    )
    assert (response.status_code, len(response.content)) == (200, LARGE)
    body = os.urandom(LARGE // 50) * 50
    response = await flavour.run(client.post(f"{url}/up", content=body))
    if has_application:
        assert response.json() == ["/up", LARGE, hashlib.sha256(body).hexdigest()]
    else:
        assert response.content == body


@lanes()
async def test_bodies_abandoned_half_way(flavour: Flavour, world: World, lane: Lane) -> None:
    """Nothing of them is left: the next request is answered, over HTTP/2 where they were."""
    url, client = lane.start(world), lane.client(flavour, world, max_attempts=1)
    large = f"{url}/size/5000000" if "application" in lane.server.can else f"{url}/large"

    async def abandon() -> int:
        async with flavour.using(client.stream("GET", large)) as response:
            async for chunk in flavour.chunks(response):
                return len(chunk)
        return 0

    for _ in range(4):
        sizes = await flavour.gather([in_flavour(flavour, abandon)] * 5)
        assert all(0 < size < LARGE for size in sizes), sizes
        response = await flavour.run(client.get(f"{url}/1"))
        assert response.json()[0] == "/1"
    assert is_settled(client)
    if lane.protocol == "h2" and not flavour.sync:
        assert client.pool_stats().connections == 1


# --- servers that take leave ----------------------------------------------------------------------


@lanes("reload")
async def test_reload_under_load(flavour: Flavour, world: World, lane: Lane) -> None:
    """Graceful reloads: every GET is answered, and no POST arrives twice.

    A POST that fails is one of which the server has not said that it was not processed.
    """
    running = world.server(lane.server, purpose="reload")  # another test would see its last one
    url = running.urls[lane.protocol]
    client = lane.client(flavour, world, retry=QUICK)
    outcomes: list[tuple[str, str, Any]] = []
    prefix, numbers = unique("reload"), itertools.count()
    end = time.monotonic() + 2.6

    async def post_or_get() -> None:
        while (number := next(numbers)) < 60 or time.monotonic() < end:
            method, path = ("GET", "POST")[number % 2], f"{prefix}/{number}"
            outcome = await flavour.outcome(client.request, method, f"{url}{path}?delay=0.01")
            outcomes.append((method, path, outcome))

    with every(1.0, running.reload) as failed_reloads:
        await flavour.gather([in_flavour(flavour, post_or_get)] * 12)
    assert failed_reloads == []
    seen = world.seen()
    lost = [one for one in outcomes if not isinstance(one[2], httpx.Response)]
    answers = [(path, one.json()[0]) for _, path, one in outcomes if is_ok(one)]
    assert [pair for pair in answers if pair[0] != pair[1]] == []
    assert [one for one in outcomes if one[0] == "GET" and not is_ok(one[2])] == []
    posts = [path for method, path, _ in outcomes if method == "POST"]
    assert len(posts) > 20
    assert [path for path in posts if seen.get(path, 0) > 1] == []
    assert [one for one in lost if was_not_processed(one[2])] == []
    if lane.server.drains and lane.protocol == "h2":
        assert lost == []


def is_ok(outcome: Any) -> bool:
    return isinstance(outcome, httpx.Response) and outcome.status_code == 200


def was_not_processed(exc: httpx.RequestError) -> bool:
    """Whether the server has said so: then even a POST could have been sent again."""
    return never_sent(exc.request, exc) or "not processed" in str(exc)


@lanes("streams", "application", protocols=("h2",))
async def test_four_streams_at_most(flavour: Flavour, world: World, lane: Lane) -> None:
    """50 requests of half a second: no stream is refused, further connections share the load."""
    url = lane.start(world, streams=4)
    client = lane.client(flavour, world, max_attempts=1, max_connections=10)
    calls = [lambda n=n: client.get(f"{url}/{n}?delay=0.5") for n in range(50)]
    responses = await flavour.gather(calls)
    assert paths(responses) == [f"/{n}" for n in range(50)]
    assert is_settled(client)


@lanes("idle")
async def test_connections_that_are_kept_shortly(
    flavour: Flavour, world: World, lane: Lane
) -> None:
    """1 s, and 20 requests on each, where the server can: every POST is answered, and came once."""
    url = lane.start(world, idle=1, requests=20)
    # The server may take leave of several kept connections at once: a POST that two in a row did
    # not process moves only once by itself.
    client = lane.client(flavour, world, retry=QUICK)
    prefix = unique("kept")
    for turn in range(2):
        for some in itertools.batched(range(100), 10):
            paths = [f"{prefix}/{turn}/{n}" for n in some]
            calls = [lambda path=path: client.post(url + path) for path in paths]
            responses = await flavour.gather(calls)
            assert [getattr(one, "status_code", one) for one in responses] == [200] * 10
        if turn == 0:
            await anyio.sleep(2.3)  # lighttpd looks once a second
    counts = [count for path, count in world.seen().items() if path.startswith(prefix)]
    assert counts == [1] * 200


# --- TLS ------------------------------------------------------------------------------------------


@lanes(protocols=("https", "h2"))
@pytest.mark.parametrize("kind", ["expired", "wrong host"])
async def test_a_bad_certificate(flavour: Flavour, world: World, lane: Lane, kind: str) -> None:
    """One attempt."""
    url = lane.start(world, certificate_kind=kind)
    client = lane.client(flavour, world)
    with pytest.raises(httpx.ConnectError, match="certificate verify failed") as caught:
        await flavour.run(client.get(url))
    assert caught.value.request.extensions["retries"] == ()


@lanes("TLS versions", protocols=("https", "h2"))
@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_one_version_of_tls(flavour: Flavour, world: World, lane: Lane, version: str) -> None:
    """1.2 alone, and 1.3 alone."""
    url = lane.start(world, tls_min=version, tls_max=version)
    client = lane.client(flavour, world, max_attempts=1)
    response = await flavour.run(client.get(f"{url}/1"))
    assert response.json()[0] == "/1"
    stream = response.extensions["network_stream"]
    assert stream.get_extra_info("ssl_object").version() == f"TLSv{version}"


@lanes("client certificates", protocols=("https", "h2"))
async def test_client_certificates(flavour: Flavour, world: World, lane: Lane) -> None:
    """With one the request is answered, without one it is not."""
    url = lane.start(world, client_ca="yes")
    verify = world.certificates.context(client=True)
    client = lane.client(flavour, world, max_attempts=1, verify=verify)
    calls = [lambda n=n: client.get(f"{url}/{n}") for n in range(10)]
    responses = await flavour.gather(calls)
    assert paths(responses) == [f"/{n}" for n in range(10)]
    without = lane.client(flavour, world, max_attempts=1)
    outcome = await flavour.outcome(without.get, f"{url}/1")
    assert isinstance(outcome, httpx.TransportError) or outcome.status_code in (400, 403, 495, 496)
    assert is_settled(without)


@lanes("websocket", protocols=("h2",))
async def test_a_websocket(flavour: Flavour, world: World, lane: Lane) -> None:
    """Through a client that speaks HTTP/2, which goes on speaking it."""
    url, client = lane.start(world), lane.client(flavour, world, max_attempts=1)
    before = await flavour.run(client.get(f"{url}/1"))
    if flavour.sync:
        with httpx_ws.connect_ws(f"{url}/socket", client) as socket:
            socket.send_text("hello")
            assert socket.receive_text(timeout=10) == "hello"
    else:
        async with httpx_ws.aconnect_ws(f"{url}/socket", client) as socket:
            await socket.send_text("hello")
            assert await socket.receive_text(timeout=10) == "hello"
    after = await flavour.run(client.get(f"{url}/2"))
    assert (before.http_version, after.http_version) == ("HTTP/2", "HTTP/2")
    assert after.json()[0] == "/2"


@pytest.mark.parametrize("connect_timeout", [1.0, 6.0])
@lanes("slow handshake", protocols=("https", "h2"))
async def test_a_handshake_of_3_s(
    flavour: Flavour, world: World, lane: Lane, connect_timeout: float
) -> None:
    """Waited for as long as connect_timeout allows, and no longer."""
    port = int(lane.start(world).rpartition(":")[2])

    def tunnel_late(connection: Connection) -> None:
        connection.server.stopping.wait(3.0)
        connection.tunnel(LOOPBACK, port)

    with ScriptedServer([Step(read="nothing", then=tunnel_late)] * 20) as relay:
        client = lane.client(flavour, world, max_attempts=1, connect_timeout=connect_timeout)
        url = f"https://{LOOPBACK}:{relay.port}"
        calls = [lambda n=n: client.get(f"{url}/{n}") for n in range(5)]
        outcomes = await flavour.gather(calls)
        if connect_timeout < 3:
            assert [type(one) for one in outcomes] == [httpx.ConnectTimeout] * 5
        else:
            assert paths(outcomes) == [f"/{n}" for n in range(5)]


# --- statuses -------------------------------------------------------------------------------------


@lanes("body limit")
async def test_413_before_the_upload_was_read(flavour: Flavour, world: World, lane: Lane) -> None:
    """The answer is had, once, and the next request is answered too."""
    url, client = lane.start(world, max_body=100_000), lane.client(flavour, world)
    response = await flavour.run(client.put(f"{url}/up", content=bytes(20_000_000)))
    assert (response.status_code, response.extensions["retries"]) == (413, ())
    response = await flavour.run(client.get(f"{url}/1"))
    assert response.json()[0] == "/1"
    assert is_settled(client)


@lanes("application")
async def test_429_with_retry_after(
    flavour: Flavour, world: World, lane: Lane, clock: FakeClock
) -> None:
    """The wait is the server's."""
    url, client, path = lane.start(world), lane.client(flavour, world), unique("busy")
    response = await flavour.run(client.get(url + path))
    assert (response.status_code, response.json()[0]) == (200, path)
    assert clock.delays == [7.0]


@lanes()
async def test_a_head_that_is_too_large(
    flavour: Flavour, world: World, lane: Lane, clock: FakeClock
) -> None:
    """However the server says so, it is said once; the next request is answered.

    But haproxy calls it an INTERNAL_ERROR of its own over HTTP/2, and node resets an HTTP/1.1
    connection right behind its 431: both may pass as far as a client can know.
    """
    url, client = lane.start(world), lane.client(flavour, world, max_attempts=2)
    outcome = await flavour.outcome(client.get, f"{url}/1", headers={"X-Large": "x" * 100_000})
    if isinstance(outcome, httpx.Response):
        assert outcome.status_code in (200, 400, 431)
    if (lane.server.name, lane.protocol == "h2") not in (("haproxy", True), ("node", False)):
        assert clock.delays == []
    answer = await flavour.run(client.get(f"{url}/2"))
    assert answer.json()[0] == "/2"
    assert is_settled(client)


# --- proxies --------------------------------------------------------------------------------------


def through(
    proxy: Server, running: Running, userinfo: str = f"{USER}:{PASSWORD}@"
) -> dict[str, Any]:
    """The arguments of a client that goes through a proxy."""
    if not running.options.credentials:
        userinfo = ""
    return {"proxy": f"{proxy.kinds_of_proxy[0]}://{userinfo}{LOOPBACK}:{running.port}"}


def target(world: World, protocol: str) -> tuple[Lane, str]:
    """What is reached through a proxy: the application itself, or a server with TLS."""
    servers = (one for one in SERVERS if one.is_installed and "application" in one.can)
    lane = Lane(next(servers), protocol)
    return lane, world.application if protocol == "http" else lane.start(world)


@proxies()
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_proxy_without_credentials(
    flavour: Flavour, world: World, proxy: Server, protocol: str
) -> None:
    """50 GETs at once and a POST of 1 MB."""
    await use(flavour, world, world.server(proxy), protocol)


@proxies("credentials")
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_proxy_with_credentials(
    flavour: Flavour, world: World, proxy: Server, protocol: str
) -> None:
    """The same."""
    await use(flavour, world, world.server(proxy, credentials="yes"), protocol)


async def use(flavour: Flavour, world: World, running: Running, protocol: str) -> None:
    # tinyproxy closes behind its answer without having said so. A GET on a kept connection that
    # meets it is repeated; a POST rightly isn't, so it gets a connection of its own.
    lane, url = target(world, protocol)
    client = lane.client(flavour, world, retry=QUICK, **through(running.server, running))
    responses = await flavour.gather(lambda n=n: client.get(f"{url}/{n}") for n in range(50))
    assert paths(responses) == [f"/{n}" for n in range(50)]
    assert is_settled(client)
    client = lane.client(flavour, world, max_attempts=1, **through(running.server, running))
    response = await flavour.run(client.post(f"{url}/up", content=bytes(1_000_000)))
    assert response.json()[1] == 1_000_000
    assert response.http_version == ("HTTP/2" if protocol == "h2" else "HTTP/1.1")
    assert is_settled(client)


@proxies("credentials")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("userinfo", ["ann:wrong@", ""])
async def test_a_proxy_with_wrong_credentials(
    flavour: Flavour, world: World, proxy: Server, protocol: str, userinfo: str
) -> None:
    """One attempt: the proxy's own answer to a plain request, else ProxyError."""
    running = world.server(proxy, credentials="yes")
    lane, url = target(world, protocol)
    client = lane.client(flavour, world, **through(proxy, running, userinfo))
    outcome = await flavour.outcome(client.get, f"{url}/1")
    if isinstance(outcome, httpx.Response):
        assert outcome.status_code in (401, 407)
        assert outcome.extensions["retries"] == ()
    else:
        assert isinstance(outcome, httpx.ProxyError)
        assert outcome.request.extensions["retries"] == ()
    assert is_settled(client)


@proxies()
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_proxy_that_is_killed_under_load(
    flavour: Flavour, world: World, proxy: Server, protocol: str
) -> None:
    """Every GET is answered in the end, no POST arrives twice, nothing hangs."""
    running = Running(proxy, world.server(proxy).options, world)
    lane, url = target(world, protocol)
    client = lane.client(flavour, world, retry=QUICK, **through(proxy, running))
    prefix, numbers = unique("killed"), itertools.count()
    outcomes: list[tuple[str, str, Any]] = []
    end = time.monotonic() + 1.9

    async def post_or_get() -> None:
        while time.monotonic() < end:
            number = next(numbers)
            method, path = ("GET", "POST")[number % 2], f"{prefix}/{number}"
            outcome = await flavour.outcome(client.request, method, f"{url}{path}?delay=0.05")
            outcomes.append((method, path, outcome))

    def kill_and_start() -> None:
        running.kill()
        running.start()

    try:
        with every(0.6, kill_and_start) as failures:
            await flavour.gather([in_flavour(flavour, post_or_get)] * 8)
    finally:
        running.kill()
    assert failures == []
    seen = world.seen()
    lost = [one for one in outcomes if not isinstance(one[2], httpx.Response)]
    assert [one for one in lost if one[0] == "GET"] == []
    assert max(count for path, count in seen.items() if path.startswith(prefix)) == 1
    assert is_settled(client)
