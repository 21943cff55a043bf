"""What the clients do when a server misbehaves: a timeline of attempts, waits and results.

Run it with `uv run examples/quickstart.py`. No network: the flaky server is started right here.
"""

from __future__ import annotations

import asyncio
import logging
import textwrap
from logging.handlers import MemoryHandler
from time import monotonic

import httpx
from flaky_server import DROP, Answer, FlakyServer

from httpx_production import (
    AsyncProductionHTTPClient,
    FailedAttempt,
    ProductionHTTPClient,
    RetryPolicy,
    jittered_backoff,
)

# What the server answers to the first, second, third request; the last answer is repeated.
SCRIPT: dict[str, list[Answer]] = {
    "/twice-503": [503, 503, 200],
    "/busy": [(429, {"Retry-After": "1"}), 200],
    "/dropped": [DROP, 200],
    "/orders": [503, 201],
    "/still-down": [503],
    "/gone": [DROP],
}

# The first four calls use the default policy: five attempts, waits of about 1, 2, 4 and 8 s.
# The last two never succeed: to save your time they have three attempts, and a fifth of the waits.
DEFAULT = RetryPolicy()
SHORTER = RetryPolicy(max_attempts=3, backoff=lambda attempt: jittered_backoff(attempt) / 5)

CALLS = [
    ("GET", "/twice-503", DEFAULT),
    ("GET", "/busy", DEFAULT),
    ("GET", "/dropped", DEFAULT),
    ("POST", "/orders", DEFAULT),
    ("GET", "/still-down", SHORTER),
    ("GET", "/gone", SHORTER),
]

# What must have arrived at the server: a POST is never sent again by itself.
EXPECTED = {
    ("GET", "/twice-503"): 3,
    ("GET", "/busy"): 2,
    ("GET", "/dropped"): 2,
    ("POST", "/orders"): 1,
    ("GET", "/still-down"): 3,
    ("GET", "/gone"): 3,
}

Outcome = httpx.Response | httpx.RequestError


def one_after_the_other(server: FlakyServer) -> list[Outcome]:
    """Make the calls with the sync client."""
    outcomes: list[Outcome] = []
    with ProductionHTTPClient(base_url=server.url) as client:
        show = Timeline("ProductionHTTPClient, one call after the other")
        client.event_hooks = {"retry": [show.retry]}
        for method, path, policy in CALLS:
            try:
                outcome: Outcome = client.request(method, path, extensions={"retry": policy})
            except httpx.RequestError as exc:
                outcome = exc
            outcomes.append(show.end(outcome))
    return outcomes


async def all_at_once(server: FlakyServer) -> list[Outcome]:
    """Make the same calls with the async client."""

    async def hook(failed: FailedAttempt) -> None:
        show.retry(failed)

    async def call(method: str, path: str, policy: RetryPolicy) -> Outcome:
        try:
            outcome: Outcome = await client.request(method, path, extensions={"retry": policy})
        except httpx.RequestError as exc:
            outcome = exc
        return show.end(outcome)

    async with AsyncProductionHTTPClient(base_url=server.url) as client:
        show = Timeline("AsyncProductionHTTPClient, all calls at once")
        client.event_hooks = {"retry": [hook]}
        return await asyncio.gather(*(call(*one) for one in CALLS))


class Timeline:
    """Prints a line for each attempt as it ends."""

    def __init__(self, title: str) -> None:
        self.started = monotonic()
        print(f"\n{title}\n")
        print("    time   request           attempt   outcome                 then")

    def retry(self, failed: FailedAttempt) -> None:
        """Show an attempt that is followed by another one: the clients' retry hook."""
        response = failed.outcome
        asked = isinstance(response, httpx.Response) and "Retry-After" in response.headers
        then = f"wait {failed.delay:.2f} s{', as Retry-After asks' * asked}"
        self.line(failed.request, failed.attempt, failed.reason, then)

    def end(self, outcome: Outcome) -> Outcome:
        """Show what the caller got in the end."""
        request = outcome.request
        if isinstance(outcome, httpx.RequestError):
            reason, then = type(outcome).__name__, "raised: no attempts left"
        else:
            reason = f"{outcome.status_code} {outcome.reason_phrase}"
            why = "a POST is sent once" if request.method == "POST" else "no attempts left"
            then = "done" if outcome.is_success else f"returned: {why}"
        bearer = outcome if isinstance(outcome, httpx.Response) else request
        self.line(request, len(bearer.extensions["retries"]), reason, then)
        return outcome

    def line(self, request: httpx.Request, attempt: int, reason: str, then: str) -> None:
        """Print one attempt; the library counts them from 0."""
        what = f"{request.method} {request.url.path}"
        seconds = monotonic() - self.started
        print(f"  {seconds:4.1f} s   {what:<17} {attempt + 1:>4}      {reason:<23} {then}")


def explain(outcomes: list[Outcome], log: MemoryHandler) -> None:
    """Show what is left to read afterwards: history, note, log."""
    first, last = outcomes[0], outcomes[-1]
    assert isinstance(first, httpx.Response)
    print('\nThe first response tells its history, in response.extensions["retries"]:\n')
    for failed in first.extensions["retries"]:
        print(f"  {failed.reason}, then a wait of {failed.delay:.2f} s")
    assert isinstance(last, httpx.RemoteProtocolError)
    print("\nThe exception is httpx's own, with a note that explains it:\n")
    print(f"  httpx.{type(last).__name__}: {last}")
    print(indented(last.__notes__[0]))
    print('\nThe logger "httpx_production" has warned of both calls that ended badly:\n')
    for record in log.buffer:
        print(indented(f"{record.levelname}: {record.getMessage()}"))


def indented(text: str) -> str:
    """Break a long line."""
    return textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="    ")


def check(server: FlakyServer, outcomes: list[Outcome]) -> None:
    """Fail loudly when anything was not as shown."""
    assert server.requests == EXPECTED, server.requests
    *responses, error = outcomes
    statuses = [getattr(response, "status_code", None) for response in responses]
    assert statuses == [200, 200, 200, 503, 503], statuses
    assert isinstance(error, httpx.RemoteProtocolError), error
    assert "after 3 attempts" in error.__notes__[0], error.__notes__
    first, second = (failed.delay for failed in responses[0].extensions["retries"])
    assert 0.8 <= first <= 1.0, first
    assert 1.6 <= second <= 2.0, second
    (asked,) = responses[1].extensions["retries"]
    assert asked.delay == 1.0, asked


def main() -> None:
    """Run both parts, each with a server of its own."""
    log = MemoryHandler(1000)  # keeps the log lines until the timeline is printed
    logging.getLogger("httpx_production").addHandler(log)
    with FlakyServer(SCRIPT) as server:
        outcomes = one_after_the_other(server)
        check(server, outcomes)
        explain(outcomes, log)
    with FlakyServer(SCRIPT) as server:
        check(server, asyncio.run(all_at_once(server)))
    print("\nIn both parts the server got the POST once, and everything else as often as shown.")


if __name__ == "__main__":
    main()
