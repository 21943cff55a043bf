"""The application behind the real servers, in a process of its own: it answers, and counts.

`python application.py FD` serves HTTP/1.1 on the listening socket FD until its stdin ends.

- `/seen`: the paths of all POSTs so far, and how often each arrived here.
- `/size/N`: N bytes.
- `/busy/...`: 429 with Retry-After the first time, then like any other.
- whatever else: the path itself, and what came as the body: its size and SHA-256. With `?delay=S`
  after S seconds.
- a websocket echoes.
"""

import asyncio
import hashlib
import json
import os
import socket
import sys
from collections import Counter
from typing import Any
from urllib.parse import parse_qs

import hypercorn.asyncio
import hypercorn.config

PIECE = 256 * 1024  # bytes of a large body at a time
arrived: Counter[str] = Counter()  # POSTs by path
visited: set[str] = set()


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await respond(scope, receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["type"] == "lifespan":
        while (event := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{event}.complete"})
        await send({"type": "lifespan.shutdown.complete"})


async def respond(scope: Any, receive: Any, send: Any) -> None:
    path, query = scope["path"], parse_qs(scope["query_string"].decode())
    if scope["method"] == "POST":
        arrived[path] += 1
    digest, size, more = hashlib.sha256(), 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = event.get("body", b""), event.get("more_body", False)
        digest.update(body)
        size += len(body)
    await asyncio.sleep(float(query.get("delay", ["0"])[0]))
    status, headers, body = 200, [], json.dumps([path, size, digest.hexdigest()]).encode()
    if path == "/seen":
        body = json.dumps(arrived).encode()
    elif path.startswith("/size/"):
        body = bytes(int(path.rpartition("/")[2]))
    elif path.startswith("/busy/") and path not in visited:
        visited.add(path)
        status, headers = 429, [(b"retry-after", b"7")]
    length = b"%d" % len(body)
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [(b"content-length", length), *headers]})
    for begin in range(0, len(body), PIECE):
        piece = body[begin : begin + PIECE]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def echo(receive: Any, send: Any) -> None:
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "text": event["text"]})


async def main(fd: int) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{fd}"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    # Larger than any test's head: a server between here and the client decides what is too large.
    config.h11_max_incomplete_size = 1024 * 1024
    config.keep_alive_timeout = 30

    async def parent_is_gone() -> None:
        await asyncio.to_thread(sys.stdin.buffer.read)
        os._exit(0)

    task = asyncio.create_task(parent_is_gone())
    socket.socket(fileno=os.dup(fd)).listen(1024)
    await hypercorn.asyncio.serve(application, config)  # type: ignore[arg-type]
    await task


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
