"""httpcore's connections, with our HTTP/2 in the place of its own.

Written for httpcore 1.0.x; imported when the first pool is made.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpcore

from .http2 import AsyncHTTP2Connection, HTTP2Connection
from .network import AsyncHandshakeBackend, HandshakeBackend


class Negotiating:
    """A connection that tells the pool what it has negotiated.

    httpcore makes the HTTP/1.1 or HTTP/2 connection deep inside `handle_request`; what its kinds
    of connections have in common is that they then put it into `_connection`.
    """

    def __init__(self, stock: Any, shares: bool, changed: Callable[[], None]) -> None:
        """Take over the configuration of a connection that has not been used.

        `changed` is called when it is known whether, or how many, requests can share it; without
        `shares` none ever do.
        """
        self.__dict__.update(stock.__dict__)
        self._changed = changed
        origin = getattr(stock, "_remote_origin", None) or stock._origin
        negotiates = origin.scheme in (b"https", b"wss") or not stock._http1
        self.multiplexes = None if shares and stock._http2 and negotiates else False

    @property
    def _connection(self) -> Any:
        return self.__dict__["_connection"]

    @_connection.setter
    def _connection(self, made: Any) -> None:
        stream = made._network_stream
        stream.default = None  # the SOCKS handshake is over
        if isinstance(made, httpcore.AsyncHTTP2Connection):
            stream.listens = False  # it does itself
            made = AsyncHTTP2Connection(made._origin, stream, made._keepalive_expiry, self._changed)
        elif isinstance(made, httpcore.HTTP2Connection):
            made = HTTP2Connection(made._origin, stream, made._keepalive_expiry)
        self.__dict__["_connection"] = made
        self.multiplexes = isinstance(made, AsyncHTTP2Connection)
        self._changed()

    @property
    def streams(self) -> int:
        """How many requests it takes at a time; 0 when it will take no new ones."""
        return self._connection.streams if self.multiplexes else 1


class NegotiatingSocks(Negotiating):
    """The same through a SOCKS proxy, whose handshake has a limit and leaves nothing behind."""

    _network_backend: Any

    def __init__(self, stock: Any, shares: bool, changed: Callable[[], None]) -> None:
        """Take over the configuration of a connection that has not been used."""
        super().__init__(stock, shares, changed)
        is_async = hasattr(stock, "handle_async_request")
        self._network_backend = AsyncHandshakeBackend() if is_async else HandshakeBackend()

    def handle_request(self, request: httpcore.Request) -> Any:
        """Connect if need be, and send the request."""
        above: Any = super()
        with self._connecting():
            return above.handle_request(request)

    async def handle_async_request(self, request: httpcore.Request) -> Any:
        """Do the same in the async pool."""
        above: Any = super()
        with self._connecting():
            return await above.handle_async_request(request)

    @contextmanager
    def _connecting(self) -> Generator[None]:
        """Name what fails before the connection stands, socksio's exceptions too."""
        try:
            yield
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError):
            raise
        except Exception as exc:
            if self._connection is not None:
                raise
            if isinstance(exc, httpcore.TimeoutException):
                raise httpcore.ConnectTimeout(str(exc)) from exc
            raise httpcore.ProxyError(
                f"{type(exc).__name__} in the SOCKS handshake: {exc}"
            ) from exc

    def close(self) -> None:
        """Close the connection, also one that is half made."""
        (self._connection or self._network_backend.stream).close()

    async def aclose(self) -> None:
        """Do the same in the async pool."""
        await (self._connection or self._network_backend.stream).aclose()


@cache
def _negotiating(kind: Any) -> Any:
    socks = kind.__name__.endswith("Socks5Connection")
    return type(kind.__name__, (NegotiatingSocks if socks else Negotiating, kind), {})


def own(stock: Any, *, shares: bool, changed: Callable[[], None]) -> Any:
    """Return our kind of a connection that httpcore has made."""
    if not hasattr(stock, "_http2"):
        return stock  # plain HTTP through a proxy, where nothing is negotiated
    return _negotiating(stock.__class__)(stock, shares, changed)


def reusable(connection: Any) -> bool:
    """Whether a connection whose request has ended is good for another.

    Not when the server sent more than its response: the rest would pass for the next answer.
    """
    if connection.is_closed() or not connection.is_idle():  # httpcore's may be both
        return False
    while (inner := getattr(connection, "_connection", None)) is not None:
        connection = inner
    h11_state = getattr(connection, "_h11_state", None)
    return h11_state is None or not h11_state.trailing_data[0]
