"""THE constructor, written once for both clients, and what else they share.

That is: event hooks with a "retry" list, and requests whose bodies know whether they can be sent
again. Nothing here sends or waits.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import astuple
from http.cookiejar import CookieJar
from inspect import iscoroutinefunction, isfunction
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypedDict, TypeVar, Unpack, cast

import httpx

from ._arguments import (
    FIELDS,
    Auth,
    Cookies,
    Default,
    DefaultInt,
    Headers,
    QueryParams,
    Seconds,
    check_policy,
    combined_limits,
    combined_policy,
    combined_timeout,
    merged_headers,
    policy_for,
)
from ._checks import (
    check_bases,
    check_header_values,
    check_hooks,
    check_names,
    check_timeout,
    check_transport,
    checked_base_url,
    next_in_line,
    refuse_idempotency_key,
)
from ._cookies import make_quick, prepare_jar
from ._deadline import TimedAuth, with_timeouts
from ._request_body import (
    correct_length,
    make_replayable,
    read_files_in_thread,
    readable,
    rewind_function,
)
from .retry import RetryPolicy
from .transport import AsyncPooledTransport, PooledTransport, PoolStats

TransportT = TypeVar("TransportT", httpx.BaseTransport, httpx.AsyncBaseTransport)
HooksT = TypeVar("HooksT")
UNSET = type(httpx.USE_CLIENT_DEFAULT)


class HTTPXOptions(TypedDict, Generic[TransportT, HooksT], total=False):
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
    event_hooks: HooksT | None
    transport: TransportT | None
    default_encoding: str | Callable[[bytes], str]


if TYPE_CHECKING:

    class _HTTPXClient(Generic[TransportT, HooksT]):
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
        def event_hooks(self, event_hooks: Any) -> None: ...
        def build_request(self, *args: Any, **kwargs: Any) -> httpx.Request: ...
else:

    class _HTTPXClient:
        """Says what to do with a positional argument; below the constructor, which help() shows."""

        def __new__(cls, *args: Any, **options: Any) -> Any:
            if args and cls.__init__ is ProductionOptions.__init__:
                raise TypeError(f"{cls.__name__} takes no positional arguments: base_url=...")
            return super().__new__(cls)

        def __class_getitem__(cls, _types: Any) -> Any:
            return cls  # Generic for type checkers alone


class ProductionOptions(_HTTPXClient[TransportT, HooksT]):
    """The constructor and the shared parts of both clients."""

    # Class-level defaults: some subclasses call httpx's __init__ directly (authlib does).
    _retry: RetryPolicy = RetryPolicy()
    _pooled_transports: tuple[PooledTransport | AsyncPooledTransport, ...] = ()
    _transport_class: ClassVar[type[PooledTransport | AsyncPooledTransport]]
    _is_async: ClassVar[bool]
    _has_flow: bool = False  # whether the client's auth may make requests of its own
    _overruns: bool = False  # whether a transport of the caller's may go on after a deadline

    def __init_subclass__(cls, **options: Any) -> None:
        """Check a class that inherits from more than ours."""
        super().__init_subclass__(**options)
        check_bases(cls)

    def __init__(
        self,
        *,
        base_url: httpx.URL | str | None = None,
        connect_timeout: Seconds = Default(5.0),
        read_timeout: Seconds = Default(10.0),
        write_timeout: Seconds = Default(5.0),
        pool_timeout: Seconds = Default(2.0),
        request_timeout: Seconds = None,
        attempt_timeout: Seconds = None,
        total_timeout: Seconds = None,
        max_connections: int | None = DefaultInt(50),
        max_keepalive_connections: int | None = DefaultInt(20),
        keepalive_expiry: Seconds = Default(30.0),
        max_attempts: int = DefaultInt(5),
        default_headers: Headers | None = None,
        retry: RetryPolicy | None = None,
        http2: bool = True,
        **httpx_options: Unpack[HTTPXOptions[TransportT, HooksT]],
    ) -> None:
        """Make a client; every argument is keyword-only, all times are seconds.

        Args:
            base_url: as in httpx.
            connect_timeout: for making a connection, per attempt; None: no limit.
            read_timeout: for each piece of the response, per attempt; None: no limit.
            write_timeout: for each piece of the request, per attempt; None: no limit.
            pool_timeout: for a free connection, per attempt; None: no limit. Where calls queue, it
                must be as long as they may; total_timeout bounds queueing too.
            request_timeout: one number for all four phases; a phase given explicitly wins.
            attempt_timeout: for one attempt as a whole: pool, connection, request, redirects, auth,
                the body. What runs out is a timeout like another: the attempt may be repeated.
            total_timeout: for the whole call: attempts, waits, redirects, auth, the body.
            max_connections: connections open at a time, at least 1 (50, where httpx has 100); None:
                no limit.
            max_keepalive_connections: idle connections kept, at least 0; None: no limit.
            keepalive_expiry: after which an idle connection is closed; None: never.
            max_attempts: total attempts, the first included, at least 1.
            default_headers: sent with every request, below httpx's own `headers`.
            retry: a RetryPolicy; `max_attempts`, `attempt_timeout` and `total_timeout`, where
                given, override it.
            http2: use HTTP/2 where the server offers it.
            httpx_options: everything else httpx's client takes, untouched. `timeout` replaces the
                phases and `limits` the three limits, as a whole.

        Raises:
            TypeError, ValueError: for an argument that makes no sense, or two that exclude each
                other; before any connection is made.
        """
        self.retry = combined_policy(retry, max_attempts, attempt_timeout, total_timeout)
        options: dict[str, Any] = dict(httpx_options)
        self._check(options, default_headers)
        options["timeout"] = combined_timeout(
            options,
            request_timeout,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            pool_timeout=pool_timeout,
        )
        options["limits"] = combined_limits(
            options,
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
        )
        if default_headers is not None:
            options["headers"] = merged_headers(default_headers, options.get("headers"))
        options["auth"] = with_timeouts(options.get("auth"))
        hooks = check_hooks(options.pop("event_hooks", None) or {}, is_async=self._is_async)
        super().__init__(base_url=checked_base_url(base_url), http2=http2, **options)
        self.event_hooks = cast("Any", hooks)
        self._note(**options)

    def _check(self, options: dict[str, Any], default_headers: Headers | None) -> None:
        """Refuse what httpx would take for something else, or explain badly."""
        if next_in_line(type(self), ProductionOptions) in (httpx.Client, httpx.AsyncClient):
            # Else some are for a class in between (authlib's), which hands on the others.
            arguments: dict[str, Any] = cast("Any", ProductionOptions).__init__.__kwdefaults__
            known = {*arguments, *HTTPXOptions.__annotations__}
            check_names(type(self).__name__, options, known, FIELDS)
        check_header_values("default_headers", default_headers)
        check_header_values("headers", options.get("headers"))
        check_transport("transport", options.get("transport"), is_async=self._is_async)
        for pattern, transport in dict(options.get("mounts") or {}).items():
            check_transport(f"mounts[{pattern!r}]", transport, is_async=self._is_async)

    def _note(
        self, mounts: Any = None, auth: Any = None, cookies: Any = None, **options: Any
    ) -> None:
        """Remember of the arguments what matters later."""
        self._has_flow = isinstance(auth, TimedAuth)
        self._overruns |= any(map(overruns, dict(mounts or {}).values()))
        refuse_idempotency_key(self.headers)
        jar: Any = self.cookies.jar
        if not isinstance(jar, CookieJar):  # the value is not shown: it may be a secret
            raise TypeError(f"cookies must be what httpx takes, not {type(cookies)}")
        prepare_jar(jar, cookies)
        make_quick(self.cookies)

    def _set_retry(self, policy: RetryPolicy) -> None:
        check_policy("client.retry", policy)
        self._retry = policy

    if TYPE_CHECKING:
        retry: RetryPolicy
        """The policy of all requests that bring none of their own."""
    else:
        retry = property(
            attrgetter("_retry"),
            _set_retry,
            doc="The policy of all requests that bring none of their own.",
        )

    # httpx makes its transports in these two methods. They are private names of httpx, the only
    # ones that are overridden: whatever it makes them for (arguments, proxies of the environment)
    # is ours then, and nothing is built twice or swapped afterwards.

    def _init_transport(self, *args: Any, **options: Any) -> Any:
        given = options.pop("transport", None)
        self._overruns |= overruns(given)
        return self._pooled(**options) if given is None else given

    def _init_proxy_transport(self, proxy: httpx.Proxy, *args: Any, **options: Any) -> Any:
        return self._pooled(proxy=proxy, **options)

    def _pooled(self, **options: Any) -> PooledTransport | AsyncPooledTransport:
        """Make one of our transports, and remember it for pool_stats()."""
        if options["verify"] is True and not options["cert"]:
            from ._tls import default_ssl_context

            names = ("http1", "http2", "trust_env")
            options["verify"] = default_ssl_context(**{name: options[name] for name in names})
        pooled = self._transport_class(**options)
        self._pooled_transports = (*self._pooled_transports, pooled)
        return pooled

    def pool_stats(self) -> PoolStats:
        """Return how many connections are open, idle and in use, and how many requests wait.

        Summed over the client's own transports. `waiting` above 0 for long, or `in_use` near
        max_connections, is pool exhaustion coming.
        """
        stats = [astuple(transport.pool_stats()) for transport in self._pooled_transports]
        return PoolStats(*map(sum, zip((0, 0, 0, 0), *stats, strict=True)))

    @property
    def auth(self) -> httpx.Auth | None:
        """The client's auth flow, as in httpx; requests that it makes itself have timeouts."""
        auth = super().auth
        return auth.wrapped if isinstance(auth, TimedAuth) else auth

    @auth.setter
    def auth(self, auth: Any) -> None:
        parent: Any = super(ProductionOptions, type(self)).auth
        parent.__set__(self, with_timeouts(auth))
        self._has_flow = isinstance(super().auth, TimedAuth)

    @property
    def cookies(self) -> httpx.Cookies:
        """The cookies, as in httpx. Its own jars take none that can't be sent back."""
        return super().cookies

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        parent: Any = super(ProductionOptions, type(self)).cookies
        jar = httpx.Cookies(cookies).jar  # made here: another thread may assign, too
        prepare_jar(jar, cookies)
        parent.__set__(self, jar)
        make_quick(super().cookies)

    @property
    def event_hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """The hooks by name: "request" and "response" as in httpx, and "retry" where it was set.

        A retry hook is called with the FailedAttempt before each wait; what it changes in
        `failed.request.headers` reaches the next attempt, what it raises reaches the caller. The
        async client takes plain and async functions, the sync one refuses async ones (TypeError).
        """
        return super().event_hooks

    @event_hooks.setter
    def event_hooks(self, event_hooks: HooksT) -> None:
        hooks = check_hooks(cast("Any", event_hooks), is_async=self._is_async)
        parent: Any = super(ProductionOptions, type(self)).event_hooks
        parent.__set__(self, hooks)  # httpx keeps request and response, in a new dict
        if "retry" in hooks:
            self.event_hooks["retry"] = hooks["retry"]

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
        if type(timeout) is not UNSET:
            check_timeout(timeout)
        if content is not None and self._is_async:
            content = readable(content)
        if files is not None and hasattr(files, "__next__"):  # used up by a look at it
            files = list(files)
        try:
            request = super().build_request(  # written out: **options would cost a request 2 %
                method, url, content=content, data=data, files=files, json=json, params=params,
                headers=headers, cookies=cookies, timeout=timeout, extensions=extensions,
            )  # fmt: skip
        except TypeError:  # httpx does not say which header it was
            check_header_values("headers", headers)
            raise
        if type(request.stream) is not httpx.ByteStream:
            self._ready_body(request, content, data, files, headers)
        if extensions is not None:
            policy_for(extensions, self.retry)
        return request

    def _ready_body(
        self, request: httpx.Request, content: Any, data: Any, files: Any, headers: Headers | None
    ) -> None:
        """Let a body that is not in memory know whether it can be sent again."""
        if content is None and not isinstance(data, Mapping | None):
            content = data  # what httpx does with `data=<iterator>`
        rewind = rewind_function(content, files)
        if self._is_async:
            read_files_in_thread(request, files)
        make_replayable(request, rewind)
        given = {*httpx.Headers(headers), *self.headers}
        if "content-length" not in given:
            chunked = "transfer-encoding" in given
            correct_length(request, content, known=rewind is not None, chunked=chunked)


def overruns(transport: object) -> bool:
    """Tell whether a transport may go on after a deadline: ours keep it by themselves.

    A mock's handler that is no coroutine function returns at once.
    """
    if isinstance(transport, httpx.MockTransport):
        return iscoroutinefunction(transport.handler) or not isfunction(transport.handler)
    return not isinstance(transport, PooledTransport | AsyncPooledTransport | None)
