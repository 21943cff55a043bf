"""One test text, three flavours: the sync client, the async one on asyncio, and on trio.

A flavoured test is an async function; in the sync flavour its calls block, which is fine: the
servers run in threads of their own.
"""

import contextlib
import gc
import inspect
import os
import signal
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import anyio
import httpcore
import httpx
import hypothesis  # noqa: F401  (looks at what refers to trio's random: before gc.freeze())
import pytest

FLAVOURS = ("sync", "asyncio", "trio")
TIME_LIMIT = 20.0  # seconds for each test, unless marked with time_limit


def needs_other() -> Iterator[str]:
    """Files of tests/ecosystem for environments of another kind; `.ci/run` has one for each."""
    aliased, is_there = httpx.__name__ == "httpx2", find_spec("httpx2") is not None
    if find_spec("openai") is None:
        yield "ecosystem/test_sdk_calls.py"
    if not aliased:
        yield "ecosystem/test_additions_of_httpx2.py"
    if find_spec("mcp") is None or not aliased:
        yield "ecosystem/test_sdk_calls_of_httpx2.py"
    if aliased or not is_there:
        yield "ecosystem/test_side_by_side.py"
    else:
        yield "ecosystem/test_authlib.py"  # it takes httpx2 where that is installed


collect_ignore = list(needs_other())


def pytest_report_header() -> str:
    versions = (f"{one.__name__} {one.__version__}" for one in (httpx, httpcore))
    return f"client: {', '.join(versions)}"


def pytest_configure(config: pytest.Config) -> None:
    aliased = "under_httpx2" in os.environ.get("PYTHONPATH", "")
    if aliased is not (httpx.__name__ == "httpx2"):
        raise pytest.UsageError("httpx2 is to be tested, but is not what `import httpx` finds")
    config.addinivalue_line("markers", "flavours(*names): run in these flavours only")
    config.addinivalue_line("markers", f"time_limit(seconds): instead of {TIME_LIMIT:g} s")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "flavour_name" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("flavours")
        names = marker.args if marker else FLAVOURS
        metafunc.parametrize("flavour_name", names, indirect=True)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what is there now needs no look by the flavour fixture's gc: 70 ms a test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("time_limit")
    with time_limit(marker.args[0] if marker else TIME_LIMIT):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    with time_limit(TIME_LIMIT):
        return (yield)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail the test after `seconds`, wherever it stands, in blocking calls too."""

    def give_up(signum: int, frame: types.FrameType | None) -> None:
        pytest.fail(f"took longer than {seconds:g} s")  # no Exception, so nobody retries it

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should somebody swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Flavour:
    """What differs between the sync and the async client, so that a test needs not know.

    `await flavour.run(client.get(url))` is the rule; what it makes is closed after the test.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sync = name == "sync"
        self._clients: list[Any] = []

    def client(self, **options: Any) -> Any:
        """Ours, without the environment's proxies."""
        import httpx_production

        kind = "ProductionHTTPClient" if self.sync else "AsyncProductionHTTPClient"
        return self._keep(getattr(httpx_production, kind)(**{"trust_env": False, **options}))

    def plain(self, **options: Any) -> Any:
        """httpx's own, to show what it does."""
        kind = httpx.Client if self.sync else httpx.AsyncClient
        return self._keep(kind(**{"trust_env": False, **options}))

    def transport(self, **options: Any) -> Any:
        """Ours as a transport of its own; what takes it closes it."""
        from httpx_production.transport import AsyncPooledTransport, PooledTransport

        kind = PooledTransport if self.sync else AsyncPooledTransport
        return kind(**{"trust_env": False, **options})

    def pooled(self, **options: Any) -> Any:
        """httpx's own client over our transport, which takes these options."""
        return self.plain(transport=self.transport(**options))

    def _keep(self, client: Any) -> Any:
        self._clients.append(client)
        return client

    async def run(self, value: Any) -> Any:
        """What a client's method gave: awaited, if it has to be."""
        return await value if inspect.isawaitable(value) else value

    async def outcome(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the call returns, or the exception it raises."""
        try:
            return await self.run(function(*args, **kwargs))
        except Exception as exc:
            return exc

    async def gather(self, calls: Iterable[Callable[[], Any]]) -> list[Any]:
        """The outcomes, in order, of calls made at once: in threads, or in a task group."""
        if self.sync:
            functions = list(calls)
            with ThreadPoolExecutor(max(1, len(functions))) as pool:
                return list(pool.map(_outcome, functions))
        outcomes: dict[int, Any] = {}

        async def call(index: int, function: Callable[[], Any]) -> None:
            outcomes[index] = await self.outcome(function)

        async with anyio.create_task_group() as tasks:
            for index, function in enumerate(calls):
                tasks.start_soon(call, index, function)
        return [outcomes[index] for index in sorted(outcomes)]

    def blocking(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """A coroutine function as `gather` takes it: in the sync flavour it never awaits."""

        def run() -> Any:
            try:
                function().send(None)
            except StopIteration as stop:
                return stop.value
            raise AssertionError("it awaited something")

        return run if self.sync else function

    @contextlib.asynccontextmanager
    async def using(self, manager: Any) -> AsyncIterator[Any]:
        """`with` or `async with`: a client, or `client.stream(...)`."""
        if hasattr(manager, "__aenter__"):
            async with manager as value:
                yield value
        else:
            with manager as value:
                yield value

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body of a streamed response, decoded, as it comes."""
        if self.sync:
            for chunk in response.iter_bytes():
                yield chunk
        else:
            async for chunk in response.aiter_bytes():
                yield chunk

    async def read(self, response: httpx.Response) -> bytes:
        """The whole body of a streamed response."""
        return await self.run(response.read() if self.sync else response.aread())

    async def close(self, closable: Any) -> None:
        """Close a client or a response, by the name it has in this flavour."""
        await self.run(closable.close() if self.sync else closable.aclose())

    def hook(self, function: Callable[..., None]) -> Callable[..., Any]:
        """An event hook as this flavour's client wants it."""
        if self.sync:
            return function

        async def hook(*args: Any) -> None:
            function(*args)

        return hook

    def generator(self, chunks: Iterable[bytes]) -> Any:
        """A one-shot body: a generator, or an async one."""
        return iter_chunks(chunks) if self.sync else aiter_chunks(chunks)


def iter_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from chunks


async def aiter_chunks(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as exc:
        return exc


@pytest.fixture
def flavour_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def anyio_backend(flavour_name: str) -> str:
    """anyio's plugin runs the test on this event loop."""
    return "trio" if flavour_name == "trio" else "asyncio"


@pytest.fixture
async def flavour(flavour_name: str) -> AsyncIterator[Flavour]:
    """The flavour under test; a client, socket or task that leaked fails the test."""
    flavour = Flavour(flavour_name)
    yield flavour
    for client in flavour._clients:
        await flavour.close(client)
    gc.collect()  # what leaked warns now (ResourceWarning), not in the next test


class FakeClock:
    """A clock that stands still but for the waits, which take no time and are written down."""

    def __init__(self) -> None:
        # Below the real one, however far it is moved on: the transport counts by that, and what
        # ends then must not be over by this one (on a machine that was started minutes ago, too).
        self.now = -10_000.0
        self.delays: list[float] = []
        self.during_wait: list[Callable[[], None]] = []  # called in every wait, before time moves
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        for function in self.during_wait:
            function()
        self.advance(seconds)

    async def async_sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.sleep(seconds)


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have requests wait for the connection that they may share, however slow its handshake is."""
    from httpx_production.transport import _pool

    monkeypatch.setattr(_pool, "EXPECTATION", 10.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Waits between attempts take no time, and `clock.delays` tells them; deadlines follow it."""
    from httpx_production import _deadline, _response_body, client

    clock = FakeClock()
    for name in ("monotonic", "sleep", "async_sleep"):
        monkeypatch.setattr(client, name, getattr(clock, name))
    for module in (_deadline, _response_body):
        monkeypatch.setattr(module, "monotonic", clock.monotonic)
    return clock
