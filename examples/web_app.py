"""A web app that calls another service: one client for its life, a deadline for each request.

Run it with `uv run --group examples examples/web_app.py`. No network: the app, its load and the
flaky service behind it are all started right here. `/metrics` is what Prometheus would scrape:
retries by the retry hook, the pool by `pool_stats()`. FastAPI has the same `lifespan` and `state`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TypedDict

import httpx
import prometheus_client
import uvicorn
from flaky_server import DROP, Answer, FlakyServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from httpx_production import (
    AsyncProductionHTTPClient,
    FailedAttempt,
    RetryPolicy,
    jittered_backoff,
)

# --- the app --------------------------------------------------------------------------------------

DEADLINE = 5.0  # seconds that a request to this app may spend on the other service
HURRIED = {"retry": {"total_timeout": 0.05}}  # the same of a request that has no time to wait

# A fifth of the default's waits, to save your time.
POLICY = RetryPolicy(total_timeout=DEADLINE, backoff=lambda attempt: jittered_backoff(attempt) / 5)


RetryHook = Callable[[FailedAttempt], Awaitable[None]]


class State(TypedDict):
    """What the requests share."""

    client: AsyncProductionHTTPClient
    metrics: prometheus_client.CollectorRegistry


def make_app(upstream: str) -> Starlette:
    """Return the app; the other service is at `upstream`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        metrics = prometheus_client.CollectorRegistry()
        hooks = {"retry": [retry_hook(metrics)]}
        async with AsyncProductionHTTPClient(
            base_url=upstream, retry=POLICY, event_hooks=hooks
        ) as client:
            watch_pool(client, metrics)
            yield {"client": client, "metrics": metrics}

    routes = [Route("/things/{name}", thing), Route("/report", report), Route("/metrics", show)]
    return Starlette(routes=routes, lifespan=lifespan)


async def thing(request: Request) -> Response:
    """Ask the other service, within the client's deadline."""
    client: AsyncProductionHTTPClient = request.state.client
    return await relay(
        client.build_request("GET", f"/things/{request.path_params['name']}"), client
    )


async def report(request: Request) -> Response:
    """Ask it for something slow, within a deadline of this route's own."""
    client: AsyncProductionHTTPClient = request.state.client
    return await relay(client.build_request("GET", "/report", extensions=HURRIED), client)


async def relay(request: httpx.Request, client: AsyncProductionHTTPClient) -> Response:
    """Answer with what the other service says, or with whose fault it is that it does not."""
    try:
        response = (await client.send(request)).raise_for_status()
    except httpx.TimeoutException:
        return JSONResponse({"error": "no answer in time"}, 504)
    except httpx.HTTPError:  # no connection, or a status that stayed an error
        return JSONResponse({"error": "no good answer"}, 502)
    return JSONResponse(response.json())


# --- its metrics ----------------------------------------------------------------------------------


def retry_hook(metrics: prometheus_client.CollectorRegistry) -> RetryHook:
    """Return a hook that counts retries, and the seconds waited, by reason."""
    labels = ["host", "reason"]
    retries = prometheus_client.Counter(
        "http_client_retries", "Attempts that were followed by another.", labels, registry=metrics
    )
    waited = prometheus_client.Counter(
        "http_client_retry_wait_seconds", "Waits before retries.", labels, registry=metrics
    )

    async def count(failed: FailedAttempt) -> None:
        values = failed.request.url.host, failed.reason  # both from small sets, unlike the path
        retries.labels(*values).inc()
        waited.labels(*values).inc(failed.delay)

    return count


def watch_pool(
    client: AsyncProductionHTTPClient, metrics: prometheus_client.CollectorRegistry
) -> None:
    """Show the pool's four numbers as they are when somebody asks."""
    gauge = prometheus_client.Gauge(
        "http_client_pool", "Connections by state, and waiting requests.", ["is"], registry=metrics
    )
    gauge.labels("connections").set_function(lambda: client.pool_stats().connections)
    gauge.labels("idle").set_function(lambda: client.pool_stats().idle)
    gauge.labels("in_use").set_function(lambda: client.pool_stats().in_use)
    gauge.labels("waiting").set_function(lambda: client.pool_stats().waiting)


async def show(request: Request) -> Response:
    """Show the metrics in Prometheus' text format."""
    text = prometheus_client.generate_latest(request.state.metrics)
    return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)


# --- a load of 100 requests at once ---------------------------------------------------------------

NUMBER = 100
PATHS = [f"/things/{number}" for number in range(NUMBER)]

# Every fifth thing fails at first: a 503, or a dropped connection. The report takes too long.
SCRIPT: dict[str, list[Answer]] = {path: [200] for path in [*PATHS, "/report"]}
SCRIPT |= {path: [(503, DROP)[number % 2], 200] for number, path in enumerate(PATHS[::5])}


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """Run the app by uvicorn, on a free port of this machine; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task


async def load(url: str) -> None:
    """Ask for everything at once, look at the metrics meanwhile, and fail loudly when it is off."""
    async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as browser:
        started = perf_counter()
        pending = asyncio.gather(*(browser.get(path) for path in PATHS))
        await asyncio.sleep(0.15)
        during = (await browser.get("/metrics")).text
        statuses = Counter(response.status_code for response in await pending)
        seconds = perf_counter() - started
        hurried = await browser.get("/report")
        after = (await browser.get("/metrics")).text
    print(f"{NUMBER} requests at once, each answered within {seconds:.1f} s: {dict(statuses)}")
    print(f"/report: {hurried.status_code} {hurried.json()}\n")
    print("/metrics in the middle of the load\n", *lines(during, "http_client_pool{"), sep="\n")
    print("\n/metrics afterwards\n", *lines(after, "http_client"), sep="\n")
    assert statuses == {200: NUMBER}
    assert hurried.status_code == 504, hurried
    assert value(after, 'reason="RemoteProtocolError"') == 10
    assert value(after, 'reason="503 Service Unavailable"') == 10
    assert value(after, 'is="in_use"') == 0
    assert value(after, 'is="connections"') <= 50


def lines(metrics: str, start: str) -> list[str]:
    """The lines of the metrics that matter here."""
    return [f"  {line}" for line in metrics.splitlines() if line.startswith(start)]


def value(metrics: str, label: str) -> float:
    """The first value with this label."""
    line = next(line for line in lines(metrics, "http_client") if label in line)
    return float(line.split()[-1])


def main() -> None:
    """Start the service and the app, and put the load on."""
    prometheus_client.disable_created_metrics()  # less to print

    async def run(upstream: str) -> None:
        async with serving(make_app(upstream)) as url:
            await load(url)

    with FlakyServer(SCRIPT, latency=0.1) as service:
        asyncio.run(run(service.url))


if __name__ == "__main__":
    main()
