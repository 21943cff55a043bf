"""Both clients side by side: `send()` sends, asks whether to send again, and waits.

The only file that sends and sleeps. The two loops differ in `await` alone (a test compares them).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import isawaitable
from sys import exception
from time import monotonic, sleep
from typing import Any

import httpx

from ._arguments import AsyncHooks, SyncHooks
from ._attempts import (
    NO_TIME,
    begin_call,
    check_wait,
    end_call,
    explain,
    fail_call,
    settle,
    start_attempt,
)
from ._call import Call, FailedAttempt
from ._checks import refuse_awaitable
from ._constructor import ProductionOptions
from ._deadline import Deadline, TimedAuth, with_timeouts
from ._response_body import (
    adiscard,
    atake_small,
    bound_stream,
    discard,
    ensure_complete,
    take_small,
    unpacks_small,
)
from .transport import AsyncPooledTransport, PooledTransport

Send = Callable[..., httpx.Response]
AsyncSend = Callable[..., Awaitable[httpx.Response]]

DEFAULT = httpx.USE_CLIENT_DEFAULT
IN_MEMORY = httpx.ByteStream


async def async_sleep(seconds: float) -> None:
    """Wait on asyncio or trio; anyio is imported by the first wait, not by `import`."""
    from anyio import sleep as anyio_sleep

    await anyio_sleep(seconds)


class ProductionHTTPClient(ProductionOptions[httpx.BaseTransport, SyncHooks], httpx.Client):
    """An `httpx.Client` with timeouts, connection limits and retries set for production.

    ```python
    with ProductionHTTPClient(base_url="https://api.example.com") as client:
        response = client.get("/things")  # up to 5 attempts; waits about 1, 2, 4, 8 s
    ```
    """

    _transport_class = PooledTransport
    _is_async = False

    def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = DEFAULT,
        follow_redirects: Any = DEFAULT,
    ) -> httpx.Response:
        """Send a request as httpx does, and again while its policy says so."""
        policy, given, started, outer = self.retry, request.extensions, monotonic(), exception()
        is_plain = given.keys() == {"timeout"} and type(request.stream) is IN_MEMORY
        if stream or policy.is_timed or auth is not DEFAULT or not is_plain:
            special = begin_call(self, policy, request, given, started, outer)
            return self._repeat(special, None, stream, auth, follow_redirects)
        call = response = None
        request.extensions = {"timeout": given["timeout"], "attempt": 0, "retries": ()}
        try:  # httpx's own, and all there is to it unless it fails
            response = super().send(request, stream=True, follow_redirects=follow_redirects)
            if response.status_code not in policy.suspects:
                response.read()
                return settle(response, request, given)
            call = begin_call(self, policy, request, given, started, outer, request.extensions)
            if not (failed := self._judge(call, response, stream)):
                return self._finish(call, response, stream)
        except BaseException as exc:
            if call is None:
                call = begin_call(self, policy, request, given, started, outer, request.extensions)
            failed = self._recover(call, exc, response)
        response = None  # or its body would be there as long as this call
        return self._repeat(call, failed, stream, auth, follow_redirects)

    def _repeat(
        self, call: Call, failed: FailedAttempt | None, stream: bool, auth: Any, redirects: Any
    ) -> httpx.Response:
        """Wait after a failed attempt, send again, and so on while the policy says so."""
        while True:
            if failed is not None:
                self._pause(call, failed)
            response = None
            try:
                response, failed = self._attempt(call, auth, redirects), None
                if response.status_code in call.policy.suspects:
                    failed = self._judge(call, response, stream)
                if failed is None:
                    return self._finish(call, response, stream)
            except BaseException as exc:
                failed = self._recover(call, exc, response)

    def _attempt(self, call: Call, auth: Any, follow_redirects: Any) -> httpx.Response:
        """Send the call's request once, within its deadline."""
        deadline, auth = start_attempt(call), with_timeouts(auth)
        send = self._in_time(super().send, deadline, auth)
        response = send(call.request, stream=True, auth=auth, follow_redirects=follow_redirects)
        if deadline is not None and not response.is_closed:
            bound_stream(response, deadline, cancels=self._overruns)
        return response

    def _judge(self, call: Call, response: httpx.Response, stream: bool) -> FailedAttempt | None:
        """Ask whether a response is to be retried; should_retry may want to look at its body."""
        if call.policy.should_retry and (response.is_error or not stream):
            if stream:
                take_small(response)
            if not stream or unpacks_small(response):
                response.read()
                ensure_complete(response)
        return call.after(response, monotonic())

    def _finish(self, call: Call, response: httpx.Response, stream: bool) -> httpx.Response:
        """Read the response to be returned, unless the caller does."""
        if not stream:
            response.read()
            ensure_complete(response)
        return end_call(call, response, stream)

    def _recover(
        self, call: Call, exc: BaseException, response: httpx.Response | None
    ) -> FailedAttempt:
        """Raise the exception again unless it is to be retried; cancellation never is."""
        if response is not None:
            response.close()
        explain(call, exc)
        failed = call.after(exc, monotonic()) if isinstance(exc, Exception) else None
        if failed is None:
            fail_call(call)
            raise exc
        return failed

    def _pause(self, call: Call, failed: FailedAttempt) -> None:
        """Give the connection back, tell the hooks, wait: nothing is held meanwhile."""
        if isinstance(failed.outcome, httpx.Response):
            discard(failed.outcome)
        with self._time_for_hooks(call):
            for hook in self.event_hooks.get("retry", ()):
                if isawaitable(result := hook(failed)):
                    refuse_awaitable(hook, result)
        check_wait(call, failed)
        sleep(failed.delay)

    def _time_for_hooks(self, call: Call) -> AbstractContextManager[None]:
        """Let hooks run: nobody can interrupt a plain function."""
        return nullcontext()

    def _in_time(self, send: Send, deadline: Deadline | None, auth: Any) -> Send:
        """Return `send`: nobody can interrupt a blocking call but the transport itself."""
        return send


class AsyncProductionHTTPClient(
    ProductionOptions[httpx.AsyncBaseTransport, AsyncHooks], httpx.AsyncClient
):
    """An `httpx.AsyncClient` with timeouts, connection limits and retries set for production.

    ```python
    async with AsyncProductionHTTPClient(base_url="https://api.example.com") as client:
        response = await client.get("/things")
    ```
    """

    _transport_class = AsyncPooledTransport
    _is_async = True

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = DEFAULT,
        follow_redirects: Any = DEFAULT,
    ) -> httpx.Response:
        """Send a request as httpx does, and again while its policy says so."""
        policy, given, started, outer = self.retry, request.extensions, monotonic(), exception()
        is_plain = given.keys() == {"timeout"} and type(request.stream) is IN_MEMORY
        if stream or policy.is_timed or auth is not DEFAULT or not is_plain:
            special = begin_call(self, policy, request, given, started, outer)
            return await self._repeat(special, None, stream, auth, follow_redirects)
        call = response = None
        request.extensions = {"timeout": given["timeout"], "attempt": 0, "retries": ()}
        try:  # httpx's own, and all there is to it unless it fails
            response = await super().send(request, stream=True, follow_redirects=follow_redirects)
            if response.status_code not in policy.suspects:
                await response.aread()
                return settle(response, request, given)
            call = begin_call(self, policy, request, given, started, outer, request.extensions)
            if not (failed := await self._judge(call, response, stream)):
                return await self._finish(call, response, stream)
        except BaseException as exc:
            if call is None:
                call = begin_call(self, policy, request, given, started, outer, request.extensions)
            failed = await self._recover(call, exc, response)
        response = None  # or its body would be there as long as this call
        return await self._repeat(call, failed, stream, auth, follow_redirects)

    async def _repeat(
        self, call: Call, failed: FailedAttempt | None, stream: bool, auth: Any, redirects: Any
    ) -> httpx.Response:
        """Wait after a failed attempt, send again, and so on while the policy says so."""
        while True:
            if failed is not None:
                await self._pause(call, failed)
            response = None
            try:
                response, failed = await self._attempt(call, auth, redirects), None
                if response.status_code in call.policy.suspects:
                    failed = await self._judge(call, response, stream)
                if failed is None:
                    return await self._finish(call, response, stream)
            except BaseException as exc:
                failed = await self._recover(call, exc, response)

    async def _attempt(self, call: Call, auth: Any, follow_redirects: Any) -> httpx.Response:
        """Send the call's request once, within its deadline."""
        deadline, auth = start_attempt(call), with_timeouts(auth)
        send = self._in_time(super().send, deadline, auth)
        response = await send(
            call.request, stream=True, auth=auth, follow_redirects=follow_redirects
        )
        if deadline is not None and not response.is_closed:
            bound_stream(response, deadline, cancels=self._overruns)
        return response

    async def _judge(
        self, call: Call, response: httpx.Response, stream: bool
    ) -> FailedAttempt | None:
        """Ask whether a response is to be retried; should_retry may want to look at its body."""
        if call.policy.should_retry and (response.is_error or not stream):
            if stream:
                await atake_small(response)
            if not stream or unpacks_small(response):
                await response.aread()
                ensure_complete(response)
        return call.after(response, monotonic())

    async def _finish(self, call: Call, response: httpx.Response, stream: bool) -> httpx.Response:
        """Read the response to be returned, unless the caller does."""
        if not stream:
            await response.aread()
            ensure_complete(response)
        return end_call(call, response, stream)

    async def _recover(
        self, call: Call, exc: BaseException, response: httpx.Response | None
    ) -> FailedAttempt:
        """Raise the exception again unless it is to be retried; cancellation never is."""
        if response is not None:
            await response.aclose()
        explain(call, exc)
        failed = call.after(exc, monotonic()) if isinstance(exc, Exception) else None
        if failed is None:
            fail_call(call)
            raise exc
        return failed

    async def _pause(self, call: Call, failed: FailedAttempt) -> None:
        """Give the connection back, tell the hooks, wait: nothing is held meanwhile."""
        if isinstance(failed.outcome, httpx.Response):
            await adiscard(failed.outcome)
        with self._time_for_hooks(call):
            for hook in self.event_hooks.get("retry", ()):
                if isawaitable(result := hook(failed)):
                    await result
        check_wait(call, failed)
        await async_sleep(failed.delay)

    def _time_for_hooks(self, call: Call) -> AbstractContextManager[None]:
        """Let hooks run until the deadline."""
        return nullcontext() if call.deadline is None else call.deadline.cancels(NO_TIME)

    def _in_time(self, send: AsyncSend, deadline: Deadline | None, auth: Any) -> AsyncSend:
        """Return `send`, cancelled at the deadline where others than our transports may wait."""
        hooks = super().event_hooks  # what httpx runs, whatever a subclass makes of the property
        foreign = self._overruns or hooks.get("request") or hooks.get("response")
        if deadline is None or not (foreign or self._has_flow or isinstance(auth, TimedAuth)):
            return send

        async def in_time(request: httpx.Request, **how: Any) -> httpx.Response:
            with deadline.cancels("the response did not come in time"):
                return await send(request, **how)
            raise AssertionError("cancels() raises")  # pragma: no cover

        return in_time

    async def close(self) -> None:
        """Close the transports; the same as `aclose()`."""
        await self.aclose()
