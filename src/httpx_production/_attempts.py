"""What both clients do around an attempt, written once: the request that is sent, its deadline.

The caller's Request stays as it was, but for what the caller's own hooks do. What a call lends it
(the attempt's number, a deadline) is in the extensions of a copy, which shares headers and body
with it; a plain first attempt without a deadline sends the Request itself, with other extensions.
Nothing here sends or waits.
"""

from __future__ import annotations

from typing import Any

import httpx

from ._arguments import policy_for
from ._call import LENT, Call, FailedAttempt, changed
from ._deadline import Deadline, deadline_of_attempt, make_deadline
from ._request_body import bound_body, make_replayable
from ._response_body import ensure_complete, hand_over
from .retry import RetryPolicy

LATE = "the response did not come in time"
NO_TIME = "there was no time left for another attempt"


def settle(
    response: httpx.Response, request: httpx.Request, given: dict[str, Any]
) -> httpx.Response:
    """Return the response of a first attempt that was all, and that sent the Request itself."""
    ensure_complete(response)
    response.extensions["retries"] = ()
    added = changed(request.extensions, given, LENT)  # by hooks: theirs to keep
    request.extensions = {**given, **added} if added else given
    return response


def begin_call(
    client: Any,
    policy: RetryPolicy,
    request: httpx.Request,
    given: dict[str, Any],
    started: float,
    outer: BaseException | None,
    lent: dict[str, Any] | None = None,
) -> Call:
    """Return the state of a call that is more than the first attempt of a plain request.

    `given` are the caller's extensions; `lent`, after a first attempt that sent the Request itself,
    those that it has now: the very dict that the transport has.
    """
    if given.keys() - {"timeout"}:
        policy = policy_for(given, policy)
    if type(request.stream) is not httpx.ByteStream:
        make_replayable(request, is_foreign=True)
    phases = dict(given.get("timeout") or client.timeout.as_dict())
    if lent is None:
        lent = {**given, "timeout": phases, "retries": ()}
    else:
        request.extensions = given
    call = Call(_copied(request, lent), policy, started, outer, request)
    if policy.is_timed:
        call.deadline = make_deadline(phases, started, policy.total_timeout)
    return call


def start_attempt(call: Call) -> Deadline | None:
    """Ready the call's request for its next attempt."""
    extensions = call.request.extensions
    extensions["attempt"] = len(call.retries)
    if call.deadline is None:
        return None
    deadline = deadline_of_attempt(call.deadline, call.policy.attempt_timeout)
    deadline.check(NO_TIME)
    extensions["timeout"] = deadline
    if type(call.request.stream) is not httpx.ByteStream:
        bound_body(call.request, deadline)
    return deadline


def check_wait(call: Call, failed: FailedAttempt) -> None:
    """Raise when the hooks took so long that the wait would end after the deadline."""
    if call.deadline is not None and call.deadline.left <= failed.delay:
        exc = httpx.ReadTimeout(NO_TIME, request=call.request)
        call.deadline.add_note(exc, at_once=True)
        raise exc


def fail_call(call: Call) -> None:
    """End a call that raises."""
    deadline = call.request.extensions.get("timeout")
    if isinstance(deadline, Deadline):
        deadline.lift()
    call.give_back()


def explain(call: Call, exc: BaseException) -> None:
    """Let a timeout say which deadline it was, if it was one."""
    deadline = call.request.extensions.get("timeout")
    if isinstance(deadline, Deadline) and isinstance(exc, httpx.TimeoutException):
        deadline.add_note(exc)


def end_call(call: Call, response: httpx.Response, stream: bool) -> httpx.Response:
    """Hand the response over; with `stream`, its body keeps its promises from now on."""
    deadline = call.request.extensions.get("timeout")
    if not isinstance(deadline, Deadline) or call.deadline is None:
        deadline = None
    elif response.is_closed:
        deadline.end(LATE)
    else:
        deadline.follow(call.deadline)  # that of the attempt ends here
        if response.next_request is not None:  # another call, when it is sent
            response.next_request.extensions["timeout"] = dict(deadline)
    if stream:
        hand_over(response, deadline)
    call.end(response, is_whole=response.is_closed)
    return response


def _copied(request: httpx.Request, extensions: dict[str, Any]) -> httpx.Request:
    copied = object.__new__(type(request))
    copied.__dict__ = {**request.__dict__, "extensions": extensions}
    return copied
