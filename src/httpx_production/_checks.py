"""Checks of what a caller has given: they name what was wrong, its value, and what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import iscoroutinefunction
from typing import Any, Final, NoReturn, cast

import httpx

LONGEST_TIMEOUT: Final = 2_147_483  # poll() takes milliseconds as an int: more would wrap around


def check_seconds(name: str, value: Any, *, optional: bool = True, zero: bool = True) -> None:
    """Raise unless `value` is a finite number of seconds, or None where that means "no limit"."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " or None" if optional else ""
        raise TypeError(f"{name} must be a number of seconds{hint}, not {value!r}")
    if not 0 <= value <= LONGEST_TIMEOUT or (value == 0 and not zero):
        hint = "; None means: no limit" if optional else ""
        least = f"{'at least' if zero else 'more than'} 0 and at most {LONGEST_TIMEOUT}"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}{hint}")


def items(name: str, value: Any, example: str) -> tuple[Any, ...]:
    """Return what a collection holds; a string is none, though it can be iterated over."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a collection such as {example}, not {value!r}")
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a collection such as {example}, not {value!r}") from None


def check_methods(methods: Any) -> frozenset[str]:
    """Return the methods in upper case, as httpx writes a request's."""
    names = items("methods", methods, '{"GET", "PUT"}')
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"methods must hold strings, not {name!r}")
    return frozenset(name.upper() for name in names)


def check_statuses(statuses: Any) -> None:
    """Raise unless it can be asked for a status, and holds nothing else as far as it can tell."""
    if not hasattr(statuses, "__contains__") or isinstance(statuses, str | bytes):
        raise TypeError(f"status_codes must be a container such as {{429, 503}}, not {statuses!r}")
    for status in statuses if hasattr(statuses, "__iter__") else ():
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"status_codes must hold whole numbers, not {status!r}")


def exception_types(exceptions: Any) -> tuple[type[Exception], ...]:
    """Return the types that a table holds at this moment; it may have been changed since."""
    types = items("exceptions", exceptions, "[httpx.ReadTimeout]")
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"exceptions must hold exception types, not {kind!r}")
    return types


def check_attempts(attempts: Any) -> None:
    """Raise unless it is a number of attempts; the first one counts."""
    if isinstance(attempts, bool) or not isinstance(attempts, int):
        raise TypeError(f"max_attempts must be a whole number, not {attempts!r}")
    if attempts < 1:
        raise ValueError(f"max_attempts must be at least 1, not {attempts} (1 means: never retry)")


def check_function(name: str, value: Any, *, optional: bool = False) -> None:
    """Raise unless it can be called, or is None where there need not be one."""
    if not (callable(value) or (optional and value is None)):
        raise TypeError(f"{name} must be a function, not {value!r}")


def check_returned(function: str, value: Any, *, optional: bool = False) -> float:
    """Return the number that a caller's function has returned; 0 for None where that is allowed."""
    if optional and value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{function} must return seconds{' or None' * optional}, not {value!r}")
    return value


def is_coroutine_function(function: Any) -> bool:
    """Tell an async function, a partial of one, and an object whose `__call__` is one."""
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def refuse_awaitable(hook: Any, result: Any = None) -> NoReturn:
    """Refuse a retry hook that the sync client would have to await, and end its coroutine."""
    if hasattr(result, "close"):
        result.close()  # or Python would warn that it was never awaited
    raise TypeError(
        f"the sync client can't await the retry hook {hook!r}: "
        "use a plain function, or AsyncProductionHTTPClient"
    )


# --- the clients' arguments ----------------------------------------------------------------------


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raise unless it is a number of connections, or None where that means "no limit"."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number or None, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value} (None means: no limit)")


def check_timeout(timeout: Any) -> None:
    """Raise unless httpx can use it; of its own accord it would find out when it connects."""
    try:
        phases = httpx.Timeout(timeout).as_dict().values()
        is_usable = all(seconds is None or seconds + 0.0 >= 0 for seconds in phases)
    except (TypeError, IndexError):
        raise TypeError(
            f"timeout must be seconds, None or an {httpx.__name__}.Timeout, not {timeout!r} of "
            f"{type(timeout)}"
        ) from None
    if not is_usable:
        raise ValueError(f"timeout must be at least 0 seconds, not {timeout!r}")


def check_hooks(event_hooks: Mapping[str, Any], *, is_async: bool) -> dict[str, Any]:
    """Refuse what httpx would ignore; return the hooks as a dict of one's own."""
    if not isinstance(event_hooks, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f'event_hooks must be {{"retry": [function]}}, say, not {event_hooks!r}')
    hooks = dict(event_hooks)
    for name, functions in hooks.items():
        if name not in ("request", "response", "retry"):
            raise ValueError(f"unknown event hook {name!r}: use request, response or retry")
        if callable(functions):
            raise TypeError(f"event_hooks[{name!r}] must be a list of functions: [{functions!r}]")
    if "retry" in hooks:
        hooks["retry"] = list(items("event_hooks['retry']", hooks["retry"], "[function]"))
        for hook in hooks["retry"]:
            check_function("a retry hook", hook)
            if not is_async and is_coroutine_function(hook):
                refuse_awaitable(hook)
    return hooks


#: What other libraries call it, or nearer by its sense than by its letters.
ELSEWHERE: Final = {
    **dict.fromkeys(["retries", "max_retries", "max_retry"], "max_attempts"),
    **{phase: f"{phase}_timeout" for phase in ("connect", "read", "write", "pool")},
    **dict.fromkeys(["deadline", "timeout_total"], "total_timeout"),
    "policy": "retry",
    "hooks": "event_hooks",
}


def next_in_line(kind: type, after: type) -> type:
    """Return the class whose `__init__` is called by `super().__init__` in the class `after`."""
    order = kind.__mro__[kind.__mro__.index(after) + 1 :]
    return next(one for one in order if "__init__" in vars(one))


def check_bases(kind: type) -> None:
    """Refuse a class whose bases are clients of httpx and of its successor (authlib prefers it)."""
    clients = [base for base in kind.__mro__ if hasattr(base, "build_request")]
    roots = [base for base in clients if base.__bases__ == (object,)]
    packages = {root.__module__.partition(".")[0] for root in roots}
    if len(packages) > 1:
        raise TypeError(
            f"{kind.__name__} would be a client of {' and '.join(sorted(packages))} at once: call "
            "httpx2.alias_httpx() before the first import of httpx"
        )


def check_names(
    kind: str, given: Collection[str], known: Collection[str], fields: Collection[str]
) -> None:
    """Refuse an argument that nobody knows, and name the nearest one, or field of the policy."""
    for name in given:
        if name not in known:
            near = ELSEWHERE.get(name) or nearest(name, [*known, *fields])
            meant = repr(near) if near in known else f"retry=RetryPolicy({near}=...)"
            hint = f": did you mean {meant}?" if near else ""
            raise TypeError(f"{kind}() got an unexpected keyword argument {name!r}{hint}")


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that was probably meant."""
    from difflib import get_close_matches  # for a mistake alone

    return next(iter(get_close_matches(name, known, 1, 0.4)), None)


def checked_base_url(base_url: httpx.URL | str | None) -> httpx.URL | str:
    """Return what httpx takes; refuse what no request could be sent to."""
    if base_url is None or base_url == "":
        return ""
    url = httpx.URL(base_url)
    if not url.scheme or not url.host:
        shown = "this one" if "@" in str(base_url) else repr(str(base_url))
        raise ValueError(
            f"base_url must have a scheme and a host, as in 'https://api.example.com', not {shown}"
        )
    return base_url


def check_header_values(name: str, headers: Any) -> None:
    """Refuse a value of the wrong type by its key: the value may be a secret."""
    pairs: Any = headers.items() if hasattr(headers, "items") else headers
    if isinstance(headers, httpx.Headers | None) or not hasattr(pairs, "__iter__"):
        return
    for pair in pairs:
        if isinstance(pair, tuple) and len(cast("Any", pair)) == 2:
            key, value = cast("tuple[Any, Any]", pair)
            if not isinstance(value, str | bytes):
                kind = type(value).__name__
                raise TypeError(f"{name}[{key!r}] must be str or bytes, not {kind}")


def check_transport(name: str, transport: object, *, is_async: bool) -> None:
    """Refuse a transport of the other client, or of another library's (httpx2's beside httpx)."""
    right: type[Any] = httpx.AsyncBaseTransport if is_async else httpx.BaseTransport
    kind = type(transport)
    bases = [one for one in kind.__mro__ if one.__name__ in ("BaseTransport", "AsyncBaseTransport")]
    if bases and right not in bases:  # with neither among its bases it may do all the same
        raise TypeError(
            f"{name} must be an {right.__module__}.{right.__name__} in this client, not "
            f"{kind.__module__}.{kind.__name__}"
        )


def refuse_idempotency_key(headers: httpx.Headers) -> None:
    """Raise when all requests would carry one key: a server may take them for one and the same."""
    if headers.get("Idempotency-Key", "").strip():
        raise ValueError(
            "an Idempotency-Key among the client's headers would make all its requests one and "
            "the same to the server: give each request its own"
        )
