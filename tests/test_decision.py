"""The decision as tables: outcomes go into `retry.Call`, answers come out; no I/O, no waiting.

Subject: `_call.py`.
"""

import dataclasses
import gc
import logging
import math
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import h2.exceptions
import h11
import httpcore
import httpx
import pytest
from conftest import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from httpx_production import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    FailedAttempt,
    ProductionHTTPClient,
    RetryBudget,
    RetryPolicy,
    jittered_backoff,
    retry,
)
from httpx_production._call import Call, logger
from httpx_production.retry import Outcome

URL = "https://user:pa55word@api.example.com:8443/v1/things?api_key=SECRET#SECRET"
SHOWN = "https://api.example.com:8443/v1/things"
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
QUIET: dict[str, Any] = {"backoff": lambda attempt: 1.0}


def call(
    method: str = "GET", url: str = URL, *, headers: dict[str, str] | None = None, **policy: Any
) -> Call:
    """A call that started at second 0 and waits a second between attempts."""
    request = httpx.Request(method, url, headers=headers, content=b"" if method == "GET" else b"x")
    return Call(request, RetryPolicy(**QUIET | policy), 0.0)


def answer(one: Call, status: int, **headers: str) -> httpx.Response:
    """A response to the call's own request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, request=one.request)


def retried(one: Call, outcome: Outcome, now: float = 0.5) -> bool:
    """Whether the decision is to try again."""
    return one.after(outcome, now) is not None


def chain(*links: BaseException, cause: bool = True) -> Any:
    """The last link as it is caught: raised while the one before it was handled."""
    caught: BaseException | None = None
    for link in links:
        try:
            try:
                if caught is not None:
                    raise caught
            finally:
                if cause:
                    raise link from caught
                raise link
        except BaseException as exc:
            caught = exc
    return caught


def notes(exc: BaseException) -> list[str]:
    return getattr(exc, "__notes__", [])


class Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.emit = self.records.append  # type: ignore[method-assign]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The library's log records, from DEBUG up."""
    recorder = Recorder()
    logger.addHandler(recorder)
    logger.setLevel(logging.DEBUG)
    yield recorder.records
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(recorder)


# --- methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", IDEMPOTENT)
def test_idempotent_methods_are_retried(method: str) -> None:
    """RFC 9110 section 9.2.2: these may be repeated."""
    one = call(method)
    assert retried(one, answer(one, 503))
    assert retried(call(method), httpx.ReadTimeout(""))


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "PROPFIND", "LOCK"])
def test_other_methods_are_not_retried(method: str) -> None:
    """POST and PATCH above all: what they did is not known."""
    one = call(method)
    assert not retried(one, answer(one, 503))
    assert not retried(call(method), httpx.ReadTimeout(""))


@pytest.mark.parametrize("method", ["POST", "PATCH", "PROPFIND"])
@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"])
def test_an_idempotency_key_makes_any_method_repeatable(method: str, name: str) -> None:
    """The caller's header says that the server will notice a repetition."""
    one = call(method, headers={name: '"8e03978e"'})
    assert retried(one, answer(one, 503))
    assert retried(one, httpx.ReadTimeout(""))


def test_a_policy_s_methods_replace_the_default() -> None:
    """POST where it is named, GET no longer where it isn't."""
    assert retried(call("POST", methods={"POST"}), httpx.ReadTimeout(""))
    assert not retried(call("GET", methods={"POST"}), httpx.ReadTimeout(""))


@pytest.mark.parametrize(
    ("inner", "again"), [("POST", False), ("GET", True)], ids=["a token's POST", "a GET"]
)
def test_the_request_that_failed_must_be_repeatable_too(inner: str, again: bool) -> None:
    """A POST that an auth flow sends for a GET is not repeated when its fate is unknown."""
    token = httpx.Request(inner, "https://auth.example.com/token")
    assert retried(call(), httpx.ReadTimeout("", request=token)) is again
    assert retried(call(), httpx.Response(503, request=token)) is again


def test_a_post_that_became_a_get_is_not_retried() -> None:
    """After a 303 the GET failed, but a retry would begin with the POST."""
    followed = httpx.Request("GET", "https://api.example.com/result")
    assert not retried(call("POST"), httpx.ReadTimeout("", request=followed))


def test_an_idempotency_key_of_the_failed_request_counts_for_it() -> None:
    """An auth flow may mark its own POST as repeatable."""
    token = httpx.Request("POST", "https://auth.example.com", headers={"Idempotency-Key": "1"})
    assert retried(call(), httpx.ReadTimeout("", request=token))


# --- statuses and exceptions ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [*range(100, 600), 999])
def test_the_default_statuses_are_those_of_the_table(status: int) -> None:
    """Seven of them, and no other."""
    one = call()
    assert retried(one, answer(one, status)) is (status in (104, 408, 429, 500, 502, 503, 504))


@pytest.mark.parametrize(
    ("exc", "again"),
    [
        (httpx.ConnectTimeout, True), (httpx.ReadTimeout, True), (httpx.WriteTimeout, True),
        (httpx.PoolTimeout, True), (httpx.ConnectError, True), (httpx.ReadError, True),
        (httpx.WriteError, True), (httpx.CloseError, True), (httpx.ProxyError, True),
        (httpx.LocalProtocolError, True), (httpx.RemoteProtocolError, True),
        (httpx.UnsupportedProtocol, False), (httpx.DecodingError, False),
        (httpx.TooManyRedirects, False), (httpx.InvalidURL, False), (httpx.CookieConflict, False),
        (ValueError, False), (OSError, False), (TimeoutError, False), (RuntimeError, False),
    ],
)  # fmt: skip
def test_the_default_exceptions_are_those_of_the_table(exc: type[Exception], again: bool) -> None:
    """Failures of the network and the protocol, never those of the program."""
    assert retried(call(), exc("why")) is again


@pytest.mark.parametrize("exc", [httpx.StreamConsumed(), httpx.ResponseNotRead()])
def test_misuse_is_not_retried(exc: Exception) -> None:
    """A consumed stream stays consumed."""
    assert not retried(call(), exc)


def test_subclasses_of_a_table_s_type_are_covered() -> None:
    """An exception of another transport that derives from httpx's is one of httpx's."""

    class TransportsOwn(httpx.ReadError):
        pass

    assert retried(call(), TransportsOwn(""))


def certificate() -> ssl.SSLCertVerificationError:
    return ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")


HOPELESS = [
    chain(certificate(), httpcore.ConnectError("x"), httpx.ConnectError("x")),
    chain(certificate(), httpcore.ConnectError("x"), httpx.ConnectError("x"), cause=False),
    chain(certificate(), httpx.ConnectError("x")),
    chain(certificate(), OSError(), ValueError(), httpx.ReadError("x"), cause=False),
    chain(
        h11.LocalProtocolError("Illegal header value b'a\\n'"),
        httpcore.LocalProtocolError("x"),
        httpx.LocalProtocolError("x"),
    ),
    httpx.ProxyError("407 Proxy Authentication Required"),
    chain(httpcore.ProxyError("407"), httpx.ProxyError("407")),
]


@pytest.mark.parametrize("exc", HOPELESS)
def test_hopeless_failures_are_not_retried(exc: Exception) -> None:
    """No repetition makes a certificate valid, a header legal, or a password known."""
    assert not retried(call(), exc)
    assert not notes(exc)


HOPEFUL = [
    chain(ssl.SSLEOFError(8, "EOF"), httpcore.ConnectError("x"), httpx.ConnectError("x")),
    chain(ssl.SSLError(1, "WRONG_VERSION"), httpcore.ConnectError("x"), httpx.ConnectError("x")),
    chain(ConnectionResetError(), httpcore.ReadError("x"), httpx.ReadError("x")),
    chain(
        h11.RemoteProtocolError("illegal status line"),
        httpcore.RemoteProtocolError("x"),
        httpx.RemoteProtocolError("x"),
    ),
    chain(
        h2.exceptions.InvalidBodyLengthError(10, 5),
        httpcore.LocalProtocolError("x"),
        httpx.LocalProtocolError("x"),
    ),
    httpx.ProxyError("503 Service Unavailable"),
    httpx.ProxyError("502 after 407 ms"),
    httpx.ConnectError("407"),
]


@pytest.mark.parametrize("exc", HOPEFUL)
def test_failures_that_only_look_hopeless_are_retried(exc: Exception) -> None:
    """TLS that was cut short, a broken peer, a proxy in trouble: all may pass."""
    assert retried(call(), exc)


def test_should_retry_may_hope_where_we_do_not() -> None:
    """An explicit True is the caller's decision."""
    assert retried(call(should_retry=lambda request, outcome: True), HOPELESS[0])


def test_a_circle_of_causes_ends() -> None:
    """Exceptions that name each other as cause exist; the look along the chain must end."""
    first, second = httpx.ReadError("1"), httpx.ReadError("2")
    first.__cause__, second.__cause__ = second, first
    assert retried(call(), first)


def test_a_raise_for_status_counts_as_its_response() -> None:
    """A response hook that calls raise_for_status() doesn't switch retries off."""
    one = call()
    failure = answer(one, 503, Retry_After="7")
    failed = one.after(raised_for(failure), 0.5)
    assert failed is not None
    assert failed.outcome is failure
    assert (failed.delay, failed.reason) == (7.0, "503 Service Unavailable")
    assert not retried(call(), raised_for(answer(one, 404)))


def raised_for(response: httpx.Response) -> httpx.HTTPStatusError:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    return caught.value


# --- live tables ----------------------------------------------------------------------------------


def test_a_status_that_is_added_or_removed_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default table is live, for policies and calls that exist already."""
    one = call()
    assert not retried(one, answer(one, 418))
    monkeypatch.setitem(RETRIABLE_STATUS_CODES, 418, "I'm a teapot")
    assert retried(one, answer(one, 418))
    monkeypatch.delitem(RETRIABLE_STATUS_CODES, 503)
    assert not retried(one, answer(one, 503))


def test_an_exception_that_is_added_or_removed_counts_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same for the table of exceptions."""
    one = call()
    assert not retried(one, KeyError())
    monkeypatch.setitem(HTTPX_EXCEPTIONS, LookupError, "an own one")
    assert retried(one, KeyError())
    monkeypatch.delitem(HTTPX_EXCEPTIONS, httpx.ProxyError)
    assert not retried(one, httpx.ProxyError("503"))


def test_a_finished_client_follows_the_live_table(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    """The fast path of `send()` looks at the same table."""
    attempts = []

    def handler(request: httpx.Request) -> httpx.Response:
        attempts.append(request.extensions["attempt"])
        return httpx.Response(418)

    with ProductionHTTPClient(transport=httpx.MockTransport(handler), max_attempts=2) as client:
        client.get("http://x")
        monkeypatch.setitem(RETRIABLE_STATUS_CODES, 418, "I'm a teapot")
        client.get("http://x")
        monkeypatch.delitem(RETRIABLE_STATUS_CODES, 418)
        client.get("http://x")
    assert attempts == [0, 0, 1, 0]


def test_an_own_container_changes_one_policy() -> None:
    """Neither the tables nor another policy hear of it."""
    own = {"status_codes": {418}, "exceptions": [KeyError]}
    one = call(**own)
    assert retried(one, answer(one, 418))
    assert retried(one, KeyError())
    assert not retried(one, answer(one, 503))
    assert not retried(call(**own), httpx.ReadTimeout(""))
    assert not retried(call(), answer(one, 418))
    assert 418 not in RETRIABLE_STATUS_CODES


def test_an_own_container_may_be_live_too() -> None:
    """What a policy was given is asked each time, not copied."""
    statuses: set[int] = set()
    one = call(status_codes=statuses)
    assert not retried(one, answer(one, 418))
    statuses.add(418)
    assert retried(one, answer(one, 418))


@pytest.mark.parametrize("entry", ["ReadTimeout", None, int, KeyboardInterrupt, ValueError("x")])
def test_a_live_table_that_holds_no_exception_type_is_a_clear_error(
    entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put in after the policy was made, it is found by the next exception, and named."""
    one = call()
    monkeypatch.setitem(HTTPX_EXCEPTIONS, entry, "wrong")
    with pytest.raises(TypeError, match="exceptions must hold exception types, not ") as caught:
        one.after(httpx.ReadTimeout(""), 0.5)
    assert repr(entry) in str(caught.value)


def test_an_error_of_the_caller_s_own_is_no_outcome(records: list[logging.LogRecord]) -> None:
    """What backoff, should_retry or a broken table raise passes, without story or attempt."""

    def broken(attempt: int) -> float:
        raise httpx.ReadError("not from the network")

    one = call(backoff=broken)
    with pytest.raises(httpx.ReadError) as caught:
        one.after(answer(one, 503), 0.5)
    assert one.after(caught.value, 0.6) is None
    assert not notes(caught.value)
    assert one.retries == ()
    assert records == []


# --- attempts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5, 9])
def test_max_attempts_includes_the_first(limit: int) -> None:
    """N attempts mean N-1 retries."""
    one = call(max_attempts=limit)
    answers = [retried(one, answer(one, 503)) for _ in range(limit)]
    assert answers == [True] * (limit - 1) + [False]


def test_each_call_counts_for_itself() -> None:
    """Nothing is counted on a policy that calls share."""
    policy = RetryPolicy(max_attempts=2, **QUIET)
    for _ in range(3):
        one = Call(httpx.Request("GET", URL), policy, 0.0)
        assert retried(one, answer(one, 503))
        assert not retried(one, answer(one, 503))


# --- waits ----------------------------------------------------------------------------------------


@given(st.integers(min_value=0, max_value=5))
def test_the_backoff_lies_between_its_bounds(attempt: int) -> None:
    """0.8 to 1.0 before the second attempt, 6.4 to 8.0 before the fifth."""
    assert 0.8 * 2**attempt <= jittered_backoff(attempt) <= 2**attempt


@given(st.one_of(st.integers(7, 10_000), st.integers(7, 10**400)))
def test_the_backoff_has_a_cap_and_no_overflow(attempt: int) -> None:
    """At any n, however large, it is a minute."""
    assert jittered_backoff(attempt) == 60.0


def test_the_backoff_s_jitter_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """`uniform(0.8, 1.0) * 2**n`, then the cap: 51.2 to 60 before the eighth attempt."""
    monkeypatch.setattr(retry, "uniform", lambda low, high: (low, high) == (0.8, 1.0) and 0.9)
    delays = [jittered_backoff(attempt) for attempt in range(8)]
    assert delays == pytest.approx([0.9, 1.8, 3.6, 7.2, 14.4, 28.8, 57.6, 60.0])


@pytest.mark.parametrize(
    ("result", "delay"),
    [
        (0, 0.0), (0.0, 0.0), (-0.0, 0.0), (5, 5.0), (0.25, 0.25), (3600, 3600.0),
        (-1, 0.0), (-math.inf, 0.0), (math.nan, 0.0), (-(10**400), 0.0),
        (86_401, 86_400.0), (math.inf, 86_400.0), (1e300, 86_400.0),
        pytest.param(10**400, 86_400.0, id="huge"),
    ],
)  # fmt: skip
def test_a_backoff_s_result_is_clamped(result: float, delay: float) -> None:
    """To what sleep() can sleep: finite, not negative, at most a day."""
    one = call(backoff=lambda attempt: result)
    failed = one.after(answer(one, 503), 0.5)
    assert failed is not None
    assert failed.delay == delay
    assert isinstance(failed.delay, float)


@pytest.mark.parametrize("result", [None, "1", True, [1], 1j, object()])
def test_a_backoff_that_gives_no_number_is_a_clear_error(result: Any) -> None:
    """The message names the call and what came of it."""
    one = call(backoff=lambda attempt: result)
    with pytest.raises(TypeError) as caught:
        one.after(answer(one, 503), 0.5)
    assert str(caught.value) == f"backoff(0) must return seconds, not {result!r}"


def test_the_backoff_is_given_the_attempt_from_0() -> None:
    """And is asked once per retry, not for the last attempt."""
    asked: list[int] = []
    one = call(max_attempts=4, backoff=lambda attempt: asked.append(attempt) or 0.0)
    while retried(one, answer(one, 503)):
        pass
    assert asked == [0, 1, 2]


def test_the_backoff_is_not_asked_when_nothing_is_due() -> None:
    """Cheap checks come first; the caller's code comes last."""

    def never(attempt: int) -> float:
        raise AssertionError

    for one in (call("POST", backoff=never), call(max_attempts=1, backoff=never)):
        assert not retried(one, answer(one, 503))
    one = call(backoff=never)
    assert not retried(one, answer(one, 404))
    assert retried(one, answer(one, 503, Retry_After="1"))


def test_an_exception_waits_for_the_backoff() -> None:
    """The Retry-After of an earlier response is stale."""
    one = call()
    first, second = (
        one.after(answer(one, 503, Retry_After="7"), 0),
        one.after(httpx.ReadError(""), 8),
    )
    assert first is not None
    assert second is not None
    assert (first.delay, second.delay) == (7.0, 1.0)


# --- deadline and Retry-After ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed", "again"), [(0.0, True), (8.99, True), (9.0, False), (9.5, False), (11.0, False)]
)
def test_a_wait_that_would_end_after_the_deadline_is_not_begun(elapsed: float, again: bool) -> None:
    """The response in hand is returned at once instead."""
    one = call(total_timeout=10)
    assert retried(one, answer(one, 503), elapsed) is again


@pytest.mark.parametrize(
    ("elapsed", "again"), [(0.0, True), (9.98, True), (9.995, False), (10.0, False), (99.0, False)]
)
def test_an_exception_at_the_deadline_is_final(elapsed: float, again: bool) -> None:
    """Whatever phase ran out, it was total_timeout; even should_retry can't change that."""
    for should_retry in (None, lambda request, outcome: True):
        one = call(total_timeout=10, backoff=lambda attempt: 0.0, should_retry=should_retry)
        exc = httpx.ReadTimeout("")
        assert retried(one, exc, elapsed) is again
        assert again or notes(exc)[0].endswith("not retried: total_timeout (10 s) ran out")


@pytest.mark.parametrize(
    ("asked", "left", "delay"),
    [
        ("7", 100.0, 7.0), ("7", 7.1, 7.0), ("7", 7.0, None), ("7", 2.0, None),
        ("50", 100.0, 50.0), ("51", 100.0, None), ("0", 100.0, 1.0), ("soon", 100.0, 1.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 100.0, 1.0), ("9" * 5000, 100.0, None),
    ],
)  # fmt: skip
def test_a_retry_after_is_obeyed_or_the_call_ends(
    asked: str, left: float, delay: float | None
) -> None:
    """Never earlier than asked, never longer than max_retry_after, never into the deadline."""
    one = call(total_timeout=left + 0.5, max_retry_after=50)
    failed = one.after(answer(one, 429, Retry_After=asked), 0.5)
    assert (failed and failed.delay) == delay


@pytest.mark.parametrize(
    "limits",
    [{"max_retry_after": 1}, {"total_timeout": 3}, {"max_attempts": 1}],
    ids=["Retry-After too long", "beyond the deadline", "attempts"],
)
def test_a_response_that_was_given_up_is_final_though_its_body_breaks(
    limits: dict[str, Any], records: list[logging.LogRecord]
) -> None:
    """Else the server would be asked again earlier than it asked for, and the story told twice."""
    one = call(**limits)
    assert not retried(one, answer(one, 503, Retry_After="7"))
    told = len(records)
    broken = httpx.ReadError("while the 503 was read")
    assert not retried(one, broken)
    assert len(records) == told
    assert notes(broken) == [record.getMessage() for record in records[-1:]]
    assert broken.request is one.request


def test_a_good_response_whose_body_breaks_is_retried() -> None:
    """It was no failure before, so nothing was decided against a retry."""
    one = call()
    assert not retried(one, answer(one, 200))
    assert retried(one, httpx.ReadError("while the 200 was read"))


def test_a_backoff_is_not_bound_by_max_retry_after() -> None:
    """That limit is the server's, not the caller's own."""
    one = call(max_retry_after=0, backoff=lambda attempt: 500.0)
    failed = one.after(answer(one, 503), 0.5)
    assert failed is not None
    assert failed.delay == 500.0


# --- should_retry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [200, 404, 503])
def test_should_retry_decides_instead_of_methods_and_tables(method: str, status: int) -> None:
    """True retries a POST and a 404, False ends a GET's 503, None asks the tables."""
    yes = call(method, should_retry=lambda request, outcome: True)
    assert retried(yes, answer(yes, status))
    no = call(method, should_retry=lambda request, outcome: False)
    assert not retried(no, answer(no, status))
    open_ = call(method, should_retry=lambda request, outcome: None)
    assert retried(open_, answer(open_, status)) is (method == "GET" and status == 503)


def test_should_retry_is_given_the_request_and_the_outcome() -> None:
    """The caller's own request; for raise_for_status() the response, as everywhere."""
    seen: list[tuple[httpx.Request, Outcome]] = []
    one = call(should_retry=lambda request, outcome: seen.append((request, outcome)))
    failure, exc = answer(one, 404), KeyError()
    for outcome in (failure, exc, raised_for(failure)):
        one.after(outcome, 0.5)
    assert seen == [(one.request, failure), (one.request, exc), (one.request, failure)]


@pytest.mark.parametrize("exc", [httpx.ReadTimeout(""), KeyError()])
def test_should_retry_decides_on_exceptions(exc: Exception) -> None:
    """Those that the table covers, and those that it doesn't."""
    assert retried(call(should_retry=lambda request, outcome: True), exc)
    assert not retried(call(should_retry=lambda request, outcome: False), exc)


def test_should_retry_does_not_lift_the_limits() -> None:
    """Attempts, deadline, Retry-After, budget and an unrepeatable body still bind."""
    yes: dict[str, Any] = {"should_retry": lambda request, outcome: True}
    limited = [
        call(max_attempts=1, **yes),
        call(total_timeout=1, **yes),
        call(max_retry_after=0.1, **yes),
        call(budget=RetryBudget(burst=0), **yes),
        unrepeatable(call("PUT", **yes)),
    ]
    for one in limited:
        assert not retried(one, answer(one, 503, Retry_After="1"), 0.5)


@pytest.mark.parametrize("result", [0, 1, "", "yes", [], object(), NotImplemented, 0.0])
def test_should_retry_that_gives_no_answer_is_a_clear_error(result: Any) -> None:
    """True, False or None; a truthy or falsy something is a mistake, not a decision."""
    one = call(should_retry=lambda request, outcome: result)
    with pytest.raises(TypeError, match="should_retry must return True, False or None, not "):
        one.after(answer(one, 404), 0.5)


@pytest.mark.filterwarnings("ignore:coroutine.*was never awaited:RuntimeWarning")
def test_an_async_should_retry_is_a_clear_error() -> None:
    """It is a plain function in both clients; a coroutine is no answer."""

    async def should_retry(request: httpx.Request, outcome: Outcome) -> bool:
        return False

    with pytest.raises(TypeError, match="should_retry must"):
        retried(call(should_retry=should_retry), httpx.ReadTimeout(""))
    gc.collect()  # the coroutine warns here, not in the next test


# --- bodies ---------------------------------------------------------------------------------------


class Stream(httpx.SyncByteStream):
    """A body that says whether it can be sent again."""

    def __init__(self, replayable: bool) -> None:
        self.replayable = replayable

    def __iter__(self) -> Iterator[bytes]:
        yield b"x"


def unrepeatable(one: Call) -> Call:
    one.request.stream = Stream(replayable=False)
    return one


@pytest.mark.parametrize("replayable", [True, False])
def test_a_body_that_can_not_be_sent_again_is_not(replayable: bool) -> None:
    """The caller gets the true outcome, and the note says why it was not retried."""
    one = call("PUT")
    one.request.stream = Stream(replayable)
    exc = httpx.ReadError("")
    assert retried(one, exc) is replayable
    assert replayable or notes(exc)[0].endswith("not retried: the request body can't be sent again")


def test_a_stream_that_says_nothing_is_repeated() -> None:
    """httpx's own streams in memory know nothing of replaying."""
    assert retried(call("PUT"), httpx.ReadError(""))


# --- budget ---------------------------------------------------------------------------------------


def test_an_empty_budget_ends_the_call() -> None:
    """Asked last: no token is taken for a retry that other limits forbid."""
    budget = RetryBudget(burst=1, ratio=0)
    for one in (call("POST", budget=budget), call(total_timeout=1, budget=budget)):
        assert not retried(one, answer(one, 503))
    one = call(budget=budget)
    assert retried(one, answer(one, 503))
    exc = httpx.ReadTimeout("")
    assert not retried(one, exc, 2.0)
    assert notes(exc)[0].endswith("503, ReadTimeout; not retried: retry budget empty")


# --- what the caller gets -------------------------------------------------------------------------


def test_the_history_is_in_the_last_response() -> None:
    """A tuple of FailedAttempt, in order, and the same in the request while the call goes on."""
    one = call(max_attempts=3)
    outcomes: list[Outcome] = [answer(one, 503), httpx.ConnectError("x"), answer(one, 500)]
    failed = [one.after(outcome, 0.5) for outcome in outcomes]
    final = outcomes[2]
    assert isinstance(final, httpx.Response)
    assert final.extensions["retries"] == tuple(failed[:2]) == one.retries
    assert [each.attempt for each in one.retries] == [0, 1]
    assert [each.outcome for each in one.retries] == outcomes[:2]
    assert [each.reason for each in one.retries] == ["503 Service Unavailable", "ConnectError"]
    assert [each.delay for each in one.retries] == [1.0, 1.0]
    assert all(each.request is one.request for each in one.retries)
    assert one.request.extensions["retries"] == one.retries


def test_the_history_is_in_the_last_exception_s_request() -> None:
    """The exception's own request, be it the caller's or a redirect's; else the caller's."""
    followed = httpx.Request("GET", "https://elsewhere.example.com")
    for exc, bearer in ((httpx.ReadError("", request=followed), followed), (KeyError(), None)):
        one = call()
        assert retried(one, answer(one, 503))
        assert not retried(one, httpx.DecodingError("", request=followed) if bearer else exc)
        assert (bearer or one.request).extensions["retries"] == one.retries != ()


def test_an_exception_with_a_foreign_request_is_no_trouble() -> None:
    """`exc.request` of another library is anything, and of httpx's own may be missing."""

    class Foreign(Exception):
        request = "GET /"

    one = call(exceptions=[Foreign, httpx.ReadError])
    assert retried(one, Foreign())
    assert retried(one, httpx.ReadError("without a request"))
    assert not retried(one, ValueError())
    assert one.request.extensions["retries"] == one.retries


def test_an_exception_of_httpx_s_without_a_request_is_given_the_call_s() -> None:
    """A hook may have raised it: the history is where it always is. Others are left alone."""
    one, by_hand, foreign = call(), httpx.DecodingError("by hand"), KeyError()
    assert retried(one, answer(one, 503))
    assert not retried(one, by_hand)
    assert by_hand.request is one.request
    assert by_hand.request.extensions["retries"] == one.retries != ()
    assert not retried(call(), foreign)
    assert vars(foreign) == {}


def test_a_success_at_once_has_no_history() -> None:
    """An empty tuple, no note and no record."""
    one = call()
    response = answer(one, 200)
    assert one.after(response, 0.5) is None
    assert response.extensions["retries"] == ()


def test_a_failed_attempt_keeps_no_traceback() -> None:
    """Its frames would keep bodies and sockets alive; the chain is kept, without them."""
    exc = chain(OSError("reset"), httpcore.ReadError("x"), httpx.ReadError("x"))
    failed = call().after(exc, 0.5)
    assert failed is not None
    assert failed.outcome is exc
    link: BaseException | None = exc
    while link is not None:
        assert link.__traceback__ is None
        link = link.__cause__
    assert isinstance(exc.__cause__.__cause__, OSError)


def test_the_last_exception_keeps_its_traceback() -> None:
    """It is re-raised, and its traceback says where."""
    exc = chain(OSError("reset"), httpx.ReadError("x"))
    assert not retried(call(max_attempts=1), exc)
    assert exc.__traceback__ is not None
    assert exc.__cause__.__traceback__ is not None


# --- notes and log records ------------------------------------------------------------------------


def story(one: Call, *outcomes: Outcome) -> list[str]:
    """The notes of the last outcome, after all of them, each 3.1 s after the one before."""
    for number, outcome in enumerate(outcomes, 1):
        one.after(outcome, 3.1 * number)
    return notes(outcomes[-1]) if isinstance(outcomes[-1], Exception) else []


def test_the_note_tells_the_story() -> None:
    """Method, URL without secrets, attempts, time, and what became of each."""
    one = call()
    busy = [answer(one, 503) for _ in range(3)]
    assert story(one, busy[0], httpx.ReadTimeout(""), *busy[1:], httpx.ConnectError("")) == [
        (
            f"gave up on GET {SHOWN} after 5 attempts in 15.5 s: "
            "503, ReadTimeout, 503, 503, ConnectError"
        )
    ]


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (
            call("POST"),
            "POST is not one of the policy's methods, and the request has no Idempotency-Key",
        ),
        (unrepeatable(call("PUT")), "the request body can't be sent again"),
        (call(total_timeout=3.1), "total_timeout (3.1 s) ran out"),
        (call(total_timeout=4), "a wait of 1.0 s would end after total_timeout (4 s)"),
        (call(budget=RetryBudget(burst=0)), "retry budget empty"),
    ],
)
def test_the_note_says_why_a_due_retry_was_not_made(one: Call, why: str) -> None:
    """The first question of everybody who wonders."""
    assert story(one, httpx.ReadTimeout("")) == [
        (
            f"gave up on {one.request.method} {SHOWN} after 1 attempt in 3.1 s: ReadTimeout; "
            f"not retried: {why}"
        )
    ]


def test_a_raise_for_status_carries_the_note() -> None:
    """A Retry-After that is too long, told on the exception that a response hook raised."""
    one = call()
    assert story(one, answer(one, 500), raised_for(answer(one, 429, Retry_After="301"))) == [
        (
            f"gave up on GET {SHOWN} after 2 attempts in 6.2 s: 500, 429; "
            "not retried: Retry-After is longer than max_retry_after (300 s)"
        )
    ]


@pytest.mark.parametrize(
    ("one", "exc"),
    [
        (call(), ValueError()),
        (call(max_attempts=1), httpx.ReadTimeout("")),
        (call(should_retry=lambda request, outcome: False), httpx.ReadTimeout("")),
    ],
    ids=["not covered", "never retry", "final"],
)
def test_no_story_where_no_retry_was_due(
    one: Call, exc: Exception, records: list[logging.LogRecord]
) -> None:
    """A plain failure stays as plain as in httpx."""
    assert story(one, exc) == []
    assert records == []


def test_a_retry_is_logged_at_info(records: list[logging.LogRecord]) -> None:
    """Attempt counted from 1 for people, from 0 for machines."""
    one = call()
    one.after(answer(one, 503), 0.5)
    (record,) = records
    assert (record.name, record.levelno) == ("httpx_production", logging.INFO)
    assert record.getMessage() == (
        f"503 Service Unavailable on attempt 1 of 5 of GET {SHOWN}, retrying in 1.00 s"
    )
    assert (
        vars(record).items()
        >= {
            "http_method": "GET",
            "http_url": SHOWN,
            "attempt": 0,
            "reason": "503 Service Unavailable",
            "delay": 1.0,
        }.items()
    )


def test_giving_up_after_retries_is_a_warning(records: list[logging.LogRecord]) -> None:
    """For a response too, which carries no note."""
    one = call(max_attempts=2)
    story(one, httpx.ReadTimeout(""), answer(one, 503))
    record = records[-1]
    assert record.levelno == logging.WARNING
    assert (
        record.getMessage() == f"gave up on GET {SHOWN} after 2 attempts in 6.2 s: ReadTimeout, 503"
    )
    assert (
        vars(record).items()
        >= {
            "http_method": "GET",
            "http_url": SHOWN,
            "attempt": 1,
            "reason": "503 Service Unavailable",
            "delay": None,
        }.items()
    )


def test_a_post_that_is_not_retried_is_everyday(records: list[logging.LogRecord]) -> None:
    """At INFO: nothing is wrong with the policy; what was prevented otherwise is a warning."""
    one = call("POST")
    story(one, answer(one, 503))
    story(unrepeatable(call("PUT")), httpx.ReadTimeout(""))
    assert [record.levelno for record in records] == [logging.INFO, logging.WARNING]
    assert records[0].getMessage() == (
        f"gave up on POST {SHOWN} after 1 attempt in 3.1 s: 503; "
        "not retried: POST is not one of the policy's methods, "
        "and the request has no Idempotency-Key"
    )


def test_a_token_s_post_that_ends_a_retried_call_is_a_warning(
    records: list[logging.LogRecord],
) -> None:
    """There were retries, so somebody should look."""
    one = call()
    token = httpx.Request("POST", "https://auth.example.com/token")
    story(one, answer(one, 503), httpx.ReadTimeout("", request=token))
    assert records[-1].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("status", "reason"), [(503, "503 Service Unavailable"), (599, "599"), (999, "999")]
)
def test_the_reason_is_in_our_own_words(status: int, reason: str) -> None:
    """A server's reason phrase could forge a log line, or hold a secret."""
    one = call(status_codes={status})
    forged = httpx.Response(
        status, extensions={"reason_phrase": b"OK\nFORGED"}, request=one.request
    )
    failed = one.after(forged, 0.5)
    assert failed is not None
    assert failed.reason == reason


def test_percent_signs_are_no_format(records: list[logging.LogRecord]) -> None:
    """A path with escapes is logged as it is."""
    one = call(url="https://example.com/a%20b/%25s/%d")
    one.after(answer(one, 503), 0.5)
    assert "GET https://example.com/a%20b/%25s/%d," in records[0].getMessage()


SECRETS = ("pa55word", "user", "SECRET")


def secret_call(**policy: Any) -> Call:
    """A request that is full of secrets, with an outcome's worth of more."""
    one = call("PUT", **policy)
    one.request = httpx.Request(
        "PUT",
        URL,
        headers={"Authorization": "Bearer SECRET", "Idempotency-Key": "SECRET", "X-SECRET": "1"},
        cookies={"session": "SECRET"},
        content=b"SECRET",
    )
    return one


def secret_outcomes(one: Call) -> list[Outcome]:
    headers = {"Set-Cookie": "SECRET", "Location": "https://x/SECRET", "X": "SECRET"}
    response = httpx.Response(
        503, headers=headers, content=b"SECRET", request=one.request,
        extensions={"reason_phrase": b"SECRET"},
    )  # fmt: skip
    exc = chain(OSError("SECRET"), httpx.ReadTimeout("SECRET", request=one.request))
    return [response, exc, raised_for(response)]


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"max_attempts": 2},
        {"max_attempts": 3},
        {"methods": {"GET"}},
        {"total_timeout": 2},
        {"total_timeout": 0.5},
        {"budget": RetryBudget(burst=0)},
        {"should_retry": lambda request, outcome: False},
    ],
    ids=lambda one: ",".join(one) if isinstance(one, dict) else str(one),
)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_no_secret_is_in_anything_of_ours(
    policy: dict[str, Any], turn: int, records: list[logging.LogRecord]
) -> None:
    """Not in log records with all their fields, notes, repr or str, whatever the outcomes."""
    one = secret_call(**policy)
    outcomes = secret_outcomes(one)
    ours: list[Any] = [one, one.policy]
    for outcome in outcomes[turn:] + outcomes[:turn]:
        ours += [one.after(outcome, 0.5), one.retries]
        ours += notes(outcome) if isinstance(outcome, Exception) else []
    known = set(vars(logging.makeLogRecord({})))
    for record in records:
        ours += [record.getMessage(), record.exc_info, record.args]
        ours += [value for name, value in vars(record).items() if name not in known]
    shown = "\n".join([*map(repr, ours), *map(str, ours)])
    assert [secret for secret in SECRETS if secret in shown] == []


# --- any sequence of outcomes under any policy ----------------------------------------------------


def outcome_of(kind: int | type[Exception], headers: dict[str, str]) -> Callable[[Call], Outcome]:
    def make(one: Call) -> Outcome:
        if isinstance(kind, int):
            return httpx.Response(kind, headers=headers, request=one.request)
        return kind("")

    return make


OUTCOMES = st.builds(
    outcome_of,
    st.sampled_from(
        [200, 204, 301, 404, 418, 429, 500, 503, 504, httpx.ReadTimeout, httpx.ConnectError,
         httpx.RemoteProtocolError, httpx.DecodingError, ValueError]
    ),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {"Retry-After": st.sampled_from(["0", "1", "30", "301", "soon", "9" * 400])}
        ),
        st.fixed_dictionaries({"Retry-After-Ms": st.sampled_from(["1", "2500.5", "x"])}),
    ),
)  # fmt: skip

POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 7),
    total_timeout=st.one_of(st.none(), st.floats(0.001, 100)),
    methods=st.one_of(
        st.just(IDEMPOTENT), st.sets(st.sampled_from(["GET", "PUT", "POST", "PATCH"]))
    ),
    status_codes=st.one_of(
        st.just(RETRIABLE_STATUS_CODES), st.sets(st.sampled_from([200, 404, 418, 429, 503]))
    ),
    exceptions=st.one_of(
        st.just(HTTPX_EXCEPTIONS), st.sets(st.sampled_from([httpx.ReadTimeout, ValueError]))
    ),
    backoff=st.one_of(
        st.just(jittered_backoff), st.floats().map(lambda delay: lambda attempt: delay)
    ),
    max_retry_after=st.floats(0, 400),
    should_retry=st.one_of(
        st.none(), st.sampled_from([True, False, None]).map(lambda a: lambda request, outcome: a)
    ),
    budget=st.one_of(st.none(), st.builds(RetryBudget, burst=st.integers(0, 3))),
)


@given(
    policy=POLICIES,
    method=st.sampled_from(["GET", "PUT", "POST", "PATCH"]),
    headers=st.sampled_from([{}, {"Idempotency-Key": '"1"'}]),
    replayable=st.booleans(),
    steps=st.lists(st.tuples(OUTCOMES, st.floats(0, 20)), min_size=1, max_size=10),
)
def test_any_outcomes_under_any_policy_keep_the_rules(
    policy: RetryPolicy,
    method: str,
    headers: dict[str, str],
    replayable: bool,
    steps: list[tuple[Callable[[Call], Outcome], float]],
) -> None:
    """Attempts bounded, methods and bodies respected, waits in the deadline, history right."""
    request = httpx.Request(method, URL, headers=headers, content=b"x")
    request.stream = Stream(replayable)
    one, now = Call(request, policy, 100.0), 100.0
    history: list[FailedAttempt] = []
    final: Outcome | None = None
    for make, duration in steps:
        now += duration
        outcome = make(one)
        failed = one.after(outcome, now)
        if failed is None:
            final = outcome
            break
        history.append(failed)
        assert (failed.outcome, failed.attempt) == (outcome, len(history) - 1)
        assert 0 <= failed.delay < math.inf
        now += failed.delay
        assert policy.total_timeout is None or now < 100.0 + policy.total_timeout + 1e-9
    assert one.retries == tuple(history)
    assert len(history) < policy.max_attempts
    if history:
        assert replayable
        decided = policy.should_retry and policy.should_retry(request, httpx.Response(200))
        assert decided or method in policy.methods or headers
        assert decided is not False or policy.should_retry is None
        assert policy.budget is None or len(history) <= policy.budget.burst
    bearer = final if isinstance(final, httpx.Response) else request
    assert final is None or bearer.extensions["retries"] == one.retries
    if isinstance(final, Exception):
        assert len(notes(final)) <= 1
        assert not history or notes(final)


def test_a_derived_policy_decides_alike() -> None:
    """What `send()` looks at first follows `dataclasses.replace`."""
    policy = dataclasses.replace(RetryPolicy(status_codes={503}), status_codes={418})
    assert 418 in policy.suspects
    assert 503 not in policy.suspects
    asked = dataclasses.replace(policy, should_retry=lambda request, outcome: None)
    assert 200 in asked.suspects
    assert 200 not in dataclasses.replace(asked, should_retry=None).suspects
