"""What is retried, how often, after which wait, and what the caller gets, on real sockets.

Subject: `client.py`.
"""

import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import (
    LOOPBACK,
    Handler,
    Headers,
    Http2Server,
    Received,
    ScriptedServer,
    Step,
    answer,
    chunked,
    client_context,
    cut,
    fin,
    forward,
    full_backlog,
    hang,
    message,
    redirect,
    refused_port,
    reset,
)
from wording import HTTPX

from httpx_production import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    FailedAttempt,
    RetryBudget,
    RetryPolicy,
)

pytestmark = pytest.mark.anyio
# trio's own warning about httpx's generators, when what consumes them fails; plain httpx has it.
generators_left = pytest.mark.filterwarnings("ignore:Async generator 'http")

IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
STATUSES = (408, 429, 500, 502, 503, 504)
NOW = "Wed, 21 Oct 2026 07:28:00 GMT"


def first(*steps: Step) -> Callable[[], Handler]:
    """A server that does these steps with a path's first requests, then answers its own path."""

    def script() -> Handler:
        visits: dict[str, int] = {}

        def handler(request: Received) -> Step:
            visit = visits[request.target] = visits.get(request.target, -1) + 1
            return steps[visit] if visit < len(steps) else answer(200, request.target.encode())

        return handler

    return script


def content_of(method: str) -> bytes:
    """What a server at the end of its script answers."""
    return b"" if method == "HEAD" else b"ok"


# --- which statuses, faults and methods -------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
async def test_each_status_of_the_table_is_retried_for_idempotent_methods(
    flavour: Flavour, clock: FakeClock, status: int
) -> None:
    """A status that a further attempt may mend is not what the caller gets, if it does mend."""
    client = flavour.client()
    for method in IDEMPOTENT:
        with ScriptedServer([answer(status, b"")]) as server:
            response = await flavour.run(client.request(method, server.url))
        (failed,) = response.extensions["retries"]
        assert (response.status_code, response.content) == (200, content_of(method))
        assert (failed.attempt, failed.outcome.status_code) == (0, status)
        assert failed.reason.startswith(f"{status} ")
        assert 0.8 <= failed.delay == clock.delays[-1] <= 1.0
        assert server.methods == [method] * 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 425, 501, 505])
async def test_other_statuses_are_final(flavour: Flavour, clock: FakeClock, status: int) -> None:
    """A status outside the table is the caller's at once."""
    with ScriptedServer([answer(status)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.status_code == status
    assert response.extensions["retries"] == ()
    assert (len(server.requests), clock.delays) == (1, [])


async def test_a_104_on_the_way_is_no_outcome(flavour: Flavour, clock: FakeClock) -> None:
    """104 stands in the table, but as a status it is informational and never final."""
    step = Step(send=(b"HTTP/1.1 104 Upload Resumption Supported\r\n\r\n" + message(200, b"ok"),))
    with ScriptedServer([step]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert (response.content, response.extensions["retries"]) == (b"ok", ())
    assert len(server.requests) == 1


@dataclass
class Fault:
    """One way to fail, and the exception that plain httpx makes of it."""

    name: str
    step: Step
    error: type[Exception]
    methods: Sequence[str] = IDEMPOTENT
    warm: bool = False  # it hits a connection that was used before
    options: dict[str, Any] = field(default_factory=dict)


WITH_BODY = tuple(method for method in IDEMPOTENT if method != "HEAD")


def be_patient(failed: FailedAttempt) -> None:
    """A retry hook: what follows may take longer, on a busy machine."""
    failed.request.extensions["timeout"] = httpx.Timeout(10).as_dict()


IMPATIENT: dict[str, Any] = {
    "methods": ("GET",),
    "options": {
        "timeout": httpx.Timeout(10, read=0.2),
        "event_hooks": {"retry": [be_patient]},
    },
}
FAULTS = [
    Fault("reset before the request", reset(read="nothing"), httpx.TransportError),
    Fault("reset after the head", reset(read="head"), httpx.TransportError),
    Fault("reset after the request", reset(), httpx.ReadError),
    Fault("reset of a reused connection", reset(), httpx.ReadError, warm=True),
    Fault("FIN before the request", fin(read="nothing"), httpx.RemoteProtocolError),
    Fault("FIN after the request", fin(), httpx.RemoteProtocolError),
    Fault("FIN on a reused connection", fin(), httpx.RemoteProtocolError, warm=True),
    Fault("garbage", Step(send=(b"what?\r\n\r\n",), then="fin"), httpx.RemoteProtocolError),
    Fault("head cut", Step(send=(b"HTTP/1.1 20",), then="fin"), httpx.RemoteProtocolError),
    Fault("body cut by FIN", cut(b"a" * 99, 50), httpx.RemoteProtocolError, WITH_BODY),
    Fault("body cut by reset", cut(b"a" * 99, 50, then="reset"), httpx.ReadError, WITH_BODY),
    Fault("chunks cut", chunked(b"aa", end=b"", then="fin"), httpx.RemoteProtocolError, WITH_BODY),
    Fault("no answer", hang(), httpx.ReadTimeout, **IMPATIENT),
    Fault("body stalls", cut(b"a" * 99, 50, then="hang"), httpx.ReadTimeout, **IMPATIENT),
]
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


class FaultyServer(ScriptedServer):
    """A server that is well unless told to do a step with the next request or connection."""

    def strike(self, step: Step) -> None:
        """Do this next."""
        self._script.append(step)


async def hit(flavour: Flavour, client: Any, fault: Fault, method: str, **options: Any) -> Any:
    """The outcome of one call that meets the fault once, and the requests that arrived."""
    with FaultyServer() as server:
        if fault.warm:
            await flavour.run(client.get(server.url))
        server.strike(fault.step)
        outcome = await flavour.outcome(client.request, method, f"{server.url}/x", **options)
    return outcome, server.requests[fault.warm :]


@pytest.mark.flavours("sync")
@each_fault
async def test_each_fault_is_an_error_in_plain_httpx(flavour: Flavour, fault: Fault) -> None:
    """The faults of this module are real ones."""
    outcome, _ = await hit(flavour, flavour.plain(**fault.options), fault, "GET")
    assert isinstance(outcome, fault.error)


@each_fault
async def test_each_fault_is_retried_for_idempotent_methods(
    flavour: Flavour, clock: FakeClock, fault: Fault
) -> None:
    """The caller gets the complete answer of the second attempt, and may see what happened."""
    client = flavour.client(**fault.options)
    for method in fault.methods:
        response, requests = await hit(flavour, client, fault, method)
        assert (response.status_code, response.content) == (200, content_of(method))
        (failed,) = response.extensions["retries"]
        assert isinstance(failed.outcome, fault.error)
        assert failed.reason == type(failed.outcome).__name__
        assert [request.method for request in requests] in ([method], [method] * 2)
        assert requests[-1].connection > 0
        assert 0.8 <= failed.delay == clock.delays[-1] <= 1.0
    assert len(clock.delays) == len(fault.methods)


@generators_left
@each_fault
async def test_no_fault_is_retried_for_post(
    flavour: Flavour, clock: FakeClock, fault: Fault
) -> None:
    """Whether a POST took effect before the fault is unknown, so it is never sent twice."""
    client = flavour.client(**fault.options)
    exc, requests = await hit(flavour, client, fault, "POST", content=b"pay 5")
    assert isinstance(exc, fault.error)
    assert exc.request.extensions["retries"] == ()
    assert any("POST is not one of the policy's methods" in note for note in exc.__notes__)
    assert (len(requests) <= 1, clock.delays) == (True, [])


@pytest.mark.parametrize("method", ["POST", "PATCH", "LINK"])
async def test_other_methods_are_not_retried(
    flavour: Flavour, clock: FakeClock, method: str
) -> None:
    """A 503 is the answer to a method that isn't known to be idempotent."""
    with ScriptedServer([answer(503, b"sorry")]) as server:
        response = await flavour.run(flavour.client().request(method, server.url, content=b"a"))
    assert (response.status_code, response.content) == (503, b"sorry")
    assert (len(server.requests), clock.delays) == (1, [])


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("step", [answer(503), fin()], ids=["503", "FIN"])
async def test_methods_named_by_the_policy_are_retried(
    flavour: Flavour, clock: FakeClock, method: str, step: Step
) -> None:
    """Who names POST knows the server; what isn't named then isn't retried."""
    client = flavour.client(retry=RetryPolicy(methods=[method.lower()]))
    with ScriptedServer([step]) as server:
        response = await flavour.run(client.request(method, server.url, json={"a": 1}))
    assert response.status_code == 200
    assert server.bodies == [b'{"a":1}'] * 2
    with ScriptedServer([answer(503)]) as server:
        assert (await flavour.run(client.get(server.url))).status_code == 503


async def test_query_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """RFC 10008: safe, with a body; httpx2 has `client.query()`. A POST stays what it is."""
    with ScriptedServer([answer(503), answer(200), answer(503)]) as server:
        client = flavour.client()
        query = getattr(client, "query", partial(client.request, "QUERY"))
        response = await flavour.run(query(server.url, content=b"{}"))
        assert response.status_code == 200
        response = await flavour.run(client.post(server.url, content=b"{}"))
        assert response.status_code == 503
        assert server.methods == ["QUERY", "QUERY", "POST"]
        assert set(server.bodies) == {b"{}"}


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("step", [answer(503), fin()], ids=["503", "FIN"])
async def test_an_idempotency_key_makes_any_method_repeatable(
    flavour: Flavour, clock: FakeClock, method: str, step: Step
) -> None:
    """The caller's key goes with each attempt, so that the server knows the repetition."""
    with ScriptedServer([step]) as server:
        response = await flavour.run(
            flavour.client().request(
                method, server.url, content=b"pay 5", headers={"idempotency-key": '"k1"'}
            )
        )
    assert response.status_code == 200
    assert [r.headers["Idempotency-Key"] for r in server.requests] == ['"k1"'] * 2
    assert server.bodies == [b"pay 5"] * 2


async def test_no_idempotency_key_is_made_up(flavour: Flavour, clock: FakeClock) -> None:
    """A server need not respect a key, so it is the caller who decides to send one."""
    with ScriptedServer([fin()]) as server:
        await flavour.outcome(flavour.client().post, server.url)
    assert "Idempotency-Key" not in server.requests[0].headers


async def test_connection_refused_then_accepted(flavour: Flavour, clock: FakeClock) -> None:
    """A server that restarts is waited for."""
    with ScriptedServer(listening=False) as server:
        clock.during_wait.append(lambda: len(clock.delays) == 3 and server.listen())
        response = await flavour.run(flavour.client().get(server.url))
    assert response.content == b"ok"
    assert [f.reason for f in response.extensions["retries"]] == ["ConnectError"] * 3


async def test_a_connection_that_takes_too_long_is_retried(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A full accept queue drops connections; each attempt is bounded by connect_timeout."""
    with full_backlog() as url:
        exc = await flavour.outcome(flavour.client(connect_timeout=0.1, max_attempts=2).get, url)
    assert isinstance(exc, httpx.ConnectTimeout)
    assert [f.reason for f in exc.request.extensions["retries"]] == ["ConnectTimeout"]


async def test_a_pool_without_a_free_connection_is_retried(
    flavour: Flavour, clock: FakeClock
) -> None:
    """PoolTimeout is in the table; nothing was sent when it comes."""
    client = flavour.client(max_connections=1, pool_timeout=0.05, max_attempts=2)
    with ScriptedServer() as server:
        async with flavour.using(client.stream("GET", server.url)):
            exc = await flavour.outcome(client.get, server.url)
    assert isinstance(exc, httpx.PoolTimeout)
    assert [f.reason for f in exc.request.extensions["retries"]] == ["PoolTimeout"]
    assert len(server.requests) == 1


@generators_left
async def test_an_upload_that_is_not_taken_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """WriteTimeout: the server stopped reading in the middle of a PUT."""
    data = bytes(8_000_000)  # more than the kernel's buffers take
    client = flavour.client(write_timeout=0.2, max_attempts=2)
    with ScriptedServer([hang(read=1000)] * 2) as server:
        exc = await flavour.outcome(client.put, server.url, content=data)
    assert isinstance(exc, httpx.WriteTimeout)
    assert [f.reason for f in exc.request.extensions["retries"]] == ["WriteTimeout"]
    assert len(server.requests) == 2


async def test_a_proxy_that_fails_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """A refused CONNECT is a ProxyError, and the next one may be granted."""
    with (
        ScriptedServer(tls=True) as server,
        ScriptedServer([answer(502), *[forward] * 9]) as proxy,
    ):
        client = flavour.client(proxy=proxy.url, verify=client_context())
        response = await flavour.run(client.get(server.url))
        await flavour.close(client)
    assert [f.reason for f in response.extensions["retries"]] == ["ProxyError"]
    assert (proxy.methods, server.methods) == (["CONNECT"] * 2, ["GET"])


async def test_a_handshake_that_is_reset_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """ConnectError covers TLS, too."""
    with ScriptedServer([reset(read="nothing")], tls=True) as server:
        response = await flavour.run(flavour.client(verify=client_context()).get(server.url))
    assert [f.reason for f in response.extensions["retries"]] == ["ConnectError"]


# --- when it stops ----------------------------------------------------------------------------


async def test_the_last_of_five_responses_is_returned(flavour: Flavour, clock: FakeClock) -> None:
    """As httpx would: raise_for_status() is the caller's, the body is there."""
    with ScriptedServer([answer(503, b"no %d" % n) for n in range(9)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert (response.status_code, response.content, response.is_closed) == (503, b"no 4", True)
    assert len(server.requests) == 5
    assert [f.outcome.content for f in response.extensions["retries"]] == [
        b"no %d" % n for n in range(4)
    ]


async def test_a_wait_takes_its_time(flavour: Flavour) -> None:
    """By a real clock, which the other tests leave out."""
    with ScriptedServer([answer(503), answer()]) as server:
        client = flavour.client(retry=RetryPolicy(backoff=lambda attempt: 0.2))
        started = time.monotonic()
        assert (await flavour.run(client.get(server.url))).status_code == 200
        assert time.monotonic() - started >= 0.2


async def test_waits_grow_with_a_jitter(flavour: Flavour, clock: FakeClock) -> None:
    """About 1, 2, 4 and 8 seconds."""
    with ScriptedServer([answer(503)] * 5) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert len(clock.delays) == 4
    for attempt, delay in enumerate(clock.delays):
        assert 0.8 * 2**attempt <= delay <= 2**attempt
    assert [f.delay for f in response.extensions["retries"]] == clock.delays


async def test_the_last_exception_is_raised_with_its_story(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The note tells each attempt's fate; under asyncio the exception's own text is empty."""
    script = [answer(503), reset(), answer(429), reset(), fin(), answer()]
    with ScriptedServer(script) as server:
        secret = server.url.replace("//", "//user:pass@")
        exc = await flavour.outcome(flavour.client().get, f"{secret}/v1/things?key=secret#top")
    assert type(exc) is httpx.RemoteProtocolError
    (note,) = exc.__notes__
    assert re.fullmatch(
        rf"gave up on GET {server.url}/v1/things after 5 attempts in 1\d\.\d s: "
        "503, ReadError, 429, ReadError, RemoteProtocolError",
        note,
    )
    assert [f.reason for f in exc.request.extensions["retries"]] == [
        "503 Service Unavailable",
        "ReadError",
        "429 Too Many Requests",
        "ReadError",
    ]
    assert len(server.requests) == 5


async def test_the_last_exception_keeps_its_own_traceback(
    flavour: Flavour, clock: FakeClock
) -> None:
    """It shows where httpcore failed, and isn't chained to the attempts before."""
    with ScriptedServer([reset(), reset(), fin()]) as server:
        exc = await flavour.outcome(flavour.client(max_attempts=3).get, server.url)
    files = [frame.filename for frame in traceback.extract_tb(exc.__traceback__)]
    assert any(f"{HTTPX}/_transports" in file for file in files)
    causes = []
    cause: BaseException | None = exc
    while cause := cause and (cause.__cause__ or cause.__context__):
        causes.append(type(cause).__name__)
    assert causes
    assert "ReadError" not in causes


async def test_a_first_attempt_that_succeeds_has_no_story(
    flavour: Flavour, clock: FakeClock
) -> None:
    """An empty history, and nothing waited for."""
    with ScriptedServer() as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.extensions["retries"] == ()
    assert response.request.extensions.keys() == {"timeout"}
    assert clock.delays == []


@pytest.mark.parametrize("attempts", [1, 2, 7])
async def test_max_attempts_counts_the_first(
    flavour: Flavour, clock: FakeClock, attempts: int
) -> None:
    """`max_attempts=1` means: never retry."""
    with ScriptedServer([answer(503)] * 9) as server:
        await flavour.run(flavour.client(max_attempts=attempts).get(server.url))
    assert len(server.requests) == len(clock.delays) + 1 == attempts


async def test_one_attempt_leaves_no_note(flavour: Flavour, clock: FakeClock) -> None:
    """Nobody gave up anything where nothing was to be retried."""
    with ScriptedServer([fin()]) as server:
        exc = await flavour.outcome(flavour.client(max_attempts=1).get, server.url)
    assert not hasattr(exc, "__notes__")


async def test_a_failed_attempt_tells_what_happened(flavour: Flavour, clock: FakeClock) -> None:
    """The record of the history: frozen, and without what may be secret in its repr."""
    client = flavour.client()
    with ScriptedServer([answer(503, b"secret body"), fin()]) as server:
        request = client.build_request("GET", f"{server.url}/?key=secret")
        response = await flavour.run(client.send(request))
    one, two = response.extensions["retries"]
    assert isinstance(one, FailedAttempt)
    assert response.request is request
    assert one.request is two.request is not request
    assert one.request.headers is request.headers
    assert (one.attempt, two.attempt) == (0, 1)
    assert (one.outcome.status_code, type(two.outcome)) == (503, httpx.RemoteProtocolError)
    assert (one.reason, two.reason) == ("503 Service Unavailable", "RemoteProtocolError")
    assert [one.delay, two.delay] == clock.delays
    assert "secret" not in repr(one)
    with pytest.raises(FrozenInstanceError):
        one.delay = 0.0


@pytest.mark.parametrize("total", [None, 60.0])
async def test_request_hooks_see_the_attempt(
    flavour: Flavour, clock: FakeClock, total: float | None
) -> None:
    """For tracing: OpenTelemetry's resend count, and what failed so far."""
    seen = []

    def look(request: httpx.Request) -> None:
        seen.append((request.extensions["attempt"], len(request.extensions["retries"])))

    client = flavour.client(event_hooks={"request": [flavour.hook(look)]}, total_timeout=total)
    with ScriptedServer([answer(503), fin()]) as server:
        response = await flavour.run(client.get(server.url))
        assert seen == [(0, 0), (1, 1), (2, 2)]
        await flavour.run(client.send(response.request))
    assert seen[3:] == [(0, 0)]


# --- policies and tables ----------------------------------------------------------------------


async def test_a_policy_for_one_request_does_not_leak(flavour: Flavour, clock: FakeClock) -> None:
    """`extensions={"retry": ...}` holds for its request, not for the ones beside and after it."""
    client = flavour.client()
    once = {"retry": RetryPolicy(max_attempts=1)}
    with ScriptedServer(first(answer(503), answer(503))()) as server:
        assert (await flavour.run(client.get(f"{server.url}/a"))).status_code == 200
        response = await flavour.run(client.get(f"{server.url}/b", extensions=once))
        assert response.status_code == 503
        assert (await flavour.run(client.get(f"{server.url}/c"))).status_code == 200
    assert [request.target for request in server.requests] == ["/a"] * 3 + ["/b"] + ["/c"] * 3
    assert client.retry == RetryPolicy()
    assert once == {"retry": RetryPolicy(max_attempts=1)}


async def test_a_policy_for_one_request_may_allow_more(flavour: Flavour, clock: FakeClock) -> None:
    """Other methods, statuses and waits, also in `stream` and in a request built before."""
    client = flavour.client()
    policy = RetryPolicy(methods={"POST"}, status_codes={418}, backoff=lambda attempt: 5 + attempt)
    with ScriptedServer(first(answer(418), answer(418))()) as server:
        extensions = {"retry": policy}
        request = client.build_request("POST", f"{server.url}/a", extensions=extensions)
        assert (await flavour.run(client.send(request))).status_code == 200
        stream = client.stream("POST", f"{server.url}/b", extensions=extensions)
        async with flavour.using(stream) as response:
            assert response.status_code == 200
    assert clock.delays == [5, 6, 5, 6]


async def test_a_policy_of_the_wrong_type_is_refused_at_once(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Nothing is sent, whichever way the request was built."""
    client = flavour.client()
    with ScriptedServer() as server:
        bare = httpx.Request("GET", server.url, extensions={"retry": 3})
        for call in (
            lambda: client.get(server.url, extensions={"retry": 3}),
            lambda: client.send(bare),
        ):
            with pytest.raises(TypeError, match=r"extensions\['retry'\] must be a RetryPolicy"):
                await flavour.run(call())
    assert server.requests == []


async def test_the_status_table_is_live(
    flavour: Flavour, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status added or removed changes clients that are there already, at once."""
    client = flavour.client()
    with ScriptedServer(first(answer(418))()) as server:
        assert (await flavour.run(client.get(f"{server.url}/a"))).status_code == 418
        monkeypatch.setitem(RETRIABLE_STATUS_CODES, 418, "I'm a teapot")
        assert (await flavour.run(client.get(f"{server.url}/b"))).status_code == 200
    monkeypatch.delitem(RETRIABLE_STATUS_CODES, 503)
    with ScriptedServer([answer(503)]) as server:
        assert (await flavour.run(client.get(server.url))).status_code == 503


@generators_left
async def test_the_exception_table_is_live(
    flavour: Flavour, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for exception types."""
    client = flavour.client()
    corrupt = answer(200, b"no gzip", {"Content-Encoding": "gzip"})
    with ScriptedServer(first(corrupt)()) as server:
        exc = await flavour.outcome(client.get, f"{server.url}/a")
        assert isinstance(exc, httpx.DecodingError)
        monkeypatch.setitem(HTTPX_EXCEPTIONS, httpx.DecodingError, "corrupt content")
        assert (await flavour.run(client.get(f"{server.url}/b"))).content == b"/b"
    monkeypatch.delitem(HTTPX_EXCEPTIONS, httpx.RemoteProtocolError)
    with ScriptedServer([fin()]) as server:
        exc = await flavour.outcome(client.get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert len(server.requests) == 1


async def test_a_policys_own_tables_change_one_client(flavour: Flavour, clock: FakeClock) -> None:
    """And they are live, too."""
    statuses, exceptions = {418}, [httpx.ReadTimeout]
    policy = RetryPolicy(status_codes=statuses, exceptions=exceptions)
    own, other = flavour.client(retry=policy), flavour.client()
    with ScriptedServer(first(answer(418))()) as server:
        assert (await flavour.run(other.get(f"{server.url}/a"))).status_code == 418
        assert (await flavour.run(own.get(f"{server.url}/b"))).status_code == 200
        statuses.clear()
        assert (await flavour.run(own.get(f"{server.url}/c"))).status_code == 418
    with ScriptedServer(first(fin())()) as server:
        assert (await flavour.run(other.get(f"{server.url}/a"))).status_code == 200
        exc = await flavour.outcome(own.get, f"{server.url}/b")
        assert isinstance(exc, httpx.RemoteProtocolError)
        exceptions.append(httpx.RemoteProtocolError)
        assert (await flavour.run(own.get(f"{server.url}/c"))).status_code == 200


# --- Retry-After ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "300"}, 300.0),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "3, 120"}, 120.0),
        ([("Retry-After", "3"), ("Retry-After", "3")], 3.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": NOW}, 30.0),
        ({"Retry-After": "Wednesday, 21-Oct-26 07:28:30 GMT", "Date": NOW}, 30.0),
        ({"Retry-After": "Wed Oct 21 07:28:30 2026", "Date": NOW}, 30.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "2"}, 2.0),
    ],
)
async def test_the_wait_that_the_server_asks_for(
    flavour: Flavour, clock: FakeClock, headers: Headers, delay: float
) -> None:
    """Retry-After replaces the backoff on every status that is retried, exactly."""
    script = [answer(status, b"", headers) for status in STATUSES]
    client = flavour.client(max_attempts=len(STATUSES) + 1)
    with ScriptedServer(script) as server:
        response = await flavour.run(client.get(server.url))
    assert response.status_code == 200
    assert clock.delays == [delay] * len(STATUSES)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "0"},
        {"Retry-After": "-5"},
        {"Retry-After": "1e3"},
        {"Retry-After": "soon"},
        {"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT", "Date": NOW},
        {"retry-after-ms": "-1"},
    ],
)
async def test_the_backoff_where_the_server_asks_for_nothing(
    flavour: Flavour, clock: FakeClock, headers: dict[str, str]
) -> None:
    """Zero, the past and nonsense are no reason to hurry."""
    with ScriptedServer([answer(503, b"", headers)]) as server:
        await flavour.run(flavour.client().get(server.url))
    assert len(clock.delays) == 1
    assert 0.8 <= clock.delays[0] <= 1.0


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "301"},
        {"Retry-After": "9" * 5000},
        {"Retry-After": "Wed, 21 Oct 2026 08:28:00 GMT", "Date": NOW},
        {"retry-after-ms": "300001"},
    ],
)
async def test_a_longer_wait_than_allowed_is_not_begun(
    flavour: Flavour, clock: FakeClock, headers: dict[str, str]
) -> None:
    """The response is returned at once: never earlier than asked, never for ever."""
    with ScriptedServer([answer(503, b"later", headers)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert (response.status_code, response.content) == (503, b"later")
    assert (len(server.requests), clock.delays) == (1, [])


async def test_max_retry_after_is_the_policys(flavour: Flavour, clock: FakeClock) -> None:
    """Who can wait longer, or less long, says so."""
    policy = RetryPolicy(max_retry_after=3600)
    with ScriptedServer([answer(503, b"", {"Retry-After": "3600"})]) as server:
        client = flavour.client(retry=policy)
        assert (await flavour.run(client.get(server.url))).status_code == 200
    assert clock.delays == [3600.0]


# --- beside redirects, hooks and streams ------------------------------------------------------


async def test_redirects_and_retries_each_have_their_history(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Each attempt starts with the caller's request; only the last one's redirects are told."""
    visits = []

    def script(request: Received) -> Step:
        visits.append(request.path)
        if request.path == "/a":
            return redirect("/b")
        return answer(503) if visits.count("/b") < 3 else answer(200, b"here")

    client = flavour.client(follow_redirects=True)
    with ScriptedServer(script) as server:
        response = await flavour.run(client.get(f"{server.url}/a"))
    assert visits == ["/a", "/b"] * 3
    assert response.content == b"here"
    assert [one.status_code for one in response.history] == [302]
    assert [f.outcome.request.url.path for f in response.extensions["retries"]] == ["/b", "/b"]
    assert [f.request.url.path for f in response.extensions["retries"]] == ["/a", "/a"]


async def test_a_redirect_to_a_dead_place_tells_its_story(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The exception's request is the redirected one, and has the history as well."""
    with ScriptedServer(
        lambda request: redirect("/b") if request.path == "/a" else fin()
    ) as server:
        exc = await flavour.outcome(flavour.client(follow_redirects=True).get, f"{server.url}/a")
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert exc.request.url.path == "/b"
    assert len(exc.request.extensions["retries"]) == 4
    assert f"gave up on GET {server.url}/a after 5 attempts" in exc.__notes__[0]


def raise_for_status(response: httpx.Response) -> None:
    """The commonest response hook."""
    response.raise_for_status()


async def test_a_response_hook_that_raises_for_status_leaves_retries_on(
    flavour: Flavour, clock: FakeClock
) -> None:
    """HTTPStatusError counts as its response, Retry-After included."""
    client = flavour.client(event_hooks={"response": [flavour.hook(raise_for_status)]})
    with ScriptedServer([answer(503), answer(503, b"", {"Retry-After": "7"})]) as server:
        response = await flavour.run(client.get(server.url))
    assert response.content == b"ok"
    assert [f.outcome.status_code for f in response.extensions["retries"]] == [503, 503]
    assert clock.delays[1] == 7.0


async def test_a_response_hook_has_the_last_word(flavour: Flavour, clock: FakeClock) -> None:
    """Its HTTPStatusError is raised when attempts run out, and at once when it is final."""
    client = flavour.client(event_hooks={"response": [flavour.hook(raise_for_status)]})
    with ScriptedServer([answer(503)] * 5 + [answer(404)]) as server:
        exc = await flavour.outcome(client.get, server.url)
        assert isinstance(exc, httpx.HTTPStatusError)
        assert len(exc.response.extensions["retries"]) == 4
        assert len(exc.request.extensions["retries"]) == 4
        assert "after 5 attempts" in exc.__notes__[0]
        exc = await flavour.outcome(client.get, server.url)
        assert isinstance(exc, httpx.HTTPStatusError)
        assert exc.response.status_code == 404
        assert not hasattr(exc, "__notes__")
    assert len(server.requests) == 6


@pytest.mark.parametrize("kind", ["request", "response"])
async def test_a_hooks_own_error_is_not_retried(
    flavour: Flavour, clock: FakeClock, kind: str
) -> None:
    """A programming error repeats itself."""

    def fail(_: Any) -> None:
        raise KeyError("mine")

    client = flavour.client(event_hooks={kind: [flavour.hook(fail)]}, max_connections=1)
    with ScriptedServer([answer(503)]) as server:
        for _ in range(2):
            assert isinstance(await flavour.outcome(client.get, server.url), KeyError)
    assert clock.delays == []


async def test_a_stream_is_retried_until_it_is_handed_over(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Statuses and faults before the body never reach the `with` block."""
    with ScriptedServer([answer(503), reset(), fin(), answer(200, b"body")]) as server:
        async with flavour.using(flavour.client().stream("GET", server.url)) as response:
            assert (response.status_code, response.is_closed) == (200, False)
            assert await flavour.read(response) == b"body"
            assert len(response.extensions["retries"]) == 3


async def test_a_stream_is_not_retried_after_the_hand_over(
    flavour: Flavour, clock: FakeClock
) -> None:
    """What the caller has read can't be taken back."""
    got = bytearray()

    async def consume(client: Any, url: str) -> None:
        async with flavour.using(client.stream("GET", url)) as response:
            async for chunk in flavour.chunks(response):
                got.extend(chunk)

    with ScriptedServer([cut(b"a" * 99, 50)]) as server:
        exc = await flavour.outcome(consume, flavour.client(), server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert got == b"a" * 50
    assert (len(server.requests), clock.delays) == (1, [])


async def test_the_last_response_of_a_stream_can_be_read(
    flavour: Flavour, clock: FakeClock
) -> None:
    """It is handed over like any other."""
    with ScriptedServer([answer(503, b"no %d" % n) for n in range(9)]) as server:
        async with flavour.using(flavour.client().stream("GET", server.url)) as response:
            assert response.status_code == 503
            assert b"".join([chunk async for chunk in flavour.chunks(response)]) == b"no 4"
    assert len(server.requests) == 5


async def test_a_body_that_always_breaks_is_raised(flavour: Flavour, clock: FakeClock) -> None:
    """Complete or an exception, never a short body."""
    with ScriptedServer([cut(b"a" * 99, 98)] * 9) as server:
        exc = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert len(exc.request.extensions["retries"]) == 4
    assert len(server.requests) == 5


def broken_off(status: int, headers: dict[str, str] | None = None) -> Step:
    """A response of which half the body arrives."""
    return Step(send=(message(status, b"x" * 99, headers or {})[:-50],), then="fin")


async def test_a_refusal_stands_though_the_body_then_breaks(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A server that asks for an hour isn't asked again in a second because of its short body."""
    step = broken_off(503, {"Retry-After": "3600"})
    with ScriptedServer([step]) as server:
        exc = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert "Retry-After is longer than max_retry_after (300 s)" in exc.__notes__[0]
    assert (len(server.requests), clock.delays) == (1, [])


async def test_a_body_that_breaks_earns_the_budget_nothing(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A 200 is a success when its body is there, not before."""
    budget = RetryBudget(burst=1, ratio=1.0)
    client = flavour.client(retry=RetryPolicy(budget=budget))
    with ScriptedServer([broken_off(200)] * 9) as server:
        exc = await flavour.outcome(client.get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    assert "retry budget empty" in exc.__notes__[0]
    assert len(server.requests) == 2


async def test_the_story_of_a_call_is_told_once(
    flavour: Flavour, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the same in the note, also where the last 503's body breaks."""
    with ScriptedServer([answer(503)] * 4 + [broken_off(503)]) as server:
        exc = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(exc, httpx.RemoteProtocolError)
    told = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert told == exc.__notes__
    assert "after 5 attempts" in told[0]


# --- should_retry -----------------------------------------------------------------------------


def quota_is_final(request: httpx.Request, outcome: httpx.Response | Exception) -> bool | None:
    """A recipe: no wait mends an exhausted quota."""
    if isinstance(outcome, httpx.Response) and outcome.status_code == 429:
        return False if outcome.json()["code"] == "insufficient_quota" else None
    return None


async def test_an_exhausted_quota_is_final(flavour: Flavour, clock: FakeClock) -> None:
    """The body is there for the predicate; an ordinary 429 is retried as before."""
    client = flavour.client(retry=RetryPolicy(should_retry=quota_is_final))
    limited = answer(429, b'{"code": "rate_limited"}')
    exhausted = answer(429, b'{"code": "insufficient_quota"}')
    with ScriptedServer([limited, fin(), exhausted]) as server:
        response = await flavour.run(client.get(server.url))
    assert response.json() == {"code": "insufficient_quota"}
    assert [f.reason[:3] for f in response.extensions["retries"]] == ["429", "Rem"]
    assert len(server.requests) == 3


async def test_an_exhausted_quota_is_final_in_a_stream(flavour: Flavour, clock: FakeClock) -> None:
    """An error response is read for the predicate, and can still be read by the caller."""
    client = flavour.client(retry=RetryPolicy(should_retry=quota_is_final))
    with ScriptedServer([answer(429, b'{"code": "insufficient_quota"}')]) as server:
        async with flavour.using(client.stream("GET", server.url)) as response:
            chunks = [chunk async for chunk in flavour.chunks(response)]
    assert b"".join(chunks) == b'{"code": "insufficient_quota"}'
    assert len(server.requests) == 1


def eventually(request: httpx.Request, outcome: httpx.Response | Exception) -> bool | None:
    """A recipe: what was made a moment ago may not be seen everywhere yet."""
    return (isinstance(outcome, httpx.Response) and outcome.status_code == 404) or None


async def test_an_eventually_consistent_404_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """True decides where the table would not."""
    policy = RetryPolicy(should_retry=eventually)
    client = flavour.client()
    with ScriptedServer([answer(404), answer(404), answer(200, b"there"), answer(404)]) as server:
        response = await flavour.run(client.get(server.url, extensions={"retry": policy}))
        assert response.content == b"there"
        assert [f.reason for f in response.extensions["retries"]] == ["404 Not Found"] * 2
        assert (await flavour.run(client.get(server.url))).status_code == 404


async def test_a_post_that_was_never_sent_is_retried(flavour: Flavour, clock: FakeClock) -> None:
    """The server sees it once; once it has seen it, it is not repeated."""
    client = flavour.client(retry=RetryPolicy(retry_unsent=True))
    with ScriptedServer([answer(200), fin(), answer(503)], listening=False) as server:
        clock.during_wait.append(server.listen)
        response = await flavour.run(client.post(server.url, content=b"pay 5"))
        assert (response.status_code, server.bodies) == (200, [b"pay 5"])
        assert [f.reason for f in response.extensions["retries"]] == ["ConnectError"]
        exc = await flavour.outcome(client.post, server.url, content=b"pay 6")
        assert isinstance(exc, httpx.RemoteProtocolError)
        response = await flavour.run(client.post(server.url, content=b"pay 7"))
        assert response.status_code == 503
    assert server.bodies == [b"pay 5", b"pay 6", b"pay 7"]


async def test_a_post_that_found_no_connection_is_retried(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The same with ConnectTimeout and PoolTimeout."""
    policy = RetryPolicy(retry_unsent=True, max_attempts=2)
    client = flavour.client(retry=policy, connect_timeout=0.1, pool_timeout=0.05, max_connections=1)
    with full_backlog() as url:
        exc = await flavour.outcome(client.post, url, content=b"pay 5")
    assert [f.reason for f in exc.request.extensions["retries"]] == ["ConnectTimeout"]
    with ScriptedServer() as server:
        async with flavour.using(client.stream("GET", server.url)):
            exc = await flavour.outcome(client.post, server.url, content=b"pay 5")
        assert [f.reason for f in exc.request.extensions["retries"]] == ["PoolTimeout"]
    assert server.methods == ["GET"]


async def test_should_retry_may_refuse_an_exception(flavour: Flavour, clock: FakeClock) -> None:
    """False is final, and leaves no note."""
    policy = RetryPolicy(should_retry=lambda request, outcome: False)
    with refused_port() as url:
        exc = await flavour.outcome(flavour.client(retry=policy).get, url)
    assert isinstance(exc, httpx.ConnectError)
    assert not hasattr(exc, "__notes__")


async def test_should_retry_may_poll(flavour: Flavour, clock: FakeClock) -> None:
    """It is asked about successes too; attempts bind all the same."""

    def unfinished(request: httpx.Request, outcome: httpx.Response | Exception) -> bool | None:
        return (isinstance(outcome, httpx.Response) and outcome.text == "pending") or None

    client = flavour.client(retry=RetryPolicy(should_retry=unfinished, backoff=lambda n: 3))
    script = [answer(200, b"pending")] * 3 + [answer(200, b"done")] + [answer(200, b"pending")] * 9
    with ScriptedServer(script) as server:
        assert (await flavour.run(client.post(server.url))).text == "done"
        assert (await flavour.run(client.post(server.url))).text == "pending"
    assert len(server.requests) == 4 + 5
    assert clock.delays == [3.0] * (3 + 4)


async def test_should_retry_gets_the_callers_request(flavour: Flavour, clock: FakeClock) -> None:
    """And each outcome once, an HTTPStatusError as its response."""
    asked = []

    def ask(request: httpx.Request, outcome: httpx.Response | Exception) -> None:
        asked.append((request, type(outcome)))

    client = flavour.client(
        retry=RetryPolicy(should_retry=ask),
        event_hooks={"response": [flavour.hook(raise_for_status)]},
    )
    with ScriptedServer([answer(503), fin()]) as server:
        request = client.build_request("GET", server.url)
        await flavour.run(client.send(request))
    kinds = [httpx.Response, httpx.RemoteProtocolError, httpx.Response]
    assert [kind for _, kind in asked] == kinds
    assert {id(one.headers) for one, _ in asked} == {id(request.headers)}


@pytest.mark.parametrize("step", [answer(503), fin()], ids=["503", "FIN"])
@pytest.mark.parametrize("part", ["should_retry", "backoff"])
async def test_what_the_callers_functions_raise_is_raised(
    flavour: Flavour, clock: FakeClock, step: Step, part: str
) -> None:
    """It is no outcome to be retried, not even as an httpx exception, and leaks nothing."""

    errors = [httpx.ReadError("mine")]

    def fail_once(*args: Any) -> Any:
        if errors:
            raise errors.pop()

    policy = RetryPolicy(**{part: fail_once})
    client = flavour.client(max_connections=1)
    with ScriptedServer([step]) as server:
        exc = await flavour.outcome(client.get, server.url, extensions={"retry": policy})
        assert (str(exc), len(server.requests), clock.delays) == ("mine", 1, [])
        assert (await flavour.run(client.get(server.url))).content == b"ok"


# --- HTTP/2 -----------------------------------------------------------------------------------


async def test_http2_is_negotiated_and_retried(flavour: Flavour, clock: FakeClock) -> None:
    """The default, where the server offers it."""
    client = flavour.client(verify=client_context())
    with Http2Server() as server:
        response = await flavour.run(client.get(f"{server.url}/status/503/429/200"))
        await flavour.close(client)
    assert (response.http_version, response.status_code) == ("HTTP/2", 200)
    assert [f.reason[:3] for f in response.extensions["retries"]] == ["503", "429"]
    assert [f.outcome.http_version for f in response.extensions["retries"]] == ["HTTP/2"] * 2
    assert len({request.connection for request in server.requests}) == 1


async def test_http2_can_be_switched_off(flavour: Flavour, clock: FakeClock) -> None:
    """`http2=False` offers HTTP/1.1 alone."""
    client = flavour.client(verify=client_context(), http2=False)
    with Http2Server() as server:
        response = await flavour.run(client.get(f"{server.url}/status/503/200"))
        await flavour.close(client)
    assert (response.http_version, response.status_code) == ("HTTP/1.1", 200)
    assert len(response.extensions["retries"]) == 1


async def test_a_server_without_http2_gets_http1(flavour: Flavour, clock: FakeClock) -> None:
    """Nothing is assumed about a server that doesn't offer it."""
    client = flavour.client(verify=client_context())
    with ScriptedServer([answer(503)], tls=True) as server:
        response = await flavour.run(client.get(server.url))
        await flavour.close(client)
    assert (response.http_version, response.content) == ("HTTP/1.1", b"ok")
    assert server.url.startswith(f"https://{LOOPBACK}")


@pytest.mark.parametrize("size", [1000, 70_000])
@pytest.mark.parametrize("total_timeout", [None, 9])
async def test_each_response_tells_how_long_it_took(
    flavour: Flavour, clock: FakeClock, size: int, total_timeout: float | None
) -> None:
    """Streams are ours, and httpx2 asks the stream; large failed bodies are not kept."""
    asks = {"should_retry": lambda *_: None} if size > 65_536 else {}  # for the whole body
    policy = RetryPolicy(total_timeout=total_timeout, **asks)
    failure = answer(503, b"x" * size)
    with ScriptedServer([failure, failure, answer(200, b"done")]) as server:
        response = await flavour.run(flavour.client(retry=policy).get(server.url))
        assert response.text == "done"
        failed = [one.outcome for one in response.extensions["retries"]]
        assert len(failed) == 2
        assert all(one.elapsed.total_seconds() > 0 for one in (response, *failed))
    with ScriptedServer([answer(503, b"x"), answer(200, b"done")]) as server:
        client = flavour.client(retry=policy)
        async with flavour.using(client.stream("GET", server.url)) as streamed:
            assert await flavour.read(streamed) == b"done"
        assert streamed.elapsed.total_seconds() > 0
        assert streamed.stream.elapsed in (None, streamed.elapsed)  # None: httpx's way
