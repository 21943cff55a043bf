"""httpcore's connections, which tell the pool what they have become, with our HTTP/2 in them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import httpcore
from httpcore._synchronization import Lock as PythonLock

from ._http2 import HTTP2Connection
from ._http2_connections import AsyncHTTP2Connection, SyncHTTP2Connection
from ._network import Connector
from ._sockets import ALPNContext


class Negotiating:
    """A connection that is made by its first request.

    httpcore makes the HTTP/1.1 or HTTP/2 connection deep inside `handle_request`; what its kinds
    of connections (direct, through a tunnel, through SOCKS) have in common is that they then put
    it into `_connection`.
    """

    def __init__(self, stock: Any, changed: Callable[[], None]) -> None:
        """Take over the configuration of a connection that has not been used.

        `changed` is called when it is known how many requests it takes.
        """
        self.__dict__.update(stock.__dict__)
        _replace_locks(self)
        self._changed = changed
        self.made: Any = None
        for one in (self, getattr(stock, "_connection", None)):
            if getattr(one, "_ssl_context", None) is not None:
                one._ssl_context = ALPNContext(one._ssl_context)  # type: ignore[union-attr]

    @property
    def _connection(self) -> Any:
        return self.__dict__["_connection"]

    @_connection.setter
    def _connection(self, made: Any) -> None:
        stream = made._network_stream
        stream.connect_until = None  # connect_timeout no longer rules
        if isinstance(made, (httpcore.HTTP2Connection, httpcore.AsyncHTTP2Connection)):
            is_async = isinstance(made, httpcore.AsyncHTTP2Connection)
            kind = AsyncHTTP2Connection if is_async else SyncHTTP2Connection
            made = kind(made._origin, stream, self._changed)
        _replace_locks(made)
        self.__dict__["_connection"] = self.made = made
        self._changed()

    def handle_request(self, request: httpcore.Request) -> Any:
        """Connect if need be, and send the request."""
        above: Any = super()
        if self.made is not None:
            return above.handle_request(request)
        with self._connecting():
            return above.handle_request(request)

    async def handle_async_request(self, request: httpcore.Request) -> Any:
        """Do the same in the async pool."""
        above: Any = super()
        if self.made is not None:
            return await above.handle_async_request(request)
        with self._connecting():
            return await above.handle_async_request(request)

    @contextmanager
    def _connecting(self) -> Generator[None]:
        """Name what fails before the connection is made, socksio's exceptions too."""
        try:
            yield
        except Exception as exc:
            if self.made is not None or isinstance(exc, httpcore.ConnectTimeout):
                raise
            if isinstance(exc, httpcore.TimeoutException):
                raise httpcore.ConnectTimeout(str(exc)) from exc
            if _is_socksio(exc):
                text = f"{type(exc).__name__} in the SOCKS handshake: {exc}"
                raise httpcore.ProxyError(text) from exc
            raise


def _replace_locks(part: Any) -> None:
    """Give a sync connection locks that are free again whenever Ctrl-C strikes.

    It can strike within httpcore's, which are Python around the same: who came next would wait for
    ever.
    """
    attributes: dict[str, Any] = part.__dict__
    for name in [name for name, value in attributes.items() if isinstance(value, PythonLock)]:
        attributes[name] = Lock()


def _is_socksio(exc: Exception) -> bool:
    return type(exc).__module__.partition(".")[0] == "socksio"


def _negotiating(stock: Any, changed: Callable[[], None]) -> Any:
    return _negotiating_kind(stock.__class__)(stock, changed)


@cache
def _negotiating_kind(kind: Hashable) -> Any:
    base: Any = kind
    return type(base.__name__, (Negotiating, base), {})


class HTTPConnection:
    """What the pool's assignment knows of a connection."""

    def __init__(self, stock: Any, connector: Connector, changed: Callable[[], None]) -> None:
        """Wrap a connection that httpcore has made; `connector` makes its sockets."""
        self._connector, self._changed = connector, changed
        self.made: Any = None  # the HTTP/1.1 or HTTP/2 connection
        self._expired = self.shared = False
        may_be_shared = connector.runtime.shares_connections and _negotiates_http2(stock)
        self.capacity: int | None = None if may_be_shared else 1
        self._forwards = not hasattr(stock, "_http2")  # plain HTTP through a proxy
        if self._forwards:
            self._negotiating = _negotiating(stock._connection, self.update)
            stock._connection = self._negotiating
        else:
            stock = self._negotiating = _negotiating(stock, self.update)
        self.http = stock

    def update(self) -> None:
        """Take note of what it has become, or of how many requests it takes now."""
        self.made = self._negotiating.made
        is_http2 = isinstance(self.made, HTTP2Connection)
        self.shared = is_http2 and self.made.shared
        self.capacity = self.made.capacity if is_http2 else 1
        self._changed()

    @property
    def way_in(self) -> Any:
        """Where requests go: httpcore's way, until that only leads to the connection made."""
        return self.http if self.made is None or self._forwards else self.made

    def finish_request(self, request: Any) -> None:
        """Give back the stream that a request may still have: over HTTP/2."""
        if isinstance(self.made, HTTP2Connection):
            self.made.finish_request(request)

    def is_reusable(self) -> bool:
        """Tell whether a connection whose last request has ended is good for another.

        Not when the server sent more than its response: the rest would pass for the next answer.
        Nor when it answered a request that was not sent to its end, which h11 takes for sent: the
        next one would pass for the rest of it. Nor when Ctrl-C struck just as h11 made ready to
        write the next one.
        """
        if self._expired or self.made is None or not self.made.is_idle():
            return False
        if self.made._network_stream.is_torn:
            return False
        h11_state = getattr(self.made, "_h11_state", None)
        if h11_state is None:
            return True
        return h11_state._writer is not None and not h11_state.trailing_data[0]

    def has_expired(self) -> bool:
        """Tell whether the server has closed it: asked before each request.

        Not so a shared one, on which others may be: `HTTP2Connection` looks when it begins one.
        """
        if self.made is not None and not self.shared:
            self._expired = bool(self.made.has_expired())
        return self._expired

    def close(self) -> None:
        """Close it, made or half made, without waiting."""
        self._connector.close()


def _negotiates_http2(stock: Any) -> bool:
    if not getattr(stock, "_http2", False):
        return False
    origin = getattr(stock, "_remote_origin", None) or stock._origin
    return origin.scheme in (b"https", b"wss") or not stock._http1
