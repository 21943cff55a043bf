"""For tests of applications: their clients retry as ever, and nobody waits.

Nothing else in the package imports this file, and nothing there asks whether it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType
from typing import Any, Final

from . import client, retry

_decided = retry.is_permanent


@contextmanager
def no_waits() -> Generator[None]:
    """Let every client of the process, whoever has made it, retry without waiting.

    ```python
    @pytest.fixture(autouse=True)
    def nobody_waits():
        with no_waits():
            yield
    ```

    Attempts, delays in the history, hooks and log lines are what they are otherwise, and deadlines
    go by the real clock; async clients still give way to other tasks. What pytest-httpx raises when
    a test has registered too few answers is not retried. Use it as a `with` block or in a fixture;
    above an `async def` it would end before the function runs.
    """
    _count(+1)
    try:
        yield
    finally:
        _count(-1)


def _no_wait(seconds: float) -> None:
    return None


async def _no_async_wait(seconds: float) -> None:
    from anyio.lowlevel import checkpoint

    await checkpoint()


def _is_permanent(exc: Exception, outer: BaseException | None) -> bool:
    return str(exc).startswith("No response can be found for ") or _decided(exc, outer)


_REPLACEMENTS: Final[dict[tuple[ModuleType, str], Callable[..., Any]]] = {
    (client, "sleep"): _no_wait,
    (client, "async_sleep"): _no_async_wait,
    (retry, "is_permanent"): _is_permanent,
}
_lock = Lock()
_replaced: dict[tuple[ModuleType, str], Any] = {}
_users = 0


def _count(change: int) -> None:
    """Replace what waits when the first one begins, put it back when the last one has ended."""
    global _users
    with _lock:
        _users += change
        if _users == 1 and change > 0:
            _replaced.update({(where, name): getattr(where, name) for where, name in _REPLACEMENTS})
        functions = _REPLACEMENTS if _users else _replaced
        for (where, name), function in functions.items():
            setattr(where, name, function)
