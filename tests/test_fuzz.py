"""Random servers: whatever they say, a call ends in time, in its own answer or in httpx's error.

What a server does depends on a seed, the question and how often it was asked, not on the order.
HTTPX_PRODUCTION_FUZZ is how much (300 requests over HTTP/1.1 for each flavour by default, a third
of it over HTTP/2, as many sequences of outcomes); HTTPX_PRODUCTION_FUZZ_SEED is the first seed.
"""

import contextlib
import gzip
import logging
import os
import random
import struct
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from conftest import FLAVOURS, FakeClock, Flavour
from h2_peer import H2Peer, Peer
from hyperframe.frame import PingFrame, WindowUpdateFrame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Received, ScriptedServer, Step, client_context, message

from httpx_production import FailedAttempt, RetryBudget, RetryPolicy, retry

AMOUNT = int(os.environ.get("HTTPX_PRODUCTION_FUZZ", "300"))
FIRST_SEED = int(os.environ.get("HTTPX_PRODUCTION_FUZZ_SEED", "1"))
ROUND = 100  # requests, on one client
AT_ONCE = 20
LONGEST = 8.0  # seconds of a call: attempts of several phases of 0.2 s, on a busy machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.time_limit(20 + AMOUNT / 10),
    # httpx and httpcore leave async generators to the garbage collector when a body breaks.
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]


def rounds(amount: int) -> Any:
    """A test for each round, by its seed."""
    last = FIRST_SEED + max(1, amount // ROUND)
    return pytest.mark.parametrize("seed", range(FIRST_SEED, last))


# --- one call, in any flavour ---------------------------------------------------------------------


def drive(function: Callable[[], Any]) -> Any:
    """What a coroutine function returns that awaits nothing: the sync flavour's, in a thread."""
    try:
        function().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


@dataclass
class Asked:
    """A call, as it went."""

    method: str
    path: str
    manner: str  # "whole"; streamed and "read"; streamed and "left"
    outcome: Any = None
    seconds: float = 0.0

    @property
    def retries(self) -> tuple[FailedAttempt, ...]:
        """The attempts before the last one."""
        holder = self.outcome
        if isinstance(self.outcome, Exception):
            holder = self.outcome.request  # type: ignore[attr-defined]
        return tuple(holder.extensions["retries"])


async def ask(flavour: Flavour, client: Any, url: str, asked: Asked, options: Any) -> Asked:
    """Make a call and write down how it went."""
    started = time.monotonic()
    try:
        asked.outcome = await answer_to(flavour, client, url, asked, options)
    except Exception as exc:
        asked.outcome = exc
    asked.seconds = time.monotonic() - started
    return asked


async def answer_to(flavour: Flavour, client: Any, url: str, asked: Asked, options: Any) -> Any:
    target = asked.method, url + asked.path
    if asked.manner == "whole":
        return await flavour.run(client.request(*target, **options))
    async with flavour.using(client.stream(*target, **options)) as response:
        if asked.manner == "read":
            await flavour.read(response)
        return response


def body_of(path: str) -> bytes:
    """A request's own body."""
    return path.encode() * random.Random(path).choice([1, 100, 10_000])


def options_of(flavour: Flavour, asked: Asked, chance: random.Random) -> dict[str, Any]:
    """A request's policy and body."""
    policy = RetryPolicy(
        max_attempts=chance.choice([2, 3]),
        total_timeout=chance.choice([None, None, 3.0]),
        backoff=lambda attempt: 0.0,
        max_retry_after=0.0,
    )
    options: dict[str, Any] = {"extensions": {"retry": policy}}
    if asked.method in ("POST", "PUT"):
        body = body_of(asked.path)
        once = chance.random() < 0.3
        options["content"] = flavour.generator([body[:7], body[7:]]) if once else body
    return options


async def one_round(
    flavour: Flavour, client: Any, url: str, seed: int, methods: str
) -> list[Asked]:
    """A round of calls, several at a time."""
    chance, asked = random.Random(seed), []
    for number in range(0, ROUND, AT_ONCE):
        calls = []
        for index in range(number, number + AT_ONCE):
            manner = chance.choice(["whole", "whole", "whole", "read", "left"])
            one = Asked(chance.choice(methods.split()), f"/{seed}.{index}", manner)
            options = options_of(flavour, one, chance)
            call = partial(ask, flavour, client, url, one, options)
            calls.append(partial(drive, call) if flavour.sync else call)
        asked += await flavour.gather(calls)
    return asked


def check(one: Asked, allowed: set[tuple[int, bytes]], wild: bool) -> None:
    """In time, of httpx's tree, and never another's or half an answer."""
    assert one.seconds < LONGEST, one
    if isinstance(one.outcome, Exception):
        assert isinstance(one.outcome, httpx.HTTPError | httpx.StreamConsumed), one
        assert not isinstance(one.outcome, httpx.PoolTimeout), one  # a slot was lost
    elif one.manner != "left" and not wild:
        assert (one.outcome.status_code, one.outcome.content) in allowed, one


async def check_pool(flavour: Flavour, client: Any, url: str) -> None:
    """After the storm: the same client works, and nothing is stuck."""
    responses = await flavour.gather([partial(client.get, url + "/after")] * 5)
    assert [getattr(response, "text", response) for response in responses] == ["after"] * 5
    stats = client.pool_stats()
    assert (stats.in_use, stats.waiting) == (0, 0)


# --- random HTTP/1.1 ------------------------------------------------------------------------------

TEXT = [random.Random(n).randbytes(35_000).hex().encode() for n in range(3)]
STATUSES = [200] * 12 + [201, 204, 206, 301, 302, 303, 304, 307, 308, 400, 404, 408, 429, 429]
STATUSES += [500, 502, 503, 503, 504, 599, 600, 999]
EARLY = [message(status, headers={"Link": "</a.css>"}) for status in (100, 102, 103, 104, 199)]
EVIL = message(200, b"nobody's answer")
LOCATIONS = [b"http://[::1", b"ftp://x/", b"//", b"http://127.0.0.1:1/", b"x:",
             b"http://127.0.0.1:0/", b"http://127.0.0.1:x/", b"http:",
             b"http://127.0.0.1:99999/"]  # fmt: skip
ODD_HEADERS = [
    b"Set-Cookie: a=\xff", b"Set-Cookie: \xe4=b",
    b"X-Folded: one\r\n two\r\n\tthree", b"X-Empty:", b"X-Tight:a", b"X-Latin: \xe4\xff\x80",
    b"X-Wide:   a \t b\t ", b"x-UPPER-lower: 1", b"X-Same: 1\r\nX-Same: 2", b"X-Control: a\x01b",
    b"X-Long: " + b"y" * 60_000, b"X-Many: 1\r\n" * 500 + b"X-Last: 1",
    b"Set-Cookie: a=b\x01; Expires=Thu, 99 Foo 9999", b"Set-Cookie: =;;;=,",
    b"Set-Cookie: a=b; Max-Age=99999999999999999999; Domain=..; Path=x",
    b"Set-Cookie: a=b; Expires=Wed, 21 Oct 999999 07:28:00 GMT",
    b"Content-Type: text/html; charset=nonsense", b"Content-Type: ;;;=", b"Keep-Alive: timeout=x",
    b"Retry-After: 0", b"Retry-After: -1", b"Retry-After: soon", b"Retry-After: " + b"9" * 5000,
    b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nDate: never", b"Retry-After-Ms: 1e400",
    b"Upgrade: h2c", b"Content-Encoding: unknown", b"Content-Encoding: identity", b"Link: <",
    b"WWW-Authenticate: Digest x", b"Trailer: X", b"Content-Range: bytes x",
]  # fmt: skip
BAD_HEADERS = [
    b"Bad Name: x",
    b": no name",
    b"no colon",
    b"X\0: y",
    b"X: \0",
    b"X : y",
    b"\xffx: y",
]
BAD_HEADS = [b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 099 Early\r\n\r\n",
             b"HTTP/1.1 20\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"ICY 200 OK\r\n\r\n",
             b"HTTP/1.1 -20 OK\r\n\r\n", b"\r\n\r\n", b"\0" * 300, b"SSH-2.0-OpenSSH_9.6\r\n",
             b"\x15\x03\x01\0\x02\x02\x46", b"<html>busy</html>\n\n", b"HTTP/1.1 200 OK\r\n  \r\n",
             b"", b"HTTP/1.1", b"X: " + b"y" * 200_000]  # fmt: skip
BAD_LENGTHS = [b"abc", b"-1", b"+5", b"1.5", b"0x10", b"", b"5 5", b"5, 6", b"\xb2", b"9" * 30]
BAD_SIZES = [b"zz", b"-5", b"0x5", b"", b" 5", b"+5", b"5 5", b"F" * 21, b"\xb2", b"5\n;"]


@dataclass
class Draft:
    """A response in the making: its bytes, and what the client may make of them."""

    chance: random.Random
    method: str
    content: bytes | None  # what belongs to the request; None: nothing may be returned
    status: int = 200
    lines: list[bytes] = field(default_factory=list)  # headers
    payload: bytes = b""  # the content, encoded
    body: bytes = b""  # the payload, framed
    extra: bytes = b""  # behind the end
    then: Any = "keep"
    certain: bool = True  # complete and valid beyond doubt: the client must return it
    endless: bool = False  # the connection's end is its end
    wild: bool = False  # nobody knows what it means

    @property
    def bodiless(self) -> bool:
        return self.method == "HEAD" or self.status in (204, 304)

    def break_off(self, *ends: str) -> None:
        """The rest never comes."""
        self.content, self.certain = None, False
        self.then = self.chance.choice(ends or ("fin", "fin", "reset", "reset", "hang", "keep"))


def compressed(d: Draft) -> None:
    """gzip or deflate: whole, cut, corrupt, or followed by a second member."""
    coding, encode = d.chance.choice([(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
    d.lines.append(b"Content-Encoding: " + coding)
    d.payload = encode(d.payload)
    damage = d.chance.choice(["none", "none", "cut", "corrupt", "twice"])
    if d.status == 206:  # a part: returned as far as it can be decoded
        d.wild, d.certain = True, False
    if damage == "cut":
        d.payload = d.payload[: d.chance.randrange(1, len(d.payload))]
        d.content, d.certain = None, False
    elif coding == b"gzip" and damage == "corrupt":
        where = d.chance.randrange(len(d.payload))
        flipped = d.payload[where] ^ 1 << d.chance.randrange(8)
        d.payload = d.payload[:where] + bytes([flipped]) + d.payload[where + 1 :]
        d.certain = False  # a flag or a date in gzip's header may not matter
    elif coding == b"gzip" and damage == "twice":
        d.payload += encode(b"more")
        d.content, d.certain = None, False


def right_length(d: Draft) -> None:
    """Content-Length as it should be, perhaps said twice."""
    length = b"Content-Length: %d" % len(d.payload)
    d.lines += d.chance.choice([[length], [length], [length] * 2, [length + b", " + length[16:]]])
    d.body = d.payload


def short_length(d: Draft) -> None:
    """More arrives than was promised: the promise counts, the rest is nobody's answer."""
    length = d.chance.randrange(1, len(d.payload) + 1)
    d.lines.append(b"Content-Length: %d" % length)
    d.body = d.payload
    if length < len(d.payload):
        plain = d.content is not None and d.payload == d.content
        d.content = d.payload[:length] if plain else None
        d.certain, d.extra = False, b"(late)"


def long_length(d: Draft) -> None:
    """Less arrives than was promised."""
    d.lines.append(b"Content-Length: %d" % (len(d.payload) + d.chance.choice([1, 2, 1000])))
    d.body = d.payload
    d.break_off()


def bad_length(d: Draft) -> None:
    """A length that is no number, or two that differ."""
    lengths = d.chance.choice([[d.chance.choice(BAD_LENGTHS)], [b"%d" % len(d.payload), b"0"]])
    d.lines += [b"Content-Length: " + length for length in lengths]
    d.body = d.payload
    d.break_off()


def chunks(d: Draft) -> list[bytes]:
    """The payload in chunks, with extensions and leading zeros."""
    pieces, rest = [], d.payload
    while rest:
        size = d.chance.choice([1, 10, 1000, 20_000])
        piece, rest = rest[:size], rest[size:]
        form = d.chance.choice([b"%x", b"%X", b"%04x", b"%x;a=b", b"%x;", b"%x  "])
        pieces.append(form % len(piece) + b"\r\n" + piece + b"\r\n")
    return pieces


def right_chunks(d: Draft) -> None:
    """Chunked as it should be, trailers included."""
    d.lines.append(b"Transfer-Encoding: " + d.chance.choice([b"chunked", b"Chunked", b"CHUNKED"]))
    end = d.chance.choice([b"0\r\n\r\n", b"000\r\n\r\n", b"0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n"])
    d.body = b"".join(chunks(d)) + end


def broken_chunks(d: Draft) -> None:
    """Cut somewhere, or with a chunk of no size, or without the line's end behind a chunk."""
    right_chunks(d)
    pieces = chunks(d)
    where = d.chance.randrange(len(pieces))
    bad = d.chance.choice([d.chance.choice(BAD_SIZES) + b"\r\n", pieces[where][:-2] + b"xx"])
    broken = b"".join([*pieces[:where], bad, *pieces[where:], b"0\r\n\r\n"])
    cut = d.body[: d.chance.randrange(len(d.body))]
    d.body = d.chance.choice([cut, broken])
    d.break_off()


def both(d: Draft) -> None:
    """Chunked and a length: refused, or the chunks count (RFC 9112 section 6.3)."""
    right_chunks(d)
    d.lines.append(b"Content-Length: %d" % d.chance.choice([0, 5, len(d.payload), len(d.body)]))
    d.certain = False


def odd_encoding(d: Draft) -> None:
    """A transfer encoding that nobody asked for."""
    right_chunks(d)
    name = d.chance.choice([b"gzip, chunked", b"identity", b"chunked, chunked", b"x", b""])
    d.lines[-1] = b"Transfer-Encoding: " + name
    d.break_off("fin", "keep")


def until_close(d: Draft) -> None:
    """No length: FIN is the end, RST is none, and who does not close never ends."""
    d.body, d.then, d.endless = d.payload, d.chance.choice(["fin", "fin", "reset", "hang"]), True
    if d.then != "fin":
        d.break_off(d.then)


FRAMINGS = [right_length] * 6 + [right_chunks] * 5
FRAMINGS += [short_length, long_length, bad_length, broken_chunks, both, odd_encoding, until_close]


def no_body(d: Draft) -> None:
    """HEAD, 204 and 304 end with their head, whatever lengths it speaks of."""
    d.content, d.body = b"", b""
    if d.chance.random() < 0.5:
        d.lines.append(b"Content-Length: %d" % (d.chance.choice([0, 0, 7, 1000])))


def adorned(d: Draft) -> bytes:
    """The head: 1xx before it, odd headers or bad ones in it."""
    chance = d.chance
    if chance.random() < 0.3:
        d.lines += chance.sample(ODD_HEADERS, chance.randrange(1, 4))
        if any(line.startswith(b"Content-Range") for line in d.lines):  # what is cut may be a part
            d.wild, d.certain = True, False
    if 300 <= d.status < 400 and chance.random() < 0.5:
        onward = b"?%d" % chance.randrange(10**9)  # never the same twice: a POST may be sent there
        d.lines.append(b"Location: " + chance.choice([*LOCATIONS, *[onward] * 8]))
        d.certain = False
    chance.shuffle(d.lines)
    if chance.random() < 0.04:
        d.lines.insert(chance.randrange(len(d.lines) + 1), chance.choice(BAD_HEADERS))
        d.break_off()
    phrase = chance.choice([b" OK", b" OK", b" ", b"", b" \xe4 b\tc", b" 404 Not Found"])
    lines = [b"HTTP/1.1 %d%b" % (d.status, phrase), *d.lines, b"", b""]
    early = b"".join(chance.choices(EARLY, k=chance.choice([0] * 6 + [1, 2, 30])))
    return early + b"\r\n".join(lines)


def ended(d: Draft) -> None:
    """What follows a complete response: nothing, a close, or bytes that nobody asked for."""
    if d.then == "keep" and d.certain:
        d.then = d.chance.choice(["keep"] * 6 + ["fin", "fin", "reset"])
        if d.chance.random() < 0.1:
            d.lines.append(b"Connection: close")
    if d.then == "reset":
        d.certain = False
    if d.content is not None and not d.endless:
        d.extra += d.chance.choice([b""] * 8 + [EVIL, EVIL * 2, b"\r\n", b"x", EVIL[:20]])


def mutations(chance: random.Random, whole: bytes) -> Iterator[bytes]:
    """Some bytes changed, some lost, some doubled."""
    spots = {chance.randrange(len(whole)) for _ in range(chance.choice([1, 1, 2, 20]))}
    start = 0
    for spot in sorted(spots):
        new = [chance.randbytes(1), b"", whole[spot : spot + 1] * 2, b"\n", b" ", b"0"]
        yield whole[start:spot]
        yield chance.choice(new)
        start = spot + 1
    yield whole[start:]


def drafted(chance: random.Random, method: str, tag: bytes) -> tuple[Draft, bytes]:
    """A response: mostly right, or broken in one of the ways above."""
    content = tag + chance.choice(TEXT)[: chance.choice([0, 9, 999, 9999, 70_000])]
    d = Draft(chance, method, content, chance.choice(STATUSES), payload=content)
    if not d.bodiless and chance.random() < 0.3:
        compressed(d)
    no_body(d) if d.bodiless else chance.choice(FRAMINGS)(d)
    ended(d)
    head = adorned(d)
    whole = chance.choice(BAD_HEADS) if chance.random() < 0.05 else head + d.body
    if not whole.startswith(head):
        d.break_off("fin", "keep", "reset")
    elif chance.random() < 0.05:
        whole = whole[: chance.randrange(len(head if d.endless or d.extra else whole))]
        d.break_off()
    elif chance.random() < 0.05 and b"Location" not in head:  # not to call on strangers
        whole, d.wild, d.certain = b"".join(mutations(chance, whole)), True, False
    d.extra *= d.content is not None
    return d, whole + d.extra


def in_pieces(chance: random.Random, whole: bytes, last: int) -> list[bytes]:
    """Split anywhere, but the `last` bytes, which are too much, come together with the end.

    Later they could pass for the answer to the next request: HTTP/1.1 can't tell.
    """
    most = max(1, len(whole) - last)
    ends = [chance.randrange(most) for _ in range(chance.choice([0, 0, 1, 3, 9]))]
    ends = sorted({*ends, len(whole)})
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Fuzz:
    """A handler of random answers, which knows what each question may be answered with."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calm = False
        self.visits: dict[str, list[tuple[Received, Draft]]] = defaultdict(list)
        self.targets: Counter[str] = Counter()

    def __call__(self, request: Received) -> Step:
        if self.calm:
            return Step(send=[message(200, b"after")])
        if request.method in ("POST", "PUT"):
            assert request.body == body_of(request.path)
        visits = self.visits[request.path]
        chance = random.Random(f"{self.seed} {request.target} {len(visits)}")
        draft, whole = drafted(
            chance, request.method, b"<%s.%d>" % (request.path.encode(), len(visits))
        )
        visits.append((request, draft))
        self.targets[f"{request.method} {request.target}"] += 1
        pieces = in_pieces(chance, whole, len(draft.extra))
        return Step(send=pieces, pause=chance.choice([0.0, 0.0, 0.003]), then=draft.then)

    def allowed(self, path: str) -> set[tuple[int, bytes]]:
        """What may be returned: each answer that was given to this very question."""
        drafts = [draft for _, draft in self.visits[path]]
        return {(d.status, d.content) for d in drafts if d.content is not None}

    def wild(self, path: str) -> bool:
        return any(draft.wild for _, draft in self.visits[path])

    def spoilt(self, request: Received) -> bool:
        """Whether anything but right answers came earlier on the same connection."""
        return any(
            not draft.certain or draft.extra
            for visits in self.visits.values()
            for other, draft in visits
            if other.connection == request.connection and other is not request
        )

    def must_return(self, one: Asked) -> Draft | None:
        """The last answer, if it was beyond doubt and each attempt is known to have arrived."""
        visits = self.visits[one.path]
        if isinstance(one.outcome, httpx.StreamConsumed):  # a redirected one-shot body
            return None
        late = any("Timeout" in failed.reason for failed in one.retries)
        if late or len(visits) != len(one.retries) + 1:
            return None
        request, draft = visits[-1]
        return draft if draft.certain and not self.spoilt(request) else None


@rounds(AMOUNT)
async def test_random_responses(flavour, seed):
    """Right, broken and cut HTTP/1.1: the own answer, whole, or httpx's error; POSTs go once."""
    fuzz = Fuzz(seed)
    with ScriptedServer(fuzz) as server:
        client = flavour.client(
            connect_timeout=2.0, read_timeout=0.12, write_timeout=2.0, pool_timeout=6.0,
            max_connections=12, follow_redirects=True,
        )  # fmt: skip
        asked = await one_round(flavour, client, server.url, seed, "GET GET GET POST PUT HEAD")
        fuzz.calm = True
        await check_pool(flavour, client, server.url)
        await flavour.close(client)
        server.settle()
    for one in asked:
        check(one, fuzz.allowed(one.path), fuzz.wild(one.path))
        if (due := fuzz.must_return(one)) and not isinstance(one.outcome, httpx.TimeoutException):
            assert not isinstance(one.outcome, Exception), one
            assert one.outcome.status_code == due.status, one
    assert max(times for what, times in fuzz.targets.items() if what.startswith("POST")) == 1
    assert sum(isinstance(one.outcome, httpx.Response) for one in asked) > ROUND / 10


# --- random HTTP/2 --------------------------------------------------------------------------------

CODES = [0, 1, 2, 5, 7, 7, 8, 11, 13, 99]  # of RST_STREAM and GOAWAY; 7: not processed
SETTINGS = [
    {"MAX_CONCURRENT_STREAMS": 1}, {"MAX_CONCURRENT_STREAMS": 0}, {"MAX_CONCURRENT_STREAMS": 1000},
    {"INITIAL_WINDOW_SIZE": 100}, {"INITIAL_WINDOW_SIZE": 2**20}, {"MAX_FRAME_SIZE": 2**15}, {},
]  # fmt: skip

Act = Callable[[], None]


def raw_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame that need not make sense."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Fuzz2:
    """A script of random answers, for each connection of a peer."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calm = False
        self.visits: Counter[str] = Counter()
        self.allowed: dict[str, set[tuple[int, bytes]]] = defaultdict(set)
        self.processed: dict[str, set[tuple[int, int]]] = defaultdict(set)  # POSTs
        self.last: dict[int, int] = defaultdict(lambda: 2**31)  # by connection: GOAWAY's

    def __call__(self, peer: Peer) -> None:
        while True:
            streams = [peer.request()]
            with contextlib.suppress(TimeoutError):
                while len(streams) < 4:
                    streams.append(peer.request(0.003))
            self.answer(peer, streams)

    def answer(self, peer: Peer, streams: list[int]) -> None:
        """Answer some requests, frame by frame, in turns."""
        if self.calm:
            for stream in streams:
                peer.answer(stream, b"after")
            return
        turns = [self.acts(peer, stream) for stream in streams]
        chance = random.Random(f"{self.seed} {peer.number} {streams}")
        while turns := [acts for acts in turns if acts]:
            chance.choice(turns).pop(0)()
            if chance.random() < 0.05:
                time.sleep(0.002)

    def acts(self, peer: Peer, stream: int) -> list[Act]:
        """What to do about one request, step by step: a right answer, or one with a fault."""
        path = peer.paths[stream]
        visit = self.visits[path] = self.visits[path] + 1
        chance = random.Random(f"{self.seed} {path} {visit}")
        content = b"<%s.%d>" % (path.encode(), visit) * chance.choice([1, 1, 100, 5000])
        status = chance.choice([200] * 6 + [201, 404, 429, 503])
        self.allowed[path].add((status, content))
        if peer.methods[stream] == "POST":
            self.processed[path].add((peer.number, stream))
        acts = self.right(peer, stream, chance, status, content)
        fault = chance.choice([None] * 16 + [self.cut, self.reset, self.retire, self.nonsense])
        if fault:
            fault(acts, peer, stream, chance)
        for _ in range(chance.choice([0, 0, 1, 3])):
            acts.insert(chance.randrange(len(acts) + 1), self.noise(peer, stream, chance))
        return acts

    def right(
        self, peer: Peer, stream: int, chance: random.Random, status: int, content: bytes
    ) -> list[Act]:
        """A complete answer; with `short` in its place END_STREAM comes too early, or too late."""
        length = len(content) + chance.choice([0] * 15 + [1, -1, 10])
        fields = [("content-length", str(length))] if chance.random() < 0.7 else []
        if fields and length != len(content):
            self.allowed[peer.paths[stream]].discard((status, content))
        acts: list[Act] = [lambda: peer.send(peer.head(stream, *fields, status=status))]
        while content:
            size = chance.choice([1, 100, 5000, 16384])
            acts.append(partial(peer.send, peer.data(stream, content[:size])))
            content = content[size:]
        trailers = chance.random() < 0.1
        ends = [
            lambda: peer.send(peer.data(stream, b"", end=True)),
            lambda: peer.send(peer.head(stream, ("x-sum", "1"), status=None, end=True)),
        ]
        return [*acts, ends[trailers]]

    def cut(self, acts: list[Act], peer: Peer, stream: int, chance: random.Random) -> None:
        """No more frames from here on; or the connection breaks."""
        del acts[chance.randrange(len(acts)) :]
        acts.append(chance.choice([peer.end, lambda: peer.raw(chance.randbytes(40)), list]))

    def reset(self, acts: list[Act], peer: Peer, stream: int, chance: random.Random) -> None:
        """RST_STREAM somewhere in the answer, or in its place."""
        code = chance.choice(CODES)
        del acts[chance.choice([0, chance.randrange(len(acts))]) :]
        if code == 7 and not acts:
            self.processed[peer.paths[stream]].discard((peer.number, stream))
        acts.append(lambda: peer.reset(stream, code))

    def retire(self, acts: list[Act], peer: Peer, stream: int, chance: random.Random) -> None:
        """GOAWAY somewhere in the answer; what is above its id was not processed."""
        last, code = chance.choice([0, max(0, stream - 2), stream, 2**31 - 1]), chance.choice(CODES)
        self.last[peer.number] = min(last, self.last[peer.number])
        acts.insert(chance.randrange(len(acts) + 1), lambda: peer.goaway(last, code))
        if chance.random() < 0.3:
            acts.append(peer.end)

    def nonsense(self, acts: list[Act], peer: Peer, stream: int, chance: random.Random) -> None:
        """A frame of any type, with any flags and payload, on this stream or on another."""
        ids = [0, 2, stream + 1000]
        kind = chance.choice([0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 99])
        where = chance.choice(ids if kind < 2 else [*ids, stream])
        payload = chance.randbytes(chance.choice([0, 1, 4, 5, 6, 8, 20]))
        frame = raw_frame(kind, chance.choice([0, 1, 4, 5, 8, 32, 255]), where, payload)
        acts.insert(chance.randrange(len(acts) + 1), lambda: peer.raw(frame))

    def noise(self, peer: Peer, stream: int, chance: random.Random) -> Act:
        """Something that is allowed at any time, and changes no answer."""
        unknown = raw_frame(200 + chance.randrange(50), 255, stream, chance.randbytes(9))
        priority = raw_frame(2, 0, stream, b"\0\0\0\0\7")
        settings = chance.choice(SETTINGS)
        return chance.choice(
            [
                lambda: peer.send(PingFrame(0, opaque_data=b"12345678")),
                lambda: peer.send(WindowUpdateFrame(0, window_increment=1000)),
                lambda: peer.send(WindowUpdateFrame(stream, window_increment=1)),
                lambda: peer.settings(**settings),
                lambda: peer.raw(unknown),
                lambda: peer.raw(priority),
            ]
        )

    def posts(self, path: str) -> int:
        """How many times a POST was taken by the server, for all that it has said."""
        return sum(stream <= self.last[number] for number, stream in self.processed[path])


@rounds(AMOUNT // 3)
async def test_random_frames(flavour, seed):
    """Right and wrong HTTP/2 on shared connections: as above, and no answer goes astray."""
    fuzz = Fuzz2(seed)
    with H2Peer(fuzz) as peer:
        client = flavour.client(
            verify=client_context(), connect_timeout=3.0, read_timeout=0.25, write_timeout=0.25,
            pool_timeout=6.0, max_connections=12,
        )  # fmt: skip
        asked = await one_round(flavour, client, peer.url, seed, "GET GET GET POST")
        fuzz.calm = True
        await check_pool(flavour, client, peer.url)
        await flavour.close(client)
    for one in asked:
        check(one, fuzz.allowed[one.path], wild=False)
        assert fuzz.posts(one.path) <= 1
    assert sum(isinstance(one.outcome, httpx.Response) for one in asked) > ROUND / 10


# --- any sequence of outcomes: three flavours, one story ------------------------------------------

ZIPPED = gzip.compress(b"text" * 99)


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response's body in pieces, each of which takes its time; an exception ends it."""

    def __init__(self, pieces: list[Any], clock: FakeClock, events: list[Any]) -> None:
        self.pieces, self.clock, self.events = pieces, clock, events

    def __iter__(self) -> Iterator[bytes]:
        for piece, seconds in self.pieces:
            self.clock.advance(seconds)
            if not isinstance(piece, bytes):
                raise piece("in the body")
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.events.append("closed")

    async def aclose(self) -> None:
        self.close()


@dataclass(frozen=True)
class Outcome:
    """What the transport does with an attempt."""

    seconds: float = 0.0
    error: type[Exception] | None = None
    reads: bool = True  # the request's body, first
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[Any] = field(default_factory=list)


@dataclass
class Script(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Outcomes one after the other, then 200s; writes down what it was asked."""

    outcomes: list[Outcome]
    clock: FakeClock
    events: list[Any]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        outcome = self.next()
        return self.answer(request, outcome, b"".join(request.stream) if outcome.reads else b"")  # type: ignore[arg-type]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        outcome, body = self.next(), b""
        if outcome.reads:
            body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        return self.answer(request, outcome, body)

    def next(self) -> Outcome:
        return self.outcomes.pop(0) if self.outcomes else Outcome()

    def answer(self, request: httpx.Request, outcome: Outcome, body: bytes) -> httpx.Response:
        timeout = {phase: float(request.extensions["timeout"].get(phase)) for phase in PHASES}
        extensions = request.extensions["attempt"], len(request.extensions["retries"])
        headers = sorted(request.headers.items())
        self.events.append((request.method, str(request.url), headers, body, timeout, extensions))
        self.clock.advance(outcome.seconds)
        if outcome.error:
            raise outcome.error("from the script")
        stream = Pieces(outcome.pieces, self.clock, self.events)
        return httpx.Response(outcome.status, headers=outcome.headers, stream=stream)


PHASES = ("connect", "read", "write", "pool")
SECONDS = st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0, 5.0])
ERRORS = [httpx.ReadTimeout, httpx.ConnectError, httpx.RemoteProtocolError, httpx.ProxyError,
          httpx.UnsupportedProtocol, httpx.PoolTimeout, httpx.WriteError, ValueError]  # fmt: skip
HEADERS = [{"Retry-After": value} for value in ("0", "1", "7", "99", "301", "soon")]
HEADERS += [
    {"Retry-After": "Wed, 21 Oct 2026 07:28:09 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}
]
HEADERS += [{"Retry-After-Ms": "2500.5"}, {"Set-Cookie": "a=b"}, {"Location": "/on"}]
BODIES = st.one_of(
    st.lists(st.tuples(st.binary(max_size=9), SECONDS), max_size=3),
    st.tuples(st.tuples(st.just(b"begun"), SECONDS), st.tuples(st.sampled_from(ERRORS), SECONDS)),
    st.just([(bytes(40_000), 0.0), (bytes(40_000), 0.0)]),
)
OUTCOMES = st.one_of(
    st.builds(
        Outcome,
        seconds=SECONDS,
        reads=st.booleans(),
        status=st.sampled_from([200, 204, 302, 303, 307, 404, 408, 429, 500, 503, 503]),
        headers=st.sampled_from([{}, {}, {}, *HEADERS]),
        pieces=BODIES.map(list),
    ),
    st.builds(Outcome, seconds=SECONDS, reads=st.booleans(), error=st.sampled_from(ERRORS)),
    st.builds(
        Outcome,
        status=st.sampled_from([200, 503]),
        headers=st.just({"Content-Encoding": "gzip"}),
        pieces=st.integers(0, len(ZIPPED)).map(lambda cut: [(ZIPPED[:cut], 0.1)]),
    ),
)


def perhaps(**options: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the options."""
    return st.fixed_dictionaries({}, optional=options)


POLICIES = perhaps(
    max_attempts=st.integers(1, 5),
    total_timeout=st.sampled_from([0.2, 1.0, 3.0, 10.0]),
    methods=st.just({"POST"}),
    max_retry_after=st.sampled_from([0.0, 8.0]),
    should_retry=st.sampled_from([True, False, None]).map(lambda yes: lambda request, seen: yes),
    status_codes=st.just({200, 404}),
)
CALLS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "GET", "PUT", "POST", "HEAD"]),
        "body": st.sampled_from([None, None, "bytes", "once"]),
        "manner": st.sampled_from(["whole", "whole", "read", "left"]),
        "raises": st.booleans(),
        "budget": st.sampled_from([None, None, 0, 1]),
    }
)


class Story:
    """One call and all that can be seen of it, in the flavour's own way."""

    def __init__(self, clock: FakeClock, flavour: Flavour) -> None:
        self.clock, self.flavour = clock, flavour
        self.events: list[Any] = []
        clock.now, clock.delays = 1000.0, []

    def hooks(self, raises: bool) -> dict[str, list[Any]]:
        """Hooks that write down what they see; the response's one may raise for status."""

        def on_response(response: httpx.Response) -> None:
            self.events.append(("response", response.status_code))
            if raises:
                response.raise_for_status()

        def on_retry(failed: FailedAttempt) -> None:
            self.events.append(("retry", failed.attempt, failed.delay, failed.reason))
            failed.request.headers["X-Attempt"] = str(failed.attempt + 1)

        def on_request(request: httpx.Request) -> None:
            self.events.append(("request", request.extensions["attempt"]))

        hooks = {"request": on_request, "response": on_response, "retry": on_retry}
        return {name: [self.flavour.hook(hook)] for name, hook in hooks.items()}

    async def tell(
        self, outcomes: list[Outcome], policy: dict[str, Any], call: dict[str, Any]
    ) -> None:
        """Make the call; then nothing more happens."""
        if call["budget"] is not None:
            policy = {**policy, "budget": RetryBudget(burst=call["budget"], ratio=0.0)}
        client = self.flavour.client(
            transport=Script(list(outcomes), self.clock, self.events),
            retry=RetryPolicy(**policy),
            event_hooks=self.hooks(call["raises"]),
            follow_redirects=True,
        )
        options = {}
        if call["body"]:
            once = self.flavour.generator([b"some ", b"body"])
            options["content"] = once if call["body"] == "once" else b"some body"
        asked = Asked(call["method"], "/a?b=c", call["manner"])
        await ask(self.flavour, client, "http://host", asked, options)
        self.end(asked.outcome)
        await self.flavour.close(client)

    def end(self, outcome: Any) -> None:
        """Write down the result."""
        self.events += [self.clock.now, self.clock.delays, type(outcome)]
        if isinstance(outcome, Exception):
            self.events += [str(outcome), getattr(outcome, "__notes__", [])]
        else:
            retries = [
                (one.attempt, one.delay, one.reason) for one in outcome.extensions["retries"]
            ]
            self.events += [outcome.status_code, retries, str(outcome.request.url)]
            self.events += [hasattr(outcome, "_content") and outcome.content, outcome.is_closed]


@pytest.fixture
def stories(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Tells the story of a call in one flavour: events, result and log."""
    caplog.set_level(logging.INFO, "httpx_production")

    def tell(name: str, *plan: Any) -> list[Any]:
        caplog.clear()
        monkeypatch.setattr(retry, "uniform", random.Random(7).uniform)
        story = Story(clock, Flavour(name))
        run: Callable[[], Awaitable[None]] = partial(story.tell, *plan)
        drive(run) if name == "sync" else anyio.run(run, backend=name)
        log = [(record.levelname, record.getMessage()) for record in caplog.records]
        return [*story.events, *log]

    return tell


@settings(
    max_examples=AMOUNT // 3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(outcomes=st.lists(OUTCOMES, max_size=6), policy=POLICIES, call=CALLS)
def test_all_flavours_tell_the_same_story(stories, outcomes, policy, call):
    """Attempts, waits, hooks, bodies sent, result, notes and log lines are equal in all three."""
    sync, *others = (stories(name, outcomes, policy, call) for name in FLAVOURS)
    for other in others:
        assert other == sync
