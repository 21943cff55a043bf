"""Instructions per request, counted by valgrind: the same on a busy machine as on a quiet one.

`run.py --instructions` prints the rows. Run as a script it is what valgrind looks at:
`instructions.py <contender> <sync|asyncio> <mock, mock within 60 s, or a URL> <requests>`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

from contenders import (
    ALL,
    HTTPX,
    HTTPX_RETRIES,
    OWN,
    STAMINA,
    TENACITY,
    Contender,
    Send,
    Setup,
    mock,
)
from loopback import Loopback

FEW, MANY = 20, 1020  # over 200, the ratio of the same code varied by 0.2 %
TIMED = "mock within 60 s"
AUTHORITY = "LOOPBACK_AUTHORITY"  # the variable with the certificate of who signs the server's
LAYERS = [HTTPX, HTTPX_RETRIES, STAMINA, TENACITY, OWN]


def rows() -> Iterator[tuple[str, Mapping[str, str]]]:
    """httpx's count, and the ratios of the others to it."""
    for flavour in ("sync", "asyncio"):
        yield f"instructions, a GET by MockTransport, {flavour}", row(LAYERS, flavour, "mock")
        yield "the same within a total timeout", row([HTTPX, OWN], flavour, TIMED)
    with Loopback() as server, Loopback(tls=True) as tls:
        os.environ[AUTHORITY] = tls.authority
        for flavour in ("sync", "asyncio"):
            for label, url in (("kept connection", server.url), ("HTTP/2 connection", tls.url)):
                label = f"instructions, a GET over a {label}, {flavour}"
                yield label, row([HTTPX, OWN], flavour, url)


def row(contenders: Sequence[Contender], flavour: str, url: str) -> Mapping[str, str]:
    names = [one.name for one in contenders]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        measured = executor.map(partial(per_request, flavour=flavour, url=url), names)
    counts = dict(zip(names, measured, strict=True))
    ratios = {name: f"{count / counts[HTTPX.name]:.3f}" for name, count in counts.items()}
    return ratios | {HTTPX.name: f"{counts[HTTPX.name]:,.0f}"}


def per_request(name: str, *, flavour: str, url: str) -> float:
    """What MANY requests take over FEW: the start of the interpreter is no part of it."""
    few, many = (counted(name, flavour, url, requests) for requests in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def counted(*arguments: object) -> int:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    found = re.search(r"I +refs: +([\d,]+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(done.stderr)
    return int(found[1].replace(",", ""))


def work(name: str, flavour: str, url: str, requests: int) -> None:
    """The requests that are counted."""
    contender = next(one for one in ALL if one.name == name)
    setup, url = setup_for(url)
    if flavour == "asyncio":
        assert contender.aopen
        asyncio.run(async_work(contender.aopen(setup), url, requests))
        return
    with contender.open(setup) as send:
        send("GET", url)
        forget()
        for _ in range(requests):
            send("GET", url)


def setup_for(url: str) -> tuple[Setup, str]:
    if url.startswith("mock"):
        return replace(mock(), total=60 if url == TIMED else None), "http://x/"
    if url.startswith("http:"):
        return Setup(timeout=60), url
    context = ssl.create_default_context(cadata=os.environ[AUTHORITY])
    return Setup(timeout=60, http2=True, verify=context), url


async def async_work(opening: AbstractAsyncContextManager[Send], url: str, requests: int) -> None:
    async with opening as send:
        await send("GET", url)
        forget()
        for _ in range(requests):
            await send("GET", url)


def forget() -> None:
    """Or a collection of all that was imported would fall into this count and not into that."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _, name, flavour, url, requests = sys.argv
    work(name, flavour, url, int(requests))
