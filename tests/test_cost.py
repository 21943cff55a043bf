"""What a request costs over bare httpx when all goes well: Python calls and memory, counted.

No clock is looked at, so that a busy machine changes nothing.
"""

import asyncio
import gc
import logging
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import pytest

import httpx_production
from httpx_production import (
    AsyncProductionHTTPClient,
    ProductionHTTPClient,
    RetryBudget,
    RetryPolicy,
    _deadline,
)

NOISE = 50_000  # bytes that bare httpx and the interpreter keep, after however many requests
PACKAGE = str(Path(httpx_production.__file__).parent)
PAIRS = {
    "sync": (httpx.Client, ProductionHTTPClient),
    "async": (httpx.AsyncClient, AsyncProductionHTTPClient),
}
pairs = pytest.mark.parametrize("pair", PAIRS)

Get = Callable[[], None]
Handler = Callable[[httpx.Request], httpx.Response]


def respond(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"ok")


def set_cookie(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, headers={"Set-Cookie": "a=1"}, content=b"ok")


def getter(kind: type, handler: Handler = respond, **options: Any) -> Get:
    """A function that makes one request; for the async client without an event loop's own calls."""
    client = kind(transport=httpx.MockTransport(handler), **options)
    if issubclass(kind, httpx.Client):
        return lambda: client.get("http://x/")
    if "total_timeout" in options:  # a deadline needs an event loop that knows the time
        return lambda: asyncio.run(client.get("http://x/"))
    return lambda: drive(client.get("http://x/"))


def drive(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def calls(get: Get) -> Counter[CodeType]:
    """The Python functions that one request calls."""
    for _ in range(3):
        get()  # what is made once is made now
    called = Counter[CodeType]()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called[frame.f_code] += 1

    gc.disable()  # a callback of the collector is no call of ours
    sys.setprofile(profile)
    try:
        get()
    finally:
        sys.setprofile(None)
        gc.enable()
    return called


def ours(called: Counter[CodeType]) -> dict[str, int]:
    """Those of this package, by name."""
    return {
        f"{Path(code.co_filename).name}:{code.co_qualname}": number
        for code, number in called.items()
        if code.co_filename.startswith(PACKAGE)
    }


@pairs
@pytest.mark.parametrize(("handler", "most", "extra"), [(respond, 8, 12), (set_cookie, 10, 13)])
def test_a_success_costs_few_python_calls(
    pair: str, handler: Handler, most: int, extra: int
) -> None:
    """`send()`, `build_request()`, the cookies where httpx asks for them; over bare httpx so many.

    No lock, and no state that is made in advance.
    """
    bare, own = (calls(getter(kind, handler)) for kind in PAIRS[pair])
    assert sum(ours(own).values()) <= most
    assert own.total() - bare.total() <= extra, ours(own)


@pairs
def test_without_cookies_nobody_looks_for_some(pair: str) -> None:
    """httpx makes a urllib request of each response's request, httpx2 no longer does."""
    for handler, looks in ((respond, False), (set_cookie, True)):
        names = {code.co_qualname for code in calls(getter(PAIRS[pair][1], handler))}
        assert ("CookieJar.make_cookies" in names) is looks


@pairs
def test_the_count_would_notice(pair: str) -> None:
    """A hook costs its call, and one call more is seen as one more."""
    kind = PAIRS[pair][1]

    def hook(response: httpx.Response) -> None:
        return None

    async def async_hook(response: httpx.Response) -> None:
        return None

    hooks = {"response": [hook if pair == "sync" else async_hook]}
    assert calls(getter(kind, event_hooks=hooks)).total() - calls(getter(kind)).total() == 1


@pairs
def test_without_a_total_timeout_nothing_of_the_deadline_is_called(pair: str) -> None:
    """Nor is anything of the decision, the budget, or the bodies' wrappers."""
    called = ours(calls(getter(PAIRS[pair][1])))
    others = ("_deadline.py", "_call.py:Call", "_budget.py", "_request_body.py")
    assert not [name for name in called if name.startswith(others)]
    assert not [name for name in called if "Body" in name or "Watched" in name]


@pairs
def test_with_a_total_timeout_the_deadline_is_there(pair: str) -> None:
    """So that the test above does look at the right file."""
    called = ours(calls(getter(PAIRS[pair][1], total_timeout=30)))
    assert any(name.startswith(Path(_deadline.__file__).name) for name in called)


@pairs
def test_a_success_logs_nothing_and_takes_no_lock(
    pair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx's own record per request is enough."""
    get = getter(PAIRS[pair][1])
    get()

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("called")

    for name in ("log", "debug", "info", "warning", "isEnabledFor"):
        monkeypatch.setattr(httpx_production._call.logger, name, never, raising=False)
    monkeypatch.setattr(threading, "Lock", never)
    monkeypatch.setattr(threading, "RLock", never)
    get()
    code = {name: source for name, source in ours(calls(get)).items() if "_budget" in name}
    assert code == {}


@pairs
def test_a_budget_costs_a_counter_on_a_success(pair: str) -> None:
    """Some calls per success, a fixed number, and none without a budget."""
    kind = PAIRS[pair][1]
    with_budget = calls(getter(kind, retry=RetryPolicy(budget=RetryBudget())))
    names = [name for name in ours(with_budget) if name.startswith("_budget.py")]
    assert "_budget.py:RetryBudget.deposit" in names
    assert len(names) <= 2
    assert with_budget.total() - calls(getter(kind)).total() <= 20


@pairs
def test_the_only_traces_of_a_success_are_its_extensions(pair: str) -> None:
    """`retries` on the response, `attempt` and `retries` on the request: as small as they get."""
    seen: list[dict[str, Any]] = []

    def keep(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions)
        return httpx.Response(200)

    kind = PAIRS[pair][1]
    client = kind(transport=httpx.MockTransport(keep))
    before = dict(vars(client))
    got: Any = client.get("http://x/")
    response = got if pair == "sync" else asyncio.run(got)
    assert response.extensions == {"retries": ()}
    assert {name: value for name, value in seen[0].items() if name != "timeout"} == {
        "attempt": 0,
        "retries": (),
    }
    assert type(seen[0]["timeout"]) is dict
    assert vars(client).keys() == before.keys()
    changed = {name for name, value in vars(client).items() if value is not before[name]}
    assert changed <= {"_state"}


def kept(get: Get, number: int) -> tuple[int, int]:
    """Objects and bytes that so many requests leave behind."""
    for _ in range(20):
        get()
    tracemalloc.start()
    try:
        gc.collect()
        objects, (size, _) = len(gc.get_objects()), tracemalloc.get_traced_memory()
        for _ in range(number):
            get()
        gc.collect()
        return len(gc.get_objects()) - objects, tracemalloc.get_traced_memory()[0] - size
    finally:
        tracemalloc.stop()


@pairs
@pytest.mark.parametrize(
    ("options", "number"), [({}, 1_000), ({"total_timeout": 30}, 300)], ids=["plain", "deadline"]
)
def test_a_thousand_requests_leave_nothing_behind(
    pair: str, options: dict[str, Any], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """No object and no byte per request lives on."""
    caplog.set_level(logging.CRITICAL)  # pytest keeps httpx's records
    objects, size = kept(getter(PAIRS[pair][1], **options), number)
    assert objects < 50
    assert size < NOISE


@pairs
def test_a_hundred_retried_requests_leave_nothing_behind(
    pair: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor do histories, notes and exceptions, once the caller has let go of the response."""
    caplog.set_level(logging.CRITICAL)
    attempts = iter(range(10**9))

    def flaky(request: httpx.Request) -> httpx.Response:
        kind = next(attempts) % 3
        if kind == 0:
            raise httpx.ReadTimeout("", request=request)
        return httpx.Response(503 if kind == 1 else 200)

    budget = RetryBudget(burst=10_000)
    policy = RetryPolicy(backoff=lambda attempt: 0.0, budget=budget)
    client: Any = PAIRS[pair][1](transport=httpx.MockTransport(flaky), retry=policy)
    if pair == "sync":
        objects, size = kept(lambda: client.get("http://x/"), 100)
    else:
        with asyncio.Runner() as runner:
            objects, size = kept(lambda: runner.run(client.get("http://x/")), 100)
    assert objects < 50
    assert size < NOISE
