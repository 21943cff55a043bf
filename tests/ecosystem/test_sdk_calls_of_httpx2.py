"""SDKs that take httpx2's clients alone: ours are such clients under the alias."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anthropic
import httpx2
import huggingface_hub
import huggingface_hub.errors
import mcp
import pytest
from conftest import FakeClock, Flavour
from documents import COOKBOOK
from huggingface_hub.utils import _detect_agent, _http
from mcp.client.streamable_http import streamable_http_client
from sdk_calls import SDK, is_retried, keeps_its_exceptions, said
from servers import Received, ScriptedServer, Step, answer

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient, RetryPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.flavours("sync", "asyncio")]


def test_ours_are_clients_of_httpx2() -> None:
    """What these SDKs ask for."""
    assert issubclass(ProductionHTTPClient, httpx2.Client)
    assert issubclass(AsyncProductionHTTPClient, httpx2.AsyncClient)


@pytest.mark.time_limit(60)
def test_the_cookbook_s_lines_work() -> None:
    """In a process of their own, which has no alias before."""
    (block,) = COOKBOOK.blocks("httpx2")
    text = f"{block}\nassert isinstance(client, httpx2.Client)\nprint(sdk._client is client)"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("True\n", "")


# --- anthropic, huggingface_hub -------------------------------------------------------------------


def call_anthropic(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    kind = anthropic.Anthropic if flavour.sync else anthropic.AsyncAnthropic
    return kind(api_key="k", base_url=url, max_retries=0, http_client=http_client).models.list


def call_hub(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    """Its sync API; in the async one a health check is the only GET, and has no exceptions."""
    huggingface_hub.set_client_factory(lambda: http_client)
    return partial(huggingface_hub.HfApi(endpoint=url, token=False).model_info, "a/our-model")


MODEL = {"id": "our-model", "type": "model", "display_name": "m", "created_at": "2026-01-01T00:00Z"}
ANTHROPIC = SDK(
    call_anthropic,
    {"data": [MODEL], "has_more": False, "first_id": "our-model", "last_id": "our-model"},
    anthropic.NotFoundError,
    anthropic.ServiceUnavailableError,
    anthropic.APIConnectionError,
)
HUB = SDK(
    call_hub,
    {"id": "a/our-model"},
    huggingface_hub.errors.RepositoryNotFoundError,
    huggingface_hub.errors.HfHubHTTPError,
    httpx2.ConnectError,
    missing=said({"error": "no"}, 404, X_Error_Code="RepoNotFound"),
)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub asks nobody which agent it runs under, and has its own clients back afterwards."""
    monkeypatch.setattr(_detect_agent, "_fetch_registry", lambda: None)
    yield
    huggingface_hub.set_client_factory(_http.default_client_factory)
    huggingface_hub.set_async_client_factory(_http.default_async_client_factory)


async def test_anthropic_on_our_client(flavour: Flavour, clock: FakeClock) -> None:
    """It sees the answer alone; what goes wrong has its own exceptions."""
    assert "our-model" in repr(await is_retried(ANTHROPIC, flavour, clock))
    await keeps_its_exceptions(ANTHROPIC, flavour)


@pytest.mark.flavours("sync")
async def test_the_hub_on_our_client(flavour: Flavour, clock: FakeClock) -> None:
    """The same."""
    assert "our-model" in repr(await is_retried(HUB, flavour, clock))
    await keeps_its_exceptions(HUB, flavour)


@pytest.mark.flavours("asyncio")
async def test_the_hub_s_async_client_is_ours(flavour: Flavour, clock: FakeClock) -> None:
    """By its factory; it closes what it was given."""
    huggingface_hub.set_async_client_factory(flavour.client)
    with ScriptedServer([answer(503), answer(200)]) as server:
        async with huggingface_hub.AsyncInferenceClient(provider="hf-inference") as client:
            assert await client.health_check(server.url)
        assert server.methods == ["GET", "GET"]


# --- mcp ------------------------------------------------------------------------------------------


class Tools:
    """A server with one tool; whose first answer to each method is a 503."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, request: Received) -> Step:
        if request.method != "POST":
            return answer(405)
        call = json.loads(request.body)
        self.asked.append(call["method"])
        if self.asked.count(call["method"]) == 1:
            return answer(503)
        if call["method"] == "initialize":
            version = call["params"]["protocolVersion"]
            info = {"name": "tools", "version": "1"}
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        elif call["method"] == "tools/list":
            result = {"tools": [{"name": "our-tool", "inputSchema": {"type": "object"}}]}
        else:
            return answer(202, b"")
        return said({"jsonrpc": "2.0", "id": call["id"], "result": result}, mcp_session_id="s")


@pytest.mark.flavours("asyncio", "trio")
async def test_mcp_s_calls_are_retried_where_the_policy_names_post(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Each of its messages is a POST."""
    tools = Tools()
    with ScriptedServer(tools) as server:
        client = flavour.client(retry=RetryPolicy(methods={"GET", "POST", "DELETE"}))
        async with (
            streamable_http_client(server.url, http_client=client) as (read, write),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            assert [tool.name for tool in (await session.list_tools()).tools] == ["our-tool"]
    methods = ["initialize", "notifications/initialized", "tools/list"]
    assert sorted(tools.asked) == sorted(methods * 2)


@pytest.mark.flavours("asyncio", "trio")
async def test_mcp_s_error_is_its_own(flavour: Flavour, clock: FakeClock) -> None:
    """And a POST isn't ours to repeat, unless it is named."""
    with ScriptedServer(lambda request: answer(503)) as server:
        async with (
            streamable_http_client(server.url, http_client=flavour.client()) as (read, write),
            mcp.ClientSession(read, write) as session,
        ):
            with pytest.raises(mcp.MCPError):
                await session.initialize()
        assert server.methods == ["POST"]
