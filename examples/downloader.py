"""All files of a paginated API, with a progress bar, although it throttles and drops connections.

Run it with `uv run --group examples examples/downloader.py`. No network: the API is started right
here. Page by page the list is read, eight files at a time are fetched, and every byte is checked.
The API says 429 with Retry-After, and on one page says it GitHub's way, by the reset time of the
limit: a `retry_after=` of this program reads both.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from flaky_server import DROP, Answer, FlakyServer
from tqdm import tqdm

from httpx_production import AsyncProductionHTTPClient, RetryPolicy, jittered_backoff
from httpx_production.retry import read_retry_after

AT_ONCE = 8  # files; the API's own limit, or your line's


def rate_limit(response: httpx.Response) -> float | None:
    """The seconds that the API asks for: until its limit is reset, or as Retry-After says."""
    if response.headers.get("x-ratelimit-remaining") == "0":
        return float(response.headers["x-ratelimit-reset"]) - time.time()
    return read_retry_after(response)


# A fifth of the default's waits, to save your time; what the API asks for is waited in full.
POLICY = RetryPolicy(
    retry_after=rate_limit,
    attempt_timeout=30.0,  # a file that comes too slowly is asked for again
    backoff=lambda attempt: jittered_backoff(attempt) / 5,
)


async def listed(client: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
    """The API's files, from all of its pages."""
    page: str | None = "/files?page=1"
    while page:
        answer = (await client.get(page)).raise_for_status().json()
        for file in answer["files"]:
            yield file
        page = answer["next"]


async def fetch_all(client: httpx.AsyncClient, folder: Path) -> int:
    """Write every file into the folder; returns how often something was asked for once more."""
    files = [file async for file in listed(client)]
    permits = asyncio.Semaphore(AT_ONCE)
    retries = 0

    async def fetch(file: dict[str, Any]) -> None:
        nonlocal retries
        async with permits:
            response = (await client.get(file["path"])).raise_for_status()
        retries += len(response.extensions["retries"])
        (folder / file["name"]).write_bytes(response.content)
        bar.update(file["size"])

    total = sum(file["size"] for file in files)
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        async with asyncio.TaskGroup() as tasks:
            for file in files:
                tasks.create_task(fetch(file))
    return retries


# --- the API --------------------------------------------------------------------------------------

PAGES, PER_PAGE = 3, 20
FILES = {
    f"{number:02}.bin": random.Random(number).randbytes(50_000 + 1000 * number)
    for number in range(PAGES * PER_PAGE)
}


def script() -> dict[str, list[Answer]]:
    """Three pages, one of them throttled; of the files every sixth is trouble at first."""
    throttled: list[Answer] = [(429, {"Retry-After": "1"})]
    in_a_second = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{time.time() + 2:.2f}"}
    trouble: list[list[Answer]] = [throttled, [(429, in_a_second)], [DROP, 503]]
    answers: dict[str, list[Answer]] = {}
    for page in range(PAGES):
        names = list(FILES)[page * PER_PAGE :][:PER_PAGE]
        files = [{"name": n, "path": f"/files/{n}", "size": len(FILES[n])} for n in names]
        following = f"/files?page={page + 2}" if page + 1 < PAGES else None
        body = json.dumps({"files": files, "next": following}).encode()
        answers[f"/files?page={page + 1}"] = [*throttled * (page == 1), (200, {}, body)]
    for number, (name, content) in enumerate(FILES.items()):
        first = trouble[number // 6 % 3] if number % 6 == 0 else []
        answers[f"/files/{name}"] = [*first, (200, {}, content)]
    return answers


async def main() -> None:
    """Fetch everything, and fail loudly when a byte is missing."""
    with TemporaryDirectory() as name, FlakyServer(script(), latency=0.05) as api:
        async with AsyncProductionHTTPClient(base_url=api.url, retry=POLICY) as client:
            retries = await fetch_all(client, Path(name))
        got = {path.name: path.read_bytes() for path in Path(name).iterdir()}
        requests = api.requests.total()
    size = sum(map(len, got.values()))
    print(f"{len(got)} files, {size / 1e6:.1f} MB, all bytes right: {got == FILES}")
    print(f"{requests} requests, {retries + 1} of them a second or third attempt")
    assert got == FILES
    assert retries == 13, retries
    assert requests == PAGES + len(FILES) + retries + 1, requests


if __name__ == "__main__":
    asyncio.run(main())
