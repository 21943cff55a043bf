"""The local server that the examples talk to; it misbehaves as told. Standard library only."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, NamedTuple, Self

DROP: Final = 0  # instead of a status: close the connection without an answer

#: A status, a status with headers, or both with a body.
Answer = int | tuple[int, dict[str, str]] | tuple[int, dict[str, str], bytes]


class Received(NamedTuple):
    """A request as it arrived, whatever was answered."""

    method: str
    path: str
    headers: Message
    body: bytes


class LoopbackServer(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 until its `with` block ends."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        # A proxy of yours has no part in this.
        os.environ["no_proxy"] = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1")))
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Listen without looking up the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]


class FlakyServer(LoopbackServer):
    """Answers as scripted.

    A script has a list of answers for each path: the first request to it gets the first answer,
    and so on; the last one is repeated. Other paths get a 404.

        with FlakyServer({"/things": [503, 503, 200]}) as server:
            httpx.get(server.url + "/things")  # 503

    `requests` counts what arrived, as ("GET", "/things"), and `received` has it in order;
    `connections` counts how many were opened.
    """

    def __init__(self, script: Mapping[str, Sequence[Answer]], *, latency: float = 0.0) -> None:
        super().__init__(_Handler)
        self.script, self.latency = script, latency  # latency: seconds before each answer
        self.requests: Counter[tuple[str, str]] = Counter()
        self.received: list[Received] = []
        self.connections = 0
        self._lock = threading.Lock()

    def connected(self) -> None:
        """Count a connection."""
        with self._lock:
            self.connections += 1

    def answer(self, request: Received) -> tuple[int, dict[str, str], bytes]:
        """Count a request and return what to answer."""
        method, path = request.method, request.path
        with self._lock:
            answers = self.script.get(path, [404])
            number = sum(n for (_, known), n in self.requests.items() if known == path)
            self.requests[method, path] += 1
            self.received.append(request)
        time.sleep(self.latency)
        answer = answers[min(number, len(answers) - 1)]
        status, headers, *rest = answer if isinstance(answer, tuple) else (answer, {})
        body = rest[0] if rest else json.dumps({"path": path, "status": status}).encode()
        return status, headers, body


class _Handler(BaseHTTPRequestHandler):
    server: FlakyServer
    protocol_version = "HTTP/1.1"  # connections stay open
    wbufsize = -1  # head and body leave in one piece

    def setup(self) -> None:
        super().setup()
        self.server.connected()

    def respond(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Received(self.command, self.path, self.headers, sent)
        status, headers, body = self.server.answer(request)
        if status == DROP:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = respond

    def log_message(self, *args: Any) -> None:
        """Keep quiet: the examples print what matters."""
