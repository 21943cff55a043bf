"""Transports of others under our async client: starlette's app by ASGI, and aiohttp's."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from httpx_aiohttp import AiohttpTransport
from servers import (
    ScriptedServer,
    answer,
    chunked,
    cut,
    drip,
    fin,
    hang,
    message,
    redirect,
    refused_port,
    reset,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

pytestmark = pytest.mark.anyio


# --- starlette ------------------------------------------------------------------------------------


def application(failures: int) -> Starlette:
    """An app that is busy for its first so many requests."""
    left = failures

    async def things(request: Request) -> Response:
        nonlocal left
        body = await request.body()
        left -= 1
        if left >= 0:
            return Response(status_code=503, headers={"Retry-After": "3"})
        return JSONResponse({"query": str(request.query_params), "body": body.decode()})

    async def numbers(request: Request) -> Response:
        async def lines() -> AsyncIterator[str]:
            for number in range(3):
                yield f"{number}\n"

        return StreamingResponse(lines())

    return Starlette(routes=[Route("/things", things, methods=["PUT"]), Route("/numbers", numbers)])


@pytest.mark.flavours("asyncio", "trio")
async def test_a_starlette_app_is_called_until_it_is_ready(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Query and body arrive on each attempt; the app's Retry-After is kept."""
    transport = httpx.ASGITransport(app=application(failures=2))
    client = flavour.client(transport=transport, base_url="http://testserver")
    response = await client.put("/things", params={"a": "1"}, content=b"body")
    assert response.json() == {"query": "a=1", "body": "body"}
    assert clock.delays == [3, 3]


@pytest.mark.flavours("asyncio", "trio")
async def test_a_starlette_stream_is_read_by_lines(flavour: Flavour) -> None:
    """A StreamingResponse through stream() and aiter_lines()."""
    client = flavour.client(transport=httpx.ASGITransport(app=application(failures=0)))
    async with client.stream("GET", "http://testserver/numbers") as response:
        assert [line async for line in response.aiter_lines()] == ["0", "1", "2"]


# --- httpx-aiohttp --------------------------------------------------------------------------------


def over_aiohttp(flavour: Flavour, **options: Any) -> Any:
    return flavour.client(transport=AiohttpTransport(), http2=False, **options)


@pytest.mark.flavours("asyncio")
@pytest.mark.parametrize(
    "script",
    [
        [answer(503)],
        [answer(429)],
        [cut(b"x" * 100, 50)],
        [reset(), reset()],  # aiohttp itself sends once more, at once
        [fin(), fin()],
    ],
    ids=["503", "429", "cut", "reset", "fin"],
)
async def test_faults_over_aiohttp_are_retried(
    flavour: Flavour, clock: FakeClock, script: Any
) -> None:
    """Statuses, resets, closed connections and bodies cut short."""
    with ScriptedServer(script) as server:
        response = await over_aiohttp(flavour).get(server.url)
        assert response.text == "ok"
        assert len(response.extensions["retries"]) == 1
        assert len(server.requests) == len(script) + 1


@pytest.mark.flavours("asyncio")
@pytest.mark.parametrize("fault", [reset(), fin(), answer(503)], ids=["reset", "fin", "503"])
async def test_a_post_over_aiohttp_is_sent_once(
    flavour: Flavour, clock: FakeClock, fault: Any
) -> None:
    """Neither we nor aiohttp repeat it."""
    with ScriptedServer([fault]) as server:
        await flavour.outcome(over_aiohttp(flavour).post, server.url, content=b"order")
        assert server.bodies == [b"order"]


@pytest.mark.flavours("asyncio")
async def test_a_generator_over_aiohttp_is_never_sent_short(
    flavour: Flavour, clock: FakeClock
) -> None:
    """aiohttp's own second send of a used-up body fails, instead of sending an empty one."""
    with ScriptedServer([reset()]) as server:
        body = flavour.generator([b"bo", b"dy"])
        exc = await flavour.outcome(over_aiohttp(flavour).put, server.url, content=body)
        assert isinstance(exc, httpx.TransportError)
        assert [one.body for one in server.requests if one.complete] == [b"body"]


@pytest.mark.flavours("asyncio")
async def test_a_refused_connection_over_aiohttp_is_retried(
    flavour: Flavour, clock: FakeClock
) -> None:
    """aiohttp's exceptions come as httpx's, and carry our note."""
    with refused_port() as url:
        exc = await flavour.outcome(over_aiohttp(flavour, max_attempts=2).get, url)
    assert isinstance(exc, httpx.TransportError)
    assert "after 2 attempts" in exc.__notes__[0]


@pytest.mark.flavours("asyncio")
@pytest.mark.parametrize("kind", ["bytes", "json", "file", "generator", "multipart"])
async def test_bodies_over_aiohttp_arrive_again_or_once(
    flavour: Flavour, clock: FakeClock, tmp_path: Path, kind: str
) -> None:
    """The bytes of every attempt are the same, or there was one attempt."""
    (tmp_path / "file").write_bytes(b"skipped body")
    async with await anyio.open_file(tmp_path / "file", "rb") as file:
        await file.seek(8)
        body: dict[str, Any] = {
            "bytes": {"content": b"body"},
            "json": {"json": "body"},
            "file": {"content": file},
            "generator": {"content": flavour.generator([b"bo", b"dy"])},
            "multipart": {"files": {"f": io.BytesIO(b"body")}},
        }[kind]
        with ScriptedServer([answer(503)]) as server:
            response = await over_aiohttp(flavour).put(server.url, **body)
    once = kind == "generator"
    assert response.status_code == (503 if once else 200)
    assert len(server.bodies) == (1 if once else 2)
    assert len(set(server.bodies)) == 1
    assert kind == "multipart" or server.bodies[0].strip(b'"') == b"body"


@pytest.mark.flavours("asyncio")
async def test_hooks_and_redirects_over_aiohttp(flavour: Flavour, clock: FakeClock) -> None:
    """Request, response and retry hooks run as over httpx's own transport."""
    seen: list[Any] = []
    hooks = {
        "request": [flavour.hook(lambda request: seen.append(request.extensions["attempt"]))],
        "response": [flavour.hook(lambda response: seen.append(response.status_code))],
        "retry": [flavour.hook(lambda failed: seen.append(failed.reason))],
    }
    with ScriptedServer([redirect("/a"), answer(503), answer()]) as server:
        client = over_aiohttp(flavour, event_hooks=hooks, follow_redirects=True)
        assert (await client.get(server.url)).text == "ok"
    assert seen == [0, 302, 0, 503, "503 Service Unavailable", 1, 200]


DRIPPING_BODY = drip(message(200, b"x" * 100), 0.1, at_once=60)
DRIPPING_HEADERS = drip(message(200, b"x" * 10), 0.1)
STALLED_BODY = chunked(b"begin", pause=0.5, end=b"", then="hang")


@pytest.mark.flavours("asyncio")
@pytest.mark.parametrize(
    "step",
    [hang(), DRIPPING_BODY, DRIPPING_HEADERS, STALLED_BODY],
    ids=["stalled", "dripping-body", "dripping-headers", "stalled-body"],
)
async def test_total_timeout_holds_over_aiohttp(flavour: Flavour, step: Any) -> None:
    """The call ends in time, with a timeout exception that says why."""
    with ScriptedServer([step]) as server:
        started = monotonic()
        exc = await flavour.outcome(over_aiohttp(flavour, total_timeout=0.6).get, server.url)
        assert monotonic() - started < 0.9
        assert isinstance(exc, httpx.TimeoutException)
        assert any("total_timeout" in note for note in exc.__notes__)


@pytest.mark.flavours("asyncio")
async def test_a_503_loop_over_aiohttp_ends_in_time(flavour: Flavour, clock: FakeClock) -> None:
    """A wait that would end after total_timeout isn't begun."""
    with ScriptedServer(lambda request: answer(503)) as server:
        response = await over_aiohttp(flavour, total_timeout=3.0).get(server.url)
        assert response.status_code == 503
        assert sum(clock.delays) < 3


@pytest.mark.flavours("asyncio")
async def test_a_stream_over_aiohttp_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """stream() hands over what came after the fault."""
    with ScriptedServer([reset(), chunked(b"one", b"two")]) as server:
        async with over_aiohttp(flavour).stream("GET", server.url) as response:
            assert b"".join([chunk async for chunk in response.aiter_bytes()]) == b"onetwo"


@pytest.mark.flavours("asyncio")
async def test_aiohttp_is_closed_with_the_client(flavour: Flavour) -> None:
    """No connection outlives the client."""
    with ScriptedServer() as server:
        async with over_aiohttp(flavour) as client:
            for _ in range(3):
                await client.get(server.url)
            assert server.connections == 1
        server.settle()
