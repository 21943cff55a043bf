"""Retries as metrics: a retry hook that feeds counters.

Run it with `uv run examples/retry_metrics.py`. No network: the flaky server is started right here.
Put your metrics library's counters in the place of these; nothing else changes.
The library's log warns on stderr of the call that runs out of attempts.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import httpx
from flaky_server import DROP, Answer, FlakyServer

from httpx_production import FailedAttempt, ProductionHTTPClient, RetryPolicy, jittered_backoff

SCRIPT: dict[str, list[Answer]] = {
    "/fine": [200],
    "/hiccup": [503, 200],
    "/restart": [DROP, 502, 503, 200],
    "/throttled": [(429, {"Retry-After": "1"}), 200],
    "/broken": [500],
}
CALLS = ["/fine"] * 20 + ["/hiccup", "/restart", "/throttled", "/broken"]

# A tenth of the default's waits, to save your time; Retry-After is still obeyed.
POLICY = RetryPolicy(max_attempts=4, backoff=lambda attempt: jittered_backoff(attempt) / 10)


class RetryMetrics:
    """Counts retries, and the seconds waited for them, by reason.

    The reason is a short text from a small set; a path or a query would be a bad label.
    """

    def __init__(self) -> None:
        self.retries: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, failed: FailedAttempt) -> None:
        """Be the retry hook: called before each wait."""
        self.retries[failed.reason] += 1
        self.seconds[failed.reason] += failed.delay

    def table(self) -> str:
        """Return the counters, the most frequent first."""
        lines = [f"  {'reason':<28}{'retries':>8}{'waited':>10}"]
        for reason, number in self.retries.most_common():
            lines.append(f"  {reason:<28}{number:>8}{self.seconds[reason]:>8.2f} s")
        lines.append(f"  {'all':<28}{self.retries.total():>8}{sum(self.seconds.values()):>8.2f} s")
        return "\n".join(lines)


def how_it_ended(response: httpx.Response) -> str:
    """Name the end of a call; this needs no hook, the response knows its history."""
    retries = len(response.extensions["retries"])
    if not response.is_success:
        return f"gave up after {retries + 1} attempts"
    return f"ok after {retries + 1} attempts" if retries else "ok at once"


def main() -> None:
    """Make the calls and print what was counted."""
    metrics = RetryMetrics()
    with (
        FlakyServer(SCRIPT) as server,
        ProductionHTTPClient(
            base_url=server.url, retry=POLICY, event_hooks={"retry": [metrics]}
        ) as client,
    ):
        calls = Counter(how_it_ended(client.get(path)) for path in CALLS)
        attempts = server.requests.total()
    print(f"\nRetries, as the hook counted them\n\n{metrics.table()}")
    print("\nCalls, by how they ended\n")
    for end, number in sorted(calls.items(), reverse=True):
        print(f"  {end:<28}{number:>8}")
    print(f"\n{attempts} attempts for {len(CALLS)} calls: {attempts / len(CALLS):.2f} each")
    assert metrics.retries == {
        "503 Service Unavailable": 2,
        "502 Bad Gateway": 1,
        "500 Internal Server Error": 3,
        "429 Too Many Requests": 1,
        "RemoteProtocolError": 1,
    }, metrics.retries
    assert metrics.seconds["429 Too Many Requests"] == 1.0, metrics.seconds
    assert attempts == len(CALLS) + metrics.retries.total(), attempts


if __name__ == "__main__":
    main()
