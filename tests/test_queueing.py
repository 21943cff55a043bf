"""More calls at a time than connections: the README's recipe lets them queue, by the clock.

And what is said when there are none, or no client any more.

Sockets and seconds are real ones; what the README says of 12 s is tried with 0.3 s.
"""

import re
import threading
import time
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from documents import README
from servers import Connection, Received, ScriptedServer, Step, answer, chunked

from httpx_production import RetryPolicy, jittered_backoff

pytestmark = pytest.mark.anyio

SCALE = 40  # 12 s become 0.3 s


def scaled(options: str) -> dict[str, Any]:
    """A recipe of the README, with the default pool_timeout where it has none, in less time."""
    given = {"pool_timeout": 2, **eval(f"dict({options})")}
    times = {name: value and value / SCALE for name, value in given.items()}
    backoff = RetryPolicy(backoff=lambda attempt: jittered_backoff(attempt) / SCALE)
    return {"retry": backoff, "http2": False, **times}


async def calls(flavour: Flavour, **options: Any) -> list[Any]:
    """The outcomes of 12 calls at once, of 0.3 s each, through 3 connections."""
    with ScriptedServer(lambda request: answer(delay=0.3)) as server:
        client = flavour.client(max_connections=3, **options)
        outcomes = await flavour.gather([lambda: client.get(server.url)] * 12)
        assert server.connections <= 3
    return [getattr(one, "status_code", type(one)) for one in outcomes]


async def test_the_recipe_for_slow_apis_loses_no_call(flavour: Flavour) -> None:
    """Four rounds of 0.3 s: the last calls queue three times as long as a call takes."""
    (recipe,) = re.findall(r"^\| slow APIs [^|]*\| `([^`]*)`", README.text, re.MULTILINE)
    assert await calls(flavour, **scaled(recipe)) == [200] * 12


async def test_a_long_read_timeout_alone_loses_calls(flavour: Flavour) -> None:
    """Why the recipe says more: retries included, a call has queued for 25 s and less then."""
    lost: list[Any] = []
    all_lost = threading.Event()

    def late(request: Received) -> Step:
        assert all_lost.wait(15)
        return answer()

    with ScriptedServer(late) as server:
        options = scaled("read_timeout=1200, total_timeout=3000")
        client = flavour.client(max_connections=3, **options)

        async def call() -> Any:
            outcome = await flavour.outcome(client.get, server.url)
            if isinstance(outcome, httpx.PoolTimeout):
                lost.append(outcome)
            if len(lost) == 9:  # all but those that have the three connections
                all_lost.set()
            return getattr(outcome, "status_code", type(outcome))

        outcomes = await flavour.gather([flavour.blocking(call)] * 12)
    assert sorted(map(str, outcomes)) == ["200"] * 3 + [str(httpx.PoolTimeout)] * 9


async def test_total_timeout_bounds_queueing_without_a_pool_timeout(flavour: Flavour) -> None:
    """What the recipe relies on; the exception says what ran out, and what holds the connection."""
    with ScriptedServer([chunked(b"part", end=b"", then="hang")]) as server:
        client = flavour.client(max_connections=1, pool_timeout=None, total_timeout=None)
        async with flavour.using(client.stream("GET", server.url)):
            started = time.monotonic()
            changes = {"retry": {"total_timeout": 0.4}}
            exc = await flavour.outcome(client.get, server.url, extensions=changes)
            assert 0.3 < time.monotonic() - started < 0.4 + 1.5
    assert isinstance(exc, httpx.PoolTimeout)
    assert "total_timeout of 0.4 s ran out" in exc.__notes__


# --- what a PoolTimeout says ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
async def test_a_pool_timeout_blames_responses_that_were_left_open(
    flavour: Flavour, number: int
) -> None:
    """Not the limit, which a leak would use up however high it is."""
    said = {
        1: "1 of 1 connection in use, 1 of them by a response that was not closed",
        2: "2 of 2 connections in use, 2 of them by responses that were not closed",
    }[number]
    with ScriptedServer([chunked(b"part", end=b"", then="hang")] * number) as server:
        client = flavour.client(max_connections=number, pool_timeout=0.1, max_attempts=1)
        left_open = [
            await flavour.run(client.send(client.build_request("GET", server.url), stream=True))
            for _ in range(number)
        ]
        exc = await flavour.outcome(client.get, server.url)
        for response in left_open:
            await flavour.close(response)
    assert isinstance(exc, httpx.PoolTimeout)
    assert f"{said}, 1 request waiting; close streamed responses, or raise" in str(exc)


async def test_a_pool_timeout_does_not_blame_a_body_that_is_being_read(flavour: Flavour) -> None:
    """`get()` reads one, too: who has never streamed anything is not told to close it."""
    said = threading.Event()

    def end(connection: Connection) -> None:
        assert said.wait(15)
        connection.sock.sendall(b"0\r\n\r\n")

    with ScriptedServer([chunked(b"part", end=b"", then=end)]) as server:
        client = flavour.client(max_connections=1, pool_timeout=0.1, max_attempts=1)
        async with flavour.using(client.stream("GET", server.url)) as response:
            async for part in flavour.chunks(response):
                assert part == b"part"
                exc = await flavour.outcome(client.get, server.url)
                said.set()
    assert isinstance(exc, httpx.PoolTimeout)
    assert str(exc).endswith(
        "1 of 1 connection in use, 1 request waiting; raise max_connections or pool_timeout"
    )


# --- use after close ------------------------------------------------------------------------------


async def test_a_client_that_was_closed_during_a_wait_says_so(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The next attempt is not sent; the error is httpx's, in clear words, and not retried."""
    with ScriptedServer([answer(503)]) as server:
        client = flavour.client()

        async def close(failed: Any) -> None:
            await flavour.close(client)

        hook = (lambda failed: client.close()) if flavour.sync else close
        client.event_hooks["retry"] = [hook]
        with pytest.raises(RuntimeError, match="Cannot send a request, as the client has been"):
            await flavour.run(client.get(server.url))
        assert (len(server.requests), len(clock.delays)) == (1, 1)
