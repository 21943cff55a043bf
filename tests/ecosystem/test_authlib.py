"""authlib's OAuth2Client and our class as the bases of one; needs both on the same httpx."""

from time import time
from typing import Any

import httpx
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuth2Client
from conftest import FakeClock, Flavour
from servers import ScriptedServer, answer

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient, RetryPolicy

pytestmark = pytest.mark.anyio


class OursFirst(ProductionHTTPClient, OAuth2Client):
    """Our constructor, with authlib's arguments passed on: timeouts, limits and the pool hold."""


class AsyncOursFirst(AsyncProductionHTTPClient, AsyncOAuth2Client):
    """The same."""


class TheirsFirst(OAuth2Client, ProductionHTTPClient):
    """authlib's constructor, which calls httpx's and not ours: the retries hold."""


class AsyncTheirsFirst(AsyncOAuth2Client, AsyncProductionHTTPClient):
    """The same."""


CLIENTS = [(OursFirst, AsyncOursFirst), (TheirsFirst, AsyncTheirsFirst)]


def expiring(value: str, seconds: float) -> dict[str, Any]:
    return {"access_token": value, "token_type": "Bearer", "expires_at": int(time() + seconds)}


@pytest.mark.parametrize("kinds", CLIENTS, ids=["ours-first", "theirs-first"])
async def test_authlib_signs_every_attempt(flavour: Flavour, clock: FakeClock, kinds: Any) -> None:
    """An OAuth2Client mixed with our class retries, and each attempt carries the token."""
    options: dict[str, Any] = {"trust_env": False, "token": expiring("t", 3600)}
    with ScriptedServer([answer(503)] * 4) as server:
        async with flavour.using(kinds[not flavour.sync](client_id="id", **options)) as client:
            response = await flavour.run(client.get(server.url))
            assert response.text == "ok"
            policy = RetryPolicy(max_attempts=2)
            server._script[:] = [answer(503)] * 3
            response = await flavour.run(client.get(server.url, extensions={"retry": policy}))
            assert response.status_code == 503
        tokens = [request.headers.get("Authorization") for request in server.requests]
    assert tokens == ["Bearer t"] * 7


async def test_authlib_takes_our_defaults(flavour: Flavour) -> None:
    """With our class first, its timeouts hold, and its arguments are understood."""
    kind = OursFirst if flavour.sync else AsyncOursFirst
    async with flavour.using(kind(client_id="id", max_attempts=2, read_timeout=7.0)) as client:
        assert client.timeout == httpx.Timeout(connect=5.0, read=7.0, write=5.0, pool=2.0)
        assert client.retry.max_attempts == 2
        assert client.client_id == "id"


async def test_authlib_fetches_and_refreshes_tokens(flavour: Flavour, clock: FakeClock) -> None:
    """The token's POST is sent once; an expired token is refreshed before the request."""
    fresh = answer(body=b'{"access_token": "new", "token_type": "Bearer", "expires_in": 3600}')
    with ScriptedServer([fresh, answer(503)]) as server:
        kind = OursFirst if flavour.sync else AsyncOursFirst
        token = expiring("old", -100) | {"refresh_token": "r"}
        options: dict[str, Any] = {"trust_env": False, "client_secret": "s", "token": token}
        options["token_endpoint"] = f"{server.url}/token"
        async with flavour.using(kind(client_id="id", **options)) as client:
            assert (await flavour.run(client.get(server.url))).text == "ok"
        assert server.methods == ["POST", "GET", "GET"]
        assert server.requests[-1].headers["Authorization"] == "Bearer new"
