"""What the tests of the transport share: a client that does not retry, time limits, programs."""

import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import Flavour
from servers import client_context

ASYNC = pytest.mark.flavours("asyncio", "trio")
SYNC = pytest.mark.flavours("sync")
# trio's own warning about httpx's generators, when what consumes them fails; plain httpx has it.
generators_left = pytest.mark.filterwarnings("ignore:Async generator 'http")
one_connection = pytest.mark.usefixtures("one_connection")  # for servers that wait for all on it

PROMPT = 1.5  # seconds: at once, on a machine whose cores are all busy


def one_attempt(flavour: Flavour, **options: Any) -> Any:
    """A client that doesn't retry: what the transport does by itself."""
    options = {"verify": client_context(), "max_attempts": 1, "read_timeout": 8.0, **options}
    return flavour.client(**options)


@contextlib.contextmanager
def within(limit: float, at_least: float = 0.0) -> Iterator[None]:
    """The block takes no longer than `limit` seconds, and no less than `at_least`."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert at_least <= took < limit, f"took {took:.2f} s"


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait, without blocking an event loop, until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await anyio.sleep(0.005)


class Caller:
    """One call that runs beside the test, in a thread or in a task of its own."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self.done = threading.Event()
        self.took = 0.0
        self.scope = anyio.CancelScope()


class Callers:
    """Calls that run beside the test; leaving the block waits for them all."""

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour
        self._threads: list[threading.Thread] = []
        self._tasks: Any = None

    async def __aenter__(self) -> "Callers":
        if not self._flavour.sync:
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._tasks is not None:
            if exc_info[0] is not None:
                self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(*exc_info)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a caller is stuck"

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Caller:
        """Begin a call; what it returns, or raises, will be the caller's outcome."""
        caller = Caller()
        if self._flavour.sync:
            thread = threading.Thread(
                target=self._in_thread, args=(caller, function, args, kwargs), daemon=True
            )
            self._threads.append(thread)
            thread.start()
        else:
            self._tasks.start_soon(self._in_task, caller, function, args, kwargs)
        return caller

    def _in_thread(self, caller: Caller, function: Any, args: Any, kwargs: Any) -> None:
        started = time.monotonic()
        try:
            caller.outcome = function(*args, **kwargs)
        except Exception as exc:
            caller.outcome = exc
        caller.took = time.monotonic() - started
        caller.done.set()

    async def _in_task(self, caller: Caller, function: Any, args: Any, kwargs: Any) -> None:
        started = time.monotonic()
        with caller.scope:
            caller.outcome = await self._flavour.outcome(function, *args, **kwargs)
        caller.took = time.monotonic() - started
        caller.done.set()


async def finished(*callers: Caller, seconds: float = 15.0) -> list[Any]:
    """The outcomes of callers, that have to be there in time."""
    for caller in callers:
        await until(caller.done.is_set, seconds)
    return [caller.outcome for caller in callers]


def in_use(client: Any) -> tuple[int, int]:
    """How many connections are in use, and how many requests wait."""
    stats = client.pool_stats()
    return stats.in_use, stats.waiting


PROGRAM = """
import faulthandler, gc, os, signal, sys, threading, time, warnings
faulthandler.dump_traceback_later({limit}, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where pytest has no terminal
import anyio, httpx
from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient
import ssl
url, ca = sys.argv[1:3]
context = ssl.create_default_context(cafile=ca)
options = dict(verify=context, trust_env=False, max_attempts=1)
"""


def run_program(text: str, url: str, ca: Path, limit: float = 14.0) -> str:
    """What a program prints, in a process of its own that ends after `limit` seconds."""
    program = PROGRAM.format(limit=limit) + textwrap.dedent(text)
    result = subprocess.run(
        [sys.executable, "-c", program, url, str(ca)],
        capture_output=True,
        text=True,
        timeout=limit + 8,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-500:]
    return result.stdout
