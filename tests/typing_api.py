"""Right use and wrong use, for the type checkers: read by mypy --strict and pyright, never run.

Each misuse carries an ignore; an ignore that is no longer needed is an error in both checkers, so
a misuse that begins to pass is found.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error

import ssl
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, assert_type

import httpx

from httpx_production import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    AsyncProductionHTTPClient,
    FailedAttempt,
    Outcome,
    ProductionHTTPClient,
    RetryBudget,
    RetryPolicy,
    jittered_backoff,
    parse_retry_after,
)

SYNC = httpx.MockTransport(lambda request: httpx.Response(200))


class OnlySync(httpx.BaseTransport):
    """A transport of the sync client."""


class OnlyAsync(httpx.AsyncBaseTransport):
    """A transport of the async client."""


# --- right use ------------------------------------------------------------------------------------


def sync_client() -> None:
    """Every argument of our own, and of httpx's."""
    client = ProductionHTTPClient(
        base_url=httpx.URL("https://api.example.com"),
        connect_timeout=5,
        read_timeout=10.0,
        write_timeout=None,
        pool_timeout=2,
        request_timeout=3.0,
        total_timeout=30,
        max_connections=50,
        max_keepalive_connections=None,
        keepalive_expiry=30,
        max_attempts=5,
        default_headers={"X-Key": "value"},
        retry=RetryPolicy(),
        http2=False,
        auth=("user", "password"),
        params={"a": 1, "b": ["x", "y"]},
        headers=[("X-Key", "value")],
        cookies={"session": "1"},
        verify=ssl.create_default_context(),
        trust_env=False,
        http1=True,
        proxy="http://proxy.example.com",
        mounts={"https://": OnlySync(), "all://": None},
        follow_redirects=True,
        max_redirects=3,
        event_hooks={"request": [print], "retry": [on_retry]},
        transport=OnlySync(),
        default_encoding="utf-8",
    )
    with client as same:
        assert_type(same, ProductionHTTPClient)
        assert_type(same.get("/", extensions={"retry": RetryPolicy()}), httpx.Response)
        with same.stream("GET", "/") as response:
            assert_type(response, httpx.Response)
    assert_type(client.send(client.build_request("PUT", "/", content=b"x")), httpx.Response)
    assert_type(client.retry, RetryPolicy)
    assert_type(client.event_hooks, dict[str, list[Callable[..., Any]]])
    assert_type(client.pool_stats().connections, int)
    client.close()
    client.event_hooks = {"retry": [on_retry]}
    client.retry = replace(client.retry, max_attempts=2)
    as_httpx: httpx.Client = client
    takes_sync(as_httpx)


async def async_client() -> None:
    """The same, awaited."""
    client = AsyncProductionHTTPClient(
        base_url="https://api.example.com",
        transport=OnlyAsync(),
        mounts={"https://": OnlyAsync(), "all://": None},
        event_hooks={"retry": [on_retry, on_retry_async]},
        timeout=httpx.Timeout(5),
        limits=httpx.Limits(max_connections=10),
        default_headers=httpx.Headers(),
    )
    async with client as same:
        assert_type(same, AsyncProductionHTTPClient)
        assert_type(await same.get("/"), httpx.Response)
        async with same.stream("GET", "/") as response:
            assert_type(response, httpx.Response)
    assert_type(await client.send(client.build_request("GET", "/")), httpx.Response)
    await client.close()
    await client.aclose()
    as_httpx: httpx.AsyncClient = client
    takes_async(as_httpx)


def hooks_of_both_clients(source: httpx.Client) -> None:
    """As httpx takes them: functions that return something, and hooks read from a client."""
    check = httpx.Response.raise_for_status
    ProductionHTTPClient(event_hooks={"response": [check], "retry": [on_retry]})
    ProductionHTTPClient(event_hooks=source.event_hooks).event_hooks = source.event_hooks
    kept = {"request": [print]}
    ProductionHTTPClient(event_hooks=kept)
    AsyncProductionHTTPClient(event_hooks=kept)
    client = AsyncProductionHTTPClient(event_hooks={"retry": [on_retry_async]})
    client.event_hooks = {"response": [takes_response], "retry": [on_retry, on_retry_async]}
    client.event_hooks = ProductionHTTPClient().event_hooks


async def takes_response(response: httpx.Response) -> None:
    """A response hook of the async client."""


def one_transport_for_both() -> None:
    """MockTransport and the like are of both kinds."""
    ProductionHTTPClient(transport=SYNC, mounts={"all://": SYNC})
    AsyncProductionHTTPClient(transport=SYNC, mounts={"all://": SYNC})


def policies(statuses: Container[int], kinds: Iterable[type[Exception]]) -> None:
    """Any container, any iterable, functions with the right signature."""
    policy = RetryPolicy(
        max_attempts=3,
        attempt_timeout=2,
        total_timeout=None,
        methods=["GET", "POST"],
        status_codes=statuses,
        exceptions=kinds,
        backoff=lambda attempt: 0.5 * attempt,
        retry_after=lambda response: float(response.headers["x-ratelimit-reset-after"]),
        max_retry_after=60,
        retry_unsent=True,
        should_retry=should_retry,
        budget=RetryBudget(burst=10, ratio=0.1, window=60),
    )
    RetryPolicy(
        status_codes=range(500, 600), exceptions=[httpx.ReadError], backoff=jittered_backoff
    )
    assert_type(policy.max_attempts, int)
    assert_type(policy.attempt_timeout, float | None)
    assert_type(policy.total_timeout, float | None)
    assert_type(policy.methods, Collection[str])
    assert_type(policy.status_codes, Container[int])
    assert_type(policy.exceptions, Iterable[type[Exception]])
    assert_type(policy.backoff, Callable[[int], float])
    assert_type(policy.retry_after, Callable[[httpx.Response], float | None])
    assert_type(policy.max_retry_after, float)
    assert_type(policy.retry_unsent, bool)
    assert_type(policy.budget, RetryBudget | None)
    assert_type(replace(policy, max_attempts=2), RetryPolicy)
    assert_type(hash(policy), int)


def values() -> None:
    """The tables and the two functions."""
    assert_type(RETRIABLE_STATUS_CODES, dict[int, str])
    assert_type(HTTPX_EXCEPTIONS, dict[type[Exception], str])
    RETRIABLE_STATUS_CODES[425] = "Too Early"
    HTTPX_EXCEPTIONS[OSError] = "an own one"
    assert_type(jittered_backoff(3), float)
    assert_type(parse_retry_after("120"), float | None)
    assert_type(parse_retry_after("120", now=datetime.now(UTC)), float | None)


def should_retry(request: httpx.Request, outcome: Outcome) -> bool | None:
    """Decide, or leave it to the tables."""
    return True if isinstance(outcome, httpx.Response) and outcome.is_redirect else None


def on_retry(failed: FailedAttempt) -> None:
    """What a hook is given."""
    assert_type(failed.request, httpx.Request)
    assert_type(failed.attempt, int)
    assert_type(failed.outcome, httpx.Response | Exception)
    assert_type(failed.delay, float)
    assert_type(failed.reason, str)


async def on_retry_async(failed: FailedAttempt) -> None:
    """The async client awaits it."""


def takes_sync(client: httpx.Client) -> None:
    """Whoever wants httpx's client."""


def takes_async(client: httpx.AsyncClient) -> None:
    """The same for the async one."""


# --- wrong use ------------------------------------------------------------------------------------


def six_misuses_of_the_sync_client() -> None:
    """A wrong type, an unknown name, a wrong pass-through, the other kind, a position."""
    ProductionHTTPClient(connect_timeout="5")  # type: ignore[arg-type]
    ProductionHTTPClient(retries=3)  # type: ignore[call-arg]
    ProductionHTTPClient(follow_redirects="yes")  # type: ignore[arg-type]
    ProductionHTTPClient(transport=OnlyAsync())  # type: ignore[arg-type]
    ProductionHTTPClient(mounts={"all://": OnlyAsync()})  # type: ignore[dict-item]
    ProductionHTTPClient("https://api.example.com")  # type: ignore[call-arg]


def six_misuses_of_the_async_client() -> None:
    """The same six."""
    AsyncProductionHTTPClient(max_connections="50")  # type: ignore[arg-type]
    AsyncProductionHTTPClient(max_attempt=3)  # type: ignore[call-arg]
    AsyncProductionHTTPClient(trust_env="no")  # type: ignore[arg-type]
    AsyncProductionHTTPClient(transport=OnlySync())  # type: ignore[arg-type]
    AsyncProductionHTTPClient(mounts={"all://": OnlySync()})  # type: ignore[dict-item]
    AsyncProductionHTTPClient("https://api.example.com")  # type: ignore[call-arg]


def misuses_of_retry_hooks() -> None:
    """The sync client awaits nothing; neither client takes a bare function or another argument."""
    # fmt: off
    ProductionHTTPClient(event_hooks={"retry": [on_retry_async]})  # type: ignore[list-item]
    ProductionHTTPClient(event_hooks={"retry": [on_retry, on_retry_async]})  # type: ignore[list-item]
    ProductionHTTPClient(event_hooks={"retry": on_retry})  # type: ignore[dict-item]
    ProductionHTTPClient().event_hooks = {"retry": [on_retry_async]}  # type: ignore[list-item]
    AsyncProductionHTTPClient(event_hooks={"retry": on_retry})  # type: ignore[dict-item]
    # fmt: on


async def misuses_of_the_rest() -> None:
    """Policies, budgets and values."""
    policy = RetryPolicy(max_attempts="3")  # type: ignore[arg-type]
    policy.max_attempts = 3  # type: ignore[misc]
    RetryPolicy(3)  # type: ignore[call-arg]
    RetryPolicy(methods=5)  # type: ignore[arg-type]
    RetryPolicy(exceptions=[int])  # type: ignore[list-item]
    RetryPolicy(backoff=1.0)  # type: ignore[arg-type]
    RetryPolicy(retry_after="x-ratelimit-reset")  # type: ignore[arg-type]
    RetryPolicy(retry_unsent="yes")  # type: ignore[arg-type]
    RetryPolicy(should_retry=on_retry)  # type: ignore[arg-type]
    RetryPolicy(budget=10)  # type: ignore[arg-type]
    RetryPolicy(attempts=3)  # type: ignore[call-arg]
    RetryBudget(10)  # type: ignore[call-arg]
    parse_retry_after(120)  # type: ignore[arg-type]
    parse_retry_after("120", datetime.now(UTC))  # type: ignore[call-arg]
    ProductionHTTPClient(retry=5)  # type: ignore[arg-type]
    AsyncProductionHTTPClient(max_attempts=None)  # type: ignore[arg-type]
    ProductionHTTPClient().retry.max_attempts = 2  # type: ignore[misc]
    takes_sync(AsyncProductionHTTPClient())  # type: ignore[arg-type]
    await ProductionHTTPClient().close()  # type: ignore[func-returns-value, misc]
