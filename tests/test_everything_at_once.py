"""Everything at once: many concurrent calls, many kinds of faults, and nothing lost or left over.

HTTPX_PRODUCTION_SOAK is the soak's length in seconds, for each flavour (1 by default).
"""

import gc
import gzip
import os
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import (
    Received,
    ScriptedServer,
    Step,
    answer,
    chunked,
    client_context,
    cut,
    drip,
    fin,
    hang,
    message,
    reset,
)
from wording import HTTPCORE, HTTPX

from httpx_production import RetryPolicy

pytestmark = [
    pytest.mark.anyio,
    # httpx and httpcore leave async generators to the garbage collector when a body breaks.
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]

SOAK = float(os.environ.get("HTTPX_PRODUCTION_SOAK", "1"))
AT_ONCE = RetryPolicy(backoff=lambda attempt: 0.0)
FDS = Path("/proc/self/fd")


def right(path: str) -> bytes:
    """The one right answer to a question: its length differs from the neighbours'."""
    return path.encode() * (7 + sum(path.encode()) % 100)


class Chaos:
    """A handler that lets a share of the requests fail, by a seed, so that each run is the same.

    What happens depends on the question and on how often it was asked, not on the order; the
    fifth time it is always answered.
    """

    def __init__(self, seed: int, share: float, *, stalls: bool = True) -> None:
        self.seed, self.share = seed, share
        self.visits: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.kinds = [kind for kind in FAULTS if stalls or kind != "stalled"]

    def __call__(self, request: Received) -> Step:
        visit = self.visits[request.target]
        self.visits[request.target] += 1
        chance = random.Random(f"{self.seed} {request.target} {visit}")
        if visit >= 4 or chance.random() >= self.share:
            return answer(200, right(request.path), delay=chance.random() / 50)
        kind = chance.choice(self.kinds)
        self.faults[kind] += 1
        return FAULTS[kind](right(request.path))


FAULTS = {
    "503": lambda body: answer(503, b"busy"),
    "503 that drips": lambda body: drip(message(503, body), 0.05, at_once=100),
    "429": lambda body: answer(429, headers={"Retry-After": "0"}),
    "reset": lambda body: reset(),
    "closed": lambda body: fin(),
    "stalled": lambda body: hang(),
    "cut": lambda body: cut(body, 5),
    "cut by a reset": lambda body: cut(body, 5, then="reset"),
    "cut in a chunk": lambda body: chunked(body, end=b"99\r\nabc", then="fin"),
    "short gzip": lambda body: answer(200, gzip.compress(body)[:-9], {"Content-Encoding": "gzip"}),
    "garbage": lambda body: Step(send=[b"\0\1\2garbage\r\n\r\n"], then="fin"),
    "answered twice": lambda body: Step(send=[message(200, body) + message(200, b"wrong")]),
}  # "answered twice" is no fault of that answer, but must not become the next one


def descriptors() -> int:
    """How many files and sockets this process has open."""
    gc.collect()
    return len(list(FDS.iterdir()))


def living() -> int:
    """How many objects of the libraries under test are alive."""
    gc.collect()
    names = (HTTPX, HTTPCORE, "h11", "h2", "hpack", "anyio")
    kinds = Counter(type(thing).__module__.split(".")[0] for thing in gc.get_objects())
    return sum(kinds[name] for name in (*names, "httpx_production"))


def check(outcomes: list[Any], paths: list[str]) -> None:
    """Every question has its own answer, whole."""
    failed = {path: o for path, o in zip(paths, outcomes, strict=True) if isinstance(o, Exception)}
    assert not failed
    for path, response in zip(paths, outcomes, strict=True):
        assert (response.status_code, response.content) == (200, right(path))


@pytest.mark.parametrize(("connections", "tls"), [(50, False), (5, True)])
async def test_a_hundred_gets_at_once_each_get_their_own_answer(flavour, connections, tls):
    """30 % faults of a dozen kinds: 100 right answers, no PoolTimeout, nothing left in the pool."""
    chaos = Chaos(seed=connections, share=0.3, stalls=connections > 5)
    paths = [f"/question/{number}" for number in range(100)]
    with ScriptedServer(chaos, tls=tls) as server:
        client = flavour.client(
            retry=AT_ONCE,
            max_connections=connections,
            pool_timeout=15.0,
            read_timeout=1.0,
            verify=client_context() if tls else True,
        )
        outcomes = await flavour.gather(partial(client.get, server.url + path) for path in paths)
        check(outcomes, paths)
        stats = client.pool_stats()
        assert (stats.in_use, stats.waiting) == (0, 0)
        assert stats.connections <= connections
        await flavour.close(client)
        server.settle()
    assert len(chaos.faults) >= 7
    assert 20 <= chaos.faults.total() <= 80


async def test_posts_among_them_are_sent_once(flavour):
    """50 POSTs and 50 GETs at once, half of them failing: no POST arrives twice."""
    chaos = Chaos(seed=3, share=0.5, stalls=False)
    with ScriptedServer(chaos) as server:
        client = flavour.client(retry=AT_ONCE)
        calls = [
            partial(client.request, "POST" if number % 2 else "GET", f"{server.url}/{number}")
            for number in range(100)
        ]
        outcomes = await flavour.gather(calls)
    posted = Counter(request.path for request in server.requests if request.method == "POST")
    assert len(posted) == 50
    assert set(posted.values()) == {1}
    assert all(isinstance(outcome, httpx.Response) for outcome in outcomes[::2])
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert errors
    assert all(isinstance(error, httpx.TransportError) for error in errors)


async def test_a_slow_neighbour_delays_nobody(flavour):
    """While one call is in a long wait between its attempts, others use the same single slot."""
    patient = RetryPolicy(backoff=lambda attempt: 2.0, max_attempts=2)
    with ScriptedServer(lambda request: answer(503 if request.path == "/slow" else 200)) as server:
        client = flavour.client(max_connections=1, pool_timeout=1.5)
        slow = partial(client.get, server.url + "/slow", extensions={"retry": patient})
        start = time.monotonic()
        outcomes = await flavour.gather([slow, *[partial(client.get, server.url)] * 9])
    assert [outcome.status_code for outcome in outcomes] == [503] + [200] * 9
    assert time.monotonic() - start >= 2.0


@pytest.mark.time_limit(20 + 2 * SOAK)
async def test_soak(flavour):
    """Round after round of faulty calls: nothing lost, no descriptor leaked, memory flat."""
    chaos = Chaos(seed=4, share=0.3, stalls=False)
    before = descriptors()
    living_after: list[int] = []
    end = time.monotonic() + SOAK
    with ScriptedServer(chaos) as server:
        client = flavour.client(retry=AT_ONCE, max_connections=20, pool_timeout=15.0)
        while time.monotonic() < end or len(living_after) < 4:
            paths = [f"/{len(living_after)}/{number}" for number in range(50)]
            calls = [partial(client.get, server.url + path) for path in paths]
            check(await flavour.gather(calls), paths)
            stats = client.pool_stats()
            assert (stats.in_use, stats.waiting) == (0, 0)
            assert stats.connections <= 20
            server.requests.clear()
            chaos.visits.clear()
            calls.clear()
            living_after.append(living())
        await flavour.close(client)
        server.settle()
    assert descriptors() <= before
    half = len(living_after) // 2
    # A kept connection is some 17 objects, and between none and 20 are kept after a round.
    assert min(living_after[half:]) <= max(living_after[:half]) + 17 * 20
