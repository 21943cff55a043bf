"""retry_unsent: what provably never reached the server's application, with any method.

Subject: `retry.py`.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import (
    ScriptedServer,
    Step,
    answer,
    client_context,
    cut,
    fin,
    forward,
    full_backlog,
    hang,
    redirect,
    refused_port,
    reset,
)

from httpx_production import RetryPolicy
from httpx_production.retry import never_sent

UNSENT = RetryPolicy(retry_unsent=True)
REFUSED_STREAM = "the server refused the stream (REFUSED_STREAM)"
RETIRED = "not processed: the server retired the connection"
HINT = "; retry_unsent=True would allow it"

# --- as tables ------------------------------------------------------------------------------------

POST = httpx.Request("POST", "https://api.example.com/orders")


@pytest.mark.parametrize(
    ("outcome", "unsent"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ConnectTimeout("slow"), True),
        (httpx.PoolTimeout("full"), True),
        (httpx.ProxyError("502 Bad Gateway"), True),
        (httpx.RemoteProtocolError(REFUSED_STREAM), True),
        (httpx.RemoteProtocolError(f"{RETIRED} after GOAWAY: NO_ERROR"), True),
        (httpx.RemoteProtocolError("Server disconnected after GOAWAY: NO_ERROR"), False),
        (httpx.RemoteProtocolError(f"{REFUSED_STREAM}, 3 of 3 times"), True),
        (httpx.RemoteProtocolError(f"a server that says: {REFUSED_STREAM}"), False),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), False),
        (httpx.LocalProtocolError(REFUSED_STREAM), False),
        (httpx.ReadTimeout(""), False),
        (httpx.WriteTimeout(""), False),
        (httpx.ReadError(""), False),
        (httpx.WriteError(""), False),
        (httpx.CloseError(""), False),
        (httpx.TimeoutException(""), False),
        (httpx.NetworkError(""), False),
        (httpx.UnsupportedProtocol(""), False),
        (ConnectionRefusedError(), False),
        (httpx.Response(503), False),
    ],
    ids=repr,
)
def test_what_was_never_sent(outcome: httpx.Response | Exception, unsent: bool) -> None:
    """No connection, or the server's word for it; whatever else has happened may have arrived."""
    if isinstance(outcome, httpx.RequestError):
        assert not never_sent(POST, outcome)  # without a request it is no transport's
        outcome.request = POST
    assert never_sent(POST, outcome) is unsent
    assert UNSENT.allows(POST, outcome) is unsent
    assert not RetryPolicy().allows(POST, outcome)
    assert not UNSENT.allows(POST)


@pytest.mark.parametrize(
    ("method", "url", "same"),
    [
        ("POST", "https://api.example.com/orders", True),
        ("GET", "https://api.example.com/orders", False),
        ("POST", "https://api.example.com/order/7", False),
        ("POST", "https://other.example.com/orders", False),
    ],
)
def test_the_request_that_failed_must_be_the_one_to_be_repeated(
    method: str, url: str, same: bool
) -> None:
    """What followed from its answer says nothing about the request itself."""
    exc = httpx.ConnectError("refused", request=httpx.Request(method, url))
    assert UNSENT.allows(POST, exc) is same


# --- over the wire --------------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


async def test_a_post_is_repeated_until_the_server_listens(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A restart is survived, and the server sees the order once."""
    with ScriptedServer(listening=False) as server:
        clock.during_wait.append(server.listen)
        response = await flavour.run(flavour.client(retry=UNSENT).post(server.url, content=b"one"))
    assert [failed.reason for failed in response.extensions["retries"]] == ["ConnectError"]
    assert (response.text, server.bodies) == ("ok", [b"one"])


@pytest.mark.parametrize("unsent", [True, False])
async def test_a_refused_post_is_tried_again_where_it_was_asked_for(
    flavour: Flavour, clock: FakeClock, unsent: bool
) -> None:
    """By default a POST is never repeated, and the note says what would allow it."""
    with refused_port() as url:
        client = flavour.client(retry=RetryPolicy(retry_unsent=unsent))
        outcome = await flavour.outcome(client.post, url, content=b"one")
    assert isinstance(outcome, httpx.ConnectError)
    assert len(clock.delays) == (4 if unsent else 0)
    (note,) = outcome.__notes__
    assert note.endswith(HINT) is not unsent


async def test_a_connection_that_takes_too_long(flavour: Flavour, clock: FakeClock) -> None:
    """A backlog that is full: the request was never written."""
    with full_backlog() as url:
        client = flavour.client(retry=UNSENT, connect_timeout=0.05, max_attempts=3)
        outcome = await flavour.outcome(client.post, url, content=b"one")
    assert isinstance(outcome, httpx.ConnectTimeout)
    assert len(clock.delays) == 2


async def test_a_pool_that_is_full(flavour: Flavour, clock: FakeClock) -> None:
    """The order waits for a connection, gets none, and is sent when there is one."""
    with ScriptedServer() as server:
        client = flavour.client(retry=UNSENT, max_connections=1, pool_timeout=0.05)
        async with contextlib.AsyncExitStack() as stack:
            held = await stack.enter_async_context(flavour.using(client.stream("GET", server.url)))
            outcome = await flavour.outcome(client.post, server.url, content=b"one")
            await flavour.close(held)
        assert isinstance(outcome, httpx.PoolTimeout)
        assert len(clock.delays) == 4
        assert (await flavour.run(client.post(server.url, content=b"two"))).text == "ok"
        assert server.bodies == [b"", b"two"]


async def test_a_tunnel_that_was_refused(flavour: Flavour, clock: FakeClock) -> None:
    """The proxy could not reach the server, and then it could; what is permanent stays so."""
    steps: list[Any] = [answer(502), answer(403), answer(503), forward]
    with ScriptedServer(steps) as proxy, ScriptedServer(tls=True) as server:
        client = flavour.client(retry=UNSENT, proxy=proxy.url, verify=client_context())
        outcome = await flavour.outcome(client.post, server.url, content=b"one")
        response = await flavour.run(client.post(server.url, content=b"two"))
    assert isinstance(outcome, httpx.ProxyError)
    assert (response.text, server.bodies, proxy.methods) == ("ok", [b"two"], ["CONNECT"] * 4)


async def test_a_stream_that_the_server_refused(flavour: Flavour, clock: FakeClock) -> None:
    """RFC 9113 section 8.7: REFUSED_STREAM says that nothing was processed."""
    requests: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request.content)
        if len(requests) < 3:
            raise httpx.RemoteProtocolError(REFUSED_STREAM, request=request)
        return httpx.Response(200)

    client = flavour.client(retry=UNSENT, transport=httpx.MockTransport(handler))
    response = await flavour.run(client.post("https://api.example.com", content=b"one"))
    assert (response.status_code, requests) == (200, [b"one"] * 3)


@pytest.mark.parametrize(
    "step",
    [reset(), fin(), hang(), cut(b"body", 2), answer(503), reset(read="head")],
    ids=["reset", "fin", "hang", "cut", "503", "reset before the body"],
)
async def test_what_may_have_arrived_is_not_repeated(
    flavour: Flavour, clock: FakeClock, step: Step
) -> None:
    """Its fate is unknown, so a POST is sent once, and no note promises more."""
    with ScriptedServer([step]) as server:
        client = flavour.client(retry=UNSENT, read_timeout=1.0)
        outcome = await flavour.outcome(client.post, server.url, content=b"one")
    assert getattr(outcome, "status_code", 503) == 503
    assert len(server.requests) == 1
    assert clock.delays == []
    assert HINT not in "".join(getattr(outcome, "__notes__", ()))


@pytest.mark.parametrize("status", [302, 303, 307, 308])
async def test_a_redirect_s_target_that_is_down_repeats_no_post(
    flavour: Flavour, clock: FakeClock, status: int
) -> None:
    """The first server has had the order: its 303 means that it was placed."""
    with refused_port() as down, ScriptedServer([redirect(f"{down}/7", status)]) as server:
        client = flavour.client(retry=UNSENT, follow_redirects=True)
        outcome = await flavour.outcome(client.post, server.url, content=b"one")
    assert isinstance(outcome, httpx.ConnectError)
    assert (server.methods, clock.delays) == (["POST"], [])
    assert HINT not in "".join(outcome.__notes__)


async def test_what_a_response_hook_raises_by_hand_proves_nothing(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The server has answered by then, whatever the hook failed to reach."""

    def audit(response: httpx.Response) -> None:
        raise httpx.ConnectError("the audit log is down")

    with ScriptedServer() as server:
        client = flavour.client(retry=UNSENT, event_hooks={"response": [flavour.hook(audit)]})
        outcome = await flavour.outcome(client.post, server.url, content=b"one")
    assert isinstance(outcome, httpx.ConnectError)
    assert (server.bodies, clock.delays) == ([b"one"], [])
    assert HINT not in "".join(outcome.__notes__)


class Token(httpx.Auth):
    """Asks for a token by a POST of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def auth_flow(self, request: httpx.Request) -> Any:
        yield httpx.Request("POST", self.url, content=b"secret")
        yield request


@pytest.mark.parametrize("policy", [UNSENT, RetryPolicy()], ids=["unsent", "default"])
async def test_a_token_s_post_that_was_never_sent_may_be_repeated_for_a_get(
    flavour: Flavour, clock: FakeClock, policy: RetryPolicy
) -> None:
    """Neither of the two has got anywhere."""
    with ScriptedServer(listening=False) as tokens, ScriptedServer() as server:
        clock.during_wait.append(tokens.listen)
        client = flavour.client(retry=policy, auth=Token(tokens.url))
        outcome = await flavour.outcome(client.get, server.url)
    if policy is UNSENT:
        assert (outcome.text, tokens.methods, server.methods) == ("ok", ["POST"], ["GET"])
    else:
        assert isinstance(outcome, httpx.ConnectError)


async def test_an_upload_that_can_t_be_repeated_still_binds(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A generator from which nothing was taken yet may be sent, as with any method."""
    taken: list[bytes] = []

    def note(chunk: bytes) -> Callable[[], bytes]:
        taken.append(chunk)
        return lambda: chunk

    with ScriptedServer(listening=False) as server:
        clock.during_wait.append(server.listen)
        body = flavour.generator(note(chunk)() for chunk in (b"a", b"b"))
        response = await flavour.run(flavour.client(retry=UNSENT).post(server.url, content=body))
    assert (response.text, server.bodies, taken) == ("ok", [b"ab"], [b"a", b"b"])
