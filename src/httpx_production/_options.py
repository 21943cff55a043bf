"""THE constructor, written once for both clients, and what else they share.

That is: event hooks with a "retry" list, and requests whose bodies know whether they can be sent
again. Nothing here sends or waits.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack, cast

import httpx

from ._bodies import guard, in_pieces, rewinder, tell
from ._deadline import Deadline, DeadlineAuth
from .retry import RetryPolicy, seconds

if TYPE_CHECKING:
    from ._pool import PoolStats

TransportT = TypeVar("TransportT", httpx.BaseTransport, httpx.AsyncBaseTransport)

EventHooks = Mapping[str, list[Callable[..., Any]]]
Headers = (
    httpx.Headers
    | Mapping[str, str]
    | Mapping[bytes, bytes]
    | Sequence[tuple[str, str]]
    | Sequence[tuple[bytes, bytes]]
)
Primitive = str | int | float | bool | None
QueryParams = (
    httpx.QueryParams
    | Mapping[str, Primitive | Sequence[Primitive]]
    | list[tuple[str, Primitive]]
    | tuple[tuple[str, Primitive], ...]
    | str
    | bytes
)
Cookies = httpx.Cookies | CookieJar | dict[str, str] | list[tuple[str, str]]
Auth = tuple[str | bytes, str | bytes] | Callable[[httpx.Request], httpx.Request] | httpx.Auth
Seconds = float | None


class HTTPXOptions(TypedDict, Generic[TransportT], total=False):
    """The other arguments of httpx's clients, handed through; absent ones keep httpx's default."""

    auth: Auth | None
    params: QueryParams | None
    headers: Headers | None
    cookies: Cookies | None
    verify: ssl.SSLContext | str | bool
    cert: str | tuple[str, str] | tuple[str, str, str] | None
    trust_env: bool
    http1: bool
    proxy: httpx.URL | str | httpx.Proxy | None
    mounts: Mapping[str, TransportT | None] | None
    timeout: Seconds | tuple[Seconds, Seconds, Seconds, Seconds] | httpx.Timeout
    follow_redirects: bool
    limits: httpx.Limits
    max_redirects: int
    event_hooks: EventHooks | None
    transport: TransportT | None
    default_encoding: str | Callable[[bytes], str]


class Default(float):
    """A default that can be told from the same number given explicitly; help() shows the number."""

    __slots__ = ()


class DefaultInt(int):
    """The same for a whole number."""

    __slots__ = ()


if TYPE_CHECKING:

    class _HTTPXClient:
        """What the mixin uses of the httpx client behind it."""

        def __init__(self, **options: Any) -> None: ...
        @property
        def auth(self) -> httpx.Auth | None: ...
        @auth.setter
        def auth(self, auth: Any) -> None: ...
        @property
        def cookies(self) -> httpx.Cookies: ...
        @cookies.setter
        def cookies(self, cookies: Any) -> None: ...
        @property
        def headers(self) -> httpx.Headers: ...
        @headers.setter
        def headers(self, headers: Any) -> None: ...
        @property
        def timeout(self) -> httpx.Timeout: ...
        @timeout.setter
        def timeout(self, timeout: Any) -> None: ...
        @property
        def event_hooks(self) -> dict[str, list[Callable[..., Any]]]: ...
        @event_hooks.setter
        def event_hooks(self, event_hooks: dict[str, list[Callable[..., Any]]]) -> None: ...
        def build_request(self, *args: Any, **kwargs: Any) -> httpx.Request: ...
else:
    _HTTPXClient = object


class _SendableCookies(DefaultCookiePolicy):
    """Takes no cookie that can't be sent back.

    httpx encodes headers as ASCII: after one `Set-Cookie: a=\\xff`, each further request to that
    host would raise UnicodeEncodeError.
    """

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        """Decide on one cookie of a response."""
        return f"{cookie.name}{cookie.value}".isascii() and super().set_ok(cookie, request)


class ProductionOptions(Generic[TransportT], _HTTPXClient):
    """The constructor and the shared parts of both clients."""

    # Class-level defaults: some subclasses call httpx's __init__ directly (authlib does).
    retry: RetryPolicy = RetryPolicy()
    _given_transports: Collection[object] = ()

    def __init__(
        self,
        *,
        base_url: httpx.URL | str | None = None,
        connect_timeout: Seconds = Default(5.0),
        read_timeout: Seconds = Default(10.0),
        write_timeout: Seconds = Default(5.0),
        pool_timeout: Seconds = Default(2.0),
        request_timeout: Seconds = None,
        total_timeout: Seconds = None,
        max_connections: int | None = DefaultInt(50),
        max_keepalive_connections: int | None = DefaultInt(20),
        keepalive_expiry: Seconds = Default(30.0),
        max_attempts: int = DefaultInt(5),
        default_headers: Headers | None = None,
        retry: RetryPolicy | None = None,
        http2: bool = True,
        **httpx_options: Unpack[HTTPXOptions[TransportT]],
    ) -> None:
        """Make a client; every argument is keyword-only, all times are seconds.

        Args:
            base_url: as in httpx.
            connect_timeout: for making a connection, per attempt; None: no limit.
            read_timeout: for each piece of the response, per attempt; None: no limit.
            write_timeout: for each piece of the request, per attempt; None: no limit.
            pool_timeout: for a free connection, per attempt; None: no limit.
            request_timeout: one number for all four phases; a phase given explicitly wins.
            total_timeout: for the whole call: attempts, waits, redirects, auth, the body.
            max_connections: connections open at a time, at least 1; None: no limit.
            max_keepalive_connections: idle connections kept, at least 0; None: no limit.
            keepalive_expiry: after which an idle connection is closed; None: never.
            max_attempts: total attempts, the first included, at least 1.
            default_headers: sent with every request, below httpx's own `headers`.
            retry: a RetryPolicy; `max_attempts` and `total_timeout`, where given, override it.
            http2: use HTTP/2 where the server offers it.
            httpx_options: everything else httpx's client takes, untouched. `timeout` replaces the
                phases and `limits` the three limits, as a whole.

        Raises:
            TypeError, ValueError: for an argument that makes no sense, or two that exclude each
                other; before any connection is made.
        """
        self.retry = _policy(retry, max_attempts, total_timeout)
        options: dict[str, Any] = dict(httpx_options)
        options["timeout"] = _timeout(
            options,
            request_timeout,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            pool_timeout=pool_timeout,
        )
        options["limits"] = _limits(
            options,
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
        )
        if default_headers is not None:
            options["headers"] = _merged(default_headers, options.get("headers"))
        hooks: dict[str, Any] = dict(options.pop("event_hooks", None) or {})
        _check_hooks(hooks)
        options["verify"] = _verify(options, http2)
        super().__init__(base_url="" if base_url is None else base_url, http2=http2, **options)
        self.event_hooks = hooks
        self._mend(options.get("transport"), options.get("mounts"), options.get("cookies"))

    def _mend(
        self,
        transport: TransportT | None,
        mounts: Mapping[str, TransportT | None] | None,
        cookies: Cookies | None,
    ) -> None:
        """Mend the pools and the cookie jar that httpx made; the caller's are left alone."""
        if not isinstance(cookies, CookieJar):
            self.cookies.jar.set_policy(_SendableCookies())
        from . import _pool  # imports httpcore, which httpx too does for the first client only

        self._given_transports = [transport, *(mounts or {}).values()]
        _pool.mend(self._client, self._given_transports)

    @property
    def _client(self) -> httpx.Client | httpx.AsyncClient:
        return cast("httpx.Client | httpx.AsyncClient", self)

    def pool_stats(self) -> PoolStats:
        """Return how many connections are open, idle and in use, and how many requests wait.

        Summed over the client's own transports. `waiting` above 0 for long, or `in_use` near
        max_connections, is pool exhaustion coming.
        """
        from . import _pool

        return _pool.stats(self._client, self._given_transports)

    @property
    def event_hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """The hooks by name: "request" and "response" as in httpx, and "retry" where it was set.

        A retry hook is called with the FailedAttempt before each wait; what it changes in
        `failed.request.headers` reaches the next attempt, what it raises reaches the caller.
        """
        return super().event_hooks

    @event_hooks.setter
    def event_hooks(self, event_hooks: dict[str, list[Callable[..., Any]]]) -> None:
        _check_hooks(event_hooks)
        parent: Any = super(ProductionOptions, type(self)).event_hooks
        parent.__set__(self, event_hooks)  # httpx keeps request and response, in a new dict
        if "retry" in event_hooks:
            self.event_hooks["retry"] = list(event_hooks["retry"])

    def build_request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        content: Any = None,
        data: Any = None,
        files: Any = None,
        json: Any = None,
        params: QueryParams | None = None,
        headers: Headers | None = None,
        cookies: Cookies | None = None,
        timeout: Any = httpx.USE_CLIENT_DEFAULT,
        extensions: Mapping[str, Any] | None = None,
    ) -> httpx.Request:
        """Build a request as httpx does, with a body that is sent again in full or not at all."""
        request = super().build_request(  # written out: **options would cost a request 2 %
            method,
            url,
            content=in_pieces(content) if hasattr(content, "wrapped") else content,
            data=data,
            files=files,
            json=json,
            params=params,
            headers=headers,
            cookies=cookies,
            timeout=timeout,
            extensions=extensions,
        )
        if not isinstance(request.stream, httpx.ByteStream):
            if content is None and not isinstance(data, Mapping | None):
                content = data  # what httpx does with `data=<iterator>`
            rewind = rewinder(content, files)
            guard(request, rewind)
            given = httpx.Headers(headers)
            if "Content-Length" not in given and "Content-Length" not in self.headers:
                _correct_length(request, content, unknown=rewind is None)
        if "retry" in request.extensions:
            _check_policy("extensions['retry']", request.extensions["retry"])
        return request

    def _prepare(
        self, request: httpx.Request, policy: RetryPolicy, auth: Any, started: float
    ) -> Any:
        """Ready a request that is not plain: own policy, deadline or body. Return its auth."""
        own = "retry" in request.extensions
        _check_policy("extensions['retry']" if own else "client.retry", policy)
        guard(request)
        phases = dict(request.extensions.get("timeout") or self.timeout.as_dict())
        if policy.total_timeout is None:
            request.extensions["timeout"] = phases  # without the deadline of an earlier call
            return auth
        deadline = Deadline(phases, started + policy.total_timeout, policy.total_timeout)
        request.extensions["timeout"] = deadline
        chosen = self.auth if auth is httpx.USE_CLIENT_DEFAULT else auth
        return DeadlineAuth(chosen, deadline) if isinstance(chosen, httpx.Auth) else auth


def _policy(retry: RetryPolicy | None, max_attempts: int, total_timeout: Seconds) -> RetryPolicy:
    if retry is not None:
        _check_policy("retry", retry)
    changes: dict[str, Any] = {}
    if not isinstance(max_attempts, DefaultInt):
        changes["max_attempts"] = max_attempts
    if total_timeout is not None:
        changes["total_timeout"] = total_timeout
    return replace(retry or RetryPolicy(), **changes)


def _timeout(options: dict[str, Any], request_timeout: Seconds, **phases: Seconds) -> Any:
    """Combine the phases, unless httpx's own `timeout` replaces them as a whole."""
    given = {name: value for name, value in phases.items() if not isinstance(value, Default)}
    whole = {} if request_timeout is None else {"request_timeout": request_timeout}
    _refuse_both("timeout", options, whole | given)
    for name, value in (whole | given).items():
        seconds(name, value)
    if "timeout" in options:
        return options["timeout"]
    chosen = phases | dict.fromkeys(phases if whole else (), request_timeout) | given
    return httpx.Timeout(
        **{
            name.removesuffix("_timeout"): None if value is None else float(value)
            for name, value in chosen.items()
        }
    )


def _limits(
    options: dict[str, Any],
    *,
    max_connections: int | None,
    max_keepalive_connections: int | None,
    keepalive_expiry: Seconds,
) -> httpx.Limits:
    """Combine the three limits, unless httpx's own `limits` replaces them as a whole."""
    given: dict[str, Any] = {
        "max_connections": max_connections,
        "max_keepalive_connections": max_keepalive_connections,
        "keepalive_expiry": keepalive_expiry,
    }
    explicit = {k: v for k, v in given.items() if not isinstance(v, Default | DefaultInt)}
    _refuse_both("limits", options, explicit)
    _check_count("max_connections", max_connections, least=1)
    _check_count("max_keepalive_connections", max_keepalive_connections, least=0)
    seconds("keepalive_expiry", keepalive_expiry)
    limits: httpx.Limits = options.get("limits", httpx.Limits(**given))
    return limits


def _refuse_both(whole: str, options: dict[str, Any], parts: Collection[str]) -> None:
    if whole in options and parts:
        names = ", ".join(parts)
        raise TypeError(f"{whole} replaces {names} as a whole: give one or the other, not both")


def _check_count(name: str, value: Any, *, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number or None, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value} (None means: no limit)")


def _merged(default_headers: Headers, headers: Headers | None) -> httpx.Headers:
    try:
        merged = httpx.Headers(default_headers)
    except (TypeError, ValueError, AttributeError):  # the value is not shown: it may be a secret
        kind = type(default_headers).__name__
        raise TypeError(f"default_headers must be what httpx takes, not this {kind}") from None
    merged.update(headers)
    return merged


def _verify(options: dict[str, Any], http2: bool) -> Any:
    """Return the shared default context where httpx would make one of its own."""
    verify = options.get("verify", True)
    unused = options.get("transport") is not None and options.get("proxy") is None
    if verify is not True or options.get("cert") or unused:
        return verify
    from ._tls import default_ssl_context

    return default_ssl_context(
        http1=options.get("http1", True), http2=http2, trust_env=options.get("trust_env", True)
    )


def _correct_length(request: httpx.Request, content: Any, *, unknown: bool) -> None:
    """Mend the Content-Length that httpx takes from fstat: the whole file's, and 0 for a pipe.

    A file that doesn't stand at its start is announced by its rest (pydantic/httpx2#578), what
    has no end that could be known is sent in chunks.
    """
    if "Content-Length" in request.headers and unknown:
        del request.headers["Content-Length"]
        request.headers["Transfer-Encoding"] = "chunked"
    elif "Content-Length" in request.headers and (position := tell(content)):
        length = int(request.headers["Content-Length"]) - position
        request.headers["Content-Length"] = str(max(0, length))


def _check_hooks(event_hooks: Mapping[str, Any]) -> None:
    for name, functions in event_hooks.items():
        if name not in ("request", "response", "retry"):
            raise ValueError(f"unknown event hook {name!r}: use request, response or retry")
        if callable(functions):
            raise TypeError(f"event_hooks[{name!r}] must be a list of functions: [{functions!r}]")


def _check_policy(name: str, policy: Any) -> None:
    if not isinstance(policy, RetryPolicy):
        raise TypeError(f"{name} must be a RetryPolicy, not {policy!r}")
