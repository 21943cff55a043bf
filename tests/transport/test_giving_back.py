"""What a request holds comes back on every way out, whoever takes it and wherever that runs.

Subject: `transport/_locked.py`, `transport/_pool.py`.
"""

import contextlib
import gc
import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from conftest import Flavour
from h2_peer import Gone, H2Peer, Peer
from helpers import (
    ASYNC,
    PROMPT,
    SYNC,
    Callers,
    finished,
    generators_left,
    in_use,
    one_attempt,
    run_program,
    until,
    within,
)
from hyperframe.frame import HeadersFrame, RstStreamFrame
from servers import Received, ScriptedServer, Step, answer, chunked, full_backlog, write_ca

from httpx_production.transport import _http2_protocol, _sockets

pytestmark = [
    pytest.mark.anyio,
    generators_left,
    pytest.mark.filterwarnings("ignore:unclosed"),  # a response that is dropped unclosed is
]


def parts(request: Received) -> Step:
    """Half a body for "/part…", the path for all others."""
    if request.path.startswith("/part"):
        return chunked(b"part", end=b"", then="hang")
    return answer(200, request.path.encode())


def h2_parts(peer: Peer) -> None:
    """The same over HTTP/2."""
    with contextlib.suppress(Gone):
        while True:
            stream = peer.request()
            if peer.paths[stream].startswith("/part"):
                peer.send(peer.head(stream), peer.data(stream, b"part"))
            else:
                peer.echo(stream)


@contextlib.contextmanager
def serving(kind: str, **settings: int) -> Iterator[Any]:
    if kind == "http2":
        with H2Peer(h2_parts, settings=settings) as server:
            yield server
    else:
        with ScriptedServer(parts, tls=kind == "https") as server:
            yield server


async def hold_response(flavour: Flavour, client: Any, url: str, form: str) -> Any:
    """Get a response's headers, and a piece of its body: what holds it."""
    response = await flavour.run(client.send(client.build_request("GET", url), stream=True))
    if form == "unread":
        return response
    chunks: Any = response.iter_raw() if flavour.sync else response.aiter_raw()
    assert (next(chunks) if flavour.sync else await anext(chunks)) == b"part"
    if form == "in a cycle":
        box: dict[str, Any] = {"chunks": chunks, "response": response}
        box["self"] = box
    return response, chunks


async def drop_response(flavour: Flavour, client: Any, url: str, form: str) -> None:
    """Get a response's headers, and a piece of its body, and let it go unclosed."""
    await hold_response(flavour, client, url, form)


FORMS = ["unread", "half read", "in a cycle"]


# --- dropped responses ---------------------------------------------------------------------------


@pytest.mark.time_limit(10)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_a_dropped_response_gives_its_slot_back(
    flavour: Flavour, kind: str, form: str
) -> None:
    """Neither closed nor read to its end: once it is garbage, the only slot is free."""
    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=1)
        for _ in range(3):
            await drop_response(flavour, client, f"{server.url}/part", form)
            gc.collect()
        assert (await flavour.run(client.get(f"{server.url}/x"))).text == "/x"
        await until(lambda: in_use(client) == (0, 0))


@ASYNC
@pytest.mark.time_limit(10)
@pytest.mark.parametrize("form", FORMS)
async def test_dropped_responses_give_their_streams_back(flavour: Flavour, form: str) -> None:
    """All the streams but one are dropped: the next request is sent, without a busy loop."""
    with serving("http2", MAX_CONCURRENT_STREAMS=5) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=2)
        events = await client.send(
            client.build_request("GET", f"{server.url}/part/events"), stream=True
        )
        for number in range(4):
            await drop_response(flavour, client, f"{server.url}/part/{number}", form)
        gc.collect()
        before = time.process_time()
        with within(PROMPT):
            assert (await client.get(f"{server.url}/ping")).text == "/ping"
        assert time.process_time() - before < 1
        assert len(server.peers) == 1
        peer = server.peers[0]
        await until(lambda: len({f.stream_id for f in resets(peer)}) == 4)  # and the server knows
        await events.aclose()
        assert in_use(client) == (0, 0)


def resets(peer: Peer) -> list[Any]:
    return [frame for frame in peer.received if isinstance(frame, RstStreamFrame)]


@pytest.mark.time_limit(12)
@pytest.mark.parametrize("form", ["unread", "in a cycle"])
@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_a_slot_that_the_collector_gives_back_wakes_who_waits(
    flavour: Flavour, kind: str, form: str
) -> None:
    """The waiting request has all the time of the world, and needs none of it."""
    settings = {"MAX_CONCURRENT_STREAMS": 1} if kind == "http2" else {}
    with serving(kind, **settings) as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=6)
        gc.disable()
        try:
            held = [await hold_response(flavour, client, f"{server.url}/part", form)]
            held.append(held)  # only the collector can find it
            async with Callers(flavour) as callers:
                waiting = callers.start(client.get, f"{server.url}/x")
                await until(lambda: client.pool_stats().waiting == 1)
                del held
                gc.collect()
                with within(2.5):
                    (outcome,) = await finished(waiting, seconds=4)
            assert getattr(outcome, "text", outcome) == "/x"
        finally:
            gc.enable()


@SYNC
@pytest.mark.time_limit(12)
async def test_a_slot_dropped_in_another_thread_wakes_who_waits(flavour: Flavour) -> None:
    """The response is let go by a thread that never touches the client again."""
    with serving("http") as server:
        client = one_attempt(flavour, max_connections=1, pool_timeout=6)
        drop = threading.Event()

        def holder() -> None:
            response = client.send(client.build_request("GET", f"{server.url}/part"), stream=True)
            holding.set()
            drop.wait(5)
            del response
            gc.collect()  # httpx's responses are reference cycles

        holding = threading.Event()
        async with Callers(flavour) as callers:
            callers.start(holder)
            assert holding.wait(5)
            waiting = callers.start(client.get, f"{server.url}/x")
            await until(lambda: client.pool_stats().waiting == 1)
            drop.set()
            with within(2.5):
                (outcome,) = await finished(waiting, seconds=4)
        assert getattr(outcome, "text", outcome) == "/x"


# --- wherever it strikes -------------------------------------------------------------------------

IN_A_CYCLE = """
class Box: ...
gc.set_threshold(30, 5, 5)  # gc may run at any allocation; this makes it soon
def main():
    client = ProductionHTTPClient(**options)
    end = time.monotonic() + 4  # on a busy machine, fewer
    for i in range(150):
        if i > 20 and time.monotonic() > end:
            break
        response = client.send(client.build_request("GET", url + "/part"), stream=True)
        chunks = response.iter_raw()
        next(chunks)
        box = Box()
        box.me, box.chunks, box.response = box, chunks, response
        del box, chunks, response
        assert client.get(url + "/x").text == "/x"
    gc.collect()
    assert client.get(url + "/x").text == "/x"
    print(client.pool_stats().in_use)
main()
"""

IN_A_CYCLE_ASYNC = """
warnings.simplefilter("ignore")  # trio's, about httpx's generators
class Box: ...
gc.set_threshold(30, 5, 5)
async def main():
    client = AsyncProductionHTTPClient(**options)
    end = time.monotonic() + 4  # on a busy machine, fewer
    for i in range(150):
        if i > 20 and time.monotonic() > end:
            break
        response = await client.send(client.build_request("GET", url + "/part"), stream=True)
        chunks = response.aiter_raw()
        await anext(chunks)
        box = Box()
        box.me, box.chunks, box.response = box, chunks, response
        del box, chunks, response
        assert (await client.get(url + "/x")).text == "/x"
    for _ in range(100):  # trio takes a few turns to finalize generators in generators
        gc.collect()
        assert (await client.get(url + "/x")).text == "/x"
        if not client.pool_stats().in_use:
            break
    print(client.pool_stats().in_use)
    await client.aclose()
anyio.run(main, backend={backend!r})
"""


@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_the_collector_may_strike_inside_a_request(
    flavour: Flavour, kind: str, tmp_path: Path
) -> None:
    """Half-read responses in reference cycles are finalized in the middle of other requests."""
    program = IN_A_CYCLE if flavour.sync else IN_A_CYCLE_ASYNC.format(backend=flavour.name)
    with serving(kind) as server:
        assert run_program(program, server.url, write_ca(tmp_path / "ca")) == "0\n"


IN_A_SIGNAL_HANDLER = """
client = ProductionHTTPClient(**options)
asked = 0
def ask(*args):
    global asked
    asked += 1
    client.pool_stats()
signal.signal(signal.SIGALRM, ask)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
end = time.monotonic() + 2
while time.monotonic() < end:
    assert client.get(url + "/x").text == "/x"
    with client.stream("GET", url + "/part"):
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
assert asked > 50, asked
print(client.pool_stats().in_use)
"""

DROPPED_IN_A_SIGNAL_HANDLER = """
client = ProductionHTTPClient(**options)
held = []
def drop(*args):
    held.clear()
signal.signal(signal.SIGALRM, drop)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
end = time.monotonic() + 2
while time.monotonic() < end:
    response = client.send(client.build_request("GET", url + "/part"), stream=True)
    chunks = response.iter_raw()
    next(chunks)
    held.append(chunks)
    del response, chunks
    assert client.get(url + "/x").text == "/x"
signal.setitimer(signal.ITIMER_REAL, 0)
held.clear()
gc.collect()
assert client.get(url + "/x").text == "/x"
print(client.pool_stats().in_use)
"""


@SYNC
@pytest.mark.parametrize("kind", ["http", "http2"])
@pytest.mark.parametrize("program", [IN_A_SIGNAL_HANDLER, DROPPED_IN_A_SIGNAL_HANDLER])
async def test_a_signal_handler_may_touch_the_pool(
    flavour: Flavour, kind: str, program: str, tmp_path: Path
) -> None:
    """`pool_stats()` and dropped responses in a handler that interrupts the pool anywhere."""
    with serving(kind) as server:
        assert run_program(program, server.url, write_ca(tmp_path / "ca")) == "0\n"


# --- a response that is closed while somebody reads it -------------------------------------------


@ASYNC
@pytest.mark.time_limit(10)
@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_closing_a_response_ends_its_reader(flavour: Flavour, kind: str) -> None:
    """The reader has no limit and the server is silent: it ends at once, with an exception."""
    with serving(kind) as server:
        client = one_attempt(flavour, read_timeout=None)
        response = await client.send(client.build_request("GET", f"{server.url}/part"), stream=True)
        got: list[bytes] = []

        async def read() -> None:
            async for chunk in response.aiter_raw():
                got.append(chunk)

        async with Callers(flavour) as callers:
            reader = callers.start(read)
            await until(lambda: got)
            await anyio.sleep(0.05)
            with within(PROMPT):
                await response.aclose()
                (outcome,) = await finished(reader, seconds=3)
            assert isinstance(outcome, Exception)
        assert (await client.get(f"{server.url}/x")).text == "/x"
        assert in_use(client) == (0, 0)


@ASYNC
@pytest.mark.time_limit(10)
async def test_a_closed_response_leaves_the_loop_idle_when_the_server_goes(
    flavour: Flavour,
) -> None:
    """Reader, close, and then the connection's end: neither a standstill nor a busy loop."""
    ended = threading.Event()

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.send(peer.head(stream), peer.data(stream, b"event"))
        with contextlib.suppress(Gone):
            peer.until(RstStreamFrame)
            time.sleep(0.1)
        peer.end()
        ended.set()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=None)
        response = await client.send(client.build_request("GET", server.url), stream=True)
        got: list[bytes] = []

        async def read() -> None:
            async for chunk in response.aiter_raw():
                got.append(chunk)

        async with Callers(flavour) as callers:
            reader = callers.start(read)
            await until(lambda: got)
            await response.aclose()
            await until(ended.is_set)
            before = time.process_time()
            with within(2.5):
                await anyio.sleep(0.5)
                (outcome,) = await finished(reader, seconds=1)
            assert time.process_time() - before < 0.3
            assert isinstance(outcome, Exception)


@SYNC
@pytest.mark.time_limit(10)
@pytest.mark.parametrize("kind", ["http", "http2"])
async def test_closing_a_response_in_another_thread(flavour: Flavour, kind: str) -> None:
    """The thread that reads ends when the server is gone, at the latest, and loses no slot."""
    with serving(kind) as server:
        client = one_attempt(flavour, read_timeout=3, max_connections=1)
        response = client.send(client.build_request("GET", f"{server.url}/part"), stream=True)
        got: list[bytes] = []

        def read() -> None:
            for chunk in response.iter_raw():
                got.append(chunk)

        async with Callers(flavour) as callers:
            reader = callers.start(read)
            await until(lambda: got)
            with within(PROMPT):
                response.close()
            (outcome,) = await finished(reader, seconds=5)
            assert isinstance(outcome, httpx.ReadError)
            assert kind == "http" or str(outcome) == "the response was closed"
        assert client.get(f"{server.url}/x").text == "/x"
        assert in_use(client) == (0, 0)


@ASYNC
@pytest.mark.time_limit(10)
@pytest.mark.parametrize("first", ["/closed", "/neighbour"])
async def test_closing_a_response_leaves_the_neighbours_reading(
    flavour: Flavour, first: str
) -> None:
    """Whichever of the two reads for both: its reader ends at once, the neighbour goes on."""
    streams: dict[str, int] = {}
    ended = threading.Event()

    def script(peer: Peer) -> None:
        while len(streams) < 2:
            stream = peer.request()
            streams[peer.paths[stream]] = stream
            if peer.paths[stream] == "/closed":
                peer.send(peer.head(stream), peer.data(stream, b"part"))
        peer.until(RstStreamFrame, streams["/closed"])
        assert ended.wait(5)
        peer.echo(streams["/neighbour"])
        peer.rest()

    with H2Peer(script) as server:
        client = one_attempt(flavour, read_timeout=4)
        request = client.build_request("GET", f"{server.url}/closed")
        async with Callers(flavour) as callers:
            if first == "/neighbour":
                neighbour = callers.start(client.get, f"{server.url}/neighbour")
                await until(lambda: streams)
            response = await client.send(request, stream=True)
            reader = callers.start(response.aread)
            await anyio.wait_all_tasks_blocked()
            if first == "/closed":
                neighbour = callers.start(client.get, f"{server.url}/neighbour")
                await until(lambda: len(streams) == 2)
                await anyio.wait_all_tasks_blocked()
            await response.aclose()
            (outcome,) = await finished(reader, seconds=PROMPT)
            assert isinstance(outcome, Exception)
            ended.set()
            (answer,) = await finished(neighbour, seconds=3)
            assert getattr(answer, "text", answer) == "/neighbour"


# --- Ctrl-C --------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """KeyboardInterrupt in this thread, by a signal, while the block runs."""

    def handler(*args: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGUSR1, handler)
    main = threading.get_ident()
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt), within(seconds + PROMPT):
            yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)


@SYNC
@pytest.mark.parametrize("place", ["wait", "connect", "handshake", "headers", "body", "upload"])
async def test_ctrl_c_gives_everything_back(flavour: Flavour, place: str) -> None:
    """Wherever a sync call waits, KeyboardInterrupt comes out at once and no slot is lost."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ScriptedServer(parts))
        client = one_attempt(
            flavour, max_connections=1, connect_timeout=9, write_timeout=9, pool_timeout=9
        )
        target, options = "/part", {}
        if place == "connect":
            target = stack.enter_context(full_backlog())
        elif place == "handshake":
            silent = stack.enter_context(ScriptedServer([Step(read="nothing", then="hang")]))
            target = silent.url.replace("http:", "https:")
        elif place in ("headers", "upload"):
            silent = stack.enter_context(ScriptedServer([Step(read="head", then="hang")]))
            target, options = silent.url, {"content": b"x" * 30_000_000 * (place == "upload")}
        url = target if target.startswith("http") else server.url + target
        if place == "wait":
            with client.stream("GET", f"{server.url}/part"), interrupted_after(0.2):
                client.get(url)
        else:
            with interrupted_after(0.2):
                client.post(url, **options) if options else client.get(url)
        gc.collect()
        assert in_use(client) == (0, 0)
        assert client.get(f"{server.url}/x").text == "/x"


class CtrlC:
    """KeyboardInterrupt at the beginning of the n-th function of httpcore's, h11's, or ours."""

    PLACES = ("httpcore", "/h11/", "httpx_production/transport")

    def __init__(self, number: int) -> None:
        self.left = number
        self.before = sys.gettrace()  # coverage's

    def __enter__(self) -> None:
        sys.settrace(self)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self.before)

    def __call__(self, frame: Any, event: str, arg: object) -> None:
        if any(place in frame.f_code.co_filename for place in self.PLACES):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@SYNC
@pytest.mark.time_limit(90)  # some hundred full garbage collections
@pytest.mark.parametrize("kind", ["http", "https", "http2", "proxy"])
@pytest.mark.filterwarnings("ignore:coroutine")  # made, and then not begun
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a finalizer
async def test_ctrl_c_in_any_function_hangs_no_later_request(flavour: Flavour, kind: str) -> None:
    """Neither its own way out, nor those that are given the same connection."""
    with serving(kind) as server:
        is_proxy = kind == "proxy"
        client = one_attempt(flavour, max_connections=1, proxy=server.url if is_proxy else None)
        url = "http://origin.test" if is_proxy else server.url
        for number in itertools.count(1):
            ctrl_c = CtrlC(number)
            with contextlib.suppress(KeyboardInterrupt), ctrl_c:
                client.get(f"{url}/x")
            gc.collect()  # the exception has a traceback that holds the response
            assert client.get(f"{url}/y").text.endswith("/y")
            assert in_use(client) == (0, 0)
            if ctrl_c.left > 0:
                break
        assert number > 50


@SYNC
async def test_ctrl_c_sends_nothing_twice_over_http2(flavour: Flavour) -> None:
    """It strikes when the socket has taken the request, before that is noted."""
    streams: list[int] = []

    def script(peer: Peer) -> None:
        with contextlib.suppress(Gone):
            while True:
                frame = peer.read()
                if isinstance(frame, HeadersFrame):
                    streams.append(frame.stream_id)
                    peer.echo(frame.stream_id)

    def send(self: Any, data: Any) -> int:
        sent: int = original(self, data)
        if interrupts:
            server.wait(lambda: streams == [1, 3])
            raise interrupts.pop()
        return sent

    original, interrupts = _sockets.TLSIO.send, [KeyboardInterrupt]
    with H2Peer(script) as server, pytest.MonkeyPatch.context() as patch:
        client = one_attempt(flavour)
        assert client.get(f"{server.url}/x").text == "/x"
        patch.setattr(_sockets.TLSIO, "send", send)
        with pytest.raises(KeyboardInterrupt):
            client.get(f"{server.url}/y")
        gc.collect()
        assert in_use(client) == (0, 0)
        await flavour.close(client)
        server.wait(lambda: server.peers[0]._sock.fileno() < 0)
    assert streams == [1, 3]


@SYNC
@pytest.mark.parametrize("step", ["socket", "protocol"])
async def test_ctrl_c_while_an_answer_is_taken_in_over_http2(flavour: Flavour, step: str) -> None:
    """What the socket gave is lost then: TLS, and the table of headers, go on without it."""

    def receive(self: Any, given: Any) -> Any:
        result = original(self, given)
        if armed and isinstance(result, bytes):
            armed.clear()
            raise KeyboardInterrupt
        return result

    owner: Any = _sockets.SocketIO if step == "socket" else _sockets.TLSIO
    original, armed = owner.receive, [True]
    with H2Peer(h2_parts) as server, pytest.MonkeyPatch.context() as patch:
        client = one_attempt(flavour)
        assert client.get(f"{server.url}/x").text == "/x"
        patch.setattr(owner, "receive", receive)
        with pytest.raises(KeyboardInterrupt):
            client.get(f"{server.url}/y")
        gc.collect()
        assert client.get(f"{server.url}/z").text == "/z"
        assert len(server.peers) == 2
        assert in_use(client) == (0, 0)
        await flavour.close(client)


@SYNC
@pytest.mark.parametrize("step", ["taken from h2", "sent by TLS"])
async def test_ctrl_c_on_the_way_to_the_socket_over_http2(flavour: Flavour, step: str) -> None:
    """A frame that is lost, a TLS record that is sent twice: the server can't go on with either."""

    def take(self: Any) -> bytes:
        data: bytes = original(self)
        if armed and data:
            armed.clear()
            raise KeyboardInterrupt
        return data

    def send(self: Any, data: Any) -> Any:
        if not armed:
            return original(self, data)
        if armed.pop():  # full
            return 0
        original(self, data)
        raise KeyboardInterrupt

    owner: Any = _http2_protocol.HTTP2Protocol if step == "taken from h2" else _sockets.SocketIO
    name, spy = ("data_to_send", take) if step == "taken from h2" else ("send", send)
    original, armed = getattr(owner, name), list[bool]()
    with H2Peer(h2_parts) as server, pytest.MonkeyPatch.context() as patch:
        client = one_attempt(flavour)
        assert client.get(f"{server.url}/x").text == "/x"
        patch.setattr(owner, name, spy)
        armed += [False, True, True]
        with pytest.raises(KeyboardInterrupt):
            client.get(f"{server.url}/y")
        gc.collect()
        assert client.get(f"{server.url}/z").text == "/z"
        assert len(server.peers) == 2
        assert in_use(client) == (0, 0)


UPLOAD_SYNC = """
def main():
    with ProductionHTTPClient(**options, timeout=30) as client:
        client.post(url, content=b"x" * 50_000_000)
"""
UPLOAD_ASYNC = """
async def upload():
    async with AsyncProductionHTTPClient(**options, timeout=30) as client:
        await client.post(url, content=b"x" * 50_000_000)
def main():
    {run}
"""
INTERRUPTED = """
threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()
started = time.monotonic()
try:
    main()
except BaseException as exc:
    took = time.monotonic() - started
    print(type(exc).__name__, "at once" if took < 10 else f"after {took:.1f} s")
"""
RUN = {
    "asyncio": "import asyncio; asyncio.run(upload())",
    "trio": "import trio; trio.run(upload)",
}


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_ctrl_c_in_an_upload_is_a_keyboard_interrupt(
    flavour: Flavour, kind: str, tmp_path: Path
) -> None:
    """No exception group around it, no wait for the write timeout; the server doesn't read."""
    main = UPLOAD_SYNC if flavour.sync else UPLOAD_ASYNC.format(run=RUN[flavour.name])

    def never_reads(peer: Peer) -> None:
        from hyperframe.frame import WindowUpdateFrame

        peer.send(WindowUpdateFrame(0, window_increment=2**30))
        peer.request()
        stop.wait(15)

    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        server: Any = (
            H2Peer(never_reads, settings={"INITIAL_WINDOW_SIZE": 2**30})
            if kind == "http2"
            else ScriptedServer([Step(read="head", then="hang")], tls=kind == "https")
        )
        stack.enter_context(server)
        stack.callback(stop.set)
        printed = run_program(main + INTERRUPTED, server.url, write_ca(tmp_path / "ca"))
    assert printed == "KeyboardInterrupt at once\n"


@pytest.mark.parametrize("kind", ["http", "https", "http2"])
async def test_nothing_is_in_use_after_any_exit(flavour: Flavour, kind: str) -> None:
    """Read, closed, half read and closed, timed out, closed twice: nothing in use afterwards."""
    with serving(kind) as server:
        client = one_attempt(flavour, max_connections=2, pool_timeout=1)
        for _ in range(3):
            await flavour.run(client.get(f"{server.url}/x"))
            request = client.build_request("GET", f"{server.url}/part")
            response = await flavour.run(client.send(request, stream=True))
            for _ in range(2):
                await flavour.close(response)
            limits = httpx.Timeout(5.0, read=0.1)
            with pytest.raises(httpx.ReadTimeout):
                await flavour.run(client.get(f"{server.url}/part", timeout=limits))
            async with flavour.using(client.stream("GET", f"{server.url}/part")) as response:
                chunks = flavour.chunks(response)
                await anext(chunks)
                await chunks.aclose()
            assert in_use(client) == (0, 0)
