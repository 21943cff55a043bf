"""The decision: is this outcome retried, after what delay, and if not, why not.

No I/O, no sleep, no thread, no clock but the date's: `client.py` sends and waits. All times are
seconds.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from inspect import ismethod
from random import uniform
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    import pendulum

    from ._budget import RetryBudget

logger: logging.Logger = logging.getLogger("httpx_production")

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

#: Exceptions that are retried, subclasses included. Live, as above.
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

IDEMPOTENT_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
ALL_STATUS_CODES: Final = range(1000)
LONGEST_BACKOFF: Final = 60.0
LONGEST_TIMEOUT: Final = 2_147_483  # poll() takes milliseconds as an int: more would wrap around
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

    Returns finite seconds >= 0 (a date in the past is 0), or None for whatever is neither; never
    raises. `now` is what a date counts from (the response's Date; a naive one is UTC), by default
    the current time.
    """
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return None
    value = value.strip(" \t")
    if value.isascii() and value.isdigit():
        return min(float(value), sys.float_info.max)
    now = now or datetime.now(UTC)
    now = now if now.tzinfo else now.replace(tzinfo=UTC)
    date = _http_date(value, now)
    return None if date is None else max(0.0, date.timestamp() - now.timestamp())


def _match_date(value: str) -> re.Match[str] | None:
    return next(filter(None, (re.fullmatch(form, value, re.ASCII) for form in _DATES)), None)


def _http_date(value: str, now: datetime) -> pendulum.DateTime | None:
    if (match := _match_date(value)) is None:
        return None
    import pendulum  # costs half as much as httpx itself: imported when the first date arrives

    year, month = int(match["year"]), _MONTHS.index(match["month"]) // 3 + 1
    day, hour, minute, second = map(int, match.group("day", "hour", "minute", "second"))
    try:
        if len(match["year"]) == 2:
            # RFC 9110 section 5.6.7: what seems more than 50 years ahead lies in the past.
            today = now.astimezone(UTC)
            year += (today.year + 50) // 100 * 100
            ahead = (year - 50, month, day, hour, minute, second) > today.timetuple()[:6]
            year -= 100 * ahead
        return pendulum.datetime(year, month, day, hour, minute, second, tz="UTC")
    except (ValueError, OverflowError):  # February 30, 25 o'clock; a clock at the end of time
        return None


def _requested_delay(response: httpx.Response) -> float | None:
    """Return the seconds that the server asks for, or None; zero and the past ask for nothing."""
    milliseconds = response.headers.get("retry-after-ms", "")
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds, re.ASCII) and float(milliseconds):
        return min(float(milliseconds), sys.float_info.max) / 1000
    value = response.headers.get("retry-after", "").strip(" \t")
    sent = None
    if _match_date(value):  # counted from the response's own Date, a wrong clock does no harm
        sent = _http_date(response.headers.get("date", ""), datetime.now(UTC))
    return parse_retry_after(value, now=sent) or None


# --- the policy -----------------------------------------------------------------------------------


def seconds(name: str, value: Any, *, optional: bool = True, zero: bool = True) -> None:
    """Raise unless `value` is a finite number of seconds, or None where that means "no limit"."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " or None" if optional else ""
        raise TypeError(f"{name} must be a number of seconds{hint}, not {value!r}")
    if not 0 <= value <= LONGEST_TIMEOUT or (value == 0 and not zero):
        hint = "; None means: no limit" if optional else ""
        least = f"{'at least' if zero else 'more than'} 0 and at most {LONGEST_TIMEOUT}"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}{hint}")


def _items(name: str, value: Any, example: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        raise TypeError(f"{name} must be a collection such as {example}, not {value!r}")
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a collection such as {example}, not {value!r}") from None


def _check_methods(methods: Any) -> frozenset[str]:
    names = _items("methods", methods, '{"GET", "PUT"}')
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"methods must hold strings, not {name!r}")
    return frozenset(name.upper() for name in names)


def _check_statuses(statuses: Any) -> None:
    if not hasattr(statuses, "__contains__") or isinstance(statuses, str | bytes):
        raise TypeError(f"status_codes must be a container such as {{429, 503}}, not {statuses!r}")
    for status in statuses if hasattr(statuses, "__iter__") else ():
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"status_codes must hold whole numbers, not {status!r}")


def _exception_types(exceptions: Any) -> tuple[type[Exception], ...]:
    """Return the types that a table holds at this moment; it may have been changed since."""
    types = _items("exceptions", exceptions, "[httpx.ReadTimeout]")
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"exceptions must hold exception types, not {kind!r}")
    return types


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a request is sent again. Immutable, hashable, to be shared between clients.

    Derive one with `dataclasses.replace(client.retry, max_attempts=2)`; use one for a single
    request with `extensions={"retry": policy}`.

    Args:
        max_attempts: total attempts, the first included; at least 1, which means: never retry.
        total_timeout: seconds for the whole call, more than 0: attempts, waits, redirects, auth,
            the body; None for no limit.
        methods: methods that may be repeated. Default: the idempotent ones of RFC 9110 section
            9.2.2. A request with an Idempotency-Key header may be repeated with any method.
        status_codes: any container of statuses; default: RETRIABLE_STATUS_CODES, live.
        exceptions: any iterable of exception types, matched by isinstance; default:
            HTTPX_EXCEPTIONS, live.
        backoff: gives the seconds to wait after attempt n, counted from 0. NaN and negative
            results count as 0, more than a day as a day.
        max_retry_after: seconds; a longer Retry-After is not waited for, the response is
            returned at once.
        should_retry: asked with the request and its response or exception: True and False decide
            instead of methods and tables, None leaves it to them. Attempts, deadline, budget and
            a body that can't be repeated still bind. An error response's body is read before,
            within the ordinary timeouts, for stream() too.
        budget: a RetryBudget that keeps retries a small share of the traffic.

    Raises:
        TypeError, ValueError: for an argument that makes no sense, naming it and its value.
    """

    max_attempts: int = 5
    total_timeout: float | None = None
    methods: Collection[str] = IDEMPOTENT_METHODS
    status_codes: Container[int] = field(default_factory=lambda: RETRIABLE_STATUS_CODES, hash=False)
    exceptions: Iterable[type[Exception]] = field(
        default_factory=lambda: HTTPX_EXCEPTIONS, hash=False
    )
    backoff: Callable[[int], float] = jittered_backoff
    max_retry_after: float = 300.0
    should_retry: Callable[[httpx.Request, Outcome], bool | None] | None = None
    budget: RetryBudget | None = None
    #: Statuses whose responses are looked at: for all others `send()` has nothing to ask.
    suspects: Container[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"max_attempts must be a whole number, not {self.max_attempts!r}")
        if self.max_attempts < 1:
            raise ValueError(
                f"max_attempts must be at least 1, not {self.max_attempts} (1 means: never retry)"
            )
        seconds("total_timeout", self.total_timeout, zero=False)
        seconds("max_retry_after", self.max_retry_after, optional=False)
        if not callable(self.backoff):
            raise TypeError(f"backoff must be a function, not {self.backoff!r}")
        if self.should_retry is not None and not callable(self.should_retry):
            raise TypeError(f"should_retry must be a function, not {self.should_retry!r}")
        if self.budget is not None and not ismethod(getattr(self.budget, "withdraw", None)):
            raise TypeError(f"budget must be a RetryBudget, not {self.budget!r}")
        exceptions = _exception_types(self.exceptions)
        if hasattr(self.exceptions, "__next__"):  # an iterator, used up by the look at it
            object.__setattr__(self, "exceptions", exceptions)
        _check_statuses(self.status_codes)
        object.__setattr__(self, "methods", _check_methods(self.methods))
        looked_at = self.should_retry, self.budget, self.total_timeout
        suspects = self.status_codes if looked_at == (None, None, None) else ALL_STATUS_CODES
        object.__setattr__(self, "suspects", suspects)

    def allows(self, request: httpx.Request) -> bool:
        """Tell whether the request may be repeated at all."""
        return request.method in self.methods or "Idempotency-Key" in request.headers

    def covers(self, outcome: Outcome) -> bool:
        """Tell whether an outcome is one of those that a further attempt may mend."""
        if isinstance(outcome, httpx.Response):
            return outcome.status_code in self.status_codes
        return isinstance(outcome, _exception_types(self.exceptions)) and not _hopeless(outcome)

    def delay(self, attempt: int, outcome: Outcome) -> float:
        """Return the seconds to wait; infinity for a Retry-After above max_retry_after."""
        if isinstance(outcome, httpx.Response) and (asked := _requested_delay(outcome)):
            return asked if asked <= self.max_retry_after else math.inf
        delay = self.backoff(attempt)
        if isinstance(delay, bool) or not isinstance(delay, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"backoff({attempt}) must return seconds, not {delay!r}")
        return float(min(delay, LONGEST_DELAY)) if delay > 0 else 0.0  # NaN > 0 is False


def _chain(exc: BaseException | None) -> Iterable[BaseException]:
    """Yield an exception and what caused it, all the way down."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__


# By name, because this file imports nothing that does I/O.
_HOPELESS: Final = {("ssl", "SSLCertVerificationError"), ("h11", "LocalProtocolError")}


def _hopeless(exc: Exception) -> bool:
    """Tell failures that no repetition mends although their type is in the table.

    A certificate that doesn't verify, a request that h11 itself refuses, a proxy's 407.
    """
    if isinstance(exc, httpx.ProxyError) and str(exc).startswith("407"):
        return True
    kinds = map(type, _chain(exc))
    return any((kind.__module__.partition(".")[0], kind.__name__) in _HOPELESS for kind in kinds)


# --- one call -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """An attempt that was followed by another one: the retry hook's argument, and the history.

    Attributes:
        request: the caller's request; header changes made by a retry hook reach the next attempt.
        attempt: counted from 0.
        outcome: the response (closed) or the exception (without its traceback).
        delay: seconds waited before the next attempt.
        reason: a short text, "503 Service Unavailable" or "ReadTimeout".
    """

    request: httpx.Request = field(repr=False)  # its URL may hold secrets
    attempt: int
    outcome: Outcome = field(repr=False)
    delay: float
    reason: str


class Call:
    """One `send()`: made when its first attempt fails, asked after each, ended with its story."""

    def __init__(self, request: httpx.Request, policy: RetryPolicy, started: float) -> None:
        self.request: httpx.Request = request
        self.policy: RetryPolicy = policy
        self.started: float = started
        self.retries: tuple[FailedAttempt, ...] = ()
        self._final = self._success = False
        self._story = ""

    def after(self, outcome: Outcome, now: float) -> FailedAttempt | None:
        """Return the failed attempt to wait for before the next one, or None: this is final."""
        if self._final:  # what the caller's own function raised, or the body of a given-up response
            if self._story and isinstance(outcome, Exception):
                outcome.add_note(self._story)
            return None
        seen = outcome.response if isinstance(outcome, httpx.HTTPStatusError) else outcome
        elapsed = now - self.started
        self._final = True
        verdict = self._verdict(seen, elapsed)
        self._final = isinstance(verdict, str) and isinstance(seen, httpx.Response)
        if isinstance(verdict, float):
            return self._remember(seen, verdict)
        bearer = seen if isinstance(seen, httpx.Response) else self._sent(seen)
        bearer.extensions["retries"] = self.retries
        self._success = verdict is None and not self.policy.covers(seen)
        if verdict or (verdict is not None and self.retries):
            self._give_up(outcome, _reason(seen), str(verdict), elapsed)
        return None

    def end(self) -> tuple[FailedAttempt, ...]:
        """Return the history, now that the body is there: only then was it a success."""
        if self._success and self.policy.budget is not None:
            self.policy.budget.deposit(self._origin, refund=bool(self.retries))
        return self.retries

    def _verdict(self, outcome: Outcome, elapsed: float) -> float | str | None:
        """Return the delay, or why there is no retry ("": no more attempts), or None: no need."""
        policy, total = self.policy, self.policy.total_timeout
        if total is not None and elapsed > total - 0.01 and isinstance(outcome, Exception):
            return f"total_timeout ({total:g} s) ran out"
        decided = self._asked(outcome)
        if decided is False or (decided is None and not policy.covers(outcome)):
            return None if isinstance(outcome, httpx.Response) else ""
        if len(self.retries) + 1 >= policy.max_attempts:
            return ""
        if not decided and (method := self._refused_method(outcome)):
            return f"{method} {_NOT_COVERED}"
        if not getattr(self.request.stream, "replayable", True):
            return "the request body can't be sent again"
        delay = policy.delay(len(self.retries), outcome)
        if delay == math.inf:
            return f"Retry-After is longer than max_retry_after ({policy.max_retry_after:g} s)"
        if total is not None and delay >= total - elapsed:
            return f"a wait of {delay:.1f} s would end after total_timeout ({total:g} s)"
        if policy.budget is not None and not policy.budget.withdraw(self._origin):
            return "retry budget empty"
        return delay

    def _asked(self, outcome: Outcome) -> bool | None:
        """Ask should_retry; a coroutine, say, would be taken for yes."""
        answer = self.policy.should_retry and self.policy.should_retry(self.request, outcome)
        if answer is not None and not isinstance(answer, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"should_retry must return True, False or None, not {answer!r}")
        return answer

    def _refused_method(self, outcome: Outcome) -> str | None:
        """Name the method that forbids a retry: the caller's, or that of the request that failed.

        They differ where an auth flow sends a request of its own: a token's POST whose fate is
        unknown is not repeated on behalf of a GET.
        """
        failed = (self.request, self._sent(outcome))
        return next((one.method for one in failed if not self.policy.allows(one)), None)

    def _sent(self, outcome: Outcome) -> httpx.Request:
        """Return the request that an outcome belongs to, as far as it says so."""
        try:
            request = outcome.request  # type: ignore[union-attr]
        except (AttributeError, RuntimeError):  # a foreign exception; httpx's without a request
            return self.request
        return request if isinstance(request, httpx.Request) else self.request

    @property
    def _origin(self) -> tuple[str, bytes]:
        return self.request.url.scheme, self.request.url.netloc

    def _remember(self, outcome: Outcome, delay: float) -> FailedAttempt:
        for exc in _chain(outcome) if isinstance(outcome, Exception) else ():
            exc.__traceback__ = None  # its frames would keep bodies and sockets alive
        failed = FailedAttempt(
            request=self.request,
            attempt=len(self.retries),
            outcome=outcome,
            delay=delay,
            reason=_reason(outcome),
        )
        self.retries += (failed,)
        self.request.extensions.update(attempt=len(self.retries), retries=self.retries)
        if logger.isEnabledFor(logging.INFO):
            number = f"attempt {failed.attempt + 1} of {self.policy.max_attempts}"
            story = f"{failed.reason} on {number} of {_where(self.request)}, "
            self._log(logging.INFO, f"{story}retrying in {delay:.2f} s", failed.reason, delay)
        return failed

    def _give_up(self, outcome: Outcome, reason: str, why: str, elapsed: float) -> None:
        reasons = [failed.reason for failed in self.retries] + [reason]
        attempts = f"{len(reasons)} attempt{'s' * (len(reasons) > 1)}"
        story = (
            f"gave up on {_where(self.request)} after {attempts} in {elapsed:.1f} s: "
            f"{', '.join(short.partition(' ')[0] for short in reasons)}"
        )
        self._story = story = story + (f"; not retried: {why}" if why else "")
        if isinstance(outcome, Exception):
            outcome.add_note(story)
        everyday = not self.retries and why.endswith(_NOT_COVERED)
        self._log(logging.INFO if everyday else logging.WARNING, story, reason)

    def _log(self, level: int, text: str, reason: str, delay: float | None = None) -> None:
        fields = {
            "http_method": self.request.method,
            "http_url": _url(self.request),
            "attempt": len(self.retries),
            "reason": reason,
            "delay": delay,
        }
        logger.log(level, text, extra=fields)


_NOT_COVERED: Final = "is not one of the policy's methods"


def _reason(outcome: Outcome) -> str:
    """Name an outcome in our own words: a server's reason phrase could forge a log line."""
    if isinstance(outcome, httpx.Response):
        return f"{outcome.status_code} {httpx.codes.get_reason_phrase(outcome.status_code)}".strip()
    return type(outcome).__name__


def _where(request: httpx.Request) -> str:
    return f"{request.method} {_url(request)}"


def _url(request: httpx.Request) -> str:
    """Return the URL without what may be secret: userinfo, query, fragment."""
    return str(request.url.copy_with(username=None, password=None, query=None, fragment=None))
