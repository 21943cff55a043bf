"""no_waits(): tests of applications run through every retry in no time.

Subject: `testing.py`.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

import anyio
import httpx
import pytest
from conftest import Flavour
from servers import ScriptedServer, answer, refused_port

from httpx_production import ProductionHTTPClient, RetryPolicy, client, retry
from httpx_production.testing import no_waits

pytestmark = pytest.mark.anyio

TOO_FEW = "No response can be found for GET request on https://x/ amongst: none"


@pytest.fixture(autouse=True)
def in_no_time() -> Iterator[None]:
    """Each test here would take 12 s and more if one client waited."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


def functions() -> tuple[object, ...]:
    return client.sleep, client.async_sleep, retry.is_permanent


async def test_a_client_retries_without_waiting(flavour: Flavour) -> None:
    """Five attempts with their delays, as in production, but for the time."""
    made_before = flavour.client()
    with no_waits(), ScriptedServer(lambda request: answer(503)) as server:
        for one in (made_before, flavour.client()):
            response = await flavour.run(one.get(server.url))
            delays = [failed.delay for failed in response.extensions["retries"]]
            assert [round(delay + 0.2) for delay in delays[:2]] == [1, 2]
            assert sum(delays) >= 12
        assert len(server.requests) == 10


async def test_exceptions_and_long_wishes_are_not_waited_for_either(flavour: Flavour) -> None:
    """A refused port; a Retry-After of 300 s."""
    with no_waits(), refused_port() as url:
        outcome = await flavour.outcome(flavour.client().get, url)
        assert "after 5 attempts" in outcome.__notes__[0]
        answers = iter([429, 200])
        transport = httpx.MockTransport(
            lambda request: httpx.Response(next(answers), headers={"Retry-After": "300"})
        )
        response = await flavour.run(flavour.client(transport=transport).get("https://x"))
        assert (response.status_code, response.extensions["retries"][0].delay) == (200, 300.0)


async def test_a_test_with_too_few_answers_fails_at_once(flavour: Flavour) -> None:
    """What pytest-httpx raises then is a TimeoutException, the most retriable of all."""
    requests = 0

    def unknown(request: httpx.Request) -> httpx.Response:
        nonlocal requests
        requests += 1
        raise httpx.TimeoutException(TOO_FEW, request=request)

    one = flavour.client(transport=httpx.MockTransport(unknown))
    with no_waits():
        outcome = await flavour.outcome(one.get, "https://x/")
    assert (str(outcome), requests) == (TOO_FEW, 1)


def test_afterwards_everything_is_as_before() -> None:
    """Also when a block ends by an exception, or within another."""
    before = functions()
    with no_waits():
        replaced = functions()
        assert not set(replaced) & set(before)
        with pytest.raises(KeyError), no_waits():
            raise KeyError
        assert functions() == replaced
    assert functions() == before
    assert RetryPolicy().covers(httpx.TimeoutException(TOO_FEW))


def test_blocks_that_overlap_end_with_the_last_one() -> None:
    """Those of two threads or tasks need not end in order."""
    before = functions()
    first, second = no_waits(), no_waits()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not set(functions()) & set(before)
    second.__exit__(None, None, None)
    assert functions() == before


def test_what_is_permanent_stays_so() -> None:
    """A proxy's 407 is final here too, and a timeout is not."""
    with no_waits():
        assert not RetryPolicy().covers(httpx.ProxyError("407 Proxy Authentication Required"))
        assert RetryPolicy().covers(httpx.ReadTimeout(""))


@pytest.mark.flavours("asyncio", "trio")
async def test_other_tasks_run_between_the_attempts(flavour: Flavour) -> None:
    """A loop of retries that never gives way would change what an application's test shows."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    transport = httpx.MockTransport(lambda request: httpx.Response(503))
    with no_waits():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await flavour.run(flavour.client(transport=transport).get("https://x"))
            tasks.cancel_scope.cancel()
    assert turns >= 3


def test_it_works_as_a_decorator() -> None:
    """Of a function that is no coroutine."""

    @no_waits()
    def get() -> httpx.Response:
        transport = httpx.MockTransport(lambda request: httpx.Response(503))
        with ProductionHTTPClient(transport=transport) as one:
            return one.get("https://x")

    assert len(get().extensions["retries"]) == 4


def test_the_package_does_not_import_it() -> None:
    """What is for tests costs a program nothing."""
    text = "import sys, httpx_production; print('httpx_production.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=15)
    assert done.stdout.strip() == "False"
