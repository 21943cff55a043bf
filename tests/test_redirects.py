"""Redirects under faults: what is repeated, what is not, and where credentials never go."""

import itertools
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from servers import Received, ScriptedServer, Step, answer, cut, fin, hang, redirect, reset

from httpx_production import RetryPolicy

pytestmark = pytest.mark.anyio

FLAKY = [answer(503), reset(), fin(), cut(b"x" * 500, 100)]
SECRETS = {"Authorization": "Bearer s3cret"}


def to(target: ScriptedServer, status: int = 302) -> Callable[[Received], Step]:
    """A server that redirects everything to another one."""
    return lambda request: redirect(target.url + "/there", status)


def redirecting(flavour: Any, **options: Any) -> Any:
    """A client that follows redirects."""
    return flavour.client(follow_redirects=True, **options)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_flaky_target_ends_well(flavour, clock, status):
    """The target fails in four ways: 200 in the end, and `history` holds one redirect, not five."""
    with ScriptedServer(FLAKY) as target, ScriptedServer(to(target, status)) as origin:
        response = await flavour.run(redirecting(flavour).get(origin.url + "/here"))
    assert response.text == "ok"
    assert [past.status_code for past in response.history] == [status]
    assert response.url.path == "/there"
    assert len(response.extensions["retries"]) == 4
    assert len(origin.requests) == len(target.requests) == 5


async def test_a_chain_of_redirects_has_one_history_of_its_own(flavour, clock):
    """The attempt that succeeds has its own history; failed attempts leave nothing in it."""
    script = [redirect("/2"), redirect("/3"), answer(503), redirect("/2"), redirect("/3"), answer()]
    with ScriptedServer(script) as server:
        response = await flavour.run(redirecting(flavour).get(server.url + "/1"))
    assert [past.url.path for past in response.history] == ["/1", "/2"]
    assert [request.path for request in server.requests] == ["/1", "/2", "/3"] * 2


@pytest.mark.parametrize("first", [answer(503), reset(), answer(429)], ids=["503", "rst", "429"])
async def test_a_flaky_origin_that_redirects_in_the_end(flavour, clock, first):
    """The redirecting server itself fails first."""
    with ScriptedServer([first, redirect("/b"), answer()]) as server:
        response = await flavour.run(redirecting(flavour).get(server.url + "/a"))
    assert response.text == "ok"
    assert [request.path for request in server.requests] == ["/a", "/a", "/b"]


@pytest.mark.parametrize("fault", FLAKY, ids=["503", "reset", "fin", "cut"])
async def test_a_post_is_not_repeated_for_the_get_behind_its_303(flavour, clock, fault):
    """The payment went through, its receipt page fails: the POST is sent once all the same."""
    with ScriptedServer([redirect("/receipt", 303), fault]) as server:
        client = redirecting(flavour)
        outcome = await flavour.outcome(client.post, server.url + "/pay", content=b"100")
    assert server.methods == ["POST", "GET"]
    if isinstance(outcome, httpx.Response):
        assert outcome.status_code == 503
    else:
        assert "POST" in "".join(outcome.__notes__)


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("fault", FLAKY, ids=["503", "reset", "fin", "cut"])
async def test_a_redirected_post_is_not_repeated(flavour, clock, status, fault):
    """307 and 308 move the POST; what fails at the new place is final."""
    with ScriptedServer([redirect("/moved", status), fault]) as server:
        client = redirecting(flavour)
        await flavour.outcome(client.post, server.url + "/pay", content=b"100")
    assert [(r.method, r.path) for r in server.requests] == [("POST", "/pay"), ("POST", "/moved")]
    assert server.bodies == [b"100", b"100"]
    assert clock.delays == []


async def test_a_redirect_is_an_answer_when_it_is_not_followed(flavour, clock):
    """Without follow_redirects a 302 comes back at once, as in httpx."""
    with ScriptedServer([redirect("/b")]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.status_code == 302
    assert response.extensions["retries"] == ()
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", ["header", "client header", "auth", "url", "netrc"])
async def test_credentials_never_reach_another_origin(flavour, clock, how, tmp_path):
    """Whatever way Authorization is given: on no attempt does it go to another port or host."""
    options, call, url = {}, {}, "{}"
    match how:
        case "header":
            call = {"headers": SECRETS}
        case "client header":
            options = {"headers": SECRETS}
        case "auth":
            options = {"auth": ("user", "s3cret")}
        case "url":
            url = "http://user:s3cret@{}"
        case "netrc":
            path = tmp_path / "netrc"
            path.write_text("machine 127.0.0.1 login user password s3cret\n")
            options = {"auth": httpx.NetRCAuth(str(path))}
    with ScriptedServer(FLAKY) as target:
        script = [redirect(target.url, 307), answer(503)] * 5
        with ScriptedServer([answer(503), *script]) as origin:
            address = url.format(origin.url if url == "{}" else origin.url.removeprefix("http://"))
            client = redirecting(flavour, max_attempts=10, **options)
            response = await flavour.run(client.get(address, **call))
    assert response.text == "ok"
    assert len(target.requests) == 5
    assert all("authorization" in request.headers for request in origin.requests)
    assert not any("authorization" in request.headers for request in target.requests)
    assert "s3cret" not in repr([request.headers for request in target.requests])


async def test_credentials_stay_within_the_origin(flavour, clock):
    """A redirect on the same origin keeps Authorization, on every attempt (drop-in)."""
    with ScriptedServer([redirect("/b"), answer(503), redirect("/b"), answer()]) as server:
        await flavour.run(redirecting(flavour).get(server.url, headers=SECRETS))
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer s3cret"] * 4


async def test_a_cookie_of_a_failed_attempt_is_kept(flavour, clock):
    """What a 503 sets is in the jar, and is sent from the redirect on; a request keeps its own."""
    script = [answer(503, headers={"Set-Cookie": "a=1"}), redirect("/b"), answer()]
    with ScriptedServer(script) as server:
        client = redirecting(flavour)
        await flavour.run(client.get(server.url))
    assert client.cookies["a"] == "1"
    assert [r.headers.get("cookie") for r in server.requests] == [None, None, "a=1"]


async def test_an_endless_redirect_is_walked_once(flavour, clock):
    """TooManyRedirects is no network failure: 21 requests, not 105."""
    with ScriptedServer(itertools.repeat(redirect("/again"), 200)) as server:
        outcome = await flavour.outcome(redirecting(flavour).get, server.url)
    assert isinstance(outcome, httpx.TooManyRedirects)
    assert len(server.requests) == 21


async def test_a_policy_of_one_request_holds_behind_its_redirects(flavour, clock):
    """`extensions={"retry": ...}` decides about failures of the redirect's target too."""
    with ScriptedServer([redirect("/b"), answer(503), answer()]) as server:
        never = {"retry": RetryPolicy(max_attempts=1)}
        response = await flavour.run(redirecting(flavour).get(server.url, extensions=never))
    assert response.status_code == 503
    assert len(server.requests) == 2


async def test_a_retry_after_behind_a_redirect_is_obeyed(flavour, clock):
    """The 429 of the target asks for seven seconds: the whole call begins again after them."""
    limited = answer(429, headers={"Retry-After": "7"})
    with ScriptedServer([redirect("/b"), limited, redirect("/b"), answer()]) as server:
        response = await flavour.run(redirecting(flavour).get(server.url))
    assert response.text == "ok"
    assert clock.delays == [7.0]


async def test_a_stream_behind_a_redirect_is_retried_until_the_hand_over(flavour, clock):
    """`client.stream()` follows the redirect anew after the target's failure."""
    with ScriptedServer([redirect("/b"), reset(), redirect("/b"), answer(200, b"all")]) as server:
        client = redirecting(flavour)
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == b"all"
    assert [past.status_code for past in response.history] == [302]


async def test_redirects_keep_their_slots(flavour, clock):
    """Redirects between two servers, failing by turns, through a pool of one: no PoolTimeout."""
    script = [answer(503), hang(), answer(200, b"b")]
    with ScriptedServer(script) as target, ScriptedServer(to(target)) as origin:
        client = redirecting(flavour, max_connections=1, read_timeout=0.1, pool_timeout=0.1)
        response = await flavour.run(client.get(origin.url))
    assert response.text == "b"
    reasons = [failed.reason for failed in response.extensions["retries"]]
    assert reasons == ["503 Service Unavailable", "ReadTimeout"]


async def test_next_request_by_hand_is_protected_too(flavour, clock):
    """`send(response.next_request)` retries like any other request."""
    with ScriptedServer([redirect("/b"), answer(503), answer()]) as server:
        client = flavour.client()
        response = await flavour.run(client.get(server.url))
        response = await flavour.run(client.send(response.next_request))
    assert response.text == "ok"
    assert len(response.extensions["retries"]) == 1
