"""Hundreds of requests at once through one client: tasks of asyncio, then threads.

Run it with `uv run examples/many_requests.py`. No network: the flaky server is started right here.
One client is enough for all of them; a second one would have connections of its own.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import httpx
from flaky_server import DROP, Answer, FlakyServer

from httpx_production import (
    AsyncProductionHTTPClient,
    ProductionHTTPClient,
    RetryPolicy,
    jittered_backoff,
)

NUMBER = 300
LATENCY = 0.02  # seconds that the server takes for each answer
PATHS = [f"/things/{number}" for number in range(NUMBER)]

# Every third request fails at first: a 503, a 500, a dropped connection, in turn.
TROUBLE: list[Answer] = [503, 500, DROP]
SCRIPT: dict[str, list[Answer]] = {
    path: [TROUBLE[number // 3 % 3], 200] if number % 3 == 0 else [200]
    for number, path in enumerate(PATHS)
}

PATIENCE = 30.0  # seconds that a call may wait for one of the 50 connections, on a busy machine

# A fifth of the default's waits, to save your time: 0.16 to 0.2 s before the first retry.
QUICK = RetryPolicy(backoff=lambda attempt: jittered_backoff(attempt) / 5)


async def tasks(server: FlakyServer) -> list[httpx.Response]:
    """Fetch everything with one async client; 50 connections serve however many tasks."""
    async with AsyncProductionHTTPClient(
        base_url=server.url, retry=QUICK, pool_timeout=PATIENCE
    ) as client:
        pending = asyncio.gather(*(client.get(path) for path in PATHS))
        while not client.pool_stats().waiting:  # the first 50 have a connection, or make one
            await asyncio.sleep(0)
        print(f"  in the middle   {client.pool_stats()}")
        responses = await pending
        print(f"  at the end      {client.pool_stats()}")
    return responses


def threads(server: FlakyServer) -> list[httpx.Response]:
    """Fetch everything with one sync client, shared by 30 threads."""
    with (
        ProductionHTTPClient(base_url=server.url, retry=QUICK, pool_timeout=PATIENCE) as client,
        ThreadPoolExecutor(30) as pool,
    ):
        pending = pool.map(client.get, PATHS)
        print(f"  at the start    {client.pool_stats()}")
        responses = list(pending)
        print(f"  at the end      {client.pool_stats()}")
    return responses


def report(server: FlakyServer, responses: list[httpx.Response], seconds: float) -> None:
    """Print what it took, and fail loudly when anything got lost."""
    retries = sum(len(response.extensions["retries"]) for response in responses)
    print(f"  requests        {len(responses)}, all answered: in {seconds:.1f} s")
    print(f"  retries         {retries}")
    print(
        f"  connections     {server.connections} opened; {NUMBER // 9} were dropped by the server\n"
    )
    assert [response.json()["path"] for response in responses] == PATHS  # each its own answer
    assert retries == NUMBER / 3, retries
    assert server.requests.total() == NUMBER + retries
    assert server.connections <= 50 + NUMBER // 9 + 30, server.connections


def main() -> None:
    """Run both ways, each against a server of its own."""
    print(f"\n{NUMBER} tasks, one AsyncProductionHTTPClient\n")
    with FlakyServer(SCRIPT, latency=LATENCY) as server:
        started = perf_counter()
        responses = asyncio.run(tasks(server))
        report(server, responses, perf_counter() - started)
    print("30 threads, one ProductionHTTPClient\n")
    with FlakyServer(SCRIPT, latency=LATENCY) as server:
        started = perf_counter()
        report(server, threads(server), perf_counter() - started)


if __name__ == "__main__":
    main()
