"""One deadline for the whole call, whatever the server does.

First its parts, by a clock that stands still. Then real sockets, where real time passes: the
deadline is TOTAL, the server would take many seconds.

Subject: `_deadline.py`.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import (
    Received,
    ScriptedServer,
    Step,
    answer,
    client_context,
    drip,
    full_backlog,
    hang,
    message,
    redirect,
    reset,
)

from httpx_production import RetryPolicy, _deadline
from httpx_production._deadline import (
    LiveTimeout,
    TimedAuth,
    current_value,
    deadline_of_attempt,
    make_deadline,
)

pytestmark = [
    pytest.mark.anyio,
    # httpcore leaves the body's async generator to the garbage collector when sending fails.
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]

URL = "https://api.example.com/v1"
TOTAL = 0.6
LATE = 1.5  # seconds after it by which a call is over, on a machine whose cores are all busy
PATIENT = {"retry": {"total_timeout": 15.0}}  # for a call that only has to be answered

IN_AN_HOUR = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
ENDLESS = b"x" * 1000
HEAD = message(200, ENDLESS, {"X-Long": "y" * 500})


@contextlib.contextmanager
def ends_in_time(total: float = TOTAL) -> Iterator[None]:
    """The block ends at the deadline: not long after, and not before."""
    start = time.monotonic()
    yield
    assert total - 0.05 <= time.monotonic() - start < total + LATE


def named(exc: BaseException) -> bool:
    """Whether the exception's notes tell of total_timeout."""
    return "total_timeout" in "\n".join(getattr(exc, "__notes__", ()))


# --- its parts, by a clock that stands still ------------------------------------------------------


def test_a_timeout_is_the_shorter_of_its_phase_and_what_is_left(clock: FakeClock) -> None:
    """It shrinks with the time, and only for who asks again; others never get 0."""
    until = clock.now + 2.0
    long, short, none = LiveTimeout(5.0, until), LiveTimeout(1, until), LiveTimeout(None, until)
    assert [long, short, none] == [2.0, 1.0, 2.0]
    assert [current_value(one) for one in (long, short, none)] == [2.0, 1.0, 2.0]
    clock.advance(1.5)
    assert [float(long), float(short)] == [2.0, 1.0]
    assert [current_value(one) for one in (long, short, none)] == [0.5, 0.5, 0.5]
    clock.advance(0.5)
    assert [current_value(one) for one in (long, short, none)] == [0.0, 0.0, 0.0]
    clock.advance(4.5)
    assert [current_value(one) for one in (long, short, none)] == [-4.5, -4.5, -4.5]
    assert LiveTimeout(5.0, until) == 0.001
    assert LiveTimeout(0.0, until) == 0.0


def test_an_ordinary_timeout_is_worth_what_it_says(clock: FakeClock) -> None:
    """Only a deadline's are asked anew."""
    left = LiveTimeout(5.0, clock.now + 2.0)
    clock.advance(0.5)
    assert [current_value(None), current_value(3.0), current_value(left)] == [None, 3.0, 1.5]


def test_a_deadline_answers_each_phase_with_what_is_left(clock: FakeClock) -> None:
    """By `get` and by index, an absent phase too; as a dict it is what it was made of."""
    phases: dict[str, float | None] = {"connect": 5.0, "read": 0.5, "write": None}
    deadline = make_deadline(phases, clock.now - 1.0, 3.0)
    assert [deadline.get(name) for name in ("connect", "read", "write")] == [2.0, 0.5, 2.0]
    assert [deadline[name] for name in ("connect", "read", "write")] == [2.0, 0.5, 2.0]
    assert [deadline.get("pool"), deadline.get("pool", 1.0)] == [2.0, 1.0]
    assert dict(deadline) == phases
    assert (deadline.left, deadline.until, deadline.seconds) == (2.0, clock.now + 2.0, 3.0)
    deadline.lift()
    assert [deadline.get(name) for name in phases] == list(phases.values())
    assert [deadline[name] for name in phases] == list(phases.values())


@pytest.mark.parametrize(("left", "notes"), [(0.02, 0), (0.005, 1), (0.0, 1), (-3.0, 1)])
def test_the_note_is_made_once_and_only_at_the_deadline(
    clock: FakeClock, left: float, notes: int
) -> None:
    """A phase that timed out by itself is not blamed on total_timeout."""
    exc = httpx.ReadTimeout("slow")
    deadline = make_deadline({}, clock.now + left - 1.5, 1.5)
    deadline.add_note(exc)
    deadline.add_note(exc)
    assert getattr(exc, "__notes__", []) == ["total_timeout of 1.5 s ran out"] * notes


@pytest.mark.parametrize("late", [0.0, 0.5, 5.0])
def test_no_chunk_is_taken_at_the_deadline(clock: FakeClock, late: float) -> None:
    """Between two chunks the deadline is looked at, and it names itself."""
    deadline = make_deadline({}, clock.now, 2.0)
    clock.advance(1.5)
    deadline.check("too late")
    clock.advance(0.5 + late)
    with pytest.raises(httpx.ReadTimeout, match="too late") as caught:
        deadline.check("too late")
    assert caught.value.__notes__ == ["total_timeout of 2 s ran out"]


@pytest.mark.anyio
@pytest.mark.flavours("asyncio", "trio")
async def test_what_ignores_its_timeouts_is_cancelled(
    flavour: Flavour, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortly after the deadline, so that those who keep it themselves can name the phase."""
    given, move_on_after = [], anyio.move_on_after
    monkeypatch.setattr(
        anyio, "move_on_after", lambda seconds: given.append(seconds) or move_on_after(0.01)
    )
    deadline = make_deadline({}, clock.now, 2.0)
    with deadline.cancels("too late"):
        await anyio.lowlevel.checkpoint()
    clock.advance(5.0)
    raises = pytest.raises(httpx.ReadTimeout, match="too late")
    with raises as caught, deadline.cancels("too late"):
        await anyio.sleep(9.0)
    assert given == pytest.approx([2.05, 0.05])
    assert caught.value.__notes__ == ["total_timeout of 2 s ran out"]


def test_an_attempt_does_not_outlast_its_call(clock: FakeClock) -> None:
    """The nearer one of both deadlines binds, and is named."""
    of_call = make_deadline({"read": 9.0}, clock.now, 5.0)
    for attempt_timeout in (None, 6.0):
        assert deadline_of_attempt(of_call, attempt_timeout) is of_call
    nearer = deadline_of_attempt(of_call, 4.0)
    assert (nearer.left, nearer.setting, dict(nearer)) == (4.0, "attempt_timeout", dict(of_call))
    clock.advance(2.0)
    assert deadline_of_attempt(of_call, 4.0) is of_call


def test_an_attempt_s_deadline_is_one_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may be held up between two, and the attempt would outlast its call."""
    times = iter([0.9, 3.0])
    monkeypatch.setattr(_deadline, "monotonic", lambda: next(times))
    of_call = make_deadline({}, 0.0, 5.0)
    assert deadline_of_attempt(of_call, 4.0).until == 4.9
    assert next(times) == 3.0


class TokenFlow(httpx.Auth):
    """Asks for a token first, and says when it has ended."""

    requires_response_body = True

    def __init__(self, *first: httpx.Request) -> None:
        self.first, self.ended = first, False

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        try:
            for one in self.first:
                assert (yield one).status_code == 200
            request.headers["Authorization"] = "token"
            yield request
        finally:
            self.ended = True


async def walk(
    flavour: Flavour, auth: httpx.Auth, timeouts: Any, turns: int = 99
) -> list[tuple[httpx.Request, Any]]:
    """An auth flow's requests, each with its timeouts and answered; ended after so many `turns`."""
    request = httpx.Request("GET", URL, extensions={"timeout": timeouts})
    seen: list[tuple[httpx.Request, Any]] = []
    flow: Any = auth.sync_auth_flow(request) if flavour.sync else auth.async_auth_flow(request)
    response = None
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        while len(seen) < turns:
            sent = flow.send(response) if flavour.sync else flow.asend(response)
            one = await flavour.run(sent)
            seen.append((one, one.extensions["timeout"]))
            response = httpx.Response(200, request=one, content=b"")
    await flavour.run(flow.close() if flavour.sync else flow.aclose())
    return seen


@pytest.mark.anyio
async def test_a_flow_s_own_requests_get_the_deadline(flavour: Flavour, clock: FakeClock) -> None:
    """Unless they bring timeouts of their own, and only while it goes on, to its end."""
    plain = httpx.Request("POST", URL)
    own = httpx.Request("POST", URL, extensions={"timeout": {"read": 1.0}})
    token, deadline = TokenFlow(plain, own), make_deadline({}, clock.now, 2.0)
    seen = await walk(flavour, TimedAuth(token), deadline)
    assert [request.method for request, _ in seen] == ["POST", "POST", "GET"]
    assert seen[0][1] is seen[2][1] is deadline
    assert seen[1][1] == own.extensions["timeout"] == {"read": 1.0}
    assert plain.extensions == {}
    assert seen[2][0].headers["Authorization"] == "token"
    assert token.ended


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 401], ids=["goes on", "gives up"])
async def test_a_request_that_a_flow_keeps_has_the_timeouts_of_each_call(
    flavour: Flavour, clock: FakeClock, status: int
) -> None:
    """Not those of the call before, whether that had a deadline or not."""
    given: list[float] = []

    def respond(request: httpx.Request) -> httpx.Response:
        given.append(request.extensions["timeout"]["read"])
        return httpx.Response(status)

    flow = TokenFlow(httpx.Request("POST", URL))
    client = flavour.client(transport=httpx.MockTransport(respond), auth=flow, read_timeout=9.0)
    for total in (None, 5.0, None, 3.0):
        extensions = {"retry": {"total_timeout": total}}
        await flavour.outcome(client.get, URL, extensions=extensions)
    requests = 2 if status == 200 else 1
    assert given == [seconds for seconds in (9.0, 5.0, 9.0, 3.0) for _ in range(requests)]


@pytest.mark.anyio
async def test_a_flow_ends_at_the_deadline(flavour: Flavour, clock: FakeClock) -> None:
    """Whatever it does between its requests."""
    token = TokenFlow(httpx.Request("POST", URL))
    with pytest.raises(httpx.ReadTimeout, match="the auth flow did not end in time"):
        await walk(flavour, TimedAuth(token), make_deadline({}, clock.now - 2.0, 2.0))
    assert token.ended


@pytest.mark.anyio
async def test_a_flow_that_is_left_early_is_ended(flavour: Flavour, clock: FakeClock) -> None:
    """Its `finally` runs when the call fails, not when the garbage collector comes by."""
    token = TokenFlow(httpx.Request("POST", URL))
    deadline = make_deadline({}, clock.now, 2.0)
    assert len(await walk(flavour, TimedAuth(token), deadline, turns=1)) == 1
    assert token.ended


# --- each way of being slow -----------------------------------------------------------------------

FAULTS: dict[str, Callable[[], Step]] = {
    "stalled": hang,
    "stalled after the head": lambda: Step(send=(HEAD[:-1000],), then="hang"),
    "body drips": lambda: drip(HEAD, 0.1, at_once=len(HEAD) - 990),
    "body drips fast": lambda: drip(HEAD, 0.01, at_once=len(HEAD) - 990),
    "headers drip": lambda: drip(HEAD, 0.1, at_once=30),
    "1xx for ever": lambda: Step(send=[b"HTTP/1.1 102 Processing\r\n\r\n"] * 300, pause=0.1),
    "redirect for ever": lambda: redirect("/again", delay=0.3),
    "chunked drips": lambda: Step(
        send=[message(200, headers={"Transfer-Encoding": "chunked"}, length=False)]
        + [b"1\r\nx\r\n"] * 300,
        pause=0.1,
    ),
    "upload is not read": lambda: hang(read="head"),
}

#: Otherwise than while reading; redirects may be anywhere.
ENDS = {"upload is not read": httpx.WriteTimeout, "redirect for ever": httpx.TimeoutException}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_slow_server_does_not_outlast_total_timeout(flavour, fault):
    """The call ends with httpx's timeout and a note; a POST was sent once; the pool is usable."""
    body = b"z" * 20_000_000 if fault == "upload is not read" else b""
    options = {"total_timeout": TOTAL, "max_connections": 1, "follow_redirects": True}
    script = itertools.repeat(FAULTS[fault](), 20)
    with ScriptedServer(script) as server, ScriptedServer() as other:
        clients = {method: flavour.client(**options) for method in ("PUT", "POST")}
        with ends_in_time():
            outcomes = await flavour.gather([
                partial(client.request, method, server.url, content=body)
                for method, client in clients.items()
            ])  # fmt: skip
        for outcome in outcomes:
            assert isinstance(outcome, ENDS.get(fault, httpx.ReadTimeout))
            assert named(outcome)
        assert server.methods.count("POST") == 1
        assert server.methods.count("PUT") == 1
        for client in clients.values():
            assert (await flavour.run(client.get(other.url, extensions=PATIENT))).text == "ok"


async def test_a_deadline_is_not_a_failed_attempt(flavour):
    """What total_timeout ends is not retried, and leaves no history of its own."""
    with ScriptedServer([hang()]) as server:
        client = flavour.client(total_timeout=TOTAL)
        outcome = await flavour.outcome(client.get, server.url)
    assert outcome.request.extensions["retries"] == ()
    assert len(server.requests) == 1


async def test_a_connection_that_is_not_accepted(flavour):
    """A full accept backlog: ConnectTimeout at the deadline, although connect_timeout is 5 s."""
    with full_backlog() as url, ScriptedServer() as other:
        client = flavour.client(total_timeout=TOTAL, max_connections=1)
        with ends_in_time():
            outcome = await flavour.outcome(client.get, url)
        assert isinstance(outcome, httpx.ConnectTimeout)
        assert named(outcome)
        assert (await flavour.run(client.get(other.url, extensions=PATIENT))).text == "ok"


@pytest.mark.parametrize(
    "step",
    [hang(read="nothing"), Step(read="nothing", send=[b"\x16"] + [b"\x03"] * 300, pause=0.1)],
)
async def test_a_tls_handshake_that_stalls_or_drips(flavour, step):
    """Connecting is quick, the handshake is not: the deadline bounds both together."""
    with ScriptedServer([step] * 9, tls=True) as server, ScriptedServer() as other:
        client = flavour.client(total_timeout=TOTAL, max_connections=1, verify=client_context())
        with ends_in_time():
            outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, httpx.ConnectTimeout)
        assert named(outcome)
        assert server.connections == 1
        assert (await flavour.run(client.get(other.url, extensions=PATIENT))).text == "ok"


async def test_connect_and_handshake_share_what_is_left(flavour):
    """A proxy that is slow to connect, then slow in the handshake: one deadline, not one each."""
    slow = Step(send=[b"HTTP/1.1 200 OK\r\n\r\n"], delay=TOTAL * 0.7, then="hang")
    with ScriptedServer([slow] * 9) as proxy:
        client = flavour.client(total_timeout=TOTAL, proxy=proxy.url, verify=client_context())
        with ends_in_time():
            outcome = await flavour.outcome(client.get, "https://127.0.0.1:1/")
    assert isinstance(outcome, httpx.TimeoutException)
    assert named(outcome)
    assert proxy.connections == 1


async def test_waiting_for_a_connection_counts(flavour):
    """A call that waits for the pool's only connection ends at its own deadline."""
    with ScriptedServer([hang()] * 9) as server:
        client = flavour.client(max_connections=1, read_timeout=4.0, pool_timeout=9, max_attempts=1)
        hurried = {"retry": RetryPolicy(total_timeout=TOTAL)}
        took = [0.0]

        async def second() -> Any:
            while not server.requests:  # the first has the connection
                await pause(flavour)
            start = time.monotonic()
            outcome = await flavour.outcome(client.get, server.url, extensions=hurried)
            took[0] = time.monotonic() - start
            return outcome

        first = partial(client.get, server.url)
        outcomes = await flavour.gather([first, flavour.blocking(second)])
    assert isinstance(outcomes[1], httpx.PoolTimeout)
    assert TOTAL - 0.05 <= took[0] < TOTAL + LATE


async def pause(flavour: Flavour) -> None:
    """Let others run."""
    if flavour.sync:
        time.sleep(0.005)
    else:
        await anyio.sleep(0.005)


# --- many attempts --------------------------------------------------------------------------------


async def test_a_wait_that_would_end_after_the_deadline_is_not_begun(flavour, clock):
    """A 503 loop: the last 503 is returned before the deadline, not an exception after it."""
    with ScriptedServer([answer(503)] * 99) as server:
        backoff = RetryPolicy(max_attempts=99, backoff=lambda attempt: 11.0, total_timeout=30.0)
        response = await flavour.run(flavour.client(retry=backoff).get(server.url))
    assert response.status_code == 503
    assert clock.delays == [11.0, 11.0]
    assert len(server.requests) == len(response.extensions["retries"]) + 1 == 3


async def test_no_attempt_begins_after_the_deadline(flavour, clock):
    """The wait took longer than it should: the machine was asleep."""
    clock.during_wait.append(lambda: clock.advance(60.0))
    with ScriptedServer([answer(503)]) as server:
        client = flavour.client(total_timeout=30.0)
        outcome = await flavour.outcome(client.get, server.url)
    assert isinstance(outcome, httpx.ReadTimeout)
    assert named(outcome)
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["9", "3600", IN_AN_HOUR], ids=["9", "3600", "date"])
async def test_a_retry_after_beyond_the_deadline_is_answered_at_once(flavour, value, caplog):
    """No earlier retry than asked, no useless wait: the 429 itself, in no time, with the reason."""
    with ScriptedServer([answer(429, headers={"Retry-After": value})]) as server:
        client = flavour.client()
        policy = RetryPolicy(total_timeout=5.0, max_retry_after=86_400)
        start = time.monotonic()
        response = await flavour.run(client.get(server.url, extensions={"retry": policy}))
    assert time.monotonic() - start < 4.0  # and not 5 s, or 9, or an hour
    assert response.status_code == 429
    assert len(server.requests) == 1
    assert "total_timeout" in caplog.text


async def test_attempts_and_waits_share_one_deadline(flavour):
    """Attempts that time out by themselves go on until the deadline and not a phase longer."""
    total = 3.0  # an attempt is 1.2 s: more than a busy machine holds it up
    with ScriptedServer([hang()] * 99) as server:
        policy = RetryPolicy(max_attempts=99, backoff=lambda attempt: 0.01, total_timeout=total)
        client = flavour.client(retry=policy, read_timeout=total * 0.4, max_connections=1)
        start = time.monotonic()
        outcome = await flavour.outcome(client.get, server.url)
    assert total / 2 < time.monotonic() - start < total + LATE
    assert isinstance(outcome, httpx.ReadTimeout)
    assert len(server.requests) in (2, 3)
    assert named(outcome)


async def test_a_failed_response_whose_body_drips_is_not_waited_for(flavour):
    """Discarding a 503 costs a quarter of a second at most, and the next attempt is answered."""
    with ScriptedServer([drip(message(503, ENDLESS), 0.1, at_once=60)]) as server:
        client = flavour.client(retry=RetryPolicy(backoff=lambda attempt: 0.0), max_connections=1)
        start = time.monotonic()
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert time.monotonic() - start < 10  # and not the 100 s of the body
    assert server.connections == 2


async def test_an_auth_flow_of_many_requests_shares_the_deadline(flavour):
    """An auth that asks again and again, each answer in time, ends at the deadline."""

    class Asking(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Any:
            for _ in range(99):
                yield httpx.Request("GET", request.url)  # a request of its own, without timeouts
            yield request

    with ScriptedServer([answer(delay=0.1)] * 99 + [hang()] * 9) as server:
        client = flavour.client(total_timeout=TOTAL, auth=Asking())
        with ends_in_time():
            outcome = await flavour.outcome(client.get, server.url)
    assert isinstance(outcome, httpx.ReadTimeout)
    assert named(outcome)


@pytest.mark.flavours("asyncio", "trio")
@pytest.mark.parametrize("whose", ["client", "client, later", "call"])
async def test_an_auth_flow_that_waits_itself_is_cancelled_at_the_deadline(flavour, whose):
    """It is the caller's code, of which no transport knows; a plain function can't be cancelled."""

    class Waiting(httpx.Auth):
        async def async_auth_flow(self, request: httpx.Request) -> Any:
            await anyio.sleep(30)
            yield request

    options = {"client": {}, "call": {}, whose: {"auth": Waiting()}}
    with ScriptedServer() as server:
        client = flavour.client(total_timeout=TOTAL, **options["client"])
        if whose == "client, later":
            client.auth = Waiting()
        with ends_in_time():
            outcome = await flavour.outcome(client.get, server.url, **options["call"])
    assert isinstance(outcome, httpx.ReadTimeout)
    assert named(outcome)
    assert server.requests == []


@pytest.mark.flavours("asyncio", "trio")
@pytest.mark.parametrize("name", ["request", "response"])
async def test_a_hook_that_waits_is_cancelled_at_the_deadline(flavour, name):
    """One hook alone is enough to look after the attempt's time."""

    async def wait(_: httpx.Request | httpx.Response) -> None:
        await anyio.sleep(30)

    with ScriptedServer() as server:
        client = flavour.client(total_timeout=TOTAL, event_hooks={name: [wait]})
        with ends_in_time():
            outcome = await flavour.outcome(client.get, server.url)
    assert isinstance(outcome, httpx.ReadTimeout)
    assert named(outcome)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.01, 9.0])
async def test_a_stream_that_drips_after_the_hand_over(flavour, pause):
    """The deadline goes on between the chunks of `client.stream()`; the pool is usable after."""
    script = [drip(HEAD, pause, at_once=len(HEAD) - 990)]
    with ScriptedServer(script) as server:
        client = flavour.client(total_timeout=TOTAL, max_connections=1)
        received: list[bytes] = []

        async def consume() -> None:
            async with flavour.using(client.stream("GET", server.url)) as response:
                assert response.status_code == 200
                async for chunk in flavour.chunks(response):
                    received.append(chunk)

        with ends_in_time():
            outcome = await flavour.outcome(consume)
        assert isinstance(outcome, httpx.ReadTimeout)
        assert named(outcome)
        assert received
        assert ENDLESS.startswith(b"".join(received))
        assert (await flavour.run(client.get(server.url, extensions=PATIENT))).text == "ok"


async def test_reading_a_stream_at_once_is_bounded_too(flavour):
    """`response.read()` on a streamed response is bound by the same deadline."""
    with ScriptedServer([drip(HEAD, 0.1, at_once=len(HEAD) - 990)]) as server:
        client = flavour.client(total_timeout=TOTAL)
        with ends_in_time(), pytest.raises(httpx.ReadTimeout):
            async with flavour.using(client.stream("GET", server.url)) as response:
                await flavour.read(response)


# --- what a deadline must not do ------------------------------------------------------------------


async def test_a_deadline_that_is_not_reached_changes_nothing(flavour, clock):
    """Retries, history and answer are the same with and without a generous total_timeout."""
    seen = []
    for total in (None, 60.0):
        with ScriptedServer([answer(503), reset(), answer(200, ENDLESS)]) as server:
            client = flavour.client(total_timeout=total)
            response = await flavour.run(client.get(server.url))
            reasons = [failed.reason for failed in response.extensions["retries"]]
            seen.append((response.status_code, response.content, reasons, server.connections))
    assert seen[0] == seen[1] == (200, ENDLESS, ["503 Service Unavailable", "ReadError"], 2)


async def test_the_next_call_gets_a_deadline_of_its_own(flavour, clock):
    """Calls one after the other, together longer than the deadline: each has its full time."""

    def slow(request: Received) -> Step:
        clock.advance(60.0)
        return answer()

    with ScriptedServer(slow) as server:
        client = flavour.client(total_timeout=100.0)
        for _ in range(4):
            assert (await flavour.run(client.get(server.url))).text == "ok"
    assert server.connections == 1


async def test_a_request_sent_again_does_not_carry_its_old_deadline(flavour, clock):
    """The same Request object, sent again after its first deadline has passed."""
    with ScriptedServer() as server:
        client = flavour.client(total_timeout=100.0)
        request = client.build_request("GET", server.url)
        await flavour.run(client.send(request))
        clock.advance(150.0)
        assert (await flavour.run(client.send(request))).text == "ok"
        clock.advance(150.0)
        unbounded = flavour.client()
        assert (await flavour.run(unbounded.send(request))).text == "ok"


@pytest.mark.parametrize("last", [answer, reset])
@pytest.mark.parametrize("extensions", [{}, {"retry": {"max_attempts": 1}}], ids=["", "retry"])
async def test_a_redirect_s_request_can_be_sent_again(flavour, clock, last, extensions):
    """As the response or the exception has it: the deadline ended with the call."""
    with ScriptedServer([redirect("/there"), last(), answer()]) as server:
        client = flavour.client(total_timeout=100.0, max_attempts=1, follow_redirects=True)
        outcome = await flavour.outcome(client.get, server.url, extensions=extensions)
        assert isinstance(outcome, httpx.Response if last is answer else httpx.ReadError)
        assert outcome.request.url.path == "/there"
        clock.advance(150.0)
        assert (await flavour.run(flavour.pooled().send(outcome.request))).text == "ok"


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_hook_may_set_timeouts_of_its_own(flavour, clock, status, stream):
    """As with httpx; the response is the caller's."""

    def be_patient(request: httpx.Request) -> None:
        request.extensions["timeout"] = {"read": 60.0}

    with ScriptedServer([answer(status)]) as server:
        hooks = {"request": [flavour.hook(be_patient)]}
        client = flavour.client(total_timeout=100.0, max_attempts=1, event_hooks=hooks)
        request = client.build_request("GET", server.url)
        response = await flavour.run(client.send(request, stream=stream))
        assert response.status_code == status
        assert await flavour.read(response) == b"ok"


async def test_a_phase_shorter_than_the_deadline_still_holds(flavour):
    """read_timeout and a request's own `timeout=` go on to bound each attempt."""
    with ScriptedServer([hang()] * 3 + [answer()]) as server:
        policy = RetryPolicy(backoff=lambda attempt: 0.0, total_timeout=9.0)
        client = flavour.client(retry=policy, read_timeout=0.4)
        start = time.monotonic()
        response = await flavour.run(client.get(server.url))
        assert response.text == "ok"
    assert [failed.reason for failed in response.extensions["retries"]] == ["ReadTimeout"] * 3
    assert 1.1 <= time.monotonic() - start < 8


async def test_a_request_without_timeouts_is_bounded_too(flavour):
    """`timeout=None` removes the phases' limits, not the call's."""
    with ScriptedServer([hang()]) as server:
        client = flavour.client(total_timeout=TOTAL)
        with ends_in_time():
            outcome = await flavour.outcome(client.get, server.url, timeout=None)
    assert isinstance(outcome, httpx.ReadTimeout)


async def test_one_deadline_does_not_touch_the_neighbour(flavour):
    """Two calls on one client: the hurried one ends, the patient one gets its answer."""
    with ScriptedServer(lambda request: answer(delay=0.4)) as server:
        client = flavour.client()
        hurried = {"retry": RetryPolicy(total_timeout=0.2)}  # half of what an answer takes
        outcomes = await flavour.gather([
            lambda: client.get(server.url, extensions=hurried),
            lambda: client.get(server.url),
        ])  # fmt: skip
    assert isinstance(outcomes[0], httpx.TimeoutException)
    assert outcomes[1].text == "ok"


@pytest.mark.flavours("asyncio", "trio")
async def test_a_cancelled_call_is_cancelled_not_timed_out(flavour):
    """The caller's own cancel scope wins; the connection's slot is free again."""
    with ScriptedServer([hang()]) as server:
        client = flavour.client(total_timeout=5.0, max_connections=1)
        with anyio.move_on_after(0.1) as scope:
            await client.get(server.url)
        assert scope.cancelled_caught
        assert (await client.get(server.url)).text == "ok"
