"""What httpx documents holds for our classes: they stand where its clients stood.

Most tests here run with httpx's own clients too, so that none of them asserts what isn't so. The
rest, marked by `ours`, says what becomes of httpx's features when a retry falls into the middle.
"""

import gzip
import hashlib
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import (
    Received,
    ScriptedServer,
    Step,
    answer,
    chunked,
    client_context,
    forward,
    redirect,
    refused_port,
)
from wording import HTTPX, USER_AGENT

from httpx_production import (
    AsyncProductionHTTPClient,
    FailedAttempt,
    ProductionHTTPClient,
    RetryPolicy,
)

pytestmark = pytest.mark.anyio

URL = "https://example.org/"
PAIRS = [(ProductionHTTPClient, httpx.Client), (AsyncProductionHTTPClient, httpx.AsyncClient)]
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(params=["ours", "httpx"])
def new(request: pytest.FixtureRequest, flavour: Flavour) -> Callable[..., Any]:
    """Make a client of ours or of httpx's: whoever uses this fixture can't tell them apart."""
    return flavour.client if request.param == "ours" else flavour.plain


def echo(request: httpx.Request) -> httpx.Response:
    """Answer with what was asked."""
    seen = {
        "method": request.method,
        "url": str(request.url),
        "headers": dict(request.headers),
        "body": request.content.decode(),
    }
    return httpx.Response(200, json=seen)


ECHO = httpx.MockTransport(echo)


def scripted(*answers: httpx.Response | Exception | Handler) -> "Scripted":
    return Scripted(answers)


class Scripted(httpx.MockTransport):
    """Answers in order, and keeps what was asked: method, URL, Authorization."""

    def __init__(self, answers: tuple[httpx.Response | Exception | Handler, ...]) -> None:
        super().__init__(self._answer)
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.authorizations: list[str | None] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.authorizations.append(request.headers.get("Authorization"))
        step = self._answers.pop(0)
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, httpx.Response) else step(request)

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]


async def collect(flavour: Flavour, response: httpx.Response, name: str, *args: Any) -> list[Any]:
    """What `response.iter_<name>()` yields, or `aiter_<name>()`."""
    if flavour.sync:
        return list(getattr(response, f"iter_{name}")(*args))
    return [item async for item in getattr(response, f"aiter_{name}")(*args)]


# --- the classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_our_clients_are_httpx_clients(ours: type, theirs: type) -> None:
    """SDKs check isinstance before they take a client."""
    assert issubclass(ours, theirs)
    assert isinstance(ours(transport=ECHO), theirs)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_every_public_method_has_httpx_signature(ours: type, theirs: type) -> None:
    """Each public method takes the same arguments, in the same way, with the same defaults."""

    def arguments(method: Any) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(method).parameters.values()
        return [(one.name, one.kind, one.default) for one in parameters]

    names = [name for name, _ in inspect.getmembers(theirs, inspect.isfunction) if name[0] != "_"]
    assert {"send", "request", "stream", "build_request", "get"} <= set(names)
    for name in names:
        assert arguments(getattr(ours, name)) == arguments(getattr(theirs, name)), name


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_constructor_takes_what_httpx_takes(ours: Any, theirs: Any) -> None:
    """Every argument of httpx's constructor binds to ours."""
    names = list(inspect.signature(theirs).parameters)
    assert len(names) > 10
    inspect.signature(ours).bind(**dict.fromkeys(names))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_public_attributes_are_all_there(ours: Any, theirs: Any) -> None:
    """A fresh client of ours has each public attribute of httpx's, with an equal kind of value."""
    our_client, their_client = ours(transport=ECHO), theirs(transport=ECHO)
    for name in dir(their_client):
        if name[0] != "_":
            assert isinstance(getattr(our_client, name), type(getattr(their_client, name))), name


def test_an_unknown_argument_is_refused_as_by_httpx() -> None:
    """What httpx dropped (`proxies=`) and what it never had is a TypeError that names it."""
    with pytest.raises(TypeError, match="'proxies'"):
        ProductionHTTPClient(proxies={})  # type: ignore[call-arg]


async def test_a_subclass_may_skip_our_constructor(flavour: Flavour, clock: FakeClock) -> None:
    """Some call httpx.Client.__init__ directly: the defaults of the class hold for them."""
    ours, theirs = PAIRS[not flavour.sync]

    class Direct(ours):  # type: ignore[misc, valid-type]
        def __init__(self, **options: Any) -> None:
            theirs.__init__(self, **options)

    transport = scripted(httpx.Response(503), httpx.Response(200))
    async with flavour.using(Direct(transport=transport)) as client:
        response = await flavour.run(client.get(URL))
        assert response.status_code == 200
        assert client.pool_stats().connections == 0
        client.event_hooks = {"retry": []}
        assert client.event_hooks == {"request": [], "response": [], "retry": []}


async def test_a_subclass_may_pass_arguments_on(flavour: Flavour) -> None:
    """A base_url, a header and a send() of one's own work as over httpx's client."""
    ours, _ = PAIRS[not flavour.sync]

    class Api(ours):  # type: ignore[misc, valid-type]
        def __init__(self, token: str, **options: Any) -> None:
            super().__init__(base_url=f"{URL}v1", headers={"X-Token": token}, **options)

        def send(self, request: httpx.Request, **options: Any) -> Any:
            request.headers["X-Sent"] = "by the subclass"
            return super().send(request, **options)

    async with flavour.using(Api("t", transport=ECHO)) as client:
        seen = (await flavour.run(client.get("/things"))).json()
    assert seen["url"] == f"{URL}v1/things"
    assert (seen["headers"]["x-token"], seen["headers"]["x-sent"]) == ("t", "by the subclass")


# --- quickstart -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["GET", "OPTIONS", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
async def test_each_verb_is_sent(flavour: Flavour, new: Any, verb: str) -> None:
    """`client.get(...)` and its six siblings send what their names say, `request()` too."""
    client = new(transport=ECHO)
    for call in (getattr(client, verb.lower()), partial(client.request, verb)):
        response = await flavour.run(call(URL))
        assert response.json()["method"] == verb
        assert (response.request.method, str(response.url)) == (verb, URL)


async def test_params_are_merged_into_the_url(flavour: Flavour, new: Any) -> None:
    """The client's params come first, a request's own win over those of the same name."""
    client = new(transport=ECHO, params={"a": "1", "b": "2"})
    response = await flavour.run(client.get(URL, params={"b": ["x", "y"], "c": None}))
    assert response.url.query == b"a=1&b=x&b=y&c="


async def test_headers_are_merged(flavour: Flavour, new: Any) -> None:
    """The client's headers go with every request, a request's own win, names ignore case."""
    client = new(transport=ECHO, headers={"X-A": "client", "X-B": "client"})
    seen = (await flavour.run(client.get(URL, headers={"x-b": "request"}))).json()["headers"]
    assert (seen["x-a"], seen["x-b"]) == ("client", "request")
    assert seen["user-agent"] == USER_AGENT
    assert {"host", "accept", "accept-encoding", "connection"} <= set(seen)


@pytest.mark.parametrize(
    ("body", "kind", "sent"),
    [
        ({"content": b"bytes"}, None, "bytes"),
        ({"content": "text"}, None, "text"),
        ({"json": {"a": [1, None]}}, "application/json", '{"a":[1,null]}'),
        ({"data": {"a": ["1", "2"]}}, "application/x-www-form-urlencoded", "a=1&a=2"),
    ],
)
async def test_bodies_are_encoded(
    flavour: Flavour, new: Any, body: Any, kind: str | None, sent: str
) -> None:
    """content=, json= and data= arrive with their Content-Type and Content-Length."""
    seen = (await flavour.run(new(transport=ECHO).post(URL, **body))).json()
    assert seen["body"] == sent
    assert seen["headers"].get("content-type") == kind
    assert seen["headers"]["content-length"] == str(len(sent))


async def test_files_are_sent_as_multipart(flavour: Flavour, new: Any) -> None:
    """files= beside data= makes one multipart body with names and types."""
    files = {"upload": ("report.txt", b"contents", "text/x-report")}
    response = await flavour.run(new(transport=ECHO).post(URL, files=files, data={"note": "n"}))
    seen = response.json()
    assert seen["headers"]["content-type"].startswith("multipart/form-data; boundary=")
    assert 'name="note"\r\n\r\nn\r\n' in seen["body"]
    assert 'name="upload"; filename="report.txt"\r\nContent-Type: text/x-report' in seen["body"]


async def test_generators_are_sent_in_chunks(flavour: Flavour, new: Any) -> None:
    """A generator's body goes out chunked, over a real connection."""
    with ScriptedServer(lambda request: answer(body=request.body)) as server:
        body = flavour.generator([b"one", b"two"])
        response = await flavour.run(new().post(server.url, content=body))
        assert response.content == b"onetwo"
        assert server.requests[0].headers["Transfer-Encoding"] == "chunked"


async def test_text_is_decoded(flavour: Flavour, new: Any) -> None:
    """`.text` follows the charset, then the client's default_encoding, a name or a function."""

    def handler(request: httpx.Request) -> httpx.Response:
        charset = "; charset=utf-8" if request.url.path == "/utf-8" else ""
        content = "ü".encode("utf-8" if charset else "latin-1")
        return httpx.Response(
            200, headers={"Content-Type": f"text/plain{charset}"}, content=content
        )

    for encoding in ("latin-1", lambda content: "latin-1"):
        client = new(transport=httpx.MockTransport(handler), default_encoding=encoding)
        for path in ("utf-8", "other"):
            response = await flavour.run(client.get(URL + path))
            assert response.text == "ü"


async def test_compressed_bodies_are_decoded(flavour: Flavour, new: Any) -> None:
    """`.content` is decompressed, `num_bytes_downloaded` counts what came over the wire."""
    data = gzip.compress(b"x" * 1000)
    with ScriptedServer(
        lambda _: answer(body=data, headers={"Content-Encoding": "gzip"})
    ) as server:
        response = await flavour.run(new().get(server.url))
    assert response.content == b"x" * 1000
    assert response.num_bytes_downloaded == len(data)


async def test_raise_for_status_is_the_callers(flavour: Flavour, new: Any) -> None:
    """An error status is a response; raise_for_status() returns good ones and raises for others."""
    client = new(transport=httpx.MockTransport(lambda r: httpx.Response(int(r.url.path[1:]))))
    good = await flavour.run(client.get(f"{URL}204"))
    assert good.raise_for_status() is good
    bad = await flavour.run(client.get(f"{URL}404"))
    with pytest.raises(httpx.HTTPStatusError, match="Client error '404 Not Found'") as caught:
        bad.raise_for_status()
    assert caught.value.response is bad


async def test_a_response_knows_its_circumstances(flavour: Flavour, new: Any) -> None:
    """elapsed, http_version, reason, request, closedness and the network's extensions are there."""
    with ScriptedServer() as server:
        response = await flavour.run(new().get(server.url))
    assert 0 < response.elapsed.total_seconds() < 5
    assert (response.http_version, response.reason_phrase) == ("HTTP/1.1", "OK")
    assert response.is_closed
    assert response.is_stream_consumed
    assert response.history == []
    assert repr(response) == "<Response [200 OK]>"
    assert response.extensions["network_stream"].get_extra_info("server_addr")[1] == server.port


async def test_failures_carry_their_request(flavour: Flavour, new: Any, clock: FakeClock) -> None:
    """A RequestError has `.request`; it is one of httpx's tree."""
    with refused_port() as url:
        exc = await flavour.outcome(new().get, url)
    assert type(exc) is httpx.ConnectError
    assert isinstance(exc, httpx.RequestError)
    assert str(exc.request.url) == url


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("invalid://example.org", httpx.UnsupportedProtocol),
        ("/relative", httpx.UnsupportedProtocol),
        ("https://example.org:port", httpx.InvalidURL),
    ],
)
async def test_bad_urls_fail_at_once(flavour: Flavour, new: Any, url: str, error: type) -> None:
    """What no repetition mends is raised by the first attempt."""
    assert type(await flavour.outcome(new().get, url)) is error


# --- redirects, cookies, base URL, timeouts -------------------------------------------------------


def hop(request: httpx.Request) -> httpx.Response:
    """/3 leads to /2, to /1, to /0."""
    left = int(request.url.path[1:])
    return httpx.Response(302, headers={"Location": f"/{left - 1}"}) if left else echo(request)


async def test_redirects_are_followed_when_asked(flavour: Flavour, new: Any) -> None:
    """Not by default; by the client's setting, or by the request's, with a history."""
    transport = httpx.MockTransport(hop)
    stays = await flavour.run(new(transport=transport).get(f"{URL}2"))
    assert (stays.status_code, stays.next_request.url.path) == (302, "/1")
    client = new(transport=transport, follow_redirects=True)
    response = await flavour.run(client.get(f"{URL}2"))
    assert [one.url.path for one in response.history] == ["/2", "/1"]
    response = await flavour.run(client.get(f"{URL}2", follow_redirects=False))
    assert response.status_code == 302


async def test_next_request_can_be_sent(flavour: Flavour, new: Any) -> None:
    """Redirects can be followed by hand, one at a time."""
    client = new(transport=httpx.MockTransport(hop))
    response = await flavour.run(client.get(f"{URL}3"))
    while response.next_request is not None:
        response = await flavour.run(client.send(response.next_request))
    assert response.json()["url"] == f"{URL}0"


async def test_too_many_redirects_are_an_error(flavour: Flavour, new: Any) -> None:
    """max_redirects is a limit, and its error is raised by the first attempt."""
    client = new(transport=httpx.MockTransport(hop), follow_redirects=True, max_redirects=2)
    assert (await flavour.run(client.get(f"{URL}2"))).status_code == 200
    assert type(await flavour.outcome(client.get, f"{URL}3")) is httpx.TooManyRedirects


async def test_a_redirect_changes_method_and_drops_credentials(flavour: Flavour, new: Any) -> None:
    """A 303 turns POST into GET without a body; another origin sees no Authorization."""
    transport = scripted(httpx.Response(303, headers={"Location": "https://other.org/"}), echo)
    client = new(transport=transport, follow_redirects=True, auth=("user", "pass"))
    seen = (await flavour.run(client.post(URL, content=b"body"))).json()
    assert (seen["method"], seen["body"], seen["url"]) == ("GET", "", "https://other.org/")
    assert "content-length" not in seen["headers"]
    assert transport.authorizations[0] is not None
    assert transport.authorizations[1] is None


async def test_cookies_persist(flavour: Flavour, new: Any) -> None:
    """What a response sets goes with the next request; the jar can be read and written."""
    transport = scripted(httpx.Response(200, headers={"Set-Cookie": "a=1"}), echo, echo)
    client = new(transport=transport, cookies={"own": "c"})
    first = await flavour.run(client.get(URL))
    assert first.cookies["a"] == client.cookies["a"] == "1"
    seen = (await flavour.run(client.get(URL))).json()
    assert seen["headers"]["cookie"] == "own=c; a=1"
    client.cookies = {"b": "2"}
    client.cookies.set("elsewhere", "3", domain="other.org")
    assert (await flavour.run(client.get(URL))).json()["headers"]["cookie"] == "b=2"


async def test_cookies_of_one_request_are_deprecated(flavour: Flavour, new: Any) -> None:
    """httpx's warning about per-request cookies comes through, and so do the cookies."""
    with pytest.warns(DeprecationWarning, match="per-request cookies"):
        response = await flavour.run(new(transport=ECHO).get(URL, cookies={"a": "1"}))
    assert response.json()["headers"]["cookie"] == "a=1"


@pytest.mark.parametrize(
    ("base", "url", "joined"),
    [
        (URL, "things", f"{URL}things"),
        (f"{URL}v1", "/things?a=1", f"{URL}v1/things?a=1"),
        (f"{URL}v1/", "", f"{URL}v1/"),
        (f"{URL}v1", "https://other.org/x", "https://other.org/x"),
        (httpx.URL(URL), httpx.URL("things"), f"{URL}things"),
    ],
)
async def test_base_url_is_merged(
    flavour: Flavour, new: Any, base: Any, url: Any, joined: str
) -> None:
    """Relative URLs are appended to base_url, absolute ones replace it."""
    response = await flavour.run(new(transport=ECHO, base_url=base).get(url))
    assert str(response.url) == joined


async def test_timeouts_reach_the_transport(flavour: Flavour, new: Any) -> None:
    """timeout= of the client, then of the request, is what the transport is told."""
    client = new(transport=ECHO, timeout=3.0)
    phases = ("connect", "read", "write", "pool")
    for timeout, expected in [
        (httpx.USE_CLIENT_DEFAULT, dict.fromkeys(phases, 3.0)),
        (7, dict.fromkeys(phases, 7)),
        (None, dict.fromkeys(phases)),
        (httpx.Timeout(1.0, read=None), dict.fromkeys(phases, 1.0) | {"read": None}),
    ]:
        response = await flavour.run(client.get(URL, timeout=timeout))
        assert response.request.extensions["timeout"] == expected


# --- auth -----------------------------------------------------------------------------------------


class TokenAuth(httpx.Auth):
    """Fetches a token when it is refused, as httpx's documentation shows."""

    requires_response_body = True
    token = "old"

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = self.token
        response = yield request
        if response.status_code == 401:
            assert response.text == "refused"
            fresh = yield httpx.Request("POST", f"{URL}token", content=b"refresh")
            self.token = fresh.text
            request.headers["Authorization"] = self.token
            yield request


BASIC = "Basic dXNlcjpwYXNz"  # user:pass


@pytest.mark.parametrize("auth", [("user", "pass"), httpx.BasicAuth("user", b"pass")])
async def test_basic_auth(flavour: Flavour, new: Any, auth: Any) -> None:
    """Of the client, of a request, or in the URL; auth=None switches it off."""
    transport = scripted(echo, echo, echo, echo)
    client = new(transport=transport, auth=auth)
    await flavour.run(client.get(URL))
    await flavour.run(client.get(URL, auth=None))
    client.auth = None
    await flavour.run(client.get(URL, auth=auth))
    await flavour.run(client.get("https://user:pass@example.org/"))
    assert transport.authorizations == [BASIC, None, BASIC, BASIC]


async def test_function_auth(flavour: Flavour, new: Any) -> None:
    """A plain function may change the request."""

    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = "signed"
        return request

    transport = scripted(echo)
    await flavour.run(new(transport=transport, auth=sign).get(URL))
    assert transport.authorizations == ["signed"]


async def test_invalid_auth_is_refused(flavour: Flavour, new: Any) -> None:
    """What is no kind of auth is a TypeError, in the constructor and per request."""
    with pytest.raises(TypeError, match='Invalid "auth" argument'):
        new(transport=ECHO, auth="user:pass")
    assert type(await flavour.outcome(new(transport=ECHO).get, URL, auth="x")) is TypeError


async def test_netrc_auth(flavour: Flavour, new: Any, tmp_path: Path) -> None:
    """Credentials come from a netrc file, by host."""
    (tmp_path / "netrc").write_text("machine example.org login user password pass\n")
    transport = scripted(echo, echo)
    client = new(transport=transport, auth=httpx.NetRCAuth(str(tmp_path / "netrc")))
    await flavour.run(client.get(URL))
    await flavour.run(client.get("https://other.org/"))
    assert transport.authorizations == [BASIC, None]


async def test_an_auth_flow_may_send_requests_of_its_own(flavour: Flavour, new: Any) -> None:
    """A flow that fetches a token sees each response, and the history tells what happened."""
    transport = scripted(httpx.Response(401, text="refused"), httpx.Response(200, text="new"), echo)
    response = await flavour.run(new(transport=transport, auth=TokenAuth()).get(URL))
    assert response.json()["headers"]["authorization"] == "new"
    assert transport.asked == ["GET /", "POST /token", "GET /"]
    assert [one.status_code for one in response.history] == [401, 200]


async def test_async_and_sync_flows_of_their_own(flavour: Flavour, new: Any) -> None:
    """A flow with sync_auth_flow and async_auth_flow of its own gets the one that fits."""

    class Own(httpx.Auth):
        def sync_auth_flow(self, request: httpx.Request) -> Any:
            request.headers["Authorization"] = "sync"
            yield request

        async def async_auth_flow(self, request: httpx.Request) -> Any:
            request.headers["Authorization"] = "async"
            yield request

    transport = scripted(echo)
    await flavour.run(new(transport=transport, auth=Own()).get(URL))
    assert transport.authorizations == ["sync" if flavour.sync else "async"]


CHALLENGE = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'


def digest(request: httpx.Request) -> httpx.Response | None:
    """Return the 401 that this request deserves, if any."""

    def md5(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    header = request.headers.get("Authorization", "")
    given = dict(re.findall(r'(\w+)="?([^",]+)"?', header))
    secret, action = md5("user:r:pass"), md5(f"{request.method}:{request.url.path}")
    proof = md5(f"{secret}:n:{given.get('nc')}:{given.get('cnonce')}:auth:{action}")
    if given.get("response") == proof:
        return None
    return httpx.Response(401, headers={"WWW-Authenticate": CHALLENGE})


async def test_digest_auth(flavour: Flavour, new: Any) -> None:
    """The challenge is answered, and remembered for the next request."""
    seen: list[bool] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append("Authorization" in request.headers)
        return digest(request) or httpx.Response(200)

    client = new(transport=httpx.MockTransport(handler), auth=httpx.DigestAuth("user", "pass"))
    for _ in range(2):
        assert (await flavour.run(client.get(URL))).status_code == 200
    assert seen == [False, True, True]


async def test_digest_auth_with_a_503_in_the_middle(flavour: Flavour, clock: FakeClock) -> None:
    """The retry runs the flow afresh: the remembered challenge is answered with the next count."""
    counts: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if (refused := digest(request)) is not None:
            return refused
        counts.extend(re.findall(r"nc=(\w+)", request.headers["Authorization"]))
        return httpx.Response(503 if len(counts) == 1 else 200)

    auth = httpx.DigestAuth("user", "pass")
    client = flavour.client(transport=httpx.MockTransport(handler), auth=auth)
    response = await flavour.run(client.get(URL))
    assert response.status_code == 200
    assert counts == ["00000001", "00000002"]
    assert [one.reason for one in response.extensions["retries"]] == ["503 Service Unavailable"]


async def test_a_token_flow_with_faults_in_the_middle(flavour: Flavour, clock: FakeClock) -> None:
    """A fault after the token was fetched is retried with that token."""
    transport = scripted(
        httpx.Response(503),
        httpx.Response(401, text="refused"),
        httpx.Response(200, text="new"),
        httpx.ReadError("reset"),
        echo,
    )
    response = await flavour.run(flavour.client(transport=transport, auth=TokenAuth()).get(URL))
    assert response.status_code == 200
    assert transport.asked == ["GET /", "GET /", "POST /token", "GET /", "GET /"]
    assert transport.authorizations == ["old", "old", None, "new", "new"]
    assert len(response.extensions["retries"]) == len(clock.delays) == 2


async def test_a_requests_policy_survives_a_flow_that_replaces_it(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A flow may send another Request object: the caller's policy still decides."""

    def replace(request: httpx.Request) -> httpx.Request:
        return httpx.Request(request.method, request.url, headers={"Authorization": "signed"})

    transport = scripted(*(httpx.Response(503) for _ in range(3)))
    policy = RetryPolicy(max_attempts=3)
    client = flavour.client(transport=transport, auth=replace)
    response = await flavour.run(client.get(URL, extensions={"retry": policy}))
    assert response.status_code == 503
    assert transport.authorizations == ["signed"] * 3
    assert len(response.extensions["retries"]) == 2


# --- event hooks ----------------------------------------------------------------------------------


async def test_event_hooks_see_request_and_response(flavour: Flavour, new: Any) -> None:
    """Hooks run in order for each request that goes out, redirects included."""
    seen: list[str] = []
    hooks = {
        "request": [flavour.hook(lambda request: seen.append(f"> {request.url.path}"))],
        "response": [flavour.hook(lambda response: seen.append(f"< {response.status_code}"))],
    }
    client = new(transport=httpx.MockTransport(hop), event_hooks=hooks, follow_redirects=True)
    assert client.event_hooks == hooks
    await flavour.run(client.get(f"{URL}1"))
    assert seen == ["> /1", "< 302", "> /0", "< 200"]


async def test_event_hooks_set_later(flavour: Flavour, new: Any) -> None:
    """By the property, by item assignment and by append: the next request knows."""
    seen: list[str] = []

    def hook(name: str) -> Any:
        return flavour.hook(lambda _: seen.append(name))

    client = new(transport=ECHO)
    assert client.event_hooks == {"request": [], "response": []}
    client.event_hooks = {"request": [first := hook("property")]}
    assert client.event_hooks == {"request": [first], "response": []}
    client.event_hooks["response"] = [hook("item")]
    client.event_hooks["request"].append(hook("append"))
    await flavour.run(client.get(URL))
    assert seen == ["property", "append", "item"]


async def test_hooks_may_change_the_request_and_read_the_response(
    flavour: Flavour, new: Any
) -> None:
    """A header set by a request hook is sent; a response hook may read a body, a stream's too."""
    texts: list[str] = []

    def sign(request: httpx.Request) -> None:
        request.headers["X-Signed"] = "yes"

    def note(response: httpx.Response) -> None:
        texts.append(response.json()["headers"]["x-signed"])

    async def read_and_note(response: httpx.Response) -> None:
        await response.aread()
        note(response)

    def read_and_note_sync(response: httpx.Response) -> None:
        response.read()
        note(response)

    reader = read_and_note_sync if flavour.sync else read_and_note
    hooks = {"request": [flavour.hook(sign)], "response": [reader]}
    client = new(transport=ECHO, event_hooks=hooks)
    response = await flavour.run(client.get(URL))
    async with flavour.using(client.stream("GET", URL)) as streamed:
        assert await flavour.read(streamed) == response.content
    assert texts == ["yes", "yes"]


async def test_raising_hooks_reach_the_caller(flavour: Flavour, new: Any) -> None:
    """A hook that raises for status makes each call raise, as documented."""

    def check(response: httpx.Response) -> None:
        response.raise_for_status()

    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    client = new(transport=transport, event_hooks={"response": [flavour.hook(check)]})
    exc = await flavour.outcome(client.get, URL)
    assert isinstance(exc, httpx.HTTPStatusError)
    assert exc.response.is_closed


async def test_hooks_run_afresh_on_each_attempt(flavour: Flavour, clock: FakeClock) -> None:
    """A retried request is a request like any other to its hooks; `attempt` counts them."""
    seen: list[Any] = []
    hooks = {
        "request": [flavour.hook(lambda r: seen.append(r.extensions["attempt"]))],
        "response": [flavour.hook(lambda r: seen.append(r.status_code))],
        "retry": [lambda failed: seen.append(failed.reason)],
    }
    transport = scripted(httpx.Response(503), httpx.Response(200))
    await flavour.run(flavour.client(transport=transport, event_hooks=hooks).get(URL))
    assert seen == [0, 503, "503 Service Unavailable", 1, 200]


# --- build_request and send, attributes -----------------------------------------------------------


async def test_build_request_then_send(flavour: Flavour, new: Any) -> None:
    """A request is built with the client's settings, changed, and sent as it then is."""
    client = new(transport=ECHO, base_url=URL, headers={"X-A": "1", "X-B": "2"}, params={"p": "1"})
    request = client.build_request("POST", "things", json={"a": 1})
    assert str(request.url) == f"{URL}things?p=1"
    del request.headers["X-A"]
    seen = (await flavour.run(client.send(request))).json()
    assert (seen["method"], seen["body"]) == ("POST", '{"a":1}')
    assert "x-a" not in seen["headers"]
    assert seen["headers"]["x-b"] == "2"


async def test_a_hand_built_request_is_sent_as_it_is(flavour: Flavour, new: Any) -> None:
    """Nothing of the client's settings is merged into it, and it can be sent twice."""
    client = new(transport=ECHO, headers={"X-A": "1"})
    request = httpx.Request("PUT", URL, content=b"body", extensions={"own": 1})
    for _ in range(2):
        response = await flavour.run(client.send(request))
        seen = response.json()
        assert (seen["method"], seen["body"]) == ("PUT", "body")
        assert "x-a" not in seen["headers"]
        assert response.request.extensions["own"] == 1


async def test_attributes_set_later_take_effect(flavour: Flavour, new: Any) -> None:
    """headers, auth, params, cookies, timeout, base_url and follow_redirects can be assigned."""
    transport = httpx.MockTransport(lambda r: hop(r) if r.url.path == "/1" else echo(r))
    client = new(transport=transport)
    client.headers = {"X-A": "1"}
    client.headers["X-B"] = "2"
    client.auth = ("user", "pass")
    client.params = {"p": "1"}
    client.cookies = {"c": "1"}
    client.timeout = 4
    client.base_url = f"{URL}v2"
    response = await flavour.run(client.get("/things"))
    seen = response.json()["headers"]
    assert str(response.url) == f"{URL}v2/things?p=1"
    assert (seen["x-a"], seen["x-b"], seen["authorization"]) == ("1", "2", BASIC)
    assert seen["cookie"] == "c=1"
    assert seen["user-agent"] == USER_AGENT
    assert response.request.extensions["timeout"]["read"] == 4
    assert client.timeout == httpx.Timeout(4)
    client.follow_redirects, client.base_url = True, URL
    assert (await flavour.run(client.get("/1"))).json()["url"] == f"{URL}0"
    client.max_redirects = 0
    assert type(await flavour.outcome(client.get, "/1")) is httpx.TooManyRedirects
    assert client.trust_env is False


async def test_request_extensions_are_passed_on(flavour: Flavour, new: Any) -> None:
    """`trace`, the network's own extension, is called for a request that carries it."""
    events: list[str] = []

    def trace(name: str, info: Any) -> None:
        events.append(name)

    async def async_trace(name: str, info: Any) -> None:
        events.append(name)

    with ScriptedServer() as server:
        tracer = trace if flavour.sync else async_trace
        await flavour.run(new().get(server.url, extensions={"trace": tracer}))
    assert "connection.connect_tcp.started" in events
    assert "http11.receive_response_headers.complete" in events


# --- streaming ------------------------------------------------------------------------------------


def lines(request: Received) -> Step:
    """A body in three chunks that end inside a line and inside a character."""
    pieces = (b"one\ntw", "o\nü".encode()[:3], "o\nü".encode()[3:])
    return chunked(*pieces, headers={"Content-Type": "text/plain; charset=utf-8"})


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("raw", (), b"one\ntwo\n\xc3\xbc"),
        ("bytes", (4,), [b"one\n", b"two\n", b"\xc3\xbc"]),
        ("text", (), "one\ntwo\nü"),
        ("lines", (), ["one", "two", "ü"]),
    ],
)
async def test_streams_are_iterated(
    flavour: Flavour, new: Any, name: str, arguments: Any, expected: Any
) -> None:
    """iter_raw, iter_bytes, iter_text and iter_lines, and their a-forms, on a chunked body."""
    with ScriptedServer(lines) as server:
        async with flavour.using(new().stream("GET", server.url)) as response:
            assert not response.is_closed
            items = await collect(flavour, response, name, *arguments)
    assert response.is_closed
    assert response.num_bytes_downloaded == 10
    joined = items if isinstance(expected, list) else type(expected)().join(items)
    assert joined == expected


async def test_a_compressed_stream_is_raw_or_decoded(flavour: Flavour, new: Any) -> None:
    """iter_raw gives the bytes of the wire, iter_bytes the decoded ones."""
    data = gzip.compress(b"x" * 1000)
    with ScriptedServer(
        lambda _: answer(body=data, headers={"Content-Encoding": "gzip"})
    ) as server:
        client = new()
        for name, expected in (("raw", data), ("bytes", b"x" * 1000)):
            async with flavour.using(client.stream("GET", server.url)) as response:
                assert b"".join(await collect(flavour, response, name)) == expected


async def test_a_stream_has_states(flavour: Flavour, new: Any) -> None:
    """Content before reading, a second iteration and reading after close are httpx's errors."""
    with ScriptedServer() as server:
        client = new()
        async with flavour.using(client.stream("GET", server.url)) as response:
            with pytest.raises(httpx.ResponseNotRead):
                _ = response.content
            await collect(flavour, response, "raw")
            with pytest.raises(httpx.StreamConsumed):
                await collect(flavour, response, "raw")
        response = await flavour.run(
            client.send(client.build_request("GET", server.url), stream=True)
        )
        await flavour.close(response)
        assert type(await flavour.outcome(flavour.read, response)) is httpx.StreamClosed


async def test_a_stream_can_be_read_if_it_is_short(flavour: Flavour, new: Any) -> None:
    """The documented pattern: look at the headers, then read(); text and json work after it."""
    with ScriptedServer([answer(body=b'{"a": 1}')]) as server:
        async with flavour.using(new().stream("GET", server.url)) as response:
            assert int(response.headers["Content-Length"]) < 1000
            await flavour.read(response)
            assert response.json() == {"a": 1}


async def test_a_stream_sent_by_hand_is_closed_by_hand(flavour: Flavour, new: Any) -> None:
    """`send(stream=True)` holds the connection until the response is closed."""
    with ScriptedServer() as server:
        client = new(limits=httpx.Limits(max_connections=1), timeout=httpx.Timeout(5, pool=0.01))
        request = client.build_request(
            "GET", server.url, extensions={"retry": RetryPolicy(max_attempts=1)}
        )
        response = await flavour.run(client.send(request, stream=True))
        other = client.build_request("GET", server.url, extensions=request.extensions)
        assert type(await flavour.outcome(client.send, other)) is httpx.PoolTimeout
        await flavour.close(response)
        assert (await flavour.run(client.get(server.url))).text == "ok"


async def test_error_responses_are_streamed_too(flavour: Flavour, new: Any) -> None:
    """A 404 is handed over open, like any other response."""
    with ScriptedServer([answer(404, b"no such thing")]) as server:
        async with flavour.using(new().stream("GET", server.url)) as response:
            assert (response.status_code, response.is_closed) == (404, False)
            assert await flavour.read(response) == b"no such thing"


# --- transports, mounts, proxies ------------------------------------------------------------------


class Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport of the user's, as httpx documents one, which tells what is done to it."""

    def __init__(self, name: str = "custom") -> None:
        self.name, self.calls = name, list[str]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=self.name)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)

    def __enter__(self) -> "Transport":
        self.calls.append("enter")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.calls.append("exit")

    async def __aenter__(self) -> "Transport":
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def close(self) -> None:
        self.calls.append("close")

    async def aclose(self) -> None:
        self.close()


async def test_a_transport_of_ones_own(flavour: Flavour, new: Any) -> None:
    """transport= answers every request, is entered and left with the client, or closed by it."""
    async with flavour.using(new(transport=(transport := Transport()))) as client:
        assert (await flavour.run(client.get(URL))).text == "custom"
    assert transport.calls == ["enter", "exit"]
    await flavour.close(new(transport=(transport := Transport())))
    assert transport.calls == ["close"]


async def test_mounts_choose_the_transport(flavour: Flavour, new: Any) -> None:
    """By scheme, host and port, the most specific first; None means the client's own."""
    mounts = {
        "all://": Transport("all"),
        "http://": Transport("http"),
        "all://*.example.org": Transport("sub"),
        "all://example.org:8000": Transport("port"),
        "all://plain.org": None,
    }
    urls = {
        "https://other.org": "all",
        "http://other.org": "http",
        "https://a.example.org": "sub",
        "http://example.org:8000": "port",
        "https://plain.org": "default",
    }
    async with flavour.using(new(transport=Transport("default"), mounts=mounts)) as client:
        for url, name in urls.items():
            assert (await flavour.run(client.get(url))).text == name
    assert all(one.calls == ["enter", "exit"] for one in mounts.values() if one is not None)


async def test_proxies_from_the_argument(flavour: Flavour, new: Any) -> None:
    """proxy= is asked with the absolute URL and its credentials, plainly or by CONNECT."""
    with (
        ScriptedServer() as plain,
        ScriptedServer(tls=True) as secure,
        ScriptedServer(forward) as proxy,
    ):
        address = proxy.url.replace("://", "://user:pass@")
        client = new(proxy=address, verify=client_context())
        for server, method in ((plain, "GET"), (secure, "CONNECT")):
            assert (await flavour.run(client.get(server.url))).text == "ok"
            assert proxy.requests[-1].method == method
            assert proxy.requests[-1].headers["Proxy-Authorization"] == BASIC


async def test_proxies_from_the_environment(
    flavour: Flavour, new: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY is used and NO_PROXY obeyed, but for trust_env=False."""
    with ScriptedServer() as server, ScriptedServer(forward) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        counts = []
        for trust_env, no_proxy in ((True, ""), (False, ""), (True, "127.0.0.1")):
            monkeypatch.setenv("NO_PROXY", no_proxy)
            client = new(trust_env=trust_env)
            assert (await flavour.run(client.get(server.url))).text == "ok"
            counts.append(len(proxy.requests))
        assert counts == [1, 1, 1]


async def test_proxied_requests_are_retried(flavour: Flavour, clock: FakeClock) -> None:
    """A retry layer that is a client keeps the proxies."""
    with ScriptedServer([answer(503), answer()]) as server, ScriptedServer(forward) as proxy:
        response = await flavour.run(flavour.client(proxy=proxy.url).get(server.url))
        assert response.text == "ok"
        assert len(server.requests) == 2
        assert proxy.requests[0].headers["Host"] in server.url


async def test_verify_takes_a_context_or_false(
    flavour: Flavour, new: Any, clock: FakeClock
) -> None:
    """A private authority is trusted through its context; the default doesn't know it."""
    with ScriptedServer(tls=True) as server:
        for verify in (client_context(), False):
            assert (await flavour.run(new(verify=verify).get(server.url))).text == "ok"
        assert type(await flavour.outcome(new().get, server.url)) is httpx.ConnectError


@pytest.mark.flavours("sync")
async def test_wsgi_apps_are_called_directly(flavour: Flavour, new: Any) -> None:
    """WSGITransport: the app's headers, status and body, and its exceptions."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/bug":
            raise ZeroDivisionError
        start_response("201 Created", [("X-Seen", environ["REQUEST_METHOD"])])
        return iter([environ["wsgi.input"].read(), b" back"])

    client = new(transport=httpx.WSGITransport(app=app), base_url="http://testserver")
    response = client.put("/", content=b"there and")
    assert (response.status_code, response.text) == (201, "there and back")
    assert response.headers["X-Seen"] == "PUT"
    with pytest.raises(ZeroDivisionError):
        client.get("/bug")


@pytest.mark.flavours("asyncio", "trio")
async def test_asgi_apps_are_called_directly(flavour: Flavour, new: Any) -> None:
    """ASGITransport: the app's headers, status and body, and its exceptions."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/bug":
            raise ZeroDivisionError
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        headers = [(b"x-seen", scope["method"].encode())]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": body + b" back"})

    client = new(transport=httpx.ASGITransport(app=app), base_url="http://testserver")
    response = await client.put("/", content=b"there and")
    assert (response.status_code, response.text) == (201, "there and back")
    assert response.headers["X-Seen"] == "PUT"
    with pytest.raises(ZeroDivisionError):
        await client.get("/bug")


@pytest.mark.flavours("asyncio", "trio")
async def test_a_flaky_asgi_app_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """A test of an app through our client sees what production sees: the answer after the 503."""
    statuses = [503, 503, 200]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": statuses.pop(0), "headers": []})
        await send({"type": "http.response.body", "body": b"body"})

    client = flavour.client(transport=httpx.ASGITransport(app=app))
    assert (await client.get("http://testserver/")).status_code == 200


# --- misuse ---------------------------------------------------------------------------------------


async def test_a_closed_client_says_so(flavour: Flavour, new: Any) -> None:
    """Use after close is a RuntimeError at once, closing twice is none."""
    client = new(transport=ECHO)
    assert client.is_closed is False
    for _ in range(2):
        await flavour.close(client)
        assert client.is_closed
    exc = await flavour.outcome(client.get, URL)
    assert isinstance(exc, RuntimeError)
    assert "client has been closed" in str(exc)
    assert not hasattr(exc, "__notes__")


async def test_a_client_is_entered_once(flavour: Flavour, new: Any) -> None:
    """Neither while it is open, nor after a request, nor after it was closed."""

    async def enter(client: Any) -> None:
        async with flavour.using(client):
            pass

    async with flavour.using(new(transport=ECHO)) as client:
        assert "more than once" in str(await flavour.outcome(enter, client))
    assert "Cannot reopen" in str(await flavour.outcome(enter, client))
    used = new(transport=ECHO)
    await flavour.run(used.get(URL))
    assert "more than once" in str(await flavour.outcome(enter, used))


async def test_a_body_of_the_other_kind_is_refused(flavour: Flavour, new: Any) -> None:
    """An async generator in the sync client, or the reverse, is httpx's RuntimeError."""
    other = Flavour("asyncio" if flavour.sync else "sync")
    client = new(transport=ECHO)
    exc = await flavour.outcome(client.post, URL, content=other.generator([b"x"]))
    assert type(exc) is RuntimeError
    assert re.match(
        r"Attempted to send an? a?sync request with an? (sync )?(Async)?Client", str(exc)
    )


# --- what comes out -------------------------------------------------------------------------------


async def test_responses_can_be_pickled(flavour: Flavour, new: Any) -> None:
    """A response goes to another process with its content and request; extensions stay behind."""
    response = await flavour.run(new(transport=ECHO).post(URL, content=b"body"))
    copy = pickle.loads(pickle.dumps(response))
    assert (copy.status_code, copy.json(), copy.headers) == (200, response.json(), response.headers)
    assert (copy.request.method, str(copy.request.url)) == ("POST", URL)
    assert copy.extensions == {}


async def test_retried_responses_can_be_pickled(flavour: Flavour, clock: FakeClock) -> None:
    """Over sockets and after a retry too, and so can its failed attempts."""
    with ScriptedServer([answer(503), redirect("/final"), answer(body=b"done")]) as server:
        client = flavour.client(follow_redirects=True)
        response = await flavour.run(client.get(server.url))
    copy = pickle.loads(pickle.dumps(response))
    assert (copy.text, len(copy.history)) == ("done", 1)
    (failed,) = pickle.loads(pickle.dumps(response.extensions["retries"]))
    assert isinstance(failed, FailedAttempt)
    assert (failed.reason, failed.outcome.text) == ("503 Service Unavailable", "ok")


async def test_one_response_object_may_answer_many_requests(flavour: Flavour, new: Any) -> None:
    """A handler that returns the same Response again and again, as tests do, gets away with it."""
    same = httpx.Response(200, text="same")
    client = new(transport=httpx.MockTransport(lambda _: same))
    for _ in range(3):
        assert (await flavour.run(client.get(URL))).text == "same"


async def test_httpx_logs_each_request(
    flavour: Flavour, new: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """httpx's own INFO line is written as ever, and nothing of ours beside it."""
    caplog.set_level("INFO")
    await flavour.run(new(transport=ECHO).get(URL))
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        (HTTPX, f'HTTP Request: GET {URL} "HTTP/1.1 200 OK"')
    ]
