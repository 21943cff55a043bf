"""Broken, hostile and unlucky servers: the right complete answer in the end, or the true error.

Waits take no time here (`clock`); everything else is real, sockets and TLS included.
"""

import contextlib
import gzip
import os
import random
import socket
import zlib
from typing import Any

import anyio
import brotli
import httpx
import pytest
from servers import (
    ScriptedServer,
    Step,
    answer,
    chunked,
    client_context,
    cut,
    drip,
    fin,
    forward,
    hang,
    message,
    redirect,
    refused_port,
    reset,
)

from httpx_production import RetryPolicy

pytestmark = [
    pytest.mark.anyio,
    # httpx and httpcore leave async generators to the garbage collector when a body breaks.
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]

TEXT = bytes(random.Random(1).choices(b"abcdefgh \n", k=20_000))
GZIP = gzip.compress(TEXT)
GZIPPED = {"Content-Encoding": "gzip"}
BOMB = gzip.compress(bytes(30_000_000))  # 29 KB on the wire
ARRIVAL = 0.2  # seconds until bytes that nobody asked for have arrived, on a busy machine too
EVIL = message(200, b"not the answer")


def gzipped(data: bytes, encoding: str = "gzip", **step: Any) -> Step:
    """A 200 with this compressed body; Content-Length is right."""
    return answer(200, data, {"Content-Encoding": encoding}, **step)


# --- a fault, then a right answer -----------------------------------------------------------------

BROKEN, LOST = httpx.RemoteProtocolError, httpx.ReadError
ENDLESS = b"A: " + b"b" * 9999 + b"\r\n"

FAULTS: dict[str, tuple[Step, type[Exception]]] = {
    "reset on accept": (reset(read="nothing"), httpx.TransportError),
    "closed on accept": (fin(read="nothing"), BROKEN),
    "reset after the request": (reset(), LOST),
    "closed after the request": (fin(), BROKEN),
    "stalled": (hang(), httpx.ReadTimeout),
    "garbage": (Step(send=[os.urandom(64) + b"\r\n\r\n"], then="fin"), BROKEN),
    "another protocol": (Step(send=[b"SSH-2.0-OpenSSH_9.6\r\n"], then="fin"), BROKEN),
    "half a status line": (Step(send=[b"HTTP/1.1 20"], then="fin"), BROKEN),
    "half a head, reset": (Step(send=[b"HTTP/1.1 200 OK\r\nA: b\r\n"], then="reset"), LOST),
    "a header of 200 KB": (answer(headers={"X": "y" * 200_000}), BROKEN),
    "a head without end": (Step(send=[b"HTTP/1.1 200 OK\r\n", *[ENDLESS] * 30]), BROKEN),
    "an illegal header": (answer(headers={"Bad Name": "x"}), BROKEN),
    "a length that is no number": (answer(headers={"Content-Length": "abc"}), BROKEN),
    "a negative length": (answer(204, headers={"Content-Length": "-1"}), BROKEN),
    "two lengths": (answer(headers={"Content-Length": "1"}), BROKEN),
    "101 that nobody asked for": (Step(send=[b"HTTP/1.1 101 Switching Protocols\r\n\r\n"]), BROKEN),
    "body cut by FIN": (cut(TEXT, 5000), BROKEN),
    "body cut by RST": (cut(TEXT, 5000, then="reset"), LOST),
    "no byte of the body": (cut(TEXT, 0), BROKEN),
    "the last byte missing": (cut(TEXT, len(TEXT) - 1), BROKEN),
    "body stalls": (cut(TEXT, 5000, then="hang"), httpx.ReadTimeout),
    "cut in a chunk": (chunked(TEXT, end=b"64\r\nabc", then="fin"), BROKEN),
    "cut between chunks": (chunked(TEXT, TEXT, end=b"", then="fin"), BROKEN),
    "cut before its last CRLF": (chunked(TEXT, end=b"0\r\n", then="fin"), BROKEN),
    "a chunk of no size": (chunked(TEXT, end=b"zz\r\n"), BROKEN),
    "gzip cut by FIN": (cut(GZIP, len(GZIP) // 2, GZIPPED), BROKEN),
    "gzip cut by RST": (cut(GZIP, len(GZIP) // 2, GZIPPED, then="reset"), LOST),
    "gzip cut in a chunk": (
        chunked(GZIP[:99], end=b"64\r\n" + GZIP[99:102], headers=GZIPPED, then="fin"), BROKEN),
    "gzip that ends early": (gzipped(GZIP[:-300]), BROKEN),
    "gzip without its checksum": (gzipped(GZIP[:-8]), BROKEN),
    "gzip that ends early, chunked": (chunked(GZIP[:-300], headers=GZIPPED), BROKEN),
    "deflate that ends early": (gzipped(zlib.compress(TEXT)[:-300], "deflate"), BROKEN),
    "brotli that ends early": (gzipped(brotli.compress(TEXT)[:-300], "br"), BROKEN),
    "two encodings, the inner one ends early": (
        gzipped(gzip.compress(zlib.compress(TEXT)[:-300]), "deflate, gzip"), BROKEN),
}  # fmt: skip

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda name: name.replace(" ", "-"))


@each_fault
async def test_a_get_gets_the_complete_answer_in_the_end(flavour, clock, fault):
    """Each fault, thrice; then the whole right body and a history of three."""
    step, _ = FAULTS[fault]
    with ScriptedServer([step, step, step, answer(200, TEXT)]) as server:
        client = flavour.client(read_timeout=0.1 if step.then == "hang" else 5.0)
        response = await flavour.run(client.get(server.url))
    assert response.content == TEXT
    assert len(response.extensions["retries"]) == len(clock.delays) == 3


@each_fault
async def test_the_last_failure_is_an_httpx_exception(flavour, clock, fault):
    """Attempts run out: httpx's exception with the note; a POST is sent once, to the same end."""
    step, kind = FAULTS[fault]
    with ScriptedServer([step] * 3) as server:
        timeout = 0.1 if step.then == "hang" else 5.0
        client = flavour.client(max_attempts=2, read_timeout=timeout, max_connections=1)
        outcome = await flavour.outcome(client.get, server.url)
        assert isinstance(outcome, kind)
        assert "gave up on GET" in "".join(outcome.__notes__)
        assert isinstance(await flavour.outcome(client.post, server.url, content=b"pay"), kind)
        assert max(server.connections, len(server.requests)) == 3
        assert len(clock.delays) == 1
        assert (await flavour.run(client.get(server.url))).text == "ok"  # the slot is free


@pytest.mark.parametrize("fault", ["body cut by FIN", "gzip that ends early", "cut in a chunk"])
async def test_a_stream_that_breaks_raises_instead_of_ending(flavour, clock, fault):
    """After the hand-over nothing is retried: what was read is followed by an exception."""
    step, kind = FAULTS[fault]
    received: list[bytes] = []
    with ScriptedServer([step]) as server:
        client = flavour.client(max_connections=1)

        async def consume() -> None:
            async with flavour.using(client.stream("GET", server.url)) as response:
                async for chunk in flavour.chunks(response):
                    received.append(chunk)

        outcome = await flavour.outcome(consume)
        assert isinstance(outcome, kind)
        assert (TEXT + b"abc").startswith(b"".join(received))
        assert len(server.requests) == 1
        assert (await flavour.run(client.get(server.url))).text == "ok"


@pytest.mark.parametrize("fault", ["reset after the request", "stalled", "a header of 200 KB"])
async def test_a_stream_is_retried_until_the_hand_over(flavour, clock, fault):
    """What fails before `client.stream()` hands the response over is retried."""
    with ScriptedServer([FAULTS[fault][0], answer(503), answer(200, TEXT)]) as server:
        client = flavour.client(read_timeout=0.1)
        async with flavour.using(client.stream("GET", server.url)) as response:
            assert await flavour.read(response) == TEXT
    assert len(response.extensions["retries"]) == 2


# --- bodies that can't be trusted -----------------------------------------------------------------


async def test_corrupt_gzip_is_an_error_and_tried_once(flavour, clock):
    """A DecodingError is no network failure: the same bytes would come again."""
    wrong = GZIP[:100] + b"\0" * 50 + GZIP[150:]
    with ScriptedServer([gzipped(wrong)]) as server:
        outcome = await flavour.outcome(flavour.client(max_connections=1).get, server.url)
    assert isinstance(outcome, httpx.DecodingError)
    assert len(server.requests) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity"])
async def test_whole_compressed_bodies_are_complete(flavour, clock, encoding):
    """What is right stays right: each encoding, at once and in chunks, in one attempt."""
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}
    data = compress.get(encoding, bytes)(TEXT)
    headers = {"Content-Encoding": encoding}
    pieces = [data[i : i + 777] for i in range(0, len(data), 777)]
    with ScriptedServer([gzipped(data, encoding), chunked(*pieces, headers=headers)]) as server:
        client = flavour.client()
        for _ in range(2):
            response = await flavour.run(client.get(server.url))
            assert response.content == TEXT
            assert response.extensions["retries"] == ()
    assert server.connections == 1


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_no_body_is_complete(flavour, clock, method, status):
    """204, 304 and HEAD have no body, whatever the headers promise: one attempt each."""
    if (method, status) == ("GET", 200):
        headers = {"Content-Length": "0", **GZIPPED}
    else:
        headers = {} if status == 204 else {"Content-Length": "5000", **GZIPPED}
    step = Step(send=[message(status, headers=headers, length=False)])
    with ScriptedServer([step, step]) as server:
        client = flavour.client()
        for _ in range(2):
            response = await flavour.run(client.request(method, server.url))
            assert (response.status_code, response.content) == (status, b"")
            assert response.extensions["retries"] == ()
    assert server.connections == 1


async def test_a_body_that_ends_with_the_connection_is_complete(flavour, clock):
    """HTTP/1.0's way, no length at all: FIN is the end (drop-in), RST is an error."""
    old = b"HTTP/1.0 200 OK\r\n\r\n" + TEXT
    script = [Step(send=[old], then="fin"), Step(send=[old[:900]], delay=0.05, then="reset")]
    with ScriptedServer(script) as server:
        client = flavour.client()
        assert (await flavour.run(client.get(server.url))).content == TEXT
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert [failed.reason for failed in response.extensions["retries"]] == ["ReadError"]


@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_bytes_after_a_response_never_become_the_next_answer(flavour, clock, pause):
    """A second response that nobody asked for: the connection is dropped, not believed."""
    poisoned = Step(send=[message(200, b"first") + (b"" if pause else EVIL), EVIL], pause=pause)
    with ScriptedServer([poisoned] * 2) as server:
        client = flavour.client(max_connections=1)
        for _ in range(2):
            assert (await flavour.run(client.get(server.url))).text == "first"
            await anyio.sleep(ARRIVAL)
    assert server.connections == 2


@pytest.mark.parametrize("status", [100, 102, 103, 104])
async def test_informational_responses_are_skipped(flavour, clock, status):
    """1xx before the answer, 104 included although it stands in the table: one attempt."""
    early = message(status, headers={"Link": "</style.css>; rel=preload"})
    with ScriptedServer([Step(send=[early, early + message(200, b"late")], pause=0.02)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.text == "late"
    assert response.extensions["retries"] == ()


# --- reused connections ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", [fin(read="head"), reset(read="head")], ids=["fin", "reset"])
async def test_a_reused_connection_that_is_closed_as_the_request_arrives(flavour, clock, end):
    """The race that every keep-alive client loses at times: the GET is answered on a new one."""
    with ScriptedServer([answer(), end, answer(200, TEXT)]) as server:
        client = flavour.client()
        await flavour.run(client.get(server.url))
        response = await flavour.run(client.get(server.url))
    assert response.content == TEXT
    assert server.connections == 2
    assert len(response.extensions["retries"]) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("end", ["fin", "reset"])
async def test_an_idle_connection_that_was_closed_is_not_used(flavour, clock, method, end):
    """A connection seen to be dead costs no attempt, not even of a POST."""
    with ScriptedServer([answer(then=end), answer(200, TEXT)]) as server:
        client = flavour.client(max_connections=1)
        await flavour.run(client.get(server.url))
        await anyio.sleep(ARRIVAL)
        response = await flavour.run(client.request(method, server.url))
    assert response.content == TEXT
    assert response.extensions["retries"] == ()
    assert server.connections == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unsolicited_408_on_an_idle_connection_is_no_answer(flavour, clock, method):
    """Load balancers say 408 as they close an idle connection; it answers nothing we asked."""
    goodbye = message(408, b"timeout", {"Connection": "close"})
    script = [Step(send=[message(200, b"first"), goodbye], pause=0.01, then="fin")]
    with ScriptedServer(script) as server:
        client = flavour.client(max_connections=1)
        assert (await flavour.run(client.get(server.url))).text == "first"
        await anyio.sleep(ARRIVAL)
        response = await flavour.run(client.request(method, server.url))
    assert response.text == "ok"
    assert response.extensions["retries"] == ()


async def test_a_408_to_a_request_is_retried(flavour, clock):
    """RFC 9110, 15.5.9: the client may repeat; the server closes, so on a new connection."""
    goodbye = answer(408, headers={"Connection": "close"}, then="fin")
    with ScriptedServer([answer(), goodbye]) as server:
        client = flavour.client(max_connections=1)
        await flavour.run(client.get(server.url))
        response = await flavour.run(client.get(server.url))
    assert response.status_code == 200
    assert server.connections == 2


async def test_connection_close_is_obeyed(flavour, clock):
    """A 503 with Connection: close and a small body: the next attempt has its own connection."""
    step = answer(503, headers={"Connection": "close"}, then="fin")
    with ScriptedServer([step] * 3) as server:
        client = flavour.client(max_connections=1)
        assert (await flavour.run(client.get(server.url))).status_code == 200
    assert server.connections == 4


async def test_small_error_bodies_keep_their_connection(flavour, clock):
    """Four 503 with small bodies and the answer: five requests on one connection."""
    with ScriptedServer([answer(503, b"busy" * 100)] * 4) as server:
        assert (await flavour.run(flavour.client().get(server.url))).text == "ok"
    assert server.connections == 1
    assert len(server.requests) == 5


@pytest.mark.parametrize("size", [70_000, 50_000_000])
async def test_a_large_error_body_is_not_read(flavour, clock, size):
    """A 503 with megabytes costs the connection, not the time and memory to read them."""
    with ScriptedServer([answer(503, bytes(size))]) as server:
        response = await flavour.run(flavour.client(max_connections=1).get(server.url))
    assert response.text == "ok"
    assert server.connections == 2


async def test_a_compressed_bomb_of_an_error_is_not_unpacked(flavour, clock):
    """What is kept of a failed response is bounded after decompression as well."""
    with ScriptedServer([answer(503, BOMB, GZIPPED)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.text == "ok"
    (failed,) = response.extensions["retries"]
    with contextlib.suppress(httpx.ResponseNotRead):
        assert len(failed.outcome.content) < 5_000_000


async def test_a_failed_response_that_breaks_while_it_is_discarded(flavour, clock):
    """A 503 whose own body is cut is a 503 all the same: retried, and reported as that."""
    broken = Step(send=[message(503, b"x" * 99)[:-50]], then="reset")
    with ScriptedServer([broken]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.text == "ok"
    assert [f.reason for f in response.extensions["retries"]] == ["503 Service Unavailable"]


async def test_the_final_failed_response_is_complete_too(flavour, clock):
    """The 503 that is returned in the end has its body: the caller wants to read why."""
    with ScriptedServer([answer(503, TEXT)] * 2) as server:
        response = await flavour.run(flavour.client(max_attempts=2).get(server.url))
    assert response.status_code == 503
    assert response.content == TEXT


async def test_a_final_response_that_breaks_is_an_error(flavour, clock):
    """A 404 whose body is cut is retried as a broken body, and is not returned short."""
    broken = Step(send=[message(404, TEXT)[:-50]], then="fin")
    with ScriptedServer([broken, answer(404, TEXT)]) as server:
        response = await flavour.run(flavour.client().get(server.url))
    assert response.status_code == 404
    assert response.content == TEXT


async def test_slots_come_back_after_every_kind_of_fault(flavour, clock):
    """All the faults one after the other through a pool of one: no PoolTimeout, none left open."""
    script = [step for step, _ in FAULTS.values() if step.then != "hang"]
    with ScriptedServer(script) as server:
        client = flavour.client(max_connections=1, max_attempts=1)
        outcomes = [await flavour.outcome(client.get, server.url) for _ in range(len(script) + 3)]
        assert not any(isinstance(outcome, httpx.PoolTimeout) for outcome in outcomes)
        assert [outcome.text for outcome in outcomes[-3:]] == ["ok"] * 3
        await flavour.close(client)
        server.settle()


# --- TLS ------------------------------------------------------------------------------------------


# CPython's wrap_socket leaves the socket to the garbage collector when the reset comes first.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("step", [reset(read="nothing"), fin(read="nothing")], ids=["rst", "fin"])
async def test_a_handshake_that_breaks_is_retried(flavour, clock, step):
    """RST and FIN in the handshake are ConnectErrors like others; the third try works."""
    with ScriptedServer([step, step], tls=True) as server:
        client = flavour.client(verify=client_context())
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert server.connections == 3


async def test_a_handshake_that_stalls_is_retried(flavour, clock):
    """connect_timeout bounds the handshake; the next connection works."""
    with ScriptedServer([hang(read="nothing")], tls=True) as server:
        client = flavour.client(verify=client_context(), connect_timeout=1.5)
        response = await flavour.run(client.get(server.url))
    assert [f.reason for f in response.extensions["retries"]] == ["ConnectTimeout"]
    assert server.connections == 2


async def test_a_body_cut_under_tls_is_never_taken_as_complete(flavour, clock):
    """A TLS connection that ends without a goodbye, in the middle of the body."""
    with ScriptedServer([cut(TEXT, 500), cut(TEXT, 500, then="reset")], tls=True) as server:
        client = flavour.client(verify=client_context())
        response = await flavour.run(client.get(server.url))
        assert response.text == "ok"
    assert len(response.extensions["retries"]) == 2


async def test_plain_http_on_a_tls_port(flavour, clock):
    """https:// to a server that speaks plain HTTP: ConnectError, not a hang."""
    step = Step(read="nothing", send=[message(400, b"plain HTTP")], then="fin")
    with ScriptedServer([step] * 2) as server:
        client = flavour.client(verify=client_context(), max_attempts=2)
        outcome = await flavour.outcome(client.get, server.url.replace("http:", "https:"))
    assert isinstance(outcome, httpx.ConnectError)
    assert "gave up on GET" in "".join(outcome.__notes__)


async def test_tls_on_a_plain_port(flavour, clock):
    """http:// to a server that speaks TLS: an httpx error, not a hang."""
    with ScriptedServer(tls=True) as server:
        client = flavour.client(max_attempts=2)
        outcome = await flavour.outcome(client.get, server.url.replace("https:", "http:"))
    assert isinstance(outcome, httpx.RemoteProtocolError | httpx.ReadError)
    assert server.connections == 2


async def test_an_untrusted_certificate_is_tried_once(flavour, clock):
    """No repetition makes a certificate valid: one handshake, no wait, with the reason."""
    with ScriptedServer(tls=True) as server:
        outcome = await flavour.outcome(flavour.client().get, server.url)
    assert isinstance(outcome, httpx.ConnectError)
    assert "certificate verify failed" in str(outcome)
    assert server.connections == 1
    assert clock.delays == []


async def test_a_certificate_for_another_host_is_tried_once(flavour, clock):
    """The same for a certificate that is trusted, but of somebody else."""
    with ScriptedServer(tls=True) as server:
        extensions = {"sni_hostname": "elsewhere.test"}
        client = flavour.client(verify=client_context())
        outcome = await flavour.outcome(client.get, server.url, extensions=extensions)
    assert isinstance(outcome, httpx.ConnectError)
    assert "elsewhere.test" in str(outcome)
    assert server.connections == 1
    assert clock.delays == []


# --- names, ports and proxies ---------------------------------------------------------------------


async def test_names_that_resolve_at_the_third_try(flavour, clock, monkeypatch):
    """A resolver that fails twice is a ConnectError that passes."""
    failures = iter([socket.gaierror(-3, "Temporary failure in name resolution")] * 2)
    real = socket.getaddrinfo

    def flaky(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in ("flaky.test", b"flaky.test"):
            for failure in failures:
                raise failure
            host = "127.0.0.1"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", flaky)
    with ScriptedServer() as server:
        url = server.url.replace("127.0.0.1", "flaky.test")
        response = await flavour.run(flavour.client().get(url))
    assert response.text == "ok"
    assert [f.reason for f in response.extensions["retries"]] == ["ConnectError"] * 2


async def test_a_service_that_restarts(flavour, clock):
    """Refused twice while the process comes up, then answered."""
    with ScriptedServer(listening=False) as server:
        clock.during_wait.append(lambda: len(clock.delays) == 2 and server.listen())
        response = await flavour.run(flavour.client().get(server.url))
    assert response.text == "ok"
    assert [f.reason for f in response.extensions["retries"]] == ["ConnectError"] * 2


async def test_nobody_at_home(flavour, clock):
    """A port that refuses for good: five attempts, ConnectError, and the note counts them."""
    with refused_port() as url:
        outcome = await flavour.outcome(flavour.client().get, url)
    assert isinstance(outcome, httpx.ConnectError)
    assert "after 5 attempts" in "".join(outcome.__notes__)
    assert len(clock.delays) == 4


async def test_a_proxy_that_refuses_connect_once(flavour, clock):
    """502 to CONNECT is a ProxyError, retried; the tunnel then works."""
    with ScriptedServer([answer(502), forward]) as proxy, ScriptedServer(tls=True) as server:
        client = flavour.client(proxy=proxy.url, verify=client_context())
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert [f.reason for f in response.extensions["retries"]] == ["ProxyError"]
    assert proxy.methods == ["CONNECT", "CONNECT"]


async def test_a_proxy_that_wants_a_password_is_asked_once(flavour, clock):
    """407: no repetition brings the right password."""
    with ScriptedServer([answer(407)]) as proxy:
        client = flavour.client(proxy=proxy.url, verify=client_context())
        outcome = await flavour.outcome(client.get, "https://127.0.0.1:1/")
    assert isinstance(outcome, httpx.ProxyError)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("step", [reset(), fin(), hang()], ids=["reset", "fin", "hang"])
async def test_a_proxy_that_breaks_in_connect(flavour, clock, step):
    """A proxy that dies or stalls while it connects: the next CONNECT works."""
    with ScriptedServer([step, forward]) as proxy, ScriptedServer(tls=True) as server:
        client = flavour.client(
            proxy=proxy.url, verify=client_context(), read_timeout=1.5, connect_timeout=1.5
        )
        response = await flavour.run(client.get(server.url))
    assert response.text == "ok"
    assert len(response.extensions["retries"]) == 1


async def test_a_forward_proxy_that_answers_503(flavour, clock):
    """Plain HTTP through a proxy: its own 503 is retried like the server's."""
    with ScriptedServer([answer(503), reset(), forward]) as proxy, ScriptedServer() as server:
        client = flavour.client(proxy=proxy.url)
        response = await flavour.run(client.get(server.url + "/a?b=c"))
    assert response.text == "ok"
    assert [request.target for request in server.requests] == ["/a?b=c"]


async def test_a_hostile_retry_after_is_survived(flavour, clock):
    """Nonsense in Retry-After never raises and never means more than the backoff."""
    values = [
        "-1",
        "9" * 5000,
        "nan",
        "1e9",
        "Mon, 99 Foo 9999 99:99:99 GMT",
        "\x80\xff",
        "",
        "-120, soon",
    ]
    for value in values:
        with ScriptedServer([answer(503, headers={"Retry-After": value})]) as server:
            policy = RetryPolicy(backoff=lambda attempt: 0.5)
            response = await flavour.run(flavour.client(retry=policy).get(server.url))
        expected = 503 if value.startswith("9") else 200
        assert response.status_code == expected
    assert set(clock.delays) == {0.5}


@pytest.mark.parametrize("location", ["http://[::1", "gopher://127.0.0.1/", "http://127.0.0.1:0/"])
async def test_a_redirect_to_nonsense_is_an_httpx_error(flavour, clock, location):
    """A Location that is no URL, of no known scheme, or nowhere: httpx's own error in the end."""
    with ScriptedServer([redirect(location)] * 5) as server:
        client = flavour.client(follow_redirects=True)
        outcome = await flavour.outcome(client.get, server.url)
    assert isinstance(outcome, httpx.TransportError)
    assert (len(server.requests) == 1) == isinstance(outcome, httpx.UnsupportedProtocol)


async def test_a_byte_at_a_time_is_slow_but_right(flavour, clock):
    """Head and body byte by byte, each in time: one attempt, the whole body."""
    with ScriptedServer([drip(message(200, b"in the end"), 0.001)]) as server:
        response = await flavour.run(flavour.client(read_timeout=1.0).get(server.url))
    assert response.text == "in the end"
    assert response.extensions["retries"] == ()
