"""The decision: is this outcome retried, after what delay, and if not, why not.

No I/O, no sleep, no thread, no clock but the date's: `client.py` sends and waits. All times are
seconds.
"""

from __future__ import annotations

import math
import re
import sys
from calendar import timegm
from collections.abc import Callable, Collection, Container, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property, partial
from inspect import ismethod
from itertools import pairwise
from random import uniform
from typing import TYPE_CHECKING, Any, Final

import httpx

from ._checks import (
    check_attempts,
    check_function,
    check_methods,
    check_returned,
    check_seconds,
    check_statuses,
    exception_types,
)

if TYPE_CHECKING:
    from ._budget import RetryBudget

#: What an attempt came to: the response, or the exception that was raised.
Outcome = httpx.Response | Exception

#: Statuses that are retried. Live: a key added or removed changes every client that uses the
#: default. 104 is Linux's errno ECONNRESET; as an HTTP status it is informational and never
#: arrives as a final one (a real reset arrives as ReadError or WriteError and is retried as such).
RETRIABLE_STATUS_CODES: Final[dict[int, str]] = {
    104: "Connection Reset",
    408: "Request Timeout",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

#: Exceptions that are retried, subclasses included, but for those that no repetition mends (see
#: RetryPolicy). Live, as above. Base classes are listed too: to take ReadTimeout out changes
#: nothing while TimeoutException stays.
HTTPX_EXCEPTIONS: Final[dict[type[Exception], str]] = {
    httpx.TimeoutException: "a phase took longer than its timeout",
    httpx.NetworkError: "the network failed while connecting, reading or writing",
    httpx.ConnectError: "no connection could be made",
    httpx.ConnectTimeout: "connecting took too long",
    httpx.ReadTimeout: "the response did not come in time",
    httpx.PoolTimeout: "no connection of the pool became free in time",
    httpx.LocalProtocolError: "the protocol's state was broken on our side",
    httpx.RemoteProtocolError: "the server closed the connection or broke the protocol",
    httpx.ProxyError: "the proxy could not make the connection",
}

#: Methods that may be repeated: RFC 9110, section 9.2.2, and QUERY (RFC 10008).
IDEMPOTENT_METHODS: Final = frozenset(["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"])
ALL_STATUS_CODES: Final = range(1000)
LONGEST_BACKOFF: Final = 60.0
LONGEST_DELAY: Final = 86_400.0  # what an infinite backoff means: sleep() refuses more than years


def jittered_backoff(attempt: int) -> float:
    """Return `uniform(0.8, 1.0) * 2**attempt` seconds, `attempt` counted from 0, at most 60.

    0.8 to 1.0 before the second attempt, 6.4 to 8.0 before the fifth.
    """
    return min(LONGEST_BACKOFF, uniform(0.8, 1.0) * 2.0 ** min(attempt, 1000))


# --- Retry-After (RFC 9110, sections 10.2.3 and 5.6.7) --------------------------------------------

_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"
_MONTH = rf"(?P<month>{'|'.join(re.findall('...', _MONTHS))})"
_DAY = r"(?P<day>\d\d)"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES: Final = (
    # IMF-fixdate, RFC 850 (with a year of two digits), asctime (always UTC)
    rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), {_DAY} {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
    rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, {_DAY}-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
    rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
)


def parse_retry_after(value: str, *, now: datetime | None = None) -> float | None:
    """Read a Retry-After value: delay-seconds or an HTTP-date in any of its three forms.

    A decimal fraction of a second counts too, and of several values, as httpx joins a repeated
    header's by commas, the one that is furthest off: better late than earlier than asked.

    Returns finite seconds >= 0 (a date in the past is 0), or None where there is neither; never
    raises. `now` is what a date counts from (the response's Date; a naive one is UTC), by default
    the current time. RFC 9110, section 10.2.3.
    """
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return None
    return _longest_delay(value, lambda: now or datetime.now(UTC))


def read_retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a response asks for: a policy's `retry_after` unless it has its own.

    retry-after-ms is read first, then Retry-After, where a date counts from the response's own
    Date: a wrong clock does no harm. None and 0 ask for nothing.
    """
    milliseconds = map(_number, response.headers.get("retry-after-ms", "").split(","))
    if longest := max(filter(None, milliseconds), default=None):
        return longest / 1000
    value = response.headers.get("retry-after", "")
    return _longest_delay(value, lambda: _date_of(response) or datetime.now(UTC))


def _longest_delay(value: str, now: Callable[[], datetime]) -> float | None:
    pieces = value.split(",")
    pairs = map(",".join, pairwise(pieces))  # a date has a comma of its own, asctime's has none
    dates = (_seconds_until(one.strip(" \t"), now) for one in [*pieces, *pairs])
    return max((d for d in [*map(_number, pieces), *dates] if d is not None), default=None)


def _number(text: str) -> float | None:
    """Read a plain decimal number; too large for a float is the largest finite one."""
    if re.fullmatch(r"[ \t]*\d+(\.\d+)?[ \t]*", text, re.ASCII) is None:
        return None
    return min(float(text), sys.float_info.max)


def _seconds_until(value: str, now: Callable[[], datetime]) -> float | None:
    if (match := _match_date(value)) is None:
        return None
    try:
        moment = now()
        return max(0.0, _timestamp(_read_date(match, moment)) - _timestamp(moment))
    except (ValueError, OverflowError):  # February 30, 25 o'clock; a clock at the end of time
        return None


def _date_of(response: httpx.Response) -> datetime | None:
    match = _match_date(response.headers.get("date", ""))
    try:
        return match and _read_date(match, datetime.now(UTC))
    except ValueError:
        return None


def _match_date(value: str) -> re.Match[str] | None:
    return next(filter(None, (re.fullmatch(form, value, re.ASCII) for form in _DATES)), None)


def _read_date(match: re.Match[str], now: datetime) -> datetime:
    year, month = int(match["year"]), _MONTHS.index(match["month"]) // 3 + 1
    day, hour, minute, second = map(int, match.group("day", "hour", "minute", "second"))
    if len(match["year"]) == 2:
        # RFC 9110 section 5.6.7: what seems more than 50 years ahead lies in the past.
        today = now.utctimetuple()[:6]
        year += (today[0] + 50) // 100 * 100
        if (year - 50, month, day, hour, minute, second) > today:
            year -= 100
    return _utc(year, month, day, hour, minute, second)


def _utc(year: int, month: int, day: int, hour: int, minute: int, second: int) -> datetime:
    """Make a date with pendulum, imported by the first one: it costs half as much as httpx.

    But not while a test has put a class of its own in the place of `datetime.datetime`, as
    freezegun does: pendulum's classes would inherit from it and stay broken in that process.
    """
    if "pendulum" not in sys.modules and _datetime_is_replaced():
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    import pendulum

    return pendulum.datetime(year, month, day, hour, minute, second, tz="UTC")


def _datetime_is_replaced() -> bool:
    from datetime import datetime as current

    return len(getattr(current, "__mro__", ())) != 3  # Python's own is a date, and an object


def _timestamp(moment: datetime) -> float:
    """Return seconds since 1970, a naive moment being UTC, by no method that a stand-in replaces.

    `timestamp()` fails where pendulum was imported under freezegun by somebody else.
    """
    return timegm(moment.utctimetuple()) + moment.microsecond / 1_000_000


# --- the policy -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a request is sent again. Immutable, hashable, to be shared between clients.

    Derive one with `dataclasses.replace(client.retry, max_attempts=2)`. For a single request,
    `extensions={"retry": {"max_attempts": 2}}` changes fields of its client's policy, and
    `extensions={"retry": policy}` replaces it. Copies and pickles follow the live tables too.

    Never repeated, whatever the tables say: a certificate that doesn't verify, the server's or
    ours, a request that is itself illegal, or that makes an HTTP/2 server take leave without
    reading it, a proxy that refuses the credentials or the tunnel (4xx but 408 and 429).

    Args:
        max_attempts: total attempts, the first included; at least 1, which means: never retry.
        attempt_timeout: seconds for one attempt as a whole, more than 0: pool, connect, send,
            redirects, auth, the body; None for no limit. What runs out may be retried.
        total_timeout: seconds for the whole call, more than 0: attempts, waits, redirects, auth,
            the body; None for no limit.
        methods: methods that may be repeated. Default: the idempotent ones of RFC 9110 section
            9.2.2, and QUERY (RFC 10008). A request with an Idempotency-Key header that isn't blank
            may be repeated with any method.
        status_codes: any container of statuses; default: RETRIABLE_STATUS_CODES, live.
        exceptions: any iterable of exception types, matched by isinstance; default:
            HTTPX_EXCEPTIONS, live.
        backoff: gives the seconds to wait after attempt n, counted from 0. NaN and negative
            results count as 0, more than a day as a day.
        retry_after: gives the seconds that a response asks to wait, instead of the backoff; None,
            NaN and whatever isn't above 0 leave it to the backoff. Default: what its
            retry-after-ms or Retry-After says (RFC 9110 section 10.2.3). Asked before the body is
            read (`.json()` raises httpx.ResponseNotRead), unless there is a should_retry, be it
            one that always says None.
        max_retry_after: seconds, at least 0; when more are asked for, the response is returned at
            once.
        retry_unsent: repeat with any method what provably never reached the server's application:
            no connection was made (ConnectError, ConnectTimeout, PoolTimeout, ProxyError), or
            HTTP/2 says so (REFUSED_STREAM, GOAWAY: RFC 9113 section 8.7). Not after a redirect.
        should_retry: asked with the request and its response or exception: True and False decide
            instead of methods and tables, None leaves it to them. Attempts, deadline, budget and
            a body that can't be repeated still bind. An error response's body is read before;
            with stream() only when it ends within 64 KiB and 0.25 s, else `.text` raises
            httpx.ResponseNotRead.
        budget: a RetryBudget that keeps retries a small share of the traffic.

    Raises:
        TypeError, ValueError: for an argument that makes no sense, naming it and its value.
    """

    max_attempts: int = 5
    attempt_timeout: float | None = None
    total_timeout: float | None = None
    methods: Collection[str] = IDEMPOTENT_METHODS
    status_codes: Container[int] = field(default_factory=lambda: RETRIABLE_STATUS_CODES, hash=False)
    exceptions: Iterable[type[Exception]] = field(
        default_factory=lambda: HTTPX_EXCEPTIONS, hash=False
    )
    backoff: Callable[[int], float] = jittered_backoff
    retry_after: Callable[[httpx.Response], float | None] = read_retry_after
    max_retry_after: float = 300.0
    retry_unsent: bool = False
    should_retry: Callable[[httpx.Request, Outcome], bool | None] | None = None
    budget: RetryBudget | None = None

    def __post_init__(self) -> None:
        check_attempts(self.max_attempts)
        check_seconds("attempt_timeout", self.attempt_timeout, zero=False)
        check_seconds("total_timeout", self.total_timeout, zero=False)
        check_seconds("max_retry_after", self.max_retry_after, optional=False)
        check_function("backoff", self.backoff)
        check_function("retry_after", self.retry_after)
        check_function("should_retry", self.should_retry, optional=True)
        if not isinstance(self.retry_unsent, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"retry_unsent must be True or False, not {self.retry_unsent!r}")
        if self.budget is not None and not ismethod(getattr(self.budget, "withdraw", None)):
            raise TypeError(f"budget must be a RetryBudget, not {self.budget!r}")
        exceptions = exception_types(self.exceptions)
        if hasattr(self.exceptions, "__next__"):  # an iterator, used up by the look at it
            object.__setattr__(self, "exceptions", exceptions)
        check_statuses(self.status_codes)
        object.__setattr__(self, "methods", check_methods(self.methods))

    @cached_property
    def suspects(self) -> Container[int]:
        """Statuses whose responses are looked at: for all others `send()` has nothing to ask."""
        nothing_else = self.should_retry is None and self.budget is None
        return self.status_codes if nothing_else else ALL_STATUS_CODES

    @cached_property
    def is_timed(self) -> bool:
        """Whether there is a deadline, for an attempt or for the call."""
        return self.attempt_timeout is not None or self.total_timeout is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._arguments()), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> RetryPolicy:
        """Copy the containers that are the policy's own; functions and budget are shared."""
        arguments = self._arguments()
        for name in arguments.keys() & {"status_codes", "exceptions"}:
            arguments[name] = deepcopy(arguments[name], memo)
        return type(self)(**arguments)

    def _arguments(self) -> dict[str, Any]:
        """Return what makes a policy like this one; a live table is what it has by default."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        live = {id(RETRIABLE_STATUS_CODES), id(HTTPX_EXCEPTIONS)}
        return {name: value for name, value in given.items() if id(value) not in live}

    def allows(self, request: httpx.Request, outcome: Outcome | None = None) -> bool:
        """Tell whether the request may be repeated at all, the outcome being what it is."""
        return (
            request.method in self.methods
            or bool(request.headers.get("Idempotency-Key", "").strip(_BLANK))
            or (self.retry_unsent and outcome is not None and never_sent(request, outcome))
        )

    def covers(self, outcome: Outcome, *, outer: BaseException | None = None) -> bool:
        """Tell whether an outcome is one of those that a further attempt may mend.

        `outer` is what the caller was handling before: no part of an exception's own story.
        """
        if isinstance(outcome, httpx.Response):
            return outcome.status_code in self.status_codes
        if not isinstance(outcome, exception_types(self.exceptions)):
            return False
        return not is_permanent(outcome, outer)

    def delay(self, attempt: int, outcome: Outcome) -> float:
        """Return the seconds to wait; infinity when more than max_retry_after are asked for."""
        if isinstance(outcome, httpx.Response):
            asked = self.retry_after(outcome)
            asked = check_returned("retry_after(response)", asked, optional=True)
            if asked > 0:  # NaN > 0 is False
                return float(asked) if asked <= self.max_retry_after else math.inf
        delay = check_returned(f"backoff({attempt})", self.backoff(attempt))
        return float(min(delay, LONGEST_DELAY)) if delay > 0 else 0.0


_BLANK: Final = ' \t,"'  # what a key without content consists of: `""` is an empty one's quotes


# --- what no repetition mends, and what was never sent --------------------------------------------


def exception_chain(
    exc: BaseException | None, outer: BaseException | None
) -> Iterable[BaseException]:
    """Yield an exception and what caused it, down to `outer`, which was there before."""
    seen: set[int] = {id(outer)}
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__context__ if exc.__cause__ is None else exc.__cause__


def is_permanent(exc: Exception, outer: BaseException | None) -> bool:
    """Tell failures that no repetition mends although their type is in the table.

    A certificate that doesn't verify, on either side, a request that is itself illegal or that the
    server refuses to read, a proxy that says no.
    """
    text, links = str(exc), tuple(exception_chain(exc, outer))
    if isinstance(exc, httpx.ProxyError) and _PROXY_REFUSES.match(text):
        return True
    if isinstance(exc, httpx.RemoteProtocolError) and text.startswith(_REFUSES_REQUEST):
        return True
    if isinstance(exc, httpx.NetworkError) and _REFUSES_CERTIFICATE.match(text):
        return True
    if isinstance(exc, httpx.LocalProtocolError) and (
        text.startswith("illegal request") or any(map(_refuses_request, links))
    ):
        return True
    return any(_kind(link) == "ssl.SSLCertVerificationError" for link in links)


# A proxy's 4xx to CONNECT, 407 above all (tinyproxy says 401), but not those that may pass. In
# SOCKS5, as httpcore words it: the credentials, the kind of authentication, the rules.
_PROXY_REFUSES: Final = re.compile(
    r"4(?!08|29)\d\d\b|Invalid username/password|Requested .* from proxy server, but got"
    r"|Proxy Server could not connect: (Connection not allowed|Command not|Address type not)"
)

# GOAWAY in answer to the one request of a new connection, as our own transport words it.
_REFUSES_REQUEST: Final = "the server refuses the request"
# The alert of a server that wants a client's certificate, or another one, as OpenSSL words it.
_REFUSES_CERTIFICATE: Final = re.compile(r"\[SSL: \w+_ALERT_(\w*CERTIFICATE\w*|UNKNOWN_CA)\]")

# "illegal request" is how our own transport begins. h11 and h2 have one class for a request that is
# illegal and for a state of their own that is broken, which another connection mends; of h2's
# exceptions the subclasses are all of the second kind.
_REFUSALS: Final = {"h11.LocalProtocolError", "h2.ProtocolError"}
_STATE_IS_BROKEN: Final = (
    "Can't send data when our state",
    "can't handle event",
    "not in a reusable state",
    "Invalid input ",
)


def _refuses_request(exc: BaseException) -> bool:
    return _kind(exc) in _REFUSALS and not str(exc).startswith(_STATE_IS_BROKEN)


def _kind(exc: BaseException) -> str:
    """Name a type by its package: this file imports nothing that does I/O."""
    return f"{type(exc).__module__.partition('.')[0]}.{type(exc).__name__}"


_UNCONNECTED: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
)
_NOT_PROCESSED: Final = (  # RFC 9113 section 8.7, as our own transport words it
    "the server refused the stream (REFUSED_STREAM)",
    "not processed: the server retired the connection",
)


def is_unsent(outcome: Outcome) -> bool:
    """Tell failures of which it is certain that the server's application never saw the request."""
    if isinstance(outcome, httpx.RemoteProtocolError):
        return str(outcome).startswith(_NOT_PROCESSED)
    return isinstance(outcome, _UNCONNECTED)


def never_sent(request: httpx.Request, outcome: Outcome) -> bool:
    """Tell whether it was this request that never got there, and not one that followed from it.

    A POST whose answer was a redirect has been there. (A 307 to itself, or a 401 that an auth flow
    answers, leads to the same method and URL again, but it says that nothing was done.)
    """
    if not (isinstance(outcome, httpx.RequestError) and is_unsent(outcome)):
        return False
    try:
        failed = outcome.request
    except RuntimeError:  # raised by hand: by a response hook, say. A transport's always has one
        return False
    return (failed.method, failed.url) == (request.method, request.url)
