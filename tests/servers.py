"""Servers for the tests: scripted HTTP/1.1 over real sockets, a proxy, and a real HTTP/2 server.

Each listens on 127.0.0.1, port 0, runs in daemon threads, and is gone when its `with` block ends.
"""

import asyncio
import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx
import hypercorn.asyncio
import hypercorn.config
import trustme

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
LOOPBACK = "127.0.0.1"


# --- what arrived, and what to do about it ----------------------------------------------------


@dataclass
class Received:
    """One request as it came over the wire; `body` grows while it arrives."""

    method: str
    target: str
    headers: httpx.Headers
    connection: int  # number of the connection that carried it, from 0
    body: bytes = b""
    complete: bool = False  # the whole body was read

    @property
    def path(self) -> str:
        """The target's path, of absolute targets (proxies) too."""
        return urlsplit(self.target).path


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the server does with one request: read so much, send these bytes, and then...

    `read="nothing"` acts as soon as the connection is accepted, before any TLS handshake; an int
    is a number of body bytes. Seconds: `delay` before the first piece, `pause` between pieces.
    """

    send: Sequence[bytes] = ()
    read: Literal["nothing", "head", "body"] | int = "body"
    delay: float = 0.0
    pause: float = 0.0
    then: "Literal['keep', 'fin', 'reset', 'hang'] | Callable[[Connection], None]" = "keep"


Handler = Callable[[Received], Step]
Script = Iterable[Step | Handler] | Handler


def message(status: int, body: bytes = b"", headers: Headers = (), *, length: bool = True) -> bytes:
    """The bytes of a response; `length=False` leaves Content-Length to the caller's headers."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if length and status >= 200 and status not in (204, 304):
        pairs.append(("Content-Length", str(len(body))))
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def answer(status: int = 200, body: bytes = b"ok", headers: Headers = (), **step: Any) -> Step:
    """A complete response; the connection is kept."""
    return Step(send=(message(status, body, headers),), **step)


def redirect(location: str, status: int = 302, **step: Any) -> Step:
    """A redirect to `location`."""
    return answer(status, b"", {"Location": location}, **step)


def cut(body: bytes, sent: int, headers: Headers = (), *, then: Any = "fin", **step: Any) -> Step:
    """A 200 with the right Content-Length of which only `sent` bytes of the body arrive."""
    whole = message(200, body, headers)
    return Step(send=(whole[: len(whole) - len(body) + sent],), then=then, **step)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", headers: Headers = (), **step: Any) -> Step:
    """A chunked 200, one piece for each chunk; another `end` makes it a broken one."""
    head = message(
        200, headers=[*dict(headers).items(), ("Transfer-Encoding", "chunked")], length=False
    )
    pieces = (b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Step(send=(head, *pieces, end), **step)


def drip(data: bytes, pause: float, *, at_once: int = 0, **step: Any) -> Step:
    """`data` one byte at a time, `pause` seconds apart, after the first `at_once` bytes."""
    rest = (data[i : i + 1] for i in range(at_once, len(data)))
    return Step(send=(data[:at_once], *rest), pause=pause, **step)


def reset(**step: Any) -> Step:
    """No answer but a TCP reset."""
    return Step(then="reset", **step)


def fin(**step: Any) -> Step:
    """No answer but an orderly close."""
    return Step(then="fin", **step)


def hang(**step: Any) -> Step:
    """No answer and no close until the client goes away; unread bytes stay unread."""
    return Step(then="hang", **step)


def echo(request: Received) -> Step:
    """The request's path: whose answer it is can be seen."""
    return answer(200, request.path.encode())


# --- the scripted server ----------------------------------------------------------------------


class Connection:
    """The server's side of one connection: reads requests, plays steps."""

    def __init__(self, server: "ScriptedServer", sock: socket.socket, number: int) -> None:
        self.server, self.sock, self.number = server, sock, number
        self.buffer = b""
        self.open = True
        self.request: Received

    def more(self) -> None:
        """Take what the socket holds into the buffer; ConnectionError at its end."""
        if not (data := self.sock.recv(65536)):
            raise ConnectionError("the client went away")
        self.buffer += data

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        while len(self.buffer) < size:
            self.more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def line(self, ending: bytes = b"\r\n") -> bytes:
        """Everything up to `ending`, which is dropped."""
        while ending not in self.buffer:
            self.more()
        data, self.buffer = self.buffer.split(ending, 1)
        return data

    def read_head(self) -> Received:
        """The next request, body still to come, recorded at once."""
        first, *lines = self.line(b"\r\n\r\n").decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = [line.split(": ", 1) for line in lines]
        headers = httpx.Headers([(name, value) for name, value in pairs])
        self.request = Received(method, target, headers, self.number)
        self.server.requests.append(self.request)
        return self.request

    def read_body(self, limit: float = float("inf")) -> None:
        """Read the request's body, or its first `limit` bytes."""
        request = self.request
        if request.headers.get("transfer-encoding") == "chunked":
            while len(request.body) < limit and not request.complete:
                chunk = self.take(int(self.line(), 16) + 2)[:-2]
                request.body += chunk
                request.complete = not chunk
            return
        length = int(request.headers.get("content-length", 0))
        while len(request.body) < min(limit, length):
            request.body += self.take(min(4096, length - len(request.body)))
        request.complete = len(request.body) == length

    def play(self, step: Step) -> None:
        """Do as `step` says."""
        if step.read == "body" and not self.request.complete:
            self.read_body()
        elif isinstance(step.read, int):
            self.read_body(step.read)
        for index, piece in enumerate(step.send):
            if self.server.stopping.wait(step.pause if index else step.delay):
                return
            self.sock.sendall(piece)
        if callable(step.then):
            step.then(self)
        elif step.then != "keep":
            self.open = False
            getattr(self, step.then)()
        elif not self.request.complete:
            self.read_body()

    def reset(self) -> None:
        """Close with RST, as a crashed process's kernel or a firewall does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def fin(self) -> None:
        """Close with FIN; what the client still sends is read, or the kernel would reset."""
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv(65536):
            pass

    def hang(self) -> None:
        """Leave the connection open, unread, until the client closes or the server stops."""
        poll = select.poll()
        poll.register(self.sock, getattr(select, "POLLRDHUP", 0))
        while not poll.poll(50) and not self.server.stopping.is_set():
            pass

    def tunnel(self, host: str, port: int, first: bytes = b"") -> None:
        """Be a pipe to another server until either side closes."""
        with socket.create_connection((host, port)) as upstream:
            upstream.sendall(first + self.buffer)
            sides = {self.sock: upstream, upstream: self.sock}
            while not self.server.stopping.is_set():
                for side in select.select([*sides], [], [], 0.05)[0]:
                    if not (data := side.recv(65536)):
                        raise ConnectionError("one side closed")
                    sides[side].sendall(data)


class ScriptedServer:
    """HTTP/1.1 by script: a list of steps (then 200 "ok" for ever), or a function of the request.

    A member of the list may be such a function too; it is called when the body has been read.
    `tls` is trusted by `client_context()`; `listening=False` refuses until `listen()`. A TLS
    handshake begins `handshake_delay` seconds after the connection was accepted.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        tls: bool = False,
        listening: bool = True,
        handshake_delay: float = 0.0,
    ) -> None:
        self._handshake_delay = handshake_delay
        self._handler: Handler = script if callable(script) else lambda request: answer()
        self._script = [] if callable(script) else list(script)
        self._context = server_context() if tls else None
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []  # by number of the connection
        self._threads: list[threading.Thread] = []
        self.requests: list[Received] = []
        self.connections = 0
        self.errors: list[Exception] = []
        self.stopping = threading.Event()
        self.socket = socket.socket()
        self.socket.bind((LOOPBACK, 0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{LOOPBACK}:{self.port}"
        if listening:
            self.listen()

    def listen(self) -> None:
        """Begin to accept connections, if that did not happen yet."""
        if not self._threads:
            self.socket.listen(256)
            self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopping.set()
        end = time.monotonic() + 5
        for thread in self._threads:  # a list that the accepting thread may still add to
            while thread.is_alive() and time.monotonic() < end:
                self._shut_down()
                thread.join(0.05)
        self.socket.close()
        assert not any(thread.is_alive() for thread in self._threads), "a server thread is stuck"
        assert not self.errors, f"the server itself failed: {self.errors}"

    def _shut_down(self) -> None:
        """Wake every thread that waits on a socket."""
        for sock in [self.socket, *self._sockets]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own shutdown

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self.stopping.is_set():
                sock, _ = self.socket.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(sock)
                self.connections += 1
                self._start(self._serve, sock, self.connections - 1)

    def _serve(self, sock: socket.socket, number: int) -> None:
        connection = Connection(self, sock, number)
        try:
            if step := self._step_at_accept():
                connection.play(step)
            elif self._context:
                self.stopping.wait(self._handshake_delay)
                sock = self._context.wrap_socket(sock, True, do_handshake_on_connect=False)
                connection.sock = self._sockets[number] = sock
                sock.do_handshake()
            while connection.open and not self.stopping.is_set():
                connection.read_head()
                connection.play(self._next_step(connection))
        except OSError:  # the client went away, or spoke no TLS, or the server stops
            pass
        except Exception as exc:  # a fault of the test's own script
            self.errors.append(exc)
        finally:
            connection.sock.close()

    def _step_at_accept(self) -> Step | None:
        with self._lock:
            step = self._script[0] if self._script else None
            if isinstance(step, Step) and step.read == "nothing":
                del self._script[0]
                return step
        return None

    def _next_step(self, connection: Connection) -> Step:
        with self._lock:
            step = self._script.pop(0) if self._script else self._handler
        if not isinstance(step, Step):
            connection.read_body()
            step = step(connection.request)
        return step

    @property
    def bodies(self) -> list[bytes]:
        """The body of every request, in order of arrival."""
        return [request.body for request in self.requests]

    @property
    def methods(self) -> list[str]:
        """The method of every request, in order of arrival."""
        return [request.method for request in self.requests]

    def settle(self, seconds: float = 2.0) -> None:
        """Wait until every connection was closed by somebody, or fail."""
        end = time.monotonic() + seconds
        while any(sock.fileno() != -1 for sock in self._sockets):
            assert time.monotonic() < end, "connections are still open"
            time.sleep(0.005)


def forward(request: Received) -> Step:
    """A working proxy as a handler: CONNECT gets a tunnel, a plain request is passed on."""
    if request.method == "CONNECT":
        host, port = request.target.split(":")
        established = (b"HTTP/1.1 200 Connection established\r\n\r\n",)
        return Step(send=established, then=lambda c: c.tunnel(host, int(port)))
    url = urlsplit(request.target)
    target = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
    fields = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    head = f"{request.method} {target} HTTP/1.1\r\n{fields}\r\n".encode("latin-1")
    return Step(then=lambda c: c.tunnel(url.hostname or "", url.port or 80, head + c.request.body))


@contextlib.contextmanager
def full_backlog(host: str = LOOPBACK, port: int = 0) -> Iterator[str]:
    """The URL of a port whose accept queue is full: connecting hangs."""
    with contextlib.ExitStack() as stack:
        listener = fill_backlog(stack, host, port)
        yield f"http://{host}:{listener.getsockname()[1]}"


def fill_backlog(stack: contextlib.ExitStack, host: str, port: int) -> socket.socket:
    """A listener whose accept queue is full, until somebody accepts."""
    listener = stack.enter_context(socket.socket())
    listener.bind((host, port))
    listener.listen(0)
    for _ in range(8):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    return listener


@contextlib.contextmanager
def resolving(
    monkeypatch: Any, host: str, addresses: Sequence[str], delay: float = 0.0
) -> Iterator[list[str]]:
    """The name `host` has these IPv4 addresses, in this order, and takes `delay` s to look up.

    What it gives is the list of the names that were looked up.
    """
    original, asked = socket.getaddrinfo, []

    def getaddrinfo(name: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        text = name.decode() if isinstance(name, bytes) else name
        flags = kwargs.get("flags", args[3] if len(args) > 3 else 0)
        if text != host or flags & socket.AI_NUMERICHOST:  # trio asks that first, in its loop
            return original(name, port, *args, **kwargs)
        asked.append(text)
        time.sleep(delay)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (address, int(port))) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    monkeypatch.setattr(socket, "getaddrinfo", original)


@contextlib.contextmanager
def refused_port() -> Iterator[str]:
    """The URL of a port where nobody listens, and nobody else can begin to."""
    with ScriptedServer(listening=False) as server:
        yield server.url


# --- TLS and HTTP/2 ---------------------------------------------------------------------------


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


@cache
def server_context(*protocols: str) -> ssl.SSLContext:
    """A server's context for 127.0.0.1 and localhost, which offers these ALPN protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority().issue_cert(LOOPBACK, "localhost").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def write_ca(path: Path) -> Path:
    """Write the certificate of the servers' authority, for other processes, to this file."""
    _authority().cert_pem.write_to_path(str(path))
    return path


def client_context() -> ssl.SSLContext:
    """A client's context that trusts the servers here, to be given as `verify=`."""
    context = ssl.create_default_context()
    _authority().configure_trust(context)
    return context


@dataclass
class Http2Server:
    """hypercorn with HTTP/2 over TLS, on its own event loop in a thread.

    `/status/503/503/200` gives the n-th request for it the n-th status, then the last one for
    ever; `/delay/0.2` answers late; `/echo` returns the body. Any other answer is its own target.
    """

    requests: list[Received] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._visits: Counter[str] = Counter()
        with socket.create_server((LOOPBACK, 0), backlog=256) as listener:
            self.url = f"https://{LOOPBACK}:{listener.getsockname()[1]}"
            self._fd = listener.detach()  # hypercorn closes it
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait(5)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        assert not self._thread.is_alive(), "hypercorn is stuck"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = hypercorn.config.Config()
        config.bind = [f"fd://{self._fd}"]
        config.errorlog = None
        config.graceful_timeout = 0.1
        config.create_ssl_context = lambda: server_context("h2", "http/1.1")  # type: ignore[method-assign]
        config.certfile = config.keyfile = "given by create_ssl_context"
        self._ready.set()
        await hypercorn.asyncio.serve(self._app, config, shutdown_trigger=self._stop.wait)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        target = "?".join(filter(None, (scope["path"], scope["query_string"].decode())))
        headers = httpx.Headers(scope["headers"])
        request = Received(scope["method"], target, headers, scope["client"][1])
        self.requests.append(request)
        while not request.complete:
            if (event := await receive())["type"] == "http.disconnect":
                return
            request.body += event.get("body", b"")
            request.complete = not event.get("more_body", False)
        status, body = await self._answer(request)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, request: Received) -> tuple[int, bytes]:
        match request.path.strip("/").split("/"):
            case ["status", *statuses]:
                self._visits[request.target] += 1
                visit = min(self._visits[request.target], len(statuses))
                return int(statuses[visit - 1]), request.target.encode()
            case ["delay", seconds]:
                await asyncio.sleep(float(seconds))
            case ["echo"]:
                return 200, request.body
        return 200, request.target.encode()
