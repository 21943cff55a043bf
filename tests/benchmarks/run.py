"""What the clients cost: interleaved ratios to bare httpx, printed as one markdown table.

    uv run --isolated --group comparison tests/benchmarks/run.py [--instructions]

CPU time of the client's process alone; each server is another process on 127.0.0.1. No time is
asserted. Under five minutes; `--instructions` adds exact counts by valgrind, in some more. Where
httpx2 is installed, two columns come from another process, in which `import httpx` means httpx2.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import httpx
import instructions
from contenders import (
    AIOHTTP,
    HTTPX,
    HTTPX2,
    HTTPX_RETRIES,
    OWN,
    OWN_ON_HTTPX2,
    STAMINA,
    TENACITY,
    Contender,
    Send,
    Setup,
    mock,
)
from loopback import Loopback
from uploads import SIZE, Content, Upload, uploads

LAYERS = [HTTPX, HTTPX_RETRIES, STAMINA, TENACITY, OWN]
POOLS = [HTTPX, HTTPX_RETRIES, OWN]  # a decorator's pool is httpx's
PAIR = [HTTPX, OWN]
ALIASED = {HTTPX.name: HTTPX2.name, OWN.name: OWN_ON_HTTPX2}  # what they are where httpx is httpx2
if httpx.__name__ == HTTPX2.name:
    LAYERS = POOLS = PAIR
    AIOHTTP.clear()
WIDE = httpx.Limits(max_connections=200, max_keepalive_connections=200, keepalive_expiry=120)
PACKAGES = [
    "httpx", "httpcore", "httpx2", "httpcore2", "httpx-retries", "stamina", "tenacity",
    "httpx-aiohttp",
]  # fmt: skip

Batch = Callable[[], float]
Key = tuple[str, int]  # a contender's name, and how much of something
Times = dict[Key, list[float]]
Row = tuple[str, Mapping[str, str]]


@dataclass(frozen=True)
class Job:
    """A request, and how often a batch makes it."""

    url: str
    requests: int = 50
    method: str = "GET"
    content: Content = lambda _: None


# --- timing -------------------------------------------------------------------------------------


def interleaved(batches: Mapping[Key, Batch], rounds: int) -> Times:
    """Run every batch once a round, each round beginning with another one; the first warms up."""
    times: Times = {key: [] for key in batches}
    keys = list(batches)
    for number in range(rounds + 1):
        first = number % len(keys)
        for key in keys[first:] + keys[:first]:
            gc.collect()
            seconds = batches[key]()
            times[key] += [seconds] if number else []
    return times


def cpu(work: Callable[[], object], requests: int = 1) -> float:
    """CPU seconds of this process per request."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / requests


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    low, middle, high = (f"{one:.3g}" for one in statistics.quantiles(ratios, n=4))
    return f"{middle} ({low}-{high})"


def duration(seconds: Sequence[float]) -> str:
    median = statistics.median(seconds)
    return f"{median * 1e6:,.0f} µs" if median < 1e-3 else f"{median * 1e3:,.1f} ms"


def against_httpx(times: Times, size: int = 0) -> Mapping[str, str]:
    """httpx's median, and everybody's ratio to it."""
    base = times[HTTPX.name, size]
    cells = {name: ratio(values, base) for (name, one), values in times.items() if one == size}
    return cells | {HTTPX.name: duration(base)}


def growth(times: Times, size: int, base: int) -> Mapping[str, str]:
    """Everybody's ratio to itself."""
    names = [name for name, one in times if one == size]
    return {name: ratio(times[name, size], times[name, base]) for name in names}


# --- one request at a time ----------------------------------------------------------------------


def sync_batch(name: str, send: Send, job: Job) -> Batch:
    def work() -> None:
        for _ in range(job.requests):
            send(job.method, job.url, content=job.content(name))

    return lambda: cpu(work, job.requests)


def async_batch(runner: asyncio.Runner, name: str, send: Send, job: Job) -> Batch:
    async def work() -> None:
        for _ in range(job.requests):
            await send(job.method, job.url, content=job.content(name))

    return lambda: cpu(lambda: runner.run(work()), job.requests)


@contextmanager
def opened(
    contenders: Iterable[Contender], setup: Setup
) -> Iterator[tuple[asyncio.Runner, dict[str, Send]]]:
    """An event loop, and an open async client of each on it."""
    stack = AsyncExitStack()

    async def enter() -> dict[str, Send]:
        return {
            one.name: await stack.enter_async_context(one.aopen(setup))
            for one in contenders
            if one.aopen
        }

    with asyncio.Runner() as runner:
        try:
            yield runner, runner.run(enter())
        finally:
            runner.run(stack.aclose())


def sync_requests(
    job: Job, setup: Setup, contenders: Sequence[Contender] = LAYERS, rounds: int = 25
) -> Mapping[str, str]:
    """Sequential requests of the sync clients."""
    with ExitStack() as stack:
        sends = {one.name: stack.enter_context(one.open(setup)) for one in contenders}
        batches = {(name, 0): sync_batch(name, send, job) for name, send in sends.items()}
        return against_httpx(interleaved(batches, rounds))


def async_requests(
    job: Job, setup: Setup, contenders: Sequence[Contender] = LAYERS, rounds: int = 25
) -> Mapping[str, str]:
    """The same of the async clients, on asyncio."""
    with opened(contenders, setup) as (runner, sends):
        batches = {(name, 0): async_batch(runner, name, send, job) for name, send in sends.items()}
        return against_httpx(interleaved(batches, rounds))


def one_at_a_time() -> Iterator[Row]:
    """A request that succeeds at once: what each layer adds."""
    yield "a GET by MockTransport, sync", sync_requests(Job("http://x/"), mock())
    yield "the same, asyncio", async_requests(Job("http://x/"), mock())
    with Loopback() as server:
        job = Job(server.url)
        yield "a GET over a kept connection, sync", sync_requests(job, Setup())
        yield "the same, asyncio", async_requests(job, Setup(), [*LAYERS, *AIOHTTP])


# --- bodies, and HTTP/2 -------------------------------------------------------------------------


def bodies() -> Iterator[Row]:
    """Over HTTP/1.1, and over HTTP/2, which comes with TLS; one at a time, then many."""
    with Loopback() as server, uploads() as all_uploads:
        setup = Setup(timeout=60)
        for upload in all_uploads:
            yield from sent(upload, "HTTP/1.1", Job(server.url, 8, "POST"), setup)
        yield from received("HTTP/1.1", server.url, setup)
    with Loopback(tls=True) as server, uploads() as (*_, upload):
        setup = Setup(timeout=60, http2=True, verify=server.trust())
        yield from sent(upload, "HTTP/2", Job(server.url, 1, "POST"), setup)
        yield from received("HTTP/2", server.url, setup)
        yield from in_both_flavours("a GET over HTTP/2", Job(server.url), setup)
        yield from in_flight_over_http2(f"{server.url}10", setup)


def sent(upload: Upload, protocol: str, job: Job, setup: Setup) -> Iterator[Row]:
    """An upload, answered with two bytes."""
    label = f"{upload.label} over {protocol}, sync"
    yield label, sync_requests(replace(job, content=upload.content), setup, PAIR, 15)
    job = replace(job, content=upload.async_content)
    yield upload.async_label, async_requests(job, setup, PAIR, 15)


def received(protocol: str, url: str, setup: Setup) -> Iterator[Row]:
    """Answers that are large, and of a usual size."""
    large, usual = Job(f"{url}0?{SIZE}", 1), Job(f"{url}0?{100 * 2**10}", 20)
    yield from in_both_flavours(f"8 MiB received over {protocol}", large, setup)
    yield from in_both_flavours(f"100 KiB received over {protocol}", usual, setup)


def in_both_flavours(label: str, job: Job, setup: Setup) -> Iterator[Row]:
    yield f"{label}, sync", sync_requests(job, setup, PAIR, 15)
    yield "the same, asyncio", async_requests(job, setup, PAIR, 15)


def in_flight_over_http2(url: str, setup: Setup) -> Iterator[Row]:
    """All on one connection."""
    with opened(PAIR, setup) as (runner, sends):
        for callers, each in ((10, 20), (100, 4)):
            batches: dict[Key, Batch] = {}
            for name, send in sends.items():
                batches[name, 0] = crowd_batch(runner, send, url, callers, each)
            times = interleaved(batches, 9)
            yield f"{callers} requests in flight over HTTP/2", against_httpx(times)


# --- many requests ------------------------------------------------------------------------------


async def crowd(send: Send, url: str, callers: int, each: int) -> None:
    """So many callers at a time, each with so many requests, one after the other."""

    async def call() -> None:
        for _ in range(each):
            await send("GET", url)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(call())


def crowd_batch(runner: asyncio.Runner, send: Send, url: str, callers: int, each: int) -> Batch:
    return lambda: cpu(lambda: runner.run(crowd(send, url, callers, each)), callers * each)


def in_flight() -> Iterator[Row]:
    """CPU per request by the number of callers; every caller has a connection of its own."""
    batches: dict[Key, Batch] = {}
    with ExitStack() as stack:
        url = f"{stack.enter_context(Loopback()).url}10"
        for callers, each in ((10, 40), (50, 8), (200, 1)):
            setup = Setup(limits=WIDE, timeout=60)
            pools = POOLS if callers < 200 else [HTTPX, OWN]  # 20 ms a request on httpx's
            runner, sends = stack.enter_context(opened([*pools, *AIOHTTP], setup))
            for name, send in sends.items():
                batches[name, callers] = crowd_batch(runner, send, url, callers, each)
        times = interleaved(batches, 3)
    for callers in (10, 50, 200):
        yield f"{callers} requests in flight", against_httpx(times, callers)
    yield "200 in flight : 10 in flight", growth(times, 200, 10)


def connections_opened() -> Iterator[Row]:
    """Counted by the server, which takes 40 ms for an answer."""
    for keepalive in (20, 50):
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=keepalive)
        setup = Setup(limits=limits, timeout=60)
        label = f"connections opened, 1000 requests by 50 {{}}, limits 50 / {keepalive}"
        yield label.format("tasks"), {one.name: opened_by_tasks(one, setup) for one in POOLS}
        yield label.format("threads"), {one.name: opened_by_threads(one, setup) for one in POOLS}


def opened_by_tasks(contender: Contender, setup: Setup) -> str:
    with Loopback() as server, opened([contender], setup) as (runner, sends):
        runner.run(crowd(sends[contender.name], f"{server.url}40", 50, 20))
        return str(server.counts()["opened"])


def opened_by_threads(contender: Contender, setup: Setup) -> str:
    with Loopback() as server, contender.open(setup) as send:
        start = threading.Barrier(50)

        def call() -> None:
            start.wait(10)
            for _ in range(20):
                send("GET", f"{server.url}40")

        with ThreadPoolExecutor(50) as executor:
            for future in [executor.submit(call) for _ in range(50)]:
                future.result()
        return str(server.counts()["opened"])


def idle_connections() -> Iterator[Row]:
    """Sequential requests on a pool that holds idle connections, to one host or to many."""
    for hosts, where, numbers in ((1, "one host", (1, 50, 200)), (200, "200 hosts", (1, 200))):
        batches: dict[Key, Batch] = {}
        with ExitStack() as stack:
            server = stack.enter_context(Loopback(hosts))
            for idle in numbers:
                setup = Setup(limits=WIDE, timeout=60)
                runner, sends = stack.enter_context(opened(POOLS, setup))
                for name, send in sends.items():
                    runner.run(fill(send, server, idle))
                    batches[name, idle] = async_batch(runner, name, send, Job(server.url, 20))
            times = interleaved(batches, 7)
        for idle in numbers:
            yield f"one at a time beside {idle} idle, {where}", against_httpx(times, idle)
        yield f"200 idle : 1 idle, {where}", growth(times, 200, 1)


async def fill(send: Send, server: Loopback, idle: int) -> None:
    """Open so many connections at once; they stay."""
    server.counts()
    async with asyncio.TaskGroup() as tasks:
        for url in itertools.islice(itertools.cycle(server.urls), idle):
            tasks.create_task(send("GET", f"{url}300"))
    assert server.counts()["opened"] == idle


# --- construction and import --------------------------------------------------------------------


def construction() -> Iterator[Row]:
    """The n-th client with nothing set."""
    proxies = {"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
    variables: dict[str, dict[str, str]] = {"": {}, ", proxy variables set": proxies}
    for label, values in variables.items():
        with patch.dict(os.environ, values):
            batches = {(one.name, 0): construct_batch(one.make) for one in POOLS if one.make}
            times = interleaved(batches, 7)
        yield f"the n-th client{label}", {name: duration(one) for (name, _), one in times.items()}


def construct_batch(make: Callable[[], httpx.Client]) -> Batch:
    def batch() -> float:
        clients = [make()]  # which pays for the memory that another's clients have left
        seconds = cpu(lambda: clients.extend(make() for _ in range(5)), 5)
        for client in clients:
            client.close()
        return seconds

    return batch


ALIAS = "import httpx2; httpx2.alias_httpx(); " if httpx.__name__ == HTTPX2.name else ""
IMPORTS = {
    HTTPX.name: "import httpx",
    HTTPX_RETRIES.name: "import httpx_retries",
    STAMINA.name: "import httpx, stamina",
    TENACITY.name: "import httpx, tenacity",
    OWN.name: "import httpx_production",
}
FIRST_CLIENTS = {
    HTTPX.name: "import httpx; httpx.Client(http2=True)",
    OWN.name: "import httpx_production; httpx_production.ProductionHTTPClient()",
}


def imports() -> Iterator[Row]:
    """Each in a fresh interpreter; the CPU time from its first line on, the alias included."""
    names = {one.name for one in LAYERS}
    for label, codes in (("import", IMPORTS), ("import and first client, HTTP/2", FIRST_CLIENTS)):
        with TemporaryDirectory() as cache:
            chosen = {name: ALIAS + code for name, code in codes.items() if name in names}
            batches = {(name, 0): import_batch(code, cache) for name, code in chosen.items()}
            yield label, against_httpx(interleaved(batches, 11))


def import_batch(code: str, cache: str) -> Batch:
    """Byte code comes from a cache that the first round fills, whatever the environment says."""
    timed = f"import time; t = time.process_time(); {code}; print(time.process_time() - t)"
    command = [sys.executable, "-c", timed]
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": cache}
    variables.pop("PYTHONPATH", None)  # it would bring the alias before the clock is read
    return lambda: float(subprocess.check_output(command, env=variables, timeout=60))


# --- httpx2 -------------------------------------------------------------------------------------


def rows_on_httpx2() -> list[Mapping[str, str]]:
    """httpx2's cells, and ours to httpx2, row by row."""
    if find_spec("httpx2") is None:
        return []
    folder = Path(__file__).parent.parent / "under_httpx2"
    rows = subprocess.check_output(
        [sys.executable, __file__, "--json"], env=os.environ | {"PYTHONPATH": str(folder)}
    )
    return list(json.loads(rows))


PARTS = (
    one_at_a_time, bodies, in_flight, connections_opened, idle_connections, construction, imports,
)  # fmt: skip


def print_rows() -> None:
    """In the process that has the alias."""
    rows = [cells for part in PARTS for _, cells in part()]
    print(json.dumps([{ALIASED[name]: cell for name, cell in cells.items()} for cells in rows]))


# --- the table ----------------------------------------------------------------------------------


def machine() -> str:
    """What the figures were measured on."""
    versions = [f"{platform.python_implementation()} {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0))
    return f"{', '.join(versions)}; {platform.system()} {platform.machine()}, {cores} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instructions", action="store_true", help="count instructions too")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    started = time.monotonic()
    gc.freeze()  # what was imported is looked at no more by the collections before each batch
    if arguments.json:
        return print_rows()
    on_httpx2 = rows_on_httpx2()
    beside = iter(on_httpx2)
    columns = [one.name for one in [*LAYERS, *AIOHTTP]] + list(ALIASED.values()) * bool(on_httpx2)
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)
    for part in [*PARTS, *([instructions.rows] if arguments.instructions else [])]:
        for label, row in part():
            cells = {**row, **next(beside, {})}
            print(f"| {label} | {' | '.join(cells.get(one, '') for one in columns)} |", flush=True)
    print(
        f"\n{machine()}. CPU time of the client (median) for httpx and httpx2, ratios to it for "
        "the others (median and quartiles of interleaved rounds). "
        f"{time.monotonic() - started:.0f} s in all."
    )


if __name__ == "__main__":
    main()
