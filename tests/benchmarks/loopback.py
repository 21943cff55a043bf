"""A raw HTTP server in a process of its own, so that a client's CPU time is the client's alone.

Run as a script by `Loopback`: it listens on so many ports of 127.0.0.1, prints them, tells its
counts for each line on stdin, and ends with stdin. `/<milliseconds>?<bytes>` is answered that late,
with a body of that size; both may be left out. A request's body is thrown away. Over TLS it offers
HTTP/2 and HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import h2.config
import h2.connection
import h2.events

OK = 2  # bytes of an answer, unless another number is asked for
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"  # no body here has it within


class Loopback:
    """The server as its user sees it: URLs, and what was counted since it was asked last."""

    def __init__(self, ports: int = 1, *, tls: bool = False) -> None:
        self._tls = tls
        self._command = [sys.executable, __file__, str(ports), *(["tls"] if tls else [])]

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        scheme = "https" if self._tls else "http"
        started = self._read()
        self.urls = [f"{scheme}://127.0.0.1:{port}/" for port in started["ports"]]
        self.url, self.authority = self.urls[0], started["authority"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate(timeout=10)  # closes its stdin

    def _read(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def trust(self) -> ssl.SSLContext:
        """Return a context for a client of a server over TLS: one each, for it sets ALPN there."""
        return ssl.create_default_context(cadata=self.authority)

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

    def answer(self, path: bytes, respond: Callable[[int], None]) -> None:
        """Call `respond` with the size of the answer, when it is due."""
        delay, _, size = path.strip(b"/").partition(b"?")
        self.active += 1
        self.most = max(self.most, self.active)

        def now() -> None:
            self.active -= 1
            respond(int(size or OK))

        if int(delay or 0):
            self.loop.call_later(int(delay) / 1000, now)
        else:
            now()


class Connection(asyncio.Protocol):
    """One connection, over HTTP/1.1 unless TLS has come to HTTP/2."""

    def __init__(self, server: Server) -> None:
        self.server, self.buffer = server, b""
        self.path: bytes | None = None  # of the request whose body is being read
        self.left: int | None = 0  # bytes of that body, None where they come in chunks

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self.server.opened += 1
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            transport.set_protocol(HTTP2(self))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.has_head() and self.has_body():
            path, self.path = self.path or b"", None
            self.server.answer(path, self.respond)

    def has_head(self) -> bool:
        if self.path is None and b"\r\n\r\n" in self.buffer:
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            self.path = head.split(b" ", 2)[1]
            _, _, length = head.lower().partition(b"\r\ncontent-length: ")
            chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
            self.left = None if chunked else int(length.split(b"\r\n")[0] or 0)
        return self.path is not None

    def has_body(self) -> bool:
        if self.left is None:
            is_whole = self.buffer.endswith(LAST_CHUNK)
            self.buffer = b"" if is_whole else self.buffer[-len(LAST_CHUNK) :]
            return is_whole
        taken = min(self.left, len(self.buffer))
        self.left, self.buffer = self.left - taken, self.buffer[taken:]
        return not self.left

    def respond(self, size: int) -> None:
        if not self.transport.is_closing():
            self.transport.write(HEAD % size + bytes(size))


class HTTP2(asyncio.Protocol):
    """The same over HTTP/2."""

    def __init__(self, connection: Connection) -> None:
        self.server, self.transport = connection.server, connection.transport
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.state = h2.connection.H2Connection(config)
        self.paths: dict[int, bytes] = {}
        self.left: dict[int, int] = {}  # bytes of answers that the client's windows hold back
        self.state.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.paths[event.stream_id] = dict(event.headers)[b":path"]
            elif isinstance(event, h2.events.DataReceived):
                size = event.flow_controlled_length
                self.state.acknowledge_received_data(size, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                path = self.paths.pop(event.stream_id)
                self.server.answer(path, partial(self.respond, event.stream_id))
            elif isinstance(event, h2.events.WindowUpdated):
                for stream in list(self.left):
                    self.send(stream)
        self.flush()

    def respond(self, stream: int, size: int) -> None:
        self.state.send_headers(stream, [(":status", "200"), ("content-length", str(size))])
        self.left[stream] = size
        self.send(stream)
        self.flush()

    def send(self, stream: int) -> None:
        frame = self.state.max_outbound_frame_size
        while size := min(self.left[stream], frame, self.state.local_flow_control_window(stream)):
            self.left[stream] -= size
            self.state.send_data(stream, bytes(size), end_stream=not self.left[stream])
        if not self.left[stream]:
            del self.left[stream]

    def flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.state.data_to_send())


def encryption() -> tuple[ssl.SSLContext, str]:
    """The server's context, and the certificate of its authority."""
    import trustme  # here: who measures imports this file too

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, authority.cert_pem.bytes().decode()


async def serve(ports: int, *, tls: bool) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    server = Server(loop)
    context, authority = encryption() if tls else (None, "")
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(ports)]
    for listener in listeners:
        await loop.create_server(lambda: Connection(server), sock=listener, ssl=context)
    numbers = [listener.getsockname()[1] for listener in listeners]
    print(json.dumps({"ports": numbers, "authority": authority}), flush=True)
    loop.add_reader(sys.stdin, server.command)
    await server.stopped


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), tls="tls" in sys.argv))
