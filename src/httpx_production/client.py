"""Both clients side by side: `send()` sends, asks `retry.py` whether to send again, and waits.

The only file that sends and sleeps. The two loops differ in `await` alone (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from inspect import isawaitable
from time import monotonic, sleep
from typing import Any

import httpx

from ._bodies import ensure_complete, hurried, watch
from ._deadline import Deadline
from ._options import ProductionOptions
from .retry import Call, FailedAttempt

Send = Callable[..., Coroutine[Any, Any, httpx.Response]]

# Body and timeouts of a request that needs no preparing: in memory, and httpx's own.
PLAIN = (httpx.ByteStream, dict)


async def async_sleep(seconds: float) -> None:
    """Wait on asyncio or trio; anyio is imported by the first wait, not by `import`."""
    from anyio import sleep as anyio_sleep

    await anyio_sleep(seconds)


class ProductionHTTPClient(ProductionOptions[httpx.BaseTransport], httpx.Client):
    """An `httpx.Client` with timeouts, connection limits and retries set for production.

    ```python
    with ProductionHTTPClient(base_url="https://api.example.com") as client:
        response = client.get("/things")  # up to 5 attempts; waits about 1, 2, 4, 8 s
    ```
    """

    def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """Send a request as httpx does, and again while its policy says so."""
        policy, started, call = request.extensions.get("retry", self.retry), monotonic(), None
        kinds = type(request.stream), type(request.extensions.get("timeout"))  # pyright: ignore
        send = super().send
        if kinds != PLAIN or getattr(policy, "total_timeout", policy) is not None:
            auth, send = self._prepare(request, policy, auth, started), self._in_time(send)
        request.extensions["attempt"], request.extensions["retries"] = 0, ()
        while True:
            failed = response = None
            try:
                response = send(request, stream=True, auth=auth, follow_redirects=follow_redirects)
                if stream or response.status_code in policy.suspects:
                    call = call or Call(request, policy, started)
                    failed = self._judge(call, response, stream)
                if failed is None:
                    if not stream:
                        response.read()
                        ensure_complete(response)
                    response.extensions["retries"] = call.end() if call else ()
                    return response
            except BaseException as exc:
                call = call or Call(request, policy, started)
                failed = self._recover(call, exc, response)
            self._pause(failed)

    def _in_time[F](self, send: F) -> F:
        """Return `send`: nobody can interrupt a blocking call but the transport itself."""
        return send

    def _judge(self, call: Call, response: httpx.Response, stream: bool) -> FailedAttempt | None:
        """Ask whether a response is to be retried; should_retry may want to look at its body."""
        if stream or call.policy.total_timeout is not None:
            watch(response)
        if call.policy.should_retry and (response.is_error or not stream):
            response.read()
        return call.after(response, monotonic())

    def _recover(
        self, call: Call, exc: BaseException, response: httpx.Response | None
    ) -> FailedAttempt:
        """Raise the exception again unless it is to be retried; cancellation never is."""
        if response is not None:
            response.close()
        failed = call.after(exc, monotonic()) if isinstance(exc, Exception) else None
        if failed is None:
            raise exc
        return failed

    def _pause(self, failed: FailedAttempt) -> None:
        """Give the connection back, tell the hooks, wait: nothing is held meanwhile."""
        if isinstance(response := failed.outcome, httpx.Response):
            try:
                with hurried(response):
                    response.read()
            finally:
                response.close()
        for hook in self.event_hooks.get("retry", ()):
            hook(failed)
        sleep(failed.delay)


class AsyncProductionHTTPClient(ProductionOptions[httpx.AsyncBaseTransport], httpx.AsyncClient):
    """An `httpx.AsyncClient` with timeouts, connection limits and retries set for production.

    ```python
    async with AsyncProductionHTTPClient(base_url="https://api.example.com") as client:
        response = await client.get("/things")
    ```
    """

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """Send a request as httpx does, and again while its policy says so."""
        policy, started, call = request.extensions.get("retry", self.retry), monotonic(), None
        kinds = type(request.stream), type(request.extensions.get("timeout"))  # pyright: ignore
        send = super().send
        if kinds != PLAIN or getattr(policy, "total_timeout", policy) is not None:
            auth, send = self._prepare(request, policy, auth, started), self._in_time(send)
        request.extensions["attempt"], request.extensions["retries"] = 0, ()
        while True:
            failed = response = None
            try:
                response = await send(
                    request, stream=True, auth=auth, follow_redirects=follow_redirects
                )
                if stream or response.status_code in policy.suspects:
                    call = call or Call(request, policy, started)
                    failed = await self._judge(call, response, stream)
                if failed is None:
                    if not stream:
                        await response.aread()
                        ensure_complete(response)
                    response.extensions["retries"] = call.end() if call else ()
                    return response
            except BaseException as exc:
                call = call or Call(request, policy, started)
                failed = await self._recover(call, exc, response)
            await self._pause(failed)

    def _in_time(self, send: Send) -> Send:
        """Return `send` with the deadline enforced, whatever transport it goes through."""

        async def in_time(request: httpx.Request, **how: Any) -> httpx.Response:
            deadline = request.extensions["timeout"]
            with deadline.enforced(request) if isinstance(deadline, Deadline) else nullcontext():
                return await send(request, **how)

        return in_time

    async def _judge(
        self, call: Call, response: httpx.Response, stream: bool
    ) -> FailedAttempt | None:
        """Ask whether a response is to be retried; should_retry may want to look at its body."""
        if stream or call.policy.total_timeout is not None:
            watch(response)
        if call.policy.should_retry and (response.is_error or not stream):
            await response.aread()
        return call.after(response, monotonic())

    async def _recover(
        self, call: Call, exc: BaseException, response: httpx.Response | None
    ) -> FailedAttempt:
        """Raise the exception again unless it is to be retried; cancellation never is."""
        if response is not None:
            await response.aclose()
        failed = call.after(exc, monotonic()) if isinstance(exc, Exception) else None
        if failed is None:
            raise exc
        return failed

    async def _pause(self, failed: FailedAttempt) -> None:
        """Give the connection back, tell the hooks, wait: nothing is held meanwhile."""
        if isinstance(response := failed.outcome, httpx.Response):
            try:
                with hurried(response):
                    await response.aread()
            finally:
                await response.aclose()
        for hook in self.event_hooks.get("retry", ()):
            if isawaitable(result := hook(failed)):
                await result
        await async_sleep(failed.delay)

    async def close(self) -> None:
        """Close the transports; the same as `aclose()`."""
        await self.aclose()
