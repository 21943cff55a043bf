"""The clients that are compared, each set up once, as its own documentation recommends.

All are asked in the same way: `send(method, url, content=..., timeout=...)`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any

import httpx
import httpx_retries
import stamina
import tenacity

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient

try:
    import urllib3
except ImportError:  # its column is left out
    urllib3 = None  # type: ignore[assignment]
try:
    import httpx2
except ImportError:  # the same
    httpx2 = None  # type: ignore[assignment]
try:
    import httpware
except ImportError:  # the same
    httpware = None  # type: ignore[assignment]
try:
    import aiohttp
    import httpx_aiohttp
except ImportError:  # the same
    httpx_aiohttp = None  # type: ignore[assignment]

ATTEMPTS = 5

Send = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is wanted of a client; seconds."""

    timeout: float = 5.0  # for each operation
    total: float | None = None  # for the whole call, as far as the library has such a thing
    limits: httpx.Limits | None = None  # None: the library's own
    verify: ssl.SSLContext | bool = True
    http2: bool = False
    transport: Any = None

    @property
    def transport_options(self) -> dict[str, Any]:
        limits = {} if self.limits is None else {"limits": self.limits}
        return limits | {"verify": self.verify, "http2": self.http2}

    @property
    def client_options(self) -> dict[str, Any]:
        options = self.transport_options | {"transport": self.transport, "trust_env": False}
        return options | {"timeout": self.timeout}


@dataclass(frozen=True)
class Contender:
    """A client by name, sync and (mostly) async."""

    name: str
    open: Callable[[Setup], AbstractContextManager[Send]]
    aopen: Callable[[Setup], AbstractAsyncContextManager[Send]] | None = None
    make: Callable[[], httpx.Client] | None = None  # a client with nothing set


@contextmanager
def _httpx(setup: Setup) -> Iterator[Send]:
    with httpx.Client(**setup.client_options) as client:
        yield client.request


@asynccontextmanager
async def _async_httpx(setup: Setup) -> AsyncIterator[Send]:
    async with httpx.AsyncClient(**setup.client_options) as client:
        yield client.request


def _retry(setup: Setup) -> httpx_retries.Retry:
    return httpx_retries.Retry(total=ATTEMPTS - 1, backoff_factor=0.5, total_timeout=setup.total)


@contextmanager
def _httpx_retries(setup: Setup) -> Iterator[Send]:
    inner = setup.transport or httpx.HTTPTransport(**setup.transport_options)
    transport = httpx_retries.RetryTransport(inner, _retry(setup))
    with httpx.Client(transport=transport, timeout=setup.timeout, trust_env=False) as client:
        yield client.request


@asynccontextmanager
async def _async_httpx_retries(setup: Setup) -> AsyncIterator[Send]:
    inner = setup.transport or httpx.AsyncHTTPTransport(**setup.transport_options)
    transport = httpx_retries.RetryTransport(inner, _retry(setup))
    options: dict[str, Any] = {"transport": transport, "timeout": setup.timeout}
    async with httpx.AsyncClient(trust_env=False, **options) as client:
        yield client.request


@contextmanager
def httpx_retries_helper(setup: Setup) -> Iterator[Send]:
    """httpx-retries once more, by its helper for failures of the body."""
    with httpx.Client(**setup.client_options) as client:
        yield lambda method, url, **options: httpx_retries.retry_request(
            client, method, url, retry=_retry(setup), **options
        )


def _stamina(setup: Setup) -> Any:
    return stamina.retry(
        on=httpx.HTTPError, attempts=ATTEMPTS, timeout=45.0 if setup.total is None else setup.total
    )


def _tenacity(setup: Setup) -> Any:
    stop: Any = tenacity.stop_after_attempt(ATTEMPTS)
    if setup.total is not None:
        stop |= tenacity.stop_after_delay(setup.total)
    return tenacity.retry(
        retry=tenacity.retry_if_exception_type(httpx.HTTPError),
        stop=stop,
        wait=tenacity.wait_exponential_jitter(),
        reraise=True,
    )


def _decorated(decorator: Callable[[Setup], Any]) -> Callable[[Setup], Any]:
    """A client whose calls go through a decorated function, the status raised as both advise."""

    @contextmanager
    def opened(setup: Setup) -> Iterator[Send]:
        with httpx.Client(**setup.client_options) as client:

            @decorator(setup)  # type: ignore[untyped-decorator]
            def send(method: str, url: str, **options: Any) -> httpx.Response:
                return client.request(method, url, **options).raise_for_status()

            yield send

    return opened


def _async_decorated(decorator: Callable[[Setup], Any]) -> Callable[[Setup], Any]:
    @asynccontextmanager
    async def opened(setup: Setup) -> AsyncIterator[Send]:
        async with httpx.AsyncClient(**setup.client_options) as client:

            @decorator(setup)  # type: ignore[untyped-decorator]
            async def send(method: str, url: str, **options: Any) -> httpx.Response:
                return (await client.request(method, url, **options)).raise_for_status()

            yield send

    return opened


@contextmanager
def _urllib3(setup: Setup) -> Iterator[Send]:
    retries = urllib3.Retry(
        total=ATTEMPTS - 1,
        backoff_factor=0.5,
        status_forcelist=[429, 500, 502, 503, 504],
        respect_retry_after_header=True,
        raise_on_status=False,
    )
    timeout = urllib3.Timeout(connect=setup.timeout, read=setup.timeout, total=setup.total)
    context = setup.verify if isinstance(setup.verify, ssl.SSLContext) else None
    with urllib3.PoolManager(retries=retries, timeout=timeout, ssl_context=context) as pool:

        def send(method: str, url: str, *, content: Any = None) -> httpx.Response:
            response = pool.request(method, url, body=content)
            return httpx.Response(response.status, content=response.data)

        yield send


@contextmanager
def _httpx2(setup: Setup) -> Iterator[Send]:
    with httpx2.Client(**_without_transport(setup)) as client:
        yield client.request


@asynccontextmanager
async def _async_httpx2(setup: Setup) -> AsyncIterator[Send]:
    async with httpx2.AsyncClient(**_without_transport(setup)) as client:
        yield client.request


def _without_transport(setup: Setup) -> dict[str, Any]:
    """The options in httpx2's own types; a transport of httpx's is none of httpx2's."""
    options = setup.client_options
    del options["transport"]
    if setup.limits is not None:
        options["limits"] = httpx2.Limits(
            max_connections=setup.limits.max_connections,
            max_keepalive_connections=setup.limits.max_keepalive_connections,
        )
    return options


@contextmanager
def _httpware(setup: Setup) -> Iterator[Send]:
    # It keeps `time.sleep` from its import on; asked anew, waits can be written down.
    retry = httpware.Retry(max_attempts=ATTEMPTS, _sleep=lambda seconds: time.sleep(seconds))
    with httpware.Client(middleware=[retry], **_without_transport(setup)) as client:
        yield client.request


@asynccontextmanager
async def _async_httpware(setup: Setup) -> AsyncIterator[Send]:
    middleware: list[Any] = [httpware.AsyncRetry(max_attempts=ATTEMPTS)]
    if setup.total is not None:
        middleware.insert(0, httpware.AsyncTimeout(timeout=setup.total))
    async with httpware.AsyncClient(middleware=middleware, **_without_transport(setup)) as client:
        yield client.request


@contextmanager
def _own(setup: Setup) -> Iterator[Send]:
    options = setup.client_options
    with ProductionHTTPClient(total_timeout=setup.total, **options) as client:
        yield client.request


@asynccontextmanager
async def _async_own(setup: Setup) -> AsyncIterator[Send]:
    options = setup.client_options
    async with AsyncProductionHTTPClient(total_timeout=setup.total, **options) as client:
        yield client.request


@asynccontextmanager
async def _own_on_aiohttp(setup: Setup) -> AsyncIterator[Send]:
    limits = setup.limits or httpx.Limits()
    transport = httpx_aiohttp.AiohttpTransport(
        client=lambda: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limits.max_connections or 100)
        )
    )
    async with AsyncProductionHTTPClient(transport=transport, timeout=setup.timeout) as client:
        yield client.request


def _retrying_client() -> httpx.Client:
    return httpx.Client(transport=httpx_retries.RetryTransport())


def respond(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text="hi")


def mock() -> Setup:
    """No network at all."""
    return Setup(transport=httpx.MockTransport(respond))


HTTPX = Contender("httpx", _httpx, _async_httpx, httpx.Client)
HTTPX_RETRIES = Contender("httpx-retries", _httpx_retries, _async_httpx_retries, _retrying_client)
STAMINA = Contender("stamina", _decorated(_stamina), _async_decorated(_stamina))
TENACITY = Contender("tenacity", _decorated(_tenacity), _async_decorated(_tenacity))
URLLIB3 = Contender("urllib3", _urllib3)
HTTPX2 = Contender("httpx2", _httpx2, _async_httpx2)
HTTPWARE = Contender("httpware", _httpware, _async_httpware)
OWN = Contender("httpx-production", _own, _async_own, ProductionHTTPClient)

OWN_ON_HTTPX2 = "httpx-production on httpx2"  # in another process, under the alias

# With packages that may be missing.
AIOHTTP = [Contender("the same on httpx-aiohttp", _own, _own_on_aiohttp)] if httpx_aiohttp else []
ALL = [
    HTTPX,
    *([HTTPX2] if httpx2 else []),
    HTTPX_RETRIES,
    *([HTTPWARE] if httpware else []),
    STAMINA,
    TENACITY,
    *([URLLIB3] if urllib3 else []),
    OWN,
]
