"""httpx-auth, hishel and httpx-sse over our clients, with a fault in the middle."""

from pathlib import Path
from typing import Any

import hishel
import hishel.httpx
import httpx
import httpx_auth
import httpx_sse
import pytest
from conftest import FakeClock, Flavour
from servers import ScriptedServer, answer, chunked

from httpx_production import ProductionHTTPClient

pytestmark = pytest.mark.anyio


# --- httpx-auth -----------------------------------------------------------------------------------


async def test_httpx_auth_signs_every_attempt(flavour: Flavour, clock: FakeClock) -> None:
    """A header key, a query key and an AWS signature are there once on each attempt."""
    keys = httpx_auth.HeaderApiKey("h") + httpx_auth.QueryApiKey("q", "key")
    aws = httpx_auth.AWS4Auth("id", "secret", "eu-central-1", "s3")
    for auth in (keys, aws):
        with ScriptedServer([answer(503), answer(503)]) as server:
            response = await flavour.run(flavour.client(auth=auth).put(server.url, content=b"x"))
            assert response.text == "ok"
            assert server.bodies == [b"x"] * 3
            assert len({request.target for request in server.requests}) == 1
            names = [set(request.headers) for request in server.requests]
            assert names[0] == names[1] == names[2]


@pytest.mark.flavours("sync")
async def test_httpx_auth_fetches_its_token_through_our_client(
    flavour: Flavour, clock: FakeClock
) -> None:
    """OAuth2ClientCredentials takes a client for the token's POST, and sets its timeout."""
    token = answer(body=b'{"access_token": "t", "expires_in": 3600}')
    with ScriptedServer([token, answer(503)]) as server:
        auth = httpx_auth.OAuth2ClientCredentials(
            f"{server.url}/token", "id", "secret", client=flavour.client()
        )
        assert flavour.client(auth=auth).get(server.url).text == "ok"
        assert server.methods == ["POST", "GET", "GET"]
        assert server.requests[-1].headers["Authorization"] == "Bearer t"


# --- hishel ---------------------------------------------------------------------------------------


def cached(flavour: Flavour, path: Path) -> Any:
    """hishel's transport over httpx's, as the transport of our client."""
    if flavour.sync:
        storage: Any = hishel.SqliteStorage(database_path=path)
        return hishel.httpx.CacheTransport(httpx.HTTPTransport(), storage, rfc=True)
    storage = hishel.AsyncSqliteStorage(database_path=path)
    return hishel.httpx.AsyncCacheTransport(httpx.AsyncHTTPTransport(), storage, rfc=True)


async def test_hishel_caches_what_came_after_the_retry(
    flavour: Flavour, clock: FakeClock, tmp_path: Path
) -> None:
    """The 503 isn't cached; the 200 after it is, and answers the next request."""
    fresh = answer(body=b"kept", headers={"Cache-Control": "max-age=60"})
    with ScriptedServer([answer(503), fresh]) as server:
        client = flavour.client(transport=cached(flavour, tmp_path / "cache.db"))
        for retries, from_cache in ((1, False), (0, True)):
            response = await flavour.run(client.get(server.url))
            assert response.text == "kept"
            assert response.extensions["caching"]["from_cache"] is from_cache
            assert len(response.extensions["retries"]) == retries
        assert len(server.requests) == 2


@pytest.mark.flavours("sync")
async def test_hishels_client_mixes_with_ours(
    flavour: Flavour, clock: FakeClock, tmp_path: Path
) -> None:
    """CacheClient passes arguments on to the next class, which is ours."""

    class Client(hishel.httpx.CacheClient, ProductionHTTPClient):
        pass

    fresh = answer(body=b"kept", headers={"Cache-Control": "max-age=60"})
    storage = hishel.SqliteStorage(database_path=tmp_path / "cache.db")
    with (
        ScriptedServer([answer(503), fresh]) as server,
        Client(storage=storage, rfc=True, max_attempts=2, trust_env=False) as client,
    ):
        assert [client.get(server.url).text for _ in range(3)] == ["kept"] * 3
        assert len(server.requests) == 2
        assert client.pool_stats().waiting == 0


# --- httpx-sse ------------------------------------------------------------------------------------


async def test_server_sent_events_begin_after_the_retry(flavour: Flavour, clock: FakeClock) -> None:
    """connect_sse and aconnect_sse go through stream(): retried until the response is there."""
    kind = {"Content-Type": "text/event-stream"}
    events = chunked(b"data: one\n\nda", b"ta: two\n\n", headers=kind)
    with ScriptedServer([answer(503), events]) as server:
        client, names = flavour.client(), []
        if flavour.sync:
            with httpx_sse.connect_sse(client, "GET", server.url) as source:
                names = [event.data for event in source.iter_sse()]
        else:
            async with httpx_sse.aconnect_sse(client, "GET", server.url) as source:
                names = [event.data async for event in source.aiter_sse()]
    assert names == ["one", "two"]
    assert [request.headers["Accept"] for request in server.requests] == ["text/event-stream"] * 2
