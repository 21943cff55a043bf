"""Other processes and other event loops: each its own connections, each answer its own."""

import asyncio
import contextlib
import gc
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from h2_peer import H2Peer
from helpers import run_program
from servers import (
    Connection,
    Received,
    ScriptedServer,
    Step,
    answer,
    chunked,
    client_context,
    write_ca,
)

import httpx_production


def slow_echo(request: Received) -> Step:
    return answer(200, request.target.encode(), delay=0.01)


@contextlib.contextmanager
def serving(kind: str) -> Iterator[Any]:
    server: Any = H2Peer() if kind == "http2" else ScriptedServer(slow_echo, tls=kind == "https")
    with server:
        yield server


def paths(server: Any) -> list[str]:
    """Of the requests that arrived, in order."""
    requests = server.requests
    return [one.target if isinstance(one, Received) else one[1] for one in requests]


KINDS = ["http", "https", "http2"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio", "trio"])


# --- fork ----------------------------------------------------------------------------------------

COMMON = """
import atexit
faulthandler.cancel_dump_traceback_later()  # its thread is not there in a child: that would hang
signal.alarm(14)
warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
flavour = {flavour!r}
if flavour == "sync":
    client = ProductionHTTPClient(**options, timeout=3)
    def ask(*paths):
        return [client.get(url + path).text for path in paths]
    def end():
        client.close()
else:
    client = AsyncProductionHTTPClient(**options, timeout=4)
    def run(function):
        return anyio.run(function, backend=flavour)
    def ask(*paths):
        async def main():
            return [(await client.get(url + path)).text for path in paths]
        return run(main)
    def end():
        run(client.aclose)
pids = []
@atexit.register
def kill():
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
def fork(function):
    if pid := os.fork():
        pids.append(pid)
        return pid
    signal.alarm(8)
    try:
        function()
        os._exit(0)
    except BaseException as exc:
        print(repr(exc), file=sys.stderr, flush=True)
        os._exit(1)
def wait(*children):
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    pids[:] = [pid for pid in pids if pid not in children]
    return codes
"""

ASK = """
def series(who):
    wanted = [f"/{who}/{i}" for i in range(15)]
    assert ask(*wanted) == wanted
assert ask("/warm-up") == ["/warm-up"]
children = [fork(lambda k=k: series(f"child{k}")) for k in range(2)]
series("parent")
print(wait(*children))
"""


@each_kind
@each_flavour
def test_parent_and_children_get_their_own_answers(flavour: str, kind: str, tmp_path: Path) -> None:
    """A client with an idle connection is forked twice: all three ask at once."""
    program = COMMON.format(flavour=flavour) + ASK
    with serving(kind) as server:
        assert run_program(program, server.url, write_ca(tmp_path / "ca")) == "[0, 0]\n"
        assert set(Counter(paths(server)).values()) == {1}
        assert len(paths(server)) == 46


CLOSE = """
assert ask("/1") == ["/1"]
def child():
    assert ask("/child") == ["/child"]
    end()
print(wait(fork(child), fork(end), fork(gc.collect)))
assert ask("/2", "/3") == ["/2", "/3"]
print(client.pool_stats().connections)
"""


@each_kind
def test_a_child_leaves_the_parent_s_connections_alone(kind: str, tmp_path: Path) -> None:
    """It closes its client: no close_notify, no GOAWAY; the parent goes on where it was."""
    program = COMMON.format(flavour="sync") + CLOSE
    with serving(kind) as server:
        printed = run_program(program, server.url, write_ca(tmp_path / "ca"))
        assert printed == "[0, 0, 0]\n1\n"
        assert paths(server) == ["/1", "/child", "/2", "/3"]
        assert server.connections == 2


HELD = """
response = client.send(client.build_request("GET", url + "/held"), stream=True)
def child():
    assert client.pool_stats().connections == 0, client.pool_stats()
    response.close()
    assert ask("/child") == ["/child"]
print(wait(fork(child)))
print(response.read().decode())
assert ask("/parent") == ["/parent"]
print(client.pool_stats().in_use)
"""


@each_kind
def test_a_response_that_was_being_read_stays_the_parent_s(kind: str, tmp_path: Path) -> None:
    """The child starts with an empty pool, and closing its copy says nothing to the server."""
    program = COMMON.format(flavour="sync") + HELD
    with serving(kind) as server:
        printed = run_program(program, server.url, write_ca(tmp_path / "ca"))
        assert printed == "[0]\n/held\n0\n"


WITHOUT_STDIN = """
os.close(0)  # as a daemon's: the next descriptor gets its number
request = client.build_request("GET", url + "/held", timeout=0.3)
response = client.send(request, stream=True)
assert response.extensions["network_stream"].get_extra_info("socket").fileno() == 0
fork(signal.pause)
try:
    response.read()
except httpx.ReadTimeout:
    print(client.get(url + "/is-closed").text)
"""


def test_a_child_that_lives_on_keeps_no_connection_open(tmp_path: Path) -> None:
    """Once the parent has closed it: on descriptor 0, too, where a read has its limit as well."""
    closed = threading.Event()

    def wait_for_the_end(connection: Connection) -> None:
        connection.hang()
        closed.set()

    def serve(request: Received) -> Step:
        if request.path == "/held":
            return chunked(b"part", end=b"", then=wait_for_the_end)
        return answer(200, str(closed.wait(2)).encode())

    program = COMMON.format(flavour="sync") + WITHOUT_STDIN
    with ScriptedServer(serve) as server:
        assert run_program(program, server.url, write_ca(tmp_path / "ca")) == "True\n"


LOCKED = """
ask("/warm-up")
(locked,) = client._transport._pool.core._loops.values()
inside, leave = threading.Event(), threading.Event()
def step():
    inside.set()
    assert leave.wait(12)
threading.Thread(target=locked.do, args=[step]).start()
assert inside.wait(12)
codes = wait(fork(lambda: ask("/child")))
leave.set()
print(codes)
"""


@each_kind
def test_a_child_has_a_lock_of_its_own(kind: str, tmp_path: Path) -> None:
    """A thread holds the pool's while another one forks."""
    program = COMMON.format(flavour="sync") + LOCKED
    with serving(kind) as server:
        assert run_program(program, server.url, write_ca(tmp_path / "ca"), limit=16) == "[0]\n"


HAMMER = """
import json
over = False
failures = []
def hammer():
    while not over:
        try:
            ask("/hammer")
        except Exception as exc:
            failures.append(repr(exc))
held = [client.send(client.build_request("GET", url + "/held"), stream=True) for _ in range(6)]
for response in held:
    response.read()
threads = [threading.Thread(target=hammer, daemon=True) for _ in range(6)]
for thread in threads:
    thread.start()
codes = []
for k in range(12):
    time.sleep(0.03)
    with client.cookies.jar._cookies_lock:
        child = fork(lambda: ask("/child"))
    codes += wait(child)
over = True
for thread in threads:
    thread.join()
print(json.dumps([codes, failures]))
"""


@pytest.mark.parametrize("kind", ["http", "http2"])
def test_a_child_that_is_forked_in_the_middle_does_not_hang(kind: str, tmp_path: Path) -> None:
    """Six threads are in the pool, and hold its locks: the child's are fresh.

    Others' would stay locked in it, with any client: no thread is in the cookie jar, nor in the
    middle of a TLS handshake, in OpenSSL. So the connections are there before.
    """
    program = COMMON.format(flavour="sync") + HAMMER
    with serving(kind) as server:
        printed = run_program(program, server.url, write_ca(tmp_path / "ca"), limit=16)
        assert json.loads(printed) == [[0] * 12, []]


# --- event loops ---------------------------------------------------------------------------------


def async_client(**options: Any) -> Any:
    options = {"verify": client_context(), "max_attempts": 1, "trust_env": False, **options}
    return httpx_production.AsyncProductionHTTPClient(**options)


PAIRS = [
    ("asyncio", "asyncio"),
    ("trio", "trio"),
    ("asyncio", "trio"),
    ("trio", "asyncio"),
]


@each_kind
@pytest.mark.parametrize("backends", PAIRS, ids="-".join)
def test_a_client_in_a_second_event_loop(kind: str, backends: tuple[str, str]) -> None:
    """One job after another, each in a loop of its own: it works at once and sends once."""
    client = async_client(max_connections=1, timeout=4)
    with serving(kind) as server:

        async def job(name: str) -> list[str]:
            return [(await client.post(f"{server.url}/{name}/{n}")).text for n in range(3)]

        wanted = []
        for number, backend in enumerate([*backends, backends[0]]):
            names = [f"/job{number}/{n}" for n in range(3)]
            assert anyio.run(job, f"job{number}", backend=backend) == names
            wanted += names
        anyio.run(client.aclose, backend=backends[0])
        gc.collect()  # a ResourceWarning would be an error
        assert paths(server) == wanted


@each_kind
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.filterwarnings("ignore:Async generator 'http")
def test_a_response_that_was_left_open_in_an_old_loop(kind: str, backend: str) -> None:
    """Its loop is gone, and it held the only slot: the next loop's request gets one.

    That request closes what the old loop has left, which nobody counts any more.
    """
    client = async_client(max_connections=1, timeout=4)
    left: list[Any] = []
    with serving(kind) as server:

        async def leave() -> None:
            request = client.build_request("GET", f"{server.url}/left")
            left.append(await client.send(request, stream=True))

        async def ask() -> str:
            return str((await client.get(f"{server.url}/x")).text)

        anyio.run(leave, backend=backend)
        sock = left[0].extensions["network_stream"].get_extra_info("socket")
        assert anyio.run(ask, backend=backend) == "/x"
        assert sock.fileno() == -1
        assert client.pool_stats().connections == 1
        assert len(client._transport._pool.core._loops) == 1
        anyio.run(client.aclose, backend=backend)
        stats = client.pool_stats()
        assert (stats.connections, stats.in_use, stats.waiting) == (0, 0, 0)
        left.clear()
        gc.collect()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_that_is_closed_in_another_loop(backend: str) -> None:
    """Closing there closes what the old loop left, and raises nothing."""
    client = async_client()
    with ScriptedServer(slow_echo) as server:

        async def ask() -> int:
            return int((await client.get(server.url)).status_code)

        assert anyio.run(ask, backend=backend) == 200
        anyio.run(client.aclose, backend=backend)
        server.settle()
        gc.collect()


def test_a_loop_that_goes_on_keeps_its_connections() -> None:
    """Two loops in turn are not two runs of one: a Runner's loop finds what it left."""
    client = async_client()
    with ScriptedServer(slow_echo) as server, asyncio.Runner() as runner:

        async def ask() -> int:
            return int((await client.get(server.url)).status_code)

        assert [runner.run(ask()) for _ in range(3)] == [200] * 3
        runner.run(client.aclose())
        assert server.connections == 1
