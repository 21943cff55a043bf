"""The public transports: httpx's own, with another pool inside."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import ssl
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from ._private_names import missing_names

type SocketOption = tuple[int, int, int] | tuple[int, int, bytes] | tuple[int, int, None, int]

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)  # httpx's defaults


@dataclass(frozen=True)
class PoolStats:
    """The connections of a transport, or of a client's own transports, at one moment."""

    connections: int
    """Open, or being opened."""
    idle: int
    """Open, with nothing to do."""
    in_use: int
    """The others. Near `max_connections`, requests will soon wait."""
    waiting: int
    """Requests that wait for a connection, each at most `pool_timeout` seconds."""


class _Pooled:
    """What the two transports have in common: all but httpx's own."""

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None:
        given = (verify, cert, trust_env, http1, http2, limits, proxy, uds, local_address, retries)
        above: Any = super()
        above.__init__(*given, socket_options=socket_options)
        self._pool: Any = _pooled(getattr(self, "_pool", None))

    def pool_stats(self) -> PoolStats:
        """Return how many connections are open, idle and in use, and how many requests wait."""
        return _stats(self._pool)


class PooledTransport(_Pooled, httpx.HTTPTransport):
    """An `httpx.HTTPTransport` with a pool for production: `httpx.Client(transport=…)`.

    It takes httpx's arguments, which mean what they mean there. Threads share it; a connection
    serves one request at a time, over HTTP/2 too. A child process after a fork starts with no
    connections.
    """


class AsyncPooledTransport(_Pooled, httpx.AsyncHTTPTransport):
    """An `httpx.AsyncHTTPTransport` with a pool for production: `httpx.AsyncClient(transport=…)`.

    It takes httpx's arguments, which mean what they mean there. Concurrent requests share an
    HTTP/2 connection. Each event loop has connections of its own, so that one client may serve
    several `asyncio.run`s in turn.
    """


def _pooled(stock: Any) -> Any:
    """Return our kind of the pool that httpx has made, which has not been used."""
    if missing := missing_names(stock):
        warnings.warn(
            f"httpx-production's pool needs names that are not there: {missing}; httpx's own "
            "serves instead",
            RuntimeWarning,
            stacklevel=3,
        )
        return stock
    from ._pools import POOLS  # imports h2, which takes its time

    kind = POOLS.get(stock.__class__)
    return stock if kind is None else kind(stock)


def _stats(pool: Any) -> PoolStats:
    if (core := getattr(pool, "core", None)) is not None:
        connections, idle, waiting = core.count()
    else:
        open_ones, requests = (list(getattr(pool, n, ())) for n in ("_connections", "_requests"))
        connections, idle = len(open_ones), sum(one.is_idle() for one in open_ones)
        waiting = sum(request.is_queued() for request in requests)
    return PoolStats(connections, idle, connections - idle, waiting)
