"""One call's story: the decision after each attempt, the history, the note and the log lines.

No I/O, no sleep, no thread, no clock: `client.py` sends, waits, and says what time it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from .retry import Outcome, RetryPolicy, exception_chain, never_sent

if TYPE_CHECKING:
    from ._budget import Period
    from ._deadline import Deadline

logger: logging.Logger = logging.getLogger("httpx_production")

LARGEST_KEPT: Final = 64 * 1024  # bytes of a failed response's body that the history holds
LENT: Final = {"timeout", "attempt", "retries"}  # the extensions that a call lends a Request
NO_KEY: Final = "is not one of the policy's methods, and the request has no Idempotency-Key"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """An attempt that was followed by another one: the retry hook's argument, and the history.

    Attributes:
        request: this call's request; header changes made by a retry hook reach the next attempt.
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
    """One `send()`: asked after each attempt, ended with its story.

    Args:
        request: what is sent: the caller's Request, or a copy of it with extensions of its own.
        policy: what decides.
        started: the instant of a clock that never goes back.
        outer: the exception that the caller handled when it called: neither looked at nor touched.
        original: the caller's Request, where `request` is a copy.

    Attributes:
        deadline: of the whole call, for who sends its attempts; None without a timeout for it.
    """

    __slots__ = (
        "_is_final",
        "_is_success",
        "_summary",
        "_token",
        "deadline",
        "original",
        "outer",
        "policy",
        "request",
        "retries",
        "started",
    )

    def __init__(
        self,
        request: httpx.Request,
        policy: RetryPolicy,
        started: float,
        outer: BaseException | None = None,
        original: httpx.Request | None = None,
    ) -> None:
        self.request: httpx.Request = request
        self.policy: RetryPolicy = policy
        self.started: float = started
        self.outer: BaseException | None = outer
        self.original: httpx.Request = request if original is None else original
        self.deadline: Deadline | None = None
        self.retries: tuple[FailedAttempt, ...] = ()
        self._is_final = self._is_success = False
        self._summary = ""
        self._token: Period | None = None  # of the budget, for the retry that is under way

    def after(self, outcome: Outcome, now: float) -> FailedAttempt | None:
        """Return the failed attempt to wait for before the next one, or None: this is final."""
        if self._is_final:  # the caller's function raised, or the body of a final response broke
            self._adopt(outcome)
            if self._summary and isinstance(outcome, Exception):
                outcome.add_note(self._summary)
            return None
        seen = outcome.response if isinstance(outcome, httpx.HTTPStatusError) else outcome
        self._is_final = True  # should one of the caller's functions raise below
        verdict = self._verdict(seen, now - self.started)
        self._is_final = isinstance(verdict, str) and isinstance(seen, httpx.Response)
        if verdict is None:
            seen.extensions["retries"] = self.retries  # type: ignore[union-attr]
            self._is_success = self.policy.should_retry is None or not self._is_covered(seen)
            return None
        for one in (outcome,) if seen is outcome else (outcome, seen):
            self._adopt(one)
        if not isinstance(verdict, str):
            return self._remember(seen, verdict)
        if verdict or self.retries:
            self._give_up(outcome, _reason(seen), verdict, now - self.started)
        return None

    def end(self, response: httpx.Response, *, is_whole: bool = True) -> None:
        """Hand the response over, now that its body is there: only then was it a success.

        It names the caller's own Request then, unless hooks or an auth flow have made another one
        of the copy (`response.url` is what was sent). A body that is still to come may yet fail,
        and the exception's request has the history.
        """
        if self._is_success and self.policy.budget is not None:
            self.policy.budget.deposit(self._origin, refund=self._token)
        response.extensions["retries"] = self.retries
        self.give_back()
        as_given = not changed(vars(self.request), vars(self.original), {"extensions", "stream"})
        for one in (response, *response.history) if is_whole and as_given else ():
            if one.request is self.request:
                one.request = self.original

    def give_back(self) -> None:
        """Leave to the caller's Request, as httpx does, what hooks or a flow have put there.

        That is: extensions, but for those that the call lent, and a body in memory that was read.
        """
        sent, original = self.request, self.original
        if added := changed(sent.extensions, original.extensions, LENT):
            original.extensions = {**original.extensions, **added}
        if sent.stream is not original.stream and isinstance(sent.stream, httpx.ByteStream):
            original.stream = sent.stream
            original.read()

    def _adopt(self, outcome: Outcome) -> None:
        """Give an outcome the history, and this call's request in place of the caller's or none."""
        try:
            named = outcome.request is not self.original  # type: ignore[union-attr]
        except RuntimeError:  # an exception of httpx's that was raised outside of it
            named = False
        except AttributeError:  # a foreign exception
            named = True
        if not named:
            outcome.request = self.request  # type: ignore[union-attr]
        bearer = outcome if isinstance(outcome, httpx.Response) else self._request_of(outcome)
        bearer.extensions["retries"] = self.retries

    def _verdict(self, outcome: Outcome, elapsed: float) -> float | str | None:
        """Return the delay, or why there is no retry ("": no more attempts), or None: no need."""
        policy, total = self.policy, self.policy.total_timeout
        if total is not None and elapsed > total - 0.01 and isinstance(outcome, Exception):
            return f"total_timeout ({total:g} s) ran out"
        decided = self._asked(outcome) if policy.should_retry else None
        covered = decided is None and policy.covers(outcome, outer=self.outer)
        if not (covered or decided):
            return None if isinstance(outcome, httpx.Response) else ""
        if len(self.retries) + 1 >= policy.max_attempts:
            return ""
        if not decided and (method := self._refused_method(outcome)):
            hint = "; retry_unsent=True would allow it" * never_sent(self.request, outcome)
            return f"{method} {NO_KEY}{hint}"
        if not getattr(self.request.stream, "replayable", True):
            return "the request body can't be sent again"
        delay = policy.delay(len(self.retries), outcome)
        if delay == math.inf:
            return f"Retry-After is longer than max_retry_after ({policy.max_retry_after:g} s)"
        if total is not None and delay >= total - elapsed:
            return f"a wait of {delay:.1f} s would end after total_timeout ({total:g} s)"
        if policy.budget is not None:
            self._token = policy.budget.withdraw(self._origin)
            if self._token is None:
                return "retry budget empty"
        return delay

    def _asked(self, outcome: Outcome) -> bool | None:
        """Ask should_retry; a coroutine, say, would be taken for yes."""
        answer = self.policy.should_retry and self.policy.should_retry(self.request, outcome)
        if answer is not None and not isinstance(answer, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"should_retry must return True, False or None, not {answer!r}")
        return answer

    def _is_covered(self, outcome: Outcome) -> bool:
        return self.policy.covers(outcome, outer=self.outer)

    def _refused_method(self, outcome: Outcome) -> str | None:
        """Name the method that forbids a retry: the caller's, or that of the request that failed.

        They differ where an auth flow sends a request of its own: a token's POST whose fate is
        unknown is not repeated on behalf of a GET.
        """
        failed = (self.request, self._request_of(outcome))
        refused = (one.method for one in failed if not self.policy.allows(one, outcome))
        return next(map(_escaped, refused), None)

    def _request_of(self, outcome: Outcome) -> httpx.Request:
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
        if isinstance(outcome, Exception):
            for exc in exception_chain(outcome, self.outer):
                exc.__traceback__ = None  # its frames would keep bodies and sockets alive
        failed = FailedAttempt(
            request=self.request,
            attempt=len(self.retries),
            outcome=_without_large_body(outcome)
            if isinstance(outcome, httpx.Response)
            else outcome,
            delay=delay,
            reason=_reason(outcome),
        )
        self.retries += (failed,)
        self.request.extensions["retries"] = self.retries
        if logger.isEnabledFor(logging.INFO):
            number = f"attempt {failed.attempt + 1} of {self.policy.max_attempts}"
            text = f"{failed.reason} on {number} of {_where(self.request)}, "
            text += f"retrying in {delay:.2f} s"
            self._log(logging.INFO, text, failed.attempt, failed.reason, delay)
        return failed

    def _give_up(self, outcome: Outcome, reason: str, why: str, elapsed: float) -> None:
        reasons = [failed.reason for failed in self.retries] + [reason]
        attempts = "1 attempt" if len(reasons) == 1 else f"{len(reasons)} attempts"
        summary = (
            f"gave up on {_where(self.request)} after {attempts} in {elapsed:.1f} s: "
            f"{', '.join(short.partition(' ')[0] for short in reasons)}"
        )
        self._summary = summary = summary + (f"; not retried: {why}" if why else "")
        if isinstance(outcome, Exception):
            outcome.add_note(summary)
        everyday = not self.retries and NO_KEY in why
        self._log(logging.INFO if everyday else logging.WARNING, summary, len(self.retries), reason)

    def _log(
        self, level: int, text: str, attempt: int, reason: str, delay: float | None = None
    ) -> None:
        fields = {
            "http_method": _escaped(self.request.method),
            "http_url": _url(self.request),
            "attempt": attempt,
            "reason": reason,
            "delay": delay,
        }
        logger.log(level, text, extra=fields)


def changed(
    now: Mapping[str, Any] | None, before: Mapping[str, Any], besides: Container[str]
) -> dict[str, Any]:
    """Return what of `now` is not in `before`, or another object there, besides some names."""
    return {
        name: value
        for name, value in (now or {}).items()
        if name not in besides and not (name in before and before[name] is value)
    }


def _without_large_body(outcome: Outcome) -> Outcome:
    """Return an outcome for the history: a response whose body was read and is large loses it."""
    try:
        response, size = outcome, len(outcome.content)  # type: ignore[union-attr]
    except (AttributeError, httpx.ResponseNotRead):
        return outcome
    if not isinstance(response, httpx.Response) or size <= LARGEST_KEPT:
        return outcome
    slim = httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.ByteStream(b""),
        request=response.request,
        extensions=response.extensions,
        history=response.history,
        default_encoding=response.default_encoding,
    )
    slim.is_closed, slim.elapsed = True, response.elapsed
    return slim


def _reason(outcome: Outcome) -> str:
    """Name an outcome in our own words: a server's reason phrase could forge a log line."""
    if isinstance(outcome, httpx.Response):
        return f"{outcome.status_code} {httpx.codes.get_reason_phrase(outcome.status_code)}".strip()
    return type(outcome).__name__


def _where(request: httpx.Request) -> str:
    return f"{_escaped(request.method)} {_url(request)}"


def _url(request: httpx.Request) -> str:
    """Return the URL without what may be secret: userinfo, query, fragment."""
    url = request.url.copy_with(username=None, password=None, query=None, fragment=None)
    return _escaped(str(url))


def _escaped(text: str) -> str:
    """Escape what is no printable character: a line feed in a path could forge a log line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
