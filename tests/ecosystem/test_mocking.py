"""respx and pytest-httpx, which tests of applications stand on, mock our clients as httpx's."""

from typing import Any

import anyio
import httpx
import pytest
import respx
from conftest import FakeClock, Flavour
from pytest_httpx import HTTPXMock
from servers import ScriptedServer, answer

from httpx_production.testing import no_waits

pytestmark = pytest.mark.anyio

URL = "https://api.example.com/things"


# --- respx ----------------------------------------------------------------------------------------


async def test_respx_answers_every_attempt(
    flavour: Flavour, clock: FakeClock, respx_mock: respx.MockRouter
) -> None:
    """A route's side effects are attempts: a 503, an exception, the answer."""
    route = respx_mock.put(URL, json={"a": 1})
    route.side_effect = [httpx.Response(503), httpx.ReadTimeout, httpx.Response(200, text="done")]
    response = await flavour.run(flavour.client().put(URL, json={"a": 1}))
    assert response.text == "done"
    assert route.call_count == 3
    assert [one.reason for one in response.extensions["retries"]] == [
        "503 Service Unavailable",
        "ReadTimeout",
    ]


@pytest.mark.flavours("asyncio", "trio")
@pytest.mark.parametrize("url", [URL, URL.replace("https", "http")])
async def test_respx_is_not_held_up_by_the_pool(
    flavour: Flavour, respx_mock: respx.MockRouter, url: str
) -> None:
    """Mocked requests need no connections: more at once than max_connections, none waits."""
    together: set[int] = set()

    async def wait_for_others(request: httpx.Request) -> httpx.Response:
        together.add(id(request))
        with anyio.move_on_after(0.5):
            while len(together) < 4:
                await anyio.sleep(0.01)
        return httpx.Response(200 if len(together) == 4 else 409)

    respx_mock.get(url).mock(side_effect=wait_for_others)
    client = flavour.client(max_connections=2, max_attempts=1)
    responses = await flavour.gather([lambda: client.get(url)] * 4)
    assert [getattr(one, "status_code", one) for one in responses] == [200] * 4


async def test_respx_lets_a_request_through(
    flavour: Flavour, clock: FakeClock, respx_mock: respx.MockRouter
) -> None:
    """pass_through reaches the real server, retries included; nothing is left open."""
    with ScriptedServer([answer(503)]) as server:
        respx_mock.get(server.url).pass_through()
        client = flavour.client()
        assert (await flavour.run(client.get(server.url))).text == "ok"
        assert len(server.requests) == 2
        await flavour.close(client)
        server.settle()


async def test_after_respx_the_pool_is_ours_again(flavour: Flavour, clock: FakeClock) -> None:
    """What was mocked for a while leaves no trace in a client that lives on."""
    with ScriptedServer() as server:
        client = flavour.client()
        for _ in range(2):
            with respx.mock:
                respx.get(server.url).respond(text="mocked")
                assert (await flavour.run(client.get(server.url))).text == "mocked"
            assert (await flavour.run(client.get(server.url))).text == "ok"
            assert client.pool_stats().idle == 1
        assert server.connections == 1


async def test_respx_complaints_are_not_retried(
    flavour: Flavour, respx_mock: respx.MockRouter
) -> None:
    """A request without a route fails the test at once."""
    exc = await flavour.outcome(flavour.client().get, URL)
    assert type(exc).__name__ == "AllMockedAssertionError"


# --- pytest-httpx ---------------------------------------------------------------------------------


async def test_pytest_httpx_answers_every_attempt(
    flavour: Flavour, clock: FakeClock, httpx_mock: HTTPXMock
) -> None:
    """Responses and exceptions are used up one per attempt."""
    httpx_mock.add_response(status_code=503, headers={"Retry-After": "7"})
    httpx_mock.add_exception(httpx.ConnectError("refused"))
    httpx_mock.add_response(json={"done": True}, match_headers={"X-Own": "yes"})
    response = await flavour.run(flavour.client().get(URL, headers={"X-Own": "yes"}))
    assert response.json() == {"done": True}
    assert len(httpx_mock.get_requests()) == 3
    assert clock.delays[0] == 7


async def test_pytest_httpx_streams(
    flavour: Flavour, clock: FakeClock, httpx_mock: HTTPXMock
) -> None:
    """A mocked stream is handed over after the retry."""
    httpx_mock.add_response(status_code=502)
    httpx_mock.add_response(text="streamed")
    async with flavour.using(flavour.client().stream("GET", URL)) as response:
        chunks = [chunk async for chunk in flavour.chunks(response)]
    assert b"".join(chunks) == b"streamed"


@pytest.mark.httpx_mock(assert_all_responses_were_requested=False)
async def test_pytest_httpx_sees_no_second_post(
    flavour: Flavour, clock: FakeClock, httpx_mock: HTTPXMock
) -> None:
    """What a test of an application wants to know: a POST goes out once."""
    httpx_mock.add_response(status_code=503)
    httpx_mock.add_response(status_code=200)
    response: Any = await flavour.run(flavour.client().post(URL, content=b"order"))
    assert response.status_code == 503
    assert [one.content for one in httpx_mock.get_requests()] == [b"order"]


# --- no_waits() -----------------------------------------------------------------------------------


@pytest.mark.httpx_mock(assert_all_requests_were_expected=False)
async def test_pytest_httpx_with_too_few_answers_fails_at_once(
    flavour: Flavour, httpx_mock: HTTPXMock
) -> None:
    """One attempt that was answered, one that wasn't: no third one, and nobody has waited."""
    httpx_mock.add_response(status_code=503, headers={"Retry-After": "300"})
    with no_waits():
        exc = await flavour.outcome(flavour.client().get, URL)
    assert isinstance(exc, httpx.TimeoutException)
    assert str(exc).startswith("No response can be found for GET request on")
    assert len(httpx_mock.get_requests()) == 2


async def test_respx_without_waits(flavour: Flavour, respx_mock: respx.MockRouter) -> None:
    """A client that the application has made itself runs through its attempts in no time."""
    client = flavour.client()
    route = respx_mock.get(URL)
    route.side_effect = [httpx.Response(429, headers={"Retry-After": "300"}), httpx.Response(200)]
    with no_waits():
        response = await flavour.run(client.get(URL))
    assert (response.status_code, route.call_count) == (200, 2)
    assert response.extensions["retries"][0].delay == 300
