"""What the clients do when things go wrong, each cell found by doing it, as one markdown table.

    uv run --isolated --group comparison tests/benchmarks/compare.py

Scripted servers on 127.0.0.1, the clients as `contenders.py` sets them up. Waits between attempts
of the sync clients are written down, not waited for. Under two minutes.
"""

from __future__ import annotations

import email.utils
import faulthandler
import gzip
import logging
import math
import random
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import httpx
from contenders import ALL, HTTPX_RETRIES, Contender, Send, Setup, httpx_retries_helper
from loopback import Loopback

sys.path.append(str(Path(__file__).parent.parent))
import servers
from h2_peer import H2Peer, Peer
from servers import Http2Server, ScriptedServer, Step, answer, cut, drip, fin, message

# --- asking -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How a call ended, and what it took."""

    response: httpx.Response | None = None
    error: Exception | None = None
    waits: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return str(self.response.status_code) if self.response else type(self.error).__name__

    def take(self, error: Exception) -> None:
        """A decorator's HTTPStatusError is the response."""
        self.error = error
        self.response = getattr(error, "response", None)


@contextmanager
def outcome() -> Iterator[Outcome]:
    """Take note of waits instead of waiting, and of what is raised."""
    seen = Outcome()
    started = time.monotonic()
    noted = seen.waits.append
    try:
        with patch("time.sleep", noted), patch("httpx_production.client.sleep", noted):
            yield seen
    except Exception as exc:
        seen.take(exc)
    finally:
        seen.seconds = time.monotonic() - started


def ask(
    contender: Contender, method: str, url: str, setup: Setup | None = None, **options: Any
) -> Outcome:
    """One call of a sync client."""
    with outcome() as seen, contender.open(setup or Setup()) as send:
        seen.response = send(method, url, **options)
    return seen


def tries(number: int) -> str:
    return "1 attempt" if number == 1 else f"{number} attempts"


def unavailable_twice(contender: Contender) -> str:
    with ScriptedServer([answer(503)] * 2) as server:
        seen = ask(contender, "GET", server.url)
        return f"{seen}, {tries(len(server.requests))}"


# --- writes -------------------------------------------------------------------------------------


def post_dropped(contender: Contender) -> str:
    with ScriptedServer([fin()] * 9) as server:
        seen = ask(contender, "POST", server.url, content=b"order")
        times = len(server.requests)
        return f"sent {'once' if times == 1 else f'{times} times'}, then {seen}"


def post_refused(contender: Contender) -> str:
    connects = 0
    connect = socket.socket.connect

    def counting(sock: socket.socket, address: Any) -> None:
        nonlocal connects
        connects += 1
        connect(sock, address)

    with servers.refused_port() as url, patch("socket.socket.connect", counting):
        seen = ask(contender, "POST", url, content=b"order")
    return f"{tries(connects)}, then {seen}"


def uploads(server: ScriptedServer, seen: Outcome) -> str:
    """What each attempt brought; bold where an upload that is not whole passes for done."""
    server.settle()  # or the last attempt may not have been noted yet
    text = f"{' then '.join(f'{len(body):,}' for body in server.bodies)} bytes: {seen}"
    done = seen.response is not None and seen.response.is_success
    return f"**{text}**" if done and server.bodies[-1] != server.bodies[0] else text


def upload_file(contender: Contender) -> str:
    with tempfile.TemporaryFile() as file, ScriptedServer([answer(503)]) as server:
        file.write(random.Random(1).randbytes(100_000))
        file.seek(0)
        return uploads(server, ask(contender, "PUT", server.url, content=file))


def upload_iterator(contender: Contender) -> str:
    with ScriptedServer([answer(503)]) as server:
        parts = map(bytes, [1000] * 5)
        return uploads(server, ask(contender, "PUT", server.url, content=parts))


# --- bodies -------------------------------------------------------------------------------------


def completeness(seen: Outcome, whole: bytes, server: ScriptedServer) -> str:
    if seen.response is None:
        return f"{seen}, {tries(len(server.requests))}"
    if seen.response.content != whole:
        return f"**{len(seen.response.content):,} of {len(whole):,} bytes, as if complete**"
    return f"complete, {tries(len(server.requests))}"


def body_cut(contender: Contender) -> str:
    whole = b"x" * 1000

    def text(one: Contender) -> str:
        with ScriptedServer([cut(whole, 500), answer(200, whole)]) as server:
            return completeness(ask(one, "GET", server.url), whole, server)

    if contender is HTTPX_RETRIES:
        helper = Contender("retry_request()", httpx_retries_helper)
        return f"{text(contender)}; by `{helper.name}`: {text(helper)}"
    return text(contender)


def gzip_cut(contender: Contender) -> str:
    whole = " ".join(map(str, range(5000))).encode()
    packed = gzip.compress(whole)
    headers = {"Content-Encoding": "gzip"}
    script = [answer(200, packed[: len(packed) // 2], headers), answer(200, packed, headers)]
    with ScriptedServer(script) as server:
        return completeness(ask(contender, "GET", server.url), whole, server)


def bytes_after_a_response(contender: Contender) -> str:
    more = message(200, b"right") + message(200, b"a stranger's")
    with (
        ScriptedServer([Step(send=(more,)), answer(200, b"right")]) as server,
        outcome() as seen,
        contender.open(Setup()) as send,
    ):
        send("GET", server.url)
        seen.response = send("GET", server.url)
    if seen.response is None:
        return str(seen)
    right = seen.response.content == b"right"
    return "the next answer is right" if right else "**the next answer is a stranger's**"


# --- waits and limits ---------------------------------------------------------------------------

AHEAD = 60  # seconds
FORMATS = {
    "IMF": "%a, %d %b %Y %H:%M:%S GMT",
    "RFC 850": "%A, %d-%b-%y %H:%M:%S GMT",
    "asctime": "%a %b %d %H:%M:%S %Y",
}


def retry_after_dates(contender: Contender) -> str:
    heeded: list[str] = []
    for name, form in FORMATS.items():
        date = time.strftime(form, time.gmtime(time.time() + AHEAD))
        headers = {"Retry-After": date, "Date": email.utils.formatdate(usegmt=True)}
        with ScriptedServer([answer(503, b"", headers)]) as server:
            seen = ask(contender, "GET", server.url)
        if not seen.waits:
            return "not retried"
        heeded += [name] if AHEAD - 3 <= math.ceil(seen.waits[0]) <= AHEAD else []
    return f"waits for {', '.join(heeded)}" if heeded else "ignored"


def retry_after_huge(contender: Contender) -> str:
    with ScriptedServer([answer(503, b"", {"Retry-After": "86400"})] * 9) as server:
        seen = ask(contender, "GET", server.url)
    if not sum(seen.waits):
        return f"{seen} at once"
    waits = f"{len(seen.waits)} waits, {sum(seen.waits):,.0f} s"
    return f"{waits}, then {seen}"


def dripping_body(contender: Contender) -> str:
    body = drip(message(200, b"x" * 12), 0.25, at_once=len(message(200, b"x" * 12)) - 12)
    with ScriptedServer([body] * 9) as server:
        seen = ask(contender, "GET", server.url, Setup(timeout=1.0, total=1.0))
    return f"{seen.seconds:.1f} s, then {seen}"


def untrusted_certificate(contender: Contender) -> str:
    with ScriptedServer(tls=True) as server:
        seen = ask(contender, "GET", server.url)
        return f"{tries(server.connections)}, {sum(seen.waits):.0f} s of waits"


# --- async --------------------------------------------------------------------------------------


@asynccontextmanager
async def aopened(contender: Contender, setup: Setup) -> AsyncIterator[Send]:
    assert contender.aopen
    async with contender.aopen(setup) as send:
        yield send


def on_trio(contender: Contender) -> str:
    async def main(url: str) -> str:
        seen = Outcome()
        try:
            async with aopened(contender, Setup()) as send:
                seen.response = await send("GET", url)
        except Exception as exc:
            seen.take(exc)
        return str(seen)

    with ScriptedServer([answer(503)]) as server:
        text = anyio.run(main, server.url, backend="trio")
        return f"{text}, {tries(len(server.requests))}"


def lost_slots(contender: Contender) -> str:
    limits = httpx.Limits(max_connections=10, max_keepalive_connections=10)

    async def main() -> str:
        with Loopback() as server:
            async with aopened(contender, Setup(limits=limits)) as send:
                await storm(send, f"{server.url}5", 1.0)
                await anyio.sleep(0.2)
                server.counts()
                await ten_at_once(send, f"{server.url}300")
                return f"{10 - server.counts()['most']} of 10"

    return anyio.run(main)


async def storm(send: Send, url: str, seconds: float) -> None:
    """60 callers whose requests are cancelled after a random time."""
    end = time.monotonic() + seconds

    async def caller(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end:
            with anyio.move_on_after(chance.uniform(0, 0.03)), suppress(Exception):
                await send("GET", url)

    async with anyio.create_task_group() as tasks:
        for seed in range(60):
            tasks.start_soon(caller, seed)


async def ten_at_once(send: Send, url: str) -> None:
    async def call() -> None:
        with anyio.move_on_after(1), suppress(Exception):
            await send("GET", url)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(call)


def http2_neighbour(contender: Contender) -> str:
    setup = Setup(http2=True, verify=servers.client_context())

    async def main(url: str) -> str:
        neighbour = Outcome()
        async with aopened(contender, setup) as send, anyio.create_task_group() as tasks:
            await send("GET", url)  # now there is a connection to be shared
            tasks.start_soon(impatient, send, f"{url}/delay/3")
            await anyio.sleep(0.1)  # it is first to wait for the connection's next frame
            try:
                neighbour.response = await send("GET", f"{url}/delay/1")
            except Exception as exc:
                neighbour.take(exc)
            tasks.cancel_scope.cancel()
        return str(neighbour)

    with Http2Server() as server:
        text = anyio.run(main, server.url)
        asked = [one for one in server.requests if one.path == "/delay/1"]
        return f"{text}, {tries(len(asked))}"


async def impatient(send: Send, url: str) -> None:
    with suppress(Exception):
        await send("GET", url, timeout=0.3)


def http2_retired(contender: Contender) -> str:
    setup = Setup(http2=True, verify=servers.client_context())
    answered = 0

    def retiring(peer: Peer) -> None:
        peer.echo(peer.request())
        streams = [peer.request(), peer.request()]
        peer.goaway(streams[-1])
        time.sleep(0.2)
        for stream in streams:
            peer.echo(stream)
        peer.rest()

    def refusing(peer: Peer) -> None:
        peer.rest()  # so that an answer can only be the first connection's

    async def post(send: Send, url: str) -> None:
        nonlocal answered
        with suppress(Exception):
            await send("POST", url, timeout=3.0)
            answered += 1

    async def main(url: str) -> None:
        async with aopened(contender, setup) as send:
            await send("GET", url)  # now there is a connection to be shared
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(post, send, url)

    with H2Peer(retiring, refusing) as server:
        anyio.run(main, server.url)
    return f"{answered} of 2"


# --- the table ----------------------------------------------------------------------------------

Scenario = Callable[[Contender], str]
SYNC: dict[str, Scenario] = {
    "GET, answered 503 twice": unavailable_twice,
    "POST, the connection is dropped before an answer": post_dropped,
    "POST, the connection is refused (nothing was sent)": post_refused,
    "PUT of a file of 100,000 bytes, answered 503 once: what arrives": upload_file,
    "PUT of an iterator of 5,000 bytes, answered 503 once: what arrives": upload_iterator,
    "GET, the body breaks off once": body_cut,
    "GET, a gzip body ends early once, its length being right": gzip_cut,
    "bytes after a response": bytes_after_a_response,
    "503 with Retry-After as a date in 60 s (IMF, RFC 850, asctime)": retry_after_dates,
    "503 with Retry-After: 86400": retry_after_huge,
    "a limit of 1 s, a body that drips for 3 s": dripping_body,
    "a certificate that doesn't verify": untrusted_certificate,
}
ASYNC: dict[str, Scenario] = {
    "trio, answered 503 once": on_trio,
    "a pool of 10 after 1 s of cancelled requests: connections lost for good": lost_slots,
    "HTTP/2, GET of 1 s beside one that times out": http2_neighbour,
    "HTTP/2, two POSTs on a connection that the server retires after them: answered": http2_retired,
}


def cell(scenario: Scenario, contender: Contender) -> str:
    if scenario in ASYNC.values() and contender.aopen is None:
        return "no async"
    try:
        return scenario(contender)
    except Exception as exc:
        return f"failed: {exc!r}"


NOTE = """
Bold: wrong, and nobody is told. A decorator knows no methods: who puts it around a POST asks for
five, and gets the refused one repeated, for which httpx-production needs `retry_unsent=True`. A
decorated function that opens its file itself uploads it whole each time. stamina and tenacity can
be taught Retry-After by a callback, and retry whatever else a function does."""


def main() -> None:
    warnings.simplefilter("ignore")  # connections that others leave open
    logging.disable()
    faulthandler.dump_traceback_later(240, exit=True)
    print(f"| | {' | '.join(one.name for one in ALL)} |\n|{'---|' * (len(ALL) + 1)}")
    for label, scenario in (SYNC | ASYNC).items():
        print(f"| {label} | {' | '.join(cell(scenario, one) for one in ALL)} |", flush=True)
    print(NOTE)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
