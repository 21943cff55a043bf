"""What the constructor's and a request's arguments come to. No state, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from http.cookiejar import CookieJar
from typing import Any, Final, Generic, TypedDict, TypeVar, cast

import httpx

from ._call import FailedAttempt
from ._checks import check_count, check_seconds, check_timeout, nearest
from .retry import RetryPolicy

HookT = TypeVar("HookT")


class EventHooks(TypedDict, Generic[HookT], total=False):
    """httpx's own hooks as httpx types them, and ours."""

    request: list[Callable[..., Any]]
    response: list[Callable[..., Any]]
    retry: list[HookT]


# The mappings are for hooks kept in a variable, above all those read from another client.
SyncHooks = EventHooks[Callable[[FailedAttempt], None]] | Mapping[str, list[Callable[..., None]]]
AsyncHooks = EventHooks[Callable[[FailedAttempt], Any]] | Mapping[str, list[Callable[..., Any]]]
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


class Default(float):
    """A default that can be told from the same number given explicitly; help() shows the number."""

    __slots__ = ()


class DefaultInt(int):
    """The same for a whole number."""

    __slots__ = ()


def combined_policy(
    retry: RetryPolicy | None, max_attempts: int, attempt_timeout: Seconds, total_timeout: Seconds
) -> RetryPolicy:
    """Return the policy, with the fields that were given beside it."""
    if retry is not None:
        check_policy("retry", retry)
    changes: dict[str, Any] = {}
    if not isinstance(max_attempts, DefaultInt):
        changes["max_attempts"] = max_attempts
    if attempt_timeout is not None:
        changes["attempt_timeout"] = attempt_timeout
    if total_timeout is not None:
        changes["total_timeout"] = total_timeout
    return replace(retry or RetryPolicy(), **changes)


def combined_timeout(options: dict[str, Any], request_timeout: Seconds, **phases: Seconds) -> Any:
    """Combine the phases, unless httpx's own `timeout` replaces them as a whole."""
    given = {name: value for name, value in phases.items() if not isinstance(value, Default)}
    whole = {} if request_timeout is None else {"request_timeout": request_timeout}
    _refuse_both("timeout", options, whole | given)
    for name, value in (whole | given).items():
        check_seconds(name, value)
    if "timeout" in options:
        check_timeout(options["timeout"])
        return options["timeout"]
    chosen = phases | dict.fromkeys(phases if whole else (), request_timeout) | given
    return httpx.Timeout(
        **{
            name.removesuffix("_timeout"): None if value is None else float(value)
            for name, value in chosen.items()
        }
    )


def combined_limits(
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
    check_count("max_connections", max_connections, least=1)
    check_count("max_keepalive_connections", max_keepalive_connections, least=0)
    check_seconds("keepalive_expiry", keepalive_expiry)
    limits: httpx.Limits = options.get("limits", httpx.Limits(**given))
    if not hasattr(limits, "max_connections"):
        raise TypeError(f"limits must be an httpx.Limits, not {limits!r}")
    return limits


def _refuse_both(whole: str, options: dict[str, Any], parts: Collection[str]) -> None:
    if whole in options and parts:
        names = ", ".join(parts)
        raise TypeError(f"{whole} replaces {names} as a whole: give one or the other, not both")


def merged_headers(default_headers: Headers, headers: Headers | None) -> httpx.Headers:
    """Return `default_headers`, overridden by httpx's own `headers`."""
    try:
        merged = httpx.Headers(default_headers)
    except (TypeError, ValueError, AttributeError):  # the value is not shown: it may be a secret
        kind = type(default_headers).__name__
        raise TypeError(f"default_headers must be what httpx takes, not this {kind}") from None
    merged.update(headers)
    return merged


def check_policy(name: str, policy: Any) -> None:
    """Refuse what is no policy, where it is given."""
    if not isinstance(policy, RetryPolicy):
        raise TypeError(f"{name} must be a RetryPolicy, not {policy!r}")


FIELDS: Final = frozenset(field.name for field in fields(RetryPolicy) if field.init)


def policy_for(extensions: Mapping[str, Any], policy: RetryPolicy) -> RetryPolicy:
    """Return the policy of one request: its client's, a changed one, or one of its own.

    Raises:
        TypeError: for what would be ignored, or is no policy.
    """
    for name, value in extensions.items():
        misnamed = name != "retry" and isinstance(value, RetryPolicy)
        if name in FIELDS or misnamed or (name == "retries" and not isinstance(value, tuple)):
            hint = f"{{{name!r}: ...}}" if name in FIELDS else "policy"
            raise TypeError(f"extensions[{name!r}] does nothing: use {{'retry': {hint}}}")
    own = extensions.get("retry", policy)
    if isinstance(own, Mapping):
        return _changed(policy, cast("Mapping[str, Any]", own))
    check_policy("extensions['retry']", own)
    return cast("RetryPolicy", own)


def _changed(policy: RetryPolicy, changes: Mapping[str, Any]) -> RetryPolicy:
    for name in changes:
        if name not in FIELDS:
            near = nearest(str(name), FIELDS)
            hint = f": did you mean {near!r}?" if near else ""
            raise TypeError(f"extensions['retry'] has an unknown field {name!r}{hint}")
    return replace(policy, **changes)
