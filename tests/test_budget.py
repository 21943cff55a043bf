"""RetryBudget: how many retries it allows, and what the clients do when it is empty.

Subject: `_budget.py`.
"""

import copy
import dataclasses
import logging
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from hypothesis import given
from hypothesis import strategies as st

from httpx_production import RetryBudget, RetryPolicy, _budget
from httpx_production._budget import Period

HERE = ("https", b"here.example.com")
THERE = ("https", b"there.example.com")


class Clock:
    """Stands still until it is told the time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def granted(budget: RetryBudget, asked: int = 100, origin: tuple[str, bytes] = HERE) -> int:
    """How many of so many retries the budget allows."""
    return sum(budget.withdraw(origin) is not None for _ in range(asked))


def succeed(budget: RetryBudget, times: int, origin: tuple[str, bytes] = HERE) -> None:
    for _ in range(times):
        budget.deposit(origin, refund=None)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["burst", "ratio", "window"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError), (-0.1, ValueError), (math.nan, ValueError), (math.inf, ValueError),
        ("10", TypeError), (None, TypeError), (True, TypeError), ([1], TypeError),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name_and_value(
    name: str, value: Any, error: type[Exception]
) -> None:
    """In the constructor, with a message a person can act on."""
    with pytest.raises(error) as caught:
        RetryBudget(**{name: value})
    assert str(caught.value).startswith(f"{name} must be ")
    assert str(caught.value).endswith(f", not {value!r}")


def test_a_window_of_nothing_is_refused_where_no_burst_and_no_ratio_are_not() -> None:
    """A window has a length; a budget may consist of one half alone."""
    with pytest.raises(ValueError, match="window must be finite and more than 0, not 0"):
        RetryBudget(window=0)
    assert granted(RetryBudget(burst=0, ratio=0)) == 0


def test_arguments_are_keyword_only_and_shown() -> None:
    """Three numbers in a row would say nothing."""
    with pytest.raises(TypeError, match="positional"):
        RetryBudget(10)  # type: ignore[misc]
    assert repr(RetryBudget()) == "RetryBudget(burst=10, ratio=0.1, window=60.0)"


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("burst", [0, 1, 10, 25])
def test_burst_retries_are_allowed_without_any_success(burst: int) -> None:
    """And not one more, however often one asks."""
    budget = RetryBudget(burst=burst)
    assert granted(budget) == burst
    assert granted(budget) == 0


@pytest.mark.parametrize(
    ("ratio", "successes", "more"),
    [(0.1, 9, 0), (0.1, 10, 1), (0.1, 30, 3), (0.1, 100, 10), (0.5, 7, 3), (1, 4, 4), (0, 99, 0)],
)
@pytest.mark.parametrize("burst", [0, 3])
def test_a_share_of_the_successes_is_allowed_besides(
    burst: int, ratio: float, successes: int, more: int
) -> None:
    """Ten successes at a tenth are one retry, rounding of floats notwithstanding."""
    budget = RetryBudget(burst=burst, ratio=ratio)
    succeed(budget, successes)
    assert granted(budget) == burst + more


def test_a_retry_that_succeeds_gives_its_token_back() -> None:
    """Retries that help cost nothing."""
    budget = RetryBudget(burst=1, ratio=0)
    for _ in range(50):
        token = budget.withdraw(HERE)
        assert token
        assert not budget.withdraw(HERE)
        budget.deposit(HERE, refund=token)


@pytest.mark.parametrize("late", [60, 66, 1000])
def test_a_late_refund_adds_nothing(late: float) -> None:
    """Its token was forgotten with its window: more than the burst would be too many."""
    clock = Clock()
    budget = RetryBudget(burst=3, ratio=0, window=60, clock=clock)
    first = [budget.withdraw(HERE) for _ in range(3)]
    clock.now += late
    assert granted(budget, 2) == 2  # somebody else's, which the refunds must not pay for
    for token in first:
        budget.deposit(HERE, refund=token)
    assert granted(budget) == 1


def test_a_refund_within_the_window_counts_where_its_token_was_taken() -> None:
    """So it is not given back twice: once now, and once when the window leaves it behind."""
    clock = Clock()
    budget = RetryBudget(burst=1, ratio=0, window=60, clock=clock)
    token = budget.withdraw(HERE)
    clock.now += 30
    budget.deposit(HERE, refund=token)
    assert granted(budget) == 1
    clock.now += 30
    assert granted(budget) == 0
    clock.now += 30
    assert granted(budget) == 1


def test_a_refund_lasts_as_long_as_its_token_would_have() -> None:
    """Also where the window had begun before the token was taken."""
    clock = Clock()
    budget = RetryBudget(burst=1, ratio=0, window=60, clock=clock)
    budget.deposit(HERE, refund=None)
    clock.now += 30
    budget.deposit(HERE, refund=budget.withdraw(HERE))
    clock.now += 30
    assert granted(budget) == 1


def test_an_origin_that_was_busy_of_late_is_not_forgotten() -> None:
    """However long ago its window began."""
    clock = Clock()
    budget = RetryBudget(burst=1, ratio=0, window=60, clock=clock)
    budget.deposit(HERE, refund=None)
    clock.now += 50
    assert budget.withdraw(HERE)
    clock.now += 15
    budget.deposit(THERE, refund=None)
    assert not budget.withdraw(HERE)


def test_a_refund_for_an_origin_that_was_forgotten_adds_nothing() -> None:
    """Another origin's first request has dropped it meanwhile."""
    clock = Clock()
    budget = RetryBudget(burst=1, ratio=0, window=60, clock=clock)
    token = budget.withdraw(HERE)
    clock.now += 61
    assert budget.withdraw(THERE)
    assert HERE not in budget._origins
    budget.deposit(HERE, refund=token)
    assert granted(budget) == 1


def test_successes_and_retries_are_forgotten_after_the_window() -> None:
    """Remembered for nine tenths of it at least, and not much longer than the whole."""
    clock = Clock()
    budget = RetryBudget(burst=2, ratio=1, window=60, clock=clock)
    succeed(budget, 5)
    clock.now += 54
    assert granted(budget) == 7
    clock.now += 6
    assert granted(budget) == 0  # the successes are forgotten, the retries are not
    clock.now += 60
    assert granted(budget) == 2


def test_the_window_moves_in_tenths() -> None:
    """A steady stream of successes leaves a steady allowance."""
    clock = Clock()
    budget = RetryBudget(burst=0, ratio=0.1, window=60, clock=clock)
    for _ in range(600):
        succeed(budget, 1)
        clock.now += 1
    assert 5 <= granted(budget) <= 6


def test_a_window_is_kept_in_few_slots() -> None:
    """Memory doesn't grow with the traffic."""
    clock = Clock()
    budget = RetryBudget(clock=clock)
    for _ in range(5_000):
        budget.deposit(HERE, refund=None)
        clock.now += 0.1
    assert max(map(len, budget._origins.values())) <= 11


def test_each_origin_has_its_own_tokens() -> None:
    """A host that is down must not cost another one its retries."""
    budget = RetryBudget(burst=3)
    assert granted(budget, origin=HERE) == 3
    assert granted(budget, origin=THERE) == 3
    assert granted(budget, origin=("http", HERE[1])) == 3


def test_quiet_origins_are_forgotten() -> None:
    """A crawler's memory doesn't grow with the hosts that it ever saw."""
    clock = Clock()
    budget = RetryBudget(window=60, clock=clock)
    for number in range(2_000):
        budget.deposit(("https", b"%d.example.com" % number), refund=None)
        clock.now += 1
    assert len(budget._origins) <= 61


def test_a_busy_origin_is_not_forgotten() -> None:
    """New neighbours cost it neither its successes nor its debts."""
    clock = Clock()
    budget = RetryBudget(burst=1, ratio=0, window=60, clock=clock)
    assert budget.withdraw(HERE)
    for number in range(50):
        clock.now += 1
        budget.deposit(("https", b"%d" % number), refund=None)
    assert not budget.withdraw(HERE)


@given(
    burst=st.integers(0, 5),
    ratio=st.floats(0, 1),
    steps=st.lists(
        st.tuples(st.sampled_from(["success", "retry", "refund"]), st.floats(0, 30)), max_size=60
    ),
)
def test_retries_never_exceed_the_allowance(
    burst: int, ratio: float, steps: list[tuple[str, float]]
) -> None:
    """In any window: at most the burst and the share of the successes of two windows.

    Retries that were refunded don't count, however late that was.
    """
    clock = Clock()
    budget = RetryBudget(burst=burst, ratio=ratio, window=60, clock=clock)
    successes: list[float] = []
    open_retries: list[tuple[float, Period]] = []
    for step, pause in steps:
        clock.now += pause
        if step == "retry" and (token := budget.withdraw(HERE)):
            open_retries.append((clock.now, token))
        elif step != "retry":
            refund = open_retries.pop(0)[1] if step == "refund" and open_retries else None
            budget.deposit(HERE, refund=refund)
            successes.append(clock.now)
        recent = sum(clock.now - then < 54 for then, _ in open_retries)
        share = ratio * sum(clock.now - then < 126 for then in successes)
        assert recent <= burst + share + 1e-6


def in_threads(function: Callable[[], int], number: int = 50) -> int:
    """The sum of what so many threads get, which all start at once and switch all the time."""
    start = threading.Barrier(number)

    def run(_: int) -> int:
        start.wait()
        return function()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(number) as pool:
            return sum(pool.map(run, range(number)))
    finally:
        sys.setswitchinterval(before)


def test_threads_take_no_token_twice() -> None:
    """50 threads at once get exactly what there is, and give back exactly what they got."""
    budget = RetryBudget(burst=200, ratio=0)

    tokens: deque[Period] = deque()

    def take() -> int:
        taken = [token for token in (budget.withdraw(HERE) for _ in range(20)) if token]
        tokens.extend(taken)
        return len(taken)

    def give_back() -> int:
        for _ in range(4):
            budget.deposit(HERE, refund=tokens.pop())
        return 4

    assert in_threads(take) == 200
    assert in_threads(give_back) == 200
    assert in_threads(take) == 200


# --- a lock that nobody can hold against us -------------------------------------------------------


@pytest.mark.parametrize("inner", ["same origin", "new origins"])
def test_whoever_comes_in_between_finds_the_budget_usable(inner: str) -> None:
    """A finalizer or a signal handler that strikes at any line, the lock being held or not.

    A trace function stands for it: it is called before each line, and its own are not traced.
    """
    clock, strikes = Clock(), 0
    budget = RetryBudget(burst=1_000_000, window=60, clock=clock)

    def strike(frame: types.FrameType, event: str, arg: object) -> Any:
        nonlocal strikes
        if frame.f_code.co_filename != _budget.__file__:
            return None
        strikes += 1
        clock.now += 7
        origin = HERE if inner == "same origin" else ("https", b"%d" % strikes)
        budget.deposit(origin, refund=budget.withdraw(origin))
        return strike

    before = sys.gettrace()
    sys.settrace(strike)
    try:
        for origin in (HERE, THERE) * 10:
            budget.deposit(origin, refund=budget.withdraw(origin))
            budget.withdraw(origin)
    finally:
        sys.settrace(before)
    assert strikes > 500
    assert max(map(len, budget._origins.values())) <= 11
    assert len(budget._origins) <= 12


def test_a_signal_handler_may_use_the_budget() -> None:
    """It runs in the thread that it has interrupted, maybe while that holds the lock."""
    budget = RetryBudget(burst=1_000_000)

    def interrupt(signum: int, frame: types.FrameType | None) -> None:
        budget.deposit(HERE, refund=budget.withdraw(HERE))

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with _budget._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sum(period.successes for period in budget._origins[HERE]) == 1


FORKS = """
import os, sys, threading
from httpx_production import RetryBudget, _budget

def hold():
    with _budget._lock:
        holding.set()
        release.wait()

holding, release, here = threading.Event(), threading.Event(), ("https", b"a")
budget = RetryBudget()
holder = threading.Thread(target=hold, daemon=True)
holder.start()
holding.wait()
if not (child := os.fork()):
    budget.deposit(here, refund=budget.withdraw(here))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
release.set()
print(bool(budget.withdraw(here)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
def test_a_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    """The thread that holds the lock in the moment of the fork() is not there in the child."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert (done.stdout.split(), done.stderr) == (["7", "True"], "")


def test_a_new_lock_is_nobody_s() -> None:
    """What a child of fork() does first, done here: nothing waits for who held the old one."""
    budget = RetryBudget()
    with ThreadPoolExecutor(1) as pool, _budget._lock:
        _budget._renew_lock()
        assert pool.submit(budget.withdraw, HERE).result(timeout=5)


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_budget_itself(duplicate: Callable[[RetryBudget], RetryBudget]) -> None:
    """Two would allow twice as many retries."""
    budget = RetryBudget()
    assert duplicate(budget) is budget


def test_pickled_it_is_a_new_budget_with_the_same_settings() -> None:
    """Nothing is counted there yet; a clock of its own travels too."""
    budget = RetryBudget(burst=2, ratio=0.5, window=30, clock=time.time)
    assert granted(budget) == 2
    there = pickle.loads(pickle.dumps(budget))
    assert repr(there) == repr(budget) == "RetryBudget(burst=2, ratio=0.5, window=30)"
    assert there._clock is time.time
    assert granted(there) == 2


class OwnBudget(RetryBudget):
    """A subclass stays one."""


def test_a_subclass_is_pickled_as_such() -> None:
    """And not as what it was made of."""
    assert type(pickle.loads(pickle.dumps(OwnBudget()))) is OwnBudget


# --- through the clients --------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


def transport(outcomes: Iterator[int]) -> httpx.MockTransport:
    """Answers with one status after the other."""
    return httpx.MockTransport(lambda request: httpx.Response(next(outcomes)))


def always(status: int) -> Iterator[int]:
    while True:
        yield status


async def test_an_empty_budget_ends_the_call_as_if_attempts_had_run_out(
    flavour: Flavour, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The response is returned, nothing sleeps, and the log says why."""
    policy = RetryPolicy(budget=RetryBudget(burst=2), backoff=lambda attempt: 1.0)
    client = flavour.client(retry=policy, transport=transport(always(503)))
    first = await flavour.run(client.get("http://x"))
    assert (first.status_code, len(first.extensions["retries"])) == (503, 2)
    assert clock.delays == [1.0, 1.0]
    assert (
        caplog.records[-1].getMessage().endswith("503, 503, 503; not retried: retry budget empty")
    )
    second = await flavour.run(client.get("http://x"))
    assert (second.status_code, second.extensions["retries"]) == (503, ())
    assert clock.delays == [1.0, 1.0]
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.records[-1].getMessage() == (
        "gave up on GET http://x after 1 attempt in 0.0 s: 503; not retried: retry budget empty"
    )


async def test_an_empty_budget_is_told_in_the_exception_s_note(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The exception is the one that httpx raised."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("too slow", request=request)

    policy = RetryPolicy(budget=RetryBudget(burst=0))
    client = flavour.client(retry=policy, transport=httpx.MockTransport(fail))
    exc = await flavour.outcome(client.get, "http://x")
    assert type(exc) is httpx.ConnectTimeout
    (note,) = exc.__notes__
    assert note == (
        "gave up on GET http://x after 1 attempt in 0.0 s: ConnectTimeout; "
        "not retried: retry budget empty"
    )
    assert clock.delays == []


@pytest.mark.parametrize("asks", [False, True], ids=["tables", "should_retry"])
async def test_successes_fill_the_budget(flavour: Flavour, clock: FakeClock, asks: bool) -> None:
    """Ten plain answers pay for one retry; a retry that succeeds pays for itself."""
    statuses = iter([503, *[200] * 10, 503, 200, 503, 503])
    policy = RetryPolicy(
        budget=RetryBudget(burst=0, ratio=0.1),
        should_retry=(lambda request, outcome: None) if asks else None,
    )
    client = flavour.client(retry=policy, transport=transport(statuses))
    seen = [await flavour.run(client.get("http://x")) for _ in range(13)]
    assert [response.status_code for response in seen] == [503, *[200] * 11, 503]
    assert [len(response.extensions["retries"]) for response in seen] == [*[0] * 11, 1, 1]


async def test_a_retry_that_succeeds_late_lifts_no_budget_above_its_burst(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Its wait was longer than the window, which had forgotten the token already."""
    budget = RetryBudget(burst=1, ratio=0, window=60, clock=clock.monotonic)
    policy = RetryPolicy(budget=budget, backoff=lambda attempt: 61.0)
    client = flavour.client(retry=policy, transport=transport(iter([503, 200])))
    response = await flavour.run(client.get("http://x"))
    assert (response.status_code, len(response.extensions["retries"])) == (200, 1)
    assert granted(budget, origin=("http", b"x")) == 1


async def test_a_retry_that_succeeds_is_refunded_once(flavour: Flavour, clock: FakeClock) -> None:
    """Two retries for one success cost one token."""
    budget = RetryBudget(burst=5, ratio=0)
    policy = RetryPolicy(budget=budget)
    client = flavour.client(retry=policy, transport=transport(iter([503, 503, 200])))
    await flavour.run(client.get("http://x"))
    assert granted(budget, origin=("http", b"x")) == 4


async def test_a_failure_is_no_success(flavour: Flavour, clock: FakeClock) -> None:
    """Errors that end a call fill no budget, also where should_retry calls them final."""
    policies = [
        RetryPolicy(max_attempts=1),
        RetryPolicy(methods=()),
        RetryPolicy(should_retry=lambda request, outcome: False),
    ]
    for policy in policies:
        budget = RetryBudget(burst=0, ratio=1)
        client = flavour.client(
            retry=dataclasses.replace(policy, budget=budget), transport=transport(always(503))
        )
        for _ in range(5):
            await flavour.run(client.get("http://x"))
        assert granted(budget, origin=("http", b"x")) == 0


async def test_a_budget_is_counted_per_origin(flavour: Flavour, clock: FakeClock) -> None:
    """Scheme, host and port of the caller's URL; userinfo and path don't count."""
    policy = RetryPolicy(budget=RetryBudget(burst=1), max_attempts=2)
    client = flavour.client(retry=policy, transport=transport(always(503)))
    retries = []
    for url in ("http://a/1", "http://b/", "https://a/", "http://a:81/", "http://u:p@a:80/2"):
        response = await flavour.run(client.get(url))
        retries.append(len(response.extensions["retries"]))
    assert retries == [1, 1, 1, 1, 0]


async def test_clients_share_a_budget_by_sharing_the_object(
    flavour: Flavour, clock: FakeClock
) -> None:
    """And have one each where the objects differ."""
    shared, other = (
        RetryPolicy(budget=RetryBudget(burst=1)),
        RetryPolicy(budget=RetryBudget(burst=1)),
    )
    retries = []
    for policy in (shared, dataclasses.replace(shared, max_attempts=3), other):
        client = flavour.client(retry=policy, transport=transport(always(503)))
        response = await flavour.run(client.get("http://x"))
        retries.append(len(response.extensions["retries"]))
    assert retries == [1, 0, 1]


async def answered(
    flavour: Flavour, fault: Callable[[], bool], calls: int, budget: RetryBudget | None
) -> int:
    """How many of a lone caller's calls, one after the other, end in a 200."""

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503 if fault() else 200)

    policy = RetryPolicy(budget=budget)
    client = flavour.client(retry=policy, transport=httpx.MockTransport(handler))
    good = 0
    for _ in range(calls):
        good += (await flavour.run(client.get("http://x"))).status_code == 200
    return good


def dice(seed: int) -> Callable[[], bool]:
    """True in one throw of ten."""
    generator = random.Random(seed)
    return lambda: generator.random() < 0.1


@pytest.mark.flavours("sync", "asyncio")
@pytest.mark.parametrize("seed", range(3))
async def test_a_lone_caller_loses_nothing_at_ten_percent_faults(
    flavour: Flavour, clock: FakeClock, seed: int
) -> None:
    """Every retry costs a token, and nearly every one gives it back."""
    results = []
    for budget in (None, RetryBudget(clock=clock.monotonic)):
        results.append(await answered(flavour, dice(seed), 300, budget))
    assert results[0] == results[1] >= 299


@pytest.mark.flavours("sync", "asyncio")
async def test_a_lone_caller_loses_nothing_in_a_blip(flavour: Flavour, clock: FakeClock) -> None:
    """Five seconds without a good answer are within the burst."""
    results = []
    for budget in (None, RetryBudget(clock=clock.monotonic)):
        start = clock.now

        def fault(start: float = start) -> bool:
            clock.advance(0.05)  # what a request takes
            return start + 2 < clock.now < start + 7

        results.append(await answered(flavour, fault, 100, budget))
    assert results == [100, 100]
