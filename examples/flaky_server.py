"""The local server that the examples talk to; it misbehaves as told. Standard library only."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, Self

DROP: Final = 0  # instead of a status: close the connection without an answer

#: A status, or a status with headers.
Answer = int | tuple[int, dict[str, str]]


class FlakyServer:
    """Answers on 127.0.0.1 as scripted, until its `with` block ends.

    A script has a list of answers for each path: the first request to it gets the first answer,
    and so on; the last one is repeated. Other paths get a 404.

        with FlakyServer({"/things": [503, 503, 200]}) as server:
            httpx.get(server.url + "/things")  # 503

    `requests` counts what arrived, as ("GET", "/things"); `connections` how many were opened.
    """

    def __init__(self, script: Mapping[str, Sequence[Answer]], *, latency: float = 0.0) -> None:
        self.script, self.latency = script, latency  # latency: seconds before each answer
        self.requests: Counter[tuple[str, str]] = Counter()
        self.connections = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.flaky = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        # A proxy of yours has no part in this.
        os.environ["no_proxy"] = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1")))
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def connected(self) -> None:
        """Count a connection."""
        with self._lock:
            self.connections += 1

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str]]:
        """Count a request and return what to answer."""
        with self._lock:
            answers = self.script.get(path, [404])
            number = sum(n for (_, known), n in self.requests.items() if known == path)
            self.requests[method, path] += 1
        time.sleep(self.latency)
        answer = answers[min(number, len(answers) - 1)]
        return answer if isinstance(answer, tuple) else (answer, {})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    flaky: FlakyServer

    def server_bind(self) -> None:
        """Listen without looking up the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # connections stay open
    wbufsize = -1  # head and body leave in one piece

    def setup(self) -> None:
        super().setup()
        self.server.flaky.connected()

    def respond(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers = self.server.flaky.answer(self.command, self.path)
        if status == DROP:
            self.close_connection = True
            return
        body = json.dumps({"path": self.path, "status": status}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = respond

    def log_message(self, *args: Any) -> None:
        """Keep quiet: the examples print what matters."""
