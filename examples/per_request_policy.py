"""One client, many kinds of requests: a policy of its own for a single request.

Run it with `uv run examples/per_request_policy.py`. No network: the flaky server is started here.
The library's log warns on stderr of the call that gives up early.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import Any

import httpx
from flaky_server import Answer, FlakyServer

from httpx_production import ProductionHTTPClient, RetryPolicy, jittered_backoff

SCRIPT: dict[str, list[Answer]] = {
    "/things": [503, 503, 200],
    "/health": [503],
    "/search": [503, 200],
    "/orders": [503, 201],
    "/reports/7": [404, 404, 200],
    "/slow-lane": [(503, {"Retry-After": "60"})],
}

# The client's own policy; a fifth of the default's waits, to save your time.
POLICY = RetryPolicy(backoff=lambda attempt: jittered_backoff(attempt) / 5)

# A health check wants to know how things are now.
ONCE = replace(POLICY, max_attempts=1)

# This API's search is a POST that changes nothing: it may be repeated.
SEARCH = replace(POLICY, methods={*POLICY.methods, "POST"})

# Somebody is waiting for the page: an answer within a second, or none.
HURRIED = replace(POLICY, total_timeout=1.0)


def not_there_yet(request: httpx.Request, outcome: httpx.Response | Exception) -> bool | None:
    """Retry a 404 too; None leaves everything else to the policy's tables."""
    return True if getattr(outcome, "status_code", None) == 404 else None


# A report that was just ordered takes a moment to appear.
EVENTUAL = replace(POLICY, should_retry=not_there_yet)

# What is asked, with which policy (None: the client's) and header, and what must come of it.
KEY = {"Idempotency-Key": '"order-4711"'}
REQUESTS: list[tuple[str, str, str, RetryPolicy | None, dict[str, str], tuple[int, int]]] = [
    ("the client's own policy", "GET", "/things", None, {}, (200, 3)),
    ("max_attempts=1", "GET", "/health", ONCE, {}, (503, 1)),
    ("methods with POST", "POST", "/search", SEARCH, {}, (200, 2)),
    ("an Idempotency-Key", "POST", "/orders", None, KEY, (201, 2)),
    ("should_retry", "GET", "/reports/7", EVENTUAL, {}, (200, 3)),
    ("total_timeout=1.0", "GET", "/slow-lane", HURRIED, {}, (503, 1)),
]


def main() -> None:
    """Send each request and print what its policy made of it."""
    print(f"\n{'with':<25}{'request':<20}{'attempts':>8}{'seconds':>10}   result")
    with (
        FlakyServer(SCRIPT) as server,
        ProductionHTTPClient(base_url=server.url, retry=POLICY) as client,
    ):
        for title, method, path, policy, headers, expected in REQUESTS:
            extensions: dict[str, Any] = {"retry": policy} if policy else {}
            started = monotonic()
            response = client.request(method, path, headers=headers, extensions=extensions)
            seconds = monotonic() - started
            attempts = len(response.extensions["retries"]) + 1
            print(
                f"{title:<25}{f'{method} {path}':<20}{attempts:>8}{seconds:>10.2f}"
                f"   {response.status_code} {response.reason_phrase}"
            )
            assert (response.status_code, attempts) == expected, expected
            assert server.requests[method, path] == attempts
            assert seconds < 2.0
    print("\nThe last one did not wait: Retry-After asks for 60 s, and there is one second.")


if __name__ == "__main__":
    main()
