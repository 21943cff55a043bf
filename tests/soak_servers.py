"""The servers of `soak.py`, a process of their own: they do with each request as its path says.

`/<id>/<size>/<fault>,<fault>`: the n-th visit meets the n-th fault, later ones get the answer,
which is derived from the id and the body received. At the end they say how often each POST was
processed, and what is still open.
"""

import contextlib
import gzip
import hashlib
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from h2_peer import INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM, Gone, H2Peer, Peer
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, RstStreamFrame, WindowUpdateFrame
from servers import (
    Connection,
    ScriptedServer,
    Step,
    answer,
    chunked,
    cut,
    fin,
    hang,
    message,
    reset,
    write_ca,
)

UNREAD = b"-"  # in the place of the digest, where the server answers before it has the body


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def content(number: str, size: int, of_body: bytes) -> bytes:
    """The one right answer; every piece of it says whose it is."""
    line = b"%b %b\n" % (number.encode(), of_body)
    return line * (size // len(line) + 1)


@dataclass
class Asked:
    number: str
    size: int
    fault: str

    def answer(self, body: bytes | None) -> bytes:
        return content(self.number, self.size, UNREAD if body is None else digest(body))


class Book:
    """What was asked, and what was done about it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits: Counter[str] = Counter()
        self.posts: Counter[str] = Counter()

    def visit(self, path: str) -> Asked:
        _, number, size, faults = path.split("/")
        with self._lock:
            visit = self._visits[number]
            self._visits[number] += 1
        every = [*faults.split(",")[visit : visit + 1], "ok"]
        return Asked(number, int(size), every[0] or "ok")

    def processed(self, method: str, asked: Asked) -> None:
        if method == "POST":
            with self._lock:
                self.posts[asked.number] += 1


# --- HTTP/1.1 ------------------------------------------------------------------------------------


def pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 7000] for start in range(0, len(data), 7000)]


LAST = {"Connection": "close"}  # said, or the next request may go out before the end is seen
HTTP1: dict[str, Callable[[bytes], Step]] = {
    "ok": lambda body: answer(200, body),
    "chunked": lambda body: chunked(*pieces(body)),
    "gzip": lambda body: answer(200, gzip.compress(body, 1), {"Content-Encoding": "gzip"}),
    "slow": lambda body: Step(send=pieces(message(200, body)), pause=0.01),
    "twice": lambda body: Step(send=[message(200, body) + message(200, b"wrong")]),
    "last": lambda body: answer(200, body, LAST, then="fin"),
    "interim": lambda body: Step(send=[message(103), message(200, body)], pause=0.01),
    "503": lambda body: answer(503, b"busy"),
    "429": lambda body: answer(429, headers={"Retry-After": "0"}),
    "reset": lambda body: reset(),
    "gone": lambda body: fin(),
    "stall": lambda body: hang(),
    "cut": lambda body: cut(body, len(body) // 2),
    "cut-reset": lambda body: cut(body, len(body) // 2, then="reset"),
    "cut-chunk": lambda body: chunked(body[:50], end=b"fff\r\n" + body[50:60], then="fin"),
    "garbage": lambda body: Step(send=[b"\0\1\2garbage\r\n\r\n"], then="fin"),
}
EARLY = {"early": "keep", "early-last": "fin"}  # answered before the body was read


class Http1Server(ScriptedServer):
    def __init__(self, book: Book, *, tls: bool) -> None:
        self._book = book
        super().__init__(tls=tls)

    def _next_step(self, connection: Connection) -> Step:
        request = connection.request
        self.requests.clear()  # memory: a soak takes long
        asked = self._book.visit(request.path)
        if then := EARLY.get(asked.fault):
            self._book.processed(request.method, asked)
            fields = LAST if then == "fin" else {}
            return answer(200, asked.answer(None), fields, read="head", then=then)
        connection.read_body()
        self._book.processed(request.method, asked)
        return HTTP1[asked.fault](asked.answer(request.body))


# --- HTTP/2 --------------------------------------------------------------------------------------


@dataclass
class Sending:
    """What is still to be sent of an answer, and how it ends."""

    data: bytes
    end: Callable[[int], Any]
    piece: int = 16384
    pause: float = 0.0
    due: float = 0.0


class H2Connection:
    """Serves many streams at a time, each in its way."""

    def __init__(self, peer: Peer, book: Book) -> None:
        self._peer, self._book = peer, book
        self._asked: dict[int, Asked] = {}  # until they are complete
        self._sending: dict[int, Sending] = {}
        self._highest = 0
        self._last: int | None = None  # of our GOAWAY

    def serve(self) -> None:
        with contextlib.suppress(Gone):
            while self._last is None or self._asked or self._sending:
                self._pump()
                with contextlib.suppress(TimeoutError):
                    self._take(self._peer.read(0.002 if self._sending else 0.5))
            socket.socket.shutdown(self._peer._sock, socket.SHUT_WR)
            self._peer.rest()  # or the kernel would reset what is still under way

    def _take(self, frame: Any) -> None:
        stream = frame.stream_id
        self._peer.received.clear()
        self._peer._sock.settimeout(10)  # for what is sent: not a piece of a frame
        if isinstance(frame, HeadersFrame) and (self._last is None or stream <= self._last):
            self._highest = stream
            self._asked[stream] = asked = self._book.visit(self._peer.paths[stream])
            if asked.fault in self.UNREAD:
                self._asked.pop(stream)
                self.UNREAD[asked.fault](self, stream, asked)
        elif isinstance(frame, DataFrame) and frame.data:
            for window in (0, stream) if stream in self._asked else (0,):
                self._peer.send(WindowUpdateFrame(window, window_increment=len(frame.data)))
        elif isinstance(frame, RstStreamFrame):
            self._asked.pop(stream, None)
            self._sending.pop(stream, None)
        if "END_STREAM" in frame.flags and (asked := self._asked.pop(stream, None)):
            self._book.processed(self._peer.methods[stream], asked)
            self.FAULTS[asked.fault](self, stream, asked.answer(self._peer.bodies.pop(stream)))

    def _pump(self) -> None:
        now = time.monotonic()
        for stream, sending in list(self._sending.items()):
            while sending.data and sending.due <= now:
                size = min(sending.piece, len(sending.data), self._peer.room(stream))
                if size <= 0:
                    break
                self._peer.send(self._peer.data(stream, sending.data[:size]))
                for window in (0, stream):
                    self._peer.sent[window] += size
                sending.data = sending.data[size:]
                sending.due = now + sending.pause
            if not sending.data and self._sending.pop(stream, None):
                sending.end(stream)

    # --- answers ---

    def _ended(self, stream: int) -> None:
        self._peer.send(self._peer.data(stream, b"", end=True))

    def _answer(self, stream: int, body: bytes, length: int | None = None, **how: Any) -> None:
        fields = ("content-length", str(len(body) if length is None else length))
        self._peer.send(self._peer.head(stream, fields))
        self._sending[stream] = Sending(body, how.pop("end", self._ended), **how)

    def _status(self, stream: int, status: int, *fields: tuple[str, str]) -> None:
        self._peer.send(self._peer.head(stream, *fields, status=status, end=True))

    def _reset(self, stream: int, code: int = INTERNAL_ERROR) -> None:
        self._peer.reset(stream, code)

    def _interim(self, stream: int, body: bytes) -> None:
        self._peer.send(self._peer.head(stream, status=103), PingFrame(0, opaque_data=b"pingping"))
        self._answer(stream, body)

    def _goaway(self, stream: int, body: bytes) -> None:
        """As a graceful restart does it: what has arrived is still answered."""
        self._leave(self._highest)
        self._answer(stream, body)

    def _exclude(self, stream: int, asked: Asked) -> None:
        """The same for all before this one, which was not looked at."""
        self._leave(stream - 2)

    def _leave(self, last: int) -> None:
        self._last = last if self._last is None else min(last, self._last)
        self._peer.goaway(self._last)
        for streams in (self._asked, self._sending):
            for stream in [stream for stream in streams if stream > self._last]:
                del streams[stream]

    def _settings(self, stream: int, body: bytes) -> None:
        self._peer.settings(MAX_CONCURRENT_STREAMS=1 + len(body) % 7)
        self._answer(stream, body)

    def _kill(self, stream: int, body: bytes) -> None:
        self._peer.end()
        raise Gone

    def _early(self, stream: int, asked: Asked) -> None:
        self._book.processed(self._peer.methods[stream], asked)
        self._answer(stream, asked.answer(None), end=self._end_early)

    def _end_early(self, stream: int) -> None:
        self._ended(stream)
        self._reset(stream, NO_ERROR)

    UNREAD: ClassVar[dict[str, Callable[["H2Connection", int, Asked], None]]] = {
        "early": _early,
        "refused": lambda self, stream, asked: self._reset(stream, REFUSED_STREAM),
        "excluded": _exclude,
    }
    FAULTS: ClassVar[dict[str, Callable[["H2Connection", int, bytes], None]]] = {
        "ok": _answer,
        "slow": lambda self, stream, body: self._answer(stream, body, piece=5000, pause=0.01),
        "interim": _interim,
        "node": lambda self, stream, body: self._answer(
            stream, body, end=lambda stream: self._reset(stream, NO_ERROR)
        ),
        "goaway": _goaway,
        "settings": _settings,
        "503": lambda self, stream, body: self._status(stream, 503),
        "429": lambda self, stream, body: self._status(stream, 429, ("retry-after", "0")),
        "reset": lambda self, stream, body: self._reset(stream),
        "stall": lambda self, stream, body: None,
        "cut": lambda self, stream, body: self._answer(
            stream, body[: len(body) // 2], len(body), end=self._reset
        ),
        "short": lambda self, stream, body: self._answer(stream, body, len(body) + 1),
        "killed": _kill,
        "garbage": lambda self, stream, body: self._peer.raw(b"\0\0\1\6\0\0\0\0\1x"),  # bad PING
    }


FAULTS = {
    "http": [*HTTP1, *EARLY],
    "https": [*HTTP1, *EARLY],
    "h2": [*H2Connection.FAULTS, *H2Connection.UNREAD],
}
HARD = "503 429 reset gone stall cut cut-reset cut-chunk garbage short killed refused excluded"
GENTLE = {kind: [f for f in faults if f not in HARD.split()] for kind, faults in FAULTS.items()}


# --- the process ---------------------------------------------------------------------------------


def main() -> None:
    """Serve until stdin ends; the first line printed says where, the last one what became of it."""
    book = Book()
    with (
        tempfile.TemporaryDirectory() as folder,
        Http1Server(book, tls=False) as plain,
        Http1Server(book, tls=True) as tls,
        H2Peer(lambda peer: H2Connection(peer, book).serve()) as h2,
    ):
        ca = write_ca(Path(folder) / "ca")
        urls = {"http": plain.url, "https": tls.url, "h2": h2.url}
        print(json.dumps({"urls": urls, "ca": ca.read_text()}), flush=True)
        sys.stdin.read()
        until = time.monotonic() + 10
        while (count := still_open(plain, tls, h2)) and time.monotonic() < until:
            time.sleep(0.01)
    print(json.dumps({"posts": book.posts, "open": count}), flush=True)


def still_open(plain: ScriptedServer, tls: ScriptedServer, h2: H2Peer) -> int:
    """How many connections the client has not closed."""
    sockets = [*plain._sockets, *tls._sockets, *(peer._sock for peer in h2.peers)]
    return sum(sock.fileno() != -1 for sock in sockets)


if __name__ == "__main__":
    main()
