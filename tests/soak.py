"""Everything at once, for as long as asked: no hang, no wrong answer, nothing lost.

    uv run tests/soak.py --seconds 60 --seed 7 [--flavours sync asyncio trio]

Twenty callers of one client, each with its own random plans: HTTP/1.1, TLS and HTTP/2 to servers
that misbehave (`soak_servers.py`), answers read whole, slowly, half, or dropped, limits and
cancellations of all kinds; meanwhile the garbage collector and fork() strike at random moments. It
goes in rounds, after each of which everything must have been given back. What fails is printed with
its plan, what hangs with its stack.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import http.cookiejar
import json
import logging
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import anyio
import httpx
import trio
from conftest import FLAVOURS, Flavour
from soak_plans import LIMITS, Plan

from httpx_production import RetryPolicy

CALLERS = 20
CONNECTIONS = 12
ROUND = 15.0  # seconds
HUNG = 40.0  # seconds that no call may take
OVERRUN = 3.0  # seconds that a busy machine may take beyond a limit

type Coroutines = Callable[[], Coroutine[Any, Any, Any]]


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, in the main thread of the sync client."""


class Soak:
    """One flavour's: the rounds, what is under way, what went wrong."""

    def __init__(self, name: str, seed: int) -> None:
        self.flavour, self.seed = Flavour(name), seed
        self.running: dict[str, tuple[Plan, float]] = {}
        self.outcomes: Counter[str] = Counter()
        self.failures = self.forks = 0
        self.posted: set[str] = set()  # those that were answered
        self.over = threading.Event()  # no new calls
        self.armed = False  # for Ctrl-C
        self.loop: Any = None  # asyncio's, or trio's root task
        self.client: Any = None
        self.urls: dict[str, str] = {}

    def fail(self, text: str) -> None:
        self.failures += 1
        print(f"FAILED (seed {self.seed}, {self.flavour.name}): {text}", flush=True)

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {self.flavour.name} {name}")

    # --- one call ---------------------------------------------------------------------------------

    async def call(self, plan: Plan) -> None:
        """Make a call within its limit, and judge what came of it."""
        started = time.monotonic()
        self.running[plan.number] = plan, started
        outcome = await self.limited(plan)
        if plan.limit == "total" and time.monotonic() - started > plan.seconds + OVERRUN:
            self.fail(f"{plan}\ntook {time.monotonic() - started:.2f} s")
        self.judge(plan, outcome)

    async def limited(self, plan: Plan) -> Any:
        """What `ask` returns, or None when it was cancelled."""
        if plan.limit == "anyio":
            with anyio.move_on_after(plan.seconds):
                return await self.ask(plan)
        elif plan.limit == "trio":
            with trio.move_on_after(plan.seconds):
                return await self.ask(plan)
        elif plan.limit == "asyncio":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(plan.seconds):
                    return await self.ask(plan)
        elif plan.limit == "task":
            task = asyncio.ensure_future(self.ask(plan))
            await asyncio.sleep(plan.seconds)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                return await task
        else:
            return await self.ask(plan)

    async def ask(self, plan: Plan) -> Any:
        """Return status and content, or the exception."""
        try:
            response = await self.flavour.run(
                self.client.send(self.request(plan), stream=plan.reading != "whole")
            )
            return response.status_code, await self.content_of(response, plan)
        except Exception as exc:
            return exc

    def request(self, plan: Plan) -> httpx.Request:
        bodies = {
            "bytes": lambda: plan.body,
            "generator": lambda: self.flavour.generator([plan.body[:5000], plan.body[5000:]]),
            "file": lambda: BytesIO(plan.body),
        }
        policy = RetryPolicy(
            max_attempts=8,
            backoff=lambda attempt: 0.01,
            retry_unsent=plan.size % 2 == 0,
            total_timeout=plan.seconds if plan.limit == "total" else None,
            attempt_timeout=plan.seconds if plan.limit == "attempt" else None,
        )
        request: httpx.Request = self.client.build_request(
            plan.method,
            self.urls[plan.kind] + plan.path,
            content=None if plan.method == "GET" else bodies[plan.body_is](),
            timeout=httpx.Timeout(15, read=0.7 if "stall" in plan.faults else 15, pool=30),
            extensions={"retry": policy},
        )
        return request

    async def content_of(self, response: Any, plan: Plan) -> bytes | None:
        """Read as much as planned; None where that is not to be judged."""
        if plan.reading == "whole":
            return bytes(response.content)
        if plan.limit == "closed":
            return await self.closed_meanwhile(response, plan.seconds)
        if plan.reading == "dropped":
            cycle: list[Any] = [response]
            cycle.append(cycle)  # the garbage collector alone gets at it
            await self.read(response, most=1)
            return None
        data = b""
        if plan.reading != "unread":
            most = 2 if plan.reading == "half" else None
            data = await self.read(response, most=most, slow=plan.reading == "slowly")
        await self.flavour.close(response)
        return None if plan.reading == "unread" else data

    async def read(self, response: Any, most: int | None = None, slow: bool = False) -> bytes:
        data: list[bytes] = []
        async with contextlib.aclosing(self.flavour.chunks(response)) as chunks:
            async for chunk in chunks:
                data.append(chunk)
                if slow:
                    await self.pause(0.005)
                if len(data) == most:
                    break
        return b"".join(data)

    async def closed_meanwhile(self, response: Any, seconds: float) -> bytes:
        """Read while another thread, or task, closes the response."""
        if self.flavour.sync:
            timer = threading.Timer(seconds, response.close)
            timer.start()
            try:
                return await self.read(response)
            finally:
                timer.join()

        async def close() -> None:
            await anyio.sleep(seconds)
            await response.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            data = await self.flavour.outcome(self.read, response)
        if isinstance(data, Exception):
            raise data
        return bytes(data)

    async def pause(self, seconds: float) -> None:
        if self.flavour.sync:
            time.sleep(seconds)
        else:
            await anyio.sleep(seconds)

    def judge(self, plan: Plan, outcome: Any) -> None:
        """Is that what may come of such a plan?"""
        del self.running[plan.number]
        if outcome is None:
            self.outcomes[f"cancelled: {plan.limit}"] += 1
        elif isinstance(outcome, Exception):
            self.outcomes[type(outcome).__name__] += 1
            if not plan.may_raise(outcome):
                self.fail("\n".join([f"{plan}", *traceback.format_exception(outcome)]))
        else:
            status, data = outcome
            self.outcomes[f"{status}, {plan.reading}"] += 1
            if status == 200 and plan.method == "POST":
                self.posted.add(plan.number)
            is_right = data is None or plan.is_right(data)
            if not is_right if status == 200 else plan.must_succeed():
                self.fail(f"{plan}\n{status} {data and data[:200]!r}")

    # --- many of them -----------------------------------------------------------------------------

    async def caller(self, name: str) -> None:
        """Make one call after the other, until the time is over."""
        chance, number = self.chance(name), 0
        while not self.over.is_set():
            number += 1
            await self.call(Plan.draw(chance, f"{name}.{number}", LIMITS[self.flavour.name]))

    async def at_once(self, *functions: Coroutines) -> None:
        """Run them all; meanwhile the sync client's main thread is interrupted in its calls."""
        if not self.flavour.sync:
            async with anyio.create_task_group() as tasks:
                for function in functions:
                    tasks.start_soon(function)
            return
        threads = [threading.Thread(target=drive, args=(one,)) for one in functions]
        for thread in threads:
            thread.start()
        number = 0
        while not self.over.is_set():
            number += 1
            name = f"Ctrl-C.{time.monotonic_ns()}"
            self.interrupted_call(Plan.draw(self.chance(name), name, ["Ctrl-C"]))
        for thread in threads:
            thread.join()

    def interrupted_call(self, plan: Plan) -> None:
        """A call that Ctrl-C ends, somewhere."""
        plan.limit, outcome = "Ctrl-C", None
        self.running[plan.number] = plan, time.monotonic()
        with contextlib.suppress(Interrupt):
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + plan.seconds / 5)
            outcome = drive(lambda: self.ask(plan))
            self.armed = False
        self.judge(plan, outcome)

    def on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if not self.armed:
            return
        if frame is not None and frame.f_code.co_filename == http.cookiejar.__file__:
            # Between its lock's acquire() and `try` all threads would hang at their next cookies,
            # with any client: that is Python's.
            signal.setitimer(signal.ITIMER_REAL, 0.0001)
            return
        self.armed = False
        raise Interrupt

    def on_unraisable(self, unraisable: Any) -> None:
        """What is raised in a finalizer is lost: only Ctrl-C may be."""
        if not isinstance(unraisable.exc_value, Interrupt):
            self.fail(f"in a finalizer: {unraisable.exc_value!r} {unraisable.object!r}")

    def disturb(self, name: str) -> None:
        """In a thread of its own: collect garbage and fork, at random moments."""
        chance = self.chance(name)
        while not self.over.wait(chance.uniform(0.005, 0.2)):
            gc.set_threshold(chance.choice([50, 700]))
            if chance.random() < 0.8:
                gc.collect(chance.randrange(3))
            elif pid := self.fork():
                self.forks += 1
                if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                    self.fail(f"a child process ended with {code}")
            else:
                self.be_a_child()

    def fork(self) -> int:
        """Fork while nobody is within the cookie jar: its lock would stay locked in the child.

        (With any client: it is Python's.)
        """
        jar: Any = self.client.cookies.jar
        with jar._cookies_lock:
            return os.fork()

    def be_a_child(self) -> None:
        """Make a few calls of one's own with the parent's client."""
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, chain=True)
            signal.alarm(int(HUNG))
            sys.unraisablehook = lambda unraisable: None  # what the fork has left half-way
            gc.freeze()  # the parent's async generators: trio's finalizer waits for a lock of it
            self.failures = 0
            self.run_in_loop(self.child_s_calls)
        except BaseException:
            traceback.print_exc()
            self.failures += 1
        sys.stdout.flush()
        os._exit(min(self.failures, 1))

    async def child_s_calls(self) -> None:
        """Without TLS: another thread may have been within OpenSSL, whose locks stay locked then.

        (Python alone, two threads that shake hands: 1 child of 100 hangs.)
        """
        for number in range(2):
            name = f"child-{os.getpid()}-{number}"
            await self.call(Plan.draw(self.chance(name), name, ["total"], ("http",)))
        await self.flavour.close(self.client)

    # --- rounds -----------------------------------------------------------------------------------

    def run_in_loop(self, function: Coroutines) -> None:
        if self.flavour.sync:
            drive(function)
        else:
            anyio.run(function, backend=self.flavour.name)

    def round(self, number: int, seconds: float) -> None:
        """Callers of one client, in two event loops one after the other; then it is closed."""
        descriptors, threads = open_descriptors(), threading.active_count()
        self.posted.clear()
        with serving() as (self.urls, ca, stop):
            self.client = self.flavour.client(
                verify=ssl.create_default_context(cadata=ca),
                max_connections=CONNECTIONS,
                max_keepalive_connections=8,
                keepalive_expiry=0.5,
            )
            self.run_in_loop(lambda: self.leg(f"{number}.1", seconds / 2))
            self.run_in_loop(lambda: self.leg(f"{number}.2", seconds / 2, closes=True))
            facts = stop()
        stats = self.client.pool_stats()
        if stats.connections or facts["open"]:
            self.fail(f"not closed: {stats}; {facts['open']} connections, say the servers")
        self.client = None
        self.flavour._clients.clear()
        self.check(lambda: threading.active_count() <= threads, "threads are left")
        self.check(lambda: open_descriptors() <= descriptors, "descriptors are left")
        for post in self.posted | facts["posts"].keys():
            times = facts["posts"].get(post, 0)
            if times > 1 or (post in self.posted and not times):
                self.fail(f"POST {post} was processed {times} times")

    async def leg(self, name: str, seconds: float, *, closes: bool = False) -> None:
        """What goes on in one event loop."""
        self.loop = None
        if self.flavour.name == "asyncio":
            self.loop = asyncio.get_running_loop()
            self.loop.set_exception_handler(lambda loop, context: self.fail(f"{context}"))
        elif self.flavour.name == "trio":
            self.loop = trio.lowlevel.current_root_task()
        tasks = len(self.tasks())
        self.over.clear()
        besides = [threading.Thread(target=self.disturb, args=(name,))]
        besides.append(threading.Timer(seconds, self.over.set))
        for thread in besides:
            thread.start()
        await self.at_once(*(partial(self.caller, f"{name}.{n}") for n in range(CALLERS)))
        for thread in besides:
            thread.join()
        await self.settle(tasks)
        if closes:
            await self.close_in_use(name)
            await self.settle(tasks)

    async def settle(self, tasks: int) -> None:
        """Everything is given back, when the garbage collector has been there too."""

        def is_settled() -> bool:
            stats = self.client.pool_stats()
            return (stats.in_use, stats.waiting) == (0, 0) and len(self.tasks()) <= tasks

        until = time.monotonic() + 5
        while not is_settled():
            gc.collect()  # what it has dropped is taken back by who comes next
            await self.flavour.outcome(self.client.get, f"{self.urls['http']}/settling/1/")
            await self.pause(0.02)
            if time.monotonic() > until:
                self.show_tasks()
                return self.fail(f"not given back: {self.client.pool_stats()}, or tasks")

    async def close_in_use(self, name: str) -> None:
        """Close the client under its callers: each gets an error, at once."""
        chance = self.chance(f"{name}, closing")
        plans = [Plan.draw(chance, f"{name}.closing.{n}", [""]) for n in range(CALLERS)]
        for plan in plans:
            plan.method, plan.faults, plan.limit = "PUT", ["stall"], "closing"

        async def close() -> None:
            await self.pause(chance.uniform(0, 0.2))
            await self.flavour.close(self.client)

        started = time.monotonic()
        await self.at_once(*(partial(self.call, plan) for plan in plans), close)
        if time.monotonic() - started > OVERRUN:
            self.fail("closing the client did not end its calls")

    def check(self, condition: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + 12  # trio's idle threads stay for 10 s
        while not condition() and time.monotonic() < until:
            gc.collect()
            time.sleep(0.02)
        if not condition():
            self.fail(otherwise)

    # --- the watchdog -----------------------------------------------------------------------------

    def tasks(self) -> list[Any]:
        if self.flavour.name == "asyncio":
            return list(asyncio.all_tasks(self.loop))
        found = [] if self.loop is None else [self.loop]
        for task in found:  # it grows
            for nursery in task.child_nurseries:
                found += nursery.child_tasks
        return found

    def show_tasks(self) -> None:
        for task in self.tasks():
            coroutine = task.get_coro() if self.flavour.name == "asyncio" else task.coro
            frames = trio.lowlevel.Task.iter_await_frames(SimpleNamespace(coro=coroutine))
            print(f"\n{task!r}\n{''.join(traceback.StackSummary.extract(frames).format())}")

    def watch(self) -> None:
        """End the process when a call takes too long, and say where everybody stands."""
        while True:
            time.sleep(1)
            faulthandler.dump_traceback_later(2 * HUNG, exit=True)  # should Python itself hang
            calls, now = list(self.running.values()), time.monotonic()
            if late := [plan for plan, started in calls if now - started > HUNG]:
                print(f"HUNG (seed {self.seed}, {self.flavour.name}):", *late, sep="\n")
                print(self.client.pool_stats(), self.outcomes)
                with contextlib.suppress(Exception):
                    self.show_tasks()
                sys.stdout.flush()
                faulthandler.dump_traceback(all_threads=True)
                os._exit(2)


def drive(function: Coroutines) -> Any:
    """Run a coroutine of the sync client, in which nothing ever suspends."""
    try:
        function().send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("it was suspended")


@contextlib.contextmanager
def serving() -> Iterator[tuple[dict[str, str], str, Callable[[], Any]]]:
    """The servers' URLs, their certificate, and what stops them and returns what they have seen."""
    command = [sys.executable, str(Path(__file__).with_name("soak_servers.py"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        try:
            yield first["urls"], first["ca"], lambda: json.loads(process.communicate()[0])
        finally:
            process.stdin.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory() -> tuple[int, int]:
    """MiB that are resident, and how many objects of the libraries under test are alive."""
    gc.collect()
    names = {"httpx", "httpcore", "h11", "h2", "hpack", "anyio", "httpx_production"}
    alive = sum(type(thing).__module__.split(".")[0] in names for thing in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20, alive


def soak(flavour: str, seed: int, seconds: float) -> int:
    """Round after round in one flavour; return how often something went wrong."""
    self = Soak(flavour, seed)
    if not self.flavour.sync:  # there Ctrl-C may strike between a socket's making and its first use
        warnings.filterwarnings("error", "unclosed", ResourceWarning)
    sys.unraisablehook = self.on_unraisable
    threading.excepthook = lambda args: self.fail(f"in a thread: {args.exc_value!r}")
    signal.signal(signal.SIGALRM, self.on_alarm)
    threading.Thread(target=self.watch, daemon=True).start()
    until, used = time.monotonic() + seconds, []
    rounds = max(3, round(seconds / ROUND))
    for number in range(rounds):
        self.round(number, max(1.0, (until - time.monotonic()) / (rounds - number)))
        used.append(memory())
        print(
            f"{flavour}, round {number}: {self.outcomes.total()} calls, {self.forks} forks, "
            "{} MiB, {} objects".format(*used[-1]),
            flush=True,
        )
    resident, alive = zip(*used[1:], strict=True)  # without what the first round has imported
    if resident[-1] > resident[0] + 30 or min(alive[len(alive) // 2 :]) > min(alive) + 50:
        self.fail(f"memory grows: {used}")
    print(f"{flavour}: {dict(self.outcomes.most_common())}", flush=True)
    return self.failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all; the default is 60")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--flavours", nargs="*", choices=FLAVOURS, default=FLAVOURS)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    faulthandler.enable()
    logging.disable()
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    warnings.filterwarnings("ignore", "coroutine", RuntimeWarning)  # Ctrl-C before its first step
    each = options.seconds / len(options.flavours)
    failures = sum(soak(flavour, options.seed, each) for flavour in options.flavours)
    sys.exit(f"{failures} failures, seed {options.seed}" if failures else 0)


if __name__ == "__main__":
    main()
