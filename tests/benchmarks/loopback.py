"""A raw HTTP/1.1 server in a process of its own, so that a client's CPU time is the client's alone.

Run as a script by `Loopback`: it listens on so many ports of 127.0.0.1, prints them, answers
`GET /<milliseconds>` that late, tells its counts for each line on stdin, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from typing import Any, Self

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Loopback:
    """The server as its user sees it: URLs, and what was counted since it was asked last."""

    def __init__(self, ports: int = 1) -> None:
        self._command = [sys.executable, __file__, str(ports)]

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        self.urls = [f"http://127.0.0.1:{port}/" for port in self._read()]
        self.url = self.urls[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate(timeout=10)  # closes its stdin

    def _read(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def counts(self) -> dict[str, int]:
        """Connections opened, and the most requests at a time, since the last call."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        counts: dict[str, int] = self._read()
        return counts


class Server:
    """What all connections share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.stopped = loop, loop.create_future()
        self.opened = self.active = self.most = 0

    def command(self) -> None:
        """Tell and forget the counts; stop at the end of stdin."""
        if not os.read(sys.stdin.fileno(), 1):
            self.loop.remove_reader(sys.stdin)
            self.stopped.set_result(None)
            return
        print(json.dumps({"opened": self.opened, "most": self.most}), flush=True)
        self.opened, self.most = 0, self.active


class Connection(asyncio.Protocol):
    """One connection; requests have no bodies."""

    def __init__(self, server: Server) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self.server.opened += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            self.server.active += 1
            self.server.most = max(self.server.most, self.server.active)
            delay = int(head.split(b" ", 2)[1].strip(b"/") or 0)
            if delay:
                self.server.loop.call_later(delay / 1000, self.answer)
            else:
                self.answer()

    def answer(self) -> None:
        self.server.active -= 1
        if not self.transport.is_closing():
            self.transport.write(ANSWER)


async def serve(ports: int) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    server = Server(loop)
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(ports)]
    for listener in listeners:
        await loop.create_server(lambda: Connection(server), sock=listener)
    print(json.dumps([listener.getsockname()[1] for listener in listeners]), flush=True)
    loop.add_reader(sys.stdin, server.command)
    await server.stopped


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
