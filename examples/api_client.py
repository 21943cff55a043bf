"""An API client of your own: a class that holds the HTTP client, and is closed with it.

Run it with `uv run examples/api_client.py`. No network: the flaky server is started right here.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from types import TracebackType
from typing import Any, Self

from flaky_server import DROP, FlakyServer

from httpx_production import AsyncProductionHTTPClient


class ThingsAPI:
    """What the rest of your program sees: things, not requests.

    Hold one for as long as the program talks to the API: its connections are kept and used again.
    """

    def __init__(self, base_url: str, token: str) -> None:
        self._http = AsyncProductionHTTPClient(
            base_url=base_url,
            default_headers={"Authorization": f"Bearer {token}", "User-Agent": "things/1.0"},
            read_timeout=5.0,
            total_timeout=20.0,
        )

    async def thing(self, name: str) -> dict[str, Any]:
        """Fetch one thing; raises httpx.HTTPStatusError or httpx.TransportError in the end."""
        response = await self._http.get(f"/things/{name}")
        return dict(response.raise_for_status().json())

    async def close(self) -> None:
        """Close the connections; the object is of no use afterwards."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        """Say so when close() was forgotten; it can't be done here, as it must be awaited."""
        http = getattr(self, "_http", None)  # None: __init__ failed, there is nothing to close
        if http is not None and not http.is_closed:
            message = f"unclosed {type(self).__name__}: call close(), or use async with"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)


async def as_context_manager(url: str) -> None:
    """The rule: `async with` closes it, whatever happens."""
    async with ThingsAPI(url, token="secret") as api:
        spoon, fork = await asyncio.gather(api.thing("spoon"), api.thing("fork"))
    print("async with:       ", spoon["path"], fork["path"])
    assert (spoon["path"], fork["path"]) == ("/things/spoon", "/things/fork")


async def with_close(url: str) -> None:
    """The same by hand, for frameworks with a start-up and a shutdown function."""
    api = ThingsAPI(url, token="secret")
    try:
        knife = await api.thing("knife")
    finally:
        await api.close()
    print("close():          ", knife["path"])
    assert knife["path"] == "/things/knife"


def forgotten(url: str) -> None:
    """Forget to close one; Python shows such warnings under `python -X dev` and in pytest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api = ThingsAPI(url, token="secret")
        del api
        gc.collect()
    messages = [f"{one.category.__name__}: {one.message}" for one in caught]
    print("forgotten close():", *messages)
    assert len(messages) == 1, messages
    assert messages[0].startswith("ResourceWarning: unclosed ThingsAPI"), messages


def main() -> None:
    """Use the API three ways."""
    script = {"/things/spoon": [503, 200], "/things/fork": [DROP, 200], "/things/knife": [200]}
    with FlakyServer(script) as server:
        asyncio.run(as_context_manager(server.url))
        asyncio.run(with_close(server.url))
        forgotten(server.url)
        attempts = server.requests
    print("attempts made:    ", *(f"{path} {number}" for (_, path), number in attempts.items()))
    assert sorted(attempts.values()) == [1, 2, 2], attempts


if __name__ == "__main__":
    main()
