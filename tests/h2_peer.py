"""An HTTP/2 server that does what a script says, frame by frame, valid or not.

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.answer(stream, b"hello")

Each connection is served by its own script, in a thread; it closes when the script returns.
"""

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Self

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from servers import LOOPBACK, server_context

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113 section 7.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL = 0, 1, 2, 7, 8
ENHANCE_YOUR_CALM = 11


class Gone(Exception):
    """The client closed the connection."""


class Peer:
    """One connection as the script sees it."""

    def __init__(self, sock: socket.socket, number: int, server: "H2Peer") -> None:
        self.number = number
        self.received: list[Any] = []  # frames, in order
        self.bodies: dict[int, bytes] = {}
        self.paths: dict[int, str] = {}
        self.methods: dict[int, str] = {}
        self.sent: Counter[int] = Counter()  # bytes of DATA by `push`; 0 is the connection
        self.granted: Counter[int] = Counter()  # by WINDOW_UPDATE
        self._initial_window = 65535  # of a stream, as the client's SETTINGS say
        self._requests: list[int] = []
        self._server = server
        self._sock = sock
        self._buffer = b""
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()

    # --- reading ---

    def _fill(self, size: int) -> None:
        """Read until so many bytes are there; a TimeoutError on the way loses nothing."""
        while len(self._buffer) < size:
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                data = b""
            if not data:
                raise Gone
            self._buffer += data

    def _take(self, size: int) -> bytes:
        self._fill(size)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def read(self, limit: float = 10.0) -> Any:
        """The next frame, within `limit` seconds; SETTINGS and PING are answered."""
        self._sock.settimeout(limit)
        self._fill(9)
        frame, length = Frame.parse_frame_header(memoryview(self._buffer[:9]))
        self._fill(9 + length)
        frame.parse_body(memoryview(self._take(9 + length)[9:]))
        self.received.append(frame)
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self._initial_window = self.announced("INITIAL_WINDOW_SIZE", 65535)
            self.send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, HeadersFrame):
            raw: Any = self._decoder.decode(frame.data, raw=True)
            fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
            self.paths[frame.stream_id] = fields[":path"]
            self.methods[frame.stream_id] = fields[":method"]
            self.bodies[frame.stream_id] = b""
            self._requests.append(frame.stream_id)
            self._server.requests.append((fields[":method"], fields[":path"]))
        elif isinstance(frame, WindowUpdateFrame):
            self.granted[frame.stream_id] += frame.window_increment
        elif isinstance(frame, DataFrame):
            self.bodies[frame.stream_id] += frame.data
        return frame

    def request(self, limit: float = 10.0) -> int:
        """The stream of the next request, when its headers are here."""
        while not self._requests:
            self.read(limit)
        return self._requests.pop(0)

    def until(self, kind: type, stream: int | None = None) -> Any:
        """The next frame of a kind (of a stream); the others are read over."""
        while True:
            frame = self.read()
            if isinstance(frame, kind) and stream in (None, frame.stream_id):
                return frame

    def body(self, stream: int) -> bytes:
        """The whole body of a request; the windows are opened as it comes."""
        ended = any("END_STREAM" in f.flags for f in self.received if f.stream_id == stream)
        while not ended:
            frame = self.read()
            ended = frame.stream_id == stream and "END_STREAM" in frame.flags
            if isinstance(frame, DataFrame) and frame.data:
                for window in (0, frame.stream_id):
                    self.send(WindowUpdateFrame(window, window_increment=len(frame.data)))
        return self.bodies[stream]

    def opened(self, stream: int) -> int:
        """How many bytes the client has allowed, by WINDOW_UPDATE and at the start."""
        return 65535 + sum(
            frame.window_increment
            for frame in self.received
            if isinstance(frame, WindowUpdateFrame) and frame.stream_id == stream
        )

    def announced(self, name: str, default: int) -> int:
        """What the client's SETTINGS say, by name."""
        code = getattr(SettingsFrame, name)
        frames = [frame for frame in self.received if isinstance(frame, SettingsFrame)]
        return next((f.settings[code] for f in reversed(frames) if code in f.settings), default)

    def room(self, stream: int) -> int:
        """How many bytes of DATA `push` may send on a stream, by both windows."""
        own = self._initial_window + self.granted[stream]
        return min(own - self.sent[stream], 65535 + self.granted[0] - self.sent[0])

    def rest(self) -> None:
        """Read on until the client closes."""
        with contextlib.suppress(Gone):
            while True:
                self.read()

    # --- writing ---

    def send(self, *frames: Frame) -> None:
        with contextlib.suppress(OSError):
            self.raw(b"".join(frame.serialize() for frame in frames))

    def settings(self, **values: int) -> None:
        """SETTINGS by name, as `settings(MAX_CONCURRENT_STREAMS=1)`."""
        codes = {getattr(SettingsFrame, name): value for name, value in values.items()}
        self.send(SettingsFrame(0, settings=codes))

    def head(
        self,
        stream: int,
        *fields: tuple[str, str],
        status: int | None = 200,
        end: bool = False,
    ) -> HeadersFrame:
        """A frame of headers, to be sent; the status first."""
        first = [] if status is None else [(":status", str(status))]
        frame = HeadersFrame(stream, self._encoder.encode([*first, *fields]))
        frame.flags.add("END_HEADERS")
        if end:
            frame.flags.add("END_STREAM")
        return frame

    @staticmethod
    def data(stream: int, data: bytes, *, end: bool = False) -> DataFrame:
        return DataFrame(stream, data, flags=["END_STREAM"] if end else [])

    def push(self, stream: int, size: int, padding: int = 0, times: int = 1) -> None:
        """DATA of this size, whose padding counts against the windows too."""
        frame = DataFrame(stream, b"x" * size)
        if padding:
            frame.pad_length = padding
            frame.flags.add("PADDED")
        with contextlib.suppress(OSError):
            self.raw(frame.serialize() * times)
        for window in (0, stream):
            self.sent[window] += frame.flow_controlled_length * times

    def flood(self, *streams: int, quiet: float = 0.3, most: int = 2**26) -> None:
        """Send as much as the windows allow on all of these, until nothing moves for a while."""
        last = time.monotonic()
        while time.monotonic() - last < quiet and self.sent[0] < most:
            for stream in streams:
                if (size := min(self.room(stream), 16384)) > 0:
                    self.push(stream, size)
                    last = time.monotonic()
            with contextlib.suppress(TimeoutError):
                self.read(0.001)

    def deliver(self, stream: int, size: int) -> None:
        """A body of this size, as the windows allow, and its end."""
        while size:
            while not (room := self.room(stream)) > 0:
                self.read()
            piece = min(size, room, 16384)
            self.push(stream, piece)
            size -= piece
        self.send(self.data(stream, b"", end=True))

    def answer(self, stream: int, body: bytes = b"ok", *fields: tuple[str, str]) -> None:
        """A complete response, with its content-length."""
        length = ("content-length", str(len(body)))
        self.send(self.head(stream, length, *fields), self.data(stream, body, end=True))

    def echo(self, stream: int) -> None:
        """The request's own path: every answer can be told from the others."""
        self.answer(stream, self.paths[stream].encode())

    def goaway(self, last: int, code: int = NO_ERROR) -> None:
        self.send(GoAwayFrame(0, last_stream_id=last, error_code=code))

    def reset(self, stream: int, code: int) -> None:
        self.send(RstStreamFrame(stream, error_code=code))

    def raw(self, data: bytes) -> None:
        """Send bytes as they are; half of them, in the last read's time, would end TLS."""
        self._sock.settimeout(30)  # longer than a test may take
        self._sock.sendall(data)

    def end(self) -> None:
        """Close the connection now, without a word."""
        with contextlib.suppress(OSError):  # TLS's own shutdown would have the rest read encrypted
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)


def serve(peer: Peer) -> None:
    """Answer every request with its own path."""
    with contextlib.suppress(Gone):
        while True:
            stream = peer.request()
            if peer.methods[stream] in ("POST", "PUT"):
                peer.body(stream)
            peer.echo(stream)


Script = Callable[[Peer], None]
Http1 = Callable[[bytes], bytes]  # a request's head, and the response to it


def http1_answer(head: bytes, status: str = "200 OK") -> bytes:
    """The path as the body, so that every answer can be told from the others."""
    path = head.split()[1]
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(path), path)


class H2Peer:
    """Connection n is served by script n, the last one serves all further ones.

    With `settings=None` the script sends its SETTINGS itself. `http1` makes it offer HTTP/1.1
    too, and answers there; after a 101 whatever comes is echoed. `handshake` is the time in
    seconds before the TLS handshake of the n-th connection. Without `tls` it takes for granted
    that the client speaks HTTP/2.
    """

    def __init__(
        self,
        *scripts: Script,
        settings: Mapping[str, int] | None = MappingProxyType({}),
        http1: Http1 | None = None,
        handshake: Callable[[int], float] = lambda number: 0.0,
        tls: bool = True,
    ) -> None:
        self.http1_heads: list[bytes] = []  # of the requests over HTTP/1.1
        self.connections = 0  # accepted, of whatever protocol
        self.stopping = threading.Event()
        self._http1, self._handshake, self._tls = http1, handshake, tls
        self._http1_sockets: list[socket.socket] = []
        self.peers: list[Peer] = []
        self.requests: list[tuple[str, str]] = []  # method and path, of all connections
        self.failures: list[BaseException] = []
        self._scripts = scripts or (serve,)
        self._settings = settings
        self._context = server_context("h2", "http/1.1") if http1 else server_context("h2")
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((LOOPBACK, 0))
        self.url = f"http{'s' if tls else ''}://{LOOPBACK}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in list(self.peers):
            peer.end()
        for sock in self._http1_sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own shutdown
        for thread in list(self._threads):
            thread.join(5)
        if exc_info[0] is None and self.failures:
            raise self.failures[0]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1  # first: a test may ask as soon as it is answered
                self._start(self._serve, sock, self.connections - 1)

    def _serve(self, sock: socket.socket, number: int) -> None:
        self.stopping.wait(self._handshake(number))
        sock.settimeout(30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls:
                sock = self._context.wrap_socket(sock, server_side=True)
        except OSError:
            sock.close()
            return
        if self._http1 and sock.selected_alpn_protocol() != "h2":
            return self._serve_http1(sock, self._http1)
        peer = Peer(sock, len(self.peers), self)
        self.peers.append(peer)
        script = self._scripts[min(peer.number, len(self._scripts) - 1)]
        with sock:
            try:
                if self._settings is not None:
                    peer.settings(**self._settings)
                if peer._take(len(PREFACE)) != PREFACE:
                    raise Gone  # a client that speaks HTTP/1.1
                script(peer)
            except (Gone, OSError):
                pass
            except BaseException as exc:
                self.failures.append(exc)

    def _serve_http1(self, sock: socket.socket, respond: Http1) -> None:
        data = b""
        self._http1_sockets.append(sock)
        with sock, contextlib.suppress(OSError):
            while not self.stopping.is_set():
                while b"\r\n\r\n" not in data:
                    if not (more := sock.recv(65536)):
                        return
                    data += more
                head, data = data.split(b"\r\n\r\n", 1)
                length = re.search(rb"(?i)\ncontent-length: (\d+)", head)
                while length and len(data) < int(length[1]):
                    data += sock.recv(65536)
                data = data[int(length[1]) :] if length else data
                self.http1_heads.append(head)
                sock.sendall(response := respond(head))
                while response.startswith(b"HTTP/1.1 101") and (more := sock.recv(65536)):
                    sock.sendall(more)

    def wait(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait until the server has seen something."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "it did not come"
            time.sleep(0.002)
