"""Those who watch or replace what is below the client: wrappers, mocks, trace, SSL contexts.

Subject: `transport/_pools.py`, `transport/_connections.py`.
"""

import functools
import ssl
from collections.abc import Callable
from typing import Any

import certifi
import httpcore
import httpx
import pytest
from conftest import Flavour
from h2_peer import H2Peer
from helpers import in_use, one_attempt
from servers import ScriptedServer, client_context, echo

from httpx_production.transport import _pools

pytestmark = pytest.mark.anyio


def wrap(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, owner: Any, before: Callable[[Any], None]
) -> None:
    """Put a functools.wraps wrapper on a pool's class, as instrumentation libraries do."""
    name = "handle_request" if flavour.sync else "handle_async_request"
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(pool: Any, request: httpcore.Request) -> Any:
        before(request)
        return original(pool, request)

    @functools.wraps(original)
    async def async_wrapper(pool: Any, request: httpcore.Request) -> Any:
        before(request)
        return await original(pool, request)

    monkeypatch.setattr(owner, name, wrapper if flavour.sync else async_wrapper)


@pytest.mark.parametrize("made", ["before", "after"])
async def test_a_wrapper_on_httpcore_s_pool_is_called(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """Once for each request, for clients made before it and after it; the request goes on."""
    seen: list[bytes] = []
    owner = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour) if made == "before" else None
        wrap(flavour, monkeypatch, owner, lambda request: seen.append(request.url.target))
        client = client or one_attempt(flavour)
        for number in range(2):
            response = await flavour.run(client.get(f"{server.url}/{number}"))
            assert response.text == f"/{number}"
        assert seen == [b"/0", b"/1"]
        assert server.connections == 1
        assert client.pool_stats().idle == 1


async def test_without_a_wrapper_httpcore_s_function_is_left_out(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list of requests is filled where somebody has wrapped it, and only there."""
    listed: list[Any] = []
    original = _pools._Requests.append

    def append(requests: Any, pool_request: Any) -> None:
        listed.append(pool_request)
        original(requests, pool_request)

    monkeypatch.setattr(_pools._Requests, "append", append)
    owner = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour)
        assert (await flavour.run(client.get(server.url))).status_code == 200
        assert listed == []
        wrap(flavour, monkeypatch, owner, lambda request: None)
        assert (await flavour.run(client.get(server.url))).status_code == 200
        assert len(listed) == 1


class Proxy:
    """A function in a function's place that passes for it in every attribute, as wrapt's do."""

    def __init__(self, wrapped: Any, before: Callable[[], None]) -> None:
        self.wrapped, self.before = wrapped, before

    def __get__(self, pool: Any, owner: Any) -> "Proxy":
        return Proxy(self.wrapped.__get__(pool, owner), self.before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __call__(self, *args: Any) -> Any:
        self.before()
        return self.wrapped(*args)


async def test_an_object_in_the_function_s_place_is_called(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that looks like httpcore's function, for each kind of pool that it is set on."""
    seen: list[None] = []
    owner = httpcore.HTTPProxy if flavour.sync else httpcore.AsyncHTTPProxy
    name = "handle_request" if flavour.sync else "handle_async_request"
    proxy = Proxy(getattr(owner, name), lambda: seen.append(None))
    monkeypatch.setattr(owner, name, proxy, raising=False)
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour, proxy=server.url)
        assert (await flavour.run(client.get("http://origin.example/x"))).status_code == 200
        assert len(seen) == 1
        assert (await flavour.run(one_attempt(flavour).get(server.url))).status_code == 200
    assert len(seen) == 1


async def test_two_wrappers_are_both_called(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one first, as with any functions around functions."""
    seen: list[str] = []
    owner = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    wrap(flavour, monkeypatch, owner, lambda request: seen.append("inner"))
    wrap(flavour, monkeypatch, owner, lambda request: seen.append("outer"))
    with ScriptedServer(echo) as server:
        assert (await flavour.run(one_attempt(flavour).get(server.url))).status_code == 200
    assert seen == ["outer", "inner"]


async def test_a_wrapper_that_raises_costs_no_slot(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exception comes out, and the pool is as it was."""

    def refuse(request: Any) -> None:
        raise ZeroDivisionError

    owner = httpcore.ConnectionPool if flavour.sync else httpcore.AsyncConnectionPool
    with ScriptedServer(echo) as server:
        client = one_attempt(flavour, max_connections=1)
        wrap(flavour, monkeypatch, owner, refuse)
        with pytest.raises(ZeroDivisionError):
            await flavour.run(client.get(server.url))
        monkeypatch.undo()
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
        assert in_use(client) == (0, 0)


async def test_a_mock_in_httpcore_s_place_answers(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't call on: nothing is sent and nothing is opened."""

    def mocked(pool: Any, request: httpcore.Request) -> httpcore.Response:
        return httpcore.Response(200, content=b"mocked")

    async def async_mocked(pool: Any, request: httpcore.Request) -> httpcore.Response:
        return mocked(pool, request)

    monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", mocked)
    monkeypatch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", async_mocked)
    client = one_attempt(flavour)
    assert (await flavour.run(client.get("http://127.0.0.1:1/"))).content == b"mocked"
    assert client.pool_stats().connections == 0


async def test_a_wrapper_on_httpx_s_transport_is_called(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """respx, pytest-httpx and OpenTelemetry patch those classes."""
    seen: list[str] = []
    owner = httpx.HTTPTransport if flavour.sync else httpx.AsyncHTTPTransport
    wrap(flavour, monkeypatch, owner, lambda request: seen.append(request.url.path))
    with ScriptedServer(echo) as server:
        await flavour.run(one_attempt(flavour).get(f"{server.url}/x"))
    assert seen == ["/x"]


# --- the trace extension -------------------------------------------------------------------------


async def traced(flavour: Flavour, client: Any, url: str, **options: Any) -> list[str]:
    """The names of the events of one request, in order."""
    events: list[str] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        events.append(name)

    extensions = {"trace": flavour.hook(trace)}
    response = await flavour.run(
        client.request(options.pop("method", "GET"), url, extensions=extensions, **options)
    )
    assert response.status_code == 200
    return events


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
@pytest.mark.parametrize("upload", [False, True])
async def test_trace_tells_what_httpx_tells(flavour: Flavour, kind: str, upload: bool) -> None:
    """The same events as of plain httpx, on a new connection and on one that is used again."""
    options: dict[str, Any] = {"method": "POST", "content": b"x" * 50_000} if upload else {}
    told = []
    for make in (lambda **o: flavour.plain(http2=True, **o), lambda **o: one_attempt(flavour, **o)):
        server: Any = H2Peer() if kind == "http2" else ScriptedServer(echo, tls=kind == "https")
        with server:
            client = make(verify=client_context())
            first = await traced(flavour, client, server.url, **options)
            told.append((first, await traced(flavour, client, server.url, **options)))
    (plain_first, plain_next), (our_first, our_next) = told
    assert set(our_first) == set(plain_first)
    assert set(our_next) == set(plain_next)
    # One event of each kind: but a body may be sent and received in pieces of another size.
    for ours in (our_first, our_next):
        starts = [name for name in ours if name.endswith(".started")]
        ends = [name for name in ours if name.endswith(".complete")]
        assert sorted(name.rpartition(".")[0] for name in starts) == sorted(
            name.rpartition(".")[0] for name in ends
        )


async def test_trace_tells_what_came_over_http2(flavour: Flavour) -> None:
    """With the end of a step goes its result, as in httpx: status and headers, or SETTINGS."""
    told: list[dict[str, Any]] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        told[-1][name.rpartition(".")[0].removeprefix("http2.")] = info.get("return_value")

    for make in (lambda **o: flavour.plain(http2=True, **o), lambda **o: one_attempt(flavour, **o)):
        told.append({})
        with H2Peer(settings={"MAX_CONCURRENT_STREAMS": 7}) as server:
            client = make(verify=client_context())
            await flavour.run(
                client.get(f"{server.url}/x", extensions={"trace": flavour.hook(trace)})
            )
    plain, ours = told
    assert ours["receive_response_headers"] == plain["receive_response_headers"]
    assert ours["receive_response_headers"] == (200, [(b"content-length", b"2")])
    settings = [one["receive_remote_settings"].changed_settings for one in (plain, ours)]
    assert str(settings[0]) == str(settings[1])
    assert "new_value=7" in str(settings[0])


async def test_trace_tells_of_failures(flavour: Flavour) -> None:
    """A read timeout over HTTP/2 is an event of its own, as in httpx."""

    def silent(peer: Any) -> None:
        peer.request()
        peer.rest()

    told = []
    for make in (lambda **o: flavour.plain(http2=True, **o), lambda **o: one_attempt(flavour, **o)):
        events: list[str] = []

        def trace(name: str, info: dict[str, Any], events: list[str] = events) -> None:
            events.append(name)

        with H2Peer(silent) as server:
            client = make(verify=client_context())
            extensions = {"trace": flavour.hook(trace)}
            outcome = await flavour.outcome(
                client.get, server.url, timeout=httpx.Timeout(5, read=0.2), extensions=extensions
            )
            assert isinstance(outcome, httpx.ReadTimeout)
        told.append({name for name in events if name.endswith(".failed")})
    assert told[0] == told[1] != set()


# --- the default SSL context ---------------------------------------------------------------------


async def test_a_replaced_context_function_is_used_from_then_on(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """truststore replaces what ssl offers: no context that was made before is handed out after."""
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())  # else httpx2 doesn't call it on Linux
    client = functools.partial(flavour.client, trust_env=True)
    client()  # as of another library, at import time
    original, made = ssl.create_default_context, []

    def replaced(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        made.append(context := original(*args, **kwargs))
        return context

    with monkeypatch.context() as patch:
        patch.setattr(ssl, "create_default_context", replaced)
        client()
        assert len(made) == 1
        client()
        assert len(made) == 1
    client()
    assert len(made) == 1


async def test_a_replaced_context_class_is_used_from_then_on(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`truststore.inject_into_ssl()` puts its class in the place of ssl.SSLContext."""
    flavour.client()
    made: list[Any] = []

    original = ssl.SSLContext

    class Injected(original):  # type: ignore[misc, valid-type]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            made.append(self := original.__new__(cls, *args, **kwargs))
            return self

    for name in ("verify_mode", "verify_flags", "options", "minimum_version", "maximum_version"):
        # The setters of ssl.SSLContext look for the class by its name in the module.
        setattr(Injected, name, getattr(original.__base__, name))

    monkeypatch.setattr(ssl, "SSLContext", Injected)
    flavour.client()
    assert made
